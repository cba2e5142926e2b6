//! Our own protocol on a queue's ring: READ and WRITE requests out, their answers in.
//!
//! Invariant: data is handed on only after the message's checksum, or tag, has been checked.

use super::{LinkCodec, Outbox, Parsed};
use crate::proto::{HEADER_BYTES, Header, Opcode, ProtoError, RANGE_BYTES, Range, Status, TAG_BYTES};
use crate::remote::RemoteError;
use crate::secure::Seals;
use crate::units::{BLOCK_BYTES, RemoteBlock};

/// The protocol of one connection.
pub struct DpswCodec {
    seals: Option<Seals>,
}

impl DpswCodec {
    /// For a connection that has said HELLO; with its keys if it is sealed.
    pub fn new(seals: Option<Seals>) -> Self {
        Self { seals }
    }

    fn tag_bytes(&self) -> usize {
        if self.seals.is_some() { TAG_BYTES } else { 0 }
    }

    fn put(&mut self, opcode: Opcode, id: u32, range: &Range, data: &[u8], out: &mut Outbox) -> bool {
        let payload_bytes = RANGE_BYTES + data.len();
        if data.len() > BLOCK_BYTES {
            return false;
        }
        let Some(place) = out.room(HEADER_BYTES + payload_bytes + self.tag_bytes()) else { return false };
        let header = Header::request(opcode, u64::from(id), payload_bytes);
        let body = range.encode();
        let (head, rest) = place.split_at_mut(HEADER_BYTES + RANGE_BYTES);
        let (to, tag) = rest.split_at_mut(data.len());
        to.copy_from_slice(data);
        head[HEADER_BYTES..].copy_from_slice(&body);
        let raw = match &mut self.seals {
            None => header.encode(&body, data),
            Some(seals) => {
                let raw = header.encode_sealed();
                // Never fails: the range is no longer than it may be. A zero tag would be refused by the node.
                tag.copy_from_slice(&seals.send.seal(&raw, &body, to).unwrap_or_default());
                raw
            }
        };
        head[..HEADER_BYTES].copy_from_slice(&raw);
        true
    }
}

impl LinkCodec for DpswCodec {
    fn read(
        &mut self,
        id: u32,
        block: RemoteBlock,
        offset_bytes: u32,
        len_bytes: u32,
        out: &mut Outbox,
    ) -> bool {
        self.put(Opcode::Read, id, &Range { block, offset_bytes, len_bytes }, &[], out)
    }

    fn write(
        &mut self,
        id: u32,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
        out: &mut Outbox,
    ) -> bool {
        let range = Range { block, offset_bytes, len_bytes: data.len() as u32 };
        self.put(Opcode::Write, id, &range, data, out)
    }

