//! Links over real sockets and files: everything that was started arrives once, whatever the nodes do.
#![allow(clippy::unwrap_used, missing_docs)]

mod linkkit;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use linkkit::{
    ANSWER_BYTES, Ask, FIRST_TOKEN, LONG, Linked, answer, answer_head, arrivals, content, next_ask, open,
    queue, serve, start, until,
};
use ublk_dpuswap::links::{LINK_TOKENS, LinkMemory, LinkStart};
use ublk_dpuswap::proto::{Opcode, Status};
use ublk_dpuswap::remote::RemoteError;
use ublk_dpuswap::units::{BLOCK_BYTES, Choices, NodeId, RemoteBlock};
use ublk_target::local::LocalQueue;

fn block(number: u32) -> RemoteBlock {
    RemoteBlock { number, generation: 9 }
}

fn pattern(number: u32, offset: u32, len: usize) -> &'static [u8] {
    content(number, offset as usize, len)
}

/// A link of node `node` to a thread that runs `peer`.
fn linked(
    queue: &mut LocalQueue<Linked>,
    node: u16,
    peer: impl FnOnce(UnixStream) + Send + 'static,
) -> thread::JoinHandle<()> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    open(queue, node, start(ours));
    thread::spawn(move || peer(theirs))
}

fn read(queue: &mut LocalQueue<Linked>, node: u16, number: u32, offset: u32, len: u32, op: u32) {
    queue.handler().links.read(NodeId(node), block(number), offset, len, op).unwrap();
}

fn is_open(queue: &mut LocalQueue<Linked>, node: u16) -> bool {
    queue.handler().links.is_open(NodeId(node))
}

#[test]
fn reads_and_writes_of_all_sizes_come_back_with_their_data() {
    let mut queue = queue(2, 64);
    let peer = linked(&mut queue, 1, serve);
    let sizes = [1, 64, 4096, 65_536, BLOCK_BYTES as u32];
    for (op, len) in (0..).zip(sizes) {
        let offset = BLOCK_BYTES as u32 - len;
        read(&mut queue, 1, op, offset, len, op);
        let data = pattern(op, offset, len as usize);
        let write = |queue: &mut LocalQueue<Linked>| {
            queue.handler().links.write(NodeId(1), block(op), offset, data, 100 + op)
        };
        if let Err(error) = write(&mut queue) {
            // Two large ones need two sends.
            assert!(matches!(error, RemoteError::Refused(Opcode::Write, Status::Busy)) && op == 4, "{error}");
            queue.turn(Duration::ZERO).unwrap();
            write(&mut queue).unwrap();
        }
    }
    for arrived in arrivals(&mut queue, 10) {
        assert_eq!(arrived.node, NodeId(1));
        let data = arrived.result.unwrap();
        if arrived.op < 100 {
            let len = sizes[arrived.op as usize];
            assert_eq!(data, pattern(arrived.op, BLOCK_BYTES as u32 - len, len as usize));
        } else {
            assert!(data.is_empty());
        }
    }
    assert_eq!(queue.handler().links.in_flight(), 0);
    let linked = queue.finish().unwrap();
    drop(linked);
    peer.join().unwrap();
}

