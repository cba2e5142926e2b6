//! serprog: the protocol byte by byte, the servers over TCP and a pseudo-terminal, and flashrom as their client.
#![allow(clippy::unwrap_used)]

mod toy;

use proptest::prelude::*;
use spiflash_mtd::{
    Chip, Lines, Setup, SimBus, SpiBus, TimeMode, Transfer,
    fronts::{
        SharedBus,
        serprog::{Options, PinState, PtyServer, Serprog, TcpServer, parse_address, protocol::opcode},
    },
    part,
};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use toy::{MOST_HZ, Seen, ToyBus};

const ACK: u8 = 0x06;
const NAK: u8 = 0x15;

/// The replies to some bytes, given at once.
fn say(serprog: &mut Serprog, bus: &mut dyn SpiBus, bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut replies = Vec::new();
        let taken = serprog.feed(bus, rest, &mut replies);
        assert!(taken > 0);
        all.extend(replies);
        rest = &rest[taken..];
    }
    all
}

fn operation(sent: &[u8], read_bytes: u32) -> Vec<u8> {
    let mut command = vec![opcode::SPI_OPERATION];
    command.extend(&(sent.len() as u32).to_le_bytes()[..3]);
    command.extend(&read_bytes.to_le_bytes()[..3]);
    command.extend(sent);
    command
}

fn programmer() -> Serprog {
    Serprog::new(Options::default())
}

#[test]
fn the_queries_are_answered_as_flashrom_expects() {
    let (mut serprog, mut bus) = (programmer(), ToyBus::logging(1));
    let mut ask = |bytes: &[u8]| say(&mut serprog, &mut bus, bytes);
    assert_eq!(ask(&[0; 8]), [ACK; 8]);
    assert_eq!(ask(&[0x10]), [NAK, ACK]);
    assert_eq!(ask(&[0x01]), [ACK, 1, 0]);
    assert_eq!(ask(&[0x03]), *b"\x06spiflash-mtd\0\0\0\0");
    assert_eq!(ask(&[0x04]), [ACK, 0xFF, 0xFF]);
    assert_eq!(ask(&[0x05]), [ACK, 8]);
    assert_eq!(ask(&[0x07]), [ACK, 0xFF, 0xFF]);
    assert_eq!(ask(&[0x08]), [ACK, 0, 0, 0]);
    assert_eq!(ask(&[0x11]), [ACK, 0, 0, 0]);
    assert_eq!(ask(&[0x12, 8, 0x12, 0xFF, 0x12, 7]), [ACK, ACK, NAK]);
    let map = ask(&[0x02]);
    assert_eq!((map.len(), map[0]), (33, ACK));
    let known: Vec<u8> = (0..=255).filter(|op| map[1 + usize::from(op / 8)] >> (op % 8) & 1 == 1).collect();
    let expected = [0, 1, 2, 3, 4, 5, 7, 8, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24];
    assert_eq!(known, expected);
    assert!(bus.take_log().is_empty(), "a query does nothing");
}

#[test]
fn every_opcode_that_is_not_in_the_map_is_refused() {
    let (mut serprog, mut bus) = (programmer(), ToyBus::logging(1));
    for op in (0..=255u8).filter(|op| !opcode::ALL.contains(op)) {
        assert_eq!(say(&mut serprog, &mut bus, &[op]), [NAK], "{op:02X}h");
    }
    assert!(bus.take_log().is_empty());
}

#[test]
fn an_operation_is_one_frame() {
    let (mut serprog, mut bus) = (programmer(), ToyBus::logging(1));
    assert_eq!(say(&mut serprog, &mut bus, &operation(&[0x9F], 3)), [ACK, 0xEF, 0x40, 0x18]);
    let write = Seen::Write(Lines::Single, vec![0x9F]);
    assert_eq!(bus.take_log(), [Seen::Select(0), write, Seen::Read(Lines::Single, 3), Seen::Deselect]);
    assert_eq!(say(&mut serprog, &mut bus, &operation(&[], 0)), [ACK]);
    assert_eq!(bus.take_log(), [Seen::Select(0), Seen::Deselect]);
}

