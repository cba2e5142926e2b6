//! How an engine is to be, and what of it can be wrong.

use std::time::Duration;

use crate::error::Error;
use crate::link::LinkKind;
use crate::lock::Safeguards;
use crate::record::record_bytes;
use crate::units::{MAX_REPLICAS, PAGE_BYTES, UNIT_BYTES, UNITS_PER_BLOCK, units_of};

/// Most pages of a block group: its records must fit in one block even when nothing compresses.
pub const MAX_GROUP_PAGES: u32 = 128;
/// Most pages of a device (4 TiB): its tables take 8.4 GiB then.
pub const MAX_PAGES: u32 = 1 << 30;
/// Most bytes of cache (64 GiB).
pub const MAX_CACHE_BYTES: u64 = 64 << 30;

/// How an engine is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// Pages of the device.
    pub pages: u32,
    /// Pages per block group: a power of two up to [`MAX_GROUP_PAGES`], so that it divides the kernel's swap clusters of 512
    /// pages.
    pub group_pages: u32,
    /// Bytes of cache.
    pub cache_bytes: u64,
    /// Queues, each with its own connections.
    pub queues: u16,
    /// Copies of every block, each on another node: 1 to 3.
    pub replicas: u8,
    /// Whether pages are encrypted and authenticated before they leave.
    pub sealed: bool,
    /// Whether pages that the cleaner moves are compressed again, with zstd.
    pub recompress: bool,
    /// Whether a remote read brings the neighbours in the group along while that pays.
    pub read_ahead: bool,
    /// Seed of the placement's choices.
    pub seed: u64,
    /// Write-back starts when this share of the cache is dirty, in thousandths.
    pub flush_start_permille: u32,
    /// Write-back stops when no more than this is.
    pub flush_stop_permille: u32,
    /// Time between heartbeats, and between attempts to reconnect.
    pub heartbeat: Duration,
    /// The longest that a read waits for one copy before it asks another.
    pub hedge: Duration,
    /// A node that leaves a request unanswered for this long is down.
    pub node_timeout: Duration,
    /// How long a swap-in waits for the only node that has a page to come back, before it is an error. Counted from when the
    /// node went down; at most 2 s when it refuses connections.
    pub node_patience: Duration,
    /// How long a swap-out waits for room in the cache, before it is an error.
    pub room_patience: Duration,
    /// How long it waits when there is no node with room: one may be about to come back.
    pub no_room_patience: Duration,
    /// How long a queue polls for answers before it sleeps.
    pub spin: Duration,
    /// A link that the nodes are to seem to be behind: their answers count when it would have brought them.
    pub link: LinkKind,
    /// What protects the process from its own swapping.
    pub safeguards: Safeguards,
}

impl Config {
    /// The usual settings for a device of `pages` pages.
    pub fn new(pages: u32) -> Self {
        Self {
            pages,
            group_pages: 16,
            cache_bytes: 256 << 20,
            queues: 1,
            replicas: 1,
            sealed: true,
            recompress: false,
            read_ahead: true,
            seed: 1,
            flush_start_permille: 250,
            flush_stop_permille: 125,
            heartbeat: Duration::from_secs(1),
            hedge: Duration::from_millis(50),
            node_timeout: Duration::from_secs(10),
            node_patience: Duration::from_secs(5),
            room_patience: Duration::from_secs(30),
            no_room_patience: Duration::from_secs(1),
            spin: Duration::from_micros(50),
            link: LinkKind::None,
            safeguards: Safeguards::ALL,
        }
    }

    /// Bytes of the longest record: a raw page.
    pub fn max_record_bytes(&self) -> usize {
        record_bytes(PAGE_BYTES, self.sealed)
    }

    /// Most blocks the device may hold: all pages raw, with headers, and a quarter more for dead records.
    pub fn max_blocks(&self) -> u32 {
        let units = u64::from(self.pages) * u64::from(units_of(self.max_record_bytes()));
        let blocks = units.div_ceil(u64::from(UNITS_PER_BLOCK));
        (blocks + blocks / 4 + 16).min(u64::from(u32::MAX / 2)) as u32
    }

    /// Bytes of the buffer for a run of whole groups: 256 KiB, or one group when that is more.
    pub(super) fn staging_bytes(&self) -> usize {
        let record = units_of(self.max_record_bytes()) as usize * UNIT_BYTES;
        (self.group_pages as usize * record).max(64 * PAGE_BYTES)
    }

    /// Checks the options that can be wrong.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn check(&self) -> Result<(), Error> {
        let bad = |text: String| Err(Error::Option(text));
        if !self.group_pages.is_power_of_two() || self.group_pages > MAX_GROUP_PAGES {
            let given = self.group_pages;
            return bad(format!("group-pages {given}: a power of two from 1 to {MAX_GROUP_PAGES} is needed"));
        }
        if self.pages == 0 {
            return bad("size: at least one page of 4 KiB is needed".to_owned());
        }
        if self.pages > MAX_PAGES {
            let given = u64::from(self.pages) * PAGE_BYTES as u64;
            return bad(format!("size {given}: at most 4 TiB is possible"));
        }
        if self.cache_bytes > MAX_CACHE_BYTES {
            return bad(format!("cache {}: at most 64 GiB is possible", self.cache_bytes));
        }
        if !(1..=MAX_REPLICAS as u8).contains(&self.replicas) {
            return bad(format!("replicas {}: 1 to {MAX_REPLICAS} is possible", self.replicas));
        }
        Ok(())
    }
}
