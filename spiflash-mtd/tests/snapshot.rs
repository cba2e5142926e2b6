//! A chip that is put back from its saved state and array does all that follows as the chip that was saved.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use spiflash_mtd::array::Unit;
use spiflash_mtd::chip::ChipState;
use spiflash_mtd::reliability::ReliabilityParams;
use spiflash_mtd::{Chip, FrameReport, Lines, Setup, Transfer, part};
use std::sync::Arc;

/// What happens to a chip, in its smallest pieces.
#[derive(Debug, Clone, Copy)]
enum Step {
    Select,
    Write(Lines, u8),
    Read(Lines),
    Deselect(u8),
    Advance(u64),
    Finish,
    Power(bool),
    WriteProtect(bool),
    CutAfter(u64),
    PollSkip(Option<u32>),
    Clock(u32),
}

/// What was seen of it.
#[derive(Debug, PartialEq)]
enum Seen {
    Nothing,
    Byte(u8),
    Report(Option<FrameReport>),
}

fn take(chip: &mut Chip, step: Step) -> Seen {
    match step {
        Step::Select => chip.select(),
        Step::Write(lines, byte) => chip.transfer(Transfer::Write { lines, bytes: &[byte] }),
        Step::Read(lines) => {
            let mut byte = [0];
            chip.transfer(Transfer::Read { lines, bytes: &mut byte });
            return Seen::Byte(byte[0]);
        }
        Step::Deselect(stray) => return Seen::Report(chip.deselect(stray)),
        Step::Advance(ns) => chip.advance_to(chip.now_ns() + ns),
        Step::Finish => {
            let until = chip.busy_until_ns().unwrap_or(0);
            chip.advance_to(until);
        }
        Step::Power(on) => chip.set_power(on),
        Step::WriteProtect(low) => chip.set_write_protect(low),
        Step::CutAfter(ns) => chip.set_cut_at_ns(Some(chip.now_ns() + ns)),
        Step::PollSkip(polls) => chip.set_poll_skip(polls),
        Step::Clock(hz) => chip.set_clock_hz(hz),
    }
    Seen::Nothing
}

fn address() -> impl Strategy<Value = [u8; 3]> {
    prop_oneof![
        Just([0, 0, 0]),
        Just([0, 0x10, 0xFE]),
        Just([0, 0x20, 0]),
        Just([0xFF, 0xFF, 0xFF]),
        any::<[u8; 3]>()
    ]
}

fn written(bytes: &[u8]) -> Vec<Step> {
    bytes.iter().map(|byte| Step::Write(Lines::Single, *byte)).collect()
}

fn frame(bytes: Vec<Step>) -> Vec<Step> {
    [vec![Step::Select], bytes, vec![Step::Deselect(0)]].concat()
}

fn addressed() -> impl Strategy<Value = Vec<Step>> {
    let opcodes = vec![0x02, 0x02, 0x02, 0x20, 0x20, 0x52, 0xD8, 0x42, 0x44, 0x36, 0x39];
    let data = proptest::collection::vec(any::<u8>(), 0..6);
    (prop::sample::select(opcodes), address(), data, any::<bool>()).prop_map(
        |(opcode, address, data, enable)| {
            let data = if [0x02, 0x42].contains(&opcode) { data } else { vec![] };
            let mut steps = if enable { frame(written(&[0x06])) } else { vec![] };
            steps.extend(frame(written(&[&[opcode][..], &address, &data].concat())));
            steps
        },
    )
}

fn reading() -> impl Strategy<Value = Vec<Step>> {
    (prop::sample::select(vec![0x03, 0x0B, 0x3B, 0x6B, 0x48, 0x5A]), address(), 0..6usize).prop_map(
        |(opcode, address, count)| {
            let lines = match opcode {
                0x3B => Lines::Dual,
                0x6B => Lines::Quad,
                _ => Lines::Single,
            };
            let dummy = if opcode == 0x03 { vec![] } else { written(&[0]) };
            let data = vec![Step::Read(lines); count];
            frame([written(&[opcode]), written(&address), dummy, data].concat())
        },
    )
}

