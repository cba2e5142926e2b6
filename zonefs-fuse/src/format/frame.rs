//! Frames: the unit that is written to a metadata zone, and that counts whole or not at all.
//!
//! A frame is a header of [`HEADER_BYTES`] and a payload, padded with zeros to whole blocks. Its crc32c covers
//! everything from the field behind it to the end of the padding. `sequence` is that of the zone's
//! superblock, `index` counts the frames of the zone, and `salt` belongs to the file system: a frame that was
//! left over, or that somebody put into a file name, is not taken for one of ours.

use super::VERSION;
use super::codec::{Reader, Writer};

/// The first four bytes of every frame.
pub const MAGIC: u32 = u32::from_le_bytes(*b"ZFRM");
/// The length of a header.
pub const HEADER_BYTES: usize = 48;
/// No frame is longer than this, header and padding included.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A [`super::Superblock`], the first frame of a zone.
    Superblock,
    /// Entries of a snapshot.
    Snapshot,
    /// Entries of the log.
    Log,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame holds.
    pub kind: FrameKind,
    /// The length of the payload.
    pub payload_bytes: u32,
    /// The generation of the metadata: the higher one is newer.
    pub sequence: u64,
    /// The frame's number in its zone, from 0.
    pub index: u64,
    /// A number chosen by mkfs.
    pub salt: u64,
}

impl FrameHeader {
    /// The length of the whole frame on a device of this block size.
    pub fn frame_bytes(&self, block_size: usize) -> usize {
        (HEADER_BYTES + self.payload_bytes as usize).next_multiple_of(block_size.max(1))
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// They do not start like one.
    #[error("no frame starts here")]
    NoMagic,
    /// The frame is longer than the bytes, or than any frame may be.
    #[error("a frame of {0} bytes does not fit here")]
    TooLong(u64),
    /// The checksum does not match.
    #[error("the crc32c is {found:#010x}, the frame says {stored:#010x}")]
    Crc {
        /// What was computed.
        found: u32,
        /// What is stored.
        stored: u32,
    },
    /// The frame was written by a later version.
    #[error("format version {0} is newer than {VERSION}, the newest this program knows")]
    Version(u16),
    /// A field has a value that none can have, under a good checksum.
    #[error("field {0} is not valid")]
    Field(&'static str),
}

/// Encodes a frame. `None` when the payload is too long for one.
pub fn encode(header: FrameHeader, payload: &[u8], block_size: usize) -> Option<Vec<u8>> {
    let header = FrameHeader { payload_bytes: u32::try_from(payload.len()).ok()?, ..header };
    let length = header.frame_bytes(block_size);
    if length > MAX_FRAME_BYTES {
        return None;
    }
    let mut out = Writer::default();
    out.u32(MAGIC);
    out.u32(0);
    out.u16(match header.kind {
        FrameKind::Superblock => 1,
        FrameKind::Snapshot => 2,
        FrameKind::Log => 3,
    });
    out.u16(VERSION);
    out.u32(header.payload_bytes);
    out.u64(header.sequence);
    out.u64(header.index);
    out.u64(header.salt);
    out.u64(0);
    out.bytes(payload);
    let mut bytes = out.0;
    bytes.resize(length, 0);
    let crc = crc32c::crc32c(bytes.get(8..)?);
    bytes.get_mut(4..8)?.copy_from_slice(&crc.to_le_bytes());
    Some(bytes)
}

/// The length a frame claims to have, from its first block: what has to be read before [`decode`].
pub fn claimed_bytes(bytes: &[u8], block_size: usize) -> Result<usize, FrameError> {
    let mut fields = Reader(bytes);
    if fields.u32() != Some(MAGIC) {
        return Err(FrameError::NoMagic);
    }
    let payload = fields.bytes(8).and_then(|_| fields.u32()).ok_or(FrameError::NoMagic)?;
    let length = (HEADER_BYTES as u64 + u64::from(payload)).next_multiple_of(block_size.max(1) as u64);
    usize::try_from(length).ok().filter(|l| *l <= MAX_FRAME_BYTES).ok_or(FrameError::TooLong(length))
}

/// Decodes the frame at the start of `bytes`; the payload borrows from them.
pub fn decode(bytes: &[u8], block_size: usize) -> Result<(FrameHeader, &[u8]), FrameError> {
    let length = claimed_bytes(bytes, block_size)?;
    let frame = bytes.get(..length).ok_or(FrameError::TooLong(length as u64))?;
    parse(frame)
}

fn parse(frame: &[u8]) -> Result<(FrameHeader, &[u8]), FrameError> {
    let short = || FrameError::TooLong(frame.len() as u64);
    let mut fields = Reader(frame);
    fields.u32().ok_or_else(short)?;
    let stored = fields.u32().ok_or_else(short)?;
    let found = crc32c::crc32c(fields.0);
    if stored != found {
        return Err(FrameError::Crc { found, stored });
    }
    let kind = fields.u16().ok_or_else(short)?;
    let version = fields.u16().ok_or_else(short)?;
    if version == 0 || version > VERSION {
        return Err(FrameError::Version(version));
    }
    let kind = match kind {
        1 => FrameKind::Superblock,
        2 => FrameKind::Snapshot,
        3 => FrameKind::Log,
        _ => return Err(FrameError::Field("kind")),
    };
    let payload_bytes = fields.u32().ok_or_else(short)?;
    let sequence = fields.u64().ok_or_else(short)?;
    let index = fields.u64().ok_or_else(short)?;
    let salt = fields.u64().ok_or_else(short)?;
    fields.u64().ok_or_else(short)?;
    let payload = fields.bytes(payload_bytes as usize).ok_or_else(short)?;
    Ok((FrameHeader { kind, payload_bytes, sequence, index, salt }, payload))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(sequence: u64, index: u64, salt: u64) -> FrameHeader {
        FrameHeader { kind: FrameKind::Log, payload_bytes: 0, sequence, index, salt }
    }

    #[test]
    fn a_payload_longer_than_a_frame_is_refused() {
        assert_eq!(encode(header(1, 2, 3), &vec![0; MAX_FRAME_BYTES], 512), None);
    }

    #[test]
    fn a_frame_of_a_later_version_is_named_and_not_read() {
        let mut bytes = encode(header(1, 0, 0), b"x", 512).unwrap();
        bytes[10] = 2;
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes, 512), Err(FrameError::Version(2)));
    }

    proptest! {
        #[test]
        fn a_frame_reads_back_as_it_was_written(
            payload in prop::collection::vec(any::<u8>(), 0..5000),
            sequence: u64, index: u64, salt: u64, big: bool,
        ) {
            let block = if big { 4096 } else { 512 };
            let bytes = encode(header(sequence, index, salt), &payload, block).unwrap();
            prop_assert_eq!(bytes.len() % block, 0);
            let (got, back) = decode(&bytes, block).unwrap();
            prop_assert_eq!(got.frame_bytes(block), bytes.len());
            prop_assert_eq!((got.sequence, got.index, got.salt), (sequence, index, salt));
            prop_assert_eq!(back, &payload[..]);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_never_pass(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(decode(&bytes, 512).is_err());
            let mut with_magic = MAGIC.to_le_bytes().to_vec();
            with_magic.extend(bytes);
            prop_assert!(decode(&with_magic, 512).is_err());
        }

        #[test]
        fn a_frame_with_one_changed_bit_does_not_pass(
            payload in prop::collection::vec(any::<u8>(), 0..900), at: prop::sample::Index, bit in 0..8,
        ) {
            let mut bytes = encode(header(5, 6, 7), &payload, 512).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(decode(&bytes, 512).is_err());
        }
    }
}
