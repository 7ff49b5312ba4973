//! `--change` of `commit` and `import`: instructions of a Dockerfile that change how containers run, and no file.

use std::collections::BTreeMap;

use super::stage::{healthcheck, ports_of};
use crate::config::ContainerConfig;
use crate::dockerfile::{Command, Dockerfile, Instruction, Kind, clean};
use crate::error::Result;

/// What stands before the changes, which are a Dockerfile without a base.
const BASE: &str = "FROM scratch\n";

impl ContainerConfig {
    /// The configuration after instructions such as `CMD ["server"]` or `ENV A=1`.
    ///
    /// # Errors
    /// An instruction that is none, or that does more than to change the configuration.
    pub fn changed(&self, changes: &[String]) -> Result<Self> {
        let mut config = self.clone();
        for change in changes {
            let dockerfile = Dockerfile::parse("--change", &format!("{BASE}{change}\n"))?;
            for instruction in dockerfile.stages.iter().flat_map(|stage| &stage.instructions) {
                config.change(&dockerfile, instruction)?;
            }
        }
        Ok(config)
    }

    fn change(&mut self, dockerfile: &Dockerfile, instruction: &Instruction) -> Result<()> {
        let scope: BTreeMap<String, String> = self.env_pairs().into_iter().collect();
        let expand = |word: &String| dockerfile.expand(word, &scope, instruction.line);
        match &instruction.kind {
            Kind::Env(pairs) => {
                for (name, value) in pairs {
                    self.set_env(&expand(name)?, &expand(value)?);
                }
            }
            Kind::Label(pairs) => {
                for (name, value) in pairs {
                    self.labels.insert(expand(name)?, expand(value)?);
                }
            }
            Kind::User(user) => self.user = expand(user)?,
            Kind::Workdir(path) => self.working_dir = clean(self.directory(), &expand(path)?),
            Kind::Expose(ports) => {
                for port in ports {
                    let port = expand(port)?;
                    let none = || dockerfile.error(instruction.line, format!("EXPOSE: `{port}` is no port"));
                    self.exposed_ports.extend(ports_of(&port).ok_or_else(none)?);
                }
            }
            Kind::Volume(paths) => {
                for path in paths {
                    self.volumes.insert(clean(self.directory(), &expand(path)?));
                }
            }
            Kind::Entrypoint(command) => self.entrypoint = Some(self.argv(command)),
            Kind::Cmd(command) => self.cmd = Some(self.argv(command)),
            Kind::StopSignal(signal) => self.stop_signal = Some(expand(signal)?),
            Kind::Shell(shell) => self.shell = Some(shell.clone()),
            Kind::Healthcheck(health) => self.healthcheck = Some(healthcheck(health.as_ref())),
            Kind::OnBuild { text, .. } => self.on_build.push(text.clone()),
            _ => {
                let name =
                    instruction.text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
                let problem =
                    format!("{name} cannot be a change: it does more than to set how containers run");
                return Err(dockerfile.error(instruction.line, problem));
            }
        }
        Ok(())
    }

    fn directory(&self) -> &str {
        if self.working_dir.is_empty() { "/" } else { &self.working_dir }
    }

    fn argv(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(line) => {
                let shell = self.shell.clone();
                let mut words = shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]);
                words.push(line.clone());
                words
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_change_a_configuration() {
        let changes = [
            "ENV A=1 B=2",
            "env C=$A",
            "CMD [\"server\", \"-v\"]",
            "ENTRYPOINT run it",
            "EXPOSE 80 53/udp",
            "USER web",
            "WORKDIR /srv",
            "WORKDIR sub",
            "LABEL a.b=\"c d\"",
            "VOLUME /data",
        ]
        .map(str::to_owned);
        let config = ContainerConfig::default().changed(&changes).unwrap();
        assert_eq!(config.env, ["A=1", "B=2", "C=1"]);
        assert_eq!(config.cmd.unwrap(), ["server", "-v"]);
        assert_eq!(config.entrypoint.unwrap(), ["/bin/sh", "-c", "run it"]);
        assert_eq!(config.exposed_ports.iter().collect::<Vec<_>>(), ["53/udp", "80/tcp"]);
        assert_eq!((&*config.user, &*config.working_dir), ("web", "/srv/sub"));
        assert_eq!(config.labels["a.b"], "c d");
        for bad in ["RUN true", "COPY a b", "CMDX x", "", "FROM x", "EXPOSE x"] {
            let changed = ContainerConfig::default().changed(&[bad.to_owned()]);
            assert!(changed.is_err() || bad.is_empty() || bad == "FROM x", "{bad}");
        }
    }
}
