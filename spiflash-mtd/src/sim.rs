//! A bus of simulated chips, and the time on it.
//!
//! The invariant: all chips of a bus live in one time, which never goes back; a chip that is not selected is brought up to it
//! before it is looked at. What is seen of the bus ([`Observer`]) never changes it.

use crate::bus::{BusError, SpiBus, Transfer};
use crate::chip::{Chip, FrameReport};
use crate::command::Lines;
use std::time::Duration;

/// The longest that one delay sleeps in [`TimeMode::Real`].
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How time passes on a bus. Delays ([`SpiBus::delay_ns`]) take their time in all of them; in the real one they sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeMode {
    /// With each bit that is clocked: a driver that polls without a delay sees the chip get ready.
    Bits,
    /// As `Bits`, and when BUSY was read `polls` times in turn, the chip gets ready at once: as fast as the host can be.
    PollSkip {
        /// How many reads say busy.
        polls: u32,
    },
    /// With explicit delays only; bytes take no time.
    Delays,
    /// As the host's clock goes.
    Real,
}

/// Someone who watches a bus: a trace, a log, a store.
pub trait Observer: Send {
    /// CS# of a chip fell.
    fn selected(&mut self, _select: u8, _now_ns: u64) {}

    /// Bytes were clocked from `begin_ns` to `end_ns`: what the host sent, and what it received, as far as it did.
    fn clocked(&mut self, _bytes: &Clocked<'_>) {}

    /// CS# of a chip rose.
    fn deselected(&mut self, _select: u8, _chip: &mut Chip, _report: Option<&FrameReport>) {}

    /// Time passed, power or a pin changed with no frame: what was under way may have ended.
    fn settled(&mut self, _select: u8, _chip: &mut Chip) {}

    /// The bus is put away: what is kept is to be made whole. Called once for each chip.
    fn ended(&mut self, _select: u8, _chip: &mut Chip) {}
}

/// Bytes on the lines.
#[derive(Debug, Clone, Copy)]
pub struct Clocked<'a> {
    /// The chip.
    pub select: u8,
    /// The lines.
    pub lines: Lines,
    /// What the host drove.
    pub sent: Option<&'a [u8]>,
    /// What the chip drove.
    pub received: Option<&'a [u8]>,
    /// When the first bit began.
    pub begin_ns: u64,
    /// When the last one ended.
    pub end_ns: u64,
}

/// A bus of simulated chips.
pub struct SimBus {
    chips: Vec<Chip>,
    selected: Option<u8>,
    now_ns: u64,
    time: TimeMode,
    real_ns: Box<dyn FnMut() -> u64 + Send>,
    clock_hz: u32,
    observers: Vec<Box<dyn Observer>>,
    /// What the host sent, for observers of transfers in place.
    sent: Vec<u8>,
}

impl std::fmt::Debug for SimBus {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("SimBus")
            .field("chips", &self.chips.iter().map(|chip| &chip.part().name).collect::<Vec<_>>())
            .field("selected", &self.selected)
            .field("now_ns", &self.now_ns)
            .field("time", &self.time)
            .finish_non_exhaustive()
    }
}

impl SimBus {
    /// A bus of chips, of chip selects 0 and up. `real_ns` is the host's clock, for [`TimeMode::Real`]: nanoseconds since some
    /// moment.
    pub fn new(chips: Vec<Chip>, time: TimeMode, real_ns: impl FnMut() -> u64 + Send + 'static) -> SimBus {
        let clock_hz = chips.iter().map(|chip| chip.part().bus.max_read_clock_hz).min().unwrap_or(1);
        let mut bus = SimBus {
            now_ns: chips.iter().map(Chip::now_ns).max().unwrap_or(0),
            chips,
            selected: None,
            time,
            real_ns: Box::new(real_ns),
            clock_hz,
            observers: Vec::new(),
            sent: Vec::new(),
        };
        bus.apply_time();
        bus
    }

    /// A bus with one chip whose time is that of its bits, without a host's clock.
    pub fn of(chip: Chip) -> SimBus {
        SimBus::new(vec![chip], TimeMode::Bits, || 0)
    }

