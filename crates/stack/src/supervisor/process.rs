//! The supervisor process: how it begins and how it ends.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use container::idmap::IdMap;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sys::channel::Channel;

use super::Supervisor;
use super::events::History;
use super::wiring::Wiring;
use crate::control::Notice;
use crate::event::What;
use crate::hub::{self, client::Hub};
use crate::netd::Starter;
use crate::paths::Paths;
use crate::remote::{self, Context, RemoteError};
use crate::report::{self, report};

/// The first argument that makes our binary a supervisor.
pub const ARGUMENT: &str = "__supervise";

/// Body of the supervisor process: `__supervise STACK netd|alone limits|unlimited host|own private|readable`, with the channel to the
/// command that started it as standard input. Returns the exit status.
pub fn main() -> i32 {
    // For those who list processes; the kernel keeps 15 bytes. Executed by way of `/proc/self/exe`, it would be `exe`.
    rustix::thread::set_name(c"inception-super").ok();
    let args: Vec<String> = std::env::args().skip(2).collect();
    let [stack, netd, limits, network, memory] = &args[..] else {
        eprintln!("inception-run: {ARGUMENT} is not for use by hand");
        return 2;
    };
    let Ok(channel) = io::stdin().as_fd().try_clone_to_owned() else { return 125 };
    let channel = Channel::from(channel);
    let hub = hub::Needs { on_host: network == "host", readable: memory == "readable" };
    let needs = Needs { netd: netd == "netd", limits: limits == "limits", hub };
    match begin(stack, needs, &channel) {
        Ok(Some(mut supervisor)) => {
            let ended = take_over(&mut supervisor, channel).and_then(|()| supervisor.run());
            supervisor.leave(ended)
        }
        Ok(None) => tell(&channel, &Notice::Occupied),
        Err(error) => tell(&channel, &Notice::Failed(error)),
    }
}

/// The last word of a supervisor that does not come to be. The command that started it is the one to tell; if that is
/// gone nobody is.
fn tell(channel: &Channel, notice: &Notice) -> i32 {
    match remote::send(channel, notice, &[]) {
        Ok(()) | Err(_) => 1,
    }
}

/// What the plan, which is not known yet, will take.
struct Needs {
    netd: bool,
    /// Cgroups.
    limits: bool,
    /// Of the hub.
    hub: hub::Needs,
}

/// `None` when another supervisor has the stack.
fn begin(stack: &str, needs: Needs, channel: &Channel) -> Result<Option<Supervisor>, RemoteError> {
    // A session of its own: a terminal's Ctrl-C is for the command, which then asks us to end.
    rustix::process::setsid().map_err(io::Error::from).context(|| "start a session".into())?;
    if !container::userns::tie_to_parent(channel.as_fd())? {
        return Err(RemoteError::message("the command that started the supervisor is gone"));
    }
    let paths = Paths::current()?;
    let Some(lock) = crate::client::lock(&paths, stack)? else { return Ok(None) };
    // Held until there is a supervisor that holds it, or nothing is left of the attempt.
    let held = lock.try_clone().context(|| "share the lock".into())?;
    let runtime = paths.stack(stack);
    let begun = assemble(stack, needs, &paths, lock).map_err(|error| match forget(&runtime) {
        Ok(()) => error,
        Err(left) => error.caused_by(format!("nor could {} be removed: {left}", runtime.display())),
    });
    drop(held);
    begun.map(Some)
}

/// Takes the runtime directory of a supervisor away that did not come to be, but not what an earlier one left in it.
fn forget(runtime: &Path) -> Result<(), RemoteError> {
    let is_ours = |path: &PathBuf| {
        let name = path.file_name();
        name.is_some_and(|name| name == crate::lock::NAME || name == report::NAME)
    };
    if crate::paths::entries(runtime)?.iter().all(is_ours) {
        crate::lock::remove_runtime(runtime)?;
    }
    Ok(())
}

