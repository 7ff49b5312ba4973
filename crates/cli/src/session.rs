//! What every command begins with: the stack's file, its name, its supervisor.

use std::io::Read;
use std::path::{Path, PathBuf};

use stack::RemoteError;
use stack::client::{self, Client};
use stack::control::{Command, Notice, State};
use stack::host::HostFacts;
use stack::interpolate::Variables;
use stack::load::{self, LoadOptions, Running};
use stack::origin::Origin;
use stack::paths::Paths;
use stack::plan::{Plan, PortChoice, Service};
use stack::stats;

use crate::args::Global;
use crate::build_view::Form;
use crate::output::{Failure, Output};

/// The resolved global options.
#[derive(Debug)]
pub(crate) struct Session {
    files: Vec<PathBuf>,
    /// What was read for the file `-`.
    standard_input: Option<String>,
    global: Global,
    /// Where output goes.
    pub(crate) output: Output,
    /// The user's directories.
    pub(crate) paths: Paths,
}

/// What a command wants of the stack's files besides what the global options say.
#[derive(Debug, Default)]
pub(crate) struct Wanted<'a> {
    /// `--base`.
    pub(crate) base: Option<&'a str>,
    /// Other numbers of replicas than the files'.
    pub(crate) scale: &'a [(String, u16)],
    /// Services that are named on the command line.
    pub(crate) services: &'a [String],
    /// Only the images of the plan.
    pub(crate) images_only: bool,
}

/// A plan, and what it was made with.
pub(crate) struct Loaded {
    /// The plan.
    pub(crate) plan: Plan,
    /// The stack's files, absolute.
    pub(crate) files: Vec<PathBuf>,
    /// The values of secrets.
    pub(crate) variables: Variables,
    /// The host's facts at that time.
    pub(crate) host: HostFacts,
}

impl Session {
    pub(crate) fn new(files: Vec<PathBuf>, global: Global, output: Output) -> Result<Self, Failure> {
        let standard_input = match files.iter().any(|file| file == Path::new("-")) {
            true => Some(standard_input()?),
            false => None,
        };
        Ok(Self { files, standard_input, global, output, paths: Paths::current()? })
    }

    /// The same for the stack of this name, whatever files there are.
    pub(crate) fn of_stack(&self, name: String) -> Result<Self, Failure> {
        Self::new(Vec::new(), Global { project_name: Some(name), ..self.global.clone() }, self.output)
    }

    /// How builds are shown that a command makes besides what it is for.
    pub(crate) fn builds(&self) -> Form {
        self.global.builds
    }

    /// `--strict`.
    pub(crate) fn strict(&self) -> bool {
        self.global.strict
    }

    /// Reads the stack files and says what there is to warn of.
    pub(crate) fn load(&self, base: Option<&str>) -> Result<Loaded, Failure> {
        self.load_for(&Wanted { base, ..Wanted::default() })
    }

    /// The same for a command that wants something special.
    pub(crate) fn load_for(&self, wanted: &Wanted<'_>) -> Result<Loaded, Failure> {
        let options = self.options(wanted);
        let host = HostFacts::gather()?;
        let loaded = load::load_keeping(&options, &host, |name, profiles| self.kept(name, profiles))?;
        let load::Loaded { plan, files, variables } = loaded;
        for warning in &plan.warnings {
            self.output.warning(warning);
        }
        for service in &plan.services {
            for (asked, published) in &service.moved_ports {
                self.output
                    .progress(&format!("port {asked} of {} is published as {published}", service.name));
            }
        }
        Ok(Loaded { plan, files, variables, host })
    }

    /// How files are loaded.
    pub(crate) fn options(&self, wanted: &Wanted<'_>) -> LoadOptions {
        LoadOptions {
            files: self.files.clone(),
            standard_input: self.standard_input.clone(),
            current_directory: PathBuf::new(),
            project_directory: self.global.project_directory.clone(),
            project_name: self.global.project_name.clone(),
            env_files: self.global.env_file.clone(),
            profiles: self.global.profile.clone(),
            services: wanted.services.to_vec(),
            base: wanted.base.map(str::to_owned),
            strict: self.global.strict,
            scale: wanted.scale.iter().cloned().collect(),
            images_only: wanted.images_only,
            ports: PortChoice {
                offset: self.global.port_offset,
                publish: self.global.other_ports().collect(),
                kept: false,
            },
        }
    }

    /// The global options of this command as words of another one that is run in the same directory.
    ///
    /// # Errors
    /// When the stack's file came from standard input, which is gone.
    pub(crate) fn words(&self) -> Result<Vec<String>, Failure> {
        if self.standard_input.is_some() {
            let hint = "write it to a file, and name that with `-f`";
            return Err(Failure::usage("a unit cannot read the stack's file from standard input", hint));
        }
        let shown = |path: &PathBuf| path.display().to_string();
        let global = &self.global;
        let options = (self.files.iter().map(|file| ("--file", shown(file))))
            .chain(global.project_name.iter().map(|name| ("--project-name", name.clone())))
            .chain(global.env_file.iter().map(|file| ("--env-file", shown(file))))
            .chain(global.project_directory.iter().map(|directory| ("--project-directory", shown(directory))))
            .chain(global.profile.iter().map(|profile| ("--profile", profile.clone())))
            .chain(global.port_offset.iter().map(|offset| ("--port-offset", offset.to_string())))
            .chain(global.other_ports().map(|(port, other)| ("--publish", format!("{port}={other}"))));
        let mut words: Vec<String> = options.flat_map(|(option, value)| [option.to_owned(), value]).collect();
        words.extend(global.strict.then(|| "--strict".to_owned()));
        Ok(words)
    }

