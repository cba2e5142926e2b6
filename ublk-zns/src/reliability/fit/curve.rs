//! How the rate depends on conditions and data: maximum likelihood for the eleven numbers of the formula.
//!
//! Fisher scoring for a negative binomial mean (McCullagh and Nelder, "Generalized Linear Models", 1989) with the damping of
//! Levenberg and Marquardt, from several starting points. The invariant: a step is only taken if it makes the likelihood
//! greater, so that the search ends; numbers that the data cannot tell stay where they were.

use crate::reliability::{ErrorParams, random::Count};

/// The numbers of the formula, in the order in which they are kept.
pub(super) const NAMES: [&str; N] = [
    "base_rber",
    "wear_rber",
    "pe_exponent",
    "retention_rber",
    "retention_pe_exponent",
    "retention_exponent",
    "disturb_rber",
    "disturb_pe_exponent",
    "disturb_exponent",
    "zero_bias",
    "interference",
];
pub(super) const N: usize = 11;
/// Those that are kept as logarithms: the rates.
const RATES: [usize; 4] = [0, 1, 3, 6];
const EXPONENTS: [usize; 5] = [2, 4, 5, 7, 8];
const BIAS: usize = 9;
const INTERFERENCE: usize = 10;
/// The logarithm of a rate that is as good as 0.
const LN_NOTHING: f64 = -46.0;
const STEPS: usize = 60;
/// Rows from which a start is chosen: enough to tell a good one from a bad one.
const ROWS_FOR_START: usize = 1500;

/// A number for each of [`NAMES`].
pub(super) type Vector = [f64; N];

/// One measurement, in the formula's terms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Logarithm of cycles in units of the reference.
    pub(super) ln_cycles: f64,
    /// The same of retention time; minus infinity for none.
    pub(super) ln_hours: f64,
    /// The same of reads; minus infinity for none.
    pub(super) ln_reads: f64,
    /// Share of ones.
    pub(super) ones: f64,
    /// From -1 (no neighbours differ) to 1 (all do).
    pub(super) change: f64,
    /// Bits read.
    pub(super) bits: f64,
    /// Errors found.
    pub(super) errors: u64,
    /// Of those, from 0 to 1.
    pub(super) zero_to_one: Option<u64>,
    /// Codewords, which share the dispersion.
    pub(super) codewords: f64,
    /// How much worse than the mean its place is.
    pub(super) place: f64,
}

impl Row {
    /// The expected errors, and the derivatives of their logarithm.
    pub(super) fn expected(&self, at: &Vector) -> (f64, Vector) {
        let term = |ln_rate: f64, power: f64| (ln_rate + power).exp();
        let product = |exponent: f64, ln: f64| if ln == f64::NEG_INFINITY { ln } else { exponent * ln };
        let base = at[0].exp();
        let wear = term(at[1], at[2] * self.ln_cycles);
        let retention = term(at[3], at[4] * self.ln_cycles + product(at[5], self.ln_hours));
        let disturb = term(at[6], at[7] * self.ln_cycles + product(at[8], self.ln_reads));
        let sum = base + wear + retention + disturb;
        let finite = |ln: f64| if ln == f64::NEG_INFINITY { 0.0 } else { ln };
        let (hours, reads) = (finite(self.ln_hours), finite(self.ln_reads));
        let bias = 1.0 + at[BIAS] * (1.0 - 2.0 * self.ones);
        let change = 1.0 + at[INTERFERENCE] * self.change;
        let slope = [
            base / sum,
            wear / sum,
            wear / sum * self.ln_cycles,
            retention / sum,
            retention / sum * self.ln_cycles,
            retention / sum * hours,
            disturb / sum,
            disturb / sum * self.ln_cycles,
            disturb / sum * reads,
            (1.0 - 2.0 * self.ones) / bias,
            self.change / change,
        ];
        (self.bits * self.place * sum * bias * change, slope)
    }

    /// The share of errors from 0 to 1 at a bias, and its derivative; `None` where the data has no choice.
    fn flips(&self, bias: f64) -> Option<(f64, f64)> {
        let (zeros, ones) = (1.0 - self.ones, self.ones);
        let sum = zeros * (1.0 + bias) + ones * (1.0 - bias);
        (zeros > 0.0 && ones > 0.0).then(|| (zeros * (1.0 + bias) / sum, 2.0 * zeros * ones / (sum * sum)))
    }

