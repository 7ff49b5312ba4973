//! What `inception-init` does, the only program of ours that runs inside a container.
//!
//! ```text
//! inception-init pid1 VERBOSITY REPORT-FD PROGRAM [ARG...]
//! inception-init join TARGET-PIDFD DESCRIPTION-FD REPORT-FD
//! inception-init container DESCRIPTION-FD REPORT-FD START-FD
//! ```
//!
//! `pid1` has the container's identity already. `join` still has the stack's: it enters the container of the
//! process that TARGET-PIDFD stands for, from memory that holds no secret of ours, because
//! what is inside may look at it from the moment it is there. `container` stands in its container, waits for a
//! connection on the socket START-FD, and becomes the program then; it exists so that nothing of the runtime's memory is
//! in there, and `/proc/self/exe` can never be written to (CVE-2019-5736).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::net::SocketFlags;
use rustix::thread::ThreadNameSpaceType as Namespaces;

use crate::entry::{self, Joining, Waiting};
use crate::hook;
use crate::process::{Assumed, become_root};
use crate::report::{Failure, Stage, send_started, send_waiting};

/// Name by which a program is told that it is to act as `inception-init`.
pub const NAME: &str = "inception-init";

/// Does what the arguments say, the program's name first. Returns the exit code; where all goes well `pid1` and
/// `container` become another program.
pub fn run(args: &[String]) -> i32 {
    match args.get(1).map(String::as_str) {
        Some("pid1") if args.len() > 4 => pid1(args),
        Some("join") if args.len() == 5 => reporting(args, 4, enter),
        Some("container") if args.len() == 5 => reporting(args, 3, wait_for_start),
        _ => {
            eprintln!("inception-init: started by hand; it is a part of inception-run");
            2
        }
    }
}

fn pid1(args: &[String]) -> i32 {
    match argument(args, 3) {
        Ok(report) => crate::pid1::supervise(&args[4..], args[2].parse().unwrap_or(0), report),
        Err(error) => {
            eprintln!("[init] no report pipe: {error}");
            125
        }
    }
}

/// Does the work with the report pipe whose number is the argument at `index`.
fn reporting(
    args: &[String],
    index: usize,
    work: impl FnOnce(&[String], &OwnedFd) -> Result<(), Failure>,
) -> i32 {
    let report = match argument(args, index) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("inception-init: no report pipe: {error}");
            return 125;
        }
    };
    match work(args, &report) {
        Ok(()) => 0,
        Err(failure) => {
            failure.send(&report);
            failure.exit_code()
        }
    }
}

fn setup(what: &str) -> impl FnOnce(io::Error) -> Failure {
    let what = what.to_owned();
    move |error| Failure::new(Stage::Setup, what, error)
}

/// Or what is inside could take hold of this process while it has more rights than the program will have, and not yet
/// its filter; execve(2) undoes it.
fn undumpable() -> Result<(), Failure> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|e| setup("make the process undumpable")(e.into()))
}

fn enter(args: &[String], report: &OwnedFd) -> Result<(), Failure> {
    undumpable()?;
    let target = argument(args, 2).map_err(setup("take the target"))?;
    let description = contents(args, 3).map_err(setup("read the process"))?;
    let (joining, filters): (Joining, _) =
        entry::decode(&description).map_err(setup("decode the process"))?;
    let [first, last] = &joining.affinity;
    run_on(first.as_deref())?;
    let namespaces = Namespaces::from_bits_retain(joining.namespaces as _);
    if !namespaces.is_empty() {
        rustix::thread::move_into_thread_name_spaces(target.as_fd(), namespaces)
            .map_err(|e| Failure::new(Stage::Namespace, "the namespaces of the container", e))?;
    }
    drop(target);
    if joining.root {
        become_root()?;
        // A change of ids sets it anew (prctl(2)).
        undumpable()?;
    }
    let spawn = sys::process::SpawnArgs { sibling: true, ..Default::default() };
    let child = sys::process::spawn_with(spawn, || {
        let become_process = || -> Result<Assumed, Failure> {
            // The language's start-up code had SIGPIPE ignored, which would outlive exec.
            sys::process::reset_signals().map_err(setup("reset signals"))?;
            if let Some(name) = &joining.keyring {
                sys::process::new_session_keyring(Some(name)).map_err(setup("make a session keyring"))?;
            }
            run_on(last.as_deref())?;
            joining.process.assume(&filters, &[], Some(report.as_fd()))
        };
        let failure = match become_process() {
            Ok(_assumed) if joining.process.attempts => return attempt(),
            Ok(assumed) => assumed.exec(&joining.process.argv),
            Err(failure) => failure,
        };
        failure.send(report);
        failure.exit_code()
    })
    .map_err(setup("fork"))?;
    send_started(report.as_fd(), child.pid).map_err(setup("report"))
}

