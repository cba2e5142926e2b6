//! A file system on zones: format, allocator, recovery; the FUSE mount is a thin front.
//!
//! The layers, from the inside out:
//!
//! * [`mod@format`] — the bytes on the medium: frames with a crc32c, log entries, the superblock. Pure.
//! * [`model`] — the name space and the extents of files, changed only by [`format::Entry`]. Pure.
//! * [`device`] — what a zoned device is: [`device::ZonedDevice`], and the devices there are.
//! * [`engine`] — [`engine::Fs`]: files, directories, allocation, the metadata log, recovery.
//! * [`front`] — FUSE, and the one place where an [`Error`] becomes an errno.
//! * [`testing`] — a strict zoned device in memory that loses power, and the conformance suite.
//!
//! The rule that everything keeps: **a log record reaches the device only after a flush that covers the
//! data it points at, and a zone is reset only after a flush that covers the records that made it dead.**

pub mod device;
pub mod engine;
mod error;
pub mod format;
pub mod front;
pub mod model;
pub mod testing;

pub use error::{Error, Result};
