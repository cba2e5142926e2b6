//! The drivers on every part that comes with the crate.
// One range is what is compared with.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

use proptest::prelude::*;
use spiflash_mtd::driver::{DriverError, NandDriver, NandRead, NorDriver};
use spiflash_mtd::part::{self, Kind, Part};
use spiflash_mtd::{AddressPhase, BusError, Chip, Reg, Setup, SimBus, SpiBus, TimeMode, Transfer};
use std::sync::Arc;

fn bus_of(part: &Part) -> SimBus {
    SimBus::of(Chip::new(Arc::new(part.clone()), &Setup::default()).unwrap())
}

fn part(name: &str) -> &'static Part {
    part::find(name).unwrap_or_else(|| panic!("no part {name}"))
}

fn nor(part: &Part) -> (SimBus, NorDriver) {
    let mut bus = bus_of(part);
    let mut driver = NorDriver::new(Arc::new(part.clone()), 0).unwrap();
    driver.start(&mut bus).unwrap_or_else(|error| panic!("{}: {error}", part.name));
    if driver.locked_at_power_up() {
        driver.unlock(&mut bus, 0..driver.size_bytes()).unwrap();
    }
    (bus, driver)
}

fn nors() -> impl Iterator<Item = &'static Part> {
    part::all().iter().filter(|part| part.kind != Kind::Nand)
}

/// Bytes that differ from their neighbours'.
fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn read(driver: &mut NorDriver, bus: &mut SimBus, address: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0x5A; bytes];
    driver.read(bus, address, &mut data).unwrap();
    data
}

#[test]
fn every_part_is_identified_erased_programmed_and_read_at_both_ends_and_across_16_mib() {
    for part in nors() {
        let (mut bus, mut driver) = nor(part);
        let size = driver.size_bytes();
        let mut places = vec![0, size - 8192];
        if size > 1 << 24 {
            places.push((1 << 24) - 4096);
        }
        for (n, at) in places.iter().copied().enumerate() {
            let sector = driver.sector_at(at).unwrap();
            let data = pattern(n as u64 + 1, 5001);
            if !part.kind.is_ram() {
                let last = driver.sector_at(at + 5001).unwrap();
                driver.erase(&mut bus, sector.start, last.end - sector.start).unwrap();
            }
            driver.program(&mut bus, at + 3, &data).unwrap_or_else(|error| panic!("{}: {error}", part.name));
            assert_eq!(read(&mut driver, &mut bus, at + 3, 5001), data, "{} at {at:#x}", part.name);
        }
        // Nothing fell on another's place: an upper address that lost its upper bits would.
        for (n, at) in places.iter().copied().enumerate() {
            assert_eq!(
                read(&mut driver, &mut bus, at + 3, 5001),
                pattern(n as u64 + 1, 5001),
                "{}",
                part.name
            );
        }
    }
}

#[test]
fn the_upper_half_is_reached_in_each_way_that_a_part_can_have() {
    let whole = part("W25Q256JV");
    let mut by_mode = whole.clone();
    let four: Vec<u8> = whole
        .commands
        .iter()
        .filter(|spec| matches!(spec.address, AddressPhase::Four(_)))
        .map(|spec| spec.opcode)
        .collect();
    assert!(four.len() >= 3, "{four:x?}");
    for opcode in four {
        by_mode.commands.remove(opcode);
    }
    let mut by_register = by_mode.clone();
    by_register.commands.remove(0xB7);
    let mut none = by_register.clone();
    none.commands.remove(0xC5);
    let frames = |part: &Part| {
        let (mut bus, mut driver) = nor(part);
        let low = pattern(1, 600);
        let across = pattern(2, 9000);
        driver.erase(&mut bus, 0, 4096).unwrap();
        driver.erase(&mut bus, 0x00FF_F000, 0x3000).unwrap();
        driver.program(&mut bus, 5, &low).unwrap();
        driver.program(&mut bus, 0x00FF_F001, &across).unwrap();
        let back = read(&mut driver, &mut bus, 0x00FF_F001, 9000);
        let differs = back.iter().zip(&across).position(|(is, should)| is != should);
        assert_eq!(differs, None, "{:?}", part.commands.iter().map(|spec| spec.opcode).collect::<Vec<_>>());
        assert_eq!(read(&mut driver, &mut bus, 5, 600), low);
        let mut array = vec![0; 9000];
        let chip = bus.chip(0).unwrap();
        chip.array().read(0x00FF_F001, &mut array);
        assert_eq!(array, across, "it is where it belongs");
        let count = |opcode| chip.stats().frames.of(opcode);
        [count(0x12) > 0, count(0xB7) > 0, count(0xC5) > 0]
    };
    assert_eq!(frames(whole), [true, false, false]);
    assert_eq!(frames(&by_mode), [false, true, false]);
    assert_eq!(frames(&by_register), [false, false, true]);
    assert!(matches!(NorDriver::new(Arc::new(none), 0), Err(DriverError::NoCommand { .. })));
}

