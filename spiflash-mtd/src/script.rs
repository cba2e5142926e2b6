//! Scripts for a bus: what a host does, one step a line, with what it expects to read.
//!
//! ```text
//! # Words after a hash mark are for people.
//! frame 9f >3 = ef 40 18        # bytes out, three bytes in, and what they must be (.. for any)
//! frame 06
//! frame 02 001000 55*256        # 256 times 55h
//! ready 3ms                     # until the chip is ready; no later than that
//! frame eb x4 001000 ff 0000 >4 # from x1, x2 or x4 on, bytes go on so many lines
//! wait 10us                     # or ns, ms, s
//! expect idle                   # the chip's state by its name, or busy, or ready
//! wp low                        # or high
//! power off                     # or on
//! cut-after 300us               # power will go then; cut-at: at a time of the bus; cut-never
//! chip 1                        # frames and pins are this chip's from here on
//! clock 25MHz
//! ```
//!
//! The invariant: a script that was parsed has no step that cannot be tried; what a step expected and did not find is a result
//! of the run, no error.

use crate::bus::{BusError, SpiBus, Transfer};
use crate::chip::Chip;
use crate::command::Lines;
use crate::sim::SimBus;
use crate::states::State;
use serde::Serialize;

/// Bytes of a frame at most.
const MAX_FRAME_BYTES: usize = 32 << 20;

/// Why a script is refused, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// A line that is no step.
    #[error("{file}:{line}: {what}; {rule}")]
    Syntax {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
        /// What would be right.
        rule: String,
    },
    /// The bus refused a step.
    #[error("line {line}: {source}")]
    Bus {
        /// The line, from 1.
        line: usize,
        /// Why.
        source: BusError,
    },
}

/// A bus whose chips can be looked at and cut off: what scripts run on.
pub trait ScriptBus: SpiBus {
    /// A chip, brought up to the bus's time.
    fn look_at(&mut self, select: u8) -> Option<&Chip>;

    /// Power of a chip will go at this time; `None`: it will not.
    fn cut_at_ns(&mut self, select: u8, at_ns: Option<u64>);
}

impl ScriptBus for SimBus {
    fn look_at(&mut self, select: u8) -> Option<&Chip> {
        self.chip(select)
    }

    fn cut_at_ns(&mut self, select: u8, at_ns: Option<u64>) {
        if let Some(chip) = self.chip_mut(select) {
            chip.set_cut_at_ns(at_ns);
        }
    }
}

/// Bytes of a frame that go on the same lines the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// To the chip.
    Write(Lines, Vec<u8>),
    /// From the chip.
    Read(Lines, usize),
}

/// What `expect` expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// BUSY, or not.
    Busy(bool),
    /// A state.
    State(State),
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A frame; the bytes it reads must be these, `None` standing for any.
    Frame {
        /// Its bytes.
        parts: Vec<Piece>,
        /// What it must read, as far as that says.
        expected: Vec<Option<u8>>,
    },
    /// Time passes, in nanoseconds.
    Wait(u64),
    /// Until the chip is ready; longer than so many nanoseconds is a failure.
    Ready(Option<u64>),
    /// Power.
    Power(bool),
    /// The WP# pin: low?
    WriteProtect(bool),
    /// Power will go at a time of the bus.
    CutAt(Option<u64>),
    /// Power will go so many nanoseconds from here.
    CutAfter(u64),
    /// The chip select of the steps that follow.
    Chip(u8),
    /// The clock of SCK, in hertz.
    Clock(u32),
    /// The chip's state.
    Expect(Expected),
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its line, from 1.
    pub line: usize,
    /// What it does.
    pub action: Action,
}

/// A script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Its steps.
    pub steps: Vec<Step>,
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepResult {
    /// Its line, from 1.
    pub line: usize,
    /// When it was over, in nanoseconds of the bus's time.
    pub t_ns: u64,
    /// What a frame read, as hex.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub received: String,
    /// What was not as expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Script {
    /// A script of a file's text. `file` is for messages.
    ///
    /// # Errors
    /// [`ScriptError::Syntax`] for the first line that is no step.
    pub fn parse(text: &str, file: &str) -> Result<Script, ScriptError> {
        let mut steps = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            let action = action(line).map_err(|Wrong(what, rule)| {
                let file = file.into();
                ScriptError::Syntax { file, line: number + 1, what, rule }
            })?;
            steps.push(Step { line: number + 1, action });
        }
        Ok(Script { steps })
    }

    /// Runs all steps; a failed expectation does not end it. `each` gets the result of each step.
    ///
    /// # Errors
    /// [`ScriptError::Bus`] for a chip select or a clock that the bus has not.
    pub fn run(&self, bus: &mut dyn ScriptBus, mut each: impl FnMut(StepResult)) -> Result<(), ScriptError> {
        let mut select = 0;
        for step in &self.steps {
            let mut received = Vec::new();
            let failure = run_step(&step.action, bus, &mut select, &mut received)
                .map_err(|source| ScriptError::Bus { line: step.line, source })?;
            let received = received.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            each(StepResult { line: step.line, t_ns: bus.now_ns(), received, failure });
        }
        Ok(())
    }
}

