use std::net::Ipv4Addr;

use network::egress::Policy;
use network::plan::{Endpoint, Mode, Protocol};

use super::tests::{Fixture, host};
use super::*;
use crate::host::Route;
use crate::plan::{NetworkMode, Service};

const STACK: &str = r#"
name = "net"

[services.ftp]
image = "i"
replicas = 2
balance = { policy = "source", retry = 3 }
egress = "none"
ports = [
    { target = 21, published = 2121, protocol = "ftp", passive = "21100-21109", announce = "203.0.113.5" },
    "5353:53/udp",
    "[::1]:5353:53",
]
networks = { back = { aliases = ["files"] }, front = { gw_priority = 5 } }

[services.web]
image = "i"
hostname = "www.example.org"
dns = "192.0.2.53"
dns_search = ["example.org"]
dns_opt = ["timeout:2"]
egress = ["example.org:443", "cdn.example.org:443"]
extra_hosts = { "a.example.org" = "192.0.2.1", "b" = ["192.0.2.2", "2001:db8::2"], "host" = "host-gateway" }
mac_address = "02-42-AC-11-00-03"
links = ["ftp:upload"]
networks = ["front", "back"]
ports = [{ target = 80, published = 8080, mode = "direct", app_protocol = "http" }]

[services.probe]
image = "i"
network_mode = "service:web"

[services.tail]
image = "i"
network_mode = "container:probe"

[services.monitor]
image = "i"
network_mode = "host"
extra_hosts = ["h:host-gateway"]

[services.alone]
image = "i"
network_mode = "none"
replicas = 0

[networks.front]
enable_ipv6 = true
mtu = 1400

[networks.back]
internal = true
ipam = { config = [{ subnet = "172.28.0.0/24" }, { subnet = "fd00:28::/64" }] }
"#;

fn read(text: &str) -> Plan {
    let fixture = Fixture::new(&[("stack.toml", text)]);
    load(&fixture.options("stack.toml"), &host()).unwrap_or_else(|error| panic!("{}", error.render(false)))
}

fn service<'a>(plan: &'a Plan, name: &str) -> &'a Service {
    plan.services.iter().find(|service| service.name == name).unwrap()
}

fn endpoint<'a>(plan: &'a Plan, name: &str) -> &'a Endpoint {
    plan.network.endpoints.iter().find(|endpoint| endpoint.service == name).unwrap()
}

#[test]
fn a_stack_file_with_every_key() {
    let fixture = Fixture::new(&[("stack.toml", STACK)]);
    let plan = load(&fixture.options("stack.toml"), &host()).unwrap();
    insta::assert_snapshot!("network_stack", fixture.json(plan));
}

#[test]
fn a_compose_file_with_every_key() {
    let compose = r#"
services:
  web:
    image: i
    x-egress: [example.org:443]
    x-balance: least-conn
    scale: 3
    deploy:
      replicas: 3
      endpoint_mode: dnsrr
      update_config: { order: start-first, parallelism: 2 }
    ports: ["9000-9001:9000-9001/udp", { target: 53, published: "53000", protocol: udp, mode: host }]
    extra_hosts: ["a=192.0.2.1", "b:192.0.2.2", "c=[2001:db8::3]", "d:2001:db8::4"]
    domainname: example.org
    dns: [192.0.2.53, "2001:db8::53"]
    external_links: [other]
    networks:
      a: { priority: 1, link_local_ips: [169.254.7.7] }
      b: { priority: 2 }
  db:
    image: i
    links: ["web"]
    deploy: { mode: global }
    networks:
      a: { mac_address: "02:00:00:00:00:01", ipv4_address: 10.7.0.9, ipv6_address: "fd07::a07:9" }
  host:
    image: i
    network_mode: host
    dns: 192.0.2.53
    ports: ["80:80"]
networks:
  a:
    driver_opts: { com.docker.network.driver.mtu: 1300, com.docker.network.bridge.name: br7 }
    ipam: { config: [{ subnet: 10.7.0.0/24, gateway: 10.7.0.254 }, { subnet: "fd07::/80", gateway: "fd07::a07:fe" }] }
  b: { enable_ipv4: false }
"#;
    let fixture = Fixture::new(&[("compose.yaml", compose)]);
    let plan =
        load(&fixture.options("compose.yaml"), &host()).unwrap_or_else(|e| panic!("{}", e.render(false)));
    insta::assert_snapshot!("network_compose", fixture.json(plan));
}

