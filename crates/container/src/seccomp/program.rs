//! Verdicts on numbers, and the classic BPF program that finds them by bisection.

use super::Error;

/// One instruction (`struct sock_filter`); the jumps count the instructions that are skipped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) if_true: u8,
    pub(super) if_false: u8,
    pub(super) operand: u32,
}

/// Instruction codes, `<linux/bpf_common.h>`.
pub(super) mod code {
    /// Load the word at this offset of `struct seccomp_data`.
    pub(in super::super) const LOAD: u16 = 0x20;
    pub(in super::super) const AND: u16 = 0x54;
    pub(in super::super) const JUMP: u16 = 0x05;
    pub(in super::super) const JUMP_IF_EQUAL: u16 = 0x15;
    pub(in super::super) const JUMP_IF_GREATER: u16 = 0x25;
    pub(in super::super) const JUMP_IF_NOT_LESS: u16 = 0x35;
    pub(in super::super) const RETURN: u16 = 0x06;
}

/// Offsets in `struct seccomp_data`, `<linux/seccomp.h>`.
pub(super) mod offset {
    pub(in super::super) const NUMBER: u32 = 0;
    pub(in super::super) const ARCHITECTURE: u32 = 4;
    pub(in super::super) const ARGUMENTS: u32 = 16;
    /// Of the halves of an argument.
    pub(in super::super) const LOW: u32 = if cfg!(target_endian = "little") { 0 } else { 4 };
    pub(in super::super) const HIGH: u32 = 4 - LOW;
}

/// What a filter returns, `<linux/seccomp.h>`; the lower half is data.
pub(super) mod action {
    pub(in super::super) const KILL_PROCESS: u32 = 0x8000_0000;
    pub(in super::super) const KILL_THREAD: u32 = 0;
    pub(in super::super) const TRAP: u32 = 0x0003_0000;
    pub(in super::super) const ERRNO: u32 = 0x0005_0000;
    pub(in super::super) const NOTIFY: u32 = 0x7fc0_0000;
    pub(in super::super) const TRACE: u32 = 0x7ff0_0000;
    pub(in super::super) const LOG: u32 = 0x7ffc_0000;
    pub(in super::super) const ALLOW: u32 = 0x7fff_0000;
    /// The part that is not data.
    pub(in super::super) const KIND: u32 = 0xffff_0000;
}

/// The kernel's limit, `BPF_MAXINSNS`.
pub(super) const MAX_INSTRUCTIONS: usize = 4096;

/// What is asked of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    AtMost,
    AtLeast,
    Greater,
}

/// Holds for an argument of which the bits of `mask` compare like this with `value`, both as unsigned 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// From 0 to 5.
    pub(super) argument: u8,
    pub(super) mask: u64,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

/// An action under conditions, all of which have to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: u32,
}

/// What becomes of a call: the action of the first case that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) cases: Vec<Case>,
    pub(super) otherwise: u32,
}

impl Verdict {
    pub(super) fn always(action: u32) -> Self {
        Self { cases: Vec::new(), otherwise: action }
    }
}

impl Instruction {
    fn new(code: u16, operand: u32) -> Self {
        Self { code, if_true: 0, if_false: 0, operand }
    }

    fn jump(code: u16, operand: u32, if_true: u8, if_false: u8) -> Self {
        Self { code, if_true, if_false, operand }
    }

    pub(super) fn bytes(&self) -> [u8; 8] {
        let [a, b] = self.code.to_ne_bytes();
        let [c, d, e, f] = self.operand.to_ne_bytes();
        [a, b, self.if_true, self.if_false, c, d, e, f]
    }
}

