//! `ADD` of a file from a web server.
//!
//! A file that a server sent before is not sent again while the server says, or a checksum proves, that it is the
//! same and its layer is there. The file itself is kept nowhere else.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::archive;
use crate::build::source::refused;
use crate::build::{cache, reach};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::scratch::{self, Scratch};
use crate::store::Store;

/// Longest a server may take to accept a connection, or to answer.
const CONNECT: Duration = Duration::from_secs(30);
/// Longest a whole file may take to arrive.
const WHOLE: Duration = Duration::from_secs(3600);
/// Largest file that is fetched.
const MAX_BYTES: u64 = 32 << 30;

/// A file on a server whose content is known, though perhaps not here.
pub(super) struct Download {
    url: String,
    digest: Digest,
    modified: i64,
    scratch: Rc<Scratch>,
    /// See [`BuildRequest::reaches_host`](crate::BuildRequest::reaches_host).
    host: bool,
    /// The file, once it is here.
    file: OnceCell<PathBuf>,
}

/// What a server said of a file the last time.
#[derive(Clone, Serialize, Deserialize)]
struct Known {
    digest: Digest,
    etag: Option<String>,
    last_modified: Option<String>,
}

/// What a server answers.
enum Answer {
    /// It is what it was.
    Same,
    Sent {
        file: PathBuf,
        known: Known,
    },
}

/// The key of what is known of an address: to whoever makes room, an entry of the cache that has no layer.
fn record_key(url: &str) -> Digest {
    let mut key = Hasher::new();
    key.field(b"address");
    key.field(url.as_bytes());
    key.finish()
}

impl Download {
    /// Finds out what an address holds, and fetches it where that is the only way.
    pub(super) fn begin(
        store: &Store,
        url: &str,
        checksum: Option<&str>,
        scratch: &Rc<Scratch>,
        host: bool,
    ) -> Result<Self> {
        let expected = checksum.map(|text| read_checksum(url, text)).transpose()?;
        let record = cache::path(store, &record_key(url));
        let known = match store.read_json::<Known>(&record) {
            Ok(known) => known,
            // It is made anew.
            Err(Error::DamagedStore { .. }) => None,
            Err(error) => return Err(error),
        };
        if known.is_some() {
            cache::touch(&record);
        }
        let begun = |known: &Known| Self {
            url: url.to_owned(),
            digest: known.digest.clone(),
            modified: known.last_modified.as_deref().and_then(http_date).unwrap_or(0),
            scratch: Rc::clone(scratch),
            host,
            file: OnceCell::new(),
        };
        if let (Some(expected), Some(known)) = (&expected, &known)
            && *expected == known.digest
        {
            return Ok(begun(known));
        }
        let mut download = match (fetch(url, known.as_ref(), scratch, host)?, known) {
            (Answer::Same, Some(known)) => begun(&known),
            (Answer::Same, None) => {
                let problem = "it answers 304 to a question that named no earlier file".to_owned();
                return Err(Error::BadAnswer { url: url.to_owned(), problem });
            }
            (Answer::Sent { file, known }, _) => {
                let json = serde_json::to_vec(&known).expect("a record has string keys only");
                scratch::write_file(&store.tmp(), &record, &json, false)?;
                Self { file: OnceCell::from(file), ..begun(&known) }
            }
        };
        if let Some(expected) = expected {
            archive::check(url, expected.hex(), &download.digest)?;
            download.digest = expected;
        }
        Ok(download)
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// When the server says that it was changed; else the beginning of time. Seconds since 1970.
    pub(super) fn modified(&self) -> i64 {
        self.modified
    }

    /// The last part of the address's path.
    pub(super) fn file_name(&self) -> Option<String> {
        let path = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let (_, path) = path.split_once('/')?;
        let name = unescaped(path.trim_end_matches('/').rsplit('/').next()?)?;
        (!matches!(name.as_str(), "" | "." | "..") && !name.contains(['/', '\0'])).then_some(name)
    }

    pub(super) fn is_archive(&self) -> Result<bool> {
        archive::is_archive(self.open()?).map_err(|cause| Error::io("read", &self.url, cause))
    }

    /// The content, fetched now if it was not before.
    pub(super) fn open(&self) -> Result<File> {
        let path = match self.file.get() {
            Some(path) => path,
            None => {
                let Answer::Sent { file, known } = fetch(&self.url, None, &self.scratch, self.host)? else {
                    let problem = "it sends no file".to_owned();
                    return Err(Error::BadAnswer { url: self.url.clone(), problem });
                };
                archive::check(&self.url, self.digest.hex(), &known.digest)?;
                self.file.get_or_init(|| file)
            }
        };
        File::open(path).map_err(|cause| Error::io("open", path, cause))
    }
}

fn read_checksum(url: &str, text: &str) -> Result<Digest> {
    let refuse = |problem: String| refused(url, problem, None);
    match text.split_once(':') {
        Some(("sha256", hex)) => {
            hex.parse().map_err(|_bad| refuse(format!("has `--checksum={text}`, which is no SHA-256 digest")))
        }
        Some((other, _)) => Err(refuse(format!("has a checksum of type `{other}`: only `sha256:` is known"))),
        None => Err(refuse(format!("has `--checksum={text}`: it begins with `sha256:`"))),
    }
}

/// Asks a server for a file, unless it is what is known.
fn fetch(url: &str, known: Option<&Known>, scratch: &Scratch, host: bool) -> Result<Answer> {
    let failed = |source: ureq::Error| Error::Download { url: url.to_owned(), source: Box::new(source) };
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(WHOLE))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(CONNECT))
        .user_agent(concat!("inception-run/", env!("CARGO_PKG_VERSION")))
        .build();
    let agent = reach::agent(config, host);
    // What is packed stays packed: the file is what the server has, whatever it is.
    let mut request = agent.get(url).header("Accept-Encoding", "identity");
    if let Some(etag) = known.and_then(|known| known.etag.as_ref()) {
        request = request.header("If-None-Match", etag);
    } else if let Some(date) = known.and_then(|known| known.last_modified.as_ref()) {
        request = request.header("If-Modified-Since", date);
    }
    let mut answer = request.call().map_err(failed)?;
    if answer.status() == 304 {
        return Ok(Answer::Same);
    }
    let header =
        |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (etag, last_modified) = (header("etag"), header("last-modified"));
    let file = scratch.make_dir(&scratch::unique())?.join("file");
    let mut reader = answer.body_mut().with_config().limit(MAX_BYTES).reader();
    let digest = receive(&mut reader, url, &file)?;
    Ok(Answer::Sent { file, known: Known { digest, etag, last_modified } })
}

