//! The table of `docs/export.md`, written from the table of the code.
//!
//! `INCEPTION_WRITE_DOCS=1 cargo test -p stack export::words` writes it anew.

use std::fmt::Write;
use std::path::Path;

use super::*;
use crate::file::keys::{self, Level};

const BEGIN: &str = "<!-- keys: written by the tests of crates/stack/src/export/words -->\n";
const END: &str = "<!-- keys: end -->";

fn cell(fate: Fate) -> String {
    match fate {
        Fate::Said(text) => text.to_owned(),
        Fate::Settled(text) => format!("*nothing to do:* {text}"),
        Fate::Lost(text) => format!("**warning:** {text}"),
    }
}

#[test]
fn the_documentation_has_the_table_of_the_code() {
    let mut table = "| key | Kubernetes | Quadlet |\n|---|---|---|\n".to_owned();
    for word in all() {
        let name = word.path.trim_start_matches("services.*.");
        writeln!(table, "| `{name}` | {} | {} |", cell(word.kubernetes), cell(word.quadlet)).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/export.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the mark before the table");
    let (_, after) = rest.split_once(END).expect("the mark behind the table");
    let wanted = format!("{before}{BEGIN}\n{table}\n{END}{after}");
    if std::env::var_os("INCEPTION_WRITE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    } else {
        assert!(text == wanted, "{} is outdated: INCEPTION_WRITE_DOCS=1 writes it", path.display());
    }
}

/// Tables of which every key that has an effect here has a line of its own.
const COVERED: &[(&Level, &str)] = &[
    (&keys::FILE, ""),
    (&keys::SERVICE, "services.*."),
    (&keys::BUILD, "services.*.build."),
    (&keys::DEPENDENCY, "services.*.depends_on.*."),
    (&keys::HEALTHCHECK, "services.*.healthcheck."),
    (&keys::NETWORK_USE, "services.*.networks.*."),
    (&keys::DEPLOY_LIMITS, "services.*.deploy.resources.limits."),
    (&keys::RESERVATIONS, "services.*.deploy.resources.reservations."),
    (&keys::RESTART_POLICY, "services.*.deploy.restart_policy."),
    (&keys::UPDATE_CONFIG, "services.*.deploy.update_config."),
    (&keys::NETWORK, "networks.*."),
    (&keys::VOLUME, "volumes.*."),
];

#[test]
fn every_key_that_has_an_effect_has_a_line() {
    for (level, prefix) in COVERED {
        let honoured = |fate: keys::Fate| matches!(fate, keys::Fate::Honoured(_) | keys::Fate::Own(_));
        for entry in level.keys.iter().filter(|entry| honoured(entry.fate)) {
            let path = format!("{prefix}{}", entry.name);
            assert!(all().any(|word| word.path == path), "`{path}` has no line");
        }
    }
    for word in all() {
        let twice = all().filter(|other| other.path == word.path).count();
        assert_eq!(twice, 1, "`{}` has two lines", word.path);
    }
}
