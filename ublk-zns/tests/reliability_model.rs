//! The error model against closed forms: means, variances, tails, order, and determinism, all with fixed seeds.
#![allow(clippy::unwrap_used, missing_docs)]

use ublk_zns::{
    Geometry, ZnsConfig, ZoneId,
    reliability::{
        Chip, Conditions, ErrorParams, Health, PageAddress, Pattern, Reliability, Wear, WearEvent,
        ZoneCounters,
    },
};

const HOUR_NS: u64 = 3_600_000_000_000;
const FRESH: Conditions = Conditions { pe_cycles: 1.0, retention_hours: 0.0, reads: 0.0 };

fn tlc(changes: &[&str]) -> ErrorParams {
    ErrorParams::built_in("tlc-3d").unwrap().with(changes).unwrap()
}

/// A chip without variation of place: every page has the mean rate.
fn flat(changes: &[&str]) -> ErrorParams {
    let same = ["block_sigma=0", "layer_sigma=0", "layer_profile=[]", "page_type_factors=[1,1,1]"];
    tlc(&[&same, changes].concat())
}

fn geometry(zones: u64, capacity_bytes: Option<u64>) -> Geometry {
    Geometry::new(&ZnsConfig {
        size_bytes: zones * (64 << 20),
        zone_capacity_bytes: capacity_bytes,
        conventional_zones: 1,
        ..Default::default()
    })
    .unwrap()
}

fn device(changes: &[&str], seed: u64) -> Reliability {
    Reliability::new(&tlc(changes), seed, &geometry(8, None)).unwrap()
}

/// Mean and variance of the errors of `n` codewords, each of a page program of its own.
fn moments(chip: &Chip, rber: f64, n: u64) -> (f64, f64) {
    let errors: Vec<f64> = (0..n)
        .map(|i| {
            let address =
                PageAddress { zone: 1, block: (i % 7) as u32, page: (i % 64) as u32, generation: i };
            chip.read_codeword(&address, &FRESH, rber, (i % 16) as u32).raw_bit_errors as f64
        })
        .collect();
    let mean = errors.iter().sum::<f64>() / n as f64;
    (mean, errors.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / n as f64)
}

#[test]
fn codeword_errors_have_the_mean_of_the_formula_and_a_variance_beyond_poisson() {
    const N: u64 = 60_000;
    for (dispersion, rber) in [("0", 1e-3), ("0.05", 1e-3), ("0.05", 6e-3), ("0.5", 2e-3)] {
        let params = flat(&[&format!("dispersion={dispersion}")]);
        let chip = Chip::new(&params, 3).unwrap();
        let want = rber * 8192.0;
        let (mean, variance) = moments(&chip, rber, N);
        let want_variance = want + params.dispersion * want * want;
        assert!((mean - want).abs() < 4.0 * (want_variance / N as f64).sqrt(), "{mean} for {want}");
        // Four standard errors of a variance: its own is about twice its square over N, more for a heavy tail.
        let tolerance =
            4.0 * (2.0 / N as f64 + 6.0 * params.dispersion / N as f64 + 1.0 / (want * N as f64)).sqrt();
        assert!((variance / want_variance - 1.0).abs() < tolerance, "{variance} for {want_variance}");
    }
}

