//! The process that owns a user namespace: everything of a stack happens inside it.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, set_parent_process_death_signal};
use sys::channel::{Channel, wait_readable};
use sys::process::{Child, namespace};

use crate::Error;
use crate::idmap::{Extent, IdMap};

/// How long the parent may take to write the id map, and each of its helpers.
const MAP_DEADLINE: Duration = Duration::from_secs(20);

/// Makes a child in a new user namespace with the id map `map`, and in the other new `namespaces`, with
/// `directory` as working directory (the kernel takes that along into a new mount namespace; a descriptor stays
/// behind in the old one and is no place to mount on). As soon as the map is there the child is root inside, tied to the life of this thread, and runs `body` with its end
/// of a channel whose other end is returned; the end of that channel means the death of the other.
///
/// # Errors
/// [`Error::System`] named "create user namespace" where the host forbids it, and failures to write the map;
/// the child is gone then.
pub fn spawn(
    map: &IdMap,
    namespaces: u64,
    directory: BorrowedFd<'_>,
    body: impl FnOnce(Channel) -> i32,
) -> Result<(Child, Channel), Error> {
    let (ours, theirs) = Channel::pair().map_err(Error::system("create a channel"))?;
    let mut ours = Some(ours);
    // Its end is seen whoever has a copy of our end of the channel: others that are being forked do, for a moment.
    let mut parent =
        rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
            .map(Some)
            .map_err(|e| Error::system("open this process")(e.into()))?;
    let home = rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::system("open the working directory")(e.into()))?;
    rustix::process::fchdir(directory).map_err(|e| Error::system("change directory")(e.into()))?;
    let child = sys::process::spawn(namespace::USER | namespaces, || {
        // The child's copy of the parent's end: as long as it is open the child would never see it close.
        drop(ours.take());
        let Some(parent) = parent.take() else { return 125 };
        match become_root(&theirs, parent) {
            Ok(true) => body(theirs),
            // The parent is gone or could not write the map: it knows.
            Ok(false) => 125,
            Err(error) => {
                eprintln!("error: become root of the new user namespace: {error}");
                125
            }
        }
    })
    .map_err(Error::system("create user namespace"));
    rustix::process::fchdir(home).map_err(|e| Error::system("change directory back")(e.into()))?;
    let child = child?;
    // Still there: only the child's copy of this variable was emptied.
    let Some(ours) = ours else { return Err(Error::Silent) };
    write_map(map, child.pid)?;
    ours.send(b"mapped", &[]).map_err(Error::system("tell the new user namespace's root that it is one"))?;
    Ok((child, ours))
}

/// Closes `parent`: whatever runs here later has no business with it.
fn become_root(channel: &Channel, parent: OwnedFd) -> io::Result<bool> {
    if channel.recv_until(Instant::now() + MAP_DEADLINE)?.is_none() {
        return Ok(false);
    }
    let root = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(root.1, root.1, root.1)?;
    nix::unistd::setresuid(root.0, root.0, root.0)?;
    // The change of ids made this process undumpable and with that its own /proc files inaccessible.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
    Ok(tie_to_parent(channel.as_fd())? && !is_readable(parent.as_fd())?)
}

/// Whether a descriptor is readable now: of a process, that it has ended.
fn is_readable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    match wait_readable(fd, Instant::now()) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(false),
        other => other.map(|()| true),
    }
}

/// Makes this process die with the thread that made it. Must come after the last change of ids, which clears
/// the setting (prctl(2), PR_SET_PDEATHSIG). False when the parent, seen through its end of `channel`, is
/// gone already.
///
/// # Errors
/// What `prctl(2)` and `poll(2)` report.
pub fn tie_to_parent(channel: BorrowedFd<'_>) -> io::Result<bool> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Whether there is something to read does not matter: it may be a request.
    let mut poll = [rustix::event::PollFd::new(&channel, rustix::event::PollFlags::empty())];
    let none = rustix::time::Timespec::default();
    rustix::event::poll(&mut poll, Some(&none))?;
    Ok(!poll[0].revents().contains(rustix::event::PollFlags::HUP))
}

