//! Overriding one number of a profile from a string, `section.field=value`.
//!
//! The invariant: an override that cannot be applied leaves the profile as it was.

use super::{error::NandError, profile::Profile};
use toml::{Table, Value};

/// What a field's name says about its unit.
#[derive(Clone, Copy)]
enum Unit {
    Time,
    Size,
    Rate,
    Plain,
}

impl Unit {
    fn of(field: &str) -> Unit {
        if field.ends_with("_ns") {
            Unit::Time
        } else if field.ends_with("bytes_per_s") {
            Unit::Rate
        } else if field.ends_with("_bytes") {
            Unit::Size
        } else {
            Unit::Plain
        }
    }

    fn example(self) -> &'static str {
        match self {
            Unit::Time => "a time such as 40us, 1.5ms or 40000 (ns)",
            Unit::Size => "a size such as 16KiB, 2MiB or 16384 (bytes)",
            Unit::Rate => "a rate such as 800MB/s, 450MiB/s or 800000000 (bytes per second)",
            Unit::Plain => "a number such as 8",
        }
    }

    fn factor(self, suffix: &str) -> Option<u64> {
        let size = |suffix: &str| match suffix {
            "" | "B" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1 << 30),
            "kB" | "KB" => Some(1_000),
            "MB" => Some(1_000_000),
            "GB" => Some(1_000_000_000),
            _ => None,
        };
        match (self, suffix) {
            (Unit::Time, "" | "ns") => Some(1),
            (Unit::Time, "us" | "µs") => Some(1_000),
            (Unit::Time, "ms") => Some(1_000_000),
            (Unit::Time, "s") => Some(1_000_000_000),
            (Unit::Size, _) => size(suffix),
            (Unit::Rate, _) => size(suffix.strip_suffix("/s").unwrap_or(suffix)),
            (Unit::Plain, "") => Some(1),
            _ => None,
        }
    }

    /// `text` in the field's own unit, rounded to a whole number.
    fn parse(self, text: &str) -> Option<u64> {
        let text: String = text.chars().filter(|c| *c != '_').collect();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at_checked(digits)?;
        let factor = self.factor(suffix.trim())?;
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(factor).filter(|value| i64::try_from(*value).is_ok());
        }
        let value = number.parse::<f64>().ok()? * factor as f64;
        (value.is_finite() && value < 9e18).then_some((value + 0.5) as u64)
    }
}

impl Profile {
    /// Overrides one field: `timing.read_ns=40us`, `zones.dies_per_zone=1`, `time_scale=10`. Times take ns, us, ms and s; sizes B,
    /// KiB, MiB, GiB, kB, MB, GB; rates the same with or without /s. Only the type is checked here: validate after the last one.
    ///
    /// # Errors
    /// [`NandError::Set`], naming the field and what there is, or what its value may be.
    pub fn set(&mut self, assignment: &str) -> Result<(), NandError> {
        let fail = |why: String| NandError::Set { assignment: assignment.to_owned(), why };
        let Some((path, text)) = assignment.split_once('=') else {
            return Err(fail("it must be section.field=value".into()));
        };
        let (path, text) = (path.trim(), text.trim());
        let mut root = Table::try_from(&*self).map_err(|error| fail(error.to_string()))?;
        let (table, field, place) = match path.split_once('.') {
            None => (&mut root, path, "a profile".to_owned()),
            Some((section, field)) => {
                let sections = names(&root, true);
                match root.get_mut(section).and_then(Value::as_table_mut) {
                    Some(table) => (table, field, format!("section {section}")),
                    None => return Err(fail(format!("there is no section {section}; there are {sections}"))),
                }
            }
        };
        let fields = names(table, false);
        match table.get_mut(field) {
            None => {
                let mut why = format!("{place} has no field '{field}'; it has {fields}");
                if path == field {
                    why.push_str(&format!(", and the sections {}", names(&root, true)));
                }
                return Err(fail(why));
            }
            Some(Value::Table(inner)) => {
                return Err(fail(format!("{field} is a section; set one of {}", names(inner, false))));
            }
            Some(value) => replace(value, field, text).map_err(|why| fail(format!("{path} {why}")))?,
        }
        *self = Table::try_into(root).map_err(|error: toml::de::Error| {
            fail(error.message().lines().map(str::trim).collect::<Vec<_>>().join(" "))
        })?;
        Ok(())
    }
}

fn replace(value: &mut Value, field: &str, text: &str) -> Result<(), String> {
    match value {
        Value::Integer(number) => {
            let unit = Unit::of(field);
            let parsed = unit.parse(text).and_then(|parsed| i64::try_from(parsed).ok());
            *number = parsed.ok_or_else(|| format!("must be {}", unit.example()))?;
        }
        Value::Float(number) => {
            let parsed = text.parse::<f64>().ok().filter(|parsed| parsed.is_finite());
            *number = parsed.ok_or("must be a number such as 10 or 0.5")?;
        }
        Value::Boolean(flag) => *flag = text.parse().map_err(|_| "must be true or false")?,
        other => *other = Value::String(text.to_owned()),
    }
    Ok(())
}

/// The names of a table's sections, or of its other fields.
fn names(table: &Table, sections: bool) -> String {
    let names = table.iter().filter(|(_, value)| value.is_table() == sections).map(|(name, _)| name.as_str());
    names.collect::<Vec<_>>().join(", ")
}
