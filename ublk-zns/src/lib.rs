//! A ZNS SSD in user space: the zone state machine, its media, and the ublk front.
//!
//! - [`geometry`] and [`zones`] are the model: pure, synchronous, read like the specification;
//! - [`media`] holds the data and the zones' states, in memory or in files with a journal;
//! - [`engine`] puts both together: the device as a library ([`engine::ZnsDevice`]), also used in process by zonefs-fuse;
//!   [`cache`] makes it flush and lose power, [`replay`] knows the writes of a daemon that died;
//! - [`nand`] is the timing of its flash, [`reliability`] the errors and the wear, [`faults`] what is broken on demand: models,
//!   put around the device by [`ssd`];
//! - [`front`] serves it through ublk, and is the one place where an error becomes an errno.

pub mod cache;
pub mod engine;
pub mod error;
pub mod faults;
pub mod faults_cli;
pub mod front;
pub mod geometry;
pub mod media;
pub mod nand;
pub mod reliability;
pub mod replay;
pub mod rng;
pub mod ssd;
pub mod zones;

pub use engine::ZnsDevice;
pub use error::ZnsError;
pub use geometry::{Geometry, Sector, ZnsConfig, ZoneId};
pub use zones::{ZoneDescriptor, ZoneError, ZoneState, ZoneType};
