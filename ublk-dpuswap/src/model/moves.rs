//! Cleaning: finding the records of a block, and moving those that are still wanted into another one.

use super::{Batch, Item, Mapping, Model, Stream};
use crate::record::{self, HEADER_BYTES, RecordError, RecordHeader, record_bytes};
use crate::seal::{PageKey, Place};
use crate::units::{BlockId, EntryId, Location, PageNo, UNIT_BYTES, units_of};

/// A record found in a block, opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The page the record is of.
    pub page: PageNo,
    /// Where it is.
    pub at: Location,
    /// Byte offset of its plaintext payload in the caller's buffer.
    pub scratch_offset: u32,
    /// Its header. Codec and length are those of the payload in the buffer, which may have been compressed anew.
    pub header: RecordHeader,
}

/// Lists what may be records of a block, by the headers alone: nothing is verified and nothing in `bytes` changes. Two of
/// them may overlap, as a batch that failed leaves older bytes in front of the next one, and those can be whole records of
/// the block's earlier life. The caller keeps those that are wanted, which never overlap, and opens them
/// ([`open_found`]); opening is in place, so opening one of the others could spoil a wanted one.
///
/// `found` is emptied first and never grows past its capacity: one for each unit of `bytes` is enough.
pub fn walk(block: BlockId, bytes: &[u8], sealed: bool, found: &mut Vec<Found>) {
    found.clear();
    let units = bytes.len().div_ceil(UNIT_BYTES).min(found.capacity()) as u32;
    for offset_units in 0..units {
        let offset = offset_units as usize * UNIT_BYTES;
        let Some(Ok((header, as_sealed))) = bytes.get(offset..).map(record::peek) else { continue };
        if as_sealed == sealed {
            let len_bytes = record_bytes(header.payload_bytes, sealed) as u32;
            let at = Location { block, offset_units, len_bytes };
            found.push(Found {
                page: header.page,
                at,
                scratch_offset: (offset + HEADER_BYTES) as u32,
                header,
            });
        }
    }
}

/// Opens records in place and drops those of `found` that are bad. Gives the byte offset of the first bad one and what is
/// wrong with it.
///
/// # Errors
/// As above; the good records are in `found` all the same.
pub fn open_found(
    generation: u64,
    bytes: &mut [u8],
    key: Option<&PageKey>,
    found: &mut Vec<Found>,
) -> Result<(), (usize, RecordError)> {
    let mut bad = None;
    found.retain(|record| {
        let offset = record.at.offset_bytes();
        let place = Place { generation, offset_units: record.at.offset_units };
        let bytes = bytes.get_mut(offset..).unwrap_or_default();
        match record::open(bytes, key, place) {
            Ok(_) => true,
            Err(error) => {
                bad.get_or_insert((offset, error));
                false
            }
        }
    });
    bad.map_or(Ok(()), Err)
}

impl Model {
    /// Where the page's word says that it lies at `at`: the entry that holds it too, if one does.
    fn lies_at(&self, page: PageNo, at: Location) -> Option<Option<EntryId>> {
        match self.table.get(page) {
            Mapping::Remote(now) => (now == at).then_some(None),
            Mapping::Cached(id) => {
                let entry = self.cache.entry(id).filter(|entry| !entry.dirty)?;
                (entry.remote == Some(at)).then_some(Some(id))
            }
            _ => None,
        }
    }

    /// Whether a record that was found is still the one its page is read from.
    pub fn is_wanted(&self, found: &Found) -> bool {
        self.lies_at(found.page, found.at).is_some()
    }

    /// Starts to move the wanted ones of `found` (from `next` on) into the cleaner's open block: builds their records
    /// from the payloads in `scratch`, in `staging`; each is still to be sealed for its new place ([`record::seal`]).
    /// `next` is where to go on when the block is full. `items` is emptied first and never grows past its capacity.
    pub fn begin_move(
        &mut self,
        found: &[Found],
        next: &mut usize,
        scratch: &[u8],
        staging: &mut [u8],
        items: &mut Vec<Item>,
    ) -> Option<Batch> {
        items.clear();
        let (block, offset_units, left) = self.blocks.open_block(Stream::Moved)?;
        let room = left.min((staging.len() / UNIT_BYTES) as u32);
        let mut units = 0;
        while let Some(record) = found.get(*next) {
            let RecordHeader { payload_bytes, .. } = record.header;
            let from = record.scratch_offset as usize;
            let payload = scratch.get(from..from.saturating_add(payload_bytes));
            if let Some(payload) = payload.filter(|_| self.is_wanted(record)) {
                let len_bytes = record_bytes(payload_bytes, self.shape.sealed);
                let need = units_of(len_bytes);
                if units + need > room || items.len() == items.capacity() {
                    break;
                }
                let to = units as usize * UNIT_BYTES;
                let place = &mut staging[to..to + need as usize * UNIT_BYTES];
                record::begin(&RecordHeader { page: record.page, ..record.header }, place);
                place[HEADER_BYTES..HEADER_BYTES + payload_bytes].copy_from_slice(payload);
                place[HEADER_BYTES + payload_bytes..].fill(0);
                let new = Location { block, offset_units: offset_units + units, len_bytes: len_bytes as u32 };
                items.push(Item { page: record.page, entry: EntryId(u32::MAX), old: record.at, new });
                units += need;
            }
            *next += 1;
        }
        if items.is_empty() {
            return None;
        }
        self.blocks.advance(block, units);
        Some(Batch { block, offset_units, units, generation: self.blocks.generation(block) })
    }

    /// Ends a move: pages that are still where they were found are at their new place from now on.
    pub fn finish_move(&mut self, batch: &Batch, items: &[Item], written: bool) {
        let stands = written && self.stands(batch);
        for item in items.iter().filter(|_| stands) {
            match self.lies_at(item.page, item.old) {
                Some(None) => self.remap(item.page, Mapping::Remote(item.new)),
                Some(Some(id)) => self.cache.moved(id, item.new),
                None => continue,
            }
            self.blocks.add_live(item.new);
            self.blocks.kill(item.old);
        }
        if !stands {
            self.blocks.seal_block(batch.block);
        }
        self.blocks.written(batch.block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;

    fn put(bytes: &mut [u8], key: &PageKey, place: Place, page: u32, payload_bytes: usize) {
        let header = RecordHeader { codec: Codec::Lz4, payload_bytes, page: PageNo(page), seq: 1 };
        let from = place.offset_units as usize * UNIT_BYTES;
        let record = &mut bytes[from..from + record_bytes(payload_bytes, true)];
        record::begin(&header, record);
        record::seal(record, Some(key), place);
    }

    #[test]
    fn a_record_of_an_earlier_life_that_reaches_into_a_wanted_one_does_not_spoil_it() {
        let key = PageKey::new(&[5; 32]);
        let mut bytes = vec![0; 16 * UNIT_BYTES];
        // Three units at 2 in an earlier life; now two units at 3, in front of which a batch failed.
        put(&mut bytes, &key, Place { generation: 1, offset_units: 2 }, 8, 89);
        put(&mut bytes, &key, Place { generation: 2, offset_units: 3 }, 9, 25);
        let mut found = Vec::with_capacity(16);
        walk(BlockId(0), &bytes, true, &mut found);
        assert_eq!(found.iter().map(|record| record.page.0).collect::<Vec<_>>(), [8, 9]);
        found.retain(|record| record.page == PageNo(9));
        assert_eq!(open_found(2, &mut bytes, Some(&key), &mut found), Ok(()));
        assert_eq!(found.len(), 1);
    }
}
