//! What can go wrong with a device, beyond the zone rules themselves.

use crate::{geometry::Sector, nand::NandError, reliability::ReliabilityError, zones::ZoneError};
use std::{io, path::PathBuf};

/// An error of a ZNS device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZnsError {
    /// A zone rule.
    #[error(transparent)]
    Zone(#[from] ZoneError),
    /// What the timing model was given.
    #[error(transparent)]
    Nand(#[from] NandError),
    /// What the error model was given.
    #[error(transparent)]
    Reliability(#[from] ReliabilityError),
    /// The media lost or refused a sector: the error model's doing, or a fault's.
    #[error("sector {}: media error", .0.0)]
    Medium(Sector),
    /// An option that cannot be.
    #[error("{option} is {value}: {rule}")]
    Config {
        /// The option.
        option: &'static str,
        /// What it was.
        value: String,
        /// What would be right.
        rule: String,
    },
    /// The media could not be made or opened.
    #[error("media {path}: {what}: {source}")]
    Media {
        /// Which file.
        path: PathBuf,
        /// Doing what.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The media's content is not a device of ours.
    #[error("media {path}, byte {offset}: {why}")]
    Format {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// Another process uses the media.
    #[error("media {0}: another process is using it")]
    InUse(PathBuf),
    /// A simulated power cut: nothing works until power is back.
    #[error("the device has no power")]
    NoPower,
    /// A command this device does not have.
    #[error("{0} is not supported by a zoned device")]
    Unsupported(&'static str),
    /// Data could not be moved to or from the media.
    #[error("zone {zone}: moving {bytes} bytes: {source}")]
    Transfer {
        /// The zone.
        zone: u32,
        /// How many bytes.
        bytes: usize,
        /// Why it failed.
        source: io::Error,
    },
}
