//! Socket options that nix has not: how a client that waits for each answer is served fast.
//!
//! The invariant: these are only hints. Where the kernel refuses one, all works, slower.

use std::os::fd::{AsRawFd, BorrowedFd};

/// A read waits, up to its timeout, until so many bytes are there.
pub(super) fn set_low_water(socket: BorrowedFd<'_>, bytes: i32) {
    let size = size_of::<i32>() as libc::socklen_t;
    let value: *const i32 = &bytes;
    // SAFETY: the descriptor is open for as long as it is borrowed; the value lives over the call and has the size that
    // is given.
    unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, value.cast(), size);
    }
}

/// The CPU on which the last packet came in; over the loopback interface that is the client's.
pub(super) fn incoming_cpu(socket: BorrowedFd<'_>) -> Option<usize> {
    let mut cpu: i32 = -1;
    let mut size = size_of::<i32>() as libc::socklen_t;
    let value: *mut i32 = &mut cpu;
    // SAFETY: as above; the kernel writes at most the size that is given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_INCOMING_CPU,
            value.cast(),
            &raw mut size,
        )
    };
    if result == 0 { usize::try_from(cpu).ok() } else { None }
}
