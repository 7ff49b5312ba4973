//! Storage workers: short-lived processes inside the id map, where everything happens that writes layers and
//! volumes or deletes what belongs to subordinate ids.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use container::idmap::IdMap;
use image::Store;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sys::channel::Channel;
use sys::process::{Child, namespace};

use crate::paths::Paths;
use crate::remote::{self, Context, RemoteError};

#[derive(Debug, Serialize, Deserialize)]
enum Message<E, T> {
    Event(E),
    Done(T),
    Failed(RemoteError),
}

/// A worker that runs.
#[derive(Debug)]
pub(crate) struct Worker {
    channel: Channel,
    process: Child,
}

/// What a worker said.
#[derive(Debug)]
pub(crate) enum Word<E, T> {
    /// Something on the way.
    Event(E),
    /// Its result, or why there is none; the last word.
    Last(Result<T, RemoteError>),
}

/// Starts a worker. `body` runs as root of the id map, with the data directory as working directory, a private
/// mount namespace and a PID namespace that dies with it; it gets a function that sends events.
///
/// # Errors
/// When the data directory or the user namespace cannot be had.
pub(crate) fn start<E: Serialize, T: Serialize>(
    paths: &Paths,
    body: impl FnOnce(&Store, &mut dyn FnMut(E)) -> Result<T, RemoteError>,
) -> Result<Worker, RemoteError> {
    let map = IdMap::current()?;
    let data = paths.open_data(&map)?;
    // What the worker finds and makes stays for the command that started it.
    let lease = paths.lease()?;
    let namespaces = namespace::MOUNT | namespace::PID;
    let (process, channel) = container::userns::spawn(&map, namespaces, data.as_fd(), |channel| {
        let prepared = crate::hub::prepare_mounts().and_then(|()| raise_descriptor_limit());
        let prepared = prepared.context(|| "prepare the storage worker".into());
        let store = || Store::open_with(Path::new("."), lease).map_err(RemoteError::from);
        let result = prepared.and_then(|()| store()).and_then(|store| {
            let mut tell = |event| {
                // Nobody to tell any more means that we are about to be killed, too.
                remote::send(&channel, &Message::<E, T>::Event(event), &[]).ok();
            };
            // What a killed worker left half made.
            store.sweep()?;
            body(&store, &mut tell)
        });
        let last = match result {
            Ok(value) => Message::<E, T>::Done(value),
            Err(error) => Message::Failed(error),
        };
        remote::send(&channel, &last, &[]).map_or(125, |()| 0)
    })?;
    Ok(Worker { channel, process })
}

/// A view of an image's files opens a descriptor for each layer and directory, and a published port is one.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

impl AsFd for Worker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Worker {
    /// Waits for what it says next. After the last word the worker is gone.
    ///
    /// # Errors
    /// When it died without its last word.
    pub(crate) fn next<E: DeserializeOwned, T: DeserializeOwned>(&self) -> Result<Word<E, T>, RemoteError> {
        let message = self.channel.recv().context(|| "wait for the storage worker".into())?;
        let Some(message) = message else {
            self.reap()?;
            return Err(RemoteError::message("the storage worker died"));
        };
        let last = match remote::decode(message)?.0 {
            Message::Event(event) => return Ok(Word::Event(event)),
            Message::Done(value) => Ok(value),
            Message::Failed(error) => Err(error),
        };
        self.reap()?;
        Ok(Word::Last(last))
    }

    /// Waits for its last word; what it says on the way goes to `events`.
    ///
    /// # Errors
    /// Its own, and when it died without a last word.
    pub(crate) fn finish<E: DeserializeOwned, T: DeserializeOwned>(
        &self,
        mut events: impl FnMut(E),
    ) -> Result<T, RemoteError> {
        loop {
            match self.next::<E, T>()? {
                Word::Event(event) => events(event),
                Word::Last(result) => return result,
            }
        }
    }

    fn reap(&self) -> io::Result<()> {
        container::userns::end(&self.process)
    }
}

/// Runs a worker to its end, without events.
///
/// # Errors
/// What `body` returns, and what [`start`] does.
pub(crate) fn run<T: Serialize + DeserializeOwned>(
    paths: &Paths,
    body: impl FnOnce(&Store) -> Result<T, RemoteError>,
) -> Result<T, RemoteError> {
    start(paths, |store, _: &mut dyn FnMut(())| body(store))?.finish(|()| {})
}

/// A path that a worker can use for something of the host's: as root the worker is somebody else, and reaches
/// it through a mount on which the owners are mapped, by a descriptor that it inherits.
#[derive(Debug)]
pub(crate) struct Handle {
    path: PathBuf,
    mount: Option<OwnedFd>,
}

impl Handle {
    /// Makes `path` (absolute) reachable for workers that are started while this lives.
    ///
    /// # Errors
    /// When it does not exist, or its file system does not support idmapped mounts.
    pub(crate) fn open(path: &Path) -> Result<Self, RemoteError> {
        Handles::default().handle(path)
    }

    /// The mount on which the owners are mapped, where one is needed.
    pub(crate) fn into_mount(self) -> Option<OwnedFd> {
        self.mount
    }

    /// The path to use inside a worker.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Several of these paths, for as long as this lives.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    /// A user namespace with the map: to make it costs a process, so that all have the same.
    namespace: Option<OwnedFd>,
    opened: Vec<Handle>,
}

impl Handles {
    /// Makes one more path reachable, and returns what it is inside a worker.
    ///
    /// # Errors
    /// As for [`Handle::open`].
    pub(crate) fn open(&mut self, path: &Path) -> Result<PathBuf, RemoteError> {
        let handle = self.handle(path)?;
        let inside = handle.path.clone();
        self.opened.push(handle);
        Ok(inside)
    }

    fn handle(&mut self, path: &Path) -> Result<Handle, RemoteError> {
        let map = IdMap::current()?;
        if !map.direct {
            std::fs::metadata(path).context(|| format!("open {}", path.display()))?;
            return Ok(Handle { path: path.to_owned(), mount: None });
        }
        let mounting = || format!("open {} with mapped ids", path.display());
        let namespace = match self.namespace.take() {
            Some(namespace) => namespace,
            None => namespace_of(&map)?.context(mounting)?,
        };
        let namespace = self.namespace.insert(namespace);
        let mount = sys::mount::idmapped_tree(path, namespace).context(mounting)?;
        Ok(Handle { path: format!("/proc/self/fd/{}", mount.as_raw_fd()).into(), mount: Some(mount) })
    }
}

/// A user namespace with this map; within the result, that it cannot be opened.
fn namespace_of(map: &IdMap) -> Result<io::Result<OwnedFd>, RemoteError> {
    let here = std::fs::File::open(".")?;
    let (process, channel) =
        container::userns::spawn(map, 0, here.as_fd(), |channel| match channel.recv() {
            Ok(_) | Err(_) => 0,
        })?;
    let namespace = std::fs::File::open(format!("/proc/{}/ns/user", process.pid)).map(OwnedFd::from);
    drop(channel);
    container::userns::end(&process)?;
    Ok(namespace)
}