#[test]
fn an_erase_takes_the_largest_units_that_fit_and_nothing_more() {
    let (mut bus, mut driver) = nor(part("W25Q128JV"));
    for at in (0..0x40000u64).step_by(4096) {
        driver.program(&mut bus, at, &[0]).unwrap();
    }
    let before = bus.chip(0).unwrap().stats().clone();
    // 4 KiB at 7000h, 32 KiB at 8000h, 64 KiB at 1_0000h, 32 KiB at 2_0000h, 4 KiB at 2_8000h.
    driver.erase(&mut bus, 0x7000, 0x22000).unwrap();
    let after = bus.chip(0).unwrap().stats().clone();
    let frames = |opcode| after.frames.of(opcode) - before.frames.of(opcode);
    assert_eq!([frames(0x20), frames(0x52), frames(0xD8), frames(0xC7)], [2, 2, 1, 0]);
    for at in (0..0x40000u64).step_by(4096) {
        let erased = (0x7000..0x29000).contains(&at);
        let expected = if erased { 0xFF } else { 0 };
        assert_eq!(read(&mut driver, &mut bus, at, 1), [expected], "{at:#x}");
    }
}

#[test]
fn the_whole_array_is_erased_by_one_command() {
    let (mut bus, mut driver) = nor(part("W25Q128JV"));
    driver.program(&mut bus, 0x0012_3456, &[1, 2, 3]).unwrap();
    let size = driver.size_bytes();
    driver.erase(&mut bus, 0, size).unwrap();
    assert_eq!(
        bus.chip(0).unwrap().stats().frames.of(0xC7) + bus.chip(0).unwrap().stats().frames.of(0x60),
        1
    );
    assert!(read(&mut driver, &mut bus, 0x0012_3400, 256).iter().all(|byte| *byte == 0xFF));
    assert!(
        bus.now_ns() >= part("W25Q128JV").timing.chip_erase.typical_ns / 4,
        "it took the time of a chip erase"
    );
}

#[test]
fn half_sectors_and_bytes_outside_are_refused_before_a_frame_is_sent() {
    let (mut bus, mut driver) = nor(part("W25Q128JV"));
    let size = driver.size_bytes();
    let erases = |bus: &mut SimBus| bus.chip(0).unwrap().stats().frames.of(0x20);
    let before = erases(&mut bus);
    for (address, bytes) in [(1, 4096), (0, 4095), (4096, 100)] {
        let error = driver.erase(&mut bus, address, bytes).unwrap_err();
        assert!(matches!(error, DriverError::Unaligned { unit: 4096, .. }), "{error}");
    }
    for (address, bytes) in [(size, 4096), (0, size + 4096), (u64::MAX - 4095, 4096)] {
        let error = driver.erase(&mut bus, address, bytes).unwrap_err();
        assert!(matches!(error, DriverError::OutOfBounds { .. }), "{error}");
    }
    assert!(matches!(driver.read(&mut bus, size - 1, &mut [0; 2]), Err(DriverError::OutOfBounds { .. })));
    assert!(matches!(driver.program(&mut bus, size, &[0]), Err(DriverError::OutOfBounds { .. })));
    assert_eq!(erases(&mut bus), before);
}

