//! What runs inside a container before and beside the user's program: the last steps of becoming that
//! program ([`process`]), what it is told ([`entry`]), PID 1 ([`pid1`]), and the typed message in which a child tells its
//! parent why it could not start ([`report`]).
//!
//! The binary of this crate, `inception-init`, is small, static, and embedded in the runtime.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod account;
pub mod entry;
pub mod hook;
pub mod landlock;
pub mod obstacle;
pub mod pid1;
pub mod process;
pub mod procfs;
pub mod program;
pub mod report;
mod terminal;
