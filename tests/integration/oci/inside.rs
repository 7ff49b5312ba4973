//! What a process finds in its container.

use std::fs;

use serde_json::json;

use super::bundle::{Bundle, namespace};
use crate::harness::{is_root, skipped};

/// The output of the container's process, which must succeed.
#[track_caller]
fn seen(bundle: &Bundle) -> String {
    bundle.run(&["run", &bundle.id]).ok()
}

#[test]
fn nothing_of_the_host_is_open_or_mounted() {
    let bundle = Bundle::new(
        "ls /proc/self/fd | tr '\\n' ' '; echo; readlink /proc/1/exe; pwd; cat /proc/self/mountinfo",
    );
    let text = seen(&bundle);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("0 1 2 3 "));
    assert_eq!(lines.next(), Some("/bin/busybox"));
    assert_eq!(lines.next(), Some("/"));
    let mounts: Vec<&str> = lines.collect();
    for mount in &mounts {
        let point = mount.split(' ').nth(4).unwrap();
        let known = ["/", "/proc", "/dev", "/sys"].iter().any(|known| {
            point == *known
                || point.starts_with(&format!("{}/", known.trim_end_matches('/'))) && *known != "/"
        });
        assert!(known, "{mount}");
    }
}

#[test]
fn each_namespace_is_new_when_asked_for() {
    let bundle = Bundle::new(
        "for kind in cgroup ipc mnt net pid time user uts; do readlink /proc/self/ns/$kind; done",
    );
    bundle.configure(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces
            .retain(|namespace| !["cgroup", "network", "time"].iter().any(|kind| namespace["type"] == *kind));
        namespaces.extend(["cgroup", "network", "time"].map(namespace));
        config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000_000, "nanosecs": 0}});
        config["process"]["args"][2] =
            format!("{}; cut -d. -f1 /proc/uptime", config["process"]["args"][2].as_str().unwrap()).into();
    });
    let text = seen(&bundle);
    let mut lines = text.lines();
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let inside = lines.next().unwrap();
        let shared = kind == "user" && is_root();
        assert_eq!(host.to_str().unwrap() == inside, shared, "{kind}");
    }
    let uptime: u64 = lines.next().unwrap().parse().unwrap();
    assert!(uptime > 1_000_000_000, "{uptime}");
}

#[test]
fn a_namespace_of_another_container_is_joined() {
    let first = Bundle::new("exec sleep 1000");
    first.configure(|config| config["hostname"] = "first".into());
    first.start();
    let pid = first.pid();
    let second = Bundle::new("hostname; readlink /proc/self/ns/ipc");
    second.configure(|config| {
        config.as_object_mut().unwrap().remove("hostname");
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            let name = match namespace["type"].as_str().unwrap() {
                "uts" => "uts",
                "ipc" => "ipc",
                "user" => "user",
                _ => continue,
            };
            namespace["path"] = format!("/proc/{pid}/ns/{name}").into();
        }
        let linux = config["linux"].as_object_mut().unwrap();
        linux.remove("uidMappings");
        linux.remove("gidMappings");
    });
    let ipc = fs::read_link(format!("/proc/{pid}/ns/ipc")).unwrap();
    assert_eq!(seen(&second), format!("first\n{}\n", ipc.display()));
    // A path that leads to another kind of thing.
    for path in ["/proc/self/ns/net", "/etc/passwd", "/no/such/file"] {
        second.configure(|config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.iter_mut().find(|namespace| namespace["type"] == "uts").unwrap()["path"] = path.into();
        });
        second.refuses(&["namespace"]);
    }
}

