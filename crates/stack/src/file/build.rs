//! How a service's image is built.

use super::mounts::ignored;
use super::node::{Key, Node, Value, unknown_key};
use super::service::check_variables;
use super::{Located, located};
use crate::diagnostic::{Checked, Fault, Span};
use crate::plan::BuildNetwork;

/// `build`.
#[derive(Debug)]
pub(crate) struct BuildFile {
    pub(crate) context: Located<String>,
    pub(crate) dockerfile: Option<Located<String>>,
    pub(crate) args: Vec<(Key, Option<String>)>,
    pub(crate) target: Option<String>,
    pub(crate) network: BuildNetwork,
    /// The entitlement `network.host`.
    pub(crate) allows_host_network: bool,
}

/// Reads `build`.
pub(super) fn parse(node: &Node, place: &str, warnings: &mut Vec<(Span, String)>) -> Checked<BuildFile> {
    const KNOWN: &[&str] = &["context", "dockerfile", "args", "target", "network", "entitlements"];
    const IGNORED: &[&str] = &[
        "additional_contexts",
        "cache_from",
        "cache_to",
        "extra_hosts",
        "isolation",
        "labels",
        "no_cache",
        "platforms",
        "privileged",
        "provenance",
        "pull",
        "sbom",
        "shm_size",
        "ssh",
        "tags",
        "ulimits",
    ];
    let place = format!("`build` of {place}");
    let plain = |context| BuildFile {
        context: located(node, context),
        dockerfile: None,
        args: Vec::new(),
        target: None,
        network: BuildNetwork::Own,
        allows_host_network: false,
    };
    if !matches!(node.value, Value::Map(_)) {
        return Ok(plain(node.text("build")?));
    }
    let mut build = plain(".".to_owned());
    for (key, node) in node.map("build")? {
        match key.name.as_str() {
            "context" => build.context = located(node, node.text("context")?),
            "dockerfile" => build.dockerfile = Some(located(node, node.text("dockerfile")?)),
            "args" => {
                build.args = node.pairs("args")?;
                check_variables(&build.args)?;
            }
            "target" => build.target = Some(node.text("target")?),
            "network" => {
                build.network = match node.text("network")?.as_str() {
                    "default" => BuildNetwork::Own,
                    "none" => BuildNetwork::None,
                    "host" => BuildNetwork::Host,
                    other => {
                        let message = format!("`network` of {place} cannot be `{other}`");
                        return Err(Fault::new(&node.span, message).hint("it is `default`, `none` or `host`"));
                    }
                };
            }
            "entitlements" => {
                for entitlement in node.texts("entitlements")? {
                    match entitlement.as_str() {
                        "network.host" => build.allows_host_network = true,
                        other => warnings.push((
                            node.span.clone(),
                            format!("entitlement `{other}` of {place} is not supported and is ignored"),
                        )),
                    }
                }
            }
            "dockerfile_inline" | "secrets" => {
                return Err(Fault::new(&key.span, format!("`{}` of {place} is not supported yet", key.name))
                    .hint("put the Dockerfile into the build directory"));
            }
            name if IGNORED.contains(&name) => warnings.push(ignored(key, &place)),
            name if name.starts_with("x-") => {}
            _ => return Err(unknown_key(key, &place, KNOWN.iter().copied())),
        }
    }
    Ok(build)
}
