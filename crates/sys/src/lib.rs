//! The kernel interface: what neither `rustix` nor `nix` offers as a safe call, and nothing about
//! containers. All `unsafe` of the project is in this crate; each block says why it holds.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod address;
pub mod bpf;
pub mod channel;
pub mod fd;
pub mod landlock;
pub mod mount;
pub mod probe;
pub mod process;
pub mod seccomp;
pub mod socket;
pub mod trace;
