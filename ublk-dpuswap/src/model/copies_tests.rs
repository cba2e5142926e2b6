//! Copies and kills: whatever barrier a process is killed at, its successor ends with as many copies as are wanted.

use crate::codec::Codec;
use crate::memory::{Memory, crash};
use crate::model::{CopyStep, Model, Next, Shape, Stream};
use crate::units::{BlockId, Choices, NodeId, PageNo, RemoteBlock};
use proptest::prelude::*;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

const NODES: u16 = 5;
const PAGES: u32 = 64;

/// A model over nodes that remember what they lend.
struct Bench {
    file: std::fs::File,
    model: Model,
    choices: Choices,
    lent: Vec<HashSet<RemoteBlock>>,
}

fn shape(replicas: u8) -> Shape {
    let (cache_bytes, nodes) = (1 << 20, NODES);
    Shape { pages: PAGES, group_pages: 8, cache_bytes, max_blocks: 16, nodes, replicas, sealed: false }
}

impl Bench {
    /// `blocks` sealed blocks with a page each, and no empty remote block left over: every node lends `blocks` and some.
    fn new(replicas: u8, blocks: u32) -> Bench {
        let shape = shape(replicas);
        let file = tempfile::tempfile().unwrap();
        let memory = Memory::shared(&file, Model::memory_bytes(shape)).unwrap();
        let model = Model::create(shape, memory).unwrap();
        let lent = vec![HashSet::new(); usize::from(NODES)];
        let mut bench = Bench { file, model, choices: Choices::new(3), lent };
        for node in (0..NODES).map(NodeId) {
            (0..16).for_each(|number| bench.lend(node, RemoteBlock::numbered(number)));
        }
        let (mut staging, mut items) = (vec![0; 64 << 10], Vec::with_capacity(64));
        for page in 0..blocks {
            bench.model.put(PageNo(page * 8), Codec::Raw, &[page as u8 + 1; 100]).unwrap();
            assert_eq!(bench.model.blocks.open_next(Stream::New, &mut bench.choices), Next::Opened);
            let batch = bench.model.begin_batch(&mut staging, &mut items).unwrap();
            bench.model.finish_batch(&batch, &items, true);
            bench.model.blocks.seal(Stream::New);
        }
        bench
    }

    fn lend(&mut self, node: NodeId, remote: RemoteBlock) {
        assert!(self.model.blocks.add_reserved(node, remote));
        self.lent[usize::from(node.0)].insert(remote);
    }

    fn recover(&mut self) {
        let memory = Memory::shared(&self.file, Model::memory_bytes(*self.model.shape())).unwrap();
        let (model, recovered) = Model::recover(memory).unwrap();
        assert_eq!(recovered.repaired, 0);
        self.model = model;
    }

    /// A node answers, and says what it has lent.
    fn up(&mut self, node: NodeId) {
        self.model.node_up(node, false, 0);
        let mut held = self.lent[usize::from(node.0)].clone();
        assert!(self.model.blocks.cross_out_known(node, |remote| _ = held.remove(&remote)));
        held.into_iter().for_each(|remote| assert!(self.model.blocks.add_reserved(node, remote)));
    }

    fn copy(&mut self, block: BlockId, away: Option<NodeId>) -> bool {
        match self.model.blocks.begin_copy(block, away, &mut self.choices) {
            CopyStep::Copy(plan) => {
                self.model.blocks.finish_copy(&plan, true);
                true
            }
            CopyStep::Reserve(_) | CopyStep::NoPlace => false,
        }
    }

    /// What the copier does until there is nothing to do: a node that gives back first, then what is thin.
    fn settle(&mut self, giver: Option<NodeId>) {
        for _ in 0..200 {
            let from = giver.and_then(|node| Some((self.model.blocks.next_on(node)?, Some(node))));
            let job = from.or_else(|| Some((self.model.blocks.next_thin()?, None)));
            let Some((block, away)) = job else { break };
            assert!(self.copy(block, away), "there is a place for {block:?} away from {away:?}");
        }
        for node in (0..NODES).map(NodeId) {
            while let Some(remote) = self.model.blocks.take_retired(node) {
                assert!(self.lent[usize::from(node.0)].remove(&remote), "only what is held is released");
            }
        }
        self.model.check(&[]);
    }

