//! Writing a new layer on top of others: what a path means there, and what must be copied up first.

pub(crate) mod recipe;
mod unpack;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{self as kernel, AtFlags, FileType, Mode};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::node::{self, Attributes};
use crate::remove::remove_at;
use crate::view::{Dir, Leaf, Node, Resolved, View};

use recipe::Aside;

pub use unpack::LayerSource;
pub(crate) use unpack::StagedLayer;

/// Directories that are kept open, because what an archive holds next is likely to go there, too.
const OPEN_DIRS: usize = 64;

/// From this size on the disk begins with a file as soon as it is written, bytes. Smaller ones are written faster
/// together.
const BEGIN_BYTES: u64 = 64 << 10;

/// A layer in the making. It lies in a private directory that nobody else writes.
pub(crate) struct LayerWriter {
    /// The new layer and those below it.
    pub(crate) view: View,
    top: PathBuf,
    /// There is no layer below: what the new one does not have is not there.
    alone: bool,
    creator: node::Creator,
    /// Where what is replaced goes; none deletes it.
    aside: RefCell<Option<Aside>>,
    open_dirs: RefCell<HashMap<PathBuf, Parent>>,
}

/// A directory of the new layer, open to make something in it.
#[derive(Clone)]
struct Parent {
    fd: Rc<OwnedFd>,
    /// Its path from the root, free of links.
    path: PathBuf,
    /// The group that new nodes may get from it.
    gid: u32,
}

impl LayerWriter {
    /// Writes to the directory `top`, over the layers `lower` (lowest first).
    pub(crate) fn open(lower: &[PathBuf], top: &Path) -> Result<Self> {
        let mut layers = lower.to_vec();
        layers.push(top.to_owned());
        let view = View::open(&layers).map_err(|(path, cause)| Error::io("open layer", path, cause))?;
        let writer = Self {
            view,
            top: top.to_owned(),
            alone: lower.is_empty(),
            creator: node::Creator::of_this_process(),
            aside: RefCell::default(),
            open_dirs: RefCell::default(),
        };
        if !lower.is_empty() {
            let below = View::open(lower).map_err(|(path, cause)| Error::io("open layer", path, cause))?;
            copy_attributes(below.root().fd(), writer.view.root().fd())
                .map_err(|cause| writer.fail("set attributes of", Path::new(""), cause))?;
        }
        Ok(writer)
    }

    /// Keeps what is replaced from now on.
    pub(crate) fn keep_replaced(&self, aside: Aside) {
        *self.aside.borrow_mut() = Some(aside);
    }

    /// What was replaced since [`LayerWriter::keep_replaced`].
    pub(crate) fn take_replaced(&self) -> Option<Aside> {
        self.aside.borrow_mut().take()
    }

    pub(crate) fn fail(&self, operation: &'static str, path: &Path, cause: impl Into<io::Error>) -> Error {
        Error::io(operation, self.top.join(path.strip_prefix("/").unwrap_or(path)), cause)
    }

    /// Where a path leads in the image as it is by now.
    pub(crate) fn resolve(&self, path: &Path, follow_last: bool) -> Result<Resolved> {
        self.view.resolve(path, follow_last).map_err(|cause| self.fail("look up", path, cause))
    }

    /// Makes a merged directory exist in the new layer, with the attributes it has below.
    fn copy_up(&self, dir: &Dir) -> Result<Rc<OwnedFd>> {
        if let Some(fd) = dir.in_top() {
            return Ok(Rc::clone(fd));
        }
        let fail = |cause: io::Error| self.fail("copy up directory", &dir.path, cause);
        let mut here = self.view.root();
        let mut fd = Rc::clone(here.in_top().ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?);
        for name in dir.path.iter() {
            let child = match self.view.child(&here, name).map_err(fail)? {
                Some(Node::Dir(child)) => child,
                _ => return Err(fail(io::ErrorKind::NotADirectory.into())),
            };
            fd = match child.in_top() {
                Some(fd) => Rc::clone(fd),
                None => {
                    let made = node::make_dir(&fd, name).map_err(fail)?;
                    copy_attributes(child.fd(), &made).map_err(fail)?;
                    Rc::new(made)
                }
            };
            here = child;
        }
        Ok(fd)
    }

