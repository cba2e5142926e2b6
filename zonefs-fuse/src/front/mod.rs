//! FUSE: requests in, calls to [`crate::engine::Fs`], replies out. No policy here.

mod errno;
mod fuse;
mod mount;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::Error;

pub use errno::errno;
pub use mount::{MountFlags, Mounted, Unmounter, mount};

/// Does something of the file system; a panic in it is an error, not the end of the thread. What the panic left
/// half changed is the file system's matter: [`crate::engine::Fs`] is read-only after it.
fn guarded<R>(what: &'static str, call: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(Error::Panicked(what)))
}
