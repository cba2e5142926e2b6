//! Copies of blocks, and blocks that move.

use super::*;

fn copies_of(device: &Device) -> (u32, u32) {
    let report = device.engine.report();
    (report.thin_blocks, report.lost_blocks)
}

#[test]
fn with_two_copies_a_node_may_die_at_any_time_and_the_missing_copies_are_made_again() {
    let mut device = device(Config { replicas: 2, ..small(4096) }, &[48, 48, 48]);
    for page in 0..2048 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    for (round, dying) in [0usize, 1, 2, 0].into_iter().enumerate() {
        device.nodes[dying].kill();
        for page in 0..2048 {
            assert_eq!(device.read(page).unwrap(), content(page * 8 + 2), "page {page} in round {round}");
        }
        assert_eq!(device.copy_all(), Copied::Nothing);
        assert_eq!(copies_of(&device), (0, 0), "all blocks have two copies again");
        device.nodes[dying].revive(round % 2 == 0);
        device.keep();
    }
    device.check();
}

#[test]
fn a_bad_copy_is_passed_over_for_a_good_one() {
    let mut device = device(Config { replicas: 2, cache_bytes: 1 << 20, ..small(2048) }, &[48, 48]);
    for page in 0..1024 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    (0..4096).step_by(64).for_each(|byte| device.nodes[0].corrupt(byte + 100));
    for page in 0..1024 {
        assert_eq!(device.read(page).unwrap(), content(page * 8 + 2), "page {page}");
    }
    assert!(device.engine.report().counters.bad_records > 0);
}

#[test]
fn a_slow_copy_is_overtaken_by_the_other() {
    let mut device = device(Config { replicas: 2, read_ahead: false, ..small(2048) }, &[48, 48]);
    for page in 0..512 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    for page in 0..512 {
        assert_eq!(device.read(page).unwrap(), content(page * 8 + 2));
    }
    assert_eq!(device.engine.report().counters.read_errors, 0);
}

#[test]
fn what_a_node_wants_back_moves_to_the_others_and_nothing_is_lost() {
    for replicas in [1, 2] {
        let mut device = device(Config { replicas, ..small(4096) }, &[48, 48, 48]);
        for page in 0..2048 {
            device.write(page, page * 8 + 2).unwrap();
        }
        device.flush_all();
        let before = device.nodes[1].held();
        assert!(before > 4);
        device.nodes[1].ask_back(4);
        device.keep();
        device.copy_all();
        assert!(device.nodes[1].held() <= before - 4, "{} of {before}", device.nodes[1].held());
        device.nodes[1].drain();
        device.keep();
        assert_eq!(device.copy_all(), Copied::Nothing);
        device.keep();
        assert_eq!(device.nodes[1].held(), 0, "replicas {replicas}");
        for page in 0..2048 {
            assert_eq!(device.read(page).unwrap(), content(page * 8 + 2));
        }
        device.check();
    }
}

#[test]
fn a_node_that_wants_memory_back_gets_none_while_there_is_no_other_place() {
    let mut device = device(small(4096), &[12]);
    for page in 0..1024 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    device.nodes[0].drain();
    device.keep();
    assert_eq!(device.copy_all(), Copied::NoPlace);
    for page in 0..1024 {
        assert_eq!(device.read(page).unwrap(), content(page * 8 + 2));
    }
}
