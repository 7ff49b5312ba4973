//! The process that watches: it starts the supervisor, or a command that builds, tells each step, and ends with what it
//! watches or when it is told to.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use container::program;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};
use sys::channel::Channel;
use sys::trace::{self, Cause, Stop};

use super::call::Call;
use super::decode::{decode, is_cgroup, is_of_interest};
use super::step::{Outcome, Role, Step, Who};
use super::watched::{self, Learned, Watched};
use crate::control::Notice;
use crate::remote::{self, Context, RemoteError};
use crate::supervisor;

/// The first argument that makes our binary the process that watches.
pub const ARGUMENT: &str = "__trace";

/// How long processes may take to stop when they are to be let go.
const LET_GO: Duration = Duration::from_secs(5);

/// Starts the supervisor with `arguments`, which follow its first one, and with our standard input, and gives every step
/// to `tell`, until all of the stack's processes have ended or SIGTERM comes. The stack goes on in that case. When `tell`
/// fails nothing is watched any more.
///
/// # Errors
/// When the supervisor cannot be started or watched.
pub fn run(arguments: &[String], tell: &mut dyn FnMut(&Step) -> io::Result<()>) -> Result<(), RemoteError> {
    // A terminal's Ctrl-C is for the command, which ends the stack in order.
    rustix::process::setsid().map_err(io::Error::from).context(|| "start a session".into())?;
    let channel = io::stdin().as_fd().try_clone_to_owned().context(|| "take the channel".into())?;
    if !container::userns::tie_to_parent(channel.as_fd())? {
        return Ok(());
    }
    let signals = signals().context(|| "open a signalfd".into())?;
    let started = channel.try_clone().context(|| "share the channel".into()).and_then(|theirs| {
        let mut supervisor = Command::new("/proc/self/exe");
        supervisor.arg0(crate::client::PROGRAM).arg(supervisor::ARGUMENT).args(arguments);
        start(supervisor.stdin(Stdio::from(theirs)).stdout(Stdio::null()))
    });
    let supervisor = match started {
        Ok(supervisor) => supervisor,
        // The command is the one to tell.
        Err(error) => return Ok(remote::send(&Channel::from(channel), &Notice::Failed(error), &[])?),
    };
    // As long as this process had an end of the channel, the command would not see the supervisor's end.
    drop(channel);
    let null = std::fs::File::open("/dev/null").context(|| "open /dev/null".into())?;
    rustix::stdio::dup2_stdin(&null).map_err(io::Error::from).context(|| "close the channel".into())?;
    Watch::new(supervisor, Role::Supervisor, tell).run(&signals).map(drop)
}

/// Runs our own program with `arguments` and the variable `mark`, and gives every step of it to `tell`. Signals that end
/// us end it. Returns its exit code. When `tell` fails nothing is watched any more, and it goes on.
///
/// # Errors
/// When it cannot be started or watched.
pub fn run_command(
    arguments: &[OsString],
    mark: (&str, &str),
    tell: &mut dyn FnMut(&Step) -> io::Result<()>,
) -> Result<i32, RemoteError> {
    let signals = signals().context(|| "open a signalfd".into())?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(crate::client::PROGRAM).args(arguments).env(mark.0, mark.1);
    sys::process::signal_when_orphaned(&mut command, libc::SIGTERM);
    let command = start(&mut command)?;
    Watch { passes_on: true, ..Watch::new(command, Role::Command, tell) }.run(&signals)
}