    fn parse(&mut self, bytes: &mut [u8]) -> Result<Parsed, RemoteError> {
        let tag_bytes = self.tag_bytes();
        let Some((raw, rest)) = bytes.split_first_chunk_mut::<HEADER_BYTES>() else {
            return Ok(Parsed::More(HEADER_BYTES));
        };
        let header = Header::decode(raw)?;
        let len = header.payload_bytes as usize;
        let expected = match header.opcode {
            Opcode::Read if header.status == Status::Ok => BLOCK_BYTES,
            _ => 0,
        };
        if len > expected {
            return Err(ProtoError::TooLong(header.payload_bytes).into());
        }
        let used = HEADER_BYTES + len + tag_bytes;
        let Some((data, tag)) =
            rest.get_mut(..len + tag_bytes).and_then(|rest| rest.split_at_mut_checked(len))
        else {
            return Ok(Parsed::More(used));
        };
        match &mut self.seals {
            None => header.verify(raw, data, &[])?,
            Some(seals) => {
                let tag = (&*tag).try_into().map_err(|_| ProtoError::Forged)?;
                seals.receive.open(raw, &[], data, tag)?;
            }
        }
        let id = u32::try_from(header.request_id).map_err(|_| RemoteError::Mixed)?;
        if !header.reply || !matches!(header.opcode, Opcode::Read | Opcode::Write) {
            return Err(RemoteError::Mixed);
        }
        let result = match header.status {
            Status::Ok => Ok(HEADER_BYTES..HEADER_BYTES + len),
            status => Err((header.opcode, status)),
        };
        Ok(Parsed::Message { used, id, result })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secure::{Initiator, Key, respond};

    fn codecs() -> [(DpswCodec, Option<Seals>); 2] {
        let key = Key::new([1; 32]);
        let (initiator, first) = Initiator::start(&key).unwrap();
        let (second, node) = respond(&key, &first).unwrap();
        [(DpswCodec::new(None), None), (DpswCodec::new(Some(initiator.finish(&second).unwrap())), Some(node))]
    }

    /// The bytes of an answer.
    fn answer(opcode: Opcode, id: u64, status: Status, data: &[u8], node: &mut Option<Seals>) -> Vec<u8> {
        let header = Header::request(opcode, id, 0).answer(status, data.len());
        let mut data = data.to_vec();
        match node {
            None => [&header.encode(&data, &[])[..], &data].concat(),
            Some(seals) => {
                let raw = header.encode_sealed();
                let tag = seals.send.seal(&raw, &[], &mut data).unwrap();
                [&raw[..], &data, &tag].concat()
            }
        }
    }

    #[test]
    fn answers_are_found_whatever_the_pieces_they_come_in() {
        for (mut codec, mut node) in codecs() {
            let bytes = answer(Opcode::Read, 7, Status::Ok, b"page data", &mut node);
            for cut in 0..bytes.len() {
                let Ok(Parsed::More(needed)) = codec.parse(&mut bytes[..cut].to_vec()) else {
                    panic!("{cut}")
                };
                assert!(needed > cut && needed <= bytes.len());
            }
            let mut bytes = [bytes, answer(Opcode::Write, 8, Status::Reused, &[], &mut node)].concat();
            let Ok(Parsed::Message { used, id: 7, result: Ok(range) }) = codec.parse(&mut bytes) else {
                panic!()
            };
            assert_eq!(&bytes[range], b"page data");
            let refused = codec.parse(&mut bytes[used..]).unwrap();
            let Parsed::Message { id: 8, result: Err((Opcode::Write, Status::Reused)), .. } = refused else {
                panic!("{refused:?}")
            };
        }
    }

    #[test]
    fn requests_are_put_whole_or_not_at_all_and_open_at_the_node() {
        for (mut codec, node) in codecs() {
            let mut out = Outbox::new(200);
            let block = RemoteBlock { number: 3, generation: 4 };
            assert!(codec.write(1, block, 64, b"hello", &mut out));
            assert!(codec.read(2, block, 128, 4096, &mut out));
            let len = out.bytes().len();
            assert!(!codec.write(3, block, 0, &[0; 100], &mut out));
            assert_eq!(out.bytes().len(), len);
            let bytes = out.bytes();
            let raw: [u8; HEADER_BYTES] = bytes[..HEADER_BYTES].try_into().unwrap();
            let header = Header::decode(&raw).unwrap();
            let body = &bytes[HEADER_BYTES..HEADER_BYTES + RANGE_BYTES];
            let range = Range { block, offset_bytes: 64, len_bytes: 5 };
            assert_eq!(Range::decode(body), Ok(range));
            let mut data = bytes[HEADER_BYTES + RANGE_BYTES..][..5].to_vec();
            match node {
                None => header.verify(&raw, body, &data).unwrap(),
                Some(mut seals) => {
                    let tag = bytes[HEADER_BYTES + RANGE_BYTES + 5..][..TAG_BYTES].try_into().unwrap();
                    seals.receive.open(&raw, body, &mut data, tag).unwrap();
                }
            }
            assert_eq!(data, b"hello");
        }
    }

    #[test]
    fn changed_repeated_foreign_and_oversized_answers_break_the_link() {
        for which in 0..2 {
            let fresh = || codecs().into_iter().nth(which).unwrap();
            let (mut codec, mut node) = fresh();
            let bytes = answer(Opcode::Read, 7, Status::Ok, b"page data", &mut node);
            let mut changed = bytes.clone();
            changed[HEADER_BYTES] ^= 1;
            assert!(codec.parse(&mut changed).is_err());
            let (mut codec, mut node) = fresh();
            let bytes = answer(Opcode::Read, 7, Status::Ok, b"page data", &mut node);
            codec.parse(&mut bytes.clone()).unwrap();
            assert_eq!(
                codec.parse(&mut bytes.clone()).is_err(),
                which == 1,
                "a checksum alone does not count"
            );
            for (opcode, id, status, len) in [
                (Opcode::Stat, 1, Status::Ok, 0),
                (Opcode::Write, 1, Status::Ok, 1),
                (Opcode::Read, 1, Status::NotYours, 1),
                (Opcode::Read, 1 << 32, Status::Ok, 1),
                (Opcode::Read, 1, Status::Ok, BLOCK_BYTES + 1),
            ] {
                let (mut codec, mut node) = fresh();
                let mut bytes = answer(opcode, id, status, &vec![0; len], &mut node);
                assert!(codec.parse(&mut bytes).is_err(), "{opcode:?} {status:?} {len}");
            }
        }
    }
}
