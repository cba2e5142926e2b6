//! The fit finds the parameters that a table was made with, and says what it cannot tell.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use spiflash_mtd::reliability::{
    Measurement, ReliabilityError, ReliabilityParams,
    fit::{Fit, FitOptions, fit},
    read_csv,
    tables::{Table, TableOptions, write_table},
};

/// A chip that errs often, so that short tables tell much.
fn planted() -> ReliabilityParams {
    ReliabilityParams {
        base_rber: 1e-4,
        base_bias: -0.2,
        pe_reference_cycles: 10_000.0,
        wear_rber: 4e-4,
        wear_bias: 0.3,
        pe_exponent: 1.6,
        retention_reference_hours: 1000.0,
        retention_rber: 1.2e-3,
        retention_bias: 0.8,
        retention_pe_exponent: 0.8,
        retention_exponent: 0.5,
        disturb_reference_reads: 1e6,
        disturb_rber: 8e-4,
        disturb_bias: -0.7,
        disturb_pe_exponent: 0.6,
        disturb_exponent: 1.1,
        activation_energy_ev: 0.9,
        temperature_c: 40.0,
        reference_temperature_c: 40.0,
        block_sigma: 0.3,
        page_sigma: 0.2,
        dispersion: 0.6,
        interference: 0.25,
        pages_per_block: 8,
        ..ReliabilityParams::default()
    }
}

fn options(blocks: u32, repeats: u32) -> TableOptions {
    TableOptions {
        seed: 5,
        blocks,
        repeats,
        cycles: vec![100, 3000, 10_000],
        retention_hours: vec![0.0, 50.0, 1000.0],
        reads: vec![0, 100_000, 1_000_000],
    }
}

fn measure(
    params: &ReliabilityParams,
    table: Table,
    options: &TableOptions,
    source: u32,
) -> Vec<Measurement> {
    let mut csv = Vec::new();
    write_table(table, params, options, &mut csv).unwrap();
    let rows = read_csv(csv.as_slice(), "table.csv").unwrap();
    rows.into_iter().map(|row| Measurement { source, ..row }).collect()
}

/// What the fit starts from: the references, and values far from the planted ones.
fn start() -> ReliabilityParams {
    ReliabilityParams {
        base_rber: 1e-6,
        wear_rber: 1e-6,
        retention_rber: 1e-5,
        disturb_rber: 1e-8,
        pe_exponent: 1.0,
        retention_exponent: 1.0,
        disturb_exponent: 0.5,
        retention_pe_exponent: 0.0,
        disturb_pe_exponent: 0.0,
        activation_energy_ev: 0.3,
        pe_reference_cycles: 10_000.0,
        retention_reference_hours: 1000.0,
        disturb_reference_reads: 1e6,
        temperature_c: 40.0,
        reference_temperature_c: 40.0,
        ..ReliabilityParams::default()
    }
}

fn everything() -> Vec<Measurement> {
    let planted = planted();
    let mut rows = measure(&planted, Table::Pages, &options(12, 6), 0);
    let hot = ReliabilityParams { temperature_c: 70.0, ..planted.clone() };
    rows.extend(measure(&hot, Table::Pages, &TableOptions { reads: vec![0], ..options(12, 2) }, 1));
    let one = TableOptions {
        cycles: vec![10_000],
        retention_hours: vec![1000.0],
        reads: vec![0],
        ..options(12, 1)
    };
    rows.extend(measure(&planted, Table::Patterns, &one, 2));
    rows
}

fn told<'a>(found: &'a Fit, name: &str) -> &'a str {
    match found.held.iter().find(|held| held.name == name) {
        Some(held) => &held.why,
        None => "",
    }
}

