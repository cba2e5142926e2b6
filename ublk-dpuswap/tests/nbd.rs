//! The NBD back end against servers of other people: nbdkit and qemu-nbd, and against one that misbehaves.
#![allow(clippy::unwrap_used, missing_docs)]

mod nbd_servers;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nbd_servers::{Fake, Process, Trick, free_port, has};
use ublk_dpuswap::links::{LinkCodec, LinkStart, Outbox, Parsed};
use ublk_dpuswap::proto::{Opcode, Status};
use ublk_dpuswap::remote::claim::ClaimError;
use ublk_dpuswap::remote::nbd::NbdNode;
use ublk_dpuswap::remote::nbd::wire::{Errno, NbdError};
use ublk_dpuswap::remote::{Lane, RemoteError, RemoteNode, Reserved};
use ublk_dpuswap::units::RemoteBlock;

fn node(url: &str, client: u64) -> NbdNode {
    NbdNode::new(url, client, Duration::from_secs(5)).unwrap()
}

fn lend(node: &NbdNode, count: usize) -> Vec<RemoteBlock> {
    let mut blocks = vec![RemoteBlock::default(); count];
    let reserved = node.reserve(Lane::CONTROL, &mut blocks).unwrap();
    assert_eq!(reserved.granted, count);
    blocks
}

