//! Copies of blocks: making missing ones, moving them away from a node, and dropping those that are gone.
//!
//! Only sealed blocks that nobody writes to are copied, so a copy is whole. Invariant: a copy counts only once all its
//! bytes are on the node, and the one it replaces goes only after that.

use super::blocks::{Blocks, LEAVING, LIVE, NONE, RawCopy, SEALED};
use crate::memory::barrier;
use crate::units::{BlockId, Choices, MAX_REPLICAS, NodeId, RemoteBlock, UNIT_BYTES};

/// A copy to be made: read `used_bytes` from the start of the one, write them to the other. The block is pinned until
/// [`Blocks::finish_copy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyPlan {
    /// The block.
    pub block: BlockId,
    /// A node that has it and answers, and the block there.
    pub from: (NodeId, RemoteBlock),
    /// The node that gets it, and the block there.
    pub to: (NodeId, RemoteBlock),
    /// Bytes to copy.
    pub used_bytes: usize,
    /// The node whose copy goes when this one is made.
    pub replaces: Option<NodeId>,
    era: u32,
}

/// What is to be done to get a copy made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyStep {
    /// This.
    Copy(CopyPlan),
    /// Reserve blocks of this node first, then ask again.
    Reserve(NodeId),
    /// Nothing: the block is in use, needs no copy, or no node can take one.
    NoPlace,
}

impl Blocks {
    /// The node has forgotten our blocks (it restarted, or our lease ran out): what was in them is gone.
    pub(super) fn lose(&mut self, node: NodeId) {
        self.leave(node);
        self.nodes.forget(node);
        self.thin_quiet = false;
        for index in 0..self.raw.len() as u32 {
            if self.drop_copy(BlockId(index), node) {
                self.relink(BlockId(index));
                // Without live pages, and now without copies, it goes.
                self.pin(BlockId(index));
                self.unpin(BlockId(index));
            }
        }
    }

    fn drop_copy(&mut self, id: BlockId, node: NodeId) -> bool {
        if self.get(id).is_none() {
            return false;
        }
        let mut dropped = false;
        for copy in self.raw[id.0 as usize].copies.iter_mut() {
            if copy.state != NONE && copy.node == node.0 {
                dropped |= copy.state == LIVE;
                copy.state = NONE;
            }
        }
        dropped
    }

    /// The node says that its copy of this block is not ours: it is gone, and not used again. The caller holds a pin.
    /// `false` when that was known.
    pub(super) fn disown(&mut self, id: BlockId, node: NodeId) -> bool {
        if !self.drop_copy(id, node) {
            return false;
        }
        self.nodes.uncount_held(node);
        self.thin_quiet = false;
        self.seal_block(id);
        self.relink(id);
        true
    }

    fn living(&self, id: BlockId) -> usize {
        self.copies(id).filter(|(.., up)| *up).count()
    }

    fn has_copy(&self, id: BlockId, node: NodeId) -> bool {
        let has = |copy: &RawCopy| copy.state != NONE && copy.node == node.0;
        self.get(id).is_some_and(|block| block.copies.iter().any(has))
    }

    /// Whether a sealed block may be copied now.
    fn copyable(&self, id: BlockId) -> bool {
        let idle = |index: usize| self.derived.get(index).is_some_and(|d| d.writers == 0 && !d.copying);
        self.get(id).is_some_and(|block| block.state == SEALED) && idle(id.0 as usize) && self.readable(id)
    }

    /// Whether some node that has no copy of the block could take one.
    fn has_place(&self, id: BlockId) -> bool {
        let able = |(node, known)| self.nodes.spare(known) > 0 && !self.has_copy(id, node);
        self.nodes.iter().any(able)
    }

    fn is_thin(&self, id: BlockId) -> bool {
        self.copyable(id) && self.living(id) < self.replicas && self.has_place(id)
    }

    /// A stream's block that was opened when fewer nodes had room is sealed as soon as another has: only sealed blocks
    /// are copied, and a stream that nobody writes to would keep its block open, and thin, for ever.
    fn seal_thin_ones(&mut self) {
        for id in self.open.into_iter().flatten() {
            if self.living(id) < self.replicas && self.readable(id) && self.has_place(id) {
                self.seal_block(id);
            }
        }
    }

    /// A sealed block with fewer copies on nodes that answer than wanted, of which some node could take one. Goes
    /// round, and looks at nothing when nothing has changed since it found none. Copies that are too many go on the way.
    pub fn next_thin(&mut self) -> Option<BlockId> {
        if self.thin_quiet {
            return None;
        }
        self.seal_thin_ones();
        let count = self.raw.len() as u32;
        let from = if self.thin_from < count { self.thin_from } else { 0 };
        let found = (from..count).chain(0..from).map(BlockId).find(|id| {
            self.drop_surplus(*id, None);
            self.is_thin(*id)
        });
        match found {
            Some(id) => self.thin_from = id.0 + 1,
            None => self.thin_quiet = true,
        }
        found
    }

    /// A block with a copy on the node that another node could take, one with little alive first, for a node that wants
    /// its memory back. The open blocks that are on it are sealed; copies there that are one too many go.
    pub fn next_on(&mut self, node: NodeId) -> Option<BlockId> {
        self.leave(node);
        loop {
            let leaves = |id: BlockId| self.has_place(id) || self.has_surplus(id);
            let movable = |id: &BlockId| self.is_on(*id, node) && self.copyable(*id) && leaves(*id);
            let found = self.buckets.all().map(BlockId).find(movable)?;
            self.drop_surplus(found, Some(node));
            if self.is_on(found, node) && self.has_place(found) {
                return Some(found);
            }
        }
    }

