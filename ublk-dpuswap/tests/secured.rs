//! A node and its clients with peers between them and around them that have no key, another one, or bad manners.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use common::{HTTP, HTTP_ON, LANE, NodeProcess, TestKey, borrow, client, impostor, key, secured, stats};
use ublk_dpuswap::links::{LinkStart, Outbox, Parsed};
use ublk_dpuswap::proto::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, Opcode, ProtoError, Status};
use ublk_dpuswap::remote::tcp::TcpNode;
use ublk_dpuswap::remote::{Lane, RemoteError, RemoteNode};
use ublk_dpuswap::secure::{KeyFile, Security};
use ublk_dpuswap::units::{BLOCK_BYTES, RemoteBlock};

/// A node with a key and a page, and a client of it that has written something, to be found unharmed later.
struct Kept {
    key: TestKey,
    node: NodeProcess,
    good: TcpNode,
    block: RemoteBlock,
}

fn kept() -> Kept {
    let key = key();
    let node = NodeProcess::start(
        "127.0.0.1:0",
        "8MiB",
        &["--key-file", key.arg(), HTTP_ON[0], HTTP_ON[1], "--max-connections", "20"],
    );
    let good = secured(&node.address, 1, &key.security);
    good.connect().unwrap();
    let [block] = borrow(&good);
    good.write_at(LANE, block, 4096, b"precious").unwrap();
    Kept { key, node, good, block }
}

impl Kept {
    fn check(&self) {
        let mut data = [0; 8];
        self.good.read_at(LANE, self.block, 4096, &mut data).unwrap();
        assert_eq!(&data, b"precious");
        assert_eq!(self.good.stat(LANE).unwrap().held_blocks, 1);
    }
}

#[test]
fn data_of_any_length_comes_back_whole_with_a_key_and_without_over_lanes_and_links() {
    let key = key();
    for (security, options) in
        [(Security::Plaintext, vec![]), (key.security.clone(), vec!["--key-file", key.arg()])]
    {
        let node = NodeProcess::start("127.0.0.1:0", "8MiB", &options);
        let client = secured(&node.address, 1, &security);
        assert!(matches!(client.open_link(0), Err(RemoteError::NotConnected)));
        client.connect().unwrap();
        let [first, second] = borrow(&client);
        for len in [1, 15, 16, 4079, 4080, 4096, 8191, 8192, 8193, 100_000, BLOCK_BYTES] {
            let data: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
            let offset = (BLOCK_BYTES - len) as u32;
            for lane in [Lane::CONTROL, Lane::WRITER, Lane(2)] {
                client.write_at(lane, first, offset, &data).unwrap();
                let mut back = vec![0; len];
                client.read_at(lane, first, offset, &mut back).unwrap();
                assert!(back == data, "{len}");
            }
            through_link(&client, second, offset, &data);
            let mut back = vec![0; len];
            client.read_at(LANE, second, offset, &mut back).unwrap();
            assert!(back == data, "{len} through a link");
        }
        client.disconnect();
        assert_eq!(client.connect().unwrap().held_blocks, 0);
    }
}

/// Writes and reads back through a queue's link, as a ring would: bytes out, bytes in.
fn through_link(client: &TcpNode, block: RemoteBlock, offset: u32, data: &[u8]) {
    let LinkStart::Socket { socket, mut codec } = client.open_link(0).unwrap() else { panic!() };
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut out = Outbox::new(3 << 20);
    assert!(codec.write(1, block, offset, data, &mut out));
    assert!(codec.read(2, block, offset, data.len() as u32, &mut out));
    assert!(codec.read(3, RemoteBlock { generation: 9, ..block }, offset, 1, &mut out));
    stream.write_all(out.bytes()).unwrap();
    let (mut inbox, mut answers) = (Vec::new(), 0);
    let mut piece = vec![0; 60_000];
    while answers < 3 {
        match codec.parse(&mut inbox).unwrap() {
            Parsed::More(_) => {
                let got = stream.read(&mut piece).unwrap();
                assert!(got > 0);
                inbox.extend(&piece[..got]);
            }
            Parsed::Message { used, id, result } => {
                answers += 1;
                match (id, result) {
                    (1, Ok(range)) => assert!(range.is_empty()),
                    (2, Ok(range)) => assert!(inbox[range] == *data),
                    (3, refused) => assert_eq!(refused, Err((Opcode::Read, Status::Reused))),
                    other => panic!("{other:?}"),
                }
                inbox.drain(..used);
            }
        }
    }
}

