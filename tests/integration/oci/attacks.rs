//! What got out of other runtimes. Each test tries it, and shows that nothing is gained.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags};
use serde_json::json;

use super::bundle::{Bundle, binary};
use crate::harness::{ended, is_root, until};

/// How often a race is run.
const ROUNDS: usize = 30;

/// Writes a program into the root.
fn program(bundle: &Bundle, name: &str, text: &str) {
    let path = bundle.path("rootfs").join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Owner, mode, times and content of what an attack aims at.
fn condition(path: &Path) -> (u32, u32, i64, i64, Vec<u8>) {
    let stat = fs::symlink_metadata(path).unwrap();
    let content = if stat.is_file() { fs::read(path).unwrap() } else { Vec::new() };
    (stat.uid(), stat.mode(), stat.mtime(), stat.mtime_nsec(), content)
}

/// Exchanges two names again and again while `work` runs.
fn exchanging(one: PathBuf, other: PathBuf, work: impl FnOnce()) {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            }
        });
        // A failed assertion must end the thread, too.
        let _stop = Stop(&stop);
        work();
    });
}

/// CVE-2019-5736: who is executed inside can be opened there, and the runtime's file be overwritten.
#[test]
fn the_runtimes_file_cannot_be_reached_through_proc() {
    let before = condition(&binary());
    // Tries to write to whatever any process executes, and tells what that is.
    let bundle = Bundle::new(
        "echo ready; while :; do for exe in /proc/[0-9]*/exe; do readlink $exe; \
         (echo overwritten >$exe) 2>/dev/null && echo opened $exe; done; done",
    );
    program(&bundle, "bin/again", "#!/proc/self/exe\n");
    bundle.start();
    bundle.wait_out("ready");
    for _ in 0..ROUNDS {
        for attempt in ["/bin/again", "/proc/self/exe", "/proc/1/exe", "/bin/true"] {
            let code = bundle.run(&["exec", &bundle.id, attempt]).code;
            assert_eq!(code == 0, attempt == "/bin/true", "{attempt}");
        }
    }
    let out = bundle.out();
    let seen: BTreeSet<&str> = out.lines().collect();
    // Ours is seen in sealed memory, or on a read-only mount that is attached nowhere ("/").
    let expected =
        |line: &&str| ["", "/", "ready", "/bin/busybox"].contains(line) || line.starts_with("/memfd:");
    assert!(seen.iter().all(expected), "{seen:?}");
    bundle.run(&["delete", "--force", &bundle.id]).ok();
    for words in [&["/proc/self/exe"][..], &["/bin/again"], &["/proc/self/exe", "container", "3", "4", "5"]] {
        bundle.configure(|config| config["process"]["args"] = words.into());
        assert_ne!(bundle.run(&["run", &bundle.id]).code, 0, "{words:?}");
    }
    assert!(condition(&binary()) == before, "the runtime has changed");
}

/// CVE-2024-21626: a descriptor of the runtime's that leads to the host's files, as working directory.
#[test]
fn no_descriptor_leads_out() {
    let bundle = Bundle::new("exec sleep 1000");
    symlink("/proc/self/fd/7", bundle.path("rootfs/home/link")).unwrap();
    for number in 0..20 {
        bundle.configure(|config| config["process"]["cwd"] = format!("/proc/self/fd/{number}").into());
        bundle.fails(&["run", &bundle.id], &["working directory"]);
    }
    bundle.configure(|config| config["process"]["cwd"] = "/home/link".into());
    bundle.fails(&["run", &bundle.id], &["working directory"]);
    // Even one that was given on purpose.
    bundle.configure(|config| config["process"]["cwd"] = "/proc/self/fd/3".into());
    let given = |words: &str| {
        let mut shell = Command::new("sh");
        let command = format!("exec \"$0\" --root '{}' {words} {} 3</", bundle.root().display(), bundle.id);
        ended(shell.current_dir(bundle.path("")).args(["-c", &command]).arg(binary()))
    };
    let run = given("run --preserve-fds 1");
    assert!(run.code == 1 && run.err.starts_with("error: "), "{run:?}");
    bundle.configure(|config| config["process"]["cwd"] = "/".into());
    bundle.start();
    for cwd in (0..20).map(|number| format!("/proc/self/fd/{number}")).chain(["/home/link".into()]) {
        let ended = bundle.run(&["exec", "--cwd", &cwd, &bundle.id, "ls"]);
        assert!(ended.code != 0 && ended.out.is_empty(), "{cwd}: {ended:?}");
    }
    // The process that waits inside until `start` has nothing of the host's open, either.
    let waiting = Bundle::new("true");
    waiting.create();
    for entry in fs::read_dir(format!("/proc/{}/fd", waiting.pid())).unwrap() {
        let fd = entry.unwrap();
        let to = fs::read_link(fd.path()).unwrap();
        let stdio = fd.file_name().to_str().unwrap().parse::<u32>().unwrap() < 3;
        assert!(
            stdio || !to.is_absolute() || to.to_str().unwrap().starts_with("/memfd:"),
            "{}",
            to.display()
        );
    }
}

