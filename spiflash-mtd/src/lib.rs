//! A SPI flash chip as software: the chip's command-frame decoder.
//!
//! A chip is two state machines. This crate holds the first: what the bytes between the fall and the rise of CS# mean.
//! It is a model, pure and synchronous: no array, no registers, no time. The second, which carries out what a frame
//! asked for, and the fronts that bring frames from a client, are not part of it.
//!
//! - [`command`] says how each command's frame is laid out: data, not code;
//! - [`frame`] decodes a frame byte by byte, and at CS# rise says what was asked and whether it counts;
//! - [`encode`] is the host's side: it makes the frame of a command.

pub mod array;
pub mod bus;
pub mod catalogue;
pub mod chip;
pub mod command;
pub mod cuts;
pub mod driver;
pub mod encode;
pub mod error;
pub mod frame;
pub mod fronts;
pub mod hal;
pub mod image;
pub mod map;
pub mod op;
pub mod part;
pub mod protect;
pub mod regs;
pub mod reliability;
mod rng;
pub mod script;
pub mod sfdp;
pub mod sim;
pub mod states;
pub mod trace;
pub mod units;

pub use bus::{BusError, SpiBus, Transfer};
pub use chip::{Chip, Effect, FrameReport, Reason, Setup};
pub use command::{AddressMode, AddressPhase, CommandSpec, CommandTable, Counts, DataPhase, Lines};
pub use encode::{Payload, Request, Segment};
pub use error::SpiError;
pub use frame::{Command, Event, FrameDecoder, FrameError, FrameMode, Phase};
pub use op::{EraseUnit, Op, Reg};
pub use sim::{Clocked, Observer, SimBus, TimeMode};
