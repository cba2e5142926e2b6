//! Stored media of every released version: each must open for its geometry, and be what is written today.
//!
//! `tests/images/media-vN.bin` is the start of a media file: the header page and the zone table. The data behind it is
//! left out; it reads as zeros.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use ublk_zns::{Sector, ZnsConfig, ZnsDevice, ZnsError, ZoneId, ZoneState, zones::NO_WRITE_POINTER};

/// Header page and table.
const META_BYTES: usize = 8192;

fn image(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(name)
}

/// Every field of the header has a value of its own.
fn config() -> ZnsConfig {
    ZnsConfig {
        size_bytes: 16 << 20,
        zone_size_bytes: 1 << 20,
        zone_capacity_bytes: Some(768 << 10),
        conventional_zones: 2,
        max_open_zones: Some(3),
        max_active_zones: Some(5),
        block_bytes: 4096,
        max_append_bytes: 128 << 10,
    }
}

fn start(zone: u64) -> Sector {
    Sector(zone * 2048)
}

/// A device with a zone in each state.
fn build(path: &Path) -> ZnsDevice {
    let device = ZnsDevice::create(&config(), path).unwrap();
    device.write(Sector(8), &[1; 4096]).unwrap();
    device.open_zone(ZoneId(3)).unwrap();
    device.write(start(4), &[1; 8192]).unwrap();
    device.write(start(5), &[1; 4096]).unwrap();
    device.close_zone(ZoneId(5)).unwrap();
    device.write(start(6), &[1; 4096]).unwrap();
    device.finish_zone(ZoneId(6)).unwrap();
    device.write(start(7), &vec![1; 768 << 10]).unwrap();
    device.write(start(8), &[1; 12_288]).unwrap();
    device.wear_out(ZoneId(8)).unwrap();
    device.fail(ZoneId(9)).unwrap();
    device
}

fn assert_is_what_was_built(device: &ZnsDevice) {
    use ZoneState::{Closed, Empty, ExplicitlyOpen, Full, ImplicitlyOpen, Offline, ReadOnly};
    let report = device.report();
    let states: Vec<ZoneState> = report.iter().skip(2).take(8).map(|zone| zone.state).collect();
    assert_eq!(states, [Empty, ExplicitlyOpen, ImplicitlyOpen, Closed, Full, Full, ReadOnly, Offline]);
    let written = |zone: u64| report[zone as usize].write_pointer.0 - start(zone).0;
    assert_eq!([2, 3, 4, 5].map(written), [0, 0, 16, 8]);
    assert_eq!(report[0].write_pointer, NO_WRITE_POINTER);
    assert!(report.iter().skip(10).all(|zone| zone.state == Empty));
    assert_eq!(device.resources(), (2, 3));
}

#[test]
fn media_of_version_1_opens_with_the_state_of_every_zone() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("media");
    std::fs::copy(image("media-v1.bin"), &path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(META_BYTES as u64 + (16 << 20)).unwrap();
    let device = ZnsDevice::open(&config(), &path).unwrap();
    assert_is_what_was_built(&device);
    // It goes on from there.
    device.write(Sector(start(4).0 + 16), &[2; 4096]).unwrap();
    let mut back = [0; 4096];
    device.read(Sector(start(4).0 + 16), &mut back).unwrap();
    assert_eq!(back, [2; 4096]);
    drop(device);

    let other = ZnsConfig { max_append_bytes: 256 << 10, ..config() };
    match ZnsDevice::open(&other, &path) {
        Err(ZnsError::Format { offset, .. }) => assert_eq!(offset, 53),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened with another limit"),
    }
}

#[test]
fn what_is_written_today_is_version_1_byte_for_byte() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("media");
    let device = build(&path);
    assert_is_what_was_built(&device);
    drop(device);
    let now = std::fs::read(&path).unwrap();
    assert_eq!(now.len(), META_BYTES + (16 << 20));
    let stored = std::fs::read(image("media-v1.bin")).unwrap();
    assert_eq!(stored.len(), META_BYTES);
    let differs = stored.iter().zip(&now).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first byte that differs");
}

#[test]
#[ignore = "writes the stored image; run it once for a new version of the media, under that version's name"]
fn write_the_image() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("media");
    drop(build(&path));
    let to = image("media-v1.bin");
    assert!(!to.exists(), "a stored image of a released version is never replaced");
    std::fs::write(to, &std::fs::read(&path).unwrap()[..META_BYTES]).unwrap();
}
