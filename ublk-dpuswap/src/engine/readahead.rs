//! How far a remote read reaches beyond the page that was asked for: as far as that has paid lately.
//!
//! The records of a group lie side by side, so that its neighbours come with one read. Whether they are wanted is the
//! program's business: a sweep uses them all, random accesses none, and each costs bytes on the link and room in the cache.
//! The window doubles while a quarter of what was brought is used, and halves while less is; when it is closed, one read
//! in [`PROBE_EVERY`] tries again.

/// The widest window.
const WIDEST_BYTES: u32 = 32 << 10;
/// The narrowest one that is more than nothing.
const NARROWEST_BYTES: u32 = 4 << 10;
/// Pages brought along and judged (used, or evicted unused) between two looks.
const LOOK_AFTER_PAGES: u64 = 64;
/// With a closed window, one read in so many is wide.
const PROBE_EVERY: u32 = 64;

/// The window of one queue.
#[derive(Debug)]
pub(super) struct ReadAhead {
    window_bytes: u32,
    used_before: u64,
    wasted_before: u64,
    reads: u32,
}

impl ReadAhead {
    /// A window of middle width, or none at all for ever.
    pub(super) fn new(enabled: bool) -> Self {
        let window_bytes = if enabled { 2 * NARROWEST_BYTES } else { u32::MAX };
        Self { window_bytes, used_before: 0, wasted_before: 0, reads: 0 }
    }

    /// How many bytes around a page to bring now. `used` and `wasted` count pages brought along since the start.
    pub(super) fn window_bytes(&mut self, used: u64, wasted: u64) -> u32 {
        if self.window_bytes == u32::MAX {
            return 0;
        }
        let (new_used, new_wasted) = (used - self.used_before, wasted - self.wasted_before);
        if new_used + new_wasted >= LOOK_AFTER_PAGES {
            (self.used_before, self.wasted_before) = (used, wasted);
            self.window_bytes = match (3 * new_used >= new_wasted, self.window_bytes) {
                (true, bytes) => (2 * bytes).clamp(NARROWEST_BYTES, WIDEST_BYTES),
                (false, ..=NARROWEST_BYTES) => 0,
                (false, bytes) => bytes / 2,
            };
        }
        self.reads = self.reads.wrapping_add(1);
        match self.window_bytes {
            0 if self.reads.is_multiple_of(PROBE_EVERY) => 2 * NARROWEST_BYTES,
            bytes => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_opens_while_it_pays_and_closes_while_it_does_not() {
        let mut ahead = ReadAhead::new(true);
        for round in 1..8 {
            ahead.window_bytes(round * 64, 0);
        }
        assert_eq!(ahead.window_bytes(448, 0), WIDEST_BYTES);
        for round in 1..8 {
            ahead.window_bytes(448, round * 64);
        }
        let wide = (0..640).filter(|_| ahead.window_bytes(448, 448) > 0).count();
        assert_eq!(wide, 10, "closed but for probes");
        ahead.window_bytes(448 + 64, 448);
        assert!(ahead.window_bytes(448 + 64, 448) >= NARROWEST_BYTES, "probes that paid open it again");
    }

    #[test]
    fn switched_off_it_never_opens() {
        let mut ahead = ReadAhead::new(false);
        assert!((0..1000).all(|round| ahead.window_bytes(round * 64, 0) == 0));
    }
}
