//! What accompanies a service: its output's log, hooks at its start and end, where its image comes from.

use std::collections::BTreeMap;

use super::keys::{self, Level};
use super::mounts::absolute;
use super::node::{Node, Value};
use super::process::user;
use super::units;
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::{Excess, Hook, Logging, PullPolicy};
use crate::words;

/// Docker's for `local`: what is kept when only one of the two options is said.
const DEFAULT_SIZE: u64 = 20 << 20;
/// More files than anybody reads.
const MAX_FILES: i64 = 1000;

/// Reads `logging`.
pub(super) fn logging(node: &Node, place: &str, warnings: &mut Vec<(Span, String)>) -> Checked<Logging> {
    let mut logging = Logging::default();
    let (mut size, mut files, mut nothing) = (None, None, false);
    let place = format!("`logging` of {place}");
    for (key, node) in node.map("logging")? {
        if !keys::LOGGING.admits(key, &key.name, &place, warnings)? {
            continue;
        }
        match key.name.as_str() {
            "driver" => match node.text("driver")?.as_str() {
                "json-file" | "local" | "" => {}
                "none" => nothing = true,
                other => {
                    let text = format!(
                        "log driver `{other}` of {place} is ignored: what the service writes is kept for `inception-run logs`"
                    );
                    warnings.push((node.span.clone(), text));
                }
            },
            "options" => {
                for (key, node) in node.map("options")? {
                    match key.name.as_str() {
                        "max-size" => size = Some(amount(node, "max-size", "a size for a log", "10m")?),
                        "max-file" => files = Some(node.integer("max-file", 1, MAX_FILES)?),
                        "rate" => logging.rate = amount(node, "rate", "a rate for a log", "1m")?,
                        "mode" => logging.excess = mode(node)?,
                        name => {
                            let text =
                                format!("option `{name}` of {place} is ignored: it is another driver's");
                            warnings.push((key.span.clone(), text));
                        }
                    }
                }
            }
            _ => return Err(Level::unread(key, &place)),
        }
    }
    if size.is_some() || files.is_some() {
        logging.max_size = size.unwrap_or(DEFAULT_SIZE);
        // Without `max-file`, `max-size` of Docker's keeps the file that is written to and no other.
        logging.max_files = u32::try_from(files.unwrap_or(1)).unwrap_or(1);
    }
    if nothing {
        logging.max_files = 0;
    }
    Ok(logging)
}

/// Bytes, or bytes a second. -1 is no limit.
fn amount(node: &Node, key: &str, what: &str, example: &str) -> Checked<u64> {
    let text = node.text(key)?;
    match units::size(&text) {
        Some(size) if size > 0 => Ok(size),
        _ if text == "-1" => Ok(u64::MAX),
        _ => Err(Fault::new(&node.span, format!("`{text}` is not {what}"))
            .hint(format!("write a number with a unit: `{example}`"))),
    }
}

/// Docker's word for what happens when a log is slower than who writes it.
fn mode(node: &Node) -> Checked<Excess> {
    match node.text("mode")?.as_str() {
        "blocking" => Ok(Excess::Waits),
        "non-blocking" => Ok(Excess::Dropped),
        other => Err(Fault::new(&node.span, format!("`{other}` is not a mode for a log"))
            .hint("`blocking` or `non-blocking`")),
    }
}

/// Reads `post_start` or `pre_stop`.
pub(super) fn hooks(node: &Node, what: &str, warnings: &mut Vec<(Span, String)>) -> Checked<Vec<Hook>> {
    let place = format!("an entry of `{what}`");
    node.list(what)?.iter().map(|item| hook(item, what, &place, warnings)).collect()
}

