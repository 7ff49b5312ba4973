//! A lab from its first command to its last, in a temporary directory and with a data and a runtime directory of its
//! own: what the tests do with every lab, and a teacher before the lesson. The images of a data directory that
//! `INCEPTION_DATA_DIR` names are used, and kept.

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use super::catalogue::Lab;
use super::expected::{self, Values};
use super::shell;
use super::text::{self, Block, Kind, Language};
use crate::output::{self, Failure};
use crate::session::Session;

/// For all commands of a lab. Generous, since an emulated processor is ten times as slow, and one lab builds images.
const DEADLINE: Duration = Duration::from_secs(900);
/// How long a server may take to accept a connection.
const PROBE: Duration = Duration::from_secs(3);

/// Runs it. Exit code 1 when something was not seen that must be.
pub(super) fn rehearse(session: &Session, lab: &Lab) -> Result<u8, Failure> {
    if super::is_root() {
        output::print(&format!("skipped: lab {}: it is for an ordinary user, not for root\n", lab.number))?;
        return Ok(0);
    }
    let room = Room::make()?;
    let failed = room.rehearse(session, lab);
    room.leave(session, lab)?;
    let failed = failed?;
    let word = if failed == 0 { "as the text says" } else { "NOT as the text says" };
    output::print(&format!("lab {} ({}): {word}\n", lab.number, lab.name))?;
    Ok(u8::from(failed > 0))
}

/// The temporary directory.
struct Room {
    directory: PathBuf,
    /// The data directory.
    data: PathBuf,
}

impl Room {
    fn make() -> Result<Self, Failure> {
        // Short: the names of sockets in it have at most 107 bytes (unix(7)).
        let name = format!("lab-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).map_err(Failure::system(&format!("make `{}`", directory.display())))?;
        for name in ["work", "blocks"] {
            fs::create_dir(directory.join(name))
                .map_err(Failure::system("make a directory of a rehearsal"))?;
        }
        let data = match std::env::var_os("INCEPTION_DATA_DIR").filter(|path| !path.is_empty()) {
            Some(path) => std::path::absolute(path).map_err(Failure::system("find the data directory"))?,
            None => directory.join("d"),
        };
        Ok(Self { directory, data })
    }

    /// How many blocks did not show what they must.
    fn rehearse(&self, session: &Session, lab: &Lab) -> Result<usize, Failure> {
        let blocks = text::blocks(lab.page(Language::En));
        let missing = missing(&blocks, session);
        let blocks = self.write(&blocks, &missing)?;
        let script = self.directory.join("blocks/all");
        let mut child = self
            .environment(&mut shell::shell(&script, &self.directory.join("work"))?)
            .spawn()
            .map_err(Failure::system("run `sh`"))?;
        let ended = shell::wait(&mut child, DEADLINE)?.is_some();
        let mut values = Values::default();
        let mut failed = 0;
        for (block, expected) in blocks {
            let wrong = match self.seen(block) {
                Some((found, status)) => match expected {
                    Some(expected) => expected::compare(&expected.body, &found, &mut values)
                        .err()
                        .map(|line| format!("expected in vain: {line}\nbut seen was:\n{found}")),
                    None => (status != 0).then(|| format!("exit status {status}; seen was:\n{found}")),
                },
                None if ended => Some("it was not reached".to_owned()),
                None => Some("it took too long".to_owned()),
            };
            if let Some(wrong) = wrong {
                failed += 1;
                let wrong = wrong.replace('\n', "\n    ");
                output::print(&format!("lab {}: line {}: {wrong}\n", lab.number, block.line))?;
            }
        }
        let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (line, need) in missing {
            lines.entry(need).or_default().push(line.to_string());
        }
        for (need, lines) in lines {
            let lines = lines.join(", ");
            output::print(&format!("skipped: lab {}: {need} is not there for lines {lines}\n", lab.number))?;
        }
        Ok(failed)
    }

    /// Writes the blocks for the shell, which reads them all, so that variables and background processes stay.
    /// What is left of them is each with what it must show.
    fn write<'a>(
        &self,
        blocks: &'a [Block],
        missing: &[(usize, String)],
    ) -> Result<Vec<(&'a Block, Option<&'a Block>)>, Failure> {
        let mut all = String::new();
        let mut kept = Vec::new();
        for (index, block) in blocks.iter().enumerate() {
            let is_run = matches!(block.kind, Kind::Run { .. });
            if !is_run || missing.iter().any(|(line, _)| *line == block.line) {
                continue;
            }
            let stem = self.stem(block);
            let name = stem.display();
            fs::write(&stem, &block.body).map_err(Failure::system("write a block of commands"))?;
            all.push_str(&format!("{{ . {name}; }} >{name}.seen 2>&1; echo $? >{name}.status\n"));
            kept.push((block, blocks.get(index + 1).filter(|next| next.kind == Kind::Expect)));
        }
        fs::write(self.directory.join("blocks/all"), all).map_err(Failure::system("write the commands"))?;
        Ok(kept)
    }

