//! The store under many hands: what is in use stays, what is not goes, and what is damaged is found.

use std::fs;
use std::path::PathBuf;
use std::process::Child;

use serde_json::Value;

use crate::harness::{Stack, finish, until};

/// A service that is built, and whose build depends on `ROUND`.
fn built() -> Stack {
    let stack = Stack::new(
        r#"
[services.a]
build = { context = ".", args = { ROUND = "${ROUND:-0}" } }
command = ["sleep", "1000"]
stop_grace_period = "200ms"
"#,
    );
    stack.write(
        "Dockerfile",
        "FROM scratch\nCOPY rootfs /\nARG ROUND\nRUN mkdir /dir && echo $ROUND > /dir/round && echo x > /dir/x\nRUN echo last > /last\n",
    );
    stack.write(".dockerignore", "d\nr\n");
    stack
}

fn images(stack: &Stack, arguments: &[&str]) -> Vec<Value> {
    let arguments = [&["images", "--format", "json"], arguments].concat();
    serde_json::from_str(&stack.run(&arguments).ok()).unwrap()
}

fn findings(stack: &Stack, code: i32) -> Vec<Value> {
    let ended = stack.run(&["verify", "--format", "json"]);
    assert_eq!(ended.code, code, "{ended:?}");
    let found: Value = serde_json::from_str(&ended.out).unwrap();
    found["findings"].as_array().unwrap().clone()
}

fn id(stack: &Stack, name: &str) -> String {
    images(stack, &[name])[0]["id"].as_str().unwrap().to_owned()
}

