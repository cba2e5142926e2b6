//! How much memory the model's tables take.
//!
//!   cargo bench -p ublk-dpuswap --bench model [-- --json]
//!
//! What a page costs in time: `--bench page`.

use ublk_dpuswap::model::{Model, Shape};

fn main() {
    let json = std::env::args().any(|arg| arg == "--json");
    let mut rows: Vec<(&str, f64)> = Vec::new();
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
