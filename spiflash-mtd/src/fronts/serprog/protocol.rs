//! The serprog protocol, version 1, as a programmer speaks it: bytes of the client in, frames on the bus, replies out.
//!
//! The invariant: the replies depend on the bytes, never on how they were cut into pieces; a command that has not come
//! whole has done nothing; and after [`Serprog::end`] no chip is selected and every chip has power.
//!
//! Source: flashrom's documentation, "Serial Flasher Protocol Specification", version 1. Where it leaves something open:
//!
//! - delays (0Eh) go into the operation buffer and pass as time of the bus when it is executed (0Fh);
//! - the pin drivers (15h) are the chips' power: see [`PinState`];
//! - full duplex (17h, 1): as many bytes are clocked as the longer of the two lengths says; zeros follow what the client
//!   sent, and the first of what came in are returned;
//! - CS# held low (18h, 1) makes one frame of all operations until the next 18h; held high (2), nobody listens, and FFh is
//!   read. While it is held low no other front gets the bus.

use crate::bus::{BusError, SpiBus, Transfer};

/// The command was done.
pub const ACK: u8 = 0x06;
/// The command is unknown, or was not done.
pub const NAK: u8 = 0x15;

/// About how many bytes of replies are made at a time: a read may add up to 16 MiB.
pub const REPLY_BATCH_BYTES: usize = 64 << 10;

/// The opcodes that are known; those of parallel chips (06h, 09h, 0Ah, 0Ch, 0Dh) are not.
pub mod opcode {
    #![allow(missing_docs)]
    pub const NOP: u8 = 0x00;
    pub const QUERY_INTERFACE: u8 = 0x01;
    pub const QUERY_COMMAND_MAP: u8 = 0x02;
    pub const QUERY_NAME: u8 = 0x03;
    pub const QUERY_SERIAL_BUFFER: u8 = 0x04;
    pub const QUERY_BUS_TYPE: u8 = 0x05;
    pub const QUERY_OPERATION_BUFFER: u8 = 0x07;
    pub const QUERY_MAX_WRITE: u8 = 0x08;
    pub const BUFFER_INIT: u8 = 0x0B;
    pub const BUFFER_DELAY: u8 = 0x0E;
    pub const BUFFER_EXECUTE: u8 = 0x0F;
    pub const SYNC_NOP: u8 = 0x10;
    pub const QUERY_MAX_READ: u8 = 0x11;
    pub const SET_BUS_TYPE: u8 = 0x12;
    pub const SPI_OPERATION: u8 = 0x13;
    pub const SET_CLOCK: u8 = 0x14;
    pub const SET_PIN_STATE: u8 = 0x15;
    pub const SET_CHIP_SELECT: u8 = 0x16;
    pub const SET_SPI_MODE: u8 = 0x17;
    pub const SET_CS_MODE: u8 = 0x18;
    pub const ALL: [u8; 20] = [
        NOP,
        QUERY_INTERFACE,
        QUERY_COMMAND_MAP,
        QUERY_NAME,
        QUERY_SERIAL_BUFFER,
        QUERY_BUS_TYPE,
        QUERY_OPERATION_BUFFER,
        QUERY_MAX_WRITE,
        BUFFER_INIT,
        BUFFER_DELAY,
        BUFFER_EXECUTE,
        SYNC_NOP,
        QUERY_MAX_READ,
        SET_BUS_TYPE,
        SPI_OPERATION,
        SET_CLOCK,
        SET_PIN_STATE,
        SET_CHIP_SELECT,
        SET_SPI_MODE,
        SET_CS_MODE,
    ];
}

/// The bit of SPI in a byte of bus types.
const BUS_TYPE_SPI: u8 = 1 << 3;
/// What is said of the serial buffer: the protocol's "big bogus value" of a transport with flow control.
const SERIAL_BUFFER_BYTES: u16 = 0xFFFF;
/// The operation buffer, in the protocol's bytes. A delay takes 5; only their sum is kept.
const OPERATION_BUFFER_BYTES: u16 = 0xFFFF;
const DELAY_BYTES: u16 = 5;
/// Opcode and two lengths.
const SPI_HEADER_BYTES: usize = 7;
/// More than this of buffers is given back between commands.
const KEPT_BYTES: usize = 1 << 20;

