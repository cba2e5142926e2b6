//! The SPI bus: chip-select frames of bytes, with their lines and clock. Everything that talks to a chip talks through it.
//!
//! The invariant: a chip changes state only by what crosses this trait, so that its state machines are always what is used
//! and tested, whichever front the bytes came through. Modes 0 and 3 (bits sampled at the rising edge) are the same here.

use crate::command::Lines;

/// Why a bus could not do what it was asked; what a *chip* refuses is no error, as on a real bus: it shows in what is read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// There is no chip behind this chip select.
    #[error("chip select {select}: there is none; this bus has {chips}, counted from 0")]
    NoChip {
        /// The chip select that was asked for.
        select: u8,
        /// How many there are.
        chips: u8,
    },
    /// A transfer or the end of a frame without its begin.
    #[error("no chip is selected: a frame begins with the fall of CS#")]
    NotSelected,
    /// The begin of a frame within a frame.
    #[error("chip select {select} is still low: a frame ends with the rise of CS#")]
    StillSelected {
        /// The chip that is selected.
        select: u8,
    },
    /// A clock that no chip takes.
    #[error("clock of {hz} Hz: it must be from 1 to {most_hz} Hz")]
    Clock {
        /// What was asked for.
        hz: u32,
        /// The fastest clock of the bus.
        most_hz: u32,
    },
}

/// Bytes of a frame that go on the same lines.
#[derive(Debug)]
pub enum Transfer<'a> {
    /// From the host to the chip; what the chip drives is not looked at.
    Write {
        /// The lines.
        lines: Lines,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// From the chip to the host, which sends zeros on one line, and drives nothing on more. FFh where the chip drives nothing.
    Read {
        /// The lines.
        lines: Lines,
        /// Where the bytes go.
        bytes: &'a mut [u8],
    },
    /// Both ways at a time, on one line each: what is sent is replaced by what is received.
    Both {
        /// The bytes.
        bytes: &'a mut [u8],
    },
}

impl<'a> Transfer<'a> {
    /// A write on one line.
    pub fn write(bytes: &'a [u8]) -> Transfer<'a> {
        Transfer::Write { lines: Lines::Single, bytes }
    }

    /// A read on one line.
    pub fn read(bytes: &'a mut [u8]) -> Transfer<'a> {
        Transfer::Read { lines: Lines::Single, bytes }
    }
}

/// A bus with one or more chips, of which at most one is selected, and with the time that passes on it.
pub trait SpiBus {
    /// How many chips there are.
    fn chips(&self) -> u8;

    /// CS# of a chip falls.
    ///
    /// # Errors
    /// No such chip, or one is still selected.
    fn select(&mut self, select: u8) -> Result<(), BusError>;

    /// Bytes are clocked.
    ///
    /// # Errors
    /// No chip is selected.
    fn transfer(&mut self, transfer: Transfer<'_>) -> Result<(), BusError>;

    /// CS# rises: what the frame asked for takes effect.
    ///
    /// # Errors
    /// No chip is selected.
    fn deselect(&mut self) -> Result<(), BusError>;

    /// One whole frame.
    ///
    /// # Errors
    /// As the three above; the chip is not left selected.
    fn frame(&mut self, select: u8, transfers: &mut [Transfer<'_>]) -> Result<(), BusError> {
        self.select(select)?;
        let mut result = Ok(());
        for transfer in transfers {
            let again = match transfer {
                Transfer::Write { lines, bytes } => Transfer::Write { lines: *lines, bytes },
                Transfer::Read { lines, bytes } => Transfer::Read { lines: *lines, bytes },
                Transfer::Both { bytes } => Transfer::Both { bytes },
            };
            result = result.and_then(|()| self.transfer(again));
        }
        self.deselect()?;
        result
    }

    /// The host waits, in nanoseconds of the bus's time.
    fn delay_ns(&mut self, delay_ns: u64);

    /// The time of the bus, in nanoseconds since it was made.
    fn now_ns(&mut self) -> u64;

    /// Sets the clock of SCK and returns it: the nearest that there is, not above what was asked for.
    ///
    /// # Errors
    /// 0, or above what the bus can do.
    fn set_clock_hz(&mut self, hz: u32) -> Result<u32, BusError>;

    /// Switches the power of a chip.
    ///
    /// # Errors
    /// No such chip.
    fn set_power(&mut self, select: u8, on: bool) -> Result<(), BusError>;

    /// Drives the WP# pin of a chip (`low`: protecting).
    ///
    /// # Errors
    /// No such chip.
    fn set_write_protect(&mut self, select: u8, low: bool) -> Result<(), BusError>;
}
