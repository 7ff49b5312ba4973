//! A program as root of the id map, with nothing else of ours: `within DATA PROGRAM [ARG...]`.
//!
//! New user, mount, PID, network, UTS and IPC namespaces, DATA as working directory, exec. In here
//! `scripts/bench` starts the five services bare, as the same ids on the same files.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use container::idmap::IdMap;
use container::userns;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::mount::MountPropagationFlags;
use sys::process::namespace;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [data, program, rest @ ..] = &args[..] else {
        return Err("usage: within DATA PROGRAM [ARG...]".into());
    };
    let map = IdMap::current()?;
    let directory = fs::File::open(data)?;
    let namespaces = namespace::MOUNT | namespace::NETWORK | namespace::PID | namespace::UTS | namespace::IPC;
    let (child, _channel) = userns::spawn(&map, namespaces, directory.as_fd(), |_channel| {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        if let Err(error) = rustix::mount::mount_change("/", private) {
            eprintln!("within: keep mounts from the host: {error}");
            return 125;
        }
        let error = Command::new(program).args(rest).exec();
        eprintln!("within: execute {program}: {error}");
        127
    })?;
    std::process::exit(match waitpid(Pid::from_raw(child.pid), None)? {
        WaitStatus::Exited(_, code) => code,
        _ => 125,
    });
}
