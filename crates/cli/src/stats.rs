//! `stats`: what services use, in `docker stats`'s columns.

use std::time::Duration;

use stack::client::Client;
use stack::control::Subject;
use stack::stats::{self, Bound, Measured, Origin, Reading, Sample, Transfer};

use crate::args::{Format, Stats};
use crate::output::{self, Failure};
use crate::session::Session;

/// Between two readings.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);
/// Before the second reading, which is the first that can tell rates.
pub(crate) const FIRST_INTERVAL: Duration = Duration::from_millis(400);

/// Column heads.
const HEAD: [&str; 8] =
    ["SERVICE", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS", "PRESSURE"];

/// `stats`.
pub(crate) fn stats(session: &Session, arguments: &Stats) -> Result<u8, Failure> {
    let mut meter = Meter::new(session.running()?, arguments.services.clone())?;
    std::thread::sleep(FIRST_INTERVAL);
    let mut readings = meter.read()?;
    if arguments.no_stream {
        match arguments.format {
            Format::Json => output::json(&readings)?,
            Format::Table => {
                output::print(&table(&readings, !arguments.services.is_empty()))?;
                if let Some(note) = note(&readings) {
                    session.output.progress(note);
                }
            }
        }
        return Ok(0);
    }
    loop {
        match arguments.format {
            Format::Json => {
                let text = serde_json::to_string(&readings).map_err(Failure::system("write JSON"))?;
                output::print(&format!("{text}\n"))?;
            }
            Format::Table => {
                let text = table(&readings, !arguments.services.is_empty());
                output::draw(&if session.output.terminal { frame(&text) } else { text })?;
            }
        }
        // Until Ctrl-C, or the end of the stack, which is an error as any other.
        std::thread::sleep(INTERVAL);
        readings = meter.read()?;
    }
}

/// Readings of a stack's services, one after the other.
#[derive(Debug)]
pub(crate) struct Meter {
    client: Client,
    services: Vec<String>,
    before: Vec<Sample>,
    host_memory: u64,
}

impl Meter {
    /// Takes the first sample.
    pub(crate) fn new(client: Client, services: Vec<String>) -> Result<Self, Failure> {
        let mut meter = Self { client, services, before: Vec::new(), host_memory: stats::host_memory() };
        meter.before = stats::sample(meter.subjects()?)?;
        Ok(meter)
    }

    /// Bytes of memory that this machine has.
    pub(crate) fn host_memory(&self) -> u64 {
        self.host_memory
    }

    fn subjects(&mut self) -> Result<Vec<Subject>, Failure> {
        Ok(stats::subjects(&mut self.client, &self.services)?)
    }

    /// What is used now, with the rates since the last time.
    pub(crate) fn read(&mut self) -> Result<Vec<Reading>, Failure> {
        let now = stats::sample(self.subjects()?)?;
        let readings = stats::readings(&self.before, &now, self.host_memory);
        self.before = now;
        Ok(readings)
    }
}

/// Draws over what the terminal shows, without the flicker of clearing it first.
fn frame(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

/// Running services only, unless they were asked for by name.
fn table(readings: &[Reading], all: bool) -> String {
    let rows: Vec<Vec<String>> =
        readings.iter().filter(|reading| all || reading.usage.is_some()).map(row).collect();
    output::table(&HEAD, &rows)
}

fn row(reading: &Reading) -> Vec<String> {
    let Some(usage) = &reading.usage else {
        let mut row = vec![reading.service.clone()];
        row.resize(HEAD.len(), "--".to_owned());
        return row;
    };
    vec![
        reading.service.clone(),
        cpu(usage),
        memory(usage),
        format!("{:.2}%", usage.memory.percent),
        transfer(usage.network),
        transfer(usage.block),
        pids(usage),
        pressure(usage),
    ]
}

/// Processor time; 100% is one processor.
pub(crate) fn cpu(usage: &Measured) -> String {
    usage.cpu_percent.map_or_else(|| "--".to_owned(), |percent| format!("{percent:.2}%"))
}

/// Memory and its limit.
pub(crate) fn memory(usage: &Measured) -> String {
    format!(
        "{} / {}",
        output::binary_size(usage.memory.bytes),
        limit(usage.memory.limit, output::binary_size)
    )
}

fn limit(limit: Option<Bound<u64>>, show: fn(u64) -> String) -> String {
    match limit {
        None => "unlimited".to_owned(),
        Some(Bound { value, enforced: true }) => show(value),
        Some(Bound { value, enforced: false }) => format!("{} (unenforced)", show(value)),
    }
}

/// Processes and threads, and how many there may be.
pub(crate) fn pids(usage: &Measured) -> String {
    match usage.pids_limit {
        None => usage.pids.to_string(),
        some => format!("{} / {}", usage.pids, limit(some, |count| count.to_string())),
    }
}

/// Bytes in and out.
pub(crate) fn transfer(transfer: Option<Transfer>) -> String {
    transfer.map_or_else(
        || "--".to_owned(),
        |Transfer { inward, outward }| format!("{} / {}", output::size(inward), output::size(outward)),
    )
}

/// Share of the last ten seconds in which something waited for a processor, memory or a block device.
pub(crate) fn pressure(usage: &Measured) -> String {
    let kinds = [("cpu", usage.pressure.cpu), ("mem", usage.pressure.memory), ("io", usage.pressure.io)];
    let known = kinds.iter().filter_map(|(name, pressure)| {
        pressure.as_ref().map(|pressure| format!("{name} {:.0}%", pressure.some.avg10))
    });
    let known: Vec<String> = known.collect();
    if known.is_empty() { "--".to_owned() } else { known.join(" ") }
}

/// What one has to know of numbers that are not a cgroup's.
pub(crate) fn note(readings: &[Reading]) -> Option<&'static str> {
    let by_processes = |usage: &Measured| usage.memory.origin == Origin::Processes;
    readings.iter().filter_map(|reading| reading.usage.as_ref()).any(by_processes).then_some(
        "note: services without a cgroup of their own are summed up over their processes: a limit in the stack file \
         gives them one, where `inception-run doctor` says that it can be enforced",
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use stack::control::State;
    use stack::stats::MemoryUse;

    /// A running service that uses this much.
    pub(crate) fn reading(service: &str, cpu_percent: f64, bytes: u64) -> Reading {
        let usage = Measured {
            cpu_percent: Some(cpu_percent),
            cpu_usec: 1,
            cpu_origin: Origin::Cgroup,
            cpu_limit: None,
            throttled_usec: None,
            memory: MemoryUse {
                bytes,
                origin: Origin::Cgroup,
                limit: Some(Bound { value: 64 << 20, enforced: true }),
                percent: bytes as f64 / f64::from(64 << 20) * 100.0,
                oom_kills: Some(0),
            },
            network: Some(Transfer { inward: 1500, outward: 20 }),
            network_rate: Some(Transfer { inward: bytes / 1000, outward: 0 }),
            block: None,
            block_rate: None,
            pids: 3,
            pids_limit: Some(Bound { value: 10, enforced: false }),
            pressure: Default::default(),
        };
        Reading {
            service: service.to_owned(),
            group: service.to_owned(),
            state: State::Running,
            health: None,
            exit_code: None,
            oom_killed: false,
            pid: Some(1),
            image: "x".to_owned(),
            ports: Vec::new(),
            restarts: 0,
            uptime: Some(61.0),
            usage: Some(usage),
        }
    }

    #[test]
    fn the_columns_of_docker() {
        let stopped = Reading { usage: None, ..reading("db", 0.0, 0) };
        let readings = [reading("web", 12.345, 16 << 20), stopped];
        let text = table(&readings, false);
        assert_eq!(
            text,
            "SERVICE   CPU %    MEM USAGE / LIMIT   MEM %    NET I/O         BLOCK I/O   PIDS                  PRESSURE\n\
             web       12.35%   16MiB / 64MiB       25.00%   1.5 kB / 20 B   --          3 / 10 (unenforced)   --\n"
        );
        assert!(table(&readings, true).contains("\ndb        --"));
        assert_eq!(note(&readings), None);
    }
}
