//! The chip's frame decoder: a state machine over the bytes between the fall and the rise of CS# (pure).
//!
//! The states are standby, opcode, address, mode, dummy, data in or out, end, and ignored. Every byte moves the machine on
//! and gives one [`Event`]; CS# rise gives the [`Command`]. The rules, on which the data sheets of Winbond (W25Q256FV,
//! section 8), EON (EN25F16, "Instructions") and ST (M45PE20, "Instructions") agree:
//!
//! - *nothing takes effect before CS# rises*: an event reports what arrived, only a command that counts is carried out;
//! - a frame cut short does nothing, nor one of a write, program, erase or control command that is too long or ends within
//!   a byte; a read may end at any clock once its data has begun;
//! - one frame is one command: what follows a command's end is not another opcode;
//! - an unknown opcode is ignored with all that follows, and the chip does not drive its output.
//!
//! The invariant: the events and the command depend on the bytes and their lines only, not on how a caller cuts them into
//! pieces, and nothing of a frame is left over for the next.

use crate::command::{AddressMode, CommandSpec, CommandTable, Counts, DataPhase, Lines};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Where in a frame the chip is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// CS# is high.
    Standby,
    /// The next byte is the opcode.
    Opcode,
    /// Address bytes, the most significant first.
    Address,
    /// The mode byte.
    Mode,
    /// Dummy clocks.
    Dummy,
    /// Data from the host.
    DataIn,
    /// Data to the host.
    DataOut,
    /// The command is whole and takes no more bytes.
    End,
    /// Nothing means anything until CS# rises.
    Ignored,
}

/// Why a frame does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum FrameError {
    /// CS# rose before the frame was whole.
    #[error("CS# rose in the {phase:?} phase, before the command was whole")]
    CutShort {
        /// The phase that was not finished.
        phase: Phase,
    },
    /// CS# stayed low for more bytes than the command takes.
    #[error("CS# stayed low for {bytes} bytes after the command's end")]
    TooLong {
        /// How many bytes too many.
        bytes: u64,
    },
    /// CS# rose within a byte of a command that must end with a whole one.
    #[error("CS# rose {clocks} clocks into a byte: this command must end with a whole one")]
    WithinByte {
        /// Clocks after the last whole byte.
        clocks: u8,
    },
    /// The chip has no command of that opcode.
    #[error("opcode {opcode:02X}h is unknown to the chip")]
    UnknownOpcode {
        /// The opcode.
        opcode: u8,
    },
    /// The host drove other lines than the chip sampled: a real chip would have read noise.
    #[error("the {phase:?} phase is on {expected:?} lines, and the host sent on {got:?}")]
    WrongLines {
        /// The phase.
        phase: Phase,
        /// The lines of that phase.
        expected: Lines,
        /// The lines of the byte.
        got: Lines,
    },
    /// A byte's clocks went over the end of the dummy phase: all that follows is shifted.
    #[error("a byte of {byte_clocks} clocks where {clocks_left} dummy clocks were left")]
    Misaligned {
        /// The dummy clocks that were left.
        clocks_left: u8,
        /// The clocks of the byte.
        byte_clocks: u8,
    },
}

/// What one byte of a frame was. Data indices count from 0 in the data phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// CS# is high: the byte is not for this chip.
    NotSelected,
    /// The opcode.
    Opcode {
        /// The byte.
        opcode: u8,
        /// Whether the chip knows it. If not, all that follows is ignored.
        known: bool,
    },
    /// An address byte that is not the last.
    AddressByte {
        /// How many are still to come.
        left: u8,
    },
    /// The last address byte: the address.
    Address(u32),
    /// The mode byte.
    Mode(u8),
    /// Dummy clocks.
    Dummy {
        /// How many are still to come.
        clocks_left: u8,
    },
    /// A byte for the chip.
    DataIn {
        /// Its place in the data.
        index: u64,
        /// The byte.
        byte: u8,
    },
    /// The chip drives a byte while this one is clocked.
    DataOut {
        /// Its place in the data.
        index: u64,
    },
    /// A byte after the command's end: the frame will do nothing.
    Excess,
    /// The frame went wrong with this byte.
    Broken(FrameError),
    /// A byte after an unknown opcode or after the frame went wrong.
    Ignored,
}

