//! Handlers with operations on a real ring.

use super::*;
use crate::{QueueIo, Reply};
use io_uring::{opcode, types};
use std::{
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Instant,
};

const LONG: Duration = Duration::from_secs(10);

/// Reads come from the socket and writes go to it; a discard waits for a byte in the same way.
struct Piped {
    socket: UnixStream,
    /// By tag: the buffer of its operation, and its request.
    buffers: Vec<Box<[u8; 4096]>>,
    requests: Vec<Option<Request>>,
    queued: Vec<u16>,
    ended: Vec<i32>,
    stopped: bool,
    timer_ns: u64,
    fired: u32,
    spin_ns: u64,
    panics: bool,
    /// In flight when the queue was dropped? Counts the handler's drops.
    dropped: std::rc::Rc<std::cell::Cell<u32>>,
}

impl Piped {
    fn new(depth: u16) -> (Piped, UnixStream) {
        let (socket, peer) = UnixStream::pair().unwrap();
        let piped = Piped {
            socket,
            buffers: (0..depth).map(|_| Box::new([0; 4096])).collect(),
            requests: vec![None; depth.into()],
            queued: Vec::new(),
            ended: Vec::new(),
            stopped: false,
            timer_ns: u64::MAX,
            fired: 0,
            spin_ns: 0,
            panics: false,
            dropped: Default::default(),
        };
        (piped, peer)
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        self.dropped.set(self.dropped.get() + 1);
    }
}

impl QueueHandler for Piped {
    fn handle(&mut self, request: &Request, payload: &mut Payload<'_>) -> Reply {
        if request.op == Op::Flush {
            return Ok(Done::Whole).into();
        }
        let tag = usize::from(request.tag);
        if request.op == Op::Write {
            payload.fetch(0, &mut self.buffers[tag][..request.len_bytes()]).unwrap();
        }
        self.requests[tag] = Some(*request);
        self.queued.push(request.tag);
        Reply::pending()
    }

    fn committing(&mut self, tag: u16) {
        self.requests[usize::from(tag)] = None;
    }

    fn turn(&mut self, io: &mut dyn QueueIo) {
        if io.now_ns() >= self.timer_ns {
            self.fired += 1;
            self.timer_ns = u64::MAX;
        }
        let fd = types::Fd(self.socket.as_raw_fd());
        for tag in self.queued.drain(..) {
            let request = self.requests[usize::from(tag)].unwrap();
            let buffer = &mut self.buffers[usize::from(tag)];
            let len = request.len_bytes() as u32;
            let entry = match request.op {
                Op::Write => opcode::Send::new(fd, buffer.as_ptr(), len).build(),
                _ => opcode::Recv::new(fd, buffer.as_mut_ptr(), len).build(),
            };
            // SAFETY: the tag's buffer stays, and waits, until its operation has ended.
            unsafe { io.push(entry, tag.into()) }.unwrap();
        }
    }

    fn completed(&mut self, token: u64, result: i32, io: &mut dyn QueueIo) {
        self.ended.push(result);
        assert!(!self.panics, "on purpose");
        let tag = token as u16;
        let Some(request) = self.requests[usize::from(tag)] else { return };
        if result < 0 {
            return io.complete(tag, Err(Errno::new(-result)).into());
        }
        if request.op == Op::Read {
            io.payload(tag).store(0, &self.buffers[usize::from(tag)][..result as usize]).unwrap();
        }
        io.complete(tag, Ok(Done::Whole).into());
    }

    fn timer_ns(&self) -> u64 {
        self.timer_ns
    }

    fn spin_ns(&self) -> u64 {
        self.spin_ns
    }

    fn stopping(&mut self, _: &mut dyn QueueIo) {
        self.stopped = true;
    }
}

/// Turns until a request is done.
fn done(queue: &mut LocalQueue<Piped>) -> (u16, Result<Done, Errno>) {
    let start = Instant::now();
    while start.elapsed() < LONG {
        if let Some(done) = queue.take_done() {
            return done;
        }
        queue.turn(Duration::from_millis(100)).unwrap();
    }
    panic!("nothing is done");
}

#[test]
fn requests_answered_by_operations_on_the_ring_carry_their_data() {
    let (piped, mut peer) = Piped::new(4);
    let mut queue = LocalQueue::new(piped, 4, 4096).unwrap();
    let write = queue.submit(Op::Write, 0, 8, Some(&[0x5a; 4096])).unwrap();
    assert_eq!(done(&mut queue), (write, Ok(Done::Whole)));
    let mut sent = [0; 4096];
    peer.read_exact(&mut sent).unwrap();
    assert_eq!(sent, [0x5a; 4096]);

    let read = queue.submit(Op::Read, 0, 1, None).unwrap();
    queue.turn(Duration::ZERO).unwrap();
    assert_eq!(queue.take_done(), None);
    peer.write_all(&[0xa5; 512]).unwrap();
    assert_eq!(done(&mut queue), (read, Ok(Done::Whole)));
    assert_eq!(queue.data(read), [0xa5; 512]);
    assert!(queue.finish().unwrap().stopped);
}

#[test]
fn a_request_that_is_done_at_once_overtakes_one_that_waits_for_the_ring() {
    let (piped, mut peer) = Piped::new(4);
    let mut queue = LocalQueue::new(piped, 4, 4096).unwrap();
    let read = queue.submit(Op::Read, 0, 1, None).unwrap();
    let flush = queue.submit(Op::Flush, 0, 0, None).unwrap();
    assert_eq!(done(&mut queue).0, flush);
    peer.write_all(&[1; 512]).unwrap();
    assert_eq!(done(&mut queue).0, read);
}

