use std::net::{IpAddr, Ipv4Addr};

use super::replica::replica_environment;
use super::*;
use crate::host::HostFacts;
use crate::load::{LoadOptions, load};
use crate::plan::Plan;

fn plan(text: &str) -> Plan {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("stack.toml");
    std::fs::write(&file, text).unwrap();
    load(&LoadOptions { files: vec![file], ..LoadOptions::default() }, &HostFacts::default()).unwrap()
}

/// `/etc/hosts` and `/etc/resolv.conf` of a service.
fn files(plan: &Plan, service: &str) -> [String; 2] {
    let found = plan.services.iter().find(|known| known.name == service).unwrap();
    let mounts = names::files(found, service, &plan.network).unwrap();
    ["/etc/hosts", "/etc/resolv.conf"].map(|target| {
        let mount = mounts.iter().find(|mount| mount.target == target).unwrap();
        let MountSource::File { content, .. } = &mount.source else { panic!("{target} is a file") };
        String::from_utf8(content.clone()).unwrap()
    })
}

#[test]
fn names_of_a_container() {
    let plan = plan(
        r#"
[services.a]
image = "i"
domainname = "example.org"
extra_hosts = ["db=192.0.2.1", "db:[2001:db8::1]"]
dns_search = ["example.org", "example.net"]
dns_opt = ["timeout:2"]
networks = ["four", "six"]
[services.b]
image = "i"
hostname = "b.example.org"
dns_opt = ["ndots:2"]
networks = ["four"]
[services.c]
image = "i"
network_mode = "service:a"
[services.d]
image = "i"
network_mode = "none"
[networks.four]
[networks.six]
enable_ipv6 = true
"#,
    );
    let [hosts, resolv] = files(&plan, "a");
    assert_eq!(
        hosts,
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         10.89.0.2\ta.example.org a\n\
         10.89.1.2\ta.example.org a\n\
         fd89:a59:100::a59:102\ta.example.org a\n\
         192.0.2.1\tdb\n\
         2001:db8::1\tdb\n"
    );
    assert_eq!(resolv, "nameserver 10.89.0.1\nsearch example.org example.net\noptions ndots:0 timeout:2\n");
    assert_eq!(files(&plan, "c"), [hosts, resolv], "the files are those of the namespace's owner");
    let [hosts, resolv] = files(&plan, "b");
    assert_eq!(hosts, "127.0.0.1\tlocalhost\n10.89.0.3\tb.example.org b\n");
    assert_eq!(resolv, "nameserver 10.89.0.1\noptions ndots:2\n");
    let [hosts, resolv] = files(&plan, "d");
    assert_eq!(
        (hosts.as_str(), resolv.as_str()),
        ("127.0.0.1\tlocalhost\n", "# this service is on no network\n")
    );
}

#[test]
fn names_with_the_hosts_network() {
    let text = "[services.a]\nimage = \"i\"\nnetwork_mode = \"host\"\nextra_hosts = [\"db=192.0.2.1\"]\n";
    let mut service = plan(text).services.remove(0);
    let hosts = names::hosts_of_host(&service, "127.0.0.1 localhost\n192.0.2.9 host # a");
    assert_eq!(hosts, "127.0.0.1 localhost\n192.0.2.9 host # a\n127.0.0.1\ta\n192.0.2.1\tdb\n");
    assert_eq!(names::hosts_of_host(&service, "127.0.1.1 host a\n"), "127.0.1.1 host a\n192.0.2.1\tdb\n");
    let resolv = "nameserver 127.0.0.53\noptions edns0\nsearch lan\n";
    assert_eq!(names::resolv_of_host(&service, resolv), resolv);
    service.dns_search = vec!["example.org".to_owned()];
    service.dns_opt = vec!["use-vc".to_owned()];
    assert_eq!(
        names::resolv_of_host(&service, resolv),
        "nameserver 127.0.0.53\nsearch example.org\noptions use-vc\n"
    );
}

