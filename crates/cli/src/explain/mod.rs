//! `explain`: what a service or an image is made of, as text, JSON, or a page.
//!
//! Facts become sections ([`document`]), and sections become text or a page; drawings are made from the facts. JSON is
//! the facts themselves.

mod document;
mod drawing;
mod html;
mod image;
mod sections;
mod text;

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use stack::RemoteError;
use stack::explain::{self, Facts, ImageFacts};

use crate::args::Format;
use crate::output::{self, Failure};
use crate::session::Session;
use document::Section;
use html::Figure;

/// `explain`.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Explain an image instead: name, id, or the beginning of an id
    #[arg(long, value_name = "IMAGE", conflicts_with = "service")]
    image: Option<String>,
    /// table or json
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    format: Format,
    /// Write one page with drawings instead, which needs no network and no other file; `-` is standard output
    #[arg(long, value_name = "FILE", conflicts_with = "format")]
    html: Option<PathBuf>,
    /// Service, or one container of it such as `web-2`
    #[arg(required_unless_present = "image")]
    service: Option<String>,
}

/// `explain`.
pub(crate) fn explain(session: &Session, arguments: &Explain) -> Result<u8, Failure> {
    if let Some(image) = &arguments.image {
        let facts = explain::image(&session.paths, image)?;
        show(session, arguments, &facts, || image::of(&facts), || page_of_image(&facts))?;
    } else if let Some(service) = &arguments.service {
        let facts = explain::service(&session.paths, &session.connect()?.0, service)?;
        show(session, arguments, &facts, || sections::of(&facts), || page_of_service(&facts))?;
    }
    Ok(0)
}

fn show(
    session: &Session,
    arguments: &Explain,
    facts: &impl Serialize,
    sections: impl FnOnce() -> Vec<Section>,
    page: impl FnOnce() -> String,
) -> Result<(), Failure> {
    match (&arguments.html, arguments.format) {
        (Some(path), _) if path == Path::new("-") => output::print(&page()),
        (Some(path), _) => {
            write(path, &page())?;
            session.output.progress(&format!("wrote {}", path.display()));
            Ok(())
        }
        (None, Format::Json) => output::json(facts),
        (None, Format::Table) => output::print(&text::render(&sections(), text::width(), session.output)),
    }
}

fn write(path: &Path, page: &str) -> Result<(), Failure> {
    std::fs::write(path, page).map_err(|error| {
        RemoteError::from(error).context(format!("write the page {}", path.display())).into()
    })
}

fn page_of_service(facts: &Facts) -> String {
    let layers = drawing::layers(facts).map(|svg| Figure { section: "layers", svg });
    let network = drawing::network(facts).map(|svg| Figure { section: "network", svg });
    let namespaces = Figure { section: "namespaces", svg: drawing::namespaces(facts) };
    let figures: Vec<Figure> = [namespaces].into_iter().chain(layers).chain(network).collect();
    let subtitle =
        format!("A container of the stack {}, as the kernel had it when this page was written", facts.stack);
    html::page(&facts.container, &subtitle, &sections::of(facts), &figures)
}

fn page_of_image(facts: &ImageFacts) -> String {
    let figures = [Figure { section: "instructions", svg: drawing::image(facts) }];
    html::page(&facts.name, "An image of this machine's store", &image::of(facts), &figures)
}
