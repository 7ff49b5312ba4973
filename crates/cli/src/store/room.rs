//! `df`: what takes up room, and how much of it could be freed.

use std::time::SystemTime;

use clap::Args;
use serde::Serialize;
use stack::store::{self, Files, Report, Room};

use super::listing::{id, since};
use crate::args::Format;
use crate::output::{self, Failure, age, size};
use crate::session::Session;

/// `df`.
#[derive(Debug, Args)]
pub(crate) struct Df {
    /// Each image, container, volume and entry of the build cache
    #[arg(short, long)]
    verbose: bool,
    /// table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    format: Format,
}

/// One kind of `df --format json`.
#[derive(Serialize)]
struct Row {
    kind: &'static str,
    #[serde(flatten)]
    room: Room,
}

/// `df`.
pub(crate) fn df(session: &Session, arguments: &Df) -> Result<u8, Failure> {
    let report = store::report(&session.paths)?;
    let rows = summary(&report);
    match (arguments.format, arguments.verbose) {
        (Format::Json, false) => output::json(&rows)?,
        (Format::Json, true) => output::json(&report)?,
        (Format::Table, false) => output::print(&table(&rows))?,
        (Format::Table, true) => output::print(&details(&report))?,
    }
    Ok(0)
}

fn summary(report: &Report) -> Vec<Row> {
    vec![
        Row { kind: "images", room: report.store.images },
        Row { kind: "containers", room: room(report.containers.iter().map(in_stack)) },
        Row { kind: "volumes", room: room(report.volumes.iter().map(in_stack)) },
        Row { kind: "build cache", room: report.store.cache },
        Row {
            kind: "cache mounts",
            room: room(report.cache_mounts.iter().map(|mount| (mount.size, mount.in_use))),
        },
    ]
}

/// What a stack that runs has is in use.
fn in_stack(files: &Files) -> (u64, bool) {
    (files.size, files.active)
}

/// The room of things with a size each, in use or not.
fn room(things: impl Iterator<Item = (u64, bool)>) -> Room {
    things.fold(Room::default(), |room, (size, active)| Room {
        total: room.total + 1,
        active: room.active + usize::from(active),
        size: room.size + size,
        reclaimable: room.reclaimable + if active { 0 } else { size },
    })
}

fn table(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let Room { total, active, size: all, reclaimable } = row.room;
        let percent = (reclaimable * 100).checked_div(all).unwrap_or(0);
        vec![
            row.kind.to_owned(),
            total.to_string(),
            active.to_string(),
            size(all),
            format!("{} ({percent}%)", size(reclaimable)),
        ]
    };
    let head = ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"];
    output::table(&head, &rows.iter().map(cells).collect::<Vec<_>>())
}

fn details(report: &Report) -> String {
    let images = report.store.image_list.iter().map(|image| {
        let names = image.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        vec![
            if names.is_empty() { "<none>".to_owned() } else { names },
            id(&image.id.to_string(), false),
            since(image.created.as_deref()),
            size(image.size),
            size(image.shared),
            size(image.size - image.shared),
            image.containers.to_string(),
        ]
    });
    let head = ["IMAGE", "ID", "CREATED", "SIZE", "SHARED", "UNIQUE", "CONTAINERS"];
    let mut text = output::table(&head, &images.collect::<Vec<_>>());
    for (title, list) in [("CONTAINER", &report.containers), ("VOLUME", &report.volumes)] {
        let rows = list.iter().map(|files| vec![files.name.clone(), size(files.size), state(files.active)]);
        text.push('\n');
        text.push_str(&output::table(&[title, "SIZE", "STATE"], &rows.collect::<Vec<_>>()));
    }
    let cache = report.store.cache_list.iter().map(|entry| {
        vec![
            id(&entry.id.to_string(), false),
            size(entry.size),
            idle_for(entry.used),
            if entry.shared { "yes" } else { "no" }.to_owned(),
        ]
    });
    text.push('\n');
    text.push_str(&output::table(&["CACHE ID", "SIZE", "LAST USED", "SHARED"], &cache.collect::<Vec<_>>()));
    let mounts = report.cache_mounts.iter().map(|mount| {
        vec![output::visible(&mount.id), size(mount.size), idle_for(mount.last_used), state(mount.in_use)]
    });
    text.push('\n');
    let head = ["CACHE MOUNT", "SIZE", "LAST USED", "STATE"];
    text.push_str(&output::table(&head, &mounts.collect::<Vec<_>>()));
    text
}

fn state(active: bool) -> String {
    if active { "in use" } else { "idle" }.to_owned()
}

fn idle_for(used: SystemTime) -> String {
    age(used.elapsed().unwrap_or_default().as_secs_f64())
}