    fn apply_time(&mut self) {
        let (hz, skip) = match self.time {
            TimeMode::Bits => (self.clock_hz, None),
            TimeMode::PollSkip { polls } => (self.clock_hz, Some(polls)),
            TimeMode::Delays | TimeMode::Real => (0, None),
        };
        for chip in &mut self.chips {
            chip.set_clock_hz(hz);
            chip.set_poll_skip(skip);
        }
    }

    /// Changes how time passes, from now on.
    pub fn set_time_mode(&mut self, time: TimeMode) {
        self.time = time;
        self.apply_time();
    }

    /// How time passes.
    pub fn time_mode(&self) -> TimeMode {
        self.time
    }

    /// Adds someone who watches.
    pub fn observe(&mut self, observer: Box<dyn Observer>) {
        self.observers.push(observer);
    }

    /// A chip, brought up to the bus's time.
    pub fn chip(&mut self, select: u8) -> Option<&Chip> {
        self.synchronise();
        self.chips.get(usize::from(select))
    }

    /// A chip, to change it beside the bus.
    pub fn chip_mut(&mut self, select: u8) -> Option<&mut Chip> {
        self.synchronise();
        self.chips.get_mut(usize::from(select))
    }

    /// Brings time and chips together.
    fn synchronise(&mut self) {
        if self.time == TimeMode::Real {
            self.now_ns = self.now_ns.max((self.real_ns)());
        }
        for chip in &mut self.chips {
            chip.advance_to(self.now_ns);
        }
        for (select, chip) in (0u8..).zip(&mut self.chips) {
            for observer in &mut self.observers {
                observer.settled(select, chip);
            }
        }
    }

    /// Tells all who watch that the bus is put away; they are gone then.
    pub fn end_observers(&mut self) {
        self.synchronise();
        for mut observer in std::mem::take(&mut self.observers) {
            for (select, chip) in (0u8..).zip(&mut self.chips) {
                observer.ended(select, chip);
            }
        }
    }

    fn index(&self, select: u8) -> Result<usize, BusError> {
        let index = usize::from(select);
        if index < self.chips.len() {
            return Ok(index);
        }
        Err(BusError::NoChip { select, chips: self.chips() })
    }

    fn current(&mut self) -> Result<(u8, &mut Chip), BusError> {
        let select = self.selected.ok_or(BusError::NotSelected)?;
        let chip = self.chips.get_mut(usize::from(select)).ok_or(BusError::NotSelected)?;
        Ok((select, chip))
    }

    fn watched_transfer(&mut self, select: u8, transfer: Transfer<'_>, begin_ns: u64) {
        let Some(chip) = self.chips.get_mut(usize::from(select)) else { return };
        let sent = &mut self.sent;
        sent.clear();
        let mut clocked = |lines, sent: Option<&[u8]>, received: Option<&[u8]>, end_ns| {
            let seen = Clocked { select, lines, sent, received, begin_ns, end_ns };
            self.observers.iter_mut().for_each(|observer| observer.clocked(&seen));
        };
        match transfer {
            Transfer::Write { lines, bytes } => {
                chip.transfer(Transfer::Write { lines, bytes });
                clocked(lines, Some(bytes), None, chip.now_ns());
            }
            Transfer::Read { lines, bytes } => {
                chip.transfer(Transfer::Read { lines, bytes: &mut *bytes });
                clocked(lines, None, Some(bytes), chip.now_ns());
            }
            Transfer::Both { bytes } => {
                sent.extend_from_slice(bytes);
                chip.transfer(Transfer::Both { bytes: &mut *bytes });
                clocked(Lines::Single, Some(sent), Some(bytes), chip.now_ns());
            }
        }
    }
}

impl SpiBus for SimBus {
    fn chips(&self) -> u8 {
        self.chips.len().min(255) as u8
    }

    fn select(&mut self, select: u8) -> Result<(), BusError> {
        if let Some(select) = self.selected {
            return Err(BusError::StillSelected { select });
        }
        let index = self.index(select)?;
        if self.time == TimeMode::Real {
            self.now_ns = self.now_ns.max((self.real_ns)());
        }
        let now_ns = self.now_ns;
        if let Some(chip) = self.chips.get_mut(index) {
            chip.advance_to(now_ns);
            chip.select();
        }
        self.selected = Some(select);
        for observer in &mut self.observers {
            observer.selected(select, now_ns);
        }
        Ok(())
    }

