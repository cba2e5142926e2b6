use super::*;
use crate::remote::mem::MemNode;
use crate::units::PageNo;
use proptest::prelude::*;
use std::collections::HashMap;

/// The tests keep a hand on the nodes that the engine owns.
struct Handle(Arc<MemNode>);

impl RemoteNode for Handle {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn connect(&self) -> Result<Info, RemoteError> {
        self.0.connect()
    }
    fn disconnect(&self) {
        self.0.disconnect();
    }
    fn reserve(
        &self,
        lane: Lane,
        blocks: &mut [RemoteBlock],
    ) -> Result<crate::remote::Reserved, RemoteError> {
        self.0.reserve(lane, blocks)
    }
    fn release(&self, lane: Lane, blocks: &[RemoteBlock]) -> Result<u32, RemoteError> {
        self.0.release(lane, blocks)
    }
    fn write_at(&self, lane: Lane, block: RemoteBlock, offset: u32, data: &[u8]) -> Result<(), RemoteError> {
        self.0.write_at(lane, block, offset, data)
    }
    fn read_at(
        &self,
        lane: Lane,
        block: RemoteBlock,
        offset: u32,
        data: &mut [u8],
    ) -> Result<(), RemoteError> {
        self.0.read_at(lane, block, offset, data)
    }
    fn stat(&self, lane: Lane) -> Result<Info, RemoteError> {
        self.0.stat(lane)
    }
}

fn engine(config: Config, blocks: &[u32]) -> (Engine, Vec<Arc<MemNode>>) {
    let nodes: Vec<Arc<MemNode>> = blocks
        .iter()
        .enumerate()
        .map(|(i, blocks)| Arc::new(MemNode::new(&format!("mem:{i}"), *blocks)))
        .collect();
    let remotes =
        nodes.iter().map(|node| Box::new(Handle(Arc::clone(node))) as Box<dyn RemoteNode>).collect();
    (Engine::open(config, remotes).unwrap(), nodes)
}

