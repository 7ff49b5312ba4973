//! What a container may use, as data, and the files of cgroup v2 that say so.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources, LinuxThrottleDevice,
};
use serde::{Deserialize, Serialize};

use super::devices::{self, Rule};
use super::{Error, Limits};

/// Limits and device rules, checked. Making one changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    pub(super) spec: LinuxResources,
    /// `None` leaves the cgroup's rules as they are.
    pub(super) devices: Option<Vec<Rule>>,
}

/// One file of a cgroup, and what is to be written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) file: String,
    /// One line for each `write(2)`.
    pub(super) value: String,
    /// The field of config.json that asks for it.
    pub(super) field: String,
    /// What a missing file means.
    pub(super) absent: Absent,
}

/// What to do when a file is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Absent {
    /// The limit cannot be enforced: an error.
    Refuse,
    /// Nothing: the value is what an absent file means.
    Skip,
    /// Write another file.
    Instead(String, String),
}

impl Setting {
    pub(super) fn new(file: &str, value: impl ToString, field: &str) -> Self {
        Self {
            file: file.to_owned(),
            value: value.to_string(),
            field: format!("linux.resources.{field}"),
            absent: Absent::Refuse,
        }
    }

    pub(super) fn or(self, absent: Absent) -> Self {
        Self { absent, ..self }
    }

    /// Whose file it is: what stands before the first dot.
    pub(super) fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or(&self.file)
    }
}

impl Resources {
    /// Takes `linux.resources` over. What is absent is left as it is when this is applied.
    ///
    /// # Errors
    /// The first field that makes no sense.
    pub fn from_spec(spec: &LinuxResources) -> Result<Self, Error> {
        let devices = spec.devices().as_deref().map(devices::from_spec).transpose()?;
        check(spec)?;
        Ok(Self { spec: spec.clone(), devices })
    }

    /// As [`Self::from_spec`], for a container that is made now: one without device rules may use the default
    /// devices only.
    ///
    /// # Errors
    /// As [`Self::from_spec`].
    pub fn for_container(spec: Option<&LinuxResources>) -> Result<Self, Error> {
        let mut resources = spec.map(Self::from_spec).transpose()?.unwrap_or_default();
        resources.devices.get_or_insert_default();
        Ok(resources)
    }

    /// Whether there is a limit that cannot be had without a cgroup. Device rules are none: who has no cgroup cannot
    /// make device nodes either.
    pub(super) fn needs_cgroup(&self) -> Result<bool, Error> {
        Ok(self.version2()?.iter().any(|setting| setting.absent != Absent::Skip))
    }

    /// Whether each limit is one that cgroup v2 has.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the first that it has not.
    pub fn check(&self) -> Result<(), Error> {
        self.version2().map(drop)
    }

    /// The smallest memory limit that [`LinuxMemory::check_before_update`] lets be set: an error below it.
    pub(super) fn memory_to_check(&self) -> Option<i64> {
        let memory = self.spec.memory().as_ref()?;
        memory.limit().filter(|limit| memory.check_before_update() == Some(true) && *limit > 0)
    }

