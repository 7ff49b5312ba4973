//! The last steps of becoming the user's program: identity, capabilities, filter, exec.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use crate::account;
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
    /// User in Docker's syntax, see [`account::resolve`].
    pub user: String,
    /// Capabilities that it may have, as the bits of capabilities(7); a user other than root starts with
    /// none of them in effect.
    pub capabilities: u64,
    /// Set `no_new_privs`.
    pub no_new_privileges: bool,
    /// Resource limits as (`RLIMIT_` number, soft, hard).
    pub rlimits: Vec<(u32, u64, u64)>,
    /// It gets a terminal of the container's own devpts. Standard input is a [`sys::channel::Channel`] then, over
    /// which the other end is sent.
    pub terminal: bool,
}

/// Highest capability number that this was written against (`CAP_CHECKPOINT_RESTORE`).
const LAST_CAPABILITY: u32 = 40;

/// Magic number of the file system that pipes without a name are on (statfs(2)).
const PIPEFS_MAGIC: u64 = 0x5049_5045;

impl Process {
    /// Takes on the process's identity. Afterwards only [`Process::exec`] makes sense. `keep_open` is left
    /// open over exec; every other descriptor from 3 up is not.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn assume(&self, filters: &[Vec<u8>], keep_open: &[BorrowedFd<'_>]) -> Result<Assumed, Failure> {
        let account = account::resolve(&self.user).map_err(|e| Failure::new(Stage::User, &self.user, e))?;
        self.enter_working_directory()?;
        if self.terminal {
            terminal::take(&account).map_err(|e| Failure::new(Stage::Terminal, "in /dev/pts", e))?;
        }
        for (resource, soft, hard) in &self.rlimits {
            sys::process::set_rlimit(*resource, *soft, *hard)
                .map_err(|e| Failure::new(Stage::Rlimit, resource.to_string(), e))?;
        }
        give_stdio(&account);
        self.drop_privileges(&account)?;
        sys::fd::close_on_exec_from(3).map_err(|e| Failure::new(Stage::Setup, "close descriptors", e))?;
        for fd in keep_open {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())
                .map_err(|e| Failure::new(Stage::Setup, "keep a descriptor", e))?;
        }
        for filter in filters {
            sys::seccomp::load(filter).map_err(|e| Failure::new(Stage::Seccomp, "", e))?;
        }
        let mut env = self.env.clone();
        if !env.iter().any(|(key, _)| key == "HOME") {
            env.push(("HOME".into(), account.home));
        }
        Ok(Assumed { env })
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
        let kept = CapabilitySet::from_bits_retain(self.capabilities);
        for number in 0..=LAST_CAPABILITY {
            let one = CapabilitySet::from_bits_retain(1 << number);
            if kept.contains(one) {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(one) {
                // An older kernel does not know the highest numbers.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(e) => return Err(fail("capability bounding set")(e.into())),
            }
        }
        let gid = nix::unistd::Gid::from_raw(account.gid);
        let uid = nix::unistd::Uid::from_raw(account.uid);
        let groups: Vec<_> = account.groups.iter().map(|g| nix::unistd::Gid::from_raw(*g)).collect();
        nix::unistd::setgroups(&groups).map_err(|e| fail("supplementary groups")(e.into()))?;
        nix::unistd::setresgid(gid, gid, gid).map_err(|e| fail("group id")(e.into()))?;
        nix::unistd::setresuid(uid, uid, uid).map_err(|e| fail("user id")(e.into()))?;
        let permitted = if account.uid == 0 { kept } else { CapabilitySet::empty() };
        let sets = CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() };
        rustix::thread::clear_ambient_capability_set().map_err(|e| fail("ambient capabilities")(e.into()))?;
        rustix::thread::set_capabilities(None, sets).map_err(|e| fail("capabilities")(e.into()))?;
        rustix::thread::set_no_new_privs(self.no_new_privileges).map_err(|e| fail("no_new_privs")(e.into()))
    }
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
        let fail = |errno: rustix::io::Errno| Failure::new(Stage::Exec, program, errno);
        let (Some(args), Some(env)) = (c_strings(argv.iter().cloned()), self.environment()) else {
            return fail(rustix::io::Errno::INVAL);
        };
        let path =
            self.env.iter().find(|(key, _)| key == "PATH").map_or("/usr/bin:/bin", |(_, v)| v.as_str());
        fail(exec_in_path(program, path, &args, &env))
    }

    /// Replaces this program by the one open as `program` (`execveat(2)`).
    pub fn exec_fd(&self, program: BorrowedFd<'_>, argv: &[String]) -> Failure {
        let name = argv.first().map_or("", String::as_str);
        let (Some(args), Some(env)) = (c_strings(argv.iter().cloned()), self.environment()) else {
            return Failure::new(Stage::Exec, name, rustix::io::Errno::INVAL);
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
pub fn exec_in_path(program: &str, path: &str, args: &[CString], env: &[CString]) -> rustix::io::Errno {
    let attempt = |candidate: String| -> rustix::io::Errno {
        let Ok(candidate) = CString::new(candidate) else { return rustix::io::Errno::INVAL };
        let Err(errno) = nix::unistd::execve(&candidate, args, env);
        rustix::io::Errno::from_raw_os_error(errno as i32)
    };
    if program.is_empty() {
        return rustix::io::Errno::NOENT;
    }
    if program.contains('/') {
        return attempt(program.to_owned());
    }
    let mut result = rustix::io::Errno::NOENT;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        match attempt(format!("{directory}/{program}")) {
            rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => {}
            // Another directory may hold a program that can be executed (execvp(3)).
            errno @ rustix::io::Errno::ACCESS => result = errno,
            errno => return errno,
        }
    }
    result
}

fn c_strings(strings: impl Iterator<Item = String>) -> Option<Vec<CString>> {
    strings.map(|s| CString::new(s).ok()).collect()
}
