//! Tables of a simulated chip, measured as one measures a real one: written, aged, read back, and compared.
//!
//! Each table is CSV with a header, the form that [`super::read_csv`] reads. Every program of a page is a draw of its own, so
//! that reading a page `repeats` times stands for as many times of programming and reading it. There is no randomizer, as on
//! a test board: what is written is what the cells hold. The invariant: a table is a function of the parameters and the
//! options, its seed among them.

use super::{Chip, Conditions, ErrorParams, PageAddress, Pattern, ReliabilityError, page_type_name};
use std::io::Write;

/// Codewords that a table may read at most: about a minute.
const MAX_CODEWORDS: u64 = 1 << 28;

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct RberOptions {
    /// The seed of the chip and of its errors.
    pub seed: u64,
    /// How many blocks.
    pub blocks: u32,
    /// Which pages of a block: each as many apart, from the first; 1 for all.
    pub page_stride: u32,
    /// How often each page is programmed and read, all its codewords.
    pub repeats: u32,
    /// Program/erase cycles.
    pub pe_cycles: Vec<f64>,
    /// Hours between programming and reading.
    pub retention_hours: Vec<f64>,
    /// Page reads of the block before.
    pub reads: Vec<f64>,
}

impl RberOptions {
    /// All pages of four blocks, at the rated cycles, a year old.
    pub fn new(params: &ErrorParams) -> RberOptions {
        RberOptions {
            seed: 1,
            blocks: 4,
            page_stride: 1,
            repeats: 1,
            pe_cycles: vec![params.pe_reference_cycles],
            retention_hours: vec![params.retention_reference_hours],
            reads: vec![0.0],
        }
    }

    /// Every combination of the conditions, in order.
    fn conditions(&self) -> impl Iterator<Item = Conditions> + '_ {
        self.pe_cycles.iter().flat_map(move |&pe_cycles| {
            self.retention_hours.iter().flat_map(move |&retention_hours| {
                self.reads.iter().map(move |&reads| Conditions { pe_cycles, retention_hours, reads })
            })
        })
    }

    fn pages<'a>(&self, chip: &'a Chip) -> impl Iterator<Item = u32> + use<'a> {
        (0..chip.params().pages_per_block).step_by(self.page_stride.max(1) as usize)
    }

    /// The chip, once the options are found to be possible for `patterns` patterns.
    fn chip(&self, params: &ErrorParams, patterns: u64) -> Result<Chip, ReliabilityError> {
        let wrong = |field: &str, value: String, rule: String| {
            Err(ReliabilityError::Parameter { place: "rber".into(), field: field.into(), value, rule })
        };
        for (field, values, most) in [
            ("pe", &self.pe_cycles, 1e9),
            ("retention_hours", &self.retention_hours, 1e9),
            ("reads", &self.reads, 1e12),
        ] {
            if values.is_empty() || values.len() > 1000 {
                return wrong(
                    field,
                    format!("a list of {}", values.len()),
                    "it must have 1 to 1000 numbers".into(),
                );
            }
            if let Some(value) = values.iter().find(|value| !(0.0..=most).contains(*value)) {
                return wrong(field, value.to_string(), format!("it must be 0 to {most}"));
            }
        }
        for (field, value) in
            [("blocks", self.blocks), ("page_stride", self.page_stride), ("repeats", self.repeats)]
        {
            if value == 0 {
                return wrong(field, "0".into(), "it must be 1 or more".into());
            }
        }
        let chip = Chip::new(&ErrorParams { randomizer: false, ..params.clone() }, self.seed)?;
        let conditions = self.pe_cycles.len() * self.retention_hours.len() * self.reads.len();
        let codewords = [
            u64::from(self.blocks),
            u64::from(params.pages_per_block.div_ceil(self.page_stride)),
            u64::from(self.repeats),
            u64::from(chip.codewords_per_page()),
            conditions as u64,
            patterns,
        ]
        .iter()
        .try_fold(1u64, |product, factor| product.checked_mul(*factor));
        match codewords {
            Some(codewords) if codewords <= MAX_CODEWORDS => Ok(chip),
            _ => {
                let rule =
                    format!("with the rest it makes more than {MAX_CODEWORDS} codewords: measure less");
                wrong("repeats", self.repeats.to_string(), rule)
            }
        }
    }
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    codewords: u64,
    bits: u64,
    errors: u64,
    zero_to_one: u64,
    uncorrectable: u64,
    retry_steps: u64,
    /// The sum of the rates that the formula gives, one a page read.
    rber: f64,
    pages: u64,
}

impl Sum {
    fn rber(&self) -> f64 {
        self.errors as f64 / self.bits as f64
    }

    /// Programs and reads a page `repeats` times. `round` tells measurements of one page under other conditions apart.
    fn page(
        &mut self,
        chip: &Chip,
        options: &RberOptions,
        (block, page): (u32, u32),
        round: u64,
        conditions: &Conditions,
        pattern: &Pattern,
    ) {
        for repeat in 0..u64::from(options.repeats) {
            let generation = round * u64::from(options.repeats) + repeat;
            let address = PageAddress { zone: 0, block, page, generation };
            let rber = chip.rber(&address, conditions, pattern);
            self.rber += rber;
            self.pages += 1;
            for codeword in 0..chip.codewords_per_page() {
                let read = chip.read_codeword(&address, conditions, rber, codeword);
                self.codewords += 1;
                self.bits += chip.codeword_bits();
                self.errors += read.raw_bit_errors;
                self.zero_to_one += chip.zero_to_one(&address, codeword, read.raw_bit_errors, pattern);
                self.uncorrectable += u64::from(read.uncorrectable);
                self.retry_steps += u64::from(read.retry_steps);
            }
        }
    }
}

