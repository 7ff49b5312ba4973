//! A connection to systemd: D-Bus, one call at a time, no thread.

use std::fs;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::wire::{self, Call, FIXED, Message, Writer};

/// How long the bus, and systemd behind it, may take for one answer.
const DEADLINE: Duration = Duration::from_secs(25);
/// Signals that are kept while an answer is waited for. They come for jobs of others, too.
const SIGNALS_KEPT: usize = 1024;
/// A line of the authentication.
const LINE_MAX: usize = 4096;

/// Why systemd could not be asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens where the bus should be.
    #[error("no D-Bus socket can be reached ({tried})")]
    NoBus {
        /// The addresses that were tried.
        tried: String,
        /// What the last one said.
        source: io::Error,
    },
    /// The connection broke, or an answer did not come in time.
    #[error("talk to the bus")]
    Transport(#[from] io::Error),
    /// The bus does not take us for who we are.
    #[error("the bus refused the authentication: {0}")]
    Authentication(String),
    /// Bytes that are no D-Bus message.
    #[error("the bus sent what is no D-Bus message")]
    Malformed,
    /// An error came back.
    #[error("{message} ({name})")]
    Refused {
        /// D-Bus' name of the error.
        name: String,
        /// systemd's words.
        message: String,
    },
    /// The job was accepted and not done.
    #[error("the job of unit `{unit}` ended with `{result}`")]
    Job {
        /// The unit.
        unit: String,
        /// systemd's word for it.
        result: String,
    },
    /// The process is elsewhere.
    #[error("the process did not arrive in unit `{0}`")]
    NotThere(String),
}