/// What the pin drivers' switch (15h) does. flashrom turns them on when it starts and off when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PinState {
    /// It is the power of all chips: off loses what is volatile, on is a power-up. The power is on again when the client
    /// has left.
    #[default]
    Power,
    /// It does nothing: for a bus that other fronts use at the same time.
    Ignored,
}

/// What a programmer is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// What 15h does.
    pub pin_state: PinState,
    /// The chip that is selected until the client says otherwise.
    pub chip_select: u8,
    /// How long the programmer waits after it has switched the power on, in nanoseconds of the bus: a chip takes no
    /// commands at first (tVSL, tPUW: up to some milliseconds).
    pub power_up_delay_ns: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { pin_state: PinState::default(), chip_select: 0, power_up_delay_ns: 10_000_000 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum CsMode {
    /// Low during each operation.
    #[default]
    Auto,
    /// Low, and the chip is selected.
    Low,
    /// High.
    High,
}

/// What a client can change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct State {
    chip_select: u8,
    full_duplex: bool,
    cs_mode: CsMode,
    /// Of all operations from now on: another front may have set another.
    clock_hz: Option<u32>,
    powered_off: bool,
    buffered_bytes: u16,
    buffered_us: u64,
}

/// A programmer with its client.
#[derive(Debug, Clone)]
pub struct Serprog {
    options: Options,
    state: State,
    /// The begin of a command, while the rest has not come.
    partial: Vec<u8>,
}

impl Serprog {
    /// A programmer as it is when a client comes.
    pub fn new(options: Options) -> Serprog {
        let state = State { chip_select: options.chip_select, ..State::default() };
        Serprog { options, state, partial: Vec::new() }
    }

    /// Carries out the commands that are whole, and appends their replies to `replies`; what is left is kept.
    ///
    /// Returns how many bytes of the input were taken: all, or fewer when there are at least [`REPLY_BATCH_BYTES`] of
    /// replies. Then the caller sends them and calls again with the rest. With no replies at the call, at least one byte
    /// is taken.
    pub fn feed(&mut self, bus: &mut dyn SpiBus, input: &[u8], replies: &mut Vec<u8>) -> usize {
        let mut rest = input;
        while !rest.is_empty() && replies.len() < REPLY_BATCH_BYTES {
            if self.partial.is_empty() {
                let Some((command, after)) = rest.split_at_checked(command_bytes(rest)) else {
                    self.partial.extend_from_slice(rest);
                    return input.len();
                };
                self.execute(bus, command, replies);
                rest = after;
                continue;
            }
            let missing = command_bytes(&self.partial).saturating_sub(self.partial.len());
            let (more, after) = rest.split_at(missing.min(rest.len()));
            self.partial.extend_from_slice(more);
            rest = after;
            if self.partial.len() == command_bytes(&self.partial) {
                let mut command = std::mem::take(&mut self.partial);
                self.execute(bus, &command, replies);
                command.clear();
                command.shrink_to(KEPT_BYTES);
                self.partial = command;
            }
        }
        input.len() - rest.len()
    }

    /// Whether a chip is held selected between commands: the bus belongs to this client.
    pub fn holds_bus(&self) -> bool {
        self.state.cs_mode == CsMode::Low
    }

    /// How many bytes are missing of the command that has begun, at least; 1 between commands: whatever comes next, to wait for
    /// more of it than there is would wait for the timeout.
    pub fn likely_bytes(&self) -> usize {
        match self.partial.len() {
            0 => 1,
            there => command_bytes(&self.partial).saturating_sub(there).max(1),
        }
    }

    /// The client has left: CS# rises, the power comes back, and all is as at the begin.
    pub fn end(&mut self, bus: &mut dyn SpiBus) {
        self.release(bus);
        if self.state.powered_off {
            // The chips of this bus exist: they had power.
            let _ = self.set_power(bus, true);
        }
        self.partial = Vec::new();
        self.state = State { chip_select: self.options.chip_select, ..State::default() };
    }

    fn release(&mut self, bus: &mut dyn SpiBus) {
        if self.holds_bus() {
            // It was selected by this client.
            let _ = bus.deselect();
            self.state.cs_mode = CsMode::Auto;
        }
    }