fn writing(source: std::io::Error) -> ReliabilityError {
    ReliabilityError::Io { what: "writing the table".into(), source }
}

fn line(out: &mut impl Write, text: std::fmt::Arguments<'_>) -> Result<(), ReliabilityError> {
    writeln!(out, "{text}").map_err(writing)
}

/// Writes the raw bit-error rate of every page of every block, at each of the conditions: figures T1 (2D) and T2 (3D).
///
/// # Errors
/// [`ReliabilityError::Parameter`], [`ReliabilityError::Io`].
pub fn page_table(
    params: &ErrorParams,
    options: &RberOptions,
    out: &mut impl Write,
) -> Result<(), ReliabilityError> {
    let chip = options.chip(params, 1)?;
    line(
        out,
        format_args!(
            "block,page,wordline,layer,page_type,pe,retention_hours,reads,codewords,bits_read,bit_errors,zero_to_one,rber"
        ),
    )?;
    for (round, conditions) in (0..).zip(options.conditions()) {
        for block in 0..options.blocks {
            for page in options.pages(&chip) {
                let mut sum = Sum::default();
                sum.page(&chip, options, (block, page), round, &conditions, &Pattern::RANDOM);
                let place = chip.place(page);
                let Conditions { pe_cycles, retention_hours, reads } = conditions;
                line(
                    out,
                    format_args!(
                        "{block},{page},{},{},{},{pe_cycles},{retention_hours},{reads},{},{},{},{},{:e}",
                        place.wordline,
                        place.layer,
                        page_type_name(params.bits_per_cell, place.page_type),
                        sum.codewords,
                        sum.bits,
                        sum.errors,
                        sum.zero_to_one,
                        sum.rber()
                    ),
                )?;
            }
        }
    }
    Ok(())
}

/// The patterns of the pattern table: every byte value, a checkerboard (which is 0x55 by its other name), and random data.
fn patterns() -> Vec<(String, Option<u8>, Pattern)> {
    let mut patterns: Vec<_> =
        (0..=255u8).map(|value| (format!("0x{value:02x}"), Some(value), Pattern::of(&[value; 8]))).collect();
    patterns.push(("checkerboard".into(), None, Pattern::of(&[0x55; 8])));
    patterns.push(("random".into(), None, Pattern::RANDOM));
    patterns
}

/// Writes the raw bit-error rate of every value written, and how many bits turned from 0 to 1 and from 1 to 0: figure T3.
///
/// # Errors
/// [`ReliabilityError::Parameter`], [`ReliabilityError::Io`].
pub fn pattern_table(
    params: &ErrorParams,
    options: &RberOptions,
    out: &mut impl Write,
) -> Result<(), ReliabilityError> {
    let patterns = patterns();
    let chip = options.chip(params, patterns.len() as u64)?;
    line(
        out,
        format_args!(
            "pattern,value,ones_fraction,transitions,pe,retention_hours,reads,codewords,bits_read,bit_errors,zero_to_one,one_to_zero,rber"
        ),
    )?;
    for (case, conditions) in (0..).zip(options.conditions()) {
        for (number, (name, value, pattern)) in (0..).zip(&patterns) {
            let mut sum = Sum::default();
            let round = case * patterns.len() as u64 + number;
            for block in 0..options.blocks {
                for page in options.pages(&chip) {
                    sum.page(&chip, options, (block, page), round, &conditions, pattern);
                }
            }
            let Conditions { pe_cycles, retention_hours, reads } = conditions;
            line(
                out,
                format_args!(
                    "{name},{},{},{},{pe_cycles},{retention_hours},{reads},{},{},{},{},{},{:e}",
                    value.map(|value| value.to_string()).unwrap_or_default(),
                    pattern.ones_fraction,
                    pattern.transitions,
                    sum.codewords,
                    sum.bits,
                    sum.errors,
                    sum.zero_to_one,
                    sum.errors - sum.zero_to_one,
                    sum.rber()
                ),
            )?;
        }
    }
    Ok(())
}

/// Writes the raw bit-error rate at each combination of cycles, retention time and reads, over all the pages measured, with
/// what the formula gives for the same pages, and what error correction made of it.
///
/// # Errors
/// [`ReliabilityError::Parameter`], [`ReliabilityError::Io`].
pub fn condition_table(
    params: &ErrorParams,
    options: &RberOptions,
    out: &mut impl Write,
) -> Result<(), ReliabilityError> {
    let chip = options.chip(params, 1)?;
    line(
        out,
        format_args!(
            "pe,retention_hours,reads,codewords,bits_read,bit_errors,rber,model_rber,retry_steps,uncorrectable_codewords"
        ),
    )?;
    for (round, conditions) in (0..).zip(options.conditions()) {
        let mut sum = Sum::default();
        for block in 0..options.blocks {
            for page in options.pages(&chip) {
                sum.page(&chip, options, (block, page), round, &conditions, &Pattern::RANDOM);
            }
        }
        let Conditions { pe_cycles, retention_hours, reads } = conditions;
        line(
            out,
            format_args!(
                "{pe_cycles},{retention_hours},{reads},{},{},{},{:e},{:e},{},{}",
                sum.codewords,
                sum.bits,
                sum.errors,
                sum.rber(),
                sum.rber / sum.pages as f64,
                sum.retry_steps,
                sum.uncorrectable
            ),
        )?;
    }
    Ok(())
}
