//! The node and its client over real sockets: blocks, limits, many connections, and a node that wants its memory back.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{HTTP_ON, LANE, NodeProcess, borrow, client, eventually, get, key, post, secured, stats};
use nix::sys::signal::Signal;
use ublk_dpuswap::proto::{HEADER_BYTES, Header, Hello, INFO_BYTES, INFO_DRAINING, Opcode, Status};
use ublk_dpuswap::remote::tcp::MAX_UNFINISHED;
use ublk_dpuswap::remote::{Lane, RemoteError, RemoteNode};
use ublk_dpuswap::secure::Security;
use ublk_dpuswap::units::{BLOCK_BYTES, RemoteBlock};

#[test]
fn a_block_that_is_lent_anew_cannot_be_reached_by_its_earlier_generation() {
    let node = NodeProcess::start("127.0.0.1:0", "1MiB", &[]);
    let client = client(&node.address, 1);
    client.connect().unwrap();
    let [old] = borrow(&client);
    client.release(LANE, &[old]).unwrap();
    let [new] = borrow(&client);
    assert_eq!((old.number, old.generation + 1), (new.number, new.generation));
    let refused = |result| matches!(result, Err(RemoteError::Refused(_, Status::Reused)));
    assert!(refused(client.write_at(LANE, old, 0, b"late")));
    assert!(refused(client.read_at(LANE, old, 0, &mut [0; 4])));
    assert!(refused(client.release(LANE, &[old]).map(|_| ())));
    client.write_at(LANE, new, 0, b"good").unwrap();
}

#[test]
fn several_writes_at_once_are_answered_in_order_and_bounded() {
    let key = key();
    for (security, options) in
        [(Security::Plaintext, vec![]), (key.security.clone(), vec!["--key-file", key.arg()])]
    {
        let node = NodeProcess::start("127.0.0.1:0", "8MiB", &options);
        let client = secured(&node.address, 1, &security);
        client.connect().unwrap();
        let blocks: [_; 4] = borrow(&client);
        let gone = RemoteBlock { generation: 5, ..blocks[3] };
        let data = |at: usize| vec![at as u8 + 1; 300_000];
        let start = |at: usize| {
            let block = if at == 9 { gone } else { blocks[at % 3] };
            client.start_write(Lane::WRITER, block, (at / 3 % 3 * 300_000) as u32, &data(at)).unwrap()
        };
        let tickets: Vec<u64> = (0..MAX_UNFINISHED).map(start).collect();
        let unfinished = |result: Result<(), _>| matches!(result, Err(RemoteError::Unfinished));
        assert!(unfinished(client.start_write(Lane::WRITER, blocks[0], 0, b"x").map(drop)));
        assert!(unfinished(client.stat(Lane::WRITER).map(|_| ())));
        assert!(client.stat(Lane(2)).is_ok(), "other lanes are free");
        assert!(unfinished(client.finish_write(Lane::WRITER, tickets[1])), "not the oldest");
        for (at, ticket) in tickets.iter().enumerate() {
            let done = client.finish_write(Lane::WRITER, *ticket);
            let refused = matches!(done, Err(RemoteError::Refused(Opcode::Write, Status::Reused)));
            assert_eq!((done.is_ok(), refused), (at != 9, at == 9), "{at}: {done:?}");
        }
        assert!(unfinished(client.finish_write(Lane::WRITER, tickets[0])));
        // An answer on a new connection is not taken for one to a write on the old.
        let old = client.start_write(Lane::WRITER, blocks[0], 0, b"old").unwrap();
        client.connect().unwrap();
        let new = client.start_write(Lane::WRITER, blocks[0], 0, b"new").unwrap();
        assert!(unfinished(client.finish_write(Lane::WRITER, old)));
        client.finish_write(Lane::WRITER, new).unwrap();
        let mut back = vec![0; 300_000];
        client.read_at(Lane::WRITER, blocks[1], 300_000, &mut back).unwrap();
        assert!(back == data(13), "the last one written there");
    }
}

