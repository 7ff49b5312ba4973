use std::collections::BTreeSet;
use std::net::SocketAddr;

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

const CLIENT: &str = "203.0.113.9:50000";
const SERVER: &str = "172.18.0.3:21";

/// Hands out ports in a row, as long as there are any, and writes down what it is asked for.
#[derive(Debug, Default)]
struct Pool {
    log: Vec<String>,
    given: u16,
    /// Data connections are refused from the first on.
    empty: bool,
    /// What the server sees the client as, if not as itself.
    seen: Option<IpAddr>,
}

impl Ports for Pool {
    fn passive(&mut self, target: SocketAddr) -> Option<u16> {
        self.log.push(format!("passive {target}"));
        self.given += 1;
        (!self.empty).then_some(21_100 + self.given)
    }

    fn active(&mut self, client: SocketAddr) -> Option<SocketAddr> {
        self.log.push(format!("active {client}"));
        self.given += 1;
        (!self.empty).then(|| SocketAddr::new(self.seen.unwrap_or(client.ip()), 40_000 + self.given))
    }

    fn void(&mut self) {
        self.log.push("void".to_owned());
    }

    fn report(&mut self, what: String) {
        self.log.push(what);
    }
}

/// A session, the pool, and what has come out of it.
#[derive(Debug)]
struct Stage {
    session: Session,
    pool: Pool,
    /// What the session has not taken from the client yet.
    held: Vec<u8>,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    end: Option<Violation>,
}

impl Stage {
    fn between(client: &str, entry: &str, server: &str) -> Self {
        let addresses = Addresses {
            client: client.parse().unwrap(),
            entry: entry.parse().unwrap(),
            server: server.parse().unwrap(),
        };
        Self {
            session: Session::new(addresses),
            pool: Pool::default(),
            held: Vec::new(),
            to_server: Vec::new(),
            to_client: Vec::new(),
            end: None,
        }
    }

    /// Over IPv4, before the greeting.
    fn new() -> Self {
        Self::between(CLIENT, "198.51.100.1", SERVER)
    }

    /// After the greeting.
    fn greeted() -> Self {
        let mut stage = Self::new();
        assert_eq!(stage.server("220 hello\r\n").1, "220 hello\r\n");
        stage
    }

    fn offer(&mut self) {
        while self.end.is_none() && self.session.wants_client() && !self.held.is_empty() {
            let Self { session, pool, held, to_server, to_client, .. } = self;
            match session.client(held, pool, to_server, to_client) {
                Ok(taken) => drop(held.drain(..taken)),
                Err(violation) => self.end = Some(violation),
            }
        }
    }

    fn client_bytes(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        self.offer();
    }

    fn server_bytes(&mut self, bytes: &[u8]) {
        if self.end.is_none() {
            self.end = self.session.server(bytes, &mut self.pool, &mut self.to_client).err();
        }
        self.offer();
    }

    /// What came out since the last time, for the server and for the client.
    fn out(&mut self) -> (String, String) {
        let text = |bytes: &mut Vec<u8>| String::from_utf8(std::mem::take(bytes)).unwrap();
        (text(&mut self.to_server), text(&mut self.to_client))
    }

    fn client(&mut self, text: &str) -> (String, String) {
        self.client_bytes(text.as_bytes());
        self.out()
    }

    fn server(&mut self, text: &str) -> (String, String) {
        self.server_bytes(text.as_bytes());
        self.out()
    }

    fn log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.pool.log)
    }
}

fn pair(server: &str, client: &str) -> (String, String) {
    (server.to_owned(), client.to_owned())
}

