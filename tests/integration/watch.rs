//! `watch` and `up --watch`: what changes here changes inside.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};

use crate::build;
use crate::harness::{DEADLINE, Stack, until};

/// A command in the foreground, and what it has written to standard error so far.
struct Foreground {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Foreground {
    fn start(command: &mut std::process::Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let (pipe, told): (Box<dyn Read + Send>, _) =
            (Box::new(child.stderr.take().unwrap()), Arc::clone(&said));
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                told.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        Self { child, said }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    #[track_caller]
    fn wait_for(&self, words: &str) {
        self.wait_after(0, words);
    }

    /// The same behind what it had said when that was so long.
    #[track_caller]
    fn wait_after(&self, length: usize, words: &str) {
        until(&format!("{words} in: {}", self.said()), || {
            self.said()[length..].contains(words).then_some(())
        });
    }

    /// Ends it as Ctrl-C does; its exit code.
    #[track_caller]
    fn interrupt(mut self) -> i32 {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        until("its end", || self.child.try_wait().unwrap()).code().unwrap()
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

#[test]
fn files_are_the_same_inside_as_they_change() {
    let stack = Stack::new(
        r#"
[services.web]
command = ["sleep", "1000"]
user = "app"
stop_grace_period = "0s"
develop.watch = [
  { path = "src", action = "sync", target = "/srv/app", ignore = ["skip/", "*.md"], initial_sync = true },
  { path = "conf", action = "sync+exec", target = "/etc/conf.d/", exec = { command = "sh -c 'cp /etc/conf.d/conf /seen && echo reloaded && id -u'", user = "root" } },
  { path = "anew", action = "restart" },
]
"#,
    );
    for path in ["src/deep/old", "src/first", "src/note.md", "conf", "anew"] {
        stack.write(path, "before");
    }
    std::os::unix::fs::symlink("/etc/passwd", stack.path("src/link")).unwrap();
    stack.up();
    let watch = Foreground::start(&mut stack.command(&["watch", "--no-up"]));
    watch.wait_for("watching the files of web");
    // What was there before, but for what is left out; links are links.
    assert_eq!(
        stack.sh("web", "cd /srv/app; find . | sort; readlink link; stat -c %U first deep"),
        ".\n./deep\n./deep/old\n./first\n./link\n/etc/passwd\napp\napp"
    );
    let inside = |script: &str, expected: &str| {
        until(&format!("{script}: {expected}; {}", watch.said()), || {
            (stack.exec("web", script).out.trim() == expected).then_some(())
        });
    };
    // Changes, new directories with what is in them, and deletions, in one go.
    stack.write("src/skip/this", "x");
    stack.write("src/new/deep/file", "made");
    stack.write("src/first", "changed");
    fs::remove_dir_all(stack.path("src/deep")).unwrap();
    inside("cat /srv/app/new/deep/file /srv/app/first", "madechanged");
    inside("cd /srv/app; ls", "first\nlink\nnew");
    // As an editor does it: aside, and then in its place.
    stack.write("src/new/deep/.file.swp", "again");
    fs::rename(stack.path("src/new/deep/.file.swp"), stack.path("src/new/deep/file")).unwrap();
    inside("cat /srv/app/new/deep/file", "again");
    // A command after the files, as its own user; a file goes into a directory.
    stack.write("conf", "reloads");
    watch.wait_for("web: reloaded\nweb: 0\n");
    assert_eq!(stack.sh("web", "cat /seen"), "reloads");
    let pid = stack.pid("web");
    stack.write("anew", "x");
    until("a restart", || stack.row("web")["pid"].as_i64().filter(|new| *new != i64::from(pid)));
    // One that ends is mended by what comes next.
    stack.run(&["stop", "web"]).ok();
    let before = watch.said().len();
    stack.write("src/while-down", "x");
    watch.wait_after(before, "web: 1 synchronised");
    stack.run(&["start", "web"]).ok();
    assert_eq!(stack.sh("web", "cat /srv/app/while-down"), "x");
    let said = watch.said();
    assert_eq!(watch.interrupt(), 0, "{said}");
    assert_eq!(stack.row("web")["state"], "running");
    // The end of the stack is its end.
    let mut watch = Foreground::start(&mut stack.command(&["watch", "--no-up"]));
    watch.wait_for("watching");
    stack.run(&["down"]).ok();
    assert!(until("its end", || watch.child.try_wait().unwrap()).success());
    watch.wait_for("the stack was taken down");
}

#[test]
fn an_image_is_built_anew_beside_up() {
    let stack = build::with_base(
        r#"
[services.web]
build = "web"
command = ["sleep", "1000"]
stop_grace_period = "0s"
develop.watch = [{ path = "web", action = "rebuild" }]
[services.db]
command = ["sleep", "1000"]
stop_grace_period = "0s"
"#,
    );
    stack.write("web/Dockerfile", "FROM alpine:3.99\nCOPY page /\n");
    stack.write("web/.dockerignore", "left-out\n");
    stack.write("web/page", "before");
    let up = Foreground::start(&mut build::command(&stack, &["up", "--watch"]));
    up.wait_for("watching the files of web");
    assert_eq!(stack.sh("web", "cat /page"), "before");
    let (web, db) = (stack.pid("web"), stack.pid("db"));
    let built = || stack.run(&["images", "-q"]).ok().lines().count();
    let images = built();
    stack.write("web/left-out", "x");
    stack.write("web/page", "after");
    until(&format!("the page; {}", up.said()), || {
        (stack.exec("web", "cat /page").out.trim() == "after").then_some(())
    });
    assert!(stack.pid("web") != web && stack.pid("db") == db, "only what has changed is replaced");
    until("the old image goes", || (built() == images).then_some(()));
    // What fails is told, and mended by the next change.
    stack.write("web/Dockerfile", "FROM alpine:3.99\nCOPY none /\n");
    up.wait_for("error: ");
    stack.write("web/Dockerfile", "FROM alpine:3.99\nCOPY page /other\n");
    until(&format!("another build; {}", up.said()), || {
        (stack.exec("web", "cat /other").out.trim() == "after").then_some(())
    });
    let said = up.said();
    assert!(said.matches("web: stopping").count() <= 2, "each replacement is told once: {said}");
    assert_eq!(up.interrupt(), 130, "{said}");
    stack.gone(DEADLINE);
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let stack = Stack::new("[services.web]\n");
    let watching = |entry: &str| {
        stack.rewrite(&format!("[services.web]\ncommand = [\"true\"]\ndevelop.watch = [{entry}]\n"));
        stack.run(&["watch", "--no-up"])
    };
    for (entry, words) in [
        (r#"{ path = "none", action = "restart" }"#, &["`none`", "does not exist", "stack.toml:"][..]),
        (r#"{ path = ".", action = "snyc", target = "/x" }"#, &["did you mean `sync`?", "stack.toml:"]),
        (r#"{ path = ".", action = "sync" }"#, &["`sync` needs `target`", "stack.toml:"]),
        (r#"{ path = ".", action = "sync+exec", target = "/x" }"#, &["needs `exec`", "stack.toml:"]),
        (r#"{ path = ".", action = "rebuild" }"#, &["has no `build`", "stack.toml:"]),
        (r#"{ action = "restart" }"#, &["needs `path`", "stack.toml:"]),
        (r#"{ path = ".", action = "restart", ignore = ["["] }"#, &["bad pattern", "stack.toml:"]),
    ] {
        watching(entry).fails(2, words);
    }
    watching("").fails(1, &["nothing to watch", "develop"]);
    let there = r#"{ path = ".", action = "restart" }"#;
    watching(there).fails(1, &["is not running"]);
    // Nothing of it is in the way of who does not watch.
    stack.rewrite("[services.web]\ncommand = [\"sleep\", \"9\"]\nstop_grace_period = \"0s\"\ndevelop.watch = [{ path = \"none\", action = \"rebuild\" }]\n");
    stack.up();
}
