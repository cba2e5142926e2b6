//! The in-memory table: random writes and reads against an independent reference, and each rule by name.
#![allow(clippy::unwrap_used, missing_docs)]

mod reference;

use lsm_store::{
    Entry, MemTable, MemTableError, Record, SeqNo, TimestampNs,
    memtable::{KEY_OVERHEAD_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, VERSION_OVERHEAD_BYTES},
};
use proptest::prelude::*;
use reference::{Reference, Write};
use std::ops::Bound;

/// An entry in the reference's terms.
fn plain(entry: Entry<'_>) -> Write {
    let (value, deleted_at) = match entry.record {
        Record::Put(value) => (Some(value.to_vec()), 0),
        Record::Delete { deleted_at } => (None, deleted_at.0),
    };
    Write { key: entry.key.to_vec(), seq: entry.seq.0, value, deleted_at }
}

fn apply(table: &mut MemTable, write: &Write) -> Result<(), MemTableError> {
    match &write.value {
        Some(value) => table.put(&write.key, value, SeqNo(write.seq)),
        None => table.delete(&write.key, SeqNo(write.seq), TimestampNs(write.deleted_at)),
    }
}

/// Few and short keys, the empty one and prefixes of each other among them, so that keys meet often.
fn keys() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0u8, 1, b'a', b'b', 255]), 0..4)
}

/// Writes whose sequence numbers mostly rise, and sometimes stand still or fall back.
fn writes() -> impl Strategy<Value = Vec<Write>> {
    let one = (
        keys(),
        prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..20)),
        0u64..50,
        prop_oneof![9 => 1i64..4, 1 => -3i64..1],
    );
    prop::collection::vec(one, 0..80).prop_map(|writes| {
        let mut seq = 0i64;
        let mut all = Vec::new();
        for (key, value, time, step) in writes {
            seq = (seq + step).max(0);
            let deleted_at = if value.is_some() { 0 } else { time };
            all.push(Write { key, seq: seq as u64, value, deleted_at });
        }
        all
    })
}

fn both(writes: &[Write]) -> (MemTable, Reference) {
    let (mut table, mut reference) = (MemTable::new(), Reference::default());
    for write in writes {
        let accepted = apply(&mut table, write).is_ok();
        assert_eq!(accepted, reference.write(write.clone()), "{write:?}");
    }
    (table, reference)
}

fn bounds() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![keys().prop_map(Bound::Included), keys().prop_map(Bound::Excluded), Just(Bound::Unbounded),]
}

