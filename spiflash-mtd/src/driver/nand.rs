//! SPI NAND: pages by way of the chip's buffer, what the on-die code found, blocks and their marks.
//!
//! Source of the sequences: Winbond W25N01GV data sheet, 8.2 (page data read, load, program execute, block erase, status
//! register 3), and the bad-block marks that the maker leaves: a byte other than FFh at the first of the spare bytes of
//! the block's first page.

use super::DriverError;
use super::plan::{find, need};
use super::registers::wait_until;
use super::wire::{Wire, header};
use crate::bus::SpiBus;
use crate::command::{AddressMode, CommandSpec};
use crate::op::{EraseUnit, Op, Reg};
use crate::part::{Kind, NandSpec, Part, Span};
use crate::regs::find_bit;
use std::sync::Arc;

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NandRead {
    /// No error, or the code is off.
    Clean,
    /// Errors that were corrected.
    Corrected,
    /// More errors than the code corrects: the data are wrong.
    Uncorrectable,
}

/// A driver for one SPI NAND chip.
#[derive(Debug, Clone)]
pub struct NandDriver {
    part: Arc<Part>,
    nand: NandSpec,
    select: u8,
    get_feature: CommandSpec,
    set_feature: CommandSpec,
    write_enable: CommandSpec,
    page_read: CommandSpec,
    read_buffer: CommandSpec,
    load: CommandSpec,
    execute: CommandSpec,
    erase: CommandSpec,
    reset: CommandSpec,
}

/// The address of a feature register (W25N01GV, table 7.1-7.3: A0h protection, B0h configuration, C0h status).
fn feature_address(register: Reg) -> u64 {
    match register {
        Reg::NandProtection => 0xA0,
        Reg::NandConfig => 0xB0,
        _ => 0xC0,
    }
}

impl NandDriver {
    /// A driver for the chip at a chip select. It sends nothing yet: see [`NandDriver::start`].
    ///
    /// # Errors
    /// A part of another kind, or without the commands that a driver needs.
    pub fn new(part: Arc<Part>, select: u8) -> Result<NandDriver, DriverError> {
        let wrong = || DriverError::WrongKind { part: part.name.clone(), kind: "no SPI NAND" };
        let nand = part.nand.clone().filter(|_| part.kind == Kind::Nand).ok_or_else(wrong)?;
        Ok(NandDriver {
            nand,
            select,
            get_feature: need(&part, Op::NandGetFeature, "read a feature")?,
            set_feature: need(&part, Op::NandSetFeature, "write a feature")?,
            write_enable: need(&part, Op::WriteEnable, "enable writes")?,
            page_read: need(&part, Op::NandPageRead, "read a page")?,
            read_buffer: need(&part, Op::NandReadBuffer, "read the buffer")?,
            load: need(&part, Op::NandLoad { keep: false }, "load the buffer")?,
            execute: need(&part, Op::NandProgramExecute, "program a page")?,
            erase: need(&part, Op::Erase(EraseUnit::NandBlock), "erase a block")?,
            reset: need(&part, Op::Reset, "reset")?,
            part,
        })
    }

    /// The part.
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// Bytes of a page: data and spare.
    pub fn page_bytes(&self) -> (u32, u32) {
        (self.part.geometry.page_bytes, self.nand.spare_bytes)
    }

