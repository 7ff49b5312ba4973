//! `up --trace`, `run --trace`, `build --trace`: what is told of each step, in words, as JSON, or as a shell script.
//!
//! [`main`] is a process of its own between the command and the supervisor; see [`stack::trace`]. A build is watched by the
//! command itself, which has its own program, executed again, do the work ([`Trace::watch_this_command`]).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use stack::client::{self, Client};
use stack::plan::Plan;
use stack::trace::{self, Outcome, Step, explain, script};

use crate::output::{Failure, Output};

/// How steps are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
    /// A shell script that builds one container's sandbox by hand.
    Script,
}

/// Set for a command that is watched by one that was executed in the same way.
const WATCHED: (&str, &str) = ("INCEPTION_WATCHED", "1");

/// Options of `up`, `run` and `build` that have to do with it.
#[derive(Debug, Default, Args)]
pub(crate) struct Trace {
    /// Trace every step by which the containers are created, as the kernel saw it: text, json, or script (a shell script that
    /// builds the sandbox of the first service named here, or of what `run` starts, by hand; not of a build)
    #[arg(
        long,
        value_name = "FORMAT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "text",
        hide_possible_values = true
    )]
    trace: Option<Format>,
    /// Write that to a file instead of standard output
    #[arg(long, value_name = "FILE", requires = "trace")]
    trace_file: Option<PathBuf>,
}

impl Trace {
    /// Whether steps are told.
    pub(crate) fn is_wanted(&self) -> bool {
        self.trace.is_some()
    }

    /// A stack that runs was made before anybody could watch.
    pub(crate) fn check_is_down(&self, stack: &str) -> Result<(), Failure> {
        if !self.is_wanted() {
            return Ok(());
        }
        let what = format!("stack `{stack}` runs already, and how it was made cannot be seen any more");
        Err(Failure::usage(what, "`inception-run down` first"))
    }

    /// Starts a supervisor for `plan`, one that is watched if that is wanted. The script is that of `container`, or of the
    /// first one that starts.
    pub(crate) fn start(
        &self,
        plan: &Plan,
        container: Option<&str>,
        output: Output,
    ) -> Result<Client, Failure> {
        let Some(format) = self.trace else { return Ok(client::start(plan)?) };
        let file = self.file()?;
        let word = match format {
            Format::Text => "text",
            Format::Json => "json",
            Format::Script => "script",
        };
        let color = if output.color_out && file.is_none() { "color" } else { "plain" };
        Ok(client::start_traced(plan, &[word, color, container.unwrap_or_default()], file)?)
    }

    /// Executes this command once more and tells its steps, if that is wanted and this is not that one. Returns its exit
    /// code.
    pub(crate) fn watch_this_command(&self, output: Output) -> Result<Option<u8>, Failure> {
        let Some(format) = self.trace.filter(|_| !is_watched()) else { return Ok(None) };
        if format == Format::Script {
            let what = "a build makes many sandboxes, and `--trace=script` is for one container";
            return Err(Failure::usage(
                what,
                "`--trace` tells its steps; `run --trace=script` is for a service",
            ));
        }
        let file = self.file()?;
        let color = output.color_out && file.is_none();
        let out: Box<dyn Write> = match file {
            Some(file) => Box::new(file),
            None => Box::new(io::stdout()),
        };
        let mut printer = Printer::new(format, color, out);
        let arguments: Vec<_> = std::env::args_os().skip(1).collect();
        let code = trace::run_command(&arguments, WATCHED, &mut |step| printer.tell(step))?;
        Ok(Some(u8::try_from(code).unwrap_or(1)))
    }

    /// Where the steps go, if not to standard output.
    fn file(&self) -> Result<Option<File>, Failure> {
        let Some(path) = &self.trace_file else { return Ok(None) };
        // It has what the services' environments have.
        let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
        open.map(Some).map_err(Failure::system(&format!("write {}", path.display())))
    }
}

/// Whether the steps of this very command are told.
pub(crate) fn is_watched() -> bool {
    std::env::var_os(WATCHED.0).is_some_and(|value| value == WATCHED.1)
}

/// Body of the process that watches: `__trace text|json|script color|plain CONTAINER` and the supervisor's arguments.
/// Returns the exit status.
pub(crate) fn main() -> i32 {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let [format, color, container, supervisor @ ..] = &arguments[..] else {
        eprintln!("inception-run: {} is not for use by hand", trace::ARGUMENT);
        return 2;
    };
    let format = match format.as_str() {
        "json" => Format::Json,
        "script" => Format::Script,
        _ => Format::Text,
    };
    let mut printer = Printer::new(format, color == "color", Box::new(io::stdout()));
    let result = trace::run(supervisor, &mut |step| printer.tell(step));
    let written = printer.end(Some(container.as_str()).filter(|name| !name.is_empty()));
    match (result, written) {
        (Ok(()), Ok(())) => 0,
        (Err(error), _) => {
            let output = Output::new(crate::args::ColorChoice::Auto);
            output.failure(&error.into());
            1
        }
        // Whoever reads it has gone.
        (Ok(()), Err(_)) => 1,
    }
}

