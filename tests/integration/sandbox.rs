//! What a service sees and may do.

use std::os::unix::fs::MetadataExt;

use crate::harness::{Stack, is_root, skipped};

const SLEEPER: &str = "[services.a]\ncommand = [\"sleep\", \"1000\"]\n";

#[test]
fn every_namespace_is_its_own() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sleep\", \"1000\"]\n[services.b]\ncommand = [\"sleep\", \"1000\"]\n",
    );
    stack.up();
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let host = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let [a, b] = ["a", "b"].map(|service| stack.sh(service, &format!("readlink /proc/self/ns/{kind}")));
        assert_ne!(host.to_str().unwrap(), a, "{kind}");
        assert_eq!(a == b, kind == "user", "{kind}: {a} {b}");
        // What is started later is in the same ones.
        assert_eq!(a, stack.sh("a", &format!("readlink /proc/1/ns/{kind}")), "{kind}");
    }
    let map = stack.sh("a", "cat /proc/self/uid_map");
    let map: Vec<Vec<u32>> = map
        .lines()
        .map(|line| line.split_whitespace().map(|number| number.parse().unwrap()).collect())
        .collect();
    if is_root() {
        // Root inside is nobody that another range covers, and not root.
        assert!(map.len() == 1 && map[0][0] == 0 && map[0][1] >= 65536 && map[0][2] == 65536, "{map:?}");
        let subordinate = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
        for line in subordinate.lines() {
            let range: Vec<u32> = line.split(':').skip(1).filter_map(|field| field.parse().ok()).collect();
            let &[start, count] = &range[..] else { continue };
            assert!(map[0][1] >= start + count || map[0][1] + map[0][2] <= start, "{line} overlaps {map:?}");
        }
    } else {
        assert_eq!(map[0], [0, rustix::process::geteuid().as_raw(), 1]);
        assert!(map[1][0] == 1 && map[1][2] >= 65535, "{map:?}");
    }
}

/// Value of a line of `/proc/PID/status`.
fn status(text: &str, key: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in {text}")).trim().to_owned()
}

#[test]
fn privileges_are_dockers_at_most() {
    // No shell: it ignores signals of its own accord.
    let stack = Stack::new(
        r#"
[services.a]
command = ["cat", "/proc/self/status"]
[services.bare]
command = ["cat", "/proc/self/status"]
init = false
[services.stays]
command = ["sleep", "1000"]
"#,
    );
    stack.up();
    let seen = ["a", "bare"].map(|service| stack.wait_log(service, "nonvoluntary"));
    let joined = stack.run(&["exec", "stays", "cat", "/proc/self/status"]).ok();
    for text in seen.iter().chain([&joined]) {
        for set in ["CapBnd", "CapEff", "CapPrm"] {
            assert_eq!(status(text, set), "00000000a80425fb", "{set}");
        }
        for set in ["CapInh", "CapAmb", "SigBlk", "SigIgn"] {
            assert_eq!(status(text, set), "0000000000000000", "{set}");
        }
        assert_eq!(status(text, "NoNewPrivs"), "1");
        assert_eq!(status(text, "Seccomp"), "2");
    }
    let refused = |script: &str| {
        let ended = stack.exec("stays", script);
        let told =
            ["Operation not permitted", "permission denied"].iter().any(|text| ended.err.contains(text));
        assert!(told, "{script}: {ended:?}");
    };
    refused("unshare -U true");
    refused("unshare -m true");
    refused("mount -t tmpfs none /tmp");
    refused("umount /proc/sys");
    refused("nsenter -t 1 -m true");
    refused("chroot / mount -o remount,rw /sys");
    refused("mknod /tmp/m b 8 0");
    refused("hostname other");
    refused("date -s 2020-01-01");
}

