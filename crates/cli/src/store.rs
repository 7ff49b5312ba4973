//! The image store: `images`, `tag`, `rmi`, `history`, `inspect` of images, `diff`, `df`, `prune`, `verify`.

mod listing;
mod room;

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use serde::Serialize;
use stack::RemoteError;
use stack::store::{self, ChangeKind, PruneOptions, PrunePolicy, PruneReport};

use crate::args::Format;
use crate::listing::check_services;
use crate::output::{self, Failure, size};
use crate::session::Session;

pub(crate) use listing::{History, Images, history, images};
pub(crate) use room::{Df, df};

/// `tag`.
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// Image: name, id, or the beginning of an id
    source: String,
    /// The new name
    target: String,
}

/// `rmi`.
#[derive(Debug, Args)]
pub(crate) struct Rmi {
    /// Remove an image with all its names; of one that is in use, take the name
    #[arg(short, long)]
    force: bool,
    /// Images: names, ids, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// `inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// What the name is [default: a running service, or else an image]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<Kind>,
    /// Accepted for symmetry: the output is JSON always
    #[arg(long, value_name = "FORMAT", default_value = "json", hide = true)]
    format: Format,
    /// Service or image
    name: String,
}

/// `--type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A service of the stack.
    Service,
    /// An image of the store.
    Image,
}

/// `diff`.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    format: Format,
    /// Service, or one container of it such as `web-2`
    service: String,
}

/// `prune`.
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Images that no container uses, too, and the whole build cache
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// The volumes of stacks that do not run, too: their data is lost
    #[arg(long)]
    volumes: bool,
    /// Only what was neither created nor used within this time: `until=24h`
    #[arg(long, value_name = "until=TIME", value_parser = until)]
    filter: Option<Duration>,
    /// Keep this much of the build cache, most recently used first: `10GB`
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    keep_storage: Option<u64>,
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    format: Format,
}

/// `verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Do not read the files of layers
    #[arg(long)]
    quick: bool,
    /// table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    format: Format,
}

/// `tag`.
pub(crate) fn tag(session: &Session, arguments: &Tag) -> Result<u8, Failure> {
    store::tag(&session.paths, &arguments.source, &arguments.target)?;
    Ok(0)
}

/// `rmi`.
pub(crate) fn rmi(session: &Session, arguments: &Rmi) -> Result<u8, Failure> {
    let mut code = 0;
    for name in &arguments.images {
        match store::remove(&session.paths, name, arguments.force) {
            Ok(removed) => {
                let mut text: String =
                    removed.untagged.iter().map(|name| format!("Untagged: {name}\n")).collect();
                text.extend(removed.image.iter().map(|id| format!("Deleted: {id}\n")));
                text.extend(removed.layers.iter().map(|layer| format!("Deleted: layer {layer}\n")));
                output::print(&text)?;
            }
            // The others go all the same.
            Err(error) => {
                session.output.failure(&error.context(format!("cannot remove `{name}`")).into());
                code = 1;
            }
        }
    }
    Ok(code)
}

/// `inspect`.
pub(crate) fn inspect(session: &Session, arguments: &Inspect) -> Result<u8, Failure> {
    let _json = arguments.format;
    match arguments.kind {
        Some(Kind::Service) => crate::listing::inspect(session, &arguments.name),
        Some(Kind::Image) => output::json(&listing::describe(session, &arguments.name)?).map(|()| 0),
        None => {
            let service = match crate::listing::inspect(session, &arguments.name) {
                Err(failure @ (Failure::Other(_) | Failure::File(_))) => failure,
                done => return done,
            };
            match (listing::describe(session, &arguments.name), service) {
                (Err(Failure::Other(image)), Failure::Other(service)) => {
                    let text = format!("`{}` is neither a service that runs nor an image", arguments.name);
                    let mut failure = RemoteError::message(text);
                    failure.chain.extend([service.chain.join(": "), image.chain.join(": ")]);
                    failure.hint = service.hint.or(image.hint);
                    Err(failure.into())
                }
                (image, _) => output::json(&image?).map(|()| 0),
            }
        }
    }
}

/// A change of `diff --format json`.
#[derive(Serialize)]
struct Changed<'a> {
    path: std::borrow::Cow<'a, str>,
    kind: &'static str,
}

/// `diff`.
pub(crate) fn diff(session: &Session, arguments: &Diff) -> Result<u8, Failure> {
    let other_name = session.container_called(&arguments.service);
    let container = other_name.as_deref().unwrap_or(&arguments.service);
    let (stack, client) = session.connect()?;
    let changes = match (store::changes(&session.paths, &stack, container), client) {
        (Ok(changes), _) => changes,
        (Err(error), Some(mut client)) => {
            // Who is there knows best that somebody is not.
            stack::stats::subjects(&mut client, std::slice::from_ref(&arguments.service))?;
            return Err(error.into());
        }
        (Err(error), None) => {
            if session.has_stack_file() {
                check_services(&session.load(None)?.plan, std::slice::from_ref(&arguments.service))?;
            }
            let RemoteError { chain, exit_code, .. } = error;
            let error = RemoteError { chain, exit_code, hint: None };
            return Err(error.or_hint("`inception-run up -d` starts the stack").into());
        }
    };
    let letter = |kind: ChangeKind| match kind {
        ChangeKind::Added => "A",
        ChangeKind::Changed => "C",
        ChangeKind::Deleted => "D",
    };
    let rows = changes
        .iter()
        .map(|change| Changed { path: change.path.to_string_lossy(), kind: letter(change.kind) });
    match arguments.format {
        Format::Json => output::json(&rows.collect::<Vec<_>>())?,
        Format::Table => {
            output::print(
                &rows.map(|row| format!("{} {}\n", row.kind, output::visible(&row.path))).collect::<String>(),
            )?;
        }
    }
    Ok(0)
}

