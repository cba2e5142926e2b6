//! The file system against a plain reference, over random operations with remounts in between.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use proptest::prelude::*;
use zonefs_fuse::testing::{MemGeometry, Rng};

fn run(shape: MemGeometry, seed: u64, steps: usize) {
    let device = formatted(shape);
    let mut fs = mount(&device).unwrap();
    let mut reference = Reference::default();
    let mut rng = Rng::new(seed);
    for number in 0..steps {
        let op = random_op(&mut rng, true);
        match step(&fs, &mut reference, number, &op) {
            Outcome::Done => {}
            Outcome::Failed(error) => panic!("step {number}, {op:?}: {error}"),
        }
        if matches!(op, Op::Remount) {
            assert_same(&fs, &reference);
            drop(fs);
            fs = mount(&device).unwrap();
            assert_eq!(fs.recovery().torn_bytes, 0);
            assert_same(&fs, &reference);
        }
    }
    assert_same(&fs, &reference);
    let free = fs.statfs().free_blocks;
    fs.sync().unwrap();
    drop(fs);
    let fs = mount(&device).unwrap();
    assert_same(&fs, &reference);
    assert!(fs.statfs().free_blocks >= free.saturating_sub(64), "a remount loses no space but padded tails");
    assert_eq!(device.violations(), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn it_agrees_with_the_reference(seed: u64, steps in 1..600_usize) {
        run(SMALL, seed, steps);
    }

    #[test]
    fn it_agrees_with_the_reference_when_space_is_short(seed: u64, steps in 200..800_usize) {
        run(MemGeometry { sequential: 4, max_open_zones: 2, max_active_zones: 2, ..SMALL }, seed, steps);
    }

    #[test]
    fn it_agrees_with_the_reference_on_other_blocks(seed: u64, steps in 1..300_usize) {
        let shape = MemGeometry { block_size_bytes: 4096, max_open_zones: 0, max_active_zones: 0, ..SMALL };
        run(shape, seed, steps);
    }
}
