//! The memory that outlives the process: one mapping, cut into typed slabs.
//!
//! Everything that must survive a crash lies in one mapping of a file that another process (or a `noswap` tmpfs) keeps.
//! A slab is an array of plain numbers in it, so that any bytes at all are a valid value and recovery can look at
//! them. Invariant: slabs never overlap, and the mapping lives as long as the last slab.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::Pod;

/// Slabs begin at multiples of this: a cache line.
const ALIGN_BYTES: usize = 64;

/// Why a state cannot be made or recovered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PersistError {
    /// The mapping is too small for the shape.
    #[error(
        "{name}: it has {have_bytes} bytes, the device needs {need_bytes}; make it larger, or the device smaller"
    )]
    TooSmall {
        /// The file, or what it is.
        name: String,
        /// Bytes there are.
        have_bytes: usize,
        /// Bytes needed.
        need_bytes: usize,
    },
    /// Not a state, one of another version, or a damaged header.
    #[error("{name}: field {field} is {value:#x}, {right}; {remedy}")]
    Header {
        /// The file.
        name: String,
        /// The field.
        field: &'static str,
        /// What is there.
        value: u64,
        /// What would be right.
        right: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A shape that cannot be.
    #[error("{field} is {value}; it must be {right}")]
    Shape {
        /// The field.
        field: &'static str,
        /// As given.
        value: u64,
        /// What would be right.
        right: &'static str,
    },
}

struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory that belongs to no thread; slabs hand out disjoint parts of it.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing is reachable through a shared `Mapping` but its address.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are those of a mapping that mmap made, and no slab is left (they hold an Arc).
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.len);
        }
    }
}

/// A mapping that is still to be cut into slabs.
pub struct Memory {
    mapping: Arc<Mapping>,
    next: usize,
    name: String,
}

impl Memory {
    /// Memory of this process only, zeroed: nothing survives.
    ///
    /// # Errors
    /// The kernel has not that much.
    pub fn anonymous(bytes: usize) -> io::Result<Self> {
        Self::map(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, "anonymous memory")
    }

    /// The first `bytes` of a file, shared: stores stay in the file when the process is killed. A file that is shorter
    /// is extended with zeros, and its blocks are reserved, so that no store can fail later.
    ///
    /// # Errors
    /// The file cannot be extended or mapped.
    pub fn shared(file: &File, bytes: usize) -> io::Result<Self> {
        let len = libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an empty file holds no state"));
        }
        // SAFETY: a plain system call on a descriptor that `file` keeps open.
        let result = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        Self::map(bytes, libc::MAP_SHARED, file.as_raw_fd(), "state file")
    }

    fn map(bytes: usize, flags: i32, fd: i32, name: &str) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; `fd` is open or -1 with MAP_ANONYMOUS.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { mapping: Arc::new(Mapping { start, len: bytes }), next: 0, name: name.to_owned() })
    }

    /// Gives the memory the name that errors use: the file's path.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The name that errors use.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the whole mapping.
    pub fn bytes(&self) -> usize {
        self.mapping.len
    }

    /// Bytes that a slab of `len` values takes.
    pub(crate) fn slab_bytes<T: Pod>(len: usize) -> usize {
        len.saturating_mul(size_of::<T>()).checked_next_multiple_of(ALIGN_BYTES).unwrap_or(usize::MAX)
    }

    /// Cuts the next `len` values off.
    ///
    /// # Errors
    /// [`PersistError::TooSmall`].
    pub(crate) fn take<T: Pod>(&mut self, len: usize) -> Result<Slab<T>, PersistError> {
        const { assert!(align_of::<T>() <= ALIGN_BYTES) };
        let bytes = Self::slab_bytes::<T>(len);
        let end = self.next.saturating_add(bytes);
        if end > self.mapping.len {
            let name = self.name.clone();
            return Err(PersistError::TooSmall { name, have_bytes: self.mapping.len, need_bytes: end });
        }
        // SAFETY: `next` is within the mapping; mmap gives page-aligned memory and `next` is a multiple of 64.
        let start = unsafe { self.mapping.start.add(self.next) }.cast::<T>();
        self.next = end;
        Ok(Slab { start, len, _mapping: Arc::clone(&self.mapping) })
    }
}

/// An array in a [`Memory`].
pub(crate) struct Slab<T> {
    start: NonNull<T>,
    len: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: a slab owns its part of the mapping as a Vec owns its buffer; T is plain numbers.
unsafe impl<T: Pod + Send> Send for Slab<T> {}
// SAFETY: as for Send: shared access only reads.
unsafe impl<T: Pod + Sync> Sync for Slab<T> {}

impl<T: Pod> Deref for Slab<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the part of the mapping from `start` on is ours alone, mapped, aligned, and any bytes are a valid T.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod> DerefMut for Slab<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod + std::fmt::Debug> std::fmt::Debug for Slab<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slab({} x {} bytes)", self.len, size_of::<T>())
    }
}

/// Stores before this line reach the mapping before stores after it, as a process that maps it later sees them.
///
/// A process that is killed loses no store that its processor has retired, so the order in the program is the order in
/// memory once the compiler keeps it. In tests this is where the crash tests stop.
#[inline]
pub(crate) fn barrier() {
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    #[cfg(test)]
    crash::point();
}

/// Stops the thread at a chosen barrier, as kill -9 would.
#[cfg(test)]
pub(crate) mod crash {
    use std::cell::Cell;

    thread_local!(static LEFT: Cell<u64> = const { Cell::new(u64::MAX) });

    /// What the panic carries.
    pub(crate) struct Killed;

    /// Panics at the `points`-th barrier from now on.
    pub(crate) fn after(points: u64) {
        LEFT.set(points);
    }

    pub(super) fn point() {
        match LEFT.get() {
            u64::MAX => {}
            0 => {
                LEFT.set(u64::MAX);
                std::panic::resume_unwind(Box::new(Killed));
            }
            left => LEFT.set(left - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_do_not_overlap_and_outlive_the_memory() {
        let mut memory = Memory::anonymous(4096).unwrap();
        let mut a = memory.take::<u64>(3).unwrap();
        let mut b = memory.take::<u32>(16).unwrap();
        assert!(memory.take::<u8>(4096).is_err(), "more than is left");
        drop(memory);
        a.fill(u64::MAX);
        assert!(b.iter().all(|word| *word == 0));
        b.fill(7);
        assert!(a.iter().all(|word| *word == u64::MAX));
    }

    #[test]
    fn what_is_stored_in_a_shared_file_is_there_when_it_is_mapped_again() {
        let file = tempfile::tempfile().unwrap();
        let mut first = Memory::shared(&file, 8192).unwrap().take::<u64>(8).unwrap();
        first[5] = 0x1234;
        drop(first);
        assert_eq!(file.metadata().unwrap().len(), 8192);
        assert_eq!(Memory::shared(&file, 8192).unwrap().take::<u64>(8).unwrap()[5], 0x1234);
        assert!(Memory::shared(&file, 0).is_err());
    }
}
