use super::copier::Copied;
use super::flusher::Writer;
use super::*;
use crate::remote::mem::MemNode;
use crate::units::PAGE_BYTES;
use std::collections::HashMap;
use std::time::Duration;
use ublk_target::local::LocalQueue;
use ublk_target::{Errno, Op};

mod copies;
mod names;
mod panics;
mod steps;
mod waiting;

/// A device in this thread: the engine's threads do not run, the test does their work when it wants.
struct Device {
    engine: Arc<Engine>,
    queue: LocalQueue<QueueWorker>,
    writer: Writer,
    buffer: Vec<u8>,
    nodes: Vec<Arc<MemNode>>,
    /// The engine's threads run, so that the test does nothing of theirs.
    threads: bool,
}

fn local(engine: &Engine, queue: u16) -> LocalQueue<QueueWorker> {
    LocalQueue::new(engine.queue(queue, 4), 4, MAX_REQUEST_PAGES * PAGE_BYTES).unwrap()
}

fn open(config: &Config, nodes: &[Arc<MemNode>]) -> Engine {
    let remotes = nodes.iter().map(|node| Arc::clone(node) as Arc<dyn RemoteNode>).collect();
    let memory = Memory::anonymous(memory_bytes(config)).unwrap();
    Engine::open(config.clone(), memory, 7, [9; 32], remotes).unwrap()
}

fn device(config: Config, blocks: &[u32]) -> Device {
    let named = blocks.iter().enumerate();
    let nodes: Vec<_> =
        named.map(|(i, blocks)| Arc::new(MemNode::new(&format!("mem:{i}"), *blocks))).collect();
    Device::over(open(&config, &nodes), nodes)
}

/// New connections of a node to all queues, for one that was made after the last ones.
fn connect_again(shared: &Shared, node: NodeId) {
    let generation = shared.state().generation(node);
    shared.node_failed(node, generation, crate::remote::RemoteError::Closed);
    assert!(shared.keep_node(node).is_none());
}

impl Device {
    fn over(engine: Engine, nodes: Vec<Arc<MemNode>>) -> Device {
        Device::with(Arc::new(engine), 0, nodes, false)
    }

    /// Another queue of an engine whose threads run.
    fn of_threads(engine: &Arc<Engine>, queue: u16, nodes: &[Arc<MemNode>]) -> Device {
        Device::with(Arc::clone(engine), queue, nodes.to_vec(), true)
    }

    fn with(engine: Arc<Engine>, queue: u16, nodes: Vec<Arc<MemNode>>, threads: bool) -> Device {
        let queue = local(&engine, queue);
        let writer = Writer::new(&engine.shared);
        Device { engine, queue, writer, buffer: vec![0; crate::units::BLOCK_BYTES], nodes, threads }
    }

    /// One request, with write-back whenever somebody waits for room.
    fn request(&mut self, op: Op, first: u32, pages: u32, data: Option<&[u8]>) -> Result<Vec<u8>, IoError> {
        let tag = self.queue.submit(op, u64::from(first) * 8, pages * 8, data).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            self.queue.turn(Duration::from_millis(1)).unwrap();
            if let Some((done, result)) = self.queue.take_done() {
                assert_eq!(done, tag);
                let failed = self.queue.handler().take_error();
                return match result {
                    Ok(_) => Ok(self.queue.data(tag).to_vec()),
                    Err(errno) => Err(failed.unwrap_or_else(|| panic!("an error from nowhere: {errno:?}"))),
                };
            }
            assert!(Instant::now() < deadline, "a request hangs");
            if !self.threads && std::mem::take(&mut self.engine.shared.state().flush_wanted) {
                self.engine.shared.flush_once(&mut self.writer);
            }
        }
    }

    fn swap_out(&mut self, first: u32, data: &[u8]) -> Result<(), IoError> {
        let pages = (data.len() / PAGE_BYTES) as u32;
        self.request(Op::Write, first, pages, Some(data)).map(drop)
    }

    fn swap_in(&mut self, first: u32, pages: u32) -> Result<Vec<u8>, IoError> {
        self.request(Op::Read, first, pages, None)
    }

    fn discard(&mut self, first: u32, pages: u32) {
        self.request(Op::Discard, first, pages, None).unwrap();
    }

    fn write(&mut self, page: u32, seed: u32) -> Result<(), IoError> {
        self.swap_out(page, &content(seed))
    }

    fn read(&mut self, page: u32) -> Result<Vec<u8>, IoError> {
        self.swap_in(page, 1)
    }

    fn flush_all(&mut self) {
        self.engine.shared.flush_for_test(&mut self.writer).unwrap();
    }

    fn keep(&self) {
        (0..self.nodes.len() as u16).for_each(|node| drop(self.engine.shared.keep_node(NodeId(node))));
    }

    /// Lets the copier work until it has nothing to do, or no place.
    fn copy_all(&mut self) -> Copied {
        for _ in 0..10_000 {
            let done = self.engine.shared.copy_once(&mut self.buffer);
            if done != Copied::Something {
                self.engine.shared.release_all();
                return done;
            }
        }
        panic!("the copier never ends");
    }

    fn check(&self) {
        self.engine.shared.state().model.check(&[]);
    }
}

