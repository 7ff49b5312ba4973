//! `RUN --mount`: what the flag says, and what it means once its variables have their values.

use crate::dockerfile::parse::{Parsed, Problem, nearest};
use crate::dockerfile::{Scope, clean, expand};

/// A flag `--mount` as written. Its values may hold variables, so all but `from` is looked at by [`MountFlag::resolve`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MountFlag {
    /// `key=value`, or `key` alone; keys in small letters.
    fields: Vec<(String, Option<String>)>,
    /// The stage or image that it shows, which the order of the stages depends on.
    pub(crate) from: Option<String>,
}

/// A mount of a `RUN` instruction.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mount {
    /// Absolute path in the container, free of `.` and `..`; none for a secret that is only a variable, and for an
    /// agent's socket without a place of its own.
    pub(crate) target: Option<String>,
    pub(crate) read_only: bool,
    pub(crate) kind: MountKind,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum MountKind {
    /// A directory or file of the build context, a stage or an image. What is written to it does not last.
    Bind {
        /// The build context where absent.
        from: Option<String>,
        /// Path there; empty is all of it.
        source: String,
    },
    /// A directory that later builds find again.
    Cache {
        /// Which one.
        id: String,
        sharing: Sharing,
        /// What it holds at first: a stage or an image; nothing where absent.
        from: Option<String>,
        /// Path there; empty is all of it.
        source: String,
        owner: FileOwner,
    },
    /// Memory.
    Tmpfs {
        /// Bytes; the kernel's default where absent.
        size: Option<u64>,
    },
    /// A secret, as a file or as a variable.
    Secret {
        id: String,
        /// The variable that holds it.
        env: Option<String>,
        /// The build fails without it.
        required: bool,
        owner: FileOwner,
    },
    /// An agent's socket.
    Ssh { id: String, required: bool, owner: FileOwner },
}

/// Mode and owner of what is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileOwner {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Who else may use a cache at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// All who want it.
    #[default]
    Shared,
    /// Nobody: others get one of their own.
    Private,
    /// Nobody: others wait.
    Locked,
}

const KEYS: [&str; 19] = [
    "type",
    "target",
    "dst",
    "destination",
    "source",
    "src",
    "from",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "env",
];

impl MountFlag {
    /// Takes the flag apart.
    pub(super) fn parse(value: &str) -> Parsed<Self> {
        let mut fields = Vec::new();
        let mut from = None;
        for field in csv(value)? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (field.as_str(), None),
            };
            let key = key.to_ascii_lowercase();
            if !KEYS.contains(&key.as_str()) {
                let hint = nearest(&key, &KEYS).map(|known| format!("did you mean `{known}`?"));
                return Err(Problem { message: format!("unknown key `{key}` of --mount"), hint });
            }
            if key == "from" {
                let name = value.clone().unwrap_or_default();
                if name.contains('$') {
                    let hint = "name a stage that begins with `FROM` and the variable".to_owned();
                    let message = format!("`from={name}`: a mount's source cannot be a variable");
                    return Err(Problem { message, hint: Some(hint) });
                }
                from = Some(name).filter(|name| !name.is_empty());
            }
            fields.push((key, value));
        }
        let flag = Self { fields, from };
        // What holds no variable is checked at once, wherever in the file it stands.
        let varies = |value: &Option<String>| value.as_ref().is_some_and(|value| value.contains('$'));
        if !flag.fields.iter().any(|(_, value)| varies(value)) {
            flag.check(&flag.fields, "/")?;
        }
        Ok(flag)
    }

    /// The mount. A target that is no absolute path starts from `workdir`.
    pub(crate) fn resolve(&self, scope: &dyn Scope, escape: char, workdir: &str) -> Parsed<Mount> {
        let mut fields = Vec::with_capacity(self.fields.len());
        for (key, value) in &self.fields {
            let value = value.as_ref().map(|value| expand(value, scope, escape)).transpose()?;
            fields.push((key.clone(), value));
        }
        self.check(&fields, workdir)
    }

    fn check(&self, fields: &[(String, Option<String>)], workdir: &str) -> Parsed<Mount> {
        let values = Values::read(fields)?;
        let from = self.from.clone();
        let target = values.target.as_deref().map(|target| clean(workdir, target));
        let owner = |mode| FileOwner {
            mode: values.mode.unwrap_or(mode),
            uid: values.uid.unwrap_or(0),
            gid: values.gid.unwrap_or(0),
        };
        let source = values.source.clone().unwrap_or_default();
        let kind = values.kind.as_str();
        let only = |given: bool, key: &str, kinds: &[&str]| match given && !kinds.contains(&kind) {
            true => Err(Problem::from(format!("`{key}` is not for a mount of type {kind}"))),
            false => Ok(()),
        };
        const FILES: [&str; 3] = ["cache", "secret", "ssh"];
        only(values.mode.is_some(), "mode", &FILES)?;
        only(values.uid.is_some(), "uid", &FILES)?;
        only(values.gid.is_some(), "gid", &FILES)?;
        only(values.size.is_some(), "size", &["tmpfs"])?;
        only(values.sharing.is_some(), "sharing", &["cache"])?;
        only(values.required.is_some(), "required", &["secret", "ssh"])?;
        only(values.env.is_some(), "env", &["secret"])?;
        only(from.is_some(), "from", &["bind", "cache"])?;
        let required = values.required.unwrap_or(false);
        let (target, kind) = match kind {
            "bind" => (target, MountKind::Bind { from, source }),
            "cache" => {
                let id = values.id.filter(|id| !id.is_empty()).or_else(|| target.clone()).unwrap_or_default();
                let sharing = values.sharing.unwrap_or_default();
                (target, MountKind::Cache { id, sharing, from, source, owner: owner(0o755) })
            }
            "tmpfs" => (target, MountKind::Tmpfs { size: values.size }),
            "secret" => secret(target, source, values.id, values.env, required, owner(0o400))?,
            _ => {
                let id = values.id.unwrap_or_else(|| "default".to_owned());
                (target, MountKind::Ssh { id, required, owner: owner(0o600) })
            }
        };
        if target.is_none() && matches!(values.kind.as_str(), "bind" | "cache" | "tmpfs") {
            return Err(format!("a mount of type {} needs a target", values.kind).into());
        }
        if target.as_deref() == Some("/") {
            return Err("`/` cannot be the target of a mount".into());
        }
        let writable = matches!(kind, MountKind::Cache { .. } | MountKind::Tmpfs { .. });
        Ok(Mount { target, read_only: values.read_only.unwrap_or(!writable), kind })
    }
}

