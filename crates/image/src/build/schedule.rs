//! Which instruction of which stage is next.
//!
//! One thread goes from stage to stage, in the order of the file, and carries out of each what it can until the
//! stage has to wait: for another stage, for a command, or for another build. While commands run, the instructions
//! of other stages that run none are carried out. No lock is needed, and what is done does not depend on chance, but
//! for the order in which commands end.

use std::mem;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::build::cache::Claim;
use crate::build::run::Underway;
use crate::build::stage::{Built, StageState};
use crate::build::{BuildEvent, Builder, Outcome, shorten};
use crate::dockerfile::{Copy, Instruction, Kind, Origin, Warning};
use crate::error::{Error, Result};

/// How often it is looked whether another build is done with what this one waits for: a lock of a file cannot be
/// polled.
const AWAITED: Duration = Duration::from_millis(50);

/// A stage on its way.
struct Task {
    stage: usize,
    /// None until its base is there.
    state: Option<StageState>,
    /// What the base adds to the stage's instructions, before them.
    before: Rc<[Instruction]>,
    /// The instruction that is next or under way.
    next: usize,
    /// The step that is under way, with its beginning.
    step: Option<(usize, Instant)>,
    command: Option<Box<Underway>>,
    /// Steps shown so far.
    shown: usize,
}

/// What a stage begins with.
#[derive(Default)]
struct Base {
    built: Built,
    /// What is carried out before its own instructions.
    before: Vec<Instruction>,
}

