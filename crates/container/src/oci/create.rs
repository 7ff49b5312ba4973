//! `create`: the parent's side of making a container.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use init::process::become_root;
use init::report::{Failure, Outcome, Stage, send_started};
use oci_spec::runtime::Spec;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sys::channel::Channel;
use sys::process::{Child, SpawnArgs, namespace};

use super::child::{self, Surroundings};
use super::console;
use super::error::Error;
use super::exec::Defaults;
use super::mounts::{Ids, open_binds, open_root};
use super::plan::{self, Plan};
use super::state::{Directory, Record, START, Status, start_time};
use super::{Console, Create, Runtime, config, hooks, namespaces, netdev};
use crate::cgroup::{Cgroup, Placement};
use crate::idmap::IdMap;
use crate::{launch, userns};

/// Bytes of the state that a hook reads, at the most: it travels in one message.
pub(super) const STATE_LIMIT: usize = 128 * 1024;
/// How long the new process may take until it waits for its start; `createContainer` hooks run meanwhile.
const READY_DEADLINE: Duration = Duration::from_secs(600);

impl Runtime {
    /// Makes a container from its bundle. Its program waits until [`Runtime::start`].
    ///
    /// # Errors
    /// What is wrong with `config.json`, an id that is taken, and the step that failed; nothing of the container is
    /// left then.
    pub fn create(&self, mut request: Create) -> Result<i32, Error> {
        let bundle = fs::canonicalize(&request.bundle)
            .map_err(Error::system(format!("find the bundle {}", request.bundle.display())))?;
        let passed = passed_sockets();
        request.preserve_fds = request.preserve_fds.max(passed);
        let spec = config::load(&request.config.clone().unwrap_or_else(|| bundle.join("config.json")))?;
        let mut plan = plan::resolve(&spec, &bundle)?;
        if !rustix::process::geteuid().is_root() {
            plan.namespaces.for_an_ordinary_user();
        }
        if let Some(program) = plan.program.as_mut().filter(|_| passed > 0) {
            program.process.env.push(("LISTEN_FDS".into(), passed.to_string()));
            program.process.env.push(("LISTEN_PID".into(), "1".into()));
        }
        check_console(&plan, &request.console)?;
        check_host(&plan)?;
        let directory = Directory::create(&self.root, &request.id)?;
        match self.make(&directory, &spec, &plan, bundle, request) {
            Ok(pid) => Ok(pid),
            Err(error) => {
                directory.remove()?;
                Err(error)
            }
        }
    }

    fn make(
        &self,
        directory: &Directory,
        spec: &Spec,
        plan: &Plan,
        bundle: PathBuf,
        request: Create,
    ) -> Result<i32, Error> {
        let rootfs = fs::canonicalize(&plan.rootfs)
            .map_err(Error::system(format!("find root.path {}", plan.rootfs.display())))?;
        let mut placement =
            Placement::for_container(plan.cgroups_path.as_deref(), &request.id, self.systemd)?;
        directory.store_place(&placement)?;
        let cgroup = placement.prepare(&plan.resources)?;
        let mut record = Record {
            oci_version: plan.oci_version.clone(),
            id: request.id.clone(),
            pid: 0,
            start_time: 0,
            rootfs,
            bundle,
            created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
            owner: rustix::process::getuid().as_raw(),
            annotations: plan.annotations.clone(),
            cgroup: placement,
            namespaces: plan.namespaces.all(),
            own_pids: plan.namespaces.makes(namespace::PID),
            poststart: plan.hooks.poststart.clone(),
            poststop: plan.hooks.poststop.clone(),
            defaults: Defaults::of(spec),
        };
        match launch_container(directory, plan, &mut record, cgroup.as_ref(), self.acts_as_init, request) {
            Ok(()) => Ok(record.pid),
            Err(error) => {
                give_up(&record.cgroup);
                Err(error)
            }
        }
    }
}

/// How many sockets were passed to this process to be passed on (sd_listen_fds(3)).
fn passed_sockets() -> u32 {
    std::env::var("LISTEN_FDS").ok().and_then(|number| number.parse().ok()).filter(|n| *n < 1024).unwrap_or(0)
}

/// Removes the cgroup of a container that could not be made. The error on the way matters more than this one.
fn give_up(placement: &Placement) {
    if let Err(error) = placement.remove() {
        tracing::warn!("remove the cgroup of a container that could not be made: {error}");
    }
}

