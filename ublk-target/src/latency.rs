//! Histograms of how long requests took and how late timed completions were.
//!
//! A queue thread puts its samples in a small array (`Samples`) and moves them to its shared [`Histograms`] when the
//! array is full or before it blocks. The invariant: recording allocates nothing and takes the lock at most once per
//! full array or wake-up, never per request; and nothing is lost, since a thread that blocks has moved what it had.

use crate::request::Op;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};
use std::sync::{Arc, Mutex, PoisonError};

/// Samples that a queue keeps to itself.
const SAMPLES: usize = 64;
/// The longest time told apart: 60 s. Longer ones count as that.
const HIGHEST_NS: u64 = 60_000_000_000;
/// Two significant digits: a value is known within 1 %, and a histogram is 30 KiB.
const DIGITS: u8 = 2;

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HIGHEST_NS, DIGITS).expect("constant bounds that the crate takes")
}

/// Latency by operation, and lateness, in ns.
pub struct Histograms {
    /// By [`Op::index`]; empty when latency is not recorded.
    ops: Vec<Histogram<u64>>,
    lateness: Histogram<u64>,
}

impl Histograms {
    /// Empty histograms; without `latency` for lateness only.
    pub fn new(latency: bool) -> Histograms {
        let ops = if latency { Op::ALL.map(|_| empty()).into() } else { Vec::new() };
        Histograms { ops, lateness: empty() }
    }

    fn record(&mut self, sample: Sample) {
        let histogram = match sample.of {
            Of::Latency(op) => self.ops.get_mut(op.index()),
            Of::Lateness => Some(&mut self.lateness),
        };
        if let Some(histogram) = histogram {
            histogram.saturating_record_n(sample.ns.clamp(1, HIGHEST_NS), sample.count.into());
        }
    }

    /// Adds what `other` holds.
    pub fn add(&mut self, other: &Histograms) {
        let pairs = self.ops.iter_mut().zip(&other.ops);
        for (mine, theirs) in pairs.chain([(&mut self.lateness, &other.lateness)]) {
            if !theirs.is_empty()
                && let Err(error) = mine.add(theirs)
            {
                log::error!("histograms of different bounds: {error}");
            }
        }
    }

    /// `latency_ns` (per operation seen: count, mean, p50, p90, p99, p999, max) and `lateness_ns` (count, p50, p99, max) for
    /// `report`; with `buckets` also the raw counts, `[[ns, count], ...]`, of which two reports have a difference.
    pub fn report(&self, report: &mut Map<String, Value>, buckets: bool) {
        let seen = || Op::ALL.iter().zip(&self.ops).filter(|(_, histogram)| !histogram.is_empty());
        let map = |of: &dyn Fn(&Histogram<u64>) -> Value| -> Value {
            seen().map(|(op, histogram)| (op.name().to_owned(), of(histogram))).collect::<Map<_, _>>().into()
        };
        report.insert("latency_ns".into(), map(&summary));
        let late = &self.lateness;
        let lateness = json!({
            "count": late.len(),
            "p50": late.value_at_quantile(0.5),
            "p99": late.value_at_quantile(0.99),
            "max": late.max(),
        });
        report.insert("lateness_ns".into(), lateness);
        if buckets {
            report.insert("latency_buckets_ns".into(), map(&raw));
            report.insert("lateness_buckets_ns".into(), raw(late));
        }
    }
}

fn summary(histogram: &Histogram<u64>) -> Value {
    json!({
        "count": histogram.len(),
        "mean": histogram.mean().round() as u64,
        "p50": histogram.value_at_quantile(0.5),
        "p90": histogram.value_at_quantile(0.9),
        "p99": histogram.value_at_quantile(0.99),
        "p999": histogram.value_at_quantile(0.999),
        "max": histogram.max(),
    })
}

fn raw(histogram: &Histogram<u64>) -> Value {
    histogram
        .iter_recorded()
        .map(|bucket| json!([bucket.value_iterated_to(), bucket.count_at_value()]))
        .collect()
}

#[derive(Debug, Clone, Copy)]
enum Of {
    Latency(Op),
    Lateness,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    of: Of,
    ns: u64,
    count: u32,
}

/// A queue thread's samples on their way to its histograms.
pub(crate) struct Samples {
    into: Arc<Mutex<Histograms>>,
    kept: [Sample; SAMPLES],
    len: usize,
}

impl Samples {
    pub(crate) fn new(into: &Arc<Mutex<Histograms>>) -> Samples {
        Samples {
            into: Arc::clone(into),
            kept: [Sample { of: Of::Lateness, ns: 0, count: 0 }; SAMPLES],
            len: 0,
        }
    }