    fn transfer(&mut self, transfer: Transfer<'_>) -> Result<(), BusError> {
        let real = match self.time {
            TimeMode::Real => Some((self.real_ns)()),
            _ => None,
        };
        let now_ns = self.now_ns.max(real.unwrap_or(0));
        let (select, chip) = self.current()?;
        chip.advance_to(now_ns);
        if self.observers.is_empty() {
            let (_, chip) = self.current()?;
            chip.transfer(transfer);
        } else {
            self.watched_transfer(select, transfer, now_ns);
        }
        let (_, chip) = self.current()?;
        self.now_ns = now_ns.max(chip.now_ns());
        Ok(())
    }

    fn deselect(&mut self) -> Result<(), BusError> {
        let (select, chip) = self.current()?;
        let report = chip.deselect(0);
        self.selected = None;
        if let Some(chip) = self.chips.get_mut(usize::from(select)) {
            self.now_ns = self.now_ns.max(chip.now_ns());
            for observer in &mut self.observers {
                observer.deselected(select, chip, report.as_ref());
            }
        }
        Ok(())
    }

    fn delay_ns(&mut self, delay_ns: u64) {
        if self.time == TimeMode::Real {
            // The host waits, and so does who waits for it; no client may hold the others up for longer.
            std::thread::sleep(Duration::from_nanos(delay_ns).min(LONGEST_WAIT));
        } else {
            self.now_ns = self.now_ns.saturating_add(delay_ns);
        }
        self.synchronise();
    }

    fn now_ns(&mut self) -> u64 {
        self.synchronise();
        self.now_ns
    }

    fn set_clock_hz(&mut self, hz: u32) -> Result<u32, BusError> {
        let most_hz = self.chips.iter().map(|chip| chip.part().bus.max_clock_hz).min().unwrap_or(u32::MAX);
        if hz == 0 {
            return Err(BusError::Clock { hz, most_hz });
        }
        self.clock_hz = hz.min(most_hz);
        self.apply_time();
        Ok(self.clock_hz)
    }

    fn set_power(&mut self, select: u8, on: bool) -> Result<(), BusError> {
        self.index(select)?;
        if let Some(chip) = self.chip_mut(select) {
            chip.set_power(on);
        }
        self.synchronise();
        Ok(())
    }

    fn set_write_protect(&mut self, select: u8, low: bool) -> Result<(), BusError> {
        self.index(select)?;
        if let Some(chip) = self.chip_mut(select) {
            chip.set_write_protect(low);
        }
        self.synchronise();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Setup, part};
    use std::sync::Arc;
    use std::time::Instant;

    #[test]
    fn real_time_is_that_of_the_hosts_clock_and_a_delay_waits_for_it() {
        let part = Arc::new(part::find("W25Q128JV").unwrap().clone());
        let chip = Chip::new(part, &Setup::default()).unwrap();
        let begun = Instant::now();
        let mut bus = SimBus::new(vec![chip], TimeMode::Real, move || begun.elapsed().as_nanos() as u64);
        let status = |bus: &mut SimBus| {
            let mut byte = [0];
            bus.frame(0, &mut [Transfer::write(&[0x05]), Transfer::read(&mut byte)]).unwrap();
            byte[0]
        };
        // A register write: 10 ms. Only lower bounds are asserted: a busy machine is late, never early.
        bus.frame(0, &mut [Transfer::write(&[0x06])]).unwrap();
        bus.frame(0, &mut [Transfer::write(&[0x01, 0x04])]).unwrap();
        let until_ns = bus.chip(0).unwrap().busy_until_ns();
        while status(&mut bus) & 1 == 1 {
            bus.delay_ns(1_000_000);
        }
        assert!(until_ns.is_none_or(|until_ns| bus.now_ns() >= until_ns));
        assert_eq!(status(&mut bus), 0x04);
    }
}
