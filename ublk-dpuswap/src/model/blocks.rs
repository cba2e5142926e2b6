//! The remote blocks this device holds: which node lent them, how much in them is alive, and which are written to.
//!
//! A block is written from its start to its end, never in place: new records go behind the old ones, dead records stay
//! until the block has no live ones left (then it is used again) or is cleaned. So a location means one content for as
//! long as its block is not recycled, and a *pin* keeps a block from being recycled while its bytes are in flight.
//!
//! Invariant: `live_units` of a block is the sum of the units of the locations that the page table or a clean cache
//! entry holds; a block is recycled exactly when it is sealed, has no live units and no pins.

use crate::units::{BlockId, Choices, Location, NodeId, RemoteBlock, UNIT_BYTES, UNITS_PER_BLOCK};

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unused,
    Free,
    Open,
    Sealed,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    node: NodeId,
    remote: RemoteBlock,
    live_units: u32,
    used_units: u32,
    pins: u32,
    state: State,
    lost: bool,
    unreadable: bool,
}

const UNUSED: Block = Block {
    node: NodeId(0),
    remote: RemoteBlock::numbered(0),
    live_units: 0,
    used_units: 0,
    pins: 0,
    state: State::Unused,
    lost: false,
    unreadable: false,
};

/// What the placement knows of a node.
#[derive(Debug, Clone)]
pub struct NodeBlocks {
    /// Whether the node answers.
    pub up: bool,
    /// Blocks the node said it can still lend.
    pub remote_free: u32,
    /// Blocks held from this node, whatever their state.
    pub held: u32,
    free: Vec<BlockId>,
}

/// Totals over all blocks that are not lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockTotals {
    /// Blocks held.
    pub held: u32,
    /// Blocks held and empty.
    pub free: u32,
    /// Bytes in live records, headers and padding included.
    pub live_bytes: u64,
    /// Bytes written since the blocks were last empty: live and dead.
    pub used_bytes: u64,
    /// Blocks that were lost with their node and still have pages.
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

/// The block table.
#[derive(Debug)]
pub struct Blocks {
    blocks: Vec<Block>,
    unused: Vec<BlockId>,
    nodes: Vec<NodeBlocks>,
    open: [Option<BlockId>; 2],
}

impl Blocks {
    /// A table for at most `max_blocks` blocks of `nodes` nodes, all of which answer and have nothing to lend yet.
    pub fn new(max_blocks: u32, nodes: u16) -> Self {
        let node = NodeBlocks { up: true, remote_free: 0, held: 0, free: Vec::new() };
        let mut all = vec![node; usize::from(nodes)];
        for node in &mut all {
            node.free.reserve_exact(max_blocks as usize);
        }
        Self {
            blocks: vec![UNUSED; max_blocks as usize],
            unused: (0..max_blocks).rev().map(BlockId).collect(),
            nodes: all,
            open: [None; 2],
        }
    }

    /// What is known of a node.
    pub fn node(&self, node: NodeId) -> Option<&NodeBlocks> {
        self.nodes.get(usize::from(node.0))
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &NodeBlocks)> {
        (0u16..).map(NodeId).zip(&self.nodes)
    }

    /// Records what a node can still lend.
    pub fn set_remote_free(&mut self, node: NodeId, blocks: u32) {
        if let Some(node) = self.nodes.get_mut(usize::from(node.0)) {
            node.remote_free = blocks;
        }
    }

    /// Records whether a node answers. The streams leave a node that does not.
    pub fn set_up(&mut self, node: NodeId, up: bool) {
        if let Some(known) = self.nodes.get_mut(usize::from(node.0)) {
            known.up = up;
        }
        if !up {
            self.leave(node);
        }
    }

    /// The node has forgotten our blocks (it restarted, or our lease ran out): what was in them is gone.
    pub fn lose(&mut self, node: NodeId) {
        self.leave(node);
        let Some(known) = self.nodes.get_mut(usize::from(node.0)) else { return };
        known.held = 0;
        while let Some(id) = known.free.pop() {
            self.blocks[id.0 as usize] = UNUSED;
            self.unused.push(id);
        }
        for index in 0..self.blocks.len() as u32 {
            let block = &mut self.blocks[index as usize];
            if block.state == State::Sealed && block.node == node && !block.lost {
                block.lost = true;
                self.recycle_if_empty(BlockId(index));
            }
        }
    }

