//! Sending and receiving whole messages over a socket, with a deadline and without allocating.
//!
//! A receiver looks for its message a while before it sleeps: waking a sleeper costs more than most answers take (on
//! loopback some 100 µs against 10 µs). It yields the CPU between looks, so that a peer on the same CPU can answer.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// How long a receiver looks before it sleeps.
const SPIN: Duration = Duration::from_micros(200);

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
    let mut done = spin(stream, buffer)?;
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
    let mut got = spin(stream, buffer)?;
    while got == 0 {
        match socket.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => got = read,
            Err(error) => match error.kind() {
                ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                _ => return Err(error),
            },
        }
    }
    receive(stream, &mut buffer[got..], Some(Instant::now() + patience))
}

/// Looks for the first bytes of a message for a while; 0 if none came.
///
/// # Errors
/// As [`receive`].
fn spin(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    if buffer.is_empty() {
        return Ok(0);
    }
    let until = Instant::now() + SPIN;
    loop {
        // SAFETY: the buffer is valid for writes of its length.
        let got = unsafe {
            libc::recv(stream.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
        };
        match got {
            1.. => return Ok(got as usize),
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            _ => match io::Error::last_os_error() {
                error if error.kind() == ErrorKind::Interrupted => {}
                error if error.kind() == ErrorKind::WouldBlock => {}
                error => return Err(error),
            },
        }
        if Instant::now() >= until {
            return Ok(0);
        }
        std::thread::yield_now();
    }
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
