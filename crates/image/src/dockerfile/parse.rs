//! Instructions of each kind.

use crate::build::Network;
use crate::dockerfile::lines::{self, Logical};
use crate::dockerfile::mount::MountFlag;
use crate::dockerfile::{Command, Copy, Dockerfile, Health, Instruction, Kind, Run, Security, Stage, words};
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

pub(crate) type Parsed<T> = Result<T, Problem>;

pub(super) fn parse(file: &str, text: &str) -> Result<Dockerfile> {
    let fail = |line: usize, message: String, hint: Option<String>| {
        Err(Error::Dockerfile { file: file.to_owned(), line, message, hint })
    };
    let (escape, logical) = lines::split(file, text)?;
    let mut dockerfile =
        Dockerfile { name: file.to_owned(), escape, global_args: Vec::new(), stages: Vec::new() };
    for found in logical {
        let line = found.line;
        if found.keyword == "FROM" {
            match from(&found) {
                Ok(stage) => dockerfile.stages.push(stage),
                Err(problem) => return fail(line, format!("FROM: {}", problem.message), problem.hint),
            }
            continue;
        }
        let text = found.text();
        let kind = match instruction(&found, escape) {
            Ok(kind) => kind,
            Err(problem) if KEYWORDS.contains(&found.keyword.as_str()) => {
                return fail(line, format!("{}: {}", found.keyword, problem.message), problem.hint);
            }
            Err(problem) => return fail(line, problem.message, problem.hint),
        };
        let is_arg = matches!(kind, Kind::Arg(_));
        let instruction = Instruction { line, text, kind };
        match dockerfile.stages.last_mut() {
            Some(stage) => stage.instructions.push(instruction),
            None if is_arg => dockerfile.global_args.push(instruction),
            None => return fail(line, format!("{} stands before the first FROM", found.keyword), None),
        }
    }
    if dockerfile.stages.is_empty() {
        return fail(
            1,
            "it has no FROM".to_owned(),
            Some("begin it with `FROM alpine:3.20`, for example".to_owned()),
        );
    }
    Ok(dockerfile)
}

fn instruction(found: &Logical, escape: char) -> Parsed<Kind> {
    let rest = found.rest.as_str();
    if !KEYWORDS.contains(&found.keyword.as_str()) {
        return Err(unknown(&found.keyword));
    }
    if found.keyword == "ONBUILD" {
        return Err("triggers for later builds are not supported".into());
    }
    let (flags, rest) = flags(rest, escape);
    let takes_flags = matches!(found.keyword.as_str(), "RUN" | "COPY" | "ADD" | "HEALTHCHECK");
    let (flags, rest) = if takes_flags { (flags, rest) } else { (Vec::new(), found.rest.as_str()) };
    if rest.is_empty() {
        return Err("it needs an argument".into());
    }
    Ok(match found.keyword.as_str() {
        "RUN" => run(found, &flags, rest)?,
        "COPY" | "ADD" => Kind::Copy(copy(found, &flags, rest, escape)?),
        "ENV" => Kind::Env(pairs(rest, escape)?),
        "LABEL" => Kind::Label(pairs(rest, escape)?),
        "ARG" => Kind::Arg(args(rest, escape)?),
        "WORKDIR" => Kind::Workdir(rest.to_owned()),
        "USER" => Kind::User(one_word(rest, escape)?),
        "EXPOSE" => Kind::Expose(words::split(rest, escape)),
        "VOLUME" => Kind::Volume(json_list(rest).unwrap_or_else(|| words::split(rest, escape))),
        "ENTRYPOINT" => Kind::Entrypoint(command(rest)),
        "CMD" => Kind::Cmd(command(rest)),
        "STOPSIGNAL" => Kind::StopSignal(one_word(rest, escape)?),
        "SHELL" => match json_list(rest) {
            Some(shell) if !shell.is_empty() => Kind::Shell(shell),
            _ => return Err("it takes a JSON list, as in `SHELL [\"/bin/sh\", \"-c\"]`".into()),
        },
        "HEALTHCHECK" => Kind::Healthcheck(healthcheck(&flags, rest)?),
        "MAINTAINER" => Kind::Maintainer(rest.to_owned()),
        other => return Err(unknown(other)),
    })
}

fn unknown(keyword: &str) -> Problem {
    let hint = nearest(keyword, &KEYWORDS).map(|known| format!("did you mean {known}?"));
    Problem { message: format!("unknown instruction `{keyword}`"), hint }
}

