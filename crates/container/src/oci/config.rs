//! `config.json`: read with limits, and refused where the specification or common sense says so. What is accepted here
//! can be carried out, or the host says why not.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType as Kind, Spec};

use super::error::Error;

/// The newest version of the runtime specification whose Linux part is known here.
pub const SPEC_VERSION: &str = "1.3.0";
/// Bytes of a `config.json` at the most.
const LIMIT: u64 = 16 << 20;

/// Reads a `config.json`.
///
/// # Errors
/// When there is none, it is no JSON, a field has the wrong type, or [`Error::Invalid`] and [`Error::Unsupported`].
pub fn load(path: &Path) -> Result<Spec, Error> {
    let fail = || Error::system(format!("read {}", path.display()));
    let mut text = Vec::new();
    let file = File::open(path).map_err(fail())?;
    file.take(LIMIT + 1).read_to_end(&mut text).map_err(fail())?;
    if text.len() as u64 > LIMIT {
        return Err(Error::invalid("(file)", format!("is larger than {LIMIT} bytes")));
    }
    parse(&text).map_err(|error| match error {
        Error::Syntax { source, .. } => Error::Syntax { path: path.to_owned(), source },
        other => other,
    })
}

/// Reads and checks the text of a `config.json`.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &[u8]) -> Result<Spec, Error> {
    let syntax = |source| Error::Syntax { path: "config.json".into(), source };
    let spec: Spec = match serde_json::from_slice(text) {
        Ok(spec) => spec,
        Err(source) => match without_unknown_capabilities(text, "/process/capabilities") {
            Some(known) => serde_json::from_value(known).map_err(syntax)?,
            None => return Err(syntax(source)),
        },
    };
    check(&spec)?;
    // No other way of writing one is JSON.
    if text.windows(6).any(|six| six == br"\u0000") {
        no_zero_bytes(&spec)?;
    }
    Ok(spec)
}

fn check(spec: &Spec) -> Result<(), Error> {
    version(spec.version())?;
    foreign(spec)?;
    let root = spec.root().as_ref().ok_or_else(|| Error::invalid("root", "is missing"))?;
    if root.path().as_os_str().is_empty() {
        return Err(Error::invalid("root.path", "is empty"));
    }
    if spec.annotations().iter().flatten().any(|(key, _)| key.is_empty()) {
        return Err(Error::invalid("annotations", "a key is empty"));
    }
    process(spec)?;
    mounts(spec)?;
    namespaces(spec)?;
    hooks(spec)?;
    linux(spec)
}

/// Reads the description of one process. Without a user it is root, as runc has it.
///
/// # Errors
/// When it is no JSON, or a field has the wrong type.
pub fn parse_process(text: &[u8]) -> Result<oci_spec::runtime::Process, serde_json::Error> {
    let source = match serde_json::from_slice(text) {
        Ok(process) => return Ok(process),
        Err(source) => source,
    };
    let mut process = match without_unknown_capabilities(text, "/capabilities") {
        Some(known) => known,
        None => serde_json::from_slice(text)?,
    };
    let Some(fields) = process.as_object_mut() else { return Err(source) };
    fields.entry("user").or_insert_with(|| serde_json::json!({"uid": 0, "gid": 0}));
    serde_json::from_value(process).map_err(|_| source)
}

/// The same without capabilities that nobody knows, if there are any: since version 1.1 the specification wants a
/// warning, so that a description can be used on an older host.
fn without_unknown_capabilities(text: &[u8], place: &str) -> Option<serde_json::Value> {
    let mut config: serde_json::Value = serde_json::from_slice(text).ok()?;
    let mut unknown = std::collections::BTreeSet::new();
    for set in config.pointer_mut(place)?.as_object_mut()?.values_mut() {
        let Some(names) = set.as_array_mut() else { continue };
        names.retain(|name| match name.as_str() {
            Some(name) if crate::capability::bit(name).is_err() => {
                unknown.insert(name.to_owned());
                false
            }
            _ => true,
        });
    }
    for name in &unknown {
        tracing::warn!("there is no capability `{name}`: nobody can have it");
    }
    (!unknown.is_empty()).then_some(config)
}

/// Any 1.x: later minor versions only add (semver.org).
fn version(version: &str) -> Result<(), Error> {
    let number = version.split(['-', '+']).next().unwrap_or("");
    let parts: Vec<_> = number.split('.').map(str::parse::<u32>).collect();
    match parts[..] {
        [Ok(1), Ok(_), Ok(_)] => Ok(()),
        [Ok(_), Ok(_), Ok(_)] => Err(Error::unsupported("ociVersion", format!("{version} is not 1.x"))),
        _ => Err(Error::invalid("ociVersion", format!("`{version}` is no version"))),
    }
}

