//! The command line that engines know: the commands and options of runc, and where they have one name more, crun's.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::args::Format;

/// Runs containers by the OCI runtime specification.
#[derive(Debug, Parser)]
#[command(name = "inception-oci", disable_help_subcommand = true, disable_version_flag = true)]
// Engines put what they were told before what they say themselves: the last one counts.
#[command(args_override_self = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Options that stand before the command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Directory of the containers' state [default: /run/inception-oci, or in $XDG_RUNTIME_DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) log: Log,
    /// Let systemd make the cgroups; `cgroupsPath` is SLICE:PREFIX:NAME then
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Who makes the cgroups
    #[arg(long, value_name = "WHO", conflicts_with = "systemd_cgroup")]
    pub(crate) cgroup_manager: Option<CgroupManager>,
    /// Whether a host that gives this user no cgroup is an error
    #[arg(long, value_name = "WHEN")]
    pub(crate) rootless: Option<Rootless>,
    /// Accepted for engines that always say it; checkpoints are not supported
    #[arg(long, value_name = "PATH", hide = true)]
    pub(crate) criu: Option<PathBuf>,
    /// Show the version
    #[arg(short = 'v', long, action = ArgAction::SetTrue)]
    version: bool,
}

/// Where messages go.
#[derive(Debug, Args, Default)]
pub(crate) struct Log {
    /// File for messages, besides standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Form of the messages in it
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Least important messages that are wanted
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<Level>,
    /// As `--log-level debug`
    #[arg(long)]
    pub(crate) debug: bool,
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// `time="..." level=... msg="..."`
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// `--log-level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, ValueEnum)]
pub(crate) enum Level {
    /// Only what made the command fail.
    #[value(aliases = ["fatal", "panic"])]
    Error,
    /// And what the user may want to know.
    #[value(alias = "warn")]
    Warning,
    /// And what was done.
    Info,
    /// And how.
    Debug,
    /// Everything.
    Trace,
}

/// `--cgroup-manager`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CgroupManager {
    /// We do.
    Cgroupfs,
    /// As `--systemd-cgroup`.
    Systemd,
}

/// `--rootless`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rootless {
    /// It is not, when nothing asks for limits.
    True,
    /// It is.
    False,
    /// It is for root only.
    Auto,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a container: everything is set up, and its program waits for `start`
    Create(Create),
    /// Start the program of a created container
    Start {
        /// Container
        id: String,
    },
    /// Show the state of a container (JSON)
    State {
        /// Container
        id: String,
    },
    /// Send a signal to a container's first process
    Kill {
        /// Send it to all processes of the container
        #[arg(short, long)]
        all: bool,
        /// Container
        id: String,
        /// Name or number
        #[arg(default_value = "SIGTERM")]
        signal: String,
    },
    /// Delete a stopped container
    Delete {
        /// Kill it first if it runs; succeed if there is none
        #[arg(short, long)]
        force: bool,
        /// CONTAINER is a regular expression: delete all that it matches
        #[arg(long)]
        regex: bool,
        /// Container
        id: String,
    },
    /// Create a container, start it and wait for its end
    Run(Run),
    /// Run another program in a container
    Exec(Exec),
    /// List the containers
    List {
        /// table or json
        #[arg(short, long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
        format: Format,
        /// Names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// List the processes of a container
    Ps {
        /// table or json
        #[arg(short, long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
        format: Format,
        /// Container, then options of ps(1) [default: -ef]
        #[arg(required = true, trailing_var_arg = true, value_names = ["ID", "OPTION"])]
        words: Vec<String>,
    },
    /// Freeze all processes of a container
    Pause {
        /// Container
        id: String,
    },
    /// Let the processes of a paused container go on
    Resume {
        /// Container
        id: String,
    },
    /// Change the limits of a container
    Update(Update),
    /// Show what happens to a container: its use of resources, and kills for memory (JSON, an object a line)
    Events {
        /// Show the use of resources once
        #[arg(long)]
        stats: bool,
        /// Time between two reports of the use of resources
        #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
        interval: Duration,
        /// Container
        id: String,
    },
    /// Write a config.json to begin with
    Spec {
        /// Directory for it
        #[arg(short, long, value_name = "DIR", default_value = ".")]
        bundle: PathBuf,
        /// One that an ordinary user can run
        #[arg(long)]
        rootless: bool,
    },
    /// Show what this runtime can do (JSON, as the specification's features.md says)
    Features,
}

