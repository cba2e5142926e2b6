//! Swap-in and swap-out through the whole engine, without a kernel: a queue in this thread, nodes in this process.
//!
//!   cargo bench -p ublk-dpuswap --bench engine
//!
//! Pages are half random bytes, half zeros (LZ4 makes about half of them). The cache is a sixth of the content.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use ublk_dpuswap::engine::{Config, Engine, MAX_REQUEST_PAGES, QueueWorker, memory_bytes};
use ublk_dpuswap::link::LinkKind;
use ublk_dpuswap::memory::Memory;
use ublk_dpuswap::remote::{RemoteNode, mem::MemNode};
use ublk_dpuswap::units::{Choices, PAGE_BYTES};
use ublk_target::Op;
use ublk_target::local::LocalQueue;

const PAGES: u32 = 24 << 10;
const SECONDS: f64 = 2.0;

fn page(seed: u32, out: &mut [u8]) {
    let mut random = Choices::new(u64::from(seed));
    out.fill(0);
    out.chunks_exact_mut(4)
        .take(512)
        .for_each(|word| word.copy_from_slice(&random.below(u32::MAX).to_le_bytes()));
}

struct Bench {
    engine: Arc<Engine>,
    queue: LocalQueue<QueueWorker>,
    order: Choices,
}

impl Bench {
    fn new(config: Config) -> Bench {
        let nodes: Vec<Arc<dyn RemoteNode>> =
            (0..2).map(|i| Arc::new(MemNode::new(&format!("mem:{i}"), 200)) as Arc<dyn RemoteNode>).collect();
        let memory = Memory::anonymous(memory_bytes(&config)).unwrap();
        let engine = Arc::new(Engine::open(config, memory, 1, [1; 32], nodes).unwrap());
        engine.start().unwrap();
        let queue = LocalQueue::new(engine.queue(0, 64), 64, MAX_REQUEST_PAGES * PAGE_BYTES).unwrap();
        let mut bench = Bench { engine, queue, order: Choices::new(3) };
        let mut data = vec![0; PAGE_BYTES];
        for number in 0..PAGES {
            page(number, &mut data);
            bench.one(Op::Write, number, Some(&data));
        }
        bench
    }

    fn one(&mut self, op: Op, number: u32, data: Option<&[u8]>) {
        self.queue.submit(op, u64::from(number) * 8, 8, data).unwrap();
        while self.queue.take_done().is_none() {
            self.queue.turn(Duration::from_millis(100)).unwrap();
        }
    }

    /// Random requests, so many at once; gives requests per second and the sorted times of each, in ns.
    fn run(&mut self, op: Op, depth: usize) -> (f64, Vec<u64>) {
        let (start, mut times) = (Instant::now(), Vec::new());
        let mut begun = [start; 64];
        let (mut under_way, mut data) = (0, vec![0; PAGE_BYTES]);
        page(7, &mut data);
        while start.elapsed().as_secs_f64() < SECONDS || under_way > 0 {
            while under_way < depth && start.elapsed().as_secs_f64() < SECONDS {
                let number = self.order.below(PAGES);
                let tag = self.queue.submit(op, u64::from(number) * 8, 8, Some(&data)).unwrap();
                begun[usize::from(tag)] = Instant::now();
                under_way += 1;
            }
            self.queue.turn(Duration::from_millis(100)).unwrap();
            while let Some((tag, result)) = self.queue.take_done() {
                result.unwrap();
                times.push(begun[usize::from(tag)].elapsed().as_nanos() as u64);
                under_way -= 1;
            }
        }
        let rate = times.len() as f64 / start.elapsed().as_secs_f64();
        times.sort_unstable();
        (rate, times)
    }
}

fn main() {
    println!("{:<44} {:>9} {:>9} {:>9}", "4 KiB pages, us", "per s", "p50", "p99");
    for (name, link) in [("no link", LinkKind::None), ("rdma", LinkKind::Rdma)] {
        for sealed in [false, true] {
            let spin = Duration::from_micros(50);
            let config = Config { cache_bytes: 16 << 20, sealed, link, spin, ..Config::new(PAGES) };
            let mut bench = Bench::new(config);
            for (op, depth) in [(Op::Read, 1), (Op::Read, 32), (Op::Write, 1), (Op::Write, 32)] {
                let (rate, times) = bench.run(op, depth);
                let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
                let what = format!(
                    "{name}, {}, random {}, {depth} at once",
                    if sealed { "sealed" } else { "plain" },
                    if op == Op::Read { "read" } else { "write" }
                );
                println!("{what:<44} {rate:>9.0} {:>9.1} {:>9.1}", at(0.5), at(0.99));
            }
            let report = bench.engine.report();
            let c = &report.counters;
            println!(
                "  hits {} ahead {} misses {} remote reads {}; waited {} batches {} cleaned {} amplification {:.2}",
                c.hits_dirty + c.hits_written + c.hits_filled,
                c.hits_ahead,
                c.misses,
                c.remote_reads,
                c.waited_for_room,
                c.batches,
                c.blocks_cleaned,
                report.write_amplification
            );
        }
    }
}
