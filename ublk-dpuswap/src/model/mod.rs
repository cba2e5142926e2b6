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
mod groups;
mod table;

pub use blocks::{BlockTotals, Blocks, CLEANING_RESERVE, Next, NodeBlocks, Stream};
pub use table::Mapping;

use crate::cache::{Cache, Entry, NewEntry};
use crate::codec::Codec;
use crate::record::{self, HEADER_BYTES, RecordHeader};
use crate::units::{BlockId, EntryId, Location, NodeId, PageNo, UNIT_BYTES, units_of};
use groups::DirtyGroups;
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
}

/// A record found in a block by its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The page the record is of.
    pub page: PageNo,
    /// Where it is.
    pub at: Location,
}

/// How large the parts of the model are.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Pages of the device.
    pub pages: u32,
    /// Pages of a block group: written back together, to one contiguous run.
    pub group_pages: u32,
    /// Bytes of cache.
    pub cache_bytes: u64,
    /// Most remote blocks to hold.
    pub max_blocks: u32,
    /// Nodes.
    pub nodes: u16,
}

/// The model.
pub struct Model {
    /// The block table and placement.
    pub blocks: Blocks,
    table: PageTable,
    cache: Cache,
    dirty: DirtyGroups,
    group_pages: u32,
    next_seq: u64,
    usage: Usage,
}

impl Model {
    /// An empty device.
    pub fn new(shape: &Shape) -> Self {
        let group_pages = shape.group_pages.max(1);
        Self {
            blocks: Blocks::new(shape.max_blocks, shape.nodes),
            table: PageTable::new(shape.pages),
            cache: Cache::new(shape.cache_bytes),
            dirty: DirtyGroups::new(shape.pages.div_ceil(group_pages)),
            group_pages,
            next_seq: 1,
            usage: Usage::default(),
        }
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
        self.make_free(payload.len())?;
        let new = NewEntry { page, codec, payload, seq: self.next_seq, remote: None };
        let id = self.cache.insert(&new).ok_or(CacheFull)?;
        self.next_seq += 1;
        self.forget(page);
        self.table.set(page, Mapping::Cached(id));
        self.usage.stored_pages += 1;
        self.usage.raw_pages += u64::from(codec == Codec::Raw);
        self.usage.payload_bytes += payload.len() as u64;
        self.dirty.push(page.0 / self.group_pages);
        Ok(())
    }

    /// Stores a page that is one repeated word.
    pub fn put_same_filled(&mut self, page: PageNo, pattern: u32) {
        self.next_seq += 1;
        self.forget(page);
        self.table.set(page, Mapping::SameFilled(pattern));
        self.usage.stored_pages += 1;
        self.usage.same_filled_pages += 1;
    }

    /// Drops a page's content; it reads as zeros from now on.
    pub fn discard(&mut self, page: PageNo) {
        self.forget(page);
    }

    /// Uses a cached page: copies its payload into the start of `out`.
    pub fn read_cached(&mut self, id: EntryId, out: &mut [u8]) -> Option<Entry> {
        let entry = *self.cache.entry(id)?;
        self.cache.touch(id);
        self.cache.copy_out(id, out);
        Some(entry)
    }

    /// Keeps a copy of a page that was read from `at`, if the page is still there and clean entries can make room.
    pub fn fill(&mut self, header: &RecordHeader, at: Location, payload: &[u8]) -> bool {
        if self.table.get(header.page) != Mapping::Remote(at) || self.make_free(payload.len()).is_err() {
            return false;
        }
        let new =
            NewEntry { page: header.page, codec: header.codec, payload, seq: header.seq, remote: Some(at) };
        let Some(id) = self.cache.insert(&new) else { return false };
        self.table.set(header.page, Mapping::Cached(id));
        true
    }

    fn make_free(&mut self, payload_bytes: usize) -> Result<(), CacheFull> {
        if !self.cache.can_store(payload_bytes) {
            return Err(CacheFull);
        }
        while !self.cache.has_free(payload_bytes) {
            let id = self.cache.pop_victim().ok_or(CacheFull)?;
            let entry = self.cache.entry(id).copied().ok_or(CacheFull)?;
            if let Some(at) = entry.remote {
                self.table.set(entry.page, Mapping::Remote(at));
            }
            self.cache.free(id);
        }
        Ok(())
    }

