//! What a queue does: swap-out, swap-in, discard. The only code that runs once per page.

use std::sync::TryLockError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Engine, Shared, State};
use crate::codec::{self, Compressor};
use crate::error::IoError;
use crate::model::Mapping;
use crate::record::{self, RecordError};
use crate::remote::Lane;
use crate::units::{BLOCK_BYTES, BlockId, Location, NodeId, PAGE_BYTES, PageNo, RemoteBlock};

/// Most pages handled under one plan; longer requests are done in pieces.
const PLAN_PAGES: usize = 128;
/// Pages dropped per hold of the lock.
const DISCARD_PAGES: u32 = 1024;
/// Records of one block that are no further apart than this are read together.
const READ_GAP_BYTES: usize = 4096;
/// Attempts before a request that keeps losing races gives up.
const ATTEMPTS: usize = 256;
/// How long a full cache is waited for before another look.
const ROOM_WAIT: Duration = Duration::from_millis(250);

/// A page to be read from remote memory.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    at: Location,
    /// Which page of the request.
    index: u32,
    node: NodeId,
    remote: RemoteBlock,
    generation: u32,
    pinned: bool,
}

/// A cached payload, copied out and still to be restored.
#[derive(Debug, Clone, Copy)]
struct Copied {
    index: u32,
    codec: codec::Codec,
    from: usize,
    len: usize,
}

/// Buffers of one queue's thread, allocated once.
pub struct QueueContext {
    lane: Lane,
    compressor: Compressor,
    /// Holds the copied payloads, then one remote run at a time.
    buffer: Box<[u8]>,
    wanted: Vec<Wanted>,
    copied: Vec<Copied>,
}

enum ReadError {
    Failed(IoError),
    /// A call to the node failed.
    Broken(NodeId),
    /// The page has moved meanwhile: look again.
    Moved,
}

impl From<IoError> for ReadError {
    fn from(error: IoError) -> Self {
        Self::Failed(error)
    }
}

impl QueueContext {
    pub(super) fn new(queue: u16) -> Self {
        Self {
            lane: Lane::queue(queue),
            compressor: Compressor::new(),
            buffer: vec![0; BLOCK_BYTES].into_boxed_slice(),
            wanted: Vec::with_capacity(PLAN_PAGES),
            copied: Vec::with_capacity(PLAN_PAGES),
        }
    }
}

impl Engine {
    fn check(&self, first: PageNo, count: usize) -> Result<(), IoError> {
        let end = first.0 as u64 + count as u64;
        if end <= u64::from(self.pages()) { Ok(()) } else { Err(IoError::Range) }
    }

