//! The bus as firmware sees it: `embedded-hal` devices, pins and delays, and `embedded-storage` flash.
//!
//! The invariant: one transaction is one frame, and nothing here reaches past the bus: firmware above it is run as it is. The
//! async forms are done when they return; time is the bus's, so a firmware's delay is model time and takes none of the
//! host's.
//!
//! Firmware dies with its chip's supply. [`HostPower`] says when that is: from then on every call here is refused, where the
//! firmware of a real board would be gone; else it would poll a dead chip for ever.

use crate::bus::{BusError, SpiBus, Transfer};
use crate::driver::{DriverError, NorDriver};
use crate::fronts::{SharedBus, lock};
use embedded_hal::delay::DelayNs;
use embedded_hal::digital::{self, OutputPin};
use embedded_hal::spi::{self, Operation, SpiDevice};
use embedded_storage::nor_flash::{
    ErrorType, MultiwriteNorFlash, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// When the firmware's power goes, in the bus's time.
#[derive(Debug, Clone)]
pub struct HostPower(Arc<AtomicU64>);

impl Default for HostPower {
    fn default() -> HostPower {
        HostPower(Arc::new(AtomicU64::new(u64::MAX)))
    }
}

impl HostPower {
    /// Power that never goes.
    pub fn on() -> HostPower {
        HostPower::default()
    }

    /// It goes at this time; `None`: it does not.
    pub fn cut_at_ns(&self, at_ns: Option<u64>) {
        self.0.store(at_ns.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn is_gone(&self, bus: &mut dyn SpiBus) -> bool {
        let at_ns = self.0.load(Ordering::Relaxed);
        at_ns != u64::MAX && bus.now_ns() >= at_ns
    }
}

/// Why a device or a flash could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HalError {
    /// The bus refused.
    #[error("the bus: {0}")]
    Bus(#[from] BusError),
    /// The driver's error.
    #[error(transparent)]
    Driver(DriverError),
    /// The power is gone.
    #[error("the power is gone")]
    PowerLost,
}

impl spi::Error for HalError {
    fn kind(&self) -> spi::ErrorKind {
        match self {
            HalError::Bus(BusError::NoChip { .. }) => spi::ErrorKind::ChipSelectFault,
            _ => spi::ErrorKind::Other,
        }
    }
}

impl digital::Error for HalError {
    fn kind(&self) -> digital::ErrorKind {
        digital::ErrorKind::Other
    }
}

impl NorFlashError for HalError {
    fn kind(&self) -> NorFlashErrorKind {
        match self {
            HalError::Driver(DriverError::Unaligned { .. }) => NorFlashErrorKind::NotAligned,
            HalError::Driver(DriverError::OutOfBounds { .. }) => NorFlashErrorKind::OutOfBounds,
            _ => NorFlashErrorKind::Other,
        }
    }
}

/// A chip select of a shared bus, as an `embedded-hal` SPI device.
#[derive(Clone)]
pub struct HalDevice {
    bus: SharedBus,
    select: u8,
    power: HostPower,
}

impl HalDevice {
    /// The chip at a chip select.
    pub fn new(bus: SharedBus, select: u8) -> HalDevice {
        HalDevice { bus, select, power: HostPower::on() }
    }

    /// The same, with a power that may go.
    pub fn with_power(self, power: HostPower) -> HalDevice {
        HalDevice { power, ..self }
    }
}

impl spi::ErrorType for HalDevice {
    type Error = HalError;
}

/// A transfer of `embedded-hal`: as many clocks as the longer side; what is sent beyond the shorter is 0.
fn both_ways(bus: &mut dyn SpiBus, read: &mut [u8], write: &[u8]) -> Result<(), BusError> {
    let mut bytes = write.to_vec();
    bytes.resize(read.len().max(write.len()), 0);
    bus.transfer(Transfer::Both { bytes: &mut bytes })?;
    for (to, from) in read.iter_mut().zip(bytes) {
        *to = from;
    }
    Ok(())
}

impl SpiDevice for HalDevice {
    fn transaction(&mut self, operations: &mut [Operation<'_, u8>]) -> Result<(), HalError> {
        let mut bus = lock(&self.bus);
        if self.power.is_gone(&mut *bus) {
            return Err(HalError::PowerLost);
        }
        bus.select(self.select)?;
        let mut result = Ok(());
        for operation in operations {
            let done = match operation {
                Operation::Read(bytes) => bus.transfer(Transfer::read(bytes)),
                Operation::Write(bytes) => bus.transfer(Transfer::write(bytes)),
                Operation::Transfer(read, write) => both_ways(&mut *bus, read, write),
                Operation::TransferInPlace(bytes) => bus.transfer(Transfer::Both { bytes }),
                Operation::DelayNs(delay_ns) => {
                    bus.delay_ns(u64::from(*delay_ns));
                    Ok(())
                }
            };
            result = result.and(done);
        }
        bus.deselect()?;
        // What was read after the power went, no firmware sees.
        if self.power.is_gone(&mut *bus) { Err(HalError::PowerLost) } else { Ok(result?) }
    }
}

impl embedded_hal_async::spi::SpiDevice for HalDevice {
    async fn transaction(&mut self, operations: &mut [Operation<'_, u8>]) -> Result<(), HalError> {
        SpiDevice::transaction(self, operations)
    }
}

/// A delay in the bus's time.
#[derive(Clone)]
pub struct HalDelay(SharedBus);

impl HalDelay {
    /// A delay on a bus.
    pub fn new(bus: SharedBus) -> HalDelay {
        HalDelay(bus)
    }
}

impl DelayNs for HalDelay {
    fn delay_ns(&mut self, ns: u32) {
        lock(&self.0).delay_ns(u64::from(ns));
    }
}

impl embedded_hal_async::delay::DelayNs for HalDelay {
    async fn delay_ns(&mut self, ns: u32) {
        DelayNs::delay_ns(self, ns);
    }
}

/// A pin of a chip.
#[derive(Clone)]
pub enum HalPin {
    /// WP#.
    WriteProtect {
        /// The bus.
        bus: SharedBus,
        /// The chip.
        select: u8,
    },
    /// A pin that the model has not (HOLD#, RESET#), kept high.
    Unconnected,
}

impl digital::ErrorType for HalPin {
    type Error = HalError;
}

impl OutputPin for HalPin {
    fn set_low(&mut self) -> Result<(), HalError> {
        self.set(true)
    }

    fn set_high(&mut self) -> Result<(), HalError> {
        self.set(false)
    }
}

impl HalPin {
    fn set(&self, low: bool) -> Result<(), HalError> {
        match self {
            HalPin::WriteProtect { bus, select } => Ok(lock(bus).set_write_protect(*select, low)?),
            HalPin::Unconnected => Ok(()),
        }
    }
}

/// A chip and its driver, as `embedded-storage` NOR flash with erases of `ERASE_BYTES`.
#[derive(Clone)]
pub struct HalFlash<const ERASE_BYTES: usize> {
    bus: SharedBus,
    driver: NorDriver,
    power: HostPower,
}

impl<const ERASE_BYTES: usize> HalFlash<ERASE_BYTES> {
    /// Starts the driver.
    ///
    /// # Errors
    /// The chip is another one, or its sectors are of other sizes.
    pub fn new(bus: SharedBus, mut driver: NorDriver, power: HostPower) -> Result<Self, HalError> {
        let fits = |region: &crate::driver::EraseRegion| {
            (ERASE_BYTES as u64).is_multiple_of(u64::from(region.sector_bytes))
                && region.offset.is_multiple_of(ERASE_BYTES as u64)
        };
        if ERASE_BYTES == 0 || !driver.regions().iter().all(fits) {
            let unit =
                driver.regions().iter().map(|region| u64::from(region.sector_bytes)).max().unwrap_or(0);
            return Err(HalError::Driver(DriverError::Unaligned {
                address: 0,
                bytes: ERASE_BYTES as u64,
                unit,
            }));
        }
        driver.start(&mut *lock(&bus)).map_err(HalError::Driver)?;
        Ok(HalFlash { bus, driver, power })
    }

    fn call(
        &mut self,
        act: impl FnOnce(&mut NorDriver, &mut dyn SpiBus) -> Result<(), DriverError>,
    ) -> Result<(), HalError> {
        let mut bus = lock(&self.bus);
        if self.power.is_gone(&mut *bus) {
            return Err(HalError::PowerLost);
        }
        let result = act(&mut self.driver, &mut *bus);
        if self.power.is_gone(&mut *bus) {
            return Err(HalError::PowerLost);
        }
        result.map_err(HalError::Driver)
    }
}

impl<const ERASE_BYTES: usize> ErrorType for HalFlash<ERASE_BYTES> {
    type Error = HalError;
}

impl<const ERASE_BYTES: usize> ReadNorFlash for HalFlash<ERASE_BYTES> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), HalError> {
        self.call(|driver, bus| driver.read(bus, u64::from(offset), bytes))
    }

    fn capacity(&self) -> usize {
        usize::try_from(self.driver.size_bytes()).unwrap_or(usize::MAX)
    }
}

impl<const ERASE_BYTES: usize> NorFlash for HalFlash<ERASE_BYTES> {
    const WRITE_SIZE: usize = 1;
    const ERASE_SIZE: usize = ERASE_BYTES;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), HalError> {
        let (address, size_bytes) = (u64::from(from), self.driver.size_bytes());
        let Some(bytes) = u64::from(to).checked_sub(address) else {
            let area = "the array (an erase from its end to its beginning)";
            return Err(HalError::Driver(DriverError::OutOfBounds { area, address, bytes: 0, size_bytes }));
        };
        let unit = ERASE_BYTES as u64;
        if !address.is_multiple_of(unit) || !bytes.is_multiple_of(unit) {
            return Err(HalError::Driver(DriverError::Unaligned { address, bytes, unit }));
        }
        self.call(|driver, bus| driver.erase(bus, address, bytes))
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), HalError> {
        self.call(|driver, bus| driver.program(bus, u64::from(offset), bytes))
    }
}

/// Programs only clear bits: a place may be written again.
impl<const ERASE_BYTES: usize> MultiwriteNorFlash for HalFlash<ERASE_BYTES> {}

impl<const ERASE_BYTES: usize> embedded_storage_async::nor_flash::ReadNorFlash for HalFlash<ERASE_BYTES> {
    const READ_SIZE: usize = 1;

    async fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), HalError> {
        ReadNorFlash::read(self, offset, bytes)
    }

    fn capacity(&self) -> usize {
        ReadNorFlash::capacity(self)
    }
}

impl<const ERASE_BYTES: usize> embedded_storage_async::nor_flash::NorFlash for HalFlash<ERASE_BYTES> {
    const WRITE_SIZE: usize = 1;
    const ERASE_SIZE: usize = ERASE_BYTES;

    async fn erase(&mut self, from: u32, to: u32) -> Result<(), HalError> {
        NorFlash::erase(self, from, to)
    }

    async fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), HalError> {
        NorFlash::write(self, offset, bytes)
    }
}

impl<const ERASE_BYTES: usize> embedded_storage_async::nor_flash::MultiwriteNorFlash
    for HalFlash<ERASE_BYTES>
{
}
