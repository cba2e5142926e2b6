//! What the files beside an MTD do: `mtd0.d/stats.json` and its neighbours.
//!
//! The invariant: what a program writes to them is carried out whole or refused whole.

use crate::bus::BusError;
use crate::units::parse_ns;

/// What a chip's owner can do to it besides sending frames.
pub trait ChipControl {
    /// The chip's statistics: wear, commands.
    fn stats(&mut self, select: u8) -> serde_json::Value;

    /// The array as text: erased, programmed, worn, protected.
    fn map(&mut self, select: u8) -> String;

    /// Whether WP# is low.
    fn is_write_protected(&mut self, select: u8) -> bool;

    /// Whether the chip has power.
    fn is_powered(&mut self, select: u8) -> bool;

    /// Cuts the chip's power so many nanoseconds from now, whatever it does then; `None` takes a cut back that is to come.
    ///
    /// # Errors
    /// No such chip.
    fn cut_after(&mut self, select: u8, delay_ns: Option<u64>) -> Result<(), BusError>;
}

/// A file beside an MTD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlFile {
    /// `stats.json`: what was asked of the MTD, and the chip's own statistics.
    Stats,
    /// `part.toml`: the part file.
    Part,
    /// `time`: the bus's time in nanoseconds; a duration written to it passes.
    Time,
    /// `wp`: 1 while WP# is low.
    WriteProtect,
    /// `power`: 1 while the chip has power; 0, 1 or `cut-after 1.5ms`.
    Power,
    /// `map`: the array as text.
    Map,
    /// `otp`: the security registers, one after the other.
    Otp,
}

impl ControlFile {
    /// All of them.
    pub const ALL: [ControlFile; 7] = [
        ControlFile::Stats,
        ControlFile::Part,
        ControlFile::Time,
        ControlFile::WriteProtect,
        ControlFile::Power,
        ControlFile::Map,
        ControlFile::Otp,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            ControlFile::Stats => "stats.json",
            ControlFile::Part => "part.toml",
            ControlFile::Time => "time",
            ControlFile::WriteProtect => "wp",
            ControlFile::Power => "power",
            ControlFile::Map => "map",
            ControlFile::Otp => "otp",
        }
    }

    /// Whether it can be written.
    pub fn is_writable(self) -> bool {
        use ControlFile::{Otp, Power, Time, WriteProtect};
        matches!(self, Time | WriteProtect | Power | Otp)
    }
}

/// What a write to `power` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerCommand {
    /// Switch it.
    Set(bool),
    /// Cut it so many nanoseconds from now.
    CutAfter(u64),
}

/// What is wrong with what was written to a control file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {text:?}: {rule}")]
pub struct ControlError {
    file: &'static str,
    text: String,
    rule: &'static str,
}

fn error(file: &'static str, text: &str, rule: &'static str) -> ControlError {
    // A program can write megabytes here; a message has a line.
    ControlError { file, text: text.chars().take(40).collect(), rule }
}

/// What is written to `wp`.
///
/// # Errors
/// Anything but 0 and 1.
pub fn parse_switch(file: &'static str, text: &str) -> Result<bool, ControlError> {
    match text.trim() {
        "0" => Ok(false),
        "1" => Ok(true),
        other => Err(error(file, other, "it must be 0 or 1")),
    }
}

/// What is written to `power`.
///
/// # Errors
/// Anything but 0, 1, and `cut-after` with a duration.
pub fn parse_power(text: &str) -> Result<PowerCommand, ControlError> {
    const RULE: &str = "it must be 0, 1, or cut-after and a duration like 1.5ms";
    let text = text.trim();
    match text.split_once(char::is_whitespace) {
        Some(("cut-after", duration)) => parse_ns(duration).ok().map(PowerCommand::CutAfter),
        _ => parse_switch("power", text).ok().map(PowerCommand::Set),
    }
    .ok_or_else(|| error("power", text, RULE))
}

/// What is written to `time`, in nanoseconds.
///
/// # Errors
/// Anything but a duration.
pub fn parse_duration_ns(text: &str) -> Result<u64, ControlError> {
    parse_ns(text).map_err(|rule| error("time", text.trim(), rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_duration_is_refused_in_one_line_that_names_the_file() {
        assert_eq!(parse_duration_ns("1.5ms\n"), Ok(1_500_000));
        for text in ["", "5", "ms", "-1ms", "soon", &"9".repeat(100_000)] {
            let error = parse_duration_ns(text).expect_err(text).to_string();
            assert!(error.starts_with("time: ") && error.len() < 200 && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn power_is_switched_or_cut_later() {
        assert_eq!(parse_power("0\n"), Ok(PowerCommand::Set(false)));
        assert_eq!(parse_power(" 1 "), Ok(PowerCommand::Set(true)));
        assert_eq!(parse_power("cut-after 1.5ms\n"), Ok(PowerCommand::CutAfter(1_500_000)));
        for text in ["", "2", "on", "cut-after", "cut-after soon", "cut-after 1ms 2ms"] {
            let error = parse_power(text).expect_err(text).to_string();
            assert!(error.contains("cut-after") && !error.contains('\n'), "{error}");
        }
    }
}
