//! The record of one page in a remote block: a 24-byte header, then the payload.
//!
//! Records follow each other in a block at multiples of 64 bytes, so that a block can be walked from its start by the
//! headers alone (the cleaner does; recovery will). Little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | magic `0x5044` ("DP") |
//! | 2 | version, 1 |
//! | 3 | codec: 0 raw, 1 LZ4 |
//! | 4..6 | payload length, bytes |
//! | 6..8 | flags, 0; a reader refuses flags it does not know |
//! | 8..12 | logical page number |
//! | 12..16 | crc32c of the header with this field 0, then the payload |
//! | 16..24 | sequence number: of two records of one page the higher is the newer |
//!
//! Invariant: what [`decode`] accepts is what [`begin`] and [`seal`] made, for that page, unaltered.

use crate::codec::Codec;
use crate::units::{PAGE_BYTES, PageNo};

/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 24;
/// The longest record: a raw page and its header.
pub const MAX_RECORD_BYTES: usize = HEADER_BYTES + PAGE_BYTES;
const MAGIC: u16 = 0x5044;
const VERSION: u8 = 1;

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// How the payload is coded.
    pub codec: Codec,
    /// Bytes of payload.
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
    /// A later format.
    #[error("record version {0}, this build reads 1")]
    Version(u8),
    /// An unknown codec, unknown flags or an impossible length.
    #[error("unknown codec, flags or length")]
    Field,
    /// The checksum does not match.
    #[error("checksum mismatch")]
    Crc,
    /// A whole record, but of another page.
    #[error("it is the record of page {0}")]
    Page(u32),
}

/// Writes the header into the first bytes of `record` (header and payload, nothing else), checksum still open.
///
/// Split from [`seal`] because the checksum need not be computed under the engine's lock.
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

/// Puts the checksum into a record that [`begin`] started and whose payload is in place.
pub fn seal(record: &mut [u8]) {
    record[12..16].fill(0);
    let crc = crc32c::crc32c(record);
    record[12..16].copy_from_slice(&crc.to_le_bytes());
}

/// Reads the record at the start of `bytes`; gives its header and payload. Bytes after it are ignored.
///
/// # Errors
/// Says why the bytes are not a whole, unaltered record.
pub fn decode(bytes: &[u8]) -> Result<(RecordHeader, &[u8]), RecordError> {
    let (header, payload) = parse(bytes)?;
    let (head, _) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(RecordError::Short)?;
    let mut blank = *head;
    blank[12..16].fill(0);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&blank), payload);
    if head[12..16] == crc.to_le_bytes() { Ok((header, payload)) } else { Err(RecordError::Crc) }
}

/// Reads a record whose checksum has been verified already.
pub fn peek(bytes: &[u8]) -> Option<(RecordHeader, &[u8])> {
    parse(bytes).ok()
}

fn parse(bytes: &[u8]) -> Result<(RecordHeader, &[u8]), RecordError> {
    let (head, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(RecordError::Short)?;
    if head[0..2] != MAGIC.to_le_bytes() {
        return Err(RecordError::Magic);
    }
    if head[2] != VERSION {
        return Err(RecordError::Version(head[2]));
    }
    let payload_bytes = usize::from(u16::from_le_bytes([head[4], head[5]]));
    let codec = Codec::from_u8(head[3]).ok_or(RecordError::Field)?;
    if payload_bytes > PAGE_BYTES || head[6..8] != [0, 0] {
        return Err(RecordError::Field);
    }
    let payload = rest.get(..payload_bytes).ok_or(RecordError::Short)?;
    let page = PageNo(u32::from_le_bytes([head[8], head[9], head[10], head[11]]));
    let mut seq = [0; 8];
    seq.copy_from_slice(&head[16..24]);
    Ok((RecordHeader { codec, payload_bytes, page, seq: u64::from_le_bytes(seq) }, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn make(page: u32, seq: u64, payload: &[u8]) -> Vec<u8> {
        let mut record = vec![0; HEADER_BYTES];
        record.extend_from_slice(payload);
        let header =
            RecordHeader { codec: Codec::Lz4, payload_bytes: payload.len(), page: PageNo(page), seq };
        begin(&header, &mut record);
        seal(&mut record);
        record
    }

    proptest! {
        #[test]
        fn a_record_reads_back_and_any_flipped_bit_is_noticed(
            page: u32, seq: u64, payload in proptest::collection::vec(any::<u8>(), 0..4096), flip: prop::sample::Index,
        ) {
            let mut record = make(page, seq, &payload);
            let (header, back) = decode(&record).unwrap();
            prop_assert_eq!((header.page.0, header.seq, back), (page, seq, &payload[..]));
            let bit = flip.index(record.len() * 8);
            record[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&record).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in any::<Vec<u8>>()) {
            let _ = decode(&bytes);
            let mut with_magic = vec![0x44, 0x50, 1, 1];
            with_magic.extend(bytes);
            let _ = decode(&with_magic);
        }
    }
}