fn check_console(plan: &Plan, console: &Console) -> Result<(), Error> {
    let terminal = plan.program.as_ref().is_some_and(|program| program.terminal.is_some());
    match (terminal, console) {
        (true, Console::None) => Err(Error::invalid("process.terminal", "needs a console socket")),
        (false, Console::Socket(_)) => {
            Err(Error::invalid("process.terminal", "is not set, but there is a console socket"))
        }
        _ => Ok(()),
    }
}

/// What depends on this host, before anything is made.
fn check_host(plan: &Plan) -> Result<(), Error> {
    use init::process::Label;
    let selinux = || Path::new("/sys/fs/selinux/enforce").exists();
    if let Some(label) = plan.mount_label.as_ref().filter(|_| !selinux()) {
        return Err(Error::unsupported("linux.mountLabel", format!("`{label}`: this host has no SELinux")));
    }
    match plan.program.as_ref().and_then(|program| program.process.label.as_ref()) {
        Some(Label::AppArmor(profile)) if !enabled("/sys/module/apparmor/parameters/enabled", "Y") => Err(
            Error::unsupported("process.apparmorProfile", format!("`{profile}`: this host has no AppArmor")),
        ),
        Some(Label::SeLinux(context)) if !selinux() => {
            Err(Error::unsupported("process.selinuxLabel", format!("`{context}`: this host has no SELinux")))
        }
        _ => Ok(()),
    }
}

fn enabled(file: &str, value: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.trim() == value)
}

fn launch_container(
    directory: &Directory,
    plan: &Plan,
    record: &mut Record,
    cgroup: Option<&Cgroup>,
    acts_as_init: bool,
    request: Create,
) -> Result<(), Error> {
    let start = listen(directory)?;
    let console = console::connect(request.console)?;
    let joined = plan.namespaces.open()?;
    // A user namespace's root may not be able to walk where the bundle is; only somebody above it can map owners.
    let from_above = plan.namespaces.another_user() && rustix::process::geteuid().is_root();
    let root = if from_above {
        let path = &record.rootfs;
        Some(open_root(path).map_err(Error::system(format!("open root.path {}", path.display())))?)
    } else {
        None
    };
    let owners = plan.namespaces.ids.as_ref();
    let binds = open_binds(&plan.mounts, from_above, |ids| match ids {
        Ids::Unmapped => Ok(None),
        Ids::Own { map, .. } => user_namespace(map).map(Some),
        Ids::Container { .. } => match owners {
            Some(map) => user_namespace(map).map(Some),
            None => Err(Error::invalid("mounts", "idmap needs a new user namespace or mappings of its own")),
        },
    })?;
    let (ours, theirs) = Channel::pair().map_err(Error::system("create a socket pair"))?;
    let oom = Adjusted::set(plan.program.as_ref().and_then(|program| program.scheduling.oom_score_adj))?;
    let around = Surroundings {
        plan,
        id: &request.id,
        joined: &joined,
        root: root.as_ref(),
        binds: &binds,
        acts_as_init,
        channel: theirs.as_fd(),
        start: start.as_fd(),
        console: console.as_ref(),
        preserve_fds: request.preserve_fds,
        no_pivot: request.no_pivot,
        no_new_keyring: request.no_new_keyring,
    };
    let mut ours = Some(ours);
    let child = spawn(&around, cgroup, &mut ours)?;
    let ours = ours.ok_or(crate::Error::Silent)?;
    oom.restore()?;
    drop(theirs);
    let mut made = || -> Result<(), Error> {
        record.pid = child.pid;
        accompany(plan, record, &child, ours.as_fd())?;
        record.start_time = start_time(child.pid).ok_or(crate::Error::Silent)?;
        if let Some(path) = &request.pid_file {
            write_pid(path, child.pid)?;
        }
        directory.store(record)?;
        // Until here it ends with us; from now on others know of it.
        rustix::io::write(&ours, b"kept").map_err(|e| Error::system("let the new process wait")(e.into()))?;
        Ok(())
    };
    made().inspect_err(|_| end(&child))
}

/// The socket on which the container waits for `start`.
fn listen(directory: &Directory) -> Result<OwnedFd, Error> {
    let listen = || -> io::Result<OwnedFd> {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(directory.short_path(START))?)?;
        rustix::net::listen(&socket, 1)?;
        Ok(socket)
    };
    listen().map_err(Error::system("make the start socket"))
}

