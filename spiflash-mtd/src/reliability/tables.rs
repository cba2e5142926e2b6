//! Tables of a simulated chip, measured as a test board measures a real one: programmed, aged, read back, compared.
//!
//! CSV with a header, the form that [`super::read_csv`] reads and `scripts/figures` draws. Each repeat is a program of its own.
//! The invariant: a table is a function of the parameters and the options, the seed among them, and every error in it was
//! found by [`Reliability::read`].

use super::random::Stream;
use super::{BitErrors, Layout, Marginal, PagePlace, PageState, Rates, Reliability, ReliabilityError};
use super::{ReliabilityParams, differing_neighbours};
use std::fmt::Arguments;
use std::io::Write;

/// Pages that a table may program and read at most: about a minute.
const MAX_PROGRAMS: u64 = 1 << 26;
const NS_PER_HOUR: f64 = 3.6e12;

/// Which table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// A row per block and page (T1; T2 for a chip with layers), random data.
    Pages,
    /// A row per value written: 0x00 to 0xff, and random data (T3).
    Patterns,
    /// A row per cycles, time and reads, over all pages, random data, with what the formula gives.
    Conditions,
}

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct TableOptions {
    /// The seed of the chip and of its errors.
    pub seed: u64,
    /// How many blocks.
    pub blocks: u32,
    /// How often each page is programmed and read.
    pub repeats: u32,
    /// Erases of the blocks.
    pub cycles: Vec<u32>,
    /// Hours between programming and reading, at the parameters' `temperature_c`; `time_acceleration` is not used.
    pub retention_hours: Vec<f64>,
    /// Reads of the block before.
    pub reads: Vec<u64>,
}

impl TableOptions {
    /// Four blocks at the parameters' reference cycles and time, each page programmed 1000 times.
    pub fn new(params: &ReliabilityParams) -> TableOptions {
        TableOptions {
            seed: 1,
            blocks: 4,
            repeats: 1000,
            cycles: vec![params.pe_reference_cycles as u32],
            retention_hours: vec![params.retention_reference_hours],
            reads: vec![0],
        }
    }

    fn check(&self, params: &ReliabilityParams, patterns: u64) -> Result<(), ReliabilityError> {
        let wrong = |field: &str, value: String, rule: String| {
            Err(ReliabilityError::Value { place: "rber".into(), field: field.into(), value, rule })
        };
        for (field, count) in [
            ("cycles", self.cycles.len()),
            ("retention_hours", self.retention_hours.len()),
            ("reads", self.reads.len()),
        ] {
            if !(1..=1000).contains(&count) {
                return wrong(field, format!("a list of {count}"), "it must have 1 to 1000 numbers".into());
            }
        }
        // The model's clock ends after 584 years.
        if let Some(hours) = self.retention_hours.iter().find(|hours| !(0.0..=5e6).contains(*hours)) {
            return wrong("retention_hours", hours.to_string(), "it must be 0 to 5000000".into());
        }
        for (field, value) in [("blocks", self.blocks), ("repeats", self.repeats)] {
            if value == 0 {
                return wrong(field, "0".into(), "it must be 1 or more".into());
            }
        }
        let conditions = self.cycles.len() * self.retention_hours.len() * self.reads.len();
        let pages = u64::from(self.blocks) * u64::from(params.pages_per_block);
        let programs = [u64::from(self.repeats), conditions as u64, patterns]
            .iter()
            .try_fold(pages, |product, factor| product.checked_mul(*factor));
        match programs {
            Some(programs) if programs <= MAX_PROGRAMS && pages <= u64::from(u32::MAX) => Ok(()),
            _ => {
                let rule = format!("with the rest it makes more than {MAX_PROGRAMS} programs: measure less");
                wrong("repeats", self.repeats.to_string(), rule)
            }
        }
    }
}

/// One combination of conditions, and its number.
#[derive(Debug, Clone, Copy)]
struct Case {
    number: u64,
    cycles: u32,
    hours: f64,
    reads: u64,
}