    fn check_copies(&self, blocks: u32, replicas: u8) {
        let totals = self.model.blocks.totals();
        let wanted = blocks * u32::from(replicas);
        assert_eq!((totals.used, totals.thin, totals.copies), (blocks, 0, wanted));
        let lent: usize = self.lent.iter().map(HashSet::len).sum();
        assert_eq!(totals.held as usize, lent, "nothing is forgotten at a node");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn killed_at_any_step_of_a_copy_no_block_keeps_more_or_fewer_copies_than_wanted(
        replicas in 1u8..=3, blocks in 1u32..4, kills in proptest::collection::vec(0u64..14, 1..4),
        away in 0u16..NODES, gives_back: bool, order in Just([0u16, 1, 2, 3, 4]).prop_shuffle(),
    ) {
        let mut bench = Bench::new(replicas, blocks);
        let away = NodeId(away);
        for points in kills {
            crash::after(points);
            let done = catch_unwind(AssertUnwindSafe(|| {
                for block in (0..16).map(BlockId) {
                    let on_node = bench.model.blocks.copies(block).any(|(node, ..)| node == away);
                    let from = on_node.then_some(away);
                    let first = bench.model.blocks.copies(block).next().map(|(node, ..)| node);
                    if let Some(from) = from.or(first) {
                        bench.copy(block, Some(from));
                    }
                }
            }));
            crash::after(u64::MAX);
            if let Some(why) = done.err().filter(|why| !why.is::<crash::Killed>()) {
                resume_unwind(why);
            }
            bench.recover();
            order.iter().for_each(|node| bench.up(NodeId(*node)));
        }
        let giver = gives_back.then_some(away);
        if gives_back {
            bench.model.blocks.set_accepting(away, false);
        }
        bench.settle(giver);
        bench.check_copies(blocks, replicas);
        if gives_back {
            prop_assert_eq!(bench.lent[usize::from(away.0)].len(), 0, "it has all of its memory back");
        }
    }
}

#[test]
fn of_too_many_copies_the_one_that_a_node_wants_back_goes_and_none_that_is_needed() {
    for replicas in 1..=3 {
        let mut bench = Bench::new(replicas, 1);
        let block = BlockId(0);
        let (away, ..) = bench.model.blocks.copies(block).next().unwrap();
        // The first barriers are before the new copy counts, the next ones after the old one has gone.
        let surplus = (0..8).find(|points| {
            crash::after(*points);
            let killed = catch_unwind(AssertUnwindSafe(|| bench.copy(block, Some(away)))).is_err();
            crash::after(u64::MAX);
            bench.recover();
            (0..NODES).for_each(|node| bench.up(NodeId(node)));
            killed && bench.model.blocks.copies(block).count() > usize::from(replicas)
        });
        assert!(surplus.is_some(), "some barrier lies between the two");
        let nodes: Vec<NodeId> = bench.model.blocks.copies(block).map(|(node, ..)| node).collect();
        let others: Vec<NodeId> = nodes.iter().copied().filter(|node| *node != away).collect();
        if replicas > 1 {
            others.iter().for_each(|node| _ = bench.model.node_down(*node));
            assert_eq!(bench.model.blocks.next_thin(), Some(block));
            assert_eq!(bench.model.blocks.copies(block).count(), nodes.len(), "too few answer: none goes");
            others.iter().for_each(|node| bench.up(*node));
        }
        bench.model.blocks.set_accepting(away, false);
        assert_eq!(bench.model.blocks.next_on(away), None, "the others are enough");
        let left: HashSet<NodeId> = bench.model.blocks.copies(block).map(|(node, ..)| node).collect();
        assert_eq!(left, others.into_iter().collect());
        bench.settle(Some(away));
        bench.check_copies(1, replicas);
    }
}
