//! SFDP, the tables in which a chip describes itself to its driver: made from a part, laid out as bytes, and read back.
//!
//! The invariant: what [`parse`] reads from the bytes of [`Tables::encode`] are the same tables. Times are only as fine as
//! the tables' steps; a table made from a part names no time shorter than the part's, as far as its fields reach (a first
//! byte to 128 us).
//!
//! Source: JEDEC JESD216 (2011) and its revisions A to D: the SFDP header and parameter headers, the basic flash parameter
//! table (nine dwords, from A on 16, from C on 20), the sector map and the 4-byte address instruction table (from B on).
//! The standard itself was not at hand: the fields are as remembered, and checked against dumps of silicon and against the
//! reading of other programs (tests/sfdp.rs).

mod build;
mod encode;
mod parse;

pub use build::{build, tables};
pub use parse::{SfdpError, parse};

/// The bytes of a part's tables; none where the part has no SFDP.
pub fn table(part: &crate::part::Part) -> Vec<u8> {
    build(part).unwrap_or_default()
}

/// The tables of a chip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// The minor revision of the standard: 0, 5 (A), 6 (B), 7 (C) or 8 (D).
    pub revision_minor: u8,
    /// The basic flash parameter table.
    pub basic: Basic,
    /// The 4-byte address instruction table.
    pub four_byte: Option<FourByte>,
    /// The sector map: the regions of a chip whose erases differ by address, from address 0.
    pub map: Vec<Region>,
}

/// The basic flash parameter table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basic {
    /// The opcode that erases 4 KiB anywhere in the array.
    pub erase_4k: Option<u8>,
    /// Whether 64 bytes or more can be programmed at a time.
    pub buffered_program: bool,
    /// Whether the block-protection bits are only volatile, and the opcode that enables their write then: 50h or 06h.
    pub volatile_protection: Option<u8>,
    /// Three or four address bytes.
    pub address: AddressBytes,
    /// Bytes of the array.
    pub size_bytes: u64,
    /// The fast reads that there are, by [`ReadMode`] as index.
    pub reads: [Option<FastRead>; 6],
    /// The erases.
    pub erases: [Option<EraseType>; 4],
    /// What revision A brought: dwords 10 to 16.
    pub extended: Option<Extended>,
}

/// How many address bytes commands take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressBytes {
    /// Always three.
    Three,
    /// Three after power-up, or four.
    ThreeOrFour,
    /// Always four.
    Four,
}

/// Lines of opcode, address and data of a fast read; an index of [`Basic::reads`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMode {
    /// Address one, data two.
    Dual112 = 0,
    /// Address and data two.
    Dual122 = 1,
    /// All two.
    Dual222 = 2,
    /// Address one, data four.
    Quad114 = 3,
    /// Address and data four.
    Quad144 = 4,
    /// All four.
    Quad444 = 5,
}

/// A fast read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastRead {
    /// The opcode.
    pub opcode: u8,
    /// Clocks of the mode bits, at most 7.
    pub mode_clocks: u8,
    /// Clocks after them and before the data, at most 31.
    pub wait_clocks: u8,
}

/// An erase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EraseType {
    /// The opcode.
    pub opcode: u8,
    /// Its bytes, as a power of two.
    pub log2_bytes: u8,
    /// The typical time; 0 before revision A.
    pub typical_ns: u64,
}

/// Dwords 10 to 16.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extended {
    /// What the typical times of erases are multiplied with for the longest: 2 to 32, even.
    pub erase_max_factor: u8,
    /// The same for programs.
    pub program_max_factor: u8,
    /// Bytes of a page, as a power of two, at most 15.
    pub log2_page_bytes: u8,
    /// The typical time of a whole page.
    pub page_program_ns: u64,
    /// Of its first byte.
    pub first_byte_ns: u64,
    /// Of each further one.
    pub next_byte_ns: u64,
    /// Of the chip erase.
    pub chip_erase_ns: u64,
    /// Suspend and resume.
    pub suspend: Option<Suspend>,
    /// Whether bit 0 of 05h tells when the chip is ready.
    pub poll_status: bool,
    /// Whether bit 7 of 70h does.
    pub poll_flag: bool,
    /// Deep power-down.
    pub power_down: Option<PowerDown>,
    /// How the 4-4-4 mode is left: bit 0: FFh; bit 1: F5h; bit 3: 66h and 99h.
    pub qpi_exit: u8,
    /// How it is entered: bit 0: QE and 38h; bit 1: 38h; bit 2: 35h.
    pub qpi_enter: u8,
    /// Reads without an opcode (0-4-4): how they end and begin, the fields of six and four bits.
    pub continuous: Option<(u8, u8)>,
    /// The quad enable requirement: 0 none, 2 bit 6 of register 1, 1, 4, 5, 6 bit 1 of register 2.
    pub quad_enable: u8,
    /// How status register 1 keeps its bits: bit 0: nonvolatile by 06h; 1: volatile by 06h; 2: volatile by 50h; 3: nonvolatile
    /// by 06h, volatile by 50h; 4: some of both.
    pub status_keeps: u8,
    /// Soft resets: bit 3: F0h; bit 4: 66h and 99h; bit 5: what ends 0-4-4 first.
    pub resets: u8,
    /// Ways out of 4-byte addresses: bit 0: E9h; 2: the extended address register; 3: the bank register; 6: soft reset; 7:
    /// power.
    pub four_byte_exit: u8,
    /// Ways in: bit 0: B7h; 2: the extended address register; 3: the bank register; 5: commands of their own.
    pub four_byte_enter: u8,
}

