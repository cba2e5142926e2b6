//! A bus for the tests of the fronts: chips that know a handful of commands and are never busy, and a log of what came.
#![allow(dead_code, unreachable_pub)]

use spiflash_mtd::{BusError, Lines, SpiBus, Transfer};
use std::sync::{Arc, Mutex};

const CHIP_BYTES: usize = 16 << 20;
pub const MOST_HZ: u32 = 133_000_000;

/// What crossed the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Select(u8),
    Deselect,
    Write(Lines, Vec<u8>),
    Read(Lines, usize),
    Both(Vec<u8>),
    Delay(u64),
    Clock(u32),
    Power(u8, bool),
}

struct Chip {
    array: Vec<u8>,
    write_enabled: bool,
    powered: bool,
}

pub struct ToyBus {
    chips: Vec<Chip>,
    selected: Option<u8>,
    /// What came in since CS# fell, and how many bytes went out.
    frame: Vec<u8>,
    sent: usize,
    now_ns: u64,
    pub log: Option<Vec<Seen>>,
}

impl ToyBus {
    pub fn new(chips: u8) -> ToyBus {
        ToyBus::of_size(chips, CHIP_BYTES)
    }

    pub fn of_size(chips: u8, size_bytes: usize) -> ToyBus {
        let chip = || Chip { array: vec![0xFF; size_bytes], write_enabled: false, powered: true };
        let chips = (0..chips).map(|_| chip()).collect();
        ToyBus { chips, selected: None, frame: Vec::new(), sent: 0, now_ns: 0, log: None }
    }

    /// A small one.
    pub fn logging(chips: u8) -> ToyBus {
        ToyBus { log: Some(Vec::new()), ..ToyBus::of_size(chips, 64 << 10) }
    }

    pub fn shared(self) -> Arc<Mutex<ToyBus>> {
        Arc::new(Mutex::new(self))
    }

    pub fn array(&mut self, chip: usize) -> &mut Vec<u8> {
        &mut self.chips[chip].array
    }

    pub fn powered(&self, chip: usize) -> bool {
        self.chips[chip].powered
    }

    pub fn selected(&self) -> Option<u8> {
        self.selected
    }

    pub fn take_log(&mut self) -> Vec<Seen> {
        std::mem::take(self.log.as_mut().unwrap())
    }

    fn see(&mut self, seen: impl FnOnce() -> Seen) {
        if let Some(log) = &mut self.log {
            log.push(seen());
        }
    }

    fn address(&self) -> usize {
        match self.frame.get(1..4) {
            Some(address) => address.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)),
            None => 0,
        }
    }

    fn read_out(&mut self, out: &mut [u8]) {
        let Some(chip) = self.selected.map(|select| &self.chips[usize::from(select)]) else { return };
        if !chip.powered {
            return out.fill(0xFF);
        }
        let from = self.sent;
        self.sent += out.len();
        let id = [0xEF, 0x40, 0x18];
        let mut cyclic = |bytes: &[u8]| {
            out.iter_mut().enumerate().for_each(|(at, byte)| *byte = bytes[(from + at) % bytes.len()]);
        };
        match self.frame.first() {
            Some(0x9F) => cyclic(&id),
            Some(0x05) => cyclic(&[u8::from(chip.write_enabled) << 1]),
            Some(0x35 | 0x15) => cyclic(&[0]),
            Some(0x03 | 0x3B | 0x6B) => {
                let size = chip.array.len();
                let mut at = (self.address() + from) % size;
                let mut out = out;
                while !out.is_empty() {
                    let run = out.len().min(size - at);
                    let (first, rest) = std::mem::take(&mut out).split_at_mut(run);
                    first.copy_from_slice(&chip.array[at..at + run]);
                    (out, at) = (rest, 0);
                }
            }
            _ => out.fill(0xFF),
        }
    }

    fn take_effect(&mut self) {
        let address = self.address();
        let Some(chip) = self.selected.map(|select| &mut self.chips[usize::from(select)]) else { return };
        let address = address % chip.array.len();
        let enabled = chip.write_enabled && chip.powered;
        match (self.frame.first(), self.frame.len()) {
            (Some(0x06), 1) => chip.write_enabled = chip.powered,
            (Some(0x04), 1) => chip.write_enabled = false,
            (Some(0x02), 5..) if enabled => {
                let page = address & !0xFF;
                for (at, byte) in self.frame[4..].iter().enumerate() {
                    chip.array[page + (address + at) % 256] &= byte;
                }
                chip.write_enabled = false;
            }
            (Some(opcode @ (0x20 | 0x52 | 0xD8)), 4) if enabled => {
                let size = match opcode {
                    0x20 => 4 << 10,
                    0x52 => 32 << 10,
                    _ => 64 << 10,
                };
                let block = address / size * size;
                chip.array[block..block + size].fill(0xFF);
                chip.write_enabled = false;
            }
            (Some(0x60 | 0xC7), 1) if enabled => {
                chip.array.fill(0xFF);
                chip.write_enabled = false;
            }
            _ => {}
        }
    }
}