fn small(pages: u32) -> Config {
    Config {
        cache_bytes: 64 << 10,
        heartbeat: Duration::from_millis(20),
        node_patience: Duration::ZERO,
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

#[derive(Debug, Clone)]
enum Step {
    Write { first: u32, count: u32, seed: u32 },
    Read { first: u32, count: u32 },
    Discard { first: u32, count: u32 },
    Flush,
    Keep,
    Clean,
    FailSoon { node: usize, after: u32 },
    Kill { node: usize },
    Revive { node: usize, forget: bool },
    LoseReply { node: usize },
    TakeBack { node: usize },
}

const PAGES: u32 = 1024;

fn fault() -> impl Strategy<Value = Step> {
    let node = || 0usize..2;
    prop_oneof![
        2 => (node(), 0u32..8).prop_map(|(node, after)| Step::FailSoon { node, after }),
        1 => node().prop_map(|node| Step::Kill { node }),
        1 => node().prop_map(|node| Step::LoseReply { node }),
        1 => node().prop_map(|node| Step::TakeBack { node }),
        2 => (node(), any::<bool>()).prop_map(|(node, forget)| Step::Revive { node, forget }),
    ]
}

fn step(faults: bool) -> impl Strategy<Value = Step> {
    let range = || (0..PAGES, 1u32..48).prop_map(|(first, count)| (first, count.min(PAGES - first)));
    prop_oneof![
        12 => (range(), any::<u32>()).prop_map(|((first, count), seed)| Step::Write { first, count, seed: seed >> 8 }),
        8 => range().prop_map(|(first, count)| Step::Read { first, count }),
        2 => range().prop_map(|(first, count)| Step::Discard { first, count }),
        2 => Just(Step::Flush),
        2 => Just(Step::Keep),
        1 => Just(Step::Clean),
        if faults { 7 } else { 0 } => fault(),
    ]
}

/// Runs the steps against a map of what each page may hold: one content, or, after a failed write, two.
fn check_steps(steps: &[Step], group_pages: u32, blocks: &[u32], faults: bool) {
    let (engine, nodes) = engine(Config { group_pages, ..small(PAGES) }, blocks);
    let mut queue = engine.queue(0);
    let mut known: HashMap<u32, Vec<Vec<u8>>> = HashMap::new();
    let zero = vec![vec![0; PAGE_BYTES]];
    for step in steps {
        match *step {
            Step::Write { first, count, seed } => {
                let data: Vec<u8> = (0..count).flat_map(|i| content(seed + i)).collect();
                let result = engine.swap_out(&mut queue, PageNo(first), &data);
                for (page, new) in (first..).zip(data.chunks(PAGE_BYTES)) {
                    let may = known.entry(page).or_insert_with(|| zero.clone());
                    if result.is_ok() {
                        may.clear();
                    }
                    may.push(new.to_vec());
                }
                if !faults {
                    assert!(matches!(result, Ok(()) | Err(IoError::NoSpace)), "{result:?}");
                }
            }
            Step::Read { first, count } => {
                let mut data = vec![0x5a; count as usize * PAGE_BYTES];
                match engine.swap_in(&mut queue, PageNo(first), &mut data) {
                    Ok(()) => {
                        for (page, got) in (first..).zip(data.chunks(PAGE_BYTES)) {
                            let may = known.get(&page).unwrap_or(&zero);
                            assert!(
                                may.iter().any(|may| may == got),
                                "page {page} has a content it never had"
                            );
                        }
                    }
                    Err(error) => assert!(faults, "{error}"),
                }
            }
            Step::Discard { first, count } => {
                engine.discard(PageNo(first), count).unwrap();
                (first..first + count).for_each(|page| drop(known.remove(&page)));
            }
            Step::Flush => drop(engine.shared.flush_once()),
            Step::Keep => (0..2).for_each(|node| engine.shared.keep_node(NodeId(node))),
            Step::Clean => {
                engine.shared.clean_for_test();
            }
            Step::FailSoon { node, after } => nodes[node].fail_after(after),
            Step::Kill { node } => nodes[node].kill(),
            Step::Revive { node, forget } => nodes[node].revive(forget),
            Step::LoseReply { node } => nodes[node].lose_next_reply(),
            Step::TakeBack { node } => nodes[node].take_back(),
        }
        engine.shared.state().model.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn without_faults_every_read_gives_what_was_written(
        steps in proptest::collection::vec(step(false), 1..80), group in 0u32..8,
    ) {
        check_steps(&steps, 1 << group, &[5, 4], false);
    }

    #[test]
    fn with_failing_nodes_a_read_gives_the_newest_content_or_an_error(
        steps in proptest::collection::vec(step(true), 1..80), group in 0u32..6,
    ) {
        check_steps(&steps, 1 << group, &[6, 6], true);
    }
}

fn write(engine: &Engine, queue: &mut QueueContext, page: u32, seed: u32) -> Result<(), IoError> {
    engine.swap_out(queue, PageNo(page), &content(seed))
}

fn read(engine: &Engine, queue: &mut QueueContext, page: u32) -> Result<Vec<u8>, IoError> {
    let mut data = vec![0; PAGE_BYTES];
    engine.swap_in(queue, PageNo(page), &mut data).map(|()| data)
}

fn flush_all(engine: &Engine) {
    let mut writer = engine.shared.writer.lock().unwrap();
    while engine.shared.write_back(&mut writer).unwrap() {}
}

#[test]
fn a_full_store_is_cleaned_as_long_as_there_are_dead_records_and_then_refuses_writes() {
    // 12 blocks, 2 of them reserved: room for about 2500 raw pages. 1536 pages are overwritten again and again.
    let (engine, _) = engine(small(8192), &[6, 6]);
    let mut queue = engine.queue(0);
    let mut order = Choices::new(3);
    let mut latest: HashMap<u32, u32> = HashMap::new();
    for round in 0..8000u32 {
        let page = if round < 1536 { round } else { order.below(1536) };
        write(&engine, &mut queue, page, round * 8 + 2).unwrap();
        latest.insert(page, round * 8 + 2);
    }
    for (page, seed) in &latest {
        assert_eq!(read(&engine, &mut queue, *page).unwrap(), content(*seed), "page {page}");
    }
    let report = engine.report();
    assert!(report.counters.blocks_cleaned > 0 && report.write_amplification > 1.0, "{report:?}");
    let refused = (2000..8192).find_map(|page| write(&engine, &mut queue, page, 8 * page + 2).err());
    assert_eq!(refused, Some(IoError::NoSpace));
    for (page, seed) in &latest {
        assert_eq!(
            read(&engine, &mut queue, *page).unwrap(),
            content(*seed),
            "page {page} after the refusal"
        );
    }
    engine.shared.state().model.check();
}

#[test]
fn when_a_node_dies_its_pages_give_errors_at_once_and_cached_ones_go_to_the_other_node() {
    let (engine, nodes) = engine(Config { seed: 5, ..small(4096) }, &[64, 64]);
    let mut queue = engine.queue(0);
    for page in 0..2048 {
        write(&engine, &mut queue, page, page * 8 + 2).unwrap();
    }
    flush_all(&engine);
    nodes[0].kill();
    let mut lost = Vec::new();
    for page in 0..2048 {
        match read(&engine, &mut queue, page) {
            Ok(data) => assert_eq!(data, content(page * 8 + 2)),
            Err(error) => {
                assert_eq!(error, IoError::NodeDown(NodeId(0)));
                lost.push(page);
            }
        }
    }
    assert!(lost.len() > 200 && lost.len() < 1800, "{} pages were on node 0", lost.len());
    for page in &lost {
        write(&engine, &mut queue, *page, page * 8 + 3).unwrap();
    }
    flush_all(&engine);
    assert_eq!(engine.report().nodes[0].state, "down");
    nodes[0].revive(true);
    engine.shared.keep_node(NodeId(0));
    for page in &lost {
        assert_eq!(read(&engine, &mut queue, *page).unwrap(), content(page * 8 + 3));
    }
    assert_eq!(engine.report().lost_blocks, 0, "all lost pages were overwritten");
    engine.shared.state().model.check();
}

#[test]
fn a_node_that_returns_with_its_content_serves_its_pages_again_and_one_that_forgot_does_not() {
    let (engine, nodes) = engine(small(2048), &[64]);
    let mut queue = engine.queue(0);
    for page in 0..1024 {
        write(&engine, &mut queue, page, page * 8 + 2).unwrap();
    }
    flush_all(&engine);
    nodes[0].kill();
    assert_eq!(read(&engine, &mut queue, 0), Err(IoError::NodeDown(NodeId(0))));
    nodes[0].revive(false);
    engine.shared.keep_node(NodeId(0));
    assert_eq!(read(&engine, &mut queue, 0).unwrap(), content(2));
    nodes[0].kill();
    assert_eq!(read(&engine, &mut queue, 1), Err(IoError::NodeDown(NodeId(0))));
    nodes[0].revive(true);
    engine.shared.keep_node(NodeId(0));
    assert_eq!(read(&engine, &mut queue, 1), Err(IoError::Lost(NodeId(0))));
    write(&engine, &mut queue, 1, 11).unwrap();
    flush_all(&engine);
    assert_eq!(read(&engine, &mut queue, 1).unwrap(), content(11));
}

#[test]
fn with_no_node_left_writes_fail_when_the_cache_is_full_and_nothing_acknowledged_is_lost() {
    let (engine, nodes) = engine(small(2048), &[64]);
    let mut queue = engine.queue(0);
    nodes[0].kill();
    let mut stored = 0;
    let error = loop {
        match write(&engine, &mut queue, stored, stored * 8 + 2) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, IoError::NoNode);
    assert!(stored > 8, "{stored}");
    for page in 0..stored {
        assert_eq!(read(&engine, &mut queue, page).unwrap(), content(page * 8 + 2));
    }
    nodes[0].revive(true);
    engine.shared.keep_node(NodeId(0));
    for page in stored..600 {
        write(&engine, &mut queue, page, page * 8 + 2).unwrap();
    }
    for page in 0..600 {
        assert_eq!(read(&engine, &mut queue, page).unwrap(), content(page * 8 + 2));
    }
}

#[test]
fn a_damaged_record_is_an_error_and_never_a_wrong_page() {
    let (engine, nodes) = engine(small(2048), &[64]);
    let mut queue = engine.queue(0);
    for page in 0..512 {
        write(&engine, &mut queue, page, page * 8 + 2).unwrap();
    }
    flush_all(&engine);
    nodes[0].corrupt(100);
    let bad: Vec<_> = (0..512).filter_map(|page| read(&engine, &mut queue, page).err()).collect();
    assert!(!bad.is_empty());
    assert!(bad.iter().all(|error| matches!(error, IoError::Record(NodeId(0), _))), "{bad:?}");
}

#[test]
fn discarding_everything_gives_the_blocks_back_to_the_node() {
    let (engine, nodes) = engine(small(8192), &[64]);
    let mut queue = engine.queue(0);
    for page in 0..8000 {
        write(&engine, &mut queue, page, page * 8 + 2).unwrap();
    }
    flush_all(&engine);
    assert!(nodes[0].held() >= 31, "{}", nodes[0].held());
    engine.discard(PageNo(0), 8192).unwrap();
    assert_eq!(read(&engine, &mut queue, 77).unwrap(), vec![0; PAGE_BYTES]);
    engine.shared.keep_node(NodeId(0));
    assert!(nodes[0].held() <= 17, "{}", nodes[0].held());
    assert_eq!(engine.report().logical_bytes, 0);
    engine.shared.state().model.check();
}

#[test]
fn ranges_outside_the_device_are_refused() {
    let (engine, _) = engine(small(64), &[4]);
    let mut queue = engine.queue(0);
    assert_eq!(engine.swap_out(&mut queue, PageNo(63), &[1; 2 * PAGE_BYTES]), Err(IoError::Range));
    assert_eq!(engine.swap_in(&mut queue, PageNo(64), &mut [1; PAGE_BYTES]), Err(IoError::Range));
    assert_eq!(engine.swap_in(&mut queue, PageNo(0), &mut [1; 100]), Err(IoError::Range));
    assert_eq!(engine.discard(PageNo(1), u32::MAX), Err(IoError::Range));
}

#[test]
fn queues_background_threads_and_failing_nodes_together_lose_nothing_that_was_acknowledged() {
    let config = Config { queues: 3, cache_bytes: 256 << 10, ..small(6144) };
    let (engine, nodes) = engine(config, &[40, 40]);
    engine.start().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3u16)
            .map(|worker| {
                let engine = &engine;
                scope.spawn(move || {
                    let mut queue = engine.queue(worker);
                    let mut order = Choices::new(u64::from(worker) + 9);
                    let mut latest: HashMap<u32, Option<u32>> = HashMap::new();
                    for round in 0..6_000u32 {
                        let page = u32::from(worker) * 2048 + order.below(1200);
                        match order.below(8) {
                            0 => {
                                engine.discard(PageNo(page), 1).unwrap();
                                latest.insert(page, Some(0));
                            }
                            1..4 => {
                                // The nodes only lose connections here, so an error must pass when they are back.
                                let known = latest.get(&page).copied().unwrap_or(Some(0));
                                if let (Ok(data), Some(seed)) = (read(engine, &mut queue, page), known) {
                                    assert_eq!(data, content(seed), "page {page}, seed {seed}");
                                }
                            }
                            _ => {
                                let done = write(engine, &mut queue, page, round + 1);
                                latest.insert(page, done.is_ok().then_some(round + 1));
                            }
                        }
                    }
                    latest
                })
            })
            .collect();
        let nodes = &nodes;
        let stop = &stop;
        let saboteur = scope.spawn(move || {
            let mut order = Choices::new(1);
            while !stop.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(30));
                nodes[order.below(2) as usize].fail_after(order.below(20));
            }
        });
        let latest: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        stop.store(true, Ordering::SeqCst);
        saboteur.join().unwrap();
        let mut queue = engine.queue(0);
        for (page, seed) in latest.iter().flatten() {
            let Some(seed) = seed else { continue };
            // A connection that was broken last is back after a heartbeat; anything else would be a lost page.
            let data = (0..200).find_map(|_| {
                let data = read(&engine, &mut queue, *page);
                data.inspect_err(|_| std::thread::sleep(Duration::from_millis(20))).ok()
            });
            assert_eq!(data.expect("readable again"), content(*seed), "page {page}");
        }
    });
    assert!(
        engine.report().nodes.iter().map(|node| node.failures).sum::<u64>() > 0,
        "the saboteur did something"
    );
    engine.shared.state().model.check();
}

