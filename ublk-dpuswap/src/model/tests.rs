use super::*;
use crate::memory::{Memory, crash};
use crate::seal::{PageKey, Place};
use crate::units::{BLOCK_BYTES, Choices, RemoteBlock, UNITS_PER_BLOCK};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[derive(Debug, Clone)]
enum Op {
    Put { page: u32, len: usize, seed: u8 },
    SameFilled { page: u32, pattern: u32 },
    Discard { page: u32 },
    Fill { page: u32 },
    Begin,
    Finish { written: bool },
    Move,
    Copy,
    Down { node: u16 },
    Up { node: u16 },
    Forget { node: u16 },
    Accept { node: u16, accepting: bool },
    GiveBack { node: u16 },
    Disown { page: u32 },
    Kill,
}

const PAGES: u32 = 96;
const NODES: u16 = 4;
const NODE_BLOCKS: u32 = 12;

fn op() -> impl Strategy<Value = Op> {
    let page = || 0..PAGES;
    let node = || 0..NODES;
    prop_oneof![
        20 => (page(), 1usize..3000, any::<u8>()).prop_map(|(page, len, seed)| Op::Put { page, len, seed }),
        2 => (page(), any::<u32>()).prop_map(|(page, pattern)| Op::SameFilled { page, pattern }),
        6 => page().prop_map(|page| Op::Discard { page }),
        8 => page().prop_map(|page| Op::Fill { page }),
        10 => Just(Op::Begin),
        10 => (0..5).prop_map(|n| Op::Finish { written: n > 0 }),
        6 => Just(Op::Move),
        6 => Just(Op::Copy),
        2 => node().prop_map(|node| Op::Down { node }),
        4 => node().prop_map(|node| Op::Up { node }),
        1 => node().prop_map(|node| Op::Forget { node }),
        2 => (node(), any::<bool>()).prop_map(|(node, accepting)| Op::Accept { node, accepting }),
        2 => node().prop_map(|node| Op::GiveBack { node }),
        1 => page().prop_map(|page| Op::Disown { page }),
        2 => Just(Op::Kill),
    ]
}

/// A lender that really holds bytes.
#[derive(Default)]
struct Node {
    down: bool,
    forgot: bool,
    lent: HashMap<RemoteBlock, Vec<u8>>,
    ever: u32,
}

struct Flying {
    batch: Batch,
    items: Vec<Item>,
    staging: Vec<u8>,
    copies: Vec<(NodeId, RemoteBlock)>,
    victim: Option<BlockId>,
}

/// The model with up to two transfers in flight, whose outcome comes any number of operations later.
struct Bench {
    file: File,
    model: Model,
    key: Option<PageKey>,
    choices: Choices,
    nodes: Vec<Node>,
    flying: Vec<Flying>,
    copying: Option<CopyPlan>,
    known: HashMap<u32, Vec<u8>>,
}

fn shape(replicas: u8, sealed: bool) -> Shape {
    Shape {
        pages: PAGES,
        group_pages: 8,
        cache_bytes: 24 << 10,
        max_blocks: 14,
        nodes: NODES,
        replicas,
        sealed,
    }
}

impl Bench {
    fn new(replicas: u8, sealed: bool) -> Self {
        let shape = shape(replicas, sealed);
        let file = tempfile::tempfile().unwrap();
        let memory = Memory::shared(&file, Model::memory_bytes(shape)).unwrap();
        let mut model = Model::create(shape, memory).unwrap();
        let nodes: Vec<Node> = (0..NODES).map(|_| Node::default()).collect();
        (0..NODES).for_each(|node| model.blocks.set_remote_free(NodeId(node), NODE_BLOCKS));
        Self {
            file,
            model,
            key: sealed.then(|| PageKey::new(&[9; 32])),
            choices: Choices::new(1),
            nodes,
            flying: Vec::new(),
            copying: None,
            known: HashMap::new(),
        }
    }

    fn free_of(&self, node: NodeId) -> u32 {
        NODE_BLOCKS - self.nodes[usize::from(node.0)].lent.len() as u32
    }

