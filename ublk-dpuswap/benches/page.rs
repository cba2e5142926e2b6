//! What one page costs, step by step (compress, put, pack, seal, map, cache, decompress), and what it costs to bring one
//! in from a node over TCP, beside what that takes at least: the link's round trip and the decompression.
//!
//!   cargo bench -p ublk-dpuswap --bench page [-- FILTER]
//!
//! The last lines compare the medians of single operations that took turns, so that whatever else the machine does
//! meets all of them alike.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/device.rs"]
mod device;

use std::hint::black_box;
use std::time::{Duration, Instant};

use common::{NodeProcess, TestKey};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use device::Device;
use ublk_dpuswap::codec::{Codec, Compressor, Decompressor, Recompressor};
use ublk_dpuswap::engine::Config;
use ublk_dpuswap::links::{LinkStart, Links};
use ublk_dpuswap::memory::Memory;
use ublk_dpuswap::model::{Item, Mapping, Model, Shape, Stream};
use ublk_dpuswap::record;
use ublk_dpuswap::remote::RemoteNode;
use ublk_dpuswap::seal::{PageKey, Place};
use ublk_dpuswap::secure::Security;
use ublk_dpuswap::units::{Choices, NodeId, PAGE_BYTES, PageNo, RemoteBlock, UNIT_BYTES};
use ublk_target::local::LocalQueue;
use ublk_target::{Done, Errno, Op, Payload, QueueHandler, QueueIo, Reply, Request};

const PAGES: u32 = 1 << 14;
const BATCH_PAGES: u32 = 256;
const SPIN: Duration = Duration::from_micros(200);

/// Pages like those of a heap: half words that repeat with small differences, half of random bytes, in stretches.
fn pages(count: usize) -> Vec<u8> {
    let mut choices = Choices::new(42);
    let mut bytes = Vec::with_capacity(count * PAGE_BYTES);
    while bytes.len() < count * PAGE_BYTES {
        if choices.below(3) == 0 {
            (0..48).for_each(|_| bytes.push(choices.below(256) as u8));
        } else {
            let base = choices.below(16);
            (0..24).for_each(|step| {
                bytes.extend_from_slice(&(0x7f00_0000 + base * 64 + step / 8).to_le_bytes());
            });
        }
    }
    bytes.truncate(count * PAGE_BYTES);
    bytes
}

fn model(sealed: bool, cache_bytes: u64) -> Model {
    let shape =
        Shape { pages: PAGES, group_pages: 16, cache_bytes, max_blocks: 512, nodes: 1, replicas: 1, sealed };
    let memory = Memory::anonymous(Model::memory_bytes(shape)).unwrap();
    let mut model = Model::create(shape, memory).unwrap();
    for number in 0..512 {
        assert!(model.blocks.add_reserved(NodeId(0), RemoteBlock::numbered(number)));
    }
    model
}

/// Writes everything dirty back, to nowhere.
fn pack(model: &mut Model, key: Option<&PageKey>, staging: &mut [u8], items: &mut Vec<Item>) -> u64 {
    let mut choices = Choices::new(1);
    let mut bytes = 0;
    while let Some(need) = model.next_run_units() {
        if model.blocks.open_block(Stream::New).is_none_or(|(.., left)| left < need) {
            model.blocks.open_next(Stream::New, &mut choices);
        }
        let batch = model.begin_batch(staging, items).unwrap();
        for item in &*items {
            let from = (item.new.offset_units - batch.offset_units) as usize * UNIT_BYTES;
            let place = Place { generation: batch.generation, offset_units: item.new.offset_units };
            record::seal(&mut staging[from..from + item.new.len_bytes as usize], key, place);
        }
        bytes += u64::from(batch.units) * UNIT_BYTES as u64;
        model.finish_batch(&batch, items, true);
    }
    bytes
}

type Coded = Vec<(Codec, Vec<u8>)>;

fn coded(some: &[[u8; PAGE_BYTES]]) -> Coded {
    let mut compressor = Compressor::new();
    let one = |page: &[u8; PAGE_BYTES]| {
        let (codec, payload) = compressor.compress(page);
        (codec, payload.to_vec())
    };
    some.iter().map(one).collect()
}

