//! Which slab of the device lies on which node (pure).
//!
//! The invariant: a slab's generation changes whenever its place does, so that nobody takes an old place's content for the
//! new one's.

use crate::units::{BLOCK_BYTES, Choices, NodeId, PAGE_BYTES, RemoteBlock};

/// Pages of a remote block.
pub(super) const BLOCK_PAGES: u32 = (BLOCK_BYTES / PAGE_BYTES) as u32;
/// Infiniswap's slab: 1 GiB.
const SLAB_BLOCKS: u32 = 1024;
/// Smaller ones would be fine-grained.
const LEAST_SLAB_BLOCKS: u32 = 16;

/// Blocks of a slab for a device: 1 GiB, or halved until every node could have four, down to 16 MiB.
pub fn slab_blocks(pages: u32, nodes: usize) -> u32 {
    let blocks = pages.div_ceil(BLOCK_PAGES);
    let wanted = u64::from(blocks) / (4 * nodes.max(1) as u64);
    let mut size = SLAB_BLOCKS;
    while size > LEAST_SLAB_BLOCKS && u64::from(size) > wanted {
        size /= 2;
    }
    size
}

/// A slab.
#[derive(Debug, Clone)]
struct Slab {
    node: Option<NodeId>,
    blocks: Vec<RemoteBlock>,
    generation: u32,
}

/// Where a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) node: NodeId,
    pub(super) block: RemoteBlock,
    pub(super) offset_bytes: u32,
}

/// All slabs of a device.
#[derive(Debug)]
pub(super) struct Slabs {
    slabs: Vec<Slab>,
    slab_pages: u32,
}

impl Slabs {
    pub(super) fn new(pages: u32, slab_blocks: u32) -> Self {
        let slab_pages = slab_blocks * BLOCK_PAGES;
        let slab = Slab { node: None, blocks: Vec::new(), generation: 0 };
        Self { slabs: vec![slab; pages.div_ceil(slab_pages) as usize], slab_pages }
    }

    pub(super) fn len(&self) -> usize {
        self.slabs.len()
    }

    pub(super) fn blocks_each(&self) -> u32 {
        self.slab_pages / BLOCK_PAGES
    }

    /// Pages of a slab.
    pub(super) fn pages_each(&self) -> u32 {
        self.slab_pages
    }

    pub(super) fn slab_of(&self, page: u32) -> usize {
        (page / self.slab_pages) as usize
    }

    pub(super) fn generation(&self, slab: usize) -> u32 {
        self.slabs.get(slab).map_or(0, |slab| slab.generation)
    }

    pub(super) fn node(&self, slab: usize) -> Option<NodeId> {
        self.slabs.get(slab).and_then(|slab| slab.node)
    }

    /// Where a page is; `None` while its slab is nowhere.
    pub(super) fn spot(&self, page: u32) -> Option<Spot> {
        let slab = self.slabs.get(self.slab_of(page))?;
        let within = page % self.slab_pages;
        let block = *slab.blocks.get((within / BLOCK_PAGES) as usize)?;
        let offset_bytes = (within % BLOCK_PAGES) * PAGE_BYTES as u32;
        Some(Spot { node: slab.node?, block, offset_bytes })
    }

    /// A slab that is nowhere.
    pub(super) fn next_unmapped(&self, from: usize) -> Option<usize> {
        (from..self.slabs.len()).find(|slab| self.node(*slab).is_none())
    }

    /// A slab on a node.
    pub(super) fn next_on(&self, node: NodeId) -> Option<usize> {
        self.slabs.iter().position(|slab| slab.node == Some(node))
    }

    pub(super) fn map(&mut self, slab: usize, node: NodeId, blocks: Vec<RemoteBlock>) {
        if let Some(slab) = self.slabs.get_mut(slab) {
            (slab.node, slab.blocks) = (Some(node), blocks);
            slab.generation = slab.generation.wrapping_add(1);
        }
    }

