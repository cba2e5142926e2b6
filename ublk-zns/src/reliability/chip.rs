//! The raw bit-error rate of a place under given conditions, and what a codeword read there goes through.
//!
//! The invariants: a rate is from 0 to one half; it never falls with cycles, retention time or reads; and the same seed,
//! place, program and conditions always give the same errors. A codeword's luck is one number, its share of the
//! distribution of errors, which stays the same while it ages and in each step of read-retry: a bad codeword stays bad.

use super::{
    ErrorParams, ReliabilityError,
    random::{Count, Key},
};

/// Boltzmann's constant in electronvolts per kelvin (exact in the SI of 2019, here to 10 digits).
const BOLTZMANN_EV_PER_K: f64 = 8.617_333_262e-5;
/// No rate is above this: half of all bits wrong is as bad as chance.
const MAX_RBER: f64 = 0.5;

/// What the random numbers of a chip are for; never change one: it changes every device.
mod purpose {
    pub(super) const BLOCK: u64 = 1;
    pub(super) const LAYER: u64 = 2;
    pub(super) const CODEWORD: u64 = 3;
    pub(super) const FLIPS: u64 = 4;
}

/// What a block has been through.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// Program/erase cycles; at least 1 is counted, since whatever holds data was erased and programmed.
    pub pe_cycles: f64,
    /// Hours since the data was programmed, on the device's clock.
    pub retention_hours: f64,
    /// Page reads of the block since it was erased.
    pub reads: f64,
}

/// What matters of the data for its errors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pattern {
    /// Share of bits that are 1.
    pub ones_fraction: f64,
    /// Share of neighbouring bits that differ.
    pub transitions: f64,
}

impl Pattern {
    /// Random data: half of the bits are 1, half of the neighbours differ.
    pub const RANDOM: Pattern = Pattern { ones_fraction: 0.5, transitions: 0.5 };

    /// The pattern of `data`, its first and last bit taken as neighbours; random for no data. A byte's bits count from its
    /// lowest.
    pub fn of(data: &[u8]) -> Pattern {
        let Some(last) = data.last() else { return Pattern::RANDOM };
        let (mut ones, mut differ, mut before) = (0u64, 0u64, u64::from(last >> 7));
        let mut word = |word: u64, bits: u32| {
            ones += u64::from(word.count_ones());
            let changes = (word ^ (word << 1 | before)) & (u64::MAX >> (64 - bits));
            differ += u64::from(changes.count_ones());
            before = word >> (bits - 1) & 1;
        };
        let (chunks, rest) = data.as_chunks::<8>();
        for chunk in chunks {
            word(u64::from_le_bytes(*chunk), 64);
        }
        for byte in rest {
            word(u64::from(*byte), 8);
        }
        let bits = data.len() as f64 * 8.0;
        Pattern { ones_fraction: ones as f64 / bits, transitions: differ as f64 / bits }
    }
}

/// Where in a block a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagePlace {
    /// Its word line, counted over all strings.
    pub wordline: u32,
    /// The layer of that word line, from the bottom; 0 for planar flash.
    pub layer: u32,
    /// Which bit of the cells it is, from the lowest.
    pub page_type: u32,
}

/// The names of the pages of a word line, lowest bit first, for cells of `bits_per_cell`; empty for what is no page.
pub fn page_type_name(bits_per_cell: u32, page_type: u32) -> &'static str {
    const NAMES: [&[&str]; 4] =
        [&["single"], &["lsb", "msb"], &["lsb", "csb", "msb"], &["lower", "middle", "upper", "top"]];
    let names = NAMES.get((bits_per_cell as usize).wrapping_sub(1));
    names.and_then(|names| names.get(page_type as usize)).copied().unwrap_or("")
}

/// A page, and which program of it: what a codeword's luck depends on besides the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageAddress {
    /// The zone.
    pub zone: u32,
    /// The block in the zone.
    pub block: u32,
    /// The page in the block.
    pub page: u32,
    /// Which program since the block was new: its cycles.
    pub generation: u64,
}

/// What reading a codeword came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodewordRead {
    /// Bit errors at the first try.
    pub raw_bit_errors: u64,
    /// Steps of read-retry that were taken.
    pub retry_steps: u32,
    /// Whether every step left more errors than the code corrects.
    pub uncorrectable: bool,
}

