//! `images`, `history`, and `inspect` of images.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use stack::RemoteError;
use stack::store::{self, Digest, ImageRoom, ImageSummary, NameLine, Reference};

use crate::args::Format;
use crate::output::{self, Failure, size};
use crate::session::Session;

/// Longest instruction in a table of `history`.
const CREATED_BY: usize = 45;

/// `images`.
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// All images (they are all listed anyway)
    #[arg(short, long)]
    all: bool,
    /// The digests that names pin, too
    #[arg(long)]
    digests: bool,
    /// Ids in full
    #[arg(long)]
    no_trunc: bool,
    /// dangling=true|false, reference=PATTERN, label=NAME[=VALUE], before=IMAGE, since=IMAGE
    #[arg(short = 'F', long, value_name = "FILTER")]
    filter: Vec<Filter>,
    /// table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    format: Format,
    /// Only images with this name, with or without a tag
    name: Option<String>,
}

/// `history`.
#[derive(Debug, Args)]
pub(crate) struct History {
    /// Instructions and ids in full
    #[arg(long)]
    no_trunc: bool,
    /// table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    format: Format,
    /// Image: name, id, or the beginning of an id
    image: String,
}

/// `--filter` of `images`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Filter {
    /// Without or with a name.
    Dangling(bool),
    /// With a name that fits a pattern.
    Reference(String),
    /// With this label.
    Label(String, Option<String>),
    /// Made before another image.
    Before(String),
    /// Made after another image.
    Since(String),
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("a filter has a value: `dangling=true`")?;
        Ok(match (key, value) {
            ("dangling", "true" | "1") => Self::Dangling(true),
            ("dangling", "false" | "0") => Self::Dangling(false),
            ("dangling", other) => return Err(format!("`{other}` is neither true nor false")),
            ("reference", pattern) => Self::Reference(pattern.to_owned()),
            ("label", label) => match label.split_once('=') {
                Some((name, value)) => Self::Label(name.to_owned(), Some(value.to_owned())),
                None => Self::Label(label.to_owned(), None),
            },
            ("before", image) => Self::Before(image.to_owned()),
            ("since", image) => Self::Since(image.to_owned()),
            (other, _) => {
                return Err(format!("`{other}` is none of dangling, reference, label, before, since"));
            }
        })
    }
}

/// A line of the list: an image, and one of its names if it has any.
struct Line<'a> {
    image: &'a ImageSummary,
    name: Option<NameLine<'a>>,
}

impl<'a> Line<'a> {
    /// The lines of an image.
    fn of(image: &'a ImageSummary) -> Vec<Self> {
        let named: Vec<Self> =
            image.names.lines().into_iter().map(|name| Self { image, name: Some(name) }).collect();
        if named.is_empty() { vec![Self { image, name: None }] } else { named }
    }

    fn is_named(&self, fits: impl FnOnce(&Reference) -> bool) -> bool {
        self.reference().is_some_and(fits)
    }

    fn reference(&self) -> Option<&'a Reference> {
        self.name.as_ref().map(|name| name.reference)
    }
}

/// One image of `images --format json`.
#[derive(Debug, Serialize)]
struct Row {
    name: Option<String>,
    repository: Option<String>,
    tag: Option<String>,
    digests: Vec<String>,
    id: String,
    created: Option<String>,
    size: u64,
    shared: u64,
    layers: usize,
    containers: usize,
}

