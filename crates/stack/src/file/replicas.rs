//! How many containers run a service, and how connections are spread over them.

use network::balance::{Algorithm, Balance, UnknownAlgorithm};

use super::keys::{self, Level};
use super::node::{Key, Node, Value, unknown_key};
use super::{Located, located};
use crate::diagnostic::{Checked, Fault, Span};

/// What the file says about the replicas of a service.
#[derive(Debug, Default)]
pub(crate) struct ReplicasFile {
    /// Their number, if the file has one.
    pub(crate) stated: Option<Located<u16>>,
    pub(crate) balance: Option<Located<Balance>>,
    /// `endpoint_mode: dnsrr`.
    pub(crate) without_virtual_address: bool,
}

/// Keys of a service that [`ReplicasFile::read`] knows.
pub(super) const KEYS: [&str; 3] = ["balance", "replicas", "scale"];

/// One machine has no use for more.
pub(crate) const MAX: u16 = 1000;

/// Of a service whose file says nothing about it.
pub(crate) const fn default_balance() -> Balance {
    Balance { policy: Algorithm::RoundRobin, retry: 1 }
}

impl ReplicasFile {
    /// Reads one of [`KEYS`].
    pub(super) fn read(&mut self, name: &str, node: &Node, place: &str) -> Checked<()> {
        match name {
            "balance" => self.balance = Some(located(node, balance(node, place)?)),
            _ => self.state(number(node, name)?)?,
        }
        Ok(())
    }

    /// Reads a key of `deploy`.
    pub(super) fn read_deploy(
        &mut self,
        key: &Key,
        node: &Node,
        place: &str,
        warnings: &mut Vec<(Span, String)>,
    ) -> Checked<()> {
        match key.name.as_str() {
            "replicas" => self.state(number(node, "replicas")?)?,
            "endpoint_mode" => {
                let mode = node.text("endpoint_mode")?;
                self.without_virtual_address = match mode.as_str() {
                    "vip" => false,
                    "dnsrr" => true,
                    _ => {
                        return Err(Fault::new(&node.span, format!("`{mode}` is not an `endpoint_mode`"))
                            .hint("use `vip` (one address for all replicas) or `dnsrr` (the replicas' own)")
                            .nearest(&mode, ["vip", "dnsrr"]));
                    }
                };
            }
            "mode" => {
                let mode = node.text("mode")?;
                match mode.as_str() {
                    "replicated" => {}
                    "global" => {
                        let text =
                            format!("`mode: global` in {place} means one container: there is one machine");
                        warnings.push((node.span.clone(), text));
                        self.state(located(node, 1))?;
                    }
                    _ => {
                        return Err(Fault::new(&node.span, format!("`{mode}` is not supported as `mode`"))
                            .hint("use `replicated`")
                            .nearest(&mode, ["replicated", "global"]));
                    }
                }
            }
            _ => update(node, place, warnings)?,
        }
        Ok(())
    }

    /// Takes a number from one of the keys that can say it.
    fn state(&mut self, number: Located<u16>) -> Checked<()> {
        if let Some(first) = &self.stated
            && first.value != number.value
        {
            let message =
                format!("the number of replicas is {} here and {} there", number.value, first.value);
            return Err(Fault::new(&number.span, message)
                .other(&first.span, "first said here")
                .hint("keep one of the two"));
        }
        self.stated = Some(number);
        Ok(())
    }
}

fn number(node: &Node, what: &str) -> Checked<Located<u16>> {
    let number = node.integer(what, 0, MAX.into())?;
    Ok(located(node, u16::try_from(number).unwrap_or(MAX)))
}

/// `update_config`: the order is `up --rolling`'s, the rest is decided by health alone.
fn update(node: &Node, place: &str, warnings: &mut Vec<(Span, String)>) -> Checked<()> {
    let place = format!("`update_config` in {place}");
    for (key, node) in node.map("update_config")? {
        if !keys::UPDATE_CONFIG.admits(key, &key.name, &place, warnings)? {
            continue;
        }
        if key.name != "order" {
            return Err(Level::unread(key, &place));
        }
        let order = node.text("order")?;
        match order.as_str() {
            "start-first" => {}
            "stop-first" => {
                let text = format!(
                    "`order: stop-first` of {place} is ignored: it is what `up` without `--rolling` does"
                );
                warnings.push((node.span.clone(), text));
            }
            _ => {
                return Err(Fault::new(&node.span, format!("`{order}` is not an order"))
                    .hint("use `start-first`")
                    .nearest(&order, ["start-first", "stop-first"]));
            }
        }
    }
    Ok(())
}

/// A policy, or a table.
fn balance(node: &Node, place: &str) -> Checked<Balance> {
    let mut balance = default_balance();
    let Value::Map(entries) = &node.value else {
        balance.policy = policy(node, "balance")?;
        return Ok(balance);
    };
    for (key, node) in entries {
        match key.name.as_str() {
            "policy" => balance.policy = policy(node, "policy")?,
            "retry" => balance.retry = u32::try_from(node.integer("retry", 0, MAX.into())?).unwrap_or(1),
            _ => return Err(unknown_key(key, &format!("`balance` of {place}"), ["policy", "retry"])),
        }
    }
    Ok(balance)
}

fn policy(node: &Node, what: &str) -> Checked<Algorithm> {
    let text = node.text(what)?;
    text.parse().map_err(|error: UnknownAlgorithm| {
        Fault::new(&node.span, error.to_string())
            .hint(error.hint())
            .nearest(&text, Algorithm::ALL.map(Algorithm::name))
    })
}
