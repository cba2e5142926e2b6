//! Handlers that answer later, against the kernel in a box.

use super::*;
use io_uring::opcode;

/// The handler's hooks, for tests that have one panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    Started,
    Handle,
    Completed,
    Turn,
    Timer,
    Spin,
    Committing,
    Committed,
    Stopping,
}

const HOOKS: [Hook; 9] = [
    Hook::Started,
    Hook::Handle,
    Hook::Completed,
    Hook::Turn,
    Hook::Timer,
    Hook::Spin,
    Hook::Committing,
    Hook::Committed,
    Hook::Stopping,
];

/// Answers each request when an operation of its own has ended, which takes as long as `takes` says.
struct Later<F> {
    takes: F,
    /// When to answer, once the operation has ended.
    due: fn(u64) -> Reply,
    /// Requests whose operations are still to be pushed: (tag, ns, number).
    queued: Vec<(u16, u64, u64)>,
    /// By tag: the number of the request at work.
    at_work: Vec<Option<u64>>,
    handled: u64,
    /// Operations to push at the start that answer nothing, in ns.
    idle: Vec<u64>,
    ended: Vec<(u64, i32)>,
    pushed: usize,
    answered: Vec<u64>,
    timers: Vec<u64>,
    turns: Vec<u64>,
    spin_ns: u64,
    /// Panic in this hook, when it is called for the n-th time.
    panics: Option<(Hook, u32)>,
    calls: RefCell<[u32; HOOKS.len()]>,
    refused_after_stop: bool,
}

const NO_TAG: u64 = 0xff;

impl<F: FnMut(&Request) -> u64> Later<F> {
    fn new(depth: u16, takes: F) -> Later<F> {
        Later {
            takes,
            due: |_| Ok(Done::Whole).into(),
            queued: Vec::new(),
            at_work: vec![None; depth.into()],
            handled: 0,
            idle: Vec::new(),
            ended: Vec::new(),
            pushed: 0,
            answered: Vec::new(),
            timers: Vec::new(),
            turns: Vec::new(),
            spin_ns: 0,
            panics: None,
            calls: RefCell::default(),
            refused_after_stop: false,
        }
    }

    fn called(&self, hook: Hook) {
        let mut calls = self.calls.borrow_mut();
        let count = &mut calls[HOOKS.iter().position(|other| *other == hook).unwrap()];
        *count += 1;
        let now = self.panics == Some((hook, *count));
        drop(calls);
        assert!(!now, "on purpose, in {hook:?}");
    }

    fn push(&mut self, tag: u64, ns: u64, number: u64, io: &mut dyn QueueIo) {
        self.pushed += 1;
        // SAFETY: the entry names no memory.
        unsafe { io.push(opcode::Nop::new().build(), tag << 32 | ns | number << 40) }.unwrap();
    }
}

impl<F: FnMut(&Request) -> u64> QueueHandler for Later<F> {
    fn handle(&mut self, request: &Request, _: &mut Payload<'_>) -> Reply {
        self.called(Hook::Handle);
        let number = self.handled % 128;
        self.handled += 1;
        self.at_work[usize::from(request.tag)] = Some(number);
        self.queued.push((request.tag, (self.takes)(request), number));
        Reply::pending()
    }

    fn wants_time(&self) -> bool {
        true
    }

    fn committing(&mut self, tag: u16) {
        self.at_work[usize::from(tag)] = None;
        self.queued.retain(|queued| queued.0 != tag);
        self.called(Hook::Committing);
    }

    fn committed(&mut self) {
        self.called(Hook::Committed);
    }

    fn started(&mut self, io: &mut dyn QueueIo) {
        for ns in self.idle.clone() {
            self.push(NO_TAG, ns, 0, io);
        }
        self.called(Hook::Started);
    }

    fn completed(&mut self, token: u64, result: i32, io: &mut dyn QueueIo) {
        self.ended.push((io.now_ns() - START_NS, result));
        self.called(Hook::Completed);
        let (tag, number) = (token >> 32 & 0xff, token >> 40);
        let at_work = self.at_work.get(tag as usize).copied().flatten();
        if tag != NO_TAG && at_work == Some(number) {
            self.answered.push(tag);
            io.payload(tag as u16).store(0, &[tag as u8]).unwrap();
            io.complete(tag as u16, (self.due)(io.now_ns()));
        }
    }

    fn turn(&mut self, io: &mut dyn QueueIo) {
        self.turns.push(io.now_ns() - START_NS);
        self.called(Hook::Turn);
        let now_ns = io.now_ns();
        self.timers.retain(|timer_ns| *timer_ns > now_ns);
        for (tag, ns, number) in std::mem::take(&mut self.queued) {
            self.push(tag.into(), ns, number, io);
        }
    }

