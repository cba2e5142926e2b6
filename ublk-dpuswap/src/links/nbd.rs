//! NBD over a queue's ring: requests out, simple replies in any order back.
//!
//! A simple reply does not say whether data follows, nor how much ("Simple reply message" of the NBD protocol). The server
//! repeats the request's handle unchanged, so the handle itself carries what the answer must look like, and the codec keeps
//! no table:
//!
//! | bits | |
//! |---|---|
//! | 0..32 | the operation's number |
//! | 32..53 | bytes that a read asked for; 0 for a write |
//! | 53..64 | mark of this connection |
//!
//! Invariant: a handle with another mark or an impossible length breaks the link. Whether the operation is under way is
//! for the links to say.

use super::{LinkCodec, Outbox, Parsed, Refusal};
use crate::proto::{Opcode, Status};
use crate::remote::RemoteError;
use crate::remote::nbd::wire::{self, Command, Errno, NbdError, REPLY_BYTES};
use crate::units::{BLOCK_BYTES, RemoteBlock};

const LEN_BITS: u32 = 21;
const MARK_SHIFT: u32 = 32 + LEN_BITS;

/// The ring's side of a negotiated NBD connection.
pub struct NbdCodec {
    mark: u64,
}

impl NbdCodec {
    /// For a connection in its transmission phase; `mark`: any number, better not the last connection's.
    pub fn new(mark: u64) -> Self {
        Self { mark: mark << MARK_SHIFT }
    }

    fn handle(&self, id: u32, len_bytes: u32) -> u64 {
        u64::from(id) | u64::from(len_bytes) << 32 | self.mark
    }
}

/// Where a block's byte lies in the export: block `i` is the `i`-th MiB.
pub fn position(block: RemoteBlock, offset_bytes: u32) -> u64 {
    u64::from(block.number) * BLOCK_BYTES as u64 + u64::from(offset_bytes)
}

/// The refusal that an error value is, among those that links know.
pub fn refusal(opcode: Opcode, error: Errno) -> Refusal {
    match error.0 {
        // A range outside the export, or more than the server takes.
        22 | 75 => (opcode, Status::BadRequest),
        _ => (opcode, Status::Unknown),
    }
}

impl LinkCodec for NbdCodec {
    fn read(
        &mut self,
        id: u32,
        block: RemoteBlock,
        offset_bytes: u32,
        len_bytes: u32,
        out: &mut Outbox,
    ) -> bool {
        debug_assert!(len_bytes > 0 && len_bytes as usize <= BLOCK_BYTES);
        let handle = self.handle(id, len_bytes);
        out.put(&[&wire::request(Command::Read, handle, position(block, offset_bytes), len_bytes)])
    }

    fn write(
        &mut self,
        id: u32,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
        out: &mut Outbox,
    ) -> bool {
        debug_assert!(!data.is_empty() && data.len() <= BLOCK_BYTES);
        let at = position(block, offset_bytes);
        out.put(&[&wire::request(Command::Write, self.handle(id, 0), at, data.len() as u32), data])
    }

