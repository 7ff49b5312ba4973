//! The last steps of becoming the user's program: identity, capabilities, filter, exec.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use crate::account;
use crate::landlock::Landlock;
use crate::obstacle::Obstacle;
use crate::procfs;
use crate::report::{Failure, Stage};
use crate::terminal;

/// A program and what it may do. Paths and names are those of the container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments; a program without a slash is looked for in `PATH`.
    pub argv: Vec<String>,
    /// Environment, complete but for `HOME`, which is added from the user's entry when missing.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Who it runs as.
    pub user: User,
    /// Groups besides the user's, as the container names or numbers them.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What it may do.
    pub capabilities: Capabilities,
    /// Set `no_new_privs`.
    pub no_new_privileges: bool,
    /// Resource limits as (`RLIMIT_` number, soft, hard).
    pub rlimits: Vec<(u32, u64, u64)>,
    /// It gets a terminal of the container's own devpts. Standard input is a [`sys::channel::Channel`] then, over
    /// which the other end is sent.
    pub terminal: bool,
    /// Its rows and columns.
    pub terminal_size: Option<(u16, u16)>,
    /// Execution domain, personality(2).
    pub personality: Option<u32>,
    /// AppArmor profile or SELinux context for the program.
    pub label: Option<Label>,
    /// Descriptors from 3 up that it gets.
    pub preserve_fds: u32,
    /// The files it can reach, if not all; needs `no_new_privileges`.
    pub landlock: Option<Landlock>,
    /// Instead of becoming a program it makes the calls of [`sys::probe::attempts`] and writes to standard output how
    /// each was answered. For processes that join a sandbox.
    #[serde(default)]
    pub attempts: bool,
}

/// Who a process runs as, in the container's ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum User {
    /// Docker's syntax, see [`account::resolve`].
    Named(String),
    /// As it stands.
    Ids {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// Supplementary groups; none given: those that the caller has.
        groups: Option<Vec<u32>>,
        /// File mode creation mask.
        umask: u32,
    },
}

impl Default for User {
    fn default() -> Self {
        Self::Named(String::new())
    }
}

/// What a process may do, as the bits of capabilities(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capabilities {
    /// Docker's rule: root starts with all of these, another user with none; programs can gain no others.
    Bounding(u64),
    /// Each set as it stands.
    Sets {
        /// What can be gained at the most.
        bounding: u64,
        /// What is in effect.
        effective: u64,
        /// What can be put into effect.
        permitted: u64,
        /// What survives execve(2) together with the file's own inheritable set.
        inheritable: u64,
        /// What survives execve(2) of any program.
        ambient: u64,
    },
}

impl Capabilities {
    /// The bounding set.
    pub fn bounding(&self) -> u64 {
        match self {
            Self::Bounding(bounding) | Self::Sets { bounding, .. } => *bounding,
        }
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self::Bounding(0)
    }
}

/// A label of a Linux security module that the program gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// An AppArmor profile.
    AppArmor(String),
    /// An SELinux context.
    SeLinux(String),
}

/// Highest capability number that this was written against (`CAP_CHECKPOINT_RESTORE`).
const LAST_CAPABILITY: u32 = 40;

/// Magic number of the file system that pipes without a name are on (statfs(2)).
const PIPEFS_MAGIC: u64 = 0x5049_5045;

impl Process {
    /// Takes on the process's identity. Afterwards only [`Process::exec`] makes sense. `keep_open` is left
    /// open over exec; every other descriptor above those that the process is to get is not. A filter that asks
    /// somebody about calls has that end sent over the socket `listener` as a message with [`LISTENER`] in it.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn assume(
        &self,
        filters: &[Filter],
        keep_open: &[BorrowedFd<'_>],
        listener: Option<BorrowedFd<'_>>,
    ) -> Result<Assumed, Failure> {
        let account = self.account()?;
        self.enter_working_directory()?;
        if self.terminal {
            terminal::take(&account, self.terminal_size)
                .map_err(|e| Failure::new(Stage::Terminal, "in /dev/pts", e))?;
        }
        for (resource, soft, hard) in &self.rlimits {
            sys::process::set_rlimit(*resource, *soft, *hard)
                .map_err(|e| Failure::new(Stage::Rlimit, resource.to_string(), e))?;
        }
        give_stdio(&account);
        if let Some(label) = &self.label {
            label.set_for_exec()?;
        }
        if let Some(persona) = self.personality {
            sys::process::set_personality(persona)
                .map_err(|e| Failure::new(Stage::Setup, "set the personality", e))?;
        }
        // Before any filter, which need not allow that.
        self.hand_down(keep_open)?;
        // Without no_new_privs only a process with CAP_SYS_ADMIN may load a filter (seccomp(2)).
        if !self.no_new_privileges {
            load(filters, listener)?;
        }
        let files = self.landlock.as_ref().map(Landlock::ruleset).transpose()?;
        self.drop_privileges(&account)?;
        if let Some(files) = files {
            files.enforce().map_err(|e| Failure::new(Stage::Landlock, "", e))?;
        }
        if self.no_new_privileges {
            load(filters, listener)?;
        }
        let mut env = self.env.clone();
        if !env.iter().any(|(key, _)| key == "HOME") {
            env.push(("HOME".into(), account.home));
        }
        Ok(Assumed { env })
    }