fn codecs(c: &mut Criterion) {
    let data = pages(BATCH_PAGES as usize);
    let (some, _) = data.as_chunks::<PAGE_BYTES>();
    let coded = coded(some);
    let mut next = (0..some.len()).cycle();
    let mut group = c.benchmark_group("page");
    let mut compressor = Compressor::new();
    group.bench_function("compress, LZ4", |b| {
        b.iter(|| black_box(compressor.compress(&some[next.next().unwrap()])).1.len());
    });
    let mut recompressor = Recompressor::new();
    group.bench_function("compress, zstd 1", |b| {
        b.iter(|| black_box(recompressor.compress(&some[next.next().unwrap()], 4096)).is_some());
    });
    let (mut decompressor, mut page) = (Decompressor::new(), vec![0; PAGE_BYTES]);
    group.bench_function("decompress, LZ4", |b| {
        b.iter(|| {
            let (codec, payload) = &coded[next.next().unwrap()];
            assert!(decompressor.decompress(*codec, payload, &mut page));
        });
    });
    group.finish();
}

fn put_all(model: &mut Model, coded: &Coded) {
    for number in 0..BATCH_PAGES {
        let (codec, payload) = &coded[number as usize];
        model.put(PageNo(number), *codec, payload).unwrap();
    }
}

