//! Tries a container's cgroup on a machine where cgroup v2 is whole; `tests/vm/cgroup-*` run it there.
//!
//! `cgroup files` wants root and no systemd's help, `cgroup scope` a systemd of the host's or the user's own, and
//! `cgroup hybrid` a host where the controllers are on cgroup v1.
//! Each line of the output is `ok: ...` or `WRONG: ...`; the exit code is 1 after a wrong one.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use container::cgroup::{Cgroup, Placement, Resources, is_rootless};
use sys::process::{Child, SpawnArgs};

fn main() {
    let mut report = Report { failed: false };
    match std::env::args().nth(1).as_deref() {
        Some("files") => files(&mut report),
        Some("scope") => scope(&mut report),
        Some("hybrid") => hybrid(&mut report),
        _ => panic!("cgroup files|scope|hybrid"),
    }
    std::process::exit(i32::from(report.failed));
}

struct Report {
    failed: bool,
}

impl Report {
    fn check(&mut self, what: &str, fine: bool, detail: &str) {
        println!("{}: {what}: {detail}", if fine { "ok" } else { "WRONG" });
        self.failed |= !fine;
    }

    fn same(&mut self, cgroup: &Path, file: &str, wanted: &str) {
        let found = fs::read_to_string(cgroup.join(file)).unwrap_or_else(|error| error.to_string());
        self.check(file, found.trim() == wanted, found.trim());
    }