/// System calls that no shell can make, by perl from the host's /usr.
#[test]
fn system_calls_are_filtered() {
    if !std::path::Path::new("/usr/bin/perl").exists() {
        return skipped("system_calls_are_filtered", "no /usr/bin/perl");
    }
    let stack = Stack::new("[services.a]\ncommand = [\"sleep\", \"1000\"]\nvolumes = [\"/usr:/usr:ro\"]\n");
    for link in ["lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), stack.path("rootfs").join(link)).unwrap();
    }
    stack.up();
    let call = |number: u32, arguments: &str| {
        let perl = format!("$r = syscall({number}, {arguments}); print $r < 0 ? $!+0 : \"done\"");
        stack.sh("a", &format!("perl -e '{perl}'"))
    };
    // Numbers that are the same everywhere: clone3 as if it were not there, so that libraries fall back to clone.
    assert_eq!(call(435, "0, 0"), rustix::io::Errno::NOSYS.raw_os_error().to_string());
    let not_permitted = rustix::io::Errno::PERM.raw_os_error().to_string();
    for (number, arguments) in
        [(425, "1, 0"), (428, "-100, 0, 1"), (430, "0, 0"), (432, "0, 0, 0"), (442, "-1, 0, 0, 0, 0")]
    {
        // io_uring_setup, open_tree, fsopen, fsmount, mount_setattr
        let result = call(number, arguments);
        assert!(result == not_permitted || result == "38", "system call {number}: {result}");
    }
    // pidfd_open: not everything.
    assert_eq!(call(434, "0+$$, 0"), "done");
}

#[test]
fn kernel_interfaces_are_masked() {
    let stack = Stack::new(SLEEPER);
    stack.up();
    for file in ["kcore", "keys", "timer_list", "interrupts", "latency_stats", "sched_debug"] {
        let script = format!("[ ! -e /proc/{file} ] || head -c 100 /proc/{file} | wc -c");
        assert!(["", "0"].contains(&&*stack.sh("a", &script)), "{file}");
    }
    for directory in
        ["/proc/acpi", "/proc/scsi", "/proc/asound", "/sys/firmware", "/sys/devices/virtual/powercap"]
    {
        assert_eq!(stack.sh("a", &format!("[ ! -d {directory} ] || ls -A {directory}")), "", "{directory}");
    }
    for file in [
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/swappiness",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_seqnum",
    ] {
        let ended = stack.exec("a", &format!("echo 1 > {file}"));
        assert_ne!(ended.code, 0, "{file} is writable");
    }
    assert!(stack.exec("a", "mkdir /sys/fs/cgroup/x").code != 0);
    // Only its own processes: init, sleep, and the shell with its child.
    let pids = stack.sh("a", "ls /proc | grep -c '^[0-9]'").parse::<u32>().unwrap();
    assert!((3..=6).contains(&pids), "{pids} processes");
}

#[test]
fn devices_are_the_ones_promised() {
    let stack = Stack::new("[services.a]\ncommand = [\"sleep\", \"1000\"]\nshm_size = \"8m\"\n");
    stack.up();
    assert_eq!(
        stack.sh("a", "ls /dev | xargs"),
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    assert_eq!(
        stack.sh("a", "echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c"),
        "3\n3"
    );
    assert_ne!(stack.exec("a", "echo x > /dev/full").code, 0);
    assert_eq!(stack.sh("a", "stat -c %a /dev/shm; echo x > /dev/shm/x; cat /dev/shm/x"), "1777\nx");
    let size = stack.sh("a", "df -k /dev/shm | tail -n1 | awk '{print $2}'");
    assert_eq!(size, "8192");
    // A terminal of its own, by a private devpts.
    let script = "test -t 0 && test -t 1 && test -t 2 && tty && ls /dev/pts | xargs && stat -c %g $(tty)";
    let terminal = stack.run(&["exec", "-t", "a", "sh", "-c", script]).ok();
    assert_eq!(terminal.replace('\r', ""), "/dev/pts/0\n0 ptmx\n5\n");
    assert_eq!(stack.sh("a", "mount | grep -c ' /dev/pts type devpts '"), "1");
}

#[test]
fn no_stray_descriptor_reaches_a_service() {
    let stack = Stack::new(
        r#"
[services.a]
command = ["sh", "-c", "ls /proc/self/fd; exec sleep 1000"]
[services.bare]
command = ["ls", "/proc/self/fd"]
init = false
"#,
    );
    // Held open by whoever starts it.
    let held = std::fs::File::open("/etc/passwd").unwrap();
    let held = rustix::io::fcntl_dupfd_cloexec(&held, 50).unwrap();
    rustix::io::fcntl_setfd(&held, rustix::io::FdFlags::empty()).unwrap();
    stack.up();
    // 3 is the directory that is listed.
    for service in ["a", "bare"] {
        assert_eq!(stack.wait_log(service, "3\n"), "0\n1\n2\n3\n");
    }
    assert_eq!(stack.sh("a", "ls /proc/self/fd | xargs"), "0 1 2 3");
    // Nor through init: its descriptors are none of the host's files.
    let of_init =
        stack.sh("a", "ls -l /proc/1/fd | grep -v -e pipe: -e /dev/null -e signalfd -e total || true");
    assert_eq!(of_init, "");
    drop(held);
}

#[test]
fn names_and_root_belong_to_the_container() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sleep\", \"1000\"]\nhostname = \"box\"\n\
         [services.b]\ncommand = [\"sleep\", \"1000\"]\n",
    );
    stack.up();
    assert_eq!(stack.sh("a", "hostname; cat /etc/hostname"), "box\nbox");
    assert_eq!(stack.sh("b", "hostname"), "b");
    let address = stack.sh("a", "ip -4 -o addr show scope global | awk '{print $4}' | cut -d/ -f1");
    assert!(stack.sh("a", "cat /etc/hosts").contains(&format!("{address}\tbox")));
    let gateway = address.rsplit_once('.').unwrap().0;
    assert!(stack.sh("a", "cat /etc/resolv.conf").starts_with(&format!("nameserver {gateway}.")));
    // The host's files are nowhere: not above the root, not through PID 1, not among the mounts.
    let file = stack.path("stack.toml");
    let file = file.display();
    for root in ["", "/..", "/../../..", "/proc/1/root", "/proc/1/cwd", "/proc/self/root/.."] {
        assert_eq!(
            stack.sh("a", &format!("[ ! -e {root}{file} ] && ls {root}/ | grep -c '^bin$'")),
            "1",
            "{root}"
        );
    }
    assert_eq!(stack.sh("a", "awk '$5 == \"/\" {print $9}' /proc/self/mountinfo | xargs"), "overlay");
    // The program that init came from cannot be opened for writing (CVE-2019-5736).
    assert_ne!(stack.exec("a", "echo x >> /proc/1/exe").code, 0);
}