fn refused(node: &NbdNode) -> NbdError {
    match node.connect() {
        Err(RemoteError::Nbd(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn blocks_of_nbdkit_are_written_read_and_trimmed() {
    if !has("nbdkit") {
        return;
    }
    let port = free_port();
    let _server = Process::nbdkit_tcp(port, &["memory", "16M"]);
    let url = format!("nbd://127.0.0.1:{port}/");
    let first = node(&url, 1);
    assert!(matches!(first.stat(Lane::CONTROL), Err(RemoteError::NotConnected)));
    let info = first.connect().unwrap();
    assert_eq!((info.capacity_blocks, info.free_blocks, info.held_blocks), (15, 15, 0));
    let blocks = lend(&first, 15);
    assert!(blocks.iter().all(|block| (1..16).contains(&block.number)), "never block 0: {blocks:?}");
    let none = first.reserve(Lane::WRITER, &mut [RemoteBlock::default()]).unwrap();
    assert_eq!(none, Reserved { granted: 0, free_blocks: 0 });
    let data: Vec<u8> = (0..1u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut tickets = Vec::new();
    for block in &blocks {
        let head = &data[block.number as usize..1 << 19];
        tickets.push(first.start_write(Lane::WRITER, *block, 0, head).unwrap());
        tickets.push(first.start_write(Lane::WRITER, *block, 1 << 19, &data[1 << 19..]).unwrap());
    }
    for ticket in tickets {
        first.finish_write(Lane::WRITER, ticket).unwrap();
    }
    for block in &blocks {
        let mut back = vec![0; 1 << 19];
        first.read_at(Lane::COPIER, *block, 1 << 19, &mut back).unwrap();
        assert!(back == data[1 << 19..]);
        first.read_at(Lane::WRITER, *block, 64, &mut back[..777]).unwrap();
        assert_eq!(back[..777], data[block.number as usize + 64..][..777]);
    }
    assert_eq!(first.stat(Lane::CONTROL).unwrap().epoch, info.epoch);
    assert_eq!(first.release(Lane::CONTROL, &blocks[..10]).unwrap(), 10);
    let again = first.release(Lane::CONTROL, &blocks[..1]);
    assert!(matches!(again, Err(RemoteError::Refused(Opcode::Release, Status::NotYours))), "{again:?}");
    let gone = first.read_at(Lane::COPIER, blocks[0], 0, &mut [0; 64]);
    assert!(matches!(gone, Err(RemoteError::Refused(Opcode::Read, Status::NotYours))), "{gone:?}");
    // Lent anew, the trimmed memory is empty.
    let anew = lend(&first, 1);
    let mut back = [1; 4096];
    first.read_at(Lane::COPIER, anew[0], 0, &mut back).unwrap();
    assert_eq!(back, [0; 4096]);
    let outside = first.write_at(Lane::WRITER, anew[0], (1 << 20) - 1, &[1, 2]);
    assert!(matches!(outside, Err(RemoteError::Refused(Opcode::Write, Status::BadRequest))), "{outside:?}");
    // A goodbye leaves nothing behind that another client would stumble over.
    let second = node(&url, 2);
    assert!(matches!(second.connect(), Err(RemoteError::Claim(ClaimError::Foreign(1)))));
    first.disconnect();
    assert_eq!(second.connect().unwrap().free_blocks, 15);
}

#[test]
fn a_server_that_was_killed_and_restarted_empty_is_noticed() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let url = format!("nbd+unix:///?socket={}", path.display());
    let mut server = Process::nbdkit_unix(&path, &["memory", "8M"]);
    let client = node(&url, 1);
    let before = client.connect().unwrap();
    let blocks = lend(&client, 3);
    client.write_at(Lane::WRITER, blocks[0], 0, &[7; 4096]).unwrap();
    server.kill();
    let _ = std::fs::remove_file(&path);
    assert!(client.stat(Lane::CONTROL).is_err());
    assert!(matches!(client.connect(), Err(RemoteError::Connect(_))));
    let mut server = Process::nbdkit_unix(&path, &["memory", "8M"]);
    assert!(client.open_link(0).is_err(), "no link to a server that has forgotten");
    let after = client.connect().unwrap();
    assert_ne!(after.epoch, before.epoch);
    assert_eq!((after.held_blocks, after.free_blocks), (0, 7));
    // Restarted before anyone noticed: neither a link nor the heartbeat takes it for the old one.
    server.kill();
    let _ = std::fs::remove_file(&path);
    let _server = Process::nbdkit_unix(&path, &["memory", "8M"]);
    assert!(matches!(client.open_link(0), Err(RemoteError::Claim(ClaimError::Lost))));
    assert!(client.stat(Lane::CONTROL).is_err());
    assert_ne!(client.connect().unwrap().epoch, after.epoch);
}

#[test]
fn a_lost_connection_to_a_server_that_remembers_loses_nothing() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, disk) = (dir.path().join("socket"), dir.path().join("disk"));
    File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    let url = format!("nbd+unix:///swap?socket={}", path.display());
    let serve = || Process::qemu_nbd(&path, &disk, &["--shared=0", "--export-name=swap"]);
    let mut server = serve();
    let client = node(&url, 1);
    let epoch = client.connect().unwrap().epoch;
    let blocks = lend(&client, 3);
    client.write_at(Lane::WRITER, blocks[1], 4096, b"still there").unwrap();
    server.kill();
    assert!(client.read_at(Lane::COPIER, blocks[1], 4096, &mut [0; 11]).is_err());
    assert!(matches!(client.write_at(Lane::COPIER, blocks[1], 0, &[1]), Err(RemoteError::NotConnected)));
    let _server = serve();
    let info = client.connect().unwrap();
    assert_eq!((info.epoch, info.held_blocks), (epoch, 3));
    let mut back = [0; 11];
    client.read_at(Lane::COPIER, blocks[1], 4096, &mut back).unwrap();
    assert_eq!(&back, b"still there");
    // Requests of the lost connection may still be on their way: what is released now is not lent at once.
    assert_eq!(client.release(Lane::CONTROL, &blocks[..1]).unwrap(), 4);
    assert_eq!(client.reserve(Lane::CONTROL, &mut [RemoteBlock::default(); 7]).unwrap().granted, 4);
    // A process that takes over from a killed one holds everything, and sorts it out by its table.
    let recovered = node(&url, 1);
    assert_eq!(recovered.connect().unwrap().epoch, epoch);
    let mut held = Vec::new();
    recovered.held(Lane::CONTROL, &mut |block| held.push(block.number)).unwrap();
    assert_eq!(held, (1..8).collect::<Vec<_>>());
    recovered.read_at(Lane::WRITER, blocks[1], 4096, &mut back).unwrap();
    assert_eq!(&back, b"still there");
    // Another client has to say that it means it; then the first one notices.
    let refusal = node(&url, 2).connect().unwrap_err().to_string();
    assert!(
        refusal.contains("belongs to another client (0000000000000001)") && refusal.contains("take=yes"),
        "{refusal}"
    );
    let thief = node(&format!("{url}&take=yes"), 2);
    assert_eq!(thief.connect().unwrap().held_blocks, 0);
    assert!(matches!(client.stat(Lane::CONTROL), Err(RemoteError::Claim(ClaimError::Lost))));
    assert!(matches!(client.connect(), Err(RemoteError::Claim(ClaimError::Foreign(2)))));
}

#[test]
fn exports_that_cannot_be_used_are_refused_in_words() {
    if !has("qemu-nbd") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, disk) = (dir.path().join("socket"), dir.path().join("disk"));
    File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    let url = format!("nbd+unix:///swap?socket={}", path.display());
    let refusal = |options: &[&str]| {
        let _server = Process::qemu_nbd(&path, &disk, options);
        refused(&node(&url, 1))
    };
    assert_eq!(refusal(&["--shared=0", "--export-name=other"]), NbdError::UnknownExport);
    assert_eq!(refusal(&["--shared=0", "--export-name=swap", "--read-only"]), NbdError::ReadOnly);
    let one = refusal(&["--export-name=swap"]);
    assert!(one == NbdError::OneConnection && one.to_string().contains("--shared=0"));
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(refusal(&["--shared=0", "--export-name=swap"]), NbdError::TooSmall(1 << 20));
    std::fs::write(&disk, vec![b'x'; 4 << 20]).unwrap();
    let _server = Process::qemu_nbd(&path, &disk, &["--shared=0", "--export-name=swap"]);
    assert!(matches!(node(&url, 1).connect(), Err(RemoteError::Claim(ClaimError::Data))));
    assert_eq!(std::fs::read(&disk).unwrap(), vec![b'x'; 4 << 20]);
}

#[test]
fn an_error_of_the_server_is_named_and_the_connection_goes_on() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, trigger) = (dir.path().join("socket"), dir.path().join("trigger"));
    let file = format!("error-file={}", trigger.display());
    let options =
        ["--filter=error", "memory", "8M", "error-pwrite=ENOSPC", "error-pread=EIO", "error-trim=EIO"];
    let rates = ["error-pwrite-rate=100%", "error-pread-rate=100%", "error-trim-rate=100%", &file];
    let _server = Process::nbdkit_unix(&path, &[&options[..], &rates].concat());
    let client = node(&format!("nbd+unix:///?socket={}", path.display()), 1);
    client.connect().unwrap();
    let blocks = lend(&client, 2);
    client.write_at(Lane::WRITER, blocks[0], 0, &[1; 64]).unwrap();
    File::create(&trigger).unwrap();
    let failed = client.write_at(Lane::WRITER, blocks[0], 0, &[2; 64]).unwrap_err();
    assert!(matches!(failed, RemoteError::Server(Opcode::Write, Errno(28))));
    assert_eq!(failed.to_string(), "Write failed at the NBD server: ENOSPC (no space left)");
    let failed = client.read_at(Lane::WRITER, blocks[0], 0, &mut [0; 64]);
    assert!(matches!(failed, Err(RemoteError::Server(Opcode::Read, Errno(5)))), "{failed:?}");
    assert_eq!(
        client.release(Lane::CONTROL, &blocks[1..]).unwrap(),
        6,
        "a trim that fails costs only memory"
    );
    std::fs::remove_file(&trigger).unwrap();
    let mut back = [0; 64];
    client.read_at(Lane::WRITER, blocks[0], 0, &mut back).unwrap();
    assert_eq!(back, [1; 64]);
}

