//! From a stack file to a running, supervised stack.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod diagnostic;
mod env_file;
mod file;
pub mod host;
pub mod interpolate;
pub mod load;
mod order;
pub mod plan;
mod resolve;
mod words;