/// CVE-2021-30465: the target of a mount becomes a link to elsewhere between the check and the mount.
#[test]
fn mount_points_that_are_swapped_stay_inside() {
    let bundle = Bundle::new("grep -c ' /.*/mounted ' /proc/self/mountinfo; ls / /elsewhere");
    let victim = bundle.path("victim");
    fs::create_dir(&victim).unwrap();
    let inside = |name: &str| bundle.path("rootfs").join(name);
    fs::create_dir(inside("elsewhere")).unwrap();
    fs::create_dir(inside("data/volume")).unwrap();
    // The host's name of the victim, and enough of ".." to reach it from below.
    symlink(format!("../../../../../../../../..{}", victim.display()), inside("data/link")).unwrap();
    bundle.configure(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/data/volume/mounted", "type": "tmpfs", "source": "tmpfs"}));
        mounts.push(json!({"destination": "/data/volume/mounted/deep", "type": "tmpfs", "source": "tmpfs"}));
    });
    let before = condition(&victim);
    exchanging(inside("data/volume"), inside("data/link"), || {
        for _ in 0..ROUNDS {
            let ended = bundle.run(&["run", &bundle.id]);
            assert!(ended.code == 0 || ended.err.starts_with("error: "), "{ended:?}");
            bundle.nothing_left();
        }
    });
    assert!(condition(&victim) == before && fs::read_dir(&victim).unwrap().next().is_none());
}

/// CVE-2019-16884 and CVE-2019-19921: a `/proc` that is a link, where covers and labels miss what they are for.
#[test]
fn proc_is_mounted_where_its_covers_are() {
    // By what can be read: the names may change between two looks.
    let script = "for proc in /proc /data /data/proc /link; do for file in kcore timer_list keys; do \
        [ -z \"$(head -c 1 $proc/$file 2>/dev/null)\" ] || echo $proc/$file; done; \
        (echo x >$proc/sys/kernel/domainname) 2>/dev/null && echo $proc/sys; done";
    let bundle = Bundle::new(script);
    let inside = |name: &str| bundle.path("rootfs").join(name);
    // An ordinary user's /sys is the host's, bind mounted: covers find it wherever it is.
    for kind in if is_root() { &["proc", "sys"][..] } else { &["proc"] } {
        symlink("data", inside(kind)).unwrap();
        bundle.refuses(&[kind]);
        fs::remove_file(inside(kind)).unwrap();
    }
    fs::create_dir_all(inside("proc")).unwrap();
    symlink("data", inside("link")).unwrap();
    let mut succeeded = 0;
    exchanging(inside("proc"), inside("link"), || {
        for _ in 0..ROUNDS {
            let ended = bundle.run(&["run", &bundle.id]);
            assert!(ended.out.is_empty(), "not covered: {ended:?}");
            succeeded += usize::from(ended.err.is_empty());
        }
    });
    assert!(succeeded > 0, "the race was never run to its end");
}

/// Removes the mount of `/dev` and what is below it, so that the image's own is used.
fn own_dev(bundle: &Bundle) {
    bundle.configure(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    });
    fs::create_dir_all(bundle.path("rootfs/dev")).unwrap();
}

/// CVE-2025-31133: covers are bind mounts of `/dev/null`, which the image made a link to what it wants to have.
#[test]
fn a_null_device_that_is_another_file_covers_nothing() {
    let bundle = Bundle::new(
        "(echo x >/proc/timer_list) 2>/dev/null && [ ! -c /proc/timer_list ] && echo written; \
         [ ! -e /proc/timer_list ] || [ -c /proc/timer_list ] || echo shown; \
         (echo x >/proc/sys/kernel/core_pattern) 2>/dev/null && [ ! -c /proc/sys/kernel/core_pattern ] && \
         echo pattern; cat /bait",
    );
    let pattern = fs::read("/proc/sys/kernel/core_pattern").unwrap();
    own_dev(&bundle);
    fs::write(bundle.path("rootfs/bait"), "untouched\n").unwrap();
    for to in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/bait", "/proc/self/exe", "/nowhere"]
    {
        fs::remove_file(bundle.path("rootfs/dev/null")).ok();
        symlink(to, bundle.path("rootfs/dev/null")).unwrap();
        let ended = bundle.run(&["run", &bundle.id]);
        // Refused, or the device covers what the link names: nothing is won either way.
        let harmless = ["untouched\n", ""].contains(&ended.out.as_str());
        assert!(harmless, "{to}: {ended:?}");
        assert!(
            ended.code != 1 || ended.err.starts_with("error: ") || ended.err.is_empty(),
            "{to}: {ended:?}"
        );
        assert_eq!(fs::read("/proc/sys/kernel/core_pattern").unwrap(), pattern, "{to}");
    }
    assert_eq!(fs::read_to_string(bundle.path("rootfs/bait")).unwrap(), "untouched\n");
    // A file in its place that the configuration itself puts there.
    let bundle = Bundle::new("cat /proc/timer_list");
    fs::write(bundle.path("evil"), "evil\n").unwrap();
    bundle.configure(|config| {
        let evil = json!({"destination": "/dev/null", "source": bundle.path("evil"), "options": ["bind"]});
        config["mounts"].as_array_mut().unwrap().push(evil);
    });
    let ended = bundle.run(&["run", &bundle.id]);
    assert!(ended.out.is_empty(), "{ended:?}");
    // An ordinary user's device nodes are the host's, over whatever is there.
    assert_eq!(ended.err.contains("/dev/null"), is_root(), "{ended:?}");
    assert_eq!(fs::read_to_string(bundle.path("evil")).unwrap(), "evil\n");
}