#[test]
fn what_cannot_be_started_is_refused_and_does_not_arrive() {
    let mut queue = queue(2, 3);
    let (ours, _theirs) = UnixStream::pair().unwrap();
    open(&mut queue, 0, start(ours));
    let links = &mut queue.handler().links;
    let refused = |result: Result<(), RemoteError>| match result.unwrap_err() {
        RemoteError::Refused(_, status) => status,
        other => panic!("{other}"),
    };
    assert_eq!(refused(links.read(NodeId(0), block(0), 0, 0, 1)), Status::BadRequest);
    assert_eq!(refused(links.read(NodeId(0), block(0), 1, BLOCK_BYTES as u32, 1)), Status::BadRequest);
    assert_eq!(refused(links.read(NodeId(0), block(0), u32::MAX, u32::MAX, 1)), Status::BadRequest);
    assert_eq!(refused(links.write(NodeId(0), block(0), 0, &[], 1)), Status::BadRequest);
    for node in [1, 2, u16::MAX] {
        assert!(matches!(links.read(NodeId(node), block(0), 0, 1, 1), Err(RemoteError::NotConnected)));
    }
    let large = vec![0; BLOCK_BYTES];
    links.write(NodeId(0), block(0), 0, &large, 1).unwrap();
    assert_eq!(refused(links.write(NodeId(0), block(0), 0, &large, 2)), Status::Busy);
    links.read(NodeId(0), block(0), 0, 1, 3).unwrap();
    links.read(NodeId(0), block(0), 0, 1, 4).unwrap();
    assert_eq!(refused(links.read(NodeId(0), block(0), 0, 1, 5)), Status::Busy);
    assert_eq!(links.in_flight(), 3);
    assert!(links.owns(FIRST_TOKEN) && links.owns(FIRST_TOKEN + LINK_TOKENS - 1));
    assert!(!links.owns(FIRST_TOKEN - 1) && !links.owns(FIRST_TOKEN + LINK_TOKENS) && !links.owns(0));
    links.close(NodeId(0));
    let mut failed: Vec<_> = arrivals(&mut queue, 3).into_iter().map(|arrived| arrived.op).collect();
    failed.sort_unstable();
    assert_eq!(failed, [1, 3, 4]);
}

/// What each of two nodes has in flight when the first breaks.
fn breaks(peer: impl FnOnce(UnixStream, Ask) + Send + 'static) -> Vec<RemoteError> {
    let mut queue = queue(2, 64);
    let bad = linked(&mut queue, 0, move |mut socket| {
        let mut data = Vec::new();
        let first = next_ask(&mut socket, &mut data).unwrap();
        for _ in 0..4 {
            next_ask(&mut socket, &mut data).unwrap();
        }
        peer(socket, first);
    });
    let good = linked(&mut queue, 1, serve);
    for op in 0..5 {
        read(&mut queue, 0, op, 0, 4096, op);
        read(&mut queue, 1, op, 0, 4096, 10 + op);
    }
    let all = arrivals(&mut queue, 10);
    let mut errors = Vec::new();
    for arrived in all {
        match arrived.result {
            Ok(data) => {
                assert_eq!(arrived.node, NodeId(1));
                assert_eq!(data, pattern(arrived.op - 10, 0, 4096));
            }
            Err(error) => {
                assert_eq!(arrived.node, NodeId(0));
                errors.push(error);
            }
        }
    }
    assert_eq!(errors.len(), 5);
    assert!(!is_open(&mut queue, 0) && is_open(&mut queue, 1));
    bad.join().unwrap();
    // The node comes back.
    let again = linked(&mut queue, 0, serve);
    read(&mut queue, 0, 7, 3, 100, 77);
    assert_eq!(arrivals(&mut queue, 1).pop().unwrap().result.unwrap(), pattern(7, 3, 100));
    drop(queue);
    again.join().unwrap();
    good.join().unwrap();
    errors
}

#[test]
fn a_node_that_hangs_up_costs_only_its_own_operations() {
    assert!(matches!(breaks(|_, _| ())[0], RemoteError::Closed));
}

#[test]
fn an_answer_cut_short_by_the_end_costs_only_its_own_operations() {
    breaks(|mut socket, ask| socket.write_all(&answer(&ask, &[])[..ANSWER_BYTES + 100]).unwrap());
}

#[test]
fn garbage_costs_only_its_own_operations() {
    let error = breaks(|mut socket, _| {
        socket.write_all(&[0xff; 5000]).unwrap();
        // Until the link is given up.
        let _ = socket.read(&mut [0]);
    });
    assert!(matches!(error[0], RemoteError::Mixed));
}