/// The chips behind a device: the parameters with the seed's variation of layers and blocks.
#[derive(Debug, Clone)]
pub struct Chip {
    params: ErrorParams,
    seed: u64,
    /// Each page's factor, of mean 1 apart from the layers' own variation.
    page_factors: Vec<f64>,
    /// Hours of retention at the reference temperature per hour of the device's clock.
    hours_per_hour: f64,
    codeword_bits: u64,
}

impl Chip {
    /// Chips with the variation that `seed` gives them.
    ///
    /// # Errors
    /// [`ReliabilityError::Parameter`] for parameters that [`ErrorParams::check`] refuses.
    pub fn new(params: &ErrorParams, seed: u64) -> Result<Chip, ReliabilityError> {
        params.check("error parameters")?;
        let mut chip = Chip {
            seed,
            page_factors: Vec::new(),
            hours_per_hour: params.time_acceleration * arrhenius(params),
            codeword_bits: u64::from(params.codeword_bytes) * 8,
            params: params.clone(),
        };
        let shape: Vec<f64> = (0..params.pages_per_block).map(|page| chip.shape(page)).collect();
        let mean = shape.iter().sum::<f64>() / shape.len() as f64;
        let layers = Key::new(seed, purpose::LAYER);
        chip.page_factors = shape
            .iter()
            .zip(0..)
            .map(|(factor, page)| {
                let noise = match params.layers {
                    0 => 1.0,
                    _ => layers.with(u64::from(chip.place(page).layer)).lognormal(params.layer_sigma),
                };
                factor / mean * noise
            })
            .collect();
        Ok(chip)
    }

