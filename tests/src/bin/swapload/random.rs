//! Seeded numbers, evenly and unevenly distributed.

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// In `0..bound`; 0 when that is empty.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// In `0.0..1.0`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Bits well mixed.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Numbers of which small ones are likely: Gray et al., "Quickly generating billion-record synthetic databases" (SIGMOD 1994),
/// with the constant of YCSB, 0.99.
pub(crate) struct Zipf {
    items: u64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

const THETA: f64 = 0.99;

impl Zipf {
    pub(crate) fn new(items: u64) -> Self {
        let items = items.max(2);
        let zeta: f64 = (1..=items).map(|n| (n as f64).powf(-THETA)).sum();
        let two = 1.0 + 0.5_f64.powf(THETA);
        let eta = (1.0 - (2.0 / items as f64).powf(1.0 - THETA)) / (1.0 - two / zeta);
        Self { items, zeta, alpha: 1.0 / (1.0 - THETA), eta }
    }

    /// In `0..items`, 0 the likeliest.
    pub(crate) fn next(&self, random: &mut Random) -> u64 {
        let u = random.unit();
        let scaled = u * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(THETA) {
            return 1;
        }
        let found = self.items as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha);
        (found as u64).min(self.items - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_their_bound_and_fill_it_evenly() {
        let mut random = Random::new(1);
        let mut seen = [0_u32; 10];
        (0..10_000).for_each(|_| seen[random.below(10) as usize] += 1);
        assert!(seen.iter().all(|count| (800..1200).contains(count)), "{seen:?}");
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn the_first_of_a_thousand_is_as_likely_as_the_distribution_says() {
        let (zipf, mut random) = (Zipf::new(1000), Random::new(2));
        let drawn = 200_000;
        let first = (0..drawn).filter(|_| zipf.next(&mut random) == 0).count() as f64 / f64::from(drawn);
        let zeta: f64 = (1..=1000).map(|n| f64::from(n).powf(-THETA)).sum();
        assert!((first - 1.0 / zeta).abs() < 0.005, "{first} and not {}", 1.0 / zeta);
    }
}
