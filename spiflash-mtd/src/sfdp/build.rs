//! The tables of a part.

use super::{
    AddressBytes, BYTE, Basic, CHIP_ERASE, ERASE, EraseType, Extended, FastRead, FourByte, INTERVAL, LATENCY,
    PAGE, PowerDown, ReadMode, Region, Suspend, Tables,
};
use crate::command::{AddressPhase, CommandSpec, DataPhase, Lines};
use crate::op::{EraseUnit, Op, Reg};
use crate::part::{ContinuousRead, Keep, Part, Span};

/// The bytes that 5Ah reads: the part's dump, or made from the rest of it. `None`: the part has no SFDP.
pub fn build(part: &Part) -> Option<Vec<u8>> {
    match part.sfdp.as_ref()?.dump_bytes() {
        Some(dump) => Some(dump),
        None => tables(part).map(|tables| tables.encode()),
    }
}

/// The tables as they follow from the part, whether or not it has a dump. `None`: the part has no SFDP.
pub fn tables(part: &Part) -> Option<Tables> {
    let revision_minor = part.sfdp.as_ref()?.revision_minor;
    let extended = revision_minor >= 5;
    let erases = erases(part, extended);
    let basic = Basic {
        erase_4k: erase_4k(part),
        buffered_program: part.geometry.page_bytes >= 64,
        volatile_protection: volatile_protection(part),
        address: address(part),
        size_bytes: part.geometry.size_bytes,
        reads: reads(part),
        erases,
        extended: extended.then(|| extension(part)),
    };
    let newer = revision_minor >= 6;
    let four_byte = if newer { four_byte(part, &erases) } else { None };
    let map = if newer { map(part, &erases) } else { Vec::new() };
    Some(Tables { revision_minor, basic, four_byte, map })
}

/// The first command of the part that is so.
fn first(part: &Part, is: impl Fn(&CommandSpec) -> bool) -> Option<&CommandSpec> {
    part.commands.iter().find(|command| is(command))
}

fn has(part: &Part, opcode: u8, op: Op) -> bool {
    part.command(opcode).is_some_and(|command| command.op == op)
}

fn writes(part: &Part, register: Reg) -> bool {
    first(part, |command| matches!(command.op, Op::WriteRegisters(list) if list.contains(&register)))
        .is_some()
}

/// Whether a 4 KiB erase works anywhere: where single blocks are larger, only by a command that follows the map.
fn erase_4k(part: &Part) -> Option<u8> {
    let anywhere = part.geometry.blocks.is_empty() || has_mapped(part);
    let command = first(part, |command| {
        command.op == Op::Erase(EraseUnit::Sector4k) && !matches!(command.address, AddressPhase::Four(_))
    })?;
    anywhere.then_some(command.opcode)
}

fn has_mapped(part: &Part) -> bool {
    first(part, |command| command.op == Op::Erase(EraseUnit::Mapped)).is_some()
}

fn volatile_protection(part: &Part) -> Option<u8> {
    let volatile = |spec: &crate::part::RegisterSpec| {
        spec.bits.iter().any(|bit| bit.name == "bp0" && bit.keep == Keep::Volatile)
    };
    let enable =
        first(part, |command| command.op == Op::WriteEnableVolatile).map_or(0x06, |command| command.opcode);
    part.registers.values().any(volatile).then_some(enable)
}

fn address(part: &Part) -> AddressBytes {
    let switches = first(part, |command| {
        matches!(command.op, Op::Enter4Byte) || matches!(command.address, AddressPhase::Four(_))
    });
    match (part.bus.address_bytes, switches) {
        (4, None) => AddressBytes::Four,
        (_, Some(_)) => AddressBytes::ThreeOrFour,
        _ => AddressBytes::Three,
    }
}

