//! `COPY` and `ADD`: which files, where to, and their digest, before anything is written.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::build::add_git::{Repository, is_repository};
use crate::build::add_url::Download;
use crate::build::chmod::Chmod;
use crate::build::item::{Content, Item, Origin};
use crate::build::source::{Source, Wanted, refused};
use crate::build::stage::{On, StageState};
use crate::build::{BuildEvent, Builder, Context, Files, Outcome, Step, cache, reach};
use crate::digest::Hasher;
use crate::dockerfile::{Copy, clean, expand_document};
use crate::error::{Error, Result};
use crate::layer::{LayerWriter, bytes};
use crate::pattern::Ignore;
use crate::scratch::Scratch;
use crate::user;
use crate::view::{Node, Resolved, View};

/// Mode of a downloaded file, as BuildKit gives it.
const DOWNLOAD_MODE: u32 = 0o600;
/// Mode of a file whose text stands in the Dockerfile.
const TEXT_MODE: u32 = 0o644;

/// The words of an instruction, expanded.
struct Words {
    sources: Vec<String>,
    /// As written.
    written: String,
    /// Absolute.
    target: PathBuf,
    checksum: Option<String>,
}

impl Builder<'_> {
    pub(super) fn copy(
        &mut self,
        state: &mut StageState,
        copy: &Copy,
        stage: usize,
        step: Step<'_>,
    ) -> Result<Outcome> {
        let store = self.store;
        let lower = store.view(&state.built.layers)?;
        let (words, wanted) = self.read_words(state, copy, step, &lower)?;
        // With `--link`, the files go to where they would on top of nothing.
        let on = if copy.link { On::Nothing } else { On::Below };
        let below = if copy.link { Vec::new() } else { state.built.layers.clone() };
        let lower = if copy.link { store.view(&below)? } else { lower };
        let mut is_dir = destination_is_dir(&lower, !below.is_empty(), &words)?;
        // Their paths go on below it.
        is_dir.explicit |= copy.parents;

        let (remote, local): (Vec<&String>, Vec<&String>) =
            words.sources.iter().partition(|source| copy.add && is_remote(source));
        if words.checksum.is_some() && (remote.len() != 1 || !local.is_empty()) {
            let message = "--checksum is for one source that is an address";
            return Err(self.dockerfile.error(step.line, message));
        }
        if let Some(url) = local.iter().find(|source| is_remote(source)) {
            let hint = Some("ADD does".to_owned());
            return Err(refused(url, "is an address: COPY takes no address".to_owned(), hint));
        }
        let from = self.files(copy.from.as_deref(), stage, step.line)?;
        // Outside of the id map an image's files have other owners; and who asks a server does more than look.
        if !remote.is_empty() || matches!(from, Files::Layers(_)) {
            self.begin_to_make()?;
        }
        let allowance = self.allowance.clone();
        let image_view = match &from {
            Files::Layers(layers) => Some(store.view(layers)?),
            Files::Context(_) => None,
        };
        let context = match &from {
            Files::Context(name) if !local.is_empty() => Some(self.open_context(name)?),
            // Nothing but text of the Dockerfile, and downloads.
            Files::Context(_) | Files::Layers(_) => None,
        };
        let source = match (&image_view, context) {
            (Some(view), _) => Some(Source { view, ignore: None, image: true, allowance }),
            (None, Some(context)) => {
                let (view, ignore) = (&context.view, Some(&context.ignore));
                Some(Source { view, ignore, image: false, allowance })
            }
            (None, None) => None,
        };

        let mut items = Vec::new();
        let is_file = |url: &&&String| !is_repository(url);
        let mut files = remote.iter().filter(is_file).count() + copy.heredocs.len();
        let mut sources = remote.len() + copy.heredocs.len();
        for pattern in local {
            let Some(source) = &source else { continue };
            if copy.parents {
                source.collect_parents(pattern, &words.target, &wanted, &mut items)?;
                continue;
            }
            for (name, node) in source.find(pattern)? {
                sources += 1;
                files += usize::from(matches!(node, Node::Leaf(_)));
                source.collect(&name, node, &words.target, is_dir.any(), &wanted, &mut items)?;
            }
        }
        if sources > 1 && files > 0 && !is_dir.any() {
            let message =
                format!("with several sources the destination `{}` must end with `/`", words.written);
            return Err(self.dockerfile.error(step.line, message));
        }
        if sources == 0 && items.is_empty() {
            let place = format!("{}:{}", self.dockerfile.name, step.line);
            let message = format!("{place}: no file matches `{}`", words.sources.join("`, `"));
            (self.progress)(BuildEvent::Warning(message));
        }
        if !remote.is_empty() {
            let scratch = Rc::new(Scratch::new(&store.tmp())?);
            for url in remote {
                if !self.request.reaches_host {
                    reach::check(url)?;
                }
                if is_repository(url) {
                    items.push(self.repository_item(url, copy, &words, &wanted)?);
                    continue;
                }
                let host = self.request.reaches_host;
                let download = Download::begin(store, url, words.checksum.as_deref(), &scratch, host)?;
                items.push(download_item(download, copy, &words, is_dir.any(), &wanted)?);
            }
        }
        for document in &copy.heredocs {
            let text = match document.expand {
                true => expand_document(&document.content, state)
                    .map_err(|problem| self.dockerfile.error(step.line, problem))?,
                false => document.content.clone(),
            };
            let target = if is_dir.any() { words.target.join(&document.word) } else { words.target.clone() };
            let (attributes, content) = (wanted.attributes(TEXT_MODE), Content::Inline(text));
            items.push(Item { origin: Origin::Text, target, attributes, content });
        }

        let mut key = cache::key(&below, if copy.add { "ADD" } else { "COPY" });
        key.field(bytes(&words.target));
        key.field(format!("{:?} {:?} {}", wanted.owner, wanted.mode, is_dir.any()).as_bytes());
        for item in &items {
            item.key(&mut key);
        }
        // The source borrows the context: it is lent out until the layer is made.
        let lent = match &from {
            Files::Context(name) => self.contexts.remove_entry(name),
            Files::Layers(_) => None,
        };
        let view = image_view.as_ref().or(lent.as_ref().map(|(_, context)| &context.view));
        let outcome = self.layer(state, (key.finish(), on), step, |builder, _, scratch| {
            let top = builder.store.new_layer(scratch)?;
            let writer = LayerWriter::open(&builder.store.layer_dirs(&below), &top)?;
            let made = if is_dir.any() { Some(words.target.as_path()) } else { words.target.parent() };
            if let Some(made) = made {
                writer.make_path(made, wanted.owner).map_err(|error| not_a_dir(&words.target, error))?;
            }
            for item in &items {
                match &item.content {
                    Content::Repository(repository) => {
                        builder.write_repository(repository, &item.target, scratch, &writer, &wanted)?;
                    }
                    _ => item.write(view, &writer, &wanted)?,
                }
            }
            Ok(Some(top))
        });
        self.contexts.extend(lent);
        outcome
    }

    fn read_words(
        &self,
        state: &StageState,
        copy: &Copy,
        step: Step<'_>,
        lower: &View,
    ) -> Result<(Words, Wanted)> {
        let dockerfile = self.dockerfile;
        let expand = |word: &String| dockerfile.expand(word, state, step.line);
        let sources: Vec<String> = copy.sources.iter().map(expand).collect::<Result<_>>()?;
        let written = expand(&copy.destination)?;
        let target = PathBuf::from(clean(state.workdir(), &written));
        let checksum = copy.checksum.as_ref().map(expand).transpose()?;
        let owner = match &copy.chown {
            Some(spec) => Some(user::resolve_owner(lower, &expand(spec)?)?),
            None => None,
        };
        let mode = copy.chmod.as_ref().map(expand).transpose()?;
        let mode = mode.map(|text| Chmod::parse(&text)).transpose();
        let mode = mode.map_err(|problem| dockerfile.error(step.line, problem))?;
        let exclude: Vec<String> = copy.exclude.iter().map(expand).collect::<Result<_>>()?;
        let exclude = Ignore::new(exclude.iter().map(String::as_str))
            .map_err(|(_, problem)| dockerfile.error(step.line, format!("--exclude: {problem}")))?;
        let unpack = copy.unpack.unwrap_or(copy.add);
        Ok((Words { sources, written, target, checksum }, Wanted { owner, mode, unpack, exclude }))
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
        let view = context.map(|context| &context.view);
        self.0.iter().try_for_each(|item| item.write(view, &writer, &Wanted::default()))
    }
}

