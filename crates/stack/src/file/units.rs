//! Durations and sizes as compose writes them.

/// Seconds of `1m30s`, `500ms`, `1h`. Units: `us`, `ms`, `s`, `m`, `h`.
pub(crate) fn duration(text: &str) -> Option<f64> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(0.0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        seconds += value
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    // A hundred years: far beyond any sense, and safe to turn into a `Duration`.
    (seconds <= 100.0 * 366.0 * 86400.0).then_some(seconds)
}

/// The same with days and weeks, as `pull_policy` has them: `1w2d`.
pub(crate) fn long_duration(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut seconds = 0.0;
    for (unit, length) in [('w', 7.0 * 86400.0), ('d', 86400.0)] {
        let Some((number, more)) = rest.split_once(unit) else { continue };
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        seconds += number.parse::<f64>().ok()? * length;
        rest = more;
    }
    if !rest.is_empty() || seconds == 0.0 {
        seconds += duration(rest)?;
    }
    (seconds <= 100.0 * 366.0 * 86400.0).then_some(seconds)
}

/// Bytes of `64m`, `1.5gb`, `512`. Units are powers of 1024: `b`, `k`, `m`, `g`, `t`, each with an
/// optional `b` or `ib`.
pub(crate) fn size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let value: f64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let bytes = value * (1u64 << shift) as f64;
    (bytes < i64::MAX as f64).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("1m30s"), Some(90.0));
        assert_eq!(duration("1.5h"), Some(5400.0));
        assert_eq!(duration("250ms"), Some(0.25));
        assert_eq!(duration("0"), Some(0.0));
        for bad in ["", "10", "s", "1x", "1..s", "-1s", "9999999999999h", "1 s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn long_durations() {
        assert_eq!(long_duration("1w2d"), Some(9.0 * 86400.0));
        assert_eq!(long_duration("1d12h"), Some(1.5 * 86400.0));
        assert_eq!(long_duration("90m"), Some(5400.0));
        for bad in ["", "d", "1d1w", "1x", "2", "99999999w"] {
            assert_eq!(long_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("512"), Some(512));
        assert_eq!(size("64m"), Some(64 << 20));
        assert_eq!(size("1.5GB"), Some(3 << 29));
        assert_eq!(size("2 KiB"), Some(2048));
        for bad in ["", "m", "-1m", "1x", "99999999t", "1e9"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }
}