fn reads(part: &Part) -> [Option<FastRead>; 6] {
    let mut reads = [None; 6];
    for command in part.commands.iter().filter(|command| command.op == Op::Read) {
        let AddressPhase::ByMode(address) = command.address else { continue };
        let DataPhase::Out { lines: data } = command.data else { continue };
        let mode = match (address, data) {
            (Lines::Single, Lines::Dual) => ReadMode::Dual112,
            (Lines::Dual, Lines::Dual) => ReadMode::Dual122,
            (Lines::Single, Lines::Quad) => ReadMode::Quad114,
            (Lines::Quad, Lines::Quad) => ReadMode::Quad144,
            _ => continue,
        };
        let mode_clocks = if command.mode_byte { address.clocks_per_byte() } else { 0 };
        let read = FastRead {
            opcode: command.opcode,
            mode_clocks: mode_clocks.min(7),
            wait_clocks: command.dummy_clocks.min(31),
        };
        put(&mut reads, mode, read);
        let qpi = first(part, |command| command.op == Op::EnterQpi).is_some();
        if mode == ReadMode::Quad144 && qpi {
            let rule = part.bus.dummy.as_ref().filter(|rule| rule.only_qpi && command.tunable_dummy);
            let clocks = rule.and_then(|rule| rule.clocks_at(0, true));
            let wait_clocks =
                clocks.map_or(read.wait_clocks, |clocks| clocks.saturating_sub(mode_clocks).min(31));
            put(&mut reads, ReadMode::Quad444, FastRead { wait_clocks, ..read });
        }
    }
    reads
}

fn put(reads: &mut [Option<FastRead>; 6], mode: ReadMode, read: FastRead) {
    if let Some(slot) = reads.get_mut(mode as usize) {
        slot.get_or_insert(read);
    }
}

/// The commands of the erase types: with the address bytes of the mode, smallest first; one that follows the map is as many
/// types as the map has sizes.
fn erases(part: &Part, timed: bool) -> [Option<EraseType>; 4] {
    let mut types: Vec<EraseType> = Vec::new();
    let mut add = |opcode: u8, bytes: u64, unit: EraseUnit| {
        let time = part.timing.erase.get(&unit).copied().unwrap_or_default();
        let typical_ns = if timed { ERASE.round(time.typical_ns) } else { 0 };
        let log2_bytes = bytes.trailing_zeros() as u8;
        if !types.iter().any(|one| one.log2_bytes == log2_bytes) {
            types.push(EraseType { opcode, log2_bytes, typical_ns });
        }
    };
    for command in part.commands.iter() {
        let (Op::Erase(unit), AddressPhase::ByMode(_)) = (command.op, command.address) else { continue };
        match part.erase_bytes(unit) {
            Some(bytes) => add(command.opcode, bytes, unit),
            None => {
                part.geometry
                    .blocks
                    .iter()
                    .for_each(|[_, bytes]| add(command.opcode, u64::from(*bytes), unit));
            }
        }
    }
    types.sort_by_key(|one| one.log2_bytes);
    let mut erases = [None; 4];
    erases.iter_mut().zip(types).for_each(|(slot, one)| *slot = Some(one));
    erases
}

/// The factor from typical to longest: the least even one that is enough for all of these, at most 32.
fn factor(times: impl Iterator<Item = (u64, u64)>) -> u8 {
    let needed = |(typical, max): (u64, u64)| max.div_ceil(typical.max(1)).div_ceil(2).clamp(1, 16) as u8 * 2;
    times.map(needed).max().unwrap_or(2)
}

fn extension(part: &Part) -> Extended {
    let timing = &part.timing;
    let page_program_ns = PAGE.round(timing.page_program.typical_ns);
    let or_page = |span: Span, part_of: u64| {
        if span.typical_ns > 0 { span } else { shared(timing.page_program, part_of) }
    };
    let first_byte = or_page(timing.first_byte, 1);
    let next_byte = or_page(timing.next_byte, u64::from(part.geometry.page_bytes));
    let (first_byte_ns, next_byte_ns) = (BYTE.round(first_byte.typical_ns), BYTE.round(next_byte.typical_ns));
    let chip_erase_ns = CHIP_ERASE.round(timing.chip_erase.typical_ns);
    let rounded = timing.erase.values().map(|span| (ERASE.round(span.typical_ns), span.max_ns));
    let erase_max_factor = factor(rounded.chain([(chip_erase_ns, timing.chip_erase.max_ns)]));
    let programs = [(page_program_ns, timing.page_program.max_ns), (first_byte_ns, timing.first_byte.max_ns)];
    let program_max_factor = factor(programs.into_iter().chain([(next_byte_ns, timing.next_byte.max_ns)]));
    let resets_qpi = u8::from(qpi_enter(part) != 0 && resets(part, false) & 1 << 4 != 0);
    let quads = first(part, |command| command.op == Op::Read && command.continuous && command.opcode == 0xEB);
    Extended {
        erase_max_factor,
        program_max_factor,
        log2_page_bytes: (part.geometry.page_bytes.trailing_zeros() as u8).min(15),
        page_program_ns,
        first_byte_ns,
        next_byte_ns,
        chip_erase_ns,
        suspend: suspend(part),
        poll_status: has(part, 0x05, Op::ReadRegister(Reg::Sr1)),
        poll_flag: has(part, 0x70, Op::ReadRegister(Reg::Flag)),
        power_down: power_down(part),
        qpi_exit: u8::from(has(part, 0xFF, Op::ExitQpi))
            | u8::from(has(part, 0xF5, Op::ExitQpi)) << 1
            | resets_qpi << 3,
        qpi_enter: qpi_enter(part),
        continuous: quads.and_then(|_| continuous(part)),
        quad_enable: quad_enable(part),
        status_keeps: status_keeps(part),
        resets: resets(part, quads.and_then(|_| continuous(part)).is_some()),
        four_byte_exit: four_byte_exit(part),
        four_byte_enter: four_byte_enter(part),
    }
}

