//! Wear, times, interrupted operations and memories without erase, against closed forms of their parameters.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use spiflash_mtd::reliability::{Layout, Marginal, PagePlace, PageState, Reliability, ReliabilityParams};

const LAYOUT: Layout = Layout { blocks: 64, pages: 1024, page_bytes: 256 };
/// Bits of a page.
const N: f64 = 2048.0;
const PLACE: PagePlace = PagePlace { block: 3, page: 50 };

fn chip(params: &ReliabilityParams, seed: u64) -> Reliability {
    Reliability::new(params, seed, LAYOUT).unwrap()
}

fn state(epoch: u64) -> PageState {
    PageState { cycles: 100, programmed_at_ns: 0, now_ns: 0, block_reads: 0, epoch, marginal: Marginal::None }
}

fn ones(data: &[u8]) -> u32 {
    data.iter().map(|byte| byte.count_ones()).sum()
}

/// Whether a mean of `count` draws of this variance may be `found`: five standard errors.
fn assert_mean(found: f64, wanted: f64, variance: f64, count: f64, what: &str) {
    let error = (variance / count).sqrt();
    assert!((found - wanted).abs() <= 5.0 * error, "{what}: {found}, not {wanted} +- {error}");
}

fn quantile(times: &mut [u64], q: f64) -> f64 {
    times.sort_unstable();
    times[((times.len() as f64 * q) as usize).min(times.len() - 1)] as f64
}

#[test]
fn times_have_the_median_and_the_maximum_of_the_datasheet() {
    let (typical, max) = (45_000_000, 400_000_000);
    for share in [0.0, 0.5, 1.0] {
        let params =
            ReliabilityParams { time_spread: 1.0, time_place_share: share, ..ReliabilityParams::default() };
        let chip = chip(&params, 9);
        let mut erases: Vec<u64> =
            (0..40_000).map(|n| chip.erase_time_ns(n, 0, typical, max, false, u64::from(n))).collect();
        assert!((quantile(&mut erases, 0.5) / typical as f64 - 1.0).abs() < 0.04);
        // 0.1 % of lognormal times are beyond, and cut off; the 99 % quantile is typical × (max / typical)^(2.326 / 3.09).
        let cut = erases.iter().filter(|time| **time == max).count();
        assert!((15..75).contains(&cut), "{cut} of 40 expected");
        assert_eq!(erases.last(), Some(&max));
        let q99 = typical as f64 * (max as f64 / typical as f64).powf(2.326_35 / 3.090_23);
        assert!((quantile(&mut erases, 0.99) / q99 - 1.0).abs() < 0.06);
        let mut programs: Vec<u64> = (0..20_000)
            .map(|page| chip.program_time_ns(PagePlace { block: 0, page }, 50_000, 400_000, 3_000_000, 1))
            .collect();
        assert!((quantile(&mut programs, 0.5) / 400_000.0 - 1.0).abs() < 0.04);
        assert!(programs.last().unwrap() <= &3_000_000);
        // How much of it stays with the block: all, or none.
        let one: Vec<u64> = (0..50).map(|draw| chip.erase_time_ns(1, 0, typical, max, false, draw)).collect();
        assert_eq!(one.iter().all(|time| *time == one[0]), share == 1.0);
    }
}

#[test]
fn erases_slow_with_wear_as_the_table_says_and_programs_do_not() {
    let params = ReliabilityParams {
        erase_wear: vec![[25.0, 1.0], [1000.0, 1.667], [2000.0, 2.0], [20_000.0, 8.0]],
        blank_erase_factor: 0.1,
        endurance_cycles: 20_000.0,
        ..ReliabilityParams::default()
    };
    let fresh = chip(&params, 1);
    let erase = |cycles: u32, blank| fresh.erase_time_ns(0, cycles, 15_000_000, 1_003_000_000, blank, 0);
    for (cycles, ms) in [(0, 15.0), (25, 15.0), (1000, 25.0), (2000, 30.0), (20_000, 120.0)] {
        assert!((erase(cycles, false) as f64 / 1e6 - ms).abs() < 0.01, "{cycles}: {}", erase(cycles, false));
        assert_eq!(erase(cycles, true), (erase(cycles, false) as f64 * 0.1).round() as u64);
    }
    assert!(erase(4000, false) > 30_000_000 && erase(4000, false) < 120_000_000);
    assert_eq!(fresh.program_time_ns(PLACE, 20_000, 400_000, 3_000_000, 0), 400_000);
    // For one draw it never falls; within the endurance it keeps the maximum, beyond it need not.
    let spread = chip(&ReliabilityParams { time_spread: 1.0, ..params }, 1);
    for draw in 0..200 {
        let times: Vec<u64> = (0..60)
            .map(|step| spread.erase_time_ns(7, step * 1000, 15_000_000, 100_000_000, false, draw))
            .collect();
        assert!(times.is_sorted());
        assert!(times[..20].iter().all(|time| *time <= 100_000_000));
        assert!(times[59] > 100_000_000);
    }
}

