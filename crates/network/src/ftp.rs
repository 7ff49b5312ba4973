//! The control channel of FTP (RFC 959, 1123, 2228, 2428, 4217) as it passes through an entry point: pure, without a
//! socket.
//!
//! A [`Session`] is fed with what client and server send and says what to pass on. It rewrites the commands and
//! replies that name data connections and passes everything else on line by line; a line that it does not
//! understand as a whole reaches nobody. What it keeps is bounded: one unfinished line of each side, and
//! [`OUTSTANDING`] commands without an answer.

mod address;
mod line;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use address::{Named, extended_argument, is_unroutable, numbers, passive_port, port_argument};
use line::{Command, Lines};

/// Longest line of a client in bytes: as long as a path can be (`PATH_MAX`).
pub const LONGEST_COMMAND: usize = 4096;
/// Longest line of a server in bytes: a path and what is said of it.
pub const LONGEST_REPLY: usize = 8192;
/// Commands that may wait for their answers. A client that has sent more is not read meanwhile.
pub const OUTSTANDING: usize = 64;
/// Refused addresses that are reported of one session; it may try many more.
const REPORTS: usize = 8;

const PASSIVE: [[u8; 3]; 2] = [*b"227", *b"229"];
const SECURED: [[u8; 3]; 2] = [*b"234", *b"334"];
/// The first byte of a TLS connection: a record with a handshake message (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

const NOT_UNDERSTOOD: &str = "500 Command not understood.\r\n";
const TOO_LONG: &str = "500 Line too long.\r\n";
const ILLEGAL: &str = "500 Illegal PORT command.\r\n";
const BAD_ARGUMENT: &str = "501 Syntax error in parameters.\r\n";
const NOT_IMPLEMENTED: &str = "502 Command not implemented.\r\n";
const ONLY_EPSV: &str = "503 Only EPSV is allowed after EPSV ALL.\r\n";
const ONLY_IPV4: &str = "522 Network protocol not supported, use (1).\r\n";
const ONLY_IPV6: &str = "522 Network protocol not supported, use (2).\r\n";
const NO_IPV4: &str = "425 PASV cannot name an IPv6 address: use EPSV.\r\n";
const NO_DATA: &str = "425 Cannot open data connection.\r\n";

/// Who takes part in a session.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The client, as the entry point sees it.
    pub client: SocketAddr,
    /// What the client is told to connect to: the announced address, or the one that it has connected to.
    pub entry: IpAddr,
    /// The replica's control port.
    pub server: SocketAddr,
}

/// The data connections of a session. At its end all that was asked for is void.
pub trait Ports {
    /// A port of the entry point on which the client's next data connection is accepted and carried to `target`, a
    /// port of the replica; `None` when there is no free one.
    fn passive(&mut self, target: SocketAddr) -> Option<u16>;

    /// Where the server shall connect to, so that it reaches `client` with a connection that leaves from the entry
    /// point's data port. Servers insist on the address that they see the client under. `None` when there is no
    /// free port.
    fn active(&mut self, client: SocketAddr) -> Option<SocketAddr>;

    /// Data connections that were asked for and have not been made will not come any more.
    fn void(&mut self);

    /// The client tried to have a data connection made to somebody else, or to a port that is no client's. It was
    /// refused, and the session goes on.
    fn report(&mut self, what: String);
}

/// Why a session has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It has been answered.
    #[error("the client sent a line of more than {LONGEST_COMMAND} bytes")]
    LongCommand,
    /// It will not be cut: a client would take what remains for another reply.
    #[error("the server sent a line of more than {LONGEST_REPLY} bytes")]
    LongReply,
    /// It does not begin with a code and is not part of a reply of several lines.
    #[error("the server sent a line that is no reply")]
    NotAReply,
    /// Commands that somebody else has put between `AUTH TLS` and the client's own first encrypted byte.
    #[error("the client sent something else than TLS after AUTH TLS")]
    PlainText,
}

/// What can be read of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Channel {
    Readable,
    /// The server has agreed to TLS, of which the client has to begin.
    TlsAwaited,
    Opaque,
}

/// A command that has no answer yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// Whatever the server says. A server's greeting answers no command, and is awaited likewise.
    Any,
    /// `PASV`, or `EPSV` if `extended`.
    Passive { extended: bool },
    /// `EPSV ALL`.
    OnlyEpsv,
    /// `AUTH`, with a mechanism that is `tls`.
    Auth { tls: bool },
    /// The server knows nothing of it: the answer is ours, and waits for its turn.
    Own(&'static str),
}

