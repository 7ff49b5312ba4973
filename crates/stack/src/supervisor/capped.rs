//! A file of lines that does not grow for ever: when it is full another one is begun, and the oldest goes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// `NAME`, and what was written before it in `NAME.1`, `NAME.2` and so on.
#[derive(Debug)]
pub(crate) struct Capped {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: u64,
    /// How many there are; none is written to where that is 0.
    max_files: u32,
}

impl Capped {
    /// Opens it for appending. Whoever wrote it before may have been killed within a line; that one is ended.
    pub(crate) fn open(path: PathBuf, max_size: u64, max_files: u32) -> io::Result<Self> {
        let file = append(&path)?;
        let size = file.metadata()?.len();
        let mut capped = Self { path, file, size, max_size, max_files };
        let mut last = [b'\n'];
        if size > 0 {
            capped.file.read_exact_at(&mut last, size - 1)?;
        }
        if last != [b'\n'] {
            // What cannot be written now cannot either when there is something to say.
            capped.append(b"\n").ok();
        }
        Ok(capped)
    }

    /// Appends lines, each with its end. What is on the disk are whole lines, also after a failure: of those that
    /// were not all written none is.
    pub(crate) fn write<'a>(&mut self, lines: impl IntoIterator<Item = &'a [u8]>) -> io::Result<()> {
        if self.max_files == 0 {
            return Ok(());
        }
        let mut bytes: Vec<u8> = Vec::new();
        for line in lines {
            let written = self.size + bytes.len() as u64;
            if written > 0 && written + line.len() as u64 > self.max_size {
                self.append(&std::mem::take(&mut bytes))?;
                self.rotate()?;
            }
            bytes.extend_from_slice(line);
        }
        self.append(&bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // A part of a line would spoil the one that follows. If this fails too, the first error is the one to tell.
            self.file.set_len(self.size).ok();
            return Err(error);
        }
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.max_files).rev() {
            match fs::rename(numbered(&self.path, number - 1), numbered(&self.path, number)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        if self.max_files == 1 {
            fs::remove_file(&self.path)?;
        }
        self.file = append(&self.path)?;
        self.size = 0;
        Ok(())
    }

    /// Everything that is kept, the oldest first.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        for number in (0..self.max_files.max(1)).rev() {
            match fs::read(numbered(&self.path, number)) {
                Ok(bytes) => all.extend(bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }
}

/// The file that was begun so many files ago.
fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.log");
        let files = || {
            let mut names: Vec<_> =
                fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        for (max_files, expected) in
            [(3, &["s.log", "s.log.1", "s.log.2"][..]), (1, &["s.log"]), (0, &["s.log"])]
        {
            files().iter().for_each(|name| fs::remove_file(directory.path().join(name)).unwrap());
            let mut log = Capped::open(path.clone(), 100, max_files).unwrap();
            for numbers in [0..3, 3..40, 40..41] {
                let lines: Vec<String> = numbers.map(|number| format!("{number:09}\n")).collect();
                log.write(lines.iter().map(String::as_bytes)).unwrap();
            }
            assert_eq!(files(), expected);
            assert!(
                files().iter().all(|name| fs::metadata(directory.path().join(name)).unwrap().len() <= 100)
            );
            let kept = String::from_utf8(log.read().unwrap()).unwrap();
            assert_eq!(kept.ends_with("000000040\n"), max_files > 0);
            assert!(kept.lines().is_sorted() && kept.lines().all(|line| line.len() == 9), "{kept}");
        }
    }

    #[test]
    fn what_does_not_fit_on_the_disk_leaves_no_half_line() {
        // Every write to it fails, as on a full disk.
        let mut log = Capped::open("/dev/full".into(), 100, 1).unwrap();
        let error = log.write([b"a\n".as_slice()]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_line_that_a_dead_one_did_not_finish_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.log");
        fs::write(&path, "whole\nha").unwrap();
        for _ in 0..2 {
            Capped::open(path.clone(), 100, 1).unwrap().write([b"next\n".as_slice()]).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole\nha\nnext\nnext\n");
    }
}
