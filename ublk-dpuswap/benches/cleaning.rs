//! What cleaning costs: bytes moved per byte written back, for patterns of overwriting and degrees of filling, through
//! the real model with real records. No network and no clock: the figures are the same on every machine.
//!
//! `cargo bench --bench cleaning [-- --json] [-- --blocks N]`
#![allow(clippy::unwrap_used)]

use ublk_dpuswap::codec::Codec;
use ublk_dpuswap::memory::Memory;
use ublk_dpuswap::model::{Found, Item, Model, Next, Shape, Stream, open_found, walk};
use ublk_dpuswap::record;
use ublk_dpuswap::seal::Place;
use ublk_dpuswap::units::{
    BLOCK_BYTES, BlockId, Choices, NodeId, PageNo, RemoteBlock, UNIT_BYTES, UNITS_PER_BLOCK,
};

/// Payloads are 600 to 2600 bytes long: with header and padding a record takes 1656 bytes on average.
const MEAN_RECORD_BYTES: u64 = 1656;
const GROUP_PAGES: u32 = 16;

struct Pool {
    model: Model,
    choices: Choices,
    blocks: Vec<Vec<u8>>,
    staging: Vec<u8>,
    items: Vec<Item>,
    found: Vec<Found>,
    written: u64,
    moved: u64,
}

impl Pool {
    fn new(pages: u32, max_blocks: u32) -> Self {
        let shape = Shape {
            pages,
            group_pages: GROUP_PAGES,
            cache_bytes: 4 << 20,
            max_blocks,
            nodes: 1,
            replicas: 1,
            sealed: false,
        };
        let memory = Memory::anonymous(Model::memory_bytes(shape)).unwrap();
        let mut model = Model::create(shape, memory).unwrap();
        for number in 0..max_blocks {
            assert!(model.blocks.add_reserved(NodeId(0), RemoteBlock::numbered(number)));
        }
        Self {
            model,
            choices: Choices::new(1),
            blocks: vec![vec![0; BLOCK_BYTES]; max_blocks as usize],
            staging: vec![0; BLOCK_BYTES],
            items: Vec::with_capacity(16384),
            found: Vec::with_capacity(16384),
            written: 0,
            moved: 0,
        }
    }

    fn send(&mut self, batch: &ublk_dpuswap::model::Batch) -> u64 {
        for item in &self.items {
            let from = (item.new.offset_units - batch.offset_units) as usize * UNIT_BYTES;
            let place = Place { generation: batch.generation, offset_units: item.new.offset_units };
            record::seal(&mut self.staging[from..from + item.new.len_bytes as usize], None, place);
        }
        let (from, len) = (batch.offset_units as usize * UNIT_BYTES, batch.units as usize * UNIT_BYTES);
        self.blocks[batch.block.0 as usize][from..from + len].copy_from_slice(&self.staging[..len]);
        len as u64
    }

    fn write_back(&mut self) {
        let Some(need) = self.model.next_run_units() else { return };
        if self.model.blocks.open_block(Stream::New).is_none_or(|(.., left)| left < need) {
            while self.model.blocks.open_next(Stream::New, &mut self.choices) != Next::Opened {
                let victim = self.model.blocks.victim(UNITS_PER_BLOCK / 16 * 15).expect("something is dead");
                self.clean(victim);
            }
        }
        if let Some(batch) = self.model.begin_batch(&mut self.staging, &mut self.items) {
            self.written += self.send(&batch);
            self.model.finish_batch(&batch, &self.items, true);
        }
    }

