//! Files of the host that are watched while one works on services (`develop.watch`): what is watched and what a change
//! means ([`Rules`]), and what has changed ([`Tree`]). What is done then is the command's business.

mod rules;
mod tree;

pub use image::transfer::changes::Change;
pub use rules::{Rules, Work};
pub use tree::Tree;
