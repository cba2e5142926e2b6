//! The queue in its real loop, over nodes in this process.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::link::{LinkKind, LinkOverrides};
use crate::remote::mem::MemNode;
use std::time::{Duration, Instant};
use ublk_target::{Errno, Op, local::LocalQueue};

const PAGE: usize = PAGE_BYTES;
/// Four slabs of 16 MiB.
const PAGES: u32 = 64 << 8;

struct Bench {
    // Dropped before the device, whose threads it uses.
    queue: Option<LocalQueue<InfiniQueue>>,
    device: Infiniswap,
    nodes: Vec<Arc<MemNode>>,
    _file: Option<tempfile::NamedTempFile>,
}

fn bench(node_mib: &[u32], backup: bool, link: LinkModel) -> Bench {
    let nodes: Vec<_> = node_mib.iter().map(|mib| Arc::new(MemNode::new("mem:test", *mib))).collect();
    let file = backup.then(|| tempfile::NamedTempFile::new().unwrap());
    let path = file.as_ref().map(|file| file.path().to_owned());
    let config = Config { slab_blocks: Some(16), backup: path, staged_pages: 8, ..Config::new(PAGES, link) };
    let device =
        open(config, nodes.iter().map(|node| Arc::clone(node) as Arc<dyn RemoteNode>).collect()).unwrap();
    device.bind(0).unwrap();
    let queue = LocalQueue::new(device.open_queue(0).unwrap(), 64, PAGE).unwrap();
    Bench { queue: Some(queue), device, nodes, _file: file }
}

fn plain() -> LinkModel {
    LinkModel::new(LinkKind::None, LinkOverrides::default())
}

impl Bench {
    fn run(&mut self, op: Op, page: u32, data: &[u8]) -> Result<Vec<u8>, Errno> {
        let queue = self.queue.as_mut().unwrap();
        let tag = queue.submit(op, u64::from(page) * 8, 8, Some(data)).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            queue.turn(Duration::from_millis(20)).unwrap();
            if let Some((done, result)) = queue.take_done() {
                assert_eq!(done, tag);
                return result.map(|_| queue.data(tag).to_vec());
            }
            assert!(Instant::now() < end, "the request hangs");
        }
    }

    /// Until the keeper's view is as wanted.
    fn until(&mut self, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !wanted(&self.device.stats()) {
            assert!(Instant::now() < end, "{what}: {}", self.device.stats());
            self.queue.as_mut().unwrap().turn(Duration::from_millis(20)).unwrap();
        }
        // The queue takes its new link in a turn.
        self.queue.as_mut().unwrap().turn(Duration::from_millis(20)).unwrap();
    }

    fn counter(&self, name: &str) -> u64 {
        self.device.stats()["counters"][name].as_u64().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.queue.take().unwrap().finish().unwrap();
        self.device.stopped();
    }
}

fn content(page: u32) -> Vec<u8> {
    page.to_le_bytes().repeat(PAGE / 4)
}

#[test]
fn pages_go_to_the_nodes_and_come_back_and_others_are_zeros() {
    let mut bench = bench(&[40, 40], false, plain());
    let slabs = |stats: &serde_json::Value, node: usize| stats["nodes"][node]["slabs"].as_u64().unwrap();
    let stats = bench.device.stats();
    assert_eq!((slabs(&stats, 0), slabs(&stats, 1)), (2, 2), "{stats}");
    for page in (0..PAGES).step_by(97) {
        bench.run(Op::Write, page, &content(page)).unwrap();
    }
    for page in (0..PAGES).step_by(97) {
        assert_eq!(bench.run(Op::Read, page, &[]).unwrap(), content(page));
    }
    assert_eq!(bench.run(Op::Read, 1, &[9; PAGE]).unwrap(), vec![0; PAGE]);
    bench.run(Op::Discard, 97, &[]).unwrap();
    assert_eq!(bench.run(Op::Read, 97, &[9; PAGE]).unwrap(), vec![0; PAGE]);
    assert_eq!(bench.counter("zero_reads"), 2);
}

#[test]
fn what_no_node_has_room_for_fails_with_no_space_or_goes_to_the_backup() {
    let mut bench = super::tests::bench(&[20], false, plain());
    assert_eq!(bench.run(Op::Write, PAGES - 1, &content(1)), Err(Errno::ENOSPC));
    bench.run(Op::Write, 0, &content(2)).unwrap();
    drop(bench);
    let mut bench = super::tests::bench(&[20], true, plain());
    bench.run(Op::Write, PAGES - 1, &content(1)).unwrap();
    assert_eq!(bench.run(Op::Read, PAGES - 1, &[]).unwrap(), content(1));
    assert_eq!(bench.counter("remote_writes"), 0);
}

