//! The bytes on the medium. Pure: nothing here reads or writes a device.
//!
//! The metadata lives in the first two sequential zones, one of which is current. Such a zone is a row of
//! [`frame`]s, each whole blocks with a crc32c over all of it: one [`superblock`] frame, snapshot frames, then
//! log frames. Frames hold [`entry`]s. A frame counts whole or not at all. docs/formats.md has the tables.

mod codec;
pub mod entry;
pub mod frame;
pub mod superblock;

pub use entry::{Decoded, Entry};
pub use frame::{FrameError, FrameHeader, FrameKind};
pub use superblock::Superblock;

/// The version of the format that this program writes, and the newest it reads.
pub const VERSION: u16 = 1;
