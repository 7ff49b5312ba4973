//! Which devices the processes of a cgroup may use: rules, and the BPF program that they become.
//!
//! The rules are those of cgroup v1's device whitelist: they are carried out in order, an allowing one adds
//! accesses, a denying one takes them away, and what was never allowed is denied. The program asks for each access
//! that is wanted which rule spoke last about it.

use std::os::fd::BorrowedFd;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use serde::{Deserialize, Serialize};

use super::Error;

// The kernel's include/uapi/linux/bpf.h, `struct bpf_cgroup_dev_ctx`.
const MAKE: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MAKE | READ | WRITE;
const BLOCK: u8 = 1;
const CHARACTER: u8 = 2;

/// More rules than anybody writes; a program for this many is well below the kernel's limit.
const RULES_MAX: usize = 4096;

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rule {
    allow: bool,
    /// `None` is any.
    kind: Option<u8>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

impl Rule {
    const fn node(major: u32, minor: Option<u32>) -> Self {
        Self { allow: true, kind: Some(CHARACTER), major: Some(major), minor, access: ALL }
    }

    const fn make(kind: u8) -> Self {
        Self { allow: true, kind: Some(kind), major: None, minor: None, access: MAKE }
    }

    fn version1(&self) -> String {
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = match self.kind {
            None if self.access == ALL => return "a".to_owned(),
            None => 'a',
            Some(BLOCK) => 'b',
            Some(_) => 'c',
        };
        let letters = [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')];
        let access: String =
            letters.iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, letter)| *letter).collect();
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }

    fn speaks_of_all(&self) -> bool {
        self.kind.is_none() && self.access == ALL
    }
}

/// Devices that every container may use, whatever the rules say (the default devices of the runtime
/// specification), and making nodes, which is harmless without the right to open them.
const DEFAULT: [Rule; 10] = [
    Rule::make(CHARACTER),
    Rule::make(BLOCK),
    Rule::node(1, Some(3)), // null
    Rule::node(1, Some(5)), // zero
    Rule::node(1, Some(7)), // full
    Rule::node(1, Some(8)), // random
    Rule::node(1, Some(9)), // urandom
    Rule::node(5, Some(0)), // tty
    Rule::node(5, Some(2)), // ptmx
    Rule::node(136, None),  // pts
];

/// Reads `linux.resources.devices`.
pub(super) fn from_spec(devices: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, Error> {
    const FIELD: &str = "linux.resources.devices";
    if devices.len() > RULES_MAX {
        return Err(Error::invalid(FIELD, format!("more than {RULES_MAX} rules")));
    }
    let rule = |(index, device): (usize, &LinuxDeviceCgroup)| {
        let invalid =
            |name: &str, problem: String| Error::invalid(format!("{FIELD}[{index}].{name}"), problem);
        let kind = match device.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(BLOCK),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
            Some(LinuxDeviceType::P) => return Err(invalid("type", "a pipe is no device".into())),
        };
        let number = |name, number: Option<i64>| match number {
            // -1 is how many programs write "any".
            None | Some(-1) => Ok(None),
            Some(number) => u32::try_from(number)
                .map(Some)
                .map_err(|_| invalid(name, format!("{number} is no device number"))),
        };
        let (major, minor) = (number("major", device.major())?, number("minor", device.minor())?);
        if kind.is_none() && (major.is_some() || minor.is_some()) {
            return Err(invalid("type", "a rule for all types cannot name a device number".into()));
        }
        let mut access = 0;
        for letter in device.access().as_deref().unwrap_or("rwm").chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MAKE,
                other => {
                    return Err(invalid("access", format!("`{}` is none of r, w, m", other.escape_debug())));
                }
            };
        }
        // An empty string is written by some for "all".
        let access = if access == 0 { ALL } else { access };
        Ok(Rule { allow: device.allow(), kind, major, minor, access })
    };
    devices.iter().enumerate().map(rule).collect()
}

/// The rules as cgroup v1 takes them: `devices.allow` or `devices.deny`, and lines for it; the default devices last.
pub(super) fn version1_lines(rules: &[Rule]) -> Vec<(&'static str, String)> {
    let base = Rule { allow: false, kind: None, major: None, minor: None, access: ALL };
    let all: Vec<&Rule> = [&base].into_iter().chain(rules).chain(&DEFAULT).collect();
    all.chunk_by(|a, b| a.allow == b.allow)
        .map(|run| {
            let file = if run[0].allow { "devices.allow" } else { "devices.deny" };
            (file, run.iter().map(|rule| rule.version1() + "\n").collect())
        })
        .collect()
}