#[test]
fn blocks_endure_a_lognormal_number_of_cycles_and_fail_at_first_now_and_then() {
    let params = ReliabilityParams {
        endurance_cycles: 1000.0,
        endurance_sigma: 0.25,
        endurance_intermittence: 0.5,
        program_endurance_factor: 1.2,
        stuck_share: 1e-3,
        ..ReliabilityParams::default()
    };
    let chip = chip(&params, 21);
    let logs: Vec<f64> = (0..4000).map(|block| (chip.endurance(block).unwrap() / 1000.0).ln()).collect();
    let mean = logs.iter().sum::<f64>() / 4000.0;
    let deviation = (logs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 4000.0).sqrt();
    assert!(mean.abs() < 5.0 * 0.25 / 63.0 && (deviation / 0.25 - 1.0).abs() < 0.06, "{mean} {deviation}");
    let mut stuck_cells = 0;
    for block in 0..60 {
        let endurance = chip.endurance(block).unwrap();
        let at = |times: f64| (endurance * times) as u32;
        assert!((0..at(1.0)).all(|cycles| chip.erase_fails(block, cycles).is_none()));
        let early =
            (at(1.0) + 1..at(1.25)).filter(|cycles| chip.erase_fails(block, *cycles).is_some()).count();
        let share = early as f64 / (at(1.25) - at(1.0)) as f64;
        assert!((0.1..0.4).contains(&share), "{share}: 0.25 expected");
        assert!((at(1.5) + 1..at(2.0)).all(|cycles| chip.erase_fails(block, cycles).is_some()));
        // Stuck cells of an erase are 0s, of a program 1s; more cycles add to them.
        let pages = |stuck, value: u8| {
            let mut pages = vec![value; 4096];
            for (page, data) in (block * 16..).zip(pages.chunks_mut(256)) {
                let changed = chip.apply_stuck(&stuck, PagePlace { block, page }, 0, data);
                assert_eq!(changed, data.iter().map(|byte| (byte ^ value).count_ones()).sum::<u32>());
            }
            pages
        };
        let at_two = pages(chip.erase_fails(block, at(2.0)).unwrap(), 0xff);
        let at_four = pages(chip.erase_fails(block, at(4.0)).unwrap(), 0xff);
        assert!(at_two.iter().zip(&at_four).all(|(two, four)| four & !two == 0));
        assert!(ones(&at_two) < 4096 * 8, "a block that failed has a stuck cell");
        stuck_cells += 4096 * 8 - ones(&at_two);
        let failing: Vec<u32> = (block * 16..block * 16 + 16)
            .filter(|page| chip.program_fails(PagePlace { block, page: *page }, at(3.0)).is_some())
            .collect();
        assert!(!failing.is_empty());
        for page in failing {
            let stuck = chip.program_fails(PagePlace { block, page }, at(3.0)).unwrap();
            assert!(pages(stuck, 0x00)[(page % 16) as usize * 256..][..256].iter().any(|byte| *byte != 0));
        }
        assert!(chip.program_fails(PagePlace { block, page: block * 16 }, at(1.19)).is_none());
    }
    // 60 blocks of 32,768 cells, of which 1e-3 × 2 are stuck.
    let wanted = 60.0 * 32_768.0 * 2e-3;
    assert_mean(f64::from(stuck_cells), wanted, wanted, 1.0, "stuck cells");
}

fn cut_params() -> ReliabilityParams {
    ReliabilityParams { marginal_band: 0.05, erase_weak_share: 0.2, ..ReliabilityParams::default() }
}

