//! What reaches the user: errors in three parts, tables, colours where there is a terminal.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use stack::RemoteError;
use stack::diagnostic::FileError;
use stack::export::StackError;

use crate::args::ColorChoice;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The stack file cannot be used. Exit code 2.
    File(FileError),
    /// Everything else, with its own exit code.
    Other(RemoteError),
    /// Nobody reads our output any more: `inception-run logs | head`. No message.
    Unread,
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        Self::Other(error)
    }
}

impl From<StackError> for Failure {
    fn from(error: StackError) -> Self {
        match error {
            StackError::File(error) => Self::File(error),
            StackError::Content(error) => Self::Other(error),
        }
    }
}

impl Failure {
    /// A system call failed while doing what `operation` says.
    pub(crate) fn system<E: Into<io::Error>>(operation: &str) -> impl FnOnce(E) -> Self {
        move |error| {
            let error = error.into();
            if error.kind() == io::ErrorKind::BrokenPipe {
                return Self::Unread;
            }
            Self::Other(RemoteError::from(error).context(operation))
        }
    }

    /// A mistake in the command line that only showed later. Exit code 2.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        let mut error = RemoteError::message(message).or_hint(hint);
        error.exit_code = 2;
        Self::Other(error)
    }

    /// The command's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::File(_) => 2,
            Self::Other(error) => u8::try_from(error.exit_code).unwrap_or(1),
            // As a program that SIGPIPE ended.
            Self::Unread => 141,
        }
    }
}

/// Where and how to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Colours on standard output.
    pub(crate) color_out: bool,
    /// Colours on standard error.
    pub(crate) color_err: bool,
    /// Standard output is a terminal: what containers write must not control it.
    pub(crate) terminal: bool,
}

impl Output {
    /// Decides about colours: `--color`, then `NO_COLOR` (no-color.org), then whether there is a terminal.
    pub(crate) fn new(choice: ColorChoice) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let color = |terminal: bool| match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !unwanted,
        };
        let terminal = io::stdout().is_terminal();
        Self { color_out: color(terminal), color_err: color(io::stderr().is_terminal()), terminal }
    }

    /// Prints the three-part message.
    pub(crate) fn failure(&self, failure: &Failure) {
        let text = match failure {
            // What a file says may be anybody's.
            Failure::File(error) => visible(&error.render(self.color_err)),
            Failure::Other(error) => self.three_parts(error),
            Failure::Unread => return,
        };
        self.message(&text);
    }

    fn three_parts(&self, error: &RemoteError) -> String {
        let mut text = String::new();
        for (index, message) in error.chain.iter().enumerate() {
            let label = if index == 0 { self.label("1;31", "error:") } else { "  caused by:".to_owned() };
            // Output of a failed probe has lines; they stay below their cause.
            text.push_str(&format!("{label} {}\n", visible(message).replace('\n', "\n    ")));
        }
        if let Some(hint) = &error.hint {
            text.push_str(&format!("{} {}\n", self.label("1;36", "hint:"), visible(hint)));
        }
        text
    }

    /// Prints a warning.
    pub(crate) fn warning(&self, text: &str) {
        self.message(&format!("{} {}\n", self.label("1;33", "warning:"), visible(text)));
    }

    /// Prints a line of progress; not what a command was run for, so on standard error.
    pub(crate) fn progress(&self, text: &str) {
        self.message(&format!("{}\n", visible(text)));
    }

    fn message(&self, text: &str) {
        // Nowhere left to say that it could not be said.
        match io::stderr().write_all(text.as_bytes()) {
            Ok(()) | Err(_) => {}
        }
    }

    fn label(&self, code: &str, word: &str) -> String {
        if self.color_err { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() }
    }

    /// `text` in a colour of standard output.
    pub(crate) fn paint(&self, code: &str, text: &str) -> String {
        if self.color_out { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Writes to standard output; to a terminal nothing that controls it, because files, images and containers have a part in
/// most texts.
///
/// # Errors
/// [`Failure::Unread`] when its reader is gone.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    if io::stdout().is_terminal() { draw(&visible(text)) } else { draw(text) }
}

/// Writes to standard output what may control a terminal.
///
/// # Errors
/// As [`print`].
pub(crate) fn draw(text: &str) -> Result<(), Failure> {
    io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .and_then(|()| io::stdout().flush())
        .map_err(Failure::system("write to standard output"))
}

/// Waits until `source` has something to tell, which is then printed; false where the moment `end` comes before that.
///
/// # Errors
/// [`Failure::Unread`] when the reader of our output is gone, who would not be noticed before there is something to print.
pub(crate) fn wait_for(source: impl AsFd, end: Option<Instant>) -> Result<bool, Failure> {
    let stdout = io::stdout();
    loop {
        // Without any flag there are still errors and the hang-up to hear of.
        let mut polled = [PollFd::new(&source, PollFlags::IN), PollFd::new(&stdout, PollFlags::empty())];
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        match poll(&mut polled, left.and_then(|left| Timespec::try_from(left).ok()).as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) if polled[0].revents().is_empty() => return Err(Failure::Unread),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::system("wait for something to print")(errno)),
        }
    }
}

