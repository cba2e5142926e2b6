//! The blocks themselves: their memory, and how it comes and goes.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munlock};

use crate::error::Error;
use crate::units::BLOCK_BYTES;

/// Most memory one node lends: its tables take 160 MiB then.
const MAX_MEMORY_BYTES: u64 = 4 << 40;

/// A block of memory.
pub(super) struct Block {
    holder: Option<u64>,
    /// How often it has been lent.
    lendings: u32,
    /// Its content.
    pub(super) bytes: &'static mut [u8],
}

/// New memory, in whole blocks, all zero.
pub(super) fn map(memory_bytes: u64) -> Result<Vec<Block>, Error> {
    if memory_bytes > MAX_MEMORY_BYTES {
        return Err(Error::Option(format!("memory {memory_bytes}: at most 4 TiB is possible")));
    }
    let count = u32::try_from(memory_bytes / BLOCK_BYTES as u64).unwrap_or(u32::MAX);
    let bytes = count as usize * BLOCK_BYTES;
    let Some(len) = NonZeroUsize::new(bytes) else {
        return Err(Error::Option("memory: at least 1 MiB is needed".to_owned()));
    };
    let no_memory = |source: nix::Error| Error::System {
        what: format!("{bytes} bytes of memory"),
        source: source.into(),
    };
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice disturbs nothing.
    let start = unsafe { mmap_anonymous(None, len, prot, flags) }.map_err(no_memory)?;
    // SAFETY: the mapping is `bytes` long, zeroed, used through this slice alone, and never unmapped.
    let memory: &'static mut [u8] = unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast(), bytes) };
    let block = |bytes| Block { holder: None, lendings: 0, bytes };
    Ok(memory.chunks_exact_mut(BLOCK_BYTES).map(block).collect())
}

impl Block {
    /// Lends it; gives the generation.
    pub(super) fn lend(&mut self, lease: u64) -> u32 {
        self.holder = Some(lease);
        self.lendings = self.lendings.wrapping_add(1);
        self.generation()
    }

    /// How often it had been lent before it was lent now.
    pub(super) fn generation(&self) -> u32 {
        self.lendings.wrapping_sub(1)
    }

    pub(super) fn is_lent_to(&self, lease: u64) -> bool {
        self.holder == Some(lease)
    }

    fn start(&mut self) -> NonNull<c_void> {
        NonNull::from(&mut *self.bytes).cast()
    }

    fn drop_memory(&mut self) -> bool {
        // SAFETY: the block's own pages of a private anonymous mapping, exclusively borrowed: they read as zeros after.
        unsafe { madvise(self.start(), BLOCK_BYTES, MmapAdvise::MADV_DONTNEED) }.is_ok()
    }

    /// Forgets holder and content. The memory goes back to the system, unless it is locked: then it is overwritten.
    pub(super) fn wipe(&mut self) {
        self.holder = None;
        if !self.drop_memory() {
            self.bytes.fill(0);
        }
    }

    /// Gives locked memory back to the system; whether that was possible. The block must be free.
    pub(super) fn park(&mut self) -> bool {
        // SAFETY: the block's own pages; unlocking changes no content.
        let unlocked = unsafe { munlock(self.start(), BLOCK_BYTES) };
        unlocked.is_ok() && self.drop_memory()
    }

    /// Takes memory again and locks it; whether there was any.
    pub(super) fn unpark(&mut self) -> bool {
        // SAFETY: the block's own pages; locking changes no content.
        unsafe { mlock(self.start(), BLOCK_BYTES) }.is_ok()
    }
}
