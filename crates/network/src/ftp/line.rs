//! Lines out of bytes, and commands out of lines.

/// Telnet's escape: "interpret as command" (RFC 854).
const IAC: u8 = 0xff;

/// Puts lines together from pieces of whatever size.
#[derive(Debug)]
pub(super) struct Lines {
    unfinished: Vec<u8>,
    longest: usize,
}

/// A line is longer than it may be.
#[derive(Debug)]
pub(super) struct TooLong;

impl Lines {
    pub(super) const fn new(longest: usize) -> Self {
        Self { unfinished: Vec::new(), longest }
    }

    /// Takes the next line off `bytes`, without its end (LF, or CR LF) and without NUL bytes; `None` when all was
    /// taken and it is not complete.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Vec<u8>>, TooLong> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (piece, rest) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
        if self.unfinished.len() + piece.len() > self.longest {
            return Err(TooLong);
        }
        self.unfinished.extend_from_slice(piece);
        *bytes = rest;
        if end.is_none() {
            return Ok(None);
        }
        let mut line = std::mem::take(&mut self.unfinished);
        line.pop();
        line.retain(|byte| *byte != 0);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(line))
    }

    /// What there is of the next line.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.unfinished)
    }
}

/// A command: letters, and after a space the argument.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command<'a> {
    line: &'a [u8],
    verb: usize,
}

impl<'a> Command<'a> {
    /// `None` when the line is none, or when a server might see two in it. Telnet's signals before it are left out:
    /// what they are for, drawing attention to an `ABOR`, is a matter of TCP's urgent data and not of these bytes.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let line = without_telnet(line);
        let verb = line.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
        let separated = matches!(line.get(verb), None | Some(b' '));
        (verb > 0 && separated && !line.contains(&b'\r')).then_some(Self { line, verb })
    }

    /// All of it.
    pub(super) const fn line(&self) -> &'a [u8] {
        self.line
    }

    /// Its letters, in either case.
    pub(super) fn verb(&self) -> &'a [u8] {
        &self.line[..self.verb]
    }

    /// What follows, without the spaces around it.
    pub(super) fn argument(&self) -> &'a [u8] {
        self.line[self.verb..].trim_ascii()
    }
}

fn without_telnet(mut line: &[u8]) -> &[u8] {
    loop {
        line = match line {
            // WILL, WONT, DO and DONT have an option; the other commands (IP, DM, ...) stand alone.
            [IAC, 0xfb..=0xfe, _, rest @ ..] | [IAC, 0xf0..=0xfa, rest @ ..] => rest,
            // The command was sent as urgent data, which does not come in line.
            [IAC, rest @ ..] => rest,
            line => return line,
        };
    }
}
