//! Random frames to the model and to a second W25Q128JV (`second_reference`), written apart from it: every byte that either
//! sends must be the same after each frame, so must the status registers, and now and then the array and the security registers.
//! In half of the runs bytes take time. A difference is told with its seed and the last 20 steps; `run(seed, ...)` brings it back.
//!
//! An operation that was cut off (power, reset) leaves random content in the model. The reference then takes the page, sector or
//! register from the model, after a check: a program only clears bits that it was to clear, a bit of a status register is the
//! old or the new one, and nothing else changed.
//!
//! # Differences that are explained
//!
//! What the data sheet says in one way and the model does in another is a field of `Rules`, `false` where the model goes its own
//! way (`Rules::MODEL`; where it was made to follow the sheet, `true`). `every_explained_difference_shows` holds each to be real: when the model changes, turn the field.
//!
//! | field | the sheet | the model |
//! |---|---|---|
//! | `locks_keep_wel` | the list of what clears WEL (8.2.3) has no block locks | 36h, 39h, 7Eh, 98h clear it |
//! | `sus_at_once` | SUS is set "immediately" after 75h, BUSY cleared within tSUS | both change when tSUS is over |
//! | `security_goes_on` | 75h is for sector and block erases and page programs | it suspends 42h and 44h too |
//! | `volatile_lock_bits` | LB1 to LB3 are "Volatile/Non-Volatile OTP Writable" | 50h leaves them alone |
//! | `lock_ends_with_power` | revision F: SRL = 1 lasts until power-down | SRP1 = SRP0 = 1 lasts for good (older sheets) |
//! | `empty_frame_is_none` | another *command* disarms 66h | so does a fall of CS# without a clock |
//! | `sleeps_in_suspend` | nothing said of B9h in a suspend | ignored |
//!
//! Where the sheet is silent, the reference does as the model: 50h and 06h both given make a volatile write, the end of any
//! operation undoes 50h, and a volatile write clears WEL too; an operation stands still during tSUS, and one suspended within
//! 20 us of its begin or resume made no progress; B9h counts at once, without tDP; no erase in any suspend, no program in a
//! suspended program; FFh after the last byte of 9Fh and 4Bh; a byte on other lines than the command's ends what is heard.
//!
//! Not compared: 92h and 94h, dummy clocks that end within a byte, reads on more than one line while the chip expects input.
#![allow(clippy::unwrap_used)]

mod second_reference;

use second_reference::frames::{Generator, Piece, Step, show};
use second_reference::{Reference, Rules, Work};
use spiflash_mtd::{Chip, Lines, Reg, Setup, Transfer, part};
use std::collections::VecDeque;
use std::sync::Arc;

const RUNS: u64 = 50;
const FRAMES_A_RUN: u32 = 4_200;
/// Where the addresses are, and what is compared often; the whole array is compared at the end of a run.
const REGIONS: [(usize, usize); 3] = [(0, 0x2_0000), (0x7F_0000, 0x81_0000), (0xFB_0000, 0x100_0000)];

fn lines_of(count: u8) -> Lines {
    match count {
        1 => Lines::Single,
        2 => Lines::Dual,
        _ => Lines::Quad,
    }
}

/// Both chips, and what was done to them.
struct Pair {
    model: Chip,
    reference: Reference,
    now: u64,
    /// Nanoseconds that a clock takes.
    clock_ns: u64,
    seed: u64,
    frames: u32,
    history: VecDeque<String>,
    difference: Option<String>,
}

impl Pair {
    fn new(seed: u64, rules: Rules) -> Pair {
        let part = Arc::new(part::find("W25Q128JV").unwrap().clone());
        let mut model = Chip::new(part, &Setup { seed, ..Setup::default() }).unwrap();
        // In half of the runs bytes take time too.
        let clock_ns = if seed.is_multiple_of(2) { 20 } else { 0 };
        model.set_clock_hz(0);
        // The SFDP tables and the unique ID are data, not rules: they are the model's.
        let mut sfdp = vec![0; 0x400];
        model.select();
        model.transfer(Transfer::write(&[0x5A, 0, 0, 0, 0]));
        model.transfer(Transfer::read(&mut sfdp));
        model.deselect(0);
        let reference = Reference::new(sfdp, model.unique_id(), rules);
        model.set_clock_hz(if clock_ns > 0 { 50_000_000 } else { 0 });
        Pair {
            model,
            reference,
            now: 0,
            clock_ns,
            seed,
            frames: 0,
            history: VecDeque::new(),
            difference: None,
        }
    }

    /// Keeps the first difference.
    fn differ(&mut self, what: &str) {
        if self.difference.is_none() {
            let steps: Vec<&str> = self.history.iter().map(String::as_str).collect();
            self.difference = Some(format!(
                "seed {}, frame {}: {what}\nthe reference is {}\nthe last steps:\n{}",
                self.seed,
                self.frames,
                self.reference.describe(),
                steps.join("\n")
            ));
        }
    }

