//! A frame of a metadata zone.
//!
//! Input: a byte of switches, then the frame. The switches put right what a fuzzer cannot guess.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zonefs_fuse::format::frame::{HEADER_BYTES, MAX_FRAME_BYTES, claimed_bytes, decode, encode};

fuzz_target!(|input: &[u8]| {
    let Some((&switches, input)) = input.split_first() else { return };
    let block = 1_usize << (9 + (switches >> 2) % 8);
    let mut bytes = input.to_vec();
    if switches & 1 != 0 {
        bytes.resize(bytes.len().max(HEADER_BYTES).next_multiple_of(block), 0);
        bytes[0..4].copy_from_slice(b"ZFRM");
        bytes[10..12].copy_from_slice(&[1, 0]);
        // As much payload as the first block may hold and the input says, so that the frame is all there.
        let most = (bytes.len() - HEADER_BYTES) as u32;
        let wanted = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        bytes[12..16].copy_from_slice(&(wanted % (most + 1)).to_le_bytes());
        if let Ok(length) = claimed_bytes(&bytes, block) {
            let crc = crc32c::crc32c(&bytes[8..length]);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
    if let Ok(length) = claimed_bytes(&bytes, block) {
        assert!(length <= MAX_FRAME_BYTES && length.is_multiple_of(block));
    }
    let Ok((header, payload)) = decode(&bytes, block) else { return };
    assert_eq!(header.payload_bytes as usize, payload.len());
    assert_eq!(header.frame_bytes(block), claimed_bytes(&bytes, block).unwrap());
    let again = encode(header, payload, block).unwrap();
    assert_eq!(again.len(), header.frame_bytes(block));
    assert_eq!(
        decode(&again, block),
        Ok((header, payload)),
        "what was read is written with the same meaning"
    );
});
