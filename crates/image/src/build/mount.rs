//! `RUN --mount`: what the command sees beside the files of the image, none of which becomes part of the layer.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, fstat, unlinkat};
use rustix::io::Errno;

use crate::build::cache_dir::CacheDir;
use crate::build::copy::Gathered;
use crate::build::stage::StageState;
use crate::build::{Builder, Files, RunMount, RunSource, RunStep, Secret, Step};
use crate::digest::{Digest, Hasher, LayerId};
use crate::dockerfile::{Mount, MountFlag, MountKind};
use crate::error::{Error, Result};
use crate::node;
use crate::scratch::Scratch;
use crate::store::Store;
use crate::view::{Node, Resolved, View};

/// Where an agent's socket is when nothing is said (Dockerfile reference, "RUN --mount=type=ssh").
const AGENT: &str = "/run/buildkit/ssh_agent.";

/// The mounts of one instruction, and what they show.
pub(super) struct Mounts(Vec<(Mount, Shown)>);

/// What a mount shows, as far as the layer depends on it.
enum Shown {
    /// Nothing that was there before.
    Own,
    /// Files of a context.
    Context(Option<String>, Gathered),
    /// Files of a stage or an image.
    Layers(Vec<LayerId>),
}

/// What a command's mounts need while it runs.
pub(super) struct Prepared {
    /// Held for it.
    _caches: Vec<CacheDir>,
    stubs: Vec<Stub>,
}

impl Mounts {
    /// Adds all that the layer depends on: what is shown of stages and of the context, but of secrets, caches and
    /// agents only that they are there.
    pub(super) fn key(&self, key: &mut Hasher) {
        for (mount, shown) in &self.0 {
            key.field(format!("{mount:?}").as_bytes());
            match shown {
                Shown::Own => {}
                Shown::Context(_, files) => files.key(key),
                Shown::Layers(layers) => layers.iter().for_each(|layer| key.field(layer.hex().as_bytes())),
            }
        }
    }

    /// Takes the cache directories, in the order of the mounts; none where one has to be waited for.
    pub(super) fn caches(&self, store: &Store) -> Result<Option<Vec<CacheDir>>> {
        let mut taken = Vec::new();
        for (mount, shown) in &self.0 {
            let MountKind::Cache { id, sharing, owner, source, .. } = &mount.kind else { continue };
            let first = match shown {
                Shown::Layers(layers) => Some((&layers[..], source.as_str())),
                _ => None,
            };
            match CacheDir::take(store, id, *sharing, *owner, first)? {
                Some(cache) => taken.push(cache),
                None => return Ok(None),
            }
        }
        Ok(Some(taken))
    }
}

impl Builder<'_> {
    /// Finds out what the mounts of an instruction show.
    pub(super) fn mounts(
        &mut self,
        state: &StageState,
        flags: &[MountFlag],
        stage: usize,
        step: Step<'_>,
    ) -> Result<Mounts> {
        let mut mounts = Vec::new();
        for flag in flags {
            let mount = self.dockerfile.mount(flag, state, state.workdir(), step.line)?;
            let shown = match &mount.kind {
                MountKind::Bind { from, source } | MountKind::Cache { from: from @ Some(_), source, .. } => {
                    match self.files(from.as_deref(), stage, step.line)? {
                        Files::Layers(layers) => Shown::Layers(layers),
                        Files::Context(_) if matches!(mount.kind, MountKind::Cache { .. }) => {
                            let message =
                                "RUN: a cache can begin with a stage or an image, not with a directory";
                            return Err(self.dockerfile.error(step.line, message));
                        }
                        Files::Context(name) => {
                            let files = self.gather(&name, source)?;
                            Shown::Context(name, files)
                        }
                    }
                }
                _ => Shown::Own,
            };
            mounts.push((mount, shown));
        }
        Ok(Mounts(mounts))
    }

    /// Makes everything ready that the mounts show, and adds them to the step.
    pub(super) fn prepare_mounts(
        &mut self,
        state: &StageState,
        mounts: &Mounts,
        caches: Vec<CacheDir>,
        scratch: &Scratch,
        run: &mut RunStep,
    ) -> Result<Prepared> {
        let view = self.store.view(&state.built.layers)?;
        let mut stubs = Vec::new();
        let mut taken = caches.iter();
        for (index, (mount, shown)) in mounts.0.iter().enumerate() {
            let mut target = mount.target.clone();
            let source = match (&mount.kind, shown) {
                (MountKind::Bind { .. }, Shown::Context(context, files)) => {
                    let name = format!("context{index}");
                    let top = scratch.make_dir(&name)?;
                    files.write(self.contexts.get(context), &top)?;
                    RunSource::Directory(format!("tmp/{}/{name}/{}", scratch.name(), Gathered::NAME))
                }
                (MountKind::Bind { source, .. }, Shown::Layers(layers)) => {
                    let [upper, work, merged] =
                        ["upper", "work", "merged"].map(|part| format!("{part}{index}"));
                    for name in [&upper, &work, &merged] {
                        scratch.make_dir(name)?;
                    }
                    let path = |name: &str| format!("tmp/{}/{name}", scratch.name());
                    RunSource::Layers {
                        layers: self.store.layer_paths(layers),
                        source: source.clone(),
                        upper: path(&upper),
                        work: path(&work),
                        merged: path(&merged),
                    }
                }
                (MountKind::Cache { .. }, _) => match taken.next() {
                    Some(cache) => RunSource::Directory(cache.path()),
                    None => continue,
                },
                (MountKind::Tmpfs { size }, _) => RunSource::Tmpfs { size: *size },
                (MountKind::Secret { id, env, required, owner }, _) => {
                    let Some(content) = self.secret(id, *required)? else { continue };
                    if let Some(name) = env {
                        run.secret_env.push((name.clone(), content.clone()));
                    }
                    RunSource::File { content, mode: owner.mode, uid: owner.uid, gid: owner.gid }
                }
                (MountKind::Ssh { id, required, owner }, _) => {
                    if !self.agent(id, *required)? {
                        continue;
                    }
                    let socket = target.get_or_insert_with(|| format!("{AGENT}{index}"));
                    run.env.retain(|(name, _)| name != "SSH_AUTH_SOCK");
                    run.env.push(("SSH_AUTH_SOCK".to_owned(), socket.clone()));
                    let path = format!("tmp/{}/agent{index}", scratch.name());
                    RunSource::Agent {
                        id: id.clone(),
                        path,
                        mode: owner.mode,
                        uid: owner.uid,
                        gid: owner.gid,
                    }
                }
                (MountKind::Bind { .. }, Shown::Own) => continue,
            };
            let Some(target) = target else { continue };
            stubs.extend(Stub::of(&view, &target)?);
            run.mounts.push(RunMount { target, read_only: mount.read_only, source });
        }
        Ok(Prepared { _caches: caches, stubs })
    }

    fn secret(&self, id: &str, required: bool) -> Result<Option<Secret>> {
        match self.request.secrets.get(id) {
            None if required => Err(Error::NotGiven { what: "secret", id: id.to_owned() }),
            found => Ok(found.cloned()),
        }
    }

    fn agent(&self, id: &str, required: bool) -> Result<bool> {
        match self.request.agents.contains(id) {
            false if required => Err(Error::NotGiven { what: "SSH agent", id: id.to_owned() }),
            found => Ok(found),
        }
    }
}

