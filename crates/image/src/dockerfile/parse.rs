//! Instructions of each kind.

use std::collections::BTreeSet;

use crate::dockerfile::flags::Flags;
use crate::dockerfile::lines::{self, Logical};
use crate::dockerfile::mount::MountFlag;
use crate::dockerfile::{
    Command, Copy, Dockerfile, Health, Instruction, Kind, Network, Run, Security, Stage, Warning, lint, words,
};
use crate::error::{Error, Result};

const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// What is wrong, and how to mend it.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl From<String> for Problem {
    fn from(message: String) -> Self {
        Self { message, hint: None }
    }
}

impl From<&str> for Problem {
    fn from(message: &str) -> Self {
        message.to_owned().into()
    }
}

impl Problem {
    fn hinted(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()) }
    }

    /// The error, with its place.
    pub(super) fn at(self, file: &str, line: usize) -> Error {
        Error::Dockerfile { file: file.to_owned(), line, message: self.message, hint: self.hint }
    }
}

pub(crate) type Parsed<T> = Result<T, Problem>;

pub(super) fn parse(file: &str, text: &str) -> Result<Dockerfile> {
    let mut warnings = Vec::new();
    let (directives, logical) =
        lines::split(text, &mut warnings).map_err(|(line, problem)| problem.at(file, line))?;
    let escape = directives.escape;
    let mut dockerfile = Dockerfile {
        name: file.to_owned(),
        escape,
        global_args: Vec::new(),
        stages: Vec::new(),
        warnings: Vec::new(),
        rules: directives.rules,
        named: BTreeSet::new(),
    };
    for found in logical {
        let line = found.line;
        if found.keyword == "FROM" {
            let stage = from(&found).map_err(|problem| inside("FROM", problem).at(file, line))?;
            dockerfile.stages.push(stage);
            continue;
        }
        let instruction =
            instruction(&found, escape, &mut warnings).map_err(|problem| problem.at(file, line))?;
        match dockerfile.stages.last_mut() {
            Some(stage) => stage.instructions.push(instruction),
            None if matches!(instruction.kind, Kind::Arg(_)) => dockerfile.global_args.push(instruction),
            None => {
                let message = format!("{} stands before the first FROM", found.keyword);
                return Err(Problem::from(message).at(file, line));
            }
        }
    }
    if dockerfile.stages.is_empty() {
        return Err(
            Problem::hinted("it has no FROM", "begin it with `FROM alpine:3.20`, for example").at(file, 1)
        );
    }
    lint::check(&dockerfile, &mut warnings);
    warnings.sort_by_key(|warning| warning.line);
    dockerfile.warnings = warnings;
    Ok(dockerfile)
}

/// The instruction that a base image's `ONBUILD` left for the stage that begins on `line`.
pub(super) fn trigger(file: &str, line: usize, text: &str) -> Result<Instruction> {
    let refuse = |problem: Problem| {
        let message = format!("a trigger of the base image, `{text}`: {}", problem.message);
        Problem { message, hint: problem.hint }.at(file, line)
    };
    let mut warnings = Vec::new();
    let (directives, logical) = lines::split(text, &mut warnings).map_err(|(_, problem)| refuse(problem))?;
    let [only] = &logical[..] else { return Err(refuse("it is not one instruction".into())) };
    check_trigger(&only.keyword).map_err(refuse)?;
    let found = instruction(only, directives.escape, &mut warnings).map_err(refuse)?;
    Ok(Instruction { line, ..found })
}

/// Names the instruction that a problem is in.
fn inside(keyword: &str, problem: Problem) -> Problem {
    Problem { message: format!("{keyword}: {}", problem.message), hint: problem.hint }
}

fn instruction(found: &Logical, escape: char, warnings: &mut Vec<Warning>) -> Parsed<Instruction> {
    let keyword = found.keyword.as_str();
    if !KEYWORDS.contains(&keyword) {
        return Err(unknown(keyword));
    }
    let kind = kind(found, escape, warnings).map_err(|problem| inside(keyword, problem))?;
    Ok(Instruction { line: found.line, text: found.text(), kind })
}