fn foreign(spec: &Spec) -> Result<(), Error> {
    for (name, set) in [("windows", spec.windows().is_some()), ("vm", spec.vm().is_some())] {
        if set && spec.linux().is_none() {
            return Err(Error::unsupported(name, "this runtime makes Linux containers"));
        }
    }
    Ok(())
}

fn process(spec: &Spec) -> Result<(), Error> {
    let Some(process) = spec.process() else { return Ok(()) };
    check_process(process)
}

/// What holds for the process of a container and for one that enters it.
pub(super) fn check_process(process: &oci_spec::runtime::Process) -> Result<(), Error> {
    match process.args() {
        Some(args) if args.first().is_some_and(|program| !program.is_empty()) => {}
        Some(args) if !args.is_empty() => return Err(Error::invalid("process.args[0]", "is empty")),
        _ => return Err(Error::invalid("process.args", "is missing or empty")),
    }
    if !process.cwd().is_absolute() {
        return Err(Error::invalid("process.cwd", format!("`{}` is not absolute", process.cwd().display())));
    }
    for (index, variable) in process.env().iter().flatten().enumerate() {
        if !variable.contains('=') || variable.starts_with('=') {
            let reason = format!("`{variable}` is not NAME=VALUE");
            return Err(Error::invalid(format!("process.env[{index}]"), reason));
        }
    }
    let mut seen = HashSet::new();
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let field = format!("process.rlimits[{index}]");
        if !seen.insert(limit.typ().to_string()) {
            return Err(Error::invalid(field, format!("{} is there twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            return Err(Error::invalid(field, "the soft limit is above the hard one"));
        }
    }
    if let Some(adjust) = process.oom_score_adj()
        && !(-1000..=1000).contains(&adjust)
    {
        return Err(Error::invalid("process.oomScoreAdj", format!("{adjust} is not between -1000 and 1000")));
    }
    if let Some(size) = process.console_size()
        && (u16::try_from(size.height()).is_err() || u16::try_from(size.width()).is_err())
    {
        return Err(Error::invalid("process.consoleSize", "is beyond 65535"));
    }
    if let Some(priority) = process.io_priority()
        && !(0..=7).contains(&priority.priority())
    {
        return Err(Error::invalid("process.ioPriority.priority", "is not between 0 and 7"));
    }
    Ok(())
}

fn mounts(spec: &Spec) -> Result<(), Error> {
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let field = |name: &str| format!("mounts[{index}].{name}");
        if mount.destination().as_os_str().is_empty() {
            return Err(Error::invalid(field("destination"), "is empty"));
        }
        let (uids, gids) = (mount.uid_mappings(), mount.gid_mappings());
        if uids.as_ref().is_some_and(|m| !m.is_empty()) != gids.as_ref().is_some_and(|m| !m.is_empty()) {
            return Err(Error::invalid(field("uidMappings"), "uid and gid mappings come together"));
        }
    }
    Ok(())
}

fn namespaces(spec: &Spec) -> Result<(), Error> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let mut seen = HashSet::new();
    for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
        if !seen.insert(namespace.typ()) {
            let reason = format!("{} is there twice", namespace.typ());
            return Err(Error::invalid(format!("linux.namespaces[{index}]"), reason));
        }
        if let Some(path) = namespace.path()
            && !path.as_os_str().is_empty()
            && !path.is_absolute()
        {
            return Err(Error::invalid(format!("linux.namespaces[{index}].path"), "is not absolute"));
        }
    }
    let made = |kind: Kind| {
        linux.namespaces().iter().flatten().any(|n| n.typ() == kind && super::namespaces::path(n).is_none())
    };
    let has = |kind: Kind| seen.contains(&kind);
    let needs = |field: &str, kind: Kind| Error::invalid(field, format!("needs a {kind} namespace"));
    if !has(Kind::Mount) {
        return Err(Error::unsupported(
            "linux.namespaces",
            "a container without a mount namespace would mount in the host's",
        ));
    }
    if spec.hostname().as_ref().is_some_and(|name| !name.is_empty()) && !has(Kind::Uts) {
        return Err(needs("hostname", Kind::Uts));
    }
    if spec.domainname().as_ref().is_some_and(|name| !name.is_empty()) && !has(Kind::Uts) {
        return Err(needs("domainname", Kind::Uts));
    }
    let mapped = |maps: &Option<Vec<_>>| maps.as_ref().is_some_and(|maps| !maps.is_empty());
    let (uids, gids) = (mapped(linux.uid_mappings()), mapped(linux.gid_mappings()));
    if (uids || gids) && !has(Kind::User) {
        return Err(needs("linux.uidMappings", Kind::User));
    }
    if made(Kind::User) && !(uids && gids) {
        return Err(Error::invalid("linux.uidMappings", "a new user namespace needs uid and gid mappings"));
    }
    if linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) && !made(Kind::Time) {
        return Err(Error::invalid("linux.timeOffsets", "need a new time namespace"));
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) && !has(Kind::Network) {
        return Err(needs("linux.netDevices", Kind::Network));
    }
    for (name, _) in linux.sysctl().iter().flatten() {
        sysctl(name, &has)?;
    }
    Ok(())
}

