//! Devices that fail, zones that go, space that ends.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::*;
use zonefs_fuse::Error;
use zonefs_fuse::device::{ZoneCond, ZoneId, ZonedDevice};
use zonefs_fuse::engine::{Fs, MkfsOptions, MountOptions, NewInode, inspect, mkfs};
use zonefs_fuse::model::ROOT_INO;
use zonefs_fuse::testing::{Fail, MemGeometry, MemZoned, TestClock};

/// Zones 1 and 2 are metadata (0 is conventional), data starts here.
const DATA: u32 = 3;

fn zones_of(device: &MemZoned, path: &str) -> Vec<u32> {
    let found = inspect(device).unwrap();
    let file = found.files.into_iter().find(|f| f.path == path).unwrap();
    file.extents.iter().map(|(zone, ..)| *zone).collect()
}

#[test]
fn a_write_that_fails_goes_to_another_zone() {
    let device = formatted(SMALL);
    let fs = mount(&device).unwrap();
    device.fail(&[Fail::Write(ZoneId(DATA)), Fail::Write(ZoneId(DATA + 1))]);
    let ino = file(&fs, "f");
    assert_eq!(fs.write(ino, 0, &[3; 20_000]).unwrap(), 20_000);
    fs.fsync(ino).unwrap();
    assert_eq!(zones_of(&device, "/f"), [DATA + 2], "all of it in the third zone");
    assert_eq!(content(&mount(&device).unwrap(), ino), [3; 20_000]);
    assert_eq!(device.violations(), Vec::<String>::new());
}

#[test]
fn a_write_that_fails_everywhere_is_an_error_and_loses_nothing() {
    let device = formatted(SMALL);
    let fs = mount(&device).unwrap();
    let ino = file(&fs, "f");
    fs.write(ino, 0, b"before").unwrap();
    fs.fsync(ino).unwrap();
    let all: Vec<Fail> = (DATA..DATA + 8).map(|z| Fail::Write(ZoneId(z))).collect();
    device.fail(&all);
    assert!(matches!(fs.write(ino, 6, &[1; 9000]), Err(Error::Io { .. })));
    assert_eq!(content(&fs, ino), b"before", "the size did not move");
    device.fail(&[]);
    fs.write(ino, 6, b" and after").unwrap();
    fs.fsync(ino).unwrap();
    drop(fs);
    assert_eq!(content(&mount(&device).unwrap(), ino), b"before and after");
}

#[test]
fn a_metadata_zone_that_fails_is_left_for_the_other_one() {
    let device = formatted(SMALL);
    let fs = mount(&device).unwrap();
    device.fail(&[Fail::Write(ZoneId(1))]);
    let ino = file(&fs, "f");
    fs.write(ino, 0, b"content").unwrap();
    fs.fsync(ino).unwrap();
    drop(fs);
    let fs = mount(&device).unwrap();
    assert_eq!(fs.recovery().meta_zone, 2);
    assert_eq!(content(&fs, ino), b"content");
}

#[test]
fn when_both_metadata_zones_fail_the_file_system_becomes_read_only() {
    let device = formatted(SMALL);
    let fs = mount(&device).unwrap();
    let kept = file(&fs, "kept");
    fs.sync().unwrap();
    device.fail(&[Fail::Write(ZoneId(1)), Fail::Write(ZoneId(2))]);
    let lost = file(&fs, "lost");
    assert!(matches!(fs.fsync(lost), Err(Error::Io { .. })));
    assert!(fs.read_only_reason().is_some());
    assert!(matches!(fs.write(kept, 0, b"x"), Err(Error::ReadOnly)));
    assert!(matches!(fs.unlink(ROOT_INO, b"kept"), Err(Error::ReadOnly)));
    drop(fs);
    device.fail(&[]);
    let fs = mount(&device).unwrap();
    assert!(paths(&fs).contains_key("/kept"));
}

#[test]
fn after_a_failed_flush_nothing_more_is_promised() {
    let device = formatted(SMALL);
    let fs = mount(&device).unwrap();
    let ino = file(&fs, "f");
    fs.write(ino, 0, &[1; 5000]).unwrap();
    device.fail(&[Fail::Flush]);
    assert!(matches!(fs.fsync(ino), Err(Error::Io { .. })));
    device.fail(&[]);
    assert!(matches!(fs.fsync(ino), Err(Error::ReadOnly)), "a second fsync does not pretend");
    assert_eq!(content(&fs, ino), [1; 5000], "what is there can still be read");
}

#[test]
fn an_offline_zone_loses_its_files_only() {
    let device = formatted(SMALL);
    let fs = mount(&device).unwrap();
    let (one, two) = (file(&fs, "one"), file(&fs, "two"));
    fs.open(one).unwrap();
    fs.open(two).unwrap();
    fs.write(one, 0, &[1; 8192]).unwrap();
    fs.write(two, 0, &[2; 8192]).unwrap();
    fs.sync().unwrap();
    drop(fs);
    let zone = zones_of(&device, "/one")[0];
    assert_ne!(zone, zones_of(&device, "/two")[0], "two open files are written to two zones");
    device.set_condition(ZoneId(zone), ZoneCond::Offline);
    let fs = mount(&device).unwrap();
    assert!(fs.read(one, 0, 10).is_err());
    assert_eq!(content(&fs, two), [2; 8192]);
    fs.unlink(ROOT_INO, b"one").unwrap();
    fs.write(two, 8192, &[3; 8192]).unwrap();
    fs.sync().unwrap();
    assert_eq!(fs.statfs().total_blocks, 7 * 32, "the zone is not counted any more");
    assert_eq!(device.violations(), Vec::<String>::new());
}

