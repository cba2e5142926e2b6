//! SPI NOR flash and the memories written like RAM: identify, read, program, erase.
//!
//! Source of the sequences: JEDEC JESD216 (4-byte address methods, dword 16) and the instruction descriptions of the part's
//! data sheet (Winbond W25Q128JV, 8.2: write enable before each program and erase, polling of BUSY after it).

use super::plan::{Addressing, Plan, Programming, WINDOW_BYTES, need};
use super::registers::Signals;
use super::wire::{Wire, header};
use super::{DriverError, SfdpFacts, sfdp};
use crate::bus::SpiBus;
use crate::command::CommandSpec;
use crate::op::{EraseUnit, Op};
use crate::part::{Kind, Part, Span};
use std::ops::Range;
use std::sync::Arc;

/// What the chip says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What 9Fh gives: as many bytes as the part's data sheet names; empty where the part has no such command.
    pub jedec: Vec<u8>,
    /// What its SFDP tables say, if it has any.
    pub sfdp: Option<SfdpFacts>,
}

/// A run of sectors of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EraseRegion {
    /// The first byte.
    pub offset: u64,
    /// Bytes of a sector.
    pub sector_bytes: u32,
    /// How many there are.
    pub sectors: u32,
}

impl EraseRegion {
    fn end(&self) -> u64 {
        self.offset + u64::from(self.sector_bytes) * u64::from(self.sectors)
    }
}

/// A driver for one chip.
#[derive(Debug, Clone)]
pub struct NorDriver {
    part: Arc<Part>,
    select: u8,
    plan: Plan,
    signals: Signals,
    regions: Vec<EraseRegion>,
    /// The dummy clocks of the read command, which a register may set.
    read_dummy: u8,
    /// The upper address bits that were last written to the chip, where it has a register for them.
    window: Option<u8>,
}

impl NorDriver {
    /// A driver for the chip at a chip select. It sends nothing yet: see [`NorDriver::start`].
    ///
    /// # Errors
    /// A part of another kind, or without the commands that a driver needs.
    pub fn new(part: Arc<Part>, select: u8) -> Result<NorDriver, DriverError> {
        if part.kind == Kind::Nand {
            return Err(DriverError::WrongKind { part: part.name.clone(), kind: "SPI NAND" });
        }
        let plan = Plan::of(&part)?;
        let (signals, regions, read_dummy) = (Signals::of(&part), regions(&part), plan.read.dummy_clocks);
        Ok(NorDriver { part, select, plan, signals, regions, read_dummy, window: None })
    }

    /// The part.
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// The chip select.
    pub fn select(&self) -> u8 {
        self.select
    }

    /// Bytes of the array.
    pub fn size_bytes(&self) -> u64 {
        self.part.geometry.size_bytes
    }