/// The program for these architectures (`AUDIT_ARCH_` number, and where each verdict begins to hold, from 0 on in
/// order), asked in this order. A call by another architecture's numbers ends the process.
///
/// # Errors
/// When it is longer than the kernel takes.
pub(super) fn assemble(architectures: &[(u32, Vec<(u32, Verdict)>)]) -> Result<Vec<Instruction>, Error> {
    let mut program = vec![Instruction::new(code::LOAD, offset::ARCHITECTURE)];
    for (audit, ranges) in architectures {
        let mut block = vec![Instruction::new(code::LOAD, offset::NUMBER)];
        block.extend(bisect(ranges)?);
        jump_over(&mut program, code::JUMP_IF_EQUAL, *audit, true, block.len());
        program.extend(block);
    }
    program.push(Instruction::new(code::RETURN, action::KILL_PROCESS));
    if program.len() > MAX_INSTRUCTIONS { Err(Error::TooLong(program.len())) } else { Ok(program) }
}

/// Jumps over the `length` instructions to come unless the comparison of the loaded word comes out as `unless`.
fn jump_over(program: &mut Vec<Instruction>, code: u16, operand: u32, unless: bool, length: usize) {
    let pair = |over: u8, stay: u8| if unless { (stay, over) } else { (over, stay) };
    if let Ok(length) = u8::try_from(length) {
        let (if_true, if_false) = pair(length, 0);
        program.push(Instruction::jump(code, operand, if_true, if_false));
    } else {
        // Further than a conditional jump reaches.
        let (if_true, if_false) = pair(0, 1);
        program.push(Instruction::jump(code, operand, if_true, if_false));
        program.push(Instruction::new(code::JUMP, length as u32));
    }
}

/// The number is loaded.
fn bisect(ranges: &[(u32, Verdict)]) -> Result<Vec<Instruction>, Error> {
    let [_, .., _] = ranges else {
        return ranges.first().map_or_else(|| Ok(Vec::new()), |(_, verdict)| decide(verdict));
    };
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let (first, lower) = (upper[0].0, bisect(lower)?);
    let mut program = Vec::with_capacity(lower.len() + 2);
    jump_over(&mut program, code::JUMP_IF_NOT_LESS, first, false, lower.len());
    program.extend(lower);
    program.extend(bisect(upper)?);
    Ok(program)
}

fn decide(verdict: &Verdict) -> Result<Vec<Instruction>, Error> {
    let mut program = Vec::new();
    let mut cases = verdict.cases.as_slice();
    while let Some(case) = cases.first() {
        let together = alternatives(cases);
        let (alike, rest) = cases.split_at(together.max(1));
        cases = rest;
        if together > 1 {
            program.extend(any_of(alike));
            continue;
        }
        let mut tests = Vec::new();
        for condition in &case.conditions {
            tests.extend(test(condition));
        }
        let length = tests.len();
        for (index, test) in tests.into_iter().enumerate() {
            // Six conditions, one on each argument, are at most 42 instructions.
            let to_next = u8::try_from(length - index).map_err(|_| Error::TooLong(length))?;
            program.push(test.resolve(to_next));
        }
        program.push(Instruction::new(code::RETURN, case.action));
        if program.len() > MAX_INSTRUCTIONS {
            return Err(Error::TooLong(program.len()));
        }
    }
    program.push(Instruction::new(code::RETURN, verdict.otherwise));
    Ok(program)
}

/// What a case compares with its value's lower half: argument, upper half, and the action.
fn equality(case: &Case) -> Option<(u8, u32, u32)> {
    match case.conditions[..] {
        [Condition { argument, mask: u64::MAX, comparison: Comparison::Equal, value }] => {
            Some((argument, (value >> 32) as u32, case.action))
        }
        _ => None,
    }
}

/// How many cases from the first on do the same for other values of the same argument, as far as a jump reaches.
fn alternatives(cases: &[Case]) -> usize {
    let first = cases.first().and_then(equality);
    cases.iter().take(200).take_while(|case| first.is_some() && equality(case) == first).count()
}

