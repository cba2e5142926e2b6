//! What the tests share: a node as a process of its own, and page contents.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ublk_dpuswap::remote::{Lane, RemoteNode, tcp::TcpNode};
use ublk_dpuswap::secure::{KeyFile, Security};
use ublk_dpuswap::units::{Choices, PAGE_BYTES, RemoteBlock};

/// A `dpuswap-node` process; killed when dropped. Without a key, unless one is named.
pub struct NodeProcess {
    pub child: Child,
    pub address: String,
    /// Of the status page, if there is one.
    pub http: Option<String>,
    log: tempfile::NamedTempFile,
}

impl NodeProcess {
    pub fn start(listen: &str, memory: &str, extra: &[&str]) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dpuswap-node"));
        command.args(["--listen", listen, "--memory", memory, "--foreground", "--json"]).args(extra);
        if !extra.contains(&"--key-file") {
            command.arg("--insecure-plaintext");
        }
        let log_file = log.reopen().unwrap();
        let mut child =
            command.env("RUST_LOG", "debug").stdout(Stdio::piped()).stderr(log_file).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let served: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let Some(address) = served["listen"].as_str() else {
            panic!("{}", std::fs::read_to_string(log.path()).unwrap())
        };
        let http = served["http"].as_str().map(str::to_owned);
        Self { child, address: address.to_owned(), http, log }
    }

    /// What the node has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn remotes(addresses: &[&str], client: u64, timeout_ms: u64) -> Vec<Box<dyn RemoteNode>> {
    let timeout = Duration::from_millis(timeout_ms);
    let node = |name: &&str| {
        Box::new(TcpNode::new(name, client, 0, timeout, Security::Plaintext).unwrap()) as Box<dyn RemoteNode>
    };
    addresses.iter().map(node).collect()
}

pub const LANE: Lane = Lane::CONTROL;

/// A key in a file of its own.
pub struct TestKey {
    _dir: tempfile::TempDir,
    pub path: PathBuf,
    pub security: Security,
}

pub fn key() -> TestKey {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let security = Security::Psk(KeyFile::load_or_create(&path, true).unwrap().key);
    TestKey { _dir: dir, path, security }
}

impl TestKey {
    pub fn arg(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

pub fn secured(address: &str, id: u64, security: &Security) -> TcpNode {
    TcpNode::new(address, id, 0, Duration::from_secs(2), security.clone()).unwrap()
}

pub fn client(address: &str, id: u64) -> TcpNode {
    secured(address, id, &Security::Plaintext)
}

pub fn borrow<const N: usize>(client: &TcpNode) -> [RemoteBlock; N] {
    let mut blocks = [RemoteBlock::default(); N];
    assert_eq!(client.reserve(LANE, &mut blocks).unwrap().granted, N);
    blocks
}

pub fn get(http: &str, path: &str) -> (i32, String) {
    let answer = minreq::get(format!("http://{http}{path}")).with_timeout(10).send().unwrap();
    (answer.status_code, answer.as_str().unwrap().to_owned())
}

pub fn post(http: &str, path: &str) -> (i32, String) {
    let answer = minreq::post(format!("http://{http}{path}")).with_timeout(10).send().unwrap();
    (answer.status_code, answer.as_str().unwrap().to_owned())
}

pub fn stats(node: &NodeProcess) -> serde_json::Value {
    serde_json::from_str(&get(node.http.as_ref().unwrap(), "/stats").1).unwrap()
}

pub const HTTP_ON: [&str; 2] = ["--http", "127.0.0.1:0"];

/// A server that answers every connection with `answer` and keeps it open.
pub fn impostor(answer: &'static [u8]) -> String {
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

pub const HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";

/// Fills a page with content that follows from `seed`: random when it is a multiple of 3, else compressible.
pub fn fill(page: &mut [u8], seed: u32) {
    let mut random = Choices::new(u64::from(seed) * 31 + 7);
    let words: [u32; 24] = std::array::from_fn(|_| random.below(u32::MAX));
    for word in page.chunks_exact_mut(4) {
        let value =
            if seed.is_multiple_of(3) { random.below(u32::MAX) } else { words[random.below(24) as usize] };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

pub fn page(seed: u32) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES];
    fill(&mut page, seed);
    page
}

/// Waits until `what` holds, for at most ten seconds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
