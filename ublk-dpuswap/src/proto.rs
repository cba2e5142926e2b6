//! The wire format between the swap device and a memory node. Pure: no sockets here.
//!
//! Every message is a 32-byte little-endian header and a payload; on a connection that both ends have proven a key for,
//! a 16-byte tag follows ([`crate::secure`]). The first eight bytes of the header keep their meaning in every version,
//! so that two builds can always tell each other which version they speak.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `DPSW` |
//! | 4..6 | version, 2 |
//! | 6 | opcode |
//! | 7 | flags: bit 0 = reply; others 0 |
//! | 8..16 | request id; a reply repeats it |
//! | 16..20 | status (replies; 0 in requests) |
//! | 20..24 | payload bytes, at most [`MAX_PAYLOAD_BYTES`]; the tag is not counted |
//! | 24..28 | crc32c of the header with this field 0, then the payload; 0 where a tag follows |
//! | 28..32 | 0 |
//!
//! Requests on a connection are answered in order, so a client may send several before it looks for answers.
//!
//! Invariant: no length from outside is believed before it is checked against the limits below; a message that is
//! accepted is the one that was sent.

use crate::units::{BLOCK_BYTES, RemoteBlock};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 32;
/// The version this build speaks.
pub const VERSION: u16 = 2;
/// Bytes of the tag behind a message on a connection with a key.
pub const TAG_BYTES: usize = 16;
/// Bytes of the fixed part of a WRITE or READ request.
pub const RANGE_BYTES: usize = 16;
/// Most bytes of page data in one message.
pub const MAX_DATA_BYTES: usize = BLOCK_BYTES;
/// Most bytes of payload in one message.
pub const MAX_PAYLOAD_BYTES: usize = RANGE_BYTES + MAX_DATA_BYTES;
/// Most blocks in one RESERVE, RELEASE or HELD.
pub const MAX_BLOCKS_PER_MESSAGE: usize = 256;
/// Bytes of the body of HELLO.
pub const HELLO_BYTES: usize = 32;
/// Bytes of the body of the replies to HELLO and STAT.
pub const INFO_BYTES: usize = 64;
/// Bytes of a handshake message: an ephemeral public key and a tag.
pub const HANDSHAKE_BYTES: usize = 48;
/// Bytes before the blocks in RELEASE and in the replies to RESERVE and HELD.
pub const LIST_HEAD_BYTES: usize = 8;
/// Bytes of a block in a list.
pub const LIST_ITEM_BYTES: usize = 8;
/// The longest payload that carries no page data.
pub const MAX_CONTROL_BYTES: usize = LIST_HEAD_BYTES + LIST_ITEM_BYTES * MAX_BLOCKS_PER_MESSAGE;
/// Flag in [`Info`]: the node is about to end. It lends nothing more and wants everything back.
pub const INFO_DRAINING: u32 = 1;
const MAGIC: [u8; 4] = *b"DPSW";
const FLAG_REPLY: u8 = 1;

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Opens a connection: who the client is.
    Hello = 1,
    /// Asks for blocks.
    Reserve = 2,
    /// Gives blocks back.
    Release = 3,
    /// Writes into a block.
    Write = 4,
    /// Reads from a block.
    Read = 5,
    /// Asks what the node can still lend.
    Stat = 6,
    /// Ends a connection on purpose; after the last one the node takes the client's blocks back at once.
    Bye = 7,
    /// Asks which blocks the client holds, page by page.
    Held = 8,
    /// Comes before HELLO when both ends have a key: the two messages of the handshake.
    Secure = 9,
}