fn small(pages: u32) -> Config {
    Config {
        cache_bytes: 64 << 10,
        heartbeat: Duration::from_millis(20),
        node_patience: Duration::ZERO,
        no_room_patience: Duration::from_millis(20),
        ..Config::new(pages)
    }
}

/// A page that follows from its seed: zero, same-filled, compressible or random.
fn content(seed: u32) -> Vec<u8> {
    let mut random = Choices::new(u64::from(seed) * 77 + 1);
    match seed % 8 {
        0 => vec![0; PAGE_BYTES],
        1 => seed.to_le_bytes().repeat(PAGE_BYTES / 4),
        2 | 3 => (0..PAGE_BYTES).map(|_| random.below(256) as u8).collect(),
        _ => {
            let words: Vec<u32> = (0..24).map(|_| random.below(u32::MAX)).collect();
            (0..PAGE_BYTES / 4).flat_map(|_| words[random.below(24) as usize].to_le_bytes()).collect()
        }
    }
}

#[test]
fn a_full_store_is_cleaned_as_long_as_there_are_dead_records_and_then_refuses_writes() {
    // 12 blocks, 2 of them reserved: room for about 2500 raw pages. 1536 pages are overwritten again and again.
    let mut device = device(small(8192), &[6, 6]);
    let mut order = Choices::new(3);
    let mut latest: HashMap<u32, u32> = HashMap::new();
    for round in 0..8000u32 {
        let page = if round < 1536 { round } else { order.below(1536) };
        device.write(page, round * 8 + 2).unwrap();
        latest.insert(page, round * 8 + 2);
    }
    for (page, seed) in &latest {
        assert_eq!(device.read(*page).unwrap(), content(*seed), "page {page}");
    }
    let report = device.engine.report();
    assert!(report.counters.blocks_cleaned > 0 && report.write_amplification > 1.0, "{report:?}");
    let refused = (2000..8192).find_map(|page| device.write(page, 8 * page + 2).err());
    assert_eq!(refused, Some(IoError::NoSpace));
    for (page, seed) in &latest {
        assert_eq!(device.read(*page).unwrap(), content(*seed), "page {page} after the refusal");
    }
    device.check();
}

#[test]
fn when_a_node_dies_its_pages_give_errors_at_once_and_cached_ones_go_to_the_other_node() {
    let mut device = device(Config { seed: 5, ..small(4096) }, &[64, 64]);
    for page in 0..2048 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    device.nodes[0].kill();
    let mut lost = Vec::new();
    for page in 0..2048 {
        match device.read(page) {
            Ok(data) => assert_eq!(data, content(page * 8 + 2)),
            Err(error) => {
                assert_eq!(error, IoError::NodeDown(NodeId(0)));
                lost.push(page);
            }
        }
    }
    assert!(lost.len() > 200 && lost.len() < 1800, "{} pages were on node 0", lost.len());
    for page in &lost {
        device.write(*page, page * 8 + 3).unwrap();
    }
    device.flush_all();
    assert_eq!(device.engine.report().nodes[0].state, "down");
    device.nodes[0].revive(true);
    device.keep();
    for page in &lost {
        assert_eq!(device.read(*page).unwrap(), content(page * 8 + 3));
    }
    assert_eq!(device.engine.report().lost_blocks, 0, "all lost pages were overwritten");
    device.check();
}

#[test]
fn a_node_that_returns_with_its_content_serves_its_pages_again_and_one_that_forgot_does_not() {
    let mut device = device(small(2048), &[64]);
    for page in 0..1024 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    device.nodes[0].kill();
    assert_eq!(device.read(0), Err(IoError::NodeDown(NodeId(0))));
    device.nodes[0].revive(false);
    device.keep();
    assert_eq!(device.read(0).unwrap(), content(2));
    device.nodes[0].kill();
    assert_eq!(device.read(1), Err(IoError::NodeDown(NodeId(0))));
    device.nodes[0].revive(true);
    device.keep();
    assert_eq!(device.read(1), Err(IoError::Lost));
    device.write(1, 11).unwrap();
    device.flush_all();
    assert_eq!(device.read(1).unwrap(), content(11));
}

