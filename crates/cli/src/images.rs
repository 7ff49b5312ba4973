//! `build`, `commit`, and the images that `up` needs.

use std::collections::BTreeMap;

use stack::RemoteError;
use stack::images::{self, Options, Progress};
use stack::plan::{Plan, Source};

use crate::args;
use crate::listing::check_services;
use crate::output::{self, Failure, Output, size};
use crate::registry;
use crate::session::{Session, Wanted};

/// `build`.
pub(crate) fn build(session: &Session, arguments: &args::Build) -> Result<u8, Failure> {
    let services = arguments.services.as_slice();
    let wanted = Wanted { base: arguments.base.as_deref(), services, ..Wanted::default() };
    let mut plan = session.load_for(&wanted)?.plan;
    check_services(&plan, &arguments.services)?;
    let named = |name: &str| arguments.services.is_empty() || arguments.services.iter().any(|s| s == name);
    plan.services.retain(|service| named(&service.name) && matches!(service.source, Source::Build(_)));
    if plan.services.is_empty() {
        session.output.progress("nothing to build: no service has a `build`");
        return Ok(0);
    }
    let options = Options { services: Vec::new(), build: true, no_cache: arguments.no_cache };
    provide(session, &plan, &options)?;
    Ok(0)
}

/// Provides the images of a plan for `up`.
pub(crate) fn for_up(
    session: &Session,
    plan: &Plan,
    arguments: &args::Up,
) -> Result<BTreeMap<String, String>, Failure> {
    if arguments.no_build {
        return images::present(&session.paths, plan)?.ok_or_else(|| {
            RemoteError::message("an image is missing, and `--no-build` forbids to build it")
                .or_hint("`inception-run build` builds what is missing")
                .into()
        });
    }
    let options = Options { services: arguments.services.clone(), build: arguments.build, no_cache: false };
    provide(session, plan, &options)
}

/// Provides the images of a plan and shows how it goes.
pub(crate) fn provide(
    session: &Session,
    plan: &Plan,
    options: &Options,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut report = Report::new(session.output);
    let ids = images::provide(&session.paths, plan, options, &mut |progress| report.show(progress))?;
    Ok(ids)
}

/// `commit`.
pub(crate) fn commit(session: &Session, service: &str, image: &str) -> Result<u8, Failure> {
    let plan = session.load(None)?.plan;
    check_services(&plan, &[service.to_owned()])?;
    let ids = images::present(&session.paths, &plan)?;
    let id = ids.as_ref().and_then(|ids| ids.get(service)).ok_or_else(|| {
        Failure::from(
            RemoteError::message(format!("service `{service}` has no image yet"))
                .or_hint("`inception-run up -d` builds and starts it"),
        )
    })?;
    let service = plan.services.iter().find(|s| s.name == service).ok_or(Failure::Unread)?;
    let id = images::commit(&session.paths, &plan.name, service, id, image)?;
    output::print(&format!("{id}\n"))?;
    Ok(0)
}

/// `down` of a stack that does not run: what a killed supervisor left goes, and the volumes if asked for.
pub(crate) fn clean(session: &Session, stack: &str, volumes: bool) -> Result<(), Failure> {
    Ok(images::clean(&session.paths, stack, volumes)?)
}

/// Shows a build: a line for each instruction, and the output of those that are carried out.
struct Report {
    output: Output,
    /// The instruction of each service that has not been shown yet: it may turn out to be cached.
    steps: BTreeMap<String, Step>,
    /// Percent of a download that was shown last.
    percent: u64,
    transfer: registry::Report,
}

struct Step {
    label: String,
    text: String,
    shown: bool,
}

impl Report {
    fn new(output: Output) -> Self {
        Self { output, steps: BTreeMap::new(), percent: 0, transfer: registry::Report::new(output, false) }
    }

    fn show(&mut self, progress: Progress) {
        match progress {
            Progress::Base(text) => self.output.progress(&format!("base: {text}")),
            Progress::Fetching { image, how } => {
                self.percent = 0;
                self.output.progress(&format!("[{image}] {how}"));
            }
            Progress::Bytes { image, done, total: Some(total) } if total > 0 => {
                let percent = done.saturating_mul(100) / total;
                // In steps: each is a line.
                if percent >= self.percent + 20 {
                    self.percent = percent;
                    self.output.progress(&format!("[{image}] {percent}% of {}", size(total)));
                }
            }
            Progress::Bytes { .. } => {}
            Progress::Transfer { image, event } => self.transfer.show(&image, event),
            Progress::Step { service, index, total, text } => {
                let label = format!("[{service} {index}/{total}]");
                let text = text.lines().next().unwrap_or_default().to_owned();
                self.steps.insert(service, Step { label, text, shown: false });
            }
            Progress::Cached { service, .. } => {
                if let Some(step) = self.steps.get_mut(&service) {
                    step.shown = true;
                    self.output.progress(&format!("{} cached: {}", step.label, step.text));
                }
            }
            Progress::Ran { service, seconds, .. } => {
                if let Some(step) = self.steps.get_mut(&service) {
                    let line = match step.shown {
                        true => format!("{} done{}", step.label, took(seconds)),
                        false => format!("{} {}{}", step.label, step.text, took(seconds)),
                    };
                    step.shown = true;
                    self.output.progress(&line);
                }
            }
            Progress::Output { service, line } => {
                self.begin(&service);
                self.output.progress(&format!("[{service}] {line}"));
            }
            Progress::Warning(text) => self.output.warning(&text),
            Progress::Built { service, id } => {
                let id = id.strip_prefix("sha256:").unwrap_or(&id);
                let short: String = id.chars().take(12).collect();
                self.output.progress(&format!("[{service}] image {short}"));
            }
        }
    }

    /// Shows the instruction that a service's build is at, once.
    fn begin(&mut self, service: &str) {
        if let Some(step) = self.steps.get_mut(service).filter(|step| !step.shown) {
            step.shown = true;
            self.output.progress(&format!("{} {}", step.label, step.text));
        }
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
}
