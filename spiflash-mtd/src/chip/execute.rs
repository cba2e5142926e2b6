//! What a frame asks for, carried out at the rise of CS#.
//!
//! The invariant: a frame that does not count, or that the chip does not listen to in its state, changes nothing but the
//! statistics.

use super::jobs::JobKind;
use super::planted::planted;
use super::{Chip, Effect, Reason};
use crate::command::{CommandSpec, DataPhase, Lines};
use crate::frame::Command;
use crate::op::{EraseUnit, Op, Reg};
use crate::part::BurstRule;
use crate::regs::Role;
use crate::states::{Event, State};

impl Chip {
    /// Whether the chip, in its state, listens to the command whose opcode just came.
    pub(super) fn hears(&self) -> Result<(), Reason> {
        let Some(spec) = self.frame.spec() else { return Ok(()) };
        match self.state {
            State::Off | State::PowerUp | State::Releasing | State::Resetting => {
                return Err(Reason::NotReady);
            }
            State::DeepPowerDown => {
                let status = planted!(self, SleepHears) && matches!(spec.op, Op::ReadRegister(_));
                return if status || spec.op == Op::Release { Ok(()) } else { Err(Reason::Asleep) };
            }
            _ if planted!(self, HearsWhileBusy) => {}
            state if state.is_busy() && !heard_while_busy(spec.op) => return Err(Reason::Busy),
            _ => {}
        }
        if self.modes.aai_at.is_some()
            && !matches!(spec.op, Op::ProgramAai | Op::WriteDisable | Op::ReadRegister(_))
        {
            return Err(Reason::AutoIncrement);
        }
        let disabled =
            self.part.bus.quad_needs_enable && self.roles.get(Role::Qe).is_some() && !self.role(Role::Qe);
        // Winbond and GigaDevice, whose QE is in the second register, enter QPI with QE = 1 only.
        let in_second = self.roles.get(Role::Qe).is_some_and(|at| at.register == Reg::Sr2);
        let wants_quad = (spec.op == Op::EnterQpi && in_second) || on_four_lines(spec);
        if disabled && wants_quad && !self.modes.qpi && !planted!(self, QuadWithoutEnable) {
            Err(Reason::QuadDisabled)
        } else {
            Ok(())
        }
    }

    /// Carries out a frame. `reset_armed`: the frame before it was a reset enable.
    pub(super) fn execute(&mut self, command: &Command, reset_armed: bool) -> Effect {
        let done = self.carry_out(command, reset_armed);
        match done {
            Ok(()) if self.state.is_timed() && !matches!(command.spec, Some(spec) if is_read(spec.op)) => {
                Effect::Begun { until_ns: self.until_ns }
            }
            Ok(()) => Effect::Done,
            Err(reason) => Effect::Ignored(reason),
        }
    }

    fn carry_out(&mut self, command: &Command, reset_armed: bool) -> Result<(), Reason> {
        if !self.state.hears() {
            return Err(Reason::NotReady);
        }
        if let Err(error) = command.outcome
            && !(planted!(self, FrameNotChecked) && command.spec.is_some())
        {
            // A frame that makes no sense ends continuous reading: how a host that does not know of it gets out.
            self.modes.implied_opcode = None;
            return Err(Reason::Frame(error));
        }
        self.heard?;
        let Some(spec) = command.spec else { return Ok(()) };
        let asked = command.mode.is_some_and(|mode| self.part.bus.continuous_read.asked(mode));
        self.modes.implied_opcode = (spec.continuous && asked).then_some(command.opcode);
        let address = command.address;
        let place = self.array_address(&spec, address);
        let data_bytes = command.data.end - command.data.start;
        match spec.op {
            Op::WriteEnable => self.modes.wel = true,
            Op::WriteDisable => (self.modes.wel, self.modes.aai_at) = (false, None),
            Op::WriteEnableVolatile => self.modes.wel_volatile = true,
            Op::WriteRegisters(registers) => {
                return self.write_registers(command.opcode, registers, data_bytes);
            }
            Op::Program if self.part.kind.is_ram() => return self.end_write(),
            Op::Program if self.modes.otp => return self.program_security(address, data_bytes),
            Op::Program => return self.program(place, data_bytes),
            Op::ProgramAai => return self.program_aai(address, data_bytes),
            Op::Erase(EraseUnit::NandBlock) => return self.nand_erase(address.unwrap_or(0)),
            Op::Erase(unit) => return self.erase(unit, place),
            Op::ChipErase => return self.erase_chip(),
            Op::Suspend => return self.suspend(),
            Op::Resume => return self.resume(),
            Op::PowerDown => return self.timed(Event::PowerDown, self.part.timing.power_down_ns),
            Op::Release => {
                self.go(Event::Release, self.part.timing.release_ns);
            }
            Op::ResetEnable => self.modes.reset_armed = true,
            Op::Reset if self.part.nand.is_some() => return self.reset(),
            Op::Reset if reset_armed || planted!(self, ResetNeedsNoEnable) => return self.reset(),
            Op::Reset => return Err(Reason::ResetNotEnabled),
            Op::Enter4Byte => self.modes.four_byte = true,
            Op::Exit4Byte => self.modes.four_byte = false,
            Op::EnterQpi => self.modes.qpi = true,
            Op::ExitQpi => self.modes.qpi = false,
            Op::SetBurst => self.set_burst(),
            Op::ProgramSecurity => return self.program_security(address, data_bytes),
            Op::EraseSecurity => return self.erase_security(address),
            Op::EnterOtp => self.modes.otp = true,
            Op::ExitOtp => self.modes.otp = false,
            Op::LockBlock | Op::UnlockBlock => return self.set_lock(place, spec.op == Op::LockBlock),
            Op::LockAll | Op::UnlockAll => return self.set_all_locks(spec.op == Op::LockAll),
            Op::WriteBlockProtection => return self.write_block_protection(data_bytes),
            Op::LockDown => {
                self.writable()?;
                (self.modes.lock_down, self.modes.wel) = (true, false);
            }
            Op::ClearStatus => self.clear_errors(),
            Op::NandPageRead => return self.nand_page_read(address.unwrap_or(0)),
            Op::NandProgramExecute => return self.nand_program(address.unwrap_or(0)),
            Op::NandSetFeature => return self.nand_set_feature(address.unwrap_or(0) as u8),
            Op::NandSwapBlocks => return self.nand_swap_blocks(address.unwrap_or(0)),
            // Loads of a buffer and reads have done what they do.
            _ => {}
        }
        Ok(())
    }

