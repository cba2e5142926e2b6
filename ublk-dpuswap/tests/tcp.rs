//! The engine and the node over real sockets, with peers that die, lie or say nothing.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{NodeProcess, eventually, page, remotes};
use nix::sys::signal::Signal;
use ublk_dpuswap::engine::{Config, Engine};
use ublk_dpuswap::proto::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, Opcode, ProtoError};
use ublk_dpuswap::remote::{Lane, RemoteError, RemoteNode, tcp::TcpNode};
use ublk_dpuswap::units::{Choices, NodeId, PAGE_BYTES, PageNo, RemoteBlock};
use ublk_dpuswap::{Error, IoError};

fn config(pages: u32) -> Config {
    Config { cache_bytes: 1 << 20, heartbeat: Duration::from_millis(50), ..Config::new(pages) }
}

fn client(address: &str, id: u64) -> TcpNode {
    TcpNode::new(address, id, 1, Duration::from_secs(2)).unwrap()
}

#[test]
fn pages_come_back_whole_over_two_nodes_through_overwrites_and_discards() {
    let nodes =
        [NodeProcess::start("127.0.0.1:0", "32MiB", &[]), NodeProcess::start("127.0.0.1:0", "32MiB", &[])];
    let addresses = [nodes[0].address.as_str(), nodes[1].address.as_str()];
    let engine = Engine::open(config(8192), remotes(&addresses, 1, Lane::count(1), 3000)).unwrap();
    engine.start().unwrap();
    let mut queue = engine.queue(0);
    let mut order = Choices::new(2);
    let mut latest: HashMap<u32, u32> = HashMap::new();
    for seed in 1..6000 {
        let number = order.below(8192);
        engine.swap_out(&mut queue, PageNo(number), &page(seed)).unwrap();
        latest.insert(number, seed);
        if seed % 5 == 0 {
            let gone = order.below(8192);
            engine.discard(PageNo(gone), 1).unwrap();
            latest.remove(&gone);
        }
    }
    let mut all = vec![0; 8192 * PAGE_BYTES];
    engine.swap_in(&mut queue, PageNo(0), &mut all).unwrap();
    for (number, got) in (0u32..).zip(all.chunks(PAGE_BYTES)) {
        let wanted = latest.get(&number).map_or(vec![0; PAGE_BYTES], |seed| page(*seed));
        assert!(got == wanted, "page {number}");
    }
    let report = engine.report();
    assert!(report.nodes.iter().all(|node| node.bytes_out > 1 << 20), "both nodes are used: {report:?}");
    assert!(report.compression_ratio > 1.2, "{report:?}");
    assert!(
        report.counters.remote_reads < report.counters.misses,
        "neighbours are read together: {report:?}"
    );
    engine.stop();
    let info = client(&nodes[0].address, 9).connect().unwrap();
    assert_eq!(info.free_blocks, 32, "a stopped device leaves nothing behind");
}

