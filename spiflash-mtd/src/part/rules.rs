//! What must fit together in a part: the rules that take more than one value, or more than its form.
//!
//! The invariant: what [`check`] lets through, the chip can use without asking again.

use super::check::{Broken, Checked, rule};
use super::{Keep, Kind, Part, Span, key_of};
use crate::command::{AddressPhase, CommandSpec, DataPhase};
use crate::op::{EraseUnit, Op, Reg};
use crate::protect::{Complement, LockRules};
use std::collections::BTreeMap;

/// The first rule that the part breaks.
pub(super) fn check(part: &Part) -> Checked {
    texts(part)?;
    geometry(part)?;
    nand(part)?;
    ident(part)?;
    bus(part)?;
    registers(part)?;
    commands(part)?;
    times(part)?;
    endurance(part)?;
    protection(part)?;
    locks(part)?;
    security(part)?;
    sfdp(part)
}

fn texts(part: &Part) -> Checked {
    let plain =
        |text: &str| !text.is_empty() && text.len() <= 64 && text.chars().all(|c| c.is_ascii_graphic());
    rule(
        plain(&part.name),
        "name",
        format!("{:?}", part.name),
        "1 to 64 printable characters without spaces",
    )?;
    rule(!part.maker.trim().is_empty(), "maker", format!("{:?}", part.maker), "it must not be empty")?;
    rule(
        !part.sources.is_empty(),
        "sources",
        "[]",
        "name at least one source of the numbers, or say they are invented",
    )
}

fn power(key: &str, bytes: u64) -> Checked {
    rule(bytes.is_power_of_two(), key, bytes, "it must be a power of two")
}

fn geometry(part: &Part) -> Checked {
    let geometry = &part.geometry;
    let (size, page, sector) =
        (geometry.size_bytes, u64::from(geometry.page_bytes), u64::from(geometry.sector_bytes));
    power("geometry.size_bytes", size)?;
    power("geometry.page_bytes", page)?;
    power("geometry.sector_bytes", sector)?;
    rule((256..=1 << 32).contains(&size), "geometry.size_bytes", size, "from 256 bytes to 4 GiB")?;
    rule(page <= sector, "geometry.page_bytes", page, format!("no more than sector_bytes, {sector}"))?;
    rule(sector <= size, "geometry.sector_bytes", sector, format!("no more than size_bytes, {size}"))?;
    if part.kind.is_ram() {
        rule(page == 1, "geometry.page_bytes", page, "1, for memory written like RAM has no pages")?;
        rule(
            sector == size,
            "geometry.sector_bytes",
            sector,
            format!("size_bytes, {size}, for there are no erases"),
        )?;
    }
    let mut end = 0u64;
    for [count, bytes] in &geometry.blocks {
        let (key, value) = ("geometry.blocks", format!("[{count}, {bytes}]"));
        rule(bytes.is_power_of_two(), key, &value, "the bytes of a block must be a power of two")?;
        rule(*count > 0, key, &value, "at least one block")?;
        let aligned = end.is_multiple_of(u64::from(*bytes));
        rule(aligned, key, &value, format!("it begins at {end}, which is no multiple of its size"))?;
        rule(u64::from(*bytes) >= sector, key, &value, format!("no smaller than sector_bytes, {sector}"))?;
        end = end.saturating_add(u64::from(*count) * u64::from(*bytes));
    }
    let whole = geometry.blocks.is_empty() || end == size;
    rule(whole, "geometry.blocks", format!("{end} bytes together"), format!("together size_bytes, {size}"))
}

fn has(part: &Part, wanted: impl Fn(Op) -> bool) -> bool {
    part.commands.iter().any(|command| wanted(command.op))
}

