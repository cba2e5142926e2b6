//! The curve of the rate over conditions: which numbers of it the data tells, and their likeliest values.
//!
//! Expected errors come from [`Rates::of`], the formula that the chip uses. The errors of a row are negative binomial, and their
//! directions binomial given the errors. Fisher scoring with Levenberg's and Marquardt's damping, slopes by differences, from
//! starts that expectation maximisation over the four terms has made plausible. The invariant: a step never lowers the
//! likelihood, and only free numbers move, inside their ranges.

use crate::reliability::random::ln_gamma;
use crate::reliability::{Conditions, Rates, ReliabilityParams, acceleration};

/// A measurement in the formula's terms.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub cycles: f64,
    /// Hours of the clock, and the temperature at which they passed.
    pub hours: f64,
    pub temperature_c: f64,
    pub reads: f64,
    /// Shares of bits that are 0 and 1; and what interference adds to each.
    pub shares: [f64; 2],
    pub interfered: [f64; 2],
    pub bits: f64,
    pub programs: f64,
    pub errors: f64,
    pub zero_to_one: Option<f64>,
    /// The factor of its place.
    pub place: f64,
    /// Variance of what is not known of that factor.
    pub place_variance: f64,
}

impl Row {
    /// Variance of the errors beyond Poisson, over their mean squared: the luck of its programs and what is not known of its
    /// place.
    pub(super) fn excess(&self, dispersion: f64) -> f64 {
        (1.0 + self.place_variance) * (1.0 + dispersion / self.programs) - 1.0
    }
}

/// How a number moves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// By factors.
    Log,
    /// By sums.
    Plain,
}

/// A number of the curve.
pub(super) struct Number {
    pub name: &'static str,
    pub scale: Scale,
    pub least: f64,
    pub most: f64,
    /// A standard error above this (on its scale) means that the data does not tell it.
    pub vague: f64,
    pub get: fn(&ReliabilityParams) -> f64,
    pub put: fn(&mut ReliabilityParams, f64),
}

macro_rules! number {
    ($field:ident, $scale:expr, $least:expr, $most:expr, $vague:expr) => {
        Number {
            name: stringify!($field),
            scale: $scale,
            least: $least,
            most: $most,
            vague: $vague,
            get: |params| params.$field,
            put: |params, value| params.$field = value,
        }
    };
}

pub(super) const N: usize = 15;
pub(super) const NUMBERS: [Number; N] = [
    number!(base_rber, Scale::Log, 1e-18, 0.5, 0.5),
    number!(wear_rber, Scale::Log, 1e-18, 0.5, 0.5),
    number!(retention_rber, Scale::Log, 1e-18, 0.5, 0.5),
    number!(disturb_rber, Scale::Log, 1e-18, 0.5, 0.5),
    number!(base_bias, Scale::Plain, -1.0, 1.0, 0.4),
    number!(wear_bias, Scale::Plain, -1.0, 1.0, 0.4),
    number!(retention_bias, Scale::Plain, -1.0, 1.0, 0.4),
    number!(disturb_bias, Scale::Plain, -1.0, 1.0, 0.4),
    number!(pe_exponent, Scale::Plain, 0.01, 8.0, 0.5),
    number!(retention_exponent, Scale::Plain, 0.01, 8.0, 0.5),
    number!(disturb_exponent, Scale::Plain, 0.01, 8.0, 0.5),
    number!(retention_pe_exponent, Scale::Plain, 0.0, 8.0, 0.5),
    number!(disturb_pe_exponent, Scale::Plain, 0.0, 8.0, 0.5),
    number!(activation_energy_ev, Scale::Plain, 0.0, 3.0, 0.3),
    number!(interference, Scale::Plain, -0.95, 0.95, 0.3),
];
/// Rates are first, in the order of the terms; each with its bias four places on, and the other numbers of its term.
pub(super) const TERMS: usize = 4;
pub(super) const OF_TERM: [&[usize]; TERMS] = [&[4], &[5, 8], &[6, 9, 11, 13], &[7, 10, 12]];

