//! SFDP: the tables of the parts against their numbers field by field, against dumps of silicon, and read by another program.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use spi_flash::{FlashParams, SFDPAddressBytes, SFDPStatus1Volatility};
use spiflash_mtd::op::{EraseUnit, Op};
use spiflash_mtd::part::{self, Part};
use spiflash_mtd::sfdp::{self, AddressBytes, ReadMode, SfdpError};

const US: u64 = 1_000;
const MS: u64 = 1_000_000;

fn parts() -> impl Iterator<Item = &'static Part> {
    part::all().iter().filter(|part| part.sfdp.is_some())
}

/// The basic table of a chip, found as the standard says: the pointer and length of the first parameter header.
fn basic(bytes: &[u8]) -> Vec<u32> {
    assert_eq!(&bytes[0..4], b"SFDP");
    assert_eq!((bytes[8], bytes[15]), (0x00, 0xFF));
    let at = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], 0]) as usize;
    (0..usize::from(bytes[11]))
        .map(|n| u32::from_le_bytes(bytes[at + 4 * n..at + 4 * n + 4].try_into().unwrap()))
        .collect()
}

/// Bits `high` to `low` of a dword, the dwords counted from 1 as in the standard.
fn field(dwords: &[u32], dword: usize, high: u32, low: u32) -> u32 {
    let shifted = u64::from(dwords[dword - 1]) >> low;
    (shifted & ((1u64 << (high - low + 1)) - 1)) as u32
}

/// A time of a count and a unit, written for each field as the standard has it: (count + 1) times one of these.
fn time(count: u32, unit: u32, units: &[u64]) -> u64 {
    u64::from(count + 1) * units[unit as usize]
}

#[test]
fn what_is_built_is_read_back_the_same() {
    let mut count = 0;
    for part in parts() {
        let bytes = sfdp::build(part).unwrap();
        assert_eq!(sfdp::parse(&bytes).unwrap(), sfdp::tables(part).unwrap(), "{}", part.name);
        assert!(bytes.len().is_multiple_of(256));
        count += 1;
    }
    assert_eq!(count, 9);
    assert_eq!(sfdp::build(part::find("SST25VF016B").unwrap()), None);
}

#[test]
fn size_addresses_and_reads_are_the_parts() {
    for part in parts() {
        let table = basic(&sfdp::build(part).unwrap());
        let name = &part.name;
        let revision = part.sfdp.as_ref().unwrap().revision_minor;
        assert_eq!(table.len(), if revision == 0 { 9 } else { 16 }, "{name}");
        assert_eq!(u64::from(field(&table, 2, 31, 0)) + 1, part.geometry.size_bytes * 8, "{name}");
        assert_eq!(field(&table, 1, 2, 2), 1, "{name}: 64 bytes or more at a time");
        let more = part.geometry.size_bytes > 1 << 24;
        assert_eq!(field(&table, 1, 18, 17), u32::from(more), "{name}: three or four bytes above 16 MiB");
        // Place of "there is one", dword and low bit of the settings, opcode, clocks of a byte on the address' lines.
        for (place, dword, low, opcode, clocks_per_byte) in
            [(16, 4, 0, 0x3B, 8), (20, 4, 16, 0xBB, 4), (22, 3, 16, 0x6B, 8), (21, 3, 0, 0xEB, 2)]
        {
            let command = part.command(opcode).filter(|command| command.op == Op::Read);
            assert_eq!(field(&table, 1, place, place), u32::from(command.is_some()), "{name} {opcode:02X}h");
            let Some(command) = command else { continue };
            assert_eq!(field(&table, dword, low + 15, low + 8), u32::from(opcode));
            let (mode, wait) = (field(&table, dword, low + 7, low + 5), field(&table, dword, low + 4, low));
            let mode_clocks = if command.mode_byte { clocks_per_byte } else { 0 };
            assert_eq!((mode, wait), (mode_clocks, u32::from(command.dummy_clocks)), "{name} {opcode:02X}h");
        }
        let qpi = part.commands.iter().any(|command| command.op == Op::EnterQpi);
        assert_eq!((field(&table, 5, 4, 4), field(&table, 5, 0, 0)), (u32::from(qpi), 0), "{name}");
    }
}