#[test]
fn a_read_only_root() {
    let stack = Stack::new(
        "[services.a]\ncommand = [\"sleep\", \"1000\"]\nread_only = true\ntmpfs = [\"/tmp:size=1m,mode=0700\"]\n",
    );
    stack.up();
    let ended = stack.exec("a", "touch /x");
    assert!(ended.code != 0 && ended.err.contains("Read-only"), "{ended:?}");
    assert_eq!(
        stack.sh("a", "touch /tmp/x && stat -c %a /tmp && df -k /tmp | tail -n1 | awk '{print $2}'"),
        "700\n1024"
    );
    assert_ne!(stack.exec("a", "dd if=/dev/zero of=/tmp/big bs=1k count=2000").code, 0);
}

#[test]
fn capabilities_by_name() {
    let stack = Stack::new(
        r#"
[services.few]
command = ["sleep", "1000"]
cap_drop = ["ALL"]
cap_add = ["CHOWN", "NET_BIND_SERVICE"]
[services.more]
command = ["sleep", "1000"]
cap_add = ["SYS_ADMIN"]
cap_drop = ["CAP_NET_RAW"]
[services.user]
command = ["sleep", "1000"]
user = "app"
"#,
    );
    stack.up();
    let sets = |service| stack.sh(service, "grep -e CapBnd -e CapEff /proc/self/status | awk '{print $2}'");
    assert_eq!(sets("few"), "0000000000000401\n0000000000000401");
    assert_eq!(sets("more"), "00000000a82405fb\n00000000a82405fb");
    // Order in the file: CapEff, CapBnd.
    assert_eq!(sets("user"), "0000000000000000\n00000000a80425fb");
    assert_eq!(stack.sh("more", "mount -t tmpfs none /tmp && echo mounted"), "mounted");
}