type Vector = [f64; N];

fn vector(params: &ReliabilityParams) -> Vector {
    std::array::from_fn(|i| {
        let value = (NUMBERS[i].get)(params);
        match NUMBERS[i].scale {
            Scale::Log => value.max(NUMBERS[i].least).ln(),
            Scale::Plain => value,
        }
    })
}

fn put(params: &ReliabilityParams, at: &Vector, free: &[bool; N]) -> ReliabilityParams {
    let mut changed = params.clone();
    for i in (0..N).filter(|i| free[*i]) {
        let value = if NUMBERS[i].scale == Scale::Log { at[i].exp() } else { at[i] };
        (NUMBERS[i].put)(&mut changed, value.clamp(NUMBERS[i].least, NUMBERS[i].most));
    }
    changed
}

/// Errors that the formula expects of a row, of bits that hold 0 and 1.
pub(super) fn expected(params: &ReliabilityParams, row: &Row) -> [f64; 2] {
    let conditions = Conditions {
        cycles: row.cycles,
        retention_hours: row.hours * acceleration(params, row.temperature_c),
        reads: row.reads,
    };
    let rates = Rates::of(params, &conditions);
    let bits = row.bits * row.place;
    let of = |rate: f64, value: usize| {
        bits * rate * (row.shares[value] + params.interference * row.interfered[value]).max(0.0)
    };
    [of(rates.zero_to_one, 0), of(rates.one_to_zero, 1)]
}

/// The likelihood of a row's errors and directions (without what does not depend on parameters).
fn ln_likelihood_of(row: &Row, mu: [f64; 2], dispersion: f64) -> f64 {
    let mean = (mu[0] + mu[1]).max(1e-12);
    let k = row.errors;
    let excess = row.excess(dispersion);
    let of_count = if excess > 0.0 {
        let size = 1.0 / excess;
        ln_gamma(k + size) - ln_gamma(size) - (k + size) * (mean / size).ln_1p() + k * (mean / size).ln()
    } else {
        k * mean.ln() - mean
    };
    let of_direction = row.zero_to_one.map_or(0.0, |up| {
        let part = |count: f64, mu: f64| if count > 0.0 { count * (mu / mean).max(1e-12).ln() } else { 0.0 };
        part(up, mu[0]) + part(k - up, mu[1])
    });
    of_count + of_direction
}

pub(super) fn ln_likelihood(rows: &[Row], params: &ReliabilityParams, dispersion: f64) -> f64 {
    rows.iter().map(|row| ln_likelihood_of(row, expected(params, row), dispersion)).sum()
}

/// How many different values there are, and the least and greatest.
fn spread(values: impl Iterator<Item = f64>) -> (usize, f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.dedup_by(|a, b| (*a - *b).abs() <= 1e-9 * b.abs());
    (values.len(), values.first().copied().unwrap_or(0.0), values.last().copied().unwrap_or(0.0))
}

