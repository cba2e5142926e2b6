//! Measurements of bit errors: CSV with a header, as [`super::tables`] writes it or a test board.
//!
//! The invariant of a [`Measurement`] that [`read_csv`] returns: numbers are finite and in range, at least one bit was read,
//! there are no more errors than bits, and the two directions make up the errors.

use super::{ReliabilityError, tables};
use std::io::{BufRead, Read};

/// The longest line, in bytes: far beyond any measurement.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// Beyond 2^53, sums in floating point would lose single errors.
const MAX_COUNT: u64 = 1 << 53;

/// One line: reads under the same conditions, and the errors found.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Which table it is of. [`read_csv`] says 0: who reads several numbers them.
    pub source: u32,
    /// The block; `None` for a sum over several.
    pub block: Option<u32>,
    /// The page in its block; `None` for a sum over several.
    pub page: Option<u32>,
    /// Erases of the block; 0 if the table does not say.
    pub cycles: f64,
    /// Hours since programming; 0 if the table does not say.
    pub retention_hours: f64,
    /// At which temperature; `None` if the table does not say.
    pub temperature_c: Option<f64>,
    /// Reads of the block since its erase; 0 if the table does not say.
    pub reads: f64,
    /// The byte that was written everywhere; `None` for other data.
    pub value: Option<u8>,
    /// Share of bits that are 1; one half if the table does not say.
    pub ones_fraction: f64,
    /// Share of neighbours in a byte that differ, over all bits; one half if the table does not say.
    pub transitions: f64,
    /// How many programs of pages this sums over; `None` if the table does not say.
    pub programs: Option<u64>,
    /// Bits that were read.
    pub bits_read: u64,
    /// Of those, wrong.
    pub bit_errors: u64,
    /// Of those, written 0 and read 1; `None` if the table does not say.
    pub zero_to_one: Option<u64>,
}

const COLUMNS: [&str; 14] = [
    "bits_read",
    "bit_errors",
    "block",
    "page",
    "pe",
    "retention_hours",
    "temperature_c",
    "reads",
    "value",
    "ones_fraction",
    "transitions",
    "programs",
    "zero_to_one",
    "one_to_zero",
];

/// A line of cells under a header.
struct Row<'a> {
    file: &'a str,
    line: usize,
    /// Where each of `COLUMNS` is.
    places: &'a [Option<usize>; COLUMNS.len()],
    cells: Vec<&'a str>,
}

