//! Random numbers without a state, and the distributions that the error model draws from.
//!
//! The invariant: every draw is a function of a seed and of what it is drawn for (a zone, a page, a codeword...), so that it
//! is the same whenever and in whatever order it is asked for. Counter-based generators are described by Salmon, Moraes,
//! Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the mixing function here is the output function of
//! SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).

use crate::rng::{GOLDEN, mix};

/// Below this a count's dispersion is taken as 0: the difference could not be seen, and the logarithms would cancel.
const LEAST_DISPERSION: f64 = 1e-7;

/// A place in a tree of random numbers. Different paths from the same seed give independent numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(u64);

impl Key {
    /// The root of a seed's tree for one purpose.
    pub(crate) fn new(seed: u64, purpose: u64) -> Key {
        Key(mix(seed)).with(purpose)
    }

    /// The branch `part`.
    pub(crate) fn with(self, part: u64) -> Key {
        Key(mix(self.0.wrapping_add(GOLDEN).wrapping_add(part.wrapping_mul(GOLDEN))))
    }

    /// A number above 0 and below 1, evenly distributed over 2^53 values.
    pub(crate) fn uniform(self) -> f64 {
        ((mix(self.0 ^ GOLDEN) >> 11) as f64 + 0.5) * (1.0 / (1u64 << 53) as f64)
    }

    /// A number of the standard normal distribution (Box and Muller, "A note on the generation of random normal deviates",
    /// 1958).
    pub(crate) fn normal(self) -> f64 {
        let (a, b) = (self.with(1).uniform(), self.with(2).uniform());
        (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
    }

    /// A number of the lognormal distribution whose mean is 1 and whose logarithm has the standard deviation `sigma`.
    pub(crate) fn lognormal(self, sigma: f64) -> f64 {
        if sigma == 0.0 { 1.0 } else { (sigma * self.normal() - 0.5 * sigma * sigma).exp() }
    }
}

/// ln Γ(x) for x > 0, by Lanczos' approximation with g = 7 and nine terms; relative error below 1e-13.
pub(crate) fn ln_gamma(x: f64) -> f64 {
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let sum = TERMS
        .iter()
        .enumerate()
        .fold(0.999_999_999_999_809_9, |sum, (i, term)| sum + term / (x + i as f64 + 1.0));
    let t = x + 7.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

/// A count whose variance is `mean + dispersion * mean²`: the negative binomial distribution, which is a Poisson count
/// whose rate varies as a gamma distribution; Poisson itself at dispersion 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Count {
    mean: f64,
    dispersion: f64,
}

impl Count {
    /// A count with a mean of 0 or more and a dispersion of 0 or more.
    pub(crate) fn new(mean: f64, dispersion: f64) -> Count {
        Count { mean, dispersion: if dispersion < LEAST_DISPERSION { 0.0 } else { dispersion } }
    }

    /// ln P(count = n).
    pub(crate) fn ln_probability(&self, n: u64) -> f64 {
        let (mean, n) = (self.mean, n as f64);
        if mean <= 0.0 {
            return if n == 0.0 { 0.0 } else { f64::NEG_INFINITY };
        }
        if self.dispersion == 0.0 {
            return n * mean.ln() - mean - ln_gamma(n + 1.0);
        }
        let shape = 1.0 / self.dispersion;
        let spread = self.dispersion * mean;
        ln_gamma(shape + n) - ln_gamma(shape) - ln_gamma(n + 1.0) + n * (spread / (1.0 + spread)).ln()
            - shape * spread.ln_1p()
    }

    /// P(count = 0).
    fn nothing(&self) -> f64 {
        if self.dispersion == 0.0 {
            (-self.mean).exp()
        } else {
            (-(self.dispersion * self.mean).ln_1p() / self.dispersion).exp()
        }
    }

