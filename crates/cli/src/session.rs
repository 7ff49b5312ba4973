//! What every command begins with: the stack's file, its name, its supervisor.

use std::path::PathBuf;

use stack::RemoteError;
use stack::client::{self, Client};
use stack::control::{Command, Notice, State};
use stack::host::HostFacts;
use stack::load::{self, LoadOptions};
use stack::paths::Paths;
use stack::plan::{Plan, PortChoice};

use crate::args::Global;
use crate::output::{Failure, Output};

/// The resolved global options.
#[derive(Debug)]
pub(crate) struct Session {
    file: Option<PathBuf>,
    global: Global,
    /// Where output goes.
    pub(crate) output: Output,
    /// The user's directories.
    pub(crate) paths: Paths,
}

/// A plan, and what it was made with.
pub(crate) struct Loaded {
    /// The plan.
    pub(crate) plan: Plan,
    /// How it was loaded.
    pub(crate) options: LoadOptions,
    /// The host's facts at that time.
    pub(crate) host: HostFacts,
}

impl Session {
    pub(crate) fn new(file: Option<PathBuf>, global: Global, output: Output) -> Result<Self, Failure> {
        Ok(Self { file, global, output, paths: Paths::current()? })
    }

    /// `--strict`.
    pub(crate) fn strict(&self) -> bool {
        self.global.strict
    }

    /// Reads the stack file and says what there is to warn of.
    pub(crate) fn load(&self, base: Option<&str>) -> Result<Loaded, Failure> {
        self.load_scaled(base, &[])
    }

    /// The same with other numbers of replicas than the file's.
    pub(crate) fn load_scaled(&self, base: Option<&str>, scale: &[(String, u16)]) -> Result<Loaded, Failure> {
        let loaded = self.load_quietly(base, scale)?;
        for warning in &loaded.plan.warnings {
            self.output.warning(warning);
        }
        for service in &loaded.plan.services {
            for (asked, published) in &service.moved_ports {
                self.output
                    .progress(&format!("port {asked} of {} is published as {published}", service.name));
            }
        }
        Ok(loaded)
    }

    fn load_quietly(&self, base: Option<&str>, scale: &[(String, u16)]) -> Result<Loaded, Failure> {
        let mut options = LoadOptions {
            file: self.stack_file()?,
            project_name: self.global.project_name.clone(),
            env_file: self.global.env_file.clone(),
            base: base.map(str::to_owned),
            strict: self.global.strict,
            scale: scale.iter().cloned().collect(),
            ports: PortChoice {
                offset: self.global.port_offset,
                publish: self.global.publish.iter().copied().collect(),
                kept: false,
            },
        };
        let host = HostFacts::gather()?;
        if options.ports.is_none() {
            options.ports = self.kept_ports(&options, &host).unwrap_or_default();
        }
        let plan = load::load(&options, &host)?;
        Ok(Loaded { plan, options, host })
    }

    /// The choice of ports of the stack, if it runs.
    fn kept_ports(&self, options: &LoadOptions, host: &HostFacts) -> Option<PortChoice> {
        // What is wrong with the file is told where it is read.
        let name = load::name(options, host).ok()?;
        let kept = PortChoice::kept(&self.paths.stack(&name))?;
        client::connect(&self.paths, &name).ok()?.map(|_running| kept)
    }

    /// Whether a stack file is named, or lies here.
    pub(crate) fn has_stack_file(&self) -> bool {
        self.stack_file().is_ok()
    }

    fn stack_file(&self) -> Result<PathBuf, Failure> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let here = std::env::current_dir().map_err(Failure::system("find the current directory"))?;
        match load::default_file(&here) {
            // Relative, as the user would write it.
            Some(path) => Ok(path.file_name().map_or(path.clone(), PathBuf::from)),
            None => Err(Failure::usage(
                format!("there is no stack file in {}", here.display()),
                "make a `stack.toml` (or `compose.yaml`, `docker-compose.yml`), or name one with `-f FILE`",
            )),
        }
    }

    /// The stack's name. With `-p` the file is not needed, so that a stack whose file is gone can be stopped.
    pub(crate) fn stack_name(&self) -> Result<String, Failure> {
        match &self.global.project_name {
            Some(name) => Ok(name.clone()),
            None => Ok(self.load_quietly(None, &[])?.plan.name),
        }
    }

    /// Connects to the stack's supervisor, if it runs.
    pub(crate) fn connect(&self) -> Result<(String, Option<Client>), Failure> {
        let name = self.stack_name()?;
        let client = client::connect(&self.paths, &name)?;
        Ok((name, client))
    }

    /// Connects to the stack's supervisor, which must run.
    pub(crate) fn running(&self) -> Result<Client, Failure> {
        let (name, client) = self.connect()?;
        client.ok_or_else(|| not_running(&name))
    }

    /// Sends a command and shows states and warnings until it is carried out.
    pub(crate) fn carry_out(&self, client: &mut Client, command: &Command) -> Result<(), Failure> {
        client.send(command, &[])?;
        loop {
            match answer(client)? {
                Notice::Done => return Ok(()),
                notice => self.progress(&notice),
            }
        }
    }

    /// Shows a change of state or a warning.
    pub(crate) fn progress(&self, notice: &Notice) {
        match notice {
            // A failed start: what waits for it is told in full.
            Notice::State { state: State::Created, detail: Some(_), .. } => {}
            Notice::State { service, state, detail } => {
                let word = crate::listing::state_word(*state);
                let text = match detail {
                    // "exited with status 1" says it all.
                    Some(detail) if detail.starts_with(word) => detail.clone(),
                    Some(detail) => format!("{word} ({detail})"),
                    None => word.to_owned(),
                };
                self.output.progress(&format!("{service}: {text}"));
            }
            Notice::Warning(text) => self.output.warning(text),
            _ => {}
        }
    }
}

/// The next notice of a command that is being carried out.
///
/// # Errors
/// The command's failure, or the end of the supervisor.
pub(crate) fn answer(client: &mut Client) -> Result<Notice, Failure> {
    match client.next(None)? {
        Some(Notice::Failed(error)) => Err(error.into()),
        Some(notice) => Ok(notice),
        None => Err(supervisor_gone()),
    }
}

/// The supervisor ended in the middle of a command.
pub(crate) fn supervisor_gone() -> Failure {
    RemoteError::message("the stack's supervisor has ended").into()
}

/// The error for a stack that has no supervisor.
pub(crate) fn not_running(name: &str) -> Failure {
    RemoteError::message(format!("stack `{name}` is not running"))
        .or_hint("`inception-run up -d` starts it")
        .into()
}
