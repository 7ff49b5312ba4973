//! What the supervisor and its children say when nobody waits for an answer: lines in `.supervisor.log`, which is their
//! standard error.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

/// The file, in the stack's runtime directory.
pub(crate) const NAME: &str = ".supervisor.log";
/// What it had in it before it was full.
const BEFORE: &str = ".supervisor.log.1";
/// When it is full.
const MAX_SIZE: u64 = 4 << 20;

/// Writes a line, if it can be written: the disk may be full, and that must not end who has something to say. (The
/// standard library's macros panic then.)
pub(crate) fn report(message: impl Display) {
    let line = format!("{} {message}\n", humantime::format_rfc3339_millis(SystemTime::now()));
    io::stderr().write_all(line.as_bytes()).ok();
}

/// Opens the file in this directory for appending.
pub(crate) fn open(runtime: &Path) -> io::Result<File> {
    fs::OpenOptions::new().append(true).create(true).mode(0o600).open(runtime.join(NAME))
}

/// Begins it anew if it is full. Others have it open as their standard error, so it is the content that moves; what
/// they write in this moment is lost.
pub(crate) fn cap(runtime: &Path) -> io::Result<()> {
    let log = io::stderr();
    if rustix::fs::fstat(log.as_fd())?.st_size < i64::try_from(MAX_SIZE).unwrap_or(i64::MAX) {
        return Ok(());
    }
    fs::copy(runtime.join(NAME), runtime.join(BEFORE))?;
    Ok(rustix::fs::ftruncate(log.as_fd(), 0)?)
}