fn tables(c: &mut Criterion) {
    let data = pages(BATCH_PAGES as usize);
    let coded = coded(data.as_chunks::<PAGE_BYTES>().0);
    let key = PageKey::new(&[1; 32]);
    let (mut staging, mut items) = (vec![0; 1 << 20], Vec::with_capacity(16384));
    let mut group = c.benchmark_group("256 pages");
    group.bench_function("put into the cache", |b| {
        let mut model = model(true, 64 << 20);
        put_all(&mut model, &coded);
        b.iter(|| put_all(&mut model, &coded));
    });
    for (name, key) in [("pack, crc32c", None), ("pack and seal, AES-256-GCM", Some(&key))] {
        group.bench_function(name, |b| {
            let full = || {
                let mut model = model(key.is_some(), 64 << 20);
                put_all(&mut model, &coded);
                model
            };
            b.iter_batched_ref(
                full,
                |model| pack(model, key, &mut staging, &mut items),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    let mut group = c.benchmark_group("page");
    let mut model = model(true, 64 << 20);
    for number in 0..PAGES {
        let (codec, payload) = &coded[(number % BATCH_PAGES) as usize];
        model.put(PageNo(number), *codec, payload).unwrap();
    }
    let mut choices = Choices::new(9);
    group.bench_function("map lookup", |b| {
        b.iter(|| black_box(model.mapping(PageNo(choices.below(PAGES)))));
    });
    group.bench_function("cache hit, payload copied out", |b| {
        b.iter(|| {
            let Mapping::Cached(id) = model.mapping(PageNo(choices.below(PAGES))) else {
                unreachable!("all are cached")
            };
            black_box(model.read_cached(id, &mut staging))
        });
    });
    group.finish();
}

/// Reads of so many bytes of a block, through a queue, and nothing else.
struct Bare {
    links: Links,
    start: Option<LinkStart>,
    block: RemoteBlock,
    len_bytes: u32,
}

impl QueueHandler for Bare {
    fn handle(&mut self, request: &Request, _: &mut Payload<'_>) -> Reply {
        match self.links.read(NodeId(0), self.block, 0, self.len_bytes, request.tag.into()) {
            Ok(()) => Reply::pending(),
            Err(_) => Err(Errno::EIO).into(),
        }
    }

    fn completed(&mut self, token: u64, result: i32, io: &mut dyn QueueIo) {
        self.links.completed(token, result, io);
    }

    fn turn(&mut self, io: &mut dyn QueueIo) {
        if let Some(start) = self.start.take() {
            self.links.open(NodeId(0), start, io).unwrap();
        }
        while let Some(arrival) = self.links.next() {
            let done = arrival.result.map(|_| Done::Whole).map_err(|_| Errno::EIO);
            io.complete(arrival.op as u16, done.into());
        }
        self.links.submit(io);
    }

    fn spin_ns(&self) -> u64 {
        if self.links.in_flight() > 0 { SPIN.as_nanos() as u64 } else { 0 }
    }
}

/// A node with two clients: one that only reads, and a whole device.
struct Wire {
    _node: NodeProcess,
    _client: Box<dyn RemoteNode>,
    _key: Option<TestKey>,
    bare: LocalQueue<Bare>,
    device: Device,
    order: Choices,
    record_bytes: usize,
}

impl Wire {
    fn new(sealed: bool) -> Wire {
        let key = sealed.then(common::key);
        let security = key.as_ref().map_or(Security::Plaintext, |key| key.security.clone());
        let extra: Vec<&str> = key.iter().flat_map(|key| ["--key-file", key.arg()]).collect();
        let node = NodeProcess::start("127.0.0.1:0", "128MiB", &extra);
        let spin = SPIN;
        let config = Config { cache_bytes: 1 << 20, sealed, spin, ..Config::new(PAGES) };
        let mut device = Device::start(&config, &[node.address.as_str()], &security);
        let data = pages(BATCH_PAGES as usize);
        for number in 0..PAGES {
            let from = (number % BATCH_PAGES) as usize * PAGE_BYTES;
            device.write(number, &data[from..from + PAGE_BYTES]).unwrap();
        }
        let coded = coded(data.as_chunks::<PAGE_BYTES>().0);
        let mean = coded.iter().map(|(_, payload)| payload.len()).sum::<usize>() / coded.len();
        let record_bytes = record::record_bytes(mean, sealed).next_multiple_of(UNIT_BYTES);
        let client: Box<dyn RemoteNode> = Box::new(common::secured(&node.address, 99, &security));
        client.connect().unwrap();
        let mut block = [RemoteBlock::default()];
        assert_eq!(client.reserve(common::LANE, &mut block).unwrap().granted, 1);
        client.write_at(common::LANE, block[0], 0, &vec![1; 1 << 20]).unwrap();
        let start = client.open_link(0).unwrap();
        let links = Links::new(1, 8, 0);
        let bare = Bare { links, start: Some(start), block: block[0], len_bytes: record_bytes as u32 };
        let mut bare = LocalQueue::new(bare, 8, PAGE_BYTES).unwrap();
        bare.turn(Duration::ZERO).unwrap();
        Wire { _node: node, _client: client, _key: key, bare, device, order: Choices::new(5), record_bytes }
    }

    fn round_trip(&mut self) {
        self.bare.submit(Op::Read, 0, 8, None).unwrap();
        loop {
            self.bare.turn(Duration::from_millis(100)).unwrap();
            if let Some((_, result)) = self.bare.take_done() {
                result.unwrap();
                return;
            }
        }
    }

    fn swap_in(&mut self) {
        let number = self.order.below(PAGES);
        black_box(self.device.read(number, 1).unwrap());
    }
}

fn median(mut times_ns: Vec<u64>) -> f64 {
    times_ns.sort_unstable();
    times_ns[times_ns.len() / 2] as f64 / 1000.0
}

fn wire(c: &mut Criterion) {
    for sealed in [false, true] {
        let name = if sealed { "sealed and encrypted" } else { "plain" };
        let mut wire = Wire::new(sealed);
        let mut group = c.benchmark_group(format!("over TCP, {name}"));
        group.bench_function("link round trip, bytes of one record", |b| b.iter(|| wire.round_trip()));
        group.bench_function("swap-in", |b| b.iter(|| wire.swap_in()));
        group.finish();
        let data = pages(BATCH_PAGES as usize);
        let coded = coded(data.as_chunks::<PAGE_BYTES>().0);
        let (mut decompressor, mut page) = (Decompressor::new(), vec![0; PAGE_BYTES]);
        let mut times: [Vec<u64>; 3] = Default::default();
        let misses = |wire: &Wire| wire.device.engine.report().counters.remote_reads;
        let mut seen = misses(&wire);
        while times[0].len() < 5_000 {
            let start = Instant::now();
            wire.round_trip();
            times[1].push(start.elapsed().as_nanos() as u64);
            let (codec, payload) = &coded[times[1].len() % coded.len()];
            let start = Instant::now();
            assert!(decompressor.decompress(*codec, payload, &mut page));
            times[2].push(start.elapsed().as_nanos() as u64);
            let start = Instant::now();
            wire.swap_in();
            let took = start.elapsed().as_nanos() as u64;
            // A hit in the cache is no swap-in from the node.
            let now = misses(&wire);
            if now > std::mem::replace(&mut seen, now) {
                times[0].push(took);
            }
        }
        let [swap_in, round_trip, decompress] = times.map(median);
        println!(
            "swap-in, {name}: {swap_in:.1} us; round trip ({} bytes) {round_trip:.1} us + decompress \
             {decompress:.2} us; ratio {:.2}",
            wire.record_bytes,
            swap_in / (round_trip + decompress)
        );
        wire.device.queue.finish().unwrap();
        wire.device.engine.stop();
    }
}

criterion_group!(benches, codecs, tables, wire);
criterion_main!(benches);
