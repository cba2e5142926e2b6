//! The remote memory management layer (RMML): a pure model of where every page is.
//!
//! Pages live in the local [`Cache`] first; dirty ones are packed, group by group, into runs of remote blocks; clean
//! ones may leave the cache. Nothing here does I/O: a batch is begun (bytes copied out, entries held), the engine sends
//! it without holding the model, and the batch is finished with the outcome. Whatever happens to a page meanwhile
//! (overwrite, discard, loss of the node) is settled when the batch finishes.
//!
//! Invariant: a page's newest content is in the cache and dirty, or its location is live in exactly one block, or it
//! needs no bytes at all. An operation that fails leaves the page as it was.

mod blocks;
mod buckets;
mod copies;
mod groups;
mod moves;
mod nodes;
mod persist;
mod table;

pub use crate::memory::PersistError;
pub use blocks::{BlockTotals, Blocks, CLEANING_RESERVE, Next, Stream};
pub use copies::{CopyPlan, CopyStep};
pub use moves::{Found, open_found, walk};
pub use nodes::NodeBlocks;
pub use persist::{Identity, NODE_NAME_BYTES, NodeIdentity, Recovered, Shape};
pub use table::Mapping;
pub(crate) use table::{pack_location, unpack_location};

use crate::cache::{Cache, Entry, NewEntry};
use crate::codec::Codec;
use crate::record::{self, HEADER_BYTES, RecordHeader, record_bytes};
use crate::units::{BlockId, EntryId, Location, NodeId, PAGE_BYTES, PageNo, UNIT_BYTES, units_of};
use groups::DirtyGroups;
use persist::Root;
use table::PageTable;

/// The cache has no room for a page until dirty pages are written back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheFull;

/// What is stored, for the report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Pages with content, same-filled ones included.
    pub stored_pages: u64,
    /// Of these, pages that are one repeated word.
    pub same_filled_pages: u64,
    /// Of these, pages kept raw because LZ4 did not help.
    pub raw_pages: u64,
    /// Bytes of payload of all stored pages, after compression.
    pub payload_bytes: u64,
}

/// One page of a write-back or of a move.
#[derive(Debug, Clone, Copy)]
pub struct Item {
    /// The page.
    pub page: PageNo,
    /// Its cache entry (write-back).
    pub entry: EntryId,
    /// Where it was (move).
    pub old: Location,
    /// Where it goes.
    pub new: Location,
}

/// A run of records on its way to one block. The block is pinned until the batch is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// The block.
    pub block: BlockId,
    /// First unit of the run.
    pub offset_units: u32,
    /// Units of the run.
    pub units: u32,
    /// The block's generation, which the records are sealed for.
    pub generation: u64,
}

/// The model.
pub struct Model {
    /// The block table and placement.
    pub blocks: Blocks,
    root: Root,
    table: PageTable,
    cache: Cache,
    dirty: DirtyGroups,
    shape: Shape,
    usage: Usage,
}

impl Model {
    /// How large the parts are.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Where a page is.
    pub fn mapping(&self, page: PageNo) -> Mapping {
        self.table.get(page)
    }

    /// Pages of the device.
    pub fn pages(&self) -> u32 {
        self.table.pages()
    }

    /// What is stored.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The cache, to look at.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Stores a page's payload in the cache, dirty.
    ///
    /// # Errors
    /// [`CacheFull`] when dirty pages must be written back first; the page keeps its old content.
    pub fn put(&mut self, page: PageNo, codec: Codec, payload: &[u8]) -> Result<(), CacheFull> {
        if page.0 >= self.shape.pages {
            return Ok(());
        }
        self.make_free(payload.len())?;
        let seq = self.next_seq();
        let new = NewEntry { page, codec, payload, seq, remote: None, ahead: false };
        let id = self.cache.insert(&new).ok_or(CacheFull)?;
        self.replace(page, Mapping::Cached(id));
        self.dirty.push(page.0 / self.shape.group_pages);
        Ok(())
    }

    fn next_seq(&mut self) -> u64 {
        let Some(next) = self.root.next_seq.first_mut() else { return 0 };
        let seq = *next;
        *next += 1;
        seq
    }