    /// The runs of sectors of one size, by address. Of a memory that needs no erase, one sector.
    pub fn regions(&self) -> &[EraseRegion] {
        &self.regions
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn signals(&self) -> &Signals {
        &self.signals
    }

    pub(super) fn wire<'b>(&self, bus: &'b mut dyn SpiBus) -> Wire<'b> {
        Wire { bus, select: self.select }
    }

    pub(super) fn mode(&self) -> crate::command::AddressMode {
        self.plan.addressing.mode()
    }

    pub(super) fn no_command(&self, what: &'static str) -> DriverError {
        DriverError::NoCommand { part: self.part.name.clone(), what }
    }

    /// What a driver does once power is there: waits for it, wakes the chip, checks who it is, and enters the 4-byte mode
    /// where that is how its upper half is reached.
    ///
    /// # Errors
    /// Another chip answers, or none; the bus's refusal.
    pub fn start(&mut self, bus: &mut dyn SpiBus) -> Result<Identity, DriverError> {
        bus.delay_ns(self.part.timing.power_up_ns);
        self.release(bus)?;
        let identity = self.identify(bus)?;
        self.window = None;
        if let Addressing::Mode(enter) = self.plan.addressing {
            // Micron takes B7h only after 06h; to others that is nothing.
            self.write_enable(bus)?;
            self.wire(bus).control(&enter)?;
            if let Some(disable) = self.plan.write_disable {
                self.wire(bus).control(&disable)?;
            }
        }
        self.read_dummy = self.dummy_of_read(bus)?;
        Ok(identity)
    }

    /// Reads the ID and the SFDP tables, and compares them with the part.
    ///
    /// # Errors
    /// Another chip answers, or none; the bus's refusal.
    pub fn identify(&self, bus: &mut dyn SpiBus) -> Result<Identity, DriverError> {
        let expected = &self.part.id.jedec;
        let mut jedec = vec![0; expected.len()];
        if !expected.is_empty() {
            let spec = need(&self.part, Op::ReadJedecId, "read its ID")?;
            self.wire(bus).receive_plain(&spec, &mut jedec)?;
        }
        if jedec != *expected {
            let (part, expected) = (self.part.name.clone(), expected.clone());
            return Err(DriverError::WrongId { part, expected, found: jedec });
        }
        let sfdp = if self.part.sfdp.is_some() { self.read_sfdp_facts(bus)? } else { None };
        match sfdp.and_then(|facts| facts.size_bytes) {
            Some(found) if found != self.size_bytes() => Err(DriverError::WrongSize {
                part: self.part.name.clone(),
                expected: self.size_bytes(),
                found,
            }),
            _ => Ok(Identity { jedec, sfdp }),
        }
    }

    fn read_sfdp_facts(&self, bus: &mut dyn SpiBus) -> Result<Option<SfdpFacts>, DriverError> {
        let mut first = [0; sfdp::HEADER_BYTES];
        self.read_sfdp(bus, 0, &mut first)?;
        let Some((at, bytes)) = sfdp::basic_table(&first) else { return Ok(None) };
        let mut table = [0; sfdp::BASIC_BYTES];
        let table = table.get_mut(..bytes).unwrap_or_default();
        self.read_sfdp(bus, at, table)?;
        Ok(sfdp::facts(&first, table))
    }

    /// Reads the SFDP area.
    ///
    /// # Errors
    /// The part has none; the bus's refusal.
    pub fn read_sfdp(&self, bus: &mut dyn SpiBus, address: u32, data: &mut [u8]) -> Result<(), DriverError> {
        let spec = need(&self.part, Op::ReadSfdp, "read SFDP tables")?;
        let header = header(&spec, u64::from(address), self.mode(), spec.dummy_clocks)?;
        self.wire(bus).receive(&header, data)
    }

    /// The dummy clocks of the read: those of the register that sets them, where there is one.
    fn dummy_of_read(&self, bus: &mut dyn SpiBus) -> Result<u8, DriverError> {
        let read = &self.plan.read;
        let Some(rule) = self.part.bus.dummy.as_ref().filter(|rule| read.tunable_dummy && !rule.only_qpi)
        else {
            return Ok(read.dummy_clocks);
        };
        let value = self.read_register(bus, rule.register)?;
        let field = value.checked_shr(u32::from(rule.shift)).unwrap_or(0) & rule.mask;
        let clocks = rule.clocks.get(usize::from(field)).copied().unwrap_or(0);
        Ok(if clocks == 0 { read.dummy_clocks } else { clocks })
    }

    fn check_bounds(&self, address: u64, bytes: u64) -> Result<(), DriverError> {
        let size_bytes = self.size_bytes();
        if address.checked_add(bytes).is_none_or(|end| end > size_bytes) {
            return Err(DriverError::OutOfBounds { area: "the array", address, bytes, size_bytes });
        }
        Ok(())
    }

    /// Sets the upper address bits where a register has them; gives back the address to send.
    fn reach(&mut self, bus: &mut dyn SpiBus, address: u64) -> Result<u64, DriverError> {
        let Addressing::Window(spec) = self.plan.addressing else { return Ok(address) };
        let window = (address / WINDOW_BYTES) as u8;
        if self.window != Some(window) {
            self.window = None;
            self.write_enable(bus)?;
            let header = header(&spec, 0, self.mode(), 0)?;
            self.wire(bus).send(&header, &[window])?;
            self.wait_ready(bus, "address register write", address, Span::default())?;
            self.window = Some(window);
        }
        Ok(address % WINDOW_BYTES)
    }

    /// How many of the bytes at an address can be in one frame.
    fn in_window(&self, address: u64, bytes: usize) -> usize {
        let Addressing::Window(_) = self.plan.addressing else { return bytes };
        bytes.min((WINDOW_BYTES - address % WINDOW_BYTES) as usize)
    }

    /// Reads.
    ///
    /// # Errors
    /// Bytes outside of the array; the bus's refusal.
    pub fn read(&mut self, bus: &mut dyn SpiBus, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        self.check_bounds(address, data.len() as u64)?;
        let (mut spec, mut dummy) = (self.plan.read, self.read_dummy);
        if let Some(slow) = self.plan.slow_read.filter(|_| !dummy.is_multiple_of(8)) {
            (spec, dummy) = (slow, 0);
        }
        let (mut address, mut rest) = (address, data);
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(self.in_window(address, rest.len()));
            let reached = self.reach(bus, address)?;
            let header = header(&spec, reached, self.mode(), dummy)?;
            self.wire(bus).receive(&header, now)?;
            address += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Programs: bits go from 1 to 0, pages at a time. Memories written like RAM are overwritten.
    ///
    /// # Errors
    /// Bytes outside of the array; the chip reports an error or stays busy; the bus's refusal. What was programmed before the
    /// error stays.
    pub fn program(&mut self, bus: &mut dyn SpiBus, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.check_bounds(address, data.len() as u64)?;
        let programming = self.plan.programming;
        let page = match programming {
            Programming::Words { word, byte } => return self.program_words(bus, &word, &byte, address, data),
            Programming::Pages(_) => u64::from(self.part.geometry.page_bytes).max(1),
            Programming::InPlace(_) => WINDOW_BYTES,
        };
        let (Programming::Pages(spec) | Programming::InPlace(spec)) = programming else { return Ok(()) };
        let time = self.part.timing.page_program;
        let (mut address, mut rest) = (address, data);
        while !rest.is_empty() {
            let room = (page - address % page) as usize;
            let (now, later) = rest.split_at(room.min(rest.len()));
            let reached = self.reach(bus, address)?;
            self.write_enable(bus)?;
            let header = header(&spec, reached, self.mode(), spec.dummy_clocks)?;
            self.wire(bus).send(&header, now)?;
            if !self.part.kind.is_ram() {
                self.wait_ready(bus, "page program", address, time)?;
            }
            address += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// SST25: words by auto address increment; a byte program where a word would begin or end half.
    fn program_words(
        &mut self,
        bus: &mut dyn SpiBus,
        word: &CommandSpec,
        byte: &CommandSpec,
        address: u64,
        data: &[u8],
    ) -> Result<(), DriverError> {
        let time = self.part.timing.page_program;
        let odd = usize::from(address % 2 == 1 && !data.is_empty());
        let (head, rest) = data.split_at(odd);
        let (middle, tail) = rest.split_at(rest.len() & !1);
        let words_at = address + odd as u64;
        let mut single = |driver: &NorDriver, at: u64, data: &[u8]| {
            if data.is_empty() {
                return Ok(());
            }
            driver.write_enable(bus)?;
            let header = header(byte, at, driver.mode(), 0)?;
            driver.wire(bus).send(&header, data)?;
            driver.wait_ready(bus, "byte program", at, time)
        };
        single(self, address, head)?;
        single(self, words_at + middle.len() as u64, tail)?;
        if middle.is_empty() {
            return Ok(());
        }
        self.write_enable(bus)?;
        let mut result = Ok(());
        for (n, pair) in middle.chunks_exact(2).enumerate() {
            let at = words_at + 2 * n as u64;
            // The first frame has the address; those after it only the opcode.
            let first = if n == 0 { header(word, at, self.mode(), 0)? } else { super::wire::opcode(word) };
            self.wire(bus).send(&first, pair)?;
            result = self.wait_ready(bus, "word program", at, time);
            if result.is_err() {
                break;
            }
        }
        // Only 04h ends the mode, after an error too.
        if let Some(disable) = self.plan.write_disable {
            self.wire(bus).control(&disable)?;
        }
        result
    }

    /// The sector that an address is in.
    pub fn sector_at(&self, address: u64) -> Option<Range<u64>> {
        let region = self.regions.iter().find(|region| (region.offset..region.end()).contains(&address))?;
        let bytes = u64::from(region.sector_bytes);
        let start = region.offset + (address - region.offset) / bytes * bytes;
        Some(start..start + bytes)
    }

    /// Erases, each time by the largest unit that fits; the whole array by a chip erase.
    ///
    /// # Errors
    /// A range that does not begin and end with sectors or is not in the array; the chip reports an error or stays busy; the
    /// bus's refusal. What was erased before the error stays so.
    pub fn erase(&mut self, bus: &mut dyn SpiBus, address: u64, bytes: u64) -> Result<(), DriverError> {
        self.check_bounds(address, bytes)?;
        let end = address + bytes;
        for edge in [address, end] {
            if edge < self.size_bytes()
                && let Some(sector) = self.sector_at(edge)
                && sector.start != edge
            {
                return Err(DriverError::Unaligned { address, bytes, unit: sector.end - sector.start });
            }
        }
        if self.part.kind.is_ram() {
            return self.fill(bus, address, bytes);
        }
        if bytes == self.size_bytes()
            && let Some(spec) = self.plan.chip_erase
        {
            self.write_enable(bus)?;
            self.wire(bus).control(&spec)?;
            return self.wait_ready(bus, "chip erase", 0, self.part.timing.chip_erase);
        }
        let mut address = address;
        while address < end {
            let (unit, spec, next) =
                self.erase_at(address, end).ok_or_else(|| self.no_command("erase there"))?;
            let reached = self.reach(bus, address)?;
            self.write_enable(bus)?;
            let header = header(&spec, reached, self.mode(), spec.dummy_clocks)?;
            self.wire(bus).send(&header, &[])?;
            let time = self.part.timing.erase.get(&unit).copied().unwrap_or_default();
            self.wait_ready(bus, "erase", address, time)?;
            address = next;
        }
        Ok(())
    }

    /// The largest erase that begins at an address and ends by `end`: its unit, its command, and where it ends.
    fn erase_at(&self, address: u64, end: u64) -> Option<(EraseUnit, CommandSpec, u64)> {
        let fits = |(unit, spec): &(EraseUnit, CommandSpec)| {
            let range = self.erased_by(*unit, address)?;
            (range.start == address && range.end <= end).then_some((*unit, *spec, range.end))
        };
        self.plan.erases.iter().filter_map(fits).max_by_key(|(.., next)| *next)
    }

    /// What an erase at an address erases; `None` where the part does not take it there.
    fn erased_by(&self, unit: EraseUnit, address: u64) -> Option<Range<u64>> {
        if unit == EraseUnit::Mapped {
            return mapped_block(&self.part, address);
        }
        let bytes = self.part.erase_bytes(unit)?;
        let start = address / bytes * bytes;
        // Where sectors are of several sizes, an erase works on sectors of its own size only.
        let uniform = self.regions.len() == 1;
        let own = self.sector_at(address).is_some_and(|sector| sector.end - sector.start == bytes);
        (uniform || own).then_some(start..start + bytes)
    }

    /// What stands for an erase in a memory that has none: FFh.
    fn fill(&mut self, bus: &mut dyn SpiBus, address: u64, bytes: u64) -> Result<(), DriverError> {
        let ones = [0xFF; 4096];
        let (mut address, end) = (address, address + bytes);
        while address < end {
            let now = ones.get(..(end - address).min(4096) as usize).unwrap_or_default();
            self.program(bus, address, now)?;
            address += now.len() as u64;
        }
        Ok(())
    }
}

/// The runs of blocks of the part's map, by address.
fn map_regions(part: &Part) -> Vec<EraseRegion> {
    let mut offset = 0;
    let runs = part.geometry.blocks.iter().map(|[sectors, sector_bytes]| {
        let region = EraseRegion { offset, sector_bytes: *sector_bytes, sectors: *sectors };
        offset = region.end();
        region
    });
    runs.collect()
}

fn mapped_block(part: &Part, address: u64) -> Option<Range<u64>> {
    let region =
        map_regions(part).into_iter().find(|region| (region.offset..region.end()).contains(&address))?;
    let bytes = u64::from(region.sector_bytes);
    let start = region.offset + (address - region.offset) / bytes * bytes;
    Some(start..start + bytes)
}

/// The smallest erases, by address. A map of blocks that a mapped erase goes by says nothing of the smallest ones.
fn regions(part: &Part) -> Vec<EraseRegion> {
    let mapped = part.commands.iter().any(|spec| spec.op == Op::Erase(EraseUnit::Mapped));
    let (size, sector) = (part.geometry.size_bytes, part.geometry.sector_bytes.max(1));
    if part.geometry.blocks.is_empty() || mapped {
        let sectors = u32::try_from(size / u64::from(sector)).unwrap_or(u32::MAX);
        return vec![EraseRegion { offset: 0, sector_bytes: sector, sectors }];
    }
    map_regions(part)
}
