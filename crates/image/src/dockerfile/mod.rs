//! Dockerfiles: from text to stages of instructions, every one with its line.

mod check;
mod flags;
mod glob;
mod lines;
mod lint;
mod mount;
mod parse;
mod rules;
mod words;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::reference::Reference;

pub use check::check;
pub(crate) use lines::Heredoc;
pub(crate) use mount::{FileOwner, Mount, MountFlag, MountKind, Sharing};
pub(crate) use parse::nearest;
pub(crate) use rules::{ARGUMENT as RULES_ARGUMENT, Rules};
pub(crate) use words::{Scope, expand, expand_document};

/// A parsed Dockerfile. Variables are not yet expanded: their values depend on what went before.
#[derive(Debug)]
pub(crate) struct Dockerfile {
    /// Its name for messages.
    pub(crate) name: String,
    pub(crate) escape: char,
    /// `ARG`s before the first `FROM`, which only `FROM` lines see.
    pub(crate) global_args: Vec<Instruction>,
    pub(crate) stages: Vec<Stage>,
    /// Names that mean a context of the build's, before any stage or image.
    pub(crate) named: BTreeSet<String>,
    /// What is accepted, but is likely a mistake; by line.
    pub(crate) warnings: Vec<Warning>,
    /// Which of those are wanted.
    pub(crate) rules: Rules,
}

/// Something that is likely a mistake.
#[derive(Clone, Debug, PartialEq)]
pub struct Warning {
    /// Line of the instruction, from 1.
    pub line: usize,
    /// BuildKit's name of the rule, by which `# check=skip=` leaves it out.
    pub rule: &'static str,
    /// What is the matter.
    pub message: String,
}

/// The network of a `RUN` instruction, as its flag `--network` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// What builds have when nothing is said.
    #[default]
    Default,
    /// Its own loopback, and nothing else.
    None,
    /// The host's.
    Host,
}

#[derive(Debug)]
pub(crate) struct Stage {
    /// The word after `FROM`, not expanded.
    pub(crate) from: String,
    /// The value of `--platform`, not expanded.
    pub(crate) platform: Option<String>,
    /// The name after `AS`.
    pub(crate) name: Option<String>,
    pub(crate) line: usize,
    /// The `FROM` line as written.
    pub(crate) text: String,
    pub(crate) instructions: Vec<Instruction>,
}

#[derive(Debug)]
pub(crate) struct Instruction {
    /// Line on which it begins, from 1.
    pub(crate) line: usize,
    /// As written, continuation lines joined.
    pub(crate) text: String,
    pub(crate) kind: Kind,
}

/// A command in one of its two forms.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Command {
    /// Run by the shell.
    Shell(String),
    /// Run as it is.
    Exec(Vec<String>),
}

#[derive(Debug, PartialEq)]
pub(crate) enum Kind {
    Run(Run),
    Copy(Copy),
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    /// Names with their defaults.
    Arg(Vec<(String, Option<String>)>),
    Workdir(String),
    User(String),
    Expose(Vec<String>),
    Volume(Vec<String>),
    Entrypoint(Command),
    Cmd(Command),
    StopSignal(String),
    Shell(Vec<String>),
    Healthcheck(Option<Health>),
    Maintainer(String),
    /// An instruction for the builds that this image will be the base of.
    OnBuild {
        /// As it stands in the image's configuration, here-documents included.
        text: String,
        kind: Box<Kind>,
    },
}

/// `RUN`.
#[derive(Debug, PartialEq)]
pub(crate) struct Run {
    pub(crate) command: Command,
    pub(crate) heredocs: Vec<Heredoc>,
    /// In the order of the flags; a later one may lie over an earlier one.
    pub(crate) mounts: Vec<MountFlag>,
    pub(crate) network: Network,
    pub(crate) security: Security,
}

/// What a `RUN` instruction's command may do to the system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Security {
    /// As a container.
    #[default]
    Sandbox,
    /// With all capabilities, and no filter of system calls.
    Insecure,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Health {
    pub(crate) command: Command,
    /// Nanoseconds; 0 where not given.
    pub(crate) interval: u64,
    pub(crate) timeout: u64,
    pub(crate) start_period: u64,
    pub(crate) start_interval: u64,
    pub(crate) retries: u64,
}

