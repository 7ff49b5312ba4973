//! Addresses as registries give them.

/// Scheme, host and port of an address.
pub(super) fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// Whether two addresses are of one server.
pub(super) fn same_origin(one: &str, other: &str) -> bool {
    origin(one).eq_ignore_ascii_case(origin(other))
}

/// A target relative to an address (RFC 3986, section 5.2, as far as registries go).
pub(super) fn join(base: &str, target: &str) -> String {
    if target.contains("://") && !target.starts_with('/') {
        return target.to_owned();
    }
    if let Some(rest) = target.strip_prefix("//") {
        let scheme = base.split_once("://").map_or("https", |(scheme, _)| scheme);
        return format!("{scheme}://{rest}");
    }
    if target.starts_with("/v2/") && !base[origin(base).len()..].starts_with("/v2/") {
        // A mirror may lie below a path.
        return format!("{base}{target}");
    }
    if target.starts_with('/') {
        return format!("{}{target}", origin(base));
    }
    let path = base.split(['?', '#']).next().unwrap_or(base);
    match path[origin(path).len()..].rfind('/') {
        Some(at) => format!("{}{target}", &path[..=origin(path).len() + at]),
        None => format!("{path}/{target}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_joined() {
        let upload = "https://h:5000/v2/a/blobs/uploads/1?_state=x";
        for (base, target, whole) in [
            ("https://h:5000", "/v2/a/tags", "https://h:5000/v2/a/tags"),
            ("https://h/hub", "/v2/a/tags", "https://h/hub/v2/a/tags"),
            (upload, "/v2/a/blobs/uploads/2", "https://h:5000/v2/a/blobs/uploads/2"),
            (upload, "https://other/x", "https://other/x"),
            (upload, "//other/x", "https://other/x"),
            (upload, "2?y", "https://h:5000/v2/a/blobs/uploads/2?y"),
            ("https://h", "x", "https://h/x"),
        ] {
            assert_eq!(join(base, target), whole);
        }
        assert!(same_origin("https://H:5000/x", "https://h:5000?y"));
        assert!(!same_origin("https://h:5000", "http://h:5000"));
        assert!(!same_origin("https://h.evil", "https://h"));
        // What stands before an `@` is no host.
        assert!(!same_origin("https://h@evil/", "https://h"));
    }
}
