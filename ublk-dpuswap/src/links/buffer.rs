//! Memory that the kernel reads and writes while its owner moves about.
//!
//! The invariants: a [`Buffer`] does not move, and nothing of it is borrowed but the ranges that the caller names, which are
//! those the kernel has no operation on. [`Inbox`] keeps them apart: what has arrived, and behind it room for more.

use std::ops::Range;
use std::ptr::NonNull;

/// Bytes at a fixed place.
pub(super) struct Buffer {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is the buffer's own, as with a `Box`.
unsafe impl Send for Buffer {}

impl Buffer {
    /// `len` zeroes.
    pub(super) fn new(len: usize) -> Self {
        let memory = Box::leak(vec![0u8; len].into_boxed_slice());
        Self { start: NonNull::from(memory).cast(), len }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The address of byte `offset`, for the kernel. The whole buffer's end for one beyond it.
    pub(super) fn at(&mut self, offset: usize) -> *mut u8 {
        // SAFETY: within the allocation, or one past its end.
        unsafe { self.start.as_ptr().add(offset.min(self.len)) }
    }

    /// The bytes of `range`; none if it is not within the buffer.
    ///
    /// # Safety
    /// The kernel has no operation on them.
    pub(super) unsafe fn slice(&mut self, range: Range<usize>) -> &mut [u8] {
        if range.start > range.end || range.end > self.len {
            return &mut [];
        }
        // SAFETY: within the allocation, all of which is initialised; `&mut self` keeps others of this process away, the
        // caller the kernel.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len);
        // SAFETY: it was a box of this length, and nobody else frees it.
        drop(unsafe { Box::from_raw(memory) });
    }
}

/// What has arrived from a peer, and room for more behind it.
pub(super) struct Inbox {
    buffer: Buffer,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(super) fn new(bytes: usize) -> Self {
        Self { buffer: Buffer::new(bytes), start: 0, end: 0 }
    }

    pub(super) fn capacity(&self) -> usize {
        self.buffer.len()
    }

    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// What has arrived and was not consumed.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the kernel writes behind `end` only: see `room`.
        unsafe { self.buffer.slice(self.start..self.end) }
    }

    /// The first `used` bytes are done with; gives the bytes of `range` among them.
    pub(super) fn consume(&mut self, used: usize, range: Range<usize>) -> &mut [u8] {
        let (from, left) = (self.start, self.end - self.start);
        self.start += used.min(left);
        // SAFETY: before `start`, thus before `end`.
        unsafe { self.buffer.slice(from + range.start.min(used)..from + range.end.min(used)) }
    }

    /// Where the kernel is to write, and how much it may. What has arrived goes to the front when that leaves less than
    /// `least` bytes, or costs nothing. Only without an operation of the kernel.
    pub(super) fn room(&mut self, least: usize) -> (*mut u8, usize) {
        if self.start == self.end {
            self.clear();
        } else if self.capacity() - self.end < least {
            // SAFETY: the kernel has no operation on the buffer.
            let all = unsafe { self.buffer.slice(0..self.end) };
            all.copy_within(self.start.., 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        (self.buffer.at(self.end), self.capacity() - self.end)
    }

    /// The kernel wrote `bytes` there.
    pub(super) fn filled(&mut self, bytes: usize) {
        self.end = (self.end + bytes).min(self.capacity());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn an_inbox_gives_back_what_arrived_in_order(steps in proptest::collection::vec((any::<bool>(), 0usize..70), 1..200)) {
            let mut inbox = Inbox::new(100);
            let mut reference = VecDeque::new();
            let mut next = 0u8;
            for (arrives, count) in steps {
                if arrives {
                    let (at, room) = inbox.room(count);
                    prop_assert_eq!(room >= count, reference.len() + count <= 100);
                    for place in 0..count.min(room) {
                        // SAFETY: within the room, as the kernel would.
                        unsafe { at.add(place).write(next) };
                        reference.push_back(next);
                        next = next.wrapping_add(1);
                    }
                    inbox.filled(count.min(room));
                } else {
                    let used = count.min(reference.len());
                    let expected: Vec<u8> = reference.drain(..used).collect();
                    prop_assert_eq!(&*inbox.consume(used, used / 2..used), &expected[used / 2..]);
                }
                prop_assert_eq!(inbox.bytes(), reference.make_contiguous());
            }
        }
    }
}
