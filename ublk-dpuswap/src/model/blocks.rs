//! The remote blocks this device holds: which nodes have copies, how much in them is alive, which are written to.
//!
//! A block is written from its start to its end, never in place: new records go behind the old ones, dead records stay
//! until the block has no live ones left (then its remote blocks are free again) or is cleaned. So a location means one
//! content for as long as its block is not recycled, and a *pin* keeps a block from being recycled, and its copies from
//! being released, while its bytes are in flight. Each opening gives a block a generation that is never used again.
//!
//! Invariant: `live_units` of a block is the sum of the units of the locations that the page table or a clean cache
//! entry holds; a block is recycled exactly when it is sealed, has no live units and no pins. Copies and generation are
//! in place before a block counts as open, and it counts as unused before its copies are free.

use bytemuck::{Pod, Zeroable};

mod place;
mod recovery;

use super::buckets::Buckets;
use super::nodes::{NodeBlocks, Nodes};
use crate::memory::{Memory, PersistError, Slab, barrier};
use crate::units::{
    BlockId, Location, MAX_NODES, MAX_REPLICAS, NodeId, RemoteBlock, UNIT_BYTES, UNITS_PER_BLOCK,
};

/// Blocks that only the cleaner may take: without them a full device could never be cleaned.
pub const CLEANING_RESERVE: u32 = 2;

/// Who writes to a block. Rewritten records are old and stay long; they are kept apart from new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Write-back of new pages.
    New = 0,
    /// Records moved by the cleaner.
    Moved = 1,
}

const STREAMS: [Stream; 2] = [Stream::New, Stream::Moved];

// States of a block, as they lie in memory.
pub(super) const UNUSED: u32 = 0;
pub(super) const OPEN: u32 = 1;
pub(super) const SEALED: u32 = 2;
// States of a copy: none, one that is read, one that is kept only until no pin is left.
pub(super) const NONE: u16 = 0;
pub(super) const LIVE: u16 = 1;
pub(super) const LEAVING: u16 = 2;

/// A copy, as it lies in memory.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RawCopy {
    pub(super) node: u16,
    pub(super) state: u16,
    number: u32,
    generation: u32,
}

impl RawCopy {
    pub(super) fn new(node: NodeId, remote: RemoteBlock) -> Self {
        Self { node: node.0, state: NONE, number: remote.number, generation: remote.generation }
    }

    pub(super) fn node(&self) -> NodeId {
        NodeId(self.node)
    }

    pub(super) fn remote(&self) -> RemoteBlock {
        RemoteBlock { number: self.number, generation: self.generation }
    }
}

/// A block, as it lies in memory: 64 bytes. One copy more than the most: the one that is being replaced.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RawBlock {
    pub(super) copies: [RawCopy; MAX_REPLICAS + 1],
    pub(super) generation: u64,
    pub(super) used_units: u32,
    pub(super) state: u32,
}

/// What follows from the page table, the cache and what is under way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Derived {
    pub(super) live_units: u32,
    /// Transfers that need the block to stay as it is, those of `writers` included.
    pub(super) pins: u32,
    /// Batches on their way into it.
    pub(super) writers: u16,
    pub(super) copying: bool,
    pub(super) unreadable: bool,
}

/// Totals over all blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockTotals {
    /// Remote blocks held, empty ones included.
    pub held: u32,
    /// Remote blocks held and empty.
    pub free: u32,
    /// Blocks with content.
    pub used: u32,
    /// Copies of blocks with content.
    pub copies: u32,
    /// Blocks with fewer copies on nodes that answer than wanted.
    pub thin: u32,
    /// Bytes in live records, headers and padding included, each counted once however many copies it has.
    pub live_bytes: u64,
    /// Bytes written since the blocks were last empty: live and dead, counted as above.
    pub used_bytes: u64,
    /// Blocks that were lost with their nodes and still have pages.
    pub lost: u32,
}

/// How the next open block is to be got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// One is open now.
    Opened,
    /// Reserve blocks of this node first, then ask again.
    Reserve(NodeId),
    /// No node that answers has a block to spare.
    Nothing,
}

/// Nodes chosen for a new block, kept while blocks are reserved.
#[derive(Debug, Clone, Copy, Default)]
struct Chosen {
    nodes: [u16; MAX_REPLICAS],
    count: usize,
}

