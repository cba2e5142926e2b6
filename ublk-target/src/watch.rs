//! `stat --watch`: what a device did between two reports, as a table.
//!
//! Pure: two `stat` reports (with their histograms' counts) and the time between them become text. Percentiles are of the
//! interval alone, from the differences of the counts. A daemon that was started anew in between counts from zero.

use serde_json::{Value, json};
use std::fmt::Write;

/// What to ask a daemon for, to be able to compare.
pub fn request() -> Value {
    json!({ "op": "stat", "buckets": true })
}

fn number(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

/// How much a counter grew; one that fell was started anew.
fn grown(before: &Value, after: &Value, path: &str) -> u64 {
    let (before, after) = (number(before, path), number(after, path));
    after.checked_sub(before).unwrap_or(after)
}

/// The counts that a histogram gained, by value in ns, smallest first.
fn gained(before: &Value, after: &Value, path: &str) -> Vec<(u64, u64)> {
    let list = |report: &Value| -> Vec<(u64, u64)> {
        let pairs = report.pointer(path).and_then(Value::as_array).into_iter().flatten();
        pairs.filter_map(|pair| Some((pair.get(0)?.as_u64()?, pair.get(1)?.as_u64()?))).collect()
    };
    let (before, after) = (list(before), list(after));
    let total = |list: &[(u64, u64)]| list.iter().fold(0u64, |sum, (_, count)| sum.saturating_add(*count));
    if total(&before) > total(&after) {
        return after;
    }
    let earlier = |ns: u64| match before.binary_search_by_key(&ns, |pair| pair.0) {
        Ok(at) => before.get(at).map_or(0, |pair| pair.1),
        Err(_) => 0,
    };
    let grown = after.into_iter().map(|(ns, count)| (ns, count.saturating_sub(earlier(ns))));
    grown.filter(|(_, count)| *count > 0).collect()
}

/// The value that `quantile` of the counts do not exceed.
fn quantile(counts: &[(u64, u64)], quantile: f64) -> Option<u64> {
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let rank = ((total as f64 * quantile).ceil() as u64).max(1);
    let mut below = 0;
    counts.iter().find_map(|(ns, count)| {
        below += count;
        (below >= rank).then_some(*ns)
    })
}

/// A time with three significant digits and its unit; `-` for none.
fn time(ns: Option<u64>) -> String {
    let Some(ns) = ns else { return "-".into() };
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

/// What happened between two reports that are `seconds` apart, as JSON: per operation requests and bytes per second,
/// errors, p50 and p99 of the latency in ns; the lateness; and new mishaps by name.
pub fn interval(before: &Value, after: &Value, seconds: f64) -> Value {
    let seconds = seconds.max(1e-9);
    let mut ops = serde_json::Map::new();
    for (name, _) in after["ops"].as_object().into_iter().flatten() {
        let grown = |what: &str| grown(before, after, &format!("/ops/{name}/{what}"));
        let counts = gained(before, after, &format!("/latency_buckets_ns/{name}"));
        let row = json!({
            "requests_per_s": grown("requests") as f64 / seconds,
            "bytes_per_s": grown("bytes") as f64 / seconds,
            "errors": grown("errors"),
            "p50_ns": quantile(&counts, 0.5),
            "p99_ns": quantile(&counts, 0.99),
        });
        ops.insert(name.clone(), row);
    }
    let late = gained(before, after, "/lateness_buckets_ns");
    let count: u64 = late.iter().map(|(_, count)| count).sum();
    let lateness = json!({
        "count": count,
        "p50": quantile(&late, 0.5),
        "p99": quantile(&late, 0.99),
        "max": quantile(&late, 1.0),
    });
    let mut mishaps = serde_json::Map::new();
    for name in ["unknown_requests", "handler_panics", "refused_completions", "clamped_due_times"] {
        match grown(before, after, &format!("/{name}")) {
            0 => {}
            new => drop(mishaps.insert(name.into(), new.into())),
        }
    }
    json!({ "seconds": seconds, "ops": ops, "lateness_ns": lateness, "mishaps": mishaps })
}

/// [`interval`] as a table for people, of lines that end in a newline.
pub fn table(device: &str, interval: &Value) -> String {
    let mut text = format!("{device}: {:.1} s\n", interval["seconds"].as_f64().unwrap_or(0.0));
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{:<16} {:>12} {:>12} {:>10} {:>10} {:>8}",
        "OPERATION", "REQUESTS/S", "MIB/S", "P50", "P99", "ERRORS"
    );
    for (name, row) in interval["ops"].as_object().into_iter().flatten() {
        let per_s = |key: &str| row[key].as_f64().unwrap_or(0.0);
        let _ = writeln!(
            text,
            "{:<16} {:>12.0} {:>12.1} {:>10} {:>10} {:>8}",
            name,
            per_s("requests_per_s"),
            per_s("bytes_per_s") / f64::from(1 << 20),
            time(row["p50_ns"].as_u64()),
            time(row["p99_ns"].as_u64()),
            row["errors"].as_u64().unwrap_or(0),
        );
    }
    let late = &interval["lateness_ns"];
    if number(late, "/count") > 0 {
        let _ = writeln!(
            text,
            "timed completions: {}, late by {} (p50), {} (p99), {} (max)",
            number(late, "/count"),
            time(late["p50"].as_u64()),
            time(late["p99"].as_u64()),
            time(late["max"].as_u64()),
        );
    }
    for (name, count) in interval["mishaps"].as_object().into_iter().flatten() {
        let _ = writeln!(text, "{}: {count}", name.replace('_', " "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(requests: u64, buckets: &Value) -> Value {
        json!({
            "ops": { "read": { "requests": requests, "bytes": requests * 4096, "errors": requests / 100 } },
            "handler_panics": requests / 50,
            "latency_buckets_ns": { "read": buckets },
            "lateness_buckets_ns": [[700, requests]],
        })
    }

    #[test]
    fn an_interval_counts_only_what_happened_in_it() {
        let before = report(100, &json!([[1000, 100]]));
        let after = report(300, &json!([[1000, 101], [2000, 150], [9000, 49]]));
        let told = interval(&before, &after, 2.0);
        let read = &told["ops"]["read"];
        assert_eq!((&read["requests_per_s"], &read["bytes_per_s"]), (&json!(100.0), &json!(409_600.0)));
        assert_eq!(
            (&read["p50_ns"], &read["p99_ns"], &read["errors"]),
            (&json!(2000), &json!(9000), &json!(2))
        );
        assert_eq!(told["lateness_ns"], json!({"count": 200, "p50": 700, "p99": 700, "max": 700}));
        assert_eq!(told["mishaps"], json!({"handler_panics": 4}));
    }

    #[test]
    fn a_daemon_that_was_started_anew_counts_from_zero() {
        let told = interval(&report(1000, &json!([[1000, 1000]])), &report(10, &json!([[2000, 10]])), 1.0);
        assert_eq!(told["ops"]["read"]["requests_per_s"], 10.0);
        assert_eq!(told["ops"]["read"]["p50_ns"], 2000);
    }

    #[test]
    fn the_table_has_a_line_per_operation_and_shows_idle_ones_without_times() {
        let after = report(200, &json!([[1_234, 100], [56_780_000, 100]]));
        let busy = table("/dev/ublkb0", &interval(&report(0, &json!([])), &after, 1.0));
        assert_eq!(
            busy,
            "/dev/ublkb0: 1.0 s\n\
             OPERATION          REQUESTS/S        MIB/S        P50        P99   ERRORS\n\
             read                      200          0.8    1.23 us    56.8 ms        2\n\
             timed completions: 200, late by 700 ns (p50), 700 ns (p99), 700 ns (max)\n\
             handler panics: 4\n"
        );
        let idle = table("/dev/ublkb0", &interval(&after, &after, 1.0));
        assert!(
            idle.ends_with("read                        0          0.0          -          -        0\n"),
            "{idle}"
        );
    }

    #[test]
    fn reports_of_another_shape_give_an_empty_table_and_no_panic() {
        for odd in [json!(null), json!([]), json!({"ops": 3, "lateness_buckets_ns": [[1], "x", [2, -1]]})] {
            let text = table("d", &interval(&odd, &odd, 0.0));
            assert_eq!(text.lines().count(), 2, "{text}");
        }
    }

    #[test]
    fn times_have_three_digits_and_a_unit() {
        let shown: Vec<_> =
            [0, 999, 1_000, 99_949, 123_456, 5_000_000, 2_500_000_000].map(|ns| time(Some(ns))).into();
        assert_eq!(shown, ["0 ns", "999 ns", "1.00 us", "99.9 us", "123 us", "5.00 ms", "2.50 s"]);
    }
}