/// Makes all that a supervisor has.
fn assemble(stack: &str, needs: Needs, paths: &Paths, lock: File) -> Result<Supervisor, RemoteError> {
    let runtime = paths.stack(stack);
    redirect_output(&runtime).context(|| "open the supervisor's log".into())?;
    let map = IdMap::current()?;
    let data = paths.open_data(&map)?;
    // First, because it may move this process into another cgroup, and what it starts is to be there too.
    let delegation = match needs.limits {
        true => container::cgroup::delegation_for(stack),
        false => container::cgroup::delegation(),
    };
    delegation.remove_stale(stack)?;
    let cgroup = if needs.limits { delegation.stack(stack)? } else { None };
    // Before the hub: what it runs on stays as long as either of the two is there.
    let store = paths.store()?;
    // What the command's caller left open is nothing for others.
    sys::fd::close_on_exec_from(3).context(|| "keep descriptors to ourselves".into())?;
    // First: its exec takes a while, in which the hub is made.
    let starter = Starter {
        stack: stack.to_owned(),
        lock: Some(lock.try_clone().context(|| "share the lock".into())?),
    };
    let mut netd = if needs.netd { Some(starter.start()?) } else { None };
    // Made before this process knows any secret. It is a copy of it, and has no business with netd's channel: as
    // long as it had that open, netd would not see it end.
    let mut hub = Hub::spawn(&map, &data, needs.hub, || drop(netd.take()))?;
    if let Some(cgroup) = cgroup.as_ref().filter(|_| map.direct) {
        container::cgroup::Delegation::admit_hub(cgroup, hub.process.pid, map.root())?;
    }
    // After the hub: services have the limit that the user has.
    crate::storage::raise_descriptor_limit().context(|| "raise the limit of open files".into())?;
    let signals = signals().context(|| "open a signalfd".into())?;
    let idmap = match map.direct {
        true => Some(open_user_namespace(hub.process.pid)?),
        false => None,
    };
    let leftover = format!("c/{stack}");
    if paths.data.join(&leftover).exists() {
        hub.remove(vec![leftover]).context(|| "remove what a dead stack left".into())?;
    }
    let history = History::open(&runtime).context(|| "open the stack's events".into())?;
    let mut supervisor = Supervisor {
        stack: stack.to_owned(),
        listener: listen(&runtime).context(|| "listen on the control socket".into())?,
        runtime,
        store,
        hub,
        wiring: Wiring::new(starter, netd),
        history,
        faults: Default::default(),
        signals,
        _lock: lock,
        delegation,
        cgroup,
        idmap,
        owner: map.direct.then(|| map.root()),
        plan: None,
        files: Vec::new(),
        images: Default::default(),
        secrets: Default::default(),
        units: Vec::new(),
        next: None,
        rolling: None,
        queued: Default::default(),
        connections: Default::default(),
        next_connection: 0,
        processes: Default::default(),
        next_run: 1,
        stays: false,
        ending: None,
    };
    supervisor.tell_recovery();
    Ok(supervisor)
}

fn take_over(supervisor: &mut Supervisor, channel: Channel) -> Result<(), RemoteError> {
    supervisor.connect(channel.into(), true).map(drop)
}

/// What goes wrong in the supervisor and the hub after the command has left is written to a file.
fn redirect_output(runtime: &Path) -> io::Result<()> {
    let log = report::open(runtime)?;
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&log)?;
    rustix::stdio::dup2_stderr(&log)?;
    Ok(())
}

fn signals() -> io::Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

fn open_user_namespace(pid: i32) -> Result<OwnedFd, RemoteError> {
    let path = format!("/proc/{pid}/ns/user");
    File::open(&path).map(OwnedFd::from).context(|| format!("open {path}"))
}

fn listen(runtime: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let path = runtime.join("control.sock");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket.into())
}

/// The process id, in our own PID namespace, of the process that `pidfd` stands for (`/proc/self/fdinfo`).
pub(super) fn host_pid(pidfd: BorrowedFd<'_>) -> Result<u32, RemoteError> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))
        .context(|| "read a process's number".into())?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok());
    pid.ok_or_else(|| RemoteError::message("the process has ended"))
}

impl Supervisor {
    /// The last acts: say how it ended, and take the stack's files away. Whatever still runs ends with us.
    fn leave(&mut self, ended: Result<(), RemoteError>) -> i32 {
        let code = match ended {
            Ok(()) => 0,
            Err(error) => {
                report(format_args!("error: {error}"));
                self.tell_event(None, What::Broken { error: error.to_string() });
                let everybody: Vec<u64> = self.connections.keys().copied().collect();
                for id in everybody {
                    self.notify(id, Notice::Failed(error.clone()));
                }
                1
            }
        };
        if code == 0 {
            if let Err(error) = crate::lock::remove_runtime(&self.runtime) {
                report(format_args!("error: remove {}: {error}", self.runtime.display()));
            }
            self.tell_end();
        }
        // After a failure the exit of this process, not the order of drops, is what ends the hub.
        io::stderr().flush().ok();
        code
    }
}