fn controls() -> impl Strategy<Value = Vec<Step>> {
    let known: Vec<Vec<u8>> = [
        // SPI NAND, word programs of SST25, 4-byte addresses, QPI, extended addresses.
        &[0x13, 0, 0, 1][..],
        &[0x02, 0, 1, 0x5A],
        &[0x84, 0, 3, 0xA5],
        &[0x10, 0, 0, 1],
        &[0xD8, 0, 0, 1],
        &[0x1F, 0xA0, 0x00],
        &[0xAD, 0, 0, 0, 0x12, 0x34],
        &[0xAD, 0x56, 0x78],
        &[0xB7],
        &[0xE9],
        &[0x38],
        &[0xC5, 1],
        &[0x06],
        &[0x06],
        &[0x04],
        &[0x50],
        &[0x01, 0x24],
        &[0x01, 0x00, 0x02],
        &[0x31, 0x42],
        &[0x11, 0x64],
        &[0x75],
        &[0x7A],
        &[0x75],
        &[0x66],
        &[0x99],
        &[0xB9],
        &[0xAB],
        &[0x77, 0, 0, 0, 0x40],
        &[0x98],
        &[0x7E],
    ]
    .map(<[u8]>::to_vec)
    .into();
    prop::sample::select(known).prop_map(|bytes| frame(written(&bytes)))
}

fn status() -> impl Strategy<Value = Vec<Step>> {
    (prop::sample::select(vec![0x05u8, 0x35, 0x15, 0x9F, 0x4B]), 0..4usize).prop_map(|(opcode, count)| {
        frame([written(&[opcode]), vec![Step::Read(Lines::Single); count]].concat())
    })
}

fn raw() -> impl Strategy<Value = Vec<Step>> {
    let lines = || prop_oneof![4 => Just(Lines::Single), 1 => Just(Lines::Dual), 1 => Just(Lines::Quad)];
    let byte = prop_oneof![
        (lines(), any::<u8>()).prop_map(|(lines, byte)| Step::Write(lines, byte)),
        lines().prop_map(Step::Read)
    ];
    (proptest::collection::vec(byte, 0..8), 0..8u8)
        .prop_map(|(bytes, stray)| [vec![Step::Select], bytes, vec![Step::Deselect(stray)]].concat())
}

fn beside() -> impl Strategy<Value = Vec<Step>> {
    prop_oneof![
        4 => (0..40u32).prop_map(|n| vec![Step::Advance(1 << n.min(34))]),
        4 => Just(vec![Step::Finish]),
        1 => any::<bool>().prop_map(|on| vec![Step::Power(false), Step::Advance(u64::from(on) * 30_000), Step::Power(on)]),
        1 => any::<bool>().prop_map(|low| vec![Step::WriteProtect(low)]),
        1 => (0..30u32).prop_map(|n| vec![Step::CutAfter(1 << n)]),
        1 => proptest::option::of(0..3u32).prop_map(|polls| vec![Step::PollSkip(polls)]),
        1 => prop::sample::select(vec![0, 1_000_000, 133_000_000]).prop_map(|hz| vec![Step::Clock(hz)]),
    ]
}

fn workload() -> impl Strategy<Value = Vec<Step>> {
    let piece = prop_oneof![4 => addressed(), 3 => reading(), 3 => controls(), 2 => status(), 1 => raw(), 3 => beside()];
    proptest::collection::vec(piece, 1..24).prop_map(|pieces| pieces.concat())
}

fn text(chip: &Chip) -> String {
    serde_json::to_string(&chip.save()).unwrap()
}

/// A new chip with the state and the array of another, both through their JSON.
fn restored(chip: &Chip, setup: &Setup) -> Chip {
    let state: ChipState = serde_json::from_str(&text(chip)).unwrap();
    let mut again = Chip::new(Arc::clone(chip.part()), setup).unwrap();
    for unit in 0..chip.array().unit_count() {
        let content = chip.array().unit(unit).unwrap();
        if *content != Unit::default() {
            let content = serde_json::from_str(&serde_json::to_string(content).unwrap()).unwrap();
            again.array_mut().restore_unit(unit, content);
        }
    }
    again.restore(state).unwrap();
    again
}

