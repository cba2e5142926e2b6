//! Finding the parameters of a measured chip.
//!
//! Maximum likelihood, in turns until it stays: the curve over conditions (`curve`), the factors of blocks and pages, and the
//! dispersion. The invariant: what the measurements cannot tell is held at its starting value and listed with the reason, and a
//! rate is not stated at a reference far beyond what was measured unless that is asked for.

mod curve;

use super::{Measurement, ReliabilityError, ReliabilityParams, differing_neighbours};
use curve::{N, NUMBERS, OF_TERM, Row, TERMS};
use std::collections::HashMap;
use std::fmt::Write;

/// Turns at most.
const ROUNDS: usize = 20;
/// A reference may be as many times the greatest value measured.
const REACH: f64 = 10.0;
/// A term of which fewer errors are expected cannot be told from none.
const FEW_ERRORS: f64 = 3.0;
/// Rows of a page that it takes to tell the page from its luck.
const ROWS_PER_PAGE: f64 = 3.0;
/// Or so many programs a row: then its luck is averaged out.
const PROGRAMS_PER_ROW: f64 = 20.0;
/// A standard error of the dispersion's logarithm above this means that it is not told.
const VAGUE_DISPERSION: f64 = 0.5;

/// How to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FitOptions {
    /// State rates at references more than ten times what was measured.
    pub allow_extrapolation: bool,
}

/// A parameter that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// Its name in [`ReliabilityParams`].
    pub name: &'static str,
    /// Its standard error: of its logarithm for a rate, of itself for the rest; `None` where there is no estimate.
    pub standard_error: Option<f64>,
}

/// A parameter that was held at the start's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its name in [`ReliabilityParams`].
    pub name: &'static str,
    /// Why the measurements do not tell it.
    pub why: String,
}

/// What a fit found.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The parameters: those found, and the rest as at the start.
    pub params: ReliabilityParams,
    /// Which were found.
    pub fitted: Vec<Fitted>,
    /// Which could not be told.
    pub held: Vec<Held>,
    /// Measurements.
    pub rows: usize,
    /// Bit errors in them.
    pub bit_errors: u64,
    /// Logarithm of the likelihood, up to what does not depend on the parameters.
    pub ln_likelihood: f64,
    /// Root mean square of the logarithm of measured over expected errors, half an error added to both.
    pub rms_log_residual: f64,
    /// Mean of (measured - expected)² over the expected variance: about 1 for a model that fits.
    pub pearson: f64,
    /// The measurement least like the model: its number from 0, and its residual in deviations.
    pub worst: (usize, f64),
}

/// Finds the likeliest parameters. `start` gives the shape, the references, and the values of what cannot be told.
///
/// # Errors
/// [`ReliabilityError::Fit`] if there is nothing to learn from, or a rate would be stated far beyond what was measured;
/// [`ReliabilityError::Value`] for a `start` out of range.
pub fn fit(
    measured: &[Measurement],
    start: &ReliabilityParams,
    options: FitOptions,
) -> Result<Fit, ReliabilityError> {
    start.check("the fit's start")?;
    let mut rows: Vec<Row> = measured.iter().map(|row| formula_row(row, start)).collect();
    let bit_errors: u64 = measured.iter().map(|row| row.bit_errors).sum();
    if bit_errors == 0 {
        return Err(ReliabilityError::Fit("the measurements have no errors: nothing can be learnt".into()));
    }
    let mut told = curve::told(&rows, start);
    if !options.allow_extrapolation {
        refuse_extrapolation(&told.reach, start)?;
    }
    let mut places = Places::new(measured, &mut rows, start);
    let mut params = curve::good_start(&rows, start, &free(&told.why_not));
    loop {
        settle(&mut rows, &mut params, &mut places, &free(&told.why_not));
        if places.tell_dispersion() && curve::likeliest_dispersion(&rows, &params).1 > VAGUE_DISPERSION {
            places.vague_dispersion = true;
            params.dispersion = start.dispersion;
            continue;
        }
        let Some(i) = not_told(&rows, &mut params, start, &mut told.why_not) else { break };
        // Held: its start's value, and all anew.
        (NUMBERS[i].put)(
            &mut params,
            if told_absent(&told.why_not[i]) { 0.0 } else { (NUMBERS[i].get)(start) },
        );
    }
    let free = free(&told.why_not);
    let errors = curve::standard_errors(&rows, &params, &free, params.dispersion);
    let residuals = residuals(&rows, &params);
    let ln_likelihood = curve::ln_likelihood(&rows, &params, params.dispersion);
    let mut fitted: Vec<Fitted> = (0..N)
        .filter(|i| free[*i])
        .map(|i| Fitted { name: NUMBERS[i].name, standard_error: errors[i].is_finite().then_some(errors[i]) })
        .collect();
    let mut held: Vec<Held> =
        (0..N).filter_map(|i| Some(Held { name: NUMBERS[i].name, why: told.why_not[i].clone()? })).collect();
    places.report(&rows, &mut params, &mut fitted, &mut held);
    params.check("the fitted parameters")?;
    Ok(Fit { params, fitted, held, rows: rows.len(), bit_errors, ln_likelihood, ..residuals })
}

