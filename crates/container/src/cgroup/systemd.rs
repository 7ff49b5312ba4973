//! Scopes: cgroups that systemd makes, and in which it keeps its hands off what is below.

pub(super) mod bus;
mod wire;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::hierarchy::Hierarchy;
use super::{Error, Resources};
use bus::{Bus, Whose};
use wire::{Value, Writer};

/// The longest name that a unit may have.
const NAME_MAX: usize = 255;
/// The highest number of a CPU or memory node that a list may have: more than the kernel can be built for.
const SET_MAX: usize = 8192;
/// systemd's word for "no limit".
const INFINITY: u64 = u64::MAX;

/// A transient scope unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Scope {
    slice: String,
    unit: String,
    /// Of the user's own systemd rather than the host's.
    user: bool,
    /// Where it is, once it has been started.
    pub(super) path: Option<PathBuf>,
}

impl Scope {
    /// The scope that `slice:prefix:name` means, or that of container `id` without one.
    pub(super) fn named(cgroups_path: Option<&str>, id: &str, rootless: bool) -> Result<Self, Error> {
        let invalid = |problem: &str| Err(Error::invalid("linux.cgroupsPath", problem));
        let [slice, prefix, name] = match cgroups_path.map(|path| path.split(':').collect::<Vec<_>>()) {
            None => ["", "inception-oci", id],
            Some(parts) => match parts[..] {
                [slice, prefix, name] => [slice, prefix, name],
                _ => return invalid("with `--systemd-cgroup` it is `slice:prefix:name`"),
            },
        };
        let slice = match slice {
            "" if rootless => "user.slice".to_owned(),
            "" => "system.slice".to_owned(),
            "-" => "-.slice".to_owned(),
            slice => slice.to_owned(),
        };
        let stem = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}-{name}") };
        let unit = format!("{}.scope", escaped(&stem));
        if !slice.ends_with(".slice") || slice != escaped(&slice) {
            return invalid("the part before the first colon is not the name of a slice");
        }
        if name.is_empty() || name.starts_with('.') || slice.len().max(unit.len()) > NAME_MAX {
            return invalid("the name is empty, begins with a dot, or is too long");
        }
        Ok(Self { slice, unit, user: rootless, path: None })
    }

    /// Has systemd make the scope with process `pid` in it and with these limits, and waits for that.
    pub(super) fn start(&mut self, pid: i32, resources: &Resources) -> Result<(), Error> {
        let asked = |source| Error::Systemd { operation: format!("start `{}`", self.unit), source };
        let mut properties = delegated(pid, &self.slice, "a container of inception-oci");
        properties.extend(limits(resources)?);
        let mut bus = Bus::connect(self.whose()).map_err(asked)?;
        start(&mut bus, &self.unit, &properties).map_err(asked)?;
        let path = arrived(pid, &self.unit).map_err(asked)?;
        self.path = Some(path);
        Ok(())
    }

    /// Tells systemd of changed limits: it would bring its own back at its next reload.
    pub(super) fn set(&self, resources: &Resources) -> Result<(), Error> {
        let properties = limits(resources)?;
        if properties.is_empty() {
            return Ok(());
        }
        let asked = |source| Error::Systemd { operation: format!("change `{}`", self.unit), source };
        let mut bus = Bus::connect(self.whose()).map_err(asked)?;
        let mut body = Writer::default();
        body.text(&self.unit);
        // Until the next boot only: the unit does not live longer.
        body.flag(true);
        body.properties(&properties);
        bus.manager("SetUnitProperties", "sba(sv)", body).map(drop).map_err(asked)
    }

    /// Ends the unit, which systemd does by itself once the last process is gone.
    pub(super) fn stop(&self) -> Result<(), Error> {
        // Nobody is to be asked about a scope that never was, or that has gone.
        if !self.path.as_deref().is_some_and(std::path::Path::exists) {
            return Ok(());
        }
        let asked = |source| Error::Systemd { operation: format!("stop `{}`", self.unit), source };
        let mut bus = Bus::connect(self.whose()).map_err(asked)?;
        let mut body = Writer::default();
        body.text(&self.unit);
        body.text("replace");
        match bus.job("StopUnit", "ss", body) {
            Err(bus::Error::Refused { name, .. }) if name == "org.freedesktop.systemd1.NoSuchUnit" => Ok(()),
            other => other.map_err(asked),
        }
    }

    fn whose(&self) -> Whose {
        if self.user { Whose::User } else { Whose::System }
    }
}

