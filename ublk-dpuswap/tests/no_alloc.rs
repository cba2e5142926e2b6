//! The rule that keeps a swap device from hanging its machine: no allocation on the paths of swap-out, write-back,
//! cleaning, discard and swap-in, on any thread of the process. The nodes are processes of their own.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{NodeProcess, fill, remotes};
use ublk_dpuswap::engine::{Config, Engine};
use ublk_dpuswap::remote::Lane;
use ublk_dpuswap::units::{Choices, PAGE_BYTES, PageNo};

struct Counting;

static ARMED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);

fn count() {
    if ARMED.load(Ordering::Relaxed) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches only atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(ptr, layout, new) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn swapping_allocates_nothing_on_any_thread() {
    let nodes =
        [NodeProcess::start("127.0.0.1:0", "12MiB", &[]), NodeProcess::start("127.0.0.1:0", "12MiB", &[])];
    let addresses = [nodes[0].address.as_str(), nodes[1].address.as_str()];
    // The keeper may allocate; an hour between heartbeats keeps it out of the count.
    let config = Config { cache_bytes: 1 << 20, heartbeat: Duration::from_secs(3600), ..Config::new(16384) };
    let engine = Engine::open(config, remotes(&addresses, 1, Lane::count(1), 5000)).unwrap();
    let mut queue = engine.queue(0);
    let mut data = vec![0; 8 * PAGE_BYTES];
    let mut order = Choices::new(5);
    let mut round = |rounds: u32, queue: &mut _| {
        let mut failed = 0;
        for round in 0..rounds {
            let first = order.below(600) * 8;
            data.chunks_mut(PAGE_BYTES).zip(round..).for_each(|(page, seed)| fill(page, seed));
            failed += u32::from(engine.swap_out(queue, PageNo(first), &data).is_err());
            if round % 3 == 0 {
                failed += u32::from(engine.swap_in(queue, PageNo(order.below(600) * 8), &mut data).is_err());
            }
            if round % 64 == 0 {
                failed += u32::from(engine.discard(PageNo(order.below(600) * 8), 16).is_err());
            }
        }
        failed
    };
    let mut watched = |rounds: u32, queue: &mut _| {
        // A thread's start allocates; the pages of the first rounds are not watched.
        assert_eq!(round(100, queue), 0);
        ARMED.store(true, Ordering::SeqCst);
        let failed = round(rounds, queue);
        ARMED.store(false, Ordering::SeqCst);
        assert_eq!(failed, 0);
        assert_eq!(COUNT.load(Ordering::SeqCst), 0, "allocations while swapping");
    };
    // First the queue writes back and cleans by itself, then the flusher does.
    watched(1000, &mut queue);
    assert!(engine.report().counters.waited_for_room > 100);
    engine.start().unwrap();
    watched(2000, &mut queue);
    let report = engine.report();
    let counted = &report.counters;
    assert!(counted.blocks_cleaned > 0 && counted.misses > 0, "everything was on the path: {counted:?}");
}