#[test]
fn a_client_that_comes_back_finds_all_it_held() {
    let node = NodeProcess::start("127.0.0.1:0", "300MiB", &[]);
    let first = client(&node.address, 1).with_grace(60);
    let before = first.connect().unwrap();
    let mut held: Vec<RemoteBlock> = Vec::new();
    held.extend(borrow::<256>(&first));
    held.extend(borrow::<30>(&first));
    held.sort();
    first.write_at(LANE, held[7], 0, b"still here").unwrap();
    let incarnation = first.incarnation();
    // As after kill -9: no goodbye.
    drop(first);
    let again = client(&node.address, 1);
    assert!(
        matches!(again.connect(), Ok(info) if info.lease == before.lease),
        "the incarnation is the same: 1"
    );
    again.set_incarnation(incarnation + 10);
    let info = again.connect().unwrap();
    assert_eq!((info.epoch, info.lease, info.held_blocks), (before.epoch, before.lease, 286));
    let mut found = Vec::new();
    again.held(LANE, &mut |block| found.push(block)).unwrap();
    assert!(found == held);
    let mut data = [0; 10];
    again.read_at(LANE, held[7], 0, &mut data).unwrap();
    assert_eq!(&data, b"still here");
    let late = client(&node.address, 1);
    assert!(matches!(late.connect(), Err(RemoteError::Refused(_, Status::Stale))), "fenced off");
}

#[test]
fn a_quota_is_kept_and_said_and_does_not_bind_others() {
    let node = NodeProcess::start("127.0.0.1:0", "8MiB", &["--quota", "3MiB"]);
    let (greedy, modest) = (client(&node.address, 1), client(&node.address, 2));
    assert_eq!(greedy.connect().unwrap().quota_blocks, 3);
    let mut blocks = [RemoteBlock::default(); 8];
    let granted = greedy.reserve(LANE, &mut blocks).unwrap();
    assert_eq!((granted.granted, granted.free_blocks), (3, 0));
    assert_eq!(greedy.reserve(LANE, &mut blocks).unwrap().granted, 0);
    assert!(node.log().contains("lent nothing: the client's quota is used up"), "{}", node.log());
    assert_eq!(modest.connect().unwrap().free_blocks, 3);
    assert_eq!(modest.reserve(LANE, &mut blocks).unwrap().granted, 3);
}