/// Moves this process into a scope of its own, in which it may make cgroups: for an ordinary user whose login
/// session is not theirs to divide. Their systemd asks that of the host to do it.
///
/// # Errors
/// When there is no systemd, or it does not.
pub(super) fn own_scope(unit: &str) -> Result<(), Error> {
    let unit = format!("{}.scope", escaped(unit));
    let asked = |source| Error::Systemd { operation: format!("start `{unit}`"), source };
    let mut bus = Bus::connect(Whose::User).map_err(asked)?;
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    start(&mut bus, &unit, &delegated(pid, "app.slice", "a stack of inception-run")).map_err(asked)?;
    arrived(pid, &unit).map(drop).map_err(asked)
}

/// Properties of every scope of ours.
fn delegated(pid: i32, slice: &str, description: &str) -> Vec<(String, Value)> {
    let flag = |name: &str, value| (name.to_owned(), Value::Flag(value));
    let text = |name: &str, value: &str| (name.to_owned(), Value::Text(value.to_owned()));
    vec![
        text("Description", description),
        text("Slice", slice),
        // Nothing of it is left behind when it fails.
        text("CollectMode", "inactive-or-failed"),
        flag("DefaultDependencies", false),
        flag("Delegate", true),
        flag("MemoryAccounting", true),
        flag("CPUAccounting", true),
        flag("TasksAccounting", true),
        flag("IOAccounting", true),
        ("PIDs".to_owned(), Value::Numbers(vec![pid.cast_unsigned()])),
    ]
}

fn start(bus: &mut Bus, unit: &str, properties: &[(String, Value)]) -> Result<(), bus::Error> {
    let body = || {
        let mut body = Writer::default();
        body.text(unit);
        body.text("fail");
        body.properties(properties);
        body.array(8, |_| {});
        body
    };
    match bus.job("StartTransientUnit", "ssa(sv)a(sa(sv))", body()) {
        Err(bus::Error::Refused { name, .. }) if name == "org.freedesktop.systemd1.UnitExists" => {}
        other => return other,
    }
    // One that failed keeps its name until it is forgotten; a living one is refused again.
    let mut name = Writer::default();
    name.text(unit);
    match bus.manager("ResetFailedUnit", "s", name) {
        Ok(_) | Err(bus::Error::Refused { .. }) => {}
        Err(error) => return Err(error),
    }
    bus.job("StartTransientUnit", "ssa(sv)a(sa(sv))", body())
}

/// Where the process stands now, which must be in the unit.
fn arrived(pid: i32, unit: &str) -> Result<PathBuf, bus::Error> {
    let path = Hierarchy::current().map(|hierarchy| hierarchy.of_process(pid)).transpose()?.flatten();
    path.filter(|path| path.file_name().is_some_and(|name| name == unit))
        .ok_or_else(|| bus::Error::NotThere(unit.to_owned()))
}

