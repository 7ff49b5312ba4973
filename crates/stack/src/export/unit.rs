//! The text of a unit (systemd.syntax(7)).

use std::fmt::Display;

/// A unit; a section that is begun again goes on.
#[derive(Default)]
pub(super) struct Unit {
    sections: Vec<(&'static str, Vec<String>)>,
    current: usize,
}

impl Unit {
    pub(super) fn section(&mut self, name: &'static str) {
        let found = self.sections.iter().position(|(other, _)| *other == name);
        self.current = found.unwrap_or(self.sections.len());
        if found.is_none() {
            self.sections.push((name, Vec::new()));
        }
    }

    pub(super) fn line(&mut self, key: &str, value: impl Display) {
        if let Some((_, lines)) = self.sections.get_mut(self.current) {
            lines.push(format!("{key}={value}\n"));
        }
    }

    /// An option of `podman run` that no key says.
    pub(super) fn option(&mut self, option: &str, value: &str) {
        self.line("PodmanArgs", word(&format!("{option}={value}")));
    }

    /// The key of a line that is none: its value has a line end or another control character, for which most keys have no
    /// spelling. What stood behind it would be lines of their own, with keys that the stack's file is not asked for.
    pub(super) fn broken_line(&self) -> Option<&str> {
        let lines = self.sections.iter().flat_map(|(_, lines)| lines);
        let mut broken = lines
            .filter(|line| line.strip_suffix('\n').unwrap_or(line).contains(|c: char| c.is_ascii_control()));
        broken.find_map(|line| line.split_once('=')).map(|(key, _)| key)
    }

    pub(super) fn flag(&mut self, option: &str) {
        self.line("PodmanArgs", option);
    }

    pub(super) fn text(&self) -> String {
        let section = |(name, lines): &(&str, Vec<String>)| format!("[{name}]\n{}", lines.concat());
        self.sections
            .iter()
            .filter(|(name, lines)| !lines.is_empty() || *name != "Service")
            .map(section)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// A text in which systemd replaces nothing.
pub(super) fn literal(text: &str) -> String {
    text.replace('%', "%%").replace('$', "$$")
}

/// A text as one word of a command line, in which systemd replaces nothing.
pub(super) fn word(text: &str) -> String {
    let text = literal(text);
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+=/:,@%$".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_one_word() {
        for (text, expected) in [
            ("A=b", "A=b"),
            ("", "\"\""),
            ("A=b c", "\"A=b c\""),
            ("50%$x", "50%%$$x"),
            ("a\"\\\n", "\"a\\\"\\\\\\n\""),
            ("it's", "\"it's\""),
        ] {
            assert_eq!(word(text), expected);
        }
    }

    #[test]
    fn a_line_is_one_line() {
        let unit = |value: &str| {
            let mut unit = Unit::default();
            unit.section("Container");
            unit.line("Image", "a");
            unit.line("Volume", value);
            unit
        };
        assert_eq!(unit("/a:/b c").broken_line(), None);
        assert_eq!(unit(&word("a\nb\u{7f}\u{85}")).broken_line(), None);
        for value in ["/a:/b\n[Service]\nExecStartPre=true", "/a\r", "/a\n"] {
            assert_eq!(unit(value).broken_line(), Some("Volume"), "{value:?}");
        }
    }
}