/// A file with these keys in service `a`, and these lines behind them.
fn stack(keys: &str, rest: &str) -> String {
    format!("[services.a]\nimage = \"i\"\n{keys}\n{rest}\n")
}

const B: &str = "[services.b]\nimage = \"i\"";
const N: &str = "[networks.n]\nipam = { config = [{ subnet = \"10.1.0.0/24\" }] }";

#[test]
fn every_network_error_of_a_stack_file() {
    let network = |lines: &str| stack("networks = [\"n\"]", &format!("[networks.n]\n{lines}"));
    let subnets = |list: &str| network(&format!("ipam = {{ config = [{list}] }}"));
    let cases: Vec<(&str, String)> = vec![
        // Ports.
        ("ftp in short", stack("ports = [\"2121:21/ftp\"]", "")),
        ("ftp without passive", stack("ports = [{ target = 21, protocol = \"ftp\" }]", "")),
        ("passive without ftp", stack("ports = [{ target = 21, passive = \"2000-2010\" }]", "")),
        ("announce without ftp", stack("ports = [{ target = 21, announce = \"203.0.113.5\" }]", "")),
        ("bad passive", stack("ports = [{ target = 21, protocol = \"ftp\", passive = \"10-2\" }]", "")),
        (
            "bad announce",
            stack(
                "ports = [{ target = 21, protocol = \"ftp\", passive = \"2000-2010\", announce = \"me\" }]",
                "",
            ),
        ),
        ("sctp", stack("ports = [\"80:80/sctp\"]", "")),
        ("bad protocol", stack("ports = [\"80:80/upd\"]", "")),
        ("bad mode of a port", stack("ports = [{ target = 80, mode = \"driect\" }]", "")),
        (
            "direct ftp",
            stack(
                "ports = [{ target = 21, protocol = \"ftp\", passive = \"2000-2010\", mode = \"direct\" }]",
                "",
            ),
        ),
        ("direct and replicated", stack("replicas = 2\nports = [{ target = 80, mode = \"direct\" }]", "")),
        ("two udp ports", stack("ports = [\"5353:53/udp\", \"5353:54/udp\"]", "")),
        (
            "a passive port that is published",
            stack(
                "ports = [{ target = 21, protocol = \"ftp\", passive = \"2000-2010\" }]",
                &format!("{B}\nports = [\"2005:80\"]"),
            ),
        ),
        ("low udp port", stack("ports = [\"53:53/udp\"]", "")),
        (
            "low passive port",
            stack("ports = [{ target = 21, protocol = \"ftp\", passive = \"1000-1010\" }]", ""),
        ),
        (
            "fewer passive ports than replicas",
            stack("replicas = 3\nports = [{ target = 21, protocol = \"ftp\", passive = \"2000-2001\" }]", ""),
        ),
        // Replicas.
        ("bad replicas", stack("replicas = -1", "")),
        ("two numbers", stack("scale = 2\ndeploy = { replicas = 3 }", "")),
        ("container name and replicas", stack("replicas = 2\ncontainer_name = \"x\"", "")),
        (
            "address and replicas",
            stack("replicas = 2\nnetworks = { n = { ipv4_address = \"10.1.0.9\" } }", N),
        ),
        (
            "address 6 and replicas",
            stack("replicas = 2\nnetworks = { n = { ipv6_address = \"fd00::9\" } }", N),
        ),
        ("mac and replicas", stack("replicas = 2\nmac_address = \"02:00:00:00:00:01\"", "")),
        (
            "mac of a network and replicas",
            stack("replicas = 2\nnetworks = { n = { mac_address = \"02:00:00:00:00:01\" } }", N),
        ),
        ("host network and replicas", stack("replicas = 2\nnetwork_mode = \"host\"", "")),
        ("the name of a replica", stack("replicas = 2", "[services.a-2]\nimage = \"i\"")),
        ("the other name of the first", stack("replicas = 1", "[services.a-1]\nimage = \"i\"")),
        ("bad balance", stack("balance = \"least-con\"", "")),
        ("bad key of balance", stack("balance = { polcy = \"source\" }", "")),
        ("bad deploy.mode", stack("deploy = { mode = \"globl\" }", "")),
        ("bad endpoint_mode", stack("deploy = { endpoint_mode = \"dns\" }", "")),
        ("bad order", stack("deploy = { update_config = { order = \"start-frist\" } }", "")),
        ("bad key of update_config", stack("deploy = { update_config = { oder = \"start-first\" } }", "")),
        // Egress.
        ("bad egress", stack("egress = \"non\"", "")),
        ("a rule without a list", stack("egress = \"example.org:443\"", "")),
        ("bad rule", stack("egress = [\"example.org:443\", \"example.org:https\"]", "")),
        // Modes.
        ("bad network_mode", stack("network_mode = \"hots\"", "")),
        ("no such service", stack("network_mode = \"service:c\"", B)),
        ("another stack's container", stack("network_mode = \"container:other-web-1\"", B)),
        (
            "modes in a circle",
            stack("network_mode = \"service:b\"", &format!("{B}\nnetwork_mode = \"service:a\"")),
        ),
        ("its own mode", stack("network_mode = \"service:a\"", "")),
        ("ports of a shared network", stack("network_mode = \"service:b\"\nports = [\"8080:80\"]", B)),
        (
            "networks of a shared network",
            stack("networks = [\"n\"]\nnetwork_mode = \"container:b\"", &format!("{B}\n{N}")),
        ),
        ("host name in a shared network", stack("network_mode = \"service:b\"\nhostname = \"x\"", B)),
        ("egress of a shared network", stack("network_mode = \"service:b\"\negress = \"none\"", B)),
        ("the network of nobody", stack("network_mode = \"service:b\"", &format!("{B}\nreplicas = 0"))),
        ("networks and the host's", stack("network_mode = \"host\"\nnetworks = [\"n\"]", N)),
        ("egress and the host's network", stack("network_mode = \"host\"\negress = \"none\"", "")),
        ("balance of a shared network", stack("network_mode = \"service:b\"\nbalance = \"source\"", B)),
        ("mac without a network", stack("network_mode = \"none\"\nmac_address = \"02:00:00:00:00:01\"", "")),
        // Addresses.
        ("bad mac", stack("mac_address = \"03:00:00:00:00:01\"", "")),
        (
            "two macs",
            stack(
                "mac_address = \"02:00:00:00:00:01\"\nnetworks = { n = { mac_address = \"02:00:00:00:00:02\" } }",
                N,
            ),
        ),
        (
            "one mac twice",
            stack(
                "mac_address = \"02:00:00:00:00:01\"",
                &format!("{B}\nnetworks = {{ default = {{ mac_address = \"02:00:00:00:00:01\" }} }}"),
            ),
        ),
        ("mac on no network", stack("networks = []\nmac_address = \"02:00:00:00:00:01\"", "")),
        ("ipv6 address without ipv6", stack("networks = { n = { ipv6_address = \"fd00::9\" } }", N)),
        (
            "another ipv6 address",
            stack(
                "networks = { n = { ipv4_address = \"10.1.0.9\", ipv6_address = \"fd00::9\" } }",
                &format!("{N}\nenable_ipv6 = true"),
            ),
        ),
        ("bad ipv6 address", stack("networks = { n = { ipv6_address = \"10.1.0.9\" } }", N)),
        ("bad key of a network", stack("networks = { n = { ipv4_adress = \"10.1.0.9\" } }", N)),
        // Networks.
        ("two subnets", subnets("{ subnet = \"10.1.0.0/24\" }, { subnet = \"10.2.0.0/24\" }")),
        ("prefix of ipv6", subnets("{ subnet = \"fd00::/48\" }")),
        ("address within an ipv6 subnet", subnets("{ subnet = \"fd00::1/64\" }")),
        ("not a subnet", subnets("{ subnet = \"fd00::/64/1\" }")),
        ("another ipv6 gateway", subnets("{ subnet = \"fd00::/64\", gateway = \"fd00::ff\" }")),
        ("bad gateway", subnets("{ subnet = \"fd00::/64\", gateway = \"first\" }")),
        (
            "two networks on an ipv6 subnet",
            stack(
                "networks = [\"n\", \"m\"]",
                "[networks.n]\nipam = { config = [{ subnet = \"fd00::/64\" }] }\n[networks.m]\nipam = { config = [{ subnet = \"fd00::/80\" }] }",
            ),
        ),
        ("a route of the host", subnets("{ subnet = \"10.89.0.0/16\" }")),
        ("bad mtu", network("mtu = 100")),
        ("mtu of ipv6", network("mtu = 1000\nenable_ipv6 = true")),
        ("bad key", network("intrenal = true")),
        // Names.
        ("bad dns", stack("dns = [\"one.one.one.one\"]", "")),
        ("bad dns_search", stack("dns_search = [\"a b\"]", "")),
        ("bad dns_opt", stack("dns_opt = [\"timeout 2\"]", "")),
        ("bad domainname", stack("domainname = \"-\"", "")),
        ("bad extra_hosts", stack("extra_hosts = [\"db\"]", "")),
        ("bad name in extra_hosts", stack("extra_hosts = [\"d b=192.0.2.1\"]", "")),
        ("bad address in extra_hosts", stack("extra_hosts = { db = \"host-gatway\" }", "")),
        ("no gateway", stack("extra_hosts = { db = \"host-gateway\" }\nnetwork_mode = \"none\"", "")),
        ("bad link", stack("links = [\"c\"]", B)),
        ("bad alias of a link", stack("links = [\"b:x y\"]", B)),
        ("a circle of links", stack("links = [\"b\"]", &format!("{B}\ndepends_on = [\"a\"]"))),
    ];
    insta::assert_snapshot!("network_stack_errors", Fixture::new(&[]).errors("stack.toml", &cases));
}

