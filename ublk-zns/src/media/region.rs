//! A shared mapping of a part of a file, reached through atomics and raw copies only.
//!
//! The invariant: nothing outside this module holds a reference into the mapping that promises exclusive access, so
//! that other threads, and the kernel during a copy, may touch the same bytes.

use std::{ffi::c_void, fs::File, io, os::fd::AsRawFd, ptr::NonNull, sync::atomic::AtomicU64};

/// Bytes of a file, mapped shared.
pub(crate) struct Region {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: shared memory, reached through atomics and raw copies only.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `bytes` of `file` from `offset`, which is a multiple of the page size.
    ///
    /// # Errors
    /// `EFBIG` for more than the address space holds; mmap's.
    pub(crate) fn map(file: &File, offset: u64, bytes: u64) -> io::Result<Region> {
        let too_big = || io::Error::from_raw_os_error(libc::EFBIG);
        let bytes = usize::try_from(bytes).map_err(|_| too_big())?;
        let offset = libc::off_t::try_from(offset).map_err(|_| too_big())?;
        // SAFETY: a fresh shared mapping of our own file, unmapped in drop.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or_else(too_big)?;
        Ok(Region { at, bytes })
    }

    /// The 64-bit word at byte `offset`; `None` outside, or where no word is aligned.
    pub(crate) fn word(&self, offset: usize) -> Option<&AtomicU64> {
        if !offset.is_multiple_of(8) || offset.checked_add(8)? > self.bytes {
            return None;
        }
        // SAFETY: inside the mapping, which starts at a page, and aligned; only used as an atomic.
        Some(unsafe { self.at.add(offset).cast::<AtomicU64>().as_ref() })
    }

    /// Where `bytes` at `offset` are; `None` outside. Valid as long as the region.
    pub(crate) fn bytes(&self, offset: usize, bytes: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(bytes)? > self.bytes {
            return None;
        }
        // SAFETY: inside the mapping.
        Some(unsafe { self.at.add(offset) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; pointers into it are documented to end with the region.
        unsafe { libc::munmap(self.at.as_ptr().cast::<c_void>(), self.bytes) };
    }
}
