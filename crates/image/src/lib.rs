//! Images: a content-addressed store of layers, and the Dockerfile builder.
//!
//! This crate knows no processes: a `RUN` instruction is handed to a [`Runner`]. Whatever writes here runs
//! inside the id map of the containers, as container root, so that owners are container ids. Layers are
//! overlayfs directories for mounts with `userxattr`.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod archive;
pub mod base;
mod build;
mod config;
mod digest;
mod dockerfile;
mod error;
mod layer;
mod manifest;
mod node;
mod pattern;
mod reference;
pub mod registry;
mod remove;
mod scratch;
mod store;
pub mod transfer;
mod tree;
mod user;
mod view;

pub use archive::{FREE_BYTES, Limits};
pub use build::{
    BoxError, BuildEvent, BuildRequest, CacheMount, GitSource, NamedContext, Network, Repository, RunMount,
    RunSource, RunStep, Runner, Running, Secret, build, is_repository, recall, unpack_files,
};
pub use config::{
    ContainerConfig, DEFAULT_PATH, Healthcheck, History, Image, ImageConfig, MAX_CONFIG, RootFs, architecture,
};
pub use digest::{Digest, LayerId};
pub use dockerfile::{BaseRequest, Warning, check, plan_bases};
pub use error::{Error, FailedRun, Result};
pub use layer::LayerSource;
pub use pattern::Ignore;
pub use reference::Reference;
pub use remove::{remove_tree, tree_size};
pub use store::{
    CacheRoom, Change, ChangeKind, CommitOptions, Finding, HistoryLine, Hold, ImageRoom, ImageSummary,
    ImportOptions, LayerUsers, Lease, MAX_LAYERS, NameLine, Names, PrunePolicy, Pruned, Removed, Room, Store,
    Usage, Verification, default_config,
};
pub use user::User;
