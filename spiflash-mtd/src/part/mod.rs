//! Parts as data: one TOML file for each chip, from which everything about it is read.
//!
//! The invariant: a [`Part`] that exists was checked ([`Part::from_toml`]), so that the chip need not ask again: sizes are
//! powers of two, every register that a command reads is described, every erase has a time.

mod check;
mod library;
mod raw;
mod rules;

pub use check::PartError;
pub use library::{all, find, text};

use crate::command::{AddressMode, CommandSpec, CommandTable};
use crate::op::{EraseUnit, Op, Reg};
use crate::protect::{LockRules, RangeRules};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// What kind of memory it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// NOR flash: programs clear bits, erases set them.
    Nor,
    /// NAND flash behind a SPI interface.
    Nand,
    /// Magnetic memory: written like RAM.
    Mram,
    /// Ferroelectric memory: written like RAM.
    Fram,
}

impl Kind {
    /// Whether it is written in place, without erases.
    pub fn is_ram(self) -> bool {
        matches!(self, Kind::Mram | Kind::Fram)
    }
}

/// A part: everything that a data sheet says and the model follows.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// What the maker calls it.
    pub name: String,
    /// The maker.
    pub maker: String,
    /// The kind of memory.
    pub kind: Kind,
    /// The data sheet (revision, date) and other sources that the numbers are from.
    pub sources: Vec<String>,
    /// What the model leaves out, and numbers whose source could not be seen.
    pub notes: Vec<String>,
    /// Sizes.
    pub geometry: Geometry,
    /// Identification.
    pub id: Ident,
    /// Lines, clocks, addresses.
    pub bus: Bus,
    /// Times.
    pub timing: Timing,
    /// Cycles and years.
    pub endurance: Endurance,
    /// The registers that it has.
    pub registers: BTreeMap<Reg, RegisterSpec>,
    /// How its block-protection bits name a range; `None` where it has none.
    pub ranges: Option<RangeRules>,
    /// Locks of single blocks; `None` where it has none.
    pub locks: Option<LockRules>,
    /// Security registers or the one-time area; `None` where it has none.
    pub security: Option<SecuritySpec>,
    /// The SFDP tables; `None` where it has none.
    pub sfdp: Option<SfdpSpec>,
    /// What only a SPI NAND has.
    pub nand: Option<NandSpec>,
    /// The commands.
    pub commands: CommandTable,
}

/// Sizes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geometry {
    /// Bytes of the array (of a NAND: without the spare bytes).
    pub size_bytes: u64,
    /// Bytes of a page: what one program can change, and wraps within. Of memories written like RAM, 1: no limit.
    pub page_bytes: u32,
    /// Bytes of the smallest erase. Of memories written like RAM, the size of the array.
    pub sector_bytes: u32,
    /// SST26 and the parameter sectors of Infineon: the sizes of unequal blocks, from address 0: `[count, bytes]` each.
    #[serde(default)]
    pub blocks: Vec<[u32; 2]>,
}

/// Identification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ident {
    /// What 9Fh gives; empty where the part has no such command.
    #[serde(default)]
    pub jedec: Vec<u8>,
    /// Whether 9Fh gives its bytes again and again (else FFh follows).
    #[serde(default)]
    pub jedec_repeats: bool,
    /// The maker's byte of 90h.
    #[serde(default)]
    pub manufacturer: u8,
    /// The device's byte of 90h and ABh.
    #[serde(default)]
    pub device: u8,
    /// Bytes of the unique ID (4Bh), or of the serial number.
    #[serde(default)]
    pub unique_id_bytes: u8,
}

/// Lines, clocks, addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bus {
    /// The fastest clock of any command.
    pub max_clock_hz: u32,
    /// The fastest clock of 03h.
    pub max_read_clock_hz: u32,
    /// Address bytes after power-up: 3 or 4.
    #[serde(default = "three")]
    pub address_bytes: u8,
    /// Supply voltage, millivolts, least and most.
    pub supply_mv: [u32; 2],
    /// How a mode byte asks for the next frame to come without its opcode.
    #[serde(default)]
    pub continuous_read: ContinuousRead,
    /// How a register sets the dummy clocks.
    #[serde(default)]
    pub dummy: Option<DummyRule>,
    /// How the length of reads with wrap is set.
    #[serde(default)]
    pub burst: BurstRule,
    /// Commands on four lines are ignored while the bit `qe` is 0.
    #[serde(default)]
    pub quad_needs_enable: bool,
    /// Writes leave WEL set (MRAM): only a write disable and the loss of power clear it.
    #[serde(default)]
    pub keeps_wel: bool,
    /// The bit `ads` can be written, and sets the address mode (Infineon's EXTADD in the bank register).
    #[serde(default)]
    pub ads_is_written: bool,
    /// Any fall of CS# ends the deep power-down (FRAM): there is no command for it.
    #[serde(default)]
    pub wakes_by_select: bool,
}

