//! The tar format, read: ustar, pax and GNU's, block by block, with what the blocks were.
//!
//! What a header means is decided as Go's `archive/tar` does, because Docker, containerd and Podman read layers
//! with it, and an archive must not mean one thing to them and another to us: links, directories and devices have
//! no content whatever their size says, and global pax headers change nothing.

use std::io::{self, BufRead};

use crate::layer::recipe;

/// Size of a block.
const BLOCK: usize = 512;
/// Bytes that headers between the content of two files may take: long names and extended attributes are far
/// smaller, and they are kept in memory.
const HEADER_BYTES: u64 = 2 << 20;
/// Most fragments of a sparse file.
const MAX_FRAGMENTS: usize = 100_000;

/// Why an archive cannot be read on.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Reading failed, or the end came too early.
    Io(io::Error),
    /// A header means nothing.
    Malformed(&'static str),
    /// Content beyond the limit.
    TooLarge,
}

impl From<io::Error> for Fault {
    fn from(cause: io::Error) -> Self {
        Self::Io(cause)
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Link,
    HardLink,
    Pipe,
    Device,
    /// Anything else, by its type flag.
    Other(u8),
}

/// A piece of a sparse file: where it belongs and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// An entry's header and all that pax and GNU records say about it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    /// Permission bits, with set-id and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, i64),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size of the file, holes included.
    pub(crate) size: u64,
    /// The pieces of a sparse file that the archive holds; a file without is one piece.
    pub(crate) sparse: Option<Vec<Fragment>>,
}

/// Reads an archive from its beginning to its last byte.
///
/// With a recipe, every byte goes there, but the content of files that [`Tape::keep`] says is elsewhere.
pub(crate) struct Tape<'a, R> {
    input: R,
    recipe: Option<&'a mut recipe::Writer>,
    /// Bytes of content that may still come.
    budget: u64,
    /// Content of the present entry that has not been read.
    left: u64,
    /// Bytes from the end of the content to the next block.
    padding: usize,
    /// Bytes from the beginning of the archive.
    position: u64,
    ended: bool,
}

impl<'a, R: BufRead> Tape<'a, R> {
    /// An archive whose content may take `budget` bytes.
    pub(crate) fn new(input: R, budget: u64, recipe: Option<&'a mut recipe::Writer>) -> Self {
        Self { input, recipe, budget, left: 0, padding: 0, position: 0, ended: false }
    }