fn run_step(
    action: &Action,
    bus: &mut dyn ScriptBus,
    select: &mut u8,
    received: &mut Vec<u8>,
) -> Result<Option<String>, BusError> {
    let there = |bus: &mut dyn ScriptBus, select: u8| match bus.chips() {
        chips if select < chips => Ok(()),
        chips => Err(BusError::NoChip { select, chips }),
    };
    match action {
        Action::Frame { parts, expected } => {
            run_frame(parts, bus, *select, received)?;
            return Ok(compare(expected, received));
        }
        Action::Wait(ns) => bus.delay_ns(*ns),
        Action::Ready(within_ns) => {
            there(bus, *select)?;
            return Ok(wait_until_ready(bus, *select, *within_ns));
        }
        Action::Power(on) => bus.set_power(*select, *on)?,
        Action::WriteProtect(low) => bus.set_write_protect(*select, *low)?,
        Action::CutAt(at_ns) => {
            there(bus, *select)?;
            bus.cut_at_ns(*select, *at_ns);
        }
        Action::CutAfter(ns) => {
            there(bus, *select)?;
            let at_ns = bus.now_ns().saturating_add(*ns);
            bus.cut_at_ns(*select, Some(at_ns));
        }
        Action::Chip(number) => {
            there(bus, *number)?;
            *select = *number;
        }
        Action::Clock(hz) => drop(bus.set_clock_hz(*hz)?),
        Action::Expect(expected) => {
            there(bus, *select)?;
            let state = bus.look_at(*select).map_or(State::Off, Chip::state);
            let fits = match expected {
                Expected::Busy(busy) => state.is_busy() == *busy,
                Expected::State(wanted) => state == *wanted,
            };
            return Ok((!fits).then(|| format!("the chip's state is {}", state_name(state))));
        }
    }
    Ok(None)
}

fn run_frame(
    parts: &[Piece],
    bus: &mut dyn ScriptBus,
    select: u8,
    received: &mut Vec<u8>,
) -> Result<(), BusError> {
    bus.select(select)?;
    let mut result = Ok(());
    for part in parts {
        result = result.and_then(|()| match part {
            Piece::Write(lines, bytes) => bus.transfer(Transfer::Write { lines: *lines, bytes }),
            Piece::Read(lines, count) => {
                let begin = received.len();
                received.resize(begin + count, 0);
                let bytes = received.get_mut(begin..).unwrap_or(&mut []);
                bus.transfer(Transfer::Read { lines: *lines, bytes })
            }
        });
    }
    bus.deselect()?;
    result
}

fn compare(expected: &[Option<u8>], received: &[u8]) -> Option<String> {
    let differs = |at: &usize| match (expected.get(*at), received.get(*at)) {
        (Some(Some(expected)), Some(byte)) => expected != byte,
        _ => false,
    };
    let at = (0..received.len()).find(differs)?;
    let (wanted, got) = (expected.get(at).copied().flatten()?, received.get(at)?);
    let more = (at + 1..received.len()).filter(differs).count();
    let others = if more == 0 { String::new() } else { format!(", and {more} bytes more differ") };
    Some(format!("byte {at} of what was read is {got:02x}, not {wanted:02x}{others}"))
}

fn wait_until_ready(bus: &mut dyn ScriptBus, select: u8, within_ns: Option<u64>) -> Option<String> {
    let begin = bus.now_ns();
    // One state may lead to another that takes time, but none does so for ever.
    for _ in 0..State::ALL.len() {
        let chip = bus.look_at(select)?;
        if chip.state() == State::Off {
            return Some("the chip has no power, and will not get ready".into());
        }
        let Some(until) = chip.busy_until_ns() else {
            let took = bus.now_ns().saturating_sub(begin);
            return within_ns
                .filter(|within| took > *within)
                .map(|within| format!("the chip was ready after {took} ns, not within {within} ns"));
        };
        let now = bus.now_ns();
        bus.delay_ns(until.saturating_sub(now));
    }
    Some("the chip is still busy: this bus's time does not pass by waiting".into())
}

