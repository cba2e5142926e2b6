//! Write-back and cleaning: the one place that writes to the nodes. Runs on the flusher's thread, or on a queue's when
//! the cache is full; the writer lock makes it one at a time.

use std::sync::atomic::Ordering;

use super::io::Target;
use super::{Shared, staging_bytes};
use crate::error::IoError;
use crate::model::{Batch, CLEANING_RESERVE, Found, Item, Next, Stream, walk};
use crate::record;
use crate::remote::Lane;
use crate::units::{BLOCK_BYTES, BlockId, UNIT_BYTES, UNITS_PER_BLOCK};

/// A block with more live units than this is not worth cleaning.
const CLEAN_AT_MOST_UNITS: u32 = UNITS_PER_BLOCK / 16 * 15;
/// Most blocks cleaned to make room for one batch.
const CLEAN_MOST: usize = 64;
/// In the background only blocks with at most this much alive are cleaned.
const CLEAN_EARLY_UNITS: u32 = UNITS_PER_BLOCK / 4 * 3;

/// Buffers of whoever holds the writer lock, allocated once.
pub(super) struct Writer {
    staging: Box<[u8]>,
    block: Box<[u8]>,
    items: Vec<Item>,
    found: Vec<Found>,
}

impl Writer {
    pub(super) fn new(group_pages: u32) -> Self {
        let staging = vec![0; staging_bytes(group_pages)].into_boxed_slice();
        Self {
            items: Vec::with_capacity(staging.len() / UNIT_BYTES),
            staging,
            block: vec![0; BLOCK_BYTES].into_boxed_slice(),
            found: Vec::with_capacity(UNITS_PER_BLOCK as usize),
        }
    }
}

/// How cleaning a block ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Nothing in it is alive any more.
    Complete,
    /// What could be read was moved.
    Damaged,
    /// A node failed, or there was no room.
    Aborted,
}

impl Shared {
    /// Writes one batch of dirty groups to a node; on failure tries the others. `false` when nothing is dirty.
    ///
    /// # Errors
    /// No node answers, or none has space and cleaning gives none. The pages stay in the cache.
    pub(super) fn write_back(&self, writer: &mut Writer) -> Result<bool, IoError> {
        for _ in 0..4 * self.nodes.len() + 8 + CLEAN_MOST {
            let Some((batch, target)) = self.prepare(writer).inspect_err(|_| self.room.notify_all())? else {
                if self.state().model.next_run_units().is_none() {
                    return Ok(false);
                }
                continue;
            };
            let bytes = batch.units as usize * UNIT_BYTES;
            let base = batch.offset_units;
            for item in &writer.items {
                let from = (item.new.offset_units - base) as usize * UNIT_BYTES;
                record::seal(&mut writer.staging[from..from + item.new.len_bytes as usize]);
            }
            let written = self.send(&batch, target, &writer.staging[..bytes]);
            self.state().model.finish_batch(&batch, &writer.items, written);
            self.room.notify_all();
            if written {
                self.counters.batches.fetch_add(1, Ordering::Relaxed);
                self.counters.bytes_written_back.fetch_add(bytes as u64, Ordering::Relaxed);
                return Ok(true);
            }
        }
        Err(self.no_room())
    }

    fn no_room(&self) -> IoError {
        if self.state().nodes.iter().any(|node| node.up) { IoError::NoSpace } else { IoError::NoNode }
    }

    fn send(&self, batch: &Batch, target: Target, bytes: &[u8]) -> bool {
        let offset_bytes = batch.offset_units * UNIT_BYTES as u32;
        let sent = self
            .remote(target.node)
            .map(|remote| remote.write_at(Lane::WRITER, target.remote, offset_bytes, bytes));
        match sent {
            Ok(Ok(())) => {
                self.counters.count_written(target.node, bytes.len());
                true
            }
            Ok(Err(error)) => {
                self.call_failed(batch.block, target.node, target.generation, error);
                false
            }
            Err(_) => false,
        }
    }

    /// Opens a block when the current one has no room for the next group, and begins a batch in it.
    fn prepare(&self, writer: &mut Writer) -> Result<Option<(Batch, Target)>, IoError> {
        let reserve = {
            let mut guard = self.state();
            let state = &mut *guard;
            let Some(need) = state.model.next_run_units() else { return Ok(None) };
            let fits = state.model.blocks.open_block(Stream::New).is_some_and(|(.., left)| left >= need);
            let next = if fits {
                Next::Opened
            } else {
                state.model.blocks.open_next(Stream::New, &mut state.choices)
            };
            match next {
                Next::Opened => {
                    let open = state.model.blocks.open_block(Stream::New);
                    let target = open.and_then(|(block, ..)| state.target(block));
                    let Some(target) = target else {
                        state.model.blocks.seal(Stream::New);
                        return Ok(None);
                    };
                    let batch = state.model.begin_batch(&mut writer.staging, &mut writer.items);
                    return Ok(batch.map(|batch| (batch, target)));
                }
                Next::Reserve(node) => Some(node),
                Next::Nothing => None,
            }
        };
        match reserve {
            Some(node) => {
                self.reserve_from(node, Lane::WRITER);
                Ok(None)
            }
            None if self.clean_one(writer, CLEAN_AT_MOST_UNITS) => Ok(None),
            None => Err(self.no_room()),
        }
    }