#[test]
fn the_rate_is_the_sum_of_its_terms_times_the_places_factors() {
    let params = tlc(&["activation_energy_ev=0", "randomizer=false"]);
    let chip = Chip::new(&params, 5).unwrap();
    let conditions = Conditions { pe_cycles: 1500.0, retention_hours: 1000.0, reads: 40_000.0 };
    // Written out again, with other operations: logarithms in place of powers.
    let power = |x: f64, e: f64| (e * x.ln()).exp();
    let mean = 1.48e-3
        + 5.24e-3 * power(0.5, 2.05)
        + 4.7e-3 * power(0.5, 0.14) * power(1000.0 / 8760.0, 0.54)
        + 1e-3 * power(0.5, 0.33) * power(0.4, 1.71);
    assert!((chip.mean_rber(&conditions) / mean - 1.0).abs() < 1e-12);
    let pattern = Pattern { ones_fraction: 0.25, transitions: 0.75 };
    let address = PageAddress { zone: 2, block: 3, page: 100, generation: 9 };
    let want =
        mean * chip.block_factor(2, 3) * chip.page_factor(100) * (1.0 + 0.25 * 0.5) * (1.0 + 0.15 * 0.5);
    assert!((chip.rber(&address, &conditions, &pattern) / want - 1.0).abs() < 1e-12);
    // What holds data was erased once.
    let (never, once) =
        (Conditions { pe_cycles: 0.0, ..conditions }, Conditions { pe_cycles: 1.0, ..conditions });
    assert_eq!(chip.mean_rber(&never), chip.mean_rber(&once));
    // Never more than chance.
    let worst = Conditions { pe_cycles: 1e9, retention_hours: 1e9, reads: 1e12 };
    assert_eq!(chip.rber(&address, &worst, &pattern), 0.5);
}

#[test]
fn the_rate_and_the_errors_of_a_codeword_never_fall_with_cycles_time_or_reads() {
    let chip = Chip::new(&tlc(&[]), 5).unwrap();
    let with = |pe_cycles, retention_hours, reads| Conditions { pe_cycles, retention_hours, reads };
    let ladders: [Vec<Conditions>; 3] = [
        [0.0, 1.0, 10.0, 500.0, 3000.0, 9000.0].map(|pe| with(pe, 10.0, 10.0)).to_vec(),
        [0.0, 0.1, 1.0, 24.0, 8760.0, 90_000.0].map(|hours| with(100.0, hours, 10.0)).to_vec(),
        [0.0, 1.0, 1e3, 1e5, 3e5].map(|reads| with(100.0, 10.0, reads)).to_vec(),
    ];
    for ladder in ladders {
        for page in [0, 1, 2, 400, 863] {
            let address = PageAddress { zone: 1, block: 0, page, generation: 7 };
            let rates: Vec<f64> = ladder.iter().map(|c| chip.rber(&address, c, &Pattern::RANDOM)).collect();
            assert!(rates.is_sorted() && rates.first() < rates.last(), "{rates:?}");
            let errors: Vec<u64> = ladder
                .iter()
                .zip(&rates)
                .map(|(c, rate)| chip.read_codeword(&address, c, *rate, 3).raw_bit_errors)
                .collect();
            assert!(errors.is_sorted() && errors.first() < errors.last(), "{errors:?}");
        }
    }
}

#[test]
fn pages_differ_as_the_parameters_say_and_average_to_the_mean_page() {
    for name in ["slc", "mlc-2d", "tlc-3d", "qlc-3d"] {
        let params = ErrorParams::built_in(name).unwrap().with(&["layer_sigma=0"]).unwrap();
        let chip = Chip::new(&params, 1).unwrap();
        let pages = params.pages_per_block;
        let mean = (0..pages).map(|page| chip.page_factor(page)).sum::<f64>() / f64::from(pages);
        assert!((mean - 1.0).abs() < 1e-12, "{name}: {mean}");
    }
    let mlc = Chip::new(&ErrorParams::built_in("mlc-2d").unwrap(), 1).unwrap();
    assert!((mlc.page_factor(101) / mlc.page_factor(100) - 1.333 / 0.667).abs() < 1e-9, "msb over lsb");
    for (edge, inner) in [(0, 2), (1, 3), (254, 252), (255, 253)] {
        assert!((mlc.page_factor(edge) / mlc.page_factor(inner) - 1.6).abs() < 1e-9, "edge word lines");
    }
    let tlc = Chip::new(&tlc(&["layer_sigma=0"]), 1).unwrap();
    let per_layer = 12;
    assert_eq!((tlc.place(11).layer, tlc.place(12).layer, tlc.place(863).layer), (0, 1, 71));
    assert_eq!((tlc.place(7).wordline, tlc.place(7).page_type), (2, 1));
    // The profile's first and last points, and between the fourth and the fifth: at 35 * 8 / 71 of eight steps.
    let layer = |layer: u32| tlc.page_factor(layer * per_layer);
    assert!((layer(0) / layer(71) - 1.55 / 1.4).abs() < 1e-9);
    let share = 35.0 * 8.0 / 71.0 - 3.0;
    let between = 0.9f64.powf(1.0 - share) * 0.85f64.powf(share);
    assert!((layer(35) / layer(0) - between / 1.55).abs() < 1e-9);
}

