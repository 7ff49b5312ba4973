//! The network of a stack: addresses, links, names and published ports.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod plan;