#[test]
fn passive_mode_leads_to_the_replica_whatever_address_it_names() {
    for reply in [
        "227 Entering Passive Mode (172,18,0,3,195,80).\r\n",
        "227 Entering Passive Mode 10,9,8,7,195,80\r\n",
        "227 =8,8,8,8,195,80\r\n",
        "227-Entering Passive Mode (172,18,0,3,195,80)\r\n and so on\r\n227 done\r\n",
        "227-Entering\r\n227-1,2,3\r\n227 (172,18,0,3,195,80)\r\n",
    ] {
        let mut stage = Stage::greeted();
        assert_eq!(stage.client("pasv\r\n"), pair("PASV\r\n", ""));
        let rewritten = "227 Entering Passive Mode (198,51,100,1,82,109).\r\n";
        assert_eq!(stage.server(reply), pair("", rewritten), "{reply}");
        assert_eq!(stage.log(), ["void", "passive 172.18.0.3:50000"]);
    }
}

#[test]
fn extended_passive_mode_changes_the_port_only() {
    for reply in
        ["229 Entering Extended Passive Mode (|||50000|)\r\n", "229 (!!!50000!)\r\n", "229 ok |||50000|.\r\n"]
    {
        let mut stage = Stage::between("[2001:db8::9]:50000", "2001:db8::1", SERVER);
        stage.server("220 hello\r\n");
        // The client's family is none of the server's business: that one is spoken to over IPv4.
        assert_eq!(stage.client("EPSV 2\r\n"), pair("EPSV\r\n", ""));
        let rewritten = "229 Entering Extended Passive Mode (|||21101|).\r\n";
        assert_eq!(stage.server(reply), pair("", rewritten), "{reply}");
        assert_eq!(stage.log(), ["void", "passive 172.18.0.3:50000"]);
    }
}

#[test]
fn extended_passive_mode_is_for_the_family_of_the_client() {
    let mut stage = Stage::greeted();
    assert_eq!(stage.client("EPSV 2\r\n"), pair("", ONLY_IPV4));
    assert_eq!(stage.client("EPSV 3\r\n"), pair("", ONLY_IPV4));
    assert_eq!(stage.client("EPSV x\r\n"), pair("", BAD_ARGUMENT));
    let mut stage = Stage::between("[2001:db8::9]:50000", "2001:db8::1", SERVER);
    stage.server("220 hello\r\n");
    assert_eq!(stage.client("EPSV 1\r\n"), pair("", ONLY_IPV6));
    assert_eq!(stage.client("PASV\r\n"), pair("", NO_IPV4));
}

#[test]
fn a_server_over_ipv6_is_asked_in_its_own_words() {
    let mut stage = Stage::between("[::ffff:203.0.113.9]:50000", "::ffff:198.51.100.1", "[fd00::3]:21");
    stage.server("220 hello\r\n");
    assert_eq!(stage.client("PASV\r\n"), pair("EPSV\r\n", ""));
    let rewritten = "227 Entering Passive Mode (198,51,100,1,82,109).\r\n";
    assert_eq!(stage.server("229 ok (|||50000|)\r\n"), pair("", rewritten));
    assert_eq!(stage.log(), ["void", "passive [fd00::3]:50000"]);
}

#[test]
fn passive_mode_without_a_port_is_refused() {
    let mut stage = Stage::greeted();
    stage.pool.empty = true;
    stage.client("PASV\r\n");
    assert_eq!(stage.server("227 (172,18,0,3,195,80)\r\n"), pair("", NO_DATA));
    stage.pool.empty = false;
    for reply in [
        "227 (172,18,0,3,0,0)\r\n",
        "227 (172,18,0,300,1,1)\r\n",
        "227 none\r\n",
        "229 (|||0|)\r\n",
        "229 5\r\n",
    ] {
        stage.client("PASV\r\n");
        assert_eq!(stage.server(reply), pair("", NO_DATA), "{reply}");
    }
    assert_eq!(stage.log().iter().filter(|entry| entry.starts_with("passive")).count(), 1);
    stage.client("EPSV\r\n");
    assert_eq!(stage.server("500 what?\r\n"), pair("", "500 what?\r\n"));
    assert!(stage.session.wants_client());
}