impl Opcode {
    fn from_u8(number: u8) -> Option<Self> {
        use Opcode::{Bye, Held, Hello, Read, Release, Reserve, Secure, Stat, Write};
        let known = [Hello, Reserve, Release, Write, Read, Stat, Bye, Held, Secure];
        known.into_iter().find(|op| *op as u8 == number)
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The request makes no sense: a length, a range, a body.
    BadRequest = 1,
    /// The node speaks another version (its own is in the header).
    Version = 2,
    /// The block is not reserved by this client.
    NotYours = 3,
    /// The connection belongs to an earlier incarnation of this client.
    Stale = 4,
    /// The node has as many connections as it allows.
    Busy = 5,
    /// The block has been lent anew since: the message names an earlier generation.
    Reused = 6,
    /// The client has as many blocks as it may have.
    Quota = 7,
    /// The node is about to end and lends nothing more.
    Draining = 8,
    /// The node wants a key, and the client came without one.
    KeyNeeded = 9,
    /// The node has no key, and the client came with one.
    NoKey = 10,
    /// The client's key is not the node's.
    WrongKey = 11,
    /// A status this build does not know.
    Unknown = 255,
}

impl Status {
    fn from_u32(number: u32) -> Self {
        use Status::{
            BadRequest, Busy, Draining, KeyNeeded, NoKey, NotYours, Ok, Quota, Reused, Stale, Version,
            WrongKey,
        };
        let known = [
            Ok, BadRequest, Version, NotYours, Stale, Busy, Reused, Quota, Draining, KeyNeeded, NoKey,
            WrongKey,
        ];
        known.into_iter().find(|status| *status as u32 == number).unwrap_or(Status::Unknown)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ok => "done",
            Self::BadRequest => "malformed request",
            Self::Version => "wrong protocol version",
            Self::NotYours => "the block is not reserved by this client",
            Self::Stale => "the client has reconnected meanwhile",
            Self::Busy => "too many connections",
            Self::Reused => "the block has been lent anew since",
            Self::Quota => "the client's quota is used up",
            Self::Draining => "the node is about to end and lends nothing more",
            Self::KeyNeeded => {
                "the node wants a key (--key-file), the client has none (--insecure-plaintext)"
            }
            Self::NoKey => "the node has no key (--insecure-plaintext), the client has one (--key-file)",
            Self::WrongKey => "the client's key is not the node's: copy the node's key file (--key-file)",
            Self::Unknown => "unknown status",
        })
    }
}

/// A message's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What is asked, or what was asked.
    pub opcode: Opcode,
    /// Whether this is the answer.
    pub reply: bool,
    /// Number of the request.
    pub request_id: u64,
    /// How it ended; [`Status::Ok`] in requests.
    pub status: Status,
    /// Bytes that follow.
    pub payload_bytes: u32,
    /// The checksum as it came or went over the wire.
    pub crc: u32,
}

/// Why bytes are not a message of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    /// The first bytes are not the magic.
    #[error("it does not speak the dpuswap protocol")]
    Magic,
    /// Another version of the protocol.
    #[error("it speaks version {0} of the protocol, this build speaks {VERSION}")]
    Version(u16),
    /// An opcode, a flag or a reserved field that this version does not have.
    #[error("unknown opcode or flags")]
    Field,
    /// More payload than any message may have.
    #[error("a payload of {0} bytes, {MAX_PAYLOAD_BYTES} allowed")]
    TooLong(u32),
    /// The checksum does not match.
    #[error("checksum mismatch")]
    Crc,
    /// The tag does not match.
    #[error(
        "a message is not what the holder of the key sent: it was changed, replayed, or comes from someone else"
    )]
    Forged,
    /// A body that is too short, too long or contradicts itself.
    #[error("malformed body")]
    Body,
}

impl Header {
    /// A request without its checksum.
    pub fn request(opcode: Opcode, request_id: u64, payload_bytes: usize) -> Self {
        let payload_bytes = payload_bytes as u32;
        Self { opcode, reply: false, request_id, status: Status::Ok, payload_bytes, crc: 0 }
    }

    /// The answer to a request, without its checksum.
    pub fn answer(&self, status: Status, payload_bytes: usize) -> Self {
        Self { reply: true, status, payload_bytes: payload_bytes as u32, crc: 0, ..*self }
    }

