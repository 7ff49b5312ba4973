//! `inception-oci`, driven as engines drive it: every test has a bundle and a state directory of its own, and ends with
//! a check that no process, state or cgroup is left. As root the containers have root's own ids, as an ordinary user a
//! user namespace, as `spec --rootless` writes it.
//!
//! `INCEPTION_OCI` names another binary than the one that Cargo built.

mod attacks;
mod bad_config;
mod bundle;
mod exec;
mod hooks;
mod inside;
mod lifecycle;
mod limits;
mod listing;
mod seccomp;
mod states;
mod terminal;
