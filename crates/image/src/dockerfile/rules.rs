//! Which warnings a Dockerfile, or who builds it, does not want, and whether the others are errors.

use std::collections::BTreeMap;
use std::fmt;

use crate::dockerfile::parse::{Parsed, Problem};
use crate::dockerfile::{Dockerfile, Warning};
use crate::error::{Error, Result};

/// The build argument that takes the place of the directive, as BuildKit has it.
pub(crate) const ARGUMENT: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// What `# check=` says.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// Rules of which no warning is wanted, in small letters; `all` stands for every one.
    skip: Vec<String>,
    /// Warnings are errors.
    strict: bool,
}

impl Rules {
    /// `skip=RULE,RULE;error=true`.
    pub(super) fn parse(text: &str) -> Parsed<Self> {
        let mut rules = Self::default();
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("skip", names)) => {
                    rules.skip.extend(names.split(',').map(|rule| rule.trim().to_ascii_lowercase()));
                }
                Some(("error", strict)) => rules.strict = strict.trim().eq_ignore_ascii_case("true"),
                // Rules that are off unless asked for; none is known here.
                Some(("experimental", _)) => {}
                _ => return Err(format!("`check={text}`: it takes `skip=RULE,...` and `error=true`").into()),
            }
        }
        Ok(rules)
    }

    fn wants(&self, rule: &str) -> bool {
        !self.skip.iter().any(|skip| skip == "all" || skip.eq_ignore_ascii_case(rule))
    }
}

impl Dockerfile {
    /// Lets the build argument decide about warnings, where it is given.
    pub(crate) fn apply_rules_of(&mut self, args: &BTreeMap<String, String>) -> Result<()> {
        if let Some(text) = args.get(ARGUMENT) {
            self.rules = Rules::parse(text).map_err(|problem| {
                Problem { message: format!("{ARGUMENT}: {}", problem.message), ..problem }.at(&self.name, 1)
            })?;
        }
        Ok(())
    }

    /// Those of some warnings that are wanted.
    pub(crate) fn wanted<'a>(
        &self,
        warnings: impl IntoIterator<Item = &'a Warning>,
    ) -> impl Iterator<Item = &'a Warning> {
        warnings.into_iter().filter(|warning| self.rules.wants(warning.rule))
    }

    /// The warning as an error, where that is what the file asks for.
    pub(crate) fn tolerate(&self, warning: &Warning) -> Result<()> {
        match self.rules.strict {
            false => Ok(()),
            true => Err(Error::Dockerfile {
                file: self.name.clone(),
                line: warning.line,
                message: warning.to_string(),
                hint: Some("`# check=error=true` makes warnings errors".to_owned()),
            }),
        }
    }

    /// Refuses a file that has warnings where they are errors.
    pub(crate) fn tolerate_all(&self) -> Result<()> {
        self.wanted(&self.warnings).try_for_each(|warning| self.tolerate(warning))
    }
}

impl Warning {
    /// That an instruction uses a variable that is nowhere set.
    pub(crate) fn undefined(line: usize, name: &str) -> Self {
        Self { line, rule: "UndefinedVar", message: format!("variable `{name}` has no value") }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.message, self.rule)
    }
}
