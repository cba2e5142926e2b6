//! The mixing function behind everything that a chip draws: its unique ID, its bad blocks, and through
//! [`crate::reliability`] its times and errors.
//!
//! The output function of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).

/// The step of SplitMix64's counter.
pub(crate) const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's output function.
pub(crate) fn scramble(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// A number that looks random, the same for the same `key`.
pub(crate) fn mix(key: u64) -> u64 {
    scramble(key.wrapping_add(GOLDEN))
}
