//! One client of a serprog server: moves bytes between a file and the protocol.
//!
//! The invariant: the bus is not locked while this waits for a client, but where the client holds CS# low (18h), and then
//! for no more than [`HOLD_LIMIT_MS`] of silence.

use super::protocol::{Options, Serprog};
use crate::fronts::{BusGuard, SharedBus, Stop, Woken, lock};
use nix::poll::PollFlags;
use std::{io, os::fd::AsFd};

/// A client that holds CS# low and says nothing for this long is dropped: the other fronts wait for the bus.
const HOLD_LIMIT_MS: u16 = 5000;
const INPUT_BYTES: usize = 64 << 10;
const KEPT_BYTES: usize = 1 << 20;
/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The client left, or was dropped.
    Left,
    /// The server is to end.
    Stop,
}

/// What a client is connected by. A read or write that would block returns, at once or after a short while.
pub(super) trait Line: AsFd {
    /// Reads some bytes.
    fn read(&self, bytes: &mut [u8]) -> io::Result<usize>;

    /// Writes some bytes.
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// A hint: the next command, or what is missing of it, has likely so many bytes or more.
    fn expect(&self, _bytes: usize) {}
}

/// Serves a client, until it leaves. `tidy` is called when it has left, before another
/// front can have the bus.
pub(super) fn serve(
    stop: &Stop,
    line: &impl Line,
    bus: &SharedBus,
    options: &Options,
    tidy: impl FnOnce(),
) -> End {
    let mut session = Session { serprog: Serprog::new(options.clone()), held: None };
    let end = session.run(stop, line, bus).unwrap_or_else(|error| {
        log::debug!("serprog: the client's connection: {error}");
        End::Left
    });
    let mut guard = session.held.take().unwrap_or_else(|| lock(bus));
    session.serprog.end(&mut *guard);
    tidy();
    end
}

struct Session<'a> {
    serprog: Serprog,
    /// The bus, while the client holds CS# low.
    held: Option<BusGuard<'a>>,
}

impl<'b> Session<'b> {
    fn run(&mut self, stop: &Stop, line: &impl Line, bus: &'b SharedBus) -> io::Result<End> {
        let mut input = vec![0; INPUT_BYTES];
        let mut replies = Vec::new();
        loop {
            let count = match line.read(&mut input) {
                Ok(0) => return Ok(End::Left),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let limit = self.held.is_some().then_some(HOLD_LIMIT_MS);
                    // A single byte has to end this wait.
                    line.expect(1);
                    match stop.wait(Some(line.as_fd()), PollFlags::POLLIN, limit)? {
                        Woken::Stop => return Ok(End::Stop),
                        Woken::Ready(_) => continue,
                        Woken::Timeout => {
                            log::warn!(
                                "serprog: a client held CS# low and was silent for {HOLD_LIMIT_MS} ms: dropped"
                            );
                            return Ok(End::Left);
                        }
                    }
                }
                Err(error) => return Err(error),
            };
            let mut rest = input.get(..count).unwrap_or_default();
            while !rest.is_empty() {
                let mut guard = self.held.take().unwrap_or_else(|| lock(bus));
                let taken = self.serprog.feed(&mut *guard, rest, &mut replies);
                if self.serprog.holds_bus() {
                    self.held = Some(guard);
                } else {
                    drop(guard);
                }
                rest = rest.get(taken..).unwrap_or_default();
                if self.send(stop, line, &replies)? == End::Stop {
                    return Ok(End::Stop);
                }
                replies.clear();
                replies.shrink_to(KEPT_BYTES);
            }
            line.expect(self.serprog.likely_bytes());
        }
    }

    fn send(&self, stop: &Stop, line: &impl Line, mut bytes: &[u8]) -> io::Result<End> {
        while !bytes.is_empty() {
            match line.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let limit = self.held.is_some().then_some(HOLD_LIMIT_MS);
                    match stop.wait(Some(line.as_fd()), PollFlags::POLLOUT, limit)? {
                        Woken::Stop => return Ok(End::Stop),
                        Woken::Ready(_) => {}
                        Woken::Timeout => return Err(io::ErrorKind::TimedOut.into()),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(End::Left)
    }
}