#[test]
fn erases_and_their_times_are_the_parts_and_never_shorter() {
    const ERASE: [u64; 4] = [MS, 16 * MS, 128 * MS, 1000 * MS];
    for part in parts() {
        let (name, table) = (&part.name, basic(&sfdp::build(part).unwrap()));
        let mut seen = 0;
        for (at, (dword, low)) in [(8, 0), (8, 16), (9, 0), (9, 16)].into_iter().enumerate() {
            let (opcode, log2) =
                (field(&table, dword, low + 15, low + 8) as u8, field(&table, dword, low + 7, low));
            if log2 == 0 {
                continue;
            }
            seen += 1;
            let Some(Op::Erase(unit)) = part.command(opcode).map(|command| command.op) else {
                panic!("{name}: {opcode:02X}h is no erase")
            };
            if unit == EraseUnit::Mapped {
                assert!(part.geometry.blocks.iter().any(|[_, bytes]| *bytes == 1 << log2), "{name}");
            } else {
                assert_eq!(part.erase_bytes(unit), Some(1 << log2), "{name} {opcode:02X}h");
            }
            if table.len() == 9 {
                continue;
            }
            let low = 4 + 7 * at as u32;
            let typical = time(field(&table, 10, low + 4, low), field(&table, 10, low + 6, low + 5), &ERASE);
            let longest = typical * 2 * u64::from(field(&table, 10, 3, 0) + 1);
            let span = part.timing.erase[&unit];
            assert!(
                typical >= span.typical_ns && typical < span.typical_ns * 2,
                "{name} {opcode:02X}h {typical}"
            );
            assert!(longest >= span.max_ns, "{name} {opcode:02X}h {longest}");
        }
        let three = if name == "S25FL256S" {
            2
        } else if name == "SST26VF064B" {
            4
        } else {
            3
        };
        assert_eq!(seen, three, "{name}");
        let erase_4k = field(&table, 1, 1, 0) == 1;
        assert_eq!(erase_4k, name != "S25FL256S", "{name}: its 4 KiB sectors are not everywhere");
        assert_eq!(field(&table, 1, 15, 8), if erase_4k { 0x20 } else { 0xFF });
    }
}