#[test]
fn with_no_node_left_writes_fail_when_the_cache_is_full_and_nothing_acknowledged_is_lost() {
    let mut device = device(small(2048), &[64]);
    device.nodes[0].kill();
    let mut stored = 0;
    let error = loop {
        match device.write(stored, stored * 8 + 2) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, IoError::NoNode);
    assert!(stored > 8, "{stored}");
    for page in 0..stored {
        assert_eq!(device.read(page).unwrap(), content(page * 8 + 2));
    }
    device.nodes[0].revive(true);
    device.keep();
    for page in stored..600 {
        device.write(page, page * 8 + 2).unwrap();
    }
    for page in 0..600 {
        assert_eq!(device.read(page).unwrap(), content(page * 8 + 2));
    }
}

#[test]
fn a_damaged_record_is_an_error_and_never_a_wrong_page() {
    let mut device = device(small(2048), &[64]);
    for page in 0..512 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    device.nodes[0].corrupt(100);
    let bad: Vec<_> = (0..512).filter_map(|page| device.read(page).err()).collect();
    assert!(!bad.is_empty());
    assert!(bad.iter().all(|error| matches!(error, IoError::Record(NodeId(0), _))), "{bad:?}");
}

#[test]
fn discarding_everything_gives_the_blocks_back_to_the_node() {
    let mut device = device(small(8192), &[64]);
    for page in 0..8000 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    assert!(device.nodes[0].held() >= 31, "{}", device.nodes[0].held());
    device.discard(0, 8192);
    device.copy_all();
    assert_eq!(device.read(77).unwrap(), vec![0; PAGE_BYTES]);
    device.keep();
    assert!(device.nodes[0].held() <= 17, "{}", device.nodes[0].held());
    assert_eq!(device.engine.report().logical_bytes, 0);
    device.check();
}

#[test]
fn ranges_outside_the_device_are_refused() {
    let mut device = device(small(64), &[4]);
    for (op, first, pages) in [(Op::Write, 63, 2), (Op::Read, 64, 1), (Op::Discard, 1, 64)] {
        let tag = device.queue.submit(op, first * 8, pages * 8, Some(&[1; 2 * PAGE_BYTES])).unwrap();
        device.queue.turn(Duration::from_millis(1)).unwrap();
        assert_eq!(device.queue.take_done(), Some((tag, Err(Errno::new(libc::EINVAL)))));
    }
}

#[test]
fn queues_background_threads_and_failing_nodes_together_lose_nothing_that_was_acknowledged() {
    for replicas in [1, 2] {
        let config = Config { queues: 3, cache_bytes: 256 << 10, replicas, ..small(6144) };
        let nodes: Vec<_> = (0..3).map(|i| Arc::new(MemNode::new(&format!("mem:{i}"), 40))).collect();
        let engine = Arc::new(open(&config, &nodes));
        engine.start().unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let worker = |number: u16| {
                let (engine, nodes) = (&engine, &nodes);
                move || hammer(engine, nodes, number)
            };
            let workers: Vec<_> = (0..3u16).map(|number| scope.spawn(worker(number))).collect();
            let (stop, nodes) = (&stop, &nodes);
            let saboteur = scope.spawn(move || {
                let mut order = Choices::new(1);
                while !stop.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(30));
                    nodes[order.below(3) as usize].fail_after(order.below(20));
                    if order.below(8) == 0 {
                        nodes[order.below(3) as usize].ask_back(order.below(4));
                    }
                }
            });
            let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            stop.store(true, Ordering::SeqCst);
            saboteur.join().unwrap();
            ended.into_iter().for_each(|ended| ended.unwrap());
        });
        engine.shared.state().model.check(&[]);
    }
}

