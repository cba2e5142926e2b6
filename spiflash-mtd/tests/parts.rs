//! Part files: those of the crate, and what is said of a wrong one.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use spiflash_mtd::catalogue::CATALOGUE;
use spiflash_mtd::op::{EraseUnit, Op, Reg};
use spiflash_mtd::part::{self, Keep, Kind, Part, PartError};
use spiflash_mtd::reliability::ReliabilityParams;

const NAMES: [&str; 14] = [
    "W25Q128JV",
    "W25Q256JV",
    "W25Q512JV",
    "MX25L25645G",
    "MT25QL256",
    "S25FL256S",
    "GD25Q128",
    "IS25LP128",
    "SST25VF016B",
    "SST26VF064B",
    "W25N01GV",
    "MR25H40",
    "FM25V20A",
    "MB85RS2MT",
];

#[test]
fn the_crate_has_the_fourteen_parts_each_found_by_its_name_in_any_case() {
    assert_eq!(part::all().iter().map(|part| part.name.as_str()).collect::<Vec<_>>(), NAMES);
    for part in part::all() {
        assert_eq!(part::find(&part.name.to_ascii_lowercase()).unwrap(), part);
        assert_eq!(Part::from_toml(part::text(&part.name).unwrap(), "again").unwrap(), *part);
    }
    assert_eq!(part::find("W25Q129"), None);
}

#[test]
fn ids_sizes_and_kinds_are_those_of_flashrom_and_linux() {
    // flashrom b946ca13 flashchips/*.c and include/flashchips.h; Linux nand/spi/winbond.c, spi-nor/everspin.c; entered here
    // a second time, from there.
    let expected: [(&str, &[u8], u64, Kind); 12] = [
        ("W25Q128JV", &[0xEF, 0x40, 0x18], 16 << 20, Kind::Nor),
        ("W25Q256JV", &[0xEF, 0x40, 0x19], 32 << 20, Kind::Nor),
        ("W25Q512JV", &[0xEF, 0x40, 0x20], 64 << 20, Kind::Nor),
        ("MX25L25645G", &[0xC2, 0x20, 0x19], 32 << 20, Kind::Nor),
        ("MT25QL256", &[0x20, 0xBA, 0x19], 32 << 20, Kind::Nor),
        ("S25FL256S", &[0x01, 0x02, 0x19, 0x4D, 0x01], 32 << 20, Kind::Nor),
        ("GD25Q128", &[0xC8, 0x40, 0x18], 16 << 20, Kind::Nor),
        ("IS25LP128", &[0x9D, 0x60, 0x18], 16 << 20, Kind::Nor),
        ("SST25VF016B", &[0xBF, 0x25, 0x41], 2 << 20, Kind::Nor),
        ("SST26VF064B", &[0xBF, 0x26, 0x43], 8 << 20, Kind::Nor),
        ("W25N01GV", &[0xEF, 0xAA, 0x21], 128 << 20, Kind::Nand),
        ("MR25H40", &[], 512 << 10, Kind::Mram),
    ];
    for (name, id, size, kind) in expected {
        let part = part::find(name).unwrap();
        assert!(part.id.jedec.starts_with(id), "{name}");
        assert_eq!((part.geometry.size_bytes, part.kind), (size, kind), "{name}");
    }
}

