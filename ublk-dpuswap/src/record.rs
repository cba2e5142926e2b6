//! The record of one page in a remote block: a 24-byte header, then the payload, then, when sealed, a 16-byte tag.
//!
//! Records lie in a block at multiples of 64 bytes, so that a block can be walked by the headers alone (the cleaner
//! does). Little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | magic `0x5044` ("DP") |
//! | 2 | version, 2 |
//! | 3 | codec: 0 raw, 1 LZ4, 2 zstd |
//! | 4..6 | payload length, bytes, without the tag |
//! | 6..8 | flags: bit 0 sealed; a reader refuses flags it does not know |
//! | 8..12 | logical page number |
//! | 12..16 | not sealed: crc32c of the place (12 bytes, see [`Place`]), the header with this field 0, and the payload; sealed: 0 |
//! | 16..24 | sequence number: of two records of one page the higher is the newer |
//!
//! Sealed: the payload is AES-256-GCM ciphertext, the header is the additional data, the place is the nonce.
//! Invariant: what [`open`] accepts is what [`begin`] and [`seal`] made, for that page at that place, unaltered.

use crate::codec::Codec;
use crate::seal::{PageKey, Place, TAG_BYTES};
use crate::units::{PAGE_BYTES, PageNo};

/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 24;
/// The longest record: a raw page, its header and its tag.
pub const MAX_RECORD_BYTES: usize = HEADER_BYTES + PAGE_BYTES + TAG_BYTES;
const MAGIC: u16 = 0x5044;
const VERSION: u8 = 2;
const SEALED: u16 = 1;

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// How the payload is coded.
    pub codec: Codec,
    /// Bytes of payload, without the tag.
    pub payload_bytes: usize,
    /// The page it belongs to.
    pub page: PageNo,
    /// The write it comes from.
    pub seq: u64,
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than the header or the payload needs.
    #[error("cut short")]
    Short,
    /// The magic is not that of a record.
    #[error("no record here (bad magic)")]
    Magic,
    /// Another format.
    #[error("record version {0}, this build reads 2")]
    Version(u8),
    /// An unknown codec, unknown flags or an impossible length.
    #[error("unknown codec, flags or length")]
    Field,
    /// The checksum does not match the bytes or the place.
    #[error("checksum mismatch")]
    Crc,
    /// The tag does not match: altered, moved, replayed, or sealed with another key.
    #[error("it was not sealed with this device's key for this place")]
    Forged,
    /// A record that is not sealed where only sealed ones are.
    #[error("it is not sealed, and this device seals its pages")]
    NotSealed,
    /// A sealed record where there is no key.
    #[error("it is sealed, and this device has no page key")]
    Sealed,
    /// No header where a page is said to lie, in a block that is otherwise readable.
    #[error("a record that should be in it is not there")]
    Missing,
    /// A whole record, but of another page.
    #[error("it is the record of page {0}")]
    Page(u32),
}

/// Bytes of a record without its padding.
pub const fn record_bytes(payload_bytes: usize, sealed: bool) -> usize {
    HEADER_BYTES + payload_bytes + if sealed { TAG_BYTES } else { 0 }
}

/// Writes the header into the first bytes of `record`, checksum still open.
///
/// Split from [`seal`] because checksum and encryption need not be computed under the engine's lock.
pub fn begin(header: &RecordHeader, record: &mut [u8]) {
    record[0..2].copy_from_slice(&MAGIC.to_le_bytes());
    record[2] = VERSION;
    record[3] = header.codec as u8;
    record[4..6].copy_from_slice(&(header.payload_bytes as u16).to_le_bytes());
    record[6..8].fill(0);
    record[8..12].copy_from_slice(&header.page.0.to_le_bytes());
    record[12..16].fill(0);
    record[16..24].copy_from_slice(&header.seq.to_le_bytes());
}

/// Ends a record that [`begin`] started and whose payload is in place: encrypts it when there is a key, else puts the
/// checksum in. `record` is header and payload, with a key also room for the tag, and nothing else.
pub fn seal(record: &mut [u8], key: Option<&PageKey>, place: Place) {
    let Some((head, rest)) = record.split_first_chunk_mut::<HEADER_BYTES>() else { return };
    head[12..16].fill(0);
    let Some(key) = key else {
        head[6..8].fill(0);
        let crc = checksum(head, rest, place);
        head[12..16].copy_from_slice(&crc.to_le_bytes());
        return;
    };
    head[6..8].copy_from_slice(&SEALED.to_le_bytes());
    let Some((payload, room)) = rest.split_last_chunk_mut::<TAG_BYTES>() else { return };
    match key.seal(place, head, payload) {
        Some(tag) => *room = tag,
        // Nothing readable must leave the machine.
        None => payload.fill(0),
    }
}

fn checksum(head: &[u8; HEADER_BYTES], payload: &[u8], place: Place) -> u32 {
    let crc = crc32c::crc32c(&place.bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, head), payload)
}