#[test]
fn planted_parameters_are_found_again() {
    let found = fit(&everything(), &start(), FitOptions::default()).unwrap();
    let (planted, params) = (planted(), &found.params);
    let within = |name: &str, found: f64, planted: f64, by: f64| {
        assert!((found - planted).abs() <= by, "{name}: {found}, not {planted} within {by}");
    };
    // The rates are those of the twelve blocks measured, whose mean factor is not quite the 1 of all blocks.
    let mean = (params.retention_rber / planted.retention_rber).ln();
    within("the blocks' mean", mean, 0.0, 0.25);
    for (name, found, planted, by) in [
        ("base_rber", params.base_rber, planted.base_rber, 0.1),
        ("wear_rber", params.wear_rber, planted.wear_rber, 0.1),
        ("disturb_rber", params.disturb_rber, planted.disturb_rber, 0.1),
    ] {
        within(name, (found / planted).ln() - mean, 0.0, by);
    }
    within("base_bias", params.base_bias, planted.base_bias, 0.1);
    within("wear_bias", params.wear_bias, planted.wear_bias, 0.1);
    within("retention_bias", params.retention_bias, planted.retention_bias, 0.03);
    within("disturb_bias", params.disturb_bias, planted.disturb_bias, 0.03);
    within("pe_exponent", params.pe_exponent, planted.pe_exponent, 0.2);
    within("retention_exponent", params.retention_exponent, planted.retention_exponent, 0.03);
    within("retention_pe_exponent", params.retention_pe_exponent, planted.retention_pe_exponent, 0.05);
    within("disturb_exponent", params.disturb_exponent, planted.disturb_exponent, 0.1);
    within("disturb_pe_exponent", params.disturb_pe_exponent, planted.disturb_pe_exponent, 0.1);
    within("activation_energy_ev", params.activation_energy_ev, planted.activation_energy_ev, 0.05);
    within("interference", params.interference, planted.interference, 0.03);
    within("dispersion", params.dispersion, planted.dispersion, 0.06);
    within("page_sigma", params.page_sigma, planted.page_sigma, 0.03);
    within("block_sigma", params.block_sigma, planted.block_sigma, 0.15);
    assert!((0.8..1.2).contains(&found.pearson), "{}", found.pearson);
    assert_eq!(found.held.iter().map(|held| held.name).collect::<Vec<_>>(), ["layer_sigma"]);
    // What it prints is a parameter file of the same values.
    assert_eq!(ReliabilityParams::parse(&found.to_toml(), "fitted").unwrap(), found.params);
    assert!(found.to_toml().contains("\n[fit]\nrows = "));
}

#[test]
fn standard_errors_cover_the_planted_values() {
    // One place, no variation of it: then the errors are those of the counts alone.
    let planted = ReliabilityParams { block_sigma: 0.0, page_sigma: 0.0, ..planted() };
    let mut inside = 0;
    let mut all = 0;
    for seed in 0..6 {
        let rows = measure(&planted, Table::Conditions, &TableOptions { seed, ..options(4, 12) }, 0);
        let start = ReliabilityParams { dispersion: 0.6, ..start() };
        let found = fit(&rows, &start, FitOptions::default()).unwrap();
        for (name, value, wanted) in [
            ("retention_rber", found.params.retention_rber.ln(), planted.retention_rber.ln()),
            ("disturb_rber", found.params.disturb_rber.ln(), planted.disturb_rber.ln()),
            ("retention_bias", found.params.retention_bias, planted.retention_bias),
            ("retention_exponent", found.params.retention_exponent, planted.retention_exponent),
        ] {
            let error =
                found.fitted.iter().find(|fitted| fitted.name == name).unwrap().standard_error.unwrap();
            assert!(error > 0.0 && error < 0.2, "{name}: {error}");
            all += 1;
            inside += u32::from((value - wanted).abs() < 2.0 * error);
            assert!((value - wanted).abs() < 5.0 * error, "{name}: {value}, not {wanted} +- {error}");
        }
    }
    assert!(inside * 100 >= all * 80, "{inside} of {all} within two standard errors");
}

