//! Lock, unlock, is it locked: by the block-protection bits, or by the locks of single blocks.
//!
//! The invariant: after a lock or unlock that succeeds, exactly the bytes that were locked before and those asked for (or
//! without those) are locked; what no bits can say is an error and changes nothing. One-time bits are never changed.

use super::plan::{WINDOW_BYTES, find};
use super::{DriverError, NorDriver};
use crate::bus::SpiBus;
use crate::command::{AddressMode, AddressPhase};
use crate::op::Op;
use crate::part::Keep;
use crate::protect::{LockRules, RangeBits, RangeRules};
use crate::regs::find_bit;
use std::ops::Range;

/// The names of the BP bits, lowest first.
const BP: [&str; 5] = ["bp0", "bp1", "bp2", "bp3", "bp4"];

fn contains(outer: &Range<u64>, inner: &Range<u64>) -> bool {
    inner.is_empty() || (outer.start <= inner.start && inner.end <= outer.end)
}

/// What is in either, when that is one run.
fn union(left: &Range<u64>, right: &Range<u64>) -> Option<Range<u64>> {
    match (left.is_empty(), right.is_empty()) {
        (true, _) => Some(right.clone()),
        (_, true) => Some(left.clone()),
        _ if left.start > right.end || right.start > left.end => None,
        _ => Some(left.start.min(right.start)..left.end.max(right.end)),
    }
}

/// What is in the first only, when that is one run.
fn difference(from: &Range<u64>, without: &Range<u64>) -> Option<Range<u64>> {
    let (start, end) = (without.start.max(from.start), without.end.min(from.end));
    match (start >= end, start == from.start, end == from.end) {
        (true, ..) => Some(from.clone()),
        (_, true, _) => Some(end..from.end),
        (_, _, true) => Some(from.start..start),
        _ => None,
    }
}

impl NorDriver {
    /// Whether the part can protect anything.
    pub fn can_lock(&self) -> bool {
        self.part().ranges.is_some() || self.part().locks.is_some()
    }

    /// Whether everything is locked after power-up, so that a host must unlock it first (MTD_POWERUP_LOCK).
    pub fn locked_at_power_up(&self) -> bool {
        let part = self.part();
        let volatile = BP.iter().filter_map(|name| find_bit(part, name)).any(|at| {
            part.registers.get(&at.register).is_some_and(|spec| {
                let keep = spec.bits.get(usize::from(at.bit)).map(|bit| bit.keep);
                keep == Some(Keep::Volatile) && spec.factory >> at.bit & 1 == 1
            })
        });
        let locks = part.locks.as_ref();
        volatile || locks.is_some_and(|locks| locks.power_up_locked() && locks.selected_by().is_none())
    }

    /// The locks of single blocks, when they count now.
    fn single_locks(&self, bus: &mut dyn SpiBus) -> Result<Option<&LockRules>, DriverError> {
        let Some(locks) = &self.part().locks else { return Ok(None) };
        let count = match locks.selected_by() {
            Some(name) => self.bit(bus, name)?.unwrap_or(false),
            None => true,
        };
        Ok(count.then_some(locks))
    }

    fn range_bits(&self, bus: &mut dyn SpiBus, rules: &RangeRules) -> Result<RangeBits, DriverError> {
        let mut bits = RangeBits::default();
        for (n, name) in BP.iter().enumerate().take(usize::from(rules.bp_bits)) {
            bits.bp |= u8::from(self.bit(bus, name)?.unwrap_or(false)) << n;
        }
        bits.tb = self.bit(bus, "tb")?.unwrap_or(false);
        bits.sec = self.bit(bus, "sec")?.unwrap_or(false);
        bits.cmp = self.bit(bus, "cmp")?.unwrap_or(false);
        Ok(bits)
    }