// --- The language ---

/// What is wrong with a line, and what would be right.
struct Wrong(String, String);

type Parsed<T> = Result<T, Wrong>;

fn wrong<T>(what: impl Into<String>, rule: impl Into<String>) -> Parsed<T> {
    Err(Wrong(what.into(), rule.into()))
}

const STEPS: [&str; 12] = [
    "frame",
    "wait",
    "ready",
    "power",
    "wp",
    "cut-at",
    "cut-after",
    "cut-never",
    "chip",
    "clock",
    "expect",
    "select",
];

fn action(line: &str) -> Parsed<Action> {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    Ok(match word {
        "frame" => return frame(rest),
        "wait" => Action::Wait(time_ns(rest)?),
        "ready" if rest.is_empty() => Action::Ready(None),
        "ready" => Action::Ready(Some(time_ns(rest)?)),
        "power" => Action::Power(one_of(rest, &[("on", true), ("off", false)])?),
        "wp" => Action::WriteProtect(one_of(rest, &[("low", true), ("high", false)])?),
        "cut-at" => Action::CutAt(Some(time_ns(rest)?)),
        "cut-after" => Action::CutAfter(time_ns(rest)?),
        "cut-never" if rest.is_empty() => Action::CutAt(None),
        "cut-never" => return wrong(format!("{rest:?} after cut-never"), "it stands alone"),
        "chip" | "select" => match rest.parse() {
            Ok(number) => Action::Chip(number),
            Err(_) => return wrong(format!("{rest:?} is no chip select"), "it must be 0 to 255"),
        },
        "clock" => Action::Clock(clock_hz(rest)?),
        "expect" => Action::Expect(expectation(rest)?),
        _ => {
            let rule = match nearest(word, &STEPS) {
                Some(near) => format!("did you mean {near:?}?"),
                None if is_hex(word) => "a frame begins with the word \"frame\"".into(),
                None => format!("a step begins with one of {}", STEPS.join(", ")),
            };
            return wrong(format!("{word:?} is no step"), rule);
        }
    })
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn one_of(word: &str, choices: &[(&str, bool)]) -> Parsed<bool> {
    let found = choices.iter().find(|(name, _)| *name == word);
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    match found {
        Some((_, value)) => Ok(*value),
        None => wrong(format!("{word:?} here"), format!("it must be {}", names.join(" or "))),
    }
}

fn frame(text: &str) -> Parsed<Action> {
    let (sent, read) = match text.split_once('=') {
        Some((sent, read)) => (sent, Some(read)),
        None => (text, None),
    };
    let (mut parts, mut lines, mut total) = (Vec::new(), Lines::Single, 0usize);
    for word in sent.split_whitespace() {
        let (bytes, count) = match word.strip_prefix('>') {
            Some(count) => (None, read_count(count)?),
            None => match lines_of(word) {
                Some(changed) => {
                    lines = changed?;
                    continue;
                }
                None => {
                    let bytes = repeated(word, MAX_FRAME_BYTES - total)?;
                    let count = bytes.len();
                    (Some(bytes), count)
                }
            },
        };
        total = total.saturating_add(count);
        if total > MAX_FRAME_BYTES {
            return wrong(format!("a frame of {total} bytes"), format!("it may have {MAX_FRAME_BYTES}"));
        }
        match (bytes, parts.last_mut()) {
            (Some(more), Some(Piece::Write(on, bytes))) if *on == lines => bytes.extend(more),
            (Some(bytes), _) => parts.push(Piece::Write(lines, bytes)),
            (None, Some(Piece::Read(on, all))) if *on == lines => *all += count,
            (None, _) => parts.push(Piece::Read(lines, count)),
        }
    }
    let reads: usize =
        parts.iter().map(|part| if let Piece::Read(_, count) = part { *count } else { 0 }).sum();
    let expected = match read {
        None => Vec::new(),
        Some(read) => expected_bytes(read, reads)?,
    };
    Ok(Action::Frame { parts, expected })
}

fn lines_of(word: &str) -> Option<Parsed<Lines>> {
    let count = word.strip_prefix('x')?;
    Some(match count {
        "1" => Ok(Lines::Single),
        "2" => Ok(Lines::Dual),
        "4" => Ok(Lines::Quad),
        _ => wrong(format!("{word:?}"), "lines are x1, x2 or x4"),
    })
}

fn read_count(text: &str) -> Parsed<usize> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => wrong(format!("\">{text}\""), "it must be > and how many bytes are read, as in >3"),
    }
}

