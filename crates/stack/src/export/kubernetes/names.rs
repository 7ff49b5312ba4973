//! Names in a cluster: labels of DNS, in lower case.

use std::collections::BTreeMap;

use super::mounts;
use crate::diagnostic::{Fault, FileError};
use crate::export::Stack;
use crate::export::told::Told;

/// What services and volumes are called.
pub(super) struct Names {
    services: BTreeMap<String, String>,
    claims: BTreeMap<String, String>,
}

impl Names {
    /// # Errors
    /// When two services would have the same name.
    pub(super) fn of(stack: &Stack, told: &Told<'_>) -> Result<Self, FileError> {
        let mut services: BTreeMap<String, String> = BTreeMap::new();
        for service in &stack.plan.services {
            let name = service_label(&service.name);
            if let Some((other, _)) = services.iter().find(|(_, taken)| **taken == name) {
                let message = format!(
                    "services `{other}` and `{}` would both be called `{name}` in a cluster",
                    service.name
                );
                let place = told.place("services", &service.name);
                return Err(Fault::new(&place, message)
                    .other(&told.place("services", other), "the other one")
                    .hint("give one of them a name of lower-case letters, digits and `-`")
                    .into());
            }
            services.insert(service.name.clone(), name);
        }
        let volumes = stack.plan.services.iter().flat_map(mounts::volumes_of);
        let claims = volumes.map(|(name, _)| (name.to_owned(), label(name))).collect();
        Ok(Self { services, claims })
    }

    pub(super) fn service<'a>(&'a self, name: &'a str) -> &'a str {
        self.services.get(name).map_or(name, String::as_str)
    }

    pub(super) fn claim<'a>(&'a self, name: &'a str) -> &'a str {
        self.claims.get(name).map_or(name, String::as_str)
    }

    pub(super) fn is_service(&self, name: &str) -> bool {
        self.services.values().any(|taken| taken == name)
    }
}

/// A label of RFC 1123: lower-case letters, digits and `-`, not at the ends, 63 at the most.
pub(super) fn label(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let label: String = name.chars().map(plain).take(63).collect();
    label.trim_matches('-').to_owned()
}

/// A label of RFC 1035, as a `Service` must have: it begins with a letter.
pub(super) fn service_label(name: &str) -> String {
    let label = label(name);
    match label.starts_with(|c: char| c.is_ascii_digit()) {
        true => format!("s-{label}"),
        false => label,
    }
}

/// Whether a name is one of a `Service`.
pub(super) fn is_service_label(name: &str) -> bool {
    service_label(name) == name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_labels() {
        for (name, expected) in [
            ("web", "web"),
            ("My_Db.1", "my-db-1"),
            ("1up", "s-1up"),
            ("a-", "a"),
            (&"x".repeat(70), &"x".repeat(63)),
        ] {
            assert_eq!(service_label(name), expected, "{name}");
        }
        assert!(is_service_label("web-2") && !is_service_label("edge.internal") && !is_service_label("Web"));
    }
}