    /// Stores whole pages, from page `first` on. When it returns `Ok` they are safe in the cache.
    ///
    /// # Errors
    /// The pages cannot be placed, or are not within the device. Each page then has its old or its new content.
    pub fn swap_out(&self, context: &mut QueueContext, first: PageNo, data: &[u8]) -> Result<(), IoError> {
        let (pages, rest) = data.as_chunks::<PAGE_BYTES>();
        if !rest.is_empty() {
            return Err(IoError::Range);
        }
        self.check(first, pages.len())?;
        let mut deadline = None;
        for (number, page) in (first.0..).map(PageNo).zip(pages) {
            self.shared.swap_out_page(context, number, page, &mut deadline).inspect_err(|_| {
                self.shared.counters.write_errors.fetch_add(1, Ordering::Relaxed);
            })?;
        }
        self.shared.counters.pages_written.fetch_add(pages.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Reads whole pages, from page `first` on. Pages never written, or discarded, read as zeros.
    ///
    /// # Errors
    /// A page's only copy is on a node that is gone or damaged; or the range is not within the device.
    pub fn swap_in(&self, context: &mut QueueContext, first: PageNo, data: &mut [u8]) -> Result<(), IoError> {
        let pages = data.len() / PAGE_BYTES;
        if !data.len().is_multiple_of(PAGE_BYTES) {
            return Err(IoError::Range);
        }
        self.check(first, pages)?;
        for (number, piece) in (first.0..).step_by(PLAN_PAGES).zip(data.chunks_mut(PLAN_PAGES * PAGE_BYTES)) {
            self.shared.swap_in_pages(context, PageNo(number), piece).inspect_err(|_| {
                self.shared.counters.read_errors.fetch_add(1, Ordering::Relaxed);
            })?;
        }
        self.shared.counters.pages_read.fetch_add(pages as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Drops the content of `count` pages; they read as zeros from now on. No network is involved.
    ///
    /// # Errors
    /// The range is not within the device.
    pub fn discard(&self, first: PageNo, count: u32) -> Result<(), IoError> {
        self.check(first, count as usize)?;
        let end = first.0 + count;
        let mut next = first.0;
        while next < end {
            let stop = end.min(next.saturating_add(DISCARD_PAGES));
            let mut state = self.shared.state();
            (next..stop).for_each(|page| state.model.discard(PageNo(page)));
            next = stop;
        }
        self.shared.counters.pages_discarded.fetch_add(u64::from(count), Ordering::Relaxed);
        Ok(())
    }
}

impl Shared {
    /// `deadline` is the request's, set by the first of its pages that finds no room.
    fn swap_out_page(
        &self,
        context: &mut QueueContext,
        number: PageNo,
        page: &[u8],
        deadline: &mut Option<Instant>,
    ) -> Result<(), IoError> {
        if let Some(pattern) = codec::same_filled(page) {
            self.state().model.put_same_filled(number, pattern);
            self.counters.same_filled_written.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let (codec, payload) = context.compressor.compress(page);
        if codec == codec::Codec::Raw {
            self.counters.raw_written.fetch_add(1, Ordering::Relaxed);
        }
        self.counters.payload_bytes_written.fetch_add(payload.len() as u64, Ordering::Relaxed);
        for _ in 0..ATTEMPTS {
            let stored = {
                let mut state = self.state();
                state.model.put(number, codec, payload).is_ok_and(|()| {
                    self.wake_flusher(&mut state);
                    true
                })
            };
            if stored {
                return Ok(());
            }
            self.counters.waited_for_room.fetch_add(1, Ordering::Relaxed);
            let now = Instant::now();
            if now >= *deadline.get_or_insert(now + self.config.room_patience) {
                return Err(IoError::Retries);
            }
            self.make_room(payload.len())?;
        }
        Err(IoError::Retries)
    }

    fn wake_flusher(&self, state: &mut State) {
        if !state.flush_wanted && state.model.cache().dirty_permille() >= self.config.flush_start_permille {
            state.flush_wanted = true;
            self.flush.notify_one();
        }
    }

    /// Writes back one batch on the caller's thread, or waits for the batch of whoever is at it.
    fn make_room(&self, payload_bytes: usize) -> Result<(), IoError> {
        let mut writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let state = self.state();
                if !state.model.cache().can_store(payload_bytes) {
                    drop(self.room.wait_timeout(state, ROOM_WAIT));
                }
                return Ok(());
            }
        };
        if self.state().model.cache().can_store(payload_bytes) {
            return Ok(());
        }
        if self.write_back(&mut writer)? { Ok(()) } else { Err(IoError::Retries) }
    }

    fn swap_in_pages(
        &self,
        context: &mut QueueContext,
        first: PageNo,
        data: &mut [u8],
    ) -> Result<(), IoError> {
        let mut deadline = None;
        for _ in 0..ATTEMPTS {
            let error = match self.try_swap_in(context, first, data) {
                Ok(()) => return Ok(()),
                Err(ReadError::Moved) => continue,
                Err(ReadError::Failed(error)) => error,
                // Looked up again, when there is time: the page may be elsewhere by now, or lost; the plan knows.
                Err(ReadError::Broken(node)) => {
                    let now = Instant::now();
                    if now <= *deadline.get_or_insert(now + self.config.node_patience) {
                        continue;
                    }
                    IoError::NodeDown(node)
                }
            };
            if let IoError::NodeDown(node) = error {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.config.node_patience);
                if self.wait_for_node(node, deadline) {
                    continue;
                }
            }
            if let IoError::NodeDown(node) | IoError::Lost(node) = error {
                self.counters.count_failed_read(node);
            }
            return Err(error);
        }
        Err(IoError::Retries)
    }

    fn try_swap_in(
        &self,
        context: &mut QueueContext,
        first: PageNo,
        data: &mut [u8],
    ) -> Result<(), ReadError> {
        let planned = self.plan(context, first, data);
        let done = planned.and_then(|()| self.restore_copied(context, data)).map_err(ReadError::from);
        let done = done.and_then(|()| self.read_remote(context, first, data));
        if context.wanted.iter().any(|wanted| wanted.pinned) {
            let mut state = self.state();
            for wanted in context.wanted.iter().filter(|wanted| wanted.pinned) {
                state.model.blocks.unpin(wanted.at.block);
            }
        }
        done
    }

    /// Sorts the pages by where they are: zeros and patterns are done at once, cached payloads copied out, remote
    /// locations noted and their blocks pinned.
    fn plan(&self, context: &mut QueueContext, first: PageNo, data: &mut [u8]) -> Result<(), IoError> {
        context.wanted.clear();
        context.copied.clear();
        let count = |counter: &std::sync::atomic::AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let mut used = 0;
        let mut guard = self.state();
        let state = &mut *guard;
        for (index, page) in (0u32..).zip(data.chunks_mut(PAGE_BYTES)) {
            match state.model.mapping(PageNo(first.0 + index)) {
                Mapping::Absent => {
                    page.fill(0);
                    count(&self.counters.reads_absent);
                }
                Mapping::SameFilled(pattern) => {
                    codec::fill(page, pattern);
                    count(&self.counters.reads_same_filled);
                }
                Mapping::Cached(id) => {
                    let room = context.buffer.get_mut(used..).unwrap_or_default();
                    let entry = state.model.read_cached(id, room).ok_or(IoError::Retries)?;
                    let len = entry.payload_bytes as usize;
                    context.copied.push(Copied { index, codec: entry.codec, from: used, len });
                    used += len;
                    count(match (entry.dirty, entry.filled) {
                        (true, _) => &self.counters.hits_dirty,
                        (false, false) => &self.counters.hits_written,
                        (false, true) => &self.counters.hits_filled,
                    });
                }
                Mapping::Remote(at) => {
                    let (node, remote, readable) =
                        state.model.blocks.place(at.block).ok_or(IoError::Retries)?;
                    if !readable {
                        let up = state.nodes.get(usize::from(node.0)).is_some_and(|node| node.up);
                        return Err(if up { IoError::Lost(node) } else { IoError::NodeDown(node) });
                    }
                    state.model.blocks.pin(at.block);
                    let generation = state.generation(node);
                    context.wanted.push(Wanted { at, index, node, remote, generation, pinned: true });
                    count(&self.counters.misses);
                }
            }
        }
        Ok(())
    }

    fn restore_copied(&self, context: &mut QueueContext, data: &mut [u8]) -> Result<(), IoError> {
        for copied in &context.copied {
            let page = data
                .get_mut(copied.index as usize * PAGE_BYTES..)
                .and_then(|rest| rest.get_mut(..PAGE_BYTES));
            let payload = context.buffer.get(copied.from..copied.from + copied.len);
            let restored = page
                .zip(payload)
                .is_some_and(|(page, payload)| codec::decompress(copied.codec, payload, page));
            if !restored {
                return Err(IoError::Retries);
            }
        }
        Ok(())
    }

    /// Reads the remote pages, records that lie close together in one read each.
    fn read_remote(
        &self,
        context: &mut QueueContext,
        first: PageNo,
        data: &mut [u8],
    ) -> Result<(), ReadError> {
        context.wanted.sort_unstable_by_key(|wanted| (wanted.at.block, wanted.at.offset_units));
        let mut done = 0;
        while let Some(start) = context.wanted.get(done).copied() {
            let base = start.at.offset_bytes();
            let mut end = base + start.at.len_bytes as usize;
            let mut count = 1;
            for next in &context.wanted[done + 1..] {
                if next.at.block != start.at.block || next.at.offset_bytes() > end + READ_GAP_BYTES {
                    break;
                }
                end = next.at.offset_bytes() + next.at.len_bytes as usize;
                count += 1;
            }
            let run = done..done + count;
            self.read_run(context, run.clone(), base..end, first, data)?;
            done = run.end;
        }
        Ok(())
    }

    fn read_run(
        &self,
        context: &mut QueueContext,
        run: std::ops::Range<usize>,
        bytes: std::ops::Range<usize>,
        first: PageNo,
        data: &mut [u8],
    ) -> Result<(), ReadError> {
        let QueueContext { wanted, buffer, lane, .. } = context;
        let (Some(wanted), Some(buffer)) = (wanted.get_mut(run), buffer.get_mut(..bytes.len())) else {
            return Err(IoError::Retries.into());
        };
        let Some(start) = wanted.first().copied() else { return Ok(()) };
        self.counters.remote_reads.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.remote(start.node)?.read_at(*lane, start.remote, bytes.start as u32, buffer)
        {
            self.call_failed(start.at.block, start.node, start.generation, error);
            return Err(ReadError::Broken(start.node));
        }
        self.counters.count_read(start.node, bytes.len());
        for wanted in wanted.iter() {
            let from = wanted.at.offset_bytes() - bytes.start;
            let number = PageNo(first.0 + wanted.index);
            let page = data
                .get_mut(wanted.index as usize * PAGE_BYTES..)
                .and_then(|rest| rest.get_mut(..PAGE_BYTES));
            let good = restore_record(&buffer[from..from + wanted.at.len_bytes as usize], number, page);
            if let Err(error) = good {
                let stays = self.state().model.mapping(number) == Mapping::Remote(wanted.at);
                return Err(if stays {
                    IoError::Record(wanted.node, error).into()
                } else {
                    ReadError::Moved
                });
            }
        }
        self.keep_copies(wanted, buffer, bytes.start);
        Ok(())
    }

    /// Puts what was read into the cache, and unpins.
    fn keep_copies(&self, wanted: &mut [Wanted], buffer: &[u8], base: usize) {
        let mut state = self.state();
        for wanted in wanted {
            let from = wanted.at.offset_bytes() - base;
            // The checksum was verified before the lock was taken; this reads the header again, cheaply enough.
            if let Some(bytes) = buffer.get(from..from + wanted.at.len_bytes as usize)
                && let Some((header, payload)) = record::peek(bytes)
            {
                let kept = state.model.fill(&header, wanted.at, payload);
                self.counters.fills.fetch_add(u64::from(kept), Ordering::Relaxed);
            }
            if std::mem::replace(&mut wanted.pinned, false) {
                state.model.blocks.unpin(wanted.at.block);
            }
        }
    }
}

fn restore_record(bytes: &[u8], number: PageNo, page: Option<&mut [u8]>) -> Result<(), RecordError> {
    let (header, payload) = record::decode(bytes)?;
    let page = page.ok_or(RecordError::Short)?;
    if header.page != number {
        return Err(RecordError::Page(header.page.0));
    }
    if codec::decompress(header.codec, payload, page) { Ok(()) } else { Err(RecordError::Field) }
}

/// A block that is being written or cleaned, for the writer's messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) node: NodeId,
    pub(super) remote: RemoteBlock,
    pub(super) generation: u32,
}

impl State {
    pub(super) fn target(&self, block: BlockId) -> Option<Target> {
        let (node, remote, readable) = self.model.blocks.place(block)?;
        readable.then(|| Target { node, remote, generation: self.generation(node) })
    }
}