#[test]
fn what_the_table_does_not_tell_is_held_at_the_start_with_the_reason() {
    let one = TableOptions {
        cycles: vec![10_000],
        retention_hours: vec![0.0, 1000.0],
        reads: vec![0],
        ..options(2, 20)
    };
    let rows = measure(&planted(), Table::Conditions, &one, 0);
    let begin = ReliabilityParams { block_sigma: 0.33, page_sigma: 0.11, dispersion: 0.44, ..start() };
    let found = fit(&rows, &begin, FitOptions::default()).unwrap();
    for (name, reason) in [
        ("wear_rber", "different cycles: 1 measured, 2 needed"),
        ("pe_exponent", "different cycles: 1 measured, 3 needed"),
        ("retention_exponent", "different retention times: 2 measured, 3 needed"),
        ("retention_pe_exponent", "different cycles with retention: 1 measured, 2 needed"),
        ("activation_energy_ev", "different temperatures with retention: 1 measured, 2 needed"),
        ("disturb_rber", "different read counts: 1 measured, 2 needed"),
        ("interference", "different shares of transitions: 1 measured, 2 needed"),
        ("dispersion", "the standard error of its logarithm would be more than 0.5"),
        ("block_sigma", "blocks: 0 measured, 3 needed"),
        ("page_sigma", "rows of a page: 0.0 measured, 3 needed"),
    ] {
        assert_eq!(told(&found, name), reason, "{name}");
    }
    let params = &found.params;
    assert_eq!((params.wear_rber, params.disturb_rber), (begin.wear_rber, begin.disturb_rber));
    assert_eq!((params.block_sigma, params.page_sigma, params.dispersion), (0.33, 0.11, 0.44));
    assert_eq!(params.retention_exponent, begin.retention_exponent);
    let fitted: Vec<_> = found.fitted.iter().map(|fitted| fitted.name).collect();
    assert_eq!(fitted, ["base_rber", "retention_rber", "base_bias", "retention_bias"]);
    assert!((params.retention_rber / planted().retention_rber).ln().abs() < 0.4);
    // Without directions no bias is told; and what depends on cycles and hours alike is not told apart.
    let blind: Vec<Measurement> =
        rows.iter().map(|row| Measurement { zero_to_one: None, ..row.clone() }).collect();
    let found = fit(&blind, &begin, FitOptions::default()).unwrap();
    assert_eq!(told(&found, "retention_bias"), "rows with zero_to_one or one_to_zero: 0 measured, 1 needed");
}

#[test]
fn what_the_start_says_and_the_table_would_show_but_does_not_is_set_to_zero() {
    let without = ReliabilityParams { disturb_rber: 0.0, ..planted() };
    let rows = measure(&without, Table::Conditions, &options(2, 20), 0);
    let begin = ReliabilityParams { disturb_rber: 1e-3, disturb_bias: 0.3, ..start() };
    let found = fit(&rows, &begin, FitOptions::default()).unwrap();
    assert!(told(&found, "disturb_rber").starts_with("set to 0: "), "{:?}", found.held);
    assert_eq!((found.params.disturb_rber, found.params.disturb_bias), (0.0, 0.3));
    assert!((found.params.retention_exponent - 0.5).abs() < 0.05);
}

#[test]
fn a_rate_far_beyond_what_was_measured_is_refused_unless_asked_for() {
    let rows = measure(&planted(), Table::Conditions, &options(2, 10), 0);
    let far = |change: fn(&mut ReliabilityParams)| {
        let mut start = start();
        change(&mut start);
        start
    };
    for (start, name) in [
        (far(|p| p.pe_reference_cycles = 100_001.0), "pe_reference_cycles=10000"),
        (far(|p| p.retention_reference_hours = 10_001.0), "retention_reference_hours=1000"),
        (far(|p| p.disturb_reference_reads = 1.01e7), "disturb_reference_reads=1000000"),
    ] {
        let error = fit(&rows, &start, FitOptions::default()).unwrap_err().to_string();
        assert!(error.starts_with("fit: the start's ") && error.contains(name), "{error}");
        fit(&rows, &start, FitOptions { allow_extrapolation: true }).unwrap();
    }
    fit(&rows, &far(|p| p.pe_reference_cycles = 99_999.0), FitOptions::default()).unwrap();
}