fn kind(found: &Logical, escape: char, warnings: &mut Vec<Warning>) -> Parsed<Kind> {
    let mut warn = |rule, message: String| warnings.push(Warning { line: found.line, rule, message });
    if found.keyword == "ONBUILD" {
        return on_build(found, escape, warnings);
    }
    let (mut flags, rest) = Flags::split(&found.rest);
    if rest.is_empty() {
        return Err("it needs an argument".into());
    }
    let kind = match found.keyword.as_str() {
        "RUN" => run(found, &mut flags, rest)?,
        "COPY" | "ADD" => Kind::Copy(copy(found, &mut flags, rest, escape)?),
        "ENV" | "LABEL" => {
            let (pairs, legacy) = pairs(rest, escape)?;
            if legacy {
                let (keyword, (name, _)) = (&found.keyword, &pairs[0]);
                warn(
                    "LegacyKeyValueFormat",
                    format!("{keyword}: write `{name}=value` rather than `{name} value`"),
                );
            }
            if found.keyword == "ENV" { Kind::Env(pairs) } else { Kind::Label(pairs) }
        }
        "ARG" => Kind::Arg(args(rest, escape)?),
        "WORKDIR" => Kind::Workdir(rest.to_owned()),
        "USER" => Kind::User(one_word(rest, escape)?),
        "EXPOSE" => Kind::Expose(words::split(rest, escape)),
        "VOLUME" => Kind::Volume(json_list(rest)?.unwrap_or_else(|| words::split(rest, escape))),
        "ENTRYPOINT" => Kind::Entrypoint(command(rest)?),
        "CMD" => Kind::Cmd(command(rest)?),
        "STOPSIGNAL" => Kind::StopSignal(one_word(rest, escape)?),
        "SHELL" => match json_list(rest)? {
            Some(shell) if !shell.is_empty() => Kind::Shell(shell),
            _ => return Err("it takes a JSON list, as in `SHELL [\"/bin/sh\", \"-c\"]`".into()),
        },
        "HEALTHCHECK" => Kind::Healthcheck(healthcheck(&mut flags, rest)?),
        "MAINTAINER" => Kind::Maintainer(rest.to_owned()),
        other => return Err(unknown(other)),
    };
    flags.finish()?;
    Ok(kind)
}

fn unknown(keyword: &str) -> Problem {
    let hint = nearest(keyword, &KEYWORDS).map(|known| format!("did you mean {known}?"));
    Problem { message: format!("unknown instruction `{keyword}`"), hint }
}

/// The known word that an unknown one is most like, if it is like one at all.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|known| (strsim::damerau_levenshtein(known, word), *known)).min();
    near.filter(|(distance, _)| *distance <= 2).map(|(_, known)| known)
}

