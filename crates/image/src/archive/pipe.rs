//! The way of a blob: read and unpacked on one thread, hashed on another, taken apart and written on the caller's.
//!
//! The threads pass buffers on through short queues, so that a slow disk holds up the download and nothing piles
//! up in memory; a buffer comes back when the last one who needs it has done with it.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;

use super::packing::{Counted, Source, packing, unpacked};
use super::{FREE_BYTES, Limits, check};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};

/// Size of a buffer.
const BUFFER: usize = 256 << 10;
/// Buffers in a queue.
const QUEUE: usize = 8;

/// What is known of a blob beforehand.
pub(crate) struct Promise<'a> {
    /// Its name for messages.
    pub(crate) name: &'a str,
    /// Digest of the blob as it comes.
    pub(crate) packed: Option<&'a Digest>,
    /// Digest of what it unpacks to.
    pub(crate) unpacked: Option<&'a Digest>,
    /// Whether the digest of what it unpacks to is wanted.
    pub(crate) hash: bool,
}

/// What a blob turned out to be.
pub(crate) struct Found<T> {
    /// What the consumer returned.
    pub(crate) value: T,
    /// Digest of what it unpacks to, if that was wanted.
    pub(crate) unpacked: Option<Digest>,
}

/// Buffers that go round.
type Pool = (SyncSender<Vec<u8>>, Receiver<Vec<u8>>);

/// A filled buffer; it goes back to the pool with its last owner.
struct Chunk {
    bytes: Vec<u8>,
    pool: SyncSender<Vec<u8>>,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // A full or closed pool has no need of it.
        self.pool.try_send(std::mem::take(&mut self.bytes)).ok();
    }
}

/// What the unpacking thread says at its end.
enum Word {
    Chunk(Arc<Chunk>),
    Failed(io::Error),
}

/// Sends a blob, packed or plain, through `consume`, and keeps it to what was promised.
///
/// # Errors
/// What `consume` returns; a damaged blob; one that unpacks to too much; a digest other than the promised one.
pub(crate) fn through<T>(
    blob: impl Read + Send,
    promise: &Promise<'_>,
    limits: &Limits,
    consume: impl FnOnce(&mut dyn BufRead) -> Result<T>,
) -> Result<Found<T>> {
    thread::scope(|scope| {
        let (to_writer, from_unpacker) = sync_channel::<Word>(QUEUE);
        let (to_hasher, hashed) = sync_channel::<Arc<Chunk>>(QUEUE);
        let wants_hash = promise.hash || promise.unpacked.is_some();
        let to_hasher = wants_hash.then_some(to_hasher);
        let hasher = wants_hash.then(|| {
            scope.spawn(move || {
                let mut hasher = Hasher::new();
                hashed.iter().for_each(|chunk: Arc<Chunk>| hasher.update(&chunk.bytes));
                hasher.finish()
            })
        });
        let unpacker = scope.spawn(move || unpack(blob, promise, limits, &to_writer, to_hasher));
        let mut tar = Queue { from: from_unpacker, chunk: None, at: 0 };
        let consumed = consume(&mut tar);
        // The unpacker ends at once if nobody listens any more.
        drop(tar);
        let unpacked = join(unpacker);
        let digest = hasher.map(join);
        match (consumed, unpacked) {
            // What is refused as a whole is the reason for the bad end that the consumer saw.
            (_, Err(error)) => Err(error),
            (Err(error), _) => Err(error),
            (Ok(value), Ok(packed)) => {
                if let (Some(expected), Some(found)) = (promise.packed, packed) {
                    check(promise.name, expected.hex(), &found)?;
                }
                if let (Some(expected), Some(found)) = (promise.unpacked, &digest) {
                    let object = format!("{}, unpacked", promise.name);
                    check(&object, expected.hex(), found)?;
                }
                Ok(Found { value, unpacked: digest })
            }
        }
    })
}

/// A thread's result; a panic goes on.
fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Reads a blob and sends what it unpacks to. Returns the digest of the blob, if one was promised.
fn unpack(
    blob: impl Read,
    promise: &Promise<'_>,
    limits: &Limits,
    to_writer: &SyncSender<Word>,
    to_hasher: Option<SyncSender<Arc<Chunk>>>,
) -> Result<Option<Digest>> {
    let mut blob = BufReader::with_capacity(BUFFER, Counted::new(blob, promise.packed.is_some()));
    let refused = |problem: String| Error::RefusedArchive { archive: promise.name.to_owned(), problem };
    let start = match blob.fill_buf() {
        Ok(start) => packing(start),
        Err(cause) => {
            // A writer that is gone has failed before, and says why.
            to_writer.send(Word::Failed(cause)).ok();
            return Ok(None);
        }
    };
    if blob.buffer().is_empty() {
        return Err(refused("the file is empty".to_owned()));
    }
    let mut source = match unpacked(start, blob) {
        Ok(source) => source,
        Err(cause) => {
            to_writer.send(Word::Failed(cause)).ok();
            return Ok(None);
        }
    };
    let (pool, free): Pool = sync_channel(2 * QUEUE);
    let mut sent = 0_u64;
    loop {
        let mut bytes = match free.try_recv() {
            Ok(bytes) => bytes,
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => Vec::with_capacity(BUFFER),
        };
        bytes.resize(BUFFER, 0);
        let read = read_full(&mut *source, &mut bytes);
        let (length, failed) = match read {
            Ok(length) => (length, None),
            Err((length, cause)) => (length, Some(cause)),
        };
        bytes.truncate(length);
        sent += length as u64;
        let packed = source.packed();
        if sent > FREE_BYTES && sent / limits.ratio.max(1) > packed {
            return Err(refused(format!("it unpacks to more than {} times its size", limits.ratio)));
        }
        let chunk = Arc::new(Chunk { bytes, pool: pool.clone() });
        if length > 0 {
            if let Some(hasher) = &to_hasher {
                // It ends after us.
                hasher.send(Arc::clone(&chunk)).ok();
            }
            if to_writer.send(Word::Chunk(chunk)).is_err() {
                // The consumer has failed and says why.
                return Ok(None);
            }
        }
        if let Some(cause) = failed {
            to_writer.send(Word::Failed(cause)).ok();
            return Ok(None);
        }
        if length < BUFFER {
            break;
        }
    }
    // The digest covers what lies behind the packed data, too.
    source.finish().map_err(|cause| Error::DamagedArchive {
        archive: promise.name.to_owned(),
        entry: None,
        source: cause,
    })
}

/// Reads until the buffer is full or the stream ends; an error comes with what was read before it.
fn read_full(source: &mut dyn Source, buffer: &mut [u8]) -> Result<usize, (usize, io::Error)> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err((filled, cause)),
        }
    }
    Ok(filled)
}

/// The consumer's end.
struct Queue {
    from: Receiver<Word>,
    chunk: Option<Arc<Chunk>>,
    at: usize,
}

impl Read for Queue {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Queue {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.as_ref().is_none_or(|chunk| self.at == chunk.bytes.len()) {
            self.chunk = None;
            match self.from.recv() {
                Ok(Word::Chunk(chunk)) => (self.chunk, self.at) = (Some(chunk), 0),
                Ok(Word::Failed(cause)) => return Err(cause),
                // All has been sent.
                Err(_) => {}
            }
        }
        Ok(self.chunk.as_ref().map_or(&[], |chunk| &chunk.bytes[self.at..]))
    }

    fn consume(&mut self, length: usize) {
        self.at += length;
    }
}