#[test]
fn program_chip_erase_and_suspend_times_are_the_parts_and_never_shorter() {
    const LATENCY: [u64; 4] = [128, US, 8 * US, 64 * US];
    for part in parts().filter(|part| part.sfdp.as_ref().unwrap().revision_minor >= 5) {
        let (name, timing, table) = (&part.name, &part.timing, basic(&sfdp::build(part).unwrap()));
        assert_eq!(1 << field(&table, 11, 7, 4), part.geometry.page_bytes, "{name}");
        let page = time(field(&table, 11, 12, 8), field(&table, 11, 13, 13), &[8 * US, 64 * US]);
        let factor = 2 * u64::from(field(&table, 11, 3, 0) + 1);
        assert!(
            page >= timing.page_program.typical_ns && page < timing.page_program.typical_ns + 64 * US,
            "{name}"
        );
        assert!(page * factor >= timing.page_program.max_ns, "{name}");
        let chip = time(
            field(&table, 11, 28, 24),
            field(&table, 11, 30, 29),
            &[16 * MS, 256 * MS, 4000 * MS, 64_000 * MS],
        );
        assert!(
            chip >= timing.chip_erase.typical_ns && chip <= timing.chip_erase.typical_ns * 3 / 2,
            "{name} {chip}"
        );
        assert!(chip * 2 * u64::from(field(&table, 10, 3, 0) + 1) >= timing.chip_erase.max_ns, "{name}");
        assert_eq!(field(&table, 12, 31, 31), 0, "{name} suspends");
        for (high, low) in [(19, 13), (30, 24)] {
            let latency = time(field(&table, 12, low + 4, low), field(&table, 12, high, low + 5), &LATENCY);
            assert!(latency >= timing.suspend_ns && latency < timing.suspend_ns * 3 / 2, "{name} {latency}");
        }
        for low in [9, 20] {
            let interval = time(field(&table, 12, low + 3, low), 0, &[64 * US]);
            assert!(
                interval >= timing.resume_to_suspend_ns && interval < timing.resume_to_suspend_ns + 64 * US,
                "{name}"
            );
        }
        for (high, op) in [(31, Op::Suspend), (23, Op::Resume), (15, Op::Suspend), (7, Op::Resume)] {
            let opcode = field(&table, 13, high, high - 7) as u8;
            assert_eq!(part.command(opcode).map(|command| command.op), Some(op), "{name} {opcode:02X}h");
        }
        let sleeps = part.command(0xB9).is_some();
        assert_eq!(field(&table, 14, 31, 31), u32::from(!sleeps), "{name}");
        if sleeps {
            assert_eq!((field(&table, 14, 30, 23), field(&table, 14, 22, 15)), (0xB9, 0xAB), "{name}");
            let exit = time(field(&table, 14, 12, 8), field(&table, 14, 14, 13), &LATENCY);
            assert!(exit >= timing.release_ns && exit < timing.release_ns * 3 / 2, "{name}");
        }
        assert_eq!(field(&table, 14, 3, 2), if name == "MT25QL256" { 0b11 } else { 0b01 }, "{name}: polls");
        let quad = match name.as_str() {
            "MX25L25645G" | "IS25LP128" => 0b010,
            "S25FL256S" => 0b101,
            "MT25QL256" | "SST26VF064B" => 0b000,
            _ => 0b100,
        };
        assert_eq!(field(&table, 15, 22, 20), quad, "{name}: quad enable");
        let reset = if name == "S25FL256S" { 0b01000 } else { 0b10000 };
        assert_eq!(field(&table, 16, 12, 8), reset, "{name}: reset");
    }
}

/// Basic tables of silicon, from the dumps in QEMU's hw/block/m25p80_sfdp.c (062cfce8).
const W25Q512JV: [u32; 16] = [
    0xFFFB_20E5,
    0x1FFF_FFFF,
    0x6B08_EB44,
    0xBB42_3B08,
    0xFFFF_FFFE,
    0x0000_FFFF,
    0xEB40_FFFF,
    0x520F_200C,
    0x0000_D810,
    0x00A6_0236,
    0xE214_EA82,
    0x3376_63E9,
    0x757A_757A,
    0x5CD5_A2F7,
    0xFF4D_F719,
    0xA5F9_70E9,
];
const MX66L1G45G: [u32; 16] = [
    0xFFFB_20E5,
    0x3FFF_FFFF,
    0x6B08_EB44,
    0xBB04_3B08,
    0xFFFF_FFFE,
    0xFF00_FFFF,
    0xEB44_FFFF,
    0x520F_200C,
    0xFF00_D810,
    0x00C5_49D6,
    0xE304_DF85,
    0x3867_0344,
    0xB030_B030,
    0x5CD5_BDF7,
    0xFF29_9E4A,
    0x85F9_50F0,
];
const IS25WP256: [u32; 16] = [
    0xFFF9_20E5,
    0x0FFF_FFFF,
    0x6B08_EB44,
    0xBB80_3B08,
    0xFFFF_FFFE,
    0xFF00_FFFF,
    0xEB44_FFFF,
    0x520F_200C,
    0xFF00_D810,
    0x00C9_4A23,
    0xCE11_D882,
    0x4668_CDCC,
    0x757A_757A,
    0x5CD5_AEF7,
    0xFF2C_424A,
    0xA9FA_30F0,
];

/// A chip's bytes with this basic table only.
fn dump(table: &[u32], minor: u8) -> Vec<u8> {
    let mut bytes =
        vec![0x53, 0x46, 0x44, 0x50, minor, 1, 0, 0xFF, 0, minor, 1, table.len() as u8, 0x10, 0, 0, 0xFF];
    bytes.extend(table.iter().flat_map(|dword| dword.to_le_bytes()));
    bytes
}

