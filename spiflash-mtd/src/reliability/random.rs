//! Numbers that look random and are a function of what they are for.
//!
//! The invariant: two uses ([`Use`]) never share a number, and the same key gives the same number on every run. The mixing is
//! that of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014); normal variates are
//! Box and Muller's (1958), gamma variates Marsaglia's and Tsang's ("A Simple Method for Generating Gamma Variables", 2000).

use crate::rng::{GOLDEN, scramble as mix};
use std::f64::consts::TAU;

/// What a number is for.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
pub(super) enum Use {
    BlockRate = 1,
    LayerRate,
    PageRate,
    PageLuck,
    WeakCells,
    ReadNoise,
    Endurance,
    Intermittence,
    StuckAtZero,
    StuckAtOne,
    BlockTime,
    PageTime,
    EraseDraw,
    ProgramDraw,
    CutProgram,
    CutErase,
    Flicker,
    WriteError,
    WriteErrorCell,
    RowEndurance,
    RowCells,
}

/// A number for a use and what tells its instances apart.
pub(super) fn hash<const N: usize>(seed: u64, what: Use, parts: [u64; N]) -> u64 {
    let start = mix(seed.wrapping_add(GOLDEN.wrapping_mul(what as u64)));
    parts.iter().fold(start, |state, part| mix((state ^ part).wrapping_add(GOLDEN)))
}

/// A number above 0 and below 1: the middle of one of 2^53 steps.
pub(super) fn unit(bits: u64) -> f64 {
    ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// As many numbers as one wants, from one key.
#[derive(Debug, Clone)]
pub(super) struct Stream(u64);

impl Stream {
    pub(super) fn new(key: u64) -> Stream {
        Stream(key)
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    pub(super) fn unit(&mut self) -> f64 {
        unit(self.bits())
    }

    /// A whole number below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// Mean 1.
    pub(super) fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }

    /// Mean 0, deviation 1.
    pub(super) fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (TAU * self.unit()).cos()
    }

    /// Gamma distributed with this shape, scaled to the mean 1.
    pub(super) fn gamma_of_mean_one(&mut self, shape: f64) -> f64 {
        // A shape below 1 is had from the shape above it.
        let (raised, boost) =
            if shape < 1.0 { (shape + 1.0, self.unit().powf(1.0 / shape)) } else { (shape, 1.0) };
        let d = raised - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v * boost / shape;
            }
        }
    }
}

/// A normal variate of a key: mean 0, deviation 1.
pub(super) fn normal(key: u64) -> f64 {
    Stream::new(key).normal()
}

/// A lognormal factor of a key, whose mean is 1; `sigma` is the deviation of its logarithm.
pub(super) fn factor_of_mean_one(key: u64, sigma: f64) -> f64 {
    if sigma == 0.0 { 1.0 } else { (sigma * normal(key) - 0.5 * sigma * sigma).exp() }
}

/// The cells of something in the order of their weakness: the weakest first, each with its level.
///
/// Each cell has a level that is exponentially distributed with mean 1, all independent: exactly the first event of a Poisson
/// process of rate 1. The processes of n cells together are one of rate n whose events fall on cells uniformly. So the
/// weakest cells come from spacings of mean 1/n, and none of the others is looked at. A cell can come again, with a higher
/// level: its first is the one that counts.
#[derive(Debug, Clone)]
pub(super) struct WeakestFirst {
    stream: Stream,
    level: f64,
    cells: u64,
}

impl WeakestFirst {
    pub(super) fn new(key: u64, cells: u64) -> WeakestFirst {
        WeakestFirst { stream: Stream::new(key), level: 0.0, cells: cells.max(1) }
    }
}

impl Iterator for WeakestFirst {
    type Item = (f64, u64);

    fn next(&mut self) -> Option<(f64, u64)> {
        self.level += self.stream.exponential() / self.cells as f64;
        Some((self.level, self.stream.below(self.cells)))
    }
}

/// The logarithm of the gamma function for x above 0: Stirling's series, from where it is exact enough.
pub(super) fn ln_gamma(mut x: f64) -> f64 {
    let mut below = 0.0;
    while x < 12.0 {
        below += x.ln();
        x += 1.0;
    }
    let inverse = 1.0 / (x * x);
    let series = (1.0 / 12.0 - inverse * (1.0 / 360.0 - inverse * (1.0 / 1260.0 - inverse / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * TAU.ln() + series - below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variates_have_the_moments_they_promise() {
        let n = 40_000;
        let moments = |mut draw: Box<dyn FnMut() -> f64>| {
            let all: Vec<f64> = (0..n).map(|_| draw()).collect();
            let mean = all.iter().sum::<f64>() / f64::from(n);
            (mean, all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n))
        };
        let close = |(mean, variance): (f64, f64), m: f64, v: f64| {
            // Five standard errors of the mean; 8 % for the variance.
            assert!((mean - m).abs() < 5.0 * (v / f64::from(n)).sqrt(), "mean {mean}, not {m}");
            assert!((variance / v - 1.0).abs() < 0.08, "variance {variance}, not {v}");
        };
        let mut stream = Stream::new(1);
        close(moments(Box::new(move || stream.normal())), 0.0, 1.0);
        let mut stream = Stream::new(2);
        close(moments(Box::new(move || stream.exponential())), 1.0, 1.0);
        for shape in [0.5, 1.0, 4.0, 50.0] {
            let mut stream = Stream::new(3);
            close(moments(Box::new(move || stream.gamma_of_mean_one(shape))), 1.0, 1.0 / shape);
        }
        let mut key = 0;
        let lognormal = move || {
            key += 1;
            factor_of_mean_one(hash(7, Use::BlockRate, [key]), 0.4)
        };
        close(moments(Box::new(lognormal)), 1.0, 0.16f64.exp() - 1.0);
    }

    #[test]
    fn uses_and_parts_give_different_numbers() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..8 {
            for a in 0..8 {
                for b in 0..8 {
                    assert!(seen.insert(hash(seed, Use::BlockRate, [a, b])));
                    assert!(seen.insert(hash(seed, Use::PageRate, [a, b])));
                }
                assert!(seen.insert(hash(seed, Use::PageRate, [a])));
            }
        }
    }

    #[test]
    fn the_weakest_cells_have_exponential_levels() {
        // The share of 1000 cells whose first level is below x must be 1 - exp(-x), also for large x.
        for x in [0.01f64, 0.5] {
            let mut hit = 0u32;
            for key in 0..200 {
                let cells = WeakestFirst::new(hash(5, Use::WeakCells, [key]), 1000).take_while(|c| c.0 < x);
                let distinct: std::collections::HashSet<u64> = cells.map(|(_, cell)| cell).collect();
                hit += distinct.len() as u32;
            }
            let (found, wanted) = (f64::from(hit) / 200_000.0, 1.0 - (-x).exp());
            assert!(
                (found - wanted).abs() < 5.0 * (wanted * (1.0 - wanted) / 200_000.0).sqrt(),
                "{found} {wanted}"
            );
        }
    }

    #[test]
    fn ln_gamma_is_the_logarithm_of_factorials() {
        let mut ln_factorial = 0.0;
        for n in 1..60 {
            assert!((ln_gamma(f64::from(n)) - ln_factorial).abs() < 1e-10, "{n}");
            ln_factorial += f64::from(n).ln();
        }
        assert!((ln_gamma(0.5) - (TAU / 2.0).sqrt().ln()).abs() < 1e-10);
    }
}