    /// Whether the node has a copy of a block that could be copied if another node had room.
    pub fn waits_for_room(&self, node: NodeId) -> bool {
        let waits = |id: BlockId| self.is_on(id, node) && self.copyable(id) && !self.has_place(id);
        self.buckets.all().map(BlockId).any(waits)
    }

    fn is_on(&self, id: BlockId, node: NodeId) -> bool {
        self.copies(id).any(|(of, ..)| of == node)
    }

    /// Whether a copy can go without another in its place.
    fn has_surplus(&self, id: BlockId) -> bool {
        self.copies(id).count() > self.replicas && self.living(id) >= self.replicas
    }

    /// A process that was killed after a new copy had become one, and before the one that it replaces had gone, leaves one
    /// too many. It goes as soon as enough answer: that of `away_from`, or of a node that takes nothing more, or has least
    /// to lend.
    fn drop_surplus(&mut self, id: BlockId, away_from: Option<NodeId>) {
        if !self.has_surplus(id) || !self.copyable(id) {
            return;
        }
        self.pin(id);
        self.drop_needless(id, None);
        while self.living(id) > self.replicas {
            let need = |node: NodeId| {
                let known = self.nodes.get(node);
                let free = known.map_or(0, |known| u64::from(known.pooled()) + u64::from(known.remote_free));
                let stays = known.is_some_and(|known| known.accepting && !known.last_resort);
                (Some(node) != away_from, stays, free)
            };
            let copies = self.raw[id.0 as usize].copies.iter().enumerate();
            let living = copies.filter(|(_, copy)| copy.state == LIVE && self.nodes.is_up(copy.node()));
            let Some((place, _)) = living.min_by_key(|(_, copy)| need(copy.node())) else { break };
            self.raw[id.0 as usize].copies[place].state = LEAVING;
            barrier();
        }
        self.unpin(id);
    }

    /// Plans one more copy of a block, or, with `away_from`, one in place of that node's.
    pub fn begin_copy(&mut self, id: BlockId, away_from: Option<NodeId>, choices: &mut Choices) -> CopyStep {
        let wanted = match away_from {
            Some(node) => self.copies(id).any(|(of, ..)| of == node),
            None => self.living(id) < self.replicas,
        };
        let slot = self.get(id).is_some_and(|block| block.copies.iter().any(|copy| copy.state == NONE));
        if !self.copyable(id) || !wanted || !slot {
            return CopyStep::NoPlace;
        }
        // A node that wants to leave is read from only when there is no other.
        let load = |node| self.nodes.get(node).map_or(0, |known| known.load);
        let living = self.copies(id).filter(|(.., up)| *up);
        let from = living.min_by_key(|(node, ..)| (Some(*node) == away_from, load(*node)));
        let Some((from_node, from_block, _)) = from else { return CopyStep::NoPlace };
        let not = |node: NodeId| self.has_copy(id, node) || Some(node) == away_from;
        let Some(to) = self.choose(choices, not) else { return CopyStep::NoPlace };
        let Some(remote) = self.nodes.take(to) else { return CopyStep::Reserve(to) };
        self.pin(id);
        self.derived[id.0 as usize].copying = true;
        CopyStep::Copy(CopyPlan {
            block: id,
            from: (from_node, from_block),
            to: (to, remote),
            used_bytes: self.get(id).map_or(0, |block| block.used_units as usize * UNIT_BYTES),
            replaces: away_from,
            era: self.nodes.get(to).map_or(0, |known| known.era),
        })
    }

    /// Ends a copy. When it was `done`, the new copy is one of the block's, and what it makes needless goes: the one it
    /// replaces, and, when there are enough, those on nodes that do not answer.
    pub fn finish_copy(&mut self, plan: &CopyPlan, done: bool) {
        let id = plan.block;
        let (node, remote) = plan.to;
        if let Some(derived) = self.derived.get_mut(id.0 as usize) {
            derived.copying = false;
        }
        self.thin_quiet = false;
        let known = self.nodes.get(node).is_some_and(|known| known.era == plan.era);
        let wanted = plan.replaces.is_some() || self.living(id) < self.replicas;
        let free = self.get(id).and_then(|block| block.copies.iter().position(|copy| copy.state == NONE));
        match free {
            Some(place) if known && done && wanted => {
                self.raw[id.0 as usize].copies[place] = RawCopy::new(node, remote);
                barrier();
                self.raw[id.0 as usize].copies[place].state = LIVE;
                barrier();
                self.drop_needless(id, plan.replaces);
                self.relink(id);
            }
            _ if known => self.nodes.retire(node, remote),
            _ => {}
        }
        self.unpin(id);
    }

    fn drop_needless(&mut self, id: BlockId, replaced: Option<NodeId>) {
        let mut living = self.living(id);
        for place in 0..=MAX_REPLICAS {
            let copy = self.raw[id.0 as usize].copies[place];
            let up = self.nodes.is_up(copy.node());
            let surplus = if up { Some(copy.node()) == replaced } else { living >= self.replicas };
            let last = up && living == 1;
            if copy.state == LIVE && (surplus || Some(copy.node()) == replaced) && !last {
                self.raw[id.0 as usize].copies[place].state = LEAVING;
                living -= usize::from(up);
            }
        }
        barrier();
    }

    /// No pin is left: copies that were kept only for one go.
    pub(super) fn let_go(&mut self, id: BlockId) {
        if self.get(id).is_none() {
            return;
        }
        for place in 0..=MAX_REPLICAS {
            let copy = self.raw[id.0 as usize].copies[place];
            if copy.state == LEAVING {
                self.raw[id.0 as usize].copies[place].state = NONE;
                barrier();
                self.nodes.retire(copy.node(), copy.remote());
            }
        }
    }
}

#[cfg(test)]
#[path = "copies_tests.rs"]
mod tests;