    fn reserve(&mut self, node: NodeId) {
        for _ in 0..self.free_of(node).min(4) {
            let known = &mut self.nodes[usize::from(node.0)];
            assert!(!known.down, "only nodes that answer are asked");
            known.ever += 1;
            let remote = RemoteBlock { number: known.ever % 64, generation: known.ever / 64 };
            if known.lent.keys().any(|lent| lent.number == remote.number) {
                continue;
            }
            // What a node lends has old bytes in it.
            known.lent.insert(remote, vec![0x44; BLOCK_BYTES]);
            if !self.model.blocks.add_reserved(node, remote) {
                self.nodes[usize::from(node.0)].lent.remove(&remote);
            }
        }
        let free = self.free_of(node);
        self.model.blocks.set_remote_free(node, free);
    }

    fn release(&mut self) {
        for node in
            (0..NODES).map(NodeId).filter(|node| !self.nodes[usize::from(node.0)].down).collect::<Vec<_>>()
        {
            while let Some(remote) =
                self.model.blocks.take_retired(node).or_else(|| self.model.blocks.take_spare(node, 6))
            {
                let known = self.nodes[usize::from(node.0)].lent.remove(&remote);
                assert!(known.is_some(), "only what is held is released");
            }
            let free = self.free_of(node);
            self.model.blocks.set_remote_free(node, free);
        }
    }

    fn open(&mut self, stream: Stream) -> bool {
        if self.model.blocks.open_block(stream).is_some_and(|(.., left)| left >= 8 * 65) {
            return true;
        }
        for _ in 0..12 {
            match self.model.blocks.open_next(stream, &mut self.choices) {
                Next::Opened => return true,
                Next::Reserve(node) => self.reserve(node),
                Next::Nothing => return false,
            }
        }
        panic!("reserving leads nowhere");
    }

    fn fly(&mut self, batch: Batch, items: Vec<Item>, mut staging: Vec<u8>, victim: Option<BlockId>) {
        for item in &items {
            let from = (item.new.offset_units - batch.offset_units) as usize * UNIT_BYTES;
            let place = Place { generation: batch.generation, offset_units: item.new.offset_units };
            record::seal(&mut staging[from..from + item.new.len_bytes as usize], self.key.as_ref(), place);
        }
        let copies = self.model.blocks.copies(batch.block).map(|(node, remote, _)| (node, remote)).collect();
        self.flying.push(Flying { batch, items, staging, copies, victim });
    }

    fn begin(&mut self) {
        if self.flying.len() < 2 && self.open(Stream::New) {
            let (mut staging, mut items) = (vec![0; 128 << 10], Vec::with_capacity(64));
            if let Some(batch) = self.model.begin_batch(&mut staging, &mut items) {
                self.fly(batch, items, staging, None);
            }
        }
    }

    fn begin_move(&mut self) {
        let Some(victim) = self.model.blocks.victim(u32::MAX).filter(|_| self.flying.len() < 2) else {
            return;
        };
        if !self.open(Stream::Moved) || self.model.blocks.victim(u32::MAX) != Some(victim) {
            return;
        }
        let used = self.model.blocks.used_bytes(victim);
        let generation = self.model.blocks.generation(victim);
        let (node, remote, _) = self.model.blocks.copies(victim).find(|(.., up)| *up).unwrap();
        let mut bytes = self.nodes[usize::from(node.0)].lent[&remote][..used].to_vec();
        let mut found = Vec::with_capacity(16384);
        // A run that was never written leaves a hole with whatever was there before.
        walk(victim, &bytes, self.key.is_some(), &mut found);
        found.retain(|record| self.model.is_wanted(record));
        open_found(generation, &mut bytes, self.key.as_ref(), &mut found).expect("what is wanted is whole");
        let live: u32 = found.iter().map(|record| record.at.units()).sum();
        assert_eq!(
            live, self.model.blocks.derived[victim.0 as usize].live_units,
            "all that is alive is found"
        );
        let (mut staging, mut items) = (vec![0; BLOCK_BYTES], Vec::with_capacity(16384));
        if let Some(batch) = self.model.begin_move(&found, &mut 0, &bytes, &mut staging, &mut items) {
            self.model.blocks.pin(victim);
            self.fly(batch, items, staging, Some(victim));
        }
    }