    /// The next entry; what was not read of the one before is passed over. None at the end mark, or where the
    /// archive ends without one between two entries.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, Fault> {
        if self.ended {
            return Ok(None);
        }
        self.pass()?;
        let mut extra = Extra::default();
        let mut header_bytes = HEADER_BYTES;
        loop {
            let is_first = self.position == 0;
            let Some(block) = self.block(true)? else {
                self.ended = true;
                return if extra.any { Err(cut_short()) } else { Ok(None) };
            };
            if block == [0; BLOCK] {
                self.ended = true;
                return match self.block(true)? {
                    _ if extra.any => Err(Fault::Malformed("the archive ends after a header of records")),
                    None => Ok(None),
                    Some(block) if block == [0; BLOCK] => Ok(None),
                    Some(_) => Err(Fault::Malformed("an empty block stands between entries")),
                };
            }
            let header = Header(&block);
            // Whatever begins with no header is something else, not a damaged archive.
            header.check().map_err(|fault| if is_first { not_tar() } else { fault })?;
            let mut size = header.size()?;
            let flag = header.0[156];
            if matches!(flag, b'x' | b'g' | b'L' | b'K') {
                header_bytes = (header_bytes.checked_sub(size.saturating_add(BLOCK as u64)))
                    .ok_or(Fault::Malformed("too much data for one header"))?;
                let body = self.body(size)?;
                extra.any |= flag != b'g';
                match flag {
                    b'x' => extra.pax(&body)?,
                    b'L' => extra.path = Some(until_nul(&body).to_vec()),
                    b'K' => extra.link = Some(until_nul(&body).to_vec()),
                    _ => {}
                }
                continue;
            }
            if let Some(real) = extra.size {
                size = real;
            }
            let mut member = header.member(extra.path.take(), extra.link.take())?;
            // A header alone: what its size says is not there (Go, `isHeaderOnlyType`).
            if matches!(flag, b'1'..=b'6') {
                size = 0;
            }
            if member.kind == Kind::Dir && size > 0 {
                return Err(Fault::Malformed("a directory has content"));
            }
            self.left = size;
            self.padding = padding(size);
            member.size = size;
            extra.apply(&mut member);
            if flag == b'S' {
                self.old_sparse(&block, &mut member)?;
            } else if let Some(sparse) = extra.sparse {
                self.pax_sparse(sparse, &mut member)?;
            }
            if let Some(fragments) = &member.sparse {
                check_fragments(fragments, member.size, self.left)?;
                // Holes count: whoever reads the file gets them.
                self.budget = self.budget.checked_sub(member.size - self.left).ok_or(Fault::TooLarge)?;
            }
            return Ok(Some(member));
        }
    }

    /// The next bytes of the present entry's content, at most `most`; empty at its end. [`Tape::consume`] them.
    pub(crate) fn content(&mut self, most: u64) -> Result<&[u8], Fault> {
        let most = most.min(self.left);
        if most == 0 {
            return Ok(&[]);
        }
        let bytes = fill(&mut self.input)?;
        if bytes.is_empty() {
            return Err(cut_short());
        }
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
        if length as u64 > self.budget {
            return Err(Fault::TooLarge);
        }
        Ok(&bytes[..length])
    }

    /// Where the content of the entry that [`Tape::next`] gave begins, in bytes from the beginning of the archive.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Goes on behind `length` bytes that [`Tape::content`] gave.
    pub(crate) fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.left -= length as u64;
        self.budget -= length as u64;
        self.position += length as u64;
    }

    /// Tells the recipe that the last `length` bytes of content are found in a file of the layer.
    pub(crate) fn keep(&mut self, path: &[u8], offset: u64, length: u64) {
        if let Some(recipe) = &mut self.recipe {
            recipe.file(path, offset, length);
        }
    }

    /// Reads what lies behind the end mark, up to the end of the stream.
    pub(crate) fn finish(mut self) -> Result<(), Fault> {
        loop {
            let bytes = fill(&mut self.input)?;
            let length = bytes.len();
            if length == 0 {
                return Ok(());
            }
            self.budget = self.budget.checked_sub(length as u64).ok_or(Fault::TooLarge)?;
            if let Some(recipe) = &mut self.recipe {
                recipe.literal(bytes);
            }
            self.input.consume(length);
        }
    }

    /// Passes over the rest of an entry; the recipe gets it.
    fn pass(&mut self) -> Result<(), Fault> {
        while self.left > 0 {
            let length = self.content(self.left)?.len();
            if let Some(recipe) = &mut self.recipe {
                recipe.literal(&self.input.fill_buf()?[..length]);
            }
            self.consume(length);
        }
        let mut rest = [0; BLOCK];
        let padding = std::mem::take(&mut self.padding);
        let read = read_full(&mut self.input, &mut rest[..padding])?;
        self.literal(&rest[..read]);
        // The very last padding may be missing: there is nothing in it.
        Ok(())
    }

    fn literal(&mut self, bytes: &[u8]) {
        self.position += bytes.len() as u64;
        if let Some(recipe) = &mut self.recipe {
            recipe.literal(bytes);
        }
    }

    /// One block; none at the end of the stream, where that may be.
    fn block(&mut self, may_end: bool) -> Result<Option<[u8; BLOCK]>, Fault> {
        let mut block = [0; BLOCK];
        let is_first = self.position == 0;
        let length = read_full(&mut self.input, &mut block)?;
        self.literal(&block[..length]);
        match length {
            BLOCK => Ok(Some(block)),
            0 if may_end => Ok(None),
            _ if is_first => Err(not_tar()),
            _ => Err(cut_short()),
        }
    }

    /// The body of a header of records, with its padding.
    fn body(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        // No more than HEADER_BYTES, as the caller has seen.
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        let mut body = vec![0; length + padding(size)];
        if read_full(&mut self.input, &mut body)? < body.len() {
            return Err(cut_short());
        }
        self.literal(&body);
        body.truncate(length);
        Ok(body)
    }

    /// GNU's old form: the map is in the header, and in blocks that follow it.
    fn old_sparse(&mut self, block: &[u8; BLOCK], member: &mut Member) -> Result<(), Fault> {
        let mut fragments = Vec::new();
        let mut take = |fields: &[u8]| -> Result<(), Fault> {
            for pair in fields.chunks_exact(24) {
                if pair[0] == 0 {
                    break;
                }
                let (offset, length) = (number(&pair[..12])?, number(&pair[12..])?);
                fragments.push(Fragment { offset, length });
            }
            match fragments.len() {
                ..=MAX_FRAGMENTS => Ok(()),
                _ => Err(Fault::Malformed("a sparse file has too many pieces")),
            }
        };
        take(&block[386..482])?;
        let mut more = block[482] != 0;
        while more {
            let block = self.block(false)?.ok_or_else(cut_short)?;
            take(&block[..504])?;
            more = block[504] != 0;
        }
        member.size = number(&block[483..495])?;
        member.sparse = Some(fragments);
        Ok(())
    }

    /// GNU's sparse files in pax archives: 0.0 and 0.1 have their map in records, 1.0 before the content.
    fn pax_sparse(&mut self, sparse: PaxSparse, member: &mut Member) -> Result<(), Fault> {
        if let Some(name) = sparse.name {
            member.path = name;
        }
        let fragments = match sparse.map {
            Some(map) if !sparse.in_content => map,
            _ => self.map_in_content()?,
        };
        member.size = sparse.size.ok_or(Fault::Malformed("a sparse file has no size"))?;
        member.sparse = Some(fragments);
        Ok(())
    }

    fn map_in_content(&mut self) -> Result<Vec<Fragment>, Fault> {
        let mut text = Vec::new();
        let mut numbers: Vec<u64> = Vec::new();
        loop {
            if self.left < BLOCK as u64 {
                return Err(Fault::Malformed("the map of a sparse file is cut short"));
            }
            let block = self.block(false)?.ok_or_else(cut_short)?;
            self.left -= BLOCK as u64;
            text.extend_from_slice(&block);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                numbers.push(decimal(&text[..end])?);
                text.drain(..=end);
                let wanted = numbers[0].saturating_mul(2).saturating_add(1);
                if numbers[0] > MAX_FRAGMENTS as u64 {
                    return Err(Fault::Malformed("a sparse file has too many pieces"));
                }
                if numbers.len() as u64 == wanted {
                    let pairs = numbers[1..].chunks_exact(2);
                    return Ok(pairs.map(|pair| Fragment { offset: pair[0], length: pair[1] }).collect());
                }
            }
            if text.len() > BLOCK {
                return Err(Fault::Malformed("the map of a sparse file is no list of numbers"));
            }
        }
    }
}