/// CVE-2025-52565: the terminal is bind mounted on a `/dev/console` that is a link.
#[test]
fn a_console_that_is_a_link_is_refused() {
    let bundle = Bundle::new("exec sleep 1000");
    own_dev(&bundle);
    fs::write(bundle.path("rootfs/bait"), "untouched\n").unwrap();
    bundle.configure(|config| {
        config["process"]["terminal"] = true.into();
        let pts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["newinstance", "ptmxmode=0666", "mode=0620"]});
        config["mounts"].as_array_mut().unwrap().push(pts);
    });
    let _listener = UnixListener::bind(bundle.path("console")).unwrap();
    for to in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/bait", "/proc/self/fd/0"] {
        fs::remove_file(bundle.path("rootfs/dev/console")).ok();
        symlink(to, bundle.path("rootfs/dev/console")).unwrap();
        let ended = bundle.create_with(&["--console-socket", "console"]);
        assert!(ended.code == 1 && ended.err.starts_with("error: "), "{to}: {ended:?}");
        bundle.nothing_left();
    }
    // So is a multiplexer that is not the one of the new devpts.
    fs::remove_file(bundle.path("rootfs/dev/console")).unwrap();
    bundle.configure(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/dev/pts");
    });
    fs::create_dir_all(bundle.path("rootfs/dev/pts")).unwrap();
    symlink("/bait", bundle.path("rootfs/dev/pts/ptmx")).unwrap();
    let ended = bundle.create_with(&["--console-socket", "console"]);
    assert!(ended.code == 1 && ended.err.starts_with("error: "), "{ended:?}");
    assert_eq!(fs::read_to_string(bundle.path("rootfs/bait")).unwrap(), "untouched\n");
}

/// CVE-2025-52881: what the runtime writes into procfs goes to a file of the attacker's choice, or nowhere.
#[test]
fn writes_to_procfs_are_not_redirected() {
    let host = fs::read("/proc/sys/net/core/somaxconn").unwrap();
    let bundle = Bundle::new("true");
    fs::write(bundle.path("fake"), "untouched\n").unwrap();
    fs::create_dir(bundle.path("sys")).unwrap();
    for (name, to) in [("link", "/proc/sys/kernel/domainname"), ("somaxconn", "link")] {
        symlink(to, bundle.path("sys").join(name)).unwrap();
    }
    for (target, source) in [
        ("/proc/sys/net/core/somaxconn", "fake"),
        ("/proc/sys/net/core", "sys"),
        ("/proc/self", "sys"),
        ("/proc/thread-self", "sys"),
    ] {
        let bundle_of = |config: &mut serde_json::Value| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/proc/"));
            mounts.push(json!({"destination": target, "source": bundle.path(source), "options": ["bind"]}));
            config["linux"]["sysctl"] = json!({"net.core.somaxconn": "77"});
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            if !namespaces.iter().any(|namespace| namespace["type"] == "network") {
                namespaces.push(json!({"type": "network"}));
            }
        };
        bundle.configure(bundle_of);
        let ended = bundle.run(&["run", &bundle.id]);
        assert!(ended.code == 0 || ended.err.starts_with("error: "), "{target}: {ended:?}");
        assert_eq!(fs::read_to_string(bundle.path("fake")).unwrap(), "untouched\n", "{target}");
    }
    assert_eq!(fs::read("/proc/sys/net/core/somaxconn").unwrap(), host);
    // Something else in place of procfs: the container has it, the runtime does not take it for procfs.
    let covered = Bundle::new("cat /proc/self/attr/exec /proc/self/oom_score_adj; exec sleep 1000");
    covered.configure(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/proc");
        mounts.push(json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"}));
        config["process"]["oomScoreAdj"] = 321.into();
    });
    covered.start();
    let pid = covered.pid();
    until("the score is set", || {
        let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?;
        (score.trim() == "321").then_some(())
    });
}
