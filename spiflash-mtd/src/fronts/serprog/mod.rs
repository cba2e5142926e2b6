//! serprog, the protocol of serial flash programmers, over TCP and over a pseudo-terminal: the front that `flashrom
//! -p serprog:` and its kin use.
//!
//! [`protocol`] is pure: bytes in, frames on the bus, bytes out. The servers move bytes. The invariant: whatever a client
//! sends, and wherever it vanishes, CS# is high and the chips are powered when the next one comes.

pub mod protocol;
mod pty;
mod session;
mod tcp;
mod tuning;

pub use protocol::{Options, PinState, Serprog};
pub use pty::PtyServer;
pub use tcp::{TcpServer, parse_address};
