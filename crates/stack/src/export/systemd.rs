//! A unit of systemd that runs a stack: in the foreground, so that systemd has all of it in one control group.

use std::path::PathBuf;

use super::unit::{literal, word};
use super::{Export, ExportedFile};

/// What the unit is to run.
#[derive(Debug, Clone)]
pub struct Service {
    /// Name of the stack.
    pub stack: String,
    /// The program.
    pub program: PathBuf,
    /// Options before `up`, and their values.
    pub options: Vec<String>,
    /// Options of `up`.
    pub up: Vec<String>,
    /// Variables that the program heeds and that are set now.
    pub environment: Vec<(String, String)>,
    /// Where it is run.
    pub directory: PathBuf,
    /// It is root's, a unit of the system; otherwise one of the user.
    pub is_root: bool,
    /// Whether the user's units start with the machine (`loginctl enable-linger`).
    pub lingers: bool,
    /// Seconds until the last service has had its time to stop.
    pub stop: f64,
}

/// Writes the unit.
#[must_use]
pub fn systemd(service: &Service) -> Export {
    let name = format!("inception-{}.service", service.stack);
    let target = if service.is_root { "multi-user.target" } else { "default.target" };
    let words = std::iter::once(service.program.display().to_string())
        .chain(service.options.iter().cloned())
        .chain(["up".to_owned()])
        .chain(service.up.iter().cloned());
    let command: Vec<String> = words.map(|text| word(&text)).collect();
    let environment: String = (service.environment.iter())
        .map(|(name, value)| format!("Environment={}\n", word(&format!("{name}={value}")).replace("$$", "$")))
        .collect();
    // The units of a user know nothing of the network.
    let network = match service.is_root {
        true => "Wants=network-online.target\nAfter=network-online.target\n",
        false => "",
    };
    let text = format!(
        "# Written by `inception-run export systemd`.\n\
         [Unit]\n\
         Description=Stack {stack}\n\
         {network}\
         \n\
         [Service]\n\
         Type=exec\n\
         ExecStart={command}\n\
         WorkingDirectory={directory}\n\
         {environment}\
         # The command stops the services in order when it gets the signal; nobody else is to be sent it.\n\
         KillMode=mixed\n\
         TimeoutStopSec={stop}\n\
         # The status that it has then.\n\
         SuccessExitStatus=143\n\
         # The part of the control groups that limits of services need.\n\
         Delegate=yes\n\
         Restart=on-failure\n\
         RestartSec=5\n\
         \n\
         [Install]\n\
         WantedBy={target}\n",
        stack = literal(&service.stack),
        command = command.join(" "),
        directory = literal(&service.directory.display().to_string()).replace("$$", "$"),
        stop = service.stop.ceil() + 10.0,
    );
    let notes = match (service.is_root, service.lingers) {
        (true, _) => vec![
            format!("the unit belongs into /etc/systemd/system/{name}"),
            format!("then: systemctl daemon-reload && systemctl enable --now {name}"),
        ],
        (false, lingers) => {
            let mut notes = vec![
                format!("the unit belongs into ~/.config/systemd/user/{name}"),
                format!("then: systemctl --user daemon-reload && systemctl --user enable --now {name}"),
            ];
            if !lingers {
                notes.push(
                    "a user's units start with the first login and end with the last logout; to have them run from \
                     the machine's start to its end: loginctl enable-linger"
                        .to_owned(),
                );
            }
            notes
        }
    };
    Export { files: vec![ExportedFile::new(name, text)], warnings: Vec::new(), notes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        Service {
            stack: "inception".to_owned(),
            program: "/home/a b/bin/inception-run".into(),
            options: vec!["--file".to_owned(), "/home/a b/100%/stack.toml".to_owned()],
            up: vec!["--no-build".to_owned()],
            environment: vec![("INCEPTION_DATA_DIR".to_owned(), "/srv/$x".to_owned())],
            directory: "/home/a b/100%".into(),
            is_root: false,
            lingers: false,
            stop: 30.0,
        }
    }

    #[test]
    fn the_unit_runs_the_stack_in_the_foreground() {
        let export = systemd(&service());
        let text = &export.files[0].text;
        for line in [
            "ExecStart=\"/home/a b/bin/inception-run\" --file \"/home/a b/100%%/stack.toml\" up --no-build",
            "WorkingDirectory=/home/a b/100%%",
            "Environment=INCEPTION_DATA_DIR=/srv/$x",
            "KillMode=mixed",
            "Delegate=yes",
            "TimeoutStopSec=40",
            "SuccessExitStatus=143",
            "WantedBy=default.target",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in\n{text}");
        }
        assert!(export.notes.iter().any(|note| note.contains("enable-linger")));
    }

    #[test]
    fn roots_unit_is_the_systems() {
        let export = systemd(&Service { is_root: true, ..service() });
        assert!(export.files[0].text.contains("WantedBy=multi-user.target"));
        assert!(!export.notes.iter().any(|note| note.contains("enable-linger")), "{:?}", export.notes);
    }
}
