use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn parse_ok(text: &str) -> Dockerfile {
    Dockerfile::parse("Dockerfile", text).unwrap()
}

fn parse_err(text: &str) -> String {
    let error = Dockerfile::parse("Dockerfile", text).unwrap_err();
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
    assert_eq!(parse_err("FROM a\n\nRNU x"), "Dockerfile:3: unknown instruction `RNU` (did you mean RUN?)");
    assert!(parse_err("").contains("no FROM"));
    assert!(parse_err("RUN x").contains("before the first FROM"));
    assert!(parse_err("FROM a\nCOPY x").contains("at least one source"));
    assert!(parse_err("FROM a\nENV x").contains("has no value"));
    assert!(parse_err("FROM a\nHEALTHCHECK --interval=5 CMD x").contains("a time is written"));
}

#[test]
fn health_check_options() {
    let dockerfile = parse_ok("FROM a\nHEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD [\"x\"]");
    let Kind::Healthcheck(Some(health)) = &dockerfile.stages[0].instructions[0].kind else { panic!() };
    assert_eq!((health.interval, health.timeout, health.retries), (90_000_000_000, 500_000_000, 3));
}

/// The images that a file needs, where bases leave nothing.
fn plan(text: &str, args: &BTreeMap<String, String>, target: Option<&str>) -> Result<Vec<Reference>> {
    let request = BaseRequest { name: "Dockerfile", text, args, target, contexts: &BTreeMap::new() };
    plan_bases(&request, &|_| Ok(Vec::new()))
}

