//! One queue's loop: fetch, handle, complete.
//!
//! The invariant: a tag that the kernel handed over is given back exactly once, with a result, whatever the handler
//! does. A panic becomes `EIO`; an operation nobody knows becomes `EOPNOTSUPP`; a completion that the kernel refuses is
//! sent again as `EIO` without the append sector, which is the only part it can refuse; and if even that is refused, or
//! the ring fails, `serve` ends with an error and its caller ends the process: only then does the kernel fail the
//! requests (or keep them for `recover`), whatever other queues still do.

use crate::{
    QueueHandler,
    adapter::{Event, Tags},
    request::{Done, Errno, Op, Request},
    stats::QueueStats,
};
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// A finished request as the kernel wants it.
#[derive(Debug, PartialEq, Eq)]
struct Completion {
    result: i32,
    append_sector: Option<u64>,
}

/// Serves until the device stops.
///
/// # Errors
/// The ring's, or a completion refused twice. Requests are left open then: the process must end.
pub(crate) fn serve<H: QueueHandler>(
    queue: &mut impl Tags,
    depth: u16,
    handler: &mut H,
    stats: &QueueStats,
) -> io::Result<()> {
    let mut serving = usize::from(depth);
    let mut refused_before = vec![false; usize::from(depth)];
    while serving > 0 {
        queue.wait()?;
        while let Some(event) = queue.next_event() {
            match event {
                Event::Request(tag) => {
                    if let Some(flag) = refused_before.get_mut(usize::from(tag)) {
                        *flag = false;
                    }
                    let completion = handle(queue, tag, handler, stats);
                    queue.commit(tag, completion.result, completion.append_sector)?;
                }
                Event::Stopped => serving -= 1,
                Event::Refused(tag, errno) => {
                    stats.refused();
                    log::error!("tag {tag}: the kernel refused a completion (errno {})", -errno);
                    match refused_before.get_mut(usize::from(tag)) {
                        Some(flag) if !*flag => *flag = true,
                        _ => return Err(io::Error::from_raw_os_error(-errno)),
                    }
                    queue.commit(tag, -libc::EIO, None)?;
                }
            }
        }
    }
    Ok(())
}

fn handle<H: QueueHandler>(
    queue: &mut impl Tags,
    tag: u16,
    handler: &mut H,
    stats: &QueueStats,
) -> Completion {
    let request = match queue.request(tag) {
        Ok(request) => request,
        Err(code) => {
            log::warn!("operation {code} is not known: EOPNOTSUPP");
            stats.unknown();
            return Completion { result: -libc::EOPNOTSUPP, append_sector: None };
        }
    };
    let mut payload = queue.payload(&request);
    // The handler's state after a panic is its own business: targets share state behind locks that survive poisoning.
    let outcome = catch_unwind(AssertUnwindSafe(|| handler.handle(&request, &mut payload)));
    let outcome = outcome.unwrap_or_else(|_| {
        log::error!("the handler panicked on {request:?}: EIO");
        stats.panicked();
        Err(Errno::EIO)
    });
    let bytes = if request.op.moves_data() { request.len_bytes() as u64 } else { 0 };
    stats.finished(request.op, bytes, outcome.is_err());
    if let Err(errno) = outcome {
        log::debug!("{request:?}: {errno:?}");
    }
    completion(&request, outcome)
}

