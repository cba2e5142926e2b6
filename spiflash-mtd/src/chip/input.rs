//! Data from the host, while CS# is low.
//!
//! A program's bytes go to the page buffer, round and round within the page; nothing else changes before CS# rises. Only
//! memories that are written like RAM take each byte at once.

use super::planted::planted;
use super::{Chip, SMALL_BYTES};
use crate::op::Op;

impl Chip {
    /// A command with data begins: the page buffer is as erased.
    pub(super) fn begin_input(&mut self) {
        self.small = [0; SMALL_BYTES];
        let op = self.frame.spec().map(|spec| spec.op);
        let programs = matches!(op, Some(Op::Program | Op::ProgramAai | Op::ProgramSecurity));
        if programs && !self.part.kind.is_ram() {
            self.latch.fill(0xFF);
        }
        if let Some(Op::NandLoad { keep: false }) = op {
            self.nand_clear_buffer();
        }
    }

    /// Data bytes, of which the first is number `index` of the frame.
    pub(super) fn input(&mut self, index: u64, bytes: &[u8]) {
        let Some(spec) = self.frame.spec().copied() else { return };
        if let Some(room) = usize::try_from(index).ok().and_then(|index| self.small.get_mut(index..)) {
            room.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = *byte);
        }
        let address = u64::from(self.frame.frame_address().unwrap_or(0));
        match spec.op {
            Op::Program if self.part.kind.is_ram() => {
                let address = self.array_address(&spec, self.frame.frame_address());
                self.write_at_once(address + index, bytes);
            }
            Op::Program => self.fill_latch(address + index, bytes, self.part.geometry.page_bytes as usize),
            Op::ProgramSecurity => self.fill_latch(address + index, bytes, 256),
            Op::NandLoad { .. } => self.nand_load(address, index, bytes),
            _ => {}
        }
    }

    /// Bytes wrap within the page; the last ones of each place stay. Winbond W25Q128JV, section 8.2.13 (Page Program).
    fn fill_latch(&mut self, start: u64, bytes: &[u8], page_bytes: usize) {
        let page_bytes = page_bytes.clamp(1, self.latch.len());
        let skipped = bytes.len().saturating_sub(page_bytes);
        if planted!(self, NoPageWrap) {
            let at = (start % page_bytes as u64) as usize;
            let room = self.latch.get_mut(at..page_bytes).unwrap_or_default();
            room.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = *byte);
            return;
        }
        let mut at = ((start + skipped as u64) % page_bytes as u64) as usize;
        let mut rest = bytes.get(skipped..).unwrap_or(&[]);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(page_bytes - at));
            if let Some(place) = self.latch.get_mut(at..at + now.len()) {
                place.copy_from_slice(now);
            }
            rest = later;
            at = 0;
        }
    }

    /// MRAM and FRAM: each byte is there when its last bit is; protected ones stay; the address wraps at the end.
    fn write_at_once(&mut self, address: u64, bytes: &[u8]) {
        if !self.modes.wel {
            return;
        }
        let (size, mut rest) = (self.array.len().max(1), bytes);
        let mut address = address % size;
        while !rest.is_empty() {
            // A page at a time: the array's pages are no limit to the host.
            let page = self.array.page_bytes() as u64;
            let (now, later) = rest.split_at(rest.len().min((page - address % page) as usize));
            let (start, end) = (address, address + now.len() as u64);
            if !self.is_protected(&(start..end)) {
                self.write_cells(address, now);
            } else {
                for (offset, byte) in now.iter().enumerate() {
                    let one = address + offset as u64;
                    if !self.is_protected(&(one..one + 1)) {
                        self.write_cells(one, &[*byte]);
                    }
                }
            }
            address = end % size;
            rest = later;
        }
    }

    fn write_cells(&mut self, address: u64, bytes: &[u8]) {
        self.stats.bytes_programmed += bytes.len() as u64;
        if planted!(self, RamNeedsErase) {
            self.array.program(address, bytes, self.now_ns);
            return;
        }
        if self.reliability.is_perfect() {
            self.array.write(address, bytes, self.now_ns);
            return;
        }
        let mut old = vec![0; bytes.len()];
        self.array.read(address, &mut old);
        let mut data = bytes.to_vec();
        let draw = self.next_draw();
        let (place, offset) = self.page_place(address);
        self.reliability.write_errors(place, offset, &old, &mut data, draw);
        self.array.write(address, &data, self.now_ns);
    }
}