#[test]
fn a_killed_node_gives_errors_at_once_that_name_it_and_its_successor_is_used_again() {
    let mut nodes =
        [NodeProcess::start("127.0.0.1:0", "32MiB", &[]), NodeProcess::start("127.0.0.1:0", "32MiB", &[])];
    let addresses = [nodes[0].address.clone(), nodes[1].address.clone()];
    let names: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let engine = Engine::open(config(8192), remotes(&names, 1, Lane::count(1), 3000)).unwrap();
    engine.start().unwrap();
    let mut queue = engine.queue(0);
    for number in 0..4000 {
        engine.swap_out(&mut queue, PageNo(number), &page(number * 3)).unwrap();
    }
    nodes[0].kill();
    let start = Instant::now();
    let mut data = vec![0; PAGE_BYTES];
    let mut lost = Vec::new();
    for number in 0..4000 {
        match engine.swap_in(&mut queue, PageNo(number), &mut data) {
            Ok(()) => assert!(data == page(number * 3), "page {number}"),
            Err(IoError::NodeDown(node)) => {
                assert_eq!(engine.node_name(node), addresses[0]);
                lost.push(number);
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(start.elapsed() < Duration::from_secs(60), "no hang");
    assert!(!lost.is_empty() && lost.len() < 4000, "{} of 4000", lost.len());
    for number in 4000..6000 {
        engine.swap_out(&mut queue, PageNo(number), &page(number * 3)).unwrap();
    }
    nodes[0] = NodeProcess::start(&addresses[0], "32MiB", &[]);
    eventually("node 0 is up again", || engine.report().nodes[0].state == "up");
    assert_eq!(engine.swap_in(&mut queue, PageNo(lost[0]), &mut data), Err(IoError::Lost(NodeId(0))));
    let before = engine.report().nodes[0].bytes_out;
    for number in &lost {
        engine.swap_out(&mut queue, PageNo(*number), &page(number * 3)).unwrap();
    }
    for number in 0..6000 {
        engine.swap_in(&mut queue, PageNo(number), &mut data).unwrap();
        assert!(data == page(number * 3), "page {number}");
    }
    assert!(engine.report().nodes[0].bytes_out > before, "the new node is written to");
}

#[test]
fn a_stopped_node_is_given_up_after_the_time_out_and_taken_back_with_its_content() {
    let node = NodeProcess::start("127.0.0.1:0", "32MiB", &[]);
    let engine = Engine::open(config(4096), remotes(&[&node.address], 1, Lane::count(1), 300)).unwrap();
    let mut queue = engine.queue(0);
    for number in 0..1000 {
        engine.swap_out(&mut queue, PageNo(number), &page(number * 3)).unwrap();
    }
    node.signal(Signal::SIGSTOP);
    let mut data = vec![0; PAGE_BYTES];
    let failed = (0..1000).find_map(|number| engine.swap_in(&mut queue, PageNo(number), &mut data).err());
    assert_eq!(failed, Some(IoError::NodeDown(NodeId(0))));
    node.signal(Signal::SIGCONT);
    engine.start().unwrap();
    eventually("the node is up again", || engine.report().nodes[0].state == "up");
    for number in 0..1000 {
        engine.swap_in(&mut queue, PageNo(number), &mut data).unwrap();
        assert!(data == page(number * 3), "page {number}");
    }
}

#[test]
fn garbage_on_the_nodes_port_is_cut_off_and_harms_nobody() {
    let node = NodeProcess::start("127.0.0.1:0", "8MiB", &[]);
    let good = client(&node.address, 1);
    good.connect().unwrap();
    let mut blocks = [RemoteBlock::numbered(0); 2];
    good.reserve(Lane(0), &mut blocks).unwrap();
    good.write_at(Lane(0), blocks[0], 4096, b"precious").unwrap();
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
    good.read_at(Lane(0), blocks[0], 4096, &mut data).unwrap();
    assert_eq!(&data, b"precious");
    assert_eq!(good.stat(Lane(0)).unwrap().free_blocks, 6);
}

#[test]
fn a_node_tells_a_client_of_another_version_which_one_it_speaks() {
    let node = NodeProcess::start("127.0.0.1:0", "1MiB", &[]);
    let mut stream = TcpStream::connect(&node.address).unwrap();
    let mut hello = Header::request(Opcode::Hello, 1, 0).encode(&[], &[]);
    hello[4] = 2;
    stream.write_all(&hello).unwrap();
    let mut answer = [0; HEADER_BYTES];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(Header::decode(&answer).unwrap().status, ublk_dpuswap::proto::Status::Version);
}

/// A server that answers every connection with `answer` and keeps it open.
fn impostor(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut hello = [0; 64];
            stream.read_exact(&mut hello).unwrap();
            stream.write_all(answer).unwrap();
            kept.push(stream);
        }
    });
    address
}

const HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
const NEWER: &[u8] = b"DPSW\x07\0\x01\x01\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[test]
fn a_peer_that_is_no_node_is_told_from_one_of_another_version_and_one_that_says_nothing() {
    let open = |address: &str| {
        let node = TcpNode::new(address, 1, 1, Duration::from_millis(300)).unwrap();
        node.connect().unwrap_err()
    };
    assert!(matches!(open(&impostor(HTTP)), RemoteError::Protocol(ProtoError::Magic)));
    assert!(matches!(open(&impostor(NEWER)), RemoteError::Protocol(ProtoError::Version(7))));
    assert!(matches!(open(&impostor(b"")), RemoteError::TimedOut));
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    assert!(matches!(open(&unused), RemoteError::Connect(_)));
    let engine = Engine::open(config(100), remotes(&[&unused], 1, 1, 300));
    assert!(matches!(engine, Err(Error::Node { node, .. }) if node == unused));
}

#[test]
fn adding_with_an_unusable_node_is_one_line_and_status_1_and_wrong_options_are_status_2() {
    let node = NodeProcess::start("127.0.0.1:0", "8MiB", &[]);
    let full = NodeProcess::start("127.0.0.1:0", "1MiB", &[]);
    let borrower = client(&full.address, 1);
    borrower.connect().unwrap();
    borrower.reserve(Lane(0), &mut [RemoteBlock::numbered(0); 1]).unwrap();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (http, silent) = (impostor(HTTP), impostor(b""));
    let add = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ublk-dpuswap"));
        let output = command.arg("add").args(["--node-timeout-ms", "300"]).args(arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.stdout.is_empty());
        (output.status.code(), error)
    };
    for (address, why) in [
        (unused.as_str(), "cannot connect: Connection refused"),
        (http.as_str(), "does not speak the dpuswap protocol"),
        (silent.as_str(), "no answer in time"),
        (full.address.as_str(), "no free memory to lend"),
    ] {
        let (code, error) = add(&["--size", "16MiB", "--node", &node.address, "--node", address]);
        assert_eq!((code, error.lines().count()), (Some(1), 1), "{error}");
        assert!(error.contains(&format!("node {address}: ")) && error.contains(why), "{error}");
    }
    for wrong in [
        vec!["--size", "16MiB"],
        vec!["--size", "5TiB", "--node", &node.address],
        vec!["--size", "16MiB", "--node", &node.address, "--cache", "65GiB"],
        vec!["--size", "1000", "--node", &node.address],
        vec!["--size", "16MiB", "--node", &node.address, "--group-pages", "17"],
        vec!["--size", "16MiB", "--node", &node.address, "--group-pages", "256"],
        vec!["--size", "16MiB", "--node", &node.address, "--node", &node.address],
        vec!["--size", "16MiB", "--node", &node.address, "--cache", "1KiB"],
    ] {
        let (code, error) = add(&wrong);
        assert_eq!(code, Some(2), "{wrong:?}: {error}");
        assert!(wrong.len() == 2 || error.lines().count() == 1, "{error}");
    }
}

#[test]
fn a_client_that_dies_leaks_nothing() {
    let node = NodeProcess::start("127.0.0.1:0", "8MiB", &["--grace", "1"]);
    let dead = client(&node.address, 1);
    dead.connect().unwrap();
    dead.reserve(Lane(0), &mut [RemoteBlock::numbered(0); 8]).unwrap();
    let other = client(&node.address, 2);
    assert_eq!(other.connect().unwrap().free_blocks, 0);
    drop(dead);
    eventually("the blocks are free again", || other.stat(Lane(0)).unwrap().free_blocks == 8);
}

#[test]
fn a_node_refuses_more_connections_than_it_allows_and_goes_on_serving() {
    let node = NodeProcess::start("127.0.0.1:0", "8MiB", &["--max-connections", "2"]);
    let (first, second) = (client(&node.address, 1), client(&node.address, 2));
    first.connect().unwrap();
    second.connect().unwrap();
    let third = client(&node.address, 3);
    assert!(matches!(third.connect(), Err(RemoteError::Refused(_, ublk_dpuswap::proto::Status::Busy))));
    first.stat(Lane(0)).unwrap();
    second.disconnect();
    eventually("there is room again", || third.connect().is_ok());
}