#[test]
fn a_read_only_zone_keeps_its_files_and_gets_no_more() {
    let device = formatted(SMALL);
    let fs = mount(&device).unwrap();
    let ino = file(&fs, "f");
    fs.write(ino, 0, &[1; 8192]).unwrap();
    fs.sync().unwrap();
    device.set_condition(ZoneId(DATA), ZoneCond::ReadOnly);
    fs.write(ino, 8192, &[2; 8192]).unwrap();
    fs.sync().unwrap();
    drop(fs);
    let fs = mount(&device).unwrap();
    assert_eq!(content(&fs, ino), [[1; 8192], [2; 8192]].concat());
    assert_eq!(zones_of(&device, "/f"), [DATA, DATA + 1]);
}

#[test]
fn names_end_with_enospc_before_a_snapshot_would_not_fit() {
    let device = formatted(SMALL);
    let fs = mount(&device).unwrap();
    let new = NewInode { mode: 0o100_644, uid: 0, gid: 0, rdev: 0, target: b"" };
    let mut made = 0;
    let error = loop {
        let name = format!("{made:0200}");
        match fs.create(ROOT_INO, name.as_bytes(), &new) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NoSpace(_)), "{error}");
    assert!(made > 100, "{made}");
    fs.sync().unwrap();
    for name in 0..made {
        fs.unlink(ROOT_INO, format!("{name:0200}").as_bytes()).unwrap();
    }
    file(&fs, "room-again");
    fs.sync().unwrap();
    drop(fs);
    assert_eq!(paths(&mount(&device).unwrap()).len(), 2);
}

#[test]
fn every_byte_that_was_taken_can_be_synced_when_space_ends() {
    let device = formatted(MemGeometry { sequential: 3, max_open_zones: 2, ..SMALL });
    let fs = mount(&device).unwrap();
    let mut sizes = Vec::new();
    'full: for number in 0.. {
        let ino = file(&fs, &format!("f{number}"));
        let mut size = 0;
        for part in 1..4 {
            match fs.write(ino, size, &vec![number as u8; 700 * part]) {
                Ok(taken) => size += taken as u64,
                Err(Error::NoSpace(_)) => {
                    sizes.push((ino, size, number as u8));
                    break 'full;
                }
                Err(error) => panic!("{error}"),
            }
        }
        sizes.push((ino, size, number as u8));
    }
    assert_eq!(fs.statfs().free_blocks, 0);
    fs.sync().unwrap();
    drop(fs);
    let fs = mount(&device).unwrap();
    for (ino, size, byte) in sizes {
        assert!(content(&fs, ino) == vec![byte; size as usize]);
    }
}

#[test]
fn a_zone_whose_files_are_gone_is_reset_and_used_again() {
    let device = formatted(SMALL);
    let fs = mount(&device).unwrap();
    let free = fs.statfs().free_blocks;
    for round in 0..30_u8 {
        let ino = file(&fs, "f");
        assert_eq!(fs.write(ino, 0, &[round; 500_000]).unwrap(), 500_000);
        fs.fsync(ino).unwrap();
        fs.unlink(ROOT_INO, b"f").unwrap();
    }
    fs.sync().unwrap();
    assert!(fs.statfs().free_blocks + 32 > free, "at most one zone is partly written");
    assert_eq!(device.violations(), Vec::<String>::new());
}

#[test]
fn mkfs_refuses_what_it_cannot_use_and_what_is_used() {
    let make = |shape: MemGeometry, options: &MkfsOptions| mkfs(&MemZoned::new(shape), options);
    let options = mkfs_options();
    for shape in [
        MemGeometry { sequential: 2, ..SMALL },
        MemGeometry { zone_capacity_bytes: 64 << 10, ..SMALL },
        MemGeometry { max_open_zones: 1, ..SMALL },
    ] {
        assert!(matches!(make(shape, &options), Err(Error::Unusable { .. })), "{shape:?}");
    }
    let label = MkfsOptions { label: "x".repeat(64), ..mkfs_options() };
    assert!(matches!(make(SMALL, &label), Err(Error::Unusable { .. })));
    let device = formatted(SMALL);
    let fs = mount(&device).unwrap();
    file(&fs, "f");
    fs.sync().unwrap();
    drop(fs);
    assert!(matches!(mkfs(&*device, &options), Err(Error::HasFileSystem { .. })));
    assert!(paths(&mount(&device).unwrap()).contains_key("/f"), "a refused mkfs changes nothing");
    mkfs(&*device, &MkfsOptions { force: true, ..mkfs_options() }).unwrap();
    assert_eq!(paths(&mount(&device).unwrap()).len(), 1);
    let empty = Arc::new(MemZoned::new(SMALL));
    assert!(matches!(mount(&empty), Err(Error::NoFileSystem { .. })));
}

#[test]
fn a_read_only_mount_writes_nothing_even_with_a_torn_tail() {
    let device = formatted(SMALL);
    let fs = mount(&device).unwrap();
    let ino = file(&fs, "f");
    fs.write(ino, 0, b"content").unwrap();
    fs.fsync(ino).unwrap();
    file(&fs, "g");
    fs.sync().unwrap();
    drop(fs);
    let end = device.report_zone(ZoneId(1)).unwrap().written_bytes;
    device.truncate_zone(ZoneId(1), end - 512);
    let before = device.report().unwrap();
    let read_only: Arc<dyn ZonedDevice> = device.clone();
    let fs = Fs::mount(read_only, Arc::new(TestClock::default()), MountOptions { read_only: true }).unwrap();
    assert_eq!(fs.recovery().torn_bytes, 4096 - 512);
    assert_eq!(content(&fs, ino), b"content");
    assert!(matches!(fs.write(ino, 7, b"x"), Err(Error::ReadOnly)));
    fs.sync().unwrap();
    assert_eq!(device.report().unwrap(), before);
}
