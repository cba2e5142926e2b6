//! Completions that wait for their time.
//!
//! The invariant: completions come out in the order of their due times, equal ones in the order they went in, and none
//! before its time. Room for every tag of the queue is taken at the start, so that nothing allocates later.

use super::Finished;
use std::{cmp::Ordering, collections::BinaryHeap};

struct Waiting {
    due_ns: u64,
    arrival: u64,
    finished: Finished,
}

impl Waiting {
    fn key(&self) -> (u64, u64) {
        (self.due_ns, self.arrival)
    }
}

// The heap gives its greatest first: the earliest is the greatest.
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Waiting {}

/// The waiting completions of one queue.
pub(super) struct Deadlines {
    heap: BinaryHeap<Waiting>,
    arrivals: u64,
}

impl Deadlines {
    /// Room for `depth` completions.
    pub(super) fn new(depth: usize) -> Deadlines {
        Deadlines { heap: BinaryHeap::with_capacity(depth), arrivals: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    pub(super) fn push(&mut self, due_ns: u64, finished: Finished) {
        self.heap.push(Waiting { due_ns, arrival: self.arrivals, finished });
        self.arrivals += 1;
    }

    /// When the next one is due.
    pub(super) fn next_ns(&self) -> Option<u64> {
        self.heap.peek().map(|waiting| waiting.due_ns)
    }

    /// The next one that is due at `now_ns`, with its due time.
    pub(super) fn pop(&mut self, now_ns: u64) -> Option<(u64, Finished)> {
        if self.next_ns()? > now_ns {
            return None;
        }
        self.heap.pop().map(|waiting| (waiting.due_ns, waiting.finished))
    }
}
