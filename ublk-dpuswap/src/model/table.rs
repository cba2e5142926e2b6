//! The page table: one 8-byte word per page, dense and allocated once (2 MiB of table per GiB of device).
//!
//! A dense array answers in a few nanoseconds, never allocates and never rehashes; a hash map does none of that.

use crate::memory::{Memory, PersistError, Slab, barrier};
use crate::units::{BlockId, EntryId, Location, PageNo};

/// Where a page's current content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// Never written, or discarded: reads as zeros.
    Absent,
    /// One 32-bit word repeated: nothing is stored but the word.
    SameFilled(u32),
    /// In the local cache (and, when the entry is clean, also in remote memory).
    Cached(EntryId),
    /// Only in remote memory.
    Remote(Location),
}

const TAG_SHIFT: u32 = 62;
const LEN_BITS: u32 = 13;
const OFFSET_BITS: u32 = 14;
const BLOCK_SHIFT: u32 = LEN_BITS + OFFSET_BITS;

fn pack(mapping: Mapping) -> u64 {
    let (tag, value) = match mapping {
        Mapping::Absent => (0, 0),
        Mapping::SameFilled(pattern) => (1, u64::from(pattern)),
        Mapping::Cached(entry) => (2, u64::from(entry.0)),
        Mapping::Remote(at) => {
            let low = u64::from(at.len_bytes) | u64::from(at.offset_units) << LEN_BITS;
            (3, low | u64::from(at.block.0) << BLOCK_SHIFT)
        }
    };
    tag << TAG_SHIFT | value
}

fn unpack(word: u64) -> Mapping {
    match word >> TAG_SHIFT {
        0 => Mapping::Absent,
        1 => Mapping::SameFilled(word as u32),
        2 => Mapping::Cached(EntryId(word as u32)),
        _ => Mapping::Remote(Location {
            block: BlockId((word >> BLOCK_SHIFT) as u32),
            offset_units: (word >> LEN_BITS) as u32 & ((1 << OFFSET_BITS) - 1),
            len_bytes: word as u32 & ((1 << LEN_BITS) - 1),
        }),
    }
}

/// A remote location as one word, never 0.
pub(crate) fn pack_location(at: Location) -> u64 {
    pack(Mapping::Remote(at))
}

/// The location in a word; `None` when it holds something else.
pub(crate) fn unpack_location(word: u64) -> Option<Location> {
    match unpack(word) {
        Mapping::Remote(at) => Some(at),
        _ => None,
    }
}

/// The page table of one device.
#[derive(Debug)]
pub(super) struct PageTable(Slab<u64>);

impl PageTable {
    /// A table of `pages` pages, content as it lies in `memory`.
    pub(super) fn new(pages: u32, memory: &mut Memory) -> Result<Self, PersistError> {
        memory.take(pages as usize).map(Self)
    }

    /// Makes all pages absent.
    pub(super) fn clear(&mut self) {
        self.0.fill(0);
    }

    /// Pages of the device.
    pub(super) fn pages(&self) -> u32 {
        self.0.len() as u32
    }

    /// Where `page` is; a page past the end is absent.
    pub(super) fn get(&self, page: PageNo) -> Mapping {
        self.0.get(page.0 as usize).map_or(Mapping::Absent, |word| unpack(*word))
    }

    /// Records where `page` is now; a page past the end is ignored (callers check the range once per request).
    pub(super) fn set(&mut self, page: PageNo, mapping: Mapping) {
        if let Some(word) = self.0.get_mut(page.0 as usize) {
            barrier();
            *word = pack(mapping);
            barrier();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_mapping_survives_packing(pattern: u32, entry: u32, block: u32, offset in 0u32..16384, len in 0u32..8192) {
            let at = Location { block: BlockId(block), offset_units: offset, len_bytes: len };
            for mapping in [
                Mapping::Absent, Mapping::SameFilled(pattern), Mapping::Cached(EntryId(entry)), Mapping::Remote(at),
            ] {
                prop_assert_eq!(unpack(pack(mapping)), mapping);
            }
        }
    }
}
