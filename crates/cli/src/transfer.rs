//! Images and root file systems as files: `save`, `load`, `import`, `export`, `commit`.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use stack::RemoteError;
use stack::control::Command;
use stack::plan::Plan;
use stack::transfer::{self, ArchiveFormat, Compression, Source, Target};

use crate::listing::check_services;
use crate::output::{self, Failure};
use crate::session::Session;

/// `save`.
#[derive(Debug, Args)]
pub(crate) struct Save {
    /// Write to this file; a directory, or a name that ends with `/`, becomes an OCI layout [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// docker: loads everywhere; oci: a layout with packed layers [default: docker; oci for a directory]
    #[arg(long, value_name = "FORMAT", hide_possible_values = true)]
    format: Option<Form>,
    /// How layers are packed in an OCI layout: none, gzip or zstd
    #[arg(long, value_name = "HOW", default_value = "gzip", hide_possible_values = true)]
    compression: Packing,
    /// Images: names, ids, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// `--format` of `save`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// What `docker save` writes.
    Docker,
    /// An OCI image layout.
    #[value(alias = "oci-archive", alias = "oci-dir")]
    Oci,
}

/// `--compression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

/// `load`.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// Read this file, or the directory of an OCI layout [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
}

/// `import`.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Change the image by an instruction of a Dockerfile: `-c 'CMD ["server"]'`
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// A remark for the history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Archive of a root file system, packed or not; `-` is standard input
    file: PathBuf,
    /// Name of the image
    name: Option<String>,
}

/// `export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Write to this file [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Which of the service's containers, from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    index: Option<u16>,
    /// Service, or one container of it such as `web-2`; it need not run
    service: String,
}

/// `commit`.
#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// Who made the image
    #[arg(short, long, value_name = "NAME")]
    author: Option<String>,
    /// Change the image by an instruction of a Dockerfile: `-c 'CMD ["server"]'`
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// A remark for the history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Have its processes stand still meanwhile, if it runs, so that no file is half written
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pause: Option<bool>,
    /// Which of the service's containers, from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    index: Option<u16>,
    /// Service, or one container of it such as `web-2`
    service: String,
    /// Name of the image
    image: String,
}

/// `save`.
pub(crate) fn save(session: &Session, arguments: &Save) -> Result<u8, Failure> {
    let directory = arguments.output.as_deref().filter(|path| is_directory(path));
    let compression = match arguments.compression {
        Packing::None => Compression::None,
        Packing::Gzip => Compression::Gzip,
        Packing::Zstd => Compression::Zstd,
    };
    let format = match arguments.format {
        Some(Form::Docker) => ArchiveFormat::Docker,
        None if directory.is_none() => ArchiveFormat::Docker,
        Some(Form::Oci) | None => ArchiveFormat::Oci(compression),
    };
    let write = |target| transfer::save(&session.paths, &arguments.images, format, target).map_err(written);
    match directory {
        Some(path) => into_directory(path, write)?,
        None => into_file(arguments.output.as_deref(), |file| write(Target::File(file)))?,
    }
    Ok(0)
}

/// `load`.
pub(crate) fn load(session: &Session, arguments: &Load) -> Result<u8, Failure> {
    let (source, name) = match arguments.input.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) if path.is_dir() => (Source::Directory(path.to_owned()), path.display().to_string()),
        path => {
            if path.is_none() && io::stdin().is_terminal() {
                let hint = "name a file with `-i`, or send one: `inception-run load < images.tar`";
                return Err(Failure::usage("there are no images on a terminal to load", hint));
            }
            let (file, name) = open(path)?;
            (Source::File(file), name)
        }
    };
    for image in transfer::load(&session.paths, source, &name)? {
        if arguments.quiet {
            continue;
        }
        for name in &image.names {
            output::print(&format!("Loaded image: {name}\n"))?;
        }
        if image.names.is_empty() {
            output::print(&format!("Loaded image ID: {}\n", image.id))?;
        }
    }
    Ok(0)
}

/// `import`.
pub(crate) fn import(session: &Session, arguments: &Import) -> Result<u8, Failure> {
    let (file, name) = open(Some(arguments.file.as_path()).filter(|path| *path != Path::new("-")))?;
    let reference = arguments.name.as_deref();
    let message = arguments.message.as_deref();
    let id = transfer::import(&session.paths, file, &name, reference, &arguments.change, message)?;
    output::print(&format!("{id}\n"))?;
    Ok(0)
}

/// `export`.
pub(crate) fn export(session: &Session, arguments: &Export) -> Result<u8, Failure> {
    let plan = session.load(None)?.plan;
    let service = numbered(&arguments.service, arguments.index);
    let other_name = session.container_called(&service);
    let name = other_name.as_deref().unwrap_or(&service);
    let id = image_of(session, &plan, name)?;
    let container = transfer::Container { stack: &plan.name, name, image: &id };
    into_file(arguments.output.as_deref(), |file| {
        transfer::export(&session.paths, &container, file).map_err(written)
    })?;
    Ok(0)
}

