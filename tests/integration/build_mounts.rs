//! `RUN --mount`, stages, and what two builds agree on.

use std::process::Stdio;

use serde_json::Value;

use crate::build::{run, with_base};
use crate::harness::{Ended, Stack, until};

/// A stack whose Dockerfile this is, in `web`.
fn with_dockerfile(text: &str) -> Stack {
    let stack = with_base("[services.web]\nbuild = \"web\"\ncommand = [\"sleep\", \"1000\"]\n");
    stack.write("web/Dockerfile", text);
    stack
}

/// What commands wrote, without what tells where.
fn written(ended: &Ended) -> Vec<String> {
    let line = |line: &str| Some(line.strip_prefix('#')?.split_once(" [web] ")?.1.to_owned());
    ended.err.lines().filter_map(line).collect()
}

#[test]
fn mounts_show_what_they_should_and_leave_nothing() {
    let stack = with_dockerfile(
        "FROM alpine:3.99 AS tools\n\
         RUN mkdir /out && echo tool > /out/tool && ln -s /out/tool /link\n\
         FROM alpine:3.99\n\
         RUN --mount=type=cache,target=/cache/deep,mode=0711 \
             --mount=type=bind,target=/ctx,rw \
             --mount=type=bind,from=tools,source=/link,target=/tools/one \
             --mount=type=tmpfs,target=/memory \
             cat /tools/one; ls /ctx; echo changed > /ctx/file; stat -c %a /cache/deep; \
             echo x >> /cache/deep/count; wc -l < /cache/deep/count; grep -c ' /memory tmpfs' /proc/mounts; \
             echo y > /tools/one || echo read-only\n\
         RUN ls -d /cache /ctx /tools /memory 2> /dev/null; echo end\n",
    );
    stack.write("web/file", "of the context");
    stack.write("web/hidden", "hidden");
    stack.write("web/.dockerignore", "hidden\n");
    let first = run(&stack, &["build"]);
    let lines = written(&first);
    assert_eq!(
        lines,
        [
            "tool",
            "Dockerfile",
            "file",
            "711",
            "1",
            "1",
            "/bin/sh: can't create /tools/one: Read-only file system",
            "read-only",
            "end"
        ],
        "{first:?}"
    );
    assert_eq!(std::fs::read_to_string(stack.path("web/file")).unwrap(), "of the context");
    // The cache is still there when everything is made again, and is no part of any key.
    let second = run(&stack, &["build"]);
    assert!(written(&second).is_empty(), "{second:?}");
    let third = run(&stack, &["build", "--no-cache"]);
    assert!(written(&third).contains(&"2".to_owned()), "{third:?}");
    // What a mount shows counts.
    stack.write("web/file", "another content");
    assert!(!written(&run(&stack, &["build"])).is_empty());
}