#[test]
fn polling_meets_an_answer_that_comes_from_another_thread() {
    let (mut piped, mut peer) = Piped::new(1);
    piped.spin_ns = u64::MAX;
    let mut queue = LocalQueue::new(piped, 1, 4096).unwrap();
    let echo = std::thread::spawn(move || {
        for byte in 0..100 {
            std::thread::sleep(Duration::from_micros(100));
            peer.write_all(&[byte; 512]).unwrap();
        }
    });
    for byte in 0..100 {
        let tag = queue.submit(Op::Read, 0, 1, None).unwrap();
        assert_eq!(done(&mut queue), (tag, Ok(Done::Whole)));
        assert_eq!(queue.data(tag), [byte; 512]);
    }
    echo.join().unwrap();
}

#[test]
fn a_sleeping_queue_wakes_up_for_the_handlers_timer() {
    let (mut piped, _peer) = Piped::new(1);
    let start = Instant::now();
    piped.timer_ns = monotonic_ns() + 20_000_000;
    let mut queue = LocalQueue::new(piped, 1, 4096).unwrap();
    while queue.handler().fired == 0 {
        assert!(start.elapsed() < LONG);
        queue.turn(LONG).unwrap();
    }
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[test]
fn a_queue_that_goes_away_cancels_the_handlers_operations_first() {
    let (piped, mut peer) = Piped::new(3);
    let dropped = piped.dropped.clone();
    let mut queue = LocalQueue::new(piped, 3, 4096).unwrap();
    for _ in 0..3 {
        queue.submit(Op::Read, 0, 1, None).unwrap();
    }
    assert_eq!(queue.submit(Op::Read, 0, 1, None), None, "no tag is free");
    queue.turn(Duration::from_millis(1)).unwrap();
    drop(queue);
    assert_eq!(dropped.get(), 1);
    // Nobody reads any more.
    assert!(peer.write_all(&[0; 512]).is_err());
}

#[test]
fn finish_waits_for_pending_requests_and_gives_the_handler_back_once() {
    let (piped, mut peer) = Piped::new(2);
    let dropped = piped.dropped.clone();
    let mut queue = LocalQueue::new(piped, 2, 4096).unwrap();
    queue.submit(Op::Read, 0, 1, None).unwrap();
    queue.turn(Duration::ZERO).unwrap();
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        peer.write_all(&[3; 512]).unwrap();
        peer
    });
    let piped = queue.finish().unwrap();
    assert_eq!(piped.ended, [512]);
    drop((piped, writer.join().unwrap()));
    assert_eq!(dropped.get(), 1);
}

#[test]
fn a_handler_that_panics_loses_its_pending_requests_and_goes_on() {
    let (mut piped, mut peer) = Piped::new(2);
    piped.panics = true;
    let mut queue = LocalQueue::new(piped, 2, 4096).unwrap();
    for _ in 0..2 {
        queue.submit(Op::Read, 0, 1, None).unwrap();
    }
    queue.turn(Duration::ZERO).unwrap();
    peer.write_all(&[1; 512]).unwrap();
    let mut failed = [done(&mut queue), done(&mut queue)];
    failed.sort_by_key(|done| done.0);
    assert_eq!(failed, [(0, Err(Errno::EIO)), (1, Err(Errno::EIO))]);
    assert_eq!(queue.panics(), 1);
    queue.handler().panics = false;
    let write = queue.submit(Op::Write, 0, 1, Some(&[9; 512])).unwrap();
    assert_eq!(done(&mut queue), (write, Ok(Done::Whole)));
}

#[test]
fn a_token_that_is_too_large_and_a_request_that_is_too_long_are_refused() {
    struct Greedy(Option<io::Error>);
    impl QueueHandler for Greedy {
        fn handle(&mut self, _: &Request, _: &mut Payload<'_>) -> Reply {
            Ok(Done::Whole).into()
        }
        fn started(&mut self, io: &mut dyn QueueIo) {
            // SAFETY: the entry names no memory.
            self.0 = unsafe { io.push(opcode::Nop::new().build(), 1 << 48) }.err();
        }
    }
    let mut queue = LocalQueue::new(Greedy(None), 1, 4096).unwrap();
    assert_eq!(queue.submit(Op::Read, 0, 9, None), None);
    assert!(queue.submit(Op::Read, 0, 8, None).is_some());
    let greedy = queue.finish().unwrap();
    assert_eq!(greedy.0.unwrap().raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn more_operations_than_the_ring_has_room_for_all_end() {
    struct Many {
        event: OwnedFd,
        ended: u32,
    }
    const COUNT: u32 = 5000;
    impl QueueHandler for Many {
        fn handle(&mut self, _: &Request, _: &mut Payload<'_>) -> Reply {
            Ok(Done::Whole).into()
        }
        fn started(&mut self, io: &mut dyn QueueIo) {
            for token in 0..COUNT {
                let poll = opcode::PollAdd::new(types::Fd(self.event.as_raw_fd()), libc::POLLIN as u32);
                // SAFETY: the file stays open until the queue has ended.
                unsafe { io.push(poll.build(), token.into()) }.unwrap();
            }
        }
        fn completed(&mut self, _: u64, _: i32, _: &mut dyn QueueIo) {
            self.ended += 1;
        }
    }
    // SAFETY: a fresh descriptor, owned once.
    let event = unsafe {
        use std::os::fd::FromRawFd;
        OwnedFd::from_raw_fd(libc::eventfd(0, 0))
    };
    let mut queue = LocalQueue::new(Many { event, ended: 0 }, 1, 4096).unwrap();
    queue.turn(Duration::from_millis(1)).unwrap();
    assert_eq!(queue.handler().ended, 0);
    let many = queue.finish().unwrap();
    assert_eq!(many.ended, COUNT);
}