/// Prints a value as indented JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::system("write JSON"))?;
    print(&format!("{}\n", escaped(&text)))
}

/// JSON with all control characters escaped: it has to be done to those of ASCII (RFC 8259, section 7), but terminals heed
/// those from U+0080 to U+009F, too.
pub(crate) fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\u{7f}'..='\u{9f}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// Columns as wide as they need to be, three spaces apart.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut lines = vec![head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>()];
    // A line end in a cell would make what stands behind it look like a row.
    let shown = |cell: &String| visible(cell).replace(['\n', '\t'], " ");
    lines.extend(rows.iter().map(|row| row.iter().map(shown).collect()));
    let width = |column: usize| {
        lines.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}   "));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    lines.iter().map(line).collect()
}

/// `text` without the power to control a terminal, which a container must not have: control characters become
/// visible, but for line ends, tabs and colours.
pub(crate) fn visible(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let mut length = first.len_utf8();
        match first {
            '\n' | '\t' => out.push(first),
            '\x1b' => match color_length(rest) {
                Some(colored) => {
                    length = colored;
                    out.push_str(&rest[..length]);
                }
                None => out.push_str("^["),
            },
            '\0'..='\x1f' => {
                out.push('^');
                out.push(char::from(first as u8 + b'@'));
            }
            _ if first.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            _ => out.push(first),
        }
        rest = &rest[length..];
    }
    out
}

/// Length of the colour sequence (SGR: `ESC [ digits and semicolons m`) that `text` begins with.
fn color_length(text: &str) -> Option<usize> {
    let body = text.strip_prefix("\x1b[")?;
    let parameters = body.find(|c: char| !c.is_ascii_digit() && c != ';' && c != ':')?;
    body[parameters..].starts_with('m').then_some(2 + parameters + 1)
}

/// Seconds as the largest fitting unit: `12s`, `3m`, `5h`, `2d`.
pub(crate) fn age(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    match seconds as u64 {
        0..60 => format!("{seconds:.0}s"),
        whole @ 60..3600 => format!("{}m", whole / 60),
        whole @ 3600..172_800 => format!("{}h", whole / 3600),
        whole => format!("{}d", whole / 86400),
    }
}

/// Bytes with a decimal unit.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if bytes < 1000 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Bytes with a binary unit, as `docker stats` shows memory: `12.5MiB`.
pub(crate) fn binary_size(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => {
            let value = format!("{:.2}", bytes as f64 / unit as f64);
            format!("{}{name}", value.trim_end_matches('0').trim_end_matches('.'))
        }
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_three_parts() {
        let output = Output { color_out: false, color_err: false, terminal: false };
        let error = RemoteError::message("Operation not permitted (os error 1)")
            .context("create user namespace")
            .context("cannot start service `web`")
            .or_hint("`inception-run doctor` shows the fix");
        assert_eq!(
            output.three_parts(&error),
            "error: cannot start service `web`\n  caused by: create user namespace\n  \
             caused by: Operation not permitted (os error 1)\nhint: `inception-run doctor` shows the fix\n"
        );
    }

    #[test]
    fn a_container_cannot_drive_the_terminal() {
        assert_eq!(visible("plain\ttext\n"), "plain\ttext\n");
        assert_eq!(visible("\x1b[1;31mred\x1b[0m"), "\x1b[1;31mred\x1b[0m");
        assert_eq!(visible("\x1b]0;title\x07\x1b[2J\r\u{9b}x"), "^[]0;title^G^[[2J^M\u{fffd}x");
        assert_eq!(visible("\x1b"), "^[");
        let json = serde_json::to_string("\u{9b}2J\x07\x7fé").unwrap();
        assert_eq!(escaped(&json), "\"\\u009b2J\\u0007\\u007fé\"");
        assert_eq!(serde_json::from_str::<String>(&escaped(&json)).unwrap(), "\u{9b}2J\x07\x7fé");
        let rows = [vec!["a\nb   running".to_owned()]];
        assert_eq!(table(&["SERVICE"], &rows), "SERVICE\na b   running\n");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["nginx".to_owned(), "running".to_owned()], vec!["db".to_owned(), String::new()]];
        assert_eq!(table(&["SERVICE", "STATE"], &rows), "SERVICE   STATE\nnginx     running\ndb\n");
        assert_eq!((age(59.4), age(61.0), age(200_000.0)), ("59s".into(), "1m".into(), "2d".into()));
        assert_eq!((binary_size(1 << 20), binary_size(1_300_000)), ("1MiB".into(), "1.24MiB".into()));
        assert_eq!((size(999), size(170_401_280)), ("999 B".into(), "170.4 MB".into()));
    }
}
