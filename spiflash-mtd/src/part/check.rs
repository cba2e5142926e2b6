//! From the file of a part to a [`Part`]: every rule that a file must keep, and what is said where it does not.
//!
//! The invariant: an error names the file, the key, its value and the rule.

use super::raw::{RawAddress, RawCommand, RawPart, RawRegister, RawSpan, RawTiming, nanoseconds};
use super::{BitSpec, Keep, Part, RegisterSpec, Span, Timing};
use crate::catalogue;
use crate::command::{AddressPhase, CommandSpec, CommandTable, DataPhase};
use crate::error::SpiError;
use crate::op::{Op, Reg};
use std::collections::BTreeMap;

/// Why a part file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// It is no TOML, a key is not known or missing, or a value has the wrong type.
    #[error("{place}: line {line}: {source}", source = .source.message())]
    Form {
        /// The file.
        place: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
    /// A value breaks a rule.
    #[error("{place}: {key} = {value}: {rule}")]
    Value {
        /// The file.
        place: String,
        /// The key, with its tables.
        key: String,
        /// What it is.
        value: String,
        /// What it must be.
        rule: String,
    },
    /// A command cannot be laid out, or an opcode is taken.
    #[error("{place}: commands: {source}")]
    Command {
        /// The file.
        place: String,
        /// What is wrong.
        source: SpiError,
    },
}

/// A broken rule, before the file's name is put to it: key, value, rule.
pub(super) struct Broken(pub(super) String, pub(super) String, pub(super) String);

pub(super) type Checked<T = ()> = Result<T, Broken>;

/// `Err` unless the rule holds.
pub(super) fn rule(
    holds: bool,
    key: impl Into<String>,
    value: impl ToString,
    rule: impl Into<String>,
) -> Checked {
    if holds { Ok(()) } else { Err(Broken(key.into(), value.to_string(), rule.into())) }
}

impl Part {
    /// Reads and checks a part file.
    ///
    /// # Errors
    /// The first thing that is wrong, with `place` (the file's name), the key, the value and the rule.
    pub fn from_toml(text: &str, place: &str) -> Result<Part, PartError> {
        let raw: RawPart = toml::from_str(text).map_err(|source| {
            let before = source.span().and_then(|span| text.get(..span.start)).unwrap_or("");
            let line = before.matches('\n').count() + 1;
            PartError::Form { place: place.to_owned(), line, source: Box::new(source) }
        })?;
        let broken =
            |Broken(key, value, rule)| PartError::Value { place: place.to_owned(), key, value, rule };
        let commands = command_specs(&raw.commands).map_err(broken)?;
        let commands = CommandTable::new(commands)
            .map_err(|source| PartError::Command { place: place.to_owned(), source })?;
        let part = assemble(raw, commands).map_err(broken)?;
        super::rules::check(&part).map_err(broken)?;
        Ok(part)
    }
}

fn assemble(raw: RawPart, commands: CommandTable) -> Checked<Part> {
    Ok(Part {
        timing: timing(&raw.timing)?,
        registers: registers(&raw.registers)?,
        name: raw.name,
        maker: raw.maker,
        kind: raw.kind,
        sources: raw.sources,
        notes: raw.notes,
        geometry: raw.geometry,
        id: raw.id,
        bus: raw.bus,
        endurance: raw.endurance,
        ranges: raw.protection,
        locks: raw.locks,
        security: raw.security,
        sfdp: raw.sfdp,
        nand: raw.nand,
        commands,
    })
}

fn time(key: &str, text: &str) -> Checked<u64> {
    nanoseconds(text).map_err(|rule| Broken(format!("timing.{key}"), format!("{text:?}"), rule.to_owned()))
}

fn time_or_none(key: &str, text: &Option<String>) -> Checked<u64> {
    text.as_deref().map_or(Ok(0), |text| time(key, text))
}

fn span(key: &str, raw: &RawSpan) -> Checked<Span> {
    let (typical, max) = match raw {
        RawSpan::None => return Ok(Span::default()),
        RawSpan::One(text) => (text, text),
        RawSpan::Two { typical, max } => (typical, max),
    };
    let span = Span { typical_ns: time(key, typical)?, max_ns: time(key, max)? };
    let order = format!("the typical time is no longer than the longest, {max:?}");
    rule(span.typical_ns <= span.max_ns, format!("timing.{key}.typical"), format!("{typical:?}"), order)?;
    Ok(span)
}