#[test]
fn an_operation_that_has_not_come_whole_does_nothing() {
    let (mut serprog, mut bus) = (programmer(), ToyBus::logging(1));
    let command = operation(&[0x02, 0, 0, 0, 0xAA], 0);
    assert!(say(&mut serprog, &mut bus, &command[..command.len() - 1]).is_empty());
    serprog.end(&mut bus);
    assert!(bus.take_log().is_empty());
    assert_eq!(say(&mut serprog, &mut bus, &[0]), [ACK], "what was left of it is gone");
}

#[test]
fn the_longest_lengths_are_served_without_memory_for_bytes_that_never_come() {
    let (mut serprog, mut bus) = (programmer(), ToyBus::new(1));
    bus.array(0)[0xFF_FFFF] = 0x5A;
    let replies = say(&mut serprog, &mut bus, &operation(&[3, 0, 0, 1], 0xFF_FFFF));
    assert_eq!(replies.len(), 1 << 24);
    assert_eq!((replies[0], replies[(1 << 24) - 1]), (ACK, 0x5A));
    // 16 MiB are announced, three bytes come.
    assert!(say(&mut serprog, &mut bus, &[0x13, 0xFF, 0xFF, 0xFF, 0, 0, 0, 1, 2, 3]).is_empty());
    serprog.end(&mut bus);
    assert_eq!(bus.selected(), None);
}

#[test]
fn replies_are_made_in_batches() {
    let (mut serprog, mut bus) = (programmer(), ToyBus::new(1));
    let input = operation(&[3, 0, 0, 0], 40_000).repeat(4);
    let mut replies = Vec::new();
    let taken = serprog.feed(&mut bus, &input, &mut replies);
    assert_eq!((taken, replies.len()), (22, 80_002), "the second reaches the limit");
    assert_eq!(serprog.feed(&mut bus, &input[taken..], &mut replies), 0, "nothing before these are sent");
    replies.clear();
    assert_eq!(serprog.feed(&mut bus, &input[taken..], &mut replies), 22);
}

#[test]
fn delays_pass_when_the_buffer_is_executed_and_only_once() {
    let (mut serprog, mut bus) = (programmer(), ToyBus::logging(1));
    let delay = |us: u32| [&[0x0E][..], &us.to_le_bytes()].concat();
    let mut ask = |bytes: &[u8]| say(&mut serprog, &mut bus, bytes);
    assert_eq!(ask(&[0x0B]), [ACK]);
    assert_eq!(ask(&delay(10)), [ACK]);
    assert_eq!(ask(&delay(u32::MAX)), [ACK]);
    assert_eq!(ask(&[0x0F]), [ACK]);
    assert_eq!(ask(&[0x0F]), [ACK]);
    ask(&delay(7));
    assert_eq!(ask(&[0x0B, 0x0F]), [ACK, ACK], "the buffer is cleared by 0Bh");
    let expected = [(u64::from(u32::MAX) + 10) * 1000, 0, 0].map(Seen::Delay);
    assert_eq!(bus.take_log(), expected);
}

#[test]
fn the_operation_buffer_is_as_large_as_it_says() {
    let (mut serprog, mut bus) = (programmer(), ToyBus::logging(1));
    let replies = say(&mut serprog, &mut bus, &[0x0E, 1, 0, 0, 0].repeat(13_108));
    assert_eq!(replies.iter().filter(|&&reply| reply == ACK).count(), 0xFFFF / 5);
    assert_eq!(replies.last(), Some(&NAK));
    assert_eq!(say(&mut serprog, &mut bus, &[0x0F]), [ACK]);
    assert_eq!(bus.take_log(), [Seen::Delay(13_107_000)]);
}