#[test]
fn the_process_is_as_described() {
    let bundle = Bundle::new(
        "id -u; id -g; id -G; umask; pwd; ulimit -Sn; ulimit -Hn; echo $A; hostname; \
         cat /proc/self/oom_score_adj; grep -E 'NoNewPrivs|CapBnd|CapEff|CapPrm|CapInh|CapAmb' /proc/self/status",
    );
    bundle.configure(|config| {
        let process = &mut config["process"];
        if is_root() {
            process["user"] = json!({"uid": 12, "gid": 34, "umask": 0o027, "additionalGids": [56, 78]});
        } else {
            process["user"] = json!({"uid": 0, "gid": 0, "umask": 0o027});
        }
        process["cwd"] = "/home/app".into();
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 55, "hard": 66}]);
        process["env"].as_array_mut().unwrap().push("A=b c".into());
        process["oomScoreAdj"] = 500.into();
        process["noNewPrivileges"] = true.into();
        let sets = json!(["CAP_KILL", "CAP_CHOWN"]);
        process["capabilities"] = json!({
            "bounding": sets, "permitted": sets, "effective": ["CAP_KILL"], "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL"],
        });
        config["hostname"] = "its-name".into();
    });
    let expected_user = if is_root() { "12\n34\n34 56 78\n" } else { "0\n0\n" };
    let text = seen(&bundle);
    assert!(text.starts_with(expected_user), "{text}");
    for part in [
        "0027\n/home/app\n55\n66\nb c\nits-name\n500\n",
        "CapInh:\t0000000000000020",
        "CapBnd:\t0000000000000021",
        "CapAmb:\t0000000000000020",
        "NoNewPrivs:\t1",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    if is_root() {
        // Not root inside: what it has after execve(2) are the ambient ones.
        assert!(text.contains("CapEff:\t0000000000000020"), "{text}");
    }
}

#[test]
fn ambient_capabilities_that_cannot_be_are_left_out() {
    // As `runc spec` and `crun spec` have them.
    let bundle = Bundle::new("grep -E 'CapEff|CapAmb' /proc/self/status");
    bundle.configure(|config| {
        let set = json!(["CAP_KILL"]);
        config["process"]["capabilities"] =
            json!({"bounding": set, "effective": set, "permitted": set, "ambient": set});
    });
    assert_eq!(seen(&bundle), "CapEff:\t0000000000000020\nCapAmb:\t0000000000000000\n");
}

#[test]
fn mounts_are_as_described() {
    let bundle = Bundle::new(
        "grep -E ' /(data|ro|tmp/made) ' /proc/self/mountinfo | cut -d' ' -f5,6; cat /data/file /ro/file; \
         touch /ro/x 2>&1; touch /data/y; stat -c %a /tmp/made; ls /file-inside",
    );
    fs::create_dir(bundle.path("host")).unwrap();
    fs::write(bundle.path("host/file"), "from the host\n").unwrap();
    fs::write(bundle.path("single"), "").unwrap();
    bundle.configure(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        let host = bundle.path("host");
        mounts.push(json!({"destination": "/data", "type": "bind", "source": host, "options": ["rbind", "nosuid", "nodev"]}));
        // A relative source is below the bundle.
        mounts.push(json!({"destination": "/ro", "source": "host", "options": ["bind", "ro"]}));
        mounts.push(json!({"destination": "/tmp/made", "type": "tmpfs", "source": "tmpfs", "options": ["mode=711", "noexec"]}));
        mounts.push(json!({"destination": "/file-inside", "source": bundle.path("single"), "options": ["bind"]}));
    });
    let text = seen(&bundle);
    for line in ["from the host\nfrom the host\n", "Read-only file system", "\n711\n", "/file-inside\n"] {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
    let options = |point: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{point} ")))
            .unwrap_or_else(|| panic!("{point}: {text}"));
        line.split_once(' ').unwrap().1.split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(options("/data").contains(&"rw".to_owned()) && options("/data").contains(&"nosuid".to_owned()));
    assert!(options("/ro").contains(&"ro".to_owned()));
    assert!(options("/tmp/made").contains(&"noexec".to_owned()));
    assert!(bundle.path("host/y").exists());
}

