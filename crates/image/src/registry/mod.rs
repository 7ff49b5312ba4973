//! Images from and to registries: the OCI distribution specification, and Docker's registry API version 2 that it
//! was made of.
//!
//! ```text
//! pull   manifest -> the layers that the store lacks, several at once -> configuration -> names
//! push   the layers that the registry lacks, several at once -> configuration -> manifest, once for each tag
//! ```
//!
//! What a registry sends is hostile: every digest and every size is checked, every answer has a limit, every wait
//! ends. An image appears in the store when all of it is there; layers that arrived before something failed are kept,
//! and not fetched again.

mod address;
mod agent;
mod auth;
mod blob;
mod client;
mod credentials;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod headers;
mod proxies;
mod pull;
mod push;
mod records;
mod settings;
#[cfg(test)]
mod tests;

pub use crate::manifest::Platform;
pub use crate::reference::DOCKER_HUB;
pub use client::check_login;
pub(crate) use client::shown;
pub use credentials::{AuthFile, CredentialSource, Credentials};
pub use error::{Problem, RegistryError};
pub use proxies::Proxies;
pub use pull::{PullOptions, Pulled, pull};
pub use push::{Pushed, push};
pub use records::pulled_at;
pub use settings::{Access, ClientCertificate, Mirror, Registry, Timing, is_loopback};

/// How a transfer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferEvent {
    /// The manifest is known: its digest.
    Manifest(crate::Digest),
    /// A blob is needed: short name, size in bytes.
    Begun {
        /// First digits of its digest.
        blob: String,
        /// Bytes.
        size: u64,
    },
    /// Some of it has been transferred.
    Bytes {
        /// First digits of its digest.
        blob: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        size: u64,
    },
    /// Nothing more to do for it.
    Ended {
        /// First digits of its digest.
        blob: String,
        /// What was done.
        outcome: Outcome,
    },
    /// Something went wrong that is tried again, or in another place.
    Note(String),
}

/// What became of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was there already.
    Present,
    /// It was fetched and unpacked.
    Pulled,
    /// It was uploaded.
    Pushed,
    /// The registry took it from another of its repositories.
    Mounted,
}

/// How many blobs are transferred at once.
const PARALLEL: usize = 4;

/// Does something with each item, [`PARALLEL`] at a time, while this thread passes on the events. The first error
/// stops all and is returned.
fn in_parallel<T: Sync>(
    items: &[T],
    client: &client::Client,
    events: &mut dyn FnMut(TransferEvent),
    work: impl Fn(&T, &(dyn Fn(TransferEvent) + Sync)) -> crate::Result<()> + Sync,
) -> crate::Result<()> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, PoisonError, mpsc};
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..PARALLEL.min(items.len()) {
            let sender = sender.clone();
            let (next, failed, work) = (&next, &failed, &work);
            scope.spawn(move || {
                // The receiver outlives all senders.
                let tell = |event| drop(sender.send(event));
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if client.is_stopped() {
                        break;
                    }
                    if let Err(error) = work(item, &tell) {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        client.stop();
                        break;
                    }
                }
            });
        }
        drop(sender);
        receiver.iter().for_each(&mut *events);
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
