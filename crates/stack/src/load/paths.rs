//! Relative paths of one file, as they are written in another.

use std::path::{Path, PathBuf};

use crate::file::node::{Node, Value};

/// What is written at a place.
#[derive(Clone, Copy)]
enum Kind {
    /// A path.
    Path,
    /// A path, or something that is built from elsewhere.
    Context,
    /// `NAME=` before that.
    NamedContext,
    /// A volume of a service.
    Mount,
    /// `driver_opts` of a volume.
    Options,
}

/// Where a service has paths; `*` is every entry of a table or list.
const SERVICE: &[(&[&str], Kind)] = &[
    (&["build"], Kind::Context),
    (&["build", "context"], Kind::Context),
    (&["build", "additional_contexts", "*"], Kind::NamedContext),
    (&["credential_spec", "file"], Kind::Path),
    (&["develop", "watch", "*", "path"], Kind::Path),
    (&["env_file"], Kind::Path),
    (&["env_file", "*"], Kind::Path),
    (&["env_file", "*", "path"], Kind::Path),
    (&["label_file"], Kind::Path),
    (&["label_file", "*"], Kind::Path),
    (&["rootfs"], Kind::Path),
    (&["volumes", "*"], Kind::Mount),
];
/// Where else there are paths.
const TOP: &[(&[&str], Kind)] = &[
    (&["configs", "*", "file"], Kind::Path),
    (&["secrets", "*", "file"], Kind::Path),
    (&["volumes", "*", "driver_opts"], Kind::Options),
];

/// Rewrite the paths of a whole file that are relative to `from`: relative to `to` where they are below it, else
/// absolute.
pub(super) fn rebase(root: &mut Node, from: &Path, to: Option<&Path>) {
    if to == Some(from) {
        return;
    }
    if let Some(Node { value: Value::Map(services), .. }) = root.get_mut("services") {
        services.iter_mut().for_each(|(_, service)| rebase_service(service, from, to));
    }
    for (pattern, kind) in TOP {
        visit(root, pattern, &mut |node| kind.rewrite(node, from, to));
    }
}

/// The same for one service.
pub(super) fn rebase_service(service: &mut Node, from: &Path, to: Option<&Path>) {
    if to == Some(from) {
        return;
    }
    for (pattern, kind) in SERVICE {
        visit(service, pattern, &mut |node| kind.rewrite(node, from, to));
    }
}

fn visit(node: &mut Node, pattern: &[&str], change: &mut impl FnMut(&mut Node)) {
    let Some((first, rest)) = pattern.split_first() else { return change(node) };
    match &mut node.value {
        Value::Map(entries) => {
            let entries = entries.iter_mut().filter(|(key, _)| *first == "*" || key.name == *first);
            entries.for_each(|(_, node)| visit(node, rest, change));
        }
        Value::List(items) if *first == "*" => items.iter_mut().for_each(|item| visit(item, rest, change)),
        _ => {}
    }
}

impl Kind {
    fn rewrite(self, node: &mut Node, from: &Path, to: Option<&Path>) {
        // What in a table is a path depends on what else the table says.
        let inner = match self {
            Self::Mount if is_text(node.get("type"), |text| text == "bind") => node.get_mut("source"),
            Self::Options if is_text(node.get("o"), |text| text.contains("bind")) => node.get_mut("device"),
            _ => None,
        };
        if let Some(inner) = inner {
            return Self::Path.rewrite(inner, from, to);
        }
        let Value::String(text) = &mut node.value else { return };
        match self {
            Self::Path => *text = moved(text, from, to),
            Self::Context => {
                if !is_remote(text) {
                    *text = moved(text, from, to);
                }
            }
            Self::NamedContext => {
                let (name, path) =
                    text.rsplit_once('=').map_or(("", text.as_str()), |(name, path)| (name, path));
                let mark = if name.is_empty() { "" } else { "=" };
                if !is_remote(path) {
                    *text = format!("{name}{mark}{}", moved(path, from, to));
                }
            }
            Self::Mount => {
                // Anything else is a volume's name.
                if let Some((source, rest)) = text.split_once(':').filter(|_| text.starts_with('.')) {
                    *text = format!("{}:{rest}", moved(source, from, to));
                }
            }
            Self::Options => {}
        }
    }
}

fn is_text(node: Option<&Node>, good: impl Fn(&str) -> bool) -> bool {
    matches!(node, Some(Node { value: Value::String(text), .. }) if good(text))
}

/// As BuildKit tells a directory from a URL, a repository, and what another builder made.
fn is_remote(text: &str) -> bool {
    let schemes = ["docker-image:", "oci-layout:", "service:", "target:", "git@", "github.com/"];
    text.contains("://")
        || image::is_repository(text)
        || schemes.iter().any(|scheme| text.starts_with(scheme))
}

/// `~` is looked up where paths are used; a variable that is left as it is may be anything.
fn moved(text: &str, from: &Path, to: Option<&Path>) -> String {
    if text.is_empty() || text.starts_with(['/', '~', '$']) {
        return text.to_owned();
    }
    // `..` stays: it means what the kernel makes of it, symbolic links included.
    let path: PathBuf = from.join(text).components().collect();
    match to.and_then(|to| path.strip_prefix(to).ok()) {
        Some(relative) if relative.as_os_str().is_empty() => ".".to_owned(),
        Some(relative) => format!("./{}", relative.display()),
        None => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::SourceText;
    use crate::file::yaml;

    #[test]
    fn every_place() {
        for (text, relative, absolute) in [
            ("build: .", "./sub", "/p/sub"),
            ("build: {context: ../b}", "./sub/../b", "/p/sub/../b"),
            ("build: https://example.org/x.git", "https://example.org/x.git", "https://example.org/x.git"),
            ("env_file: a.env", "./sub/a.env", "/p/sub/a.env"),
            ("env_file: [./a.env]", "./sub/a.env", "/p/sub/a.env"),
            ("env_file: [{path: a.env}]", "./sub/a.env", "/p/sub/a.env"),
            ("volumes: ['./d:/x:ro']", "./sub/d:/x:ro", "/p/sub/d:/x:ro"),
            ("volumes: ['data:/x']", "data:/x", "data:/x"),
            ("volumes: ['~/d:/x']", "~/d:/x", "~/d:/x"),
            ("volumes: ['/d:/x']", "/d:/x", "/d:/x"),
            ("rootfs: r", "./sub/r", "/p/sub/r"),
        ] {
            for (to, expected) in [(Some(Path::new("/p")), relative), (None, absolute)] {
                let source = SourceText::new(Path::new("a.yaml"), format!("services: {{ a: {{ {text} }} }}"));
                let mut root = yaml::parse(&source).unwrap().remove(0);
                rebase(&mut root, Path::new("/p/sub"), to);
                let written = root.compact();
                assert!(written.contains(&format!("\"{expected}\"")), "{text}: {written}");
            }
        }
        let text = "services: {a: {volumes: [{type: bind, source: d}, {type: volume, source: d}]}}\n\
            secrets: {s: {file: s.txt}}\nvolumes: {v: {driver_opts: {o: bind, device: ./v}}}";
        let mut root = yaml::parse(&SourceText::new(Path::new("a.yaml"), text)).unwrap().remove(0);
        rebase(&mut root, Path::new("/q"), Some(Path::new("/p")));
        let written = root.compact();
        for expected in [
            r#""bind","source":"/q/d""#,
            r#""volume","source":"d""#,
            r#""file":"/q/s.txt""#,
            r#""device":"/q/v""#,
        ] {
            assert!(written.contains(expected), "{written}");
        }
    }
}
