//! Two projects whose directories are called the same.

use std::fs;
use std::path::PathBuf;

use crate::harness::{Ended, Stack, ended};

const COMPOSE: &str = "services:
  a:
    rootfs: ../../rootfs
    env_file: ../../mark.env
    command: sleep 1000
    volumes: [data:/data]
volumes:
  data:
";

/// Two projects in directories called as the stack of the harness.
struct Projects {
    stack: Stack,
}

impl Projects {
    fn new() -> Self {
        let stack = Stack::new("");
        for user in ["1", "2"] {
            stack.write(&format!("{user}/{}/compose.yml", stack.name), COMPOSE);
        }
        Self { stack }
    }

    fn directory(&self, user: &str) -> PathBuf {
        self.stack.path(&format!("{user}/{}", self.stack.name))
    }

    #[track_caller]
    fn run(&self, user: &str, arguments: &[&str]) -> Ended {
        ended(self.stack.command(arguments).current_dir(self.directory(user)))
    }

    /// Refused, with both places and what to do.
    #[track_caller]
    fn refused(&self, user: &str, arguments: &[&str]) {
        let [one, two] = ["1", "2"].map(|user| self.directory(user).display().to_string());
        self.run(user, arguments).fails(1, &["another project's", &one, &two, "-p OTHER", "`name`"]);
    }
}

#[test]
fn a_stack_of_another_project_is_left_alone() {
    let both = Projects::new();
    both.run("1", &["up", "-d"]).ok();
    let container =
        || both.run("1", &["ps", "--format", "json"]).ok().split("\"uptime").next().unwrap().to_owned();
    let before = container();
    for command in [
        &["up", "-d"][..],
        &["create"],
        &["down"],
        &["down", "-v"],
        &["stop"],
        &["ps"],
        &["exec", "a", "true"],
        &["run", "a", "true"],
        &["logs"],
        &["scale", "a=2"],
    ] {
        both.refused("2", command);
    }
    assert_eq!(container(), before);
    // Its own commands go on to work, with other files and by another path, too.
    both.run("1", &["exec", "a", "touch", "/data/mine"]).ok();
    fs::write(both.directory("1").join("more.yml"), "services: {a: {labels: {x: y}}}\n").unwrap();
    both.run("1", &["-f", "compose.yml", "-f", "more.yml", "up", "-d"]).ok();
    let link = both.stack.path("link");
    std::os::unix::fs::symlink(both.directory("1"), &link).unwrap();
    both.stack.run(&["-f", "link/compose.yml", "exec", "a", "true"]).ok();
    // Who names it means it.
    both.run("2", &["-p", &both.stack.name, "stop"]).ok();
    let mut named = both.stack.command(&["start"]);
    ended(named.current_dir(both.directory("2")).env("COMPOSE_PROJECT_NAME", &both.stack.name)).ok();
    // One that has moved is the same.
    fs::rename(both.stack.path("1"), both.stack.path("3")).unwrap();
    assert_eq!(both.run("3", &["exec", "a", "ls", "/data"]).ok(), "mine\n");
    both.run("3", &["down", "-v"]).ok();
    both.stack.nothing_left();
}

#[test]
fn volumes_of_another_project_are_left_alone() {
    let both = Projects::new();
    both.run("1", &["up", "-d"]).ok();
    both.run("1", &["exec", "a", "touch", "/data/mine"]).ok();
    both.run("1", &["down"]).ok();
    both.refused("2", &["down", "-v"]);
    both.refused("2", &["up", "-d"]);
    both.refused("2", &["run", "a", "true"]);
    // Nor do they go with a stack that has none.
    let compose = both.directory("2").join("compose.yml");
    fs::write(&compose, COMPOSE.split("    volumes").next().unwrap()).unwrap();
    both.run("2", &["up", "-d"]).ok();
    both.refused("2", &["down", "-v"]);
    both.run("2", &["down"]).ok();
    both.run("1", &["up", "-d"]).ok();
    assert_eq!(both.run("1", &["exec", "a", "ls", "/data"]).ok(), "mine\n");
    both.run("1", &["down", "-v"]).ok();
    both.stack.nothing_left();
    // Those without a record, as older versions left them, are taken over.
    both.run("1", &["up", "-d"]).ok();
    both.run("1", &["down"]).ok();
    fs::remove_file(both.stack.data().join(format!("v/{}/=origin.json", both.stack.name))).unwrap();
    fs::write(&compose, COMPOSE).unwrap();
    both.run("2", &["up", "-d"]).ok();
    both.run("2", &["down"]).ok();
    both.refused("1", &["down", "-v"]);
    both.run("2", &["down", "-v"]).ok();
    both.stack.nothing_left();
}