/// For each number, why the rows cannot tell it; `None` if they may. And, for the terms that they tell, how far the rows reach.
pub(super) struct Told {
    pub why_not: [Option<String>; N],
    /// The name of the reference, and the greatest value measured.
    pub reach: Vec<(&'static str, f64)>,
}

pub(super) fn told(rows: &[Row], params: &ReliabilityParams) -> Told {
    let cycles = spread(rows.iter().map(|row| row.cycles.max(1.0)));
    let hours = spread(rows.iter().map(|row| row.hours));
    let aged = || rows.iter().filter(|row| row.hours > 0.0);
    let read = || rows.iter().filter(|row| row.reads > 0.0);
    let reads = spread(rows.iter().map(|row| row.reads));
    let mut told = Told { why_not: [const { None }; N], reach: Vec::new() };
    let mut need = |names: &[usize], what: &str, found: usize, wanted: usize| {
        if found < wanted {
            for i in names {
                told.why_not[*i].get_or_insert_with(|| format!("{what}: {found} measured, {wanted} needed"));
            }
        }
    };
    need(&[1, 5], "different cycles", cycles.0, 2);
    need(&[8], "different cycles", cycles.0, 3);
    need(&[2, 6], "different retention times", hours.0, 2);
    need(&[9], "different retention times", hours.0, 3);
    need(&[11], "different cycles with retention", spread(aged().map(|row| row.cycles.max(1.0))).0, 2);
    need(&[13], "different temperatures with retention", spread(aged().map(|row| row.temperature_c)).0, 2);
    need(&[3, 7], "different read counts", reads.0, 2);
    need(&[10], "different read counts", reads.0, 3);
    need(&[12], "different cycles with reads", spread(read().map(|row| row.cycles.max(1.0))).0, 2);
    let directions = rows.iter().filter(|row| row.zero_to_one.is_some()).count();
    need(&[4, 5, 6, 7], "rows with zero_to_one or one_to_zero", directions, 1);
    let shapes = spread(rows.iter().map(|row| row.interfered[0] + row.interfered[1])).0;
    need(&[14], "different shares of transitions", shapes, 2);
    if told.why_not[1].is_none() {
        told.reach.push(("pe_reference_cycles", cycles.2));
    }
    if told.why_not[2].is_none() {
        let hours = aged().map(|row| row.hours * acceleration(params, row.temperature_c));
        told.reach.push(("retention_reference_hours", spread(hours).2));
    }
    if told.why_not[3].is_none() {
        told.reach.push(("disturb_reference_reads", reads.2));
    }
    told
}

/// Errors that each term expects over all rows.
pub(super) fn errors_by_term(rows: &[Row], params: &ReliabilityParams) -> [f64; TERMS] {
    std::array::from_fn(|term| {
        let alone = alone(params, term, (NUMBERS[term].get)(params));
        rows.iter().map(|row| expected(&alone, row).iter().sum::<f64>()).sum()
    })
}

fn alone(params: &ReliabilityParams, term: usize, rate: f64) -> ReliabilityParams {
    let mut alone = params.clone();
    (0..TERMS).for_each(|other| (NUMBERS[other].put)(&mut alone, if other == term { rate } else { 0.0 }));
    alone
}

/// Free rates near the likeliest for the present exponents: each error is shared among the terms by what they expect.
fn share_out(rows: &[Row], params: &ReliabilityParams, free: &[bool; N]) -> ReliabilityParams {
    let total: f64 =
        rows.iter().map(|row| row.errors).sum::<f64>() / rows.iter().map(|row| row.bits).sum::<f64>();
    // A term in its unit, for each row.
    let units: Vec<[f64; TERMS]> = {
        let alone: [ReliabilityParams; TERMS] = std::array::from_fn(|term| alone(params, term, 1e-6));
        let of = |row: &Row, term: usize| expected(&alone[term], row).iter().sum::<f64>() * 1e6;
        rows.iter().map(|row| std::array::from_fn(|term| of(row, term))).collect()
    };
    let mut rates: [f64; TERMS] =
        std::array::from_fn(|t| if free[t] { total.max(1e-15) / 4.0 } else { (NUMBERS[t].get)(params) });
    for _ in 0..60 {
        let mut claimed = [0.0; TERMS];
        let mut expected = [0.0; TERMS];
        for (row, units) in rows.iter().zip(&units) {
            let mean: f64 = (0..TERMS).map(|t| rates[t] * units[t]).sum();
            for t in 0..TERMS {
                claimed[t] += if mean > 0.0 { row.errors * rates[t] * units[t] / mean } else { 0.0 };
                expected[t] += units[t];
            }
        }
        for t in (0..TERMS).filter(|t| free[*t] && expected[*t] > 0.0) {
            rates[t] = (claimed[t] / expected[t]).clamp(1e-18, 0.5);
        }
    }
    let mut params = params.clone();
    (0..TERMS).filter(|t| free[*t]).for_each(|t| (NUMBERS[t].put)(&mut params, rates[t]));
    params
}

/// The likeliest of a few starts, each with other exponents.
pub(super) fn good_start(rows: &[Row], params: &ReliabilityParams, free: &[bool; N]) -> ReliabilityParams {
    let mut best = share_out(rows, params, free);
    let mut likelihood = ln_likelihood(rows, &best, 0.0);
    for exponent in [0.5, 1.0, 2.0] {
        let mut start = params.clone();
        for i in (8..=12).filter(|i| free[*i]) {
            (NUMBERS[i].put)(&mut start, exponent);
        }
        let start = share_out(rows, &start, free);
        let found = ln_likelihood(rows, &start, 0.0);
        if found > likelihood {
            (best, likelihood) = (start, found);
        }
    }
    best
}

const STEP: f64 = 1e-4;
/// Steps of one climb: places and dispersion change in between.
const STEPS: usize = 12;
/// A sum of logarithms is not told apart closer than this share of it.
pub(super) const RESOLUTION: f64 = 1e-11;

/// The parameters with each free number a step up, and a step down.
type Neighbours = Vec<(usize, ReliabilityParams, ReliabilityParams)>;

/// Slopes of the log of a row's expected errors, and of the log of the odds of their direction.
fn slopes(row: &Row, neighbours: &Neighbours) -> ([f64; N], [f64; N]) {
    let (mut of_mean, mut of_odds) = ([0.0; N], [0.0; N]);
    for (i, above, below) in neighbours {
        let there = |params: &ReliabilityParams| {
            let mu = expected(params, row);
            ((mu[0] + mu[1]).max(1e-12).ln(), mu[0].max(1e-12).ln() - mu[1].max(1e-12).ln())
        };
        let (above, below) = (there(above), there(below));
        of_mean[*i] = (above.0 - below.0) / (2.0 * STEP);
        of_odds[*i] = (above.1 - below.1) / (2.0 * STEP);
    }
    (of_mean, of_odds)
}

/// The gradient of the likelihood, and Fisher's information.
fn score(
    rows: &[Row],
    params: &ReliabilityParams,
    at: &Vector,
    free: &[bool; N],
    dispersion: f64,
) -> (Vector, [Vector; N]) {
    let (mut gradient, mut information) = ([0.0; N], [[0.0; N]; N]);
    let here = put(params, at, free);
    let moved = |i: usize, by: f64| {
        let mut there = *at;
        there[i] += by;
        put(params, &there, free)
    };
    let neighbours: Neighbours =
        (0..N).filter(|i| free[*i]).map(|i| (i, moved(i, STEP), moved(i, -STEP))).collect();
    for row in rows {
        let mu = expected(&here, row);
        let mean = (mu[0] + mu[1]).max(1e-12);
        let (of_mean, of_odds) = slopes(row, &neighbours);
        let inflation = 1.0 + row.excess(dispersion) * mean;
        let share = mu[0] / mean;
        let directed = row.zero_to_one.filter(|_| mu[0] > 0.0 && mu[1] > 0.0);
        for i in (0..N).filter(|i| free[*i]) {
            gradient[i] += of_mean[i] * (row.errors - mean) / inflation;
            if let Some(up) = directed {
                gradient[i] += of_odds[i] * (up - row.errors * share);
            }
            for j in (0..N).filter(|j| free[*j]) {
                information[i][j] += of_mean[i] * of_mean[j] * mean / inflation;
                if directed.is_some() {
                    information[i][j] += of_odds[i] * of_odds[j] * mean * share * (1.0 - share);
                }
            }
        }
    }
    (gradient, information)
}

/// Solves a symmetric system by elimination; numbers that are not free stay 0. `None` if it has no one solution.
fn solve(mut a: [Vector; N], mut b: Vector, free: &[bool; N]) -> Option<Vector> {
    for i in (0..N).filter(|i| !free[*i]) {
        a[i] = [0.0; N];
        (0..N).for_each(|j| a[j][i] = 0.0);
        (a[i][i], b[i]) = (1.0, 0.0);
    }
    for i in 0..N {
        let pivot = (i..N).max_by(|x, y| a[*x][i].abs().total_cmp(&a[*y][i].abs()))?;
        a.swap(i, pivot);
        b.swap(i, pivot);
        if a[i][i].abs() < 1e-9 {
            return None;
        }
        for j in i + 1..N {
            let factor = a[j][i] / a[i][i];
            let above = a[i];
            (i..N).for_each(|k| a[j][k] -= factor * above[k]);
            b[j] -= factor * b[i];
        }
    }
    for i in (0..N).rev() {
        let known: f64 = (i + 1..N).map(|j| a[i][j] * b[j]).sum();
        b[i] = (b[i] - known) / a[i][i];
    }
    b.iter().all(|x| x.is_finite()).then_some(b)
}

/// The likeliest parameters near `params`.
pub(super) fn climb(
    rows: &[Row],
    params: &ReliabilityParams,
    free: &[bool; N],
    dispersion: f64,
) -> ReliabilityParams {
    let mut at = vector(params);
    let mut likelihood = ln_likelihood(rows, &put(params, &at, free), dispersion);
    let mut damping = 1e-3;
    'steps: for _ in 0..STEPS {
        let (gradient, information) = score(rows, params, &at, free, dispersion);
        loop {
            let mut damped = information;
            (0..N).for_each(|i| damped[i][i] += damping * information[i][i] + 1e-6);
            let step = solve(damped, gradient, free).unwrap_or([0.0; N]);
            // Through the parameters and back, so that it is inside the ranges; and no step of more than some powers of e.
            let there = std::array::from_fn(|i| at[i] + step[i].clamp(-2.0, 2.0));
            let moved = put(params, &there, free);
            let found = ln_likelihood(rows, &moved, dispersion);
            if found > likelihood {
                let gain = found - likelihood;
                (at, likelihood) = (vector(&moved), found);
                damping = (damping / 5.0).max(1e-9);
                if gain < 1e-4 + RESOLUTION * found.abs() {
                    break 'steps;
                }
                break;
            }
            damping *= 5.0;
            if damping > 1e8 {
                break 'steps;
            }
        }
    }
    put(params, &at, free)
}

