//! How builds are shown: a line for each instruction, or on a terminal a line for each that is carried out now.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use stack::images::Progress;

use crate::output::{Output, size};
use crate::registry;

/// `--progress`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// As on a terminal where there is one, else plain.
    #[default]
    Auto,
    /// Lines.
    Plain,
    /// What is carried out now, with the last line of its output.
    Tty,
    /// Nothing but warnings and errors.
    Quiet,
}

/// Width of a terminal that does not tell.
const WIDTH: usize = 80;
/// Narrowest width at which a line has a part for the output.
const OUTPUT_FROM: usize = 60;

/// An instruction that has begun.
struct Step {
    /// `#5 [web build 2/7]`.
    label: String,
    number: usize,
    text: String,
    shown: bool,
    since: Instant,
    /// Its line on a terminal, and the last line of its output.
    bar: Option<ProgressBar>,
    last: String,
}

/// Shows what builds tell.
pub(crate) struct View {
    output: Output,
    form: Form,
    /// On a terminal.
    live: Option<MultiProgress>,
    /// By service and number of the step in its build.
    steps: BTreeMap<(String, usize), Step>,
    /// How many steps have begun.
    count: usize,
    /// Steps that were cached, by service.
    cached: BTreeMap<String, usize>,
    /// Percent of a download that was shown last.
    percent: u64,
    /// A shell has the terminal.
    shell: bool,
    transfer: registry::Report,
}

impl View {
    pub(crate) fn new(output: Output, form: Form) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|value| value == "dumb");
        let live = match form {
            Form::Auto => io::stderr().is_terminal() && !dumb,
            Form::Tty => true,
            Form::Plain | Form::Quiet => false,
        };
        let live = live.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        let (steps, cached) = (BTreeMap::new(), BTreeMap::new());
        let transfer = registry::Report::new(output, false);
        Self { output, form, live, steps, count: 0, cached, percent: 0, shell: false, transfer }
    }

    /// It shows how time passes.
    pub(crate) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    pub(crate) fn show(&mut self, progress: Progress) {
        match progress {
            Progress::Base(text) => self.line(&format!("base: {text}")),
            Progress::Fetching { image, how } => {
                self.percent = 0;
                self.line(&format!("[{image}] {how}"));
            }
            Progress::Bytes { image, done, total: Some(total) } if total > 0 => {
                let percent = done.saturating_mul(100) / total;
                // In steps: each is a line.
                if percent >= self.percent + 20 {
                    self.percent = percent;
                    self.line(&format!("[{image}] {percent}% of {}", size(total)));
                }
            }
            Progress::Bytes { .. } => {}
            Progress::Transfer { image, event } => {
                let transfer = &mut self.transfer;
                match &self.live {
                    Some(live) => live.suspend(|| transfer.show(&image, event)),
                    None => transfer.show(&image, event),
                }
            }
            Progress::Step { service, step, stage, index, total, text } => {
                self.count += 1;
                let place: Vec<&str> = [service.as_str(), stage.as_deref().unwrap_or_default()]
                    .into_iter()
                    .filter(|s| !s.is_empty())
                    .collect();
                let label =
                    format!("#{} [{} {index}/{total}]", self.count, place.join(" ")).replace("[ ", "[");
                let text = text.lines().next().unwrap_or_default().to_owned();
                let step_shown = Step {
                    label,
                    number: self.count,
                    text,
                    shown: false,
                    since: Instant::now(),
                    bar: None,
                    last: String::new(),
                };
                self.steps.insert((service, step), step_shown);
            }
            Progress::Cached { service, step } => {
                if let Some(step) = self.steps.remove(&(service.clone(), step)) {
                    *self.cached.entry(service).or_default() += 1;
                    if self.live.is_none() {
                        self.line(&format!("{} cached: {}", step.label, step.text));
                    }
                    self.clear(step);
                }
            }
            Progress::Ran { service, step, seconds } => {
                if let Some(step) = self.steps.remove(&(service, step)) {
                    let line = match (&self.live, step.shown) {
                        (Some(_), _) => step.finished_line(width(), seconds),
                        (None, true) => format!("{} done{}", step.label, took(seconds)),
                        (None, false) => format!("{} {}{}", step.label, step.text, took(seconds)),
                    };
                    self.line(&line);
                    self.clear(step);
                }
            }
            Progress::Output { service, step: Some(step), line } => self.written(&(service, step), line),
            Progress::Output { service, step: None, line } => self.line(&format!("[{service}] {line}")),
            Progress::Warning(text) => {
                let output = self.output;
                self.beside(|| output.warning(&text));
            }
            Progress::Tick => self.tick(),
            Progress::Shell { service, status } => {
                self.shell = status.is_some();
                if let Some(status) = status {
                    let steps: Vec<_> = self.steps.keys().filter(|(of, _)| *of == service).cloned().collect();
                    for key in steps {
                        let Some(step) = self.steps.remove(&key) else { continue };
                        self.line(&format!("{} {}", step.label, step.text));
                        self.clear(step);
                    }
                    self.line(&format!(
                        "the command ended with status {status}; this shell has the files as it left \
                        them, and `exit` ends it"
                    ));
                }
            }
            Progress::Built { service, id } => {
                let id = id.strip_prefix("sha256:").unwrap_or(&id);
                let short: String = id.chars().take(12).collect();
                let cached = match self.cached.get(&service) {
                    Some(count) if self.live.is_some() => format!(" ({count} steps cached)"),
                    _ => String::new(),
                };
                let service = if service.is_empty() { String::new() } else { format!("[{service}] ") };
                self.line(&format!("{service}image {short}{cached}"));
            }
        }
    }

    /// Takes away what is on a terminal, before anything else is written.
    pub(crate) fn finish(&mut self) {
        for (_, step) in std::mem::take(&mut self.steps) {
            self.clear(step);
        }
    }

    /// A line that stays.
    fn line(&self, text: &str) {
        if self.form != Form::Quiet {
            self.beside(|| self.output.progress(text));
        }
    }

    /// Writes while the lines of a terminal that change are out of the way.
    fn beside(&self, write: impl FnOnce()) {
        match &self.live {
            Some(live) => live.suspend(write),
            None => write(),
        }
    }

    /// A line of a command's output.
    fn written(&mut self, key: &(String, usize), line: String) {
        let Some(step) = self.steps.get_mut(key) else { return };
        if self.live.is_some() {
            // A command that redraws its line wrote several.
            let line = line.rsplit('\r').find(|part| !part.trim().is_empty()).unwrap_or_default();
            if !line.trim().is_empty() {
                step.last = line.chars().filter(|c| !c.is_control()).collect();
            }
            return self.tick();
        }
        let begin = (!step.shown).then(|| format!("{} {}", step.label, step.text));
        step.shown = true;
        let place = if key.0.is_empty() { String::new() } else { format!(" [{}]", key.0) };
        let prefix = format!("#{}{place}", step.number);
        if let Some(begin) = begin {
            self.line(&begin);
        }
        self.line(&format!("{prefix} {line}"));
    }

    /// Draws the lines of a terminal that change.
    fn tick(&mut self) {
        let Some(live) = self.live.as_ref().filter(|_| !self.shell) else { return };
        let width = width();
        for step in self.steps.values_mut() {
            // What is over at once needs no line.
            if step.bar.is_none() && step.since.elapsed() < Duration::from_millis(150) {
                continue;
            }
            let line = step.live_line(width);
            let bar = step.bar.get_or_insert_with(|| {
                let bar = live.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("{msg}") {
                    bar.set_style(style);
                }
                bar
            });
            bar.set_message(line);
            bar.tick();
        }
    }

    fn clear(&self, step: Step) {
        if let (Some(live), Some(bar)) = (&self.live, &step.bar) {
            bar.finish_and_clear();
            live.remove(bar);
        }
    }
}

