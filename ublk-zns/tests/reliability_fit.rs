//! Tables of a chip with known parameters are fitted, and the parameters come back within the stated tolerances.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use ublk_zns::reliability::{
    Chip, ErrorParams, Measurement,
    fit::{Fit, fit},
    read_csv,
    tables::{RberOptions, condition_table, page_table, pattern_table},
};

type Table =
    fn(&ErrorParams, &RberOptions, &mut Vec<u8>) -> Result<(), ublk_zns::reliability::ReliabilityError>;

fn measure(table: Table, params: &ErrorParams, options: &RberOptions) -> Vec<Measurement> {
    let mut text = Vec::new();
    table(params, options, &mut text).unwrap();
    read_csv(&text[..], "table.csv").unwrap()
}

/// A chip to measure: a smaller stack, so that the test is fast.
fn truth() -> ErrorParams {
    let changes = [
        "layers=8",
        "pages_per_block=24",
        "page_bytes=4096",
        "base_rber=8e-4",
        "wear_rber=6e-3",
        "pe_exponent=1.6",
        "retention_rber=5e-3",
        "retention_pe_exponent=0.5",
        "retention_exponent=0.45",
        "disturb_rber=4e-3",
        "disturb_pe_exponent=0.6",
        "disturb_exponent=1.2",
        "block_sigma=0.2",
        "layer_profile=[1.5,1,0.8,1,1.3]",
        "layer_sigma=0.01",
        "page_type_factors=[0.8,1.3,0.9]",
        "dispersion=0.06",
        "zero_bias=0.3",
        "interference=0.2",
    ];
    ErrorParams::built_in("tlc-3d").unwrap().with(&changes).unwrap()
}

/// What someone who knows the chip's shape and nothing else would start from.
fn start() -> ErrorParams {
    let changes =
        ["layers=8", "pages_per_block=24", "layer_profile=[1,1,1,1,1]", "page_type_factors=[1,1,1]"];
    ErrorParams::built_in("tlc-3d").unwrap().with(&changes).unwrap()
}

fn campaign() -> RberOptions {
    RberOptions {
        seed: 42,
        blocks: 12,
        page_stride: 1,
        repeats: 1,
        pe_cycles: vec![1.0, 600.0, 3000.0],
        retention_hours: vec![0.0, 200.0, 8760.0],
        reads: vec![0.0, 60_000.0, 250_000.0],
    }
}

fn near(name: &str, found: f64, want: f64, relative: f64) {
    assert!((found / want - 1.0).abs() <= relative, "{name}: {found}, and it was made with {want}");
}

#[test]
fn the_parameters_of_a_measured_chip_are_found_again() {
    let truth = truth();
    let mut measured = measure(page_table, &truth, &campaign());
    let patterns = RberOptions { blocks: 6, page_stride: 3, repeats: 1, ..campaign() };
    let worn =
        RberOptions { pe_cycles: vec![3000.0], retention_hours: vec![8760.0], reads: vec![0.0], ..patterns };
    // Of the 258 patterns every sixth.
    let mut rows = measure(pattern_table, &truth, &worn);
    measured.extend(rows.drain(..).step_by(6).map(|row| Measurement { source: 1, ..row }));
    let found = fit(&measured, &start()).unwrap();
    let params = &found.params;
    assert!(found.held.is_empty(), "{:?}", found.held);
    // A fit cannot know that the blocks measured are better or worse than the chip's mean block: the rates are theirs.
    let chip = Chip::new(&truth, campaign().seed).unwrap();
    let blocks = (0..campaign().blocks).map(|block| chip.block_factor(0, block)).sum::<f64>()
        / f64::from(campaign().blocks);
    near("base_rber", params.base_rber, 8e-4 * blocks, 0.05);
    near("wear_rber", params.wear_rber, 6e-3 * blocks, 0.05);
    near("retention_rber", params.retention_rber, 5e-3 * blocks, 0.05);
    near("disturb_rber", params.disturb_rber, 4e-3 * blocks, 0.05);
    near("pe_exponent", params.pe_exponent, 1.6, 0.06);
    near("retention_pe_exponent", params.retention_pe_exponent, 0.5, 0.06);
    near("retention_exponent", params.retention_exponent, 0.45, 0.06);
    near("disturb_pe_exponent", params.disturb_pe_exponent, 0.6, 0.06);
    near("disturb_exponent", params.disturb_exponent, 1.2, 0.06);
    near("zero_bias", params.zero_bias, 0.3, 0.03);
    near("interference", params.interference, 0.2, 0.1);
    near("dispersion", params.dispersion, 0.06, 0.1);
    near("block_sigma", params.block_sigma, 0.2, 0.4);
    for (found, want) in params.page_type_factors.iter().zip([0.8, 1.3, 0.9]) {
        near("page_type_factors", *found, want, 0.02);
    }
    // The chip's own layers: the profile with each one's noise of 1 %, which only layer_sigma takes up.
    let layer = |layer: u32| (0..3).map(|page| chip.page_factor(layer * 3 + page)).sum::<f64>() / 3.0;
    let all = (0..8).map(layer).sum::<f64>() / 8.0;
    for number in 0..8u32 {
        let place = f64::from(number) * 4.0 / 7.0;
        let low = (place as usize).min(3);
        let (a, b) = (params.layer_profile[low].ln(), params.layer_profile[low + 1].ln());
        near("layer_profile", (a + (b - a) * (place - low as f64)).exp(), layer(number) / all, 0.03);
    }
    assert!(params.layer_sigma > 0.001 && params.layer_sigma < 0.03, "{}", params.layer_sigma);
    assert!((found.pearson - 1.0).abs() < 0.05 && found.rms_log_residual < 0.25, "{found:?}");
    // The standard errors are of the size of the errors made, blocks' common part apart.
    for one in found.fitted.iter().filter(|one| ["pe_exponent", "disturb_exponent"].contains(&one.name)) {
        let error = one.standard_error.unwrap();
        assert!(error > 1e-4 && error < 0.1, "{one:?}");
    }
    let again = ErrorParams::parse(&found.to_toml(), "found.toml").unwrap();
    assert_eq!(&again, params);
}