impl Command {
    /// How many descriptors from 3 up are the process's.
    pub(crate) fn preserved(&mut self) -> Option<&mut u32> {
        match self {
            Self::Create(Create { make }) | Self::Run(Run { make, .. }) => Some(&mut make.preserve_fds),
            Self::Exec(exec) => Some(&mut exec.preserve_fds),
            _ => None,
        }
    }
}

/// How a container is made.
#[derive(Debug, Args)]
pub(crate) struct Make {
    /// Directory with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Another file than the bundle's config.json
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Unix socket that gets the other end of the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// File that gets the number of the process
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// How many descriptors from 3 up the process gets, as far as they are open
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Change the root without pivot_root(2), which an initramfs refuses
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Do not reap processes that the container leaves to us
    #[arg(long)]
    pub(crate) no_subreaper: bool,
    /// Container
    pub(crate) id: String,
}

/// `create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    pub(crate) make: Make,
}

/// `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Leave it running
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Do not delete it when it has ended
    #[arg(long)]
    pub(crate) keep: bool,
    #[command(flatten)]
    pub(crate) make: Make,
}

/// `exec`.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// The process as in config.json's `process`, instead of the options and words that describe it
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["env", "user", "additional_gids", "cwd", "cap",
        "no_new_privs", "apparmor", "process_label"])]
    pub(crate) process: Option<PathBuf>,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Leave it running
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// File that gets the number of the process
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Unix socket that gets the other end of the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// How many descriptors from 3 up the process gets, as far as they are open
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Variable, as NAME=VALUE
    #[arg(short, long, value_name = "VARIABLE")]
    pub(crate) env: Vec<String>,
    /// Numbers of user and group
    #[arg(short, long, value_name = "UID[:GID]", value_parser = user)]
    pub(crate) user: Option<(u32, Option<u32>)>,
    /// Further groups
    #[arg(short = 'g', long, value_name = "GID", value_delimiter = ',')]
    pub(crate) additional_gids: Vec<u32>,
    /// Directory
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// Capability that it gets besides the container's
    #[arg(short, long, value_name = "CAPABILITY")]
    pub(crate) cap: Vec<String>,
    /// No program that it executes gains privileges
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    pub(crate) process_label: Option<String>,
    /// Cgroup below the container's
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Option<String>,
    /// Allow it in a paused container
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// Do not reap processes that it leaves to us
    #[arg(long)]
    pub(crate) no_subreaper: bool,
    /// Container, then the program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["ID", "COMMAND"])]
    pub(crate) words: Vec<String>,
}

/// `update`.
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// The limits as in config.json's `linux.resources`; `-` is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "flags")]
    pub(crate) resources: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) flags: Limits,
    /// Container
    pub(crate) id: String,
}