/// What a frame asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The opcode.
    pub opcode: u8,
    /// How its frame is laid out; `None` of an unknown opcode.
    pub spec: Option<CommandSpec>,
    /// The address, once all of it arrived.
    pub address: Option<u32>,
    /// The mode byte, once it arrived.
    pub mode: Option<u8>,
    /// Which bytes of the frame are data, in or out, counted from the opcode at 0. Empty where there are none.
    pub data: Range<u64>,
    /// Whether the command counts: only then may anything change.
    pub outcome: Result<(), FrameError>,
}

/// How the chip reads the next frame: what earlier frames have set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FrameMode {
    /// Address bytes of the commands that leave it to the mode.
    pub address: AddressMode,
    /// All phases are on four lines (4-4-4).
    pub qpi: bool,
    /// The clocks between address and data of tunable commands, mode byte included; 0: as each command has it.
    pub dummy_clocks: u8,
    /// The same where the address is on four lines.
    pub quad_dummy_clocks: u8,
    /// The opcode does not come: it is this one (continuous read).
    pub implied_opcode: Option<u8>,
    /// The command that now comes without its address (SST25 AAI).
    pub no_address: Option<u8>,
}

impl From<AddressMode> for FrameMode {
    fn from(address: AddressMode) -> FrameMode {
        FrameMode { address, ..FrameMode::default() }
    }
}

/// The decoder of one chip.
#[derive(Debug, Clone)]
pub struct FrameDecoder {
    table: CommandTable,
    mode: FrameMode,
    phase: Phase,
    frame: Frame,
}

/// Where a decoder is, to be kept and restored in the middle of a frame. The commands are not part of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FrameState {
    mode: FrameMode,
    phase: Phase,
    frame: Frame,
}

/// What has arrived since CS# fell.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Frame {
    bytes: u64,
    opcode: Option<u8>,
    /// Of the table, by the opcode.
    #[serde(skip)]
    spec: Option<CommandSpec>,
    address: u32,
    address_left: u8,
    address_whole: bool,
    mode: Option<u8>,
    dummy_left: u8,
    /// Bits of the first data byte's clocks that were still dummy.
    skew_bits: u8,
    data: Range<u64>,
    excess: u64,
    error: Option<FrameError>,
}

impl FrameState {
    /// Whether a decoder can be in it: one that comes from a file may be anything.
    pub(crate) fn is_sound(&self) -> bool {
        let frame = &self.frame;
        let counts = [frame.bytes, frame.data.end, frame.excess];
        frame.data.start <= frame.data.end
            && frame.skew_bits < 8
            && frame.address_left <= 4
            && counts.into_iter().all(|count| count <= u64::MAX / 2)
    }
}

impl FrameDecoder {
    /// A decoder in standby.
    pub fn new(table: CommandTable) -> FrameDecoder {
        FrameDecoder { table, mode: FrameMode::default(), phase: Phase::Standby, frame: Frame::default() }
    }

    /// The commands it knows.
    pub fn table(&self) -> &CommandTable {
        &self.table
    }

    /// Where it is. While it is in [`Phase::DataOut`] the next byte clocks data out.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// CS# falls; the chip is in this mode for this frame. A frame that was not ended is forgotten.
    pub fn select(&mut self, mode: impl Into<FrameMode>) {
        self.mode = mode.into();
        self.phase = Phase::Opcode;
        self.frame = Frame::default();
        if let Some(opcode) = self.mode.implied_opcode {
            self.opcode(opcode);
        }
    }

    /// The state, for a snapshot.
    pub fn state(&self) -> FrameState {
        FrameState { mode: self.mode, phase: self.phase, frame: self.frame.clone() }
    }

    /// Goes to a state of [`FrameDecoder::state`].
    pub fn restore(&mut self, state: FrameState) {
        self.mode = state.mode;
        self.phase = state.phase;
        self.frame = state.frame;
        self.frame.spec = self.frame.opcode.and_then(|opcode| self.table.get(opcode)).copied();
    }

    /// The command of the frame, once its opcode arrived and is known.
    pub fn spec(&self) -> Option<&CommandSpec> {
        self.frame.spec.as_ref()
    }

    /// The address of the frame, once all of it arrived.
    pub fn frame_address(&self) -> Option<u32> {
        self.frame.address_whole.then_some(self.frame.address)
    }

    /// The opcode of the frame, once it arrived.
    pub fn frame_opcode(&self) -> Option<u8> {
        self.frame.opcode
    }

    /// The mode byte of the frame, once it arrived.
    pub fn frame_mode_byte(&self) -> Option<u8> {
        self.frame.mode
    }

    /// Data bytes so far.
    pub fn data_bytes(&self) -> u64 {
        self.frame.data.end - self.frame.data.start
    }

