//! The rate of bit errors: what cycles, time, temperature, reads and the data do to it.
//!
//! The invariant: a rate is finite, from 0 to [`MAX_RATE`], and never falls as cycles, time or reads grow.

use super::ReliabilityParams;
use serde::{Deserialize, Serialize};

/// A cell that is wrong half of the time holds nothing more to lose.
pub const MAX_RATE: f64 = 0.5;

const BOLTZMANN_EV_PER_K: f64 = 8.617_333e-5;
const KELVIN: f64 = 273.15;
const NS_PER_HOUR: f64 = 3.6e12;

/// What a page has been through, in the formula's terms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// Erases of its block.
    pub cycles: f64,
    /// Hours since it was programmed, as if at the reference temperature.
    pub retention_hours: f64,
    /// Reads of the block since its erase.
    pub reads: f64,
}

/// Error rates per bit of each value, for a place of factor 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Of a bit written 0: it reads 1.
    pub zero_to_one: f64,
    /// Of a bit written 1: it reads 0.
    pub one_to_zero: f64,
}

impl Rates {
    /// The sum of power laws (Kim, Choi, Min, FAST 2019), each term with its own bias. docs/spi-error-model.md has the formula.
    pub fn of(params: &ReliabilityParams, conditions: &Conditions) -> Rates {
        // What holds data was erased once, where anything is.
        let cycles = conditions.cycles.max(1.0) / params.pe_reference_cycles;
        let hours = conditions.retention_hours / params.retention_reference_hours;
        let reads = conditions.reads / params.disturb_reference_reads;
        // Powers cost, and most terms are mostly absent.
        let term = |rate: f64, factor: &dyn Fn() -> f64| if rate == 0.0 { 0.0 } else { rate * factor() };
        let terms = [
            (params.base_rber, params.base_bias),
            (term(params.wear_rber, &|| cycles.powf(params.pe_exponent)), params.wear_bias),
            (
                term(params.retention_rber, &|| {
                    cycles.powf(params.retention_pe_exponent) * hours.powf(params.retention_exponent)
                }),
                params.retention_bias,
            ),
            (
                term(params.disturb_rber, &|| {
                    cycles.powf(params.disturb_pe_exponent) * reads.powf(params.disturb_exponent)
                }),
                params.disturb_bias,
            ),
        ];
        let sum = |sign: f64| {
            let sum: f64 = terms.iter().map(|(rate, bias)| rate * (1.0 + sign * bias)).sum();
            // A power of a silly number overflows: that is the most, too.
            if sum.is_finite() { sum.clamp(0.0, 1e6) } else { 1e6 }
        };
        Rates { zero_to_one: sum(1.0), one_to_zero: sum(-1.0) }
    }

    /// The rate of one bit of a byte at a place: by its value, and by how its neighbours in the byte differ from it. Bits of
    /// other bytes do not count, so that it does not matter how much of a page is read at once.
    pub fn of_bit(&self, place_factor: f64, interference: f64, byte: u8, bit: u32) -> f64 {
        let rate = if byte >> bit & 1 == 0 { self.zero_to_one } else { self.one_to_zero };
        let neighbours = 1.0 + interference * (2.0 * differing_neighbours(byte, bit) - 1.0);
        (place_factor * rate * neighbours).clamp(0.0, MAX_RATE)
    }

    /// The largest that [`Rates::of_bit`] can give.
    pub(super) fn most(&self, place_factor: f64, interference: f64) -> f64 {
        let worst = self.zero_to_one.max(self.one_to_zero) * (1.0 + interference.abs());
        (place_factor * worst).clamp(0.0, MAX_RATE)
    }
}

/// The share of a bit's neighbours in its byte that differ from it: of two, or of one at the ends.
pub fn differing_neighbours(byte: u8, bit: u32) -> f64 {
    let at = |n: u32| byte >> n & 1;
    match bit {
        0 => f64::from(at(0) ^ at(1)),
        7 => f64::from(at(7) ^ at(6)),
        bit if bit < 7 => f64::from((at(bit) ^ at(bit - 1)) + (at(bit) ^ at(bit + 1))) / 2.0,
        _ => 0.0,
    }
}

/// Arrhenius: how many hours at the reference temperature one at `temperature_c` is worth.
pub fn acceleration(params: &ReliabilityParams, temperature_c: f64) -> f64 {
    let inverse = |celsius: f64| 1.0 / (celsius.max(-200.0) + KELVIN);
    let exponent = params.activation_energy_ev / BOLTZMANN_EV_PER_K
        * (inverse(params.reference_temperature_c) - inverse(temperature_c));
    exponent.clamp(-600.0, 600.0).exp()
}

/// The temperatures a chip has had: with them, the time that passed can be told in hours at the reference temperature. Save it
/// with the chip's state, or data would age anew at the present temperature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThermalHistory {
    /// In the order of their starts; never empty.
    spans: Vec<Span>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Span {
    from_ns: u64,
    /// Reference hours that had passed by then.
    hours_before: f64,
    /// Reference hours that pass in an hour.
    factor: f64,
    temperature_c: f64,
}

