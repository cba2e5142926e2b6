//! The entries in a frame's payload.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zonefs_fuse::format::entry::{MAX_ENTRY_EXTENTS, SKIPPABLE};
use zonefs_fuse::format::{Decoded, Entry};

fuzz_target!(|payload: &[u8]| {
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
