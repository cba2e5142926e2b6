//! How long operations take: their spread, and how it moves with wear.
//!
//! The invariant: a time is at least 1 ns; it is never above the maximum in a block within its endurance; and for the same draw
//! it never falls as cycles grow.

use super::random::{Use, hash, normal};
use super::{PagePlace, Reliability};

/// The 99.9 % quantile of the normal distribution.
const Z_999: f64 = 3.090_232_306_167_813;

impl Reliability {
    /// How long an erase takes. The times of blocks and erases are lognormal with the median `typical_ns` times the wear's
    /// factor, and the 99.9 % quantile `max_ns`, beyond which they are cut off. Past its endurance a block is held by no
    /// maximum. A blank block is found to be so, and is faster by `blank_erase_factor`. `draw` tells erases apart.
    /// An erase of several units (32K, 64K, the chip) has times of its own: ask once, with its first unit, the cycles of its most
    /// worn, and blank if all are. The slowest of many draws would nearly always be the maximum.
    pub fn erase_time_ns(
        &self,
        block: u32,
        cycles: u32,
        typical_ns: u64,
        max_ns: u64,
        blank: bool,
        draw: u64,
    ) -> u64 {
        let of_block = hash(self.seed, Use::BlockTime, [u64::from(block)]);
        let of_erase = hash(self.seed, Use::EraseDraw, [u64::from(block), draw]);
        let worn_out = self.endurance(block).is_some_and(|endurance| f64::from(cycles) > endurance);
        let factor = self.erase_wear_factor(f64::from(cycles));
        let ns = self.time_ns(typical_ns, max_ns, factor, worn_out, of_block, of_erase);
        whole_ns(if blank { ns * self.params().blank_erase_factor } else { ns })
    }

    /// How long a program takes; as [`Reliability::erase_time_ns`], and hardly slower with wear.
    pub fn program_time_ns(
        &self,
        place: PagePlace,
        cycles: u32,
        typical_ns: u64,
        max_ns: u64,
        draw: u64,
    ) -> u64 {
        let params = self.params();
        let of_page = hash(self.seed, Use::PageTime, [u64::from(place.page)]);
        let of_program = hash(self.seed, Use::ProgramDraw, [u64::from(place.page), draw]);
        let worn = f64::from(cycles) / params.pe_reference_cycles;
        let factor = 1.0 + (params.program_wear_factor - 1.0) * worn;
        whole_ns(self.time_ns(typical_ns, max_ns, factor, false, of_page, of_program))
    }

    fn time_ns(&self, typical_ns: u64, max_ns: u64, wear: f64, worn_out: bool, place: u64, draw: u64) -> f64 {
        let params = self.params();
        // Never 0, and a maximum below the typical time is one at it.
        let typical = (typical_ns.max(1) as f64).ln();
        let max = (max_ns.max(1) as f64).ln().max(typical);
        let worn = typical + wear.ln();
        let middle = worn.min(max);
        let share = params.time_place_share;
        // What has no part need not be drawn.
        let part = |share: f64, key: u64| if share == 0.0 { 0.0 } else { share.sqrt() * normal(key) };
        let z = match params.time_spread {
            0.0 => 0.0,
            spread => spread * (part(share, place) + part(1.0 - share, draw)),
        };
        let within = middle + (max - middle) * z.min(Z_999) / Z_999;
        // Past the end the excess of the middle over the maximum comes on top.
        (if worn_out { within.max(middle) + (worn - middle) } else { within }).exp()
    }

    /// The factor of wear on erase times: straight in logarithms between the table's points.
    pub fn erase_wear_factor(&self, cycles: f64) -> f64 {
        let table = &self.params().erase_wear;
        let (Some(first), Some(last)) = (table.first(), table.last()) else { return 1.0 };
        if cycles <= first[0] || table.len() == 1 {
            return first[1];
        }
        let after = table.partition_point(|point| point[0] < cycles).min(table.len() - 1).max(1);
        let (a, b) = (table[after - 1], table[after]);
        let slope = (b[1] / a[1]).ln() / (b[0] / a[0]).ln();
        let factor = (a[1].ln() + slope * (cycles / a[0]).ln()).exp();
        factor.min(1000.0 * last[1])
    }
}

fn whole_ns(ns: f64) -> u64 {
    // The cast saturates.
    ns.round().max(1.0) as u64
}
