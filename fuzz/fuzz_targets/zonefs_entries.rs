//! The entries in a frame's payload.
//!
//! Input: a byte of switches, then the payload, or (by a switch) one entry's tag and body: then the header in front of
//! the body, and the nanoseconds that would be too large, are put right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zonefs_fuse::format::entry::{MAX_ENTRY_EXTENTS, SKIPPABLE};
use zonefs_fuse::format::{Decoded, Entry};

/// An entry: at its end the names, when asked, become as long as the body has room for.
fn with_header(tag: u16, body: &[u8], fit: bool) -> Vec<u8> {
    let mut body = body.to_vec();
    let (times, names, count): (&[usize], Option<(usize, usize)>, Option<usize>) = match tag {
        1 => (&[36, 48, 60], Some((68, 2)), None),
        2 => (&[24], Some((28, 1)), None),
        3 | 4 => (&[16], Some((20, 1)), None),
        5 => (&[24], Some((28, 2)), None),
        6 => (&[28, 40, 52], None, None),
        7 => (&[24, 36], None, Some(40)),
        16 => (&[28, 40, 52], Some((60, 1)), None),
        17 => (&[], Some((16, 1)), None),
        _ => (&[], None, None),
    };
    match tag {
        6 if fit => body.resize(56, 0),
        18 if fit => body.resize(24, 0),
        _ => {}
    }
    for at in times {
        if let Some(top) = body.get_mut(at + 3) {
            *top &= 0x1f;
        }
    }
    if let Some((at, many)) = names.filter(|_| fit) {
        body.resize(body.len().max(at + 2 * many), 0);
        let room = body.len() - at - 2 * many;
        let first = if many == 2 { room / 3 } else { room };
        body[at..at + 2].copy_from_slice(&(first as u16).to_le_bytes());
        if many == 2 {
            let second = at + 2 + first;
            body[second..second + 2].copy_from_slice(&((room - first) as u16).to_le_bytes());
        }
    }
    if let Some(at) = count.filter(|_| fit) {
        let many = body.len().saturating_sub(at + 4) / 20;
        body.resize(at + 4 + many * 20, 0);
        body[at..at + 4].copy_from_slice(&(many as u32).to_le_bytes());
    }
    let mut out = tag.to_le_bytes().to_vec();
    out.extend([0, 0]);
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(body);
    out
}

fuzz_target!(|input: &[u8]| {
    let Some((&switches, rest)) = input.split_first() else { return };
    let payload = match rest.split_first() {
        Some((&tag, body)) if switches & 1 != 0 => {
            let tag = [1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 0x8001, 19][usize::from(tag) % 12];
            with_header(tag, body, switches & 2 != 0)
        }
        _ => rest.to_vec(),
    };
    let payload = &payload[..];
    let decoded = match Entry::decode_all(payload) {
        Ok(decoded) => decoded,
        Err(why) => {
            assert!(why.contains("entry"), "{why}");
            return;
        }
    };
    let mut again = Vec::new();
    for entry in &decoded {
        match entry {
            Decoded::Known(entry) => {
                if let Entry::Extents { extents, .. } = entry {
                    assert!(extents.len() <= MAX_ENTRY_EXTENTS);
                }
                again.extend(entry.encode());
            }
            Decoded::Skipped(tag) => assert_ne!(tag & SKIPPABLE, 0),
        }
    }
    let known: Vec<Decoded> = decoded.into_iter().filter(|e| matches!(e, Decoded::Known(_))).collect();
    assert_eq!(Entry::decode_all(&again), Ok(known), "what was read is written with the same meaning");
});
