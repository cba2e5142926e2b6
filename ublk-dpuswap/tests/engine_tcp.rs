//! The engine and nodes over real sockets, sealed and plain, with nodes that die, stop and come back.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
#[path = "common/device.rs"]
mod device;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use common::{NodeProcess, eventually, key, page};
use device::Device;
use nix::sys::signal::Signal;
use ublk_dpuswap::engine::Config;
use ublk_dpuswap::secure::Security;
use ublk_dpuswap::units::{Choices, PAGE_BYTES};
use ublk_target::Errno;

fn config(pages: u32) -> Config {
    let heartbeat = Duration::from_millis(50);
    Config {
        cache_bytes: 1 << 20,
        heartbeat,
        node_patience: Duration::from_millis(300),
        ..Config::new(pages)
    }
}

fn churn(nodes: &[NodeProcess], config: &Config, security: &Security) {
    let names: Vec<&str> = nodes.iter().map(|node| node.address.as_str()).collect();
    let mut device = Device::start(config, &names, security);
    let mut order = Choices::new(2);
    let mut latest: HashMap<u32, u32> = HashMap::new();
    for seed in 1..4000 {
        let number = order.below(8192);
        device.write(number, &page(seed)).unwrap();
        latest.insert(number, seed);
        if seed % 5 == 0 {
            let gone = order.below(8192);
            device.discard(gone, 1);
            latest.remove(&gone);
        }
    }
    for first in (0..8192).step_by(64) {
        let all = device.read(first, 64).unwrap();
        for (number, got) in (first..).zip(all.chunks(PAGE_BYTES)) {
            let wanted = latest.get(&number).map_or(vec![0; PAGE_BYTES], |seed| page(*seed));
            assert!(got == wanted, "page {number}");
        }
    }
    let report = device.engine.report();
    assert!(report.nodes.iter().all(|node| node.bytes_out > 1 << 20), "all nodes are used: {report:?}");
    assert!(report.compression_ratio > 1.2, "{report:?}");
    assert!(
        report.counters.remote_reads < report.counters.misses,
        "neighbours are read together: {report:?}"
    );
    device.queue.finish().unwrap();
    device.engine.stop();
}

#[test]
fn pages_come_back_whole_over_sealed_connections_and_over_plain_ones() {
    let key = key();
    let start = |extra: &[&str]| [(); 2].map(|()| NodeProcess::start("127.0.0.1:0", "32MiB", extra));
    churn(&start(&["--key-file", key.arg()]), &config(8192), &key.security);
    let plain = Config { sealed: false, recompress: true, replicas: 2, ..config(8192) };
    let nodes = start(&[]);
    churn(&nodes, &plain, &Security::Plaintext);
    let client = common::client(&nodes[0].address, 9);
    let info = ublk_dpuswap::remote::RemoteNode::connect(&client).unwrap();
    assert_eq!(info.free_blocks, 32, "a stopped device leaves nothing behind");
}

#[test]
fn a_killed_node_gives_errors_that_end_and_its_successor_is_used_again() {
    let mut nodes = [(); 2].map(|()| NodeProcess::start("127.0.0.1:0", "32MiB", &[]));
    let addresses = [nodes[0].address.clone(), nodes[1].address.clone()];
    let names: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mut device = Device::start(&config(8192), &names, &Security::Plaintext);
    for number in 0..4000 {
        device.write(number, &page(number * 3)).unwrap();
    }
    nodes[0].kill();
    let start = Instant::now();
    let mut lost = Vec::new();
    for number in 0..4000 {
        match device.read(number, 1) {
            Ok(data) => assert!(data == page(number * 3), "page {number}"),
            Err(errno) => {
                assert_eq!(errno, Errno::EIO);
                lost.push(number);
            }
        }
    }
    assert!(start.elapsed() < Duration::from_secs(60), "no hang");
    assert!(!lost.is_empty() && lost.len() < 4000, "{} of 4000", lost.len());
    for number in 4000..6000 {
        device.write(number, &page(number * 3)).unwrap();
    }
    nodes[0] = NodeProcess::start(&addresses[0], "32MiB", &[]);
    eventually("node 0 is up again", || device.engine.report().nodes[0].state == "up");
    assert_eq!(device.read(lost[0], 1), Err(Errno::EIO));
    let before = device.engine.report().nodes[0].bytes_out;
    for number in &lost {
        device.write(*number, &page(number * 3)).unwrap();
    }
    for number in 0..6000 {
        assert!(device.read(number, 1).unwrap() == page(number * 3), "page {number}");
    }
    assert!(device.engine.report().nodes[0].bytes_out > before, "the new node is written to");
}

#[test]
fn with_two_copies_a_stopped_node_stalls_nobody_and_a_killed_one_loses_nothing() {
    let mut nodes = [(); 3].map(|()| NodeProcess::start("127.0.0.1:0", "48MiB", &[]));
    let addresses = [0, 1, 2].map(|node| nodes[node].address.clone());
    let names: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let two = Config { replicas: 2, node_timeout: Duration::from_secs(2), ..config(8192) };
    let mut device = Device::start(&two, &names, &Security::Plaintext);
    for number in 0..4000 {
        device.write(number, &page(number * 3)).unwrap();
    }
    nodes[1].signal(Signal::SIGSTOP);
    for number in 0..1000 {
        assert!(device.read(number, 1).unwrap() == page(number * 3), "page {number}");
    }
    assert!(device.engine.report().counters.hedges_won > 0, "the other copy was asked");
    nodes[1].signal(Signal::SIGCONT);
    eventually("all copies are there", || device.engine.report().thin_blocks == 0);
    for dying in [1, 2] {
        nodes[dying].kill();
        for number in 0..4000 {
            assert!(device.read(number, 1).unwrap() == page(number * 3), "page {number}, node {dying} dead");
        }
        nodes[dying] = NodeProcess::start(&addresses[dying], "48MiB", &[]);
        eventually("the missing copies are made again", || device.engine.report().thin_blocks == 0);
    }
    assert_eq!(device.engine.report().counters.read_errors, 0);
}