#[test]
fn another_chip_is_named_with_both_ids() {
    let mut bus = bus_of(part("W25Q128JV"));
    let mut driver = NorDriver::new(Arc::new(part("GD25Q128").clone()), 0).unwrap();
    let error = driver.start(&mut bus).unwrap_err();
    let DriverError::WrongId { expected, found, .. } = &error else { panic!("{error}") };
    assert_eq!((&expected[..], &found[..]), (&[0xC8, 0x40, 0x18][..], &[0xEF, 0x40, 0x18][..]));
}

#[test]
fn a_chip_without_power_is_an_error_that_names_the_operation() {
    let (mut bus, mut driver) = nor(part("W25Q128JV"));
    bus.set_power(0, false).unwrap();
    let error = driver.program(&mut bus, 0x100, &[1]).unwrap_err();
    assert!(error.to_string().starts_with("page program at 0x100: still busy after"), "{error}");
    let error = driver.erase(&mut bus, 0, 4096).unwrap_err();
    assert!(error.to_string().starts_with("erase at 0x0: still busy"), "{error}");
    assert!(matches!(driver.start(&mut bus), Err(DriverError::WrongId { .. })));
    bus.set_power(0, true).unwrap();
    driver.start(&mut bus).unwrap();
    driver.erase(&mut bus, 0, 4096).unwrap();
    driver.program(&mut bus, 0x100, &[1]).unwrap();
    assert_eq!(read(&mut driver, &mut bus, 0x100, 1), [1]);
}

/// A bus on which nothing answers and no time passes.
struct Dead;

impl SpiBus for Dead {
    fn chips(&self) -> u8 {
        1
    }
    fn select(&mut self, _select: u8) -> Result<(), BusError> {
        Ok(())
    }
    fn transfer(&mut self, transfer: Transfer<'_>) -> Result<(), BusError> {
        if let Transfer::Read { bytes, .. } = transfer {
            bytes.fill(0xFF);
        }
        Ok(())
    }
    fn deselect(&mut self) -> Result<(), BusError> {
        Ok(())
    }
    fn delay_ns(&mut self, _delay_ns: u64) {}
    fn now_ns(&mut self) -> u64 {
        7
    }
    fn set_clock_hz(&mut self, hz: u32) -> Result<u32, BusError> {
        Ok(hz)
    }
    fn set_power(&mut self, _select: u8, _on: bool) -> Result<(), BusError> {
        Ok(())
    }
    fn set_write_protect(&mut self, _select: u8, _low: bool) -> Result<(), BusError> {
        Ok(())
    }
}

#[test]
fn a_wait_ends_on_a_bus_whose_time_stands_still() {
    let mut driver = NorDriver::new(Arc::new(part("W25Q128JV").clone()), 0).unwrap();
    let error = driver.program(&mut Dead, 0, &[0]).unwrap_err();
    assert!(matches!(error, DriverError::Timeout { waited_ns: 0, .. }), "{error}");
}

#[test]
fn all_modes_of_time_give_the_same_bytes() {
    for time in [TimeMode::Bits, TimeMode::PollSkip { polls: 2 }, TimeMode::Delays] {
        let (mut bus, mut driver) = nor(part("W25Q256JV"));
        bus.set_time_mode(time);
        let data = pattern(9, 3000);
        driver.erase(&mut bus, 0x0100_0000, 8192).unwrap();
        driver.program(&mut bus, 0x0100_0001, &data).unwrap();
        assert_eq!(read(&mut driver, &mut bus, 0x0100_0001, 3000), data, "{time:?}");
    }
}