/// Pairs of hex digits, and at will how often they come: `5aa5`, `55*256`.
fn repeated(word: &str, most: usize) -> Parsed<Vec<u8>> {
    let (digits, times) = word.split_once('*').unwrap_or((word, "1"));
    let Ok(times) = times.parse::<usize>() else {
        return wrong(format!("{word:?}"), "after * comes how often the bytes are sent, as in 55*256");
    };
    let rule = "bytes are pairs of hex digits, as in 9f or 001000";
    if digits.is_empty() || !digits.len().is_multiple_of(2) || !is_hex(digits) {
        return wrong(format!("{digits:?} are no bytes"), rule);
    }
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap_or(""));
    let Ok(bytes) = pairs.map(|pair| u8::from_str_radix(pair, 16)).collect::<Result<Vec<u8>, _>>() else {
        return wrong(format!("{digits:?} are no bytes"), rule);
    };
    match bytes.len().checked_mul(times) {
        Some(all) if all <= most => Ok(bytes.repeat(times)),
        _ => wrong(
            format!("{word:?} makes the frame too long"),
            format!("it may have {MAX_FRAME_BYTES} bytes"),
        ),
    }
}

fn expected_bytes(text: &str, reads: usize) -> Parsed<Vec<Option<u8>>> {
    let mut expected = Vec::new();
    for word in text.split_whitespace() {
        match word.strip_prefix("..") {
            Some("") => expected.push(None),
            Some(times) => match times.strip_prefix('*').map(str::parse::<usize>) {
                Some(Ok(times)) if times <= reads => expected.extend(std::iter::repeat_n(None, times)),
                _ => {
                    return wrong(
                        format!("{word:?}"),
                        "any byte is .. and any of several ..*3, no more than are read",
                    );
                }
            },
            None => expected.extend(repeated(word, MAX_FRAME_BYTES)?.into_iter().map(Some)),
        }
    }
    if expected.len() != reads {
        let what = format!("{} bytes are expected and {reads} are read", expected.len());
        return wrong(what, "both must be the same; .. stands for any byte");
    }
    Ok(expected)
}

/// A number and its unit, with or without a space between them.
fn number_with_unit(text: &str, units: &[(&str, f64)], rule: &str) -> Parsed<f64> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let number = digits.replace('_', "").parse::<f64>().ok();
    let scale =
        units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim())).map(|(_, scale)| *scale);
    match (number, scale) {
        (Some(number), Some(scale)) => Ok(number * scale),
        _ => wrong(format!("{text:?}"), rule),
    }
}

fn time_ns(text: &str) -> Parsed<u64> {
    crate::units::parse_ns(text).or_else(|rule| wrong(format!("{text:?}"), rule))
}

fn clock_hz(text: &str) -> Parsed<u32> {
    let rule = "a clock is a number with Hz, kHz or MHz, from 1Hz to 4294MHz, as in 50MHz";
    let hz = number_with_unit(text, &[("hz", 1.0), ("khz", 1e3), ("mhz", 1e6)], rule)?.round();
    if !(1.0..=f64::from(u32::MAX)).contains(&hz) {
        return wrong(format!("{text:?}"), rule);
    }
    Ok(hz as u32)
}

/// A state as scripts and logs name it.
pub(crate) fn state_name(state: State) -> String {
    // The same as its serde name: kebab-case of the variant.
    let mut name = String::new();
    for letter in format!("{state:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

fn expectation(word: &str) -> Parsed<Expected> {
    match word {
        "busy" => return Ok(Expected::Busy(true)),
        "ready" => return Ok(Expected::Busy(false)),
        _ => {}
    }
    if let Some(state) = State::ALL.iter().find(|state| state_name(**state) == word) {
        return Ok(Expected::State(*state));
    }
    let mut names: Vec<String> = State::ALL.iter().map(|state| state_name(*state)).collect();
    names.extend(["busy".into(), "ready".into()]);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let rule = match nearest(word, &names) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("it must be one of {}", names.join(", ")),
    };
    wrong(format!("{word:?} is no state"), rule)
}

/// The name that a misspelt word is nearest to, if it is near any.
fn nearest<'a>(word: &str, names: &[&'a str]) -> Option<&'a str> {
    let near = names.iter().map(|name| (distance(word, name), *name)).min()?;
    (near.0 <= 1 + word.len() / 4).then_some(near.1)
}

/// Letters to change, add, drop or swap with their neighbour (Damerau and Levenshtein's, optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(32).collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = a[i - 1] == b[j - 1];
            let mut least =
                (rows[i - 1][j - 1] + usize::from(!same)).min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
