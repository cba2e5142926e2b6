//! The reliability model against closed forms of its parameters.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use spiflash_mtd::reliability::{
    BitErrors, Layout, Marginal, PagePlace, PageState, Reliability, ReliabilityParams, ThermalHistory,
    acceleration,
};
use std::sync::LazyLock;

const HOUR_NS: u64 = 3_600_000_000_000;
const LAYOUT: Layout = Layout { blocks: 64, pages: 1024, page_bytes: 256 };
/// Bits of a page.
const N: f64 = 2048.0;
/// Parsed once: that is most of the work in a test without optimisation.
static BUILT_IN: LazyLock<Vec<ReliabilityParams>> =
    LazyLock::new(|| ReliabilityParams::names().map(|name| ReliabilityParams::load(name).unwrap()).collect());
const PLACE: PagePlace = PagePlace { block: 3, page: 50 };

fn chip(params: &ReliabilityParams, seed: u64) -> Reliability {
    Reliability::new(params, seed, LAYOUT).unwrap()
}

fn rate(rber: f64) -> ReliabilityParams {
    ReliabilityParams { base_rber: rber, ..ReliabilityParams::default() }
}

fn state(epoch: u64) -> PageState {
    PageState { cycles: 100, programmed_at_ns: 0, now_ns: 0, block_reads: 0, epoch, marginal: Marginal::None }
}

fn read(chip: &Reliability, state: &PageState, value: u8, read_index: u64) -> (Vec<u8>, BitErrors) {
    let mut data = vec![value; 256];
    let errors = chip.read(PLACE, state, 0, &mut data, read_index);
    (data, errors)
}

fn ones(data: &[u8]) -> u32 {
    data.iter().map(|byte| byte.count_ones()).sum()
}

/// Whether a mean of `count` draws of this variance may be `found`: five standard errors.
fn assert_mean(found: f64, wanted: f64, variance: f64, count: f64, what: &str) {
    let error = (variance / count).sqrt();
    assert!((found - wanted).abs() <= 5.0 * error, "{what}: {found}, not {wanted} +- {error}");
}

#[test]
fn the_counts_of_pages_are_over_dispersed_as_the_parameter_says() {
    for (p, dispersion) in [(0.002f64, 0.0), (0.002, 0.3), (0.002, 1.5), (0.1, 1.0)] {
        let chip = chip(&ReliabilityParams { dispersion, ..rate(p) }, 7);
        let pages = if p < 0.01 { 20_000 } else { 2000 };
        let counts: Vec<f64> =
            (0..pages).map(|epoch| f64::from(read(&chip, &state(epoch), 0, 0).1.total())).collect();
        let mean = counts.iter().sum::<f64>() / pages as f64;
        let variance = counts.iter().map(|k| (k - mean).powi(2)).sum::<f64>() / pages as f64;
        // With the page's luck gamma distributed, the chance that k given bits are all right is (1 + d k x)^(-1/d).
        let x = if dispersion == 0.0 {
            -(1.0 - p).ln()
        } else {
            ((1.0 - p).powf(-dispersion) - 1.0) / dispersion
        };
        let all_right = |k: f64| match dispersion {
            0.0 => (-k * x).exp(),
            d => (1.0 + d * k * x).powf(-1.0 / d),
        };
        let exact = N * p * (1.0 - p) + N * (N - 1.0) * (all_right(2.0) - (1.0 - p).powi(2));
        assert_mean(mean, N * p, exact, pages as f64, "mean");
        assert!(
            (variance / exact - 1.0).abs() < if p < 0.01 { 0.08 } else { 0.2 },
            "d = {dispersion}: variance {variance}, not {exact}"
        );
        // Which is the negative binomial's, for a small rate.
        let negative_binomial = N * p + dispersion * (N * p).powi(2);
        assert!(p > 0.01 || (exact / negative_binomial - 1.0).abs() < 0.02, "{exact} {negative_binomial}");
        let none = counts.iter().filter(|count| **count == 0.0).count() as f64 / pages as f64;
        let wanted = all_right(N);
        assert_mean(none, wanted, wanted * (1.0 - wanted), pages as f64, "pages without errors");
    }
}

