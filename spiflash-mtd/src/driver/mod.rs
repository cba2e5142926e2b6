//! The host's side: drivers that use a chip as firmware does, by frames on a [`SpiBus`](crate::SpiBus).
//!
//! - [`NorDriver`]: SPI NOR flash, and the memories that are written like RAM (MRAM, FRAM);
//! - [`NandDriver`]: SPI NAND.
//!
//! A driver holds no bus: each call is lent one, so that several drivers share it. What a driver knows of a chip it has from
//! the [`Part`](crate::part::Part) and from what it reads; it never looks into the model.
//!
//! The invariant: a call returns when the chip is ready again or with an error that names the operation; a wait has a limit
//! in the bus's time (the data sheet's longest time by [`PATIENCE`]) and in polls, so that it ends on a bus without time too.

mod nand;
mod nor;
mod plan;
mod protect;
mod registers;
mod security;
mod sfdp;
mod wire;

pub use nand::{NandDriver, NandRead};
pub use nor::{EraseRegion, Identity, NorDriver};
pub use sfdp::SfdpFacts;

use crate::bus::BusError;
use std::ops::Range;

/// How much longer than the data sheet's longest time a driver waits: erases of a worn block take longer than a fresh one's.
pub const PATIENCE: u64 = 10;

/// Why a driver could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The bus refused.
    #[error("the bus: {0}")]
    Bus(#[from] BusError),
    /// The part has no command for this.
    #[error("{part}: it has no command to {what}")]
    NoCommand {
        /// The part.
        part: String,
        /// What for.
        what: &'static str,
    },
    /// Another kind of memory than the driver is for.
    #[error("{part} is {kind}, which this driver does not drive")]
    WrongKind {
        /// The part.
        part: String,
        /// Its kind.
        kind: &'static str,
    },
    /// Another chip answers, or none.
    #[error("{part}: expected the ID {expected:02X?}, the chip says {found:02X?}")]
    WrongId {
        /// The part.
        part: String,
        /// The data sheet's.
        expected: Vec<u8>,
        /// The chip's.
        found: Vec<u8>,
    },
    /// The chip's SFDP tables say another size than the part.
    #[error("{part}: its SFDP tables say {found} bytes, the part file {expected}")]
    WrongSize {
        /// The part.
        part: String,
        /// The part's.
        expected: u64,
        /// The chip's.
        found: u64,
    },
    /// Bytes outside of what there is.
    #[error("{bytes} bytes at {address:#x}: {area} has {size_bytes}")]
    OutOfBounds {
        /// Of what.
        area: &'static str,
        /// The first byte.
        address: u64,
        /// How many.
        bytes: u64,
        /// How many there are.
        size_bytes: u64,
    },
    /// An erase of less than whole sectors.
    #[error(
        "erase of {bytes} bytes at {address:#x}: it must begin and end with sectors, here of {unit} bytes"
    )]
    Unaligned {
        /// The first byte.
        address: u64,
        /// How many.
        bytes: u64,
        /// The sector's size there.
        unit: u64,
    },
    /// An address does not fit the command.
    #[error("{command}: address {address:#x} does not fit {bytes} bytes")]
    AddressTooLarge {
        /// The command.
        command: &'static str,
        /// The address.
        address: u64,
        /// How many bytes an address has.
        bytes: u8,
    },
    /// Dummy clocks that are no whole bytes on one line.
    #[error("{command}: {clocks} dummy clocks are not whole bytes on one line")]
    BrokenDummy {
        /// The command.
        command: &'static str,
        /// The clocks.
        clocks: u8,
    },
    /// The chip stayed busy.
    #[error(
        "{operation} at {address:#x}: still busy after {waited_ns} ns, where the data sheet says at most {max_ns}"
    )]
    Timeout {
        /// What was under way.
        operation: &'static str,
        /// Where.
        address: u64,
        /// How long the driver waited.
        waited_ns: u64,
        /// The data sheet's longest.
        max_ns: u64,
    },
    /// The chip says that it failed.
    #[error("{operation} at {address:#x}: the chip reports an error (status {status:#04x})")]
    Failed {
        /// What.
        operation: &'static str,
        /// Where.
        address: u64,
        /// The register with the error bits.
        status: u8,
    },
    /// What is to be changed is protected.
    #[error("{operation} at {address:#x}: {from:#x}..{to:#x} is protected", from = range.start, to = range.end)]
    Protected {
        /// What was asked.
        operation: &'static str,
        /// Where.
        address: u64,
        /// The protected bytes.
        range: Range<u64>,
    },
    /// No setting of the protection bits means exactly this range.
    #[error("no protection bits of {part} mean {from:#x}..{to:#x}", from = range.start, to = range.end)]
    NoSuchRange {
        /// The part.
        part: String,
        /// What was wanted.
        range: Range<u64>,
    },
    /// A register did not take the value.
    #[error(
        "{register}: wrote {wrote:#04x}, reads {reads:#04x}: it is locked (SRP, WP#) or its bits are one-time"
    )]
    NotTaken {
        /// The register.
        register: String,
        /// What was written.
        wrote: u8,
        /// What it reads.
        reads: u8,
    },
    /// SPI NAND: more bits were wrong than the code corrects.
    #[error("page {page}: more errors than the code corrects")]
    Uncorrectable {
        /// The page.
        page: u32,
    },
    /// SPI NAND: a block marked bad.
    #[error("block {block} is marked bad")]
    BadBlock {
        /// The block.
        block: u32,
    },
}