#[test]
fn answers_that_fit_no_operation_break_the_link() {
    let answers: [fn(&Ask) -> Vec<u8>; 4] = [
        |ask| answer(&Ask { id: ask.id ^ 0x1_0000, ..*ask }, &[]),
        |ask| answer(&Ask { id: u32::MAX, ..*ask }, &[]),
        |ask| answer(&Ask { len: ask.len - 1, ..*ask }, &[]),
        // More than any inbox has room for.
        |ask| answer_head(ask.id, 0, 3 * BLOCK_BYTES).to_vec(),
    ];
    for wrong in answers {
        let errors = breaks(move |mut socket, ask| {
            socket.write_all(&wrong(&ask)).unwrap();
            let _ = socket.read(&mut [0]);
        });
        assert!(matches!(errors[0], RemoteError::Mixed), "{errors:?}");
    }
}

#[test]
fn a_second_answer_to_the_same_request_breaks_the_link() {
    let mut queue = queue(1, 8);
    let peer = linked(&mut queue, 0, |mut socket| {
        let ask = next_ask(&mut socket, &mut Vec::new()).unwrap();
        let bytes = answer(&ask, &[]);
        socket.write_all(&[bytes.clone(), bytes].concat()).unwrap();
        let _ = socket.read(&mut [0]);
    });
    read(&mut queue, 0, 1, 0, 64, 1);
    assert!(arrivals(&mut queue, 1).pop().unwrap().result.is_ok());
    until(&mut queue, "the break", |linked| !linked.links.is_open(NodeId(0)));
    peer.join().unwrap();
}

#[test]
fn what_a_node_said_before_it_hung_up_counts() {
    let mut queue = queue(1, 8);
    let peer = linked(&mut queue, 0, |mut socket| {
        let mut bytes = Vec::new();
        for _ in 0..3 {
            bytes.extend(answer(&next_ask(&mut socket, &mut Vec::new()).unwrap(), &[]));
        }
        socket.write_all(&bytes).unwrap();
    });
    for op in 0..4 {
        read(&mut queue, 0, op, 0, 4096, op);
    }
    queue.turn(Duration::ZERO).unwrap();
    peer.join().unwrap();
    let all = arrivals(&mut queue, 4);
    assert_eq!(all.iter().filter(|arrived| arrived.result.is_ok()).count(), 3);
    assert_eq!(all.last().unwrap().op, 3);
}

#[test]
fn a_refusal_ends_its_operation_and_not_the_link() {
    let mut queue = queue(1, 8);
    let peer = linked(&mut queue, 0, |mut socket| {
        let ask = next_ask(&mut socket, &mut Vec::new()).unwrap();
        socket.write_all(&answer_head(ask.id, 1, 0)).unwrap();
        serve(socket);
    });
    read(&mut queue, 0, 1, 0, 64, 1);
    let refused = arrivals(&mut queue, 1).pop().unwrap();
    assert!(matches!(refused.result, Err(RemoteError::Refused(Opcode::Read, Status::NotYours))));
    read(&mut queue, 0, 1, 0, 64, 2);
    assert!(arrivals(&mut queue, 1).pop().unwrap().result.is_ok());
    drop(queue);
    peer.join().unwrap();
}

#[test]
fn a_link_that_is_closed_and_opened_anew_forgets_what_the_old_one_still_says() {
    let mut queue = queue(1, 64);
    let mut peers = Vec::new();
    for round in 0..20 {
        // The old node answers late: after the new link is open.
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        open(&mut queue, 0, start(ours));
        for op in 0..3 {
            read(&mut queue, 0, op, 0, 4096, 1000 + op);
        }
        queue.turn(Duration::ZERO).unwrap();
        queue.handler().links.close(NodeId(0));
        assert!(!is_open(&mut queue, 0));
        let peer = linked(&mut queue, 0, serve);
        peers.push(peer);
        if let Some(ask) = next_ask(&mut theirs, &mut Vec::new()) {
            let _ = theirs.write_all(&answer(&ask, &[]));
        }
        read(&mut queue, 0, round, 5, 4096, round);
        for arrived in arrivals(&mut queue, 4) {
            match arrived.result {
                Ok(data) => {
                    assert_eq!(arrived.op, round);
                    assert_eq!(data, pattern(round, 5, 4096));
                }
                Err(error) => {
                    assert!(arrived.op >= 1000 && matches!(error, RemoteError::NotConnected), "{error}");
                }
            }
        }
        assert_eq!(queue.handler().links.in_flight(), 0);
    }
    drop(queue);
    peers.into_iter().for_each(|peer| peer.join().unwrap());
}

