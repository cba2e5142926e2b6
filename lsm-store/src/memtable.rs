//! The in-memory table: the newest writes of a store, sorted, until they are flushed to a table file (pure).
//!
//! The order of entries is that of a table file: user keys ascending by bytes, and of one key the newest version first.
//!
//! The invariants: every version that was written stays until the flush, so a snapshot reads the same however much is
//! written after it; sequence numbers only rise, so that a table covers one run of the log and a log replayed in order
//! makes the same table again; a write that is refused changes nothing.
//!
//! A delete is a tombstone with the time at which it was asked for. The deadline for persistent deletion runs from
//! there, and not from the flush (Lethe, SIGMOD 2020: the age of a file's oldest tombstone counts from its insertion into
//! the buffer). That age includes tombstones that a later put of the same key covers: what such a delete was about lies
//! in older tables, and is due all the same.

use crate::error::MemTableError;
use crate::types::{SeqNo, TimestampNs};
use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};

/// The longest key in bytes: its length fits 16 bits of a table's or log's record.
pub const MAX_KEY_BYTES: usize = u16::MAX as usize;

/// The longest value in bytes: 16 MiB, so that an entry fits the small zones of an experiment's device.
pub const MAX_VALUE_BYTES: usize = 16 << 20;

/// What a version costs beside its value: its place in the list of its key's versions.
pub const VERSION_OVERHEAD_BYTES: usize = size_of::<Version>();

/// What a key costs beside its bytes and versions: its place in the tree, not counting what tree nodes keep free.
pub const KEY_OVERHEAD_BYTES: usize = size_of::<(Box<[u8]>, Vec<Version>)>();

/// What was written under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// A value.
    Put(&'a [u8]),
    /// A tombstone: the key has no value, whatever older tables hold.
    Delete {
        /// When the delete was asked for. The deadline for persistent deletion runs from here.
        deleted_at: TimestampNs,
    },
}

/// One version of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The user key.
    pub key: &'a [u8],
    /// When it was written, in the order of all writes.
    pub seq: SeqNo,
    /// What was written.
    pub record: Record<'a>,
}

/// What a table holds, as a flush decision, a compaction policy and a table file's properties need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Distinct user keys.
    pub keys: usize,
    /// Versions of all keys, tombstones included.
    pub entries: usize,
    /// Tombstones, those covered by a later put included.
    pub tombstones: usize,
    /// Bytes of keys, once per version: what they take in a table file before compression.
    pub key_bytes: usize,
    /// Bytes of values.
    pub value_bytes: usize,
    /// Approximate memory in bytes: each key once, all values, and the overheads.
    pub memory_bytes: usize,
    /// The first write.
    pub first_seq: Option<SeqNo>,
    /// The last write.
    pub last_seq: Option<SeqNo>,
    /// The earliest time of a delete, those covered by a later put included. `None` without tombstones.
    pub oldest_tombstone: Option<TimestampNs>,
}

#[derive(Debug, Clone)]
enum Stored {
    Put(Box<[u8]>),
    Delete(TimestampNs),
}

#[derive(Debug, Clone)]
struct Version {
    seq: SeqNo,
    stored: Stored,
}

impl Version {
    fn entry<'a>(&'a self, key: &'a [u8]) -> Entry<'a> {
        let record = match &self.stored {
            Stored::Put(value) => Record::Put(value),
            Stored::Delete(deleted_at) => Record::Delete { deleted_at: *deleted_at },
        };
        Entry { key, seq: self.seq, record }
    }
}

/// The in-memory table that takes writes. [`MemTable::freeze`] ends it.
#[derive(Debug, Clone, Default)]
pub struct MemTable {
    /// The versions of each key, oldest first: writes come in order, so that a new version goes to the end.
    keys: BTreeMap<Box<[u8]>, Vec<Version>>,
    stats: Stats,
}

impl MemTable {
    /// An empty table.
    pub fn new() -> MemTable {
        MemTable::default()
    }

