//! The steps of one container as a shell script, which builds the same sandbox with util-linux and iproute2.
//!
//! Three parts follow each other as the processes do: the user namespace with its map of ids (what the supervisor does),
//! network and namespaces of the container (the hub), and what happens inside before the program runs (the child). Each
//! command of the second and third part is one step that was seen, with its arguments.

pub(super) mod words;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::call::{Call, Control, Object, Origin, amount};
use super::decode::is_cgroup;
use super::flags;
use super::netlink::Request;
use super::step::{Role, Step};
use crate::words::quote;
use words::{file_option, printf, within};

/// The script for `container`, or for the first container that was made. When there is none, the script says so.
pub fn write(steps: &[Step], container: Option<&str>) -> String {
    let seen: Vec<&Step> = steps.iter().filter(|step| step.outcome.is_success()).collect();
    match Facts::find(&seen, container) {
        Some(facts) => {
            let (host, hub, inside) = (facts.host(&seen), facts.hub(&seen), facts.inside(&seen));
            format!("{}{host}{hub}{inside}esac\n", facts.head())
        }
        None => format!(
            "#!/bin/sh\necho 'no steps of the container{} were seen' >&2\nexit 1\n",
            container.map_or(String::new(), |name| format!(" {name}"))
        ),
    }
}

/// What the parts of the script need to know of each other.
struct Facts<'a> {
    /// The container's name.
    container: &'a str,
    /// Its first process.
    child: i32,
    /// The stack's root process, as the host knows it.
    hub: i32,
    /// The data directory.
    data: &'a str,
    /// New namespaces of the hub, and of the container.
    namespaces: [u64; 2],
    /// Its network namespace; `None` for the host's.
    network: Option<&'a str>,
    cgroup: Option<&'a str>,
}

impl<'a> Facts<'a> {
    fn find(seen: &[&'a Step], wanted: Option<&str>) -> Option<Self> {
        let of_container = |step: &&&'a Step| {
            step.who.role == Role::Child
                && step
                    .who
                    .container
                    .as_deref()
                    .is_some_and(|name| wanted.is_none_or(|wanted| name == wanted))
        };
        let first = seen.iter().find(of_container)?;
        let child = first.who.pid;
        let clone_of = |pid: i32| seen.iter().find(|step| step.made == Some(pid));
        let born = clone_of(child)?;
        let Call::Clone { flags, cgroup, .. } = &born.call else { return None };
        let mut namespaces = *flags;
        let root = seen.iter().find_map(|step| match &step.call {
            Call::Clone { flags, .. } if flags & libc::CLONE_NEWUSER as u64 != 0 => {
                Some((step.made?, *flags))
            }
            _ => None,
        });
        let (hub, mut of_hub) = root?;
        let mut network = None;
        let mut data = None;
        for step in seen.iter().filter(|step| step.who.pid == child) {
            match &step.call {
                Call::Setns { to, flags } if *flags & libc::CLONE_NEWNET as u64 != 0 => {
                    network = to.as_deref()
                }
                Call::Unshare { flags } => namespaces |= flags,
                Call::PivotRoot { new: Some(new), .. } => data = new.strip_suffix("/mnt/root"),
                _ => {}
            }
        }
        of_hub &= !(libc::CLONE_NEWNET as u64);
        if network.is_some() {
            of_hub |= libc::CLONE_NEWNET as u64;
        }
        Some(Self {
            container: first.who.container.as_deref()?,
            child,
            hub,
            data: data?,
            namespaces: [of_hub, namespaces],
            network,
            cgroup: cgroup.as_deref(),
        })
    }

    fn head(&self) -> String {
        format!(
            "#!/bin/sh\n\
             # The sandbox of the container `{name}`, built by hand. Written by `inception-run up --trace=script` from the\n\
             # steps that it saw. It needs util-linux, iproute2, and newuidmap for who is not root; and the image's layers in\n\
             # {data}. The stack itself should be down.\n\
             #\n\
             #     sh FILE [COMMAND [ARGUMENT...]]     runs the container's own program, or another one\n\
             #\n\
             # What a shell cannot do is left out: the seccomp filter, and the way out of the stack's network (nftables and\n\
             # netd). The program is PID 1 itself; no init stands above it.\n\
             set -eu\n\n\
             case ${{stage-host}} in\n",
            name = self.container,
            data = self.data,
        )
    }

