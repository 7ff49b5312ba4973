//! What is shown, without how: sections of which text and pages are made alike.

/// A part under a heading.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Section {
    /// Short name, for links.
    pub(super) id: &'static str,
    /// Heading.
    pub(super) title: &'static str,
    /// What this is, in a sentence or two.
    pub(super) about: &'static str,
    /// Content.
    pub(super) blocks: Vec<Block>,
}

/// A piece of content.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Block {
    /// Names with values.
    Pairs(Vec<(&'static str, String)>),
    /// Rows under heads. Cells of the last column may be long.
    Table { head: Vec<&'static str>, rows: Vec<Vec<String>> },
    /// Steps, each from the one before.
    Steps(Vec<String>),
    /// A sentence.
    Note(String),
    /// Many words after a label.
    Words { label: String, words: Vec<String> },
}

impl Section {
    pub(super) fn new(id: &'static str, title: &'static str, about: &'static str) -> Self {
        Self { id, title, about, blocks: Vec::new() }
    }

    pub(super) fn pairs(mut self, pairs: Vec<(&'static str, String)>) -> Self {
        self.blocks.push(Block::Pairs(pairs));
        self
    }

    /// A table, unless it would be empty.
    pub(super) fn table(mut self, head: &[&'static str], rows: Vec<Vec<String>>) -> Self {
        if !rows.is_empty() {
            self.blocks.push(Block::Table { head: head.to_vec(), rows });
        }
        self
    }

    pub(super) fn note(mut self, text: impl Into<String>) -> Self {
        self.blocks.push(Block::Note(text.into()));
        self
    }

    pub(super) fn notes(self, texts: &[String]) -> Self {
        texts.iter().fold(self, |section, text| section.note(text.clone()))
    }

    pub(super) fn steps(mut self, steps: Vec<String>) -> Self {
        if !steps.is_empty() {
            self.blocks.push(Block::Steps(steps));
        }
        self
    }

    /// Words, unless there are none.
    pub(super) fn words(mut self, label: impl Into<String>, words: Vec<String>) -> Self {
        if !words.is_empty() {
            self.blocks.push(Block::Words { label: label.into(), words });
        }
        self
    }
}
