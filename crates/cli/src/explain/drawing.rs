//! Drawings of the same facts, as SVG: boxes below each other, with lines of text that are cut where they would not fit.
//!
//! They are as wide as a phone, so that no text has to shrink there. A line of text has a row of its own; two texts in
//! a row share its width, and are cut to it.

use stack::explain::{Facts, ImageFacts, Interface, Published};

use super::html::escape;
use super::sections;
use crate::output::size;

/// Width of a drawing, in its own units.
const WIDTH: usize = 340;
/// Height of a row of text.
const ROW: usize = 18;
/// Between the edge of a box and its text.
const PAD: usize = 10;
/// Width of a character at the most: of a monospaced font of 12 units it is 7.2 wide.
const CHARACTER: f64 = 7.25;
/// Most layers that are drawn.
const MOST_LAYERS: usize = 14;
/// Most published ports that are drawn.
const MOST_PORTS: usize = 3;

/// A drawing that grows downwards.
struct Drawing {
    body: String,
    y: usize,
}

/// How a line of text looks.
#[derive(Clone, Copy)]
enum Ink {
    Strong,
    Plain,
    Faint,
}

impl Ink {
    fn class(self) -> &'static str {
        match self {
            Self::Strong => "s",
            Self::Plain => "p",
            Self::Faint => "f",
        }
    }
}

impl Drawing {
    fn new() -> Self {
        Self { body: String::new(), y: 2 }
    }

    /// One or two texts in a row, between these distances from the left and right edges. The second one stands at the
    /// right, and is never cut for the first one's sake.
    fn row(&mut self, left: usize, right: usize, ink: Ink, texts: (&str, &str)) {
        let room = ((WIDTH - left - right) as f64 / CHARACTER) as usize;
        let second = fit(texts.1, room);
        let first = fit(texts.0, room.saturating_sub(columns(&second) + usize::from(!second.is_empty())));
        let y = self.y + 13;
        let class = ink.class();
        self.body
            .push_str(&format!("<text class=\"{class}\" x=\"{left}\" y=\"{y}\">{}</text>", escape(&first)));
        if !second.is_empty() {
            let x = WIDTH - right;
            self.body.push_str(&format!(
                "<text class=\"{class} e\" x=\"{x}\" y=\"{y}\">{}</text>",
                escape(&second)
            ));
        }
        self.y += ROW;
    }

    /// A box around rows, inset by so much on both sides.
    fn boxed(&mut self, inset: usize, class: &str, rows: &[(Ink, String, String)]) {
        let height = rows.len() * ROW + PAD;
        self.rectangle(inset, self.y, height, class);
        let top = self.y;
        self.y += PAD / 2;
        for (ink, first, second) in rows {
            self.row(inset + PAD, inset + PAD, *ink, (first, second));
        }
        self.y = top + height;
    }

    fn rectangle(&mut self, inset: usize, y: usize, height: usize, class: &str) {
        let width = WIDTH - 2 * inset;
        self.body.push_str(&format!(
            "<rect class=\"{class}\" x=\"{inset}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>"
        ));
    }

    /// A zone with a label that what `inside` draws stands in.
    fn zone(&mut self, inset: usize, class: &str, label: (&str, &str), inside: impl FnOnce(&mut Self)) {
        let (at, top) = (self.body.len(), self.y);
        self.y += PAD / 2;
        self.row(inset + PAD, inset + PAD, Ink::Strong, label);
        self.gap(3);
        inside(self);
        self.y += PAD;
        // Behind what stands in it.
        let mut behind = Self { body: String::new(), y: 0 };
        behind.rectangle(inset, top, self.y - top, class);
        self.body.insert_str(at, &behind.body);
    }

    fn arrow(&mut self) {
        let (x, y) = (WIDTH / 2, self.y);
        let (end, left, right) = (y + 14, x - 4, x + 4);
        let wing = end - 6;
        self.body.push_str(&format!(
            "<path class=\"a\" d=\"M{x} {y}V{end}M{left} {wing}L{x} {end}L{right} {wing}\"/>"
        ));
        self.y = end + 2;
    }

    fn gap(&mut self, height: usize) {
        self.y += height;
    }

    fn finish(self, title: &str) -> String {
        let (height, title) = (self.y + 2, escape(title));
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>{}</svg>\n",
            self.body
        )
    }
}

/// Columns that a text takes: signs of East Asian scripts are twice as wide as others.
fn columns(text: &str) -> usize {
    text.chars().map(width).sum()
}