    /// What the supervisor does: the user namespace, its map of ids, the cgroup.
    fn host(&self, seen: &[&Step]) -> String {
        let mut text = String::from(
            "host)\n    # 1. On the host. The namespaces of the stack; a user namespace owns all others.\n",
        );
        let mut line = |words: &str| writeln!(text, "    {words}").unwrap_or_default();
        line("# `pivot_root` and `ip` may be where an ordinary user does not look for programs.");
        line("PATH=$PATH:/usr/sbin:/sbin");
        line(&format!("data={}", quote(self.data)));
        line("scratch=$(mktemp -d)");
        line("cp \"$0\" \"$scratch/sandbox.sh\"");
        line("mkfifo \"$scratch/mapped\"");
        line("chmod 755 \"$scratch\"");
        line("chmod 644 \"$scratch/sandbox.sh\"");
        let maps = self.maps(seen);
        if let Some(root) = maps.root {
            line("# Root inside is this user of the host's, and no other.");
            line(&format!("chown {root}:{root} \"$scratch\" \"$scratch/mapped\""));
        }
        if let Some(cgroup) = self.cgroup {
            line("# Its cgroup, with its limits. Who opened the file is who may move processes.");
            for command in self.cgroup_commands(seen, cgroup) {
                line(&command);
            }
            line(&format!("exec 7> {}", quote(&format!("{cgroup}/cgroup.procs"))));
        }
        line("# What a shell runs in the background reads nothing unless it is told to.");
        line("exec 9<&0");
        let options = flags::namespace_options(self.namespaces[0]);
        line("# Without a map nobody in there is anybody: it waits for one, then becomes root.");
        line("env -i PATH=\"$PATH\" stage=hub data=\"$data\" scratch=\"$scratch\" \\");
        line(&format!("    unshare {options} --fork --kill-child --keep-caps \\"));
        line("    sh -c 'read _ < \"$scratch/mapped\"");
        line(
            "           exec setpriv --reuid=0 --regid=0 --clear-groups --inh-caps=-all --ambient-caps=-all \\",
        );
        line("               --pdeathsig=KILL sh \"$scratch/sandbox.sh\" \"$@\"' sh \"$@\" <&9 9<&- &");
        line("hub=$!");
        line("# Until it has left our user namespace.");
        line("own=$(readlink /proc/self/ns/user)");
        line("while [ \"$(readlink /proc/$hub/ns/user)\" = \"$own\" ]; do sleep 0.01; done");
        for command in &maps.commands {
            line(command);
        }
        line("echo > \"$scratch/mapped\"");
        line("status=0");
        line("wait $hub || status=$?");
        line("chmod -R u+rwx \"$scratch\" && rm -rf \"$scratch\"");
        if let Some(cgroup) = self.cgroup {
            // The last one is the innermost.
            for directory in self.cgroup_directories(seen, cgroup).into_iter().rev() {
                line(&format!("rmdir {}", quote(directory)));
            }
        }
        line("exit $status");
        line(";;\n");
        text
    }

    /// How the maps of ids are written.
    fn maps(&self, seen: &[&Step]) -> Maps {
        let mut maps = Maps { root: None, commands: Vec::new() };
        for step in seen {
            match &step.call {
                Call::Write { path, text: Some(text), .. } => {
                    let Some(file) = path.strip_prefix(&format!("/proc/{}/", self.hub)) else { continue };
                    if file == "uid_map" {
                        maps.root = text.split_whitespace().nth(1).map(str::to_owned);
                    }
                    maps.commands.push(format!("{} > /proc/$hub/{file}", printf(text)));
                }
                Call::Execve { path: Some(_), argv: Some(argv), .. } => {
                    let [program, pid, numbers @ ..] = &argv[..] else { continue };
                    let ours = *pid == self.hub.to_string();
                    if ours && ["newuidmap", "newgidmap"].contains(&program.as_str()) {
                        maps.commands.push(format!("{program} $hub {}", numbers.join(" ")));
                    }
                }
                _ => {}
            }
        }
        maps
    }