fn ident(part: &Part) -> Checked {
    let id = &part.id;
    let jedec = format!("{:02X?}", id.jedec);
    rule(id.jedec.len() <= 32, "id.jedec", &jedec, "at most 32 bytes")?;
    let reads = has(part, |op| op == Op::ReadJedecId);
    rule(!id.jedec.is_empty() || !reads, "id.jedec", &jedec, "a command reads it: it must not be empty")?;
    rule(id.jedec.is_empty() || reads, "id.jedec", &jedec, "no command reads it: it must be empty")?;
    let reads = has(part, |op| matches!(op, Op::ReadUniqueId | Op::ReadSerialNumber));
    let bytes = id.unique_id_bytes;
    rule(bytes <= 32, "id.unique_id_bytes", bytes, "at most 32")?;
    rule(
        (bytes > 0) == reads,
        "id.unique_id_bytes",
        bytes,
        "0 without a command that reads it, else at least 1",
    )
}

fn bus(part: &Part) -> Checked {
    const FASTEST_HZ: u32 = 1_000_000_000;
    let bus = &part.bus;
    let clock = |key: &str, hz: u32, most: u32| {
        rule((1..=most).contains(&hz), key, hz, format!("from 1 to {most} Hz"))
    };
    clock("bus.max_clock_hz", bus.max_clock_hz, FASTEST_HZ)?;
    clock("bus.max_read_clock_hz", bus.max_read_clock_hz, bus.max_clock_hz)?;
    rule(matches!(bus.address_bytes, 3 | 4), "bus.address_bytes", bus.address_bytes, "3 or 4")?;
    let [least, most] = bus.supply_mv;
    let order = least > 0 && least <= most && most <= 10_000;
    rule(
        order,
        "bus.supply_mv",
        format!("[{least}, {most}]"),
        "the least before the most, from 1 to 10000 mV",
    )?;
    let reach = bus.address_bytes == 4
        || part.kind == Kind::Nand
        || part.geometry.size_bytes <= 1 << 24
        || part.commands.iter().any(|command| {
            command.op == Op::Enter4Byte
                || command.op == Op::WriteRegisters(&[Reg::Ear])
                || (command.op == Op::Read && matches!(command.address, AddressPhase::Four(_)))
        });
    let size = part.geometry.size_bytes;
    rule(
        reach,
        "geometry.size_bytes",
        size,
        "above 16 MiB it takes a command for 4-byte addresses (enter-4b, read-4b, write-ear)",
    )?;
    let Some(dummy) = &bus.dummy else { return Ok(()) };
    let register = key_of(&dummy.register);
    rule(
        part.registers.contains_key(&dummy.register),
        "bus.dummy.register",
        &register,
        "the part must describe it in [registers]",
    )?;
    rule(dummy.shift < 8, "bus.dummy.shift", dummy.shift, "from 0 to 7")?;
    let fits = dummy.mask > 0 && dummy.mask <= 0xFF >> dummy.shift;
    rule(
        fits,
        "bus.dummy.mask",
        dummy.mask,
        "at least one bit, all of them within the register after the shift",
    )?;
    let values = usize::from(dummy.mask) + 1;
    let clocks = dummy.clocks.len();
    rule(
        clocks == values,
        "bus.dummy.clocks",
        format!("{clocks} entries"),
        format!("one for each of the {values} values"),
    )?;
    let quad = dummy.quad_clocks.len();
    let fits = quad == 0 || quad == values;
    rule(
        fits,
        "bus.dummy.quad_clocks",
        format!("{quad} entries"),
        format!("none, or one for each of the {values} values"),
    )?;
    let most = dummy.clocks.iter().chain(&dummy.quad_clocks).copied().max().unwrap_or(0);
    rule(most <= 64, "bus.dummy.clocks", most, "at most 64")
}

/// Where each bit is, by name. A name is used once.
fn bits(part: &Part) -> Checked<BTreeMap<&str, (Reg, Keep)>> {
    let mut bits = BTreeMap::new();
    for (register, spec) in &part.registers {
        for bit in spec.bits.iter().filter(|bit| bit.name != "-") {
            if let Some((first, _)) = bits.insert(bit.name.as_str(), (*register, bit.keep)) {
                let (key, rule) =
                    (key_of(register), format!("registers.{} has a bit of this name", key_of(&first)));
                return Err(Broken(format!("registers.{key}.bits"), format!("{:?}", bit.name), rule));
            }
        }
    }
    Ok(bits)
}