#[test]
fn erase_opcodes_and_sizes_are_those_of_flashrom() {
    const K: u64 = 1024;
    let plain: &[(u8, u64)] = &[(0x20, 4 * K), (0x52, 32 * K), (0xD8, 64 * K)];
    let four: &[(u8, u64)] = &[(0x21, 4 * K), (0x5C, 32 * K), (0xDC, 64 * K)];
    type Row = (&'static str, Vec<(u8, u64)>, &'static [u8]);
    let rows: [Row; 9] = [
        ("W25Q128JV", plain.to_vec(), &[0x60, 0xC7]),
        ("W25Q256JV", [plain, &[four[0], four[2]]].concat(), &[0x60, 0xC7]),
        ("W25Q512JV", [plain, &[four[0], four[2]]].concat(), &[0x60, 0xC7]),
        ("MX25L25645G", [plain, four].concat(), &[0x60, 0xC7]),
        ("MT25QL256", [plain, four].concat(), &[0x60, 0xC7]),
        ("GD25Q128", plain.to_vec(), &[0x60, 0xC7]),
        ("IS25LP128", [plain, &[(0xD7, 4 * K)]].concat(), &[0x60, 0xC7]),
        ("SST25VF016B", plain.to_vec(), &[0x60, 0xC7]),
        // flashrom leaves out 20h and 21h, which do not work everywhere.
        ("S25FL256S", vec![(0xD8, 64 * K), (0xDC, 64 * K), (0x20, 4 * K), (0x21, 4 * K)], &[0x60, 0xC7]),
    ];
    for (name, mut expected, chip) in rows {
        let part = part::find(name).unwrap();
        let mut found = Vec::new();
        for command in part.commands.iter() {
            if let Op::Erase(unit) = command.op {
                found.push((command.opcode, part.erase_bytes(unit).unwrap()));
            }
        }
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{name}");
        for opcode in chip {
            assert_eq!(part.command(*opcode).unwrap().op, Op::ChipErase, "{name}");
        }
    }
    let sst26 = part::find("SST26VF064B").unwrap();
    assert_eq!(sst26.command(0xD8).unwrap().op, Op::Erase(EraseUnit::Mapped));
    assert_eq!(sst26.geometry.blocks, [[4, 8192], [1, 32768], [126, 65536], [1, 32768], [4, 8192]]);
}

#[test]
fn an_erase_erases_what_its_part_and_the_address_say() {
    let range = |name: &str, unit, address| part::find(name).unwrap().erase_range(unit, address);
    let (small, large) = (EraseUnit::Sector4k, EraseUnit::Block64k);
    assert_eq!(range("W25Q128JV", small, 0x12_3456), Some(0x12_3000..0x12_4000));
    assert_eq!(range("W25Q128JV", EraseUnit::Block32k, 0x12_F456), Some(0x12_8000..0x13_0000));
    assert_eq!(range("W25Q128JV", large, 0x100_0000), None);
    // 4 KiB sectors in the first 128 KiB only; 64 KiB there are sixteen of them.
    assert_eq!(range("S25FL256S", small, 0x1_FFFF), Some(0x1_F000..0x2_0000));
    assert_eq!(range("S25FL256S", small, 0x2_0000), None);
    assert_eq!(range("S25FL256S", large, 0x1_2345), Some(0x1_0000..0x2_0000));
    assert_eq!(range("S25FL256S", large, 0x1FF_FFFF), Some(0x1FF_0000..0x200_0000));
    let mapped = EraseUnit::Mapped;
    assert_eq!(range("SST26VF064B", mapped, 0x7FFF), Some(0x6000..0x8000));
    assert_eq!(range("SST26VF064B", mapped, 0x8000), Some(0x8000..0x1_0000));
    assert_eq!(range("SST26VF064B", mapped, 0x1_2345), Some(0x1_0000..0x2_0000));
    assert_eq!(range("SST26VF064B", mapped, 0x7F_0000), Some(0x7F_0000..0x7F_8000));
    assert_eq!(range("SST26VF064B", mapped, 0x7F_8000), Some(0x7F_8000..0x7F_A000));
    assert_eq!(range("SST26VF064B", small, 0x12_3456), Some(0x12_3000..0x12_4000));
    assert_eq!(range("W25N01GV", EraseUnit::NandBlock, 0x2_0001), Some(0x2_0000..0x4_0000));
}

#[test]
fn where_an_erase_works_is_what_the_sector_map_of_sfdp_says() {
    for name in ["S25FL256S", "SST26VF064B"] {
        let part = part::find(name).unwrap();
        let tables = spiflash_mtd::sfdp::tables(part).unwrap();
        let mut start = 0;
        for region in &tables.map {
            for (at, kind) in tables.basic.erases.iter().enumerate() {
                let Some(kind) = kind else { continue };
                let Op::Erase(unit) = part.command(kind.opcode).unwrap().op else { panic!("{name}") };
                let works = part
                    .erase_range(unit, start)
                    .is_some_and(|range| range.end - range.start == 1 << kind.log2_bytes);
                assert_eq!(works, region.erases >> at & 1 == 1, "{name} {start:#x} {:02X}h", kind.opcode);
            }
            start += region.bytes;
        }
        assert_eq!(start, part.geometry.size_bytes);
    }
}