    fn writable(&self) -> Result<(), Reason> {
        if self.modes.wel || planted!(self, WelNotNeeded) { Ok(()) } else { Err(Reason::WriteDisabled) }
    }

    fn timed(&mut self, event: Event, time_ns: u64) -> Result<(), Reason> {
        if self.go(event, time_ns) { Ok(()) } else { Err(Reason::Suspended) }
    }

    /// MRAM and FRAM: the bytes are written; the latch falls, but on parts that keep it.
    fn end_write(&mut self) -> Result<(), Reason> {
        self.writable()?;
        if !self.part.bus.keeps_wel {
            self.modes.wel = false;
        }
        Ok(())
    }

    fn write_registers(
        &mut self,
        opcode: u8,
        registers: &'static [Reg],
        data_bytes: u64,
    ) -> Result<(), Reason> {
        // Read parameters (C0h) and Infineon's bank register (17h) are working values that need no write enable.
        let free = opcode == 0x17 || matches!(registers, [Reg::ReadParameters]);
        if !(free || self.modes.wel || self.modes.wel_volatile) {
            return Err(Reason::WriteDisabled);
        }
        self.may_write_registers(registers)?;
        // Not even for a while: W25Q128JV, section 8.2.17.
        if self.suspended.is_some() && super::protection::is_guarded(registers) {
            return Err(Reason::Suspended);
        }
        let volatile = self.modes.wel_volatile;
        // A command without data sets the one-time bits of its register (Macronix 2Fh).
        let written =
            if data_bytes == 0 { registers.len() } else { registers.len().min(data_bytes as usize) };
        let values = if data_bytes == 0 { [0xFF; 2] } else { [self.small[0], self.small[1]] };
        let registers = registers.get(..written).unwrap_or(registers);
        let lasting = !volatile
            && registers.iter().any(|register| crate::regs::Registers::is_nonvolatile(&self.part, *register));
        if !lasting {
            self.store_registers(registers, values, volatile);
            self.modes.wel &= free;
            self.modes.wel_volatile = false;
            return Ok(());
        }
        let span = self.part.timing.write_status;
        let time_ns = self.operation_time(span);
        let kind = JobKind::WriteRegisters { opcode, count: registers.len() as u8, values };
        self.begin(Event::WriteStatus, kind, time_ns)
    }

    /// Puts values into registers, and does what follows from them.
    pub(super) fn store_registers(&mut self, registers: &[Reg], values: [u8; 2], volatile: bool) {
        let volatile = volatile && !planted!(self, VolatileIsStored);
        for (register, value) in registers.iter().zip(values) {
            #[cfg(test)]
            if planted!(self, OneTimeRewritable) {
                self.registers.force(*register, value);
            }
            self.registers.write(&self.part, *register, value, volatile);
        }
        if self.role(Role::Srp1) && !self.role(Role::Srp0) {
            self.modes.locked_until_power = true;
        }
        if let Some(at) = self.roles.get(Role::Ads).filter(|at| registers.contains(&at.register))
            && self.part.bus.ads_is_written
        {
            self.modes.four_byte = self.registers.bit(at);
        }
    }

