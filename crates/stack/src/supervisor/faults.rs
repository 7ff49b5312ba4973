//! Faults on the network of services: `net`.

use super::Supervisor;
use crate::control::Notice;
use crate::event::What;
use crate::fault::{Change, Fault, Faulty};
use crate::remote::{Context, RemoteError};

impl Supervisor {
    /// Carries out a change for these services, or for all that have a fault when none is named, and answers with
    /// what is in force then.
    pub(super) fn change_faults(
        &mut self,
        id: u64,
        services: &[String],
        change: &Change,
    ) -> Result<(), RemoteError> {
        if let Change::Partition(from) = change {
            for name in from {
                self.unit(name)?;
                if services.contains(name) {
                    return Err(RemoteError::message(format!(
                        "service `{name}` cannot be cut off from itself"
                    )));
                }
            }
        }
        for name in services {
            self.unit(name)?;
        }
        let containers: Vec<String> = match services {
            [] => self.faults.keys().cloned().collect(),
            named => named.to_vec(),
        };
        let mut changed = Vec::new();
        for container in containers {
            let before = self.faults.get(&container).cloned().unwrap_or_default();
            let fault = before.after(change);
            self.hub
                .fault(&container, &fault)
                .context(|| format!("change the network of service `{container}`"))?;
            self.keep_fault(&container, &fault);
            self.tell_event(Some(&container), What::Network { change: fault.to_string() });
            changed.push(Faulty { container, fault });
        }
        self.notify(id, Notice::Faults(changed));
        self.notify(id, Notice::Done);
        Ok(())
    }

    fn keep_fault(&mut self, container: &str, fault: &Fault) {
        if fault.is_none() {
            self.faults.remove(container);
        } else {
            self.faults.insert(container.to_owned(), fault.clone());
        }
    }

    /// Answers with what is in force.
    pub(super) fn show_faults(&mut self, id: u64) {
        let faulty = |(container, fault): (&String, &Fault)| Faulty {
            container: container.clone(),
            fault: fault.clone(),
        };
        let faults = self.faults.iter().map(faulty).collect();
        self.notify(id, Notice::Faults(faults));
        self.notify(id, Notice::Done);
    }
}
