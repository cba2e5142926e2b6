//! Chips that last: the image file, and snapshots in the middle of a frame.
//!
//! An image is a whole copy of the array and the registers, and after it a record of every change. The invariant: what the
//! chip has finished is in the file before the next frame begins, so that a killed process loses nothing; a file is replaced
//! by renaming a whole one over it, so that there is always a whole one.

pub mod format;
mod store;

pub use store::{ImageError, Store, load, load_snapshot, save_snapshot};