    /// Stores a page that is one repeated word.
    pub fn put_same_filled(&mut self, page: PageNo, pattern: u32) {
        if page.0 < self.shape.pages {
            self.replace(page, Mapping::SameFilled(pattern));
        }
    }

    /// Drops a page's content; it reads as zeros from now on.
    pub fn discard(&mut self, page: PageNo) {
        self.replace(page, Mapping::Absent);
    }

    /// Uses a cached page: copies its payload into the start of `out`.
    pub fn read_cached(&mut self, id: EntryId, out: &mut [u8]) -> Option<Entry> {
        let entry = self.cache.entry(id)?;
        self.cache.touch(id);
        self.cache.copy_out(id, out);
        Some(entry)
    }

    /// Keeps a copy of a page that was read from `at`, if the page is still there and clean entries can make room.
    /// `ahead`: nobody asked for it yet.
    pub fn fill(&mut self, header: &RecordHeader, at: Location, payload: &[u8], ahead: bool) -> bool {
        let (page, codec) = (header.page, header.codec);
        // Evicting cannot move the page: it is not in the cache.
        if self.table.get(page) != Mapping::Remote(at) || self.make_free(payload.len()).is_err() {
            return false;
        }
        let new = NewEntry { page, codec, payload, seq: header.seq, remote: Some(at), ahead };
        let Some(id) = self.cache.insert(&new) else { return false };
        self.remap(page, Mapping::Cached(id));
        true
    }

    /// The pages of this page's group whose records lie around its own (at `at`) in the same block, itself included,
    /// so that one read of at most `most_bytes` brings them all; by offset. `out` is emptied first and never grows past
    /// its capacity.
    pub fn neighbours(&self, page: PageNo, at: Location, most_bytes: u32, out: &mut Vec<(PageNo, Location)>) {
        out.clear();
        if out.capacity() == 0 {
            return;
        }
        out.push((page, at));
        let (mut first, mut last) = (at.offset_units, at.offset_units + at.units());
        let most_units = most_bytes / UNIT_BYTES as u32;
        // Nearest in number first: the kernel's read-ahead goes by number too.
        let range = self.pages_of(page.0 / self.shape.group_pages);
        let after = (page.0 + 1..range.end).map(PageNo);
        let before = (range.start..page.0).rev().map(PageNo);
        for other in after.chain(before) {
            if out.len() == out.capacity() {
                break;
            }
            let Mapping::Remote(near) = self.table.get(other) else { continue };
            let (start, end) = (first.min(near.offset_units), last.max(near.offset_units + near.units()));
            if near.block == at.block && end - start <= most_units {
                (first, last) = (start, end);
                out.push((other, near));
            }
        }
        out.sort_unstable_by_key(|(_, at)| at.offset_units);
    }

    fn make_free(&mut self, payload_bytes: usize) -> Result<(), CacheFull> {
        if payload_bytes > PAGE_BYTES || !self.cache.can_store(payload_bytes) {
            return Err(CacheFull);
        }
        while !self.cache.has_free(payload_bytes) {
            let id = self.cache.pop_victim().ok_or(CacheFull)?;
            let entry = self.cache.entry(id).ok_or(CacheFull)?;
            if let Some(at) = entry.remote {
                self.remap(entry.page, Mapping::Remote(at));
            }
            self.cache.free(id);
        }
        Ok(())
    }

    /// Makes a page's content what `new` says, then gives up what it was.
    fn replace(&mut self, page: PageNo, new: Mapping) {
        let old = self.table.get(page);
        self.remap(page, new);
        match old {
            Mapping::Absent | Mapping::SameFilled(_) => {}
            Mapping::Remote(at) => self.blocks.kill(at),
            Mapping::Cached(id) => match self.cache.entry(id) {
                Some(entry) if entry.writing => self.cache.orphan(id),
                Some(entry) => {
                    self.cache.free(id);
                    entry.remote.into_iter().for_each(|at| self.blocks.kill(at));
                }
                None => {}
            },
        }
    }

    /// Changes a page's word, and the usage by it.
    fn remap(&mut self, page: PageNo, new: Mapping) {
        self.weigh(self.table.get(page), false);
        self.table.set(page, new);
        self.weigh(self.table.get(page), true);
    }

