//! A chip as an MTD: what `read`, `write` and the ioctls of `/dev/mtdN` do, over a driver on a shared bus.
//!
//! The invariant: it answers as the kernel's mtdchar.c and mtdcore.c would (Linux 6.12), down to the errno, but for two
//! things. A write or an erase of protected bytes is refused with EROFS, as the kernel's CFI driver does; its spi-nor driver
//! sends the command, which the chip ignores, and says nothing. And a memory without erases takes an erase as mtdram does:
//! it is filled with FFh.

use super::ioctl::{
    self, EccStats, FileMode, MtdInfo, MtdRequest, encode_otp, encode_region, flag, mtd_type,
};
use crate::bus::SpiBus;
use crate::driver::{DriverError, NandDriver, NandRead, NorDriver};
use crate::fronts::{BusGuard, SharedBus, lock};
use crate::part::{Kind, Part};
use nix::errno::Errno;
use serde_json::json;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An answer to an ioctl.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// What ioctl(2) returns.
    pub result: i32,
    /// What is copied to where its argument points.
    pub bytes: Vec<u8>,
}

/// The errno of a driver's error, as mtdchar.c and the drivers below it give.
pub fn errno(error: &DriverError) -> Errno {
    match error {
        DriverError::OutOfBounds { .. }
        | DriverError::Unaligned { .. }
        | DriverError::AddressTooLarge { .. }
        | DriverError::NoSuchRange { .. } => Errno::EINVAL,
        DriverError::NoCommand { .. } | DriverError::WrongKind { .. } => Errno::EOPNOTSUPP,
        DriverError::Protected { .. } => Errno::EROFS,
        DriverError::Timeout { .. } => Errno::ETIMEDOUT,
        DriverError::WrongId { .. } | DriverError::WrongSize { .. } => Errno::ENODEV,
        DriverError::Uncorrectable { .. } => Errno::EBADMSG,
        DriverError::Bus(_)
        | DriverError::BrokenDummy { .. }
        | DriverError::Failed { .. }
        | DriverError::NotTaken { .. }
        | DriverError::BadBlock { .. } => Errno::EIO,
    }
}

#[derive(Debug)]
enum Chip {
    Nor(Box<NorDriver>),
    Nand(Box<NandDriver>),
}

/// What was asked of an MTD since it was made.
#[derive(Debug, Default)]
struct Counters {
    reads: u64,
    read_bytes: u64,
    writes: u64,
    written_bytes: u64,
    erases: u64,
    erased_bytes: u64,
    refused: u64,
}

#[derive(Debug)]
struct Inner {
    chip: Chip,
    ecc: EccStats,
    counters: Counters,
}

/// A chip as an MTD.
pub struct MtdDevice {
    name: String,
    part: Arc<Part>,
    select: u8,
    bus: SharedBus,
    inner: Mutex<Inner>,
}

impl MtdDevice {
    /// The chip at a chip select, identified and ready. What is locked by its power-up alone is unlocked, as the kernel does
    /// (mtdcore.c, `MTD_POWERUP_LOCK`).
    ///
    /// # Errors
    /// Another chip answers, or none.
    pub fn new(name: &str, bus: SharedBus, part: Arc<Part>, select: u8) -> Result<MtdDevice, DriverError> {
        let chip = match part.kind {
            Kind::Nand => Chip::Nand(Box::new(NandDriver::new(Arc::clone(&part), select)?)),
            _ => Chip::Nor(Box::new(NorDriver::new(Arc::clone(&part), select)?)),
        };
        let inner = Inner { chip, ecc: EccStats::default(), counters: Counters::default() };
        let device = MtdDevice { name: name.to_owned(), part, select, bus, inner: Mutex::new(inner) };
        device.restart()?;
        Ok(device)
    }

    /// Its name, like `mtd0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The part.
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// The chip select.
    pub fn select(&self) -> u8 {
        self.select
    }

    /// The bus.
    pub fn bus(&self) -> &SharedBus {
        &self.bus
    }

    /// The driver first and then the bus, always in this order.
    fn both(&self) -> (MutexGuard<'_, Inner>, BusGuard<'_>) {
        (self.inner.lock().unwrap_or_else(PoisonError::into_inner), lock(&self.bus))
    }

    /// What is done after the chip's power came back.
    ///
    /// # Errors
    /// As [`MtdDevice::new`].
    pub fn restart(&self) -> Result<(), DriverError> {
        let (mut inner, mut bus) = self.both();
        let Inner { chip, ecc, .. } = &mut *inner;
        match chip {
            Chip::Nor(driver) => {
                driver.start(&mut *bus)?;
                if driver.locked_at_power_up() {
                    driver.unlock(&mut *bus, 0..driver.size_bytes())?;
                }
            }
            Chip::Nand(driver) => {
                driver.start(&mut *bus)?;
                ecc.bad_blocks = u32::try_from(driver.bad_blocks(&mut *bus)?.len()).unwrap_or(u32::MAX);
            }
        }
        Ok(())
    }