/// `COPY` or `ADD`. Words are not expanded.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Copy {
    /// `ADD`: archives are unpacked, and sources may be addresses.
    pub(crate) add: bool,
    pub(crate) sources: Vec<String>,
    pub(crate) destination: String,
    /// Sources written in the Dockerfile itself.
    pub(crate) heredocs: Vec<Heredoc>,
    /// A stage or image; the build context where absent.
    pub(crate) from: Option<String>,
    pub(crate) chown: Option<String>,
    pub(crate) chmod: Option<String>,
    /// The files do not depend on what lies below them.
    pub(crate) link: bool,
    /// Sources keep the directories of their paths.
    pub(crate) parents: bool,
    /// Patterns of what is left out.
    pub(crate) exclude: Vec<String>,
    /// A git repository keeps its `.git`.
    pub(crate) keep_git_dir: bool,
    /// What the downloaded file's digest must be, or the repository's commit.
    pub(crate) checksum: Option<String>,
    /// Whether archives are unpacked, where that is said.
    pub(crate) unpack: Option<bool>,
}

/// What a `RUN` runs once its here-documents are where they belong.
#[derive(Debug, PartialEq)]
pub(crate) enum Program {
    Command(Command),
    /// A here-document alone that begins with `#!`: a file that is run as it is.
    Script {
        name: String,
        content: String,
    },
}

impl Run {
    pub(crate) fn program(&self) -> Program {
        let Command::Shell(line) = &self.command else { return Program::Command(self.command.clone()) };
        let is_word = words::split(line, '\\').len() == 1;
        match &self.heredocs[..] {
            [] => Program::Command(self.command.clone()),
            [only] if is_word && lines::is_heredoc(line) => {
                let content = only.content.clone();
                match content.starts_with("#!") {
                    true => Program::Script { name: only.word.clone(), content },
                    // Also for shells that know no here-documents.
                    false => Program::Command(Command::Shell(content)),
                }
            }
            several => {
                let raw: String = several.iter().map(|document| document.raw.as_str()).collect();
                Program::Command(Command::Shell(format!("{line}\n{raw}")))
            }
        }
    }
}

impl Kind {
    /// The stages and images beside its own that an instruction reads from.
    pub(crate) fn sources(&self) -> Vec<&str> {
        match self {
            Self::Copy(copy) => copy.from.as_deref().into_iter().collect(),
            Self::Run(run) => run.mounts.iter().filter_map(|mount| mount.from.as_deref()).collect(),
            _ => Vec::new(),
        }
    }
}

