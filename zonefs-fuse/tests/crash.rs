//! Power cuts: at every operation of the device, with any suffix of what was not flushed lost or torn.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::*;
use zonefs_fuse::Error;
use zonefs_fuse::device::{ZoneId, ZonedDevice};
use zonefs_fuse::engine::{SetAttr, inspect};
use zonefs_fuse::model::ROOT_INO;
use zonefs_fuse::testing::{MemGeometry, MemZoned, Rng};

fn workload(seed: u64, steps: usize) -> Vec<Op> {
    let mut rng = Rng::new(seed);
    // Many an fsync, so that the log rolls over.
    let op = |_| if rng.below(10) < 3 { Op::Fsync(rng.next_u64() as u8) } else { random_op(&mut rng, false) };
    (0..steps).map(op).collect()
}

/// Runs until the end or the power cut.
fn run(device: &Arc<MemZoned>, ops: &[Op]) -> Reference {
    let mut reference = Reference::default();
    let Ok(fs) = mount(device) else { return reference };
    for (number, op) in ops.iter().enumerate() {
        if let Outcome::Failed(_) = step(&fs, &mut reference, number, op) {
            break;
        }
    }
    reference
}

/// After a crash: mounts, checks, works on, and mounts again.
fn check(device: &Arc<MemZoned>, reference: &Reference, what: &str) {
    let fs = mount(device).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_recovered(&fs, reference);
    let before = paths(&fs);
    let ino = file(&fs, "after-the-crash");
    match fs.write(ino, 0, &[7; 10_000]) {
        Ok(taken) => {
            fs.fsync(ino).unwrap();
            drop(fs);
            let fs = mount(device).unwrap_or_else(|error| panic!("{what}, again: {error}"));
            assert_eq!(content(&fs, ino), vec![7; taken], "{what}");
            assert_eq!(paths(&fs).len(), before.len() + 1, "{what}");
        }
        Err(Error::NoSpace(_)) => {}
        Err(error) => panic!("{what}: {error}"),
    }
    assert_eq!(device.violations(), Vec::<String>::new(), "{what}");
}

/// A file system whose log is nearly full, so that it rolls over soon.
fn nearly_full_log(shape: MemGeometry) -> Arc<MemZoned> {
    let device = formatted(shape);
    let fs = mount(&device).unwrap();
    for _ in 0..22 {
        let same = SetAttr { mode: Some(0o755), ..SetAttr::default() };
        fs.setattr(ROOT_INO, &same).unwrap();
        fs.sync().unwrap();
    }
    device
}

fn cut_everywhere(shape: MemGeometry, seed: u64, steps: usize) {
    cut_at_each(shape, seed, &workload(seed, steps), true);
}

fn cut_at_each(shape: MemGeometry, seed: u64, ops: &[Op], rolls: bool) {
    let fresh = nearly_full_log(shape);
    let whole = Arc::new(fresh.fork());
    let reference = run(&whole, ops);
    assert!(reference.history.len() == ops.len() + 1, "the workload runs to its end without a cut");
    let operations = whole.operations();
    assert!(operations > ops.len() as u64 / 4, "the workload reaches the device");
    assert!(!rolls || inspect(&*whole).unwrap().recovery.sequence >= 2, "the log rolls over");
    for cut in 0..operations {
        let device = Arc::new(fresh.fork());
        device.cut_power_at(cut);
        let reference = run(&device, ops);
        device.power_cycle(&mut Rng::new(seed ^ (cut << 20)));
        check(&device, &reference, &format!("seed {seed}, cut at operation {cut} of {operations}"));
    }
}

#[test]
fn a_power_cut_at_any_operation_loses_nothing_that_was_synced() {
    for seed in 0..12 {
        cut_everywhere(SMALL, seed, 150);
    }
}

#[test]
fn a_power_cut_at_any_operation_is_harmless_when_space_and_zones_are_short() {
    let shape = MemGeometry { sequential: 5, max_open_zones: 2, max_active_zones: 2, ..SMALL };
    for seed in 100..106 {
        cut_everywhere(shape, seed, 150);
    }
}

#[test]
fn a_power_cut_at_any_operation_is_harmless_on_4096_byte_blocks_without_limits() {
    let shape = MemGeometry { block_size_bytes: 4096, max_open_zones: 0, max_active_zones: 0, ..SMALL };
    for seed in 200..204 {
        cut_everywhere(shape, seed, 150);
    }
}

#[test]
fn a_second_power_cut_during_recovery_is_harmless() {
    for seed in 300..304 {
        let ops = workload(seed, 120);
        let fresh = nearly_full_log(SMALL);
        let whole = Arc::new(fresh.fork());
        run(&whole, &ops);
        for cut in (0..whole.operations()).step_by(3) {
            let device = Arc::new(fresh.fork());
            device.cut_power_at(cut);
            let reference = run(&device, &ops);
            device.power_cycle(&mut Rng::new(seed + cut));
            let trial = Arc::new(device.fork());
            drop(mount(&trial));
            for again in 0..trial.operations() {
                let device = Arc::new(device.fork());
                device.cut_power_at(again);
                drop(mount(&device));
                device.power_cycle(&mut Rng::new(seed + again));
                check(&device, &reference, &format!("seed {seed}, cuts at {cut} and {again}"));
            }
        }
    }
}

