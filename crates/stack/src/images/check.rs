//! Dockerfiles looked at without a build.

use image::Error;

use super::checkout;
use crate::plan::{BaseDockerfile, Build};
use crate::remote::{Context, RemoteError};

/// Something that is wrong with a Dockerfile, or likely is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `FILE:LINE`.
    pub place: String,
    /// It would end a build.
    pub fatal: bool,
    /// What is the matter; for a warning, with its rule.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Looks for mistakes in the Dockerfiles of a build, each for its base.
///
/// # Errors
/// When one cannot be read.
pub fn check(build: &Build) -> Result<Vec<Finding>, RemoteError> {
    checkout::with_local(&[("", build)], &mut |_| {}, |builds, _| {
        builds.iter().try_fold(Vec::new(), |mut findings, (_, build)| {
            findings.extend(local(build)?);
            Ok(findings)
        })
    })
}

fn local(build: &Build) -> Result<Vec<Finding>, RemoteError> {
    let mut findings = Vec::new();
    for dockerfile in &build.dockerfiles {
        let name = dockerfile.path.display().to_string();
        let text = text_of(build, dockerfile)?;
        let named = build.contexts.keys().cloned().collect();
        match image::check(&name, &text, &build.args, &named) {
            Ok(warnings) => findings.extend(warnings.into_iter().map(|warning| Finding {
                place: format!("{name}:{}", warning.line),
                fatal: false,
                message: warning.to_string(),
                hint: None,
            })),
            Err(Error::Dockerfile { file, line, message, hint }) => {
                findings.push(Finding { place: format!("{file}:{line}"), fatal: true, message, hint });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(findings)
}

/// The text of a build's Dockerfile.
pub(super) fn text_of(build: &Build, dockerfile: &BaseDockerfile) -> Result<String, RemoteError> {
    match &build.inline {
        Some(text) => Ok(text.clone()),
        None => std::fs::read_to_string(&dockerfile.path)
            .context(|| format!("read {}", dockerfile.path.display())),
    }
}
