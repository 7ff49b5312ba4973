//! Names of images.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;

/// The registry of names that name none.
pub const DOCKER_HUB: &str = "docker.io";
/// Where Docker Hub keeps the images that have no owner.
const LIBRARY: &str = "library";

/// The name of an image: `[REGISTRY/]REPOSITORY[:TAG]` or `[REGISTRY/]REPOSITORY@sha256:...`.
///
/// Names are read as Docker reads them: the tag is `latest` where none is written, and a digest makes the tag
/// beside it meaningless, so that it is dropped. Docker Hub's long forms (`docker.io/library/alpine`) are shortened:
/// one image has one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    name: String,
    tag: String,
    digest: Option<Digest>,
}

impl Reference {
    /// The name without tag and digest, in its short form: `alpine` or `host:5000/team/app`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag, `latest` by default; of no meaning where there is a digest.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The digest that the name pins, if it pins one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The registry as names spell it: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        split_registry(&self.name).0.unwrap_or(DOCKER_HUB)
    }

    /// The repository as its registry knows it: `library/alpine`, `team/app`.
    pub fn repository(&self) -> String {
        match split_registry(&self.name) {
            (None, path) if !path.contains('/') => format!("{LIBRARY}/{path}"),
            (_, path) => path.to_owned(),
        }
    }

    /// The same repository's manifest with this digest.
    #[must_use]
    pub(crate) fn pinned(&self, digest: &Digest) -> Self {
        Self { name: self.name.clone(), tag: LATEST.to_owned(), digest: Some(digest.clone()) }
    }
}

/// The tag of names without one.
const LATEST: &str = "latest";

/// The registry that a name begins with, and the rest. The first part is a registry where it cannot be anything
/// else: with a dot, a port or an upper case letter, or `localhost`.
fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, name),
    }
}

/// `host`, `host:port`, `[v6 address]:port`.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<Ipv6Addr>().is_err() {
                return false;
            }
            ("v6", if rest.is_empty() { None } else { Some(rest.strip_prefix(':').unwrap_or("?")) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

fn bad(text: &str, problem: &'static str) -> Error {
    Error::BadReference { text: text.to_owned(), problem }
}

impl FromStr for Reference {
    type Err = Error;

    /// Parses a name after the grammar of the distribution specification.
    fn from_str(text: &str) -> Result<Self, Error> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let parsed = digest.starts_with("sha256:").then(|| digest.parse().ok()).flatten();
                let digest = parsed.ok_or_else(|| bad(text, "the part after `@` is no sha256 digest"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon after the last slash begins the tag; one before it belongs to a port.
        let tag_at = rest.rfind(':').filter(|&at| !rest[at..].contains('/'));
        let (name, tag) = match tag_at {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => (rest, LATEST),
        };
        let tag_ok = !tag.is_empty()
            && tag.len() <= 128
            && !tag.starts_with(['.', '-'])
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if !tag_ok {
            return Err(bad(text, "the tag may hold letters, digits, `_`, `.` and `-` only"));
        }
        let (registry, path) = split_registry(name);
        // Docker Hub's own names for itself go, and so does the owner that stands for none.
        let registry = registry.filter(|registry| !matches!(*registry, DOCKER_HUB | "index.docker.io"));
        let path = match registry {
            None => path.strip_prefix("library/").filter(|rest| !rest.contains('/')).unwrap_or(path),
            Some(_) => path,
        };
        if path.is_empty() {
            return Err(bad(text, "it has no name"));
        }
        if registry.is_some_and(|registry| !is_registry(registry)) {
            return Err(bad(text, "what stands before the first `/` is no host, or has a port that is none"));
        }
        let part_ok = |part: &str| {
            !part.is_empty()
                && !part.starts_with(['.', '-', '_'])
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
        };
        if !path.split('/').all(part_ok) {
            return Err(bad(text, "a name is made of lower case letters, digits, `.`, `_`, `-` and `/`"));
        }
        let name = match registry {
            Some(registry) => format!("{registry}/{path}"),
            None => path.to_owned(),
        };
        if name.len() > 255 {
            return Err(bad(text, "it is longer than 255 characters"));
        }
        let tag = if digest.is_some() { LATEST } else { tag };
        Ok(Self { name, tag: tag.to_owned(), digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.digest {
            Some(digest) => write!(f, "{}@{digest}", self.name),
            None => write!(f, "{}:{}", self.name, self.tag),
        }
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::Reference;

    #[test]
    fn names_have_one_form() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let cases = [
            ("alpine", "alpine:latest", "docker.io", "library/alpine"),
            ("library/alpine", "alpine:latest", "docker.io", "library/alpine"),
            ("docker.io/alpine", "alpine:latest", "docker.io", "library/alpine"),
            ("docker.io/library/alpine:3.20", "alpine:3.20", "docker.io", "library/alpine"),
            ("index.docker.io/team/app", "team/app:latest", "docker.io", "team/app"),
            ("team/app:1", "team/app:1", "docker.io", "team/app"),
            ("localhost/app", "localhost/app:latest", "localhost", "app"),
            ("localhost:5000/team/app", "localhost:5000/team/app:latest", "localhost:5000", "team/app"),
            ("host:5000/app:1.0", "host:5000/app:1.0", "host:5000", "app"),
            ("host.example/library/app", "host.example/library/app:latest", "host.example", "library/app"),
            ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000", "app"),
            ("Host/app", "Host/app:latest", "Host", "app"),
        ];
        for (text, shown, registry, repository) in cases {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), shown);
            assert_eq!((reference.registry(), reference.repository().as_str()), (registry, repository));
            // What is shown means the same.
            assert_eq!(shown.parse::<Reference>().unwrap(), reference);
            let pinned: Reference = format!("{text}@{digest}").parse().unwrap();
            assert_eq!(pinned, reference.pinned(reference_digest(&pinned)));
            assert_eq!(pinned.to_string(), format!("{}@{digest}", reference.name()));
        }
    }

    fn reference_digest(reference: &Reference) -> &crate::Digest {
        reference.digest().unwrap()
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let bare = "ab".repeat(32);
        for text in [
            "",
            ":3",
            "Alpine",
            "a//b",
            "../x",
            "a:",
            "a:b/c:..",
            "a@sha256:12",
            "a b",
            "host:5000/",
            "docker.io/",
            "host:99999/a",
            "-a.b/c",
            "[::1/a",
            "[x]:1/a",
            "localhost/A",
            "a/b?c",
            "a@b@c",
            "a/..",
            "a.b/%2e%2e",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        assert!(format!("a@{bare}").parse::<Reference>().is_err());
    }
}
