//! The network of `RUN` instructions: a namespace of their own, wired as a stack's is, with a way out through a netd.
//!
//! Three processes have a part in it. The storage worker stays in the host's network namespace, because it could not
//! come back. A child of it, the *keeper*, is in the new one, and makes sockets there as a hub does. The command
//! starts netd, which has no business in the worker's user namespace, when a worker asks for it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use network::intercept::Intercepted;
use network::link::Namespaces;
use network::names::NameSockets;
use network::netd::{Configuration, Descriptors};
use network::plan::{Attachment, EndpointRequest, NetworkPlan, NetworkRequest};
use serde::{Deserialize, Serialize};
use sys::address::host_of;
use sys::channel::Channel;
use sys::process::namespace;

use super::agent::Relay;
use crate::host::HostFacts;
use crate::netd::{Netd, Starter};
use crate::remote::{self, Context, RemoteError};

/// Name of the network. Neither it nor the endpoints' are names that somebody looks up.
const NETWORK: &str = "of builds";
/// The endpoint that instructions usually have.
const USUAL: &str = "RUN instructions";
/// The one of `--network=none`.
const UNCONNECTED: &str = "RUN instructions without network";
/// How long the keeper may take to wire everything, or netd to confirm its configuration.
const DEADLINE: Duration = Duration::from_secs(10);

/// What a worker's namespaces look like: the same for all workers, each of which has its own.
pub(super) fn of_this_host() -> Result<NetworkPlan, RemoteError> {
    let host = HostFacts::gather().map_err(|error| RemoteError::new(&error, None, 1))?;
    plan(&host, has_ipv6())
}

fn plan(host: &HostFacts, ipv6: bool) -> Result<NetworkPlan, RemoteError> {
    let network = NetworkRequest { name: NETWORK.into(), ipv6, mtu: host.mtu, ..NetworkRequest::default() };
    let attachment = Attachment { network: NETWORK.into(), ..Attachment::default() };
    let endpoint = |service: &str, attachments| EndpointRequest {
        service: service.into(),
        attachments,
        ..EndpointRequest::default()
    };
    let endpoints = [endpoint(USUAL, vec![attachment]), endpoint(UNCONNECTED, Vec::new())];
    Ok(network::plan::allocate(&[network], &endpoints, &host.used_subnets())?)
}

/// Whether the host has a way to IPv6 addresses of the world: a default route in `/proc/net/ipv6_route`.
fn has_ipv6() -> bool {
    std::fs::read_to_string("/proc/net/ipv6_route").is_ok_and(|table| has_default_route6(&table))
}

/// A line is destination, prefix length, six other fields, flags, interface. Where there is no route, the kernel has one
/// that leads to `lo` and refuses.
fn has_default_route6(table: &str) -> bool {
    table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.next().is_some_and(|destination| destination.bytes().all(|digit| digit == b'0'))
            && fields.next() == Some("00")
            && fields.last() != Some("lo")
    })
}

/// What the keeper says once: two namespaces, [`USUAL`]'s and [`UNCONNECTED`]'s, and with a way out netd's channel to
/// the keeper, the name server's two sockets and those of [`Intercepted::into_parts`].
#[derive(Debug, Serialize, Deserialize)]
enum Wired {
    Done { way_out: Result<[bool; 5], RemoteError> },
    Failed(RemoteError),
}

/// What a worker asks the command for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Question {
    /// A netd, for the sockets that come with it.
    WayOut([bool; 5]),
    /// Connections of the socket that comes with it are to be passed on to this agent.
    Agent(String),
}

/// A worker's networks for `RUN`.
#[derive(Debug)]
pub(super) struct Networks<'a> {
    plan: &'a NetworkPlan,
    command: &'a Channel,
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    /// Has a way out, or says why there cannot be one.
    usual: Result<OwnedFd, RemoteError>,
    unconnected: Result<OwnedFd, RemoteError>,
}

impl<'a> Networks<'a> {
    /// None so far; `command` is where a netd is asked for.
    pub(super) fn new(plan: &'a NetworkPlan, command: &'a Channel) -> Self {
        Self { plan, command, made: None }
    }

    /// Where the command that waits for this worker is asked for what only it can do.
    pub(super) fn command(&self) -> &'a Channel {
        self.command
    }

    /// The name server for those who have [`Networks::usual`].
    pub(super) fn name_server(&self) -> Option<Ipv4Addr> {
        self.plan.networks.first().map(|network| network.gateway)
    }

    /// The namespace of instructions that ask for nothing else, or why this host cannot have one.
    ///
    /// # Errors
    /// When it could, and something goes wrong.
    pub(super) fn usual(&mut self) -> Result<Result<BorrowedFd<'_>, &RemoteError>, RemoteError> {
        Ok(self.made()?.usual.as_ref().map(AsFd::as_fd))
    }

    /// The namespace that leads nowhere.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn unconnected(&mut self) -> Result<BorrowedFd<'_>, RemoteError> {
        self.made()?.unconnected.as_ref().map(AsFd::as_fd).map_err(Clone::clone)
    }

    fn made(&mut self) -> Result<&Made, RemoteError> {
        let made = match self.made.take() {
            Some(made) => made,
            None => make(self.plan, self.command)?,
        };
        Ok(self.made.insert(made))
    }
}