#[test]
fn the_clock_is_the_one_asked_for_or_the_fastest() {
    let (mut serprog, mut bus) = (programmer(), ToyBus::logging(1));
    let clock = |hz: u32| [&[0x14][..], &hz.to_le_bytes()].concat();
    let set = |hz: u32| [&[ACK][..], &hz.to_le_bytes()].concat();
    assert_eq!(say(&mut serprog, &mut bus, &clock(0)), [NAK]);
    assert_eq!(say(&mut serprog, &mut bus, &clock(u32::MAX)), set(MOST_HZ));
    assert_eq!(say(&mut serprog, &mut bus, &clock(2_000_000)), set(2_000_000));
    bus.set_clock_hz(5).unwrap();
    bus.take_log();
    say(&mut serprog, &mut bus, &operation(&[0x06], 0));
    assert_eq!(bus.take_log()[0], Seen::Clock(2_000_000), "another front's clock does not last");
}

#[test]
fn pins_off_is_power_off_until_they_are_on_or_the_client_has_left() {
    let (mut serprog, mut bus) = (programmer(), ToyBus::logging(2));
    assert_eq!(say(&mut serprog, &mut bus, &[0x15, 0]), [ACK]);
    assert!(!bus.powered(0) && !bus.powered(1));
    assert_eq!(say(&mut serprog, &mut bus, &operation(&[0x9F], 3)), [ACK, 0xFF, 0xFF, 0xFF]);
    assert_eq!(say(&mut serprog, &mut bus, &[0x15, 1]), [ACK]);
    assert_eq!(bus.take_log().last(), Some(&Seen::Delay(10_000_000)), "a chip needs time after power-up");
    assert_eq!(say(&mut serprog, &mut bus, &operation(&[0x9F], 1)), [ACK, 0xEF]);
    say(&mut serprog, &mut bus, &[0x15, 0]);
    serprog.end(&mut bus);
    assert!(bus.powered(0) && bus.powered(1));
    assert_eq!(bus.take_log().last(), Some(&Seen::Delay(10_000_000)));
}

#[test]
fn pins_can_be_left_out_of_it() {
    let options = Options { pin_state: PinState::Ignored, ..Options::default() };
    let (mut serprog, mut bus) = (Serprog::new(options), ToyBus::logging(1));
    assert_eq!(say(&mut serprog, &mut bus, &[0x15, 0, 0x15, 1]), [ACK, ACK]);
    serprog.end(&mut bus);
    assert!(bus.take_log().is_empty());
}

#[test]
fn a_chip_is_chosen_among_those_that_there_are() {
    let (mut serprog, mut bus) = (programmer(), ToyBus::new(3));
    bus.array(2)[5] = 0x22;
    assert_eq!(say(&mut serprog, &mut bus, &[0x16, 3]), [NAK]);
    assert_eq!(say(&mut serprog, &mut bus, &operation(&[3, 0, 0, 5], 1)), [ACK, 0xFF]);
    assert_eq!(say(&mut serprog, &mut bus, &[0x16, 2]), [ACK]);
    assert_eq!(say(&mut serprog, &mut bus, &operation(&[3, 0, 0, 5], 1)), [ACK, 0x22]);
    serprog.end(&mut bus);
    assert_eq!(say(&mut serprog, &mut bus, &operation(&[3, 0, 0, 5], 1)), [ACK, 0xFF]);
}

#[test]
fn full_duplex_returns_what_came_in_from_the_first_clock() {
    let (mut serprog, mut bus) = (programmer(), ToyBus::logging(1));
    assert_eq!(say(&mut serprog, &mut bus, &[0x17, 2]), [NAK]);
    assert_eq!(say(&mut serprog, &mut bus, &[0x17, 1]), [ACK]);
    let replies = say(&mut serprog, &mut bus, &operation(&[0x9F], 4));
    assert_eq!(replies, [ACK, 0xFF, 0xEF, 0x40, 0x18]);
    assert_eq!(bus.take_log()[1], Seen::Both(vec![0x9F, 0, 0, 0]));
    let replies = say(&mut serprog, &mut bus, &operation(&[0x9F, 1, 2], 1));
    assert_eq!(replies, [ACK, 0xFF]);
    assert_eq!(bus.take_log()[1], Seen::Both(vec![0x9F, 1, 2]));
    assert_eq!(say(&mut serprog, &mut bus, &[0x17, 0]), [ACK]);
    assert_eq!(say(&mut serprog, &mut bus, &operation(&[0x9F], 1)), [ACK, 0xEF]);
}

