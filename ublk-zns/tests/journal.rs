//! The journal against power cuts at every write, torn and reordered.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use std::{cell::RefCell, io, rc::Rc};
use ublk_zns::{
    Geometry, ZnsConfig, ZoneId, ZoneState,
    media::journal::{Entry, Journal, LogStore, replay},
};

const ZONES: u32 = 4;
const CRC: u32 = 7;
/// What a disk writes at once.
const SECTOR: usize = 512;

fn geometry() -> Geometry {
    Geometry::new(&ZnsConfig { size_bytes: 4 << 20, zone_size_bytes: 1 << 20, ..ZnsConfig::default() })
        .unwrap()
}

fn entry(zone: u32, written: u64) -> Entry {
    Entry {
        zone: ZoneId(zone),
        state: if written == 0 { ZoneState::Empty } else { ZoneState::Closed },
        written,
        cycles: 1,
        reads: 2,
        programmed_at_ns: 3,
        opened: 4,
        host_sectors: written,
    }
}

/// A file and the writes that are not synced yet.
#[derive(Default)]
struct Disk {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Replacements and writes until this one, then the power is gone.
    left: Option<u64>,
}

#[derive(Clone, Default)]
struct Faulty(Rc<RefCell<Disk>>);

impl Disk {
    fn step(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(io::Error::other("no power")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What is found after the cut: of each sector that changed since the last sync, the old or the new.
    fn after_cut(&self, coins: u64) -> Vec<u8> {
        let mut found = self.durable.clone();
        // The length, too, may or may not have been noted.
        if coins & 1 == 0 {
            found.resize(self.current.len(), 0);
        }
        for (n, start) in (0..found.len()).step_by(SECTOR).enumerate() {
            let end = (start + SECTOR).min(found.len());
            if coins >> ((n + 1) % 64) & 1 == 0 {
                for (at, byte) in (start..end).zip(&mut found[start..end]) {
                    *byte = self.current.get(at).copied().unwrap_or(0);
                }
            }
        }
        found
    }
}

impl LogStore for Faulty {
    fn read(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.borrow().current.clone())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        let (offset, result) = (offset as usize, disk.step());
        // The write under way when the power goes may be there in part.
        disk.current.truncate(offset);
        disk.current.extend_from_slice(bytes);
        result
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.step()?;
        disk.durable = disk.current.clone();
        Ok(())
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.step()?;
        disk.current = bytes.to_vec();
        disk.durable = bytes.to_vec();
        Ok(())
    }
}

proptest! {
    #[test]
    fn after_a_cut_at_any_write_the_journal_says_the_last_synced_or_the_one_under_way(
        batches in prop::collection::vec(prop::collection::vec((0..ZONES, 0u64..2000), 1..20), 1..8),
        left in 0u64..20,
        coins: u64,
    ) {
        let store = Faulty::default();
        let start: Vec<Entry> = (0..ZONES).map(|zone| entry(zone, 0)).collect();
        let mut journal = Journal::create(store.clone(), &geometry(), CRC, &start).unwrap();
        store.0.borrow_mut().left = Some(left);
        let mut known = vec![start];
        for batch in batches {
            let entries: Vec<Entry> = batch.into_iter().map(|(zone, written)| entry(zone, written)).collect();
            let mut next = known.last().unwrap().clone();
            entries.iter().for_each(|entry| next[entry.zone.0 as usize] = *entry);
            known.push(next);
            if journal.append(&entries).is_err() {
                break;
            }
        }
        let found = store.0.borrow().after_cut(coins);
        let cut = store.0.borrow().left == Some(0);
        let replayed = replay(&found, ZONES, CRC).unwrap();
        let says: Vec<Entry> = replayed.zones.into_iter().flatten().collect();
        let last = known.len() - 1;
        let is = |n: usize| known.get(n) == Some(&says);
        prop_assert!(if cut { is(last) || is(last.wrapping_sub(1)) } else { is(last) }, "{:?}", says);

        // And it goes on from there.
        store.0.borrow_mut().current = found.clone();
        store.0.borrow_mut().durable = found;
        store.0.borrow_mut().left = None;
        let (mut journal, _) = Journal::open(store.clone(), &geometry(), CRC).ok().unwrap();
        journal.append(&[entry(1, 77)]).unwrap();
        let after = replay(&store.0.borrow().durable, ZONES, CRC).unwrap();
        prop_assert_eq!(after.torn_at, None);
        prop_assert_eq!(after.zones[1], Some(entry(1, 77)));
        prop_assert_eq!(after.zones[0], Some(says[0]));
    }

    #[test]
    fn arbitrary_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = replay(&bytes, ZONES, CRC);
    }

    #[test]
    fn a_flipped_bit_is_a_torn_tail_in_the_last_record_and_an_error_before_it(at in 0usize..600, bit in 0u8..8) {
        let store = Faulty::default();
        let start: Vec<Entry> = (0..ZONES).map(|zone| entry(zone, 0)).collect();
        let mut journal = Journal::create(store.clone(), &geometry(), CRC, &start).unwrap();
        journal.append(&[entry(0, 8)]).unwrap();
        let second = store.0.borrow().durable.len();
        journal.append(&[entry(0, 16)]).unwrap();
        let mut bytes = store.0.borrow().durable.clone();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        match replay(&bytes, ZONES, CRC) {
            Ok(found) => {
                prop_assert!(at >= second, "byte {} changed and nothing was said", at);
                prop_assert_eq!(found.torn_at, Some(second as u64));
                prop_assert_eq!(found.zones[0], Some(entry(0, 8)));
            }
            Err((offset, why)) => {
                prop_assert!(at < second, "{}", why);
                prop_assert!(offset <= at as u64 + 24, "{} at {}: {}", offset, at, why);
            }
        }
    }
}

#[test]
fn a_record_of_an_unknown_kind_is_skipped_if_its_tag_allows_it() {
    let store = Faulty::default();
    let start: Vec<Entry> = (0..ZONES).map(|zone| entry(zone, 0)).collect();
    let mut journal = Journal::create(store.clone(), &geometry(), CRC, &start).unwrap();
    let at = store.0.borrow().durable.len();
    journal.append(&[entry(0, 8)]).unwrap();
    journal.append(&[entry(1, 8)]).unwrap();
    let tagged = |tag: u16| {
        let mut bytes = store.0.borrow().durable.clone();
        bytes[at + 20..at + 22].copy_from_slice(&tag.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[at + 8..at + 24 + 48]);
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        replay(&bytes, ZONES, CRC)
    };
    let skipped = tagged(0x8001).unwrap();
    assert_eq!((skipped.zones[0], skipped.zones[1]), (Some(entry(0, 0)), Some(entry(1, 8))));
    let (offset, why) = tagged(2).unwrap_err();
    assert_eq!((offset, why.as_str()), (at as u64, "a record of the unknown kind 2"));
}
