//! What the store promises.

use super::*;
use crate::units::BLOCK_BYTES;

fn hello(client_id: u64, incarnation: u64) -> Hello {
    Hello { client_id, incarnation, block_bytes: BLOCK_BYTES as u32, grace_s: 0 }
}

const GRACE: Duration = Duration::from_secs(10);

fn blocks<const N: usize>() -> [RemoteBlock; N] {
    [RemoteBlock::default(); N]
}

fn range(block: RemoteBlock) -> Range {
    Range { block, offset_bytes: 10, len_bytes: 4 }
}

#[test]
fn a_block_belongs_to_one_client_and_is_zero_for_the_next() {
    let store = Store::new(2 << 20, 1).unwrap();
    let (a, b) = (store.open(&hello(1, 1), GRACE).unwrap(), store.open(&hello(2, 1), GRACE).unwrap());
    let mut numbers = blocks::<4>();
    assert_eq!(store.reserve(&a, &mut numbers), Ok((2, 0)));
    let block = numbers[0];
    store.write(&a, &range(block), b"mine").unwrap();
    assert_eq!(store.write(&b, &range(block), b"what"), Err(Status::NotYours));
    assert_eq!(store.read(&b, &range(block), &mut [0; 4]), Err(Status::NotYours));
    assert_eq!(store.release(&b, [block].into_iter()), Err(Status::NotYours));
    assert_eq!(store.write(&a, &range(RemoteBlock::numbered(99)), b"what"), Err(Status::NotYours));
    store.release(&a, [block].into_iter()).unwrap();
    assert_eq!(store.reserve(&b, &mut numbers), Ok((1, 0)));
    let mut out = [1; 4];
    store.read(&b, &range(numbers[0]), &mut out).unwrap();
    assert_eq!(out, [0; 4]);
}

#[test]
fn a_dead_client_leaks_nothing_after_the_grace_time_and_a_returning_one_loses_nothing_before() {
    let store = Store::new(4 << 20, 1).unwrap();
    let start = Instant::now();
    let grace = Duration::from_secs(10);
    let first = store.open(&hello(1, 1), GRACE).unwrap();
    let lane = store.open(&hello(1, 1), GRACE).unwrap();
    store.reserve(&first, &mut blocks::<3>()).unwrap();
    store.close(&first, false, start);
    assert_eq!(store.expire(start + grace * 2), 0, "one connection is left");
    store.close(&lane, false, start);
    assert_eq!(store.expire(start + grace / 2), 0);
    let back = store.open(&hello(1, 2), GRACE).unwrap();
    assert_eq!(
        (store.info(&back, Instant::now()).lease, store.info(&back, Instant::now()).held_blocks),
        (1, 3)
    );
    store.close(&back, false, start);
    assert_eq!(store.expire(start + grace), 3);
    let later = store.open(&hello(1, 3), GRACE).unwrap();
    assert_eq!(
        (store.info(&later, Instant::now()).held_blocks, store.info(&later, Instant::now()).free_blocks),
        (0, 4)
    );
    assert_ne!(store.info(&later, Instant::now()).lease, 1, "the client can see that its blocks are gone");
}

#[test]
fn a_client_that_says_goodbye_gives_everything_back_at_once() {
    let store = Store::new(4 << 20, 1).unwrap();
    let session = store.open(&hello(1, 1), GRACE).unwrap();
    store.reserve(&session, &mut blocks::<3>()).unwrap();
    store.close(&session, true, Instant::now());
    assert_eq!(store.lent(), (0, 0));
}