    /// Bytes of the array.
    pub fn size_bytes(&self) -> u64 {
        self.part.geometry.size_bytes
    }

    /// Bytes of the one-time area.
    pub fn otp_bytes(&self) -> u64 {
        match &self.inner.lock().unwrap_or_else(PoisonError::into_inner).chip {
            Chip::Nor(driver) => driver.security_bytes(),
            Chip::Nand(_) => 0,
        }
    }

    /// Bytes of what a file in this mode shows.
    pub fn bytes_of(&self, mode: FileMode) -> u64 {
        match mode {
            FileMode::Normal | FileMode::Raw => self.size_bytes(),
            FileMode::OtpUser => self.otp_bytes(),
            FileMode::OtpFactory => 0,
        }
    }

    fn count<T>(&self, inner: &mut Inner, what: &str, result: Result<T, Errno>) -> Result<T, Errno> {
        if let Err(errno) = &result {
            inner.counters.refused += 1;
            log::debug!("{}: {what}: {errno}", self.name);
        }
        result
    }

    fn driver_errno(&self, error: &DriverError) -> Errno {
        log::warn!("{}: {error}", self.name);
        errno(error)
    }

    /// Reads; gives back fewer bytes, or none, at the end.
    ///
    /// # Errors
    /// What the chip or the bus refused, as an errno.
    pub fn read(&self, mode: FileMode, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        let room = self.bytes_of(mode).saturating_sub(offset);
        let bytes = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let data = data.get_mut(..bytes).unwrap_or_default();
        let (mut inner, mut bus) = self.both();
        inner.counters.reads += 1;
        inner.counters.read_bytes += bytes as u64;
        let Inner { chip, ecc, .. } = &mut *inner;
        let result = match (chip, mode) {
            _ if data.is_empty() => Ok(()),
            (Chip::Nor(driver), FileMode::OtpUser) => driver.read_security(&mut *bus, offset, data),
            (Chip::Nor(driver), _) => driver.read(&mut *bus, offset, data),
            (Chip::Nand(driver), _) => read_nand(driver, ecc, &mut *bus, offset, data),
        };
        let result = result.map(|()| bytes).map_err(|error| self.driver_errno(&error));
        self.count(&mut inner, "read", result)
    }

    /// Programs; gives back fewer bytes at the end.
    ///
    /// # Errors
    /// `ENOSPC` beyond the end; `EROFS` for protected bytes; what the chip or the bus refused.
    pub fn write(&self, mode: FileMode, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let room = self.bytes_of(mode).saturating_sub(offset);
        let (mut inner, mut bus) = self.both();
        if data.is_empty() {
            return Ok(0);
        }
        if room == 0 {
            return self.count(&mut inner, "write beyond the end", Err(Errno::ENOSPC));
        }
        let bytes = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let data = data.get(..bytes).unwrap_or_default();
        inner.counters.writes += 1;
        inner.counters.written_bytes += bytes as u64;
        let result = match (&mut inner.chip, mode) {
            (Chip::Nor(driver), FileMode::OtpUser) => driver.program_security(&mut *bus, offset, data),
            (Chip::Nor(driver), _) => refuse_protected(driver, &mut *bus, "write", offset, bytes as u64)
                .and_then(|()| driver.program(&mut *bus, offset, data)),
            (Chip::Nand(driver), _) => write_nand(driver, &mut *bus, offset, data),
        };
        let result = result.map(|()| bytes).map_err(|error| self.driver_errno(&error));
        self.count(&mut inner, "write", result)
    }

    /// Carries out an ioctl: its number, its argument where the front can see it, and the bytes that the argument points to.
    ///
    /// # Errors
    /// An errno, as mtdchar.c would give.
    pub fn ioctl(
        &self,
        mode: &mut FileMode,
        writable: bool,
        number: u32,
        argument: Option<u64>,
        input: &[u8],
    ) -> Result<Answer, Errno> {
        let shape = ioctl::shape(number).ok_or(Errno::ENOTTY)?;
        let request = ioctl::decode(number, argument, input)?;
        let (mut inner, mut bus) = self.both();
        let result = if shape.writes && !writable {
            Err(Errno::EPERM)
        } else {
            self.answer(&mut inner, &mut *bus, mode, request)
        };
        self.count(&mut inner, shape.name, result)
    }