/// `images`.
pub(crate) fn images(session: &Session, arguments: &Images) -> Result<u8, Failure> {
    let list = store::images(&session.paths)?;
    let mut lines: Vec<Line> = list.iter().flat_map(Line::of).collect();
    // Those without a name at the end.
    lines.sort_by_key(|line| (line.name.is_none(), line.reference()));
    for filter in &arguments.filter {
        keep(session, filter, &mut lines)?;
    }
    if let Some(name) = &arguments.name {
        lines.retain(|line| line.is_named(|known| is_named(known, name)));
    }
    if arguments.quiet {
        let mut ids: Vec<String> =
            lines.iter().map(|line| id(&line.image.id.to_string(), arguments.no_trunc)).collect();
        // An image with several names is one.
        let mut seen = std::collections::BTreeSet::new();
        ids.retain(|id| seen.insert(id.clone()));
        output::print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>())?;
        return Ok(0);
    }
    let usage = store::usage(&session.paths)?;
    let rooms: BTreeMap<&Digest, &ImageRoom> =
        usage.image_list.iter().map(|image| (&image.id, image)).collect();
    let rows: Vec<Row> = lines.iter().map(|line| row(line, rooms.get(&line.image.id).copied())).collect();
    match arguments.format {
        Format::Json => output::json(&rows)?,
        Format::Table => {
            let none = || "<none>".to_owned();
            let cells = |row: &Row| {
                [
                    row.repository.clone().unwrap_or_else(none),
                    row.tag.clone().unwrap_or_else(none),
                    id(&row.id, arguments.no_trunc),
                    since(row.created.as_deref()),
                    size(row.size),
                ]
                .to_vec()
            };
            let mut head = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
            let table: Vec<Vec<String>> = if arguments.digests {
                head.insert(2, "DIGEST");
                // A line for each, as Docker has it.
                let with_digest = |row: &Row| {
                    let digests = if row.digests.is_empty() { vec![none()] } else { row.digests.clone() };
                    let row = cells(row);
                    digests.into_iter().map(move |digest| {
                        let mut row = row.clone();
                        row.insert(2, digest);
                        row
                    })
                };
                rows.iter().flat_map(with_digest).collect()
            } else {
                rows.iter().map(cells).collect()
            };
            output::print(&output::table(&head, &table))?;
        }
    }
    Ok(0)
}

/// `room` is none for an image that came after the rooms were looked at.
fn row(Line { image, name }: &Line, room: Option<&ImageRoom>) -> Row {
    Row {
        name: name.as_ref().map(|name| name.reference.to_string()),
        repository: name.as_ref().map(|name| name.reference.name().to_owned()),
        tag: name.as_ref().and_then(|name| name.tag).map(str::to_owned),
        digests: name.iter().flat_map(|name| &name.digests).map(ToString::to_string).collect(),
        id: image.id.to_string(),
        created: image.created.clone(),
        size: image.size,
        shared: room.map_or(0, |room| room.shared),
        layers: image.layers,
        containers: room.map_or(0, |room| room.containers),
    }
}

/// Leaves what a filter lets through.
fn keep(session: &Session, filter: &Filter, lines: &mut Vec<Line>) -> Result<(), Failure> {
    match filter {
        Filter::Dangling(wanted) => {
            lines.retain(|line| line.name.as_ref().is_none_or(|name| name.tag.is_none()) == *wanted);
        }
        Filter::Reference(pattern) => {
            lines.retain(|line| line.is_named(|known| fits_name(pattern, known)));
        }
        Filter::Label(name, value) => lines.retain(|line| {
            line.image.labels.get(name).is_some_and(|has| value.as_ref().is_none_or(|wanted| wanted == has))
        }),
        Filter::Before(other) | Filter::Since(other) => {
            let limit = store::find(&session.paths, other)?.config.created;
            let wanted = match filter {
                Filter::Before(_) => Ordering::Less,
                _ => Ordering::Greater,
            };
            lines.retain(|line| line.image.created.cmp(&limit) == wanted);
        }
    }
    Ok(())
}

fn is_named(known: &Reference, name: &str) -> bool {
    known.name() == name || name.parse().is_ok_and(|name: Reference| name == *known) || fits_name(name, known)
}

fn fits_name(pattern: &str, known: &Reference) -> bool {
    fits(pattern, known.name()) || fits(pattern, &format!("{}:{}", known.name(), known.tag()))
}

/// Whether a text fits a pattern in which `*` is anything but a slash, and `?` one character.
fn fits(pattern: &str, text: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => text.is_empty(),
        Some('*') => {
            let ends = text.char_indices().map(|(at, c)| (at, c == '/')).chain([(text.len(), true)]);
            let mut ends = ends.collect::<Vec<_>>().into_iter();
            ends.find_map(|(at, is_last)| match fits(rest.as_str(), &text[at..]) {
                true => Some(true),
                false if is_last => Some(false),
                false => None,
            })
            .unwrap_or(false)
        }
        Some(c) => {
            let mut text = text.chars();
            text.next()
                .is_some_and(|own| (own == c || c == '?' && own != '/') && fits(rest.as_str(), text.as_str()))
        }
    }
}