    fn stem(&self, block: &Block) -> PathBuf {
        self.directory.join(format!("blocks/{}", block.line))
    }

    /// What a block wrote and its exit status, if it came to its end.
    fn seen(&self, block: &Block) -> Option<(String, i32)> {
        let stem = self.stem(block);
        let status = fs::read_to_string(stem.with_extension("status")).ok()?;
        let seen = fs::read(stem.with_extension("seen")).ok()?;
        Some((String::from_utf8_lossy(&seen).into_owned(), status.trim().parse().ok()?))
    }

    fn environment<'a>(&self, command: &'a mut std::process::Command) -> &'a mut std::process::Command {
        command
            .env("INCEPTION_DATA_DIR", &self.data)
            .env("INCEPTION_RUNTIME_DIR", self.directory.join("r"))
            .env("LC_ALL", "C.UTF-8")
            .env_remove("NO_COLOR")
    }

    /// Ends what a lab that was cut short has left, and deletes the directory.
    fn leave(self, session: &Session, lab: &Lab) -> Result<(), Failure> {
        let work = self.directory.join("work").join(lab.directory());
        if work.is_dir() {
            // As the reader does, in the environment of the rehearsal, which this process does not have.
            let script = self.directory.join("blocks/clean");
            let commands = format!("inception-run lab {} clean\n", lab.number);
            fs::write(&script, commands).map_err(Failure::system("write the commands"))?;
            let mut child = self
                .environment(&mut shell::shell(&script, &work)?)
                .spawn()
                .map_err(Failure::system("run `sh`"))?;
            shell::wait(&mut child, DEADLINE)?;
        }
        if let Err(failure) = super::place::delete_tree(&self.directory) {
            session.output.warning(&format!("`{}` is left", self.directory.display()));
            return Err(failure);
        }
        Ok(())
    }
}

/// What blocks need and this machine has not: line and word.
fn missing(blocks: &[Block], session: &Session) -> Vec<(usize, String)> {
    let mut missing = Vec::new();
    for block in blocks {
        let Kind::Run { needs } = &block.kind else { continue };
        let lacking = needs.iter().find(|need| !is_there(need, session));
        missing.extend(lacking.map(|need| (block.line, need.clone())));
    }
    missing
}

fn is_there(need: &str, session: &Session) -> bool {
    match need {
        "cgroup-v2" => has_limits(session),
        "debian-packages" => packages_are_reachable(),
        program => super::place::find_program(program).is_some(),
    }
}

/// Whether the server that this machine has its own packages from accepts connections, where it says which.
fn packages_are_reachable() -> bool {
    let directory = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = directory.map(|entry| entry.path()).collect();
    files.push("/etc/apt/sources.list".into());
    files.sort();
    let texts: Vec<String> = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    let mut lines =
        texts.iter().flat_map(|text| text.lines()).filter(|line| !line.trim_start().starts_with('#'));
    let server = lines.find_map(|line| line.split_once("http://")?.1.split(['/', ' ']).next());
    // A machine that says nothing finds out when it builds.
    server.is_none_or(|server| {
        let server = if server.contains(':') { server.to_owned() } else { format!("{server}:80") };
        let addresses = server.to_socket_addrs().into_iter().flatten();
        addresses.into_iter().any(|address| TcpStream::connect_timeout(&address, PROBE).is_ok())
    })
}

/// Whether limits of services are enforced here.
fn has_limits(session: &Session) -> bool {
    let checks = stack::doctor::run(&session.paths);
    checks.iter().any(|check| check.name.starts_with("limits") && check.status == stack::doctor::Status::Ok)
}
