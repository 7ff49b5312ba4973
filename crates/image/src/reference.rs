//! Names of images.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;

/// The name of an image: `NAME[:TAG][@sha256:...]`; the tag is `latest` where none is written.
///
/// Docker Hub's long forms (`docker.io/library/alpine`) are shortened, so that one image has one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    name: String,
    tag: String,
    digest: Option<Digest>,
}

impl Reference {
    /// The name without tag and digest, for example `alpine` or `host:5000/team/app`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag, `latest` by default.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The digest that the name pins, if it pins one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }
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
                let digest = digest
                    .parse()
                    .map_err(|_cause: Error| bad(text, "the part after `@` is no sha256 digest"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon after the last slash begins the tag; one before it belongs to a port.
        let tag_at = rest.rfind(':').filter(|&at| !rest[at..].contains('/'));
        let (name, tag) = match tag_at {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => (rest, "latest"),
        };
        let tag_ok = !tag.is_empty()
            && tag.len() <= 128
            && !tag.starts_with(['.', '-'])
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if !tag_ok {
            return Err(bad(text, "the tag may hold letters, digits, `_`, `.` and `-` only"));
        }
        let name = name.strip_prefix("docker.io/").unwrap_or(name);
        let name = name.strip_prefix("library/").unwrap_or(name);
        if name.is_empty() {
            return Err(bad(text, "it has no name"));
        }
        if name.len() > 255 {
            return Err(bad(text, "it is longer than 255 characters"));
        }
        for (index, part) in name.split('/').enumerate() {
            let is_host =
                index == 0 && name.contains('/') && (part.contains(['.', ':']) || part == "localhost");
            let ok = !part.is_empty()
                && !part.starts_with(['.', '-', '_'])
                && part.bytes().all(|b| {
                    b.is_ascii_lowercase()
                        || b.is_ascii_digit()
                        || matches!(b, b'.' | b'_' | b'-')
                        || is_host && (b == b':' || b.is_ascii_uppercase())
                });
            if !ok {
                return Err(bad(text, "a name is made of lower case letters, digits, `.`, `_`, `-` and `/`"));
            }
        }
        Ok(Self { name: name.to_owned(), tag: tag.to_owned(), digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)?;
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
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
        for (text, shown) in [
            ("alpine", "alpine:latest"),
            ("docker.io/library/alpine:3.20", "alpine:3.20"),
            ("localhost:5000/team/app", "localhost:5000/team/app:latest"),
            ("host:5000/app:1.0", "host:5000/app:1.0"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), shown);
        }
        for text in ["", ":3", "Alpine", "a//b", "../x", "a:", "a:b/c:..", "a@sha256:12", "a b"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
