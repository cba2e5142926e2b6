//! Planted bugs: devices that are wrong in one way each, and the checks that must tell them from the right one.
//!
//! A check compares what a device shows with a closed form of the parameters it was asked for, and says what is wrong. The
//! right device passes every check; each mutant fails those named for it.
#![allow(clippy::unwrap_used, missing_docs)]

use ublk_zns::{
    Geometry, ZnsConfig, ZoneId,
    reliability::{ErrorParams, Pattern, ReadOutcome, Reliability, WearEvent},
};

const HOUR_NS: u64 = 3_600_000_000_000;
/// Sectors of a page, and blocks of a zone, of the devices here.
const PAGE: u64 = 32;
const BLOCKS: u64 = 5;
/// One page of 16 codewords.
const CODEWORD_BITS: f64 = 8192.0;

/// A device as an engine sees it, with what a bug can get wrong between the engine and the model.
struct Device {
    inner: Reliability,
    bug: Bug,
    erased_at_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bug {
    None,
    DispersionIgnored,
    LayersIgnored,
    PageTypesIgnored,
    BlocksAlike,
    SeedIgnored,
    RetentionFromErase,
    RetentionNeverReset,
    TimeNotAccelerated,
    WearIgnored,
    CyclesTwice,
    DisturbIgnored,
    DisturbSurvivesErase,
    CorrectsOneMore,
    CorrectsOneLess,
    RetryForgotten,
    RetryLatencyForgotten,
    RetryLatencyOfOneStep,
    ValuesSwapped,
    InterferenceIgnored,
    RandomizerIgnored,
    WrongBlock,
    EnduranceIgnored,
    OfflineAtOnce,
}

/// Each bug, and the check that must catch it.
const BUGS: [(Bug, &str); 23] = [
    (Bug::DispersionIgnored, "dispersion"),
    (Bug::LayersIgnored, "layers and page types"),
    (Bug::PageTypesIgnored, "layers and page types"),
    (Bug::BlocksAlike, "blocks"),
    (Bug::SeedIgnored, "seed"),
    (Bug::RetentionFromErase, "retention"),
    (Bug::RetentionNeverReset, "retention"),
    (Bug::TimeNotAccelerated, "acceleration"),
    (Bug::WearIgnored, "wear"),
    (Bug::CyclesTwice, "wear"),
    (Bug::DisturbIgnored, "disturb"),
    (Bug::DisturbSurvivesErase, "disturb"),
    (Bug::CorrectsOneMore, "correction"),
    (Bug::CorrectsOneLess, "correction"),
    (Bug::RetryForgotten, "retry"),
    (Bug::RetryLatencyForgotten, "retry"),
    (Bug::RetryLatencyOfOneStep, "retry"),
    (Bug::ValuesSwapped, "values"),
    (Bug::InterferenceIgnored, "values"),
    (Bug::RandomizerIgnored, "randomizer"),
    (Bug::WrongBlock, "blocks"),
    (Bug::EnduranceIgnored, "end of life"),
    (Bug::OfflineAtOnce, "end of life"),
];

fn wrong_params(bug: Bug, right: &ErrorParams) -> ErrorParams {
    let bits = right.correctable_bits;
    let changes: Vec<String> = match bug {
        Bug::DispersionIgnored => vec!["dispersion=0".into()],
        Bug::LayersIgnored => vec!["layer_profile=[]".into()],
        Bug::PageTypesIgnored => vec!["page_type_factors=[1,1,1]".into()],
        Bug::BlocksAlike => vec!["block_sigma=0".into()],
        Bug::TimeNotAccelerated => vec!["time_acceleration=1".into()],
        Bug::WearIgnored => vec!["wear_rber=0".into()],
        Bug::DisturbIgnored => vec!["disturb_rber=0".into()],
        Bug::CorrectsOneMore => vec![format!("correctable_bits={}", bits + 1)],
        Bug::CorrectsOneLess => vec![format!("correctable_bits={}", bits - 1)],
        Bug::RetryForgotten => vec!["retry_factors=[]".into(), "retry_latency_ns=[]".into()],
        Bug::ValuesSwapped => vec![format!("zero_bias={}", -right.zero_bias)],
        Bug::InterferenceIgnored => vec!["interference=0".into()],
        Bug::RandomizerIgnored => vec!["randomizer=false".into()],
        Bug::EnduranceIgnored => vec!["endurance_cycles=0".into()],
        Bug::OfflineAtOnce => vec!["offline_factor=1".into()],
        _ => Vec::new(),
    };
    right.with(&changes).unwrap()
}

impl Device {
    fn new(bug: Bug, params: &ErrorParams, seed: u64) -> Device {
        let geometry = Geometry::new(&ZnsConfig { size_bytes: 8 << 26, ..Default::default() }).unwrap();
        let seed = if bug == Bug::SeedIgnored { 0 } else { seed };
        Device {
            inner: Reliability::new(&wrong_params(bug, params), seed, &geometry).unwrap(),
            bug,
            erased_at_ns: 0,
        }
    }

