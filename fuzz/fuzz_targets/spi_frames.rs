//! Raw frames to a SPI flash chip, as a host gone mad would send them.
//!
//! Input: two bytes that choose the part with its error model, and the clock, then steps of a byte each with its
//! arguments: bytes on any lines in either direction, rises of CS# within a byte, time, power, cuts, the WP# pin, poll skipping,
//! snapshots. A frame may begin where another has not ended. Nothing may panic; time never goes back; the status bits agree with
//! the state; a chip put back from its snapshot is the chip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spiflash_mtd::reliability::ReliabilityParams;
use spiflash_mtd::states::State;
use spiflash_mtd::{Chip, Effect, Lines, Reg, Setup, Transfer, part};
use std::sync::{Arc, LazyLock};

/// Opcodes that are worth a byte of their own, so that whole commands are found soon.
const OPCODES: [u8; 48] = [
    0x06, 0x02, 0x20, 0x05, 0x03, 0x01, 0xD8, 0x52, 0xC7, 0x75, 0x7A, 0x66, 0x99, 0xB9, 0xAB, 0x0B, 0x3B,
    0x6B, 0xBB, 0xEB, 0x32, 0x50, 0x31, 0x11, 0x35, 0x15, 0x9F, 0x90, 0x4B, 0x5A, 0x77, 0x42, 0x44, 0x48,
    0x36, 0x39, 0x3D, 0x7E, 0x98, 0x38, 0xFF, 0xB7, 0xE9, 0xAD, 0x13, 0x10, 0x1F, 0x84,
];

/// A fresh chip of each part, with and without errors, with and without power: to make one takes much longer than a frame.
static FRESH: LazyLock<Vec<Chip>> = LazyLock::new(|| {
    let mut chips = Vec::new();
    for part in part::all() {
        let part = Arc::new(part.clone());
        for errors in ["none", "nor-65nm"] {
            for powered in [true, false] {
                let reliability = ReliabilityParams::load(errors).unwrap();
                let setup = Setup { reliability, powered, ..Setup::default() };
                chips.push(Chip::new(Arc::clone(&part), &setup).unwrap());
            }
        }
    }
    chips
});

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes(&mut self, count: usize) -> &[u8] {
        let (now, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        now
    }
}

/// Up to 268 seconds, fine for small ones.
fn time_ns(byte: u8) -> u64 {
    u64::from(byte & 15) << (byte >> 4 << 1)
}

fn lines(byte: u8) -> Lines {
    // Mostly single, as most frames are.
    match byte & 7 {
        6 => Lines::Dual,
        7 => Lines::Quad,
        _ => Lines::Single,
    }
}

fn check(chip: &Chip) {
    let state = chip.state();
    if let Some(until) = chip.busy_until_ns() {
        assert!(
            until >= chip.now_ns(),
            "{state:?} should have ended at {until}, and it is {}",
            chip.now_ns()
        );
    }
    if chip.part().name == "W25Q128JV" {
        let (sr1, sr2) = (chip.register(Reg::Sr1), chip.register(Reg::Sr2));
        assert_eq!(sr1 & 1 == 1, state.is_busy());
        assert_eq!(
            sr2 & 0x80 != 0,
            matches!(state, State::EraseSuspended | State::ProgramSuspended | State::ProgramInSuspend)
        );
        assert!(state != State::Off || sr1 & 2 == 0, "WEL without power");
    }
    let protected = chip.protected_range();
    assert!(protected.start <= protected.end && protected.end <= chip.part().geometry.size_bytes);
}

fn restored(chip: &Chip, fresh: &Chip) -> Chip {
    let text = serde_json::to_string(&chip.save()).unwrap();
    let mut again = fresh.clone();
    *again.array_mut() = chip.array().clone();
    again.restore(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(serde_json::to_string(&again.save()).unwrap(), text);
    again
}

fn run(data: &[u8]) -> Option<()> {
    let mut input = Input(data);
    let (choice, clock) = (input.byte()?, input.byte()?);
    let fresh = &FRESH[usize::from(choice) % FRESH.len()];
    let mut chip = fresh.clone();
    chip.set_clock_hz([0, 1, 1_000_000, 50_000_000, 133_000_000][usize::from(clock) % 5]);
    while let Some(step) = input.byte() {
        let before = chip.now_ns();
        let how = step >> 4;
        match step & 15 {
            0 => chip.select(),
            1 | 2 => {
                let opcode = OPCODES[usize::from(input.byte()?) % OPCODES.len()];
                chip.select();
                chip.transfer(Transfer::Write { lines: lines(how), bytes: &[opcode] });
            }
            3 | 4 => {
                chip.transfer(Transfer::Write { lines: lines(how), bytes: input.bytes(usize::from(how)) })
            }
            5 => {
                let fill = input.byte()?;
                let bytes = vec![fill; usize::from(input.byte()?) + 8];
                chip.transfer(Transfer::Write { lines: lines(how), bytes: &bytes });
            }
            6 => {
                let mut bytes = vec![0; usize::from(input.byte()?) * (1 + usize::from(how))];
                chip.transfer(Transfer::Read { lines: lines(how), bytes: &mut bytes });
            }
            7 => {
                let mut bytes = input.bytes(usize::from(how)).to_vec();
                chip.transfer(Transfer::Both { bytes: &mut bytes });
            }
            8 | 9 => {
                let stray = if how > 12 { how & 7 } else { 0 };
                if let Some(report) = chip.deselect(stray) {
                    match report.effect {
                        Effect::Begun { until_ns } => assert!(until_ns >= report.at_ns),
                        Effect::Done | Effect::Ignored(_) => {}
                    }
                }
            }
            10 => {
                let ns = time_ns(input.byte()?);
                chip.advance_to(chip.now_ns().saturating_add(ns));
            }
            11 => {
                let until = chip.busy_until_ns().unwrap_or(chip.now_ns());
                chip.advance_to(until);
            }
            12 => chip.set_power(how & 1 == 1),
            13 => {
                let ns = time_ns(input.byte()?);
                chip.set_cut_at_ns((how != 0).then_some(chip.now_ns().saturating_add(ns)));
            }
            14 => chip = restored(&chip, fresh),
            _ => match how & 3 {
                0 => chip.set_write_protect(how & 4 != 0),
                1 => chip.set_poll_skip((how & 4 != 0).then_some(u32::from(how >> 3))),
                2 => chip.set_clock_hz(u32::from(input.byte()?) << 20),
                _ => {
                    let mut twin = chip.clone();
                    twin.set_power(false);
                    check(&twin);
                }
            },
        }
        // An interrupted erase of a large array takes seconds, and finds what that of a small one does.
        if chip.state() == State::ChipErase && chip.part().geometry.size_bytes > 4 << 20 {
            chip.set_cut_at_ns(None);
            chip.advance_to(chip.busy_until_ns().unwrap_or(0));
        }
        assert!(chip.now_ns() >= before);
        check(&chip);
    }
    Some(())
}

fuzz_target!(|data: &[u8]| {
    run(data);
});
