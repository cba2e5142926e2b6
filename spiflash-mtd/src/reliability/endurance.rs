//! The end of a block's life: operations that fail, and cells that are stuck.
//!
//! The invariant: cells that are stuck stay so; more cycles only add to them.

use super::random::{Use, WeakestFirst, hash, normal, unit};
use super::{PagePlace, Reliability};
use serde::{Deserialize, Serialize};

/// Which cells of a block are stuck: at 0 after an erase that failed, at 1 after a program that failed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StuckBits {
    /// What they read as, whatever was done.
    pub value: bool,
    /// Their share of the block's cells is 1 - exp(-this); at least one cell is stuck.
    pub level: f32,
}

impl Reliability {
    /// How many erases a block endures: lognormal over blocks. `None` if without end.
    pub fn endurance(&self, block: u32) -> Option<f64> {
        let params = self.params();
        (params.endurance_cycles > 0.0).then(|| {
            let key = hash(self.seed, Use::Endurance, [u64::from(block)]);
            params.endurance_cycles * (params.endurance_sigma * normal(key)).exp()
        })
    }

    /// Whether operation number `cycles` of a block that endures `endurance` fails. In between it comes and goes.
    fn fails(&self, block: u32, cycles: u32, endurance: f64, value: bool) -> Option<StuckBits> {
        let parts = [u64::from(block), u64::from(cycles), u64::from(value)];
        let luck = unit(hash(self.seed, Use::Intermittence, parts));
        let fails = f64::from(cycles) > endurance * (1.0 + self.params().endurance_intermittence * luck);
        let level = (self.params().stuck_share * f64::from(cycles) / endurance).min(30.0) as f32;
        fails.then_some(StuckBits { value, level })
    }

    /// Whether the erase that brings a block to `cycles` fails, and then which of its cells it left at 0.
    pub fn erase_fails(&self, block: u32, cycles: u32) -> Option<StuckBits> {
        self.fails(block, cycles, self.endurance(block)?, false)
    }

    /// Whether a program of a page fails in a block of so many cycles, because of cells of the page that are stuck at 1. If the
    /// program does not want a 0 there, nothing is lost: [`Reliability::apply_stuck`] says.
    pub fn program_fails(&self, place: PagePlace, cycles: u32) -> Option<StuckBits> {
        let endurance = self.endurance(place.block)? * self.params().program_endurance_factor;
        let stuck = self.fails(place.block, cycles, endurance, true)?;
        self.stuck_bits(&stuck, place).next().map(|_| stuck)
    }

    /// The stuck bits of a page, counted from its start; a bit can come twice.
    fn stuck_bits(&self, stuck: &StuckBits, place: PagePlace) -> impl Iterator<Item = u64> + use<> {
        let page_bits = u64::from(self.layout.page_bytes) * 8;
        let pages = u64::from(self.layout.pages / self.layout.blocks);
        let what = if stuck.value { Use::StuckAtOne } else { Use::StuckAtZero };
        let level = f64::from(stuck.level);
        let cells = WeakestFirst::new(hash(self.seed, what, [u64::from(place.block)]), page_bits * pages);
        let in_block = u64::from(place.page) % pages;
        cells
            .enumerate()
            .take_while(move |(n, cell)| *n == 0 || cell.0 < level)
            .filter(move |(_, cell)| cell.1 / page_bits == in_block)
            .map(move |(_, cell)| cell.1 % page_bits)
    }

    /// Makes `data`, bytes of a page from `offset` on, what stuck cells let it be; how many bits that changed.
    pub fn apply_stuck(&self, stuck: &StuckBits, place: PagePlace, offset: usize, data: &mut [u8]) -> u32 {
        let mut changed = 0;
        for bit in self.stuck_bits(stuck, place) {
            let Some(at) = (bit / 8).checked_sub(offset as u64) else { continue };
            let Some(byte) = data.get_mut(at as usize) else { continue };
            let mask = 1u8 << (bit % 8);
            let forced = if stuck.value { *byte | mask } else { *byte & !mask };
            changed += u32::from(forced != *byte);
            *byte = forced;
        }
        changed
    }
}
