//! An NBD server's side of a connection: the negotiation, then replies on a queue's link.
//!
//! Input: a byte of switches, then what the server says. The switches put magics and handles right that a fuzzer cannot guess.
#![no_main]

use std::io::{self, Read, Write};

use libfuzzer_sys::fuzz_target;
use ublk_dpuswap::links::nbd::NbdCodec;
use ublk_dpuswap::links::{LinkCodec, Parsed};
use ublk_dpuswap::remote::claim::Signature;
use ublk_dpuswap::remote::nbd::wire::{MAX_BLOCKS, REPLY_BYTES, negotiate};
use ublk_dpuswap::units::BLOCK_BYTES;

/// Says what it has, a few bytes at a time.
struct Server<'a> {
    says: &'a [u8],
    piece: usize,
    heard: usize,
}

impl Read for Server<'_> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let len = data.len().min(self.piece).min(self.says.len());
        let (now, later) = self.says.split_at(len);
        data[..len].copy_from_slice(now);
        self.says = later;
        Ok(len)
    }
}

impl Write for Server<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.heard += data.len();
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&switches, says)) = input.split_first() else { return };
    if switches & 1 == 0 { negotiation(switches, says) } else { replies(switches, says) }
});

fn negotiation(switches: u8, says: &[u8]) {
    let mut all = Vec::new();
    if switches & 2 != 0 {
        all.extend_from_slice(b"NBDMAGICIHAVEOPT\0\x03");
    }
    if switches & 4 == 0 {
        all.extend_from_slice(says);
    } else {
        // Cut into replies to NBD_OPT_GO: a byte of type, a byte of length, data.
        let mut rest = says;
        while let [kind, len, tail @ ..] = rest {
            let (data, tail) = tail.split_at(usize::from(*len).min(tail.len()));
            all.extend_from_slice(&0x0003_e889_0455_65a9u64.to_be_bytes());
            all.extend_from_slice(&7u32.to_be_bytes());
            all.extend_from_slice(&(u32::from(*kind & 0x7f) | u32::from(*kind & 0x80) << 24).to_be_bytes());
            all.extend_from_slice(&(data.len() as u32).to_be_bytes());
            all.extend_from_slice(data);
            rest = tail;
        }
    }
    let mut server = Server { says: &all, piece: 1 + usize::from(switches >> 3), heard: 0 };
    if let Ok(export) = negotiate(&mut server, "export") {
        assert!(export.minimum_bytes.is_power_of_two() && export.maximum_bytes >= export.minimum_bytes);
        if let Ok(blocks) = export.blocks() {
            assert!((2..=MAX_BLOCKS).contains(&blocks) && u64::from(blocks) << 20 <= export.size_bytes);
        }
    }
    assert!(server.heard < 100, "little is said to a stranger");
}

fn replies(switches: u8, says: &[u8]) {
    let mark = u64::from(switches >> 4);
    let mut bytes = says.to_vec();
    if switches & 2 != 0
        && let Some(head) = bytes.first_chunk_mut::<REPLY_BYTES>()
    {
        head[..4].copy_from_slice(&[0x67, 0x44, 0x66, 0x98]);
        if switches & 4 != 0 {
            head[4..8].fill(0);
        }
        let handle = u64::from_be_bytes(*head.last_chunk::<8>().unwrap_or(&[0; 8]));
        head[8..].copy_from_slice(&(handle & ((1 << 53) - 1) | mark << 53).to_be_bytes());
    }
    let have = bytes.len();
    match NbdCodec::new(mark).parse(&mut bytes) {
        Ok(Parsed::More(wanted)) => assert!(wanted > have && wanted <= REPLY_BYTES + BLOCK_BYTES),
        Ok(Parsed::Message { used, result, .. }) => {
            assert!(
                used <= have && result.is_ok_and(|range| range == (REPLY_BYTES..used)) || used == REPLY_BYTES
            );
        }
        Err(_) => {}
    }
    if let Some(signature) = Signature::decode(says) {
        assert!(says.starts_with(&signature.encode()));
    }
}
