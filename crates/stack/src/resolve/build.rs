//! How an image is built: which directory, which Dockerfiles, which values.

use std::path::{Path, PathBuf};

use super::{Context, files, fill, find, host, path, service_names, shown};
use crate::diagnostic::{Checked, Fault, Span, nearest};
use crate::file::build::{BuildFile, address};
use crate::file::service::ServiceFile;
use crate::file::{Format, Located, StackFile};
use crate::images;
use crate::plan::{BaseDockerfile, Build, BuildContext, BuildNetwork};

/// What a Dockerfile in the stack file is called in messages.
const INLINE: &str = "dockerfile_inline";
/// What it is called where nobody names it.
const DOCKERFILE: &str = "Dockerfile";

/// What `build` of a service means.
pub(super) fn resolve(
    build: &BuildFile,
    image: String,
    bases: &[String],
    file: &StackFile,
    context: &Context<'_>,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<Build> {
    check_platforms(&build.platforms)?;
    let repository = repository(&build.context)?;
    let (directory, dockerfiles) = match &repository {
        // What is in it is not known before it is fetched.
        Some(_) => (PathBuf::new(), only(dockerfile_name(build).into())),
        None => {
            let directory = directory(&build.context, "build", context)?;
            let dockerfiles = dockerfiles(build, &directory, bases, context)?;
            (directory, dockerfiles)
        }
    };
    let mut resolved = Build {
        image,
        repository,
        dockerfiles,
        context: directory,
        inline: build.inline.as_ref().map(|inline| inline.value.clone()),
        args: fill(&build.args, context),
        ..build.settled.clone()
    };
    let (limits, place) = (&build.settled.ulimits, &build.context.span);
    resolved.ulimits = host::lowered(limits, place, "the build", context, warnings);
    resolved.allows_host_network |= resolved.network == BuildNetwork::Host;
    for (key, value) in &build.contexts {
        resolved.contexts.insert(key.name.clone(), named(value, file, context)?);
    }
    for secret in &build.secrets {
        let id = secret.target.clone().unwrap_or_else(|| secret.source.value.clone());
        resolved.secrets.insert(id, files::secret_source("secret", secret, &file.secrets, true, context)?);
    }
    for (key, value) in &build.ssh {
        resolved.ssh.insert(key.name.clone(), agent(key, value.as_deref(), context)?);
    }
    for host in &build.extra_hosts {
        resolved.extra_hosts.push((host.name.clone(), address(host)?));
    }
    for tag in &build.tags {
        super::source::check_image(tag)?;
        resolved.tags.push(tag.value.clone());
    }
    Ok(resolved)
}

