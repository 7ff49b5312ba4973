//! Probes of a health check.

use serde_json::{Value, json};

use crate::plan::{Healthcheck, Probe};

/// `readinessProbe` and `startupProbe`.
///
/// A service that is not ready gets no connections under its name, as here; a service that becomes unhealthy is not
/// started again here, and so there is no `livenessProbe`. While the `startupProbe` has not succeeded nothing else is
/// tried: it may fail for the start period, and then as often as the check may fail.
pub(super) fn probes(check: &Healthcheck) -> (Value, Value) {
    let Some(action) = check.test.as_ref().and_then(action) else { return (Value::Null, Value::Null) };
    let ready = with(&action, check, seconds(check.interval), check.retries.max(1));
    if check.start_period <= 0.0 {
        return (ready, Value::Null);
    }
    let pause = check.start_interval.min(check.interval);
    let period = seconds(pause);
    let afterwards = f64::from(check.retries.max(1)) * check.interval;
    let failures = ((check.start_period + afterwards) / f64::from(period)).ceil();
    // Both are bounded by what a stack file may say.
    (ready, with(&action, check, period, failures as u32))
}

fn with(action: &Value, check: &Healthcheck, period: u32, failures: u32) -> Value {
    let mut probe = action.clone();
    probe["periodSeconds"] = json!(period);
    probe["timeoutSeconds"] = json!(seconds(check.timeout));
    probe["failureThreshold"] = json!(failures);
    probe
}

/// Whole seconds, one at least.
pub(super) fn seconds(seconds: f64) -> u32 {
    seconds.ceil().max(1.0) as u32
}

fn action(test: &Probe) -> Option<Value> {
    match test {
        Probe::Exec(command) => Some(json!({ "exec": { "command": command } })),
        Probe::Tcp(port) => Some(json!({ "tcpSocket": { "port": port } })),
        Probe::Http { port, path } => Some(json!({ "httpGet": { "port": port, "path": path } })),
        // Not known: the image is not in the store.
        Probe::Image => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(test: Probe) -> Healthcheck {
        Healthcheck {
            test: Some(test),
            interval: 10.0,
            timeout: 2.5,
            retries: 3,
            start_period: 30.0,
            start_interval: 0.05,
        }
    }

    #[test]
    fn a_check_is_a_probe_of_whole_seconds() {
        let (ready, start) = probes(&check(Probe::Tcp(80)));
        let expected = json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 10, "timeoutSeconds": 3, "failureThreshold": 3 });
        assert_eq!(ready, expected);
        // 30 s in which failures do not count, and three more that do: a second each.
        assert_eq!((&start["periodSeconds"], &start["failureThreshold"]), (&json!(1), &json!(60)));
        let without = Healthcheck { start_period: 0.0, ..check(Probe::Tcp(80)) };
        assert_eq!(probes(&without).1, Value::Null);
        assert_eq!(probes(&check(Probe::Image)), (Value::Null, Value::Null));
    }
}