#[test]
fn a_chip_without_dispersion_or_variation_is_found_to_have_none() {
    let same = [
        "block_sigma=0",
        "layer_sigma=0",
        "layer_profile=[1,1]",
        "page_type_factors=[1,1,1]",
        "dispersion=0",
    ];
    let truth = truth().with(&same).unwrap();
    let options = RberOptions { blocks: 5, ..campaign() };
    let found = fit(&measure(page_table, &truth, &options), &start()).unwrap();
    assert!(found.params.dispersion < 2e-3, "{}", found.params.dispersion);
    assert!(found.params.block_sigma < 0.01 && found.params.layer_sigma < 0.01, "{:?}", found.params);
    assert!(found.params.layer_profile.iter().all(|point| (point - 1.0).abs() < 0.03));
    // Without blocks that vary, the rates are found closely.
    near("wear_rber", found.params.wear_rber, 6e-3, 0.03);
    near("base_rber", found.params.base_rber, 8e-4, 0.06);
    near("pe_exponent", found.params.pe_exponent, 1.6, 0.04);
}

#[test]
fn planar_flash_is_fitted_with_its_edges_and_page_types() {
    let truth = ErrorParams::built_in("mlc-2d").unwrap();
    let options = RberOptions {
        blocks: 4,
        page_stride: 1,
        pe_cycles: vec![300.0, 1500.0, 3000.0],
        ..RberOptions::new(&truth)
    };
    let start = truth.with(&["edge_factor=1", "page_type_factors=[1,1]"]).unwrap();
    let found = fit(&measure(page_table, &truth, &options), &start).unwrap();
    near("edge_factor", found.params.edge_factor, 1.6, 0.06);
    near("msb", found.params.page_type_factors[1], 1.333, 0.02);
    assert!(
        found.held.contains(&"disturb_rber") && found.held.contains(&"retention_rber"),
        "{:?}",
        found.held
    );
    assert_eq!(found.params.disturb_rber, truth.disturb_rber, "held");
}

#[test]
fn sums_over_places_tell_the_curve() {
    let truth = truth().with(&["block_sigma=0"]).unwrap();
    let options = RberOptions { blocks: 4, page_stride: 1, repeats: 1, ..campaign() };
    let found: Fit = fit(&measure(condition_table, &truth, &options), &start()).unwrap();
    near("pe_exponent", found.params.pe_exponent, 1.6, 0.06);
    near("wear_rber", found.params.wear_rber, 6e-3, 0.08);
    near("retention_exponent", found.params.retention_exponent, 0.45, 0.06);
    assert_eq!(found.params.block_sigma, start().block_sigma, "held: there are no blocks");
}

#[test]
fn measurements_that_tell_nothing_are_an_error_and_a_single_one_tells_its_rate() {
    let error = |rows: &[Measurement]| fit(rows, &start()).unwrap_err().to_string();
    assert!(error(&[]).contains("nothing can be learnt"));
    let read = |text: &str| read_csv(text.as_bytes(), "m.csv").unwrap();
    assert!(error(&read("bits_read,bit_errors\n100,0\n")).contains("no errors"));
    assert!(error(&read("bits_read,bit_errors,page\n100,1,24\n")).contains("page 24 is measured"));
    let only =
        start().with(&["base_rber=1e-9", "wear_rber=0", "retention_rber=0", "disturb_rber=0"]).unwrap();
    let found = fit(&read("pe,bits_read,bit_errors\n0,1000000,1234\n"), &only).unwrap();
    near("base_rber", found.params.base_rber, 1.234e-3, 1e-4);
}