    fn timer_ns(&self) -> u64 {
        self.called(Hook::Timer);
        self.timers.iter().copied().min().unwrap_or(u64::MAX)
    }

    fn spin_ns(&self) -> u64 {
        self.called(Hook::Spin);
        self.spin_ns
    }

    fn stopping(&mut self, io: &mut dyn QueueIo) {
        self.called(Hook::Stopping);
        self.push(NO_TAG, 1_000_000, 0, io);
        self.refused_after_stop = true;
    }
}

/// Serves `kernel` until it stops; the handler comes back, and nothing is open then.
fn served<F: FnMut(&Request) -> u64>(
    mut kernel: Kernel,
    mut handler: Later<F>,
) -> (Kernel, Later<F>, serde_json::Value) {
    let stats = QueueStats::new(1);
    let depth = kernel.owner.len() as u16;
    serve(&mut kernel, settings(depth), &mut handler, &stats).unwrap();
    assert!(kernel.owner.iter().all(|owner| *owner == Owner::Nobody));
    assert!(kernel.own.is_empty(), "operations in flight at the end");
    assert_eq!(handler.ended.len(), handler.pushed, "every operation ends once");
    (kernel, handler, report(stats))
}

#[test]
fn pending_requests_complete_in_the_order_of_their_operations_and_are_counted_and_timed() {
    let kernel = Kernel::new(Ok(Op::Read), 3, &[(0, 0), (0, 1), (50, 2)]);
    let takes = [500, 100, 200];
    let handler = Later::new(3, |request: &Request| takes[usize::from(request.tag)]);
    let (kernel, handler, report) = served(kernel, handler);
    assert_eq!(times(&kernel), [(1, 100), (2, 250), (0, 500)]);
    assert!(kernel.committed.iter().all(|one| one.result == 8192));
    assert_eq!(handler.answered, [1, 2, 0]);
    assert_eq!(report["ops"]["read"]["requests"], 3);
    assert_eq!(report["latency_ns"]["read"]["count"], 3);
    let longest_ns = report["latency_ns"]["read"]["max"].as_u64().unwrap();
    assert!((500..=505).contains(&longest_ns), "{longest_ns} ns: within the histogram's 1 %");
}

#[test]
fn an_answer_with_a_due_time_waits_for_it() {
    let kernel = Kernel::new(Ok(Op::Write), 2, &[(0, 0), (0, 1)]);
    let mut handler = Later::new(2, |request: &Request| 100 + u64::from(request.tag));
    handler.due = |now_ns| Reply::at(Err(Errno::ENOSPC), now_ns + 1000);
    let (kernel, _, report) = served(kernel, handler);
    assert_eq!(times(&kernel), [(0, 1100), (1, 1101)]);
    assert!(kernel.committed.iter().all(|one| one.result == -libc::ENOSPC));
    assert_eq!(report["lateness_ns"]["count"], 2);
    assert_eq!(report["ops"]["write"]["errors"], 2);
}

#[test]
fn a_second_answer_and_one_for_a_tag_that_is_not_pending_change_nothing() {
    struct Twice;
    impl QueueHandler for Twice {
        fn handle(&mut self, _: &Request, _: &mut Payload<'_>) -> Reply {
            Reply::pending()
        }
        fn turn(&mut self, io: &mut dyn QueueIo) {
            io.complete(0, Reply::pending());
            io.complete(0, Err(Errno::ENOSPC).into());
            io.complete(0, Ok(Done::Whole).into());
            io.complete(1, Ok(Done::Whole).into());
            io.complete(u16::MAX, Ok(Done::Whole).into());
            assert!(io.payload(0).buffer_mut().unwrap().is_empty());
        }
    }
    let mut kernel = Kernel::new(Ok(Op::Read), 2, &[(0, 0)]);
    serve(&mut kernel, settings(2), &mut Twice, &QueueStats::new(0)).unwrap();
    assert_eq!(
        kernel.committed.iter().map(|one| (one.tag, one.result)).collect::<Vec<_>>(),
        [(0, -libc::ENOSPC)]
    );
}

#[test]
fn the_queue_does_not_sleep_past_the_handlers_timer() {
    let kernel = Kernel::new(Ok(Op::Read), 2, &[(0, 0), (9000, 1)]);
    let mut handler = Later::new(2, |_: &Request| 100);
    handler.timers = vec![START_NS + 700, START_NS + 5000];
    let (_, handler, _) = served(kernel, handler);
    assert!(handler.timers.is_empty());
    for expected in [700, 5000] {
        assert!(handler.turns.contains(&expected), "{:?}", handler.turns);
    }
    assert!(handler.turns.len() < 12, "the queue slept in between: {:?}", handler.turns);
}