/// What stands in records before a header.
#[derive(Default)]
struct Extra {
    any: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, i64)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Option<PaxSparse>,
}

#[derive(Default)]
struct PaxSparse {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    map: Option<Vec<Fragment>>,
    in_content: bool,
}

impl Extra {
    /// Reads records `LENGTH KEY=VALUE\n` (POSIX.1, pax Interchange Format).
    fn pax(&mut self, mut body: &[u8]) -> Result<(), Fault> {
        const BAD: Fault = Fault::Malformed("a pax record is no `LENGTH KEY=VALUE`");
        while !body.is_empty() {
            let space = body.iter().take(20).position(|byte| *byte == b' ').ok_or(BAD)?;
            let length = usize::try_from(decimal(&body[..space])?).map_err(|_| BAD)?;
            if length > body.len() || length < space + 3 || body[length - 1] != b'\n' {
                return Err(BAD);
            }
            let record = &body[space + 1..length - 1];
            body = &body[length..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
            self.record(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        // An empty value takes back what a global header said; those we do not follow.
        if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") {
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => {
                self.mtime = Some(pax_time(value).ok_or(Fault::Malformed("a pax time is no number"))?)
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(old, _)| old != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse_record(key, value)?;
                }
            }
        }
        Ok(())
    }

    fn sparse_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let sparse = self.sparse.get_or_insert_default();
        let map = sparse.map.get_or_insert_default();
        if map.len() > MAX_FRAGMENTS {
            return Err(Fault::Malformed("a sparse file has too many pieces"));
        }
        match key {
            b"major" => sparse.in_content = decimal(value)? == 1,
            b"name" => sparse.name = Some(value.to_vec()),
            b"size" | b"realsize" => sparse.size = Some(decimal(value)?),
            b"offset" => map.push(Fragment { offset: decimal(value)?, length: 0 }),
            b"numbytes" => {
                map.last_mut()
                    .ok_or(Fault::Malformed("a sparse file has a piece without an offset"))?
                    .length = decimal(value)?;
            }
            b"map" => {
                let numbers: Vec<u64> =
                    value.split(|byte| *byte == b',').map(decimal).collect::<Result<_, _>>()?;
                if !numbers.len().is_multiple_of(2) {
                    return Err(Fault::Malformed("a sparse file has a piece without a length"));
                }
                *map = numbers.chunks_exact(2).map(|p| Fragment { offset: p[0], length: p[1] }).collect();
            }
            _ => {}
        }
        Ok(())
    }