impl Builder<'_> {
    fn repository_item(&mut self, url: &str, copy: &Copy, words: &Words, wanted: &Wanted) -> Result<Item> {
        let mut repository = Repository::parse(url, copy.keep_git_dir, words.checksum.as_deref())?;
        repository.find_commit(|source| self.runner.git_commit(source))?;
        let (attributes, target) = (wanted.attributes(0o755), words.target.clone());
        let content = Content::Repository(Rc::new(repository));
        Ok(Item { origin: Origin::Repository, target, attributes, content })
    }

    /// What is at the path `from` in a context, without what `.dockerignore` leaves out.
    pub(super) fn gather(&mut self, context: &Option<String>, from: &str) -> Result<Gathered> {
        let allowance = self.allowance.clone();
        let context = self.open_context(context)?;
        let source = Source { view: &context.view, ignore: Some(&context.ignore), image: false, allowance };
        let mut items = Vec::new();
        for (name, node) in source.find(from)? {
            source.collect(&name, node, Path::new(Gathered::NAME), false, &Wanted::default(), &mut items)?;
        }
        Ok(Gathered(items))
    }
}

/// What a downloaded file becomes.
fn download_item(
    download: Download,
    copy: &Copy,
    words: &Words,
    into_dir: bool,
    wanted: &Wanted,
) -> Result<Item> {
    let mut attributes = wanted.attributes(DOWNLOAD_MODE);
    attributes.mtime = Some((download.modified(), 0));
    let mut target = words.target.clone();
    // Unlike a file of the context, it is unpacked only where that is said.
    let content = if copy.unpack == Some(true) && download.is_archive()? {
        Content::Archive(download.digest().clone())
    } else {
        if into_dir {
            let name = download.file_name().ok_or_else(|| {
                let hint = Some("write the file's name behind the destination's `/`".to_owned());
                refused(download.url(), "names no file".to_owned(), hint)
            })?;
            target.push(name);
        }
        Content::File(download.digest().clone())
    };
    Ok(Item { origin: Origin::Download(Rc::new(download)), target, attributes, content })
}

