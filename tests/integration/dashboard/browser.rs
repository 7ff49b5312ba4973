//! The page in a real browser, over the DevTools protocol: a JSON object a message, messages end with a zero byte.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Dashboard;
use crate::harness::{Stack, skipped, until};

/// A browser on a busy machine takes its time.
const ANSWER: Duration = Duration::from_secs(60);

/// A headless browser with one tab.
struct Browser {
    process: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    last: u64,
    tab: Option<String>,
    /// What it told without being asked.
    told: Vec<Value>,
}

impl Browser {
    fn start(profile: &Path) -> Self {
        let script = "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
            --disable-background-networking --disable-extensions --user-data-dir=\"$0\" --remote-debugging-pipe \
            3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut process = Command::new("sh")
            .args(["-c", script])
            .arg(profile)
            .env("HOME", profile)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in output.split(0).map_while(Result::ok) {
                sender.send(serde_json::from_slice(&message).unwrap()).ok();
            }
        });
        let mut browser = Self { process, input, messages, last: 0, tab: None, told: Vec::new() };
        let target = browser.ask("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.ask("Target.attachToTarget", attach);
        browser.tab = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.ask(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    #[track_caller]
    fn ask(&mut self, method: &str, parameters: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": parameters });
        if let Some(tab) = &self.tab {
            message["sessionId"] = tab.as_str().into();
        }
        self.input.write_all(format!("{message}\0").as_bytes()).unwrap();
        let end = Instant::now() + ANSWER;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let answer = self.messages.recv_timeout(left).unwrap_or_else(|error| panic!("{method}: {error}"));
            if answer["id"] == self.last {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.told.push(answer);
        }
    }

    /// Opens the page in a window of this width.
    fn open(&mut self, link: &str, width: u32, scheme: &str) {
        let metrics = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.ask("Emulation.setDeviceMetricsOverride", metrics);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.ask("Emulation.setEmulatedMedia", json!({ "features": features }));
        self.ask("Page.navigate", json!({ "url": link }));
    }

    /// The value of an expression in the page.
    #[track_caller]
    fn value(&mut self, expression: &str) -> Value {
        self.ask("Runtime.evaluate", json!({ "expression": expression }))["result"]["value"].clone()
    }

    /// Waits until an expression is true in the page.
    #[track_caller]
    fn wait(&mut self, expression: &str) {
        until(expression, || self.value(expression).as_bool().filter(|value| *value));
    }

    /// What went wrong in the page, in its own words.
    fn complaints(&self) -> Vec<&Value> {
        let methods = ["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"];
        self.told.iter().filter(|told| methods.iter().any(|method| told["method"] == *method)).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its children end with the pipe.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn a_browser_shows_it() {
    if Command::new("chromium").arg("--version").output().is_err() {
        return skipped("a_browser_shows_it", "the package chromium is not installed");
    }
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
    let profile = tempfile::tempdir().unwrap();
    let mut browser = Browser::start(profile.path());
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