impl ThermalHistory {
    /// As many changes are kept one by one; older ones become one of the mean temperature's effect.
    const MAX_SPANS: usize = 4096;

    pub(super) fn new(params: &ReliabilityParams) -> ThermalHistory {
        let factor = acceleration(params, params.temperature_c);
        let first = Span { from_ns: 0, hours_before: 0.0, factor, temperature_c: params.temperature_c };
        ThermalHistory { spans: vec![first] }
    }

    /// Whether numbers of a saved history can be.
    pub(super) fn is_sound(&self) -> bool {
        let number = |x: f64| x.is_finite() && x >= 0.0;
        !self.spans.is_empty()
            && self.spans.windows(2).all(|two| two[0].from_ns < two[1].from_ns)
            && self.spans.iter().all(|span| {
                number(span.hours_before)
                    && number(span.factor)
                    && (-55.0..=200.0).contains(&span.temperature_c)
            })
    }

    pub(super) fn temperature_c(&self) -> f64 {
        self.spans.last().map_or(0.0, |span| span.temperature_c)
    }

    /// From `now_ns` on it is `temperature_c`. A time before the last change counts as that of the last change.
    pub(super) fn change(&mut self, now_ns: u64, temperature_c: f64, factor: f64) {
        let Some(last) = self.spans.last_mut() else { return };
        if now_ns <= last.from_ns {
            (last.factor, last.temperature_c) = (factor, temperature_c);
            return;
        }
        let hours_before = self.hours_at(now_ns);
        self.spans.push(Span { from_ns: now_ns, hours_before, factor, temperature_c });
        if self.spans.len() > ThermalHistory::MAX_SPANS {
            let (first, third) = (self.spans[0], self.spans[2]);
            let clock_hours = (third.from_ns - first.from_ns) as f64 / NS_PER_HOUR;
            self.spans[0].factor = (third.hours_before - first.hours_before) / clock_hours;
            self.spans.remove(1);
        }
    }

    fn hours_at(&self, ns: u64) -> f64 {
        let after = self.spans.partition_point(|span| span.from_ns <= ns);
        match self.spans.get(after.saturating_sub(1)) {
            Some(span) => {
                span.hours_before + ns.saturating_sub(span.from_ns) as f64 / NS_PER_HOUR * span.factor
            }
            None => 0.0,
        }
    }

    /// Reference hours between two times; 0 if the second is not the later.
    pub(super) fn hours_between(&self, from_ns: u64, to_ns: u64) -> f64 {
        (self.hours_at(to_ns) - self.hours_at(from_ns)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_neighbours_of_a_bit_are_those_in_its_byte() {
        assert_eq!(differing_neighbours(0b0000_0001, 0), 1.0);
        assert_eq!(differing_neighbours(0b0000_0001, 1), 0.5);
        assert_eq!(differing_neighbours(0b0000_0001, 7), 0.0);
        assert_eq!(differing_neighbours(0b1000_0000, 7), 1.0);
        assert!((0..8).all(|bit| differing_neighbours(0x55, bit) == 1.0));
        assert!((0..8).all(|bit| differing_neighbours(0xff, bit) == 0.0));
        // Over all bytes half of the neighbours differ, so that random data has the factor 1.
        let sum: f64 = (0..=255u8).flat_map(|b| (0..8).map(move |bit| differing_neighbours(b, bit))).sum();
        assert_eq!(sum, 1024.0);
    }

    #[test]
    fn arrhenius_has_the_acceleration_of_the_closed_form() {
        let params = ReliabilityParams { activation_energy_ev: 1.1, ..ReliabilityParams::default() };
        assert_eq!(acceleration(&params, 25.0), 1.0);
        // JESD218's client class: 96 hours at 66 C stand for 500 hours at 52 C, by 1.1 eV.
        let ratio = acceleration(&params, 66.0) / acceleration(&params, 52.0);
        assert!((ratio - 500.0 / 96.0).abs() < 0.25, "{ratio}");
        assert_eq!(acceleration(&ReliabilityParams::default(), 150.0), 1.0);
    }

    #[test]
    fn time_counts_at_the_temperature_that_it_was_spent_at() {
        let hour = NS_PER_HOUR as u64;
        let mut history = ThermalHistory::new(&ReliabilityParams::default());
        history.change(10 * hour, 85.0, 100.0);
        history.change(20 * hour, 25.0, 1.0);
        assert_eq!(history.hours_between(0, 10 * hour), 10.0);
        assert_eq!(history.hours_between(5 * hour, 12 * hour), 205.0);
        assert_eq!(history.hours_between(0, 30 * hour), 1020.0);
        assert_eq!(history.hours_between(30 * hour, 0), 0.0);
        // Cooling takes nothing back, and many changes lose nothing of what has passed.
        let before = history.hours_between(0, 30 * hour);
        for n in 0..10_000 {
            history.change((30 + n) * hour, 25.0, 1.0 + (n % 2) as f64);
        }
        assert!(history.spans.len() <= ThermalHistory::MAX_SPANS && history.is_sound());
        let all = history.hours_between(0, 10_030 * hour);
        assert!((all - before - 15_000.0).abs() < 1e-6, "{all}");
    }
}
