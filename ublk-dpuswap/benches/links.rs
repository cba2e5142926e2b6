//! What a 4 KiB read over a link costs: a queue's loop and its io_uring against a node in another thread.
//!
//! `cargo bench -p ublk-dpuswap --bench links [-- COUNT]`. The request is 32 bytes, the answer 16 and 4 KiB of data, which end in the
//! request's buffer. The node answers at once; it spins, or blocks as the queue does. Beside it, the same exchange by plain
//! non-blocking reads and writes that spin: the floor. Two processors at least, or a spinning pair waits for the scheduler.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/linkkit/mod.rs"]
mod linkkit;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use linkkit::{ANSWER_BYTES, Ask, REQUEST_BYTES, TestCodec, answer_head};
use ublk_dpuswap::links::{LinkStart, Links};
use ublk_dpuswap::units::{NodeId, RemoteBlock};
use ublk_target::local::LocalQueue;
use ublk_target::{Done, Errno, Op, Payload, QueueHandler, QueueIo, Reply, Request};

const PAGE: usize = 4096;
/// How many reads of each kind come before those that are measured.
const WARM_UP: usize = 500;

/// Reads to measure of each kind: the first number among the arguments.
static REQUESTS: AtomicUsize = AtomicUsize::new(40_000);

trait Stream: Read + Write + Send + 'static {
    fn nonblocking(&self, on: bool);
    fn fd(self) -> OwnedFd;
}

impl Stream for UnixStream {
    fn nonblocking(&self, on: bool) {
        self.set_nonblocking(on).unwrap();
    }
    fn fd(self) -> OwnedFd {
        self.into()
    }
}

impl Stream for TcpStream {
    fn nonblocking(&self, on: bool) {
        self.set_nonblocking(on).unwrap();
    }
    fn fd(self) -> OwnedFd {
        self.into()
    }
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let theirs = listener.accept().unwrap().0;
    ours.set_nodelay(true).unwrap();
    theirs.set_nodelay(true).unwrap();
    (ours, theirs)
}

/// Moves some bytes, spinning while there are none; `false` at the end.
fn spin(stop: &AtomicBool, mut step: impl FnMut() -> io::Result<usize>) -> Option<usize> {
    loop {
        match step() {
            Ok(0) => return None,
            Ok(bytes) => return Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stop.load(Relaxed) {
                    return None;
                }
                std::hint::spin_loop();
            }
            Err(_) => return None,
        }
    }
}

/// A node: takes whatever requests are there, answers all of them with one write.
fn node(mut socket: impl Stream, spins: bool, stop: &AtomicBool) {
    socket.nonblocking(spins);
    let mut inbox = vec![0; 1 << 16];
    let mut outbox = vec![0x5a; 64 * (ANSWER_BYTES + PAGE)];
    let mut have = 0;
    while let Some(bytes) = spin(stop, || socket.read(&mut inbox[have..])) {
        have += bytes;
        let (mut used, mut out) = (0, 0);
        while have - used >= REQUEST_BYTES {
            let ask = Ask::decode(inbox[used..used + REQUEST_BYTES].try_into().unwrap());
            used += REQUEST_BYTES;
            outbox[out..out + ANSWER_BYTES].copy_from_slice(&answer_head(ask.id, 0, PAGE));
            out += ANSWER_BYTES + PAGE;
        }
        inbox.copy_within(used..have, 0);
        have -= used;
        let mut sent = 0;
        while sent < out {
            match spin(stop, || socket.write(&outbox[sent..out])) {
                Some(bytes) => sent += bytes,
                None => return,
            }
        }
    }
}

/// A device whose pages are on the node.
struct Pages {
    links: Links,
    start: Option<LinkStart>,
    spin_ns: u64,
}

impl QueueHandler for Pages {
    fn handle(&mut self, request: &Request, _: &mut Payload<'_>) -> Reply {
        let block = RemoteBlock::numbered(0);
        match self.links.read(NodeId(0), block, 0, request.len_bytes() as u32, request.tag.into()) {
            Ok(()) => Reply::pending(),
            Err(_) => Err(Errno::EIO).into(),
        }
    }

    fn completed(&mut self, token: u64, result: i32, io: &mut dyn QueueIo) {
        self.links.completed(token, result, io);
    }

    fn turn(&mut self, io: &mut dyn QueueIo) {
        if let Some(start) = self.start.take() {
            self.links.open(NodeId(0), start, io).unwrap();
        }
        while let Some(arrival) = self.links.next() {
            let tag = arrival.op as u16;
            let stored =
                arrival.result.map_err(|_| Errno::EIO).and_then(|data| Ok(io.payload(tag).store(0, data)?));
            io.complete(tag, stored.map(|()| Done::Whole).into());
        }
        self.links.submit(io);
    }

    fn spin_ns(&self) -> u64 {
        if self.links.in_flight() > 0 { self.spin_ns } else { 0 }
    }
}

