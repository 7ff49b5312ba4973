//! `top`: a live view of the stack on the whole terminal.

mod screen;
mod view;

use std::os::fd::AsFd;
use std::time::Instant;

use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::output::{self, Failure};
use crate::session::Session;
use crate::signals::Signals;
use crate::stats::{FIRST_INTERVAL, INTERVAL, Meter, note};
use crate::terminal;
use screen::Screen;
use view::{Key, View, keys};

/// `top`. Where there is no terminal, or one that cannot move its cursor, one look at the stack.
pub(crate) fn top(session: &Session) -> Result<u8, Failure> {
    let (name, client) = session.connect()?;
    let client = client.ok_or_else(|| crate::session::not_running(&name))?;
    let mut meter = Meter::new(client, Vec::new())?;
    let mut view = View::new(name, meter.host_memory(), session.output.color_out);
    let is_dumb = std::env::var_os("TERM").is_some_and(|name| name == "dumb");
    if is_dumb || !terminal::is_interactive() {
        std::thread::sleep(FIRST_INTERVAL);
        let readings = meter.read()?;
        output::print(&view.snapshot(&readings))?;
        if let Some(note) = note(&readings) {
            session.output.progress(note);
        }
        return Ok(0);
    }
    let signals = Signals::block(&[
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGWINCH,
    ])?;
    let screen = Screen::enter()?;
    view.update(meter.read()?);
    let mut due = Instant::now() + FIRST_INTERVAL;
    loop {
        screen.draw(&view.lines(screen.size()))?;
        match wait(&signals, due)? {
            Event::Due => {
                view.update(meter.read()?);
                due = Instant::now() + INTERVAL;
            }
            Event::Signal(Signal::SIGWINCH) => {}
            Event::Signal(signal) => return Ok(128 + signal as u8),
            Event::Input => {
                let Some(pressed) = input()? else { return Ok(0) };
                for key in pressed {
                    match key {
                        Key::Quit => return Ok(0),
                        key => view.press(key),
                    }
                }
            }
        }
    }
}

/// What there is to do.
enum Event {
    /// It is time for the next reading.
    Due,
    Signal(Signal),
    /// Keys were pressed.
    Input,
}

fn wait(signals: &Signals, due: Instant) -> Result<Event, Failure> {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Event::Due);
        }
        let stdin = rustix::stdio::stdin();
        let mut polled = [
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stdin, PollFlags::IN),
        ];
        match poll(&mut polled, rustix::time::Timespec::try_from(left).ok().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::system("wait for a key")(errno)),
        }
        if !polled[0].revents().is_empty()
            && let Some(signal) = signals.take()?
        {
            return Ok(Event::Signal(signal));
        }
        if !polled[1].revents().is_empty() {
            return Ok(Event::Input);
        }
    }
}

/// The keys that were pressed; `None` when the terminal is gone.
fn input() -> Result<Option<Vec<Key>>, Failure> {
    let mut bytes = [0u8; 256];
    match rustix::io::read(rustix::stdio::stdin(), &mut bytes) {
        Ok(0) | Err(Errno::IO) => Ok(None),
        Ok(length) => Ok(Some(keys(&bytes[..length]))),
        Err(Errno::INTR | Errno::AGAIN) => Ok(Some(Vec::new())),
        Err(errno) => Err(Failure::system("read a key")(errno)),
    }
}
