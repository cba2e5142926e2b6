//! What the placement knows of the nodes, and the empty remote blocks that each has lent.
//!
//! The pools of empty blocks are not persistent: after a crash the nodes are asked which blocks we hold. Invariant:
//! every remote block we hold is in its node's pool or its list of retired blocks, or is a copy of a block, or the
//! target of a copy under way; `held` counts all of these.

use crate::units::{NodeId, RemoteBlock};

const NIL: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct List {
    head: u32,
    count: u32,
}

const EMPTY: List = List { head: NIL, count: 0 };

/// What the placement knows of a node.
#[derive(Debug, Clone)]
pub struct NodeBlocks {
    /// Whether the node answers.
    pub up: bool,
    /// Whether new blocks may be placed on it: a node that takes its memory back or leaves gets none.
    pub accepting: bool,
    /// Blocks the node said it can still lend.
    pub remote_free: u32,
    /// Blocks held from this node, whatever their state.
    pub held: u32,
    /// How busy it is, for ties: operations in flight or latency, whatever the engine measures.
    pub load: u32,
    /// Only for when no other node has a block: a disk of this machine.
    pub last_resort: bool,
    /// How often it has forgotten us.
    pub(super) era: u32,
    pool: List,
    retired: List,
}

impl NodeBlocks {
    /// Empty blocks at hand.
    pub fn pooled(&self) -> u32 {
        self.pool.count
    }

    /// Blocks that wait to be released.
    pub fn retired(&self) -> u32 {
        self.retired.count
    }

    pub(super) fn usable(&self) -> bool {
        self.up && self.accepting
    }
}

#[derive(Debug)]
pub(super) struct Nodes {
    all: Vec<NodeBlocks>,
    slots: Vec<(RemoteBlock, u32)>,
    free_slot: u32,
    held: u32,
}

impl Nodes {
    /// `count` nodes that together lend at most `most_blocks`.
    pub(super) fn new(count: u16, most_blocks: u32) -> Self {
        let node = NodeBlocks {
            up: true,
            accepting: true,
            remote_free: 0,
            held: 0,
            load: 0,
            last_resort: false,
            era: 0,
            pool: EMPTY,
            retired: EMPTY,
        };
        let next = |index: u32| if index + 1 == most_blocks { NIL } else { index + 1 };
        Self {
            all: vec![node; usize::from(count)],
            slots: (0..most_blocks).map(|index| (RemoteBlock::default(), next(index))).collect(),
            free_slot: if most_blocks == 0 { NIL } else { 0 },
            held: 0,
        }
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&NodeBlocks> {
        self.all.get(usize::from(node.0))
    }

    pub(super) fn get_mut(&mut self, node: NodeId) -> Option<&mut NodeBlocks> {
        self.all.get_mut(usize::from(node.0))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &NodeBlocks)> {
        (0u16..).map(NodeId).zip(&self.all)
    }

    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.get(node).is_some_and(|node| node.up)
    }

    /// Remote blocks held, over all nodes.
    pub(super) fn held(&self) -> u32 {
        self.held
    }

    /// Remote blocks that can still be taken.
    pub(super) fn room(&self) -> u32 {
        (self.slots.len() as u32).saturating_sub(self.held)
    }

    /// Counts a block that we hold already (a copy found at recovery). `false` when there is no room.
    pub(super) fn count_held(&mut self, node: NodeId) -> bool {
        let room = self.room() > 0;
        let Some(known) = self.all.get_mut(usize::from(node.0)).filter(|_| room) else { return false };
        known.held += 1;
        self.held += 1;
        true
    }

    /// A block of the node is not ours any more.
    pub(super) fn uncount_held(&mut self, node: NodeId) {
        if let Some(known) = self.all.get_mut(usize::from(node.0)).filter(|known| known.held > 0) {
            known.held -= 1;
            self.held -= 1;
        }
    }