    /// Files of cgroup v2 and values, in the order in which they are to be written.
    pub(super) fn version2(&self) -> Result<Vec<Setting>, Error> {
        let mut settings = Vec::new();
        if let Some(memory) = self.spec.memory() {
            memory_settings(memory, &mut settings)?;
        }
        if let Some(cpu) = self.spec.cpu() {
            cpu_settings(cpu, &mut settings)?;
        }
        if let Some(io) = self.spec.block_io() {
            io_settings(io, &mut settings)?;
        }
        if let Some(pids) = self.spec.pids() {
            // Zero and less are no limit, as with the other runtimes.
            let value = if pids.limit() > 0 { pids.limit().to_string() } else { "max".to_owned() };
            let absent = if pids.limit() > 0 { Absent::Refuse } else { Absent::Skip };
            settings.push(Setting::new("pids.max", value, "pids.limit").or(absent));
        }
        for page in self.spec.hugepage_limits().iter().flatten() {
            hugepage_settings(page, &mut settings);
        }
        for (device, limit) in self.spec.rdma().iter().flatten().collect::<BTreeMap<_, _>>() {
            let mut line = device.clone();
            for (name, value) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
                if let Some(value) = value {
                    line.push_str(&format!(" {name}={value}"));
                }
            }
            settings.push(Setting::new("rdma.max", line, &format!("rdma.{device}")));
        }
        if let Some(network) = self.spec.network() {
            let class = network.class_id().is_some_and(|class| class != 0);
            let priorities = network.priorities().as_ref().is_some_and(|list| !list.is_empty());
            for (set, name) in [(class, "classID"), (priorities, "priorities")] {
                if set {
                    return Err(unsupported(&format!("network.{name}"), "it exists in cgroup v1 only"));
                }
            }
        }
        self.unified(&mut settings);
        Ok(settings)
    }

    /// `unified` has the last word about a file.
    fn unified(&self, settings: &mut Vec<Setting>) {
        let unified: BTreeMap<_, _> = self.spec.unified().iter().flatten().collect();
        settings.retain(|setting| !unified.contains_key(&setting.file));
        settings.extend(
            unified.into_iter().map(|(file, value)| Setting::new(file, value, &format!("unified.{file}"))),
        );
    }
}

impl From<&Limits> for Resources {
    /// What is `None` becomes unlimited, where there is a file for it.
    fn from(limits: &Limits) -> Self {
        let clamp = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(limits.memory.map_or(-1, clamp)));
        memory.set_reservation(limits.memory_reservation.map(clamp));
        memory.set_swap(limits.memory_swap);
        let mut cpu = LinuxCpu::default();
        let quota = limits.cpus.map_or(-1, |cpus| (cpus * CPU_PERIOD).max(CPU_QUOTA_MIN) as i64);
        cpu.set_quota(Some(quota));
        cpu.set_period(Some(CPU_PERIOD as u64));
        cpu.set_shares(limits.cpu_shares);
        cpu.set_cpus(limits.cpuset.clone());
        let mut pids = oci_spec::runtime::LinuxPids::default();
        pids.set_limit(limits.pids.map_or(-1, clamp));
        let mut spec = LinuxResources::default();
        spec.set_memory(Some(memory)).set_cpu(Some(cpu)).set_pids(Some(pids));
        spec.set_block_io(limits.block_io.clone());
        Self { spec, devices: None }
    }
}

/// Microseconds; the kernel's default.
const CPU_PERIOD: f64 = 100_000.0;
/// `cpu.max` refuses a quota below a millisecond.
const CPU_QUOTA_MIN: f64 = 1_000.0;

fn unsupported(field: &str, reason: &str) -> Error {
    Error::Unsupported { field: format!("linux.resources.{field}"), reason: reason.to_owned() }
}

