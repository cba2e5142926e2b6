//! The ranges of the block-protection bits and the locks of blocks, against tables written out and two other rules.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use spiflash_mtd::part;
use spiflash_mtd::protect::{Complement, LockRules, RangeBits, RangeRules};
use std::ops::Range;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

fn bits(bp: u8, tb: bool, sec: bool, cmp: bool) -> RangeBits {
    RangeBits { bp, tb, sec, cmp }
}

fn range(name: &str, bits: RangeBits) -> Range<u64> {
    let part = part::find(name).unwrap();
    part.ranges.as_ref().unwrap().range(part.geometry.size_bytes, bits)
}

/// First and last protected byte, as data sheets write them.
type Rows = &'static [(&'static str, Option<(u64, u64)>)];

/// W25Q128JV, "Status Register Memory Protection" (CMP = 0), as it is remembered: SEC TB BP2 BP1 BP0. GD25Q128C has the same
/// table, with BP4 and BP3 for SEC and TB.
const W25Q128JV: Rows = &[
    ("xx000", None),
    ("00001", Some((0xFC_0000, 0xFF_FFFF))),
    ("00010", Some((0xF8_0000, 0xFF_FFFF))),
    ("00011", Some((0xF0_0000, 0xFF_FFFF))),
    ("00100", Some((0xE0_0000, 0xFF_FFFF))),
    ("00101", Some((0xC0_0000, 0xFF_FFFF))),
    ("00110", Some((0x80_0000, 0xFF_FFFF))),
    ("01001", Some((0x00_0000, 0x03_FFFF))),
    ("01010", Some((0x00_0000, 0x07_FFFF))),
    ("01011", Some((0x00_0000, 0x0F_FFFF))),
    ("01100", Some((0x00_0000, 0x1F_FFFF))),
    ("01101", Some((0x00_0000, 0x3F_FFFF))),
    ("01110", Some((0x00_0000, 0x7F_FFFF))),
    ("xx111", Some((0x00_0000, 0xFF_FFFF))),
    ("10001", Some((0xFF_F000, 0xFF_FFFF))),
    ("10010", Some((0xFF_E000, 0xFF_FFFF))),
    ("10011", Some((0xFF_C000, 0xFF_FFFF))),
    ("1010x", Some((0xFF_8000, 0xFF_FFFF))),
    ("11001", Some((0x00_0000, 0x00_0FFF))),
    ("11010", Some((0x00_0000, 0x00_1FFF))),
    ("11011", Some((0x00_0000, 0x00_3FFF))),
    ("1110x", Some((0x00_0000, 0x00_7FFF))),
];

/// The same with CMP = 1.
const W25Q128JV_CMP: Rows = &[
    ("xx000", Some((0x00_0000, 0xFF_FFFF))),
    ("00001", Some((0x00_0000, 0xFB_FFFF))),
    ("00010", Some((0x00_0000, 0xF7_FFFF))),
    ("00011", Some((0x00_0000, 0xEF_FFFF))),
    ("00100", Some((0x00_0000, 0xDF_FFFF))),
    ("00101", Some((0x00_0000, 0xBF_FFFF))),
    ("00110", Some((0x00_0000, 0x7F_FFFF))),
    ("01001", Some((0x04_0000, 0xFF_FFFF))),
    ("01010", Some((0x08_0000, 0xFF_FFFF))),
    ("01011", Some((0x10_0000, 0xFF_FFFF))),
    ("01100", Some((0x20_0000, 0xFF_FFFF))),
    ("01101", Some((0x40_0000, 0xFF_FFFF))),
    ("01110", Some((0x80_0000, 0xFF_FFFF))),
    ("xx111", None),
    ("10001", Some((0x00_0000, 0xFF_EFFF))),
    ("10010", Some((0x00_0000, 0xFF_DFFF))),
    ("10011", Some((0x00_0000, 0xFF_BFFF))),
    ("1010x", Some((0x00_0000, 0xFF_7FFF))),
    ("11001", Some((0x00_1000, 0xFF_FFFF))),
    ("11010", Some((0x00_2000, 0xFF_FFFF))),
    ("11011", Some((0x00_4000, 0xFF_FFFF))),
    ("1110x", Some((0x00_8000, 0xFF_FFFF))),
];