#[test]
fn blocks_and_layers_vary_as_lognormal_as_their_sigma_says() {
    const N: u32 = 20_000;
    let chip = Chip::new(&tlc(&["block_sigma=0.4"]), 11).unwrap();
    let factors: Vec<f64> = (0..N).map(|block| chip.block_factor(block % 5, block / 5)).collect();
    let mean = factors.iter().sum::<f64>() / f64::from(N);
    let logs: Vec<f64> = factors.iter().map(|f| f.ln()).collect();
    let centre = logs.iter().sum::<f64>() / f64::from(N);
    let sigma = (logs.iter().map(|l| (l - centre).powi(2)).sum::<f64>() / f64::from(N)).sqrt();
    assert!((mean - 1.0).abs() < 0.015 && (sigma - 0.4).abs() < 0.01, "{mean} {sigma}");
    let rough = Chip::new(&flat(&["layers=4096", "pages_per_block=12288", "layer_sigma=0.2"]), 2).unwrap();
    let logs: Vec<f64> = (0..4096).map(|layer| rough.page_factor(layer * 3).ln()).collect();
    let sigma = (logs.iter().map(|l| (l + 0.02).powi(2)).sum::<f64>() / 4096.0).sqrt();
    assert!((sigma - 0.2).abs() < 0.01, "{sigma}");
    assert_eq!(rough.page_factor(0), rough.page_factor(1), "pages of one layer share its factor");
}

#[test]
fn retry_and_correction_end_where_the_negative_binomial_tail_says() {
    const N: u64 = 40_000;
    let changes = ["retry_factors=[0.8,0.6]", "retry_latency_ns=[1,2]", "dispersion=0.1"];
    let chip = Chip::new(&flat(&changes), 4).unwrap();
    let plain = Chip::new(&flat(&["retry_factors=[]", "retry_latency_ns=[]", "dispersion=0.1"]), 4).unwrap();
    for rber in [7e-3, 1e-2, 1.5e-2] {
        let failed = |chip: &Chip| {
            let failed = (0..N).filter(|i| {
                let address = PageAddress { zone: 0, block: 0, page: 0, generation: *i };
                chip.read_codeword(&address, &FRESH, rber, 0).uncorrectable
            });
            failed.count() as f64 / N as f64
        };
        let (with, without) = (failed(&chip), failed(&plain));
        for (share, chip) in [(with, &chip), (without, &plain)] {
            let want = chip.uncorrectable_probability(rber);
            assert!(
                (share - want).abs() < 4.0 * (want / N as f64).sqrt() + 1e-4,
                "{rber}: {share} for {want}"
            );
        }
        // And that closed form against one of its own: the sum of the distribution's terms up to 72.
        let mean = rber * 8192.0;
        let (shape, odds) = (10.0, 0.1 * mean);
        let mut term = (1.0f64 + odds).powf(-shape);
        let mut sum = term;
        for n in 0..72 {
            term *= (shape + f64::from(n)) / f64::from(n + 1) * odds / (1.0 + odds);
            sum += term;
        }
        assert!((plain.uncorrectable_probability(rber) - (1.0 - sum)).abs() < 1e-9);
        assert!(with < without, "retry reduces failures: {with} {without}");
    }
}

