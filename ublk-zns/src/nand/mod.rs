//! The timing of a ZNS SSD's flash: a pure model in virtual time, its profiles, and a predictor.
//!
//! - [`Profile`] is every number of a device, from a TOML file; the built-in ones cite where their numbers come from;
//! - [`NandModel`] tells when each command is done, from what is busy when it arrives;
//! - [`predict`] runs a workload against a model on a virtual clock, to compare a measurement with.
//!
//! docs/nand-model.md says what is modelled, with the formulas and where they stop being right.

mod buffer;
mod error;
mod firmware;
mod flash;
mod layout;
mod model;
mod planted;
mod predict;
mod profile;
mod set;
mod stats;
mod timeline;

#[cfg(test)]
mod tests;

pub use error::NandError;
pub use model::{Command, NandModel, Place};
pub use predict::{Access, Prediction, Workload, predict};
pub use profile::{
    Arbitration, ArbitrationKind, Firmware, HostLink, NandGeometry, NandTiming, Placement, Profile,
    ZonePolicy,
};
pub use stats::{DieStats, NandStats};
