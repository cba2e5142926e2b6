//! What a device does with the bytes of a node: answers on a queue's link, plain or sealed, and the handshake.
//!
//! Input: a byte of switches, then the bytes; with switches, the first message is framed (and sealed) as a node would.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ublk_dpuswap::links::dpsw::DpswCodec;
use ublk_dpuswap::links::{LinkCodec, Parsed};
use ublk_dpuswap::proto::{HEADER_BYTES, Header, ProtoError, TAG_BYTES};
use ublk_dpuswap::secure::{Initiator, Key, respond};
use ublk_dpuswap::units::BLOCK_BYTES;

fuzz_target!(|input: &[u8]| {
    let Some((&switches, bytes)) = input.split_first() else { return };
    let (keyed, framed, handshake) = (switches & 1 != 0, switches & 2 != 0, switches & 4 != 0);
    let key = Key::new([5; 32]);
    if handshake {
        assert!(matches!(respond(&key, bytes), Err(ProtoError::Forged)));
        let (initiator, _) = Initiator::start(&key).unwrap();
        assert!(matches!(initiator.finish(bytes), Err(ProtoError::Forged)));
        return;
    }
    let (mut ours, mut theirs) = (None, None);
    if keyed {
        let (initiator, first) = Initiator::start(&key).unwrap();
        let (second, node) = respond(&key, &first).unwrap();
        (ours, theirs) = (Some(initiator.finish(&second).unwrap()), Some(node));
    }
    let mut bytes = bytes.to_vec();
    if framed {
        let Some((raw, data)) = bytes.split_first_chunk_mut::<HEADER_BYTES>() else { return };
        raw[0..6].copy_from_slice(b"DPSW\x02\0");
        raw[12..16].fill(0);
        raw[20..24].copy_from_slice(&(data.len() as u32).to_le_bytes());
        raw[24..32].fill(0);
        let Ok(header) = Header::decode(raw) else { return };
        match &mut theirs {
            None => *raw = header.encode(data, &[]),
            Some(node) => {
                let tag = node.send.seal(raw, &[], data).unwrap();
                bytes.extend(tag);
            }
        }
    }
    let mut codec = DpswCodec::new(ours);
    let (mut at, mut messages) = (0, 0);
    while let Ok(parsed) = codec.parse(&mut bytes[at..]) {
        match parsed {
            Parsed::More(needed) => {
                assert!(needed > bytes.len() - at && needed <= HEADER_BYTES + BLOCK_BYTES + TAG_BYTES);
                break;
            }
            Parsed::Message { used, result, .. } => {
                assert!(used >= HEADER_BYTES && used <= bytes.len() - at);
                if let Ok(range) = result {
                    assert!(range.start == HEADER_BYTES && range.start <= range.end && range.end <= used);
                }
                at += used;
                messages += 1;
            }
        }
    }
    assert!(!keyed || messages <= usize::from(framed), "only what the node sealed is a message");
});
