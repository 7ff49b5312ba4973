//! Sections for a terminal, as wide as it is.

use super::document::{Block, Section};
use crate::output::{Output, visible};

/// Columns of text that is no terminal's.
const WIDTH: usize = 110;
/// No narrower than this, whatever the terminal says.
const NARROWEST: usize = 32;
/// The last column of a table gets a line of its own where less than this would be left for it.
const LAST_COLUMN: usize = 26;

/// How many columns standard output has.
pub(super) fn width() -> usize {
    match rustix::termios::tcgetwinsize(rustix::stdio::stdout()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col).max(NARROWEST),
        _ => WIDTH,
    }
}

/// All sections.
pub(super) fn render(sections: &[Section], width: usize, output: Output) -> String {
    let mut text = String::new();
    for section in sections {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!("{}\n", output.paint("1", section.title)));
        push_wrapped(&mut text, section.about, width, "", "");
        for block in &section.blocks {
            text.push('\n');
            match block {
                Block::Pairs(pairs) => push_pairs(&mut text, pairs, width),
                Block::Table { head, rows } => push_table(&mut text, head, rows, width, output),
                Block::Note(note) => push_wrapped(&mut text, note, width, "  ", "  "),
                Block::Steps(steps) => {
                    for (index, step) in steps.iter().enumerate() {
                        let first = if index == 0 { "  " } else { "  -> " };
                        push_wrapped(&mut text, step, width, first, "     ");
                    }
                }
                Block::Words { label, words } => {
                    push_wrapped(&mut text, &format!("{label}: {}", words.join(" ")), width, "  ", "    ");
                }
            }
        }
    }
    text
}

fn push_pairs(text: &mut String, pairs: &[(&'static str, String)], width: usize) {
    let name = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (key, value) in pairs {
        let indent = " ".repeat(name + 4);
        push_wrapped(text, value, width, &format!("  {key:name$}  "), &indent);
    }
}

fn push_table(text: &mut String, head: &[&'static str], rows: &[Vec<String>], width: usize, output: Output) {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| one_line(cell)).collect()).collect();
    let last = head.len().saturating_sub(1);
    let longest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..last).map(longest).collect();
    let before: usize = widths.iter().map(|width| width + 2).sum::<usize>() + 2;
    if before + LAST_COLUMN.min(longest(last)) > width {
        return push_stacked(text, head, &rows, width);
    }
    let prefix = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  "));
        format!("  {}", cells.collect::<String>())
    };
    let heads: Vec<String> = head.iter().map(|head| (*head).to_owned()).collect();
    let line = format!("{}{}", prefix(&heads[..last]), heads[last]);
    text.push_str(&format!("{}\n", output.paint("2", line.trim_end())));
    let indent = " ".repeat(before);
    for row in &rows {
        let (Some(end), cells) = (row.get(last), row.get(..last).unwrap_or_default()) else { continue };
        push_wrapped(text, end, width, &prefix(cells), &indent);
    }
}

/// A row is a paragraph of its own: its first cell, and the others below it with their heads.
fn push_stacked(text: &mut String, head: &[&'static str], rows: &[Vec<String>], width: usize) {
    let name = head.iter().skip(1).map(|head| head.len()).max().unwrap_or(0);
    for row in rows {
        let mut cells = head.iter().zip(row);
        if let Some((_, first)) = cells.next() {
            push_wrapped(text, first, width, "  ", "    ");
        }
        for (head, cell) in cells.filter(|(_, cell)| !cell.is_empty()) {
            let head = head.to_lowercase();
            push_wrapped(text, cell, width, &format!("    {head:name$}  "), &" ".repeat(name + 6));
        }
    }
}

fn one_line(text: &str) -> String {
    visible(&text.replace(['\n', '\t', '\x1b'], " "))
}

/// Words in lines of this width; a word that is longer than a line is broken.
fn push_wrapped(text: &mut String, words: &str, width: usize, first: &str, rest: &str) {
    let words = one_line(words);
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in words.split(' ').filter(|word| !word.is_empty()) {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let used = line.chars().count();
            let needed = word.len() + usize::from(!is_empty);
            if used + needed <= width || (is_empty && used >= width) {
                if !is_empty {
                    line.push(' ');
                }
                line.extend(word.drain(..));
                is_empty = false;
                break;
            }
            // A long one is broken rather than put onto a line of its own that it does not fit either.
            if is_empty || rest.chars().count() + word.len() > width && width.saturating_sub(used) > 8 {
                if !is_empty {
                    line.push(' ');
                }
                let room = width.saturating_sub(line.chars().count()).max(1).min(word.len());
                line.extend(word.drain(..room));
            }
            text.push_str(&format!("{}\n", line.trim_end()));
            line = rest.to_owned();
            is_empty = true;
        }
    }
    text.push_str(&format!("{}\n", line.trim_end()));
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Output = Output { color_out: false, color_err: false, terminal: false };

    #[test]
    fn wide_tables_and_narrow_ones() {
        let rows =
            vec![vec!["net".to_owned(), "4026531840".to_owned(), "interfaces and much else".to_owned()]];
        let section = Section::new("a", "TITLE", "About it.").table(&["KIND", "HOST", "ISOLATES"], rows);
        let wide = render(std::slice::from_ref(&section), 80, PLAIN);
        assert_eq!(
            wide,
            "TITLE\nAbout it.\n\n  KIND  HOST        ISOLATES\n  net   4026531840  interfaces and much else\n"
        );
        let narrow = render(&[section], 36, PLAIN);
        assert_eq!(
            narrow,
            "TITLE\nAbout it.\n\n  net\n    host      4026531840\n    isolates  interfaces and much\n              \
             else\n"
        );
    }

    #[test]
    fn nothing_is_wider_than_the_terminal_and_nothing_drives_it() {
        let hostile = format!("\x1b]0;x\x07 {} end\nnext", "long".repeat(40));
        let section = Section::new("a", "T", "x")
            .pairs(vec![("name", hostile.clone())])
            .note(hostile.clone())
            .words("words", vec![hostile.clone(); 3])
            .steps(vec!["a".to_owned(), hostile.clone()])
            .table(&["A", "B"], vec![vec![hostile.clone(), hostile]]);
        for width in [32, 40, 80, 110] {
            let text = render(std::slice::from_ref(&section), width, PLAIN);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            assert!(!text.contains('\x1b') && !text.contains('\x07'), "{text:?}");
        }
    }
}
