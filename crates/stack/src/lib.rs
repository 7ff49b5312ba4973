//! From a stack file to a running, supervised stack.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod client;
pub mod control;
pub mod copy;
pub mod diagnostic;
pub mod doctor;
mod env_file;
pub mod event;
pub mod explain;
pub mod export;
pub mod fault;
mod file;
pub mod host;
mod hub;
pub mod images;
pub mod interpolate;
pub mod load;
mod lock;
pub mod netd;
mod order;
pub mod origin;
pub mod paths;
pub mod plan;
pub mod registry;
mod remote;
mod report;
mod resolve;
mod spec;
pub mod stats;
mod storage;
pub mod store;
pub mod supervisor;
pub mod topology;
pub mod trace;
pub mod transfer;
pub mod watch;
pub mod words;

pub use remote::RemoteError;

/// How a command and a container hand descriptors to each other.
pub use sys::channel;