#[test]
fn cs_by_hand_makes_one_frame_of_several_operations() {
    let (mut serprog, mut bus) = (programmer(), ToyBus::logging(2));
    assert_eq!(say(&mut serprog, &mut bus, &[0x18, 3]), [NAK]);
    assert_eq!(say(&mut serprog, &mut bus, &[0x18, 1, 0x18, 1]), [ACK, ACK]);
    assert!(serprog.holds_bus());
    assert_eq!(say(&mut serprog, &mut bus, &[0x16, 1]), [NAK], "not within a frame");
    say(&mut serprog, &mut bus, &operation(&[0x9F], 1));
    assert_eq!(say(&mut serprog, &mut bus, &operation(&[], 2)), [ACK, 0x40, 0x18]);
    assert_eq!(say(&mut serprog, &mut bus, &[0x18, 2]), [ACK]);
    assert!(!serprog.holds_bus());
    let frames = |log: &[Seen]| log.iter().filter(|seen| **seen == Seen::Deselect).count();
    let log = bus.take_log();
    assert_eq!((log.first(), log.last(), frames(&log)), (Some(&Seen::Select(0)), Some(&Seen::Deselect), 1));
    assert_eq!(say(&mut serprog, &mut bus, &operation(&[0x9F], 2)), [ACK, 0xFF, 0xFF], "nobody listens");
    assert!(bus.take_log().is_empty());
    say(&mut serprog, &mut bus, &[0x18, 1]);
    serprog.end(&mut bus);
    assert_eq!(bus.selected(), None, "a client that vanishes does not keep the chip");
}

#[test]
fn a_bus_that_refuses_is_a_refusal_without_data() {
    let options = Options { chip_select: 9, ..Options::default() };
    let (mut serprog, mut bus) = (Serprog::new(options), ToyBus::new(1));
    assert_eq!(say(&mut serprog, &mut bus, &operation(&[0x9F], 3)), [NAK]);
    assert_eq!(say(&mut serprog, &mut bus, &[0x18, 1]), [NAK]);
    assert!(!serprog.holds_bus());
}

/// Commands as clients send them, with garbage between.
fn talk() -> impl Strategy<Value = Vec<u8>> {
    let sent = proptest::collection::vec(any::<u8>(), 0..40);
    let piece = prop_oneof![
        4 => (sent, 0u32..300).prop_map(|(sent, read)| operation(&sent, read)),
        2 => (0x10u8..0x19, 0u8..4).prop_map(|(op, value)| vec![op, value]),
        1 => proptest::collection::vec(any::<u8>(), 0..6),
    ];
    proptest::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn replies_do_not_depend_on_how_the_bytes_were_cut(
        bytes in talk(), cuts in proptest::collection::vec(1usize..30, 1..50),
    ) {
        let (mut whole, mut whole_bus) = (programmer(), ToyBus::logging(1));
        let at_once = say(&mut whole, &mut whole_bus, &bytes);
        let (mut cut, mut cut_bus) = (programmer(), ToyBus::logging(1));
        let (mut pieces, mut rest, mut turn) = (Vec::new(), &bytes[..], 0);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(cuts[turn % cuts.len()].min(rest.len()));
            pieces.extend(say(&mut cut, &mut cut_bus, piece));
            (rest, turn) = (after, turn + 1);
        }
        prop_assert_eq!(pieces, at_once);
        whole.end(&mut whole_bus);
        cut.end(&mut cut_bus);
        prop_assert_eq!(whole_bus.selected(), None);
        prop_assert!(whole_bus.powered(0));
        prop_assert_eq!(whole_bus.take_log(), cut_bus.take_log());
    }
}

