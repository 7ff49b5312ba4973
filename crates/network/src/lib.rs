//! The network of a stack: addresses, links, names and published ports.
//!
//! Who calls what: the hub (root of the stack's user namespace, standing in the stack's own network
//! namespace) wires a plan with [`link::Namespaces`], makes the name server's sockets with
//! [`names::bind_in_current_namespace`] and answers netd with [`netd::serve_sockets`]. The supervisor, in the
//! host's network namespace, opens published ports with [`publish::bind`] and tells netd what to do through
//! [`netd::Client`]. netd's body is [`netd::run`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod balance;
pub mod direct;
pub mod egress;
mod error;
pub mod ftp;
pub mod intercept;
pub mod link;
pub mod names;
pub mod netd;
mod netlink;
mod nft;
pub mod plan;
pub mod publish;
mod queue;
pub mod shape;
mod subnet;

pub use error::Error;
pub use subnet::Subnet;