fn registers(part: &Part) -> Checked {
    let bits = bits(part)?;
    for (register, spec) in &part.registers {
        for (place, bit) in spec.bits.iter().enumerate() {
            let set = spec.factory >> place & 1 == 1;
            let never = matches!(bit.name.as_str(), "busy" | "wel" | "aai");
            let key = format!("registers.{}.factory", key_of(register));
            let value = format!("{:#04X}", spec.factory);
            rule(
                !(set && never),
                key,
                value,
                format!("bit {place}, {:?}, is 0 while nothing is under way", bit.name),
            )?;
            let keep = bit.keep == Keep::ReadOnly;
            let rules = format!("{:?} is set by the chip only: {0:?} must be \"{0}:ro\"", bit.name);
            rule(
                !never || keep,
                format!("registers.{}.bits", key_of(register)),
                format!("{:?}", bit.name),
                rules,
            )?;
        }
    }
    if part.kind.is_ram() {
        return Ok(());
    }
    let busy = bits.contains_key("busy") || bits.contains_key("ready");
    rule(busy, "registers", "no bit \"busy\" or \"ready\"", "one of them must tell when a program is over")?;
    rule(bits.contains_key("wel"), "registers", "no bit \"wel\"", "a program takes it")
}

fn commands(part: &Part) -> Checked {
    let known = |register: &Reg, command: &CommandSpec| {
        let what = format!("{:02X}h, {}", command.opcode, command.name);
        let rules = format!("the part must describe its register in [registers.{}]", key_of(register));
        rule(part.registers.contains_key(register), "commands", what, rules)
    };
    for command in part.commands.iter() {
        match command.op {
            Op::ReadRegister(register) => known(&register, command)?,
            Op::WriteRegisters(registers) => registers.iter().try_for_each(|one| known(one, command))?,
            Op::NandGetFeature | Op::NandSetFeature => {
                for register in [Reg::NandProtection, Reg::NandConfig, Reg::NandStatus] {
                    known(&register, command)?;
                }
            }
            _ => {}
        }
        let what = || format!("{:02X}h, {}", command.opcode, command.name);
        if let Op::Erase(unit) = command.op {
            rule(!part.kind.is_ram(), "commands", what(), "memory written like RAM has no erases")?;
            let mapped = unit != EraseUnit::Mapped || !part.geometry.blocks.is_empty();
            rule(mapped, "commands", what(), "it takes a map of the blocks, geometry.blocks")?;
            let bytes = part.erase_bytes(unit).unwrap_or(0);
            let fits = bytes <= part.geometry.size_bytes
                && (bytes == 0 || bytes >= part.geometry.sector_bytes.into());
            rule(fits, "commands", what(), "it erases from sector_bytes to size_bytes")?;
        }
        let nand = matches!(
            command.op,
            Op::NandPageRead
                | Op::NandReadBuffer
                | Op::NandLoad { .. }
                | Op::NandProgramExecute
                | Op::NandGetFeature
                | Op::NandSetFeature
                | Op::NandSwapBlocks
                | Op::NandReadLinks
                | Op::NandLastFailure
                | Op::Erase(EraseUnit::NandBlock)
        );
        rule(!nand || part.kind == Kind::Nand, "commands", what(), "only a part of kind \"nand\" has it")?;
    }
    together(part)
}

