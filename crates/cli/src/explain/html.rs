//! One page that needs nothing else: no network, no script. What a container could have written is text in it, never
//! markup.

use super::document::{Block, Section};

/// Nothing is loaded and nothing is run, even if some text should become markup after all.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

const STYLE: &str = include_str!("page.css");

/// A drawing, and the section that it stands in.
pub(super) struct Figure {
    pub(super) section: &'static str,
    pub(super) svg: String,
}

/// The page.
pub(super) fn page(title: &str, subtitle: &str, sections: &[Section], figures: &[Figure]) -> String {
    let (title, subtitle) = (escape(title), escape(subtitle));
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header><h1>{title}</h1><p>{subtitle}</p></header>\n<nav>\n"
    );
    for section in sections {
        html.push_str(&format!("<a href=\"#{}\">{}</a>\n", section.id, escape(&heading(section.title))));
    }
    html.push_str("</nav>\n<main>\n");
    for section in sections {
        let title = escape(&heading(section.title));
        html.push_str(&format!("<section id=\"{}\">\n<h2>{title}</h2>\n", section.id));
        html.push_str(&format!("<p class=\"about\">{}</p>\n", escape(section.about)));
        let drawn: Vec<&Figure> = figures.iter().filter(|figure| figure.section == section.id).collect();
        if !drawn.is_empty() {
            html.push_str("<div class=\"with\">\n<figure>\n");
            drawn.iter().for_each(|figure| html.push_str(&figure.svg));
            html.push_str("</figure>\n");
        }
        html.push_str("<div class=\"blocks\">\n");
        section.blocks.iter().for_each(|block| push(&mut html, block));
        html.push_str("</div>\n");
        if !drawn.is_empty() {
            html.push_str("</div>\n");
        }
        html.push_str("</section>\n");
    }
    html.push_str("</main>\n</body>\n</html>\n");
    html
}

/// `USERS AND GROUPS` in the case of a sentence.
fn heading(title: &str) -> String {
    // What is an abbreviation stays one.
    let word = |word: &str| match word.trim_end_matches(':') {
        "PID" | "ID" => word.to_owned(),
        _ => word.to_lowercase(),
    };
    let text = title.split(' ').map(word).collect::<Vec<_>>().join(" ");
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn push(html: &mut String, block: &Block) {
    match block {
        Block::Pairs(pairs) => {
            html.push_str("<dl>\n");
            for (key, value) in pairs {
                html.push_str(&format!("<dt>{}</dt><dd>{}</dd>\n", escape(key), escape(value)));
            }
            html.push_str("</dl>\n");
        }
        Block::Table { head, rows } => push_table(html, head, rows),
        Block::Steps(steps) => {
            html.push_str("<ol>\n");
            steps.iter().for_each(|step| html.push_str(&format!("<li>{}</li>\n", escape(step))));
            html.push_str("</ol>\n");
        }
        Block::Note(note) => html.push_str(&format!("<p class=\"note\">{}</p>\n", escape(note))),
        Block::Words { label, words } => {
            let (label, count) = (escape(label), words.len());
            html.push_str(&format!("<details><summary>{label}: {count}</summary><p class=\"words\">"));
            words.iter().for_each(|word| html.push_str(&format!("<code>{}</code> ", escape(word))));
            html.push_str("</p></details>\n");
        }
    }
}

/// On a narrow screen each cell is a line under the first one of its row, with its column's head before it.
fn push_table(html: &mut String, head: &[&'static str], rows: &[Vec<String>]) {
    html.push_str("<table>\n<thead><tr>");
    head.iter().for_each(|head| html.push_str(&format!("<th scope=\"col\">{}</th>", escape(&heading(head)))));
    html.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        html.push_str("<tr>");
        for (head, cell) in head.iter().zip(row) {
            let empty = if cell.is_empty() { " class=\"none\"" } else { "" };
            html.push_str(&format!(
                "<td{empty} data-head=\"{}\">{}</td>",
                escape(&heading(head)),
                escape(cell)
            ));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table>\n");
}

/// `text` as text: without markup, control characters, and those that turn the direction of writing.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(' '),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.push(char::REPLACEMENT_CHARACTER);
            }
            c if c.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_wrote_is_no_markup() {
        let hostile = "</style><script>alert(1)</script><img src=x onerror='a()'>\" \u{202e}\0";
        let section = Section::new("a", "ROOT: A", "x")
            .pairs(vec![("name", hostile.to_owned())])
            .note(hostile)
            .words(hostile, vec![hostile.to_owned()])
            .steps(vec![hostile.to_owned()])
            .table(&["A"], vec![vec![hostile.to_owned()]]);
        let figures = [Figure { section: "a", svg: "<svg></svg>".to_owned() }];
        let html = page(hostile, hostile, &[section], &figures);
        assert!(!html.contains("<script") && !html.contains("<img") && !html.contains("onerror='"), "{html}");
        assert_eq!(html.matches("</style>").count(), 1);
        assert!(!html.contains('\u{202e}') && !html.contains('\0'));
        assert!(html.contains("default-src 'none'") && !html.contains("://"), "{html}");
        assert!(html.contains("<h2>Root: a</h2>") && html.contains("<svg></svg>"));
    }
}
