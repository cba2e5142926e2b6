use super::*;
use crate::units::{BLOCK_BYTES, Choices, RemoteBlock};
use proptest::prelude::*;
use std::collections::HashMap;

#[derive(Debug, Clone)]
enum Op {
    Put { page: u32, len: usize, seed: u8 },
    SameFilled { page: u32, pattern: u32 },
    Discard { page: u32 },
    Fill { page: u32 },
    Begin,
    Finish { written: bool },
    BeginMove,
    Seal,
}

const PAGES: u32 = 96;

fn op() -> impl Strategy<Value = Op> {
    let page = || 0..PAGES;
    prop_oneof![
        10 => (page(), 1usize..3000, any::<u8>()).prop_map(|(page, len, seed)| Op::Put { page, len, seed }),
        1 => (page(), any::<u32>()).prop_map(|(page, pattern)| Op::SameFilled { page, pattern }),
        3 => page().prop_map(|page| Op::Discard { page }),
        4 => page().prop_map(|page| Op::Fill { page }),
        5 => Just(Op::Begin),
        5 => any::<bool>().prop_map(|written| Op::Finish { written }),
        2 => Just(Op::BeginMove),
        1 => Just(Op::Seal),
    ]
}

/// The model with one transfer in flight at most, whose outcome comes any number of operations later.
struct Bench {
    model: Model,
    choices: Choices,
    remote: HashMap<BlockId, Vec<u8>>,
    staging: Vec<u8>,
    items: Vec<Item>,
    flying: Option<(Batch, Option<BlockId>)>,
}

impl Bench {
    fn new() -> Self {
        let shape = Shape { pages: PAGES, group_pages: 8, cache_bytes: 24 << 10, max_blocks: 12, nodes: 1 };
        let mut model = Model::new(&shape);
        for number in 0..12 {
            assert!(model.blocks.add_reserved(NodeId(0), RemoteBlock::numbered(number)));
        }
        let items = Vec::with_capacity(4096);
        let staging = vec![0; 256 << 10];
        Self { model, choices: Choices::new(1), remote: HashMap::new(), staging, items, flying: None }
    }

    fn open(&mut self, stream: Stream) -> bool {
        let opened = self.model.blocks.open_block(stream).is_some_and(|(.., left)| left >= 8 * 65);
        opened || self.model.blocks.open_next(stream, &mut self.choices) == Next::Opened
    }

    fn begin(&mut self) {
        if self.flying.is_none() && self.open(Stream::New) {
            let batch = self.model.begin_batch(&mut self.staging, &mut self.items);
            self.flying = batch.map(|batch| (batch, None));
        }
    }

    fn begin_move(&mut self) {
        let Some(victim) = self.model.blocks.victim(u32::MAX).filter(|_| self.flying.is_none()) else {
            return;
        };
        if !self.open(Stream::Moved) {
            return;
        }
        let used = self.model.blocks.used_bytes(victim);
        let bytes = self.remote.get(&victim).map_or(&[][..], |bytes| &bytes[..used]);
        let mut found = Vec::with_capacity(16384);
        // A run that was never written ends the walk; what is alive lies before it or is not in this block.
        let _ = walk(victim, bytes, &mut found);
        let batch = self.model.begin_move(&found, &mut 0, bytes, &mut self.staging, &mut self.items);
        if let Some(batch) = batch {
            self.model.blocks.pin(victim);
            self.flying = Some((batch, Some(victim)));
        }
    }

    fn finish(&mut self, written: bool) {
        let Some((batch, victim)) = self.flying.take() else { return };
        if victim.is_none() {
            for item in &self.items {
                let from = (item.new.offset_units - batch.offset_units) as usize * UNIT_BYTES;
                record::seal(&mut self.staging[from..from + item.new.len_bytes as usize]);
            }
        }
        if written {
            let block = self.remote.entry(batch.block).or_insert_with(|| vec![0; BLOCK_BYTES]);
            let len = batch.units as usize * UNIT_BYTES;
            let from = batch.offset_units as usize * UNIT_BYTES;
            block[from..from + len].copy_from_slice(&self.staging[..len]);
        }
        match victim {
            None => self.model.finish_batch(&batch, &self.items, written),
            Some(victim) => {
                self.model.finish_move(&batch, &self.items, written);
                self.model.blocks.unpin(victim);
            }
        }
    }

    fn remote_payload(&self, page: u32, at: Location) -> Vec<u8> {
        let bytes = &self.remote[&at.block][at.offset_bytes()..];
        let (header, payload) = record::decode(bytes).unwrap();
        assert_eq!((header.page, payload.len() + HEADER_BYTES), (PageNo(page), at.len_bytes as usize));
        payload.to_vec()
    }

    fn payload(&self, page: u32) -> Option<Vec<u8>> {
        match self.model.mapping(PageNo(page)) {
            Mapping::Absent => None,
            Mapping::SameFilled(pattern) => Some(pattern.to_le_bytes().to_vec()),
            Mapping::Remote(at) => Some(self.remote_payload(page, at)),
            Mapping::Cached(id) => {
                let mut out = vec![0; 4096];
                let len = self.model.cache().copy_out(id, &mut out);
                out.truncate(len);
                if let Some(at) = self.model.cache().entry(id).unwrap().remote {
                    assert_eq!(self.remote_payload(page, at), out, "a clean entry is what the node has");
                }
                Some(out)
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_during_a_transfer_every_page_keeps_its_newest_content(
        ops in proptest::collection::vec(op(), 1..150),
    ) {
        let mut bench = Bench::new();
        let mut known: HashMap<u32, Vec<u8>> = HashMap::new();
        for op in ops {
            match op {
                Op::Put { page, len, seed } => {
                    let payload: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(seed) ^ (i >> 8) as u8).collect();
                    if bench.model.put(PageNo(page), Codec::Lz4, &payload).is_ok() {
                        known.insert(page, payload);
                    }
                }
                Op::SameFilled { page, pattern } => {
                    bench.model.put_same_filled(PageNo(page), pattern);
                    known.insert(page, pattern.to_le_bytes().to_vec());
                }
                Op::Discard { page } => {
                    bench.model.discard(PageNo(page));
                    known.remove(&page);
                }
                Op::Fill { page } => {
                    if let Mapping::Remote(at) = bench.model.mapping(PageNo(page)) {
                        let payload = bench.remote_payload(page, at);
                        let payload_bytes = payload.len();
                        let header = RecordHeader { codec: Codec::Lz4, payload_bytes, page: PageNo(page), seq: 1 };
                        bench.model.fill(&header, at, &payload);
                    }
                }
                Op::Begin => bench.begin(),
                Op::Finish { written } => bench.finish(written),
                Op::BeginMove => bench.begin_move(),
                Op::Seal => {
                    // The engine changes streams only while it holds the writer lock, so not during a transfer.
                    if bench.flying.is_none() {
                        bench.model.blocks.seal(Stream::New);
                    }
                }
            }
            bench.model.check();
            for page in 0..PAGES {
                prop_assert_eq!(bench.payload(page), known.get(&page).cloned(), "page {}", page);
            }
        }
    }
}
