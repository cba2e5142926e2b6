//! A page record of the swap device, the page in it, and the walk through a block of records.
//!
//! Input: a byte of switches, then the record. The switches put right what a fuzzer cannot guess.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ublk_dpuswap::codec::decompress;
use ublk_dpuswap::model::walk;
use ublk_dpuswap::record::{HEADER_BYTES, begin, decode, peek, seal};
use ublk_dpuswap::units::{BlockId, PAGE_BYTES, UNIT_BYTES};

fuzz_target!(|input: &[u8]| {
    let Some((&switches, input)) = input.split_first() else { return };
    let mut bytes = input.to_vec();
    if switches & 1 != 0 && bytes.len() >= HEADER_BYTES {
        bytes[0..3].copy_from_slice(&[0x44, 0x50, 1]);
        bytes[3] &= 1;
        bytes[6..8].fill(0);
        let payload = (bytes.len() - HEADER_BYTES).min(PAGE_BYTES);
        bytes[4..6].copy_from_slice(&(payload as u16).to_le_bytes());
        seal(&mut bytes[..HEADER_BYTES + payload]);
    }
    let Ok((header, payload)) = decode(&bytes) else {
        assert!(walk(BlockId(0), &bytes, &mut Vec::with_capacity(4)).is_err() || bytes.is_empty());
        return;
    };
    assert_eq!(peek(&bytes), Some((header, payload)));
    assert_eq!(header.payload_bytes, payload.len());
    assert!(payload.len() <= PAGE_BYTES);

    let mut again = vec![0; HEADER_BYTES];
    again.extend_from_slice(payload);
    begin(&header, &mut again);
    seal(&mut again);
    assert_eq!(bytes.get(..again.len()), Some(&again[..]), "what was read is written the same");

    let mut page = vec![0; PAGE_BYTES];
    let _ = decompress(header.codec, payload, &mut page);

    // Two of them in a block, and the rest of the input behind.
    let mut block = again.clone();
    block.resize(again.len().next_multiple_of(UNIT_BYTES), 0);
    block.extend_from_slice(&again);
    block.resize(block.len().next_multiple_of(UNIT_BYTES), 0);
    let mut found = Vec::with_capacity(8);
    assert!(walk(BlockId(0), &block, &mut found).is_ok());
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|f| f.page == header.page && f.at.len_bytes as usize == again.len()));
    block.extend_from_slice(input);
    let _ = walk(BlockId(0), &block, &mut found);
});