/// Random requests to a third of the device, and a last look at every page.
fn hammer(engine: &Arc<Engine>, nodes: &[Arc<MemNode>], number: u16) {
    let mut device = Device::of_threads(engine, number, nodes);
    let mut order = Choices::new(u64::from(number) + 9);
    let mut latest: HashMap<u32, Option<u32>> = HashMap::new();
    for round in 0..3_000u32 {
        let page = u32::from(number) * 2048 + order.below(1200);
        match order.below(8) {
            0 => {
                device.discard(page, 1);
                latest.insert(page, Some(0));
            }
            1..4 => {
                // The nodes only lose connections here, so an error must pass when they are back.
                let known = latest.get(&page).copied().unwrap_or(Some(0));
                if let (Ok(data), Some(seed)) = (device.read(page), known) {
                    assert_eq!(data, content(seed), "page {page}, seed {seed}");
                }
            }
            _ => {
                let done = device.write(page, round + 1);
                latest.insert(page, done.is_ok().then_some(round + 1));
            }
        }
    }
    for (page, seed) in latest {
        let Some(seed) = seed else { continue };
        // A connection that was broken last is back after a heartbeat; anything else would be a lost page.
        let data = (0..200).find_map(|_| {
            let data = device.read(page);
            data.inspect_err(|_| std::thread::sleep(Duration::from_millis(20))).ok()
        });
        assert!(data.is_some_and(|data| data == content(seed)), "page {page}, seed {seed}");
    }
}

#[test]
fn a_release_whose_answer_is_lost_leaves_no_phantom_blocks_and_write_back_goes_on() {
    let mut device = device(small(8192), &[64]);
    for page in 0..6000 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    device.discard(0, 8192);
    device.nodes[0].lose_next_reply();
    device.copy_all();
    assert_eq!(device.engine.report().nodes[0].state, "down");
    device.keep();
    let report = device.engine.report();
    assert_eq!(report.nodes[0].held_blocks, device.nodes[0].held(), "the books of both agree");
    for page in 0..6000 {
        device.write(page, page * 8 + 3).unwrap();
    }
    device.flush_all();
    for page in 0..6000 {
        assert_eq!(device.read(page).unwrap(), content(page * 8 + 3));
    }
    assert_eq!(device.engine.report().nodes[0].failures, 1, "only the lost answer");
    device.check();
}

#[test]
fn blocks_that_the_node_says_are_not_ours_are_dropped_one_by_one_and_the_node_stays_in_use() {
    let mut device = device(Config { cache_bytes: 1 << 20, ..small(4096) }, &[64]);
    for page in 0..600 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    device.nodes[0].take_back();
    // Free and open blocks are met by writing, sealed ones by reading.
    for page in 1000..2500 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    let mut lost = 0;
    for page in 0..600 {
        match device.read(page) {
            Ok(data) => assert_eq!(data, content(page * 8 + 2)),
            Err(error) => {
                assert_eq!(error, IoError::Lost);
                lost += 1;
            }
        }
    }
    assert!(lost > 0, "what was only on the node is gone");
    for page in 1000..2500 {
        assert_eq!(device.read(page).unwrap(), content(page * 8 + 2));
    }
    let report = device.engine.report();
    assert_eq!((report.nodes[0].failures, report.nodes[0].state.as_str()), (0, "up"));
    assert!(report.counters.blocks_disowned > 0, "{report:?}");
    device.discard(0, 4096);
    device.copy_all();
    assert_eq!(device.engine.report().lost_blocks, 0, "the books have forgotten them");
    device.check();
}

/// A device with pages that only its node has, page 0 among them, and the node gone without anybody knowing yet.
fn cut_off(config: Config) -> Device {
    let mut device = device(config, &[64]);
    for page in 0..512 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    device.nodes[0].kill();
    device
}

#[test]
fn a_swap_in_that_meets_a_broken_connection_waits_until_the_node_is_back() {
    let mut device = cut_off(Config { node_patience: Duration::from_secs(60), ..small(2048) });
    device.engine.start().unwrap();
    device.threads = true;
    let node = Arc::clone(&device.nodes[0]);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            node.revive(false);
        });
        assert!(device.read(0).unwrap() == content(2));
    });
    assert_eq!(device.engine.report().nodes[0].failed_reads, 0);
}

#[test]
fn a_swap_in_waits_for_a_node_only_as_long_as_one_outage_may_last() {
    let patience = Duration::from_millis(300);
    let mut device = cut_off(Config { node_patience: patience, ..small(2048) });
    let start = Instant::now();
    assert_eq!(device.read(0), Err(IoError::NodeDown(NodeId(0))));
    assert!(start.elapsed() >= patience, "it did wait");
    // The outage has lasted long enough: nobody waits any more. All of these together would take minutes.
    let start = Instant::now();
    let failed = (0..400).filter_map(|page| device.read(page).err()).count();
    assert!(failed > 200 && start.elapsed() < Duration::from_secs(30), "{failed} in {:?}", start.elapsed());
}