#[test]
fn paths_are_masked_and_read_only() {
    let bundle = Bundle::new(
        "cat /secret; ls /hidden; touch /etc/x 2>&1; echo 1 >/proc/sys/kernel/ngroups_max; cat /proc/kcore | wc -c; \
         touch /fine && echo fine",
    );
    fs::write(bundle.path("rootfs/secret"), "leaked").unwrap();
    fs::create_dir(bundle.path("rootfs/hidden")).unwrap();
    fs::write(bundle.path("rootfs/hidden/leaked"), "").unwrap();
    bundle.configure(|config| {
        let masked = config["linux"]["maskedPaths"].as_array_mut().unwrap();
        masked.extend(["/secret", "/hidden", "/not/there"].map(Into::into));
        config["linux"]["readonlyPaths"]
            .as_array_mut()
            .unwrap()
            .extend(["/etc", "/not/there"].map(Into::into));
    });
    let text = seen(&bundle);
    assert!(!text.contains("leaked"), "{text}");
    assert!(text.contains("Read-only file system") && text.ends_with("0\nfine\n"), "{text}");
}

#[test]
fn a_read_only_root_stays_so() {
    let bundle = Bundle::new("touch /x 2>&1; touch /dev/shm/x && echo fine");
    bundle.configure(|config| config["root"]["readonly"] = true.into());
    let text = seen(&bundle);
    assert!(text.contains("Read-only file system") && text.ends_with("fine\n"), "{text}");
}

#[test]
fn links_in_the_root_lead_nowhere() {
    let bundle = Bundle::new("cat /data/file; ls /");
    fs::create_dir(bundle.path("outside")).unwrap();
    fs::create_dir(bundle.path("host")).unwrap();
    fs::write(bundle.path("host/file"), "right\n").unwrap();
    let outside = bundle.path("outside");
    // An absolute link, one that climbs, and one in the middle of a path.
    let links = [
        ("absolute", outside.to_str().unwrap().to_owned()),
        ("climbs", format!("../../../../../../..{}", outside.display())),
        ("chain", "climbs".to_owned()),
    ];
    for (name, to) in &links {
        std::os::unix::fs::symlink(to, bundle.path("rootfs").join(name)).unwrap();
    }
    bundle.configure(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/data", "source": bundle.path("host"), "options": ["bind"]}));
        for destination in ["/absolute", "/climbs/sub/dir", "/chain/x", "/../../../escape"] {
            mounts.push(
                json!({"destination": destination, "source": bundle.path("host"), "options": ["bind"]}),
            );
        }
    });
    let text = seen(&bundle);
    assert!(text.starts_with("right\n"), "{text}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!bundle.path("escape").exists());
}

#[test]
fn proc_is_proc_and_nothing_else() {
    // CVE-2019-16884 and its kin: what the image put where /proc or its files are to be must not be believed.
    for prepare in ["link", "file"] {
        let bundle = Bundle::new("true");
        let proc = bundle.path("rootfs/proc");
        fs::create_dir_all(bundle.path("rootfs/fake")).unwrap();
        match prepare {
            "link" => std::os::unix::fs::symlink("/fake", &proc).unwrap(),
            _ => fs::write(&proc, "").unwrap(),
        }
        fs::remove_file(bundle.path("log")).ok();
        let ended = bundle.run(&["run", &bundle.id]);
        assert_eq!(ended.code, 1, "{prepare}: {ended:?}");
        bundle.failed(&ended, &["/proc"]);
        bundle.nothing_left();
    }
    // A volume over it: what we write to /proc ourselves must not go there.
    let bundle = Bundle::new("true");
    let file = bundle.path("fake/sys/net/core/somaxconn");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "untouched").unwrap();
    bundle.configure(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/proc", "source": bundle.path("fake"), "options": ["bind"]}));
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(namespace("network"));
        config["linux"]["sysctl"] = json!({"net.core.somaxconn": "77"});
    });
    bundle.run(&["run", &bundle.id]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "untouched");
}