fn from(found: &Logical) -> Parsed<Stage> {
    let (mut flags, rest) = Flags::split(&found.rest);
    let platform = flags.value("--platform")?;
    flags.finish()?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (from, name) = match words[..] {
        [from] => (from, None),
        [from, r#as, name] if r#as.eq_ignore_ascii_case("as") => (from, Some(name)),
        _ => return Err("it takes an image, and `AS` with a name if the stage has one".into()),
    };
    if let Some(name) = name {
        let ok = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !ok {
            return Err(format!("`{name}` cannot be the name of a stage").into());
        }
    }
    Ok(Stage {
        from: from.to_owned(),
        platform,
        name: name.map(str::to_owned),
        line: found.line,
        text: found.text(),
        instructions: Vec::new(),
    })
}

fn check_trigger(keyword: &str) -> Parsed<()> {
    match keyword {
        "ONBUILD" | "FROM" | "MAINTAINER" => Err(format!("{keyword} cannot be left for later builds").into()),
        _ => Ok(()),
    }
}

fn on_build(found: &Logical, escape: char, warnings: &mut Vec<Warning>) -> Parsed<Kind> {
    let (keyword, rest) = lines::first_word(&found.rest);
    if keyword.is_empty() {
        return Err("it needs an instruction".into());
    }
    let (keyword, rest) = (keyword.to_ascii_uppercase(), rest.to_owned());
    check_trigger(&keyword)?;
    let later = Logical { line: found.line, keyword, rest, heredocs: found.heredocs.clone() };
    let mut text = later.text();
    for document in &later.heredocs {
        text.push('\n');
        text.push_str(document.raw.trim_end_matches('\n'));
    }
    let kind = Box::new(instruction(&later, escape, warnings)?.kind);
    Ok(Kind::OnBuild { text, kind })
}

/// A JSON list of strings; none if the text is none, and so for the shell.
fn json_list(text: &str) -> Parsed<Option<Vec<String>>> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(list) = serde_json::from_str::<Vec<serde_json::Value>>(text) else { return Ok(None) };
    let strings = list.into_iter().map(|value| match value {
        serde_json::Value::String(text) => Ok(text),
        other => Err(Problem::from(format!("`{other}` is no string: a JSON list here holds strings only"))),
    });
    strings.collect::<Parsed<_>>().map(Some)
}

fn command(text: &str) -> Parsed<Command> {
    Ok(match json_list(text)? {
        Some(words) => Command::Exec(words),
        None => Command::Shell(text.to_owned()),
    })
}

fn one_word(rest: &str, escape: char) -> Parsed<String> {
    match &words::split(rest, escape)[..] {
        [word] => Ok(word.clone()),
        _ => Err("it takes one word".into()),
    }
}

fn run(found: &Logical, flags: &mut Flags, rest: &str) -> Parsed<Kind> {
    let mounts = flags.all("--mount")?.iter().map(|mount| MountFlag::parse(mount)).collect::<Parsed<_>>()?;
    let network = match flags.value("--network")?.as_deref() {
        None | Some("default") => Network::Default,
        Some("none") => Network::None,
        Some("host") => Network::Host,
        Some(other) => return Err(format!("`--network={other}` is not one of default, none, host").into()),
    };
    let security = match flags.value("--security")?.as_deref() {
        None | Some("sandbox") => Security::Sandbox,
        Some("insecure") => Security::Insecure,
        Some(other) => return Err(format!("`--security={other}` is not one of sandbox, insecure").into()),
    };
    if !flags.all("--device")?.is_empty() {
        return Err("`--device` is not supported".into());
    }
    let command = command(rest)?;
    if command == Command::Exec(Vec::new()) {
        return Err("the list is empty".into());
    }
    if matches!(command, Command::Exec(_)) && !found.heredocs.is_empty() {
        return Err("a JSON list has no shell that could read a here-document".into());
    }
    Ok(Kind::Run(Run { command, heredocs: found.heredocs.clone(), mounts, network, security }))
}

fn copy(found: &Logical, flags: &mut Flags, rest: &str, escape: char) -> Parsed<Copy> {
    let add = found.keyword == "ADD";
    let mut copy = Copy {
        add,
        chown: flags.value("--chown")?,
        chmod: flags.value("--chmod")?,
        link: flags.switch("--link")?.unwrap_or(false),
        exclude: flags.all("--exclude")?,
        ..Copy::default()
    };
    if add {
        copy.keep_git_dir = flags.switch("--keep-git-dir")?.unwrap_or(false);
        copy.checksum = flags.value("--checksum")?;
        copy.unpack = flags.switch("--unpack")?;
    } else {
        copy.from = flags.value("--from")?;
        copy.parents = flags.switch("--parents")?.unwrap_or(false);
    }
    if let Some(from) = copy.from.as_ref().filter(|from| from.contains('$')) {
        let message = format!("`--from={from}`: the source cannot be a variable");
        return Err(Problem::hinted(message, "name a stage that begins with `FROM` and the variable"));
    }
    let list = json_list(rest)?;
    let mut words = list.unwrap_or_else(|| words::split(rest, escape));
    let destination = words.pop().filter(|_| !words.is_empty());
    copy.destination = destination.ok_or("it takes at least one source and a destination")?;
    if lines::is_heredoc(&copy.destination) {
        return Err("a here-document cannot be the destination".into());
    }
    copy.heredocs = found.heredocs.clone();
    copy.sources = words;
    if !copy.heredocs.is_empty() {
        copy.sources.retain(|word| !lines::is_heredoc(word));
    }
    Ok(copy)
}

