//! Requests that their handler answers later, and what the handler can do with its queue meanwhile.
//!
//! The invariant: a tag is pending from the handler's [`Reply::pending`] until its answer, and its answer is taken once:
//! a second one, or one for a tag that is not pending, changes nothing. Room for every tag is taken at the start.

use super::State;
use crate::{
    QueueIo,
    adapter::Tags,
    request::{Errno, Payload, Reply, Request},
};
use io_uring::squeue;
use std::{collections::VecDeque, io};

/// The pending requests of one queue.
pub(super) struct Pending {
    /// By tag.
    requests: Vec<Option<Request>>,
    /// Answers that the loop has not taken yet.
    answered: VecDeque<(Request, Reply)>,
}

impl Pending {
    /// Room for `depth` tags.
    pub(super) fn new(depth: usize) -> Pending {
        Pending { requests: vec![None; depth], answered: VecDeque::with_capacity(depth) }
    }

    /// The handler will answer `request`.
    pub(super) fn add(&mut self, request: Request) {
        if let Some(slot) = self.requests.get_mut(usize::from(request.tag)) {
            *slot = Some(request);
        }
    }

    /// The handler's answer; `false` if nobody waits for it.
    fn answer(&mut self, tag: u16, reply: Reply) -> bool {
        let request = self.requests.get_mut(usize::from(tag)).and_then(Option::take);
        if let Some(request) = request {
            self.answered.push_back((request, reply));
        }
        request.is_some()
    }

    /// Every pending request fails.
    pub(super) fn fail_all(&mut self) {
        for slot in &mut self.requests {
            if let Some(request) = slot.take() {
                self.answered.push_back((request, Err(Errno::EIO).into()));
            }
        }
    }

    /// The next answer.
    pub(super) fn take_answered(&mut self) -> Option<(Request, Reply)> {
        self.answered.pop_front()
    }
}

/// A queue as its handler's hooks see it.
pub(super) struct Io<'s, Q> {
    pub(super) queue: &'s mut Q,
    pub(super) state: &'s mut State,
}

impl<Q: Tags> QueueIo for Io<'_, Q> {
    unsafe fn push(&mut self, entry: squeue::Entry, token: u64) -> io::Result<()> {
        if self.state.ending {
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        // SAFETY: the caller's promise.
        unsafe { self.queue.push_own(entry, token) }?;
        self.state.own_in_flight += 1;
        Ok(())
    }

    fn payload(&mut self, tag: u16) -> Payload<'_> {
        match self.state.pending.requests.get(usize::from(tag)) {
            Some(Some(request)) => self.queue.payload(request),
            _ => Payload::Buffer(&mut []),
        }
    }

    fn complete(&mut self, tag: u16, reply: Reply) {
        if !reply.is_pending() && !self.state.pending.answer(tag, reply) {
            log::error!("tag {tag} was completed and is not pending: nothing happens");
        }
    }

    fn now_ns(&self) -> u64 {
        self.queue.now_ns()
    }
}