    fn finish(&mut self, acknowledged: bool) {
        if self.flying.is_empty() {
            return;
        }
        let Flying { batch, items, staging, copies, victim } = self.flying.remove(0);
        let from = batch.offset_units as usize * UNIT_BYTES;
        let len = batch.units as usize * UNIT_BYTES;
        let mut written = true;
        for (index, (node, remote)) in copies.into_iter().enumerate() {
            let node = &mut self.nodes[usize::from(node.0)];
            match node.lent.get_mut(&remote).filter(|_| !node.down && (acknowledged || index > 0)) {
                Some(bytes) => bytes[from..from + len].copy_from_slice(&staging[..len]),
                None => written = false,
            }
        }
        match victim {
            None => self.model.finish_batch(&batch, &items, written),
            Some(victim) => {
                self.model.finish_move(&batch, &items, written);
                self.model.blocks.unpin(victim);
            }
        }
    }

    fn copy(&mut self, block: Option<BlockId>, away: Option<NodeId>) {
        if let Some(plan) = self.copying.take() {
            let from = &self.nodes[usize::from(plan.from.0.0)];
            let bytes = from.lent.get(&plan.from.1).filter(|_| !from.down);
            let bytes = bytes.map(|bytes| bytes[..plan.used_bytes].to_vec());
            let to = &mut self.nodes[usize::from(plan.to.0.0)];
            let place = to.lent.get_mut(&plan.to.1).filter(|_| !to.down);
            let done =
                bytes.zip(place).map(|(bytes, place)| place[..bytes.len()].copy_from_slice(&bytes)).is_some();
            return self.model.blocks.finish_copy(&plan, done);
        }
        let Some(block) = block else { return };
        for _ in 0..4 {
            match self.model.blocks.begin_copy(block, away, &mut self.choices) {
                CopyStep::Copy(plan) => {
                    self.copying = Some(plan);
                    return;
                }
                CopyStep::Reserve(node) => self.reserve(node),
                CopyStep::NoPlace => return,
            }
        }
        panic!("reserving leads nowhere");
    }

    fn up(&mut self, node: u16) {
        let known = &mut self.nodes[usize::from(node)];
        if std::mem::replace(&mut known.down, false) {
            let forgot = std::mem::replace(&mut known.forgot, false);
            let free = self.free_of(NodeId(node));
            self.model.node_up(NodeId(node), forgot, free);
            self.return_held(node);
        }
    }

    /// Blocks that the node says we hold and nobody knows. What it held before a kill may be in the books already: a
    /// block that was recycled while the node was away went to its list.
    fn return_held(&mut self, node: u16) {
        let id = NodeId(node);
        let mut held: HashSet<RemoteBlock> = self.nodes[usize::from(node)].lent.keys().copied().collect();
        if held.len() as u32 > self.model.blocks.node(id).unwrap().held {
            // The target of a copy is in no list while it is under way.
            self.copy(None, None);
            assert!(self.model.blocks.cross_out_known(id, |remote| _ = held.remove(&remote)));
            held.into_iter().for_each(|remote| assert!(self.model.blocks.add_reserved(id, remote)));
        }
    }