    /// Makes a directory and all that lead to it; returns its path free of links.
    pub(crate) fn make_path(&self, path: &Path, owner: Option<(u32, u32)>) -> Result<(Rc<OwnedFd>, PathBuf)> {
        match self.resolve(path, true)? {
            Resolved::Found(Node::Dir(dir)) => Ok((self.copy_up(&dir)?, dir.path)),
            Resolved::Found(Node::Leaf(_)) => {
                Err(self.fail("make directory", path, io::Error::from(io::ErrorKind::NotADirectory)))
            }
            Resolved::Missing { dir, rest } => {
                let mut fd = self.copy_up(&dir)?;
                let mut at = dir.path;
                for name in rest {
                    at.push(&name);
                    let made = self.new_dir(&fd, &name, &at)?;
                    node::set_attributes(&made, &Attributes::new_dir(owner))
                        .map_err(|cause| self.fail("set attributes of", &at, cause))?;
                    fd = Rc::new(made);
                }
                Ok((fd, at))
            }
        }
    }

    /// Makes a directory where there is none. One that takes the place of a deleted one must hide it.
    fn new_dir(&self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<OwnedFd> {
        let make = || -> io::Result<OwnedFd> {
            let hides = node::stat(parent, name)?.is_some_and(|stat| node::is_whiteout(&stat));
            if hides {
                kernel::unlinkat(parent, name, AtFlags::empty())?;
            }
            let made = node::make_dir(parent, name)?;
            if hides {
                node::set_opaque(&made)?;
            }
            Ok(made)
        };
        make().map_err(|cause| self.fail("make directory", path, cause))
    }

    /// Splits a path into its directory (made if missing) and its last name.
    fn parent<'p>(&self, path: &'p Path) -> Result<(Parent, &'p OsStr)> {
        let name = path.file_name().ok_or_else(|| self.fail("write", path, Errno::ISDIR))?;
        let above = path.parent().unwrap_or(Path::new(""));
        if let Some(parent) = self.open_dirs.borrow().get(above) {
            return Ok((parent.clone(), name));
        }
        let (fd, at) = match self.open_plain(above) {
            Some(fd) => (Rc::new(fd), above.strip_prefix("/").unwrap_or(above).to_owned()),
            None => self.make_path(above, None)?,
        };
        let gid = fstat(self, &fd, above)?.st_gid;
        let parent = Parent { fd, path: at, gid };
        // Over other layers a path may lead elsewhere without anything being replaced in this one.
        if self.alone {
            self.remember(above, &parent);
        }
        Ok((parent, name))
    }

    /// Opens a directory of the new layer by a path without links, if it is one and no layer is below.
    fn open_plain(&self, path: &Path) -> Option<OwnedFd> {
        let path = path.strip_prefix("/").unwrap_or(path);
        if !self.alone || path.as_os_str().is_empty() {
            return None;
        }
        let root = self.view.root();
        // Whatever it is that fails, the way that can do all says what.
        node::open_dir_below(root.fd(), path).ok()
    }

    fn remember(&self, path: &Path, parent: &Parent) {
        let mut open_dirs = self.open_dirs.borrow_mut();
        if open_dirs.len() >= OPEN_DIRS {
            open_dirs.clear();
        }
        open_dirs.insert(path.to_owned(), parent.clone());
    }

    /// Removes what is in the way of something new.
    fn replace(&self, parent: &Parent, name: &OsStr) -> Result<()> {
        // A directory that goes may be open, and a path that led through a link may lead elsewhere from now on.
        self.open_dirs.borrow_mut().clear();
        let path = parent.path.join(name);
        let removed = match &mut *self.aside.borrow_mut() {
            Some(aside) => aside.take(&parent.fd, name, bytes(&path)),
            None => remove_at(&parent.fd, name),
        };
        removed.map_err(|cause| self.fail("replace", &path, cause))
    }