/// Limits as options; what is not named stays as it is.
#[derive(Debug, Args, Default)]
#[group(id = "flags", multiple = true)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Limits {
    /// Memory, in bytes or with a unit (512M); -1 is no limit
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_hyphen_values = true)]
    pub(crate) memory: Option<i64>,
    /// Memory that is kept for it
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<i64>,
    /// Memory and swap together
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<i64>,
    /// Memory of the kernel (cgroup v1 only)
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_hyphen_values = true)]
    pub(crate) kernel_memory: Option<i64>,
    /// Memory of TCP buffers (cgroup v1 only)
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_hyphen_values = true)]
    pub(crate) kernel_memory_tcp: Option<i64>,
    /// Length of the period of --cpu-quota, in microseconds
    #[arg(long, value_name = "TIME")]
    pub(crate) cpu_period: Option<u64>,
    /// CPU time in a period, in microseconds; -1 is no limit
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// Unused CPU time that may be saved up, in microseconds
    #[arg(long, value_name = "TIME")]
    pub(crate) cpu_burst: Option<u64>,
    /// Weight against other containers (2 to 262144)
    #[arg(long, value_name = "SHARES", alias = "cpu-shares")]
    pub(crate) cpu_share: Option<u64>,
    /// 1 gives it only CPU time that nobody else wants
    #[arg(long, value_name = "0|1")]
    pub(crate) cpu_idle: Option<i64>,
    /// Realtime period, in microseconds (cgroup v1 only)
    #[arg(long, value_name = "TIME")]
    pub(crate) cpu_rt_period: Option<u64>,
    /// Realtime in a period, in microseconds (cgroup v1 only)
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) cpu_rt_runtime: Option<i64>,
    /// CPUs it may use (0-2,7)
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes it may use
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// Processes and threads; -1 is no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Weight of its block I/O (10 to 1000)
    #[arg(long, value_name = "WEIGHT")]
    pub(crate) blkio_weight: Option<u16>,
}

/// `UID[:GID]`.
fn user(text: &str) -> Result<(u32, Option<u32>), String> {
    let number = |word: &str| word.parse().map_err(|_| format!("`{word}` is not a number"));
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, Some(number(gid)?))),
        None => Ok((number(text)?, None)),
    }
}

/// Bytes, with one of the units b, k, m, g, t (1024 times the one before), which may have `b` or `ib` after it.
fn bytes(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        unit => return Err(format!("`{unit}` is not a unit of memory")),
    };
    let number: i64 = digits.parse().map_err(|_| format!("`{digits}` is not a number"))?;
    number.checked_mul(1 << shift).ok_or_else(|| "it is too large".to_owned())
}

/// A duration as Go writes it: `1m30s`, `500ms`; a number alone is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration such as 5s or 500ms");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" | "" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        rest = &rest[end..];
        total += Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())?;
    }
    // Reports without a pause would be a busy loop.
    if total < Duration::from_millis(1) { Err(wrong()) } else { Ok(total) }
}

/// What the words say.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// Something is to be done.
    Do(Box<Global>, Box<Command>),
    /// The version is asked for.
    Version,
    /// This text is asked for (`--help`).
    Help(String),
}

/// Resolves the words of a command line.
///
/// # Errors
/// What is wrong with them, in one line, and where messages shall go as far as it can be told.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Parsed, (String, Log)> {
    match Arguments::try_parse_from(&words) {
        Ok(Arguments { global, .. }) if global.version => Ok(Parsed::Version),
        Ok(Arguments { global, command: Some(command) }) => {
            Ok(Parsed::Do(Box::new(global), Box::new(command)))
        }
        Ok(Arguments { global, command: None }) => Err(("no command".to_owned(), global.log)),
        Err(error) if !error.use_stderr() => Ok(Parsed::Help(error.to_string())),
        Err(error) => {
            let text = error.to_string();
            // The rest is usage.
            let said: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
            let said = said.join(" ");
            Err((said.strip_prefix("error: ").unwrap_or(&said).to_owned(), log_of(&words)))
        }
    }
}