    /// `command` is as long as [`command_bytes`] says.
    fn execute(&mut self, bus: &mut dyn SpiBus, command: &[u8], replies: &mut Vec<u8>) {
        let Some((&opcode, parameters)) = command.split_first() else { return };
        let first = parameters.first().copied().unwrap_or_default();
        match opcode {
            opcode::NOP => replies.push(ACK),
            opcode::QUERY_INTERFACE => replies.extend([ACK, 1, 0]),
            opcode::QUERY_COMMAND_MAP => {
                replies.push(ACK);
                replies.extend(command_map());
            }
            opcode::QUERY_NAME => {
                replies.push(ACK);
                replies.extend(b"spiflash-mtd\0\0\0\0");
            }
            opcode::QUERY_SERIAL_BUFFER => {
                replies.push(ACK);
                replies.extend(SERIAL_BUFFER_BYTES.to_le_bytes());
            }
            opcode::QUERY_BUS_TYPE => replies.extend([ACK, BUS_TYPE_SPI]),
            opcode::QUERY_OPERATION_BUFFER => {
                replies.push(ACK);
                replies.extend(OPERATION_BUFFER_BYTES.to_le_bytes());
            }
            // 0 is 2^24, more than the length in an operation can say.
            opcode::QUERY_MAX_WRITE | opcode::QUERY_MAX_READ => replies.extend([ACK, 0, 0, 0]),
            opcode::BUFFER_INIT => {
                (self.state.buffered_bytes, self.state.buffered_us) = (0, 0);
                replies.push(ACK);
            }
            opcode::BUFFER_DELAY => replies.push(self.buffer_delay(little_endian(parameters))),
            opcode::BUFFER_EXECUTE => {
                bus.delay_ns(self.state.buffered_us.saturating_mul(1000));
                (self.state.buffered_bytes, self.state.buffered_us) = (0, 0);
                replies.push(ACK);
            }
            opcode::SYNC_NOP => replies.extend([NAK, ACK]),
            opcode::SET_BUS_TYPE => replies.push(if first & BUS_TYPE_SPI != 0 { ACK } else { NAK }),
            opcode::SPI_OPERATION => self.spi_operation(bus, parameters, replies),
            opcode::SET_CLOCK => match set_clock_at_most(bus, little_endian(parameters)) {
                Ok(hz) => {
                    self.state.clock_hz = Some(hz);
                    replies.push(ACK);
                    replies.extend(hz.to_le_bytes());
                }
                Err(_) => replies.push(NAK),
            },
            opcode::SET_PIN_STATE => replies.push(answer(self.set_power(bus, first != 0).is_ok())),
            opcode::SET_CHIP_SELECT => {
                let can = first < bus.chips() && !self.holds_bus();
                if can {
                    self.state.chip_select = first;
                }
                replies.push(answer(can));
            }
            opcode::SET_SPI_MODE => {
                if first <= 1 {
                    self.state.full_duplex = first == 1;
                }
                replies.push(answer(first <= 1));
            }
            opcode::SET_CS_MODE => replies.push(answer(self.set_cs_mode(bus, first))),
            _ => replies.push(NAK),
        }
    }

    fn buffer_delay(&mut self, us: u32) -> u8 {
        let Some(bytes) = self.state.buffered_bytes.checked_add(DELAY_BYTES) else { return NAK };
        self.state.buffered_bytes = bytes;
        self.state.buffered_us += u64::from(us);
        ACK
    }

    fn set_power(&mut self, bus: &mut dyn SpiBus, on: bool) -> Result<(), BusError> {
        if self.options.pin_state == PinState::Ignored {
            return Ok(());
        }
        for select in 0..bus.chips() {
            bus.set_power(select, on)?;
        }
        if on && self.state.powered_off {
            bus.delay_ns(self.options.power_up_delay_ns);
        }
        self.state.powered_off = !on;
        Ok(())
    }

    fn set_cs_mode(&mut self, bus: &mut dyn SpiBus, mode: u8) -> bool {
        match mode {
            0 | 2 => {
                self.release(bus);
                self.state.cs_mode = if mode == 0 { CsMode::Auto } else { CsMode::High };
                true
            }
            1 if self.holds_bus() => true,
            1 => {
                let selected = bus.select(self.state.chip_select).is_ok();
                if selected {
                    self.state.cs_mode = CsMode::Low;
                }
                selected
            }
            _ => false,
        }
    }

