//! The bytes of D-Bus: as much of the marshalling as a client of systemd needs.
//!
//! The D-Bus specification, sections "Type System", "Marshaling (Wire Format)" and "Message Protocol". What comes in
//! is not trusted: each length is checked against what is there before anything is taken.

/// A value of a property, by its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// `b`
    Flag(bool),
    /// `t`
    Number(u64),
    /// `s`
    Text(String),
    /// `au`
    Numbers(Vec<u32>),
    /// `ay`
    Bytes(Vec<u8>),
}

/// Kinds of messages.
pub(super) const METHOD_CALL: u8 = 1;
pub(super) const METHOD_RETURN: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

// Header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SENDER: u8 = 7;
const SIGNATURE: u8 = 8;

/// Bytes of a message before its header fields: what tells how long it is.
pub(super) const FIXED: usize = 16;
/// No answer of systemd's comes near. The protocol would allow 128 MiB.
const LONGEST: usize = 1 << 20;

const BYTE_ORDER: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };

/// A sequence of values that grows. Alignment counts from its beginning.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    pub(super) fn number32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend(value.to_ne_bytes());
    }

    fn number64(&mut self, value: u64) {
        self.align(8);
        self.bytes.extend(value.to_ne_bytes());
    }

    pub(super) fn flag(&mut self, value: bool) {
        self.number32(u32::from(value));
    }

    /// A string or an object path.
    pub(super) fn text(&mut self, text: &str) {
        // A zero byte would end the string for the other side; no name or path that we send has one.
        let text = text.split('\0').next().unwrap_or_default();
        self.number32(length(text.len()));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.bytes.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.bytes.extend(signature.as_bytes());
        self.bytes.push(0);
    }

    /// An array whose elements are aligned to `alignment` bytes.
    pub(super) fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) {
        self.number32(0);
        let at = self.bytes.len() - 4;
        // The padding before the first element does not count.
        self.align(alignment);
        let start = self.bytes.len();
        elements(self);
        let size = length(self.bytes.len() - start);
        self.bytes[at..at + 4].copy_from_slice(&size.to_ne_bytes());
    }

    fn variant(&mut self, value: &Value) {
        match value {
            Value::Flag(value) => {
                self.signature("b");
                self.flag(*value);
            }
            Value::Number(value) => {
                self.signature("t");
                self.number64(*value);
            }
            Value::Text(value) => {
                self.signature("s");
                self.text(value);
            }
            Value::Numbers(values) => {
                self.signature("au");
                self.array(4, |writer| values.iter().for_each(|value| writer.number32(*value)));
            }
            Value::Bytes(values) => {
                self.signature("ay");
                self.array(1, |writer| writer.bytes.extend(values));
            }
        }
    }

    /// `a(sv)`: names and values.
    pub(super) fn properties(&mut self, properties: &[(String, Value)]) {
        self.array(8, |writer| {
            for (name, value) in properties {
                writer.align(8);
                writer.text(name);
                writer.variant(value);
            }
        });
    }
}

fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// A method to call.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) destination: Option<&'a str>,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    /// Types of the arguments.
    pub(super) signature: &'a str,
    pub(super) body: Writer,
}

impl Call<'_> {
    pub(super) fn message(&self, serial: u32) -> Vec<u8> {
        let mut message = Writer { bytes: vec![BYTE_ORDER, METHOD_CALL, 0, 1] };
        message.number32(length(self.body.bytes.len()));
        message.number32(serial);
        let fields = [
            (PATH, "o", Some(self.path)),
            (INTERFACE, "s", Some(self.interface)),
            (MEMBER, "s", Some(self.member)),
            (DESTINATION, "s", self.destination),
            (SIGNATURE, "g", Some(self.signature).filter(|signature| !signature.is_empty())),
        ];
        message.array(8, |writer| {
            for (field, kind, value) in fields {
                let Some(value) = value else { continue };
                writer.align(8);
                writer.bytes.push(field);
                writer.signature(kind);
                match kind {
                    "g" => writer.signature(value),
                    _ => writer.text(value),
                }
            }
        });
        message.align(8);
        message.bytes.extend(&self.body.bytes);
        message.bytes
    }
}

/// A message that came in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) member: String,
    pub(super) error: String,
    pub(super) sender: String,
    pub(super) reply_to: Option<u32>,
    pub(super) signature: String,
    pub(super) body: Vec<u8>,
}

/// How long a message is, from its first [`FIXED`] bytes; `None` when they make no sense.
pub(super) fn size(fixed: &[u8; FIXED]) -> Option<usize> {
    let number = |at: usize| u32::from_ne_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    // The bus passes messages on as their senders wrote them; all are on this machine.
    if fixed[0] != BYTE_ORDER || fixed[3] != 1 {
        return None;
    }
    let (body, fields) = (number(4) as usize, number(12) as usize);
    if body > LONGEST || fields > LONGEST {
        return None;
    }
    Some((FIXED + fields).next_multiple_of(8) + body)
}