    fn remember(&mut self, line: String) {
        if self.history.len() == 20 {
            self.history.pop_front();
        }
        self.history.push_back(line);
    }

    fn wait(&mut self, ns: u64) {
        self.now += ns;
        self.model.advance_to(self.now);
        self.reference.advance(self.now);
    }

    fn step(&mut self, step: &Step) {
        self.remember(format!("{:>14} ns  {}", self.now, show(step)));
        match step {
            Step::Wait(ns) => self.wait(*ns),
            Step::WaitForEnd(around) => {
                if let Some(until) = self.reference.busy_until() {
                    self.wait(until.saturating_add_signed(*around).saturating_sub(self.now));
                }
            }
            Step::Power(on) => {
                self.model.set_power(*on);
                self.reference.set_power(*on);
            }
            Step::WriteProtect(low) => {
                self.model.set_write_protect(*low);
                self.reference.wp_low = *low;
            }
            Step::Frame(pieces, stray) => {
                self.frames += 1;
                self.frame(pieces, *stray);
            }
        }
        self.take_over_interrupted();
        if let Some(of_reference) = self.reference.registers() {
            let of_model = [Reg::Sr1, Reg::Sr2, Reg::Sr3].map(|register| self.model.register(register));
            if of_model != of_reference {
                self.differ(&format!(
                    "status registers: {of_model:02x?} in the model, {of_reference:02x?} in the reference"
                ));
            }
        }
    }

    /// A byte to the reference.
    fn clock(&mut self, driven: u8, lines: u8) -> u8 {
        let out = self.reference.clock(driven, lines);
        self.now += self.clock_ns * 8 / u64::from(lines);
        self.reference.advance(self.now);
        out
    }

    fn frame(&mut self, pieces: &[Piece], stray: u8) {
        self.model.select();
        self.reference.select();
        for piece in pieces {
            let (of_model, of_reference) = match piece {
                Piece::Wait(ns) => {
                    self.wait(*ns);
                    continue;
                }
                Piece::Send(lines, bytes) => {
                    self.model.transfer(Transfer::Write { lines: lines_of(*lines), bytes });
                    for byte in bytes {
                        self.clock(*byte, *lines);
                    }
                    continue;
                }
                Piece::Receive(lines, count) => {
                    let mut bytes = vec![0; *count];
                    self.model.transfer(Transfer::Read { lines: lines_of(*lines), bytes: &mut bytes });
                    (bytes, (0..*count).map(|_| self.clock(0, *lines)).collect::<Vec<u8>>())
                }
                Piece::Both(sent) => {
                    let mut bytes = sent.clone();
                    self.model.transfer(Transfer::Both { bytes: &mut bytes });
                    (bytes, sent.iter().map(|byte| self.clock(*byte, 1)).collect())
                }
            };
            if of_model != of_reference {
                let at = of_model.iter().zip(&of_reference).position(|(a, b)| a != b).unwrap();
                let (a, b) = (of_model[at], of_reference[at]);
                self.differ(&format!("byte {at}: the model sends {a:02x}h, the reference {b:02x}h"));
            }
        }
        self.model.deselect(stray);
        self.reference.deselect(stray);
    }

    /// What an operation leaves that was cut off is random: the reference takes it from the model, if it can be.
    fn take_over_interrupted(&mut self) {
        let mut later = Vec::new();
        for work in std::mem::take(&mut self.reference.interrupted) {
            match work {
                Work::Program { page, data } => {
                    let mut left = vec![0; 256];
                    self.model.array().read(page as u64, &mut left);
                    let old = self.reference.array[page..page + 256].to_vec();
                    self.check_program(&old, &data, &left);
                    self.reference.array[page..page + 256].copy_from_slice(&left);
                }
                Work::Erase(range) => {
                    self.model.array().read(range.start as u64, &mut self.reference.array[range]);
                }
                Work::ChipErase => self.model.array().read(0, &mut self.reference.array),
                Work::ProgramSecurity { register, data } => {
                    let mut left = vec![0; 256];
                    self.model.security().read(register as u64 * 256, &mut left);
                    let old = self.reference.security[register].clone();
                    self.check_program(&old, &data, &left);
                    self.reference.security[register] = left;
                }
                Work::EraseSecurity(register) => {
                    let to = &mut self.reference.security[register];
                    self.model.security().read(register as u64 * 256, to);
                }
                Work::WriteStatus(_) if self.reference.registers().is_none() => later.push(work),
                Work::WriteStatus(values) => {
                    for (i, value) in values.iter().enumerate() {
                        let Some(value) = value else { continue };
                        let left = self.register(i);
                        let old = self.reference.stored[i];
                        if (left ^ old) & !(old ^ value) & [0xFC, 0x7B, 0x64][i] != 0 {
                            let i = i + 1;
                            self.differ(&format!(
                                "status register {i}, cut off: {left:02x}h of {old:02x}h and {value:02x}h"
                            ));
                        }
                        self.reference.stored[i] = left;
                        self.reference.live[i] = left;
                    }
                    self.reference.see_lock_down();
                }
            }
        }
        self.reference.interrupted = later;
    }