fn same(a: &Chip, b: &Chip) {
    assert_eq!(text(a), text(b));
    for unit in 0..a.array().unit_count() {
        let (a, b) = (a.array().unit(unit).unwrap(), b.array().unit(unit).unwrap());
        assert!(std::ptr::eq(a, b) || a == b, "unit {unit}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_restored_chip_goes_on_as_the_one_that_was_saved(
        steps in workload(), at in any::<prop::sample::Index>(), seed in 0..4u64, erring in any::<bool>(), which in any::<prop::sample::Index>()
    ) {
        let parts = part::all();
        let part = Arc::new(parts[which.index(parts.len())].clone());
        let reliability = ReliabilityParams::load(if erring { "nor-65nm" } else { "none" }).unwrap();
        let setup = Setup { seed, reliability, powered: true };
        let mut chip = Chip::new(part, &setup).unwrap();
        let (before, after) = steps.split_at(at.index(steps.len()));
        for step in before {
            take(&mut chip, *step);
        }
        let mut again = restored(&chip, &setup);
        same(&chip, &again);
        for (number, step) in after.iter().enumerate() {
            prop_assert_eq!(take(&mut chip, *step), take(&mut again, *step), "step {} after the snapshot: {:?}", number, step);
        }
        same(&chip, &again);
    }
}

fn chip(setup: &Setup) -> Chip {
    Chip::new(Arc::new(part::find("W25Q128JV").unwrap().clone()), setup).unwrap()
}

#[test]
fn a_chip_remembers_over_a_snapshot_why_it_does_not_listen_to_the_frame_under_way() {
    let setup = Setup::default();
    let mut chip = chip(&setup);
    for step in [
        frame(written(&[0xB9])),
        frame(written(&[0xAB])),
        vec![Step::Select, Step::Write(Lines::Single, 0x06)],
    ]
    .concat()
    {
        take(&mut chip, step);
    }
    // It is awake by now, and was not when the opcode came.
    take(&mut chip, Step::Finish);
    let mut again = restored(&chip, &setup);
    assert_eq!(take(&mut chip, Step::Deselect(0)), take(&mut again, Step::Deselect(0)));
    same(&chip, &again);
}

#[test]
fn a_state_that_was_tampered_with_is_refused_and_the_chip_is_as_it_was() {
    let setup = Setup::default();
    let mut chip = chip(&setup);
    for step in [frame(written(&[0x06])), frame(written(&[0xD8, 0, 0, 0]))].concat() {
        take(&mut chip, step);
    }
    let good: serde_json::Value = serde_json::from_str(&text(&chip)).unwrap();
    let cases: [(&str, &str, &str); 9] = [
        ("/part", "\"W25Q64JV\"", "it is one of W25Q64JV"),
        ("/seed", "7", "its seed is 7, not 1"),
        ("/latch", "[1, 2]", "its page buffer or its security registers have another size"),
        ("/locks", "[true]", "it has another number of locks"),
        ("/job/kind/Erase/count", "4000000000", "what is under way is outside its memory"),
        (
            "/job/kind",
            "{\"Program\":{\"base\":18446744073709551615,\"bytes\":9,\"security\":true}}",
            "what is under way is outside its memory",
        ),
        (
            "/frame/frame/data",
            "{\"start\":5,\"end\":3}",
            "its frame or its modes are none that a chip can be in",
        ),
        ("/modes/burst_bytes", "0", "its frame or its modes are none that a chip can be in"),
        ("/draws", "18446744073709551615", "one of its counters is at its end"),
    ];
    for (pointer, value, message) in cases {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer} in {good}")) =
            serde_json::from_str(value).unwrap();
        let error = chip.restore(serde_json::from_value(bad).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), format!("the state does not fit W25Q128JV: {message}"));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text(&chip)).unwrap(), good, "{pointer}");
    }
}