    /// Makes something that is no directory, in the place of what is there.
    fn make<T>(
        &self,
        operation: &'static str,
        path: &Path,
        make: impl Fn(&OwnedFd, &OsStr) -> io::Result<T>,
    ) -> Result<(Parent, T)> {
        let (parent, name) = self.parent(path)?;
        let made = match make(&parent.fd, name) {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
                self.replace(&parent, name)?;
                make(&parent.fd, name)
            }
            made => made,
        };
        let made = made.map_err(|cause| self.fail(operation, path, cause))?;
        Ok((parent, made))
    }

    /// Puts a directory at a path; one that is there stays, with new attributes where `attributes` says so.
    pub(crate) fn put_dir(&self, path: &Path, attributes: &Attributes, overwrite: bool) -> Result<()> {
        if path.file_name().is_none() {
            if overwrite {
                // New nodes may inherit its group.
                self.open_dirs.borrow_mut().clear();
                let root = self.view.root();
                node::set_attributes(root.fd(), attributes)
                    .map_err(|cause| self.fail("set attributes of", path, cause))?;
            }
            return Ok(());
        }
        let (parent, name) = self.parent(path)?;
        let at = parent.path.join(name);
        if self.alone {
            match node::create_dir(&parent.fd, name, self.creator.mode(attributes)) {
                Ok(fd) => {
                    (self.creator.set_attributes(&fd, attributes, parent.gid))
                        .map_err(|cause| self.fail("set attributes of", &at, cause))?;
                    let new = Parent { fd: Rc::new(fd), path: at, gid: attributes.gid };
                    self.remember(path, &new);
                    return Ok(());
                }
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(self.fail("make directory", &at, cause)),
            }
        }
        let (fd, new) = match self.resolve(&at, false)? {
            Resolved::Found(Node::Dir(dir)) => (self.copy_up(&dir)?, false),
            Resolved::Found(Node::Leaf(leaf)) => {
                if leaf.in_top() {
                    self.replace(&parent, name)?;
                }
                (Rc::new(self.new_dir(&parent.fd, name, &at)?), true)
            }
            Resolved::Missing { .. } => (Rc::new(self.new_dir(&parent.fd, name, &at)?), true),
        };
        if new || overwrite {
            self.open_dirs.borrow_mut().clear();
            node::set_attributes(&fd, attributes)
                .map_err(|cause| self.fail("set attributes of", &at, cause))?;
        }
        Ok(())
    }

    /// Puts a regular file at a path; `fill` writes its content.
    pub(crate) fn put_file(
        &self,
        path: &Path,
        attributes: &Attributes,
        fill: &mut dyn FnMut(&mut File) -> Result<()>,
    ) -> Result<()> {
        self.put_content(path, attributes, &mut |file, _| fill(file))
    }

    /// Puts a regular file at a path; `fill` writes its content, and is told the file's path free of links.
    pub(crate) fn put_content(
        &self,
        path: &Path,
        attributes: &Attributes,
        fill: &mut dyn FnMut(&mut File, &Path) -> Result<()>,
    ) -> Result<()> {
        let mode = self.creator.mode(attributes);
        let (parent, mut file) =
            self.make("create file", path, |parent, name| node::create_file_with(parent, name, mode))?;
        fill(&mut file, &parent.path.join(path.file_name().unwrap_or_default()))?;
        (self.creator.set_attributes(&file, attributes, parent.gid))
            .map_err(|cause| self.fail("set attributes of", path, cause))?;
        // A layer has to be on the disk before it has its name: most of it is, when its last file is made.
        if file.stream_position().is_ok_and(|written| written >= BEGIN_BYTES) {
            // A beginning only: whoever waits for the end of it is told what fails.
            sys::fd::start_writeback(file.as_fd()).ok();
        }
        Ok(())
    }

    /// Puts a symbolic link at a path; its target is kept as it is.
    pub(crate) fn put_link(&self, path: &Path, target: &OsStr, attributes: &Attributes) -> Result<()> {
        let make = |parent: &OwnedFd, name: &OsStr| Ok(kernel::symlinkat(target, parent, name)?);
        let (parent, ()) = self.make("create link", path, make)?;
        self.creator
            .set_link_attributes(&parent.fd, path.file_name().unwrap_or_default(), attributes, parent.gid)
            .map_err(|cause| self.fail("set attributes of", path, cause))
    }

    /// Puts a named pipe at a path.
    pub(crate) fn put_pipe(&self, path: &Path, attributes: &Attributes) -> Result<()> {
        let mode = Mode::RUSR | Mode::WUSR;
        let make =
            |parent: &OwnedFd, name: &OsStr| Ok(kernel::mknodat(parent, name, FileType::Fifo, mode, 0)?);
        let (parent, ()) = self.make("create pipe", path, make)?;
        node::set_attributes_at(&parent.fd, path.file_name().unwrap_or_default(), attributes)
            .map_err(|cause| self.fail("set attributes of", path, cause))
    }

    /// Puts a hard link to a file of the image at a path; false where the target is no such file.
    pub(crate) fn put_hard_link(&self, path: &Path, target: &Path) -> Result<bool> {
        let found = match self.view.resolve(target, false) {
            Ok(Resolved::Found(Node::Leaf(leaf))) => leaf,
            Ok(_) => return Ok(false),
            Err(cause) if cause.kind() == io::ErrorKind::NotADirectory => return Ok(false),
            Err(cause) => return Err(self.fail("look up", target, cause)),
        };
        if !found.in_top() {
            self.put_copy(&found, &found.path)?;
        }
        let Resolved::Found(Node::Leaf(found)) = self.resolve(&found.path, false)? else { return Ok(false) };
        let (parent, name) = self.parent(path)?;
        let at = parent.path.join(name);
        if at == found.path {
            return Ok(true);
        }
        // The link would take the place of a directory that the target lies in.
        if found.path.starts_with(&at) {
            return Ok(false);
        }
        let make = |parent: &OwnedFd, name: &OsStr| {
            Ok(kernel::linkat(found.parent(), found.name(), parent, name, AtFlags::empty())?)
        };
        self.make("create hard link", path, make)?;
        Ok(true)
    }

    /// Puts a copy of a file, link or pipe of any view at a path, with all its attributes.
    pub(crate) fn put_copy(&self, leaf: &Leaf, path: &Path) -> Result<()> {
        let fail = |cause: io::Error| self.fail("copy", path, cause);
        let mut attributes = Attributes::of(&leaf.stat);
        if leaf.is_link() {
            return self.put_link(path, &leaf.read_link().map_err(fail)?, &attributes);
        }
        if node::kind(&leaf.stat) == FileType::Fifo {
            return self.put_pipe(path, &attributes);
        }
        if !leaf.is_file() {
            return Err(fail(io::ErrorKind::Unsupported.into()));
        }
        let mut from = leaf.open().map_err(fail)?;
        attributes.xattrs = node::xattrs(&from).map_err(fail)?;
        self.put_file(path, &attributes, &mut |to| io::copy(&mut from, to).map(drop).map_err(fail))
    }

    /// Marks a name as deleted from the layers below.
    pub(crate) fn put_whiteout(&self, path: &Path) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let (at, parent) = (parent.path.join(name), parent.fd);
        let fail = |cause: io::Error| self.fail("mark as deleted", &at, cause);
        match node::stat(&parent, name).map_err(fail)? {
            None => node::make_whiteout(&parent, name).map_err(fail),
            // The same layer brings a new directory: it hides what lies below. Anything else does by itself.
            Some(stat) if node::is_dir(&stat) => {
                node::open_dir(&parent, name).and_then(node::set_opaque).map_err(fail)
            }
            Some(_) => Ok(()),
        }
    }

    /// Makes a directory hide the one below it.
    pub(crate) fn put_opaque(&self, path: &Path) -> Result<()> {
        let (fd, at) = self.make_path(path, None)?;
        node::set_opaque(&fd).map_err(|cause| self.fail("mark as opaque", &at, cause))
    }

    /// Sets the time of a directory of the new layer, after its content has been written.
    pub(crate) fn set_dir_time(&self, path: &Path, time: (i64, i64)) -> Result<()> {
        if let Some(fd) = self.open_plain(path) {
            return node::set_time(fd, time).map_err(|cause| self.fail("set time of", path, cause));
        }
        let Resolved::Found(Node::Dir(dir)) = self.resolve(path, false)? else { return Ok(()) };
        let Some(fd) = dir.in_top() else { return Ok(()) };
        node::set_time(fd, time).map_err(|cause| self.fail("set time of", path, cause))
    }
}

fn fstat(writer: &LayerWriter, fd: &OwnedFd, path: &Path) -> Result<kernel::Stat> {
    kernel::fstat(fd).map_err(|errno| writer.fail("look up", path, errno))
}

/// Gives one directory the attributes of another.
pub(crate) fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let mut attributes = Attributes::of(&kernel::fstat(from)?);
    attributes.xattrs = node::xattrs(from)?;
    node::set_attributes(to, &attributes)
}

/// The bytes of a path for messages and digests.
pub(crate) fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
