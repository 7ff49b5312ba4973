//! What the documents promise: links lead somewhere, commands are ones that this program takes, and scripts are there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crate::args;

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// All documents, by their path in the repository.
fn documents() -> BTreeMap<PathBuf, String> {
    let root = root();
    let mut found = BTreeMap::new();
    let mut directories = vec![root.join("docs")];
    let mut files: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .map(|name| root.join(name))
        .into();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                files.push(path);
            }
        }
    }
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        found.insert(path.strip_prefix(&root).unwrap().to_owned(), text);
    }
    assert!(found.len() > 15, "the documents are not found");
    found
}

/// The lines of a document, each with its number, and the language of the block of code that it is in.
fn lines(text: &str) -> impl Iterator<Item = (usize, Option<&str>, &str)> {
    let mut block = None;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().strip_prefix("```");
        match (fence, block) {
            (Some(language), None) => block = Some(language),
            (Some(_), Some(_)) => block = None,
            (None, _) => return Some((index + 1, block, line)),
        }
        None
    })
}

/// What a heading is called in links: as the forges make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).flat_map(char::to_lowercase).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let headings = lines(text).filter(|(_, block, line)| block.is_none() && line.starts_with('#'));
    headings
        .map(|(_, _, line)| {
            let name = anchor(line.trim_start_matches('#').trim());
            let time = times.entry(name.clone()).or_default();
            *time += 1;
            if *time == 1 { name } else { format!("{name}-{}", *time - 1) }
        })
        .collect()
}

/// `directory/../other` without the detour.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// The targets of the links in a line.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

#[test]
fn links_lead_somewhere() {
    let documents = documents();
    let root = root();
    let mut broken = Vec::new();
    let mut seen = 0;
    for (path, text) in &documents {
        for (number, _, line) in lines(text).filter(|(_, block, _)| block.is_none()) {
            for target in
                links(line).filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
            {
                seen += 1;
                let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
                let to = match file {
                    "" => path.clone(),
                    file => plain(&path.parent().unwrap().join(file)),
                };
                let known = match documents.get(&to) {
                    Some(text) => fragment.is_empty() || anchors(text).contains(fragment),
                    None => fragment.is_empty() && root.join(&to).exists(),
                };
                if !known {
                    broken.push(format!("{}:{number}: {target}", path.display()));
                }
            }
        }
    }
    assert!(seen > 100, "the links are not found");
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The words of the commands in a line of a shell that begin with this program. What is left out in an example (`...`) and
/// what the shell would put in (`$NAME`) stays as it is written.
fn commands(line: &str) -> Vec<Vec<String>> {
    let line = line.trim_start().strip_prefix("$ ").unwrap_or(line);
    let Some(words) = shlex::split(line) else { return Vec::new() };
    let apart = |word: String| match word.strip_suffix(';') {
        Some(word) => vec![word.to_owned(), ";".to_owned()],
        None => vec![word],
    };
    let words: Vec<String> = words.into_iter().flat_map(apart).collect();
    let separators = ["|", "||", "&&", ";", "&"];
    words
        .split(|word| separators.contains(&word.as_str()))
        .filter_map(|words| {
            let program =
                words.iter().position(|word| !word.contains('=') && word != "sudo" && word != "time")?;
            let end = words.iter().position(|word| word.starts_with(['>', '<']) || word.starts_with("2>"));
            let words = &words[program..end.unwrap_or(words.len()).max(program)];
            matches!(words.first()?.as_str(), "inception-run" | "bin/inception-run").then(|| words.to_vec())
        })
        .collect()
}

#[test]
fn commands_are_understood() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (path, text) in documents() {
        // A line that ends in a backslash goes on.
        let joined = text.replace("\\\n", " ");
        for (_, block, line) in lines(&joined) {
            if !block.is_some_and(|language| language.starts_with("sh") || language.starts_with("console")) {
                continue;
            }
            for words in commands(line) {
                seen += 1;
                if let Err(error) = args::parse(words.iter().map(Into::into).collect()) {
                    // `--help` and `--version` come this way too.
                    if error.use_stderr() {
                        wrong.push(format!("{}: {}: {error}", path.display(), words.join(" ")));
                    }
                }
            }
        }
    }
    assert!(seen > 50, "the commands are not found: {seen}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn scripts_are_there() {
    let root = root();
    let mut missing = Vec::new();
    // The labs have scripts of their own, and are run as a whole.
    for (path, text) in documents().into_iter().filter(|(path, _)| path.iter().all(|part| part != "labs")) {
        for (index, _) in text.match_indices("scripts/") {
            let before = text[..index].chars().next_back();
            let name: String = text[index..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || "/-_.".contains(*c))
                .collect();
            let name = name.trim_end_matches(['.', '/', '-']);
            let is_path = before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '/' | '-'));
            if !is_path && !root.join(name).exists() {
                missing.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn commands_are_found_in_lines() {
    let words = |line| commands(line).into_iter().map(|words| words.join(" ")).collect::<Vec<_>>();
    assert_eq!(words("$ A=b inception-run ps   # what runs"), ["inception-run ps"]);
    assert_eq!(
        words("bin/inception-run up -d && inception-run logs a > x"),
        ["bin/inception-run up -d", "inception-run logs a"]
    );
    assert_eq!(words("inception-run exec a sh -c 'a; b'; echo $?"), ["inception-run exec a sh -c a; b"]);
    assert!(words("echo inception-run").is_empty());
}