/// What makes no sense with any version of cgroups: it would be written to files as it is.
fn check(spec: &LinuxResources) -> Result<(), Error> {
    let invalid =
        |field: &str, problem: &str| Err(Error::invalid(format!("linux.resources.{field}"), problem));
    if let Some(cpu) = spec.cpu() {
        for (list, name) in [(cpu.cpus(), "cpu.cpus"), (cpu.mems(), "cpu.mems")] {
            let fine = |c: char| c.is_ascii_digit() || matches!(c, ',' | '-' | ' ' | '\n');
            if list.as_deref().is_some_and(|list| !list.chars().all(fine)) {
                return invalid(name, "not a list of numbers and ranges such as `0-2,5`");
            }
        }
        if cpu.idle().is_some_and(|idle| !(0..=1).contains(&idle)) {
            return invalid("cpu.idle", "must be 0 or 1");
        }
    }
    if let Some(io) = spec.block_io() {
        let one = io.weight().into_iter();
        let many = io.weight_device().iter().flatten().filter_map(|device| device.weight());
        if one.chain(many).any(|weight| weight != 0 && !(10..=1000).contains(&weight)) {
            return invalid("blockIO.weight", "must be between 10 and 1000");
        }
        let weights = io.weight_device().iter().flatten().map(|d| (d.major(), d.minor()));
        let throttles =
            throttles(io).into_iter().flat_map(|(_, _, list)| list).map(|d| (d.major(), d.minor()));
        if weights.chain(throttles).any(|(major, minor)| major < 0 || minor < 0) {
            return invalid("blockIO", "a device number is negative");
        }
    }
    for page in spec.hugepage_limits().iter().flatten() {
        let size = page.page_size();
        let digits = size.trim_end_matches("KB").trim_end_matches("MB").trim_end_matches("GB");
        if digits.is_empty() || digits.len() + 2 != size.len() || !digits.bytes().all(|b| b.is_ascii_digit())
        {
            return invalid("hugepageLimits.pageSize", "not a size such as `2MB`");
        }
    }
    for (device, limit) in spec.rdma().iter().flatten() {
        if device.is_empty() || device.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return invalid("rdma", "the name of a device is empty or has a space in it");
        }
        if limit.hca_handles().is_none() && limit.hca_objects().is_none() {
            return invalid("rdma", "a device without a limit");
        }
    }
    for (file, value) in spec.unified().iter().flatten() {
        let field = format!("unified.{}", file.escape_debug());
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !file.contains('.') || file.starts_with('.') || !file.chars().all(plain) {
            return invalid(&field, "not the name of a file of a controller");
        }
        if value.contains('\0') {
            return invalid(&field, "the value has a zero byte in it");
        }
        let ours = ["procs", "threads", "kill", "freeze", "type", "subtree_control"];
        if file.strip_prefix("cgroup.").is_some_and(|name| ours.contains(&name)) {
            return invalid(&field, "this file is for the runtime to write");
        }
    }
    Ok(())
}

/// A limit of config.json in cgroup v2's words: what is negative is none.
fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn memory_settings(memory: &LinuxMemory, settings: &mut Vec<Setting>) -> Result<(), Error> {
    // Zero is "not set" to the engines, which send it without meaning it, and to the other runtimes.
    let set = |value: Option<i64>| value.filter(|value| *value != 0);
    for (name, value) in [("kernel", set(memory.kernel())), ("kernelTCP", set(memory.kernel_tcp()))] {
        if value.is_some_and(|value| value > 0) {
            let reason = "cgroup v2 has no limit of its own for the kernel's memory";
            return Err(unsupported(&format!("memory.{name}"), reason));
        }
    }
    // -1 is the default, and an unsigned number in config.json.
    if memory.swappiness().is_some_and(|swappiness| swappiness != u64::MAX) {
        return Err(unsupported("memory.swappiness", "cgroup v2 has no swappiness of its own for a cgroup"));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(unsupported("memory.disableOOMKiller", "cgroup v2 cannot do without it"));
    }
    if memory.use_hierarchy() == Some(false) {
        return Err(unsupported("memory.useHierarchy", "cgroup v2 is always hierarchical"));
    }
    let limit = set(memory.limit());
    // config.json counts memory and swap together, cgroup v2 swap alone.
    let swap = match set(memory.swap()) {
        Some(both) if both > 0 => match limit {
            Some(limit) if limit > both => {
                let problem = "less than `memory.limit`; it counts memory and swap together";
                return Err(Error::invalid("linux.resources.memory.swap", problem));
            }
            Some(limit) if limit > 0 => Some(both - limit),
            _ => {
                let problem = "a limit of memory and swap together needs `memory.limit`";
                return Err(Error::invalid("linux.resources.memory.swap", problem));
            }
        },
        Some(_) => Some(-1),
        None => limit.filter(|limit| *limit < 0),
    };
    if let Some(swap) = swap {
        // Without swap accounting there is no file, and these two values are what that means.
        let absent = if swap > 0 { Absent::Refuse } else { Absent::Skip };
        settings.push(Setting::new("memory.swap.max", or_max(swap), "memory.swap").or(absent));
    }
    if let Some(limit) = limit {
        let absent = if limit > 0 { Absent::Refuse } else { Absent::Skip };
        settings.push(Setting::new("memory.max", or_max(limit), "memory.limit").or(absent));
    }
    if let Some(reservation) = set(memory.reservation()) {
        settings.push(Setting::new("memory.low", or_max(reservation), "memory.reservation"));
    }
    Ok(())
}

