//! Data to the host.
//!
//! The invariant: what is driven is a function of the command, its address and the number of the byte, whichever way a caller
//! cuts the frame into pieces; only registers are looked at anew for each byte, at its time.

use super::Chip;
use super::planted::planted;
use crate::array::PageMeta;
use crate::command::{AddressPhase, CommandSpec, Lines};
use crate::op::{Op, Reg};
use crate::regs::Role;
use crate::reliability::{PagePlace, PageState};
use crate::states::State;
use std::sync::Arc;

const UID_PURPOSE: u64 = 0x5549_4421;

impl Chip {
    /// Whether the data of the frame's command does not depend on time: then many bytes are taken at once.
    pub(super) fn streams(&self) -> bool {
        let Some(spec) = self.frame.spec() else { return false };
        !matches!(spec.op, Op::ReadRegister(_) | Op::NandGetFeature)
    }

    /// Drives data bytes, of which the first is number `first` of the frame.
    pub(super) fn output(&mut self, first: u64, out: &mut [u8]) {
        self.drive(first, out);
        let skew = self.frame.skew_bits();
        if skew > 0 && !planted!(self, SkewIgnored) {
            for byte in out {
                let whole = *byte;
                *byte = (u16::from(self.carry) << (8 - skew) | u16::from(whole) >> skew) as u8;
                self.carry = whole;
            }
        }
    }

    fn drive(&mut self, first: u64, out: &mut [u8]) {
        let Some(spec) = self.frame.spec().copied() else { return out.fill(0xFF) };
        let address = self.frame.frame_address();
        match spec.op {
            Op::Read => self.read_array(&spec, address, first, out),
            Op::ReadRegister(Reg::NvcrLow) => {
                let register = if first.is_multiple_of(2) { Reg::NvcrLow } else { Reg::NvcrHigh };
                out.fill(self.register(register));
            }
            Op::ReadRegister(register) => {
                self.polled(register);
                out.fill(self.register(register));
            }
            Op::NandGetFeature => {
                self.polled(Reg::NandStatus);
                out.fill(self.nand_feature(address.unwrap_or(0) as u8));
            }
            Op::ReadJedecId => {
                let id = &self.part.id;
                let period = if id.jedec_repeats { id.jedec.len().max(1) as u64 } else { u64::MAX };
                for (at, byte) in out.iter_mut().enumerate() {
                    let at = (first + at as u64) % period;
                    *byte = usize::try_from(at).ok().and_then(|at| id.jedec.get(at)).copied().unwrap_or(0xFF);
                }
            }
            Op::ReadManufacturerId => {
                let swapped = address.unwrap_or(0) & 1;
                for (at, byte) in out.iter_mut().enumerate() {
                    let device = (first + at as u64 + u64::from(swapped)) % 2 == 1;
                    *byte = if device { self.part.id.device } else { self.part.id.manufacturer };
                }
            }
            Op::Release => out.fill(self.part.id.device),
            Op::ReadUniqueId | Op::ReadSerialNumber => {
                let id = self.unique_id();
                out.iter_mut().zip(once(&id, first)).for_each(|(byte, id)| *byte = id);
            }
            Op::ReadSfdp => {
                let table = Arc::clone(&self.sfdp);
                let from = u64::from(address.unwrap_or(0)) + first;
                out.iter_mut().zip(once(&table, from)).for_each(|(byte, data)| *byte = data);
            }
            Op::ReadSecurity => self.read_security(address.unwrap_or(0), first, out),
            Op::ReadBlockLock => {
                let lock = self.lock_of(self.array_address(&spec, address));
                out.fill(u8::from(lock.and_then(|lock| self.locks.get(lock)).copied().unwrap_or(false)));
            }
            Op::ReadBlockProtection => {
                let bits = self.block_protection();
                out.iter_mut().zip(once(&bits, first)).for_each(|(byte, bits)| *byte = bits);
            }
            Op::NandReadBuffer => self.nand_read_buffer(address.unwrap_or(0), first, out),
            Op::NandReadLinks => self.nand_read_links(first, out),
            Op::NandLastFailure => self.nand_last_failure(first, out),
            _ => out.fill(0xFF),
        }
    }

    /// The unique ID, or the serial number: made from the seed.
    pub fn unique_id(&self) -> Vec<u8> {
        let count = usize::from(self.part.id.unique_id_bytes);
        let words =
            (0..count.div_ceil(8) as u64).map(|word| crate::rng::mix(self.seed ^ UID_PURPOSE ^ word << 32));
        words.flat_map(u64::to_le_bytes).take(count).collect()
    }

    /// The place in the array of a frame's address: with the extended address register, wrapped at the array's end.
    pub(super) fn array_address(&self, spec: &CommandSpec, address: Option<u32>) -> u64 {
        let address = u64::from(address.unwrap_or(0));
        let three = !self.modes.four_byte && matches!(spec.address, AddressPhase::ByMode(_));
        let extended = match self.roles.get(Role::Ea0) {
            Some(at) if three && !planted!(self, ExtendedAddressIgnored) => {
                u64::from(self.registers.value(at.register) >> at.bit) << 24
            }
            _ => 0,
        };
        (address | extended) % self.part.geometry.size_bytes.max(1)
    }