    fn forget(&mut self, page: PageNo) {
        match self.table.get(page) {
            Mapping::Absent => return,
            Mapping::SameFilled(_) => self.usage.same_filled_pages -= 1,
            Mapping::Cached(id) => {
                if let Some(entry) = self.cache.entry(id).copied() {
                    self.note_gone(u64::from(entry.payload_bytes));
                    match (entry.writing, entry.remote) {
                        (true, _) => self.cache.orphan(id),
                        (false, remote) => {
                            self.cache.free(id);
                            remote.into_iter().for_each(|at| self.blocks.kill(at));
                        }
                    }
                }
            }
            Mapping::Remote(at) => {
                self.note_gone(u64::from(at.len_bytes) - HEADER_BYTES as u64);
                self.blocks.kill(at);
            }
        }
        self.usage.stored_pages -= 1;
        self.table.set(page, Mapping::Absent);
    }

    /// Raw payloads are the only ones of 4096 bytes: LZ4 ones are at most three quarters of that.
    fn note_gone(&mut self, payload_bytes: u64) {
        self.usage.payload_bytes -= payload_bytes;
        self.usage.raw_pages -= u64::from(payload_bytes == crate::units::PAGE_BYTES as u64);
    }

    fn dirty_entry(&self, page: u32) -> Option<(EntryId, Entry)> {
        let Mapping::Cached(id) = self.table.get(PageNo(page)) else { return None };
        let entry = self.cache.entry(id).filter(|entry| entry.dirty && !entry.writing)?;
        Some((id, *entry))
    }

    fn pages_of(&self, group: u32) -> std::ops::Range<u32> {
        let first = group.saturating_mul(self.group_pages);
        first..first.saturating_add(self.group_pages).min(self.table.pages())
    }

