//! The journal of a ZNS device in a directory.
//!
//! Input: a byte of switches, then changes to a good journal of three records: two bytes say where, one what. With the
//! first switch the checksum of the changed record is put right, so that its content is what is judged; with the second the
//! rest of the input is the journal. What is read says something of every zone, and is read again after what is torn is
//! cut off.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::{cell::RefCell, io, rc::Rc};
use ublk_zns::media::journal::{Entry, Journal, LogStore, replay};
use ublk_zns::{Geometry, ZnsConfig, ZoneId, ZoneState};

const ZONES: u32 = 4;
const CRC: u32 = 7;

#[derive(Clone, Default)]
struct Memory(Rc<RefCell<Vec<u8>>>);

impl LogStore for Memory {
    fn read(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.borrow().clone())
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.borrow_mut().truncate(offset as usize);
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        *self.0.borrow_mut() = bytes.to_vec();
        Ok(())
    }
}

fn geometry() -> Geometry {
    Geometry::new(&ZnsConfig { size_bytes: 4 << 20, zone_size_bytes: 1 << 20, ..ZnsConfig::default() }).unwrap()
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

fn good() -> (Vec<u8>, [usize; 3]) {
    let store = Memory::default();
    let start: Vec<Entry> = (0..ZONES).map(|zone| entry(zone, 0)).collect();
    let mut journal = Journal::create(store.clone(), &geometry(), CRC, &start).unwrap();
    let second = store.0.borrow().len();
    journal.append(&[entry(0, 8), entry(1, 16)]).unwrap();
    let third = store.0.borrow().len();
    journal.append(&[entry(2, 24)]).unwrap();
    let bytes = store.0.borrow().clone();
    (bytes, [24, second, third])
}

fuzz_target!(|input: &[u8]| {
    let Some((&switches, changes)) = input.split_first() else { return };
    let (mut bytes, records) = good();
    if switches & 2 != 0 {
        bytes = changes.to_vec();
    } else {
        for change in changes.as_chunks::<3>().0 {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
            bytes[at] = change[2];
            if switches & 1 != 0
                && let Some(record) = records.iter().rev().find(|record| **record <= at)
            {
                let length = u32::from_le_bytes(bytes[record + 16..record + 20].try_into().unwrap()) as usize;
                if let Some(summed) = bytes.get(record + 8..record.saturating_add(length)) {
                    let crc = crc32c::crc32c(summed);
                    bytes[record + 4..record + 8].copy_from_slice(&crc.to_le_bytes());
                }
            }
        }
    }
    let Ok(found) = replay(&bytes, ZONES, CRC) else { return };
    assert!(found.zones.iter().all(Option::is_some));
    assert!(found.end <= bytes.len() as u64);
    assert_eq!(found.torn_at, (found.end < bytes.len() as u64).then_some(found.end));
    let store = Memory(Rc::new(RefCell::new(bytes)));
    let (mut journal, _) = Journal::open(store.clone(), &geometry(), CRC).ok().expect("what is read opens");
    journal.append(&[entry(3, 40)]).unwrap();
    let again = replay(&store.0.borrow(), ZONES, CRC).expect("and goes on");
    assert_eq!(again.zones[3], Some(entry(3, 40)));
    assert_eq!(again.zones[..3], found.zones[..3]);
    assert_eq!(again.torn_at, None);
});
