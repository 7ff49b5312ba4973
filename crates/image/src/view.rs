//! The merged view of a stack of layers, read without mounting anything.
//!
//! Directories are opened one name at a time and links are resolved here, inside the root: nothing in a
//! layer can lead out of it.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::Stat;
use rustix::io::Errno;

use crate::node;

/// Links followed in one path before it counts as a loop (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// A stack of layer directories, seen as overlayfs shows them.
pub(crate) struct View {
    /// Highest first.
    layers: Vec<Rc<OwnedFd>>,
}

/// A merged directory.
#[derive(Clone)]
pub(crate) struct Dir {
    /// The layers that have a share in it, highest first, by their index in the view.
    parts: Vec<(usize, Rc<OwnedFd>)>,
    /// Its path from the root, free of links.
    pub(crate) path: PathBuf,
}

/// A file that is no directory.
pub(crate) struct Leaf {
    parent: Rc<OwnedFd>,
    name: OsString,
    pub(crate) stat: Stat,
    /// Its path from the root, free of links but for itself.
    pub(crate) path: PathBuf,
    layer: usize,
}

pub(crate) enum Node {
    Dir(Dir),
    Leaf(Leaf),
}

/// Where a path leads.
pub(crate) enum Resolved {
    Found(Node),
    /// The names after `dir` do not exist.
    Missing {
        dir: Dir,
        rest: Vec<OsString>,
    },
}

impl View {
    /// Opens layer directories, lowest first.
    pub(crate) fn open(layers: &[PathBuf]) -> Result<Self, (PathBuf, io::Error)> {
        let mut opened = Vec::with_capacity(layers.len());
        for path in layers.iter().rev() {
            opened.push(Rc::new(node::open_dir_path(path).map_err(|cause| (path.clone(), cause))?));
        }
        Ok(Self { layers: opened })
    }