#[test]
fn secrets_are_seen_by_the_command_and_nowhere_else() {
    let stack = with_dockerfile(
        "FROM alpine:3.99\n\
         RUN --mount=type=secret,id=token,required=true,mode=0440,gid=7 \
             --mount=type=secret,id=word,env=WORD \
             --mount=type=secret,id=absent \
             stat -c '%a %u:%g' /run/secrets/token; wc -c < /run/secrets/token; echo ${#WORD}; \
             ls /run/secrets; tr '\\0' ' ' < /proc/1/cmdline | grep -c '5ecre[t]' || true\n\
         RUN ls /run/secrets 2> /dev/null; echo end\n",
    );
    run(&stack, &["build"]).fails(1, &["Dockerfile:2", "there is no secret `token`", "--secret id=token"]);
    let file = stack.path("token");
    std::fs::write(&file, "5ecret-of-a-file").unwrap();
    let mut command = crate::build::command(&stack, &["build"]);
    command.arg("--secret").arg(format!("id=token,src={}", file.display()));
    command.args(["--secret", "id=word,env=SECRET_WORD"]).env("SECRET_WORD", "5ecret-word");
    let built = crate::harness::ended(&mut command);
    assert_eq!(written(&built), ["440 0:7", "16", "11", "token", "0", "end"], "{built:?}");
    let found = stack.command_of("grep").args(["-r", "5ecret-"]).arg(stack.path("d")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    // Another value is no reason to run it again.
    std::fs::write(&file, "5ecret-changed").unwrap();
    assert!(written(&crate::harness::ended(&mut command)).is_empty());
}

#[test]
fn independent_stages_run_at_the_same_time() {
    // Each waits for the other, through a cache that both see: one after the other they would wait for ever.
    let meet = |own: &str, other: &str| {
        format!(
            "FROM alpine:3.99 AS {own}\nRUN --mount=type=cache,id=meet,target=/m touch /m/{own}; \
             n=0; until [ -e /m/{other} ]; do n=$((n+1)); [ $n -lt 300 ] || exit 3; sleep 0.1; done; echo {own} > /{own}\n"
        )
    };
    let text = format!(
        "{}{}FROM alpine:3.99 AS unused\nRUN exit 9\nFROM alpine:3.99\nCOPY --from=left /left /\nCOPY --from=right /right /\n",
        meet("left", "right"),
        meet("right", "left")
    );
    let stack = with_dockerfile(&text);
    run(&stack, &["up", "-d"]).ok();
    assert_eq!(stack.sh("web", "cat /left /right"), "left\nright");
}

#[test]
fn caches_take_room_and_go_unless_a_command_uses_them() {
    let stack = with_dockerfile(
        "FROM alpine:3.99\n\
         RUN --mount=type=cache,id=idle,target=/m head -c 5000 /dev/zero > /m/zeros\n\
         RUN --mount=type=cache,id=busy,target=/m echo > /m/here; until [ -e /m/go ]; do sleep 0.05; done; echo went on\n",
    );
    let mounts = || -> Vec<(String, u64, bool)> {
        let report: Value = serde_json::from_str(&stack.run(&["df", "-v", "--format", "json"]).ok()).unwrap();
        let row = |mount: &Value| {
            let id = mount["id"].as_str().unwrap().to_owned();
            (id, mount["size"].as_u64().unwrap(), mount["in_use"].as_bool().unwrap())
        };
        report["cache_mounts"].as_array().unwrap().iter().map(row).collect()
    };
    let mut build = crate::build::command(&stack, &["build"]);
    let build = build.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let idle = || ("idle".to_owned(), 5000, false);
    let busy = || ("busy".to_owned(), 1, true);
    until("a command uses its cache", || (mounts() == [busy(), idle()]).then_some(()));
    let pruned = stack.run(&["prune", "-af"]).ok();
    assert!(pruned.contains("cache mount idle (5.0 kB)") && !pruned.contains("busy"), "{pruned}");
    assert_eq!(mounts(), [busy()]);
    let mut found =
        stack.command_of("find").arg(stack.path("d/m")).args(["-name", "here"]).output().unwrap().stdout;
    found.truncate(found.trim_ascii_end().len() - "here".len());
    let go = String::from_utf8(found).unwrap() + "go";
    assert!(stack.command_of("touch").arg(go).status().unwrap().success());
    let built = crate::harness::finish(build);
    assert!(written(&built).contains(&"went on".to_owned()), "{built:?}");
    let table = stack.run(&["df"]).ok();
    assert!(table.contains("cache mounts"), "{table}");
    stack.run(&["prune", "-f", "--filter", "until=1h"]).ok();
    assert_eq!(mounts().len(), 1, "it is young");
    stack.run(&["prune", "-f"]).ok();
    assert_eq!(mounts(), []);
    assert_eq!(std::fs::read_dir(stack.path("d/m")).unwrap().count(), 0);
}

#[test]
fn what_services_share_is_built_once() {
    let services: String = ["a", "b", "c"]
        .map(|name| {
            format!(
                "[services.{name}]\nbuild = {{ context = \"web\", target = \"{name}\" }}\ncommand = [\"sleep\", \"9\"]\n"
            )
        })
        .concat();
    let stack = with_base(&services);
    let stage = |name: &str| format!("FROM shared AS {name}\nRUN echo {name} > /name\n");
    let text = format!(
        "FROM alpine:3.99 AS shared\nRUN sleep 1; echo it ran; cat /proc/sys/kernel/random/uuid > /uuid\n{}{}{}",
        stage("a"),
        stage("b"),
        stage("c")
    );
    stack.write("web/Dockerfile", &text);
    for arguments in [&["build"][..], &["build", "--no-cache"]] {
        let built = run(&stack, arguments);
        assert_eq!(built.err.matches("] it ran").count(), 1, "{built:?}");
        built.ok();
    }
}

#[test]
fn equal_inputs_give_equal_images() {
    let text = "FROM scratch\nCOPY tree /tree\nCOPY <<E /made/file\ntext\nE\nWORKDIR /work\n";
    let images = [1, 2].map(|turn| {
        let stack = with_dockerfile(text);
        stack.write("web/tree/sub/file", "content");
        let old = std::fs::File::options().write(true).open(stack.path("web/tree/sub/file")).unwrap();
        // Of a check-out, which has the time at which it was made.
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000 + turn);
        old.set_modified(time).unwrap();
        let mut command = crate::build::command(&stack, &["build", "--iidfile"]);
        command.arg(stack.path("id")).env("SOURCE_DATE_EPOCH", "1700000000");
        crate::harness::ended(&mut command).ok();
        std::fs::read_to_string(stack.path("id")).unwrap()
    });
    assert_eq!(images[0], images[1]);
    assert!(images[0].starts_with("sha256:"), "{images:?}");
}

