//! `up --trace`, `run --trace`: what is told of each step, in words, as JSON, or as a shell script.
//!
//! [`main`] is a process of its own between the command and the supervisor; see [`stack::trace`].

use std::fs::OpenOptions;
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

/// Options of `up` and `run` that have to do with it.
#[derive(Debug, Default, Args)]
pub(crate) struct Trace {
    /// Tell every step by which the containers are made, as the kernel saw it: text, json, or script (a shell script that
    /// builds the sandbox of the first service named here, or of what `run` starts, by hand)
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
        let file = match &self.trace_file {
            None => None,
            // It has what the services' environments have.
            Some(path) => {
                let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
                Some(open.map_err(Failure::system(&format!("write {}", path.display())))?)
            }
        };
        let word = match format {
            Format::Text => "text",
            Format::Json => "json",
            Format::Script => "script",
        };
        let color = if output.color_out && file.is_none() { "color" } else { "plain" };
        Ok(client::start_traced(plan, &[word, color, container.unwrap_or_default()], file)?)
    }
}

/// Body of the process that watches: `__trace text|json|script color|plain CONTAINER` and the supervisor's arguments.
/// Returns the exit status.
pub(crate) fn main() -> i32 {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let [format, color, container, supervisor @ ..] = &arguments[..] else {
        eprintln!("inception-run: {} is not for use by hand", trace::ARGUMENT);
        return 2;
    };
    let mut printer = Printer { start: None, color: color == "color", steps: Vec::new() };
    let result = trace::run(supervisor, &mut |step| match format.as_str() {
        "json" => print(&format!("{}\n", as_json(step))),
        "script" => {
            printer.steps.push(step.clone());
            Ok(())
        }
        _ => print(&printer.text(step)),
    });
    let written = match format.as_str() {
        "script" => {
            print(&script::write(&printer.steps, Some(container.as_str()).filter(|name| !name.is_empty())))
        }
        _ => Ok(()),
    };
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

/// One write for each step: the services' output may go to the same place.
fn print(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}

struct Printer {
    /// When the first step was taken.
    start: Option<SystemTime>,
    color: bool,
    /// All steps, for the script.
    steps: Vec<Step>,
}

impl Printer {
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
        let mut printer = Printer { start: Some(UNIX_EPOCH), color: false, steps: Vec::new() };
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
