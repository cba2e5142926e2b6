//! The write buffer of one zone, and how far the zone is programmed.
//!
//! Bytes enter in order of arrival. Those of a unit stay until the unit is programmed. The invariant: `used` is the bytes inside
//! as of the last entry, and exceeds the buffer only where nothing that could leave is on the way (a unit with a hole).

use super::planted::planted;
use std::collections::VecDeque;

/// A unit whose program is on the way.
#[derive(Debug, Clone, Copy)]
struct Leaving {
    unit: u64,
    bytes: u64,
    done: u64,
}

/// A unit that is not complete.
#[derive(Debug, Clone, Copy)]
struct Partial {
    unit: u64,
    bytes: u64,
}

/// A zone's share of the controller's memory, and its state on the dies.
#[derive(Debug, Default)]
pub(crate) struct ZoneState {
    /// Bytes of the zone written by the host: reads beyond find nothing.
    pub(crate) written: u64,
    /// Units, from the zone's start, that a program has touched.
    pub(crate) programmed_units: u64,
    /// Units that still want their erase before the next program (deferred erases).
    pub(crate) stale_units: u64,
    /// No program or erase of the zone may start before.
    pub(crate) not_before: u64,
    /// When the last program reserved for the zone ends.
    pub(crate) last_program: u64,
    /// When the last byte that was let in had arrived: the next comes after it.
    pub(crate) entered: u64,
    used: u64,
    /// Sorted by `done`. The space of the first `freed` has been given away already.
    leaving: VecDeque<Leaving>,
    freed: usize,
    partial: Vec<Partial>,
    #[cfg(test)]
    pub(crate) mutant: Option<super::planted::Mutant>,
}

impl ZoneState {
    /// Waits, from `ready`, until `bytes` fit into `capacity`, and takes the space. Returns when they may enter.
    pub(crate) fn enter(&mut self, now: u64, ready: u64, bytes: u64, capacity: u64) -> u64 {
        while self.leaving.front().is_some_and(|unit| unit.done <= now) {
            let Some(unit) = self.leaving.pop_front() else { break };
            match self.freed.checked_sub(1) {
                Some(freed) => self.freed = freed,
                None => self.used = self.used.saturating_sub(unit.bytes),
            }
        }
        let mut at = ready.max(self.entered);
        while let Some(unit) = self.leaving.get(self.freed) {
            let fits = self.used.saturating_add(bytes) <= capacity || planted!(self, BufferNeverFull);
            if fits && unit.done > at {
                break;
            }
            at = at.max(unit.done);
            self.used = self.used.saturating_sub(unit.bytes);
            self.freed += 1;
        }
        self.used = self.used.saturating_add(bytes);
        at
    }

    /// Adds `bytes` to `unit`; whether that completes its `unit_bytes`.
    pub(crate) fn collect(&mut self, unit: u64, bytes: u64, unit_bytes: u64) -> bool {
        let at = self.partial.iter().position(|partial| partial.unit == unit);
        let collected = match at.and_then(|at| self.partial.get_mut(at)) {
            Some(_) if planted!(self, PartialUnitLost) => bytes,
            Some(partial) => {
                partial.bytes = partial.bytes.saturating_add(bytes);
                partial.bytes
            }
            None => bytes,
        };
        let complete = collected >= unit_bytes;
        match at {
            Some(at) if complete => {
                self.partial.swap_remove(at);
            }
            None if !complete => self.partial.push(Partial { unit, bytes }),
            _ => {}
        }
        complete
    }

    /// `bytes` of `unit` leave the buffer at `done`.
    pub(crate) fn leave(&mut self, unit: u64, bytes: u64, done: u64) {
        let later = self.leaving.iter().rev().take_while(|other| other.done > done).count();
        let at = (self.leaving.len() - later).max(self.freed);
        self.leaving.insert(at, Leaving { unit, bytes, done });
    }

    /// Whether `unit` is in the buffer at `at`.
    pub(crate) fn holds(&self, unit: u64, at: u64) -> bool {
        if planted!(self, BufferNotRead) {
            return false;
        }
        self.partial.iter().any(|partial| partial.unit == unit)
            || self.leaving.iter().rev().take_while(|other| other.done > at).any(|other| other.unit == unit)
    }

    /// Takes out a unit that is not complete: its number and bytes.
    pub(crate) fn take_partial(&mut self) -> Option<(u64, u64)> {
        self.partial.pop().map(|partial| (partial.unit, partial.bytes))
    }

    /// Empties the buffer and the zone; what is on the way to the dies gets there.
    pub(crate) fn clear(&mut self) {
        self.written = 0;
        self.programmed_units = 0;
        self.used = 0;
        self.leaving.clear();
        self.freed = 0;
        self.partial.clear();
    }
}
