//! The driver as it goes into the firmware: nothing but `embedded-hal`. It knows no model.
//!
//! [`Version`] keeps the steps of its development side by side, so that each can be run against the same checks. A real
//! driver is the last one.

use embedded_hal::delay::DelayNs;
use embedded_hal::spi::{Operation, SpiDevice};

/// Bytes of a page: what one program can change.
pub(crate) const PAGE_BYTES: usize = 256;
/// Bytes of a sector: what the smallest erase erases.
pub(crate) const SECTOR_BYTES: u32 = 4096;

const READ: u8 = 0x03;
const PAGE_PROGRAM: u8 = 0x02;
const SECTOR_ERASE: u8 = 0x20;
const WRITE_ENABLE: u8 = 0x06;
const READ_STATUS: u8 = 0x05;
const BUSY: u8 = 0x01;

/// The steps of the development.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// The frames of the data sheet's pictures, and no more.
    First,
    /// With a write enable before each program and erase.
    WriteEnabled,
    /// With a wait until the chip is ready.
    Waits,
    /// With programs that end at the end of a page.
    Pages,
}

impl Version {
    /// All, in order.
    pub(crate) const ALL: [Version; 4] =
        [Version::First, Version::WriteEnabled, Version::Waits, Version::Pages];

    /// What is new in it.
    pub(crate) fn story(self) -> &'static str {
        match self {
            Version::First => "sends the frames of the data sheet's pictures",
            Version::WriteEnabled => "sends write enable before each program and erase",
            Version::Waits => "waits after each until BUSY is 0, for a limited time",
            Version::Pages => "splits what it programs at the ends of pages",
        }
    }
}

/// What can go wrong.
#[derive(Debug)]
pub(crate) enum Error<E> {
    /// The bus failed.
    Bus(E),
    /// The chip did not get ready in time.
    Timeout,
}

impl<E> From<E> for Error<E> {
    fn from(error: E) -> Error<E> {
        Error::Bus(error)
    }
}

/// The driver.
pub(crate) struct Flash<S, D> {
    spi: S,
    delay: D,
    version: Version,
}

fn frame(opcode: u8, address: u32) -> [u8; 4] {
    let [_, high, middle, low] = address.to_be_bytes();
    [opcode, high, middle, low]
}

impl<S: SpiDevice, D: DelayNs> Flash<S, D> {
    /// A driver for the chip at a SPI device.
    pub(crate) fn new(spi: S, delay: D, version: Version) -> Flash<S, D> {
        Flash { spi, delay, version }
    }

    /// Reads.
    pub(crate) fn read(&mut self, address: u32, data: &mut [u8]) -> Result<(), Error<S::Error>> {
        let header = frame(READ, address);
        Ok(self.spi.transaction(&mut [Operation::Write(&header), Operation::Read(data)])?)
    }

    /// Erases the sector at an address.
    pub(crate) fn erase_sector(&mut self, address: u32) -> Result<(), Error<S::Error>> {
        self.write_enable()?;
        self.spi.write(&frame(SECTOR_ERASE, address))?;
        // tSE, in the AC characteristics of the data sheet: 400 ms at most.
        self.wait(400, 10_000)
    }

    /// Programs bytes that are erased.
    pub(crate) fn write(&mut self, address: u32, data: &[u8]) -> Result<(), Error<S::Error>> {
        if self.version < Version::Pages {
            return self.program(address, data);
        }
        let (mut address, mut rest) = (address, data);
        while !rest.is_empty() {
            let room = PAGE_BYTES - address as usize % PAGE_BYTES;
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.program(address, now)?;
            address += now.len() as u32;
            rest = later;
        }
        Ok(())
    }

    fn program(&mut self, address: u32, data: &[u8]) -> Result<(), Error<S::Error>> {
        self.write_enable()?;
        let header = frame(PAGE_PROGRAM, address);
        self.spi.transaction(&mut [Operation::Write(&header), Operation::Write(data)])?;
        // tPP is 3 ms at most.
        self.wait(3, 50)
    }

    fn write_enable(&mut self) -> Result<(), Error<S::Error>> {
        if self.version < Version::WriteEnabled {
            return Ok(());
        }
        Ok(self.spi.write(&[WRITE_ENABLE])?)
    }

    /// Waits until the chip is ready, at most ten times the data sheet's longest time.
    fn wait(&mut self, longest_ms: u32, poll_us: u32) -> Result<(), Error<S::Error>> {
        if self.version < Version::Waits {
            return Ok(());
        }
        for _ in 0..longest_ms * 10 * 1000 / poll_us {
            let mut status = [0];
            self.spi.transaction(&mut [Operation::Write(&[READ_STATUS]), Operation::Read(&mut status)])?;
            if status[0] & BUSY == 0 {
                return Ok(());
            }
            self.delay.delay_us(poll_us);
        }
        Err(Error::Timeout)
    }
}