    fn run_units(&self, group: u32) -> u32 {
        let entries = self.pages_of(group).filter_map(|page| self.dirty_entry(page));
        entries.map(|(_, entry)| units_of(HEADER_BYTES + entry.payload_bytes as usize)).sum()
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
    /// there and in the block. Checksums are left open ([`record::seal`]). `items` is emptied first and never grows
    /// past its capacity. `None` when nothing fits.
    pub fn begin_batch(&mut self, staging: &mut [u8], items: &mut Vec<Item>) -> Option<Batch> {
        items.clear();
        let (block, offset_units, left) = self.blocks.open_block(Stream::New)?;
        let room = left.min((staging.len() / UNIT_BYTES) as u32);
        let mut units = 0;
        while let Some(need) = self.next_run_units() {
            let fits = units + need <= room && items.len() + self.group_pages as usize <= items.capacity();
            let Some(group) = self.dirty.front().filter(|_| fits) else { break };
            self.dirty.pop();
            for page in self.pages_of(group) {
                let Some((id, entry)) = self.dirty_entry(page) else { continue };
                let len_bytes = HEADER_BYTES as u32 + entry.payload_bytes;
                let new = Location { block, offset_units: offset_units + units, len_bytes };
                let from = units as usize * UNIT_BYTES;
                let record = &mut staging[from..from + new.units() as usize * UNIT_BYTES];
                let payload_bytes = entry.payload_bytes as usize;
                let header =
                    RecordHeader { codec: entry.codec, payload_bytes, page: PageNo(page), seq: entry.seq };
                record::begin(&header, record);
                self.cache.copy_out(id, &mut record[HEADER_BYTES..]);
                record[len_bytes as usize..].fill(0);
                self.cache.begin_write(id);
                items.push(Item { page: PageNo(page), entry: id, old: new, new });
                units += new.units();
            }
        }
        if items.is_empty() {
            return None;
        }
        self.blocks.advance(block, units);
        Some(Batch { block, offset_units, units })
    }

    /// Ends a write-back. The pages are clean when it was `written` and the node still holds the block; else they are
    /// dirty as before and their groups queue again.
    pub fn finish_batch(&mut self, batch: &Batch, items: &[Item], written: bool) {
        let stands = written && self.blocks.place(batch.block).is_some_and(|(_, _, readable)| readable);
        for item in items {
            if self.cache.entry(item.entry).is_some_and(|entry| entry.orphan) {
                self.cache.end_write(item.entry, None);
                self.cache.free(item.entry);
            } else if stands {
                self.cache.end_write(item.entry, Some(item.new));
                self.blocks.add_live(item.new);
            } else {
                self.cache.end_write(item.entry, None);
                self.dirty.push(item.page.0 / self.group_pages);
            }
        }
        if !written && self.blocks.open_block(Stream::New).is_some_and(|(id, ..)| id == batch.block) {
            self.blocks.seal(Stream::New);
        }
        self.blocks.unpin(batch.block);
    }

    fn lies_at(&self, page: PageNo, at: Location) -> Option<Option<EntryId>> {
        match self.table.get(page) {
            Mapping::Remote(now) => (now == at).then_some(None),
            Mapping::Cached(id) => (self.cache.entry(id)?.remote == Some(at)).then_some(Some(id)),
            _ => None,
        }
    }

    /// Starts to move the live ones of `found` (from `next` on) into the cleaner's open block: copies their records
    /// from `bytes`, the content of their block, into `staging`. `next` is where to go on when the block is full.
    pub fn begin_move(
        &mut self,
        found: &[Found],
        next: &mut usize,
        bytes: &[u8],
        staging: &mut [u8],
        items: &mut Vec<Item>,
    ) -> Option<Batch> {
        items.clear();
        let (block, offset_units, left) = self.blocks.open_block(Stream::Moved)?;
        let room = left.min((staging.len() / UNIT_BYTES) as u32);
        let mut units = 0;
        while let Some(record) = found.get(*next) {
            if self.lies_at(record.page, record.at).is_some() {
                let need = record.at.units();
                let from = record.at.offset_bytes();
                let to = units as usize * UNIT_BYTES;
                let len = need as usize * UNIT_BYTES;
                let (Some(source), true) = (bytes.get(from..from + len), units + need <= room) else { break };
                staging[to..to + len].copy_from_slice(source);
                let new = Location { block, offset_units: offset_units + units, ..record.at };
                items.push(Item { page: record.page, entry: EntryId(u32::MAX), old: record.at, new });
                units += need;
            }
            *next += 1;
        }
        if items.is_empty() {
            return None;
        }
        self.blocks.advance(block, units);
        Some(Batch { block, offset_units, units })
    }

    /// Ends a move: pages that are still where they were found are at their new place from now on.
    pub fn finish_move(&mut self, batch: &Batch, items: &[Item], written: bool) {
        let stands = written && self.blocks.place(batch.block).is_some_and(|(_, _, readable)| readable);
        for item in items.iter().filter(|_| stands) {
            match self.lies_at(item.page, item.old) {
                Some(None) => self.table.set(item.page, Mapping::Remote(item.new)),
                Some(Some(id)) => self.cache.moved(id, item.new),
                None => continue,
            }
            self.blocks.add_live(item.new);
            self.blocks.kill(item.old);
        }
        if !written && self.blocks.open_block(Stream::Moved).is_some_and(|(id, ..)| id == batch.block) {
            self.blocks.seal(Stream::Moved);
        }
        self.blocks.unpin(batch.block);
    }

    /// The node stopped answering: no stream writes to it, and pages that the cache still has are dirty again, so
    /// that they are written to another node. Gives the number of these pages.
    pub fn node_down(&mut self, node: NodeId) -> u32 {
        self.blocks.set_up(node, false);
        self.save_cached(|blocks, block| blocks.place(block).is_some_and(|(of, ..)| of == node))
    }

    /// The node says that a block is not ours: the pages in it are lost, but for those that the cache still has, which
    /// are dirty again. The caller holds a pin. Gives whether that was news.
    pub fn disown(&mut self, block: BlockId) -> bool {
        let news = self.blocks.disown(block);
        if news {
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
                self.dirty.push(page.0 / self.group_pages);
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

/// Lists the records of a block by walking its headers; checksums are verified, so nothing bad is ever copied on.
///
/// # Errors
/// The byte offset of the first bad record and what is wrong with it; the records before it are in `found`.
pub fn walk(
    block: BlockId,
    bytes: &[u8],
    found: &mut Vec<Found>,
) -> Result<(), (usize, record::RecordError)> {
    found.clear();
    let mut offset_units = 0;
    while let Some(rest) = bytes.get(offset_units as usize * UNIT_BYTES..).filter(|rest| !rest.is_empty()) {
        let offset = offset_units as usize * UNIT_BYTES;
        let (header, _) = record::decode(rest).map_err(|error| (offset, error))?;
        if found.len() == found.capacity() {
            return Err((offset, record::RecordError::Field));
        }
        let len_bytes = (HEADER_BYTES + header.payload_bytes) as u32;
        let at = Location { block, offset_units, len_bytes };
        found.push(Found { page: header.page, at });
        offset_units += at.units();
    }
    Ok(())
}

#[cfg(test)]
impl Model {
    /// Panics when an invariant of the model does not hold.
    pub(crate) fn check(&self) {
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
                    Some(u64::from(at.len_bytes) - HEADER_BYTES as u64)
                }
            };
            usage.stored_pages += 1;
            usage.payload_bytes += payload.unwrap_or(0);
            usage.raw_pages += u64::from(payload == Some(4096));
        }
        self.blocks.check(&live);
        assert_eq!(usage, self.usage);
    }
}

#[cfg(test)]
mod tests;
