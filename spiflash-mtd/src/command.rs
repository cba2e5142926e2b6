//! How the frame of each command is laid out: a table of data that the decoder and the encoder both follow.
//!
//! Every frame is `opcode, address, mode byte, dummy clocks, data`, where all but the opcode may be missing. The opcode is
//! on one line, or on four in QPI mode (4-4-4), where all that follows is on four lines too. A [`CommandTable`] has one
//! command of each opcode. The commands themselves are in [`crate::catalogue`].

use crate::catalogue;
use crate::error::SpiError;
use crate::op::Op;
use serde::{Deserialize, Serialize};

/// How many data lines carry bits at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Lines {
    /// One each way: IO0 in, IO1 out.
    Single,
    /// IO0 and IO1.
    Dual,
    /// IO0 to IO3.
    Quad,
}

impl Lines {
    /// The number of lines.
    pub const fn count(self) -> u8 {
        match self {
            Lines::Single => 1,
            Lines::Dual => 2,
            Lines::Quad => 4,
        }
    }

    /// How many clocks a byte takes.
    pub const fn clocks_per_byte(self) -> u8 {
        8 / self.count()
    }
}

/// How many address bytes a chip takes for a command that leaves it to the mode: B7h and E9h switch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum AddressMode {
    /// Three, as after power-up of most parts: the first 16 MiB.
    #[default]
    ThreeByte,
    /// Four.
    FourByte,
}

/// The address of a command's frame, and on which lines it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressPhase {
    /// There is none.
    None,
    /// Three or four bytes by the chip's [`AddressMode`].
    ByMode(Lines),
    /// One byte: a feature register of a SPI NAND.
    One(Lines),
    /// Two bytes: a column of a SPI NAND's buffer.
    Two(Lines),
    /// Three bytes in either mode.
    Three(Lines),
    /// Four bytes in either mode.
    Four(Lines),
}

impl AddressPhase {
    /// How many bytes it has.
    pub const fn bytes(self, mode: AddressMode) -> u8 {
        match (self, mode) {
            (AddressPhase::None, _) => 0,
            (AddressPhase::One(_), _) => 1,
            (AddressPhase::Two(_), _) => 2,
            (AddressPhase::Three(_), _) | (AddressPhase::ByMode(_), AddressMode::ThreeByte) => 3,
            (AddressPhase::Four(_), _) | (AddressPhase::ByMode(_), AddressMode::FourByte) => 4,
        }
    }

    /// The lines of the address, of the mode byte, and of an encoder's dummy clocks.
    pub const fn lines(self) -> Lines {
        match self {
            AddressPhase::None => Lines::Single,
            AddressPhase::ByMode(lines)
            | AddressPhase::One(lines)
            | AddressPhase::Two(lines)
            | AddressPhase::Three(lines)
            | AddressPhase::Four(lines) => lines,
        }
    }
}

/// The data of a command's frame, as the chip sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataPhase {
    /// There is none: the frame must end here.
    None,
    /// From the host to the chip.
    In {
        /// On which lines.
        lines: Lines,
        /// The fewest bytes that make the frame count; at least 1.
        min_bytes: u32,
        /// The most bytes that the frame may have. A page program has no such limit: it wraps within its page.
        max_bytes: u32,
    },
    /// From the chip to the host, for as long as the host clocks.
    Out {
        /// On which lines.
        lines: Lines,
    },
}

/// From where on a frame counts when CS# rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counts {
    /// When all that comes before the data, and the data that it must have, is there.
    WhenWhole,
    /// With the opcode: ABh wakes the chip, whether or not its ID is then read.
    WithOpcode,
}

/// One command: how its frame is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CommandSpec {
    /// The first byte.
    pub opcode: u8,
    /// What the data sheets call it.
    pub name: &'static str,
    /// The address.
    pub address: AddressPhase,
    /// Whether a mode byte follows the address, on its lines. Its meaning (continuous read) is the part's.
    pub mode_byte: bool,
    /// Clocks in which the data lines mean nothing. An encoder fills them with bytes on the lines of the address.
    pub dummy_clocks: u8,
    /// The data.
    pub data: DataPhase,
    /// When the frame counts.
    pub counts: Counts,
    /// What it does, when it counts.
    pub op: Op,
    /// Whether the dummy clocks follow the part's dummy-clock register ([`crate::part::DummyRule`]), where it has one.
    pub tunable_dummy: bool,
    /// Whether the mode byte may ask for the next frame to come without its opcode.
    pub continuous: bool,
}

impl CommandSpec {
    /// A frame that is only an opcode.
    pub const fn control(opcode: u8, name: &'static str) -> CommandSpec {
        CommandSpec {
            opcode,
            name,
            address: AddressPhase::None,
            mode_byte: false,
            dummy_clocks: 0,
            data: DataPhase::None,
            counts: Counts::WhenWhole,
            op: Op::Nothing,
            tunable_dummy: false,
            continuous: false,
        }
    }