#[test]
fn every_range_that_bits_can_say_is_locked_and_unlocked_and_holds() {
    for part in nors().filter(|part| part.ranges.is_some()) {
        let rules = part.ranges.clone().unwrap();
        let (mut bus, mut driver) = nor(part);
        let size = driver.size_bytes();
        if !driver.can_lock() || !driver.locked(&mut bus).unwrap().is_empty() {
            panic!("{}: something is locked as delivered", part.name);
        }
        let mut ranges: Vec<_> = rules.combinations().map(|bits| rules.range(size, bits)).collect();
        ranges.retain(|range| !range.is_empty());
        ranges.sort_by_key(|range| (range.start, range.end));
        ranges.dedup();
        let mut held = 0;
        for range in &ranges {
            match driver.lock(&mut bus, range.clone()) {
                Ok(()) => {}
                // Only with a one-time bit: that is left alone.
                Err(DriverError::NoSuchRange { .. }) => continue,
                Err(error) => panic!("{} {range:x?}: {error}", part.name),
            }
            held += 1;
            assert_eq!(driver.locked(&mut bus).unwrap(), std::slice::from_ref(range), "{}", part.name);
            assert!(driver.is_locked(&mut bus, range.clone()).unwrap());
            assert_eq!(driver.is_locked(&mut bus, 0..size).unwrap(), *range == (0..size));
            let chip = bus.chip(0).unwrap();
            assert_eq!(chip.protected_range(), *range, "{}", part.name);
            driver.unlock(&mut bus, 0..size).unwrap();
            assert_eq!(driver.locked(&mut bus).unwrap(), [], "{}", part.name);
        }
        assert!(held * 2 >= ranges.len(), "{}: {held} of {}", part.name, ranges.len());
    }
}

#[test]
fn a_lock_grows_and_shrinks_only_to_ranges_that_bits_can_say() {
    let (mut bus, mut driver) = nor(part("W25Q128JV"));
    let size = driver.size_bytes();
    driver.lock(&mut bus, 0..0x40000).unwrap();
    driver.lock(&mut bus, 0x40000..0x80000).unwrap();
    assert_eq!(driver.locked(&mut bus).unwrap(), [0..0x80000]);
    driver.unlock(&mut bus, 0x40000..0x80000).unwrap();
    assert_eq!(driver.locked(&mut bus).unwrap(), [0..0x40000]);
    for range in [0x40000..0x50000, size - 0x40000..size] {
        let error = driver.lock(&mut bus, range).unwrap_err();
        assert!(matches!(error, DriverError::NoSuchRange { .. }), "{error}");
        assert_eq!(driver.locked(&mut bus).unwrap(), [0..0x40000], "a refused lock changes nothing");
    }
    assert_eq!(driver.locked_within(&mut bus, &(0x3FFFF..0x40001)).unwrap(), Some(0..0x40000));
    assert_eq!(driver.locked_within(&mut bus, &(0x40000..size)).unwrap(), None);
}

#[test]
fn a_status_register_that_is_locked_by_its_pin_says_so() {
    let (mut bus, mut driver) = nor(part("W25Q128JV"));
    // With QE set, the pin is a data line.
    driver.set_bits(&mut bus, &[("qe", false)]).unwrap();
    driver.set_bits(&mut bus, &[("srp0", true)]).unwrap();
    bus.set_write_protect(0, true).unwrap();
    let error = driver.lock(&mut bus, 0..0x40000).unwrap_err();
    assert!(matches!(error, DriverError::NotTaken { .. }), "{error}");
    bus.set_write_protect(0, false).unwrap();
    driver.lock(&mut bus, 0..0x40000).unwrap();
}

#[test]
fn single_blocks_are_locked_where_the_part_has_such_locks() {
    for (name, select) in [("W25Q128JV", Some("wps")), ("W25Q256JV", Some("wps")), ("SST26VF064B", None)] {
        let (mut bus, mut driver) = nor(part(name));
        if let Some(bit) = select {
            driver.set_bits(&mut bus, &[(bit, true)]).unwrap();
        }
        let size = driver.size_bytes();
        driver.unlock(&mut bus, 0..size).unwrap();
        assert_eq!(driver.locked(&mut bus).unwrap(), [], "{name}");
        let (low, high) = (0..0x10000, size - 0x20000..size - 0x10000);
        driver.lock(&mut bus, low.clone()).unwrap();
        driver.lock(&mut bus, high.clone()).unwrap();
        assert_eq!(driver.locked(&mut bus).unwrap(), [low.clone(), high.clone()], "{name}");
        driver.program(&mut bus, high.start, &[0]).ok();
        driver.program(&mut bus, high.start - 1, &[0]).unwrap();
        assert_eq!(
            read(&mut driver, &mut bus, high.start - 1, 2),
            [0, 0xFF],
            "{name}: one is locked, the other not"
        );
        let error = driver.lock(&mut bus, 0x20000..0x20100).unwrap_err();
        assert!(matches!(error, DriverError::NoSuchRange { .. }), "{name}: {error}");
        driver.unlock(&mut bus, low).unwrap();
        assert_eq!(driver.locked(&mut bus).unwrap(), [high], "{name}");
    }
}

