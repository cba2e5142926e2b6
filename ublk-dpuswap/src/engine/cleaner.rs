//! Cleaning: what is alive in the block with the least of it moves to a block of its own kind, so that the block can be used
//! again. Runs on the flusher's thread, between its runs.
//!
//! Records are opened and verified on the way, so that nothing bad is ever copied on; they are sealed again for their new
//! place, and compressed again (zstd) when that was asked for: what lives long enough to be cleaned is cold.

use std::sync::atomic::Ordering;

use super::Shared;
use super::flusher::{Target, Targets, Writer};
use crate::codec::{Codec, Decompressor, Recompressor};
use crate::model::{Batch, CLEANING_RESERVE, Found, Item, Next, Stream, open_found, walk};
use crate::record::{self, RecordError, RecordHeader};
use crate::remote::Lane;
use crate::seal::{PageKey, Place};
use crate::units::{BLOCK_BYTES, BlockId, UNIT_BYTES, UNITS_PER_BLOCK};

/// A block with more live units than this is not worth cleaning.
pub(super) const CLEAN_AT_MOST_UNITS: u32 = UNITS_PER_BLOCK / 16 * 15;
/// In the background only blocks with at most this much alive are cleaned.
const CLEAN_EARLY_UNITS: u32 = UNITS_PER_BLOCK / 4 * 3;

/// Buffers for cleaning, allocated once.
pub(super) struct CleanerBuffers {
    /// The block that is cleaned; its records are opened in place.
    block: Box<[u8]>,
    /// Records on their way to the new block.
    staging: Box<[u8]>,
    items: Vec<Item>,
    found: Vec<Found>,
    decompressor: Decompressor,
    recompressor: Option<Recompressor>,
}

