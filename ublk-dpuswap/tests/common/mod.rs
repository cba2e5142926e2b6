//! What the tests share: a node as a process of its own, and page contents.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ublk_dpuswap::remote::{RemoteNode, tcp::TcpNode};
use ublk_dpuswap::units::{Choices, PAGE_BYTES};

/// A `dpuswap-node` process; killed when dropped.
pub struct NodeProcess {
    pub child: Child,
    pub address: String,
}

impl NodeProcess {
    pub fn start(listen: &str, memory: &str, extra: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_dpuswap-node"))
            .args(["--listen", listen, "--memory", memory, "--foreground", "--json"])
            .args(extra)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let served: serde_json::Value = serde_json::from_str(&line).unwrap();
        Self { child, address: served["listen"].as_str().unwrap().to_owned() }
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

pub fn remotes(addresses: &[&str], client: u64, lanes: usize, timeout_ms: u64) -> Vec<Box<dyn RemoteNode>> {
    let timeout = Duration::from_millis(timeout_ms);
    let node =
        |name: &&str| Box::new(TcpNode::new(name, client, lanes, timeout).unwrap()) as Box<dyn RemoteNode>;
    addresses.iter().map(node).collect()
}

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
