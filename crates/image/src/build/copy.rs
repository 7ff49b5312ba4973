//! `COPY` and `ADD`: which files, where to, and their digest, before anything is written.

use std::ffi::OsStr;
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::archive::{self, Limits};
use crate::build::stage::{StageState, clean};
use crate::build::{Builder, Context, Files, Outcome, Step, cache};
use crate::digest::{Digest, Hasher};
use crate::dockerfile::{Copy, Scope};
use crate::error::{Error, Result};
use crate::layer::{LayerWriter, bytes};
use crate::node::{self, Attributes, MAX_DEPTH};
use crate::pattern::{Ignore, Pattern, is_pattern};
use crate::user;
use crate::view::{Dir, Leaf, Node, Resolved, View, components};

/// Where files are copied from.
struct Source<'a> {
    view: &'a View,
    /// What of it does not exist for the build.
    ignore: Option<&'a Ignore>,
    /// Owners and extended attributes mean something: it is an image, not a directory of the host.
    image: bool,
}

/// One file to be written.
struct Item {
    /// Path in the source, free of links; empty for what stands in the Dockerfile.
    source: PathBuf,
    /// Path in the image.
    target: PathBuf,
    attributes: Attributes,
    content: Content,
}

enum Content {
    /// A directory; its attributes replace those of one that is there, but for the topmost.
    Dir {
        overwrite: bool,
    },
    File(Digest),
    Link(std::ffi::OsString),
    Pipe,
    /// An archive to unpack below the target.
    Archive(Digest),
    /// Text of the Dockerfile.
    Inline(String),
}

/// What all items of one instruction have in common.
struct Wanted {
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
    add: bool,
}

impl Builder<'_> {
    pub(super) fn copy(
        &mut self,
        state: &mut StageState,
        copy: &Copy,
        stage: usize,
        step: Step<'_>,
    ) -> Result<Outcome> {
        let dockerfile = self.dockerfile;
        let expand = |word: &String| dockerfile.expand(word, state, step.line);
        let patterns: Vec<String> = copy.sources.iter().map(expand).collect::<Result<_>>()?;
        let written = expand(&copy.destination)?;
        let store = self.store;
        let lower = store.view(&state.built.layers)?;
        let owner = match &copy.chown {
            Some(spec) => Some(user::resolve_owner(&lower, &expand(spec)?)?),
            None => None,
        };
        let wanted = Wanted { owner, mode: copy.chmod, add: copy.add };
        let target = clean(state.workdir(), &written);
        let is_dir = destination_is_dir(&lower, !state.built.layers.is_empty(), &target, &written)?;
        if patterns.len() + copy.heredocs.len() > 1 && !is_dir.explicit {
            let message = format!("with several sources the destination `{written}` must end with `/`");
            return Err(dockerfile.error(step.line, message));
        }

        let files = self.files(copy.from.as_deref(), stage, step.line)?;
        let image_view = match &files {
            Files::Layers(layers) => Some(store.view(layers)?),
            Files::Context(_) => None,
        };
        let context = match &files {
            // Nothing but text of the Dockerfile.
            Files::Context(_) if patterns.is_empty() => None,
            Files::Context(name) => Some(self.open_context(name)?),
            Files::Layers(_) => None,
        };
        let source = match (&image_view, context) {
            (Some(view), _) => Some(Source { view, ignore: None, image: true }),
            (None, Some(context)) => {
                Some(Source { view: &context.view, ignore: Some(&context.ignore), image: false })
            }
            (None, None) => None,
        };

        let mut items = Vec::new();
        if let Some(source) = &source {
            for pattern in &patterns {
                let found = source.find(pattern)?;
                if found.len() > 1 && !is_dir.explicit {
                    let message = format!("`{pattern}` means several files: `{written}` must end with `/`");
                    return Err(dockerfile.error(step.line, message));
                }
                for (name, node) in found {
                    source.collect(&name, node, Path::new(&target), is_dir.any(), &wanted, &mut items)?;
                }
            }
        }
        for document in &copy.heredocs {
            let text = if document.expand {
                expand_document(&document.content, state)
            } else {
                document.content.clone()
            };
            let target =
                if is_dir.any() { Path::new(&target).join(&document.word) } else { PathBuf::from(&target) };
            let (uid, gid) = wanted.owner.unwrap_or((0, 0));
            let mode = wanted.mode.unwrap_or(0o644);
            let attributes = Attributes { mode, uid, gid, mtime: None, xattrs: Vec::new() };
            items.push(Item { source: PathBuf::new(), target, attributes, content: Content::Inline(text) });
        }

        let mut key = cache::key(&state.built.layers, if copy.add { "ADD" } else { "COPY" });
        key.field(target.as_bytes());
        key.field(format!("{:?} {:?}", wanted.owner, wanted.mode).as_bytes());
        for item in &items {
            item.key(&mut key);
        }
        // The source borrows the context: it is lent out until the layer is made.
        let lent = match &files {
            Files::Context(name) => self.contexts.remove_entry(name),
            Files::Layers(_) => None,
        };
        let view = image_view.as_ref().or(lent.as_ref().map(|(_, context)| &context.view));
        let outcome = self.layer(state, key.finish(), step, |builder, state, scratch| {
            let top = builder.store.new_layer(scratch)?;
            let writer = LayerWriter::open(&builder.store.layer_dirs(&state.built.layers), &top)?;
            if is_dir.any() {
                writer
                    .make_path(Path::new(&target), wanted.owner)
                    .map_err(|error| not_a_dir(&target, error))?;
            } else if let Some(parent) = Path::new(&target).parent() {
                writer.make_path(parent, wanted.owner).map_err(|error| not_a_dir(&target, error))?;
            }
            for item in &items {
                item.write(view, &writer, &wanted)?;
            }
            Ok(Some(top))
        });
        self.contexts.extend(lent);
        outcome
    }
}