#[test]
fn what_bases_left_needs_images_and_stages_too() {
    let text = "FROM unused:1 AS unused\nFROM low:1 AS left\nFROM base\nFROM named\nFROM dir\nCOPY --from=2 /x /\nCOPY --from=3 /y /\n";
    let contexts = BTreeMap::from([
        ("named".to_owned(), Some("other:1".parse().unwrap())),
        ("dir".to_owned(), None),
        ("idle".to_owned(), Some("idle:1".parse().unwrap())),
    ]);
    let args = BTreeMap::new();
    let request = BaseRequest { name: "Dockerfile", text, args: &args, target: None, contexts: &contexts };
    let planned = |known: &[(&str, &str)]| {
        let on_build = |reference: &Reference| {
            let of = known.iter().filter(|(name, _)| reference.to_string() == *name);
            Ok(of.map(|(_, text)| (*text).to_owned()).collect())
        };
        let names = plan_bases(&request, &on_build).unwrap();
        names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(planned(&[]), ["base:latest", "other:1"]);
    let first = ("base:latest", "COPY --from=left /l /");
    let second = ("other:1", "RUN --mount=from=tools:1,target=/t true");
    assert_eq!(planned(&[first, second]), ["low:1", "base:latest", "other:1", "tools:1"]);
}

#[test]
fn bases_are_those_of_needed_stages() {
    let text = "ARG V=3.20\nFROM alpine:$V AS one\nFROM debian:bookworm AS two\nFROM one\nCOPY --from=busybox:1 /x /x\nFROM scratch AS last\nCOPY --from=2 / /\n";
    let names = |target| {
        let args = [("V".to_owned(), "3.14".to_owned())].into();
        let names = plan(text, &args, target).unwrap();
        names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(None), ["alpine:3.14", "busybox:1"]);
    assert_eq!(names(Some("two")), ["debian:bookworm"]);
    let error = plan(text, &BTreeMap::new(), Some("three")).unwrap_err();
    assert_eq!(error.hint().unwrap(), "its stages are: one, two, last");
}

/// The warnings of a file, `LINE RULE`.
fn warnings(text: &str) -> Vec<String> {
    let dockerfile = parse_ok(text);
    dockerfile
        .wanted(&dockerfile.warnings)
        .map(|warning| format!("{} {}", warning.line, warning.rule))
        .collect()
}

#[test]
fn directives_stand_at_the_top_and_once() {
    for syntax in [
        "docker/dockerfile:1",
        "docker/dockerfile:1.7-labs",
        "docker.io/docker/dockerfile:1.4.0@sha256:abc",
        "docker/dockerfile",
        "docker/dockerfile:labs",
        "docker/dockerfile-upstream:master",
    ] {
        parse_ok(&format!("# syntax={syntax}\nFROM a"));
    }
    for (text, problem) in [
        (
            "#syntax=docker/dockerfile:2\nFROM a",
            "Dockerfile:1: `# syntax=docker/dockerfile:2`: this frontend",
        ),
        ("# syntax = example/buildpacks\nFROM a", "`docker/dockerfile:1`, is built in"),
        ("# escape=`\n# escape=`\nFROM a", "Dockerfile:2: there is more than one directive `# escape=`"),
        ("# escape=x\nFROM a", "the escape character is"),
        ("# check=everything\nFROM a", "`skip=RULE,...`"),
    ] {
        let error = parse_err(text);
        assert!(error.contains(problem), "{text}: {error}");
    }
    // Behind another comment, it is a comment.
    let dockerfile = parse_ok("# a comment\n# escape=`\n# syntax=example/x\nFROM a");
    assert_eq!(dockerfile.escape, '\\');
    assert_eq!(parse_ok("\u{feff}# check=skip=all\r\n# Escape = `\r\nFROM a\r\nCMD x\r\n").escape, '`');
}

#[test]
fn continuations_end_where_buildkit_says() {
    for (run, command) in [
        ("RUN a \\\n  b", "a   b"),
        ("RUN a \\ \t\r\n  b\r\n", "a   b"),
        ("RUN a \\\\", "a \\\\"),
        ("RUN a \\", "a"),
        ("run   a  ", "a"),
        ("RUN a \\\n#b\n  # c\n d", "a  d"),
        ("\t RUN\ta", "a"),
    ] {
        let dockerfile = parse_ok(&format!("FROM x\n{run}"));
        let Kind::Run(run) = &dockerfile.stages[0].instructions[0].kind else { panic!() };
        assert_eq!(run.command, Command::Shell(command.to_owned()));
    }
}

#[test]
fn here_documents_become_scripts() {
    let shell = |text: &str| Program::Command(Command::Shell(text.to_owned()));
    for (run, program) in [
        ("RUN <<EOF\necho\nEOF", shell("echo\n")),
        ("RUN <<-'E O'\n\techo\n\tE O\nUSER x", shell("echo\n")),
        ("RUN --network=none <<\"EOF\"\n$x\nEOF", shell("$x\n")),
        ("RUN cat <<A 3<<B\n1\nA\n2\nB", shell("cat <<A 3<<B\n1\nA\n2\nB")),
        ("RUN cat <<<x <<$y << z", shell("cat <<<x <<$y << z")),
        (
            "RUN <<EOF\n#!/usr/bin/env python3\nprint()\nEOF",
            Program::Script {
                name: "EOF".to_owned(),
                content: "#!/usr/bin/env python3\nprint()\n".to_owned(),
            },
        ),
    ] {
        let dockerfile = parse_ok(&format!("FROM x\n{run}"));
        let Kind::Run(run) = &dockerfile.stages[0].instructions[0].kind else { panic!() };
        assert_eq!(run.program(), program);
    }
    assert!(parse_err("FROM a\nCOPY x <<EOF\nEOF").contains("cannot be the destination"));
}

#[test]
fn flags_are_known_by_name() {
    let dockerfile = parse_ok(
        "FROM a\nCOPY --link --parents --chown=$u:1 --chmod=\"u=rw, go=r\" --exclude=*.o --exclude=!a.o --from=b x y /d/\n\
         ADD --keep-git-dir --unpack=false --checksum=sha256:0 --link=false x /d\nADD -- --x /d",
    );
    let copies: Vec<&Copy> = dockerfile.stages[0]
        .instructions
        .iter()
        .map(|instruction| {
            let Kind::Copy(copy) = &instruction.kind else { panic!() };
            copy
        })
        .collect();
    let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        *copies[0],
        Copy {
            sources: strings(&["x", "y"]),
            destination: "/d/".to_owned(),
            from: Some("b".to_owned()),
            chown: Some("$u:1".to_owned()),
            chmod: Some("u=rw, go=r".to_owned()),
            link: true,
            parents: true,
            exclude: strings(&["*.o", "!a.o"]),
            ..Copy::default()
        }
    );
    assert_eq!(
        *copies[1],
        Copy {
            add: true,
            sources: strings(&["x"]),
            destination: "/d".to_owned(),
            keep_git_dir: true,
            checksum: Some("sha256:0".to_owned()),
            unpack: Some(false),
            ..Copy::default()
        }
    );
    assert_eq!(copies[2].sources, ["--x"]);
    for (line, problem) in [
        ("COPY --chwon=1 x /", "unknown flag `--chwon` (did you mean `--chown`?)"),
        ("COPY --checksum=x x /", "unknown flag `--checksum`"),
        ("ADD --from=x x /", "unknown flag `--from`"),
        ("COPY --chown x /", "flag `--chown` needs a value"),
        ("COPY --link=maybe x /", "it is true or false"),
        ("COPY --from=a --from=b x /", "more than once"),
        ("COPY --from=$x x /", "cannot be a variable"),
        ("RUN --mnt=x y", "unknown flag `--mnt`"),
        ("RUN --network=bridge x", "not one of default"),
        ("RUN --security=none x", "not one of sandbox"),
        ("RUN --device=gpu x", "not supported"),
        ("ENV --x=1 a=b", "unknown flag `--x`"),
        ("FROM --arch=x a", "unknown flag `--arch`"),
        ("HEALTHCHECK --retry=1 CMD x", "unknown flag `--retry`"),
    ] {
        let error = parse_err(&format!("FROM a\n{line}"));
        assert!(error.contains(problem), "{line}: {error}");
    }
}

