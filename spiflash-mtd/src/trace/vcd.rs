//! Waveforms of a bus: a value change dump (IEEE 1364-2005, clause 18), as GTKWave, PulseView and sigrok-cli read it.
//!
//! Signals: `cs#`, `sck`, `io0` to `io3` (`io0` is MOSI, `io1` is MISO), `wp#`, and `busy`, which no pin shows: x while the chip
//! has no power. With several chips `cs0#`, `cs1#` and so on. SPI mode 0: data changes while SCK is low, and is sampled as it rises.
//!
//! The bits of a transfer are spread evenly over the time that it took. Two things take no time on the model's bus and are
//! given some: CS# stays high for 1 ns between frames, and where bytes take no time their bits have the nominal clock; the
//! trace is then ahead of the bus until time passes there. A poll that was skipped to its end has bits as long as the skip.
//!
//! The invariant: times in the file never fall.

use super::{Sink, TraceStatus};
use crate::bus::SpiBus;
use crate::chip::{Chip, FrameReport};
use crate::command::Lines;
use crate::sim::{Clocked, Observer, SimBus};
use crate::states::State;
use std::fmt::Write as _;
use std::io::Write;

/// The unit of the file's times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timescale {
    /// 1 ns: what samples a trace (sigrok) is a thousand times faster with it.
    Nanoseconds,
    /// 1 ps: half clocks that are no whole nanoseconds come out evenly.
    Picoseconds,
}

impl Timescale {
    /// Nanoseconds where half a clock is a whole number of them.
    pub fn for_clock(clock_hz: u32) -> Timescale {
        let half_hz = 2 * u64::from(clock_hz.max(1));
        if 1_000_000_000u64.is_multiple_of(half_hz) { Timescale::Nanoseconds } else { Timescale::Picoseconds }
    }

    fn per_ns(self) -> u128 {
        match self {
            Timescale::Nanoseconds => 1,
            Timescale::Picoseconds => 1000,
        }
    }
}

/// How a trace is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcdOptions {
    /// The clock of bits that take no time on the bus; and the one whose half decides the unit of time.
    pub clock_hz: u32,
    /// The unit; `None`: by the clock.
    pub timescale: Option<Timescale>,
}

impl Default for VcdOptions {
    fn default() -> VcdOptions {
        VcdOptions { clock_hz: 50_000_000, timescale: None }
    }
}

const SCK: usize = 0;
const IO0: usize = 1;
const SHARED: usize = 5;
const PER_CHIP: usize = 3;

/// The signals of a chip, after the shared ones.
#[derive(Clone, Copy)]
enum Pin {
    Cs,
    Wp,
    Busy,
}

/// The trace, an observer of a bus.
pub struct VcdTrace {
    sink: Sink,
    per_ns: u128,
    /// Half a clock of bits without time, in units.
    nominal_half: u128,
    /// The time of the last change, in units.
    now: u128,
    /// The time that was written last.
    written: Option<u128>,
    levels: Vec<u8>,
    /// For each chip: when BUSY falls, and to what.
    falls: Vec<Option<(u128, u8)>>,
    /// When CS# of any chip rose last.
    rose: Option<u128>,
    text: String,
}

impl VcdTrace {
    /// A trace of a bus as it is now, into `to`; `name` is for the message when it cannot be written.
    pub fn new(
        bus: &mut SimBus,
        to: impl Write + Send + 'static,
        name: &str,
        options: VcdOptions,
    ) -> VcdTrace {
        let timescale = options.timescale.unwrap_or(Timescale::for_clock(options.clock_hz));
        let per_ns = timescale.per_ns();
        let chips = bus.chips();
        let now = u128::from(bus.now_ns()) * per_ns;
        let mut trace = VcdTrace {
            sink: Sink::new(to, name),
            per_ns,
            nominal_half: (1_000_000_000 * per_ns / (2 * u128::from(options.clock_hz.max(1)))).max(1),
            now,
            written: None,
            levels: vec![b'0', b'z', b'z', b'z', b'z'],
            falls: vec![None; usize::from(chips)],
            rose: None,
            text: String::new(),
        };
        for select in 0..chips {
            let busy = bus.chip(select).map_or(b'x', busy_level);
            let wp = bus.chip(select).is_none_or(|chip| !chip.is_write_protect_low());
            trace.levels.extend([b'1', if wp { b'1' } else { b'0' }, busy]);
            if let Some(chip) = bus.chip(select) {
                trace.note_fall(select, chip);
            }
        }
        trace.header(chips, timescale);
        trace
    }

