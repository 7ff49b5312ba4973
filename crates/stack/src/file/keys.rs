//! Every key of the compose specification, and what becomes of it.
//!
//! The parsers ask [`Level::admits`] about each key that they meet, and `docs/compose.md` is written from the same
//! tables ([`document`]), so that neither can promise what the other does not do.

#[cfg(test)]
mod document;
#[cfg(test)]
mod examples;
mod parts;
mod service;
mod top;

use super::node::{Key, unknown_key};
use crate::diagnostic::{Checked, Fault, Span};

pub(crate) use parts::*;
pub(crate) use service::SERVICE;
pub(crate) use top::*;

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It has its effect. The text says what is to know about that, if anything is.
    Honoured(&'static str),
    /// It is not in the specification, and has its effect.
    Own(&'static str),
    /// Nothing is done, and nobody misses it; the text says why.
    Accepted(&'static str),
    /// It is left out with a warning, which says why.
    Warned(&'static str),
    /// The file is refused: the service would be another one without it.
    Refused {
        /// Why.
        because: &'static str,
        /// What to do instead.
        hint: &'static str,
    },
}

/// A key and what becomes of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) fate: Fate,
}

/// The keys of one kind of table.
#[derive(Debug)]
pub(crate) struct Level {
    /// What the table is, as a heading of the documentation.
    #[cfg_attr(not(test), allow(dead_code))]
    pub(crate) title: &'static str,
    pub(crate) keys: &'static [Entry],
}

const fn honoured(name: &'static str, about: &'static str) -> Entry {
    Entry { name, fate: Fate::Honoured(about) }
}

const fn own(name: &'static str, about: &'static str) -> Entry {
    Entry { name, fate: Fate::Own(about) }
}

const fn accepted(name: &'static str, because: &'static str) -> Entry {
    Entry { name, fate: Fate::Accepted(because) }
}

const fn warned(name: &'static str, because: &'static str) -> Entry {
    Entry { name, fate: Fate::Warned(because) }
}

const fn refused(name: &'static str, because: &'static str, hint: &'static str) -> Entry {
    Entry { name, fate: Fate::Refused { because, hint } }
}

impl Level {
    /// Whether the value of `key` is to be read. `name` is the key as the table has it, `place` where it stands.
    pub(crate) fn admits(
        &self,
        key: &Key,
        name: &str,
        place: &str,
        warnings: &mut Vec<(Span, String)>,
    ) -> Checked<bool> {
        if name.starts_with("x-") {
            return Ok(false);
        }
        #[cfg(test)]
        examples::met(self, name);
        let Some(entry) = self.keys.iter().find(|entry| entry.name == name) else {
            return Err(unknown_key(key, place, self.keys.iter().map(|entry| entry.name)));
        };
        match entry.fate {
            Fate::Honoured(_) | Fate::Own(_) => Ok(true),
            Fate::Accepted(_) => Ok(false),
            Fate::Warned(because) => {
                warnings.push((key.span.clone(), format!("`{name}` of {place} is ignored: {because}")));
                Ok(false)
            }
            Fate::Refused { because, hint } => {
                Err(Fault::new(&key.span, format!("`{name}` of {place} cannot be used: {because}"))
                    .hint(hint))
            }
        }
    }

    /// The fault of a key that a table has and its parser does not read: a mistake of ours, which a test looks for.
    pub(crate) fn unread(key: &Key, place: &str) -> Box<Fault> {
        unknown_key(key, place, [])
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::diagnostic::{FileError, SourceText};
    use crate::file::{Format, documents, model};
    use crate::host::HostFacts;
    use crate::load::{LoadOptions, config};

    const LEVEL: Level = Level {
        title: "",
        keys: &[
            honoured("image", ""),
            accepted("version", "it is obsolete"),
            warned("gpus", "there is none"),
            refused("provider", "nothing is run on the host", "run it yourself"),
        ],
    };

    fn admits(name: &str) -> (Result<bool, String>, Vec<String>) {
        let source = SourceText::new(Path::new("compose.yaml"), name.to_owned());
        let key = Key { span: Span::start_of(&source), name: name.to_owned() };
        let mut warnings = Vec::new();
        let result = LEVEL.admits(&key, name, "service `web`", &mut warnings);
        let warnings = warnings.into_iter().map(|(_, text)| text).collect();
        (result.map_err(|fault| fault.message.clone()), warnings)
    }

    #[test]
    fn a_key_has_the_fate_of_its_entry() {
        assert_eq!(admits("image"), (Ok(true), vec![]));
        assert_eq!(admits("version"), (Ok(false), vec![]));
        assert_eq!(admits("x-own"), (Ok(false), vec![]));
        let warning = "`gpus` of service `web` is ignored: there is none".to_owned();
        assert_eq!(admits("gpus"), (Ok(false), vec![warning]));
        assert_eq!(
            admits("provider").0.unwrap_err(),
            "`provider` of service `web` cannot be used: nothing is run on the host"
        );
        assert_eq!(admits("imge").0.unwrap_err(), "unknown key `imge` in service `web`");
    }

    /// Where each table is, with `KEY` for one of its keys.
    const PLACES: &[(&Level, &str)] = &[
        (&FILE, "{KEY}"),
        (&SERVICE, "services: {s: {KEY}}"),
        (&BUILD, "services: {s: {build: {KEY}}}"),
        (&DEPENDENCY, "services: {s: {depends_on: {t: {KEY}}}}"),
        (&HEALTHCHECK, "services: {s: {healthcheck: {KEY}}}"),
        (&ENV_FILE, "services: {s: {env_file: [{KEY}]}}"),
        (&MOUNT, "services: {s: {volumes: [{KEY}]}}"),
        (&MOUNT_BIND, "services: {s: {volumes: [{bind: {KEY}}]}}"),
        (&MOUNT_VOLUME, "services: {s: {volumes: [{volume: {KEY}}]}}"),
        (&MOUNT_TMPFS, "services: {s: {volumes: [{tmpfs: {KEY}}]}}"),
        (&GRANT, "services: {s: {secrets: [{KEY}]}}"),
        (&PORT, "services: {s: {ports: [{KEY}]}}"),
        (&NETWORK_USE, "services: {s: {networks: {default: {KEY}}}}"),
        (&DEVICE, "services: {s: {devices: [{KEY}]}}"),
        (&LOGGING, "services: {s: {logging: {KEY}}}"),
        (&HOOK, "services: {s: {post_start: [{KEY}]}}"),
        (&DEVELOP, "services: {s: {develop: {KEY}}}"),
        (&WATCH, "services: {s: {develop: {watch: [{KEY}]}}}"),
        (&BLOCK_IO, "services: {s: {blkio_config: {KEY}}}"),
        (&DEPLOY, "services: {s: {deploy: {KEY}}}"),
        (&DEPLOY_LIMITS, "services: {s: {deploy: {resources: {limits: {KEY}}}}}"),
        (&RESERVATIONS, "services: {s: {deploy: {resources: {reservations: {KEY}}}}}"),
        (&RESTART_POLICY, "services: {s: {deploy: {restart_policy: {KEY}}}}"),
        (&UPDATE_CONFIG, "services: {s: {deploy: {update_config: {KEY}}}}"),
        (&NETWORK, "networks: {n: {KEY}}"),
        (&IPAM, "networks: {n: {ipam: {KEY}}}"),
        (&IPAM_CONFIG, "networks: {n: {ipam: {config: [{KEY}]}}}"),
        (&VOLUME, "volumes: {v: {KEY}}"),
        (&DRIVER_OPTIONS, "volumes: {v: {driver_opts: {KEY}}}"),
        (&SECRET, "secrets: {s: {KEY}}"),
    ];

    /// What is said about a value that no key takes.
    fn complaint(text: &str) -> (Option<String>, Vec<String>) {
        let source = SourceText::new(Path::new("compose.yaml"), text.to_owned());
        let root = documents(Format::Compose, &source).unwrap().remove(0);
        let mut warnings = Vec::new();
        let error = match model(&root, Format::Compose, &mut warnings) {
            Ok(_) => settled_before(text),
            Err(fault) => Some(fault.message),
        };
        (error, warnings.into_iter().map(|(_, text)| text).collect())
    }

    /// What is said about it before the model is read: by `extends`, `profiles` and `env_file`.
    fn settled_before(text: &str) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let options = LoadOptions {
            files: vec!["-".into()],
            standard_input: Some(text.to_owned()),
            project_directory: Some(directory.path().to_owned()),
            ..LoadOptions::default()
        };
        match config(&options, &HostFacts::default(), true).err()? {
            FileError::Invalid(diagnostic) => Some(diagnostic.message().to_owned()),
            error => Some(error.to_string()),
        }
    }

    #[test]
    fn what_a_table_promises_is_read_and_what_it_leaves_out_is_told() {
        assert_eq!(PLACES.len(), LEVELS.len(), "each table has a place");
        for (level, place) in PLACES {
            for entry in level.keys {
                let x = if matches!(entry.name, "balance" | "egress" | "landlock") { "x-" } else { "" };
                let (error, warnings) =
                    complaint(&place.replace("KEY", &format!("{x}{}: [[[]]]", entry.name)));
                let name = format!("`{}` of {}", entry.name, level.title);
                let error = error.unwrap_or_default();
                let unread = error.starts_with("unknown key");
                match entry.fate {
                    Fate::Own(_) if ["mtu", "replicas"].contains(&entry.name) => assert!(unread, "{name}"),
                    Fate::Honoured(_) | Fate::Own(_) => {
                        assert!(!unread && !error.is_empty(), "{name}: {error}")
                    }
                    Fate::Accepted(_) => assert!(!unread && warnings.is_empty(), "{name}: {error}"),
                    Fate::Warned(because) => {
                        assert!(warnings.iter().any(|text| text.contains(because)), "{name}: {warnings:?}");
                    }
                    Fate::Refused { because, .. } => assert!(error.contains(because), "{name}: {error}"),
                }
            }
        }
    }

    #[test]
    fn no_key_is_in_a_table_twice_and_they_are_in_order() {
        for level in LEVELS {
            let names: Vec<&str> = level.keys.iter().map(|entry| entry.name).collect();
            let mut sorted = names.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(names, sorted, "{}", level.title);
        }
    }
}
