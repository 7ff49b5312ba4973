//! `build --check`: what is wrong with Dockerfiles, without a build.

use stack::images;
use stack::plan::Build;

use crate::output::{self, Failure, Output};

/// Exit status where something was found, as that of `docker build --check`.
const FOUND: u8 = 1;

/// Prints what is found in the Dockerfiles of some builds, each once.
pub(crate) fn check(output: Output, builds: &[(String, Build)]) -> Result<u8, Failure> {
    let mut told = Vec::new();
    for (_, build) in builds {
        for finding in images::check(build)? {
            // Services can share a Dockerfile.
            if told.contains(&finding) {
                continue;
            }
            let (label, code) = if finding.fatal { ("error:", "1;31") } else { ("warning:", "1;33") };
            let (place, message) = (output::visible(&finding.place), output::visible(&finding.message));
            output::print(&format!("{place}: {} {message}\n", output.paint(code, label)))?;
            if let Some(hint) = &finding.hint {
                output::print(&format!("  hint: {}\n", output::visible(hint)))?;
            }
            told.push(finding);
        }
    }
    output.progress(&match told.len() {
        0 => "nothing was found".to_owned(),
        1 => "one mistake was found".to_owned(),
        several => format!("{several} mistakes were found"),
    });
    Ok(if told.is_empty() { 0 } else { FOUND })
}