#[test]
fn a_wrong_key_and_a_downgrade_either_way_are_refused_by_name_and_logged_and_harm_nobody() {
    let kept = kept();
    let (other, address) = (key(), kept.node.address.as_str());
    let wrong = secured(address, 2, &other.security).connect().unwrap_err();
    assert!(matches!(wrong, RemoteError::Refused(Opcode::Secure, Status::WrongKey)), "{wrong}");
    assert!(wrong.to_string().contains("the client's key is not the node's"), "{wrong}");
    let without = client(address, 2).connect().unwrap_err();
    assert!(matches!(without, RemoteError::Refused(Opcode::Hello, Status::KeyNeeded)), "{without}");
    assert!(without.to_string().contains("the node wants a key"), "{without}");
    let plain = NodeProcess::start("127.0.0.1:0", "8MiB", &[]);
    let with = secured(&plain.address, 2, &kept.key.security).connect().unwrap_err();
    assert!(matches!(with, RemoteError::Refused(Opcode::Secure, Status::NoKey)), "{with}");
    assert!(with.to_string().contains("the node has no key (--insecure-plaintext)"), "{with}");
    kept.check();
    assert_eq!(stats(&kept.node)["broken_connections"], 2);
    assert_eq!(stats(&kept.node)["clients"].as_array().unwrap().len(), 1);
    let log = kept.node.log();
    assert!(
        log.contains("closed: the client's key is not") && log.contains("closed: the node wants a key"),
        "{log}"
    );
    assert!(plain.log().contains("closed: the node has no key"));
    assert!(client(&plain.address, 3).connect().is_ok(), "the plain node goes on");
}

/// What somebody on the wire does with the bytes that go to the node, whose first has the given place in the stream.
type Meddler = fn(&mut Vec<u8>, usize);

