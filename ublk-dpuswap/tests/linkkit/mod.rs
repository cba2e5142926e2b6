//! Links on a real ring for tests and measurements: a small protocol, a node that speaks it, and a handler.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ublk_dpuswap::links::{LinkCodec, LinkStart, Links, Outbox, Parsed};
use ublk_dpuswap::proto::{Opcode, Status};
use ublk_dpuswap::remote::RemoteError;
use ublk_dpuswap::units::{BLOCK_BYTES, NodeId, RemoteBlock};
use ublk_target::local::LocalQueue;
use ublk_target::{Done, Payload, QueueHandler, QueueIo, Reply, Request};

/// Where the links' tokens start.
pub(crate) const FIRST_TOKEN: u64 = 1 << 41;
/// Whatever takes longer hangs.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) const REQUEST_BYTES: usize = 32;
pub(crate) const ANSWER_BYTES: usize = 16;
const REQUEST_MAGIC: u32 = 0x7265_7131;
const ANSWER_MAGIC: u32 = 0x616e_7331;

/// A request: eight numbers, then the data of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) id: u32,
    pub(crate) write: bool,
    pub(crate) number: u32,
    pub(crate) generation: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl Ask {
    fn encode(&self) -> [u8; REQUEST_BYTES] {
        let words = [
            REQUEST_MAGIC,
            self.id,
            self.write.into(),
            self.number,
            self.generation,
            self.offset,
            self.len,
            0,
        ];
        let mut bytes = [0; REQUEST_BYTES];
        bytes
            .chunks_exact_mut(4)
            .zip(words)
            .for_each(|(place, word)| place.copy_from_slice(&word.to_le_bytes()));
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; REQUEST_BYTES]) -> Ask {
        let word = |n: usize| u32::from_le_bytes(bytes[n * 4..n * 4 + 4].try_into().unwrap());
        assert_eq!(word(0), REQUEST_MAGIC, "what the client sends is out of step");
        Ask {
            id: word(1),
            write: word(2) != 0,
            number: word(3),
            generation: word(4),
            offset: word(5),
            len: word(6),
        }
    }
}

/// An answer's head: magic, id, status, length; the data of a read follows.
pub(crate) fn answer_head(id: u32, status: u32, len: usize) -> [u8; ANSWER_BYTES] {
    let mut bytes = [0; ANSWER_BYTES];
    let words = [ANSWER_MAGIC, id, status, len as u32];
    bytes.chunks_exact_mut(4).zip(words).for_each(|(place, word)| place.copy_from_slice(&word.to_le_bytes()));
    bytes
}

/// The client's side of it.
pub(crate) struct TestCodec;

impl LinkCodec for TestCodec {
    fn read(
        &mut self,
        id: u32,
        block: RemoteBlock,
        offset_bytes: u32,
        len_bytes: u32,
        out: &mut Outbox,
    ) -> bool {
        let RemoteBlock { number, generation } = block;
        out.put(&[
            &Ask { id, write: false, number, generation, offset: offset_bytes, len: len_bytes }.encode()
        ])
    }

    fn write(
        &mut self,
        id: u32,
        block: RemoteBlock,
        offset_bytes: u32,
        data: &[u8],
        out: &mut Outbox,
    ) -> bool {
        let RemoteBlock { number, generation } = block;
        let ask = Ask { id, write: true, number, generation, offset: offset_bytes, len: data.len() as u32 };
        out.put(&[&ask.encode(), data])
    }

    fn parse(&mut self, bytes: &mut [u8]) -> Result<Parsed, RemoteError> {
        let word =
            |n: usize| bytes.get(n * 4..n * 4 + 4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        let (Some(magic), Some(id), Some(status), Some(len)) = (word(0), word(1), word(2), word(3)) else {
            return Ok(Parsed::More(ANSWER_BYTES));
        };
        if magic != ANSWER_MAGIC {
            return Err(RemoteError::Mixed);
        }
        let used = ANSWER_BYTES + len as usize;
        if bytes.len() < used {
            return Ok(Parsed::More(used));
        }
        let result: Result<Range<usize>, _> = match status {
            0 => Ok(ANSWER_BYTES..used),
            _ => Err((Opcode::Read, Status::NotYours)),
        };
        Ok(Parsed::Message { used, id, result })
    }
}

/// What a block holds from byte `offset` on, on every node: `len` bytes.
pub(crate) fn content(number: u32, offset: usize, len: usize) -> &'static [u8] {
    const STARTS: usize = 65_521;
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes =
        BYTES.get_or_init(|| (0..STARTS + BLOCK_BYTES).map(|at| (at * 31 + (at >> 8) * 7) as u8).collect());
    let from = number as usize * 4099 % STARTS + offset;
    &bytes[from..from + len]
}