impl Awaited {
    /// How the next command is to be treated depends on the answer to this one.
    const fn holds(self) -> bool {
        matches!(self, Self::Passive { .. } | Self::OnlyEpsv | Self::Auth { .. })
    }
}

/// A reply of several lines.
#[derive(Debug, Clone, Copy)]
struct Open {
    code: [u8; 3],
    /// There was a command to answer when it began.
    answers: bool,
}

/// A control connection between a client and a replica.
#[derive(Debug)]
pub struct Session {
    addresses: Addresses,
    channel: Channel,
    commands: Lines,
    replies: Lines,
    outstanding: VecDeque<Awaited>,
    /// The reply whose last line has not come yet.
    open: Option<Open>,
    /// The server's port, out of the reply to `PASV` or `EPSV` that is being read.
    passive: Option<u16>,
    /// `EPSV ALL` is in force.
    only_epsv: bool,
    reported: usize,
}

impl Session {
    /// A connection on which nothing has been said yet.
    #[must_use]
    pub fn new(addresses: Addresses) -> Self {
        // What a socket for both families says of an IPv4 client.
        let canonical = |address: SocketAddr| match address.ip().to_canonical() {
            IpAddr::V4(ip) => SocketAddr::new(IpAddr::V4(ip), address.port()),
            IpAddr::V6(_) => address,
        };
        let addresses = Addresses {
            client: canonical(addresses.client),
            entry: addresses.entry.to_canonical(),
            server: canonical(addresses.server),
        };
        Self {
            addresses,
            channel: Channel::Readable,
            commands: Lines::new(LONGEST_COMMAND),
            replies: Lines::new(LONGEST_REPLY),
            outstanding: VecDeque::from([Awaited::Any]),
            open: None,
            passive: None,
            only_epsv: false,
            reported: 0,
        }
    }