/// Makes a cgroup's processes obey the rules; those that it had are replaced.
///
/// # Errors
/// When the kernel refuses, but for an ordinary user whose rules would change nothing: device nodes cannot be made
/// in their user namespace, and only what they can open themselves can be bound in. A rule that denies one of those
/// cannot be enforced, and is an error.
pub(super) fn enforce(cgroup: BorrowedFd<'_>, rules: &[Rule], rootless: bool) -> Result<(), Error> {
    let doing = |step: &str| Error::system(format!("{step} the device rules of the cgroup"));
    let program = match sys::bpf::load_device_program(&compile(rules)) {
        Err(error) if rootless && error.kind() == std::io::ErrorKind::PermissionDenied => {
            return match rules.iter().position(|rule| !rule.allow && !rule.speaks_of_all()) {
                None => Ok(()),
                Some(index) => Err(Error::Unsupported {
                    field: format!("linux.resources.devices[{index}]"),
                    reason: "an ordinary user cannot load a device program".into(),
                }),
            };
        }
        other => other.map_err(doing("load"))?,
    };
    use std::os::fd::AsFd;
    let old = sys::bpf::device_programs(cgroup).map_err(doing("look up"))?;
    // Both at once for a moment, so that nothing is ever allowed that neither of them allows.
    sys::bpf::attach_device_program(cgroup, program.as_fd()).map_err(doing("attach"))?;
    for program in old {
        sys::bpf::detach_device_program(cgroup, program.as_fd()).map_err(doing("replace"))?;
    }
    Ok(())
}

/// One instruction: `struct bpf_insn` in memory order.
fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    // Two bit fields share a byte, and their order follows the byte order.
    let registers =
        if cfg!(target_endian = "little") { source << 4 | destination } else { destination << 4 | source };
    u64::from_ne_bytes([code, registers, o0, o1, i0, i1, i2, i3])
}

// Registers: 0 is the answer, 1 the context and later scratch, and what is kept:
const TYPE: u8 = 2;
/// The accesses that no rule has spoken about yet.
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
// Operations (the kernel's Documentation/bpf/standardization/instruction-set.rst).
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_IF_NOT: u8 = 0x56;
const JUMP_IF: u8 = 0x16;
const EXIT: u8 = 0x95;

