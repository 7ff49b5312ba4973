//! PID 1: reaps orphans, passes signals on, exits with the service's status. In the PID namespace of another container it
//! has another number, and does the same for its own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::process::exec_in_path;
use crate::report::{Failure, Stage};

/// Runs `argv` as a child with this process's environment, and supervises it. Returns the exit status to
/// leave with: the child's own, or 128 plus the number of the signal that ended it. What is left of the
/// container then is ended by the kernel. `verbosity`: 1 logs signals and the end of the service, 2
/// every child that is reaped, 3 the set-up too.
pub fn supervise(argv: &[String], verbosity: u8, report: OwnedFd) -> i32 {
    let log = |level: u8, text: &dyn Fn() -> String| {
        if verbosity >= level {
            eprintln!("[init] {}", text());
        }
    };
    // Who is not PID 1 inherits orphans only if it asks for them, and only those below it.
    if std::process::id() != 1
        && let Err(errno) = rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
    {
        Failure::new(Stage::Setup, "take in orphans", errno).send(&report);
        return 125;
    }
    let setup = SigSet::all()
        .thread_set_mask()
        .and_then(|()| SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC));
    let signals = match setup {
        Ok(signals) => signals,
        Err(errno) => {
            Failure::new(Stage::Setup, "set up signals of PID 1", std::io::Error::from(errno)).send(&report);
            return 125;
        }
    };
    let child = match sys::process::spawn(0, || start(argv, report.as_fd())) {
        Ok(child) => Pid::from_raw(child.pid),
        Err(error) => {
            Failure::new(Stage::Setup, "fork the service", error).send(&report);
            return 125;
        }
    };
    // The parent sees the end of this pipe when the last copy, the child's, closes on exec.
    drop(report);
    log(3, &|| format!("started `{}` as pid {child}", argv.join(" ")));
    loop {
        let Ok(Some(info)) = signals.read_signal() else { continue };
        let number = info.ssi_signo as i32;
        if number == Signal::SIGCHLD as i32 {
            if let Some(status) = reap(child, &log) {
                return status;
            }
            continue;
        }
        log(1, &|| format!("received {} from pid {}; forwarding to pid {child}", name(number), info.ssi_pid));
        if let Err(error) = sys::process::kill(child.as_raw(), number) {
            log(1, &|| format!("forwarding {} failed: {error}", name(number)));
        }
    }
}

/// The child's side: the terminal's foreground, default signals, exec. Returns only on failure.
fn start(argv: &[String], report: BorrowedFd<'_>) -> i32 {
    let failure = match prepare() {
        Err(failure) => failure,
        Ok(()) => execute(argv),
    };
    failure.send(report);
    failure.exit_code()
}

fn prepare() -> Result<(), Failure> {
    // A group of its own, so that the terminal's job control and signals reach the service and not init.
    nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0))
        .map_err(|e| Failure::new(Stage::Setup, "make a process group", std::io::Error::from(e)))?;
    if rustix::termios::isatty(rustix::stdio::stdin()) {
        // SIGTTOU, which this would raise, is still blocked.
        match rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpid()) {
            // A terminal that is not this session's own has no job control to hand over.
            Ok(()) | Err(rustix::io::Errno::NOTTY) => {}
            Err(e) => return Err(Failure::new(Stage::Terminal, "foreground process group", e)),
        }
    }
    sys::process::reset_signals().map_err(|e| Failure::new(Stage::Setup, "reset signals", e))
}

fn execute(argv: &[String]) -> Failure {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStringExt;
    let program = argv.first().map_or("", String::as_str);
    let args: Option<Vec<CString>> = argv.iter().map(|a| CString::new(a.as_str()).ok()).collect();
    let env: Option<Vec<CString>> = std::env::vars_os()
        .map(|(key, value)| {
            let mut pair = key.into_vec();
            pair.push(b'=');
            pair.extend(value.into_vec());
            CString::new(pair).ok()
        })
        .collect();
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".into());
    match (args, env) {
        (Some(args), Some(env)) => exec_in_path(program, &path, &args, &env),
        _ => Failure::new(Stage::Exec, program, rustix::io::Errno::INVAL),
    }
}

/// Reaps all that has ended; the service's exit status when it is among them.
fn reap(service: Pid, log: &impl Fn(u8, &dyn Fn() -> String)) -> Option<i32> {
    loop {
        let (pid, code, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code, format!("exited with status {code}")),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                (pid, 128 + signal as i32, format!("was ended by {signal}"))
            }
            _ => return None,
        };
        if pid == service {
            log(1, &|| format!("the service, pid {pid}, {how}"));
            return Some(code);
        }
        log(2, &|| format!("reaped orphan pid {pid}, which {how}"));
    }
}

fn name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |s| s.to_string())
}
