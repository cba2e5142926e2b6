//! What takes time: begun at the rise of CS#, carried out when its time is over, half carried out when it is interrupted.

use super::planted::planted;
use super::{Chip, Reason};
use crate::array::Array;
use crate::op::{Op, Reg};
use crate::part::Span;
use crate::regs::Role;
use crate::reliability::Marginal;
use crate::states::{Event, State};
use serde::{Deserialize, Serialize};

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) enum JobKind {
    /// The first `count` registers of the command of this opcode.
    WriteRegisters {
        opcode: u8,
        count: u8,
        values: [u8; 2],
    },
    /// The page buffer's first `bytes` go to `base`.
    Program {
        base: u64,
        bytes: u32,
        security: bool,
    },
    /// Units of the array.
    Erase {
        first: u32,
        count: u32,
    },
    EraseSecurity {
        register: u32,
    },
    NandRead {
        page: u32,
    },
    NandProgram {
        page: u32,
    },
}

/// A job under way.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) kind: JobKind,
    /// How long all of it takes.
    pub(super) total_ns: u64,
    /// How long what was left took, when it was begun or resumed last.
    pub(super) left_ns: u64,
    pub(super) begun_ns: u64,
}

impl Job {
    /// The share that is done, 0 to 1, when `run_ns` of the last stretch are over.
    fn fraction(&self, run_ns: u64) -> f64 {
        let done = self.total_ns.saturating_sub(self.left_ns).saturating_add(run_ns.min(self.left_ns));
        if self.total_ns == 0 { 1.0 } else { done as f64 / self.total_ns as f64 }
    }
}

/// A job that waits for a resume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Suspended {
    pub(super) job: Job,
    /// The page buffer of a program.
    pub(super) latch: Vec<u8>,
}

impl Suspended {
    /// Whether an address is in what is being erased or programmed.
    pub(super) fn covers(&self, address: u64, array: &Array) -> bool {
        match self.job.kind {
            JobKind::Erase { first, count } => {
                let unit = address / array.unit_bytes() as u64;
                (u64::from(first)..u64::from(first) + u64::from(count)).contains(&unit)
            }
            JobKind::Program { base, bytes, security: false } => {
                (base..base + u64::from(bytes)).contains(&address)
            }
            _ => false,
        }
    }
}

impl Chip {
    /// A time of a span: typical, or drawn where the error model spreads times.
    pub(super) fn operation_time(&mut self, span: Span) -> u64 {
        if self.reliability.is_perfect() {
            return span.typical_ns;
        }
        let draw = self.next_draw();
        self.reliability.erase_time_ns(0, 0, span.typical_ns, span.max_ns, false, draw)
    }

    /// The time of a program of so many bytes: the page's, or the first byte's and that of each further one.
    pub(super) fn program_time(&mut self, base: u64, bytes: u64) -> u64 {
        let timing = &self.part.timing;
        let mut span = timing.page_program;
        if timing.first_byte.typical_ns > 0 {
            let more = bytes.saturating_sub(1);
            let of =
                |first: u64, next: u64, page: u64| first.saturating_add(next.saturating_mul(more)).min(page);
            span.typical_ns = of(timing.first_byte.typical_ns, timing.next_byte.typical_ns, span.typical_ns);
            span.max_ns = of(timing.first_byte.max_ns, timing.next_byte.max_ns, span.max_ns);
        }
        if self.reliability.is_perfect() {
            return span.typical_ns;
        }
        let draw = self.next_draw();
        let (place, _) = self.page_place(base);
        let cycles = self.array.unit(place.block).map_or(0, |unit| unit.cycles);
        self.reliability.program_time_ns(place, cycles, span.typical_ns, span.max_ns, draw)
    }