    fn answer(
        &self,
        inner: &mut Inner,
        bus: &mut dyn SpiBus,
        mode: &mut FileMode,
        request: MtdRequest,
    ) -> Result<Answer, Errno> {
        let bytes = |bytes: Vec<u8>| Ok(Answer { result: 0, bytes });
        let done = |result: Result<(), Errno>| result.map(|()| Answer::default());
        match request {
            MtdRequest::GetInfo => bytes(self.info(&inner.chip).encode().to_vec()),
            MtdRequest::Erase { start, length } => done(self.erase(inner, bus, start, length)),
            MtdRequest::Lock { start, length } => done(self.lock(inner, bus, start, length, true)),
            MtdRequest::Unlock { start, length } => done(self.lock(inner, bus, start, length, false)),
            MtdRequest::IsLocked { range } => self.is_locked(inner, bus, range),
            MtdRequest::GetRegionCount => {
                bytes(u32::try_from(regions(&inner.chip).len()).unwrap_or(0).to_ne_bytes().to_vec())
            }
            MtdRequest::GetRegionInfo { index } => {
                let regions = regions(&inner.chip);
                let region = regions.get(index as usize).ok_or(Errno::EINVAL)?;
                bytes(encode_region(region.offset as u32, region.sector_bytes, region.sectors, index))
            }
            MtdRequest::GetBadBlock { offset } => self.bad_block(inner, bus, offset, false),
            MtdRequest::SetBadBlock { offset } => self.bad_block(inner, bus, offset, true),
            MtdRequest::OtpSelect { mode: wanted } => {
                *mode = match wanted {
                    Some(FileMode::OtpUser) if has_otp(&inner.chip) => FileMode::OtpUser,
                    Some(FileMode::OtpUser | FileMode::OtpFactory) => return Err(Errno::EOPNOTSUPP),
                    Some(FileMode::Normal) => FileMode::Normal,
                    Some(FileMode::Raw) | None => return Err(Errno::EINVAL),
                };
                Ok(Answer::default())
            }
            MtdRequest::FileMode { mode: wanted } => {
                *mode = match wanted {
                    Some(FileMode::OtpUser) if !has_otp(&inner.chip) => return Err(Errno::EOPNOTSUPP),
                    Some(FileMode::OtpFactory) => return Err(Errno::EOPNOTSUPP),
                    Some(wanted) => wanted,
                    None => return Err(Errno::EINVAL),
                };
                Ok(Answer::default())
            }
            MtdRequest::OtpGetRegionCount | MtdRequest::OtpGetRegionInfo if *mode != FileMode::OtpUser => {
                Err(Errno::EINVAL)
            }
            MtdRequest::OtpGetRegionCount => bytes(
                self.part
                    .security
                    .as_ref()
                    .map_or(0, |spec| u32::from(spec.registers))
                    .to_ne_bytes()
                    .to_vec(),
            ),
            MtdRequest::OtpGetRegionInfo => bytes(self.otp_regions(inner, bus)?),
            MtdRequest::OtpLock { .. } | MtdRequest::OtpErase { .. } if *mode != FileMode::OtpUser => {
                Err(Errno::EINVAL)
            }
            MtdRequest::OtpLock { start, length } => done(self.otp_lock(inner, bus, start, length)),
            MtdRequest::OtpErase { start, length } => match &mut inner.chip {
                Chip::Nor(driver) => {
                    done(driver.erase_security(bus, start, length).map_err(|error| self.driver_errno(&error)))
                }
                Chip::Nand(_) => Err(Errno::EOPNOTSUPP),
            },
            MtdRequest::EccGetStats => bytes(inner.ecc.encode()),
            MtdRequest::Unsupported => Err(Errno::EOPNOTSUPP),
        }
    }

    fn info(&self, chip: &Chip) -> MtdInfo {
        let size = self.size_bytes() as u32;
        match chip {
            Chip::Nor(driver) => {
                let ram = self.part.kind.is_ram();
                let mut flags = flag::WRITEABLE | flag::BIT_WRITEABLE;
                flags |= if ram { flag::NO_ERASE } else { 0 };
                flags |= if driver.locked_at_power_up() { flag::POWERUP_LOCK } else { 0 };
                let erase_size = driver.regions().iter().map(|region| region.sector_bytes).max().unwrap_or(0);
                let mtd_type = if ram { mtd_type::RAM } else { mtd_type::NOR };
                MtdInfo { mtd_type, flags, size, erase_size, write_size: 1, oob_size: 0 }
            }
            Chip::Nand(driver) => {
                let (write_size, oob_size) = driver.page_bytes();
                let erase_size = driver.block_bytes() as u32;
                let (mtd_type, flags) = (mtd_type::NAND, flag::WRITEABLE);
                MtdInfo { mtd_type, flags, size, erase_size, write_size, oob_size }
            }
        }
    }