#[test]
fn a_thousand_connections_cost_little_and_garbage_and_silent_peers_among_them_are_cut_off() {
    let files = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, hard) = nix::sys::resource::getrlimit(files).unwrap();
    nix::sys::resource::setrlimit(files, 4096.min(hard), hard).unwrap();
    let node = NodeProcess::start("127.0.0.1:0", "64MiB", &HTTP_ON);
    let good = client(&node.address, 1);
    good.connect().unwrap();
    let [block] = borrow(&good);
    good.write_at(LANE, block, 0, b"precious").unwrap();
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().trim().parse::<i64>().unwrap()
    };
    let before = resident();
    let connect = || TcpStream::connect(&node.address).unwrap();
    let idle: Vec<TcpStream> = (0..1000_u64)
        .map(|id| {
            let hello =
                Hello { client_id: 100 + id, incarnation: 1, block_bytes: BLOCK_BYTES as u32, grace_s: 0 };
            let body = hello.encode();
            let mut stream = connect();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(&Header::request(Opcode::Hello, 1, body.len()).encode(&body, &[])).unwrap();
            stream.write_all(&body).unwrap();
            let mut answer = [0; HEADER_BYTES + INFO_BYTES];
            stream.read_exact(&mut answer).unwrap();
            stream
        })
        .collect();
    let each = (resident() - before) as f64 / 1000.0;
    println!("{each:.1} KiB of the node's memory per idle connection");
    assert!(each < 64.0, "{each} KiB");
    // 21 slots are left: half of them for those who say nothing, or half of something.
    let silent: Vec<TcpStream> = (0..5).map(|_| connect()).collect();
    let slow: Vec<TcpStream> = (0..5)
        .map(|_| {
            let mut stream = connect();
            stream.write_all(b"DPSW\x02").unwrap();
            stream
        })
        .collect();
    for round in 0..40_u8 {
        let mut stream = connect();
        let _ = stream.write_all(&[round; 3000]);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    for mut stream in silent.into_iter().chain(slow) {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let end = stream.read(&mut [0; 100]);
        assert!(matches!(end, Ok(0)) || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    }
    let mut data = [0; 8];
    good.read_at(LANE, block, 0, &mut data).unwrap();
    assert_eq!(&data, b"precious");
    let told = stats(&node);
    assert_eq!(told["connections"], 1003, "{told}");
    assert!(told["broken_connections"].as_u64().unwrap() >= 35, "{told}");
    drop(idle);
    eventually("the connections are gone", || stats(&node)["connections"] == 3);
    assert_eq!(stats(&node)["clients"].as_array().unwrap().len(), 1, "who held nothing is forgotten at once");
}

#[test]
fn a_node_that_is_told_to_end_waits_for_what_it_lent_and_says_so_in_every_info() {
    let mut node = NodeProcess::start("127.0.0.1:0", "8MiB", &HTTP_ON);
    let holder = client(&node.address, 1);
    holder.connect().unwrap();
    let blocks: [_; 3] = borrow(&holder);
    holder.write_at(LANE, blocks[0], 0, b"precious").unwrap();
    node.signal(Signal::SIGTERM);
    eventually("it is draining", || holder.stat(LANE).unwrap().flags == INFO_DRAINING);
    let info = holder.stat(LANE).unwrap();
    assert_eq!((info.reclaim_blocks, info.free_blocks), (3, 0));
    assert!((1..=30_000).contains(&info.reclaim_deadline_ms));
    assert_eq!(holder.reserve(LANE, &mut [RemoteBlock::default()]).unwrap().granted, 0);
    assert!(matches!(client(&node.address, 2).connect(), Err(RemoteError::Refused(_, Status::Draining))));
    assert_eq!(get(node.http.as_ref().unwrap(), "/health"), (503, "draining\n".to_owned()));
    let mut data = [0; 8];
    holder.read_at(LANE, blocks[0], 0, &mut data).unwrap();
    assert_eq!(&data, b"precious");
    assert!(node.child.try_wait().unwrap().is_none());
    holder.release(LANE, &blocks).unwrap();
    assert_eq!(node.child.wait().unwrap().code(), Some(0));
    assert!(node.log().contains("drained: nothing is lent"), "{}", node.log());
}

#[test]
fn a_second_signal_ends_a_draining_node_and_so_does_the_end_of_its_time() {
    for (options, signals) in [(["--drain-timeout", "600"], 2), (["--drain-timeout", "0"], 1)] {
        let mut node = NodeProcess::start("127.0.0.1:0", "8MiB", &options);
        let holder = client(&node.address, 1);
        holder.connect().unwrap();
        borrow::<1>(&holder);
        node.signal(Signal::SIGTERM);
        if signals == 2 {
            eventually("it is draining", || holder.stat(LANE).unwrap().flags == INFO_DRAINING);
            node.signal(Signal::SIGTERM);
        }
        assert_eq!(node.child.wait().unwrap().code(), Some(0));
        assert_eq!(signals == 1, node.log().contains("1 blocks of 1 clients still lent"), "{}", node.log());
    }
}

#[test]
fn memory_that_is_wanted_back_is_asked_for_not_lent_again_and_never_dropped() {
    let node = NodeProcess::start(
        "127.0.0.1:0",
        "16MiB",
        &["--http", "127.0.0.1:0", "--reclaim-deadline", "0", "--no-pressure"],
    );
    let http = node.http.clone().unwrap();
    let holder = client(&node.address, 1);
    holder.connect().unwrap();
    let blocks: [_; 10] = borrow(&holder);
    holder.write_at(LANE, blocks[0], 0, b"precious").unwrap();
    let order = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dpuswap-node"));
        let output = command.args(arguments).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert_eq!(order(&["reclaim", "--http", &http, "4MiB"]), (Some(0), "4 MiB are wanted back\n".to_owned()));
    let info = holder.stat(LANE).unwrap();
    assert_eq!((info.reclaim_blocks, info.reclaim_deadline_ms, info.free_blocks), (4, 0, 0));
    eventually("the node says that they are late", || {
        node.log().contains("4 blocks that were wanted back are overdue")
    });
    assert_eq!(stats(&node)["overdue_blocks"], 4);
    let mut data = [0; 8];
    holder.read_at(LANE, blocks[0], 0, &mut data).unwrap();
    assert_eq!(&data, b"precious", "late is not lost");
    assert_eq!(holder.release(LANE, &blocks[6..]).unwrap(), 0);
    assert_eq!(holder.stat(LANE).unwrap().reclaim_blocks, 0);
    assert_eq!(holder.reserve(LANE, &mut [RemoteBlock::default(); 4]).unwrap().granted, 0, "not lent again");
    assert_eq!(post(&http, "/reclaim?bytes=0").0, 200);
    assert_eq!(borrow::<10>(&holder).len(), 10, "until told so");
    let (code, text) = order(&["stat", "--http", &http]);
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &told["lent_blocks"]), (Some(0), &16.into()));
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, text) = order(&["drain", "--http", &unused]);
    assert!(code == Some(1) && text.contains(&unused) && text.lines().count() == 1, "{text}");
    assert_eq!(order(&["reclaim", "--http", &http]).0, Some(2));
}