fn width(c: char) -> usize {
    match u32::from(c) {
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60 => 2,
        0xffe0..=0xffe6 | 0x1f000..=0x3fffd => 2,
        _ => 1,
    }
}

/// A text in one line that takes no more columns than that.
fn fit(text: &str, room: usize) -> String {
    let text: String = text.chars().map(|c| if c.is_whitespace() { ' ' } else { c }).collect();
    if columns(&text) <= room {
        return text;
    }
    let mut left = room.saturating_sub(1);
    let mut cut = String::new();
    for c in text.chars() {
        if width(c) > left {
            break;
        }
        left -= width(c);
        cut.push(c);
    }
    if room > 0 {
        cut.push('…');
    }
    cut
}

fn plain(first: impl Into<String>, second: impl Into<String>) -> (Ink, String, String) {
    (Ink::Plain, first.into(), second.into())
}

fn strong(first: impl Into<String>, second: impl Into<String>) -> (Ink, String, String) {
    (Ink::Strong, first.into(), second.into())
}

fn faint(first: impl Into<String>, second: impl Into<String>) -> (Ink, String, String) {
    (Ink::Faint, first.into(), second.into())
}

/// The tree of namespaces: the host, in it the stack, in it the container, each with those that are its own.
pub(super) fn namespaces(facts: &Facts) -> String {
    let inode =
        |fact: &stack::explain::Fact<u64>| fact.known().map_or_else(|| "?".to_owned(), u64::to_string);
    let (mut host, mut stack, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for one in &facts.namespaces {
        host.push(plain(one.kind, inode(&one.host)));
        if one.stack.known().is_some() && one.stack != one.host {
            stack.push(plain(one.kind, inode(&one.stack)));
        }
        let above = if one.stack.known().is_some() { &one.stack } else { &one.host };
        if one.container.known().is_some() && one.container != *above {
            own.push(plain(one.kind, inode(&one.container)));
        }
    }
    let pids = &facts.pids;
    let mut drawing = Drawing::new();
    drawing.zone(0, "z0", ("host", &format!("supervisor {}", pids.supervisor)), |drawing| {
        for (ink, kind, inode) in &host {
            drawing.row(PAD, PAD, *ink, (kind, inode));
        }
        drawing.gap(4);
        drawing.zone(10, "z1", ("stack", &format!("hub {}", pids.hub)), |drawing| {
            for (ink, kind, inode) in &stack {
                drawing.row(20, 20, *ink, (kind, inode));
            }
            drawing.gap(4);
            drawing.zone(20, "z2", (&facts.container, &format!("PID 1 is {}", pids.first)), |drawing| {
                for (ink, kind, inode) in &own {
                    drawing.row(30, 30, *ink, (kind, inode));
                }
                drawing.row(30, 30, Ink::Faint, ("what is not here it shares with above", ""));
            });
        });
    });
    drawing.finish("Tree of namespaces")
}

/// The layers of the root, the highest first.
pub(super) fn layers(facts: &Facts) -> Option<String> {
    let root = facts.mounts.known()?.root.as_ref()?;
    let mut drawing = Drawing::new();
    drawing.boxed(
        0,
        "z0",
        &[strong("/ as the container sees it", ""), faint("the highest layer that has a file wins", "")],
    );
    drawing.gap(6);
    let written = root.size.known().map_or_else(|| "?".to_owned(), |bytes| size(*bytes));
    drawing.boxed(0, "z2", &[strong("writable", written), faint(root.upper.clone().unwrap_or_default(), "")]);
    let shown = |layer: &stack::explain::Layer| {
        let made = layer.instruction.clone().unwrap_or_else(|| "(the image does not say)".to_owned());
        (made, layer.size.map_or_else(|| "?".to_owned(), size), layer.directory.clone())
    };
    read_only(&mut drawing, root.layers.iter().map(shown).collect());
    Some(drawing.finish("Layers of the root"))
}

/// The layers of an image, the highest first.
pub(super) fn image(facts: &ImageFacts) -> String {
    let mut drawing = Drawing::new();
    let shown = |one: &stack::explain::Instruction| {
        let directory = one.directory.clone()?;
        let users = one.shared_with.len();
        let shared = match users {
            0 => directory,
            1 => "shared with 1 other image".to_owned(),
            _ => format!("shared with {users} other images"),
        };
        Some((one.text.clone(), size(one.size), shared))
    };
    read_only(&mut drawing, facts.instructions.iter().rev().filter_map(shown).collect());
    drawing.finish("Layers of the image")
}

fn read_only(drawing: &mut Drawing, layers: Vec<(String, String, String)>) {
    let count = layers.len();
    for (index, (made, size, below)) in layers.into_iter().enumerate() {
        if index + 1 == MOST_LAYERS && count > MOST_LAYERS {
            drawing.gap(4);
            drawing.boxed(0, "z1", &[faint(format!("and {} more below", count - index), "")]);
            break;
        }
        drawing.gap(4);
        drawing.boxed(0, "z1", &[plain(made, size), faint(below, "read-only")]);
    }
}

/// The way from clients to the program, by the first of its networks.
pub(super) fn network(facts: &Facts) -> Option<String> {
    let network = &facts.network;
    let interface = network.interfaces.first()?;
    let mut drawing = Drawing::new();
    drawing.zone(0, "z0", ("host", "network namespace"), |drawing| {
        published(drawing, &network.published);
        if let Some(netd) = facts.pids.netd {
            drawing.arrow();
            drawing.boxed(
                10,
                "n",
                &[strong("netd", netd.to_string()), faint("carries what comes in and goes out", "")],
            );
        }
    });
    drawing.arrow();
    link(&mut drawing, interface);
    drawing.arrow();
    drawing.zone(0, "z2", (&facts.container, "network namespace"), |drawing| {
        let addresses = interface.addresses.iter().map(|address| faint(address.to_string(), ""));
        let rows: Vec<_> = [strong(interface.name.clone(), "veth")].into_iter().chain(addresses).collect();
        drawing.boxed(10, "n", &rows);
        drawing.arrow();
        let ends = network.published.iter().take(MOST_PORTS);
        let mut ends: Vec<String> =
            ends.map(|one| sections::listener(network, one, &facts.processes)).collect();
        ends.dedup();
        if ends.is_empty() {
            ends.push(format!("program {}", facts.pids.program));
        }
        drawing.boxed(10, "n", &ends.into_iter().map(|end| plain(end, "")).collect::<Vec<_>>());
    });
    if let Some(server) = network.dns.servers.first() {
        drawing.gap(6);
        drawing.boxed(0, "z0", &[plain("asks for names", server.to_string())]);
    }
    Some(drawing.finish("Way from a client to the program"))
}

fn published(drawing: &mut Drawing, ports: &[Published]) {
    let shown = ports.iter().take(MOST_PORTS);
    let mut rows: Vec<_> =
        shown.map(|one| plain(one.host.to_string(), format!("to {}/{}", one.port, one.protocol))).collect();
    if ports.len() > MOST_PORTS {
        rows.push(faint(format!("and {} more", ports.len() - MOST_PORTS), ""));
    }
    if rows.is_empty() {
        rows.push(faint("no published port", ""));
    }
    rows.insert(0, strong("client", ""));
    drawing.boxed(10, "n", &rows);
}

fn link(drawing: &mut Drawing, interface: &Interface) {
    let name = |seen: &Option<stack::explain::Seen>| {
        seen.as_ref().map_or_else(String::new, |seen| seen.name.clone())
    };
    drawing.zone(0, "z1", ("stack", "network namespace"), |drawing| {
        let gateway = interface.gateway.map_or_else(String::new, |gateway| gateway.to_string());
        let of = interface.network.clone().unwrap_or_default();
        drawing.boxed(
            10,
            "n",
            &[strong(name(&interface.bridge), gateway), faint(format!("bridge of network {of}"), "")],
        );
        drawing.arrow();
        drawing.boxed(10, "n", &[strong(name(&interface.peer), "veth"), faint("other end of the pair", "")]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_to_their_room() {
        assert_eq!(fit("RUN make", 8), "RUN make");
        assert_eq!(fit("RUN make\nall", 8), "RUN mak…");
        assert_eq!((fit("세계여", 5).as_str(), columns(&fit("세계여", 4)) <= 4), ("세계…", true));
        assert_eq!((fit("x", 0), fit("xy", 1)), (String::new(), "…".to_owned()));
        let mut drawing = Drawing::new();
        drawing.row(10, 10, Ink::Plain, (&"a".repeat(100), &"b".repeat(100)));
        let svg = drawing.finish("x");
        // The second takes all there is, and leaves nothing for the first.
        assert!(svg.contains(&format!(">{}…<", "b".repeat(43))) && !svg.contains("aa"), "{svg}");
    }

    #[test]
    fn texts_are_no_markup() {
        let mut drawing = Drawing::new();
        drawing.boxed(0, "z0", &[strong("<script>", "&\"'")]);
        let svg = drawing.finish("</title><script>");
        assert!(!svg.contains("<script>") && svg.contains("&lt;script&gt;"), "{svg}");
    }
}