    /// The cgroup and those above it, as far as they were made for it.
    fn cgroup_directories<'b>(&self, seen: &[&'b Step], cgroup: &str) -> Vec<&'b str> {
        let made = seen.iter().filter_map(|step| match &step.call {
            Call::Mkdir { path: Some(path), .. } if step.who.role == Role::Supervisor => Some(path.as_str()),
            _ => None,
        });
        made.filter(|path| is_cgroup(path) && is_above(path, cgroup)).collect()
    }

    /// What makes a cgroup and those above it, and sets their limits.
    fn cgroup_commands(&self, seen: &[&Step], cgroup: &str) -> Vec<String> {
        let commands = seen.iter().filter(|step| step.who.role == Role::Supervisor).filter_map(|step| {
            match &step.call {
                Call::Mkdir { path: Some(path), .. } if is_cgroup(path) && is_above(path, cgroup) => {
                    Some(format!("mkdir -p {}", quote(path)))
                }
                Call::Write { path, text: Some(text), .. } if is_cgroup(path) => {
                    let (directory, file) = path.rsplit_once('/')?;
                    let wanted = is_above(directory, cgroup) && file != "cgroup.procs";
                    wanted.then(|| format!("{} > {}", printf(text), quote(path)))
                }
                _ => None,
            }
        });
        commands.collect()
    }

    /// What the hub does: the network, and the container's namespaces.
    fn hub(&self, seen: &[&Step]) -> String {
        let mut text = String::from("hub)\n    # 2. Root of the user namespace, PID 1 of the stack.\n");
        let mut line = |words: &str| writeln!(text, "    {words}").unwrap_or_default();
        line("cd \"$data\"");
        line("mount --make-rprivate /");
        line("# So that the tools find processes by the numbers that they have here.");
        line("mount -t proc proc /proc");
        let mut enter = String::new();
        if let Some(namespace) = self.network {
            line("# The container's network namespace is kept by a file that it is mounted on.");
            line("touch \"$scratch/net\"");
            line("unshare --net=\"$scratch/net\" true");
            for command in self.network_commands(seen, namespace) {
                line(&command);
            }
            enter = "nsenter --net=\"$scratch/net\" ".to_owned();
        }
        if self.cgroup.is_some() {
            line("# This process and what comes from it.");
            line("echo 0 >&7");
            line("exec 7>&-");
        }
        let options = flags::namespace_options(self.namespaces[1]);
        line("stage=container");
        line("export stage");
        line(&format!("exec {enter}unshare {options} --fork --kill-child \\"));
        line("    setpriv --pdeathsig=KILL sh \"$scratch/sandbox.sh\" \"$@\"");
        line(";;\n");
        text
    }

    /// Links, addresses and routes that the container has a part in.
    fn network_commands(&self, seen: &[&Step], network: &str) -> Vec<String> {
        let all = || {
            seen.iter().filter_map(|step| match &step.call {
                Call::Netlink { namespace: Some(namespace), requests, .. } => {
                    Some((namespace.as_str(), requests))
                }
                _ => None,
            })
        };
        // Its links, and the bridges that they are ports of.
        let mut links = BTreeSet::from(["lo"]);
        for request in all().flat_map(|(_, requests)| requests) {
            if let Request::Link { name, peer: Some(peer), controller, .. } = request
                && peer.namespace.as_deref() == Some(network)
            {
                links.insert(name);
                links.extend(controller.as_deref());
            }
        }
        let mut commands = Vec::new();
        for (namespace, requests) in all() {
            for request in requests {
                let inside = namespace == network;
                let wanted = match request {
                    Request::Link { name, .. } => inside || links.contains(name.as_str()),
                    Request::Address { link, .. } => inside || links.contains(link.as_str()),
                    Request::Route { .. } => inside,
                    _ => false,
                };
                if wanted {
                    let place = if inside { "nsenter --net=\"$scratch/net\" " } else { "" };
                    let made = request.commands(&|_| "\"$scratch/net\"".to_owned());
                    commands.extend(made.iter().map(|command| format!("{place}{command}")));
                }
            }
        }
        commands
    }

    /// What the child does: everything until the program runs.
    fn inside(&self, seen: &[&Step]) -> String {
        let mut part = Inside { data: self.data, text: String::new(), options: Vec::new(), pivoted: false };
        part.text.push_str("container)\n    # 3. Inside, as the container's PID 1.\n");
        part.line("root=$PWD/mnt/root");
        part.line("mkdir \"$scratch/upper\" \"$scratch/work\"");
        for step in seen.iter().filter(|step| step.who.pid == self.child) {
            match step.who.role {
                Role::Child => part.step(&step.call),
                // From here on it is init, and no longer the sandbox.
                _ => break,
            }
        }
        part.text
    }
}