    /// The locked bytes, by address: one run where block-protection bits say it, or any number of blocks.
    ///
    /// # Errors
    /// The bus's refusal, or a register without a command to read it.
    pub fn locked(&self, bus: &mut dyn SpiBus) -> Result<Vec<Range<u64>>, DriverError> {
        let mut locked: Vec<Range<u64>> = Vec::new();
        if let Some(rules) = self.single_locks(bus)? {
            let units = rules.units(self.size_bytes());
            let states = self.unit_states(bus, rules, &units)?;
            for (unit, _) in units.into_iter().zip(states).filter(|(_, locked)| *locked) {
                match locked.last_mut() {
                    Some(last) if last.end == unit.start => last.end = unit.end,
                    _ => locked.push(unit),
                }
            }
        } else if let Some(rules) = &self.part().ranges {
            let range = rules.range(self.size_bytes(), self.range_bits(bus, rules)?);
            locked.extend((!range.is_empty()).then_some(range));
        }
        Ok(locked)
    }

    /// Whether all of these bytes are locked.
    ///
    /// # Errors
    /// The part can lock nothing; as [`NorDriver::locked`].
    pub fn is_locked(&self, bus: &mut dyn SpiBus, range: Range<u64>) -> Result<bool, DriverError> {
        self.check_lockable(&range)?;
        Ok(self.locked(bus)?.iter().any(|locked| contains(locked, &range)))
    }

    /// The first locked bytes among these.
    ///
    /// # Errors
    /// As [`NorDriver::locked`].
    pub fn locked_within(
        &self,
        bus: &mut dyn SpiBus,
        range: &Range<u64>,
    ) -> Result<Option<Range<u64>>, DriverError> {
        // The state of each block is a frame of its own: only those that are asked for.
        if let Some(rules) = self.single_locks(bus)? {
            let mut units = rules.units(self.size_bytes());
            if matches!(rules, LockRules::Volatile { .. }) {
                units.retain(|unit| unit.start < range.end && range.start < unit.end);
            }
            let states = self.unit_states(bus, rules, &units)?;
            let mut locked =
                units.into_iter().zip(states).filter(|(_, locked)| *locked).map(|(unit, _)| unit);
            return Ok(locked.find(|unit| unit.start < range.end && range.start < unit.end));
        }
        let meets = |locked: &Range<u64>| locked.start < range.end && range.start < locked.end;
        Ok(self.locked(bus)?.into_iter().find(meets))
    }

    /// Locks these bytes too.
    ///
    /// # Errors
    /// No bits mean exactly that; the registers are locked themselves; the part can lock nothing; the bus's refusal.
    pub fn lock(&mut self, bus: &mut dyn SpiBus, range: Range<u64>) -> Result<(), DriverError> {
        self.change(bus, range, true)
    }

    /// Unlocks these bytes.
    ///
    /// # Errors
    /// As [`NorDriver::lock`].
    pub fn unlock(&mut self, bus: &mut dyn SpiBus, range: Range<u64>) -> Result<(), DriverError> {
        self.change(bus, range, false)
    }

    fn check_lockable(&self, range: &Range<u64>) -> Result<(), DriverError> {
        if !self.can_lock() {
            return Err(self.no_command("lock or unlock"));
        }
        if range.start > range.end || range.end > self.size_bytes() {
            let bytes = range.end.saturating_sub(range.start);
            let (address, size_bytes) = (range.start, self.size_bytes());
            return Err(DriverError::OutOfBounds { area: "the array", address, bytes, size_bytes });
        }
        Ok(())
    }

    fn change(&mut self, bus: &mut dyn SpiBus, range: Range<u64>, lock: bool) -> Result<(), DriverError> {
        self.check_lockable(&range)?;
        if let Some(rules) = self.single_locks(bus)?.cloned() {
            return self.change_units(bus, &rules, &range, lock);
        }
        let Some(rules) = self.part().ranges.clone() else {
            return Err(self.no_command("lock or unlock"));
        };
        let none = |range: Range<u64>| DriverError::NoSuchRange { part: self.part().name.clone(), range };
        let now_bits = self.range_bits(bus, &rules)?;
        let now = rules.range(self.size_bytes(), now_bits);
        let wanted = if lock { union(&now, &range) } else { difference(&now, &range) };
        let wanted = wanted.ok_or_else(|| none(range))?;
        if wanted == now || (wanted.is_empty() && now.is_empty()) {
            return Ok(());
        }
        let bits = self.choose(&rules, now_bits, &wanted).ok_or_else(|| none(wanted))?;
        let named = BP.iter().enumerate().take(usize::from(rules.bp_bits));
        let mut values: Vec<(&str, bool)> = named.map(|(n, name)| (*name, bits.bp >> n & 1 == 1)).collect();
        values.extend([("tb", bits.tb), ("sec", bits.sec), ("cmp", bits.cmp)]);
        values.retain(|(name, _)| find_bit(self.part(), name).is_some());
        self.set_bits(bus, &values)
    }

