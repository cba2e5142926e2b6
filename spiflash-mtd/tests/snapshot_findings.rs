//! Rules of the chip that were found broken.
#![allow(clippy::unwrap_used, missing_docs)]

use spiflash_mtd::reliability::ReliabilityParams;
use spiflash_mtd::{Chip, Setup, Transfer, part};
use std::sync::Arc;

fn chip(setup: &Setup) -> Chip {
    Chip::new(Arc::new(part::find("W25Q128JV").unwrap().clone()), setup).unwrap()
}

fn send(chip: &mut Chip, bytes: &[u8]) {
    chip.select();
    chip.transfer(Transfer::write(bytes));
    chip.deselect(0);
    let until = chip.busy_until_ns().unwrap_or(0);
    chip.advance_to(until);
}

#[test]
fn reads_disturb_a_block_alike_however_the_host_cuts_its_frame_into_transfers() {
    let setup = Setup { reliability: ReliabilityParams::load("nor-65nm").unwrap(), ..Setup::default() };
    let (mut whole, mut pieces) = (chip(&setup), chip(&setup));
    for chip in [&mut whole, &mut pieces] {
        chip.set_clock_hz(0);
        chip.select();
        chip.transfer(Transfer::write(&[0x03, 0, 0, 0]));
    }
    whole.transfer(Transfer::read(&mut [0; 256]));
    for _ in 0..256 {
        pieces.transfer(Transfer::read(&mut [0]));
    }
    let reads = |chip: &Chip| chip.array().unit(0).unwrap().reads;
    assert_eq!(reads(&pieces), reads(&whole));
}

#[test]
fn a_page_that_reads_now_so_now_so_reads_alike_in_one_frame_however_it_is_cut_into_transfers() {
    let setup = Setup { reliability: ReliabilityParams::load("nor-65nm").unwrap(), ..Setup::default() };
    let mut whole = chip(&setup);
    send(&mut whole, &[0x06]);
    send(&mut whole, &[0x02, 0, 0, 0, 0]);
    send(&mut whole, &[0x06]);
    whole.select();
    whole.transfer(Transfer::write(&[0x20, 0, 0, 0]));
    whole.deselect(0);
    whole.advance_to(whole.now_ns() + 20_000_000);
    whole.set_power(false);
    whole.set_power(true);
    whole.advance_to(whole.busy_until_ns().unwrap());
    whole.set_clock_hz(0);
    let mut pieces = whole.clone();
    let read = |chip: &mut Chip, sizes: &[usize]| {
        chip.select();
        chip.transfer(Transfer::write(&[0x03, 0, 0, 0x80]));
        let mut all = Vec::new();
        for size in sizes {
            let mut out = vec![0; *size];
            chip.transfer(Transfer::read(&mut out));
            all.extend(out);
        }
        chip.deselect(0);
        all
    };
    let (first, second) = (read(&mut whole, &[1000]), read(&mut whole, &[1000]));
    assert_ne!(first, second, "no cell is near the read level");
    assert_eq!(read(&mut pieces, &[1, 127, 300, 84, 488]), first);
    assert_eq!(read(&mut pieces, &[10; 100]), second);
}

#[test]
fn a_byte_of_an_mram_during_which_power_goes_is_not_written() {
    let part = Arc::new(part::find("MR25H40").unwrap().clone());
    for (cut_ns, expected) in [
        (31_999, [0, 0]),
        (32_000, [0, 0]),
        (39_999, [0, 0]),
        (40_000, [0x11, 0]),
        (47_999, [0x11, 0]),
        (48_000, [0x11, 0x22]),
    ] {
        let mut chip = Chip::new(Arc::clone(&part), &Setup::default()).unwrap();
        chip.set_clock_hz(1_000_000);
        send(&mut chip, &[0x06]);
        send(&mut chip, &[0x02, 0, 0, 0, 0, 0]);
        send(&mut chip, &[0x06]);
        chip.set_cut_at_ns(Some(chip.now_ns() + cut_ns));
        chip.select();
        for byte in [0x02, 0, 0, 0, 0x11, 0x22] {
            chip.transfer(Transfer::write(&[byte]));
        }
        chip.deselect(0);
        let mut cells = [0xFF; 2];
        chip.array().read(0, &mut cells);
        assert_eq!(cells, expected, "{cut_ns} ns");
    }
}
