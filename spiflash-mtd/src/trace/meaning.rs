//! What a frame meant, in a few words.

use crate::chip::{Chip, Effect, FrameReport};
use crate::op::{EraseUnit, Op, Reg};
use crate::part::Part;

/// What a frame did, or would have done, in words: "program 256 bytes at 0x1000", "status 0x03: BUSY WEL". `data` is what went over
/// the lines in its data phase, or the beginning of it.
pub fn meaning(chip: &Chip, report: &FrameReport, data: &[u8]) -> String {
    let part = chip.part();
    let Some(spec) = part.command(report.opcode) else {
        return format!("opcode {:02X}h, which {} does not know", report.opcode, part.name);
    };
    let at = report.address.map(|address| format!(" at {address:#x}")).unwrap_or_default();
    let bytes = count(report.data_bytes, "byte");
    let asked = match spec.op {
        Op::Read => format!("read {bytes}{at}"),
        Op::Program | Op::ProgramAai => format!("program {bytes}{at}"),
        Op::Erase(unit) => format!("erase {}{at}", unit_name(part, unit)),
        Op::ChipErase => "erase all of it".into(),
        Op::ReadRegister(register) => return register_read(part, register, data),
        Op::WriteRegisters(registers) => registers_written(part, registers, data),
        Op::ReadJedecId => format!("JEDEC ID {}", hex(data)),
        Op::ReadManufacturerId => format!("manufacturer and device ID {}", hex(data)),
        Op::ReadUniqueId | Op::ReadSerialNumber => format!("unique ID {}", hex(data)),
        Op::ReadSfdp => format!("SFDP, {bytes}{at}"),
        Op::ReadSecurity => format!("read {bytes} of the security registers{at}"),
        Op::ProgramSecurity => format!("program {bytes} of a security register{at}"),
        Op::EraseSecurity => format!("erase the security register{at}"),
        Op::ReadBlockLock => {
            let locked =
                data.first().map_or("not read", |byte| if byte & 1 == 1 { "locked" } else { "unlocked" });
            format!("lock of the block{at}: {locked}")
        }
        Op::NandGetFeature => {
            format!("feature {:#04x} is {}", report.address.unwrap_or(0), hex(data))
        }
        Op::NandSetFeature => {
            format!("feature {:#04x} becomes {}", report.address.unwrap_or(0), hex(data))
        }
        Op::NandPageRead => format!("page {:#x} to the buffer", report.address.unwrap_or(0)),
        Op::NandProgramExecute => format!("buffer to page {:#x}", report.address.unwrap_or(0)),
        Op::NandReadBuffer => format!("read {bytes} of the buffer{at}"),
        Op::NandLoad { .. } => format!("load {bytes} into the buffer{at}"),
        _ => {
            let data = if data.is_empty() { String::new() } else { format!(": {}", hex(data)) };
            format!("{}{at}{data}", spec.name)
        }
    };
    match report.effect {
        Effect::Ignored(reason) => format!("ignored ({reason}): {asked}"),
        Effect::Done | Effect::Begun { .. } => asked,
    }
}

fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// At most 16 bytes.
fn hex(data: &[u8]) -> String {
    let shown: Vec<String> = data.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let more = if data.len() > 16 { " ..." } else { "" };
    if shown.is_empty() { "(no data)".into() } else { shown.join(" ") + more }
}

fn unit_name(part: &Part, unit: EraseUnit) -> String {
    match (unit, part.erase_bytes(unit)) {
        (EraseUnit::NandBlock, _) => "the block of page".into(),
        (_, Some(bytes)) if bytes >= 1024 => format!("{} KiB", bytes / 1024),
        (_, Some(bytes)) => format!("{bytes} bytes"),
        (_, None) => "the block".into(),
    }
}

fn register_name(register: Reg) -> &'static str {
    match register {
        Reg::Sr1 => "status",
        Reg::Sr2 => "status 2",
        Reg::Sr3 => "status 3",
        Reg::Config => "configuration",
        Reg::Flag => "flag status",
        Reg::Vcr => "volatile configuration",
        Reg::Evcr => "enhanced volatile configuration",
        Reg::NvcrLow => "nonvolatile configuration",
        Reg::NvcrHigh => "nonvolatile configuration, high byte",
        Reg::Ear => "extended address",
        Reg::Security => "security",
        Reg::ReadParameters => "read parameters",
        Reg::NandProtection => "protection",
        Reg::NandConfig => "configuration",
        Reg::NandStatus => "status",
    }
}

/// The names of the bits that are 1.
fn bits(part: &Part, register: Reg, value: u8) -> String {
    let Some(spec) = part.registers.get(&register) else { return String::new() };
    let named = spec.bits.iter().enumerate().filter(|(bit, spec)| value >> bit & 1 == 1 && spec.name != "-");
    let names: Vec<String> = named.map(|(_, spec)| spec.name.to_uppercase()).collect();
    if names.is_empty() { String::new() } else { format!(": {}", names.join(" ")) }
}

/// The value as read last: polls read it again and again.
fn register_read(part: &Part, register: Reg, data: &[u8]) -> String {
    let name = register_name(register);
    let Some(value) = data.last() else { return format!("{name}, not read") };
    format!("{name} {value:#04x}{}", bits(part, register, *value))
}

fn registers_written(part: &Part, registers: &[Reg], data: &[u8]) -> String {
    let one = |(register, value): (&Reg, &u8)| {
        format!("{} becomes {value:#04x}{}", register_name(*register), bits(part, *register, *value))
    };
    let all: Vec<String> = registers.iter().zip(data).map(one).collect();
    if all.is_empty() { "write of a register without data".into() } else { all.join(", ") }
}