/// `prune`.
pub(crate) fn prune(session: &Session, arguments: &Prune) -> Result<u8, Failure> {
    let policy = PrunePolicy {
        all: arguments.all,
        before: arguments.filter.and_then(|age| SystemTime::now().checked_sub(age)),
        keep_cache: arguments.keep_storage,
    };
    let mut options = PruneOptions { policy, volumes: arguments.volumes, dry_run: true };
    if !arguments.force || arguments.dry_run {
        let report = store::prune(&session.paths, &options)?;
        if arguments.dry_run {
            return show(&report, arguments.format, "would be freed");
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::usage(
                "standard input is not a terminal to confirm on",
                "`-f` removes without asking, `--dry-run` shows what",
            ));
        }
        output::print(&outline(&report))?;
        if !confirmed(&format!("remove that, {}?", size(report.bytes())))? {
            return Ok(1);
        }
    }
    options.dry_run = false;
    show(&store::prune(&session.paths, &options)?, arguments.format, "freed")
}

fn confirmed(question: &str) -> Result<bool, Failure> {
    output::print(&format!("{question} [y/N] "))?;
    io::stdout().flush().map_err(Failure::system("write to the terminal"))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(Failure::system("read from the terminal"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn show(report: &PruneReport, format: Format, done: &str) -> Result<u8, Failure> {
    match format {
        Format::Json => output::json(report)?,
        Format::Table => output::print(&format!("{}{} {done}\n", outline(report), size(report.bytes())))?,
    }
    Ok(0)
}

/// What a prune takes away, a line each; of layers and cache entries how many there are.
fn outline(report: &PruneReport) -> String {
    let pruned = &report.store;
    let mut text = String::new();
    text.extend(pruned.names.iter().map(|name| format!("name        {name}\n")));
    text.extend(pruned.images.iter().map(|id| format!("image       {}\n", id.short())));
    for (kind, list) in [("container", &report.containers), ("volume", &report.volumes)] {
        text.extend(list.iter().map(|files| format!("{kind:<11} {} ({})\n", files.name, size(files.size))));
    }
    text.extend(
        pruned
            .cache_mounts
            .iter()
            .map(|mount| format!("cache mount {} ({})\n", output::visible(&mount.id), size(mount.size))),
    );
    for (kind, count) in [("layers", pruned.layers.len()), ("cache", pruned.cache.len())] {
        if count > 0 {
            text.push_str(&format!("{kind:<11} {count}\n"));
        }
    }
    text
}

/// `verify`. Exit code 1 if anything is damaged; what only takes up room is told.
pub(crate) fn verify(session: &Session, arguments: &Verify) -> Result<u8, Failure> {
    let is_watched = io::stderr().is_terminal();
    let found = store::verify(&session.paths, arguments.quick, &mut |layer| {
        if is_watched {
            session.output.progress(&format!("layer {layer}"));
        }
    })?;
    match arguments.format {
        Format::Json => output::json(&found)?,
        Format::Table => {
            let mut text = String::new();
            for finding in &found.findings {
                let kind = if finding.damage { "damaged" } else { "left over" };
                text.push_str(&format!(
                    "{kind}: {}: {}\n  hint: {}\n",
                    finding.path, finding.problem, finding.hint
                ));
            }
            let read = if arguments.quick { String::new() } else { format!(", {} read", size(found.bytes)) };
            let damaged = found.findings.iter().filter(|finding| finding.damage).count();
            text.push_str(&format!(
                "{} names, {} images, {} layers{read}: {}\n",
                found.names,
                found.images,
                found.layers,
                if damaged == 0 { "nothing is damaged".to_owned() } else { format!("{damaged} damaged") },
            ));
            output::print(&text)?;
        }
    }
    Ok(u8::from(found.findings.iter().any(|finding| finding.damage)))
}

fn until(text: &str) -> Result<Duration, String> {
    let time = text.strip_prefix("until=").ok_or("the only filter is `until`: `until=24h`")?;
    if let Ok(age) = humantime::parse_duration(time) {
        return Ok(age);
    }
    let moment = humantime::parse_rfc3339_weak(time).map_err(|_| {
        format!("`{time}` is neither how long ago (`24h`) nor a time (`2026-01-31T12:00:00Z`)")
    })?;
    Ok(SystemTime::now().duration_since(moment).unwrap_or_default())
}

/// A size: `512MB`, `1.5GiB`, `10g`, or bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit: f64 = match text[at..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err("a size: `512MB`, `10GB`, `1GiB`".to_owned()),
    };
    let number: f64 = text[..at].parse().map_err(|_| "a size: `512MB`, `10GB`, `1GiB`".to_owned())?;
    Ok((number * unit) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages() {
        assert_eq!(
            ["10", "1.5kB", "2GiB", "3g"].map(|text| bytes(text).unwrap()),
            [10, 1500, 2 << 30, 3_000_000_000]
        );
        assert!(bytes("much").is_err() && bytes("5 parsecs").is_err() && bytes("").is_err());
        assert_eq!(until("until=24h").unwrap(), Duration::from_secs(86400));
        assert!(until("until=2020-01-01T00:00:00Z").unwrap() > Duration::from_secs(86400));
        assert!(until("label=x").is_err() && until("until=soon").is_err());
    }
}
