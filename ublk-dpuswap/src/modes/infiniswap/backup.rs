//! Pages on their way to the backup file (pure): a bounded staging area, so that a write need not wait for the disk.
//!
//! The invariant: at most one write of a page is in flight, and the newest content is the last to be written; until then it
//! is in the staging area, from where it can be read.

use std::collections::VecDeque;

use crate::modes::{PageBuffer, buffers};

const NONE: u16 = u16::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// In the list of what is to be written.
    Queued,
    /// Waits for an older content of the same page to be written.
    Blocked,
    Flying,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    page: u32,
    state: State,
    /// The slot with newer content of the same page that waits for this one.
    next: u16,
    /// The request that waits for this slot to be written.
    waiter: u16,
    /// The page was discarded meanwhile.
    dead: bool,
}

/// A slot whose write has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) page: u32,
    /// It is the newest content of a page that was not discarded.
    pub(super) current: bool,
    pub(super) waiter: Option<u16>,
}

/// The staging area.
pub(super) struct Staging {
    slots: Vec<Slot>,
    buffers: Vec<PageBuffer>,
    free: Vec<u16>,
    queued: VecDeque<u16>,
    /// Per page its newest slot.
    newest: Vec<u16>,
}

impl Staging {
    /// For a device of `pages` pages, with room for `slots` of them (fewer than 65535).
    pub(super) fn new(pages: u32, slots: u16) -> Self {
        let slot = Slot { page: 0, state: State::Free, next: NONE, waiter: NONE, dead: false };
        let slots = slots.min(NONE - 1);
        Self {
            slots: vec![slot; slots.into()],
            buffers: buffers(slots.into()),
            free: (0..slots).rev().collect(),
            queued: VecDeque::with_capacity(slots.into()),
            newest: vec![NONE; pages as usize],
        }
    }

    /// Takes a page's new content. `false`: there is no room now.
    pub(super) fn stage(&mut self, page: u32, content: impl FnOnce(&mut [u8])) -> bool {
        let newest = self.newest[page as usize];
        let waits = self.slots.get(usize::from(newest)).map(|slot| slot.state);
        if let Some(State::Queued | State::Blocked) = waits {
            content(&mut self.buffers[usize::from(newest)].0);
            self.slots[usize::from(newest)].dead = false;
            return true;
        }
        let Some(free) = self.free.pop() else { return false };
        content(&mut self.buffers[usize::from(free)].0);
        let state = if newest == NONE { State::Queued } else { State::Blocked };
        self.slots[usize::from(free)] = Slot { page, state, next: NONE, waiter: NONE, dead: false };
        if newest == NONE {
            self.queued.push_back(free);
        } else {
            self.slots[usize::from(newest)].next = free;
        }
        self.newest[page as usize] = free;
        true
    }

    /// The content of a page that is staged.
    pub(super) fn staged(&self, page: u32) -> Option<&[u8]> {
        let newest = usize::from(self.newest[page as usize]);
        self.slots.get(newest).filter(|slot| !slot.dead).map(|_| &self.buffers[newest].0[..])
    }

    /// The request `tag` is told when the page's newest content is written. `false` when nothing of it is staged.
    pub(super) fn wait_for(&mut self, page: u32, tag: u16) -> bool {
        let newest = usize::from(self.newest[page as usize]);
        self.slots.get_mut(newest).map(|slot| slot.waiter = tag).is_some()
    }

    /// What is staged of the page is not needed any more.
    pub(super) fn discard(&mut self, page: u32) {
        let newest = usize::from(self.newest[page as usize]);
        if let Some(slot) = self.slots.get_mut(newest) {
            slot.dead = true;
        }
    }

    /// The next slot to write: its number, its page and its buffer, which stays until [`Staging::ended`].
    pub(super) fn take(&mut self) -> Option<(u16, u32, *const u8)> {
        let number = self.queued.pop_front()?;
        let slot = &mut self.slots[usize::from(number)];
        slot.state = State::Flying;
        Some((number, slot.page, self.buffers[usize::from(number)].0.as_ptr()))
    }

    /// The slot could not be handed to the ring: it is the next again.
    pub(super) fn put_back(&mut self, number: u16) {
        self.slots[usize::from(number)].state = State::Queued;
        self.queued.push_front(number);
    }