    /// mtdcore.c: bytes beyond the end are EINVAL.
    fn check(&self, start: u64, length: u64) -> Result<(), Errno> {
        let size = self.size_bytes();
        if start >= size || length > size - start { Err(Errno::EINVAL) } else { Ok(()) }
    }

    fn erase(&self, inner: &mut Inner, bus: &mut dyn SpiBus, start: u64, length: u64) -> Result<(), Errno> {
        self.check(start, length)?;
        if length == 0 {
            return Ok(());
        }
        inner.counters.erases += 1;
        inner.counters.erased_bytes += length;
        let result = match &mut inner.chip {
            Chip::Nor(driver) => refuse_protected(driver, bus, "erase", start, length)
                .and_then(|()| driver.erase(bus, start, length)),
            Chip::Nand(driver) => erase_nand(driver, bus, start, length),
        };
        result.map_err(|error| self.driver_errno(&error))
    }

    fn lock(
        &self,
        inner: &mut Inner,
        bus: &mut dyn SpiBus,
        start: u64,
        length: u64,
        locks: bool,
    ) -> Result<(), Errno> {
        let Chip::Nor(driver) = &mut inner.chip else { return Err(Errno::EOPNOTSUPP) };
        if !driver.can_lock() {
            return Err(Errno::EOPNOTSUPP);
        }
        self.check(start, length)?;
        if length == 0 {
            return Ok(());
        }
        let range = start..start + length;
        let result = if locks { driver.lock(bus, range) } else { driver.unlock(bus, range) };
        result.map_err(|error| self.driver_errno(&error))
    }

    /// A front that cannot see which bytes are meant still knows the answer where it is the same for all.
    fn is_locked(
        &self,
        inner: &mut Inner,
        bus: &mut dyn SpiBus,
        range: Option<(u64, u64)>,
    ) -> Result<Answer, Errno> {
        let Chip::Nor(driver) = &mut inner.chip else { return Err(Errno::EOPNOTSUPP) };
        if !driver.can_lock() {
            return Err(Errno::EOPNOTSUPP);
        }
        let fail = |error: DriverError| self.driver_errno(&error);
        let locked = match range {
            Some((start, length)) => {
                self.check(start, length)?;
                length > 0 && driver.is_locked(bus, start..start + length).map_err(fail)?
            }
            None if driver.is_locked(bus, 0..self.size_bytes()).map_err(fail)? => true,
            None if driver.locked(bus).map_err(fail)?.is_empty() => false,
            None => return Err(Errno::EOPNOTSUPP),
        };
        Ok(Answer { result: i32::from(locked), bytes: Vec::new() })
    }

    fn bad_block(
        &self,
        inner: &mut Inner,
        bus: &mut dyn SpiBus,
        offset: i64,
        mark: bool,
    ) -> Result<Answer, Errno> {
        let offset = u64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        self.check(offset, 0)?;
        let Chip::Nand(driver) = &mut inner.chip else {
            return if mark { Err(Errno::EOPNOTSUPP) } else { Ok(Answer::default()) };
        };
        let block = u32::try_from(offset / driver.block_bytes().max(1)).map_err(|_| Errno::EINVAL)?;
        let fail = |error: DriverError| self.driver_errno(&error);
        let bad = driver.is_bad(bus, block).map_err(fail)?;
        if !mark {
            return Ok(Answer { result: i32::from(bad), bytes: Vec::new() });
        }
        if !bad {
            driver.mark_bad(bus, block).map_err(fail)?;
            inner.ecc.bad_blocks += 1;
        }
        Ok(Answer::default())
    }

    fn otp_regions(&self, inner: &mut Inner, bus: &mut dyn SpiBus) -> Result<Vec<u8>, Errno> {
        let (Chip::Nor(driver), Some(spec)) = (&inner.chip, &self.part.security) else {
            return Err(Errno::EOPNOTSUPP);
        };
        let mut bytes = Vec::new();
        for register in 0..spec.registers {
            let locked =
                driver.is_security_locked(bus, register).map_err(|error| self.driver_errno(&error))?;
            let start = u32::from(register) * spec.register_bytes;
            bytes.extend(encode_otp(start, spec.register_bytes, locked));
        }
        bytes.truncate(ioctl::OTP_INFO_MOST_BYTES);
        Ok(bytes)
    }