    /// Tells whether it is still being written, while the bus has it.
    pub fn status(&self) -> TraceStatus {
        self.sink.status()
    }

    fn header(&mut self, chips: u8, timescale: Timescale) {
        let unit = match timescale {
            Timescale::Nanoseconds => "1 ns",
            Timescale::Picoseconds => "1 ps",
        };
        let mut names: Vec<String> = ["sck", "io0", "io1", "io2", "io3"].map(String::from).into();
        for chip in 0..chips {
            let number = if chips == 1 { String::new() } else { chip.to_string() };
            names.extend([format!("cs{number}#"), format!("wp{number}#"), format!("busy{number}")]);
        }
        let mut text =
            format!("$version spiflash-mtd $end\n$timescale {unit} $end\n$scope module spi $end\n");
        for (signal, name) in names.iter().enumerate() {
            text += &format!("$var wire 1 {} {name} $end\n", code(signal));
        }
        text += "$upscope $end\n$enddefinitions $end\n";
        text += &format!("#{}\n$dumpvars\n", self.now);
        for (signal, level) in self.levels.iter().enumerate() {
            text += &format!("{}{}\n", char::from(*level), code(signal));
        }
        text += "$end\n";
        self.written = Some(self.now);
        self.sink.write(&text);
    }

    fn signal(select: u8, pin: Pin) -> usize {
        SHARED + PER_CHIP * usize::from(select) + pin as usize
    }

    /// Goes on to a time; what is to happen before it does.
    fn at(&mut self, time: u128) {
        loop {
            let due = self.falls.iter().enumerate().filter_map(|(chip, fall)| Some((chip, (*fall)?)));
            let Some((chip, (at, level))) = due.min_by_key(|(_, (at, _))| *at) else { break };
            if at > time {
                break;
            }
            if let Some(slot) = self.falls.get_mut(chip) {
                *slot = None;
            }
            self.now = self.now.max(at);
            self.set(VcdTrace::signal(chip as u8, Pin::Busy), level);
        }
        self.now = self.now.max(time);
    }

    fn set(&mut self, signal: usize, level: u8) {
        let Some(slot) = self.levels.get_mut(signal).filter(|slot| **slot != level) else { return };
        *slot = level;
        if self.written != Some(self.now) {
            self.written = Some(self.now);
            let _ = writeln!(self.text, "#{}", self.now);
        }
        let _ = writeln!(self.text, "{}{}", char::from(level), code(signal));
    }

    fn send(&mut self) {
        self.sink.write(&self.text);
        self.text.clear();
    }

    fn units(&self, ns: u64) -> u128 {
        u128::from(ns) * self.per_ns
    }

    /// When the chip's BUSY falls by itself, or the power goes before.
    fn note_fall(&mut self, select: u8, chip: &Chip) {
        let done = chip.busy_until_ns().map(|at| (self.units(at), b'0'));
        let cut = chip.cut_at_ns().filter(|_| chip.state() != State::Off).map(|at| (self.units(at), b'x'));
        if let Some(slot) = self.falls.get_mut(usize::from(select)) {
            *slot = cut.into_iter().chain(done).min_by_key(|(at, _)| *at);
        }
    }

    /// The chip as it is now.
    fn look_at(&mut self, select: u8, chip: &Chip) {
        self.at(self.units(chip.now_ns()));
        self.set(VcdTrace::signal(select, Pin::Busy), busy_level(chip));
        let wp = if chip.is_write_protect_low() { b'0' } else { b'1' };
        self.set(VcdTrace::signal(select, Pin::Wp), wp);
        self.note_fall(select, chip);
    }

