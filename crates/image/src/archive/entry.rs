//! What an entry of an archive becomes in a layer.
//!
//! A later entry wins over an earlier one of the same name, whatever the two are, but that a directory stays what
//! it is and only gets the new attributes. A whiteout means the layers below and never a file of the same archive
//! (image-spec, `layer.md`).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::BufRead;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use super::tape::{Fragment, Kind, Member, Tape};
use super::{Unpack, display};
use crate::error::{Error, Result};
use crate::layer::{LayerWriter, bytes};
use crate::node::{self, Attributes};
use crate::tree::{OPAQUE_WHITEOUT, WHITEOUT};

/// Deepest path of an entry.
const MAX_COMPONENTS: usize = node::MAX_DEPTH;
/// `S_ISUID` and `S_ISGID`.
const SET_IDS: u32 = 0o6000;

/// An archive on its way into a layer.
pub(super) struct State<'a> {
    options: &'a Unpack<'a>,
    writer: &'a LayerWriter,
    /// Set at the end: writing into a directory changes its time.
    dir_times: BTreeMap<PathBuf, (i64, i64)>,
    /// Size of the files, bytes.
    pub(super) size: u64,
}

impl<'a> State<'a> {
    pub(super) fn new(options: &'a Unpack<'a>, writer: &'a LayerWriter) -> Self {
        Self { options, writer, dir_times: BTreeMap::new(), size: 0 }
    }

    fn refuse<T>(&self, entry: &str, problem: impl Into<String>) -> Result<T> {
        let (archive, entry) = (self.options.archive.to_owned(), entry.to_owned());
        Err(Error::RefusedEntry { archive, entry, problem: problem.into() })
    }

    /// A path of the archive as one of the image: absolute names count from the root as with Docker, and
    /// `..` is refused wherever it stands.
    fn clean(&self, raw: &[u8], entry: &str, what: &str) -> Result<PathBuf> {
        if raw.contains(&0) {
            return self.refuse(entry, format!("{what} holds a NUL byte"));
        }
        let mut path = PathBuf::new();
        let mut depth = 0;
        for component in Path::new(OsStr::from_bytes(raw)).components() {
            match component {
                Component::Normal(name) => {
                    path.push(name);
                    depth += 1;
                }
                Component::RootDir | Component::CurDir => {}
                _ => {
                    return self
                        .refuse(entry, format!("{what} holds `..`, which could lead out of the image"));
                }
            }
        }
        if depth > MAX_COMPONENTS {
            return self.refuse(entry, format!("{what} is nested more than {MAX_COMPONENTS} deep"));
        }
        Ok(path)
    }

    pub(super) fn entry<R: BufRead>(
        &mut self,
        tape: &mut Tape<'_, R>,
        member: &Member,
        name: &str,
    ) -> Result<()> {
        let inside = self.clean(&member.path, name, "its name")?;
        let path = self.options.below.join(&inside);
        if inside.iter().any(|part| part.as_bytes().starts_with(WHITEOUT)) {
            return self.whiteout(&path, name);
        }
        let attributes = self.attributes(member, name)?;
        let unpack = |source: Error| Error::Unpack {
            archive: self.options.archive.to_owned(),
            entry: name.to_owned(),
            source: Box::new(source),
        };
        match member.kind {
            Kind::Dir => {
                let now = Attributes { mtime: None, ..attributes.clone() };
                self.writer.put_dir(&path, &now, true).map_err(unpack)?;
                if let Some(time) = attributes.mtime {
                    self.dir_times.insert(path, time);
                }
                Ok(())
            }
            Kind::File => self.file(tape, member, &path, &attributes, name),
            Kind::Link => {
                let target = OsStr::from_bytes(&member.link);
                if target.is_empty() {
                    return self.refuse(name, "it is a link without a target");
                }
                if member.link.contains(&0) {
                    return self.refuse(name, "the target of the link holds a NUL byte");
                }
                self.writer.put_link(&path, target, &attributes).map_err(unpack)
            }
            Kind::HardLink => {
                if member.link.is_empty() {
                    return self.refuse(name, "it is a link without a target");
                }
                let target = self.clean(&member.link, name, "the target of the hard link")?;
                let target = self.options.below.join(target);
                if self.writer.put_hard_link(&path, &target).map_err(unpack)? {
                    return Ok(());
                }
                let target = display(bytes(&target));
                self.refuse(name, format!("the hard link's target `{target}` is no file of the image"))
            }
            Kind::Pipe => self.writer.put_pipe(&path, &attributes).map_err(unpack),
            Kind::Device => {
                // A container gets a /dev of its own, and no root file system of a user namespace's can have
                // devices; what `chroot` directories bring along is left out like that.
                if path.iter().rev().skip(1).any(|part| part == "dev") {
                    tracing::debug!(archive = self.options.archive, entry = name, "device node left out");
                    return Ok(());
                }
                self.refuse(name, "it is a device node, which an image may hold in a directory `dev` only")
            }
            Kind::Other(flag) => {
                self.refuse(name, format!("entries of type {:?} are not supported", char::from(flag)))
            }
        }
    }