/// Each free number's standard error on its scale: infinite if the data does not tell it.
pub(super) fn standard_errors(
    rows: &[Row],
    params: &ReliabilityParams,
    free: &[bool; N],
    dispersion: f64,
) -> Vector {
    let (_, mut information) = score(rows, params, &vector(params), free, dispersion);
    // What nothing depends on would make the whole system have no solution.
    (0..N).for_each(|i| information[i][i] += 1e-4);
    std::array::from_fn(|i| {
        let mut unit = [0.0; N];
        unit[i] = 1.0;
        match solve(information, unit, free) {
            Some(column) if free[i] && column[i] > 0.0 => column[i].sqrt(),
            _ => f64::INFINITY,
        }
    })
}

/// The likeliest dispersion for these rates, by golden section over its logarithm, and the standard error of the logarithm.
pub(super) fn likeliest_dispersion(rows: &[Row], params: &ReliabilityParams) -> (f64, f64) {
    let expected: Vec<[f64; 2]> = rows.iter().map(|row| expected(params, row)).collect();
    let likelihood = |ln_dispersion: f64| -> f64 {
        let of = |(row, mu): (&Row, &[f64; 2])| ln_likelihood_of(row, *mu, ln_dispersion.exp());
        rows.iter().zip(&expected).map(of).sum()
    };
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (1e-5f64.ln(), 10f64.ln());
    while high - low > 1e-3 {
        let (a, b) = (high - golden * (high - low), low + golden * (high - low));
        if likelihood(a) > likelihood(b) { high = b } else { low = a }
    }
    let found = 0.5 * (low + high);
    const STEP: f64 = 0.1;
    let curvature =
        (2.0 * likelihood(found) - likelihood(found + STEP) - likelihood(found - STEP)) / (STEP * STEP);
    (found.exp(), if curvature > 0.0 { curvature.sqrt().recip() } else { f64::INFINITY })
}