/// Files of a context, for a mount of a `RUN` instruction.
pub(super) struct Gathered(Vec<Item>);

impl Gathered {
    /// The name that they get in the directory that they are written to.
    pub(super) const NAME: &str = "files";

    /// Adds all that they are to a key.
    pub(super) fn key(&self, key: &mut Hasher) {
        self.0.iter().for_each(|item| item.key(key));
    }

    /// Copies them into a directory.
    pub(super) fn write(&self, context: Option<&Context>, top: &Path) -> Result<()> {
        let writer = LayerWriter::open(&[], top)?;
        let wanted = Wanted { owner: None, mode: None, add: false };
        self.0.iter().try_for_each(|item| item.write(context.map(|context| &context.view), &writer, &wanted))
    }
}

impl Builder<'_> {
    /// What is at the path `from` in a context, without what `.dockerignore` leaves out.
    pub(super) fn gather(&mut self, context: &Option<String>, from: &str) -> Result<Gathered> {
        let context = self.open_context(context)?;
        let source = Source { view: &context.view, ignore: Some(&context.ignore), image: false };
        let wanted = Wanted { owner: None, mode: None, add: false };
        let mut items = Vec::new();
        for (name, node) in source.find(from)? {
            source.collect(&name, node, Path::new(Gathered::NAME), false, &wanted, &mut items)?;
        }
        Ok(Gathered(items))
    }
}

fn not_a_dir(target: &str, error: Error) -> Error {
    match error {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::NotADirectory => {
            Error::CopyDestination { path: target.to_owned(), problem: "lies below a file".to_owned() }
        }
        other => other,
    }
}

/// Whether a destination is a directory.
struct IsDir {
    /// As it is written.
    explicit: bool,
    /// In the image.
    exists: bool,
}

impl IsDir {
    fn any(&self) -> bool {
        self.explicit || self.exists
    }
}

fn destination_is_dir(lower: &View, has_layers: bool, target: &str, written: &str) -> Result<IsDir> {
    let last = written.rsplit('/').next().unwrap_or("");
    let explicit = matches!(last, "" | "." | "..");
    let mut exists = target == "/";
    if has_layers {
        match lower.resolve(Path::new(target), true) {
            Ok(Resolved::Found(Node::Dir(_))) => exists = true,
            Ok(Resolved::Found(Node::Leaf(_))) if explicit => {
                return Err(Error::CopyDestination {
                    path: target.to_owned(),
                    problem: "is a file".to_owned(),
                });
            }
            Ok(_) => {}
            Err(cause) if cause.kind() == io::ErrorKind::NotADirectory => {
                return Err(Error::CopyDestination {
                    path: target.to_owned(),
                    problem: "lies below a file".to_owned(),
                });
            }
            Err(cause) => return Err(Error::io("look up in the image", target, cause)),
        }
    }
    Ok(IsDir { explicit, exists })
}