fn borrowed(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

fn after(start: &Bound<Vec<u8>>, key: &[u8]) -> bool {
    match start {
        Bound::Included(start) => key >= start.as_slice(),
        Bound::Excluded(start) => key > start.as_slice(),
        Bound::Unbounded => true,
    }
}

fn before(end: &Bound<Vec<u8>>, key: &[u8]) -> bool {
    match end {
        Bound::Included(end) => key <= end.as_slice(),
        Bound::Excluded(end) => key < end.as_slice(),
        Bound::Unbounded => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_key_reads_as_in_the_reference_at_every_snapshot(writes in writes(), stranger in keys()) {
        let (table, reference) = both(&writes);
        let last = reference.writes.last().map_or(0, |write| write.seq);
        let mut asked = reference.distinct_keys();
        asked.push(&stranger);
        for snapshot in (0..=last + 1).chain([u64::MAX]) {
            for key in &asked {
                let expected = reference.get(key, snapshot).cloned();
                prop_assert_eq!(table.get(key, SeqNo(snapshot)).map(plain), expected);
            }
        }
    }

    #[test]
    fn any_range_scans_as_in_the_reference_forwards_and_backwards(
        writes in writes(), start in bounds(), end in bounds(), snapshot in 0u64..120,
    ) {
        let (table, reference) = both(&writes);
        let range = || (borrowed(&start), borrowed(&end));
        let expected = reference.scan(|key| after(&start, key) && before(&end, key), snapshot);
        let found: Vec<Write> = table.scan(range(), SeqNo(snapshot)).map(plain).collect();
        prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
        let mut backwards: Vec<Write> = table.scan(range(), SeqNo(snapshot)).rev().map(plain).collect();
        backwards.reverse();
        prop_assert_eq!(backwards, found);
    }

    #[test]
    fn a_frozen_table_gives_every_accepted_write_once_in_the_order_of_a_table_file(writes in writes()) {
        let (table, reference) = both(&writes);
        let frozen = table.freeze();
        let entries: Vec<Write> = frozen.entries().map(plain).collect();
        prop_assert_eq!(entries.iter().collect::<Vec<_>>(), reference.sorted());
        let mut backwards: Vec<Write> = frozen.entries().rev().map(plain).collect();
        backwards.reverse();
        prop_assert_eq!(backwards, entries);
        for write in &writes {
            let expected = reference.get(&write.key, u64::MAX).cloned();
            prop_assert_eq!(frozen.table().get(&write.key, SeqNo::MAX).map(plain), expected);
        }
    }

    #[test]
    fn the_statistics_are_those_of_the_accepted_writes(writes in writes()) {
        let (table, reference) = both(&writes);
        let (stats, all, keys) = (table.stats(), &reference.writes, reference.distinct_keys());
        let values = || all.iter().filter_map(|write| write.value.as_ref());
        let deletes = || all.iter().filter(|write| write.value.is_none());
        prop_assert_eq!(stats.keys, keys.len());
        prop_assert_eq!(stats.entries, all.len());
        prop_assert_eq!(stats.tombstones, deletes().count());
        prop_assert_eq!(stats.key_bytes, all.iter().map(|write| write.key.len()).sum::<usize>());
        prop_assert_eq!(stats.value_bytes, values().map(Vec::len).sum::<usize>());
        let memory = keys.iter().map(|key| key.len() + KEY_OVERHEAD_BYTES).sum::<usize>()
            + all.len() * VERSION_OVERHEAD_BYTES
            + values().map(Vec::len).sum::<usize>();
        prop_assert_eq!(stats.memory_bytes, memory);
        prop_assert_eq!(stats.first_seq, all.iter().map(|write| SeqNo(write.seq)).min());
        prop_assert_eq!(stats.last_seq, all.iter().map(|write| SeqNo(write.seq)).max());
        prop_assert_eq!(stats.oldest_tombstone, deletes().map(|write| TimestampNs(write.deleted_at)).min());
        prop_assert_eq!(table.key_range(), keys.first().copied().zip(keys.last().copied()));
        prop_assert_eq!(table.is_empty(), all.is_empty());
    }
}

#[test]
fn a_snapshot_sees_its_own_write_and_nothing_later() {
    let mut table = MemTable::new();
    table.put(b"k", b"old", SeqNo(5)).unwrap();
    table.put(b"k", b"new", SeqNo(9)).unwrap();
    let value = |snapshot| table.get(b"k", SeqNo(snapshot)).map(|entry| entry.record);
    assert_eq!(value(4), None);
    assert_eq!(value(5), Some(Record::Put(b"old")));
    assert_eq!(value(8), Some(Record::Put(b"old")));
    assert_eq!(value(9), Some(Record::Put(b"new")));
}

#[test]
fn a_delete_is_an_answer_and_not_the_absence_of_one() {
    let mut table = MemTable::new();
    table.delete(b"gone", SeqNo(1), TimestampNs(77)).unwrap();
    let entry = table.get(b"gone", SeqNo::MAX).unwrap();
    assert_eq!(entry.record, Record::Delete { deleted_at: TimestampNs(77) });
    assert_eq!(table.get(b"never", SeqNo::MAX), None);
    let scanned: Vec<Entry<'_>> = table.scan(.., SeqNo::MAX).collect();
    assert_eq!(scanned, [entry]);
}

#[test]
fn a_tombstone_that_a_later_put_covers_still_counts_for_the_deadline() {
    let mut table = MemTable::new();
    table.delete(b"k", SeqNo(1), TimestampNs(10)).unwrap();
    table.put(b"k", b"again", SeqNo(2)).unwrap();
    assert_eq!(table.stats().oldest_tombstone, Some(TimestampNs(10)));
    assert_eq!(table.stats().tombstones, 1);
    assert_eq!(table.freeze().entries().count(), 2);
}

#[test]
fn the_oldest_tombstone_is_the_earliest_even_when_the_clock_was_set_back() {
    let mut table = MemTable::new();
    assert_eq!(table.stats().oldest_tombstone, None);
    for (seq, time) in [(1, 50), (2, 20), (3, 90)] {
        table.delete(b"k", SeqNo(seq), TimestampNs(time)).unwrap();
    }
    assert_eq!(table.stats().oldest_tombstone, Some(TimestampNs(20)));
    assert_eq!(TimestampNs(90).since_ns(TimestampNs(20)), 70);
    assert_eq!(TimestampNs(20).since_ns(TimestampNs(90)), 0);
}

#[test]
fn a_sequence_number_that_does_not_rise_is_refused_and_changes_nothing() {
    let mut table = MemTable::new();
    table.put(b"a", b"1", SeqNo(7)).unwrap();
    let before = table.stats();
    for seq in [7, 6, 0] {
        let refused = MemTableError::OutOfOrder { seq, last: 7 };
        assert_eq!(table.put(b"b", b"2", SeqNo(seq)), Err(refused.clone()));
        assert_eq!(table.delete(b"a", SeqNo(seq), TimestampNs(1)), Err(refused));
    }
    assert_eq!((table.stats(), table.entries().count()), (before, 1));
    let message = table.put(b"b", b"2", SeqNo(7)).unwrap_err().to_string();
    assert_eq!(message, "sequence number 7: it must be above 7, that of the last write");
}

#[test]
fn the_longest_key_and_value_are_taken_and_one_byte_more_is_refused_and_changes_nothing() {
    let mut table = MemTable::new();
    let key = vec![1; MAX_KEY_BYTES + 1];
    let value = vec![2; MAX_VALUE_BYTES + 1];
    let long_key = MemTableError::KeyTooLong { bytes: MAX_KEY_BYTES + 1, max_bytes: MAX_KEY_BYTES };
    let long_value = MemTableError::ValueTooLong { bytes: MAX_VALUE_BYTES + 1, max_bytes: MAX_VALUE_BYTES };
    assert_eq!(table.put(&key, b"", SeqNo(1)), Err(long_key.clone()));
    assert_eq!(table.delete(&key, SeqNo(1), TimestampNs(1)), Err(long_key));
    assert_eq!(table.put(b"k", &value, SeqNo(1)), Err(long_value));
    assert_eq!(table.stats(), MemTable::new().stats());
    assert!(table.is_empty() && table.key_range().is_none());
    table.put(&key[1..], &value[1..], SeqNo(1)).unwrap();
    let entry = table.get(&key[1..], SeqNo::MAX).unwrap();
    assert_eq!(entry.record, Record::Put(&value[1..]));
}

#[test]
fn the_empty_key_and_the_empty_value_are_a_key_and_a_value() {
    let mut table = MemTable::new();
    table.put(b"", b"", SeqNo(0)).unwrap();
    assert_eq!(table.get(b"", SeqNo(0)).unwrap().record, Record::Put(b""));
    assert_eq!(table.key_range(), Some((&b""[..], &b""[..])));
}

#[test]
fn a_range_that_holds_nothing_is_empty_and_never_a_panic() {
    let mut table = MemTable::new();
    table.put(b"b", b"1", SeqNo(1)).unwrap();
    let (a, b, c): (&[u8], &[u8], &[u8]) = (b"a", b"b", b"c");
    assert_eq!(table.scan(c..a, SeqNo::MAX).count(), 0);
    assert_eq!(table.scan(c..=a, SeqNo::MAX).count(), 0);
    assert_eq!(table.scan(b..b, SeqNo::MAX).count(), 0);
    assert_eq!(table.scan((Bound::Excluded(b), Bound::Excluded(b)), SeqNo::MAX).count(), 0);
    assert_eq!(table.scan(b..=b, SeqNo::MAX).count(), 1);
    assert_eq!(table.scan(a..c, SeqNo::MAX).count(), 1);
}