#[test]
fn one_row_a_page_tells_the_luck_of_few_programs_or_the_nature_of_many() {
    let one = |repeats| TableOptions {
        cycles: vec![10_000],
        retention_hours: vec![1000.0],
        reads: vec![0],
        ..options(40, repeats)
    };
    let begin = ReliabilityParams { page_sigma: 0.2, dispersion: 0.123, ..start() };
    // What is held of the pages is not taken for luck.
    let planted_pages = ReliabilityParams { page_sigma: 0.4, ..planted() };
    let begin_pages = ReliabilityParams { page_sigma: 0.4, ..begin.clone() };
    let rows = measure(&planted_pages, Table::Pages, &TableOptions { blocks: 80, ..one(1) }, 0);
    let few = fit(&rows, &begin_pages, FitOptions::default()).unwrap();
    assert!(told(&few, "page_sigma").starts_with("rows of a page: 1.0 measured"));
    assert!((few.params.dispersion / 0.6 - 1.0).abs() < 0.3, "{}", few.params.dispersion);
    let all_luck =
        fit(&rows, &ReliabilityParams { page_sigma: 0.0, ..begin.clone() }, FitOptions::default()).unwrap();
    let both = (1.0 + few.params.dispersion) * f64::exp(0.4 * 0.4);
    assert!((both / (1.0 + all_luck.params.dispersion) - 1.0).abs() < 0.05, "{both}");
    let many = fit(&measure(&planted(), Table::Pages, &one(100), 0), &begin, FitOptions::default()).unwrap();
    assert!(told(&many, "dispersion").starts_with("rows of a page: 1.0 measured"));
    assert_eq!(many.params.dispersion, 0.123);
    assert!((many.params.page_sigma / 0.2 - 1.0).abs() < 0.25, "{}", many.params.page_sigma);
}

#[test]
fn tables_without_anything_to_learn_are_refused() {
    let none = fit(&[], &start(), FitOptions::default());
    assert!(matches!(none, Err(ReliabilityError::Fit(_))));
    let rows = read_csv(&b"bits_read,bit_errors\n1000,0\n"[..], "m.csv").unwrap();
    let error = fit(&rows, &start(), FitOptions::default()).unwrap_err().to_string();
    assert_eq!(error, "fit: the measurements have no errors: nothing can be learnt");
    // A single row with errors tells the base rate.
    let rows = read_csv(&b"bits_read,bit_errors\n1000000,50\n"[..], "m.csv").unwrap();
    let found = fit(&rows, &ReliabilityParams::default(), FitOptions::default()).unwrap();
    assert!((found.params.base_rber / 5e-5 - 1.0).abs() < 0.01, "{}", found.params.base_rber);
}

