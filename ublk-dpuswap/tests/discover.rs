//! Membership by a real etcd: nodes come, die, come back; etcd goes and comes back.
#![allow(clippy::unwrap_used, missing_docs)]

mod nbd_servers;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nbd_servers::{Process, free_port, has};
use ublk_dpuswap::discover::etcd::{Etcd, EtcdList, EtcdUrl, MAX_ANSWER_BYTES};
use ublk_dpuswap::discover::register::Registration;
use ublk_dpuswap::discover::{Description, DiscoverError, Discovery, Membership};

fn etcd(dir: &Path, port: u16, peer: u16) -> Process {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
    let mut command = Command::new("etcd");
    command.env_clear().arg("--data-dir").arg(dir.join("etcd"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command
        .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"])
        .stderr(Stdio::null());
    let ready = || {
        let url = format!("http://127.0.0.1:{port}/health");
        minreq::get(url).with_timeout(1).send().is_ok_and(|answer| answer.as_str().unwrap().contains("true"))
    };
    Process::start(&mut command, ready)
}

fn url(endpoints: &str) -> EtcdUrl {
    EtcdUrl::parse(&format!("etcd://{endpoints}/test/")).unwrap()
}

fn describe(port: u16, free_blocks: u32) -> Description {
    Description { addr: format!("127.0.0.1:{port}"), memory_blocks: 100, free_blocks, epoch: 5 }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "still not: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_node_is_listed_while_it_lives_and_etcd_being_away_changes_nothing() {
    if !has("etcd") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (port, peer) = (free_port(), free_port());
    let mut server = etcd(dir.path(), port, peer);
    // The first endpoint is dead: the second is asked.
    let url = url(&format!("127.0.0.1:{},127.0.0.1:{port}", free_port()));
    let mut members = Membership::new(Box::new(EtcdList::new(url.clone())));
    assert!(members.poll().joined.is_empty() && !members.is_away());
    let free = Arc::new(AtomicU32::new(100));
    let seen = Arc::clone(&free);
    let start = |id: &str, port: u16, free: Option<Arc<AtomicU32>>| {
        let blocks = move || describe(port, free.as_ref().map_or(9, |free| free.load(Ordering::SeqCst)));
        Registration::start_with(url.clone(), id, blocks, 5, Duration::from_millis(200)).unwrap()
    };
    let first = start("n1", 7001, Some(seen));
    let second = start("n2", 7002, None);
    eventually("both are listed", || {
        members.poll();
        members.members().count() == 2
    });
    free.store(42, Ordering::SeqCst);
    eventually("the new number is listed", || {
        members.poll();
        members.members().any(|(id, node)| id == "n1" && node.free_blocks == 42)
    });
    // A goodbye takes the entry back at once: it had most of its five seconds left.
    drop(second);
    assert_eq!(members.poll().left[0].id, "n2");
    // etcd is restarted: nobody leaves, and the node is listed again by itself.
    server.kill();
    assert_eq!(members.poll().left, []);
    assert!(members.is_away() && members.members().count() == 1);
    let third = start("n3", 7003, None);
    let _server = etcd(dir.path(), port, peer);
    eventually("all that live are listed", || {
        members.poll();
        !members.is_away() && members.members().map(|(id, _)| id).eq(["n1", "n3"])
    });
    // One whose thread is gone without a goodbye, as in a process that was killed, is listed until its lease ends.
    let mut dead = Etcd::new(url.clone());
    let lease = dead.grant(2).unwrap();
    assert!(dead.put("n4", &describe(7004, 1), lease).unwrap());
    eventually("it is listed", || members.poll().joined.iter().any(|member| member.id == "n4"));
    eventually("it is not", || members.poll().left.iter().any(|member| member.id == "n4"));
    assert!(!dead.keep_alive(lease).unwrap() && !dead.put("n4", &describe(7004, 1), lease).unwrap());
    // It comes back, as another life of the same node.
    let fourth = start("n4", 7004, None);
    eventually("it is back", || members.poll().joined.iter().any(|member| member.id == "n4"));
    drop((first, third, fourth));
    members.poll();
    assert_eq!(members.members().count(), 0);
}

#[test]
fn entries_that_are_none_are_left_out() {
    if !has("etcd") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let _server = etcd(dir.path(), port, free_port());
    let put = |key: &str, value: &str| {
        use base64::Engine as _;
        let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let body = serde_json::json!({ "key": base64(key), "value": base64(value) }).to_string();
        let url = format!("http://127.0.0.1:{port}/v3/kv/put");
        assert_eq!(minreq::post(url).with_body(body).with_timeout(5).send().unwrap().status_code, 200);
    };
    put(
        "/test/nodes/good",
        r#"{"addr":"h:1","memory_blocks":3,"free_blocks":2,"epoch":18446744073709551615}"#,
    );
    put("/test/nodes/twin", r#"{"addr":"h:1"}"#);
    put("/test/nodes/lies", r#"{"addr":"h:2","memory_blocks":3,"free_blocks":4}"#);
    put("/test/nodes/text", "hello");
    put("/test/nodes/empty", "");
    put("/test/nodes/a/b", r#"{"addr":"h:3"}"#);
    put("/test/nodes0", r#"{"addr":"h:4"}"#);
    put("/test/other", r#"{"addr":"h:5"}"#);
    let list = EtcdList::new(url(&format!("127.0.0.1:{port}"))).poll().unwrap();
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!((list[0].id.as_str(), list[0].node.epoch), ("good", u64::MAX));
}

/// A server that answers every request with `head`, then `body` for as long as it is read.
fn http(head: &'static str, body: &'static [u8], repeat: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            let _ = socket.read(&mut [0; 4096]);
            let _ = socket.write_all(head.as_bytes());
            for _ in 0..repeat {
                if socket.write_all(body).is_err() {
                    break;
                }
            }
        }
    });
    address
}

#[test]
fn what_is_not_etcd_is_refused_in_bounded_time() {
    let poll = |endpoint: &str| EtcdList::new(url(endpoint)).poll();
    let endless = http("HTTP/1.1 200 OK\r\n\r\n", &[b' '; 4096], MAX_ANSWER_BYTES / 2048);
    let error = poll(&endless);
    // Whichever comes first.
    let given_up = matches!(
        error,
        Err(DiscoverError::Answer { what: "an answer without end", .. } | DiscoverError::Away { .. })
    );
    assert!(given_up, "{error:?}");
    let text = http("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello", 1);
    assert!(matches!(poll(&text), Err(DiscoverError::Answer { what: "its answer is no JSON", .. })));
    let other = http("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n", br#"{"kvs":{} }"#, 1);
    assert!(matches!(poll(&other), Err(DiscoverError::Answer { what: "a list that is none", .. })));
    let bad = http("HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n", br#"{"kvs":[{"key":"?"}]}"#, 1);
    assert!(matches!(poll(&bad), Err(DiscoverError::Answer { what: "a list with a malformed key", .. })));
    let missing = http("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\n", b"\x1b[2J", 1);
    let error = poll(&missing).unwrap_err().to_string();
    assert!(error.contains("refused (404): \\u{1b}[2J"), "{error}");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_error = poll(&silent.local_addr().unwrap().to_string());
    assert!(matches!(silent_error, Err(DiscoverError::Away { .. })), "{silent_error:?}");
    drop(TcpStream::connect(silent.local_addr().unwrap()));
    let odd = Registration::start(url(&text), "a b", || describe(1, 1)).err().unwrap().to_string();
    assert!(odd.contains("cannot name a node"), "{odd}");
    let odd = Registration::start(url(&text), "a", || describe(0, 1)).err().unwrap().to_string();
    assert!(odd.contains("no HOST:PORT"), "{odd}");
}
