//! One block request as a handler sees it: the operation, where, how long, and its data.

use std::{fmt, io, os::fd::RawFd};

/// What a request asks for. The numbers are those of `UBLK_IO_OP_*` in `linux/ublk_cmd.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Read into the payload.
    Read = 0,
    /// Write the payload.
    Write = 1,
    /// Make everything completed so far durable.
    Flush = 2,
    /// The range's content no longer matters.
    Discard = 3,
    /// Make the range read as zeroes.
    WriteZeroes = 5,
    /// Open a zone explicitly.
    ZoneOpen = 10,
    /// Close a zone.
    ZoneClose = 11,
    /// Move a zone's write pointer to its end.
    ZoneFinish = 12,
    /// Write the payload at a zone's write pointer and say where that was.
    ZoneAppend = 13,
    /// Empty every zone.
    ZoneResetAll = 14,
    /// Empty a zone.
    ZoneReset = 15,
    /// Describe zones into the payload.
    ReportZones = 18,
}

impl Op {
    /// Every operation, in the kernel's order.
    pub const ALL: [Op; 12] = [
        Op::Read,
        Op::Write,
        Op::Flush,
        Op::Discard,
        Op::WriteZeroes,
        Op::ZoneOpen,
        Op::ZoneClose,
        Op::ZoneFinish,
        Op::ZoneAppend,
        Op::ZoneResetAll,
        Op::ZoneReset,
        Op::ReportZones,
    ];

    /// The place in [`Op::ALL`], for tables by operation.
    pub fn index(self) -> usize {
        match self {
            Op::Read => 0,
            Op::Write => 1,
            Op::Flush => 2,
            Op::Discard => 3,
            Op::WriteZeroes => 4,
            Op::ZoneOpen => 5,
            Op::ZoneClose => 6,
            Op::ZoneFinish => 7,
            Op::ZoneAppend => 8,
            Op::ZoneResetAll => 9,
            Op::ZoneReset => 10,
            Op::ReportZones => 11,
        }
    }

    /// The operation of a descriptor's low byte, `None` for one this crate does not know.
    pub fn from_kernel(code: u8) -> Option<Op> {
        Op::ALL.into_iter().find(|op| *op as u8 == code)
    }

    /// The name in statistics.
    pub fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::Discard => "discard",
            Op::WriteZeroes => "write_zeroes",
            Op::ZoneOpen => "zone_open",
            Op::ZoneClose => "zone_close",
            Op::ZoneFinish => "zone_finish",
            Op::ZoneAppend => "zone_append",
            Op::ZoneResetAll => "zone_reset_all",
            Op::ZoneReset => "zone_reset",
            Op::ReportZones => "report_zones",
        }
    }

    /// Whether the request's length counts bytes of data moved.
    pub fn moves_data(self) -> bool {
        matches!(self, Op::Read | Op::Write | Op::ZoneAppend)
    }
}

/// A request from the block layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// The first sector (512 bytes).
    pub sector: u64,
    /// How many sectors; for [`Op::ReportZones`] how many zones.
    pub sectors: u32,
    /// The write must be durable when it completes (`REQ_FUA`).
    pub fua: bool,
    /// The tag within the queue, unique among those in flight.
    pub tag: u16,
    /// When the batch that held it was fetched, in ns of [`crate::clock::monotonic_ns`]. 0 when nobody asked for the
    /// time ([`crate::QueueHandler::wants_time`]) and no statistics need it.
    pub fetched_ns: u64,
}

impl Request {
    /// The length in bytes of a request that moves data.
    pub fn len_bytes(&self) -> usize {
        self.sectors as usize * 512
    }

    /// The byte offset on the device.
    pub fn offset_bytes(&self) -> u64 {
        self.sector.saturating_mul(512)
    }
}

/// A handled request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The whole request was done. Partial success does not exist here: the kernel would send the rest again, and a
    /// zone's write pointer has moved by then.
    Whole,
    /// A zone append was done; its first block is at this sector.
    AppendedAt(u64),
}

