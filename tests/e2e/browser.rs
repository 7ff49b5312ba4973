//! A browser, which is curl with a cookie jar.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::stand::{Stand, run, tool};

pub(crate) const PORT: u16 = 8443;

#[derive(Debug)]
pub(crate) struct Browser {
    address: String,
    jar: PathBuf,
}

/// An answer, after no redirection.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) code: u16,
    pub(crate) redirect: String,
    pub(crate) body: Vec<u8>,
    pub(crate) took: Duration,
}

impl Page {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 200, "{}", self.text());
        self
    }

    #[track_caller]
    pub(crate) fn json(self) -> Value {
        serde_json::from_slice(&self.ok().body).unwrap()
    }

    /// What stands in `<title>`.
    #[track_caller]
    pub(crate) fn title(&self) -> String {
        let text = self.text();
        let from = text.find("<title>").unwrap_or_else(|| panic!("no title in {text}")) + 7;
        decoded(&text[from..from + text[from..].find("</title>").unwrap()])
    }
}

impl Browser {
    pub(crate) fn new(stand: &Stand) -> Self {
        Self { address: stand.address.clone(), jar: stand.directory.join("cookies") }
    }

    fn curl(&self, path: &str) -> Command {
        let mut curl =
            tool("curl", ["--disable", "--silent", "--show-error", "--insecure", "--max-time", "30"]);
        curl.args(["--resolve", &format!("localhost:{PORT}:{}", self.address)]);
        curl.arg("--cookie").arg(&self.jar).arg("--cookie-jar").arg(&self.jar);
        curl.args(["--write-out", "\n%{http_code} %{time_total} %{redirect_url}"]);
        let url = if path.starts_with("https:") {
            path.to_owned()
        } else {
            format!("https://localhost:{PORT}{path}")
        };
        curl.arg(url);
        curl
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Page {
        page(&mut self.curl(path), &[])
    }

    /// Sends a form. It goes in on standard input: command lines are watched for passwords.
    #[track_caller]
    pub(crate) fn submit(&self, path: &str, fields: &[(&str, &str)]) -> Page {
        let escaped = |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02x}")).collect() };
        let form: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        page(self.curl(path).args(["--data-binary", "@-"]), form.join("&").as_bytes())
    }

    /// Calls the site's own programming interface as its editor does.
    #[track_caller]
    pub(crate) fn call(&self, path: &str, nonce: &str, body: Option<&Value>) -> Page {
        let mut curl = self.curl(path);
        curl.args(["--header", &format!("X-WP-Nonce: {nonce}")]);
        match body {
            None => page(&mut curl, &[]),
            Some(body) => {
                curl.args(["--header", "Content-Type: application/json", "--data-binary", "@-"]);
                page(&mut curl, body.to_string().as_bytes())
            }
        }
    }

    pub(crate) fn forget(&self) {
        std::fs::remove_file(&self.jar).ok();
    }
}

#[track_caller]
fn page(curl: &mut Command, input: &[u8]) -> Page {
    let said = run(curl, input);
    if said.code != Some(0) {
        return Page { code: 0, redirect: String::new(), body: said.err.into_bytes(), took: said.took };
    }
    let end = said.out.iter().rposition(|byte| *byte == b'\n').unwrap();
    let told = String::from_utf8_lossy(&said.out[end + 1..]).into_owned();
    let words: Vec<&str> = told.split(' ').collect();
    Page {
        code: words[0].parse().unwrap(),
        took: Duration::from_secs_f64(words[1].parse().unwrap()),
        redirect: words[2].to_owned(),
        body: said.out[..end].to_owned(),
    }
}

/// Text without HTML's entities, and without the typographic quotes that WordPress makes of plain ones.
fn decoded(text: &str) -> String {
    let marks = [
        ("&#8220;", "\""),
        ("&#8221;", "\""),
        ("&#8217;", "'"),
        ("&#8216;", "'"),
        ("&#039;", "'"),
        ("&#039;", "'"),
        ("&#8211;", "-"),
        ("&quot;", "\""),
        ("&#038;", "&"),
        ("&amp;", "&"),
    ];
    marks.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}
