//! Sending and receiving whole messages over a socket, with a deadline and without allocating.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Sends all parts, in order, as few packets as the kernel likes.
///
/// # Errors
/// What the socket says; `TimedOut` past the deadline.
pub(crate) fn send(mut stream: &TcpStream, parts: [&[u8]; 3], deadline: Option<Instant>) -> io::Result<()> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    let mut done = 0;
    while done < total {
        let mut skip = done;
        let slices = parts.map(|part| {
            let from = skip.min(part.len());
            skip -= from;
            IoSlice::new(&part[from..])
        });
        match stream.write_vectored(&slices) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(sent) => done += sent,
            Err(error) => retry(error)?,
        }
        check(deadline, done < total)?;
    }
    Ok(())
}

/// Fills `buffer`.
///
/// # Errors
/// `UnexpectedEof` when the peer closes first; `TimedOut` past the deadline; else what the socket says.
pub(crate) fn receive(
    mut stream: &TcpStream,
    buffer: &mut [u8],
    deadline: Option<Instant>,
) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match stream.read(&mut buffer[done..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(got) => done += got,
            Err(error) => retry(error)?,
        }
        check(deadline, done < buffer.len())?;
    }
    Ok(())
}

/// Fills `buffer` with a message that may be long in coming: waits for its first byte for ever, then for the rest at
/// most `patience`. The socket's own read time-out must be set, and decides how exactly that is kept.
///
/// # Errors
/// As [`receive`].
pub(crate) fn receive_next(stream: &TcpStream, buffer: &mut [u8], patience: Duration) -> io::Result<()> {
    let mut socket = stream;
    let got = loop {
        match socket.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(got) => break got,
            Err(error) => match error.kind() {
                ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                _ => return Err(error),
            },
        }
    };
    receive(stream, &mut buffer[got..], Some(Instant::now() + patience))
}

/// A socket time-out comes as `WouldBlock`; it means "too late" here.
fn retry(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::Interrupted => Ok(()),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Err(ErrorKind::TimedOut.into()),
        _ => Err(error),
    }
}

/// A peer that sends a byte now and then must not keep us for ever.
fn check(deadline: Option<Instant>, unfinished: bool) -> io::Result<()> {
    match deadline {
        Some(deadline) if unfinished && Instant::now() > deadline => Err(ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}
