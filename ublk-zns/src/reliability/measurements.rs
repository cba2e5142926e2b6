//! Measurements of bit errors, as tables print them and a fit reads them: CSV with a header.
//!
//! The invariant: a measurement that [`read_csv`] returns has every number finite and inside its range, at least one bit
//! read, and no more errors than bits.

use super::{Pattern, ReliabilityError};
use std::{collections::HashMap, io::BufRead};

/// The longest line that a table may have, in bytes: far beyond any measurement, and far below any machine's memory.
const MAX_LINE_BYTES: usize = 64 << 10;

/// One line of a table: codewords of one kind, read under the same conditions, and the errors found.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Which table it is of. Tables without places may have been measured at better or worse ones than the mean: a fit
    /// allows each a factor of its own. [`read_csv`] says 0: who reads several numbers them.
    pub source: u32,
    /// Which block; `None` for a sum over many.
    pub block: Option<u32>,
    /// Which page of it; `None` for a sum over many.
    pub page: Option<u32>,
    /// Program/erase cycles.
    pub pe_cycles: f64,
    /// Hours since programming.
    pub retention_hours: f64,
    /// Page reads of the block since its erase.
    pub reads: f64,
    /// What was written; random if the table does not say.
    pub pattern: Pattern,
    /// Codewords that were read: draws of independent luck. `None` if the table does not say.
    pub codewords: Option<u64>,
    /// Bits that were read.
    pub bits_read: u64,
    /// Of those, how many were wrong.
    pub bit_errors: u64,
    /// Of those, bits written 0 and read 1; `None` if the table does not say.
    pub zero_to_one: Option<u64>,
}

/// The columns that are read; others are skipped.
const COLUMNS: [&str; 11] = [
    "block",
    "page",
    "pe",
    "retention_hours",
    "reads",
    "ones_fraction",
    "transitions",
    "codewords",
    "bits_read",
    "bit_errors",
    "zero_to_one",
];

/// Where a line of a table is, for messages.
struct Line<'a> {
    file: &'a str,
    number: usize,
    /// A column's place in the line by its name.
    columns: &'a HashMap<String, usize>,
    cells: Vec<&'a str>,
}

impl Line<'_> {
    fn wrong(&self, column: &str, why: String) -> ReliabilityError {
        ReliabilityError::Csv { file: self.file.into(), line: self.number, column: column.into(), why }
    }

    /// A column's cell; `None` where the table has no such column or the cell is empty.
    fn cell(&self, column: &str) -> Option<&str> {
        let text = self.cells.get(*self.columns.get(column)?)?.trim();
        (!text.is_empty()).then_some(text)
    }

    fn number(&self, column: &str, most: f64) -> Result<Option<f64>, ReliabilityError> {
        let Some(text) = self.cell(column) else { return Ok(None) };
        match text.parse::<f64>() {
            Ok(number) if (0.0..=most).contains(&number) => Ok(Some(number)),
            _ => Err(self.wrong(column, format!("{text:?} must be a number from 0 to {most}"))),
        }
    }

    fn whole(&self, column: &str, most: u64) -> Result<Option<u64>, ReliabilityError> {
        let Some(text) = self.cell(column) else { return Ok(None) };
        match text.parse::<u64>() {
            Ok(number) if number <= most => Ok(Some(number)),
            _ => Err(self.wrong(column, format!("{text:?} must be a whole number from 0 to {most}"))),
        }
    }

    fn needed(&self, column: &str) -> Result<u64, ReliabilityError> {
        // 2^53: beyond it, sums in floating point would lose single errors.
        self.whole(column, 1 << 53)?.ok_or_else(|| self.wrong(column, "the cell must not be empty".into()))
    }

    fn measurement(&self) -> Result<Measurement, ReliabilityError> {
        let (bits_read, bit_errors) = (self.needed("bits_read")?, self.needed("bit_errors")?);
        if bits_read == 0 {
            return Err(self.wrong("bits_read", "it must be above 0".into()));
        }
        if bit_errors > bits_read {
            let why = format!("{bit_errors} errors in {bits_read} bits: it must be at most bits_read");
            return Err(self.wrong("bit_errors", why));
        }
        let zero_to_one = self.whole("zero_to_one", 1 << 53)?;
        if zero_to_one.is_some_and(|flips| flips > bit_errors) {
            return Err(self.wrong("zero_to_one", format!("it must be at most bit_errors, {bit_errors}")));
        }
        let codewords = self.whole("codewords", 1 << 53)?;
        if codewords.is_some_and(|codewords| codewords == 0 || codewords > bits_read) {
            return Err(self.wrong("codewords", format!("it must be 1 to bits_read, {bits_read}")));
        }
        let place =
            |column| Ok::<_, ReliabilityError>(self.whole(column, u32::MAX.into())?.map(|n| n as u32));
        Ok(Measurement {
            source: 0,
            block: place("block")?,
            page: place("page")?,
            pe_cycles: self.number("pe", 1e9)?.unwrap_or(0.0),
            retention_hours: self.number("retention_hours", 1e9)?.unwrap_or(0.0),
            reads: self.number("reads", 1e12)?.unwrap_or(0.0),
            pattern: Pattern {
                ones_fraction: self.number("ones_fraction", 1.0)?.unwrap_or(Pattern::RANDOM.ones_fraction),
                transitions: self.number("transitions", 1.0)?.unwrap_or(Pattern::RANDOM.transitions),
            },
            codewords,
            bits_read,
            bit_errors,
            zero_to_one,
        })
    }
}