#[test]
fn landlock_keeps_a_service_to_its_files() {
    let file = r#"
[services.a]
command = ["sleep", "1000"]
landlock = { read = ["/"], write = ["/work", "/dev"] }
volumes = ["work:/work"]
tmpfs = ["/other"]
[services.b]
command = ["sleep", "1000"]
landlock = { read = ["/bin", "/etc/passwd"], write = ["/work"] }
volumes = ["work:/work"]
[volumes.work]
"#;
    let stack = Stack::new(file);
    let up = stack.run(&["up", "-d"]);
    if up.code != 0 && up.err.contains("Linux 6.2") {
        up.fails(1, &["restrict files by Landlock"]);
        return skipped(
            "landlock_keeps_a_service_to_its_files",
            "this kernel's Landlock is missing or too old",
        );
    }
    up.ok();
    // Root inside, with a root file system that it could write to.
    for denied in
        ["echo x > /x", "mkdir /d", "echo x > /other/x", "rm /etc/passwd", "truncate -s 0 /etc/passwd"]
    {
        let ended = stack.exec("a", denied);
        assert!(ended.code != 0 && ended.err.contains("ermission denied"), "{denied}: {ended:?}");
    }
    let inside =
        "echo x > /work/x && mkdir /work/d && mv /work/x /work/d/y && cat /work/d/y && echo > /dev/null";
    assert_eq!(stack.sh("a", inside), "x");
    let program = stack.exec("b", "cp /bin/true /work/true && chmod 755 /work/true && /work/true");
    assert!(program.code == 126 && program.err.contains("ermission denied"), "{program:?}");
    assert_eq!(stack.sh("b", "head -c 4 /etc/passwd"), "root");
    for denied in ["cat /etc/group", "ls /", "ls /tmp", "echo > /dev/null"] {
        let ended = stack.exec("b", denied);
        assert!(ended.code != 0 && ended.err.contains("ermission denied"), "{denied}: {ended:?}");
    }
    stack.rewrite(&file.replace("/etc/passwd", "/etc/no-such-file"));
    stack
        .run(&["up", "-d"])
        .fails(1, &["restrict files by Landlock: allow `/etc/no-such-file`", "No such file"]);
}

#[test]
fn secrets_are_files_and_nothing_else() {
    let stack = Stack::new(
        r#"
[services.a]
command = ["sleep", "1000"]
secrets = ["token", { source = "word", target = "/etc/app/word", uid = 1000, gid = 2000, mode = 0o400 }]
[secrets.token]
file = "token.txt"
[secrets.word]
environment = "SECRET_WORD"
"#,
    );
    stack.write("token.txt", "t0p-s3cret-file");
    stack.write(".env", "SECRET_WORD=t0p-s3cret-word\n");
    stack.up();
    assert_eq!(
        stack.sh("a", "cat /run/secrets/token; stat -c ' %u %g %a' /run/secrets/token"),
        "t0p-s3cret-file 0 0 444"
    );
    assert_eq!(
        stack.sh("a", "cat /etc/app/word; stat -c ' %u %g %a' /etc/app/word"),
        "t0p-s3cret-word 1000 2000 400"
    );
    assert_ne!(stack.exec("a", "echo x > /run/secrets/token").code, 0);
    for arguments in
        [&["inspect", "a"][..], &["ps", "--format", "json"], &["plan"], &["plan", "--format", "json"]]
    {
        let out = stack.run(arguments).ok();
        assert!(!out.contains("t0p-s3cret"), "{arguments:?} tells a secret:\n{out}");
    }
    assert_eq!(stack.sh("a", "env | grep -c s3cret || true"), "0");
    // Neither in the arguments or the environment of any process of ours, nor in a file of ours.
    for pid in stack.processes() {
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains("t0p-s3cret"), "{pid}/{file}");
        }
    }
    for directory in ["d", "r"] {
        let mut grep = stack.command_of("grep");
        let found = grep.args(["-rlsa", "t0p-s3cret"]).arg(stack.path(directory)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    }
}