proptest! {
    #[test]
    fn an_interrupted_program_clears_bits_of_its_request_and_no_others(
        seed: u64, draw: u64, fraction in 0.0f64..=1.0, later in 0.0f64..=1.0,
        old in proptest::collection::vec(any::<u8>(), 256), new in proptest::collection::vec(any::<u8>(), 256),
    ) {
        let chip = chip(&cut_params(), seed);
        let (page, marginal) = chip.interrupted_program(PLACE, &old, &new, fraction, draw);
        for at in 0..256 {
            prop_assert_eq!(page[at] & !old[at], 0, "a bit was set");
            prop_assert_eq!(page[at] & new[at], old[at] & new[at], "a bit was cleared that was not to be");
        }
        // Further on, more is done.
        let (more, _) = chip.interrupted_program(PLACE, &old, &new, later.max(fraction), draw);
        prop_assert!(page.iter().zip(&more).all(|(page, more)| more & !page == 0));
        // Reading it, only cells of the request differ.
        for index in 0..4 {
            let mut read = page.clone();
            chip.read(PLACE, &PageState { marginal, ..state(1) }, 0, &mut read, index);
            for at in 0..256 {
                prop_assert_eq!(read[at] & page[at], page[at], "a 1 reads 0");
                prop_assert!(read[at] == page[at] || marginal != Marginal::None);
            }
        }
        let done = chip.interrupted_program(PLACE, &old, &new, 1.0, draw);
        prop_assert_eq!(done, (old.iter().zip(&new).map(|(old, new)| old & new).collect(), Marginal::None));
        prop_assert_eq!(chip.interrupted_program(PLACE, &old, &new, 0.0, draw), (old, Marginal::None));
    }
}

#[test]
fn an_interrupted_program_goes_as_far_as_its_fraction_and_leaves_a_band_that_flickers() {
    let chip = chip(&ReliabilityParams { program_sequential_share: 0.0, ..cut_params() }, 1);
    let (mut old, mut new) = (vec![0xff; 256], vec![0xff; 256]);
    new[64..192].fill(0);
    // What was 0 and is to be 0 is no request, and no cell of it flickers.
    old[..10].fill(0);
    new[..10].fill(0);
    let bits = 128.0 * 8.0;
    let (page, marginal) = chip.interrupted_program(PLACE, &old, &new, 0.4, 3);
    let Marginal::Program { start: 64, end: 192, .. } = marginal else { panic!("{marginal:?}") };
    // Cells up to the end of the band are held as done.
    let cleared = f64::from(2048 - 80 - ones(&page));
    assert_mean(cleared, 0.45 * bits, bits * 0.25, 1.0, "cleared");
    let mut sum = 0;
    let mut seen = vec![0u8; 256];
    for index in 0..40 {
        let mut read = page.clone();
        let state = PageState { marginal, ..state(1) };
        sum += chip.read(PLACE, &state, 0, &mut read, index).zero_to_one;
        seen.iter_mut().zip(read.iter().zip(&page)).for_each(|(seen, (read, page))| *seen |= read ^ page);
        assert_eq!((&read[..64], &read[192..]), (&old[..64], &old[192..]));
    }
    // A tenth of the cells is in the band; on average they read half and half.
    assert_mean(f64::from(ones(&seen)), 0.1 * bits, 0.1 * bits, 1.0, "flickering cells");
    assert_mean(f64::from(sum) / 40.0, 0.05 * bits, 0.1 * bits, 1.0, "read 1");
    // Byte by byte, what is done is a prefix.
    let params = ReliabilityParams { program_sequential_share: 1.0, marginal_band: 0.0, ..cut_params() };
    let (page, marginal) = self::chip(&params, 1).interrupted_program(PLACE, &old, &new, 0.5, 3);
    assert_eq!((&page[64..128], &page[128..192], marginal), (&[0; 64][..], &[0xff; 64][..], Marginal::None));
}