#[test]
fn the_working_directory_is_inside() {
    // CVE-2024-21626: a directory of the host through a descriptor that was left open.
    for number in 3..12 {
        let bundle = Bundle::new("true");
        bundle.configure(|config| config["process"]["cwd"] = format!("/proc/self/fd/{number}").into());
        let ended = bundle.run(&["run", &bundle.id]);
        assert_eq!(ended.code, 1, "{number}: {ended:?}");
        bundle.nothing_left();
        bundle.configure(|config| {
            config["process"]["cwd"] = "/".into();
            config["process"]["args"] = json!(["sleep", "1000"]);
        });
        bundle.start();
        let cwd = format!("/proc/self/fd/{number}");
        let ended = bundle.run(&["exec", "--cwd", &cwd, &bundle.id, "ls"]);
        assert_eq!(ended.code, 255, "{number}: {ended:?}");
    }
}

#[test]
fn our_program_cannot_be_reached() {
    // CVE-2019-5736: /proc/PID/exe of whoever enters must not be a file of the host that could be written.
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create();
    let exe = format!("/proc/{}/exe", bundle.pid());
    let shown = fs::read_link(&exe).unwrap();
    // In sealed memory, or on a read-only mount that is attached nowhere.
    assert!(
        shown.to_str().unwrap().starts_with("/memfd:") || shown.as_os_str() == "/",
        "{}",
        shown.display()
    );
    fs::OpenOptions::new().write(true).open(&exe).unwrap_err();
    bundle.ok("start");
}

#[test]
fn devices_are_the_default_ones() {
    let bundle = Bundle::new(
        "for device in null zero full random urandom tty; do test -c /dev/$device || echo no $device; done; \
         for link in fd stdin stdout stderr ptmx; do test -L /dev/$link || echo no $link; done; \
         echo x >/dev/null && head -c 4 /dev/zero | wc -c; ls /dev",
    );
    let text = seen(&bundle);
    assert!(text.starts_with("4\n"), "{text}");
    let allowed = [
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    ];
    for name in text.lines().skip(1) {
        assert!(allowed.contains(&name), "{name}");
    }
    if !is_root() {
        return skipped("devices_are_the_default_ones", "only root makes further ones");
    }
    let bundle = Bundle::new("stat -c '%F %t:%T %a %u:%g' /dev/own; cat /dev/own | head -c 3 | wc -c");
    bundle.configure(|config| {
        config["linux"]["devices"] = json!([
            {"path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4},
        ]);
        config["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
        ]);
        config["process"]["capabilities"]["effective"] = json!(["CAP_DAC_OVERRIDE"]);
        config["process"]["capabilities"]["permitted"] = json!(["CAP_DAC_OVERRIDE"]);
        config["process"]["capabilities"]["bounding"] = json!(["CAP_DAC_OVERRIDE"]);
        config["process"]["capabilities"].as_object_mut().unwrap().remove("ambient");
    });
    assert_eq!(seen(&bundle), "character special file 1:5 640 3:4\n3\n");
}

#[test]
fn kernel_settings_of_its_namespaces() {
    let bundle = Bundle::new("cat /proc/sys/net/core/somaxconn; hostname; cat /proc/sys/kernel/domainname");
    bundle.configure(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(namespace("network"));
        config["linux"]["sysctl"] = json!({"net.core.somaxconn": "77"});
        config["domainname"] = "its.domain".into();
    });
    assert_eq!(seen(&bundle), "77\ninception\nits.domain\n");
    // Those of the host are not a container's to set.
    for key in ["kernel.panic", "vm.swappiness", "net/../kernel/panic", "fs.mqueue.x/../../y"] {
        bundle.configure(|config| config["linux"]["sysctl"] = json!({key: "1"}));
        bundle.refuses(&["sysctl", key]);
    }
}

#[test]
fn calls_are_filtered() {
    let bundle = Bundle::new("mkdir /made; rmdir /etc 2>&1; echo end");
    bundle.configure(|config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
                {"names": ["rmdir", "unlinkat"], "action": "SCMP_ACT_ERRNO"},
            ],
        });
    });
    let ended = bundle.run(&["run", &bundle.id]);
    assert!(ended.err.contains("Input/output error"), "{ended:?}");
    assert!(ended.out.contains("Operation not permitted") && ended.out.ends_with("end\n"), "{ended:?}");
    bundle.configure(|config| config["linux"]["seccomp"]["syscalls"][0]["names"] = json!(["exit_group"]));
}
