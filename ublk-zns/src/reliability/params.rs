//! The parameters of the error model: where they come from, and what they may be.
//!
//! The invariant of parameters that [`ErrorParams::check`] has accepted: every number is finite and inside its range, lists
//! have the lengths that the cell's bits ask for, and codewords tile pages; no later code has to doubt them. Their meaning
//! is in docs/error-model.md; where each built-in number comes from is in the files under `ublk-zns/reliability/`.

use super::ReliabilityError;
use serde::{Deserialize, Serialize};
use std::{fs, path::Path};

/// The built-in parameter sets.
const BUILT_IN: [(&str, &str); 5] = [
    ("none", include_str!("../../reliability/none.toml")),
    ("slc", include_str!("../../reliability/slc.toml")),
    ("mlc-2d", include_str!("../../reliability/mlc-2d.toml")),
    ("tlc-3d", include_str!("../../reliability/tlc-3d.toml")),
    ("qlc-3d", include_str!("../../reliability/qlc-3d.toml")),
];

/// Each number that is not in a list, with its least and greatest value, in the order in which a file shows them.
const RANGES: [(&str, f64, f64); 38] = [
    ("bits_per_cell", 1.0, 4.0),
    ("layers", 0.0, 4096.0),
    ("page_bytes", 512.0, 1048576.0),
    ("pages_per_block", 1.0, 65536.0),
    ("base_rber", 0.0, 0.5),
    ("pe_reference_cycles", 1.0, 1e7),
    ("wear_rber", 0.0, 0.5),
    ("pe_exponent", 0.01, 8.0),
    ("retention_reference_hours", 1e-6, 1e7),
    ("retention_rber", 0.0, 0.5),
    ("retention_pe_exponent", 0.0, 8.0),
    ("retention_exponent", 0.01, 8.0),
    ("disturb_reference_reads", 1.0, 1e12),
    ("disturb_rber", 0.0, 0.5),
    ("disturb_pe_exponent", 0.0, 8.0),
    ("disturb_exponent", 0.01, 8.0),
    ("temperature_c", -55.0, 200.0),
    ("reference_temperature_c", -55.0, 200.0),
    ("activation_energy_ev", 0.0, 3.0),
    ("time_acceleration", 0.0, 1e12),
    ("block_sigma", 0.0, 2.0),
    ("layer_sigma", 0.0, 2.0),
    ("edge_wordlines", 0.0, 65536.0),
    ("edge_factor", 0.01, 100.0),
    ("zero_bias", -0.95, 0.95),
    ("interference", -0.95, 0.95),
    ("dispersion", 0.0, 100.0),
    ("redraw_reads", 0.0, 4294967295.0),
    ("codeword_bytes", 512.0, 65536.0),
    ("correctable_bits", 0.0, 65536.0),
    ("initial_pe_cycles", 0.0, 4294967295.0),
    ("endurance_cycles", 0.0, 1e9),
    ("endurance_sigma", 0.0, 2.0),
    ("offline_factor", 1.0, 100.0),
    ("offline_uncorrectable_reads", 0.0, 4294967295.0),
    // Not numbers: they have their places in the order.
    ("randomizer", f64::NAN, f64::NAN),
    ("layer_profile", f64::NAN, f64::NAN),
    ("page_type_factors", f64::NAN, f64::NAN),
];

