use super::*;
use crate::model::{CopyStep, Shape};
use crate::units::Choices;
use std::collections::{HashMap, HashSet};

impl Blocks {
    /// Compares the counters with the live units counted by the caller, per block, and the lists with the blocks.
    pub(crate) fn check(&self, live: &HashMap<BlockId, u32>, copying: &[NodeId]) {
        let mut held = vec![0; self.nodes.iter().count()];
        let mut seen = HashSet::new();
        let listed: HashSet<u32> = self.buckets.all().collect();
        let cleanable: HashSet<u32> = self.buckets.cleanable(u32::MAX).collect();
        for (id, block) in (0..).map(BlockId).zip(self.raw.iter()) {
            let derived = self.derived[id.0 as usize];
            let counted = live.get(&id).copied().unwrap_or(0);
            let sealed = block.state == SEALED;
            assert_eq!(listed.contains(&id.0), sealed && self.readable(id), "{id:?} is listed");
            assert_eq!(cleanable.contains(&id.0), sealed && self.readable(id) && !derived.unreadable);
            if block.state == UNUSED {
                assert_eq!(counted, 0, "a block without content has no live pages");
                continue;
            }
            assert_eq!(derived.live_units, counted, "live units of block {id:?}");
            assert!(counted <= block.used_units && block.used_units <= UNITS_PER_BLOCK);
            assert!(!sealed || counted > 0 || derived.pins > 0, "an empty block is recycled");
            assert!(block.generation < self.next_generation[0]);
            for copy in block.copies.iter().filter(|copy| copy.state != NONE) {
                held[usize::from(copy.node)] += 1;
                assert!(seen.insert((copy.node, copy.remote())), "one remote block is in two places");
                assert!(copy.state == LIVE || derived.pins > 0, "a copy that leaves goes with the last pin");
            }
            let nodes: HashSet<u16> = self.copies(id).map(|(node, ..)| node.0).collect();
            assert_eq!(nodes.len(), self.copies(id).count(), "copies are on different nodes");
        }
        copying.iter().for_each(|node| held[usize::from(node.0)] += 1);
        for (id, node) in self.nodes.iter() {
            let counted = held[usize::from(id.0)] + node.pooled() + node.retired();
            assert_eq!(node.held, counted, "blocks held of node {id}");
        }
        assert_eq!(self.nodes.held(), self.nodes.iter().map(|(_, node)| node.held).sum::<u32>());
        let unused: HashSet<BlockId> = self.unused.iter().copied().collect();
        assert_eq!(unused.len(), self.unused.len());
        assert!(unused.iter().all(|id| self.raw[id.0 as usize].state == UNUSED));
        assert_eq!(unused.len(), self.raw.iter().filter(|block| block.state == UNUSED).count());
    }

    fn pooled_of(&self, node: u16) -> u32 {
        self.node(NodeId(node)).unwrap().pooled()
    }
}

fn with_nodes(free: &[u32], replicas: u8) -> Blocks {
    let mut memory = Memory::anonymous(Blocks::memory_bytes(10_000)).unwrap();
    let mut blocks = Blocks::new(10_000, free.len() as u16, replicas, &mut memory).unwrap();
    blocks.clear();
    for (node, count) in free.iter().enumerate() {
        for remote in 0..*count {
            assert!(blocks.add_reserved(NodeId(node as u16), RemoteBlock::numbered(remote)));
        }
    }
    blocks
}

/// Opens a block, writes one live unit to it, and seals it.
fn one_block(blocks: &mut Blocks, choices: &mut Choices) -> BlockId {
    assert_eq!(blocks.open_next(Stream::New, choices), Next::Opened);
    let (id, ..) = blocks.open_block(Stream::New).unwrap();
    blocks.advance(id, 1);
    blocks.add_live(Location { block: id, offset_units: 0, len_bytes: 64 });
    blocks.seal(Stream::New);
    blocks.written(id);
    id
}

fn nodes_of(blocks: &Blocks, id: BlockId) -> Vec<u16> {
    blocks.copies(id).map(|(node, ..)| node.0).collect()
}