impl Case {
    fn state(&self, epoch: u64) -> PageState {
        PageState {
            cycles: self.cycles,
            programmed_at_ns: 0,
            now_ns: (self.hours * NS_PER_HOUR) as u64,
            block_reads: self.reads,
            epoch,
            marginal: Marginal::None,
        }
    }
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    programs: u64,
    bits: u64,
    zero_to_one: u64,
    one_to_zero: u64,
    /// Of the rates of the formula, one per page.
    model_rber: f64,
    pages: u64,
}

impl Sum {
    fn add(&mut self, bits: u64, errors: BitErrors) {
        self.programs += 1;
        self.bits += bits;
        self.zero_to_one += u64::from(errors.zero_to_one);
        self.one_to_zero += u64::from(errors.one_to_zero);
    }

    fn errors(&self) -> u64 {
        self.zero_to_one + self.one_to_zero
    }

    fn rber(&self) -> f64 {
        self.errors() as f64 / self.bits.max(1) as f64
    }
}

/// A chip on the board.
struct Board<'a> {
    chip: Reliability,
    params: &'a ReliabilityParams,
    options: &'a TableOptions,
    data: Vec<u8>,
}

impl<'a> Board<'a> {
    fn new(
        params: &'a ReliabilityParams,
        options: &'a TableOptions,
        patterns: u64,
    ) -> Result<Board<'a>, ReliabilityError> {
        params.check("rber")?;
        options.check(params, patterns)?;
        let layout = Layout {
            blocks: options.blocks,
            pages: options.blocks * params.pages_per_block,
            page_bytes: params.page_bytes,
        };
        // The hours of a table are the chip's own.
        let chip_params = ReliabilityParams { time_acceleration: 1.0, ..params.clone() };
        let chip = Reliability::new(&chip_params, options.seed, layout)?;
        Ok(Board { chip, params, options, data: vec![0; params.page_bytes as usize] })
    }

    fn cases(&self) -> Vec<Case> {
        let options = self.options;
        let mut cases = Vec::new();
        for &cycles in &options.cycles {
            for &hours in &options.retention_hours {
                for &reads in &options.reads {
                    cases.push(Case { number: cases.len() as u64, cycles, hours, reads });
                }
            }
        }
        cases
    }

    fn places(&self) -> impl Iterator<Item = PagePlace> + use<> {
        let pages = self.params.pages_per_block;
        (0..self.options.blocks).flat_map(move |block| {
            (0..pages).map(move |page| PagePlace { block, page: block * pages + page })
        })
    }

    /// Programs a page with a value, or with random data, and reads it, `repeats` times. `round` numbers such calls for a page.
    fn measure(&mut self, sum: &mut Sum, place: PagePlace, case: &Case, round: u64, value: Option<u8>) {
        let repeats = u64::from(self.options.repeats);
        let bits = self.data.len() as u64 * 8;
        self.data.fill(value.unwrap_or(0));
        for repeat in 0..repeats {
            let epoch = round * repeats + repeat;
            if value.is_none() {
                let mut random =
                    Stream::new(self.options.seed ^ epoch.rotate_left(32) ^ u64::from(place.page));
                for chunk in self.data.chunks_mut(8) {
                    chunk.copy_from_slice(&random.bits().to_le_bytes()[..chunk.len()]);
                }
            }
            let errors = self.chip.read(place, &case.state(epoch), 0, &mut self.data, epoch);
            sum.add(bits, errors);
            if let Some(value) = value.filter(|_| errors.total() > 0) {
                self.data.fill(value);
            }
        }
        let rates = Rates::of(self.chip.params(), &self.chip.conditions(&case.state(0)));
        sum.model_rber += self.chip.place_factor(place) * 0.5 * (rates.zero_to_one + rates.one_to_zero);
        sum.pages += 1;
    }

    fn common(&self, case: &Case) -> String {
        format!("{},{},{},{}", case.cycles, case.hours, self.params.temperature_c, case.reads)
    }
}

fn line(out: &mut impl Write, text: Arguments<'_>) -> Result<(), ReliabilityError> {
    writeln!(out, "{text}")
        .map_err(|source| ReliabilityError::Io { what: "writing the table".into(), source })
}

