//! The payload of a superblock frame, and whether it fits a device.
//!
//! Input: a byte of switches, then the payload.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zonefs_fuse::device::Geometry;
use zonefs_fuse::format::Superblock;
use zonefs_fuse::format::superblock::{MAGIC, MAX_LABEL_BYTES};

fuzz_target!(|input: &[u8]| {
    let Some((&switches, input)) = input.split_first() else { return };
    let mut bytes = input.to_vec();
    if let Some(magic) = bytes.get_mut(..8).filter(|_| switches & 1 != 0) {
        magic.copy_from_slice(&MAGIC);
    }
    let Some(superblock) = Superblock::decode(&bytes) else { return };
    assert!(superblock.label.len() <= MAX_LABEL_BYTES);
    let again = superblock.encode();
    assert!(bytes.starts_with(&again), "what was read is written the same; fields of later versions follow");
    assert_eq!(Superblock::decode(&again), Some(superblock.clone()));
    assert_eq!(superblock.uuid_text().len(), 36);
    let geometry = Geometry {
        block_size_bytes: 512 << (switches >> 1 & 3),
        zone_size_bytes: superblock.zone_size_bytes,
        zone_capacity_bytes: superblock.zone_capacity_bytes,
        nr_zones: superblock.nr_zones,
        max_open_zones: 0,
        max_active_zones: 0,
    };
    if superblock.fits(&geometry).is_ok() {
        assert!(superblock.block_size_bytes >= geometry.block_size_bytes);
        assert!(superblock.meta_zones.iter().all(|zone| zone.0 < superblock.nr_zones));
    }
});