    fn drive(&mut self, lines: Lines, sent: Option<u8>, received: Option<u8>, shift: u8) {
        let bit = |byte: u8, at: u8| if byte >> at & 1 == 1 { b'1' } else { b'0' };
        match lines {
            Lines::Single => {
                self.set(IO0, bit(sent.unwrap_or(0), shift));
                self.set(IO0 + 1, received.map_or(b'z', |byte| bit(byte, shift)));
            }
            Lines::Dual | Lines::Quad => {
                for line in 0..lines.count() {
                    let level = sent.or(received).map_or(b'z', |byte| bit(byte, shift + line));
                    self.set(IO0 + usize::from(line), level);
                }
            }
        }
        for line in lines.count().max(2)..4 {
            self.set(IO0 + usize::from(line), b'z');
        }
    }
}

/// The identifier code of a signal: printable characters from "!" on.
fn code(signal: usize) -> String {
    let (mut rest, mut code) = (signal, String::new());
    loop {
        code.push(char::from(b'!' + (rest % 94) as u8));
        rest /= 94;
        if rest == 0 {
            return code;
        }
        rest -= 1;
    }
}

fn busy_level(chip: &Chip) -> u8 {
    match chip.state() {
        State::Off => b'x',
        state if state.is_busy() => b'1',
        _ => b'0',
    }
}

impl Observer for VcdTrace {
    fn selected(&mut self, select: u8, now_ns: u64) {
        if !self.sink.is_open() {
            return;
        }
        self.at(self.units(now_ns));
        if self.rose == Some(self.now) {
            self.at(self.now + self.per_ns);
        }
        self.set(VcdTrace::signal(select, Pin::Cs), b'0');
        self.send();
    }

    fn clocked(&mut self, bytes: &Clocked<'_>) {
        let count = bytes.sent.or(bytes.received).map_or(0, <[u8]>::len);
        if count == 0 || !self.sink.is_open() {
            return;
        }
        let per_byte = bytes.lines.clocks_per_byte();
        let clocks = count as u128 * u128::from(per_byte);
        let (mut begin, end) = (self.units(bytes.begin_ns), self.units(bytes.end_ns));
        let mut span = end.saturating_sub(begin);
        let has_no_time = span < 2 * clocks || begin + span / (2 * clocks) < self.now;
        if has_no_time {
            (begin, span) = (self.now.max(begin), 2 * clocks * self.nominal_half);
        }
        let mut edge = 0;
        for at in 0..count {
            let sent = bytes.sent.and_then(|sent| sent.get(at)).copied();
            let received = bytes.received.and_then(|received| received.get(at)).copied();
            for clock in 1..=per_byte {
                self.at(begin + edge * span / (2 * clocks));
                self.set(SCK, b'0');
                self.drive(bytes.lines, sent, received, 8 - clock * bytes.lines.count());
                self.at(begin + (edge + 1) * span / (2 * clocks));
                self.set(SCK, b'1');
                edge += 2;
            }
            self.send();
        }
        self.at(begin + span);
        self.set(SCK, b'0');
        self.send();
    }

    fn deselected(&mut self, select: u8, chip: &mut Chip, _report: Option<&FrameReport>) {
        if !self.sink.is_open() {
            return;
        }
        self.at(self.units(chip.now_ns()));
        self.set(VcdTrace::signal(select, Pin::Cs), b'1');
        for line in 0..4 {
            self.set(IO0 + line, b'z');
        }
        self.rose = Some(self.now);
        self.look_at(select, chip);
        self.send();
    }

    fn settled(&mut self, select: u8, chip: &mut Chip) {
        if self.sink.is_open() {
            self.look_at(select, chip);
            self.send();
        }
    }
}

impl Drop for VcdTrace {
    /// A time after the last change: without it, a reader that turns changes into samples (sigrok) has none of the last.
    fn drop(&mut self) {
        let _ = writeln!(self.text, "#{}", self.now + self.per_ns);
        self.send();
        self.sink.flush();
    }
}