#[test]
fn a_socket_that_does_not_block_is_waited_for() {
    let mut queue = queue(1, 8);
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    open(&mut queue, 0, start(ours));
    queue.turn(Duration::from_millis(10)).unwrap();
    assert!(is_open(&mut queue, 0));
    let peer = thread::spawn(move || serve(theirs));
    read(&mut queue, 0, 1, 0, 64, 1);
    assert!(arrivals(&mut queue, 1).pop().unwrap().result.is_ok());
    drop(queue);
    peer.join().unwrap();
}

#[test]
fn a_queue_stops_with_operations_in_flight() {
    let mut queue = queue(3, 64);
    let mut silent = Vec::new();
    for node in 0..3 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        open(&mut queue, node, start(ours));
        silent.push(theirs);
        for op in 0..10 {
            read(&mut queue, node, op, 0, 4096, op);
        }
        // More than a socket takes at once: the send stays in the kernel.
        queue.handler().links.write(NodeId(node), block(0), 0, &vec![0; BLOCK_BYTES], 10).unwrap();
    }
    queue.turn(Duration::from_millis(5)).unwrap();
    let mut linked = queue.finish().unwrap();
    while linked.links.next().is_some_and(|arrival| arrival.result.is_err()) {}
    assert_eq!(linked.links.in_flight(), 0);
}

#[test]
fn a_file_is_read_and_written_by_block_and_offset() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4 * BLOCK_BYTES as u64).unwrap();
    let mut queue = queue(1, 200);
    open(&mut queue, 0, LinkStart::File(OwnedFd::from(file)));
    // Large and small ones, until the buffer is full.
    let writes = [(0, 0, BLOCK_BYTES), (1, 100, 65_537), (2, 4096, 4096), (3, BLOCK_BYTES as u32 - 1, 1)];
    for (op, (number, offset, len)) in (0..).zip(writes) {
        let data = pattern(number, offset, len);
        queue.handler().links.write(NodeId(0), block(number), offset, data, op).unwrap();
    }
    assert!(arrivals(&mut queue, 4).into_iter().all(|arrived| arrived.result.unwrap().is_empty()));
    for (op, (number, offset, len)) in (0..).zip(writes) {
        read(&mut queue, 0, number, offset, len as u32, op);
    }
    for arrived in arrivals(&mut queue, 4) {
        let (number, offset, len) = writes[arrived.op as usize];
        assert_eq!(arrived.result.unwrap(), pattern(number, offset, len), "{}", arrived.op);
    }
    let mut started = 0;
    while queue.handler().links.read(NodeId(0), block(2), 4096, 4096, started).is_ok() {
        started += 1;
    }
    assert_eq!(started, 64);
    assert!(
        arrivals(&mut queue, 64).into_iter().all(|arrived| arrived.result.unwrap() == pattern(2, 4096, 4096))
    );
    // Behind the end: that operation's own failure.
    read(&mut queue, 0, 4, 0, 64, 1);
    let failed = arrivals(&mut queue, 1).pop().unwrap();
    assert!(matches!(failed.result, Err(RemoteError::Refused(Opcode::Read, Status::BadRequest))));
    assert!(is_open(&mut queue, 0));
    // Closed in the middle, and opened anew.
    for op in 0..64 {
        read(&mut queue, 0, 2, 0, 4096, op);
    }
    queue.turn(Duration::ZERO).unwrap();
    queue.handler().arrived.clear();
    let left = queue.handler().links.in_flight();
    queue.handler().links.close(NodeId(0));
    let other = tempfile::tempfile().unwrap();
    other.set_len(BLOCK_BYTES as u64).unwrap();
    open(&mut queue, 0, LinkStart::File(OwnedFd::from(other)));
    read(&mut queue, 0, 0, 0, 4096, 99);
    for arrived in arrivals(&mut queue, left + 1) {
        match arrived.result {
            Ok(data) => assert!(arrived.op == 99 && data == [0; 4096]),
            Err(error) => assert!(arrived.op < 64 && matches!(error, RemoteError::NotConnected)),
        }
    }
}