#[test]
fn exactly_as_many_errors_as_the_code_corrects_are_corrected() {
    let chip = Chip::new(&flat(&["retry_factors=[]", "retry_latency_ns=[]"]), 8).unwrap();
    let (mut at, mut beyond) = (0, 0);
    for generation in 0..20_000 {
        let address = PageAddress { zone: 0, block: 0, page: 0, generation };
        let read = chip.read_codeword(&address, &FRESH, 8.8e-3, 0);
        assert_eq!(read.uncorrectable, read.raw_bit_errors > 72);
        at += u32::from(read.raw_bit_errors == 72);
        beyond += u32::from(read.raw_bit_errors == 73);
    }
    assert!(at > 100 && beyond > 100, "the boundary was met: {at} {beyond}");
}

#[test]
fn zeros_err_more_than_ones_by_the_bias_and_the_randomizer_hides_it() {
    let raw = Chip::new(&flat(&["randomizer=false", "zero_bias=0.25", "interference=0.2"]), 6).unwrap();
    let address = |generation| PageAddress { zone: 0, block: 1, page: 2, generation };
    let rate = |chip: &Chip, data: u8| chip.rber(&address(0), &FRESH, &Pattern::of(&[data; 64]));
    let random = raw.rber(&address(0), &FRESH, &Pattern::RANDOM);
    // All zeros: every bit with 1 + bias, no neighbour differs. All ones: 1 - bias.
    assert!((rate(&raw, 0x00) / random - 1.25 * 0.8).abs() < 1e-12);
    assert!((rate(&raw, 0xff) / random - 0.75 * 0.8).abs() < 1e-12);
    assert!((rate(&raw, 0x55) / random - 1.2).abs() < 1e-12);
    let hidden = Chip::new(&flat(&["zero_bias=0.25", "interference=0.2"]), 6).unwrap();
    assert_eq!(rate(&hidden, 0), rate(&hidden, 0xff));
    // Of 10 errors in half zeros, 10 x 1.25 / 2 are zeros read as ones; behind the randomizer half of them.
    let share = |chip: &Chip| {
        let flips: u64 = (0..4000).map(|g| chip.zero_to_one(&address(g), 0, 10, &Pattern::RANDOM)).sum();
        flips as f64 / 40_000.0
    };
    assert!((share(&raw) - 0.625).abs() < 0.01 && (share(&hidden) - 0.5).abs() < 0.01);
    assert_eq!(raw.zero_to_one(&address(0), 0, 9, &Pattern::of(&[0])), 9);
    assert_eq!(raw.zero_to_one(&address(0), 0, 9, &Pattern::of(&[255])), 0);
}

/// Everything that a life of a device shows, in one line a read.
fn life(device: &mut Reliability) -> Vec<String> {
    let mut lines = Vec::new();
    for round in 0..3u64 {
        for zone in 1..4 {
            device.programmed(round * HOUR_NS, ZoneId(zone));
            for read in 0..20 {
                let found =
                    device.read((round * 500 + read) * HOUR_NS, ZoneId(zone), read * 64, 64, Pattern::RANDOM);
                lines.push(format!("{found:?}"));
            }
            let counters = device.counters(ZoneId(zone)).copied();
            lines.push(format!("{counters:?} {:?}", device.reset(ZoneId(zone))));
        }
    }
    lines
}

#[test]
fn a_device_repeats_its_life_with_its_seed_and_has_another_with_another() {
    let worn = ["initial_pe_cycles=2500"];
    let first = life(&mut device(&worn, 1));
    assert_eq!(first, life(&mut device(&worn, 1)));
    let second = life(&mut device(&worn, 2));
    let same = first.iter().zip(&second).filter(|(a, b)| a == b).count();
    assert!(same * 20 < first.len(), "{same} of {} lines are the same with another seed", first.len());
}

#[test]
fn the_same_data_read_again_errs_alike_until_it_is_programmed_again_or_drawn_anew() {
    let errors =
        |device: &mut Reliability| device.read(0, ZoneId(1), 0, 1024, Pattern::RANDOM).raw_bit_errors;
    let mut still = device(&["disturb_rber=0"], 1);
    still.programmed(0, ZoneId(1));
    let first = errors(&mut still);
    assert!((0..50).all(|_| errors(&mut still) == first));
    still.reset(ZoneId(1));
    still.programmed(0, ZoneId(1));
    assert_ne!(errors(&mut still), first);
    let mut drawn = device(&["disturb_rber=0", "redraw_reads=1000"], 1);
    drawn.programmed(0, ZoneId(1));
    let counts: std::collections::BTreeSet<u64> = (0..1000).map(|_| errors(&mut drawn)).collect();
    assert!(counts.len() > 2 && counts.len() < 100, "{counts:?}");
}