    /// An error that has this in its text.
    fn refused<T>(&mut self, what: &str, result: Result<T, container::cgroup::Error>, part: &str) {
        let text = result.err().map_or_else(|| "no error".to_owned(), |error| chain(&error));
        self.check(what, text.contains(part), &text);
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn resources(json: &serde_json::Value) -> Resources {
    Resources::for_container(Some(&serde_json::from_value(json.clone()).unwrap())).unwrap()
}

/// A child in the cgroup that runs `body` and exits with what it returns.
fn child(cgroup: Option<&Cgroup>, body: impl FnOnce() -> i32) -> Child {
    let cgroup = cgroup.map(AsFd::as_fd);
    sys::process::spawn_with(SpawnArgs { cgroup, ..SpawnArgs::default() }, body).unwrap()
}

fn sleeper(cgroup: Option<&Cgroup>) -> Child {
    child(cgroup, || {
        std::thread::sleep(Duration::from_secs(600));
        0
    })
}

fn exit_code(child: &Child) -> Option<i32> {
    let pid = rustix::process::Pid::from_raw(child.pid);
    let (_, status) = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap().unwrap();
    status.exit_status()
}

fn opens(path: &str) -> i32 {
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(255),
    }
}

/// A block device of this machine, `major:minor`.
fn disk() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/sys/block/vda/dev").ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn files(report: &mut Report) {
    report.check("root", !is_rootless(), "the host's");
    let mut spec = serde_json::json!({
        "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 16 << 20},
        "cpu": {"shares": 512, "quota": 20_000, "period": 50_000, "burst": 1_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 20},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
        "unified": {
            "memory.high": "33554432", "memory.min": "4194304", "memory.oom.group": "1",
            "cgroup.max.depth": "9", "pids.max": "21"
        },
        "devices": [{"allow": false, "access": "rwm"}],
    });
    if let Some((major, minor)) = disk() {
        let device = |rate: u32| serde_json::json!([{"major": major, "minor": minor, "rate": rate}]);
        spec["blockIO"] = serde_json::json!({
            "weight": 500, "throttleReadBpsDevice": device(1 << 20), "throttleWriteIOPSDevice": device(120)
        });
    }
    let limits = resources(&spec);
    let mut placement = Placement::for_container(Some("/inception-test/a/b"), "b", false).unwrap();
    let cgroup = placement.prepare(&limits).unwrap_or_else(|error| panic!("{}", chain(&error))).unwrap();
    let path = cgroup.path().to_owned();
    report.check("made", path.ends_with("inception-test/a/b"), &path.display().to_string());
    for (file, wanted) in [
        ("memory.max", "67108864"),
        ("memory.low", "16777216"),
        ("memory.high", "33554432"),
        ("memory.min", "4194304"),
        ("memory.swap.max", "33554432"),
        ("memory.oom.group", "1"),
        ("cpu.max", "20000 50000"),
        ("cpu.max.burst", "1000"),
        ("cpu.weight", "59"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("pids.max", "21"),
        ("hugetlb.2MB.max", "4194304"),
        ("hugetlb.2MB.rsvd.max", "4194304"),
        ("cgroup.max.depth", "9"),
    ] {
        report.same(&path, file, wanted);
    }
    if let Some((major, minor)) = disk() {
        let wanted = format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=120");
        report.same(&path, "io.max", &wanted);
        let file = if path.join("io.bfq.weight").exists() { "io.bfq.weight" } else { "io.weight" };
        report.same(&path, file, if file == "io.weight" { "default 4950" } else { "default 500" });
    }

    updates(report, &placement, &path);
    processes(report, &placement, &cgroup);
    devices(report, &placement, &cgroup);
    memory(report, &placement, &cgroup);

    let other = Placement::for_container(Some("/inception-test/a/c"), "c", false);
    let unknown = resources(&serde_json::json!({"unified": {"nonsense.max": "1"}}));
    report.refused("no such controller", other.unwrap().prepare(&unknown), "controller `nonsense`");
    let impossible = resources(&serde_json::json!({"memory": {"swappiness": 1}}));
    let mut other = Placement::for_container(Some("/inception-test/a/c"), "c", false).unwrap();
    report.refused("version 1 only", other.prepare(&impossible), "memory.swappiness");
    let wrong = resources(&serde_json::json!({"cpu": {"cpus": "4000"}}));
    report.refused("a refused value is named", other.prepare(&wrong), "write `4000` to /sys/fs/cgroup");
    report.check("nothing is left after an error", !path.with_file_name("c").exists(), "none");

    drop(cgroup);
    placement.remove().unwrap();
    let top = path.parent().unwrap().parent().unwrap();
    report.check("removed, and the directories made for it", !top.exists(), &top.display().to_string());
    placement.remove().unwrap();
}

fn updates(report: &mut Report, placement: &Placement, path: &Path) {
    let update = |json: serde_json::Value| {
        Resources::from_spec(&serde_json::from_value(json).unwrap())
            .map_err(|error| panic!("{error}"))
            .and_then(|resources| placement.update(&resources))
    };
    // A quota below the burst that stands is refused by the kernel until the burst is changed.
    update(serde_json::json!({"cpu": {"quota": 30_000, "burst": 30_000}})).unwrap();
    update(serde_json::json!({"cpu": {"quota": 10_000, "burst": 500}})).unwrap();
    report.same(path, "cpu.max", "10000 50000");
    report.same(path, "cpu.max.burst", "500");
    update(serde_json::json!({"cpu": {"period": 25_000}})).unwrap();
    report.same(path, "cpu.max", "10000 25000");
    update(serde_json::json!({"cpu": {"idle": 1}})).unwrap();
    report.same(path, "cpu.idle", "1");
    update(serde_json::json!({"cpu": {"idle": 0, "shares": 1024}})).unwrap();
    report.same(path, "cpu.weight", "100");
    update(serde_json::json!({"memory": {"swap": 80 << 20}})).unwrap();
    report.same(path, "memory.swap.max", "16777216");
    update(serde_json::json!({"memory": {"limit": -1}, "unified": {"memory.high": "max"}})).unwrap();
    report.same(path, "memory.max", "max");
    report.same(path, "memory.swap.max", "max");
    report.same(path, "pids.max", "21");
}

fn processes(report: &mut Report, placement: &Placement, cgroup: &Cgroup) {
    let first = sleeper(Some(cgroup));
    let inner = Cgroup::create(cgroup.path(), "inner").unwrap();
    let second = sleeper(Some(&inner));
    let procs = cgroup.procs().unwrap();
    report.check("processes here and below", procs == [first.pid, second.pid], &format!("{procs:?}"));
    let mut again = Placement::for_container(Some("/inception-test/a/b"), "b", false).unwrap();
    report.refused("in use", again.prepare(&Resources::default()), "holds processes already");
    report.check("it is still there", placement.open().unwrap().is_some(), "yes");
    cgroup.freeze().unwrap();
    report.check("frozen", cgroup.is_frozen().unwrap(), "yes");
    cgroup.signal_all(0).unwrap();
    report.check("still frozen after a signal", cgroup.is_frozen().unwrap(), "yes");
    cgroup.thaw().unwrap();
    report.check("thawed", !cgroup.is_frozen().unwrap(), "yes");
    cgroup.signal_all(libc::SIGTERM).unwrap();
    report.check("SIGTERM to all", exit_code(&first).or(exit_code(&second)).is_none(), "both died of it");
    let third = sleeper(Some(&inner));
    let start = Instant::now();
    cgroup.kill().unwrap();
    report.check("killed", !cgroup.is_populated().unwrap(), &format!("in {:?}", start.elapsed()));
    exit_code(&third);
    let limit = child(Some(cgroup), || {
        let made = (0..40).take_while(|_| {
            sys::process::spawn(0, || {
                std::thread::sleep(Duration::from_secs(60));
                0
            })
            .is_ok()
        });
        i32::try_from(made.count()).unwrap_or(255)
    });
    // The update to "max" left `pids.max` at 21.
    let made = exit_code(&limit);
    report.check("pids.max holds", made == Some(20), &format!("{made:?} children"));
    cgroup.kill().unwrap();
}

fn devices(report: &mut Report, placement: &Placement, cgroup: &Cgroup) {
    let code = |path: &'static str| exit_code(&child(Some(cgroup), move || opens(path)));
    report.check("/dev/null may be used", code("/dev/null") == Some(0), "yes");
    let denied = code("/dev/kmsg");
    report.check("/dev/kmsg may not", denied == Some(libc::EPERM), &format!("{denied:?}"));
    let rules = serde_json::json!({"devices": [
        {"allow": false}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw"}
    ]});
    placement.update(&resources(&rules)).unwrap();
    report.check("until that is allowed", code("/dev/kmsg") == Some(0), "yes");
    let all = serde_json::json!({"devices": [{"allow": true, "access": "rwm"}]});
    placement.update(&resources(&all)).unwrap();
    report.check("or everything is", code("/dev/kmsg") == Some(0), "yes");
    placement.update(&resources(&rules)).unwrap();
    placement.update(&resources(&serde_json::json!({"devices": [{"allow": false}]}))).unwrap();
    report.check("and forbidden again", code("/dev/kmsg") == Some(libc::EPERM), "yes");
    let untouched: oci_spec::runtime::LinuxResources = Default::default();
    placement.update(&Resources::from_spec(&untouched).unwrap()).unwrap();
    report.check("an update without rules leaves them", code("/dev/kmsg") == Some(libc::EPERM), "yes");
}

fn memory(report: &mut Report, placement: &Placement, cgroup: &Cgroup) {
    let limit = serde_json::json!({"memory": {"limit": 24 << 20, "swap": 24 << 20}});
    placement.update(&resources(&limit)).unwrap();
    let hog = child(Some(cgroup), || {
        let bytes = vec![1u8; 64 << 20];
        i32::from(std::hint::black_box(&bytes)[5])
    });
    let code = exit_code(&hog);
    let events = fs::read_to_string(cgroup.path().join("memory.events")).unwrap();
    report.check("memory.max kills", code.is_none() && !events.contains("oom_kill 0"), "by oom_kill");
    let keeper = child(Some(cgroup), || {
        let bytes = vec![1u8; 8 << 20];
        std::thread::sleep(Duration::from_secs(60));
        i32::from(std::hint::black_box(&bytes)[5])
    });
    let current = cgroup.path().join("memory.current");
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::read_to_string(&current).unwrap().trim().parse::<u64>().unwrap() < 8 << 20 {
        assert!(Instant::now() < deadline, "memory.current does not grow");
        std::thread::sleep(Duration::from_millis(5));
    }
    let checked = serde_json::json!({"memory": {"limit": 1 << 20, "checkBeforeUpdate": true}});
    report.refused("checkBeforeUpdate", placement.update(&resources(&checked)), "below what is in use");
    cgroup.kill().unwrap();
    exit_code(&keeper);
}

fn hybrid(report: &mut Report) {
    let trees = Path::new("/sys/fs/cgroup");
    let name = format!("inception-test-{}", std::process::id());
    let limits = resources(&serde_json::json!({
        "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 16 << 20},
        "cpu": {"shares": 512, "quota": 20_000, "period": 50_000, "cpus": "0"},
        "pids": {"limit": 20},
        "devices": [{"allow": false, "access": "rwm"}],
    }));
    let mut placement = Placement::for_container(Some(&format!("/{name}/c")), "c", false).unwrap();
    let cgroup = placement.prepare(&limits).unwrap_or_else(|error| panic!("{}", chain(&error))).unwrap();
    let first = child(Some(&cgroup), || {
        std::thread::sleep(Duration::from_millis(300));
        opens("/dev/kmsg")
    });
    placement.admit(first.pid, &limits).unwrap();
    for (tree, file, wanted) in [
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.memsw.limit_in_bytes", "100663296"),
        ("memory", "memory.soft_limit_in_bytes", "16777216"),
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "20000"),
        ("cpu", "cpu.cfs_period_us", "50000"),
        ("cpuset", "cpuset.cpus", "0"),
        ("cpuset", "cpuset.mems", "0"),
        ("pids", "pids.max", "20"),
        ("devices", "cgroup.procs", &first.pid.to_string()),
    ] {
        report.same(&trees.join(tree).join(&name).join("c"), file, wanted);
    }
    let larger = resources(&serde_json::json!({"memory": {"limit": 128 << 20, "swap": 256 << 20}}));
    placement.update(&larger).unwrap_or_else(|error| panic!("{}", chain(&error)));
    report.same(&trees.join("memory").join(&name).join("c"), "memory.limit_in_bytes", "134217728");
    let io = disk().or(Some((7, 0))).map(|(major, minor)| {
        serde_json::json!({"blockIO": {
            "throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 1 << 20}]
        }})
    });
    placement.update(&resources(&io.unwrap())).unwrap_or_else(|error| panic!("{}", chain(&error)));
    report.same(&trees.join("blkio").join(&name).join("c"), "cgroup.procs", &first.pid.to_string());
    cgroup.freeze().unwrap();
    report.check("frozen", cgroup.is_frozen().unwrap(), "yes");
    cgroup.thaw().unwrap();
    let code = exit_code(&first);
    report.check("/dev/kmsg may not be used", code == Some(libc::EPERM), &format!("{code:?}"));
    cgroup.kill().unwrap();
    drop(cgroup);
    placement.remove().unwrap();
    let left: Vec<_> = fs::read_dir(trees)
        .unwrap()
        .filter(|tree| tree.as_ref().unwrap().path().join(&name).exists())
        .collect();
    report.check("removed", left.is_empty(), &format!("{left:?}"));
}

