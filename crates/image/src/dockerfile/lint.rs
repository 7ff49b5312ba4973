//! Mistakes that are easily made and easily seen, by the names of BuildKit's rules.

use std::collections::BTreeSet;

use crate::dockerfile::{Command, Dockerfile, Instruction, Kind, Warning};

/// Looks at a whole file.
pub(super) fn check(dockerfile: &Dockerfile, warnings: &mut Vec<Warning>) {
    let mut names = BTreeSet::new();
    // Stages whose working directory is known: a relative one depends on nothing outside of this file.
    let mut placed = BTreeSet::new();
    for (index, stage) in dockerfile.stages.iter().enumerate() {
        let name = stage.name.as_deref().map(str::to_ascii_lowercase);
        if stage.from == "scratch" || placed.contains(&stage.from.to_ascii_lowercase()) {
            placed.insert(index.to_string());
        }
        let mut warn = |rule, message| warnings.push(Warning { line: stage.line, rule, message });
        if let Some(name) = &name {
            if matches!(name.as_str(), "scratch" | "context") {
                warn(
                    "ReservedStageName",
                    format!("FROM: the stage's name `{name}` has a meaning of its own"),
                );
            }
            if !names.insert(name.clone()) {
                warn("DuplicateStageName", format!("FROM: an earlier stage is called `{name}`, too"));
            }
        }
        check_stage(&stage.instructions, placed.contains(&index.to_string()), warnings);
        let absolute = stage
            .instructions
            .iter()
            .any(|instruction| matches!(&instruction.kind, Kind::Workdir(path) if path.starts_with('/')));
        if absolute || placed.contains(&index.to_string()) {
            placed.extend(name);
        }
    }
    for instruction in &dockerfile.global_args {
        check_names(instruction, warnings);
    }
}

fn check_stage(instructions: &[Instruction], mut placed: bool, warnings: &mut Vec<Warning>) {
    let mut own_shell = false;
    let mut last: [Option<usize>; 3] = [None; 3];
    for instruction in instructions {
        let line = instruction.line;
        let mut warn =
            |line, rule, message: &str| warnings.push(Warning { line, rule, message: message.to_owned() });
        let once = match &instruction.kind {
            Kind::Cmd(_) => Some((0, "CMD")),
            Kind::Entrypoint(_) => Some((1, "ENTRYPOINT")),
            Kind::Healthcheck(_) => Some((2, "HEALTHCHECK")),
            _ => None,
        };
        if let Some((index, keyword)) = once
            && let Some(earlier) = last[index].replace(line)
        {
            let message = format!("{keyword}: a later one in this stage takes its place");
            warn(earlier, "MultipleInstructionsDisallowed", &message);
        }
        match &instruction.kind {
            Kind::Shell(_) => own_shell = true,
            Kind::Cmd(Command::Shell(_)) | Kind::Entrypoint(Command::Shell(_)) if !own_shell => {
                let message = "a command that is no JSON list runs below a shell, which keeps signals from it: \
                               it is killed rather than asked to stop";
                warn(line, "JSONArgsRecommended", message);
            }
            Kind::Maintainer(_) => {
                warn(
                    line,
                    "MaintainerDeprecated",
                    "MAINTAINER is deprecated: use `LABEL org.opencontainers.image.authors=`",
                );
            }
            Kind::Workdir(path) => {
                let absolute = path.starts_with(['/', '$', '"', '\'']);
                if !placed && !absolute {
                    let message = format!(
                        "WORKDIR: `{path}` starts from the base's working directory, which may change"
                    );
                    warn(line, "WorkdirRelativePath", &message);
                }
                placed |= absolute;
            }
            _ => check_names(instruction, warnings),
        }
    }
}

/// Whatever an `ARG` or `ENV` holds, everybody who has the image can read.
fn check_names(instruction: &Instruction, warnings: &mut Vec<Warning>) {
    let (keyword, names): (&str, Vec<&str>) = match &instruction.kind {
        Kind::Arg(list) => ("ARG", list.iter().map(|(name, _)| name.as_str()).collect()),
        Kind::Env(pairs) => ("ENV", pairs.iter().map(|(name, _)| name.as_str()).collect()),
        _ => return,
    };
    for name in names.into_iter().filter(|name| is_secret(name)) {
        let message = format!(
            "{keyword}: `{name}` looks like a secret, and would be part of the image for all to read"
        );
        warnings.push(Warning { line: instruction.line, rule: "SecretsUsedInArgOrEnv", message });
    }
}

fn is_secret(name: &str) -> bool {
    const WORDS: [&str; 11] = [
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "password",
        "pword",
        "passwd",
        "secret",
        "secrets",
        "token",
    ];
    let name = name.to_ascii_lowercase();
    let mut words = name.split('_');
    // A file that holds it is where it should be.
    !name.ends_with("_file")
        && !name.split('_').any(|word| word == "public")
        && words.any(|word| WORDS.contains(&word))
}
