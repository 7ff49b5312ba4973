//! `SOURCE_DATE_EPOCH`: no date in an image is later, so that equal inputs give equal images whenever they are built
//! (reproducible-builds.org, "SOURCE_DATE_EPOCH").

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{self as kernel, AtFlags, Stat, Timespec, Timestamps, UTIME_OMIT};

use crate::build::stage::Built;
use crate::error::{Error, Result};
use crate::node;

/// The variable's name, which is a build argument's as well.
pub(crate) const NAME: &str = "SOURCE_DATE_EPOCH";

/// Its value as a date, RFC 3339, UTC.
pub(crate) fn date(epoch: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(epoch)).to_string()
}

/// Gives no date of an image's configuration a later value.
pub(crate) fn clamp_dates(built: &mut Built, epoch: u64) {
    let date = date(epoch);
    built.created = Some(date.clone());
    for step in &mut built.history {
        // Dates of this form are in order where their texts are.
        if step.created.as_ref().is_none_or(|created| *created > date) {
            step.created = Some(date.clone());
        }
    }
}

/// Gives no file of a layer's directory a later time of modification.
pub(crate) fn clamp(top: &Path, epoch: u64) -> Result<()> {
    let dir = node::open_dir_path(top).map_err(|cause| Error::io("open directory", top, cause))?;
    clamp_dir(&dir, i64::try_from(epoch).unwrap_or(i64::MAX))
        .map_err(|cause| Error::io("set times of files in", top, cause))
}

fn clamp_dir(dir: &OwnedFd, epoch: i64) -> std::io::Result<()> {
    for name in node::names(dir)? {
        let Some(stat) = node::stat(dir, &name)? else { continue };
        if node::is_dir(&stat) {
            clamp_dir(&node::open_dir(dir, &name)?, epoch)?;
        } else if is_later(&stat, epoch) {
            kernel::utimensat(dir, &*name, &times(epoch), AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    if is_later(&kernel::fstat(dir)?, epoch) {
        kernel::futimens(dir, &times(epoch))?;
    }
    Ok(())
}

fn is_later(stat: &Stat, epoch: i64) -> bool {
    (stat.st_mtime, stat.st_mtime_nsec) > (epoch, 0)
}

fn times(epoch: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: Timespec { tv_sec: epoch, tv_nsec: 0 },
    }
}