    fn whiteout(&mut self, path: &Path, name: &str) -> Result<()> {
        if !self.options.whiteouts {
            return self.refuse(name, "names that begin with `.wh.` are reserved for deleted files");
        }
        let last = path.file_name().unwrap_or_default().as_bytes();
        let parent = path.parent().unwrap_or(Path::new(""));
        let Some(hidden) = last.strip_prefix(WHITEOUT) else {
            return self
                .refuse(name, "a directory's name begins with `.wh.`, which is reserved for deleted files");
        };
        if last == OPAQUE_WHITEOUT {
            return self.writer.put_opaque(parent);
        }
        if hidden.starts_with(WHITEOUT) {
            // AUFS' own records, which Docker leaves out too.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return self.refuse(name, "it marks no file as deleted");
        }
        self.writer.put_whiteout(&parent.join(OsStr::from_bytes(hidden)))
    }

    fn file<R: BufRead>(
        &mut self,
        tape: &mut Tape<'_, R>,
        member: &Member,
        path: &Path,
        attributes: &Attributes,
        name: &str,
    ) -> Result<()> {
        let (writer, options) = (self.writer, self.options);
        let whole = [Fragment { offset: 0, length: member.size }];
        let fragments = member.sparse.as_deref().unwrap_or(&whole);
        let mut fill = |file: &mut std::fs::File, at: &Path| {
            for fragment in fragments {
                let mut done = 0;
                while done < fragment.length {
                    let content = tape.content(fragment.length - done);
                    let content = content.map_err(|fault| options.fault(Some(name), fault))?;
                    let length = content.len();
                    file.write_all_at(content, fragment.offset + done)
                        .map_err(|cause| writer.fail("write", path, cause))?;
                    tape.consume(length);
                    done += length as u64;
                }
                if done > 0 {
                    tape.keep(bytes(at), fragment.offset, done);
                }
            }
            if member.sparse.is_some() {
                file.set_len(member.size).map_err(|cause| writer.fail("write", path, cause))?;
            }
            Ok(())
        };
        self.size += member.size;
        writer.put_content(path, attributes, &mut fill).map_err(|error| match error {
            // These name archive and entry themselves.
            Error::DamagedArchive { .. } | Error::RefusedArchive { .. } => error,
            source => {
                let (archive, entry) = (options.archive.to_owned(), name.to_owned());
                Error::Unpack { archive, entry, source: Box::new(source) }
            }
        })
    }

    fn attributes(&self, member: &Member, name: &str) -> Result<Attributes> {
        let (uid, gid) = (member.uid, member.gid);
        let (Ok(mut uid), Ok(mut gid)) = (u32::try_from(uid), u32::try_from(gid)) else {
            return self.refuse(name, format!("its owner {uid}:{gid} is out of range"));
        };
        if let Some(owner) = self.options.owner {
            (uid, gid) = owner;
        }
        if uid == u32::MAX || gid == u32::MAX {
            return self.refuse(name, "its owner is no valid id");
        }
        let mut xattrs: BTreeMap<OsString, Vec<u8>> = BTreeMap::new();
        for (key, value) in &member.xattrs {
            if !self.options.powers && key == b"security.capability" {
                continue;
            }
            if let Some(value) = node::imported_xattr(key, value) {
                xattrs.insert(OsString::from_vec(key.clone()), value);
            }
        }
        let xattrs = xattrs.into_iter().collect();
        let mode = if self.options.powers { member.mode } else { member.mode & !SET_IDS };
        Ok(Attributes { mode, uid, gid, mtime: Some(member.mtime), xattrs })
    }

    pub(super) fn set_dir_times(&self) -> Result<()> {
        for (path, time) in &self.dir_times {
            self.writer.set_dir_time(path, *time)?;
        }
        Ok(())
    }
}