fn secret(
    target: Option<String>,
    source: String,
    id: Option<String>,
    env: Option<String>,
    required: bool,
    owner: FileOwner,
) -> Parsed<(Option<String>, MountKind)> {
    if !source.is_empty() && id.is_some() {
        return Err("a secret has an `id` or a `source`, not both".into());
    }
    let base = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let id = match id.filter(|id| !id.is_empty()) {
        Some(id) => id,
        None if !source.is_empty() => source,
        None => target.as_deref().map(base).unwrap_or_default(),
    };
    if id.is_empty() {
        return Err("a secret needs an `id`".into());
    }
    let target = match (target, &env) {
        (None, None) => Some(format!("/run/secrets/{}", base(&id))),
        (target, _) => target,
    };
    Ok((target, MountKind::Secret { id, env, required, owner }))
}

/// The values of the keys, each of the right type.
#[derive(Default)]
struct Values {
    kind: String,
    target: Option<String>,
    source: Option<String>,
    read_only: Option<bool>,
    id: Option<String>,
    sharing: Option<Sharing>,
    required: Option<bool>,
    size: Option<u64>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    env: Option<String>,
}

impl Values {
    fn read(fields: &[(String, Option<String>)]) -> Parsed<Self> {
        let mut values = Self { kind: "bind".to_owned(), ..Self::default() };
        for (key, value) in fields {
            let flag = || match value.as_deref() {
                None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
                Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
                Some(other) => Err(Problem::from(format!("`{key}={other}`: it is true or false"))),
            };
            let text = || value.clone().ok_or_else(|| Problem::from(format!("`{key}` needs a value")));
            let number = |text: String, radix: u32| {
                let what = if radix == 8 { "a mode in octal digits" } else { "a number" };
                let wrong = |_bad| Problem::from(format!("`{key}={text}` is not {what}"));
                u32::from_str_radix(&text, radix).map_err(wrong)
            };
            match key.as_str() {
                "type" => {
                    const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
                    let kind = text()?.to_ascii_lowercase();
                    if !TYPES.contains(&kind.as_str()) {
                        let hint = Some(format!("the types are {}", TYPES.join(", ")));
                        return Err(Problem { message: format!("unknown type of mount `{kind}`"), hint });
                    }
                    values.kind = kind;
                }
                "target" | "dst" | "destination" => {
                    values.target = Some(text()?).filter(|path| !path.is_empty())
                }
                "source" | "src" => values.source = Some(text()?),
                "from" => {}
                "readonly" | "ro" => values.read_only = Some(flag()?),
                "readwrite" | "rw" => values.read_only = Some(!flag()?),
                "required" => values.required = Some(flag()?),
                "id" => values.id = Some(text()?),
                "env" => values.env = Some(text()?).filter(|name| !name.is_empty()),
                "sharing" => {
                    values.sharing = Some(match text()?.to_ascii_lowercase().as_str() {
                        "shared" => Sharing::Shared,
                        "private" => Sharing::Private,
                        "locked" => Sharing::Locked,
                        other => {
                            return Err(format!("`sharing={other}`: it is shared, private or locked").into());
                        }
                    });
                }
                "size" => {
                    let text = text()?;
                    let size =
                        bytes(&text).ok_or_else(|| format!("`size={text}` is not a size like `64m`"))?;
                    values.size = Some(size);
                }
                "mode" => values.mode = Some(number(text()?, 8)?),
                "uid" => values.uid = Some(number(text()?, 10)?),
                "gid" => values.gid = Some(number(text()?, 10)?),
                other => return Err(format!("unknown key `{other}` of --mount").into()),
            }
        }
        Ok(values)
    }
}

