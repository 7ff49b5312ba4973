use super::*;
pub(super) fn partition(_: &mut Hub) {}
pub(super) fn rate(_: &mut Hub) {}
pub(super) fn delay(_: &mut Hub) {}
