//! The bytes of a serprog client, against a chip on a bus.
//!
//! Input: a byte that says how the rest is cut, the rest. The replies do not depend on the cuts; what is left is a bus with
//! no chip selected and with power.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spiflash_mtd::fronts::serprog::{Options, Serprog};
use spiflash_mtd::{BusError, SpiBus, Transfer};

/// A bus with two chips that drive a counter.
#[derive(Default)]
struct Bus {
    selected: Option<u8>,
    counter: u8,
    off: [bool; 2],
}

impl SpiBus for Bus {
    fn chips(&self) -> u8 {
        2
    }
    fn select(&mut self, select: u8) -> Result<(), BusError> {
        if let Some(select) = self.selected {
            return Err(BusError::StillSelected { select });
        }
        if select > 1 {
            return Err(BusError::NoChip { select, chips: 2 });
        }
        self.selected = Some(select);
        Ok(())
    }
    fn transfer(&mut self, transfer: Transfer<'_>) -> Result<(), BusError> {
        self.selected.ok_or(BusError::NotSelected)?;
        match transfer {
            Transfer::Write { bytes, .. } => {
                self.counter = bytes.iter().fold(self.counter, |sum, byte| sum.wrapping_mul(31) ^ byte);
            }
            Transfer::Read { bytes, .. } | Transfer::Both { bytes } => bytes.fill(self.counter),
        }
        Ok(())
    }
    fn deselect(&mut self) -> Result<(), BusError> {
        self.selected.take().map(drop).ok_or(BusError::NotSelected)
    }
    fn delay_ns(&mut self, _: u64) {}
    fn now_ns(&mut self) -> u64 {
        0
    }
    fn set_clock_hz(&mut self, hz: u32) -> Result<u32, BusError> {
        let most_hz = 133_000_000;
        if hz == 0 || hz > most_hz { Err(BusError::Clock { hz, most_hz }) } else { Ok(hz) }
    }
    fn set_power(&mut self, select: u8, on: bool) -> Result<(), BusError> {
        self.off[usize::from(select)] = !on;
        Ok(())
    }
    fn set_write_protect(&mut self, _: u8, _: bool) -> Result<(), BusError> {
        Ok(())
    }
}

/// A digest of the replies by runs of equal bytes, which long reads give.
#[derive(Default, PartialEq, Eq, Debug)]
struct Digest {
    hash: u64,
    last: u8,
    run: u64,
}

impl Digest {
    fn add(&mut self, replies: &[u8]) {
        for run in replies.chunk_by(|a, b| a == b) {
            if run[0] != self.last {
                let ended = self.run << 8 ^ u64::from(self.last);
                self.hash = self.hash.wrapping_mul(0x100_0000_01B3) ^ ended;
                (self.last, self.run) = (run[0], 0);
            }
            self.run += run.len() as u64;
        }
    }
}

fn talk(bytes: &[u8], cut: usize) -> Digest {
    let (mut serprog, mut bus) = (Serprog::new(Options::default()), Bus::default());
    let (mut digest, mut replies) = (Digest::default(), Vec::new());
    for mut piece in bytes.chunks(cut) {
        while !piece.is_empty() {
            let taken = serprog.feed(&mut bus, piece, &mut replies);
            assert!(taken > 0, "with no replies it takes something");
            digest.add(&replies);
            replies.clear();
            piece = &piece[taken..];
        }
    }
    serprog.end(&mut bus);
    assert_eq!((bus.selected, bus.off), (None, [false; 2]));
    digest
}

fuzz_target!(|input: &[u8]| {
    let Some((&cut, bytes)) = input.split_first() else { return };
    // A few long reads are enough: each is up to 16 MiB.
    if bytes.iter().filter(|&&byte| byte == 0x13).count() > 4 {
        return;
    }
    assert_eq!(talk(bytes, usize::from(cut) + 1), talk(bytes, usize::MAX));
});