    /// The row's dispersion: its codewords' errors add up.
    pub(super) fn dispersion(&self, dispersion: f64) -> f64 {
        dispersion / self.codewords
    }

    /// What of the likelihood's logarithm depends on the numbers, and not on the dispersion alone.
    fn ln_fit(&self, at: &Vector, dispersion: f64) -> f64 {
        let (mean, spread) = (self.expected(at).0, self.dispersion(dispersion));
        let errors = self.errors as f64;
        let count = match spread * mean {
            small if small < 1e-9 => errors * mean.ln() - mean,
            wide => errors * (mean / (1.0 + wide)).ln() - wide.ln_1p() / spread,
        };
        let flips = self.zero_to_one.and_then(|flips| {
            let (share, _) = self.flips(at[BIAS])?;
            let back = errors - flips as f64;
            Some(flips as f64 * share.ln() + back * (1.0 - share).ln())
        });
        count + flips.unwrap_or(0.0)
    }
}

fn ln_fit(rows: &[Row], at: &Vector, dispersion: f64) -> f64 {
    rows.iter().map(|row| row.ln_fit(at, dispersion)).sum()
}

/// The logarithm of the likelihood of the rows' errors.
pub(super) fn ln_likelihood(rows: &[Row], at: &Vector, dispersion: f64) -> f64 {
    let one =
        |row: &Row| Count::new(row.expected(at).0, row.dispersion(dispersion)).ln_probability(row.errors);
    rows.iter().map(one).sum()
}

/// The numbers of a parameter set.
pub(super) fn from_params(params: &ErrorParams) -> Vector {
    let mut at = [
        params.base_rber,
        params.wear_rber,
        params.pe_exponent,
        params.retention_rber,
        params.retention_pe_exponent,
        params.retention_exponent,
        params.disturb_rber,
        params.disturb_pe_exponent,
        params.disturb_exponent,
        params.zero_bias,
        params.interference,
    ];
    for rate in RATES {
        at[rate] = at[rate].ln().max(LN_NOTHING);
    }
    at
}

/// A number as parameters have it.
pub(super) fn plain(at: &Vector, index: usize) -> f64 {
    match at[index] {
        ln if RATES.contains(&index) && ln <= LN_NOTHING => 0.0,
        ln if RATES.contains(&index) => ln.exp(),
        plain => plain,
    }
}

/// Which numbers the rows can tell: a rate if its condition takes two values, its exponents if it takes more.
pub(super) fn told(rows: &[Row]) -> [bool; N] {
    let distinct = |value: &dyn Fn(&Row) -> f64, those: &dyn Fn(&Row) -> bool| {
        let mut values: Vec<f64> = rows.iter().filter(|row| those(row)).map(value).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        values.len()
    };
    let all = |_: &Row| true;
    let (aged, read) = (|row: &Row| row.ln_hours.is_finite(), |row: &Row| row.ln_reads.is_finite());
    let cycles = distinct(&|row| row.ln_cycles, &all);
    let (ages, some_ages) = (distinct(&|row| row.ln_hours, &all), distinct(&|row| row.ln_hours, &aged));
    let (counts, some_counts) = (distinct(&|row| row.ln_reads, &all), distinct(&|row| row.ln_reads, &read));
    let (retention, disturb) = (ages > 1, counts > 1);
    [
        true,
        cycles > 1,
        cycles > 2,
        retention,
        retention && distinct(&|row| row.ln_cycles, &aged) > 1,
        retention && some_ages > 1,
        disturb,
        disturb && distinct(&|row| row.ln_cycles, &read) > 1,
        disturb && some_counts > 1,
        distinct(&|row| row.ones, &all) > 1 || rows.iter().any(|row| row.zero_to_one.is_some()),
        distinct(&|row| row.change, &all) > 1,
    ]
}

/// The gradient and the Fisher information of the likelihood.
fn score(rows: &[Row], at: &Vector, dispersion: f64) -> (Vector, [Vector; N]) {
    let (mut gradient, mut information) = ([0.0; N], [[0.0; N]; N]);
    for row in rows {
        let (mean, slope) = row.expected(at);
        let spread = 1.0 + row.dispersion(dispersion) * mean;
        let (pull, weight) = ((row.errors as f64 - mean) / spread, mean / spread);
        for i in 0..N {
            gradient[i] += pull * slope[i];
            for j in 0..N {
                information[i][j] += weight * slope[i] * slope[j];
            }
        }
        if let (Some(flips), Some((share, change))) = (row.zero_to_one, row.flips(at[BIAS])) {
            let variance = share * (1.0 - share);
            gradient[BIAS] += (flips as f64 - row.errors as f64 * share) / variance * change;
            information[BIAS][BIAS] += row.errors as f64 * change * change / variance;
        }
    }
    (gradient, information)
}

