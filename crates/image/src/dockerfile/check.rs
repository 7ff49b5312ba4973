//! A Dockerfile looked at without its files, its images, and without a build.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::dockerfile::{Dockerfile, Kind, Origin, Scope, Warning, expand_document, platform_args};
use crate::error::Result;

/// What can be known of a stage's variables.
#[derive(Clone, Default)]
struct Variables {
    values: BTreeMap<String, String>,
    /// There are no others: the stage does not begin with an image, which may bring some.
    complete: bool,
    missed: RefCell<BTreeSet<String>>,
}

impl Scope for Variables {
    fn get(&self, name: &str) -> Option<String> {
        let value = self.values.get(name).cloned();
        // Whatever the image has, it is good enough.
        if self.complete { value } else { value.or_else(|| Some("unknown".to_owned())) }
    }

    fn missed(&self, name: &str) {
        self.missed.borrow_mut().insert(name.to_owned());
    }
}

/// Looks for mistakes in all stages, with these values of `ARG`s. `name` is used in messages, `named` are the names of
/// the build's contexts. Returns what is likely a mistake, in the order of the file.
///
/// # Errors
/// What would be an error of a build, too.
pub fn check(
    name: &str,
    text: &str,
    args: &BTreeMap<String, String>,
    named: &BTreeSet<String>,
) -> Result<Vec<Warning>> {
    let mut dockerfile = Dockerfile::parse(name, text)?;
    dockerfile.named.clone_from(named);
    dockerfile.apply_rules_of(args)?;
    let globals = dockerfile.global_scope(args)?;
    let mut warnings = dockerfile.warnings.clone();
    let mut stages: Vec<Variables> = Vec::new();
    for (index, stage) in dockerfile.stages.iter().enumerate() {
        let origins = dockerfile.origins(index, &globals, &|_| Ok(Vec::new()))?;
        let mut variables = match &origins[0] {
            Origin::Scratch => Variables { complete: true, ..Variables::default() },
            Origin::Stage(earlier) => stages[*earlier].clone(),
            _ => Variables::default(),
        };
        // `ARG`s end with their stage.
        let mut env = variables.values.clone();
        for instruction in &stage.instructions {
            let read = Reader { dockerfile: &dockerfile, line: instruction.line };
            read.instruction(&instruction.kind, &mut variables, &mut env, (args, &globals))?;
            let missed = variables.missed.take().into_iter();
            warnings.extend(missed.map(|name| Warning::undefined(instruction.line, &name)));
        }
        stages.push(Variables { values: env, ..variables });
    }
    warnings.sort_by_key(|warning| warning.line);
    Ok(dockerfile.wanted(&warnings).cloned().collect())
}

struct Reader<'a> {
    dockerfile: &'a Dockerfile,
    line: usize,
}

/// Values that were given, and those of the `ARG`s before the first stage.
type Given<'a> = (&'a BTreeMap<String, String>, &'a BTreeMap<String, String>);

impl Reader<'_> {
    fn word(&self, word: &str, variables: &Variables) -> Result<String> {
        self.dockerfile.expand(word, variables, self.line)
    }

    fn instruction(
        &self,
        kind: &Kind,
        variables: &mut Variables,
        env: &mut BTreeMap<String, String>,
        given: Given<'_>,
    ) -> Result<()> {
        match kind {
            Kind::Env(pairs) => {
                let mut values = Vec::new();
                for (key, value) in pairs {
                    values.push((self.word(key, variables)?, self.word(value, variables)?));
                }
                env.extend(values.iter().cloned());
                variables.values.extend(values);
            }
            Kind::Arg(list) => {
                for (name, default) in list {
                    let value = match (given.0.get(name), default) {
                        (Some(value), _) => Some(value.clone()),
                        (None, Some(default)) => Some(self.word(default, variables)?),
                        (None, None) => given.1.get(name).cloned().or_else(|| platform_args().remove(name)),
                    };
                    // `ENV` comes before `ARG`; one without a value is meant to be empty.
                    if !env.contains_key(name) {
                        variables.values.insert(name.clone(), value.unwrap_or_default());
                    }
                }
            }
            Kind::Label(pairs) => {
                for (key, value) in pairs {
                    self.word(key, variables)?;
                    self.word(value, variables)?;
                }
            }
            Kind::Copy(copy) => {
                let options = [&copy.chown, &copy.chmod, &copy.checksum].into_iter().flatten();
                let words = copy.sources.iter().chain([&copy.destination]).chain(&copy.exclude);
                for word in words.chain(options) {
                    self.word(word, variables)?;
                }
                for document in copy.heredocs.iter().filter(|document| document.expand) {
                    expand_document(&document.content, variables)
                        .map_err(|problem| self.dockerfile.error(self.line, problem))?;
                }
            }
            Kind::Run(run) if variables.complete => {
                for mount in &run.mounts {
                    self.dockerfile.mount(mount, variables, "/", self.line)?;
                }
            }
            Kind::Workdir(word) | Kind::User(word) | Kind::StopSignal(word) => {
                self.word(word, variables)?;
            }
            Kind::Expose(words) | Kind::Volume(words) => {
                for word in words {
                    self.word(word, variables)?;
                }
            }
            Kind::Run(_)
            | Kind::Entrypoint(_)
            | Kind::Cmd(_)
            | Kind::Shell(_)
            | Kind::Healthcheck(_)
            | Kind::Maintainer(_)
            | Kind::OnBuild { .. } => {}
        }
        Ok(())
    }
}