#[test]
fn a_server_that_is_too_slow_or_silent_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nbd://{}/", listener.local_addr().unwrap());
    let silent = NbdNode::new(&url, 1, Duration::from_millis(200)).unwrap();
    assert!(matches!(silent.connect(), Err(RemoteError::TimedOut)));
    drop(listener);
    assert!(matches!(silent.connect(), Err(RemoteError::Connect(_))));
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _server = Process::nbdkit_unix(&path, &["--filter=delay", "memory", "8M", "rdelay=3"]);
    let url = format!("nbd+unix:///?socket={}", path.display());
    let slow = NbdNode::new(&url, 1, Duration::from_millis(200)).unwrap();
    assert!(matches!(slow.connect(), Err(RemoteError::TimedOut)));
    assert!(matches!(slow.open_link(0), Err(RemoteError::NotConnected)));
}

/// Sends what is in `out`, and gives the next `count` messages: operation and data, or the refusal.
fn drive(
    link: &mut UnixStream,
    codec: &mut dyn LinkCodec,
    out: &mut Outbox,
    count: usize,
) -> Vec<(u32, Result<Vec<u8>, Status>)> {
    link.write_all(out.bytes()).unwrap();
    out.clear();
    let (mut bytes, mut messages) = (Vec::new(), Vec::new());
    while messages.len() < count {
        match codec.parse(&mut bytes).unwrap() {
            Parsed::More(wanted) => {
                let have = bytes.len();
                bytes.resize(wanted, 0);
                link.read_exact(&mut bytes[have..]).unwrap();
            }
            Parsed::Message { used, id, result } => {
                messages.push((id, result.map(|range| bytes[range].to_vec()).map_err(|(_, status)| status)));
                bytes.drain(..used);
            }
        }
    }
    messages.sort_by_key(|message| message.0);
    messages
}

fn link(node: &NbdNode) -> (UnixStream, Box<dyn LinkCodec>) {
    let LinkStart::Socket { socket, codec } = node.open_link(0).unwrap() else { panic!("a socket") };
    let socket: OwnedFd = socket;
    let socket = UnixStream::from(socket);
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (socket, codec)
}