/// Commands that are useless without another one.
fn together(part: &Part) -> Checked {
    let needs = |op: Op, other: Op, name: &str| {
        let rules = format!("without a command for it ({name}) the part is of no use");
        rule(
            !has(part, |is| is == op) || has(part, |is| is == other),
            "commands",
            format!("no {other:?}"),
            rules,
        )
    };
    needs(Op::Suspend, Op::Resume, "resume, resume-30")?;
    needs(Op::Resume, Op::Suspend, "suspend, suspend-b0")?;
    needs(Op::ResetEnable, Op::Reset, "reset")?;
    let wakes = part.bus.wakes_by_select || has(part, |op| op == Op::Release);
    let sleeps = has(part, |op| op == Op::PowerDown);
    rule(
        wakes || !sleeps,
        "commands",
        "power-down",
        "there must be a way out: release, or bus.wakes_by_select",
    )?;
    needs(Op::EnterQpi, Op::ExitQpi, "exit-qpi, exit-qpi-f5")?;
    let needed: &[(&str, &str, &[Op])] = if part.kind == Kind::Nand {
        &[
            ("nand-page-read", "page read", &[Op::NandPageRead]),
            ("nand-read", "read of the buffer", &[Op::NandReadBuffer]),
            ("nand-load", "load of the buffer", &[Op::NandLoad { keep: false }]),
            ("nand-program-execute", "program", &[Op::NandProgramExecute]),
            ("nand-get-feature", "read of the status", &[Op::NandGetFeature]),
            ("nand-erase", "erase", &[Op::Erase(EraseUnit::NandBlock)]),
        ]
    } else {
        &[
            ("read", "read", &[Op::Read]),
            ("page-program", "program", &[Op::Program, Op::ProgramAai]),
            ("write-enable", "write enable", &[Op::WriteEnable]),
        ]
    };
    for (name, what, any) in needed {
        rule(
            has(part, |op| any.contains(&op)),
            "commands",
            format!("no {what}"),
            format!("there must be one, like {name:?}"),
        )?;
    }
    let erases = part.kind.is_ram() || has(part, |op| matches!(op, Op::Erase(_) | Op::ChipErase));
    rule(erases, "commands", "no erase", "flash must have one, like \"erase-4k\"")?;
    let programs = |command: &&CommandSpec| command.op == Op::Program;
    for command in part.commands.iter().filter(programs) {
        let data = matches!(command.data, DataPhase::In { .. });
        rule(data, "commands", format!("{:02X}h, {}", command.opcode, command.name), "a program takes data")?;
    }
    Ok(())
}

fn times(part: &Part) -> Checked {
    let timing = &part.timing;
    let some =
        |key: &str, ns: u64, why: &str| rule(ns > 0, format!("timing.{key}"), "0", format!("above 0: {why}"));
    let span = |key: &str, span: Span, why: &str| some(key, span.typical_ns, why);
    for command in part.commands.iter() {
        let why = format!("the part has {:02X}h, {}", command.opcode, command.name);
        match command.op {
            Op::Erase(unit) => {
                let key = format!("erase.{}", key_of(&unit));
                span(&key, timing.erase.get(&unit).copied().unwrap_or_default(), &why)?;
            }
            Op::ChipErase => span("chip_erase", timing.chip_erase, &why)?,
            Op::Program | Op::ProgramAai if !part.kind.is_ram() => {
                let either = timing.page_program.typical_ns.max(timing.first_byte.typical_ns);
                some("page_program", either, &why)?;
            }
            Op::NandProgramExecute => span("page_program", timing.page_program, &why)?,
            Op::NandPageRead => {
                span("page_read", timing.page_read, &why)?;
                span("page_read_no_ecc", timing.page_read_no_ecc, &why)?;
            }
            Op::WriteRegisters(registers) if !part.kind.is_ram() => {
                let lasting = |register: &Reg| {
                    let spec = part.registers.get(register);
                    spec.is_some_and(|spec| {
                        spec.bits.iter().any(|bit| matches!(bit.keep, Keep::Nonvolatile | Keep::Otp))
                    })
                };
                if registers.iter().any(lasting) {
                    span("write_status", timing.write_status, &why)?;
                }
            }
            Op::Suspend => some("suspend", timing.suspend_ns, &why)?,
            Op::PowerDown => {
                some("power_down", timing.power_down_ns, &why)?;
                some("release", timing.release_ns, &why)?;
            }
            Op::Reset => some("reset", timing.reset_ns, &why)?,
            _ => {}
        }
    }
    for unit in timing.erase.keys() {
        let used = has(part, |op| op == Op::Erase(*unit));
        rule(
            used,
            format!("timing.erase.{}", key_of(unit)),
            "set",
            "no command of the part erases this unit",
        )?;
    }
    Ok(())
}