impl Prepared {
    /// Takes away what of the mount points was made for the mounts, as far as nothing else is in it, and the
    /// directories above whose only change that was.
    pub(super) fn remove_stubs(&self, upper: &OwnedFd, lower: &[PathBuf]) -> Result<()> {
        if self.stubs.is_empty() {
            return Ok(());
        }
        let view = View::open(lower).map_err(|(path, cause)| Error::io("open layer", path, cause))?;
        // The last that was made may lie in one that was made before.
        for stub in self.stubs.iter().rev() {
            stub.remove(upper, &view)
                .map_err(|cause| Error::io("remove the mount point", &stub.dir, cause))?;
        }
        Ok(())
    }
}

/// A mount point that the image does not have.
struct Stub {
    /// The last directory on the way that the image has, free of links.
    dir: PathBuf,
    /// The names after it.
    rest: Vec<OsString>,
}

impl Stub {
    fn of(view: &View, target: &str) -> Result<Option<Self>> {
        match view.resolve(Path::new(target), true) {
            Ok(Resolved::Missing { dir, rest }) => Ok(Some(Self { dir: dir.path, rest })),
            Ok(Resolved::Found(_)) => Ok(None),
            Err(cause) => Err(Error::io("look up in the image", target, cause)),
        }
    }

    /// The command may have put anything in the place of what was made: no link is followed.
    fn remove(&self, upper: &OwnedFd, below: &View) -> io::Result<()> {
        let names: Vec<&OsStr> = self
            .dir
            .components()
            .map(|part| part.as_os_str())
            .chain(self.rest.iter().map(|n| &**n))
            .collect();
        let had = names.len() - self.rest.len();
        let mut open = vec![upper.try_clone()?];
        for name in &names[..names.len().saturating_sub(1)] {
            match node::open_dir(&open[open.len() - 1], name) {
                Ok(dir) => open.push(dir),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => break,
                Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        for depth in (0..open.len()).rev() {
            let Some(name) = names.get(depth) else { continue };
            let Some(stat) = node::stat(&open[depth], name)? else { continue };
            let flags = if node::is_dir(&stat) { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            let empty = node::is_dir(&stat)
                || (node::kind(&stat) == rustix::fs::FileType::RegularFile && stat.st_size == 0);
            if !empty || (depth < had && !same_below(&open[depth], names[depth], below, &names[..=depth])?) {
                break;
            }
            match unlinkat(&open[depth], *name, flags) {
                Ok(()) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Whether a directory that the image has is the same in the upper directory, but for its time.
fn same_below(parent: &OwnedFd, name: &OsStr, below: &View, path: &[&OsStr]) -> io::Result<bool> {
    let dir = match node::open_dir(parent, name) {
        Ok(dir) => dir,
        Err(_) => return Ok(false),
    };
    let path: PathBuf = path.iter().collect();
    let Resolved::Found(Node::Dir(old)) = below.resolve(&path, false)? else { return Ok(false) };
    let (old, new) = (old.stat()?, fstat(&dir)?);
    Ok((old.st_mode, old.st_uid, old.st_gid) == (new.st_mode, new.st_uid, new.st_gid)
        && !node::is_opaque(&dir)?)
}

/// The name of a cache's directory: two whose first content or owner differ are two.
pub(super) fn cache_name(parts: &[&[u8]]) -> Digest {
    let mut hasher = Hasher::new();
    parts.iter().for_each(|part| hasher.field(part));
    hasher.finish()
}