/// Where messages go by a command line that cannot be used otherwise.
fn log_of(words: &[OsString]) -> Log {
    let value = |name: &str| {
        let mut words = words.iter().skip(1).filter_map(|word| word.to_str());
        while let Some(word) = words.next() {
            match word.strip_prefix(name) {
                Some("") => return words.next().map(str::to_owned),
                Some(rest) if rest.starts_with('=') => return Some(rest[1..].to_owned()),
                _ => {}
            }
        }
        None
    };
    let log_format =
        if value("--log-format").as_deref() == Some("json") { LogFormat::Json } else { LogFormat::Text };
    Log { log: value("--log").map(PathBuf::from), log_format, log_level: None, debug: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Result<Command, String> {
        let words = std::iter::once("inception-oci").chain(words.split_whitespace());
        match parse(words.map(OsString::from).collect()) {
            Ok(Parsed::Do(_, command)) => Ok(*command),
            Ok(other) => panic!("{other:?}"),
            Err((text, _)) => Err(text),
        }
    }

    #[test]
    fn engines_are_understood() {
        // As containerd, conmon and CRI-O write them.
        for words in [
            "--root /run/x --log /x/log.json --log-format json --systemd-cgroup create --bundle /b --pid-file /p c",
            "--root /run/x --rootless=true --debug create --bundle /b --pid-file /p --no-pivot --preserve-fds 2 c",
            "--log-level=warning --cgroup-manager cgroupfs create -b /b --console-socket /s --no-new-keyring c",
            "exec --process /p --console-socket /s --detach --pid-file /f c",
            "exec --pid-file /f --process /p -t -d c",
            "exec -e A=b --cwd / -u 1:2 -g 3,4 -g 5 --cap CAP_KILL c ls -l --user",
            "exec --preserve-fds=1 --ignore-paused c -- ls",
            "kill --all c 9",
            "kill c SIGRTMIN+1",
            "delete --force c",
            "delete -f --regex ^a",
            "update --resources - c",
            "update --memory 512M --memory-swap -1 --cpu-quota -1 --cpu-shares 5 --pids-limit -1 c",
            "events --stats c",
            "events --interval 1m0.5s c",
            "ps --format json c",
            "ps c -o pid,comm",
            "run -d --keep --no-subreaper -b /b c",
        ] {
            let arguments = parsed(words);
            assert!(arguments.is_ok(), "{words}: {arguments:?}");
        }
        let Command::Exec(exec) = parsed("exec -u 7 c ls -u").unwrap() else { panic!() };
        assert_eq!((exec.user, exec.words), (Some((7, None)), vec!["c".into(), "ls".into(), "-u".into()]));
    }

    #[test]
    fn the_version_needs_no_command() {
        for words in ["x -v", "x --version", "x --root /r --version", "x --version list"] {
            let words = words.split_whitespace().map(OsString::from).collect();
            assert!(matches!(parse(words), Ok(Parsed::Version)));
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (words, name) in [
            ("", "no command"),
            ("checkpoint c", "checkpoint"),
            ("create --frobnicate c", "--frobnicate"),
            ("create", "<ID>"),
            ("create a b", "'b'"),
            ("--cgroup-manager disabled list", "disabled"),
            ("--log-format xml list", "xml"),
            ("kill --regex c", "--regex"),
            ("exec --process /p --cwd / c", "--cwd"),
            ("update --resources - --memory 5 c", "--memory"),
            ("update --l3-cache-schema x c", "--l3-cache-schema"),
            ("update --memory 5x c", "`x`"),
            ("update --memory 9223372036854775807k c", "too large"),
            ("exec -u root c ls", "`root`"),
            ("events --interval 0s c", "0s"),
        ] {
            let said = parsed(words).unwrap_err();
            assert!(said.contains(name) && !said.contains('\n'), "{words}: {said}");
        }
        let words = ["x", "--log=/l", "--log-format", "json", "--nonsense"].map(OsString::from);
        let (_, log) = parse(words.to_vec()).unwrap_err();
        assert_eq!((log.log, log.log_format), (Some("/l".into()), LogFormat::Json));
    }

    #[test]
    fn numbers_with_units() {
        assert_eq!(bytes("512m"), Ok(512 << 20));
        assert_eq!(bytes("1GiB"), Ok(1 << 30));
        assert_eq!(bytes("-1"), Ok(-1));
        assert!(bytes("m").is_err());
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "x", "5y", "-5s", "1.2.3s", "1e400s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
