//! The page, and what every answer has around it.

use super::address::random;
use super::request::Refusal;
use crate::output::Failure;

/// The page's skeleton; `{{NAME}}` is filled in.
const HTML: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
/// Its parts share one scope, in this order.
const SCRIPTS: [&str; 4] =
    [include_str!("page.js"), include_str!("picture.js"), include_str!("logs.js"), include_str!("live.js")];

/// Fields of every answer. Nothing is kept anywhere, shown in a frame, or told to others.
const FIELDS: &str = "Connection: close\r\n\
    Cache-Control: no-store\r\n\
    X-Content-Type-Options: nosniff\r\n\
    X-Frame-Options: DENY\r\n\
    Referrer-Policy: no-referrer\r\n\
    Cross-Origin-Opener-Policy: same-origin\r\n\
    Cross-Origin-Resource-Policy: same-origin\r\n";

/// What is sent before the first event of a feed.
pub(super) const FEED: &str = "Content-Type: text/event-stream\r\n";

/// The page of a stack.
#[derive(Debug)]
pub(super) struct Page {
    before: String,
}

impl Page {
    /// For the stack of this name, which is one of letters and digits.
    pub(super) fn new(stack: &str) -> Self {
        let html = HTML.replace("{{STACK}}", stack).replace("{{VERSION}}", env!("CARGO_PKG_VERSION"));
        let script = format!("'use strict';\n{}", SCRIPTS.concat());
        Self { before: html.replace("{{STYLE}}", STYLE).replace("{{SCRIPT}}", &script) }
    }

    /// The answer that has it. Only the script and the style that came with it are carried out, and it can talk to
    /// nobody but us (Content Security Policy 3).
    ///
    /// # Errors
    /// Without random numbers there is no page.
    pub(super) fn answer(&self) -> Result<Vec<u8>, Failure> {
        let nonce = random()?;
        let policy = format!(
            "Content-Type: text/html; charset=utf-8\r\n\
             Content-Security-Policy: default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
             img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
             require-trusted-types-for 'script'\r\n"
        );
        Ok(answer(200, &policy, self.before.replace("{{NONCE}}", &nonce).as_bytes()))
    }
}

/// A whole answer. `fields` end with a line end each.
pub(super) fn answer(status: u16, fields: &str, body: &[u8]) -> Vec<u8> {
    let mut answer = head(status, &format!("{fields}Content-Length: {}\r\n", body.len()));
    answer.extend_from_slice(body);
    answer
}

/// The beginning of an answer whose end is that of the connection.
pub(super) fn head(status: u16, fields: &str) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    format!("HTTP/1.1 {status} {reason}\r\n{FIELDS}{fields}\r\n").into_bytes()
}

/// The answer to who may not.
pub(super) fn refused(refusal: Refusal) -> Vec<u8> {
    let fields = "Content-Type: text/plain; charset=utf-8\r\n";
    answer(refusal.status, fields, format!("{}\n", refusal.reason).as_bytes())
}

/// A message of a feed (HTML, 9.2): a name, and a value as JSON, which has no line ends.
pub(super) fn message(name: &str, value: &impl serde::Serialize) -> Result<Vec<u8>, Failure> {
    let json = serde_json::to_string(value).map_err(Failure::system("write JSON"))?;
    Ok(format!("event: {name}\ndata: {json}\n\n").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::request::CROWDED;
    use super::*;

    #[test]
    fn the_page_is_whole_and_asks_for_nothing_else() {
        let page = String::from_utf8(Page::new("shop").answer().unwrap()).unwrap();
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("<title>shop"), "{page}");
        assert!(!page.contains("{{"), "something was not filled in");
        // Whatever is somewhere else, and whatever makes text to markup.
        for other in
            ["src=", "@import", "url(", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"]
        {
            assert!(!page.contains(other), "{other}");
        }
        let addresses = page.matches("http://").count() + page.matches("https://").count();
        // The name space of SVG.
        assert_eq!(addresses, page.matches("http://www.w3.org/2000/svg").count());
        let nonces = |page: &str| page.split("nonce-").nth(1).unwrap()[..32].to_owned();
        let again = String::from_utf8(Page::new("shop").answer().unwrap()).unwrap();
        assert_ne!(nonces(&page), nonces(&again));
        assert_eq!(page.matches(&format!("nonce=\"{}\"", nonces(&page))).count(), 2);
    }

    #[test]
    fn answers() {
        let text = String::from_utf8(refused(CROWDED)).unwrap();
        assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n"), "{text}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{text}");
        assert_eq!(message("x", &"a\nb").unwrap(), b"event: x\ndata: \"a\\nb\"\n\n");
    }
}