struct Printer {
    format: Format,
    out: Box<dyn Write>,
    /// When the first step was taken.
    start: Option<SystemTime>,
    color: bool,
    /// All steps, for the script.
    steps: Vec<Step>,
}

impl Printer {
    fn new(format: Format, color: bool, out: Box<dyn Write>) -> Self {
        Self { format, out, start: None, color, steps: Vec::new() }
    }

    fn tell(&mut self, step: &Step) -> io::Result<()> {
        let text = match self.format {
            Format::Text => self.text(step),
            Format::Json => format!("{}\n", as_json(step)),
            Format::Script => {
                self.steps.push(step.clone());
                return Ok(());
            }
        };
        self.write(&text)
    }

    /// Writes what can only be written when all steps are known: the script of a container, or of the first one.
    fn end(&mut self, container: Option<&str>) -> io::Result<()> {
        match self.format {
            Format::Text | Format::Json => Ok(()),
            Format::Script => {
                let script = script::write(&self.steps, container);
                self.write(&script)
            }
        }
    }

    /// One write for each step: the services' output may go to the same place.
    fn write(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// A step in words: who and what; what for, and where to read on; how in a shell.
    fn text(&mut self, step: &Step) -> String {
        let start = *self.start.get_or_insert(step.time);
        let elapsed = step.time.duration_since(start).unwrap_or_default();
        let paint = |code: &str, text: &str| match self.color {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        };
        let mut who = format!("{} {}", step.who.role, step.who.pid);
        if let Some(container) = &step.who.container {
            who.push_str(&format!(" ({container})"));
        }
        let explanation = explain(step);
        let mut text = format!(
            "{:>9.4}  {}  {} = {}\n",
            elapsed.as_secs_f64(),
            paint("1", &who),
            paint("36", &step.call.line()),
            result(step)
        );
        if !explanation.purpose.is_empty() {
            text.push_str(&format!("           {}\n", explanation.purpose));
        }
        if !explanation.manual.is_empty() {
            text.push_str(&paint("2", &format!("           see {}\n", explanation.manual)));
        }
        if let Some(shell) = &explanation.shell {
            text.push_str(&format!("           $ {}\n", visible(shell)));
        }
        text
    }
}

/// The result with what a new process is called on the host, where its maker knows it by another number.
fn result(step: &Step) -> String {
    match (step.outcome, step.made) {
        (Outcome::Returned(number), Some(pid)) if number != i64::from(pid) => {
            format!("{number} (on the host: {pid})")
        }
        _ => step.outcome.to_string(),
    }
}

/// A command on one line that controls no terminal.
fn visible(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c {
            '\n' => "\\n".chars().collect::<Vec<_>>(),
            c if c.is_control() => c.escape_default().collect(),
            c => vec![c],
        })
        .collect()
}

fn as_json(step: &Step) -> Value {
    let explanation = explain(step);
    let since_epoch = step.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let arguments: Map<String, Value> = step
        .call
        .arguments()
        .into_iter()
        .map(|argument| (argument.name.to_owned(), Value::String(argument.value)))
        .collect();
    let (result, error) = match step.outcome {
        Outcome::Returned(value) => (Some(value), None),
        Outcome::Failed(number) => (Some(-1), Some(io::Error::from_raw_os_error(number).to_string())),
        Outcome::Unseen => (None, None),
    };
    json!({
        "time": since_epoch.as_secs_f64(),
        "pid": step.who.pid,
        "role": step.who.role.to_string(),
        "container": step.who.container,
        "call": step.call.name(),
        "arguments": arguments,
        "result": result,
        "error": error,
        "made": step.made,
        "purpose": explanation.purpose,
        "manual": explanation.manual,
        "shell": explanation.shell,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stack::trace::{Call, Role, Who};

    use super::*;

    fn step() -> Step {
        Step {
            time: UNIX_EPOCH + Duration::from_millis(1500),
            who: Who { pid: 42, role: Role::Child, container: Some("web".into()) },
            call: Call::Sethostname { name: Some("we\x1bb".into()) },
            outcome: Outcome::Returned(0),
            made: None,
        }
    }

    #[test]
    fn a_step_in_words() {
        let mut printer = Printer::new(Format::Text, false, Box::new(io::sink()));
        printer.start = Some(UNIX_EPOCH);
        assert_eq!(
            printer.text(&step()),
            "   1.5000  child 42 (web)  sethostname(\"we\\u{1b}b\") = 0\n\
             \x20          gives the UTS namespace its host name, which the host does not see\n\
             \x20          see sethostname(2), uts_namespaces(7)\n\
             \x20          $ hostname 'we\\u{1b}b'\n"
        );
    }

    #[test]
    fn a_step_for_programs() {
        let refused = Step { outcome: Outcome::Failed(1), ..step() };
        let json = as_json(&refused);
        assert_eq!(json["time"], 1.5);
        assert_eq!(
            (&json["call"], &json["role"], &json["result"]),
            (&json!("sethostname"), &json!("child"), &json!(-1))
        );
        assert_eq!(json["error"], "Operation not permitted (os error 1)");
        assert_eq!(json["arguments"]["name"], "\"we\\u{1b}b\"");
    }
}
