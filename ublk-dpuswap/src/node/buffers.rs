//! Buffers for large messages, shared by all connections: a connection has one only while it handles such a message, so
//! a thousand idle ones cost little, and as many as like to send at once cost no more than there are buffers.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::proto::MAX_PAYLOAD_BYTES;

/// Buffers that are kept when nobody uses them.
const KEPT: usize = 4;

struct Pool {
    kept: Vec<Box<[u8]>>,
    lent: usize,
}

/// The buffers of a node.
pub(super) struct Buffers {
    pool: Mutex<Pool>,
    returned: Condvar,
    most: usize,
}

/// A buffer for the largest message; goes back when dropped.
pub(super) struct Buffer<'a> {
    owner: &'a Buffers,
    bytes: Option<Box<[u8]>>,
}

impl Buffers {
    /// At most `most` at once.
    pub(super) fn new(most: usize) -> Self {
        // There from the start: a process that locks its memory then has them before memory is short.
        let kept = (0..KEPT).map(|_| vec![0; MAX_PAYLOAD_BYTES].into()).collect();
        let pool = Pool { kept, lent: 0 };
        Self { pool: Mutex::new(pool), returned: Condvar::new(), most: most.max(1) }
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer, or none if all are in use until the deadline.
    pub(super) fn take(&self, deadline: Instant) -> Option<Buffer<'_>> {
        let mut pool = self.pool();
        while pool.lent >= self.most {
            let left = deadline.checked_duration_since(Instant::now())?;
            pool = self.returned.wait_timeout(pool, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        pool.lent += 1;
        let kept = pool.kept.pop();
        drop(pool);
        let bytes = kept.unwrap_or_else(|| vec![0; MAX_PAYLOAD_BYTES].into());
        Some(Buffer { owner: self, bytes: Some(bytes) })
    }
}

impl Buffer<'_> {
    /// Its bytes.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        self.bytes.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let mut pool = self.owner.pool();
        pool.lent -= 1;
        if pool.kept.len() < KEPT {
            pool.kept.extend(self.bytes.take());
        }
        drop(pool);
        self.owner.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn no_more_buffers_are_out_than_there_may_be_and_one_that_returns_is_had_again() {
        let buffers = Buffers::new(2);
        let soon = || Instant::now() + Duration::from_millis(1);
        let (first, _second) = (buffers.take(soon()).unwrap(), buffers.take(soon()).unwrap());
        assert!(buffers.take(soon()).is_none());
        drop(first);
        assert_eq!(buffers.take(soon()).unwrap().bytes().len(), MAX_PAYLOAD_BYTES);
        std::thread::scope(|scope| {
            let held = buffers.take(soon()).unwrap();
            let waiting = scope.spawn(|| buffers.take(Instant::now() + Duration::from_secs(10)).is_some());
            drop(held);
            assert!(waiting.join().unwrap());
        });
    }
}