    fn encode_blank(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6] = self.opcode as u8;
        out[7] = if self.reply { FLAG_REPLY } else { 0 };
        out[8..16].copy_from_slice(&self.request_id.to_le_bytes());
        out[16..20].copy_from_slice(&(self.status as u32).to_le_bytes());
        out[20..24].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out
    }

    /// Whether page data may follow the header. All other payloads are at most [`MAX_CONTROL_BYTES`] long.
    pub fn carries_data(&self) -> bool {
        match self.opcode {
            Opcode::Write => !self.reply,
            Opcode::Read => self.reply,
            _ => false,
        }
    }

    /// Bytes at the beginning of the payload that a sealed message carries in clear, though under its tag: the fixed part
    /// of a WRITE or READ request. All that follows is encrypted.
    pub fn clear_bytes(&self) -> usize {
        match self.opcode {
            Opcode::Write | Opcode::Read if !self.reply => RANGE_BYTES.min(self.payload_bytes as usize),
            _ => 0,
        }
    }

    /// The header's bytes without a checksum, for a message with a tag.
    pub fn encode_sealed(&self) -> [u8; HEADER_BYTES] {
        self.encode_blank()
    }

    /// The header's bytes, with the checksum over itself and the payload, given in two parts.
    pub fn encode(&self, body: &[u8], data: &[u8]) -> [u8; HEADER_BYTES] {
        let mut out = self.encode_blank();
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&out), body), data);
        out[24..28].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header. The checksum is checked by [`Header::verify`] once the payload is there.
    ///
    /// # Errors
    /// Says what is wrong; [`ProtoError::Version`] when only the version is.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ProtoError> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[0..4] != MAGIC {
            return Err(ProtoError::Magic);
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(ProtoError::Version(version));
        }
        let opcode = Opcode::from_u8(bytes[6]).ok_or(ProtoError::Field)?;
        if bytes[7] & !FLAG_REPLY != 0 || u32_at(28) != 0 {
            return Err(ProtoError::Field);
        }
        let payload_bytes = u32_at(20);
        if payload_bytes as usize > MAX_PAYLOAD_BYTES {
            return Err(ProtoError::TooLong(payload_bytes));
        }
        Ok(Self {
            opcode,
            reply: bytes[7] & FLAG_REPLY != 0,
            request_id: u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32,
            status: Status::from_u32(u32_at(16)),
            payload_bytes,
            crc: u32_at(24),
        })
    }

    /// Checks the checksum of a received message against the header's own bytes and the payload, in two parts.
    ///
    /// # Errors
    /// [`ProtoError::Crc`].
    pub fn verify(&self, raw: &[u8; HEADER_BYTES], body: &[u8], data: &[u8]) -> Result<(), ProtoError> {
        let mut blank = *raw;
        blank[24..28].fill(0);
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&blank), body), data);
        if crc == self.crc { Ok(()) } else { Err(ProtoError::Crc) }
    }
}

fn u32_from(bytes: &[u8], at: usize) -> Result<u32, ProtoError> {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).ok_or(ProtoError::Body)?;
    Ok(u32::from_le_bytes(field))
}

fn u64_from(bytes: &[u8], at: usize) -> Result<u64, ProtoError> {
    let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok()).ok_or(ProtoError::Body)?;
    Ok(u64::from_le_bytes(field))
}

/// Body of HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Who borrows; a random number chosen at the client's start.
    pub client_id: u64,
    /// Grows with every reconnection; connections with a lower one are fenced off.
    pub incarnation: u64,
    /// Bytes of a block, so that both sides mean the same.
    pub block_bytes: u32,
    /// How long the node is to keep the blocks after the last connection is gone, in seconds; 0 for as long as it
    /// likes. The node has a maximum of its own.
    pub grace_s: u32,
}

impl Hello {
    /// The body's bytes.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[0..8].copy_from_slice(&self.client_id.to_le_bytes());
        out[8..16].copy_from_slice(&self.incarnation.to_le_bytes());
        out[16..20].copy_from_slice(&self.block_bytes.to_le_bytes());
        out[20..24].copy_from_slice(&self.grace_s.to_le_bytes());
        out
    }

    /// Reads the body. # Errors: [`ProtoError::Body`].
    pub fn decode(body: &[u8]) -> Result<Self, ProtoError> {
        if body.len() != HELLO_BYTES {
            return Err(ProtoError::Body);
        }
        let (client_id, incarnation) = (u64_from(body, 0)?, u64_from(body, 8)?);
        Ok(Self { client_id, incarnation, block_bytes: u32_from(body, 16)?, grace_s: u32_from(body, 20)? })
    }
}

/// Body of the replies to HELLO and STAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Info {
    /// Chosen by the node at its start.
    pub epoch: u64,
    /// The client's lease. Another epoch or lease than before means that all blocks are gone.
    pub lease: u64,
    /// Blocks the node has.
    pub capacity_blocks: u32,
    /// Blocks it can still lend.
    pub free_blocks: u32,
    /// Blocks this client holds.
    pub held_blocks: u32,
    /// How many of them the node wants back now.
    pub reclaim_blocks: u32,
    /// Time left for that, in milliseconds. A node never drops a lent block: 0 means that the client is late.
    pub reclaim_deadline_ms: u32,
    /// [`INFO_DRAINING`]; others 0.
    pub flags: u32,
    /// Most blocks this client may hold; 0 when there is no such limit.
    pub quota_blocks: u32,
}

impl Info {
    /// The body's bytes.
    pub fn encode(&self) -> [u8; INFO_BYTES] {
        let mut out = [0; INFO_BYTES];
        out[0..8].copy_from_slice(&self.epoch.to_le_bytes());
        out[8..16].copy_from_slice(&self.lease.to_le_bytes());
        out[16..20].copy_from_slice(&self.capacity_blocks.to_le_bytes());
        out[20..24].copy_from_slice(&self.free_blocks.to_le_bytes());
        out[24..28].copy_from_slice(&self.held_blocks.to_le_bytes());
        out[28..32].copy_from_slice(&self.reclaim_blocks.to_le_bytes());
        out[32..36].copy_from_slice(&self.reclaim_deadline_ms.to_le_bytes());
        out[36..40].copy_from_slice(&self.flags.to_le_bytes());
        out[40..44].copy_from_slice(&self.quota_blocks.to_le_bytes());
        out
    }

