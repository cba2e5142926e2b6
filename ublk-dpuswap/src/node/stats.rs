//! What a node counts, and the shape in which it tells.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency that is told apart, in ns.
const MAX_LATENCY_NS: u64 = 60_000_000_000;

/// Counts of one client, or of many.
#[derive(Default)]
pub struct Counters {
    requests: AtomicU64,
    errors: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// Made at the first request: 12 KiB that a client without one does not cost.
    latency: Mutex<Option<Box<Histogram<u32>>>>,
}

/// What [`Counters`] tell.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CountersReport {
    /// Requests answered.
    pub requests: u64,
    /// Of them, those that were refused.
    pub errors: u64,
    /// Bytes written into blocks.
    pub bytes_in: u64,
    /// Bytes read from blocks.
    pub bytes_out: u64,
    /// Median of the time from a request's last byte to its answer's being handed to the system, in ns.
    pub latency_p50_ns: u64,
    /// The 99th percentile of it.
    pub latency_p99_ns: u64,
}

impl Counters {
    fn latency(&self) -> MutexGuard<'_, Option<Box<Histogram<u32>>>> {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn histogram() -> Option<Box<Histogram<u32>>> {
        Histogram::new_with_bounds(100, MAX_LATENCY_NS, 2).ok().map(Box::new)
    }

    /// Counts a request that was answered.
    pub fn count(&self, done: bool, bytes_in: u64, bytes_out: u64, latency_ns: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.errors.fetch_add(u64::from(!done), Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
        let mut latency = self.latency();
        if latency.is_none() {
            *latency = Self::histogram();
        }
        latency.iter_mut().for_each(|histogram| histogram.saturating_record(latency_ns));
    }

    /// Adds another's counts to these.
    pub fn add(&self, other: &Self) {
        for (to, from) in [
            (&self.requests, &other.requests),
            (&self.errors, &other.errors),
            (&self.bytes_in, &other.bytes_in),
            (&self.bytes_out, &other.bytes_out),
        ] {
            to.fetch_add(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let Some(theirs) = &*other.latency() else { return };
        let mut ours = self.latency();
        if ours.is_none() {
            *ours = Self::histogram();
        }
        if let Some(ours) = &mut *ours {
            // Histograms of the same bounds always fit.
            let _ = ours.add(&**theirs);
        }
    }

    /// The counts now.
    pub fn report(&self) -> CountersReport {
        let latency = self.latency();
        let at = |quantile| latency.as_ref().map_or(0, |histogram| histogram.value_at_quantile(quantile));
        CountersReport {
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            latency_p50_ns: at(0.5),
            latency_p99_ns: at(0.99),
        }
    }
}

/// One client.
#[derive(Debug, Clone, Serialize)]
pub struct ClientReport {
    /// Its number, in hexadecimal.
    pub client_id: String,
    /// Its connections.
    pub connections: u32,
    /// Blocks it holds.
    pub held_blocks: u32,
    /// Blocks it is asked to give back.
    pub reclaim_blocks: u32,
    /// What it did.
    #[serde(flatten)]
    pub counters: CountersReport,
}

/// The memory and who has it.
#[derive(Debug, Clone, Serialize)]
pub struct StoreReport {
    /// This start of the node.
    pub epoch: u64,
    /// Whether it is about to end.
    pub draining: bool,
    /// Blocks in all.
    pub capacity_blocks: u32,
    /// Blocks lent.
    pub lent_blocks: u32,
    /// Blocks free.
    pub free_blocks: u32,
    /// Free blocks whose locked memory was given back to the system.
    pub parked_blocks: u32,
    /// Most blocks that may be lent now.
    pub limit_blocks: u32,
    /// Most blocks of one client; 0 for no such limit.
    pub quota_blocks: u32,
    /// Blocks lent beyond the limit: clients are asked for them.
    pub reclaim_blocks: u32,
    /// Of them, those whose time has passed.
    pub overdue_blocks: u32,
    /// Of all clients since the start.
    pub total: CountersReport,
    /// Clients with a lease.
    pub clients: Vec<ClientReport>,
}

/// Everything a node tells.
#[derive(Debug, Clone, Serialize)]
pub struct NodeReport {
    /// Open connections.
    pub connections: usize,
    /// Connections refused: too many at once.
    pub refused_connections: u64,
    /// Connections that were closed because they sent something else than they should, or came with another key.
    pub broken_connections: u64,
    /// Time in which some task waited for memory, in percent of the last 10 s; none when the kernel does not tell.
    pub pressure_some_avg10: Option<f64>,
    /// Memory that the machine has available, in bytes, smoothed.
    pub available_bytes: Option<u64>,
    /// The memory.
    #[serde(flatten)]
    pub store: StoreReport,
}

impl NodeReport {
    /// The same in the text format of Prometheus (version 0.0.4).
    pub fn metrics(&self) -> String {
        let mut out = String::new();
        let store = &self.store;
        let mut one = |name: &str, kind: &str, help: &str, value: f64| {
            // Writing to a string never fails.
            let _ = writeln!(
                out,
                "# HELP dpuswap_node_{name} {help}\n# TYPE dpuswap_node_{name} {kind}\ndpuswap_node_{name} {value}"
            );
        };
        one("capacity_blocks", "gauge", "Blocks of 1 MiB in all.", store.capacity_blocks.into());
        one("lent_blocks", "gauge", "Blocks lent.", store.lent_blocks.into());
        one("limit_blocks", "gauge", "Most blocks that may be lent now.", store.limit_blocks.into());
        one(
            "reclaim_blocks",
            "gauge",
            "Blocks that clients are asked to give back.",
            store.reclaim_blocks.into(),
        );
        one("overdue_blocks", "gauge", "Of them, those that are late.", store.overdue_blocks.into());
        one("draining", "gauge", "1 when the node is about to end.", f64::from(u8::from(store.draining)));
        one("connections", "gauge", "Open connections.", self.connections as f64);
        one(
            "refused_connections_total",
            "counter",
            "Connections beyond the limit.",
            self.refused_connections as f64,
        );
        one(
            "broken_connections_total",
            "counter",
            "Connections closed for what they sent.",
            self.broken_connections as f64,
        );
        if let Some(available) = self.available_bytes {
            one("available_bytes", "gauge", "Memory the machine has available, smoothed.", available as f64);
        }
        if let Some(pressure) = self.pressure_some_avg10 {
            one(
                "pressure_some_avg10",
                "gauge",
                "Percent of 10 s in which some task waited for memory.",
                pressure,
            );
        }
        type Field = fn(&ClientReport) -> u64;
        let fields: [(&str, &str, &str, Field); 5] = [
            ("client_held_blocks", "gauge", "Blocks a client holds.", |c| c.held_blocks.into()),
            ("client_requests_total", "counter", "Requests answered.", |c| c.counters.requests),
            ("client_errors_total", "counter", "Requests refused.", |c| c.counters.errors),
            ("client_bytes_in_total", "counter", "Bytes written into blocks.", |c| c.counters.bytes_in),
            ("client_bytes_out_total", "counter", "Bytes read from blocks.", |c| c.counters.bytes_out),
        ];
        for (name, kind, help, field) in fields {
            let _ = writeln!(out, "# HELP dpuswap_node_{name} {help}\n# TYPE dpuswap_node_{name} {kind}");
            for client in &store.clients {
                let _ =
                    writeln!(out, "dpuswap_node_{name}{{client=\"{}\"}} {}", client.client_id, field(client));
            }
        }
        let _ = writeln!(
            out,
            "# HELP dpuswap_node_latency_seconds Time to answer a request.\n# TYPE dpuswap_node_latency_seconds summary"
        );
        for (quantile, ns) in [("0.5", store.total.latency_p50_ns), ("0.99", store.total.latency_p99_ns)] {
            let _ =
                writeln!(out, "dpuswap_node_latency_seconds{{quantile=\"{quantile}\"}} {}", ns as f64 / 1e9);
        }
        let _ = writeln!(out, "dpuswap_node_latency_seconds_count {}", store.total.requests);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_percentiles_are_of_what_was_counted() {
        let (all, one) = (Counters::default(), Counters::default());
        for latency_us in 1..=100 {
            one.count(latency_us % 10 != 0, 1, 2, latency_us * 1000);
        }
        all.add(&one);
        all.add(&Counters::default());
        all.count(true, 0, 0, u64::MAX);
        let report = all.report();
        assert_eq!((report.requests, report.errors, report.bytes_in, report.bytes_out), (101, 10, 100, 200));
        assert!(report.latency_p50_ns.abs_diff(51_000) < 1000, "{report:?}");
        assert!(report.latency_p99_ns.abs_diff(100_000) < 2000, "{report:?}");
    }
}