    fn spi_operation(&mut self, bus: &mut dyn SpiBus, parameters: &[u8], replies: &mut Vec<u8>) {
        let Some((lengths, sent)) = parameters.split_at_checked(SPI_HEADER_BYTES - 1) else { return };
        let read_bytes = little_endian(lengths.get(3..).unwrap_or_default()) as usize;
        if let Some(hz) = self.state.clock_hz {
            // It was accepted before.
            let _ = set_clock_at_most(bus, hz);
        }
        replies.push(ACK);
        let data_at = replies.len();
        let result = if self.state.full_duplex {
            replies.extend_from_slice(sent);
            replies.resize(data_at + sent.len().max(read_bytes), 0);
            let bytes = replies.get_mut(data_at..).unwrap_or_default();
            let result = self.clock(bus, &mut [Transfer::Both { bytes }]);
            replies.truncate(data_at + read_bytes);
            result
        } else {
            replies.resize(data_at + read_bytes, 0);
            let received = replies.get_mut(data_at..).unwrap_or_default();
            match (sent.is_empty(), received.is_empty()) {
                (true, true) => self.clock(bus, &mut []),
                (false, true) => self.clock(bus, &mut [Transfer::write(sent)]),
                (true, false) => self.clock(bus, &mut [Transfer::read(received)]),
                (false, false) => self.clock(bus, &mut [Transfer::write(sent), Transfer::read(received)]),
            }
        };
        if result.is_err() {
            replies.truncate(data_at - 1);
            replies.push(NAK);
        }
    }

    fn clock(&self, bus: &mut dyn SpiBus, transfers: &mut [Transfer<'_>]) -> Result<(), BusError> {
        match self.state.cs_mode {
            CsMode::Auto => bus.frame(self.state.chip_select, transfers),
            CsMode::Low => {
                for transfer in transfers {
                    bus.transfer(again(transfer))?;
                }
                Ok(())
            }
            CsMode::High => {
                for transfer in transfers {
                    match transfer {
                        Transfer::Write { .. } => {}
                        Transfer::Read { bytes, .. } | Transfer::Both { bytes } => bytes.fill(0xFF),
                    }
                }
                Ok(())
            }
        }
    }
}

/// The same transfer for a shorter time.
fn again<'b>(transfer: &'b mut Transfer<'_>) -> Transfer<'b> {
    match transfer {
        Transfer::Write { lines, bytes } => Transfer::Write { lines: *lines, bytes },
        Transfer::Read { lines, bytes } => Transfer::Read { lines: *lines, bytes },
        Transfer::Both { bytes } => Transfer::Both { bytes },
    }
}

/// How long the command is that begins here: as far as it can be told, at least one byte more than there is.
fn command_bytes(begin: &[u8]) -> usize {
    match begin.first() {
        None => 1,
        Some(&opcode::SPI_OPERATION) => match begin.get(1..4) {
            Some(sent) if begin.len() >= SPI_HEADER_BYTES => SPI_HEADER_BYTES + little_endian(sent) as usize,
            _ => SPI_HEADER_BYTES,
        },
        Some(&(opcode::BUFFER_DELAY | opcode::SET_CLOCK)) => 5,
        Some(
            &(opcode::SET_BUS_TYPE
            | opcode::SET_PIN_STATE
            | opcode::SET_CHIP_SELECT
            | opcode::SET_SPI_MODE
            | opcode::SET_CS_MODE),
        ) => 2,
        Some(_) => 1,
    }
}

fn answer(done: bool) -> u8 {
    if done { ACK } else { NAK }
}

/// Up to four bytes, the first is the lowest.
fn little_endian(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).rev().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

fn command_map() -> [u8; 32] {
    let mut map = [0; 32];
    for opcode in opcode::ALL {
        if let Some(byte) = map.get_mut(usize::from(opcode / 8)) {
            *byte |= 1 << (opcode % 8);
        }
    }
    map
}

/// Sets the bus's clock to what is asked for, or to its fastest when that is less.
///
/// # Errors
/// 0 Hz.
pub(crate) fn set_clock_at_most(bus: &mut dyn SpiBus, hz: u32) -> Result<u32, BusError> {
    match bus.set_clock_hz(hz) {
        Err(BusError::Clock { most_hz, .. }) if hz > most_hz => bus.set_clock_hz(most_hz),
        result => result,
    }
}