#[test]
fn every_network_error_of_a_compose_file() {
    let cases = [
        ("replicas", "services: { a: { image: i, replicas: 2 } }\n"),
        ("balance", "services: { a: { image: i, balance: source } }\n"),
        ("egress", "services: { a: { image: i, egress: none } }\n"),
        ("bad x-egress", "services: { a: { image: i, x-egress: [a b] } }\n"),
        ("mtu", "services: { a: { image: i, networks: [n] } }\nnetworks: { n: { mtu: 1400 } }\n"),
    ];
    insta::assert_snapshot!("network_compose_errors", Fixture::new(&[]).errors("compose.yaml", &cases));
}

#[test]
fn protocols_have_ports_of_their_own() {
    let plan = read(&stack("ports = [\"5353:53\", \"5353:53/udp\"]", ""));
    let ports: Vec<_> = service(&plan, "a").ports.iter().map(|port| (port.protocol, port.mode)).collect();
    assert_eq!(ports, [(Protocol::Tcp, Mode::Proxy), (Protocol::Udp, Mode::Proxy)]);
}

#[test]
fn an_option_outweighs_the_number_of_replicas() {
    let fixture = Fixture::new(&[("stack.toml", &stack("replicas = 2", B))]);
    let mut options = fixture.options("stack.toml");
    let of = |options: &LoadOptions| {
        let plan = load(options, &host()).unwrap();
        let groups: Vec<_> = plan.network.groups.iter().map(|group| group.service.clone()).collect();
        (service(&plan, "a").replicas, service(&plan, "b").replicas, plan.network.endpoints.len(), groups)
    };
    assert_eq!(of(&options), (2, 1, 3, vec!["a".to_owned()]));
    options.scale = [("a".to_owned(), 0), ("b".to_owned(), 3)].into();
    assert_eq!(of(&options), (0, 3, 4, vec!["a".to_owned(), "b".to_owned()]));
    let mut all = String::new();
    for (name, number) in [("aa", 2), ("web", 2), ("b", 1001)] {
        options.scale = [(name.to_owned(), number)].into();
        all.push_str(&format!("=== {name}={number}\n{}\n", fixture.error(&options)));
    }
    fixture.write("stack.toml", &stack("container_name = \"x\"", ""));
    options.scale = [("a".to_owned(), 2)].into();
    all.push_str(&format!("=== a named container\n{}\n", fixture.error(&options)));
    insta::assert_snapshot!("network_scale_errors", all);
}