#[test]
fn a_late_write_of_an_earlier_connection_is_fenced_off() {
    let store = Store::new(1 << 20, 1).unwrap();
    let old = store.open(&hello(1, 1), GRACE).unwrap();
    let mut numbers = blocks::<1>();
    store.reserve(&old, &mut numbers).unwrap();
    let new = store.open(&hello(1, 2), GRACE).unwrap();
    store.write(&new, &range(numbers[0]), b"good").unwrap();
    assert_eq!(store.write(&old, &range(numbers[0]), b"late"), Err(Status::Stale));
    assert_eq!(store.open(&hello(1, 1), GRACE).err(), Some(Status::Stale));
    let mut out = [0; 4];
    store.read(&new, &range(numbers[0]), &mut out).unwrap();
    assert_eq!(&out, b"good");
}

/// Does `wipe` while one block of client 1 cannot be wiped, and checks that client 2 is served meanwhile.
fn check_served_while(wipe: impl FnOnce(&Store, &Session, &[RemoteBlock]) + Send) {
    let store = Store::new(8 << 20, 1).unwrap();
    let (going, staying) =
        (store.open(&hello(1, 1), GRACE).unwrap(), store.open(&hello(2, 1), GRACE).unwrap());
    let mut numbers = blocks::<3>();
    store.reserve(&going, &mut numbers).unwrap();
    store.write(&going, &range(numbers[1]), b"mine").unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let busy = store.block(numbers[1].number).unwrap();
        let wiper = scope.spawn(|| wipe(&store, &going, &numbers));
        scope.spawn(|| {
            while store.info(&going, Instant::now()).held_blocks == 3 {
                std::thread::yield_now();
            }
            tell.send(store.reserve(&staying, &mut blocks::<8>())).unwrap();
        });
        let served = told.recv_timeout(Duration::from_secs(10));
        assert!(!wiper.is_finished(), "the block is busy");
        drop(busy);
        wiper.join().unwrap();
        assert_eq!(served, Ok(Ok((5, 0))), "served meanwhile, and given no block that is not wiped");
    });
    let mut freed = blocks::<3>();
    assert_eq!(store.reserve(&staying, &mut freed), Ok((3, 0)));
    let mut out = [9; 4];
    let again = freed.iter().find(|block| block.number == numbers[1].number).unwrap();
    store.read(&staying, &range(*again), &mut out).unwrap();
    assert_eq!(out, [0; 4], "wiped before it is lent again");
}

#[test]
fn others_are_served_while_the_blocks_of_a_client_that_said_goodbye_are_wiped() {
    check_served_while(|store, session, _| store.close(session, true, Instant::now()));
}

#[test]
fn others_are_served_while_the_blocks_of_a_client_that_is_gone_are_wiped() {
    check_served_while(|store, session, _| {
        let now = Instant::now();
        store.close(session, false, now);
        assert_eq!(store.expire(now + GRACE), 3);
    });
}

#[test]
fn others_are_served_while_released_blocks_are_wiped() {
    check_served_while(|store, session, numbers| {
        store.release(session, numbers.iter().copied()).unwrap();
    });
}

#[test]
fn a_release_ends_at_the_first_block_that_is_not_held_and_one_named_twice_is_freed_once() {
    let store = Store::new(4 << 20, 1).unwrap();
    let session = store.open(&hello(1, 1), GRACE).unwrap();
    let mut numbers = blocks::<3>();
    store.reserve(&session, &mut numbers).unwrap();
    let [a, b, _] = numbers;
    assert_eq!(store.release(&session, [a, a, b].into_iter()), Err(Status::NotYours));
    assert_eq!((store.lent(), store.info(&session, Instant::now()).held_blocks), ((2, 1), 2));
    assert_eq!(store.release(&session, [b, RemoteBlock::numbered(77)].into_iter()), Err(Status::NotYours));
    assert_eq!((store.lent(), store.info(&session, Instant::now()).held_blocks), ((1, 1), 1));
}

