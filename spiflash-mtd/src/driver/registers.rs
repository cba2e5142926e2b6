//! Registers, and waiting until the chip is ready.
//!
//! The invariant: a register is written whole, with what it read before in the bits that are not meant; a write that the
//! chip did not take is an error.

use super::plan::{find, register_read};
use super::wire::Wire;
use super::{DriverError, NorDriver, PATIENCE};
use crate::bus::SpiBus;
use crate::command::{CommandSpec, Counts};
use crate::op::{Op, Reg};
use crate::part::{Keep, Part, Span};
use crate::regs::{BitRef, find_bit};
use std::collections::BTreeMap;

/// The shortest wait that is waited for a change that the data sheet gives no time for.
const LEAST_LIMIT_NS: u64 = 1_000_000;

/// How many polls may find the bus's time where it was.
const MOST_STILL_POLLS: u32 = 1_000_000;

/// The error bits, and what an error is named after in a report.
const ERROR_BITS: [&str; 3] = ["e_err", "p_err", "prot_err"];

/// What says that the chip is ready, and what says that it failed.
#[derive(Debug, Clone)]
pub(super) struct Signals {
    /// The register to poll, its bit, and the bit's value while the chip is busy. Micron's flag status register is preferred
    /// to the status register, which may be ready before.
    busy: Option<(CommandSpec, u8, u8)>,
    /// The register with the error bits, and the bits.
    error: Option<(CommandSpec, u8)>,
    /// What clears them.
    clear: Option<CommandSpec>,
}

impl Signals {
    pub(super) fn of(part: &Part) -> Signals {
        let bit = |name: &str| {
            let at = find_bit(part, name)?;
            Some((register_read(part, at.register)?, 1u8 << at.bit))
        };
        let busy = bit("ready").map(|(spec, mask)| (spec, mask, 0));
        let busy = busy.or_else(|| bit("busy").map(|(spec, mask)| (spec, mask, mask)));
        let errors: Vec<(CommandSpec, u8)> = ERROR_BITS.iter().filter_map(|name| bit(name)).collect();
        let error = errors.first().map(|(first, _)| {
            let same = errors.iter().filter(|(spec, _)| spec.opcode == first.opcode);
            (*first, same.fold(0, |all, (_, mask)| all | mask))
        });
        Signals { busy, error, clear: find(part, Op::ClearStatus, |_| true) }
    }
}

impl NorDriver {
    /// Reads a register.
    ///
    /// # Errors
    /// The part has no command for it; the bus's refusal.
    pub fn read_register(&self, bus: &mut dyn SpiBus, register: Reg) -> Result<u8, DriverError> {
        let spec = register_read(self.part(), register).ok_or_else(|| self.no_command("read a register"))?;
        let mut value = [0];
        self.wire(bus).receive_plain(&spec, &mut value)?;
        Ok(value[0])
    }

    /// The value of a bit, by its name in the part file; `None` where the part has none.
    pub(super) fn bit(&self, bus: &mut dyn SpiBus, name: &str) -> Result<Option<bool>, DriverError> {
        let Some(BitRef { register, bit }) = find_bit(self.part(), name) else { return Ok(None) };
        Ok(Some(self.read_register(bus, register)? >> bit & 1 == 1))
    }

    fn keep(&self, at: BitRef) -> Option<Keep> {
        let spec = self.part().registers.get(&at.register)?;
        spec.bits.get(usize::from(at.bit)).map(|bit| bit.keep)
    }

    /// Whether a bit is one-time.
    pub(super) fn is_one_time(&self, at: BitRef) -> bool {
        self.keep(at) == Some(Keep::Otp)
    }

    /// Whether a bit is the chip's.
    pub(super) fn is_read_only(&self, at: BitRef) -> bool {
        self.keep(at) == Some(Keep::ReadOnly)
    }

    /// Sets bits of registers by their names, the others as they are, and checks that the chip took them.
    ///
    /// # Errors
    /// A bit that the part has not, or has no command to write; a register that is locked; the bus's refusal.
    pub fn set_bits(&mut self, bus: &mut dyn SpiBus, bits: &[(&str, bool)]) -> Result<(), DriverError> {
        let mut wanted: BTreeMap<Reg, (u8, u8)> = BTreeMap::new();
        for (name, on) in bits {
            let at = find_bit(self.part(), name).ok_or_else(|| self.no_command("write that register bit"))?;
            let (mask, value) = wanted.entry(at.register).or_default();
            *mask |= 1 << at.bit;
            *value = *value & !(1 << at.bit) | u8::from(*on) << at.bit;
        }
        let mut values = BTreeMap::new();
        for (register, (mask, value)) in &wanted {
            let now = self.read_register(bus, *register)?;
            if now & mask != *value {
                values.insert(*register, now & !mask | value);
            }
        }
        while let Some((register, _)) = values.first_key_value() {
            let written = self.write_with(bus, *register, &values)?;
            values.retain(|register, _| !written.contains(register));
        }
        for (register, (mask, value)) in wanted {
            let reads = self.read_register(bus, register)?;
            if reads & mask != value {
                let register = format!("{register:?}");
                return Err(DriverError::NotTaken { register, wrote: value, reads: reads & mask });
            }
        }
        Ok(())
    }