#[test]
fn an_interrupted_erase_has_three_half_states() {
    let chip = chip(&cut_params(), 2);
    let old: Vec<u8> = (0..=255).collect();
    let cut = |fraction: f64| {
        let mut page = old.clone();
        let marginal = chip.interrupted_erase(PLACE, &mut page, fraction, 8);
        (page, marginal)
    };
    assert_eq!(cut(0.0), (old.clone(), Marginal::None));
    assert_eq!(cut(1.0), (vec![0xff; 256], Marginal::None));
    assert_eq!(cut(f64::NAN).0, old);
    // Pre-program, the first quarter: bits fall, none rises; half of it clears half of the 1s.
    let (half, marginal) = cut(0.125);
    assert!(half.iter().zip(&old).all(|(half, old)| half & !old == 0));
    assert_mean(f64::from(ones(&half)), 512.0, 256.0, 1.0, "1s left");
    assert!(matches!(marginal, Marginal::Erase { .. }));
    assert_eq!(ones(&cut(0.2499).0), 0, "then all are 0");
    // The pulse, up to 0.85: bits rise from 0, wherever they were before.
    let (mixed, _) = cut(0.55);
    assert_mean(f64::from(ones(&mixed)), 1024.0, 512.0, 1.0, "1s so far");
    let (later, _) = cut(0.7);
    assert!(mixed.iter().zip(&later).all(|(mixed, later)| mixed & !later == 0));
    // Recovery: it looks blank, and reads noisy, less with time.
    let noise = |fraction: f64| {
        let (page, marginal) = cut(fraction);
        assert_eq!(page, vec![0xff; 256]);
        let state = PageState { marginal, ..state(1) };
        (0..50).map(|index| chip.read(PLACE, &state, 0, &mut page.clone(), index).one_to_zero).sum::<u32>()
    };
    let (early, late) = (noise(0.851), noise(0.98));
    // A fifth of the cells, half of the reads.
    assert_mean(f64::from(early) / 50.0, 0.1 * N, 0.1 * N, 1.0, "noisy reads");
    assert!(late < early / 4 && late > 0, "{early} {late}");
    // Reads of the first two states differ from each other, in the band only.
    for fraction in [0.125, 0.55] {
        let (page, marginal) = cut(fraction);
        let state = PageState { marginal, ..state(1) };
        let read = |index| {
            let mut data = page.clone();
            (chip.read(PLACE, &state, 0, &mut data, index).total(), data)
        };
        assert_ne!(read(1).1, read(2).1);
        let mean = (0..50).map(|index| f64::from(read(index).0)).sum::<f64>() / 50.0;
        // In a band of a tenth, a cell reads wrong a quarter of the time; in the pre-program, 0s from before do half.
        assert!((0.02 * N..0.05 * N).contains(&mean), "{fraction}: {mean}");
    }
    // The same on NAND has the one phase.
    let nand = self::chip(
        &ReliabilityParams { erase_preprogram_share: 0.0, erase_recovery_share: 0.0, ..cut_params() },
        2,
    );
    let mut page = vec![0; 256];
    nand.interrupted_erase(PLACE, &mut page, 0.5, 1);
    assert_mean(f64::from(ones(&page)), 1024.0, 512.0, 1.0, "1s of a NAND block");
}

#[test]
fn marginal_states_of_a_page_add_up() {
    let program = |start, end, draw| Marginal::Program { fraction: 0.5, start, end, draw };
    let erase = Marginal::Erase { fraction: 0.5, draw: 1 };
    assert_eq!(program(3, 9, 1).merged_with(program(5, 20, 2)), program(3, 20, 2));
    assert_eq!(erase.merged_with(program(5, 20, 2)), erase);
    assert_eq!(program(5, 20, 2).merged_with(erase), erase);
    assert_eq!(program(5, 20, 2).merged_with(Marginal::None), program(5, 20, 2));
    assert_eq!(Marginal::None.merged_with(program(5, 20, 2)), program(5, 20, 2));
}

