//! A page record of the swap device, the page in it, and the walk through a block of records.
//!
//! Input: a byte of switches, then the record. The switches put right what a fuzzer cannot guess: the head (1) and whether it
//! is sealed (2).
#![no_main]

use libfuzzer_sys::fuzz_target;
use ublk_dpuswap::codec::Decompressor;
use ublk_dpuswap::model::{open_found, walk};
use ublk_dpuswap::record::{HEADER_BYTES, begin, open, peek, record_bytes, seal};
use ublk_dpuswap::seal::{PageKey, Place};
use ublk_dpuswap::units::{BlockId, PAGE_BYTES, UNIT_BYTES, units_of};

fuzz_target!(|input: &[u8]| {
    let Some((&switches, input)) = input.split_first() else { return };
    let generation = 7;
    let place = Place { generation, offset_units: 0 };
    let key = (switches & 2 != 0).then(|| PageKey::new(&[5; 32]));
    let mut bytes = input.to_vec();
    if switches & 1 != 0 && bytes.len() >= record_bytes(0, key.is_some()) {
        bytes[0..3].copy_from_slice(&[0x44, 0x50, 2]);
        bytes[3] %= 3;
        let payload = (bytes.len() - record_bytes(0, key.is_some())).min(PAGE_BYTES);
        bytes[4..6].copy_from_slice(&(payload as u16).to_le_bytes());
        seal(&mut bytes[..record_bytes(payload, key.is_some())], key.as_ref(), place);
    }
    let _ = peek(&bytes);
    let mut opened = bytes.clone();
    let Ok((header, payload)) = open(&mut opened, key.as_ref(), place) else {
        walk(BlockId(0), &bytes, key.is_some(), &mut Vec::with_capacity(4));
        return;
    };
    assert_eq!(header.payload_bytes, payload.len());
    assert!(payload.len() <= PAGE_BYTES);
    let mut page = vec![0; PAGE_BYTES];
    let _ = Decompressor::new().decompress(header.codec, payload, &mut page);

    // What was read is written the same; and another place is another record.
    let whole = record_bytes(payload.len(), key.is_some());
    let make = |place| {
        let mut again = vec![0; whole];
        again[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(payload);
        begin(&header, &mut again);
        seal(&mut again, key.as_ref(), place);
        again
    };
    assert_eq!(bytes.get(..whole), Some(&make(place)[..]));
    let next = Place { generation, offset_units: units_of(whole) };
    assert!(open(&mut make(next), key.as_ref(), place).is_err());

    // Two of them in a block, and the rest of the input behind.
    let mut block = make(place);
    block.resize(whole.next_multiple_of(UNIT_BYTES), 0);
    block.extend_from_slice(&make(next));
    block.resize(block.len().next_multiple_of(UNIT_BYTES), 0);
    let mut found = Vec::with_capacity(4096);
    let sealed = key.is_some();
    walk(BlockId(0), &block, sealed, &mut found);
    // The payload may look like records too; the two are among them, and opening those alone works.
    found.retain(|f| [0, next.offset_units].contains(&f.at.offset_units));
    assert!(open_found(generation, &mut block, key.as_ref(), &mut found).is_ok());
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|f| f.page == header.page && f.at.len_bytes as usize == whole));
    block.extend_from_slice(input);
    walk(BlockId(0), &block, sealed, &mut found);
    assert!(found.len() <= block.len().div_ceil(UNIT_BYTES));
    let _ = open_found(generation, &mut block, key.as_ref(), &mut found);
});