#[test]
fn dummy_clocks_follow_the_register_and_the_lines_of_the_address() {
    let rule = part::find("MX25L25645G").unwrap().bus.dummy.as_ref().unwrap();
    let clocks: Vec<_> = [0x00, 0x40, 0x80, 0xC7]
        .map(|value| (rule.clocks_at(value, false), rule.clocks_at(value, true)))
        .into();
    assert_eq!(clocks, [(None, None), (Some(6), Some(4)), (Some(8), Some(8)), (Some(10), Some(10))]);
    let rule = part::find("MT25QL256").unwrap().bus.dummy.as_ref().unwrap();
    assert_eq!(
        [0xFB, 0x0B, 0x1B, 0xEB].map(|value| rule.clocks_at(value, true)),
        [None, None, Some(1), Some(14)]
    );
}

#[test]
fn the_bits_of_the_protection_are_where_flashrom_has_them() {
    let place = |name: &str, bit: &str| {
        let part = part::find(name).unwrap();
        let mut found = part.registers.iter().filter_map(|(register, spec)| {
            spec.bits.iter().position(|one| one.name == bit).map(|at| (*register, at))
        });
        found.next()
    };
    for name in ["W25Q128JV", "GD25Q128", "W25Q256JV", "W25Q512JV"] {
        assert_eq!(place(name, "srp0"), Some((Reg::Sr1, 7)), "{name}");
        assert_eq!(place(name, "srp1"), Some((Reg::Sr2, 0)), "{name}");
        assert_eq!(place(name, "bp0"), Some((Reg::Sr1, 2)), "{name}");
        assert_eq!(place(name, "bp2"), Some((Reg::Sr1, 4)), "{name}");
        assert_eq!(place(name, "cmp"), Some((Reg::Sr2, 6)), "{name}");
    }
    for name in ["W25Q128JV", "GD25Q128"] {
        assert_eq!(
            (place(name, "tb"), place(name, "sec")),
            (Some((Reg::Sr1, 5)), Some((Reg::Sr1, 6))),
            "{name}"
        );
    }
    for name in ["W25Q256JV", "W25Q512JV"] {
        assert_eq!(
            (place(name, "bp3"), place(name, "tb")),
            (Some((Reg::Sr1, 5)), Some((Reg::Sr1, 6))),
            "{name}"
        );
    }
    assert_eq!(place("W25Q128JV", "wps"), Some((Reg::Sr3, 2)));
    // Micron, table 3 of the data sheet.
    assert_eq!(
        (place("MT25QL256", "tb"), place("MT25QL256", "bp3")),
        (Some((Reg::Sr1, 5)), Some((Reg::Sr1, 6)))
    );
}

#[test]
fn the_error_parameters_of_every_part_are_there() {
    for part in part::all() {
        let name = part.endurance.errors.as_str();
        assert!(ReliabilityParams::names().any(|known| known == name), "{}: {name}", part.name);
    }
}

#[test]
fn the_longest_erase_times_of_w25q128jv_are_those_of_st_s_driver() {
    let timing = &part::find("W25Q128JV").unwrap().timing;
    let erase = |unit| timing.erase[&unit].max_ns / 1_000_000;
    assert_eq!(erase(EraseUnit::Sector4k), 400);
    assert_eq!(erase(EraseUnit::Block32k), 1600);
    assert_eq!(erase(EraseUnit::Block64k), 2000);
    assert_eq!(timing.chip_erase.max_ns / 1_000_000, 200_000);
}

#[test]
fn a_source_or_the_word_remembered_stands_with_every_number() {
    for name in NAMES {
        let part = part::find(name).unwrap();
        assert!(part.sources.len() >= 2, "{name}");
        // Each table, and each key where its table has none, has a comment.
        let text = part::text(name).unwrap();
        let mut table_says = false;
        for line in text.lines().skip_while(|line| !line.starts_with("[geometry]")) {
            if line.starts_with('[') {
                table_says = line.contains('#');
            }
            let numbers =
                line.contains("_bytes = ") || line.contains("typical = ") || line.contains("_hz = ");
            assert!(
                !numbers || table_says || line.contains('#') || line == "register_bytes = 1024",
                "{name}: {line}"
            );
        }
    }
}