#[test]
fn an_address_is_a_port_or_an_address_with_a_port() {
    let text =
        |text| parse_address(text).map(|address| address.to_string()).map_err(|error| error.to_string());
    assert_eq!(text("4000").unwrap(), "127.0.0.1:4000");
    assert_eq!(text(":4000").unwrap(), "127.0.0.1:4000");
    assert_eq!(text("0.0.0.0:1").unwrap(), "0.0.0.0:1");
    assert_eq!(text("[::1]:4000").unwrap(), "[::1]:4000");
    for wrong in ["", "70000", "localhost:4000", "127.0.0.1", "-1"] {
        let message = text(wrong).unwrap_err();
        assert!(message.contains("must be PORT or ADDRESS:PORT") && message.contains(wrong), "{message}");
    }
}

fn tcp(bus: &Arc<Mutex<ToyBus>>) -> TcpServer {
    let bus: SharedBus = bus.clone();
    TcpServer::bind(parse_address("0").unwrap(), bus, Options::default()).unwrap()
}

fn client(server: &TcpServer) -> TcpStream {
    let stream = TcpStream::connect(server.address()).unwrap();
    // Nothing here may hang.
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn read_exact(mut from: impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_client_over_tcp_reads_what_it_wrote_and_the_next_one_too() {
    let bus = ToyBus::new(1).shared();
    let server = tcp(&bus);
    let mut first = client(&server);
    let program = [operation(&[0x06], 0), operation(&[0x02, 0, 0x12, 0x34, 0xA5], 0)].concat();
    // One byte at a time, as slow lines do.
    for byte in program {
        first.write_all(&[byte]).unwrap();
    }
    assert_eq!(read_exact(&first, 2), [ACK, ACK]);
    // Another one waits for its turn.
    let mut second = client(&server);
    second.write_all(&operation(&[3, 0, 0x12, 0x34], 1)).unwrap();
    drop(first);
    assert_eq!(read_exact(&second, 2), [ACK, 0xA5]);
    assert!(server.is_running());
    server.stop().unwrap();
    assert_eq!(second.read(&mut [0]).unwrap(), 0, "the server has hung up");
}

#[test]
fn a_client_that_vanishes_within_an_operation_leaves_a_bus_that_the_next_one_can_use() {
    let bus = ToyBus::new(1).shared();
    let server = tcp(&bus);
    for half in [&[0x13, 5, 0][..], &[0x13, 0xFF, 0xFF, 0xFF, 0, 0, 0, 2], &[0x18, 1, 0x13, 4], &[0x15, 0]] {
        client(&server).write_all(half).unwrap();
        let mut next = client(&server);
        next.write_all(&operation(&[0x9F], 3)).unwrap();
        assert_eq!(read_exact(&next, 4), [ACK, 0xEF, 0x40, 0x18], "after {half:02X?}");
    }
}

#[test]
fn a_client_that_does_not_read_its_replies_does_not_keep_the_bus_or_the_server() {
    let bus = ToyBus::new(1).shared();
    let server = tcp(&bus);
    let mut greedy = client(&server);
    greedy.write_all(&operation(&[3, 0, 0, 0], 0xFF_FFFF).repeat(3)).unwrap();
    // The first bytes are there, the rest has no room: the server waits, without the bus.
    read_exact(&greedy, 1);
    for _ in 0..50 {
        drop(bus.lock().unwrap());
    }
    server.stop().unwrap();
}

#[test]
fn two_servers_share_a_bus_frame_by_frame() {
    let bus = ToyBus::new(1).shared();
    let servers = [tcp(&bus), tcp(&bus)];
    std::thread::scope(|scope| {
        for (number, server) in servers.iter().enumerate() {
            scope.spawn(move || {
                let mut stream = client(server);
                for round in 0..300u32 {
                    let at = [number as u8, round as u8, 0];
                    let program = operation(&[&[2], &at[..], &[round as u8]].concat(), 0);
                    let read = operation(&[&[3], &at[..]].concat(), 1);
                    // WREN is a frame of its own: the other one may come between, so try until it took.
                    loop {
                        stream
                            .write_all(&[operation(&[6], 0), program.clone(), read.clone()].concat())
                            .unwrap();
                        let replies = read_exact(&stream, 4);
                        assert_eq!(replies[..3], [ACK; 3]);
                        if replies[3] == round as u8 || round > 0xFF {
                            break;
                        }
                    }
                }
            });
        }
    });
    assert_eq!(bus.lock().unwrap().selected(), None);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let bus = ToyBus::new(1).shared();
    let server = tcp(&bus);
    let error = TcpServer::bind(server.address(), bus.clone(), Options::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("serprog: listening on {}", server.address()));
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("in use"));
}

fn pty(bus: &Arc<Mutex<ToyBus>>, path: &Path) -> PtyServer {
    let bus: SharedBus = bus.clone();
    PtyServer::open(path, bus, Options::default()).unwrap()
}

fn open_terminal(path: &Path) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    let no_tty = nix::fcntl::OFlag::O_NOCTTY.bits();
    OpenOptions::new().read(true).write(true).custom_flags(no_tty).open(path).unwrap()
}

