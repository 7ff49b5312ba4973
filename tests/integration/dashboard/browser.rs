//! The page in a real browser.

use serde_json::json;

use super::Dashboard;
use crate::browser::Browser;
use crate::harness::Stack;

#[test]
fn a_browser_shows_it() {
    let Some(mut browser) = Browser::start("a_browser_shows_it") else { return };
    let services = r#"
[services.web]
command = ["sh", "-c", "echo '<img src=x onerror=document.title=1><b>bold</b>'; exec sleep 1000"]
depends_on = ["db"]
replicas = 2
networks = ["front", "back"]
healthcheck = { test = ["CMD", "true"], interval = "100ms" }
stop_grace_period = "100ms"
[services.db]
command = ["sleep", "1000"]
networks = ["back"]
stop_grace_period = "100ms"
[networks.front]
[networks.back]
internal = true
"#;
    let stack = Stack::new(services);
    stack.up();
    let dashboard = Dashboard::of(&stack);
    let link = format!("http://{}/{}/", dashboard.address, dashboard.token);
    let state = |container: &str| {
        format!("document.querySelector('[data-container=\"{container}\"] .state')?.textContent")
    };

    // On a phone, in the dark.
    browser.open(&link, 360, "dark");
    browser.wait("document.getElementById('connection').textContent === 'live'");
    browser.wait(&format!("{} === 'running, healthy' && {} === 'running'", state("web-2"), state("db")));
    browser.wait("document.querySelectorAll('#canvas .node').length === 2");
    assert_eq!(browser.value("innerWidth"), 360);
    let wide = "[...document.querySelectorAll('body *')].filter((node) => node.getBoundingClientRect().right > 360 \
        && !node.closest('#canvas, .unseen')).map((node) => node.outerHTML.slice(0, 200)).join()";
    assert_eq!(browser.value(wide), "");
    assert_eq!(browser.value("document.documentElement.scrollWidth"), 360);
    let dark = browser.value("getComputedStyle(document.body).backgroundColor");

    // What a container writes is text.
    browser.wait("document.getElementById('lines').textContent.includes('<img src=x onerror=document.title=1><b>bold</b>')");
    assert_eq!(browser.value("document.querySelectorAll('#lines img, #lines b b').length"), 0);

    // On a desk, by daylight.
    browser.open(&link, 1280, "light");
    browser.wait(&format!("{} === 'running'", state("db")));
    browser.wait("document.querySelectorAll('#canvas .node').length === 2");
    assert_ne!(browser.value("getComputedStyle(document.body).backgroundColor"), dark);
    // Two networks and this machine; one arrow, from `web` to `db`; three places where services hang on networks.
    let drawn = "['.rail', '.need', '.stop'].map((kind) => document.querySelectorAll(`#canvas ${kind}`).length).join()";
    assert_eq!(browser.value(drawn), "3,1,3");
    assert_eq!(browser.value("document.querySelectorAll('#canvas [data-service=web] .pip').length"), 3);

    // With the keyboard: a service in the picture chooses its log.
    browser.value("document.querySelector('#canvas [data-service=db]').focus()");
    for kind in ["rawKeyDown", "char", "keyUp"] {
        let key = json!({ "type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r" });
        browser.ask("Input.dispatchKeyEvent", key);
    }
    browser
        .wait("document.querySelector('#canvas [data-service=db]').getAttribute('aria-pressed') === 'true'");
    browser.wait("!document.getElementById('lines').textContent.includes('bold')");

    // A button takes effect, here and there.
    browser.value("document.querySelector('[data-container=db] [data-act=stop]').click()");
    browser.wait(&format!("{}?.startsWith('exited')", state("db")));
    assert_eq!(stack.row("db")["state"], "exited");
    assert_eq!(browser.value("document.getElementById('notes').childElementCount"), 0);

    // A connection that breaks is made again.
    browser.value("feed.source.dispatchEvent(new Event('error'))");
    browser.wait("document.getElementById('connection').textContent.startsWith('no connection')");
    browser.wait("document.getElementById('connection').textContent === 'live'");

    let requests = browser.told.iter().filter(|told| told["method"] == "Network.requestWillBeSent");
    let addresses: Vec<&str> =
        requests.filter_map(|told| told["params"]["request"]["url"].as_str()).collect();
    let elsewhere = |address: &&&str| !address.starts_with(&link) && !address.starts_with("data:");
    assert_eq!(addresses.iter().filter(elsewhere).collect::<Vec<_>>(), Vec::<&&str>::new());
    assert!(addresses.len() >= 5, "{addresses:?}");
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");

    stack.run(&["down"]).ok();
    browser.wait("document.getElementById('connection').textContent === 'the stack has ended'");
}