    fn push(slots: &mut [(RemoteBlock, u32)], free_slot: &mut u32, list: &mut List, remote: RemoteBlock) {
        let index = *free_slot;
        if let Some(slot) = slots.get_mut(index as usize) {
            *free_slot = slot.1;
            *slot = (remote, list.head);
            *list = List { head: index, count: list.count + 1 };
        }
    }

    fn pop(slots: &mut [(RemoteBlock, u32)], free_slot: &mut u32, list: &mut List) -> Option<RemoteBlock> {
        let index = list.head;
        let slot = slots.get_mut(index as usize)?;
        let (remote, next) = *slot;
        slot.1 = *free_slot;
        *free_slot = index;
        *list = List { head: next, count: list.count - 1 };
        Some(remote)
    }

    /// Puts a held, empty block where it belongs: into the pool, or to those to be released.
    pub(super) fn put_back(&mut self, node: NodeId, remote: RemoteBlock) {
        let Some(known) = self.all.get_mut(usize::from(node.0)) else { return };
        let list = if known.accepting { &mut known.pool } else { &mut known.retired };
        Self::push(&mut self.slots, &mut self.free_slot, list, remote);
    }

    /// Puts a held block to those to be released.
    pub(super) fn retire(&mut self, node: NodeId, remote: RemoteBlock) {
        let Some(known) = self.all.get_mut(usize::from(node.0)) else { return };
        Self::push(&mut self.slots, &mut self.free_slot, &mut known.retired, remote);
    }

    /// Takes an empty block to be used; it stays held.
    pub(super) fn take(&mut self, node: NodeId) -> Option<RemoteBlock> {
        let known = self.all.get_mut(usize::from(node.0))?;
        Self::pop(&mut self.slots, &mut self.free_slot, &mut known.pool)
    }

    /// Takes an empty block to be released, as long as more than `keep` remain.
    pub(super) fn take_spare(&mut self, node: NodeId, keep: u32) -> Option<RemoteBlock> {
        let known = self.all.get_mut(usize::from(node.0)).filter(|known| known.pool.count > keep)?;
        let remote = Self::pop(&mut self.slots, &mut self.free_slot, &mut known.pool)?;
        self.uncount_held(node);
        Some(remote)
    }

    /// Takes a block that lost its use, to be released.
    pub(super) fn take_retired(&mut self, node: NodeId) -> Option<RemoteBlock> {
        let known = self.all.get_mut(usize::from(node.0))?;
        let mut remote = Self::pop(&mut self.slots, &mut self.free_slot, &mut known.retired);
        if remote.is_none() && !known.accepting {
            remote = Self::pop(&mut self.slots, &mut self.free_slot, &mut known.pool);
        }
        let remote = remote?;
        self.uncount_held(node);
        Some(remote)
    }

    /// The node has forgotten us: nothing of it is held any more.
    pub(super) fn forget(&mut self, node: NodeId) {
        let Some(known) = self.all.get_mut(usize::from(node.0)) else { return };
        for list in [&mut known.pool, &mut known.retired] {
            while Self::pop(&mut self.slots, &mut self.free_slot, list).is_some() {}
        }
        known.era = known.era.wrapping_add(1);
        self.held -= std::mem::take(&mut known.held);
    }

    /// Takes what is held and in a list off `held`, which is sorted.
    pub(super) fn cross_out(&self, node: NodeId, cross: &mut impl FnMut(RemoteBlock)) {
        let Some(known) = self.get(node) else { return };
        for list in [known.pool, known.retired] {
            let mut index = list.head;
            while let Some((remote, next)) = self.slots.get(index as usize) {
                cross(*remote);
                index = *next;
            }
        }
    }

    /// Blocks that the node could give us: at hand, or still to be lent. Those held elsewhere limit the latter.
    pub(super) fn spare(&self, node: &NodeBlocks) -> u32 {
        if node.usable() { node.pool.count + node.remote_free.min(self.room()) } else { 0 }
    }
}