/// A handler's answer: what became of a request, and when the kernel may hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The result, or the errno the block layer sees. See `blk_errors[]` in the kernel's block/blk-core.c for what each
    /// becomes.
    pub outcome: Result<Done, Errno>,
    /// When to complete the request, in ns of [`crate::clock::monotonic_ns`]; 0 for at once. An error waits too. A time in
    /// the past is at once; one further away than [`crate::queue::MAX_DELAY_NS`] is brought down to that.
    pub due_ns: u64,
    pending: bool,
}

impl Reply {
    /// `outcome`, to be told at `due_ns`.
    pub fn at(outcome: Result<Done, Errno>, due_ns: u64) -> Reply {
        Reply { outcome, due_ns, pending: false }
    }

    /// No answer yet: the handler gives it later, by [`crate::QueueIo::complete`].
    pub fn pending() -> Reply {
        Reply { outcome: Ok(Done::Whole), due_ns: 0, pending: true }
    }

    /// Whether this is [`Reply::pending`].
    pub fn is_pending(&self) -> bool {
        self.pending
    }
}

impl From<Result<Done, Errno>> for Reply {
    fn from(outcome: Result<Done, Errno>) -> Reply {
        Reply { outcome, due_ns: 0, pending: false }
    }
}

/// A positive errno that ends a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(i32);

impl Errno {
    /// General failure.
    pub const EIO: Errno = Errno(libc::EIO);
    /// Not supported by this device.
    pub const EOPNOTSUPP: Errno = Errno(libc::EOPNOTSUPP);
    /// No room to place a write.
    pub const ENOSPC: Errno = Errno(libc::ENOSPC);
    /// The media lost the data.
    pub const ENODATA: Errno = Errno(libc::ENODATA);
    /// Too many open zones (`BLK_STS_ZONE_OPEN_RESOURCE`).
    pub const ETOOMANYREFS: Errno = Errno(libc::ETOOMANYREFS);
    /// Too many active zones (`BLK_STS_ZONE_ACTIVE_RESOURCE`).
    pub const EOVERFLOW: Errno = Errno(libc::EOVERFLOW);

    /// The errno of `code`; codes that the kernel would not take for an error become `EIO`.
    pub fn new(code: i32) -> Errno {
        if (1..4096).contains(&code) { Errno(code) } else { Errno::EIO }
    }