/// The known word that an unknown one is most like, if it is like one at all.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|known| (strsim::damerau_levenshtein(known, word), *known)).min();
    near.filter(|(distance, _)| *distance <= 2).map(|(_, known)| known)
}

fn from(found: &Logical) -> Parsed<Stage> {
    let mut words = found.rest.split_ascii_whitespace().peekable();
    while let Some(flag) = words.peek().filter(|word| word.starts_with("--")) {
        if !flag.starts_with("--platform=") {
            return Err(format!("unknown flag `{flag}`").into());
        }
        words.next();
    }
    let words: Vec<&str> = words.collect();
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
        name: name.map(str::to_owned),
        line: found.line,
        text: found.text(),
        instructions: Vec::new(),
    })
}

/// The `--name[=value]` words at the beginning, and what follows them.
fn flags(rest: &str, escape: char) -> (Vec<(String, String)>, &str) {
    let mut flags = Vec::new();
    let mut rest = rest;
    while rest.starts_with("--") {
        let end = rest.find(|c: char| c.is_ascii_whitespace()).unwrap_or(rest.len());
        let word = &rest[..end];
        let word = words::split(word, escape).concat();
        let (name, value) = word.split_once('=').unwrap_or((&word, ""));
        flags.push((name.to_owned(), value.to_owned()));
        rest = rest[end..].trim_start();
    }
    (flags, rest)
}

fn json_list(text: &str) -> Option<Vec<String>> {
    if text.starts_with('[') { serde_json::from_str(text).ok() } else { None }
}

fn command(text: &str) -> Command {
    match json_list(text) {
        Some(words) => Command::Exec(words),
        None => Command::Shell(text.to_owned()),
    }
}

fn one_word(rest: &str, escape: char) -> Parsed<String> {
    match &words::split(rest, escape)[..] {
        [word] => Ok(word.clone()),
        _ => Err("it takes one word".into()),
    }
}

fn run(found: &Logical, flags: &[(String, String)], rest: &str) -> Parsed<Kind> {
    let mut mounts = Vec::new();
    let mut network = Network::Default;
    let mut security = Security::Sandbox;
    for (name, value) in flags {
        match name.as_str() {
            "--mount" => mounts.push(MountFlag::parse(value)?),
            "--network" => {
                network = match value.as_str() {
                    "default" => Network::Default,
                    "none" => Network::None,
                    "host" => Network::Host,
                    _ => return Err(format!("`--network={value}` is not one of default, none, host").into()),
                };
            }
            "--security" => {
                security = match value.as_str() {
                    "sandbox" => Security::Sandbox,
                    "insecure" => Security::Insecure,
                    _ => return Err(format!("`--security={value}` is not one of sandbox, insecure").into()),
                };
            }
            _ => return Err(format!("flag `{name}={value}` is not supported").into()),
        }
    }
    let command = command(rest);
    if command == Command::Exec(Vec::new()) {
        return Err("the list is empty".into());
    }
    if let [only] = &found.heredocs[..]
        && is_bare_heredoc(rest)
        && only.content.starts_with("#!")
    {
        return Err(
            "a here-document with an interpreter of its own is not supported: COPY it to a file and run that"
                .into(),
        );
    }
    Ok(Kind::Run(Run { command, heredocs: found.heredocs.clone(), mounts, network, security }))
}

/// Whether a `RUN` consists of a here-document alone, which is then the script.
pub(crate) fn is_bare_heredoc(rest: &str) -> bool {
    rest.starts_with("<<") && !rest.contains(|c: char| c.is_ascii_whitespace())
}

fn copy(found: &Logical, flags: &[(String, String)], rest: &str, escape: char) -> Parsed<Copy> {
    let add = found.keyword == "ADD";
    let (mut from, mut chown, mut chmod) = (None, None, None);
    for (name, value) in flags {
        match name.as_str() {
            "--from" if !add => from = Some(value.clone()),
            "--chown" => chown = Some(value.clone()),
            "--chmod" => {
                let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
                chmod = Some(
                    mode.ok_or_else(|| format!("`--chmod={value}`: the mode is written in octal digits"))?,
                );
            }
            // Layers here are made independently of those below anyway.
            "--link" => {}
            _ => return Err(format!("flag `{name}` is not supported").into()),
        }
    }
    let mut words = json_list(rest).unwrap_or_else(|| words::split(rest, escape));
    let destination = words.pop().filter(|_| !words.is_empty());
    let destination = destination.ok_or("it takes at least one source and a destination")?;
    let sources: Vec<String> = if found.heredocs.is_empty() {
        words
    } else {
        words.into_iter().filter(|word| !word.starts_with("<<")).collect()
    };
    if add
        && let Some(url) = sources.iter().find(|source| source.contains("://") || source.starts_with("git@"))
    {
        let message = format!("`{url}`: downloads are not supported");
        let hint = Some("fetch the file in a RUN instruction, or put it into the build context".to_owned());
        return Err(Problem { message, hint });
    }
    Ok(Copy { add, sources, destination, heredocs: found.heredocs.clone(), from, chown, chmod })
}