fn timing(raw: &RawTiming) -> Checked<Timing> {
    let mut erase = BTreeMap::new();
    for (unit, raw) in &raw.erase {
        erase.insert(*unit, span(&format!("erase.{}", super::key_of(unit)), raw)?);
    }
    Ok(Timing {
        page_program: span("page_program", &raw.page_program)?,
        first_byte: span("first_byte", &raw.first_byte)?,
        next_byte: span("next_byte", &raw.next_byte)?,
        erase,
        chip_erase: span("chip_erase", &raw.chip_erase)?,
        write_status: span("write_status", &raw.write_status)?,
        suspend_ns: time_or_none("suspend", &raw.suspend)?,
        resume_to_suspend_ns: time_or_none("resume_to_suspend", &raw.resume_to_suspend)?,
        power_down_ns: time_or_none("power_down", &raw.power_down)?,
        release_ns: time_or_none("release", &raw.release)?,
        reset_ns: time_or_none("reset", &raw.reset)?,
        reset_erasing_ns: time_or_none("reset_erasing", &raw.reset_erasing)?,
        power_up_ns: time_or_none("power_up", &raw.power_up)?,
        page_read: span("page_read", &raw.page_read)?,
        page_read_no_ecc: span("page_read_no_ecc", &raw.page_read_no_ecc)?,
    })
}

fn bit(key: &str, text: &str) -> Checked<BitSpec> {
    let (name, keep) = match text.split_once(':') {
        None => (text, Keep::Nonvolatile),
        Some((name, "ro")) => (name, Keep::ReadOnly),
        Some((name, "vol")) => (name, Keep::Volatile),
        Some((name, "otp")) => (name, Keep::Otp),
        Some(_) => {
            let rule = "after the name comes nothing, or :ro, :vol or :otp";
            return Err(Broken(key.to_owned(), format!("{text:?}"), rule.to_owned()));
        }
    };
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let named = name == "-" || (!name.is_empty() && name.chars().all(plain));
    rule(
        named,
        key,
        format!("{text:?}"),
        "a bit's name has a-z, 0-9 and _ only, or is - where it is reserved",
    )?;
    let keep = if name == "-" { Keep::ReadOnly } else { keep };
    Ok(BitSpec { name: name.to_owned(), keep })
}

fn registers(raw: &BTreeMap<Reg, RawRegister>) -> Checked<BTreeMap<Reg, RegisterSpec>> {
    let mut registers = BTreeMap::new();
    for (register, raw) in raw {
        let key = format!("registers.{}.bits", super::key_of(register));
        let mut bits = Vec::with_capacity(8);
        for text in &raw.bits {
            bits.push(bit(&key, text)?);
        }
        let count = bits.len();
        let bits = bits.try_into().map_err(|_| {
            Broken(key, format!("{count} bits"), "a register has 8 bits, the lowest first".to_owned())
        })?;
        registers.insert(*register, RegisterSpec { bits, factory: raw.factory });
    }
    Ok(registers)
}

fn command_specs(raw: &[RawCommand]) -> Checked<Vec<CommandSpec>> {
    raw.iter().map(command_spec).collect()
}

fn command_spec(raw: &RawCommand) -> Checked<CommandSpec> {
    let mut spec = catalogue::find(&raw.name).ok_or_else(|| {
        let rule = "there is no such command in the catalogue (docs/spi-parts.md lists them)";
        Broken("commands".to_owned(), format!("{:?}", raw.name), rule.to_owned())
    })?;
    let key = |of: &str| format!("commands.{}.{of}", raw.name);
    spec.opcode = raw.opcode.unwrap_or(spec.opcode);
    spec.tunable_dummy = raw.tunable.unwrap_or(spec.tunable_dummy);
    spec.mode_byte = raw.mode_byte.unwrap_or(spec.mode_byte);
    // A mode byte that is not there cannot ask for anything.
    spec.continuous = raw.continuous.unwrap_or(spec.continuous && spec.mode_byte);
    rule(spec.mode_byte || !spec.continuous, key("continuous"), true, "it takes a mode byte to ask for it")?;
    if let Some(clocks) = raw.dummy_clocks {
        rule(clocks <= 64, key("dummy_clocks"), clocks, "at most 64")?;
        spec.dummy_clocks = clocks;
    }
    if let Some(address) = raw.address {
        let lines = spec.address.lines();
        spec.address = match address {
            RawAddress::None => AddressPhase::None,
            RawAddress::Two => AddressPhase::Two(lines),
            RawAddress::Mode => AddressPhase::ByMode(lines),
            RawAddress::Three => AddressPhase::Three(lines),
            RawAddress::Four => AddressPhase::Four(lines),
        };
    }
    if let Some(most) = raw.max_bytes {
        let key = key("max_bytes");
        let (DataPhase::In { max_bytes, min_bytes, .. }, Op::Program | Op::ProgramSecurity) =
            (&mut spec.data, spec.op)
        else {
            return Err(Broken(key, most.to_string(), "only a program has it".to_owned()));
        };
        rule(most >= *min_bytes, key, most, format!("at least {min_bytes}"))?;
        *max_bytes = most;
    }
    Ok(spec)
}
