//! Images out of the store, as an archive: the same images give the same bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::path::Path;

use super::blob::{BlobInfo, Compression};
use super::{docker, layout};
use crate::archive::tape::{Fault, Kind, Tape};
use crate::config::Image;
use crate::digest::{Digest, LayerId};
use crate::error::{Error, Result};
use crate::manifest::{self, Descriptor, Index, Manifest};
use crate::reference::Reference;
use crate::scratch::Scratch;
use crate::store::Store;

/// The form of an archive of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// What `docker save` writes since Docker 25, which all its versions load: plain layers, `manifest.json`, and an
    /// OCI layout of the same.
    #[default]
    Docker,
    /// An OCI image layout, with its layers packed.
    Oci(Compression),
}

/// An image to be saved, and the names that go with it.
#[derive(Clone, Debug)]
pub struct SavedImage {
    /// The image.
    pub image: Image,
    /// Its names; none for one that was named by its id.
    pub names: Vec<Reference>,
}

impl Store {
    /// Writes images as an archive.
    ///
    /// # Errors
    /// When a layer is missing or damaged, or `out` fails.
    pub fn save(&self, images: &[SavedImage], format: ArchiveFormat, out: &mut dyn Write) -> Result<()> {
        let compression = match format {
            ArchiveFormat::Docker => Compression::None,
            ArchiveFormat::Oci(compression) => compression,
        };
        let mut archive = Archive { out };
        archive.dir("blobs/")?;
        archive.dir("blobs/sha256/")?;
        let layers = self.save_layers(images, compression, &mut archive)?;
        let mut index = Index {
            schema_version: 2,
            media_type: Some(manifest::OCI_INDEX.to_owned()),
            manifests: Vec::new(),
        };
        let mut entries = Vec::new();
        let mut written: Vec<Digest> = layers.values().map(|blob| blob.digest.clone()).collect();
        for saved in images {
            let id = &saved.image.id;
            let missing = || Error::UnknownImage { name: id.to_string(), nearest: None };
            let config = self.image_json(id)?.ok_or_else(missing)?;
            let diff_ids = &saved.image.config.rootfs.diff_ids;
            let blobs: Vec<&BlobInfo> = diff_ids.iter().filter_map(|id| layers.get(id)).collect();
            let manifest = describe(id, config.len() as u64, &blobs, compression);
            let digest = Digest::of(&manifest);
            for (digest, content) in [(id, &config), (&digest, &manifest)] {
                if !written.contains(digest) {
                    archive.file(&layout::blob_path(digest), content)?;
                    written.push(digest.clone());
                }
            }
            index.manifests.extend(named(saved, &digest, manifest.len() as u64));
            entries.push(docker::Entry {
                config: layout::blob_path(id),
                repo_tags: Some(saved.names.iter().map(shown).collect())
                    .filter(|names: &Vec<_>| !names.is_empty()),
                layers: Some(blobs.iter().map(|blob| layout::blob_path(&blob.digest)).collect()),
            });
        }
        archive.json(layout::INDEX, &index)?;
        if format == ArchiveFormat::Docker {
            archive.json(docker::MANIFEST, &entries)?;
        }
        archive.file(layout::MARK, layout::MARK_CONTENT.as_bytes())?;
        archive.end()
    }

    /// Writes each layer once.
    fn save_layers(
        &self,
        images: &[SavedImage],
        compression: Compression,
        archive: &mut Archive<'_>,
    ) -> Result<BTreeMap<LayerId, BlobInfo>> {
        let mut written = BTreeMap::new();
        let scratch = Scratch::new(&self.tmp())?;
        for layer in images.iter().flat_map(|saved| &saved.image.config.rootfs.diff_ids) {
            if written.contains_key(layer) {
                continue;
            }
            let blob = if compression == Compression::None {
                let size = self.layer_tar_length(layer)?;
                archive.header(b'0', &layout::blob_path(layer), size)?;
                self.write_layer_tar(layer, archive.out)?;
                archive.pad(size)?;
                BlobInfo { digest: layer.clone(), size }
            } else {
                // How long it gets is known when it is packed, and is written before it.
                let path = scratch.path().join("blob");
                let fail = |cause: io::Error| Error::io("write", &path, cause);
                let mut file = File::create(&path).map_err(fail)?;
                let blob = self.write_layer_blob(layer, compression, &mut file)?;
                archive.header(b'0', &layout::blob_path(&blob.digest), blob.size)?;
                let mut file = File::open(&path).map_err(fail)?;
                io::copy(&mut file, archive.out).map_err(|cause| Error::io("write", "the archive", cause))?;
                archive.pad(blob.size)?;
                blob
            };
            written.insert(layer.clone(), blob);
        }
        Ok(written)
    }
}