    /// The node says that this block is not ours: what was in it is gone, and it is never used again. The caller holds
    /// a pin. `false` when it was known to be lost.
    pub fn disown(&mut self, id: BlockId) -> bool {
        let Some(block) = self.blocks.get_mut(id.0 as usize) else { return false };
        if block.lost || !matches!(block.state, State::Open | State::Sealed) {
            return false;
        }
        block.lost = true;
        if let Some(node) = self.nodes.get_mut(usize::from(block.node.0)) {
            node.held = node.held.saturating_sub(1);
        }
        for stream in [Stream::New, Stream::Moved] {
            if self.open[stream as usize] == Some(id) {
                self.seal(stream);
            }
        }
        true
    }

    fn leave(&mut self, node: NodeId) {
        for stream in [Stream::New, Stream::Moved] {
            let of_node =
                self.open[stream as usize].and_then(|id| self.get(id)).is_some_and(|b| b.node == node);
            if of_node {
                self.seal(stream);
            }
        }
    }

    fn get(&self, id: BlockId) -> Option<&Block> {
        self.blocks.get(id.0 as usize)
    }

    /// Adds a block that a node lent. `false` when the table is full: the block must be given back.
    pub fn add_reserved(&mut self, node: NodeId, remote: RemoteBlock) -> bool {
        let (Some(known), Some(id)) = (self.nodes.get_mut(usize::from(node.0)), self.unused.pop()) else {
            return false;
        };
        known.held += 1;
        known.free.push(id);
        self.blocks[id.0 as usize] = Block { node, remote, state: State::Free, ..UNUSED };
        true
    }

    /// Blocks the table can still take.
    pub fn room(&self) -> u32 {
        self.unused.len() as u32
    }

    /// Takes an empty block out of the table, to be given back to its node, as long as more than `keep` empty blocks
    /// of that node remain.
    pub fn take_free(&mut self, node: NodeId, keep: u32) -> Option<RemoteBlock> {
        let known = self.nodes.get_mut(usize::from(node.0)).filter(|known| known.free.len() as u32 > keep)?;
        let id = known.free.pop()?;
        known.held -= 1;
        let remote = self.blocks[id.0 as usize].remote;
        self.blocks[id.0 as usize] = UNUSED;
        self.unused.push(id);
        Some(remote)
    }

    fn spare(&self, node: &NodeBlocks) -> u32 {
        if node.up { node.free.len() as u32 + node.remote_free.min(self.room()) } else { 0 }
    }

    /// Empty blocks at hand on nodes that answer.
    pub fn local_free(&self) -> u32 {
        self.nodes.iter().filter(|node| node.up).map(|node| node.free.len() as u32).sum()
    }

    /// Blocks that could be written to on nodes that answer, the cleaner's reserve included.
    pub fn total_spare(&self) -> u32 {
        let at_hand = self.local_free();
        let remote: u64 =
            self.nodes.iter().filter(|node| node.up).map(|node| u64::from(node.remote_free)).sum();
        at_hand + remote.min(u64::from(self.room())) as u32
    }

    /// The node for a new block: of two different random nodes with a block to spare, the one with more free blocks.
    fn choose(&self, choices: &mut Choices) -> Option<NodeId> {
        let able = || self.nodes().filter(|(_, node)| self.spare(node) > 0);
        let count = able().count() as u32;
        let first = choices.below(count);
        let second = (first + 1 + choices.below(count.saturating_sub(1))) % count.max(1);
        let of_two = (0..count).zip(able()).filter(|(index, _)| *index == first || *index == second);
        // Equal ones are a matter of chance too: the first drawn wins.
        let free = |node: &NodeBlocks| node.free.len() as u64 + u64::from(node.remote_free);
        of_two.max_by_key(|(index, (_, node))| (free(node), *index == first)).map(|(_, (id, _))| id)
    }

    /// Seals the stream's open block, if it has one, and opens another.
    pub fn open_next(&mut self, stream: Stream, choices: &mut Choices) -> Next {
        self.seal(stream);
        if stream == Stream::New && self.total_spare() <= CLEANING_RESERVE {
            return Next::Nothing;
        }
        let Some(node) = self.choose(choices) else { return Next::Nothing };
        let at_hand = self.local_free();
        let Some(known) = self.nodes.get_mut(usize::from(node.0)) else { return Next::Nothing };
        if known.free.is_empty()
            || (stream == Stream::New && at_hand <= CLEANING_RESERVE && known.remote_free > 0)
        {
            return Next::Reserve(node);
        }
        if stream == Stream::New && at_hand <= CLEANING_RESERVE {
            // This node has nothing more to lend: some other one must.
            return match self.nodes().find(|(_, other)| other.up && other.remote_free > 0) {
                Some((other, _)) => Next::Reserve(other),
                None => Next::Nothing,
            };
        }
        let Some(id) = known.free.pop() else { return Next::Nothing };
        let block = &mut self.blocks[id.0 as usize];
        block.state = State::Open;
        (block.live_units, block.used_units) = (0, 0);
        self.open[stream as usize] = Some(id);
        Next::Opened
    }