/// An id for people, or in full.
pub(super) fn id(id: &str, full: bool) -> String {
    if full { id.to_owned() } else { id.trim_start_matches("sha256:").chars().take(12).collect() }
}

/// How long ago a time is, as Docker says it.
pub(super) fn since(created: Option<&str>) -> String {
    let time = created.and_then(|text| humantime::parse_rfc3339_weak(text.trim_end_matches("+00:00")).ok());
    match time.map(|time| SystemTime::now().duration_since(time).unwrap_or_default().as_secs()) {
        Some(seconds) => ago(seconds),
        None => "-".to_owned(),
    }
}

fn ago(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        172_800..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// `history`.
pub(crate) fn history(session: &Session, arguments: &History) -> Result<u8, Failure> {
    let image = store::find(&session.paths, &arguments.image)?;
    let lines = store::history(&session.paths, &image)?;
    match arguments.format {
        Format::Json => output::json(&lines)?,
        Format::Table => {
            let shorten = |text: &str| {
                let line = text.replace(['\n', '\t'], " ");
                match arguments.no_trunc || line.chars().count() <= CREATED_BY {
                    true => line,
                    false => line.chars().take(CREATED_BY - 1).chain(['…']).collect(),
                }
            };
            let full = image.id.to_string();
            let rows = lines.iter().enumerate().map(|(index, line)| {
                vec![
                    // Of the others only the layers are there.
                    if index == 0 { id(&full, arguments.no_trunc) } else { "<missing>".to_owned() },
                    since(line.created.as_deref()),
                    shorten(&line.created_by),
                    size(line.size),
                    line.comment.clone(),
                ]
            });
            let head = ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"];
            output::print(&output::table(&head, &rows.collect::<Vec<_>>()))?;
        }
    }
    Ok(0)
}

/// `inspect` of an image, with the keys that `docker image inspect` has.
pub(super) fn describe(session: &Session, name: &str) -> Result<Value, Failure> {
    let image = store::find(&session.paths, name)?;
    let known = store::images(&session.paths)?.into_iter().find(|known| known.id == image.id);
    let (names, size) = known.map(|known| (known.names, known.size)).unwrap_or_default();
    let texts = |names: &[Reference]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let config = &image.config;
    let details = serde_json::to_value(&config.config).map_err(|e| RemoteError::message(e.to_string()))?;
    let newest = config.history.last();
    let mut described = json!({
        "Id": image.id.to_string(),
        "RepoTags": texts(&names.tags),
        "RepoDigests": texts(&names.digests),
        "Parent": "",
        "Comment": newest.and_then(|line| line.comment.clone()).unwrap_or_default(),
        "Created": config.created,
        "Author": config.author.clone().unwrap_or_default(),
        "Config": details,
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": size,
        "RootFS": {
            "Type": config.rootfs.kind,
            "Layers": config.rootfs.diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
        },
    });
    if let Some(variant) = &config.variant {
        described["Variant"] = json!(variant);
    }
    Ok(json!([described]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stop_at_slashes() {
        assert!(fits("alp*", "alpine") && fits("*:3.2?", "alpine:3.20") && fits("*/app", "team/app"));
        assert!(!fits("*", "team/app") && !fits("alpine", "alpin") && !fits("?", ""));
        assert!(is_named(&"team/app:2".parse().unwrap(), "team/app"));
        assert!(!is_named(&"team/app:2".parse().unwrap(), "team/app:3"));
    }

    #[test]
    fn ages_as_docker_says_them() {
        let ages = [1, 59, 60, 7200, 200_000, 1_300_000, 6_000_000, 70_000_000].map(ago);
        let expected = [
            "1 second ago",
            "59 seconds ago",
            "1 minute ago",
            "2 hours ago",
            "2 days ago",
            "2 weeks ago",
            "2 months ago",
            "2 years ago",
        ];
        assert_eq!(ages, expected);
    }

    #[test]
    fn filters_are_read_or_refused() {
        assert_eq!("dangling=true".parse(), Ok(Filter::Dangling(true)));
        assert_eq!("label=a=b".parse(), Ok(Filter::Label("a".to_owned(), Some("b".to_owned()))));
        for wrong in ["dangling", "dangling=maybe", "color=red"] {
            assert!(wrong.parse::<Filter>().is_err(), "{wrong}");
        }
    }
}
