//! Findings for hosts that this one is not.

use super::super::attempt::{Packets, Trials};
use super::super::facts::{
    Calls, Cgroups, DataDirectory, Ids, Installed, Refusal, RuntimeDirectory, Session, Switches,
};
use super::*;

/// A machine on which an ordinary user wants for nothing.
fn good() -> Facts {
    let helper = |name, capability, path: &str| Helper {
        name,
        capability,
        installed: Some(Installed { path: path.into(), setuid: true, capable: false, nosuid: false }),
    };
    Facts {
        root: false,
        user: "me".into(),
        binary: "/usr/local/bin/inception-run".into(),
        kernel: "6.12.1".into(),
        switches: Switches {
            most: Some(15000),
            unprivileged: Some(1),
            apparmor: Some(0),
            has_profile: false,
        },
        ids: Ok(Ids { count: 65536, first: 100_000 }),
        helpers: [
            helper("newuidmap", "cap_setuid", "/usr/bin/newuidmap"),
            helper("newgidmap", "cap_setgid", "/usr/bin/newgidmap"),
        ],
        attempt: Some(Attempt::Made(Trials {
            overlay: Ok(()),
            links: Ok(()),
            packets: Some(Packets { nftables: Ok(()), queue: true, partition: Ok(()), netem: Ok(()) }),
            idmap: None,
        })),
        calls: Calls {
            clone3: true,
            pidfd: Ok(()),
            openat2: Ok(()),
            seccomp: "kill_process errno user_notif log allow".into(),
            landlock: Ok(6),
        },
        cgroup: Cgroups {
            layout: Layout::Unified,
            parent: Some("/sys/fs/cgroup/x".into()),
            missing: BTreeMap::new(),
            scope: None,
            controllers: vec!["cpu".into(), "memory".into(), "pids".into()],
            own: Some("/user.slice/user-1000.slice/session-1.scope".into()),
        },
        session: Session { systemd: true, runtime: Some("/run/user/1000".into()), bus: true, linger: true },
        first_port: 21,
        may_ping: true,
        data: DataDirectory {
            path: "/home/me/.local/share/inception-run".into(),
            existing: "/home/me".into(),
            file_system: Ok(0xef53),
            writable: true,
            free: 100 << 30,
            free_inodes: Some(1_000_000),
        },
        runtime: RuntimeDirectory {
            path: "/run/user/1000/inception-run".into(),
            state: RuntimeState::Missing,
        },
        mmdebstrap: Some("/usr/bin/mmdebstrap".into()),
    }
}

fn without(controllers: &[Controller], reason: &Reason) -> BTreeMap<Controller, Reason> {
    controllers.iter().map(|controller| (*controller, reason.clone())).collect()
}

/// The findings that are not as they should be.
fn bad(change: impl FnOnce(&mut Facts)) -> BTreeMap<&'static str, Check> {
    let mut facts = good();
    change(&mut facts);
    let bad = all(&facts).into_iter().filter(|check| check.status != Status::Ok);
    bad.map(|check| (check.name, check)).collect()
}

/// The one finding that is not as it should be.
#[track_caller]
fn only(name: &str, status: Status, fix: &str, change: impl FnOnce(&mut Facts)) -> Check {
    let mut bad = bad(change);
    assert_eq!(bad.len(), 1, "{bad:?}");
    let check = bad.remove(name).unwrap();
    assert_eq!(check.status, status, "{check:?}");
    assert!(check.cost.is_some() && check.fix.as_ref().unwrap().contains(fix), "{check:?}");
    check
}

#[test]
fn a_machine_that_wants_for_nothing() {
    assert_eq!(bad(|_| {}), BTreeMap::new());
    assert!(may_attempt(&good()));
    // Root needs neither helpers nor a session.
    let root = bad(|facts| {
        facts.root = true;
        facts.ids = Err(Refusal { message: "no".into(), hint: String::new() });
        facts.helpers[0].installed = None;
        facts.first_port = 1024;
        facts.session.linger = false;
        facts.switches.unprivileged = Some(0);
        facts.switches.apparmor = Some(1);
    });
    assert_eq!(root, BTreeMap::new());
}

