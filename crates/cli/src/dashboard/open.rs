//! `--open`: the page in the user's browser.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What finds the user's browser (xdg-utils).
const OPENER: &str = "xdg-open";

/// A file that leads to the page. Removed in the end.
#[derive(Debug)]
pub(super) struct Redirect(PathBuf);

impl Drop for Redirect {
    fn drop(&mut self) {
        // With the stack, its directory and all that is in it may be gone already.
        fs::remove_file(&self.0).ok();
    }
}

/// Opens the page at `link` in a browser, by way of a file in `runtime` that nobody else can read: the arguments of a
/// process everybody can, and the link has the token.
///
/// # Errors
/// Files that cannot be made, and a machine without `xdg-open`.
pub(super) fn open(runtime: &Path, link: &str) -> io::Result<Redirect> {
    let redirect = Redirect(runtime.join(format!(".dashboard-{}.html", std::process::id())));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&redirect.0)?;
    writeln!(
        file,
        "<!doctype html><meta charset=\"utf-8\"><title>inception-run</title>\
         <meta http-equiv=\"refresh\" content=\"0; url={link}\"><p><a href=\"{link}\">dashboard</a></p>"
    )?;
    Command::new(OPENER)
        .arg(&redirect.0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C is for this command, not for a browser that was not there before.
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("start {OPENER}: {error}")))?;
    Ok(redirect)
}