#[test]
fn a_process_killed_at_any_operation_loses_nothing_that_was_synced_and_the_next_power_cut_neither() {
    for seed in 400..404 {
        let ops = workload(seed, 100);
        let fresh = nearly_full_log(SMALL);
        let whole = Arc::new(fresh.fork());
        run(&whole, &ops);
        for kill in 0..whole.operations() {
            let device = Arc::new(fresh.fork());
            device.cut_power_at(kill);
            let reference = run(&device, &ops);
            device.keep_power();
            let fs = mount(&device).unwrap();
            assert_recovered(&fs, &reference);
            let survived = paths(&fs);
            drop(fs);
            device.power_cycle(&mut Rng::new(seed + kill));
            let fs = mount(&device).unwrap();
            assert_eq!(paths(&fs), survived, "what the second mount saw was durable by then");
            assert_eq!(device.violations(), Vec::<String>::new());
        }
    }
}

#[test]
fn a_file_is_whole_or_gone_when_another_takes_its_space() {
    let shape = MemGeometry { sequential: 5, max_open_zones: 2, max_active_zones: 2, ..SMALL };
    let two = |change: Vec<Op>| {
        let first = vec![Op::Create(0, 0), Op::Append(0, 380_000), Op::Fsync(0)];
        let second = vec![Op::Append(0, 200_000), Op::Append(0, 180_000), Op::Append(0, 100), Op::Fsync(0)];
        [first, change, second].concat()
    };
    cut_at_each(shape, 1, &two(vec![Op::Unlink(0), Op::Create(0, 1)]), false);
    cut_at_each(shape, 2, &two(vec![Op::Truncate(0, 0)]), false);
    cut_at_each(shape, 3, &two(vec![Op::Create(0, 1), Op::Rename(1, 0, 0, 255)]), false);
}

/// The current metadata zone of a file system with a few log frames, and where its last frame starts.
fn with_a_log() -> (Arc<MemZoned>, ZoneId, u64, u64) {
    let device = formatted(SMALL);
    let fs = mount(&device).unwrap();
    for name in ["one", "two", "three"] {
        let ino = file(&fs, name);
        fs.write(ino, 0, name.as_bytes()).unwrap();
        fs.fsync(ino).unwrap();
    }
    drop(fs);
    let zone = ZoneId(1);
    let end = device.report_zone(zone).unwrap().written_bytes;
    (device, zone, end - 4096, end)
}

#[test]
fn a_log_torn_at_any_block_is_cut_off_and_reported() {
    let (device, zone, last, end) = with_a_log();
    for written in (last..=end).step_by(512) {
        let device = Arc::new(device.fork());
        device.truncate_zone(zone, written);
        let fs = mount(&device).unwrap();
        let names = paths(&fs);
        assert_eq!(names.contains_key("/three"), written == end, "a frame counts whole or not at all");
        assert!(names.contains_key("/one") && names.contains_key("/two"));
        let torn = if written == end { 0 } else { written - last };
        assert_eq!(fs.recovery().torn_bytes, torn, "{written}");
        drop(fs);
        assert_eq!(mount(&device).unwrap().recovery().torn_bytes, 0, "the mount got rid of it");
    }
}

#[test]
fn a_last_frame_torn_or_changed_at_any_byte_is_left_out() {
    let (device, zone, last, end) = with_a_log();
    let start = device.geometry().zone_start(zone) + last;
    let mut frame = vec![0; (end - last) as usize];
    device.read(start, &mut frame).unwrap();
    for at in 0..frame.len() {
        let device = Arc::new(device.fork());
        let mut torn = frame.clone();
        torn[at..].fill(0);
        if torn == frame {
            // The rest is padding: nothing was lost.
            continue;
        }
        device.scribble(start, &torn);
        let fs = mount(&device).unwrap();
        assert!(!paths(&fs).contains_key("/three") && paths(&fs).contains_key("/two"), "torn at byte {at}");
        let device = Arc::new(device.fork());
        let mut changed = frame.clone();
        changed[at] ^= 0x10;
        device.scribble(start, &changed);
        assert!(mount(&device).is_ok(), "changed at byte {at}");
    }
}

#[test]
fn damage_before_the_tail_is_an_error_that_names_the_place() {
    let (device, zone, last, _) = with_a_log();
    let start = device.geometry().zone_start(zone);
    for at in (0..last).step_by(97) {
        let device = Arc::new(device.fork());
        let mut block = vec![0; 512];
        let block_start = start + at / 512 * 512;
        device.read(block_start, &mut block).unwrap();
        block[(at % 512) as usize] ^= 1;
        device.scribble(block_start, &block);
        let written: Vec<_> = device.report().unwrap();
        match mount(&device) {
            Err(Error::Corrupt { offset_bytes, .. }) => {
                assert!(
                    offset_bytes <= start + at && start + at < offset_bytes + 8192,
                    "{at}: {offset_bytes}"
                );
            }
            Err(other) => panic!("damage at byte {at}: {other}"),
            Ok(_) => panic!("damage at byte {at} went unnoticed"),
        }
        assert_eq!(device.report().unwrap(), written, "nothing was written on the way");
    }
}

#[test]
fn arbitrary_metadata_never_panics() {
    let (device, zone, last, end) = with_a_log();
    let start = device.geometry().zone_start(zone);
    let mut rng = Rng::new(5);
    for _ in 0..400 {
        let device = Arc::new(device.fork());
        for _ in 0..=rng.below(3) {
            let at = rng.below(end as usize) as u64;
            let bytes: Vec<u8> = (0..rng.below(300)).map(|_| rng.next_u64() as u8).collect();
            device.scribble(start + at, &bytes);
        }
        let _ = mount(&device);
    }
    let _ = last;
}