    /// The count at the share `u` of the distribution (inversion), at most `most`. It grows with `u` and with the mean.
    pub(crate) fn at(&self, u: f64, most: u64) -> u64 {
        // P(count > 0) is at most the mean: good pages need no logarithm.
        if u < 1.0 - self.mean || self.mean <= 0.0 {
            return 0;
        }
        let nothing = self.nothing();
        if nothing < 1e-290 {
            return self.walk_from_mode(u, most);
        }
        self.walk(u, most, (0, nothing, nothing))
    }

    /// Walks up from a count with its probability and the probability of it or less (Panjer's recursion).
    fn walk(&self, u: f64, most: u64, (mut n, mut probability, mut share): (u64, f64, f64)) -> u64 {
        let rate = self.mean / (1.0 + self.dispersion * self.mean);
        while u > share && n < most {
            let at = n as f64;
            probability *= (1.0 + self.dispersion * at) * rate / (at + 1.0);
            share += probability;
            n += 1;
            // Beyond what a share of 53 bits can tell apart.
            if probability < 1e-19 && at > self.mean {
                break;
            }
        }
        n
    }

    /// The same for means so large that P(count = 0) is not a number a double holds.
    fn walk_from_mode(&self, u: f64, most: u64) -> u64 {
        let mode = (self.mean.min(most as f64)) as u64;
        let at_mode = self.ln_probability(mode).exp();
        let (mut n, mut probability, mut below) = (mode, at_mode, 0.0);
        let rate = self.mean / (1.0 + self.dispersion * self.mean);
        // What is below the mode, and where in it `u` is.
        let mut parts = Vec::new();
        while n > 0 && probability > 1e-19 {
            let at = (n - 1) as f64;
            probability *= (at + 1.0) / ((1.0 + self.dispersion * at) * rate);
            n -= 1;
            below += probability;
            parts.push(probability);
        }
        if u > below {
            return self.walk(u, most, (mode, at_mode, below + at_mode));
        }
        let mut share = 0.0;
        for (i, part) in parts.iter().rev().enumerate() {
            share += part;
            if share >= u {
                return n + i as u64;
            }
        }
        mode
    }

