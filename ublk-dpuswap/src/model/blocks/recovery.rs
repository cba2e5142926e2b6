//! Blocks after a crash: what lies in memory is taken over, sealed, and freed of what contradicts itself.
//!
//! Invariant: no remote block is believed to be in two places, and no generation is used again.

use super::{Blocks, LEAVING, LIVE, NONE, OPEN, SEALED, UNUSED};
use crate::units::{BlockId, Location, MAX_REPLICAS, NodeId, UNITS_PER_BLOCK};

impl Blocks {
    /// Takes over what lies in memory after a crash: open blocks are sealed, what contradicts itself is dropped. No
    /// node answers yet. `live` are the units of the table's locations, to be added by [`Blocks::add_live`] before
    /// [`Blocks::settle`]. Gives the number of repairs, or the generation counter when that is damaged.
    pub(in crate::model) fn repair(&mut self) -> Result<u64, u64> {
        const MOST_GENERATIONS: u64 = 1 << 62;
        let mut repaired = 0;
        let mut next = self.next_generation.first().copied().unwrap_or(0);
        if next == 0 || next > MOST_GENERATIONS {
            return Err(next);
        }
        let mut seen = std::collections::HashSet::new();
        for index in 0..self.raw.len() {
            let mut block = self.raw[index];
            if block.state == UNUSED {
                continue;
            }
            let known = matches!(block.state, OPEN | SEALED) && block.used_units <= UNITS_PER_BLOCK;
            if !known || block.generation == 0 || block.generation > MOST_GENERATIONS {
                self.raw[index].state = UNUSED;
                repaired += 1;
                continue;
            }
            let mut nodes = [None; MAX_REPLICAS + 1];
            for (place, copy) in block.copies.iter_mut().enumerate() {
                if copy.state == NONE || copy.state == LEAVING {
                    copy.state = NONE;
                    continue;
                }
                let good = copy.state == LIVE
                    && self.nodes.get(copy.node()).is_some()
                    && !nodes.contains(&Some(copy.node))
                    && !seen.contains(&(copy.node, copy.remote()))
                    && self.nodes.count_held(copy.node());
                if good {
                    seen.insert((copy.node, copy.remote()));
                    nodes[place] = Some(copy.node);
                } else {
                    copy.state = NONE;
                    repaired += 1;
                }
            }
            block.state = SEALED;
            next = next.max(block.generation + 1);
            self.raw[index] = block;
        }
        self.next_generation[0] = next;
        let count = self.nodes.iter().count() as u16;
        (0..count)
            .filter_map(|node| self.nodes.get_mut(NodeId(node)).map(|node| node.up = false))
            .for_each(drop);
        Ok(repaired)
    }

    /// Ends the recovery: all live units are counted; blocks without any are recycled. Gives the blocks that are left.
    pub(in crate::model) fn settle(&mut self) -> u32 {
        self.unused.clear();
        for index in (0..self.raw.len() as u32).rev() {
            if self.raw[index as usize].state == UNUSED {
                self.unused.push(BlockId(index));
            } else {
                // Its remote blocks come back with the list of those that the node says we hold.
                if self.derived[index as usize].live_units == 0 {
                    let copies = self.raw[index as usize].copies;
                    self.raw[index as usize].state = UNUSED;
                    self.unused.push(BlockId(index));
                    copies
                        .iter()
                        .filter(|copy| copy.state == LIVE)
                        .for_each(|copy| self.nodes.uncount_held(copy.node()));
                } else {
                    self.relink(BlockId(index));
                }
            }
        }
        self.raw.len() as u32 - self.unused.len() as u32
    }

    /// Whether a record can lie at `at`: within what was written to a block.
    pub(in crate::model) fn is_valid(&self, at: Location) -> bool {
        let Some((block, derived)) = self.get(at.block).zip(self.derived.get(at.block.0 as usize)) else {
            return false;
        };
        let inside = at.offset_units.saturating_add(at.units()) <= block.used_units;
        inside && derived.live_units + at.units() <= block.used_units
    }
}