/// A child that another process made on our behalf (`CLONE_PARENT`): nobody else reaps it, so `pid` is still its own.
///
/// # Errors
/// What `pidfd_open(2)` reports.
pub(crate) fn adopt(pid: i32) -> Result<Child, Error> {
    let number = rustix::process::Pid::from_raw(pid).ok_or(Error::Silent)?;
    let pidfd = rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty())
        .map_err(|e| Error::system("open the new process")(e.into()))?;
    Ok(Child { pid, pidfd })
}

/// Ends a child process and reaps it, so that nothing of it is left when this returns.
///
/// # Errors
/// What `pidfd_send_signal(2)` and `waitpid(2)` report.
pub fn end(child: &Child) -> io::Result<()> {
    match sys::process::pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL) {
        Ok(()) => {}
        // Ended already, but not reaped.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
        // Waiting for it might take for ever.
        Err(error) => return Err(error),
    }
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None)?;
    Ok(())
}

/// How long the kernel may take for a process that was killed.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// Ends a process that somebody else reaps; nothing of it runs when this returns.
///
/// # Errors
/// What `pidfd_send_signal(2)` and `poll(2)` report.
pub(crate) fn end_of_another(child: &Child) -> io::Result<()> {
    match sys::process::pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    wait_readable(child.pidfd.as_fd(), Instant::now() + END_DEADLINE)
}

/// Writes a map that somebody else chose: directly, where this process may, and with the helpers otherwise.
pub(crate) fn write_container_map(map: &IdMap, pid: i32) -> Result<(), Error> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if uid.is_root() {
        return write_map(map, pid);
    }
    // One's own ids need no helper, if nobody can leave a group in there (user_namespaces(7)).
    let own = |extents: &[Extent], id: u32| matches!(extents, [one] if one.count == 1 && one.outside == id);
    if own(&map.uids, uid.as_raw()) && own(&map.gids, gid.as_raw()) {
        let path = format!("/proc/{pid}/setgroups");
        fs::write(&path, "deny").map_err(Error::system(format!("write {path}")))?;
        return write_map(map, pid);
    }
    write_map(&IdMap { direct: false, ..map.clone() }, pid)
}

pub(crate) fn write_map(map: &IdMap, pid: i32) -> Result<(), Error> {
    if map.direct {
        for (file, extents) in [("uid_map", &map.uids), ("gid_map", &map.gids)] {
            let path = format!("/proc/{pid}/{file}");
            let text: String =
                extents.iter().map(|e| format!("{} {} {}\n", e.inside, e.outside, e.count)).collect();
            // The kernel takes a map in one write only.
            fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|mut file| file.write_all(text.as_bytes()))
                .map_err(Error::system(format!("write {path}")))?;
        }
        return Ok(());
    }
    // Both at once: each is a process of its own, and together they are a third of a start.
    let deadline = Instant::now() + MAP_DEADLINE;
    let uid = start_helper("newuidmap", pid, &map.uids)?;
    let gid = start_helper("newgidmap", pid, &map.gids);
    finish_helper("newuidmap", uid, deadline)?;
    finish_helper("newgidmap", gid?, deadline)
}

fn start_helper(program: &'static str, pid: i32, extents: &[Extent]) -> Result<std::process::Child, Error> {
    let numbers = extents.iter().flat_map(|e| [e.inside, e.outside, e.count]).map(|n| n.to_string());
    Command::new(program)
        .arg(pid.to_string())
        .args(numbers)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::NoMapHelper { program, source })
}

fn finish_helper(
    program: &'static str,
    mut child: std::process::Child,
    deadline: Instant,
) -> Result<(), Error> {
    let mut wait = || -> io::Result<()> {
        // What it says fits into a pipe: it need not be read before its end.
        match sys::process::wait_until(&mut child, deadline)? {
            Some(_) => Ok(()),
            None => child.kill().and(Err(io::ErrorKind::TimedOut.into())),
        }
    };
    let output = wait()
        .and_then(|()| child.wait_with_output())
        .map_err(Error::system(format!("wait for {program}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::MapHelper { program, output: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}
