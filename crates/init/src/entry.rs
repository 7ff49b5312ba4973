//! What `inception-init` is told by the process that executes it, in a sealed file of memory: a description as JSON and
//! the seccomp programs behind it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::process::{Filter, Process};

/// For `inception-init join`: a process that enters a running container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Joining {
    /// The namespaces of the target to enter, [`sys::process::namespace`] values or-ed.
    pub namespaces: u64,
    /// Becomes user and group 0 of the user namespace, which is among those.
    pub root: bool,
    /// Name of a new session keyring, keyrings(7).
    pub keyring: Option<String>,
    /// CPUs to run on while entering, and afterwards; as cpuset(7) lists them.
    pub affinity: [Option<Vec<usize>>; 2],
    /// The program.
    pub process: Process,
}

/// For `inception-init container`: a process that stands in a container and waits to be started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Waiting {
    /// Hooks to run before the program.
    pub hooks: Vec<Hook>,
    /// What a hook reads from standard input.
    pub state: String,
    /// The program.
    pub process: Process,
}

/// A program that is run at a point of the container's life ("POSIX-platform Hooks" of the runtime specification's
/// `config.md`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute path.
    pub path: PathBuf,
    /// Arguments, the program's name first; empty is the path alone.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its whole environment; `None` is the caller's.
    pub env: Option<BTreeMap<String, String>>,
    /// Seconds until it is killed.
    pub timeout: Option<u64>,
}

/// Description and filters as `inception-init` reads them: each filter behind its length in bytes and its flags, the
/// description behind its length (u32, little endian).
///
/// # Errors
/// When the description cannot be written as JSON.
pub fn encode<T: Serialize>(description: &T, filters: &[Filter]) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(description)?;
    let mut bytes = (json.len() as u32).to_le_bytes().to_vec();
    bytes.extend(json);
    for filter in filters {
        bytes.extend((filter.program.len() as u32).to_le_bytes());
        bytes.extend(filter.flags.to_le_bytes());
        bytes.extend(&filter.program);
    }
    Ok(bytes)
}

/// The other direction of [`encode`].
///
/// # Errors
/// `InvalidData` for what `encode` did not write.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<(T, Vec<Filter>)> {
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    let number = |bytes: &mut &[u8]| -> io::Result<u32> {
        let (number, rest) = bytes.split_first_chunk().ok_or_else(broken)?;
        *bytes = rest;
        Ok(u32::from_le_bytes(*number))
    };
    let mut rest = bytes;
    let length = number(&mut rest)? as usize;
    let (json, mut rest) = rest.split_at_checked(length).ok_or_else(broken)?;
    let description = serde_json::from_slice(json)?;
    let mut filters = Vec::new();
    while !rest.is_empty() {
        let (length, flags) = (number(&mut rest)? as usize, number(&mut rest)?);
        let (program, after) = rest.split_at_checked(length).ok_or_else(broken)?;
        filters.push(Filter { program: program.to_vec(), flags });
        rest = after;
    }
    Ok((description, filters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard() {
        let filters = vec![Filter { program: vec![1; 16], flags: 2 }, Filter::default()];
        let process = Process { argv: vec!["a".into()], ..Process::default() };
        let waiting = Waiting { hooks: Vec::new(), state: "{}".into(), process };
        let mut bytes = encode(&waiting, &filters).unwrap();
        let (heard, with): (Waiting, _) = decode(&bytes).unwrap();
        assert_eq!((heard.process, with), (waiting.process, filters));
        bytes.truncate(bytes.len() - 9);
        assert!(decode::<Waiting>(&bytes).is_err());
    }
}