fn endurance(part: &Part) -> Checked {
    let endurance = &part.endurance;
    let years = endurance.retention_years;
    rule((1..=10_000).contains(&years), "endurance.retention_years", years, "from 1 to 10000")?;
    let errors = format!("{:?}", endurance.errors);
    rule(
        !endurance.errors.trim().is_empty(),
        "endurance.errors",
        errors,
        "the name of error parameters, or \"none\"",
    )
}

fn protection(part: &Part) -> Checked {
    let bits = bits(part)?;
    let counted = (0..8).take_while(|place| bits.contains_key(format!("bp{place}").as_str())).count();
    let Some(rules) = &part.ranges else {
        return rule(
            counted == 0,
            "protection",
            "missing",
            "the registers have BP bits, whose ranges it describes",
        );
    };
    let (bp, size) = (rules.bp_bits, part.geometry.size_bytes);
    rule((1..=5).contains(&bp), "protection.bp_bits", bp, "from 1 to 5")?;
    let agree = usize::from(bp) == counted;
    rule(agree, "protection.bp_bits", bp, format!("the registers have {counted} bits from bp0 on"))?;
    for (name, claimed) in [("tb", rules.tb), ("sec", rules.sec), ("cmp", rules.cmp != Complement::None)] {
        let found = bits.contains_key(name);
        let key = format!("protection.{name}");
        rule(claimed || !found, &key, claimed, format!("the registers have a bit {name:?}"))?;
        rule(found || !claimed, &key, claimed, format!("no register has a bit {name:?}"))?;
    }
    power("protection.unit_bytes", rules.unit_bytes)?;
    rule(
        rules.unit_bytes <= size,
        "protection.unit_bytes",
        rules.unit_bytes,
        format!("no more than size_bytes, {size}"),
    )?;
    power("protection.sec_unit_bytes", rules.sec_unit_bytes)?;
    power("protection.sec_most_bytes", rules.sec_most_bytes)?;
    let order = rules.sec_unit_bytes <= rules.sec_most_bytes;
    rule(order, "protection.sec_unit_bytes", rules.sec_unit_bytes, "no more than sec_most_bytes")
}

fn locks(part: &Part) -> Checked {
    let Some(rules) = &part.locks else {
        let uses = has(part, |op| {
            matches!(
                op,
                Op::LockBlock | Op::UnlockBlock | Op::ReadBlockLock | Op::LockAll | Op::WriteBlockProtection
            )
        });
        return rule(!uses, "locks", "missing", "there are commands for locks, whose blocks it describes");
    };
    let size = part.geometry.size_bytes;
    let register = matches!(rules, LockRules::Register);
    let smallest: u64 = if register { 8192 } else { 4096 };
    let fits = size >= 1 << 17 && size.is_multiple_of(1 << 16) && size <= 1 << 30;
    rule(fits, "geometry.size_bytes", size, "a part with locks has from 128 KiB to 1 GiB")?;
    let sector = u64::from(part.geometry.sector_bytes);
    rule(
        sector <= smallest,
        "geometry.sector_bytes",
        sector,
        format!("the smallest block with a lock has {smallest} bytes"),
    )?;
    let wanted = if register { Op::WriteBlockProtection } else { Op::UnlockBlock };
    let usable = has(part, |op| op == wanted || op == Op::UnlockAll);
    rule(
        usable,
        "locks",
        format!("no {wanted:?}"),
        "all blocks are locked after power-up: a command must unlock them",
    )?;
    if let Some(name) = rules.selected_by() {
        let found = bits(part)?.contains_key(name);
        rule(found, "locks.selected_by", format!("{name:?}"), "no register has such a bit")?;
    }
    Ok(())
}