impl Error {
    pub(in super::super) fn hint(&self) -> Option<String> {
        match self {
            Self::NoBus { .. } => Some(
                "an ordinary user needs a login session and the package `dbus-user-session`, \
                 or `sudo loginctl enable-linger $USER`; XDG_RUNTIME_DIR must be set"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// Whose systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// That of the host.
    System,
    /// That of the user who runs this.
    User,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// Without a bus between: systemd's own socket.
    direct: bool,
    signals: Vec<Message>,
}

/// An object of systemd's and its interface.
const PATH: &str = "/org/freedesktop/systemd1";
const NAME: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

impl Bus {
    pub(super) fn connect(whose: Whose) -> Result<Self, Error> {
        let (stream, direct) = open(whose)?;
        let mut bus = Self { stream, serial: 0, direct, signals: Vec::new() };
        bus.authenticate()?;
        if !direct {
            let daemon = |member, signature, body| Call {
                destination: Some("org.freedesktop.DBus"),
                path: "/org/freedesktop/DBus",
                interface: "org.freedesktop.DBus",
                member,
                signature,
                body,
            };
            bus.call(&daemon("Hello", "", Writer::default()))?;
            let mut rule = Writer::default();
            rule.text(&format!(
                "type='signal',sender='{NAME}',path='{PATH}',interface='{MANAGER}',member='JobRemoved'"
            ));
            bus.call(&daemon("AddMatch", "s", rule))?;
        }
        Ok(bus)
    }

    /// Calls a method of systemd's manager.
    pub(super) fn manager(&mut self, member: &str, signature: &str, body: Writer) -> Result<Message, Error> {
        let destination = (!self.direct).then_some(NAME);
        self.call(&Call { destination, path: PATH, interface: MANAGER, member, signature, body })
    }

    /// Calls a method that starts a job, and waits until that is done.
    pub(super) fn job(&mut self, member: &str, signature: &str, body: Writer) -> Result<(), Error> {
        let reply = self.manager(member, signature, body)?;
        let job = reply.texts().into_iter().next().ok_or(Error::Malformed)?;
        let deadline = Instant::now() + DEADLINE;
        loop {
            while !self.signals.is_empty() {
                let signal = self.signals.remove(0);
                // Anybody on the bus may send us a signal; only systemd's counts.
                if signal.member != "JobRemoved" || signal.sender != reply.sender {
                    continue;
                }
                let texts = signal.texts();
                if let [path, unit, result] = &texts[..]
                    && *path == job
                {
                    return match result.as_str() {
                        "done" => Ok(()),
                        _ => Err(Error::Job { unit: unit.clone(), result: result.clone() }),
                    };
                }
            }
            let message = self.receive(deadline)?;
            self.keep(message);
        }
    }

    fn call(&mut self, call: &Call<'_>) -> Result<Message, Error> {
        self.serial += 1;
        let deadline = Instant::now() + DEADLINE;
        self.stream.set_write_timeout(Some(DEADLINE))?;
        self.stream.write_all(&call.message(self.serial))?;
        loop {
            let message = self.receive(deadline)?;
            if message.reply_to != Some(self.serial) {
                self.keep(message);
                continue;
            }
            return match message.kind {
                wire::METHOD_RETURN => Ok(message),
                wire::ERROR => {
                    let text = message.texts().into_iter().next().unwrap_or_default();
                    Err(Error::Refused { name: message.error, message: text })
                }
                _ => Err(Error::Malformed),
            };
        }
    }

    fn keep(&mut self, message: Message) {
        if message.kind == wire::SIGNAL && self.signals.len() < SIGNALS_KEPT {
            self.signals.push(message);
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message, Error> {
        let mut fixed = [0; FIXED];
        self.read(&mut fixed, deadline)?;
        let mut bytes = vec![0; wire::size(&fixed).ok_or(Error::Malformed)?];
        bytes[..FIXED].copy_from_slice(&fixed);
        self.read(&mut bytes[FIXED..], deadline)?;
        Message::parse(&bytes).ok_or(Error::Malformed)
    }

    fn read(&mut self, mut buffer: &mut [u8], deadline: Instant) -> Result<(), Error> {
        while !buffer.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Transport(io::ErrorKind::TimedOut.into()));
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(buffer) {
                Ok(0) => return Err(Error::Transport(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => buffer = &mut buffer[count..],
                // Seen again as the deadline above.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The specification's section "Authentication Protocol", mechanism EXTERNAL: the kernel tells the bus who we
    /// are, we have to say the same.
    fn authenticate(&mut self) -> Result<(), Error> {
        let uid = outer_uid().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.stream.set_write_timeout(Some(DEADLINE))?;
        self.stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let deadline = Instant::now() + DEADLINE;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            // One byte at a time: what comes after the line is not ours to take yet.
            let mut byte = [0];
            self.read(&mut byte, deadline)?;
            line.push(byte[0]);
            if line.len() > LINE_MAX {
                return Err(Error::Malformed);
            }
        }
        let line = String::from_utf8_lossy(&line);
        if !line.starts_with("OK ") {
            return Err(Error::Authentication(line.trim().escape_debug().to_string()));
        }
        Ok(self.stream.write_all(b"BEGIN\r\n")?)
    }
}

/// Our user id in the view of the bus: in a user namespace it has another number inside.
fn outer_uid() -> u32 {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let uid = rustix::process::geteuid().as_raw();
    mapped(&map, uid).unwrap_or(uid)
}

/// Looks `uid` up in a map of user_namespaces(7): inside, outside, count.
fn mapped(map: &str, uid: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (inside, outside, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let offset = uid.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(offset)
    })
}

fn open(whose: Whose) -> Result<(UnixStream, bool), Error> {
    let mut tried = Vec::new();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for (address, direct) in addresses(whose) {
        let socket = match &address {
            Address::Path(path) => SocketAddr::from_pathname(path),
            Address::Abstract(name) => SocketAddr::from_abstract_name(name),
        };
        match socket.and_then(|socket| UnixStream::connect_addr(&socket)) {
            Ok(stream) => return Ok((stream, direct)),
            Err(error) => last = error,
        }
        tried.push(match address {
            Address::Path(path) => path.display().to_string(),
            Address::Abstract(name) => format!("@{}", String::from_utf8_lossy(&name)),
        });
    }
    Err(Error::NoBus { tried: tried.join(", "), source: last })
}

#[derive(Debug, PartialEq, Eq)]
enum Address {
    Path(PathBuf),
    Abstract(Vec<u8>),
}

/// Where to look, and whether systemd itself listens there.
fn addresses(whose: Whose) -> Vec<(Address, bool)> {
    let variable = match whose {
        Whose::System => "DBUS_SYSTEM_BUS_ADDRESS",
        Whose::User => "DBUS_SESSION_BUS_ADDRESS",
    };
    let given = std::env::var_os(variable).unwrap_or_default();
    let mut all: Vec<(Address, bool)> = parse(given.as_bytes()).into_iter().map(|a| (a, false)).collect();
    let path = |path: PathBuf, direct| (Address::Path(path), direct);
    match whose {
        Whose::System => {
            all.push(path("/run/dbus/system_bus_socket".into(), false));
            all.push(path("/run/systemd/private".into(), true));
        }
        Whose::User => {
            let runtime = std::env::var_os("XDG_RUNTIME_DIR")
                .map_or_else(|| format!("/run/user/{}", outer_uid()).into(), PathBuf::from);
            all.push(path(runtime.join("bus"), false));
            all.push(path(runtime.join("systemd/private"), true));
        }
    }
    all
}

/// Reads a list of server addresses: those of Unix sockets.
fn parse(list: &[u8]) -> Vec<Address> {
    list.split(|byte| *byte == b';')
        .filter_map(|address| {
            let options = address.strip_prefix(b"unix:")?;
            options.split(|byte| *byte == b',').find_map(|option| {
                let path = option.strip_prefix(b"path=").map(|value| {
                    let bytes = unescape(value);
                    Address::Path(PathBuf::from(std::ffi::OsStr::from_bytes(&bytes)))
                });
                path.or_else(|| option.strip_prefix(b"abstract=").map(|v| Address::Abstract(unescape(v))))
            })
        })
        .collect()
}

/// Undoes `%xx`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..2).filter(|_| *first == b'%').and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_buses() {
        assert_eq!(
            parse(b"tcp:host=x;unix:path=/run/user/1000/bus,guid=0a;unix:abstract=/tmp/%41"),
            [Address::Path("/run/user/1000/bus".into()), Address::Abstract(b"/tmp/A".to_vec())]
        );
        assert_eq!(parse(b""), []);
    }

    #[test]
    fn the_user_as_the_bus_sees_them() {
        assert_eq!(mapped("0 1000 1\n1 100000 65536\n", 0), Some(1000));
        assert_eq!(mapped("0 1000 1\n1 100000 65536\n", 2), Some(100_001));
        assert_eq!(mapped("0 0 4294967295\n", 7), Some(7));
        assert_eq!(mapped("broken", 7), None);
    }

    /// The other side of a connection, which answers as it was told beforehand.
    fn served(answer: &[u8]) -> (Bus, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        (Bus { stream: ours, serial: 0, direct: true, signals: Vec::new() }, theirs)
    }

    #[test]
    fn a_bus_that_refuses_lies_or_hangs_up() {
        let (mut bus, _peer) = served(b"REJECTED EXTERNAL\r\n");
        let error = bus.authenticate().unwrap_err().to_string();
        assert_eq!(error, "the bus refused the authentication: REJECTED EXTERNAL");
        let (mut bus, _peer) = served(&[b'x'; LINE_MAX + 1]);
        assert!(matches!(bus.authenticate().unwrap_err(), Error::Malformed));
        let (mut bus, _peer) = served(b"O");
        assert!(matches!(bus.authenticate().unwrap_err(), Error::Transport(_)));
        let (mut bus, _peer) = served(&[0xff; 64]);
        assert!(matches!(bus.receive(Instant::now() + DEADLINE).unwrap_err(), Error::Malformed));
        let (mut bus, _peer) = served(b"OK 0123\r\n");
        bus.authenticate().unwrap();
    }
}