#[test]
fn variables_of_a_replica() {
    let text = r#"
[services.ftp]
image = "i"
replicas = 3
ports = [{ target = 21, published = 2121, protocol = "ftp", passive = "21100-21109", announce = "" }]
"#;
    let mut service = plan(text).services.remove(0);
    let variables = |service: &Service, number, of| {
        let pairs = replica_environment(service, number, of);
        pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    assert_eq!(
        variables(&service, 2, Some(3)),
        ["INCEPTION_REPLICA=2", "INCEPTION_FTP_PASSIVE=21103-21105", "INCEPTION_FTP_ADDRESS=127.0.0.1"]
    );
    assert_eq!(
        variables(&service, 1, None),
        ["INCEPTION_FTP_PASSIVE=21100-21109", "INCEPTION_FTP_ADDRESS=127.0.0.1"]
    );
    let mut address = |ip: IpAddr, announce: Option<[u8; 4]>| {
        service.ports[0].host_ip = ip;
        if let network::plan::Protocol::Ftp { announce: there, .. } = &mut service.ports[0].protocol {
            *there = announce.map(Ipv4Addr::from);
        }
        variables(&service, 1, None).pop().unwrap()
    };
    assert_eq!(address(Ipv4Addr::UNSPECIFIED.into(), None), "INCEPTION_FTP_ADDRESS=127.0.0.1");
    assert_eq!(address(Ipv4Addr::new(192, 0, 2, 7).into(), None), "INCEPTION_FTP_ADDRESS=192.0.2.7");
    assert_eq!(
        address(Ipv4Addr::UNSPECIFIED.into(), Some([203, 0, 113, 5])),
        "INCEPTION_FTP_ADDRESS=203.0.113.5"
    );
    // Published for both families, it has one address.
    let first =
        network::plan::PublishedPort { host_ip: std::net::Ipv6Addr::LOCALHOST.into(), ..service.ports[0] };
    service.ports.insert(0, first);
    service.ports[1].host_ip = Ipv4Addr::new(192, 0, 2, 7).into();
    if let network::plan::Protocol::Ftp { announce, .. } = &mut service.ports[1].protocol {
        *announce = None;
    }
    assert_eq!(
        variables(&service, 1, None),
        ["INCEPTION_FTP_PASSIVE=21100-21109", "INCEPTION_FTP_ADDRESS=192.0.2.7"]
    );

    service.environment.insert("INCEPTION_REPLICA".to_owned(), "mine".to_owned());
    let second = replica(&service, 2, Some(3));
    assert_eq!(second.hostname, "ftp-2");
    assert_eq!(second.environment["INCEPTION_REPLICA"], "mine");
    assert_eq!(replica(&service, 1, Some(3)).hostname, "ftp");
    service.hostname = "files".to_owned();
    assert_eq!(replica(&service, 2, Some(3)).hostname, "files");
}

#[test]
fn the_images_check_at_the_files_times() {
    let plan = plan(
        "[services.a]\nimage = \"i\"\nhealthcheck = { interval = \"1s\", retries = 7 }\n[services.b]\nimage = \"i\"\nhealthcheck = { disable = true }\n[services.c]\nimage = \"i\"\n",
    );
    let config = |check: &str| -> Image {
        let config = serde_json::from_str(&format!(
            "{{\"architecture\": \"amd64\", \"os\": \"linux\", \"rootfs\": {{\"type\": \"layers\", \"diff_ids\": []}}, \"config\": {{{check}}}}}"
        )).unwrap();
        Image { id: image::Digest::of(b""), config, layers: Vec::new() }
    };
    let with = config("\"Healthcheck\": {\"Test\": [\"CMD\", \"probe\"], \"Interval\": 5000000000}");
    let check = |index: usize, image: &Image| healthcheck(&plan.services[index], image);
    let found = check(0, &with).unwrap();
    assert_eq!(found.test, Some(Probe::Exec(vec!["probe".to_owned()])));
    assert!((found.interval - 1.0).abs() < 1e-9 && found.retries == 7);
    assert!(check(0, &config("")).is_none() && check(1, &with).is_none());
    assert!((check(2, &with).unwrap().interval - 5.0).abs() < 1e-9);
}