    /// Forgets a slab's place and gives the blocks it had.
    pub(super) fn unmap(&mut self, slab: usize) -> Vec<RemoteBlock> {
        let Some(slab) = self.slabs.get_mut(slab) else { return Vec::new() };
        slab.node = None;
        slab.generation = slab.generation.wrapping_add(1);
        std::mem::take(&mut slab.blocks)
    }

    pub(super) fn count_on(&self, node: NodeId) -> usize {
        self.slabs.iter().filter(|slab| slab.node == Some(node)).count()
    }
}

/// The power of two choices (Infiniswap, NSDI 2017, section 4): of two nodes by lot, the one with more free memory. `free` are
/// the free blocks of each node, 0 for one that is not up; only those with room for a slab can be chosen.
pub(super) fn choose(free: &[u32], slab_blocks: u32, choices: &mut Choices) -> Option<NodeId> {
    let fits = |free: &u32| *free >= slab_blocks;
    let count = free.iter().filter(|free| fits(free)).count() as u32;
    let first = choices.below(count);
    // Another one, if there is another one.
    let second = if count > 1 { (first + 1 + choices.below(count - 1)) % count } else { first };
    let nth = |n: u32| free.iter().enumerate().filter(|(_, free)| fits(free)).nth(n as usize);
    let (one, other) = (nth(first)?, nth(second)?);
    Some(NodeId(if other.1 > one.1 { other.0 } else { one.0 } as u16))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn slabs_are_a_gibibyte_and_smaller_only_when_the_device_is_small() {
        let gib = 1 << 18;
        assert_eq!(slab_blocks(64 * gib, 2), 1024);
        assert_eq!(slab_blocks(4 * gib, 2), 512);
        assert_eq!(slab_blocks(gib, 2), 128);
        assert_eq!(slab_blocks(1, 64), 16);
        assert_eq!(slab_blocks(u32::MAX, 0), 1024);
    }

    #[test]
    fn pages_of_a_mapped_slab_fill_its_blocks_and_a_new_place_has_a_new_generation() {
        let mut slabs = Slabs::new(16 * 256 + 1, 16);
        assert_eq!((slabs.len(), slabs.blocks_each(), slabs.spot(0)), (2, 16, None));
        let blocks: Vec<_> = (100..116).map(RemoteBlock::numbered).collect();
        slabs.map(0, NodeId(3), blocks.clone());
        let spot = Spot {
            node: NodeId(3),
            block: RemoteBlock::numbered(101),
            offset_bytes: 255 * PAGE_BYTES as u32,
        };
        assert_eq!(slabs.spot(511), Some(spot));
        assert_eq!(
            (slabs.spot(16 * 256), slabs.next_unmapped(0), slabs.next_on(NodeId(3))),
            (None, Some(1), Some(0))
        );
        let before = slabs.generation(0);
        assert_eq!(slabs.unmap(0), blocks);
        assert!(slabs.spot(511).is_none() && slabs.generation(0) != before);
    }

    #[test]
    fn of_two_nodes_the_one_with_more_room_is_taken_and_one_without_room_never() {
        let mut choices = Choices::new(1);
        for _ in 0..50 {
            assert_eq!(choose(&[100, 200], 16, &mut choices), Some(NodeId(1)));
            assert_eq!(choose(&[15, 0, 16], 16, &mut choices), Some(NodeId(2)));
        }
        assert_eq!(choose(&[15, 0], 16, &mut choices), None);
        assert_eq!(choose(&[], 16, &mut choices), None);
    }

    #[test]
    fn two_choices_leave_nodes_nearly_evenly_filled() {
        let mut free = [1600_u32; 8];
        let mut choices = Choices::new(5);
        for _ in 0..400 {
            let node = choose(&free, 16, &mut choices).unwrap();
            free[usize::from(node.0)] -= 16;
        }
        // 50 slabs each in the mean; one choice would leave them several slabs apart.
        assert!(free.iter().max().unwrap() - free.iter().min().unwrap() <= 4 * 16, "{free:?}");
    }
}
