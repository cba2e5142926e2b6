//! The file system as a value: names, inodes and extents. Pure and synchronous; the engine and the recovery
//! change it through the same [`Tree::apply`], so that what is replayed is what was done.

mod extents;
pub(crate) mod tree;

pub use extents::{Extent, ExtentMap};
pub use tree::{
    FIRST_INO, Inode, Kind, MAX_LINKS, MAX_NAME_BYTES, MAX_TARGET_BYTES, ROOT_INO, Removed, Tree,
};

/// A moment: seconds since 1970 (before it: negative) and nanoseconds below one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds to add.
    pub nanoseconds: u32,
}

/// What chmod, chown and utimens change. The kind of the inode is in the mode, as in `st_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attrs {
    /// Kind and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Access time: set by utimens only, reading does not change it.
    pub atime: Time,
    /// Content time.
    pub mtime: Time,
    /// Inode time.
    pub ctime: Time,
}
