//! Where `ADD` may fetch from: what a Dockerfile names is asked for in the host's network, where more is within reach than
//! its `RUN`s reach.

use std::io;
use std::net::ToSocketAddrs;

use sys::address::{host_of, is_hosts_own};
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, config::Config};

use crate::build::source::refused;
use crate::error::Result;

const WHY: &str = "only the host itself reaches that, on its loopback or a link-local address";
const HINT: &str = "the stack file can allow it: `entitlements: [network.host]` of `build`";

/// Finds servers that are not the host's own.
#[derive(Debug, Default)]
struct Outside(DefaultResolver);

impl Resolver for Outside {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.0.resolve(uri, config, timeout)?;
        // The user's proxy is the user's choice.
        if config.proxy().is_some_and(|proxy| proxy.uri() == uri) {
            return Ok(found);
        }
        let mut outside = self.empty();
        for address in found.iter().filter(|address| !is_hosts_own(address.ip())) {
            outside.push(*address);
        }
        match outside.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::PermissionDenied, WHY).into()),
            false => Ok(outside),
        }
    }
}

/// What fetches files; the host's own servers are asked only where `host` allows it. Redirections lead no further.
pub(super) fn agent(config: Config, host: bool) -> Agent {
    match host {
        true => Agent::new_with_config(config),
        false => Agent::with_parts(config, DefaultConnector::default(), Outside::default()),
    }
}

/// Refuses an address that names the host itself: a proxy, or `git`, would look up what it means by themselves.
///
/// # Errors
/// When its server is the host's own.
pub(super) fn check(address: &str) -> Result<()> {
    let host = host_of(address);
    // One that has no address yet is told by who asks it.
    let found = (host, 0).to_socket_addrs().into_iter().flatten();
    let mut addresses = host.parse().ok().into_iter().chain(found.map(|found| found.ip()));
    match addresses.any(is_hosts_own) {
        true => Err(refused(
            address,
            format!("names a server that is the host's own: {WHY}"),
            Some(HINT.to_owned()),
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_hosts_own_is_refused() {
        for address in [
            "http://127.0.0.1:8080/a",
            "https://localhost/a",
            "https://user:a@b@LOCALHOST:1/a",
            "http://[::1]/a",
            "http://[::ffff:127.0.0.1]:80/a",
            "http://0.0.0.0/a",
            "http://127.1/a",
            "http://2130706433/a",
            "http://169.254.169.254/latest/meta-data/",
            "http://[fd00:ec2::254]/latest/",
            "git@127.0.0.1:a/b.git",
            "ssh://git@localhost:22/a",
            "git://[fe80::1]/a",
        ] {
            let error = check(address).unwrap_err().to_string();
            assert!(error.contains("the host's own"), "{address}: {error}");
        }
        for address in ["http://192.0.2.1/a", "git@10.0.0.1:a", "https://[2001:db8::1]/a"] {
            assert!(check(address).is_ok(), "{address}");
        }
    }
}
