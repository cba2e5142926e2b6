//! A part file as it is written: its keys and the forms of its values. What the values must be is `check`'s business.
//!
//! The invariant: a key that is not known is refused, so that a misspelt one is not silently missing.

use super::{Bus, Endurance, Geometry, Ident, Kind, NandSpec, SecuritySpec, SfdpSpec};
use crate::op::{EraseUnit, Reg};
use crate::protect::{LockRules, RangeRules};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPart {
    pub(super) name: String,
    pub(super) maker: String,
    pub(super) kind: Kind,
    pub(super) sources: Vec<String>,
    #[serde(default)]
    pub(super) notes: Vec<String>,
    pub(super) geometry: Geometry,
    pub(super) id: Ident,
    pub(super) bus: Bus,
    #[serde(default)]
    pub(super) timing: RawTiming,
    pub(super) endurance: Endurance,
    #[serde(default)]
    pub(super) registers: BTreeMap<Reg, RawRegister>,
    pub(super) protection: Option<RangeRules>,
    pub(super) locks: Option<LockRules>,
    pub(super) security: Option<SecuritySpec>,
    pub(super) sfdp: Option<SfdpSpec>,
    pub(super) nand: Option<NandSpec>,
    pub(super) commands: Vec<RawCommand>,
}

/// `[registers.NAME]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRegister {
    pub(super) factory: u8,
    pub(super) bits: Vec<String>,
}

/// `[timing]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTiming {
    pub(super) page_program: RawSpan,
    pub(super) first_byte: RawSpan,
    pub(super) next_byte: RawSpan,
    pub(super) erase: BTreeMap<EraseUnit, RawSpan>,
    pub(super) chip_erase: RawSpan,
    pub(super) write_status: RawSpan,
    pub(super) suspend: Option<String>,
    pub(super) resume_to_suspend: Option<String>,
    pub(super) power_down: Option<String>,
    pub(super) release: Option<String>,
    pub(super) reset: Option<String>,
    pub(super) reset_erasing: Option<String>,
    pub(super) power_up: Option<String>,
    pub(super) page_read: RawSpan,
    pub(super) page_read_no_ecc: RawSpan,
}

/// One time for both, or `{ typical = .., max = .. }`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum RawSpan {
    #[default]
    None,
    One(String),
    Two {
        typical: String,
        max: String,
    },
}

impl<'de> Deserialize<'de> for RawSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawSpan, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Two {
            typical: String,
            max: String,
        }
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = RawSpan;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time like \"0.4 ms\", or { typical = \"0.4 ms\", max = \"3 ms\" }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawSpan, E> {
                Ok(RawSpan::One(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawSpan, A::Error> {
                let two = Two::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(RawSpan::Two { typical: two.typical, max: two.max })
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// A command by its name in the catalogue, with what this part does differently.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandTableForm {
    name: String,
    opcode: Option<u8>,
    dummy_clocks: Option<u8>,
    mode_byte: Option<bool>,
    tunable: Option<bool>,
    continuous: Option<bool>,
    address: Option<RawAddress>,
    max_bytes: Option<u32>,
}

/// How many address bytes a command takes, where that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RawAddress {
    /// There is none.
    None,
    /// Two bytes (the security ID of SST26).
    Two,
    /// Three or four, by the mode.
    Mode,
    /// Three in either mode.
    Three,
    /// Four in either mode.
    Four,
}

/// `"read"`, or `{ name = "quad-io-read", dummy_clocks = 8 }`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RawCommand {
    pub(super) name: String,
    pub(super) opcode: Option<u8>,
    pub(super) dummy_clocks: Option<u8>,
    pub(super) mode_byte: Option<bool>,
    pub(super) tunable: Option<bool>,
    pub(super) continuous: Option<bool>,
    pub(super) address: Option<RawAddress>,
    pub(super) max_bytes: Option<u32>,
}

impl<'de> Deserialize<'de> for RawCommand {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawCommand, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = RawCommand;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "the name of a command like \"read\", or { name = \"quad-io-read\", dummy_clocks = 8 }",
                )
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawCommand, E> {
                Ok(RawCommand { name: text.to_owned(), ..RawCommand::default() })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawCommand, A::Error> {
                let form = CommandTableForm::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(RawCommand {
                    name: form.name,
                    opcode: form.opcode,
                    dummy_clocks: form.dummy_clocks,
                    mode_byte: form.mode_byte,
                    tunable: form.tunable,
                    continuous: form.continuous,
                    address: form.address,
                    max_bytes: form.max_bytes,
                })
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// A time of an operation, in nanoseconds. `Err`: the rule that it breaks.
pub(super) fn nanoseconds(text: &str) -> Result<u64, &'static str> {
    const MOST_NS: u64 = 3_600_000_000_000;
    let ns = crate::units::parse_ns(text)?;
    if ns <= MOST_NS { Ok(ns) } else { Err("a time is at most 3600 s") }
}

#[cfg(test)]
mod tests {
    use super::nanoseconds;

    #[test]
    fn times_are_read_to_the_nanosecond() {
        for (text, ns) in [
            ("0.4 ms", 400_000),
            ("3 ms", 3_000_000),
            ("2.5us", 2_500),
            ("30 µs", 30_000),
            ("0 ns", 0),
            ("1000 s", 1_000_000_000_000),
            ("0.25 s", 250_000_000),
            (" 1.50 us ", 1_500),
        ] {
            assert_eq!(nanoseconds(text), Ok(ns), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in
            ["", "ms", "4", "1 min", "-1 ms", "1..2 ms", "1.2.3 ms", "1. ms", ".5 ms", "0x10 ms", "1 e3 ms"]
        {
            assert!(nanoseconds(text).is_err(), "{text}");
        }
        assert_eq!(nanoseconds("0.5 ns"), Err("a time is whole nanoseconds"));
        assert_eq!(nanoseconds("3601 s"), Err("a time is at most 3600 s"));
        assert!(nanoseconds("99999999999999999999 s").is_err());
    }
}