/// A user namespace with this map, for mapping owners; it has no process.
fn user_namespace(map: &IdMap) -> Result<OwnedFd, Error> {
    let fail = |what: &'static str| Error::system(what);
    let (ours, theirs) = Channel::pair().map_err(fail("create a socket pair"))?;
    let mut ours = Some(ours);
    let holder = sys::process::spawn(namespace::USER, || {
        drop(ours.take());
        match sys::channel::recv_fds(theirs.as_fd(), 1) {
            Ok(_) => 0,
            Err(_) => 1,
        }
    })
    .map_err(fail("create a user namespace for mapping owners"))?;
    let namespace = userns::write_map(map, holder.pid).map_err(Error::from).and_then(|()| {
        fs::File::open(format!("/proc/{}/ns/user", holder.pid))
            .map(OwnedFd::from)
            .map_err(fail("open the user namespace"))
    });
    userns::end(&holder).map_err(fail("end the holder of a user namespace"))?;
    namespace
}

/// The out-of-memory score is inherited, and only who has the right to may lower it: so this process has it for a moment.
struct Adjusted(Option<String>);

impl Adjusted {
    const FILE: &str = "/proc/self/oom_score_adj";

    fn set(adjust: Option<i32>) -> Result<Self, Error> {
        let Some(adjust) = adjust else { return Ok(Self(None)) };
        let before = fs::read_to_string(Self::FILE).map_err(Error::system(format!("read {}", Self::FILE)))?;
        fs::write(Self::FILE, adjust.to_string())
            .map_err(Error::system(format!("set process.oomScoreAdj to {adjust}")))?;
        Ok(Self(Some(before)))
    }

    fn restore(self) -> Result<(), Error> {
        match self.0 {
            Some(before) => {
                fs::write(Self::FILE, before.trim()).map_err(Error::system(format!("write {}", Self::FILE)))
            }
            None => Ok(()),
        }
    }
}

/// Namespaces that a process does not enter itself, only its children do.
const FOR_CHILDREN: u64 = namespace::PID | namespace::TIME;

/// Makes the container's first process. What is to own its other namespaces must be entered before they are made, and
/// some are entered by children only: then a process in between does that and ends.
///
/// `ours` is the parent's end of the channel. The new processes let go of it, so that they notice when the parent dies.
fn spawn(
    around: &Surroundings<'_>,
    cgroup: Option<&Cgroup>,
    ours: &mut Option<Channel>,
) -> Result<Child, Error> {
    let names = &around.plan.namespaces;
    // See enter() of the child for the cgroup namespace.
    let new = names.new & !namespace::CGROUP;
    let joins_user = names.joined.iter().any(|(kind, _)| *kind == namespace::USER);
    let children_only =
        around.joined.iter().any(|(kind, _)| kind & FOR_CHILDREN != 0) || new & namespace::TIME != 0;
    let body = || {
        let failure = child::run(around);
        failure.send(around.channel);
        failure.exit_code()
    };
    let cgroup = cgroup.map(AsFd::as_fd);
    if !joins_user && !children_only {
        let child = sys::process::spawn_with(SpawnArgs { namespaces: new, cgroup, sibling: false }, || {
            drop(ours.take());
            body()
        })
        .map_err(Error::system("create the namespaces of the container"))?;
        map_ids(names, child.pid).inspect_err(|_| end(&child))?;
        return Ok(child);
    }
    let rest = new & !namespace::USER & !namespace::TIME;
    let between = || -> Result<(), Failure> {
        if names.makes(namespace::USER) {
            wait(around.channel)?;
        }
        for_children(around, joins_user)?;
        let child = sys::process::spawn_with(SpawnArgs { namespaces: rest, cgroup, sibling: true }, body)
            .map_err(|e| Failure::new(Stage::Namespace, "new namespaces", e))?;
        send_started(around.channel, child.pid).map_err(|e| Failure::new(Stage::Setup, "report", e))
    };
    let stage = sys::process::spawn_with(
        SpawnArgs { namespaces: new & namespace::USER, cgroup: None, sibling: false },
        || {
            drop(ours.take());
            match between() {
                Ok(()) => 0,
                Err(failure) => {
                    failure.send(around.channel);
                    failure.exit_code()
                }
            }
        },
    )
    .map_err(Error::system("create the namespaces of the container"))?;
    let started = || -> Result<i32, Error> {
        let ours = ours.as_ref().ok_or(crate::Error::Silent)?.as_fd();
        map_ids(names, stage.pid)?;
        if names.makes(namespace::USER) {
            rustix::io::write(ours, b"mapped")
                .map_err(|e| Error::system("tell the new process")(e.into()))?;
        }
        match launch::receive(ours) {
            Ok(Outcome::Started(pid)) => Ok(pid),
            outcome => Err(launch::refused(outcome, "container").into()),
        }
    };
    let pid = started().inspect_err(|_| end(&stage))?;
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(stage.pid), None)
        .map_err(|e| Error::system("wait for the intermediate process")(e.into()))?;
    Ok(userns::adopt(pid)?)
}