#[test]
fn zeros_and_ones_err_at_their_own_rates() {
    let params = ReliabilityParams {
        base_rber: 1e-3,
        base_bias: 0.5,
        retention_rber: 1e-3,
        retention_bias: 1.0,
        retention_reference_hours: 100.0,
        disturb_rber: 2e-3,
        disturb_bias: -1.0,
        disturb_reference_reads: 1000.0,
        pe_reference_cycles: 100.0,
        dispersion: 0.2,
        ..ReliabilityParams::default()
    };
    let chip = chip(&params, 3);
    let old = |epoch| PageState { now_ns: 50 * HOUR_NS, block_reads: 1000, ..state(epoch) };
    // base (1 + b) + retention × 2 × half the time; base (1 - b) + disturb × 2.
    let (up, down) = (1.5e-3 + 1e-3, 0.5e-3 + 4e-3);
    let pages = 6000;
    let mean = |value: u8| {
        let sum = (0..pages)
            .map(|epoch| read(&chip, &old(epoch), value, 0).1)
            .fold((0, 0), |sum, errors| (sum.0 + errors.zero_to_one, sum.1 + errors.one_to_zero));
        (f64::from(sum.0) / pages as f64, f64::from(sum.1) / pages as f64)
    };
    let check = |found: f64, bits: f64, rate: f64, what: &str| {
        let mu = bits * rate;
        assert_mean(found, mu, mu + 0.2 * mu * mu, pages as f64, what);
    };
    let (zeros, none) = mean(0x00);
    check(zeros, N, up, "zeros");
    assert_eq!(none, 0.0);
    let (none, some) = mean(0xff);
    check(some, N, down, "ones");
    assert_eq!(none, 0.0);
    let (zeros, some) = mean(0x81);
    check(zeros, N * 0.75, up, "zeros of 0x81");
    check(some, N * 0.25, down, "ones of 0x81");
}

#[test]
fn a_bit_errs_more_often_the_more_its_neighbours_differ() {
    let chip = chip(&ReliabilityParams { interference: 0.4, ..rate(2e-3) }, 4);
    // The mean over its bits of the share of neighbours that differ: none, all, and 0x0f: bits 3 and 4 half each.
    for (value, differing) in [(0x00u8, 0.0), (0xff, 0.0), (0x55, 1.0), (0x0f, 0.125), (0x01, 1.5 / 8.0)] {
        let pages = 8000;
        let sum: u32 = (0..pages).map(|epoch| read(&chip, &state(epoch), value, 0).1.total()).sum();
        let mu = N * 2e-3 * (1.0 + 0.4 * (2.0 * differing - 1.0));
        assert_mean(f64::from(sum) / pages as f64, mu, mu, pages as f64, &format!("{value:#x}"));
    }
}

