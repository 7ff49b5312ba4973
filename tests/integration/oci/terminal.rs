//! Terminals: sent to a console socket, or carried by `run` and `exec` themselves.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::bundle::Bundle;
use crate::harness::{DEADLINE, exit_status, patient, terminal};

/// What comes over a console socket.
fn accept(listener: &UnixListener) -> File {
    let stream = patient(listener.accept().unwrap().0);
    let mut name = [0u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut name)];
    let received = rustix::net::recvmsg(&stream, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    // Engines refuse a message without a body.
    assert!(received.bytes > 0);
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    assert_eq!(fds.len(), 1);
    File::from(fds.remove(0))
}

/// Reads a terminal until `text` comes.
fn read_until(terminal: &mut File, text: &str) -> String {
    // So that the wait has an end.
    rustix::io::ioctl_fionbio(&*terminal, true).unwrap();
    let mut seen = String::new();
    let end = Instant::now() + DEADLINE;
    while !seen.contains(text) {
        assert!(Instant::now() < end, "no {text:?} in {seen:?}");
        let mut piece = [0u8; 1024];
        match terminal.read(&mut piece) {
            Ok(length) if length > 0 => seen.push_str(&String::from_utf8_lossy(&piece[..length])),
            // Nothing there, or nobody has it open.
            _ => std::thread::sleep(Duration::from_millis(3)),
        }
    }
    seen
}

#[test]
fn it_goes_to_the_console_socket() {
    let bundle = Bundle::new(
        "tty; stty size; ls -l /dev/console >/dev/null && read line; echo \"got $line\"; sleep 1000",
    );
    bundle.configure(|config| {
        config["process"]["terminal"] = true.into();
        config["process"]["consoleSize"] = serde_json::json!({"height": 33, "width": 77});
    });
    // Without one there is nobody who could have it.
    bundle.refuses(&["terminal"]);
    let listener = patient(UnixListener::bind(bundle.path("console")).unwrap());
    bundle.create_with(&["--console-socket", "console"]).ok();
    let mut terminal = accept(&listener);
    bundle.ok("start");
    let seen = read_until(&mut terminal, "33 77");
    assert!(seen.contains("/dev/pts/") || seen.contains("/dev/console"), "{seen}");
    terminal.write_all(b"hello\n").unwrap();
    read_until(&mut terminal, "got hello");
    // A second one for `exec`.
    let mut exec = bundle.command(&["exec", "-t", "-d", "--console-socket", "console", &bundle.id]);
    exec.args(["sh", "-c", "tty; echo hi from exec; sleep 1000"]);
    assert!(exit_status(&mut exec.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()).success());
    let mut terminal = accept(&listener);
    read_until(&mut terminal, "hi from exec");
    bundle.fails(&["run", "--console-socket", "console", "x"], &["--console-socket"]);
    bundle.fails(
        &["exec", "-t", "-d", "--console-socket", "nowhere", &bundle.id, "true"],
        &["nowhere", "No such file or directory"],
    );
}

#[test]
fn run_and_exec_carry_it() {
    let bundle = Bundle::new("tty; stty size; read line; echo \"got $line\"; exit 4");
    bundle.configure(|config| config["process"]["terminal"] = true.into());
    let carried = |mut command: Command| {
        let (mut terminal, kept) = terminal(21, 63);
        let before = rustix::termios::tcgetattr(&kept).unwrap();
        let end = || kept.try_clone().unwrap();
        let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        drop(command);
        read_until(&mut terminal, "21 63");
        terminal.write_all(b"hello\r").unwrap();
        read_until(&mut terminal, "got hello");
        let code = exit_status(&mut child).code();
        // The modes are as they were.
        let after = rustix::termios::tcgetattr(&kept).unwrap();
        assert_eq!((before.local_modes, before.input_modes), (after.local_modes, after.input_modes));
        code
    };
    assert_eq!(carried(bundle.command(&["run", &bundle.id])), Some(4));
    bundle.nothing_left();
    bundle.configure(|config| {
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = serde_json::json!(["sleep", "1000"]);
    });
    bundle.start();
    let script = "tty; stty size; read line; echo \"got $line\"; exit 6";
    assert_eq!(carried(bundle.command(&["exec", "-t", &bundle.id, "sh", "-c", script])), Some(6));
}

#[test]
fn a_container_never_gets_the_callers_terminal() {
    let bundle = Bundle::new("for fd in 0 1 2; do readlink /proc/$$/fd/$fd; done; echo end");
    let (mut terminal, kept) = terminal(24, 80);
    let end = || kept.try_clone().unwrap();
    let mut command = bundle.command(&["run", &bundle.id]);
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    let seen = read_until(&mut terminal, "end");
    assert!(seen.lines().filter(|line| line.starts_with("pipe:")).count() == 3, "{seen}");
    assert_eq!(exit_status(&mut child).code(), Some(0));
}