    /// The process was killed: whatever was under way is gone, a new one takes over.
    fn recover(&mut self) -> Recovered {
        self.flying.clear();
        self.copying = None;
        let memory = Memory::shared(&self.file, Model::memory_bytes(*self.model.shape())).unwrap();
        let (model, recovered) = Model::recover(memory).unwrap();
        self.model = model;
        // A node whose blocks we do not hold any more knows it from the list of those that it says we do.
        for node in 0..NODES {
            if !self.nodes[usize::from(node)].down {
                self.nodes[usize::from(node)].down = true;
                self.up(node);
            }
        }
        recovered
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Put { page, len, seed } => {
                let _ = self.model.put(PageNo(page), Codec::Lz4, &payload_of(len, seed));
            }
            Op::SameFilled { page, pattern } => self.model.put_same_filled(PageNo(page), pattern),
            Op::Discard { page } => self.model.discard(PageNo(page)),
            Op::Fill { page } => {
                if let Mapping::Remote(at) = self.model.mapping(PageNo(page))
                    && let Some(payload) = self.remote_payload(page, at)
                {
                    let payload_bytes = payload.len();
                    let header =
                        RecordHeader { codec: Codec::Lz4, payload_bytes, page: PageNo(page), seq: 1 };
                    self.model.fill(&header, at, &payload, page.is_multiple_of(2));
                }
            }
            Op::Begin => self.begin(),
            Op::Finish { written } => self.finish(written),
            Op::Move => self.begin_move(),
            Op::Copy => {
                let thin = if self.copying.is_none() { self.model.blocks.next_thin() } else { None };
                self.copy(thin, None);
            }
            Op::GiveBack { node } => {
                let block =
                    if self.copying.is_none() { self.model.blocks.next_on(NodeId(node)) } else { None };
                self.copy(block, Some(NodeId(node)));
                self.release();
            }
            Op::Down { node } => {
                self.nodes[usize::from(node)].down = true;
                self.model.node_down(NodeId(node));
            }
            Op::Up { node } => self.up(node),
            Op::Forget { node } => {
                let known = &mut self.nodes[usize::from(node)];
                (known.down, known.forgot) = (true, true);
                known.lent.clear();
                self.model.node_down(NodeId(node));
            }
            Op::Accept { node, accepting } => {
                self.model.blocks.set_accepting(NodeId(node), accepting);
                self.release();
            }
            Op::Disown { page } => {
                if let Mapping::Remote(at) = self.model.mapping(PageNo(page)) {
                    let first = self.model.blocks.copies(at.block).next();
                    if let Some((node, remote, true)) = first {
                        self.nodes[usize::from(node.0)].lent.remove(&remote);
                        self.model.blocks.pin(at.block);
                        assert!(self.model.disown(at.block, node));
                        assert!(!self.model.disown(at.block, node), "once");
                        self.model.blocks.unpin(at.block);
                    }
                }
            }
            Op::Kill => assert_eq!(self.recover().repaired, 0, "nothing contradicts itself after a kill"),
        }
    }

    /// What the reference says after `op` when it was done.
    fn note(&mut self, op: &Op, stored: bool) {
        match *op {
            Op::Put { page, len, seed } if stored => self.known.insert(page, payload_of(len, seed)),
            Op::SameFilled { page, pattern } => self.known.insert(page, pattern.to_le_bytes().to_vec()),
            Op::Discard { page } => self.known.remove(&page),
            _ => None,
        };
    }

    /// The payload from every copy that can be read: they are the same. `None`: none can be read.
    fn remote_payload(&self, page: u32, at: Location) -> Option<Vec<u8>> {
        let generation = self.model.blocks.generation(at.block);
        let place = Place { generation, offset_units: at.offset_units };
        let mut payload = None;
        for (node, remote, up) in self.model.blocks.copies(at.block) {
            if !up {
                continue;
            }
            let bytes = &self.nodes[usize::from(node.0)].lent[&remote];
            let mut bytes = bytes[at.offset_bytes()..][..at.len_bytes as usize].to_vec();
            let (header, found) = record::open(&mut bytes, self.key.as_ref(), place).expect("a whole record");
            assert_eq!(header.page, PageNo(page));
            assert_eq!(record_bytes(found.len(), self.key.is_some()), at.len_bytes as usize);
            assert!(payload.is_none() || payload.as_deref() == Some(found), "copies are the same");
            payload = Some(found.to_vec());
        }
        payload
    }

    /// What a reader would get: `Err` when the page cannot be read now.
    fn content(&self, page: u32) -> Result<Option<Vec<u8>>, ()> {
        match self.model.mapping(PageNo(page)) {
            Mapping::Absent => Ok(None),
            Mapping::SameFilled(pattern) => Ok(Some(pattern.to_le_bytes().to_vec())),
            Mapping::Remote(at) => self.remote_payload(page, at).map(Some).ok_or(()),
            Mapping::Cached(id) => {
                let mut out = vec![0; 4096];
                let len = self.model.cache().copy_out(id, &mut out);
                out.truncate(len);
                if let Some(at) = self.model.cache().entry(id).unwrap().remote
                    && let Some(remote) = self.remote_payload(page, at)
                {
                    assert_eq!(remote, out, "a clean entry is what the nodes have");
                }
                Ok(Some(out))
            }
        }
    }

    fn check(&self) {
        let current = |plan: &CopyPlan| {
            self.nodes[usize::from(plan.to.0.0)].lent.contains_key(&plan.to.1)
                || self.nodes[usize::from(plan.to.0.0)].forgot
        };
        let copying: Vec<NodeId> =
            self.copying.iter().filter(|plan| current(plan)).map(|plan| plan.to.0).collect();
        self.model.check(&copying);
    }

    /// Compares every page with the reference. A page that cannot be read must have all its copies on nodes that are
    /// down or have forgotten it.
    fn compare(&self, may_be_absent: Option<u32>) -> Result<(), TestCaseError> {
        for page in 0..PAGES {
            match self.content(page) {
                Ok(content) => {
                    let known = self.known.get(&page).cloned();
                    let in_flight = may_be_absent == Some(page) && content.is_none();
                    prop_assert!(
                        in_flight || content == known,
                        "page {}: {:?}, not {:?}",
                        page,
                        content,
                        known
                    );
                }
                Err(()) => {
                    let Mapping::Remote(at) = self.model.mapping(PageNo(page)) else {
                        panic!("only remote ones")
                    };
                    prop_assert!(!self.model.blocks.readable(at.block));
                    prop_assert!(self.known.contains_key(&page));
                }
            }
        }
        Ok(())
    }
}