#[test]
fn blocks_layers_and_pages_have_lognormal_factors_of_mean_one() {
    let layout = Layout { blocks: 4096, pages: 4096 * 16, page_bytes: 256 };
    let moments = |params: &ReliabilityParams, pages: &mut dyn Iterator<Item = u32>| {
        let chip = Reliability::new(params, 11, layout).unwrap();
        let all: Vec<f64> =
            pages.map(|page| chip.place_factor(PagePlace { block: page / 16, page }).ln()).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        (mean, (all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt())
    };
    let none = ReliabilityParams::default();
    for (sigma, params, step) in [
        (0.4, ReliabilityParams { block_sigma: 0.4, ..none.clone() }, 16),
        (0.3, ReliabilityParams { page_sigma: 0.3, ..none.clone() }, 16),
        (0.5, ReliabilityParams { block_sigma: 0.4, page_sigma: 0.3, ..none.clone() }, 16),
    ] {
        let (mean, deviation) = moments(&params, &mut (0..4096 * 16).step_by(step));
        assert!((mean + sigma * sigma / 2.0).abs() < 5.0 * sigma / 64.0, "{mean}");
        assert!((deviation / sigma - 1.0).abs() < 0.06, "{deviation}, not {sigma}");
    }
    // Pages of a block share the block's; a layer is the same in each block.
    let params = ReliabilityParams { block_sigma: 0.4, layers: 8, layer_sigma: 0.3, ..none };
    let chip = Reliability::new(&params, 11, layout).unwrap();
    let factor = |page: u32| chip.place_factor(PagePlace { block: page / 16, page });
    assert_eq!(
        (chip.layer(0), chip.layer(1), chip.layer(2), chip.layer(15), chip.layer(16)),
        (0, 0, 1, 7, 0)
    );
    assert_eq!(factor(0), factor(1));
    assert!(factor(0) != factor(2) && factor(0) != factor(16));
    assert!((factor(0) / factor(2) / (factor(16) / factor(18)) - 1.0).abs() < 1e-6);
}

fn ageing() -> ReliabilityParams {
    ReliabilityParams {
        base_rber: 1e-3,
        wear_rber: 2e-3,
        wear_bias: 0.3,
        pe_exponent: 1.5,
        retention_rber: 5e-3,
        retention_bias: 0.8,
        retention_exponent: 0.5,
        retention_pe_exponent: 1.0,
        disturb_rber: 3e-3,
        disturb_bias: -0.8,
        pe_reference_cycles: 1e5,
        retention_reference_hours: 1000.0,
        disturb_reference_reads: 1e6,
        interference: 0.2,
        block_sigma: 0.3,
        page_sigma: 0.2,
        dispersion: 0.5,
        ..ReliabilityParams::default()
    }
}

proptest! {
    #[test]
    fn worse_conditions_leave_wrong_bits_wrong(
        seed in 0u64..50, value: u8, page in 0u32..1024,
        cycles in (0u32..200_000, 0u32..200_000), hours in (0u64..5000, 0u64..5000), reads in (0u64..5_000_000, 0u64..5_000_000),
    ) {
        let chip = chip(&ageing(), seed);
        let place = PagePlace { block: page / 16, page };
        let wrong = |cycles, hours, block_reads| {
            let mut data = vec![value; 256];
            let state = PageState { cycles, now_ns: hours * HOUR_NS, block_reads, ..state(9) };
            let errors = chip.read(place, &state, 0, &mut data, 0);
            let wrong: Vec<u8> = data.iter().map(|byte| byte ^ value).collect();
            assert_eq!(ones(&wrong), errors.total());
            wrong
        };
        let (less, more) = (|two: (u64, u64)| two.0.min(two.1), |two: (u64, u64)| two.0.max(two.1));
        let better = wrong(cycles.0.min(cycles.1), less(hours), less(reads));
        let worse = wrong(cycles.0.max(cycles.1), more(hours), more(reads));
        prop_assert!(better.iter().zip(&worse).all(|(better, worse)| better & !worse == 0));
    }

    #[test]
    fn a_part_of_a_page_reads_as_it_does_in_the_whole(
        seed in 0u64..50, data in proptest::collection::vec(any::<u8>(), 256), from in 0usize..256, length in 0usize..256,
        noise in 0.0f64..0.5, marginal in 0..3,
    ) {
        let params = ReliabilityParams { read_noise: noise, marginal_band: 0.1, ..ageing() };
        let chip = chip(&params, seed);
        let marginal = match marginal {
            0 => Marginal::None,
            1 => Marginal::Program { fraction: 0.4, start: 30, end: 200, draw: 5 },
            _ => Marginal::Erase { fraction: 0.5, draw: 5 },
        };
        let state = PageState { cycles: 90_000, now_ns: 2000 * HOUR_NS, block_reads: 1_000_000, marginal, ..state(1) };
        let mut whole = data.clone();
        chip.read(PLACE, &state, 0, &mut whole, 77);
        let to = (from + length).min(256);
        let mut part = data[from..to].to_vec();
        let errors = chip.read(PLACE, &state, from, &mut part, 77);
        prop_assert_eq!(&part, &whole[from..to]);
        let wrong: Vec<u8> = part.iter().zip(&data[from..to]).map(|(read, held)| read ^ held).collect();
        prop_assert_eq!(ones(&wrong), errors.total());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_argument_makes_it_panic(
        block: u32, page: u32, cycles in prop_oneof![9 => 0u32..500_000, 1 => any::<u32>()], times: (u64, u64), reads: u64, epoch: u64,
        offset in prop_oneof![0usize..100_000, any::<usize>()],
        length in 0usize..600, fraction: f32, range: (u32, u32), draw: u64, typical: u64, max: u64, erase: bool,
    ) {
        for params in BUILT_IN.iter() {
            let mut chip = chip(params, draw);
            let place = PagePlace { block, page };
            let marginal = match erase {
                false => Marginal::Program { fraction, start: range.0, end: range.1, draw },
                true => Marginal::Erase { fraction, draw },
            };
            let state = PageState {
                cycles, programmed_at_ns: times.0, now_ns: times.1, block_reads: reads, epoch, marginal,
            };
            let mut data = vec![0x5a; length];
            chip.read(place, &state, offset, &mut data, draw);
            chip.interrupted_program(place, &data, &[0; 300], f64::from(fraction), draw);
            chip.interrupted_erase(place, &mut data, f64::from(fraction), draw);
            chip.write_errors(place, offset, &[1; 30], &mut data, draw);
            chip.apply_row_wear(page, reads, offset, &mut data);
            prop_assert!(chip.erase_time_ns(block, cycles, typical, max, erase, draw) > 0);
            prop_assert!(chip.program_time_ns(place, cycles, typical, max, draw) > 0);
            if let Some(stuck) = chip.erase_fails(block, cycles).or(chip.program_fails(place, cycles)) {
                chip.apply_stuck(&stuck, place, offset, &mut data);
            }
            chip.set_temperature_c(times.0, 20.0).unwrap();
        }
    }
}

#[test]
fn a_read_is_repeated_by_the_seed_and_the_epoch_and_differs_by_either() {
    let old = |epoch| PageState { cycles: 90_000, now_ns: 2000 * HOUR_NS, ..state(epoch) };
    let data = |seed, epoch, read_index| read(&chip(&ageing(), seed), &old(epoch), 0x3c, read_index).0;
    assert!(ones(&data(1, 1, 0)) != 1024);
    assert_eq!(data(1, 1, 0), data(1, 1, 1), "without read noise reads are alike");
    assert_eq!(data(1, 1, 0), data(1, 1, 0));
    assert_ne!(data(1, 1, 0), data(2, 1, 0));
    assert_ne!(data(1, 1, 0), data(1, 2, 0));
}

#[test]
fn cells_at_the_edge_flicker_between_reads_and_the_rate_stays() {
    let p = 0.02;
    let quiet = chip(&rate(p), 5);
    let noisy = chip(&ReliabilityParams { read_noise: 0.2, ..rate(p) }, 5);
    let (mut sum, mut flickering) = (0, 0);
    let (pages, reads) = (300, 20);
    for epoch in 0..pages {
        let (always, _) = read(&quiet, &state(epoch), 0, 0);
        let (mut any, mut all) = (vec![0u8; 256], vec![0xffu8; 256]);
        for index in 0..reads {
            let (data, errors) = read(&noisy, &state(epoch), 0, index);
            assert_eq!(data, read(&noisy, &state(epoch), 0, index).0, "the same read reads the same");
            sum += errors.total();
            any.iter_mut().zip(&data).for_each(|(any, byte)| *any |= byte);
            all.iter_mut().zip(&data).for_each(|(all, byte)| *all &= byte);
        }
        // What is wrong in every read is wrong without noise, and the other way round: a cell would have to lose 20 coins.
        assert!(all.iter().zip(&always).all(|(all, always)| all & !always == 0));
        assert!(always.iter().zip(&any).all(|(always, any)| always & !any == 0));
        flickering += any.iter().zip(&all).map(|(any, all)| (any & !all).count_ones()).sum::<u32>();
    }
    let mean = f64::from(sum) / (pages * reads) as f64;
    // Reads of a page are nearly one draw.
    assert_mean(mean, N * p, N * p, pages as f64, "rate with noise");
    // Cells whose level is within 0.2 of the rate: 0.4 of it; all but few are seen to flicker in 20 reads.
    let share = f64::from(flickering) / pages as f64 / (N * p);
    assert!((0.3..0.42).contains(&share), "{share}");
}

#[test]
fn heat_ages_data_by_arrhenius_and_cooling_takes_nothing_back() {
    let params = ReliabilityParams { activation_energy_ev: 1.1, dispersion: 0.0, ..ageing() };
    let old = |hours: u64| PageState { cycles: 90_000, now_ns: hours * HOUR_NS, ..state(1) };
    let mut hot = chip(&params, 1);
    hot.set_temperature_c(0, 85.0).unwrap();
    let factor = acceleration(&params, 85.0);
    assert!(factor > 100.0);
    let hours = hot.conditions(&old(10)).retention_hours;
    assert!((hours / (10.0 * factor) - 1.0).abs() < 1e-9, "{hours}");
    let before = read(&hot, &old(10), 0, 0).0;
    assert!(ones(&before) > ones(&read(&chip(&params, 1), &old(10), 0, 0).0));
    hot.set_temperature_c(10 * HOUR_NS, -20.0).unwrap();
    assert_eq!(read(&hot, &old(10), 0, 0).0, before);
    let after = read(&hot, &old(11), 0, 0).0;
    assert!(before.iter().zip(&after).all(|(before, after)| before & !after == 0));
    assert_eq!(hot.temperature_c(), -20.0);
    for wrong in [-56.0, 201.0, f64::NAN] {
        assert!(
            hot.set_temperature_c(0, wrong).unwrap_err().to_string().contains("temperature_c is"),
            "{wrong}"
        );
    }
    // Saved and put back, it goes on.
    let mut again = chip(&params, 1);
    let saved: ThermalHistory = hot.thermal_history().clone();
    again.restore_thermal_history(saved).unwrap();
    assert_eq!(read(&again, &old(11), 0, 0).0, after);
    let accelerated = chip(&ReliabilityParams { time_acceleration: 60.0, ..params }, 1);
    assert_eq!(accelerated.conditions(&old(2)).retention_hours, 120.0);
}

#[test]
fn a_perfect_chip_is_one_and_the_others_are_not() {
    for name in ReliabilityParams::names() {
        let params = ReliabilityParams::load(name).unwrap();
        assert_eq!(chip(&params, 1).is_perfect(), name == "none");
    }
    let chip = chip(&ReliabilityParams::default(), 1);
    let old = PageState { cycles: u32::MAX, now_ns: u64::MAX, block_reads: u64::MAX, ..state(1) };
    assert_eq!(read(&chip, &old, 0x5a, 0), (vec![0x5a; 256], BitErrors::default()));
    assert_eq!(chip.erase_time_ns(0, u32::MAX, 45, 400, true, 3), 45);
    assert_eq!(chip.program_time_ns(PLACE, u32::MAX, 45, 400, 3), 45);
    assert!(chip.erase_fails(0, u32::MAX).is_none() && chip.program_fails(PLACE, u32::MAX).is_none());
}

#[test]
fn a_shape_that_cannot_be_is_refused() {
    let error = |blocks, pages, page_bytes| {
        let layout = Layout { blocks, pages, page_bytes };
        Reliability::new(&ReliabilityParams::default(), 1, layout).unwrap_err().to_string()
    };
    assert_eq!(error(0, 16, 256), "the chip's layout: blocks is 0: it must be 1 to 16777216");
    assert!(error(3, 16, 256).contains("pages is 16: it must be a multiple of the 3 blocks"));
    assert!(error(4, 0, 256).contains("pages is 0"));
    assert!(error(4, 16, 0).contains("page_bytes is 0"));
    let wrong = ReliabilityParams { base_rber: f64::NAN, ..ReliabilityParams::default() };
    let error = Reliability::new(&wrong, 1, LAYOUT).unwrap_err().to_string();
    assert!(error.starts_with("reliability parameters: base_rber is NaN"), "{error}");
}