    /// `count` requests took `ns` from fetch to completion.
    pub(crate) fn latency(&mut self, op: Op, ns: u64, count: u32) {
        self.keep(Sample { of: Of::Latency(op), ns, count });
    }

    /// A timed completion was `ns` late.
    pub(crate) fn lateness(&mut self, ns: u64) {
        self.keep(Sample { of: Of::Lateness, ns, count: 1 });
    }

    fn keep(&mut self, sample: Sample) {
        if self.len == SAMPLES {
            self.drain();
        }
        if let Some(slot) = self.kept.get_mut(self.len) {
            *slot = sample;
            self.len += 1;
        }
    }

    /// Moves what is kept to the histograms.
    pub(crate) fn drain(&mut self) {
        if self.len == 0 {
            return;
        }
        let mut histograms = self.into.lock().unwrap_or_else(PoisonError::into_inner);
        for sample in self.kept.iter().take(self.len) {
            histograms.record(*sample);
        }
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(histograms: &Histograms, buckets: bool) -> Value {
        let mut map = Map::new();
        histograms.report(&mut map, buckets);
        map.into()
    }

    #[test]
    fn samples_reach_the_histograms_when_the_array_is_full_or_drained() {
        let shared = Arc::new(Mutex::new(Histograms::new(true)));
        let mut samples = Samples::new(&shared);
        for ns in 1..=SAMPLES as u64 + 1 {
            samples.latency(Op::Read, ns * 1000, 1);
        }
        assert_eq!(report(&shared.lock().unwrap(), false)["latency_ns"]["read"]["count"], SAMPLES);
        samples.lateness(5);
        samples.drain();
        samples.drain();
        let told = report(&shared.lock().unwrap(), false);
        assert_eq!(told["latency_ns"]["read"]["count"], SAMPLES + 1);
        assert_eq!(told["lateness_ns"], json!({"count": 1, "p50": 5, "p99": 5, "max": 5}));
        assert!(told["latency_ns"].get("write").is_none());
    }

    #[test]
    fn percentiles_are_within_one_percent_of_a_sorted_list() {
        let mut histograms = Histograms::new(true);
        let mut exact: Vec<u64> = (0..10_000u64).map(|n| 100 + n * n * 7).collect();
        for ns in &exact {
            histograms.record(Sample { of: Of::Latency(Op::Write), ns: *ns, count: 1 });
        }
        exact.sort_unstable();
        let told = &report(&histograms, false)["latency_ns"]["write"];
        for (name, index) in [("p50", 4999), ("p90", 8999), ("p99", 9899), ("p999", 9989), ("max", 9999)] {
            let (got, want) = (told[name].as_u64().unwrap() as f64, exact[index] as f64);
            assert!((got / want - 1.0).abs() < 0.01, "{name} is {got}, not {want}");
        }
        let mean = exact.iter().sum::<u64>() as f64 / 10_000.0;
        assert!((told["mean"].as_f64().unwrap() / mean - 1.0).abs() < 0.01);
    }

    #[test]
    fn times_outside_the_range_count_at_its_ends() {
        let mut histograms = Histograms::new(true);
        histograms.record(Sample { of: Of::Lateness, ns: 0, count: 1 });
        histograms.record(Sample { of: Of::Lateness, ns: u64::MAX, count: 3 });
        let told = report(&histograms, true);
        assert_eq!(told["lateness_ns"]["count"], 4);
        let buckets = told["lateness_buckets_ns"].as_array().unwrap();
        assert_eq!((&buckets[0], &buckets[1][1]), (&json!([1, 1]), &json!(3)));
        assert!(buckets[1][0].as_u64().unwrap() >= HIGHEST_NS);
    }

    #[test]
    fn queues_add_up_and_a_device_without_latency_still_counts_lateness() {
        let mut sum = Histograms::new(true);
        let mut one = Histograms::new(true);
        one.record(Sample { of: Of::Latency(Op::Flush), ns: 10, count: 2 });
        sum.add(&one);
        sum.add(&one);
        let mut plain = Histograms::new(false);
        plain.record(Sample { of: Of::Latency(Op::Flush), ns: 10, count: 1 });
        plain.record(Sample { of: Of::Lateness, ns: 10, count: 1 });
        sum.add(&plain);
        let told = report(&sum, false);
        assert_eq!(told["latency_ns"]["flush"]["count"], 4);
        assert_eq!(told["lateness_ns"]["count"], 1);
    }
}
