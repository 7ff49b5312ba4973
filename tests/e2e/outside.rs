//! Programs of a Debian that go out of their container, and one that may not.

use std::time::Duration;

use serde_json::Value;

use crate::client::{CLIENT, Client};
use crate::stand::{Said, Stand, spawn, tool, wait_for};

const STACK: &str = r#"
name = "outside-e2e"
base = ["debian"]

[services.open]
build = "tools"
command = ["sleep", "infinity"]
init = true

[services.closed]
build = "tools"
command = ["sleep", "infinity"]
init = true
egress = "none"
"#;

const DOCKERFILE: &str = "FROM debian:bookworm
RUN apt-get update \\
 && apt-get install -y --no-install-recommends iperf3 bind9-dnsutils iputils-ping
";

#[test]
fn programs_go_out() {
    let mut stand =
        Stand::of_files("outside", &[("stack.toml", STACK), ("tools/Dockerfile.debian", DOCKERFILE)]);
    stand.share_images();
    stand.say(["up", "-d", "--wait", "--base", "debian"]).ok();
    let exec = |service: &str, line: &str| -> Said { stand.exec(service, line) };
    // By the way that the build took, too, but for one that may not.
    let update =
        "apt-get update -o Acquire::Retries=0 -o Acquire::http::Timeout=10 -o APT::Update::Error-Mode=any";
    exec("open", update).ok();
    exec("closed", update).fails();
    // Our name server, as `dig` sees it.
    for options in ["", "+tcp", "+noedns", "+bufsize=512"] {
        let address = exec("closed", &format!("dig +short {options} open")).ok();
        assert!(address.starts_with("10."), "{options}: {address}");
        let name = exec("open", &format!("dig +short {options} -x {address}")).ok();
        assert!(name.starts_with("open."), "{options}: {name}");
    }
    let said = exec("open", "dig no-such-service").ok();
    assert!(said.contains("status: NXDOMAIN"), "{said}");
    let said = exec("closed", "dig www.example.org").ok();
    assert!(said.contains("status: NXDOMAIN"), "{said}");
    stand.say(["down"]).ok();

    // From here on there is nothing outside but a client.
    let Some(client) = Client::with_host() else {
        println!("skipped: programs_go_out: the part with a host of its own: this is not root");
        stand.say(["down", "-v"]).ok();
        return;
    };
    let mut server = client.within(|| spawn(&mut tool("iperf3", ["--server", "--bind", CLIENT])));
    stand.say(["up", "-d", "--wait", "--base", "debian"]).ok();
    exec("open", &format!("ping -c 3 -i 0.2 -W 5 {CLIENT}")).ok();
    let refused = exec("closed", &format!("ping -c 1 -W 5 {CLIENT}")).fails();
    assert!(refused.contains("Packet filtered"), "{refused}");
    // It says what went wrong in its output, and that it went well by its code.
    let measure = |service: &str, options: &str| -> Result<Value, String> {
        let said = exec(service, &format!("iperf3 --client {CLIENT} --time 1 --json {options}"));
        let mut result: Value = serde_json::from_str(&said.text()).unwrap();
        match result["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(result["end"]["sum"].take()),
        }
    };
    wait_for("iperf3", Duration::from_secs(10), || measure("open", "").ok());
    for options in ["--reverse", "--udp --bitrate 50M", "--udp --bitrate 50M --reverse"] {
        let sum = measure("open", options).unwrap();
        let lost = sum["lost_percent"].as_f64().unwrap_or_default();
        assert!(lost < 50.0, "{options}: {sum}");
    }
    let refused = measure("closed", "").unwrap_err();
    assert!(refused.contains("unable to connect") || refused.contains("reset"), "{refused}");
    let logs = stand.say(["logs", "closed"]).ok();
    assert!(logs.contains(&format!("egress refused: tcp {CLIENT}:5201")), "{logs}");
    server.kill().unwrap();
    server.wait().unwrap();
    stand.say(["down", "-v"]).ok();
}
