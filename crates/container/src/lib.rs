//! One sandbox: from its description to a running process, and into it again.
//!
//! [`sandbox::Sandbox`] is the description, all choices made: mounts are a list, and nothing here decides what
//! belongs in it but [`defaults`]. [`launch`] makes the process, [`join`] starts another one inside.
//! [`userns`] makes the process that owns the user namespace in which both happen.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod capability;
pub mod cgroup;
pub mod defaults;
mod error;
pub mod idmap;
pub mod join;
pub mod landlock;
pub mod launch;
mod mounts;
pub mod oci;
pub mod program;
pub mod rlimit;
pub mod sandbox;
pub mod seccomp;
pub mod signal;
pub mod userns;
mod volume;

pub use error::Error;
pub use init::process::{Capabilities, Filter, Process, User};