#[test]
fn replies_that_answer_no_such_command_pass() {
    let mut stage = Stage::greeted();
    let unasked = "227 Entering Passive Mode (8,8,8,8,0,80).\r\n";
    assert_eq!(stage.server(unasked), pair("", unasked));
    stage.client("STAT\r\n");
    assert_eq!(stage.server("229 (|||80|)\r\n"), pair("", "229 (|||80|)\r\n"));
    // Begun before there was a command, and not its answer when it ends.
    stage.server("227-what\r\n");
    stage.client("PASV\r\n");
    assert_eq!(stage.server("227 (8,8,8,8,0,80)\r\n"), pair("", "227 (8,8,8,8,0,80)\r\n"));
    assert!(stage.log().is_empty());
    assert!(stage.server("227 (8,8,8,8,0,80)\r\n").1.contains("198,51,100,1"));
}

#[test]
fn active_mode_goes_by_way_of_the_entry_point() {
    let mut stage = Stage::greeted();
    stage.pool.seen = Some("172.18.0.1".parse().unwrap());
    assert_eq!(stage.client("PORT 203,0,113,9,200,1\r\n"), pair("PORT 172,18,0,1,156,65\r\n", ""));
    assert_eq!(stage.server("200 ok\r\n"), pair("", "200 ok\r\n"));
    assert_eq!(stage.client("EPRT |1|203.0.113.9|51201|\r\n"), pair("EPRT |1|172.18.0.1|40002|\r\n", ""));
    assert_eq!(stage.log(), ["void", "active 203.0.113.9:51201", "void", "active 203.0.113.9:51201"]);
    stage.pool.empty = true;
    stage.server("200 ok\r\n");
    assert_eq!(stage.client("PORT 203,0,113,9,200,1\r\n"), pair("", NO_DATA));
}

#[test]
fn active_mode_translates_between_families() {
    let mut stage = Stage::between("[2001:db8::9]:50000", "2001:db8::1", SERVER);
    stage.server("220 hello\r\n");
    stage.pool.seen = Some("172.18.0.1".parse().unwrap());
    assert_eq!(stage.client("EPRT |2|2001:db8::9|51201|\r\n"), pair("PORT 172,18,0,1,156,65\r\n", ""));
    stage.pool.seen = None;
    assert_eq!(stage.client("EPRT |2|2001:db8::9|51201|\r\n"), pair("EPRT |2|2001:db8::9|40002|\r\n", ""));
    stage.server("200 ok\r\n200 ok\r\n");
    assert_eq!(stage.client("EPRT |1|203.0.113.9|51201|\r\n"), pair("", ONLY_IPV6));
    assert_eq!(stage.client("PORT 203,0,113,9,200,1\r\n"), pair("", ILLEGAL));
}

#[test]
fn a_client_behind_nat_is_connected_to_where_it_is() {
    for own in ["192,168,1,5", "10,0,0,1", "172,31,0,1", "100,64,0,1", "169,254,1,1", "0,0,0,0", "127,0,0,1"]
    {
        let mut stage = Stage::greeted();
        stage.client(&format!("PORT {own},200,1\r\n"));
        assert_eq!(stage.log(), ["void", "active 203.0.113.9:51201"], "{own}");
    }
}

#[test]
fn a_bounce_is_refused_and_reported() {
    for foreign in [
        "PORT 8,8,8,8,200,1",
        "PORT 203,0,113,9,0,25",
        "PORT 192,168,1,5,3,255",
        "EPRT |1|8.8.8.8|51201|",
        "eprt !1!203.0.113.9!25!",
        "PORT 172,32,0,1,200,1",
        "PORT 100,128,0,1,200,1",
    ] {
        let mut stage = Stage::greeted();
        assert_eq!(stage.client(&format!("{foreign}\r\n")), pair("", ILLEGAL), "{foreign}");
        let log = stage.log();
        assert!(log.len() == 1 && log[0].starts_with("asked for a data connection to "), "{log:?}");
    }
    let mut stage = Stage::greeted();
    stage.client(&"PORT 8,8,8,8,200,1\n".repeat(1000));
    assert_eq!(stage.log().len(), REPORTS);
}