/// Whether a row's pattern of 0, 1 and x is of these bits.
fn matches(pattern: &str, sec: bool, tb: bool, bp: u8) -> bool {
    let digits = [sec, tb, bp & 4 != 0, bp & 2 != 0, bp & 1 != 0];
    pattern.chars().zip(digits).all(|(c, digit)| c == 'x' || (c == '1') == digit)
}

#[test]
fn every_row_of_the_data_sheets_tables_with_sec_and_cmp_is_what_the_rule_says() {
    let flags = [false, true];
    let mut listed = 0;
    for name in ["W25Q128JV", "GD25Q128"] {
        for (cmp, rows) in [(false, W25Q128JV), (true, W25Q128JV_CMP)] {
            for (sec, tb, bp) in flags
                .iter()
                .flat_map(|sec| flags.iter().flat_map(move |tb| (0..8u8).map(move |bp| (*sec, *tb, bp))))
            {
                let found = range(name, bits(bp, tb, sec, cmp));
                let mut rows = rows.iter().filter(|(pattern, _)| matches(pattern, sec, tb, bp));
                let Some((pattern, expected)) = rows.next() else {
                    // 110 with SEC is in no row; it is taken like 10x.
                    assert!(sec && bp == 6, "{sec} {tb} {bp:03b}");
                    assert_eq!(found, range(name, bits(5, tb, sec, cmp)));
                    continue;
                };
                assert!(rows.next().is_none(), "two rows for {pattern}");
                let expected = expected.map_or(0..0, |(first, last)| first..last + 1);
                assert_eq!(found, expected, "{name} {pattern} CMP {cmp}");
                listed += 1;
            }
        }
    }
    assert_eq!(listed, 2 * 2 * 30);
}

/// The protected bytes by BP value, written out, of the parts without SEC: their tables as remembered.
fn lengths(name: &str) -> Vec<u64> {
    let doubling = |first: u64, count: usize, all: u64, values: usize| {
        let mut lengths = vec![0];
        lengths.extend(std::iter::successors(Some(first), |length| Some(length * 2)).take(count));
        lengths.resize(values, all);
        lengths
    };
    match name {
        "W25Q256JV" | "MX25L25645G" | "MT25QL256" => doubling(64 * KIB, 9, 32 * MIB, 16),
        "W25Q512JV" => doubling(64 * KIB, 10, 64 * MIB, 16),
        "IS25LP128" => doubling(64 * KIB, 8, 16 * MIB, 16),
        // 1/64 to 1/2.
        "S25FL256S" => vec![0, 512 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB, 32 * MIB],
        // 1/32 to 1/2; both 110 and 111 are all.
        "SST25VF016B" => vec![0, 64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB, 2 * MIB],
        "MR25H40" => vec![0, 128 * KIB, 256 * KIB, 512 * KIB],
        "FM25V20A" | "MB85RS2MT" => vec![0, 64 * KIB, 128 * KIB, 256 * KIB],
        // 1/512 to 1/2; 101x and 11xx are all.
        "W25N01GV" => doubling(256 * KIB, 9, 128 * MIB, 16),
        _ => panic!("{name}: no table"),
    }
}

#[test]
fn every_bp_value_of_every_part_protects_what_its_table_says() {
    let mut checked = 0;
    for part in part::all() {
        let (size, Some(rules)) = (part.geometry.size_bytes, &part.ranges) else { continue };
        if rules.sec {
            continue;
        }
        let lengths = lengths(&part.name);
        assert_eq!(lengths.len(), usize::from(rules.most_bp()) + 1, "{}", part.name);
        for bits in rules.combinations() {
            let length = lengths[usize::from(bits.bp)];
            let upper = size - length..size;
            let lower = 0..length;
            let (here, there) =
                if bits.tb { (lower, size - (size - length)..size) } else { (upper, 0..size - length) };
            let mut expected = if bits.cmp { there } else { here };
            if expected.is_empty() {
                expected = 0..0;
            }
            assert_eq!(rules.range(size, bits), expected, "{} {bits:?}", part.name);
            checked += 1;
        }
    }
    assert_eq!(checked, 2 * 64 + 4 * 32 + 16 + 8 + 3 * 4);
}