impl Dockerfile {
    /// Parses the text; `name` is used in messages.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self> {
        parse::parse(name, text)
    }

    pub(crate) fn error(&self, line: usize, message: impl Into<String>) -> Error {
        Error::Dockerfile { file: self.name.clone(), line, message: message.into(), hint: None }
    }

    /// The values of the `ARG`s before the first `FROM`.
    pub(crate) fn global_scope(&self, args: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
        let mut values = platform_args();
        for instruction in &self.global_args {
            let Kind::Arg(list) = &instruction.kind else { continue };
            for (name, default) in list {
                let value = match (args.get(name), default) {
                    (Some(given), _) => given.clone(),
                    (None, Some(default)) => self.expand(default, &values, instruction.line)?,
                    (None, None) => continue,
                };
                values.insert(name.clone(), value);
            }
        }
        Ok(values)
    }

    /// The instructions that the base of a stage left for it.
    pub(crate) fn triggers(&self, stage: usize, texts: &[String]) -> Result<Vec<Instruction>> {
        texts.iter().map(|text| parse::trigger(&self.name, self.stages[stage].line, text)).collect()
    }

    /// Expands the variables of one word.
    pub(crate) fn expand(&self, word: &str, scope: &dyn Scope, line: usize) -> Result<String> {
        expand(word, scope, self.escape).map_err(|problem| self.error(line, problem))
    }

    /// What a flag `--mount` means. A target that is no absolute path starts from `workdir`.
    pub(crate) fn mount(
        &self,
        flag: &MountFlag,
        scope: &dyn Scope,
        workdir: &str,
        line: usize,
    ) -> Result<Mount> {
        flag.resolve(scope, self.escape, workdir).map_err(|problem| problem.at(&self.name, line))
    }

    /// What a stage starts from.
    pub(crate) fn origin(&self, index: usize, globals: &BTreeMap<String, String>) -> Result<Origin> {
        let stage = &self.stages[index];
        let name = self.expand(&stage.from, globals, stage.line)?;
        if name.is_empty() {
            let message = format!("FROM `{}`: the name is empty once its variables are replaced", stage.from);
            return Err(self.error(stage.line, message));
        }
        if let Some(context) = self.named_context(&name) {
            return Ok(Origin::Named(context.to_owned()));
        }
        if let Some(platform) = &stage.platform {
            let platform = self.expand(platform, globals, stage.line)?;
            if !platform.is_empty() && !is_own_platform(&platform) {
                let message =
                    format!("FROM: `--platform={platform}`: programs of this platform do not run here");
                let hint = Some(format!("this machine is linux/{}", crate::config::architecture()));
                let (file, line) = (self.name.clone(), stage.line);
                return Err(Error::Dockerfile { file, line, message, hint });
            }
        }
        if let Some(earlier) = self.stage_named(&name, index) {
            return Ok(Origin::Stage(earlier));
        }
        if name == "scratch" {
            return Ok(Origin::Scratch);
        }
        Ok(Origin::Image(self.reference(&name, stage.line)?))
    }

    /// What `--from` of an instruction of a stage names.
    pub(crate) fn copy_origin(&self, from: &str, stage: usize, line: usize) -> Result<Origin> {
        if let Some(context) = self.named_context(from) {
            return Ok(Origin::Named(context.to_owned()));
        }
        if let Some(earlier) = self.stage_named(from, stage) {
            return Ok(Origin::Stage(earlier));
        }
        if let Ok(number) = from.parse::<usize>() {
            if number < stage {
                return Ok(Origin::Stage(number));
            }
            return Err(self.error(line, format!("--from={from}: there is no earlier stage of this number")));
        }
        Ok(Origin::Image(self.reference(from, line)?))
    }

    fn reference(&self, name: &str, line: usize) -> Result<Reference> {
        name.parse().map_err(|error: Error| self.error(line, error.to_string()))
    }

    /// The context that a name means: its own, or that of the same image written in another way.
    fn named_context(&self, name: &str) -> Option<&str> {
        let image: Option<Reference> = name.parse().ok();
        let same = |known: &&String| {
            known.eq_ignore_ascii_case(name) || (image.is_some() && known.parse::<Reference>().ok() == image)
        };
        self.named.iter().find(same).map(String::as_str)
    }

    fn stage_named(&self, name: &str, before: usize) -> Option<usize> {
        let same =
            |stage: &Stage| stage.name.as_deref().is_some_and(|other| other.eq_ignore_ascii_case(name));
        self.stages[..before].iter().rposition(same)
    }

    /// The stage that is built: the one named, or the last.
    pub(crate) fn target(&self, target: Option<&str>) -> Result<usize> {
        let Some(target) = target else { return Ok(self.stages.len() - 1) };
        if let Some(found) = self.stage_named(target, self.stages.len()) {
            return Ok(found);
        }
        match target.parse::<usize>() {
            Ok(number) if number < self.stages.len() => Ok(number),
            _ => {
                let names: Vec<&str> = self.stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
                let hint = (!names.is_empty()).then(|| format!("its stages are: {}", names.join(", ")));
                let message = format!("there is no stage `{target}`");
                Err(Error::Dockerfile { file: self.name.clone(), line: 1, message, hint })
            }
        }
    }

    /// All that a stage is made from: its base first, then what its instructions read, and those that its base left
    /// for it.
    pub(crate) fn origins(
        &self,
        index: usize,
        globals: &BTreeMap<String, String>,
        triggers: Triggers<'_>,
    ) -> Result<Vec<Origin>> {
        let base = self.origin(index, globals)?;
        let line = self.stages[index].line;
        let from_outside;
        let left: Vec<(&Kind, usize)> = match base {
            Origin::Stage(earlier) => {
                let left = self.stages[earlier].instructions.iter();
                let left = left.filter_map(|instruction| match &instruction.kind {
                    Kind::OnBuild { kind, .. } => Some((kind.as_ref(), line)),
                    _ => None,
                });
                left.collect()
            }
            _ => {
                from_outside = self.triggers(index, &triggers(&base)?)?;
                from_outside.iter().map(|instruction| (&instruction.kind, line)).collect()
            }
        };
        let own = self.stages[index].instructions.iter();
        let own = own.map(|instruction| (&instruction.kind, instruction.line));
        let mut origins = vec![base];
        for (kind, line) in left.into_iter().chain(own) {
            for from in kind.sources() {
                origins.push(self.copy_origin(from, index, line)?);
            }
        }
        Ok(origins)
    }

    /// The stages that a target needs, itself included, in the order of the file, each with what it is made from.
    pub(crate) fn needed(
        &self,
        target: usize,
        globals: &BTreeMap<String, String>,
        triggers: Triggers<'_>,
    ) -> Result<BTreeMap<usize, Vec<Origin>>> {
        let mut needed = BTreeMap::new();
        let mut todo = vec![target];
        while let Some(index) = todo.pop() {
            if needed.contains_key(&index) {
                continue;
            }
            let origins = self.origins(index, globals, triggers)?;
            todo.extend(origins.iter().filter_map(|origin| match origin {
                Origin::Stage(earlier) => Some(*earlier),
                _ => None,
            }));
            needed.insert(index, origins);
        }
        Ok(needed)
    }
}