/// Columns of the terminal.
fn width() -> usize {
    rustix::termios::tcgetwinsize(io::stderr()).map_or(WIDTH, |size| size.ws_col.into())
}

impl Step {
    /// One line of a terminal that stays.
    fn finished_line(&self, width: usize, seconds: f64) -> String {
        let time = if seconds < 0.05 { String::new() } else { format!(" {seconds:>5.1}s") };
        let head = format!("{}{time} ", self.label);
        let rest = width.saturating_sub(head.chars().count() + 1);
        format!("{head}{}", cut(&self.text, rest))
    }

    /// One line of a terminal: what is carried out, since when, and the last that it wrote.
    fn live_line(&self, width: usize) -> String {
        let head = format!("{} {:>5.1}s ", self.label, self.since.elapsed().as_secs_f64());
        // A full line would be followed by an empty one on some terminals.
        let rest = width.saturating_sub(head.chars().count() + 1);
        if self.last.is_empty() || width < OUTPUT_FROM {
            return format!("{head}{}", cut(&self.text, rest));
        }
        let text = cut(&self.text, rest / 2);
        let left = rest.saturating_sub(text.chars().count() + 3);
        format!("{head}{text} | {}", cut(&self.last, left))
    }
}

/// As much of `text` as there is room for.
fn cut(text: &str, room: usize) -> String {
    match text.chars().count() <= room {
        true => text.to_owned(),
        false => text.chars().take(room.saturating_sub(1)).chain("…".chars()).collect(),
    }
}

/// ` (12 ms)`, ` (3.4 s)`; nothing for what takes no time.
fn took(seconds: f64) -> String {
    match seconds {
        ..0.001 => String::new(),
        0.001..1.0 => format!(" ({:.0} ms)", seconds * 1000.0),
        _ => format!(" ({seconds:.1} s)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_in_a_fitting_unit() {
        assert_eq!([0.0002, 0.0124, 75.04].map(took), ["", " (12 ms)", " (75.0 s)"]);
    }

    #[test]
    fn a_live_line_fits_the_terminal() {
        let step = Step {
            label: "#12 [wordpress build 3/9]".into(),
            number: 12,
            text: "RUN apk add --no-cache php83 php83-fpm php83-mysqli php83-json".into(),
            shown: false,
            since: Instant::now(),
            bar: None,
            last: "(13/42) Installing libxml2 (2.12.10-r0)".into(),
        };
        for width in [40, 80, 120, 200] {
            let line = step.live_line(width);
            assert!(line.chars().count() < width && line.starts_with(&step.label), "{line}");
            assert_eq!(line.contains("| (13/42)"), width > 60, "{line}");
        }
    }
}