    /// Reads the body. # Errors: [`ProtoError::Body`].
    pub fn decode(body: &[u8]) -> Result<Self, ProtoError> {
        if body.len() != INFO_BYTES {
            return Err(ProtoError::Body);
        }
        Ok(Self {
            epoch: u64_from(body, 0)?,
            lease: u64_from(body, 8)?,
            capacity_blocks: u32_from(body, 16)?,
            free_blocks: u32_from(body, 20)?,
            held_blocks: u32_from(body, 24)?,
            reclaim_blocks: u32_from(body, 28)?,
            reclaim_deadline_ms: u32_from(body, 32)?,
            flags: u32_from(body, 36)?,
            quota_blocks: u32_from(body, 40)?,
        })
    }
}

/// Fixed part of WRITE (the data follows) and whole body of READ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The block, by the node's number and generation.
    pub block: RemoteBlock,
    /// First byte in the block.
    pub offset_bytes: u32,
    /// Bytes.
    pub len_bytes: u32,
}

impl Range {
    /// The body's bytes.
    pub fn encode(&self) -> [u8; RANGE_BYTES] {
        let mut out = [0; RANGE_BYTES];
        out[0..4].copy_from_slice(&self.block.number.to_le_bytes());
        out[4..8].copy_from_slice(&self.block.generation.to_le_bytes());
        out[8..12].copy_from_slice(&self.offset_bytes.to_le_bytes());
        out[12..16].copy_from_slice(&self.len_bytes.to_le_bytes());
        out
    }

    /// Reads the body; the range lies inside a block.
    ///
    /// # Errors
    /// [`ProtoError::Body`].
    pub fn decode(body: &[u8]) -> Result<Self, ProtoError> {
        let range = Self {
            block: RemoteBlock { number: u32_from(body, 0)?, generation: u32_from(body, 4)? },
            offset_bytes: u32_from(body, 8)?,
            len_bytes: u32_from(body, 12)?,
        };
        let end = u64::from(range.offset_bytes) + u64::from(range.len_bytes);
        if body.len() != RANGE_BYTES || range.len_bytes == 0 || end > BLOCK_BYTES as u64 {
            return Err(ProtoError::Body);
        }
        Ok(range)
    }
}

/// Writes `head` and blocks into `out`: the reply to RESERVE (`head` = blocks still free), the body of RELEASE (`head` =
/// 0), the reply to HELD (`head` = the number to ask from next, 0 when that was all). Gives the bytes used. Blocks past
/// [`MAX_BLOCKS_PER_MESSAGE`] are left out.
pub fn encode_list(head: u32, blocks: &[RemoteBlock], out: &mut [u8; MAX_CONTROL_BYTES]) -> usize {
    let blocks = &blocks[..blocks.len().min(MAX_BLOCKS_PER_MESSAGE)];
    out[0..4].copy_from_slice(&head.to_le_bytes());
    out[4..8].copy_from_slice(&(blocks.len() as u32).to_le_bytes());
    for (field, block) in out[LIST_HEAD_BYTES..].chunks_exact_mut(LIST_ITEM_BYTES).zip(blocks) {
        field[0..4].copy_from_slice(&block.number.to_le_bytes());
        field[4..8].copy_from_slice(&block.generation.to_le_bytes());
    }
    LIST_HEAD_BYTES + LIST_ITEM_BYTES * blocks.len()
}