/// Reads a command that is run inside.
pub(super) fn hook(
    item: &Node,
    what: &str,
    place: &str,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<Hook> {
    let mut hook = Hook {
        command: Vec::new(),
        user: None,
        privileged: false,
        working_dir: None,
        environment: BTreeMap::new(),
    };
    for (key, node) in item.map(what)? {
        if !keys::HOOK.admits(key, &key.name, place, warnings)? {
            continue;
        }
        match key.name.as_str() {
            "command" => hook.command = command(node, "command")?,
            "user" => hook.user = user(node)?,
            "privileged" => hook.privileged = node.boolean("privileged")?,
            "working_dir" => hook.working_dir = Some(absolute(&node.span, &node.text("working_dir")?)?),
            "environment" => {
                let pairs = node.pairs("environment")?.into_iter();
                hook.environment = pairs.filter_map(|(key, value)| Some((key.name, value?))).collect();
            }
            _ => return Err(Level::unread(key, place)),
        }
    }
    if hook.command.is_empty() {
        return Err(Fault::new(&item.span, format!("{place} needs `command`")));
    }
    Ok(hook)
}

/// A list, or a line that is split as a shell would.
pub(super) fn command(node: &Node, what: &str) -> Checked<Vec<String>> {
    match &node.value {
        Value::List(_) => node.texts(what),
        Value::String(line) => words::split(line)
            .ok_or_else(|| Fault::new(&node.span, format!("a quote in `{what}` is never closed"))),
        _ => Err(node.wrong(what, "a string or a list of strings")),
    }
}

/// Reads `platform`, which must be this machine's; none where it leaves the architecture open.
pub(super) fn platform(node: &Node, place: &str) -> Checked<Option<String>> {
    let text = node.text("platform")?;
    let mut parts = text.split('/');
    let (system, rest): (_, Vec<&str>) = (parts.next().unwrap_or_default(), parts.collect());
    let machine = std::env::consts::ARCH;
    // `linux`, `ARCHITECTURE` and `linux/ARCHITECTURE[/VARIANT]`.
    let asked = match (system, rest.as_slice()) {
        ("linux" | "", []) => return Ok(None),
        ("linux", [architecture, ..]) => *architecture,
        (architecture, []) => architecture,
        _ => {
            return Err(Fault::new(&node.span, format!("{place} is for `{text}`, and this is Linux"))
                .hint("leave `platform` out, and use an image for Linux"));
        }
    };
    if architecture(asked) == machine {
        return Ok(Some(text));
    }
    let message = format!("{place} is for `{text}`, and this machine is `linux/{}`", ours(machine));
    Err(Fault::new(&node.span, message).hint(
        "programs of another architecture cannot run here without an emulator: leave `platform` out where the image is there for several",
    ))
}

/// Rust's name of an architecture by Go's, which images use.
fn architecture(go: &str) -> &str {
    match go {
        "amd64" | "x86-64" => "x86_64",
        "arm64" => "aarch64",
        "386" => "x86",
        "ppc64le" => "powerpc64",
        other => other,
    }
}

fn ours(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads `pull_policy`.
pub(super) fn pull_policy(node: &Node) -> Checked<PullPolicy> {
    const DAY: f64 = 86400.0;
    let text = node.text("pull_policy")?;
    match text.as_str() {
        "always" => Ok(PullPolicy::Always),
        "never" => Ok(PullPolicy::Never),
        "missing" | "if_not_present" => Ok(PullPolicy::Missing),
        "build" => Ok(PullPolicy::Build),
        "daily" | "refresh" => Ok(PullPolicy::Every(DAY)),
        "weekly" => Ok(PullPolicy::Every(7.0 * DAY)),
        other => match other.strip_prefix("every_").and_then(units::long_duration) {
            Some(seconds) => Ok(PullPolicy::Every(seconds)),
            None => {
                let known = ["always", "never", "missing", "if_not_present", "build", "daily", "weekly"];
                Err(Fault::new(&node.span, format!("`{text}` is not a `pull_policy`"))
                    .hint("use `always`, `never`, `missing`, `build`, `daily`, `weekly` or `every_12h`")
                    .nearest(&text, known))
            }
        },
    }
}

/// `isolation`, of which Linux has one.
pub(super) fn isolation(node: &Node, place: &str, warnings: &mut Vec<(Span, String)>) -> Checked<()> {
    let text = node.text("isolation")?;
    if text != "default" && !text.is_empty() {
        let message = format!("`isolation: {text}` of {place} is ignored: it is Windows's");
        warnings.push((node.span.clone(), message));
    }
    Ok(())
}