/// Reads a table of measurements: a header line, then a measurement a line; empty lines and lines that begin with `#` are
/// skipped, and so are columns of other names. `file` is for messages.
///
/// # Errors
/// [`ReliabilityError::Csv`] with the line and the column; [`ReliabilityError::Io`].
pub fn read_csv(mut input: impl BufRead, file: &str) -> Result<Vec<Measurement>, ReliabilityError> {
    let mut columns: Option<HashMap<String, usize>> = None;
    let mut found = Vec::new();
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        let wrong =
            |why: String| ReliabilityError::Csv { file: file.into(), line: number, column: "1".into(), why };
        let failed = |source| ReliabilityError::Io { what: format!("reading {file}, line {number}"), source };
        let limit = MAX_LINE_BYTES as u64 + 1;
        let bytes = std::io::Read::take(&mut input, limit).read_until(b'\n', &mut text).map_err(failed)?;
        if bytes == 0 {
            break;
        }
        if bytes > MAX_LINE_BYTES {
            return Err(wrong(format!("the line is longer than {MAX_LINE_BYTES} bytes")));
        }
        let Ok(line) = std::str::from_utf8(&text) else { return Err(wrong("the line is not UTF-8".into())) };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let cells: Vec<&str> = line.split(',').collect();
        let Some(columns) = &columns else {
            columns = Some(header(&cells, file, number)?);
            continue;
        };
        let line = Line { file, number, columns, cells };
        if line.cells.len() != columns.len() {
            let column = (line.cells.len().min(columns.len()) + 1).to_string();
            let why = format!("the line has {} cells, and the header {}", line.cells.len(), columns.len());
            return Err(line.wrong(&column, why));
        }
        found.push(line.measurement()?);
    }
    if columns.is_none() {
        let why = "the file is empty: its first line must name the columns".into();
        return Err(ReliabilityError::Csv { file: file.into(), line: 1, column: "1".into(), why });
    }
    Ok(found)
}

/// Each column's place by its name.
fn header(cells: &[&str], file: &str, number: usize) -> Result<HashMap<String, usize>, ReliabilityError> {
    let wrong =
        |column: String, why: String| ReliabilityError::Csv { file: file.into(), line: number, column, why };
    let mut columns = HashMap::new();
    for (at, name) in cells.iter().enumerate() {
        if columns.insert(name.trim().to_owned(), at).is_some() {
            return Err(wrong((at + 1).to_string(), format!("the column {:?} is there twice", name.trim())));
        }
    }
    for name in ["bits_read", "bit_errors"] {
        if !columns.contains_key(name) {
            let why = format!("the header has no such column; it may have {}", COLUMNS.join(", "));
            return Err(wrong(name.into(), why));
        }
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        read_csv(text.as_bytes(), "m.csv").unwrap_err().to_string()
    }

    #[test]
    fn a_table_is_read_by_its_columns_names() {
        let text = "# made by hand\nbit_errors, bits_read,colour,block,pe\n3,100,red,7,1e3\n\n0,50,,,\n";
        let found = read_csv(text.as_bytes(), "m.csv").unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].bit_errors, found[0].bits_read, found[0].block, found[0].page),
            (3, 100, Some(7), None)
        );
        assert_eq!(
            (found[0].pe_cycles, found[0].pattern, found[0].codewords),
            (1000.0, Pattern::RANDOM, None)
        );
        assert_eq!((found[1].block, found[1].pe_cycles), (None, 0.0));
    }

    #[test]
    fn a_wrong_table_is_named_with_line_and_column() {
        assert_eq!(
            error(""),
            "m.csv, line 1, column 1: the file is empty: its first line must name the columns"
        );
        assert!(
            error("pe,bits_read\n")
                .starts_with("m.csv, line 1, column bit_errors: the header has no such column")
        );
        assert!(
            error("pe,pe,bits_read,bit_errors\n")
                .starts_with("m.csv, line 1, column 2: the column \"pe\" is there")
        );
        let rows = |rows: &str| error(&format!("pe,bits_read,bit_errors\n{rows}\n"));
        assert_eq!(
            rows("1,100,2\n1,100,x"),
            "m.csv, line 3, column bit_errors: \"x\" must be a whole number from 0 to 9007199254740992"
        );
        assert!(rows("1,100").starts_with("m.csv, line 2, column 3: the line has 2 cells, and the header 3"));
        assert!(rows("1,100,1,1").starts_with("m.csv, line 2, column 4: the line has 4 cells"));
        assert!(rows("1,,2").contains("column bits_read: the cell must not be empty"));
        assert!(rows("1,0,0").contains("column bits_read: it must be above 0"));
        assert!(rows("1,10,11").contains("column bit_errors: 11 errors in 10 bits"));
        for pe in ["-1", "nan", "inf", "1e10", "many"] {
            assert!(rows(&format!("{pe},10,1")).starts_with("m.csv, line 2, column pe: "), "{pe}");
        }
        assert!(
            error("bits_read,bit_errors,zero_to_one\n10,3,4\n")
                .contains("column zero_to_one: it must be at most")
        );
        assert!(
            error("bits_read,bit_errors,codewords\n10,3,0\n").contains("column codewords: it must be 1 to")
        );
        assert!(
            error("bits_read,bit_errors,ones_fraction\n10,3,1.5\n").contains("column ones_fraction: \"1.5\"")
        );
        assert!(error(&"x".repeat(100_000)).contains("line 1, column 1: the line is longer than"));
        assert!(read_csv(&b"\xff\xfe,\n"[..], "m.csv").unwrap_err().to_string().contains("not UTF-8"));
    }
}
