//! Image files: what a chip has finished is in the file, whatever happens to its tail.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use rig::Rig;
use spiflash_mtd::image::{Store, load, load_snapshot, save_snapshot};
use spiflash_mtd::{Chip, Setup, SimBus, part};
use std::sync::Arc;

fn fresh(name: &str) -> Chip {
    Chip::new(Arc::new(part::find(name).unwrap().clone()), &Setup::default()).unwrap()
}

fn content(chip: &Chip) -> Vec<u8> {
    let mut bytes = vec![0; chip.array().len() as usize];
    chip.array().read(0, &mut bytes);
    bytes
}

/// A rig whose chip is kept in a file, and the file's path.
fn kept(dir: &tempfile::TempDir, name: &str) -> (Rig, std::path::PathBuf) {
    let path = dir.path().join("chip.flash");
    let mut chip = fresh(name);
    let store = Store::open(&mut chip, 0, &path).unwrap();
    let mut rig = Rig { bus: SimBus::of(chip) };
    rig.bus.observe(Box::new(store));
    (rig, path)
}

fn work(rig: &mut Rig, step: u8) {
    match step % 4 {
        0 => rig.write(&[0x20, 0, 0x10, 0]),
        1 => rig.write(&[0x02, 0, 0x10, step, step, 0x0F]),
        2 => rig.write(&[0x01, (step & 0x0F) << 2 & 0x1C & 0x04]),
        _ => rig.write(&[0x42, 0, 0x10, step, 0x77]),
    }
}

#[test]
fn a_chip_whose_process_ends_at_any_moment_has_what_it_had_finished() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, path) = kept(&dir, "W25Q128JV");
    let mut states =
        vec![(std::fs::metadata(&path).unwrap().len(), rig.chip().lasting(), content(rig.chip()))];
    for step in 0..40 {
        work(&mut rig, step);
        let length = std::fs::metadata(&path).unwrap().len();
        states.push((length, rig.chip().lasting(), content(rig.chip())));
    }
    let whole = std::fs::read(&path).unwrap();
    let cut = dir.path().join("cut.flash");
    // Every step's end, and the bytes around it: a whole number of steps is there, none less than were written.
    for (done, (length, _, _)) in states.iter().enumerate() {
        for end in [*length as usize, (*length as usize + 5).min(whole.len())] {
            std::fs::write(&cut, &whole[..end]).unwrap();
            let mut chip = fresh("W25Q128JV");
            let torn_bytes = load(&mut chip, &cut).unwrap();
            assert!(torn_bytes <= 5);
            let found = states
                .iter()
                .rposition(|(_, lasting, bytes)| chip.lasts_as(lasting) && content(&chip) == *bytes);
            assert!(found.is_some_and(|found| found >= done), "after {done} steps, cut at {end}: {found:?}");
        }
    }
}

#[test]
fn a_damaged_record_before_the_tail_is_an_error_that_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, path) = kept(&dir, "W25Q128JV");
    let begin = std::fs::metadata(&path).unwrap().len() as usize;
    for step in 0..8 {
        work(&mut rig, step);
    }
    let whole = std::fs::read(&path).unwrap();
    for at in [0, 9, 14, 20, begin - 3, begin + 1, begin + 30] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, bytes).unwrap();
        let error = load(&mut fresh("W25Q128JV"), &path).unwrap_err().to_string();
        assert!(error.contains("chip.flash") && error.len() < 250, "{at}: {error}");
    }
    std::fs::write(&path, &whole).unwrap();
    let error = load(&mut fresh("W25Q256JV"), &path).unwrap_err().to_string();
    assert!(error.contains("W25Q256JV"), "{error}");
}

#[test]
fn a_torn_tail_is_cut_off_and_the_chip_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, path) = kept(&dir, "W25Q128JV");
    rig.write(&[0x02, 0, 0, 0, 0x5A]);
    let good = std::fs::metadata(&path).unwrap().len();
    rig.write(&[0x02, 0, 0, 1, 0x5A]);
    drop(rig);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(good + 7).unwrap();
    let mut chip = fresh("W25Q128JV");
    let mut store = Store::open(&mut chip, 0, &path).unwrap();
    assert_eq!(content(&chip)[..2], [0x5A, 0xFF]);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), good);
    chip.array_mut().program(2, &[0x11], 0);
    store.append(&mut chip).unwrap();
    let mut again = fresh("W25Q128JV");
    assert_eq!(load(&mut again, &path).unwrap(), 0);
    assert_eq!(content(&again)[..3], [0x5A, 0xFF, 0x11]);
}

#[test]
fn a_long_log_is_rewritten_and_no_change_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, path) = kept(&dir, "FM25V20A");
    let mut longest = 0;
    for round in 0..60u8 {
        for page in 0..=255u8 {
            rig.send(&[0x06]);
            rig.send(&[&[0x02, 0, page, 0][..], &[round ^ page; 256]].concat());
        }
        longest = longest.max(std::fs::metadata(&path).unwrap().len());
    }
    assert!(longest < 6 << 20, "{longest}");
    let mut chip = fresh("FM25V20A");
    load(&mut chip, &path).unwrap();
    assert_eq!(content(&chip), content(rig.chip()));
}

#[test]
fn a_snapshot_goes_on_in_the_middle_of_an_erase() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot");
    let mut rig = Rig::new("W25Q128JV");
    rig.write(&[0x02, 0, 0, 0, 0x00]);
    rig.send(&[0x06]);
    rig.send(&[0x20, 0, 0, 0]);
    rig.wait_ns(10_000_000);
    save_snapshot(rig.chip(), &path).unwrap();
    let mut chip = fresh("W25Q128JV");
    load_snapshot(&mut chip, &path).unwrap();
    assert_eq!(chip.busy_until_ns(), rig.chip().busy_until_ns());
    let mut other = Rig { bus: SimBus::of(chip) };
    for rig in [&mut rig, &mut other] {
        assert!(rig.busy());
        rig.finish();
        assert_eq!(rig.read(&[0x03, 0, 0, 0], 1), [0xFF]);
    }
    let error = load_snapshot(&mut fresh("W25Q128JV"), &kept(&dir, "W25Q128JV").1).unwrap_err();
    assert!(error.to_string().contains("not a snapshot"), "{error}");
}