fn scope(report: &mut Report) {
    let limits = resources(&serde_json::json!({
        "memory": {"limit": 64 << 20, "swap": 64 << 20},
        "cpu": {"shares": 512, "quota": 25_000, "period": 50_000},
        "pids": {"limit": 20},
        "devices": [{"allow": false, "access": "rwm"}],
    }));
    let slice = if is_rootless() { "user.slice" } else { "machine.slice" };
    let path = format!("{slice}:inception:t+{}", std::process::id());
    let mut placement = Placement::for_container(Some(&path), "t", true).unwrap();
    report.check("not before there is a process", placement.prepare(&limits).unwrap().is_none(), "yes");
    let first = sleeper(None);
    placement.admit(first.pid, &limits).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let stored = serde_json::to_string(&placement).unwrap();
    let placement: Placement = serde_json::from_str(&stored).unwrap();
    let cgroup = placement.open().unwrap().unwrap();
    let directory = cgroup.path().to_owned();
    let unit = directory.file_name().unwrap().to_str().unwrap().to_owned();
    let fine = unit.starts_with("inception-t\\x2b") && directory.to_str().unwrap().contains(slice);
    report.check("in its slice", fine, &directory.display().to_string());
    report.same(&directory, "memory.max", "67108864");
    report.same(&directory, "memory.swap.max", "0");
    report.same(&directory, "cpu.max", "25000 50000");
    report.same(&directory, "cpu.weight", "59");
    report.same(&directory, "pids.max", "20");
    let procs = cgroup.procs().unwrap();
    report.check("the process is in it", procs == [first.pid], &format!("{procs:?}"));
    let show = |property: &str| {
        let mut command = std::process::Command::new("systemctl");
        if is_rootless() {
            command.arg("--user");
        }
        let output = command.args(["show", "-P", property, &unit]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    for (property, wanted) in [
        ("MemoryMax", "67108864"),
        ("TasksMax", "20"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("CPUWeight", "59"),
        ("Delegate", "yes"),
    ] {
        let found = show(property);
        report.check(property, found == wanted, &found);
    }
    let update = resources(&serde_json::json!({"memory": {"limit": 32 << 20}, "pids": {"limit": 9}}));
    placement.update(&update).unwrap();
    report.same(&directory, "memory.max", "33554432");
    report.check("systemd knows", show("MemoryMax") == "33554432", &show("MemoryMax"));
    let mut again = Placement::for_container(Some(&path), "t", true).unwrap();
    again.prepare(&limits).unwrap();
    let second = sleeper(None);
    report.refused("the same name again", again.admit(second.pid, &limits), "start `inception-t");
    sys::process::kill(second.pid, libc::SIGKILL).unwrap();
    exit_code(&second);
    cgroup.freeze().unwrap();
    cgroup.kill().unwrap();
    exit_code(&first);
    drop(cgroup);
    placement.remove().unwrap();
    report.check("removed", !directory.exists(), &directory.display().to_string());
    report.check("the unit is gone", show("LoadState") == "not-found", &show("LoadState"));
    placement.remove().unwrap();
}
