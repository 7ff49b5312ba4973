//! How a service's image is built.

use std::net::IpAddr;

use super::keys::{self, Level};
use super::mounts::bytes;
use super::network::{ExtraHost, extra_hosts};
use super::node::{Key, Node, Value};
use super::process::{text_map, ulimits};
use super::secrets::{Grant, grants};
use super::service::check_variables;
use super::{Located, located};
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::{Build, BuildNetwork};

/// `build`.
#[derive(Debug)]
pub(crate) struct BuildFile {
    pub(crate) context: Located<String>,
    pub(crate) dockerfile: Option<Located<String>>,
    pub(crate) inline: Option<Located<String>>,
    pub(crate) args: Vec<(Key, Option<String>)>,
    /// What names in the Dockerfile mean, as written.
    pub(crate) contexts: Vec<(Key, Located<String>)>,
    pub(crate) secrets: Vec<Grant>,
    pub(crate) ssh: Vec<(Key, Option<String>)>,
    pub(crate) extra_hosts: Vec<ExtraHost>,
    pub(crate) platforms: Vec<Located<String>>,
    pub(crate) tags: Vec<Located<String>>,
    /// What the file alone decides; `resolve` fills in the rest.
    pub(crate) settled: Build,
}

/// Reads `build`.
pub(super) fn parse(node: &Node, place: &str, warnings: &mut Vec<(Span, String)>) -> Checked<BuildFile> {
    let place = format!("`build` of {place}");
    let plain = |context| BuildFile {
        context: located(node, context),
        dockerfile: None,
        inline: None,
        args: Vec::new(),
        contexts: Vec::new(),
        secrets: Vec::new(),
        ssh: Vec::new(),
        extra_hosts: Vec::new(),
        platforms: Vec::new(),
        tags: Vec::new(),
        settled: Build::default(),
    };
    if !matches!(node.value, Value::Map(_)) {
        return Ok(plain(node.text("build")?));
    }
    let mut build = plain(".".to_owned());
    for (key, node) in node.map("build")? {
        if keys::BUILD.admits(key, &key.name, &place, warnings)? && !node.is_null() {
            read(&mut build, key, node, &place, warnings)?;
        }
    }
    if let (Some(_), Some(inline)) = (&build.dockerfile, &build.inline) {
        return Err(Fault::new(&inline.span, format!("{place} has `dockerfile` and `dockerfile_inline`"))
            .hint("keep one of them"));
    }
    Ok(build)
}

fn read(
    build: &mut BuildFile,
    key: &Key,
    node: &Node,
    place: &str,
    warnings: &mut Vec<(Span, String)>,
) -> Checked<()> {
    let settled = &mut build.settled;
    match key.name.as_str() {
        "context" => build.context = located(node, node.text("context")?),
        "dockerfile" => build.dockerfile = Some(located(node, node.text("dockerfile")?)),
        "dockerfile_inline" => build.inline = Some(located(node, node.text("dockerfile_inline")?)),
        "args" => {
            build.args = node.pairs("args")?;
            check_variables(&build.args)?;
        }
        "target" => settled.target = Some(node.text("target")?).filter(|target| !target.is_empty()),
        "network" => settled.network = network(node, place)?,
        "entitlements" => {
            for entitlement in node.texts("entitlements")? {
                match entitlement.as_str() {
                    "network.host" => settled.allows_host_network = true,
                    "security.insecure" => settled.allows_insecure = true,
                    other => warnings.push((
                        node.span.clone(),
                        format!("entitlement `{other}` of {place} is not known and is ignored"),
                    )),
                }
            }
        }
        "privileged" => settled.allows_insecure |= node.boolean("privileged")?,
        "additional_contexts" => {
            for (key, value) in node.pairs("additional_contexts")? {
                let value = value.filter(|value| !value.is_empty()).ok_or_else(|| {
                    Fault::new(&key.span, format!("context `{}` of {place} has no value", key.name))
                        .hint("write `NAME: PATH`, `NAME: docker-image://IMAGE` or `NAME: service:SERVICE`")
                })?;
                let span = key.span.clone();
                build.contexts.push((key, Located { span, value }));
            }
        }
        "secrets" => build.secrets = grants(node, "secrets", warnings)?,
        "ssh" => {
            build.ssh = match &node.value {
                Value::String(_) => vec![(Key { name: node.text("ssh")?, span: node.span.clone() }, None)],
                _ => node.pairs("ssh")?,
            }
        }
        "labels" => settled.labels = text_map(node, "labels")?,
        "tags" => {
            for item in node.list("tags")? {
                build.tags.push(located(item, item.text("tags")?));
            }
        }
        "extra_hosts" => build.extra_hosts = extra_hosts(node)?,
        "shm_size" => settled.shm_size = Some(bytes(node, "shm_size")?),
        "ulimits" => settled.ulimits = ulimits(node)?,
        "no_cache" => settled.no_cache = node.boolean("no_cache")?,
        "pull" => settled.pull = node.boolean("pull")?,
        "platforms" => {
            for item in node.list("platforms")? {
                build.platforms.push(located(item, item.text("platforms")?));
            }
        }
        "isolation" => match node.text("isolation")?.as_str() {
            "default" => {}
            other => {
                let message = format!("`isolation: {other}` of {place} is for Windows");
                return Err(Fault::new(&node.span, message).hint("leave it out"));
            }
        },
        _ => return Err(Level::unread(key, place)),
    }
    Ok(())
}

fn network(node: &Node, place: &str) -> Checked<BuildNetwork> {
    match node.text("network")?.as_str() {
        "default" => Ok(BuildNetwork::Own),
        "none" => Ok(BuildNetwork::None),
        "host" => Ok(BuildNetwork::Host),
        other => {
            let message = format!("`network` of {place} cannot be `{other}`");
            Err(Fault::new(&node.span, message).hint("it is `default`, `none` or `host`"))
        }
    }
}

/// The address of an entry of `extra_hosts`, which a build can have no gateway for.
pub(crate) fn address(host: &ExtraHost) -> Checked<IpAddr> {
    host.address.ok_or_else(|| {
        Fault::new(&host.span, format!("`{}`: a build has no `host-gateway`", host.name))
            .hint("write an address")
    })
}