    fn program(&mut self, address: u64, data_bytes: u64) -> Result<(), Reason> {
        self.writable()?;
        let page = u64::from(self.part.geometry.page_bytes);
        let base = address / page * page;
        let bytes = data_bytes.min(page);
        if self.is_protected(&(address..address + 1)) && !planted!(self, ProgramIgnoresProtection) {
            self.protection_error(Role::ProgramError);
            return Err(Reason::Protected);
        }
        let suspended = self.suspended.as_ref().is_some_and(|job| job.covers(base, &self.array));
        if suspended && !planted!(self, ProgramsIntoSuspended) {
            return Err(Reason::Suspended);
        }
        let time_ns = self.program_time(base, bytes);
        self.begin(Event::Program, JobKind::Program { base, bytes: page as u32, security: false }, time_ns)
    }

    /// SST25: the first word comes with its address, the others follow it. SST25VF016B, "Auto Address Increment (AAI)
    /// Word-Program".
    fn program_aai(&mut self, address: Option<u32>, data_bytes: u64) -> Result<(), Reason> {
        self.writable()?;
        let size = self.part.geometry.size_bytes;
        let at = self.modes.aai_at.unwrap_or_else(|| u64::from(address.unwrap_or(0)) & !1) % size;
        if data_bytes < 2 {
            return Err(Reason::NoSuchPlace);
        }
        if self.is_protected(&(at..at + 2)) {
            self.modes.aai_at = None;
            self.modes.wel = false;
            return Err(Reason::Protected);
        }
        self.latch.fill(0xFF);
        if let (Some(latch), Some(data)) = (self.latch.get_mut(..2), self.small.get(..2)) {
            latch.copy_from_slice(data);
        }
        self.modes.aai_at = Some(if planted!(self, WordsStay) { at } else { at + 2 });
        let time_ns = self.program_time(at, 1);
        self.begin(Event::Program, JobKind::Program { base: at, bytes: 2, security: false }, time_ns)
    }

    fn erase(&mut self, unit: EraseUnit, address: u64) -> Result<(), Reason> {
        self.writable()?;
        let range = self.erase_range(unit, address).ok_or(Reason::NoSuchPlace)?;
        if self.is_protected(&range) && !planted!(self, EraseIgnoresProtection) {
            self.protection_error(Role::EraseError);
            return Err(Reason::Protected);
        }
        let unit_bytes = self.array.unit_bytes() as u64;
        let (first, count) =
            ((range.start / unit_bytes) as u32, ((range.end - range.start) / unit_bytes) as u32);
        let span = self.part.timing.erase.get(&unit).copied().unwrap_or_default();
        let time_ns = self.erase_time(first, count, span);
        self.begin(Event::Erase, JobKind::Erase { first, count }, time_ns)
    }

    /// The range that an erase at an address erases; `None` where there is no such block.
    fn erase_range(&self, unit: EraseUnit, address: u64) -> Option<std::ops::Range<u64>> {
        let range = self.part.erase_range(unit, address)?;
        if planted!(self, EraseTooLarge) {
            let start = range.start / 65536 * 65536;
            return Some(start..start + 65536);
        }
        if planted!(self, EraseNotAligned) {
            let bytes = range.end - range.start;
            let start = (address / 4096 * 4096).min(self.part.geometry.size_bytes - bytes);
            return Some(start..start + bytes);
        }
        Some(range)
    }

    fn erase_chip(&mut self) -> Result<(), Reason> {
        self.writable()?;
        if self.is_protected(&(0..self.part.geometry.size_bytes)) {
            self.protection_error(Role::EraseError);
            return Err(Reason::Protected);
        }
        let count = self.array.unit_count();
        let time_ns = self.erase_time(0, count, self.part.timing.chip_erase);
        self.begin(Event::ChipErase, JobKind::Erase { first: 0, count }, time_ns)
    }

    fn program_security(&mut self, address: Option<u32>, data_bytes: u64) -> Result<(), Reason> {
        self.writable()?;
        let (register, offset) = self.security_place(address.unwrap_or(0)).ok_or(Reason::NoSuchPlace)?;
        if self.is_security_locked(register) {
            return Err(Reason::Locked);
        }
        let erasing =
            |suspended: &super::jobs::Suspended| suspended.job.kind == JobKind::EraseSecurity { register };
        if self.suspended.as_ref().is_some_and(erasing) {
            return Err(Reason::Suspended);
        }
        let base = u64::from(register) * self.security.unit_bytes() as u64 + (offset / 256 * 256) as u64;
        let time_ns = self.program_time(0, data_bytes.min(256));
        let bytes = self.security.unit_bytes().min(256) as u32;
        self.begin(Event::Program, JobKind::Program { base, bytes, security: true }, time_ns)
    }

