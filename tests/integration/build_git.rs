//! `ADD` of a repository and build contexts in one, with the real `git` and a server of its own protocol on the loopback.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::build::{build, command, run, with_base};
use crate::harness::{Stack, ended, free_ports, skipped, until};

/// The server is on the host's loopback, which is not a Dockerfile's to reach.
const SERVICE: &str = "[services.web]\nbuild = { context = \"web\", entitlements = [\"network.host\"] }\n\
                       command = [\"sleep\", \"1000\"]\n";

/// `git daemon`, which serves the repositories of a directory.
struct Server {
    port: u16,
    process: Child,
}

impl Server {
    fn start(directory: &Path) -> Self {
        let port = free_ports(1);
        // Not by `git daemon`: the process that is to be ended would be another one's child.
        let programs = Command::new("git").arg("--exec-path").output().unwrap().stdout;
        let program = Path::new(String::from_utf8(programs).unwrap().trim()).join("git-daemon");
        let process = Command::new(program)
            .args(["--listen=127.0.0.1", &format!("--port={port}"), "--reuseaddr", "--export-all"])
            .arg(format!("--base-path={}", directory.display()))
            .arg(directory)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { port, process };
        until("git's server", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        server
    }

    fn address(&self, repository: &str) -> String {
        format!("git://127.0.0.1:{}/{repository}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A repository with a work tree, whose settings are nobody's.
struct Repository(PathBuf);

impl Repository {
    fn new(stack: &Stack, name: &str) -> Self {
        let repository = Self(stack.path(name));
        std::fs::create_dir_all(&repository.0).unwrap();
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository
    }

    #[track_caller]
    fn git(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("git");
        command.arg("-C").arg(&self.0).args(["-c", "protocol.file.allow=always"]).args(arguments);
        for person in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{person}_NAME"), "somebody");
            command.env(format!("GIT_{person}_EMAIL"), "somebody@example.com");
        }
        command.env("GIT_CONFIG_GLOBAL", "/dev/null");
        ended(&mut command).ok().trim().to_owned()
    }

    /// Commits a file; returns the commit.
    fn commit(&self, file: &str, content: &str) -> String {
        let path = self.0.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", file]);
        self.git(&["rev-parse", "HEAD"])
    }
}

fn has_git(test: &str) -> bool {
    let found = Command::new("git").arg("--version").output().is_ok();
    if !found {
        skipped(test, "git is not installed");
    }
    found
}

#[test]
fn repositories_are_fetched_at_what_is_named() {
    if !has_git("repositories_are_fetched_at_what_is_named") {
        return;
    }
    let stack = with_base(SERVICE);
    let inner = Repository::new(&stack, "served/inner");
    inner.commit("inside", "of a submodule");
    let app = Repository::new(&stack, "served/app");
    let first = app.commit("dir/file", "first");
    app.git(&["tag", "-a", "-m", "one", "v1"]);
    app.commit("dir/file", "second");
    let server = Server::start(&stack.path("served"));
    app.git(&["submodule", "--quiet", "add", &server.address("inner/.git"), "sub"]);
    app.git(&["commit", "--quiet", "-m", "with a submodule"]);
    let address = server.address("app/.git");
    let dockerfile = format!(
        "FROM alpine:3.99\n\
         ADD {address}#main:dir /main/\n\
         ADD --keep-git-dir=true {address}#v1 /tagged/\n\
         ADD --checksum={first} {address}#{first} /exact/\n\
         ADD {address} /whole/\n"
    );
    stack.write("web/Dockerfile", &dockerfile);
    run(&stack, &["up", "-d"]).ok();
    assert_eq!(
        stack.sh("web", "cd / && cat main/file tagged/dir/file exact/dir/file whole/sub/inside"),
        "secondfirstfirstof a submodule"
    );
    assert_eq!(
        stack.sh("web", "cd / && ls -d */.git; stat -c '%u %g %a' /main/file"),
        "tagged/.git\n0 0 644"
    );
    // What a name means is looked up each time, and what is there is not fetched again.
    let again = build(&stack);
    assert_eq!(again.matches("cached: ADD").count(), 4, "{again}");
    app.commit("dir/file", "third");
    let third = build(&stack);
    // The instructions behind the one that changed stand on another layer.
    assert!(third.contains("ADD") && !third.contains("cached: ADD"), "{third}");
    run(&stack, &["up", "-d", "--build"]).ok();
    assert_eq!(stack.sh("web", "cat /main/file /tagged/dir/file"), "thirdfirst");
}

#[test]
fn what_git_says_is_shown() {
    if !has_git("what_git_says_is_shown") {
        return;
    }
    let stack = with_base(SERVICE);
    let app = Repository::new(&stack, "served/app");
    let commit = app.commit("file", "content");
    let server = Server::start(&stack.path("served"));
    let address = server.address("app/.git");
    let zeros = "0".repeat(40);
    for (source, words) in [
        (format!("{address}#none"), vec!["no branch or tag `none`"]),
        (format!("--checksum={zeros} {address}#main"), vec![&*commit, &*zeros]),
        (format!("{address}#main:missing"), vec!["missing"]),
        (server.address("nothing/.git"), vec!["git ls-remote", "nothing"]),
    ] {
        stack.write("web/Dockerfile", &format!("FROM alpine:3.99\nADD {source} /app\n"));
        let words = [&["Dockerfile:2", "ADD"][..], &words].concat();
        run(&stack, &["build"]).fails(1, &words);
    }
    stack.write("web/Dockerfile", &format!("FROM alpine:3.99\nADD {address} /app\n"));
    drop(server);
    run(&stack, &["build"]).fails(1, &["Dockerfile:2", "git ls-remote"]);
    stack.nothing_left();

    // Only what else a build needs is to be found.
    let programs = stack.path("programs");
    std::fs::create_dir(&programs).unwrap();
    for program in ["newuidmap", "newgidmap"] {
        std::os::unix::fs::symlink(Path::new("/usr/bin").join(program), programs.join(program)).unwrap();
    }
    let without = ended(command(&stack, &["build"]).env("PATH", &programs));
    without.fails(1, &["Dockerfile:2", "run `git`, which has to be installed"]);
}

#[test]
fn neither_the_users_keys_nor_what_lies_around_is_used() {
    if !has_git("neither_the_users_keys_nor_what_lies_around_is_used") {
        return;
    }
    let stack = with_base("[services.web]\nbuild = \"web\"\n");
    for (source, word) in [
        ("git://localhost:1/a", "the host's own"),
        ("http://169.254.169.254/a.git", "the host's own"),
        ("git@192.0.2.1:a/b.git", "`ssh` of `build` would have to name `default`"),
        ("ssh://git@192.0.2.1/a/b", "`ssh` of `build` would have to name `default`"),
    ] {
        stack.write("web/Dockerfile", &format!("FROM alpine:3.99\nADD {source} /app\n"));
        run(&stack, &["build"]).fails(1, &["Dockerfile:2", word]);
    }
    // A repository that came with an archive, say, whose settings name a program.
    let around = Repository(stack.path("."));
    around.git(&["init", "--quiet"]);
    let ran = stack.path("ran");
    stack.write("program", &format!("#!/bin/sh\ntouch {}\n", ran.display()));
    ended(stack.command_of("chmod").args(["755", "program"])).ok();
    around.git(&["config", "core.gitProxy", &stack.path("program").display().to_string()]);
    run(&stack, &["build", "git://127.0.0.1:1/a"]).fails(1, &["fetch the build context"]);
    assert!(!ran.exists());
}

#[test]
fn contexts_are_fetched_at_what_is_named() {
    if !has_git("contexts_are_fetched_at_what_is_named") {
        return;
    }
    let stack = with_base("");
    let app = Repository::new(&stack, "served/app");
    app.commit("Dockerfile", "FROM alpine:3.99\nCOPY . /all/\nCOPY --from=more file /more\n");
    app.commit("srcs/web/Prod", "FROM alpine:3.99\nCOPY page /page\n");
    app.commit("srcs/web/page", "first");
    app.git(&["tag", "v1"]);
    app.commit("srcs/web/page", "second");
    let more = Repository::new(&stack, "served/more");
    more.commit("part/file", "from another one");
    let server = Server::start(&stack.path("served"));
    let (address, more) = (server.address("app/.git"), server.address("more/.git#main:part"));
    stack.rewrite(&format!(
        "[services.web]\nbuild = {{ context = \"{address}#v1:srcs/web\", dockerfile = \"Prod\" }}\n\
         command = [\"sleep\", \"1000\"]\n\
         [services.all]\nbuild = {{ context = \"{address}\", additional_contexts = {{ more = \"{more}\" }} }}\n\
         command = [\"sleep\", \"1000\"]\n"
    ));
    run(&stack, &["up", "-d"]).ok();
    assert_eq!(stack.sh("web", "cat /page; stat -c ' %u %g %a' /page"), "first 0 0 644");
    assert_eq!(
        stack.sh("all", "cat /all/srcs/web/page /more; ls -A /all"),
        "secondfrom another oneDockerfile\nsrcs"
    );

    // What a name means is looked up each time; what has not changed is in the cache.
    let again = build(&stack);
    assert_eq!(again.matches("cached: COPY").count(), 3, "{again}");
    app.commit("srcs/web/page", "third");
    run(&stack, &["up", "-d", "--build"]).ok();
    assert_eq!(stack.sh("all", "cat /all/srcs/web/page"), "third");
    assert_eq!(stack.sh("web", "cat /page"), "first");

    // One by itself, with its `.git`, beside a context of this machine.
    let out = stack.path("out");
    let output = format!("type=local,dest={}", out.display());
    let keep = ["--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"];
    let named = format!("more={more}");
    let options = [&["build", "--build-context", &named, "-o", &output][..], &keep, &[&address]].concat();
    run(&stack, &options).ok();
    assert!(out.join("all/.git").is_dir() && out.join("more").is_file());
}

#[test]
fn a_context_that_cannot_be_fetched_is_an_error_with_its_address() {
    if !has_git("a_context_that_cannot_be_fetched_is_an_error_with_its_address") {
        return;
    }
    let stack = with_base(SERVICE);
    let app = Repository::new(&stack, "served/app");
    std::os::unix::fs::symlink("/etc", app.0.join("out")).unwrap();
    app.commit("Dockerfile", "FROM alpine:3.99\n");
    let server = Server::start(&stack.path("served"));
    let address = server.address("app/.git");
    for (what, words) in [
        (format!("{address}#none"), vec!["fetch the build context", "no branch or tag `none`"]),
        (format!("{address}#:missing"), vec!["`missing` of", "does not exist"]),
        (format!("{address}#:out"), vec!["`out` of", "leads out of it"]),
        (server.address("nothing/.git"), vec!["git ls-remote", "nothing"]),
    ] {
        run(&stack, &["build", &what]).fails(1, &words);
    }
    run(&stack, &["build", "-f", "out/passwd", &address]).fails(1, &["`out/passwd` of", "leads out of it"]);
    run(&stack, &["build", "https://example.org/context.tar.gz"])
        .fails(2, &["is not the address of a git repository", "https://HOST/PATH.git"]);
    stack.nothing_left();
}