    fn apply(&mut self, member: &mut Member) {
        member.uid = self.uid.unwrap_or(member.uid);
        member.gid = self.gid.unwrap_or(member.gid);
        member.mtime = self.mtime.unwrap_or(member.mtime);
        member.xattrs = std::mem::take(&mut self.xattrs);
    }
}

/// A header block (POSIX.1, ustar Interchange Format; GNU tar, "Basic Tar Format").
pub(crate) struct Header<'a>(pub(crate) &'a [u8; BLOCK]);

impl Header<'_> {
    /// Compares the checksum, which some count with signed bytes.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        let stored = number(&self.0[148..156])?;
        let mut sums = (0_u64, 0_i64);
        for (at, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            sums = (sums.0 + u64::from(byte), sums.1 + i64::from(byte.cast_signed()));
        }
        if stored == sums.0 || i64::try_from(stored) == Ok(sums.1) {
            return Ok(());
        }
        Err(Fault::Malformed("the checksum of a header is wrong"))
    }

    fn size(&self) -> Result<u64, Fault> {
        number(&self.0[124..136])
    }

    fn is_gnu(&self) -> bool {
        self.0[257..265] == *b"ustar  \0"
    }

    fn member(&self, path: Option<Vec<u8>>, link: Option<Vec<u8>>) -> Result<Member, Fault> {
        let path = path.unwrap_or_else(|| {
            let name = until_nul(&self.0[..100]);
            let is_ustar = self.0[257..262] == *b"ustar" && !self.is_gnu();
            let is_star = self.0[508..512] == *b"tar\0";
            let prefix: &[u8] = match (is_ustar, is_star) {
                (true, false) => until_nul(&self.0[345..500]),
                (true, true) => until_nul(&self.0[345..476]),
                _ => &[],
            };
            if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
        });
        let kind = match self.0[156] {
            // Very old archives mark a directory by a slash at the end.
            0 | b'0' | b'7' | b'S' if path.ends_with(b"/") => Kind::Dir,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Link,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Dir,
            b'6' => Kind::Pipe,
            other => Kind::Other(other),
        };
        Ok(Member {
            kind,
            path,
            link: link.unwrap_or_else(|| until_nul(&self.0[157..257]).to_vec()),
            mode: u32::try_from(number(&self.0[100..108])? & 0o7777).unwrap_or(0),
            uid: number(&self.0[108..116])?,
            gid: number(&self.0[116..124])?,
            mtime: (signed(&self.0[136..148])?, 0),
            xattrs: Vec::new(),
            size: 0,
            sparse: None,
        })
    }
}