/// The block table.
#[derive(Debug)]
pub struct Blocks {
    pub(super) raw: Slab<RawBlock>,
    next_generation: Slab<u64>,
    pub(super) derived: Vec<Derived>,
    pub(super) buckets: Buckets,
    pub(super) nodes: Nodes,
    pub(super) replicas: usize,
    unused: Vec<BlockId>,
    pub(super) open: [Option<BlockId>; 2],
    chosen: [Chosen; 2],
    pub(super) thin_from: u32,
    pub(super) thin_quiet: bool,
}

impl Blocks {
    /// Bytes of the memory that survives.
    pub(super) fn memory_bytes(max_blocks: u32) -> usize {
        Memory::slab_bytes::<RawBlock>(max_blocks as usize).saturating_add(Memory::slab_bytes::<u64>(1))
    }

    /// A table for at most `max_blocks` blocks of up to `replicas` copies, content as it lies in `memory`. It is usable
    /// after [`Blocks::clear`] or [`Blocks::repair`].
    pub(super) fn new(
        max_blocks: u32,
        nodes: u16,
        replicas: u8,
        memory: &mut Memory,
    ) -> Result<Self, PersistError> {
        let replicas = usize::from(replicas).clamp(1, MAX_REPLICAS);
        // Room for blocks that a node wants back while their copies are made elsewhere.
        let most = max_blocks.saturating_mul(replicas as u32).saturating_add(MAX_NODES as u32);
        Ok(Self {
            raw: memory.take(max_blocks as usize)?,
            next_generation: memory.take(1)?,
            derived: vec![Derived::default(); max_blocks as usize],
            buckets: Buckets::new(max_blocks),
            nodes: Nodes::new(nodes, most.min(u32::MAX - 1)),
            replicas,
            unused: Vec::with_capacity(max_blocks as usize),
            open: [None; 2],
            chosen: [Chosen::default(); 2],
            thin_from: 0,
            thin_quiet: false,
        })
    }

    /// Empties the table.
    pub(super) fn clear(&mut self) {
        self.raw.fill(Zeroable::zeroed());
        self.next_generation.fill(1);
        self.unused.clear();
        self.unused.extend((0..self.raw.len() as u32).rev().map(BlockId));
    }

    /// What is known of a node.
    pub fn node(&self, node: NodeId) -> Option<&NodeBlocks> {
        self.nodes.get(node)
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &NodeBlocks)> {
        self.nodes.iter()
    }

    /// Records what a node can still lend.
    pub fn set_remote_free(&mut self, node: NodeId, blocks: u32) {
        if let Some(node) = self.nodes.get_mut(node) {
            self.thin_quiet &= blocks <= node.remote_free;
            node.remote_free = blocks;
        }
    }