#[test]
fn json_lists_hold_strings() {
    assert!(parse_err("FROM a\nCMD [\"a\", 1]").contains("`1` is no string"));
    assert!(parse_err("FROM a\nVOLUME [\"a\", null]").contains("`null` is no string"));
    let dockerfile = parse_ok("FROM a\nCOPY [\"a b\", \"/c d\"]\nVOLUME [\"/x y\"]\nENTRYPOINT []");
    let kinds: Vec<&Kind> = dockerfile.stages[0].instructions.iter().map(|found| &found.kind).collect();
    let Kind::Copy(copy) = kinds[0] else { panic!() };
    assert_eq!((copy.sources[0].as_str(), copy.destination.as_str()), ("a b", "/c d"));
    assert_eq!(*kinds[1], Kind::Volume(vec!["/x y".to_owned()]));
    assert_eq!(*kinds[2], Kind::Entrypoint(Command::Exec(Vec::new())));
}

#[test]
fn triggers_are_kept_as_text_and_understood_again() {
    let dockerfile = parse_ok("FROM a AS base\nonbuild  copy --from=x <<E /f\n$y\nE\nFROM base\nFROM x AS x");
    let Kind::OnBuild { text, .. } = &dockerfile.stages[0].instructions[0].kind else { panic!() };
    assert_eq!(text, "COPY --from=x <<E /f\n$y\nE");
    let [again] = &dockerfile.triggers(1, std::slice::from_ref(text)).unwrap()[..] else { panic!() };
    let Kind::Copy(copy) = &again.kind else { panic!() };
    assert_eq!((again.line, copy.heredocs[0].content.as_str()), (5, "$y\n"));
    // They belong to the stage that begins with them.
    let globals = BTreeMap::new();
    let image = |name: &str| Origin::Image(name.parse().unwrap());
    assert_eq!(dockerfile.origins(0, &globals, &|_| Ok(Vec::new())).unwrap(), [image("a")]);
    assert_eq!(dockerfile.origins(1, &globals, &|_| Ok(Vec::new())).unwrap(), [Origin::Stage(0), image("x")]);
    for (line, problem) in [
        ("ONBUILD ONBUILD RUN x", "ONBUILD: ONBUILD cannot be left for later builds"),
        ("ONBUILD from x", "FROM cannot be left"),
        ("ONBUILD MAINTAINER x", "MAINTAINER cannot be left"),
        ("ONBUILD", "needs an instruction"),
        ("ONBUILD RNU x", "ONBUILD: unknown instruction `RNU` (did you mean RUN?)"),
    ] {
        let error = parse_err(&format!("FROM a\n{line}"));
        assert!(error.contains(problem), "{line}: {error}");
    }
    let error = dockerfile.triggers(1, &["RUN a\nRUN b".to_owned()]).unwrap_err();
    assert!(error.to_string().contains("Dockerfile:5: a trigger of the base image"), "{error}");
}