#[test]
fn a_release_whose_answer_is_lost_leaves_no_phantom_blocks_and_write_back_goes_on() {
    let (engine, nodes) = engine(small(8192), &[64]);
    let mut queue = engine.queue(0);
    for page in 0..6000 {
        write(&engine, &mut queue, page, page * 8 + 2).unwrap();
    }
    flush_all(&engine);
    engine.discard(PageNo(0), 8192).unwrap();
    nodes[0].lose_next_reply();
    engine.shared.keep_node(NodeId(0));
    assert_eq!(engine.report().nodes[0].state, "down");
    engine.shared.keep_node(NodeId(0));
    let report = engine.report();
    assert_eq!(report.nodes[0].held_blocks, nodes[0].held(), "the books of both agree");
    for page in 0..6000 {
        write(&engine, &mut queue, page, page * 8 + 3).unwrap();
    }
    flush_all(&engine);
    for page in 0..6000 {
        assert_eq!(read(&engine, &mut queue, page).unwrap(), content(page * 8 + 3));
    }
    assert_eq!(engine.report().nodes[0].failures, 1, "only the lost answer");
    engine.shared.state().model.check();
}

#[test]
fn blocks_that_the_node_says_are_not_ours_are_dropped_one_by_one_and_the_node_stays_in_use() {
    let (engine, nodes) = engine(Config { cache_bytes: 1 << 20, ..small(4096) }, &[64]);
    let mut queue = engine.queue(0);
    for page in 0..600 {
        write(&engine, &mut queue, page, page * 8 + 2).unwrap();
    }
    flush_all(&engine);
    nodes[0].take_back();
    // Free and open blocks are met by writing, sealed ones by reading.
    for page in 1000..2500 {
        write(&engine, &mut queue, page, page * 8 + 2).unwrap();
    }
    flush_all(&engine);
    let mut lost = 0;
    for page in 0..600 {
        match read(&engine, &mut queue, page) {
            Ok(data) => assert_eq!(data, content(page * 8 + 2)),
            Err(error) => {
                assert_eq!(error, IoError::Lost(NodeId(0)));
                lost += 1;
            }
        }
    }
    assert!(lost > 0, "what was only on the node is gone");
    for page in 1000..2500 {
        assert_eq!(read(&engine, &mut queue, page).unwrap(), content(page * 8 + 2));
    }
    let report = engine.report();
    assert_eq!((report.nodes[0].failures, report.nodes[0].state.as_str()), (0, "up"));
    assert!(report.counters.blocks_disowned > 0, "{report:?}");
    engine.discard(PageNo(0), 4096).unwrap();
    assert_eq!(engine.report().lost_blocks, 0, "the books have forgotten them");
    engine.shared.state().model.check();
}