#[test]
fn the_queue_polls_for_as_long_as_the_handler_says_and_then_sleeps() {
    let kernel = Kernel::new(Ok(Op::Read), 1, &[(0, 0)]);
    let handler = Later { spin_ns: 1000, ..Later::new(1, |_: &Request| 600) };
    let (kernel, _, _) = served(kernel, handler);
    // A look takes 10 ns; the first hands the operation in.
    assert_eq!(times(&kernel), [(0, 610)]);
    let spun = kernel.polls;
    assert!((60..200).contains(&spun), "{spun}");
    let kernel = Kernel::new(Ok(Op::Read), 1, &[(0, 0)]);
    let handler = Later { spin_ns: 1000, ..Later::new(1, |_: &Request| 1_000_000) };
    let (kernel, _, _) = served(kernel, handler);
    let (_, at_ns) = times(&kernel)[0];
    assert!(at_ns <= 1_000_010, "{at_ns}");
    assert!((100..500).contains(&kernel.polls), "{}", kernel.polls);
}

#[test]
fn polling_ends_for_a_due_completion() {
    let kernel = Kernel::new(Ok(Op::Read), 2, &[(0, 0)]);
    let mut handler = Later::new(2, |_: &Request| 100);
    handler.spin_ns = 1_000_000;
    handler.due = |now_ns| Reply::at(Ok(Done::Whole), now_ns + 2000);
    let (kernel, _, _) = served(kernel, handler);
    let (_, at_ns) = times(&kernel)[0];
    assert!((2100..2100 + 10 * (POLLS_BETWEEN_LOOKS as u64 + 2)).contains(&at_ns), "{at_ns}");
}

#[test]
fn stopping_waits_for_pending_requests_and_then_ends_what_is_in_flight() {
    let kernel = Kernel::new(Ok(Op::Read), 2, &[(0, 0), (0, 1)]);
    let mut handler = Later::new(2, |_: &Request| 5000);
    handler.idle = vec![1_000_000_000, 3_000_000_000];
    let kernel = Kernel { stubborn_ns: 2_000_000_000, ..kernel };
    let (kernel, handler, _) = served(kernel, handler);
    assert_eq!(times(&kernel), [(0, 5000), (1, 5000)]);
    // One idle operation and the one pushed by `stopping` are cancelled; the stubborn one ends at its time.
    assert_eq!(kernel.cancelled, 2);
    assert!(handler.refused_after_stop);
    assert_eq!(handler.ended.iter().filter(|ended| ended.1 == -libc::ECANCELED).count(), 2);
    assert_eq!(handler.ended.last(), Some(&(3_000_000_000, 7)));
}

#[test]
fn no_operation_starts_after_the_handler_was_told_to_stop() {
    struct Restless(Vec<i32>);
    impl QueueHandler for Restless {
        fn handle(&mut self, _: &Request, _: &mut Payload<'_>) -> Reply {
            Ok(Done::Whole).into()
        }
        fn started(&mut self, io: &mut dyn QueueIo) {
            // SAFETY: the entry names no memory.
            unsafe { io.push(opcode::Nop::new().build(), 0xffff_ffff) }.unwrap();
        }
        fn completed(&mut self, token: u64, result: i32, io: &mut dyn QueueIo) {
            // SAFETY: as above.
            let again = unsafe { io.push(opcode::Nop::new().build(), token) };
            self.0.extend([result, again.unwrap_err().raw_os_error().unwrap()]);
        }
    }
    let mut kernel = Kernel::new(Ok(Op::Read), 1, &[(0, 0)]);
    let mut handler = Restless(Vec::new());
    serve(&mut kernel, settings(1), &mut handler, &QueueStats::new(0)).unwrap();
    assert_eq!(handler.0, [-libc::ECANCELED, libc::ECANCELED]);
}

#[test]
fn a_panic_in_any_hook_ends_every_pending_request_and_the_queue_goes_on() {
    for hook in HOOKS {
        // Tags 0 to 2 are pending when tag 3 comes and goes; then all come again.
        let mut arrivals: Vec<_> = (0..3).map(|tag| (0, tag)).collect();
        arrivals.extend([(100, 3), (1200, 3)]);
        arrivals.extend((0..3).map(|tag| (20_000, tag)));
        let kernel = Kernel::new(Ok(Op::Read), 4, &arrivals);
        let mut handler = Later::new(4, |request: &Request| if request.tag == 3 { 50 } else { 5000 });
        handler.idle = vec![130];
        let call = match hook {
            Hook::Started | Hook::Stopping | Hook::Committing | Hook::Committed | Hook::Completed => 1,
            Hook::Handle => 4,
            Hook::Turn | Hook::Timer | Hook::Spin => 3,
        };
        handler.panics = Some((hook, call));
        if hook == Hook::Stopping {
            handler.idle.push(1_000_000_000);
        }
        let (kernel, _, report) = served_loosely(kernel, handler);
        assert_eq!(report["handler_panics"], 1, "{hook:?}");
        assert_eq!(kernel.committed.len(), 8, "{hook:?}");
        let failed = kernel.committed.iter().filter(|one| one.result == -libc::EIO).count();
        let early = kernel.committed.iter().filter(|one| one.at_ns < START_NS + 4000).count();
        match hook {
            Hook::Started | Hook::Stopping => assert_eq!((failed, early), (0, 2), "{hook:?}"),
            // Its own completion is on its way already, or its own result counts.
            Hook::Committing | Hook::Committed => assert_eq!((failed, early), (3, 5), "{hook:?}"),
            _ => assert!((3..=4).contains(&failed) && early == 5, "{hook:?}: {failed} failed, {early} early"),
        }
    }
}