/// Only images of this kind of machine can be built.
fn check_platforms(platforms: &[Located<String>]) -> Checked<()> {
    let ours = format!("linux/{}", image::architecture());
    let is_ours = |platform: &Located<String>| {
        let rest = platform.value.strip_prefix(&ours);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match platforms {
        [] => Ok(()),
        several if several.iter().any(is_ours) => Ok(()),
        [first, ..] => Err(Fault::new(&first.span, format!("images are built for `{ours}` only"))
            .hint("leave `platforms` out, or add this one")),
    }
}

/// The git repository that is a build context, if it is one.
fn repository(written: &Located<String>) -> Checked<Option<String>> {
    let text = written.value.as_str();
    match images::repository(text) {
        Ok(found) => Ok(found),
        Err(problem) => Err(Fault::new(&written.span, format!("`{text}` {problem}"))
            .hint("a build context is a directory of this machine, or a git repository: `https://HOST/PATH.git#REF:DIRECTORY`")),
    }
}

/// A directory of the host.
fn directory(written: &Located<String>, what: &str, context: &Context<'_>) -> Checked<PathBuf> {
    let text = written.value.as_str();
    let directory = path(text, context);
    if directory.is_dir() {
        return Ok(directory);
    }
    let message = match directory.exists() {
        true => format!("`{}` is not a directory", shown(&directory, context)),
        false => format!("the build directory `{}` does not exist", shown(&directory, context)),
    };
    let fault = Fault::new(&written.span, message)
        .hint(format!("`{what}` is the directory of the Dockerfile, relative to this file"));
    Err(match near(&directory) {
        Some(name) => fault.hint(format!("did you mean `{name}`?")),
        None => fault,
    })
}

/// The name of what is beside `path`, which is not there, and was most likely meant.
fn near(path: &Path) -> Option<String> {
    let (beside, name) = (path.parent()?, path.file_name()?.to_str()?);
    let names = beside.read_dir().ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let names: Vec<String> = names.collect();
    nearest(name, names.iter().map(String::as_str)).map(str::to_owned)
}

/// One Dockerfile, whatever the base.
fn only(path: PathBuf) -> Vec<BaseDockerfile> {
    vec![BaseDockerfile { base: String::new(), path }]
}

/// The name of the Dockerfile, as it is written.
fn dockerfile_name(build: &BuildFile) -> &str {
    match (&build.inline, &build.dockerfile) {
        (Some(_), _) => INLINE,
        (None, Some(dockerfile)) => &dockerfile.value,
        (None, None) => DOCKERFILE,
    }
}

fn dockerfiles(
    build: &BuildFile,
    directory: &Path,
    bases: &[String],
    context: &Context<'_>,
) -> Checked<Vec<BaseDockerfile>> {
    let missing = |span: &Span, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        Fault::new(span, format!("`{}` has no {}", shown(directory, context), names.join(" or ")))
    };
    let span = &build.context.span;
    if build.inline.is_some() {
        return Ok(only(INLINE.into()));
    }
    if let Some(dockerfile) = &build.dockerfile {
        let path: PathBuf = directory.join(&dockerfile.value).components().collect();
        if !path.is_file() {
            let fault = missing(&dockerfile.span, &[&dockerfile.value]);
            return Err(match near(&path) {
                Some(name) => fault.hint(format!("did you mean `{name}`?")),
                None => fault.hint("`dockerfile` is relative to the build directory"),
            });
        }
        return Ok(only(path));
    }
    if bases.is_empty() {
        let path = directory.join(DOCKERFILE);
        if !path.is_file() {
            let fault = missing(span, &[DOCKERFILE]);
            return Err(match near(&path) {
                Some(name) => fault.hint(format!("did you mean `dockerfile: {name}`?")),
                None => fault.hint("name it with `dockerfile`"),
            });
        }
        return Ok(only(path));
    }
    let mut dockerfiles = Vec::new();
    for base in bases {
        let own = format!("Dockerfile.{base}");
        let names: &[&str] = match base.as_str() {
            "alpine" => &[&own, DOCKERFILE],
            _ => &[&own],
        };
        let path = names.iter().map(|name| directory.join(name)).find(|path| path.is_file());
        let path = path.ok_or_else(|| {
            missing(span, names).hint(format!("base `{base}` needs a Dockerfile in every build directory"))
        })?;
        dockerfiles.push(BaseDockerfile { base: base.clone(), path });
    }
    Ok(dockerfiles)
}

/// Refuses what the file does not have.
pub(super) fn check_declared(build: &BuildFile, file: &StackFile, format: Format) -> Checked<()> {
    for secret in &build.secrets {
        files::declared("secret", secret, &file.secrets, format)?;
    }
    for (_, context) in &build.contexts {
        if let Some(name) = context.value.strip_prefix("service:") {
            service(name, context, file)?;
        }
    }
    Ok(())
}

fn service<'a>(name: &str, written: &Located<String>, file: &'a StackFile) -> Checked<&'a ServiceFile> {
    find(file, name).ok_or_else(|| {
        Fault::new(&written.span, format!("there is no service `{name}`")).nearest(name, service_names(file))
    })
}

/// One of `additional_contexts`.
fn named(written: &Located<String>, file: &StackFile, context: &Context<'_>) -> Checked<BuildContext> {
    let text = written.value.as_str();
    if let Some(image) = text.strip_prefix("docker-image://") {
        super::source::check_image(&Located { span: written.span.clone(), value: image.to_owned() })?;
        return Ok(BuildContext::Image(image.to_owned()));
    }
    if let Some(repository) = repository(written)? {
        return Ok(BuildContext::Repository(repository));
    }
    let Some(name) = text.strip_prefix("service:") else {
        return Ok(BuildContext::Directory(directory(written, "additional_contexts", context)?));
    };
    let service = service(name, written, file)?;
    match (&service.build, &service.image) {
        (Some(_), _) => Ok(BuildContext::Service(name.to_owned())),
        (None, Some(image)) => Ok(BuildContext::Image(image.value.clone())),
        (None, None) => Err(Fault::new(&written.span, format!("service `{name}` has no image"))),
    }
}

/// The socket of an agent: the one given, or that of the user.
fn agent(key: &crate::file::node::Key, value: Option<&str>, context: &Context<'_>) -> Checked<PathBuf> {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        return Ok(path(value, context));
    }
    let socket = context.host.environment.get("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty());
    socket.map(PathBuf::from).ok_or_else(|| {
        Fault::new(&key.span, format!("ssh `{}` has no socket, and SSH_AUTH_SOCK is not set", key.name))
            .hint("start an agent: `eval $(ssh-agent) && ssh-add`")
    })
}
