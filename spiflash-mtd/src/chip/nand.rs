//! SPI NAND: pages go through a buffer, a code corrects what they hold, blocks are bad or get bad.
//!
//! Sources: Winbond W25N01GV, sections 6 (functions), 7 (registers) and 8 (instructions). The code's parity is not in the
//! spare bytes: the model knows what was programmed, and so what is wrong.

use super::jobs::JobKind;
use super::{Chip, Reason};
use crate::op::{EraseUnit, Reg};
use crate::part::{Kind, Part};
use crate::regs::Role;
use crate::states::Event;
use serde::{Deserialize, Serialize};

/// Pages that OTP-E shows: the unique ID, the parameters, ten of the user.
const OTP_FIRST_USER_PAGE: u32 = 2;
const BAD_BLOCK_PURPOSE: u64 = 0xBAD_B10C;

/// What only a SPI NAND has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct NandState {
    buffer: Vec<u8>,
    /// The page in the buffer, for reads that go on to the next.
    page: u32,
    /// Logical and physical block.
    links: Vec<(u16, u16)>,
    last_failure: u16,
    /// Blocks that were bad as delivered, ascending.
    bad: Vec<u32>,
}

impl NandState {
    pub(super) fn new(part: &Part, seed: u64) -> Option<NandState> {
        let spec = part.nand.as_ref().filter(|_| part.kind == Kind::Nand)?;
        let blocks = part.geometry.size_bytes / part.erase_bytes(EraseUnit::NandBlock)?.max(1);
        let draw = |n: u64| crate::rng::mix(seed ^ BAD_BLOCK_PURPOSE ^ n << 32);
        let count = draw(0) % (u64::from(spec.max_bad_blocks) + 1);
        // Block 0 is good as delivered (W25N01GV, section 6.6).
        let mut bad: Vec<u32> = (1..=count).map(|n| (1 + draw(n) % (blocks.max(2) - 1)) as u32).collect();
        bad.sort_unstable();
        bad.dedup();
        let buffer = vec![0xFF; part.geometry.page_bytes as usize + spec.spare_bytes as usize];
        Some(NandState { buffer, page: 0, links: Vec::new(), last_failure: 0, bad })
    }

    /// How many blocks are linked.
    pub(super) fn links_len(&self) -> usize {
        self.links.len()
    }
}

impl NandState {
    /// Whether it can be the state of the chip that has `ours`.
    pub(super) fn fits(&self, ours: &NandState) -> bool {
        self.buffer.len() == ours.buffer.len() && self.bad == ours.bad
    }
}

impl Chip {
    fn nand_pages_per_block(&self) -> u32 {
        self.part.nand.as_ref().map_or(1, |spec| spec.pages_per_block.max(1))
    }

    /// Marks the bad blocks: 00h in the first byte and the first spare byte of their first page.
    pub(super) fn mark_bad_blocks(&mut self) {
        let bad = self.nand.as_ref().map(|nand| nand.bad.clone()).unwrap_or_default();
        let spare_at = u64::from(self.part.geometry.page_bytes);
        for block in bad {
            let start = u64::from(block) * self.array.unit_bytes() as u64;
            for at in [start, start + spare_at] {
                self.array.change(at, 1, |data, _| data.fill(0));
            }
        }
    }

    /// The blocks that were bad as delivered.
    pub fn bad_blocks(&self) -> &[u32] {
        self.nand.as_ref().map_or(&[], |nand| &nand.bad)
    }

    /// Page 0 is in the buffer after power-up (W25N01GV, section 8.2.1).
    pub(super) fn nand_power_up(&mut self) {
        self.nand_complete_read(0);
    }

    /// The physical page of a logical one, by the links.
    fn nand_physical(&self, page: u32) -> u32 {
        let per_block = self.nand_pages_per_block();
        let (block, within) = (page / per_block, page % per_block);
        let links = self.nand.as_ref().map_or(&[][..], |nand| &nand.links);
        let link = links.iter().find(|(logical, _)| u32::from(*logical) == block);
        link.map_or(block, |(_, physical)| u32::from(*physical)) * per_block + within
    }

    fn nand_page_of(&self, address: u32) -> Result<u32, Reason> {
        let pages = self.array.len() / self.array.page_bytes() as u64;
        if u64::from(address) < pages { Ok(address) } else { Err(Reason::NoSuchPlace) }
    }