    /// What a stack keeps to, if it runs. It is asked for as little as there can be to know.
    fn kept(&self, stack: &str, has_profiles: bool) -> Running {
        let ports = PortChoice::kept(&self.paths.stack(stack));
        if ports.is_none() && !has_profiles {
            return Running::default();
        }
        let Ok(Some(mut client)) = client::connect(&self.paths, stack) else { return Running::default() };
        let subjects = match has_profiles {
            // Who does not answer is asked again by the command itself, and what is wrong is told then.
            true => stats::subjects(&mut client, &[]).unwrap_or_default(),
            false => Vec::new(),
        };
        let services = subjects.into_iter().map(|subject| subject.status);
        let services = services.filter(|row| !matches!(row.state, State::Exited | State::Created));
        Running { ports, services: services.map(|row| row.service).collect() }
    }

    /// Whether a stack file is named, or lies here or above.
    pub(crate) fn has_stack_file(&self) -> bool {
        let found = |host| load::has_files(&self.options(&Wanted::default()), &host);
        !self.files.is_empty() || HostFacts::gather().is_ok_and(found)
    }

    /// The stack's name. With `-p` the files are not needed, so that a stack whose files are gone can be stopped;
    /// otherwise nothing else in them is.
    pub(crate) fn stack_name(&self) -> Result<String, Failure> {
        match &self.global.project_name {
            Some(name) => Ok(name.clone()),
            None => Ok(load::name(&self.options(&Wanted::default()), &HostFacts::gather()?)?),
        }
    }

    /// Connects to the stack's supervisor, if it runs.
    ///
    /// # Errors
    /// As [`Session::connect_to`].
    pub(crate) fn connect(&self) -> Result<(String, Option<Client>), Failure> {
        let name = self.stack_name()?;
        let client = self.connect_to(&name)?;
        Ok((name, client))
    }

    /// The same for a stack whose name is known.
    ///
    /// # Errors
    /// When another project's stack has that name.
    pub(crate) fn connect_to(&self, name: &str) -> Result<Option<Client>, Failure> {
        let client = client::connect(&self.paths, name)?;
        if client.is_some()
            && let Some(origin) = self.origin()
        {
            origin.check_running(&self.paths, name)?;
        }
        Ok(client)
    }

    /// Checks that no other project has a stack with this plan's name that runs, or volumes that this one would use.
    pub(crate) fn check_origin(&self, plan: &Plan) -> Result<(), Failure> {
        self.connect_to(&plan.name)?;
        match plan.has_own_volumes() {
            true => self.check_volumes(&plan.name),
            false => Ok(()),
        }
    }

    /// Checks that the volumes of the stack with this name are not another project's.
    pub(crate) fn check_volumes(&self, name: &str) -> Result<(), Failure> {
        match self.origin() {
            Some(origin) => Ok(origin.check_volumes(&self.paths, name)?),
            None => Ok(()),
        }
    }

    /// The project that is meant, where files say which; who names the stack means that one.
    fn origin(&self) -> Option<Origin> {
        let variable = std::env::var_os("COMPOSE_PROJECT_NAME").filter(|name| !name.is_empty());
        if self.global.project_name.is_some() || variable.is_some() {
            return None;
        }
        // What is wrong with the files is told by who reads more of them.
        load::origin(&self.options(&Wanted::default()), &HostFacts::gather().ok()?).ok()
    }

    /// The container of that `container_name`, or of a service's number, by the name that it has here: the running
    /// stack knows, or its files. None if it is no other name of any container.
    pub(crate) fn container_called(&self, name: &str) -> Option<String> {
        if let Ok((_, Some(mut client))) = self.connect() {
            let rows = stats::subjects(&mut client, &[name.to_owned()]).ok()?;
            let own = |row: &stack::control::Status| row.service == name || row.container == name;
            return match &rows[..] {
                [only] if !own(&only.status) => Some(only.status.container.clone()),
                _ => None,
            };
        }
        // What is wrong with the files is told by who needs them.
        let host = HostFacts::gather().ok()?;
        let options = self.options(&Wanted::default());
        let plan = load::load_keeping(&options, &host, |_, _| Running::default()).ok()?.plan;
        if plan.services.iter().any(|service| service.name == name) {
            return None;
        }
        let first = name.strip_suffix("-1");
        let called = |service: &Service| {
            service.container_name.as_deref() == Some(name) || first == Some(service.name.as_str())
        };
        plan.services.into_iter().find(called).map(|service| service.name)
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
            Notice::State { .. } if self.global.quiet => {}
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

/// Largest stack file that is read from standard input, in bytes.
const MAX_INPUT: u64 = 4 << 20;

fn standard_input() -> Result<String, Failure> {
    let mut text = String::new();
    let input = std::io::stdin().lock();
    input.take(MAX_INPUT).read_to_string(&mut text).map_err(Failure::system("read standard input"))?;
    Ok(text)
}

/// The next notice of a command that is being carried out.
///
/// # Errors
/// The command's failure, or the end of the supervisor.
pub(crate) fn answer(client: &mut Client) -> Result<Notice, Failure> {
    expected(client.next(None)?)
}

/// The same of what has been received, which is none at the end of the connection.
pub(crate) fn expected(notice: Option<Notice>) -> Result<Notice, Failure> {
    match notice {
        Some(Notice::Failed(error)) => Err(error.into()),
        Some(Notice::TakenDown) => Err(taken_down()),
        Some(Notice::Ending) => Err(stack::control::being_taken_down().into()),
        Some(Notice::Occupied) => Err(RemoteError::message("another command is starting this stack")
            .or_hint("the same command again works in that one")
            .into()),
        Some(notice) => Ok(notice),
        None => Err(supervisor_gone()),
    }
}

/// The stack was taken down in the middle of a command.
pub(crate) fn taken_down() -> Failure {
    RemoteError::message("the stack was taken down").into()
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