fn three() -> u8 {
    3
}

/// How a mode byte asks for the next frame to come without its opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContinuousRead {
    /// It does not.
    #[default]
    None,
    /// Bits 5 and 4 are 1 and 0 (Winbond up to the FV series, GigaDevice).
    Bits54,
    /// The high nibble is Ah (Infineon, ISSI).
    HighNibbleA,
    /// The high nibble is the complement of the low one (Macronix).
    Toggle,
}

impl ContinuousRead {
    /// Whether this mode byte asks for it.
    pub fn asked(self, mode: u8) -> bool {
        match self {
            ContinuousRead::None => false,
            ContinuousRead::Bits54 => mode & 0x30 == 0x20,
            ContinuousRead::HighNibbleA => mode & 0xF0 == 0xA0,
            ContinuousRead::Toggle => (mode >> 4) == (!mode & 0x0F),
        }
    }
}

/// A register field that sets the dummy clocks of tunable commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DummyRule {
    /// The register.
    pub register: Reg,
    /// The field's lowest bit.
    pub shift: u8,
    /// Its mask, before the shift is undone: `(value >> shift) & mask`.
    pub mask: u8,
    /// For the values 0, 1, 2...: the clocks after the address, mode byte included; 0: as the command has it.
    pub clocks: Vec<u8>,
    /// The same for commands whose address is on four lines, where they differ (Macronix); empty: they do not.
    #[serde(default)]
    pub quad_clocks: Vec<u8>,
    /// Only in QPI mode (Winbond C0h).
    #[serde(default)]
    pub only_qpi: bool,
}

/// How the length of reads with wrap is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BurstRule {
    /// There are none.
    #[default]
    None,
    /// Bits 6 and 5 of 77h: 8, 16, 32, 64 bytes; bit 4 set: none (Winbond, GigaDevice, Infineon).
    Bits65,
    /// Bits 1 and 0 of C0h: 8, 16, 32, 64 bytes; bit 4 set: none (Macronix, ISSI, SST26).
    Low,
}

/// A typical time and the longest, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Span {
    /// Typical.
    pub typical_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// Times. In part files each is `{ typical = "0.4 ms", max = "3 ms" }`, or one time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timing {
    /// Program of a whole page (tPP).
    pub page_program: Span,
    /// Program of its first byte (tBP1); 0: a page takes `page_program`, however many bytes change.
    pub first_byte: Span,
    /// And of each further one (tBP2).
    pub next_byte: Span,
    /// Erases.
    pub erase: BTreeMap<EraseUnit, Span>,
    /// Erase of the chip (tCE).
    pub chip_erase: Span,
    /// Write of nonvolatile register bits (tW).
    pub write_status: Span,
    /// Suspend to ready (tSUS), at most.
    pub suspend_ns: u64,
    /// Resume to the next suspend, at least, for progress (SFDP calls it the resume-to-suspend interval).
    pub resume_to_suspend_ns: u64,
    /// Into deep power-down (tDP).
    pub power_down_ns: u64,
    /// Out of it (tRES1).
    pub release_ns: u64,
    /// Reset (tRST), and when an erase was under way.
    pub reset_ns: u64,
    /// See above.
    pub reset_erasing_ns: u64,
    /// Power-up to the first command (tVSL).
    pub power_up_ns: u64,
    /// NAND: page to buffer (tRD), with and without the on-die code.
    pub page_read: Span,
    /// See above.
    pub page_read_no_ecc: Span,
}

/// Cycles and years.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endurance {
    /// Program/erase cycles of a block; 0: without limit.
    pub cycles: u64,
    /// Years that data stays.
    pub retention_years: u32,
    /// The error parameters ([`crate::reliability`]) that fit it best, for `--errors part`.
    pub errors: String,
}

/// A bit of a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitSpec {
    /// What it does: the model knows the names of [`crate::regs::KNOWN`]; others are stored and mean nothing.
    pub name: String,
    /// How it keeps.
    pub keep: Keep,
}

/// How a register bit keeps its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nonvolatile, with a working copy that 50h writes alone where the part knows it.
    Nonvolatile,
    /// Lost with the power.
    Volatile,
    /// One-time: once written to the other value, for good.
    Otp,
    /// Written by the chip only.
    ReadOnly,
}

/// A register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterSpec {
    /// Its bits, lowest first.
    pub bits: [BitSpec; 8],
    /// Its value as delivered.
    pub factory: u8,
}

