//! What a command does once its frame counts: the names of the operations, which data (part files) and code (the chip) share.

use serde::{Deserialize, Serialize};

/// A register of a chip, by its role. Which bits it has is the part's business ([`crate::part::RegisterSpec`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reg {
    /// Status register 1: BUSY, WEL, block protection.
    Sr1,
    /// Status register 2.
    Sr2,
    /// Status register 3.
    Sr3,
    /// The configuration register of Macronix, Infineon and SST.
    Config,
    /// The flag status register of Micron: ready, errors, suspended.
    Flag,
    /// The volatile configuration register of Micron.
    Vcr,
    /// The enhanced volatile configuration register of Micron.
    Evcr,
    /// The nonvolatile configuration register of Micron, its low byte.
    NvcrLow,
    /// Its high byte.
    NvcrHigh,
    /// The extended address register: address bits 24 and above in the 3-byte mode. Infineon calls it the bank register.
    Ear,
    /// The security register of Macronix (2Bh), the function register of ISSI (48h).
    Security,
    /// Read parameters (C0h).
    ReadParameters,
    /// SPI NAND: protection (A0h).
    NandProtection,
    /// SPI NAND: configuration (B0h).
    NandConfig,
    /// SPI NAND: status (C0h).
    NandStatus,
}

/// How much an erase erases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EraseUnit {
    /// 4 KiB.
    Sector4k,
    /// 32 KiB.
    Block32k,
    /// 64 KiB.
    Block64k,
    /// 256 KiB.
    Block256k,
    /// What the part's map of unequal blocks says (SST26: 8, 32 and 64 KiB).
    Mapped,
    /// A block of a NAND.
    NandBlock,
}

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// None: the chip takes the frame and does nothing.
    Nothing,
    /// Data of the array, on and on, from the address; from the last byte to the first.
    Read,
    /// The SFDP tables.
    ReadSfdp,
    /// The JEDEC ID.
    ReadJedecId,
    /// 90h: maker and device ID, in turn; the address' lowest bit swaps them.
    ReadManufacturerId,
    /// ABh: out of deep power-down; the device ID where data is clocked.
    Release,
    /// 4Bh: the unique ID.
    ReadUniqueId,
    /// A register, again and again.
    ReadRegister(Reg),
    /// Data bytes go to these registers in turn. Nonvolatile bits take the time of a status write.
    WriteRegisters(&'static [Reg]),
    /// 06h.
    WriteEnable,
    /// 04h.
    WriteDisable,
    /// 50h: the next register write changes the working value only (and, on SST25, is allowed at all).
    WriteEnableVolatile,
    /// Program a page.
    Program,
    /// SST25: program a byte or, with AAI, a word after the other.
    ProgramAai,
    /// Erase.
    Erase(EraseUnit),
    /// Erase all.
    ChipErase,
    /// Interrupt an erase or program.
    Suspend,
    /// Go on with it.
    Resume,
    /// B9h.
    PowerDown,
    /// 66h.
    ResetEnable,
    /// 99h.
    Reset,
    /// B7h.
    Enter4Byte,
    /// E9h.
    Exit4Byte,
    /// 38h or 35h.
    EnterQpi,
    /// FFh or F5h.
    ExitQpi,
    /// 77h and C0h: the length that reads with wrap stay within.
    SetBurst,
    /// Read, program and erase of a security register, by address.
    ReadSecurity,
    /// See above.
    ProgramSecurity,
    /// See above.
    EraseSecurity,
    /// B1h: reads and programs go to the one-time area until C1h.
    EnterOtp,
    /// C1h.
    ExitOtp,
    /// 36h, 39h and 3Dh: an individual block's lock.
    LockBlock,
    /// See above.
    UnlockBlock,
    /// See above.
    ReadBlockLock,
    /// 7Eh: lock all blocks.
    LockAll,
    /// 98h: unlock all blocks.
    UnlockAll,
    /// SST26: read the block-protection register.
    ReadBlockProtection,
    /// SST26: write it.
    WriteBlockProtection,
    /// SST26: no more changes of it until power is lost.
    LockDown,
    /// Clear the error bits (30h, 50h).
    ClearStatus,
    /// C3h: the serial number of a FRAM.
    ReadSerialNumber,
    /// SPI NAND: page to buffer.
    NandPageRead,
    /// SPI NAND: read the buffer.
    NandReadBuffer,
    /// SPI NAND: load the buffer, the rest of it erased (`keep` false) or kept.
    NandLoad {
        /// Whether what the frame does not name stays.
        keep: bool,
    },
    /// SPI NAND: buffer to page.
    NandProgramExecute,
    /// SPI NAND: read the feature register whose address follows.
    NandGetFeature,
    /// SPI NAND: write it.
    NandSetFeature,
    /// SPI NAND: link a logical to a physical block.
    NandSwapBlocks,
    /// SPI NAND: the links.
    NandReadLinks,
    /// SPI NAND: the page of the last uncorrectable read.
    NandLastFailure,
}
