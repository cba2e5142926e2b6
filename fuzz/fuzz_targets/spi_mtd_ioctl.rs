//! The ioctls of the MTD files, on a chip.
//!
//! Input: ioctls one after the other, each a byte that picks its number (or 255: the next four bytes are the number), a byte
//! with the length of what its argument points to, and that.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spiflash_mtd::fronts::mtd::MtdDevice;
use spiflash_mtd::fronts::mtd::ioctl::{FileMode, shape};
use spiflash_mtd::{Chip, Setup, SimBus, TimeMode, part};
use std::sync::{Arc, Mutex};

/// The numbers of `<mtd/mtd-abi.h>`, by count.
const NUMBERS: [u32; 25] = [
    0x8020_4d01, 0x4008_4d02, 0xc010_4d03, 0xc010_4d04, 0x4008_4d05, 0x4008_4d06, 0x8004_4d07, 0xc010_4d08, 0x80c8_4d0a,
    0x4008_4d0b, 0x4008_4d0c, 0x8004_4d0d, 0x4004_4d0e, 0x400c_4d0f, 0x800c_4d10, 0x8148_4d11, 0x8010_4d12, 0x4d13,
    0x4010_4d14, 0xc018_4d15, 0xc018_4d16, 0x8008_4d17, 0xc030_4d18, 0x400c_4d19, 0xc040_4d1a,
];

const PARTS: [&str; 4] = ["W25Q128JV", "SST26VF064B", "FM25V20A", "W25N01GV"];

fuzz_target!(|input: &[u8]| {
    let Some((&first, mut rest)) = input.split_first() else { return };
    let Some(part) = part::find(PARTS[usize::from(first) % PARTS.len()]) else { return };
    let part = Arc::new(part.clone());
    let Ok(chip) = Chip::new(part.clone(), &Setup::default()) else { return };
    let bus = Arc::new(Mutex::new(SimBus::new(vec![chip], TimeMode::PollSkip { polls: 0 }, || 0)));
    let Ok(device) = MtdDevice::new("mtd0", bus, part, 0) else { return };
    let mut mode = FileMode::Normal;
    for _ in 0..16 {
        let Some((&pick, after)) = rest.split_first() else { return };
        let (number, after) = match (pick, after.split_first_chunk::<4>()) {
            (255, Some((number, after))) => (u32::from_le_bytes(*number), after),
            _ => (NUMBERS[usize::from(pick) % NUMBERS.len()], after),
        };
        let Some((&length, after)) = after.split_first() else { return };
        let (data, after) = after.split_at(usize::from(length).min(after.len()));
        rest = after;
        let argument = data.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
        let answer = device.ioctl(&mut mode, first & 0x80 == 0, number, argument, data);
        match (answer, shape(number)) {
            (Ok(answer), Some(shape)) => {
                assert!(answer.result >= 0 && answer.bytes.len() <= shape.output_bytes, "{}", shape.name);
            }
            (Ok(_), None) => panic!("an answer to what is no ioctl of MTD"),
            (Err(_), _) => {}
        }
    }
});
