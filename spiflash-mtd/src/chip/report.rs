//! What became of a frame, for logs and statistics.

use crate::frame::{Command, FrameError};
use serde::{Deserialize, Serialize};

/// Why a chip ignored a frame. A real one gives no reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Reason {
    /// The frame itself.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// It has no power, or not for long enough, or it is waking up or resetting.
    #[error("the chip has no power, or is starting, waking up or resetting")]
    NotReady,
    /// It is busy.
    #[error("the chip is busy")]
    Busy,
    /// It is in deep power-down.
    #[error("the chip is in deep power-down")]
    Asleep,
    /// WEL is 0.
    #[error("WEL is 0: a write enable must come first")]
    WriteDisabled,
    /// The place is protected.
    #[error("the address is protected")]
    Protected,
    /// The registers are.
    #[error("the registers are protected (SRP bits, WP#)")]
    RegistersProtected,
    /// QE is 0.
    #[error("QE is 0: commands on four lines are not enabled")]
    QuadDisabled,
    /// Not while something is suspended, or there.
    #[error("not while an erase or program is suspended")]
    Suspended,
    /// There is nothing to suspend or resume.
    #[error("there is nothing to suspend or to resume")]
    NothingToSuspend,
    /// 99h without 66h just before it.
    #[error("a reset needs the reset enable just before it")]
    ResetNotEnabled,
    /// Locked for good.
    #[error("the security register is locked for good")]
    Locked,
    /// No such place.
    #[error("there is nothing at this address for this command")]
    NoSuchPlace,
    /// Only the next word, a status read or the end may follow.
    #[error("in the middle of auto address increment programming")]
    AutoIncrement,
}

/// What a frame did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// All there is to do is done.
    Done,
    /// Something was begun that takes until then.
    Begun {
        /// When it ends, unless it is suspended.
        until_ns: u64,
    },
    /// Nothing.
    Ignored(Reason),
}

/// A frame, when it is over.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameReport {
    /// The opcode.
    pub opcode: u8,
    /// The command's name; "unknown" where the chip has none.
    pub name: &'static str,
    /// The address.
    pub address: Option<u32>,
    /// The mode byte.
    pub mode: Option<u8>,
    /// Bytes of data, in or out.
    pub data_bytes: u64,
    /// Where in the frame's bytes the data begins.
    pub data_at: u64,
    /// What it did.
    pub effect: Effect,
    /// When CS# rose.
    pub at_ns: u64,
}

impl FrameReport {
    pub(super) fn new(command: &Command, effect: Effect, at_ns: u64) -> FrameReport {
        FrameReport {
            opcode: command.opcode,
            name: command.spec.map_or("unknown", |spec| spec.name),
            address: command.address,
            mode: command.mode,
            data_bytes: command.data.end - command.data.start,
            data_at: command.data.start,
            effect,
            at_ns,
        }
    }
}

impl Serialize for Effect {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Effect::Done => to.serialize_str("done"),
            Effect::Begun { until_ns } => to.collect_str(&format_args!("begun until {until_ns} ns")),
            Effect::Ignored(reason) => to.collect_str(&format_args!("ignored: {reason}")),
        }
    }
}