    /// The bits that mean exactly a range, with as few flags changed as can be.
    fn choose(&self, rules: &RangeRules, now: RangeBits, wanted: &Range<u64>) -> Option<RangeBits> {
        let fixed = |name: &str| find_bit(self.part(), name).is_none_or(|at| self.is_one_time(at));
        let allowed = |bits: &RangeBits| {
            (bits.tb == now.tb || !fixed("tb"))
                && (bits.sec == now.sec || !fixed("sec"))
                && (bits.cmp == now.cmp || !fixed("cmp"))
        };
        let changes = |bits: &RangeBits| {
            [bits.tb != now.tb, bits.sec != now.sec, bits.cmp != now.cmp]
                .iter()
                .filter(|changed| **changed)
                .count()
        };
        let means = |bits: &RangeBits| {
            let range = rules.range(self.size_bytes(), *bits);
            range == *wanted || (range.is_empty() && wanted.is_empty())
        };
        // A register may have bits beyond what a combination of this part names: they stay.
        rules.combinations().filter(|bits| allowed(bits) && means(bits)).min_by_key(changes)
    }

    /// Whether each of these blocks is locked.
    fn unit_states(
        &self,
        bus: &mut dyn SpiBus,
        rules: &LockRules,
        units: &[Range<u64>],
    ) -> Result<Vec<bool>, DriverError> {
        if let LockRules::Register = rules {
            let register = self.read_protection_register(bus, rules)?;
            let bits = rules.register_bits(self.size_bytes());
            return Ok(bits.iter().map(|bits| bit_of(&register, bits.write)).collect());
        }
        let spec = self.lock_command(Op::ReadBlockLock)?;
        let mut states = Vec::with_capacity(units.len());
        for unit in units {
            let mut state = [0];
            self.at_address(bus, unit.start, |driver, bus, mode| {
                let header = super::wire::header(&spec, unit.start, mode, spec.dummy_clocks)?;
                driver.wire(bus).receive(&header, &mut state)
            })?;
            states.push(state[0] & 1 == 1);
        }
        Ok(states)
    }

    fn lock_command(&self, op: Op) -> Result<crate::command::CommandSpec, DriverError> {
        find(self.part(), op, |_| true).ok_or_else(|| self.no_command("lock single blocks"))
    }

    /// Does something at an address above 16 MiB for which there is no 4-byte command: in the 4-byte mode, and back.
    fn at_address(
        &self,
        bus: &mut dyn SpiBus,
        address: u64,
        act: impl FnOnce(&NorDriver, &mut dyn SpiBus, AddressMode) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        let change =
            find(self.part(), Op::Enter4Byte, |_| true).zip(find(self.part(), Op::Exit4Byte, |_| true));
        match change.filter(|_| address >= WINDOW_BYTES && self.mode() == AddressMode::ThreeByte) {
            Some((enter, exit)) => {
                self.wire(bus).control(&enter)?;
                let result = act(self, bus, AddressMode::FourByte);
                self.wire(bus).control(&exit)?;
                result
            }
            None => act(self, bus, self.mode()),
        }
    }

