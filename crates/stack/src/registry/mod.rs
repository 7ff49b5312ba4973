//! Images from and to registries: the user's settings and credentials are read here, the transfer happens in a storage
//! worker.

mod credentials;
mod settings;

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use image::registry::{self as distribution, Access, Outcome, Platform, Proxies, PullOptions, TransferEvent};
use image::{Reference, Store};
use serde::{Deserialize, Serialize};

use crate::paths::Paths;
use crate::remote::{Context, RemoteError};
use crate::storage;

pub use credentials::{Kept, log_in, log_out};
pub use image::registry::{Credentials, DOCKER_HUB};

/// How a transfer goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Transfer {
    /// A blob is needed: first digits of its digest, and size in bytes.
    Begun(String, u64),
    /// So much of it has been transferred: blob, bytes, bytes in all.
    Bytes(String, u64, u64),
    /// Nothing more to do for it.
    Ended(String, Done),
    /// Something that went wrong and is tried in another way.
    Note(String),
}

/// What became of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// It was there already.
    Present,
    /// It was fetched and unpacked.
    Pulled,
    /// It was sent.
    Pushed,
    /// The registry took it from another of its repositories.
    Mounted,
}

/// A pulled image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pulled {
    /// Its name in full.
    pub name: String,
    /// Image id.
    pub id: String,
    /// Digest of the manifest, or of the index that it was chosen from.
    pub digest: String,
    /// It was in the store before.
    pub present: bool,
}

/// A pushed image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pushed {
    /// Its name in full.
    pub name: String,
    /// Digest of the manifest.
    pub digest: String,
    /// The manifest's size, bytes.
    pub size: u64,
}

/// Why a pull failed, and whether because nobody answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// The error.
    pub error: RemoteError,
    /// The registry could not be reached at all.
    pub unreachable: bool,
}

impl From<RemoteError> for Failed {
    fn from(error: RemoteError) -> Self {
        Self { error, unreachable: false }
    }
}

/// The registries that could not be reached by this command: no second attempt, and no second wait.
static UNREACHABLE: Mutex<BTreeMap<String, RemoteError>> = Mutex::new(BTreeMap::new());

/// Pulls an image into the store.
///
/// # Errors
/// What the registry did not do.
pub fn pull(
    paths: &Paths,
    name: &str,
    platform: Option<&str>,
    events: &mut dyn FnMut(Transfer),
) -> Result<Pulled, Failed> {
    let reference = Reference::from_str(name).map_err(RemoteError::from)?;
    let unreachable = || UNREACHABLE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = unreachable().get(reference.registry()) {
        return Err(Failed { error: error.clone(), unreachable: true });
    }
    let platform = platform.map(Platform::from_str).transpose().map_err(RemoteError::message)?;
    let access = access(reference.registry(), events)?;
    let options = PullOptions { platform };
    let pulled = work(paths, events, |store, tell| {
        let result = distribution::pull(store, &access, &reference, &options, &mut |event| {
            if let Some(event) = translate(event) {
                tell(event);
            }
        });
        let unreachable = matches!(&result, Err(image::Error::Registry(error)) if error.is_unreachable());
        result
            .map(|pulled| Pulled {
                name: reference.to_string(),
                id: pulled.image.id.to_string(),
                digest: pulled.digest.to_string(),
                present: pulled.present,
            })
            .map_err(|error| {
                let error = RemoteError::from(error).context(format!("pull `{reference}`"));
                Failed { error, unreachable }
            })
    })?;
    if let Err(Failed { error, unreachable: true }) = &pulled {
        unreachable().insert(reference.registry().to_owned(), error.clone());
    }
    pulled
}