    fn erase_security(&mut self, address: Option<u32>) -> Result<(), Reason> {
        self.writable()?;
        let (register, _) = self.security_place(address.unwrap_or(0)).ok_or(Reason::NoSuchPlace)?;
        if self.is_security_locked(register) {
            return Err(Reason::Locked);
        }
        let span = self.part.timing.erase.values().next().copied().unwrap_or_default();
        let time_ns = self.operation_time(span);
        self.begin(Event::Erase, JobKind::EraseSecurity { register }, time_ns)
    }

    /// The security register of an address, and the offset in it.
    pub(super) fn security_place(&self, address: u32) -> Option<(u32, usize)> {
        let spec = self.part.security.as_ref()?;
        let from_base = address.checked_sub(spec.base)?;
        let stride = spec.stride.max(1);
        let (register, offset) = (from_base / stride, from_base % stride);
        (register < u32::from(spec.registers) && offset < spec.register_bytes)
            .then_some((register, offset as usize))
    }

    /// Whether a security register is locked for good: by its own bit, or by the one for all.
    fn is_security_locked(&self, register: u32) -> bool {
        let Some(spec) = &self.part.security else { return true };
        let name = spec.lock_bits.get(register as usize).or(spec.lock_bits.first());
        let bit = name.and_then(|name| crate::regs::find_bit(&self.part, name));
        bit.is_some_and(|at| self.registers.bit(at)) && !planted!(self, SecurityNotLocked)
    }

    /// Security data: a register repeats within its own bytes.
    pub(super) fn read_security(&self, address: u32, first: u64, out: &mut [u8]) {
        let Some((register, offset)) = self.security_place(address) else { return out.fill(0xFF) };
        let size = self.security.unit_bytes() as u64;
        for (index, byte) in out.iter_mut().enumerate() {
            let at = (offset as u64 + first + index as u64) % size;
            self.security.read(u64::from(register) * size + at, std::slice::from_mut(byte));
        }
    }

    fn set_lock(&mut self, address: u64, locked: bool) -> Result<(), Reason> {
        self.writable()?;
        let lock = self.lock_of(address).ok_or(Reason::NoSuchPlace)?;
        if let Some(slot) = self.locks.get_mut(lock) {
            *slot = locked;
        }
        self.modes.wel = false;
        Ok(())
    }

    fn set_all_locks(&mut self, locked: bool) -> Result<(), Reason> {
        self.writable()?;
        if self.modes.lock_down {
            return Err(Reason::RegistersProtected);
        }
        self.locks.fill(locked);
        self.modes.wel = false;
        Ok(())
    }

    fn write_block_protection(&mut self, data_bytes: u64) -> Result<(), Reason> {
        self.writable()?;
        if self.modes.lock_down {
            return Err(Reason::RegistersProtected);
        }
        let Some(rules) = &self.part.locks else { return Err(Reason::NoSuchPlace) };
        let data = self.small.get(..data_bytes as usize).unwrap_or(&self.small);
        let locks = rules.from_register(self.part.geometry.size_bytes, data);
        self.locks = locks;
        self.modes.wel = false;
        Ok(())
    }

    fn set_burst(&mut self) {
        let value = self.small[0];
        let field = match self.part.bus.burst {
            BurstRule::None => return,
            _ if planted!(self, BurstIgnored) => return,
            BurstRule::Bits65 => value >> 5 & 3,
            BurstRule::Low => value & 3,
        };
        self.modes.burst_bytes = (value & 0x10 == 0).then_some(8 << field);
    }

    fn clear_errors(&mut self) {
        for role in [Role::EraseError, Role::ProgramError, Role::ProtectionError] {
            self.set_role(role, false);
        }
        self.modes.wel = false;
    }

    /// A part with error bits says that it met a protected block.
    fn protection_error(&mut self, role: Role) {
        self.set_role(Role::ProtectionError, true);
        self.set_role(role, true);
    }
}

fn on_four_lines(spec: &CommandSpec) -> bool {
    let data = match spec.data {
        DataPhase::None => Lines::Single,
        DataPhase::In { lines, .. } | DataPhase::Out { lines } => lines,
    };
    data == Lines::Quad || spec.address.lines() == Lines::Quad
}

/// What a busy chip still answers: status reads, a suspend, a reset.
fn heard_while_busy(op: Op) -> bool {
    let status = |register| matches!(register, Reg::Sr1 | Reg::Sr2 | Reg::Sr3 | Reg::Flag | Reg::NandStatus);
    match op {
        Op::ReadRegister(register) => status(register),
        Op::NandGetFeature | Op::Suspend | Op::ResetEnable | Op::Reset => true,
        _ => false,
    }
}

fn is_read(op: Op) -> bool {
    matches!(op, Op::ReadRegister(_) | Op::NandGetFeature | Op::ResetEnable)
}