    /// Records how busy a node is: of two with equally much free, the less busy one gets the next block.
    pub fn set_load(&mut self, node: NodeId, load: u32) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.load = load;
        }
    }

    /// Records whether a node is only for when no other has a block.
    pub fn set_last_resort(&mut self, node: NodeId, last_resort: bool) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.last_resort = last_resort;
        }
    }

    /// Calls `cross` with every remote block of a node that has its place in the books. `false`, and the list is not whole,
    /// while a block is being copied: the target of a copy is in no list.
    #[must_use]
    pub fn cross_out_known(&self, node: NodeId, mut cross: impl FnMut(RemoteBlock)) -> bool {
        if self.derived.iter().any(|derived| derived.copying) {
            return false;
        }
        for index in 0..self.raw.len() as u32 {
            let Some(block) = self.get(BlockId(index)) else { continue };
            block
                .copies
                .iter()
                .filter(|copy| copy.state != NONE && copy.node() == node)
                .for_each(|copy| cross(copy.remote()));
        }
        self.nodes.cross_out(node, &mut cross);
        true
    }

    /// Records whether a node answers. The streams leave a node that does not.
    pub fn set_up(&mut self, node: NodeId, up: bool) {
        let Some(known) = self.nodes.get_mut(node) else { return };
        if std::mem::replace(&mut known.up, up) == up {
            return;
        }
        if !up {
            self.leave(node);
        }
        self.thin_quiet = false;
        for index in 0..self.raw.len() as u32 {
            if self.raw[index as usize].copies.iter().any(|copy| copy.state == LIVE && copy.node == node.0) {
                self.relink(BlockId(index));
            }
        }
    }

    /// Records whether new blocks may be placed on a node. Empty blocks of one that is not accepting are released.
    pub fn set_accepting(&mut self, node: NodeId, accepting: bool) {
        let Some(known) = self.nodes.get_mut(node) else { return };
        known.accepting = accepting;
        self.thin_quiet = false;
        if !accepting {
            self.leave(node);
        }
    }

    /// Takes a node off the streams: their open blocks that have a copy on it are sealed.
    pub(super) fn leave(&mut self, node: NodeId) {
        for stream in STREAMS {
            let on_node = |block: &RawBlock| block.copies.iter().any(|c| c.state == LIVE && c.node == node.0);
            if self.open[stream as usize].and_then(|id| self.get(id)).is_some_and(on_node) {
                self.seal(stream);
            }
        }
    }

    /// Seals the block when a stream has it open.
    pub(super) fn seal_block(&mut self, id: BlockId) {
        STREAMS.into_iter().for_each(|stream| {
            if self.open[stream as usize] == Some(id) {
                self.seal(stream);
            }
        });
    }

    /// The block, when it is in use.
    pub(super) fn get(&self, id: BlockId) -> Option<&RawBlock> {
        self.raw.get(id.0 as usize).filter(|block| block.state != UNUSED)
    }

    /// Adds an empty block that a node lent. `false` when there is no room: the block must be given back.
    pub fn add_reserved(&mut self, node: NodeId, remote: RemoteBlock) -> bool {
        if !self.nodes.count_held(node) {
            return false;
        }
        self.thin_quiet = false;
        self.nodes.put_back(node, remote);
        true
    }

    /// Remote blocks that can still be taken.
    pub fn room(&self) -> u32 {
        self.nodes.room()
    }

    /// Takes an empty block out, to be given back to its node, as long as more than `keep` empty blocks of that node
    /// remain.
    pub fn take_spare(&mut self, node: NodeId, keep: u32) -> Option<RemoteBlock> {
        self.nodes.take_spare(node, keep)
    }

    /// Takes out a block that lost its use, to be given back to its node.
    pub fn take_retired(&mut self, node: NodeId) -> Option<RemoteBlock> {
        self.nodes.take_retired(node)
    }

    /// The stream's open block, the next unit in it, and the units left.
    pub fn open_block(&self, stream: Stream) -> Option<(BlockId, u32, u32)> {
        let id = self.open[stream as usize]?;
        let block = self.get(id)?;
        Some((id, block.used_units, UNITS_PER_BLOCK - block.used_units))
    }

    /// The generation of a block since it was opened; 0 for one that is not in use.
    pub fn generation(&self, id: BlockId) -> u64 {
        self.get(id).map_or(0, |block| block.generation)
    }

    /// Closes the stream's open block for writing.
    pub fn seal(&mut self, stream: Stream) {
        if let Some(id) = self.open[stream as usize].take() {
            self.raw[id.0 as usize].state = SEALED;
            self.thin_quiet = false;
            self.relink(id);
            self.recycle_if_empty(id);
        }
    }

    /// Advances the write position of an open block by `units`, and pins it until [`Blocks::written`].
    pub(super) fn advance(&mut self, id: BlockId, units: u32) {
        if let (Some(block), Some(derived)) =
            (self.raw.get_mut(id.0 as usize), self.derived.get_mut(id.0 as usize))
        {
            block.used_units = (block.used_units + units).min(UNITS_PER_BLOCK);
            derived.pins += 1;
            derived.writers += 1;
            barrier();
        }
    }

    /// Ends what [`Blocks::advance`] began.
    pub(super) fn written(&mut self, id: BlockId) {
        if let Some(derived) = self.derived.get_mut(id.0 as usize) {
            derived.writers = derived.writers.saturating_sub(1);
            self.thin_quiet &= derived.writers > 0;
        }
        self.unpin(id);
    }

    /// Keeps a block from being recycled and its copies from being released.
    pub fn pin(&mut self, id: BlockId) {
        if let Some(derived) = self.derived.get_mut(id.0 as usize) {
            derived.pins += 1;
        }
    }

    /// Ends one pin.
    pub fn unpin(&mut self, id: BlockId) {
        let Some(derived) = self.derived.get_mut(id.0 as usize) else { return };
        derived.pins = derived.pins.saturating_sub(1);
        if derived.pins == 0 {
            self.let_go(id);
            self.recycle_if_empty(id);
        }
    }

    /// A record at `at` is now the one to be read.
    pub(super) fn add_live(&mut self, at: Location) {
        if let Some(derived) = self.derived.get_mut(at.block.0 as usize) {
            derived.live_units += at.units();
            self.relink(at.block);
        }
    }

    /// The record at `at` is no longer wanted.
    pub(super) fn kill(&mut self, at: Location) {
        if let Some(derived) = self.derived.get_mut(at.block.0 as usize) {
            derived.live_units = derived.live_units.saturating_sub(at.units());
            self.relink(at.block);
        }
        self.recycle_if_empty(at.block);
    }

    /// Puts the block into the list where a cleaner or a node that leaves looks for it.
    pub(super) fn relink(&mut self, id: BlockId) {
        let Some(derived) = self.derived.get(id.0 as usize).copied() else { return };
        let listed = self.get(id).is_some_and(|block| block.state == SEALED) && self.readable(id);
        self.buckets.place(id.0, listed.then_some(derived.live_units), !derived.unreadable);
    }

    fn recycle_if_empty(&mut self, id: BlockId) {
        let Some(derived) = self.derived.get(id.0 as usize) else { return };
        let Some(block) = self.get(id).copied() else { return };
        if block.state != SEALED || derived.live_units > 0 || derived.pins > 0 {
            return;
        }
        barrier();
        self.raw[id.0 as usize].state = UNUSED;
        barrier();
        self.relink(id);
        self.thin_quiet = false;
        self.unused.push(id);
        for copy in block.copies.iter().filter(|copy| copy.state != NONE) {
            self.nodes.put_back(copy.node(), copy.remote());
        }
    }

    /// Where a block is: node, the node's number for it, and whether the node answers.
    pub fn copies(&self, id: BlockId) -> impl Iterator<Item = (NodeId, RemoteBlock, bool)> {
        let copies = self.get(id).map_or(&[][..], |block| &block.copies[..]);
        let live = copies.iter().filter(|copy| copy.state == LIVE);
        live.map(|copy| (copy.node(), copy.remote(), self.nodes.is_up(copy.node())))
    }

    /// Whether a copy is on a node that answers.
    pub fn readable(&self, id: BlockId) -> bool {
        self.copies(id).any(|(.., up)| up)
    }

    /// Whether no copy is left that could come back.
    pub fn is_lost(&self, id: BlockId) -> bool {
        self.copies(id).next().is_none()
    }

    /// Bytes written to a block so far.
    pub fn used_bytes(&self, id: BlockId) -> usize {
        self.get(id).map_or(0, |block| block.used_units as usize * UNIT_BYTES)
    }

    /// Units of a block that are alive.
    pub fn live_units(&self, id: BlockId) -> u32 {
        self.derived.get(id.0 as usize).map_or(0, |derived| derived.live_units)
    }

    /// The sealed block with the least live bytes that can be read and nobody uses, when those are at most
    /// `max_live_units` (exact to 64 units).
    pub fn victim(&self, max_live_units: u32) -> Option<BlockId> {
        let idle = |id: &u32| self.derived.get(*id as usize).is_some_and(|derived| derived.pins == 0);
        self.buckets.cleanable(max_live_units).find(idle).map(BlockId)
    }

    /// The cleaner met a bad record in the block: it is left alone until it is empty.
    pub fn mark_unreadable(&mut self, id: BlockId) {
        if let Some(derived) = self.derived.get_mut(id.0 as usize) {
            derived.unreadable = true;
            self.relink(id);
        }
    }

    /// Totals for the report. Looks at all blocks.
    pub fn totals(&self) -> BlockTotals {
        let free = self.nodes.iter().map(|(_, node)| node.pooled()).sum();
        let mut totals = BlockTotals { held: self.nodes.held(), free, ..BlockTotals::default() };
        for (id, derived) in (0..).map(BlockId).zip(&self.derived) {
            let Some(block) = self.get(id) else { continue };
            totals.used += 1;
            totals.lost += u32::from(self.is_lost(id));
            totals.copies += self.copies(id).count() as u32;
            totals.thin += u32::from(self.copies(id).filter(|(.., up)| *up).count() < self.replicas);
            totals.live_bytes += u64::from(derived.live_units) * UNIT_BYTES as u64;
            totals.used_bytes += u64::from(block.used_units) * UNIT_BYTES as u64;
        }
        totals
    }
}

#[cfg(test)]
mod tests;
