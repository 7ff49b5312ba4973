//! The steps of one container as a shell script.

pub(super) mod words;

use super::step::Step;

/// The script.
pub fn write(_steps: &[Step], _container: Option<&str>) -> String {
    String::new()
}