#[test]
fn security_registers_are_programmed_erased_and_locked_for_good() {
    let (mut seen, mut locked) = (0, 0);
    for part in nors().filter(|part| part.security.is_some()) {
        let spec = part.security.clone().unwrap();
        let (mut bus, mut driver) = nor(part);
        let all = driver.security_bytes();
        assert_eq!(all, u64::from(spec.registers) * u64::from(spec.register_bytes));
        let outside = driver.read_security(&mut bus, all, &mut [0]);
        assert!(matches!(outside, Err(DriverError::OutOfBounds { .. })));
        seen += 1;
        let array = read(&mut driver, &mut bus, 0, 4096);
        let data = pattern(5, all as usize);
        driver.program_security(&mut bus, 0, &data).unwrap_or_else(|error| panic!("{}: {error}", part.name));
        let mut back = vec![0; all as usize];
        driver.read_security(&mut bus, 0, &mut back).unwrap();
        assert_eq!(back, data, "{}", part.name);
        assert_eq!(read(&mut driver, &mut bus, 0, 4096), array, "{}: the array is another place", part.name);
        let each = u64::from(spec.register_bytes);
        if spec.erasable {
            driver.erase_security(&mut bus, 0, each).unwrap();
            driver.read_security(&mut bus, 0, &mut back).unwrap();
            assert!(back[..each as usize].iter().all(|byte| *byte == 0xFF), "{}", part.name);
            assert_eq!(back[each as usize..], data[each as usize..], "{}", part.name);
        }
        if !spec.lock_bits.is_empty() {
            match driver.lock_security(&mut bus, 0) {
                Ok(()) => {}
                // The chip says whether it is locked, and has no command of this model's to lock it.
                Err(DriverError::NoCommand { .. }) if part.name == "SST26VF064B" => continue,
                Err(error) => panic!("{}: {error}", part.name),
            }
            locked += 1;
            assert!(driver.is_security_locked(&mut bus, 0).unwrap());
            let error = driver.program_security(&mut bus, 0, &[0]).unwrap_err();
            assert!(matches!(error, DriverError::Protected { .. }), "{}: {error}", part.name);
        }
    }
    assert!(seen >= 5 && locked >= 4, "{seen} parts have security registers, {locked} can lock them");
}

#[test]
fn words_and_odd_ends_are_programmed_on_sst25() {
    for (at, bytes) in [(0u64, 1usize), (1, 1), (0, 2), (1, 2), (1, 7), (0x1FFFFB, 5), (4094, 5)] {
        let (mut bus, mut driver) = nor(part("SST25VF016B"));
        let data = pattern(at + 3, bytes);
        driver.program(&mut bus, at, &data).unwrap();
        assert_eq!(read(&mut driver, &mut bus, at, bytes), data, "{bytes} bytes at {at:#x}");
        assert_eq!(driver.read_register(&mut bus, Reg::Sr1).unwrap() & 0x40, 0, "the mode is over");
    }
}

#[test]
fn memories_like_ram_are_overwritten_in_place() {
    for part in nors().filter(|part| part.kind.is_ram()) {
        let (mut bus, mut driver) = nor(part);
        driver.program(&mut bus, 100, &[0x00; 300]).unwrap();
        driver.program(&mut bus, 100, &[0xA5; 300]).unwrap();
        assert_eq!(read(&mut driver, &mut bus, 100, 300), [0xA5; 300], "{}", part.name);
        let size = driver.size_bytes();
        driver.erase(&mut bus, 0, size).unwrap();
        assert_eq!(read(&mut driver, &mut bus, size - 2, 2), [0xFF; 2], "{}", part.name);
    }
}

