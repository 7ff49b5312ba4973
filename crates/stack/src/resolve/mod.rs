//! `StackFile` to `Plan`: names are looked up, paths made absolute, addresses given, order decided.
//!
//! Nothing is changed. What is looked at besides the model: whether paths exist.

mod addresses;
mod build;
mod develop;
mod files;
mod host;
mod mounts;
pub(crate) mod ports;
mod references;
mod replicas;
mod shared;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use network::plan::NetworkPlan;
use sha2::{Digest, Sha256};

use crate::diagnostic::{Checked, Fault, FileError, Span, nearest};
use crate::env_file;
use crate::file::dependencies::DependencyFile;
use crate::file::node::Key;
use crate::file::service::ServiceFile;
use crate::file::{Format, StackFile};
use crate::host::HostFacts;
use crate::interpolate::Variables;
use crate::load::{LoadOptions, read_private};
use crate::order::{Cycle, order};
use crate::plan::{Condition, Dependency, Plan, PortChoice, Service, Source};

pub(crate) use addresses::DEFAULT_NETWORK;
pub(crate) use references::check as check_references;

/// Everything that is settled before the file is looked at.
pub(crate) struct Context<'a> {
    pub(crate) options: &'a LoadOptions,
    /// Which ports are published instead of the file's.
    pub(crate) ports: PortChoice,
    /// The stack's.
    pub(crate) name: String,
    pub(crate) host: &'a HostFacts,
    pub(crate) format: Format,
    /// Absolute directory of the file.
    pub(crate) directory: PathBuf,
    pub(crate) variables: &'a Variables,
    /// Those that only secrets of included files have.
    pub(crate) included: &'a BTreeMap<String, String>,
    /// A script beside the file that writes `.env`.
    pub(crate) env_writer: Option<&'a str>,
}

impl Context<'_> {
    /// Adds warnings to those of the plan; they are errors with `--strict`.
    fn tell(&self, found: Vec<(Span, String)>, warnings: &mut Vec<String>) -> Result<(), FileError> {
        if self.options.strict
            && let Some((span, message)) = found.first()
        {
            let fault = Fault::new(span, message.clone());
            return Err(fault.hint("`--strict` makes warnings errors").into());
        }
        warnings.extend(found.iter().map(|(span, message)| format!("{}: {message}", span.place())));
        Ok(())
    }
}

/// Resolve a whole file.
pub(crate) fn plan(
    mut file: StackFile,
    context: &Context<'_>,
    mut warnings: Vec<String>,
) -> Result<Plan, FileError> {
    let mut found = addresses::dead_links(&file);
    let name = context.name.clone();
    let bases = bases(&file, context)?;
    shared::add_dependencies(&mut file)?;
    let order = start_order(&file)?;
    replicas::settle(&mut file, context)?;
    shared::check_owners(&file)?;
    ports::check_choice(&file, context)?;
    ports::check(&file, context)?;
    let network = addresses::networks(&file, context)?;

    let mut services = Vec::new();
    let mut volumes = BTreeSet::new();
    for service in &file.services {
        let environment = fill(&service.environment, context);
        let network_mode = shared::network_mode(service, &file);
        let named = shared::named(service, &network_mode, &file);
        let mut settled = Service {
            source: source::source(service, &name, &bases, &file, context, &mut found)?,
            environment,
            mounts: mounts::mounts(service, &file, context, &mut volumes, &mut found)?,
            secrets: files::secrets(service, &file, context)?,
            labels: labels(service, context)?,
            devices: host::devices(service, context, &mut found)?,
            ulimits: host::ulimits(service, context, &mut found),
            confinement: host::confinement(service, context)?,
            depends_on: dependencies(service, &file),
            ports: ports::published(service, context),
            moved_ports: ports::moved(service, context),
            extra_hosts: addresses::extra_hosts(named, &network, context.host)?,
            hostname: host_name(named, context),
            domainname: named.settled.domainname.clone(),
            dns_search: named.settled.dns_search.clone(),
            dns_opt: named.settled.dns_opt.clone(),
            network_mode,
            sharing: shared::sharing(service, &file),
            watch: develop::watched(service, context)?,
            ..service.settled.clone()
        };
        settled.config_hash = config_hash(&settled, service, &network);
        services.push(Some(settled));
    }
    mounts::check_sources(&file, context)?;
    context.tell(found, &mut warnings)?;
    let services = order.into_iter().filter_map(|index| services[index].take()).collect();
    Ok(Plan {
        name,
        directory: context.directory.clone(),
        services,
        volumes: volumes.into_iter().collect(),
        network,
        port_choice: context.ports.clone(),
        warnings,
    })
}