    fn parse(&mut self, bytes: &mut [u8]) -> Result<Parsed, RemoteError> {
        let Some(head) = bytes.first_chunk::<REPLY_BYTES>() else {
            return Ok(Parsed::More(REPLY_BYTES));
        };
        let (error, handle) = wire::reply(head)?;
        let len = (handle >> 32) as usize & ((1 << LEN_BITS) - 1);
        if (handle >> MARK_SHIFT) << MARK_SHIFT != self.mark || len > BLOCK_BYTES {
            return Err(NbdError::Handle.into());
        }
        let id = handle as u32;
        if error != Errno(0) {
            let opcode = if len > 0 { Opcode::Read } else { Opcode::Write };
            return Ok(Parsed::Message { used: REPLY_BYTES, id, result: Err(refusal(opcode, error)) });
        }
        let used = REPLY_BYTES + len;
        if bytes.len() < used {
            return Ok(Parsed::More(used));
        }
        Ok(Parsed::Message { used, id, result: Ok(REPLY_BYTES..used) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn simple(error: u32, handle: u64, data: &[u8]) -> Vec<u8> {
        [&0x6744_6698u32.to_be_bytes()[..], &error.to_be_bytes(), &handle.to_be_bytes(), data].concat()
    }

    /// The handle and the fields of the only request in `out`, read by the offsets in the document.
    fn sent(out: &Outbox) -> (u16, u64, u64, u32) {
        let bytes = out.bytes();
        assert_eq!(&bytes[..6], [0x25, 0x60, 0x95, 0x13, 0, 0]);
        let number =
            |from: usize, to: usize| bytes[from..to].iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        (number(6, 8) as u16, number(8, 16), number(16, 24), number(24, 28) as u32)
    }

    proptest! {
        #[test]
        fn an_answer_finds_its_request_however_it_is_cut(
            id: u32, number in 1u32..1 << 24, offset in 0u32..1000, len in 1u32..5000, mark: u64, cut in 0usize..5016,
        ) {
            let mut codec = NbdCodec::new(mark);
            let mut out = Outbox::new(64);
            prop_assert!(codec.read(id, RemoteBlock::numbered(number), offset, len, &mut out));
            let (command, handle, at, asked) = sent(&out);
            prop_assert_eq!((command, at, asked), (0, (u64::from(number) << 20) + u64::from(offset), len));
            let data: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let mut bytes = simple(0, handle, &data);
            let whole = bytes.len();
            let cut = cut.min(whole - 1);
            let wanted = if cut < 16 { 16 } else { whole };
            prop_assert_eq!(codec.parse(&mut bytes[..cut]).unwrap(), Parsed::More(wanted));
            prop_assert_eq!(codec.parse(&mut bytes).unwrap(), Parsed::Message { used: whole, id, result: Ok(16..whole) });
            let mut refused = simple(5, handle, &[]);
            let unknown = Err((Opcode::Read, Status::Unknown));
            prop_assert_eq!(codec.parse(&mut refused).unwrap(), Parsed::Message { used: 16, id, result: unknown });
        }

        #[test]
        fn a_write_is_answered_without_data(id: u32, mark: u64, data in proptest::collection::vec(any::<u8>(), 1..100)) {
            let mut codec = NbdCodec::new(mark);
            let mut out = Outbox::new(256);
            prop_assert!(codec.write(id, RemoteBlock::numbered(7), 64, &data, &mut out));
            let (command, handle, at, len) = sent(&out);
            prop_assert_eq!((command, at, len as usize), (1, (7 << 20) + 64, data.len()));
            prop_assert_eq!(&out.bytes()[28..], &data[..]);
            let mut bytes = simple(0, handle, b"the next reply");
            prop_assert_eq!(codec.parse(&mut bytes).unwrap(), Parsed::Message { used: 16, id, result: Ok(16..16) });
            let mut refused = simple(22, handle, &[]);
            let bad = Err((Opcode::Write, Status::BadRequest));
            prop_assert_eq!(codec.parse(&mut refused).unwrap(), Parsed::Message { used: 16, id, result: bad });
        }

        #[test]
        fn arbitrary_bytes_break_the_link_or_ask_for_no_more_than_a_block(
            magic: bool, mut bytes in proptest::collection::vec(any::<u8>(), 0..64), mark: u64,
        ) {
            if magic && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&0x6744_6698u32.to_be_bytes());
            }
            let have = bytes.len();
            match NbdCodec::new(mark).parse(&mut bytes) {
                Ok(Parsed::More(wanted)) => prop_assert!(wanted > have && wanted <= 16 + BLOCK_BYTES),
                Ok(Parsed::Message { used, result, .. }) => {
                    prop_assert!(used <= have && result.fits(used));
                }
                Err(error) => prop_assert!(matches!(error, RemoteError::Nbd(_))),
            }
        }
    }

    trait Fits {
        fn fits(self, used: usize) -> bool;
    }

    impl Fits for Result<std::ops::Range<usize>, Refusal> {
        fn fits(self, used: usize) -> bool {
            self.map_or(used == 16, |range| range == (16..used))
        }
    }

    #[test]
    fn a_structured_reply_and_another_connections_handle_break_the_link() {
        let mut codec = NbdCodec::new(3);
        let mut structured = [0x66, 0x8e, 0x33, 0xef].repeat(4);
        assert!(matches!(codec.parse(&mut structured), Err(RemoteError::Nbd(NbdError::Structured))));
        let mut other = simple(0, 4 << 53, &[]);
        assert!(matches!(codec.parse(&mut other), Err(RemoteError::Nbd(NbdError::Handle))));
        let mut long = simple(0, 3 << 53 | 0x1f_ffff << 32, &[]);
        assert!(matches!(codec.parse(&mut long), Err(RemoteError::Nbd(NbdError::Handle))));
    }

    #[test]
    fn without_room_nothing_is_put() {
        let mut out = Outbox::new(40);
        let block = RemoteBlock::numbered(1);
        assert!(!NbdCodec::new(1).write(1, block, 0, &[1; 13], &mut out));
        assert!(out.bytes().is_empty());
        assert!(NbdCodec::new(1).write(1, block, 0, &[1; 12], &mut out));
    }
}
