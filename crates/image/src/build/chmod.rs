//! `--chmod`: a mode in octal digits, or the clauses of `chmod(1)`.

/// What a file's mode becomes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Chmod {
    Octal(u32),
    /// In order; each works on what the one before made.
    Symbolic(Vec<Clause>),
}

/// One of `u=rwX`, `go-w`, `a+x`, `+t`, `g=u`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Clause {
    /// The bits that may change, of all twelve.
    who: u32,
    operator: char,
    permissions: Vec<char>,
}

impl Chmod {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`--chmod={text}`: a mode is octal digits up to 7777, or is like `u=rwX,go=rX`");
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
            return mode.map(Self::Octal).ok_or_else(wrong);
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            let at = part.find(['+', '-', '=']).ok_or_else(wrong)?;
            let mut who = 0;
            for class in part[..at].chars() {
                who |= match class {
                    'u' => 0o4700,
                    'g' => 0o2070,
                    'o' => 0o7,
                    'a' => 0o7777,
                    _ => return Err(wrong()),
                };
            }
            // Without a class all are meant: a build has no umask.
            let who = if who == 0 { 0o7777 } else { who };
            let mut rest = &part[at..];
            while let Some(operator) = rest.chars().next() {
                let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |end| end + 1);
                let permissions: Vec<char> = rest[1..end].chars().collect();
                let copied = matches!(permissions[..], ['u' | 'g' | 'o']);
                if !copied && !permissions.iter().all(|permission| "rwxXst".contains(*permission)) {
                    return Err(wrong());
                }
                clauses.push(Clause { who, operator, permissions });
                rest = &rest[end..];
            }
        }
        Ok(Self::Symbolic(clauses))
    }

    /// The new mode of a file or directory that has this one.
    pub(super) fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self {
            Self::Octal(mode) => *mode,
            Self::Symbolic(clauses) => {
                clauses.iter().fold(mode & 0o7777, |mode, clause| clause.apply(mode, is_dir))
            }
        }
    }
}

impl Clause {
    fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let mut bits = 0;
        for permission in &self.permissions {
            bits |= match permission {
                'r' => 0o444,
                'w' => 0o222,
                'x' => 0o111,
                'X' if is_dir || mode & 0o111 != 0 => 0o111,
                's' => 0o6000,
                't' => 0o1000,
                'u' => (mode >> 6 & 7) * 0o111,
                'g' => (mode >> 3 & 7) * 0o111,
                'o' => (mode & 7) * 0o111,
                _ => 0,
            };
        }
        let bits = bits & self.who;
        match self.operator {
            '+' => mode | bits,
            '-' => mode & !bits,
            _ => mode & !self.who | bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_chmod() {
        for (text, mode, is_dir, expected) in [
            ("755", 0o600, false, 0o755),
            ("0644", 0o777, true, 0o644),
            ("+x", 0o644, false, 0o755),
            ("u+x,go-r", 0o644, false, 0o700),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("g=u", 0o740, false, 0o770),
            ("a-w+x", 0o666, false, 0o555),
            ("u+s,+t", 0o755, false, 0o5755),
            ("g+s", 0o755, true, 0o2755),
            ("o=", 0o1777, true, 0o1770),
        ] {
            assert_eq!(Chmod::parse(text).unwrap().apply(mode, is_dir), expected, "{text} {mode:o}");
        }
        for text in ["", "8", "17777", "u", "u=rz", "x=r", "u+rg", ",", "0o7", "rwx"] {
            assert!(Chmod::parse(text).is_err(), "{text}");
        }
    }
}