#[test]
fn power_of_two_choices_never_takes_the_fullest_node_and_levels_the_rest() {
    let mut blocks = with_nodes(&[1000, 1000, 10], 1);
    let mut choices = Choices::new(7);
    for _ in 0..1200 {
        let id = one_block(&mut blocks, &mut choices);
        assert_ne!(nodes_of(&blocks, id), [2], "node 2 always has fewer than the other of the two");
    }
    let left = [blocks.pooled_of(0), blocks.pooled_of(1)];
    assert!(left[0].abs_diff(left[1]) < 40, "levelled: {left:?}");
}

#[test]
fn of_two_nodes_with_equally_much_free_the_less_busy_one_is_taken() {
    let mut choices = Choices::new(3);
    for _ in 0..20 {
        let mut blocks = with_nodes(&[100, 100], 1);
        blocks.set_load(NodeId(0), 5);
        let id = one_block(&mut blocks, &mut choices);
        assert_eq!(nodes_of(&blocks, id), [1]);
    }
}

#[test]
fn the_last_blocks_are_for_the_cleaner_only() {
    let mut blocks = with_nodes(&[4], 1);
    let mut choices = Choices::new(1);
    one_block(&mut blocks, &mut choices);
    one_block(&mut blocks, &mut choices);
    assert_eq!(blocks.open_next(Stream::New, &mut choices), Next::Nothing);
    assert_eq!(blocks.open_next(Stream::Moved, &mut choices), Next::Opened);
}

#[test]
fn a_node_that_does_not_accept_gets_no_block_and_its_empty_ones_are_released() {
    let mut blocks = with_nodes(&[10, 10], 1);
    let mut choices = Choices::new(1);
    blocks.set_accepting(NodeId(0), false);
    let mut used = Vec::new();
    for _ in 0..5 {
        used.push(one_block(&mut blocks, &mut choices));
        assert_eq!(nodes_of(&blocks, *used.last().unwrap()), [1]);
    }
    let released = std::iter::from_fn(|| blocks.take_retired(NodeId(0))).count();
    assert_eq!((released, blocks.node(NodeId(0)).unwrap().held), (10, 0));
    assert_eq!(blocks.take_retired(NodeId(1)), None, "an accepting node keeps its pool");
}

#[test]
fn a_block_is_recycled_when_its_last_page_dies_but_not_while_it_is_pinned() {
    let mut blocks = with_nodes(&[4], 1);
    let mut choices = Choices::new(1);
    assert_eq!(blocks.open_next(Stream::New, &mut choices), Next::Opened);
    let (id, ..) = blocks.open_block(Stream::New).unwrap();
    let at = Location { block: id, offset_units: 0, len_bytes: 640 };
    let first = blocks.generation(id);
    blocks.advance(id, 10);
    blocks.add_live(at);
    blocks.seal(Stream::New);
    assert_eq!(blocks.victim(100), None, "pinned");
    blocks.kill(at);
    assert_eq!(blocks.local_free(), 3);
    blocks.written(id);
    assert_eq!(blocks.local_free(), 4);
    assert_eq!(blocks.open_next(Stream::New, &mut choices), Next::Opened);
    let (again, ..) = blocks.open_block(Stream::New).unwrap();
    assert!(blocks.generation(again) > first, "no generation comes twice");
}

#[test]
fn a_block_has_its_copies_on_different_nodes_and_is_thin_when_there_are_too_few() {
    let mut blocks = with_nodes(&[100, 100, 100, 100], 3);
    let mut choices = Choices::new(5);
    let id = one_block(&mut blocks, &mut choices);
    let nodes: HashSet<u16> = nodes_of(&blocks, id).into_iter().collect();
    assert_eq!(nodes.len(), 3);
    assert_eq!(blocks.next_thin(), None);
    let gone = NodeId(*nodes.iter().next().unwrap());
    blocks.set_up(gone, false);
    assert!(blocks.readable(id));
    assert_eq!(blocks.next_thin(), Some(id));
    let CopyStep::Copy(plan) = blocks.begin_copy(id, None, &mut choices) else { panic!("a place is left") };
    assert_ne!(plan.from.0, gone);
    assert!(!nodes.contains(&plan.to.0.0), "a fourth node");
    assert_eq!(blocks.next_thin(), None, "it is being copied");
    blocks.finish_copy(&plan, true);
    assert_eq!(blocks.totals().thin, 0);
    assert!(!nodes_of(&blocks, id).contains(&gone.0), "three others are enough");
    blocks.set_up(gone, true);
    assert!(blocks.take_retired(gone).is_some(), "the copy that came back is released");
    blocks.check(&HashMap::from([(id, 1)]), &[]);
}