#[test]
fn a_node_that_refuses_connections_is_waited_for_less_long() {
    let mut device = cut_off(Config { node_patience: Duration::from_secs(600), ..small(2048) });
    device.engine.start().unwrap();
    device.threads = true;
    assert_eq!(device.read(0), Err(IoError::NodeDown(NodeId(0))));
}

#[test]
fn a_swap_out_that_finds_no_room_gives_up_at_one_deadline() {
    let mut device = device(Config { room_patience: Duration::from_millis(200), ..small(2048) }, &[64]);
    // Nobody writes back.
    device.threads = true;
    let data: Vec<u8> = (0..64).flat_map(|seed| content(seed * 8 + 2)).collect();
    assert_eq!(device.swap_out(0, &data), Err(IoError::Retries));
}

#[test]
fn read_ahead_brings_neighbours_and_their_use_is_counted() {
    let mut device = device(Config { cache_bytes: 1 << 20, ..small(4096) }, &[64]);
    for page in 0..2048 {
        device.write(page, page * 8 + 5).unwrap();
    }
    device.flush_all();
    for page in 0..2048 {
        assert_eq!(device.read(page).unwrap(), content(page * 8 + 5));
    }
    let report = device.engine.report();
    assert!(report.ahead_used > 100, "{report:?}");
    assert!(report.counters.remote_reads < report.counters.misses + report.ahead_used, "{report:?}");
}

#[test]
fn a_killed_engine_is_recovered_with_every_acknowledged_page() {
    for (sealed, replicas) in [(true, 1), (false, 2)] {
        let config = Config { sealed, replicas, ..small(4096) };
        let file = tempfile::tempfile().unwrap();
        let bytes = memory_bytes(&config);
        file.set_len(bytes as u64).unwrap();
        let nodes: Vec<_> = (0..2).map(|i| Arc::new(MemNode::new(&format!("mem:{i}"), 64))).collect();
        let remotes = nodes.iter().map(|node| Arc::clone(node) as Arc<dyn RemoteNode>).collect();
        let memory = Memory::shared(&file, bytes).unwrap();
        let engine = Engine::open(config.clone(), memory, 7, [3; 32], remotes).unwrap();
        let mut device = Device::over(engine, nodes.clone());
        let mut order = Choices::new(5);
        let mut latest = HashMap::new();
        for life in 0..4u32 {
            for _ in 0..600 {
                let page = order.below(2048);
                let seed = order.below(1 << 20);
                device.write(page, seed).unwrap();
                latest.insert(page, seed);
                if order.below(64) == 0 {
                    let gone = order.below(2000);
                    device.discard(gone, 40);
                    latest.retain(|page, _| !(gone..gone + 40).contains(page));
                }
            }
            // Nothing says goodbye: the mapping is all that is left.
            let Device { engine, queue, .. } = device;
            drop(queue.finish().unwrap());
            engine.halt();
            std::mem::forget(engine);
            let memory = Memory::shared(&file, bytes).unwrap();
            let remake = |name: &str, client: u64| {
                assert_eq!(client, 7);
                let node = nodes.iter().find(|node| node.name() == name).unwrap();
                Ok(Arc::clone(node) as Arc<dyn RemoteNode>)
            };
            let (engine, found) = Engine::recover(config.clone(), memory, remake).unwrap();
            engine.shared.state().model.check(&[]);
            device = Device::over(engine, nodes.clone());
            for (page, seed) in &latest {
                assert_eq!(
                    device.read(*page).unwrap(),
                    content(*seed),
                    "page {page}, life {life}: {found:?}"
                );
            }
        }
        let held: u32 = nodes.iter().map(|node| node.held()).sum();
        let report = device.engine.report();
        let known: u32 = report.nodes.iter().map(|node| node.held_blocks).sum();
        assert_eq!(held, known, "no block is forgotten at a node");
    }
}

#[test]
fn devices_and_caches_beyond_the_limits_are_refused_by_name() {
    let most = Config { pages: MAX_PAGES, cache_bytes: MAX_CACHE_BYTES, ..Config::new(1) };
    assert!(most.check().is_ok());
    for (wrong, name) in [
        (Config { pages: MAX_PAGES + 1, ..most.clone() }, "size"),
        (Config { cache_bytes: MAX_CACHE_BYTES + 1, ..most.clone() }, "cache"),
        (Config { cache_bytes: u64::MAX, ..most }, "cache"),
    ] {
        assert!(matches!(wrong.check(), Err(Error::Option(text)) if text.starts_with(name)));
    }
}