/// Replaces variables in a here-document, where quotes are text.
fn expand_document(text: &str, scope: &dyn Scope) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['$', '\\']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix('\\') {
            let escaped = after.chars().next().filter(|c| matches!(c, '$' | '\\'));
            out.push(escaped.unwrap_or('\\'));
            rest = &after[escaped.map_or(0, char::len_utf8)..];
            continue;
        }
        let after = &rest[1..];
        let braced = after.starts_with('{');
        let name_at = &after[usize::from(braced)..];
        let length = name_at.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
        let name = &name_at[..length];
        let end = usize::from(braced) + length;
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if starts_well && (!braced || after[end..].starts_with('}')) {
            out.push_str(&scope.get(name).unwrap_or_default());
            rest = &after[end + usize::from(braced)..];
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

impl Source<'_> {
    fn read_error(&self, path: &Path, cause: io::Error) -> Error {
        let operation = if self.image { "read from the image" } else { "read from the build context" };
        Error::io(operation, path, cause)
    }

    fn ignored(&self, path: &Path) -> bool {
        self.ignore.is_some_and(|ignore| !path.as_os_str().is_empty() && ignore.excludes(bytes(path)))
    }

    /// The files and directories that a source word means, links followed; paths are as they were found.
    fn find(&self, pattern: &str) -> Result<Vec<(PathBuf, Node)>> {
        let refuse = |problem: &str, hint: Option<String>| {
            Err(Error::CopySource { pattern: pattern.to_owned(), problem: problem.to_owned(), hint })
        };
        let mut parts: Vec<std::ffi::OsString> = Vec::new();
        for part in components(OsStr::new(pattern)) {
            if part != ".." {
                parts.push(part);
            } else if parts.pop().is_none() && !self.image {
                let hint = "only files inside the build context can be copied".to_owned();
                return refuse("leads out of the build context", Some(hint));
            }
        }
        let mut found = vec![PathBuf::new()];
        for part in &parts {
            let text = part.to_string_lossy();
            if !is_pattern(&text) {
                found.iter_mut().for_each(|path| path.push(part));
                continue;
            }
            let compiled = match Pattern::new(&text, false) {
                Ok(compiled) => compiled,
                Err(problem) => return refuse(&problem, None),
            };
            let mut next = Vec::new();
            for path in found {
                let Some(Node::Dir(dir)) = self.lookup(&path)? else { continue };
                for name in self.view.names(&dir).map_err(|cause| self.read_error(&path, cause))? {
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
        if nodes.is_empty() {
            let hint = hidden.then(|| "`.dockerignore` leaves it out".to_owned());
            return refuse(
                if self.image { "is not in the image" } else { "is not in the build context" },
                hint,
            );
        }
        Ok(nodes)
    }

    fn lookup(&self, path: &Path) -> Result<Option<Node>> {
        match self.view.resolve(path, true) {
            Ok(Resolved::Found(node)) => Ok(Some(node)),
            Ok(Resolved::Missing { .. }) => Ok(None),
            Err(cause) if cause.kind() == io::ErrorKind::NotADirectory => Ok(None),
            Err(cause) => Err(self.read_error(path, cause)),
        }
    }

    /// Lists what a source brings. `named` is its path as found, which `.dockerignore` speaks of.
    fn collect(
        &self,
        named: &Path,
        node: Node,
        destination: &Path,
        into_dir: bool,
        wanted: &Wanted,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        match node {
            Node::Dir(dir) => self.collect_dir(named, &dir, destination, wanted, items, 0),
            Node::Leaf(leaf) => {
                if wanted.add && leaf.is_file() {
                    let mut file = leaf.open().map_err(|cause| self.read_error(named, cause))?;
                    if archive::is_archive(&mut file).map_err(|cause| self.read_error(named, cause))? {
                        if wanted.mode.is_some() {
                            return Err(Error::CopySource {
                                pattern: named.display().to_string(),
                                problem: "is an archive, to which --chmod does not apply".to_owned(),
                                hint: Some("set the modes in a RUN instruction".to_owned()),
                            });
                        }
                        let digest = hash(file).map_err(|cause| self.read_error(named, cause))?;
                        let attributes = Attributes::of(&leaf.stat);
                        let content = Content::Archive(digest);
                        items.push(Item {
                            source: leaf.path,
                            target: destination.to_owned(),
                            attributes,
                            content,
                        });
                        return Ok(());
                    }
                }
                let name = named.file_name().unwrap_or_default();
                let target = if into_dir { destination.join(name) } else { destination.to_owned() };
                self.collect_leaf(named, &leaf, target, wanted, items)
            }
        }
    }

    fn collect_dir(
        &self,
        named: &Path,
        dir: &Dir,
        target: &Path,
        wanted: &Wanted,
        items: &mut Vec<Item>,
        depth: usize,
    ) -> Result<()> {
        if depth > MAX_DEPTH {
            let problem = format!("nests directories more than {MAX_DEPTH} deep");
            return Err(Error::CopySource { pattern: named.display().to_string(), problem, hint: None });
        }
        let fail = |cause| self.read_error(named, cause);
        let ignored = self.ignored(named);
        if !ignored {
            let mut attributes = self.attributes(&dir.stat().map_err(fail)?, wanted);
            if self.image {
                attributes.xattrs = node::xattrs(dir.fd()).map_err(fail)?;
            }
            let content = Content::Dir { overwrite: depth > 0 };
            items.push(Item { source: dir.path.clone(), target: target.to_owned(), attributes, content });
        }
        for name in self.view.names(dir).map_err(fail)? {
            let named = named.join(&name);
            let target = target.join(&name);
            let ignored = self.ignored(&named);
            match self.view.child(dir, &name).map_err(|cause| self.read_error(&named, cause))? {
                Some(Node::Dir(child)) if !ignored || self.ignore.is_some_and(Ignore::has_exceptions) => {
                    self.collect_dir(&named, &child, &target, wanted, items, depth + 1)?;
                }
                Some(Node::Leaf(leaf)) if !ignored => {
                    self.collect_leaf(&named, &leaf, target, wanted, items)?
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn collect_leaf(
        &self,
        named: &Path,
        leaf: &Leaf,
        target: PathBuf,
        wanted: &Wanted,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        let fail = |cause| self.read_error(named, cause);
        let mut attributes = self.attributes(&leaf.stat, wanted);
        let content = if leaf.is_file() {
            let file = leaf.open().map_err(fail)?;
            if self.image {
                attributes.xattrs = node::xattrs(&file).map_err(fail)?;
            }
            Content::File(hash(file).map_err(fail)?)
        } else if leaf.is_link() {
            Content::Link(leaf.read_link().map_err(fail)?)
        } else if node::kind(&leaf.stat) == rustix::fs::FileType::Fifo {
            Content::Pipe
        } else {
            let problem = "is a socket or a device, which cannot be copied".to_owned();
            return Err(Error::CopySource { pattern: named.display().to_string(), problem, hint: None });
        };
        items.push(Item { source: leaf.path.clone(), target, attributes, content });
        Ok(())
    }

    /// Files of the host become root's; those of an image keep their owners.
    fn attributes(&self, stat: &rustix::fs::Stat, wanted: &Wanted) -> Attributes {
        let mut attributes = Attributes::of(stat);
        if let Some(mode) = wanted.mode {
            attributes.mode = mode;
        }
        match wanted.owner {
            Some((uid, gid)) => (attributes.uid, attributes.gid) = (uid, gid),
            None if !self.image => (attributes.uid, attributes.gid) = (0, 0),
            None => {}
        }
        attributes
    }
}

fn hash(mut file: std::fs::File) -> io::Result<Digest> {
    file.rewind()?;
    let mut hasher = Hasher::new();
    io::copy(&mut file, &mut hasher)?;
    Ok(hasher.finish())
}

impl Item {
    /// Adds all that the layer depends on, but times.
    fn key(&self, key: &mut Hasher) {
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
        };
        key.field(format!("{kind} {mode:o} {uid}:{gid} {}", xattrs.len()).as_bytes());
        for (name, value) in xattrs {
            key.field(name.as_bytes());
            key.field(value);
        }
        key.field(content);
    }

    fn write(&self, view: Option<&View>, writer: &LayerWriter, wanted: &Wanted) -> Result<()> {
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
            let (file, name) = (self.open(view)?, self.source.display().to_string());
            let (_, below) = writer.make_path(&self.target, wanted.owner)?;
            let options = archive::Unpack {
                archive: &name,
                limits: &Limits::default(),
                whiteouts: false,
                below: &below,
                sha256: Some(digest.hex()),
                owner: wanted.owner,
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
        }
    }

    fn changed(&self) -> Error {
        let problem = "changed while it was copied".to_owned();
        Error::CopySource {
            pattern: self.source.display().to_string(),
            problem,
            hint: Some("build again".to_owned()),
        }
    }

    fn open(&self, view: Option<&View>) -> Result<std::fs::File> {
        let fail = |cause| Error::io("read", &self.source, cause);
        let found = view.map(|view| view.resolve(&self.source, false)).transpose().map_err(fail)?;
        match found {
            Some(Resolved::Found(Node::Leaf(leaf))) if leaf.is_file() => leaf.open().map_err(fail),
            _ => Err(self.changed()),
        }
    }

    /// Copies the content, and makes sure that it is what the key was made of.
    fn write_file(&self, mut from: std::fs::File, digest: &Digest, writer: &LayerWriter) -> Result<()> {
        writer.put_file(&self.target, &self.attributes, &mut |to| {
            let mut hasher = Hasher::new();
            let mut buffer = vec![0; 128 * 1024];
            loop {
                let length = match from.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => length,
                    Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                    Err(cause) => return Err(Error::io("read", &self.source, cause)),
                };
                hasher.update(&buffer[..length]);
                to.write_all(&buffer[..length]).map_err(|cause| writer.fail("write", &self.target, cause))?;
            }
            if hasher.finish() == *digest { Ok(()) } else { Err(self.changed()) }
        })
    }
}
