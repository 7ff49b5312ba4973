//! The format of the pages, which is Markdown for every reader and a program for this one:
//!
//! - a block ```` ```sh run ```` is what the reader types. `needs=WORD,WORD` behind it names what not every machine has;
//! - a block ```` ```text expect ```` behind it is what must be seen ([`super::expected`]);
//! - a block ```` ```sh check ```` holds the checks: each a comment, which is shown, and the commands below it;
//! - what stands between `<details>` and `</details>` are answers, which are folded.

use clap::ValueEnum;

/// Language of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Language {
    /// English.
    En,
    /// Korean.
    Ko,
}

impl Language {
    /// By the first variable that is set, in the order of locale(7).
    pub(super) fn of_environment() -> Self {
        let names = ["LC_ALL", "LC_MESSAGES", "LANG"];
        let value = names.iter().filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty());
        if value.is_some_and(|value| value.starts_with("ko")) { Self::Ko } else { Self::En }
    }
}

/// A fenced block that is more than text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// Line of its fence, from 1.
    pub(super) line: usize,
    /// What it is for.
    pub(super) kind: Kind,
    /// Its lines.
    pub(super) body: String,
}

/// What a block is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Commands, and what they need of the machine.
    Run { needs: Vec<String> },
    /// What the commands before it must show.
    Expect,
    /// Checks of what the reader has done.
    Check,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Check {
    /// What must hold.
    pub(super) sentence: String,
    /// Succeeds where it does.
    pub(super) commands: String,
}

impl Block {
    /// The checks of a `check` block.
    pub(super) fn checks(&self) -> Option<Vec<Check>> {
        if self.kind != Kind::Check {
            return None;
        }
        let mut checks: Vec<Check> = Vec::new();
        for line in self.body.lines() {
            match (line.strip_prefix("# "), checks.last_mut()) {
                (Some(sentence), _) => {
                    checks.push(Check { sentence: sentence.to_owned(), commands: String::new() });
                }
                (None, Some(check)) => check.commands.extend([line, "\n"]),
                // A command without a sentence says nothing to anybody; a test looks for that.
                (None, None) => {}
            }
        }
        Some(checks)
    }
}

/// The blocks of a page, in their order.
pub(super) fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    // The block that is open; `None` in it for one that is only text.
    let mut open: Option<Option<Block>> = None;
    for (line, text) in page.lines().enumerate() {
        match (text.strip_prefix("```"), &mut open) {
            (Some(information), None) => {
                let block = kind(information).map(|kind| Block { line: line + 1, kind, body: String::new() });
                open = Some(block);
            }
            (Some(_), Some(block)) => {
                blocks.extend(block.take());
                open = None;
            }
            (None, Some(Some(block))) => block.body.extend([text, "\n"]),
            (None, _) => {}
        }
    }
    blocks
}

fn kind(information: &str) -> Option<Kind> {
    let mut words = information.split_whitespace().skip(1);
    match words.next()? {
        "run" => {
            let needs = words.filter_map(|word| word.strip_prefix("needs=")).flat_map(|list| list.split(','));
            Some(Kind::Run { needs: needs.map(str::to_owned).collect() })
        }
        "expect" => Some(Kind::Expect),
        "check" => Some(Kind::Check),
        _ => None,
    }
}

/// The page's first heading.
pub(super) fn title(page: &str) -> &str {
    page.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or_default()
}

/// The page for a terminal: without the tags, and without what they fold unless `answers` are wanted.
pub(super) fn readable(page: &str, answers: bool) -> String {
    let mut text = String::with_capacity(page.len());
    let mut folded = false;
    for line in page.lines() {
        match line.trim() {
            tag if tag.starts_with("<details>") => {
                folded = true;
                let summary = tag.trim_start_matches("<details>").trim_start_matches("<summary>");
                if answers {
                    text.extend(["* ", summary.trim_end_matches("</summary>"), "\n"]);
                }
            }
            "</details>" => folded = false,
            _ if folded && !answers => {}
            // Two empty lines are what a fold leaves.
            "" if text.ends_with("\n\n") => {}
            // What only concerns us.
            fence if fence.starts_with("```") => {
                text.extend([fence.split_whitespace().next().unwrap_or_default(), "\n"]);
            }
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Lab 0: a page\n\nType:\n\n```sh run needs=ip,cgroup-v2\nls\n```\n```text expect\nstack.toml\n\
                        ```\n\n<details><summary>Answer</summary>\n\n```sh\nnot run\n```\n\n</details>\n\n```sh check\n\
                        # The file is there\ntest -e stack.toml\n# It has lines\ntest -s stack.toml\ntrue\n```\n";

    #[test]
    fn a_page_is_read() {
        let blocks = blocks(PAGE);
        let kinds: Vec<_> = blocks.iter().map(|block| &block.kind).collect();
        let needs = vec!["ip".to_owned(), "cgroup-v2".to_owned()];
        assert_eq!(kinds, [&Kind::Run { needs }, &Kind::Expect, &Kind::Check]);
        assert_eq!((blocks[0].line, blocks[0].body.as_str()), (5, "ls\n"));
        assert_eq!(blocks[0].checks(), None);
        let checks = blocks[2].checks().unwrap();
        assert_eq!(checks[0].sentence, "The file is there");
        assert_eq!(checks[1].commands, "test -s stack.toml\ntrue\n");
        assert_eq!(title(PAGE), "Lab 0: a page");
    }

    #[test]
    fn answers_are_folded() {
        let folded = readable(PAGE, false);
        assert!(
            !folded.contains("Answer") && !folded.contains("not run") && !folded.contains("\n\n\n"),
            "{folded}"
        );
        assert!(readable(PAGE, true).contains("* Answer\n\n```sh\nnot run\n"), "{}", readable(PAGE, true));
    }
}
