//! The parameters of the reliability model: where they come from, and what they may be.
//!
//! The invariant of parameters that [`ReliabilityParams::check`] accepted: every number is finite and inside its range, and the
//! table of erase times rises. docs/spi-error-model.md says what each does; the files under `spiflash-mtd/reliability/` say
//! where each built-in number comes from.

use super::ReliabilityError;
use serde::{Deserialize, Serialize};
use std::fs;

/// The built-in parameter sets.
const BUILT_IN: [(&str, &str); 6] = [
    ("none", include_str!("../../reliability/none.toml")),
    ("nor-65nm", include_str!("../../reliability/nor-65nm.toml")),
    ("slc-nand", include_str!("../../reliability/slc-nand.toml")),
    ("toggle-mram", include_str!("../../reliability/toggle-mram.toml")),
    ("stt-mram", include_str!("../../reliability/stt-mram.toml")),
    ("fram", include_str!("../../reliability/fram.toml")),
];

/// Writes the struct, its default (which never errs and never wears) and the range of each number from one list.
macro_rules! parameters {
    ($($(#[$doc:meta])* $field:ident: $kind:ty = $default:literal, $least:literal to $most:literal;)*) => {
        /// The numbers of the model. Rates are bit errors per bit, averaged over blocks, pages and random data. A bias b says
        /// which way bits err: a bit written 0 with 1 + b times the rate, a bit written 1 with 1 - b times.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct ReliabilityParams {
            $($(#[$doc])* pub $field: $kind,)*
            /// How erasing slows: pairs of cycles and the factor on the time, rising; between two, straight in logarithms.
            /// Before the first the factor is the first's; after the last the last slope goes on. Empty for no slowing.
            pub erase_wear: Vec<[f64; 2]>,
        }

        impl Default for ReliabilityParams {
            fn default() -> Self {
                ReliabilityParams { $($field: $default,)* erase_wear: Vec::new() }
            }
        }

        impl ReliabilityParams {
            /// Each number's name, value, least and greatest, in the order of a file.
            fn numbers(&self) -> Vec<(&'static str, f64, f64, f64)> {
                vec![$((stringify!($field), f64::from(self.$field), $least as f64, $most as f64),)*]
            }
        }
    };
}

parameters! {
    /// Bytes of a page of the chips that the tables measure. A chip has its part's.
    page_bytes: u32 = 256, 1 to 65536;
    /// Pages of an erase block of the chips that the tables measure.
    pages_per_block: u32 = 16, 1 to 65536;
    /// Layers of a stacked chip: page p of a block is in layer p × layers / pages of a block. 0 for planar.
    layers: u32 = 0, 0 to 4096;
    /// Rate of a page just programmed, with hardly any wear.
    base_rber: f64 = 0.0, 0.0 to 0.5;
    /// Which way those bits err.
    base_bias: f64 = 0.0, -1.0 to 1.0;
    /// The cycles at which the other rates are given.
    pe_reference_cycles: f64 = 100000.0, 1.0 to 1e7;
    /// Rate that wear adds at the reference cycles.
    wear_rber: f64 = 0.0, 0.0 to 0.5;
    /// Which way those bits err.
    wear_bias: f64 = 0.0, -1.0 to 1.0;
    /// Wear grows with cycles to this power.
    pe_exponent: f64 = 1.0, 0.01 to 8.0;
    /// The time at which `retention_rber` is given, in hours at the reference temperature.
    retention_reference_hours: f64 = 87600.0, 1e-6 to 1e7;
    /// Rate that the reference time adds at the reference cycles.
    retention_rber: f64 = 0.0, 0.0 to 0.5;
    /// Which way those bits err.
    retention_bias: f64 = 0.0, -1.0 to 1.0;
    /// Retention errors grow with cycles to this power.
    retention_pe_exponent: f64 = 0.0, 0.0 to 8.0;
    /// They grow with time to this power.
    retention_exponent: f64 = 1.0, 0.01 to 8.0;
    /// The reads of the block since its erase at which `disturb_rber` is given.
    disturb_reference_reads: f64 = 1000000.0, 1.0 to 1e15;
    /// Rate that as many reads add at the reference cycles.
    disturb_rber: f64 = 0.0, 0.0 to 0.5;
    /// Which way those bits err.
    disturb_bias: f64 = 0.0, -1.0 to 1.0;
    /// Read disturb grows with cycles to this power.
    disturb_pe_exponent: f64 = 0.0, 0.0 to 8.0;
    /// It grows with reads to this power.
    disturb_exponent: f64 = 1.0, 0.01 to 8.0;
    /// The chip's temperature at its start, in degrees Celsius.
    temperature_c: f64 = 25.0, -55.0 to 200.0;
    /// The temperature at which retention is given.
    reference_temperature_c: f64 = 25.0, -55.0 to 200.0;
    /// Arrhenius' activation energy of retention, in electron volts; 0 for no dependence.
    activation_energy_ev: f64 = 0.0, 0.0 to 3.0;
    /// Hours of retention that pass in an hour of the model's clock.
    time_acceleration: f64 = 1.0, 0.0 to 1e12;
    /// Deviation of the logarithm of a block's rate.
    block_sigma: f64 = 0.0, 0.0 to 2.0;
    /// Deviation of the logarithm of a layer's rate, the same layer in every block.
    layer_sigma: f64 = 0.0, 0.0 to 2.0;
    /// Deviation of the logarithm of a page's rate, which stays through all its programs.
    page_sigma: f64 = 0.0, 0.0 to 2.0;
    /// Over-dispersion of a page's error count, new with each program: variance = mean + dispersion × mean².
    dispersion: f64 = 0.0, 0.0 to 10.0;
    /// How much more often than random data a bit errs whose neighbours in its byte all differ from it.
    interference: f64 = 0.0, -0.95 to 0.95;
    /// Half width of the band around the present rate in which a cell reads now so, now so, as a share of the rate.
    read_noise: f64 = 0.0, 0.0 to 0.9;
    /// Median of the erases that a block endures; 0 for no end.
    endurance_cycles: f64 = 0.0, 0.0 to 1e12;
    /// Deviation of the logarithm of a block's endurance.
    endurance_sigma: f64 = 0.0, 0.0 to 2.0;
    /// A worn block fails now and then at first, and always after this share of its endurance more.
    endurance_intermittence: f64 = 0.0, 0.0 to 10.0;
    /// At how many times the block's endurance programs fail too.
    program_endurance_factor: f64 = 1.0, 0.1 to 100.0;
    /// Share of a block's cells that are stuck when it has reached its endurance; it grows in proportion to cycles.
    stuck_share: f64 = 0.0, 0.0 to 1.0;
    /// How much of the spread between typical and maximum time there is: 1 for all of it, 0 for always the typical time.
    time_spread: f64 = 0.0, 0.0 to 1.0;
    /// Share of the times' (logarithmic) variance that belongs to the block or page and stays; the rest is new each time.
    time_place_share: f64 = 0.0, 0.0 to 1.0;
    /// Factor on the time of a program at the reference cycles; it grows in proportion to cycles from 1.
    program_wear_factor: f64 = 1.0, 1.0 to 10.0;
    /// Factor on the time to erase what is blank.
    blank_erase_factor: f64 = 1.0, 0.001 to 1.0;
    /// Half width of the band around an interrupted operation's point in which cells read now so, now so; of its length.
    marginal_band: f64 = 0.0, 0.0 to 0.5;
    /// How much a program goes byte by byte: 1 strictly, 0 all cells at once.
    program_sequential_share: f64 = 0.5, 0.0 to 1.0;
    /// Share of an erase in which all cells are programmed first.
    erase_preprogram_share: f64 = 0.25, 0.0 to 0.9;
    /// Share of an erase at its end in which over-erased cells are recovered.
    erase_recovery_share: f64 = 0.15, 0.0 to 0.9;
    /// Share of cells that read now so, now so if the recovery did not happen at all.
    erase_weak_share: f64 = 0.0, 0.0 to 1.0;
    /// Probability that a bit that is to change does not (MRAM).
    write_error_rate: f64 = 0.0, 0.0 to 0.5;
    /// Deviation of the logarithm of a cell's own such probability.
    write_error_sigma: f64 = 0.0, 0.0 to 3.0;
    /// Median of the accesses, reads and writes alike, that a row endures (FRAM); 0 for no end.
    access_endurance: f64 = 0.0, 0.0 to 1e18;
    /// Deviation of the logarithm of a row's endurance.
    access_endurance_sigma: f64 = 0.0, 0.0 to 2.0;
    /// Bytes of such a row.
    access_row_bytes: u32 = 8, 1 to 65536;
}

/// A parameter file: the parameters, and what a fit says of how it found them, which is not looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    reliability: ReliabilityParams,
    #[serde(rename = "fit")]
    _fit: Option<toml::Table>,
}

impl ReliabilityParams {
    /// The names of the built-in sets.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// The text of a built-in set's file, sources and all; `None` for a name that is none.
    pub fn built_in_text(name: &str) -> Option<&'static str> {
        BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
    }

    /// The built-in set of that name; or, if the name holds a slash or ends in `.toml`, the file at that path.
    ///
    /// # Errors
    /// [`ReliabilityError::Unknown`] with the names there are; [`ReliabilityError::Io`]; and as [`ReliabilityParams::parse`].
    pub fn load(name_or_path: &str) -> Result<ReliabilityParams, ReliabilityError> {
        if let Some(text) = ReliabilityParams::built_in_text(name_or_path) {
            return ReliabilityParams::parse(text, &format!("{name_or_path}.toml"));
        }
        if !name_or_path.contains('/') && !name_or_path.ends_with(".toml") {
            let known =
                format!("{}, or a .toml file", ReliabilityParams::names().collect::<Vec<_>>().join(", "));
            return Err(ReliabilityError::Unknown {
                kind: "reliability set",
                name: name_or_path.into(),
                known,
            });
        }
        let text = fs::read_to_string(name_or_path)
            .map_err(|source| ReliabilityError::Io { what: format!("reading {name_or_path}"), source })?;
        ReliabilityParams::parse(&text, name_or_path)
    }

    /// Parameters from a TOML file's text: a table `[reliability]`, whose missing fields are as in `none`, and at will a table
    /// `[fit]`, which is skipped. `file` is for messages.
    ///
    /// # Errors
    /// [`ReliabilityError::Toml`] with the line; [`ReliabilityError::Value`].
    pub fn parse(text: &str, file: &str) -> Result<ReliabilityParams, ReliabilityError> {
        let parsed: File = toml::from_str(text).map_err(|error| ReliabilityError::Toml {
            file: file.into(),
            line: error
                .span()
                .and_then(|span| text.get(..span.start))
                .map_or(1, |before| before.matches('\n').count() + 1),
            why: error.message().replace('\n', "; "),
        })?;
        parsed.reliability.check(file)?;
        Ok(parsed.reliability)
    }

    /// These parameters with some changed, each as `field=value`, the value as in TOML.
    ///
    /// # Errors
    /// [`ReliabilityError::Value`] for what is no such assignment or out of range; [`ReliabilityError::Unknown`] for a field
    /// that is none.
    pub fn with<S: AsRef<str>>(&self, assignments: &[S]) -> Result<ReliabilityParams, ReliabilityError> {
        const PLACE: &str = "override";
        let wrong = |field: &str, value: &str, rule: String| ReliabilityError::Value {
            place: PLACE.into(),
            field: field.escape_debug().to_string(),
            value: value.escape_debug().to_string(),
            rule,
        };
        let mut changed = self.clone();
        for assignment in assignments {
            let assignment = assignment.as_ref();
            let (field, value) = assignment
                .split_once('=')
                .map(|(field, value)| (field.trim(), value.trim()))
                .ok_or_else(|| {
                    wrong(
                        "the assignment",
                        assignment,
                        "it must be field=value, such as pe_exponent=1.5".into(),
                    )
                })?;
            let mut known: Vec<&str> = self.numbers().iter().map(|number| number.0).collect();
            known.push("erase_wear");
            if !known.contains(&field) {
                let known = known.join(", ");
                return Err(ReliabilityError::Unknown { kind: "parameter", name: field.into(), known });
            }
            // A file in which this is the last field: what is said twice is an error, so that one line is one value.
            let others: Vec<String> =
                changed.lines().filter(|line| !line.starts_with(&format!("{field} ="))).collect();
            let text = format!("[reliability]\n{}\n{field} = {value}\n", others.join("\n"));
            if value.is_empty() || value.contains(['\n', '\r']) {
                return Err(wrong(field, value, "it must be one value".into()));
            }
            changed = toml::from_str::<File>(&text)
                .map_err(|error| wrong(field, value, error.message().replace('\n', "; ")))?
                .reliability;
        }
        changed.check(PLACE)?;
        Ok(changed)
    }

    /// Checks every range; `place` says in a message where the parameters are from.
    ///
    /// # Errors
    /// [`ReliabilityError::Value`].
    pub fn check(&self, place: &str) -> Result<(), ReliabilityError> {
        let wrong = |field: &str, value: String, rule: String| {
            Err(ReliabilityError::Value { place: place.into(), field: field.into(), value, rule })
        };
        for (field, value, least, most) in self.numbers() {
            if !(least..=most).contains(&value) {
                return wrong(field, value.to_string(), format!("it must be {least} to {most}"));
            }
        }
        let table = &self.erase_wear;
        if table.len() > 64 {
            return wrong("erase_wear", format!("a list of {}", table.len()), "at most 64 pairs".into());
        }
        for pair in table {
            if !(1.0..=1e9).contains(&pair[0]) || !(1.0..=1000.0).contains(&pair[1]) {
                let rule = "a pair must be cycles from 1 to 1e9 and a factor from 1 to 1000".into();
                return wrong("erase_wear", format!("{pair:?}"), rule);
            }
        }
        if let Some(step) = table.windows(2).find(|step| step[1][0] <= step[0][0] || step[1][1] < step[0][1])
        {
            let rule = "cycles must rise, and factors not fall".into();
            return wrong("erase_wear", format!("{step:?}"), rule);
        }
        if self.erase_preprogram_share + self.erase_recovery_share > 0.95 {
            let rule =
                "with erase_preprogram_share it must leave 0.05 of an erase for the erase pulse".into();
            return wrong("erase_recovery_share", self.erase_recovery_share.to_string(), rule);
        }
        Ok(())
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        // The debug form of a number is one of TOML too, and reads back to the same number.
        let numbers = self.numbers().into_iter().map(|(field, value, ..)| match field {
            "page_bytes" | "pages_per_block" | "layers" | "access_row_bytes" => format!("{field} = {value}"),
            _ => format!("{field} = {value:?}"),
        });
        let table = format!("erase_wear = {:?}", self.erase_wear);
        numbers.chain([table])
    }

    /// The table `[reliability]` of a TOML file, which [`ReliabilityParams::parse`] reads back to the same values.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("[reliability]\n");
        self.lines().for_each(|line| {
            text.push_str(&line);
            text.push('\n');
        });
        text
    }

    /// Whether no read can have an error because of a rate.
    pub fn has_no_rates(&self) -> bool {
        [self.base_rber, self.wear_rber, self.retention_rber, self.disturb_rber]
            .iter()
            .all(|rate| *rate == 0.0)
    }

    /// Whether a chip with these never errs, never wears, and takes exactly the typical time.
    pub fn is_perfect(&self) -> bool {
        self.has_no_rates()
            && self.endurance_cycles == 0.0
            && self.write_error_rate == 0.0
            && self.access_endurance == 0.0
            && self.time_spread == 0.0
            && self.erase_wear.is_empty()
            && self.program_wear_factor == 1.0
            && self.blank_erase_factor == 1.0
            && self.marginal_band == 0.0
            && self.erase_weak_share == 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_parses_states_every_field_and_is_written_back_as_it_was() {
        for name in ReliabilityParams::names() {
            let params = ReliabilityParams::load(name).unwrap();
            assert_eq!(ReliabilityParams::parse(&params.to_toml(), "again").unwrap(), params, "{name}");
            assert_eq!(params.is_perfect(), name == "none");
            let stated: toml::Table =
                toml::from_str(ReliabilityParams::built_in_text(name).unwrap()).unwrap();
            let stated = stated["reliability"].as_table().unwrap();
            for (field, ..) in params.numbers() {
                assert!(stated.contains_key(field), "{name}.toml does not state {field}");
            }
            assert!(stated.contains_key("erase_wear"), "{name}.toml does not state erase_wear");
        }
        assert_eq!(ReliabilityParams::load("none").unwrap(), ReliabilityParams::default());
        let error = ReliabilityParams::load("nor").unwrap_err().to_string();
        assert!(error.contains("\"nor\"") && error.contains("none, nor-65nm, slc-nand"), "{error}");
        let error = ReliabilityParams::load("/nonexistent/a.toml").unwrap_err().to_string();
        assert!(error.starts_with("reading /nonexistent/a.toml: "), "{error}");
    }

    #[test]
    fn every_number_of_a_built_in_says_where_it_is_from() {
        for name in ReliabilityParams::names().filter(|name| *name != "none") {
            for line in ReliabilityParams::built_in_text(name).unwrap().lines() {
                if line.contains(" = ") && !line.starts_with('#') {
                    assert!(line.contains('#'), "{name}.toml: {line}");
                }
            }
        }
    }

    #[test]
    fn an_override_changes_one_number_and_a_wrong_one_says_what_is_wrong() {
        let params = ReliabilityParams::load("nor-65nm").unwrap();
        let changed = params.with(&[
            "pe_exponent=1.5",
            " base_rber = 2e-4 ",
            "layers=8",
            "erase_wear=[[1, 1], [10, 2.5]]",
        ]);
        let changed = changed.unwrap();
        assert_eq!((changed.pe_exponent, changed.base_rber, changed.layers), (1.5, 2e-4, 8));
        assert_eq!(changed.erase_wear, [[1.0, 1.0], [10.0, 2.5]]);
        assert_eq!(changed.wear_rber, params.wear_rber);
        for (assignment, message) in [
            ("pe_exponent", "field=value"),
            ("pe_exponnt=1", "no parameter \"pe_exponnt\""),
            ("pe_exponent=9", "override: pe_exponent is 9: it must be 0.01 to 8"),
            ("pe_exponent=nan", "pe_exponent is NaN"),
            ("pe_exponent=fast", "pe_exponent is fast"),
            ("pe_exponent=", "must be one value"),
            ("pe_exponent=1\nbase_rber=0.1", "must be one value"),
            ("layers=-1", "layers is -1"),
            ("layers=6.5", "layers is 6.5"),
            ("base_bias=1.1", "must be -1 to 1"),
            ("erase_wear=[[1, 1], [1, 2]]", "cycles must rise"),
            ("erase_wear=[[1, 2], [9, 1]]", "factors not fall"),
            ("erase_wear=[[0, 2]]", "cycles from 1"),
            ("erase_wear=3", "erase_wear is 3"),
            ("erase_recovery_share=0.9", "must leave 0.05"),
        ] {
            let error = params.with(&[assignment]).unwrap_err().to_string();
            assert!(error.contains(message) && !error.contains('\n'), "{assignment:?}: {error}");
        }
    }

    #[test]
    fn a_wrong_file_is_named_with_its_line() {
        let error = |text: &str| ReliabilityParams::parse(text, "x.toml").unwrap_err().to_string();
        assert!(error("[reliability]\nlayers = 1\nspeed = 2\n").starts_with("x.toml, line 3: unknown field"));
        assert!(error("[reliability]\nlayers = 'x'\n").starts_with("x.toml, line 2: invalid type"));
        assert!(error("[reliability\n").starts_with("x.toml, line 1: "));
        assert!(error("").contains("missing field `reliability`"));
        assert_eq!(
            error("[reliability]\nbase_rber = 0.6\n"),
            "x.toml: base_rber is 0.6: it must be 0 to 0.5"
        );
        assert!(ReliabilityParams::parse("[reliability]\n[fit]\nrows = 3\n", "x.toml").is_ok());
    }
}