    /// Whether blocks are running low, so that the flusher should clean before a queue has to wait for it.
    pub(super) fn clean_early(&self, writer: &mut Writer) -> bool {
        let low = {
            let state = self.state();
            state.model.blocks.total_spare() < 2 * CLEANING_RESERVE + self.config.max_blocks() / 32
        };
        low && self.clean_one(writer, CLEAN_EARLY_UNITS)
    }

    /// Moves what is alive in the block with the least of it elsewhere, so that the block can be used again. Gives
    /// whether that was done.
    fn clean_one(&self, writer: &mut Writer, max_live_units: u32) -> bool {
        let (victim, target, used) = {
            let mut state = self.state();
            let Some(victim) = state.model.blocks.victim(max_live_units) else { return false };
            let Some(target) = state.target(victim) else { return false };
            state.model.blocks.pin(victim);
            (victim, target, state.model.blocks.used_bytes(victim))
        };
        let outcome = self.move_records(writer, victim, target, used);
        let mut state = self.state();
        if outcome == Outcome::Damaged {
            // What is still alive in it has no readable record: left alone until it is overwritten or discarded.
            state.model.blocks.mark_unreadable(victim);
        }
        state.model.blocks.unpin(victim);
        drop(state);
        if outcome == Outcome::Complete {
            self.counters.blocks_cleaned.fetch_add(1, Ordering::Relaxed);
        }
        outcome != Outcome::Aborted
    }

    fn move_records(&self, writer: &mut Writer, victim: BlockId, target: Target, used: usize) -> Outcome {
        let Writer { staging, block, items, found } = writer;
        let Some(bytes) = block.get_mut(..used) else { return Outcome::Aborted };
        let Ok(remote) = self.remote(target.node) else { return Outcome::Aborted };
        if used > 0
            && let Err(error) = remote.read_at(Lane::WRITER, target.remote, 0, bytes)
        {
            self.call_failed(victim, target.node, target.generation, error);
            return Outcome::Aborted;
        }
        self.counters.count_read(target.node, used);
        let damaged = walk(victim, bytes, found).is_err();
        if damaged {
            self.counters.bad_records.fetch_add(1, Ordering::Relaxed);
        }
        let mut next = 0;
        while next < found.len() {
            let Some((batch, to)) = self.prepare_move(found, &mut next, bytes, staging, items) else {
                if next >= found.len() {
                    break;
                }
                return Outcome::Aborted;
            };
            let len = batch.units as usize * UNIT_BYTES;
            let written = self.send(&batch, to, &staging[..len]);
            self.state().model.finish_move(&batch, items, written);
            if !written {
                return Outcome::Aborted;
            }
            self.counters.bytes_moved.fetch_add(len as u64, Ordering::Relaxed);
        }
        if damaged { Outcome::Damaged } else { Outcome::Complete }
    }

    fn prepare_move(
        &self,
        found: &[Found],
        next: &mut usize,
        bytes: &[u8],
        staging: &mut [u8],
        items: &mut Vec<Item>,
    ) -> Option<(Batch, Target)> {
        for _ in 0..2 * self.nodes.len() + 4 {
            let reserve = {
                let mut guard = self.state();
                let state = &mut *guard;
                let open = state.model.blocks.open_block(Stream::Moved);
                if let Some(target) = open.and_then(|(block, ..)| state.target(block)) {
                    let batch = state.model.begin_move(found, next, bytes, staging, items);
                    if batch.is_some() || *next >= found.len() {
                        return batch.map(|batch| (batch, target));
                    }
                }
                match state.model.blocks.open_next(Stream::Moved, &mut state.choices) {
                    Next::Opened => None,
                    Next::Reserve(node) => Some(node),
                    Next::Nothing => return None,
                }
            };
            if let Some(node) = reserve {
                self.reserve_from(node, Lane::WRITER);
            }
        }
        None
    }
}

#[cfg(test)]
impl Shared {
    /// Cleans the best victim, as the flusher would when blocks run low.
    pub(super) fn clean_for_test(&self) -> bool {
        let mut writer = self.writer.lock().unwrap();
        self.clean_one(&mut writer, CLEAN_AT_MOST_UNITS)
    }
}