    /// The array, from the frame's address on: to the end and on from 0, or round within the burst.
    fn read_array(&mut self, spec: &CommandSpec, address: Option<u32>, first: u64, out: &mut [u8]) {
        if self.modes.otp {
            return self.read_security(address.unwrap_or(0), first, out);
        }
        let size = self.part.geometry.size_bytes.max(1);
        let start = self.array_address(spec, address);
        let quad = spec.address.lines() == Lines::Quad;
        let window = match self.modes.burst_bytes {
            Some(bytes) if quad || self.modes.qpi => u64::from(bytes),
            _ => size,
        };
        let base = start / window * window;
        let mut offset = (start - base + first) % window;
        let mut out = out;
        self.stats.bytes_read += out.len() as u64;
        let mut begins = first == 0;
        while !out.is_empty() {
            let (now, later) = out.split_at_mut(out.len().min((window - offset) as usize));
            self.array.read(base + offset, now);
            if !self.reliability.is_perfect() {
                self.add_errors(base + offset, now, begins || offset == 0);
            }
            begins = false;
            offset = 0;
            out = later;
            if planted!(self, ReadStopsAtEnd) {
                return out.fill(0xFF);
            }
        }
    }

    /// The page of an address, and the offset in it.
    pub(super) fn page_place(&self, address: u64) -> (PagePlace, usize) {
        let (unit, page) = (self.array.unit_bytes() as u64, self.array.page_bytes() as u64);
        let place = PagePlace { block: (address / unit) as u32, page: (address / page) as u32 };
        (place, (address % page) as usize)
    }

    /// What the error model asks of a page.
    pub(super) fn page_state(&self, place: PagePlace) -> PageState {
        let pages = (self.array.unit_bytes() / self.array.page_bytes()) as u32;
        let meta: PageMeta = self.array.page(place.block, place.page % pages.max(1));
        let unit = self.array.unit(place.block);
        PageState {
            cycles: unit.map_or(0, |unit| unit.cycles),
            programmed_at_ns: meta.written_at_ns,
            now_ns: self.now_ns,
            block_reads: unit.map_or(0, |unit| unit.reads),
            epoch: meta.epoch,
            marginal: meta.marginal,
        }
    }

    /// Flips what reads wrong, page by page, and counts the reads: one where a page begins, and one at the begin of `data` if it
    /// `begins` a read. What goes on with the page of the byte before it is of the same read, so that it is no matter in
    /// which pieces the host takes a frame.
    pub(super) fn add_errors(&mut self, address: u64, data: &mut [u8], begins: bool) {
        let (mut address, mut rest, mut begins) = (address, data, begins);
        while !rest.is_empty() {
            let (place, offset) = self.page_place(address);
            let (now, later) = rest.split_at_mut(rest.len().min(self.array.page_bytes() - offset));
            if std::mem::take(&mut begins) || offset == 0 {
                self.next_draw();
                self.array.count_reads(place.block, 1);
            }
            let state = self.page_state(place);
            let errors = self.reliability.read(place, &state, offset, now, self.draws);
            self.stats.zero_to_one += u64::from(errors.zero_to_one);
            self.stats.one_to_zero += u64::from(errors.one_to_zero);
            address += now.len() as u64;
            rest = later;
        }
    }

    /// A register as the host reads it: stored bits, and those that follow the chip's state.
    pub fn register(&self, register: Reg) -> u8 {
        let mut value = self.registers.value(register);
        let state = self.state;
        let busy = state.is_busy();
        let live = [
            (Role::Busy, busy),
            (Role::BusyToo, busy),
            (Role::Ready, !busy),
            (Role::Wel, self.modes.wel),
            (Role::Sus, state.erase_suspended() || state.program_suspended()),
            (Role::SusErase, state.erase_suspended()),
            (Role::SusProgram, state == State::ProgramSuspended),
            (Role::Ads, self.modes.four_byte),
            (Role::FourByte, self.modes.four_byte),
            (Role::Aai, self.modes.aai_at.is_some()),
            (Role::Qpi, self.modes.qpi),
        ];
        for (role, on) in live {
            if let Some(at) = self.roles.get(role).filter(|at| at.register == register) {
                value = value & !(1 << at.bit) | u8::from(on) << at.bit;
            }
        }
        value
    }

    /// A register with a busy bit is about to be read.
    fn polled(&mut self, register: Reg) {
        let has_busy = [Role::Busy, Role::Ready]
            .iter()
            .any(|role| self.roles.get(*role).is_some_and(|at| at.register == register));
        if !has_busy || !self.state.is_timed() {
            return;
        }
        if self.poll_skip.is_some_and(|skip| self.polls >= skip) {
            self.advance_to(self.until_ns);
        } else {
            self.polls += 1;
        }
    }

    /// SST26's block-protection register: the write locks, most significant first (SST26VF064B, section 4.4 and table 4-2;
    /// the read locks of the parameter blocks are not modelled and read 0).
    pub(super) fn block_protection(&self) -> Vec<u8> {
        let Some(rules) = &self.part.locks else { return Vec::new() };
        rules.to_register(self.part.geometry.size_bytes, &self.locks)
    }
}

/// The bytes from `first` on; FFh after the last.
fn once(bytes: &[u8], first: u64) -> impl Iterator<Item = u8> + '_ {
    (first..).map(|at| usize::try_from(at).ok().and_then(|at| bytes.get(at)).copied().unwrap_or(0xFF))
}