fn security(part: &Part) -> Checked {
    let reads = has(part, |op| matches!(op, Op::ReadSecurity | Op::EnterOtp));
    let Some(security) = &part.security else {
        return rule(!reads, "security", "missing", "there are commands for it, whose bytes it describes");
    };
    rule(reads, "security", "no command", "there must be one to read it, like \"read-security-register\"")?;
    let count = security.registers;
    rule((1..=16).contains(&count), "security.registers", count, "from 1 to 16")?;
    let (bytes, stride) = (security.register_bytes, security.stride);
    rule((1..=1 << 16).contains(&bytes), "security.register_bytes", bytes, "from 1 to 65536")?;
    rule(stride >= bytes, "security.stride", stride, format!("no less than register_bytes, {bytes}"))?;
    let last = u64::from(security.base) + u64::from(stride) * u64::from(count);
    rule(last <= 1 << 24, "security.base", security.base, "the last register ends below 16 MiB")?;
    let (bits, names) = (bits(part)?, &security.lock_bits);
    let right = names.len() == 1 || names.len() == usize::from(count) || names.is_empty();
    rule(
        right,
        "security.lock_bits",
        format!("{names:?}"),
        format!("none, one for all, or {count}, one for each"),
    )?;
    for name in names {
        rule(
            bits.contains_key(name.as_str()),
            "security.lock_bits",
            format!("{name:?}"),
            "no register has such a bit",
        )?;
    }
    Ok(())
}

fn sfdp(part: &Part) -> Checked {
    let reads = has(part, |op| op == Op::ReadSfdp);
    let Some(sfdp) = &part.sfdp else {
        return rule(!reads, "sfdp", "missing", "the part has read-sfdp: say which revision its tables have");
    };
    rule(reads, "sfdp", "no command", "there must be one to read it: \"read-sfdp\"")?;
    rule(part.kind == Kind::Nor, "sfdp", "set", "only a part of kind \"nor\" has it")?;
    let minor = sfdp.revision_minor;
    rule(matches!(minor, 0 | 5 | 6 | 8), "sfdp.revision_minor", minor, "0, 5 (JESD216A), 6 (B) or 8 (D)")?;
    let Some(dump) = &sfdp.dump else { return Ok(()) };
    let text: String = dump.chars().take(16).collect();
    let bytes = sfdp.dump_bytes().ok_or_else(|| {
        Broken(
            "sfdp.dump".to_owned(),
            format!("{text:?}..."),
            "pairs of hex digits, with or without space".to_owned(),
        )
    })?;
    let signed = bytes.starts_with(b"SFDP") && bytes.len() >= 16 && bytes.len() <= 1 << 16;
    rule(
        signed,
        "sfdp.dump",
        format!("{text:?}..."),
        "16 to 65536 bytes that begin with 53 46 44 50, \"SFDP\"",
    )
}

fn nand(part: &Part) -> Checked {
    let Some(nand) = &part.nand else {
        return rule(part.kind != Kind::Nand, "nand", "missing", "a part of kind \"nand\" has it");
    };
    rule(part.kind == Kind::Nand, "nand", "set", "only a part of kind \"nand\" has it")?;
    let (page, size) = (part.geometry.page_bytes, part.geometry.size_bytes);
    rule(
        nand.spare_bytes <= page,
        "nand.spare_bytes",
        nand.spare_bytes,
        format!("no more than a page, {page}"),
    )?;
    let pages = u64::from(nand.pages_per_block);
    power("nand.pages_per_block", pages)?;
    let block = pages * u64::from(page);
    rule(
        block <= size,
        "nand.pages_per_block",
        pages,
        format!("a block of {block} bytes is larger than the array"),
    )?;
    let sector = u64::from(part.geometry.sector_bytes);
    rule(sector == block, "geometry.sector_bytes", sector, format!("the bytes of a block, {block}"))?;
    let step = nand.ecc_step_bytes;
    let steps = step > 0 && page.is_multiple_of(step);
    rule(steps, "nand.ecc_step_bytes", step, format!("a page of {page} bytes has whole steps"))?;
    rule(
        nand.ecc_bits <= step,
        "nand.ecc_bits",
        nand.ecc_bits,
        format!("at most {step}, the bytes of a step"),
    )?;
    let blocks = size / block;
    let bad = u64::from(nand.max_bad_blocks);
    rule(bad < blocks, "nand.max_bad_blocks", bad, format!("fewer than the {blocks} blocks"))?;
    rule(
        u64::from(nand.links) <= blocks,
        "nand.links",
        nand.links,
        format!("no more than the {blocks} blocks"),
    )?;
    let programs = nand.programs_per_page;
    rule((1..=255).contains(&programs), "nand.programs_per_page", programs, "from 1 to 255")
}