impl Row<'_> {
    fn wrong<T>(&self, column: &str, why: String) -> Result<T, ReliabilityError> {
        Err(ReliabilityError::Csv { file: self.file.into(), line: self.line, column: column.into(), why })
    }

    /// A column's text; `None` if the table has no such column, or the cell is empty.
    fn text(&self, column: &str) -> Option<&str> {
        let known = COLUMNS.iter().position(|name| *name == column)?;
        let text = self.cells.get((*self.places.get(known)?)?)?.trim();
        (!text.is_empty()).then_some(text)
    }

    fn number(&self, column: &str, least: f64, most: f64) -> Result<Option<f64>, ReliabilityError> {
        let Some(text) = self.text(column) else { return Ok(None) };
        match text.parse::<f64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => self.wrong(column, format!("{text:?} must be a number from {least} to {most}")),
        }
    }

    fn count(&self, column: &str, most: u64) -> Result<Option<u64>, ReliabilityError> {
        let Some(text) = self.text(column) else { return Ok(None) };
        match text.parse::<u64>() {
            Ok(number) if number <= most => Ok(Some(number)),
            _ => self.wrong(column, format!("{text:?} must be a whole number from 0 to {most}")),
        }
    }

    fn needed(&self, column: &str) -> Result<u64, ReliabilityError> {
        match self.count(column, MAX_COUNT)? {
            Some(count) => Ok(count),
            None => self.wrong(column, "the cell must not be empty".into()),
        }
    }

    /// Errors from 0 to 1, from either direction's column.
    fn zero_to_one(&self, bit_errors: u64) -> Result<Option<u64>, ReliabilityError> {
        let up = self.count("zero_to_one", MAX_COUNT)?;
        let down = self.count("one_to_zero", MAX_COUNT)?;
        match (up, down) {
            (Some(up), Some(down)) if up + down != bit_errors => {
                self.wrong("one_to_zero", format!("{up} and {down} must make the {bit_errors} bit_errors"))
            }
            (Some(up), _) if up > bit_errors => {
                self.wrong("zero_to_one", format!("{up} must be at most bit_errors, {bit_errors}"))
            }
            (Some(up), _) => Ok(Some(up)),
            (None, Some(down)) => match bit_errors.checked_sub(down) {
                Some(up) => Ok(Some(up)),
                None => self.wrong("one_to_zero", format!("{down} must be at most bit_errors, {bit_errors}")),
            },
            (None, None) => Ok(None),
        }
    }

    fn measurement(&self) -> Result<Measurement, ReliabilityError> {
        let (bits_read, bit_errors) = (self.needed("bits_read")?, self.needed("bit_errors")?);
        if bits_read == 0 {
            return self.wrong("bits_read", "it must be above 0".into());
        }
        if bit_errors > bits_read {
            return self.wrong("bit_errors", format!("{bit_errors} must be at most bits_read, {bits_read}"));
        }
        let programs = self.count("programs", MAX_COUNT)?;
        if programs.is_some_and(|programs| programs == 0 || programs > bits_read) {
            return self.wrong("programs", format!("it must be 1 to bits_read, {bits_read}"));
        }
        let value = self.count("value", 255)?.map(|value| value as u8);
        let (ones, transitions) = value.map_or((0.5, 0.5), tables::shape_of);
        let small =
            |column| Ok::<_, ReliabilityError>(self.count(column, u32::MAX.into())?.map(|n| n as u32));
        Ok(Measurement {
            source: 0,
            block: small("block")?,
            page: small("page")?,
            cycles: self.number("pe", 0.0, 1e9)?.unwrap_or(0.0),
            retention_hours: self.number("retention_hours", 0.0, 1e9)?.unwrap_or(0.0),
            temperature_c: self.number("temperature_c", -55.0, 200.0)?,
            reads: self.number("reads", 0.0, 1e18)?.unwrap_or(0.0),
            value,
            ones_fraction: self.number("ones_fraction", 0.0, 1.0)?.unwrap_or(ones),
            transitions: self.number("transitions", 0.0, 1.0)?.unwrap_or(transitions),
            programs,
            bits_read,
            bit_errors,
            zero_to_one: self.zero_to_one(bit_errors)?,
        })
    }
}