fn in_round(stack: &Stack, round: &str, arguments: &[&str]) -> Child {
    let mut command = stack.command(arguments);
    command.env("ROUND", round).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn what_a_container_runs_on_stays_until_it_is_gone() {
    let stack = built();
    stack.up();
    let name = format!("{}-a", stack.name);
    let user = format!("in use by container `{}/a`", stack.name);
    stack.run(&["rmi", &name]).fails(1, &[&user, "hint: "]);
    let old = id(&stack, &name);
    stack.run(&["rmi", "-f", &old]).fails(1, &[&user]);
    // Another image takes the name; the container goes on with the one that has none now.
    finish(in_round(&stack, "other", &["build"])).ok();
    assert_ne!(id(&stack, &name), old);
    let pruned = stack.run(&["prune", "-af"]).ok();
    assert!(!pruned.contains(&old[7..19]), "{pruned}");
    assert_eq!(images(&stack, &["--filter", "dangling=true"])[0]["id"], old);
    assert_eq!(stack.sh("a", "cat /dir/round /last"), "0\nlast");
    // Stopped is not gone: it may be started again.
    stack.run(&["stop"]).ok();
    stack.run(&["prune", "-af"]).ok();
    stack.run(&["start"]).ok();
    stack.wait("a", "state", "running");
    assert_eq!(stack.sh("a", "cat /dir/round /last"), "0\nlast");
    assert_eq!(findings(&stack, 0), Vec::<Value>::new());
    stack.run(&["down"]).ok();
    stack.run(&["prune", "-af"]).ok();
    assert_eq!(images(&stack, &[]).len(), 0);
    assert_eq!(fs::read_dir(stack.data().join("l")).unwrap().count(), 0);
}

#[test]
fn builds_go_through_while_everything_is_pruned() {
    let stack = built();
    let mut prunes = 0;
    for round in 0..4 {
        let builds: Vec<Child> = (0..2)
            .map(|who| in_round(&stack, &format!("{round}-{who}"), &["build", "--no-cache"]))
            .chain([in_round(&stack, "same", &["build"])])
            .collect();
        let done: Vec<_> =
            builds.into_iter().map(|child| std::thread::spawn(move || finish(child))).collect();
        while done.iter().any(|build| !build.is_finished()) {
            // Two at once.
            let other = stack.spawn(&["prune", "-af"]);
            stack.run(&["prune", "-af"]).ok();
            finish(other).ok();
            prunes += 2;
        }
        for build in done {
            build.join().unwrap().ok();
        }
        assert_eq!(findings(&stack, 0), Vec::<Value>::new());
    }
    assert!(prunes >= 8, "the builds met {prunes} prunes only");
}

#[test]
fn a_stack_comes_up_while_everything_is_pruned() {
    let stack = built();
    for round in 0..3 {
        let up = in_round(&stack, &round.to_string(), &["up", "-d", "--build"]);
        let up = std::thread::spawn(move || finish(up));
        while !up.is_finished() {
            stack.run(&["prune", "-af"]).ok();
        }
        up.join().unwrap().ok();
        assert_eq!(stack.sh("a", "cat /dir/round /last"), format!("{round}\nlast"));
        if round == 1 {
            stack.run(&["down"]).ok();
        }
    }
}

#[test]
fn names_come_and_go_and_the_image_with_the_last() {
    let stack = built();
    finish(in_round(&stack, "0", &["build"])).ok();
    let name = format!("{}-a", stack.name);
    let full = id(&stack, &name);
    let short = &full[7..19];
    stack.run(&["tag", short, "mine:1"]).ok();
    stack.run(&["tag", "mine:1", "host.example:5000/mine/too"]).ok();
    assert_eq!(images(&stack, &["mine"])[0]["id"], full);
    assert_eq!(images(&stack, &["--filter", "reference=*/mine/*"])[0]["tag"], "latest");
    let quiet = stack.run(&["images", "-q"]).ok();
    assert_eq!(quiet.trim(), short, "an image with three names is one");
    stack.run(&["rmi", short]).fails(1, &["has several names", "mine:1"]);
    assert_eq!(stack.run(&["rmi", "mine:1"]).ok(), "Untagged: mine:1\n");
    let error = stack.run(&["rmi", "nime:1", "host.example:5000/mine/too"]);
    assert!(error.out.contains("Untagged: host.example"), "the others go all the same: {error:?}");
    error.fails(1, &["there is no image `nime:1`"]);
    let error = stack.run(&["tag", &format!("{name}:latets"), "x"]).fails(1, &["there is no image"]);
    assert!(error.contains(&format!("did you mean `{name}:latest`?")), "{error}");
    let history = stack.run(&["history", "--no-trunc", short]).ok();
    let lines: Vec<&str> = history.lines().collect();
    assert!(lines[1].starts_with(&full) && lines[1].contains("RUN echo last > /last"), "{history}");
    assert!(lines.last().unwrap().contains("COPY rootfs /"), "{history}");
    let inspected: Value =
        serde_json::from_str(&stack.run(&["inspect", "--type", "image", short]).ok()).unwrap();
    assert_eq!(inspected[0]["Id"], full);
    assert_eq!(inspected[0]["RootFS"]["Layers"].as_array().unwrap().len(), 3);
    let removed = stack.run(&["rmi", &name]).ok();
    assert!(removed.contains(&format!("Deleted: {full}")), "{removed}");
    assert_eq!(images(&stack, &[]).len(), 0);
    // Its layers are the build cache's, and go with that.
    let df: Value = serde_json::from_str(&stack.run(&["df", "--format", "json"]).ok()).unwrap();
    let cache = df.as_array().unwrap().iter().find(|row| row["kind"] == "build cache").unwrap();
    assert!(cache["reclaimable"].as_u64().unwrap() > 1_000_000, "{df}");
    let dry = stack.run(&["prune", "--dry-run"]).ok();
    assert!(dry.contains("would be freed") && dry.contains("cache"), "{dry}");
    stack.run(&["prune"]).fails(2, &["not a terminal", "--dry-run"]);
    stack.run(&["prune", "-f", "--filter", "until=1h"]).ok();
    assert_ne!(fs::read_dir(stack.data().join("l")).unwrap().count(), 0, "it is young");
    stack.run(&["prune", "-f"]).ok();
    assert_eq!(fs::read_dir(stack.data().join("l")).unwrap().count(), 0);
}

#[test]
fn changes_of_a_container_are_listed() {
    let stack = built();
    stack.up();
    assert_eq!(stack.run(&["diff", "a"]).ok(), "");
    stack.sh("a", "echo new > /new; rm -r /dir; mkdir /dir; echo 1 > /dir/round; rm /last; chmod 700 /tmp; mkdir /home/y");
    let changes = "C /dir\nC /dir/round\nD /dir/x\nC /home\nA /home/y\nD /last\nA /new\nC /tmp\n";
    assert_eq!(stack.run(&["diff", "a"]).ok(), changes);
    // Also when the image has lost its name to another one.
    finish(in_round(&stack, "other", &["build"])).ok();
    assert_eq!(stack.run(&["diff", "a"]).ok(), changes);
    stack.run(&["diff", "b"]).fails(2, &["no such service: `b`", "did you mean `a`?"]);
}

#[test]
fn damage_is_found_and_named() {
    let stack = built();
    finish(in_round(&stack, "0", &["build"])).ok();
    assert_eq!(findings(&stack, 0), Vec::<Value>::new());
    let data = |path: &str| stack.data().join(path);
    let layer = |file: &str| -> PathBuf {
        let mut layers = fs::read_dir(data("l")).unwrap().map(|layer| layer.unwrap().path());
        layers.find(|layer| layer.join(file).exists()).unwrap()
    };
    let damaged = |what: &str| {
        let found = findings(&stack, 1);
        let found = found.iter().find(|finding| finding["damage"] == true).unwrap();
        assert!(found["problem"].as_str().unwrap().contains(what), "{found}");
        assert!(!found["hint"].as_str().unwrap().is_empty());
    };
    // A file of a layer, changed by a byte.
    let file = layer("last").join("last");
    fs::write(&file, "lost\n").unwrap();
    damaged("not those that its digest is of");
    // A quick look does not read it.
    stack.run(&["verify", "--quick"]).ok();
    let moved = layer("last");
    fs::rename(&moved, data("kept")).unwrap();
    damaged("is gone");
    stack.run(&["up", "-d"]).fails(1, &["is not in the store", "inception-run verify"]);
    fs::rename(data("kept"), &moved).unwrap();
    // An image whose configuration was changed.
    let image = fs::read_dir(data("images")).unwrap().next().unwrap().unwrap().path();
    let json = fs::read_to_string(&image).unwrap();
    fs::write(&image, json.replace("linux", "sunos")).unwrap();
    damaged("does not have the digest");
    // Leftovers are no damage.
    fs::write(&image, json).unwrap();
    stack.run(&["rmi", "-f", &format!("{}-a", stack.name)]).ok();
    let record = format!("layers/{}.json", moved.file_name().unwrap().to_str().unwrap());
    fs::remove_file(data(&record)).unwrap();
    let found = findings(&stack, 0);
    assert_eq!((found.len(), &found[0]["damage"]), (1, &Value::Bool(false)), "{found:?}");
    stack.run(&["prune", "-f"]).ok();
    assert_eq!(findings(&stack, 0), Vec::<Value>::new());
}

#[test]
fn what_killed_stacks_left_and_volumes_of_stopped_ones_can_be_pruned() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sleep\", \"1000\"]\nvolumes = [\"v:/data\"]\nstop_grace_period = \"200ms\"\n[volumes.v]\n",
    );
    stack.up();
    stack.sh("a", "echo x > /data/x; echo y > /y");
    stack.run(&["prune", "-af", "--volumes"]).ok();
    assert_eq!(stack.sh("a", "cat /data/x /y"), "x\ny", "it runs");
    let supervisor = rustix::process::Pid::from_raw(stack.supervisor().unwrap()).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    let container = stack.data().join("c").join(&stack.name);
    assert!(container.exists());
    let said = until("the dead stack's lock is free", || {
        let said = stack.run(&["prune", "-f"]).ok();
        (!container.exists()).then_some(said)
    });
    assert!(said.contains(&format!("{}/a", stack.name)), "{said}");
    let volume = stack.data().join("v").join(&stack.name);
    assert!(volume.exists(), "volumes only go when that is asked for");
    stack.run(&["prune", "-f", "--volumes"]).ok();
    assert!(!volume.exists());
}
