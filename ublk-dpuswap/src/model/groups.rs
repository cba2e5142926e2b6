//! Which block groups have dirty pages, oldest first: an intrusive queue over all groups, 4 bytes each.

const END: u32 = u32::MAX;
const NOT_QUEUED: u32 = u32::MAX - 1;

/// A first-in first-out queue of group numbers in which each group stands at most once.
#[derive(Debug)]
pub(super) struct DirtyGroups {
    next: Vec<u32>,
    head: u32,
    tail: u32,
}

impl DirtyGroups {
    /// An empty queue for groups `0..groups`.
    pub(super) fn new(groups: u32) -> Self {
        Self { next: vec![NOT_QUEUED; groups as usize], head: END, tail: END }
    }

    /// Adds a group at the back, unless it is queued already.
    pub(super) fn push(&mut self, group: u32) {
        match self.next.get_mut(group as usize) {
            Some(next) if *next == NOT_QUEUED => *next = END,
            _ => return,
        }
        match self.next.get_mut(self.tail as usize) {
            Some(last) => *last = group,
            None => self.head = group,
        }
        self.tail = group;
    }

    /// The oldest group.
    pub(super) fn front(&self) -> Option<u32> {
        (self.head != END).then_some(self.head)
    }

    /// Takes the oldest group away.
    pub(super) fn pop(&mut self) -> Option<u32> {
        let group = self.front()?;
        let next = self.next.get_mut(group as usize)?;
        self.head = std::mem::replace(next, NOT_QUEUED);
        if self.head == END {
            self.tail = END;
        }
        Some(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn the_queue_agrees_with_a_deque_without_repeats(ops in proptest::collection::vec(0u32..12, 0..200)) {
            let mut queue = DirtyGroups::new(8);
            let mut model: VecDeque<u32> = VecDeque::new();
            for op in ops {
                if op < 8 {
                    queue.push(op);
                    if !model.contains(&op) { model.push_back(op); }
                } else {
                    prop_assert_eq!(queue.pop(), model.pop_front());
                }
                prop_assert_eq!(queue.front(), model.front().copied());
            }
        }
    }
}
