//! How the frame of each command is laid out: a table of data that the decoder and the encoder both follow.
//!
//! Every frame is `opcode, address, mode byte, dummy clocks, data`, where all but the opcode may be missing. The opcode
//! is always on one line (QPI, 4-4-4, is not described here). A [`CommandTable`] has one command of each opcode, and only
//! layouts that whole bytes can satisfy.
//!
//! Sources of [`JEDEC`]: JEDEC JESD216 (SFDP): the basic flash parameter table's dwords 3 and 4 (fast reads: opcode, mode
//! clocks, wait states), 8 and 9 (erases), 13 (suspend, resume), 14 (deep power-down), 16 (soft reset, 4-byte modes), the
//! 4-byte address instruction table, and the frame of 5Ah itself; Winbond W25Q256FV and W25Q128JV, section 8
//! (instructions). The clocks between the address and the data of BBh and EBh are 4 and 6 on Winbond, Macronix and ISSI
//! alike, which call more or fewer of them mode bits; the split here is the one that Winbond draws. A part that differs
//! (Micron takes 8 and 10, and status registers vary) changes the rows of its own table.

use crate::error::SpiError;

/// How many data lines carry bits at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
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
            (AddressPhase::Three(_), _) | (AddressPhase::ByMode(_), AddressMode::ThreeByte) => 3,
            (AddressPhase::Four(_), _) | (AddressPhase::ByMode(_), AddressMode::FourByte) => 4,
        }
    }

    /// The lines of the address, of the mode byte, and of an encoder's dummy clocks.
    pub const fn lines(self) -> Lines {
        match self {
            AddressPhase::None => Lines::Single,
            AddressPhase::ByMode(lines) | AddressPhase::Three(lines) | AddressPhase::Four(lines) => lines,
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
        }
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

const SINGLE: Lines = Lines::Single;
const DUAL: Lines = Lines::Dual;
const QUAD: Lines = Lines::Quad;
const BY_MODE: AddressPhase = AddressPhase::ByMode(SINGLE);
const FOUR: AddressPhase = AddressPhase::Four(SINGLE);

/// The commands that the parts of most makers share. See the module's sources.
pub const JEDEC: &[CommandSpec] = &[
    CommandSpec::read(0x03, "Read Data", BY_MODE, 0, SINGLE),
    CommandSpec::read(0x0B, "Fast Read", BY_MODE, 8, SINGLE),
    CommandSpec::read(0x3B, "Fast Read Dual Output", BY_MODE, 8, DUAL),
    CommandSpec::read(0x6B, "Fast Read Quad Output", BY_MODE, 8, QUAD),
    CommandSpec::read(0xBB, "Fast Read Dual I/O", AddressPhase::ByMode(DUAL), 0, DUAL).with_mode_byte(),
    CommandSpec::read(0xEB, "Fast Read Quad I/O", AddressPhase::ByMode(QUAD), 4, QUAD).with_mode_byte(),
    CommandSpec::read(0x13, "Read Data with 4-Byte Address", FOUR, 0, SINGLE),
    CommandSpec::read(0x0C, "Fast Read with 4-Byte Address", FOUR, 8, SINGLE),
    CommandSpec::read(0x3C, "Fast Read Dual Output with 4-Byte Address", FOUR, 8, DUAL),
    CommandSpec::read(0x6C, "Fast Read Quad Output with 4-Byte Address", FOUR, 8, QUAD),
    CommandSpec::read(0xBC, "Fast Read Dual I/O with 4-Byte Address", AddressPhase::Four(DUAL), 0, DUAL)
        .with_mode_byte(),
    CommandSpec::read(0xEC, "Fast Read Quad I/O with 4-Byte Address", AddressPhase::Four(QUAD), 4, QUAD)
        .with_mode_byte(),
    CommandSpec::program(0x02, "Page Program", BY_MODE, SINGLE),
    CommandSpec::program(0x12, "Page Program with 4-Byte Address", FOUR, SINGLE),
    CommandSpec::program(0x32, "Quad Input Page Program", BY_MODE, QUAD),
    CommandSpec::program(0x34, "Quad Input Page Program with 4-Byte Address", FOUR, QUAD),
    CommandSpec::erase(0x20, "Sector Erase (4 KiB)", BY_MODE),
    CommandSpec::erase(0x52, "Block Erase (32 KiB)", BY_MODE),
    CommandSpec::erase(0xD8, "Block Erase (64 KiB)", BY_MODE),
    CommandSpec::erase(0x21, "Sector Erase (4 KiB) with 4-Byte Address", FOUR),
    CommandSpec::erase(0x5C, "Block Erase (32 KiB) with 4-Byte Address", FOUR),
    CommandSpec::erase(0xDC, "Block Erase (64 KiB) with 4-Byte Address", FOUR),
    CommandSpec::control(0xC7, "Chip Erase"),
    CommandSpec::control(0x60, "Chip Erase"),
    CommandSpec::control(0x06, "Write Enable"),
    CommandSpec::control(0x04, "Write Disable"),
    CommandSpec::register_read(0x05, "Read Status Register-1"),
    CommandSpec::register_read(0x35, "Read Status Register-2"),
    CommandSpec::register_read(0x15, "Read Status Register-3"),
    // One byte, or two that also write the second register (Winbond, Infineon) or the configuration (Macronix).
    CommandSpec::register_write(0x01, "Write Status Register-1", 2),
    CommandSpec::register_write(0x31, "Write Status Register-2", 1),
    CommandSpec::register_write(0x11, "Write Status Register-3", 1),
    CommandSpec::register_read(0x9F, "Read JEDEC ID"),
    // JESD216 fixes this frame for every part and address mode.
    CommandSpec::read(0x5A, "Read SFDP Register", AddressPhase::Three(SINGLE), 8, SINGLE),
    CommandSpec::control(0xB7, "Enter 4-Byte Address Mode"),
    CommandSpec::control(0xE9, "Exit 4-Byte Address Mode"),
    CommandSpec::control(0x75, "Erase/Program Suspend"),
    CommandSpec::control(0x7A, "Erase/Program Resume"),
    CommandSpec::control(0xB9, "Power-down"),
    CommandSpec {
        dummy_clocks: 24,
        counts: Counts::WithOpcode,
        ..CommandSpec::register_read(0xAB, "Release Power-down / Device ID")
    },
    CommandSpec::control(0x66, "Enable Reset"),
    CommandSpec::control(0x99, "Reset Device"),
];

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

    /// The commands of [`JEDEC`].
    pub fn jedec() -> CommandTable {
        // Not by `new`, which may refuse: that it would not refuse these is a test's business.
        let mut by_opcode = vec![None; 256];
        for command in JEDEC {
            by_opcode[usize::from(command.opcode)] = Some(*command);
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