/// Reads from a terminal, which has no timeout of its own.
fn read_terminal(terminal: &File, count: usize) -> Vec<u8> {
    let (send, receive) = std::sync::mpsc::channel();
    let copy = terminal.try_clone().unwrap();
    std::thread::spawn(move || send.send(read_exact(&copy, count)));
    receive.recv_timeout(Duration::from_secs(20)).unwrap()
}

#[test]
fn a_terminal_is_raw_and_outlives_its_clients() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bus) = (dir.path().join("flash"), ToyBus::new(1).shared());
    let server = pty(&bus, &path);
    assert_eq!(std::fs::read_link(&path).unwrap(), server.terminal());
    for round in 0..5u8 {
        let mut terminal = open_terminal(&path);
        // Bytes that a terminal in another mode would take for itself, or change.
        let bytes = [0x03, 0x04, 0x0A, 0x0D, 0x11, 0x13, 0x1A, 0x7F, 0xFF, round];
        bus.lock().unwrap().array(0)[..10].copy_from_slice(&bytes);
        terminal.write_all(&operation(&[3, 0, 0, 0], 10)).unwrap();
        assert_eq!(read_terminal(&terminal, 11), [&[ACK], &bytes[..]].concat());
        // It leaves with CS# low, with an answer that it does not read, and within an operation.
        terminal.write_all(&[0x18, 1]).unwrap();
        assert_eq!(read_terminal(&terminal, 1), [ACK]);
        terminal.write_all(&[0, 0x13, 9]).unwrap();
        drop(terminal);
        // The bus is free when the server has noticed.
        assert_eq!(bus.lock().unwrap().selected(), None);
    }
    drop(server);
    assert!(std::fs::symlink_metadata(&path).is_err(), "the link is gone");
}

#[test]
fn a_link_of_a_dead_server_is_replaced_and_anything_else_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bus) = (dir.path().join("flash"), ToyBus::new(1).shared());
    std::os::unix::fs::symlink("/dev/pts/99999", &path).unwrap();
    drop(pty(&bus, &path));
    for other in ["file", "link"] {
        if other == "file" {
            std::fs::write(&path, "mine").unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        }
        let error = PtyServer::open(&path, bus.clone(), Options::default()).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(std::fs::symlink_metadata(&path).is_ok(), "{other} is still there");
    }
}

#[test]
fn a_terminal_stops_with_and_without_a_client() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bus) = (dir.path().join("flash"), ToyBus::new(1).shared());
    pty(&bus, &path).stop().unwrap();
    let server = pty(&bus, &path);
    let _client = open_terminal(&path);
    server.stop().unwrap();
    let server = pty(&bus, &path);
    drop(open_terminal(&path));
    server.stop().unwrap();
}

