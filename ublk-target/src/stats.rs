//! What a queue has done: counted without locks on its own thread and read by the control threads. Times go through
//! [`crate::latency`].

use crate::{latency::Histograms, request::Op};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

#[derive(Default)]
struct OpCounters {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

/// One queue's counters. Each is written by one thread only.
pub struct QueueStats {
    ops: [OpCounters; Op::ALL.len()],
    unknown: AtomicU64,
    panics: AtomicU64,
    refused: AtomicU64,
    clamped: AtomicU64,
    latency_sampling: u32,
    pub(crate) histograms: Arc<Mutex<Histograms>>,
}

fn bump(counter: &AtomicU64, by: u64) {
    // One writer: a plain add is enough, without the cost of a locked instruction.
    counter.store(counter.load(Relaxed) + by, Relaxed);
}

impl QueueStats {
    /// Counters at zero. The latency of one wake-up in `latency_sampling` is recorded; 0 for none.
    pub fn new(latency_sampling: u32) -> QueueStats {
        QueueStats {
            ops: Default::default(),
            unknown: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            clamped: AtomicU64::new(0),
            latency_sampling,
            histograms: Arc::new(Mutex::new(Histograms::new(latency_sampling != 0))),
        }
    }

    /// Counts a finished request.
    pub fn finished(&self, op: Op, bytes: u64, failed: bool) {
        if let Some(counters) = self.ops.get(op.index()) {
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

    /// How often handlers panicked.
    pub fn panics(&self) -> u64 {
        self.panics.load(Relaxed)
    }

    /// Counts a completion that the kernel refused.
    pub fn refused(&self) {
        bump(&self.refused, 1);
    }

    /// Counts a due time that was too far away; says how many there were before.
    pub fn clamped(&self) -> u64 {
        bump(&self.clamped, 1);
        self.clamped.load(Relaxed) - 1
    }
}

/// The sum over queues: per operation the requests, bytes and errors, then what went wrong, then the times
/// ([`Histograms::report`]; with `buckets` also their raw counts). `latency_sampling` is in how many wake-ups of a queue one
/// was timed: 1 for every one, more where reading the clock is slow (devices that time their requests anyway have all of
/// them in the histograms), 0 without latency statistics.
pub fn report(queues: &[std::sync::Arc<QueueStats>], buckets: bool) -> serde_json::Value {
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
    let mut report = serde_json::Map::new();
    report.insert("ops".into(), ops.into());
    report.insert("unknown_requests".into(), sum(&|queue| queue.unknown.load(Relaxed)).into());
    report.insert("handler_panics".into(), sum(&|queue| queue.panics.load(Relaxed)).into());
    report.insert("refused_completions".into(), sum(&|queue| queue.refused.load(Relaxed)).into());
    report.insert("clamped_due_times".into(), sum(&|queue| queue.clamped.load(Relaxed)).into());
    let sampling = queues.first().map_or(0, |queue| queue.latency_sampling);
    report.insert("latency_sampling".into(), sampling.into());
    let mut times = Histograms::new(true);
    for queue in queues {
        times.add(&queue.histograms.lock().unwrap_or_else(PoisonError::into_inner));
    }
    times.report(&mut report, buckets);
    report.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_all_queues_are_summed_and_failed_requests_move_no_bytes() {
        let queues = [Arc::new(QueueStats::new(1)), Arc::new(QueueStats::new(1))];
        queues[0].finished(Op::Write, 4096, false);
        queues[1].finished(Op::Write, 8192, false);
        queues[1].finished(Op::Write, 8192, true);
        queues[1].panicked();
        let report = report(&queues, false);
        assert_eq!(report["ops"]["write"], serde_json::json!({"requests": 3, "bytes": 12288, "errors": 1}));
        assert_eq!(report["handler_panics"], 1);
        assert!(report["ops"].get("read").is_none());
    }
}