fn payload_of(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(seed) ^ (i >> 8) as u8).collect()
}

fn seq(model: &Model) -> u64 {
    model.root.next_seq[0]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_during_a_transfer_every_page_keeps_its_newest_content(
        ops in proptest::collection::vec(op(), 1..160), replicas in 1u8..=3, sealed: bool,
    ) {
        let mut bench = Bench::new(replicas, sealed);
        for op in ops {
            let before = seq(&bench.model);
            bench.run(&op);
            let stored = seq(&bench.model) > before;
            bench.note(&op, stored);
            bench.check();
            bench.compare(None)?;
        }
    }

    #[test]
    fn killed_at_any_step_every_acknowledged_page_is_there(
        ops in proptest::collection::vec((op(), proptest::option::weighted(0.3, 0u64..40)), 1..120),
        replicas in 1u8..=2, sealed: bool,
    ) {
        let mut bench = Bench::new(replicas, sealed);
        for (op, steps) in ops {
            let before = seq(&bench.model);
            crash::after(steps.unwrap_or(u64::MAX));
            let done = catch_unwind(AssertUnwindSafe(|| bench.run(&op)));
            crash::after(u64::MAX);
            if let Err(why) = done {
                if !why.is::<crash::Killed>() { std::panic::resume_unwind(why); }
                prop_assert_eq!(bench.recover().repaired, 0);
                // The page under way is old, new or absent: the kernel sends it again.
                if let Op::Put { page, .. } | Op::SameFilled { page, .. } | Op::Discard { page } = op {
                    let old = bench.known.get(&page).cloned();
                    bench.note(&op, true);
                    let new = bench.known.get(&page).cloned();
                    if let Ok(now) = bench.content(page) {
                        prop_assert!(now == old || now == new || now.is_none());
                        match now { Some(now) => bench.known.insert(page, now), None => bench.known.remove(&page) };
                    } else {
                        old.into_iter().for_each(|old| { bench.known.insert(page, old); });
                    }
                }
            } else {
                let stored = seq(&bench.model) > before;
                bench.note(&op, stored);
            }
            bench.check();
            bench.compare(None)?;
        }
    }

    #[test]
    fn a_state_of_damaged_words_is_refused_or_taken_over_whole(
        ops in proptest::collection::vec(op(), 1..100),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u64>(), any::<bool>()), 1..40),
    ) {
        let mut bench = Bench::new(2, false);
        for op in ops {
            bench.run(&op);
        }
        let bytes = Model::memory_bytes(*bench.model.shape());
        let mut words = Memory::shared(&bench.file, bytes).unwrap().take::<u64>(bytes / 8).unwrap();
        for (at, value, one_bit) in flips {
            // Not the header every time: word 0..8.
            let word = 8 + at.index(words.len() - 8);
            words[word] = if one_bit { words[word] ^ 1 << (value % 64) } else { value };
        }
        let memory = Memory::shared(&bench.file, bytes).unwrap();
        if let Ok((mut model, _)) = Model::recover(memory) {
            model.check(&[]);
            for page in (0..PAGES).map(PageNo) {
                if let Mapping::Cached(id) = model.mapping(page) {
                    prop_assert!(model.read_cached(id, &mut [0; 4096]).is_some());
                }
            }
            (0..PAGES).for_each(|page| model.discard(PageNo(page)));
            model.check(&[]);
            prop_assert_eq!(model.usage(), Usage::default());
        }
    }

    #[test]
    fn with_two_copies_no_node_takes_a_page_with_it(
        ops in proptest::collection::vec(op(), 1..80), lost in proptest::collection::vec(0..NODES, 1..6), sealed: bool,
    ) {
        let mut bench = Bench::new(2, sealed);
        for op in ops.iter().filter(|op| {
            !matches!(op, Op::Down { .. } | Op::Forget { .. } | Op::Disown { .. } | Op::Accept { .. })
        }) {
            let before = seq(&bench.model);
            bench.run(op);
            let stored = seq(&bench.model) > before;
            bench.note(op, stored);
        }
        for node in lost {
            bench.run(&Op::Forget { node });
            bench.compare(None)?;
            for page in 0..PAGES {
                prop_assert!(bench.content(page).is_ok(), "page {} is lost", page);
            }
            while !bench.flying.is_empty() { bench.finish(true); }
            bench.model.blocks.seal(Stream::New);
            bench.model.blocks.seal(Stream::Moved);
            for _ in 0..200 {
                bench.run(&Op::Copy);
            }
            prop_assert_eq!(bench.model.blocks.totals().thin, 0, "all have two copies again");
            bench.run(&Op::Up { node });
            bench.check();
        }
    }
}