fn receive(reader: &mut dyn Read, url: &str, to: &Path) -> Result<Digest> {
    let write_error = |cause| Error::io("write", to, cause);
    let mut file = File::create_new(to).map_err(write_error)?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(length) => {
                hasher.update(&buffer[..length]);
                file.write_all(&buffer[..length]).map_err(write_error)?;
            }
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => {
                let source = Box::new(ureq::Error::Io(cause));
                return Err(Error::Download { url: url.to_owned(), source });
            }
        }
    }
}

/// A part of an address without its `%20`.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        rest = more;
        bytes.push(match (first, more) {
            (b'%', [high, low, after @ ..]) => {
                rest = after;
                u8::from_str_radix(std::str::from_utf8(&[*high, *low]).ok()?, 16).ok()?
            }
            _ => *first,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, date) = text.trim().split_once(", ")?;
    let [day, month, year, time, "GMT"] = date.split(' ').collect::<Vec<_>>()[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let (day, year) = (day.parse::<u8>().ok()?, year.parse::<u16>().ok()?);
    let normal = format!("{year:04}-{month:02}-{day:02}T{time}Z");
    let date = humantime::parse_rfc3339(&normal).ok()?;
    let since = date.duration_since(std::time::SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_http() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        for text in ["", "yesterday", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(http_date(text), None, "{text}");
        }
    }

    #[test]
    fn files_are_called_as_their_address_ends() {
        let temp = tempfile::tempdir().unwrap();
        let scratch = Rc::new(Scratch::new(temp.path()).unwrap());
        for (url, name) in [
            ("https://example.org/a/b.tar.gz", Some("b.tar.gz")),
            ("https://example.org/a/b%20c?x=/y#z", Some("b c")),
            ("https://example.org/a/", Some("a")),
            ("https://example.org/", None),
            ("https://example.org", None),
            ("https://example.org/a/%2e%2e", None),
            ("https://example.org/a%2Fb", None),
            ("https://example.org/%zz", None),
        ] {
            let (digest, scratch) = (Digest::of(b""), Rc::clone(&scratch));
            let url = url.to_owned();
            let download = Download { url, digest, modified: 0, scratch, host: false, file: OnceCell::new() };
            assert_eq!(download.file_name().as_deref(), name, "{}", download.url());
        }
    }
}
