//! `inception-init`: the only program of ours that runs inside a container.
//!
//! ```text
//! inception-init pid1 VERBOSITY REPORT-FD PROGRAM [ARG...]
//! inception-init join TARGET-PIDFD PROCESS-FD FILTERS-FD REPORT-FD
//! ```
//!
//! `pid1` has the container's identity already. `join` still has the stack's: it enters the container of the
//! process that TARGET-PIDFD stands for, from memory that holds no secret of ours, because
//! what is inside may look at it from the moment it is there.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use init::process::{Assumed, Process};
use init::report::{Failure, Stage, send_started};
use rustix::thread::ThreadNameSpaceType as Namespaces;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let code = match args.get(1).map(String::as_str) {
        Some("pid1") if args.len() > 4 => pid1(&args),
        Some("join") if args.len() == 6 => join(&args),
        _ => {
            eprintln!("inception-init: started by hand; it is a part of inception-run");
            2
        }
    };
    std::process::exit(code);
}

fn pid1(args: &[String]) -> i32 {
    match argument(args, 3) {
        Ok(report) => init::pid1::supervise(&args[4..], args[2].parse().unwrap_or(0), report),
        Err(error) => {
            eprintln!("[init] no report pipe: {error}");
            125
        }
    }
}

fn join(args: &[String]) -> i32 {
    let report = match argument(args, 5) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("inception-init: no report pipe: {error}");
            return 125;
        }
    };
    match enter(args, &report) {
        Ok(()) => 0,
        Err(failure) => {
            failure.send(&report);
            failure.exit_code()
        }
    }
}

fn enter(args: &[String], report: &OwnedFd) -> Result<(), Failure> {
    let setup = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| Failure::new(Stage::Setup, what, e)
    };
    // Or what is inside could take hold of the new process when it has the container's capabilities and not yet
    // its filter; execve(2) undoes it.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|e| setup("make the process undumpable")(e.into()))?;
    let target = argument(args, 2).map_err(setup("take the target"))?;
    let process = contents(args, 3).map_err(setup("read the process"))?;
    let filters = contents(args, 4).map_err(setup("read the filters"))?;
    let process: Process =
        serde_json::from_slice(&process).map_err(|e| setup("decode the process")(e.into()))?;
    let filters: Vec<Vec<u8>> = split_filters(&filters);
    let namespaces = Namespaces::MOUNT
        | Namespaces::PROCESS_ID
        | Namespaces::NETWORK
        | Namespaces::HOST_NAME_AND_NIS_DOMAIN_NAME
        | Namespaces::INTER_PROCESS_COMMUNICATION
        | Namespaces::CONTROL_GROUP;
    rustix::thread::move_into_thread_name_spaces(target.as_fd(), namespaces)
        .map_err(|e| Failure::new(Stage::Namespace, "the namespaces of the container", e))?;
    drop(target);
    let spawn = sys::process::SpawnArgs { sibling: true, ..Default::default() };
    let child = sys::process::spawn_with(spawn, || {
        let failure = match become_process(&process, &filters) {
            Ok(assumed) => assumed.exec(&process.argv),
            Err(failure) => failure,
        };
        failure.send(report);
        failure.exit_code()
    })
    .map_err(setup("fork"))?;
    send_started(report.as_fd(), child.pid).map_err(setup("report"))
}

/// The language's start-up code had SIGPIPE ignored, which would outlive exec.
fn become_process(process: &Process, filters: &[Vec<u8>]) -> Result<Assumed, Failure> {
    sys::process::reset_signals().map_err(|e| Failure::new(Stage::Setup, "reset signals", e))?;
    process.assume(filters, &[])
}

/// Filters are stored one after the other, each behind its length in bytes (u32, little endian).
fn split_filters(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut filters = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        let (filter, rest) = rest.split_at(length.min(rest.len()));
        filters.push(filter.to_vec());
        bytes = rest;
    }
    filters
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
