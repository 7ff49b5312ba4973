//! The image store and the builder, on real files: hostile archives, layers, Dockerfiles.
//!
//! Everything runs as container root. Started by an ordinary user, each test starts itself again in a user
//! namespace, with subordinate ids where there are any; what needs them is else skipped by name.
#![allow(clippy::unwrap_used, missing_docs)]

mod addresses;
mod archives;
mod builds;
mod copies;
mod downloads;
mod layers;
mod leases;
mod places;
mod stores;
mod transfers;