    /// P(count > n), summed term by term on the side of `n` away from the mean.
    pub(crate) fn above(&self, n: u64) -> f64 {
        if self.mean <= 0.0 {
            return 0.0;
        }
        let rate = self.mean / (1.0 + self.dispersion * self.mean);
        let up = |at: f64| (1.0 + self.dispersion * at) * rate / (at + 1.0);
        let below = (n as f64) < self.mean;
        let start = if below { n } else { n.saturating_add(1) };
        let (mut at, mut probability, mut sum) = (start as f64, self.ln_probability(start).exp(), 0.0);
        while probability > sum * 1e-17 {
            sum += probability;
            if below && at == 0.0 {
                break;
            }
            probability *= if below { 1.0 / up(at - 1.0) } else { up(at) };
            at += if below { -1.0 } else { 1.0 };
        }
        if below { (1.0 - sum).max(0.0) } else { sum.min(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_gives_its_published_sequence() {
        // The first outputs of SplitMix64 from state 1234567, as its reference implementation prints them.
        let mut state = 1_234_567u64;
        let mut next = || {
            state = state.wrapping_add(GOLDEN);
            mix(state)
        };
        assert_eq!(next(), 6_457_827_717_110_365_317);
        assert_eq!(next(), 3_203_168_211_198_807_973);
        assert_eq!(next(), 9_817_491_932_198_370_423);
    }

    #[test]
    fn draws_depend_on_every_part_of_their_path() {
        let root = Key::new(1, 2);
        let paths =
            [root, root.with(0), root.with(1), root.with(0).with(1), root.with(1).with(0), Key::new(2, 2)];
        for (i, a) in paths.iter().enumerate() {
            for b in &paths[..i] {
                assert_ne!(a.uniform(), b.uniform());
            }
        }
        assert_eq!(root.with(5).uniform(), Key::new(1, 2).with(5).uniform());
    }

    #[test]
    fn uniform_normal_and_lognormal_have_their_moments() {
        const N: u64 = 200_000;
        let root = Key::new(7, 7);
        let moments = |draw: &dyn Fn(Key) -> f64| {
            let values: Vec<f64> = (0..N).map(|i| draw(root.with(i))).collect();
            let mean = values.iter().sum::<f64>() / N as f64;
            (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / N as f64)
        };
        let near = |(mean, variance): (f64, f64), want: (f64, f64)| {
            // Five standard errors of the mean; for the variance, five of a normal distribution's.
            assert!((mean - want.0).abs() < 5.0 * (want.1 / N as f64).sqrt(), "mean {mean}, want {}", want.0);
            assert!((variance / want.1 - 1.0).abs() < 0.02, "variance {variance}, want {}", want.1);
        };
        near(moments(&Key::uniform), (0.5, 1.0 / 12.0));
        near(moments(&Key::normal), (0.0, 1.0));
        near(moments(&|key| key.lognormal(0.3)), (1.0, 0.09f64.exp() - 1.0));
        assert_eq!(root.lognormal(0.0), 1.0);
    }

    #[test]
    fn ln_gamma_is_the_factorials_logarithm() {
        let mut sum = 0.0;
        for n in 1..2000u32 {
            sum += f64::from(n).ln();
            assert!((ln_gamma(f64::from(n) + 1.0) - sum).abs() < 1e-12 * sum.max(1.0), "{n}");
        }
        assert!((ln_gamma(0.5) - std::f64::consts::PI.sqrt().ln()).abs() < 1e-13);
    }

    #[test]
    fn the_probabilities_of_a_count_sum_to_one_with_its_mean_and_variance() {
        for (mean, dispersion) in
            [(0.01, 0.0), (3.0, 0.0), (3.0, 0.5), (40.0, 0.05), (900.0, 0.02), (900.0, 0.0)]
        {
            let count = Count::new(mean, dispersion);
            let p: Vec<f64> = (0..6000).map(|n| count.ln_probability(n).exp()).collect();
            let moment =
                |f: &dyn Fn(f64) -> f64| p.iter().enumerate().map(|(n, p)| p * f(n as f64)).sum::<f64>();
            assert!((moment(&|_| 1.0) - 1.0).abs() < 1e-9);
            assert!((moment(&|n| n) / mean - 1.0).abs() < 1e-9);
            let variance = moment(&|n| (n - mean).powi(2));
            assert!((variance / (mean + dispersion * mean * mean) - 1.0).abs() < 1e-8, "{variance}");
            let tail: f64 = p[11..].iter().sum();
            assert!((count.above(10) - tail).abs() < 1e-12 + 1e-9 * tail);
        }
    }

    #[test]
    fn inversion_finds_the_count_at_its_share() {
        for (mean, dispersion) in
            [(0.02, 0.0), (0.2, 0.0), (5.0, 0.3), (80.0, 0.1), (1500.0, 0.0), (1500.0, 0.001)]
        {
            let count = Count::new(mean, dispersion);
            for u in [1e-6, 0.01, 0.3, 0.5, 0.9, 0.985, 0.999, 0.999_999] {
                let n = count.at(u, 100_000);
                // At most a share u lies below n, and at least u up to n.
                let up_to = 1.0 - count.above(n);
                let below = if n == 0 { 0.0 } else { 1.0 - count.above(n - 1) };
                assert!(below <= u + 1e-8 && u <= up_to + 1e-8, "{mean} {dispersion} {u}: {n}");
            }
            assert_eq!(count.at(0.999, 2), count.at(0.999, u64::MAX).min(2));
        }
        assert_eq!(Count::new(0.0, 0.1).at(0.999_999_999, 10), 0);
    }

    #[test]
    fn a_count_grows_with_its_mean_and_its_share() {
        let counts =
            |u: f64| [0.1, 1.0, 9.0, 200.0, 698.0, 720.0, 3000.0].map(|m| Count::new(m, 0.04).at(u, 99_999));
        for u in [0.05, 0.5, 0.95] {
            assert!(counts(u).is_sorted(), "{:?}", counts(u));
        }
        for (low, high) in counts(0.2).iter().zip(counts(0.8)) {
            assert!(*low <= high);
        }
    }
}
