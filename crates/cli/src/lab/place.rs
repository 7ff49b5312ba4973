//! The directory of a lab: what is put there, and how it goes.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use stack::RemoteError;

use super::catalogue::Lab;
use crate::down::{Down, down};
use crate::output::Failure;
use crate::session::Session;

/// Says that a directory is ours to delete, and of which lab it is.
const MARK: &str = ".inception-lab";
/// How a lab's files name the root file system that is made here.
const ROOTFS: [&str; 2] = ["rootfs = \"rootfs\"", "FROM scratch\nCOPY rootfs/ /\n"];
/// The same where there is no busybox to make one of.
const IMAGE: [&str; 2] = ["image = \"busybox:stable\"", "FROM busybox:stable\n"];

/// A directory in which a lab was prepared.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
}

impl Place {
    /// The lab's directory: this one, or `lab-N` in it.
    pub(super) fn find(lab: &Lab) -> Option<Self> {
        let here = std::env::current_dir().ok()?;
        let marked = |directory: &PathBuf| {
            fs::read_to_string(directory.join(MARK)).is_ok_and(|mark| mark.trim() == lab.number.to_string())
        };
        let below = here.join(lab.directory());
        [here, below].into_iter().find(marked).map(|directory| Self { directory })
    }

    /// Makes `lab-N` with the lab's files.
    pub(super) fn make(lab: &Lab) -> Result<Self, Failure> {
        let here = std::env::current_dir().map_err(Failure::system("find the current directory"))?;
        let place = Self { directory: here.join(lab.directory()) };
        let name = place.directory.display().to_string();
        fs::create_dir(&place.directory).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Failure::from(
                RemoteError::message(format!("`{name}` is there and was not made by `inception-run lab`"))
                    .or_hint("go to another directory, or move that one away"),
            ),
            _ => Failure::system(&format!("make `{name}`"))(error),
        })?;
        place.write(MARK, &format!("{}\n", lab.number))?;
        let busybox = find_program("busybox").filter(|path| is_static(path));
        for (file, content) in lab.files {
            let content = match &busybox {
                Some(_) => (*content).to_owned(),
                None => content.replace(ROOTFS[0], IMAGE[0]).replace(ROOTFS[1], IMAGE[1]),
            };
            place.write(file, &content)?;
        }
        let wants_rootfs =
            lab.files.iter().any(|(_, content)| ROOTFS.iter().any(|line| content.contains(line)));
        if let Some(busybox) = busybox.filter(|_| wants_rootfs) {
            make_rootfs(&busybox, &place.directory.join("rootfs"))?;
        }
        Ok(place)
    }

    fn write(&self, file: &str, content: &str) -> Result<(), Failure> {
        let path = self.directory.join(file);
        let failed = || format!("write `{}`", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Failure::system(&failed()))?;
        }
        fs::write(&path, content).map_err(Failure::system(&failed()))?;
        let mode = if content.starts_with("#!") { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(Failure::system(&failed()))
    }

    /// Takes the lab's stack down, and its volumes. Its name is known, so that a file that the reader has broken does
    /// not matter.
    pub(super) fn take_down(&self, session: &Session, lab: &Lab) -> Result<(), Failure> {
        down(&session.of_stack(lab.stack())?, &Down::with_volumes())?;
        Ok(())
    }

    /// Deletes it.
    pub(super) fn delete(&self) -> Result<(), Failure> {
        delete_tree(&self.directory)
    }
}

/// Deletes a directory; overlayfs leaves some in it that even their owner may not read.
pub(super) fn delete_tree(directory: &Path) -> Result<(), Failure> {
    fn open_up(directory: &Path) -> std::io::Result<()> {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open_up(&entry.path())?;
            }
        }
        Ok(())
    }
    open_up(directory)
        .and_then(|()| fs::remove_dir_all(directory))
        .map_err(Failure::system(&format!("delete `{}`", directory.display())))
}

/// A root file system of one program and its names.
fn make_rootfs(busybox: &Path, rootfs: &Path) -> Result<(), Failure> {
    let failed = "make a root file system of busybox";
    for directory in ["bin", "dev", "etc", "proc", "root", "srv", "sys", "tmp"] {
        fs::create_dir_all(rootfs.join(directory)).map_err(Failure::system(failed))?;
    }
    // Everybody's, as the sticky bit says.
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777))
        .map_err(Failure::system(failed))?;
    fs::copy(busybox, rootfs.join("bin/busybox")).map_err(Failure::system(failed))?;
    for (file, content) in [("passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("group", "root:x:0:\n")] {
        fs::write(rootfs.join("etc").join(file), content).map_err(Failure::system(failed))?;
    }
    // Where a lab mounts the host's /usr, its programs find their libraries.
    for name in ["lib", "lib64"] {
        symlink(format!("usr/{name}"), rootfs.join(name)).map_err(Failure::system(failed))?;
    }
    let names =
        Command::new(busybox).arg("--list").output().map_err(Failure::system("run `busybox --list`"))?;
    for name in String::from_utf8_lossy(&names.stdout).lines().filter(|name| *name != "busybox") {
        symlink("busybox", rootfs.join("bin").join(name)).map_err(Failure::system(failed))?;
    }
    Ok(())
}

/// Looks in `$PATH`, and where `ip` and others are.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|place| place.join(name)).find(|file| {
        fs::metadata(file)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

/// Whether a program runs without libraries: it has no interpreter (elf(5), `PT_INTERP`).
fn is_static(program: &Path) -> bool {
    let mut bytes = Vec::new();
    // Program headers follow the header of the file.
    let read = fs::File::open(program).and_then(|file| file.take(4096).read_to_end(&mut bytes));
    read.is_ok() && bytes.starts_with(b"\x7fELF") && !has_interpreter(&bytes).unwrap_or(true)
}

/// `None` where it is no 64-bit little-endian ELF file, or cut short.
fn has_interpreter(bytes: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    if bytes.get(4..6)? != [2, 1] {
        return None;
    }
    let start = usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
    for index in 0..count {
        let at = start.checked_add(index * size)?;
        let kind = u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_has_an_interpreter_as_its_kind_says() {
        assert!(!is_static(Path::new("/nonexistent")));
        assert!(!is_static(Path::new("/etc/passwd")));
        assert_eq!(has_interpreter(b"\x7fELF\x02\x01"), None);
        let busybox = find_program("busybox");
        assert!(busybox.is_none_or(|path| is_static(&path) || path.is_file()));
        assert!(find_program("sh").is_some() && find_program("no such program").is_none());
    }

    #[test]
    fn what_nobody_may_read_is_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir_all(tree.join("work/work")).unwrap();
        fs::write(tree.join("work/work/file"), "x").unwrap();
        fs::set_permissions(tree.join("work/work"), fs::Permissions::from_mode(0o000)).unwrap();
        delete_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