    /// The parameters.
    pub fn params(&self) -> &ErrorParams {
        &self.params
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Where page `page` of a block is.
    pub fn place(&self, page: u32) -> PagePlace {
        let params = &self.params;
        let layer = u64::from(page) * u64::from(params.layers) / u64::from(params.pages_per_block);
        PagePlace {
            wordline: page / params.bits_per_cell,
            layer: layer as u32,
            page_type: page % params.bits_per_cell,
        }
    }

    /// A page's factor before the mean is made 1 and without the layers' own variation.
    fn shape(&self, page: u32) -> f64 {
        let (params, place) = (&self.params, self.place(page));
        let wordlines = params.pages_per_block.div_ceil(params.bits_per_cell);
        let from_end = place.wordline.min(wordlines - 1 - place.wordline);
        let edge = if from_end < params.edge_wordlines { params.edge_factor } else { 1.0 };
        let page_type = params.page_type_factors.get(place.page_type as usize).copied().unwrap_or(1.0);
        edge * page_type * profile(&params.layer_profile, place.layer, params.layers)
    }

    /// How much worse than the mean page a page of every block is.
    pub fn page_factor(&self, page: u32) -> f64 {
        self.page_factors.get(page as usize).copied().unwrap_or(1.0)
    }

    /// How much worse than the mean block a block is.
    pub fn block_factor(&self, zone: u32, block: u32) -> f64 {
        let key = Key::new(self.seed, purpose::BLOCK).with(u64::from(zone)).with(u64::from(block));
        key.lognormal(self.params.block_sigma)
    }

    /// The hours at the reference temperature that do as much as `hours` on the device's clock.
    pub fn reference_hours(&self, hours: f64) -> f64 {
        hours.max(0.0) * self.hours_per_hour
    }

    /// The rate of the mean page of the mean block for random data: the sum of docs/error-model.md.
    pub fn mean_rber(&self, conditions: &Conditions) -> f64 {
        let params = &self.params;
        let cycles = conditions.pe_cycles.max(1.0) / params.pe_reference_cycles;
        let hours = self.reference_hours(conditions.retention_hours) / params.retention_reference_hours;
        let reads = conditions.reads.max(0.0) / params.disturb_reference_reads;
        let mut rber = params.base_rber;
        // Powers are slow: a term that is 0 is left out.
        if params.wear_rber > 0.0 {
            rber += params.wear_rber * cycles.powf(params.pe_exponent);
        }
        if params.retention_rber > 0.0 && hours > 0.0 {
            rber += params.retention_rber
                * cycles.powf(params.retention_pe_exponent)
                * hours.powf(params.retention_exponent);
        }
        if params.disturb_rber > 0.0 && reads > 0.0 {
            rber += params.disturb_rber
                * cycles.powf(params.disturb_pe_exponent)
                * reads.powf(params.disturb_exponent);
        }
        rber
    }

    /// How much worse than random data a pattern is. 1 with the randomizer on.
    pub fn pattern_factor(&self, pattern: &Pattern) -> f64 {
        let params = &self.params;
        if params.randomizer {
            return 1.0;
        }
        (1.0 + params.zero_bias * (1.0 - 2.0 * pattern.ones_fraction))
            * (1.0 + params.interference * (2.0 * pattern.transitions - 1.0))
    }

    /// Which share of the errors in a pattern are bits written 0 and read 1.
    pub fn zero_to_one_share(&self, pattern: &Pattern) -> f64 {
        // Behind a randomizer the cells' bias meets zeros and ones of the data alike.
        let bias = if self.params.randomizer { 0.0 } else { self.params.zero_bias };
        let zeros = (1.0 - pattern.ones_fraction) * (1.0 + bias);
        zeros / (zeros + pattern.ones_fraction * (1.0 - bias))
    }

    /// The raw bit-error rate of a page.
    pub fn rber(&self, address: &PageAddress, conditions: &Conditions, pattern: &Pattern) -> f64 {
        let block = self.mean_rber(conditions) * self.block_factor(address.zone, address.block);
        self.page_rber(block * self.pattern_factor(pattern), address.page)
    }

    /// The rate of a page from that of its block.
    pub(super) fn page_rber(&self, block_rber: f64, page: u32) -> f64 {
        (block_rber * self.page_factor(page)).min(MAX_RBER)
    }

    /// The luck of a page's codewords; `reads` of its block since the erase.
    pub(super) fn luck(&self, address: &PageAddress, reads: u64) -> Key {
        let draw = match self.params.redraw_reads {
            0 => 0,
            every => reads / u64::from(every),
        };
        [u64::from(address.zone), u64::from(address.block), u64::from(address.page), address.generation, draw]
            .iter()
            .fold(Key::new(self.seed, purpose::CODEWORD), |key, part| key.with(*part))
    }

    /// Reads codeword `codeword` of a page whose raw bit-error rate is `rber`.
    pub fn read_codeword(
        &self,
        address: &PageAddress,
        conditions: &Conditions,
        rber: f64,
        codeword: u32,
    ) -> CodewordRead {
        self.decode(self.luck(address, conditions.reads as u64), rber, codeword)
    }

    /// The same with the page's luck at hand.
    pub(super) fn decode(&self, luck: Key, rber: f64, codeword: u32) -> CodewordRead {
        let params = &self.params;
        let mean = rber * self.codeword_bits as f64;
        let share = luck.with(u64::from(codeword)).uniform();
        let errors = |factor: f64| {
            Count::new((mean * factor).min(MAX_RBER * self.codeword_bits as f64), params.dispersion)
                .at(share, self.codeword_bits)
        };
        let corrects = |errors: u64| errors <= u64::from(params.correctable_bits);
        let raw_bit_errors = errors(1.0);
        let mut read =
            CodewordRead { raw_bit_errors, retry_steps: 0, uncorrectable: !corrects(raw_bit_errors) };
        for factor in &params.retry_factors {
            if !read.uncorrectable {
                break;
            }
            read.retry_steps += 1;
            read.uncorrectable = !corrects(errors(*factor));
        }
        read
    }

    /// How many of `errors` in a codeword are bits written 0 and read 1.
    pub fn zero_to_one(&self, address: &PageAddress, codeword: u32, errors: u64, pattern: &Pattern) -> u64 {
        let share = self.zero_to_one_share(pattern);
        let luck = [address.zone, address.block, address.page, codeword]
            .iter()
            .fold(Key::new(self.seed, purpose::FLIPS).with(address.generation), |key, part| {
                key.with(u64::from(*part))
            });
        (0..errors).filter(|error| luck.with(*error).uniform() < share).count() as u64
    }

    /// The probability that a codeword is uncorrectable at the rate `rber`, in closed form: the tail of the count at the best
    /// step of read-retry, since a codeword's luck does not change between steps.
    pub fn uncorrectable_probability(&self, rber: f64) -> f64 {
        let best = self.params.retry_factors.iter().copied().fold(1.0, f64::min);
        let mean = (rber * best).min(MAX_RBER) * self.codeword_bits as f64;
        Count::new(mean, self.params.dispersion).above(u64::from(self.params.correctable_bits))
    }

    /// Bits of data in a codeword.
    pub fn codeword_bits(&self) -> u64 {
        self.codeword_bits
    }

    /// Codewords of a page.
    pub fn codewords_per_page(&self) -> u32 {
        self.params.page_bytes / self.params.codeword_bytes
    }
}

/// How much faster charge is lost than at the reference temperature: Arrhenius' law.
fn arrhenius(params: &ErrorParams) -> f64 {
    let kelvin = |celsius: f64| celsius + 273.15;
    let inverse = 1.0 / kelvin(params.reference_temperature_c) - 1.0 / kelvin(params.temperature_c);
    (params.activation_energy_ev / BOLTZMANN_EV_PER_K * inverse).exp()
}

/// The profile's value at a layer: the points are spread evenly over the layers, and the logarithm is linear between two.
fn profile(points: &[f64], layer: u32, layers: u32) -> f64 {
    let (Some(first), true) = (points.first(), layers > 0) else { return 1.0 };
    let (at, share) = profile_place(points.len(), layer, layers);
    let low = points.get(at).unwrap_or(first).ln();
    let high = points.get(at + 1).map_or(low, |point| point.ln());
    (low + (high - low) * share).exp()
}

/// Between which two of `points` points a layer is (the lower one), and how far from the lower to the upper.
pub(super) fn profile_place(points: usize, layer: u32, layers: u32) -> (usize, f64) {
    if points < 2 || layers < 2 {
        return (0, 0.0);
    }
    let place = f64::from(layer) / f64::from(layers - 1) * (points - 1) as f64;
    let at = (place as usize).min(points - 2);
    (at, place - at as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_counts_ones_and_unequal_neighbours() {
        let of = |data: &[u8]| (Pattern::of(data).ones_fraction, Pattern::of(data).transitions);
        assert_eq!(of(&[0x55; 24]), (0.5, 1.0));
        assert_eq!(of(&[0xaa; 11]), (0.5, 1.0));
        assert_eq!(of(&[0xff; 9]), (1.0, 0.0));
        assert_eq!(of(&[0; 16]), (0.0, 0.0));
        assert_eq!(of(&[0x0f; 5]), (0.5, 0.25));
        assert_eq!(Pattern::of(&[]), Pattern::RANDOM);
        // Against a count bit by bit.
        let data: Vec<u8> = (0..77u64).map(|i| (Key::new(3, 3).with(i).uniform() * 256.0) as u8).collect();
        let bits: Vec<u8> = data.iter().flat_map(|byte| (0..8).map(move |i| byte >> i & 1)).collect();
        let ones = bits.iter().filter(|bit| **bit == 1).count() as f64 / bits.len() as f64;
        let differ = (0..bits.len()).filter(|i| bits[*i] != bits[(i + 1) % bits.len()]).count();
        assert_eq!(of(&data), (ones, differ as f64 / bits.len() as f64));
    }

    #[test]
    fn the_profile_meets_its_points_and_is_straight_in_the_logarithm_between() {
        let points = [1.0, 4.0, 2.0];
        assert_eq!(profile(&points, 0, 5), 1.0);
        assert!((profile(&points, 1, 5) - 2.0).abs() < 1e-12);
        assert!((profile(&points, 2, 5) - 4.0).abs() < 1e-12);
        assert!((profile(&points, 4, 5) - 2.0).abs() < 1e-12);
        assert_eq!((profile(&[], 3, 5), profile(&points, 0, 0), profile(&points, 0, 1)), (1.0, 1.0, 1.0));
        assert!((profile(&[3.0], 3, 5) - 3.0).abs() < 1e-12);
    }

    #[test]
    fn arrhenius_gives_the_hours_of_jesd218() {
        // A year at 30 C is as published 500 h at 52 C and 96 h at 66 C.
        for (temperature_c, hours) in [(52.0, 500.0), (66.0, 96.0)] {
            let params = ErrorParams {
                activation_energy_ev: 1.1,
                reference_temperature_c: 30.0,
                temperature_c,
                ..ErrorParams::default()
            };
            assert!((arrhenius(&params) * hours / 8760.0 - 1.0).abs() < 0.05, "{}", arrhenius(&params));
        }
        assert_eq!(arrhenius(&ErrorParams { temperature_c: 99.0, ..ErrorParams::default() }), 1.0);
    }

    #[test]
    fn pages_have_names_for_every_kind_of_cell() {
        assert_eq!(page_type_name(1, 0), "single");
        assert_eq!((0..3).map(|t| page_type_name(3, t)).collect::<Vec<_>>(), ["lsb", "csb", "msb"]);
        assert_eq!((page_type_name(4, 3), page_type_name(2, 2), page_type_name(0, 0)), ("top", "", ""));
    }
}
