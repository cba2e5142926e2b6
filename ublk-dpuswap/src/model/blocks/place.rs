//! Where new blocks and copies go: power of two choices among the nodes that have a block to spare.
//!
//! Invariant: the copies of a block are on different nodes; the last blocks are the cleaner's.

use bytemuck::Zeroable;

use super::{Blocks, CLEANING_RESERVE, Chosen, Derived, LIVE, Next, OPEN, RawBlock, RawCopy, Stream, UNUSED};
use crate::memory::barrier;
use crate::model::nodes::NodeBlocks;
use crate::units::{Choices, NodeId};

impl Blocks {
    /// Copies that a new block can have now.
    pub(super) fn width(&self) -> u32 {
        let able = self.nodes.iter().filter(|(_, node)| self.nodes.spare(node) > 0).count();
        able.clamp(1, self.replicas) as u32
    }

    pub(super) fn pooled(&self) -> u32 {
        self.nodes.iter().filter(|(_, node)| node.usable()).map(|(_, node)| node.pooled()).sum()
    }

    /// Blocks that could be opened with what is at hand on nodes that answer.
    pub fn local_free(&self) -> u32 {
        (self.pooled() / self.width()).min(self.unused.len() as u32)
    }

    /// Blocks that could be written to on nodes that answer, the cleaner's reserve included.
    pub fn total_spare(&self) -> u32 {
        let usable = self.nodes.iter().filter(|(_, node)| node.usable());
        let remote: u64 = usable.map(|(_, node)| u64::from(node.remote_free)).sum();
        let blocks = u64::from(self.pooled()) + remote.min(u64::from(self.room()));
        (blocks / u64::from(self.width())).min(self.unused.len() as u64) as u32
    }

    /// The node for a copy: of two different random nodes with a block to spare, the one with more free blocks, or the
    /// less busy one.
    pub(in crate::model) fn choose(
        &self,
        choices: &mut Choices,
        not: impl Fn(NodeId) -> bool,
    ) -> Option<NodeId> {
        let any = |id: NodeId, node: &NodeBlocks| self.nodes.spare(node) > 0 && !not(id);
        let resort = !self.nodes.iter().any(|(id, node)| !node.last_resort && any(id, node));
        let able = || self.nodes.iter().filter(|(id, node)| node.last_resort == resort && any(*id, node));
        let count = able().count() as u32;
        let first = choices.below(count);
        let second = (first + 1 + choices.below(count.saturating_sub(1))) % count.max(1);
        let of_two = (0..count).zip(able()).filter(|(index, _)| *index == first || *index == second);
        // Equal ones are a matter of chance too: the first drawn wins.
        let free = |node: &NodeBlocks| u64::from(node.pooled()) + u64::from(node.remote_free);
        let best = of_two
            .max_by_key(|(index, (_, node))| (free(node), std::cmp::Reverse(node.load), *index == first));
        best.map(|(_, (id, _))| id)
    }

    /// The nodes for the stream's next block: those chosen before, if they still have room.
    fn choose_all(&mut self, stream: Stream, choices: &mut Choices) -> Chosen {
        let mut chosen = self.chosen[stream as usize];
        let able = |id: &u16| self.nodes.get(NodeId(*id)).is_some_and(|node| self.nodes.spare(node) > 0);
        if chosen.count == 0 || !chosen.nodes[..chosen.count].iter().all(able) {
            chosen = Chosen::default();
            while chosen.count < self.replicas {
                let taken = chosen.nodes;
                let not = |id: NodeId| taken[..chosen.count].contains(&id.0);
                let Some(node) = self.choose(choices, not) else { break };
                chosen.nodes[chosen.count] = node.0;
                chosen.count += 1;
            }
        }
        self.chosen[stream as usize] = chosen;
        chosen
    }

    /// Seals the stream's open block, if it has one, and opens another: with as many copies as wanted, on different
    /// nodes, or fewer when there are no more nodes.
    pub fn open_next(&mut self, stream: Stream, choices: &mut Choices) -> Next {
        self.seal(stream);
        if self.unused.is_empty() || stream == Stream::New && self.total_spare() <= CLEANING_RESERVE {
            return Next::Nothing;
        }
        let chosen = self.choose_all(stream, choices);
        let nodes = &chosen.nodes[..chosen.count];
        if nodes.is_empty() {
            return Next::Nothing;
        }
        let known = |id: u16| self.nodes.get(NodeId(id));
        if let Some(id) = nodes.iter().find(|id| known(**id).is_none_or(|node| node.pooled() == 0)) {
            return Next::Reserve(NodeId(*id));
        }
        if stream == Stream::New && self.local_free() <= CLEANING_RESERVE {
            // The blocks at hand are the cleaner's: more are needed first, if not from these nodes then from others.
            let lends = |id: u16| known(id).is_some_and(|node| node.usable() && node.remote_free > 0);
            let all = self.nodes.iter().map(|(id, _)| id.0);
            let lender = nodes.iter().copied().chain(all).find(|id| lends(*id) && self.room() > 0);
            return lender.map_or(Next::Nothing, |id| Next::Reserve(NodeId(id)));
        }
        self.open_on(stream, chosen);
        Next::Opened
    }

    fn open_on(&mut self, stream: Stream, chosen: Chosen) {
        let (Some(id), Some(next)) = (self.unused.pop(), self.next_generation.first_mut()) else { return };
        let generation = *next;
        *next += 1;
        barrier();
        let mut block = RawBlock { generation, state: UNUSED, ..Zeroable::zeroed() };
        for (copy, node) in block.copies.iter_mut().zip(&chosen.nodes[..chosen.count]) {
            if let Some(remote) = self.nodes.take(NodeId(*node)) {
                *copy = RawCopy { state: LIVE, ..RawCopy::new(NodeId(*node), remote) };
            }
        }
        self.raw[id.0 as usize] = block;
        barrier();
        self.raw[id.0 as usize].state = OPEN;
        barrier();
        self.derived[id.0 as usize] = Derived::default();
        self.thin_quiet &= chosen.count >= self.replicas;
        self.chosen[stream as usize] = Chosen::default();
        self.open[stream as usize] = Some(id);
    }
}