/// Somebody between client and node. Gives the address to connect to.
fn in_the_middle(node: &str, meddle: Meddler) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let node = node.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut there) = (client.unwrap(), TcpStream::connect(&node).unwrap());
            let (mut back, mut from_node) = (client.try_clone().unwrap(), there.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from_node, &mut back);
                let _ = back.shutdown(std::net::Shutdown::Both);
            });
            std::thread::spawn(move || {
                let (mut seen, mut piece) = (0, [0; 4096]);
                while let Ok(got @ 1..) = client.read(&mut piece) {
                    let mut bytes = piece[..got].to_vec();
                    meddle(&mut bytes, seen);
                    seen += got;
                    if there.write_all(&bytes).is_err() {
                        break;
                    }
                }
                let _ = there.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    address
}

/// Bytes of the handshake's and HELLO's messages, as they go to the node.
const SECURE_END: usize = HEADER_BYTES + 48;

const HELLO_END: usize = SECURE_END + HEADER_BYTES + 32 + 16;

fn flip(bytes: &mut [u8], seen: usize, at: usize) {
    if let Some(byte) = at.checked_sub(seen).and_then(|at| bytes.get_mut(at)) {
        *byte ^= 1;
    }
}

#[test]
fn a_bit_flipped_on_the_way_at_any_stage_is_refused_and_harms_nobody() {
    let kept = kept();
    // In the handshake, HELLO and its tag no lane opens; in a header, a body, data or a tag the lane is closed.
    let early: [Meddler; 4] = [
        |bytes, seen| flip(bytes, seen, HEADER_BYTES + 3),
        |bytes, seen| flip(bytes, seen, SECURE_END + 8),
        |bytes, seen| flip(bytes, seen, SECURE_END + HEADER_BYTES + 20),
        |bytes, seen| flip(bytes, seen, HELLO_END - 1),
    ];
    for meddle in early {
        let address = in_the_middle(&kept.node.address, meddle);
        secured(&address, 7, &kept.key.security).connect().unwrap_err();
        kept.check();
    }
    let late: [Meddler; 5] = [
        |bytes, seen| flip(bytes, seen, HELLO_END + 8),
        |bytes, seen| flip(bytes, seen, HELLO_END + 20),
        |bytes, seen| flip(bytes, seen, HELLO_END + HEADER_BYTES),
        |bytes, seen| flip(bytes, seen, HELLO_END + HEADER_BYTES + 16 + 5),
        |bytes, seen| flip(bytes, seen, HELLO_END + HEADER_BYTES + 16 + 50_000 + 15),
    ];
    let direct = secured(&kept.node.address, 7, &kept.key.security);
    for meddle in late {
        direct.connect().unwrap();
        let [block] = borrow(&direct);
        direct.write_at(LANE, block, 0, &[1; 50_000]).unwrap();
        let address = in_the_middle(&kept.node.address, meddle);
        let victim = TcpNode::new(
            &address,
            7,
            direct.incarnation(),
            Duration::from_secs(1),
            kept.key.security.clone(),
        );
        let victim = victim.unwrap();
        victim.connect().unwrap();
        victim.write_at(Lane::WRITER, block, 0, &[2; 50_000]).unwrap_err();
        assert!(matches!(victim.stat(Lane::WRITER), Err(RemoteError::NotConnected)));
        direct.set_incarnation(victim.incarnation());
        direct.connect().unwrap();
        let mut data = vec![0; 50_000];
        direct.read_at(LANE, block, 0, &mut data).unwrap();
        assert!(data.iter().all(|byte| *byte == 1), "nothing of the changed message has reached the block");
        kept.check();
    }
    assert!(kept.node.log().contains("closed: a message is not what the holder of the key sent"));
}

#[test]
fn a_message_that_is_replayed_and_a_recorded_connection_that_is_replayed_are_refused() {
    let kept = kept();
    let doubled: Meddler = |bytes, seen| {
        // A whole message comes in one piece when it is the only one on its way.
        if seen == HELLO_END {
            bytes.extend_from_within(..);
        }
    };
    let address = in_the_middle(&kept.node.address, doubled);
    let victim = secured(&address, 7, &kept.key.security);
    victim.connect().unwrap();
    victim.stat(LANE).unwrap();
    // The second copy was not opened, and its connection is over.
    victim.stat(LANE).unwrap_err();
    assert!(kept.node.log().contains("closed: a message is not what"));
    // All that was said on one connection, said again on another by somebody without the key.
    static RECORDED: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());
    let address =
        in_the_middle(&kept.node.address, |bytes, _| RECORDED.lock().unwrap().extend_from_slice(bytes));
    let recorded = secured(&address, 8, &kept.key.security);
    recorded.connect().unwrap();
    let before = stats(&kept.node)["broken_connections"].as_u64().unwrap();
    let mut stream = TcpStream::connect(&kept.node.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    stream.write_all(&RECORDED.lock().unwrap()[..HELLO_END]).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.len() <= SECURE_END, "the handshake's answer at most, no word after it");
    assert_eq!(stats(&kept.node)["broken_connections"].as_u64().unwrap(), before + 1);
    kept.check();
}

#[test]
fn a_handshake_that_is_cut_short_costs_the_node_one_closed_connection() {
    let kept = kept();
    let whole = Header::request(Opcode::Secure, 1, 48).encode(&[7; 48], &[]);
    for len in [1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 20] {
        let mut stream = TcpStream::connect(&kept.node.address).unwrap();
        let mut bytes = [&whole[..], &[7; 48]].concat();
        bytes.truncate(len);
        stream.write_all(&bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0, "closed without a word");
    }
    // An answer that is cut short, or made up, is no node's.
    let address = impostor(b"DPSW\x02\0\x09\x01");
    let error = TcpNode::new(&address, 1, 0, Duration::from_millis(300), kept.key.security.clone())
        .unwrap()
        .connect();
    assert!(matches!(error, Err(RemoteError::TimedOut)), "{error:?}");
    kept.check();
}

