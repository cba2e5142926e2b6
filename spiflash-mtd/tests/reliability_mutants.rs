//! Planted bugs: models that are wrong in one way each, and the checks that must tell them from the right one.
//!
//! A check compares what a model shows with a closed form of its parameters, and says what is wrong. The right model passes
//! every check; each planted bug fails the one that is named for it.
#![allow(clippy::unwrap_used, missing_docs)]

use spiflash_mtd::reliability::{
    BitErrors, Layout, Marginal, PagePlace, PageState, Reliability, ReliabilityParams, acceleration,
};

const HOUR_NS: u64 = 3_600_000_000_000;
const LAYOUT: Layout = Layout { blocks: 64, pages: 1024, page_bytes: 256 };
const PLACE: PagePlace = PagePlace { block: 3, page: 50 };
/// Bits of a page.
const N: f64 = 2048.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    LuckPerBit,
    LuckPerRead,
    LuckOfAllPages,
    DirectionsSwapped,
    DirectionsCountedTheWrongWay,
    NeighboursIgnored,
    BlocksAlike,
    TimeIgnored,
    AgeFromTheStart,
    TemperatureIgnored,
    CyclesIgnored,
    ReadsIgnored,
    ErrorsHeal,
    PartsCountFromZero,
    EraseAlwaysTypical,
    EraseNeverSlows,
    BlankAsSlow,
    NeverWearsOut,
    CutProgramDoesAll,
    CutProgramClearsNeighbours,
    CutProgramIsStable,
    CutEraseKeepsOnes,
    CutEraseNeverZeroes,
    CutRecoveryIsQuiet,
    WriteErrorsInvert,
}

/// Each bug, and the check that must catch it.
const BUGS: [(Bug, &str); 25] = [
    (Bug::LuckPerBit, "dispersion"),
    (Bug::LuckPerRead, "repeatable"),
    (Bug::LuckOfAllPages, "repeatable"),
    (Bug::DirectionsSwapped, "directions"),
    (Bug::DirectionsCountedTheWrongWay, "directions"),
    (Bug::NeighboursIgnored, "neighbours"),
    (Bug::BlocksAlike, "blocks"),
    (Bug::TimeIgnored, "ageing"),
    (Bug::AgeFromTheStart, "ageing"),
    (Bug::TemperatureIgnored, "temperature"),
    (Bug::CyclesIgnored, "ageing"),
    (Bug::ReadsIgnored, "ageing"),
    (Bug::ErrorsHeal, "monotone"),
    (Bug::PartsCountFromZero, "parts"),
    (Bug::EraseAlwaysTypical, "times"),
    (Bug::EraseNeverSlows, "times"),
    (Bug::BlankAsSlow, "times"),
    (Bug::NeverWearsOut, "endurance"),
    (Bug::CutProgramDoesAll, "cut program"),
    (Bug::CutProgramClearsNeighbours, "cut program"),
    (Bug::CutProgramIsStable, "cut program"),
    (Bug::CutEraseKeepsOnes, "cut erase"),
    (Bug::CutEraseNeverZeroes, "cut erase"),
    (Bug::CutRecoveryIsQuiet, "cut erase"),
    (Bug::WriteErrorsInvert, "write errors"),
];

/// The model with a bug between it and who asks.
struct Model {
    inner: Reliability,
    bug: Bug,
}

impl Model {
    fn new(bug: Bug, change: impl FnOnce(&mut ReliabilityParams)) -> Model {
        let mut params = ReliabilityParams::default();
        change(&mut params);
        match bug {
            Bug::LuckPerBit => params.dispersion = 0.0,
            Bug::NeighboursIgnored => params.interference = 0.0,
            Bug::BlocksAlike => params.block_sigma = 0.0,
            Bug::EraseAlwaysTypical => params.time_spread = 0.0,
            Bug::EraseNeverSlows => params.erase_wear.clear(),
            Bug::BlankAsSlow => params.blank_erase_factor = 1.0,
            Bug::NeverWearsOut => params.endurance_cycles = 0.0,
            Bug::CutEraseNeverZeroes => params.erase_preprogram_share = 0.0,
            Bug::CutRecoveryIsQuiet => params.erase_weak_share = 0.0,
            _ => {}
        }
        Model { inner: Reliability::new(&params, 5, LAYOUT).unwrap(), bug }
    }

    fn heat(&mut self, celsius: f64) {
        if self.bug != Bug::TemperatureIgnored {
            self.inner.set_temperature_c(0, celsius).unwrap();
        }
    }

