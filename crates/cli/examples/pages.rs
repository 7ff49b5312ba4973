//! `pages DIRECTORY`: writes the manual pages (`man1`) and the scripts of shells' completion (`bash`, `zsh`, `fish`) of both
//! programs, from the definition that they parse their command lines with.

use std::path::Path;

use clap_complete::Shell;

fn main() -> std::io::Result<()> {
    let directory =
        std::env::args_os().nth(1).ok_or_else(|| std::io::Error::other("usage: pages DIRECTORY"))?;
    let directory = Path::new(&directory);
    let manual = directory.join("man1");
    std::fs::create_dir_all(&manual)?;
    for mut command in [cli::command(), cli::oci::command()] {
        clap_mangen::generate_to(command.clone(), &manual)?;
        let name = command.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let scripts = directory.join(shell.to_string());
            std::fs::create_dir_all(&scripts)?;
            clap_complete::generate_to(shell, &mut command, &name, scripts)?;
        }
    }
    Ok(())
}
