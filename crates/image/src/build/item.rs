//! What one `COPY` or `ADD` writes, file by file, and its digest before anything is written.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;

use crate::archive::{self, Limits};
use crate::build::add_git::Repository;
use crate::build::add_url::Download;
use crate::build::source::{Wanted, refused};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::layer::{LayerWriter, bytes};
use crate::node::Attributes;
use crate::view::{Node, Resolved, View};

/// One file to be written.
#[derive(Clone)]
pub(super) struct Item {
    pub(super) origin: Origin,
    /// Path in the image.
    pub(super) target: PathBuf,
    pub(super) attributes: Attributes,
    pub(super) content: Content,
}

/// Where an item's content lies.
#[derive(Clone)]
pub(super) enum Origin {
    /// In the source, at a path that is free of links.
    View(PathBuf),
    /// On a server.
    Download(Rc<Download>),
    /// In the Dockerfile.
    Text,
    /// In a repository.
    Repository,
}

impl Origin {
    fn name(&self) -> String {
        match self {
            Self::View(path) => path.display().to_string(),
            Self::Download(download) => download.url().to_owned(),
            Self::Text => "here-document".to_owned(),
            Self::Repository => "repository".to_owned(),
        }
    }
}

#[derive(Clone)]
pub(super) enum Content {
    /// A directory; its attributes replace those of one that is there if `overwrite` says so.
    Dir {
        overwrite: bool,
    },
    File(Digest),
    Link(OsString),
    Pipe,
    /// An archive to unpack below the target.
    Archive(Digest),
    /// Text of the Dockerfile.
    Inline(String),
    /// A repository, whose files go below the target.
    Repository(Rc<Repository>),
}

/// The digest of a file's content.
pub(super) fn hash(mut file: File) -> io::Result<Digest> {
    file.rewind()?;
    let mut hasher = Hasher::new();
    io::copy(&mut file, &mut hasher)?;
    Ok(hasher.finish())
}

/// The mode that a file of a repository has whatever the umask under which it was written.
pub(super) fn plain_mode(item: &Item) -> u32 {
    let runs = matches!(item.content, Content::Dir { .. }) || item.attributes.mode & 0o100 != 0;
    if runs { 0o755 } else { 0o644 }
}

impl Item {
    /// Adds all that the layer depends on, but times.
    pub(super) fn key(&self, key: &mut Hasher) {
        key.field(bytes(&self.target));
        let Attributes { mode, uid, gid, xattrs, .. } = &self.attributes;
        let (kind, content): (&str, &[u8]) = match &self.content {
            Content::Dir { overwrite: true } => ("dir", b""),
            Content::Dir { overwrite: false } => ("top", b""),
            Content::File(digest) => ("file", digest.hex().as_bytes()),
            Content::Link(target) => ("link", target.as_bytes()),
            Content::Pipe => ("pipe", b""),
            Content::Archive(digest) => ("archive", digest.hex().as_bytes()),
            Content::Inline(text) => ("inline", text.as_bytes()),
            Content::Repository(_) => ("repository", b""),
        };
        key.field(format!("{kind} {mode:o} {uid}:{gid} {}", xattrs.len()).as_bytes());
        for (name, value) in xattrs {
            key.field(name.as_bytes());
            key.field(value);
        }
        key.field(content);
        if let Content::Repository(repository) = &self.content {
            repository.key(key);
        }
    }

    pub(super) fn write(&self, view: Option<&View>, writer: &LayerWriter, wanted: &Wanted) -> Result<()> {
        let refuse = |problem: &str| {
            Err(Error::CopyDestination {
                path: self.target.display().to_string(),
                problem: problem.to_owned(),
            })
        };
        if let Content::Dir { overwrite } = self.content {
            return match writer.resolve(&self.target, true)? {
                // Through a link, as `/lib` is one, to the directory it means.
                Resolved::Found(Node::Dir(dir)) => writer.put_dir(&dir.path, &self.attributes, overwrite),
                Resolved::Found(Node::Leaf(_)) => refuse("is a file, and a directory should take its place"),
                Resolved::Missing { .. } => writer.put_dir(&self.target, &self.attributes, true),
            };
        }
        if let Content::Archive(digest) = &self.content {
            let (file, name) = (self.open(view)?, self.origin.name());
            let (_, below) = writer.make_path(&self.target, wanted.owner)?;
            let options = archive::Unpack {
                archive: &name,
                limits: &Limits::default(),
                whiteouts: false,
                below: &below,
                sha256: Some(digest.hex()),
                owner: wanted.owner,
                powers: true,
            };
            return archive::unpack(file, &options, writer);
        }
        if let Resolved::Found(Node::Dir(_)) = writer.resolve(&self.target, false)? {
            return refuse("is a directory, and a file should take its place");
        }
        match &self.content {
            Content::File(digest) => self.write_file(self.open(view)?, digest, writer),
            Content::Link(target) => writer.put_link(&self.target, target, &self.attributes),
            Content::Pipe => writer.put_pipe(&self.target, &self.attributes),
            Content::Inline(text) => writer.put_file(&self.target, &self.attributes, &mut |file| {
                file.write_all(text.as_bytes()).map_err(|cause| writer.fail("write", &self.target, cause))
            }),
            Content::Dir { .. } | Content::Archive(_) => unreachable!("handled above"),
            Content::Repository(_) => unreachable!("the builder has it fetched"),
        }
    }

    fn changed(&self) -> Error {
        let problem = "changed while it was copied".to_owned();
        refused(&self.origin.name(), problem, Some("build again".to_owned()))
    }

    fn open(&self, view: Option<&View>) -> Result<File> {
        match (&self.origin, view) {
            (Origin::Download(download), _) => download.open(),
            (Origin::View(path), Some(view)) => {
                let fail = |cause| Error::io("read", path, cause);
                match view.resolve(path, false).map_err(fail)? {
                    Resolved::Found(Node::Leaf(leaf)) if leaf.is_file() => leaf.open().map_err(fail),
                    _ => Err(self.changed()),
                }
            }
            _ => Err(self.changed()),
        }
    }

    /// Copies the content, and makes sure that it is what the key was made of.
    fn write_file(&self, mut from: File, digest: &Digest, writer: &LayerWriter) -> Result<()> {
        writer.put_file(&self.target, &self.attributes, &mut |to| {
            let mut hasher = Hasher::new();
            let mut buffer = vec![0; 128 * 1024];
            loop {
                let length = match from.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => length,
                    Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                    Err(cause) => return Err(Error::io("read", self.origin.name(), cause)),
                };
                hasher.update(&buffer[..length]);
                to.write_all(&buffer[..length]).map_err(|cause| writer.fail("write", &self.target, cause))?;
            }
            if hasher.finish() == *digest { Ok(()) } else { Err(self.changed()) }
        })
    }
}