#[test]
fn the_hash_leaves_out_what_changes_while_containers_run() {
    let hash = |keys: &str| {
        let plan = read(&stack(keys, &format!("{B}\n[networks.n]")));
        service(&plan, "a").config_hash.clone()
    };
    let plain = hash("");
    for same in [
        "replicas = 5",
        "balance = \"source\"",
        "egress = \"none\"",
        "dns = \"192.0.2.53\"",
        "links = [\"b\"]",
    ] {
        assert_eq!(plain, hash(same), "{same}");
    }
    for changed in [
        "mac_address = \"02:00:00:00:00:01\"",
        "extra_hosts = [\"a=192.0.2.1\"]",
        "dns_search = \"example.org\"",
        "domainname = \"example.org\"",
        "network_mode = \"host\"",
        "ports = [\"5353:53/udp\"]",
    ] {
        assert_ne!(plain, hash(changed), "{changed}");
    }
    let owner = |keys: &str| {
        let plan = read(&stack("network_mode = \"service:b\"", &format!("{B}\n{keys}")));
        service(&plan, "a").config_hash.clone()
    };
    assert_ne!(owner(""), owner("hostname = \"x\""), "the files are the owner's");
}

#[test]
fn the_mtu_is_that_of_the_way_out() {
    let text =
        stack("networks = [\"n\", \"i\"]", &format!("{B}\n[networks.n]\n[networks.i]\ninternal = true"));
    let fixture = Fixture::new(&[("stack.toml", &text)]);
    let of = |mtu, enable| {
        fixture.write("stack.toml", &text.replace("[networks.n]\n", &format!("[networks.n]\n{enable}\n")));
        let plan = load(&fixture.options("stack.toml"), &HostFacts { mtu, ..host() }).unwrap();
        plan.network.networks.iter().map(|network| network.mtu).collect::<Vec<_>>()
    };
    assert_eq!(of(None, ""), [None, None, None]);
    assert_eq!(of(Some(1420), ""), [Some(1420), None, Some(1420)], "n, i, default");
    assert_eq!(of(Some(1420), "mtu = 1300"), [Some(1300), None, Some(1420)]);
    assert_eq!(of(Some(1000), "enable_ipv6 = true"), [Some(1280), None, Some(1000)]);
}

