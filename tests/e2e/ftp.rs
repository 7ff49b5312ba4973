//! FTP clients: lftp and curl on this machine, and one inside the stack for active mode.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::browser::Browser;
use crate::stand::{Said, Stand, run, spawn, tool, wait_for};

/// 3 MB that do not repeat.
fn content() -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..375_000).flat_map(|_| next()).collect()
}

/// lftp, with TLS demanded and passive mode. The script goes in on standard input, for its password.
fn lftp(directory: &Path) -> Command {
    let mut lftp = tool("lftp", ["--norc"]);
    // lftp reads settings from there, and keeps a history.
    lftp.current_dir(directory).env("HOME", directory).env("LFTP_HOME", directory);
    lftp
}

fn script(stand: &Stand, lines: &str) -> String {
    format!(
        "set cmd:fail-exit yes; set net:max-retries 2; set net:timeout 10; set cmd:interactive no\n\
         set ftp:passive-mode yes; set ftp:ssl-force yes; set ftp:ssl-protect-data yes\n\
         set ssl:verify-certificate no\n\
         open -p 2121 -u {},{} ftp://{}\n{lines}\n",
        stand.settings["FTP_USER"], stand.settings["FTP_PASSWORD"], stand.address
    )
}

fn session(stand: &Stand, lines: &str) -> Said {
    run(&mut lftp(&stand.directory), script(stand, lines).as_bytes())
}

/// What is uploaded is served at once, byte for byte; the user sees the web root and nothing above.
pub(crate) fn uploads(stand: &Stand, browser: &Browser) {
    let bytes = content();
    fs::write(stand.directory.join("photo.bin"), &bytes).unwrap();
    session(stand, "put photo.bin\nput photo.bin -o wp-content/uploads/photo.bin").ok();
    assert!(browser.get("/photo.bin").ok().body == bytes);
    assert!(browser.get("/wp-content/uploads/photo.bin").ok().body == bytes);

    let listing = session(stand, "cd ../../../..\npwd\ncls -1 /").ok();
    assert!(
        listing.contains("wp-config.php")
            && !listing.lines().any(|l| l.contains("etc/") || l.contains("proc/")),
        "{listing}"
    );
    session(stand, "get ../../../../etc/passwd -o stolen").fails();
    session(stand, "get /etc/passwd -o stolen").fails();

    let wrong = script(stand, "cls").replace(&stand.settings["FTP_PASSWORD"], "wrong");
    assert!(run(&mut lftp(&stand.directory), wrong.as_bytes()).fails().contains("530"));
}

/// An upload whose client is killed half way goes on from there, and so does a download.
pub(crate) fn resumes(stand: &Stand, browser: &Browser) {
    let bytes = content();
    fs::write(stand.directory.join("half.bin"), &bytes).unwrap();
    let mut slow = spawn(&mut lftp(&stand.directory));
    let lines = script(stand, "set net:limit-rate 0:1000000\nput half.bin");
    slow.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    wait_for("half an upload", Duration::from_secs(20), || {
        let there = browser.get("/half.bin").body.len();
        (500_000..bytes.len()).contains(&there).then_some(())
    });
    slow.kill().unwrap();
    slow.wait().unwrap();
    // The server notices when the connection closes, and when it has read what was sent before, in records as small as the
    // limit made them: on a machine that is busy that takes a while.
    let there = wait_for("end of the interrupted upload", Duration::from_secs(60), || {
        let before = browser.get("/half.bin").body.len();
        std::thread::sleep(Duration::from_millis(200));
        (browser.get("/half.bin").body.len() == before).then_some(before)
    });
    assert!(there < bytes.len(), "it was not interrupted");
    let said = session(stand, "debug 5\nput -c half.bin");
    said.ok();
    let all = format!("{}{}", said.text(), said.err);
    assert!(all.contains("REST ") || all.contains("APPE "), "it started anew: {all}");
    assert!(browser.get("/half.bin").ok().body == bytes);

    // The second client is curl; a rest of 1 MB is all that it fetches.
    let part = stand.directory.join("part.bin");
    fs::write(&part, &bytes[..2_000_000]).unwrap();
    let configuration = format!(
        "url = \"ftp://{}:2121/half.bin\"\nuser = \"{}:{}\"\n",
        stand.address, stand.settings["FTP_USER"], stand.settings["FTP_PASSWORD"]
    );
    let mut curl =
        tool("curl", ["--disable", "--config", "-", "--silent", "--verbose", "--insecure", "--ssl-reqd"]);
    curl.args(["--disable-epsv", "--continue-at", "-", "--write-out", "%{size_download}", "--output"]);
    let said = run(curl.arg(&part), configuration.as_bytes());
    assert_eq!(said.ok(), "1000000");
    assert!(fs::read(&part).unwrap() == bytes);
    let announced = format!("227 Entering Passive Mode ({},", stand.address.replace('.', ","));
    assert!(said.err.contains(&announced), "no `{announced}` in {}", said.err);
}

/// A client for active mode, in the Perl that is part of every Debian.
const ACTIVE: &str = r#"
use strict; use warnings; use IO::Socket::INET;
my $control = IO::Socket::INET->new(PeerAddr => 'ftp', PeerPort => 21, Timeout => 10) or die "connect: $@";
die "the server is at our own address" if $control->sockhost eq $control->peerhost;
sub answer { while (my $line = <$control>) { return $line if $line =~ /^\d{3} / } die "closed" }
sub ask { my ($line, $code) = @_; print $control "$line\r\n"; my $got = answer(); $got =~ /^$code/ or die "$line: $got" }
answer();
open(my $secret, '<', '/run/secrets/ftp_password') or die "secret: $!";
chomp(my $password = <$secret>);
ask("USER $ENV{FTP_USER}", 331); ask("PASS $password", 230); ask('TYPE I', 200);
my $data = IO::Socket::INET->new(Listen => 1, LocalAddr => $control->sockhost, Timeout => 10) or die "listen: $@";
my $port = $data->sockport;
ask('PORT ' . join(',', split(/\./, $control->sockhost), $port >> 8, $port & 255), 200);
ask('RETR photo.bin', 150);
my $connection = $data->accept or die "the server does not connect: $@";
die 'somebody else connects' if $connection->peerhost ne $control->peerhost;
print while <$connection>;
answer() =~ /^226/ or die 'not complete';
"#;

/// From a container of its own on the same network: the server connects to the client.
pub(crate) fn active_mode(stand: &Stand) {
    let said = stand.say(["run", "--rm", "ftp", "perl", "-e", ACTIVE]);
    said.ok();
    assert!(said.out == content(), "{} bytes", said.out.len());
}