#[test]
fn sigterm_ends_a_node_cleanly_with_status_0() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let mut node = NodeProcess::start("127.0.0.1:0", "8MiB", &["--pid-file", pid_file.to_str().unwrap()]);
    let connected = client(&node.address, 1);
    connected.connect().unwrap();
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap().trim(), node.child.id().to_string());
    node.signal(Signal::SIGTERM);
    assert_eq!(node.child.wait().unwrap().code(), Some(0));
    assert!(!pid_file.exists());
}

#[test]
fn a_node_in_the_background_serves_when_its_command_returns_and_a_taken_port_is_one_line_and_status_1() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let run = |listen: &str, memory: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dpuswap-node"));
        command.args([
            "--listen",
            listen,
            "--memory",
            memory,
            "--json",
            "--pid-file",
            pid_file.to_str().unwrap(),
        ]);
        command.env("STORLAB_RUN_DIR", dir.path().join("run")).env("RUST_LOG", "info").output().unwrap()
    };
    let output = run("127.0.0.1:0", "8MiB");
    assert_eq!(output.status.code(), Some(0));
    let served: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let address = served["listen"].as_str().unwrap();
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    assert_eq!(served["pid"].as_i64(), Some(i64::from(pid)));
    assert_eq!(client(address, 1).connect().unwrap().free_blocks, 8);
    let port = address.rsplit_once(':').unwrap().1;
    let log = dir.path().join(format!("run/node-{port}.log"));
    TcpStream::connect(address).unwrap().write_all(&[0; 100]).unwrap();
    eventually("the log tells of the stranger", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("closed: "))
    });
    for (listen, memory, why) in [
        (address, "8MiB", "Address already in use"),
        ("127.0.0.1:0", "1KiB", "at least 1 MiB"),
        ("127.0.0.1:0", "5TiB", "at most 4 TiB"),
    ] {
        let failed = run(listen, memory);
        let error = String::from_utf8(failed.stderr).unwrap();
        assert_eq!((failed.status.code(), error.lines().count()), (Some(1), 1), "{error}");
        assert!(error.contains(why), "{error}");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    eventually("the node is gone", || !pid_file.exists());
}

#[test]
fn a_node_without_a_place_for_its_log_serves_without_one_but_not_without_the_log_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing/log");
    let run = |extra: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dpuswap-node"));
        command.args(["--listen", "127.0.0.1:0", "--memory", "1MiB", "--json"]).args(extra);
        command.env("STORLAB_RUN_DIR", missing.parent().unwrap().join("run")).output().unwrap()
    };
    let output = run(&["--log", missing.to_str().unwrap()]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains(missing.to_str().unwrap()), "{error}");
    let output = run(&[]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{error}");
    let served: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let pid = i32::try_from(served["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap();
}

#[test]
fn a_node_that_cannot_lock_its_memory_as_asked_does_not_start() {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpuswap-node"));
    command.args(["--listen", "127.0.0.1:0", "--memory", "8MiB", "--lock", "--foreground"]);
    // SAFETY: only system calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            const PR_CAPBSET_DROP: libc::c_int = 24;
            const CAP_IPC_LOCK: libc::c_int = 14;
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // Refused to a user that is not root, who has no such right anyway.
            libc::prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0);
            match libc::setrlimit(libc::RLIMIT_MEMLOCK, &none) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let mut node =
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    // One that serves although it was told to lock would never end by itself.
    let start = Instant::now();
    let status = loop {
        match node.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > Duration::from_secs(20) => {
                node.kill().unwrap();
                break node.wait().unwrap();
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let mut error = String::new();
    node.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert_eq!((status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.starts_with("dpuswap-node: --lock: locking memory: "), "{error}");
}