#[test]
fn platforms_are_this_machine_s_or_refused() {
    let own = crate::config::architecture();
    let globals = BTreeMap::from([("P".to_owned(), format!("linux/{own}"))]);
    for platform in ["$P", &format!("linux/{own}/v8"), own, "linux", "${NONE:-linux}"] {
        let dockerfile = parse_ok(&format!("FROM --platform={platform} a"));
        dockerfile.origin(0, &globals).unwrap();
    }
    let other = if own == "s390x" { "amd64" } else { "s390x" };
    let error = parse_ok(&format!("FROM --platform=linux/{other} a")).origin(0, &globals).unwrap_err();
    assert!(error.to_string().contains("do not run here"), "{error}");
    assert!(parse_ok("FROM --platform=windows/amd64 a").origin(0, &globals).is_err());
}

#[test]
fn mounts_order_the_stages() {
    let text = "FROM a AS one\nFROM b AS two\nFROM c\nRUN --mount=from=one,target=/x --mount=type=cache,from=d,target=/y z";
    let names = plan(text, &BTreeMap::new(), None).unwrap();
    assert_eq!(
        names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["a", "c", "d"].map(|name| { name.parse::<Reference>().unwrap().to_string() })
    );
}

#[test]
fn frequent_mistakes_are_warned_of() {
    for (text, expected) in [
        ("FROM a\nCMD [\"x\"]\nWORKDIR /x\nWORKDIR y\nENV A=b C=\"d e\"", vec![]),
        ("FROM a\nCMD x\nENTRYPOINT exec x", vec!["2 JSONArgsRecommended", "3 JSONArgsRecommended"]),
        ("FROM a\nSHELL [\"/bin/bash\", \"-c\"]\nCMD x", vec![]),
        ("FROM a\nCMD [\"x\"]\nCMD [\"y\"]", vec!["2 MultipleInstructionsDisallowed"]),
        ("FROM a\nMAINTAINER x", vec!["2 MaintainerDeprecated"]),
        ("FROM a\nENV A b\nLABEL c d e", vec!["2 LegacyKeyValueFormat", "3 LegacyKeyValueFormat"]),
        ("FROM a\nRUN a \\\n\n  b", vec!["2 NoEmptyContinuation"]),
        ("FROM a AS x\nFROM b AS X", vec!["2 DuplicateStageName"]),
        ("FROM a AS context", vec!["1 ReservedStageName"]),
        ("FROM a\nWORKDIR x", vec!["2 WorkdirRelativePath"]),
        ("FROM scratch\nWORKDIR x", vec![]),
        ("FROM a AS x\nWORKDIR /y\nFROM x\nWORKDIR z", vec![]),
        (
            "ARG API_TOKEN\nFROM a\nENV DB_PASSWORD=x",
            vec!["1 SecretsUsedInArgOrEnv", "3 SecretsUsedInArgOrEnv"],
        ),
        ("FROM a\nENV DB_PASSWORD_FILE=x PUBLIC_KEY=y MONKEY=z", vec![]),
        ("# check=skip=JSONArgsRecommended,MaintainerDeprecated\nFROM a\nCMD x\nMAINTAINER x", vec![]),
        ("# check=skip=all\nFROM a\nCMD x", vec![]),
    ] {
        assert_eq!(warnings(text), expected, "{text}");
    }
}

#[test]
fn warnings_can_be_errors() {
    let text = "# check=skip=MaintainerDeprecated;error=true\nFROM a\nMAINTAINER x\nCMD x\nUSER $NONE";
    let planned = |args: &BTreeMap<String, String>| plan(text, args, None).map_err(|error| error.to_string());
    let error = planned(&BTreeMap::new()).unwrap_err();
    assert!(
        error.starts_with("Dockerfile:4: a command") && error.contains("(JSONArgsRecommended)"),
        "{error}"
    );
    // Who builds it has the last word.
    let args = |rules: &str| BTreeMap::from([(RULES_ARGUMENT.to_owned(), rules.to_owned())]);
    assert!(
        planned(&args("skip=JSONArgsRecommended;error=true")).unwrap_err().contains("(MaintainerDeprecated)")
    );
    assert!(planned(&args("")).is_ok());
    assert!(planned(&args("nothing")).unwrap_err().contains("BUILDKIT_DOCKERFILE_CHECK: "));
    let rules = |args: &BTreeMap<String, String>| {
        let found = check("Dockerfile", text, args, &BTreeSet::new()).unwrap();
        found.iter().map(|warning| format!("{} {}", warning.line, warning.rule)).collect::<Vec<_>>()
    };
    assert_eq!(rules(&BTreeMap::new()), ["4 JSONArgsRecommended"]);
    assert_eq!(rules(&args("skip=JSONArgsRecommended")), ["3 MaintainerDeprecated"]);
    assert!(rules(&args("skip=all;error=true")).is_empty());
}