    /// Raw payloads are the only ones of 4096 bytes: compressed ones are at most three quarters of that.
    fn weigh(&mut self, mapping: Mapping, add: bool) {
        let overhead = record_bytes(0, self.shape.sealed) as u64;
        let payload = match mapping {
            Mapping::Absent => return,
            Mapping::SameFilled(_) => None,
            Mapping::Cached(id) => self.cache.entry(id).map(|entry| u64::from(entry.payload_bytes)),
            Mapping::Remote(at) => Some(u64::from(at.len_bytes).saturating_sub(overhead)),
        };
        let raw = payload == Some(PAGE_BYTES as u64);
        let one =
            |count: &mut u64, by: u64| *count = if add { *count + by } else { count.saturating_sub(by) };
        one(&mut self.usage.stored_pages, 1);
        one(&mut self.usage.same_filled_pages, u64::from(matches!(mapping, Mapping::SameFilled(_))));
        one(&mut self.usage.raw_pages, u64::from(raw));
        one(&mut self.usage.payload_bytes, payload.unwrap_or(0));
    }

    fn dirty_entry(&self, page: u32) -> Option<(EntryId, Entry)> {
        let Mapping::Cached(id) = self.table.get(PageNo(page)) else { return None };
        let entry = self.cache.entry(id).filter(|entry| entry.dirty && !entry.writing)?;
        Some((id, entry))
    }

    fn pages_of(&self, group: u32) -> std::ops::Range<u32> {
        let first = group.saturating_mul(self.shape.group_pages);
        first..first.saturating_add(self.shape.group_pages).min(self.table.pages())
    }

    fn run_units(&self, group: u32) -> u32 {
        let entries = self.pages_of(group).filter_map(|page| self.dirty_entry(page));
        entries
            .map(|(_, entry)| units_of(record_bytes(entry.payload_bytes as usize, self.shape.sealed)))
            .sum()
    }

    /// Units that the oldest dirty group needs; `None` when nothing waits to be written back.
    pub fn next_run_units(&mut self) -> Option<u32> {
        while let Some(group) = self.dirty.front() {
            match self.run_units(group) {
                0 => self.dirty.pop(),
                units => return Some(units),
            };
        }
        None
    }

    /// Starts a write-back into the open block: packs whole groups, oldest first, into `staging` as long as they fit
    /// there and in the block. Records are still to be sealed, each for its place ([`record::seal`]). `items` is emptied first and never grows
    /// past its capacity. `None` when nothing fits.
    pub fn begin_batch(&mut self, staging: &mut [u8], items: &mut Vec<Item>) -> Option<Batch> {
        items.clear();
        let (block, offset_units, left) = self.blocks.open_block(Stream::New)?;
        let room = left.min((staging.len() / UNIT_BYTES) as u32);
        let mut units = 0;
        while let Some(need) = self.next_run_units() {
            let fits =
                units + need <= room && items.len() + self.shape.group_pages as usize <= items.capacity();
            let Some(group) = self.dirty.front().filter(|_| fits) else { break };
            self.dirty.pop();
            for page in self.pages_of(group) {
                let Some((id, entry)) = self.dirty_entry(page) else { continue };
                let len_bytes = record_bytes(entry.payload_bytes as usize, self.shape.sealed) as u32;
                let new = Location { block, offset_units: offset_units + units, len_bytes };
                let from = units as usize * UNIT_BYTES;
                let record = &mut staging[from..from + new.units() as usize * UNIT_BYTES];
                let payload_bytes = entry.payload_bytes as usize;
                let header =
                    RecordHeader { codec: entry.codec, payload_bytes, page: PageNo(page), seq: entry.seq };
                record::begin(&header, record);
                self.cache.copy_out(id, &mut record[HEADER_BYTES..]);
                record[HEADER_BYTES + payload_bytes..].fill(0);
                self.cache.begin_write(id);
                items.push(Item { page: PageNo(page), entry: id, old: new, new });
                units += new.units();
            }
        }
        if items.is_empty() {
            return None;
        }
        self.blocks.advance(block, units);
        Some(Batch { block, offset_units, units, generation: self.blocks.generation(block) })
    }

    fn stands(&self, batch: &Batch) -> bool {
        self.blocks.generation(batch.block) == batch.generation && self.blocks.readable(batch.block)
    }