/// `uts: host` without `hostname` has the host's.
fn host_name(service: &ServiceFile, context: &Context<'_>) -> String {
    let keys = &service.network;
    let hosts = context.host.name.clone().filter(|_| keys.has_host_name && !keys.has_hostname);
    hosts.unwrap_or_else(|| service.settled.hostname.clone())
}

/// Bases in the order of preference; none when the file names none.
fn bases(file: &StackFile, context: &Context<'_>) -> Result<Vec<String>, FileError> {
    let named: Vec<&str> = file.base.iter().map(|base| base.value.as_str()).collect();
    match &context.options.base {
        None => Ok(named.into_iter().map(str::to_owned).collect()),
        Some(forced) if named.is_empty() || named.contains(&forced.as_str()) => Ok(vec![forced.clone()]),
        Some(forced) => Err(FileError::Option {
            message: format!(
                "base `{forced}` is none of those that `{}` names: {}",
                file.span.source.path.display(),
                named.join(", ")
            ),
            hint: nearest(forced, named).map(|found| format!("did you mean `{found}`?")),
        }),
    }
}

fn find<'a>(file: &'a StackFile, name: &str) -> Option<&'a ServiceFile> {
    file.services.iter().find(|service| service.key.name == name)
}

fn service_names(file: &StackFile) -> impl Iterator<Item = &str> + Clone {
    file.services.iter().map(|service| service.key.name.as_str())
}

fn start_order(file: &StackFile) -> Checked<Vec<usize>> {
    let mut graph = Vec::new();
    for service in &file.services {
        let mut needed = Vec::new();
        for dependency in &service.depends_on {
            let name = &dependency.service.value;
            match service_names(file).position(|other| other == name) {
                Some(index) => {
                    check_condition(service, dependency, &file.services[index])?;
                    needed.push(index);
                }
                None if !dependency.required => {}
                None => {
                    return Err(Fault::new(
                        &dependency.service.span,
                        format!("service `{}` depends on `{name}`, which does not exist", service.key.name),
                    )
                    .label("no such service")
                    .hint(format!("the services are: {}", service_names(file).collect::<Vec<_>>().join(", ")))
                    .nearest(name, service_names(file)));
                }
            }
        }
        graph.push(needed);
    }
    order(&graph).map_err(|Cycle(path)| {
        let names: Vec<&str> = path.iter().map(|index| file.services[*index].key.name.as_str()).collect();
        let next = names[1];
        let first = &file.services[path[0]];
        let span = first
            .depends_on
            .iter()
            .find(|dependency| dependency.service.value == next)
            .map_or(&first.key.span, |dependency| &dependency.service.span);
        Fault::new(span, format!("the services depend on each other: {}", names.join(" -> ")))
            .hint("remove one of these dependencies")
    })
}

/// Refuse a wait that cannot end well.
fn check_condition(service: &ServiceFile, dependency: &DependencyFile, needed: &ServiceFile) -> Checked<()> {
    let disabled = matches!(&needed.settled.healthcheck, Some(check) if check.test.is_none());
    if dependency.condition == Condition::Healthy && disabled {
        let (name, needed) = (&service.key.name, &needed.key.name);
        return Err(Fault::new(
            &dependency.service.span,
            format!("`{name}` waits until `{needed}` is healthy, but that has its health check disabled"),
        )
        .hint(format!("use `started`, or give `{needed}` a health check")));
    }
    Ok(())
}