    fn check_program(&mut self, old: &[u8], data: &[u8], left: &[u8]) {
        for ((old, data), left) in old.iter().zip(data).zip(left) {
            if left & !old != 0 || old & data & !left != 0 {
                self.differ(&format!(
                    "a program of {data:02x}h over {old:02x}h that was cut off left {left:02x}h"
                ));
            }
        }
    }

    /// A status register without BUSY, WEL and SUS.
    fn register(&self, i: usize) -> u8 {
        match i {
            0 => self.model.register(Reg::Sr1) & 0xFC,
            1 => self.model.register(Reg::Sr2) & 0x7F,
            _ => self.model.register(Reg::Sr3),
        }
    }

    fn compare_memory(&mut self, from: usize, to: usize) {
        let mut of_model = vec![0; to - from];
        self.model.array().read(from as u64, &mut of_model);
        let of_reference = &self.reference.array[from..to];
        if of_model != of_reference {
            let at = of_model.iter().zip(of_reference).position(|(a, b)| a != b).unwrap();
            let (a, b) = (of_model[at], of_reference[at]);
            self.differ(&format!(
                "array at {:06x}h: the model has {a:02x}h, the reference {b:02x}h",
                from + at
            ));
        }
    }

    fn compare_all(&mut self, whole: bool) {
        if whole {
            self.compare_memory(0, 0x100_0000);
        } else {
            for (from, to) in REGIONS {
                self.compare_memory(from, to);
            }
        }
        for i in 0..3 {
            let mut of_model = vec![0; 256];
            self.model.security().read(i as u64 * 256, &mut of_model);
            if of_model != self.reference.security[i] {
                self.differ(&format!("security register {}", i + 1));
            }
            let (a, b) = (self.register(i), self.reference.live[i]);
            if a != b && self.reference.registers().is_some() {
                self.differ(&format!(
                    "status register {}: the model has {a:02x}h, the reference {b:02x}h",
                    i + 1
                ));
            }
        }
    }
}

/// As many frames, and the first difference.
fn run(seed: u64, frames: u32, rules: Rules) -> (Pair, Option<String>) {
    let mut pair = Pair::new(seed, rules);
    let mut generator = Generator::new(seed);
    let mut compared = 0;
    while pair.frames < frames && pair.difference.is_none() {
        let step = generator.step();
        pair.step(&step);
        if pair.frames >= compared + 300 {
            compared = pair.frames;
            pair.compare_all(false);
        }
    }
    pair.compare_all(true);
    let difference = pair.difference.take();
    (pair, difference)
}

#[test]
fn the_model_answers_a_hundred_thousand_random_frames_as_a_second_reference_does() {
    let (mut programs, mut erased, mut suspends, mut cuts, mut read) = (0, 0, 0, 0, 0);
    for seed in 1..=RUNS {
        let (pair, difference) = run(seed, FRAMES_A_RUN, Rules::MODEL);
        if let Some(difference) = difference {
            panic!("{difference}");
        }
        let stats = pair.model.stats();
        programs += stats.programs;
        erased += stats.units_erased;
        suspends += stats.suspends;
        cuts += stats.interrupted;
        read += stats.bytes_read;
    }
    // The frames did something.
    println!(
        "{programs} programs, {erased} sectors erased, {suspends} suspends, {cuts} cut off, {read} bytes read"
    );
    assert!(programs > 3_000 && erased > 10_000 && suspends > 1_000 && cuts > 300 && read > 100_000);
}

#[test]
fn every_explained_difference_shows() {
    type Turn = fn(&mut Rules);
    let turned: [(&str, Turn); 11] = [
        ("locks_keep_wel", |rules| rules.locks_keep_wel ^= true),
        ("sus_at_once", |rules| rules.sus_at_once ^= true),
        ("security_goes_on", |rules| rules.security_goes_on ^= true),
        ("suspended_register_is_barred", |rules| rules.suspended_register_is_barred ^= true),
        ("no_volatile_write_in_suspend", |rules| rules.no_volatile_write_in_suspend ^= true),
        ("quad_needs_qe", |rules| rules.quad_needs_qe ^= true),
        ("qe_takes_wp", |rules| rules.qe_takes_wp ^= true),
        ("volatile_lock_bits", |rules| rules.volatile_lock_bits ^= true),
        ("lock_ends_with_power", |rules| rules.lock_ends_with_power ^= true),
        ("empty_frame_is_none", |rules| rules.empty_frame_is_none ^= true),
        ("sleeps_in_suspend", |rules| rules.sleeps_in_suspend ^= true),
    ];
    for (name, turn) in turned {
        let mut rules = Rules::MODEL;
        turn(&mut rules);
        let shown = (1..=RUNS).find_map(|seed| run(seed, FRAMES_A_RUN, rules).1);
        println!("{name}: {}", shown.as_deref().unwrap_or("nothing"));
        assert!(shown.is_some(), "{name}: no frame tells the model from the data sheet's way");
    }
}