/// Writes a line for each call, of its name and the error number with which it was answered. Returns the exit code.
fn attempt() -> i32 {
    let line = |attempt: &sys::probe::Attempt| format!("{} {}\n", attempt.name, attempt.errno);
    let lines: String = sys::probe::attempts().iter().map(line).collect();
    match io::stdout().write_all(lines.as_bytes()).and_then(|()| io::stdout().flush()) {
        Ok(()) => 0,
        // Nobody reads it any more.
        Err(_) => 1,
    }
}

fn run_on(cpus: Option<&[usize]>) -> Result<(), Failure> {
    let Some(cpus) = cpus else { return Ok(()) };
    let mut set = rustix::thread::CpuSet::new();
    for cpu in cpus {
        if *cpu >= rustix::thread::CpuSet::MAX_CPU {
            return Err(setup("set the CPU affinity")(io::ErrorKind::InvalidInput.into()));
        }
        set.set(*cpu);
    }
    rustix::thread::sched_setaffinity(None, &set).map_err(|e| setup("set the CPU affinity")(e.into()))
}

fn wait_for_start(args: &[String], report: &OwnedFd) -> Result<(), Failure> {
    undumpable()?;
    let description = contents(args, 2).map_err(setup("read the process"))?;
    let start = argument(args, 4).map_err(setup("take the start socket"))?;
    let (waiting, filters): (Waiting, _) =
        entry::decode(&description).map_err(setup("decode the process"))?;
    waiting.process.locate()?;
    // The file of memory and the report pipe must not be open while what is inside may look.
    drop(description);
    send_waiting(report.as_fd()).map_err(setup("report"))?;
    wait_until_kept(report)?;
    let caller = loop {
        match rustix::net::accept_with(&start, SocketFlags::CLOEXEC) {
            Ok(caller) => break caller,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            Err(errno) => return Err(setup("wait for the start")(errno.into())),
        }
    };
    drop(start);
    let failure = match become_program(&waiting, &filters, &caller) {
        Ok(assumed) => assumed.exec(&waiting.process.argv),
        Err(failure) => failure,
    };
    failure.send(&caller);
    std::process::exit(failure.exit_code());
}

/// Whoever makes the container holds the other end of the channel. If it dies before it has told others of us, nobody
/// else would ever end us.
fn wait_until_kept(report: &OwnedFd) -> Result<(), Failure> {
    let mut word = [0u8; 8];
    loop {
        match rustix::io::read(report, &mut word) {
            Ok(0) => std::process::exit(1),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            Err(errno) => return Err(setup("wait for the runtime")(errno.into())),
        }
    }
}

fn become_program(
    waiting: &Waiting,
    filters: &[crate::process::Filter],
    caller: &OwnedFd,
) -> Result<Assumed, Failure> {
    for program in &waiting.hooks {
        let fail = |reason| Failure {
            stage: Stage::Hook,
            detail: format!("startContainer hook {}: {reason}", program.path.display()),
            errno: 0,
            obstacle: None,
        };
        hook::run(program, &waiting.state).map_err(fail)?;
    }
    sys::process::reset_signals().map_err(setup("reset signals"))?;
    waiting.process.assume(filters, &[], Some(caller.as_fd()))
}

fn argument(args: &[String], index: usize) -> io::Result<OwnedFd> {
    sys::fd::inherited(args[index].parse().map_err(|_| io::ErrorKind::InvalidInput)?)
}

fn contents(args: &[String], index: usize) -> io::Result<Vec<u8>> {
    let file = File::from(argument(args, index)?);
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
    // Not read(2): joiners that run at the same time share one file offset.
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