/// A share of a page's time, for parts that name no time for single bytes.
fn shared(page: Span, part_of: u64) -> Span {
    Span { typical_ns: page.typical_ns / part_of.max(1), max_ns: page.max_ns / part_of.max(1) }
}

/// With two suspend commands (Infineon), the first opcode is that of erases.
fn suspend(part: &Part) -> Option<Suspend> {
    let mut suspends =
        part.commands.iter().filter(|command| command.op == Op::Suspend).map(|command| command.opcode);
    let mut resumes =
        part.commands.iter().filter(|command| command.op == Op::Resume).map(|command| command.opcode);
    let (erase_suspend, erase_resume) = (suspends.next()?, resumes.next()?);
    let latency_ns = LATENCY.round(part.timing.suspend_ns);
    let interval_ns = INTERVAL.round(part.timing.resume_to_suspend_ns);
    Some(Suspend {
        program_suspend: suspends.next().unwrap_or(erase_suspend),
        program_resume: resumes.next().unwrap_or(erase_resume),
        erase_suspend,
        erase_resume,
        program_latency_ns: latency_ns,
        erase_latency_ns: latency_ns,
        program_interval_ns: interval_ns,
        erase_interval_ns: interval_ns,
    })
}

fn power_down(part: &Part) -> Option<PowerDown> {
    let enter = first(part, |command| command.op == Op::PowerDown)?.opcode;
    let exit = first(part, |command| command.op == Op::Release)?.opcode;
    Some(PowerDown { enter, exit, exit_ns: LATENCY.round(part.timing.release_ns) })
}

fn qpi_enter(part: &Part) -> u8 {
    let quad_bit = part.registers.values().any(|spec| spec.bits.iter().any(|bit| bit.name == "qe"));
    let by_38 = if has(part, 0x38, Op::EnterQpi) { 1 << u8::from(!quad_bit) } else { 0 };
    by_38 | u8::from(has(part, 0x35, Op::EnterQpi)) << 2
}

/// A mode byte of 00h ends it in all rules; A5h begins it in all, Axh in some.
fn continuous(part: &Part) -> Option<(u8, u8)> {
    match part.bus.continuous_read {
        ContinuousRead::None => None,
        ContinuousRead::Bits54 | ContinuousRead::HighNibbleA => Some((0b1, 0b101)),
        ContinuousRead::Toggle => Some((0b1, 0b1)),
    }
}

fn quad_enable(part: &Part) -> u8 {
    let place = |register: Reg| {
        let spec = part.registers.get(&register)?;
        spec.bits.iter().position(|bit| bit.name == "qe")
    };
    if place(Reg::Sr1) == Some(6) {
        return 2;
    }
    let with_two = |register: Reg| {
        first(part, |command| {
            command.opcode == 0x01
                && matches!(command.op, Op::WriteRegisters([_, second]) if *second == register)
        })
    };
    let second = [Reg::Sr2, Reg::Config].into_iter().find(|register| place(*register) == Some(1));
    match second {
        None => 0,
        Some(register)
            if has(part, 0x31, Op::WriteRegisters(&[Reg::Sr2])) && with_two(register).is_none() =>
        {
            6
        }
        Some(Reg::Config) => 5,
        Some(_) => 4,
    }
}

