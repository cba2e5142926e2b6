//! Requests that cannot go on cost nothing until there is a reason to look at them again.

use super::*;

const DEPTH: u16 = 256;

fn deep(engine: &Engine, depth: u16) -> LocalQueue<QueueWorker> {
    LocalQueue::new(engine.queue(0, depth), depth, PAGE_BYTES).unwrap()
}

fn patient(pages: u32) -> Config {
    let long = Duration::from_secs(600);
    Config { node_patience: long, room_patience: long, no_room_patience: long, ..small(pages) }
}

/// Turns until `count` requests more are done; every one of them well.
fn finish(queue: &mut LocalQueue<QueueWorker>, count: usize, mut between: impl FnMut()) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut done = 0;
    while done < count {
        queue.turn(Duration::from_millis(1)).unwrap();
        while let Some((_, result)) = queue.take_done() {
            assert!(result.is_ok(), "{result:?}");
            done += 1;
        }
        between();
        assert!(Instant::now() < deadline, "{done} of {count} are done");
    }
}

/// Plans that the clock alone may have caused since `start`: one per waiting request and second.
fn by_the_clock(start: Instant, waiting: u64) -> u64 {
    waiting * start.elapsed().as_secs() + 1
}

#[test]
fn swap_ins_that_wait_for_a_node_are_planned_again_only_when_a_node_has_changed() {
    let mut device = device(patient(2048), &[64]);
    for page in 0..1024 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    device.nodes[0].kill();
    drop(device.queue.finish().unwrap());
    let shared = Arc::clone(&device.engine.shared);
    shared.keep_node(NodeId(0));
    let mut queue = deep(&device.engine, DEPTH);
    for page in 0..u64::from(DEPTH) {
        queue.submit(Op::Read, page * 8, 8, None).unwrap();
    }
    (0..4).for_each(|_| queue.turn(Duration::ZERO).unwrap());
    let (start, before) = (Instant::now(), queue.handler().planned_again());
    for _ in 0..100 {
        shared.wake_queues();
        queue.turn(Duration::from_millis(1)).unwrap();
    }
    let idle = queue.handler().planned_again() - before;
    assert!(idle <= by_the_clock(start, DEPTH.into()), "{idle} plans for nothing");
    assert!(queue.take_done().is_none());
    device.nodes[0].revive(false);
    shared.keep_node(NodeId(0));
    let (start, before) = (Instant::now(), queue.handler().planned_again());
    finish(&mut queue, DEPTH.into(), || ());
    let plans = queue.handler().planned_again() - before;
    assert!(plans <= u64::from(DEPTH) + by_the_clock(start, DEPTH.into()), "{plans} plans for {DEPTH} reads");
    drop(queue.finish().unwrap());
}

#[test]
fn swap_outs_that_wait_for_room_are_tried_one_after_the_other_when_there_is_some() {
    let device = device(patient(2048), &[64]);
    let Device { engine, queue, mut writer, .. } = device;
    drop(queue.finish().unwrap());
    let shared = Arc::clone(&engine.shared);
    let mut queue = deep(&engine, DEPTH);
    for page in 0..u32::from(DEPTH) {
        queue.submit(Op::Write, u64::from(page) * 8, 8, Some(&content(page * 8 + 2))).unwrap();
    }
    (0..4).for_each(|_| queue.turn(Duration::ZERO).unwrap());
    let mut done = 0;
    while queue.take_done().is_some() {
        done += 1;
    }
    let waiting = usize::from(DEPTH) - done;
    assert!(waiting > 100, "the cache holds few of these");
    let (start, before) = (Instant::now(), queue.handler().planned_again());
    for _ in 0..100 {
        // Nobody has written anything back: there is no room, whatever was said.
        shared.wake_queues();
        queue.turn(Duration::from_millis(1)).unwrap();
    }
    let idle = queue.handler().planned_again() - before;
    assert!(idle <= 101 + by_the_clock(start, 16), "{idle} tries for nothing");
    let (start, before) = (Instant::now(), queue.handler().planned_again());
    let mut rounds = 0;
    finish(&mut queue, waiting, || {
        rounds += 1;
        _ = shared.flush_once(&mut writer);
    });
    let tries = queue.handler().planned_again() - before;
    let most = waiting as u64 + 2 * rounds + by_the_clock(start, 16);
    assert!(tries <= most, "{tries} tries for {waiting} writes in {rounds} rounds");
    shared.drain(&mut writer);
    drop(queue.finish().unwrap());
}

#[test]
fn room_that_a_discard_makes_wakes_those_that_wait_for_it() {
    let device = device(patient(2048), &[64]);
    let Device { engine, queue, .. } = device;
    drop(queue.finish().unwrap());
    let mut queue = deep(&engine, 64);
    for page in 0..40 {
        queue.submit(Op::Write, u64::from(page) * 8, 8, Some(&content(page * 8 + 2))).unwrap();
    }
    (0..4).for_each(|_| queue.turn(Duration::ZERO).unwrap());
    let mut stored = Vec::new();
    while let Some((tag, _)) = queue.take_done() {
        stored.push(tag);
    }
    let waiting = 40 - stored.len();
    assert!(waiting > 0 && waiting <= 2 * stored.len(), "{waiting} wait");
    // Nobody writes back: only what is dropped makes room. Those that then come in are dropped in their turn.
    for page in 0..40 {
        queue.submit(Op::Discard, page * 8, 8, None).unwrap();
        (0..3).for_each(|_| queue.turn(Duration::ZERO).unwrap());
    }
    let mut done = 0;
    while let Some((_, result)) = queue.take_done() {
        assert!(result.is_ok());
        done += 1;
    }
    assert_eq!(done, waiting + 40, "the writes and the discards");
    drop(queue.finish().unwrap());
}

#[test]
fn more_swap_ins_than_there_are_operations_wait_for_those_that_end() {
    let mut device = device(patient(4096), &[64]);
    for page in 0..2048 {
        device.write(page, page * 8 + 2).unwrap();
    }
    device.flush_all();
    drop(device.queue.finish().unwrap());
    let mut queue = deep(&device.engine, 1024);
    connect_again(&device.engine.shared, NodeId(0));
    queue.turn(Duration::from_millis(1)).unwrap();
    for page in 0..1024u64 {
        queue.submit(Op::Read, page * 8, 8, None).unwrap();
    }
    let (start, before) = (Instant::now(), queue.handler().planned_again());
    finish(&mut queue, 1024, || ());
    let plans = queue.handler().planned_again() - before;
    assert!(plans <= 1024 + by_the_clock(start, 1024), "{plans} plans");
    drop(queue.finish().unwrap());
}