/// A size with a unit of 1024: `64m`, `1.5g`, `100`.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim_start();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
    let power = match unit {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let bytes = number * 1024_f64.powi(power);
    (bytes < 9e18).then_some(bytes as u64)
}

/// Splits at commas outside of double quotes (RFC 4180).
fn csv(text: &str) -> Parsed<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let mut field = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted;
            loop {
                let end = rest.find('"').ok_or("a quote in --mount is not closed")?;
                field.push_str(&rest[..end]);
                rest = &rest[end + 1..];
                // A doubled quote stands for one.
                let Some(after) = rest.strip_prefix('"') else { break };
                field.push('"');
                rest = after;
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            field.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.is_empty() => return Ok(fields),
            None => return Err("a quoted part of --mount goes on behind its quote".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn resolve(flag: &str) -> Result<Mount, String> {
        let scope: BTreeMap<String, String> = [("dir", "/var/cache"), ("ids", "7")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let resolved = MountFlag::parse(flag).and_then(|flag| flag.resolve(&scope, '\\', "/work"));
        resolved.map_err(|problem| problem.message)
    }

    #[test]
    fn each_type_has_its_defaults() {
        let bind = MountKind::Bind { from: None, source: String::new() };
        assert_eq!(
            resolve("target=src"),
            Ok(Mount { target: Some("/work/src".into()), read_only: true, kind: bind })
        );

        let mount = resolve("type=cache,dst=/a/../b,from=base,src=/x").unwrap();
        assert_eq!((mount.target.as_deref(), mount.read_only), (Some("/b"), false));
        let owner = FileOwner { mode: 0o755, uid: 0, gid: 0 };
        let (from, source) = (Some("base".to_owned()), "/x".to_owned());
        let sharing = Sharing::Shared;
        assert_eq!(mount.kind, MountKind::Cache { id: "/b".to_owned(), sharing, from, source, owner });

        let mount = resolve("type=tmpfs,target=/t,size=1.5k").unwrap();
        assert_eq!((mount.read_only, mount.kind), (false, MountKind::Tmpfs { size: Some(1536) }));

        let mount = resolve("type=secret,id=a/b").unwrap();
        assert_eq!(mount.target.as_deref(), Some("/run/secrets/b"));
        let mount = resolve("type=secret,target=/etc/key").unwrap();
        assert!(matches!(mount.kind, MountKind::Secret { ref id, required: false, .. } if id == "key"));
        let mount = resolve("type=secret,id=token,env=TOKEN,required").unwrap();
        assert_eq!(mount.target, None);
        assert!(matches!(mount.kind, MountKind::Secret { env: Some(_), required: true, .. }));

        let mount = resolve("type=ssh").unwrap();
        let owner = FileOwner { mode: 0o600, uid: 0, gid: 0 };
        assert_eq!(mount.kind, MountKind::Ssh { id: "default".to_owned(), required: false, owner });
    }

    #[test]
    fn values_are_expanded_but_for_from() {
        let mount = resolve("type=cache,\"target=${dir}/a,b\",uid=${ids},sharing=LOCKED").unwrap();
        assert_eq!(mount.target.as_deref(), Some("/var/cache/a,b"));
        let MountKind::Cache { owner, sharing, .. } = mount.kind else { panic!() };
        assert_eq!((owner.uid, sharing), (7, Sharing::Locked));
        assert!(resolve("from=$dir,target=/x").unwrap_err().contains("cannot be a variable"));
    }

    #[test]
    fn mistakes_are_refused() {
        for (flag, problem) in [
            ("type=cash,target=/x", "unknown type of mount `cash`"),
            ("type=bind,targt=/x", "unknown key `targt`"),
            ("type=bind", "needs a target"),
            ("target=/", "`/` cannot be the target"),
            ("target=/x,mode=755", "`mode` is not for a mount of type bind"),
            ("type=cache,target=/x,required", "`required` is not for a mount of type cache"),
            ("type=tmpfs,target=/x,size=big", "`size=big`"),
            ("type=tmpfs,target=/x,sharing=shared", "`sharing` is not for"),
            ("type=secret", "needs an `id`"),
            ("type=secret,id=a,src=b", "not both"),
            ("type=secret,id=a,from=b", "`from` is not for"),
            ("type=cache,target=/x,ro=maybe", "it is true or false"),
            ("type=cache,target=/x,sharing=mine", "shared, private or locked"),
            ("type=cache,target", "`target` needs a value"),
            ("\"target=/x", "not closed"),
        ] {
            let error = resolve(flag).unwrap_err();
            assert!(error.contains(problem), "{flag}: {error}");
        }
    }
}