/// `KEY=value ...`; or, as the second answer says, the old form `KEY the rest`.
fn pairs(rest: &str, escape: char) -> Parsed<(Vec<(String, String)>, bool)> {
    let words = words::split(rest, escape);
    if !words.first().is_some_and(|first| first.contains('=')) {
        let (key, value) = rest
            .split_once(char::is_whitespace)
            .ok_or_else(|| format!("`{rest}` has no value: write `{rest}=value`"))?;
        return Ok((vec![(key.to_owned(), value.trim_start().to_owned())], true));
    }
    let pairs = words.iter().map(|word| match word.split_once('=') {
        Some(("", _)) => Err(format!("`{word}` has no name").into()),
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => {
            Err(format!("`{word}` has no value: write `{word}=value`, or quote a value with spaces").into())
        }
    });
    Ok((pairs.collect::<Parsed<_>>()?, false))
}

fn args(rest: &str, escape: char) -> Parsed<Vec<(String, Option<String>)>> {
    words::split(rest, escape)
        .iter()
        .map(|word| {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name, Some(default.to_owned())),
                None => (word.as_str(), None),
            };
            if name.is_empty() || name.contains(|c: char| !(c.is_alphanumeric() || "_-.".contains(c))) {
                return Err(format!("`{name}` cannot be the name of a variable").into());
            }
            Ok((name.to_owned(), default))
        })
        .collect()
}

fn healthcheck(flags: &mut Flags, rest: &str) -> Parsed<Option<Health>> {
    let mut time = |name: &'static str| -> Parsed<u64> {
        let Some(value) = flags.value(name)? else { return Ok(0) };
        // Docker's engine refuses what is shorter than a millisecond.
        duration(&value).filter(|time| *time == 0 || *time >= 1_000_000).ok_or_else(|| {
            format!("`{name}={value}`: a time is written as `30s` or `1m30s`, and has a millisecond at least")
                .into()
        })
    };
    let (interval, timeout) = (time("--interval")?, time("--timeout")?);
    let (start_period, start_interval) = (time("--start-period")?, time("--start-interval")?);
    let retries = flags.value("--retries")?;
    let given = retries.is_some() || interval + timeout + start_period + start_interval > 0;
    let retries = match retries {
        Some(value) => value.parse().map_err(|_bad| format!("`--retries={value}` is no number"))?,
        None => 0,
    };
    let (word, rest) = lines::first_word(rest);
    if word.eq_ignore_ascii_case("NONE") {
        return if rest.is_empty() && !given { Ok(None) } else { Err("NONE stands alone".into()) };
    }
    if !word.eq_ignore_ascii_case("CMD") || rest.is_empty() {
        return Err("it takes `NONE`, or `CMD` and a command".into());
    }
    let command = command(rest)?;
    if command == Command::Exec(Vec::new()) {
        return Err("the list is empty".into());
    }
    Ok(Some(Health { command, interval, timeout, start_period, start_interval, retries }))
}

/// A time in Go's notation, in nanoseconds.
fn duration(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0.0_f64;
    if rest == "0" {
        return Some(0);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let units = [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
        let (unit, factor) = units.into_iter().find(|(unit, _)| {
            rest.strip_prefix(unit).is_some_and(|after| !after.starts_with(|c: char| c.is_ascii_alphabetic()))
        })?;
        total += number * factor;
        rest = &rest[unit.len()..];
    }
    (!text.is_empty() && total < 1e18).then_some(total as u64)
}