/// Reads what [`encode_list`] wrote: `head` and the blocks.
///
/// # Errors
/// [`ProtoError::Body`] when the count and the length disagree.
pub fn decode_list(body: &[u8]) -> Result<(u32, impl Iterator<Item = RemoteBlock> + '_), ProtoError> {
    let (head, count) = (u32_from(body, 0)?, u32_from(body, 4)? as usize);
    let items = body.get(LIST_HEAD_BYTES..).ok_or(ProtoError::Body)?;
    if count > MAX_BLOCKS_PER_MESSAGE || items.len() != LIST_ITEM_BYTES * count {
        return Err(ProtoError::Body);
    }
    let block = |[a, b, c, d, e, f, g, h]: &[u8; LIST_ITEM_BYTES]| RemoteBlock {
        number: u32::from_le_bytes([*a, *b, *c, *d]),
        generation: u32::from_le_bytes([*e, *f, *g, *h]),
    };
    Ok((head, items.as_chunks().0.iter().map(block)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn another_version_is_named_and_not_mistaken_for_garbage() {
        let mut bytes = Header::request(Opcode::Hello, 1, 0).encode(&[], &[]);
        bytes[4] = 9;
        assert_eq!(Header::decode(&bytes), Err(ProtoError::Version(9)));
        assert_eq!(Header::decode(b"HTTP/1.1 400 Bad Request\r\nServer"), Err(ProtoError::Magic));
    }

    #[test]
    fn an_over_long_payload_is_refused_before_anything_is_read() {
        let header = Header::request(Opcode::Write, 1, MAX_PAYLOAD_BYTES + 1).encode(&[], &[]);
        assert_eq!(Header::decode(&header), Err(ProtoError::TooLong(MAX_PAYLOAD_BYTES as u32 + 1)));
    }

    proptest! {
        #[test]
        fn headers_and_bodies_round_trip(
            op in 1u8..10, reply: bool, id: u64, status in 0u32..12, body in proptest::collection::vec(any::<u8>(), 0..64),
            data in any::<Vec<u8>>(), a: u64, b: u64, c: u32, d: u32, e: u32,
        ) {
            let opcode = Opcode::from_u8(op).unwrap();
            let status = Status::from_u32(status);
            let payload_bytes = (body.len() + data.len()) as u32;
            let header = Header { opcode, reply, request_id: id, status, payload_bytes, crc: 0 };
            let raw = header.encode(&body, &data);
            let back = Header::decode(&raw).unwrap();
            prop_assert_eq!(Header { crc: 0, ..back }, header);
            prop_assert!(back.verify(&raw, &body, &data).is_ok());
            let hello = Hello { client_id: a, incarnation: b, block_bytes: c, grace_s: d };
            prop_assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
            let info = Info {
                epoch: a, lease: b, capacity_blocks: c, free_blocks: d, held_blocks: e, reclaim_blocks: d ^ c,
                reclaim_deadline_ms: d ^ e, flags: c ^ e, quota_blocks: !e,
            };
            prop_assert_eq!(Info::decode(&info.encode()).unwrap(), info);
            let range = Range { block: RemoteBlock { number: c, generation: e }, offset_bytes: d % 1000, len_bytes: 1 + e % 1000 };
            prop_assert_eq!(Range::decode(&range.encode()).unwrap(), range);
        }

        #[test]
        fn lists_round_trip(head: u32, numbers in proptest::collection::vec(any::<(u32, u32)>(), 0..256)) {
            let blocks: Vec<_> =
                numbers.into_iter().map(|(number, generation)| RemoteBlock { number, generation }).collect();
            let mut out = [0; MAX_CONTROL_BYTES];
            let len = encode_list(head, &blocks, &mut out);
            let (back, numbers) = decode_list(&out[..len]).unwrap();
            prop_assert_eq!((back, numbers.collect::<Vec<_>>()), (head, blocks));
        }

        #[test]
        fn a_flipped_bit_anywhere_is_noticed(data in proptest::collection::vec(any::<u8>(), 1..200), flip: prop::sample::Index) {
            let mut raw = Header::request(Opcode::Write, 77, data.len()).encode(&[], &data);
            let mut data = data;
            let bit = flip.index((HEADER_BYTES + data.len()) * 8);
            match raw.get_mut(bit / 8) {
                Some(byte) => *byte ^= 1 << (bit % 8),
                None => data[bit / 8 - HEADER_BYTES] ^= 1 << (bit % 8),
            }
            let accepted = Header::decode(&raw).is_ok_and(|header| {
                header.payload_bytes as usize == data.len() && header.verify(&raw, &[], &data).is_ok()
            });
            prop_assert!(!accepted);
        }

        #[test]
        fn arbitrary_bytes_never_panic(raw: [u8; HEADER_BYTES], body in any::<Vec<u8>>()) {
            let mut with_magic = raw;
            with_magic[0..6].copy_from_slice(b"DPSW\x02\0");
            for raw in [raw, with_magic] {
                if let Ok(header) = Header::decode(&raw) {
                    prop_assert!(header.payload_bytes as usize <= MAX_PAYLOAD_BYTES);
                    let _ = header.verify(&raw, &body, &[]);
                }
            }
            let _ = (Hello::decode(&body), Info::decode(&body), Range::decode(&body));
            let _ = decode_list(&body).map(|(_, numbers)| numbers.count());
        }
    }
}