#[test]
fn nand_pages_are_programmed_read_and_erased_and_blocks_are_marked() {
    let part = part("W25N01GV");
    let mut bus = bus_of(part);
    let mut driver = NandDriver::new(Arc::new(part.clone()), 0).unwrap();
    assert_eq!(driver.start(&mut bus).unwrap(), [0xEF, 0xAA, 0x21]);
    let bad = driver.bad_blocks(&mut bus).unwrap();
    let of_chip: Vec<u32> = bad.clone();
    assert!(bad.len() as u32 <= part.nand.as_ref().unwrap().max_bad_blocks, "{bad:?}");
    let block = (0..driver.blocks()).find(|block| !of_chip.contains(block)).unwrap();
    let page = block * 64 + 3;
    driver.erase_block(&mut bus, block).unwrap();
    let data = pattern(3, 2048);
    driver.program_page(&mut bus, page, 0, &data).unwrap();
    let mut back = vec![0; 2048];
    assert_ne!(driver.read_page(&mut bus, page, 0, &mut back).unwrap(), NandRead::Uncorrectable);
    assert_eq!(back, data);
    driver.read(&mut bus, u64::from(page) * 2048 + 2000, &mut back[..100]).unwrap();
    assert_eq!(back[..48], data[2000..], "and on into the next page");
    assert_eq!(back[48..100], [0xFF; 52]);
    driver.erase_block(&mut bus, block).unwrap();
    driver.read_page(&mut bus, page, 0, &mut back).unwrap();
    assert!(back.iter().all(|byte| *byte == 0xFF));
    assert!(!driver.is_bad(&mut bus, block).unwrap());
    driver.mark_bad(&mut bus, block).unwrap();
    assert!(driver.is_bad(&mut bus, block).unwrap());
    let outside = driver.read_page(&mut bus, 65536, 0, &mut back);
    assert!(matches!(outside, Err(DriverError::OutOfBounds { .. })));
    assert!(matches!(
        driver.read_page(&mut bus, 0, 2000, &mut [0; 200]),
        Err(DriverError::OutOfBounds { .. })
    ));
}

#[test]
fn a_driver_refuses_the_other_kind() {
    assert!(matches!(
        NorDriver::new(Arc::new(part("W25N01GV").clone()), 0),
        Err(DriverError::WrongKind { .. })
    ));
    assert!(matches!(
        NandDriver::new(Arc::new(part("W25Q128JV").clone()), 0),
        Err(DriverError::WrongKind { .. })
    ));
}

#[derive(Debug, Clone)]
enum Step {
    Program(u64, Vec<u8>),
    Erase(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..0x20000, proptest::collection::vec(any::<u8>(), 1..600))
            .prop_map(|(at, data)| Step::Program(at, data)),
        (0u64..32, 1u64..8).prop_map(|(at, sectors)| Step::Erase(at * 4096, sectors * 4096)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_is_read_is_what_an_array_of_and_and_ones_would_hold(
        steps in proptest::collection::vec(step(), 1..12),
        name in prop_oneof![Just("W25Q128JV"), Just("MX25L25645G"), Just("SST26VF064B"), Just("MT25QL256")],
    ) {
        let (mut bus, mut driver) = nor(part(name));
        let mut model = vec![0xFFu8; 0x30000];
        for step in &steps {
            match step {
                Step::Program(at, data) => {
                    driver.program(&mut bus, *at, data).unwrap();
                    for (to, byte) in model[*at as usize..].iter_mut().zip(data) {
                        *to &= byte;
                    }
                }
                Step::Erase(at, bytes) => {
                    driver.erase(&mut bus, *at, *bytes).unwrap();
                    model[*at as usize..(*at + *bytes) as usize].fill(0xFF);
                }
            }
        }
        prop_assert_eq!(read(&mut driver, &mut bus, 0, 0x30000), model);
    }
}
