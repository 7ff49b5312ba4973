//! `up --trace` and its like: every step by which a stack or an image comes to be, as the kernel saw it.
//!
//! The supervisor, or a command that builds, is started by a process that watches it and all that come from it with `ptrace(2)` ([`sys::trace`]).
//! Of the calls that make a container the arguments are read from registers and memory before, the result after
//! ([`decode`]); nothing is told by the code that makes them. [`explain`] says what a call is for and how a shell does the
//! same; [`script`] makes one shell script of all.

mod call;
mod decode;
mod explain;
mod flags;
mod netlink;
mod process;
pub mod script;
mod step;
mod watched;

pub use call::{Argument, Call, CapabilitySets, Control, Object, Origin};
pub use explain::{Explanation, explain};
pub use netlink::{Peer, Request};
pub use process::{ARGUMENT, run, run_command};
pub use step::{Outcome, Role, Step, Who};