fn status_keeps(part: &Part) -> u8 {
    let Some(spec) = part.registers.get(&Reg::Sr1) else { return 0 };
    let by_50 = first(part, |command| command.op == Op::WriteEnableVolatile).is_some();
    let keeps = |keep: Keep| spec.bits.iter().any(|bit| bit.keep == keep);
    match (keeps(Keep::Nonvolatile), keeps(Keep::Volatile)) {
        (true, true) => 1 << 4,
        (true, false) if by_50 => 1 << 3,
        (true, false) => 1,
        (false, true) if by_50 => 1 << 2,
        (false, true) => 1 << 1,
        (false, false) => 0,
    }
}

fn resets(part: &Part, continuous: bool) -> u8 {
    let one = u8::from(has(part, 0xF0, Op::Reset)) << 3;
    let two = u8::from(has(part, 0x66, Op::ResetEnable) && has(part, 0x99, Op::Reset)) << 4;
    one | two | u8::from(continuous) << 5
}

fn four_byte_exit(part: &Part) -> u8 {
    if address(part) != AddressBytes::ThreeOrFour {
        return 0;
    }
    let reset = first(part, |command| command.op == Op::Reset).is_some();
    four_byte_registers(part) | u8::from(has(part, 0xE9, Op::Exit4Byte)) | u8::from(reset) << 6 | 1 << 7
}

fn four_byte_registers(part: &Part) -> u8 {
    let by_ear = part.command(0xC5).is_some() && writes(part, Reg::Ear);
    let by_bank = part.command(0x17).is_some() && writes(part, Reg::Ear);
    u8::from(by_ear) << 2 | u8::from(by_bank) << 3
}

fn four_byte_enter(part: &Part) -> u8 {
    if address(part) != AddressBytes::ThreeOrFour {
        return 0;
    }
    let own = first(part, |command| matches!(command.address, AddressPhase::Four(_))).is_some();
    four_byte_registers(part) | u8::from(has(part, 0xB7, Op::Enter4Byte)) | u8::from(own) << 5
}

fn four_byte(part: &Part, erases: &[Option<EraseType>; 4]) -> Option<FourByte> {
    const OPCODES: [u8; 9] = [0x13, 0x0C, 0x3C, 0xBC, 0x6C, 0xEC, 0x12, 0x34, 0x3E];
    let four = |command: &CommandSpec| matches!(command.address, AddressPhase::Four(_));
    let mut table = FourByte { supported: 0, erases: [0xFF; 4] };
    for (bit, opcode) in OPCODES.iter().enumerate() {
        table.supported |= u32::from(part.command(*opcode).is_some_and(four)) << bit;
    }
    for (at, (slot, kind)) in table.erases.iter_mut().zip(erases).enumerate() {
        let Some(kind) = kind else { continue };
        let same = |command: &CommandSpec| {
            let Op::Erase(unit) = command.op else { return false };
            four(command) && part.erase_bytes(unit) == 1u64.checked_shl(kind.log2_bytes.into())
        };
        if let Some(command) = first(part, same) {
            *slot = command.opcode;
            table.supported |= 1 << (9 + at);
        }
    }
    (table.supported != 0).then_some(table)
}

fn map(part: &Part, erases: &[Option<EraseType>; 4]) -> Vec<Region> {
    let mapped = has_mapped(part);
    let mapped_opcode =
        first(part, |command| command.op == Op::Erase(EraseUnit::Mapped)).map(|command| command.opcode);
    let region = |[count, block]: &[u32; 2]| {
        let bytes = u64::from(*count) * u64::from(*block);
        let mut works = 0;
        for (at, kind) in erases.iter().enumerate() {
            let Some(kind) = kind else { continue };
            let size = 1u64.checked_shl(kind.log2_bytes.into()).unwrap_or(0);
            // By the map, a block erases as a whole; other erases need blocks no larger than theirs, and all of theirs here.
            let one = if mapped_opcode == Some(kind.opcode) {
                size == u64::from(*block)
            } else {
                size <= bytes && (mapped || size >= u64::from(*block))
            };
            works |= u8::from(one) << at;
        }
        Region { bytes, erases: works }
    };
    part.geometry.blocks.iter().map(region).collect()
}
