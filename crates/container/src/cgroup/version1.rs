//! Counterparts of a cgroup in trees of cgroup v1, on hosts whose controllers are there (hybrid mode).
//!
//! Processes are frozen, killed and listed through the cgroup of version 2; what is here is for limits alone. A
//! counterpart is made when a limit needs one. It has the path of the cgroup it belongs to, so which there are is
//! seen, not remembered.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::directory::Cgroup;
use super::hierarchy::Hierarchy;
use super::resources::{Absent, Resources, Setting, throttles};
use super::{Error, devices, tree};

/// The trees of cgroup v1, and the path of one cgroup in each.
#[derive(Debug, Clone, Default)]
pub(super) struct Mirror {
    /// Controllers of a tree, and the counterpart there, which may not exist.
    trees: Vec<(Vec<String>, PathBuf)>,
}

impl Mirror {
    /// For the cgroup `below` the root of each tree.
    pub(super) fn of(hierarchy: &Hierarchy, below: &Path) -> Self {
        let tree = |tree: &super::hierarchy::Version1| (tree.controllers.clone(), tree.mount.join(below));
        Self { trees: hierarchy.version1.iter().map(tree).collect() }
    }

    fn path_of(&self, controller: &str) -> Option<&Path> {
        let mut trees = self.trees.iter();
        trees.find(|(names, _)| names.iter().any(|name| name == controller)).map(|(_, path)| path.as_path())
    }

    fn existing(&self) -> impl Iterator<Item = &Path> {
        self.trees.iter().map(|(_, path)| path.as_path()).filter(|path| path.exists())
    }

    /// What is left of `resources` for cgroup v2.
    pub(super) fn rest(&self, resources: &Resources) -> Resources {
        split(resources, &|controller| self.path_of(controller).is_some()).1
    }

    /// Applies what is for these trees, with counterparts made for it that the cgroup's processes are moved into, and
    /// returns the rest.
    pub(super) fn apply(
        &self,
        resources: &Resources,
        procs: impl Fn() -> Result<Vec<i32>, Error>,
    ) -> Result<Resources, Error> {
        let (settings, rest) = split(resources, &|controller| self.path_of(controller).is_some());
        // The settings of a controller stand together.
        for settings in settings.chunk_by(|a, b| a.controller() == b.controller()) {
            let controller = settings[0].controller();
            let Some(path) = self.path_of(controller) else { continue };
            let counterpart = counterpart(path, controller == "cpuset", &procs)?;
            let mut refused = Vec::new();
            for setting in settings {
                match counterpart.set(setting) {
                    // Memory may not exceed memory and swap together, and such: in the other order then.
                    Err(error) if error.kind() == Some(io::ErrorKind::InvalidInput) => refused.push(setting),
                    other => {
                        other?;
                        check_kernel_memory(&counterpart, setting)?;
                    }
                }
            }
            refused.into_iter().try_for_each(|setting| counterpart.set(setting))?;
        }
        Ok(rest)
    }

    pub(super) fn admit(&self, pid: i32) -> Result<(), Error> {
        self.existing().try_for_each(|path| Cgroup::open(path)?.write("cgroup.procs", &pid.to_string()))
    }

    /// `cgroup.procs` of each counterpart, to be written to.
    pub(super) fn procs(&self) -> Result<Vec<OwnedFd>, Error> {
        let open = |path: &Path| {
            let path = path.join("cgroup.procs");
            let file = fs::OpenOptions::new().write(true).open(&path);
            file.map(OwnedFd::from).map_err(Error::at("open", &path))
        };
        self.existing().map(open).collect()
    }