/// What the kernel is told. A read or write reports its bytes: a result of 0 would make the kernel fail the read and
/// send the write again for ever. A zone report claims the rest of its buffer for the same reason.
fn completion(request: &Request, outcome: Result<Done, Errno>) -> Completion {
    match outcome {
        Err(errno) => Completion { result: -errno.code(), append_sector: None },
        Ok(done) => {
            let result = match request.op {
                Op::Read | Op::Write | Op::ZoneAppend => {
                    i32::try_from(request.len_bytes()).unwrap_or(i32::MAX)
                }
                Op::ReportZones => i32::MAX,
                _ => 0,
            };
            match (request.op, done) {
                (Op::ZoneAppend, Done::AppendedAt(sector)) => {
                    Completion { result, append_sector: Some(sector) }
                }
                (Op::ZoneAppend, Done::Whole) => {
                    log::error!("an append completed without its sector: EIO");
                    Completion { result: -libc::EIO, append_sector: None }
                }
                _ => Completion { result, append_sector: None },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tag, result, append sector.
    type Committed = (u16, i32, Option<u64>);

    /// A kernel with a script: hands out requests, refuses some completions, then stops the queue.
    struct Script {
        events: std::collections::VecDeque<Event>,
        /// How many completions of each tag to refuse.
        refusals: u32,
        commits: Vec<Committed>,
        op: Result<Op, u8>,
        data: Vec<u8>,
    }

    impl Script {
        fn new(op: Result<Op, u8>, refusals: u32) -> Script {
            let events = [Event::Request(0)].into();
            Script { events, refusals, commits: Vec::new(), op, data: vec![0; 8192] }
        }
    }

    impl Tags for Script {
        fn commit(&mut self, tag: u16, result: i32, append_sector: Option<u64>) -> io::Result<()> {
            self.commits.push((tag, result, append_sector));
            self.events.push_back(match self.refusals {
                0 => Event::Stopped,
                _ => Event::Refused(tag, -libc::EINVAL),
            });
            self.refusals = self.refusals.saturating_sub(1);
            Ok(())
        }

        fn wait(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn next_event(&mut self) -> Option<Event> {
            self.events.pop_front()
        }

        fn request(&self, tag: u16) -> Result<Request, u8> {
            self.op.map(|op| Request { tag, ..request(op) })
        }

        fn payload(&mut self, _: &Request) -> crate::Payload<'_> {
            crate::Payload::Buffer(&mut self.data)
        }
    }

    /// A handler that does what a closure says.
    struct Does<F>(F);

    impl<F: FnMut() -> Result<Done, Errno>> QueueHandler for Does<F> {
        fn handle(&mut self, _: &Request, _: &mut crate::Payload<'_>) -> Result<Done, Errno> {
            self.0()
        }
    }

    fn commits(
        op: Result<Op, u8>,
        refusals: u32,
        handler: impl FnMut() -> Result<Done, Errno>,
    ) -> (io::Result<()>, Vec<Committed>) {
        let mut script = Script::new(op, refusals);
        let served = serve(&mut script, 1, &mut Does(handler), &QueueStats::default());
        (served, script.commits)
    }

    #[test]
    fn a_panic_in_the_handler_completes_the_request_with_eio() {
        let (served, commits) = commits(Ok(Op::Read), 0, || panic!("on purpose"));
        served.unwrap();
        assert_eq!(commits, [(0, -libc::EIO, None)]);
    }

    #[test]
    fn an_operation_nobody_knows_is_not_supported() {
        let (served, commits) = commits(Err(77), 0, || Ok(Done::Whole));
        served.unwrap();
        assert_eq!(commits, [(0, -libc::EOPNOTSUPP, None)]);
    }

    #[test]
    fn a_completion_that_the_kernel_refuses_is_sent_again_as_eio() {
        let (served, commits) = commits(Ok(Op::ZoneAppend), 1, || Ok(Done::AppendedAt(u64::MAX)));
        served.unwrap();
        assert_eq!(commits, [(0, 8192, Some(u64::MAX)), (0, -libc::EIO, None)]);
    }

    #[test]
    fn a_completion_refused_twice_ends_the_service_with_an_error() {
        let (served, commits) = commits(Ok(Op::Read), 2, || Ok(Done::Whole));
        assert_eq!(served.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(commits.len(), 2);
    }

    fn request(op: Op) -> Request {
        Request { op, sector: 8, sectors: 16, fua: false, tag: 3 }
    }

    #[test]
    fn reads_and_writes_report_their_bytes_and_flushes_none() {
        for (op, result) in [(Op::Read, 8192), (Op::Write, 8192), (Op::Flush, 0), (Op::ZoneReset, 0)] {
            let expected = Completion { result, append_sector: None };
            assert_eq!(completion(&request(op), Ok(Done::Whole)), expected);
        }
    }

    #[test]
    fn only_an_append_carries_a_sector() {
        let expected = Completion { result: 8192, append_sector: Some(99) };
        assert_eq!(completion(&request(Op::ZoneAppend), Ok(Done::AppendedAt(99))), expected);
        let plain = Completion { result: 8192, append_sector: None };
        assert_eq!(completion(&request(Op::Write), Ok(Done::AppendedAt(99))), plain);
        let lost = Completion { result: -libc::EIO, append_sector: None };
        assert_eq!(completion(&request(Op::ZoneAppend), Ok(Done::Whole)), lost);
    }

    #[test]
    fn an_error_is_a_negative_errno_without_a_sector() {
        let expected = Completion { result: -libc::ETOOMANYREFS, append_sector: None };
        assert_eq!(completion(&request(Op::ZoneAppend), Err(Errno::ETOOMANYREFS)), expected);
    }
}
