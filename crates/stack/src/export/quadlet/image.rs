//! Units that make images: a `.build` for each that is built, an `.image` for each that is fetched at every start.
//!
//! Podman 5.2 is the first with `.build`. The keys are those of that version; what came later, and what options of
//! podman-build(1) alone say, is `PodmanArgs=`.

use base64::Engine;

use super::{Writer, bound};
use crate::diagnostic::{Fault, FileError};
use crate::export::unit::{Unit, literal, word};
use crate::export::{ExportedFile, is_password};
use crate::plan::{Build, BuildContext, BuildNetwork, PullPolicy, SecretSource, Service, Source};
use crate::spec;

/// The Dockerfile that Podman finds by itself.
const DOCKERFILE: &str = "Dockerfile";

impl Writer<'_> {
    /// The unit that a service's image comes from, where one makes it.
    pub(super) fn maker(&self, service: &Service) -> Option<String> {
        if !self.options.build {
            return None;
        }
        let built = match &service.source {
            Source::Build(_) => Some(service),
            Source::Image(name) => self.stack.plan.services.iter().find(
                |other| matches!(&other.source, Source::Build(build) if build.image == *name || build.tags.contains(name)),
            ),
            Source::Rootfs(_) => None,
        };
        match built {
            Some(built) => Some(format!("{}.build", self.name(&built.name))),
            None if is_fetched_anew(service) => Some(format!("{}.image", self.name(&service.name))),
            None => None,
        }
    }

    /// The unit that makes a service's own image.
    pub(super) fn image(&mut self, service: &Service) -> Result<Option<ExportedFile>, FileError> {
        let own = format!("{}.image", self.name(&service.name));
        Ok(match (self.maker(service), &service.source) {
            (Some(name), Source::Build(build)) => {
                let unit = self.build(service, build)?;
                // Whoever may read the unit may read the values of arguments.
                let private = build.args.keys().any(|name| is_password(name));
                Some(ExportedFile { name, text: unit.text(), private })
            }
            (Some(name), Source::Image(_)) if name == own => {
                Some(ExportedFile::new(name, self.fetched(service).text()))
            }
            // Another service's unit, or none.
            _ => None,
        })
    }

    fn describe(&self, service: &Service, unit: &mut Unit) {
        unit.section("Unit");
        let (name, stack) = (&service.name, &self.stack.plan.name);
        unit.line("Description", literal(&format!("the image of {name} of the stack {stack}")));
    }

    fn fetched(&self, service: &Service) -> Unit {
        let mut unit = Unit::default();
        self.describe(service, &mut unit);
        unit.section("Image");
        unit.line("Image", literal(&spec::image_name(service)));
        if let Some(platform) = &service.platform {
            unit.option("--platform", platform);
        }
        unit
    }

    fn build(&mut self, service: &Service, build: &Build) -> Result<Unit, FileError> {
        let mut unit = Unit::default();
        self.describe(service, &mut unit);
        for other in build.contexts.values().filter_map(BuildContext::service) {
            let other = format!("{}-build.service", self.name(other));
            unit.line("Requires", &other);
            unit.line("After", other);
        }
        unit.section("Build");
        unit.line("ImageTag", literal(&build.image));
        // More than one `ImageTag=` is of a later version.
        for tag in &build.tags {
            unit.option("--tag", tag);
        }
        self.context(service, build, &mut unit)?;
        if let Some(target) = &build.target {
            unit.line("Target", literal(target));
        }
        for (name, value) in &build.args {
            unit.option("--build-arg", &format!("{name}={value}"));
        }
        for (name, value) in &build.labels {
            unit.line("Label", word(&format!("{name}={value}")));
        }
        self.contexts(build, &mut unit);
        self.build_secrets(service, build, &mut unit);
        self.instructions(service, build, &mut unit);
        if build.no_cache {
            unit.flag("--no-cache");
        }
        // `Pull=` of 5.2 makes two words of it, of which the second would be the context.
        if build.pull {
            unit.option("--pull", "always");
        }
        Ok(unit)
    }

    /// What the image is built from.
    fn context(&self, service: &Service, build: &Build, unit: &mut Unit) -> Result<(), FileError> {
        match &build.repository {
            Some(address) if !is_address(address) => {
                let message = format!("Quadlet takes the repository `{address}` for a directory");
                let hint = "write it as `https://...`, or leave `--build` out and let Podman have the image that is built here";
                let place = self.told.place_of(&service.name, &["build.context", "build"]);
                return Err(Fault::new(&place, message).hint(hint).into());
            }
            Some(address) => unit.line("SetWorkingDirectory", literal(address)),
            None => {
                unit.line("SetWorkingDirectory", literal(&build.context.display().to_string()));
            }
        }
        let dockerfile = build.dockerfiles.first().map(|dockerfile| dockerfile.path.display().to_string());
        match (&build.inline, dockerfile) {
            (Some(text), _) => {
                unit.line("File", "-");
                unit.section("Service");
                unit.line("StandardInput", "data");
                let text = base64::engine::general_purpose::STANDARD.encode(text);
                unit.line("StandardInputData", text);
                unit.section("Build");
            }
            (None, Some(path)) if path != DOCKERFILE => unit.line("File", literal(&path)),
            (None, _) => {}
        }
        Ok(())
    }

    fn contexts(&self, build: &Build, unit: &mut Unit) {
        for (name, context) in &build.contexts {
            let meaning = match context {
                BuildContext::Directory(path) => path.display().to_string(),
                BuildContext::Repository(address) => address.clone(),
                BuildContext::Image(image) => format!("docker-image://{image}"),
                BuildContext::Service(other) => {
                    let image = self.stack.service(other).map(spec::image_name).unwrap_or_default();
                    format!("docker-image://{image}")
                }
            };
            unit.option("--build-context", &format!("{name}={meaning}"));
        }
    }

    fn build_secrets(&mut self, service: &Service, build: &Build, unit: &mut Unit) {
        for (id, source) in &build.secrets {
            let problem = match source {
                SecretSource::File(path) => {
                    unit.line("Secret", word(&format!("id={id},src={}", path.display())));
                    continue;
                }
                SecretSource::Environment(name) => {
                    unit.line("Secret", word(&format!("id={id},type=env,env={name}")));
                    format!(
                        "is the variable `{name}` of systemd's own environment (`systemctl --user set-environment`)"
                    )
                }
                SecretSource::Content(_) => {
                    "is not there: keep its value in a file, and name that with `file`".to_owned()
                }
            };
            let message = format!(
                "Podman has no word for the value of a secret that is for a build: `{id}` of service `{}` {problem}",
                service.name
            );
            self.told.service(&service.name, &["build.secrets", "build"], message);
        }
        for (id, socket) in &build.ssh {
            unit.option("--ssh", &format!("{id}={}", socket.display()));
            let message = format!(
                "the agent `{id}` of service `{}` is asked at {}, where it must be whenever Podman builds",
                service.name,
                socket.display()
            );
            self.told.service(&service.name, &["build.ssh", "build"], message);
        }
    }

    /// What surrounds `RUN` instructions.
    fn instructions(&mut self, service: &Service, build: &Build, unit: &mut Unit) {
        match build.network {
            BuildNetwork::Own => {}
            BuildNetwork::None => unit.line("Network", "none"),
            BuildNetwork::Host => unit.line("Network", "host"),
        }
        for (name, address) in &build.extra_hosts {
            unit.option("--add-host", &format!("{name}:{address}"));
        }
        if let Some(bytes) = build.shm_size {
            unit.option("--shm-size", &format!("{bytes}b"));
        }
        for (name, (soft, hard)) in &build.ulimits {
            unit.option("--ulimit", &format!("{name}={}:{}", bound(*soft), bound(*hard)));
        }
        if build.allows_insecure {
            let message = format!(
                "Podman has no word for `RUN --security=insecure`: the build of service `{}` does without",
                service.name
            );
            let keys = ["build.entitlements", "build.privileged", "build"];
            self.told.service(&service.name, &keys, message);
        }
    }
}

/// Whether a service's image is asked for at every start.
fn is_fetched_anew(service: &Service) -> bool {
    let always = matches!(service.pull_policy, Some(PullPolicy::Always | PullPolicy::Every(_)));
    always && matches!(service.source, Source::Image(_))
}

/// Whether Quadlet takes a build context for an address; all else are paths to it.
fn is_address(text: &str) -> bool {
    ["http://", "https://", "git://", "github.com/"].iter().any(|begin| text.starts_with(begin))
}