/// Has a keeper make the namespaces, and the command start a netd for them.
fn make(plan: &NetworkPlan, command: &Channel) -> Result<Made, RemoteError> {
    let (ours, theirs) = Channel::pair()?;
    let mut ours = Some(ours);
    // It ends with the worker, which is PID 1 of its PID namespace.
    sys::process::spawn(namespace::NETWORK, || {
        drop(ours.take());
        keep(plan, &theirs)
    })
    .context(|| "create a network namespace for the build".into())?;
    drop(theirs);
    // Still there: only the keeper's copy was emptied.
    let Some(ours) = ours else { return Err(unexpected()) };
    let message =
        ours.recv_until(Instant::now() + DEADLINE).context(|| "wait for the build's network".into())?;
    let (wired, fds) = remote::decode(message.ok_or_else(unexpected)?)?;
    let way_out = match wired {
        Wired::Done { way_out } => way_out,
        Wired::Failed(error) => return Ok(Made { usual: Err(error.clone()), unconnected: Err(error) }),
    };
    let mut fds = fds.into_iter();
    let (usual, unconnected) = fds.next().zip(fds.next()).ok_or_else(unexpected)?;
    let optional = match way_out {
        Ok(optional) => optional,
        Err(error) => return Ok(Made { usual: Err(error), unconnected: Ok(unconnected) }),
    };
    let fds: Vec<OwnedFd> = fds.collect();
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    remote::send(command, &Question::WayOut(optional), &fds)
        .context(|| "ask for a way out for the build".into())?;
    // The command may be stopped, and go on; its end is the end of this process.
    let answer = command.recv().context(|| "wait for a way out for the build".into())?;
    let answer: Result<(), RemoteError> = remote::decode(answer.ok_or_else(unexpected)?)?.0;
    answer.map(|()| Made { usual: Ok(usual), unconnected: Ok(unconnected) })
}

/// The keeper's life, in the new network namespace.
fn keep(plan: &NetworkPlan, worker: &Channel) -> i32 {
    match wire(plan, worker) {
        Ok(None) => 0,
        Ok(Some(netd)) => loop {
            match network::netd::serve_sockets(&netd) {
                Ok(true) => {}
                Ok(false) => return 0,
                Err(error) => {
                    eprintln!("error: the network of the build: {error}");
                    return 1;
                }
            }
        },
        Err(error) => remote::send(worker, &Wired::Failed(error), &[]).map_or(1, |()| 0),
    }
}

/// Tells the worker what there is, and returns the channel that netd asks for sockets on, if there is to be one.
fn wire(plan: &NetworkPlan, worker: &Channel) -> Result<Option<Channel>, RemoteError> {
    let mut namespaces = Namespaces::open()?;
    namespaces.apply(plan)?;
    let of = |endpoint| namespaces.get(endpoint).map(|it| it.try_clone_to_owned()).ok_or_else(unexpected);
    let mut fds = vec![of(USUAL)??, of(UNCONNECTED)??];
    let sockets = network::names::bind_in_current_namespace(&plan.networks)?;
    let (wired, ours) = match namespaces.intercept() {
        Err(error) => (Wired::Done { way_out: Err(error.into()) }, None),
        Ok(intercepted) => {
            let (ours, theirs) = Channel::pair()?;
            let (intercepted, optional) = intercepted.into_parts();
            fds.push(theirs.into());
            fds.extend(sockets.into_iter().flat_map(|sockets| [sockets.udp, sockets.tcp]));
            fds.extend(intercepted);
            (Wired::Done { way_out: Ok(optional) }, Some(ours))
        }
    };
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    remote::send(worker, &wired, &fds).context(|| "pass the build's network on".into())?;
    Ok(ours)
}

/// The command's side: a netd for a worker that asks for one.
#[derive(Debug)]
pub(super) struct WayOut {
    worker: Channel,
    netd: Option<Netd>,
    relays: Vec<Relay>,
}

impl AsFd for WayOut {
    /// Readable when the worker asks.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.worker.as_fd()
    }
}

impl WayOut {
    /// And the worker's end.
    pub(super) fn pair() -> io::Result<(Self, Channel)> {
        let (worker, theirs) = Channel::pair()?;
        Ok((Self { worker, netd: None, relays: Vec::new() }, theirs))
    }

    /// Does what the worker asks, if it is still there. That it is not is told by another channel.
    ///
    /// # Errors
    /// When its question makes no sense.
    pub(super) fn answer(
        &mut self,
        starter: &Starter,
        plan: &NetworkPlan,
        agents: &BTreeMap<String, PathBuf>,
    ) -> io::Result<()> {
        let Some(message) = self.worker.recv()? else { return Ok(()) };
        let (question, fds) = remote::decode(message)?;
        let answer = match question {
            Question::WayOut(optional) => self.open(starter, plan, optional, fds),
            Question::Agent(id) => match (agents.get(&id), fds.into_iter().next()) {
                (Some(agent), Some(listener)) => {
                    Relay::start(listener, agent).map(|relay| self.relays.push(relay))
                }
                _ => Err(unexpected()),
            },
        };
        // A worker that is gone needs no answer.
        remote::send(&self.worker, &answer, &[]).ok();
        Ok(())
    }

