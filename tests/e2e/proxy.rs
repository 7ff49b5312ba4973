//! `examples/reverse-proxy`: nginx before two backends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::stand::{Stand, run, tool, wait_for};

/// What a backend says that it was told: `backend`, `x-real-ip`, and the like.
fn ask(stand: &Stand) -> BTreeMap<String, String> {
    let url = format!("http://{}:8080/", stand.address);
    // A client that claims to be somebody else.
    let headers = ["--header", "X-Real-IP: 192.0.2.1", "--header", "Host: site.test"];
    let mut curl = tool("curl", ["--disable", "--silent", "--show-error", "--fail", "--max-time", "10"]);
    let said = run(curl.args(headers).arg(&url), &[]).ok();
    let pairs = said.lines().filter_map(|line| line.split_once(": "));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn who_answers(stand: &Stand, times: usize) -> BTreeSet<String> {
    (0..times).map(|_| ask(stand)["backend"].clone()).collect()
}

#[test]
fn reverse_proxy() {
    let mut stand = Stand::of_example("reverse-proxy");
    stand.share_images();
    stand.say(["up", "-d", "--wait", "--base", "debian"]).ok();
    let both: BTreeSet<String> = ["backend-1", "backend-2"].map(str::to_owned).into();

    assert_eq!(who_answers(&stand, 4), both);
    let told = ask(&stand);
    assert_eq!((&*told["host"], &*told["x-forwarded-host"]), ("site.test", "site.test"));
    assert_eq!(told["x-forwarded-proto"], "http");
    assert_ne!(told["x-real-ip"], "192.0.2.1", "the client's own claim got through");
    assert!(told["x-forwarded-for"].ends_with(&told["x-real-ip"]), "{told:?}");

    // One that is gone costs no request; when it is back it gets requests again.
    stand.say(["stop", "backend-1"]).ok();
    assert_eq!(who_answers(&stand, 6), ["backend-2".to_owned()].into());
    stand.say(["start", "backend-1"]).ok();
    stand.wait_for_health("backend-1");
    wait_for("both backends", Duration::from_secs(10), || (who_answers(&stand, 4) == both).then_some(()));

    stand.say(["down", "-v"]).ok();
}
