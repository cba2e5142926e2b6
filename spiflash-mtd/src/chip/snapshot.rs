//! All of a chip but its array: to be kept and restored, also in the middle of a frame.
//!
//! The invariant: a chip that is restored from its state, with the same array, does all that follows as the chip that gave it.

use super::jobs::{Job, JobKind, Suspended};
use super::nand::NandState;
use super::{Chip, ChipError, Modes, Reason, SMALL_BYTES, Stats};
use crate::array::{Array, Unit};
use crate::frame::FrameState;
use crate::regs::Registers;
use crate::states::State;
use serde::{Deserialize, Serialize};

/// The state. Its fields are the chip's business; it goes to and from any serde format.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChipState {
    /// The part's name.
    pub part: String,
    seed: u64,
    frame: FrameState,
    heard: Result<(), Reason>,
    small: [u8; SMALL_BYTES],
    latch: Vec<u8>,
    carry: u8,
    registers: Registers,
    security: Vec<Unit>,
    locks: Vec<bool>,
    nand: Option<NandState>,
    modes: Modes,
    state: State,
    now_ns: u64,
    until_ns: u64,
    job: Option<Job>,
    suspended: Option<Suspended>,
    clock_hz: u32,
    clock_rest: u64,
    polls: u32,
    poll_skip: Option<u32>,
    cut_at_ns: Option<u64>,
    draws: u64,
    stats: Stats,
}

/// What survives the loss of power, besides the array.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lasting {
    /// The part's name.
    pub part: String,
    /// The seed.
    pub seed: u64,
    registers: Registers,
    security: Vec<Unit>,
    nand: Option<NandState>,
    /// The chip's time: data ages from then on.
    pub now_ns: u64,
    draws: u64,
    stats: Stats,
}

fn units(array: &Array) -> Vec<Unit> {
    (0..array.unit_count()).filter_map(|unit| array.unit(unit).cloned()).collect()
}

impl Chip {
    /// What survives the loss of power, besides the array.
    pub fn lasting(&self) -> Lasting {
        Lasting {
            part: self.part.name.clone(),
            seed: self.seed,
            registers: self.registers,
            security: units(&self.security),
            nand: self.nand.clone(),
            now_ns: self.now_ns,
            draws: self.draws,
            stats: self.stats.clone(),
        }
    }

    /// Whether [`Chip::lasting`] would give the same registers and security data as it did with `last`. Time, statistics and
    /// the NAND's buffer are not looked at.
    pub fn lasts_as(&self, last: &Lasting) -> bool {
        let same_unit = |(unit, content): (usize, &Unit)| self.security.unit(unit as u32) == Some(content);
        let links = |nand: &Option<NandState>| nand.as_ref().map(NandState::links_len);
        self.registers.same_stored(&last.registers)
            && links(&self.nand) == links(&last.nand)
            && last.security.iter().enumerate().all(same_unit)
    }

    /// A chip that gets its power back, with what [`Chip::lasting`] gave; the array is restored through [`Chip::array_mut`].
    ///
    /// # Errors
    /// What is not of this part, or has other lengths; the chip is as it was.
    pub fn revive(&mut self, lasting: Lasting) -> Result<(), ChipError> {
        let wrong = |what: String| Err(ChipError::State { part: self.part.name.clone(), what });
        if lasting.part != self.part.name {
            return wrong(format!("it is one of {}", lasting.part));
        }
        if lasting.seed != self.seed {
            return wrong(format!("its seed is {}, not {}", lasting.seed, self.seed));
        }
        let same_nand = match (&lasting.nand, &self.nand) {
            (Some(theirs), Some(ours)) => theirs.fits(ours),
            (theirs, ours) => theirs.is_none() && ours.is_none(),
        };
        if lasting.security.len() != self.security.unit_count() as usize
            || !lasting.security.iter().all(|unit| self.security.fits(unit))
            || !same_nand
        {
            return wrong("it has other security registers, or is no NAND as this one is".into());
        }
        self.set_power(false);
        for (unit, content) in lasting.security.into_iter().enumerate() {
            self.security.restore_unit(unit as u32, content);
        }
        (self.registers, self.nand) = (lasting.registers, lasting.nand);
        (self.now_ns, self.draws, self.stats) = (lasting.now_ns, lasting.draws, lasting.stats);
        self.set_power(true);
        self.advance_to(self.until_ns);
        Ok(())
    }

