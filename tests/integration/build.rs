//! Images from Dockerfiles: what is built, what is cached, what a failure leaves.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::harness::{Ended, Stack, busybox_rootfs, ended, finish, until};

const SERVICE: &str = "[services.web]\nbuild = \"web\"\n";

/// A stack whose Dockerfiles may be `FROM alpine:3.99`, which is busybox.
pub(crate) fn with_base(services: &str) -> Stack {
    let stack = Stack::new(services);
    let root = stack.path("base-root");
    busybox_rootfs(&root);
    std::fs::create_dir(stack.path("bases")).unwrap();
    let archive = stack.path(&format!("bases/alpine-minirootfs-3.99.0-{}.tar.gz", std::env::consts::ARCH));
    let mut tar = stack.command_of("tar");
    ended(tar.args(["--owner=0", "--group=0", "-czf"]).arg(archive).arg("-C").arg(root).arg(".")).ok();
    stack
}

pub(crate) fn command(stack: &Stack, arguments: &[&str]) -> std::process::Command {
    let mut command = stack.command(arguments);
    command.env("INCEPTION_BASE_DIR", stack.path("bases"));
    command
}

#[track_caller]
pub(crate) fn run(stack: &Stack, arguments: &[&str]) -> Ended {
    ended(&mut command(stack, arguments))
}

/// `build`, which must succeed; its progress.
#[track_caller]
pub(crate) fn build(stack: &Stack) -> String {
    let ended = run(stack, &["build"]);
    let progress = ended.err.clone();
    ended.ok();
    progress
}

#[test]
fn every_instruction_has_its_effect() {
    let stack = with_base(
        r#"
[services.web]
build = { context = "web", args = { WORD = "from the file" } }
"#,
    );
    stack.write(
        "web/Dockerfile",
        r#"# syntax=docker/dockerfile:1
ARG RELEASE=3.99
FROM alpine:${RELEASE} AS made
RUN mkdir /out && echo "made in a stage" > /out/file && chmod 0640 /out/file

FROM alpine:${RELEASE}
ARG WORD=default
ENV WORD="$WORD" OTHER=other
LABEL a=b
RUN echo "$WORD" > /word && echo two \
    > /two
COPY --from=made --chown=1000:2000 /out /out
COPY --chown=app:extra --chmod=0751 one sub/ /files/
ADD archive.tar /unpacked/
COPY <<END /here
document for $OTHER
END
WORKDIR /work/dir
RUN pwd > where
USER app
RUN id -u > /tmp/who
EXPOSE 80
VOLUME /volume
STOPSIGNAL SIGUSR1
HEALTHCHECK --interval=50ms CMD test -e /word
SHELL ["/bin/busybox", "sh", "-c"]
ENTRYPOINT ["sh", "-c", "trap 'exit 8' USR1; echo started $0 $1; while :; do sleep 0.02; done"]
CMD ["with", "words"]
"#,
    );
    stack.write("web/one", "1");
    stack.write("web/sub/two", "2");
    stack.write("web/sub/ignored.tmp", "3");
    stack.write("web/.dockerignore", "**/*.tmp\n");
    stack.write("packed", "from an archive");
    ended(stack.command_of("tar").args(["-cf", "web/archive.tar", "packed"])).ok();
    run(&stack, &["up", "--wait"]).ok();
    assert!(stack.wait_log("web", "started").contains("started with words"));
    let cat = |path: &str| stack.sh("web", &format!("cat {path}"));
    assert_eq!(cat("/word"), "from the file");
    assert_eq!(cat("/two"), "two");
    assert_eq!(cat("/work/dir/where"), "/work/dir");
    assert_eq!(cat("/tmp/who"), "1000");
    assert_eq!(cat("/unpacked/packed"), "from an archive");
    assert_eq!(cat("/here"), "document for other");
    let owners = stack.sh("web", "stat -c '%n %u %g %a' /out/file /files/one /files/two");
    assert_eq!(owners, "/out/file 1000 2000 640\n/files/one 1000 2000 751\n/files/two 1000 2000 751");
    assert_eq!(
        stack.sh("web", "ls /files | xargs; pwd; id -un; echo $WORD $OTHER"),
        "one two\n/work/dir\napp\nfrom the file other"
    );
    assert_eq!(stack.sh("web", "mount | grep -c ' /volume '"), "1");
    assert_eq!(stack.row("web")["health"], "healthy");
    stack.run(&["stop"]).ok();
    assert_eq!(stack.row("web")["exit_code"], 8);
}

