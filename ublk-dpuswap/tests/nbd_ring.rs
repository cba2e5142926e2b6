//! NBD exports and files on a queue's own ring, against real servers.
#![allow(clippy::unwrap_used, missing_docs)]

mod linkkit;
mod nbd_servers;

use std::time::Duration;

use linkkit::{Linked, arrivals, open, queue};
use nbd_servers::{Process, free_port, has};
use ublk_dpuswap::remote::file::FileNode;
use ublk_dpuswap::remote::nbd::NbdNode;
use ublk_dpuswap::remote::{Lane, RemoteError, RemoteNode};
use ublk_dpuswap::units::{NodeId, RemoteBlock};
use ublk_target::local::LocalQueue;

const NODE: NodeId = NodeId(1);

fn data(op: u32) -> Vec<u8> {
    (0..2000 + op * 64).map(|n| (n * 7 + op) as u8).collect()
}

/// Writes and reads many ranges of three blocks over the ring, and looks at them over a lane too.
fn exercise(node: &dyn RemoteNode, queue: &mut LocalQueue<Linked>) -> [RemoteBlock; 3] {
    node.connect().unwrap();
    let mut blocks = [RemoteBlock::default(); 3];
    assert_eq!(node.reserve(Lane::CONTROL, &mut blocks).unwrap().granted, 3);
    open(queue, NODE.0, node.open_link(0).unwrap());
    let place = |op: u32| (blocks[op as usize % 3], op / 3 * 8192);
    for op in 0..48 {
        let (block, offset) = place(op);
        queue.handler().links.write(NODE, block, offset, &data(op), op).unwrap();
    }
    assert!(arrivals(queue, 48).iter().all(|arrived| arrived.result.as_ref().is_ok_and(Vec::is_empty)));
    for op in 0..48 {
        let (block, offset) = place(op);
        queue.handler().links.read(NODE, block, offset, data(op).len() as u32, op).unwrap();
    }
    for arrived in arrivals(queue, 48) {
        assert!(arrived.result.unwrap() == data(arrived.op), "{}", arrived.op);
    }
    let mut seen = data(17);
    seen.fill(0);
    node.read_at(Lane::COPIER, place(17).0, place(17).1, &mut seen).unwrap();
    assert!(seen == data(17));
    blocks
}

#[test]
fn many_requests_of_an_nbd_link_are_in_flight_and_a_killed_server_fails_them_all() {
    if !has("nbdkit") {
        return;
    }
    let port = free_port();
    let mut server =
        Process::nbdkit_tcp(port, &["--threads=8", "--filter=delay", "memory", "8M", "rdelay=1ms"]);
    let node = NbdNode::new(&format!("nbd://127.0.0.1:{port}/"), 1, Duration::from_secs(5)).unwrap();
    let mut queue = queue(2, 64);
    let blocks = exercise(&node, &mut queue);
    queue.handler().links.read(NODE, RemoteBlock::numbered(8), 0, 64, 1).unwrap();
    let outside = arrivals(&mut queue, 1).remove(0).result;
    assert!(matches!(outside, Err(RemoteError::Refused(..))), "{outside:?}");
    assert!(queue.handler().links.is_open(NODE), "a refusal does not break the link");
    for op in 0..20 {
        queue.handler().links.read(NODE, blocks[0], 0, 4096, op).unwrap();
    }
    server.kill();
    assert!(arrivals(&mut queue, 20).iter().any(|arrived| arrived.result.is_err()));
    assert!(!queue.handler().links.is_open(NODE));
    assert!(node.open_link(0).is_err());
    queue.finish().unwrap();
}

#[test]
fn a_file_is_read_and_written_by_the_ring() {
    let dir = tempfile::tempdir().unwrap();
    let node = FileNode::new(&format!("file:{}?size=8MiB", dir.path().join("swap").display()), 1).unwrap();
    let mut queue = queue(2, 64);
    exercise(&node, &mut queue);
    queue.finish().unwrap();
}