/// Whether a source of `ADD` is an address.
fn is_remote(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://") || is_repository(source)
}

fn not_a_dir(target: &Path, error: Error) -> Error {
    match error {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::NotADirectory => Error::CopyDestination {
            path: target.display().to_string(),
            problem: "lies below a file".to_owned(),
        },
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

fn destination_is_dir(lower: &View, has_layers: bool, words: &Words) -> Result<IsDir> {
    let target = &words.target;
    let last = words.written.rsplit('/').next().unwrap_or("");
    let explicit = matches!(last, "" | "." | "..");
    let mut exists = target.file_name().is_none();
    if has_layers {
        match lower.resolve(target, true) {
            Ok(Resolved::Found(Node::Dir(_))) => exists = true,
            Ok(Resolved::Found(Node::Leaf(_))) if explicit => {
                return Err(Error::CopyDestination {
                    path: target.display().to_string(),
                    problem: "is a file".to_owned(),
                });
            }
            Ok(_) => {}
            Err(cause) if cause.kind() == io::ErrorKind::NotADirectory => {
                return Err(Error::CopyDestination {
                    path: target.display().to_string(),
                    problem: "lies below a file".to_owned(),
                });
            }
            Err(cause) => return Err(Error::io("look up in the image", target, cause)),
        }
    }
    Ok(IsDir { explicit, exists })
}