fn check_fragments(fragments: &[Fragment], size: u64, held: u64) -> Result<(), Fault> {
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for fragment in fragments {
        let behind = fragment.offset.checked_add(fragment.length);
        match behind {
            Some(behind) if fragment.offset >= end && behind <= size => end = behind,
            _ => return Err(Fault::Malformed("the pieces of a sparse file overlap, or lie outside of it")),
        }
        sum += fragment.length;
    }
    if sum != held {
        return Err(Fault::Malformed("the pieces of a sparse file are not what the archive holds"));
    }
    Ok(())
}

fn not_tar() -> Fault {
    Fault::Io(io::Error::new(io::ErrorKind::Unsupported, "it is not a tar archive"))
}

fn cut_short() -> Fault {
    Fault::Io(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut short"))
}

fn padding(size: u64) -> usize {
    // Less than a block, so that it fits.
    ((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64) as usize
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number that cannot be negative.
fn number(field: &[u8]) -> Result<u64, Fault> {
    u64::try_from(signed(field)?).map_err(|_| Fault::Malformed("a number in a header is negative"))
}

/// A number: octal digits, or (GNU) a bit and then two's complement, most significant byte first.
fn signed(field: &[u8]) -> Result<i64, Fault> {
    const BAD: Fault = Fault::Malformed("a number in a header is none");
    if field[0] & 0x80 != 0 {
        // The first byte's sign is in the bit below the mark.
        let fill = if field[0] & 0x40 != 0 { -1 } else { 0 };
        let mut value = i128::from(fill) << 7 | i128::from(field[0] & 0x7f);
        for byte in &field[1..] {
            value = value.checked_mul(256).ok_or(BAD)? | i128::from(*byte);
        }
        return i64::try_from(value).map_err(|_| BAD);
    }
    let blank = |byte: &u8| matches!(byte, 0 | b' ');
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let mut value = 0_i64;
    for digit in until_nul(&field[start..end]) {
        if !(b'0'..=b'7').contains(digit) {
            return Err(BAD);
        }
        value = value.checked_mul(8).and_then(|value| value.checked_add((digit - b'0').into())).ok_or(BAD)?;
    }
    Ok(value)
}

fn decimal(text: &[u8]) -> Result<u64, Fault> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let value = digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten();
    value.ok_or(Fault::Malformed("a number in a record is none"))
}

/// Seconds with an optional fraction, as pax writes times.
fn pax_time(text: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    // A time before 1970 with a fraction counts upwards from the second below.
    if text.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - i64::from(nanoseconds)));
    }
    Some((seconds, nanoseconds.into()))
}

/// What the input has, read if it has nothing.
fn fill(input: &mut impl BufRead) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            // The second call finds what the first one has filled.
            Ok(_) => return input.fill_buf(),
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
}

/// Reads until the buffer is full or the stream ends.
fn read_full(input: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let bytes = fill(input)?;
        let length = bytes.len().min(buffer.len() - filled);
        if length == 0 {
            break;
        }
        buffer[filled..filled + length].copy_from_slice(&bytes[..length]);
        input.consume(length);
        filled += length;
    }
    Ok(filled)
}
