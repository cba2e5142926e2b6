//! Numbers that must not be mixed.

/// A write's place in the order of all writes of a store. No two writes share one.
///
/// As a snapshot it stands for the state after that write: a reader sees what was written at or before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SeqNo(pub u64);

impl SeqNo {
    /// The snapshot that sees every write.
    pub const MAX: SeqNo = SeqNo(u64::MAX);
}

impl std::fmt::Display for SeqNo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment in nanoseconds of the store's injected clock, real or virtual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimestampNs(pub u64);

impl TimestampNs {
    /// The time from `earlier` to this moment in nanoseconds; 0 when `earlier` is later, as after a clock was set back.
    pub fn since_ns(self, earlier: TimestampNs) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
