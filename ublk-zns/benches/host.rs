//! What the device costs without a kernel: the pure state machine, and the whole handler of a request.
//!
//!     cargo bench -p ublk-zns --bench host [-- --json]
//!
//! The state machine does random commands, whose results are compared with the reference's afterwards. The handler does
//! 4 KiB requests on a device in memory; the same copy alone is measured beside it, in turn, and subtracted.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/reference/mod.rs"]
#[allow(dead_code)]
mod reference;

use reference::{Cmd, No, Reference, drive};
use std::{hint::black_box, sync::Arc, time::Instant};
use ublk_target::{Op, Payload, QueueHandler, Request};
use ublk_zns::{
    Geometry, Sector, ZnsConfig, ZoneId,
    engine::DeviceOptions,
    front::ZnsQueue,
    media::{MediaPlace, SlotShape},
    rng::SplitMix64,
    ssd::{Models, Ssd},
    zones::Zones,
};

const ROUNDS: usize = 9;

fn median(mut samples: Vec<f64>) -> (f64, f64, f64) {
    samples.sort_by(f64::total_cmp);
    (samples[samples.len() / 2], samples[0], samples[samples.len() - 1])
}

fn apply(zones: &mut Zones, cmd: Cmd) -> Result<u64, No> {
    let id = |n: usize| ZoneId(n as u32);
    let done = match cmd {
        Cmd::Write { zone, at, len } => {
            zones.write(Sector(zone as u64 * drive::ZONE + at), len).map(|e| e.sector.0 % drive::ZONE)
        }
        Cmd::Append { zone, len } => {
            zones.append(Sector(zone as u64 * drive::ZONE), len).map(|e| e.sector.0 % drive::ZONE)
        }
        Cmd::Open(n) => zones.open(id(n)).map(|_| 0),
        Cmd::Close(n) => zones.close(id(n)).map(|_| 0),
        Cmd::Finish(n) => zones.finish(id(n)).map(|_| 0),
        Cmd::Reset(n) => zones.reset(id(n)).map(|_| 0),
        _ => Ok(0),
    };
    done.map_err(|error| drive::no(&error))
}

/// Random commands that mostly succeed, drawn with the reference at hand and kept with its answers.
fn commands(reference: &mut Reference, count: usize) -> (Vec<Cmd>, Vec<Result<u64, No>>) {
    let mut rng = SplitMix64::new(1);
    let mut one = || {
        let zone = rng.below(reference.zones.len() as u64) as usize;
        let len = (1 + rng.below(3)) * drive::BLOCK;
        let cmd = match rng.below(100) {
            0..=54 => Cmd::Write { zone, at: reference.zones[zone].data, len },
            55..=74 => Cmd::Append { zone, len },
            75..=79 => Cmd::Open(zone),
            80..=84 => Cmd::Close(zone),
            85..=88 => Cmd::Finish(zone),
            _ => Cmd::Reset(zone),
        };
        (cmd, reference.run(cmd))
    };
    (0..count).map(|_| one()).unzip()
}

/// Million operations per second through the pure state machine.
fn state_machine() -> (f64, f64, f64) {
    let shape = drive::Shape { zones: 64, conv: 2, capacity: 48, open: 12, active: 14 };
    let mut reference = drive::reference(&shape);
    let (commands, expected) = commands(&mut reference, 1 << 20);
    let geometry = Geometry::new(&drive::config(&shape)).unwrap();
    let mut found = Vec::with_capacity(commands.len());
    let samples = (0..ROUNDS).map(|_| {
        let mut zones = Zones::new(geometry.clone());
        found.clear();
        let begun = Instant::now();
        for cmd in &commands {
            found.push(apply(&mut zones, *cmd));
        }
        let passed = begun.elapsed();
        assert!(found == expected, "the state machine and the reference disagree");
        commands.len() as f64 / passed.as_secs_f64() / 1e6
    });
    median(samples.collect())
}

const DEVICE_BYTES: u64 = 64 << 20;
const BLOCKS: u64 = DEVICE_BYTES / 4096;
const CONVENTIONAL: u32 = (DEVICE_BYTES >> 22) as u32;

fn queue(conventional_zones: u32) -> ZnsQueue {
    let config = ZnsConfig {
        // At least one zone must be sequential.
        size_bytes: DEVICE_BYTES + (4 << 20),
        zone_size_bytes: 4 << 20,
        conventional_zones,
        max_open_zones: Some(0),
        max_active_zones: Some(0),
        ..ZnsConfig::default()
    };
    let options = DeviceOptions {
        slots: SlotShape { queues: 1, depth: 128 },
        ..DeviceOptions::new(config, MediaPlace::Anonymous)
    };
    ZnsQueue::new(Arc::new(Ssd::create(&options, Models::default()).unwrap()), 0)
}

