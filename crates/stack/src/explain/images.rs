//! An image: its layers, and who else has them.

use image::Store;
use serde::Serialize;

use crate::paths::Paths;
use crate::remote::RemoteError;

/// An image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageFacts {
    /// The name that was asked for.
    pub name: String,
    /// Its id.
    pub id: String,
    /// When it was made, RFC 3339.
    pub created: Option<String>,
    /// For which kind of machine.
    pub platform: String,
    /// Bytes of all its layers.
    pub size: u64,
    /// Bytes of layers that other images have too.
    pub shared: u64,
    /// How many containers use it.
    pub containers: usize,
    /// What containers run by default: entrypoint and command.
    pub command: Vec<String>,
    /// Its instructions, the oldest first.
    pub instructions: Vec<Instruction>,
}

/// An instruction of the file that an image was built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Instruction {
    /// The instruction.
    pub text: String,
    /// When it was carried out, RFC 3339; a layer from the cache keeps its date.
    pub created: Option<String>,
    /// Digest of the layer that it made; `None` where it only changed the configuration.
    pub layer: Option<String>,
    /// Directory of that layer, below the data directory.
    pub directory: Option<String>,
    /// Bytes of its files.
    pub size: u64,
    /// Names of the other images that have the same layer; those without a name by the beginning of their id.
    pub shared_with: Vec<String>,
    /// The build cache has this layer: a build with the same instruction on the same layers takes it from there.
    pub cached: bool,
}

/// Reads an image and its neighbours from the store.
///
/// # Errors
/// When there is no such image, or the store cannot be read.
pub fn image(paths: &Paths, name: &str) -> Result<ImageFacts, RemoteError> {
    let store = Store::reader(&paths.data);
    let image = store.find(name)?;
    let room = store.usage()?.image_list.into_iter().find(|room| room.id == image.id);
    let users = store.layer_users(&image)?;
    let mut instructions = Vec::new();
    for line in store.history(&image)?.into_iter().rev() {
        let users = line.layer.as_ref().and_then(|layer| users.get(layer));
        instructions.push(Instruction {
            text: if line.created_by.is_empty() { line.comment } else { line.created_by },
            created: line.created,
            directory: line.layer.as_ref().map(|layer| store.layer_path(layer)),
            layer: line.layer.as_ref().map(ToString::to_string),
            size: line.size,
            shared_with: users.map(|users| users.images.clone()).unwrap_or_default(),
            cached: users.is_some_and(|users| users.cached),
        });
    }
    let config = &image.config;
    let words = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
    Ok(ImageFacts {
        name: name.to_owned(),
        id: image.id.to_string(),
        created: config.created.clone(),
        platform: format!("{}/{}", config.os, config.architecture),
        size: room.as_ref().map_or(0, |room| room.size),
        shared: room.as_ref().map_or(0, |room| room.shared),
        containers: room.as_ref().map_or(0, |room| room.containers),
        command: [words(&config.config.entrypoint), words(&config.config.cmd)].concat(),
        instructions,
    })
}