#[test]
fn what_stops_everything() {
    let stops = |name: &str, fix: &str, change: fn(&mut Facts)| only(name, Status::Error, fix, change);
    stops("kernel", "newer kernel", |facts| facts.kernel = "5.10.0-28-amd64".into());
    stops("user namespaces", "user.max_user_namespaces = 15000", |f| f.switches.most = Some(0));
    stops("user namespaces", "standard kernel", |f| f.switches.most = None);
    let clone = "kernel.unprivileged_userns_clone = 1";
    stops("user namespaces", clone, |f| f.switches.unprivileged = Some(0));
    let check = stops("AppArmor", "userns,", |f| f.switches.apparmor = Some(1));
    assert!(check.fix.unwrap().contains("profile inception-run /usr/local/bin/inception-run"));
    assert_eq!(bad(|f| (f.switches.apparmor, f.switches.has_profile) = (Some(1), true)), BTreeMap::new());
    stops("subordinate ids", "usermod", |f| {
        f.ids = Err(Refusal { message: "no range".into(), hint: "sudo usermod".into() });
    });
    stops("newuidmap", "apt-get install uidmap", |f| f.helpers[0].installed = None);
    let installed =
        |change: fn(&mut Installed)| move |f: &mut Facts| change(f.helpers[1].installed.as_mut().unwrap());
    only("newgidmap", Status::Error, "sudo setcap cap_setgid=ep", installed(|i| i.setuid = false));
    only("newgidmap", Status::Error, "without nosuid", installed(|i| i.nosuid = true));
    stops("user namespaces", "other findings", |f| f.attempt = Some(Attempt::Refused("EPERM".into())));
    stops("overlayfs", "modprobe overlay", |f| trials(f).overlay = Err("ENODEV".into()));
    stops("system calls", "around", |f| f.calls.openat2 = Err("not permitted".into()));
    stops("seccomp", "standard kernel", |f| f.calls.seccomp.clear());
    stops("data directory", "INCEPTION_DATA_DIR", |f| f.data.file_system = Ok(0x6969));
    stops("data directory", "INCEPTION_DATA_DIR", |f| f.data.writable = false);
    stops("disk space", "larger/disk", |f| f.data.free = 1 << 20);
    stops("inodes", "larger/disk", |f| f.data.free_inodes = Some(100));
    stops("runtime directory", "INCEPTION_RUNTIME_DIR", |f| f.runtime.state = RuntimeState::Open);
}

fn trials(facts: &mut Facts) -> &mut Trials {
    match &mut facts.attempt {
        Some(Attempt::Made(trials)) => trials,
        _ => unreachable!(),
    }
}

fn packets(facts: &mut Facts) -> &mut Packets {
    trials(facts).packets.as_mut().unwrap()
}

