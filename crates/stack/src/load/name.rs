//! What a stack is called.

use std::path::Path;

use super::project::Project;
use crate::diagnostic::{Fault, FileError};
use crate::file;
use crate::file::node::Node;
use crate::interpolate::{Interpolation, Missing};

const HINT: &str = "use at most 63 lower-case letters, digits, `-` and `_`, starting with a letter or digit";

/// A name that is given beside the files.
pub(super) fn given(name: &str) -> Result<String, FileError> {
    match is_good(name) {
        true => Ok(name.to_owned()),
        false => Err(FileError::Option {
            message: format!("`{name}` cannot be the name of a stack"),
            hint: Some(HINT.to_owned()),
        }),
    }
}

/// What the last of the files that has a `name` says, else the directory's name as compose normalises it.
pub(super) fn of(documents: &[Node], project: &Project, interpolate: bool) -> Result<String, FileError> {
    let mut node = None;
    for document in documents {
        if let Some(found) = file::name_node(document)? {
            node = Some(found);
        }
    }
    let Some(mut node) = node else { return of_directory(&project.directory) };
    if interpolate {
        Interpolation::new(&project.variables, Missing::Refuse, project.env_writer, &mut Vec::new())
            .node(&mut node)?;
    }
    let name = node.text("name")?;
    // Uninterpolated, it is nothing but shown.
    if is_good(&name) || (!interpolate && name.contains('$')) {
        return Ok(name);
    }
    Err(Fault::new(&node.span, format!("`{name}` cannot be the name of a stack")).hint(HINT).into())
}

fn of_directory(directory: &Path) -> Result<String, FileError> {
    let directory = directory.file_name().unwrap_or_default();
    let lower = directory.to_string_lossy().to_lowercase();
    let normal: String = lower.chars().filter(|c| is_plain(*c)).take(63).collect();
    match normal.trim_start_matches(['-', '_']) {
        "" => Err(FileError::Option {
            message: "the directory's name gives no name for the stack".to_owned(),
            hint: Some("add `name` to the file".to_owned()),
        }),
        name => Ok(name.to_owned()),
    }
}

/// It becomes part of directory and image names.
fn is_good(name: &str) -> bool {
    let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    first && name.chars().all(is_plain) && name.len() <= 63
}

fn is_plain(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_'
}