    fn open(
        &mut self,
        starter: &Starter,
        plan: &NetworkPlan,
        optional: [bool; 5],
        fds: Vec<OwnedFd>,
    ) -> Result<(), RemoteError> {
        let mut fds = fds.into_iter();
        let keeper = fds.next().ok_or_else(unexpected)?;
        let (udp, tcp) = fds.next().zip(fds.next()).ok_or_else(unexpected)?;
        let names = [NameSockets { network: NETWORK.into(), udp, tcp }];
        let intercepted = Intercepted::from_parts(fds, optional).ok_or_else(unexpected)?;
        let configuration = Configuration { plan: plan.clone(), ..Configuration::default() };
        let with = Descriptors {
            hub: Some(keeper.as_fd()),
            names: &names,
            listeners: &[],
            intercepted: Some(&intercepted),
            ..Descriptors::default()
        };
        let netd = self.netd.insert(starter.start()?);
        netd.client.configure(&configuration, &with)?;
        Ok(netd.client.confirmed(Instant::now() + DEADLINE)?)
    }

    /// Ends what was started for the worker.
    pub(super) fn close(self) -> io::Result<()> {
        self.relays.into_iter().try_for_each(Relay::end)?;
        self.netd.map_or(Ok(()), |netd| netd.end().map(drop))
    }
}

/// `/etc/resolv.conf` for those who have `server` as name server: what else the host's says stays.
pub(super) fn resolv(host: &str, server: Option<Ipv4Addr>) -> String {
    let others = host.lines().filter(|line| line.split_whitespace().next() != Some("nameserver"));
    let others: String = others.map(|line| format!("{line}\n")).collect();
    server.map(|server| format!("nameserver {server}\n")).unwrap_or_default() + &others
}

/// The variables that name a proxy on the host's loopback, where only those in its namespace reach it.
pub(super) fn loopback_proxies(args: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let is_proxy = |name: &str| {
        let name = name.to_ascii_lowercase();
        matches!(name.as_str(), "http_proxy" | "https_proxy" | "ftp_proxy" | "all_proxy")
    };
    let found = args.iter().filter(|(name, url)| is_proxy(name) && is_loopback(host_of(url)));
    found.map(|(name, url)| (name.clone(), url.clone())).collect()
}

fn is_loopback(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost"),
    }
}

fn unexpected() -> RemoteError {
    RemoteError::message("the processes that make the build's network do not understand each other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_on_the_loopback_are_known() {
        let proxy = |name: &str, url: &str| {
            let args = [("PATH".to_owned(), "localhost".to_owned()), (name.to_owned(), url.to_owned())];
            loopback_proxies(&args.into()).contains_key(name)
        };
        for url in [
            "http://127.0.0.1:3142",
            "localhost:8080",
            "http://user:a@b@LOCALHOST./",
            "socks5://[::1]:1080",
            "http://[::ffff:127.0.0.1]",
            "127.1.2.3",
        ] {
            assert!(proxy("http_proxy", url) && proxy("ALL_PROXY", url), "{url}");
        }
        for url in
            ["", "http://proxy.example:3128", "http://10.0.0.1/localhost", "http://localhost@192.0.2.1"]
        {
            assert!(!proxy("http_proxy", url), "{url}");
        }
        assert!(!proxy("no_proxy", "localhost"));
    }

    #[test]
    fn names_are_asked_for_at_the_gateway() {
        let host = "# of a program\nnameserver 127.0.0.53\nnameserver ::1\noptions edns0\nsearch example\n";
        let rest = "# of a program\noptions edns0\nsearch example\n";
        assert_eq!(resolv(host, Some(Ipv4Addr::new(10, 89, 0, 1))), format!("nameserver 10.89.0.1\n{rest}"));
        assert_eq!(resolv(host, None), rest);
    }

    #[test]
    fn the_network_keeps_clear_of_the_hosts() {
        let route =
            crate::host::Route { destination: (Ipv4Addr::new(10, 89, 0, 0), 24), interface: "eth0".into() };
        let host = HostFacts { routes: vec![route], mtu: Some(1400), ..HostFacts::default() };
        let plan = plan(&host, true).unwrap();
        let [network] = &plan.networks[..] else { panic!("{plan:?}") };
        assert!(network.subnet != Ipv4Addr::new(10, 89, 0, 0) && network.mtu == Some(1400));
        let [usual, unconnected] = &plan.endpoints[..] else { panic!("{plan:?}") };
        assert!(usual.interfaces[0].address6.is_some() && unconnected.interfaces.is_empty());
    }
}
