//! How an image is built: which directory, which Dockerfiles, which values.

use std::path::PathBuf;

use super::{Context, fill, path, shown};
use crate::diagnostic::{Checked, Fault, Span};
use crate::file::build::BuildFile;
use crate::plan::{BaseDockerfile, Build, BuildNetwork};

/// What `build` of a service means.
pub(super) fn resolve(
    build: &BuildFile,
    image: String,
    bases: &[String],
    context: &Context<'_>,
) -> Checked<Build> {
    let directory = path(&build.context.value, context);
    if !directory.is_dir() {
        let message = match directory.exists() {
            true => format!("`{}` is not a directory", shown(&directory, context)),
            false => format!("the build directory `{}` does not exist", shown(&directory, context)),
        };
        return Err(Fault::new(&build.context.span, message)
            .hint("`build` is the directory of the Dockerfile, relative to this file"));
    }
    let missing = |span: &Span, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        Fault::new(span, format!("`{}` has no {}", shown(&directory, context), names.join(" or ")))
    };
    let span = &build.context.span;
    let mut dockerfiles = Vec::new();
    if let Some(dockerfile) = &build.dockerfile {
        let path: PathBuf = directory.join(&dockerfile.value).components().collect();
        if !path.is_file() {
            return Err(missing(&dockerfile.span, &[&dockerfile.value]));
        }
        let base = String::new();
        dockerfiles.push(BaseDockerfile { base, path });
    } else if bases.is_empty() {
        let path = directory.join("Dockerfile");
        if !path.is_file() {
            return Err(missing(span, &["Dockerfile"]).hint("name it with `dockerfile`"));
        }
        let base = String::new();
        dockerfiles.push(BaseDockerfile { base, path });
    }
    for base in bases.iter().filter(|_| build.dockerfile.is_none()) {
        let own = format!("Dockerfile.{base}");
        let names: &[&str] = match base.as_str() {
            "alpine" => &[&own, "Dockerfile"],
            _ => &[&own],
        };
        let path = names.iter().map(|name| directory.join(name)).find(|path| path.is_file());
        let path = path.ok_or_else(|| {
            missing(span, names).hint(format!("base `{base}` needs a Dockerfile in every build directory"))
        })?;
        let base = base.clone();
        dockerfiles.push(BaseDockerfile { base, path });
    }
    Ok(Build {
        image,
        context: directory.clone(),
        dockerfiles,
        args: fill(&build.args, context),
        target: build.target.clone(),
        network: build.network,
        allows_host_network: build.allows_host_network || build.network == BuildNetwork::Host,
    })
}
