//! The commands that a part file may name: opcode, frame and operation, as most makers have them.
//!
//! Sources: JEDEC JESD216 (SFDP): the basic flash parameter table's dwords 3 and 4 (fast reads: opcode, mode clocks, wait
//! states), 8 and 9 (erases), 13 (suspend, resume), 14 (deep power-down), 16 (soft reset, 4-byte modes), the 4-byte address
//! instruction table, and the frame of 5Ah itself; Winbond W25Q256FV and W25Q128JV, section 8 (instructions). The clocks
//! between the address and the data of BBh and EBh are 4 and 6 on Winbond, Macronix and ISSI alike, which call more or
//! fewer of them mode bits; the split here is the one that Winbond draws. A part that differs says so in its file.

use crate::command::{AddressPhase, CommandSpec, Counts, DataPhase, Lines};
use crate::op::{EraseUnit, Op, Reg};

const SINGLE: Lines = Lines::Single;
const DUAL: Lines = Lines::Dual;
const QUAD: Lines = Lines::Quad;
const BY_MODE: AddressPhase = AddressPhase::ByMode(SINGLE);
const THREE: AddressPhase = AddressPhase::Three(SINGLE);
const FOUR: AddressPhase = AddressPhase::Four(SINGLE);

const fn read(
    opcode: u8,
    name: &'static str,
    address: AddressPhase,
    dummy_clocks: u8,
    lines: Lines,
) -> CommandSpec {
    CommandSpec::read(opcode, name, address, dummy_clocks, lines).doing(Op::Read)
}

const fn program(opcode: u8, name: &'static str, address: AddressPhase, lines: Lines) -> CommandSpec {
    CommandSpec::program(opcode, name, address, lines).doing(Op::Program)
}

const fn erase(opcode: u8, name: &'static str, address: AddressPhase, unit: EraseUnit) -> CommandSpec {
    CommandSpec::erase(opcode, name, address).doing(Op::Erase(unit))
}

const fn control(opcode: u8, name: &'static str, op: Op) -> CommandSpec {
    CommandSpec::control(opcode, name).doing(op)
}

const fn read_register(opcode: u8, name: &'static str, register: Reg) -> CommandSpec {
    CommandSpec::register_read(opcode, name).doing(Op::ReadRegister(register))
}

const fn write_registers(opcode: u8, name: &'static str, registers: &'static [Reg]) -> CommandSpec {
    CommandSpec::register_write(opcode, name, registers.len() as u32).doing(Op::WriteRegisters(registers))
}

const fn data_out(
    opcode: u8,
    name: &'static str,
    address: AddressPhase,
    dummy_clocks: u8,
    op: Op,
) -> CommandSpec {
    CommandSpec::read(opcode, name, address, dummy_clocks, SINGLE).doing(op)
}

const fn data_in(opcode: u8, name: &'static str, address: AddressPhase, most: u32, op: Op) -> CommandSpec {
    let data = DataPhase::In { lines: SINGLE, min_bytes: 1, max_bytes: most };
    CommandSpec { data, ..CommandSpec::program(opcode, name, address, SINGLE) }.doing(op)
}

const fn continuous(spec: CommandSpec) -> CommandSpec {
    CommandSpec { continuous: true, ..spec.with_mode_byte().tunable() }
}

