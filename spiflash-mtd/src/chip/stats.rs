//! What a chip has done.

use super::report::{Effect, Reason};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Counters since the chip was made.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Frames by opcode, as two hex digits.
    #[serde(with = "by_opcode")]
    pub frames: Frames,
    /// Frames that the chip ignored, by why.
    pub ignored: BTreeMap<String, u64>,
    /// Bytes of the array read.
    pub bytes_read: u64,
    /// Bytes programmed, or written.
    pub bytes_programmed: u64,
    /// Programs.
    pub programs: u64,
    /// Erase units erased.
    pub units_erased: u64,
    /// Programs and erases that were interrupted by a loss of power or a reset.
    pub interrupted: u64,
    /// Programs and erases that failed for wear.
    pub failed: u64,
    /// Suspends.
    pub suspends: u64,
    /// Times that power went.
    pub power_cycles: u64,
    /// Time spent on programs, erases and register writes, in nanoseconds.
    pub busy_ns: u64,
    /// Bits that read 1 and were programmed 0.
    pub zero_to_one: u64,
    /// Bits that read 0 and were not programmed.
    pub one_to_zero: u64,
    /// NAND: bits that the on-die code corrected.
    pub corrected_bits: u64,
    /// NAND: steps that it could not correct.
    pub uncorrectable_steps: u64,
}

/// A counter for each opcode.
#[derive(Debug, Clone, PartialEq)]
pub struct Frames(Vec<u64>);

impl Default for Frames {
    fn default() -> Frames {
        Frames(vec![0; 256])
    }
}

impl Frames {
    /// How many frames had this opcode.
    pub fn of(&self, opcode: u8) -> u64 {
        self.0.get(usize::from(opcode)).copied().unwrap_or(0)
    }

    /// The opcodes that came, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (u8, u64)> + '_ {
        self.0
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(opcode, count)| (opcode as u8, *count))
    }
}

impl Stats {
    pub(super) fn count(&mut self, opcode: u8, effect: &Effect) {
        if let Some(count) = self.frames.0.get_mut(usize::from(opcode)) {
            *count += 1;
        }
        if let Effect::Ignored(reason) = effect {
            // Frame errors differ in numbers that would make a counter each.
            let why = match reason {
                Reason::Frame(_) => "the frame is not whole, too long or unknown".to_string(),
                other => other.to_string(),
            };
            *self.ignored.entry(why).or_insert(0) += 1;
        }
    }
}

mod by_opcode {
    use super::Frames;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    pub(super) fn serialize<S: Serializer>(frames: &Frames, to: S) -> Result<S::Ok, S::Error> {
        let map: BTreeMap<String, u64> =
            frames.iter().map(|(opcode, count)| (format!("{opcode:02X}"), count)).collect();
        map.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Frames, D::Error> {
        let mut frames = Frames::default();
        for (opcode, count) in BTreeMap::<String, u64>::deserialize(from)? {
            let opcode = u8::from_str_radix(&opcode, 16).map_err(serde::de::Error::custom)?;
            if let Some(slot) = frames.0.get_mut(usize::from(opcode)) {
                *slot = count;
            }
        }
        Ok(frames)
    }
}