    fn account(&self) -> Result<account::Account, Failure> {
        match &self.user {
            User::Named(name) => {
                let mut account = account::resolve(name).map_err(|e| Failure::new(Stage::User, name, e))?;
                for group in &self.groups {
                    let gid = account::group(group).map_err(|e| Failure::new(Stage::User, group, e))?;
                    if !account.groups.contains(&gid) {
                        account.groups.push(gid);
                    }
                }
                Ok(account)
            }
            User::Ids { uid, gid, groups, .. } => {
                let groups = groups.clone().unwrap_or_default();
                let home =
                    || account::resolve(&uid.to_string()).map_or_else(|_| "/".into(), |found| found.home);
                let home = if self.env.iter().any(|(key, _)| key == "HOME") { String::new() } else { home() };
                Ok(account::Account { uid: *uid, gid: *gid, groups, home })
            }
        }
    }

    /// Which descriptors stay open over exec.
    fn hand_down(&self, keep_open: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let fail = |e: io::Error| Failure::new(Stage::Setup, "close descriptors", e);
        sys::fd::close_on_exec_from(3 + self.preserve_fds).map_err(fail)?;
        // Below that number are the caller's, which came to us open over exec, and ours, which all are not.
        for fd in keep_open {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).map_err(|e| fail(e.into()))?;
        }
        Ok(())
    }

    fn enter_working_directory(&self) -> Result<(), Failure> {
        let cwd = if self.cwd.is_empty() { "/" } else { &self.cwd };
        let fail = |e: io::Error| Failure::new(Stage::WorkingDirectory, cwd, e);
        rustix::process::chdir(cwd).map_err(|e| fail(e.into()))?;
        // A working directory outside the root shows as "(unreachable)/..." (CVE-2024-21626).
        let real = rustix::process::getcwd(Vec::new()).map_err(|e| fail(e.into()))?;
        if real.as_bytes().starts_with(b"/") { Ok(()) } else { Err(fail(io::ErrorKind::InvalidInput.into())) }
    }

    fn drop_privileges(&self, account: &account::Account) -> Result<(), Failure> {
        let fail = |what: &str| {
            let what = what.to_owned();
            move |e: io::Error| Failure::new(Stage::Credentials, what, e)
        };
        let kept = CapabilitySet::from_bits_retain(self.capabilities.bounding());
        for number in 0..=LAST_CAPABILITY {
            let one = CapabilitySet::from_bits_retain(1 << number);
            if kept.contains(one) {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(one) {
                // An older kernel does not know the highest numbers.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(e) => return Err(fail("capability bounding set")(e.into())),
            }
        }
        let gid = nix::unistd::Gid::from_raw(account.gid);
        let uid = nix::unistd::Uid::from_raw(account.uid);
        if !matches!(self.user, User::Ids { groups: None, .. }) {
            let groups: Vec<_> = account.groups.iter().map(|g| nix::unistd::Gid::from_raw(*g)).collect();
            match nix::unistd::setgroups(&groups) {
                // A user namespace whose maker had no right to change groups (user_namespaces(7)); none were asked for.
                Err(nix::errno::Errno::EPERM) if groups.is_empty() => {}
                other => other.map_err(|e| fail("supplementary groups")(e.into()))?,
            }
        }
        // The permitted set outlives the change of the user id, to be cut to size after it.
        rustix::thread::set_keep_capabilities(true).map_err(|e| fail("keep capabilities")(e.into()))?;
        nix::unistd::setresgid(gid, gid, gid).map_err(|e| fail("group id")(e.into()))?;
        nix::unistd::setresuid(uid, uid, uid).map_err(|e| fail("user id")(e.into()))?;
        rustix::thread::set_keep_capabilities(false).map_err(|e| fail("keep capabilities")(e.into()))?;
        let none = CapabilitySet::empty();
        let (sets, ambient) = match self.capabilities {
            Capabilities::Bounding(_) => {
                let permitted = if account.uid == 0 { kept } else { none };
                (CapabilitySets { effective: permitted, permitted, inheritable: none }, 0)
            }
            Capabilities::Sets { effective, permitted, inheritable, ambient, .. } => {
                let set = CapabilitySet::from_bits_retain;
                let (effective, permitted) = (set(effective), set(permitted));
                (CapabilitySets { effective, permitted, inheritable: set(inheritable) }, ambient)
            }
        };
        rustix::thread::clear_ambient_capability_set().map_err(|e| fail("ambient capabilities")(e.into()))?;
        rustix::thread::set_capabilities(None, sets).map_err(|e| fail("capabilities")(e.into()))?;
        for number in (0..=LAST_CAPABILITY).filter(|number| ambient & (1 << number) != 0) {
            let one = CapabilitySet::from_bits_retain(1 << number);
            rustix::thread::configure_capability_in_ambient_set(one, true)
                .map_err(|e| fail("ambient capabilities")(e.into()))?;
        }
        if let User::Ids { umask, .. } = self.user {
            rustix::process::umask(Mode::from_raw_mode(umask));
        }
        if self.no_new_privileges {
            // It can be set only, and a request to take it away is refused.
            rustix::thread::set_no_new_privs(true).map_err(|e| fail("no_new_privs")(e.into()))?;
        }
        Ok(())
    }

    /// Whether there is such a program, before it is executed.
    ///
    /// # Errors
    /// As [`Assumed::exec`].
    pub fn locate(&self) -> Result<(), Failure> {
        let program = self.argv.first().map_or("", String::as_str);
        let fail = |errno: Errno| Failure::new(Stage::Exec, program, errno);
        let path = search_path(&self.env);
        let exists = |candidate: &str| match rustix::fs::stat(candidate) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => Err(Errno::ACCESS),
            Ok(stat) if stat.st_mode & 0o111 == 0 => Err(Errno::ACCESS),
            other => other.map(drop),
        };
        if program.is_empty() {
            return Err(fail(Errno::NOENT));
        }
        if program.contains('/') {
            return exists(program).map_err(fail);
        }
        let mut result = Errno::NOENT;
        for directory in path.split(':') {
            let directory = if directory.is_empty() { "." } else { directory };
            match exists(&format!("{directory}/{program}")) {
                Ok(()) => return Ok(()),
                Err(errno @ Errno::ACCESS) => result = errno,
                Err(_) => {}
            }
        }
        Err(fail(result))
    }
}