#[test]
fn a_state_that_is_none_is_refused_by_name_and_field() {
    let shape = shape(1, false);
    let file = tempfile::tempfile().unwrap();
    let bytes = Model::memory_bytes(shape);
    let refused = |bytes| {
        let memory = Memory::shared(&file, bytes).unwrap().named("/run/state");
        Model::recover(memory).err().unwrap().to_string()
    };
    assert!(refused(bytes).starts_with("/run/state: field magic is 0x0, that of a device's state is"));
    Model::create(shape, Memory::shared(&file, bytes).unwrap()).unwrap();
    let mut words = Memory::shared(&file, bytes).unwrap().take::<u32>(16).unwrap();
    words[2] = 7;
    assert!(refused(bytes).contains("field version is 0x7, this build reads 1"));
    words[2] = 1;
    words[6] ^= 4;
    assert!(refused(bytes).contains("field crc"));
    words[6] ^= 4;
    assert!(refused(bytes - 4096).contains("make it larger"));
    let memory = Memory::shared(&file, bytes).unwrap();
    assert_eq!(Model::recover(memory).unwrap().1, Recovered::default());
    let silly = Shape { replicas: 4, ..shape };
    let error = Model::create(silly, Memory::anonymous(bytes).unwrap()).err().unwrap();
    assert_eq!(error.to_string(), "replicas is 4; it must be 1 to 3");
}

#[test]
fn the_identity_is_there_after_a_recovery() {
    let mut bench = Bench::new(1, true);
    let identity = bench.model.identity_mut();
    identity.client_id = 77;
    identity.page_key = [3; 32];
    assert!(identity.nodes[2].set_name("10.0.0.7:7750"));
    assert!(!identity.nodes[2].set_name(&"x".repeat(NODE_NAME_BYTES + 1)));
    identity.nodes[2].epoch = 5;
    bench.recover();
    let identity = bench.model.identity();
    assert_eq!((identity.client_id, identity.page_key, identity.nodes[2].epoch), (77, [3; 32], 5));
    assert_eq!((identity.nodes[2].name(), identity.nodes[0].name()), ("10.0.0.7:7750", ""));
}

#[test]
fn neighbours_are_of_the_same_group_and_block_and_fit_one_read() {
    let mut bench = Bench::new(1, false);
    for page in 0..16 {
        bench.run(&Op::Put { page, len: 1000, seed: page as u8 });
    }
    bench.begin();
    bench.finish(true);
    // Others take their room in the cache.
    for page in 32..50 {
        bench.run(&Op::Put { page, len: 1000, seed: 1 });
    }
    let Mapping::Remote(at) = bench.model.mapping(PageNo(3)) else { panic!("it left the cache") };
    let mut out = Vec::with_capacity(8);
    let near = |bench: &Bench, most: u32, out: &mut Vec<(PageNo, Location)>| {
        bench.model.neighbours(PageNo(3), at, most, out);
        out.iter().map(|(page, _)| page.0).collect::<Vec<_>>()
    };
    assert_eq!(near(&bench, 1 << 20, &mut out), [0, 1, 2, 3, 4, 5, 6, 7], "the group, by offset");
    assert_eq!(near(&bench, 3 * 1024, &mut out), [3, 4, 5].map(|page| page), "three records of 1 KiB");
    assert_eq!(near(&bench, 0, &mut out), [3]);
    let mut small = Vec::with_capacity(2);
    assert_eq!(near(&bench, 1 << 20, &mut small), [3, 4]);
    assert_eq!(small.capacity(), 2);
    assert!(out.iter().all(|(_, near)| near.offset_units + near.units() <= UNITS_PER_BLOCK));
}

