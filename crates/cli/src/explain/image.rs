//! The sections of an image.

use stack::explain::{ImageFacts, Instruction};

use super::document::Section;
use crate::output::size;

/// All sections of an image.
pub(super) fn of(facts: &ImageFacts) -> Vec<Section> {
    vec![overview(facts), instructions(facts), sharing(facts)]
}

fn overview(facts: &ImageFacts) -> Section {
    let text = "An image is a configuration and a stack of layers, each an archive of files that is named by its digest. \
                The image's id is the digest of its configuration, which names the layers: what has the same id is the \
                same.";
    let layers = facts.instructions.iter().filter(|one| one.layer.is_some()).count();
    Section::new("overview", "IMAGE", text).pairs(vec![
        ("name", facts.name.clone()),
        ("id", facts.id.clone()),
        ("made", facts.created.clone().unwrap_or_else(|| "not told".to_owned())),
        ("platform", facts.platform.clone()),
        ("runs", facts.command.join(" ")),
        ("layers", layers.to_string()),
        (
            "size",
            format!("{}, of which {} is shared with other images", size(facts.size), size(facts.shared)),
        ),
        ("containers", facts.containers.to_string()),
    ])
}

fn instructions(facts: &ImageFacts) -> Section {
    let text = "How it came to be, the first instruction first. One that changes files makes a layer; the others only \
                change the configuration.";
    let row = |(index, one): (usize, &Instruction)| {
        let layer = one.directory.clone().unwrap_or_else(|| "-".to_owned());
        let size = if one.layer.is_some() { size(one.size) } else { "-".to_owned() };
        vec![(index + 1).to_string(), size, layer, one.text.clone()]
    };
    let rows = facts.instructions.iter().enumerate().map(row).collect();
    Section::new("instructions", "INSTRUCTIONS AND LAYERS", text)
        .table(&["STEP", "SIZE", "LAYER", "INSTRUCTION"], rows)
}

fn sharing(facts: &ImageFacts) -> Section {
    let text = "A layer that several images have is on disk once. One that is in the build cache is not made again by a \
                build with the same instruction on the same layers.";
    let row = |(index, one): (usize, &Instruction)| {
        let layer = one.directory.clone()?;
        let cached = if one.cached { "yes" } else { "no" };
        let others =
            if one.shared_with.is_empty() { "nobody".to_owned() } else { one.shared_with.join(", ") };
        Some(vec![(index + 1).to_string(), layer, cached.to_owned(), others])
    };
    let rows = facts.instructions.iter().enumerate().filter_map(row).collect();
    Section::new("sharing", "SHARED AND CACHED", text)
        .table(&["STEP", "LAYER", "CACHED", "SHARED WITH"], rows)
}