fn line(name: &str, mut times_ns: Vec<u64>, took: Duration) {
    times_ns.sort_unstable();
    let at = |part: f64| times_ns[((times_ns.len() - 1) as f64 * part) as usize] as f64 / 1000.0;
    println!(
        "{name:<44} {:>8.1} {:>8.1} {:>8.1} {:>10.0}",
        at(0.5),
        at(0.99),
        at(0.999),
        times_ns.len() as f64 / took.as_secs_f64()
    );
}

/// Reads through a queue with `depth` in flight.
fn linked(name: &str, pair: (impl Stream, impl Stream), depth: u16, spins: bool) {
    let requests = REQUESTS.load(Relaxed);
    let stop = Arc::new(AtomicBool::new(false));
    let (ours, theirs) = pair;
    let stopped = Arc::clone(&stop);
    let peer = thread::spawn(move || node(theirs, spins, &stopped));
    let start = LinkStart::Socket { socket: ours.fd(), codec: Box::new(TestCodec) };
    let spin_ns = if spins { 200_000 } else { 0 };
    let pages = Pages { links: Links::new(1, depth.into(), 0), start: Some(start), spin_ns };
    let mut queue = LocalQueue::new(pages, depth, PAGE).unwrap();
    queue.turn(Duration::ZERO).unwrap();
    let mut began = vec![Instant::now(); depth.into()];
    let mut times_ns = Vec::with_capacity(requests);
    let (mut asked, mut done) = (0, 0);
    let mut since = Instant::now();
    while done < WARM_UP + requests {
        while asked < WARM_UP + requests {
            let Some(tag) = queue.submit(Op::Read, 0, (PAGE / 512) as u32, None) else { break };
            began[usize::from(tag)] = Instant::now();
            asked += 1;
        }
        queue.turn(Duration::from_secs(1)).unwrap();
        while let Some((tag, result)) = queue.take_done() {
            result.unwrap();
            done += 1;
            if done > WARM_UP {
                times_ns.push(began[usize::from(tag)].elapsed().as_nanos() as u64);
            } else {
                since = Instant::now();
            }
        }
    }
    let took = since.elapsed();
    assert_eq!(queue.data(0), [0x5a; PAGE]);
    stop.store(true, Relaxed);
    drop(queue);
    peer.join().unwrap();
    line(name, times_ns, took);
}

/// The same exchange without a queue, one at a time.
fn floor(name: &str, pair: (impl Stream, impl Stream)) {
    let requests = REQUESTS.load(Relaxed);
    let stop = Arc::new(AtomicBool::new(false));
    let (mut ours, theirs) = pair;
    let stopped = Arc::clone(&stop);
    let peer = thread::spawn(move || node(theirs, true, &stopped));
    ours.nonblocking(true);
    let mut codec_out = ublk_dpuswap::links::Outbox::new(REQUEST_BYTES);
    let codec: &mut dyn ublk_dpuswap::links::LinkCodec = &mut TestCodec;
    assert!(codec.read(1, RemoteBlock::numbered(0), 0, PAGE as u32, &mut codec_out));
    let mut answer = vec![0; ANSWER_BYTES + PAGE];
    let mut times_ns = Vec::with_capacity(requests);
    let mut since = Instant::now();
    for round in 0..WARM_UP + requests {
        let began = Instant::now();
        assert_eq!(ours.write(codec_out.bytes()).unwrap(), REQUEST_BYTES);
        let mut have = 0;
        while have < answer.len() {
            have += spin(&stop, || ours.read(&mut answer[have..])).unwrap();
        }
        if round >= WARM_UP {
            times_ns.push(began.elapsed().as_nanos() as u64);
        } else {
            since = Instant::now();
        }
    }
    let took = since.elapsed();
    stop.store(true, Relaxed);
    drop(ours);
    peer.join().unwrap();
    line(name, times_ns, took);
}

fn main() {
    if let Some(requests) = std::env::args().find_map(|argument| argument.parse().ok()) {
        REQUESTS.store(requests, Relaxed);
    }
    println!("{:<44} {:>8} {:>8} {:>8} {:>10}", "4 KiB reads, us", "p50", "p99", "p99.9", "per s");
    let unix = || UnixStream::pair().unwrap();
    for _round in 0..2 {
        floor("unix, plain spinning reads and writes", unix());
        linked("unix, queue and links, 1 in flight, spinning", unix(), 1, true);
        linked("unix, queue and links, 32 in flight, spinning", unix(), 32, true);
        linked("unix, queue and links, 1 in flight, asleep", unix(), 1, false);
        floor("tcp, plain spinning reads and writes", tcp());
        linked("tcp, queue and links, 1 in flight, spinning", tcp(), 1, true);
        linked("tcp, queue and links, 32 in flight, spinning", tcp(), 32, true);
        linked("tcp, queue and links, 1 in flight, asleep", tcp(), 1, false);
    }
}