/// Whether a cgroup is this one, or above it.
fn is_above(directory: &str, cgroup: &str) -> bool {
    cgroup == directory || cgroup.starts_with(&format!("{directory}/"))
}

/// How the ids of the user namespace are mapped.
struct Maps {
    /// The host's id of root inside, where it is not the caller's.
    root: Option<String>,
    commands: Vec<String>,
}

/// The third part of the script.
struct Inside<'a> {
    data: &'a str,
    text: String,
    /// Options of `setpriv(1)`.
    options: Vec<String>,
    /// The root has been changed: ids that are set from here on are the program's.
    pivoted: bool,
}

impl Inside<'_> {
    fn line(&mut self, words: &str) {
        writeln!(self.text, "    {words}").unwrap_or_default();
    }

    /// A path as a word of the script.
    fn place(&self, path: &str) -> String {
        match path.strip_prefix(self.data).and_then(|below| below.strip_prefix('/')) {
            None => within("", path.trim_start_matches('/')),
            Some(below) => match below.strip_prefix("mnt/root/") {
                Some(below) => within("$root", below),
                None => within("$data", below),
            },
        }
    }

    fn step(&mut self, call: &Call) {
        match call {
            Call::Sethostname { name: Some(name) } => self.line(&format!("hostname {}", quote(name))),
            Call::Mount { source, target: Some(target), kind: Some(kind), flags: bits, data } => {
                let source = source.as_deref().unwrap_or("none");
                let mut options: Vec<String> =
                    flags::mount_options(*bits).into_iter().map(str::to_owned).collect();
                let overlay = kind == "overlay";
                let all = data.iter().flat_map(|data| data.split(',')).filter(|option| !option.is_empty());
                let kept = |option: &&str| {
                    !(overlay && ["upperdir", "workdir"].iter().any(|key| option.starts_with(key)))
                };
                options.extend(all.filter(kept).map(str::to_owned));
                let layers =
                    if overlay { ",upperdir=\"$scratch/upper\",workdir=\"$scratch/work\"" } else { "" };
                let (target, options) = (quote(target), file_option(&options));
                self.line(&format!("mount -t {kind}{options}{layers} {} {target}", quote(source)));
            }
            Call::Mkdir { path: Some(path), .. } => {
                let place = self.place(path);
                self.line(&format!("mkdir -p {place}"));
            }
            Call::Mknod { path: Some(path), .. } => {
                let place = self.place(path);
                self.line(&format!("touch {place}"));
            }
            Call::Symlink { to: Some(to), path: Some(path) } => {
                let place = self.place(path);
                self.line(&format!("ln -s {} {place}", quote(to)));
            }
            Call::Write { path, text, length } => self.write(path, text.as_deref(), *length),
            Call::MoveMount { from: Some(object), to: Some(to) } => {
                let origin = match &object.origin {
                    Origin::Copy { path, recursive } => {
                        Origin::Copy { path: self.place(path), recursive: *recursive }
                    }
                    new => new.clone(),
                };
                if object.attributes & libc::MOUNT_ATTR_IDMAP != 0 {
                    self.line("# Its owners are mapped, too: `X-mount.idmap` of util-linux 2.39.");
                }
                let object = Object { origin, attributes: object.attributes };
                let to = self.place(to);
                for command in words::mount(&object, &to) {
                    self.line(&command);
                }
            }
            Call::MountSetattr { set, .. } if self.pivoted => {
                let options = flags::attribute_options(*set).join(",");
                self.line(&format!("$host \"..$(path_of mount)\" -o remount,bind,{options} /"));
            }
            Call::PivotRoot { .. } => self.pivot(),
            Call::Umount { .. } => {
                self.line("$host \"..$(path_of umount)\" -l /");
            }
            Call::Prlimit { resource, limits: Some((soft, hard)) } => {
                if let (_, Some(option)) = flags::limit(*resource) {
                    let (soft, hard) = (amount(*soft), amount(*hard));
                    self.line(&format!("$host \"..$(path_of prlimit)\" --pid $$ {option}={soft}:{hard}"));
                }
            }
            Call::Seccomp { .. } => {
                self.line("# Here the seccomp filter is loaded, for which a shell has no word.")
            }
            Call::Landlock => {
                self.line("# Here access to files is given up (landlock), for which a shell has no word.")
            }
            Call::Execve { .. } => self.execute(call),
            _ => self.identity(call),
        }
    }

    fn write(&mut self, path: &str, text: Option<&str>, length: u64) {
        let name = path.rsplit('/').next().unwrap_or(path);
        match (name, text) {
            ("oom_score_adj", Some(text)) => {
                self.line(&format!("{} > /proc/self/oom_score_adj", printf(text)))
            }
            (_, Some(text)) => {
                let place = self.place(path);
                self.line(&format!("{} > {place}", printf(text)));
            }
            (_, None) => {
                let place = self.place(path);
                self.line(&format!("# {length} bytes that may be secret and are not shown."));
                self.line(&format!(": > {place}"));
            }
        }
    }

    fn pivot(&mut self) {
        self.pivoted = true;
        self.line("# The tools that are still needed are the host's, and its root goes away. The working directory leads to");
        self.line(
            "# them until the end, by a path that begins with `..`; they are run by the host's loader.",
        );
        self.line("path_of() { eval \"echo \\$tool_$1\"; }");
        self.line("tools=");
        self.line("for tool in setpriv unshare umount prlimit mount; do");
        self.line("    path=$(realpath \"$(command -v $tool)\")");
        self.line("    eval \"tool_$tool=\\$path\"");
        self.line("    tools=\"$tools $path\"");
        self.line("done");
        self.line("needed=$(ldd $tools)");
        self.line("loader=$(echo \"$needed\" | sed -n 's|^[[:space:]]*\\(/[^ ]*\\) (.*|\\1|p' | head -n 1)");
        self.line("libraries=$(echo \"$needed\" | sed -n 's|.*=> \\(/[^ ]*\\)/[^/ ]* (.*|..\\1|p' | sort -u | paste -sd:)");
        self.line("host=\"..$(realpath \"$loader\") --library-path $libraries\"");
        self.line("cd /usr");
        self.line("pivot_root \"$root\" \"$root\"");
    }

    /// What `setpriv(1)` has options for.
    fn identity(&mut self, call: &Call) {
        let option = match call {
            Call::SetIds { call: "setresuid", ids } if self.pivoted => format!("--reuid={}", ids[1]),
            Call::SetIds { ids, .. } if self.pivoted => format!("--regid={}", ids[1]),
            Call::Setgroups { groups: Some(groups) } if self.pivoted => {
                let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
                if groups.is_empty() {
                    "--clear-groups".to_owned()
                } else {
                    format!("--groups={}", groups.join(","))
                }
            }
            Call::DropBounding { capabilities } => {
                let names: Vec<String> =
                    capabilities.iter().map(|number| format!("-{}", flags::capability(*number))).collect();
                format!("--bounding-set={}", names.join(","))
            }
            Call::Prctl { option: Control::NoNewPrivileges, argument: 1 } => "--no-new-privs".to_owned(),
            _ => return,
        };
        self.options.push(option);
    }

    fn execute(&mut self, call: &Call) {
        let Call::Execve { argv, environment, directory, .. } = call else { return };
        let argv: &[String] = argv.as_deref().unwrap_or_default();
        let program = match argv {
            [name, word, _, _, program @ ..] if name == container::program::NAME && word == "pid1" => program,
            program => program,
        };
        let words: Vec<String> = program.iter().map(|word| quote(word)).collect();
        self.line(&format!("[ $# -gt 0 ] || set -- {}", words.join(" ")));
        self.line("unset stage data scratch PATH");
        for variable in environment.iter().flatten() {
            let name = variable.split('=').next().unwrap_or_default();
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if plain && !name.starts_with(|c: char| c.is_ascii_digit()) && !name.is_empty() {
                self.line(&format!("export {}", quote(variable)));
            }
        }
        self.line("# The program's identity; the last step is out of the host's directory.");
        self.line("exec $host \"..$(path_of setpriv)\" \\");
        for option in std::mem::take(&mut self.options) {
            self.line(&format!("    {option} \\"));
        }
        let directory = directory.as_deref().unwrap_or("/");
        self.line(&format!("    $host \"..$(path_of unshare)\" --wd={} \"$@\"", quote(directory)));
        self.line(";;");
    }
}

#[cfg(test)]
mod tests;