    /// The write of a slot has ended, however.
    pub(super) fn ended(&mut self, number: u16) -> Option<Written> {
        let slot = *self.slots.get(usize::from(number)).filter(|slot| slot.state == State::Flying)?;
        let newest = &mut self.newest[slot.page as usize];
        let current = *newest == number && !slot.dead;
        if *newest == number {
            *newest = NONE;
        }
        if let Some(next) = self.slots.get_mut(usize::from(slot.next)) {
            next.state = State::Queued;
            self.queued.push_back(slot.next);
        }
        self.slots[usize::from(number)].state = State::Free;
        self.free.push(number);
        let waiter = Some(slot.waiter).filter(|tag| *tag != NONE);
        Some(Written { page: slot.page, current, waiter })
    }

    /// Slots in use.
    #[cfg(test)]
    fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn newer_content_waits_for_the_older_ones_write_and_reads_see_the_newer() {
        let mut staging = Staging::new(4, 3);
        assert!(staging.stage(2, |page| page.fill(1)));
        let (first, page, _) = staging.take().unwrap();
        assert!(page == 2 && staging.stage(2, |page| page.fill(2)) && staging.take().is_none());
        assert!(staging.stage(2, |page| page.fill(3)), "it takes the place of what was not begun");
        assert_eq!((staging.staged(2).unwrap()[0], staging.used()), (3, 2));
        assert!(staging.wait_for(2, 9));
        assert_eq!(staging.ended(first), Some(Written { page: 2, current: false, waiter: None }));
        let (second, ..) = staging.take().unwrap();
        assert_eq!(staging.ended(second), Some(Written { page: 2, current: true, waiter: Some(9) }));
        assert!(staging.staged(2).is_none() && staging.used() == 0 && !staging.wait_for(2, 9));
    }

    #[test]
    fn a_full_area_takes_nothing_and_a_discarded_page_is_not_read_from_it() {
        let mut staging = Staging::new(4, 1);
        assert!(staging.stage(0, |page| page.fill(1)) && !staging.stage(1, |_| unreachable!()));
        staging.discard(0);
        assert!(staging.staged(0).is_none());
        let (slot, ..) = staging.take().unwrap();
        assert_eq!(staging.ended(slot), Some(Written { page: 0, current: false, waiter: None }));
        assert_eq!(staging.ended(slot), None);
    }

    proptest! {
        /// The file ends up with the last content of every page, in whatever order writes end.
        #[test]
        fn the_file_gets_what_was_staged_last(ops in prop::collection::vec((0u32..4, 0u8..4), 1..200)) {
            let mut staging = Staging::new(4, 5);
            let (mut file, mut known) = (HashMap::new(), HashMap::new());
            let mut flying: Vec<(u16, u32, u8)> = Vec::new();
            let end = (0..200).map(|n| (n % 4, 3));
            for (turn, (page, what)) in ops.into_iter().chain(end.clone()).chain(end).enumerate() {
                match what {
                    0 | 1 => {
                        if staging.stage(page, |bytes| bytes[0] = turn as u8) {
                            known.insert(page, turn as u8);
                        }
                    }
                    2 => {
                        if let Some((slot, page, _)) = staging.take() {
                            prop_assert!(flying.iter().all(|(_, other, _)| *other != page), "two at once");
                            flying.push((slot, page, staging.buffers[usize::from(slot)].0[0]));
                        }
                    }
                    _ => {
                        if let Some((slot, page, _)) = staging.take() {
                            flying.push((slot, page, staging.buffers[usize::from(slot)].0[0]));
                        }
                        if !flying.is_empty() {
                            let (slot, page, byte) = flying.remove(turn % flying.len());
                            file.insert(page, byte);
                            prop_assert_eq!(staging.ended(slot).unwrap().page, page);
                        }
                    }
                }
                for page in 0..4 {
                    let read = staging.staged(page).map(|bytes| bytes[0]).or(file.get(&page).copied());
                    prop_assert_eq!(read, known.get(&page).copied());
                }
            }
            prop_assert_eq!(staging.used(), 0);
            prop_assert_eq!(file, known);
        }
    }
}