fn dependencies(service: &ServiceFile, file: &StackFile) -> Vec<Dependency> {
    service
        .depends_on
        .iter()
        // One that is not required may be absent.
        .filter(|dependency| service_names(file).any(|name| name == dependency.service.value))
        .map(|dependency| Dependency {
            service: dependency.service.value.clone(),
            condition: dependency.condition,
            optional: !dependency.required,
            restart: dependency.restart,
        })
        .collect()
}

/// An absolute path of a path in the file.
fn path(text: &str, context: &Context<'_>) -> PathBuf {
    let expanded = match (text.strip_prefix('~'), &context.host.home) {
        (Some(""), Some(home)) => home.clone(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => PathBuf::from(text),
    };
    // `.` only; `..` means what the kernel makes of it, symbolic links included.
    context.directory.join(expanded).components().collect()
}

/// The path for a message: relative to the file's directory where it is below it.
fn shown<'a>(path: &'a Path, context: &Context<'_>) -> std::path::Display<'a> {
    match path.strip_prefix(&context.directory) {
        Ok(relative) if !relative.as_os_str().is_empty() => relative.display(),
        _ => path.display(),
    }
}

/// Variables; one without a value is taken from ours, or left out.
fn fill(pairs: &[(Key, Option<String>)], context: &Context<'_>) -> BTreeMap<String, String> {
    pairs
        .iter()
        .filter_map(|(key, value)| {
            let value = match value {
                Some(value) => value.clone(),
                None => context.variables.get(&key.name)?.to_owned(),
            };
            Some((key.name.clone(), value))
        })
        .collect()
}

/// Those of `label_file`, in their order, then those of the file itself.
fn labels(service: &ServiceFile, context: &Context<'_>) -> Result<BTreeMap<String, String>, FileError> {
    let mut labels = BTreeMap::new();
    for file in &service.label_files {
        let path = path(&file.value, context);
        if !path.is_file() {
            let message = format!("the file of labels `{}` does not exist", shown(&path, context));
            return Err(Fault::new(&file.span, message).into());
        }
        labels.extend(env_file::raw(&read_private(&path)?.text));
    }
    labels.extend(service.settled.labels.clone());
    Ok(labels)
}

/// What of a service's configuration needs a new container when it changes.
///
/// Left out are what it waits for (the order of a start that is over), what is watched on the host, how many containers run it, and how its
/// image is built (a changed image is noticed by its own identity). Addresses that the file does not name are left out
/// too: a service that is added in front of others shifts theirs, and nobody may rely on them.
/// Published ports are in, though they live outside of the container: compose recreates for them, too. How
/// many replicas there are is no matter of a single one, and what netd alone heeds (balancing, egress, `dns`)
/// is changed while containers run.
fn config_hash(service: &Service, file: &ServiceFile, network: &NetworkPlan) -> String {
    let mut relevant = service.clone();
    relevant.config_hash = String::new();
    relevant.replicas = 1;
    relevant.depends_on = Vec::new();
    relevant.watch = Vec::new();
    if let Source::Build(build) = &relevant.source {
        relevant.source = Source::Image(build.image.clone());
    }
    let endpoint = network.endpoints.iter().find(|endpoint| endpoint.service == service.name);
    let links: Vec<(&str, &[String])> = endpoint
        .into_iter()
        .flat_map(|endpoint| &endpoint.interfaces)
        .map(|interface| (interface.network.as_str(), interface.aliases.as_slice()))
        .collect();
    let fixed: Vec<_> = (file.network.networks.iter().flatten())
        .map(|network| {
            let address = network.address.as_ref().map(|address| address.value);
            (address, network.mac.as_ref().map(|mac| mac.value))
        })
        .collect();
    let mac = file.network.mac.as_ref().map(|mac| mac.value);
    // Maps are ordered and fields come in the order of their declaration: the same value is always the
    // same text.
    let text = match serde_json::to_string(&(&relevant, &links, &fixed, &mac)) {
        Ok(text) => text,
        // Only a float that is not finite could fail, and none is let into a plan.
        Err(error) => error.to_string(),
    };
    hex(&Sha256::digest(text.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
