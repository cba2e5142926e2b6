//! The loop against a kernel in a box: requests arrive and time passes as a script says.

mod later;

use super::*;
use crate::{Payload, Reply};
use io_uring::squeue;
use proptest::prelude::*;
use std::{cell::RefCell, collections::VecDeque, rc::Rc};

/// Where the box's clock starts: as a real one, far from 0.
const START_NS: u64 = 1_000_000_000_000;

/// A completion as the kernel got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Committed {
    tag: u16,
    result: i32,
    append_sector: Option<u64>,
    at_ns: u64,
}

/// What became of each tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Kernel,
    Driver,
    Nobody,
}

/// The kernel: hands out requests at their times, takes completions, stops.
struct Kernel {
    now_ns: u64,
    /// (time, tag), soonest first. One that comes while its tag is still the driver's comes right after the completion.
    arrivals: VecDeque<(u64, u16)>,
    /// When the device begins to stop. Tags go as they fall free.
    stop_ns: u64,
    /// How many completions to refuse.
    refusals: u32,
    op: Result<Op, u8>,
    owner: Vec<Owner>,
    events: VecDeque<Event>,
    committed: Vec<Committed>,
    data: Vec<u8>,
    looks: RefCell<u32>,
    polls: u32,
    /// How much later than asked a wait ends.
    oversleep_ns: u64,
    /// How long the handling of a request takes.
    handling_ns: u64,
    /// Operations of the handler: (end, token), in the order of their start.
    own: Vec<(u64, u64)>,
    /// A cancellation does not reach operations that are to last longer than this.
    stubborn_ns: u64,
    cancelled: u32,
}

impl Kernel {
    fn new(op: Result<Op, u8>, depth: u16, arrivals: &[(u64, u16)]) -> Kernel {
        let mut arrivals: Vec<_> = arrivals.iter().map(|(after, tag)| (START_NS + after, *tag)).collect();
        arrivals.sort();
        Kernel {
            now_ns: START_NS,
            stop_ns: arrivals.last().map_or(START_NS, |last| last.0),
            arrivals: arrivals.into(),
            refusals: 0,
            op,
            owner: vec![Owner::Kernel; depth.into()],
            events: VecDeque::new(),
            committed: Vec::new(),
            data: vec![0; 8192],
            looks: RefCell::new(0),
            polls: 0,
            oversleep_ns: 0,
            handling_ns: 0,
            own: Vec::new(),
            stubborn_ns: u64::MAX,
            cancelled: 0,
        }
    }

    /// What has happened by now.
    fn catch_up(&mut self) {
        let mut blocked = VecDeque::new();
        while let Some((at_ns, tag)) = self.arrivals.pop_front() {
            let owner = &mut self.owner[usize::from(tag)];
            if at_ns <= self.now_ns && *owner == Owner::Kernel {
                *owner = Owner::Driver;
                self.events.push_back(Event::Request(tag));
            } else {
                blocked.push_back((at_ns, tag));
            }
        }
        self.arrivals = blocked;
        let now_ns = self.now_ns;
        let mut ended: Vec<_> = self.own.extract_if(.., |own| own.0 <= now_ns).collect();
        ended.sort_by_key(|own| own.0);
        let ended = ended.into_iter().map(|(_, token)| Event::Own { token, result: 7, more: false });
        self.events.extend(ended);
        if self.now_ns >= self.stop_ns {
            for (tag, owner) in self.owner.iter_mut().enumerate() {
                let comes = self.arrivals.iter().any(|(_, other)| usize::from(*other) == tag);
                if *owner == Owner::Kernel && !comes {
                    *owner = Owner::Nobody;
                    self.events.push_back(Event::Stopped);
                }
            }
        }
    }
}

impl Tags for Kernel {
    fn commit(&mut self, tag: u16, result: i32, append_sector: Option<u64>) -> io::Result<()> {
        assert_eq!(self.owner[usize::from(tag)], Owner::Driver, "tag {tag} was completed twice");
        self.committed.push(Committed { tag, result, append_sector, at_ns: self.now_ns });
        if self.refusals > 0 {
            self.refusals -= 1;
            self.events.push_back(Event::Refused(tag, -libc::EINVAL));
        } else {
            self.owner[usize::from(tag)] = Owner::Kernel;
        }
        Ok(())
    }