/// Cases that are [`alternatives`]: the argument is loaded once for all of them.
fn any_of(cases: &[Case]) -> Vec<Instruction> {
    let Some((argument, high, action)) = cases.first().and_then(equality) else { return Vec::new() };
    let at = offset::ARGUMENTS + 8 * u32::from(argument);
    let count = cases.len() as u8;
    let mut program = vec![
        Instruction::new(code::LOAD, at + offset::HIGH),
        Instruction::jump(code::JUMP_IF_EQUAL, high, 0, count + 2),
        Instruction::new(code::LOAD, at + offset::LOW),
    ];
    let values = cases.iter().flat_map(|case| &case.conditions).map(|condition| condition.value as u32);
    program.extend(
        values.zip((0..count).rev()).map(|(value, behind)| {
            Instruction::jump(code::JUMP_IF_EQUAL, value, behind, u8::from(behind == 0))
        }),
    );
    program.push(Instruction::new(code::RETURN, action));
    program
}

/// Where a comparison goes on.
#[derive(Clone, Copy)]
enum To {
    /// So many instructions further.
    Skip(u8),
    /// To the next case, because the condition does not hold.
    NextCase,
}

/// An instruction whose jumps out of the case are still open.
#[derive(Clone, Copy)]
struct Test {
    code: u16,
    operand: u32,
    if_true: To,
    if_false: To,
}

impl Test {
    fn plain(code: u16, operand: u32) -> Self {
        Self { code, operand, if_true: To::Skip(0), if_false: To::Skip(0) }
    }

    fn resolve(self, to_next: u8) -> Instruction {
        let distance = |to| match to {
            To::Skip(count) => count,
            To::NextCase => to_next,
        };
        Instruction::jump(self.code, self.operand, distance(self.if_true), distance(self.if_false))
    }
}

/// Runs on into what follows when the condition holds. A half that the mask leaves nothing of is not looked at.
fn test(condition: &Condition) -> Vec<Test> {
    let Condition { argument, mask, comparison, value } = *condition;
    let at = offset::ARGUMENTS + 8 * u32::from(argument);
    let load = |half: u32, mask: u32| {
        let mut tests = vec![Test::plain(code::LOAD, at + half)];
        if mask != u32::MAX {
            tests.push(Test::plain(code::AND, mask));
        }
        tests
    };
    let high = load(offset::HIGH, (mask >> 32) as u32);
    let low = load(offset::LOW, mask as u32);
    let (value_high, value_low) = ((value >> 32) as u32, value as u32);
    // The lower half decides when the upper one is equal: how far its end is from a jump in front of it.
    let past_low = low.len() as u8 + 1;
    let compare = |code, operand, if_true, if_false| Test { code, operand, if_true, if_false };
    let (stay, fail) = (To::Skip(0), To::NextCase);
    let mut tests = Vec::new();
    let upper_matters = mask >> 32 != 0 || value_high != 0;
    match comparison {
        Comparison::Equal | Comparison::NotEqual => {
            let equal = comparison == Comparison::Equal;
            if upper_matters {
                tests.extend(high);
                let differs = if equal { fail } else { To::Skip(past_low) };
                tests.push(compare(code::JUMP_IF_EQUAL, value_high, stay, differs));
            }
            tests.extend(low);
            let (same, differs) = if equal { (stay, fail) } else { (fail, stay) };
            tests.push(compare(code::JUMP_IF_EQUAL, value_low, same, differs));
        }
        Comparison::Less | Comparison::AtMost | Comparison::AtLeast | Comparison::Greater => {
            let upwards = matches!(comparison, Comparison::AtLeast | Comparison::Greater);
            if upper_matters {
                // Greater, or equal, or less.
                let (greater, less) =
                    if upwards { (To::Skip(past_low + 1), fail) } else { (fail, To::Skip(past_low)) };
                tests.extend(high);
                tests.push(compare(code::JUMP_IF_GREATER, value_high, greater, stay));
                tests.push(compare(code::JUMP_IF_EQUAL, value_high, stay, less));
            }
            tests.extend(low);
            // `a <= b` is what `a > b` is not, and `a < b` what `a >= b` is not.
            let strict = matches!(comparison, Comparison::Greater | Comparison::AtMost);
            let code = if strict { code::JUMP_IF_GREATER } else { code::JUMP_IF_NOT_LESS };
            let (truth, falsehood) = if upwards { (stay, fail) } else { (fail, stay) };
            tests.push(compare(code, value_low, truth, falsehood));
        }
    }
    tests
}
