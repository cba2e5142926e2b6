//! FUSE: requests in, calls to [`crate::engine::Fs`], replies out. No policy here.

mod errno;
mod fuse;
mod mount;

pub use errno::errno;
pub use mount::{MountFlags, Mounted, Unmounter, mount};