    fn wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        self.catch_up();
        if self.events.is_empty() {
            let limit_ns = limit.map(|limit| self.now_ns + limit.as_nanos() as u64 + self.oversleep_ns);
            let news_ns = self.arrivals.front().map(|next| next.0).or(Some(self.stop_ns));
            let news_ns = news_ns.filter(|news_ns| *news_ns > self.now_ns);
            let own_ns = self.own.iter().map(|own| own.0).min();
            let until_ns = limit_ns.into_iter().chain(news_ns).chain(own_ns).min();
            self.now_ns = until_ns.expect("the loop waits for ever");
            self.catch_up();
        }
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn all_submitted(&mut self) -> bool {
        true
    }

    fn poll(&mut self) -> io::Result<()> {
        self.polls += 1;
        self.now_ns += 10;
        self.catch_up();
        Ok(())
    }

    fn ready(&mut self) -> bool {
        !self.events.is_empty()
    }

    /// The token's low half says how long the operation takes.
    unsafe fn push_own(&mut self, _: squeue::Entry, token: u64) -> io::Result<()> {
        self.own.push((self.now_ns + (token & 0xffff_ffff), token));
        Ok(())
    }

    fn cancel_own(&mut self) -> io::Result<()> {
        assert!(self.owner.iter().all(|owner| *owner == Owner::Nobody), "commands would be cancelled too");
        let stubborn_ns = self.stubborn_ns;
        for (_, token) in self.own.extract_if(.., |own| own.1 & 0xffff_ffff <= stubborn_ns) {
            self.cancelled += 1;
            self.events.push_back(Event::Own { token, result: -libc::ECANCELED, more: false });
        }
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        *self.looks.borrow_mut() += 1;
        self.now_ns
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn request(&self, tag: u16) -> Result<Request, u8> {
        self.op.map(|op| Request { tag, ..request(op) })
    }

    fn payload(&mut self, _: &Request) -> Payload<'_> {
        self.now_ns += self.handling_ns;
        Payload::Buffer(&mut self.data)
    }
}

/// A handler that does what a closure says.
struct Does<F> {
    handle: F,
    wants_time: bool,
    committing: Vec<u16>,
    /// How many announced completions each call of `committed` was about.
    committed: Vec<usize>,
}

impl<F> Does<F> {
    fn new(handle: F) -> Does<F> {
        Does { handle, wants_time: true, committing: Vec::new(), committed: Vec::new() }
    }
}

impl<F: FnMut(&Request) -> Reply> QueueHandler for Does<F> {
    fn handle(&mut self, request: &Request, _: &mut Payload<'_>) -> Reply {
        (self.handle)(request)
    }

    fn wants_time(&self) -> bool {
        self.wants_time
    }

    fn committing(&mut self, tag: u16) {
        self.committing.push(tag);
    }

    fn commits_first(&self) -> bool {
        true
    }

    fn committed(&mut self) {
        self.committed.push(self.committing.len());
    }
}

fn request(op: Op) -> Request {
    Request { op, sector: 8, sectors: 16, fua: false, tag: 3, fetched_ns: 0 }
}

fn settings(depth: u16) -> Settings {
    Settings { depth, spin_ns: 0, latency_sampling: 1, ring_entries: 0 }
}

/// What the kernel got from a handler on one tag: results and append sectors.
fn commits(
    op: Result<Op, u8>,
    refusals: u32,
    mut handler: impl FnMut() -> Result<Done, Errno>,
) -> (io::Result<()>, Vec<(i32, Option<u64>)>) {
    let mut kernel = Kernel { refusals, ..Kernel::new(op, 1, &[(0, 0)]) };
    let mut handler = Does::new(|_: &Request| handler().into());
    let served = serve(&mut kernel, settings(1), &mut handler, &QueueStats::new(1));
    (served, kernel.committed.iter().map(|one| (one.result, one.append_sector)).collect())
}

#[test]
fn a_panic_in_the_handler_completes_the_request_with_eio() {
    let (served, commits) = commits(Ok(Op::Read), 0, || panic!("on purpose"));
    served.unwrap();
    assert_eq!(commits, [(-libc::EIO, None)]);
}

#[test]
fn an_operation_nobody_knows_is_not_supported() {
    let (served, commits) = commits(Err(77), 0, || Ok(Done::Whole));
    served.unwrap();
    assert_eq!(commits, [(-libc::EOPNOTSUPP, None)]);
}

#[test]
fn a_completion_that_the_kernel_refuses_is_sent_again_as_eio() {
    let (served, commits) = commits(Ok(Op::ZoneAppend), 1, || Ok(Done::AppendedAt(u64::MAX)));
    served.unwrap();
    assert_eq!(commits, [(8192, Some(u64::MAX)), (-libc::EIO, None)]);
}

