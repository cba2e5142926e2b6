//! A log of commands: one JSON object a line for each frame, and for each loss and return of power.
//!
//! The keys of a frame: `t_ns` (when CS# rose), `begin_ns` (when it fell), `chip`, `opcode`, `name`, `address`, `mode`, `lines`
//! (of opcode, address and data: "1-4-4"), `data` (hex, the beginning of it), `data_bytes` (all of it), `effect` ("done", "begun",
//! "ignored"), `until_ns` (of "begun"), `reason` (of "ignored"), `status` (the status register after it), `state`, `meaning`.
//! Keys that say nothing are left out. The invariant: of a frame of any length a bounded part is kept.

use super::{Sink, TraceStatus, meaning};
use crate::chip::{Chip, Effect, FrameReport};
use crate::command::{DataPhase, Lines};
use crate::op::Reg;
use crate::sim::{Clocked, Observer};
use crate::states::State;
use serde_json::{Map, Value, json};
use std::io::Write;

/// Opcode, address, mode byte and dummy bytes of any command fit.
const HEADER_BYTES: usize = 32;

/// What is logged.
#[derive(Debug, Clone, Copy)]
pub struct JsonLogOptions {
    /// Data bytes of a frame that are logged; the rest is counted.
    pub data_bytes: usize,
}

impl Default for JsonLogOptions {
    fn default() -> JsonLogOptions {
        JsonLogOptions { data_bytes: 64 }
    }
}

/// A byte of the frame.
#[derive(Clone, Copy)]
struct Seen {
    lines: Lines,
    sent: Option<u8>,
    received: Option<u8>,
}

/// The log, an observer of a bus.
pub struct JsonLog {
    sink: Sink,
    options: JsonLogOptions,
    frame: Vec<Seen>,
    /// The last byte received, also of a long frame: what a poll saw last.
    last: Option<u8>,
    begin_ns: u64,
    /// Whether each chip had power when it was looked at last.
    powered: Vec<Option<bool>>,
}

impl JsonLog {
    /// A log into `to`; `name` is for the message when it cannot be written.
    pub fn new(to: impl Write + Send + 'static, name: &str, options: JsonLogOptions) -> JsonLog {
        let sink = Sink::new(to, name);
        JsonLog { sink, options, frame: Vec::new(), last: None, begin_ns: 0, powered: Vec::new() }
    }

    /// Tells whether it is still being written, while the bus has it.
    pub fn status(&self) -> TraceStatus {
        self.sink.status()
    }

    fn line(&mut self, line: Map<String, Value>) {
        let text = Value::Object(line).to_string() + "\n";
        self.sink.write(&text);
    }

    fn power(&mut self, select: u8, chip: &Chip) {
        let index = usize::from(select);
        if self.powered.len() <= index {
            self.powered.resize(index + 1, None);
        }
        let on = chip.state() != State::Off;
        let Some(before) = self.powered.get_mut(index).map(|slot| slot.replace(on)) else { return };
        if before != Some(on) && (before.is_some() || !on) {
            let mut line = Map::new();
            line.insert("t_ns".into(), json!(chip.now_ns()));
            line.insert("chip".into(), json!(select));
            line.insert("event".into(), json!(if on { "power on" } else { "power off" }));
            self.line(line);
        }
    }

    fn frame_line(&self, select: u8, chip: &Chip, report: &FrameReport) -> Map<String, Value> {
        let mut line = Map::new();
        let mut put = |key: &str, value: Value| drop(line.insert(key.into(), value));
        put("t_ns", json!(report.at_ns));
        put("begin_ns", json!(self.begin_ns));
        put("chip", json!(select));
        put("opcode", json!(format!("{:02x}", report.opcode)));
        put("name", json!(report.name));
        if let Some(address) = report.address {
            put("address", json!(address));
        }
        if let Some(mode) = report.mode {
            put("mode", json!(format!("{mode:02x}")));
        }
        put("lines", json!(self.lines(report)));
        let data = self.data(chip, report);
        if report.data_bytes > 0 {
            put("data", json!(data.iter().map(|byte| format!("{byte:02x}")).collect::<String>()));
            put("data_bytes", json!(report.data_bytes));
        }
        match report.effect {
            Effect::Done => put("effect", json!("done")),
            Effect::Begun { until_ns } => {
                put("effect", json!("begun"));
                put("until_ns", json!(until_ns));
            }
            Effect::Ignored(reason) => {
                put("effect", json!("ignored"));
                put("reason", json!(reason.to_string()));
            }
        }
        put_state(&mut put, chip);
        // A long poll is known by its last byte.
        let polled = self.last.filter(|_| report.data_bytes as usize > data.len());
        let all: Vec<u8> = data.iter().copied().chain(polled).collect();
        put("meaning", json!(meaning(chip, report, &all)));
        line
    }