/// A compiled seccomp program with the flags it is loaded with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Instructions, see [`sys::seccomp::load`].
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_` values of seccomp(2).
    pub flags: u32,
}

/// First byte of the message that brings the listening end of a filter.
pub const LISTENER: u8 = 0x4c;
/// First byte of the message that brings the cgroup namespace of a container.
pub const CGROUP_NAMESPACE: u8 = 0x43;

fn load(filters: &[Filter], listener: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let fail = |e: io::Error| Failure::new(Stage::Seccomp, "", e);
    for filter in filters {
        if let Some(end) = sys::seccomp::load(&filter.program, filter.flags).map_err(fail)? {
            let to = listener.ok_or_else(|| fail(Errno::NOTCONN.into()))?;
            sys::channel::send_fd(to, &[LISTENER], end.as_fd()).map_err(fail)?;
        }
    }
    Ok(())
}

impl Label {
    /// Has the next `execve(2)` change to the label (`/proc/self/attr/exec` of proc(5), and AppArmor's own directory).
    fn set_for_exec(&self) -> Result<(), Failure> {
        let (text, files): (String, &[&str]) = match self {
            Self::AppArmor(profile) => (format!("exec {profile}"), &["apparmor/exec", "exec"]),
            Self::SeLinux(context) => (context.clone(), &["exec"]),
        };
        let fail = |e: Errno| Failure::new(Stage::Label, text.as_str(), e);
        let write = |name: &str| procfs::write(&format!("{}/attr/{name}", std::process::id()), &text);
        let mut result = Err(Errno::NOENT);
        for name in files {
            result = write(name);
            if !matches!(result, Err(Errno::NOENT)) {
                break;
            }
        }
        result.map_err(fail)
    }
}

/// Becomes root of a user namespace that was just entered; other ids mean nothing there. The process is dumpable or not as
/// `/proc/sys/fs/suid_dumpable` says afterwards (prctl(2)).
///
/// # Errors
/// When 0 has no meaning there.
pub fn become_root() -> Result<(), Failure> {
    let fail =
        |e: nix::errno::Errno| Failure::new(Stage::Credentials, "become root of the user namespace", e);
    nix::unistd::setresgid(0.into(), 0.into(), 0.into()).map_err(fail)?;
    nix::unistd::setresuid(0.into(), 0.into(), 0.into()).map_err(fail)
}

/// Gives the pipes that are standard input, output and error to the process's user, who may want to open
/// `/dev/stderr` (and so the pipe) again. A fifo with a name stays with its owner on the host. What cannot be given
/// stays as it is: the descriptor itself works in any case.
fn give_stdio(account: &account::Account) {
    use rustix::fs::{Gid, Uid, fchown, fstatfs};
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        if fstatfs(fd).is_ok_and(|system| system.f_type as u64 == PIPEFS_MAGIC) {
            match fchown(fd, Some(uid), Some(gid)) {
                Ok(()) | Err(_) => {}
            }
        }
    }
}

/// Proof that [`Process::assume`] came first.
#[derive(Debug)]
pub struct Assumed {
    env: Vec<(String, String)>,
}

impl Assumed {
    /// Replaces this program by `argv`, as `execvp(3)` does with this process's own `PATH`.
    pub fn exec(&self, argv: &[String]) -> Failure {
        let program = argv.first().map_or("", String::as_str);
        let (Some(args), Some(env)) = (c_strings(argv.iter().cloned()), self.environment()) else {
            return Failure::new(Stage::Exec, program, Errno::INVAL);
        };
        exec_in_path(program, search_path(&self.env), &args, &env)
    }

    /// Replaces this program by the one open as `program` (`execveat(2)`).
    pub fn exec_fd(&self, program: BorrowedFd<'_>, argv: &[String]) -> Failure {
        let name = argv.first().map_or("", String::as_str);
        let (Some(args), Some(env)) = (c_strings(argv.iter().cloned()), self.environment()) else {
            return Failure::new(Stage::Exec, name, Errno::INVAL);
        };
        let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
        let Err(errno) = nix::unistd::execveat(program, c"", &args, &env, flags);
        Failure::new(Stage::Exec, name, io::Error::from(errno))
    }

    fn environment(&self) -> Option<Vec<CString>> {
        c_strings(self.env.iter().map(|(key, value)| format!("{key}={value}")))
    }
}

/// Replaces this program by `program`, looked for in `path` unless it holds a slash. Returns why not.
pub fn exec_in_path(program: &str, path: &str, args: &[CString], env: &[CString]) -> Failure {
    let refused = |errno: Errno| Failure::new(Stage::Exec, program, errno);
    let attempt = |candidate: String| -> (Errno, Failure) {
        let Ok(candidate) = CString::new(candidate) else { return (Errno::INVAL, refused(Errno::INVAL)) };
        let Err(errno) = nix::unistd::execve(&candidate, args, env);
        let errno = Errno::from_raw_os_error(errno as i32);
        (errno, Failure { obstacle: Obstacle::at(&candidate, errno), ..refused(errno) })
    };
    if program.is_empty() {
        return refused(Errno::NOENT);
    }
    if program.contains('/') {
        return attempt(program.to_owned()).1;
    }
    let mut result = refused(Errno::NOENT);
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        match attempt(format!("{directory}/{program}")) {
            (Errno::NOENT | Errno::NOTDIR, Failure { obstacle: None, .. }) => {}
            // Another directory may hold a program that can be executed (execvp(3)).
            (Errno::NOENT | Errno::ACCESS, failure) => result = failure,
            (_, failure) => return failure,
        }
    }
    result
}

/// Where a program without a slash is looked for.
fn search_path(env: &[(String, String)]) -> &str {
    env.iter().find(|(key, _)| key == "PATH").map_or("/usr/bin:/bin", |(_, value)| value.as_str())
}

fn c_strings(strings: impl Iterator<Item = String>) -> Option<Vec<CString>> {
    strings.map(|s| CString::new(s).ok()).collect()
}