    fn read(
        &self,
        place: PagePlace,
        state: &PageState,
        offset: usize,
        data: &mut [u8],
        index: u64,
    ) -> BitErrors {
        let (mut place, mut state, mut offset) = (place, *state, offset);
        match self.bug {
            Bug::LuckPerRead => state.epoch ^= index << 32,
            Bug::LuckOfAllPages => place.page = 0,
            Bug::TimeIgnored => state.now_ns = state.programmed_at_ns,
            Bug::AgeFromTheStart => state.programmed_at_ns = 0,
            Bug::CyclesIgnored => state.cycles = 0,
            Bug::ReadsIgnored => state.block_reads = 0,
            Bug::ErrorsHeal => state.epoch ^= (state.now_ns / HOUR_NS) << 32,
            Bug::PartsCountFromZero => offset = 0,
            Bug::CutProgramIsStable => state.marginal = Marginal::None,
            _ => {}
        }
        let invert = |data: &mut [u8]| data.iter_mut().for_each(|byte| *byte = !*byte);
        if self.bug == Bug::DirectionsSwapped {
            invert(data);
        }
        let found = self.inner.read(place, &state, offset, data, index);
        match self.bug {
            Bug::DirectionsSwapped => {
                invert(data);
                BitErrors { zero_to_one: found.one_to_zero, one_to_zero: found.zero_to_one }
            }
            Bug::DirectionsCountedTheWrongWay => {
                BitErrors { zero_to_one: found.one_to_zero, one_to_zero: found.zero_to_one }
            }
            _ => found,
        }
    }

    /// The errors of a page that holds one value, in several programs.
    fn counts(&self, place: PagePlace, state: PageState, value: u8, programs: u64) -> Vec<BitErrors> {
        (0..programs)
            .map(|epoch| self.read(place, &PageState { epoch, ..state }, 0, &mut [value; 256], 0))
            .collect()
    }

    fn mean(&self, state: PageState, value: u8) -> f64 {
        let counts = self.counts(PLACE, state, value, 2000);
        counts.iter().map(|errors| f64::from(errors.total())).sum::<f64>() / 2000.0
    }

    fn interrupted_program(&self, old: &[u8], new: &[u8], fraction: f64) -> (Vec<u8>, Marginal) {
        let fraction = if self.bug == Bug::CutProgramDoesAll { 1.0 } else { fraction };
        let (mut page, marginal) = self.inner.interrupted_program(PLACE, old, new, fraction, 1);
        if self.bug == Bug::CutProgramClearsNeighbours {
            page.iter_mut().zip(old).filter(|(page, old)| page != old).for_each(|(page, _)| *page &= 0xfe);
        }
        (page, marginal)
    }

    fn interrupted_erase(&self, page: &mut [u8], fraction: f64) -> Marginal {
        let old = page.to_vec();
        let marginal = self.inner.interrupted_erase(PLACE, page, fraction, 1);
        if self.bug == Bug::CutEraseKeepsOnes {
            page.iter_mut().zip(&old).for_each(|(page, old)| *page |= old);
        }
        marginal
    }

    fn write(&self, old: &[u8], data: &mut [u8], draw: u64) -> u32 {
        let wanted = data.to_vec();
        let failed = self.inner.write_errors(PLACE, 0, old, data, draw);
        if self.bug == Bug::WriteErrorsInvert {
            // It flips as many of the bits that were not to change, too.
            data.iter_mut()
                .zip(&wanted)
                .filter(|(data, wanted)| data != wanted)
                .for_each(|(data, _)| *data ^= 1);
        }
        failed
    }
}

fn fresh() -> PageState {
    PageState {
        cycles: 1,
        programmed_at_ns: 0,
        now_ns: 0,
        block_reads: 0,
        epoch: 0,
        marginal: Marginal::None,
    }
}

/// Six standard errors.
fn near(found: f64, wanted: f64, variance: f64, count: f64, what: &str) -> Result<(), String> {
    let error = (variance / count).sqrt();
    let fits = (found - wanted).abs() <= 6.0 * error;
    fits.then_some(()).ok_or_else(|| format!("{what}: {found}, not {wanted} +- {error}"))
}

fn holds(is_so: bool, what: &str) -> Result<(), String> {
    is_so.then_some(()).ok_or_else(|| what.to_owned())
}

type Check = fn(Bug) -> Result<(), String>;

