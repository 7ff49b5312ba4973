//! Where credentials of registries come from, and what leads to a registry: the files and helpers of Docker and Podman,
//! and proxies. With a registry on the loopback that lets one account in.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::harness::{Ended, Stack, ended, finish};

/// `ann` with the password `secret`, as `auth` and the scheme Basic have it.
const ANN: &str = "YW5uOnNlY3JldA==";

/// A registry that has what an OCI layout has, as `team/app:1`; it is its own proxy, too.
struct Registry {
    host: String,
    /// What was asked: method and target.
    log: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    fn start(layout: &Path) -> Self {
        let index: Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
        let manifest = index["manifests"][0].clone();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let log = Arc::<Mutex<Vec<String>>>::default();
        let (asked, layout) = (Arc::clone(&log), layout.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (asked, layout, manifest) = (Arc::clone(&asked), layout.clone(), manifest.clone());
                std::thread::spawn(move || serve(&stream.unwrap(), &asked, &layout, &manifest));
            }
        });
        Self { host, log }
    }

    fn image(&self) -> String {
        format!("{}/team/app:1", self.host)
    }

    fn was_asked(&self, what: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(what))
    }
}

/// Answers what comes over one connection, until something comes that is no request.
fn serve(stream: &TcpStream, log: &Mutex<Vec<String>>, layout: &Path, manifest: &Value) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = Vec::new();
            match reader.read_until(b'\n', &mut line) {
                Ok(length) if length > 0 => {}
                _ => return,
            }
            let Ok(line) = String::from_utf8(line) else { return };
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_owned()),
            }
        }
        let Some((method, target)) = head.first().and_then(|line| {
            let mut words = line.split(' ');
            Some((words.next()?.to_owned(), words.next()?.to_owned()))
        }) else {
            return;
        };
        log.lock().unwrap().push(format!("{method} {target}"));
        let allowed = format!("authorization: basic {}", ANN.to_lowercase());
        let is_ann = head.iter().any(|line| line.to_lowercase() == allowed && line.ends_with(ANN));
        let blob = |digest: &str| std::fs::read(layout.join("blobs").join(digest.replace(':', "/"))).ok();
        let digest = manifest["digest"].as_str().unwrap();
        let (status, more, body) = match target.strip_prefix("/v2/") {
            _ if method == "CONNECT" => ("200 Connected", String::new(), None),
            Some(_) if !is_ann => {
                ("401 No", "WWW-Authenticate: Basic realm=\"x\"\r\n".to_owned(), Some(Vec::new()))
            }
            Some("") => ("200 OK", String::new(), Some(Vec::new())),
            Some(path) => {
                let name = path.rsplit('/').next().unwrap();
                let kind = manifest["mediaType"].as_str().unwrap();
                let found = match path.contains("/manifests/") {
                    true => blob(digest).map(|body| (format!("Content-Type: {kind}\r\n"), body)),
                    false => blob(name).map(|body| (String::new(), body)),
                };
                match found {
                    Some((more, body)) => ("200 OK", more, Some(body)),
                    None => ("404 No", String::new(), Some(Vec::new())),
                }
            }
            None => return,
        };
        let length =
            body.as_ref().map_or_else(String::new, |body| format!("Content-Length: {}\r\n", body.len()));
        let mut writer = stream;
        let head = format!("HTTP/1.1 {status}\r\n{more}{length}\r\n");
        let written =
            writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body.unwrap_or_default()));
        if written.is_err() {
            return;
        }
    }
}

/// A stack with the files of a user, and a registry.
struct Place {
    stack: Stack,
    registry: Registry,
}

impl Place {
    fn new() -> Self {
        let stack = Stack::new("[services.a]\ncommand = [\"true\"]\n");
        let layout = stack.path("layout");
        let mut tar = stack.command_of("tar");
        ended(tar.args(["--owner=0", "--group=0", "-cf", "small.tar", "-C", "rootfs", "etc"])).ok();
        stack.run(&["import", "small.tar", "small:1"]).ok();
        stack.run(&["save", "-o", &format!("{}/", layout.display()), "small:1"]).ok();
        stack.run(&["rmi", "small:1"]).ok();
        let registry = Registry::start(&layout);
        Self { stack, registry }
    }

