//! Bad input: an error in its parts, exit code 1 or 2, and nothing left.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use crate::harness::{Ended, Stack, binary, ended, is_root, skipped};

const GOOD: &str = "[services.a]\nrootfs = \"rootfs\"\ncommand = [\"true\"]\n";

#[test]
fn why_a_program_cannot_be_executed() {
    let stack = Stack::new("");
    let scripts = [
        ("windows", "#!/bin/sh\r\necho\r\n", 0o755, [r"the interpreter `/bin/sh\r`", r"sed -i 's/\r$//'"]),
        ("lacking", "#!/bin/bash\necho\n", 0o755, ["the interpreter `/bin/bash`", "`#!/bin/sh`"]),
        ("bare", "\n#!/bin/sh\necho\n", 0o755, ["no script that begins with `#!`", "without an empty line"]),
        ("closed", "#!/bin/sh\necho\n", 0o644, ["no execute bit", "chmod +x"]),
    ];
    for (name, text, mode, _) in &scripts {
        stack.write(&format!("rootfs/bin/{name}"), text);
        let path = stack.path(&format!("rootfs/bin/{name}"));
        fs::set_permissions(path, PermissionsExt::from_mode(*mode)).unwrap();
    }
    // Looked for in PATH by our init, and by its path without one.
    for (name, .., words) in &scripts {
        for rest in [format!("\"{name}\"]\ninit = true"), format!("\"/bin/{name}\"]\ninit = false")] {
            stack.write("stack.toml", &format!("[services.a]\nrootfs = \"rootfs\"\ncommand = [{rest}\n"));
            stack.run(&["up", "-d"]).fails(1, words);
        }
    }
    stack.write("stack.toml", "[services.a]\nrootfs = \"rootfs\"\ncommand = [\"sleep 9\"]\n");
    stack.run(&["up", "-d"]).fails(1, &["executable file not found in $PATH", "an item of its own"]);
}

#[test]
fn a_bad_file_is_shown_with_its_line() {
    let stack = Stack::new("");
    for (text, words) in [
        (
            "[services.a]\nimage = \"x\"\ncomand = [\"x\"]\n",
            &["stack.toml:3:1", "comand", "did you mean `command`"][..],
        ),
        ("[service.a]\nimage = \"x\"\n", &["stack.toml:1:2", "service", "did you mean `services`"]),
        ("[services.a]\nimage = \"x\"\ncommand = 5\n", &["stack.toml:3:11", "command"]),
        ("[services.a]\nimage = \"x\"\nread_only = \"perhaps\"\n", &["stack.toml:3:13", "read_only"]),
        (
            "[services.a]\nimage = \"x\"\ndepends_on = [\"b\"]\n[services.b]\nimage = \"x\"\ndepends_on = [\"c\"]\n\
             [services.c]\nimage = \"x\"\ndepends_on = [\"a\"]\n",
            &["stack.toml:", "a -> b -> c -> a"],
        ),
        (
            "[services.web]\nimage = \"x\"\ndepends_on = [\"datbase\"]\n[services.database]\nimage = \"x\"\n",
            &["stack.toml:3:15", "datbase", "did you mean `database`"],
        ),
        (
            "[services.a]\nimage = \"x\"\nports = [\"8080:80\"]\n[services.b]\nimage = \"x\"\nports = [\"8080:81\"]\n",
            &["stack.toml:6:10", "8080", "`a`"],
        ),
        ("[services.a]\nbuild = \"nowhere\"\n", &["stack.toml:2:9", "nowhere"]),
        (
            "[services.a]\nimage = \"x\"\nhostname = \"${MISSING_NAME}\"\n",
            &["stack.toml:3:15", "MISSING_NAME", ".env"],
        ),
        ("[services.a]\nimage = \"Not//good\"\n", &["stack.toml:2:9", "Not//good"]),
        ("[services.a]\nimage = \"x\"\nvolumes = [\"unknown:/data\"]\n", &["stack.toml:3:12", "unknown"]),
        (
            "[services.a]\nimage = \"x\"\nnetworks = [\"bak\"]\n[networks.back]\n",
            &["stack.toml:3:13", "did you mean `back`"],
        ),
        ("[services.a]\nimage = \"x\"\nsecrets = [\"s\"]\n", &["stack.toml:3:12", "`s`"]),
        ("[services.a]\nimage = \"x\"\nports = [\"80:80:80:80\"]\n", &["stack.toml:3:10"]),
        ("[services.a]\nimage = \"x\"\nports = [\"127.0.0.1:1-3:1-2\"]\n", &["stack.toml:3:10"]),
        ("[services.a]\nimage = \"x\"\nrestart = \"alway\"\n", &["stack.toml:3:11", "did you mean `always`"]),
        ("[services.a\n", &["stack.toml:1:", "TOML"]),
        ("", &["services"]),
    ] {
        stack.write("stack.toml", text);
        for arguments in [&["up", "-d"][..], &["plan"]] {
            let err = stack.run(arguments).fails(2, words);
            assert!(err.contains("caused by:"), "{err}");
        }
    }
    fs::remove_file(stack.path("stack.toml")).unwrap();
    for (text, words) in [
        (
            "services:\n  a:\n    image: x\n    comand: y\n",
            &["compose.yaml:4:5", "did you mean `command`"][..],
        ),
        ("services:\n  a:\n   image: x\n  b: [\n", &["compose.yaml:"]),
        ("services:\n  a: &a\n    image: *b\n", &["compose.yaml:"]),
    ] {
        stack.write("compose.yaml", text);
        stack.run(&["up", "-d"]).fails(2, words);
    }
    fs::remove_file(stack.path("compose.yaml")).unwrap();
    stack.run(&["up", "-d"]).fails(2, &["stack.toml", "hint:"]);
    stack.run(&["-f", "elsewhere.toml", "up"]).fails(2, &["elsewhere.toml", "No such file"]);
    // Nothing was begun.
    assert!(!stack.data().exists(), "the data directory was made for a bad file");
}

