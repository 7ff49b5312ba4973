//! PID and IPC namespaces that services share.

use super::tests::{Fixture, host};
use super::*;
use crate::plan::{Condition, Service};

/// `s` with these keys, and `db`, whose container is called `data`, with others.
fn beside_db(keys: &str, of_db: &str) -> Result<(Plan, Service), String> {
    let text = format!(
        "services:\n  s: {{ image: i, {keys} }}\n  db: {{ image: i, container_name: data, {of_db} }}\n  c: {{ image: i, pid: 'service:db' }}\n"
    );
    let fixture = Fixture::new(&[("compose.yaml", &text)]);
    let plan = load(&fixture.options("compose.yaml"), &host()).map_err(|error| error.render(false))?;
    let service = plan.services.iter().find(|service| service.name == "s").unwrap().clone();
    Ok((plan, service))
}

#[test]
fn namespaces_that_are_shared() {
    for keys in ["pid: 'service:db', ipc: 'service:db'", "pid: 'container:data', ipc: 'container:db'"] {
        let (plan, service) = beside_db(keys, "").unwrap();
        assert_eq!(service.sharing.owners().collect::<Vec<_>>(), ["db", "db"], "{keys}");
        assert!(
            service.depends_on.iter().any(|d| d.service == "db" && d.restart),
            "{:?}",
            service.depends_on
        );
        assert_eq!(plan.services[0].name, "db", "it starts first");
    }
    // Whose it is in the end, and what was said of the dependency stays.
    let keys = "pid: 'service:c', depends_on: { c: { condition: service_completed_successfully } }";
    let (_, service) = beside_db(keys, "").unwrap();
    assert_eq!(service.sharing.pid.as_deref(), Some("db"));
    assert!(service.depends_on[0].restart && service.depends_on[0].condition == Condition::Completed);
    for (keys, of_db, message) in [
        ("pid: 'service:bd'", "", "shares the PID namespace of `bd`, which does not exist"),
        ("pid: 'service:s'", "", "depend on each other"),
        ("pid: 'service:db'", "ipc: 'service:s'", "depend on each other"),
        ("ipc: 'service:db'", "ipc: private", "keeps that to itself"),
        ("ipc: 'service:db'", "ipc: none", "keeps that to itself"),
        ("ipc: 'service:db'", "scale: 0", "which has no replica"),
        (
            "ipc: 'service:db', sysctls: { kernel.shmmax: 1 }",
            "",
            "`kernel.shmmax` of service `s` cannot be set",
        ),
    ] {
        let error = beside_db(keys, of_db).unwrap_err();
        assert!(error.contains(message), "{keys}, {of_db}: {error}");
    }
    let (plan, _) = beside_db("ipc: 'service:db', shm_size: 1m", "").unwrap();
    assert!(plan.warnings[0].contains("`shm_size` of service `s` is ignored"), "{:?}", plan.warnings);
}