impl CleanerBuffers {
    pub(super) fn new(shared: &Shared) -> Self {
        let staging = vec![0; shared.config.staging_bytes()].into_boxed_slice();
        Self {
            block: vec![0; BLOCK_BYTES].into_boxed_slice(),
            items: Vec::with_capacity(staging.len() / UNIT_BYTES),
            staging,
            found: Vec::with_capacity(UNITS_PER_BLOCK as usize),
            decompressor: Decompressor::new(),
            recompressor: shared.config.recompress.then(Recompressor::new),
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
    /// Cleans a block when blocks are running low, before a queue has to wait for it, or when a node waits for memory that
    /// it wants back. Gives whether it did.
    pub(super) fn clean_early(&self, writer: &mut Writer) -> bool {
        let (low, wanted) = {
            let mut state = self.state();
            let spare = state.model.blocks.total_spare();
            let wanted = std::mem::take(&mut state.clean_wanted);
            (spare < 2 * CLEANING_RESERVE + self.config.max_blocks() / 32, wanted)
        };
        if wanted {
            let cleaned = self.clean_one(writer, CLEAN_AT_MOST_UNITS);
            self.copy.notify_one();
            return cleaned;
        }
        low && self.clean_one(writer, CLEAN_EARLY_UNITS)
    }

    /// Moves what is alive in the block with the least of it elsewhere, so that the block can be used again. Gives
    /// whether that was done. No run may be under way.
    pub(super) fn clean_one(&self, writer: &mut Writer, max_live_units: u32) -> bool {
        let (victim, source, used, generation) = {
            let mut state = self.state();
            let blocks = &mut state.model.blocks;
            let Some(victim) = blocks.victim(max_live_units) else { return false };
            let (used, generation) = (blocks.used_bytes(victim), blocks.generation(victim));
            let Some(source) = state.readable_copy(victim) else { return false };
            state.model.blocks.pin(victim);
            (victim, source, used, generation)
        };
        let outcome = self.move_records(writer, victim, generation, source, used);
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

    fn move_records(
        &self,
        writer: &mut Writer,
        victim: BlockId,
        generation: u64,
        source: Target,
        used: usize,
    ) -> Outcome {
        let Some(bytes) = writer.cleaner.block.get_mut(..used) else { return Outcome::Aborted };
        let Some(remote) = self.remote(source.node) else { return Outcome::Aborted };
        if used > 0
            && let Err(error) = remote.read_at(Lane::WRITER, source.remote, 0, bytes)
        {
            self.call_failed(victim, source.node, source.connection, error);
            return Outcome::Aborted;
        }
        self.counters.count_read(source.node, used);
        self.open_live(writer, victim, generation, used);
        let mut next = 0;
        while next < writer.cleaner.found.len() {
            let Some((batch, mut targets)) = self.prepare_move(writer, &mut next) else {
                if next >= writer.cleaner.found.len() {
                    break;
                }
                return Outcome::Aborted;
            };
            let buffers = &mut writer.cleaner;
            let len = batch.units as usize * UNIT_BYTES;
            seal_all(&mut buffers.staging, &buffers.items, &batch, writer.key.as_ref());
            self.begin_writes(&mut targets, &batch, buffers.staging.get(..len).unwrap_or_default());
            let written = self.end_writes(&mut targets, &batch);
            self.state().model.finish_move(&batch, &buffers.items, written);
            if !written {
                return Outcome::Aborted;
            }
            self.counters.bytes_moved.fetch_add(len as u64, Ordering::Relaxed);
        }
        let left = self.state().model.blocks.live_units(victim);
        if left == 0 { Outcome::Complete } else { Outcome::Damaged }
    }

    /// Opens the records of the block that was read, in place, keeps the live ones and compresses them better if that was
    /// asked for.
    fn open_live(&self, writer: &mut Writer, victim: BlockId, generation: u64, used: usize) {
        let key = writer.key.as_ref();
        let CleanerBuffers { block, found, decompressor, recompressor, .. } = &mut writer.cleaner;
        let Some(bytes) = block.get_mut(..used) else { return };
        walk(victim, bytes, key.is_some(), found);
        let missing = {
            let state = self.state();
            found.retain(|record| state.model.is_wanted(record));
            let found_units: u32 = found.iter().map(|record| record.at.units()).sum();
            found_units < state.model.blocks.live_units(victim)
        };
        let bad = open_found(generation, bytes, key, found).err();
        if let Some((offset, error)) = bad.or_else(|| missing.then_some((0, RecordError::Missing))) {
            self.counters.bad_records.fetch_add(1, Ordering::Relaxed);
            self.state().bad_record.get_or_insert((victim, offset, error));
        }
        let Some(recompressor) = recompressor else { return };
        for record in found.iter_mut() {
            let from = record.scratch_offset as usize;
            let payload = bytes.get_mut(from..from + record.header.payload_bytes);
            let better = payload.and_then(|p| recompressor.recompress(decompressor, record.header.codec, p));
            if let Some(payload_bytes) = better {
                self.counters.pages_recompressed.fetch_add(1, Ordering::Relaxed);
                record.header = RecordHeader { codec: Codec::Zstd, payload_bytes, ..record.header };
            }
        }
    }

    fn prepare_move(&self, writer: &mut Writer, next: &mut usize) -> Option<(Batch, Targets)> {
        let tries = 2 * self.state().nodes.len() + 4;
        let CleanerBuffers { block, staging, items, found, .. } = &mut writer.cleaner;
        for _ in 0..tries {
            let reserve = {
                let mut guard = self.state();
                let state = &mut *guard;
                let open = state.model.blocks.open_block(Stream::Moved);
                if let Some(targets) = open.and_then(|(block, ..)| state.targets(block)) {
                    let batch = state.model.begin_move(found, next, block, staging, items);
                    if batch.is_some() || *next >= found.len() {
                        return batch.map(|batch| (batch, targets));
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

fn seal_all(staging: &mut [u8], items: &[Item], batch: &Batch, key: Option<&PageKey>) {
    for item in items {
        let from = (item.new.offset_units - batch.offset_units) as usize * UNIT_BYTES;
        let place = Place { generation: batch.generation, offset_units: item.new.offset_units };
        if let Some(record) = staging.get_mut(from..from + item.new.len_bytes as usize) {
            record::seal(record, key, place);
        }
    }
}

#[cfg(test)]
impl Shared {
    /// Cleans the best victim, as the flusher would when blocks run low.
    pub(super) fn clean_for_test(&self, writer: &mut Writer) -> bool {
        self.clean_one(writer, CLEAN_AT_MOST_UNITS)
    }
}