#[test]
fn bad_usage_is_code_2() {
    let stack = Stack::new(GOOD);
    for arguments in [
        &["frobnicate"][..],
        &["up", "--no-such"],
        &["exec", "a"],
        &[],
        &["up", "-d", "nobody"],
        &["run", "nobody"],
    ] {
        let ended = stack.run(arguments);
        assert!(ended.code == 2 && !ended.err.is_empty() && ended.out.is_empty(), "{arguments:?}: {ended:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["up", "--help"]] {
        assert!(!stack.run(arguments).ok().is_empty());
    }
    // Of a stack that does not run.
    for arguments in
        [&["exec", "a", "true"][..], &["stop"], &["start"], &["restart"], &["inspect", "a"], &["logs"]]
    {
        stack.run(arguments).fails(1, &[&stack.name, "hint:"]);
    }
    assert!(stack.ps().iter().all(|row| row["pid"].is_null()));
    stack.run(&["down"]).ok();
    let doctor = stack.run(&["doctor", "--format", "json"]);
    assert!(serde_json::from_str::<serde_json::Value>(&doctor.out).unwrap().is_array(), "{doctor:?}");
}

#[test]
fn what_a_service_would_run_from_must_be_there_and_whole() {
    let stack = Stack::new("");
    let up = |from: &str, words: &[&str]| {
        stack.rewrite(&format!("[services.a]\n{from}\ncommand = [\"true\"]\n"));
        let ended = stack.run(&["up", "-d"]);
        let code = ended.code;
        assert!(code == 1 || code == 2, "{from}: {ended:?}");
        ended.fails(code, words);
        stack.nothing_left();
    };
    up("rootfs = \"missing.tar.gz\"", &["missing.tar.gz"]);
    up("image = \"never-built:1\"", &["never-built:1", "hint:"]);
    let mut tar = stack.command_of("tar");
    ended(tar.args(["-czf", "whole.tar.gz", "-C", "rootfs", "."])).ok();
    let whole = fs::read(stack.path("whole.tar.gz")).unwrap();
    fs::write(stack.path("cut.tar.gz"), &whole[..whole.len() / 2]).unwrap();
    up("rootfs = \"cut.tar.gz\"", &["cut.tar.gz", "caused by:"]);
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x55;
    fs::write(stack.path("flipped.tar.gz"), &flipped).unwrap();
    up("rootfs = \"flipped.tar.gz\"", &["flipped.tar.gz", "caused by:"]);
    stack.write("text.tar", "this is no archive, whatever its name says");
    up("rootfs = \"text.tar\"", &["text.tar", "caused by:"]);
    let images: serde_json::Value =
        serde_json::from_str(&stack.run(&["images", "--format", "json"]).ok()).unwrap();
    assert_eq!(images.as_array().unwrap().len(), 0, "{images}");
    for directory in ["l", "tmp"] {
        let left = stack.data().join(directory).read_dir().map_or(0, Iterator::count);
        assert_eq!(left, 0, "left in {directory}");
    }
    stack.rewrite("[services.a]\nrootfs = \"whole.tar.gz\"\ncommand = [\"true\"]\n");
    stack.up();
}

/// One entry of an archive, as an attacker would write it: no library's checks.
fn entry(kind: u8, path: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, path.as_bytes());
    put(100, b"0000755\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    // Device 1:3.
    put(329, b"0000001\0");
    put(337, b"0000003\0");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn a_hostile_archive_reaches_nothing_outside() {
    let stack = Stack::new("");
    let victim = stack.path("victim");
    fs::create_dir(&victim).unwrap();
    fs::set_permissions(&victim, PermissionsExt::from_mode(0o777)).unwrap();
    stack.write("victim/old", "untouched");
    let victim = victim.to_str().unwrap();
    let climbing = format!("{}{}", "../".repeat(12), &victim[1..]);
    let busybox = fs::read(stack.path("rootfs/bin/busybox")).unwrap();
    let evil: &[u8] = b"evil";
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("climbs", vec![entry(b'0', &format!("{climbing}/new"), "", evil)]),
        ("absolute", vec![entry(b'0', &format!("{victim}/new"), "", evil)]),
        ("link", vec![entry(b'2', "out", victim, b""), entry(b'0', "out/new", "", evil)]),
        ("climbing-link", vec![entry(b'2', "out", &climbing, b""), entry(b'0', "out/new", "", evil)]),
        (
            "swapped",
            vec![
                entry(b'5', "dir", "", b""),
                entry(b'0', "dir/one", "", evil),
                entry(b'2', "dir", victim, b""),
                entry(b'0', "dir/new", "", evil),
            ],
        ),
        (
            "through-file-link",
            vec![entry(b'2', "f", &format!("{victim}/old"), b""), entry(b'0', "f", "", evil)],
        ),
        (
            "hard-link",
            vec![entry(b'1', "stolen", &format!("{victim}/old"), b""), entry(b'0', "stolen", "", evil)],
        ),
        (
            "climbing-hard-link",
            vec![entry(b'1', "stolen", &format!("{climbing}/old"), b""), entry(b'0', "stolen", "", evil)],
        ),
        (
            "whiteout",
            vec![
                entry(b'2', "out", victim, b""),
                entry(b'0', "out/.wh.old", "", b""),
                entry(b'0', "out/.wh..wh..opq", "", b""),
            ],
        ),
        ("device", vec![entry(b'3', "dev/zero", "", b""), entry(b'4', "disk", "", b"")]),
        ("pipe", vec![entry(b'6', "pipe", "", b""), entry(b'0', "pipe", "", evil)]),
    ];
    for (name, entries) in cases {
        let mut bytes = entry(b'5', "bin", "", b"");
        bytes.extend(entry(b'0', "bin/busybox", "", &busybox));
        bytes.extend(entries.concat());
        bytes.resize(bytes.len() + 1024, 0);
        fs::write(stack.path(&format!("{name}.tar")), &bytes).unwrap();
        stack.rewrite(&format!(
            "[services.a]\nrootfs = \"{name}.tar\"\ncommand = [\"/bin/busybox\", \"sleep\", \"1000\"]\n"
        ));
        let up = stack.run(&["up", "-d"]);
        // Refused, or harmless: in any case nothing happened outside.
        match up.code {
            0 => {
                // Its devices are no devices.
                let find = ["exec", "a", "/bin/busybox", "find", "/", "-xdev", "-type", "b"];
                assert_eq!(stack.run(&find).out, "", "{name}");
            }
            _ => drop(up.fails(1, &[&format!("{name}.tar"), "caused by:"])),
        }
        assert_eq!(fs::read_to_string(stack.path("victim/old")).unwrap(), "untouched", "{name}");
        assert_eq!(fs::read_dir(victim).unwrap().count(), 1, "{name}");
        assert_eq!(fs::metadata(stack.path("victim/old")).unwrap().nlink(), 1, "{name}");
        stack.run(&["down"]).ok();
    }
}

#[test]
fn a_full_disk_leaves_nothing_half_made() {
    let name = "a_full_disk_leaves_nothing_half_made";
    if !is_root() {
        return skipped(name, "needs root");
    }
    let stack = Stack::new(GOOD);
    fs::create_dir_all(stack.data()).unwrap();
    let script = "mount -t tmpfs -o size=1m,mode=0711 none d && mkdir d/d && export INCEPTION_DATA_DIR=$PWD/d/x && rmdir d/d && \
                  { \"$0\" up -d; code=$?; echo \"code $code\"; find d -type f -size +0 ! -name '*.lock'; \
                  mount -o remount,size=64m d; \"$0\" up -d; echo \"code $?\"; \"$0\" down -v; }";
    let mut shell = stack.command_of("unshare");
    let ended = ended(shell.args(["-m", "--propagation", "private", "sh", "-c", script]).arg(binary()));
    assert!(ended.err.contains("No space left on device") && ended.err.contains("caused by:"), "{ended:?}");
    assert_eq!(ended.out, "code 1\ncode 0\n", "{ended:?}");
}

#[test]
fn without_subordinate_ids_there_is_an_error_with_the_fix() {
    let name = "without_subordinate_ids_there_is_an_error_with_the_fix";
    if !is_root() {
        return skipped(name, "needs root, to become a user without them");
    }
    let stack = Stack::new(GOOD);
    fs::copy(binary(), stack.path("run")).unwrap();
    std::os::unix::fs::chown(stack.path("stack.toml").parent().unwrap(), Some(54321), Some(54321)).unwrap();
    let mut user = stack.command_of("setpriv");
    user.args(["--reuid", "54321", "--regid", "54321", "--clear-groups", "./run", "up", "-d"]);
    ended(&mut user).fails(1, &["subordinate", "/etc/subuid", "hint:", "usermod"]);
    stack.gone(std::time::Duration::from_secs(2));
    assert!(!stack.path("r").join(&stack.name).exists());
    std::os::unix::fs::chown(stack.path("stack.toml").parent().unwrap(), Some(0), Some(0)).unwrap();
    // What belongs to that user is not for root's stacks.
    for directory in ["r", "d"] {
        fs::remove_dir_all(stack.path(directory)).ok();
    }
}

#[test]
fn without_user_namespaces_there_is_an_error_with_the_fix() {
    let name = "without_user_namespaces_there_is_an_error_with_the_fix";
    if is_root() {
        return skipped(name, "root's ids are in no namespace that the test could make");
    }
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" up -d";
    // The limit holds in the namespace that it is written in.
    in_a_user_namespace(name, &["--map-current-user", "--keep-caps", "sh", "-c", script], |ended| {
        ended.fails(
            1,
            &["create user namespace", "No space left on device", "user namespaces are disabled here"],
        );
    });
}

#[test]
fn root_without_ids_is_told_so() {
    let script = "exec \"$0\" up -d";
    in_a_user_namespace("root_without_ids_is_told_so", &["--map-root-user", "sh", "-c", script], |ended| {
        ended.fails(1, &["this user namespace has no ids", "/proc/self/uid_map", "hint: run it as"]);
    });
}

/// Runs a shell, whose `$0` is our program, in a user namespace of its own. It fails, as `check` looks, and leaves nothing.
fn in_a_user_namespace(name: &str, arguments: &[&str], check: impl FnOnce(Ended)) {
    let probe = Command::new("unshare").args(["--user", "true"]).status().unwrap();
    if !probe.success() {
        return skipped(name, "this test needs a user namespace itself");
    }
    let stack = Stack::new(GOOD);
    let mut shell = stack.command_of("unshare");
    check(ended(shell.arg("--user").args(arguments).arg(binary())));
    stack.gone(std::time::Duration::from_secs(2));
    assert!(!stack.path("r").join(&stack.name).exists());
    for directory in ["r", "d"] {
        fs::remove_dir_all(stack.path(directory)).ok();
    }
}

#[test]
fn a_limit_that_cannot_be_enforced_is_said() {
    let name = "a_limit_that_cannot_be_enforced_is_said";
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if controllers.contains("memory") {
        return skipped(name, "cgroup v2 has its controllers here");
    }
    let stack =
        Stack::new("[services.a]\ncommand = [\"sleep\", \"1000\"]\nmem_limit = \"64m\"\npids_limit = 20\n");
    let err = stack.up();
    let warnings: Vec<_> = err.lines().filter(|line| line.starts_with("warning:")).collect();
    assert_eq!(warnings.len(), 1, "{err}");
    assert!(["memory", "pids", "not"].iter().all(|word| warnings[0].contains(word)), "{err}");
    stack.run(&["down"]).ok();
    stack.run(&["up", "-d", "--strict"]).fails(1, &["memory", "pids"]);
    stack.nothing_left();
}

#[test]
fn the_directories_must_be_ones_own() {
    let stack = Stack::new(GOOD);
    // Open to others: in /tmp somebody else may have been first.
    fs::create_dir(stack.path("r")).unwrap();
    fs::set_permissions(stack.path("r"), PermissionsExt::from_mode(0o777)).unwrap();
    stack.run(&["up", "-d"]).fails(1, &["closed to others", "INCEPTION_RUNTIME_DIR", "hint:"]);
    stack.gone(std::time::Duration::from_secs(2));
    fs::set_permissions(stack.path("r"), PermissionsExt::from_mode(0o700)).unwrap();
    stack.up();
}

#[test]
fn a_limit_of_file_sizes_is_reported() {
    let stack = Stack::new(GOOD);
    let limited = |program: &str| {
        let mut shell = stack.command_of("sh");
        ended(shell.args(["-c", &format!("ulimit -f 0; exec {program}"), "sh"]).arg(binary()))
    };
    limited("\"$1\" up").fails(1, &["File too large"]);
    // Whoever had the signal ignored, and runs us in the place of a program, has it ignored still.
    limited("env --ignore-signal=XFSZ \"$1\" up").fails(1, &["File too large"]);
    stack.nothing_left();
}