#[test]
fn retention_counts_from_the_first_program_after_a_reset_and_time_can_be_sped_up() {
    let mut device = device(&[], 1);
    assert_eq!(device.conditions(5 * HOUR_NS, ZoneId(1), 0), None);
    device.programmed(2 * HOUR_NS, ZoneId(1));
    device.programmed(4 * HOUR_NS, ZoneId(1));
    let hours =
        |device: &Reliability, now| device.conditions(now * HOUR_NS, ZoneId(1), 0).unwrap().retention_hours;
    assert_eq!((hours(&device, 5), hours(&device, 2), hours(&device, 1)), (3.0, 0.0, 0.0));
    device.reset(ZoneId(1));
    assert_eq!(device.conditions(5 * HOUR_NS, ZoneId(1), 0), None);
    device.programmed(6 * HOUR_NS, ZoneId(1));
    assert_eq!(hours(&device, 7), 1.0);
    // A minute that is a year does as much as a year.
    let (real, fast) =
        (Chip::new(&tlc(&[]), 1).unwrap(), Chip::new(&tlc(&["time_acceleration=525600"]), 1).unwrap());
    let after = |hours| Conditions { pe_cycles: 100.0, retention_hours: hours, reads: 0.0 };
    let (year, minute) = (real.mean_rber(&after(8760.0)), fast.mean_rber(&after(1.0 / 60.0)));
    assert!((year / minute - 1.0).abs() < 1e-9 && year > real.mean_rber(&after(0.0)));
    // And so does a day of heat that Arrhenius' law says is worth ten.
    let warm = Chip::new(&tlc(&["temperature_c=58.9"]), 1).unwrap();
    let ratio = warm.reference_hours(1.0);
    assert!(
        (ratio - (1.1 / 8.617_333_262e-5 * (1.0 / 313.15 - 1.0 / 332.05f64)).exp()).abs() < 1e-9
            && ratio > 9.0
    );
}

#[test]
fn a_read_counts_in_its_blocks_and_a_reset_forgets_it() {
    // 64 MiB zones of blocks of 13.5 MiB: five blocks, over which pages of 32 sectors are striped.
    let mut device = device(&["retry_factors=[]", "retry_latency_ns=[]"], 1);
    device.programmed(0, ZoneId(2));
    device.read(0, ZoneId(2), 0, 32 * 7, Pattern::RANDOM);
    let reads =
        |device: &Reliability| (0..5).map(|b| device.wear().block_reads(ZoneId(2), b)).collect::<Vec<_>>();
    assert_eq!(reads(&device), [2, 2, 1, 1, 1]);
    device.read(0, ZoneId(2), 33, 1, Pattern::RANDOM);
    assert_eq!(reads(&device), [2, 3, 1, 1, 1]);
    let counters = device.counters(ZoneId(2)).unwrap();
    assert_eq!((counters.page_reads, counters.bits_read), (8, (7 * 16 + 1) * 8192));
    assert_eq!(device.wear().block_reads(ZoneId(2), 5), 0);
    device.reset(ZoneId(2));
    assert_eq!(reads(&device), [0; 5]);
    let counters = device.counters(ZoneId(2)).unwrap();
    assert_eq!((counters.page_reads, counters.pe_cycles, counters.programmed_at_ns), (0, 1, None));
}

