//! A step: who made which call, when, and what came of it.

use std::fmt;
use std::time::SystemTime;

use super::call::Call;
use super::flags;

/// Something that was done to make containers.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// When the call was made.
    pub time: SystemTime,
    /// Who made it.
    pub who: Who,
    /// What it was.
    pub call: Call,
    /// What came of it.
    pub outcome: Outcome,
    /// The process that it made, by its number on the host.
    pub made: Option<i32>,
}

/// A process of a stack, or of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Its number on the host.
    pub pid: i32,
    /// Its part.
    pub role: Role,
    /// The container that it makes or is in, once that is known.
    pub container: Option<String>,
}

/// The part that a process plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Decides; in no namespace of ours.
    Supervisor,
    /// Builds images: reads, downloads, and has workers do the rest; in no namespace of ours.
    Command,
    /// Writes the layers of one image; root of a user namespace of its own.
    Worker,
    /// Root of the stack's user namespace, PID 1 of the stack.
    Hub,
    /// Was forked for one task, or is about to become another program.
    Helper,
    /// Builds a container from inside and becomes its first process.
    Child,
    /// The first process of a container.
    Init,
    /// Is about to enter a container that runs.
    Joiner,
    /// Becomes the container's program.
    Program,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Supervisor => "supervisor",
            Self::Command => "command",
            Self::Worker => "worker",
            Self::Hub => "hub",
            Self::Helper => "helper",
            Self::Child => "child",
            Self::Init => "init",
            Self::Joiner => "joiner",
            Self::Program => "program",
        })
    }
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What it returned.
    Returned(i64),
    /// The number of the error.
    Failed(i32),
    /// Nobody may watch what it is now: a program that has more rights than its caller.
    Unseen,
}

impl Outcome {
    /// What the kernel has in the register of results.
    pub(super) fn of(result: i64) -> Self {
        match i32::try_from(result) {
            Ok(number @ -4095..=-1) => Self::Failed(-number),
            _ => Self::Returned(result),
        }
    }

    /// Whether it did what it is for, as far as it was seen.
    pub(super) fn is_success(self) -> bool {
        !matches!(self, Self::Failed(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Returned(value) => value.fmt(f),
            Self::Failed(number) => {
                let text = nix::errno::Errno::from_raw(*number).desc();
                write!(f, "-1 {} ({text})", flags::error(*number))
            }
            Self::Unseen => f.write_str("?"),
        }
    }
}