#[test]
fn malformed_addresses_are_refused() {
    for malformed in [
        "PORT",
        "PORT 1,2,3,4,5",
        "PORT 1,2,3,4,5,6,7",
        "PORT 1,2,3,4,5,256",
        "PORT +1,2,3,4,5,6",
        "PORT 1,,3,4,5,6",
        "PORT 1,2,3,4,5,6 x",
        "EPRT",
        "EPRT |",
        "EPRT |1|1.2.3.4|99999|",
        "EPRT |1|1.2.3.4|2000",
        "EPRT |1|::1|2000|",
        "EPRT |2|fe80::1%eth0|2000|",
        "EPRT |1|1.2.3.4|+200|",
        "EPRT |1|1.2.3.4|2000|x",
    ] {
        let mut stage = Stage::greeted();
        assert_eq!(stage.client(&format!("{malformed}\r\n")), pair("", BAD_ARGUMENT), "{malformed}");
        assert!(stage.log().is_empty());
    }
    assert_eq!(Stage::greeted().client("EPRT |3|x|2000|\r\n"), pair("", ONLY_IPV4));
    for unknown in ["LPRT 4,4,8,8,8,8,2,0,25", "LPSV", "CPSV", "SPSV"] {
        assert_eq!(Stage::greeted().client(&format!("{unknown}\r\n")), pair("", NOT_IMPLEMENTED));
    }
}

#[test]
fn lines_that_a_server_may_read_otherwise_do_not_reach_it() {
    for hidden in [
        " PORT 8,8,8,8,200,1\r\n",
        "PORT\t8,8,8,8,200,1\r\n",
        "NOOP\rPORT 8,8,8,8,200,1\r\n",
        "PO\u{7f}RT 8,8,8,8,200,1\r\n",
        "\r\n",
        "123\r\n",
    ] {
        assert_eq!(Stage::greeted().client(hidden), pair("", NOT_UNDERSTOOD), "{hidden:?}");
    }
    assert_eq!(Stage::greeted().client("P\0ORT 8,8,8,8,200,1\r\n"), pair("", ILLEGAL));
    assert_eq!(Stage::greeted().client("NOOP\nNOOP\r\n"), pair("NOOP\r\nNOOP\r\n", ""));
}

#[test]
fn telnet_signals_before_a_command_are_left_out() {
    // The last one is what remains when DM was sent as urgent data.
    for signals in [&b"\xff\xf4\xff\xf2"[..], b"\xff\xfb\x01\xff\xf4", b"\xff\xf4\xff"] {
        let mut stage = Stage::greeted();
        stage.client_bytes(&[signals, b"ABOR\r\n"].concat());
        assert_eq!(stage.out(), pair("ABOR\r\n", ""));
        assert_eq!(stage.log(), ["void"]);
    }
    let mut stage = Stage::greeted();
    stage.client_bytes(b"\xff\xf4PORT 8,8,8,8,200,1\r\n");
    assert_eq!(stage.out(), pair("", ILLEGAL));
    // In an argument it is a letter of some encoding.
    stage.client_bytes(b"RETR \xff.txt\r\n");
    assert_eq!(stage.to_server, b"RETR \xff.txt\r\n");
}

#[test]
fn our_answers_wait_for_their_turn() {
    let mut stage = Stage::new();
    let bounce = "PORT 8,8,8,8,200,1\r\n";
    assert_eq!(stage.client(&format!("USER a\r\n{bounce}RETR x\r\n")), pair("USER a\r\nRETR x\r\n", ""));
    assert_eq!(stage.server("120 soon\r\n"), pair("", "120 soon\r\n"));
    assert_eq!(stage.server("220-hello\r\n220 not"), pair("", "220-hello\r\n"));
    assert_eq!(stage.server(" yet\r\n"), pair("", "220 not yet\r\n"));
    assert_eq!(stage.server("331 word?\r\n"), pair("", &format!("331 word?\r\n{ILLEGAL}")));
    assert_eq!(stage.server("150 here\r\n"), pair("", "150 here\r\n"));
    assert_eq!(stage.client(bounce), pair("", ""));
    assert_eq!(stage.server("226-done\r\n226"), pair("", "226-done\r\n"));
    assert_eq!(stage.server("\r\n"), pair("", &format!("226\r\n{ILLEGAL}")));
    // Nor do they get into the middle of a reply that nobody asked for.
    stage.server("421-closing\r\n");
    assert_eq!(stage.client(bounce), pair("", ""));
    assert_eq!(stage.server("421 now\r\n"), pair("", &format!("421 now\r\n{ILLEGAL}")));
}