fn signals() -> io::Result<SignalFd> {
    let mask: SigSet =
        [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Starts a program, watched from before its first instruction.
fn start(program: &mut Command) -> Result<i32, RemoteError> {
    let (gate, opens) = io::pipe().context(|| "make a pipe".into())?;
    let mut parts = Some((gate, opens));
    let child = sys::process::spawn(0, || {
        let Some((mut gate, opens)) = parts.take() else { return 125 };
        drop(opens);
        // An end instead of a byte: it cannot be watched.
        match (gate.read(&mut [0]), sys::process::reset_signals()) {
            (Ok(1), Ok(())) => {}
            _ => return 125,
        }
        eprintln!("error: execute our own program again: {}", program.exec());
        125
    })
    .context(|| "start the process that is to be watched".into())?;
    // The calls of a process that has not been stopped are not told of.
    let watched = trace::seize(child.pid).and_then(|()| trace::interrupt(child.pid)).and_then(|()| {
        // Still there: only the child's copy of this variable was emptied.
        parts.as_mut().map_or(Ok(()), |(_, opens)| opens.write_all(b"x"))
    });
    watched.context(|| "watch a process of our own".into()).map_err(|error| {
        error.or_hint("/proc/sys/kernel/yama/ptrace_scope above 1 keeps that to root, or from everybody")
    })?;
    Ok(child.pid)
}

/// A process that is watched.
struct Process {
    who: Who,
    /// The call that it is making.
    pending: Option<Pending>,
    /// A step that the next one may be told with as one.
    held: Option<Step>,
}

/// A call that has not returned.
enum Pending {
    /// One that is told of.
    Call { time: SystemTime, call: Call, argument: u64, made: Option<i32> },
    /// The making of a netlink socket of this protocol.
    Socket(i32),
}

struct Watch<'a> {
    /// The process that was started here, and its exit code once it has ended.
    first: (i32, Option<i32>),
    /// It gets the signals that we get, and decides.
    passes_on: bool,
    processes: HashMap<i32, Process>,
    /// New processes, stopped, whose makers have not been heard of.
    waiting: HashSet<i32>,
    learned: Learned,
    tell: &'a mut dyn FnMut(&Step) -> io::Result<()>,
    /// When everything is to be let go at the latest, once that was begun.
    ending: Option<Instant>,
    /// This process ends with that. Otherwise it stays until the supervisor ends, whose life is tied to its own.
    leaves: bool,
}

impl<'a> Watch<'a> {
    fn new(first: i32, role: Role, tell: &'a mut dyn FnMut(&Step) -> io::Result<()>) -> Self {
        let mut watch = Self {
            first: (first, None),
            passes_on: false,
            processes: HashMap::new(),
            waiting: HashSet::new(),
            learned: Learned::default(),
            tell,
            ending: None,
            leaves: false,
        };
        watch.add(first, role, None);
        watch
    }

    fn add(&mut self, pid: i32, role: Role, container: Option<String>) {
        self.processes.insert(pid, Process { who: Who { pid, role, container }, pending: None, held: None });
    }

    /// Returns the exit code of the first process, 0 if that goes on.
    fn run(&mut self, signals: &SignalFd) -> Result<i32, RemoteError> {
        loop {
            loop {
                match trace::next() {
                    Ok(Some(stop)) => self.handle(stop),
                    Ok(None) => break,
                    Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                        return Ok(self.first.1.unwrap_or(0));
                    }
                    Err(error) => return Err(error).context(|| "wait for the stack's processes".into()),
                }
            }
            let let_go = self.ending.is_some_and(|end| self.processes.is_empty() || Instant::now() >= end);
            if self.leaves && let_go {
                return Ok(0);
            }
            self.wait(signals)?;
        }
    }

    fn wait(&mut self, signals: &SignalFd) -> Result<(), RemoteError> {
        let mut polled = [PollFd::new(signals, PollFlags::IN)];
        let limit = self.ending.filter(|_| self.leaves).map(|end| rustix::time::Timespec {
            tv_sec: end.saturating_duration_since(Instant::now()).as_secs() as i64 + 1,
            tv_nsec: 0,
        });
        match rustix::event::poll(&mut polled, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(io::Error::from(errno)).context(|| "wait for a signal".into()),
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            match signal.ssi_signo as i32 {
                // A terminal's Ctrl-C reaches it anyway.
                number @ (libc::SIGTERM | libc::SIGHUP) if self.passes_on => {
                    gone_is_fine(sys::process::kill(self.first.0, number));
                }
                libc::SIGTERM => {
                    self.leaves = true;
                    self.let_go();
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Begins to let everything go, which takes a stop of each process.
    fn let_go(&mut self) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Instant::now() + LET_GO);
        for pid in self.processes.keys() {
            gone_is_fine(trace::interrupt(*pid));
        }
        for pid in std::mem::take(&mut self.waiting) {
            gone_is_fine(trace::detach(pid, 0));
        }
    }

    fn handle(&mut self, Stop { pid, cause }: Stop) {
        if let Cause::Ended(code) = cause {
            if pid == self.first.0 {
                self.first.1 = Some(code);
            }
            self.waiting.remove(&pid);
            self.forget(pid);
            // It may have been killed before it was heard of what it has made.
            for pid in std::mem::take(&mut self.waiting) {
                self.add(pid, Role::Helper, None);
                gone_is_fine(trace::go_on(pid, 0));
            }
            return;
        }
        if self.ending.is_some() {
            let signal = if let Cause::Signal(signal) = cause { signal } else { 0 };
            gone_is_fine(trace::detach(pid, signal));
            return self.forget(pid);
        }
        match cause {
            Cause::Stopped(_) if !self.processes.contains_key(&pid) => {
                self.waiting.insert(pid);
                return;
            }
            Cause::Stopped(libc::SIGTRAP) => {}
            Cause::Stopped(_) => {
                gone_is_fine(trace::leave_stopped(pid));
                return;
            }
            Cause::Made(child) => self.made(pid, child),
            Cause::Entry { number, arguments } => {
                if !self.enter(pid, number, &arguments) {
                    return;
                }
            }
            Cause::Exit(result) => self.leave(pid, result),
            Cause::Executed => {
                if !self.executed(pid) {
                    return;
                }
            }
            Cause::Signal(signal) => {
                gone_is_fine(trace::go_on(pid, signal));
                return;
            }
            Cause::Other | Cause::Ended(_) => {}
        }
        gone_is_fine(trace::go_on(pid, 0));
    }

    fn forget(&mut self, pid: i32) {
        if let Some(step) = self.processes.remove(&pid).and_then(|process| process.held) {
            self.emit(&step);
        }
    }

    fn made(&mut self, pid: i32, child: i32) {
        let Some(maker) = self.processes.get_mut(&pid) else { return };
        let mut flags = 0;
        if let Some(Pending::Call { call: Call::Clone { flags: new, .. }, made, .. }) = &mut maker.pending {
            flags = *new;
            *made = Some(child);
        }
        let (role, container) = (role_of_child(maker.who.role, flags), maker.who.container.clone());
        self.add(child, role, container);
        // The call returns when the new process has executed a program, and would be told after it.
        if flags & libc::CLONE_VFORK as u64 != 0 {
            self.leave(pid, child.into());
        }
        if self.waiting.remove(&child) {
            gone_is_fine(trace::go_on(child, 0));
        }
    }

    /// A call begins. False when the process is let go with it.
    fn enter(&mut self, pid: i32, number: i64, arguments: &[u64; 6]) -> bool {
        let Some(process) = self.processes.get_mut(&pid) else { return true };
        process.pending = None;
        if number == libc::SYS_socket && arguments[0] == libc::AF_NETLINK as u64 {
            process.pending = Some(Pending::Socket(arguments[2] as i32));
            return true;
        }
        if !is_of_interest(number) {
            return true;
        }
        let Some(call) = decode(number, arguments, &Watched { pid, learned: &self.learned }) else {
            return true;
        };
        let time = SystemTime::now();
        if is_on_its_own(&process.who, &call) {
            let step = Step { time, who: process.who.clone(), call, outcome: Outcome::Unseen, made: None };
            self.emit(&step);
            gone_is_fine(trace::detach(pid, 0));
            self.processes.remove(&pid);
            return false;
        }
        process.pending = Some(Pending::Call { time, call, argument: arguments[0], made: None });
        true
    }

    /// A call has returned.
    fn leave(&mut self, pid: i32, result: i64) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        match process.pending.take() {
            None => {}
            Some(Pending::Socket(protocol)) => {
                if let Ok(fd @ 0..) = i32::try_from(result) {
                    self.learned.socket(pid, fd, protocol);
                }
            }
            Some(Pending::Call { time, mut call, argument, made }) => {
                let outcome = Outcome::of(result);
                if outcome.is_success() {
                    self.learned.learn(pid, &call, argument, result);
                    if let Call::Capset { sets: sets @ None } = &mut call {
                        *sets = watched::capabilities(pid);
                    }
                    if let Some(name) = container_of(&call) {
                        process.who.container = Some(name);
                    }
                }
                let who = process.who.clone();
                self.step(Step { time, who, call, outcome, made });
            }
        }
    }

    /// Another program is about to run. False when it is the container's own, which is let go.
    fn executed(&mut self, pid: i32) -> bool {
        let Some(process) = self.processes.get_mut(&pid) else { return true };
        let Some(Pending::Call { call: Call::Execve { path, argv, environment, .. }, .. }) =
            &mut process.pending
        else {
            return true;
        };
        // Before, they could not be read.
        if argv.is_none()
            && let Some(program) = watched::program(pid)
        {
            (*path, *argv, *environment) = (Some(program.path), Some(program.argv), program.environment);
        }
        let words: Vec<&str> = argv.iter().flatten().map(String::as_str).take(2).collect();
        let becomes = match (process.who.role, &words[..]) {
            // Whatever the container's program is called.
            (Role::Program, _) => None,
            (role @ (Role::Supervisor | Role::Command), _) => Some(role),
            (_, [program::NAME, "join"]) => Some(Role::Joiner),
            (_, [program::NAME, _]) => Some(Role::Init),
            _ => None,
        };
        // Told as the step of what it was before.
        self.leave(pid, 0);
        match (self.processes.get_mut(&pid), becomes) {
            (Some(process), Some(role)) => {
                process.who.role = role;
                true
            }
            _ => {
                gone_is_fine(trace::detach(pid, 0));
                self.forget(pid);
                false
            }
        }
    }

    /// Tells a step, or holds it for the next one of its kind.
    fn step(&mut self, step: Step) {
        let Some(process) = self.processes.get_mut(&step.who.pid) else { return self.emit(&step) };
        if let (Some(held), Call::DropBounding { capabilities }) = (&mut process.held, &step.call)
            && let Call::DropBounding { capabilities: all } = &mut held.call
            && held.outcome == step.outcome
        {
            all.extend(capabilities);
            return;
        }
        let held = process.held.take();
        if let Some(held) = held {
            self.emit(&held);
        }
        match self.processes.get_mut(&step.who.pid) {
            Some(process) if matches!(step.call, Call::DropBounding { .. }) => process.held = Some(step),
            _ => self.emit(&step),
        }
    }

    fn emit(&mut self, step: &Step) {
        if is_search(step) {
            return;
        }
        if self.ending.is_some() {
            return;
        }
        if let Err(error) = (self.tell)(step) {
            if error.kind() != io::ErrorKind::BrokenPipe {
                eprintln!("warning: everything goes on, and its steps are not told any more: {error}");
            }
            self.let_go();
        }
    }
}

/// The part of a new process, by its maker's and the flags of the call.
fn role_of_child(maker: Role, flags: u64) -> Role {
    if flags & libc::CLONE_THREAD as u64 != 0 {
        return maker;
    }
    if flags & libc::CLONE_NEWUSER as u64 != 0 {
        return if maker == Role::Command { Role::Worker } else { Role::Hub };
    }
    if flags & libc::CLONE_NEWPID as u64 != 0 {
        return Role::Child;
    }
    match maker {
        Role::Init | Role::Joiner | Role::Program => Role::Program,
        _ => Role::Helper,
    }
}

/// Whether it is about to execute a program of the host's. Those are let go before: the rights that a file's mode or
/// capabilities give are not given to a process that somebody watches (execve(2)).
fn is_on_its_own(who: &Who, call: &Call) -> bool {
    let Call::Execve { path: Some(path), argv: Some(argv), .. } = call else { return false };
    let ours = argv.first().is_some_and(|name| name == program::NAME);
    who.role == Role::Helper && !ours && Path::new(path).exists()
}

/// Whether it only found out what is there: directories that exist already or have no parent yet, and a program that is
/// looked for in `PATH`; or is about a thread, or a file of our own that no container sees, such as those of layers.
fn is_search(step: &Step) -> bool {
    match (&step.call, step.outcome) {
        (Call::Clone { flags, .. }, _) => flags & libc::CLONE_THREAD as u64 != 0,
        (Call::Mkdir { .. } | Call::Mknod { .. } | Call::Symlink { .. }, _)
            if matches!(step.who.role, Role::Command | Role::Worker) =>
        {
            true
        }
        (Call::Mkdir { .. }, Outcome::Failed(libc::EEXIST | libc::ENOENT)) => true,
        (Call::Mkdir { path, .. }, _) => {
            step.who.role == Role::Supervisor && !path.as_deref().is_some_and(is_cgroup)
        }
        (Call::Execve { .. }, Outcome::Failed(libc::ENOENT | libc::ENOTDIR | libc::EACCES)) => true,
        _ => false,
    }
}

/// The container whose writable layer is mounted: `c/STACK/CONTAINER/u`.
fn container_of(call: &Call) -> Option<String> {
    let Call::Mount { data: Some(data), .. } = call else { return None };
    let upper = data.split(',').find_map(|option| option.strip_prefix("upperdir="))?;
    let mut names = upper.split('/');
    match [names.next(), names.next(), names.next(), names.next()] {
        [Some("c"), Some(_), Some(container), Some("u")] => Some(container.to_owned()),
        _ => None,
    }
}

/// A process may be killed while it is stopped; its end is told of next.
fn gone_is_fine(result: io::Result<()>) {
    if let Err(error) = result
        && error.raw_os_error() != Some(libc::ESRCH)
    {
        tracing::warn!("watch a process: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_by_who_makes_whom() {
        let all = (libc::CLONE_NEWUSER | libc::CLONE_NEWPID) as u64;
        assert_eq!(role_of_child(Role::Supervisor, all), Role::Hub);
        assert_eq!(role_of_child(Role::Command, all), Role::Worker);
        assert_eq!(role_of_child(Role::Worker, libc::CLONE_NEWPID as u64), Role::Child);
        assert_eq!(role_of_child(Role::Command, libc::CLONE_THREAD as u64), Role::Command);
        assert_eq!(role_of_child(Role::Supervisor, 0), Role::Helper);
        assert_eq!(role_of_child(Role::Hub, libc::CLONE_NEWPID as u64), Role::Child);
        assert_eq!(role_of_child(Role::Helper, libc::CLONE_NEWPID as u64), Role::Child);
        assert_eq!(role_of_child(Role::Init, 0), Role::Program);
    }

    #[test]
    fn what_only_looked_is_no_step() {
        let step = |role, call, outcome| Step {
            time: SystemTime::UNIX_EPOCH,
            who: Who { pid: 1, role, container: None },
            call,
            outcome,
            made: None,
        };
        let mkdir = |path: &str| Call::Mkdir { path: Some(path.to_owned()), mode: 0o755 };
        let done = Outcome::Returned(0);
        assert!(is_search(&step(Role::Hub, mkdir("/d/c"), Outcome::Failed(libc::EEXIST))));
        assert!(!is_search(&step(Role::Hub, mkdir("/d/c"), Outcome::Failed(libc::EROFS))));
        assert!(!is_search(&step(Role::Child, mkdir("/d/mnt/root/proc"), done)));
        assert!(is_search(&step(Role::Supervisor, mkdir("/run/x"), done)));
        assert!(!is_search(&step(Role::Supervisor, mkdir("/sys/fs/cgroup/x"), done)));
    }

    #[test]
    fn a_container_is_known_by_its_writable_layer() {
        let mount = |data: &str| Call::Mount {
            source: None,
            target: None,
            kind: None,
            flags: 0,
            data: Some(data.to_owned()),
        };
        assert_eq!(container_of(&mount("lowerdir=l/a,upperdir=c/s/web-1/u")), Some("web-1".to_owned()));
        assert_eq!(container_of(&mount("mode=755")), None);
    }
}
