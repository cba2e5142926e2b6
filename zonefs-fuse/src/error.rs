//! The one error type of the crate. Each variant names the thing, the place and, where there is one, the cure.

use std::io;

use crate::device::{ZoneCond, ZoneId};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, from the device up to a file name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device refused or failed an operation.
    #[error("{device}: {what} at byte {offset_bytes}: {source}")]
    Io {
        /// The device's name.
        device: String,
        /// The operation.
        what: &'static str,
        /// Where on the device, in bytes.
        offset_bytes: u64,
        /// What the kernel or the model said.
        source: io::Error,
    },
    /// The device could not be opened or asked about itself.
    #[error("{device}: {what}: {source}")]
    Open {
        /// The device's name.
        device: String,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not a zoned block device.
    #[error("{device}: not a zoned block device ({what})")]
    NotZoned {
        /// The device's name.
        device: String,
        /// What it is instead.
        what: String,
    },
    /// Something else holds the device.
    #[error("{device}: busy (mounted, or in use by another program)")]
    Busy {
        /// The device's name.
        device: String,
    },
    /// The device cannot carry this file system.
    #[error("{device}: cannot be used: {what}")]
    Unusable {
        /// The device's name.
        device: String,
        /// Which limit is not met, and the limit.
        what: String,
    },
    /// A transfer that is not whole blocks, or leaves its zone or the device.
    #[error(
        "{device}: {what} of {length_bytes} bytes at byte {offset_bytes}: not whole blocks inside one zone"
    )]
    BadRange {
        /// The device's name.
        device: String,
        /// The operation.
        what: &'static str,
        /// Where it starts, in bytes from the start of the device.
        offset_bytes: u64,
        /// Its length in bytes.
        length_bytes: u64,
    },
    /// A write to a sequential zone that does not start at the write pointer.
    #[error(
        "{device}: write at byte {offset_bytes} is not at zone {zone}'s write pointer, byte {write_pointer_bytes}"
    )]
    NotAtWritePointer {
        /// The device's name.
        device: String,
        /// The zone.
        zone: ZoneId,
        /// Where the write starts, in bytes from the start of the device.
        offset_bytes: u64,
        /// Where it would have to start.
        write_pointer_bytes: u64,
    },
    /// A zone has no room for the write.
    #[error("{device}: zone {zone} has {room_bytes} bytes left, the write has {length_bytes}")]
    ZoneFull {
        /// The device's name.
        device: String,
        /// The zone.
        zone: ZoneId,
        /// What is left of its capacity, in bytes.
        room_bytes: u64,
        /// The write's length in bytes.
        length_bytes: u64,
    },
    /// A zone is in a state that does not allow the operation.
    #[error("{device}: {what} of zone {zone}: the zone is {cond}")]
    ZoneState {
        /// The device's name.
        device: String,
        /// The zone.
        zone: ZoneId,
        /// The operation.
        what: &'static str,
        /// The zone's condition.
        cond: ZoneCond,
    },
    /// The device's limit of open or active zones is reached.
    #[error("{device}: zone {zone} cannot be opened: {limit} zones are {what} already")]
    TooManyZones {
        /// The device's name.
        device: String,
        /// The zone that was to be opened.
        zone: ZoneId,
        /// `open` or `active`.
        what: &'static str,
        /// The limit.
        limit: u32,
    },
    /// There is no such zone, or it has no write pointer.
    #[error("{device}: zone {zone}: {what}")]
    NoSuchZone {
        /// The device's name.
        device: String,
        /// The zone.
        zone: ZoneId,
        /// What is wrong with it.
        what: &'static str,
    },

    /// The device has no file system of this kind.
    #[error("{device}: no zonefs-fuse file system (mkfs.zonefs-fuse makes one)")]
    NoFileSystem {
        /// The device's name.
        device: String,
    },
    /// mkfs found a file system and was not told to overwrite it.
    #[error("{device}: holds a zonefs-fuse file system already (--force overwrites it)")]
    HasFileSystem {
        /// The device's name.
        device: String,
    },
    /// The metadata is damaged somewhere else than at its torn tail.
    #[error("{device}: damaged metadata at byte {offset_bytes}: {what}")]
    Corrupt {
        /// The device's name.
        device: String,
        /// Where on the device, in bytes.
        offset_bytes: u64,
        /// What was found.
        what: String,
    },
    /// The file system was made by a later version, or for another geometry.
    #[error("{device}: {what}")]
    Unsupported {
        /// The device's name.
        device: String,
        /// Which feature or version, and what this program knows.
        what: String,
    },

    /// No such file, directory or inode.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("the name exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDir,
    /// A directory is not allowed here.
    #[error("is a directory")]
    IsDir,
    /// The directory still has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// A name longer than 255 bytes, or a symlink target longer than 4095.
    #[error("name too long")]
    NameTooLong,
    /// A name that cannot be (empty, `.`, `..`, with `/` or NUL), or a rename of a directory into itself.
    #[error("not valid: {0}")]
    Invalid(&'static str),
    /// A write that is not at the end of the file.
    #[error("inode {ino}: write at byte {offset_bytes}, but files only grow at their end, byte {size_bytes}")]
    NotAppend {
        /// The file.
        ino: u64,
        /// Where the write was to go.
        offset_bytes: u64,
        /// Where it would have to go.
        size_bytes: u64,
    },
    /// The operation makes no sense for this kind of inode, or this file system does not have it.
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    /// Too many hard links.
    #[error("too many links")]
    TooManyLinks,
    /// No zone has room, or the metadata zones cannot hold more names and extents.
    #[error("no space: {0}")]
    NoSpace(&'static str),
    /// Mounted read-only, or made so by an earlier failure of the device.
    #[error("read-only file system")]
    ReadOnly,
    /// This program has a bug: an operation ended in a panic, whose message is in the log.
    #[error("{0} panicked (a bug of this program)")]
    Panicked(&'static str),
}