/// Only sysctls of namespaces that the container has: the others are the host's.
fn sysctl(name: &str, has: &dyn Fn(Kind) -> bool) -> Result<(), Error> {
    let dotted = name.replace('/', ".");
    let field = format!("linux.sysctl.{name}");
    let kind = match dotted.as_str() {
        "kernel.hostname" => return Err(Error::invalid(field, "conflicts with the field hostname")),
        "kernel.domainname" => Kind::Uts,
        "kernel.msgmax"
        | "kernel.msgmnb"
        | "kernel.msgmni"
        | "kernel.sem"
        | "kernel.shmall"
        | "kernel.shmmax"
        | "kernel.shmmni"
        | "kernel.shm_rmid_forced" => Kind::Ipc,
        name if name.starts_with("fs.mqueue.") => Kind::Ipc,
        name if name.starts_with("net.") => Kind::Network,
        name if name.starts_with("user.") => Kind::User,
        _ => return Err(Error::invalid(field, "is no sysctl of a namespace")),
    };
    if dotted.split('.').any(|part| part.is_empty()) || dotted.contains("..") {
        return Err(Error::invalid(field, "is no name of a sysctl"));
    }
    if has(kind) { Ok(()) } else { Err(Error::invalid(field, format!("needs a {kind} namespace"))) }
}

fn hooks(spec: &Spec) -> Result<(), Error> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    #[allow(deprecated)]
    let lists = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (name, list) in lists {
        for (index, hook) in list.iter().flatten().enumerate() {
            let field = |what: &str| format!("hooks.{name}[{index}].{what}");
            if !hook.path().is_absolute() {
                return Err(Error::invalid(
                    field("path"),
                    format!("`{}` is not absolute", hook.path().display()),
                ));
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return Err(Error::invalid(field("timeout"), "is not above 0"));
            }
        }
    }
    Ok(())
}

fn linux(spec: &Spec) -> Result<(), Error> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    if linux.intel_rdt().is_some() {
        return Err(Error::unsupported("linux.intelRdt", "resctrl is not known here"));
    }
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        if !device.path().is_absolute() {
            return Err(Error::invalid(format!("linux.devices[{index}].path"), "is not absolute"));
        }
        if device.file_mode().is_some_and(|mode| mode & !0o7777 != 0 && mode & 0o170_000 == 0) {
            return Err(Error::invalid(format!("linux.devices[{index}].fileMode"), "is no mode"));
        }
    }
    for (name, paths) in [("maskedPaths", linux.masked_paths()), ("readonlyPaths", linux.readonly_paths())] {
        for (index, path) in paths.iter().flatten().enumerate() {
            if !path.starts_with('/') {
                return Err(Error::invalid(
                    format!("linux.{name}[{index}]"),
                    format!("`{path}` is not absolute"),
                ));
            }
        }
    }
    Ok(())
}

/// The kernel ends a string at its first zero byte, so what is checked here would not be what is used there.
fn no_zero_bytes(spec: &Spec) -> Result<(), Error> {
    fn walk(value: &serde_json::Value, path: &mut Vec<String>) -> Result<(), Error> {
        match value {
            serde_json::Value::String(text) if text.contains('\0') => {
                Err(Error::invalid(path.join("."), "has a zero byte"))
            }
            serde_json::Value::Array(values) => values.iter().enumerate().try_for_each(|(index, value)| {
                path.push(index.to_string());
                let result = walk(value, path);
                path.pop();
                result
            }),
            serde_json::Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
                path.push(name.clone());
                let key = if name.contains('\0') {
                    Err(Error::invalid(path.join("."), "has a zero byte"))
                } else {
                    Ok(())
                };
                let result = key.and_then(|()| walk(value, path));
                path.pop();
                result
            }),
            _ => Ok(()),
        }
    }
    let value =
        serde_json::to_value(spec).map_err(|source| Error::Syntax { path: "config.json".into(), source })?;
    walk(&value, &mut Vec::new())
}
