//! The tables of `docs/compose.md`, written from the tables of the code.
//!
//! `INCEPTION_WRITE_DOCS=1 cargo test -p stack keys::document` writes them anew.

use std::fmt::Write;
use std::path::Path;

use super::{Fate, LEVELS, Level};

const BEGIN: &str = "<!-- keys: written by the tests of crates/stack/src/file/keys -->\n";
const END: &str = "<!-- keys: end -->";

fn table(level: &Level) -> String {
    let mut text = format!("### {}\n\n| key | | |\n|---|---|---|\n", level.title);
    for entry in level.keys {
        let (word, about) = match entry.fate {
            Fate::Honoured(about) => ("yes", about),
            Fate::Own(about) => ("ours", about),
            Fate::Accepted(because) => ("no effect", because),
            Fate::Warned(because) => ("warning", because),
            Fate::Refused { because, .. } => ("error", because),
        };
        let line = format!("| `{}` | {word} | {about} |", entry.name);
        writeln!(text, "{}", line.replace("|  |", "| |")).unwrap();
    }
    text
}

#[test]
fn the_documentation_has_the_tables_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compose.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the mark before the tables");
    let (_, after) = rest.split_once(END).expect("the mark behind the tables");
    let tables: Vec<String> = LEVELS.iter().map(|level| table(level)).collect();
    let wanted = format!("{before}{BEGIN}\n{}\n{END}{after}", tables.join("\n"));
    if std::env::var_os("INCEPTION_WRITE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    } else {
        assert!(text == wanted, "{} is outdated: INCEPTION_WRITE_DOCS=1 writes it", path.display());
    }
}
