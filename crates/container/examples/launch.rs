//! Containers by the library alone: `launch DATA ROOTFS COUNT PROGRAM [ARG...]`.
//!
//! A user namespace, then COUNT times, one after the other, the sandbox that every service gets (all mounts, masks,
//! capabilities, seccomp filter and PID 1 of ours) over the read-only layer ROOTFS, and its end; exits with the
//! program's status. As root the ids are mapped directly, as an ordinary user by `newuidmap`. DATA holds the
//! writable layer; it is made when it is missing and used again when it is there. What `scripts/bench` compares
//! with bubblewrap and crun.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use container::idmap::IdMap;
use container::launch::{ROOTFS, SCRATCH, Surroundings, launch};
use container::sandbox::{Root, Sandbox, Seccomp};
use container::{Capabilities, Process, User, capability, defaults, program, seccomp, userns};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use sys::process::namespace;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [data, rootfs, count, argv @ ..] = &args[..] else {
        return Err("usage: launch DATA ROOTFS COUNT PROGRAM [ARG...]".into());
    };
    let count: u32 = count.parse()?;
    let map = IdMap::current()?;
    let (data, rootfs) = (Path::new(data), Path::new(rootfs));
    if !data.exists() {
        make_data_directory(data, rootfs, &map)?;
    }
    let directory = fs::File::open(data)?;
    let (child, _channel) = userns::spawn(&map, namespace::NETWORK, directory.as_fd(), |_channel| {
        inside(count, argv).unwrap_or_else(|error| {
            eprintln!("launch: {error}");
            125
        })
    })?;
    std::process::exit(status(child.pid)?);
}

/// `layer` in it is ROOTFS.
fn make_data_directory(data: &Path, rootfs: &Path, map: &IdMap) -> io::Result<()> {
    let (uid, gid) = map.root();
    for name in ["", "mnt", ROOTFS, SCRATCH, "upper", "work"] {
        fs::create_dir_all(data.join(name))?;
        std::os::unix::fs::chown(data.join(name), Some(uid), Some(gid))?;
    }
    std::os::unix::fs::symlink(fs::canonicalize(rootfs)?, data.join("layer"))
}

/// Root of the user namespace: starts the sandboxes and waits for the end of each.
fn inside(count: u32, argv: &[String]) -> Result<i32, Box<dyn Error>> {
    let sandbox = describe(argv, capability::set(&[], &[])?);
    let init = program::init()?;
    let filters = seccomp::default_profile(sandbox.process.capabilities.bounding())?;
    let around = Surroundings {
        init: init.as_fd(),
        network: None,
        pid: None,
        ipc: None,
        cgroup: None,
        stdio: [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()],
        detached: &[],
        filters: &filters,
        beside: false,
        readable: false,
    };
    let mut code = 0;
    for _ in 0..count {
        code = status(launch(&sandbox, &around)?.child.pid)?;
    }
    Ok(code)
}

/// What a service without any option gets.
fn describe(argv: &[String], capabilities: u64) -> Sandbox {
    Sandbox {
        hostname: "launch".to_owned(),
        root: Root { layers: vec!["layer".to_owned()], upper: "upper".to_owned(), work: "work".to_owned() },
        read_only: false,
        mounts: defaults::mounts(defaults::Network::Own, 64 << 20),
        masked_paths: defaults::masked_paths(),
        readonly_paths: defaults::readonly_paths(),
        sysctls: Vec::new(),
        process: Process {
            argv: argv.to_vec(),
            env: vec![("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())],
            cwd: "/".to_owned(),
            user: User::default(),
            capabilities: Capabilities::Bounding(capabilities),
            no_new_privileges: true,
            rlimits: Vec::new(),
            ..Process::default()
        },
        init: Some(0),
        asks_to_bind: false,
        seccomp: Seccomp::Default,
        oom_score_adj: None,
    }
}

fn status(pid: i32) -> io::Result<i32> {
    Ok(match waitpid(Pid::from_raw(pid), None)? {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        _ => 125,
    })
}