    /// `inception-run` by a user who has nothing but what is below these directories.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.stack.command(arguments);
        command.env("HOME", self.stack.path("home")).env("XDG_CONFIG_HOME", self.stack.path("config"));
        for name in ["DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "INCEPTION_REGISTRY_MIRROR"] {
            command.env_remove(name);
        }
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.stack.path("programs").display()));
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Ended {
        ended(&mut self.command(arguments))
    }

    #[track_caller]
    fn pull(&self) -> Ended {
        self.run(&["pull", &self.registry.image()])
    }

    #[track_caller]
    fn log_in(&self) -> Ended {
        let mut command = self.command(&["login", "-u", "ann", "--password-stdin", &self.registry.host]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"secret\n").unwrap();
        finish(child)
    }

    /// `docker-credential-NAME`: a script that is told what to do, and what it is for.
    fn helper(&self, name: &str, script: &str) {
        let path = format!("programs/docker-credential-{name}");
        self.stack.write(&path, &format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(self.stack.path(&path), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// One that keeps an entry in a file, as those keep it in a keychain.
    fn keeper(&self, name: &str) -> PathBuf {
        let kept = self.stack.path(&format!("kept-{name}"));
        let shown = kept.display();
        self.helper(
            name,
            &format!(
                "case $1 in\n\
                 store) cat > {shown} ;;\n\
                 get) read -r key; grep -q \"\\\"$key\\\"\" {shown} 2> /dev/null && exec cat {shown}\n\
                     echo 'credentials not found in native keychain'; exit 1 ;;\n\
                 erase) rm {shown} ;;\n\
                 *) exit 2 ;;\n\
                 esac"
            ),
        );
        kept
    }

    fn docker_config(&self, content: &Value) {
        self.stack.write("home/.docker/config.json", &content.to_string());
    }
}

#[test]
fn a_store_of_credentials_is_used_for_all_registries() {
    let place = Place::new();
    let kept = place.keeper("chain");
    place.docker_config(&json!({ "credsStore": "chain", "HttpHeaders": { "X": "y" } }));
    place.pull().fails(1, &["team/app", &format!("inception-run login {}", place.registry.host)]);
    place.log_in().ok();
    let entry: Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
    let host = &place.registry.host;
    assert_eq!(entry, json!({ "ServerURL": host, "Username": "ann", "Secret": "secret" }));
    // The file has learned nothing.
    let config = std::fs::read_to_string(place.stack.path("home/.docker/config.json")).unwrap();
    assert!(
        !config.contains("secret") && !config.contains(ANN) && config.contains("HttpHeaders"),
        "{config}"
    );
    place.pull().ok();
    place.run(&["logout", host]).ok();
    assert!(!kept.exists());
    place.pull().fails(1, &["inception-run login"]);
}

#[test]
fn a_helper_of_one_registry_comes_before_the_store() {
    let place = Place::new();
    let (host, kept) = (place.registry.host.clone(), place.keeper("one"));
    place.helper("chain", "exit 3");
    place.docker_config(&json!({ "credsStore": "chain", "credHelpers": { &host: "one" } }));
    place.log_in().ok();
    assert!(kept.exists());
    place.pull().ok();
    // One that fails is said, and what is public is pulled all the same; this is not.
    place.helper("one", "echo 'the chain is locked'; exit 1");
    place
        .pull()
        .fails(1, &["without credentials", "docker-credential-one get", "the chain is locked", "login"]);
    place.helper("one", "echo 'no JSON: secret'");
    let said = place.pull().fails(1, &["docker-credential-one gave an answer that cannot be read"]);
    assert!(!said.contains("no JSON"), "{said}");
    std::fs::remove_file(place.stack.path("programs/docker-credential-one")).unwrap();
    // Not found; or not allowed, where the search came through a directory of somebody else's.
    place.pull().fails(1, &["run docker-credential-one get: ", "os error", "inception-run login"]);
}

#[test]
fn what_podman_knows_is_known_here() {
    let place = Place::new();
    let entry = json!({ "auths": { &place.registry.host: { "auth": ANN } } }).to_string();
    let (runtime, own) = (place.stack.path("xdg"), place.stack.path("own.json"));
    let pull =
        |name: &str, value: &Path| ended(place.command(&["pull", &place.registry.image()]).env(name, value));
    pull("XDG_RUNTIME_DIR", &runtime).fails(1, &["login"]);
    place.stack.write("xdg/containers/auth.json", &entry);
    pull("XDG_RUNTIME_DIR", &runtime).ok();
    place.pull().fails(1, &["login"]);
    place.stack.write("config/containers/auth.json", &entry);
    place.pull().ok();
    // The first that knows it: Docker's, the one that is named, that of the session, that of the user.
    place.stack.write("own.json", &entry.replace(ANN, "YW5uOndyb25n"));
    pull("REGISTRY_AUTH_FILE", &own).fails(1, &["login"]);
    place.docker_config(&serde_json::from_str(&entry).unwrap());
    pull("REGISTRY_AUTH_FILE", &own).ok();
    // Forgotten everywhere.
    ended(place.command(&["logout", &place.registry.host]).env("REGISTRY_AUTH_FILE", &own)).ok();
    pull("REGISTRY_AUTH_FILE", &own).fails(1, &["login"]);
    for file in ["own.json", "home/.docker/config.json", "config/containers/auth.json"] {
        let text = std::fs::read_to_string(place.stack.path(file)).unwrap();
        assert!(!text.contains(&place.registry.host), "{file}: {text}");
    }
}

#[test]
fn proxies_are_those_of_the_environment() {
    let place = Place::new();
    let host = "registry.invalid";
    place.stack.write(
        "config/inception-run/registries.toml",
        &format!("[registry.\"{host}\"]\nplain-http = true\n"),
    );
    place.docker_config(&json!({ "auths": { host: { "auth": ANN } } }));
    let image = format!("{host}/team/app:1");
    let proxy = format!("http://{}", place.registry.host);
    let pull =
        |variables: &[(&str, &str)]| ended(place.command(&["pull", &image]).envs(variables.iter().copied()));
    pull(&[("HTTPS_PROXY", &proxy), ("http_proxy", &proxy)]).ok();
    assert!(place.registry.was_asked(&format!("CONNECT {host}:443")), "TLS is tried first");
    assert!(place.registry.was_asked(&format!("CONNECT {host}:80")));
    place.registry.log.lock().unwrap().clear();
    let all = [("ALL_PROXY", &*proxy), ("NO_PROXY", "example.org,registry.invalid")];
    pull(&all).fails(1, &[host]);
    // This machine itself is reached without one.
    place.docker_config(&json!({ "auths": { &place.registry.host: { "auth": ANN } } }));
    ended(place.command(&["pull", &place.registry.image()]).envs([("ALL_PROXY", "http://192.0.2.1:1")])).ok();
    assert!(!place.registry.was_asked("CONNECT"));
}
