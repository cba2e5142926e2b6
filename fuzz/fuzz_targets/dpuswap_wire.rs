//! A message of the swap protocol: header, checksum, then the body that its opcode announces.
//!
//! Input: a byte of switches, 32 bytes of header, the payload. The switches put right what a fuzzer cannot guess.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ublk_dpuswap::proto::{
    HEADER_BYTES, Header, Hello, Info, MAX_BLOCKS_PER_MESSAGE, MAX_CONTROL_BYTES, MAX_PAYLOAD_BYTES, Opcode,
    Range, Status, decode_list, encode_list,
};
use ublk_dpuswap::units::{BLOCK_BYTES, RemoteBlock};

fuzz_target!(|input: &[u8]| {
    let Some((&switches, input)) = input.split_first() else { return };
    let Some((raw, payload)) = input.split_first_chunk::<HEADER_BYTES>() else { return };
    let mut raw = *raw;
    if switches & 1 != 0 {
        raw[0..6].copy_from_slice(b"DPSW\x02\0");
    }
    if switches & 2 != 0 {
        raw[20..24].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        raw[24..32].fill(0);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&raw), payload);
        raw[24..28].copy_from_slice(&crc.to_le_bytes());
    }
    bodies(payload);
    let Ok(header) = Header::decode(&raw) else { return };
    assert!(header.payload_bytes as usize <= MAX_PAYLOAD_BYTES);
    let split = usize::from(switches >> 2).min(payload.len());
    let (body, data) = payload.split_at(split);
    if header.verify(&raw, body, data).is_err() {
        return;
    }
    assert!(header.verify(&raw, payload, &[]).is_ok(), "the split into parts does not matter");
    let again = header.encode(body, data);
    if header.status == Status::Unknown {
        // The number of an unknown status is not kept; the rest is.
        let back = Header::decode(&again).unwrap();
        assert_eq!(Header { crc: header.crc, ..back }, header);
    } else {
        assert_eq!(again, raw, "what was read is written the same");
    }
    let request = Header::request(header.opcode, header.request_id, payload.len().min(MAX_PAYLOAD_BYTES));
    let answer = request.answer(header.status, 0).encode(&[], &[]);
    let answer = Header::decode(&answer).unwrap();
    assert!(answer.reply && answer.request_id == header.request_id && answer.opcode == header.opcode);
    let _: Opcode = answer.opcode;
});

fn bodies(payload: &[u8]) {
    if let Ok(hello) = Hello::decode(payload) {
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }
    if let Ok(info) = Info::decode(payload) {
        assert_eq!(Info::decode(&info.encode()), Ok(info));
    }
    if let Ok(range) = Range::decode(payload.get(..16).unwrap_or(payload)) {
        assert!(range.len_bytes > 0 && range.offset_bytes as usize + range.len_bytes as usize <= BLOCK_BYTES);
        assert_eq!(Range::decode(&range.encode()), Ok(range));
    }
    if let Ok((head, numbers)) = decode_list(payload) {
        let numbers: Vec<RemoteBlock> = numbers.collect();
        assert!(numbers.len() <= MAX_BLOCKS_PER_MESSAGE);
        let mut out = [0; MAX_CONTROL_BYTES];
        let used = encode_list(head, &numbers, &mut out);
        assert_eq!(out.get(..used), Some(payload));
    }
}