    /// The time of an erase: drawn once, with the most cycles of its units; that of a blank block if all are blank.
    pub(super) fn erase_time(&mut self, first: u32, count: u32, span: Span) -> u64 {
        if self.reliability.is_perfect() {
            return span.typical_ns;
        }
        let draw = self.next_draw();
        let units = (first..first.saturating_add(count)).filter_map(|unit| self.array.unit(unit));
        let (cycles, blank) =
            units.fold((0, true), |(most, blank), unit| (most.max(unit.cycles), blank && unit.is_blank()));
        self.reliability.erase_time_ns(first, cycles, span.typical_ns, span.max_ns, blank, draw)
    }

    /// The registers that a command writes, as many as it had data for.
    fn registers_of(&self, opcode: u8, count: u8) -> &'static [Reg] {
        match self.part.command(opcode).map(|spec| spec.op) {
            Some(Op::WriteRegisters(registers)) => registers.get(..usize::from(count)).unwrap_or(registers),
            _ => &[],
        }
    }

    /// Begins a job of `time_ns`.
    pub(super) fn begin(&mut self, event: Event, kind: JobKind, time_ns: u64) -> Result<(), Reason> {
        self.job = Some(Job { kind, total_ns: time_ns, left_ns: time_ns, begun_ns: self.now_ns });
        if self.go(event, time_ns) {
            return Ok(());
        }
        self.job = None;
        Err(Reason::Suspended)
    }

    /// The time of the present state is over.
    pub(super) fn finish(&mut self) {
        let before = self.state;
        if !self.go(Event::Done, 0) {
            return;
        }
        match before {
            State::Resetting => self.wake(),
            State::EraseSuspending | State::ProgramSuspending => {
                let job = self.job.take();
                self.suspended = job.map(|job| Suspended { job, latch: self.latch.clone() });
            }
            State::PowerUp | State::Releasing => {}
            _ => {
                if let Some(job) = self.job.take() {
                    self.stats.busy_ns += job.left_ns;
                    self.complete(job.kind);
                }
            }
        }
    }

    fn complete(&mut self, kind: JobKind) {
        match kind {
            JobKind::WriteRegisters { opcode, count, values } => {
                self.store_registers(self.registers_of(opcode, count), values, false);
            }
            JobKind::Program { base, bytes, security } => {
                self.complete_program(base, bytes as usize, security);
            }
            JobKind::Erase { first, count } => self.complete_erase(first, count),
            JobKind::EraseSecurity { register } => self.security.erase_unit(register, self.now_ns),
            JobKind::NandRead { page } => return self.nand_complete_read(page),
            JobKind::NandProgram { page } => self.nand_complete_program(page),
        }
        let words = self.modes.aai_at.is_some() && !planted!(self, WordBreaksWel);
        if !words && !planted!(self, WelStays) {
            self.modes.wel = false;
        }
        self.modes.wel_volatile = false;
    }

    fn complete_program(&mut self, base: u64, bytes: usize, security: bool) {
        let bytes = bytes.min(self.latch.len());
        let latch = self.latch.get(..bytes).unwrap_or(&[]);
        self.stats.programs += 1;
        if security {
            self.security.program(base, latch, self.now_ns);
            return;
        }
        self.stats.bytes_programmed += latch.iter().filter(|byte| **byte != 0xFF).count() as u64;
        if planted!(self, ProgramOverwrites) {
            self.array.write(base, latch, self.now_ns);
            return;
        }
        if self.reliability.is_perfect() {
            self.array.program(base, latch, self.now_ns);
            return;
        }
        let (place, offset) = self.page_place(base);
        let cycles = self.array.unit(place.block).map_or(0, |unit| unit.cycles);
        let Some(stuck) = self.reliability.program_fails(place, cycles) else {
            self.array.program(base, latch, self.now_ns);
            return;
        };
        let mut data = latch.to_vec();
        let lost = self.reliability.apply_stuck(&stuck, place, offset, &mut data);
        self.array.program(base, &data, self.now_ns);
        if lost > 0 {
            self.stats.failed += 1;
            self.set_role(Role::ProgramError, true);
        }
    }

    fn complete_erase(&mut self, first: u32, count: u32) {
        let worn = !self.reliability.is_perfect();
        for unit in first..first.saturating_add(count) {
            self.array.erase_unit(unit, self.now_ns);
            self.stats.units_erased += 1;
            let cycles = self.array.unit(unit).map_or(0, |unit| unit.cycles);
            let stuck = if worn { self.reliability.erase_fails(unit, cycles) } else { None };
            if let Some(stuck) = stuck {
                self.leave_stuck(unit, &stuck);
                self.stats.failed += 1;
                self.set_role(Role::EraseError, true);
                self.set_role(Role::EraseFail, true);
            }
        }
    }

    /// Cells that an erase did not bring back to 1.
    fn leave_stuck(&mut self, unit: u32, stuck: &crate::reliability::StuckBits) {
        let (unit_bytes, page_bytes) = (self.array.unit_bytes() as u64, self.array.page_bytes());
        for page in 0..unit_bytes / page_bytes as u64 {
            let address = u64::from(unit) * unit_bytes + page * page_bytes as u64;
            let (place, _) = self.page_place(address);
            let reliability = std::sync::Arc::clone(&self.reliability);
            let mut blank = vec![0xFF; page_bytes];
            if reliability.apply_stuck(stuck, place, 0, &mut blank) > 0 {
                self.array.change(address, page_bytes, |data, _| data.copy_from_slice(&blank));
            }
        }
    }

    // --- Suspend, resume, reset ---

    /// Interrupts an erase or program. What ran for less than the resume-to-suspend interval made no progress.
    pub(super) fn suspend(&mut self) -> Result<(), Reason> {
        let run_ns = self.job.map_or(0, |job| self.now_ns.saturating_sub(job.begun_ns));
        if !self.go(Event::Suspend, self.part.timing.suspend_ns) {
            return Err(Reason::NothingToSuspend);
        }
        let least = self.part.timing.resume_to_suspend_ns;
        if let Some(job) = &mut self.job {
            let credited =
                if run_ns >= least || planted!(self, SuspendWithoutProgressRule) { run_ns } else { 0 };
            self.stats.busy_ns += run_ns;
            job.left_ns = job.left_ns.saturating_sub(credited);
        }
        self.stats.suspends += 1;
        Ok(())
    }

    pub(super) fn resume(&mut self) -> Result<(), Reason> {
        let mut left_ns = self.suspended.as_ref().map_or(0, |suspended| suspended.job.left_ns);
        if planted!(self, ResumeStartsOver) {
            left_ns = self.suspended.as_ref().map_or(0, |suspended| suspended.job.total_ns);
        }
        if planted!(self, ResumeForgets) {
            left_ns = 0;
        }
        if self.suspended.is_none() || !self.go(Event::Resume, left_ns) {
            return Err(Reason::NothingToSuspend);
        }
        if let Some(Suspended { mut job, latch }) = self.suspended.take() {
            job.begun_ns = self.now_ns;
            self.job = Some(job);
            self.latch = latch;
        }
        Ok(())
    }

    pub(super) fn reset(&mut self) -> Result<(), Reason> {
        let erasing = matches!(self.state, State::Erase | State::ChipErase | State::EraseSuspending);
        let timing = &self.part.timing;
        let time_ns = if erasing { timing.reset_erasing_ns } else { timing.reset_ns };
        self.interrupt_all();
        if self.go(Event::Reset, time_ns) { Ok(()) } else { Err(Reason::NotReady) }
    }

    /// Power goes, or a reset comes: what is under way, and what is suspended, stays half done.
    pub(super) fn interrupt_all(&mut self) {
        if let Some(job) = self.job.take() {
            let run_ns = if matches!(self.state, State::EraseSuspending | State::ProgramSuspending) {
                0
            } else {
                self.now_ns.saturating_sub(job.begun_ns)
            };
            self.interrupt(job.kind, job.fraction(run_ns));
        }
        if let Some(Suspended { job, latch }) = self.suspended.take() {
            self.latch = latch;
            self.interrupt(job.kind, job.fraction(0));
        }
    }

    fn interrupt(&mut self, kind: JobKind, fraction: f64) {
        if planted!(self, PowerLossForgets) {
            return;
        }
        if planted!(self, PowerLossFinishes) {
            return self.complete(kind);
        }
        self.stats.interrupted += 1;
        let draw = self.next_draw();
        match kind {
            // Bits change one after another: each changed bit is old or new.
            JobKind::WriteRegisters { opcode, count, values } => {
                let registers = self.registers_of(opcode, count);
                let mut halfway = values;
                for (at, (register, value)) in registers.iter().zip(&mut halfway).enumerate() {
                    // Not the working value: what 50h put there was never stored.
                    let old = self.registers.stored(*register);
                    let luck = |bit: u64| crate::rng::mix(self.seed ^ draw << 8 ^ (at as u64) << 4 ^ bit);
                    let done = |bit: &u64| (luck(*bit) >> 11) as f64 / (1u64 << 53) as f64 <= fraction;
                    let mask = (0..8).filter(done).fold(0u8, |mask, bit| mask | 1 << bit);
                    *value = old & !mask | *value & mask;
                }
                self.store_registers(registers, halfway, false);
            }
            JobKind::Program { base, bytes, security } => {
                self.interrupt_program(base, bytes, security, fraction, draw);
            }
            JobKind::Erase { first, count } => {
                for unit in first..first.saturating_add(count) {
                    self.interrupt_erase(unit, fraction, draw);
                }
            }
            JobKind::EraseSecurity { register } => {
                if fraction > 0.5 {
                    self.security.erase_unit(register, self.now_ns);
                }
            }
            JobKind::NandRead { .. } => {}
            JobKind::NandProgram { page } => self.nand_interrupt_program(page, fraction, draw),
        }
    }

    fn interrupt_program(&mut self, base: u64, bytes: u32, security: bool, fraction: f64, draw: u64) {
        let bytes = (bytes as usize).min(self.latch.len());
        let data = self.latch.get(..bytes).unwrap_or(&[]).to_vec();
        if security {
            // The area is small and the model knows no places there: each byte is there or not.
            let there = (data.len() as f64 * fraction) as usize;
            self.security.program(base, data.get(..there).unwrap_or(&[]), self.now_ns);
            return;
        }
        self.spoil_page(base, &data, fraction, draw);
    }

    /// A page after part of a program of `data` at `address`, which lies within one page of the array.
    pub(super) fn spoil_page(&mut self, address: u64, data: &[u8], fraction: f64, draw: u64) {
        let (place, offset) = self.page_place(address);
        let page_bytes = self.array.page_bytes();
        let start = address - offset as u64;
        let mut old = vec![0; page_bytes];
        self.array.read(start, &mut old);
        let mut new = old.clone();
        new.iter_mut().skip(offset).zip(data).for_each(|(new, data)| *new &= data);
        let (page, marginal) = self.reliability.interrupted_program(place, &old, &new, fraction, draw);
        let now_ns = self.now_ns;
        self.array.change(start, page_bytes, |cells, meta| {
            cells.iter_mut().zip(&page).for_each(|(cell, left)| *cell = *left);
            meta.marginal = meta.marginal.merged_with(marginal);
            meta.written_at_ns = now_ns;
            meta.epoch += 1;
            meta.programs += 1;
        });
    }

    pub(super) fn interrupt_erase(&mut self, unit: u32, fraction: f64, draw: u64) {
        let reliability = std::sync::Arc::clone(&self.reliability);
        let pages = (self.array.unit_bytes() / self.array.page_bytes()) as u32;
        let spoil = |page: u32, data: &mut [u8]| -> Marginal {
            let place = crate::reliability::PagePlace { block: unit, page: unit * pages + page };
            reliability.interrupted_erase(place, data, fraction, draw)
        };
        self.array.spoil_unit(unit, spoil, self.now_ns);
    }
}