    /// Bytes of a block's data.
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.part.geometry.page_bytes) * u64::from(self.nand.pages_per_block)
    }

    /// How many pages there are.
    pub fn pages(&self) -> u32 {
        let pages = self.part.geometry.size_bytes / u64::from(self.part.geometry.page_bytes.max(1));
        u32::try_from(pages).unwrap_or(u32::MAX)
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u32 {
        self.pages() / self.nand.pages_per_block.max(1)
    }

    fn wire<'b>(&self, bus: &'b mut dyn SpiBus) -> Wire<'b> {
        Wire { bus, select: self.select }
    }

    /// Resets the chip, checks who it is, has reads end with their page, and unlocks all blocks, which are locked after
    /// power-up.
    ///
    /// # Errors
    /// Another chip answers, or none; the chip stays busy; the bus's refusal.
    pub fn start(&mut self, bus: &mut dyn SpiBus) -> Result<Vec<u8>, DriverError> {
        bus.delay_ns(self.part.timing.power_up_ns);
        self.wire(bus).control(&self.reset)?;
        bus.delay_ns(self.part.timing.reset_erasing_ns.max(self.part.timing.reset_ns));
        let timing = self.part.timing.page_read;
        self.wait_ready(bus, "reset", 0, timing)?;
        let expected = &self.part.id.jedec;
        let mut found = vec![0; expected.len()];
        let spec = need(&self.part, Op::ReadJedecId, "read its ID")?;
        self.wire(bus).receive_plain(&spec, &mut found)?;
        if found != *expected {
            let (part, expected) = (self.part.name.clone(), expected.clone());
            return Err(DriverError::WrongId { part, expected, found });
        }
        if find_bit(&self.part, "buf").is_some() {
            self.set_bit(bus, "buf", true)?;
        }
        self.set_feature(bus, Reg::NandProtection, 0)?;
        Ok(found)
    }

    /// Reads a feature register.
    ///
    /// # Errors
    /// The bus's refusal.
    pub fn feature(&self, bus: &mut dyn SpiBus, register: Reg) -> Result<u8, DriverError> {
        let header = self.frame(&self.get_feature, feature_address(register))?;
        let mut value = [0];
        self.wire(bus).receive(&header, &mut value)?;
        Ok(value[0])
    }

    /// Writes a feature register.
    ///
    /// # Errors
    /// The chip stays busy; the bus's refusal.
    pub fn set_feature(&self, bus: &mut dyn SpiBus, register: Reg, value: u8) -> Result<(), DriverError> {
        let header = self.frame(&self.set_feature, feature_address(register))?;
        self.wire(bus).send(&header, &[value])?;
        self.wait_ready(bus, "feature write", feature_address(register), self.part.timing.write_status)?;
        Ok(())
    }

    fn set_bit(&self, bus: &mut dyn SpiBus, name: &str, on: bool) -> Result<(), DriverError> {
        let Some(at) = find_bit(&self.part, name) else {
            return Err(DriverError::NoCommand {
                part: self.part.name.clone(),
                what: "write that feature bit",
            });
        };
        let value = self.feature(bus, at.register)?;
        self.set_feature(bus, at.register, value & !(1 << at.bit) | u8::from(on) << at.bit)
    }

    /// Switches the on-die code.
    ///
    /// # Errors
    /// The part has none to switch; the bus's refusal.
    pub fn set_ecc(&mut self, bus: &mut dyn SpiBus, on: bool) -> Result<(), DriverError> {
        self.set_bit(bus, "ecc_e", on)
    }

    fn frame(&self, spec: &CommandSpec, address: u64) -> Result<super::wire::Header, DriverError> {
        header(spec, address, AddressMode::ThreeByte, spec.dummy_clocks)
    }

    /// Waits until the chip is ready, and gives back the status.
    fn wait_ready(
        &self,
        bus: &mut dyn SpiBus,
        operation: &'static str,
        address: u64,
        time: Span,
    ) -> Result<u8, DriverError> {
        let busy = find_bit(&self.part, "busy").map_or(1, |at| 1 << at.bit);
        let header = self.frame(&self.get_feature, feature_address(Reg::NandStatus))?;
        let mut status = [0];
        wait_until(&mut self.wire(bus), operation, address, time, |wire| {
            wire.receive(&header, &mut status)?;
            Ok(status[0] & busy == 0)
        })?;
        Ok(status[0])
    }

    fn has(&self, status: u8, name: &str) -> bool {
        let at = find_bit(&self.part, name).filter(|at| at.register == Reg::NandStatus);
        at.is_some_and(|at| status >> at.bit & 1 == 1)
    }

    fn check_page(&self, page: u32, column: u32, bytes: usize) -> Result<(), DriverError> {
        let (data, spare) = self.page_bytes();
        if page >= self.pages() {
            let (area, size_bytes) = ("the array (in pages)", u64::from(self.pages()));
            return Err(DriverError::OutOfBounds { area, address: u64::from(page), bytes: 1, size_bytes });
        }
        let (bytes, size_bytes) = (bytes as u64, u64::from(data) + u64::from(spare));
        if u64::from(column).saturating_add(bytes) > size_bytes {
            return Err(DriverError::OutOfBounds {
                area: "a page",
                address: u64::from(column),
                bytes,
                size_bytes,
            });
        }
        Ok(())
    }

    /// Reads a page from a column on; the spare bytes follow the data.
    ///
    /// # Errors
    /// Bytes outside of the page; the chip stays busy; the bus's refusal. Wrong data are no error here: see [`NandRead`].
    pub fn read_page(
        &mut self,
        bus: &mut dyn SpiBus,
        page: u32,
        column: u32,
        data: &mut [u8],
    ) -> Result<NandRead, DriverError> {
        self.check_page(page, column, data.len())?;
        self.wire(bus).send(&self.frame(&self.page_read, u64::from(page))?, &[])?;
        let time = self.part.timing.page_read;
        let status = self.wait_ready(bus, "page read", u64::from(page), time)?;
        self.wire(bus).receive(&self.frame(&self.read_buffer, u64::from(column))?, data)?;
        Ok(match (self.has(status, "ecc1"), self.has(status, "ecc0")) {
            (false, false) => NandRead::Clean,
            (false, true) => NandRead::Corrected,
            (true, _) => NandRead::Uncorrectable,
        })
    }

    /// Reads bytes of the data areas.
    ///
    /// # Errors
    /// As [`NandDriver::read_page`], and wrong data.
    pub fn read(&mut self, bus: &mut dyn SpiBus, address: u64, data: &mut [u8]) -> Result<u32, DriverError> {
        let page_bytes = u64::from(self.part.geometry.page_bytes).max(1);
        let (mut address, mut rest, mut corrected) = (address, data, 0);
        while !rest.is_empty() {
            let page = u32::try_from(address / page_bytes).unwrap_or(u32::MAX);
            let column = address % page_bytes;
            let (now, later) = rest.split_at_mut(rest.len().min((page_bytes - column) as usize));
            match self.read_page(bus, page, column as u32, now)? {
                NandRead::Clean => {}
                NandRead::Corrected => corrected += 1,
                NandRead::Uncorrectable => return Err(DriverError::Uncorrectable { page }),
            }
            address += now.len() as u64;
            rest = later;
        }
        Ok(corrected)
    }

    /// Programs a page from a column on; what is not named stays erased.
    ///
    /// # Errors
    /// Bytes outside of the page; the chip reports an error or stays busy; the bus's refusal.
    pub fn program_page(
        &mut self,
        bus: &mut dyn SpiBus,
        page: u32,
        column: u32,
        data: &[u8],
    ) -> Result<(), DriverError> {
        self.check_page(page, column, data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        self.wire(bus).control(&self.write_enable)?;
        self.wire(bus).send(&self.frame(&self.load, u64::from(column))?, data)?;
        self.wire(bus).send(&self.frame(&self.execute, u64::from(page))?, &[])?;
        let time = self.part.timing.page_program;
        let status = self.wait_ready(bus, "page program", u64::from(page), time)?;
        self.failed(status, "p_fail", "page program", u64::from(page))
    }

    fn failed(
        &self,
        status: u8,
        bit: &str,
        operation: &'static str,
        address: u64,
    ) -> Result<(), DriverError> {
        if self.has(status, bit) { Err(DriverError::Failed { operation, address, status }) } else { Ok(()) }
    }

    fn first_page(&self, block: u32) -> Result<u32, DriverError> {
        let (area, size_bytes) = ("the array (in blocks)", u64::from(self.blocks()));
        if block >= self.blocks() {
            return Err(DriverError::OutOfBounds { area, address: u64::from(block), bytes: 1, size_bytes });
        }
        Ok(block * self.nand.pages_per_block)
    }

    /// Erases a block.
    ///
    /// # Errors
    /// No such block; the chip reports an error or stays busy; the bus's refusal.
    pub fn erase_block(&mut self, bus: &mut dyn SpiBus, block: u32) -> Result<(), DriverError> {
        let page = self.first_page(block)?;
        self.wire(bus).control(&self.write_enable)?;
        self.wire(bus).send(&self.frame(&self.erase, u64::from(page))?, &[])?;
        let time = self.part.timing.erase.get(&EraseUnit::NandBlock).copied().unwrap_or_default();
        let status = self.wait_ready(bus, "block erase", u64::from(page), time)?;
        self.failed(status, "e_fail", "block erase", u64::from(page))
    }

    /// Whether a block is marked bad.
    ///
    /// # Errors
    /// No such block; the chip stays busy; the bus's refusal.
    pub fn is_bad(&mut self, bus: &mut dyn SpiBus, block: u32) -> Result<bool, DriverError> {
        let page = self.first_page(block)?;
        let mut spare = [0xFF];
        self.read_page(bus, page, self.part.geometry.page_bytes, &mut spare)?;
        Ok(spare[0] != 0xFF)
    }

    /// Marks a block bad.
    ///
    /// # Errors
    /// As [`NandDriver::program_page`].
    pub fn mark_bad(&mut self, bus: &mut dyn SpiBus, block: u32) -> Result<(), DriverError> {
        let page = self.first_page(block)?;
        self.program_page(bus, page, self.part.geometry.page_bytes, &[0])
    }

    /// The blocks that are marked bad.
    ///
    /// # Errors
    /// As [`NandDriver::is_bad`].
    pub fn bad_blocks(&mut self, bus: &mut dyn SpiBus) -> Result<Vec<u32>, DriverError> {
        let mut bad = Vec::new();
        for block in 0..self.blocks() {
            if self.is_bad(bus, block)? {
                bad.push(block);
            }
        }
        Ok(bad)
    }

    /// The last page whose errors were more than the code corrects, where the part remembers it.
    ///
    /// # Errors
    /// The part has no command for it; the bus's refusal.
    pub fn last_failure(&self, bus: &mut dyn SpiBus) -> Result<u32, DriverError> {
        let no = || DriverError::NoCommand { part: self.part.name.clone(), what: "tell the last failure" };
        let spec = find(&self.part, Op::NandLastFailure, |_| true).ok_or_else(no)?;
        let mut page = [0; 2];
        self.wire(bus).receive(&self.frame(&spec, 0)?, &mut page)?;
        Ok(u32::from(u16::from_be_bytes(page)))
    }
}
