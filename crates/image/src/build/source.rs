//! Where `COPY` and `ADD` find files: the build context, a stage, an image, or a repository.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::archive;
use crate::build::chmod::Chmod;
use crate::build::item::{Content, Item, Origin, hash};
use crate::build::parents;
use crate::build::recall::Allowance;
use crate::digest::Digest;
use crate::dockerfile::nearest;
use crate::error::{Error, Result};
use crate::layer::bytes;
use crate::node::{self, Attributes, MAX_DEPTH};
use crate::pattern::{Ignore, Pattern, is_pattern};
use crate::view::{Dir, Leaf, Node, Resolved, View, components};

/// Where files are copied from.
pub(super) struct Source<'a> {
    pub(super) view: &'a View,
    /// What of it does not exist for the build.
    pub(super) ignore: Option<&'a Ignore>,
    /// Owners and extended attributes mean something: it is an image, not a directory of the host.
    pub(super) image: bool,
    /// How much of it may be read, where that is limited.
    pub(super) allowance: Option<Allowance>,
}

/// What all items of one instruction have in common.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<Chmod>,
    /// Archives are unpacked.
    pub(super) unpack: bool,
    /// What is left out, of paths inside of the sources.
    pub(super) exclude: Ignore,
}

impl Wanted {
    /// Mode and owner of something that has no others of its own.
    pub(super) fn attributes(&self, mode: u32) -> Attributes {
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        let mode = self.mode.as_ref().map_or(mode, |chmod| chmod.apply(mode, false));
        Attributes { mode, uid, gid, mtime: None, xattrs: Vec::new() }
    }
}

/// Something that is being collected.
pub(super) struct Place {
    /// Its path as it was found, which `.dockerignore` speaks of.
    pub(super) named: PathBuf,
    /// Its path inside of the source, which `--exclude` speaks of; empty for the source itself.
    pub(super) inner: PathBuf,
    /// Its path in the image.
    pub(super) target: PathBuf,
}

impl Place {
    pub(super) fn child(&self, name: &OsStr) -> Self {
        Self { named: self.named.join(name), inner: self.inner.join(name), target: self.target.join(name) }
    }
}