    /// The first counterpart that has processes in it.
    pub(super) fn in_use(&self) -> Option<PathBuf> {
        let in_use = |path: &&Path| {
            fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|procs| !procs.trim().is_empty())
        };
        self.existing().find(in_use).map(Path::to_owned)
    }

    /// `memory.oom_control`, where its kills are counted.
    pub(super) fn memory_events(&self) -> Option<String> {
        fs::read_to_string(self.path_of("memory")?.join("memory.oom_control")).ok()
    }

    /// A counterpart in which nothing runs.
    pub(super) fn frozen(&self) -> Option<PathBuf> {
        let frozen = |path: &&Path| {
            fs::read_to_string(path.join("freezer.state")).is_ok_and(|state| state.trim() != "THAWED")
        };
        self.existing().find(frozen).map(Path::to_owned)
    }

    /// Removes the counterparts, and as many levels above each as `parents` says, where they are empty.
    pub(super) fn remove(&self, parents: usize) -> Result<(), Error> {
        for path in self.existing() {
            tree::remove(path)?;
            for parent in path.ancestors().skip(1).take(parents) {
                if tree::remove_empty(parent).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Opens a counterpart, or makes it.
fn counterpart(
    path: &Path,
    cpuset: bool,
    procs: impl Fn() -> Result<Vec<i32>, Error>,
) -> Result<Cgroup, Error> {
    if !path.exists() {
        fs::create_dir_all(path).map_err(Error::at("create cgroup", path))?;
        if cpuset {
            inherit_cpuset(path)?;
        }
        let counterpart = Cgroup::open(path)?;
        procs()?.into_iter().try_for_each(|pid| enter(&counterpart, pid))?;
        return Ok(counterpart);
    }
    Cgroup::open(path)
}

/// Since Linux 5.16 this limit can be written and changes nothing.
fn check_kernel_memory(counterpart: &Cgroup, setting: &Setting) -> Result<(), Error> {
    if !setting.file.starts_with("memory.kmem.") {
        return Ok(());
    }
    let number = |text: &str| text.trim().parse::<i64>().unwrap_or(i64::MAX);
    let found = counterpart.read(&setting.file)?.unwrap_or_default();
    match number(&setting.value) {
        wanted if wanted >= 0 && number(&found) > wanted => Err(Error::Unsupported {
            field: setting.field.clone(),
            reason: "this kernel takes the value and does not keep it".into(),
        }),
        _ => Ok(()),
    }
}

/// Lets a killed process die that stands in a frozen cgroup of cgroup v1, whoever froze it: cgroup v2 kills what is
/// frozen, cgroup v1 does not.
///
/// # Errors
/// When the cgroup's state cannot be changed.
pub(crate) fn thaw_the_dying(pid: i32) -> Result<(), Error> {
    let Some(hierarchy) = Hierarchy::current() else { return Ok(()) };
    let Some(tree) = hierarchy.version1_of("freezer") else { return Ok(()) };
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = own.lines().find_map(|line| line.split_once(":freezer:").map(|(_, path)| path));
    let Some(path) = path.filter(|path| !path.contains("..")) else { return Ok(()) };
    let state = tree.mount.join(path.trim_start_matches('/')).join("freezer.state");
    // The root has no such file.
    match fs::read_to_string(&state) {
        Ok(text) if text.trim() != "THAWED" => fs::write(&state, "THAWED").map_err(Error::at("thaw", &state)),
        _ => Ok(()),
    }
}

/// A process may have ended since it was listed.
fn enter(counterpart: &Cgroup, pid: i32) -> Result<(), Error> {
    match counterpart.write("cgroup.procs", &pid.to_string()) {
        Err(Error::System { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// A new cpuset of version 1 is empty, and no process may enter it before it has what its parent has.
fn inherit_cpuset(path: &Path) -> Result<(), Error> {
    let mut levels: Vec<&Path> =
        path.ancestors().take_while(|level| level.join("cpuset.cpus").exists()).collect();
    levels.reverse();
    for pair in levels.windows(2) {
        let [above, level] = pair else { continue };
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let read = |level: &Path| {
                let path = level.join(file);
                fs::read_to_string(&path).map_err(Error::at("read", &path))
            };
            if read(level)?.trim().is_empty() {
                Cgroup::open(level)?.write(file, read(above)?.trim())?;
            }
        }
    }
    Ok(())
}

/// What controllers of version 1 are to do, as files, and what is left.
fn split(resources: &Resources, has: &dyn Fn(&str) -> bool) -> (Vec<Setting>, Resources) {
    let mut rest = resources.clone();
    let spec = &mut rest.spec;
    let mut settings = Vec::new();
    if has("memory") {
        memory(spec.memory().as_ref(), &mut settings);
        spec.set_memory(None);
    }
    if let Some(cpu) = spec.cpu_mut() {
        if has("cpu") {
            processor_time(cpu, &mut settings);
            *cpu = LinuxCpu::default().set_cpus(cpu.cpus().clone()).set_mems(cpu.mems().clone()).clone();
        }
        if has("cpuset") {
            for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
                let list = list.as_deref().map(str::trim).filter(|list| !list.is_empty());
                settings.extend(list.map(|list| Setting::new(file, list, &file.replace("set", ""))));
            }
            cpu.set_cpus(None).set_mems(None);
        }
    }
    if has("blkio") {
        block_io(spec.block_io().as_ref(), &mut settings);
        spec.set_block_io(None);
    }
    if has("pids") {
        let limit = spec.pids().map(|pids| pids.limit());
        let value = |limit: i64| if limit > 0 { limit.to_string() } else { "max".to_owned() };
        settings.extend(limit.map(|limit| Setting::new("pids.max", value(limit), "pids.limit")));
        spec.set_pids(None);
    }
    if has("hugetlb") {
        for page in spec.hugepage_limits().iter().flatten() {
            let file = |kind: &str| format!("hugetlb.{}{kind}.limit_in_bytes", page.page_size());
            settings.push(Setting::new(&file(""), page.limit(), "hugepageLimits"));
            settings.push(Setting::new(&file(".rsvd"), page.limit(), "hugepageLimits").or(Absent::Skip));
        }
        spec.set_hugepage_limits(None);
    }
    network(spec, has, &mut settings);
    if has("devices")
        && let Some(rules) = rest.devices.take()
    {
        let lines = devices::version1_lines(&rules);
        settings.extend(lines.into_iter().map(|(file, line)| Setting::new(file, line, "devices")));
    }
    (settings, rest)
}

fn memory(memory: Option<&LinuxMemory>, settings: &mut Vec<Setting>) {
    let Some(memory) = memory else { return };
    let set = |value: Option<i64>| value.filter(|value| *value != 0);
    // Without a limit there is none for swap either, and the order of the two matters to the kernel.
    let swap = set(memory.swap()).or(set(memory.limit()).filter(|limit| *limit < 0));
    let mut number = |file: &str, field: &str, value: Option<i64>| {
        let unlimited = value.is_some_and(|value| value < 0);
        let setting = value.map(|value| Setting::new(file, value.max(-1), &format!("memory.{field}")));
        settings.extend(setting.map(|setting| if unlimited { setting.or(Absent::Skip) } else { setting }));
    };
    number("memory.limit_in_bytes", "limit", set(memory.limit()));
    number("memory.memsw.limit_in_bytes", "swap", swap);
    number("memory.soft_limit_in_bytes", "reservation", set(memory.reservation()));
    number("memory.kmem.limit_in_bytes", "kernel", set(memory.kernel()));
    number("memory.kmem.tcp.limit_in_bytes", "kernelTCP", set(memory.kernel_tcp()));
    let swappiness = memory.swappiness().map(|value| i64::try_from(value).unwrap_or(i64::MAX));
    number("memory.swappiness", "swappiness", swappiness);
    number("memory.oom_control", "disableOOMKiller", memory.disable_oom_killer().map(i64::from));
    number("memory.use_hierarchy", "useHierarchy", memory.use_hierarchy().map(i64::from));
}

fn processor_time(cpu: &LinuxCpu, settings: &mut Vec<Setting>) {
    let mut number = |file: &str, field: &str, value: Option<String>| {
        settings.extend(value.map(|value| Setting::new(file, value, &format!("cpu.{field}"))));
    };
    fn set<N: Default + PartialEq + ToString>(value: Option<N>) -> Option<String> {
        value.filter(|value| *value != N::default()).map(|value| value.to_string())
    }
    number("cpu.idle", "idle", cpu.idle().filter(|idle| *idle == 0).map(|idle| idle.to_string()));
    number("cpu.shares", "shares", set(cpu.shares()));
    number("cpu.idle", "idle", set(cpu.idle()));
    number("cpu.cfs_period_us", "period", set(cpu.period()));
    number("cpu.cfs_quota_us", "quota", set(cpu.quota()));
    number("cpu.cfs_burst_us", "burst", cpu.burst().map(|burst| burst.to_string()));
    number("cpu.rt_period_us", "realtimePeriod", set(cpu.realtime_period()));
    number("cpu.rt_runtime_us", "realtimeRuntime", set(cpu.realtime_runtime()));
}

fn block_io(io: Option<&LinuxBlockIo>, settings: &mut Vec<Setting>) {
    let Some(io) = io else { return };
    let weight = |file: &str, field: &str, value: String| {
        let instead = Absent::Instead(format!("blkio.{file}"), value.clone());
        Setting::new(&format!("blkio.bfq.{file}"), value, &format!("blockIO.{field}")).or(instead)
    };
    let set = |value: Option<u16>| value.filter(|value| *value != 0);
    settings.extend(set(io.weight()).map(|value| weight("weight", "weight", value.to_string())));
    settings
        .extend(set(io.leaf_weight()).map(|value| weight("leaf_weight", "leafWeight", value.to_string())));
    for device in io.weight_device().iter().flatten() {
        let line = |value: u16| format!("{}:{} {value}", device.major(), device.minor());
        let each = [("weight_device", device.weight()), ("leaf_weight_device", device.leaf_weight())];
        for (file, value) in each {
            settings.extend(set(value).map(|value| weight(file, "weightDevice", line(value))));
        }
    }
    let files = ["read_bps_device", "write_bps_device", "read_iops_device", "write_iops_device"];
    for ((field, _, devices), file) in throttles(io).into_iter().zip(files) {
        for device in devices {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            settings.push(Setting::new(&format!("blkio.throttle.{file}"), line, &format!("blockIO.{field}")));
        }
    }
}

fn network(spec: &mut LinuxResources, has: &dyn Fn(&str) -> bool, settings: &mut Vec<Setting>) {
    let Some(mut network) = spec.network().clone() else { return };
    if has("net_cls") {
        let class = network.class_id().filter(|class| *class != 0);
        settings.extend(class.map(|class| Setting::new("net_cls.classid", class, "network.classID")));
        network.set_class_id(None);
    }
    if has("net_prio") {
        for entry in network.priorities().iter().flatten() {
            let line = format!("{} {}", entry.name(), entry.priority());
            settings.push(Setting::new("net_prio.ifpriomap", line, "network.priorities"));
        }
        network.set_priorities(None);
    }
    spec.set_network(Some(network));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(json: &str, controllers: &[&str]) -> (Vec<String>, Resources) {
        let resources = Resources::from_spec(&serde_json::from_str(json).unwrap()).unwrap();
        let (settings, rest) = split(&resources, &|name| controllers.contains(&name));
        (settings.into_iter().map(|setting| format!("{} {}", setting.file, setting.value)).collect(), rest)
    }

    const JSON: &str = r#"{
        "memory": {"limit": 64, "swap": 96, "swappiness": 7},
        "cpu": {"shares": 512, "quota": 20000, "cpus": "0"},
        "pids": {"limit": 7}, "network": {"classID": 9},
        "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}]}}"#;

    #[test]
    fn each_controller_where_it_is() {
        let (files, rest) = lines(JSON, &["memory", "cpu", "cpuset", "pids", "blkio", "net_cls"]);
        assert_eq!(
            files,
            [
                "memory.limit_in_bytes 64",
                "memory.memsw.limit_in_bytes 96",
                "memory.swappiness 7",
                "cpu.shares 512",
                "cpu.cfs_quota_us 20000",
                "cpuset.cpus 0",
                "blkio.throttle.read_bps_device 8:0 600",
                "pids.max 7",
                "net_cls.classid 9"
            ]
        );
        assert!(!rest.needs_cgroup().unwrap());
        let (files, rest) = lines(JSON, &["memory", "net_cls"]);
        assert_eq!(files.len(), 4);
        let left: Vec<_> = rest.version2().unwrap().into_iter().map(|setting| setting.file).collect();
        assert_eq!(left, ["cpu.weight", "cpu.max", "cpuset.cpus", "io.max", "pids.max"]);
    }

    #[test]
    fn a_new_cpuset_has_what_its_parent_has() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("a/b");
        fs::create_dir_all(&path).unwrap();
        for level in [top.path(), &top.path().join("a"), &path] {
            let text = if level == top.path() { "0-1\n" } else { "\n" };
            fs::write(level.join("cpuset.cpus"), text).unwrap();
            fs::write(level.join("cpuset.mems"), text).unwrap();
        }
        inherit_cpuset(&path).unwrap();
        assert!(fs::read_to_string(path.join("cpuset.mems")).unwrap().starts_with("0-1"));
    }
}
