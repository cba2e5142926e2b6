//! How fast the bare state machine is: page-program frames and reads, on one core, without a front.
//!
//! `cargo bench -p spiflash-mtd --bench chip [-- --json]`: megabytes (10^6 bytes) per second, the median and the range of rounds.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use spiflash_mtd::{Chip, Lines, Setup, Transfer, part};
use std::sync::Arc;
use std::time::Instant;

const PAGE: usize = 256;
const ROUNDS: usize = 9;

fn chip() -> Chip {
    let mut chip = Chip::new(Arc::new(part::find("W25Q128JV").unwrap().clone()), &Setup::default()).unwrap();
    chip.set_clock_hz(133_000_000);
    chip.set_poll_skip(Some(0));
    chip
}

fn frame(chip: &mut Chip, bytes: &[u8]) {
    chip.select();
    chip.transfer(Transfer::write(bytes));
    chip.deselect(0);
}

/// Write enable, page program, status read: the frames of a driver that programs all of the chip.
fn program(chip: &mut Chip, bytes: usize) {
    let mut page = [0u8; 4 + PAGE];
    page[0] = 0x02;
    for at in (0..bytes).step_by(PAGE) {
        let address = (at as u32).to_be_bytes();
        page[1..4].copy_from_slice(&address[1..]);
        page[4..].fill(at as u8 ^ (at >> 8) as u8);
        frame(chip, &[0x06]);
        frame(chip, &page);
        let mut status = [0xFF];
        chip.select();
        chip.transfer(Transfer::write(&[0x05]));
        chip.transfer(Transfer::read(&mut status));
        chip.deselect(0);
        assert_eq!(status[0] & 1, 0);
    }
}

/// Reads of `step` bytes, one frame each.
fn read(chip: &mut Chip, bytes: usize, step: usize, opcode: &[u8], lines: Lines) -> u64 {
    let mut out = vec![0u8; step];
    let mut sum = 0;
    for at in (0..bytes).step_by(step) {
        let address = (at as u32).to_be_bytes();
        let header = [&opcode[..1], &address[1..], &opcode[1..]].concat();
        chip.select();
        chip.transfer(Transfer::write(&header));
        chip.transfer(Transfer::Read { lines, bytes: &mut out });
        chip.deselect(0);
        sum += u64::from(out[step / 2]);
    }
    sum
}

fn main() {
    let json = std::env::args().any(|arg| arg == "--json");
    let size = 16 << 20;
    let mut results: Vec<(&str, Vec<f64>)> = Vec::new();
    let mut add = |name: &'static str, mut work: Box<dyn FnMut() -> usize>| {
        let rates = (0..ROUNDS).map(|_| {
            let begun = Instant::now();
            let bytes = work();
            bytes as f64 / 1e6 / begun.elapsed().as_secs_f64()
        });
        let mut rates: Vec<f64> = rates.collect();
        rates.sort_by(f64::total_cmp);
        results.push((name, rates));
    };
    let mut one = chip();
    add(
        "page programs (06h, 02h + 256 bytes, 05h)",
        Box::new(move || {
            program(&mut one, size);
            size
        }),
    );
    let mut two = chip();
    program(&mut two, size);
    let mut three = two.clone();
    let mut four = two.clone();
    add(
        "reads of 4 KiB (03h)",
        Box::new(move || {
            read(&mut two, size, 4096, &[0x03], Lines::Single);
            size
        }),
    );
    add(
        "reads of 256 bytes (6Bh)",
        Box::new(move || {
            read(&mut three, size, 256, &[0x6B, 0], Lines::Quad);
            size
        }),
    );
    add(
        "one read of 16 MiB (0Bh)",
        Box::new(move || {
            read(&mut four, size, size, &[0x0B, 0], Lines::Single);
            size
        }),
    );
    for (name, rates) in &results {
        let (median, low, high) = (rates[ROUNDS / 2], rates[0], rates[ROUNDS - 1]);
        if json {
            println!(
                "{{\"bench\":\"{name}\",\"megabytes_per_s\":{median:.0},\"low\":{low:.0},\"high\":{high:.0}}}"
            );
        } else {
            println!("{name:<45} {median:>8.0} MB/s  ({low:.0} to {high:.0})");
        }
    }
}
