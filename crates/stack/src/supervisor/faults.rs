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
        let containers: Vec<String> = match services {
            [] => self.faults.keys().cloned().collect(),
            named => self.containers(named)?,
        };
        let mut change = change.clone();
        if let Change::Partition(from) = &mut change {
            *from = self.containers(from)?;
            if let Some(name) = from.iter().find(|name| containers.contains(name)) {
                let text = format!("service `{name}` cannot be cut off from itself");
                return Err(RemoteError { exit_code: 2, ..RemoteError::message(text) });
            }
        }
        let mut changed = Vec::new();
        for container in containers {
            let before = self.faults.get(&container).cloned().unwrap_or_default();
            let fault = before.after(&change);
            self.hub
                .fault(&container, &change, &fault)
                .context(|| format!("change the network of service `{container}`"))?;
            self.keep_fault(&container, &change, &fault);
            self.tell_event(Some(&container), What::Network { change: fault.to_string() });
            changed.push(Faulty { container, fault });
        }
        self.notify(id, Notice::Faults(changed));
        self.notify(id, Notice::Done);
        Ok(())
    }

    /// Names of the containers that these names mean.
    fn containers(&self, names: &[String]) -> Result<Vec<String>, RemoteError> {
        names.iter().try_for_each(|name| self.unit(name).map(drop))?;
        let meant = self.units.iter().filter(|unit| unit.is_among(names));
        Ok(meant.map(|unit| unit.name().to_owned()).collect())
    }

    fn keep_fault(&mut self, container: &str, change: &Change, fault: &Fault) {
        self.faults.insert(container.to_owned(), fault.clone());
        if *change == Change::Heal {
            for other in self.faults.values_mut() {
                *other = std::mem::take(other).without(container);
            }
        }
        self.faults.retain(|_, fault| !fault.is_none());
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
