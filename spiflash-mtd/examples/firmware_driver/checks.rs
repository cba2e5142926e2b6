//! What the driver must do, checked on the model, with what the chip itself says of what it ignored.

use crate::driver::{Error, Flash, SECTOR_BYTES, Version};
use spiflash_mtd::fronts::SharedBus;
use spiflash_mtd::hal::{HalDelay, HalDevice};
use spiflash_mtd::{Chip, Setup, SimBus, SpiBus, part};
use std::sync::{Arc, Mutex};

/// How a check ended.
pub(crate) enum Verdict {
    /// As it must be.
    Pass,
    /// Otherwise, and why.
    Fail(String),
}

/// A check of a version.
pub(crate) type Check = fn(Version) -> Verdict;

/// All checks, by what they promise.
pub(crate) const CHECKS: [(&str, Check); 4] = [
    ("an erased sector takes a message and gives it back", a_message),
    ("bytes across the end of a page are where they belong", across_a_page),
    ("a sector that was written can be erased and written again", again),
    ("a chip without power is an error, not a hang", without_power),
];

/// A board with the chip, as delivered.
struct Board {
    sim: Arc<Mutex<SimBus>>,
    flash: Flash<HalDevice, HalDelay>,
}

impl Board {
    fn new(version: Version) -> Result<Board, String> {
        let part = part::find("W25Q128JV").ok_or("there is no such part")?;
        let chip = Chip::new(Arc::new(part.clone()), &Setup::default()).map_err(|error| error.to_string())?;
        let sim = Arc::new(Mutex::new(SimBus::of(chip)));
        let bus: SharedBus = sim.clone();
        let flash = Flash::new(HalDevice::new(bus.clone(), 0), HalDelay::new(bus), version);
        Ok(Board { sim, flash })
    }

    /// What the chip ignored: what a driver's author would look for with a logic analyser.
    fn ignored(&self) -> String {
        let Ok(mut sim) = self.sim.lock() else { return String::new() };
        let stats = sim.chip(0).map(|chip| chip.stats().clone()).unwrap_or_default();
        let reasons = stats.ignored.iter().map(|(reason, count)| format!("{count} frames: {reason}"));
        let reasons: Vec<String> = reasons.collect();
        if reasons.is_empty() {
            "the chip ignored no frame".into()
        } else {
            format!("the chip ignored {}", reasons.join(", "))
        }
    }

    fn expect(&mut self, address: u32, wanted: &[u8]) -> Result<(), String> {
        let mut found = vec![0; wanted.len()];
        self.flash.read(address, &mut found).map_err(|error| format!("read: {error:?}"))?;
        if found == wanted {
            return Ok(());
        }
        let at = found.iter().zip(wanted).position(|(found, wanted)| found != wanted).unwrap_or(0);
        let (is, should) = (found.get(at).copied().unwrap_or(0), wanted.get(at).copied().unwrap_or(0));
        let place = address as usize + at;
        Err(format!("at {place:#x} there is {is:02x}h, not {should:02x}h; {}", self.ignored()))
    }
}

fn verdict(version: Version, check: impl FnOnce(&mut Board) -> Result<(), String>) -> Verdict {
    match Board::new(version).and_then(|mut board| check(&mut board)) {
        Ok(()) => Verdict::Pass,
        Err(why) => Verdict::Fail(why),
    }
}

fn done<E: std::fmt::Debug>(what: &str, result: Result<(), Error<E>>) -> Result<(), String> {
    result.map_err(|error| format!("{what}: {error:?}"))
}

fn a_message(version: Version) -> Verdict {
    verdict(version, |board| {
        done("erase", board.flash.erase_sector(0x1000))?;
        done("write", board.flash.write(0x1000, b"hello"))?;
        board.expect(0x1000, b"hello")
    })
}

fn across_a_page(version: Version) -> Verdict {
    let data: Vec<u8> = (0..100).map(|n| n ^ 0x5A).collect();
    verdict(version, |board| {
        done("erase", board.flash.erase_sector(0x2000))?;
        done("write", board.flash.write(0x20F0, &data))?;
        board.expect(0x20F0, &data)?;
        board.expect(0x2000, &[0xFF; 16])
    })
}

fn again(version: Version) -> Verdict {
    verdict(version, |board| {
        for round in 1..=3u8 {
            done("erase", board.flash.erase_sector(SECTOR_BYTES * 3))?;
            done("write", board.flash.write(SECTOR_BYTES * 3, &[round; 64]))?;
            board.expect(SECTOR_BYTES * 3, &[round; 64])?;
        }
        Ok(())
    })
}

fn without_power(version: Version) -> Verdict {
    verdict(version, |board| {
        board
            .sim
            .lock()
            .map_err(|error| error.to_string())?
            .set_power(0, false)
            .map_err(|error| error.to_string())?;
        match board.flash.erase_sector(0) {
            Err(Error::Timeout) => Ok(()),
            Err(Error::Bus(error)) => Err(format!("the bus failed: {error:?}")),
            Ok(()) => Err("the erase of a chip without power came back as if it had been done".into()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(version: Version) -> Vec<bool> {
        CHECKS.iter().map(|(_, check)| matches!(check(version), Verdict::Pass)).collect()
    }

    #[test]
    fn each_version_passes_what_its_predecessor_could_not() {
        assert_eq!(passes(Version::First), [false; 4]);
        assert_eq!(passes(Version::WriteEnabled), [false; 4]);
        assert_eq!(passes(Version::Waits), [true, false, true, true]);
        assert_eq!(passes(Version::Pages), [true; 4]);
    }
}