impl Message {
    /// Reads a whole message; `None` when it makes no sense.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (fixed, _) = bytes.split_first_chunk::<FIXED>()?;
        if size(fixed)? != bytes.len() {
            return None;
        }
        let mut message = Self { kind: fixed[1], ..Self::default() };
        let mut reader = Reader { bytes, at: 4 };
        let body = reader.number32()? as usize;
        reader.number32()?;
        let fields = reader.number32()? as usize;
        let end = FIXED.checked_add(fields)?;
        while reader.at < end {
            reader.align(8)?;
            let [field] = reader.take(1)? else { return None };
            let kind = reader.signature()?;
            let text = match kind {
                "s" | "o" => reader.text()?,
                "g" => reader.signature()?,
                "u" => {
                    let number = reader.number32()?;
                    if *field == REPLY_SERIAL {
                        message.reply_to = Some(number);
                    }
                    continue;
                }
                // Fields that we do not know have simple types, too.
                "y" => reader.take(1).map(|_| "")?,
                "t" | "x" | "d" => reader.align(8).and_then(|()| reader.take(8)).map(|_| "")?,
                "b" | "i" => reader.number32().map(|_| "")?,
                _ => return None,
            };
            let place = match *field {
                MEMBER => &mut message.member,
                ERROR_NAME => &mut message.error,
                SENDER => &mut message.sender,
                SIGNATURE => &mut message.signature,
                _ => continue,
            };
            text.clone_into(place);
        }
        if reader.at != end {
            return None;
        }
        reader.align(8)?;
        message.body = reader.take(body)?.to_vec();
        Some(message)
    }

    /// The strings and object paths at the beginning of the body, numbers between them left out.
    pub(super) fn texts(&self) -> Vec<String> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        let mut texts = Vec::new();
        for kind in self.signature.chars() {
            let read = match kind {
                's' | 'o' => reader.text().map(|text| texts.push(text.to_owned())),
                'u' | 'i' | 'b' => reader.number32().map(drop),
                _ => None,
            };
            if read.is_none() {
                break;
            }
        }
        texts
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn align(&mut self, to: usize) -> Option<()> {
        let padding = self.at.checked_next_multiple_of(to)? - self.at;
        self.take(padding).map(drop)
    }

    fn number32(&mut self) -> Option<u32> {
        self.align(4)?;
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.number32()? as usize;
        self.terminated(length)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let [length] = self.take(1)? else { return None };
        self.terminated(usize::from(*length))
    }

    fn terminated(&mut self, length: usize) -> Option<&'a str> {
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        (self.take(1)? == [0]).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Vec<u8> {
        let mut body = Writer::default();
        body.text("a.scope");
        body.text("fail");
        body.properties(&[
            ("Delegate".into(), Value::Flag(true)),
            ("MemoryMax".into(), Value::Number(7)),
            ("PIDs".into(), Value::Numbers(vec![1, 2])),
            ("AllowedCPUs".into(), Value::Bytes(vec![3])),
        ]);
        body.array(8, |_| {});
        let (path, interface) = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
        let call = Call {
            destination: Some("org.freedesktop.systemd1"),
            path,
            interface,
            member: "StartTransientUnit",
            signature: "ssa(sv)a(sa(sv))",
            body,
        };
        call.message(5)
    }

    #[test]
    fn a_call_is_what_another_implementation_reads() {
        // By hand, after the specification: one string argument.
        let mut body = Writer::default();
        body.text("hi");
        let call =
            Call { destination: None, path: "/a", interface: "b.c", member: "D", signature: "s", body };
        if cfg!(target_endian = "little") {
            let expected = b"l\x01\0\x01\x07\0\0\0\x09\0\0\0\x37\0\0\0\
                \x01\x01o\0\x02\0\0\0/a\0\0\0\0\0\0\
                \x02\x01s\0\x03\0\0\0b.c\0\0\0\0\0\
                \x03\x01s\0\x01\0\0\0D\0\0\0\0\0\0\0\
                \x08\x01g\0\x01s\0\0\
                \x02\0\0\0hi\0";
            assert_eq!(call.message(9), expected);
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let bytes = call();
        let (fixed, _) = bytes.split_first_chunk::<FIXED>().unwrap();
        assert_eq!(size(fixed), Some(bytes.len()));
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (METHOD_CALL, "StartTransientUnit"));
        assert_eq!(message.signature, "ssa(sv)a(sa(sv))");
        assert_eq!(message.texts(), ["a.scope", "fail"]);
    }

    #[test]
    fn broken_messages_are_refused_and_nothing_is_read_beyond_them() {
        let whole = call();
        for end in 0..whole.len() {
            assert_eq!(Message::parse(&whole[..end]), None);
        }
        // Whatever a byte is changed to, there is an answer, and no panic.
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut broken = whole.clone();
                broken[at] = value;
                if let Some(message) = Message::parse(&broken) {
                    message.texts();
                }
            }
        }
        let mut huge = [0u8; FIXED];
        huge[..4].copy_from_slice(&[BYTE_ORDER, 1, 0, 1]);
        huge[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(size(&huge), None);
    }
}