#[test]
fn mram_write_errors_leave_bits_as_they_were_at_the_rate_of_each_cell() {
    for sigma in [0.0, 1.0] {
        let params = ReliabilityParams {
            write_error_rate: 1e-3,
            write_error_sigma: sigma,
            ..ReliabilityParams::default()
        };
        let chip = chip(&params, 6);
        let (mut errors, mut by_cell) = (0, vec![0u32; 1024 * 8]);
        let (pages, writes) = (4, 1500);
        for page in 0..pages {
            for draw in 0..writes {
                // Half of the bits change.
                let (old, wanted) = ([0x0f; 256], [0xff; 256]);
                let mut data = wanted;
                let failed = chip.write_errors(PagePlace { block: 0, page }, 0, &old, &mut data, draw);
                let left: u32 = data.iter().map(|byte| (!byte).count_ones()).sum();
                assert_eq!(failed, left);
                assert!(data.iter().all(|byte| byte & 0x0f == 0x0f), "a bit that was not to change did");
                errors += failed;
                for (at, byte) in data.iter().enumerate().filter(|(_, byte)| **byte != 0xff) {
                    (0..8).filter(|bit| byte >> bit & 1 == 0).for_each(|bit| {
                        by_cell[(page as usize * 256 + at) * 8 + bit] += 1;
                    });
                }
            }
        }
        let tries = (u64::from(pages) * writes) as f64 * 1024.0;
        // The variance of the mean is that of 4096 cells' own rates, and of luck.
        let of_cells = 1e-6 * (f64::exp(sigma * sigma) - 1.0);
        let error = (of_cells / 4096.0 + 1e-3 / tries).sqrt();
        assert!((f64::from(errors) / tries - 1e-3).abs() < 5.0 * error, "{errors}");
        // Over cells: mean + mean² (exp(sigma²) - 1).
        let mean = f64::from(errors) / 4096.0;
        let squares = by_cell.iter().map(|count| f64::from(*count).powi(2)).sum::<f64>() / 4096.0;
        let spread = (squares - mean * mean) / mean;
        let wanted = 1.0 + mean * (f64::exp(sigma * sigma) - 1.0);
        assert!((spread / wanted - 1.0).abs() < 0.4, "sigma {sigma}: {spread}, not {wanted}");
        assert!((spread < 1.15) == (sigma == 0.0));
    }
    let perfect = chip(&ReliabilityParams::default(), 6);
    assert_eq!(perfect.write_errors(PLACE, 0, &[0; 4], &mut [0xff; 4], 0), 0);
}

#[test]
fn a_block_that_fails_has_a_stuck_cell_even_if_hardly_any_cell_is_stuck() {
    let params = ReliabilityParams { endurance_cycles: 1000.0, ..ReliabilityParams::default() };
    let chip = chip(&params, 2);
    for block in 0..20 {
        let (erase, pages) = (chip.erase_fails(block, 1001).unwrap(), block * 16..block * 16 + 16);
        let stuck = |page| chip.apply_stuck(&erase, PagePlace { block, page }, 0, &mut [0xff; 256]);
        assert_eq!(pages.clone().map(stuck).sum::<u32>(), 1);
        let fails = |page: &u32| chip.program_fails(PagePlace { block, page: *page }, 1001).is_some();
        assert_eq!(pages.filter(fails).count(), 1);
    }
}

#[test]
fn an_fram_row_holds_everything_until_its_accesses_are_used_up() {
    let params = ReliabilityParams {
        access_endurance: 1e6,
        access_endurance_sigma: 0.2,
        stuck_share: 0.05,
        ..ReliabilityParams::default()
    };
    let chip = chip(&params, 8);
    let logs: Vec<f64> = (0..2000).map(|row| (chip.row_endurance(row).unwrap() / 1e6).ln()).collect();
    assert_mean(logs.iter().sum::<f64>() / 2000.0, 0.0, 0.04, 2000.0, "endurance of rows");
    let (mut to_one, mut to_zero) = (0, 0);
    for row in 0..50 {
        let endurance = chip.row_endurance(row).unwrap() as u64;
        let worn = |accesses, value: u8| {
            let mut data = [value; 8];
            let changed = chip.apply_row_wear(row, accesses, 0, &mut data);
            (changed, data)
        };
        assert_eq!(worn(endurance, 0), (0, [0; 8]));
        // A stuck cell is wrong for one of the two values.
        let stuck = worn(endurance + 2, 0).0 + worn(endurance + 2, 0xff).0;
        assert!(stuck >= 1);
        assert!(worn(endurance * 50, 0).0 + worn(endurance * 50, 0xff).0 > 40);
        to_one += worn(endurance * 50, 0).0;
        to_zero += worn(endurance * 50, 0xff).0;
        let (_, whole) = worn(endurance * 3, 0);
        let mut part = [0; 3];
        chip.apply_row_wear(row, endurance * 3, 4, &mut part);
        assert_eq!(part, whole[4..7]);
    }
    // Each cell at its own value.
    assert_mean(
        f64::from(to_one),
        f64::from(to_one + to_zero) / 2.0,
        f64::from(to_one + to_zero) / 4.0,
        1.0,
        "stuck at 1",
    );
}
