//! Security registers and one-time areas: read, program, erase, lock for good.
//!
//! The registers are seen as one run of bytes, one after the other.

use super::plan::find;
use super::wire::header;
use super::{DriverError, NorDriver};
use crate::bus::SpiBus;
use crate::command::CommandSpec;
use crate::op::Op;
use crate::part::SecuritySpec;
use crate::regs::find_bit;
use std::ops::Range;

/// A register, where it begins in the run of all, and what of it.
struct Piece {
    register: u8,
    address: u64,
    bytes: Range<usize>,
}

impl NorDriver {
    fn security(&self) -> Result<&SecuritySpec, DriverError> {
        self.part().security.as_ref().ok_or_else(|| self.no_command("reach security registers"))
    }

    /// Bytes of all security registers together; 0 where there are none.
    pub fn security_bytes(&self) -> u64 {
        let spec = self.part().security.as_ref();
        spec.map_or(0, |spec| u64::from(spec.registers) * u64::from(spec.register_bytes))
    }

    fn pieces(&self, offset: u64, bytes: usize) -> Result<Vec<Piece>, DriverError> {
        let spec = self.security()?;
        let size_bytes = self.security_bytes();
        if offset.checked_add(bytes as u64).is_none_or(|end| end > size_bytes) {
            let area = "the security area";
            return Err(DriverError::OutOfBounds { area, address: offset, bytes: bytes as u64, size_bytes });
        }
        let each = u64::from(spec.register_bytes).max(1);
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < bytes {
            let at = offset + done as u64;
            let now = (bytes - done).min((each - at % each) as usize);
            let register = (at / each) as u8;
            let address = u64::from(spec.base) + u64::from(register) * u64::from(spec.stride) + at % each;
            pieces.push(Piece { register, address, bytes: done..done + now });
            done += now;
        }
        Ok(pieces)
    }

    /// The command for the area, or the array's between B1h and C1h.
    fn security_command(&self, own: Op, array: CommandSpec) -> Result<(CommandSpec, bool), DriverError> {
        if let Some(spec) = find(self.part(), own, |_| true) {
            return Ok((spec, false));
        }
        let has_mode = find(self.part(), Op::EnterOtp, |_| true).is_some();
        has_mode.then_some((array, true)).ok_or_else(|| self.no_command("reach security registers"))
    }

    /// Does something while reads and programs go to the one-time area.
    fn in_area(
        &self,
        bus: &mut dyn SpiBus,
        enter: bool,
        act: impl FnOnce(&NorDriver, &mut dyn SpiBus) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        if !enter {
            return act(self, bus);
        }
        let need =
            |op| find(self.part(), op, |_| true).ok_or_else(|| self.no_command("reach its one-time area"));
        let (enter, exit) = (need(Op::EnterOtp)?, need(Op::ExitOtp)?);
        self.wire(bus).control(&enter)?;
        let result = act(self, bus);
        self.wire(bus).control(&exit)?;
        result
    }

    /// Reads the security area.
    ///
    /// # Errors
    /// There is none; bytes outside of it; the bus's refusal.
    pub fn read_security(
        &self,
        bus: &mut dyn SpiBus,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), DriverError> {
        let pieces = self.pieces(offset, data.len())?;
        let array = self.plan().slow_read.unwrap_or(self.plan().read);
        let (spec, enter) = self.security_command(Op::ReadSecurity, array)?;
        self.in_area(bus, enter, |driver, bus| {
            for piece in pieces {
                let header = header(&spec, piece.address, driver.mode(), spec.dummy_clocks)?;
                let data = data.get_mut(piece.bytes).unwrap_or_default();
                driver.wire(bus).receive(&header, data)?;
            }
            Ok(())
        })
    }