/// As [`served`]; the handler may have missed the end of an operation, since it panicked.
fn served_loosely<F: FnMut(&Request) -> u64>(
    mut kernel: Kernel,
    mut handler: Later<F>,
) -> (Kernel, Later<F>, serde_json::Value) {
    let stats = QueueStats::new(1);
    let depth = kernel.owner.len() as u16;
    serve(&mut kernel, settings(depth), &mut handler, &stats).unwrap();
    assert!(kernel.owner.iter().all(|owner| *owner == Owner::Nobody));
    assert!(kernel.own.is_empty(), "operations in flight at the end");
    (kernel, handler, report(stats))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Random arrivals, operations, timers, polling and a panic somewhere: every request is completed once, nothing is in
    /// flight at the end, and without a panic each completes when its operation ends.
    #[test]
    fn every_pending_tag_completes_exactly_once(
        depth in 1u16..20,
        plan in prop::collection::vec((0u64..20_000, 0u16..20, 0u64..9000), 1..100),
        spin_ns in prop_oneof![Just(0u64), 1u64..5_000],
        timers in prop::collection::vec(0u64..20_000, 0..5),
        idle in prop::collection::vec(0u64..2_000_000, 0..3),
        panics in prop::option::of((0usize..HOOKS.len(), 1u32..60)),
    ) {
        let arrivals: Vec<_> = plan.iter().map(|(at, tag, _)| (*at, tag % depth)).collect();
        let kernel = Kernel { stubborn_ns: 1_000_000, ..Kernel::new(Ok(Op::Write), depth, &arrivals) };
        let mut takes = plan.iter().map(|(_, _, ns)| *ns).cycle();
        let mut handler = Later::new(depth, |_: &Request| takes.next().unwrap());
        handler.spin_ns = spin_ns;
        handler.timers = timers.iter().map(|after| START_NS + after).collect();
        handler.idle = idle;
        handler.panics = panics.map(|(hook, call)| (HOOKS[hook], call));
        let (kernel, handler, told) = served_loosely(kernel, handler);
        prop_assert_eq!(kernel.committed.len(), plan.len());
        let failed = kernel.committed.iter().filter(|one| one.result == -libc::EIO).count() as u64;
        prop_assert_eq!(told["ops"]["write"]["errors"].as_u64().unwrap(), failed);
        if told["handler_panics"] == 0 {
            prop_assert_eq!(failed, 0);
            prop_assert_eq!(handler.answered.len(), plan.len());
            prop_assert_eq!(told["latency_ns"]["write"]["count"].as_u64().unwrap(), plan.len() as u64);
        } else {
            prop_assert!(failed <= 2 * u64::from(depth), "one panic fails what was pending");
        }
    }
}

/// Answers what it was asked in the same turn, each for a little later.
struct Together(Vec<u16>);

impl QueueHandler for Together {
    fn handle(&mut self, request: &Request, _: &mut Payload<'_>) -> Reply {
        self.0.push(request.tag);
        Reply::pending()
    }

    fn turn(&mut self, io: &mut dyn QueueIo) {
        for tag in self.0.drain(..) {
            io.complete(tag, Reply::at(Ok(Done::Whole), START_NS + 500));
        }
    }
}

#[test]
fn answers_that_come_together_cost_one_look_at_the_clock() {
    let looks = |tags: u16| {
        let arrivals: Vec<_> = (0..tags).map(|tag| (0, tag)).collect();
        let mut kernel = Kernel::new(Ok(Op::Read), tags, &arrivals);
        serve(&mut kernel, settings(tags), &mut Together(Vec::new()), &QueueStats::new(0)).unwrap();
        assert_eq!(kernel.committed.len(), usize::from(tags));
        assert!(kernel.committed.iter().all(|done| done.at_ns >= START_NS + 500));
        *kernel.looks.borrow()
    };
    assert_eq!(looks(8), looks(1));
}
