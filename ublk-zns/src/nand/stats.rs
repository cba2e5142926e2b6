//! What the dies and channels did, for reports.
//!
//! The invariant: counters only grow, and count work when it is reserved, so that a look while work is on the way includes it.

use serde::Serialize;

/// One die's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct DieStats {
    /// Page senses.
    pub reads: u64,
    /// Units programmed, padding included.
    pub programs: u64,
    /// Blocks erased (one per die, all planes at once).
    pub erases: u64,
    /// Time taken by reads in ns, with the wait for the channel where the die has no cache register. With planes that sense
    /// on their own this is the sum over planes.
    pub read_ns: u64,
    /// Time taken by programs in ns, with the transfer where the die has no cache register.
    pub program_ns: u64,
    /// Time taken by erases in ns.
    pub erase_ns: u64,
}

impl DieStats {
    /// All of a die's busy time in ns.
    pub fn busy_ns(&self) -> u64 {
        self.read_ns.saturating_add(self.program_ns).saturating_add(self.erase_ns)
    }
}

/// What a model's dies, channels and buffers did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct NandStats {
    /// From the first command to the end of the last reservation, in ns.
    pub window_ns: u64,
    /// Per die.
    pub dies: Vec<DieStats>,
    /// Per channel: busy ns.
    pub channel_busy_ns: Vec<u64>,
    /// Host data sent to dies in bytes (on a profile without buffer, each piece of a unit as it comes).
    pub host_bytes_programmed: u64,
    /// Bytes programmed to fill up finished zones.
    pub padding_bytes: u64,
    /// Pieces of reads (one per page) that the write buffer served.
    pub buffer_hits: u64,
    /// Writes and appends that had to wait for buffer space.
    pub buffer_waits: u64,
}

impl NandStats {
    /// What happened since `earlier`, a look at the same model.
    #[must_use]
    pub fn since(&self, earlier: &NandStats) -> NandStats {
        let zero = DieStats::default();
        let die = |(at, now): (usize, &DieStats)| {
            let then = earlier.dies.get(at).unwrap_or(&zero);
            DieStats {
                reads: now.reads.saturating_sub(then.reads),
                programs: now.programs.saturating_sub(then.programs),
                erases: now.erases.saturating_sub(then.erases),
                read_ns: now.read_ns.saturating_sub(then.read_ns),
                program_ns: now.program_ns.saturating_sub(then.program_ns),
                erase_ns: now.erase_ns.saturating_sub(then.erase_ns),
            }
        };
        let channel = |(at, now): (usize, &u64)| {
            now.saturating_sub(earlier.channel_busy_ns.get(at).copied().unwrap_or(0))
        };
        NandStats {
            window_ns: self.window_ns.saturating_sub(earlier.window_ns),
            dies: self.dies.iter().enumerate().map(die).collect(),
            channel_busy_ns: self.channel_busy_ns.iter().enumerate().map(channel).collect(),
            host_bytes_programmed: self.host_bytes_programmed.saturating_sub(earlier.host_bytes_programmed),
            padding_bytes: self.padding_bytes.saturating_sub(earlier.padding_bytes),
            buffer_hits: self.buffer_hits.saturating_sub(earlier.buffer_hits),
            buffer_waits: self.buffer_waits.saturating_sub(earlier.buffer_waits),
        }
    }

    /// The share of the window each die was busy: 0 to 1, and up to the number of planes where planes sense on their own.
    pub fn die_utilisation(&self) -> Vec<f64> {
        self.dies.iter().map(|die| self.share(die.busy_ns())).collect()
    }

    /// The share of the window each channel was busy, 0 to 1.
    pub fn channel_utilisation(&self) -> Vec<f64> {
        self.channel_busy_ns.iter().map(|busy| self.share(*busy)).collect()
    }

    /// (host + padding) / host: 1 if no zone was finished early; `None` before the first program.
    pub fn write_amplification(&self) -> Option<f64> {
        let all = self.host_bytes_programmed.saturating_add(self.padding_bytes);
        (self.host_bytes_programmed > 0).then(|| all as f64 / self.host_bytes_programmed as f64)
    }

    /// Blocks erased on all dies.
    pub fn erases(&self) -> u64 {
        self.dies.iter().map(|die| die.erases).sum()
    }

    fn share(&self, busy_ns: u64) -> f64 {
        if self.window_ns == 0 { 0.0 } else { busy_ns as f64 / self.window_ns as f64 }
    }
}