#[test]
fn what_did_not_change_is_not_run_again() {
    let stack = with_base(SERVICE);
    let dockerfile = |second: &str| {
        let text = format!(
            "FROM alpine:3.99\nRUN echo first\nRUN echo {second}\nRUN echo third\nENTRYPOINT [\"/bin/sh\"]\n"
        );
        stack.write("web/Dockerfile", &text);
    };
    let ran = |progress: &str, word: &str| {
        progress.lines().any(|line| line.contains(&format!("] {word}")) && !line.contains("cached"))
    };
    dockerfile("second");
    let progress = build(&stack);
    for word in ["first", "second", "third"] {
        assert!(ran(&progress, word), "{progress}");
    }
    let images = || stack.run(&["images", "--format", "json"]).ok();
    let before = images();
    let start = Instant::now();
    let progress = build(&stack);
    assert!(!["first", "second", "third"].iter().any(|word| ran(&progress, word)), "{progress}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(images(), before);
    dockerfile("other");
    let progress = build(&stack);
    assert!(!ran(&progress, "first") && ran(&progress, "other") && ran(&progress, "third"), "{progress}");
    // Back again: those layers are still there.
    dockerfile("second");
    let progress = build(&stack);
    assert!(!["first", "second", "third"].iter().any(|word| ran(&progress, word)), "{progress}");
    let progress = run(&stack, &["build", "--no-cache"]);
    assert!(progress.code == 0 && ran(&progress.err, "first"), "{progress:?}");
}

#[test]
fn what_is_copied_counts_and_not_its_times() {
    let stack = with_base(SERVICE);
    stack.write(
        "web/Dockerfile",
        "FROM alpine:3.99\nCOPY file /file\nRUN echo \"now $(cat /file)\"\nCMD [\"sleep\", \"1000\"]\n",
    );
    stack.write("web/file", "one");
    assert!(build(&stack).contains("] now one"));
    let old = std::fs::File::options().write(true).open(stack.path("web/file")).unwrap();
    old.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
    stack.write("web/another", "not copied");
    assert!(!build(&stack).contains("] now one"));
    stack.write("web/file", "two");
    assert!(build(&stack).contains("] now two"));
    // `up` uses what is there; `up --build` looks again, and recreates what became another.
    run(&stack, &["up", "-d"]).ok();
    let pid = stack.pid("web");
    stack.write("web/file", "three");
    run(&stack, &["up", "-d", "--build"]).ok();
    assert_ne!(stack.pid("web"), pid);
    assert_eq!(stack.sh("web", "cat /file"), "three");
}

#[test]
fn a_failed_instruction_is_shown_and_leaves_the_store_valid() {
    let stack = with_base("[services.web]\nbuild = \"web\"\ncommand = [\"sleep\", \"1000\"]\n");
    stack.write(
        "web/Dockerfile",
        "FROM alpine:3.99\nRUN echo fine\n\nRUN echo the reason >&2; touch /half; exit 5\n",
    );
    for arguments in [&["build"][..], &["up", "-d"]] {
        run(&stack, arguments).fails(1, &["`web`", "Dockerfile:4", "the reason", "5", "caused by:"]);
        stack.nothing_left();
    }
    stack.write("web/Dockerfile", "FROM alpine:3.99\nRUN echo fine\n\nRUN echo better > /better\n");
    let progress = build(&stack);
    assert!(progress.lines().any(|line| line.contains("cached") && line.contains("echo fine")), "{progress}");
    run(&stack, &["up", "-d"]).ok();
    assert_eq!(stack.sh("web", "cat /better; ls /half 2> /dev/null || echo clean"), "better\nclean");
    // What cannot be built at all.
    for (text, words) in [
        ("FROM alpine:3.99\nRUM echo\n", &["Dockerfile:2", "RUM", "RUN"][..]),
        ("FROM alpine:3.99\nCOPY missing /x\n", &["Dockerfile:2", "missing"]),
        ("FROM alpine:3.99\nCOPY ../stack.toml /x\n", &["Dockerfile:2", "../stack.toml"]),
        ("FROM nowhere:9\n", &["nowhere:9"]),
        ("FROM alpine:3.98\n", &["alpine:3.98"]),
        ("", &["Dockerfile"]),
    ] {
        stack.write("web/Dockerfile", text);
        // The last but one would be downloaded; here nothing is to be reached.
        let mut command = command(&stack, &["build", "--no-cache"]);
        if text.contains("3.98") {
            continue;
        }
        let ended = ended(&mut command);
        let code = ended.code;
        assert!(code == 1 || code == 2, "{text}: {ended:?}");
        ended.fails(code, words);
    }
}

#[test]
fn a_killed_build_leaves_the_store_valid() {
    let stack = with_base("[services.web]\nbuild = \"web\"\ncommand = [\"sleep\", \"1000\"]\n");
    let steps: String = (0..8).map(|step| format!("RUN seq {step} 20000 > /file{step}\n")).collect();
    stack.write("web/Dockerfile", &format!("FROM alpine:3.99\n{steps}"));
    for round in 0..12_u64 {
        let mut child = command(&stack, &["build", "--no-cache"])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(round * 17 % 150));
        child.kill().unwrap();
        finish(child);
        stack.gone(Duration::from_secs(2));
        stack.run(&["images"]).ok();
    }
    build(&stack);
    run(&stack, &["up", "-d"]).ok();
    assert_eq!(
        stack.sh("web", "for i in 0 1 2 3 4 5 6 7; do seq $i 20000 | cmp - /file$i || echo $i; done"),
        ""
    );
    // What the killed ones had begun is gone. Single files have no lock, and go when they are old.
    for file in list(&stack, "tmp") {
        let file = std::fs::File::open(file).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
    }
    run(&stack, &["build", "--no-cache"]).ok();
    let begun: Vec<PathBuf> = list(&stack, "tmp");
    assert!(begun.is_empty(), "{begun:?}");
}