fn end(child: &Child) {
    if let Err(error) = userns::end(child) {
        tracing::warn!("end process {}: {error}", child.pid);
    }
}

fn wait(channel: BorrowedFd<'_>) -> Result<(), Failure> {
    let receive = || -> io::Result<()> {
        sys::channel::wait_readable(channel, Instant::now() + READY_DEADLINE)?;
        let message = sys::channel::recv_fds(channel, 16)?;
        if message.bytes.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    };
    receive().map_err(|e| Failure::new(Stage::Setup, "wait for the id map", e))
}

/// In the process between: enters the user namespace and what only its children will be in.
fn for_children(around: &Surroundings<'_>, joins_user: bool) -> Result<(), Failure> {
    let names = &around.plan.namespaces;
    let fail = |what: &'static str| move |e: rustix::io::Errno| Failure::new(Stage::Namespace, what, e);
    let join = |kind: u64, link: LinkNameSpaceType, what: &'static str| match around
        .joined
        .iter()
        .find(|(joined, _)| *joined == kind)
    {
        Some((_, fd)) => move_into_link_name_space(fd.as_fd(), Some(link)).map_err(fail(what)),
        None => Ok(()),
    };
    join(namespace::USER, LinkNameSpaceType::User, "the user namespace of linux.namespaces")?;
    if joins_user || names.makes(namespace::USER) {
        become_root()?;
    }
    join(namespace::PID, LinkNameSpaceType::ProcessID, "the PID namespace of linux.namespaces")?;
    join(namespace::TIME, LinkNameSpaceType::Time, "the time namespace of linux.namespaces")?;
    if names.makes(namespace::TIME) {
        nix::sched::unshare(nix::sched::CloneFlags::from_bits_retain(namespace::TIME as i32))
            .map_err(|e| Failure::new(Stage::Namespace, "a new time namespace", e))?;
        namespaces::write_time_offsets(&names.time_offsets)
            .map_err(|e| Failure::new(Stage::Namespace, "linux.timeOffsets", e))?;
    }
    Ok(())
}

fn map_ids(names: &namespaces::Namespaces, pid: i32) -> Result<(), Error> {
    match &names.ids {
        Some(map) => Ok(userns::write_container_map(map, pid)?),
        None => Ok(()),
    }
}

/// Everything that the parent does between the birth of the process and its readiness.
fn accompany(plan: &Plan, record: &mut Record, child: &Child, channel: BorrowedFd<'_>) -> Result<(), Error> {
    record.cgroup.admit(child.pid, &plan.resources)?;
    if let Some(program) = &plan.program
        && program.scheduling.is_needed()
    {
        program.scheduling.apply(child.pid)?;
    }
    netdev::move_all(&plan.net_devices, child.pid)?;
    if !plan.hooks.prestart.is_empty() {
        hooks::run("prestart", &plan.hooks.prestart, &hooks::state(record, Status::Created))?;
    }
    let state = hooks::state(record, Status::Creating);
    hooks::run("createRuntime", &plan.hooks.create_runtime, &state)?;
    if state.len() > STATE_LIMIT {
        return Err(Error::invalid("annotations", format!("are larger than {STATE_LIMIT} bytes")));
    }
    match rustix::io::write(channel, state.as_bytes()) {
        // It has ended: what it said is to be read.
        Ok(_) | Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {}
        Err(errno) => return Err(Error::system("let the new process go on")(errno.into())),
    }
    sys::channel::wait_readable(channel, Instant::now() + READY_DEADLINE)
        .map_err(Error::system("wait until the container is ready"))?;
    match init::report::receive(channel) {
        Ok(Outcome::Waiting) => Ok(()),
        Ok(Outcome::Executed) => Err(crate::Error::Silent.into()),
        outcome => Err(launch::refused(outcome, "container").into()),
    }
}

/// Whole or not at all: who waits for the file reads it at once.
pub(super) fn write_pid(path: &Path, pid: i32) -> Result<(), Error> {
    let fail = || Error::system(format!("write the pid file {}", path.display()));
    let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name());
    let name = name.ok_or_else(|| fail()(io::ErrorKind::InvalidInput.into()))?;
    let new = parent.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&new)?;
        file.write_all(pid.to_string().as_bytes())?;
        fs::rename(&new, path)
    };
    write().map_err(|error| {
        match fs::remove_file(&new) {
            Ok(()) | Err(_) => {}
        }
        fail()(error)
    })
}