/// Reads a table of measurements: a header, then a measurement a line. Empty lines, lines that begin with `#`, and columns of
/// other names are skipped. `file` is for messages.
///
/// # Errors
/// [`ReliabilityError::Csv`] with the line and the column; [`ReliabilityError::Io`].
pub fn read_csv(mut input: impl BufRead, file: &str) -> Result<Vec<Measurement>, ReliabilityError> {
    let mut header: Option<(Vec<String>, [Option<usize>; COLUMNS.len()])> = None;
    let mut found = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let wrong =
            |column: String, why: String| Err(ReliabilityError::Csv { file: file.into(), line, column, why });
        let length = (&mut input)
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut bytes)
            .map_err(|source| ReliabilityError::Io { what: format!("reading {file}"), source })?;
        if length == 0 {
            break;
        }
        if length as u64 > MAX_LINE_BYTES {
            return wrong("1".into(), format!("the line must be at most {MAX_LINE_BYTES} bytes long"));
        }
        let Ok(text) = std::str::from_utf8(&bytes) else {
            return wrong("1".into(), "the line must be UTF-8".into());
        };
        if text.trim().is_empty() || text.trim_start().starts_with('#') {
            continue;
        }
        let cells: Vec<&str> = text.trim_end_matches(['\n', '\r']).split(',').collect();
        let Some((names, places)) = &header else {
            let names: Vec<String> = cells.iter().map(|name| name.trim().to_owned()).collect();
            if let Some(twice) = (1..names.len()).find(|at| names[..*at].contains(&names[*at])) {
                return wrong(
                    (twice + 1).to_string(),
                    format!("the column {:?} is there twice", names[twice]),
                );
            }
            let places = COLUMNS.map(|column| names.iter().position(|name| name == column));
            if let Some(missing) = (0..2).find(|known| places[*known].is_none()) {
                let why = format!("the table must have it; it may have {}", COLUMNS.join(", "));
                return wrong(COLUMNS[missing].into(), why);
            }
            header = Some((names, places));
            continue;
        };
        if cells.len() != names.len() {
            let column = (cells.len().min(names.len()) + 1).to_string();
            return wrong(
                column,
                format!("the line has {} cells, and the header {}", cells.len(), names.len()),
            );
        }
        found.push(Row { file, line, places, cells }.measurement()?);
    }
    match header {
        Some(_) => Ok(found),
        None => Err(ReliabilityError::Csv {
            file: file.into(),
            line: 1,
            column: "1".into(),
            why: "the file is empty: it must begin with the columns' names".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Measurement>, String> {
        read_csv(text.as_bytes(), "m.csv").map_err(|error| error.to_string())
    }

    #[test]
    fn columns_are_found_by_name_and_what_is_not_said_has_its_default() {
        let text =
            "# by hand\n bit_errors,bits_read,colour,block,pe,value\n3,100,red,7,1e3,85\n\n0,50,,,,\r\n";
        let found = read(text).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].block, found[0].page, found[0].cycles), (Some(7), None, 1000.0));
        assert_eq!((found[0].value, found[0].ones_fraction, found[0].transitions), (Some(0x55), 0.5, 1.0));
        assert_eq!((found[1].block, found[1].cycles, found[1].transitions), (None, 0.0, 0.5));
        assert_eq!(found[1].zero_to_one, None);
        let found = read("bits_read,bit_errors,one_to_zero\n100,5,2\n").unwrap();
        assert_eq!(found[0].zero_to_one, Some(3));
    }

    #[test]
    fn a_wrong_table_is_named_with_line_and_column() {
        let error = |text: &str| read(text).unwrap_err();
        assert_eq!(
            error(""),
            "m.csv, line 1, column 1: the file is empty: it must begin with the columns' names"
        );
        assert!(
            error("pe,bits_read\n").starts_with("m.csv, line 1, column bit_errors: the table must have it")
        );
        assert!(
            error("pe,bits_read,bit_errors,pe\n").starts_with("m.csv, line 1, column 4: the column \"pe\"")
        );
        let row = |row: &str| error(&format!("pe,bits_read,bit_errors,zero_to_one,one_to_zero\n{row}\n"));
        assert!(
            row("1,9,2,,\n1,9,x,,").starts_with("m.csv, line 3, column bit_errors: \"x\" must be a whole")
        );
        assert!(row("1,9").starts_with("m.csv, line 2, column 3: the line has 2 cells, and the header 5"));
        assert!(row("1,,2,,").contains("column bits_read: the cell must not be empty"));
        assert!(row("1,0,0,,").contains("column bits_read: it must be above 0"));
        assert!(row("1,9,10,,").contains("column bit_errors: 10 must be at most bits_read, 9"));
        assert!(row("1,9,3,4,").contains("column zero_to_one: 4 must be at most"));
        assert!(row("1,9,3,,4").contains("column one_to_zero: 4 must be at most"));
        assert!(row("1,9,3,1,1").contains("column one_to_zero: 1 and 1 must make the 3"));
        for cell in ["-1", "nan", "inf", "1e10", "many"] {
            assert!(row(&format!("{cell},9,1,,")).starts_with("m.csv, line 2, column pe: "), "{cell}");
        }
        assert!(error("bits_read,bit_errors,value\n9,1,256\n").contains("column value: \"256\""));
        assert!(error("bits_read,bit_errors,programs\n9,1,0\n").contains("column programs: it must be 1 to"));
        assert!(error(&"x".repeat(100_000)).contains("line 1, column 1: the line must be at most"));
        assert!(read_csv(&b"\xff\xfe,\n"[..], "m.csv").unwrap_err().to_string().contains("must be UTF-8"));
    }
}
