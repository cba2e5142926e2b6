//! Stored media of every version: each must open for its geometry, and be what is written today.
//!
//! `tests/images/media-vN.bin` is the live table of a device: the header page, the session page (left out: zeroes) and the
//! zones. `journal-vN.bin` is the journal of a device in a directory. The data is left out; it reads as zeroes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use ublk_zns::{
    Sector, ZnsConfig, ZnsDevice, ZnsError, ZoneId, ZoneState,
    engine::DeviceOptions,
    media::{Media, MediaPlace},
    zones::NO_WRITE_POINTER,
};

/// Header page, session page, and the zones.
const TABLE_BYTES: usize = 3 * 4096;
const SESSION: std::ops::Range<usize> = 4096..8192;

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

fn ram(config: ZnsConfig, path: &Path) -> DeviceOptions {
    DeviceOptions::new(config, MediaPlace::Ram(path.to_owned()))
}

fn dir(config: ZnsConfig, path: &Path) -> DeviceOptions {
    DeviceOptions::new(config, MediaPlace::Dir(path.to_owned()))
}

fn start(zone: u64) -> Sector {
    Sector(zone * 2048)
}

/// A device with a zone in each state.
fn build(options: &DeviceOptions) -> ZnsDevice {
    let device = ZnsDevice::create(options).unwrap();
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
    device.write(start(10), &[1; 4096]).unwrap();
    device.reset_zone(ZoneId(10)).unwrap();
    device
}

fn assert_is_what_was_built(device: &ZnsDevice) {
    use ZoneState::{Closed, Empty, ExplicitlyOpen, Full, ImplicitlyOpen, Offline, ReadOnly};
    let report = device.report();
    let states: Vec<ZoneState> = report.iter().skip(2).take(9).map(|zone| zone.state).collect();
    assert_eq!(states, [Empty, ExplicitlyOpen, ImplicitlyOpen, Closed, Full, Full, ReadOnly, Offline, Empty]);
    let written = |zone: u64| report[zone as usize].write_pointer.0 - start(zone).0;
    assert_eq!([2, 3, 4, 5].map(written), [0, 0, 16, 8]);
    assert_eq!(report[0].write_pointer, NO_WRITE_POINTER);
    assert!(report.iter().skip(11).all(|zone| zone.state == Empty));
    assert_eq!(device.resources(), (2, 3));
}

fn table_of(bytes: &[u8]) -> Vec<u8> {
    let mut table = bytes[..TABLE_BYTES].to_vec();
    table[SESSION].fill(0);
    table
}

#[test]
fn a_table_of_version_2_opens_with_the_state_of_every_zone() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("media");
    std::fs::copy(image("media-v2.bin"), &path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(TABLE_BYTES as u64 + (16 << 20)).unwrap();
    let device = ZnsDevice::open(&ram(config(), &path), false).unwrap();
    assert_is_what_was_built(&device);
    // It goes on from there.
    device.write(Sector(start(4).0 + 16), &[2; 4096]).unwrap();
    let mut back = [0; 4096];
    device.read(Sector(start(4).0 + 16), &mut back).unwrap();
    assert_eq!(back, [2; 4096]);
    drop(device);

    assert_eq!(Media::probe(&MediaPlace::Ram(path.clone())).unwrap(), config());
    let other = ZnsConfig { max_append_bytes: 256 << 10, ..config() };
    let error = ZnsDevice::open(&ram(other, &path), false).err().unwrap().to_string();
    assert!(error.contains("256 sectors per append at most, not 512"), "{error}");
}

#[test]
fn a_journal_of_version_1_opens_with_the_state_of_every_zone_after_a_restart() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("device");
    drop(ZnsDevice::create(&dir(config(), &path)).unwrap());
    std::fs::copy(image("journal-v1.bin"), path.join("journal")).unwrap();
    // Another boot: the live table does not count.
    let table = std::fs::read(path.join("zones")).unwrap();
    std::fs::write(path.join("zones"), table_of(&table)).unwrap();
    let device = ZnsDevice::open(&dir(config(), &path), false).unwrap();
    assert_is_what_was_built(&device);
}

#[test]
fn a_header_that_only_comes_to_the_same_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("media");
    let whole = ZnsConfig { max_append_bytes: 768 << 10, ..config() };
    drop(ZnsDevice::create(&ram(whole.clone(), &path)).unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    // An append limit above the zone's capacity, under a checksum that is right.
    bytes[53] = 0xef;
    let crc = crc32c::crc32c(&bytes[..64]);
    bytes[64..68].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    match ZnsDevice::open(&ram(whole, &path), false) {
        Err(ZnsError::Format { offset: 53, .. }) => {}
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened"),
    }
    assert!(std::fs::read(&path).unwrap() == bytes, "nothing is written before a refusal");
}

#[test]
fn media_of_version_1_is_refused_by_its_version() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("media");
    std::fs::copy(image("media-v1.bin"), &path).unwrap();
    match ZnsDevice::open(&ram(config(), &path), false) {
        Err(ZnsError::Format { offset: 8, why, .. }) => {
            assert_eq!(why, "its version is 1, this program reads 2");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened"),
    }
}

#[test]
fn what_is_written_today_is_the_stored_image_byte_for_byte() {
    let tmp = tempfile::tempdir().unwrap();
    let compare = |name: &str, now: &[u8]| {
        let stored = std::fs::read(image(name)).unwrap();
        assert_eq!(stored.len(), now.len(), "{name}");
        let differs = stored.iter().zip(now).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{name}: the first byte that differs");
    };
    let path = tmp.path().join("media");
    drop(build(&ram(config(), &path)));
    let now = std::fs::read(&path).unwrap();
    assert_eq!(now.len(), TABLE_BYTES + (16 << 20));
    compare("media-v2.bin", &table_of(&now));
    let path = tmp.path().join("device");
    drop(build(&dir(config(), &path)));
    compare("journal-v1.bin", &std::fs::read(path.join("journal")).unwrap());
}

#[test]
#[ignore = "writes the stored images; run it once for a new version, under that version's name"]
fn write_the_images() {
    let tmp = tempfile::tempdir().unwrap();
    let store = |name: &str, bytes: &[u8]| {
        assert!(!image(name).exists(), "a stored image is never replaced");
        std::fs::write(image(name), bytes).unwrap();
    };
    let path = tmp.path().join("media");
    drop(build(&ram(config(), &path)));
    store("media-v2.bin", &table_of(&std::fs::read(&path).unwrap()));
    let path = tmp.path().join("device");
    drop(build(&dir(config(), &path)));
    store("journal-v1.bin", &std::fs::read(path.join("journal")).unwrap());
}