/// The rule of Linux, drivers/mtd/spi-nor/swp.c: the values between none and all are slots, and the unit grows until
/// they reach half of the array. It knows neither SEC nor CMP.
fn by_slots(size: u64, bp_bits: u8, bp: u8, tb: bool) -> Range<u64> {
    let sectors = size / (64 * KIB);
    let (slots, needed) = ((1u32 << bp_bits) - 2, sectors.ilog2());
    let unit = (64 * KIB) << needed.saturating_sub(slots);
    let length = if bp == 0 { 0 } else { (unit << (bp - 1)).min(size) };
    if length == 0 {
        0..0
    } else if tb {
        0..length
    } else {
        size - length..size
    }
}

#[test]
fn the_slots_of_linux_come_to_the_same_ranges_on_every_nor_part() {
    let mut parts = 0;
    for part in part::all().iter().filter(|part| part.kind == part::Kind::Nor) {
        let (size, Some(rules)) = (part.geometry.size_bytes, &part.ranges) else { continue };
        for bits in rules.combinations().filter(|bits| !bits.sec && !bits.cmp) {
            let expected = by_slots(size, rules.bp_bits, bits.bp, bits.tb);
            assert_eq!(rules.range(size, bits), expected, "{} {bits:?}", part.name);
        }
        parts += 1;
    }
    assert_eq!(parts, 9);
}

/// flashrom's rule in its own terms (writeprotect_ranges.c): a coefficient, a block that is at least 64 KiB, a length.
fn by_coefficient(size: u64, rules: &RangeRules, bits: RangeBits) -> Range<u64> {
    let most = (1u64 << rules.bp_bits) - 1;
    let bp = u64::from(bits.bp);
    let mut length = if bp == 0 {
        0
    } else if bp == most {
        size
    } else if bits.sec {
        (4 * KIB * (1 << (bp - 1))).min(32 * KIB)
    } else {
        let block = (size / 2 / (1 << (most - 2))).max(64 * KIB);
        (block << (bp - 1)).min(size)
    };
    let mut top = !bits.tb;
    if bits.cmp {
        length = size - length;
        top = !top;
    }
    let start = if top && length > 0 { size - length } else { 0 };
    start..start + length
}

#[test]
fn the_coefficients_of_flashrom_come_to_the_same_ranges_on_every_nor_part() {
    for part in part::all().iter().filter(|part| part.kind == part::Kind::Nor) {
        let (size, Some(rules)) = (part.geometry.size_bytes, &part.ranges) else { continue };
        for bits in rules.combinations() {
            assert_eq!(rules.range(size, bits), by_coefficient(size, rules, bits), "{} {bits:?}", part.name);
        }
    }
}

#[test]
fn bits_that_the_part_has_not_change_nothing() {
    let part = part::find("MR25H40").unwrap();
    let rules = part.ranges.as_ref().unwrap();
    for bp in 0..4 {
        let plain = rules.range(part.geometry.size_bytes, bits(bp, false, false, false));
        assert_eq!(rules.range(part.geometry.size_bytes, bits(bp | 0xFC, true, true, true)), plain);
    }
}

#[test]
fn a_complement_of_the_bits_turns_the_bits() {
    let rules = RangeRules {
        bp_bits: 3,
        unit_bytes: 64 * KIB,
        tb: false,
        from_zero: true,
        sec: false,
        sec_unit_bytes: 4 * KIB,
        sec_most_bytes: 32 * KIB,
        cmp: Complement::Bits,
    };
    assert_eq!(rules.range(MIB, bits(0, false, false, true)), 0..MIB);
    assert_eq!(rules.range(MIB, bits(7, false, false, true)), 0..0);
    assert_eq!(rules.range(MIB, bits(6, false, false, true)), 0..64 * KIB);
}