#[test]
fn tables_have_a_line_for_every_place_pattern_and_condition() {
    let params = truth();
    let text = |table: Table, options: &RberOptions| {
        let mut text = Vec::new();
        table(&params, options, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    };
    let options = RberOptions { blocks: 2, page_stride: 7, ..campaign() };
    let pages = text(page_table, &options);
    assert_eq!(pages.lines().count(), 1 + 2 * 4 * 27);
    assert!(pages.starts_with("block,page,wordline,layer,page_type,pe,"));
    assert!(pages.lines().nth(2).unwrap().starts_with("0,7,2,2,csb,1,0,0,4,32768,"), "{pages:.300}");
    assert_eq!(pages, text(page_table, &options));
    assert_ne!(pages, text(page_table, &RberOptions { seed: 43, ..options.clone() }));
    let one =
        RberOptions { pe_cycles: vec![3000.0], retention_hours: vec![0.0], reads: vec![0.0], ..options };
    let patterns = text(pattern_table, &one);
    assert_eq!(patterns.lines().count(), 1 + 258);
    let row = |name: &str| {
        let line = patterns.lines().find(|line| line.starts_with(name)).unwrap();
        line.split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    let flips = |name: &str| (row(name)[10].parse::<u64>().unwrap(), row(name)[11].parse::<u64>().unwrap());
    // Of all zeros every error is 0 to 1; of ones, 1 to 0; of half and half, as the bias says: 1.3 to 0.7.
    assert!(
        flips("0x00,").0 > 1000 && flips("0x00,").1 == 0 && flips("0xff,").0 == 0 && flips("0xff,").1 > 100
    );
    let (up, down) = flips("random,");
    assert!((up as f64 / (up + down) as f64 - 0.65).abs() < 0.02, "{up} {down}");
    let conditions = text(condition_table, &campaign());
    assert_eq!(conditions.lines().count(), 1 + 27);
    for line in conditions.lines().skip(1) {
        let cell = |i: usize| line.split(',').nth(i).unwrap().parse::<f64>().unwrap();
        // Measured beside the formula, over 12 x 24 x 4 codewords.
        assert!((cell(6) / cell(7) - 1.0).abs() < 0.03, "{line}");
    }
}

#[test]
fn a_table_that_cannot_be_measured_is_refused_by_name() {
    let error =
        |options: RberOptions| page_table(&truth(), &options, &mut Vec::new()).unwrap_err().to_string();
    assert!(error(RberOptions { blocks: 0, ..campaign() }).starts_with("rber: blocks is 0"));
    assert!(error(RberOptions { page_stride: 0, ..campaign() }).starts_with("rber: page_stride is 0"));
    assert!(
        error(RberOptions { repeats: u32::MAX, blocks: u32::MAX, ..campaign() }).contains("measure less")
    );
    assert!(error(RberOptions { pe_cycles: vec![], ..campaign() }).starts_with("rber: pe is a list of 0"));
    assert!(error(RberOptions { reads: vec![-1.0], ..campaign() }).starts_with("rber: reads is -1"));
    assert!(
        error(RberOptions { retention_hours: vec![f64::NAN], ..campaign() })
            .contains("retention_hours is NaN")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_text_is_measurements_or_one_line_that_says_where(text in "(bits_read|bit_errors|pe|,|\n|[0-9.e-]|#|x){0,40}") {
        if let Err(error) = read_csv(text.as_bytes(), "m.csv") {
            let error = error.to_string();
            prop_assert!(error.starts_with("m.csv, line ") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn any_assignment_is_taken_or_refused_in_one_line(field in "[a-z_]{0,24}", value in "\\PC{0,20}") {
        let mut params = truth();
        for assignment in [format!("{field}={value}"), format!("pe_exponent={value}"), value.clone()] {
            match params.set(&assignment) {
                Ok(()) => prop_assert!(params.check("x").is_ok()),
                Err(error) => prop_assert!(!error.to_string().contains('\n'), "{error}"),
            }
        }
    }
}

proptest! {
    // A fit takes a while.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_measurements_are_fitted_or_refused(
        rows in prop::collection::vec((0u64..5000, 0.0..5000f64, 0.0..9000f64, 0.0..1e6f64, 0u32..4, 0u32..24), 1..12),
    ) {
        let measured: Vec<Measurement> = rows
            .iter()
            .map(|(errors, pe, hours, reads, block, page)| {
                let text = format!("bits_read,bit_errors,pe,retention_hours,reads,block,page\n8192,{errors},{pe},{hours},{reads},{block},{page}\n");
                read_csv(text.as_bytes(), "m.csv").unwrap().remove(0)
            })
            .collect();
        if let Ok(found) = fit(&measured, &start()) {
            prop_assert!(found.params.check("found").is_ok());
            prop_assert!(ErrorParams::parse(&found.to_toml(), "found.toml").is_ok(), "{}", found.to_toml());
        }
    }
}
