//! When a node takes its memory back: the decision, and the two files of /proc that it rests on.
//!
//! Looked at once a second. The memory that the machine has available is smoothed as Infiniswap smooths it (Gu et al.,
//! NSDI 2017: an exponentially weighted average, 0.7 for the newest); below a watermark the difference is taken back at
//! once; more is lent again only after 20 s without. While tasks wait for memory (PSI) the watermark counts double: the
//! stall says that available memory is worth less than it seems. PSI alone decides nothing, for a control group at its
//! own limit stalls on a machine with memory to spare.
//!
//! Invariant: [`Monitor::decide`] is a function of its inputs alone.

use std::io;

use crate::units::BLOCK_BYTES;

/// Weight of the newest sample.
const NEWEST: f64 = 0.7;
/// How long memory must have been plenty before more is lent, in ns.
const REGROW_NS: u64 = 20_000_000_000;
/// Percent of time with some task waiting for memory from which on the machine counts as stalling.
const STALLING: f64 = 10.0;

/// What the machine looks like.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When, in ns.
    pub now_ns: u64,
    /// Memory available without swapping (MemAvailable), in bytes.
    pub available_bytes: u64,
    /// `some avg10` of /proc/pressure/memory, in percent; none when the kernel does not tell.
    pub stalled_percent: Option<f64>,
}

/// Decides how much to lend.
#[derive(Debug, Clone)]
pub struct Monitor {
    keep_free_bytes: u64,
    available: Option<f64>,
    limit: u32,
    shrunk_ns: Option<u64>,
}

impl Monitor {
    /// Keeps so many bytes of memory available on a machine whose node could lend `capacity` blocks.
    pub fn new(keep_free_bytes: u64, capacity: u32) -> Self {
        Self { keep_free_bytes, available: None, limit: capacity, shrunk_ns: None }
    }

    /// Most blocks to lend (or, of locked memory, to keep), when `holding` of `capacity` take memory now.
    pub fn decide(&mut self, sample: &Sample, holding: u32, capacity: u32) -> u32 {
        let newest = sample.available_bytes as f64;
        let available = self.available.map_or(newest, |old| NEWEST * newest + (1.0 - NEWEST) * old);
        self.available = Some(available);
        let stalling = sample.stalled_percent.is_some_and(|percent| percent >= STALLING);
        let watermark = self.keep_free_bytes as f64 * if stalling { 2.0 } else { 1.0 };
        let spare_blocks = (available - watermark) / BLOCK_BYTES as f64;
        // Rounded down either way: what is short is made up for in full. `as` saturates.
        let wanted = (f64::from(holding) + spare_blocks.floor()).clamp(0.0, f64::from(capacity)) as u32;
        if spare_blocks < 0.0 {
            self.shrunk_ns = Some(sample.now_ns);
        }
        if wanted < self.limit {
            self.limit = wanted;
        } else if self.shrunk_ns.is_none_or(|since| sample.now_ns.saturating_sub(since) >= REGROW_NS) {
            (self.limit, self.shrunk_ns) = (wanted, None);
        }
        self.limit
    }

    /// Available memory as it is smoothed, in bytes.
    pub fn available_bytes(&self) -> Option<u64> {
        self.available.map(|bytes| bytes as u64)
    }
}

/// Looks at the machine. `None` for the stall when the kernel has no PSI.
///
/// # Errors
/// /proc/meminfo cannot be read or does not say what is available.
pub fn look(now_ns: u64) -> io::Result<Sample> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let available_bytes =
        available(&text).ok_or_else(|| io::Error::other("/proc/meminfo: no MemAvailable"))?;
    let stalled_percent = std::fs::read_to_string("/proc/pressure/memory").ok().as_deref().and_then(stalled);
    Ok(Sample { now_ns, available_bytes, stalled_percent })
}