    /// Writes a register by the command that writes it and the fewest others, these with `values` or what they read.
    fn write_with(
        &mut self,
        bus: &mut dyn SpiBus,
        register: Reg,
        values: &BTreeMap<Reg, u8>,
    ) -> Result<&'static [Reg], DriverError> {
        let writes = self.part().commands.iter().filter_map(|spec| match spec.op {
            Op::WriteRegisters(list) if list.contains(&register) => Some((*spec, list)),
            _ => None,
        });
        // One command for all that is to change, where there is one; else the shortest.
        let cost = |list: &[Reg]| (values.keys().filter(|one| !list.contains(one)).count(), list.len());
        let best = writes.min_by_key(|(_, list)| cost(list));
        let (spec, list) = best.ok_or_else(|| self.no_command("write a register"))?;
        let mut data = Vec::with_capacity(list.len());
        for one in list {
            data.push(match values.get(one) {
                Some(value) => *value,
                None => self.read_register(bus, *one)?,
            });
        }
        self.enable_register_write(bus)?;
        let max_bytes = match spec.data {
            crate::command::DataPhase::In { max_bytes, .. } => max_bytes as usize,
            _ => 0,
        };
        data.truncate(max_bytes);
        let header = super::wire::header(&spec, 0, self.mode(), spec.dummy_clocks)?;
        self.wire(bus).send(&header, &data)?;
        self.wait_ready(bus, "register write", 0, self.part().timing.write_status)?;
        Ok(list)
    }

    /// SST25 wants 50h before a write of its status register, all others 06h.
    fn enable_register_write(&self, bus: &mut dyn SpiBus) -> Result<(), DriverError> {
        let words = find(self.part(), Op::ProgramAai, |_| true).is_some();
        match find(self.part(), Op::WriteEnableVolatile, |_| words) {
            Some(spec) => self.wire(bus).control(&spec),
            None => self.write_enable(bus),
        }
    }

    /// 06h.
    pub(super) fn write_enable(&self, bus: &mut dyn SpiBus) -> Result<(), DriverError> {
        self.wire(bus).control(&self.plan().write_enable)
    }

    /// Waits until the chip is ready, at most [`PATIENCE`] times the longest time of the data sheet.
    pub(super) fn wait_ready(
        &self,
        bus: &mut dyn SpiBus,
        operation: &'static str,
        address: u64,
        time: Span,
    ) -> Result<(), DriverError> {
        let Some((poll, mask, busy)) = self.signals().busy else { return Ok(()) };
        let mut wire = self.wire(bus);
        wait_until(&mut wire, operation, address, time, |wire| {
            let mut status = [0];
            wire.receive_plain(&poll, &mut status)?;
            self.check_errors(wire, operation, address, &poll, status[0])?;
            Ok(status[0] & mask != busy)
        })?;
        // A chip whose errors are in another register than the one that was polled.
        self.check_errors(&mut wire, operation, address, &poll, 0)
    }

    /// Looks for error bits, and clears them: some parts stay busy until they are cleared.
    fn check_errors(
        &self,
        wire: &mut Wire<'_>,
        operation: &'static str,
        address: u64,
        polled: &CommandSpec,
        polled_value: u8,
    ) -> Result<(), DriverError> {
        let Some((spec, mask)) = self.signals().error else { return Ok(()) };
        let mut status = [polled_value];
        if spec.opcode != polled.opcode {
            wire.receive_plain(&spec, &mut status)?;
        }
        // Without power, or a chip, all bits read 1: that is no report of this chip's.
        if status[0] & mask == 0 || status[0] == 0xFF {
            return Ok(());
        }
        if let Some(clear) = &self.signals().clear {
            wire.control(clear)?;
        }
        if let Some(disable) = &self.plan().write_disable {
            wire.control(disable)?;
        }
        Err(DriverError::Failed { operation, address, status: status[0] })
    }

    /// Wakes the chip up from deep power-down; a chip that is awake takes it as a read of its ID.
    pub(super) fn release(&self, bus: &mut dyn SpiBus) -> Result<(), DriverError> {
        let Some(spec) = self.plan().release else { return Ok(()) };
        debug_assert!(matches!(spec.counts, Counts::WithOpcode | Counts::WhenWhole));
        self.wire(bus).control(&spec)?;
        bus.delay_ns(self.part().timing.release_ns);
        Ok(())
    }
}

/// Waits until `ready` says so, at most [`PATIENCE`] times the longest time.
pub(super) fn wait_until(
    wire: &mut Wire<'_>,
    operation: &'static str,
    address: u64,
    time: Span,
    mut ready: impl FnMut(&mut Wire<'_>) -> Result<bool, DriverError>,
) -> Result<(), DriverError> {
    let limit_ns = time.max_ns.max(time.typical_ns).saturating_mul(PATIENCE).max(LEAST_LIMIT_NS);
    // An eighth of the usual time between polls: waits are then at most that much too long.
    let pause_ns = (time.typical_ns / 8).clamp(1_000, 1_000_000_000);
    let start_ns = wire.bus.now_ns();
    let (mut last_ns, mut still) = (start_ns, 0);
    while !ready(wire)? {
        let now_ns = wire.bus.now_ns();
        still = if now_ns > last_ns { 0 } else { still + 1 };
        last_ns = now_ns;
        let waited_ns = now_ns.saturating_sub(start_ns);
        if waited_ns > limit_ns || still > MOST_STILL_POLLS {
            return Err(DriverError::Timeout { operation, address, waited_ns, max_ns: time.max_ns });
        }
        wire.bus.delay_ns(pause_ns);
    }
    Ok(())
}
