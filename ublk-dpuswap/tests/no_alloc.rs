//! The rule that keeps a swap device from hanging its machine: no allocation on the paths of swap-out, write-back,
//! cleaning, discard and swap-in. The threads of these paths say so themselves, and are counted. The nodes are processes of
//! their own.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
#[path = "common/device.rs"]
mod device;

use common::{NodeProcess, fill, key};
use device::Device;
use ublk_dpuswap::alloc;
use ublk_dpuswap::engine::Config;
use ublk_dpuswap::units::{Choices, PAGE_BYTES};

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

#[test]
fn swapping_allocates_nothing_on_its_threads() {
    let key = key();
    let nodes = [(); 2].map(|()| NodeProcess::start("127.0.0.1:0", "14MiB", &["--key-file", key.arg()]));
    let names: Vec<&str> = nodes.iter().map(|node| node.address.as_str()).collect();
    let config = Config { cache_bytes: 1 << 20, recompress: true, ..Config::new(16384) };
    let mut data = vec![0; 8 * PAGE_BYTES];
    // Half of the cache at once: such a write waits for room.
    let mut large = vec![0; 128 * PAGE_BYTES];
    large.chunks_mut(PAGE_BYTES).zip(0..).for_each(|(page, seed)| fill(page, 3 * seed));
    let mut order = Choices::new(5);
    // From here on this thread is a queue's, and counted.
    let mut device = Device::start(&config, &names, &key.security);
    for round in 0..3000u32 {
        let first = order.below(600) * 8;
        data.chunks_mut(PAGE_BYTES).zip(round..).for_each(|(page, seed)| fill(page, seed));
        // The test's own doings are not on the path, and share its thread.
        device.write(first, &data).unwrap();
        if round % 3 == 0 {
            device.read(order.below(600) * 8, 8).unwrap();
        }
        if round % 64 == 0 {
            device.write(order.below(500) * 8, &large).unwrap();
            device.write(order.below(500) * 8, &large).unwrap();
            device.discard(order.below(600) * 8, 16);
        }
    }
    let allocations = alloc::counted();
    let report = device.engine.report();
    let counted = &report.counters;
    assert!(counted.blocks_cleaned > 0 && counted.misses > 0, "everything was on the path: {counted:?}");
    assert!(counted.waited_for_room > 0, "{counted:?}");
    assert_eq!(allocations, 0, "allocations while swapping");
}