#[test]
fn a_node_short_of_memory_asks_for_what_it_lent() {
    // No machine has this much available: everything is wanted back.
    let node =
        NodeProcess::start("127.0.0.1:0", "8MiB", &["--keep-free", "1000TiB", "--http", "127.0.0.1:0"]);
    let holder = client(&node.address, 1);
    holder.connect().unwrap();
    eventually("nothing is lent", || holder.stat(LANE).unwrap().free_blocks == 0);
    assert_eq!(stats(&node)["limit_blocks"], 0);
    assert!(stats(&node)["available_bytes"].as_u64().unwrap() > 1 << 20);
    let calm = NodeProcess::start("127.0.0.1:0", "8MiB", &["--keep-free", "1MiB"]);
    let holder = client(&calm.address, 1);
    assert_eq!(holder.connect().unwrap().free_blocks, 8);
}

#[test]
fn the_page_tells_health_statistics_and_metrics_and_refuses_the_rest() {
    let node = NodeProcess::start("127.0.0.1:0", "8MiB", &HTTP_ON);
    let http = node.http.as_ref().unwrap();
    let holder = client(&node.address, 0xab);
    holder.connect().unwrap();
    let [block] = borrow(&holder);
    holder.write_at(LANE, block, 0, &[1; 1000]).unwrap();
    holder.read_at(LANE, block, 0, &mut [0; 300]).unwrap();
    holder.read_at(LANE, RemoteBlock { generation: 3, ..block }, 0, &mut [0; 300]).unwrap_err();
    assert_eq!(get(http, "/health"), (200, "ok\n".to_owned()));
    let told = stats(&node);
    let client = &told["clients"][0];
    assert_eq!((&client["client_id"], &client["held_blocks"]), (&"00000000000000ab".into(), &1.into()));
    assert_eq!((&client["bytes_in"], &client["bytes_out"]), (&1000.into(), &300.into()), "{told}");
    assert_eq!((&client["requests"], &client["errors"]), (&4.into(), &1.into()));
    assert!(client["latency_p99_ns"].as_u64() >= client["latency_p50_ns"].as_u64());
    assert_eq!((&told["total"]["requests"], &told["lent_blocks"]), (&4.into(), &1.into()));
    let (code, text) = get(http, "/metrics");
    assert_eq!(code, 200);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("dpuswap_node_") && value.parse::<f64>().is_ok(), "{line}");
    }
    assert!(text.contains("dpuswap_node_lent_blocks 1\n"), "{text}");
    assert!(
        text.contains("dpuswap_node_client_bytes_in_total{client=\"00000000000000ab\"} 1000\n"),
        "{text}"
    );
    assert_eq!((get(http, "/").0, get(http, "/drain").0, post(http, "/stats").0), (404, 405, 405));
    assert_eq!((post(http, "/reclaim").0, post(http, "/reclaim?bytes=-1").0), (400, 400));
    assert_eq!(stats(&node)["draining"], false);
}

#[test]
fn a_client_that_dies_leaks_nothing() {
    let node = NodeProcess::start("127.0.0.1:0", "8MiB", &["--grace", "1"]);
    let dead = client(&node.address, 1);
    dead.connect().unwrap();
    dead.reserve(LANE, &mut [RemoteBlock::numbered(0); 8]).unwrap();
    let other = client(&node.address, 2);
    assert_eq!(other.connect().unwrap().free_blocks, 0);
    drop(dead);
    eventually("the blocks are free again", || other.stat(LANE).unwrap().free_blocks == 8);
}

#[test]
fn a_node_refuses_more_connections_than_it_allows_and_goes_on_serving() {
    let node = NodeProcess::start("127.0.0.1:0", "8MiB", &["--max-connections", "6"]);
    let (first, second) = (client(&node.address, 1), client(&node.address, 2));
    first.connect().unwrap();
    second.connect().unwrap();
    let third = client(&node.address, 3);
    assert!(matches!(third.connect(), Err(RemoteError::Refused(_, Status::Busy))));
    first.stat(LANE).unwrap();
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
    let key = key();
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
            "--key-file",
            key.arg(),
        ]);
        command.env("STORLAB_RUN_DIR", dir.path().join("run")).env("RUST_LOG", "info").output().unwrap()
    };
    let output = run("127.0.0.1:0", "8MiB");
    assert_eq!(output.status.code(), Some(0));
    let served: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let address = served["listen"].as_str().unwrap();
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    assert_eq!(served["pid"].as_i64(), Some(i64::from(pid)));
    assert_eq!(secured(address, 1, &key.security).connect().unwrap().free_blocks, 8);
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
    let key = key();
    let run = |extra: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dpuswap-node"));
        command
            .args(["--listen", "127.0.0.1:0", "--memory", "1MiB", "--json", "--key-file"])
            .arg(&key.path)
            .args(extra);
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
    command.args(["--listen", "127.0.0.1:0", "--memory", "8MiB", "--lock", "--foreground", "--key-file"]);
    let key = key();
    command.arg(&key.path);
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