#[test]
fn limits_and_kernel_settings() {
    let stack = Stack::new(
        r#"
[services.a]
command = ["sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c; echo end; exec sleep 1000"]
ulimits = { nofile = { soft = 100, hard = 200 }, core = 0 }
sysctls = { "net.ipv4.ip_unprivileged_port_start" = "80", "net.core.somaxconn" = "77" }
"#,
    );
    stack.up();
    assert_eq!(stack.wait_log("a", "end"), "100\n200\n0\nend\n");
    assert_eq!(stack.sh("a", "ulimit -Sn; ulimit -Hn"), "100\n200");
    assert_eq!(
        stack.sh("a", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/core/somaxconn"),
        "80\n77"
    );
    // One that is not a namespace's own is refused, with its name.
    let stack = Stack::new("[services.a]\ncommand = [\"true\"]\nsysctls = { \"kernel.panic\" = \"1\" }\n");
    stack.run(&["up", "-d"]).fails(1, &["`a`", "kernel.panic"]);
}

#[test]
fn users_groups_and_working_directories() {
    let stack = Stack::new(
        r#"
[services.name]
command = ["sleep", "1000"]
user = "app"
working_dir = "/made/on/demand"
[services.numbers]
command = ["sleep", "1000"]
user = "1234:2000"
[services.group]
command = ["sleep", "1000"]
user = "app:extra"
"#,
    );
    stack.up();
    let id = |service| stack.sh(service, "id -u; id -g; id -G; echo $HOME; pwd");
    assert_eq!(id("name"), "1000\n1000\n1000 2000\n/home/app\n/made/on/demand");
    assert_eq!(id("numbers"), "1234\n2000\n2000\n/\n/");
    assert_eq!(id("group"), "1000\n2000\n2000\n/home/app\n/");
    let ended = stack.run(&[
        "exec",
        "-u",
        "0:0",
        "-w",
        "/tmp",
        "-e",
        "A=b c",
        "name",
        "sh",
        "-c",
        "id -u; pwd; echo $A",
    ]);
    assert_eq!(ended.ok(), "0\n/tmp\nb c\n");
    let stack = Stack::new("[services.a]\ncommand = [\"true\"]\nuser = \"nobody-such\"\n");
    stack.run(&["up", "-d"]).fails(1, &["`a`", "nobody-such"]);
}

#[test]
fn bind_mounts_belong_to_the_caller() {
    let stack = Stack::new(
        r#"
[services.a]
command = ["sleep", "1000"]
volumes = ["./shared:/shared", "./shared:/fixed:ro"]
"#,
    );
    stack.write("shared/theirs", "from the host");
    stack.up();
    assert_eq!(stack.sh("a", "cat /shared/theirs; stat -c ' %u' /shared/theirs"), "from the host 0");
    stack.sh("a", "echo ours > /shared/ours; mkdir /shared/sub");
    for made in ["ours", "sub"] {
        let meta = std::fs::metadata(stack.path("shared").join(made)).unwrap();
        assert_eq!(meta.uid(), rustix::process::geteuid().as_raw(), "{made}");
        assert_eq!(meta.gid(), rustix::process::getegid().as_raw(), "{made}");
    }
    assert_eq!(stack.sh("a", "cat /fixed/ours"), "ours");
    let ended = stack.exec("a", "touch /fixed/x");
    assert!(ended.code != 0 && ended.err.contains("Read-only"), "{ended:?}");
    // A device or a set-user-id program in it is nothing special.
    assert_eq!(
        stack.sh("a", "mount | grep -c -e ' /shared .*nosuid,nodev' -e ' /fixed .*ro,nosuid,nodev'"),
        "2"
    );
}

#[test]
fn container_root_is_not_root_on_disk() {
    if !is_root() {
        return skipped("container_root_is_not_root_on_disk", "needs root");
    }
    let stack =
        Stack::new("[services.a]\ncommand = [\"sleep\", \"1000\"]\nvolumes = [\"v:/data\"]\n[volumes.v]\n");
    stack.up();
    stack.sh("a", "touch /file /data/file");
    let layer = stack.data().join("c").join(&stack.name).join("a/u/file");
    let volume = stack.data().join("v").join(&stack.name).join("v/file");
    for path in [layer, volume] {
        let uid = std::fs::metadata(&path).unwrap().uid();
        assert!(uid >= 65536, "{} belongs to {uid}", path.display());
    }
    let pid = stack.pid("a");
    let status_file = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(!status(&status_file, "Uid").split_whitespace().any(|uid| uid == "0"));
}

#[test]
fn mount_points_behind_links_are_made() {
    let stack = Stack::new(
        r#"
[services.a]
command = ["sleep", "1000"]
volumes = ["v:/var/lib/data"]
tmpfs = ["/var/run/app"]
[volumes.v]
"#,
    );
    // As distributions have them: some lead nowhere before something is started there.
    for (link, to) in [
        ("etc/resolv.conf", "../run/resolve/stub-resolv.conf"),
        ("var/run", "/run"),
        ("var/lib", "../srv/./lib"),
    ] {
        let link = stack.path("rootfs").join(link);
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(to, link).unwrap();
    }
    stack.up();
    assert!(stack.sh("a", "cat /etc/resolv.conf /run/resolve/stub-resolv.conf").starts_with("nameserver"));
    stack.sh("a", "touch /srv/lib/data/x && ls /var/lib/data/x");
    let mounts = stack.sh("a", "awk '{print $5}' /proc/self/mountinfo");
    for path in ["/run/resolve/stub-resolv.conf", "/run/app", "/srv/lib/data"] {
        assert!(mounts.lines().any(|line| line == path), "{path}: {mounts}");
    }
}
