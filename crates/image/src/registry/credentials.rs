//! Credentials in the files of Docker and Podman.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::reference::DOCKER_HUB;

/// Docker Hub's key in credential files and helpers, for historical reasons.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name that stands for an identity token in what helpers say.
const TOKEN_USER: &str = "<token>";

/// Who somebody is to a registry. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A password, or a token that is used like one.
    Password {
        /// The account.
        user: String,
        /// The secret.
        password: String,
    },
    /// A token to be exchanged for others (OAuth 2's refresh token).
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password({user})"),
            Self::IdentityToken(_) => write!(f, "IdentityToken"),
        }
    }
}

impl Credentials {
    /// From what a helper said: its `Username` and `Secret`.
    pub fn from_helper(user: String, secret: String) -> Self {
        if user == TOKEN_USER {
            Self::IdentityToken(secret)
        } else {
            Self::Password { user, password: secret }
        }
    }

    /// The header of the scheme `Basic`, where they can be used for that.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Self::IdentityToken(_) => None,
        }
    }
}

/// Where the credentials of a registry are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSource {
    /// In the file.
    Inline(Credentials),
    /// `docker-credential-NAME` knows them, by this key.
    Helper {
        /// NAME.
        name: String,
        /// What to ask it for.
        key: String,
    },
}

/// A file of credentials: `config.json` of Docker or `auth.json` of Podman. What it holds beside them is kept.
#[derive(Clone, Debug, Default)]
pub struct AuthFile {
    content: Map<String, Value>,
}

impl AuthFile {
    /// Reads a file's text.
    ///
    /// # Errors
    /// When it is no JSON object.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        Ok(Self { content: serde_json::from_str(text)? })
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(&self.content).expect("a JSON object has string keys only") + "\n"
    }

    /// Where the credentials of a registry are, if the file knows.
    ///
    /// # Errors
    /// What is wrong with an entry of the file.
    pub fn find(&self, registry: &str) -> Result<Option<CredentialSource>, String> {
        let key = key(registry);
        let helpers = self.content.get("credHelpers").and_then(Value::as_object);
        let own = helpers.and_then(|helpers| helpers.get(registry).or_else(|| helpers.get(&*key)));
        let store = self.content.get("credsStore");
        for helper in [own, store].into_iter().flatten() {
            if let Some(name) = helper.as_str().filter(|name| !name.is_empty()) {
                return Ok(Some(CredentialSource::Helper { name: name.to_owned(), key }));
            }
        }
        let Some(auths) = self.content.get("auths").and_then(Value::as_object) else { return Ok(None) };
        let entry = auths.get(&*key).or_else(|| {
            // Old files and Podman write `https://HOST/`, `HOST/v1/` and the like.
            auths.iter().find(|(written, _)| normal(written) == normal(&key)).map(|(_, entry)| entry)
        });
        entry.map_or(Ok(None), |entry| inline(registry, entry))
    }

    /// The helper that new credentials of a registry go to; none where they are written into the file.
    pub fn helper_for(&self, registry: &str) -> Option<(String, String)> {
        match self.find(registry) {
            Ok(Some(CredentialSource::Helper { name, key })) => Some((name, key)),
            _ => None,
        }
    }

    /// Writes credentials into the file's content.
    pub fn set(&mut self, registry: &str, credentials: &Credentials) {
        let mut entry = Map::new();
        match credentials {
            Credentials::Password { user, password } => {
                entry.insert("auth".to_owned(), STANDARD.encode(format!("{user}:{password}")).into());
            }
            Credentials::IdentityToken(token) => {
                entry.insert("identitytoken".to_owned(), token.clone().into());
            }
        }
        let auths = self.content.entry("auths").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(auths) = auths {
            auths.insert(key(registry), Value::Object(entry));
        }
    }

    /// Takes a registry's credentials out; false where there were none.
    pub fn remove(&mut self, registry: &str) -> bool {
        let Some(Value::Object(auths)) = self.content.get_mut("auths") else { return false };
        let before = auths.len();
        let key = normal(&key(registry));
        auths.retain(|written, _| normal(written) != key);
        auths.len() != before
    }

    /// The registries that the file names.
    pub fn registries(&self) -> Vec<String> {
        let auths = self.content.get("auths").and_then(Value::as_object);
        auths.map(|auths| auths.keys().map(|key| normal(key)).collect()).unwrap_or_default()
    }
}