impl Builder<'_> {
    /// Builds the stages that are needed, of which none needs a later one.
    pub(super) fn stages(&mut self) -> Result<()> {
        let task = |stage: &usize| Task {
            stage: *stage,
            state: None,
            before: Rc::default(),
            next: 0,
            step: None,
            command: None,
            shown: 0,
        };
        let mut tasks: Vec<Task> = self.needed.iter().map(task).collect();
        loop {
            for task in &mut tasks {
                self.advance(task)?;
            }
            let mut finished = Vec::new();
            tasks.retain_mut(|task| match self.is_finished(task) {
                true => {
                    finished.extend(task.state.take().map(|state| (task.stage, state.built)));
                    false
                }
                false => true,
            });
            if tasks.is_empty() {
                self.built.extend(finished);
                return Ok(());
            }
            // Others may have waited for them.
            if finished.is_empty() {
                self.wait(&mut tasks)?;
            }
            self.built.extend(finished);
        }
    }

    fn is_finished(&self, task: &Task) -> bool {
        let own = &self.dockerfile.stages[task.stage].instructions;
        task.state.is_some() && task.next == task.before.len() + own.len()
    }

    /// Carries out of a stage what can be.
    fn advance(&mut self, task: &mut Task) -> Result<()> {
        let dockerfile = self.dockerfile;
        let mut state = match task.state.take() {
            Some(state) => state,
            None => match self.base(task)? {
                Some(Base { mut built, mut before }) => {
                    let triggers = mem::take(&mut built.config.on_build);
                    before.extend(dockerfile.triggers(task.stage, &triggers)?);
                    task.before = before.into();
                    StageState::new(built)
                }
                None => return Ok(()),
            },
        };
        let before = Rc::clone(&task.before);
        let instructions: Vec<&Instruction> =
            before.iter().chain(&dockerfile.stages[task.stage].instructions).collect();
        while let Some(instruction) = instructions.get(task.next).copied() {
            if task.command.is_some() || !self.sources_ready(task.stage, instruction)? {
                break;
            }
            if let Some(wanted) = state.wanted.take() {
                state.claim = Claim::take(self.store, &wanted)?;
                if state.claim.is_none() {
                    state.wanted = Some(wanted);
                    break;
                }
            }
            if task.step.is_none() && is_step(instruction) {
                self.begin(task, &instruction.text);
            }
            let outcome = self
                .instruction(&mut state, task.stage, instruction)
                .map_err(|error| self.step_error(instruction.line, &instruction.text, error))?;
            for name in state.take_missed() {
                // Once, though it may be tried several times.
                if !matches!(outcome, Outcome::Awaited | Outcome::Queued) {
                    self.warn(&Warning::undefined(instruction.line, &name))?;
                }
            }
            match outcome {
                Outcome::Done => self.end(task),
                Outcome::Cached => {
                    if let Some((step, _)) = task.step.take() {
                        (self.progress)(BuildEvent::StepCached { step });
                    }
                }
                Outcome::Awaited | Outcome::Queued => break,
                Outcome::Running(command) => {
                    self.running += 1;
                    task.command = Some(command);
                    break;
                }
            }
            task.next += 1;
        }
        task.state = Some(state);
        Ok(())
    }

    /// Tells of a warning, unless it is not wanted.
    fn warn(&mut self, warning: &Warning) -> Result<()> {
        for warning in self.dockerfile.wanted([warning]) {
            self.dockerfile.tolerate(warning)?;
            let place = format!("{}:{}", self.dockerfile.name, warning.line);
            (self.progress)(BuildEvent::Warning(format!("{place}: {warning}")));
        }
        Ok(())
    }

    /// What a stage begins with, if that is there.
    fn base(&mut self, task: &mut Task) -> Result<Option<Base>> {
        let dockerfile = self.dockerfile;
        let stage = &dockerfile.stages[task.stage];
        let origin = dockerfile.origin(task.stage, &self.globals)?;
        if let Origin::Stage(earlier) = origin {
            let Some(built) = self.built.get(&earlier).cloned() else { return Ok(None) };
            self.begin(task, &stage.text);
            self.end(task);
            return Ok(Some(Base { built, ..Base::default() }));
        }
        self.begin(task, &stage.text);
        let image = self.request.image_of(self.store, &origin);
        let image = image.map_err(|error| self.step_error(stage.line, &stage.text, error))?;
        let base = match (image, origin) {
            (Some(image), _) => Base { built: Built::from_image(image.config), ..Base::default() },
            (None, Origin::Named(name)) => {
                Base { before: vec![files_of(name, stage.line)], ..Base::default() }
            }
            (None, _) => Base::default(),
        };
        self.end(task);
        Ok(Some(base))
    }

    /// Whether the stages that an instruction reads from are built.
    fn sources_ready(&self, stage: usize, instruction: &Instruction) -> Result<bool> {
        for from in instruction.kind.sources() {
            if let Origin::Stage(earlier) = self.dockerfile.copy_origin(from, stage, instruction.line)?
                && self.needed.contains(&earlier)
                && !self.built.contains_key(&earlier)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn begin(&mut self, task: &mut Task, text: &str) {
        let stage = &self.dockerfile.stages[task.stage];
        let several = self.dockerfile.stages.len() > 1;
        let name = || stage.name.clone().unwrap_or_else(|| format!("stage-{}", task.stage));
        let step = self.steps;
        task.shown += 1;
        (self.progress)(BuildEvent::StepStarted {
            step,
            stage: several.then(name),
            index: task.shown,
            total: 1 + task.before.iter().chain(&stage.instructions).filter(|it| is_step(it)).count(),
            text: text.to_owned(),
        });
        self.steps += 1;
        task.step = Some((step, Instant::now()));
    }

    fn end(&mut self, task: &mut Task) {
        if let Some((step, since)) = task.step.take() {
            (self.progress)(BuildEvent::StepDone { step, seconds: since.elapsed().as_secs_f64() });
        }
    }

    /// Waits until a command writes or ends, or for a moment where something else is waited for.
    fn wait(&mut self, tasks: &mut [Task]) -> Result<()> {
        let awaits = |task: &Task| task.state.as_ref().is_some_and(|state| state.wanted.is_some());
        let timeout = tasks.iter().any(awaits).then(|| {
            let nanoseconds = AWAITED.subsec_nanos().into();
            Timespec { tv_sec: 0, tv_nsec: nanoseconds }
        });
        let mut polled: Vec<PollFd<'_>> = tasks
            .iter()
            .filter_map(|task| task.command.as_ref())
            .map(|command| PollFd::from_borrowed_fd(command.running.output(), PollFlags::IN))
            .collect();
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Runner(Box::new(std::io::Error::from(errno)))),
        }
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        let running = tasks.iter_mut().filter(|task| task.command.is_some());
        for (task, _) in running.zip(ready).filter(|(_, ready)| *ready) {
            self.serve(task)?;
        }
        Ok(())
    }

    /// Passes on what a command wrote, and makes its layer when it has ended.
    fn serve(&mut self, task: &mut Task) -> Result<()> {
        let Some((step, _)) = task.step else { return Ok(()) };
        let Some(command) = &mut task.command else { return Ok(()) };
        let progress = &mut self.progress;
        if command.read(&mut |line| progress(BuildEvent::Output { step, line }))? {
            return Ok(());
        }
        let (Some(command), Some(state)) = (task.command.take(), &mut task.state) else { return Ok(()) };
        self.running -= 1;
        let own = &self.dockerfile.stages[task.stage].instructions;
        let Some(instruction) = task.before.iter().chain(own).nth(task.next) else { return Ok(()) };
        let mut line = |builder: &mut Self, line| (builder.progress)(BuildEvent::Output { step, line });
        self.finish_run(state, *command, instruction, &mut line)
            .map_err(|error| self.step_error(instruction.line, &instruction.text, error))?;
        task.next += 1;
        self.end(task);
        Ok(())
    }

    /// Names the instruction that failed, where the error does not yet.
    pub(super) fn step_error(&self, line: usize, text: &str, error: Error) -> Error {
        match error {
            Error::Dockerfile { .. } | Error::RunFailed { .. } => error,
            source => Error::Step {
                file: self.dockerfile.name.clone(),
                line,
                instruction: shorten(text),
                source: Box::new(source),
            },
        }
    }
}

/// The instruction that brings all files of a context, of which a stage begins with nothing else.
fn files_of(context: String, line: usize) -> Instruction {
    let text = format!("COPY --from={context} / /");
    let (sources, destination) = (vec!["/".to_owned()], "/".to_owned());
    let kind = Kind::Copy(Copy { sources, destination, from: Some(context), ..Copy::default() });
    Instruction { line, text, kind }
}

/// Whether an instruction is shown as a step: those that only change the configuration take no time.
fn is_step(instruction: &Instruction) -> bool {
    matches!(instruction.kind, Kind::Run(_) | Kind::Copy(_) | Kind::Workdir(_))
}
