//! Counters, and the report that `stat` prints. Counting is one relaxed atomic addition; reporting may allocate.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::{Engine, Shared};
use crate::units::{BLOCK_BYTES, NodeId, PAGE_BYTES};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What has happened since the start. All values only grow.
        #[derive(Debug)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
            nodes: Vec<NodeCounters>,
        }

        /// A copy of the [`Counters`].
        #[derive(Debug, Clone, Default, Serialize, Deserialize)]
        pub struct Counted {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(super) fn new(nodes: usize) -> Self {
                Self { $($name: AtomicU64::new(0),)* nodes: (0..nodes).map(|_| NodeCounters::default()).collect() }
            }

            fn copy(&self) -> Counted {
                Counted { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Pages the kernel wrote.
    pages_written,
    /// Pages the kernel read.
    pages_read,
    /// Pages the kernel discarded.
    pages_discarded,
    /// Written pages that were one repeated word.
    same_filled_written,
    /// Written pages that LZ4 could not shorten by a quarter.
    raw_written,
    /// Bytes of written pages after compression (same-filled ones count nothing).
    payload_bytes_written,
    /// Pages read that were never written, or discarded.
    reads_absent,
    /// Pages read that were one repeated word.
    reads_same_filled,
    /// Cache hits on pages not yet written back.
    hits_dirty,
    /// Cache hits on pages written back and still here.
    hits_written,
    /// Cache hits on pages that a read had brought in.
    hits_filled,
    /// Cache hits on pages that a read had brought along for another.
    hits_ahead,
    /// Pages that had to be read from a node.
    misses,
    /// Reads sent to nodes; one may bring several pages.
    remote_reads,
    /// Pages that a read put into the cache.
    fills,
    /// Of these, pages that nobody had asked for yet.
    fills_ahead,
    /// Reads asked of another copy because the first was slow.
    hedges,
    /// Of these, those that were answered first.
    hedges_won,
    /// Writes that found the cache full of dirty pages.
    waited_for_room,
    /// Runs written back.
    batches,
    /// Bytes written back, headers and padding included.
    bytes_written_back,
    /// Bytes moved by the cleaner.
    bytes_moved,
    /// Blocks emptied by the cleaner.
    blocks_cleaned,
    /// Pages that the cleaner compressed better.
    pages_recompressed,
    /// Blocks copied to another node: off one that wants its memory back, or because a copy was missing.
    blocks_copied,
    /// Bytes of these copies.
    bytes_copied,
    /// Empty blocks given back to nodes.
    blocks_released,
    /// Blocks that a node said are not ours: dropped from the books.
    blocks_disowned,
    /// Damaged records met, by reads and by the cleaner.
    bad_records,
    /// Requests to write that failed.
    write_errors,
    /// Requests to read that failed.
    read_errors,
}

#[derive(Debug, Default)]
struct NodeCounters {
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
    failed_reads: AtomicU64,
    logged_reads: AtomicU64,
}

impl Counters {
    fn node(&self, node: NodeId) -> Option<&NodeCounters> {
        self.nodes.get(usize::from(node.0))
    }

    pub(super) fn count_written(&self, node: NodeId, bytes: usize) {
        if let Some(node) = self.node(node) {
            node.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    pub(super) fn count_read(&self, node: NodeId, bytes: usize) {
        if let Some(node) = self.node(node) {
            node.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    pub(super) fn count_failed_read(&self, node: NodeId) {
        if let Some(node) = self.node(node) {
            node.failed_reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Failed reads since the last call.
    pub(super) fn take_failed_reads(&self, node: NodeId) -> u64 {
        let Some(node) = self.node(node) else { return 0 };
        let all = node.failed_reads.load(Ordering::Relaxed);
        all - node.logged_reads.swap(all, Ordering::Relaxed)
    }
}

/// The state of one node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its address.
    pub node: String,
    /// `up`, `down`, or `leaving` while everything moves off it.
    pub state: String,
    /// Blocks it has.
    pub capacity_blocks: u32,
    /// Blocks it can still lend, when last heard of.
    pub free_blocks: u32,
    /// Blocks we hold.
    pub held_blocks: u32,
    /// Blocks it wants back.
    pub reclaim_blocks: u32,
    /// Bytes written to it.
    pub bytes_out: u64,
    /// Bytes read from it.
    pub bytes_in: u64,
    /// Times it went down.
    pub failures: u64,
    /// Reads that failed because of it.
    pub failed_reads: u64,
}

/// What `stat` reports.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Counters since the start.
    pub counters: Counted,
    /// Bytes of the device.
    pub size_bytes: u64,
    /// Bytes of pages with content, as the kernel sees them.
    pub logical_bytes: u64,
    /// Of these, bytes of same-filled pages.
    pub same_filled_bytes: u64,
    /// Of these, bytes of pages kept raw.
    pub raw_bytes: u64,
    /// Bytes of content after compression.
    pub payload_bytes: u64,
    /// `logical_bytes` without same-filled pages, by `payload_bytes`.
    pub compression_ratio: f64,
    /// Bytes of live records in remote blocks, headers and padding included.
    pub remote_live_bytes: u64,
    /// Bytes of dead records in remote blocks.
    pub remote_dead_bytes: u64,
    /// Bytes of remote blocks held, empty ones included.
    pub remote_held_bytes: u64,
    /// Blocks lost with their nodes that still have pages.
    pub lost_blocks: u32,
    /// Blocks with fewer living copies than wanted.
    pub thin_blocks: u32,
    /// Copies wanted of every block.
    pub replicas: u8,
    /// Bytes of remote blocks of which a page may be read, all copies counted, by `logical_bytes` without same-filled pages.
    pub remote_ratio: f64,
    /// Pages brought along by reads that were used before they left the cache.
    pub ahead_used: u64,
    /// Those that were not.
    pub ahead_wasted: u64,
    /// Allocations on the path of swap, which must stay 0.
    pub io_path_allocations: u64,
    /// Bytes of the cache's arena.
    pub cache_bytes: u64,
    /// Bytes of it in use.
    pub cache_used_bytes: u64,
    /// Bytes of it that hold dirty pages.
    pub cache_dirty_bytes: u64,
    /// Bytes sent to nodes by write-back, cleaning and copying, by those of write-back alone (each copy of a run counts once).
    pub write_amplification: f64,
    /// The nodes.
    pub nodes: Vec<NodeReport>,
}

fn ratio(over: u64, under: u64) -> f64 {
    if under == 0 { 1.0 } else { over as f64 / under as f64 }
}

impl Engine {
    /// The report as of now.
    pub fn report(&self) -> Report {
        self.shared.report()
    }
}

impl Shared {
    fn report(&self) -> Report {
        let counters = self.counters.copy();
        // Swap waits for the lock that is held from here on, and so must not wait for memory: what allocates comes first.
        let named = self.nodes.iter().filter_map(std::sync::OnceLock::get);
        let mut nodes: Vec<NodeReport> = named
            .map(|node| NodeReport {
                node: node.name().to_owned(),
                state: String::with_capacity("leaving".len()),
                ..NodeReport::default()
            })
            .collect();
        let state = self.state();
        let (usage, totals) = (state.model.usage(), state.model.blocks.totals());
        let cache = state.model.cache();
        let slot = crate::cache::SLOT_BYTES as u64;
        let page = PAGE_BYTES as u64;
        let (held, dirty, used) = (state.model.blocks.nodes(), cache.dirty_slots(), cache.used_slots());
        let known = held.zip(&state.nodes).zip(&self.counters.nodes);
        for (report, (((_, blocks), node), counted)) in nodes.iter_mut().zip(known) {
            report.state.push_str(match (node.up, node.leaving) {
                (false, _) => "down",
                (true, false) => "up",
                (true, true) => "leaving",
            });
            report.reclaim_blocks = node.reclaim;
            report.capacity_blocks = node.info.capacity_blocks;
            report.free_blocks = blocks.remote_free;
            report.held_blocks = blocks.held;
            report.bytes_out = counted.bytes_out.load(Ordering::Relaxed);
            report.bytes_in = counted.bytes_in.load(Ordering::Relaxed);
            report.failures = node.failures;
            report.failed_reads = counted.failed_reads.load(Ordering::Relaxed);
        }
        Report {
            size_bytes: u64::from(state.model.pages()) * page,
            logical_bytes: usage.stored_pages * page,
            same_filled_bytes: usage.same_filled_pages * page,
            raw_bytes: usage.raw_pages * page,
            payload_bytes: usage.payload_bytes,
            compression_ratio: ratio(
                (usage.stored_pages - usage.same_filled_pages) * page,
                usage.payload_bytes,
            ),
            remote_live_bytes: totals.live_bytes,
            remote_dead_bytes: totals.used_bytes - totals.live_bytes.min(totals.used_bytes),
            remote_held_bytes: u64::from(totals.held) * BLOCK_BYTES as u64,
            lost_blocks: totals.lost,
            thin_blocks: totals.thin,
            replicas: self.config.replicas,
            remote_ratio: ratio(
                (usage.stored_pages - usage.same_filled_pages) * page,
                u64::from(totals.copies) * BLOCK_BYTES as u64,
            ),
            ahead_used: cache.ahead_used,
            ahead_wasted: cache.ahead_wasted,
            io_path_allocations: crate::alloc::counted(),
            cache_bytes: u64::from(cache.slots()) * slot,
            cache_used_bytes: u64::from(used) * slot,
            cache_dirty_bytes: u64::from(dirty) * slot,
            write_amplification: ratio(
                counters.bytes_written_back + counters.bytes_moved + counters.bytes_copied,
                counters.bytes_written_back,
            ),
            nodes,
            counters,
        }
    }
}
