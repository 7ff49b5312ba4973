//! `build --output`: a built image as files, beside the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use stack::images;
use stack::transfer::{self, ArchiveFormat, Compression};

use crate::output::Failure;
use crate::session::Session;
use crate::transfer::{into_directory, into_file};

/// What is written, and where to.
#[derive(Debug, PartialEq)]
pub(crate) enum Destination {
    /// The image's files into a directory, as the user's.
    Directory(PathBuf),
    /// The image's files as an archive; without a path to standard output.
    Tar(Option<PathBuf>),
    /// The image itself as an archive, as `save` writes it.
    Image(ArchiveFormat, Option<PathBuf>),
    /// The image itself as an OCI layout in a directory of its own.
    Layout(ArchiveFormat, PathBuf),
    /// Nothing: the image is in the store.
    Store,
}

impl Destination {
    /// `type=TYPE,dest=PATH,...`; a directory alone, or `-`.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        if text == "-" {
            return Ok(Self::Tar(None));
        }
        if !text.contains('=') {
            return Ok(Self::Directory(text.into()));
        }
        let wrong = |message: String| {
            let hint = "write `-o type=TYPE,dest=PATH`, where TYPE is local, tar, oci or docker";
            Failure::usage(message, hint)
        };
        let fields = fields(text);
        let kind = fields.get("type").copied().unwrap_or("local");
        let known: &[&str] = match kind {
            "local" | "tar" | "image" => &["type", "dest", "destination"],
            "oci" | "docker" => &["type", "dest", "destination", "tar", "compression"],
            _ => return Err(wrong(format!("`type={kind}` of `--output` is not known"))),
        };
        if let Some(unknown) = fields.keys().find(|key| !known.contains(key)) {
            return Err(wrong(format!("`{unknown}` of `--output {text}` is not known")));
        }
        let given = fields.get("dest").or(fields.get("destination")).filter(|place| !place.is_empty());
        let place = given.filter(|place| **place != "-").map(PathBuf::from);
        let directory = match fields.get("tar").copied() {
            None | Some("true") => false,
            Some("false") => true,
            Some(other) => return Err(wrong(format!("`tar={other}` of `--output` is not true or false"))),
        };
        let format = || match (kind, fields.get("compression").copied()) {
            ("docker", None | Some("uncompressed")) => Ok(ArchiveFormat::Docker),
            ("docker", Some(_)) => Err(wrong("layers of `type=docker` are not compressed".to_owned())),
            (_, None | Some("gzip")) => Ok(ArchiveFormat::Oci(Compression::Gzip)),
            (_, Some("zstd")) => Ok(ArchiveFormat::Oci(Compression::Zstd)),
            (_, Some("uncompressed")) => Ok(ArchiveFormat::Oci(Compression::None)),
            (_, Some(other)) => {
                Err(wrong(format!("`compression={other}` is not one of uncompressed, gzip, zstd")))
            }
        };
        match (kind, place) {
            ("image", _) => Ok(Self::Store),
            // As with BuildKit's client: loaded into the engine, which the store is here.
            ("docker", None) if given.is_none() => format().map(|_| Self::Store),
            ("local", Some(place)) => Ok(Self::Directory(place)),
            ("tar", place) => Ok(Self::Tar(place)),
            ("oci" | "docker", Some(place)) if directory => Ok(Self::Layout(format()?, place)),
            ("oci" | "docker", place) if !directory => Ok(Self::Image(format()?, place)),
            _ => Err(wrong(format!("`--output {text}` has no `dest`"))),
        }
    }

    /// Writes an image, which has these names.
    pub(crate) fn write(&self, session: &Session, id: &str, names: &[String]) -> Result<(), Failure> {
        let paths = &session.paths;
        let own = [id.to_owned()];
        let wanted = if names.is_empty() { &own } else { names };
        match self {
            Self::Store => Ok(()),
            Self::Directory(directory) => Ok(images::export_directory(paths, id, directory)?),
            Self::Tar(path) => into_file(path.as_deref(), |file| Ok(images::export_tar(paths, id, file)?)),
            Self::Image(format, path) => into_file(path.as_deref(), |file| {
                Ok(transfer::save(paths, wanted, *format, transfer::Target::File(file))?)
            }),
            Self::Layout(format, path) => {
                into_directory(Path::new(path), |target| Ok(transfer::save(paths, wanted, *format, target)?))
            }
        }
    }
}

/// `NAME=VALUE` fields between commas.
pub(crate) fn fields(text: &str) -> BTreeMap<&str, &str> {
    text.split(',').map(|field| field.split_once('=').unwrap_or((field, ""))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        let parsed = |text| Destination::parse(text).ok();
        let gzip = ArchiveFormat::Oci(Compression::Gzip);
        let zstd = ArchiveFormat::Oci(Compression::Zstd);
        assert_eq!(parsed("out"), Some(Destination::Directory("out".into())));
        assert_eq!(parsed("type=local,dest=/a"), Some(Destination::Directory("/a".into())));
        assert_eq!(parsed("-"), Some(Destination::Tar(None)));
        assert_eq!(parsed("type=tar,dest=a.tar"), Some(Destination::Tar(Some("a.tar".into()))));
        assert_eq!(parsed("type=oci,dest=a.tar"), Some(Destination::Image(gzip, Some("a.tar".into()))));
        assert_eq!(parsed("type=oci"), Some(Destination::Image(gzip, None)));
        assert_eq!(
            parsed("type=oci,tar=false,compression=zstd,dest=a"),
            Some(Destination::Layout(zstd, "a".into()))
        );
        assert_eq!(parsed("type=docker"), Some(Destination::Store));
        assert_eq!(parsed("type=docker,dest=-"), Some(Destination::Image(ArchiveFormat::Docker, None)));
        assert_eq!(parsed("type=image"), Some(Destination::Store));
        for text in [
            "type=local",
            "type=tar,tar=false,dest=a",
            "type=oci,tar=false",
            "type=oci,tar=maybe,dest=a",
            "type=oci,compression=lz4,dest=a",
            "type=docker,compression=gzip,dest=a",
            "type=registry",
            "type=oci,name=app,dest=a",
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
