//! What memories without erase suffer: write errors (MRAM), and rows that wear with every access (FRAM).
//!
//! The invariant: a write error leaves a bit as it was; no bit that was not to change is touched.

use super::random::{Stream, Use, WeakestFirst, hash, normal};
use super::{PagePlace, Reliability};

/// The lognormal factor of a cell is cut off here, in deviations: one cell in 3 million is beyond.
const MOST_DEVIATIONS: f64 = 5.0;

impl Reliability {
    /// A write of `data` over `old` into a page from byte `offset` on: puts back in `data` the bits that failed to change, and
    /// says how many. A cell fails with `write_error_rate` on average, each with a lognormal rate of its own (arXiv
    /// 2209.13828). `draw` tells writes apart.
    pub fn write_errors(
        &self,
        place: PagePlace,
        offset: usize,
        old: &[u8],
        data: &mut [u8],
        draw: u64,
    ) -> u32 {
        let params = self.params();
        if params.write_error_rate == 0.0 {
            return 0;
        }
        let sigma = params.write_error_sigma;
        let rate_of = |deviations: f64| {
            params.write_error_rate * (sigma * deviations.min(MOST_DEVIATIONS) - 0.5 * sigma * sigma).exp()
        };
        let most = rate_of(MOST_DEVIATIONS).min(0.5);
        let page = u64::from(place.page);
        let bits = data.len() as u64 * 8;
        let key = hash(self.seed, Use::WriteError, [page, draw, offset as u64]);
        let mut choice = Stream::new(!key);
        let mut failed: Vec<(u64, f64)> = WeakestFirst::new(key, bits)
            .take_while(|(level, _)| *level < -(-most).ln_1p())
            .map(|(_, bit)| (bit, choice.unit()))
            .collect();
        failed.sort_by_key(|(bit, _)| *bit);
        let mut errors = 0;
        for same in failed.chunk_by(|a, b| a.0 == b.0) {
            // Of the bits that the worst cell would fail on, each fails by its own rate.
            let (bit, luck) = same[0];
            let cell = (offset as u64).saturating_mul(8).saturating_add(bit);
            let own = normal(hash(self.seed, Use::WriteErrorCell, [page, cell]));
            if luck * most >= rate_of(own).min(0.5) {
                continue;
            }
            let at = (bit / 8) as usize;
            let (Some(new), Some(old)) = (data.get_mut(at), old.get(at)) else { continue };
            let mask = (*new ^ old) & (1 << (bit % 8));
            *new ^= mask;
            errors += u32::from(mask != 0);
        }
        errors
    }

    /// How many accesses, reads and writes together, a row of `access_row_bytes` endures: lognormal over rows. `None` if
    /// without end.
    pub fn row_endurance(&self, row: u32) -> Option<f64> {
        let params = self.params();
        (params.access_endurance > 0.0).then(|| {
            let key = hash(self.seed, Use::RowEndurance, [u64::from(row)]);
            params.access_endurance * (params.access_endurance_sigma * normal(key)).exp()
        })
    }

    /// Makes `data`, bytes of a row from `offset` on, what a row of so many accesses can hold; how many bits that changed. Up to
    /// its endurance a row holds everything; beyond, cells are stuck, at first at least one, and more as accesses grow.
    pub fn apply_row_wear(&self, row: u32, accesses: u64, offset: usize, data: &mut [u8]) -> u32 {
        let Some(endurance) = self.row_endurance(row) else { return 0 };
        let over = accesses as f64 / endurance;
        if over <= 1.0 {
            return 0;
        }
        let level = (self.params().stuck_share * over).min(30.0);
        let key = hash(self.seed, Use::RowCells, [u64::from(row)]);
        let bits = u64::from(self.params().access_row_bytes) * 8;
        let mut changed = 0;
        for (_, bit) in WeakestFirst::new(key, bits)
            .enumerate()
            .take_while(|(n, c)| *n == 0 || c.0 < level)
            .map(|(_, c)| c)
        {
            let Some(byte) = (bit / 8).checked_sub(offset as u64).and_then(|at| data.get_mut(at as usize))
            else {
                continue;
            };
            // Imprint: which way a cell is stuck is its own.
            let mask = 1u8 << (bit % 8);
            let is_one = hash(key, Use::RowCells, [bit]) & 1 == 1;
            let forced = if is_one { *byte | mask } else { *byte & !mask };
            changed += u32::from(forced != *byte);
            *byte = forced;
        }
        changed
    }
}