#[test]
fn a_block_that_is_lent_anew_is_not_touched_by_what_was_meant_for_its_earlier_lending() {
    let store = Store::new(1 << 20, 1).unwrap();
    let session = store.open(&hello(1, 1), GRACE).unwrap();
    let (mut old, mut new) = (blocks::<1>(), blocks::<1>());
    store.reserve(&session, &mut old).unwrap();
    store.release(&session, old.into_iter()).unwrap();
    store.reserve(&session, &mut new).unwrap();
    assert_eq!((old[0].number, old[0].generation, new[0].generation), (new[0].number, 0, 1));
    store.write(&session, &range(new[0]), b"good").unwrap();
    assert_eq!(store.write(&session, &range(old[0]), b"late"), Err(Status::Reused));
    assert_eq!(store.read(&session, &range(old[0]), &mut [0; 4]), Err(Status::Reused));
    assert_eq!(store.release(&session, old.into_iter()), Err(Status::Reused));
    let mut out = [0; 4];
    store.read(&session, &range(new[0]), &mut out).unwrap();
    assert_eq!(&out, b"good");
}

#[test]
fn a_client_may_ask_for_less_grace_but_not_for_more_and_goodbye_counts_on_any_connection() {
    let store = Store::new(2 << 20, 1).unwrap();
    let start = Instant::now();
    for (asked, kept) in [(0, 10), (3, 3), (99, 10)] {
        let session = store.open(&Hello { grace_s: asked, ..hello(1, 1) }, GRACE).unwrap();
        store.reserve(&session, &mut blocks::<2>()).unwrap();
        store.close(&session, false, start);
        assert_eq!(store.expire(start + Duration::from_millis(kept * 1000 - 1)), 0, "{asked}");
        assert_eq!(store.expire(start + Duration::from_secs(kept)), 2, "{asked}");
    }
    let (lane, link) = (store.open(&hello(1, 1), GRACE).unwrap(), store.open(&hello(1, 1), GRACE).unwrap());
    store.reserve(&lane, &mut blocks::<2>()).unwrap();
    store.close(&lane, true, start);
    assert_eq!(store.lent(), (2, 1));
    store.close(&link, false, start);
    assert_eq!(store.lent(), (0, 0));
}

#[test]
fn what_is_lent_beyond_the_limit_is_wanted_back_from_all_in_proportion_and_never_dropped() {
    let store = Store::new(100 << 20, 1).unwrap();
    let (large, small) = (store.open(&hello(1, 1), GRACE).unwrap(), store.open(&hello(2, 1), GRACE).unwrap());
    let (mut many, mut few) = (blocks::<60>(), blocks::<20>());
    store.reserve(&large, &mut many).unwrap();
    store.reserve(&small, &mut few).unwrap();
    store.write(&large, &range(many[0]), b"kept").unwrap();
    let now = Instant::now();
    let second = Duration::from_secs(1);
    store.set_limit(60, now, second * 10);
    store.set_limit(60, now + second * 5, second * 10);
    let at = now + second * 6;
    let (a, b) = (store.info(&large, at), store.info(&small, at));
    assert_eq!((a.reclaim_blocks, a.reclaim_deadline_ms, a.free_blocks, a.flags), (15, 4000, 0, 0));
    assert_eq!((b.reclaim_blocks, b.reclaim_deadline_ms), (5, 4000));
    assert_eq!(store.reserve(&small, &mut blocks::<1>()), Ok((0, 0)));
    assert_eq!(store.newly_overdue(at), None);
    let late = now + second * 10;
    assert_eq!((store.newly_overdue(late), store.newly_overdue(late)), (Some(20), None), "said once");
    assert_eq!((store.report(late).overdue_blocks, store.info(&large, late).reclaim_deadline_ms), (20, 0));
    let mut out = [0; 4];
    store.read(&large, &range(many[0]), &mut out).unwrap();
    assert_eq!(&out, b"kept");
    assert_eq!(store.release(&large, many[..20].iter().copied()), Ok(0), "given back, not lent again");
    assert_eq!(store.report(late).overdue_blocks, 0);
    store.newly_overdue(late);
    store.set_limit(100, late, second);
    assert_eq!(store.reserve(&small, &mut blocks::<50>()), Ok((40, 0)));
}