#[test]
fn a_key_is_made_at_the_first_start_and_one_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/key");
    let node = NodeProcess::start("127.0.0.1:0", "1MiB", &["--key-file", path.to_str().unwrap()]);
    assert!(node.log().contains(&format!("made a new key, {}", path.display())), "{}", node.log());
    let key = KeyFile::load_or_create(&path, false).unwrap().key;
    secured(&node.address, 1, &Security::Psk(key)).connect().unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpuswap-node"));
    command.args(["--listen", "127.0.0.1:0", "--memory", "1MiB", "--key-file"]).arg(&path);
    let output = command.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains(path.to_str().unwrap()) && error.contains("chmod 600"), "{error}");
}

#[test]
fn garbage_on_the_nodes_port_is_cut_off_and_harms_nobody() {
    let key = key();
    for (security, options) in
        [(Security::Plaintext, vec![]), (key.security.clone(), vec!["--key-file", key.arg()])]
    {
        check_garbage(&security, &options);
    }
}

fn check_garbage(security: &Security, options: &[&str]) {
    let node = NodeProcess::start("127.0.0.1:0", "8MiB", options);
    let good = secured(&node.address, 1, security);
    good.connect().unwrap();
    let mut blocks = [RemoteBlock::numbered(0); 2];
    good.reserve(LANE, &mut blocks).unwrap();
    good.write_at(LANE, blocks[0], 4096, b"precious").unwrap();
    let too_long = Header::request(Opcode::Write, 1, MAX_PAYLOAD_BYTES + 1).encode(&[], &[]).to_vec();
    let mut bad_sum = Header::request(Opcode::Hello, 1, 32).encode(&[0; 32], &[]).to_vec();
    bad_sum.extend([1; 32]);
    let before_hello = Header::request(Opcode::Stat, 1, 0).encode(&[], &[]).to_vec();
    let http = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".to_vec();
    for garbage in [http, vec![0; 4096], vec![0xff; 100_000], too_long, bad_sum, before_hello] {
        let mut stream = TcpStream::connect(&node.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        let _ = stream.write_all(&garbage);
        let mut answer = Vec::new();
        // Ends because the node closes: with an end of file, or a reset when it left something unread.
        match stream.read_to_end(&mut answer) {
            Ok(len) => assert!(len <= HEADER_BYTES, "{len} bytes of answer"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
    let mut data = [0; 8];
    good.read_at(LANE, blocks[0], 4096, &mut data).unwrap();
    assert_eq!(&data, b"precious");
    assert_eq!(good.stat(LANE).unwrap().free_blocks, 6);
}

#[test]
fn a_node_tells_a_client_of_another_version_which_one_it_speaks() {
    let node = NodeProcess::start("127.0.0.1:0", "1MiB", &[]);
    let mut stream = TcpStream::connect(&node.address).unwrap();
    let mut hello = Header::request(Opcode::Hello, 1, 0).encode(&[], &[]);
    hello[4] = 1;
    stream.write_all(&hello).unwrap();
    let mut answer = [0; HEADER_BYTES];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(Header::decode(&answer).unwrap().status, Status::Version);
}

const NEWER: &[u8] = b"DPSW\x07\0\x01\x01\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[test]
fn a_peer_that_is_no_node_is_told_from_one_of_another_version_and_one_that_says_nothing() {
    let open = |address: &str| {
        let node = TcpNode::new(address, 1, 0, Duration::from_millis(300), Security::Plaintext).unwrap();
        node.connect().unwrap_err()
    };
    assert!(matches!(open(&impostor(HTTP)), RemoteError::Protocol(ProtoError::Magic)));
    assert!(matches!(open(&impostor(NEWER)), RemoteError::Protocol(ProtoError::Version(7))));
    assert!(matches!(open(&impostor(b"")), RemoteError::TimedOut));
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    assert!(matches!(open(&unused), RemoteError::Connect(_)));
}