const CHECKS: [(&str, Check); 14] = [
    ("dispersion", |bug| {
        let model = Model::new(bug, |p| (p.base_rber, p.dispersion) = (2e-3, 0.8));
        let counts: Vec<f64> =
            model.counts(PLACE, fresh(), 0, 8000).iter().map(|e| f64::from(e.total())).collect();
        let mean = counts.iter().sum::<f64>() / 8000.0;
        let variance = counts.iter().map(|k| (k - mean).powi(2)).sum::<f64>() / 8000.0;
        let wanted = mean + 0.8 * mean * mean;
        holds((variance / wanted - 1.0).abs() < 0.12, "variance")
    }),
    ("repeatable", |bug| {
        let model = Model::new(bug, |p| p.base_rber = 1e-2);
        let read = |place, index| {
            let mut data = [0u8; 256];
            model.read(place, &fresh(), 0, &mut data, index);
            data
        };
        holds(read(PLACE, 0) == read(PLACE, 1), "a second read differs")?;
        holds(read(PLACE, 0) != read(PagePlace { page: 51, ..PLACE }, 0), "two pages err alike")
    }),
    ("directions", |bug| {
        let model = Model::new(bug, |p| (p.base_rber, p.base_bias) = (2e-3, 0.6));
        let sum = |value, direction: fn(&BitErrors) -> u32| {
            let counts = model.counts(PLACE, fresh(), value, 2000);
            counts.iter().map(|errors| f64::from(direction(errors))).sum::<f64>() / 2000.0
        };
        let (up, down) = (N / 2.0 * 3.2e-3, N / 2.0 * 0.8e-3);
        near(sum(0x0f, |errors| errors.zero_to_one), up, up, 2000.0, "0 to 1")?;
        near(sum(0x0f, |errors| errors.one_to_zero), down, down, 2000.0, "1 to 0")
    }),
    ("neighbours", |bug| {
        let model = Model::new(bug, |p| (p.base_rber, p.interference) = (2e-3, 0.5));
        let (alike, differing) = (N * 1e-3, N * 3e-3);
        near(model.mean(fresh(), 0xff), alike, alike, 2000.0, "0xff")?;
        near(model.mean(fresh(), 0xaa), differing, differing, 2000.0, "0xaa")
    }),
    ("blocks", |bug| {
        let model = Model::new(bug, |p| (p.base_rber, p.block_sigma) = (2e-3, 0.5));
        let logs: Vec<f64> = (0..64)
            .map(|block| {
                let place = PagePlace { block, page: block * 16 };
                let sum: u32 = model.counts(place, fresh(), 0, 200).iter().map(BitErrors::total).sum();
                f64::from(sum).ln()
            })
            .collect();
        let mean = logs.iter().sum::<f64>() / 64.0;
        let deviation = (logs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 64.0).sqrt();
        holds((0.35..0.65).contains(&deviation), "spread of blocks")
    }),
    ("ageing", |bug| {
        let model = Model::new(bug, |p| {
            p.pe_reference_cycles = 1000.0;
            (p.wear_rber, p.pe_exponent) = (1e-3, 2.0);
            (p.retention_rber, p.retention_exponent, p.retention_reference_hours) = (2e-3, 0.5, 100.0);
            (p.disturb_rber, p.disturb_reference_reads) = (1e-3, 1000.0);
        });
        let old = PageState {
            cycles: 2000,
            programmed_at_ns: 75 * HOUR_NS,
            now_ns: 100 * HOUR_NS,
            block_reads: 3000,
            ..fresh()
        };
        let mu = N * (4e-3 + 1e-3 + 3e-3);
        near(model.mean(old, 0), mu, mu, 2000.0, "all three")
    }),
    ("temperature", |bug| {
        let change = |p: &mut ReliabilityParams| {
            (p.retention_rber, p.retention_reference_hours, p.activation_energy_ev) = (1e-4, 100.0, 1.0);
        };
        let mut model = Model::new(bug, change);
        model.heat(60.0);
        let factor = acceleration(model.inner.params(), 60.0);
        let mu = N * 1e-4 * factor;
        near(
            model.mean(PageState { now_ns: 100 * HOUR_NS, ..fresh() }, 0),
            mu,
            mu,
            2000.0,
            "100 hours at 60 C",
        )
    }),
    ("monotone", |bug| {
        let model = Model::new(bug, |p| (p.retention_rber, p.retention_reference_hours) = (5e-3, 100.0));
        let mut before = [0u8; 256];
        for hours in 0..100 {
            let mut data = [0u8; 256];
            model.read(PLACE, &PageState { now_ns: hours * HOUR_NS, ..fresh() }, 0, &mut data, 0);
            let healed = before.iter().zip(&data).any(|(before, now)| before & !now != 0);
            holds(!healed, "an error healed")?;
            before = data;
        }
        holds(before != [0; 256], "no errors at all")
    }),
    ("parts", |bug| {
        let model = Model::new(bug, |p| p.base_rber = 2e-2);
        let (mut whole, mut part) = ([0u8; 256], [0u8; 100]);
        model.read(PLACE, &fresh(), 0, &mut whole, 0);
        model.read(PLACE, &fresh(), 100, &mut part, 0);
        holds(part == whole[100..200], "a part differs from the whole")
    }),
    ("times", |bug| {
        let model = Model::new(bug, |p| {
            p.time_spread = 1.0;
            p.blank_erase_factor = 0.1;
            p.erase_wear = vec![[10.0, 1.0], [1000.0, 3.0]];
        });
        let median = |cycles, blank| {
            let time = |draw| model.inner.erase_time_ns(1, cycles, 1_000_000, 10_000_000, blank, draw);
            let mut times: Vec<u64> = (0..4001).map(time).collect();
            times.sort_unstable();
            (times[2000] as f64 / 1e6, times[4000] as f64 / times[0] as f64)
        };
        holds((median(0, false).0 - 1.0).abs() < 0.1, "typical")?;
        holds(median(0, false).1 > 20.0, "spread")?;
        holds((median(1000, false).0 - 3.0).abs() < 0.3, "wear")?;
        holds((median(0, true).0 - 0.1).abs() < 0.01, "blank")
    }),
    ("endurance", |bug| {
        let model = Model::new(bug, |p| (p.endurance_cycles, p.endurance_sigma) = (1000.0, 0.2));
        let failed = (0..64).filter(|block| model.inner.erase_fails(*block, 1000).is_some()).count();
        holds((16..48).contains(&failed), "half of the blocks at the median")?;
        holds((0..64).all(|block| model.inner.erase_fails(block, 2500).is_some()), "all in the end")
    }),
    ("cut program", |bug| {
        let model = Model::new(bug, |p| p.marginal_band = 0.1);
        let (old, new) = ([0xffu8; 256], [0x55u8; 256]);
        let (page, marginal) = model.interrupted_program(&old, &new, 0.5);
        holds(page.iter().all(|byte| byte & 0x55 == 0x55), "a bit was cleared that was not to be")?;
        let cleared: u32 = page.iter().map(|byte| byte.count_zeros()).sum();
        holds((450..800).contains(&cleared), "about half of 1024 cells, and the band")?;
        let state = PageState { marginal, ..fresh() };
        let read = |index| {
            let mut data = page.clone();
            model.read(PLACE, &state, 0, &mut data, index);
            data
        };
        holds(read(1) != read(2), "cells near the level read alike")
    }),
    ("cut erase", |bug| {
        let model = Model::new(bug, |p| (p.marginal_band, p.erase_weak_share) = (0.05, 0.1));
        let cut = |fraction| {
            let mut page = vec![0x55u8; 256];
            let marginal = model.interrupted_erase(&mut page, fraction);
            (page, marginal)
        };
        let ones = |page: &[u8]| page.iter().map(|byte| byte.count_ones()).sum::<u32>();
        holds((400..624).contains(&ones(&cut(0.125).0)), "half of the 1s, half-way the pre-program")?;
        holds((924..1124).contains(&ones(&cut(0.55).0)), "half of all, half-way the pulse")?;
        let (page, marginal) = cut(0.9);
        holds(page == [0xff; 256], "erased, in the recovery")?;
        let state = PageState { marginal, ..fresh() };
        let errors = model.read(PLACE, &state, 0, &mut page.clone(), 1);
        holds(errors.one_to_zero > 20, "noise in the recovery")
    }),
    ("write errors", |bug| {
        let model = Model::new(bug, |p| p.write_error_rate = 1e-2);
        let mut failed = 0;
        for draw in 0..200 {
            let mut data = [0xf0u8; 256];
            failed += model.write(&[0x00; 256], &mut data, draw);
            holds(data.iter().all(|byte| byte & 0x0f == 0), "a bit that was not to change did")?;
        }
        near(f64::from(failed) / 200.0, 10.24, 10.24, 200.0, "failed bits")
    }),
];

#[test]
fn the_right_model_passes_every_check() {
    for (name, check) in CHECKS {
        assert_eq!(check(Bug::None), Ok(()), "{name}");
    }
}

#[test]
fn every_planted_bug_is_caught_by_the_check_named_for_it() {
    for (bug, name) in BUGS {
        let (_, check) = CHECKS.iter().find(|(known, _)| *known == name).unwrap();
        assert!(check(bug).is_err(), "{bug:?} is not caught by {name}");
    }
}