proptest! {
    #[test]
    fn a_range_lies_in_the_array_at_one_of_its_ends(
        bp_bits in 0u8..=8, unit in 0u32..40, size in 8u32..33, flags in any::<[bool; 5]>(), bits_of in any::<(u8, bool, bool, bool)>(),
    ) {
        let cmp = if flags[3] { Complement::Range } else if flags[4] { Complement::Bits } else { Complement::None };
        let rules = RangeRules {
            bp_bits, unit_bytes: 1 << unit, tb: flags[0], from_zero: flags[1], sec: flags[2],
            sec_unit_bytes: 4 * KIB, sec_most_bytes: 32 * KIB, cmp,
        };
        let size = 1u64 << size;
        let range = rules.range(size, bits(bits_of.0, bits_of.1, bits_of.2, bits_of.3));
        prop_assert!(range.start <= range.end && range.end <= size);
        prop_assert!(range.is_empty() && range == (0..0) || range.start == 0 || range.end == size);
    }

    #[test]
    fn the_units_of_locks_cover_the_array_in_order(log2 in 17u32..31) {
        let size = 1u64 << log2;
        for rules in [LockRules::Volatile { selected_by: None }, LockRules::Register] {
            let units = rules.units(size);
            prop_assert_eq!(units.first().unwrap().start, 0);
            prop_assert_eq!(units.last().unwrap().end, size);
            prop_assert!(units.windows(2).all(|pair| pair[0].end == pair[1].start));
            prop_assert!(units.iter().all(|unit| unit.start < unit.end));
        }
    }
}

#[test]
fn winbond_locks_sectors_in_the_first_and_last_block_and_blocks_between() {
    let part = part::find("W25Q128JV").unwrap();
    let locks = part.locks.as_ref().unwrap();
    let units = locks.units(part.geometry.size_bytes);
    assert_eq!(units.len(), 16 + 254 + 16);
    assert_eq!(units[0], 0..0x1000);
    assert_eq!(units[15], 0xF000..0x1_0000);
    assert_eq!(units[16], 0x1_0000..0x2_0000);
    assert_eq!(units[269], 0xFE_0000..0xFF_0000);
    assert_eq!(units[270], 0xFF_0000..0xFF_1000);
    assert_eq!(units[285], 0xFF_F000..0x100_0000);
    assert!(locks.power_up_locked());
    assert_eq!(locks.selected_by(), Some("wps"));
    assert_eq!(
        (locks.register_bytes(part.geometry.size_bytes), locks.register_bits(part.geometry.size_bytes).len()),
        (0, 0)
    );
}

/// SST26VF064B, table "Block-Protection Register", as it is remembered (U-Boot has the same order): read lock, write lock, first and last byte.
const SST26VF064B: &[(Option<u16>, u16, u64, u64)] = &[
    (Some(143), 142, 0x7F_E000, 0x7F_FFFF),
    (Some(141), 140, 0x7F_C000, 0x7F_DFFF),
    (Some(139), 138, 0x7F_A000, 0x7F_BFFF),
    (Some(137), 136, 0x7F_8000, 0x7F_9FFF),
    (Some(135), 134, 0x00_6000, 0x00_7FFF),
    (Some(133), 132, 0x00_4000, 0x00_5FFF),
    (Some(131), 130, 0x00_2000, 0x00_3FFF),
    (Some(129), 128, 0x00_0000, 0x00_1FFF),
    (None, 127, 0x7F_0000, 0x7F_7FFF),
    (None, 126, 0x00_8000, 0x00_FFFF),
    (None, 125, 0x7E_0000, 0x7E_FFFF),
    (None, 124, 0x7D_0000, 0x7D_FFFF),
    (None, 1, 0x02_0000, 0x02_FFFF),
    (None, 0, 0x01_0000, 0x01_FFFF),
];

#[test]
fn the_block_protection_register_of_sst26_has_the_bits_of_its_table() {
    let part = part::find("SST26VF064B").unwrap();
    let (size, locks) = (part.geometry.size_bytes, part.locks.as_ref().unwrap());
    let (units, places) = (locks.units(size), locks.register_bits(size));
    assert_eq!((units.len(), places.len(), locks.register_bytes(size)), (136, 136, 18));
    for (read, write, first, last) in SST26VF064B {
        let at = units.iter().position(|unit| *unit == (*first..*last + 1)).unwrap();
        assert_eq!((places[at].read, places[at].write), (*read, *write), "{first:#x}");
    }
    let mut used: Vec<u16> =
        places.iter().flat_map(|place| place.read.into_iter().chain([place.write])).collect();
    used.sort_unstable();
    assert_eq!(used, (0..144).collect::<Vec<_>>());
    assert_eq!(locks.selected_by(), None);
    // The units are the blocks that D8h erases.
    let blocks: Vec<u64> = part
        .geometry
        .blocks
        .iter()
        .flat_map(|[count, bytes]| vec![u64::from(*bytes); *count as usize])
        .collect();
    assert_eq!(units.iter().map(|unit| unit.end - unit.start).collect::<Vec<_>>(), blocks);
}