#[test]
fn tables_have_the_columns_that_are_drawn_and_add_up() {
    let one =
        TableOptions { cycles: vec![10_000], retention_hours: vec![1000.0], reads: vec![0], ..options(2, 1) };
    for (table, rows, wanted) in [
        (
            Table::Pages,
            16,
            "block,page,layer,page_type,pe,retention_hours,temperature_c,reads,programs,bits_read,bit_errors,\
             zero_to_one,one_to_zero,rber",
        ),
        (
            Table::Patterns,
            257,
            "pattern,value,ones_fraction,transitions,pe,retention_hours,temperature_c,reads,programs,bits_read,\
             bit_errors,zero_to_one,one_to_zero,rber",
        ),
        (
            Table::Conditions,
            1,
            "pe,retention_hours,temperature_c,reads,programs,bits_read,bit_errors,zero_to_one,one_to_zero,rber,\
             model_rber",
        ),
    ] {
        let mut csv = Vec::new();
        write_table(table, &planted(), &one, &mut csv).unwrap();
        let text = String::from_utf8(csv.clone()).unwrap();
        assert_eq!(text.lines().next(), Some(wanted));
        let measured = read_csv(csv.as_slice(), "t.csv").unwrap();
        assert_eq!(measured.len(), rows);
        let bits: u64 = measured.iter().map(|row| row.bits_read).sum();
        assert_eq!(bits, 2048 * 16 * if table == Table::Patterns { 257 } else { 1 });
        let mut again = Vec::new();
        write_table(table, &planted(), &one, &mut again).unwrap();
        assert_eq!(again, csv, "the same seed gives the same table");
        write_table(table, &planted(), &TableOptions { seed: 6, ..one.clone() }, &mut again).unwrap();
        assert_ne!(&again[csv.len()..], csv);
    }
    // The formula beside what was measured.
    let mut csv = Vec::new();
    write_table(Table::Conditions, &planted(), &options(4, 20), &mut csv).unwrap();
    for line in String::from_utf8(csv).unwrap().lines().skip(1) {
        let cells: Vec<f64> = line.split(',').map(|cell| cell.parse().unwrap()).collect();
        // 640 programs, each over-dispersed.
        let mu = cells[10] * cells[5];
        let deviation = (mu + 0.6 / 640.0 * mu * mu).sqrt();
        assert!((cells[6] - mu).abs() < 5.0 * deviation, "{line}");
    }
}

#[test]
fn options_that_cannot_be_are_refused() {
    let error = |options: TableOptions| {
        write_table(Table::Pages, &planted(), &options, &mut Vec::new()).unwrap_err().to_string()
    };
    let fine = || options(2, 1);
    assert_eq!(error(TableOptions { blocks: 0, ..fine() }), "rber: blocks is 0: it must be 1 or more");
    assert!(error(TableOptions { repeats: 0, ..fine() }).contains("repeats is 0"));
    assert!(error(TableOptions { reads: vec![], ..fine() }).contains("reads is a list of 0"));
    assert!(
        error(TableOptions { retention_hours: vec![f64::NAN], ..fine() }).contains("retention_hours is NaN")
    );
    assert!(error(TableOptions { repeats: u32::MAX, ..fine() }).contains("programs: measure less"));
    assert!(error(TableOptions { blocks: u32::MAX, ..fine() }).contains("programs: measure less"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn any_table_gives_sound_parameters_or_a_refusal(
        rows in proptest::collection::vec(
            (
                prop_oneof![Just(0.0f64), Just(1.0), Just(1e9), 0.0f64..1e6],
                prop_oneof![Just(0.0f64), Just(1e9), 0.0f64..1e5],
                prop_oneof![Just(0.0f64), Just(1e18), 0.0f64..1e7],
                prop_oneof![Just(None), (-55.0f64..200.0).prop_map(Some)],
                (1u64..1 << 53, any::<u64>(), any::<u64>(), any::<bool>()),
                (any::<Option<u8>>(), any::<Option<bool>>(), any::<Option<bool>>()),
            ),
            1..12,
        ),
    ) {
        let rows: Vec<Measurement> = rows
            .into_iter()
            .map(|(cycles, retention_hours, reads, temperature_c, counts, (value, block, page))| {
                let (bits_read, errors, up, directed) = counts;
                let bit_errors = errors % (bits_read + 1);
                Measurement {
                    source: 0,
                    block: block.map(u32::from),
                    page: page.map(u32::from),
                    cycles,
                    retention_hours,
                    temperature_c,
                    reads,
                    value,
                    ones_fraction: 0.5,
                    transitions: 0.5,
                    programs: None,
                    bits_read,
                    bit_errors,
                    zero_to_one: directed.then_some(up % (bit_errors + 1)),
                }
            })
            .collect();
        if let Ok(found) = fit(&rows, &start(), FitOptions { allow_extrapolation: true }) {
            prop_assert_eq!(ReliabilityParams::parse(&found.to_toml(), "found").unwrap(), found.params);
        }
    }
}
