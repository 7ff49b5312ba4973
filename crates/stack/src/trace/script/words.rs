//! Commands of a shell for single steps.

use super::super::call::{Object, Origin};
use super::super::flags;
use crate::words::quote;

/// A word that means a path below the directory in a variable.
pub(in super::super) fn within(variable: &str, below: &str) -> String {
    let mut word = format!("\"{variable}/");
    for c in below.chars() {
        if matches!(c, '"' | '$' | '`' | '\\') {
            word.push('\\');
        }
        word.push(c);
    }
    word.push('"');
    word
}

/// The command that writes this text.
pub(in super::super) fn printf(text: &str) -> String {
    let mut format = String::new();
    for c in text.chars() {
        match c {
            '%' => format.push_str("%%"),
            '\\' => format.push_str(r"\\"),
            '\n' => format.push_str(r"\n"),
            '\t' => format.push_str(r"\t"),
            c => format.push(c),
        }
    }
    // What begins like an option is none.
    let end = if format.starts_with('-') { "-- " } else { "" };
    format!("printf {end}{}", quote(&format))
}

/// ` -o a,b`, or nothing.
pub(in super::super) fn file_option(options: &[String]) -> String {
    if options.is_empty() { String::new() } else { format!(" -o {}", quote(&options.join(","))) }
}

/// The commands of `mount(8)` that attach `object` at `target`, a word of a shell as it stands if it begins with `"`.
pub(in super::super) fn mount(object: &Object, target: &str) -> Vec<String> {
    let target = if target.starts_with('"') { target.to_owned() } else { quote(target) };
    let mut commands = Vec::new();
    match &object.origin {
        Origin::New { kind, options } => {
            let option = |(key, value): &(String, Option<String>)| match value {
                Some(value) => format!("{key}={value}"),
                None => key.clone(),
            };
            let all: Vec<String> = options.iter().map(option).collect();
            commands.push(format!("mount -t {kind}{} {kind} {target}", file_option(&all)));
        }
        Origin::Copy { path, recursive } => {
            let source = if path.starts_with('"') { path.clone() } else { quote(path) };
            let bind = if *recursive { "--rbind" } else { "--bind" };
            commands.push(format!("mount {bind} {source} {target}"));
        }
    }
    // Of this mount alone, as `mount_setattr(2)` has it, and not of the file system.
    let attributes = flags::attribute_options(object.attributes);
    if !attributes.is_empty() {
        commands.push(format!("mount -o remount,bind,{} {target}", attributes.join(",")));
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_written_as_it_is() {
        assert_eq!(printf("0 1 2\n100%"), r"printf '0 1 2\n100%%'");
        assert_eq!(printf("-500"), "printf -- -500");
        assert_eq!(printf(r"a\b"), r"printf 'a\\b'");
        assert_eq!(within("$root", "a \"b\" $c"), r#""$root/a \"b\" \$c""#);
    }

    #[test]
    fn a_mount_is_one_command_or_two() {
        let new = Object {
            origin: Origin::New {
                kind: "tmpfs".into(),
                options: vec![("size".into(), Some("64k".into())), ("noswap".into(), None)],
            },
            attributes: libc::MOUNT_ATTR_NOSUID,
        };
        assert_eq!(
            mount(&new, "/dev"),
            ["mount -t tmpfs -o size=64k,noswap tmpfs /dev", "mount -o remount,bind,nosuid /dev"]
        );
        let copy = Object {
            origin: Origin::Copy { path: "/a b".into(), recursive: true },
            attributes: libc::MOUNT_ATTR_RDONLY,
        };
        assert_eq!(
            mount(&copy, "\"$root/x\""),
            ["mount --rbind '/a b' \"$root/x\"", "mount -o remount,bind,ro \"$root/x\""]
        );
    }
}