    fn programmed(&mut self, now_ns: u64, zone: u32) {
        let from = if self.bug == Bug::RetentionFromErase { self.erased_at_ns } else { now_ns };
        self.inner.programmed(from, ZoneId(zone));
    }

    fn reset(&mut self, now_ns: u64, zone: u32) -> WearEvent {
        let zone = ZoneId(zone);
        let before = *self.inner.counters(zone).unwrap();
        self.erased_at_ns = now_ns;
        if self.bug == Bug::CyclesTwice {
            self.inner.reset(zone);
        }
        let event = self.inner.reset(zone);
        let mut after = *self.inner.counters(zone).unwrap();
        match self.bug {
            Bug::RetentionNeverReset => after.programmed_at_ns = before.programmed_at_ns,
            Bug::DisturbSurvivesErase => after.page_reads = before.page_reads,
            _ => return event,
        }
        self.inner.restore(zone, after);
        event
    }

    fn read(&mut self, now_ns: u64, zone: u32, page: u64, pages: u64, pattern: Pattern) -> ReadOutcome {
        let offset = if self.bug == Bug::WrongBlock { page / BLOCKS * BLOCKS } else { page } * PAGE;
        let mut found = self.inner.read(now_ns, ZoneId(zone), offset, pages * PAGE, pattern);
        match self.bug {
            Bug::RetryLatencyForgotten => found.extra_latency_ns = 0,
            Bug::RetryLatencyOfOneStep => found.extra_latency_ns = found.extra_latency_ns.min(100),
            _ => {}
        }
        found
    }
}

/// Without variation of any kind: what a check then varies is all there is.
const PLAIN: &[&str] = &[
    "block_sigma=0",
    "layer_sigma=0",
    "layer_profile=[]",
    "page_type_factors=[1,1,1]",
    "dispersion=0",
    "base_rber=1e-3",
    "wear_rber=0",
    "retention_rber=0",
    "disturb_rber=0",
    "activation_energy_ev=0",
];

fn params(changes: &[&str]) -> ErrorParams {
    ErrorParams::built_in("tlc-3d").unwrap().with(&[PLAIN, changes].concat()).unwrap()
}

type Verdict = Result<(), String>;

fn near(what: &str, found: f64, want: f64, tolerance: f64) -> Verdict {
    match (found / want - 1.0).abs() <= tolerance {
        true => Ok(()),
        false => Err(format!("{what} is {found}, and should be {want}")),
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, want: T) -> Verdict {
    if found == want { Ok(()) } else { Err(format!("{what} is {found:?}, and should be {want:?}")) }
}

/// Errors of a whole-page read of each of some pages.
fn errors(device: &mut Device, now_ns: u64, pages: impl Iterator<Item = u64>, pattern: Pattern) -> Vec<f64> {
    pages.map(|page| device.read(now_ns, 1, page, 1, pattern).raw_bit_errors as f64).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The rate over many pages.
fn rate(device: &mut Device, now_ns: u64, pattern: Pattern) -> f64 {
    mean(&errors(device, now_ns, 0..2000, pattern)) / (16.0 * CODEWORD_BITS)
}

fn errors_scatter_as_the_dispersion_says(bug: Bug) -> Verdict {
    let mut device = Device::new(bug, &params(&["dispersion=0.2"]), 1);
    device.programmed(0, 1);
    let counts = errors(&mut device, 0, 0..3000, Pattern::RANDOM);
    let centre = mean(&counts);
    let variance = mean(&counts.iter().map(|count| (count - centre).powi(2)).collect::<Vec<_>>());
    let one = 1e-3 * CODEWORD_BITS;
    near("variance of a page's errors", variance, 16.0 * (one + 0.2 * one * one), 0.12)
}

fn layers_and_page_types_have_their_factors(bug: Bug) -> Verdict {
    let shape = ["layer_profile=[2,1]", "page_type_factors=[0.5,1.5,1]"];
    let mut device = Device::new(bug, &params(&shape), 1);
    device.programmed(0, 1);
    // Block 0's pages of the lowest 6 layers, of 12 pages each, and of 6 near the top: the zone ends before the top.
    let mut part = |from: u64, step: usize| {
        mean(&errors(
            &mut device,
            0,
            (from..from + 72).step_by(step).map(|page| page * BLOCKS),
            Pattern::RANDOM,
        ))
    };
    let ends = part(0, 1) / part(720, 1);
    // The profile's logarithm is linear over 71 steps: 2^(1 - l/71), summed over the six.
    let profile =
        |layers: std::ops::Range<i32>| layers.map(|l| 2f64.powf(1.0 - f64::from(l) / 71.0)).sum::<f64>();
    near("low over high layers", ends, profile(0..6) / profile(60..66), 0.06)?;
    near("middle over low pages", part(1, 3) / part(0, 3), 3.0, 0.15)
}

fn blocks_differ_and_a_page_is_in_its_own(bug: Bug) -> Verdict {
    let mut device = Device::new(bug, &params(&["block_sigma=0.5"]), 1);
    device.programmed(0, 1);
    let factors: Vec<f64> = (0..BLOCKS)
        .map(|block| {
            let pages = (0..400).map(|page| page * BLOCKS + block);
            mean(&errors(&mut device, 0, pages, Pattern::RANDOM)) / (16.0 * CODEWORD_BITS * 1e-3)
        })
        .collect();
    // The chip says which factor each block has; a device of the right seed and parameters shows them.
    let chip = ublk_zns::reliability::Chip::new(&params(&["block_sigma=0.5"]), 1).unwrap();
    for (block, factor) in (0..).zip(factors) {
        near("a block's factor", factor, chip.block_factor(1, block), 0.05)?;
    }
    Ok(())
}

fn another_seed_is_another_device(bug: Bug) -> Verdict {
    let counts = |seed| {
        let mut device = Device::new(bug, &params(&[]), seed);
        device.programmed(0, 1);
        errors(&mut device, 0, 0..50, Pattern::RANDOM)
    };
    same("the same seed's errors", counts(1) == counts(1), true)?;
    same("another seed's errors being alike", counts(1) == counts(2), false)
}

fn retention_counts_from_programming(bug: Bug) -> Verdict {
    let mut device = Device::new(
        bug,
        &params(&["retention_rber=1e-2", "retention_exponent=1", "retention_pe_exponent=0"]),
        1,
    );
    device.reset(0, 1);
    device.programmed(10_000 * HOUR_NS, 1);
    near("rate after half a year", rate(&mut device, 14_380 * HOUR_NS, Pattern::RANDOM), 1e-3 + 5e-3, 0.03)?;
    device.reset(20_000 * HOUR_NS, 1);
    device.programmed(30_000 * HOUR_NS, 1);
    near("rate after another program", rate(&mut device, 30_000 * HOUR_NS, Pattern::RANDOM), 1e-3, 0.03)
}

fn accelerated_hours_count_as_many(bug: Bug) -> Verdict {
    let fast =
        ["retention_rber=1e-2", "retention_exponent=1", "retention_pe_exponent=0", "time_acceleration=8760"];
    let mut device = Device::new(bug, &params(&fast), 1);
    device.programmed(0, 1);
    near("rate after an hour that is a year", rate(&mut device, HOUR_NS, Pattern::RANDOM), 1.1e-2, 0.03)
}

fn wear_grows_with_cycles_to_its_power(bug: Bug) -> Verdict {
    let mut device =
        Device::new(bug, &params(&["wear_rber=4e-3", "pe_exponent=2", "pe_reference_cycles=100"]), 1);
    for _ in 0..50 {
        device.reset(0, 1);
    }
    device.programmed(0, 1);
    near("rate at half the cycles", rate(&mut device, 0, Pattern::RANDOM), 1e-3 + 1e-3, 0.03)
}

fn reads_disturb_until_the_erase(bug: Bug) -> Verdict {
    let disturbed =
        ["disturb_rber=4e-3", "disturb_exponent=1", "disturb_pe_exponent=0", "disturb_reference_reads=10000"];
    let mut device = Device::new(bug, &params(&disturbed), 1);
    device.programmed(0, 1);
    for _ in 0..10_000 {
        device.read(0, 1, 3, 1, Pattern::RANDOM);
    }
    // Its block was read 10000 times, and once more for each page read here.
    let block: Vec<u64> = (0..200).map(|page| page * BLOCKS + 3).collect();
    let found =
        mean(&errors(&mut device, 0, block.iter().copied(), Pattern::RANDOM)) / (16.0 * CODEWORD_BITS);
    near("rate of a block read often", found, 1e-3 + 4e-3 * 1.01, 0.04)?;
    device.reset(0, 1);
    device.programmed(0, 1);
    let found =
        mean(&errors(&mut device, 0, block.iter().copied(), Pattern::RANDOM)) / (16.0 * CODEWORD_BITS);
    near("its rate after the erase", found, 1e-3 + 4e-3 * 0.01, 0.05)
}

/// P(a Poisson count is above `n`).
fn tail(mean: f64, n: u32) -> f64 {
    let (mut term, mut sum) = ((-mean).exp(), (-mean).exp());
    for k in 1..=n {
        term *= mean / f64::from(k);
        sum += term;
    }
    1.0 - sum
}

fn codewords_fail_beyond_what_the_code_corrects(bug: Bug) -> Verdict {
    // One codeword a page, ten errors of mean, and a code that corrects ten: one bit more or less shows.
    let single = [
        "codeword_bytes=16384",
        "base_rber=7.62939453125e-5",
        "correctable_bits=10",
        "retry_factors=[]",
        "retry_latency_ns=[]",
    ];
    let mut device = Device::new(bug, &params(&single), 1);
    device.programmed(0, 1);
    let failed =
        (0..4000).filter(|page| device.read(0, 1, *page, 1, Pattern::RANDOM).is_uncorrectable()).count();
    near("share of uncorrectable reads", failed as f64 / 4000.0, tail(10.0, 10), 0.08)
}

fn retry_corrects_what_it_can_at_its_price(bug: Bug) -> Verdict {
    let retried = [
        "codeword_bytes=16384",
        "base_rber=7.62939453125e-5",
        "correctable_bits=10",
        "retry_factors=[0.9,0.7]",
        "retry_latency_ns=[100,1000]",
    ];
    let mut device = Device::new(bug, &params(&retried), 1);
    device.programmed(0, 1);
    let reads: Vec<ReadOutcome> = (0..4000).map(|page| device.read(0, 1, page, 1, Pattern::RANDOM)).collect();
    let failed = reads.iter().filter(|read| read.is_uncorrectable()).count() as f64;
    near("share of uncorrectable reads", failed / 4000.0, tail(7.0, 10), 0.25)?;
    let latency = mean(&reads.iter().map(|read| read.extra_latency_ns as f64).collect::<Vec<_>>());
    near("mean latency of retries", latency, 100.0 * tail(10.0, 10) + 1000.0 * tail(9.0, 10), 0.06)
}

fn values_err_as_they_are_written(bug: Bug) -> Verdict {
    let raw = params(&["randomizer=false", "zero_bias=0.3", "interference=0.2"]);
    let mut device = Device::new(bug, &raw, 1);
    device.programmed(0, 1);
    let mut of = |data: u8| rate(&mut device, 0, Pattern::of(&[data; 8]));
    near("rate of zeros", of(0x00), 1e-3 * 1.3 * 0.8, 0.03)?;
    near("rate of ones", of(0xff), 1e-3 * 0.7 * 0.8, 0.03)?;
    near("rate of a checkerboard", of(0x55), 1e-3 * 1.2, 0.03)
}

fn the_randomizer_makes_values_alike(bug: Bug) -> Verdict {
    let mut device = Device::new(bug, &params(&["zero_bias=0.3", "interference=0.2"]), 1);
    device.programmed(0, 1);
    near("rate of zeros", rate(&mut device, 0, Pattern::of(&[0; 8])), 1e-3, 0.03)
}

fn a_zone_ends_after_its_cycles_read_only_first(bug: Bug) -> Verdict {
    let mut device =
        Device::new(bug, &params(&["endurance_cycles=20", "endurance_sigma=0", "offline_factor=1.5"]), 1);
    let events: Vec<WearEvent> = (0..40).map(|_| device.reset(0, 1)).collect();
    let at = |event| events.iter().position(|one| *one == event);
    same(
        "the resets to read-only and offline",
        (at(WearEvent::ReadOnly), at(WearEvent::Offline)),
        (Some(20), Some(30)),
    )
}

type Check = (&'static str, fn(Bug) -> Verdict);

const CHECKS: [Check; 13] = [
    ("dispersion", errors_scatter_as_the_dispersion_says),
    ("layers and page types", layers_and_page_types_have_their_factors),
    ("blocks", blocks_differ_and_a_page_is_in_its_own),
    ("seed", another_seed_is_another_device),
    ("retention", retention_counts_from_programming),
    ("acceleration", accelerated_hours_count_as_many),
    ("wear", wear_grows_with_cycles_to_its_power),
    ("disturb", reads_disturb_until_the_erase),
    ("correction", codewords_fail_beyond_what_the_code_corrects),
    ("retry", retry_corrects_what_it_can_at_its_price),
    ("values", values_err_as_they_are_written),
    ("randomizer", the_randomizer_makes_values_alike),
    ("end of life", a_zone_ends_after_its_cycles_read_only_first),
];

#[test]
fn the_right_device_passes_every_check() {
    for (name, check) in CHECKS {
        if let Err(why) = check(Bug::None) {
            panic!("{name}: {why}");
        }
    }
}

#[test]
fn every_planted_bug_is_caught_by_its_check() {
    for (bug, name) in BUGS {
        let (_, check) = CHECKS.iter().find(|(known, _)| *known == name).unwrap();
        match check(bug) {
            Ok(()) => panic!("{name} does not catch {bug:?}"),
            Err(why) => println!("{bug:?}: {why}"),
        }
    }
}
