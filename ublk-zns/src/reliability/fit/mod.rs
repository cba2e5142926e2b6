//! Finding the model's parameters from measurements of a chip.
//!
//! Maximum likelihood, in turns until nothing changes: the curve over conditions and data (`curve`), the factors of
//! places (`places`), and the dispersion. docs/error-model.md says which measurements tell which parameters, and how
//! well they are found again. The invariant: what a table cannot tell is held at the starting values, and named.

mod curve;
mod places;

use super::{Chip, ErrorParams, Measurement, ReliabilityError};
use curve::{N, NAMES, Row};
use places::Places;

const ROUNDS: usize = 40;

/// A parameter that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// Its name in [`ErrorParams`].
    pub name: &'static str,
    /// Its standard error, if it has one and the data tells it.
    pub standard_error: Option<f64>,
}

/// What a fit found.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The parameters: those found, and the rest as they were at the start.
    pub params: ErrorParams,
    /// Which of them were found.
    pub fitted: Vec<Fitted>,
    /// Which of the formula's could not be told from the measurements.
    pub held: Vec<&'static str>,
    /// How many measurements there were.
    pub rows: usize,
    /// Logarithm of the likelihood of the measurements.
    pub ln_likelihood: f64,
    /// Root mean square of the logarithm of found over expected errors (half an error added to both).
    pub rms_log_residual: f64,
    /// Mean of (found - expected)² over the expected variance: about 1 for a model that fits.
    pub pearson: f64,
    /// The measurement that is least like the model: its number from 0, and its residual in standard deviations.
    pub worst: (usize, f64),
}

/// Finds the parameters that make `measured` likeliest. `start` gives the chip's shape (cells, layers, pages), the references,
/// the temperature, and the values of what cannot be told.
///
/// # Errors
/// [`ReliabilityError::Fit`] if there is nothing to learn from; [`ReliabilityError::Parameter`] for a `start` that cannot be.
pub fn fit(measured: &[Measurement], start: &ErrorParams) -> Result<Fit, ReliabilityError> {
    let chip = Chip::new(start, 0)?;
    if let Some(row) = measured.iter().find(|row| row.page.is_some_and(|page| page >= start.pages_per_block))
    {
        return Err(ReliabilityError::Fit(format!(
            "page {} is measured, and pages_per_block is {}: set it to the chip's",
            row.page.unwrap_or_default(),
            start.pages_per_block
        )));
    }
    let mut rows: Vec<Row> = measured.iter().map(|row| formula_row(row, &chip)).collect();
    if rows.iter().all(|row| row.errors == 0) {
        return Err(ReliabilityError::Fit(
            "the measurements have no errors: nothing can be learnt from them".into(),
        ));
    }
    let told = curve::told(&rows);
    let mut places = Places::new(measured, &chip);
    let mut dispersion = 0.0;
    let mut at = curve::good_start(&rows, curve::from_params(start), &told);
    let mut likelihood = f64::NEG_INFINITY;
    for round in 0..ROUNDS {
        places.fit(&mut rows, &at, dispersion);
        // It changes little once the rest is near.
        if round < 3 || round % 8 == 0 {
            dispersion = likeliest_dispersion(&rows, &at);
        }
        at = curve::climb_from(&rows, at, &told, dispersion);
        let now = curve::ln_likelihood(&rows, &at, dispersion);
        let gain = now - std::mem::replace(&mut likelihood, now);
        if round > 3 && gain.abs() < 0.02 {
            break;
        }
    }
    let mut params = start.clone();
    params.dispersion = dispersion;
    for i in (0..N).filter(|i| told[*i]) {
        put(&mut params, NAMES[i], curve::plain(&at, i));
    }
    let errors = curve::standard_errors(&rows, &at, &told, dispersion);
    let mut fitted: Vec<Fitted> =
        (0..N).filter(|i| told[*i]).map(|i| Fitted { name: NAMES[i], standard_error: errors[i] }).collect();
    let others = places.put_into(&mut params).into_iter().chain(["dispersion"]);
    fitted.extend(others.map(|name| Fitted { name, standard_error: None }));
    params.check("the fitted parameters")?;
    Ok(Fit {
        params,
        fitted,
        held: (0..N).filter(|i| !told[*i]).map(|i| NAMES[i]).collect(),
        rows: rows.len(),
        ln_likelihood: likelihood,
        ..residuals(&rows, &at, dispersion)
    })
}

