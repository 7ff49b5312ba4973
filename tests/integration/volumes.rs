//! Volumes in all their forms.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::harness::{Stack, is_root};

/// A file with an owner of its own in the image, at `/seed`.
fn seed(stack: &Stack) {
    stack.write("rootfs/seed/sub/file", "from the image\n");
}

#[test]
fn a_directory_of_the_host_stands_for_a_volume() {
    let stack = Stack::new(
        r#"
[volumes.site.driver_opts]
type = "none"
o = "bind"
device = "./data/site"
[volumes.plain.driver_opts]
type = "none"
o = "bind,ro"
device = "./data/plain"
[services.a]
command = ["sleep", "1000"]
volumes = ["site:/seed", "plain:/data"]
[services.b]
command = ["sleep", "1000"]
volumes = ["site:/site:ro"]
depends_on = ["a"]
"#,
    );
    seed(&stack);
    let hint = format!(
        "mkdir -p {}",
        stack.path("data/site").canonicalize().unwrap_or(stack.path("data/site")).display()
    );
    let told = stack.run(&["up", "-d"]).fails(2, &["2 paths do not exist", "(volume `site`, stack.toml:"]);
    assert!(told.contains(&hint) || told.contains("mkdir -p "), "{told}");
    stack.write("data/plain/here", "on the host\n");
    fs::create_dir(stack.path("data/site")).unwrap();
    if is_root() {
        // Container root is nobody in particular there.
        fs::set_permissions(stack.path("data/site"), PermissionsExt::from_mode(0o777)).unwrap();
    }
    stack.up();
    // An empty one takes over what the image has, and others see it, and the host does.
    assert_eq!(stack.sh("b", "cat /site/sub/file"), "from the image");
    assert_eq!(fs::read_to_string(stack.path("data/site/sub/file")).unwrap(), "from the image\n");
    stack.sh("a", "echo changed > /seed/sub/file");
    assert!(stack.exec("b", "touch /site/x").err.contains("Read-only"));
    assert_eq!(stack.sh("a", "cat /data/here"), "on the host");
    assert!(stack.exec("a", "touch /data/x").err.contains("Read-only"));
    stack.run(&["down", "-v"]).ok();
    // It is the host's: neither removed nor filled again.
    stack.up();
    assert_eq!(stack.sh("a", "cat /seed/sub/file"), "changed");
    stack.run(&["down"]).ok();
    stack.nothing_left();
}

#[test]
fn parts_and_beginnings_of_volumes() {
    let stack = Stack::new(
        r#"
[volumes.data]
[volumes.empty]
[services.first]
command = ["sh", "-c", "mkdir -p /data/x/y && echo deep > /data/x/y/file && ln -s / /data/x/out && ln -s /x /data/inside"]
volumes = ["data:/data"]
[services.part]
command = ["sleep", "1000"]
volumes = [{ type = "volume", source = "data", target = "/part", volume = { subpath = "x/y" } }, "empty:/seed:nocopy"]
depends_on = { first = "completed" }
[services.linked]
command = ["sleep", "1000"]
volumes = [{ type = "volume", source = "data", target = "/part", volume = { subpath = "inside/y" } }]
depends_on = { first = "completed" }
"#,
    );
    seed(&stack);
    stack.up();
    assert_eq!(stack.sh("part", "cat /part/file; ls -A /seed"), "deep");
    assert_eq!(stack.sh("linked", "cat /part/file"), "deep");
    // A link in a volume leads to no place outside of it, and what is not there is not made.
    for subpath in ["x/out/bin", "nowhere"] {
        stack.rewrite(&format!(
            "[volumes.data]\n[services.part]\ncommand = [\"true\"]\nvolumes = [{{ type = \"volume\", source = \"data\", target = \"/part\", volume = {{ subpath = \"{subpath}\" }} }}]\n"
        ));
        stack.run(&["up", "-d"]).fails(1, &["/part"]);
    }
}