/// Entries of a directory of the store.
fn list(stack: &Stack, directory: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(stack.data().join(directory)).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn services_build_at_the_same_time() {
    let services: String = (0..4).map(|n| format!("[services.s{n}]\nbuild = \"s{n}\"\n")).collect();
    let stack = with_base(&services);
    for n in 0..4 {
        let text = format!(
            "FROM alpine:3.99\nRUN echo shared > /shared\nRUN sleep 1.5; echo {n} > /own\nCMD [\"sleep\", \"1000\"]\n"
        );
        stack.write(&format!("s{n}/Dockerfile"), &text);
    }
    let start = Instant::now();
    run(&stack, &["up", "-d"]).ok();
    // One after the other they sleep for six seconds alone.
    assert!(start.elapsed() < Duration::from_millis(5900), "{:?}", start.elapsed());
    for n in 0..4 {
        assert_eq!(stack.sh(&format!("s{n}"), "cat /shared /own"), format!("shared\n{n}"));
    }
}

#[test]
fn what_runs_during_a_build_is_in_a_sandbox() {
    let stack = with_base(SERVICE);
    stack.write(
        "web/Dockerfile",
        "FROM alpine:3.99\nRUN readlink /proc/self/ns/net; for n in mnt pid uts ipc user; do readlink /proc/self/ns/$n; done\n\
         RUN id -u; grep -e CapBnd -e NoNewPrivs -e Seccomp: /proc/self/status; ls /proc/self/fd | xargs; ls / | xargs\n\
         RUN (sleep 1000 &)\n",
    );
    let progress = build(&stack);
    let link = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
    for name in ["net", "mnt", "pid", "uts", "ipc", "user"] {
        assert!(!progress.contains(link(name).to_str().unwrap()), "{name}: {progress}");
    }
    for line in [
        "CapBnd:\t00000000a80425fb",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "] 0 1 2 3",
        "] bin data dev etc home proc sys tmp",
    ] {
        assert!(progress.contains(line), "no `{line}` in {progress}");
    }
    // What an instruction left running is ended with it.
    until("the sleeper's end", || stack.processes().is_empty().then_some(()));
}

#[test]
fn mistakes_are_found_without_a_build() {
    let stack = with_base("[services.web]\nbuild = \"web\"\n[services.same]\nbuild = \"web\"\n");
    let checked = |text: &str| {
        stack.write("web/Dockerfile", text);
        let ended = run(&stack, &["build", "--check"]);
        (ended.code, ended.out.replace(stack.path("web/").to_str().unwrap(), ""), ended.err)
    };
    let warning = "Dockerfile:3: warning: MAINTAINER is deprecated: use \
                   `LABEL org.opencontainers.image.authors=` (MaintainerDeprecated)\n";
    let (code, out, err) = checked("FROM nowhere:9\nRUN exit 1\nMAINTAINER x\n");
    assert_eq!((code, out.as_str(), err.as_str()), (1, warning, "one mistake was found\n"));
    let (code, out, _) = checked("FROM nowhere:9\nRUM x\n");
    assert!(code == 1 && out.starts_with("Dockerfile:2: error: unknown instruction `RUM`"), "{out}");
    assert_eq!(checked("# check=skip=MaintainerDeprecated\nFROM nowhere:9\nMAINTAINER x\n").0, 0);
    // Nothing was made; and where the file says so, a warning ends a build before it has begun.
    assert!(!stack.data().join("images").exists());
    stack.write("web/Dockerfile", "# check=error=true\nFROM nowhere:9\nMAINTAINER x\n");
    run(&stack, &["build"]).fails(1, &["Dockerfile:3", "MaintainerDeprecated", "check=error=true"]);
    let skip = ["build", "--check", "--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=all"];
    assert_eq!(run(&stack, &skip).code, 0);
}

#[test]
fn an_image_is_written_beside_the_store() {
    let stack = with_base(SERVICE);
    stack.write("web/Dockerfile", "FROM alpine:3.99\nRUN echo mine > /mine\n");
    let names = |archive: &str| {
        let listed = ended(stack.command_of("tar").args(["-tf", archive])).ok();
        listed.lines().filter(|name| !name.starts_with("blobs/")).map(str::to_owned).collect::<Vec<_>>()
    };
    for (output, file, parts) in [
        ("type=oci,dest=oci.tar", "oci.tar", vec!["index.json", "oci-layout"]),
        ("type=docker,dest=docker.tar", "docker.tar", vec!["index.json", "manifest.json", "oci-layout"]),
    ] {
        let id = run(&stack, &["build", "-q", "-t", "app:1", "-o", output, "./web"]).ok();
        assert_eq!(names(file), parts);
        let loaded = run(&stack, &["load", "-i", file]).ok();
        assert_eq!(loaded.trim(), "Loaded image: app:1");
        assert!(run(&stack, &["images", "--no-trunc", "--format", "json"]).ok().contains(id.trim()));
    }
    run(&stack, &["build", "-o", "type=oci,tar=false,compression=zstd,dest=layout", "./web"]).ok();
    assert!(stack.path("layout/oci-layout").exists());
    run(&stack, &["build", "-o", "type=oci,tar=false,dest=layout", "./web"]).fails(2, &["is not empty"]);
    run(&stack, &["build", "-o", "type=registry", "./web"]).fails(2, &["type=registry", "docker"]);
}

/// Whoever has the name on a registry must not decide what runs.
#[test]
fn what_another_service_builds_is_no_registrys() {
    let stack = with_base(
        r#"
[services.side]
image = "mine/app"
stop_signal = "SIGKILL"
command = ["/bin/sleep", "1000000"]
[services.web]
build = "web"
image = "mine/app"
stop_signal = "SIGKILL"
command = ["/bin/sleep", "1000000"]
"#,
    );
    let write = |text: &str| {
        stack.write("web/Dockerfile", &format!("FROM alpine:3.99\nRUN echo {text} > /version\n"))
    };
    let version = |service: &str| run(&stack, &["exec", "-T", service, "cat", "/version"]).ok();
    write("first");
    // It is built for the one that names it only.
    run(&stack, &["up", "-d", "side"]).ok();
    assert_eq!(version("side"), "first\n");
    write("second");
    run(&stack, &["up", "-d", "--build"]).ok();
    assert_eq!([version("side"), version("web")], ["second\n", "second\n"]);
}

#[test]
fn who_is_asked_for_one_service_builds_and_makes_no_other() {
    let stack = with_base(
        r#"
[services.db]
build = "db"
stop_signal = "SIGKILL"
command = ["/bin/sleep", "1000000"]
[services.app]
build = "app"
depends_on = ["db"]
stop_signal = "SIGKILL"
command = ["/bin/sleep", "1000000"]
[services.broken]
build = "broken"
"#,
    );
    let containers = || {
        let ended = run(&stack, &["ps", "-a", "--format", "json"]).ok();
        let rows: serde_json::Value = serde_json::from_str(&ended).unwrap();
        let rows = rows.as_array().unwrap().clone();
        let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
        rows.iter().map(|row| (text(row, "service"), text(row, "state"))).collect::<Vec<_>>()
    };
    let running = |names: &[&str]| -> Vec<(String, String)> {
        names.iter().map(|name| ((*name).to_owned(), "running".to_owned())).collect()
    };
    stack.write("db/Dockerfile", "FROM alpine:3.99\nRUN echo one > /version\n");
    stack.write("app/Dockerfile", "FROM alpine:3.99\n");
    stack.write("broken/Dockerfile", "FROM alpine:3.99\nRUN false\n");
    let refused = run(&stack, &["up", "-d", "--no-build", "app"]);
    assert!(refused.err.contains("the image of service `db` is missing"), "{}", refused.err);
    run(&stack, &["up", "-d", "app"]).ok();
    assert_eq!(containers(), running(&["db", "app"]));
    for command in ["start", "restart"] {
        let refused = run(&stack, &[command, "broken"]);
        assert_eq!(refused.code, 1, "{command}: {}", refused.err);
        assert!(refused.err.contains("service `broken` has no container"), "{command}: {}", refused.err);
    }
    // What the next one is not about stays, whatever its files say now.
    let pid = |service: &str| stack.pid(service);
    let before = pid("app");
    stack.write("db/Dockerfile", "FROM alpine:3.99\nRUN echo two > /version\n");
    run(&stack, &["up", "-d", "--build", "db"]).ok();
    assert_eq!(run(&stack, &["exec", "-T", "db", "cat", "/version"]).ok(), "two\n");
    assert_eq!(pid("app"), before);
    assert_eq!(containers(), running(&["db", "app"]));
    let failed = run(&stack, &["up", "-d"]);
    assert!(failed.err.contains("RUN false"), "{}", failed.err);
    assert_eq!(containers(), running(&["db", "app"]));
}
