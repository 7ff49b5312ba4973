//! A root file system and programs that mean harm.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use crate::harness::{Stack, until};

/// Name, type, size, mode, owner and content of everything below a directory.
fn inventory(directory: &Path) -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            let content = if meta.is_dir() {
                inventory(&entry.path()).join(";")
            } else {
                fs::read_to_string(entry.path()).unwrap()
            };
            format!(
                "{:?} {:o} {} {} {}: {content}",
                entry.file_name(),
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.nlink()
            )
        })
        .collect();
    found.sort();
    found
}

#[test]
fn links_of_the_image_lead_nowhere_outside() {
    // What is mounted or written below the root, and so follows or replaces what the image has there.
    let targets = [
        "proc",
        "sys",
        "dev",
        "etc",
        "etc/hosts",
        "etc/resolv.conf",
        "etc/hostname",
        "etc/passwd",
        "run",
        "run/secrets",
        "run/secrets/token",
        "data",
        "bound",
        "volume",
        "work",
        "tmp",
        "made",
    ];
    for (index, target) in targets.into_iter().enumerate() {
        // Two ways to mean the host's directory.
        let climbing = index % 2 == 1;
        let stack = Stack::new(
            r#"
[services.a]
command = ["/bin/busybox", "sleep", "1000"]
working_dir = "/work/made/deep"
volumes = ["./shared:/bound", "kept:/volume/made", "/data"]
tmpfs = ["/tmp", "/made/on/demand"]
secrets = ["token"]
[secrets.token]
file = "token.txt"
[volumes.kept]
"#,
        );
        stack.write("token.txt", "secret");
        stack.write("shared/x", "shared");
        stack.write("victim/old", "untouched");
        stack.write("victim/sub/older", "untouched");
        let victim = stack.path("victim");
        fs::set_permissions(&victim, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let path = stack.path("rootfs").join(target);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap();
        } else {
            fs::remove_file(&path).ok();
        }
        let to = victim.to_str().unwrap();
        let to = if climbing { format!("{}{to}", "../".repeat(12)) } else { to.to_owned() };
        symlink(to, &path).unwrap();
        let before = inventory(&victim);
        let up = stack.run(&["up", "-d"]);
        if up.code == 0 {
            // Nor does it see what is there.
            let seen = stack.run(&["exec", "a", "/bin/busybox", "cat", &format!("/{target}/old")]);
            assert_ne!(seen.code, 0, "{target}: {seen:?}");
            // Whatever the links did, the sandbox is whole.
            let masked =
                stack.run(&["exec", "a", "/bin/busybox", "sh", "-c", "echo 1 > /proc/sys/vm/swappiness"]);
            assert_ne!(masked.code, 0, "{target}: {masked:?}");
        } else {
            up.fails(1, &["`a`", "caused by:"]);
        }
        assert_eq!(inventory(&victim), before, "{target}, climbing: {climbing}");
    }
}

#[test]
fn nothing_of_ours_is_in_a_containers_memory() {
    let stack = Stack::new(
        r#"
[services.a]
command = ["sleep", "1000"]
[services.bare]
command = ["sleep", "1000"]
init = false
stop_grace_period = "0s"
"#,
    );
    let mut up = stack.command(&["up", "-d"]);
    up.env("OF_THE_HOST", "h0st-s3cret");
    crate::harness::ended(&mut up).ok();
    for service in ["a", "bare"] {
        let environments = stack.sh(service, "cat /proc/[0-9]*/environ | tr '\\0' '\\n'");
        for word in ["OF_THE_HOST", "INCEPTION", "h0st-s3cret", "/home/", "CARGO"] {
            assert!(!environments.contains(word), "{word} in {environments}");
        }
        // The memory of its PID 1 holds nothing either: what can be read of it.
        let count = |word: &str| {
            let script = format!(
                "for range in $(awk '/rw-p/ {{print $1}}' /proc/1/maps); do \
                 start=$((0x${{range%-*}} / 4096)); end=$((0x${{range#*-}} / 4096)); \
                 dd if=/proc/1/mem bs=4096 skip=$start count=$((end - start)) 2> /dev/null; \
                 done | grep -c -a {word}"
            );
            stack.exec(service, &script).out.trim().parse::<u32>().unwrap()
        };
        // So the search does find what is there.
        assert!(count("IT=it") > 0, "{service}");
        assert_eq!(count("h0st-s3cret"), 0, "{service}");
    }
}

#[test]
fn a_container_cannot_harm_its_neighbours() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sleep\", \"1000\"]\n[services.b]\ncommand = [\"sleep\", \"1000\"]\nrestart = \"always\"\n",
    );
    stack.up();
    let (a, b) = (stack.pid("a"), stack.pid("b"));
    // All that it can see.
    stack.exec("b", "kill -9 -1");
    until("b's restart", || stack.row("b")["pid"].as_i64().filter(|pid| *pid != i64::from(b)));
    assert_eq!(stack.pid("a"), a);
    // Host process numbers mean nothing inside.
    let supervisor = stack.supervisor().unwrap();
    assert_ne!(stack.exec("b", &format!("kill -9 {supervisor}")).code, 0);
    // Its own links and addresses are its own business, but without NET_ADMIN it cannot touch them.
    assert_ne!(stack.exec("b", "ip link set lo down").code, 0);
    assert_ne!(stack.exec("b", "ip addr add 10.9.9.9/24 dev lo").code, 0);
    // Files that it leaves behind, with any name, mode and owner, are deleted with it.
    stack.sh("b", "mkdir -p /x/y; touch \"/x/y/$(printf 'a\\nb')\"; chmod 0 /x/y /x; chown -R 1000:2000 /x; mkfifo /pipe; ln -s / /root-link");
    stack.run(&["down"]).ok();
    stack.nothing_left();
}

#[test]
fn a_file_of_a_strangers_does_not_control_the_terminal() {
    let hostile = "\\u001b]0;title\\u0007\\u009b2J";
    let stack =
        Stack::new(&format!("[services.web]\ncommand = [\"{hostile}\"]\nlabels = {{ a = \"{hostile}\" }}\n"));
    for arguments in [&["plan"][..], &["plan", "--format", "json"], &["config"]] {
        let (ours, theirs) = crate::stats::terminal();
        let mut child = stack.command(arguments).stdout(theirs).spawn().unwrap();
        rustix::io::ioctl_fionbio(&ours, false).unwrap();
        // It ends with an error (EIO) when nobody has the other end.
        let (mut shown, mut part) = (Vec::new(), [0; 4096]);
        while let Ok(length) = rustix::io::read(&ours, &mut part) {
            shown.extend_from_slice(&part[..length]);
        }
        assert!(child.wait().unwrap().success());
        let shown = String::from_utf8_lossy(&shown);
        assert!(shown.contains("title"), "{shown}");
        assert!(!shown.contains(['\x1b', '\x07', '\u{9b}']), "{arguments:?}: {shown:?}");
    }
    stack.rewrite(&format!("[services.web]\n\"com{hostile}\" = 1\n"));
    let error = stack.run(&["plan"]).fails(2, &["unknown key", "title"]);
    assert!(!error.contains(['\x1b', '\x07', '\u{9b}']), "{error:?}");
}
