//! The way out where the kernel cannot intercept what containers send: slirp4netns, if it is installed.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use network::Subnet;
use network::egress::Policy;
use network::plan::NetworkPlan;
use rustix::process::PidfdFlags;

use super::Supervisor;
use crate::hub::client::Hub;
use crate::remote::{Context, RemoteError};
use crate::report::report;

const PROGRAM: &str = "slirp4netns";
/// The device that it makes in the stack's namespace.
const DEVICE: &str = "tap0";
/// How long it may take to be ready.
const DEADLINE: Duration = Duration::from_secs(10);
/// Its own network, of /24: the usual one, or another where the stack has that.
const SUBNETS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 2, 0), Ipv4Addr::new(192, 168, 127, 0)];
/// Its own address there, from the subnet's first one on.
const GATEWAY: u32 = 2;
/// Forces it, for a test.
const HOOK: &str = "INCEPTION_TEST_NO_INTERCEPTION";

/// Fails where a test wants to see what happens without interception.
pub(super) fn hook() -> Result<(), RemoteError> {
    match std::env::var_os(HOOK) {
        Some(_) => {
            Err(RemoteError::message(format!("intercept what leaves the stack's networks: {HOOK} is set")))
        }
        None => Ok(()),
    }
}

/// A slirp4netns that runs. It ends when its standard input does, which is ours, and so dies with us.
#[derive(Debug)]
pub(super) struct Detour {
    process: Child,
    /// Readable when it has ended.
    pidfd: OwnedFd,
}

impl Detour {
    /// Starts one for the stack of `hub`, and has the hub route by it. `None` where it is not installed.
    pub(super) fn open(plan: &NetworkPlan, hub: &mut Hub) -> Result<Option<Self>, RemoteError> {
        let own = plan.networks.iter().map(|network| Subnet::of(network.subnet, network.prefix));
        let own: Vec<Subnet> = own.collect();
        let free = |first: &Ipv4Addr| !own.iter().any(|own| own.overlaps(Subnet::of(*first, 24)));
        let first = SUBNETS.into_iter().find(free);
        let first = first.ok_or_else(|| RemoteError::message(format!("no subnet is left for {PROGRAM}")))?;
        let gateway = Ipv4Addr::from(u32::from(first) + GATEWAY);
        let started = Command::new(PROGRAM)
            .args(["--configure", "--mtu=65520", "--disable-host-loopback", "--disable-dns"])
            .args(["--exit-fd=0", "--ready-fd=1"])
            .arg(format!("--cidr={first}/24"))
            .args([&hub.process.pid.to_string(), DEVICE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let process = match started {
            Ok(process) => process,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(|| format!("start {PROGRAM}")),
        };
        let pid = rustix::process::Pid::from_child(&process);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?;
        let detour = Self { process, pidfd };
        detour.await_ready().context(|| format!("wait for {PROGRAM}"))?;
        hub.detour(DEVICE, gateway)?;
        Ok(Some(detour))
    }

    /// It says `1` when its device is there.
    fn await_ready(&self) -> io::Result<()> {
        let ready = self.process.stdout.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        sys::channel::wait_readable(ready.as_fd(), Instant::now() + DEADLINE)?;
        match rustix::io::read(ready, &mut [0; 1])? {
            0 => Err(io::Error::other("it has ended")),
            _ => Ok(()),
        }
    }
}

impl AsFd for Detour {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        // One that has ended already is only reaped.
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            tracing::warn!("end {PROGRAM}: {error}");
        }
    }
}

/// What does not work with it, in words.
pub(super) fn what_is_lost(plan: &NetworkPlan) -> String {
    let mut text = format!(
        "{PROGRAM} is the services' way out, and clients of published ports appear as the stack's gateway"
    );
    if !plan.groups.is_empty() {
        text.push_str("; addresses that replicas share take no connections");
    }
    let restricted: BTreeSet<&str> = (plan.endpoints.iter())
        .filter(|endpoint| endpoint.egress != Policy::All)
        .map(|endpoint| endpoint.group.as_str())
        .collect();
    if !restricted.is_empty() {
        let names: Vec<String> = restricted.iter().map(|name| format!("`{name}`")).collect();
        text.push_str(&format!(
            "; egress policies cannot be enforced, so that {} can reach nothing outside",
            names.join(", ")
        ));
    }
    text
}

impl Supervisor {
    /// slirp4netns has ended: whoever is connected to outside notices.
    pub(super) fn lose_detour(&mut self) {
        self.wiring.lose_detour();
        report(format_args!("warning: {PROGRAM} has ended: services have no way out until the next `up`"));
    }
}
