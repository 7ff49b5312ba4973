//! Who we are to a registry: challenges, and the tokens that answer them (distribution-spec, "Token authentication").

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;

/// How a registry wants to know who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// It does not.
    None,
    /// User and password with each request.
    Basic,
    /// A token that `realm` gives out.
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// Reads the `WWW-Authenticate` headers of an answer; tokens are preferred.
    pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut found = None;
        for header in headers {
            let (scheme, rest) = header.trim().split_once(char::is_whitespace).unwrap_or((header.trim(), ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                let mut parameters = parameters(rest);
                if let Some(realm) = parameters.remove("realm") {
                    return Some(Self::Bearer { realm, service: parameters.remove("service") });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                found = Some(Self::Basic);
            }
        }
        found
    }
}

/// `name="value", other=value` (RFC 9110, section 11.2).
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text.trim_start_matches([' ', '\t', ',']);
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim().to_ascii_lowercase();
        let after = after.trim_start();
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        found.insert(name, value);
        rest = left.trim_start_matches([' ', '\t', ',']);
    }
    found
}

/// The content of a quoted string, whose opening mark is gone, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// A token server's answer.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Docker's token servers mean this where they say nothing.
const DEFAULT_LIFE: u64 = 60;
/// A token is not used in its last seconds: it has to arrive, too.
const MARGIN: Duration = Duration::from_secs(5);

impl TokenAnswer {
    /// The token that it holds; none for an answer without one, or with one that could not be sent.
    pub(super) fn into_token(self, asked: Instant) -> Option<Token> {
        let value = self.token.or(self.access_token).filter(|token| !token.is_empty())?;
        // It becomes a header.
        if !value.bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        // A day is longer than any transfer, and what a server says must not overflow.
        let life = Duration::from_secs(self.expires_in.unwrap_or(DEFAULT_LIFE).clamp(1, 86_400));
        Some(Token { value, until: asked + life.saturating_sub(MARGIN).max(life / 2) })
    }
}

/// A token, and how long it is good.
#[derive(Clone)]
pub(super) struct Token {
    value: String,
    until: Instant,
}

impl Token {
    /// What says it to a registry.
    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.value)
    }

    pub(super) fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(headers: &[&str]) -> Option<Challenge> {
        Challenge::parse(headers.iter().copied())
    }

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        assert_eq!(
            parse(&[r#"Bearer realm="https://auth.example/token",service="registry",scope="a:b,c:d""#]),
            bearer("https://auth.example/token", Some("registry"))
        );
        assert_eq!(parse(&[r#"bearer Realm=x , service="a \"b\"""#]), bearer("x", Some("a \"b\"")));
        assert_eq!(parse(&["Basic realm=x", r#"Bearer realm="y""#]), bearer("y", None));
        assert_eq!(parse(&["Basic realm=x"]), Some(Challenge::Basic));
        assert_eq!(parse(&["Negotiate", "Bearer service=x", ""]), None);
        assert_eq!(parse(&[r#"Bearer realm="unclosed"#]), bearer("unclosed", None));
    }

    #[test]
    fn tokens_that_cannot_be_sent_are_none() {
        let answer = |token: &str| TokenAnswer {
            token: Some(token.to_owned()),
            access_token: None,
            expires_in: Some(u64::MAX),
        };
        assert!(answer("abc").into_token(Instant::now()).is_some_and(|token| token.is_fresh()));
        assert!(answer("a\r\nX: y").into_token(Instant::now()).is_none());
        assert!(answer("").into_token(Instant::now()).is_none());
    }
}