    /// Writes `value` under `key`, as write number `seq`.
    ///
    /// # Errors
    /// A key or value above its limit; a `seq` that is not above the last one.
    pub fn put(&mut self, key: &[u8], value: &[u8], seq: SeqNo) -> Result<(), MemTableError> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(MemTableError::ValueTooLong { bytes: value.len(), max_bytes: MAX_VALUE_BYTES });
        }
        self.write(key, Version { seq, stored: Stored::Put(value.into()) })?;
        self.stats.value_bytes += value.len();
        self.stats.memory_bytes += value.len();
        Ok(())
    }

    /// Deletes `key` as write number `seq`, asked for at `deleted_at`: leaves a tombstone, whether the key is here or
    /// not, since older tables may hold it.
    ///
    /// # Errors
    /// A key above its limit; a `seq` that is not above the last one.
    pub fn delete(&mut self, key: &[u8], seq: SeqNo, deleted_at: TimestampNs) -> Result<(), MemTableError> {
        self.write(key, Version { seq, stored: Stored::Delete(deleted_at) })?;
        self.stats.tombstones += 1;
        let oldest = self.stats.oldest_tombstone;
        // The earliest, not the first: a clock may be set back between two deletes.
        self.stats.oldest_tombstone = Some(oldest.map_or(deleted_at, |oldest| oldest.min(deleted_at)));
        Ok(())
    }

    /// The newest version of `key` that `snapshot` sees. `None` says that this table knows nothing of the key, and that
    /// older tables have to be asked; a tombstone says that there is no need to.
    pub fn get(&self, key: &[u8], snapshot: SeqNo) -> Option<Entry<'_>> {
        let (key, versions) = self.keys.get_key_value(key)?;
        visible(versions, snapshot).map(|version| version.entry(key))
    }

    /// Of every key in `range` the newest version that `snapshot` sees, in the order of keys; tombstones too, because a
    /// merge needs them to hide what older tables hold. A range whose start is after its end is empty.
    pub fn scan<'k>(
        &self,
        range: impl RangeBounds<&'k [u8]>,
        snapshot: SeqNo,
    ) -> impl DoubleEndedIterator<Item = Entry<'_>> {
        let (start, end) = (range.start_bound().cloned(), range.end_bound().cloned());
        // BTreeMap::range panics where these bounds hold nothing.
        let empty = match (start, end) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (
                Bound::Included(start) | Bound::Excluded(start),
                Bound::Included(end) | Bound::Excluded(end),
            ) => start >= end,
        };
        let found = (!empty).then(|| self.keys.range::<[u8], _>((start, end)));
        found
            .into_iter()
            .flatten()
            .filter_map(move |(key, versions)| visible(versions, snapshot).map(|version| version.entry(key)))
    }

    /// Every version of every key in the order of a table file: keys ascending, of one key the newest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = Entry<'_>> {
        self.keys
            .iter()
            .flat_map(|(key, versions)| versions.iter().rev().map(move |version| version.entry(key)))
    }

    /// What the table holds.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The first and the last key; `None` of an empty table.
    pub fn key_range(&self) -> Option<(&[u8], &[u8])> {
        let (first, _) = self.keys.first_key_value()?;
        let (last, _) = self.keys.last_key_value()?;
        Some((first, last))
    }

    /// Ends the writing. The frozen table serves reads while, and until after, its flush.
    pub fn freeze(self) -> FrozenMemTable {
        FrozenMemTable { table: self }
    }

    fn write(&mut self, key: &[u8], version: Version) -> Result<(), MemTableError> {
        if key.len() > MAX_KEY_BYTES {
            return Err(MemTableError::KeyTooLong { bytes: key.len(), max_bytes: MAX_KEY_BYTES });
        }
        let seq = version.seq;
        if let Some(last) = self.stats.last_seq.filter(|last| seq <= *last) {
            return Err(MemTableError::OutOfOrder { seq: seq.0, last: last.0 });
        }
        match self.keys.get_mut(key) {
            Some(versions) => versions.push(version),
            None => {
                self.keys.insert(key.into(), vec![version]);
                self.stats.keys += 1;
                self.stats.memory_bytes += key.len() + KEY_OVERHEAD_BYTES;
            }
        }
        self.stats.entries += 1;
        self.stats.key_bytes += key.len();
        self.stats.memory_bytes += VERSION_OVERHEAD_BYTES;
        self.stats.first_seq.get_or_insert(seq);
        self.stats.last_seq = Some(seq);
        Ok(())
    }
}

/// A table that takes no more writes: what a flush writes out, and what reads ask until its file is in place.
#[derive(Debug, Clone)]
pub struct FrozenMemTable {
    table: MemTable,
}

impl FrozenMemTable {
    /// The table, for its reads and statistics.
    pub fn table(&self) -> &MemTable {
        &self.table
    }

    /// Every version of every key in the order of a table file, as [`MemTable::entries`].
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = Entry<'_>> {
        self.table.entries()
    }
}

/// The newest of `versions`, which are oldest first, that `snapshot` sees.
fn visible(versions: &[Version], snapshot: SeqNo) -> Option<&Version> {
    let seen = versions.partition_point(|version| version.seq <= snapshot);
    versions.get(seen.checked_sub(1)?)
}