/// A node's socket on the client's side, as links want it.
pub(crate) fn start(socket: UnixStream) -> LinkStart {
    LinkStart::Socket { socket: OwnedFd::from(socket), codec: Box::new(TestCodec) }
}

/// One arrival, kept.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) op: u32,
    pub(crate) node: NodeId,
    pub(crate) result: Result<Vec<u8>, RemoteError>,
}

/// A handler that only has links.
pub(crate) struct Linked {
    pub(crate) links: Links,
    pub(crate) opens: Vec<(NodeId, LinkStart)>,
    pub(crate) opened: Vec<io::Result<()>>,
    pub(crate) arrived: Vec<Arrived>,
    pub(crate) spin_ns: u64,
}

impl QueueHandler for Linked {
    fn handle(&mut self, _: &Request, _: &mut Payload<'_>) -> Reply {
        Ok(Done::Whole).into()
    }

    fn completed(&mut self, token: u64, result: i32, io: &mut dyn QueueIo) {
        assert!(self.links.owns(token));
        self.links.completed(token, result, io);
    }

    fn turn(&mut self, io: &mut dyn QueueIo) {
        for (node, start) in self.opens.drain(..) {
            self.opened.push(self.links.open(node, start, io));
        }
        while let Some(arrival) = self.links.next() {
            let result = arrival.result.map(|data| data.to_vec());
            self.arrived.push(Arrived { op: arrival.op, node: arrival.node, result });
        }
        self.links.submit(io);
    }

    fn spin_ns(&self) -> u64 {
        if self.links.in_flight() > 0 { self.spin_ns } else { 0 }
    }
}

/// A queue with links to `nodes` nodes.
pub(crate) fn queue(nodes: usize, ops: usize) -> LocalQueue<Linked> {
    let links = Links::new(nodes, ops, FIRST_TOKEN);
    let linked = Linked { links, opens: Vec::new(), opened: Vec::new(), arrived: Vec::new(), spin_ns: 0 };
    LocalQueue::new(linked, 1, 4096).unwrap()
}

/// Opens a link in the next turn.
pub(crate) fn open(queue: &mut LocalQueue<Linked>, node: u16, start: LinkStart) {
    queue.handler().opens.push((NodeId(node), start));
    queue.turn(Duration::ZERO).unwrap();
    queue.handler().opened.pop().unwrap().unwrap();
}

/// Turns until `done`.
pub(crate) fn until(queue: &mut LocalQueue<Linked>, what: &str, mut done: impl FnMut(&mut Linked) -> bool) {
    let start = Instant::now();
    while !done(queue.handler()) {
        assert!(start.elapsed() < LONG, "{what} does not come");
        queue.turn(Duration::from_millis(100)).unwrap();
    }
}

/// Turns until `count` operations have arrived, and takes them.
pub(crate) fn arrivals(queue: &mut LocalQueue<Linked>, count: usize) -> Vec<Arrived> {
    until(queue, "an arrival", |linked| linked.arrived.len() >= count);
    std::mem::take(&mut queue.handler().arrived)
}

/// The node's end of a connection; `None` at its end.
pub(crate) fn next_ask(socket: &mut impl Read, data: &mut Vec<u8>) -> Option<Ask> {
    let mut head = [0; REQUEST_BYTES];
    socket.read_exact(&mut head).ok()?;
    let ask = Ask::decode(&head);
    assert!(ask.offset as usize + ask.len as usize <= BLOCK_BYTES);
    data.resize(if ask.write { ask.len as usize } else { 0 }, 0);
    socket.read_exact(data).ok()?;
    Some(ask)
}

/// The right answer.
pub(crate) fn answer(ask: &Ask, data: &[u8]) -> Vec<u8> {
    let expected = content(ask.number, ask.offset as usize, ask.len as usize);
    if ask.write {
        return answer_head(ask.id, u32::from(data != expected), 0).to_vec();
    }
    [&answer_head(ask.id, 0, expected.len()), expected].concat()
}

/// Answers everything in order until the client hangs up.
pub(crate) fn serve(mut socket: UnixStream) {
    let mut data = Vec::new();
    while let Some(ask) = next_ask(&mut socket, &mut data) {
        if socket.write_all(&answer(&ask, &data)).is_err() {
            return;
        }
    }
}