/// The parameters of the error model and of wear. Rates are raw bit errors per bit, averaged over all pages of a block, all
/// blocks, and random data. docs/error-model.md has the formulas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ErrorParams {
    /// Bits of a cell, 1 to 4: the pages of a word line.
    pub bits_per_cell: u32,
    /// Word-line layers of the stack; 0 for planar (2D) flash.
    pub layers: u32,
    /// Bytes of a page, without its spare area.
    pub page_bytes: u32,
    /// Pages of an erase block.
    pub pages_per_block: u32,
    /// Rate of a block that was just programmed and has hardly any wear.
    pub base_rber: f64,
    /// The program/erase cycles at which the rates below are given.
    pub pe_reference_cycles: f64,
    /// Rate that wear adds at the reference cycles.
    pub wear_rber: f64,
    /// How that grows: with cycles to this power.
    pub pe_exponent: f64,
    /// The retention time at which `retention_rber` is given, in hours.
    pub retention_reference_hours: f64,
    /// Rate that the reference retention time adds at the reference cycles.
    pub retention_rber: f64,
    /// How that grows with cycles: to this power.
    pub retention_pe_exponent: f64,
    /// How it grows with time: to this power.
    pub retention_exponent: f64,
    /// The reads of a block at which `disturb_rber` is given.
    pub disturb_reference_reads: f64,
    /// Rate that as many reads since the erase add at the reference cycles.
    pub disturb_rber: f64,
    /// How that grows with cycles: to this power.
    pub disturb_pe_exponent: f64,
    /// How it grows with reads: to this power.
    pub disturb_exponent: f64,
    /// Temperature of the device in degrees Celsius.
    pub temperature_c: f64,
    /// Temperature at which the retention numbers are given.
    pub reference_temperature_c: f64,
    /// Activation energy of retention loss in electronvolts; 0 switches temperature off.
    pub activation_energy_ev: f64,
    /// Hours of retention per hour of the device's clock: 525600 makes a minute a year.
    pub time_acceleration: f64,
    /// Standard deviation of the logarithm of a block's factor.
    pub block_sigma: f64,
    /// Relative rate at points evenly spread from the bottom to the top of the stack; between them, the logarithm is linear.
    pub layer_profile: Vec<f64>,
    /// Standard deviation of the logarithm of each layer's own factor beside the profile.
    pub layer_sigma: f64,
    /// Relative rate of the pages of a word line, one for each bit of a cell, lowest first.
    pub page_type_factors: Vec<f64>,
    /// Word lines at each end of a block that have `edge_factor`.
    pub edge_wordlines: u32,
    /// Relative rate of the word lines at the ends of a block.
    pub edge_factor: f64,
    /// How much more often than the mean a bit written 0 is read as 1 (and how much less a 1 as 0), -0.95 to 0.95.
    pub zero_bias: f64,
    /// How much more than random data errs data in which every bit differs from its neighbour, -0.95 to 0.95.
    pub interference: f64,
    /// Whether the device scrambles data before it programs them, which averages out what depends on the data.
    pub randomizer: bool,
    /// Variance of a codeword's errors beyond Poisson: mean + dispersion × mean².
    pub dispersion: f64,
    /// Reads of a block after which its codewords' luck is drawn anew; 0 for once per program.
    pub redraw_reads: u32,
    /// Bytes of data that one codeword protects; a power of two, at least a sector of 512.
    pub codeword_bytes: u32,
    /// Bit errors that the code corrects in a codeword.
    pub correctable_bits: u32,
    /// Factor on the rate at each step of read-retry, in the order they are tried.
    pub retry_factors: Vec<f64>,
    /// What each step adds to a read's latency, in nanoseconds; as many as there are factors.
    pub retry_latency_ns: Vec<u64>,
    /// Cycles that every block has behind it when the device is new.
    pub initial_pe_cycles: u32,
    /// Median of the cycles that a block endures; 0 for no end of life.
    pub endurance_cycles: f64,
    /// Standard deviation of the logarithm of a block's endurance.
    pub endurance_sigma: f64,
    /// At how many times a zone's endurance it goes offline.
    pub offline_factor: f64,
    /// After how many uncorrectable reads a read-only zone goes offline; 0 for never.
    pub offline_uncorrectable_reads: u32,
}

impl Default for ErrorParams {
    /// A device that never errs and never wears out.
    fn default() -> Self {
        ErrorParams {
            bits_per_cell: 1,
            layers: 0,
            page_bytes: 4096,
            pages_per_block: 256,
            base_rber: 0.0,
            pe_reference_cycles: 1000.0,
            wear_rber: 0.0,
            pe_exponent: 1.0,
            retention_reference_hours: 8760.0,
            retention_rber: 0.0,
            retention_pe_exponent: 1.0,
            retention_exponent: 1.0,
            disturb_reference_reads: 1e5,
            disturb_rber: 0.0,
            disturb_pe_exponent: 1.0,
            disturb_exponent: 1.0,
            temperature_c: 40.0,
            reference_temperature_c: 40.0,
            activation_energy_ev: 0.0,
            time_acceleration: 1.0,
            block_sigma: 0.0,
            layer_profile: Vec::new(),
            layer_sigma: 0.0,
            page_type_factors: vec![1.0],
            edge_wordlines: 0,
            edge_factor: 1.0,
            zero_bias: 0.0,
            interference: 0.0,
            randomizer: true,
            dispersion: 0.0,
            redraw_reads: 0,
            codeword_bytes: 1024,
            correctable_bits: 40,
            retry_factors: Vec::new(),
            retry_latency_ns: Vec::new(),
            initial_pe_cycles: 0,
            endurance_cycles: 0.0,
            endurance_sigma: 0.0,
            offline_factor: 1.1,
            offline_uncorrectable_reads: 0,
        }
    }
}