    fn otp_lock(
        &self,
        inner: &mut Inner,
        bus: &mut dyn SpiBus,
        start: u64,
        length: u64,
    ) -> Result<(), Errno> {
        let (Chip::Nor(driver), Some(spec)) = (&mut inner.chip, &self.part.security) else {
            return Err(Errno::EOPNOTSUPP);
        };
        let each = u64::from(spec.register_bytes).max(1);
        let end = start.checked_add(length).ok_or(Errno::EINVAL)?;
        if !start.is_multiple_of(each) || !length.is_multiple_of(each) || end > driver.security_bytes() {
            return Err(Errno::EINVAL);
        }
        for register in start / each..end / each {
            let register = u8::try_from(register).map_err(|_| Errno::EINVAL)?;
            driver.lock_security(bus, register).map_err(|error| self.driver_errno(&error))?;
        }
        Ok(())
    }

    /// What was asked of this MTD, as JSON.
    pub fn stats(&self) -> serde_json::Value {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (c, ecc) = (&inner.counters, &inner.ecc);
        json!({
            "reads": c.reads, "read_bytes": c.read_bytes,
            "writes": c.writes, "written_bytes": c.written_bytes,
            "erases": c.erases, "erased_bytes": c.erased_bytes,
            "refused": c.refused,
            "corrected": ecc.corrected, "failed": ecc.failed, "bad_blocks": ecc.bad_blocks,
        })
    }
}

fn has_otp(chip: &Chip) -> bool {
    matches!(chip, Chip::Nor(driver) if driver.security_bytes() > 0)
}

/// The regions that MEMGETREGIONINFO tells of: none where all sectors have one size.
fn regions(chip: &Chip) -> &[crate::driver::EraseRegion] {
    match chip {
        Chip::Nor(driver) if driver.regions().len() > 1 => driver.regions(),
        _ => &[],
    }
}

fn refuse_protected(
    driver: &mut NorDriver,
    bus: &mut dyn SpiBus,
    operation: &'static str,
    address: u64,
    bytes: u64,
) -> Result<(), DriverError> {
    match driver.locked_within(bus, &(address..address + bytes))? {
        Some(range) => Err(DriverError::Protected { operation, address, range }),
        None => Ok(()),
    }
}

/// mtdchar.c: data with errors are given to the program all the same; the statistics tell.
fn read_nand(
    driver: &mut NandDriver,
    ecc: &mut EccStats,
    bus: &mut dyn SpiBus,
    offset: u64,
    data: &mut [u8],
) -> Result<(), DriverError> {
    let page_bytes = u64::from(driver.page_bytes().0).max(1);
    let (mut offset, mut rest) = (offset, data);
    while !rest.is_empty() {
        let column = offset % page_bytes;
        let (now, later) = rest.split_at_mut(rest.len().min((page_bytes - column) as usize));
        let page = u32::try_from(offset / page_bytes).unwrap_or(u32::MAX);
        match driver.read_page(bus, page, column as u32, now)? {
            NandRead::Clean => {}
            NandRead::Corrected => ecc.corrected = ecc.corrected.saturating_add(1),
            NandRead::Uncorrectable => ecc.failed = ecc.failed.saturating_add(1),
        }
        offset += now.len() as u64;
        rest = later;
    }
    Ok(())
}

/// nand_base.c: whole pages only.
fn write_nand(
    driver: &mut NandDriver,
    bus: &mut dyn SpiBus,
    offset: u64,
    data: &[u8],
) -> Result<(), DriverError> {
    let unit = u64::from(driver.page_bytes().0).max(1);
    let bytes = data.len() as u64;
    if !offset.is_multiple_of(unit) || !bytes.is_multiple_of(unit) {
        return Err(DriverError::Unaligned { address: offset, bytes, unit });
    }
    for (n, page) in data.chunks_exact(unit as usize).enumerate() {
        let number = u32::try_from(offset / unit + n as u64).unwrap_or(u32::MAX);
        driver.program_page(bus, number, 0, page)?;
    }
    Ok(())
}

fn erase_nand(
    driver: &mut NandDriver,
    bus: &mut dyn SpiBus,
    start: u64,
    length: u64,
) -> Result<(), DriverError> {
    let unit = driver.block_bytes().max(1);
    if !start.is_multiple_of(unit) || !length.is_multiple_of(unit) {
        return Err(DriverError::Unaligned { address: start, bytes: length, unit });
    }
    for block in start / unit..(start + length) / unit {
        let block = u32::try_from(block).unwrap_or(u32::MAX);
        if driver.is_bad(bus, block)? {
            return Err(DriverError::BadBlock { block });
        }
        driver.erase_block(bus, block)?;
    }
    Ok(())
}
