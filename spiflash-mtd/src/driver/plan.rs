//! Which of a part's commands a driver uses: chosen once, from the part alone.
//!
//! The invariant: all commands of a plan go on one line, and an address that is in the array fits them, in the mode that the
//! plan names.

use super::DriverError;
use super::wire::single;
use crate::command::{AddressMode, AddressPhase, CommandSpec, DataPhase, Lines};
use crate::op::{EraseUnit, Op, Reg};
use crate::part::Part;

/// The array's bytes that three address bytes reach.
pub(super) const WINDOW_BYTES: u64 = 1 << 24;

/// How addresses above 16 MiB are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Addressing {
    /// They are not needed, or the part has four bytes from its power-up on.
    Plain(AddressMode),
    /// By commands with four address bytes.
    Opcodes,
    /// By the 4-byte mode, which this command enters.
    Mode(CommandSpec),
    /// By a register with the upper bits, which this command writes.
    Window(CommandSpec),
}

impl Addressing {
    /// The mode that the chip is in, once the driver has started.
    pub(super) fn mode(self) -> AddressMode {
        match self {
            Addressing::Plain(mode) => mode,
            Addressing::Mode(_) => AddressMode::FourByte,
            Addressing::Opcodes | Addressing::Window(_) => AddressMode::ThreeByte,
        }
    }
}

/// How bytes are programmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Programming {
    /// By pages: a frame changes bytes of one page.
    Pages(CommandSpec),
    /// SST25: words, each after the other, and single bytes at the ends.
    Words {
        /// The word program.
        word: CommandSpec,
        /// The byte program.
        byte: CommandSpec,
    },
    /// As many bytes in a frame as there are (MRAM, FRAM).
    InPlace(CommandSpec),
}

/// The commands of a driver.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) addressing: Addressing,
    pub(super) read: CommandSpec,
    /// A read without dummy clocks, for when those of `read` are no whole bytes.
    pub(super) slow_read: Option<CommandSpec>,
    pub(super) programming: Programming,
    /// The erases, the greatest first.
    pub(super) erases: Vec<(EraseUnit, CommandSpec)>,
    pub(super) chip_erase: Option<CommandSpec>,
    pub(super) write_enable: CommandSpec,
    pub(super) write_disable: Option<CommandSpec>,
    pub(super) release: Option<CommandSpec>,
}

/// The first command of an operation on one line that fits.
pub(super) fn find(part: &Part, op: Op, fits: impl Fn(&CommandSpec) -> bool) -> Option<CommandSpec> {
    part.commands.iter().find(|spec| spec.op == op && single(spec) && fits(spec)).copied()
}

/// A command that must be there.
pub(super) fn need(part: &Part, op: Op, what: &'static str) -> Result<CommandSpec, DriverError> {
    find(part, op, |_| true).ok_or_else(|| DriverError::NoCommand { part: part.name.clone(), what })
}

/// The command that reads a register.
pub(super) fn register_read(part: &Part, register: Reg) -> Option<CommandSpec> {
    find(part, Op::ReadRegister(register), |_| true)
}

fn has_four(spec: &CommandSpec) -> bool {
    spec.address == AddressPhase::Four(Lines::Single)
}

impl Plan {
    /// The plan for a part.
    ///
    /// # Errors
    /// A part that cannot be read, written, or reached to its end.
    pub(super) fn of(part: &Part) -> Result<Plan, DriverError> {
        let none = |what| DriverError::NoCommand { part: part.name.clone(), what };
        let addressing = addressing(part).ok_or_else(|| none("reach its upper addresses"))?;
        let fits = |spec: &CommandSpec| has_four(spec) == (addressing == Addressing::Opcodes);
        let slow_read = find(part, Op::Read, |spec| fits(spec) && spec.dummy_clocks == 0);
        let fast_read = find(part, Op::Read, |spec| fits(spec) && spec.dummy_clocks > 0);
        let read = fast_read.or(slow_read).ok_or_else(|| none("read the array"))?;
        let most_bytes = |spec: &CommandSpec| match spec.data {
            DataPhase::In { max_bytes, .. } => max_bytes,
            _ => 0,
        };
        let program = find(part, Op::Program, |spec| fits(spec) && most_bytes(spec) == u32::MAX);
        let byte = find(part, Op::Program, |spec| fits(spec) && most_bytes(spec) >= 1);
        let programming = match (program, byte, find(part, Op::ProgramAai, |_| true)) {
            (Some(program), ..) if part.kind.is_ram() => Programming::InPlace(program),
            (Some(program), ..) => Programming::Pages(program),
            (None, Some(byte), Some(word)) => Programming::Words { word, byte },
            (None, Some(byte), None) => Programming::Pages(byte),
            _ => return Err(none("program the array")),
        };
        let mut erases: Vec<(EraseUnit, CommandSpec)> = Vec::new();
        for spec in part.commands.iter().filter(|spec| single(spec) && fits(spec)) {
            match spec.op {
                Op::Erase(unit) if !erases.iter().any(|(known, _)| *known == unit) => {
                    erases.push((unit, *spec));
                }
                _ => {}
            }
        }
        // A mapped unit may be as large as a block; what it erases at an address is looked up there.
        erases.sort_by_key(|(unit, _)| std::cmp::Reverse(part.erase_bytes(*unit).unwrap_or(64 * 1024)));
        if erases.is_empty() && !part.kind.is_ram() {
            return Err(none("erase"));
        }
        Ok(Plan {
            addressing,
            read,
            slow_read,
            programming,
            erases,
            chip_erase: find(part, Op::ChipErase, |_| true),
            write_enable: need(part, Op::WriteEnable, "enable writes")?,
            write_disable: find(part, Op::WriteDisable, |_| true),
            release: find(part, Op::Release, |_| true),
        })
    }
}

fn addressing(part: &Part) -> Option<Addressing> {
    let at_power_up = part.address_mode();
    if part.geometry.size_bytes <= WINDOW_BYTES || at_power_up == AddressMode::FourByte {
        return Some(Addressing::Plain(at_power_up));
    }
    let is_erase = |spec: &&CommandSpec| matches!(spec.op, Op::Erase(_)) && has_four(spec);
    let erases = part.kind.is_ram() || part.commands.iter().any(|spec| is_erase(&spec));
    if erases && find(part, Op::Read, has_four).is_some() && find(part, Op::Program, has_four).is_some() {
        return Some(Addressing::Opcodes);
    }
    if let Some(enter) = find(part, Op::Enter4Byte, |_| true) {
        return Some(Addressing::Mode(enter));
    }
    find(part, Op::WriteRegisters(&[Reg::Ear]), |_| true).map(Addressing::Window)
}