/// Solves a symmetric positive definite system (Cholesky); `None` if it is not.
pub(super) fn solve(matrix: &[Vec<f64>], right: &[f64]) -> Option<Vec<f64>> {
    let n = right.len();
    let mut low = vec![vec![0.0; n]; n];
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| low[i][k] * low[j][k]).sum();
            let rest = matrix[i][j] - sum;
            if i == j && (rest <= 1e-12 * matrix[i][i] || !rest.is_finite()) {
                return None;
            }
            low[i][j] = if i == j { rest.sqrt() } else { rest / low[j][j] };
        }
    }
    let mut found = right.to_vec();
    for i in 0..n {
        found[i] = (found[i] - (0..i).map(|k| low[i][k] * found[k]).sum::<f64>()) / low[i][i];
    }
    for i in (0..n).rev() {
        found[i] = (found[i] - (i + 1..n).map(|k| low[k][i] * found[k]).sum::<f64>()) / low[i][i];
    }
    Some(found)
}

/// The part of a matrix that belongs to the free numbers.
fn part(information: &[Vector; N], free: &[usize]) -> Vec<Vec<f64>> {
    free.iter().map(|i| free.iter().map(|j| information[*i][*j]).collect()).collect()
}

/// Climbs from `at` to the nearest maximum of the likelihood.
fn climb(rows: &[Row], mut at: Vector, free: &[usize], dispersion: f64) -> (f64, Vector) {
    let mut here = ln_fit(rows, &at, dispersion);
    let mut damping = 1e-3;
    for _ in 0..STEPS {
        let (gradient, information) = score(rows, &at, dispersion);
        let pull: Vec<f64> = free.iter().map(|i| gradient[*i]).collect();
        let mut gain = None;
        while damping < 1e8 {
            let mut matrix = part(&information, free);
            for (i, row) in matrix.iter_mut().enumerate() {
                row[i] += damping * (row[i] + 1e-9);
            }
            let tried = solve(&matrix, &pull).map(|step| {
                let mut tried = at;
                for (i, step) in free.iter().zip(step) {
                    tried[*i] = bounded(*i, at[*i] + step);
                }
                (ln_fit(rows, &tried, dispersion), tried)
            });
            match tried {
                Some((there, tried)) if there > here => {
                    gain = Some(there - here);
                    (here, at) = (there, tried);
                    damping = (damping / 10.0).max(1e-9);
                    break;
                }
                _ => damping *= 10.0,
            }
        }
        if gain.is_none_or(|gain| gain < 1e-8 * (1.0 + here.abs())) {
            break;
        }
    }
    (here, at)
}

fn bounded(index: usize, value: f64) -> f64 {
    match index {
        _ if RATES.contains(&index) => value.clamp(LN_NOTHING, 0.5f64.ln()),
        2 | 5 | 8 => value.clamp(0.01, 8.0),
        4 | 7 => value.clamp(0.0, 8.0),
        _ => value.clamp(-0.95, 0.95),
    }
}

/// The likeliest numbers, from `start`.
pub(super) fn climb_from(rows: &[Row], start: Vector, told: &[bool; N], dispersion: f64) -> Vector {
    let free: Vec<usize> = (0..N).filter(|i| told[*i]).collect();
    climb(rows, start, &free, dispersion).1
}