#[test]
fn a_command_that_got_no_answer_does_not_hide_the_port() {
    let mut stage = Stage::greeted();
    stage.client("ABOR\r\nPORT 8,8,8,8,200,1\r\nPASV\r\n");
    assert_eq!(
        stage.server("227 (172,18,0,3,195,80)\r\n"),
        pair("", &format!("{ILLEGAL}227 Entering Passive Mode (198,51,100,1,82,109).\r\n"))
    );
    // One answer too many does not, either.
    stage.client("PASV\r\n");
    stage.server("226 again\r\n");
    assert!(stage.server("227 (172,18,0,3,195,80)\r\n").1.contains("198,51,100,1"));
}

#[test]
fn nothing_is_read_beyond_a_command_whose_answer_matters() {
    let mut stage = Stage::greeted();
    assert_eq!(stage.client("PASV\r\nPORT 203,0,113,9,200,1\r\n"), pair("PASV\r\n", ""));
    assert!(!stage.session.wants_client());
    assert_eq!(stage.server("227 (172,18,0,3,195,80)\r\n").0, "PORT 203,0,113,9,156,66\r\n");
    assert_eq!(stage.log(), ["void", "passive 172.18.0.3:50000", "void", "active 203.0.113.9:51201"]);
}

#[test]
fn only_so_many_commands_go_without_an_answer() {
    let mut stage = Stage::greeted();
    let (sent, _) = stage.client(&"NOOP\r\n".repeat(OUTSTANDING + 10));
    assert_eq!(sent.lines().count(), OUTSTANDING);
    assert_eq!(stage.server("200 ok\r\n200 ok\r\n").0.lines().count(), 2);
    assert_eq!(stage.held.len(), "NOOP\r\n".len() * 8);
}

#[test]
fn epsv_all_rules_out_the_others_until_rein() {
    let mut stage = Stage::greeted();
    assert_eq!(stage.client("EPSV ALL\r\nPASV\r\n"), pair("EPSV ALL\r\n", ""));
    assert_eq!(stage.server("200 ok\r\n"), pair("", &format!("200 ok\r\n{ONLY_EPSV}")));
    assert_eq!(stage.client("PORT 203,0,113,9,200,1\r\n").1, ONLY_EPSV);
    assert_eq!(stage.client("EPRT |1|203.0.113.9|51201|\r\n").1, ONLY_EPSV);
    assert_eq!(stage.client("REIN\r\nPASV\r\n"), pair("REIN\r\nPASV\r\n", ""));
    // Refused, it changes nothing.
    let mut stage = Stage::greeted();
    stage.client("EPSV ALL\r\nPASV\r\n");
    assert_eq!(stage.server("501 what?\r\n").0, "PASV\r\n");
}

#[test]
fn after_auth_tls_nothing_is_read() {
    for (mechanism, agreed) in [("TLS", "234"), ("tls-c", "234"), ("SSL", "334")] {
        let mut stage = Stage::greeted();
        stage.client_bytes(format!("AUTH {mechanism}\r\n\u{16}\u{3}PORT 8,8,8,8,200,1\r\n").as_bytes());
        assert_eq!(stage.out(), (format!("AUTH {mechanism}\r\n"), String::new()));
        assert!(!stage.session.is_opaque());
        let agreed = format!("{agreed} go on\r\n");
        assert_eq!(stage.server(&agreed), pair("\u{16}\u{3}PORT 8,8,8,8,200,1\r\n", &agreed));
        assert!(stage.session.is_opaque());
        stage.server_bytes(b"no reply, \xff and no line");
        assert_eq!(stage.to_client, b"no reply, \xff and no line");
    }
}