/// Memory that refuses block 13.
struct Table(Mutex<Vec<u8>>);

impl Table {
    fn range(&self, opcode: Opcode, block: RemoteBlock) -> Result<usize, RemoteError> {
        match block.number {
            13 => Err(RemoteError::Refused(opcode, Status::NotYours)),
            number => Ok(number as usize * 4096),
        }
    }
}

impl LinkMemory for Table {
    fn read(&self, block: RemoteBlock, offset_bytes: u32, data: &mut [u8]) -> Result<(), RemoteError> {
        let from = self.range(Opcode::Read, block)? + offset_bytes as usize;
        data.copy_from_slice(&self.0.lock().unwrap()[from..from + data.len()]);
        Ok(())
    }

    fn write(&self, block: RemoteBlock, offset_bytes: u32, data: &[u8]) -> Result<(), RemoteError> {
        let from = self.range(Opcode::Write, block)? + offset_bytes as usize;
        self.0.lock().unwrap()[from..from + data.len()].copy_from_slice(data);
        Ok(())
    }
}

#[test]
fn memory_answers_without_the_ring() {
    let mut queue = queue(1, 8);
    open(&mut queue, 0, LinkStart::Memory(Arc::new(Table(Mutex::new(vec![0; 1 << 20])))));
    let links = &mut queue.handler().links;
    links.write(NodeId(0), block(3), 8, &[7; 100], 1).unwrap();
    links.read(NodeId(0), block(3), 0, 108, 2).unwrap();
    links.read(NodeId(0), block(13), 0, 1, 3).unwrap();
    links.write(NodeId(0), block(13), 0, &[1], 4).unwrap();
    let mut ends = Vec::new();
    while let Some(arrival) = links.next() {
        ends.push((arrival.op, arrival.result.map(|data| data.to_vec()).map_err(|error| error.to_string())));
    }
    assert_eq!(ends[0], (1, Ok(vec![])));
    assert_eq!(ends[1], (2, Ok([vec![0; 8], vec![7; 100]].concat())));
    assert!(ends[2].1.is_err() && ends[3].1.is_err());
    links.read(NodeId(0), block(3), 0, 108, 5).unwrap();
    links.close(NodeId(0));
    let arrival = links.next().unwrap();
    assert!(arrival.op == 5 && matches!(arrival.result, Err(RemoteError::NotConnected)));
    assert!(links.next().is_none());
}

/// A node with moods: answers in any order and in pieces, and after a while hangs up, sends garbage, or stops in an answer.
fn moody(socket: UnixStream, seed: u64) {
    let mut choices = Choices::new(seed);
    let mut lives = 5 + choices.below(200);
    let mut waiting: Vec<Vec<u8>> = Vec::new();
    let mut data = Vec::new();
    let (mut asks, mut out) = (socket.try_clone().unwrap(), socket);
    loop {
        // Without a request for a while, what waits is answered.
        let patience = if waiting.is_empty() { None } else { Some(Duration::from_millis(1)) };
        asks.set_read_timeout(patience).unwrap();
        let mut first = [0];
        match asks.read(&mut first) {
            Ok(0) => return,
            Ok(_) => {
                asks.set_read_timeout(None).unwrap();
                let mut rest = first.chain(&asks);
                let Some(ask) = next_ask(&mut rest, &mut data) else { return };
                waiting.push(answer(&ask, &data));
                if choices.below(3) > 0 && waiting.len() < 20 {
                    continue;
                }
            }
            Err(_) => {}
        }
        for _ in 0..=choices.below(waiting.len() as u32) {
            if waiting.is_empty() {
                break;
            }
            let mut bytes = waiting.swap_remove(choices.below(waiting.len() as u32) as usize);
            lives -= 1;
            let dies = lives == 0;
            if dies {
                match choices.below(3) {
                    0 => bytes.truncate(choices.below(bytes.len() as u32) as usize),
                    1 => bytes[choices.below(4) as usize] ^= 0x40,
                    _ => {}
                }
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let piece = 1 + choices.below(rest.len() as u32) as usize;
                if out.write_all(&rest[..piece]).is_err() {
                    return;
                }
                rest = &rest[piece..];
                if choices.below(4) == 0 {
                    thread::yield_now();
                }
            }
            if dies {
                return;
            }
        }
    }
}