/// A good place to climb from: the best of what is reached, on a part of the rows, from `start` and from other exponents
/// and shares of the terms.
pub(super) fn good_start(rows: &[Row], start: Vector, told: &[bool; N]) -> Vector {
    let free: Vec<usize> = (0..N).filter(|i| told[*i]).collect();
    let some: Vec<Row> = rows.iter().step_by(rows.len().div_ceil(ROWS_FOR_START)).copied().collect();
    let errors: f64 = some.iter().map(|row| row.errors as f64).sum();
    let scaled = |mut at: Vector| {
        // A start whose errors are as many as were found.
        let expected: f64 = some.iter().map(|row| row.expected(&at).0).sum();
        for rate in RATES {
            at[rate] = bounded(rate, at[rate] + (errors.max(1.0) / expected).ln());
        }
        at
    };
    let mut starts = vec![start, scaled(start)];
    for exponents in [[1.0, 0.5, 0.5, 0.5, 1.0], [2.0, 0.5, 0.5, 0.5, 1.5], [1.5, 1.0, 1.0, 1.0, 1.0]] {
        let mut at = start;
        for (i, exponent) in EXPONENTS.iter().zip(exponents).filter(|(i, _)| told[**i]) {
            at[*i] = exponent;
        }
        for rate in RATES.iter().filter(|rate| told[**rate]) {
            at[*rate] = -7.0;
        }
        starts.push(scaled(at));
    }
    let climbed = starts.into_iter().map(|start| climb(&some, start, &free, 0.0));
    climbed.max_by(|a, b| a.0.total_cmp(&b.0)).map_or(start, |best| best.1)
}

/// Standard errors of the numbers as parameters have them; `None` for those that are held or not told apart.
pub(super) fn standard_errors(
    rows: &[Row],
    at: &Vector,
    told: &[bool; N],
    dispersion: f64,
) -> [Option<f64>; N] {
    let free: Vec<usize> = (0..N).filter(|i| told[*i] && plain(at, *i) != 0.0).collect();
    let matrix = part(&score(rows, at, dispersion).1, &free);
    let mut errors = [None; N];
    for (place, index) in free.iter().enumerate() {
        let mut right = vec![0.0; free.len()];
        right[place] = 1.0;
        let scale = if RATES.contains(index) { plain(at, *index) } else { 1.0 };
        errors[*index] = solve(&matrix, &right).map(|column| column[place].sqrt() * scale);
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let mut rows = Vec::new();
        for cycles in [0.1f64, 0.5, 1.0] {
            for hours in [0.0f64, 0.01, 1.0] {
                for reads in [0.0f64, 0.5, 3.0] {
                    rows.push(Row {
                        ln_cycles: cycles.ln(),
                        ln_hours: hours.ln(),
                        ln_reads: reads.ln(),
                        ones: 0.25 + hours / 4.0,
                        change: reads / 4.0,
                        bits: 1e6,
                        errors: 1000 + (cycles * 3000.0) as u64,
                        zero_to_one: Some(600),
                        codewords: 122.0,
                        place: 1.2,
                    });
                }
            }
        }
        rows
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_likelihood() {
        let at = from_params(&ErrorParams {
            wear_rber: 2e-3,
            zero_bias: 0.2,
            ..ErrorParams::built_in("tlc-3d").unwrap()
        });
        for dispersion in [0.0, 0.3] {
            let (gradient, _) = score(&rows(), &at, dispersion);
            for i in 0..N {
                let step = 1e-5;
                let moved = |by: f64| {
                    let mut at = at;
                    at[i] += by;
                    ln_fit(&rows(), &at, dispersion)
                };
                let slope = (moved(step) - moved(-step)) / (2.0 * step);
                assert!(
                    (gradient[i] - slope).abs() < 1e-4 * slope.abs().max(1.0),
                    "{}: {} {slope}",
                    NAMES[i],
                    gradient[i]
                );
            }
        }
    }

    #[test]
    fn a_system_is_solved_and_a_singular_one_refused() {
        let found = solve(&[vec![4.0, 2.0], vec![2.0, 3.0]], &[2.0, 5.0]).unwrap();
        assert!((found[0] + 0.5).abs() < 1e-12 && (found[1] - 2.0).abs() < 1e-12, "{found:?}");
        assert!(solve(&[vec![1.0, 1.0], vec![1.0, 1.0]], &[1.0, 1.0]).is_none());
    }

    #[test]
    fn what_never_changes_is_not_told() {
        let mut rows = rows();
        assert_eq!(told(&rows), [true; N]);
        for row in &mut rows {
            (row.ln_hours, row.ones, row.zero_to_one) = (1.0, 0.5, None);
        }
        let told = told(&rows);
        let held: Vec<&str> =
            NAMES.iter().zip(told).filter(|(_, told)| !told).map(|(name, _)| *name).collect();
        assert_eq!(held, ["retention_rber", "retention_pe_exponent", "retention_exponent", "zero_bias"]);
    }
}