/// The program for these rules, from the last to the first, the default devices before them.
fn compile(rules: &[Rule]) -> Vec<u64> {
    let mut program = vec![
        instruction(LOAD_WORD, TYPE, 1, 0, 0),
        instruction(MOVE_REGISTER, WANTED, TYPE, 0, 0),
        instruction(AND, TYPE, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, WANTED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, 1, 4, 0),
        instruction(LOAD_WORD, MINOR, 1, 8, 0),
    ];
    let answer = |program: &mut Vec<u64>, allow| {
        program.extend([instruction(MOVE, 0, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]);
    };
    for rule in DEFAULT.iter().rev().chain(rules.iter().rev()) {
        if rule.speaks_of_all() {
            answer(&mut program, rule.allow);
            // The verifier refuses what can never be reached.
            return program;
        }
        let conditions = [
            rule.kind.map(|kind| (TYPE, u32::from(kind))),
            rule.major.map(|major| (MAJOR, major)),
            rule.minor.map(|minor| (MINOR, minor)),
        ];
        let mut body = Vec::new();
        if rule.allow {
            body.extend([
                instruction(AND, WANTED, 0, 0, i32::from(ALL & !rule.access)),
                instruction(JUMP_IF_NOT, WANTED, 0, 2, 0),
            ]);
        } else {
            body.extend([
                instruction(MOVE_REGISTER, 1, WANTED, 0, 0),
                instruction(AND, 1, 0, 0, i32::from(rule.access)),
                instruction(JUMP_IF, 1, 0, 2, 0),
            ]);
        }
        answer(&mut body, rule.allow);
        let conditions: Vec<(u8, u32)> = conditions.into_iter().flatten().collect();
        for (index, (register, value)) in conditions.iter().enumerate() {
            let skip = conditions.len() - index - 1 + body.len();
            let skip = i16::try_from(skip).unwrap_or(i16::MAX);
            program.push(instruction(JUMP_IF_NOT, *register, 0, skip, value.cast_signed()));
        }
        program.append(&mut body);
    }
    answer(&mut program, false);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the program.
    fn run(program: &[u64], kind: u8, access: u8, major: u32, minor: u32) -> bool {
        let context = [u32::from(access) << 16 | u32::from(kind), major, minor];
        let mut registers = [0u32; 11];
        let mut at = 0usize;
        loop {
            let [code, regs, o0, o1, i0, i1, i2, i3] = program[at].to_ne_bytes();
            let (destination, source) = (usize::from(regs & 15), usize::from(regs >> 4));
            let offset = i16::from_ne_bytes([o0, o1]);
            let immediate = u32::from_ne_bytes([i0, i1, i2, i3]);
            at += 1;
            match code {
                LOAD_WORD => registers[destination] = context[offset as usize / 4],
                MOVE => registers[destination] = immediate,
                MOVE_REGISTER => registers[destination] = registers[source],
                AND => registers[destination] &= immediate,
                SHIFT_RIGHT => registers[destination] >>= immediate,
                JUMP_IF_NOT if registers[destination] != immediate => at += offset as usize,
                JUMP_IF if registers[destination] == immediate => at += offset as usize,
                JUMP_IF | JUMP_IF_NOT => {}
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    fn rules(text: &str) -> Vec<Rule> {
        let devices: Vec<LinuxDeviceCgroup> = serde_json::from_str(text).unwrap();
        from_spec(&devices).unwrap()
    }

    #[test]
    fn the_last_rule_about_an_access_wins() {
        let program = compile(&rules(
            r#"[{"allow": false, "access": "rwm"},
                {"allow": true, "type": "b", "major": 8, "access": "rwm"},
                {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "w"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "w"}]"#,
        ));
        assert!(run(&program, BLOCK, READ | WRITE, 8, 0));
        assert!(run(&program, BLOCK, READ, 8, 1));
        // Opened for both, a half denial counts.
        assert!(!run(&program, BLOCK, READ | WRITE, 8, 1));
        // Two rules together allow what neither allows alone.
        assert!(run(&program, CHARACTER, READ | WRITE, 10, 229));
        assert!(!run(&program, CHARACTER, READ, 8, 0));
        // Nodes may be made; the default devices may be used.
        assert!(run(&program, CHARACTER, MAKE, 10, 1));
        assert!(run(&program, CHARACTER, READ | WRITE, 1, 3));
        assert!(run(&program, CHARACTER, READ | WRITE, 136, 77));
        assert!(!run(&program, CHARACTER, READ, 1, 1));
    }

    #[test]
    fn allowing_everything_and_nothing() {
        let everything = compile(&rules(r#"[{"allow": true, "access": "rwm"}]"#));
        assert!(run(&everything, BLOCK, ALL, 8, 0));
        let nothing = compile(&[]);
        assert!(!run(&nothing, BLOCK, READ, 8, 0));
        assert!(run(&nothing, CHARACTER, READ | WRITE, 5, 2));
        let all_reads = compile(&rules(r#"[{"allow": true, "type": "a", "access": "r"}]"#));
        assert!(run(&all_reads, BLOCK, READ, 8, 0) && !run(&all_reads, BLOCK, WRITE, 8, 0));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let error = |text: &str| {
            let devices: Vec<LinuxDeviceCgroup> = serde_json::from_str(text).unwrap();
            from_spec(&devices).unwrap_err().to_string()
        };
        assert_eq!(
            error(r#"[{"allow": true, "type": "c", "access": "rx"}]"#),
            "`linux.resources.devices[0].access`: `x` is none of r, w, m"
        );
        assert_eq!(
            error(r#"[{"allow": true, "type": "c", "major": -7}]"#),
            "`linux.resources.devices[0].major`: -7 is no device number"
        );
        assert!(error(r#"[{"allow": true, "major": 7}]"#).contains("all types"));
    }

    #[test]
    fn lines_for_version_1() {
        let lines = version1_lines(&rules(
            r#"[{"allow": false}, {"allow": true, "type": "c", "major": 10, "access": "rw"}]"#,
        ));
        assert_eq!(lines[0], ("devices.deny", "a\na\n".to_owned()));
        assert!(lines[1].0 == "devices.allow" && lines[1].1.starts_with("c 10:* rw\nc *:* m\n"));
        assert!(lines[1].1.ends_with("c 136:* rwm\n"));
    }
}