fn cpu_settings(cpu: &LinuxCpu, settings: &mut Vec<Setting>) -> Result<(), Error> {
    let realtime = [
        ("realtimeRuntime", cpu.realtime_runtime().is_some_and(|value| value != 0)),
        ("realtimePeriod", cpu.realtime_period().is_some_and(|value| value != 0)),
    ];
    for (name, set) in realtime {
        if set {
            return Err(unsupported(&format!("cpu.{name}"), "cgroup v2 does not divide up realtime"));
        }
    }
    let idle = cpu.idle().map(|idle| Setting::new("cpu.idle", idle, "cpu.idle"));
    let weight = cpu.shares().filter(|shares| *shares != 0);
    let weight = weight.map(|shares| Setting::new("cpu.weight", weight_of(shares), "cpu.shares"));
    // An idle cgroup has no weight: the kernel refuses one.
    match cpu.idle() {
        Some(1) => settings.extend(weight.into_iter().chain(idle)),
        _ => settings.extend(idle.into_iter().chain(weight)),
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    let absent = if quota.is_none_or(|quota| quota < 0) && period.is_none_or(|p| p == CPU_PERIOD as u64) {
        Absent::Skip
    } else {
        Absent::Refuse
    };
    // The kernel keeps the period when only a quota is written; `=` stands for the quota that there is.
    let max = match (quota.map(or_max), period) {
        (Some(quota), Some(period)) => Some(format!("{quota} {period}")),
        (Some(quota), None) => Some(quota),
        (None, Some(period)) => Some(format!("{CURRENT} {period}")),
        (None, None) => None,
    };
    settings.extend(max.map(|max| Setting::new("cpu.max", max, "cpu.quota").or(absent)));
    settings.extend(cpu.burst().map(|burst| Setting::new("cpu.max.burst", burst, "cpu.burst")));
    for (file, list, field) in
        [("cpuset.cpus", cpu.cpus(), "cpu.cpus"), ("cpuset.mems", cpu.mems(), "cpu.mems")]
    {
        if let Some(list) = list.as_deref().map(str::trim).filter(|list| !list.is_empty()) {
            settings.push(Setting::new(file, list, field));
        }
    }
    Ok(())
}

/// Stands for the present quota in a value for `cpu.max`.
pub(super) const CURRENT: &str = "=";

/// `cpu.weight` (1 to 10000, usually 100) for cgroup v1's shares (2 to 262144, usually 1024). A curve through
/// these three pairs, as crun 1.23 and runc 1.3.2 have it: a quadratic function between the logarithms.
fn weight_of(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        3..262_144 => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // The result of 1024 is 100 but for rounding.
            (10f64.powf(exponent) - 1e-9).ceil() as u64
        }
        _ => 10_000,
    }
}

/// Kinds of throttling: field, key of `io.max`, devices.
pub(super) fn throttles(io: &LinuxBlockIo) -> [(&'static str, &'static str, &[LinuxThrottleDevice]); 4] {
    fn list(list: &Option<Vec<LinuxThrottleDevice>>) -> &[LinuxThrottleDevice] {
        list.as_deref().unwrap_or_default()
    }
    [
        ("throttleReadBpsDevice", "rbps", list(io.throttle_read_bps_device())),
        ("throttleWriteBpsDevice", "wbps", list(io.throttle_write_bps_device())),
        ("throttleReadIOPSDevice", "riops", list(io.throttle_read_iops_device())),
        ("throttleWriteIOPSDevice", "wiops", list(io.throttle_write_iops_device())),
    ]
}

