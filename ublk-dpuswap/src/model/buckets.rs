//! Sealed blocks sorted by how much in them is alive, so that the best victim is found without looking at all blocks.
//!
//! Lists linked through the blocks, one per 64 live units (0.4 % of a block); the last list holds blocks that are not
//! to be cleaned. Invariant: a block stands in at most one list, that of its live units when it was put there.

use crate::units::UNITS_PER_BLOCK;

const UNITS_PER_BUCKET: u32 = 64;
/// Lists of blocks that may be cleaned.
const CLEANABLE: usize = (UNITS_PER_BLOCK / UNITS_PER_BUCKET) as usize + 1;
const NIL: u32 = u32::MAX;
const OUT: u16 = u16::MAX;

#[derive(Debug, Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
    bucket: u16,
}

#[derive(Debug)]
pub(super) struct Buckets {
    heads: Vec<u32>,
    tails: Vec<u32>,
    links: Vec<Link>,
}

impl Buckets {
    pub(super) fn new(blocks: u32) -> Self {
        Self {
            heads: vec![NIL; CLEANABLE + 1],
            tails: vec![NIL; CLEANABLE + 1],
            links: vec![Link { prev: NIL, next: NIL, bucket: OUT }; blocks as usize],
        }
    }

    /// Puts a block where it belongs by its live units; `None`: to no list; not `cleanable`: to the last one.
    pub(super) fn place(&mut self, id: u32, live_units: Option<u32>, cleanable: bool) {
        let bucket = match live_units {
            None => OUT,
            Some(units) if cleanable => (units.min(UNITS_PER_BLOCK) / UNITS_PER_BUCKET) as u16,
            Some(_) => CLEANABLE as u16,
        };
        let Some(link) = self.links.get(id as usize).copied() else { return };
        if link.bucket == bucket {
            return;
        }
        if link.bucket != OUT {
            match self.links.get_mut(link.prev as usize) {
                Some(prev) => prev.next = link.next,
                None => self.heads[usize::from(link.bucket)] = link.next,
            }
            match self.links.get_mut(link.next as usize) {
                Some(next) => next.prev = link.prev,
                None => self.tails[usize::from(link.bucket)] = link.prev,
            }
        }
        let mut prev = NIL;
        if bucket != OUT {
            prev = std::mem::replace(&mut self.tails[usize::from(bucket)], id);
            match self.links.get_mut(prev as usize) {
                Some(last) => last.next = id,
                None => self.heads[usize::from(bucket)] = id,
            }
        }
        self.links[id as usize] = Link { prev, next: NIL, bucket };
    }

    /// Blocks that may be cleaned, least alive first, oldest first among equals, up to `max_live_units`.
    pub(super) fn cleanable(&self, max_live_units: u32) -> impl Iterator<Item = u32> {
        let last = (max_live_units.min(UNITS_PER_BLOCK) / UNITS_PER_BUCKET) as usize;
        (0..=last).flat_map(|bucket| self.list(bucket))
    }

    /// All sealed blocks that can be read, those that may be cleaned first.
    pub(super) fn all(&self) -> impl Iterator<Item = u32> {
        (0..=CLEANABLE).flat_map(|bucket| self.list(bucket))
    }

    fn list(&self, bucket: usize) -> impl Iterator<Item = u32> {
        let head = self.heads.get(bucket).copied().filter(|id| *id != NIL);
        std::iter::successors(head, |id| {
            self.links.get(*id as usize).map(|link| link.next).filter(|id| *id != NIL)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn the_lists_agree_with_a_sorted_map(
            moves in proptest::collection::vec((0u32..20, proptest::option::of(0u32..=UNITS_PER_BLOCK), any::<bool>()), 0..200),
            max in 0u32..=UNITS_PER_BLOCK,
        ) {
            let mut buckets = Buckets::new(20);
            let mut known = BTreeMap::new();
            for (id, units, cleanable) in moves {
                buckets.place(id, units, cleanable);
                known.remove(&id);
                if let Some(units) = units { known.insert(id, (units, cleanable)); }
            }
            let mut all: Vec<u32> = buckets.all().collect();
            all.sort_unstable();
            prop_assert_eq!(all, known.keys().copied().collect::<Vec<_>>());
            let found: Vec<u32> = buckets.cleanable(max).collect();
            let fit = |(units, cleanable): (u32, bool)| cleanable && units / UNITS_PER_BUCKET <= max / UNITS_PER_BUCKET;
            prop_assert_eq!(found.len(), known.values().filter(|block| fit(**block)).count());
            let order: Vec<u32> = found.iter().map(|id| known[id].0 / UNITS_PER_BUCKET).collect();
            prop_assert!(order.is_sorted());
        }
    }
}