    pub(crate) fn root(&self) -> Dir {
        let mut parts = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            parts.push((index, Rc::clone(layer)));
        }
        Dir { parts, path: PathBuf::new() }
    }

    /// One name of a directory; links are not followed.
    pub(crate) fn child(&self, dir: &Dir, name: &OsStr) -> io::Result<Option<Node>> {
        let mut parts = Vec::new();
        for (index, part) in &dir.parts {
            let stat = match node::stat(part, name)? {
                None => continue,
                Some(stat) => stat,
            };
            if !node::is_dir(&stat) {
                if parts.is_empty() && !node::is_whiteout(&stat) {
                    let (parent, name) = (Rc::clone(part), name.to_owned());
                    let path = dir.path.join(&name);
                    return Ok(Some(Node::Leaf(Leaf { parent, name, stat, path, layer: *index })));
                }
                break;
            }
            let child = node::open_dir(part, name)?;
            let opaque = dir.parts.len() > 1 && node::is_opaque(&child)?;
            parts.push((*index, Rc::new(child)));
            if opaque {
                break;
            }
        }
        if parts.is_empty() {
            return Ok(None);
        }
        Ok(Some(Node::Dir(Dir { parts, path: dir.path.join(name) })))
    }

    /// The names of a merged directory, sorted.
    pub(crate) fn names(&self, dir: &Dir) -> io::Result<Vec<OsString>> {
        if let [(_, only)] = &dir.parts[..] {
            let mut names = node::names(only)?;
            // Whiteouts are rare: only a lookup tells.
            let mut fault = None;
            names.retain(|name| match node::stat(only, name) {
                Ok(stat) => stat.is_some_and(|stat| !node::is_whiteout(&stat)),
                Err(cause) => {
                    fault = Some(cause);
                    false
                }
            });
            return fault.map_or(Ok(names), Err);
        }
        let mut seen: BTreeMap<OsString, bool> = BTreeMap::new();
        for (_, part) in &dir.parts {
            for name in node::names(part)? {
                if seen.contains_key(&name) {
                    continue;
                }
                let there = node::stat(part, &name)?.is_some_and(|stat| !node::is_whiteout(&stat));
                seen.insert(name, there);
            }
        }
        Ok(seen.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect())
    }

    /// The directory at a path that is free of links.
    fn dir_at(&self, path: &Path) -> io::Result<Dir> {
        let mut here = self.root();
        for name in path {
            match self.child(&here, name)? {
                Some(Node::Dir(child)) => here = child,
                _ => return Err(Errno::NOENT.into()),
            }
        }
        Ok(here)
    }

    /// Follows a path from the root; `..` stops at the root, absolute links start there.
    ///
    /// One directory is open at a time: each may cost a descriptor for every layer.
    pub(crate) fn resolve(&self, path: &Path, follow_last: bool) -> io::Result<Resolved> {
        let mut todo: VecDeque<OsString> = components(path.as_os_str());
        let mut here = self.root();
        let mut rest: Vec<OsString> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                if rest.pop().is_none() {
                    here = self.dir_at(here.path.parent().unwrap_or(Path::new("")))?;
                }
                continue;
            }
            if !rest.is_empty() {
                rest.push(name);
                continue;
            }
            match self.child(&here, &name)? {
                None => rest.push(name),
                Some(Node::Dir(dir)) => here = dir,
                Some(Node::Leaf(leaf)) if leaf.is_link() && (follow_last || !todo.is_empty()) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = leaf.read_link()?;
                    if target.as_bytes().starts_with(b"/") {
                        here = self.root();
                    }
                    for part in components(&target).into_iter().rev() {
                        todo.push_front(part);
                    }
                }
                Some(Node::Leaf(leaf)) => {
                    if todo.is_empty() {
                        return Ok(Resolved::Found(Node::Leaf(leaf)));
                    }
                    return Err(Errno::NOTDIR.into());
                }
            }
        }
        // Without any layer there is not even a root.
        if rest.is_empty() && !here.parts.is_empty() {
            Ok(Resolved::Found(Node::Dir(here)))
        } else {
            Ok(Resolved::Missing { dir: here, rest })
        }
    }

    /// The content of a small regular file; none where there is none.
    pub(crate) fn read_file(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
        match self.resolve(path, true) {
            Ok(Resolved::Found(Node::Leaf(leaf))) if leaf.is_file() => {
                let mut content = Vec::new();
                leaf.open()?.take(limit + 1).read_to_end(&mut content)?;
                if content.len() as u64 > limit {
                    return Err(io::Error::new(
                        io::ErrorKind::FileTooLarge,
                        format!("larger than {limit} bytes"),
                    ));
                }
                Ok(Some(content))
            }
            Ok(_) => Ok(None),
            Err(cause) if cause.kind() == io::ErrorKind::NotADirectory => Ok(None),
            Err(cause) => Err(cause),
        }
    }
}

/// The names in a path, without empty ones and `.`.
pub(crate) fn components(path: &OsStr) -> VecDeque<OsString> {
    path.as_bytes()
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(|part| OsStr::from_bytes(part).to_owned())
        .collect()
}

impl Dir {
    /// The highest layer's share, which is the one whose attributes show.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.parts[0].1
    }

    pub(crate) fn stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(self.fd())?)
    }

    /// Whether the highest layer of the view has a share in it.
    pub(crate) fn in_top(&self) -> Option<&Rc<OwnedFd>> {
        self.parts.first().filter(|(index, _)| *index == 0).map(|(_, fd)| fd)
    }
}

impl Leaf {
    pub(crate) fn is_link(&self) -> bool {
        node::kind(&self.stat) == rustix::fs::FileType::Symlink
    }

    pub(crate) fn is_file(&self) -> bool {
        node::kind(&self.stat) == rustix::fs::FileType::RegularFile
    }

    pub(crate) fn read_link(&self) -> io::Result<OsString> {
        node::read_link(&self.parent, &self.name)
    }

    pub(crate) fn open(&self) -> io::Result<File> {
        node::open_file(&self.parent, &self.name)
    }

    pub(crate) fn parent(&self) -> &OwnedFd {
        &self.parent
    }

    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Whether it lies in the highest layer of the view.
    pub(crate) fn in_top(&self) -> bool {
        self.layer == 0
    }
}