#[test]
fn commands_before_tls_has_begun_end_the_session() {
    for later in [false, true] {
        let mut stage = Stage::greeted();
        let (first, second) = if later { ("AUTH TLS\r\n", "NOOP\r\n") } else { ("AUTH TLS\r\nNOOP\r\n", "") };
        assert_eq!(stage.client(first).0, "AUTH TLS\r\n");
        stage.server("234 go on\r\n");
        assert_eq!(stage.client(second).0, "");
        assert_eq!(stage.end, Some(Violation::PlainText));
    }
}

#[test]
fn refused_auth_leaves_the_channel_readable() {
    let mut stage = Stage::greeted();
    stage.client("AUTH TLS\r\nPORT 8,8,8,8,200,1\r\n");
    assert_eq!(stage.server("534 no\r\n"), pair("", &format!("534 no\r\n{ILLEGAL}")));
    stage.client("AUTH GSSAPI\r\n");
    stage.server("334 go on\r\n");
    assert!(stage.session.is_opaque());
    assert_eq!(stage.client("ADAT x\r\n").0, "ADAT x\r\n");
}

#[test]
fn long_lines_and_nonsense_end_the_session() {
    let mut stage = Stage::greeted();
    let path = "x".repeat(LONGEST_COMMAND - "RETR \r\n".len());
    assert_eq!(stage.client(&format!("RETR {path}\r\n")).0.len(), LONGEST_COMMAND);
    assert_eq!(stage.client(&format!("RETR {path}xx")), pair("", ""));
    assert_eq!(stage.client("x"), pair("", TOO_LONG));
    assert_eq!(stage.end, Some(Violation::LongCommand));

    let mut stage = Stage::greeted();
    stage.server(&format!("211-{}", "x".repeat(LONGEST_REPLY)));
    assert_eq!(stage.end, Some(Violation::LongReply));
    for nonsense in ["hello\r\n", "2\r\n", "999 x\r\n", " 220 x\r\n"] {
        let mut stage = Stage::new();
        assert_eq!(stage.server(nonsense), pair("", ""));
        assert_eq!(stage.end, Some(Violation::NotAReply), "{nonsense}");
    }
}

#[test]
fn a_long_reply_is_not_collected() {
    let mut stage = Stage::greeted();
    stage.client("STAT\r\n");
    let (_, start) = stage.server("211-status\r\n");
    assert_eq!(start, "211-status\r\n");
    for _ in 0..1000 {
        assert_eq!(stage.server("227 (8,8,8,8,0,1)\n").1, "227 (8,8,8,8,0,1)\r\n");
    }
    assert_eq!(stage.session.replies.rest().capacity(), 0);
}

#[test]
fn what_a_closing_server_left_unfinished_is_passed_on() {
    let mut stage = Stage::greeted();
    stage.server("421 bye");
    stage.session.finish(&mut stage.to_client);
    assert_eq!(stage.out().1, "421 bye");
    stage.client("PASV\r\n");
    stage.server("227 (172,18,0,3,195,80)");
    stage.session.finish(&mut stage.to_client);
    assert_eq!(stage.out().1, "");
}

/// Who says it, and what.
type Step = (bool, Vec<u8>);

/// Plays a dialogue; each step in pieces that end at `cuts`.
fn play(steps: &[Step], cuts: &[Index], empty: bool) -> Stage {
    let mut stage = Stage::new();
    stage.pool.empty = empty;
    for (client, bytes) in steps {
        let at: BTreeSet<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        let mut start = 0;
        for end in at.into_iter().chain([bytes.len()]) {
            let piece = &bytes[start..end];
            if *client {
                stage.client_bytes(piece)
            } else {
                stage.server_bytes(piece)
            }
            start = end;
        }
    }
    stage
}

