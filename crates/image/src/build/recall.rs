//! A build that only looks whether everything is there already.
//!
//! It needs no worker, and so none of the namespaces that one is made of: it runs outside of the id map, starts nothing
//! and makes nothing. What it cannot be sure of there it leaves to the build proper.

use std::cell::Cell;
use std::rc::Rc;

use crate::build::{BoxError, BuildEvent, BuildRequest, RunStep, Runner, Running, configuration};
use crate::config::Image;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::Store;

/// How much of contexts is read: about what takes as long as a worker's start. Where that is not enough, all of it is
/// read once more.
const ALLOWANCE: u64 = 2 << 20;
/// What a file of a directory counts for beside its content.
const FILE: u64 = 2 << 10;

/// The image that [`build`](crate::build()) would return, and what it would tell, if it is there under all its names and
/// every instruction's layer is in the cache; none, too, where only the build proper can say that.
///
/// Beside the lease and the dates of what the cache used, nothing is written.
pub fn recall(store: &Store, request: &BuildRequest) -> Option<(Image, Vec<BuildEvent>)> {
    if request.fresh.is_some() {
        return None;
    }
    let mut events = Vec::new();
    let image = look(store, request, &mut |event| events.push(event));
    // Whatever is wrong, the build proper finds it again, and says so.
    Some((image.ok()?, events))
}

fn look(store: &Store, request: &BuildRequest, progress: &mut dyn FnMut(BuildEvent)) -> Result<Image> {
    let allowance = Some(Allowance(Rc::new(Cell::new(ALLOWANCE))));
    let config = configuration(store, request, &mut Nobody, allowance, progress)?;
    let id = Digest::of(&config.to_json());
    for tag in &request.tags {
        if store.tagged(tag)?.as_ref() != Some(&id) {
            return Err(Error::ToBeMade);
        }
    }
    store.image_by_id(&id)?.ok_or(Error::ToBeMade)
}

/// How much may still be read.
#[derive(Clone)]
pub(super) struct Allowance(Rc<Cell<u64>>);

impl Allowance {
    /// Before the content of a file of so many bytes is read.
    pub(super) fn spend(&self, bytes: u64) -> Result<()> {
        self.0.set(self.0.get().checked_sub(bytes).ok_or(Error::ToBeMade)?);
        Ok(())
    }

    /// Before so many files of a directory are looked at.
    pub(super) fn spend_files(&self, count: usize) -> Result<()> {
        self.spend(u64::try_from(count).unwrap_or(u64::MAX).saturating_mul(FILE))
    }
}

/// Runs nothing.
struct Nobody;

impl Runner for Nobody {
    fn start(&mut self, _step: &RunStep) -> Result<Box<dyn Running>, BoxError> {
        Err(Error::ToBeMade.into())
    }
}