#[test]
fn a_completion_refused_twice_ends_the_service_with_an_error() {
    let (served, commits) = commits(Ok(Op::Read), 2, || Ok(Done::Whole));
    assert_eq!(served.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    assert_eq!(commits.len(), 2);
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

/// Serves `kernel` with replies by tag, and gives its completions as (tag, ns after the start).
fn timed(mut kernel: Kernel, settings: Settings, reply: impl Fn(&Request) -> Reply) -> (Kernel, QueueStats) {
    let stats = QueueStats::new(settings.latency_sampling);
    serve(&mut kernel, settings, &mut Does::new(reply), &stats).unwrap();
    assert!(kernel.owner.iter().all(|owner| *owner == Owner::Nobody));
    (kernel, stats)
}

fn times(kernel: &Kernel) -> Vec<(u16, u64)> {
    kernel.committed.iter().map(|one| (one.tag, one.at_ns - START_NS)).collect()
}

fn report(stats: QueueStats) -> serde_json::Value {
    crate::stats::report(&[stats.into()], false)
}

#[test]
fn completions_come_at_their_times_and_equal_ones_in_the_order_of_arrival() {
    let dues = [500, 300, 700, 300, 300];
    let kernel = Kernel::new(Ok(Op::Read), 5, &[(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]);
    let (kernel, stats) = timed(kernel, settings(5), |request| {
        Reply::at(Ok(Done::Whole), request.fetched_ns + dues[usize::from(request.tag)])
    });
    assert_eq!(times(&kernel), [(1, 300), (3, 300), (4, 300), (0, 500), (2, 700)]);
    let report = report(stats);
    assert_eq!(report["lateness_ns"]["count"], 5);
    assert_eq!(report["latency_ns"]["read"]["count"], 5);
    assert_eq!(report["ops"]["read"]["requests"], 5);
}

#[test]
fn a_crowd_with_one_due_time_completes_in_the_order_of_arrival() {
    let depth = 100;
    let arrivals: Vec<_> = (0..depth).map(|n| (u64::from(n), n * 37 % depth)).collect();
    let kernel = Kernel::new(Ok(Op::Read), depth, &arrivals);
    let (kernel, _) = timed(kernel, settings(depth), |_| Reply::at(Ok(Done::Whole), START_NS + 5000));
    let expected: Vec<_> = arrivals.iter().map(|(_, tag)| (*tag, 5000)).collect();
    assert_eq!(times(&kernel), expected);
}

#[test]
fn a_crowd_of_new_requests_does_not_keep_a_due_completion_waiting() {
    let arrivals: Vec<_> = (0..300).map(|tag| (0, tag)).collect();
    let kernel = Kernel { handling_ns: 10, ..Kernel::new(Ok(Op::Read), 300, &arrivals) };
    let (kernel, _) = timed(kernel, settings(300), |request| match request.tag {
        0 => Reply::at(Ok(Done::Whole), START_NS + 100),
        _ => Ok(Done::Whole).into(),
    });
    let waited = times(&kernel).iter().find(|(tag, _)| *tag == 0).unwrap().1;
    assert!(waited <= 100 + EVENTS_BETWEEN_LOOKS as u64 * 10, "{waited} ns");
    assert_eq!(kernel.committed.len(), 300);
}

#[test]
fn a_request_without_a_due_time_overtakes_those_that_wait() {
    let kernel = Kernel::new(Ok(Op::Read), 2, &[(0, 0), (100, 1)]);
    let (kernel, _) = timed(kernel, settings(2), |request| match request.tag {
        0 => Reply::at(Ok(Done::Whole), START_NS + 1000),
        _ => Ok(Done::Whole).into(),
    });
    assert_eq!(times(&kernel), [(1, 100), (0, 1000)]);
}

#[test]
fn a_time_in_the_past_is_at_once_and_a_sleep_too_long_is_told_as_lateness() {
    let kernel = Kernel::new(Ok(Op::Read), 2, &[(0, 0), (0, 1)]);
    let kernel = Kernel { oversleep_ns: 70, ..kernel };
    let (kernel, stats) = timed(kernel, settings(2), |request| {
        Reply::at(Ok(Done::Whole), [START_NS - 5, START_NS + 1000][usize::from(request.tag)])
    });
    assert_eq!(times(&kernel), [(0, 0), (1, 1070)]);
    let report = report(stats);
    assert_eq!(report["lateness_ns"]["max"], 70);
    assert_eq!(report["lateness_ns"]["p50"], 5);
}

#[test]
fn errors_wait_for_their_time_too() {
    let kernel = Kernel::new(Ok(Op::Write), 1, &[(0, 0)]);
    let (kernel, stats) =
        timed(kernel, settings(1), |request| Reply::at(Err(Errno::ENOSPC), request.fetched_ns + 42));
    let expected = Committed { tag: 0, result: -libc::ENOSPC, append_sector: None, at_ns: START_NS + 42 };
    assert_eq!(kernel.committed, [expected]);
    assert_eq!(report(stats)["ops"]["write"]["errors"], 1);
}

#[test]
fn a_full_heap_of_waiting_completions_is_given_back_in_order() {
    let depth = 512;
    let arrivals: Vec<_> = (0..depth).map(|tag| (0, tag)).collect();
    let kernel = Kernel::new(Ok(Op::Read), depth, &arrivals);
    let (kernel, stats) = timed(kernel, settings(depth), |request| {
        Reply::at(Ok(Done::Whole), START_NS + 1000 + u64::from(depth - request.tag))
    });
    let tags: Vec<_> = kernel.committed.iter().map(|one| one.tag).collect();
    assert_eq!(tags, (0..depth).rev().collect::<Vec<_>>());
    assert_eq!(report(stats)["lateness_ns"]["max"], 1);
}

#[test]
fn a_stopping_device_still_completes_what_waits() {
    // The kernel stops at 10 ns; the idle tag goes at once, the others when they are done.
    let kernel = Kernel { stop_ns: START_NS + 10, ..Kernel::new(Ok(Op::Read), 3, &[(0, 0), (5, 2)]) };
    let (kernel, _) =
        timed(kernel, settings(3), |request| Reply::at(Ok(Done::Whole), request.fetched_ns + 5_000_000_000));
    assert_eq!(times(&kernel), [(0, 5_000_000_000), (2, 5_000_000_005)]);
}

#[test]
fn a_due_time_beyond_an_hour_is_brought_down_to_it() {
    for wants_time in [true, false] {
        let mut kernel = Kernel::new(Ok(Op::Read), 1, &[(0, 0)]);
        let stats = QueueStats::new(0);
        let mut handler = Does::new(|_: &Request| Reply::at(Ok(Done::Whole), u64::MAX));
        handler.wants_time = wants_time;
        serve(&mut kernel, Settings { latency_sampling: 0, ..settings(1) }, &mut handler, &stats).unwrap();
        assert_eq!(times(&kernel), [(0, MAX_DELAY_NS)]);
        assert_eq!(report(stats)["clamped_due_times"], 1);
    }
}

#[test]
fn spinning_polls_only_for_the_last_stretch_and_takes_new_requests_meanwhile() {
    let kernel = Kernel::new(Ok(Op::Read), 2, &[(0, 0), (950, 1)]);
    let kernel = Kernel { oversleep_ns: 30, ..kernel };
    let (kernel, stats) =
        timed(kernel, Settings { spin_ns: 100, ..settings(2) }, |request| match request.tag {
            0 => Reply::at(Ok(Done::Whole), START_NS + 1000),
            _ => Ok(Done::Whole).into(),
        });
    // Awake at 930, 70 ns before the time; a look takes 10.
    assert_eq!(times(&kernel), [(1, 950), (0, 1000)]);
    assert_eq!(kernel.polls, 7);
    assert_eq!(report(stats)["lateness_ns"]["max"], 1);
}

#[test]
fn the_clock_is_not_read_when_nobody_needs_it() {
    for (latency, wants_time, looks) in [(false, false, 0), (false, true, 1), (true, false, 2)] {
        let mut kernel = Kernel::new(Ok(Op::Read), 4, &[(0, 0), (0, 1), (0, 2), (0, 3)]);
        let mut handler = Does::new(|request: &Request| {
            assert_eq!(request.fetched_ns, if latency || wants_time { START_NS } else { 0 });
            Ok(Done::Whole).into()
        });
        handler.wants_time = wants_time;
        serve(
            &mut kernel,
            Settings { latency_sampling: latency.into(), ..settings(4) },
            &mut handler,
            &QueueStats::new(latency.into()),
        )
        .unwrap();
        assert_eq!(*kernel.looks.borrow(), looks);
    }
}

#[test]
fn a_slow_clock_is_read_for_some_wake_ups_only() {
    let arrivals: Vec<_> = (0..3200).map(|n| (n * 10, 0)).collect();
    let mut kernel = Kernel::new(Ok(Op::Read), 1, &arrivals);
    let mut handler = Does::new(|_: &Request| Ok(Done::Whole).into());
    handler.wants_time = false;
    let stats = QueueStats::new(1);
    serve(&mut kernel, Settings { latency_sampling: 32, ..settings(1) }, &mut handler, &stats).unwrap();
    assert_eq!(kernel.committed.len(), 3200);
    let timed = report(stats)["latency_ns"]["read"]["count"].as_u64().unwrap();
    assert!((75..=125).contains(&timed), "{timed} of 3200");
    assert_eq!(u64::from(*kernel.looks.borrow()), 2 * timed);
}

#[test]
fn the_handler_hears_of_each_completion_once_and_in_order() {
    let mut kernel = Kernel { refusals: 1, ..Kernel::new(Ok(Op::Read), 3, &[(0, 0), (0, 1), (0, 2)]) };
    let mut handler =
        Does::new(|request: &Request| Reply::at(Ok(Done::Whole), START_NS + 10 - u64::from(request.tag)));
    serve(&mut kernel, settings(3), &mut handler, &QueueStats::new(1)).unwrap();
    assert_eq!(handler.committing, [2, 1, 0]);
    assert_eq!(kernel.committed.len(), 4);
}

#[test]
fn a_hook_that_panics_keeps_no_completion_back() {
    struct Hooked;
    impl QueueHandler for Hooked {
        fn handle(&mut self, _: &Request, _: &mut Payload<'_>) -> Reply {
            Ok(Done::Whole).into()
        }
        fn committing(&mut self, _: u16) {
            panic!("on purpose");
        }
    }
    let mut kernel = Kernel::new(Ok(Op::Read), 1, &[(0, 0)]);
    let stats = QueueStats::new(1);
    serve(&mut kernel, settings(1), &mut Hooked, &stats).unwrap();
    assert_eq!(kernel.committed[0].result, 8192);
    assert_eq!(report(stats)["handler_panics"], 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Random arrivals, handling and waiting times, sleeps that last too long: every request is completed exactly once,
    /// never before its time, and late only by what the box's clock was late.
    #[test]
    fn every_tag_completes_exactly_once_and_never_before_its_time(
        depth in 1u16..40,
        plan in prop::collection::vec((0u64..20_000, 0u16..40, prop_oneof![Just(None), (0u64..30_000).prop_map(Some)]), 0..200),
        spin_ns in prop_oneof![Just(0u64), 0u64..2_000],
        oversleep_ns in 0u64..500,
        latency: bool,
    ) {
        let arrivals: Vec<_> = plan.iter().map(|(at, tag, _)| (*at, tag % depth)).collect();
        let mut kernel = Kernel { oversleep_ns, ..Kernel::new(Ok(Op::Write), depth, &arrivals) };
        let promised = Rc::new(RefCell::new(vec![Vec::new(); depth.into()]));
        let mut delays = plan.iter().map(|(_, _, delay)| *delay).cycle();
        let log = Rc::clone(&promised);
        let mut handler = Does::new(move |request: &Request| {
            let delay = delays.next().flatten();
            let due_ns = delay.map_or(0, |delay| request.fetched_ns + delay);
            log.borrow_mut()[usize::from(request.tag)].push(due_ns.max(request.fetched_ns));
            Reply::at(Ok(Done::Whole), due_ns)
        });
        let stats = QueueStats::new(latency.into());
        serve(&mut kernel, Settings { depth, spin_ns, latency_sampling: latency.into(), ring_entries: 0 }, &mut handler, &stats).unwrap();
        prop_assert!(kernel.owner.iter().all(|owner| *owner == Owner::Nobody));
        prop_assert_eq!(kernel.committed.len(), plan.len());
        for tag in 0..depth {
            let done: Vec<_> = kernel.committed.iter().filter(|one| one.tag == tag).map(|one| one.at_ns).collect();
            let due = &promised.borrow()[usize::from(tag)];
            prop_assert_eq!(done.len(), due.len());
            for (done_ns, due_ns) in done.iter().zip(due) {
                prop_assert!(done_ns >= due_ns, "{} ns early", due_ns - done_ns);
                prop_assert!(done_ns - due_ns <= oversleep_ns + 10, "{} ns late", done_ns - due_ns);
            }
        }
        let told = report(stats);
        let counted = told["latency_ns"]["write"]["count"].as_u64().unwrap_or(0);
        prop_assert_eq!(counted, if latency { plan.len() as u64 } else { 0 });
    }
}

#[test]
fn a_handler_hears_of_every_completion_that_the_kernel_has_before_the_queue_waits_again() {
    let mut kernel = Kernel::new(Ok(Op::Write), 3, &[(0, 0), (0, 1), (50, 2)]);
    let mut handler = Does::new(|_: &Request| Ok(Done::Whole).into());
    serve(&mut kernel, settings(3), &mut handler, &QueueStats::new(1)).unwrap();
    assert_eq!(handler.committing, [0, 1, 2]);
    assert_eq!(handler.committed, [2, 3]);
}