fn line() -> impl Strategy<Value = Step> {
    let command = select(vec![
        "USER a",
        "PASV",
        "EPSV",
        "EPSV ALL",
        "EPSV 2",
        "PORT 203,0,113,9,200,1",
        "PORT 8,8,8,8,200,1",
        "port 10,0,0,1,9,9",
        "EPRT |1|203.0.113.9|2000|",
        "EPRT |1|8.8.8.8|2000|",
        "LPRT 1",
        "ABOR",
        "REIN",
        "QUIT",
        "RETR x",
        "AUTH TLS",
        "\u{16}\u{3}\u{1}",
        "",
        " ",
        "PORT",
        "AUTH X",
    ]);
    let reply = select(vec![
        "200 ok",
        "227 (1,2,3,4,5,6)",
        "227-(1,2,3,4,5,6)",
        "229 (|||99|)",
        "227 end",
        "227 (0,0,0,0,0,0)",
        "234 go",
        "334 go",
        "500 no",
        "425 no",
        "150 wait",
        "220-hello",
        "220 hello",
        "229-x",
        "",
        "226",
    ]);
    let end = select(vec!["\r\n", "\n", ""]);
    let text = |(text, end): (&str, &str)| format!("{text}{end}").into_bytes();
    prop_oneof![
        (command, end.clone()).prop_map(move |pair| (true, text(pair))),
        (reply, end).prop_map(move |pair| (false, text(pair))),
    ]
}

proptest! {
    #[test]
    fn packets_do_not_matter(
        steps in prop::collection::vec(line(), 0..40),
        cuts in prop::collection::vec(any::<Index>(), 1..6),
        empty: bool,
    ) {
        let (whole, split) = (play(&steps, &[], empty), play(&steps, &cuts, empty));
        prop_assert_eq!(whole.end, split.end);
        prop_assert_eq!(whole.pool.log, split.pool.log);
        prop_assert_eq!(whole.to_client.escape_ascii().to_string(), split.to_client.escape_ascii().to_string());
        prop_assert_eq!(whole.to_server.escape_ascii().to_string(), split.to_server.escape_ascii().to_string());
    }

    #[test]
    fn a_server_hears_of_no_address_but_ours(steps in prop::collection::vec(line(), 0..60)) {
        // Lines end, so that what is asked of `lines` is right.
        let steps: Vec<Step> =
            steps.into_iter().map(|(client, bytes)| (client, [bytes, b"\r\n".to_vec()].concat())).collect();
        let mut stage = Stage::new();
        for step in steps {
            if step.0 { stage.client_bytes(&step.1) } else { stage.server_bytes(&step.1) }
            if stage.session.channel != Channel::Readable { break }
            let (to_server, to_client) = stage.out();
            for line in to_server.lines() {
                if let Some(argument) = line.strip_prefix("PORT ") {
                    prop_assert!(argument.starts_with("203,0,113,9,15"), "{}", line);
                }
                if let Some(argument) = line.strip_prefix("EPRT ") {
                    prop_assert!(argument.starts_with("|1|203.0.113.9|4"), "{}", line);
                }
                prop_assert!(!line.starts_with("port") && !line.starts_with("LPRT"));
            }
            prop_assert!(to_client.is_empty() || to_client.ends_with("\r\n"));
        }
    }

    #[test]
    fn any_bytes_are_survived_in_bounded_memory(
        steps in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)), 0..40),
    ) {
        let mut stage = Stage::new();
        for (client, bytes) in steps {
            if client { stage.client_bytes(&bytes) } else { stage.server_bytes(&bytes) }
            prop_assert!(stage.session.outstanding.len() <= OUTSTANDING);
        }
        prop_assert!(stage.session.commands.rest().len() <= LONGEST_COMMAND);
        prop_assert!(stage.session.replies.rest().len() <= LONGEST_REPLY);
    }
}