#[test]
fn a_copy_moves_off_a_node_and_its_old_block_goes_only_when_no_reader_is_left() {
    let mut blocks = with_nodes(&[100, 0], 1);
    let mut choices = Choices::new(5);
    let id = one_block(&mut blocks, &mut choices);
    blocks.set_remote_free(NodeId(1), 8);
    blocks.set_accepting(NodeId(0), false);
    assert_eq!(blocks.next_on(NodeId(0)), Some(id));
    assert_eq!(blocks.begin_copy(id, Some(NodeId(0)), &mut choices), CopyStep::Reserve(NodeId(1)));
    assert!(blocks.add_reserved(NodeId(1), RemoteBlock::numbered(0)));
    let CopyStep::Copy(plan) = blocks.begin_copy(id, Some(NodeId(0)), &mut choices) else {
        panic!("a place")
    };
    while blocks.take_retired(NodeId(0)).is_some() {}
    blocks.pin(id);
    blocks.finish_copy(&plan, true);
    assert_eq!(nodes_of(&blocks, id), [1]);
    assert_eq!(blocks.next_on(NodeId(0)), None);
    assert_eq!(blocks.take_retired(NodeId(0)), None, "a reader may still be at it");
    blocks.unpin(id);
    assert!(blocks.take_retired(NodeId(0)).is_some());
    assert_eq!(blocks.node(NodeId(0)).unwrap().held, 0);
    blocks.check(&HashMap::from([(id, 1)]), &[]);
}

#[test]
fn blocks_of_a_lost_node_are_unreadable_and_vanish_when_their_pages_do() {
    let mut blocks = with_nodes(&[4, 4], 1);
    let mut choices = Choices::new(1);
    let id = one_block(&mut blocks, &mut choices);
    let node = NodeId(nodes_of(&blocks, id)[0]);
    blocks.lose(node);
    assert!(!blocks.readable(id) && blocks.is_lost(id));
    assert_eq!((blocks.totals().lost, blocks.totals().held), (1, 4));
    blocks.kill(Location { block: id, offset_units: 0, len_bytes: 64 });
    assert_eq!(blocks.totals().lost, 0);
    blocks.check(&HashMap::new(), &[]);
}

#[test]
fn the_victim_is_the_block_with_the_least_alive() {
    let mut blocks = with_nodes(&[50], 1);
    let mut choices = Choices::new(1);
    let mut at = Vec::new();
    for units in [9000u32, 300, 4000, 300] {
        assert_eq!(blocks.open_next(Stream::New, &mut choices), Next::Opened);
        let (block, ..) = blocks.open_block(Stream::New).unwrap();
        blocks.advance(block, units);
        // A location's length has no limit here.
        at.push(Location { block, offset_units: 0, len_bytes: units * UNIT_BYTES as u32 });
        blocks.add_live(*at.last().unwrap());
        blocks.seal(Stream::New);
        blocks.written(block);
    }
    assert_eq!(blocks.victim(200), None);
    assert_eq!(blocks.victim(u32::MAX), Some(at[1].block), "the older of two equal ones");
    blocks.mark_unreadable(at[1].block);
    assert_eq!(blocks.victim(u32::MAX), Some(at[3].block));
    blocks.pin(at[3].block);
    assert_eq!(blocks.victim(u32::MAX), Some(at[2].block));
    blocks.set_up(NodeId(0), false);
    assert_eq!(blocks.victim(u32::MAX), None);
}

#[test]
fn a_block_takes_64_bytes_of_memory_that_survives() {
    assert_eq!(size_of::<RawBlock>(), 64);
    let shape = Shape {
        pages: 1 << 18,
        group_pages: 16,
        cache_bytes: 64 << 20,
        max_blocks: 1024,
        nodes: 4,
        replicas: 1,
        sealed: true,
    };
    let table =
        crate::model::Model::memory_bytes(shape) - crate::cache::Cache::memory_bytes(shape.cache_bytes);
    assert!(table < (2 << 20) + (80 << 10), "{table} bytes per GiB");
}
