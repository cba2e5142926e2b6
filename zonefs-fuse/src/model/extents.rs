//! Where a file's bytes are.

use crate::device::ZoneId;

/// A run of bytes in one zone. It starts at a block; only the last extent of a file ends inside one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The zone.
    pub zone: ZoneId,
    /// The first byte, from the zone's start.
    pub offset_bytes: u64,
    /// How many bytes of the file.
    pub length_bytes: u64,
}

impl Extent {
    /// How many blocks it occupies.
    pub fn blocks(&self, block_size: u64) -> u64 {
        self.length_bytes.div_ceil(block_size.max(1))
    }
}

/// A file's extents in order, without holes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentMap {
    /// Each with the file offset it starts at.
    list: Vec<(u64, Extent)>,
    length_bytes: u64,
}

impl ExtentMap {
    /// How many bytes of the file they cover.
    pub fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// How many extents there are.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// All extents.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.list.iter().map(|(_, extent)| *extent)
    }

    /// Continues the file with an extent; false when it is empty, too long, or the file ends inside a block.
    pub fn push(&mut self, extent: Extent, block_size: u64) -> bool {
        let Some(length) = self.length_bytes.checked_add(extent.length_bytes) else { return false };
        if extent.length_bytes == 0 || !self.length_bytes.is_multiple_of(block_size.max(1)) {
            return false;
        }
        match self.list.last_mut() {
            Some((_, last))
                if last.zone == extent.zone
                    && last.offset_bytes + last.length_bytes == extent.offset_bytes =>
            {
                last.length_bytes += extent.length_bytes;
            }
            _ => self.list.push((self.length_bytes, extent)),
        }
        self.length_bytes = length;
        true
    }

    /// Cuts the file off, and gives back the whole blocks that are no longer used.
    pub fn truncate(&mut self, length_bytes: u64, block_size: u64) -> Vec<Extent> {
        let mut dropped = Vec::new();
        if length_bytes >= self.length_bytes {
            return dropped;
        }
        while let Some((at, extent)) = self.list.pop_if(|(at, e)| *at + e.length_bytes > length_bytes) {
            let keep = length_bytes.saturating_sub(at);
            let kept_blocks = keep.next_multiple_of(block_size.max(1));
            if keep > 0 {
                self.list.push((at, Extent { length_bytes: keep, ..extent }));
            }
            if kept_blocks < extent.length_bytes {
                dropped.push(Extent {
                    offset_bytes: extent.offset_bytes + kept_blocks,
                    length_bytes: extent.length_bytes - kept_blocks,
                    ..extent
                });
            }
            if keep > 0 {
                break;
            }
        }
        self.length_bytes = length_bytes;
        dropped
    }

    /// The extents from a file offset on, the first one cut when the offset lies inside it.
    pub fn from(&self, offset_bytes: u64) -> Vec<Extent> {
        self.pieces(offset_bytes, u64::MAX)
    }

    /// The extents that hold a range of the file, cut to it.
    pub fn pieces(&self, offset_bytes: u64, length_bytes: u64) -> Vec<Extent> {
        let end = offset_bytes.saturating_add(length_bytes);
        let first = self.list.partition_point(|(at, e)| *at + e.length_bytes <= offset_bytes);
        let wanted = self.list.iter().skip(first).take_while(|(at, _)| *at < end);
        wanted
            .map(|(at, extent)| {
                let skip = offset_bytes.saturating_sub(*at);
                let stop = extent.length_bytes.min(end - at);
                Extent { offset_bytes: extent.offset_bytes + skip, length_bytes: stop - skip, ..*extent }
            })
            .filter(|extent| extent.length_bytes > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = 8;

    /// Every byte's place, one by one.
    fn places(extents: &[Extent]) -> Vec<(u32, u64)> {
        extents
            .iter()
            .flat_map(|e| (e.offset_bytes..e.offset_bytes + e.length_bytes).map(move |b| (e.zone.0, b)))
            .collect()
    }

    #[test]
    fn an_extent_after_a_part_of_a_block_is_refused() {
        let mut map = ExtentMap::default();
        assert!(map.push(Extent { zone: ZoneId(1), offset_bytes: 0, length_bytes: 5 }, BLOCK));
        assert!(!map.push(Extent { zone: ZoneId(1), offset_bytes: 8, length_bytes: 8 }, BLOCK));
        assert_eq!(map.length_bytes(), 5);
    }

    proptest! {
        #[test]
        fn the_map_agrees_with_a_list_of_bytes(
            pushes in prop::collection::vec((0..3_u32, 0..20_u64, 1..40_u64), 1..12),
            cut: prop::sample::Index, range: (prop::sample::Index, prop::sample::Index),
        ) {
            let mut map = ExtentMap::default();
            let mut bytes: Vec<(u32, u64)> = Vec::new();
            for (zone, offset, length) in pushes {
                let extent = Extent { zone: ZoneId(zone), offset_bytes: offset * BLOCK, length_bytes: length };
                let before = map.clone();
                if map.push(extent, BLOCK) {
                    bytes.extend(places(&[extent]));
                } else {
                    prop_assert_eq!(&map, &before);
                }
            }
            prop_assert_eq!(places(&map.from(0)), bytes.clone());
            let (a, b) = (range.0.index(bytes.len() + 1), range.1.index(bytes.len() + 1));
            let (a, b) = (a.min(b), a.max(b));
            prop_assert_eq!(places(&map.pieces(a as u64, (b - a) as u64)), bytes[a..b].to_vec());
            let cut = cut.index(bytes.len() + 1);
            let blocks_before: u64 = map.iter().map(|e| e.blocks(BLOCK)).sum();
            let dropped = map.truncate(cut as u64, BLOCK);
            prop_assert_eq!(places(&map.from(0)), bytes[..cut].to_vec());
            prop_assert_eq!(map.length_bytes(), cut as u64);
            let kept: u64 = map.iter().map(|e| e.blocks(BLOCK)).sum();
            let given_back: u64 = dropped.iter().map(|e| e.blocks(BLOCK)).sum();
            prop_assert_eq!(kept + given_back, blocks_before, "every block is kept or given back");
        }
    }
}