/// A parameter file: the parameters, and what a fit says of how it found them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    errors: ErrorParams,
    #[serde(rename = "fit")]
    _fit: Option<toml::Table>,
}

impl ErrorParams {
    /// The names of the built-in parameter sets.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// The text of a built-in parameter file, with its sources; `None` for a name that is none.
    pub fn built_in_text(name: &str) -> Option<&'static str> {
        BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
    }

    /// A built-in parameter set.
    ///
    /// # Errors
    /// [`ReliabilityError::Unknown`] with the names there are.
    pub fn built_in(name: &str) -> Result<ErrorParams, ReliabilityError> {
        let Some(text) = ErrorParams::built_in_text(name) else {
            let known = ErrorParams::names().collect::<Vec<_>>().join(", ");
            return Err(ReliabilityError::Unknown { kind: "error parameters", name: name.into(), known });
        };
        ErrorParams::parse(text, &format!("{name}.toml"))
    }

    /// The built-in set of that name, or the file at that path if it holds a slash or ends in `.toml`.
    ///
    /// # Errors
    /// As [`ErrorParams::built_in`] and [`ErrorParams::parse`]; [`ReliabilityError::Io`].
    pub fn load(name_or_path: &str) -> Result<ErrorParams, ReliabilityError> {
        if !name_or_path.contains('/') && !name_or_path.ends_with(".toml") {
            return ErrorParams::built_in(name_or_path);
        }
        let text = fs::read_to_string(Path::new(name_or_path))
            .map_err(|source| ReliabilityError::Io { what: format!("reading {name_or_path}"), source })?;
        ErrorParams::parse(&text, name_or_path)
    }

    /// Parameters from the text of a TOML file: the table `errors`, whose missing fields are as in `none`, and a table
    /// `fit`, which is not looked at. `file` is for messages.
    ///
    /// # Errors
    /// [`ReliabilityError::Toml`] with line and column; [`ReliabilityError::Parameter`].
    pub fn parse(text: &str, file: &str) -> Result<ErrorParams, ReliabilityError> {
        let parsed: File = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
            ReliabilityError::Toml {
                file: file.into(),
                line: before.matches('\n').count() + 1,
                column: before.chars().rev().take_while(|c| *c != '\n').count() + 1,
                why: error.message().lines().collect::<Vec<_>>().join("; "),
            }
        })?;
        parsed.errors.check(file)?;
        Ok(parsed.errors)
    }

    /// Changes one parameter, as the option `--set-error field=value` does; the value is written as in TOML. Nothing is
    /// changed by an error.
    ///
    /// # Errors
    /// [`ReliabilityError::Unknown`], [`ReliabilityError::Parameter`].
    pub fn set(&mut self, assignment: &str) -> Result<(), ReliabilityError> {
        *self = self.with(&[assignment])?;
        Ok(())
    }

    /// These parameters with several changed at once, so that lists that belong together can change their length.
    ///
    /// # Errors
    /// As [`ErrorParams::set`].
    pub fn with<S: AsRef<str>>(&self, assignments: &[S]) -> Result<ErrorParams, ReliabilityError> {
        const PLACE: &str = "--set-error";
        let mut fields = self.fields();
        for assignment in assignments {
            let assignment = assignment.as_ref();
            let wrong = |field: &str, value: &str, rule: String| ReliabilityError::Parameter {
                place: PLACE.into(),
                field: field.into(),
                value: value.escape_debug().to_string(),
                rule,
            };
            let Some((field, value)) = assignment.split_once('=') else {
                let rule = "it must be field=value, such as pe_exponent=1.5".into();
                return Err(wrong("the assignment", assignment, rule));
            };
            let (field, value) = (field.trim(), value.trim());
            if !fields.contains_key(field) {
                let known = fields.keys().cloned().collect::<Vec<_>>().join(", ");
                return Err(ReliabilityError::Unknown { kind: "error parameter", name: field.into(), known });
            }
            let not_a_value =
                || wrong(field, value, "it must be a number, true, false or a list of numbers".into());
            // A newline would let a value smuggle in another assignment.
            if value.contains(['\n', '\r']) {
                return Err(not_a_value());
            }
            let parsed: serde_json::Value = toml::from_str::<toml::Table>(&format!("value = {value}"))
                .ok()
                .and_then(|mut table| serde_json::to_value(table.remove("value")?).ok())
                .ok_or_else(not_a_value)?;
            // Alone first, so that a message of the wrong type can name the field.
            let alone = serde_json::Map::from_iter([(field.to_owned(), parsed.clone())]);
            serde_json::from_value::<ErrorParams>(alone.into())
                .map_err(|error| wrong(field, value, error.to_string()))?;
            fields.insert(field.into(), parsed);
        }
        let changed: ErrorParams =
            serde_json::from_value(fields.into()).map_err(|error| ReliabilityError::Parameter {
                place: PLACE.into(),
                field: "one of the parameters".into(),
                value: "of a wrong type".into(),
                rule: error.to_string(),
            })?;
        changed.check(PLACE)?;
        Ok(changed)
    }

    /// Every parameter by its name.
    fn fields(&self) -> serde_json::Map<String, serde_json::Value> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        }
    }

    /// Whether no read can have an error and no zone can wear out.
    pub fn is_none(&self) -> bool {
        self.has_no_errors() && self.endurance_cycles == 0.0
    }

    /// Whether no read can have an error.
    pub fn has_no_errors(&self) -> bool {
        [self.base_rber, self.wear_rber, self.retention_rber, self.disturb_rber]
            .iter()
            .all(|rate| *rate == 0.0)
    }

    /// Checks what a struct literal may have got wrong; `place` says in a message where the parameters come from.
    ///
    /// # Errors
    /// [`ReliabilityError::Parameter`].
    pub fn check(&self, place: &str) -> Result<(), ReliabilityError> {
        let wrong = |field: &str, value: String, rule: String| {
            Err(ReliabilityError::Parameter { place: place.into(), field: field.into(), value, rule })
        };
        let fields = self.fields();
        for (field, least, most) in RANGES.iter().filter(|(_, least, _)| !least.is_nan()) {
            let value = fields.get(*field).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
            if !(*least..=*most).contains(&value) {
                return wrong(field, value.to_string(), format!("it must be {least} to {most}"));
            }
        }
        let list = |field: &str, values: &[f64], most: usize| {
            if values.len() > most {
                let rule = format!("it must have at most {most} numbers");
                return wrong(field, format!("a list of {}", values.len()), rule);
            }
            match values.iter().find(|value| !(1e-3..=1e3).contains(*value)) {
                Some(value) => wrong(field, format!("{values:?}"), format!("{value} must be 0.001 to 1000")),
                None => Ok(()),
            }
        };
        list("layer_profile", &self.layer_profile, 4096)?;
        list("page_type_factors", &self.page_type_factors, 4)?;
        list("retry_factors", &self.retry_factors, 64)?;
        if self.page_type_factors.len() != self.bits_per_cell as usize {
            let rule = format!("it must have a number for each of the {} bits of a cell", self.bits_per_cell);
            return wrong("page_type_factors", format!("{:?}", self.page_type_factors), rule);
        }
        if self.retry_latency_ns.len() != self.retry_factors.len() {
            let rule = format!("it must have as many numbers as retry_factors: {}", self.retry_factors.len());
            return wrong("retry_latency_ns", format!("{:?}", self.retry_latency_ns), rule);
        }
        if let Some(latency) = self.retry_latency_ns.iter().find(|latency| **latency > 1_000_000_000) {
            return wrong("retry_latency_ns", latency.to_string(), "a step must be at most a second".into());
        }
        if !self.page_bytes.is_power_of_two() {
            return wrong("page_bytes", self.page_bytes.to_string(), "it must be a power of two".into());
        }
        if !self.page_bytes.is_multiple_of(self.codeword_bytes) {
            let rule = format!("it must divide page_bytes, {}", self.page_bytes);
            return wrong("codeword_bytes", self.codeword_bytes.to_string(), rule);
        }
        if u64::from(self.correctable_bits) > u64::from(self.codeword_bytes) * 8 {
            let rule = format!("a codeword has {} bits", u64::from(self.codeword_bytes) * 8);
            return wrong("correctable_bits", self.correctable_bits.to_string(), rule);
        }
        Ok(())
    }

    /// The parameters as a TOML file's table `errors`, which [`ErrorParams::parse`] reads back to the same values.
    pub fn to_toml(&self) -> String {
        let fields = self.fields();
        let order = RANGES.iter().map(|(field, ..)| *field).chain(["retry_factors", "retry_latency_ns"]);
        let mut text = String::from("[errors]\n");
        for field in order {
            // A list of numbers, a number and a bool are written alike in JSON and in TOML.
            if let Some(value) = fields.get(field) {
                text.push_str(&format!("{field} = {value}\n"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_parses_states_every_field_and_is_written_back_as_it_was() {
        for name in ErrorParams::names() {
            let params = ErrorParams::built_in(name).unwrap();
            let again = ErrorParams::parse(&params.to_toml(), "again").unwrap();
            assert_eq!(again, params, "{name}");
            let stated: toml::Table = toml::from_str(ErrorParams::built_in_text(name).unwrap()).unwrap();
            let stated = stated["errors"].as_table().unwrap();
            for field in params.fields().keys() {
                assert!(stated.contains_key(field), "{name}.toml does not state {field}");
            }
        }
        assert_eq!(ErrorParams::built_in("none").unwrap(), ErrorParams::default());
        assert!(ErrorParams::default().is_none() && !ErrorParams::built_in("tlc-3d").unwrap().is_none());
        let error = ErrorParams::built_in("tlc").unwrap_err().to_string();
        assert!(error.contains("\"tlc\"") && error.contains("none, slc, mlc-2d, tlc-3d, qlc-3d"), "{error}");
    }

    #[test]
    fn every_field_has_a_range_or_a_rule_and_a_place_in_a_file() {
        let text = ErrorParams::default().to_toml();
        for field in ErrorParams::default().fields().keys() {
            assert!(text.contains(&format!("\n{field} = ")), "{field} is not written");
        }
        for (field, ..) in RANGES {
            assert!(ErrorParams::default().fields().contains_key(field), "{field} is no field");
        }
    }

    #[test]
    fn an_assignment_changes_one_field_and_a_wrong_one_changes_nothing() {
        let mut params = ErrorParams::built_in("tlc-3d").unwrap();
        params.set("pe_exponent=1.5").unwrap();
        params.set(" base_rber = 2e-4 ").unwrap();
        params.set("pe_exponent = 2").unwrap();
        params.set("randomizer=false").unwrap();
        params.set("layer_profile=[1, 2.5, 1]").unwrap();
        assert_eq!((params.pe_exponent, params.base_rber, params.randomizer), (2.0, 2e-4, false));
        assert_eq!(params.layer_profile, [1.0, 2.5, 1.0]);
        let before = params.clone();
        for (wrong, message) in [
            ("pe_exponent", "field=value"),
            ("pe_exponnt=1", "no error parameter \"pe_exponnt\""),
            ("pe_exponent=9", "must be 0.01 to 8"),
            ("pe_exponent=nan", "pe_exponent is nan"),
            ("pe_exponent=fast", "must be a number"),
            ("pe_exponent=1\nbase_rber=0.1", "must be a number"),
            ("layers=6.5", "layers is 6.5"),
            ("layers=-1", "layers is -1"),
            ("page_type_factors=[1]", "each of the 3 bits"),
            ("bits_per_cell=4", "each of the 4 bits"),
            ("retry_factors=[0.5]", "as many numbers as retry_factors"),
            ("codeword_bytes=3000", "must divide page_bytes"),
            ("correctable_bits=9000", "8192 bits"),
            ("block_sigma=1e999", "block_sigma"),
            ("layer_profile=[0]", "must be 0.001 to 1000"),
            ("retry_latency_ns=[1,2,3,4,10000000000]", "at most a second"),
        ] {
            let error = params.set(wrong).unwrap_err().to_string();
            assert!(error.contains(message) && !error.contains('\n'), "{wrong:?}: {error}");
            assert_eq!(params, before);
        }
        let both = params.with(&["retry_factors=[0.5]", "retry_latency_ns=[7]"]).unwrap();
        assert_eq!((both.retry_factors, both.retry_latency_ns), (vec![0.5], vec![7]));
    }

    #[test]
    fn a_wrong_file_is_named_with_line_and_column() {
        let error = |text: &str| ErrorParams::parse(text, "x.toml").unwrap_err().to_string();
        assert!(
            error("[errors]\nlayers = 1\nspeed = 2\n").starts_with("x.toml, line 3, column 1: unknown field")
        );
        assert!(error("[errors]\nlayers = 'x'\n").starts_with("x.toml, line 2, column 10: invalid type"));
        assert!(error("[errors\n").starts_with("x.toml, line 1, column"));
        assert!(error("a = 1\n[errors]\n").contains("unknown field `a`"));
        assert!(error("").contains("missing field `errors`"));
        assert_eq!(error("[errors]\nbase_rber = 0.6\n"), "x.toml: base_rber is 0.6: it must be 0 to 0.5");
        assert!(error("[errors]\nbase_rber = nan\n").contains("base_rber is NaN"));
        assert!(ErrorParams::parse("[errors]\n[fit]\nrows = 3\n", "x.toml").is_ok());
        let error = ErrorParams::load("/nonexistent/a.toml").unwrap_err().to_string();
        assert!(error.contains("reading /nonexistent/a.toml: "), "{error}");
    }
}
