//! What the model costs per page, and how much memory its tables take.
//!
//! `cargo bench --bench model [-- --json]`
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use ublk_dpuswap::codec::{Compressor, Decompressor, Recompressor};
use ublk_dpuswap::memory::Memory;
use ublk_dpuswap::model::{Item, Mapping, Model, Shape, Stream};
use ublk_dpuswap::record;
use ublk_dpuswap::seal::{PageKey, Place};
use ublk_dpuswap::units::{Choices, NodeId, PAGE_BYTES, PageNo, RemoteBlock, UNIT_BYTES};

const PAGES: u32 = 1 << 14;

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

/// The best of five runs of `run`, in ns per one of `count`.
fn ns_per(count: usize, mut run: impl FnMut()) -> f64 {
    let best = (0..5).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_nanos() as f64
    });
    best.fold(f64::INFINITY, f64::min) / count as f64
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

fn main() {
    let json = std::env::args().any(|arg| arg == "--json");
    let data = pages(256);
    let (some, _) = data.as_chunks::<PAGE_BYTES>();
    let (mut compressor, mut recompressor, mut decompressor) =
        (Compressor::new(), Recompressor::new(), Decompressor::new());
    let coded: Vec<_> = some
        .iter()
        .map(|page| {
            let (codec, payload) = compressor.compress(page);
            (codec, payload.to_vec())
        })
        .collect();
    let payload_bytes: usize = coded.iter().map(|(_, payload)| payload.len()).sum();
    let mut rows: Vec<(&str, f64)> = Vec::new();
    rows.push(("bytes: LZ4 payload, mean", payload_bytes as f64 / some.len() as f64));
    let time = ns_per(some.len(), || {
        for page in some {
            black_box(compressor.compress(page));
        }
    });
    rows.push(("ns: compress (LZ4)", time));
    let time = ns_per(some.len(), || {
        for page in some {
            black_box(recompressor.compress(page, 4096));
        }
    });
    rows.push(("ns: compress (zstd 1)", time));
    let mut page = vec![0; PAGE_BYTES];
    let time = ns_per(some.len(), || {
        coded
            .iter()
            .for_each(|(codec, payload)| assert!(decompressor.decompress(*codec, payload, &mut page)));
    });
    rows.push(("ns: decompress (LZ4)", time));
    let key = PageKey::new(&[1; 32]);
    let (mut staging, mut items) = (vec![0; 1 << 20], Vec::with_capacity(16384));
    for sealed in [false, true] {
        let key = sealed.then_some(&key);
        let (mut insert, mut packed) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..5 {
            let mut model = model(sealed, 64 << 20);
            let put = |model: &mut Model| {
                for number in 0..PAGES {
                    let (codec, payload) = &coded[number as usize % coded.len()];
                    model.put(PageNo(number), *codec, payload).unwrap();
                }
            };
            put(&mut model);
            (0..PAGES).for_each(|number| model.discard(PageNo(number)));
            let start = Instant::now();
            put(&mut model);
            insert = insert.min(start.elapsed().as_nanos() as f64 / f64::from(PAGES));
            let start = Instant::now();
            black_box(pack(&mut model, key, &mut staging, &mut items));
            packed = packed.min(start.elapsed().as_nanos() as f64 / f64::from(PAGES));
            if !sealed {
                continue;
            }
            let mut choices = Choices::new(9);
            let numbers: Vec<PageNo> = (0..PAGES).map(|_| PageNo(choices.below(PAGES))).collect();
            let lookup = ns_per(numbers.len(), || {
                for page in &numbers {
                    black_box(model.mapping(*page));
                }
            });
            let hit = ns_per(numbers.len(), || {
                for page in &numbers {
                    let Mapping::Cached(id) = model.mapping(*page) else { unreachable!("all are cached") };
                    black_box(model.read_cached(id, &mut staging));
                }
            });
            rows.retain(|(name, _)| !name.starts_with("ns: map") && !name.starts_with("ns: cache hit"));
            rows.push(("ns: map lookup", lookup));
            rows.push(("ns: cache hit, payload copied out", hit));
        }
        rows.push((
            if sealed { "ns: put into the cache (sealed)" } else { "ns: put into the cache" },
            insert,
        ));
        rows.push((if sealed { "ns: pack and seal (AES-256-GCM)" } else { "ns: pack (crc32c)" }, packed));
    }
    let shape = |pages, cache_bytes, max_blocks| Shape {
        pages,
        group_pages: 16,
        cache_bytes,
        max_blocks,
        nodes: 8,
        replicas: 1,
        sealed: true,
    };
    let bytes = |pages, cache, blocks| Model::memory_bytes(shape(pages, cache, blocks)) as f64;
    let base = bytes(64, 8192, 1);
    rows.push(("bytes that survive: page table per GiB of device", bytes(64 + (1 << 18), 8192, 1) - base));
    rows.push(("bytes that survive: block table per GiB of remote memory", bytes(64, 8192, 1025) - base));
    rows.push((
        "bytes that survive: cache, beside the arena, per GiB",
        bytes(64, 8192 + (1 << 30), 1) - base - (1u64 << 30) as f64,
    ));
    rows.push(("bytes in all: group queue per GiB of device", (1 << 18) as f64 / 16.0 * 4.0));
    if json {
        let rows: Vec<_> =
            rows.iter().map(|(name, value)| serde_json::json!({ "name": name, "value": value })).collect();
        println!("{}", serde_json::Value::from(rows));
    } else {
        rows.iter().for_each(|(name, value)| println!("{name:<58} {value:>12.1}"));
    }
}
