//! What a container has changed, from its overlay's upper directory.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::LayerId;
use crate::error::{Error, Result};
use crate::node::{self, Attributes, MAX_DEPTH};
use crate::store::Store;
use crate::view::{Dir, Node, View};

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It, or something in it, is another.
    Changed,
    /// It is gone.
    Deleted,
}

/// A path that is not as in the image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Change {
    /// From the container's root.
    pub path: PathBuf,
    /// What became of it.
    pub kind: ChangeKind,
}

impl Store {
    /// What an overlay's upper directory changes about an image, in the order of paths. A directory that hides all
    /// that was below it (an opaque one) is one whose old content is gone. Empty files at `mount_points` are nothing
    /// that the container made.
    pub fn changes(&self, layers: &[LayerId], upper: &Path, mount_points: &[&str]) -> Result<Vec<Change>> {
        let view = self.view(layers)?;
        let top = node::open_dir_path(upper).map_err(|cause| Error::io("open directory", upper, cause))?;
        let mut walk = Walk { view: &view, mount_points, changes: Vec::new() };
        walk.dir(&top, Some(&view.root()), Path::new("/"), 0)
            .map_err(|(path, cause)| Error::io("look at the container's", path, cause))?;
        walk.changes.sort();
        Ok(walk.changes)
    }
}

struct Walk<'a> {
    view: &'a View,
    mount_points: &'a [&'a str],
    changes: Vec<Change>,
}

impl Walk<'_> {
    fn push(&mut self, path: &Path, kind: ChangeKind) {
        self.changes.push(Change { path: path.to_owned(), kind });
    }

    /// Compares a directory with what is below it; true if anything in it is another.
    fn dir(
        &mut self,
        upper: &OwnedFd,
        below: Option<&Dir>,
        path: &Path,
        depth: usize,
    ) -> Result<bool, (PathBuf, io::Error)> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |cause: io::Error| (path, cause)
        };
        if depth > MAX_DEPTH {
            return Err((path.to_owned(), io::Error::other("directories are nested too deep")));
        }
        let before = self.changes.len();
        let names = node::names(upper).map_err(fail(path))?;
        for name in &names {
            let at = path.join(name);
            // A running container may delete it while we look.
            let Some(stat) = node::stat(upper, name).map_err(fail(&at))? else { continue };
            let old = self.below(below, name).map_err(fail(&at))?;
            if node::is_whiteout(&stat) {
                if old.is_some() {
                    self.push(&at, ChangeKind::Deleted);
                }
            } else if node::is_dir(&stat) {
                let child = node::open_dir(upper, name).map_err(fail(&at))?;
                match &old {
                    Some(Node::Dir(old)) => {
                        let inside = self.dir(&child, Some(old), &at, depth + 1)?;
                        let was = old.stat().map_err(fail(&at))?;
                        if inside || without_time(&was) != without_time(&stat) {
                            self.push(&at, ChangeKind::Changed);
                        }
                    }
                    other => {
                        let kind = if other.is_some() { ChangeKind::Changed } else { ChangeKind::Added };
                        self.push(&at, kind);
                        self.dir(&child, None, &at, depth + 1)?;
                    }
                }
            } else if old.is_some() {
                self.push(&at, ChangeKind::Changed);
            } else if stat.st_size > 0 || !self.mount_points.iter().any(|point| at == Path::new(point)) {
                self.push(&at, ChangeKind::Added);
            }
        }
        if let Some(below) = below
            && node::is_opaque(upper).map_err(fail(path))?
        {
            for name in self.view.names(below).map_err(fail(path))? {
                if names.binary_search(&name).is_err() {
                    self.push(&path.join(name), ChangeKind::Deleted);
                }
            }
        }
        Ok(self.changes.len() > before)
    }

    fn below(&self, dir: Option<&Dir>, name: &OsStr) -> io::Result<Option<Node>> {
        dir.map_or(Ok(None), |dir| self.view.child(dir, name))
    }
}

fn without_time(stat: &rustix::fs::Stat) -> Attributes {
    Attributes { mtime: None, ..Attributes::of(stat) }
}
