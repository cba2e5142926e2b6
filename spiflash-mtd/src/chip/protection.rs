//! What may be changed: block-protection ranges, single locks, register protection.

use super::planted::planted;
use super::{Chip, Reason};
use crate::op::Reg;
use crate::protect::RangeBits;
use crate::regs::Role;
use std::ops::Range;

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Chip {
    /// The block-protection bits, as they are now.
    pub fn range_bits(&self) -> RangeBits {
        let roles = [Role::Bp0, Role::Bp1, Role::Bp2, Role::Bp3, Role::Bp4];
        let bp = roles.iter().enumerate().fold(0, |bp, (bit, role)| bp | u8::from(self.role(*role)) << bit);
        let cmp = self.role(Role::Cmp) && !planted!(self, ComplementIgnored);
        RangeBits { bp, tb: self.role(Role::Tb), sec: self.role(Role::Sec), cmp }
    }

    /// The range that the block-protection bits protect; empty for none, or when single locks are in force.
    pub fn protected_range(&self) -> Range<u64> {
        match &self.part.ranges {
            Some(rules) if !self.locks_in_force() => {
                rules.range(self.part.geometry.size_bytes, self.range_bits())
            }
            _ => 0..0,
        }
    }

    /// Whether single locks protect, and not a range.
    fn locks_in_force(&self) -> bool {
        let Some(rules) = self.part.locks.as_ref().filter(|_| !planted!(self, LocksIgnored)) else {
            return false;
        };
        rules.selected_by().is_none() || self.lock_bit.is_some_and(|at| self.registers.bit(at))
    }

    /// The single locks: ranges, and whether each is locked.
    pub fn locks(&self) -> Vec<(Range<u64>, bool)> {
        self.lock_units.iter().cloned().zip(self.locks.iter().copied()).collect()
    }

    pub(super) fn reset_locks(&mut self) {
        if let Some(rules) = &self.part.locks {
            self.locks = vec![rules.power_up_locked(); self.lock_units.len()];
        }
    }

    /// The single lock of an address.
    pub(super) fn lock_of(&self, address: u64) -> Option<usize> {
        self.lock_units.iter().position(|unit| unit.contains(&address))
    }

    /// Whether any byte of the range is protected against program and erase.
    pub fn is_protected(&self, range: &Range<u64>) -> bool {
        if !self.locks_in_force() {
            return overlap(range, &self.protected_range());
        }
        self.lock_units.iter().zip(&self.locks).any(|(unit, locked)| *locked && overlap(unit, range))
    }

    /// Whether a status or configuration register may be written. Winbond W25Q128JV, section 7.1.7 (SRP); SST25VF016B,
    /// "Block Protection Lock-Down".
    pub(super) fn may_write_registers(&self, registers: &[Reg]) -> Result<(), Reason> {
        let guarded = is_guarded(registers);
        let (srp0, srp1) = (self.role(Role::Srp0), self.role(Role::Srp1));
        // On Winbond's and GigaDevice's parts the pin is IO2 while QE is 1, and protects nothing.
        let is_io2 =
            self.roles.get(Role::Qe).is_some_and(|at| at.register == Reg::Sr2) && self.role(Role::Qe);
        let wp_low = self.modes.wp_low && !is_io2;
        let by_pin = wp_low && !planted!(self, PinIgnored) && ((srp0 && !srp1) || self.role(Role::Bpl));
        let by_bits = self.modes.locked_until_power || (srp0 && srp1);
        if guarded && (by_pin || by_bits) { Err(Reason::RegistersProtected) } else { Ok(()) }
    }
}

/// Whether these are registers that the protection of registers is about.
pub(super) fn is_guarded(registers: &[Reg]) -> bool {
    registers.iter().any(|register| matches!(register, Reg::Sr1 | Reg::Sr2 | Reg::Sr3 | Reg::Config))
}