fn describe(id: &Digest, size: u64, blobs: &[&BlobInfo], compression: Compression) -> Vec<u8> {
    let kind = compression.media_type();
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(manifest::OCI_MANIFEST.to_owned()),
        config: Descriptor::new(manifest::OCI_CONFIG, id.clone(), size),
        layers: blobs.iter().map(|blob| Descriptor::new(kind, blob.digest.clone(), blob.size)).collect(),
    };
    serde_json::to_vec(&manifest).expect("a manifest has string keys only")
}

/// The entries of an image in the index: one for each of its names.
fn named(saved: &SavedImage, digest: &Digest, size: u64) -> Vec<Descriptor> {
    let entry = Descriptor::new(manifest::OCI_MANIFEST, digest.clone(), size);
    if saved.names.is_empty() {
        return vec![entry];
    }
    let names = saved.names.iter().map(|name| {
        let pairs = [(layout::NAME, whole(name)), (layout::REF_NAME, name.tag().to_owned())];
        let annotations = pairs.map(|(key, value)| (key.to_owned(), value)).into();
        Descriptor { annotations: Some(annotations), ..entry.clone() }
    });
    names.collect()
}

/// `alpine:3.20`, as Docker writes it where people read it.
fn shown(name: &Reference) -> String {
    format!("{}:{}", name.name(), name.tag())
}

/// `docker.io/library/alpine:3.20`, the form that says where it is from.
fn whole(name: &Reference) -> String {
    format!("{}/{}:{}", name.registry(), name.repository(), name.tag())
}

/// An archive in the making: nobody's files, of no time.
struct Archive<'a> {
    out: &'a mut dyn Write,
}

impl Archive<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|cause| Error::io("write", "the archive", cause))
    }

    fn header(&mut self, kind: u8, path: &str, size: u64) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkflag = [kind];
        // From 8 GiB on in binary, which all readers of today know.
        header.set_size(size);
        header.set_cksum();
        self.write(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let rest = (512 - size % 512) % 512;
        self.write(&[0; 512][..rest as usize])
    }

    fn dir(&mut self, path: &str) -> Result<()> {
        self.header(b'5', path, 0)
    }

    fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.header(b'0', path, content.len() as u64)?;
        self.write(content)?;
        self.pad(content.len() as u64)
    }

    fn json(&mut self, path: &str, value: &impl serde::Serialize) -> Result<()> {
        let content = serde_json::to_vec(value).expect("all keys are strings");
        self.file(path, &content)
    }

    fn end(&mut self) -> Result<()> {
        self.write(&[0; 1024])?;
        self.out.flush().map_err(|cause| Error::io("write", "the archive", cause))
    }
}

/// Writes an archive that [`Store::save`] makes as the files of a directory, which is an OCI layout when all has been
/// written. Only our own archives: they hold plain files below `blobs/sha256` and beside it.
///
/// # Errors
/// When a file cannot be written; when it is no archive of ours.
pub fn unpack_layout(archive: impl BufRead, directory: &Path) -> Result<()> {
    let name = "the archive of images";
    let refused =
        |problem: &str| Error::RefusedArchive { archive: name.to_owned(), problem: problem.to_owned() };
    let fault = |fault: Fault| match fault {
        Fault::Io(cause) => Error::io("read", name, cause),
        Fault::Malformed(problem) => refused(problem),
        Fault::TooLarge => refused("it is too large"),
    };
    let mut tape = Tape::new(archive, u64::MAX, None);
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(|cause| Error::io("create directory", &blobs, cause))?;
    while let Some(member) = tape.next().map_err(fault)? {
        let text = String::from_utf8_lossy(&member.path).into_owned();
        let path = match text.strip_prefix("blobs/sha256/") {
            _ if member.kind == Kind::Dir => continue,
            Some(hex) => blobs.join(hex.parse::<Digest>()?.hex()),
            None if matches!(&*text, layout::INDEX | layout::MARK | docker::MANIFEST) => {
                directory.join(&text)
            }
            None => return Err(refused("it holds something else than images")),
        };
        let fail = |cause: io::Error| Error::io("write", &path, cause);
        let mut file = File::create(&path).map_err(fail)?;
        loop {
            let content = tape.content(u64::MAX).map_err(fault)?;
            let length = content.len();
            if length == 0 {
                break;
            }
            file.write_all(content).map_err(fail)?;
            tape.consume(length);
        }
    }
    tape.finish().map_err(fault)
}