    /// Bits by which the data is late in the host's bytes, since the dummy clocks were not whole bytes.
    pub fn skew_bits(&self) -> u8 {
        self.frame.skew_bits
    }

    /// Many data bytes at a time, as [`FrameDecoder::clock`] does one by one: of `bytes` that are clocked on `lines`, how many
    /// are data. 0 when the decoder is not in a data phase, or on other lines.
    pub fn take_data(&mut self, bytes: usize, lines: Lines) -> usize {
        if !matches!(self.phase, Phase::DataIn | Phase::DataOut) || self.expected_lines() != Some(lines) {
            return 0;
        }
        let left = self.data_limit().map_or(u64::MAX, |limit| limit.saturating_sub(self.data_bytes()));
        let taken = (bytes as u64).min(left);
        if taken > 0 {
            self.data(self.frame.bytes);
            self.frame.bytes += taken;
            self.frame.data.end = self.frame.bytes;
            if self.phase == Phase::DataIn && taken == left {
                self.phase = Phase::End;
            }
        }
        taken as usize
    }

    /// One byte is clocked, on `lines`.
    pub fn clock(&mut self, byte: u8, lines: Lines) -> Event {
        if self.phase == Phase::Standby {
            return Event::NotSelected;
        }
        let at = self.frame.bytes;
        self.frame.bytes += 1;
        if let Some(expected) = self.expected_lines()
            && expected != lines
        {
            return self.broken(FrameError::WrongLines { phase: self.phase, expected, got: lines });
        }
        match self.phase {
            Phase::Standby => Event::NotSelected,
            Phase::Opcode => self.opcode(byte),
            Phase::Address => self.address(byte),
            Phase::Mode => {
                self.frame.mode = Some(byte);
                self.advance();
                Event::Mode(byte)
            }
            Phase::Dummy => self.dummy(lines),
            Phase::DataIn => {
                let index = self.data(at);
                if self.data_limit().is_some_and(|limit| index + 1 >= limit) {
                    self.phase = Phase::End;
                }
                Event::DataIn { index, byte }
            }
            Phase::DataOut => Event::DataOut { index: self.data(at) },
            Phase::End => {
                self.frame.excess += 1;
                Event::Excess
            }
            Phase::Ignored => Event::Ignored,
        }
    }

    /// Bytes are clocked, all on `lines`; `sink` gets the event of each.
    pub fn transfer(&mut self, bytes: &[u8], lines: Lines, mut sink: impl FnMut(Event)) {
        for byte in bytes {
            sink(self.clock(*byte, lines));
        }
    }

    /// CS# rises, `stray_clocks` after the last whole byte (0 on a bus of whole bytes): what the frame asked for.
    /// `None` when there was no frame, or not even a whole opcode in it.
    pub fn deselect(&mut self, stray_clocks: u8) -> Option<Command> {
        let phase = std::mem::replace(&mut self.phase, Phase::Standby);
        let frame = std::mem::take(&mut self.frame);
        let opcode = frame.opcode?;
        let outcome = frame.outcome(opcode, phase, stray_clocks);
        Some(Command {
            opcode,
            spec: frame.spec,
            address: frame.address_whole.then_some(frame.address),
            mode: frame.mode,
            data: frame.data,
            outcome,
        })
    }

    /// The lines of the next byte, where they matter: in dummy clocks, and once nothing counts, they do not.
    fn expected_lines(&self) -> Option<Lines> {
        let spec = self.frame.spec.as_ref();
        if self.mode.qpi && !matches!(self.phase, Phase::Standby | Phase::Dummy | Phase::End | Phase::Ignored)
        {
            return Some(Lines::Quad);
        }
        match self.phase {
            Phase::Opcode => Some(Lines::Single),
            Phase::Address | Phase::Mode => spec.map(|spec| spec.address.lines()),
            Phase::DataIn | Phase::DataOut => match spec?.data {
                DataPhase::None => None,
                DataPhase::In { lines, .. } | DataPhase::Out { lines } => Some(lines),
            },
            Phase::Standby | Phase::Dummy | Phase::End | Phase::Ignored => None,
        }
    }

    fn data_limit(&self) -> Option<u64> {
        match self.frame.spec?.data {
            DataPhase::In { max_bytes: u32::MAX, .. } => None,
            DataPhase::In { max_bytes, .. } => Some(u64::from(max_bytes)),
            _ => None,
        }
    }