    /// Programs the security area.
    ///
    /// # Errors
    /// There is none; bytes outside of it or in a register that is locked; the chip reports an error; the bus's refusal.
    pub fn program_security(
        &mut self,
        bus: &mut dyn SpiBus,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DriverError> {
        use super::plan::Programming::{InPlace, Pages, Words};
        let (Pages(array) | InPlace(array) | Words { byte: array, .. }) = self.plan().programming;
        let (spec, enter) = self.security_command(Op::ProgramSecurity, array)?;
        let pieces = self.pieces(offset, data.len())?;
        for piece in &pieces {
            self.check_security_lock(bus, "security register program", piece)?;
        }
        let time = self.part().timing.page_program;
        let page = u64::from(self.part().geometry.page_bytes).max(1);
        self.in_area(bus, enter, |driver, bus| {
            for piece in pieces {
                let (mut address, mut rest) = (piece.address, data.get(piece.bytes).unwrap_or_default());
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(rest.len().min((page - address % page) as usize));
                    driver.write_enable(bus)?;
                    let header = header(&spec, address, driver.mode(), spec.dummy_clocks)?;
                    driver.wire(bus).send(&header, now)?;
                    driver.wait_ready(bus, "security register program", address, time)?;
                    address += now.len() as u64;
                    rest = later;
                }
            }
            Ok(())
        })
    }

    /// Erases whole security registers.
    ///
    /// # Errors
    /// They cannot be erased, are not named whole, or are locked; the chip reports an error; the bus's refusal.
    pub fn erase_security(
        &mut self,
        bus: &mut dyn SpiBus,
        offset: u64,
        bytes: u64,
    ) -> Result<(), DriverError> {
        let each = u64::from(self.security()?.register_bytes);
        let spec = find(self.part(), Op::EraseSecurity, |_| true);
        let spec = spec.ok_or_else(|| self.no_command("erase security registers"))?;
        if !offset.is_multiple_of(each) || !bytes.is_multiple_of(each) {
            return Err(DriverError::Unaligned { address: offset, bytes, unit: each });
        }
        let size_bytes = self.security_bytes();
        let all = usize::try_from(bytes).map_err(|_| DriverError::OutOfBounds {
            area: "the security area",
            address: offset,
            bytes,
            size_bytes,
        })?;
        for piece in self.pieces(offset, all)? {
            self.check_security_lock(bus, "security register erase", &piece)?;
            self.write_enable(bus)?;
            let header = header(&spec, piece.address, self.mode(), spec.dummy_clocks)?;
            self.wire(bus).send(&header, &[])?;
            let time = self.part().timing.erase.values().min_by_key(|time| time.typical_ns);
            self.wait_ready(
                bus,
                "security register erase",
                piece.address,
                time.copied().unwrap_or_default(),
            )?;
        }
        Ok(())
    }

    fn lock_bit(&self, register: u8) -> Option<&str> {
        let bits = &self.part().security.as_ref()?.lock_bits;
        let one = bits.get(usize::from(register)).or_else(|| bits.first().filter(|_| bits.len() == 1));
        one.map(String::as_str)
    }

    fn check_security_lock(
        &self,
        bus: &mut dyn SpiBus,
        operation: &'static str,
        piece: &Piece,
    ) -> Result<(), DriverError> {
        if self.is_security_locked(bus, piece.register)? {
            let range = piece.address..piece.address + piece.bytes.len() as u64;
            return Err(DriverError::Protected { operation, address: piece.address, range });
        }
        Ok(())
    }

    /// Whether a security register is locked for good; false where the part has no lock bit for it.
    ///
    /// # Errors
    /// The bus's refusal.
    pub fn is_security_locked(&self, bus: &mut dyn SpiBus, register: u8) -> Result<bool, DriverError> {
        let Some(name) = self.lock_bit(register) else { return Ok(false) };
        Ok(self.bit(bus, name)?.unwrap_or(false))
    }

    /// Locks a security register for good.
    ///
    /// # Errors
    /// The part has no lock bit for it; the chip did not take it; the bus's refusal.
    pub fn lock_security(&mut self, bus: &mut dyn SpiBus, register: u8) -> Result<(), DriverError> {
        let spec = self.security()?;
        let name = self.lock_bit(register).filter(|_| register < spec.registers).map(str::to_owned);
        let writable = |name: &String| find_bit(self.part(), name).is_some_and(|at| !self.is_read_only(at));
        let name = name.filter(writable).ok_or_else(|| self.no_command("lock that security register"))?;
        self.set_bits(bus, &[(&name, true)])
    }
}
