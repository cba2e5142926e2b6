//! What tests of this crate and of its users need: a strict zoned device in memory that breaks on demand,
//! and the suite that every [`crate::device::ZonedDevice`] must pass.

mod conformance;
mod mem;
mod panicking;

pub use conformance::conformance;
pub use mem::{Fail, MemGeometry, MemZoned, Rng};
pub use panicking::{Call, Panicking};

use std::sync::atomic::{AtomicI64, Ordering};

use crate::engine::Clock;
use crate::model::Time;

/// A clock that advances by one second whenever it is read.
#[derive(Debug, Default)]
pub struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Time {
        Time { seconds: self.0.fetch_add(1, Ordering::Relaxed), nanoseconds: 7 }
    }
}
