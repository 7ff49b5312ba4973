//! A blob as it arrives: fetched, resumed, counted, hashed, and checked at its end.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::BodyReader;
use ureq::http::{Method, header};

use super::client::{Call, Client, LARGEST_ANSWER};
use super::error::Problem;
use super::headers;
use super::settings::Timing;
use crate::digest::Hasher;
use crate::error::{Error, Result};
use crate::manifest::Descriptor;

/// Blobs that break off more often than this are not worth any more attempts, however far they came.
const MOST_RESUMES: u32 = 50;

/// A reader of exactly the bytes that a descriptor promises. Their end is reported only when size and digest are
/// right: who reads up to the end has read the right bytes.
pub(super) struct BlobReader<'a> {
    client: &'a Client,
    scope: &'a str,
    path: String,
    blob: &'a Descriptor,
    body: Option<BodyReader<'static>>,
    offset: u64,
    /// None once the digest has been checked.
    hasher: Option<Hasher>,
    /// What arrived since the last break.
    fresh: u64,
    /// Breaks since something worth an attempt arrived, and in all.
    fruitless: u32,
    resumes: u32,
    pace: Pace,
    progress: &'a (dyn Fn(u64) + Sync),
    /// What ended it, for whoever has seen only a reader's error.
    failure: Option<Error>,
}

/// Whether a transfer crawls. Only the time that is spent waiting for the registry counts.
#[derive(Default)]
struct Pace {
    waited: Duration,
    arrived: u64,
}

impl Pace {
    /// Takes note of a read; false when it has been too slow for too long.
    fn note(&mut self, waited: Duration, arrived: usize, limit: Duration) -> bool {
        self.waited += waited;
        self.arrived += arrived as u64;
        if self.waited < limit {
            return true;
        }
        let enough = self.arrived >= Timing::SLOWEST;
        *self = Self::default();
        enough
    }
}

impl<'a> BlobReader<'a> {
    pub(super) fn new(
        client: &'a Client,
        repository: &str,
        scope: &'a str,
        blob: &'a Descriptor,
        progress: &'a (dyn Fn(u64) + Sync),
    ) -> Self {
        let path = format!("/v2/{repository}/blobs/{}", blob.digest);
        Self {
            client,
            scope,
            path,
            blob,
            body: None,
            offset: 0,
            hasher: Some(Hasher::new()),
            fresh: 0,
            fruitless: 0,
            resumes: 0,
            pace: Pace::default(),
            progress,
            failure: None,
        }
    }

    /// Why it failed: readers between us and who asks may have made another error of it.
    pub(super) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Reads on to the end, so that all of it is checked.
    pub(super) fn drain(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        while self.next(&mut buffer)? > 0 {}
        Ok(())
    }

    fn object(&self) -> String {
        format!("blob {}", self.blob.digest)
    }

    fn operation(&self) -> String {
        format!("fetch blob {}", self.blob.digest.short())
    }