    fn change_units(
        &mut self,
        bus: &mut dyn SpiBus,
        rules: &LockRules,
        range: &Range<u64>,
        lock: bool,
    ) -> Result<(), DriverError> {
        let units = rules.units(self.size_bytes());
        let inside = |unit: &Range<u64>| unit.start < range.end && range.start < unit.end;
        if units.iter().any(|unit| inside(unit) && !contains(range, unit)) {
            return Err(DriverError::NoSuchRange { part: self.part().name.clone(), range: range.clone() });
        }
        if let LockRules::Register = rules {
            let mut register = self.read_protection_register(bus, rules)?;
            let bits = rules.register_bits(self.size_bytes());
            for (_, bits) in units.iter().zip(bits).filter(|(unit, _)| inside(unit)) {
                set_bit_of(&mut register, bits.write, lock);
            }
            return self.write_protection_register(bus, &register);
        }
        let all = find(self.part(), if lock { Op::LockAll } else { Op::UnlockAll }, |_| true);
        if let Some(all) = all.filter(|_| *range == (0..self.size_bytes())) {
            self.write_enable(bus)?;
            return self.wire(bus).control(&all);
        }
        let spec = self.lock_command(if lock { Op::LockBlock } else { Op::UnlockBlock })?;
        for unit in units.into_iter().filter(inside) {
            self.at_address(bus, unit.start, |driver, bus, mode| {
                driver.write_enable(bus)?;
                let header = super::wire::header(&spec, unit.start, mode, spec.dummy_clocks)?;
                driver.wire(bus).send(&header, &[])
            })?;
        }
        Ok(())
    }

    /// SST26's register, most significant byte first.
    fn read_protection_register(
        &self,
        bus: &mut dyn SpiBus,
        rules: &LockRules,
    ) -> Result<Vec<u8>, DriverError> {
        let spec = self.lock_command(Op::ReadBlockProtection)?;
        let mut register = vec![0; rules.register_bytes(self.size_bytes())];
        self.wire(bus).receive_plain(&spec, &mut register)?;
        Ok(register)
    }

    fn write_protection_register(&self, bus: &mut dyn SpiBus, register: &[u8]) -> Result<(), DriverError> {
        let spec = self.lock_command(Op::WriteBlockProtection)?;
        self.write_enable(bus)?;
        let header = super::wire::header(&spec, 0, self.mode(), 0)?;
        debug_assert_eq!(spec.address, AddressPhase::None);
        self.wire(bus).send(&header, register)?;
        self.wait_ready(bus, "block-protection write", 0, self.part().timing.write_status)
    }
}

/// A bit of a register whose most significant byte comes first.
fn bit_of(register: &[u8], bit: u16) -> bool {
    let byte = register.iter().rev().nth(usize::from(bit / 8));
    byte.is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
}

fn set_bit_of(register: &mut [u8], bit: u16, on: bool) {
    if let Some(byte) = register.iter_mut().rev().nth(usize::from(bit / 8)) {
        *byte = *byte & !(1 << (bit % 8)) | u8::from(on) << (bit % 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(range: &Range<u64>) -> Vec<u64> {
        range.clone().collect()
    }

    proptest! {
        #[test]
        fn unions_and_differences_are_those_of_sets(a in 0u64..12, b in 0u64..12, c in 0u64..12, d in 0u64..12) {
            let (left, right) = (a.min(b)..a.max(b), c.min(d)..c.max(d));
            let mut both: Vec<u64> = bytes(&left);
            both.extend(bytes(&right).iter().filter(|at| !left.contains(at)));
            both.sort_unstable();
            let only: Vec<u64> = bytes(&left).into_iter().filter(|at| !right.contains(at)).collect();
            let run = |set: &[u64]| set.windows(2).all(|pair| pair[0] + 1 == pair[1]);
            prop_assert_eq!(union(&left, &right).map(|range| bytes(&range)), run(&both).then_some(both));
            prop_assert_eq!(difference(&left, &right).map(|range| bytes(&range)), run(&only).then_some(only));
        }
    }

    #[test]
    fn the_bits_of_a_register_begin_with_its_last_byte() {
        let mut register = [0u8; 3];
        set_bit_of(&mut register, 0, true);
        set_bit_of(&mut register, 17, true);
        assert_eq!(register, [0x02, 0, 0x01]);
        assert!(bit_of(&register, 17) && !bit_of(&register, 16) && !bit_of(&register, 99));
        set_bit_of(&mut register, 17, false);
        assert_eq!(register, [0, 0, 0x01]);
    }
}
