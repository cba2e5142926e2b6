//! A daemon dies and another takes over: writes that come again are done once, at the places they had.
//!
//! A death is simulated by a copy that fails: the place is taken and noted, the data is not there, and nothing completes.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use std::{io, ptr::NonNull};
use ublk_zns::{
    Sector, ZnsConfig, ZnsDevice, ZoneId, ZoneState,
    engine::{CacheMode, DeviceOptions},
    media::{MediaPlace, SlotId, SlotShape},
};

const ZONE: u64 = 2048;

fn options(dir: &tempfile::TempDir) -> DeviceOptions {
    let config = ZnsConfig {
        size_bytes: 8 << 20,
        zone_size_bytes: 1 << 20,
        zone_capacity_bytes: Some(768 << 10),
        max_open_zones: Some(2),
        max_active_zones: Some(3),
        ..ZnsConfig::default()
    };
    DeviceOptions {
        slots: SlotShape { queues: 2, depth: 8 },
        cache: CacheMode::Durable,
        ..DeviceOptions::new(config, MediaPlace::Ram(dir.path().join("media")))
    }
}

fn slot(queue: u16, tag: u16) -> Option<SlotId> {
    Some(SlotId { queue, tag })
}

fn die(_: NonNull<u8>, _: usize) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::EIO))
}

fn fill(value: u8) -> impl FnOnce(NonNull<u8>, usize) -> io::Result<()> {
    move |to, bytes| {
        // SAFETY: valid for `bytes`; nobody else uses the device.
        unsafe { to.write_bytes(value, bytes) };
        Ok(())
    }
}

fn block(device: &ZnsDevice, sector: u64) -> u8 {
    let mut back = [0xee; 4096];
    device.read(Sector(sector), &mut back).unwrap();
    assert!(back.iter().all(|byte| *byte == back[0]));
    back[0]
}

#[test]
fn a_write_that_had_taken_its_place_is_done_again_and_another_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let device = ZnsDevice::create(&options(&tmp)).unwrap();
    device.write(Sector(0), &[1; 4096]).unwrap();
    assert!(device.write_with(slot(0, 3), Sector(8), 8, die).is_err());
    drop(device);
    let device = ZnsDevice::open(&options(&tmp), true).unwrap();
    assert_eq!(device.describe(ZoneId(0)).unwrap().write_pointer, Sector(16));
    // Not the same range, or completed before.
    assert!(device.write_with(slot(0, 0), Sector(0), 8, fill(9)).is_err());
    assert!(device.write_with(slot(0, 0), Sector(8), 16, fill(9)).is_err());
    // It may have another tag.
    device.write_with(slot(1, 5), Sector(8), 8, fill(2)).unwrap();
    assert_eq!((block(&device, 0), block(&device, 8)), (1, 2));
    assert_eq!(device.describe(ZoneId(0)).unwrap().write_pointer, Sector(16));
    // Only once.
    assert!(device.write_with(slot(1, 5), Sector(8), 8, fill(3)).is_err());
    device.write_with(slot(1, 5), Sector(16), 8, fill(4)).unwrap();
}

#[test]
fn a_write_that_filled_its_zone_is_known_again_too() {
    let tmp = tempfile::tempdir().unwrap();
    let device = ZnsDevice::create(&options(&tmp)).unwrap();
    device.write(Sector(0), &vec![1; 764 << 10]).unwrap();
    assert!(device.write_with(slot(0, 0), Sector(1528), 8, die).is_err());
    drop(device);
    let device = ZnsDevice::open(&options(&tmp), true).unwrap();
    assert_eq!(device.describe(ZoneId(0)).unwrap().state, ZoneState::Full);
    device.write_with(slot(0, 0), Sector(1528), 8, fill(2)).unwrap();
    assert_eq!(block(&device, 1528), 2);
}

#[test]
fn without_a_recovery_nothing_is_done_again() {
    let tmp = tempfile::tempdir().unwrap();
    let device = ZnsDevice::create(&options(&tmp)).unwrap();
    assert!(device.write_with(slot(0, 3), Sector(0), 8, die).is_err());
    drop(device);
    let device = ZnsDevice::open(&options(&tmp), false).unwrap();
    assert!(device.write_with(slot(0, 3), Sector(0), 8, fill(1)).is_err());
}

