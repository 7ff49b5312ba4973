//! The terminal as a screen that is drawn on, and given back as it was.

use std::io::{self, Write};

use crate::output::Failure;
use crate::terminal;

/// The alternate screen, on which nothing scrolls away (xterm's control sequences), without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// A terminal that is ours until this is dropped, or until a panic.
#[derive(Debug)]
pub(crate) struct Screen(());

impl Screen {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// When its modes cannot be set, or it is gone.
    pub(crate) fn enter() -> Result<Self, Failure> {
        terminal::raw_mode().map_err(Failure::system("set the terminal to raw mode"))?;
        let screen = Self(());
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            leave();
            previous(info);
        }));
        write(ENTER)?;
        Ok(screen)
    }

    /// Columns and rows; 80 and 24 where the terminal does not say.
    pub(crate) fn size(&self) -> (usize, usize) {
        match rustix::termios::tcgetwinsize(rustix::stdio::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => (80, 24),
        }
    }

    /// Draws lines from the top, in one write and over what is there, so that nothing flickers. They must fit.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub(crate) fn draw(&self, lines: &[String]) -> Result<(), Failure> {
        // In raw mode a line feed alone does not go back to the first column.
        write(&format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n")))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

fn leave() {
    // A terminal that is gone needs no restoring.
    write(LEAVE).ok();
    terminal::restore();
}

fn write(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::system("draw on the terminal"))
}