    /// Asks for what is missing.
    fn open(&self) -> Result<BodyReader<'static>> {
        let mut call = Call::new(Method::GET, self.path.clone(), self.scope, self.operation());
        if self.offset > 0 {
            call = call.header("range", format!("bytes={}-", self.offset));
        }
        let answer = self.client.send(&call)?;
        let skip = match (answer.status(), self.offset) {
            (200, offset) => offset,
            (206, offset) if offset > 0 => {
                let start = answer.header(header::CONTENT_RANGE).and_then(headers::range_start);
                if start != Some(offset) {
                    return Err(self
                        .client
                        .wrong(self.object(), "it sends another part than the one asked for"));
                }
                0
            }
            _ => return Err(self.client.missing_or(self.object(), &self.operation(), answer)),
        };
        let expected = self.blob.size - self.offset + skip;
        if let Some(length) = answer.response.body().content_length().filter(|length| *length != expected) {
            let problem = format!(
                "it has {} bytes, but the manifest says {}",
                length + self.offset - skip,
                self.blob.size
            );
            return Err(self.client.wrong(self.object(), problem));
        }
        let body = answer.response.into_body();
        // A server may not be able to begin in the middle.
        let mut reader = body.into_with_config().limit(self.blob.size.saturating_add(1)).reader();
        if skip > 0 {
            let skipped = io::copy(&mut (&mut reader).take(skip), &mut io::sink());
            if !matches!(skipped, Ok(skipped) if skipped == skip) {
                return Err(self.broken(skipped.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())));
            }
        }
        Ok(reader)
    }

    fn broken(&self, source: io::Error) -> Error {
        let attempts = self.resumes.max(1);
        self.client.fail(Problem::Broken { operation: self.operation(), attempts, source })
    }

    /// Waits before another attempt, if there is to be one.
    fn retry(&mut self, cause: io::Error) -> Result<()> {
        self.body = None;
        self.fresh = 0;
        self.fruitless += 1;
        self.resumes += 1;
        if self.client.is_stopped() {
            return Err(self.client.fail(Problem::Stopped));
        }
        if self.fruitless >= self.client.timing().attempts || self.resumes > MOST_RESUMES {
            return Err(self.broken(cause));
        }
        tracing::debug!(blob = self.blob.digest.short(), offset = self.offset, %cause, "resume");
        self.client.pause(self.client.backoff(self.fruitless))
    }

    fn finish(&mut self) -> Result<()> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let found = hasher.finish();
        if found == self.blob.digest {
            return Ok(());
        }
        self.hasher = Some(Hasher::new());
        Err(self.client.wrong(self.object(), format!("what arrived is {found}")))
    }

    /// As [`Read::read`].
    fn next(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            let left = self.blob.size - self.offset;
            if left == 0 {
                self.body = None;
                self.finish()?;
                return Ok(0);
            }
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.open()?,
            };
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let begun = Instant::now();
            let length = match body.read(&mut buffer[..most]) {
                Ok(0) => {
                    let cause = io::Error::new(io::ErrorKind::UnexpectedEof, "the blob ended early");
                    self.retry(cause)?;
                    continue;
                }
                Ok(length) => length,
                Err(cause) => {
                    self.retry(cause)?;
                    continue;
                }
            };
            self.offset += length as u64;
            self.fresh += length as u64;
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..length]);
            }
            if self.pace.note(begun.elapsed(), length, self.client.timing().crawl) {
                if self.fresh >= Timing::SLOWEST {
                    self.fruitless = 0;
                }
                self.body = Some(body);
            } else {
                self.retry(io::Error::new(io::ErrorKind::TimedOut, "hardly anything arrives"))?;
            }
            (self.progress)(self.offset);
            return Ok(length);
        }
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.next(buffer).map_err(|error| {
            let passed = io::Error::other(error.to_string());
            self.failure = Some(error);
            passed
        })
    }
}

/// A small blob as a whole.
pub(super) fn fetch(client: &Client, repository: &str, scope: &str, blob: &Descriptor) -> Result<Vec<u8>> {
    if blob.size > LARGEST_ANSWER {
        return Err(
            client.wrong(format!("blob {}", blob.digest), format!("{} bytes are too many for it", blob.size))
        );
    }
    let mut bytes = Vec::new();
    let mut reader = BlobReader::new(client, repository, scope, blob, &|_| {});
    let read = reader.read_to_end(&mut bytes);
    match (reader.take_failure(), read) {
        (Some(error), _) => Err(error),
        (None, Ok(_)) => Ok(bytes),
        (None, Err(cause)) => Err(reader.broken(cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_crawls_is_found_out() {
        let limit = Duration::from_secs(60);
        let mut pace = Pace::default();
        assert!(pace.note(Duration::from_secs(59), 1, limit));
        assert!(!pace.note(Duration::from_secs(2), 1, limit));
        // Much at once, then a long wait: fine.
        assert!(pace.note(Duration::from_secs(1), 1 << 20, limit) && pace.note(limit, 1, limit));
    }
}