/// Security registers, or the one-time area.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecuritySpec {
    /// How many there are.
    pub registers: u8,
    /// Bytes of each.
    pub register_bytes: u32,
    /// The address of the first one, and the distance to the next (Winbond: 001000h, 1000h).
    pub base: u32,
    /// See above.
    pub stride: u32,
    /// The names of the bits that lock them for good, one each or one for all.
    pub lock_bits: Vec<String>,
    /// Whether they can be erased while they are not locked.
    pub erasable: bool,
}

/// The SFDP tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SfdpSpec {
    /// The minor revision of JESD216: 0 (nine dwords), 5 (A), 6 (B), 8 (D).
    pub revision_minor: u8,
    /// A dump in hex, where one is known; else it is built from the rest of the part.
    #[serde(default)]
    pub dump: Option<String>,
}

/// What only a SPI NAND has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NandSpec {
    /// Spare bytes of a page.
    pub spare_bytes: u32,
    /// Pages of a block.
    pub pages_per_block: u32,
    /// Bits that the on-die code corrects in each step.
    pub ecc_bits: u32,
    /// Bytes of a step.
    pub ecc_step_bytes: u32,
    /// Bad blocks as delivered, at most.
    pub max_bad_blocks: u32,
    /// Entries of the table of linked blocks.
    pub links: u32,
    /// Programs of a page before its block must be erased.
    pub programs_per_page: u32,
}

impl Part {
    /// The address mode after power-up.
    pub fn address_mode(&self) -> AddressMode {
        if self.bus.address_bytes == 4 { AddressMode::FourByte } else { AddressMode::ThreeByte }
    }

    /// The bytes that this erase erases; `None` for one by a map, or that the part has not.
    pub fn erase_bytes(&self, unit: EraseUnit) -> Option<u64> {
        let kib = match unit {
            EraseUnit::Sector4k => 4,
            EraseUnit::Block32k => 32,
            EraseUnit::Block64k => 64,
            EraseUnit::Block256k => 256,
            EraseUnit::Mapped => return None,
            EraseUnit::NandBlock => {
                let nand = self.nand.as_ref()?;
                return Some(u64::from(self.geometry.page_bytes) * u64::from(nand.pages_per_block));
            }
        };
        Some(kib * 1024)
    }

    /// The range that an erase at an address erases. `None`: beyond the array, or (S25FL256S: 20h) where the blocks are
    /// larger than it; with an erase that follows the map (SST26) the others work anywhere.
    pub fn erase_range(&self, unit: EraseUnit, address: u64) -> Option<Range<u64>> {
        if address >= self.geometry.size_bytes {
            return None;
        }
        let block = self.block_at(address);
        let Some(bytes) = self.erase_bytes(unit) else { return block };
        let mapped = self.commands.iter().any(|command| command.op == Op::Erase(EraseUnit::Mapped));
        if !mapped && block.is_some_and(|block| block.end - block.start > bytes) {
            return None;
        }
        let start = address / bytes * bytes;
        Some(start..start.saturating_add(bytes).min(self.geometry.size_bytes))
    }

    /// The block of the map at an address; `None` where there is no map.
    fn block_at(&self, address: u64) -> Option<Range<u64>> {
        let mut start = 0;
        for [count, bytes] in &self.geometry.blocks {
            let bytes = u64::from(*bytes);
            let end = start + u64::from(*count) * bytes;
            if address < end {
                let block = start + (address - start) / bytes * bytes;
                return Some(block..block + bytes);
            }
            start = end;
        }
        None
    }

    /// The command of an opcode.
    pub fn command(&self, opcode: u8) -> Option<&CommandSpec> {
        self.commands.get(opcode)
    }
}

impl SfdpSpec {
    /// The bytes of the dump; `None` where there is none, or where it is no hex.
    pub fn dump_bytes(&self) -> Option<Vec<u8>> {
        let digits = self.dump.as_ref()?.chars().filter(|c| !c.is_whitespace());
        let digits: Vec<u8> =
            digits.map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
        let bytes = digits.chunks(2).map(|pair| match pair {
            [high, low] => Some(high << 4 | low),
            _ => None,
        });
        bytes.collect()
    }
}

/// The key that a part file uses for a register or an erase.
pub(crate) fn key_of<T: Serialize + std::fmt::Debug>(value: &T) -> String {
    toml::Value::try_from(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_else(|| format!("{value:?}"))
}

impl DummyRule {
    /// The clocks after the address of a command whose address is on `quad` lines or not, at this value of the register;
    /// `None`: as the command has it.
    pub fn clocks_at(&self, register: u8, quad: bool) -> Option<u8> {
        let at = usize::from((register >> self.shift.min(7)) & self.mask);
        let table = if quad && !self.quad_clocks.is_empty() { &self.quad_clocks } else { &self.clocks };
        table.get(at).copied().filter(|clocks| *clocks > 0)
    }
}
