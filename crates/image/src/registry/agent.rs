//! How connections are made: deadlines, and whom to trust.

use std::path::PathBuf;

use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PemItem, RootCerts, TlsConfig, parse_pem};

use super::error::{Problem, RegistryError};
use super::settings::{ClientCertificate, Endpoint, Timing};
use crate::error::{Error, Result};

/// Where distributions keep the certificates of the authorities that they trust.
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// What makes the connections to a registry, and shows this certificate to servers that want one.
pub(super) fn agent(
    endpoint: &Endpoint,
    certificate: Option<&ClientCertificate>,
    timing: &Timing,
) -> Result<Agent> {
    let own = certificate.map(|certificate| client_certificate(endpoint, certificate)).transpose()?;
    let tls = TlsConfig::builder().root_certs(authorities(endpoint)?).client_cert(own).build();
    let config = Agent::config_builder()
        .user_agent(concat!("inception-run/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        // Followed by us: who gets our credentials is no library's business.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_resolve(Some(timing.connect))
        .timeout_connect(Some(timing.connect))
        .timeout_per_read(Some(timing.stall))
        .timeout_per_write(Some(timing.stall))
        .timeout_recv_response(Some(timing.answer))
        .tls_config(tls)
        // Each request has its own, or none.
        .proxy(None);
    Ok(config.build().new_agent())
}

/// Whom to trust: the system's authorities, or the usual ones where it has none; and those named for this registry.
fn authorities(endpoint: &Endpoint) -> Result<RootCerts> {
    let mut trusted: Vec<Certificate<'static>> = Vec::new();
    for text in &endpoint.authorities {
        let before = trusted.len();
        trusted.extend(certificates(text.as_bytes()));
        if trusted.len() == before {
            return Err(refused(endpoint, "the certificate of its authority (`ca.crt`) cannot be read"));
        }
    }
    let configured = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let files = configured.into_iter().chain(AUTHORITIES.into_iter().map(Into::into));
    let system = files.filter_map(|file| std::fs::read(file).ok()).find(|text| !text.is_empty());
    match system {
        Some(text) => trusted.extend(certificates(&text)),
        None if trusted.is_empty() => return Ok(RootCerts::WebPki),
        None => {}
    }
    Ok(RootCerts::new_with_certs(&trusted))
}

fn client_certificate(endpoint: &Endpoint, certificate: &ClientCertificate) -> Result<ClientCert> {
    let chain = certificates(certificate.chain.as_bytes());
    let key = parse_pem(certificate.key.as_bytes()).filter_map(Result::ok).find_map(|item| match item {
        PemItem::PrivateKey(key) => Some(key),
        _ => None,
    });
    match key.filter(|_| !chain.is_empty()) {
        Some(key) => Ok(ClientCert::new_with_certs(&chain, key)),
        None => {
            Err(refused(endpoint, "the certificate that it is to know us by, or its key, cannot be read"))
        }
    }
}

fn refused(endpoint: &Endpoint, problem: &str) -> Error {
    let problem = Problem::Refused { problem: problem.to_owned() };
    RegistryError { registry: endpoint.name.clone(), repository: None, problem }.into()
}

/// The certificates of a PEM file. One that cannot be read vouches for nobody.
fn certificates(text: &[u8]) -> Vec<Certificate<'static>> {
    let items = parse_pem(text).filter_map(Result::ok);
    items
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect()
}