/// flashrom, with a limit; `None` where it is not installed.
fn flashrom(programmer: &str, arguments: &[&str]) -> Option<String> {
    for tries_left in (0..4).rev() {
        let mut command = std::process::Command::new("timeout");
        command.args(["120", "flashrom", "-p", programmer]).args(arguments);
        command.env("PATH", "/usr/sbin:/usr/local/sbin:/usr/bin:/bin");
        let output = command.output().unwrap();
        if output.status.code() == Some(127) {
            eprintln!("skipped: flashrom is not installed");
            return None;
        }
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        // It finds the begin of the stream by sleeping for some milliseconds: on a busy machine not at once.
        if tries_left > 0 && text.contains("Programmer initialization failed") {
            continue;
        }
        assert!(output.status.success(), "{text}");
        return Some(text);
    }
    None
}

/// How much flashrom writes: all of the chip in an optimised build, a part of it in a slow one.
const IMAGE_BYTES: usize = if cfg!(debug_assertions) { 256 << 10 } else { 16 << 20 };

/// An image that is no page like another, with some erased blocks.
fn image() -> Vec<u8> {
    let words = (0..16u64 << 17).map(|word| match word >> 14 & 7 {
        _ if word as usize >= IMAGE_BYTES / 8 => u64::MAX,
        3 => u64::MAX,
        _ => word.wrapping_mul(0x9E37_79B9_7F4A_7C15),
    });
    words.flat_map(u64::to_le_bytes).collect()
}

#[test]
fn flashrom_probes_writes_and_verifies_over_tcp_and_over_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("tty");
    let part = part::find("W25Q128JV").unwrap();
    let chip = Chip::new(Arc::new(part.clone()), &Setup::default()).unwrap();
    let bus: SharedBus = Arc::new(Mutex::new(SimBus::new(vec![chip], TimeMode::PollSkip { polls: 1 }, || 0)));
    let server = TcpServer::bind(parse_address("0").unwrap(), bus.clone(), Options::default()).unwrap();
    let _terminal = PtyServer::open(&link, bus.clone(), Options::default()).unwrap();
    let (over_tcp, over_pty) =
        (format!("serprog:ip={}", server.address()), format!("serprog:dev={}:115200", link.display()));
    let Some(text) = flashrom(&over_pty, &[]) else { return };
    assert!(text.contains("Found Winbond flash chip \"W25Q128.V\" (16384 kB, SPI)"), "{text}");
    let (file, back) = (dir.path().join("image"), dir.path().join("back"));
    let image = image();
    std::fs::write(&file, &image).unwrap();
    let (file, back) = (file.to_str().unwrap(), back.to_str().unwrap());
    let layout = dir.path().join("layout");
    std::fs::write(&layout, format!("00000000:{:08x} part\n", IMAGE_BYTES - 1)).unwrap();
    let part = ["-c", "W25Q128.V", "-l", layout.to_str().unwrap(), "-i", "part"];
    let began = std::time::Instant::now();
    let text = flashrom(&over_tcp, &[&part[..], &["-w", file]].concat()).unwrap();
    println!("{} KiB written and verified in {:.2} s", IMAGE_BYTES >> 10, began.elapsed().as_secs_f64());
    assert!(text.contains("VERIFIED."), "{text}");
    let mut inside = vec![0; image.len()];
    let mut frame = [Transfer::write(&[3, 0, 0, 0]), Transfer::read(&mut inside)];
    bus.lock().unwrap().frame(0, &mut frame).unwrap();
    assert!(inside == image);
    flashrom(&over_pty, &[&part[..], &["-r", back]].concat()).unwrap();
    assert!(std::fs::read(back).unwrap()[..IMAGE_BYTES] == image[..IMAGE_BYTES]);
    flashrom(&over_tcp, &[&part[..], &["-v", file]].concat()).unwrap();
}