/// Every command, by the name that part files use.
pub const CATALOGUE: &[(&str, CommandSpec)] = &[
    // Reads of the array.
    ("read", read(0x03, "Read Data", BY_MODE, 0, SINGLE)),
    ("fast-read", read(0x0B, "Fast Read", BY_MODE, 8, SINGLE).tunable()),
    ("dual-output-read", read(0x3B, "Fast Read Dual Output", BY_MODE, 8, DUAL).tunable()),
    ("quad-output-read", read(0x6B, "Fast Read Quad Output", BY_MODE, 8, QUAD).tunable()),
    ("dual-io-read", continuous(read(0xBB, "Fast Read Dual I/O", AddressPhase::ByMode(DUAL), 0, DUAL))),
    ("quad-io-read", continuous(read(0xEB, "Fast Read Quad I/O", AddressPhase::ByMode(QUAD), 4, QUAD))),
    ("read-4b", read(0x13, "Read Data with 4-Byte Address", FOUR, 0, SINGLE)),
    ("fast-read-4b", read(0x0C, "Fast Read with 4-Byte Address", FOUR, 8, SINGLE).tunable()),
    ("dual-output-read-4b", read(0x3C, "Fast Read Dual Output with 4-Byte Address", FOUR, 8, DUAL).tunable()),
    ("quad-output-read-4b", read(0x6C, "Fast Read Quad Output with 4-Byte Address", FOUR, 8, QUAD).tunable()),
    (
        "dual-io-read-4b",
        continuous(read(0xBC, "Fast Read Dual I/O with 4-Byte Address", AddressPhase::Four(DUAL), 0, DUAL)),
    ),
    (
        "quad-io-read-4b",
        continuous(read(0xEC, "Fast Read Quad I/O with 4-Byte Address", AddressPhase::Four(QUAD), 4, QUAD)),
    ),
    // Programs.
    ("page-program", program(0x02, "Page Program", BY_MODE, SINGLE)),
    ("page-program-4b", program(0x12, "Page Program with 4-Byte Address", FOUR, SINGLE)),
    ("dual-page-program", program(0xA2, "Dual Input Page Program", BY_MODE, DUAL)),
    ("quad-page-program", program(0x32, "Quad Input Page Program", BY_MODE, QUAD)),
    ("quad-page-program-4b", program(0x34, "Quad Input Page Program with 4-Byte Address", FOUR, QUAD)),
    ("quad-io-page-program", program(0x38, "Quad I/O Page Program", AddressPhase::ByMode(QUAD), QUAD)),
    (
        "quad-io-page-program-4b",
        program(0x3E, "Quad I/O Page Program with 4-Byte Address", AddressPhase::Four(QUAD), QUAD),
    ),
    ("byte-program", data_in(0x02, "Byte Program", THREE, 1, Op::Program)),
    // The words that follow the first come without an address; the chip tells the two frames apart by its AAI bit.
    ("aai-program", data_in(0xAD, "Auto Address Increment Word Program", THREE, 2, Op::ProgramAai)),
    // Erases.
    ("erase-4k", erase(0x20, "Sector Erase (4 KiB)", BY_MODE, EraseUnit::Sector4k)),
    ("erase-32k", erase(0x52, "Block Erase (32 KiB)", BY_MODE, EraseUnit::Block32k)),
    ("erase-64k", erase(0xD8, "Block Erase (64 KiB)", BY_MODE, EraseUnit::Block64k)),
    ("erase-256k", erase(0xD8, "Sector Erase (256 KiB)", BY_MODE, EraseUnit::Block256k)),
    ("erase-mapped", erase(0xD8, "Block Erase (8, 32 or 64 KiB)", BY_MODE, EraseUnit::Mapped)),
    ("erase-4k-4b", erase(0x21, "Sector Erase (4 KiB) with 4-Byte Address", FOUR, EraseUnit::Sector4k)),
    ("erase-32k-4b", erase(0x5C, "Block Erase (32 KiB) with 4-Byte Address", FOUR, EraseUnit::Block32k)),
    ("erase-64k-4b", erase(0xDC, "Block Erase (64 KiB) with 4-Byte Address", FOUR, EraseUnit::Block64k)),
    ("erase-256k-4b", erase(0xDC, "Sector Erase (256 KiB) with 4-Byte Address", FOUR, EraseUnit::Block256k)),
    ("erase-4k-d7", erase(0xD7, "Sector Erase (4 KiB)", BY_MODE, EraseUnit::Sector4k)),
    ("chip-erase", control(0xC7, "Chip Erase", Op::ChipErase)),
    ("chip-erase-60", control(0x60, "Chip Erase", Op::ChipErase)),
    // Write enable and registers.
    ("write-enable", control(0x06, "Write Enable", Op::WriteEnable)),
    ("write-disable", control(0x04, "Write Disable", Op::WriteDisable)),
    (
        "write-enable-volatile",
        control(0x50, "Write Enable for Volatile Status Register", Op::WriteEnableVolatile),
    ),
    ("read-status", read_register(0x05, "Read Status Register-1", Reg::Sr1)),
    ("read-status-2", read_register(0x35, "Read Status Register-2", Reg::Sr2)),
    ("read-status-3", read_register(0x15, "Read Status Register-3", Reg::Sr3)),
    ("write-status", write_registers(0x01, "Write Status Register-1", &[Reg::Sr1])),
    ("write-status-12", write_registers(0x01, "Write Status Register-1 and -2", &[Reg::Sr1, Reg::Sr2])),
    (
        "write-status-config",
        write_registers(0x01, "Write Status and Configuration Register", &[Reg::Sr1, Reg::Config]),
    ),
    ("write-status-2", write_registers(0x31, "Write Status Register-2", &[Reg::Sr2])),
    ("write-status-3", write_registers(0x11, "Write Status Register-3", &[Reg::Sr3])),
    ("read-config", read_register(0x15, "Read Configuration Register", Reg::Config)),
    ("read-config-35", read_register(0x35, "Read Configuration Register", Reg::Config)),
    ("read-status-2-07", read_register(0x07, "Read Status Register-2", Reg::Sr2)),
    ("read-security", read_register(0x2B, "Read Security Register", Reg::Security)),
    ("write-security", control(0x2F, "Write Security Register", Op::WriteRegisters(&[Reg::Security]))),
    ("read-function", read_register(0x48, "Read Function Register", Reg::Security)),
    ("write-function", write_registers(0x42, "Write Function Register", &[Reg::Security])),
    ("read-flag-status", read_register(0x70, "Read Flag Status Register", Reg::Flag)),
    ("clear-flag-status", control(0x50, "Clear Flag Status Register", Op::ClearStatus)),
    ("clear-status", control(0x30, "Clear Status Register", Op::ClearStatus)),
    ("read-vcr", read_register(0x85, "Read Volatile Configuration Register", Reg::Vcr)),
    ("write-vcr", write_registers(0x81, "Write Volatile Configuration Register", &[Reg::Vcr])),
    ("read-evcr", read_register(0x65, "Read Enhanced Volatile Configuration Register", Reg::Evcr)),
    ("write-evcr", write_registers(0x61, "Write Enhanced Volatile Configuration Register", &[Reg::Evcr])),
    ("read-nvcr", read_register(0xB5, "Read Nonvolatile Configuration Register", Reg::NvcrLow)),
    (
        "write-nvcr",
        write_registers(0xB1, "Write Nonvolatile Configuration Register", &[Reg::NvcrLow, Reg::NvcrHigh]),
    ),
    ("read-ear", read_register(0xC8, "Read Extended Address Register", Reg::Ear)),
    ("write-ear", write_registers(0xC5, "Write Extended Address Register", &[Reg::Ear])),
    ("read-bank", read_register(0x16, "Read Bank Register", Reg::Ear)),
    ("write-bank", write_registers(0x17, "Write Bank Register", &[Reg::Ear])),
    // Identification.
    ("read-jedec-id", CommandSpec::register_read(0x9F, "Read JEDEC ID").doing(Op::ReadJedecId)),
    ("read-jedec-id-9e", CommandSpec::register_read(0x9E, "Read JEDEC ID").doing(Op::ReadJedecId)),
    (
        "read-manufacturer-id",
        data_out(0x90, "Read Manufacturer / Device ID", THREE, 0, Op::ReadManufacturerId),
    ),
    // JESD216 fixes this frame for every part and address mode.
    ("read-sfdp", data_out(0x5A, "Read SFDP Register", THREE, 8, Op::ReadSfdp)),
    (
        "read-unique-id",
        CommandSpec { dummy_clocks: 32, ..CommandSpec::register_read(0x4B, "Read Unique ID Number") }
            .doing(Op::ReadUniqueId),
    ),
    (
        "release",
        CommandSpec {
            dummy_clocks: 24,
            counts: Counts::WithOpcode,
            ..CommandSpec::register_read(0xAB, "Release Power-down / Device ID")
        }
        .doing(Op::Release),
    ),
    // Modes.
    ("power-down", control(0xB9, "Power-down", Op::PowerDown)),
    ("enter-4b", control(0xB7, "Enter 4-Byte Address Mode", Op::Enter4Byte)),
    ("exit-4b", control(0xE9, "Exit 4-Byte Address Mode", Op::Exit4Byte)),
    ("enter-qpi", control(0x38, "Enter QPI Mode", Op::EnterQpi)),
    ("enter-qpi-35", control(0x35, "Enter QPI Mode", Op::EnterQpi)),
    ("exit-qpi", control(0xFF, "Exit QPI Mode", Op::ExitQpi)),
    ("exit-qpi-f5", control(0xF5, "Exit QPI Mode", Op::ExitQpi)),
    ("reset-enable", control(0x66, "Enable Reset", Op::ResetEnable)),
    ("reset", control(0x99, "Reset Device", Op::Reset)),
    ("suspend", control(0x75, "Erase/Program Suspend", Op::Suspend)),
    ("resume", control(0x7A, "Erase/Program Resume", Op::Resume)),
    ("suspend-b0", control(0xB0, "Erase/Program Suspend", Op::Suspend)),
    ("resume-30", control(0x30, "Erase/Program Resume", Op::Resume)),
    // 24 clocks' worth of bits that mean nothing, on four lines, come first: an address that is not looked at.
    (
        "set-burst",
        CommandSpec {
            address: AddressPhase::Three(QUAD),
            data: DataPhase::In { lines: QUAD, min_bytes: 1, max_bytes: 1 },
            ..CommandSpec::control(0x77, "Set Burst with Wrap")
        }
        .doing(Op::SetBurst),
    ),
    ("set-burst-c0", CommandSpec::register_write(0xC0, "Set Burst Length", 1).doing(Op::SetBurst)),
    ("set-read-parameters", write_registers(0xC0, "Set Read Parameters", &[Reg::ReadParameters])),
    // Security registers and one-time areas.
    ("read-security-register", data_out(0x48, "Read Security Registers", BY_MODE, 8, Op::ReadSecurity)),
    (
        "program-security-register",
        data_in(0x42, "Program Security Registers", BY_MODE, u32::MAX, Op::ProgramSecurity),
    ),
    (
        "erase-security-register",
        CommandSpec::erase(0x44, "Erase Security Registers", BY_MODE).doing(Op::EraseSecurity),
    ),
    ("read-otp-4b", data_out(0x4B, "Read OTP Array", BY_MODE, 8, Op::ReadSecurity)),
    ("program-otp", data_in(0x42, "Program OTP Array", BY_MODE, u32::MAX, Op::ProgramSecurity)),
    ("read-irl", data_out(0x68, "Read Information Row", BY_MODE, 8, Op::ReadSecurity)),
    ("program-irl", data_in(0x62, "Program Information Row", BY_MODE, u32::MAX, Op::ProgramSecurity)),
    ("erase-irl", CommandSpec::erase(0x64, "Erase Information Row", BY_MODE).doing(Op::EraseSecurity)),
    ("enter-otp", control(0xB1, "Enter Secured OTP", Op::EnterOtp)),
    ("exit-otp", control(0xC1, "Exit Secured OTP", Op::ExitOtp)),
    // Locks of single blocks.
    ("lock-block", CommandSpec::erase(0x36, "Individual Block Lock", BY_MODE).doing(Op::LockBlock)),
    ("unlock-block", CommandSpec::erase(0x39, "Individual Block Unlock", BY_MODE).doing(Op::UnlockBlock)),
    ("read-block-lock", data_out(0x3D, "Read Block Lock", BY_MODE, 0, Op::ReadBlockLock)),
    ("lock-all", control(0x7E, "Global Block Lock", Op::LockAll)),
    ("unlock-all", control(0x98, "Global Block Unlock", Op::UnlockAll)),
    (
        "read-block-protection",
        CommandSpec::register_read(0x72, "Read Block-Protection Register").doing(Op::ReadBlockProtection),
    ),
    (
        "write-block-protection",
        CommandSpec::register_write(0x42, "Write Block-Protection Register", 18)
            .doing(Op::WriteBlockProtection),
    ),
    ("lock-down", control(0x8D, "Lock Down Block-Protection Register", Op::LockDown)),
    // FRAM.
    (
        "read-serial-number",
        CommandSpec::register_read(0xC3, "Read Serial Number").doing(Op::ReadSerialNumber),
    ),
    // SPI NAND: row (page) addresses have three bytes, the first of them empty; column addresses have two.
    ("nand-read-id", data_out(0x9F, "Read JEDEC ID", AddressPhase::None, 8, Op::ReadJedecId)),
    ("nand-page-read", CommandSpec::erase(0x13, "Page Data Read", THREE).doing(Op::NandPageRead)),
    ("nand-read", data_out(0x03, "Read Data", AddressPhase::Two(SINGLE), 8, Op::NandReadBuffer)),
    ("nand-fast-read", data_out(0x0B, "Fast Read", AddressPhase::Two(SINGLE), 8, Op::NandReadBuffer)),
    (
        "nand-dual-output-read",
        CommandSpec::read(0x3B, "Fast Read Dual Output", AddressPhase::Two(SINGLE), 8, DUAL)
            .doing(Op::NandReadBuffer),
    ),
    (
        "nand-quad-output-read",
        CommandSpec::read(0x6B, "Fast Read Quad Output", AddressPhase::Two(SINGLE), 8, QUAD)
            .doing(Op::NandReadBuffer),
    ),
    (
        "nand-load",
        data_in(0x02, "Load Program Data", AddressPhase::Two(SINGLE), u32::MAX, Op::NandLoad { keep: false }),
    ),
    (
        "nand-load-random",
        data_in(
            0x84,
            "Random Load Program Data",
            AddressPhase::Two(SINGLE),
            u32::MAX,
            Op::NandLoad { keep: true },
        ),
    ),
    (
        "nand-quad-load",
        CommandSpec::program(0x32, "Quad Load Program Data", AddressPhase::Two(SINGLE), QUAD)
            .doing(Op::NandLoad { keep: false }),
    ),
    (
        "nand-quad-load-random",
        CommandSpec::program(0x34, "Quad Random Load Program Data", AddressPhase::Two(SINGLE), QUAD)
            .doing(Op::NandLoad { keep: true }),
    ),
    (
        "nand-program-execute",
        CommandSpec::erase(0x10, "Program Execute", THREE).doing(Op::NandProgramExecute),
    ),
    (
        "nand-erase",
        CommandSpec::erase(0xD8, "Block Erase (128 KiB)", THREE).doing(Op::Erase(EraseUnit::NandBlock)),
    ),
    (
        "nand-get-feature",
        data_out(0x0F, "Read Status Register", AddressPhase::One(SINGLE), 0, Op::NandGetFeature),
    ),
    (
        "nand-get-feature-05",
        data_out(0x05, "Read Status Register", AddressPhase::One(SINGLE), 0, Op::NandGetFeature),
    ),
    (
        "nand-set-feature",
        data_in(0x1F, "Write Status Register", AddressPhase::One(SINGLE), 1, Op::NandSetFeature),
    ),
    (
        "nand-set-feature-01",
        data_in(0x01, "Write Status Register", AddressPhase::One(SINGLE), 1, Op::NandSetFeature),
    ),
    ("nand-reset", control(0xFF, "Device Reset", Op::Reset)),
    (
        "nand-swap-blocks",
        CommandSpec::erase(0xA1, "Bad Block Management (Swap Blocks)", FOUR).doing(Op::NandSwapBlocks),
    ),
    ("nand-read-links", data_out(0xA5, "Read BBM Look-Up Table", AddressPhase::None, 8, Op::NandReadLinks)),
    (
        "nand-last-failure",
        data_out(0xA9, "Last ECC Failure Page Address", AddressPhase::None, 8, Op::NandLastFailure),
    ),
];

