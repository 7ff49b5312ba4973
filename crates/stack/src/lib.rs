//! From a stack file to a running, supervised stack.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod plan;
