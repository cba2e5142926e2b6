//! Why the store refuses a write.

/// A write that the in-memory table refuses. Each message names what was asked and what would be right; the table is
/// as it was before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemTableError {
    /// The key is longer than [`MAX_KEY_BYTES`](crate::memtable::MAX_KEY_BYTES).
    #[error("the key has {bytes} bytes: at most {max_bytes} are allowed")]
    KeyTooLong {
        /// The key's length.
        bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// The value is longer than [`MAX_VALUE_BYTES`](crate::memtable::MAX_VALUE_BYTES).
    #[error("the value has {bytes} bytes: at most {max_bytes} are allowed")]
    ValueTooLong {
        /// The value's length.
        bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// The sequence number is not above the last one.
    #[error("sequence number {seq}: it must be above {last}, that of the last write")]
    OutOfOrder {
        /// The one that was given.
        seq: u64,
        /// The table's last one.
        last: u64,
    },
}
