//! Any sequence of requests and faults, against a map of what each page may hold.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Write { first: u32, count: u32, seed: u32 },
    Read { first: u32, count: u32 },
    Discard { first: u32, count: u32 },
    Flush,
    Keep,
    Clean,
    Copy,
    FailSoon { node: usize, after: u32 },
    Kill { node: usize },
    Revive { node: usize, forget: bool },
    LoseReply { node: usize },
    TakeBack { node: usize },
    AskBack { node: usize, blocks: u32 },
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
        2 => Just(Step::Copy),
        1 => (0usize..2, 1u32..4).prop_map(|(node, blocks)| Step::AskBack { node, blocks }),
        if faults { 7 } else { 0 } => fault(),
    ]
}

/// Runs the steps against a map of what each page may hold: one content, or, after a failed write, two.
fn check_steps(steps: &[Step], config: Config, blocks: &[u32], faults: bool) {
    let mut device = device(config, blocks);
    let mut known: HashMap<u32, Vec<Vec<u8>>> = HashMap::new();
    let zero = vec![vec![0; PAGE_BYTES]];
    for step in steps {
        match *step {
            Step::Write { first, count, seed } => {
                let data: Vec<u8> = (0..count).flat_map(|i| content(seed + i)).collect();
                let result = device.swap_out(first, &data);
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
            Step::Read { first, count } => match device.swap_in(first, count) {
                Ok(data) => {
                    for (page, got) in (first..).zip(data.chunks(PAGE_BYTES)) {
                        let may = known.get(&page).unwrap_or(&zero);
                        assert!(may.iter().any(|may| may == got), "page {page} has a content it never had");
                    }
                }
                Err(error) => assert!(faults, "{error}"),
            },
            Step::Discard { first, count } => {
                device.discard(first, count);
                (first..first + count).for_each(|page| drop(known.remove(&page)));
            }
            Step::Flush => drop(device.engine.shared.flush_once(&mut device.writer)),
            Step::Keep => device.keep(),
            Step::Clean => {
                device.engine.shared.drain(&mut device.writer);
                device.engine.shared.clean_for_test(&mut device.writer);
            }
            Step::Copy => drop(device.copy_all()),
            Step::FailSoon { node, after } => device.nodes[node].fail_after(after),
            Step::Kill { node } => device.nodes[node].kill(),
            Step::Revive { node, forget } => device.nodes[node].revive(forget),
            Step::LoseReply { node } => device.nodes[node].lose_next_reply(),
            Step::TakeBack { node } => device.nodes[node].take_back(),
            Step::AskBack { node, blocks } => device.nodes[node].ask_back(blocks),
        }
        device.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn without_faults_every_read_gives_what_was_written(
        steps in proptest::collection::vec(step(false), 1..80), group in 0u32..8, sealed: bool, recompress: bool,
    ) {
        check_steps(&steps, Config { group_pages: 1 << group, sealed, recompress, ..small(PAGES) }, &[7, 6], false);
    }

    #[test]
    fn with_failing_nodes_a_read_gives_the_newest_content_or_an_error(
        steps in proptest::collection::vec(step(true), 1..80), group in 0u32..6, sealed: bool, replicas in 1u8..3,
    ) {
        check_steps(&steps, Config { group_pages: 1 << group, sealed, replicas, ..small(PAGES) }, &[8, 8], true);
    }
}