/// `KEY=value ...`, or the old form `KEY the rest`.
fn pairs(rest: &str, escape: char) -> Parsed<Vec<(String, String)>> {
    let words = words::split(rest, escape);
    let first = words.first().map_or("", String::as_str);
    if !first.contains('=') {
        let (key, value) = rest
            .split_once(|c: char| c.is_ascii_whitespace())
            .ok_or_else(|| format!("`{rest}` has no value: write `{rest}=value`"))?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some(("", _)) => Err(format!("`{word}` has no name").into()),
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => {
                Err(format!("`{word}` has no value: write `{word}=value`, or quote a value with spaces")
                    .into())
            }
        })
        .collect()
}

fn args(rest: &str, escape: char) -> Parsed<Vec<(String, Option<String>)>> {
    words::split(rest, escape)
        .iter()
        .map(|word| {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name, Some(default.to_owned())),
                None => (word.as_str(), None),
            };
            if name.is_empty() || name.contains(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
                return Err(format!("`{name}` cannot be the name of a variable").into());
            }
            Ok((name.to_owned(), default))
        })
        .collect()
}

fn healthcheck(flags: &[(String, String)], rest: &str) -> Parsed<Option<Health>> {
    let (word, rest) = rest.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((rest, ""));
    if word.eq_ignore_ascii_case("NONE") {
        return if rest.is_empty() && flags.is_empty() { Ok(None) } else { Err("NONE stands alone".into()) };
    }
    if !word.eq_ignore_ascii_case("CMD") || rest.trim().is_empty() {
        return Err("it takes `NONE`, or `CMD` and a command".into());
    }
    let command = command(rest.trim());
    let mut health =
        Health { command, interval: 0, timeout: 0, start_period: 0, start_interval: 0, retries: 0 };
    for (name, value) in flags {
        let time = || {
            duration(value).ok_or_else(|| format!("`{name}={value}`: a time is written as `30s` or `1m30s`"))
        };
        match name.as_str() {
            "--interval" => health.interval = time()?,
            "--timeout" => health.timeout = time()?,
            "--start-period" => health.start_period = time()?,
            "--start-interval" => health.start_interval = time()?,
            "--retries" => {
                health.retries =
                    value.parse().map_err(|_not_a_number| format!("`{name}={value}` is no number"))?;
            }
            _ => return Err(format!("unknown flag `{name}`").into()),
        }
    }
    Ok(Some(health))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::dockerfile::expand;

    fn parse_ok(text: &str) -> Dockerfile {
        parse("Dockerfile", text).unwrap()
    }

    fn parse_err(text: &str) -> String {
        let error = parse("Dockerfile", text).unwrap_err();
        format!("{error}{}", error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default())
    }

    #[test]
    fn comments_and_blank_lines_inside_a_continuation_are_dropped() {
        let dockerfile = parse_ok("FROM a\nRUN one && \\\n  # why\n\n  two \\\n  && three\nCMD x");
        let [run, cmd] = &dockerfile.stages[0].instructions[..] else { panic!() };
        let Kind::Run(Run { command, .. }) = &run.kind else { panic!() };
        assert_eq!(*command, Command::Shell("one &&   two   && three".to_owned()));
        assert_eq!((run.line, cmd.line), (2, 7));
    }

    #[test]
    fn escape_directive_changes_continuation() {
        let dockerfile = parse_ok("# escape=`\nFROM a\nRUN dir c:\\ `\n  x\n");
        let Kind::Run(Run { command, .. }) = &dockerfile.stages[0].instructions[0].kind else { panic!() };
        assert_eq!(*command, Command::Shell("dir c:\\   x".to_owned()));
    }

    #[test]
    fn exec_form_is_json_and_anything_else_is_for_the_shell() {
        let dockerfile = parse_ok("FROM a\nCMD [\"x\", \"y z\"]\nCMD [ x ]\nCMD ['x']");
        let commands: Vec<_> = dockerfile.stages[0].instructions.iter().map(|i| &i.kind).collect();
        assert_eq!(*commands[0], Kind::Cmd(Command::Exec(vec!["x".into(), "y z".into()])));
        assert_eq!(*commands[1], Kind::Cmd(Command::Shell("[ x ]".into())));
        assert_eq!(*commands[2], Kind::Cmd(Command::Shell("['x']".into())));
    }

    #[test]
    fn here_documents_are_read_to_their_mark() {
        let dockerfile = parse_ok(
            "FROM a\nCOPY <<EOF <<-'TWO' /dir/\n$x\nEOF\n\ty\n\tTWO\nRUN cat <<E && echo $((1<<2))\nz\nE\nUSER u",
        );
        let Kind::Copy(copy) = &dockerfile.stages[0].instructions[0].kind else { panic!() };
        assert_eq!(copy.heredocs.len(), 2);
        assert_eq!((copy.heredocs[0].content.as_str(), copy.heredocs[0].expand), ("$x\n", true));
        assert_eq!((copy.heredocs[1].content.as_str(), copy.heredocs[1].expand), ("y\n", false));
        let Kind::Run(Run { heredocs, .. }) = &dockerfile.stages[0].instructions[1].kind else { panic!() };
        assert_eq!(heredocs[0].raw, "z\nE\n");
        assert!(parse_err("FROM a\nRUN <<EOF\nx").contains("not ended by `EOF`"));
    }

    #[test]
    fn mistakes_are_shown_with_line_and_nearest_instruction() {
        assert_eq!(
            parse_err("FROM a\n\nRNU x"),
            "Dockerfile:3: unknown instruction `RNU` (did you mean RUN?)"
        );
        assert!(parse_err("").contains("no FROM"));
        assert!(parse_err("RUN x").contains("before the first FROM"));
        assert!(parse_err("FROM a\nONBUILD RUN x").starts_with("Dockerfile:2: ONBUILD:"));
        assert!(parse_err("FROM a\nCOPY x").contains("at least one source"));
        assert!(parse_err("FROM a\nENV x").contains("has no value"));
        assert!(parse_err("FROM a\nADD https://example.org/x /").contains("downloads"));
        assert!(parse_err("FROM a\nHEALTHCHECK --interval=5 CMD x").contains("a time is written"));
    }

    #[test]
    fn health_check_options() {
        let dockerfile =
            parse_ok("FROM a\nHEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD [\"x\"]");
        let Kind::Healthcheck(Some(health)) = &dockerfile.stages[0].instructions[0].kind else { panic!() };
        assert_eq!((health.interval, health.timeout, health.retries), (90_000_000_000, 500_000_000, 3));
    }

    #[test]
    fn variables_are_expanded_as_docker_does() {
        let scope: BTreeMap<String, String> =
            [("x", "1"), ("empty", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        for (word, value) in [
            ("$x", "1"),
            ("${x}y", "1y"),
            ("$none.", "."),
            ("${none:-a$x}", "a1"),
            ("${empty:-d}", "d"),
            ("${empty-d}", ""),
            ("${x:+s}", "s"),
            ("${none:+s}", ""),
            ("'$x'", "$x"),
            ("\"a $x\"", "a 1"),
            ("\\$x", "$x"),
            ("a\\ b", "a b"),
            ("$", "$"),
        ] {
            assert_eq!(expand(word, &scope, '\\').unwrap(), value, "{word}");
        }
        for word in ["${x", "'a", "\"a", "${none:?needed}", "${}", "${x%y}"] {
            assert!(expand(word, &scope, '\\').is_err(), "{word}");
        }
    }

    #[test]
    fn bases_are_those_of_needed_stages() {
        let text = "ARG V=3.20\nFROM alpine:$V AS one\nFROM debian:bookworm AS two\nFROM one\nCOPY --from=busybox:1 /x /x\nFROM scratch AS last\nCOPY --from=2 / /\n";
        let plan = |target| {
            let args = [("V".to_owned(), "3.14".to_owned())].into();
            let names = crate::plan_bases("Dockerfile", text, &args, target).unwrap();
            names.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(plan(None), ["alpine:3.14", "busybox:1"]);
        assert_eq!(plan(Some("two")), ["debian:bookworm"]);
        let error = crate::plan_bases("Dockerfile", text, &BTreeMap::new(), Some("three")).unwrap_err();
        assert_eq!(error.hint().unwrap(), "its stages are: one, two, last");
    }
}