#[test]
fn a_quota_bounds_each_client_by_itself() {
    let store = Store::new(8 << 20, 1).unwrap().with_quota(3);
    let (a, b) = (store.open(&hello(1, 1), GRACE).unwrap(), store.open(&hello(2, 1), GRACE).unwrap());
    let mut held = blocks::<8>();
    assert_eq!(store.reserve(&a, &mut held), Ok((3, 0)));
    assert_eq!(store.reserve(&a, &mut blocks::<1>()), Err(Status::Quota));
    assert_eq!(
        (store.info(&a, Instant::now()).free_blocks, store.info(&b, Instant::now()).free_blocks),
        (0, 3)
    );
    assert_eq!(store.reserve(&b, &mut blocks::<8>()), Ok((3, 0)));
    assert_eq!(store.release(&a, held[..1].iter().copied()), Ok(1));
}

#[test]
fn a_draining_store_wants_everything_back_and_takes_nobody_new() {
    let store = Store::new(8 << 20, 1).unwrap();
    let session = store.open(&hello(1, 1), GRACE).unwrap();
    store.reserve(&session, &mut blocks::<4>()).unwrap();
    let now = Instant::now();
    store.drain(now + Duration::from_secs(7));
    let info = store.info(&session, now);
    assert_eq!((info.flags, info.reclaim_blocks, info.reclaim_deadline_ms), (INFO_DRAINING, 4, 7000));
    assert_eq!(info.free_blocks, 0);
    assert_eq!(store.reserve(&session, &mut blocks::<1>()), Err(Status::Draining));
    assert_eq!(store.open(&hello(2, 1), GRACE).err(), Some(Status::Draining));
    assert!(store.open(&hello(1, 2), GRACE).is_ok(), "who has something here may come back for it");
}

#[test]
fn all_that_a_client_holds_is_listed_page_by_page() {
    let store = Store::new(600 << 20, 1).unwrap();
    let (session, other) =
        (store.open(&hello(1, 1), GRACE).unwrap(), store.open(&hello(2, 1), GRACE).unwrap());
    let mut held: Vec<RemoteBlock> = Vec::new();
    for _ in 0..280 {
        let (mut mine, mut theirs) = (blocks::<1>(), blocks::<1>());
        store.reserve(&session, &mut mine).unwrap();
        store.reserve(&other, &mut theirs).unwrap();
        held.extend(mine);
    }
    held.sort();
    let (mut found, mut from, mut pages) = (Vec::new(), 0, 0);
    loop {
        let mut page = [RemoteBlock::default(); MAX_BLOCKS_PER_MESSAGE];
        let (count, next) = store.list(&session, from, &mut page).unwrap();
        found.extend(&page[..count]);
        pages += 1;
        if next == 0 {
            break;
        }
        from = next;
    }
    assert_eq!((pages, found), (2, held));
}

#[test]
fn a_locked_stores_free_memory_goes_back_above_the_limit_and_comes_again_below() {
    let store = Store::new(8 << 20, 1).unwrap();
    store.set_locked();
    let session = store.open(&hello(1, 1), GRACE).unwrap();
    let mut held = blocks::<4>();
    store.reserve(&session, &mut held).unwrap();
    assert_eq!((store.holding(), store.park()), (8, 0));
    store.set_limit(2, Instant::now(), GRACE);
    assert_eq!((store.park(), store.holding()), (4, 4), "what is lent stays");
    store.release(&session, held[1..].iter().copied()).unwrap();
    assert_eq!((store.park(), store.holding()), (2, 2));
    store.set_limit(8, Instant::now(), GRACE);
    // Locked again as far as this process may lock.
    let back = store.park();
    assert_eq!(store.holding(), 2 + back);
    assert_eq!(store.info(&session, Instant::now()).free_blocks, 1 + back);
}