fn free(why_not: &[Option<String>; N]) -> [bool; N] {
    std::array::from_fn(|i| why_not[i].is_none())
}

const ABSENT: &str = "set to 0: the measurements do not have it, and would show what the start says";

fn told_absent(why: &Option<String>) -> bool {
    why.as_deref() == Some(ABSENT)
}

fn refuse_extrapolation(
    reach: &[(&'static str, f64)],
    start: &ReliabilityParams,
) -> Result<(), ReliabilityError> {
    for (name, most) in reach {
        let reference = match *name {
            "pe_reference_cycles" => start.pe_reference_cycles,
            "retention_reference_hours" => start.retention_reference_hours,
            _ => start.disturb_reference_reads,
        };
        if reference > most * REACH {
            return Err(ReliabilityError::Fit(format!(
                "the start's {name} is {reference}, and the most measured {most}: a rate there would be extrapolated; set \
                 {name}={most}, or allow it"
            )));
        }
    }
    Ok(())
}

/// A measurement in the formula's terms.
fn formula_row(row: &Measurement, start: &ReliabilityParams) -> Row {
    let (shares, interfered) = match row.value {
        Some(byte) => {
            let (mut shares, mut interfered) = ([0.0; 2], [0.0; 2]);
            for bit in 0..8 {
                let value = usize::from(byte >> bit & 1);
                shares[value] += 0.125;
                interfered[value] += 0.125 * (2.0 * differing_neighbours(byte, bit) - 1.0);
            }
            (shares, interfered)
        }
        None => {
            let shares = [1.0 - row.ones_fraction, row.ones_fraction];
            (shares, shares.map(|share| share * (2.0 * row.transitions - 1.0)))
        }
    };
    let page_bits = f64::from(start.page_bytes) * 8.0;
    Row {
        cycles: row.cycles,
        hours: row.retention_hours,
        temperature_c: row.temperature_c.unwrap_or(start.temperature_c),
        reads: row.reads,
        shares,
        interfered,
        bits: row.bits_read as f64,
        programs: row.programs.map_or(row.bits_read as f64 / page_bits, |programs| programs as f64).max(1.0),
        errors: row.bit_errors as f64,
        zero_to_one: row.zero_to_one.map(|count| count as f64),
        place: 1.0,
        place_variance: 0.0,
    }
}

/// Curve, places and dispersion in turns, until the likelihood stays.
fn settle(rows: &mut [Row], params: &mut ReliabilityParams, places: &mut Places, free: &[bool; N]) {
    let mut likelihood = f64::NEG_INFINITY;
    for round in 0..ROUNDS {
        *params = curve::climb(rows, params, free, params.dispersion);
        places.fit(rows, params);
        if places.tell_dispersion() {
            params.dispersion = curve::likeliest_dispersion(rows, params).0;
        }
        let now = curve::ln_likelihood(rows, params, params.dispersion);
        let gain = now - std::mem::replace(&mut likelihood, now);
        if round > 2 && gain.abs() < 0.02 + curve::RESOLUTION * now.abs() {
            break;
        }
    }
}

/// The next number that the rows turn out not to tell, if there is one: it is marked. A rate of no errors takes the rest of its
/// term along; it is 0 where the start's would have shown, and else the start's.
fn not_told(
    rows: &[Row],
    params: &mut ReliabilityParams,
    start: &ReliabilityParams,
    why_not: &mut [Option<String>; N],
) -> Option<usize> {
    let found = curve::errors_by_term(rows, params);
    let of_start = curve::errors_by_term(rows, start);
    let would_show = |term: usize| of_start[term] > 3.0 * found[term] + 10.0 * FEW_ERRORS;
    let hold_term = |params: &mut ReliabilityParams, why_not: &mut [Option<String>; N], term: usize| {
        for i in OF_TERM[term] {
            (NUMBERS[*i].put)(params, (NUMBERS[*i].get)(start));
            why_not[*i].get_or_insert_with(|| format!("no errors from {}", NUMBERS[term].name));
        }
    };
    if let Some(term) = (0..TERMS).find(|term| why_not[*term].is_none() && found[*term] < FEW_ERRORS) {
        let why = format!("{:.1} of the errors are from it, {FEW_ERRORS} needed", found[term]);
        why_not[term] = Some(if would_show(term) { ABSENT.into() } else { why });
        hold_term(params, why_not, term);
        return Some(term);
    }
    let errors = curve::standard_errors(rows, params, &free(why_not), params.dispersion);
    let vagueness = |i: &usize| errors[*i] / NUMBERS[*i].vague;
    let worst =
        (0..N).filter(|i| why_not[*i].is_none()).max_by(|a, b| vagueness(a).total_cmp(&vagueness(b)))?;
    if vagueness(&worst) <= 1.0 {
        return None;
    }
    let size = if errors[worst] < 10.0 { format!("{:.2}", errors[worst]) } else { "above 10".into() };
    why_not[worst] = Some(format!("its standard error would be {size}, more than {}", NUMBERS[worst].vague));
    if worst < TERMS && would_show(worst) {
        why_not[worst] = Some(ABSENT.into());
        hold_term(params, why_not, worst);
    }
    Some(worst)
}

fn residuals(rows: &[Row], params: &ReliabilityParams) -> Fit {
    let (mut log, mut pearson, mut worst) = (0.0, 0.0, (0, 0.0f64));
    for (number, row) in rows.iter().enumerate() {
        let mean: f64 = curve::expected(params, row).iter().sum();
        log += ((row.errors + 0.5) / (mean + 0.5)).ln().powi(2);
        let variance = (mean + row.excess(params.dispersion) * mean * mean).max(1e-12);
        let residual = (row.errors - mean) / variance.sqrt();
        pearson += residual * residual;
        if residual.abs() > worst.1.abs() {
            worst = (number, residual);
        }
    }
    let n = rows.len() as f64;
    Fit {
        params: ReliabilityParams::default(),
        fitted: Vec::new(),
        held: Vec::new(),
        rows: rows.len(),
        bit_errors: 0,
        ln_likelihood: 0.0,
        rms_log_residual: (log / n).sqrt(),
        pearson: pearson / n,
        worst,
    }
}

/// Groups of rows that share a place: blocks, or pages.
#[derive(Debug)]
struct Groups {
    /// Of each row.
    of_row: Vec<Option<usize>>,
    factors: Vec<f64>,
    /// Variance of the factor.
    variance: f64,
    /// Whether the mean factor is 1: not if other groups are what the rates are of.
    of_mean_one: bool,
}

impl Groups {
    fn new<K: std::hash::Hash + Eq>(keys: impl Iterator<Item = Option<K>>) -> Groups {
        let mut known = HashMap::new();
        let of_row: Vec<Option<usize>> = keys
            .map(|key| {
                let next = known.len();
                key.map(|key| *known.entry(key).or_insert(next))
            })
            .collect();
        Groups { of_row, factors: vec![1.0; known.len()], variance: 0.0, of_mean_one: true }
    }

    fn rows_each(&self) -> f64 {
        self.of_row.iter().flatten().count() as f64 / self.factors.len().max(1) as f64
    }

    /// The factors, given those of everything else. The variance by moments; each factor the mean of its posterior for a gamma
    /// prior of that variance, so that a group with few errors does not take its luck for its nature.
    fn fit(&mut self, rows: &mut [Row], params: &ReliabilityParams) {
        #[derive(Default, Clone, Copy)]
        struct Seen {
            errors: f64,
            mean: f64,
            variance: f64,
            weighted_errors: f64,
            weighted_mean: f64,
        }
        let mut seen = vec![Seen::default(); self.factors.len()];
        for (row, group) in rows.iter_mut().zip(&self.of_row) {
            let Some(group) = *group else { continue };
            row.place /= self.factors[group];
            let mean: f64 = curve::expected(params, row).iter().sum();
            let excess = row.excess(params.dispersion) * mean;
            let seen = &mut seen[group];
            seen.errors += row.errors;
            seen.mean += mean;
            seen.variance += mean * (1.0 + excess);
            seen.weighted_errors += row.errors / (1.0 + excess);
            seen.weighted_mean += mean / (1.0 + excess);
        }
        let squares: f64 = seen.iter().map(|s| s.mean * s.mean).sum();
        let beyond: f64 = seen.iter().map(|s| (s.errors - s.mean).powi(2) - s.variance).sum();
        // One of them is taken up by the mean.
        let n = seen.len() as f64;
        self.variance = (beyond / squares.max(1e-12) * n / (n - 1.0).max(1.0)).clamp(1e-6, 10.0);
        for (factor, s) in self.factors.iter_mut().zip(&seen) {
            *factor = (1.0 / self.variance + s.weighted_errors) / (1.0 / self.variance + s.weighted_mean);
        }
        let mean = if self.of_mean_one { self.factors.iter().sum::<f64>() / n } else { 1.0 };
        self.factors.iter_mut().for_each(|factor| *factor /= mean);
        for (row, group) in rows.iter_mut().zip(&self.of_row) {
            row.place *= group.map_or(1.0, |group| self.factors[group]);
        }
    }

    /// The deviation of the logarithm of a lognormal factor of this variance.
    fn sigma(&self) -> f64 {
        self.variance.ln_1p().sqrt().clamp(0.0, 2.0)
    }
}

/// What is told of places. Rows without a block are sums over several, whose mean may be off that of all: each table of them has
/// a factor of its own.
struct Places {
    tables: Groups,
    blocks: Groups,
    pages: Groups,
    programs_per_row: f64,
    vague_dispersion: bool,
}

impl Places {
    fn new(measured: &[Measurement], rows: &mut [Row], start: &ReliabilityParams) -> Places {
        let mut places = Places {
            tables: Groups::new(measured.iter().map(|row| row.block.is_none().then_some(row.source))),
            blocks: Groups::new(measured.iter().map(|row| row.block)),
            pages: Groups::new(measured.iter().map(|row| Some((row.block?, row.page?)))),
            programs_per_row: 0.0,
            vague_dispersion: false,
        };
        places.tables.of_mean_one = places.blocks.factors.is_empty();
        let of_pages = || rows.iter().zip(&places.pages.of_row).filter(|(_, page)| page.is_some());
        let programs: f64 = of_pages().map(|(row, _)| row.programs).sum();
        places.programs_per_row = programs / of_pages().count().max(1) as f64;
        if !places.tell_pages() {
            let variance = (start.page_sigma * start.page_sigma).exp_m1();
            for (row, _) in rows.iter_mut().zip(&places.pages.of_row).filter(|(_, page)| page.is_some()) {
                row.place_variance = variance;
            }
        }
        places
    }

    fn tell_blocks(&self) -> bool {
        self.blocks.factors.len() >= 3
    }

    fn tell_pages(&self) -> bool {
        let enough = self.pages.rows_each() >= ROWS_PER_PAGE || self.programs_per_row >= PROGRAMS_PER_ROW;
        self.pages.factors.len() >= 3 && enough
    }

    /// One row a page cannot tell the page's nature and its luck apart: it tells one of them.
    fn tell_dispersion(&self) -> bool {
        !self.vague_dispersion && (!self.tell_pages() || self.pages.rows_each() >= ROWS_PER_PAGE)
    }

    fn fit(&mut self, rows: &mut [Row], params: &ReliabilityParams) {
        if self.tables.factors.len() + usize::from(!self.tables.of_mean_one) >= 2 {
            self.tables.fit(rows, params);
        }
        if self.tell_blocks() {
            self.blocks.fit(rows, params);
        }
        if self.tell_pages() {
            self.pages.fit(rows, params);
        }
    }

    fn report(
        &self,
        rows: &[Row],
        params: &mut ReliabilityParams,
        fitted: &mut Vec<Fitted>,
        held: &mut Vec<Held>,
    ) {
        let mut hold = |name, why: String| held.push(Held { name, why });
        if self.vague_dispersion {
            let why = format!("the standard error of its logarithm would be more than {VAGUE_DISPERSION}");
            hold("dispersion", why);
        } else if self.tell_dispersion() {
            let (_, error) = curve::likeliest_dispersion(rows, params);
            fitted.push(Fitted { name: "dispersion", standard_error: Some(error * params.dispersion) });
        } else {
            let rows = self.pages.rows_each();
            hold("dispersion", format!("rows of a page: {rows:.1} measured, {ROWS_PER_PAGE} needed"));
        }
        if self.tell_blocks() {
            params.block_sigma = self.blocks.sigma();
            fitted.push(Fitted { name: "block_sigma", standard_error: None });
        } else {
            hold("block_sigma", format!("blocks: {} measured, 3 needed", self.blocks.factors.len()));
        }
        if self.tell_pages() {
            params.page_sigma = self.pages.sigma();
            fitted.push(Fitted { name: "page_sigma", standard_error: None });
        } else {
            let rows = self.pages.rows_each();
            hold("page_sigma", format!("rows of a page: {rows:.1} measured, {ROWS_PER_PAGE} needed"));
        }
        hold("layer_sigma", "layers are not fitted".into());
    }
}

impl Fit {
    /// A parameter file with a table `[fit]` that says how it was found.
    pub fn to_toml(&self) -> String {
        let mut text = self.params.to_toml();
        let digits = |x: f64| format!("{:?}", (x * 1e4).round() / 1e4);
        let quoted = |list: Vec<String>| {
            list.iter().fold(String::new(), |all, one| all + &format!("    \"{one}\",\n"))
        };
        let fitted = self.fitted.iter().map(|found| match found.standard_error {
            Some(error) => format!("{}: standard error {:.3}", found.name, error),
            None => found.name.to_owned(),
        });
        let held = self.held.iter().map(|held| format!("{}: {}", held.name, held.why));
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n[fit]\nrows = {}\nbit_errors = {}\nln_likelihood = {}\nrms_log_residual = {}\npearson = {}\n\
             worst_row = {}\nworst_residual = {}\nfitted = [\n{}]\nheld = [\n{}]\n",
            self.rows,
            self.bit_errors,
            digits(self.ln_likelihood),
            digits(self.rms_log_residual),
            digits(self.pearson),
            self.worst.0,
            digits(self.worst.1),
            quoted(fitted.collect()),
            quoted(held.collect())
        );
        text
    }
}