#[test]
fn stacks_share_volumes_by_name() {
    let file = |kind: &str, script: &str| {
        format!(
            "[volumes.v]\n{kind}\n[services.a]\ncommand = [\"sh\", \"-c\", \"{script}; sleep 1000\"]\nvolumes = [\"v:/v\"]\n"
        )
    };
    let first = Stack::new(&file("name = \"shared\"", "echo mine > /v/file"));
    let second = Stack::new(&file("external = true\nname = \"shared\"", "true"));
    let with_first = |arguments: &[&str]| {
        let mut command = second.command(arguments);
        command.env("INCEPTION_DATA_DIR", first.data());
        crate::harness::ended(&mut command)
    };
    first.up();
    crate::harness::until("the file", || (first.exec("a", "cat /v/file").out == "mine\n").then_some(()));
    with_first(&["up", "-d"]).ok();
    assert_eq!(with_first(&["exec", "a", "cat", "/v/file"]).ok(), "mine\n");
    // Whoever names it as external leaves it alone, also with `-v`.
    with_first(&["down", "-v"]).ok();
    assert_eq!(first.sh("a", "cat /v/file"), "mine");
    first.run(&["down"]).ok();
    assert!(first.data().join("v/=/shared").exists());
    first.up();
    first.run(&["down", "-v"]).ok();
    assert!(!first.data().join("v/=/shared").exists());
}

#[test]
fn volumes_of_another_service_and_of_memory() {
    let stack = Stack::new(
        r#"
volumes = { data = {}, memory = { driver_opts = { type = "tmpfs", device = "tmpfs", o = "size=1m,uid=1000,mode=0750" } } }
[services.a]
command = ["sleep", "1000"]
volumes = ["data:/data", "memory:/memory"]
tmpfs = ["/run/plain", "/run/own:uid=1000,gid=2000,mode=700,exec,size=64k"]
[services.b]
command = ["sleep", "1000"]
volumes_from = ["a:ro"]
"#,
    );
    stack.up();
    stack.sh("a", "echo x > /data/file");
    assert_eq!(stack.sh("b", "cat /data/file"), "x");
    assert!(stack.exec("b", "touch /data/y").err.contains("Read-only"));
    assert_eq!(
        stack.sh("a", "stat -c '%u %g %a' /memory /run/plain /run/own"),
        "1000 0 750\n0 0 1777\n1000 2000 700"
    );
    let run = |directory: &str| {
        format!(
            "cp /bin/busybox {directory}/true 2>/dev/null; printf '#!/bin/sh\\n' > {directory}/script; chmod 755 {directory}/script; {directory}/script"
        )
    };
    stack.sh("a", &run("/run/own"));
    assert_ne!(stack.exec("a", &run("/run/plain")).code, 0);
    assert_ne!(stack.exec("a", "head -c 100000 /dev/zero > /run/own/big").code, 0);
}

#[test]
fn the_end_of_a_stack_takes_no_volume_away_from_another() {
    let stack = Stack::new(
        r#"
[volumes.data]
name = "common"
[services.a]
command = ["sleep", "1000"]
volumes = ["data:/data"]
"#,
    );
    let other = format!("{}-b", stack.name);
    let of_other = |arguments: &[&str]| stack.run(&[&["-p", &other, "-f", "stack.toml"], arguments].concat());
    stack.up();
    of_other(&["up", "-d"]).ok();
    stack.sh("a", "echo kept > /data/file");
    let down = stack.run(&["down", "-v"]);
    assert!(down.err.contains(&format!("volume `common` stays: stack `{other}`")), "{}", down.err);
    down.ok();
    assert_eq!(of_other(&["exec", "a", "cat", "/data/file"]).ok(), "kept\n");
    // The last one takes it with it.
    let down = of_other(&["down", "-v"]);
    assert!(!down.err.contains("stays"), "{}", down.err);
    down.ok();
    assert!(!stack.data().join("v/=/common").exists());
}
