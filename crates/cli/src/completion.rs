//! `completion`: what shells need to complete this program's command lines.

use clap::Args;
use clap_complete::Shell;

use crate::output::{self, Failure};

/// `completion`.
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// Shell
    shell: Shell,
}

/// `completion`.
pub(crate) fn completion(arguments: &Completion) -> Result<u8, Failure> {
    let mut command = crate::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, name, &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