/// Bytes of MemAvailable in the text of /proc/meminfo.
fn available(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// `some avg10` in the text of /proc/pressure/memory.
fn stalled(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn sample(seconds: u64, available_mib: u64, stalled: f64) -> Sample {
        Sample {
            now_ns: seconds * 1_000_000_000,
            available_bytes: available_mib * MIB,
            stalled_percent: Some(stalled),
        }
    }

    #[test]
    fn the_files_of_proc_are_read_as_the_kernel_writes_them() {
        let meminfo = "MemTotal:  2048 kB\nMemFree:   10 kB\nMemAvailable:     1000 kB\n";
        assert_eq!(available(meminfo), Some(1_024_000));
        assert_eq!(available("MemTotal: 1 kB\nMemAvailable: lots kB\n"), None);
        let psi =
            "some avg10=12.34 avg60=0.00 avg300=0.00 total=5\nfull avg10=1.00 avg60=0 avg300=0 total=2\n";
        assert_eq!((stalled(psi), stalled("full avg10=1.00"), stalled("")), (Some(12.34), None, None));
        assert!(look(0).unwrap().available_bytes > MIB);
    }

    #[test]
    fn what_is_short_is_taken_back_at_once_and_lent_again_only_after_twenty_calm_seconds() {
        let mut monitor = Monitor::new(256 * MIB, 1000);
        assert_eq!(monitor.decide(&sample(0, 10_000, 0.0), 500, 1000), 1000);
        let mut short = monitor.clone();
        // 0.7 * 100 + 0.3 * 10000 is still plenty; the second sample no longer is: 1000.
        assert_eq!(short.decide(&sample(1, 100, 0.0), 500, 1000), 1000);
        assert_eq!(short.decide(&sample(2, 100, 0.0), 500, 1000), 1000);
        let third = short.decide(&sample(3, 100, 0.0), 500, 1000);
        assert!((496..=500 + 115).contains(&third), "{third}");
        let fourth = short.decide(&sample(4, 100, 0.0), 500, 1000);
        assert!(fourth < 470, "{fourth}: some 75 of 156 missing MiB are noticed by then");
        for second in 5..24 {
            assert!(short.decide(&sample(second, 9_000, 0.0), 400, 1000) <= fourth, "second {second}");
        }
        assert_eq!(short.decide(&sample(24, 9_000, 0.0), 400, 1000), 1000);
    }

    #[test]
    fn waiting_tasks_double_the_watermark_but_do_not_count_where_memory_is_plenty() {
        let mut monitor = Monitor::new(256 * MIB, 1000);
        assert_eq!(monitor.decide(&sample(0, 400, 0.0), 500, 1000), 644);
        assert_eq!(monitor.decide(&sample(1, 400, 50.0), 500, 1000), 388);
        let mut plenty = Monitor::new(256 * MIB, 1000);
        assert_eq!(plenty.decide(&sample(0, 20_000, 90.0), 500, 1000), 1000);
    }

    proptest! {
        #[test]
        fn the_limit_stays_within_the_capacity_and_never_grows_within_twenty_seconds_of_a_shortage(
            steps in proptest::collection::vec((0u64..30, 0u64..4000, 0f64..100.0, 0u32..=800), 1..60),
            keep in 0u64..1000,
        ) {
            let mut monitor = Monitor::new(keep * MIB, 800);
            let (mut now, mut last_short, mut last) = (0, None, 800);
            let mut smooth: Option<f64> = None;
            for (wait, available, stalled, holding) in steps {
                now += wait;
                let limit = monitor.decide(&sample(now, available, stalled), holding, 800);
                prop_assert!(limit <= 800);
                let value = smooth.map_or(available as f64, |old| 0.7 * available as f64 + 0.3 * old);
                smooth = Some(value);
                let mark = keep as f64 * if stalled >= 10.0 { 2.0 } else { 1.0 };
                if value < mark {
                    last_short = Some(now);
                    let short = (mark - value).ceil() as u32;
                    prop_assert!(limit <= holding.saturating_sub(short.saturating_sub(1)).min(last));
                }
                if last_short.is_some_and(|at| now - at < 20) {
                    prop_assert!(limit <= last, "{limit} after {last}");
                }
                last = limit;
            }
        }
    }
}