    /// The same, doing `op`.
    pub const fn doing(self, op: Op) -> CommandSpec {
        CommandSpec { op, ..self }
    }

    /// The same with dummy clocks that a register sets.
    pub const fn tunable(self) -> CommandSpec {
        CommandSpec { tunable_dummy: true, ..self }
    }

    /// A read of a register or an ID: data out follows the opcode on one line.
    pub const fn register_read(opcode: u8, name: &'static str) -> CommandSpec {
        let data = DataPhase::Out { lines: Lines::Single };
        CommandSpec { data, ..CommandSpec::control(opcode, name) }
    }

    /// A write of a register: one byte, or up to `max_bytes` where a frame may write the registers that follow too.
    pub const fn register_write(opcode: u8, name: &'static str, max_bytes: u32) -> CommandSpec {
        let data = DataPhase::In { lines: Lines::Single, min_bytes: 1, max_bytes };
        CommandSpec { data, ..CommandSpec::control(opcode, name) }
    }

    /// A read of the array: address, dummy clocks, data out.
    pub const fn read(
        opcode: u8,
        name: &'static str,
        address: AddressPhase,
        dummy_clocks: u8,
        lines: Lines,
    ) -> CommandSpec {
        let data = DataPhase::Out { lines };
        CommandSpec { address, dummy_clocks, data, ..CommandSpec::control(opcode, name) }
    }

    /// The same with a mode byte after the address.
    pub const fn with_mode_byte(self) -> CommandSpec {
        CommandSpec { mode_byte: true, ..self }
    }

    /// A page program: address, data in.
    pub const fn program(opcode: u8, name: &'static str, address: AddressPhase, lines: Lines) -> CommandSpec {
        let data = DataPhase::In { lines, min_bytes: 1, max_bytes: u32::MAX };
        CommandSpec { address, data, ..CommandSpec::control(opcode, name) }
    }

    /// An erase at an address.
    pub const fn erase(opcode: u8, name: &'static str, address: AddressPhase) -> CommandSpec {
        CommandSpec { address, ..CommandSpec::control(opcode, name) }
    }

    /// Refuses a layout that whole bytes cannot satisfy.
    fn check(&self) -> Result<(), SpiError> {
        let opcode = self.opcode;
        if self.mode_byte && self.address == AddressPhase::None {
            return Err(SpiError::ModeWithoutAddress { opcode });
        }
        let (clocks, clocks_per_byte) = (self.dummy_clocks, self.address.lines().clocks_per_byte());
        if !clocks.is_multiple_of(clocks_per_byte) {
            return Err(SpiError::BrokenDummy { opcode, clocks, clocks_per_byte });
        }
        match self.data {
            DataPhase::In { min_bytes, max_bytes, .. } if min_bytes == 0 || min_bytes > max_bytes => {
                Err(SpiError::BrokenData { opcode, min_bytes, max_bytes })
            }
            _ => Ok(()),
        }
    }
}

/// The commands that a chip knows, by opcode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandTable {
    by_opcode: Vec<Option<CommandSpec>>,
}

impl CommandTable {
    /// A table of these commands.
    ///
    /// # Errors
    /// The first command whose opcode is taken, or whose layout whole bytes cannot satisfy.
    pub fn new(commands: impl IntoIterator<Item = CommandSpec>) -> Result<CommandTable, SpiError> {
        let mut table = CommandTable { by_opcode: vec![None; 256] };
        for command in commands {
            if let Some(first) = table.replace(command)? {
                let (first, second) = (first.name, command.name);
                return Err(SpiError::DuplicateOpcode { opcode: command.opcode, first, second });
            }
        }
        Ok(table)
    }

    /// The commands of [`catalogue::jedec`].
    pub fn jedec() -> CommandTable {
        // Not by `new`, which may refuse: that it would not refuse these is a test's business.
        let mut by_opcode = vec![None; 256];
        for command in catalogue::jedec() {
            by_opcode[usize::from(command.opcode)] = Some(command);
        }
        CommandTable { by_opcode }
    }

    /// Puts in a part's own form of a command, and gives back the one that had its opcode.
    ///
    /// # Errors
    /// A layout that whole bytes cannot satisfy; the table is as it was.
    pub fn replace(&mut self, command: CommandSpec) -> Result<Option<CommandSpec>, SpiError> {
        command.check()?;
        let slot = self.by_opcode.get_mut(usize::from(command.opcode));
        Ok(slot.and_then(|slot| slot.replace(command)))
    }

    /// Takes out a command that a part does not know.
    pub fn remove(&mut self, opcode: u8) -> Option<CommandSpec> {
        self.by_opcode.get_mut(usize::from(opcode)).and_then(Option::take)
    }

    /// The command of an opcode.
    pub fn get(&self, opcode: u8) -> Option<&CommandSpec> {
        self.by_opcode.get(usize::from(opcode)).and_then(Option::as_ref)
    }

    /// All commands, by opcode.
    pub fn iter(&self) -> impl Iterator<Item = &CommandSpec> {
        self.by_opcode.iter().flatten()
    }
}