#[test]
fn what_costs_something() {
    let costs = |name: &str, fix: &str, change: fn(&mut Facts)| only(name, Status::Warning, fix, change);
    costs("subordinate ids", "usermod", |f| f.ids = Ok(Ids { count: 1000, first: 1 }));
    costs("networks", "modprobe", |f| trials(f).links = Err("not supported".into()));
    costs("nftables", "nft_tproxy", |f| packets(f).nftables = Err("not supported".into()));
    costs("nftables queue", "nft_queue", |f| packets(f).queue = false);
    costs("nftables of bridges", "nf_tables", |f| packets(f).partition = Err("not supported".into()));
    costs("netem", "sch_netem", |f| packets(f).netem = Err("not found".into()));
    costs("idmapped mounts", "ext4", |f| trials(f).idmap = Some(Err("invalid".into())));
    costs("system calls", "around", |f| f.calls.clone3 = false);
    costs("seccomp", "standard kernel", |f| f.calls.seccomp = "errno allow".into());
    costs("Landlock", "lsm=", |f| f.calls.landlock = Err("Operation not supported".into()));
    costs("session", "machinectl shell me@", |f| f.session.runtime = None);
    costs("session", "dbus-user-session", |f| f.session.bus = false);
    costs("linger", "loginctl enable-linger me", |f| f.session.linger = false);
    costs("low ports", "ip_unprivileged_port_start = 21", |f| f.first_port = 1024);
    costs("ping", "net.ipv4.ping_group_range = 0 2147483647", |f| f.may_ping = false);
    costs("disk space", "larger/disk", |f| f.data.free = 1 << 30);
    costs("inodes", "larger/disk", |f| f.data.free_inodes = Some(50_000));
    costs("Debian base images", "mmdebstrap", |f| f.mmdebstrap = None);
    let check = costs("limits (cgroup v2)", "unified_cgroup_hierarchy=1", |f| {
        f.cgroup.layout = Layout::Hybrid;
        f.cgroup.missing = without(&Controller::ALL, &Reason::Version1);
    });
    assert!(check.found.contains("hybrid") && check.found.contains("session-1.scope"), "{check:?}");
    let check = only("limits (cgroup v2)", Status::Warning, "enable-linger", |f| {
        f.cgroup.missing = without(&Controller::ALL, &Reason::NotDelegated("/x".into()));
        f.cgroup.scope = Some(Err("connect to /run/user/1000/bus".into()));
    });
    assert!(check.found.contains("systemd gives no scope: connect to"), "{check:?}");
    assert_eq!(bad(|f| f.cgroup.scope = Some(Ok(()))), BTreeMap::new());
    costs("limits (cgroup v2)", "Delegate=", |f| {
        f.cgroup.missing = without(&[Controller::Cpu], &Reason::NotGiven("/sys/fs/cgroup/x".into()));
    });
    // What few limits need is told in passing.
    let reason = Reason::NotGiven("/sys/fs/cgroup/x".into());
    let facts =
        Facts { cgroup: Cgroups { missing: without(&[Controller::Io], &reason), ..good().cgroup }, ..good() };
    assert!(limits(&facts).status == Status::Ok && limits(&facts).found.contains("not io"));
    // Without systemd there is no session to speak of.
    assert_eq!(
        bad(|f| f.session = Session { systemd: false, runtime: None, bus: false, linger: false }),
        BTreeMap::new()
    );
}

#[test]
fn what_a_kernel_is_too_old_for() {
    let feature = |kernel: &str| {
        let facts = Facts { kernel: kernel.into(), ..good() };
        features(&facts)
    };
    assert_eq!(feature("5.10.0"), None, "it is too old for everything");
    let old = feature("5.12.3").unwrap();
    assert!(old.status == Status::Warning && old.cost.unwrap().contains("`landlock` of a service"));
    let debian = feature("6.1.0-38-amd64").unwrap();
    assert!(debian.status == Status::Ok && debian.found.contains("tmpfs (6.3)"), "{debian:?}");
    assert!(debian.cost.is_some());
    assert_eq!(feature("6.6.1").unwrap().cost, None);
    // A tmpfs holds the data directory only where overlayfs can use it.
    let on_tmpfs = |kernel: &str| bad(|f| (f.kernel, f.data.file_system) = (kernel.into(), Ok(TMPFS))).len();
    assert_eq!((on_tmpfs("6.1.0"), on_tmpfs("6.6.0")), (1, 0));
    assert_eq!(version("6.1.0-38-cloud-amd64"), Some((6, 1)));
    assert!(version("5.9.16").unwrap() < KERNEL && version("odd").is_none());
}

#[test]
fn what_is_known_to_be_off_is_not_attempted() {
    for change in [
        (|f| f.switches.most = Some(0)) as fn(&mut Facts),
        |f| f.switches.apparmor = Some(1),
        |f| f.helpers[0].installed = None,
        |f| f.ids = Err(Refusal { message: String::new(), hint: String::new() }),
    ] {
        let mut facts = good();
        change(&mut facts);
        assert!(!may_attempt(&facts));
    }
}
