//! An LSM key-value store that deletes within a deadline: the in-memory table.
//!
//! [`memtable`] is a model: pure and synchronous. It holds the newest writes in the order of a table file, answers reads
//! as of a snapshot, and says what the deletion policy must know of it: how many tombstones it holds and how old the
//! oldest is. The log that makes a write durable, the tables below and the policies that merge them are not part of it.

pub mod error;
pub mod memtable;
pub mod types;

pub use error::MemTableError;
pub use memtable::{Entry, FrozenMemTable, MemTable, Record, Stats};
pub use types::{SeqNo, TimestampNs};