#[test]
fn dumps_of_silicon_read_as_their_times_are_known() {
    // Typical and longest times of the three erases in ms, tPP in us, chip erase in ms, suspend and resume-to-suspend in us,
    // release in us: decoded from the same dumps by hand.
    type Row = (&'static [u32; 16], [(u64, u64); 3], (u64, u64), u64, (u64, u64), u64);
    let rows: [Row; 3] = [
        (&W25Q512JV, [(64, 896), (128, 1792), (160, 2240)], (704, 4224), 192_000, (20, 512), 3),
        (&MX66L1G45G, [(30, 420), (160, 2240), (288, 4032)], (256, 3072), 256_000, (25, 448), 30),
        (&IS25WP256, [(48, 384), (160, 1280), (304, 2432)], (200, 1200), 60_000, (56, 448), 15),
    ];
    for (table, erases, page, chip, suspend, release) in rows {
        let basic = sfdp::parse(&dump(table, 6)).unwrap().basic;
        let extended = basic.extended.unwrap();
        for (erase, (typical, max)) in basic.erases.iter().zip(erases) {
            let found = erase.unwrap().typical_ns;
            assert_eq!((found, found * u64::from(extended.erase_max_factor)), (typical * MS, max * MS));
        }
        assert_eq!(extended.page_program_ns, page.0 * US);
        assert_eq!(extended.page_program_ns * u64::from(extended.program_max_factor), page.1 * US);
        assert_eq!(extended.chip_erase_ns, chip * MS);
        let found = extended.suspend.unwrap();
        assert_eq!((found.erase_latency_ns, found.erase_interval_ns), (suspend.0 * US, suspend.1 * US));
        assert_eq!(extended.power_down.unwrap().exit_ns, release * US);
    }
}

#[test]
fn the_tables_made_of_w25q512jv_say_what_its_silicon_says() {
    let made = sfdp::tables(part::find("W25Q512JV").unwrap()).unwrap();
    let real = sfdp::parse(&dump(&W25Q512JV, 6)).unwrap().basic;
    let (ours, theirs) = (made.basic.extended.clone().unwrap(), real.extended.clone().unwrap());
    assert_eq!(made.basic.erase_4k, real.erase_4k);
    assert_eq!(made.basic.size_bytes, real.size_bytes);
    assert_eq!((made.basic.address, real.address), (AddressBytes::ThreeOrFour, AddressBytes::ThreeOrFour));
    assert_eq!(made.basic.erases, real.erases);
    for mode in [ReadMode::Dual112, ReadMode::Dual122, ReadMode::Quad114, ReadMode::Quad144] {
        let [ours, theirs] = [&made.basic, &real].map(|basic| basic.reads[mode as usize].unwrap());
        assert_eq!(ours.opcode, theirs.opcode);
        // Winbond calls two of the four clocks of BBh mode bits, here all four are.
        assert_eq!(ours.mode_clocks + ours.wait_clocks, theirs.mode_clocks + theirs.wait_clocks, "{mode:?}");
    }
    assert_eq!(ours.erase_max_factor, theirs.erase_max_factor);
    assert_eq!(
        (ours.page_program_ns, ours.program_max_factor),
        (theirs.page_program_ns, theirs.program_max_factor)
    );
    assert_eq!(ours.log2_page_bytes, theirs.log2_page_bytes);
    assert_eq!(ours.power_down, theirs.power_down);
    let [mine, its] = [&ours, &theirs].map(|one| one.suspend.unwrap());
    assert_eq!((mine.erase_suspend, mine.erase_resume), (its.erase_suspend, its.erase_resume));
    assert_eq!(mine.erase_latency_ns, its.erase_latency_ns);
    assert_eq!((ours.poll_status, ours.poll_flag), (theirs.poll_status, theirs.poll_flag));
    assert_eq!(ours.quad_enable, theirs.quad_enable);
    assert_eq!(ours.status_keeps & theirs.status_keeps, 1 << 3);
    assert_eq!(ours.resets & 1 << 4, theirs.resets & 1 << 4);
    // Its dump has FFF00AFFh and FFDCFF21h in the other table: all reads, the first two programs, erases 1 and 3.
    let four_byte = made.four_byte.unwrap();
    assert_eq!((four_byte.supported, four_byte.erases), (0x0AFF, [0x21, 0xFF, 0xDC, 0xFF]));
}

/// (bytes, erase types) of each region.
fn regions(name: &str) -> Vec<(u64, u8)> {
    let tables = sfdp::tables(part::find(name).unwrap()).unwrap();
    tables.map.iter().map(|region| (region.bytes, region.erases)).collect()
}

#[test]
fn sector_maps_say_which_erases_work_where() {
    // Types: 4 KiB, 64 KiB.
    assert_eq!(regions("S25FL256S"), [(128 << 10, 0b11), (510 << 16, 0b10)]);
    // Types: 4, 8, 32, 64 KiB, of which each region has the first and its own.
    assert_eq!(
        regions("SST26VF064B"),
        [(32 << 10, 0b0011), (32 << 10, 0b0101), (126 << 16, 0b1001), (32 << 10, 0b0101), (32 << 10, 0b0011)]
    );
    assert_eq!(regions("W25Q512JV"), []);
    // The bytes: one map, the last, ID 0 (nothing chooses between maps), regions less one; then bytes / 256 - 1 and the types.
    let bytes = sfdp::build(part::find("S25FL256S").unwrap()).unwrap();
    let header = (8..).step_by(8).find(|at| bytes[*at] == 0x81).unwrap();
    let at = usize::from(bytes[header + 4]);
    assert_eq!(bytes[header + 3], 3);
    assert_eq!(bytes[at..at + 12], [0x03, 0x00, 0x01, 0xFF, 0xF3, 0xFF, 0x01, 0x00, 0xF2, 0xFF, 0xFD, 0x01]);
}

#[test]
fn the_crate_spi_flash_reads_the_same_from_the_tables() {
    for part in parts() {
        let (name, bytes) = (&part.name, sfdp::build(part).unwrap());
        let revision = part.sfdp.as_ref().unwrap().revision_minor;
        let ours = sfdp::parse(&bytes).unwrap().basic;
        let table: Vec<u8> = basic(&bytes).iter().flat_map(|dword| dword.to_le_bytes()).collect();
        let theirs = FlashParams::from_bytes(1, revision, &table).unwrap();
        assert_eq!(theirs.capacity_bytes() as u64, part.geometry.size_bytes, "{name}");
        let four = matches!(theirs.address_bytes, SFDPAddressBytes::ThreeOrFour);
        assert_eq!(four, part.geometry.size_bytes > 1 << 24, "{name}");
        assert_eq!(theirs.legacy_4kb_erase_supported.then_some(theirs.legacy_4kb_erase_inst), ours.erase_4k);
        for (one, other) in ours.erases.iter().zip(&theirs.erase_insts) {
            assert_eq!(one.is_some(), other.is_some(), "{name}");
            let (Some(one), Some(other)) = (one, other) else { continue };
            assert_eq!((one.opcode, 1u64 << one.log2_bytes), (other.opcode, u64::from(other.size)), "{name}");
            let typical = other.time_typ.map_or(0, |time| time.as_nanos() as u64);
            assert_eq!(one.typical_ns, typical, "{name} {:02X}h", one.opcode);
        }
        let Some(extended) = ours.extended else {
            assert!(theirs.timing.is_none() && revision == 0);
            continue;
        };
        let timing = theirs.timing.unwrap();
        let ns = |time: std::time::Duration| time.as_nanos() as u64;
        assert_eq!(theirs.page_size, Some(part.geometry.page_bytes), "{name}");
        assert_eq!(ns(timing.page_prog_time_typ), extended.page_program_ns, "{name}");
        assert_eq!(
            ns(timing.page_prog_time_max),
            extended.page_program_ns * u64::from(extended.program_max_factor)
        );
        assert_eq!(ns(timing.first_byte_prog_time_typ), extended.first_byte_ns, "{name}");
        assert_eq!(ns(timing.succ_byte_prog_time_typ), extended.next_byte_ns, "{name}");
        assert_eq!(ns(timing.chip_erase_time_typ), extended.chip_erase_ns, "{name}");
        assert_eq!(
            ns(timing.chip_erase_time_max),
            extended.chip_erase_ns * u64::from(extended.erase_max_factor)
        );
        assert_eq!(theirs.busy_poll_status, Some(extended.poll_status), "{name}");
        assert_eq!(theirs.busy_poll_flag, Some(extended.poll_flag), "{name}");
        let two = part.command(0x66).is_some();
        assert_eq!((theirs.reset_inst_66_99, theirs.reset_inst_f0), (Some(two), Some(!two)), "{name}");
        if name.starts_with("W25Q") {
            assert!(
                matches!(theirs.status_1_vol, Some(SFDPStatus1Volatility::NonVolatile06Volatile50)),
                "{name}"
            );
        }
    }
}

#[test]
fn what_is_no_table_is_refused_by_name() {
    let good = sfdp::build(part::find("W25Q128JV").unwrap()).unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        sfdp::parse(&bytes).unwrap_err().to_string()
    };
    assert_eq!(with(0, 0xFF), "SFDP byte 0: [FF, 46, 44, 50]: it begins with 53 46 44 50, \"SFDP\"");
    assert_eq!(with(5, 2), "SFDP byte 5: revision 2.5: only 1 is known");
    assert_eq!(with(15, 0xFE), "SFDP byte 8: the first table has ID FE00h: it is FF00h, the basic one");
    assert_eq!(with(11, 8), "SFDP basic table: 0x8: at least nine dwords");
    assert_eq!(with(13, 0x10), "SFDP basic table: bytes 0x1030 to 0x1070: there are only 0x100");
    assert_eq!(with(0x32, 0xF7), "SFDP dword 1, bits 18 to 17: 0x3: 0, 1 or 2");
    assert_eq!(sfdp::parse(&[]), Err(SfdpError::Short { what: "header", at: 0, end: 8, length: 0 }));
}