#[test]
fn appends_that_come_again_get_the_places_that_were_taken_for_them() {
    let tmp = tempfile::tempdir().unwrap();
    let device = ZnsDevice::create(&options(&tmp)).unwrap();
    let start = Sector(ZONE);
    assert_eq!(device.append_with(slot(0, 0), start, 8, fill(1)).unwrap(), Sector(ZONE));
    device.committed(SlotId { queue: 0, tag: 0 });
    for tag in 1..4 {
        assert!(device.append_with(slot(0, tag), start, 8, die).is_err());
    }
    assert!(device.append_with(slot(1, 0), start, 16, die).is_err());
    drop(device);
    // The successor dies too, after one of them.
    let device = ZnsDevice::open(&options(&tmp), true).unwrap();
    assert_eq!(device.append_with(slot(0, 3), start, 8, fill(2)).unwrap(), Sector(ZONE + 24));
    device.committed(SlotId { queue: 0, tag: 3 });
    drop(device);
    let device = ZnsDevice::open(&options(&tmp), true).unwrap();
    let mut places: Vec<u64> =
        (0..2).map(|tag| device.append_with(slot(0, tag), start, 8, fill(3)).unwrap().0).collect();
    places.sort_unstable();
    assert_eq!(places, [ZONE + 8, ZONE + 16]);
    assert_eq!(device.append_with(slot(0, 6), start, 16, fill(4)).unwrap(), Sector(ZONE + 32));
    // New ones go behind.
    assert_eq!(device.append_with(slot(0, 6), start, 8, fill(5)).unwrap(), Sector(ZONE + 48));
    let found: Vec<u8> = (0..7).map(|n| block(&device, ZONE + n * 8)).collect();
    assert_eq!(found, [1, 3, 3, 2, 4, 4, 5]);
}

#[test]
fn an_append_on_its_way_to_the_kernel_is_known_again_only_by_its_tag() {
    let tmp = tempfile::tempdir().unwrap();
    let device = ZnsDevice::create(&options(&tmp)).unwrap();
    device.append_with(slot(0, 2), Sector(0), 8, fill(1)).unwrap();
    device.committing(SlotId { queue: 0, tag: 2 });
    drop(device);
    let device = ZnsDevice::open(&options(&tmp), true).unwrap();
    assert_eq!(device.append_with(slot(0, 1), Sector(0), 8, fill(2)).unwrap(), Sector(8));
    assert_eq!(device.append_with(slot(0, 2), Sector(0), 8, fill(1)).unwrap(), Sector(0));
}

#[test]
fn a_reset_forgets_what_was_placed_before_it() {
    let tmp = tempfile::tempdir().unwrap();
    let device = ZnsDevice::create(&options(&tmp)).unwrap();
    assert!(device.append_with(slot(0, 2), Sector(0), 8, die).is_err());
    drop(device);
    let device = ZnsDevice::open(&options(&tmp), true).unwrap();
    device.reset_zone(ZoneId(0)).unwrap();
    device.write(Sector(0), &[7; 16384]).unwrap();
    assert_eq!(device.append_with(slot(0, 2), Sector(0), 8, fill(1)).unwrap(), Sector(32));
    assert_eq!(block(&device, 0), 7);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Each round some appends complete and some are cut short; the daemon dies; those that were cut short come again, some
    /// of them under other tags. At the end every append that completed has a place of its own with its own data.
    #[test]
    fn however_often_the_daemon_dies_every_append_ends_with_one_place_of_its_own(
        rounds in prop::collection::vec(prop::collection::vec((0u64..3, 1u64..4, any::<bool>()), 1..8), 1..6),
        shift in 0u16..8,
    ) {
        let tmp = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        drop(ZnsDevice::create(&options(&tmp)).unwrap());
        let mut pending: Vec<(u64, u64, u8)> = Vec::new();
        let mut done: Vec<(u64, u64, u8)> = Vec::new();
        let mut serial = 0u8;
        for round in rounds {
            let device = ZnsDevice::open(&options(&tmp), true).unwrap();
            for (zone, sectors, value) in std::mem::take(&mut pending) {
                // After the others of its kind were served, any free tag is as good.
                let tag = (u16::from(value) + shift) % 8;
                let at = device.append_with(slot(1, tag), Sector(zone * ZONE), sectors, fill(value)).unwrap();
                device.committed(SlotId { queue: 1, tag });
                done.push((at.0, sectors, value));
            }
            for (tag, (zone, blocks, dies)) in (0..).zip(round) {
                serial += 1;
                let (start, sectors) = (Sector(zone * ZONE), blocks * 8);
                if dies {
                    prop_assert!(device.append_with(slot(0, tag), start, sectors, die).is_err());
                    pending.push((zone, sectors, serial));
                } else {
                    let at = device.append_with(slot(0, tag), start, sectors, fill(serial)).unwrap();
                    device.committed(SlotId { queue: 0, tag });
                    done.push((at.0, sectors, serial));
                }
            }
        }
        let device = ZnsDevice::open(&options(&tmp), true).unwrap();
        let total: u64 = done.iter().map(|(_, sectors, _)| sectors).sum();
        let left: u64 = pending.iter().map(|(_, sectors, _)| sectors).sum();
        let written: u64 = device.report().iter().map(|zone| zone.write_pointer.0 - zone.start.0).sum();
        prop_assert_eq!(written, total + left, "nothing was appended twice");
        for (at, sectors, value) in done {
            for sector in (at..at + sectors).step_by(8) {
                prop_assert_eq!(block(&device, sector), value, "sector {}", sector);
            }
        }
    }
}