    /// Ends a write-back. The pages are clean when it was `written`, that is acknowledged by every copy the block had,
    /// and a node that answers still has the block; else they are dirty as before, their groups queue again, and the
    /// block is sealed.
    pub fn finish_batch(&mut self, batch: &Batch, items: &[Item], written: bool) {
        let stands = written && self.stands(batch);
        for item in items {
            if self.cache.entry(item.entry).is_some_and(|entry| entry.orphan) {
                self.cache.end_write(item.entry, None);
                self.cache.free(item.entry);
            } else if stands {
                self.cache.end_write(item.entry, Some(item.new));
                self.blocks.add_live(item.new);
            } else {
                self.cache.end_write(item.entry, None);
                self.dirty.push(item.page.0 / self.shape.group_pages);
            }
        }
        if !stands {
            self.blocks.seal_block(batch.block);
        }
        self.blocks.written(batch.block);
    }

    /// The node stopped answering: no stream writes to it, and pages that the cache still has and no other node has are
    /// dirty again, so that they are written elsewhere. Gives the number of these pages.
    pub fn node_down(&mut self, node: NodeId) -> u32 {
        self.blocks.set_up(node, false);
        self.save_cached(|blocks, block| {
            blocks.copies(block).any(|(of, ..)| of == node) && !blocks.readable(block)
        })
    }

    /// The node says that its copy of a block is not ours. When it was the last one, the pages in it are lost, but for
    /// those that the cache still has, which are dirty again. The caller holds a pin. Gives whether that was news.
    pub fn disown(&mut self, block: BlockId, node: NodeId) -> bool {
        let news = self.blocks.disown(block, node);
        if news && self.blocks.is_lost(block) {
            self.save_cached(|_, of| of == block);
        }
        news
    }

    fn save_cached(&mut self, gone: impl Fn(&Blocks, BlockId) -> bool) -> u32 {
        let mut saved = 0;
        for id in self.cache.ids() {
            let Some(entry) = self.cache.entry(id) else { continue };
            let (page, Some(at)) = (entry.page, entry.remote) else { continue };
            if gone(&self.blocks, at.block) {
                self.cache.make_dirty(id);
                self.blocks.kill(at);
                self.dirty.push(page.0 / self.shape.group_pages);
                saved += 1;
            }
        }
        saved
    }

    /// The node answers again. When it has `forgotten` our blocks, their pages are lost until they are overwritten.
    pub fn node_up(&mut self, node: NodeId, forgotten: bool, free_blocks: u32) {
        if forgotten {
            // Once more: reads that were under way when the node went down may have brought pages into the cache.
            self.node_down(node);
            self.blocks.lose(node);
        }
        self.blocks.set_remote_free(node, free_blocks);
        self.blocks.set_up(node, true);
    }
}

#[cfg(test)]
impl Model {
    /// Panics when an invariant of the model does not hold. `copying` are the targets of copies under way.
    pub(crate) fn check(&self, copying: &[NodeId]) {
        self.cache.check();
        let mut live = std::collections::HashMap::new();
        let mut usage = Usage::default();
        let mut add = |at: Location| *live.entry(at.block).or_insert(0) += at.units();
        for page in 0..self.table.pages() {
            let payload = match self.table.get(PageNo(page)) {
                Mapping::Absent => continue,
                Mapping::SameFilled(_) => {
                    usage.same_filled_pages += 1;
                    None
                }
                Mapping::Cached(id) => {
                    let entry = self.cache.entry(id).expect("a cached page has an entry");
                    assert_eq!(entry.page, PageNo(page));
                    assert!(!entry.orphan);
                    entry.remote.into_iter().for_each(&mut add);
                    Some(u64::from(entry.payload_bytes))
                }
                Mapping::Remote(at) => {
                    add(at);
                    Some(u64::from(at.len_bytes) - record_bytes(0, self.shape.sealed) as u64)
                }
            };
            usage.stored_pages += 1;
            usage.payload_bytes += payload.unwrap_or(0);
            usage.raw_pages += u64::from(payload == Some(4096));
        }
        self.blocks.check(&live, copying);
        assert_eq!(usage, self.usage);
    }
}

#[cfg(test)]
mod tests;
