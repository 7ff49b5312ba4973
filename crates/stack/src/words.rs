//! Words of a command line: split, as compose does it for `command: php -S 0.0.0.0:80`, and quoted for a shell.

/// Words of a command line: blanks separate, quotes and backslashes as in a POSIX shell, no expansion.
/// `None` when a quote is not closed.
pub fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            '\n' => {}
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(c) => word.get_or_insert_default().push(c),
                None => word.get_or_insert_default().push('\\'),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

/// A word of a POSIX shell that means this text.
pub(crate) fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::{quote, split};

    #[test]
    fn words() {
        for (line, expected) in [
            ("php -S 0.0.0.0:80", vec!["php", "-S", "0.0.0.0:80"]),
            ("sh -c 'echo \"a b\"; exit'", vec!["sh", "-c", "echo \"a b\"; exit"]),
            (r#"a"b c"d\ e "\"\n" '' "#, vec!["ab cd e", "\"\\n", ""]),
            ("  ", vec![]),
        ] {
            assert_eq!(split(line).unwrap(), expected, "{line}");
        }
        assert_eq!(split("a 'b"), None);
        assert_eq!(split("a \"b\\"), None);
    }

    #[test]
    fn words_mean_themselves() {
        assert_eq!(quote("/a/b-c"), "/a/b-c");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
        for text in ["a;b", "$(a)", "a\nb", "~", "'\"'"] {
            assert_eq!(split(&quote(text)), Some(vec![text.to_owned()]));
        }
    }
}