fn io_settings(io: &LinuxBlockIo, settings: &mut Vec<Setting>) -> Result<(), Error> {
    let leaf = io.weight_device().iter().flatten().any(|d| d.leaf_weight().is_some_and(|weight| weight != 0));
    if leaf || io.leaf_weight().is_some_and(|weight| weight != 0) {
        return Err(unsupported("blockIO.leafWeight", "it exists in cgroup v1 only"));
    }
    // BFQ has the range of config.json; the other implementation has 1 to 10000.
    let wide = |weight: u16| 1 + (u32::from(weight.max(10)) - 10) * 9999 / 990;
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        let instead = Absent::Instead("io.weight".into(), format!("default {}", wide(weight)));
        settings.push(Setting::new("io.bfq.weight", weight, "blockIO.weight").or(instead));
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let number = format!("{}:{}", device.major(), device.minor());
            let instead = Absent::Instead("io.weight".into(), format!("{number} {}", wide(weight)));
            let setting = Setting::new("io.bfq.weight", format!("{number} {weight}"), "blockIO.weightDevice");
            settings.push(setting.or(instead));
        }
    }
    for (field, key, devices) in throttles(io) {
        for device in devices {
            // Nothing per second is how cgroup v1 takes a limit away.
            let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
            let line = format!("{}:{} {key}={rate}", device.major(), device.minor());
            settings.push(Setting::new("io.max", line, &format!("blockIO.{field}")));
        }
    }
    Ok(())
}