/// The command of a name.
pub fn find(name: &str) -> Option<CommandSpec> {
    CATALOGUE.iter().find(|(known, _)| *known == name).map(|(_, spec)| *spec)
}

/// The commands that the parts of most makers share.
pub fn jedec() -> impl Iterator<Item = CommandSpec> + Clone {
    const SHARED: [&str; 42] = [
        "read",
        "fast-read",
        "dual-output-read",
        "quad-output-read",
        "dual-io-read",
        "quad-io-read",
        "read-4b",
        "fast-read-4b",
        "dual-output-read-4b",
        "quad-output-read-4b",
        "dual-io-read-4b",
        "quad-io-read-4b",
        "page-program",
        "page-program-4b",
        "quad-page-program",
        "quad-page-program-4b",
        "erase-4k",
        "erase-32k",
        "erase-64k",
        "erase-4k-4b",
        "erase-32k-4b",
        "erase-64k-4b",
        "chip-erase",
        "chip-erase-60",
        "write-enable",
        "write-disable",
        "read-status",
        "read-status-2",
        "read-status-3",
        "write-status-12",
        "write-status-2",
        "write-status-3",
        "read-jedec-id",
        "read-sfdp",
        "enter-4b",
        "exit-4b",
        "suspend",
        "resume",
        "power-down",
        "release",
        "reset-enable",
        "reset",
    ];
    SHARED.iter().filter_map(|name| find(name))
}