#[test]
fn everything_arrives_once_and_right_while_nodes_come_and_go() {
    for seed in 1..=6 {
        storm(seed);
    }
}

fn storm(seed: u64) {
    const NODES: u16 = 3;
    const OPS: u32 = 3000;
    let mut queue = queue(NODES.into(), 40);
    queue.handler().spin_ns = if seed.is_multiple_of(2) { 20_000 } else { 0 };
    let mut choices = Choices::new(seed);
    let mut peers = Vec::new();
    // By operation: (node, number, offset, len, write).
    let mut asked: Vec<(u16, u32, u32, usize, bool)> = Vec::new();
    let mut ended = vec![false; OPS as usize];
    let (mut done, mut failed, mut opened) = (0, 0, 0);
    let began = Instant::now();
    while done < OPS {
        assert!(began.elapsed() < LONG, "seed {seed}: {done} of {} done", asked.len());
        for node in 0..NODES {
            if !is_open(&mut queue, node) {
                opened += 1;
                let seed = seed * 1000 + opened;
                peers.push(linked(&mut queue, node, move |socket| moody(socket, seed)));
            } else if choices.below(300) == 0 {
                queue.handler().links.close(NodeId(node));
            }
        }
        for _ in 0..choices.below(12) {
            let (op, node, number) = (asked.len() as u32, choices.below(3) as u16, choices.below(1000));
            if op >= OPS {
                break;
            }
            let len = match choices.below(40) {
                0 => 1 + choices.below(BLOCK_BYTES as u32),
                1..10 => 1 + choices.below(40_000),
                _ => 4096,
            };
            let offset = choices.below(BLOCK_BYTES as u32 + 1 - len);
            let write = choices.below(3) == 0;
            let links = &mut queue.handler().links;
            let started = if write {
                links.write(NodeId(node), block(number), offset, pattern(number, offset, len as usize), op)
            } else {
                links.read(NodeId(node), block(number), offset, len, op)
            };
            match started {
                Ok(()) => asked.push((node, number, offset, len as usize, write)),
                Err(RemoteError::Refused(_, Status::Busy) | RemoteError::NotConnected) => {}
                Err(error) => panic!("{error}"),
            }
        }
        queue.turn(Duration::from_millis(2)).unwrap();
        for arrived in std::mem::take(&mut queue.handler().arrived) {
            let (node, number, offset, len, write) = asked[arrived.op as usize];
            assert!(!std::mem::replace(&mut ended[arrived.op as usize], true), "twice: {}", arrived.op);
            assert_eq!(arrived.node, NodeId(node));
            done += 1;
            match arrived.result {
                Ok(data) if write => assert!(data.is_empty()),
                Ok(data) => {
                    assert!(data == pattern(number, offset, len), "seed {seed} operation {}", arrived.op);
                }
                Err(RemoteError::Refused(..)) => panic!("the node got other data than was written"),
                Err(_) => failed += 1,
            }
        }
    }
    assert_eq!(queue.handler().links.in_flight(), 0);
    assert!(opened > 10 && failed > 10 && failed < OPS * 9 / 10, "{opened} links, {failed} failed");
    drop(queue);
    peers.into_iter().for_each(|peer| peer.join().unwrap());
}
