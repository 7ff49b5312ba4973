use std::time::SystemTime;

use super::super::step::{Outcome, Who};
use super::super::{Peer, Request};
use super::*;

fn step(role: Role, pid: i32, call: Call) -> Step {
    let container = (role == Role::Child).then(|| "web".to_owned());
    let who = Who { pid, role, container };
    Step { time: SystemTime::UNIX_EPOCH, who, call, outcome: Outcome::Returned(0), made: None }
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn copy(path: &str) -> Option<Object> {
    let origin = Origin::Copy { path: path.to_owned(), recursive: false };
    Some(Object { origin, attributes: libc::MOUNT_ATTR_NOSUID })
}

/// The steps of a small container.
fn steps() -> Vec<Step> {
    let clone = |flags: i32| Call::Clone { call: "clone3", flags: flags as u64, cgroup: None };
    let netlink =
        |namespace: &str, requests| Call::Netlink { call: "sendto", namespace: some(namespace), requests };
    let link = |name: &str, kind: &str, peer, controller| Request::Link {
        name: name.to_owned(),
        kind: some(kind),
        peer,
        controller,
        up: true,
        mac: None,
        mtu: None,
    };
    let peer = |namespace: &str| Some(Peer { name: "eth0".into(), namespace: some(namespace), mac: None });
    let of_stack = vec![
        link("br0", "bridge", None, None),
        link("br1", "bridge", None, None),
        link("v0", "veth", peer("net:[2]"), some("br0")),
        link("v1", "veth", peer("net:[3]"), some("br1")),
    ];
    let address = Request::Address { link: "eth0".into(), address: "10.0.0.2/24".into(), delete: false };
    let hub = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWPID;
    vec![
        Step { made: Some(10), ..step(Role::Supervisor, 9, clone(hub)) },
        step(
            Role::Supervisor,
            9,
            Call::Write { path: "/proc/10/uid_map".into(), text: some("0 5000 100\n"), length: 11 },
        ),
        step(Role::Hub, 10, netlink("net:[1]", of_stack)),
        step(Role::Hub, 10, netlink("net:[2]", vec![address])),
        Step { made: Some(11), ..step(Role::Hub, 10, clone(libc::CLONE_NEWPID | libc::CLONE_NEWUTS)) },
        step(Role::Child, 11, Call::Setns { to: some("net:[2]"), flags: libc::CLONE_NEWNET as u64 }),
        step(Role::Child, 11, Call::Unshare { flags: libc::CLONE_NEWCGROUP as u64 }),
        step(Role::Child, 11, Call::Sethostname { name: some("box") }),
        step(
            Role::Child,
            11,
            Call::Mount {
                source: some("overlay"),
                target: some("mnt/root"),
                kind: some("overlay"),
                flags: 0,
                data: some("userxattr,lowerdir=l/a,upperdir=c/s/web/u,workdir=c/s/web/w"),
            },
        ),
        step(
            Role::Child,
            11,
            Call::MoveMount { from: copy("/dev/null"), to: some("/data/mnt/root/dev/null") },
        ),
        step(Role::Child, 11, Call::PivotRoot { new: some("/data/mnt/root"), old: some("/data/mnt/root") }),
        step(Role::Child, 11, Call::DropBounding { capabilities: vec![21] }),
        step(Role::Child, 11, Call::SetIds { call: "setresuid", ids: [33; 3] }),
        step(
            Role::Child,
            11,
            Call::Execve {
                call: "execveat",
                path: some("/memfd:inception-init"),
                argv: Some(["inception-init", "pid1", "0", "3", "sleep", "1 0"].map(str::to_owned).to_vec()),
                environment: Some(vec!["A=b c".to_owned(), "9=x".to_owned()]),
                directory: some("/srv"),
            },
        ),
    ]
}

#[track_caller]
fn has(script: &str, line: &str) {
    assert!(script.lines().any(|have| have.trim() == line), "no `{line}` in\n{script}");
}

#[test]
fn each_step_is_a_command() {
    let script = write(&steps(), Some("web"));
    for line in [
        "data=/data",
        r"printf '0 5000 100\n' > /proc/$hub/uid_map",
        r#"chown 5000:5000 "$scratch" "$scratch/mapped""#,
        "unshare --user --pid --net --fork --kill-child --keep-caps \\",
        "ip link add br0 type bridge",
        r#"ip link add v0 type veth peer name eth0 netns "$scratch/net""#,
        "ip link set v0 master br0",
        r#"nsenter --net="$scratch/net" ip address add 10.0.0.2/24 dev eth0"#,
        r#"exec nsenter --net="$scratch/net" unshare --pid --uts --cgroup --fork --kill-child \"#,
        "hostname box",
        r#"mount -t overlay -o userxattr,lowerdir=l/a,upperdir="$scratch/upper",workdir="$scratch/work" overlay mnt/root"#,
        r#"mount --bind "/dev/null" "$root/dev/null""#,
        r#"mount -o remount,bind,nosuid "$root/dev/null""#,
        r#"pivot_root "$root" "$root""#,
        "[ $# -gt 0 ] || set -- sleep '1 0'",
        "export 'A=b c'",
        "--bounding-set=-sys_admin \\",
        "--reuid=33 \\",
        r#"$host "..$(path_of unshare)" --wd=/srv "$@""#,
    ] {
        has(&script, line);
    }
    // What belongs to other containers, and what no shell takes as a name.
    for word in ["br1", "v1", "export 9"] {
        assert!(!script.contains(word), "{word} in\n{script}");
    }
}

#[test]
fn its_cgroup_goes_with_it() {
    let mut steps = steps();
    let group = "/sys/fs/cgroup/inception-run-s/web";
    for step in &mut steps {
        if let Call::Clone { cgroup, flags, .. } = &mut step.call
            && *flags & libc::CLONE_NEWUSER as u64 == 0
        {
            *cgroup = some(group);
        }
    }
    let mkdir = |path: &str| step(Role::Supervisor, 9, Call::Mkdir { path: some(path), mode: 0o755 });
    steps.splice(0..0, ["/sys/fs/cgroup/inception-run-s", group, "/sys/fs/cgroup/other"].map(mkdir));
    let script = write(&steps, None);
    let removed: Vec<&str> = script.lines().filter_map(|line| line.trim().strip_prefix("rmdir ")).collect();
    assert_eq!(removed, [group, "/sys/fs/cgroup/inception-run-s"]);
}

#[test]
fn a_shell_takes_it() {
    let script = write(&steps(), None);
    let mut shell = std::process::Command::new("sh");
    let mut child = shell.arg("-n").stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{script}");
}

#[test]
fn a_container_that_was_not_seen_is_said_to_be_so() {
    assert!(write(&steps(), Some("db")).contains("no steps of the container db were seen"));
    assert!(write(&[], None).contains("no steps of the container were seen"));
}