    fn nand_block_range(&self, page: u32) -> std::ops::Range<u64> {
        let per_block = self.nand_pages_per_block();
        let bytes = u64::from(self.part.geometry.page_bytes) * u64::from(per_block);
        let start = u64::from(page / per_block) * bytes;
        start..start + bytes
    }

    // --- The buffer ---

    pub(super) fn nand_clear_buffer(&mut self) {
        if let Some(nand) = &mut self.nand {
            nand.buffer.fill(0xFF);
        }
    }

    /// Bytes beyond the buffer's end are dropped.
    pub(super) fn nand_load(&mut self, column: u64, index: u64, bytes: &[u8]) {
        let Some(nand) = &mut self.nand else { return };
        let at = usize::try_from((column & 0xFFF) + index).unwrap_or(usize::MAX);
        if let Some(room) = nand.buffer.get_mut(at..) {
            room.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = *byte);
        }
    }

    /// The buffer from a column on; with BUF = 0, the main bytes of this page and all that follow.
    pub(super) fn nand_read_buffer(&mut self, column: u32, first: u64, out: &mut [u8]) {
        let page_bytes = u64::from(self.part.geometry.page_bytes);
        self.stats.bytes_read += out.len() as u64;
        if self.roles.get(Role::Buffer).is_none() || self.role(Role::Buffer) {
            let at = u64::from(column & 0xFFF) + first;
            let buffer = self.nand.as_ref().map_or(&[][..], |nand| &nand.buffer);
            let bytes = buffer.get(usize::try_from(at).unwrap_or(usize::MAX)..).unwrap_or(&[]);
            out.iter_mut()
                .zip(bytes.iter().chain(std::iter::repeat(&0xFF)))
                .for_each(|(out, byte)| *out = *byte);
            return;
        }
        let (mut first, mut out) = (first, out);
        while !out.is_empty() {
            let (ahead, within) = ((first / page_bytes) as u32, (first % page_bytes) as usize);
            let start = self.nand.as_ref().map_or(0, |nand| nand.page);
            let pages = (self.array.len() / self.array.page_bytes() as u64) as u32;
            let (content, _) = self.nand_content(start.wrapping_add(ahead) % pages.max(1));
            let (now, later) = out.split_at_mut(out.len().min(page_bytes as usize - within));
            now.iter_mut().zip(content.iter().skip(within)).for_each(|(out, byte)| *out = *byte);
            first += now.len() as u64;
            out = later;
        }
    }

    /// What a read of a page gives: its bytes, and the code's verdict: 0 nothing wrong, 1 corrected, 2 not.
    fn nand_content(&mut self, page: u32) -> (Vec<u8>, u8) {
        let page_bytes = self.array.page_bytes();
        let mut truth = vec![0xFF; page_bytes];
        if self.role(Role::OtpEnable) {
            self.nand_otp_page(page, &mut truth);
            return (truth, 0);
        }
        let start = u64::from(self.nand_physical(page)) * page_bytes as u64;
        self.array.read(start, &mut truth);
        if self.reliability.is_perfect() {
            return (truth, 0);
        }
        let mut raw = truth.clone();
        self.add_errors(start, &mut raw, true);
        if self.role(Role::EccEnable) { self.nand_correct(&truth, raw) } else { (raw, 0) }
    }

    /// The on-die code: each step has its data and its share of the spare bytes.
    fn nand_correct(&mut self, truth: &[u8], mut raw: Vec<u8>) -> (Vec<u8>, u8) {
        let Some(spec) = self.part.nand.clone() else { return (raw, 0) };
        let main = self.part.geometry.page_bytes as usize;
        let step = (spec.ecc_step_bytes as usize).max(1);
        let steps = main.div_ceil(step).max(1);
        let share = spec.spare_bytes as usize / steps;
        let mut verdict = 0;
        for n in 0..steps {
            let places =
                (n * step..((n + 1) * step).min(main)).chain(main + n * share..main + (n + 1) * share);
            let differ = |at: usize| truth.get(at).zip(raw.get(at)).map_or(0, |(a, b)| (a ^ b).count_ones());
            let wrong: u32 = places.clone().map(differ).sum();
            if wrong > spec.ecc_bits {
                self.stats.uncorrectable_steps += 1;
                verdict = 2;
            } else if wrong > 0 {
                self.stats.corrected_bits += u64::from(wrong);
                verdict = verdict.max(1);
                for at in places {
                    if let Some((raw, truth)) = raw.get_mut(at).zip(truth.get(at)) {
                        *raw = *truth;
                    }
                }
            }
        }
        (raw, verdict)
    }

    fn nand_otp_page(&self, page: u32, out: &mut [u8]) {
        if page == 0 {
            // The ID and its complement, sixteen times (W25N01GV, section 8.2.4).
            let id = self.unique_id();
            let pair: Vec<u8> = id.iter().copied().chain(id.iter().map(|byte| !byte)).collect();
            let copies = pair.iter().cycle().take(pair.len() * 16);
            out.iter_mut().zip(copies).for_each(|(out, byte)| *out = *byte);
        } else if let Some(register) = page.checked_sub(OTP_FIRST_USER_PAGE) {
            self.security.read(u64::from(register) * self.security.unit_bytes() as u64, out);
        }
    }

    // --- Commands ---

    pub(super) fn nand_page_read(&mut self, address: u32) -> Result<(), Reason> {
        let page = self.nand_page_of(address)?;
        let ecc = self.role(Role::EccEnable);
        let timing = &self.part.timing;
        let span = if ecc { timing.page_read } else { timing.page_read_no_ecc };
        let time_ns = self.operation_time(span);
        self.begin(Event::PageRead, JobKind::NandRead { page }, time_ns)
    }

    pub(super) fn nand_complete_read(&mut self, page: u32) {
        let (content, verdict) = self.nand_content(page);
        self.set_role(Role::Ecc0, verdict == 1);
        self.set_role(Role::Ecc1, verdict == 2);
        if let Some(nand) = &mut self.nand {
            nand.buffer = content;
            nand.page = page;
            if verdict == 2 {
                nand.last_failure = page as u16;
            }
        }
    }

    pub(super) fn nand_program(&mut self, address: u32) -> Result<(), Reason> {
        if !self.modes.wel {
            return Err(Reason::WriteDisabled);
        }
        let page = self.nand_page_of(address)?;
        self.set_role(Role::ProgramFail, false);
        let otp = self.role(Role::OtpEnable);
        let locked = otp && (self.role(Role::OtpLock) || page < OTP_FIRST_USER_PAGE);
        if locked || (!otp && self.is_protected(&self.nand_block_range(page))) {
            self.set_role(Role::ProgramFail, true);
            self.modes.wel = false;
            return Err(Reason::Protected);
        }
        let time_ns = self.program_time(0, u64::from(self.part.geometry.page_bytes));
        self.begin(Event::Program, JobKind::NandProgram { page }, time_ns)
    }

    pub(super) fn nand_complete_program(&mut self, page: u32) {
        let buffer = self.nand.as_ref().map(|nand| nand.buffer.clone()).unwrap_or_default();
        self.stats.programs += 1;
        self.stats.bytes_programmed += buffer.len() as u64;
        if self.role(Role::OtpEnable) {
            if let Some(register) = page.checked_sub(OTP_FIRST_USER_PAGE) {
                let at = u64::from(register) * self.security.unit_bytes() as u64;
                self.security.program(at, &buffer, self.now_ns);
            }
            return;
        }
        let physical = self.nand_physical(page);
        let address = u64::from(physical) * self.array.page_bytes() as u64;
        let (place, _) = self.page_place(address);
        let bad = self.bad_blocks().binary_search(&place.block).is_ok();
        let cycles = self.array.unit(place.block).map_or(0, |unit| unit.cycles);
        let worn = !self.reliability.is_perfect();
        let stuck = if worn { self.reliability.program_fails(place, cycles) } else { None };
        let mut data = buffer;
        let lost = stuck.map_or(0, |stuck| self.reliability.apply_stuck(&stuck, place, 0, &mut data));
        if !bad {
            self.array.program(address, &data, self.now_ns);
        }
        if bad || lost > 0 {
            self.stats.failed += 1;
            self.set_role(Role::ProgramFail, true);
        }
    }

    pub(super) fn nand_interrupt_program(&mut self, page: u32, fraction: f64, draw: u64) {
        let buffer = self.nand.as_ref().map(|nand| nand.buffer.clone()).unwrap_or_default();
        if self.role(Role::OtpEnable) {
            return;
        }
        let address = u64::from(self.nand_physical(page)) * self.array.page_bytes() as u64;
        self.spoil_page(address, &buffer, fraction, draw);
    }

    pub(super) fn nand_erase(&mut self, address: u32) -> Result<(), Reason> {
        if !self.modes.wel {
            return Err(Reason::WriteDisabled);
        }
        let page = self.nand_page_of(address)?;
        self.set_role(Role::EraseFail, false);
        let unit = self.nand_physical(page) / self.nand_pages_per_block();
        let bad = self.bad_blocks().binary_search(&unit).is_ok();
        if bad || self.is_protected(&self.nand_block_range(page)) {
            self.set_role(Role::EraseFail, true);
            self.modes.wel = false;
            return Err(Reason::Protected);
        }
        let span = self.part.timing.erase.get(&EraseUnit::NandBlock).copied().unwrap_or_default();
        let time_ns = self.erase_time(unit, 1, span);
        self.begin(Event::Erase, JobKind::Erase { first: unit, count: 1 }, time_ns)
    }

    /// The register of a feature address: the high nibble tells.
    fn nand_register(address: u8) -> Option<Reg> {
        match address & 0xF0 {
            0xA0 => Some(Reg::NandProtection),
            0xB0 => Some(Reg::NandConfig),
            0xC0 => Some(Reg::NandStatus),
            _ => None,
        }
    }

    pub(super) fn nand_feature(&self, address: u8) -> u8 {
        Chip::nand_register(address).map_or(0, |register| self.register(register))
    }

    pub(super) fn nand_set_feature(&mut self, address: u8) -> Result<(), Reason> {
        let register = Chip::nand_register(address).ok_or(Reason::NoSuchPlace)?;
        if register == Reg::NandProtection && self.modes.wp_low && self.role(Role::Srp0) {
            return Err(Reason::RegistersProtected);
        }
        let value = self.small[0];
        self.registers.write(&self.part, register, value, false);
        Ok(())
    }

    /// A1h: the address is the logical and the physical block.
    pub(super) fn nand_swap_blocks(&mut self, address: u32) -> Result<(), Reason> {
        if !self.modes.wel {
            return Err(Reason::WriteDisabled);
        }
        let (logical, physical) = ((address >> 16) as u16, address as u16);
        let (blocks, most) =
            (self.array.unit_count(), self.part.nand.as_ref().map_or(0, |spec| spec.links as usize));
        if u32::from(logical) >= blocks || u32::from(physical) >= blocks {
            return Err(Reason::NoSuchPlace);
        }
        let Some(nand) = &mut self.nand else { return Err(Reason::NoSuchPlace) };
        self.modes.wel = false;
        if nand.links.len() >= most {
            return Err(Reason::Locked);
        }
        nand.links.push((logical, physical));
        let full = nand.links.len() == most;
        self.set_role(Role::LinksFull, full);
        Ok(())
    }

    pub(super) fn nand_read_links(&self, first: u64, out: &mut [u8]) {
        let Some(nand) = &self.nand else { return out.fill(0xFF) };
        let most = self.part.nand.as_ref().map_or(0, |spec| spec.links as usize);
        let bytes: Vec<u8> = (0..most)
            .flat_map(|n| match nand.links.get(n) {
                // The two highest bits of the logical block: enabled, still valid (W25N01GV, section 8.2.8).
                Some((logical, physical)) => {
                    let [a, b] = (logical | 0x8000).to_be_bytes();
                    let [c, d] = physical.to_be_bytes();
                    [a, b, c, d]
                }
                None => [0; 4],
            })
            .collect();
        out.iter_mut()
            .zip(bytes.iter().skip(first as usize).chain(std::iter::repeat(&0)))
            .for_each(|(o, b)| *o = *b);
    }

    pub(super) fn nand_last_failure(&self, first: u64, out: &mut [u8]) {
        let bytes = self.nand.as_ref().map_or([0xFF; 2], |nand| nand.last_failure.to_be_bytes());
        let rest = bytes.iter().skip(first.min(2) as usize).chain(std::iter::repeat(&0xFF));
        out.iter_mut().zip(rest).for_each(|(out, byte)| *out = *byte);
    }
}