    /// The stream's open block, the next unit in it, and the units left.
    pub fn open_block(&self, stream: Stream) -> Option<(BlockId, u32, u32)> {
        let id = self.open[stream as usize]?;
        let block = self.get(id)?;
        Some((id, block.used_units, UNITS_PER_BLOCK - block.used_units))
    }

    /// Closes the stream's open block for writing.
    pub fn seal(&mut self, stream: Stream) {
        if let Some(id) = self.open[stream as usize].take() {
            self.blocks[id.0 as usize].state = State::Sealed;
            self.recycle_if_empty(id);
        }
    }

    /// Advances the write position of an open block by `units` and pins the block until [`Blocks::unpin`].
    pub fn advance(&mut self, id: BlockId, units: u32) {
        if let Some(block) = self.blocks.get_mut(id.0 as usize) {
            block.used_units = (block.used_units + units).min(UNITS_PER_BLOCK);
            block.pins += 1;
        }
    }

    /// Keeps a block from being recycled.
    pub fn pin(&mut self, id: BlockId) {
        if let Some(block) = self.blocks.get_mut(id.0 as usize) {
            block.pins += 1;
        }
    }

    /// Ends one pin.
    pub fn unpin(&mut self, id: BlockId) {
        if let Some(block) = self.blocks.get_mut(id.0 as usize) {
            block.pins = block.pins.saturating_sub(1);
        }
        self.recycle_if_empty(id);
    }

    /// A record at `at` is now the one to be read.
    pub fn add_live(&mut self, at: Location) {
        if let Some(block) = self.blocks.get_mut(at.block.0 as usize) {
            block.live_units += at.units();
        }
    }

    /// The record at `at` is no longer wanted.
    pub fn kill(&mut self, at: Location) {
        if let Some(block) = self.blocks.get_mut(at.block.0 as usize) {
            block.live_units = block.live_units.saturating_sub(at.units());
        }
        self.recycle_if_empty(at.block);
    }

    fn recycle_if_empty(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get_mut(id.0 as usize) else { return };
        if block.state != State::Sealed || block.live_units > 0 || block.pins > 0 {
            return;
        }
        if block.lost {
            *block = UNUSED;
            self.unused.push(id);
        } else if let Some(node) = self.nodes.get_mut(usize::from(block.node.0)) {
            block.state = State::Free;
            (block.used_units, block.unreadable) = (0, false);
            node.free.push(id);
        }
    }

    /// Where to find a block: its node, the node's number for it, and whether it can be read now.
    pub fn place(&self, id: BlockId) -> Option<(NodeId, RemoteBlock, bool)> {
        let block = self.get(id).filter(|block| block.state != State::Unused)?;
        let up = self.node(block.node).is_some_and(|node| node.up);
        Some((block.node, block.remote, up && !block.lost))
    }

    /// Bytes written to a block so far.
    pub fn used_bytes(&self, id: BlockId) -> usize {
        self.get(id).map_or(0, |block| block.used_units as usize * UNIT_BYTES)
    }

    /// The sealed block with the least live bytes that can be read, when those are at most `max_live_units`.
    pub fn victim(&self, max_live_units: u32) -> Option<BlockId> {
        let up = |block: &Block| self.node(block.node).is_some_and(|node| node.up);
        let fit = |block: &Block| block.state == State::Sealed && block.live_units <= max_live_units;
        (0..)
            .map(BlockId)
            .zip(&self.blocks)
            .filter(|(_, block)| {
                fit(block) && !block.lost && !block.unreadable && block.pins == 0 && up(block)
            })
            .min_by_key(|(_, block)| block.live_units)
            .map(|(id, _)| id)
    }

    /// The cleaner met a bad record in the block: it is left alone until it is empty.
    pub fn mark_unreadable(&mut self, id: BlockId) {
        if let Some(block) = self.blocks.get_mut(id.0 as usize) {
            block.unreadable = true;
        }
    }

    /// Totals for the report.
    pub fn totals(&self) -> BlockTotals {
        let mut totals = BlockTotals::default();
        for block in self.blocks.iter().filter(|block| block.state != State::Unused) {
            if block.lost {
                totals.lost += 1;
                continue;
            }
            totals.held += 1;
            totals.free += u32::from(block.state == State::Free);
            totals.live_bytes += u64::from(block.live_units) * UNIT_BYTES as u64;
            totals.used_bytes += u64::from(block.used_units) * UNIT_BYTES as u64;
        }
        totals
    }
}