#[test]
fn times_are_go_s() {
    for (text, time) in
        [("0", Some(0)), ("1h2m3.5s", Some(3_723_500_000_000)), ("5", None), ("1ns", None), ("-1s", None)]
    {
        let parsed = Dockerfile::parse("Dockerfile", &format!("FROM a\nHEALTHCHECK --interval={text} CMD x"));
        let interval = parsed.ok().map(|dockerfile| match &dockerfile.stages[0].instructions[0].kind {
            Kind::Healthcheck(Some(health)) => health.interval,
            other => panic!("{other:?}"),
        });
        assert_eq!(interval, time, "{text}");
    }
    assert!(parse_err("FROM a\nHEALTHCHECK --retries=2 NONE").contains("NONE stands alone"));
    assert!(parse_err("FROM a\nHEALTHCHECK --retries=-1 CMD x").contains("no number"));
    assert!(parse_err("FROM a\nHEALTHCHECK CMD []").contains("empty"));
}

#[test]
fn a_file_is_checked_without_a_build() {
    let args = BTreeMap::from([("GIVEN".to_owned(), "x".to_owned())]);
    let text = "ARG TAG=1\nFROM scratch AS a\nARG GIVEN\nARG E\nENV V=$GIVEN$E$NONE\nUSER $V\nFROM a\nLABEL a=$V b=$GIVEN\n\
                FROM base:$TAG\nUSER ${HOME:?}\nCMD x\n";
    let warnings = check("Dockerfile", text, &args, &BTreeSet::new()).unwrap();
    let told: Vec<(usize, String)> =
        warnings.iter().map(|warning| (warning.line, warning.to_string())).collect();
    assert_eq!(
        told[..2],
        [
            (5, "variable `NONE` has no value (UndefinedVar)".to_owned()),
            (8, "variable `GIVEN` has no value (UndefinedVar)".to_owned()),
        ]
    );
    assert!(told[2].0 == 11 && told.len() == 3, "{told:?}");
    for (text, problem) in [
        ("FROM scratch\nUSER ${HOME:?}", "Dockerfile:2: `${HOME:?}`: variable `HOME`"),
        ("FROM scratch\nCOPY <<E /x\n${a\nE", "Dockerfile:2:"),
        ("FROM scratch\nRUN --mount=type=cache,target=$x y", "needs a target"),
        ("FROM a\nCOPY --from=7 x /", "no earlier stage"),
    ] {
        let error = check("Dockerfile", text, &args, &BTreeSet::new()).unwrap_err().to_string();
        assert!(error.contains(problem), "{text}: {error}");
    }
}

/// What Dockerfiles are made of.
const PIECES: [&str; 44] = [
    "\n",
    "\n",
    "\n",
    " ",
    " ",
    "FROM scratch\n",
    "FROM a AS b\n",
    "FROM ",
    "RUN ",
    "COPY ",
    "ADD ",
    "ENV ",
    "ARG ARG\n",
    "ONBUILD ",
    "HEALTHCHECK ",
    "WORKDIR ",
    "LABEL ",
    "CMD ",
    "EXPOSE 1-",
    "--mount=type=cache,target=",
    "--from=",
    "--",
    "=",
    "x",
    "$ARG",
    "${",
    "}",
    ":-",
    "//",
    "#",
    "%",
    "*",
    "<<E",
    "E\n",
    "\\",
    "\\\n",
    "\"",
    "'",
    "[\"",
    "\"]",
    "é",
    "\t",
    "# escape=`\n",
    ",",
];

proptest! {
    #[test]
    fn any_text_is_understood_or_refused(pieces in prop::collection::vec(prop::sample::select(&PIECES[..]), 0..40)) {
        let text = pieces.concat();
        let args = BTreeMap::from([("ARG".to_owned(), "a/b*c\\".to_owned())]);
        match check("Dockerfile", &text, &args, &BTreeSet::new()) {
            Ok(_) => drop(plan(&text, &args, None).unwrap()),
            Err(Error::Dockerfile { line, message, .. }) => {
                prop_assert!(line >= 1 && line <= text.matches('\n').count() + 1 && !message.is_empty());
            }
            Err(error) => prop_assert!(false, "an error without a place: {error}"),
        }
    }
}