    /// Whether both directions carry bytes that nobody here can read, for good: they may be relayed without
    /// this session.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        self.channel == Channel::Opaque
    }

    /// Whether [`Session::client`] would take anything. If not, it waits for the server.
    #[must_use]
    pub fn wants_client(&self) -> bool {
        // Nothing is taken behind a command that holds, so it is the last one.
        self.channel != Channel::Readable
            || self.outstanding.len() < OUTSTANDING
                && !self.outstanding.back().is_some_and(|last| last.holds())
    }

    /// Takes bytes from the client, and appends what goes to the server and what answers the client. Says how many
    /// were taken: the rest is to be offered again when [`Session::wants_client`] says so.
    ///
    /// # Errors
    /// The session is over once the output is sent.
    pub fn client(
        &mut self,
        bytes: &[u8],
        ports: &mut impl Ports,
        to_server: &mut Vec<u8>,
        to_client: &mut Vec<u8>,
    ) -> Result<usize, Violation> {
        let mut rest = bytes;
        if self.channel == Channel::TlsAwaited {
            match bytes.first() {
                None => return Ok(0),
                Some(&TLS_HANDSHAKE) => self.channel = Channel::Opaque,
                Some(_) => return Err(Violation::PlainText),
            }
        }
        if self.channel == Channel::Opaque {
            to_server.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        while self.wants_client() {
            let Ok(line) = self.commands.next(&mut rest) else {
                to_client.extend_from_slice(TOO_LONG.as_bytes());
                return Err(Violation::LongCommand);
            };
            let Some(line) = line else { break };
            let awaited = match Command::parse(&line) {
                Some(command) => self.command(&command, ports, to_server),
                None => Awaited::Own(NOT_UNDERSTOOD),
            };
            self.outstanding.push_back(awaited);
            self.answer(to_client);
        }
        Ok(bytes.len() - rest.len())
    }

    /// Takes bytes from the server, all of them, and appends what goes to the client.
    ///
    /// # Errors
    /// The session is over.
    pub fn server(
        &mut self,
        bytes: &[u8],
        ports: &mut impl Ports,
        to_client: &mut Vec<u8>,
    ) -> Result<(), Violation> {
        let mut rest = bytes;
        while self.channel == Channel::Readable {
            let line = self.replies.next(&mut rest).map_err(|_| Violation::LongReply)?;
            let Some(line) = line else { return Ok(()) };
            self.reply(&line, ports, to_client)?;
        }
        to_client.extend_from_slice(rest);
        Ok(())
    }

    /// The server has closed the connection: what there is of a line still goes to the client, unless it would have
    /// been rewritten.
    pub fn finish(&mut self, to_client: &mut Vec<u8>) {
        let line = self.replies.rest();
        if !matches!(self.outstanding.back(), Some(Awaited::Passive { .. })) {
            to_client.extend_from_slice(&line);
        }
    }

    /// Passes a command on, as it is or rewritten, and says whose answer to it counts.
    fn command(&mut self, command: &Command, ports: &mut impl Ports, to_server: &mut Vec<u8>) -> Awaited {
        let argument = command.argument();
        let awaited = match command.verb().to_ascii_uppercase().as_slice() {
            b"PORT" | b"EPRT" | b"PASV" if self.only_epsv => Awaited::Own(ONLY_EPSV),
            b"PORT" => return self.active(port_argument(argument), false, ports, to_server),
            b"EPRT" => return self.active(extended_argument(argument), true, ports, to_server),
            b"PASV" if self.addresses.entry.is_ipv6() => Awaited::Own(NO_IPV4),
            b"PASV" => {
                // A server that is reached over IPv6 has no address for a 227.
                let own = if self.addresses.server.is_ipv4() { "PASV\r\n" } else { "EPSV\r\n" };
                to_server.extend_from_slice(own.as_bytes());
                return Awaited::Passive { extended: false };
            }
            b"EPSV" if argument.eq_ignore_ascii_case(b"ALL") => Awaited::OnlyEpsv,
            b"EPSV" => match self.extended_passive(argument) {
                Ok(()) => {
                    // Without the client's family, which need not be the server's.
                    to_server.extend_from_slice(b"EPSV\r\n");
                    return Awaited::Passive { extended: true };
                }
                Err(answer) => Awaited::Own(answer),
            },
            // They name addresses, too (RFC 1639, and what some servers made up), and nobody uses them.
            b"LPRT" | b"LPSV" | b"CPSV" | b"SPSV" => Awaited::Own(NOT_IMPLEMENTED),
            b"AUTH" => Awaited::Auth { tls: is_tls(argument) },
            b"ABOR" => {
                ports.void();
                Awaited::Any
            }
            b"REIN" => {
                ports.void();
                self.only_epsv = false;
                Awaited::Any
            }
            _ => Awaited::Any,
        };
        if !matches!(awaited, Awaited::Own(_)) {
            to_server.extend_from_slice(command.line());
            to_server.extend_from_slice(b"\r\n");
        }
        awaited
    }

    /// The argument of `EPSV` is none, or the family of the client's own connection.
    fn extended_passive(&self, argument: &[u8]) -> Result<(), &'static str> {
        match (argument, self.addresses.client) {
            (b"", _) | (b"1", SocketAddr::V4(_)) | (b"2", SocketAddr::V6(_)) => Ok(()),
            (family, _) if family.iter().all(u8::is_ascii_digit) => Err(self.unsupported()),
            _ => Err(BAD_ARGUMENT),
        }
    }

    const fn unsupported(&self) -> &'static str {
        if self.addresses.client.is_ipv4() { ONLY_IPV4 } else { ONLY_IPV6 }
    }

    /// `PORT` or `EPRT` with where the client listens, as it says.
    fn active(
        &mut self,
        named: Named,
        extended: bool,
        ports: &mut impl Ports,
        to_server: &mut Vec<u8>,
    ) -> Awaited {
        let named = match named {
            Named::Address(named) => named,
            Named::OtherFamily => return Awaited::Own(self.unsupported()),
            Named::Malformed => return Awaited::Own(BAD_ARGUMENT),
        };
        let mut client = self.addresses.client;
        if extended && named.is_ipv4() != client.is_ipv4() {
            return Awaited::Own(self.unsupported());
        }
        // A client behind NAT names the address that it knows of. Whatever it names, it is connected to.
        let own =
            named.ip() == client.ip() || named.is_ipv4() == client.is_ipv4() && is_unroutable(named.ip());
        if !own || named.port() < 1024 {
            let why = if own { "which is a reserved port" } else { "which is not its own address" };
            if self.reported < REPORTS {
                self.reported += 1;
                ports.report(format!("asked for a data connection to {named}, {why}"));
            }
            return Awaited::Own(ILLEGAL);
        }
        client.set_port(named.port());
        ports.void();
        let command = match ports.active(client) {
            None => return Awaited::Own(NO_DATA),
            Some(SocketAddr::V4(at)) if extended && client.is_ipv4() => {
                format!("EPRT |1|{}|{}|\r\n", at.ip(), at.port())
            }
            Some(SocketAddr::V4(at)) => format!("PORT {}\r\n", numbers(*at.ip(), at.port())),
            Some(SocketAddr::V6(at)) => format!("EPRT |2|{}|{}|\r\n", at.ip(), at.port()),
        };
        to_server.extend_from_slice(command.as_bytes());
        Awaited::Any
    }

    /// One line of the server's.
    fn reply(
        &mut self,
        line: &[u8],
        ports: &mut impl Ports,
        to_client: &mut Vec<u8>,
    ) -> Result<(), Violation> {
        let (Open { code, answers }, last) = match self.open {
            // RFC 959, section 4.2: until the code comes again, with a space.
            Some(open) => {
                let text = line.strip_prefix(&open.code);
                (open, text.is_some_and(|text| matches!(text, [] | [b' ', ..])))
            }
            None if line.is_empty() => return Ok(()),
            None => {
                let code = *line.first_chunk().ok_or(Violation::NotAReply)?;
                if !matches!(code, [b'1'..=b'5', b'0'..=b'9', b'0'..=b'9']) {
                    return Err(Violation::NotAReply);
                }
                self.skip_to_answered(code, to_client);
                let answers = !self.outstanding.is_empty();
                (Open { code, answers }, line.get(3) != Some(&b'-'))
            }
        };
        self.open = (!last).then_some(Open { code, answers });
        let awaits_port = matches!(self.outstanding.front(), Some(Awaited::Passive { .. }));
        if answers && awaits_port && PASSIVE.contains(&code) {
            // Kept back, of however many lines it is: the client gets one of ours.
            self.passive = self.passive.or_else(|| passive_port(code, line));
        } else {
            to_client.extend_from_slice(line);
            to_client.extend_from_slice(b"\r\n");
        }
        if last {
            if answers {
                self.answered(code, ports, to_client);
            }
            self.answer(to_client);
        }
        Ok(())
    }

    /// Some replies tell which command they answer. A command before it, which the server did not answer, gets no
    /// answer any more.
    fn skip_to_answered(&mut self, code: [u8; 3], to_client: &mut Vec<u8>) {
        let found = match self.outstanding.back() {
            Some(Awaited::Passive { .. }) => PASSIVE.contains(&code),
            Some(Awaited::Auth { .. }) => SECURED.contains(&code),
            _ => false,
        };
        while found && self.outstanding.len() > 1 {
            if let Some(Awaited::Own(text)) = self.outstanding.pop_front() {
                to_client.extend_from_slice(text.as_bytes());
            }
        }
    }

    /// A reply is complete; unless it is a preliminary one, so is a command.
    fn answered(&mut self, code: [u8; 3], ports: &mut impl Ports, to_client: &mut Vec<u8>) {
        let Some(awaited) = self.outstanding.front().copied() else { return };
        let positive = matches!(code[0], b'2' | b'3');
        match awaited {
            _ if code[0] == b'1' => return,
            Awaited::Passive { extended } if PASSIVE.contains(&code) => {
                self.announce(extended, ports, to_client);
            }
            Awaited::Auth { tls } if SECURED.contains(&code) => {
                self.channel = if tls { Channel::TlsAwaited } else { Channel::Opaque };
            }
            // That was said to something before, once too often.
            Awaited::Passive { .. } | Awaited::Auth { .. } if positive => return,
            Awaited::OnlyEpsv => self.only_epsv = positive,
            Awaited::Any | Awaited::Passive { .. } | Awaited::Auth { .. } | Awaited::Own(_) => {}
        }
        self.outstanding.pop_front();
    }

    /// The server listens: tells the client of a port of the entry point that leads there. The address that the
    /// server names is none of the client's business, and may be anybody's.
    fn announce(&mut self, extended: bool, ports: &mut impl Ports, to_client: &mut Vec<u8>) {
        ports.void();
        let port = self.passive.take().and_then(|port| {
            let mut target = self.addresses.server;
            target.set_port(port);
            ports.passive(target)
        });
        let reply = match (port, self.addresses.entry) {
            (Some(port), _) if extended => format!("229 Entering Extended Passive Mode (|||{port}|).\r\n"),
            (Some(port), IpAddr::V4(entry)) => {
                format!("227 Entering Passive Mode ({}).\r\n", numbers(entry, port))
            }
            _ => NO_DATA.to_owned(),
        };
        to_client.extend_from_slice(reply.as_bytes());
    }

    /// Gives the answers of our own whose turn it is.
    fn answer(&mut self, to_client: &mut Vec<u8>) {
        while self.open.is_none()
            && let Some(&Awaited::Own(text)) = self.outstanding.front()
        {
            to_client.extend_from_slice(text.as_bytes());
            self.outstanding.pop_front();
        }
    }
}

/// The names that RFC 4217 and its drafts have for TLS.
fn is_tls(mechanism: &[u8]) -> bool {
    ["TLS", "TLS-C", "TLS-P", "SSL"].iter().any(|name| mechanism.eq_ignore_ascii_case(name.as_bytes()))
}
