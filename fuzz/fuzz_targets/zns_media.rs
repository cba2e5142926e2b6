//! The media file of a ZNS device: header page and zone table.
//!
//! Input: a byte of switches, then pairs of changes to a good file: one byte says where, one what. The switches put
//! the header's checksum right and say where the changes go. What is refused stays as it is, and the error names the
//! file; what opens reports zones that can be, and opens again with the same ones.
#![no_main]

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use ublk_zns::zones::NO_WRITE_POINTER;
use ublk_zns::engine::DeviceOptions;
use ublk_zns::media::MediaPlace;
use ublk_zns::{ZnsConfig, ZnsDevice, ZnsError};

const ZONES: usize = 16;
/// Where the checksum of the header is (docs/formats.md).
const CRC_AT: usize = 64;
/// Header page, session page, and the zones.
const META_BYTES: usize = 12288;
const ZONES_AT: usize = 8192;

fn config() -> ZnsConfig {
    ZnsConfig {
        size_bytes: (ZONES as u64) << 16,
        zone_size_bytes: 1 << 16,
        zone_capacity_bytes: Some(48 << 10),
        conventional_zones: 2,
        max_open_zones: Some(3),
        max_active_zones: Some(5),
        ..ZnsConfig::default()
    }
}

fn options(path: &std::path::Path) -> DeviceOptions {
    DeviceOptions::new(config(), MediaPlace::Ram(path.to_owned()))
}

/// The file, and the bytes of a good header and table.
fn good() -> &'static (tempfile::TempDir, PathBuf, Vec<u8>) {
    static GOOD: OnceLock<(tempfile::TempDir, PathBuf, Vec<u8>)> = OnceLock::new();
    GOOD.get_or_init(|| {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = dir.path().join("media");
        drop(ZnsDevice::create(&options(&path)).unwrap());
        let bytes = std::fs::read(&path).unwrap()[..META_BYTES].to_vec();
        (dir, path, bytes)
    })
}

fuzz_target!(|input: &[u8]| {
    let Some((&switches, changes)) = input.split_first() else { return };
    let (_dir, path, original) = good();
    let mut bytes = original.clone();
    for change in changes.as_chunks::<2>().0 {
        let at = if switches & 1 == 0 {
            ZONES_AT + (usize::from(change[0]) * 8) % (64 * ZONES) + usize::from(change[0] >> 5)
        } else {
            usize::from(change[0])
        };
        bytes[at] = change[1];
    }
    if switches & 2 != 0 {
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    let whole = file.metadata().unwrap().len();
    let cut = switches & 4 != 0;
    if cut {
        file.set_len(changes.len() as u64 % whole).unwrap();
    }
    let outcome = ZnsDevice::open(&options(path), false);
    if cut {
        assert!(matches!(outcome, Err(ZnsError::Format { .. })));
        file.set_len(whole).unwrap();
        return;
    }
    let header_is_good = bytes[..CRC_AT + 4] == original[..CRC_AT + 4];
    let device = match outcome {
        Ok(device) => device,
        Err(error) => {
            assert!(error.to_string().contains("media"), "{error}");
            let mut after = vec![0; META_BYTES];
            file.read_exact_at(&mut after, 0).unwrap();
            assert!(after == bytes, "nothing is written before a refusal");
            return;
        }
    };
    assert!(header_is_good, "a device opens only what was made for it");
    let report = device.report();
    assert_eq!(report.len(), ZONES);
    let (open, active) = device.resources();
    assert!(open <= 3 && active <= 5);
    for zone in &report {
        let places = zone.start.0..=zone.start.0 + zone.sectors;
        assert!(zone.write_pointer == NO_WRITE_POINTER || places.contains(&zone.write_pointer.0), "{zone:?}");
    }
    let mut sector = [0; 4096];
    let _ = device.read(report[ZONES - 1].start, &mut sector);
    drop(device);
    let again = ZnsDevice::open(&options(path), false).expect("what opened opens again");
    assert_eq!(again.report(), report);
});
