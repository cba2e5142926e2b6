//! Devices that fail, zones that go, space that ends.
#![allow(clippy::unwrap_used)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use common::*;
use zonefs_fuse::Error;
use zonefs_fuse::device::{ZoneCond, ZoneId, ZonedDevice};
use zonefs_fuse::engine::{Fs, MkfsOptions, MountOptions, NewInode, SetAttr, inspect, mkfs};
use zonefs_fuse::model::ROOT_INO;
use zonefs_fuse::testing::{Call, Fail, MemGeometry, MemZoned, Panicking, TestClock};

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

fn panicking(device: &Arc<MemZoned>) -> (Arc<Panicking>, Fs) {
    let panicking = Arc::new(Panicking::new(device.clone()));
    let fs = Fs::mount(panicking.clone(), Arc::new(TestClock::default()), MountOptions::default()).unwrap();
    (panicking, fs)
}

#[test]
fn after_a_panic_inside_a_change_nothing_more_is_written() {
    for (call, armed_for) in [(Call::Write, "write"), (Call::Write, "fsync"), (Call::Flush, "fsync")] {
        let device = formatted(SMALL);
        let (panics, fs) = panicking(&device);
        let ino = file(&fs, "f");
        fs.write(ino, 0, &[1; 5000]).unwrap();
        fs.fsync(ino).unwrap();
        let change = || match armed_for {
            "write" => fs.write(ino, 5000, &[2; 9000]).map(|_| ()),
            _ => fs.fsync(ino),
        };
        if armed_for == "fsync" {
            fs.write(ino, 5000, &[2; 100]).unwrap();
        }
        panics.panic_in(Some(call));
        assert!(catch_unwind(AssertUnwindSafe(change)).is_err(), "{armed_for} panics in {call:?}");
        let before = device.report().unwrap();
        assert!(fs.read_only_reason().is_some_and(|why| why.contains("panic")));
        assert!(matches!(fs.write(ino, 5000, b"x"), Err(Error::ReadOnly)));
        assert!(matches!(fs.unlink(ROOT_INO, b"f"), Err(Error::ReadOnly)));
        assert!(matches!(fs.fsync(ino), Err(Error::ReadOnly)), "nothing is promised any more");
        assert!(matches!(fs.sync(), Err(Error::ReadOnly)));
        assert_eq!(content(&fs, ino)[..5000], [1; 5000], "what is there can still be read");
        drop(fs);
        assert_eq!(device.report().unwrap(), before);
        assert_eq!(content(&mount(&device).unwrap(), ino)[..5000], [1; 5000]);
    }
}

#[test]
fn a_panic_inside_a_read_leaves_the_file_system_writable() {
    let device = formatted(SMALL);
    let (panics, fs) = panicking(&device);
    let ino = file(&fs, "f");
    fs.write(ino, 0, &[1; 8192]).unwrap();
    panics.panic_in(Some(Call::Read));
    assert!(catch_unwind(AssertUnwindSafe(|| fs.read(ino, 0, 100))).is_err());
    assert_eq!(fs.read_only_reason(), None, "a read changes nothing");
    panics.panic_in(None);
    fs.write(ino, 8192, b"more").unwrap();
    fs.fsync(ino).unwrap();
}

#[test]
fn a_commit_that_fails_on_the_side_fails_fsync_and_not_the_operation_that_was_done() {
    let device = formatted(SMALL);
    let fs = mount(&device).unwrap();
    let ino = file(&fs, "f");
    fs.sync().unwrap();
    device.fail(&[Fail::Write(ZoneId(1)), Fail::Write(ZoneId(2))]);
    let mut done = 0o644;
    let mut refused = None;
    for step in 0..20_000_u32 {
        let mode = step % 0o1000;
        match fs.setattr(ino, &SetAttr { mode: Some(mode), ..SetAttr::default() }) {
            Ok(_) => done = mode,
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    assert!(matches!(refused, Some(Error::ReadOnly)), "{refused:?}");
    let mode = fs.getattr(ino).unwrap().attrs.mode & 0o777;
    assert_eq!(mode, done, "what was refused was not done, what was done was not refused");
    assert!(fs.fsync(ino).is_err(), "fsync says that it is not durable");
}

#[test]
fn an_offline_metadata_zone_is_not_taken_for_a_device_without_a_file_system() {
    let device = formatted(SMALL);
    device.set_condition(ZoneId(1), ZoneCond::Offline);
    let error = mount(&device).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("zone 1 is offline"), "{error}");
    assert!(matches!(inspect(&*device), Err(Error::Corrupt { .. })));
}
