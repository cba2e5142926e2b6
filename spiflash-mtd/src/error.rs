//! Why a table of commands or a command to encode is refused. What is wrong with a frame is a
//! [`FrameError`](crate::frame::FrameError).

/// A refusal; each message names the opcode, what was asked and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiError {
    /// Two commands of a table have the same opcode.
    #[error("opcode {opcode:02X}h is both {first} and {second}: a table has one command of an opcode")]
    DuplicateOpcode {
        /// The opcode.
        opcode: u8,
        /// The command that has it.
        first: &'static str,
        /// The command that has it too.
        second: &'static str,
    },
    /// A mode byte follows an address; this command has none.
    #[error("opcode {opcode:02X}h: a mode byte needs an address before it")]
    ModeWithoutAddress {
        /// The opcode.
        opcode: u8,
    },
    /// The dummy clocks do not end with a byte.
    #[error("opcode {opcode:02X}h: {clocks} dummy clocks are not whole bytes of {clocks_per_byte} clocks")]
    BrokenDummy {
        /// The opcode.
        opcode: u8,
        /// The dummy clocks.
        clocks: u8,
        /// What a byte takes on the lines of the address.
        clocks_per_byte: u8,
    },
    /// A data phase that no frame can satisfy, or that is satisfied by nothing.
    #[error(
        "opcode {opcode:02X}h: {min_bytes} to {max_bytes} data bytes: it must be at least 1 and no more than the most"
    )]
    BrokenData {
        /// The opcode.
        opcode: u8,
        /// The fewest bytes.
        min_bytes: u32,
        /// The most bytes.
        max_bytes: u32,
    },
    /// The table has no such command.
    #[error("opcode {opcode:02X}h: the table has no such command")]
    UnknownOpcode {
        /// The opcode.
        opcode: u8,
    },
    /// An address is missing, or given to a command that has none.
    #[error("opcode {opcode:02X}h: the command takes {takes} address, which the request must match")]
    Address {
        /// The opcode.
        opcode: u8,
        /// "an" or "no".
        takes: &'static str,
    },
    /// The address does not fit the address bytes.
    #[error("opcode {opcode:02X}h: address {address:#x} does not fit {bytes} address bytes")]
    AddressTooLarge {
        /// The opcode.
        opcode: u8,
        /// The address.
        address: u32,
        /// How many address bytes the frame has.
        bytes: u8,
    },
    /// A mode byte is missing, or given to a command that has none.
    #[error("opcode {opcode:02X}h: the command takes {takes} mode byte, which the request must match")]
    Mode {
        /// The opcode.
        opcode: u8,
        /// "a" or "no".
        takes: &'static str,
    },
    /// The payload goes the wrong way, or there is one where none belongs.
    #[error("opcode {opcode:02X}h: the command takes {takes}, which the request must match")]
    Payload {
        /// The opcode.
        opcode: u8,
        /// What the command's data phase is.
        takes: &'static str,
    },
    /// Too few or too many data bytes.
    #[error("opcode {opcode:02X}h: {bytes} data bytes: the command takes {min_bytes} to {max_bytes}")]
    DataLength {
        /// The opcode.
        opcode: u8,
        /// How many were given.
        bytes: usize,
        /// The fewest bytes.
        min_bytes: u32,
        /// The most bytes.
        max_bytes: u32,
    },
}