#[test]
fn with_a_backup_a_dead_node_costs_no_page() {
    let mut bench = bench(&[80], true, plain());
    for page in 0..200 {
        bench.run(Op::Write, page, &content(page)).unwrap();
    }
    assert_eq!(bench.counter("remote_writes"), 200);
    bench.nodes[0].kill();
    for page in 0..200 {
        assert_eq!(bench.run(Op::Read, page, &[]).unwrap(), content(page), "page {page}");
    }
    bench.run(Op::Write, 3, &content(1003)).unwrap();
    assert_eq!(bench.run(Op::Read, 3, &[]).unwrap(), content(1003));
    bench.until("the node is seen to be down", |stats| stats["nodes"][0]["up"] == false);
    bench.nodes[0].revive(true);
    bench.until("the slabs are mapped anew", |stats| stats["nodes"][0]["slabs"] == 4);
    for page in 0..200 {
        let expected = if page == 3 { content(1003) } else { content(page) };
        assert_eq!(bench.run(Op::Read, page, &[]).unwrap(), expected, "page {page}");
    }
    bench.run(Op::Write, 5, &content(1005)).unwrap();
    assert_eq!(bench.run(Op::Read, 5, &[]).unwrap(), content(1005));
    assert!(bench.counter("backup_reads") > 100 && bench.counter("remote_writes") > 200);
}

#[test]
fn a_node_that_drains_gets_its_slabs_back_and_no_page_is_lost() {
    let mut bench = bench(&[80], true, plain());
    for page in 0..50 {
        bench.run(Op::Write, page, &content(page)).unwrap();
    }
    bench.nodes[0].drain();
    let node = Arc::clone(&bench.nodes[0]);
    bench.until("the slabs are given back", |stats| stats["nodes"][0]["slabs"] == 0 && node.held() == 0);
    for page in 0..50 {
        assert_eq!(bench.run(Op::Read, page, &[]).unwrap(), content(page), "page {page}");
    }
    assert_eq!(bench.counter("read_errors"), 0);
}

#[test]
fn without_a_backup_a_page_of_a_dead_node_is_an_error_and_never_zeros() {
    let mut bench = bench(&[80], false, plain());
    bench.run(Op::Write, 7, &content(7)).unwrap();
    bench.nodes[0].kill();
    assert_eq!(bench.run(Op::Read, 7, &[]), Err(Errno::EIO));
    assert_eq!(bench.run(Op::Write, 8, &content(8)), Err(Errno::EIO));
    bench.until("the node is seen to be down", |stats| stats["nodes"][0]["up"] == false);
    bench.nodes[0].revive(false);
    bench.until("the node is back", |stats| stats["nodes"][0]["up"] == true);
    assert_eq!(bench.run(Op::Read, 7, &[]).unwrap(), content(7));
    assert_eq!(bench.run(Op::Read, 8, &[]), Err(Errno::EIO), "its write had failed");
    bench.nodes[0].kill();
    bench.until("the node is seen to be down", |stats| stats["nodes"][0]["up"] == false);
    bench.nodes[0].revive(true);
    bench.until("the node is back", |stats| stats["nodes"][0]["up"] == true);
    assert_eq!(bench.run(Op::Read, 7, &[]), Err(Errno::EIO), "it has forgotten the page");
}

#[test]
fn a_request_ends_no_sooner_than_its_link_allows() {
    let slow = LinkOverrides { round_trip_ns: Some(30_000_000), ..LinkOverrides::default() };
    let mut bench = bench(&[80], false, LinkModel::new(LinkKind::Rdma, slow));
    for op in [Op::Write, Op::Read] {
        let begun = Instant::now();
        bench.run(op, 7, &content(7)).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(30));
    }
}

#[test]
fn many_requests_at_once_with_a_small_staging_area_are_all_answered() {
    let mut bench = bench(&[80], true, plain());
    let queue = bench.queue.as_mut().unwrap();
    for round in 0..20_u32 {
        let mut open = Vec::new();
        for slot in 0..60_u32 {
            open.push(queue.submit(Op::Write, u64::from(slot) * 8, 8, Some(&content(slot + round))).unwrap());
        }
        let end = Instant::now() + Duration::from_secs(20);
        while !open.is_empty() {
            assert!(Instant::now() < end, "{} requests hang", open.len());
            queue.turn(Duration::from_millis(20)).unwrap();
            while let Some((tag, result)) = queue.take_done() {
                result.unwrap();
                open.retain(|other| *other != tag);
            }
        }
    }
    for slot in 0..60 {
        assert_eq!(bench.run(Op::Read, slot, &[]).unwrap(), content(slot + 19));
    }
    assert!(bench.counter("waits") > 0 && bench.counter("backup_errors") == 0);
}
