//! Any bytes on both sides of an FTP control connection: the session ends, or goes on within its limits, and the
//! server is not told of any data connection but those that it may make.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use network::ftp::{Addresses, LONGEST_COMMAND, LONGEST_REPLY, Ports, Session};

/// The side that speaks changes here, from the server on.
const TURN: u8 = 0x1e;
/// As long as an answer to a command, or a rewritten one, can be.
const ANSWER: usize = 80;

struct Pool {
    client: IpAddr,
    server: SocketAddr,
    seen: IpAddr,
    /// One bit for each request, again and again: whether it is granted.
    granted: u8,
    port: u16,
}

impl Pool {
    fn next(&mut self) -> Option<u16> {
        self.granted = self.granted.rotate_left(1);
        self.port = if self.port == 60_999 { 60_000 } else { self.port + 1 };
        (self.granted & 1 == 1).then_some(self.port)
    }
}

impl Ports for Pool {
    fn passive(&mut self, target: SocketAddr) -> Option<u16> {
        assert!(target.ip() == self.server.ip() && target.port() != 0);
        self.next()
    }

    fn active(&mut self, client: SocketAddr) -> Option<SocketAddr> {
        assert!(client.ip() == self.client && client.port() >= 1024);
        self.next().map(|port| SocketAddr::new(self.seen, port))
    }

    fn void(&mut self) {}

    fn report(&mut self, what: String) {
        assert!(!what.is_empty() && !what.contains('\n'));
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [families, granted, dialogue @ ..] = input else { return };
    let address = |bit: u8, last: u8| -> IpAddr {
        match families >> bit & 1 {
            0 => Ipv4Addr::new(203, 0, 113, last).into(),
            _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into(),
        }
    };
    let client = SocketAddr::new(address(0, 1), 50_000);
    let server = SocketAddr::new(address(1, 2), 21);
    let mut pool =
        Pool { client: client.ip(), server, seen: address(1, 3), granted: *granted, port: 60_000 };
    let mut session = Session::new(Addresses { client, entry: address(0, 4), server });
    let mut held: Vec<u8> = Vec::new();
    // Between its consent to TLS and the client's first byte of that, what the server says is passed on as it is.
    let mut secured = false;
    for (at, bytes) in dialogue.split(|byte| *byte == TURN).enumerate() {
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        if at % 2 == 1 {
            held.extend_from_slice(bytes);
        } else if session.server(bytes, &mut pool, &mut to_client).is_err() {
            return;
        }
        let offered = held.len();
        while session.wants_client() && !held.is_empty() {
            let Ok(taken) = session.client(&held, &mut pool, &mut to_server, &mut to_client) else { return };
            assert!(taken > 0);
            held.drain(..taken);
        }
        let read = offered - held.len();
        assert!(to_server.len() <= LONGEST_COMMAND + ANSWER * read);
        // Of the client's earlier bytes, too: its refused commands may have waited for the server.
        assert!(to_client.len() <= LONGEST_REPLY + 2 * bytes.len() + ANSWER * (read + 65));
        secured |= to_client.windows(3).any(|code| code == b"234" || code == b"334");
        if !session.is_opaque() && !secured {
            assert!(to_client.is_empty() || bytes.contains(&b'\n') || to_client.ends_with(b"\r\n"));
        }
        if !session.is_opaque() {
            commands(&to_server, pool.seen);
        }
    }
});

/// What the server gets are whole commands, and the address in them is the one that it was allowed.
fn commands(text: &[u8], seen: IpAddr) {
    assert!(text.is_empty() || text.ends_with(b"\r\n"));
    let allowed = match seen {
        IpAddr::V4(ip) => [format!("PORT {},", ip.to_string().replace('.', ",")), format!("EPRT |1|{ip}|")],
        IpAddr::V6(ip) => [String::from("EPRT |2|"), format!("EPRT |2|{ip}|")],
    };
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line = line.strip_suffix(b"\r").expect("the end of a line");
        assert!(line[0].is_ascii_alphabetic() && !line.contains(&b'\r') && !line.contains(&0));
        let is = |verb: &[u8]| line.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(verb));
        let longer = line.get(4).is_some_and(u8::is_ascii_alphabetic);
        if (is(b"PORT") || is(b"EPRT") || is(b"LPRT")) && !longer {
            assert!(allowed.iter().any(|start| line.starts_with(start.as_bytes())), "{}", line.escape_ascii());
        }
    }
}