/// A registry's key in the file.
fn key(registry: &str) -> String {
    if registry == DOCKER_HUB { HUB_KEY.to_owned() } else { registry.to_owned() }
}

/// The registry that a key means. What is written for a part of a registry stays what it is: we do not use it.
fn normal(key: &str) -> String {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = match rest.split_once('/') {
        Some((host, "" | "v1" | "v1/" | "v2" | "v2/")) => host,
        _ => rest,
    };
    match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        other => other.to_owned(),
    }
}

fn inline(registry: &str, entry: &Value) -> Result<Option<CredentialSource>, String> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(CredentialSource::Inline(Credentials::IdentityToken(token.to_owned()))));
    }
    let (user, password) = match (text("auth"), text("username"), text("password")) {
        (Some(auth), _, _) => {
            let decoded = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = decoded.as_deref().and_then(|decoded| decoded.trim_end_matches('\0').split_once(':'));
            let (user, password) =
                pair.ok_or_else(|| format!("the `auth` of `{registry}` is not `user:password` in base64"))?;
            (user.to_owned(), password.to_owned())
        }
        (None, Some(user), Some(password)) => (user.to_owned(), password.to_owned()),
        // Docker leaves an empty entry for registries whose credentials a helper has.
        _ => return Ok(None),
    };
    Ok(Some(CredentialSource::Inline(Credentials::Password { user, password })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password { user: user.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn what_docker_and_podman_write_is_found() {
        let text = r#"{
            "auths": {
                "https://index.docker.io/v1/": {"auth": "YW5uOmE6Yg=="},
                "https://old.example/v2/": {"username": "bob", "password": "x"},
                "ghcr.example": {"identitytoken": "t"},
                "empty.example": {}, "parts.example/team": {"auth": "YW5uOmE6Yg=="}, "bad.example": {"auth": "%"}
            },
            "credHelpers": {"helped.example": "pass"},
            "HttpHeaders": {"X": "y"}
        }"#;
        let file = AuthFile::parse(text).unwrap();
        let inline = |credentials| Ok(Some(CredentialSource::Inline(credentials)));
        assert_eq!(file.find("docker.io"), inline(password("ann", "a:b")));
        assert_eq!(file.find("old.example"), inline(password("bob", "x")));
        assert_eq!(file.find("ghcr.example"), inline(Credentials::IdentityToken("t".to_owned())));
        assert_eq!(file.find("empty.example"), Ok(None));
        assert_eq!(file.find("other.example"), Ok(None));
        assert_eq!(file.find("parts.example"), Ok(None));
        assert!(file.find("bad.example").is_err());
        let helper = CredentialSource::Helper { name: "pass".to_owned(), key: "helped.example".to_owned() };
        assert_eq!(file.find("helped.example"), Ok(Some(helper)));
        let stored = AuthFile::parse(r#"{"auths":{"docker.io":{}},"credsStore":"secretservice"}"#).unwrap();
        let hub = CredentialSource::Helper { name: "secretservice".to_owned(), key: HUB_KEY.to_owned() };
        assert_eq!(stored.find("docker.io"), Ok(Some(hub)));
    }

    #[test]
    fn what_is_written_is_read_and_the_rest_stays() {
        let mut file = AuthFile::parse(r#"{"HttpHeaders": {"X": "y"}}"#).unwrap();
        file.set("docker.io", &password("ann", "secret"));
        file.set("h:5000", &Credentials::IdentityToken("t".to_owned()));
        let mut again = AuthFile::parse(&file.to_text()).unwrap();
        let hub = CredentialSource::Inline(password("ann", "secret"));
        assert_eq!(again.find("docker.io"), Ok(Some(hub)));
        assert!(again.remove("docker.io") && !again.remove("docker.io"));
        assert_eq!(again.registries(), ["h:5000"]);
        assert!(again.to_text().contains("HttpHeaders"));
        assert!(!format!("{:?}", password("ann", "secret")).contains("secret"));
    }
}