/// An engine with pages that only its node has, page 0 among them, and the node gone without anybody knowing yet.
fn cut_off(config: Config) -> (Engine, Vec<Arc<MemNode>>, QueueContext) {
    let (engine, nodes) = engine(config, &[64]);
    let mut queue = engine.queue(0);
    for page in 0..512 {
        write(&engine, &mut queue, page, page * 8 + 2).unwrap();
    }
    flush_all(&engine);
    nodes[0].kill();
    (engine, nodes, queue)
}

#[test]
fn a_swap_in_that_meets_a_broken_connection_waits_until_the_node_is_back() {
    let (engine, nodes, mut queue) =
        cut_off(Config { node_patience: Duration::from_secs(60), ..small(2048) });
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| tell.send(read(&engine, &mut queue, 0)).unwrap());
        while engine.report().nodes[0].state == "up" {
            std::thread::yield_now();
        }
        nodes[0].revive(false);
        engine.shared.keep_node(NodeId(0));
        assert!(told.recv_timeout(Duration::from_secs(20)).unwrap().unwrap() == content(2));
    });
    assert_eq!(engine.report().nodes[0].failed_reads, 0);
}

#[test]
fn a_swap_in_waits_for_a_node_only_as_long_as_one_outage_may_last() {
    let patience = Duration::from_millis(300);
    let (engine, _, mut queue) = cut_off(Config { node_patience: patience, ..small(2048) });
    let start = Instant::now();
    assert_eq!(read(&engine, &mut queue, 0), Err(IoError::NodeDown(NodeId(0))));
    assert!(start.elapsed() >= patience, "it did wait");
    // The outage has lasted long enough: nobody waits any more. All of these together would take minutes.
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| tell.send((0..400).filter_map(|page| read(&engine, &mut queue, page).err()).count()));
        assert!(told.recv_timeout(Duration::from_secs(30)).unwrap() > 200);
    });
}

