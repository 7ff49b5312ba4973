//! Files that a process can reach at most, whoever it is: Landlock (landlock(7)).

use std::io;

use rustix::fs::{FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};
use sys::landlock::Ruleset;
use sys::landlock::access::{
    ENTRIES, EXECUTE, IOCTL_DEV, OF_FILES, READ_DIR, READ_FILE, TRUNCATE, WRITE_FILE,
};

use crate::report::{Failure, Stage};

/// What may be read and written, everything else being denied. Metadata of files is not covered by Landlock: their
/// owners, modes and times can be seen, and changed by who may.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landlock {
    /// Files and directories, absolute, that may be read and executed with all below them.
    pub read: Vec<String>,
    /// Likewise what may be read and changed, but not executed.
    pub write: Vec<String>,
}

/// Before this version, files that may only be read could be truncated.
const LEAST_VERSION: u32 = 3;
const READ: u64 = READ_FILE | READ_DIR | EXECUTE;
const WRITE: u64 = READ_FILE | READ_DIR | WRITE_FILE | ENTRIES | TRUNCATE | IOCTL_DEV;

/// Whether this kernel can keep what [`Landlock`] promises.
///
/// # Errors
/// Why not.
pub fn available() -> Result<(), Failure> {
    let version = sys::landlock::version().map_err(|e| Failure::new(Stage::Landlock, "", e))?;
    if version >= LEAST_VERSION {
        return Ok(());
    }
    let detail = format!(": version {version} of it lets files be truncated that may only be read");
    Err(Failure::new(Stage::Landlock, detail, io::ErrorKind::Unsupported))
}

impl Landlock {
    /// Finds the files; done with the rights that the process still has. In force it is with [`Ruleset::enforce`].
    ///
    /// # Errors
    /// A kernel that cannot, a file that is not there.
    pub(crate) fn ruleset(&self) -> Result<Ruleset, Failure> {
        available()?;
        let all = READ | WRITE;
        // The newest right that is asked for came later than the least version.
        let ruleset = Ruleset::new(all)
            .or_else(|_| Ruleset::new(all & !IOCTL_DEV))
            .map_err(|e| Failure::new(Stage::Landlock, "", e))?;
        for (paths, access) in [(&self.read, READ), (&self.write, WRITE)] {
            for path in paths {
                allow(&ruleset, path, access)
                    .map_err(|e| Failure::new(Stage::Landlock, format!(": allow `{path}`"), e))?;
            }
        }
        Ok(ruleset)
    }
}

fn allow(ruleset: &Ruleset, path: &str, access: u64) -> io::Result<()> {
    use std::os::fd::AsFd;
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
    let access = if kind == FileType::Directory { access } else { access & OF_FILES };
    ruleset.allow(place.as_fd(), access)
}
