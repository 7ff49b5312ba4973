//! A real browser, over the DevTools protocol: a JSON object a message, messages end with a zero byte.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{skipped, until};

/// A browser on a busy machine takes its time.
const ANSWER: Duration = Duration::from_secs(60);

/// A headless browser with one tab.
pub(crate) struct Browser {
    process: Child,
    /// Where it keeps what it likes to.
    _profile: TempDir,
    input: ChildStdin,
    messages: Receiver<Value>,
    last: u64,
    tab: Option<String>,
    /// What it told without being asked.
    pub(crate) told: Vec<Value>,
}

impl Browser {
    /// Starts one for a test of this name, which is skipped where there is none.
    pub(crate) fn start(test: &str) -> Option<Self> {
        if Command::new("chromium").arg("--version").output().is_err() {
            skipped(test, "the package chromium is not installed");
            return None;
        }
        let profile = tempfile::tempdir().unwrap();
        // It reaches this machine, and nobody else.
        let script = "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
            --disable-background-networking --disable-extensions --host-resolver-rules='MAP * ~NOTFOUND, EXCLUDE 127.0.0.1' \
            --user-data-dir=\"$0\" --remote-debugging-pipe \
            3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut process = Command::new("sh")
            .args(["-c", script])
            .arg(profile.path())
            .env("HOME", profile.path())
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
        let (last, tab, told) = (0, None, Vec::new());
        let mut browser = Self { process, _profile: profile, input, messages, last, tab, told };
        let target = browser.ask("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.ask("Target.attachToTarget", attach);
        browser.tab = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.ask(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, method: &str, parameters: Value) -> Value {
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
    pub(crate) fn open(&mut self, link: &str, width: u32, scheme: &str) {
        let metrics = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.ask("Emulation.setDeviceMetricsOverride", metrics);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.ask("Emulation.setEmulatedMedia", json!({ "features": features }));
        self.ask("Page.navigate", json!({ "url": link }));
    }

    /// The value of an expression in the page.
    #[track_caller]
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true });
        self.ask("Runtime.evaluate", parameters)["result"]["value"].clone()
    }

    /// Waits until an expression is true in the page.
    #[track_caller]
    pub(crate) fn wait(&mut self, expression: &str) {
        until(expression, || self.value(expression).as_bool().filter(|value| *value));
    }

    /// What went wrong in the page, in its own words.
    pub(crate) fn complaints(&self) -> Vec<&Value> {
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
