//! MTD-style files: `mtd0`, which answers `read`, `write` and the MTD ioctls as `/dev/mtd0` would, and `mtd0.d/` beside it.
//!
//! - [`ioctl`]: the ioctls as bytes, pure;
//! - [`device`]: what they do to a chip;
//! - [`control`]: the files of `mtd0.d/`;
//! - [`mount()`]: the directory with all this, by FUSE.
//!
//! A FUSE file is a regular file: what needs a character device (libmtd), or an ioctl whose number names the wrong direction
//! (`OTPSELECT`, `OTPLOCK`, `MEMISLOCKED`), does not work on it. `docs/spi-mtd-matrix.md` says tool by tool what does.

pub mod control;
pub mod device;
mod fuse;
pub mod ioctl;
mod mount;
mod sim;

pub use control::{ChipControl, ControlFile, PowerCommand};
pub use device::{Answer, MtdDevice};
pub use fuse::MtdEntry;
pub use mount::{MountOptions, Mounted, Unmounter, mount};
