//! When one resource (a channel, a link, a plane of a die) is busy.
//!
//! A reservation takes the earliest gap that is long enough, so that work reserved far in the future leaves the time before it
//! usable. The invariant: the busy intervals are sorted, disjoint and not adjacent, and no reservation overlaps another.

use std::collections::VecDeque;

/// Gaps kept at most. A longer list gives up its earliest gap, which can only make the resource look busier.
const MAX_INTERVALS: usize = 512;

/// The busy intervals of one resource, in ns, half open.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timeline {
    busy: VecDeque<(u64, u64)>,
}

impl Timeline {
    /// An idle resource, with room so that steady use does not allocate.
    pub(crate) fn new() -> Timeline {
        Timeline { busy: VecDeque::with_capacity(16) }
    }

    /// The earliest start at or after `from_ns` of `length_ns` of idle time. What takes no time also waits while the resource is
    /// busy.
    pub(crate) fn earliest(&self, from_ns: u64, length_ns: u64) -> u64 {
        match self.busy.back() {
            Some((_, end)) if *end > from_ns => {}
            _ => return from_ns,
        }
        let first = self.busy.partition_point(|(_, end)| *end <= from_ns);
        let mut start = from_ns;
        for (busy_start, busy_end) in self.busy.range(first..) {
            if start.saturating_add(length_ns) <= *busy_start {
                return start;
            }
            start = start.max(*busy_end);
        }
        start
    }

    /// The first busy interval that ends after `from_ns`.
    pub(crate) fn next_busy(&self, from_ns: u64) -> Option<(u64, u64)> {
        self.busy.get(self.busy.partition_point(|(_, end)| *end <= from_ns)).copied()
    }

    /// Marks `start_ns..end_ns` busy. The caller has it from [`Timeline::earliest`].
    pub(crate) fn insert(&mut self, start_ns: u64, end_ns: u64) {
        if start_ns >= end_ns {
            return;
        }
        match self.busy.back_mut() {
            Some((_, end)) if *end == start_ns => {
                *end = end_ns;
                return;
            }
            Some((_, end)) if *end > start_ns => {}
            _ => {
                self.busy.push_back((start_ns, end_ns));
                self.bound();
                return;
            }
        }
        let at = self.busy.partition_point(|(_, end)| *end < start_ns);
        match self.busy.get_mut(at) {
            Some((start, end)) if *start <= end_ns => {
                *start = start_ns.min(*start);
                *end = end_ns.max(*end);
                self.join(at);
            }
            _ => {
                self.busy.insert(at, (start_ns, end_ns));
                self.bound();
            }
        }
    }

    /// Joins interval `at` with those after it that it now touches.
    fn join(&mut self, at: usize) {
        while let (Some((_, end)), Some((next, next_end))) =
            (self.busy.get(at).copied(), self.busy.get(at + 1).copied())
            && next <= end
        {
            self.busy.remove(at + 1);
            if let Some((_, end)) = self.busy.get_mut(at) {
                *end = next_end.max(*end);
            }
        }
    }

    /// Reserves the earliest `length_ns` at or after `from_ns`; returns its start and end.
    pub(crate) fn reserve(&mut self, from_ns: u64, length_ns: u64) -> (u64, u64) {
        let start = self.earliest(from_ns, length_ns);
        let end = start.saturating_add(length_ns);
        self.insert(start, end);
        (start, end)
    }

    /// Forgets what ended at or before `now_ns`. Nothing may be reserved before it afterwards.
    pub(crate) fn prune(&mut self, now_ns: u64) {
        while self.busy.front().is_some_and(|(_, end)| *end <= now_ns) {
            self.busy.pop_front();
        }
    }

    fn bound(&mut self) {
        if self.busy.len() > MAX_INTERVALS
            && let Some((first_start, _)) = self.busy.pop_front()
            && let Some((start, _)) = self.busy.front_mut()
        {
            *start = first_start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_reservation_far_ahead_leaves_the_time_before_it_usable() {
        let mut line = Timeline::new();
        assert_eq!(line.reserve(1000, 10), (1000, 1010));
        assert_eq!(line.reserve(0, 10), (0, 10));
        assert_eq!(line.reserve(0, 991), (1010, 2001));
        assert_eq!(line.reserve(0, 990), (10, 1000));
        assert_eq!(line.busy, [(0, 2001)]);
    }

    #[test]
    fn what_is_over_is_forgotten_and_the_rest_stays() {
        let mut line = Timeline::new();
        for start in [0, 20, 40] {
            line.reserve(start, 10);
        }
        line.prune(30);
        assert_eq!(line.busy, [(40, 50)]);
        assert_eq!(line.next_busy(30), Some((40, 50)));
        assert_eq!(line.next_busy(50), None);
    }

    #[test]
    fn a_list_of_gaps_that_grows_too_long_gives_up_the_earliest() {
        let mut line = Timeline::new();
        for n in 0..MAX_INTERVALS as u64 + 5 {
            line.reserve(n * 10, 1);
        }
        assert_eq!(line.busy.len(), MAX_INTERVALS);
        assert_eq!(line.busy.front(), Some(&(0, 51)));
        assert_eq!(line.earliest(0, 1), 51);
    }

    #[test]
    fn times_at_the_end_of_the_clock_saturate() {
        let mut line = Timeline::new();
        assert_eq!(line.reserve(u64::MAX - 5, 100), (u64::MAX - 5, u64::MAX));
        assert_eq!(line.reserve(u64::MAX - 5, 100), (u64::MAX, u64::MAX));
        assert_eq!(line.reserve(7, 0), (7, 7));
    }

    proptest! {
        /// The reference is an array of slots, searched from the left.
        #[test]
        fn a_reservation_takes_the_first_gap_of_an_array_of_slots(
            requests in prop::collection::vec((0u64..300, 1u64..12), 1..120),
        ) {
            let mut line = Timeline::new();
            let mut slots = vec![false; 4000];
            for (from, length) in requests {
                let free = |start: u64| (start..start + length).all(|slot| !slots[slot as usize]);
                let want = (from..).find(|start| free(*start)).unwrap();
                prop_assert_eq!(line.reserve(from, length), (want, want + length));
                slots[want as usize..(want + length) as usize].fill(true);
                let sorted = line.busy.iter().zip(line.busy.iter().skip(1)).all(|(a, b)| a.1 < b.0);
                prop_assert!(sorted, "{:?}", line.busy);
            }
        }
    }
}