    /// Everything but the array.
    pub fn save(&self) -> ChipState {
        ChipState {
            part: self.part.name.clone(),
            seed: self.seed,
            frame: self.frame.state(),
            heard: self.heard,
            small: self.small,
            latch: self.latch.clone(),
            carry: self.carry,
            registers: self.registers,
            security: units(&self.security),
            locks: self.locks.clone(),
            nand: self.nand.clone(),
            modes: self.modes,
            state: self.state,
            now_ns: self.now_ns,
            until_ns: self.until_ns,
            job: self.job,
            suspended: self.suspended.clone(),
            clock_hz: self.clock_hz,
            clock_rest: self.clock_rest,
            polls: self.polls,
            poll_skip: self.poll_skip,
            cut_at_ns: self.cut_at_ns,
            draws: self.draws,
            stats: self.stats.clone(),
        }
    }

    /// Goes to a state of [`Chip::save`]; the array is restored through [`Chip::array_mut`].
    ///
    /// # Errors
    /// A state of another part or seed, or one whose lengths do not fit; the chip is as it was.
    pub fn restore(&mut self, state: ChipState) -> Result<(), ChipError> {
        let wrong = |what: &str| Err(ChipError::State { part: self.part.name.clone(), what: what.into() });
        if state.part != self.part.name {
            return wrong(&format!("it is one of {}", state.part));
        }
        if state.seed != self.seed {
            return wrong(&format!("its seed is {}, not {}", state.seed, self.seed));
        }
        if let Some(what) = self.misfit(&state) {
            return wrong(what);
        }
        for (unit, content) in state.security.into_iter().enumerate() {
            self.security.restore_unit(unit as u32, content);
        }
        self.frame.restore(state.frame);
        (self.small, self.latch, self.carry) = (state.small, state.latch, state.carry);
        (self.registers, self.locks, self.nand, self.modes) =
            (state.registers, state.locks, state.nand, state.modes);
        (self.state, self.now_ns, self.until_ns) = (state.state, state.now_ns, state.until_ns);
        (self.job, self.suspended) = (state.job, state.suspended);
        (self.clock_hz, self.clock_rest, self.polls) = (state.clock_hz, state.clock_rest, state.polls);
        (self.poll_skip, self.cut_at_ns) = (state.poll_skip, state.cut_at_ns);
        (self.draws, self.stats) = (state.draws, state.stats);
        self.heard = state.heard;
        Ok(())
    }

    /// What of a state, which may come from a file that anyone wrote, this chip could not go on with.
    fn misfit(&self, state: &ChipState) -> Option<&'static str> {
        if state.latch.len() != self.latch.len()
            || state.security.len() != self.security.unit_count() as usize
            || !state.security.iter().all(|unit| self.security.fits(unit))
        {
            return Some("its page buffer or its security registers have another size");
        }
        let size_bytes = self.part.geometry.size_bytes;
        let locks = self.part.locks.as_ref().map_or(0, |rules| rules.units(size_bytes).len());
        // Before its first power-up a chip has none.
        if !state.locks.is_empty() && state.locks.len() != locks {
            return Some("it has another number of locks");
        }
        match (&state.nand, &self.nand) {
            (None, None) => {}
            (Some(theirs), Some(ours)) if theirs.fits(ours) => {}
            (Some(_), Some(_)) => return Some("its buffer or its bad blocks are others"),
            _ => return Some("one is a NAND and the other is not"),
        }
        if !state.frame.is_sound() || state.modes.burst_bytes.is_some_and(|bytes| !(8..=64).contains(&bytes))
        {
            return Some("its frame or its modes are none that a chip can be in");
        }
        let jobs = state.job.iter().chain(state.suspended.iter().map(|suspended| &suspended.job));
        if jobs.into_iter().any(|job| !self.has_place_for(job.kind)) {
            return Some("what is under way is outside its memory");
        }
        if state.suspended.as_ref().is_some_and(|suspended| suspended.latch.len() != self.latch.len()) {
            return Some("the page buffer of what is suspended has another size");
        }
        let counters = [state.draws, u64::from(state.polls) << 31, state.clock_rest << 31];
        if counters.into_iter().any(|count| count > u64::MAX / 2) {
            return Some("one of its counters is at its end");
        }
        None
    }

    fn has_place_for(&self, kind: JobKind) -> bool {
        let pages = self.array.len() / self.array.page_bytes() as u64;
        match kind {
            JobKind::WriteRegisters { .. } => true,
            JobKind::Program { base, bytes, security } => {
                let size = if security { self.security.len() } else { self.array.len() };
                base.checked_add(u64::from(bytes)).is_some_and(|end| end <= size)
            }
            JobKind::Erase { first, count } => {
                first.checked_add(count).is_some_and(|end| end <= self.array.unit_count())
            }
            JobKind::EraseSecurity { register } => register < self.security.unit_count(),
            JobKind::NandRead { page } | JobKind::NandProgram { page } => u64::from(page) < pages,
        }
    }
}