impl SpiBus for ToyBus {
    fn chips(&self) -> u8 {
        self.chips.len() as u8
    }

    fn select(&mut self, select: u8) -> Result<(), BusError> {
        if let Some(select) = self.selected {
            return Err(BusError::StillSelected { select });
        }
        if select >= self.chips() {
            return Err(BusError::NoChip { select, chips: self.chips() });
        }
        self.see(|| Seen::Select(select));
        self.selected = Some(select);
        self.frame.clear();
        self.sent = 0;
        Ok(())
    }

    fn transfer(&mut self, transfer: Transfer<'_>) -> Result<(), BusError> {
        if self.selected.is_none() {
            return Err(BusError::NotSelected);
        }
        match transfer {
            Transfer::Write { lines, bytes } => {
                self.see(|| Seen::Write(lines, bytes.to_vec()));
                self.frame.extend_from_slice(bytes);
                self.now_ns += bytes.len() as u64 * 80;
            }
            Transfer::Read { lines, bytes } => {
                self.see(|| Seen::Read(lines, bytes.len()));
                self.now_ns += bytes.len() as u64 * 80;
                self.read_out(bytes);
            }
            Transfer::Both { bytes } => {
                let sent = bytes.to_vec();
                self.see(|| Seen::Both(sent.clone()));
                for byte in bytes {
                    let mut out = [0xFF];
                    // What is driven depends on what came before this byte; commands take no answer until they are whole.
                    let whole = match self.frame.first() {
                        Some(0x03) => self.frame.len() >= 4,
                        Some(_) => true,
                        None => false,
                    };
                    if whole {
                        self.read_out(&mut out);
                    }
                    self.frame.push(*byte);
                    *byte = out[0];
                }
            }
        }
        Ok(())
    }

    fn deselect(&mut self) -> Result<(), BusError> {
        if self.selected.is_none() {
            return Err(BusError::NotSelected);
        }
        self.see(|| Seen::Deselect);
        self.take_effect();
        self.selected = None;
        Ok(())
    }

    fn delay_ns(&mut self, delay_ns: u64) {
        self.see(|| Seen::Delay(delay_ns));
        self.now_ns = self.now_ns.saturating_add(delay_ns);
    }

    fn now_ns(&mut self) -> u64 {
        self.now_ns
    }

    fn set_clock_hz(&mut self, hz: u32) -> Result<u32, BusError> {
        if hz == 0 || hz > MOST_HZ {
            return Err(BusError::Clock { hz, most_hz: MOST_HZ });
        }
        self.see(|| Seen::Clock(hz));
        Ok(hz)
    }

    fn set_power(&mut self, select: u8, on: bool) -> Result<(), BusError> {
        let chips = self.chips();
        self.see(|| Seen::Power(select, on));
        let chip = self.chips.get_mut(usize::from(select)).ok_or(BusError::NoChip { select, chips })?;
        chip.powered = on;
        chip.write_enabled &= on;
        Ok(())
    }

    fn set_write_protect(&mut self, select: u8, _low: bool) -> Result<(), BusError> {
        if select >= self.chips() {
            return Err(BusError::NoChip { select, chips: self.chips() });
        }
        Ok(())
    }
}