/// Reads the record at the start of `bytes`, decrypting in place; gives its header and payload. Bytes after it are
/// ignored. After an error the bytes of the payload mean nothing.
///
/// # Errors
/// Says why the bytes are not a whole, unaltered record of this place.
pub fn open<'a>(
    bytes: &'a mut [u8],
    key: Option<&PageKey>,
    place: Place,
) -> Result<(RecordHeader, &'a [u8]), RecordError> {
    let (header, sealed) = parse(bytes)?;
    let (head, rest) = bytes.split_first_chunk_mut::<HEADER_BYTES>().ok_or(RecordError::Short)?;
    let payload_bytes = header.payload_bytes;
    match (key, sealed) {
        (None, true) => Err(RecordError::Sealed),
        (Some(_), false) => Err(RecordError::NotSealed),
        (None, false) => {
            let payload = rest.get(..payload_bytes).ok_or(RecordError::Short)?;
            let mut blank = *head;
            blank[12..16].fill(0);
            let good = head[12..16] == checksum(&blank, payload, place).to_le_bytes();
            if good { Ok((header, payload)) } else { Err(RecordError::Crc) }
        }
        (Some(key), true) => {
            let sealed = rest.get_mut(..payload_bytes + TAG_BYTES).ok_or(RecordError::Short)?;
            let payload = key.open(place, head, sealed).ok_or(RecordError::Forged)?;
            Ok((header, payload))
        }
    }
}

/// Reads only a header, and whether the record is sealed; nothing is verified but its form.
///
/// # Errors
/// Says why it is not a header.
pub fn peek(bytes: &[u8]) -> Result<(RecordHeader, bool), RecordError> {
    parse(bytes)
}

fn parse(bytes: &[u8]) -> Result<(RecordHeader, bool), RecordError> {
    let head = bytes.first_chunk::<HEADER_BYTES>().ok_or(RecordError::Short)?;
    if head[0..2] != MAGIC.to_le_bytes() {
        return Err(RecordError::Magic);
    }
    if head[2] != VERSION {
        return Err(RecordError::Version(head[2]));
    }
    let payload_bytes = usize::from(u16::from_le_bytes([head[4], head[5]]));
    let codec = Codec::from_u8(head[3]).ok_or(RecordError::Field)?;
    let flags = u16::from_le_bytes([head[6], head[7]]);
    if payload_bytes > PAGE_BYTES || flags & !SEALED != 0 {
        return Err(RecordError::Field);
    }
    let sealed = flags & SEALED != 0;
    if bytes.len() < record_bytes(payload_bytes, sealed) {
        return Err(RecordError::Short);
    }
    let page = PageNo(u32::from_le_bytes([head[8], head[9], head[10], head[11]]));
    let mut seq = [0; 8];
    seq.copy_from_slice(&head[16..24]);
    Ok((RecordHeader { codec, payload_bytes, page, seq: u64::from_le_bytes(seq) }, sealed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn make(page: u32, seq: u64, payload: &[u8], key: Option<&PageKey>, place: Place) -> Vec<u8> {
        let mut record = vec![0; record_bytes(payload.len(), key.is_some())];
        let header =
            RecordHeader { codec: Codec::Lz4, payload_bytes: payload.len(), page: PageNo(page), seq };
        begin(&header, &mut record);
        record[HEADER_BYTES..][..payload.len()].copy_from_slice(payload);
        seal(&mut record, key, place);
        record
    }

    proptest! {
        #[test]
        fn a_record_reads_back_and_any_flipped_bit_or_other_place_is_noticed(
            page: u32, seq: u64, payload in proptest::collection::vec(any::<u8>(), 0..4096),
            flip: prop::sample::Index, keyed: bool, generation: u64, offset_units in 0u32..16384,
        ) {
            let key = keyed.then(|| PageKey::new(&[7; 32]));
            let place = Place { generation, offset_units };
            let record = make(page, seq, &payload, key.as_ref(), place);
            let mut copy = record.clone();
            let (header, back) = open(&mut copy, key.as_ref(), place).unwrap();
            prop_assert_eq!((header.page.0, header.seq, back), (page, seq, &payload[..]));
            let mut flipped = record.clone();
            let bit = flip.index(record.len() * 8);
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(open(&mut flipped, key.as_ref(), place).is_err());
            let mismatch = if keyed { RecordError::Forged } else { RecordError::Crc };
            for other in [
                Place { generation: generation.wrapping_add(1), ..place },
                Place { offset_units: offset_units + 1, ..place },
            ] {
                prop_assert_eq!(open(&mut record.clone(), key.as_ref(), other).unwrap_err(), mismatch);
            }
            if keyed && payload.len() > 16 {
                prop_assert_ne!(&record[HEADER_BYTES..][..payload.len()], &payload[..], "a node reads nothing");
            }
            let other_key = PageKey::new(&[8; 32]);
            let error = open(&mut record.clone(), Some(&other_key), place).unwrap_err();
            prop_assert_eq!(error, if keyed { RecordError::Forged } else { RecordError::NotSealed });
            if keyed {
                prop_assert_eq!(open(&mut record.clone(), None, place).unwrap_err(), RecordError::Sealed);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in any::<Vec<u8>>()) {
            let key = PageKey::new(&[1; 32]);
            let place = Place { generation: 1, offset_units: 2 };
            for start in [vec![], vec![0x44, 0x50, 2, 1], vec![0x44, 0x50, 2, 1, 3, 0, 1, 0]] {
                let mut bytes = [start, bytes.clone()].concat();
                let _ = open(&mut bytes.clone(), None, place);
                let _ = open(&mut bytes, Some(&key), place);
            }
        }
    }

    #[test]
    fn a_record_of_version_1_is_refused_by_its_version() {
        let place = Place { generation: 1, offset_units: 0 };
        let mut record = make(1, 1, &[1, 2, 3], None, place);
        record[2] = 1;
        let error = open(&mut record, None, place).unwrap_err();
        assert_eq!(error.to_string(), "record version 1, this build reads 2");
    }
}