/// The instructions that an image from outside left for the stages that begin with it, as far as that is known.
pub(crate) type Triggers<'a> = &'a dyn Fn(&Origin) -> Result<Vec<String>>;

/// Where files come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Origin {
    Scratch,
    Stage(usize),
    Image(Reference),
    /// A context of the build's, by its name.
    Named(String),
}

/// A Dockerfile whose images are asked for.
#[derive(Clone, Copy, Debug)]
pub struct BaseRequest<'a> {
    /// Its name in messages.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Values of `ARG`s.
    pub args: &'a BTreeMap<String, String>,
    /// The stage to build; the last where absent.
    pub target: Option<&'a str>,
    /// The names of the build's contexts, with the images that they mean, if they mean one.
    pub contexts: &'a BTreeMap<String, Option<Reference>>,
}

/// The images from outside that a build needs (`FROM`, `COPY --from`, and what bases left for it), each once, in the
/// order of the file, so that the caller can provide them before it calls [`crate::build`]. `on_build` are the triggers
/// of an image that is there already, none of another: with those that it brings more may be needed.
pub fn plan_bases(
    request: &BaseRequest<'_>,
    on_build: &dyn Fn(&Reference) -> Result<Vec<String>>,
) -> Result<Vec<Reference>> {
    let mut dockerfile = Dockerfile::parse(request.name, request.text)?;
    dockerfile.named.extend(request.contexts.keys().cloned());
    dockerfile.apply_rules_of(request.args)?;
    dockerfile.tolerate_all()?;
    let globals = dockerfile.global_scope(request.args)?;
    let image = |origin: &Origin| match origin {
        Origin::Image(reference) => Some(reference.clone()),
        Origin::Named(name) => request.contexts.get(name).cloned().flatten(),
        Origin::Scratch | Origin::Stage(_) => None,
    };
    let triggers = |origin: &Origin| image(origin).map_or(Ok(Vec::new()), |reference| on_build(&reference));
    let needed = dockerfile.needed(dockerfile.target(request.target)?, &globals, &triggers)?;
    let mut found = Vec::new();
    for reference in needed.values().flatten().filter_map(image) {
        if !found.contains(&reference) {
            found.push(reference);
        }
    }
    Ok(found)
}

/// Docker's automatic platform arguments.
pub(crate) fn platform_args() -> BTreeMap<String, String> {
    let arch = crate::config::architecture();
    let mut args = BTreeMap::new();
    for side in ["TARGET", "BUILD"] {
        args.insert(format!("{side}PLATFORM"), format!("linux/{arch}"));
        args.insert(format!("{side}OS"), "linux".to_owned());
        args.insert(format!("{side}ARCH"), arch.to_owned());
        args.insert(format!("{side}VARIANT"), if arch == "arm" { "v7" } else { "" }.to_owned());
    }
    args
}

/// Whether a platform (`linux/arm64/v8`, `amd64`) is this machine's, whatever its variant.
fn is_own_platform(platform: &str) -> bool {
    let mut parts = platform.split('/');
    let first = parts.next().unwrap_or_default();
    let arch = match (first, parts.next()) {
        ("linux", None) => return true,
        ("linux", Some(arch)) => arch,
        (arch, None) => arch,
        _ => return false,
    };
    let arch = match arch {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "i386" => "386",
        "armhf" => "arm",
        arch => arch,
    };
    arch == crate::config::architecture()
}

/// `path`, taken from the directory `base`: an absolute one without `.`, `..` and doubled slashes.
pub(crate) fn clean(base: &str, path: &str) -> String {
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("{base}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}