#[test]
fn pages_brought_ahead_are_counted_as_used_or_wasted() {
    let mut bench = Bench::new(1, false);
    for page in 0..4 {
        bench.run(&Op::Put { page, len: 1000, seed: 1 });
    }
    bench.begin();
    bench.finish(true);
    for page in 32..50 {
        bench.run(&Op::Put { page, len: 1000, seed: 1 });
    }
    bench.begin();
    bench.finish(true);
    for page in 50..66 {
        bench.run(&Op::Put { page, len: 1000, seed: 1 });
    }
    bench.begin();
    bench.finish(true);
    bench.run(&Op::Fill { page: 0 });
    bench.run(&Op::Fill { page: 2 });
    let Mapping::Cached(id) = bench.model.mapping(PageNo(0)) else { panic!("it was filled") };
    assert!(bench.model.read_cached(id, &mut [0; 4096]).unwrap().ahead);
    assert!(!bench.model.read_cached(id, &mut [0; 4096]).unwrap().ahead, "asked for once");
    bench.model.discard(PageNo(2));
    assert_eq!((bench.model.cache().ahead_used, bench.model.cache().ahead_wasted), (1, 1));
}

#[test]
fn a_block_that_was_opened_thin_gets_its_second_copy_though_nobody_writes_any_more() {
    let mut bench = Bench::new(2, false);
    (1..NODES).for_each(|node| bench.run(&Op::Down { node }));
    bench.run(&Op::Put { page: 3, len: 100, seed: 1 });
    bench.begin();
    bench.finish(true);
    bench.run(&Op::Copy);
    let Mapping::Cached(id) = bench.model.mapping(PageNo(3)) else { panic!("it is in the cache") };
    let block = bench.model.cache().entry(id).unwrap().remote.unwrap().block;
    assert_eq!(bench.model.blocks.copies(block).count(), 1);
    (1..NODES).for_each(|node| bench.run(&Op::Up { node }));
    (0..2).for_each(|_| bench.run(&Op::Copy));
    assert_eq!(bench.model.blocks.copies(block).filter(|(.., up)| *up).count(), 2);
}

#[test]
fn a_block_without_a_place_elsewhere_does_not_keep_others_from_leaving_a_node() {
    let mut bench = Bench::new(2, false);
    // One block on nodes 0 and 1, one on 0 and 2; then only node 1 takes more.
    let mut blocks = Vec::new();
    for other in [1, 2] {
        (1..NODES).filter(|node| *node != other).for_each(|node| bench.run(&Op::Down { node }));
        bench.run(&Op::Put { page: other.into(), len: 100, seed: 1 });
        bench.begin();
        bench.finish(true);
        blocks.extend(bench.model.blocks.open_block(Stream::New).map(|(id, ..)| id));
        bench.model.blocks.seal(Stream::New);
        (1..NODES).for_each(|node| bench.run(&Op::Up { node }));
    }
    let on = |bench: &Bench, block| {
        let mut nodes: Vec<u16> = bench.model.blocks.copies(block).map(|(node, ..)| node.0).collect();
        nodes.sort_unstable();
        nodes
    };
    assert_eq!((on(&bench, blocks[0]), on(&bench, blocks[1])), (vec![0, 1], vec![0, 2]));
    for node in [0, 2, 3] {
        bench.run(&Op::Accept { node, accepting: false });
    }
    assert_eq!(bench.model.blocks.next_on(NodeId(0)), Some(blocks[1]));
    assert!(bench.model.blocks.waits_for_room(NodeId(0)), "the other one has no place but node 1");
    bench.copy(Some(blocks[1]), Some(NodeId(0)));
    bench.copy(None, None);
    assert_eq!(on(&bench, blocks[1]), [1, 2]);
    assert_eq!(bench.model.blocks.next_on(NodeId(0)), None);
}
