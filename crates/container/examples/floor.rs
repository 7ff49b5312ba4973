//! The least that a container can cost: `floor ROOTFS PROGRAM [ARG...]`.
//!
//! One `clone3` with six namespaces, an id map, ROOTFS as root by `pivot_root`, exec; no /proc, no /dev, no filter,
//! no init. What `scripts/bench` measures everything else against.
#![forbid(unsafe_code)]

use std::error::Error;
use std::ffi::CString;
use std::fs;
use std::os::fd::AsFd;

use container::idmap::IdMap;
use container::userns;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use sys::process::namespace;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [rootfs, argv @ ..] = &args[..] else { return Err("usage: floor ROOTFS PROGRAM [ARG...]".into()) };
    let map = IdMap::current()?;
    let namespaces = namespace::MOUNT | namespace::NETWORK | namespace::PID | namespace::UTS | namespace::IPC;
    let directory = fs::File::open(rootfs)?;
    let (child, _channel) = userns::spawn(&map, namespaces, directory.as_fd(), |_channel| {
        let error = inside(argv);
        eprintln!("floor: {error}");
        125
    })?;
    let code = match waitpid(Pid::from_raw(child.pid), None)? {
        WaitStatus::Exited(_, code) => code,
        _ => 125,
    };
    std::process::exit(code);
}

fn inside(argv: &[String]) -> Box<dyn Error> {
    let steps = || -> Result<(), Box<dyn Error>> {
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        rustix::mount::mount_bind(".", ".")?;
        // The working directory is still the file system below the new mount.
        let here = std::env::current_dir()?;
        rustix::process::chdir(&here)?;
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        let args = argv.iter().map(|a| CString::new(a.as_str())).collect::<Result<Vec<_>, _>>()?;
        let program = args.first().ok_or("no program")?;
        nix::unistd::execve::<_, &std::ffi::CStr>(program, &args, &[])?;
        Ok(())
    };
    match steps() {
        Ok(()) => "exec returned".into(),
        Err(error) => error,
    }
}