impl Source<'_> {
    pub(super) fn read_error(&self, path: &Path, cause: io::Error) -> Error {
        let operation = if self.image { "read from the image" } else { "read from the build context" };
        Error::io(operation, path, cause)
    }

    /// The names of a directory.
    pub(super) fn names(&self, dir: &Dir, path: &Path) -> Result<Vec<OsString>> {
        let names = self.view.names(dir).map_err(|cause| self.read_error(path, cause))?;
        if let Some(allowance) = &self.allowance {
            allowance.spend_files(names.len())?;
        }
        Ok(names)
    }

    /// The digest of a file.
    fn digest(&self, file: File, path: &Path) -> Result<Digest> {
        let fail = |cause| self.read_error(path, cause);
        if let Some(allowance) = &self.allowance {
            allowance.spend(file.metadata().map_err(fail)?.len())?;
        }
        hash(file).map_err(fail)
    }

    pub(super) fn ignored(&self, path: &Path) -> bool {
        self.ignore.is_some_and(|ignore| !path.as_os_str().is_empty() && ignore.excludes(bytes(path)))
    }

    /// The files and directories that a source word means, links followed; paths are as they were found. Only
    /// a pattern may mean none.
    pub(super) fn find(&self, pattern: &str) -> Result<Vec<(PathBuf, Node)>> {
        let mut found = vec![PathBuf::new()];
        let mut has_pattern = false;
        for part in cleaned(pattern) {
            let text = part.to_string_lossy();
            if !is_pattern(&text) {
                // An escape makes a wildcard a character.
                let part = if text.contains('\\') { unescaped(&text).into() } else { part };
                found.iter_mut().for_each(|path| path.push(&part));
                continue;
            }
            has_pattern = true;
            let compiled = Pattern::new(&text, false).map_err(|problem| refused(pattern, problem, None))?;
            let mut next = Vec::new();
            for path in found {
                let Some(Node::Dir(dir)) = self.lookup(&path)? else { continue };
                for name in self.names(&dir, &path)? {
                    if compiled.matches(name.as_bytes()) {
                        next.push(path.join(name));
                    }
                }
            }
            found = next;
        }
        let mut nodes = Vec::new();
        let mut hidden = false;
        for path in found {
            let Some(node) = self.lookup(&path)? else { continue };
            let exceptions = self.ignore.is_some_and(Ignore::has_exceptions) && matches!(node, Node::Dir(_));
            if self.ignored(&path) && !exceptions {
                hidden = true;
                continue;
            }
            nodes.push((path, node));
        }
        if nodes.is_empty() && !has_pattern {
            return Err(self.missing(pattern, hidden));
        }
        Ok(nodes)
    }

    /// That a source word means nothing.
    pub(super) fn missing(&self, pattern: &str, hidden: bool) -> Error {
        let outside = || components(OsStr::new(pattern)).iter().any(|part| part == "..");
        let hint = match () {
            () if hidden => Some("`.dockerignore` leaves it out".to_owned()),
            () if !self.image && outside() => {
                Some("only files inside the build context can be copied".to_owned())
            }
            () => match self.near(Path::new(pattern)) {
                Some(near) => Some(format!("did you mean `{}`?", near.display())),
                None if self.image => None,
                None => {
                    Some("paths are relative to the build context, wherever the Dockerfile is".to_owned())
                }
            },
        };
        let problem = if self.image { "is not in the image" } else { "is not in the build context" };
        refused(pattern, problem.to_owned(), hint)
    }

    /// What is beside `path`, which is not there, and was most likely meant.
    fn near(&self, path: &Path) -> Option<PathBuf> {
        let (beside, name) = (path.parent()?, path.file_name()?.to_str()?);
        // Anything is near to a name of three letters.
        if name.len() <= 3 {
            return None;
        }
        let Ok(Some(Node::Dir(dir))) = self.lookup(beside) else { return None };
        let names = self.view.names(&dir).ok()?;
        let names: Vec<&str> = names.iter().filter_map(|name| name.to_str()).collect();
        nearest(name, &names).map(|name| beside.join(name))
    }

    pub(super) fn lookup(&self, path: &Path) -> Result<Option<Node>> {
        match self.view.resolve(path, true) {
            Ok(Resolved::Found(node)) => Ok(Some(node)),
            Ok(Resolved::Missing { .. }) => Ok(None),
            Err(cause) if cause.kind() == io::ErrorKind::NotADirectory => Ok(None),
            Err(cause) => Err(self.read_error(path, cause)),
        }
    }

    /// Lists what a source brings, into the directory `destination` or under its name.
    pub(super) fn collect(
        &self,
        named: &Path,
        node: Node,
        destination: &Path,
        into_dir: bool,
        wanted: &Wanted,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        let mut place =
            Place { named: named.to_owned(), inner: PathBuf::new(), target: destination.to_owned() };
        match node {
            Node::Dir(dir) => self.collect_dir(&place, &dir, wanted, items, 0),
            Node::Leaf(leaf) => {
                let name = named.file_name().unwrap_or_default();
                if wanted.exclude.excludes(name.as_bytes()) {
                    return Ok(());
                }
                if wanted.unpack && leaf.is_file() && self.collect_archive(&place, &leaf, wanted, items)? {
                    return Ok(());
                }
                if into_dir {
                    place.target.push(name);
                }
                self.collect_leaf(&place, &leaf, wanted, items)
            }
        }
    }

    /// Lists the matches of a pattern with the directories that lead to them (`--parents`). What stands before
    /// `/./` is left out of their paths.
    pub(super) fn collect_parents(
        &self,
        pattern: &str,
        destination: &Path,
        wanted: &Wanted,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        let (root, inner) = pattern.split_once("/./").unwrap_or(("/", pattern));
        let parts =
            parents::Parts::new(&cleaned(inner)).map_err(|problem| refused(pattern, problem, None))?;
        let before = items.len();
        for (named, node) in self.find(if root.is_empty() { "/" } else { root })? {
            let Node::Dir(dir) = node else { continue };
            let place = Place { named, inner: PathBuf::new(), target: destination.to_owned() };
            parents::collect(self, &parts, &place, &dir, wanted, items)?;
        }
        if items.len() == before && !is_pattern(pattern) {
            return Err(self.missing(pattern, false));
        }
        Ok(())
    }

    /// Lists an archive to be unpacked; false if the file is none.
    fn collect_archive(
        &self,
        place: &Place,
        leaf: &Leaf,
        wanted: &Wanted,
        items: &mut Vec<Item>,
    ) -> Result<bool> {
        let fail = |cause| self.read_error(&place.named, cause);
        let mut file = leaf.open().map_err(fail)?;
        if !archive::is_archive(&mut file).map_err(fail)? {
            return Ok(false);
        }
        if wanted.mode.is_some() {
            let problem = "is an archive, to which --chmod does not apply".to_owned();
            let hint = Some("set the modes in a RUN instruction".to_owned());
            return Err(refused(&place.named.to_string_lossy(), problem, hint));
        }
        let content = Content::Archive(self.digest(file, &place.named)?);
        let (attributes, target) = (Attributes::of(&leaf.stat), place.target.clone());
        items.push(Item { origin: Origin::View(leaf.path.clone()), target, attributes, content });
        Ok(true)
    }

    pub(super) fn left_out(&self, place: &Place, wanted: &Wanted) -> bool {
        let inner = bytes(&place.inner);
        self.ignored(&place.named) || (!inner.is_empty() && wanted.exclude.excludes(inner))
    }

    /// Lists a directory and all below it. The attributes of the topmost one count only where it is new.
    pub(super) fn collect_dir(
        &self,
        place: &Place,
        dir: &Dir,
        wanted: &Wanted,
        items: &mut Vec<Item>,
        depth: usize,
    ) -> Result<()> {
        if depth > MAX_DEPTH {
            let problem = format!("nests directories more than {MAX_DEPTH} deep");
            return Err(refused(&place.named.to_string_lossy(), problem, None));
        }
        if !self.left_out(place, wanted) {
            let mut item = self.dir_item(place, dir, wanted, depth > 0)?;
            if depth == 0 {
                // The destination is what the contents are copied into, and none of them.
                item.attributes = Attributes::new_dir(wanted.owner);
            }
            items.push(item);
        }
        let exceptions = self.ignore.is_some_and(Ignore::has_exceptions) || wanted.exclude.has_exceptions();
        for name in self.names(dir, &place.named)? {
            let place = place.child(&name);
            let left_out = self.left_out(&place, wanted);
            match self.view.child(dir, &name).map_err(|cause| self.read_error(&place.named, cause))? {
                Some(Node::Dir(child)) if !left_out || exceptions => {
                    self.collect_dir(&place, &child, wanted, items, depth + 1)?;
                }
                Some(Node::Leaf(leaf)) if !left_out => self.collect_leaf(&place, &leaf, wanted, items)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// A directory without what it holds.
    pub(super) fn dir_item(
        &self,
        place: &Place,
        dir: &Dir,
        wanted: &Wanted,
        overwrite: bool,
    ) -> Result<Item> {
        let fail = |cause| self.read_error(&place.named, cause);
        let mut attributes = self.attributes(&dir.stat().map_err(fail)?, wanted);
        if self.image {
            attributes.xattrs = node::xattrs(dir.fd()).map_err(fail)?;
        }
        let (origin, target) = (Origin::View(dir.path.clone()), place.target.clone());
        Ok(Item { origin, target, attributes, content: Content::Dir { overwrite } })
    }

    /// Lists what is no directory.
    pub(super) fn collect_leaf(
        &self,
        place: &Place,
        leaf: &Leaf,
        wanted: &Wanted,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        let fail = |cause| self.read_error(&place.named, cause);
        let mut attributes = self.attributes(&leaf.stat, wanted);
        let content = if leaf.is_file() {
            let file = leaf.open().map_err(fail)?;
            if self.image {
                attributes.xattrs = node::xattrs(&file).map_err(fail)?;
            }
            Content::File(self.digest(file, &place.named)?)
        } else if leaf.is_link() {
            Content::Link(leaf.read_link().map_err(fail)?)
        } else if node::kind(&leaf.stat) == rustix::fs::FileType::Fifo {
            Content::Pipe
        } else {
            let problem = "is a socket or a device, which cannot be copied".to_owned();
            return Err(refused(&place.named.to_string_lossy(), problem, None));
        };
        let (origin, target) = (Origin::View(leaf.path.clone()), place.target.clone());
        items.push(Item { origin, target, attributes, content });
        Ok(())
    }

    /// Files of the host become root's; those of an image keep their owners.
    fn attributes(&self, stat: &rustix::fs::Stat, wanted: &Wanted) -> Attributes {
        let mut attributes = Attributes::of(stat);
        // A link has no mode of its own.
        if let Some(chmod) =
            wanted.mode.as_ref().filter(|_| node::kind(stat) != rustix::fs::FileType::Symlink)
        {
            attributes.mode = chmod.apply(attributes.mode, node::is_dir(stat));
        }
        match wanted.owner {
            Some((uid, gid)) => (attributes.uid, attributes.gid) = (uid, gid),
            None if !self.image => (attributes.uid, attributes.gid) = (0, 0),
            None => {}
        }
        attributes
    }
}

/// An error about a source word.
pub(super) fn refused(pattern: &str, problem: String, hint: Option<String>) -> Error {
    Error::CopySource { pattern: pattern.to_owned(), problem, hint }
}

/// The names of a source's path. `..` leads to the root at most, as BuildKit has it.
fn cleaned(path: &str) -> Vec<OsString> {
    let mut parts = Vec::new();
    for part in components(OsStr::new(path)) {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts
}

/// A name whose wildcards were escaped.
pub(super) fn unescaped(name: &str) -> String {
    let mut out = String::new();
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}