#[test]
fn a_link_carries_many_requests_at_once() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    // Answers in any order: each request waits in a thread of its own.
    let _server =
        Process::nbdkit_unix(&path, &["--threads=8", "--filter=delay", "memory", "8M", "rdelay=2ms"]);
    let client = node(&format!("nbd+unix:///?socket={}", path.display()), 1);
    client.connect().unwrap();
    let blocks = lend(&client, 4);
    let (mut socket, mut codec) = link(&client);
    let mut out = Outbox::new(8 << 20);
    for (n, block) in blocks.iter().enumerate() {
        assert!(codec.write(n as u32, *block, 64, &[n as u8 + 1; 70_000], &mut out));
    }
    let done = drive(&mut socket, &mut *codec, &mut out, 4);
    assert!(done.iter().all(|(_, result)| result.as_ref().is_ok_and(Vec::is_empty)), "{done:?}");
    for n in 0..32u32 {
        assert!(codec.read(n, blocks[n as usize % 4], 64 + n, 5000 + n, &mut out));
    }
    for (n, result) in drive(&mut socket, &mut *codec, &mut out, 32) {
        assert!(result.unwrap() == vec![n as u8 % 4 + 1; 5000 + n as usize], "{n}");
    }
    let outside = RemoteBlock::numbered(8);
    assert!(codec.read(9, outside, 0, 64, &mut out));
    let answer = drive(&mut socket, &mut *codec, &mut out, 1);
    assert_eq!(answer, [(9, Err(Status::BadRequest))]);
}

#[test]
fn answers_in_reverse_and_in_pieces_find_their_writes() {
    let server = Fake::start(Trick::Reversed);
    let client = node(&server.url(), 1);
    client.connect().unwrap();
    let blocks = lend(&client, 3);
    let start =
        |n: u32| client.start_write(Lane::WRITER, blocks[n as usize % 3], n * 64, &[n as u8; 64]).unwrap();
    let tickets: Vec<u64> = (0..50).map(start).collect();
    for ticket in &tickets {
        client.finish_write(Lane::WRITER, *ticket).unwrap();
    }
    assert!(matches!(client.finish_write(Lane::WRITER, tickets[0]), Err(RemoteError::Unfinished)));
    for n in 0..50u32 {
        let mut back = [0; 64];
        client.read_at(Lane::COPIER, blocks[n as usize % 3], n * 64, &mut back).unwrap();
        assert_eq!(back, [n as u8; 64]);
    }
}

#[test]
fn a_lane_takes_only_so_many_unfinished_writes() {
    let server = Fake::start(Trick::Reversed);
    let client = node(&server.url(), 1);
    client.connect().unwrap();
    let blocks = lend(&client, 1);
    let start = |_| client.start_write(Lane::WRITER, blocks[0], 0, &[1]).unwrap();
    let tickets: Vec<u64> = (0..256).map(start).collect();
    let one_more = client.start_write(Lane::WRITER, blocks[0], 0, &[1]);
    assert!(matches!(one_more, Err(RemoteError::Refused(Opcode::Write, Status::Busy))), "{one_more:?}");
    for ticket in tickets {
        client.finish_write(Lane::WRITER, ticket).unwrap();
    }
    client.write_at(Lane::WRITER, blocks[0], 0, &[1]).unwrap();
}

#[test]
fn a_server_that_breaks_the_protocol_costs_the_connection_and_no_more() {
    for (trick, wanted) in [
        (Trick::Structured, Some(NbdError::Structured)),
        (Trick::Handle, Some(NbdError::Handle)),
        (Trick::Garbage, Some(NbdError::ReplyMagic)),
        (Trick::Close, None),
    ] {
        let server = Fake::start(trick);
        let client = node(&server.url(), 1);
        let epoch = client.connect().unwrap().epoch;
        let blocks = lend(&client, 1);
        server.arm();
        match (client.write_at(Lane::WRITER, blocks[0], 0, &[1; 64]), wanted) {
            (Err(RemoteError::Nbd(error)), Some(wanted)) => assert_eq!(error, wanted),
            (Err(RemoteError::Closed | RemoteError::Io(..)), None) => {}
            other => panic!("{other:?}"),
        }
        assert!(matches!(client.finish_write(Lane::WRITER, 1), Err(RemoteError::NotConnected)));
        assert_eq!(client.connect().unwrap().epoch, epoch);
        client.write_at(Lane::WRITER, blocks[0], 0, &[1; 64]).unwrap();
    }
}

#[test]
fn a_first_connection_that_fails_half_way_leaves_all_blocks_free() {
    for trick in [Trick::Third, Trick::LoseWrite] {
        let server = Fake::start(trick);
        if trick == Trick::LoseWrite {
            server.arm();
        }
        let client = node(&server.url(), 1);
        assert!(matches!(client.connect(), Err(RemoteError::Closed)), "{trick:?}");
        let info = client.connect().unwrap();
        assert_eq!((info.held_blocks, info.capacity_blocks, info.free_blocks), (0, 3, 3), "{trick:?}");
        let recovered = node(&server.url(), 1);
        assert_eq!(recovered.connect().unwrap().held_blocks, 3, "{trick:?}");
    }
}
