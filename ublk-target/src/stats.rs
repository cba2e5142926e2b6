//! What a queue has done, counted without locks on its own thread and read by the control thread.

use crate::request::Op;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Default)]
struct OpCounters {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

/// One queue's counters. Each is written by one thread only.
#[derive(Default)]
pub struct QueueStats {
    ops: [OpCounters; Op::ALL.len()],
    unknown: AtomicU64,
    panics: AtomicU64,
    refused: AtomicU64,
}

fn bump(counter: &AtomicU64, by: u64) {
    // One writer: a plain add is enough, without the cost of a locked instruction.
    counter.store(counter.load(Relaxed) + by, Relaxed);
}

impl QueueStats {
    /// Counts a finished request.
    pub fn finished(&self, op: Op, bytes: u64, failed: bool) {
        let index = Op::ALL.iter().position(|other| *other == op).unwrap_or(0);
        if let Some(counters) = self.ops.get(index) {
            bump(&counters.requests, 1);
            if failed {
                bump(&counters.errors, 1);
            } else {
                bump(&counters.bytes, bytes);
            }
        }
    }

    /// Counts a request of a kind this crate does not know.
    pub fn unknown(&self) {
        bump(&self.unknown, 1);
    }

    /// Counts a handler's panic.
    pub fn panicked(&self) {
        bump(&self.panics, 1);
    }

    /// Counts a completion that the kernel refused.
    pub fn refused(&self) {
        bump(&self.refused, 1);
    }
}

/// The sum over queues: per operation the requests, bytes and errors, then what went wrong.
pub fn report(queues: &[std::sync::Arc<QueueStats>]) -> serde_json::Value {
    let sum = |get: &dyn Fn(&QueueStats) -> u64| queues.iter().map(|queue| get(queue)).sum::<u64>();
    let mut ops = serde_json::Map::new();
    for (index, op) in Op::ALL.iter().enumerate() {
        let of = |pick: &dyn Fn(&OpCounters) -> &AtomicU64| {
            sum(&|queue| queue.ops.get(index).map_or(0, |counters| pick(counters).load(Relaxed)))
        };
        let requests = of(&|counters| &counters.requests);
        if requests > 0 {
            let value = serde_json::json!({
                "requests": requests,
                "bytes": of(&|counters| &counters.bytes),
                "errors": of(&|counters| &counters.errors),
            });
            ops.insert(op.name().into(), value);
        }
    }
    serde_json::json!({
        "ops": ops,
        "unknown_requests": sum(&|queue| queue.unknown.load(Relaxed)),
        "handler_panics": sum(&|queue| queue.panics.load(Relaxed)),
        "refused_completions": sum(&|queue| queue.refused.load(Relaxed)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn counters_of_all_queues_are_summed_and_failed_requests_move_no_bytes() {
        let queues = [Arc::new(QueueStats::default()), Arc::new(QueueStats::default())];
        queues[0].finished(Op::Write, 4096, false);
        queues[1].finished(Op::Write, 8192, false);
        queues[1].finished(Op::Write, 8192, true);
        queues[1].panicked();
        let report = report(&queues);
        assert_eq!(report["ops"]["write"], serde_json::json!({"requests": 3, "bytes": 12288, "errors": 1}));
        assert_eq!(report["handler_panics"], 1);
        assert!(report["ops"].get("read").is_none());
    }
}