#[test]
fn a_read_names_its_first_bad_sector_and_pays_for_its_retries_per_block() {
    // So worn that every codeword fails each of its steps.
    let bad = ["base_rber=0.4", "retry_factors=[0.9,0.8]", "retry_latency_ns=[100,1000]"];
    let mut device = device(&bad, 1);
    device.programmed(0, ZoneId(1));
    let found = device.read(0, ZoneId(1), 35, 1, Pattern::RANDOM);
    assert_eq!((found.uncorrectable_codewords, found.first_bad_sector), (1, Some(35)));
    assert_eq!((found.retry_steps, found.extra_latency_ns), (2, 1100));
    assert_eq!(device.counters(ZoneId(1)).unwrap().page_reads, 3);
    // Seven pages over five blocks: two of them in one block, one after the other.
    let found = device.read(0, ZoneId(1), 0, 7 * 32, Pattern::RANDOM);
    assert_eq!((found.uncorrectable_codewords, found.first_bad_sector), (7 * 16, Some(0)));
    assert_eq!((found.retry_steps, found.extra_latency_ns), (14, 2200));
    let found = device.read(0, ZoneId(1), 2, 1, Pattern::RANDOM);
    assert_eq!(found.first_bad_sector, Some(2), "not before the read");
}

#[test]
fn what_holds_no_data_or_does_not_exist_reads_without_errors() {
    let mut device = Reliability::new(&tlc(&["base_rber=0.4"]), 1, &geometry(8, Some(48 << 20))).unwrap();
    let clean = |device: &mut Reliability, zone, offset, sectors| {
        device.read(u64::MAX, ZoneId(zone), offset, sectors, Pattern::RANDOM).raw_bit_errors == 0
    };
    assert!(clean(&mut device, 1, 0, 8), "not programmed");
    device.programmed(0, ZoneId(0));
    assert!(clean(&mut device, 0, 0, 8), "conventional");
    device.programmed(0, ZoneId(1));
    assert!(!clean(&mut device, 1, 0, 8));
    assert!(
        clean(&mut device, 1, 0, 0)
            && clean(&mut device, 1, 48 << 11, 8)
            && clean(&mut device, 1, u64::MAX, 9)
    );
    assert!(clean(&mut device, 99, 0, 8) && clean(&mut device, u32::MAX, 0, u64::MAX));
    device.programmed(0, ZoneId(99));
    assert_eq!((device.reset(ZoneId(99)), device.reset(ZoneId(0))), (WearEvent::None, WearEvent::None));
    device.restore(ZoneId(99), ZoneCounters::default());
    assert!(device.counters(ZoneId(99)).is_none());
    // A read over the capacity's end counts what is before it.
    let whole = device.read(0, ZoneId(1), (48 << 11) - 8, u64::MAX, Pattern::RANDOM);
    assert_eq!(whole.uncorrectable_codewords, 4);
    let none = Reliability::new(&ErrorParams::default(), 1, &geometry(8, None)).unwrap();
    assert!(!none.wants_pattern() && none.chip().params().is_none());
}

#[test]
fn a_device_of_too_many_blocks_is_refused() {
    let many =
        ErrorParams::default().with(&["page_bytes=512", "codeword_bytes=512", "pages_per_block=1"]).unwrap();
    let config = ZnsConfig { size_bytes: 1 << 40, zone_size_bytes: 1 << 30, ..Default::default() };
    let error = Reliability::new(&many, 1, &Geometry::new(&config).unwrap()).unwrap_err().to_string();
    assert!(error.contains("pages_per_block is 1: the device would have 2097152 blocks"), "{error}");
}