/// The limits that systemd knows, as properties. The others it leaves alone.
fn limits(resources: &Resources) -> Result<Vec<(String, Value)>, Error> {
    let mut properties = Vec::new();
    for setting in resources.version2()? {
        let number = |text: &str| match text.trim() {
            "max" => Some(INFINITY),
            text => text.parse().ok(),
        };
        let one = |name: &str| number(&setting.value).map(|value| (name.to_owned(), Value::Number(value)));
        let set = |name: &str| {
            let bytes = bits(&setting.value).ok_or_else(|| {
                Error::invalid(&setting.field, "not a list of numbers and ranges, or one that is too high")
            });
            bytes.map(|bytes| Some((name.to_owned(), Value::Bytes(bytes))))
        };
        match setting.file.as_str() {
            "memory.max" => properties.extend(one("MemoryMax")),
            "memory.high" => properties.extend(one("MemoryHigh")),
            "memory.low" => properties.extend(one("MemoryLow")),
            "memory.min" => properties.extend(one("MemoryMin")),
            "memory.swap.max" => properties.extend(one("MemorySwapMax")),
            "pids.max" => properties.extend(one("TasksMax")),
            "cpu.weight" => properties.extend(one("CPUWeight")),
            "cpuset.cpus" => properties.extend(set("AllowedCPUs")?),
            "cpuset.mems" => properties.extend(set("AllowedMemoryNodes")?),
            "cpu.max" => {
                let mut words = setting.value.split_whitespace();
                let quota = words.next().and_then(number);
                let period = words.next().and_then(number);
                properties.extend(quota.map(|quota| {
                    let per_second = per_second(quota, period.unwrap_or(100_000));
                    ("CPUQuotaPerSecUSec".to_owned(), Value::Number(per_second))
                }));
                properties.extend(period.map(|p| ("CPUQuotaPeriodUSec".to_owned(), Value::Number(p))));
            }
            _ => {}
        }
    }
    Ok(properties)
}

/// Microseconds of processor time for each second, in systemd's steps of a hundredth of a CPU, rounded up.
fn per_second(quota: u64, period: u64) -> u64 {
    if quota == INFINITY {
        return INFINITY;
    }
    let exact = u128::from(quota) * 1_000_000 / u128::from(period.max(1));
    u64::try_from(exact.next_multiple_of(10_000)).unwrap_or(INFINITY)
}

/// A list such as `0-2,5` as a set of bits, the lowest first.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last >= SET_MAX || first > last {
            return None;
        }
        bits.resize(bits.len().max(last / 8 + 1), 0u8);
        (first..=last).for_each(|number| bits[number / 8] |= 1 << (number % 8));
    }
    Some(bits)
}

/// A name with what a unit's name cannot have written as `\xNN` (systemd.unit(5)).
fn escaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'@' | b':' | b'\\' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_scopes() {
        let named = |path, rootless| {
            Scope::named(path, "c+1", rootless).map(|scope| (scope.slice, scope.unit, scope.user))
        };
        let expected = |slice: &str, unit: &str, user| (slice.to_owned(), unit.to_owned(), user);
        assert_eq!(
            named(None, false).unwrap(),
            expected("system.slice", "inception-oci-c\\x2b1.scope", false)
        );
        assert_eq!(
            named(Some("user.slice:libpod:abc"), true).unwrap(),
            expected("user.slice", "libpod-abc.scope", true)
        );
        assert_eq!(named(Some("::x"), true).unwrap(), expected("user.slice", "x.scope", true));
        let long = format!("a.slice:b:{}", "x".repeat(300));
        for path in ["/a/b", "a:b:c", "a.slice:b", "x/y.slice:b:c", "a.slice:b:", "a.slice:b:c:d", &long] {
            assert!(named(Some(path), false).is_err(), "{path}");
        }
    }

    #[test]
    fn limits_as_systemd_has_them() {
        let spec = serde_json::json!({
            "memory": {"limit": 64, "swap": -1},
            "cpu": {"quota": 15_000, "period": 100_000, "cpus": "0-2,9", "shares": 1024},
            "pids": {"limit": -1}, "unified": {"memory.high": "32", "misc.max": "a 1"},
        });
        let resources = Resources::from_spec(&serde_json::from_value(spec).unwrap()).unwrap();
        let found: Vec<String> =
            limits(&resources).unwrap().iter().map(|(name, value)| format!("{name} {value:?}")).collect();
        assert_eq!(
            found,
            [
                format!("MemorySwapMax Number({INFINITY})"),
                "MemoryMax Number(64)".into(),
                "CPUWeight Number(100)".into(),
                "CPUQuotaPerSecUSec Number(150000)".into(),
                "CPUQuotaPeriodUSec Number(100000)".into(),
                "AllowedCPUs Bytes([7, 2])".into(),
                format!("TasksMax Number({INFINITY})"),
                "MemoryHigh Number(32)".into(),
            ]
        );
        assert_eq!(per_second(1_000, 30_000), 40_000);
        assert_eq!(bits("9000"), None);
        assert_eq!(bits("3-1"), None);
    }
}
