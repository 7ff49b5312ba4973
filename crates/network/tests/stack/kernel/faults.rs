//! Partitions and shaped links.

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcMessage, TcOption};
use network::Error;
use network::shape::Shape;

use super::*;

/// Sends datagrams before, during and after a partition. That a packet is lost shows when a later one arrives first:
/// the neighbours know each other by then, and nothing is sent again.
struct Probe {
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl Probe {
    /// From one container to another.
    fn between(hub: &Hub, from: &str, to: &str, v6: bool) -> Self {
        let to_address = hub.address(to, "front", v6);
        let receiver = hub.within(to, || UdpSocket::bind((to_address, 0)).unwrap());
        let port = receiver.local_addr().unwrap().port();
        Self::new(hub.udp(from, (to_address, port)), receiver)
    }

    /// From the stack's namespace to a container.
    fn from_gateway(hub: &Hub, to: &str) -> Self {
        let to_address = hub.address(to, "front", false);
        let receiver = hub.within(to, || UdpSocket::bind((to_address, 0)).unwrap());
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        Self::new(sender, receiver)
    }

    /// From a container to the stack's namespace.
    fn to_gateway(hub: &Hub, from: &str) -> Self {
        let receiver = UdpSocket::bind((hub.plan.networks[0].gateway, 0)).unwrap();
        let sender = hub.udp(from, receiver.local_addr().map(|to| (to.ip(), to.port())).unwrap());
        Self::new(sender, receiver)
    }

    fn new(sender: UdpSocket, receiver: UdpSocket) -> Self {
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let probe = Self { sender, receiver };
        probe.send("first");
        probe.arrives("first");
        probe
    }

    fn send(&self, word: &str) {
        self.sender.send(word.as_bytes()).unwrap();
    }

    fn arrives(&self, word: &str) {
        let mut bytes = [0; 16];
        let length = self.receiver.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], word.as_bytes());
    }
}

pub(super) fn partition(hub: &mut Hub) {
    let mut pairs = vec![Probe::between(hub, "web", "app", false), Probe::between(hub, "app", "web", false)];
    if has_ipv6() {
        pairs.push(Probe::between(hub, "web", "app", true));
    }
    let gateway = [Probe::from_gateway(hub, "web"), Probe::to_gateway(hub, "web")];
    let send = |probes: &[Probe], word| probes.iter().for_each(|probe| probe.send(word));
    let arrives = |probes: &[Probe], word| probes.iter().for_each(|probe| probe.arrives(word));

    hub.namespaces.partition("web", &["app".into()]).unwrap();
    send(&pairs, "lost");
    send(&gateway, "passes");
    arrives(&gateway, "passes");
    // It is over for both when it is for one. `db` was not cut off.
    hub.namespaces.heal(Some("db")).unwrap();
    send(&pairs, "lost");
    hub.namespaces.heal(Some("app")).unwrap();
    send(&pairs, "healed");
    arrives(&pairs, "healed");

    hub.namespaces.partition("web", &[]).unwrap();
    hub.namespaces.partition("web", &["app".into()]).unwrap();
    send(&pairs, "lost");
    send(&gateway, "lost");
    hub.namespaces.heal(None).unwrap();
    send(&pairs, "healed");
    send(&gateway, "healed");
    arrives(&pairs, "healed");
    arrives(&gateway, "healed");

    let error = hub.namespaces.partition("web", &["nobody".into()]).unwrap_err();
    assert!(matches!(error, Error::NoContainer(name) if name == "nobody"));
}

pub(super) fn rate(hub: &mut Hub) {
    let before = queues();
    let shape = Shape { rate: Some(8_000_000), ..Shape::default() };
    hub.namespaces.shape("web", &shape).unwrap();
    let kind = if has_netem(hub) { "netem" } else { "tbf" };
    let is = |queues: &[(String, u32)], rate: u32| {
        queues.iter().any(|(one, of)| one == kind && (kind == "netem" || *of == rate))
    };
    assert!(is(&queues(), 1_000_000), "{:?}", queues());
    assert!(is(&hub.within("web", queues), 1_000_000));
    assert!(!is(&hub.within("app", queues), 1_000_000));
    // More than 4 Gbit/s do not fit the older of two fields.
    hub.namespaces.shape("web", &Shape { rate: Some(80_000_000_000), ..shape }).unwrap();
    assert!(is(&queues(), u32::MAX), "{:?}", queues());
    hub.namespaces.shape("web", &shape).unwrap();

    let mut plan = hub.plan.clone();
    let link = &mut plan.endpoints[0].interfaces[0];
    (link.address, link.address6) = ([10, 211, 0, 99].into(), None);
    let changes = hub.namespaces.apply(&plan).unwrap();
    assert_eq!(changes.endpoints, ["web"]);
    assert!(is(&queues(), 1_000_000) && is(&hub.within("web", queues), 1_000_000));
    hub.namespaces.apply(&hub.plan).unwrap();

    hub.namespaces.heal(Some("web")).unwrap();
    assert_eq!(queues(), before);
    arrives_over_tcp(hub, "web", OUTSIDE, &hub.sockets.tcp4);
    for nonsense in [Shape::default(), Shape { loss: Some(101.0), ..shape }] {
        let error = hub.namespaces.shape("web", &nonsense).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
}

pub(super) fn delay(hub: &mut Hub) {
    if has_netem(hub) {
        println!("not tested: this kernel has netem");
        return;
    }
    let shape = Shape { delay: Some(Duration::from_millis(1)), ..Shape::default() };
    let error = hub.namespaces.shape("web", &shape).unwrap_err();
    assert!(matches!(&error, Error::NoShaping { container, .. } if container == "web"), "{error:?}");
    assert!(error.hint().unwrap().contains("modprobe sch_netem"));
}

fn has_netem(hub: &mut Hub) -> bool {
    let shape = Shape { loss: Some(0.0), ..Shape::default() };
    let has = hub.namespaces.shape("db", &shape).is_ok();
    hub.namespaces.heal(Some("db")).unwrap();
    has
}

/// Kind and rate (0 where there is none) in bytes per second of the queues of this network namespace.
fn queues() -> Vec<(String, u32)> {
    let socket = nix::sys::socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
    .unwrap();
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let mut request = NetlinkMessage::from(request);
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    rustix::net::send(&socket, &bytes, rustix::net::SendFlags::empty()).unwrap();
    let mut queues = Vec::new();
    loop {
        let mut buffer = vec![0; 1 << 16];
        let (_, length) =
            rustix::net::recv(&socket, &mut buffer[..], rustix::net::RecvFlags::empty()).unwrap();
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).unwrap();
            rest = &rest[(message.header.length as usize).next_multiple_of(4).min(rest.len())..];
            match message.payload {
                NetlinkPayload::Done(_) => return queues,
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewQueueDiscipline(queue)) => {
                    queues.push(kind_and_rate(&queue));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn kind_and_rate(queue: &TcMessage) -> (String, u32) {
    let (mut kind, mut rate) = (String::new(), 0);
    for attribute in &queue.attributes {
        match attribute {
            TcAttribute::Kind(name) => kind.clone_from(name),
            TcAttribute::Options(options) => {
                let [TcOption::Other(options)] = &options[..] else { continue };
                let mut bytes = vec![0; options.value_len()];
                options.emit_value(&mut bytes);
                // Of tbf: the header of TCA_TBF_PARMS, eight bytes that describe a rate, the rate.
                rate = bytes.get(12..16).map_or(0, |rate| u32::from_ne_bytes(rate.try_into().unwrap()));
            }
            _ => {}
        }
    }
    (kind, rate)
}