/// A measurement in the formula's terms.
fn formula_row(row: &Measurement, chip: &Chip) -> Row {
    let params = chip.params();
    let codewords = row.codewords.map_or(row.bits_read as f64 / chip.codeword_bits() as f64, |n| n as f64);
    Row {
        ln_cycles: (row.pe_cycles.max(1.0) / params.pe_reference_cycles).ln(),
        ln_hours: (chip.reference_hours(row.retention_hours) / params.retention_reference_hours).ln(),
        ln_reads: (row.reads / params.disturb_reference_reads).ln(),
        ones: row.pattern.ones_fraction,
        change: 2.0 * row.pattern.transitions - 1.0,
        bits: row.bits_read as f64,
        errors: row.bit_errors,
        zero_to_one: row.zero_to_one,
        codewords: codewords.max(1.0),
        place: 1.0,
    }
}

fn put(params: &mut ErrorParams, name: &str, value: f64) {
    let field = match name {
        "base_rber" => &mut params.base_rber,
        "wear_rber" => &mut params.wear_rber,
        "pe_exponent" => &mut params.pe_exponent,
        "retention_rber" => &mut params.retention_rber,
        "retention_pe_exponent" => &mut params.retention_pe_exponent,
        "retention_exponent" => &mut params.retention_exponent,
        "disturb_rber" => &mut params.disturb_rber,
        "disturb_pe_exponent" => &mut params.disturb_pe_exponent,
        "disturb_exponent" => &mut params.disturb_exponent,
        "zero_bias" => &mut params.zero_bias,
        _ => &mut params.interference,
    };
    *field = value;
}

/// The dispersion that makes the rows likeliest: golden section over its logarithm, and 0.
fn likeliest_dispersion(rows: &[Row], at: &curve::Vector) -> f64 {
    const SHARE: f64 = 0.618_033_988_749_894_8;
    let likelihood = |ln: f64| curve::ln_likelihood(rows, at, ln.exp());
    let (mut low, mut high) = (1e-5f64.ln(), 50f64.ln());
    let (mut a, mut b) = (high - SHARE * (high - low), low + SHARE * (high - low));
    let (mut at_a, mut at_b) = (likelihood(a), likelihood(b));
    while high - low > 2e-3 {
        if at_a > at_b {
            (high, b, at_b) = (b, a, at_a);
            a = high - SHARE * (high - low);
            at_a = likelihood(a);
        } else {
            (low, a, at_a) = (a, b, at_b);
            b = low + SHARE * (high - low);
            at_b = likelihood(b);
        }
    }
    let best = 0.5 * (low + high);
    if curve::ln_likelihood(rows, at, 0.0) >= likelihood(best) { 0.0 } else { best.exp() }
}

/// How far the rows are from what is expected of them.
fn residuals(rows: &[Row], at: &curve::Vector, dispersion: f64) -> Fit {
    let (mut squares, mut pearson, mut worst) = (0.0, 0.0, (0, 0.0f64));
    for (i, row) in rows.iter().enumerate() {
        let mean = row.expected(at).0;
        let found = row.errors as f64;
        squares += ((found + 0.5) / (mean + 0.5)).ln().powi(2);
        let residual = (found - mean) / (mean + row.dispersion(dispersion) * mean * mean).max(1e-12).sqrt();
        pearson += residual * residual;
        if residual.abs() > worst.1.abs() {
            worst = (i, residual);
        }
    }
    let n = rows.len() as f64;
    Fit {
        params: ErrorParams::default(),
        fitted: Vec::new(),
        held: Vec::new(),
        rows: rows.len(),
        ln_likelihood: 0.0,
        rms_log_residual: (squares / n).sqrt(),
        pearson: pearson / n,
        worst,
    }
}

impl Fit {
    /// A parameter file with what was found and how well, which [`ErrorParams::parse`] reads.
    pub fn to_toml(&self) -> String {
        let list = |names: &[&str]| format!("{names:?}");
        let names: Vec<&str> = self.fitted.iter().map(|one| one.name).collect();
        let mut text = self.params.to_toml();
        text.push_str(&format!(
            "\n[fit]\nrows = {}\nln_likelihood = {:?}\nrms_log_residual = {:?}\npearson = {:?}\nworst_row = {}\nworst_residual = \
             {:?}\nfitted = {}\nheld = {}\n\n[fit.standard_errors]\n",
            self.rows,
            self.ln_likelihood,
            self.rms_log_residual,
            self.pearson,
            self.worst.0,
            self.worst.1,
            list(&names),
            list(&self.held),
        ));
        for one in &self.fitted {
            if let Some(error) = one.standard_error.filter(|error| error.is_finite()) {
                text.push_str(&format!("{} = {error:?}\n", one.name));
            }
        }
        text
    }
}
