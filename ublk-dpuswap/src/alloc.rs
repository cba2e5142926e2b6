//! The rule that keeps a swap device from hanging its machine, enforced: threads on the path of swap allocate nothing.
//!
//! An allocation may make the kernel reclaim memory, by swapping to the device that the thread serves. The programs have
//! [`Counting`] as their allocator; a thread of the path says so with [`watch_this_thread`], and from then on each of its
//! allocations is counted ([`counted`], in `stat` as `io_path_allocations`). What a thread does seldom and knowingly, such as
//! opening a connection again, it does in [`allowed`].

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// Whether this thread's allocations count. Constant-initialised and without a destructor: reading it allocates nothing.
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

static COUNT: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, which counts the calls of watched threads.
pub struct Counting;

fn count() {
    if WATCHED.try_with(Cell::get).unwrap_or(false) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches only an atomic and a thread's own flag.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

/// Counts this thread's allocations from now on.
pub fn watch_this_thread() {
    WATCHED.set(true);
}

/// Does what may allocate.
pub fn allowed<T>(work: impl FnOnce() -> T) -> T {
    let watched = WATCHED.replace(false);
    let done = work();
    WATCHED.set(watched);
    done
}

/// Allocations of watched threads so far. Always 0 where [`Counting`] is not the program's allocator.
pub fn counted() -> u64 {
    COUNT.load(Ordering::Relaxed)
}