/// Suspend and resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspend {
    /// The opcode that suspends a program.
    pub program_suspend: u8,
    /// That resumes it.
    pub program_resume: u8,
    /// That suspends an erase.
    pub erase_suspend: u8,
    /// That resumes it.
    pub erase_resume: u8,
    /// Suspend of a program to ready, at most.
    pub program_latency_ns: u64,
    /// Suspend of an erase to ready, at most.
    pub erase_latency_ns: u64,
    /// Resume of a program to the next suspend.
    pub program_interval_ns: u64,
    /// Resume of an erase to the next suspend.
    pub erase_interval_ns: u64,
}

/// Deep power-down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerDown {
    /// The opcode that enters it.
    pub enter: u8,
    /// That leaves it.
    pub exit: u8,
    /// How long that takes.
    pub exit_ns: u64,
}

/// The 4-byte address instruction table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FourByte {
    /// Bits 0 to 8: 13h, 0Ch, 3Ch, BCh, 6Ch, ECh, 12h, 34h, 3Eh; bits 9 to 12: the erase types 1 to 4.
    pub supported: u32,
    /// The opcodes of the erase types; FFh where there is none.
    pub erases: [u8; 4],
}

/// A region of the sector map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Its bytes, a multiple of 256.
    pub bytes: u64,
    /// Which erase types work there, bit 0: type 1.
    pub erases: u8,
}

/// Steps of a time: bits of the count, and the units in nanoseconds, by their code.
pub(crate) struct Steps {
    pub(crate) count_bits: u32,
    pub(crate) units_ns: &'static [u64],
}

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;

pub(crate) const ERASE: Steps = Steps { count_bits: 5, units_ns: &[MS, 16 * MS, 128 * MS, S] };
pub(crate) const CHIP_ERASE: Steps = Steps { count_bits: 5, units_ns: &[16 * MS, 256 * MS, 4 * S, 64 * S] };
pub(crate) const PAGE: Steps = Steps { count_bits: 5, units_ns: &[8 * US, 64 * US] };
pub(crate) const BYTE: Steps = Steps { count_bits: 4, units_ns: &[US, 8 * US] };
pub(crate) const LATENCY: Steps = Steps { count_bits: 5, units_ns: &[128, US, 8 * US, 64 * US] };
pub(crate) const INTERVAL: Steps = Steps { count_bits: 4, units_ns: &[64 * US] };

impl Steps {
    /// Count and code of the unit, in one field, of the shortest time of the steps that is no shorter; the longest one there
    /// is where none is.
    pub(crate) fn encode(&self, ns: u64) -> u32 {
        let most = (1u64 << self.count_bits) - 1;
        let mut best = (u64::MAX, 0);
        for (code, unit) in self.units_ns.iter().enumerate() {
            let count = ns.div_ceil(*unit).max(1) - 1;
            let time = (count + 1).saturating_mul(*unit);
            if count <= most && time < best.0 {
                best = (time, (code as u32) << self.count_bits | count as u32);
            }
        }
        let longest = (self.units_ns.len() as u32 - 1) << self.count_bits | most as u32;
        if best.0 == u64::MAX { longest } else { best.1 }
    }

    /// The time of a field.
    pub(crate) fn decode(&self, field: u32) -> u64 {
        let count = u64::from(field & ((1 << self.count_bits) - 1));
        let code = (field >> self.count_bits) as usize % self.units_ns.len();
        self.units_ns.get(code).map_or(0, |unit| (count + 1) * unit)
    }

    /// The time that the tables say for this one.
    pub(crate) fn round(&self, ns: u64) -> u64 {
        self.decode(self.encode(ns))
    }
}