fn request(op: Op, block: u64) -> Request {
    Request { op, sector: block * 8, sectors: 8, fua: false, tag: (block % 128) as u16, fetched_ns: 0 }
}

/// ns per 4 KiB request of one pass over the device, in the order of `blocks`.
fn pass(queue: &mut ZnsQueue, op: Op, blocks: &[u64], buffer: &mut [u8]) -> f64 {
    let begun = Instant::now();
    for block in blocks {
        let mut payload = Payload::Buffer(buffer);
        black_box(queue.handle(&request(op, *block), &mut payload)).outcome.unwrap();
    }
    begun.elapsed().as_nanos() as f64 / blocks.len() as f64
}

/// ns per 4 KiB copied between a buffer and memory of the device's size, in the same order.
fn copies(memory: &mut [u8], write: bool, blocks: &[u64], buffer: &mut [u8]) -> f64 {
    let begun = Instant::now();
    for block in blocks {
        let at = (*block * 4096) as usize;
        let there = &mut memory[at..at + 4096];
        if write {
            there.copy_from_slice(buffer);
        } else {
            buffer.copy_from_slice(there);
        }
        black_box(&mut *buffer);
    }
    begun.elapsed().as_nanos() as f64 / blocks.len() as f64
}

type Figures = (f64, f64, f64);

fn reads() -> (Figures, Figures) {
    let (mut queue, mut buffer) = (queue(0), vec![0x5a; 4096]);
    let mut memory = vec![1u8; DEVICE_BYTES as usize];
    let mut blocks: Vec<u64> = (0..BLOCKS).collect();
    pass(&mut queue, Op::Write, &blocks, &mut buffer);
    let mut rng = SplitMix64::new(2);
    (1..blocks.len()).rev().for_each(|n| blocks.swap(n, rng.below(n as u64 + 1) as usize));
    let measured = (0..ROUNDS).map(|_| {
        let whole = pass(&mut queue, Op::Read, &blocks, &mut buffer);
        (whole, copies(&mut memory, false, &blocks, &mut buffer))
    });
    let (whole, copy) = measured.unzip();
    (median(whole), median(copy))
}

/// Writes over pages that are there: into fresh ones would measure the kernel's page faults. A conventional zone takes the
/// same way through the handler as an open one.
fn writes() -> (Figures, Figures) {
    let (mut queue, mut buffer) = (queue(CONVENTIONAL), vec![0x5a; 4096]);
    let mut memory = vec![1u8; DEVICE_BYTES as usize];
    let blocks: Vec<u64> = (0..BLOCKS).collect();
    pass(&mut queue, Op::Write, &blocks, &mut buffer);
    let measured = (0..ROUNDS).map(|_| {
        let whole = pass(&mut queue, Op::Write, &blocks, &mut buffer);
        (whole, copies(&mut memory, true, &blocks, &mut buffer))
    });
    let (whole, copy) = measured.unzip();
    (median(whole), median(copy))
}

fn main() {
    let machine = state_machine();
    let (read, read_copy) = reads();
    let (write, write_copy) = writes();
    if std::env::args().any(|arg| arg == "--json") {
        let figures =
            |(median, low, high): Figures| serde_json::json!({"median": median, "min": low, "max": high});
        let report = serde_json::json!({
            "state_machine_mops": figures(machine),
            "handler_read_4k_ns": figures(read),
            "copy_read_4k_ns": figures(read_copy),
            "handler_write_4k_ns": figures(write),
            "copy_write_4k_ns": figures(write_copy),
        });
        println!("{report}");
        return;
    }
    let show = |name: &str, (median, low, high): Figures, unit: &str| {
        println!("{name:<44} {median:>9.1} {unit}   ({low:.1} to {high:.1})");
    };
    show("state machine, random commands", machine, "million/s");
    show("handler, 4 KiB random read", read, "ns");
    show("  the copy alone", read_copy, "ns");
    println!("{:<44} {:>9.1} ns", "  the handler without the copy", read.0 - read_copy.0);
    show("handler, 4 KiB write", write, "ns");
    show("  the copy alone", write_copy, "ns");
    println!("{:<44} {:>9.1} ns", "  the handler without the copy", write.0 - write_copy.0);
}
