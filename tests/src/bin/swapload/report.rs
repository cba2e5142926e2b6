//! What a workload prints.

use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Counts operations and their latencies.
pub(crate) struct Meter {
    histogram: Histogram<u64>,
    begun: Instant,
}

/// A workload's result.
pub(crate) struct Outcome {
    name: &'static str,
    operations: u64,
    seconds: f64,
    histogram: Histogram<u64>,
    /// What was read and was not what had been written.
    pub(crate) wrong: u64,
    more: Value,
}

impl Meter {
    pub(crate) fn start() -> Result<Self> {
        Ok(Self { histogram: Histogram::new_with_bounds(1, 3_600_000_000_000, 3)?, begun: Instant::now() })
    }

    pub(crate) fn since_start(&self) -> Duration {
        self.begun.elapsed()
    }

    /// One operation that took so long.
    pub(crate) fn count(&mut self, took: Duration) {
        self.histogram.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    /// The end. `more` are fields besides the usual ones.
    pub(crate) fn finish(self, name: &'static str, wrong: u64, more: Value) -> Outcome {
        let (seconds, operations) = (self.begun.elapsed().as_secs_f64(), self.histogram.len());
        Outcome { name, operations, seconds, histogram: self.histogram, wrong, more }
    }
}

impl Outcome {
    pub(crate) fn json(&self) -> Value {
        let us = |ns: u64| ns as f64 / 1000.0;
        let h = &self.histogram;
        let mut found = json!({
            "workload": self.name, "operations": self.operations, "seconds": self.seconds,
            "per_s": if self.seconds > 0.0 { self.operations as f64 / self.seconds } else { 0.0 },
            "mean_us": h.mean() / 1000.0, "p50_us": us(h.value_at_quantile(0.5)), "p90_us": us(h.value_at_quantile(0.9)),
            "p99_us": us(h.value_at_quantile(0.99)), "p999_us": us(h.value_at_quantile(0.999)), "max_us": us(h.max()),
            "wrong": self.wrong,
        });
        if let (Some(found), Some(more)) = (found.as_object_mut(), self.more.as_object()) {
            found.extend(more.clone());
        }
        found
    }
}
