//! Which project a stack is of. Two projects whose directories are called the same give their stacks the same name, and
//! neither may be taken for the other: not while one of them runs, and not in what it left in its volumes.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::paths::Paths;
use crate::remote::RemoteError;

/// In the runtime directory of a stack that runs.
const IN_RUNTIME: &str = "origin.json";
/// Beside a stack's volumes. No volume can be called so.
const BESIDE_VOLUMES: &str = "=origin.json";
/// Largest record that is read, in bytes.
const MAX_RECORD: u64 = 1 << 20;

/// Where a stack comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Directory of the project, absolute and without symbolic links.
    pub directory: PathBuf,
    /// The stack's files, absolute; none where they were read from standard input.
    pub files: Vec<PathBuf>,
}

impl Origin {
    /// Writes down that the stack which runs is of this project. `runtime` is its runtime directory.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn keep(&self, runtime: &Path) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(runtime.join(IN_RUNTIME));
        file?.write_all(&serde_json::to_vec(self)?)
    }

    /// The same for a stack's volumes: a file, relative to the data directory, and what is to be in it. The data
    /// directory's owner has to write it.
    ///
    /// # Errors
    /// When a path is not Unicode.
    pub(crate) fn beside_volumes(&self, stack: &str) -> io::Result<(String, String)> {
        Ok((volumes_record(stack), serde_json::to_string(self)?))
    }

    /// Checks that the stack of this name, which runs, is this project's.
    ///
    /// # Errors
    /// When it is another one's.
    pub fn check_running(&self, paths: &Paths, stack: &str) -> Result<(), RemoteError> {
        let recorded = read(&paths.stack(stack).join(IN_RUNTIME));
        self.check(recorded, stack, || format!("stack `{stack}` runs, and is another project's"))
    }

    /// Checks that the volumes of the stack of this name, if it has any, are this project's.
    ///
    /// # Errors
    /// When they are another one's.
    pub fn check_volumes(&self, paths: &Paths, stack: &str) -> Result<(), RemoteError> {
        let recorded = read(&paths.data.join(volumes_record(stack)));
        self.check(recorded, stack, || format!("the volumes of stack `{stack}` are another project's"))
    }

    /// What has no record that can be read is this project's, as what older versions left is.
    fn check(
        &self,
        recorded: Option<Self>,
        stack: &str,
        message: impl FnOnce() -> String,
    ) -> Result<(), RemoteError> {
        let Some(other) = recorded.filter(|other| other.is_another_than(self)) else { return Ok(()) };
        Err(RemoteError::message(message())
            .caused_by(format!(
                "the other one is in {}, this one in {}",
                other.directory.display(),
                self.directory.display()
            ))
            .or_hint(format!(
                "give this one another name, by `-p OTHER` or `name` in its file; `-p {stack}` means that one"
            )))
    }

    /// Whether this is another project, which is still there. One that has moved is found under its new name.
    fn is_another_than(&self, ours: &Self) -> bool {
        // Standard input is no place.
        !ours.files.is_empty()
            && self.files.iter().any(|file| !is_gone(file))
            && !is_same(&self.directory, &ours.directory)
    }
}

fn volumes_record(stack: &str) -> String {
    format!("{}/{BESIDE_VOLUMES}", crate::spec::volumes_directory(stack))
}

fn read(path: &Path) -> Option<Origin> {
    // What is in the data directory is not only this user's to write.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let mut text = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn is_gone(file: &Path) -> bool {
    let looked = std::fs::symlink_metadata(file);
    looked.is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
}

/// Whether two paths are of one directory, which can be mounted in two places.
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    one == other || identity(one).is_some_and(|found| identity(other) == Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(top: &Path, name: &str, file: &str) -> Origin {
        let directory = top.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(file), "").unwrap();
        Origin { files: vec![directory.join(file)], directory }
    }

    #[test]
    fn a_project_is_another_one_only_while_it_is_elsewhere() {
        let top = tempfile::tempdir().unwrap();
        let paths = Paths::new(top.path().join("d"), top.path().join("r"));
        let runtime = paths.make_runtime("app").unwrap();
        let (one, two) = (project(top.path(), "1/app", "a.yml"), project(top.path(), "2/app", "a.yml"));
        // What older versions started has no record.
        two.check_running(&paths, "app").unwrap();
        one.keep(&runtime).unwrap();
        one.check_running(&paths, "app").unwrap();
        project(top.path(), "1/app", "b.yml").check_running(&paths, "app").unwrap();
        let error = two.check_running(&paths, "app").unwrap_err();
        for part in [&one.directory, &two.directory] {
            assert!(error.to_string().contains(part.to_str().unwrap()), "{error}");
        }
        assert!(error.hint.unwrap().contains("-p OTHER"));
        // From standard input, with one of these as the current directory.
        Origin { files: Vec::new(), ..two.clone() }.check_running(&paths, "app").unwrap();
        std::fs::rename(top.path().join("1"), top.path().join("3")).unwrap();
        let moved =
            Origin { directory: top.path().join("3/app"), files: vec![top.path().join("3/app/a.yml")] };
        moved.check_running(&paths, "app").unwrap();
    }

    #[test]
    fn volumes_have_a_record_of_their_own() {
        let top = tempfile::tempdir().unwrap();
        let paths = Paths::new(top.path().join("d"), top.path().join("r"));
        let (one, two) = (project(top.path(), "1/app", "a.yml"), project(top.path(), "2/app", "a.yml"));
        let (file, content) = one.beside_volumes("app").unwrap();
        let file = paths.data.join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, content).unwrap();
        one.check_volumes(&paths, "app").unwrap();
        two.check_volumes(&paths, "app").unwrap_err();
        two.check_running(&paths, "app").unwrap();
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(top.path().join("elsewhere"), &file).unwrap();
        two.check_volumes(&paths, "app").unwrap();
    }
}
