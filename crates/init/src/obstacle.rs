//! What about a file keeps the kernel from executing it: an error number names the file that was asked for, and means
//! another one more often than not.

use std::ffi::CStr;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// Why a file that is there cannot be executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// A script's first line names an interpreter that is not there.
    Interpreter(String),
    /// A program was linked for a dynamic loader that is not there.
    Loader(String),
    /// It is neither a program nor a script.
    Format,
    /// It is a program, and not for this machine.
    Machine,
    /// It has no execute bit.
    Mode,
    /// It is a directory.
    Directory,
}

/// What is read of a file. The kernel looks at 256 bytes of a script (`BINPRM_BUF_SIZE`); where an ELF file names its
/// loader, linkers put that within the first page.
const HEAD: usize = 4096;

const ELF: &[u8] = b"\x7fELF";

impl Obstacle {
    /// What is in the way of `path`, with which execve(2) failed for the reason `refusal`. The file can be of anyone's
    /// making.
    pub(crate) fn at(path: &CStr, refusal: Errno) -> Option<Self> {
        let stat = rustix::fs::stat(path).ok()?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Some(Self::Directory),
            FileType::RegularFile => {}
            _ => return None,
        }
        match refusal {
            Errno::ACCESS => (stat.st_mode & 0o111 == 0).then_some(Self::Mode),
            Errno::NOENT | Errno::NOEXEC => {
                // Between the two calls it may have become a fifo, which must not be waited for.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
                let mut head = [0; HEAD];
                let length = rustix::io::read(&file, &mut head).ok()?;
                Self::in_head(&head[..length], refusal)
            }
            _ => None,
        }
    }

    fn in_head(head: &[u8], refusal: Errno) -> Option<Self> {
        match refusal {
            Errno::NOENT if head.starts_with(b"#!") => interpreter(&head[2..]).map(Self::Interpreter),
            Errno::NOENT => loader(head).map(Self::Loader),
            _ if head.starts_with(ELF) => Some(Self::Machine),
            _ => Some(Self::Format),
        }
    }

    /// The file that is missing.
    pub fn missing(&self) -> Option<&str> {
        match self {
            Self::Interpreter(name) | Self::Loader(name) => Some(name),
            _ => None,
        }
    }

    /// What a message begins with, and [`Obstacle::decode`] takes.
    pub(crate) fn number(&self) -> u8 {
        match self {
            Self::Interpreter(_) => 1,
            Self::Loader(_) => 2,
            Self::Format => 3,
            Self::Machine => 4,
            Self::Mode => 5,
            Self::Directory => 6,
        }
    }

    pub(crate) fn decode(number: u8, missing: String) -> Option<Self> {
        match number {
            1 => Some(Self::Interpreter(missing)),
            2 => Some(Self::Loader(missing)),
            3 => Some(Self::Format),
            4 => Some(Self::Machine),
            5 => Some(Self::Mode),
            6 => Some(Self::Directory),
            _ => None,
        }
    }
}

/// As the kernel reads it (`load_script` of fs/binfmt_script.c): a carriage return is a part of the name.
fn interpreter(line: &[u8]) -> Option<String> {
    let line = line.split(|byte| *byte == b'\n').next()?;
    let name = line.split(|byte| matches!(byte, b' ' | b'\t' | 0)).find(|word| !word.is_empty())?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// The segment `PT_INTERP` of a 64-bit ELF file with little ends, as elf(5) describes it.
fn loader(head: &[u8]) -> Option<String> {
    const PT_INTERP: usize = 3;
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = head.get(at..at.checked_add(length)?)?;
        usize::try_from(bytes.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))).ok()
    };
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let segment = (0..count)
        .map_while(|index| table.checked_add(index.checked_mul(size)?))
        .find(|segment| number(*segment, 4) == Some(PT_INTERP))?;
    let (from, length) = (number(segment.checked_add(8)?, 8)?, number(segment.checked_add(32)?, 8)?);
    let name = head.get(from..from.checked_add(length)?)?;
    let name = name.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_head(head: &[u8], refusal: Errno) -> Option<Obstacle> {
        Obstacle::in_head(head, refusal)
    }

    #[test]
    fn a_script_names_its_interpreter() {
        let named = |head: &[u8]| match in_head(head, Errno::NOENT) {
            Some(Obstacle::Interpreter(name)) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(named(b"#!/bin/bash\necho"), "/bin/bash");
        assert_eq!(named(b"#! \t/bin/bash -e\necho"), "/bin/bash");
        assert_eq!(named(b"#!/bin/sh\r\necho\r\n"), "/bin/sh\r");
        assert_eq!(named(b"#!/bin/sh"), "/bin/sh");
        assert_eq!(in_head(b"#!\n", Errno::NOENT), None);
        assert_eq!(in_head(b"", Errno::NOENT), None);
    }

    #[test]
    fn a_program_names_its_loader() {
        let mut elf = vec![0; 300];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[32], elf[54], elf[56]) = (64, 56, 2);
        (elf[64], elf[64 + 56]) = (1, 3);
        (elf[64 + 56 + 8], elf[64 + 56 + 32]) = (200, 9);
        elf[200..209].copy_from_slice(b"/lib/ld\0x");
        assert_eq!(in_head(&elf, Errno::NOENT), Some(Obstacle::Loader("/lib/ld".into())));
        assert_eq!(in_head(&elf, Errno::NOEXEC), Some(Obstacle::Machine));
        // Whatever it claims, nothing is read past its end.
        for at in [32, 54, 56, 128, 152] {
            let mut damaged = elf.clone();
            damaged[at..at + 2].fill(0xff);
            damaged[at + 7] = 0xff;
            in_head(&damaged, Errno::NOENT);
        }
    }

    #[test]
    fn neither_program_nor_script() {
        for head in [&b""[..], b"echo hi\n", b"\n#!/bin/sh\n", b"\xef\xbb\xbf#!/bin/sh\n", b"#!\n"] {
            assert_eq!(in_head(head, Errno::NOEXEC), Some(Obstacle::Format));
        }
    }

    #[test]
    fn files_that_are_there() {
        let at = |path: &CStr, refusal| Obstacle::at(path, refusal);
        assert_eq!(at(c"/etc/passwd", Errno::ACCESS), Some(Obstacle::Mode));
        assert_eq!(at(c"/etc", Errno::ACCESS), Some(Obstacle::Directory));
        assert_eq!(at(c"/etc/passwd", Errno::NOEXEC), Some(Obstacle::Format));
        assert_eq!(at(c"/dev/null", Errno::ACCESS), None);
        assert_eq!(at(c"/no/such/file", Errno::NOENT), None);
    }
}