#[test]
fn a_directory_is_built_by_itself() {
    let stack = with_dockerfile("FROM alpine:3.99\nARG WHO=nobody\nRUN echo $WHO > /who\nCMD x\n");
    let built = run(&stack, &["build", "-q", "-t", "plain:1", "--build-arg", "WHO=me", "./web"]);
    let id = built.ok();
    assert!(id.starts_with("sha256:") && id.trim().len() == 71, "{id}");
    run(&stack, &["build", "--build-arg", "WHO=me", "-o", "out", "./web"]).ok();
    assert_eq!(std::fs::read_to_string(stack.path("out/who")).unwrap(), "me\n");
    run(&stack, &["build", "./nowhere"]).fails(1, &["`./nowhere` is not a directory"]);
    run(&stack, &["build", "./web", "web"]).fails(2, &["a directory is built by itself"]);
}

#[test]
fn named_contexts_come_first() {
    let stack = with_base(
        "[services.lib]\nbuild = { dockerfile_inline = \"FROM alpine:3.99\\nRUN echo of the service > /lib\\n\" }\n\
         command = [\"sleep\", \"9\"]\n\
         [services.web]\nbuild = { context = \"web\", additional_contexts = { lib = \"service:lib\", files = \"extra\" } }\n\
         command = [\"sleep\", \"1000\"]\n",
    );
    stack.write("extra/file", "of a directory");
    stack.write(
        "web/Dockerfile",
        "FROM alpine:3.99 AS files\nRUN exit 9\nFROM alpine:3.99\nCOPY --from=lib /lib /\nCOPY --from=files file /\n\
         RUN --mount=type=bind,from=files,target=/f cat /f/file > /second\n",
    );
    run(&stack, &["up", "-d"]).ok();
    assert_eq!(
        stack.sh("web", "cat /lib; cat /file; echo; cat /second"),
        "of the service\nof a directory\nof a directory"
    );
}

#[test]
fn a_failure_shows_the_place() {
    let stack = with_dockerfile(
        "FROM alpine:3.99\n\n# why\nRUN echo fine && \\\n    echo the reason; exit 5\n\n# next\nCMD x\n",
    );
    let failed = run(&stack, &["build"]);
    assert!(
        failed.err.contains("> 4 | RUN echo fine && \\")
            || failed.err.contains(">   4 | RUN echo fine && \\"),
        "{failed:?}"
    );
    assert!(
        failed.err.contains(">   5 |     echo the reason; exit 5") && !failed.err.contains("next"),
        "{failed:?}"
    );
    failed.fails(1, &["Dockerfile:4", "the reason", "status 5", "--debug-on-failure"]);
    run(&stack, &["build", "--debug-on-failure"]).fails(2, &["there is no terminal"]);
}
