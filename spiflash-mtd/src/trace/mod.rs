//! What was seen on a bus, written down: as waveforms ([`vcd`]) and as commands in words ([`jsonl`]).
//!
//! The invariant: a trace never changes or fails what it watches. Its bytes go through a buffer of a fixed size; when its file
//! cannot be written, that is logged once and the trace ends.

pub mod jsonl;
mod meaning;
pub mod vcd;

pub use jsonl::{JsonLog, JsonLogOptions};
pub use meaning::meaning;
pub use vcd::{Timescale, VcdOptions, VcdTrace};

use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that wait to be written.
const BUFFER_BYTES: usize = 64 << 10;

/// Whether a trace is still being written; to be kept while the bus has the trace.
#[derive(Debug, Clone, Default)]
pub struct TraceStatus(Arc<AtomicBool>);

impl TraceStatus {
    /// Whether its file could not be written: then it ends early.
    pub fn has_failed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where a trace goes: until the first error.
pub(crate) struct Sink {
    to: Option<BufWriter<Box<dyn Write + Send>>>,
    name: String,
    status: TraceStatus,
}

impl Sink {
    /// `name` is for the message about an error.
    pub(crate) fn new(to: impl Write + Send + 'static, name: &str) -> Sink {
        let to = BufWriter::with_capacity(BUFFER_BYTES, Box::new(to) as Box<dyn Write + Send>);
        Sink { to: Some(to), name: name.into(), status: TraceStatus::default() }
    }

    pub(crate) fn status(&self) -> TraceStatus {
        self.status.clone()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.to.is_some()
    }

    pub(crate) fn write(&mut self, text: &str) {
        self.with(|to| to.write_all(text.as_bytes()));
    }

    pub(crate) fn flush(&mut self) {
        self.with(Write::flush);
    }

    fn with(&mut self, act: impl FnOnce(&mut BufWriter<Box<dyn Write + Send>>) -> std::io::Result<()>) {
        let Some(to) = &mut self.to else { return };
        let Err(error) = act(to) else { return };
        log::error!("{}: {error}; the trace ends here", self.name);
        self.status.0.store(true, Ordering::Relaxed);
        if let Some(to) = self.to.take() {
            // Not dropped as a buffer: it would write what it holds once more.
            drop(to.into_parts());
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.flush();
    }
}