/// `commit`.
pub(crate) fn commit(session: &Session, arguments: &Commit) -> Result<u8, Failure> {
    let plan = session.load(None)?.plan;
    let service = numbered(&arguments.service, arguments.index);
    let other_name = session.container_called(&service);
    let name = other_name.as_deref().unwrap_or(&service);
    let id = image_of(session, &plan, name)?;
    let container = transfer::Container { stack: &plan.name, name, image: &id };
    let commit = transfer::Commit {
        name: &arguments.image,
        author: arguments.author.clone(),
        message: arguments.message.clone(),
        changes: &arguments.change,
    };
    let pauses = arguments.pause == Some(true);
    let change = |command: Command| match session.connect()?.1.filter(|_| pauses) {
        Some(mut client) => session.carry_out(&mut client, &command),
        None => Ok(()),
    };
    change(Command::Pause(vec![service.clone()]))?;
    let made = transfer::commit(&session.paths, &container, &commit);
    change(Command::Unpause(vec![service.clone()]))?;
    let id = made?;
    output::print(&format!("{id}\n"))?;
    Ok(0)
}

/// What is said of an archive that could not be written: nothing, when its reader is gone.
fn written(error: RemoteError) -> Failure {
    if error.exit_code == transfer::UNREAD { Failure::Unread } else { error.into() }
}

/// The container that `--index` means.
fn numbered(service: &str, index: Option<u16>) -> String {
    match index {
        Some(index) if index > 1 => format!("{service}-{index}"),
        Some(_) | None => service.to_owned(),
    }
}

/// The image that a container of a service runs.
fn image_of(session: &Session, plan: &Plan, container: &str) -> Result<String, Failure> {
    let of = |name: &str| plan.services.iter().find(|service| service.name == name);
    let name = match container.rsplit_once('-') {
        Some((service, number)) if of(container).is_none() && number.parse::<u16>().is_ok() => service,
        _ => container,
    };
    check_services(plan, &[name.to_owned()])?;
    let id = of(name).map(|service| stack::images::present(&session.paths, service)).transpose()?.flatten();
    id.ok_or_else(|| {
        RemoteError::message(format!("service `{name}` has no image yet"))
            .or_hint("`inception-run up -d` builds and starts it")
            .into()
    })
}

/// Opens a file, or standard input, and says what to call it.
fn open(path: Option<&Path>) -> Result<(File, String), Failure> {
    match path {
        Some(path) => {
            let operation = format!("open {}", path.display());
            Ok((File::open(path).map_err(Failure::system(&operation))?, path.display().to_string()))
        }
        None => Ok((duplicate(io::stdin(), "standard input")?, "standard input".to_owned())),
    }
}

fn duplicate(stream: impl AsFd, name: &str) -> Result<File, Failure> {
    let own: OwnedFd =
        stream.as_fd().try_clone_to_owned().map_err(Failure::system(&format!("open {name}")))?;
    Ok(own.into())
}

fn is_directory(path: &Path) -> bool {
    path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Writes a file that is there when it is whole, or standard output.
pub(crate) fn into_file(
    path: Option<&Path>,
    write: impl FnOnce(File) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let Some(path) = path.filter(|path| *path != Path::new("-")) else {
        if io::stdout().is_terminal() {
            let hint = "name a file with `-o`, or send it on: `inception-run save IMAGE | ...`";
            return Err(Failure::usage("an archive is nothing for a terminal", hint));
        }
        return write(duplicate(io::stdout(), "standard output")?);
    };
    let failed = format!("create {}", path.display());
    // A device or a pipe is written as it is.
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return write(File::create(path).map_err(Failure::system(&failed))?);
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.part", std::process::id()));
    let file = File::create_new(&partial).map_err(Failure::system(&failed))?;
    let written = write(file).and_then(|()| fs::rename(&partial, path).map_err(Failure::system(&failed)));
    if written.is_err() {
        // The reason is told; what is left of it is of no use.
        fs::remove_file(&partial).ok();
    }
    written
}

/// Writes the files of a directory that is empty or not there, or leaves it as it was.
pub(crate) fn into_directory(
    path: &Path,
    write: impl FnOnce(Target) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = format!("create directory {}", path.display());
    let made = match fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
        Ok(true) => {
            let text = format!("the directory {} is not empty", path.display());
            return Err(Failure::usage(text, "an OCI layout is written into a directory of its own"));
        }
        Ok(false) => false,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            fs::create_dir(path).map_err(Failure::system(&failed))?;
            true
        }
        Err(cause) => return Err(Failure::system(&failed)(cause)),
    };
    let written = write(Target::Directory(path.to_owned()));
    if written.is_err() {
        // It was empty, so all that is in it is ours.
        for part in ["blobs", "index.json", "oci-layout", "manifest.json"] {
            let part = path.join(part);
            fs::remove_dir_all(&part).or_else(|_| fs::remove_file(&part)).ok();
        }
        if made {
            fs::remove_dir(path).ok();
        }
    }
    written
}