    /// The positive number.
    pub fn code(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.0))
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Errno {
        Errno::new(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// A request's data.
pub enum Payload<'a> {
    /// The tag's buffer, exactly the request's length ([`crate::DataPath::Buffers`]).
    Buffer(&'a mut [u8]),
    /// Reached by pread/pwrite on the character device ([`crate::DataPath::UserCopy`]).
    UserCopy(UserCopy),
}

impl Payload<'_> {
    /// Copies `dst.len()` bytes of a write's data, from `offset` on, into `dst`.
    ///
    /// # Errors
    /// `EINVAL` outside the request; the kernel's errno if the copy failed.
    pub fn fetch(&self, offset: usize, dst: &mut [u8]) -> io::Result<()> {
        match self {
            Payload::Buffer(buffer) => {
                let src = offset.checked_add(dst.len()).and_then(|end| buffer.get(offset..end));
                dst.copy_from_slice(src.ok_or(io::Error::from_raw_os_error(libc::EINVAL))?);
                Ok(())
            }
            // SAFETY: `dst` is a live exclusive slice.
            Payload::UserCopy(copy) => unsafe { copy.fetch_raw(offset, dst.as_mut_ptr(), dst.len()) },
        }
    }

    /// Copies `src` into a read's data at `offset`.
    ///
    /// # Errors
    /// `EINVAL` outside the request; the kernel's errno if the copy failed.
    pub fn store(&mut self, offset: usize, src: &[u8]) -> io::Result<()> {
        match self {
            Payload::Buffer(buffer) => {
                let dst = offset.checked_add(src.len()).and_then(|end| buffer.get_mut(offset..end));
                dst.ok_or(io::Error::from_raw_os_error(libc::EINVAL))?.copy_from_slice(src);
                Ok(())
            }
            // SAFETY: `src` is a live slice.
            Payload::UserCopy(copy) => unsafe { copy.store_raw(offset, src.as_ptr(), src.len()) },
        }
    }

    /// The tag's buffer, when the device has buffers.
    pub fn buffer_mut(&mut self) -> Option<&mut [u8]> {
        match self {
            Payload::Buffer(buffer) => Some(buffer),
            Payload::UserCopy(_) => None,
        }
    }
}

/// Where a request's data is in the character device's address space, and how long it is.
#[derive(Debug, Clone, Copy)]
pub struct UserCopy {
    pub(crate) fd: RawFd,
    pub(crate) position: u64,
    pub(crate) len: usize,
}

impl UserCopy {
    fn check(&self, offset: usize, len: usize) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// Copies `len` bytes of a write's data, from `offset` on, to `dst`.
    ///
    /// # Errors
    /// `EINVAL` outside the request; the kernel's errno if the copy failed (`EFAULT` when `dst` has no memory behind it).
    ///
    /// # Safety
    /// `dst` must be valid for writes of `len` bytes for the duration of the call. Other threads may read or write
    /// the same bytes meanwhile: the kernel does the copy, so that is a torn value and not undefined behaviour.
    pub unsafe fn fetch_raw(&self, offset: usize, dst: *mut u8, len: usize) -> io::Result<()> {
        self.check(offset, len)?;
        let mut done = 0;
        while done < len {
            let at = (self.position + (offset + done) as u64) as libc::off_t;
            // SAFETY: `dst + done` is within the caller's range and `len - done` bytes remain in it.
            let n = unsafe { libc::pread(self.fd, dst.add(done).cast(), len - done, at) };
            done += progress(n)?;
        }
        Ok(())
    }

    /// Copies `len` bytes at `src` into a read's data at `offset`.
    ///
    /// # Errors
    /// As [`UserCopy::fetch_raw`].
    ///
    /// # Safety
    /// `src` must be valid for reads of `len` bytes for the duration of the call; see [`UserCopy::fetch_raw`].
    pub unsafe fn store_raw(&self, offset: usize, src: *const u8, len: usize) -> io::Result<()> {
        self.check(offset, len)?;
        let mut done = 0;
        while done < len {
            let at = (self.position + (offset + done) as u64) as libc::off_t;
            // SAFETY: `src + done` is within the caller's range and `len - done` bytes remain in it.
            let n = unsafe { libc::pwrite(self.fd, src.add(done).cast(), len - done, at) };
            done += progress(n)?;
        }
        Ok(())
    }
}

/// A copy that moved nothing would loop for ever: it is an error.
fn progress(n: isize) -> io::Result<usize> {
    match n {
        1.. => Ok(n as usize),
        0 => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_survives_the_trip_through_the_kernels_number() {
        for (index, op) in Op::ALL.into_iter().enumerate() {
            assert_eq!(Op::from_kernel(op as u8), Some(op));
            assert_eq!(op.index(), index);
        }
        assert_eq!(Op::from_kernel(4), None);
        assert_eq!(Op::from_kernel(255), None);
    }

    #[test]
    fn errnos_the_kernel_would_not_take_for_errors_become_eio() {
        assert_eq!(Errno::new(0), Errno::EIO);
        assert_eq!(Errno::new(-5), Errno::EIO);
        assert_eq!(Errno::new(4096), Errno::EIO);
        assert_eq!(Errno::new(libc::ENOSPC), Errno::ENOSPC);
    }

    #[test]
    fn copies_outside_a_request_are_refused_and_move_nothing() {
        let mut bytes = [7u8; 16];
        let mut payload = Payload::Buffer(&mut bytes);
        assert!(payload.store(10, &[1; 7]).is_err());
        assert!(payload.fetch(usize::MAX, &mut [0; 2]).is_err());
        payload.store(14, &[1, 2]).unwrap();
        assert_eq!(bytes[13..], [7, 1, 2]);
    }

    #[test]
    fn user_copy_moves_exactly_the_asked_range_through_the_descriptor() {
        use std::os::fd::AsRawFd;
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let mut payload = Payload::UserCopy(UserCopy { fd: file.as_raw_fd(), position: 4096, len: 1024 });
        payload.store(512, &[9; 512]).unwrap();
        assert!(payload.store(513, &[9; 512]).is_err());
        let mut back = [0; 1024];
        payload.fetch(0, &mut back).unwrap();
        assert_eq!(back[..512], [0; 512]);
        assert_eq!(back[512..], [9; 512]);
    }
}