/// W25Q128JV's file with one text replaced by another, and what is said of it.
fn said_of(name: &str, from: &str, to: &str) -> String {
    let text = part::text(name).unwrap();
    assert!(text.contains(from), "{name} has no {from:?}");
    match Part::from_toml(&text.replacen(from, to, 1), "mine.toml") {
        Ok(_) => format!("nothing is said of {to:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_wrong_in_a_file_is_said_with_file_key_value_and_rule() {
    let w = |from: &str, to: &str| said_of("W25Q128JV", from, to);
    for (said, expected) in [
        (
            w("name = \"W25Q128JV\"", "name = \"W25Q 128\""),
            "name = \"W25Q 128\": 1 to 64 printable characters without spaces",
        ),
        (w("maker = \"Winbond\"", "maker = \" \""), "maker = \" \": it must not be empty"),
        (
            w("size_bytes = 0x100_0000", "size_bytes = 3_000_000"),
            "geometry.size_bytes = 3000000: it must be a power of two",
        ),
        (
            w("size_bytes = 0x100_0000", "size_bytes = 0x2_0000_0000"),
            "geometry.size_bytes = 8589934592: from 256 bytes to 4 GiB",
        ),
        (
            w("size_bytes = 0x100_0000", "size_bytes = 0x200_0000"),
            "geometry.size_bytes = 33554432: above 16 MiB it takes a command for 4-byte addresses (enter-4b, read-4b, write-ear)",
        ),
        (w("page_bytes = 256", "page_bytes = 0"), "geometry.page_bytes = 0: it must be a power of two"),
        (
            w("page_bytes = 256", "page_bytes = 8192"),
            "geometry.page_bytes = 8192: no more than sector_bytes, 4096",
        ),
        (
            w("sector_bytes = 4096", "sector_bytes = 0x200_0000"),
            "geometry.sector_bytes = 33554432: no more than size_bytes, 16777216",
        ),
        (
            w("sector_bytes = 4096", "sector_bytes = 4096\nblocks = [[4, 0x1000]]"),
            "geometry.blocks = 16384 bytes together: together size_bytes, 16777216",
        ),
        (
            w("sector_bytes = 4096", "sector_bytes = 4096\nblocks = [[1, 0x1000], [1, 0x2000]]"),
            "geometry.blocks = [1, 8192]: it begins at 4096, which is no multiple of its size",
        ),
        (
            w("jedec = [0xEF, 0x40, 0x18]", "jedec = []"),
            "id.jedec = []: a command reads it: it must not be empty",
        ),
        (
            w("unique_id_bytes = 8", "unique_id_bytes = 0"),
            "id.unique_id_bytes = 0: 0 without a command that reads it, else at least 1",
        ),
        (
            w("max_read_clock_hz = 50_000_000", "max_read_clock_hz = 150_000_000"),
            "bus.max_read_clock_hz = 150000000: from 1 to 133000000 Hz",
        ),
        (
            w("supply_mv = [2700, 3600]", "supply_mv = [3600, 2700]"),
            "bus.supply_mv = [3600, 2700]: the least before the most, from 1 to 10000 mV",
        ),
        (w("burst = \"bits65\"", "burst = \"bits65\"\naddress_bytes = 2"), "bus.address_bytes = 2: 3 or 4"),
        (
            w("suspend = \"20 us\"", "suspend = \"20\""),
            "timing.suspend = \"20\": a time is a decimal number and one of ns, us, ms, s, h or d, like 0.4ms",
        ),
        (
            w("suspend = \"20 us\"", "suspend = \"0 us\""),
            "timing.suspend = 0: above 0: the part has 75h, Erase/Program Suspend",
        ),
        (
            w("typical = \"45 ms\"", "typical = \"450 ms\""),
            "timing.erase.sector4k.typical = \"450 ms\": the typical time is no longer than the longest, \"400 ms\"",
        ),
        (
            w("block32k = {", "block256k = {"),
            "timing.erase.block32k = 0: above 0: the part has 52h, Block Erase (32 KiB)",
        ),
        (w("retention_years = 20", "retention_years = 0"), "endurance.retention_years = 0: from 1 to 10000"),
        (
            w("\"lb3:otp\", \"cmp\"", "\"lb3:once\", \"cmp\""),
            "registers.sr2.bits = \"lb3:once\": after the name comes nothing, or :ro, :vol or :otp",
        ),
        (
            w("\"lb3:otp\", \"cmp\"", "\"LB3:otp\", \"cmp\""),
            "registers.sr2.bits = \"LB3:otp\": a bit's name has a-z, 0-9 and _ only, or is - where it is reserved",
        ),
        (
            w("\"lb3:otp\", \"cmp\"", "\"lb3:otp\", \"tb\""),
            "registers.sr2.bits = \"tb\": registers.sr1 has a bit of this name",
        ),
        (
            w("\"lb3:otp\", \"cmp\"", "\"cmp\""),
            "registers.sr2.bits = 7 bits: a register has 8 bits, the lowest first",
        ),
        (
            w("\"busy:ro\"", "\"busy\""),
            "registers.sr1.bits = \"busy\": \"busy\" is set by the chip only: \"busy\" must be \"busy:ro\"",
        ),
        (
            w("\"busy:ro\"", "\"-\""),
            "registers = no bit \"busy\" or \"ready\": one of them must tell when a program is over",
        ),
        (
            w("factory = 0x00", "factory = 0x02"),
            "registers.sr1.factory = 0x02: bit 1, \"wel\", is 0 while nothing is under way",
        ),
        (w("bp_bits = 3", "bp_bits = 4"), "protection.bp_bits = 4: the registers have 3 bits from bp0 on"),
        (w("tb = true", "tb = false"), "protection.tb = false: the registers have a bit \"tb\""),
        (
            w("\"lb3:otp\", \"cmp\"", "\"lb3:otp\", \"complement\""),
            "protection.cmp = true: no register has a bit \"cmp\"",
        ),
        (
            w("unit_bytes = 0x4_0000", "unit_bytes = 0x3_0000"),
            "protection.unit_bytes = 196608: it must be a power of two",
        ),
        (
            w("selected_by = \"wps\"", "selected_by = \"wsp\""),
            "locks.selected_by = \"wsp\": no register has such a bit",
        ),
        (w("stride = 0x1000", "stride = 0x10"), "security.stride = 16: no less than register_bytes, 256"),
        (
            w("\"lb1\", \"lb2\", \"lb3\"]", "\"lb1\", \"lb2\"]"),
            "security.lock_bits = [\"lb1\", \"lb2\"]: none, one for all, or 3, one for each",
        ),
        (
            w("\"lb1\", \"lb2\", \"lb3\"]", "\"lb1\", \"lb2\", \"lb4\"]"),
            "security.lock_bits = \"lb4\": no register has such a bit",
        ),
        (
            w("revision_minor = 5", "revision_minor = 4"),
            "sfdp.revision_minor = 4: 0, 5 (JESD216A), 6 (B) or 8 (D)",
        ),
        (
            w("revision_minor = 5", "revision_minor = 5\ndump = \"53 46 4\""),
            "sfdp.dump = \"53 46 4\"...: pairs of hex digits, with or without space",
        ),
        (
            w("revision_minor = 5", "revision_minor = 5\ndump = \"53464450\""),
            "sfdp.dump = \"53464450\"...: 16 to 65536 bytes that begin with 53 46 44 50, \"SFDP\"",
        ),
        (
            w("\"suspend\", ", ""),
            "commands = no Suspend: without a command for it (suspend, suspend-b0) the part is of no use",
        ),
        (
            w("\"release\", ", ""),
            "commands = power-down: there must be a way out: release, or bus.wakes_by_select",
        ),
        (
            w("\"read\", ", "\"raed\", "),
            "commands = \"raed\": there is no such command in the catalogue (docs/spi-parts.md lists them)",
        ),
        (w("\"write-enable\", ", ""), "commands = no write enable: there must be one, like \"write-enable\""),
        (
            w("\"read\", ", "\"read\", \"read-flag-status\", "),
            "commands = 70h, Read Flag Status Register: the part must describe its register in [registers.flag]",
        ),
        (
            w("\"read\", ", "\"read\", { name = \"read\", dummy_clocks = 65, opcode = 0x33 }, "),
            "commands.read.dummy_clocks = 65: at most 64",
        ),
        (
            w("\"read\", ", "\"read\", { name = \"read\", max_bytes = 2, opcode = 0x33 }, "),
            "commands.read.max_bytes = 2: only a program has it",
        ),
        (
            w("\"read\", ", "\"read\", { name = \"fast-read\", opcode = 0x03 }, "),
            "commands: opcode 03h is both Read Data and Fast Read: a table has one command of an opcode",
        ),
        (
            w("\"dual-io-read\"", "{ name = \"dual-io-read\", dummy_clocks = 3 }"),
            "commands: opcode BBh: 3 dummy clocks are not whole bytes of 4 clocks",
        ),
        (
            w("\"read\", ", "\"read\", \"nand-swap-blocks\", "),
            "commands = A1h, Bad Block Management (Swap Blocks): only a part of kind \"nand\" has it",
        ),
        (
            said_of("SST26VF064B", "blocks = [[4, 0x2000]", "#"),
            "commands = D8h, Block Erase (8, 32 or 64 KiB): it takes a map of the blocks, geometry.blocks",
        ),
        (
            said_of("MX25L25645G", "mask = 0x03", "mask = 0x07"),
            "bus.dummy.mask = 7: at least one bit, all of them within the register after the shift",
        ),
        (
            said_of("MX25L25645G", "\nclocks = [0, 6, 8, 10]", "\nclocks = [0, 6]"),
            "bus.dummy.clocks = 2 entries: one for each of the 4 values",
        ),
        (
            said_of("MX25L25645G", "register = \"config\"", "register = \"vcr\""),
            "bus.dummy.register = vcr: the part must describe it in [registers]",
        ),
        (
            said_of("W25N01GV", "ecc_step_bytes = 512", "ecc_step_bytes = 500"),
            "nand.ecc_step_bytes = 500: a page of 2048 bytes has whole steps",
        ),
        (
            said_of("W25N01GV", "max_bad_blocks = 20", "max_bad_blocks = 1024"),
            "nand.max_bad_blocks = 1024: fewer than the 1024 blocks",
        ),
        (
            said_of("W25N01GV", "pages_per_block = 64", "pages_per_block = 32"),
            "geometry.sector_bytes = 131072: the bytes of a block, 65536",
        ),
        (
            said_of("MR25H40", "page_bytes = 1", "page_bytes = 256"),
            "geometry.page_bytes = 256: 1, for memory written like RAM has no pages",
        ),
        (
            said_of("MR25H40", "\"read\", ", "\"read\", \"erase-4k\", "),
            "commands = 20h, Sector Erase (4 KiB): memory written like RAM has no erases",
        ),
    ] {
        assert_eq!(said, format!("mine.toml: {expected}"));
    }
}

#[test]
fn a_key_that_is_not_known_or_missing_or_of_a_wrong_type_is_said_with_its_line() {
    let said = said_of("W25Q128JV", "maker = ", "marker = ");
    assert!(said.starts_with("mine.toml: line 7: unknown field `marker`, expected one of "), "{said}");
    let said = said_of("W25Q128JV", "page_bytes = 256", "page_bytes = \"256\"");
    assert!(said.contains("invalid type: string \"256\", expected u32"), "{said}");
    let said = said_of("W25Q128JV", "kind = \"nor\"", "kind = \"flash\"");
    assert!(
        said.contains("unknown variant `flash`, expected one of `nor`, `nand`, `mram`, `fram`"),
        "{said}"
    );
    let said = said_of("W25Q128JV", "[registers.sr3]", "[registers.sr9]");
    assert!(said.contains("unknown variant `sr9`"), "{said}");
    let said = said_of("W25Q128JV", "suspend = \"20 us\"", "suspend = 20");
    assert!(said.contains("invalid type: integer `20`, expected a string"), "{said}");
    let said = said_of("W25Q128JV", "chip_erase = { typical", "chip_erase = { typcial");
    assert!(said.contains("unknown field `typcial`, expected `typical` or `max`"), "{said}");
    let Err(PartError::Form { line: 2, .. }) = Part::from_toml("name = \"A\"\nmaker = \n", "mine.toml")
    else {
        panic!("a value is missing in line 2")
    };
}

#[test]
fn every_command_of_the_catalogue_has_its_own_name_and_makes_a_table_alone() {
    let mut names: Vec<&str> = CATALOGUE.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CATALOGUE.len());
    for (name, spec) in CATALOGUE {
        assert!(spiflash_mtd::CommandTable::new([*spec]).is_ok(), "{name}");
    }
}

#[test]
fn the_page_about_parts_names_every_command_of_the_catalogue_and_every_part() {
    let page = include_str!("../../docs/spi-parts.md");
    for (name, _) in CATALOGUE {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
    for name in NAMES {
        assert!(page.contains(name), "{name}");
    }
    for part in part::all() {
        for (register, spec) in &part.registers {
            for bit in spec.bits.iter().filter(|bit| bit.name != "-" && bit.keep == Keep::ReadOnly) {
                assert!(page.contains(&format!("`{}`", bit.name)), "{} {register:?} {}", part.name, bit.name);
            }
        }
    }
}

/// Lines of all files, and pieces of TOML, for mutations.
fn pieces() -> Vec<String> {
    let mut pieces: Vec<String> =
        NAMES.iter().flat_map(|name| part::text(name).unwrap().lines().map(str::to_owned)).collect();
    for extra in [
        "0",
        "-1",
        "18446744073709551615",
        "1e300",
        "[]",
        "{}",
        "\"\"",
        "blocks = [[4294967295, 4294967295]]",
        "blocks = [[0, 0]]",
        "size_bytes = 1",
        "shift = 255",
        "bp_bits = 255",
        "unit_bytes = 0",
        "stride = 4294967295",
        "base = 4294967295",
        "registers = 255",
        "page_bytes = 2147483648",
        "pages_per_block = 4294967295",
        "clocks = []",
    ] {
        pieces.push(extra.to_owned());
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_file_with_lines_changed_is_a_part_or_refused(
        name in prop::sample::select(NAMES.to_vec()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..4), 1..5),
    ) {
        let pieces = pieces();
        let mut lines: Vec<String> = part::text(name).unwrap().lines().map(str::to_owned).collect();
        for (line, piece, how) in changes {
            let (at, piece) = (line.index(lines.len()), &pieces[piece.index(pieces.len())]);
            match how {
                0 => { lines.remove(at); }
                1 => lines[at].clone_from(piece),
                2 => lines.insert(at, piece.clone()),
                // The value of one key with the name of another.
                _ => if let (Some((key, _)), Some((_, value))) = (lines[at].split_once('='), piece.split_once('=')) {
                    lines[at] = format!("{key}={value}");
                }
            }
        }
        use_all(&lines.join("\n"));
    }

    #[test]
    fn a_file_with_bytes_changed_is_a_part_or_refused(
        name in prop::sample::select(NAMES.to_vec()), changes in prop::collection::vec((any::<prop::sample::Index>(), 0x20u8..0x7F), 1..4),
    ) {
        let mut bytes = part::text(name).unwrap().as_bytes().to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        use_all(&String::from_utf8(bytes).unwrap());
    }
}

/// What the chip would ask of a part.
fn use_all(text: &str) {
    let Ok(part) = Part::from_toml(text, "mine.toml") else { return };
    let size = part.geometry.size_bytes;
    if let Some(rules) = &part.ranges {
        for bits in rules.combinations() {
            assert!(rules.range(size, bits).end <= size);
        }
    }
    if let Some(locks) = &part.locks {
        assert_eq!(locks.units(size).last().map(|unit| unit.end), Some(size));
        locks.register_bytes(size);
    }
    if let Some(bytes) = spiflash_mtd::sfdp::build(&part) {
        assert!(bytes.starts_with(b"SFDP"));
        if part.sfdp.as_ref().is_some_and(|sfdp| sfdp.dump.is_none()) {
            assert_eq!(spiflash_mtd::sfdp::parse(&bytes).ok(), spiflash_mtd::sfdp::tables(&part));
        }
    }
}