#[test]
fn stopping_ends_the_wait_for_a_node() {
    let (engine, _, mut queue) = cut_off(Config { node_patience: Duration::from_secs(600), ..small(2048) });
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| tell.send(read(&engine, &mut queue, 0)).unwrap());
        while engine.report().nodes[0].state == "up" {
            std::thread::yield_now();
        }
        engine.stop();
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(Err(IoError::NodeDown(NodeId(0)))));
    });
}

#[test]
fn a_node_that_refuses_connections_is_waited_for_less_long() {
    let (engine, _, mut queue) = cut_off(Config { node_patience: Duration::from_secs(600), ..small(2048) });
    engine.start().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| tell.send(read(&engine, &mut queue, 0)).unwrap());
        assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(Err(IoError::NodeDown(NodeId(0)))));
    });
}

#[test]
fn a_swap_out_that_finds_no_room_gives_up_at_one_deadline() {
    let config = Config { room_patience: Duration::from_millis(200), ..small(2048) };
    let (engine, _) = engine(config, &[64]);
    let mut queue = engine.queue(0);
    let data: Vec<u8> = (0..64).flat_map(|seed| content(seed * 8 + 2)).collect();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        // Somebody else is at it, and does not get on.
        let writer = engine.shared.writer.lock().unwrap();
        scope.spawn(|| tell.send(engine.swap_out(&mut queue, PageNo(0), &data)).unwrap());
        let done = told.recv_timeout(Duration::from_secs(30));
        drop(writer);
        assert_eq!(done, Ok(Err(IoError::Retries)));
    });
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