/// Pushes images of one repository, one for each name.
///
/// # Errors
/// The first that cannot be pushed.
pub fn push(paths: &Paths, name: &str, events: &mut dyn FnMut(Transfer)) -> Result<Pushed, RemoteError> {
    let reference = Reference::from_str(name)?;
    if Store::reader(&paths.data).image(&reference)?.is_none() {
        return Err(RemoteError::message(format!("there is no image `{reference}` to push"))
            .or_hint("`inception-run images` lists those that there are"));
    }
    let access = access(reference.registry(), events)?;
    work(paths, events, |store, tell| {
        let result = distribution::push(store, &access, &reference, &mut |event| {
            if let Some(event) = translate(event) {
                tell(event);
            }
        });
        result
            .map(|pushed| Pushed {
                name: reference.to_string(),
                digest: pushed.digest.to_string(),
                size: pushed.size,
            })
            .map_err(|error| RemoteError::from(error).context(format!("push `{reference}`")))
    })?
}

/// The names of all images of the store that are tags of one repository.
///
/// # Errors
/// When the name is none, or the store cannot be read.
pub fn tags(paths: &Paths, name: &str) -> Result<Vec<String>, RemoteError> {
    let wanted = Reference::from_str(name)?;
    let images = Store::reader(&paths.data).images()?;
    let tags = images.iter().flat_map(|image| &image.names.tags);
    let mut tags: Vec<String> =
        tags.filter(|tag| tag.name() == wanted.name()).map(ToString::to_string).collect();
    tags.sort();
    Ok(tags)
}

/// Runs a transfer in a storage worker; its result may be an error of its own kind.
fn work<T, E>(
    paths: &Paths,
    events: &mut dyn FnMut(Transfer),
    body: impl FnOnce(&Store, &mut dyn FnMut(Transfer)) -> Result<T, E>,
) -> Result<Result<T, E>, RemoteError>
where
    T: Serialize + for<'de> Deserialize<'de>,
    E: Serialize + for<'de> Deserialize<'de>,
{
    storage::start(paths, |store, tell: &mut dyn FnMut(Transfer)| Ok(body(store, tell)))?.finish(events)
}

fn translate(event: TransferEvent) -> Option<Transfer> {
    Some(match event {
        TransferEvent::Manifest(_) => return None,
        TransferEvent::Begun { blob, size } => Transfer::Begun(blob, size),
        TransferEvent::Bytes { blob, done, size } => Transfer::Bytes(blob, done, size),
        TransferEvent::Ended { blob, outcome } => {
            let done = match outcome {
                Outcome::Present => Done::Present,
                Outcome::Pulled => Done::Pulled,
                Outcome::Pushed => Done::Pushed,
                Outcome::Mounted => Done::Mounted,
            };
            Transfer::Ended(blob, done)
        }
        TransferEvent::Note(text) => Transfer::Note(text),
    })
}

/// How a registry and its mirrors are reached, by the user's files.
fn access(registry: &str, events: &mut dyn FnMut(Transfer)) -> Result<Access, RemoteError> {
    let mut access =
        Access { registries: settings::read()?, proxies: Proxies::from_environment(), ..Access::default() };
    let mut hosts = vec![registry.to_owned()];
    if let Some(settings) = access.registries.get(registry) {
        hosts.extend(settings.mirrors.iter().map(|mirror| mirror.host().to_owned()));
    }
    for host in hosts {
        let settings = access.registries.entry(host.clone()).or_default();
        let certificates = settings::certificates(&host)?;
        settings.authorities = certificates.authorities;
        settings.certificate = certificates.own;
        if let Some(note) = certificates.note {
            events(Transfer::Note(note));
        }
        match credentials::find(&host) {
            Ok(found) => settings.credentials = found,
            // Much is public; what is not says so itself.
            Err(error) => events(Transfer::Note(format!("go on without credentials for `{host}`: {error}"))),
        }
    }
    Ok(access)
}

/// Asks a registry whether it takes these credentials.
fn check(registry: &str, credentials: &Credentials) -> Result<(), RemoteError> {
    let mut access = access(registry, &mut |_| {})?;
    access.registries.entry(registry.to_owned()).or_default().credentials = Some(credentials.clone());
    distribution::check_login(&access, registry).context(|| format!("log in to `{registry}`"))
}
