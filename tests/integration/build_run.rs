//! `RUN`: scripts, what it may do to the system, and what becomes of it on a full disk.

use crate::build::{build, run, with_base};
use crate::harness::{binary, ended, is_root, skipped};

const SERVICE: &str = "[services.web]\nbuild = \"web\"\ncommand = [\"sleep\", \"1000\"]\n";

#[test]
fn a_here_document_can_name_its_program() {
    let stack = with_base(SERVICE);
    stack.write(
        "web/Dockerfile",
        "FROM alpine:3.99\n\
         RUN <<EOF\n#!/bin/awk -f\nBEGIN { print \"by awk\", ENVIRON[\"HOME\"] }\nEOF\n\
         USER app\n\
         RUN <<EOF\n#!/bin/sh -u\nid -u\necho by sh > /tmp/sh\nEOF\n\
         RUN <<EOF\nset -e\necho by the shell\nEOF\n\
         RUN <<EOF cat; ls -A /tmp /dev/shm\ninput\nEOF\n\
         RUN <<EOF\n#!/bin/none\nEOF\n",
    );
    let failed = run(&stack, &["build"]);
    for line in ["] by awk /root", "] 1000", "] by the shell", "] input"] {
        assert!(failed.err.contains(line), "no `{line}` in {}", failed.err);
    }
    failed.fails(1, &["Dockerfile:19", "execute `/dev/pipes/EOF`", "interpreter `/bin/none`", "#!/bin/none"]);
    let text = std::fs::read_to_string(stack.path("web/Dockerfile")).unwrap();
    stack.write("web/Dockerfile", &text.replace("#!/bin/none", "#!/bin/true"));
    run(&stack, &["up", "-d"]).ok();
    // Where the script lay is no part of the image.
    assert_eq!(
        stack.sh("web", "cat /tmp/sh; ls -A /tmp; ls -A /dev/pipes 2> /dev/null | wc -l"),
        "by sh\nsh\n0"
    );
}

#[test]
fn more_rights_are_for_the_stack_file_to_grant() {
    let stack = with_base(SERVICE);
    let script =
        "grep -e CapBnd -e Seccomp: /proc/self/status; mount -t tmpfs none /tmp && echo mounted; true";
    stack.write("web/Dockerfile", &format!("FROM alpine:3.99\nRUN --security=insecure {script}\n"));
    run(&stack, &["build"]).fails(1, &["Dockerfile:2", "security.insecure"]);
    let granted = |key: &str| {
        stack.write("stack.toml", &format!("[services.web]\nbuild = {{ context = \"web\", {key} }}\n"));
        build(&stack)
    };
    let bounds = |progress: &str| {
        let bound = progress.split_once("CapBnd:\t").unwrap().1.lines().next().unwrap();
        u64::from_str_radix(bound, 16).unwrap()
    };
    let insecure = granted("entitlements = [\"security.insecure\"]");
    // CAP_SYS_ADMIN (capabilities(7)).
    assert!(bounds(&insecure) & 1 << 21 != 0, "{insecure}");
    assert!(insecure.contains("Seccomp:\t0") && insecure.contains("] mounted"), "{insecure}");
    // What others ask for does not change, and what was granted is not found by those to whom it is not.
    stack.write("web/Dockerfile", &format!("FROM alpine:3.99\nRUN {script}\n"));
    let usual = granted("privileged = true");
    assert!(bounds(&usual) & 1 << 21 == 0 && usual.contains("Seccomp:\t2"), "{usual}");
    assert!(!usual.contains("] mounted"), "{usual}");
}

#[test]
fn a_full_disk_ends_a_build_and_nothing_else() {
    if !is_root() {
        return skipped("a_full_disk_ends_a_build_and_nothing_else", "it takes a file system of its own");
    }
    let stack = with_base(SERVICE);
    let dockerfile = |name: &str, command: &str| {
        let text = format!("FROM alpine:3.99\nRUN echo kept > /kept\nRUN {command}\nRUN echo last > /last\n");
        stack.write(name, &text);
    };
    let fill = "head -c 100000000 /dev/zero > /big";
    dockerfile("web/Dockerfile", fill);
    dockerfile("web/careless", &format!("{fill} || echo careless"));
    dockerfile("web/small", "echo small > /small");
    // What follows happens in mount namespaces that nobody else sees; the file system is gone with them.
    let script = format!(
        "set -u; run={}; mkdir small; mount -t tmpfs -o size=16m none small || exit 9\n\
         left() {{ echo \"left $(ls -A \"$INCEPTION_DATA_DIR/tmp\" | wc -l)\"; }}\n\
         for file in Dockerfile careless; do\n\
           echo \"== $file\"; $run build -f web/$file ./web 2>&1; echo \"status $?\"; left\n\
         done\n\
         echo == small; $run build -t small -f web/small ./web 2>&1; echo \"status $?\"; left\n\
         $run verify 2>&1; echo \"status $?\"\n",
        binary().display()
    );
    let mut command = stack.command_of("unshare");
    command.args(["--mount", "--propagation=private", "sh", "-c", &script]);
    command.env("INCEPTION_BASE_DIR", stack.path("bases")).env("INCEPTION_DATA_DIR", stack.path("small/d"));
    let output = ended(&mut command).ok();
    let parts: Vec<&str> = output.split("== ").collect();
    let [_, plain, careless, small] = parts[..] else { panic!("{output}") };
    for (part, words) in [
        // This `head` does not know better than to say `I/O error`.
        (plain, ["Dockerfile:3", "hint: the disk is full", "status 1"]),
        (careless, ["careless:3", "No space left on device", "status 1"]),
    ] {
        assert!(words.iter().all(|word| part.contains(word)) && part.contains("left 0"), "{part}");
    }
    assert!(small.contains("cached: RUN echo kept"), "{small}");
    assert_eq!(small.matches("status 0").count(), 2, "{small}");
    assert!(small.contains("left 0"), "{small}");
}

#[test]
fn limits_of_the_stack_file_hold_for_run() {
    let stack = with_base("");
    let build_with = |ulimits: &str| {
        stack.rewrite(&format!("[services.web]\nbuild = {{ context = \"web\", ulimits = {ulimits} }}\n"));
        run(&stack, &["build", "--no-cache"]).err
    };
    stack.write(
        "web/Dockerfile",
        "FROM alpine:3.99\nRUN echo limits $(ulimit -Sn) $(ulimit -Hn) $(ulimit -c)\n",
    );
    let progress = build_with("{ nofile = { soft = 77, hard = 99 }, core = 0 }");
    assert!(progress.contains("limits 77 99 0"), "{progress}");
    let progress = build_with("{ nofile = 55 }");
    assert!(progress.contains("limits 55 55 "), "{progress}");
}