/// Measures a chip and writes the table. docs/spi-error-model.md lists the columns.
///
/// # Errors
/// [`ReliabilityError::Value`] for options that cannot be; [`ReliabilityError::Io`].
pub fn write_table(
    table: Table,
    params: &ReliabilityParams,
    options: &TableOptions,
    out: &mut impl Write,
) -> Result<(), ReliabilityError> {
    match table {
        Table::Pages => pages(params, options, out),
        Table::Patterns => patterns(params, options, out),
        Table::Conditions => conditions(params, options, out),
    }
}

fn pages(
    params: &ReliabilityParams,
    options: &TableOptions,
    out: &mut impl Write,
) -> Result<(), ReliabilityError> {
    let mut board = Board::new(params, options, 1)?;
    line(
        out,
        format_args!(
            "block,page,layer,page_type,pe,retention_hours,temperature_c,reads,programs,bits_read,bit_errors,zero_to_one,one_to_zero,rber"
        ),
    )?;
    for case in board.cases() {
        for place in board.places() {
            let mut sum = Sum::default();
            board.measure(&mut sum, place, &case, case.number, None);
            let page = place.page % params.pages_per_block;
            line(
                out,
                format_args!(
                    "{},{page},{},page,{},{},{},{},{},{},{:e}",
                    place.block,
                    board.chip.layer(place.page),
                    board.common(&case),
                    sum.programs,
                    sum.bits,
                    sum.errors(),
                    sum.zero_to_one,
                    sum.one_to_zero,
                    sum.rber()
                ),
            )?;
        }
    }
    Ok(())
}

/// The share of 1s of a byte, and the share of its bits' neighbours in it that differ.
pub(super) fn shape_of(value: u8) -> (f64, f64) {
    let differing: f64 = (0..8).map(|bit| differing_neighbours(value, bit)).sum();
    (f64::from(value.count_ones()) / 8.0, differing / 8.0)
}

fn patterns(
    params: &ReliabilityParams,
    options: &TableOptions,
    out: &mut impl Write,
) -> Result<(), ReliabilityError> {
    const PATTERNS: u64 = 257;
    let mut board = Board::new(params, options, PATTERNS)?;
    line(
        out,
        format_args!(
            "pattern,value,ones_fraction,transitions,pe,retention_hours,temperature_c,reads,programs,bits_read,bit_errors,zero_to_one,one_to_zero,rber"
        ),
    )?;
    for case in board.cases() {
        for (number, value) in (0..).zip((0..=255u8).map(Some).chain([None])) {
            let mut sum = Sum::default();
            for place in board.places() {
                board.measure(&mut sum, place, &case, case.number * PATTERNS + number, value);
            }
            let (name, cell, (ones, transitions)) = match value {
                Some(value) => (format!("0x{value:02x}"), value.to_string(), shape_of(value)),
                None => ("random".into(), String::new(), (0.5, 0.5)),
            };
            line(
                out,
                format_args!(
                    "{name},{cell},{ones},{transitions},{},{},{},{},{},{},{:e}",
                    board.common(&case),
                    sum.programs,
                    sum.bits,
                    sum.errors(),
                    sum.zero_to_one,
                    sum.one_to_zero,
                    sum.rber()
                ),
            )?;
        }
    }
    Ok(())
}

fn conditions(
    params: &ReliabilityParams,
    options: &TableOptions,
    out: &mut impl Write,
) -> Result<(), ReliabilityError> {
    let mut board = Board::new(params, options, 1)?;
    line(
        out,
        format_args!(
            "pe,retention_hours,temperature_c,reads,programs,bits_read,bit_errors,zero_to_one,one_to_zero,rber,model_rber"
        ),
    )?;
    for case in board.cases() {
        let mut sum = Sum::default();
        for place in board.places() {
            board.measure(&mut sum, place, &case, case.number, None);
        }
        line(
            out,
            format_args!(
                "{},{},{},{},{},{},{:e},{:e}",
                board.common(&case),
                sum.programs,
                sum.bits,
                sum.errors(),
                sum.zero_to_one,
                sum.one_to_zero,
                sum.rber(),
                sum.model_rber / sum.pages.max(1) as f64
            ),
        )?;
    }
    Ok(())
}