#[cfg(test)]
impl Blocks {
    /// Compares the counters with the live units counted by the caller, per block.
    pub(crate) fn check(&self, live: &std::collections::HashMap<BlockId, u32>) {
        for (id, block) in (0..).map(BlockId).zip(&self.blocks) {
            let counted = live.get(&id).copied().unwrap_or(0);
            assert_eq!(block.live_units, counted, "live units of block {id:?}");
            if matches!(block.state, State::Unused | State::Free) {
                assert_eq!(counted, 0, "a block without content has no live pages");
            }
            assert!(block.live_units <= block.used_units && block.used_units <= UNITS_PER_BLOCK);
        }
        let free: usize = self.nodes.iter().map(|node| node.free.len()).sum();
        let states = |state| self.blocks.iter().filter(|block| block.state == state).count();
        assert_eq!(free, states(State::Free));
        assert_eq!(self.unused.len(), states(State::Unused));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_nodes(free: &[u32]) -> Blocks {
        let mut blocks = Blocks::new(10_000, free.len() as u16);
        for (node, count) in free.iter().enumerate() {
            for remote in 0..*count {
                assert!(blocks.add_reserved(NodeId(node as u16), RemoteBlock::numbered(remote)));
            }
        }
        blocks
    }

    #[test]
    fn power_of_two_choices_never_takes_the_fullest_node_and_levels_the_rest() {
        let mut blocks = with_nodes(&[1000, 1000, 10]);
        let mut choices = Choices::new(7);
        for _ in 0..1200 {
            assert_eq!(blocks.open_next(Stream::New, &mut choices), Next::Opened);
            let (id, ..) = blocks.open_block(Stream::New).unwrap();
            assert_ne!(
                blocks.place(id).unwrap().0,
                NodeId(2),
                "node 2 always has fewer than the other of the two"
            );
            blocks.add_live(Location { block: id, offset_units: 0, len_bytes: 0 });
            blocks.pin(id);
        }
        let left: Vec<usize> = blocks.nodes.iter().map(|node| node.free.len()).collect();
        assert!(left[0].abs_diff(left[1]) < 40, "levelled: {left:?}");
    }

    #[test]
    fn the_last_blocks_are_for_the_cleaner_only() {
        let mut blocks = with_nodes(&[4]);
        let mut choices = Choices::new(1);
        for _ in 0..2 {
            assert_eq!(blocks.open_next(Stream::New, &mut choices), Next::Opened);
            blocks.pin(blocks.open_block(Stream::New).unwrap().0);
        }
        assert_eq!(blocks.open_next(Stream::New, &mut choices), Next::Nothing);
        assert_eq!(blocks.open_next(Stream::Moved, &mut choices), Next::Opened);
    }

    #[test]
    fn a_block_is_recycled_when_its_last_page_dies_but_not_while_it_is_pinned() {
        let mut blocks = with_nodes(&[4]);
        let mut choices = Choices::new(1);
        assert_eq!(blocks.open_next(Stream::New, &mut choices), Next::Opened);
        let (id, ..) = blocks.open_block(Stream::New).unwrap();
        let at = Location { block: id, offset_units: 0, len_bytes: 640 };
        blocks.advance(id, 10);
        blocks.add_live(at);
        blocks.seal(Stream::New);
        assert_eq!(blocks.victim(100), None, "pinned");
        blocks.kill(at);
        assert_eq!(blocks.local_free(), 3);
        blocks.unpin(id);
        assert_eq!(blocks.local_free(), 4);
    }

    #[test]
    fn blocks_of_a_lost_node_are_unreadable_and_vanish_when_their_pages_do() {
        let mut blocks = with_nodes(&[4, 4]);
        let mut choices = Choices::new(1);
        assert_eq!(blocks.open_next(Stream::New, &mut choices), Next::Opened);
        let (id, ..) = blocks.open_block(Stream::New).unwrap();
        let (node, ..) = blocks.place(id).unwrap();
        let at = Location { block: id, offset_units: 0, len_bytes: 64 };
        blocks.advance(id, 1);
        blocks.unpin(id);
        blocks.add_live(at);
        blocks.lose(node);
        assert!(!blocks.place(id).unwrap().2);
        assert_eq!(blocks.open_block(Stream::New), None, "the stream left the node");
        assert_eq!((blocks.totals().lost, blocks.totals().held), (1, 4));
        blocks.kill(at);
        assert_eq!(blocks.totals().lost, 0);
        assert_eq!(blocks.room(), 10_000 - 4);
    }
}