    fn clean(&mut self, victim: BlockId) {
        let used = self.model.blocks.used_bytes(victim);
        let generation = self.model.blocks.generation(victim);
        let mut bytes = self.blocks[victim.0 as usize][..used].to_vec();
        let mut found = std::mem::take(&mut self.found);
        walk(victim, &bytes, false, &mut found);
        found.retain(|record| self.model.is_wanted(record));
        open_found(generation, &mut bytes, None, &mut found).unwrap();
        self.model.blocks.pin(victim);
        let mut next = 0;
        while next < found.len() {
            let batch = self.model.begin_move(&found, &mut next, &bytes, &mut self.staging, &mut self.items);
            if let Some(batch) = batch {
                self.moved += self.send(&batch);
                self.model.finish_move(&batch, &self.items, true);
            } else if next < found.len() {
                assert_eq!(self.model.blocks.open_next(Stream::Moved, &mut self.choices), Next::Opened);
            }
        }
        self.model.blocks.unpin(victim);
        self.found = found;
    }

    fn put(&mut self, page: u32) {
        let len = 600 + self.choices.below(2001) as usize;
        let payload = [page as u8; 2600];
        while self.model.put(PageNo(page), Codec::Lz4, &payload[..len]).is_err() {
            self.write_back();
        }
        while self.model.cache().dirty_permille() > 500 {
            self.write_back();
        }
    }
}

struct Pattern {
    name: &'static str,
    run_pages: u32,
    /// Runs that are written at the same time, a group of each in turn.
    at_once: u32,
    /// The run is discarded before it is written, as the kernel does with whole free clusters.
    discard: bool,
}

fn relocated(pattern: &Pattern, utilisation: f64, max_blocks: u32) -> f64 {
    let live_bytes = utilisation * f64::from(max_blocks) * BLOCK_BYTES as f64;
    let pages = (live_bytes / MEAN_RECORD_BYTES as f64) as u32 / 512 * 512;
    let mut pool = Pool::new(pages, max_blocks);
    (0..pages).for_each(|page| pool.put(page));
    let runs = pages / pattern.run_pages;
    let turn = GROUP_PAGES.min(pattern.run_pages);
    let mut measured = (0, 0);
    for round in 0..6 {
        if round == 3 {
            measured = (pool.written, pool.moved);
        }
        for _ in 0..runs / pattern.at_once {
            let chosen: Vec<u32> =
                (0..pattern.at_once).map(|_| pool.choices.below(runs) * pattern.run_pages).collect();
            if pattern.discard {
                for page in chosen.iter().flat_map(|first| *first..first + pattern.run_pages) {
                    pool.model.discard(PageNo(page));
                }
            }
            for from in (0..pattern.run_pages).step_by(turn as usize) {
                chosen.iter().for_each(|first| (0..turn).for_each(|page| pool.put(first + from + page)));
            }
        }
    }
    (pool.moved - measured.1) as f64 / (pool.written - measured.0) as f64
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let json = args.iter().any(|arg| arg == "--json");
    let blocks = args.iter().position(|arg| arg == "--blocks").and_then(|at| args.get(at + 1));
    let max_blocks = blocks.map_or(256, |count| count.parse().expect("--blocks takes a number"));
    let pattern = |name, run_pages, at_once, discard| Pattern { name, run_pages, at_once, discard };
    let patterns = [
        pattern("4 KiB, uniform", 1, 1, false),
        pattern("128 KiB runs", 32, 1, false),
        pattern("2 MiB runs", 512, 1, false),
        pattern("2 MiB runs, 4 at once", 512, 4, false),
        pattern("2 MiB runs, 4 at once, discarded first", 512, 4, true),
    ];
    let levels = [0.7, 0.8, 0.9];
    if !json {
        println!("relocated bytes per byte written back, {max_blocks} blocks of 1 MiB, by utilisation");
        println!("{:<40} {:>6} {:>6} {:>6}", "overwriting", "0.7", "0.8", "0.9");
    }
    let mut rows = Vec::new();
    for pattern in &patterns {
        let figures = levels.map(|level| relocated(pattern, level, max_blocks));
        if !json {
            println!("{:<40} {:>6.2} {:>6.2} {:>6.2}", pattern.name, figures[0], figures[1], figures[2]);
        }
        rows.push(
            serde_json::json!({ "pattern": pattern.name, "utilisation": levels, "relocated": figures }),
        );
    }
    if json {
        println!("{}", serde_json::json!({ "blocks": max_blocks, "rows": rows }));
    }
}