#[test]
fn a_dump_in_the_part_file_is_what_is_read() {
    let text = part::text("W25Q512JV").unwrap();
    let hex: String = dump(&W25Q512JV, 6).iter().map(|byte| format!("{byte:02X} ")).collect();
    let text = text.replace("revision_minor = 6", &format!("revision_minor = 6\ndump = \"{hex}\""));
    let part = Part::from_toml(&text, "mine.toml").unwrap();
    assert_eq!(sfdp::build(&part).unwrap(), dump(&W25Q512JV, 6));
}

proptest! {
    #[test]
    fn any_basic_table_is_read_and_written_again_the_same(
        mut table in prop::collection::vec(any::<u32>(), 9..=20), minor in prop::sample::select(vec![0u8, 5, 6, 7, 8]),
    ) {
        // Not the fields whose values a reader refuses.
        table[0] &= !(1 << 18);
        table[1] = if table[1] >> 31 == 1 { (1 << 31) | (table[1] % 64) } else { table[1] };
        table[7] &= 0xFF3F_FF3F;
        table[8] &= 0xFF3F_FF3F;
        let read = sfdp::parse(&dump(&table, minor)).unwrap();
        prop_assert_eq!(sfdp::parse(&read.encode()).unwrap(), read);
    }

    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..600), fix in any::<bool>()) {
        if fix && bytes.len() > 16 {
            bytes.splice(0..8, [0x53, 0x46, 0x44, 0x50, 6, 1, 1, 0xFF]);
            bytes[8] = 0;
            bytes[11] &= 0x1F;
            bytes.splice(13..16, [0, 0, 0xFF]);
        }
        if let Ok(read) = sfdp::parse(&bytes) {
            prop_assert_eq!(sfdp::parse(&read.encode()).unwrap(), read);
        }
    }
}
