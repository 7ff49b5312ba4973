//! Files of containers that do not run.

use std::io::Write;
use std::process::Stdio;

use crate::harness::{Links, Stack, ended, finish, until};

const WEB: &str = r#"
[services.web]
command = ["sleep", "1000"]
volumes = ["data:/data", "./here:/here", "./here:/fixed:ro"]
[volumes.data]
"#;

fn stack() -> Stack {
    let stack = Stack::new(WEB);
    stack.write("here/file", "of the host");
    stack.write("rootfs/etc/replaced", "of the image");
    stack.write("rootfs/etc/removed", "of the image");
    stack.write("rootfs/etc/emptied/one", "of the image");
    stack.write("new", "new");
    stack
}

#[test]
fn files_of_a_container_that_has_ended_are_copied() {
    let stack = stack();
    stack.up();
    stack.sh(
        "web",
        "echo changed > /etc/replaced; rm /etc/removed; rm -r /etc/emptied; mkdir /etc/emptied; \
         echo two > /etc/emptied/two; echo kept > /data/kept; echo secret > /etc/secret; \
         chown 1000:1000 /etc/secret; chmod 600 /etc/secret",
    );
    stack.run(&["stop", "-t", "0"]).ok();
    let read = |path: &str| std::fs::read_to_string(stack.path(path)).unwrap();
    // The layers as they are together: what was removed is gone.
    stack.run(&["cp", "web:/etc", "etc"]).ok();
    assert_eq!((read("etc/replaced"), read("etc/secret")), ("changed\n".to_owned(), "secret\n".to_owned()));
    assert!(!stack.path("etc/removed").exists() && !stack.path("etc/emptied/one").exists());
    assert_eq!(read("etc/emptied/two"), "two\n");
    stack.run(&["cp", "web:/etc/removed", "x"]).fails(1, &["/etc/removed", "No such file"]);
    // Volumes and directories of the host are where they are in one that runs.
    stack.run(&["cp", "web:/data/kept", "kept"]).ok();
    stack.run(&["cp", "web:/here/file", "file"]).ok();
    assert_eq!((read("kept"), read("file")), ("kept\n".to_owned(), "of the host".to_owned()));
    for to in ["web:/etc/new", "web:/data", "web:/here", "web:/etc/removed"] {
        stack.run(&["cp", "new", to]).ok();
    }
    stack.run(&["cp", "new", "web:/fixed/new"]).fails(1, &["Read-only"]);
    assert_eq!(read("here/new"), "new");
    let archive = std::fs::File::create(stack.path("tar")).unwrap();
    let mut out = stack.command(&["cp", "web:/etc/emptied", "-"]);
    assert!(out.stdout(archive).status().unwrap().success());
    let archive = std::fs::File::open(stack.path("tar")).unwrap();
    ended(stack.command(&["cp", "-", "web:/home"]).stdin(archive)).ok();
    stack.run(&["start"]).ok();
    assert_eq!(stack.sh("web", "cat /etc/new /data/new /etc/removed /home/emptied/two"), "newnewnewtwo");
    assert_eq!(stack.sh("web", "stat -c %u:%g /etc/new"), "0:0");
}

#[test]
fn files_are_copied_before_the_first_start() {
    let stack = stack();
    stack.run(&["create"]).ok();
    stack.run(&["cp", "new", "web:/etc/new"]).ok();
    stack.run(&["cp", "new", "web:/data/new"]).ok();
    stack.run(&["cp", "web:/etc/replaced", "replaced"]).ok();
    assert_eq!(std::fs::read_to_string(stack.path("replaced")).unwrap(), "of the image");
    stack.run(&["start"]).ok();
    assert_eq!(stack.sh("web", "cat /etc/new /data/new"), "newnew");
    // `rm` has the next start begin anew, and what is copied after it is there.
    stack.run(&["rm", "-s", "-f"]).ok();
    stack.run(&["cp", "new", "web:/etc/after"]).ok();
    stack.run(&["start"]).ok();
    assert_eq!(stack.sh("web", "cat /etc/after; test -e /etc/new || echo gone"), "newgone");
}

#[test]
fn no_link_leads_out_of_a_container_that_has_ended() {
    let stack = stack();
    stack.up();
    let links = Links::plant(&stack, "web");
    stack.sh("web", &format!("ln -s {}etc /data/up", links.up));
    stack.run(&["stop", "-t", "0"]).ok();
    links.lead_nowhere();
    // A link of a volume leads into the container's root.
    stack.run(&["cp", "new", "web:/data/up/new"]).ok();
    stack.run(&["start"]).ok();
    assert_eq!(stack.sh("web", "cat /etc/new"), "new");
}

#[test]
fn a_container_does_not_start_while_its_files_are_copied() {
    let stack = stack();
    stack.run(&["create"]).ok();
    let mut command = stack.command(&["cp", "-", "web:/home"]);
    let copy = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut copy = copy.spawn().unwrap();
    let busy = |arguments: &[&str]| {
        let ended = stack.run(arguments);
        (ended.code != 0).then(|| ended.fails(1, &["container `web`", "being copied"]))
    };
    until("the copy has begun", || busy(&["rm", "-f"]));
    assert!(busy(&["cp", "web:/etc", "x"]).is_some());
    let start = stack.spawn(&["start"]);
    stack.wait("web", "state", "waiting");
    // The end of an archive.
    copy.stdin.take().unwrap().write_all(&[0; 1024]).unwrap();
    finish(copy).ok();
    finish(start).ok();
    assert_eq!(stack.row("web")["state"], "running");
}