#[test]
fn routes_of_the_host_only_count_where_they_lead() {
    let fixture = Fixture::new(&[("stack.toml", &stack("networks = [\"n\"]", N))]);
    let mut host = host();
    assert!(load(&fixture.options("stack.toml"), &host).is_ok());
    // A name server there is no reason to refuse.
    host.name_servers.push(Ipv4Addr::new(10, 1, 0, 53));
    assert!(load(&fixture.options("stack.toml"), &host).is_ok());
    host.routes.push(Route { destination: (Ipv4Addr::new(10, 0, 0, 0), 8), interface: "tun0".to_owned() });
    assert!(load(&fixture.options("stack.toml"), &host).is_err());
}

#[test]
fn the_owner_of_a_namespace_comes_first() {
    let plan = read(&stack(
        "network_mode = \"service:b\"",
        &format!("{B}\nnetwork_mode = \"service:c\"\n[services.c]\nimage = \"i\"\nhostname = \"x\""),
    ));
    let names: Vec<&str> = plan.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["c", "b", "a"]);
    for name in ["a", "b"] {
        assert_eq!(service(&plan, name).network_mode, NetworkMode::Service("c".to_owned()));
        assert_eq!(service(&plan, name).hostname, "x");
    }
    assert_eq!(plan.network.endpoints.len(), 1);
    // At the end of a chain may be the host's.
    let plan = read(&stack("network_mode = \"service:b\"", &format!("{B}\nnetwork_mode = \"host\"")));
    assert_eq!(service(&plan, "a").network_mode, NetworkMode::Host);
    assert!(plan.network.endpoints.is_empty());
}

#[test]
fn egress_is_the_endpoints() {
    let plan = read(&stack("egress = []\ndns = [\"192.0.2.53\"]", B));
    assert_eq!(endpoint(&plan, "a").egress, Policy::None);
    assert_eq!(endpoint(&plan, "b").egress, Policy::All);
    assert_eq!(endpoint(&plan, "a").resolvers, ["192.0.2.53".parse::<Ipv4Addr>().unwrap()]);
}

#[test]
fn how_services_hang_together() {
    let text = r#"
name = "net"
[services.web]
image = "i"
depends_on = { db = { condition = "service_healthy" } }
networks = ["front", "back"]
replicas = 2
[services.db]
image = "i"
networks = ["back"]
[services.watch]
image = "i"
network_mode = "service:db"
[services.host]
image = "i"
network_mode = "host"
[networks.front]
[networks.back]
internal = true
"#;
    let fixture = Fixture::new(&[("stack.toml", text)]);
    let plan = load(&fixture.options("stack.toml"), &host()).unwrap();
    let topology = crate::topology::Topology::of(&plan);
    let networks: Vec<_> = topology.networks.iter().map(|n| (n.name.as_str(), n.internal)).collect();
    assert_eq!(networks, [("front", false), ("back", true)]);
    assert!(topology.networks.iter().all(|n| n.subnets.len() == 1 && n.subnets[0].ends_with("/24")));
    let node = |name: &str| topology.services.iter().find(|node| node.name == name).unwrap();
    assert_eq!(node("web").networks, ["back", "front"]);
    assert_eq!(node("web").needs.len(), 1);
    assert_eq!(node("web").needs[0].condition, crate::plan::Condition::Healthy);
    assert_eq!(
        (node("watch").joins.as_deref(), &node("watch").networks[..]),
        (Some("db"), &["back".to_owned()][..])
    );
    assert!(node("host").on_host && node("host").networks.is_empty());
}