#[test]
fn zones_wear_out_in_the_order_of_their_endurance_read_only_before_offline() {
    let params = tlc(&["endurance_cycles=200", "endurance_sigma=0.2"]);
    let mut wear = Wear::new(&params, 9, 40, 5);
    let (mut read_only, mut offline) = (Vec::new(), Vec::new());
    for cycle in 1..=500u32 {
        for zone in 0..40 {
            match wear.on_reset(ZoneId(zone)) {
                WearEvent::None => {}
                WearEvent::ReadOnly => read_only.push((zone, cycle)),
                WearEvent::Offline => offline.push((zone, cycle)),
            }
        }
    }
    assert_eq!((read_only.len(), offline.len()), (40, 40));
    for (zone, cycle) in &read_only {
        let endurance = wear.endurance(ZoneId(*zone));
        assert!(
            f64::from(*cycle) > endurance && f64::from(cycle - 1) <= endurance,
            "{cycle} for {endurance}"
        );
    }
    for (zone, cycle) in &offline {
        let limit = wear.endurance(ZoneId(*zone)) * 1.1;
        assert!(f64::from(*cycle) > limit && f64::from(cycle - 1) <= limit);
        let before = read_only.iter().find(|(other, _)| other == zone).unwrap().1;
        assert!(before < *cycle, "zone {zone}");
    }
    assert!((0..40).all(|zone| wear.counters(ZoneId(zone)).unwrap().health == Health::Offline));
    // The weakest of five: its median is the rated endurance less about 1.13 sigma.
    let mut ends: Vec<f64> =
        (0..4000).map(|zone| Wear::new(&params, 9, 1, 5).endurance(ZoneId(zone))).collect();
    ends.sort_by(f64::total_cmp);
    // P(weakest > x) = P(one > x)^5 = 1/2, so that one has x or less with 1 - 2^-0.2 = 0.1294: -1.129 sigma.
    assert!((ends[2000] / (200.0 * (-1.129f64 * 0.2).exp()) - 1.0).abs() < 0.01, "{}", ends[2000]);
}

#[test]
fn a_worn_zone_goes_offline_after_as_many_failed_reads_as_it_may_have() {
    let worn = ["base_rber=0.4", "endurance_cycles=1", "endurance_sigma=0", "offline_factor=100"];
    let mut device = device(&[&worn[..], &["offline_uncorrectable_reads=3"]].concat(), 1);
    device.programmed(0, ZoneId(1));
    let read = |device: &mut Reliability| device.read(0, ZoneId(1), 0, 8, Pattern::RANDOM).event;
    assert!((0..9).all(|_| read(&mut device) == WearEvent::None), "a good zone may fail");
    let events: Vec<WearEvent> = (0..2).map(|_| device.reset(ZoneId(1))).collect();
    assert_eq!(events, [WearEvent::None, WearEvent::ReadOnly]);
    device.programmed(0, ZoneId(1));
    let events: Vec<WearEvent> = (0..4).map(|_| read(&mut device)).collect();
    assert_eq!(events, [WearEvent::None, WearEvent::None, WearEvent::Offline, WearEvent::None]);
    assert_eq!(device.counters(ZoneId(1)).unwrap().health, Health::Offline);
}

#[test]
fn a_restored_zone_goes_on_where_it_was() {
    let mut first = device(&["initial_pe_cycles=10"], 1);
    for _ in 0..5 {
        first.reset(ZoneId(3));
    }
    first.programmed(7 * HOUR_NS, ZoneId(3));
    for _ in 0..10 {
        first.read(8 * HOUR_NS, ZoneId(3), 0, 160, Pattern::RANDOM);
    }
    let saved = *first.counters(ZoneId(3)).unwrap();
    assert_eq!((saved.pe_cycles, saved.page_reads, saved.programmed_at_ns), (15, 50, Some(7 * HOUR_NS)));
    let mut second = device(&["initial_pe_cycles=10"], 1);
    second.restore(ZoneId(3), saved);
    let now = 9 * HOUR_NS;
    assert_eq!(first.conditions(now, ZoneId(3), 2), second.conditions(now, ZoneId(3), 2));
    let read = |device: &mut Reliability| device.read(now, ZoneId(3), 64, 64, Pattern::RANDOM);
    assert_eq!(read(&mut first), read(&mut second));
    // What was saved as good and cannot be is not.
    let mut worn = device(&["endurance_cycles=3", "endurance_sigma=0"], 1);
    worn.restore(ZoneId(3), ZoneCounters { pe_cycles: 100, health: Health::Good, ..saved });
    assert_eq!(worn.counters(ZoneId(3)).unwrap().health, Health::Offline);
    let old = device(&["endurance_cycles=3", "endurance_sigma=0", "initial_pe_cycles=4"], 1);
    assert_eq!(old.counters(ZoneId(3)).unwrap().health, Health::Offline);
}
