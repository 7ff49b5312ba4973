//! Looking whether the store is whole: names against contents, contents against each other.

use std::collections::BTreeSet;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result, with_causes};
use crate::store::Store;
use crate::store::contents::{Contents, names};
use crate::store::layers::short;
use crate::store::lease::Hold;

/// What is wrong with the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Something is damaged or lost. Otherwise it only takes up room, as what a killed command left does.
    pub damage: bool,
    /// Which file, relative to the data directory.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub hint: String,
}

/// How much was looked at, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Names.
    pub names: usize,
    /// Images.
    pub images: usize,
    /// Layers.
    pub layers: usize,
    /// Bytes of files whose content was read; none in a quick look.
    pub bytes: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl Verification {
    fn damage(&mut self, path: String, problem: impl Into<String>, hint: impl Into<String>) {
        let (problem, hint) = (problem.into(), hint.into());
        self.findings.push(Finding { damage: true, path, problem, hint });
    }

    fn leftover(&mut self, path: String, problem: impl Into<String>) {
        let hint = "`inception-run prune` removes it".to_owned();
        self.findings.push(Finding { damage: false, path, problem: problem.into(), hint });
    }
}

impl Store {
    /// Looks whether everything is there that something refers to, and is what its name says. Layers are read and
    /// their archives made again, unless it is to be `quick`; `progress` hears of each one before.
    pub fn verify(&self, quick: bool, progress: &mut dyn FnMut(&str)) -> Result<Verification> {
        let mut found = Verification::default();
        let contents = {
            // One moment: what is being deleted or put in its place is not missing.
            let _shared = self.shared()?;
            let contents = Contents::read(self)?;
            self.check_references(&contents, &mut found)?;
            contents
        };
        self.check_work(&mut found)?;
        if !quick {
            for layer in contents.layers.values().filter(|layer| layer.has_directory) {
                let Some(record) = &layer.record else { continue };
                progress(record.diff_id.short());
                found.bytes += self.check_content(&record.diff_id, &mut found)?;
            }
        }
        Ok(found)
    }

    fn check_references(&self, contents: &Contents, found: &mut Verification) -> Result<()> {
        (found.names, found.images) = (contents.tags.len(), contents.images.len());
        found.layers = contents.layers.values().filter(|layer| layer.has_directory).count();
        for (name, id) in &contents.tags {
            let path = format!("tags/{}", file_name(&self.tag_path(name)));
            if !contents.images.contains_key(id) {
                let hint = format!("`inception-run prune` removes the name; fetch or build `{name}` again");
                found.damage(path, format!("the image {} of the name `{name}` is gone", id.short()), hint);
            }
        }
        self.check_tags(contents, found)?;
        for (id, image) in &contents.images {
            let path = format!("images/{}.json", id.hex());
            let again = format!("`inception-run rmi -f {}`, then fetch or build it again", id.short());
            let json = fs::read(self.image_path(id)).map_err(|cause| Error::io("read", &path, cause))?;
            if Digest::of(&json) != *id {
                found.damage(path, "its content does not have the digest that is its name", again);
            } else if image.config.is_none() {
                found.damage(path, "it is no image configuration", again);
            } else {
                for layer in image.layers().iter().filter(|layer| !is_whole(contents, short(layer))) {
                    found.damage(path.clone(), format!("its layer {} is gone", layer.short()), again.clone());
                }
            }
        }
        let needed = contents.layers_of(contents.images.keys());
        let held = contents.held_layers();
        for (name, layer) in &contents.layers {
            if held.contains(name.as_str()) && !needed.contains(name.as_str()) {
                // In the making.
                continue;
            }
            match &layer.record {
                Some(record) if short(&record.diff_id) != name => {
                    let hint = "fetch or build the images again that have this layer";
                    found.damage(format!("layers/{name}.json"), "it is the record of another layer", hint);
                }
                Some(_) if layer.has_directory => {}
                Some(_) => found.leftover(format!("layers/{name}.json"), "there is no such layer"),
                None => found.leftover(format!("l/{name}"), "there is no record of this layer"),
            }
        }
        for (key, entry) in &contents.cache {
            let layer = entry.layer.as_ref().filter(|layer| !is_whole(contents, short(layer)));
            if let Some(layer) = layer.filter(|layer| !held.contains(short(layer))) {
                let path = format!("cache/{}.json", key.hex());
                found.leftover(path, format!("its layer {} is gone", layer.short()));
            }
        }
        Ok(())
    }

    /// Files of `tags/` that name nothing.
    fn check_tags(&self, contents: &Contents, found: &mut Verification) -> Result<()> {
        let known: BTreeSet<String> =
            contents.tags.keys().map(|name| file_name(&self.tag_path(name))).collect();
        for name in names(&self.data_dir().join("tags"))? {
            if !known.contains(&name) {
                found.damage(format!("tags/{name}"), "it has another name's content", "delete the file");
            }
        }
        Ok(())
    }

    /// Work in progress of nobody.
    fn check_work(&self, found: &mut Verification) -> Result<()> {
        let tmp = self.tmp();
        let all = names(&tmp)?;
        for name in &all {
            let stem = name.split('.').next().unwrap_or(name);
            let has_lock = name != stem || all.contains(&format!("{stem}.lock"));
            // It may have been finished while we looked.
            if !has_lock && tmp.join(name).exists() && !tmp.join(format!("{stem}.lock")).exists() {
                found.leftover(format!("tmp/{name}"), "nobody works on it");
            }
        }
        Ok(())
    }

    fn check_content(&self, layer: &Digest, found: &mut Verification) -> Result<u64> {
        let path = self.layer_path(layer);
        {
            let _shared = self.shared_to_hold(&Hold::Layer(layer.clone()))?;
            if !self.data_dir().join(&path).is_dir() {
                // Deleted since.
                return Ok(0);
            }
        }
        let hint = "`inception-run prune -a` removes what no container uses; fetch or build the images again";
        match self.identify_layer(layer) {
            Ok((id, size)) if id == *layer => Ok(size),
            Ok((_, size)) => {
                found.damage(path, "its files are not those that its digest is of", hint);
                Ok(size)
            }
            Err(error) => {
                found.damage(path, with_causes(&error), hint);
                Ok(0)
            }
        }
    }
}

fn is_whole(contents: &Contents, layer: &str) -> bool {
    contents.layers.get(layer).is_some_and(|layer| layer.has_directory)
}

fn file_name(path: &std::path::Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