    fn opcode(&mut self, opcode: u8) -> Event {
        self.frame.opcode = Some(opcode);
        let Some(spec) = self.table.get(opcode).copied() else {
            self.phase = Phase::Ignored;
            return Event::Opcode { opcode, known: false };
        };
        self.frame.spec = Some(spec);
        self.frame.address_left = spec.address.bytes(self.mode.address);
        if self.mode.no_address == Some(opcode) {
            self.frame.address_left = 0;
        }
        self.frame.dummy_left = spec.dummy_clocks;
        let lines = if self.mode.qpi { Lines::Quad } else { spec.address.lines() };
        let quad = lines == Lines::Quad;
        let set_clocks = if quad { self.mode.quad_dummy_clocks } else { self.mode.dummy_clocks };
        if spec.tunable_dummy && set_clocks > 0 {
            let mode_clocks = if spec.mode_byte { lines.clocks_per_byte() } else { 0 };
            self.frame.dummy_left = set_clocks.saturating_sub(mode_clocks);
        }
        self.advance();
        Event::Opcode { opcode, known: true }
    }

    fn address(&mut self, byte: u8) -> Event {
        self.frame.address = self.frame.address << 8 | u32::from(byte);
        self.frame.address_left = self.frame.address_left.saturating_sub(1);
        if self.frame.address_left > 0 {
            return Event::AddressByte { left: self.frame.address_left };
        }
        self.frame.address_whole = true;
        self.advance();
        Event::Address(self.frame.address)
    }

    fn dummy(&mut self, lines: Lines) -> Event {
        let (clocks_left, byte_clocks) = (self.frame.dummy_left, lines.clocks_per_byte());
        let Some(clocks_left) = clocks_left.checked_sub(byte_clocks) else {
            // The rest of the byte is data already, if it is on the lines of the data.
            self.frame.dummy_left = 0;
            self.advance();
            if self.phase != Phase::DataOut || self.expected_lines() != Some(lines) {
                return self.broken(FrameError::Misaligned { clocks_left, byte_clocks });
            }
            self.frame.skew_bits = clocks_left * lines.count();
            let index = self.data(self.frame.bytes - 1);
            return Event::DataOut { index };
        };
        self.frame.dummy_left = clocks_left;
        if clocks_left == 0 {
            self.advance();
        }
        Event::Dummy { clocks_left }
    }

    /// Counts the data byte at `at` of the frame; its index in the data.
    fn data(&mut self, at: u64) -> u64 {
        if self.frame.data.is_empty() {
            self.frame.data = at..at;
        }
        self.frame.data.end = at + 1;
        at - self.frame.data.start
    }

    fn broken(&mut self, error: FrameError) -> Event {
        self.phase = Phase::Ignored;
        self.frame.error = Some(error);
        Event::Broken(error)
    }

    /// A phase is over: the next one that this command has.
    fn advance(&mut self) {
        let Some(spec) = self.frame.spec.as_ref() else { return };
        let left = &self.frame;
        self.phase = if left.address_left > 0 {
            Phase::Address
        } else if spec.mode_byte && left.mode.is_none() {
            Phase::Mode
        } else if left.dummy_left > 0 {
            Phase::Dummy
        } else {
            match spec.data {
                DataPhase::None => Phase::End,
                DataPhase::In { .. } => Phase::DataIn,
                DataPhase::Out { .. } => Phase::DataOut,
            }
        };
    }
}

impl Frame {
    /// Whether the frame counts, now that CS# rose in `phase`.
    fn outcome(&self, opcode: u8, phase: Phase, stray_clocks: u8) -> Result<(), FrameError> {
        let Some(spec) = &self.spec else { return Err(FrameError::UnknownOpcode { opcode }) };
        if spec.counts == Counts::WithOpcode {
            return Ok(());
        }
        if let Some(error) = self.error {
            return Err(error);
        }
        if self.excess > 0 {
            return Err(FrameError::TooLong { bytes: self.excess });
        }
        let data_bytes = self.data.end - self.data.start;
        match (phase, spec.data) {
            (Phase::DataOut, _) => Ok(()),
            (Phase::DataIn, DataPhase::In { min_bytes, .. }) if data_bytes < u64::from(min_bytes) => {
                Err(FrameError::CutShort { phase })
            }
            (Phase::DataIn | Phase::End, _) => match stray_clocks {
                0 => Ok(()),
                clocks => Err(FrameError::WithinByte { clocks }),
            },
            _ => Err(FrameError::CutShort { phase }),
        }
    }
}
