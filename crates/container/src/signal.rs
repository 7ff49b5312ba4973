//! Signals as people write them.

/// A signal by number or name, with or without `SIG`, real-time ones as `RTMIN+N`.
pub fn number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str, sign: char| match text {
        "" => Some(0),
        text => text.strip_prefix(sign)?.parse().ok().filter(|offset| (0..=30).contains(offset)),
    };
    // The kernel's first real-time signals belong to the C library: what programs call RTMIN is 34.
    if let Some(rest) = short.strip_prefix("RTMIN") {
        return Some(34 + offset(rest, '+')?);
    }
    if let Some(rest) = short.strip_prefix("RTMAX") {
        return Some(64 - offset(rest, '-')?);
    }
    format!("SIG{short}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_every_usual_name() {
        for (name, expected) in [
            ("SIGQUIT", Some(3)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("rtmin", Some(34)),
            ("RTMAX-1", Some(63)),
            ("RTMIN+31", None),
            ("SIGNOTHING", None),
            ("0", None),
            ("-9", None),
            ("65", None),
            ("", None),
        ] {
            assert_eq!(number(name), expected, "{name:?}");
        }
    }
}
