//! What the finished program promises, tried from outside: every test runs `inception-run` on a stack of its own,
//! in directories of its own, and ends with a check that nothing is left.
//!
//! The tests run in any order and in parallel, as root and as an ordinary user with subordinate ids. `INCEPTION_RUN`
//! names another binary than the one that Cargo built. Those that this machine cannot run say so:
//! `skipped: NAME: reason`.

#![allow(clippy::unwrap_used)]

mod at_rest;
mod bad_input;
mod browser;
mod build;
mod build_git;
mod build_mounts;
mod build_network;
mod build_run;
mod client;
mod commands;
mod credentials;
mod dashboard;
mod direct;
mod events;
mod explain;
mod exports;
mod harness;
mod hostile;
mod keys;
mod killed;
mod labs;
mod lifecycle;
mod logs;
mod network;
mod network_mode;
mod oci;
mod one_off;
mod outside;
mod pid1;
mod projects;
mod replicas;
mod sandbox;
mod sharing;
mod stacks;
mod stats;
mod store;
mod together;
mod trace;
mod transfer;
mod volumes;
mod watch;