    /// The data bytes that were kept: in or out, as the command has it.
    fn data(&self, chip: &Chip, report: &FrameReport) -> Vec<u8> {
        let out = match chip.part().command(report.opcode).map(|spec| spec.data) {
            Some(DataPhase::Out { .. }) => true,
            Some(DataPhase::In { .. }) => false,
            Some(DataPhase::None) | None => return Vec::new(),
        };
        let start = usize::try_from(report.data_at).unwrap_or(usize::MAX);
        let most = self.options.data_bytes.min(usize::try_from(report.data_bytes).unwrap_or(usize::MAX));
        // What the host sends while it reads is 0, and what nobody looked at is not known: the data ends there.
        let byte = |seen: &Seen| if out { seen.received } else { Some(seen.sent.unwrap_or(0)) };
        self.frame.iter().skip(start).take(most).map_while(byte).collect()
    }

    /// "1-4-4": the lines that opcode, address and data came on, 0 for what did not come.
    fn lines(&self, report: &FrameReport) -> String {
        let seen = |at: usize| self.frame.get(at).map_or(0, |seen| seen.lines.count());
        // In continuous reading the opcode does not come, and the first byte is the address's.
        let came = self.frame.first().is_some_and(|first| first.sent == Some(report.opcode));
        let opcode = if came { seen(0) } else { 0 };
        let address = if report.address.is_some() { seen(usize::from(came)) } else { 0 };
        let at = usize::try_from(report.data_at).unwrap_or(usize::MAX);
        let data = if report.data_bytes > 0 { seen(at) } else { 0 };
        format!("{opcode}-{address}-{data}")
    }
}

fn put_state(put: &mut impl FnMut(&str, Value), chip: &Chip) {
    let state = chip.state();
    put("state", json!(state));
    let registers = &chip.part().registers;
    let status = [Reg::Sr1, Reg::NandStatus].into_iter().find(|register| registers.contains_key(register));
    if let Some(register) = status.filter(|_| state != State::Off) {
        put("status", json!(format!("{:02x}", chip.register(register))));
    }
}

impl Observer for JsonLog {
    fn selected(&mut self, _select: u8, now_ns: u64) {
        self.frame.clear();
        self.last = None;
        self.begin_ns = now_ns;
    }

    fn clocked(&mut self, bytes: &Clocked<'_>) {
        let count = bytes.sent.or(bytes.received).map_or(0, <[u8]>::len);
        let room = (HEADER_BYTES + self.options.data_bytes).saturating_sub(self.frame.len());
        for at in 0..count.min(room) {
            let of = |side: Option<&[u8]>| side.and_then(|side| side.get(at)).copied();
            self.frame.push(Seen { lines: bytes.lines, sent: of(bytes.sent), received: of(bytes.received) });
        }
        self.last = bytes.received.and_then(<[u8]>::last).copied().or(self.last);
    }

    fn deselected(&mut self, select: u8, chip: &mut Chip, report: Option<&FrameReport>) {
        if !self.sink.is_open() {
            return;
        }
        self.power(select, chip);
        let line = match report {
            Some(report) => self.frame_line(select, chip, report),
            None => {
                let mut line = Map::new();
                let mut put = |key: &str, value: Value| drop(line.insert(key.into(), value));
                put("t_ns", json!(chip.now_ns()));
                put("begin_ns", json!(self.begin_ns));
                put("chip", json!(select));
                put("effect", json!("ignored"));
                let why = match (chip.state(), self.frame.is_empty()) {
                    (State::Off, _) => "the chip has no power",
                    (_, true) => "CS# fell and rose without a clock",
                    (_, false) => "power was lost within the frame",
                };
                put("reason", json!(why));
                put_state(&mut put, chip);
                put("meaning", json!("no command"));
                line
            }
        };
        self.line(line);
    }

    fn settled(&mut self, select: u8, chip: &mut Chip) {
        self.power(select, chip);
    }
}