fn hugepage_settings(page: &LinuxHugepageLimit, settings: &mut Vec<Setting>) {
    let size = page.page_size();
    let value = or_max(page.limit());
    settings.push(Setting::new(&format!("hugetlb.{size}.max"), &value, "hugepageLimits"));
    // What is reserved is limited, too, where the kernel can (Linux 5.7), so that mmap fails and not a page fault.
    settings
        .push(Setting::new(&format!("hugetlb.{size}.rsvd.max"), value, "hugepageLimits").or(Absent::Skip));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Result<Vec<(String, String)>, String> {
        let spec: LinuxResources = serde_json::from_str(json).unwrap();
        let resources = Resources::from_spec(&spec).map_err(|error| error.to_string())?;
        let settings = resources.version2().map_err(|error| error.to_string())?;
        Ok(settings.into_iter().map(|setting| (setting.file, setting.value)).collect())
    }

    fn lines(json: &str) -> Vec<String> {
        settings(json).unwrap().iter().map(|(file, value)| format!("{file} {value}")).collect()
    }

    #[test]
    fn memory_and_swap_are_counted_together_in_config_json() {
        assert_eq!(
            lines(r#"{"memory": {"limit": 64, "swap": 96, "reservation": 32}}"#),
            ["memory.swap.max 32", "memory.max 64", "memory.low 32"]
        );
        assert_eq!(lines(r#"{"memory": {"limit": 64, "swap": 64}}"#), ["memory.swap.max 0", "memory.max 64"]);
        assert_eq!(
            lines(r#"{"memory": {"limit": 64, "swap": -1}}"#),
            ["memory.swap.max max", "memory.max 64"]
        );
        assert_eq!(lines(r#"{"memory": {"limit": -1}}"#), ["memory.swap.max max", "memory.max max"]);
        assert_eq!(lines(r#"{"memory": {"limit": 0, "swap": 0, "disableOOMKiller": false}}"#), [""; 0]);
        assert!(settings(r#"{"memory": {"limit": 64, "swap": 32}}"#).unwrap_err().contains("less than"));
        assert!(settings(r#"{"memory": {"swap": 32}}"#).unwrap_err().contains("needs `memory.limit`"));
    }

    #[test]
    fn what_version_2_cannot_do_is_refused_by_name() {
        for (json, field) in [
            (r#"{"memory": {"swappiness": 60}}"#, "memory.swappiness"),
            (r#"{"memory": {"kernel": 1}}"#, "memory.kernel"),
            (r#"{"memory": {"kernelTCP": 1}}"#, "memory.kernelTCP"),
            (r#"{"memory": {"disableOOMKiller": true}}"#, "memory.disableOOMKiller"),
            (r#"{"cpu": {"realtimeRuntime": 1}}"#, "cpu.realtimeRuntime"),
            (r#"{"blockIO": {"leafWeight": 20}}"#, "blockIO.leafWeight"),
            (r#"{"network": {"classID": 1}}"#, "network.classID"),
            (r#"{"network": {"priorities": [{"name": "eth0", "priority": 1}]}}"#, "network.priorities"),
        ] {
            let error = settings(json).unwrap_err();
            let start = format!("`linux.resources.{field}` cannot be enforced: ");
            assert!(error.starts_with(&start), "{error}");
        }
        assert_eq!(lines(r#"{"network": {"classID": 0}, "cpu": {"realtimeRuntime": 0}}"#), [""; 0]);
    }

    #[test]
    fn processor_time() {
        let all = r#"{"cpu": {"shares": 1024, "quota": 20000, "period": 50000, "burst": 1000, "idle": 0,
            "cpus": "0-1", "mems": "0"}}"#;
        assert_eq!(
            lines(all),
            [
                "cpu.idle 0",
                "cpu.weight 100",
                "cpu.max 20000 50000",
                "cpu.max.burst 1000",
                "cpuset.cpus 0-1",
                "cpuset.mems 0"
            ]
        );
        assert_eq!(lines(r#"{"cpu": {"quota": -1}}"#), ["cpu.max max"]);
        assert_eq!(lines(r#"{"cpu": {"period": 50000}}"#), ["cpu.max = 50000"]);
        assert!(settings(r#"{"cpu": {"cpus": "0\n../x"}}"#).is_err());
    }

    #[test]
    fn shares_become_weights_on_a_curve() {
        let pairs =
            [(1, 1), (2, 1), (100, 17), (1024, 100), (2000, 170), (262_144, 10_000), (u64::MAX, 10_000)];
        for (shares, weight) in pairs {
            assert_eq!(weight_of(shares), weight, "{shares}");
        }
    }

    #[test]
    fn block_devices() {
        let json = r#"{"blockIO": {"weight": 1000, "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}]}}"#;
        assert_eq!(
            lines(json),
            ["io.bfq.weight 1000", "io.bfq.weight 8:0 10", "io.max 8:0 rbps=600", "io.max 8:16 wiops=max"]
        );
        let spec: LinuxResources = serde_json::from_str(json).unwrap();
        let settings = Resources::from_spec(&spec).unwrap().version2().unwrap();
        assert_eq!(settings[0].absent, Absent::Instead("io.weight".into(), "default 10000".into()));
        assert_eq!(settings[1].absent, Absent::Instead("io.weight".into(), "8:0 1".into()));
    }

    #[test]
    fn unified_wins_and_cannot_leave_the_cgroup() {
        assert_eq!(
            lines(
                r#"{"memory": {"limit": 64}, "pids": {"limit": 7},
                    "unified": {"memory.max": "32", "misc.max": "a 1\nb 2"}}"#
            ),
            ["pids.max 7", "memory.max 32", "misc.max a 1\nb 2"]
        );
        for file in ["../memory.max", "memory", "a/b.c", "", ".x", "cgroup.procs", "cgroup.kill", "a.b\0"] {
            let spec = serde_json::json!({"unified": {file: "1"}});
            assert!(settings(&spec.to_string()).is_err(), "{file}");
        }
        assert!(settings(r#"{"unified": {"cgroup.max.depth": "3"}}"#).is_ok());
    }

    #[test]
    fn huge_pages_and_rdma() {
        assert_eq!(
            lines(
                r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
                    "rdma": {"mlx4_0": {"hcaHandles": 2, "hcaObjects": 3}}}"#
            ),
            [
                "hugetlb.2MB.max 4194304",
                "hugetlb.2MB.rsvd.max 4194304",
                "rdma.max mlx4_0 hca_handle=2 hca_object=3"
            ]
        );
        for size in ["2 MB", "MB", "2", "../MB", "2KBMB"] {
            let spec = serde_json::json!({"hugepageLimits": [{"pageSize": size, "limit": 1}]});
            assert!(settings(&spec.to_string()).is_err(), "{size}");
        }
    }

    #[test]
    fn limits_of_a_service() {
        let limits = Limits { memory: Some(64 << 20), cpus: Some(0.25), ..Limits::default() };
        let settings = Resources::from(&limits).version2().unwrap();
        let lines: Vec<String> = settings.iter().map(|s| format!("{} {}", s.file, s.value)).collect();
        assert_eq!(lines, ["memory.max 67108864", "cpu.max 25000 100000", "pids.max max"]);
        assert_eq!(settings[2].absent, Absent::Skip);
        assert_eq!(settings[1].absent, Absent::Refuse);
    }
}
