//! Nothing allocates while pages move over links: not a request, not an answer, not a refusal, not the end of a link.
#![allow(clippy::unwrap_used, missing_docs)]

mod linkkit;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use linkkit::{ANSWER_BYTES, Ask, LONG, REQUEST_BYTES, answer_head, start};
use ublk_dpuswap::links::{LinkStart, Links};
use ublk_dpuswap::units::{NodeId, RemoteBlock};
use ublk_target::local::LocalQueue;
use ublk_target::{Done, Payload, QueueHandler, QueueIo, Reply, Request};

struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Only the queue's thread counts, and only while this is set.
    static ARMED: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if ARMED.try_with(Cell::get).unwrap_or(false) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches only atomics and a plain cell.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(ptr, layout, new) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Reads and writes pages for requests that stay pending, in turn on two links.
struct Pages {
    links: Links,
    opens: Vec<(NodeId, LinkStart)>,
    turns: u32,
    failed: u32,
    close: bool,
}

impl QueueHandler for Pages {
    fn handle(&mut self, request: &Request, payload: &mut Payload<'_>) -> Reply {
        let (tag, block) = (request.tag.into(), RemoteBlock::numbered(7));
        let node = NodeId(request.tag % 2);
        let started = match request.op {
            ublk_target::Op::Write => {
                self.links.write(node, block, 4096, payload.buffer_mut().unwrap_or_default(), tag)
            }
            _ => self.links.read(node, block, 4096, request.len_bytes() as u32, tag),
        };
        match started {
            Ok(()) => Reply::pending(),
            Err(_) => Err(ublk_target::Errno::EIO).into(),
        }
    }

    fn completed(&mut self, token: u64, result: i32, io: &mut dyn QueueIo) {
        self.links.completed(token, result, io);
    }

    fn turn(&mut self, io: &mut dyn QueueIo) {
        self.turns += 1;
        while let Some((node, start)) = self.opens.pop() {
            self.links.open(node, start, io).unwrap();
        }
        if std::mem::take(&mut self.close) {
            self.links.close(NodeId(0));
        }
        while let Some(arrival) = self.links.next() {
            let tag = arrival.op as u16;
            let reply = match arrival.result {
                Ok(data) => io.payload(tag).store(0, data).map(|()| Done::Whole).map_err(Into::into),
                Err(_) => {
                    self.failed += 1;
                    Err(ublk_target::Errno::EIO)
                }
            };
            io.complete(tag, reply.into());
        }
        self.links.submit(io);
    }
}

/// A node that answers reads with 5s, without allocating either: it shares this process.
fn echo(mut socket: UnixStream) {
    let mut data = vec![5; 8192];
    let mut head = [0; REQUEST_BYTES];
    while socket.read_exact(&mut head).is_ok() {
        let ask = Ask::decode(&head);
        let len = ask.len as usize;
        let mut out = [0; ANSWER_BYTES + 8192];
        let sent = if ask.write {
            socket.read_exact(&mut data[..len]).unwrap();
            out[..ANSWER_BYTES].copy_from_slice(&answer_head(ask.id, 0, 0));
            ANSWER_BYTES
        } else {
            out[..ANSWER_BYTES].copy_from_slice(&answer_head(ask.id, 0, len));
            out[ANSWER_BYTES..ANSWER_BYTES + len].fill(5);
            ANSWER_BYTES + len
        };
        if socket.write_all(&out[..sent]).is_err() {
            return;
        }
    }
}

#[test]
fn pages_move_over_links_without_an_allocation() {
    let mut opens = Vec::new();
    for node in 0..2 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        opens.push((NodeId(node), start(ours)));
        std::thread::spawn(move || echo(theirs));
    }
    let pages = Pages { links: Links::new(2, 64, 0), opens, turns: 0, failed: 0, close: false };
    let mut queue = LocalQueue::new(pages, 32, 8192).unwrap();
    let began = Instant::now();
    let round = |queue: &mut LocalQueue<Pages>, requests: u32| {
        let (mut asked, mut done, mut wrong) = (0, 0, 0);
        while done < requests {
            while asked < requests {
                let op = if asked % 3 == 0 { ublk_target::Op::Write } else { ublk_target::Op::Read };
                if queue.submit(op, 0, 8 + asked % 9, None).is_none() {
                    break;
                }
                asked += 1;
            }
            queue.turn(Duration::from_millis(100)).unwrap();
            while let Some((tag, result)) = queue.take_done() {
                done += 1;
                wrong += u32::from(result.is_err());
                let _ = tag;
            }
            assert!(began.elapsed() < LONG);
        }
        wrong
    };
    queue.turn(Duration::ZERO).unwrap();
    assert_eq!(round(&mut queue, 500), 0);
    ARMED.set(true);
    let wrong = round(&mut queue, 5000);
    ARMED.set(false);
    assert_eq!((wrong, COUNT.load(Ordering::SeqCst)), (0, 0), "wrong answers, allocations");
    // A link goes with operations in flight: they fail, and that allocates nothing either.
    queue.handler().close = true;
    ARMED.set(true);
    let wrong = round(&mut queue, 200);
    ARMED.set(false);
    assert_eq!(COUNT.load(Ordering::SeqCst), 0, "allocations when a link goes");
    assert!(wrong > 0);
    drop(queue);
}
