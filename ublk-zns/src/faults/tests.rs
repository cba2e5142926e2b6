//! The rules against what they say, case by case and against a plain reference.

use super::*;
use crate::geometry::ZnsConfig;
use proptest::prelude::*;

/// 4 zones of 2048 sectors, blocks of 8.
fn geometry() -> Geometry {
    let config = ZnsConfig { size_bytes: 4 << 20, zone_size_bytes: 1 << 20, ..Default::default() };
    Geometry::new(&config).unwrap()
}

fn faults() -> Faults {
    Faults::new(1, &geometry())
}

const EVERYWHERE: Area = Area::Device;

fn sectors(first: u64, count: u64) -> Area {
    Area::Sectors { first: Sector(first), count }
}

fn media_error(op: OpFilter, area: Area, count: Count) -> Rule {
    Rule::MediaError { op, area, count, probability: Probability::CERTAIN }
}

fn latency(op: OpFilter, area: Area, added_ns: u64) -> Rule {
    Rule::Latency { op, area, added_ns, count: Count::Always, probability: Probability::CERTAIN }
}

#[test]
fn a_media_error_strikes_exactly_the_commands_that_touch_its_sectors() {
    let mut faults = faults();
    faults.add(0, media_error(OpFilter::Any, sectors(100, 8), Count::Always)).unwrap();
    for (sector, count, bad) in [
        (92, 8, None),
        (92, 9, Some(100)),
        (100, 1, Some(100)),
        (104, 100, Some(104)),
        (107, 1, Some(107)),
        (108, 8, None),
        (0, 8192, Some(100)),
        (104, 0, None),
        (u64::MAX, u64::MAX, None),
        (0, u64::MAX, Some(100)),
        (101, u64::MAX, Some(101)),
    ] {
        for op in [IoOp::Read, IoOp::Write] {
            let verdict = faults.check(0, op, Sector(sector), count);
            assert_eq!(verdict.media_error, bad.map(Sector), "{op:?} {sector}+{count}");
        }
        assert_eq!(faults.check(0, IoOp::Manage, Sector(sector), count), Verdict::default());
    }
    assert_eq!(faults.check(0, IoOp::Flush, Sector(100), 8), Verdict::default());
}

#[test]
fn reads_writes_and_the_rest_are_told_apart() {
    let all = [IoOp::Read, IoOp::Write, IoOp::Flush, IoOp::Manage];
    let struck = |rule: Rule| {
        let mut faults = faults();
        faults.add(0, rule).unwrap();
        all.map(|op| faults.check(0, op, Sector(0), 8) != Verdict::default())
    };
    assert_eq!(struck(media_error(OpFilter::Read, EVERYWHERE, Count::Always)), [true, false, false, false]);
    assert_eq!(struck(media_error(OpFilter::Write, EVERYWHERE, Count::Always)), [false, true, false, false]);
    assert_eq!(struck(media_error(OpFilter::Any, EVERYWHERE, Count::Always)), [true, true, false, false]);
    assert_eq!(struck(latency(OpFilter::Any, EVERYWHERE, 5)), [true; 4]);
    assert_eq!(struck(latency(OpFilter::Any, Area::Zone(ZoneId(0)), 5)), [true, true, false, true]);
    assert_eq!(struck(latency(OpFilter::Flush, EVERYWHERE, 5)), [false, false, true, false]);
    assert_eq!(struck(latency(OpFilter::Manage, EVERYWHERE, 5)), [false, false, false, true]);
    let torn = Rule::TornWrite { area: EVERYWHERE, landed_blocks: 0, count: Count::Always };
    assert_eq!(struck(torn), [false, true, false, false]);
    assert_eq!(struck(Rule::DropFlush { count: Count::Always }), [false, false, true, false]);
    assert_eq!(struck(Rule::Stall { duration_ns: 1 }), [true; 4]);
}

#[test]
fn a_zone_is_its_sectors_to_the_edge() {
    let mut faults = faults();
    faults.add(0, latency(OpFilter::Any, Area::Zone(ZoneId(3)), 5)).unwrap();
    for (sector, struck) in [(6143, false), (6144, true), (8191, true), (8192, false)] {
        assert_eq!(faults.check(0, IoOp::Read, Sector(sector), 1).added_ns > 0, struck, "{sector}");
    }
}

#[test]
fn a_count_is_of_commands_hit_and_a_spent_rule_stays_listed() {
    let mut faults = faults();
    let id = faults.add(0, media_error(OpFilter::Read, sectors(0, 8), Count::Times(2))).unwrap();
    let hits: Vec<_> = [(8, 8), (0, 8), (16, 8), (0, 8), (0, 8)]
        .map(|(at, n)| faults.check(0, IoOp::Read, Sector(at), n).fails())
        .into();
    assert_eq!(hits, [false, true, false, true, false]);
    assert!(faults.is_empty());
    let listed = faults.list(0);
    assert_eq!(
        (listed[0].id, listed[0].hits, listed[0].remaining, listed[0].active),
        (id, 2, Some(0), false)
    );
    assert_eq!(faults.remove(Selection::Id(id)), Ok(1));
    assert!(faults.list(0).is_empty());
}

#[test]
fn several_rules_on_one_command_combine_as_the_verdict_says() {
    let mut faults = faults();
    faults.add(0, media_error(OpFilter::Write, sectors(40, 8), Count::Always)).unwrap();
    faults.add(0, media_error(OpFilter::Any, sectors(24, 8), Count::Times(1))).unwrap();
    faults.add(0, latency(OpFilter::Any, EVERYWHERE, 30)).unwrap();
    faults.add(0, latency(OpFilter::Write, Area::Zone(ZoneId(0)), 12)).unwrap();
    for landed_blocks in [4, 2] {
        faults.add(0, Rule::TornWrite { area: EVERYWHERE, landed_blocks, count: Count::Always }).unwrap();
    }
    faults.add(100, Rule::Stall { duration_ns: 50 }).unwrap();
    faults.add(100, Rule::Stall { duration_ns: 20 }).unwrap();
    let verdict = faults.check(110, IoOp::Write, Sector(0), 64);
    let expected = Verdict {
        media_error: Some(Sector(24)),
        torn_blocks: Some(2),
        added_ns: 42,
        not_before_ns: 150,
        drop_flush: false,
    };
    assert_eq!(verdict, expected);
    assert_eq!(verdict.landed_sectors(Sector(0), 64, 8), 16);
    let second = faults.check(125, IoOp::Write, Sector(0), 64);
    assert_eq!((second.media_error, second.not_before_ns), (Some(Sector(40)), 150));
}

#[test]
fn a_torn_write_never_lands_whole_and_only_whole_blocks_land() {
    let torn = |torn_blocks| Verdict { torn_blocks: Some(torn_blocks), ..Verdict::default() };
    assert_eq!(torn(3).landed_sectors(Sector(0), 64, 8), 24);
    assert_eq!(torn(u64::MAX).landed_sectors(Sector(0), 64, 8), 56);
    assert_eq!(torn(5).landed_sectors(Sector(0), 8, 8), 0);
    assert_eq!(torn(5).landed_sectors(Sector(0), 0, 0), 0);
    let bad = |sector| Verdict { media_error: Some(Sector(sector)), ..Verdict::default() };
    assert_eq!(bad(100).landed_sectors(Sector(64), 64, 8), 32);
    assert_eq!(bad(64).landed_sectors(Sector(64), 64, 8), 0);
    assert_eq!(Verdict::default().landed_sectors(Sector(64), 64, 8), 64);
    let mut faults = faults();
    let count = Count::Always;
    faults.add(0, Rule::TornWrite { area: EVERYWHERE, landed_blocks: 99, count }).unwrap();
    assert_eq!(faults.check(0, IoOp::Write, Sector(0), 32).torn_blocks, Some(3));
    assert_eq!(faults.check(0, IoOp::Write, Sector(0), 8).torn_blocks, Some(0));
}

#[test]
fn a_stall_ends_by_itself() {
    let mut faults = faults();
    faults.add(1000, Rule::Stall { duration_ns: 500 }).unwrap();
    assert_eq!(faults.list(1200)[0].remaining_ns, Some(300));
    assert_eq!(faults.check(1499, IoOp::Flush, Sector(0), 0).not_before_ns, 1500);
    assert!(!faults.is_empty());
    assert!(!faults.list(1500)[0].active);
    assert_eq!(faults.check(1500, IoOp::Read, Sector(0), 8), Verdict::default());
    assert!(faults.is_empty());
    assert_eq!(faults.list(1500)[0].hits, 1);
    faults.add(u64::MAX, Rule::Stall { duration_ns: 500 }).unwrap();
    assert_eq!(faults.check(u64::MAX - 1, IoOp::Read, Sector(0), 8).not_before_ns, u64::MAX);
}

#[test]
fn rules_that_cannot_be_are_refused_by_the_name_of_the_option() {
    let once = Count::Times(1);
    for (rule, told) in [
        (media_error(OpFilter::Read, sectors(8191, 2), once), "--range is 8191+2: it must be FIRST+COUNT"),
        (media_error(OpFilter::Read, sectors(u64::MAX, 2), once), "--range is 18446744073709551615+2"),
        (media_error(OpFilter::Read, sectors(2, u64::MAX), once), "--range is 2+18446744073709551615"),
        (media_error(OpFilter::Read, sectors(5, 0), once), "--range is 5+0"),
        (
            media_error(OpFilter::Read, Area::Zone(ZoneId(4)), once),
            "--zone is 4: the device has the zones 0 to 3",
        ),
        (media_error(OpFilter::Read, EVERYWHERE, Count::Times(0)), "--count is 0"),
        (media_error(OpFilter::Flush, EVERYWHERE, once), "--op is flush"),
        (media_error(OpFilter::Manage, EVERYWHERE, once), "--op is manage"),
        (latency(OpFilter::Flush, Area::Zone(ZoneId(1)), 5), "--op is flush"),
        (latency(OpFilter::Any, EVERYWHERE, 0), "--add is 0 ns"),
        (latency(OpFilter::Any, EVERYWHERE, u64::MAX), "--add is 18446744073709551615 ns"),
        (Rule::Stall { duration_ns: 0 }, "--for is 0 ns"),
        (Rule::Stall { duration_ns: MAX_STALL_NS + 1 }, "--for is 60000000001 ns"),
        (Rule::DropFlush { count: Count::Times(0) }, "--count is 0"),
    ] {
        let mut faults = faults();
        let error = faults.add(0, rule).unwrap_err().to_string();
        assert!(error.starts_with(told), "{error}");
        assert!(faults.is_empty() && faults.list(0).is_empty());
    }
    let error = faults().remove(Selection::Id(FaultId(7))).unwrap_err().to_string();
    assert!(error.starts_with("the fault is 7: there is none"), "{error}");
}

#[test]
fn a_full_table_makes_room_of_spent_rules_only() {
    let mut faults = faults();
    let first = faults.add(0, Rule::DropFlush { count: Count::Times(1) }).unwrap();
    for _ in 1..MAX_RULES {
        faults.add(0, latency(OpFilter::Flush, EVERYWHERE, 1)).unwrap();
    }
    assert!(faults.add(0, Rule::Stall { duration_ns: 5 }).unwrap_err().to_string().contains("takes 256"));
    assert!(faults.check(0, IoOp::Flush, Sector(0), 0).drop_flush);
    faults.add(0, Rule::Stall { duration_ns: 5 }).unwrap();
    assert!(faults.list(0).iter().all(|listed| listed.id != first));
    assert_eq!(faults.remove(Selection::All), Ok(MAX_RULES));
    assert!(faults.is_empty());
    assert_eq!(faults.remove(Selection::All), Ok(0));
}

#[test]
fn a_probability_is_a_frequency_and_the_seed_decides() {
    let strikes = |seed, before: usize| {
        let mut faults = Faults::new(seed, &geometry());
        for _ in 0..before {
            let id = faults.add(0, latency(OpFilter::Read, EVERYWHERE, 1)).unwrap();
            faults.remove(Selection::Id(id)).unwrap();
        }
        let rule = Rule::MediaError {
            op: OpFilter::Read,
            area: EVERYWHERE,
            count: Count::Always,
            probability: Probability::try_from(0.1).unwrap(),
        };
        faults.add(0, rule).unwrap();
        (0..100_000).map(|_| faults.check(0, IoOp::Read, Sector(0), 8).fails()).collect::<Vec<_>>()
    };
    let one = strikes(1, 0);
    // 0.1 of 100000 has a standard deviation of 95: five of them.
    let hits = one.iter().filter(|hit| **hit).count();
    assert!((9_525..=10_475).contains(&hits), "{hits}");
    assert_eq!(one, strikes(1, 0));
    assert_ne!(one, strikes(2, 0));
    assert_ne!(one, strikes(1, 1));
}

#[test]
fn a_rule_draws_from_numbers_of_its_own() {
    let rule = |op| Rule::Latency {
        op,
        area: EVERYWHERE,
        added_ns: 1,
        count: Count::Always,
        probability: Probability::try_from(0.5).unwrap(),
    };
    let run = |with_other: bool| {
        let mut faults = faults();
        faults.add(0, rule(OpFilter::Read)).unwrap();
        if with_other {
            faults.add(0, rule(OpFilter::Write)).unwrap();
        }
        (0..200)
            .map(|_| {
                faults.check(0, IoOp::Write, Sector(0), 8);
                faults.check(0, IoOp::Read, Sector(0), 8).added_ns
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(run(false), run(true));
}

#[test]
fn json_that_is_no_action_is_refused() {
    for text in [
        r#"{"action": "add", "rule": {"kind": "media-error", "op": "read", "area": "device", "count": "always", "probability": 0}}"#,
        r#"{"action": "add", "rule": {"kind": "media-error", "op": "read", "area": "device", "count": "always", "probability": 2}}"#,
        r#"{"action": "add", "rule": {"kind": "drop-flush", "count": "always", "extra": 1}}"#,
        r#"{"action": "add", "rule": {"kind": "drop-flush", "count": {"times": -1}}}"#,
        r#"{"action": "explode"}"#,
        "null",
    ] {
        assert!(serde_json::from_str::<FaultAction>(text).is_err(), "{text}");
    }
    let text = r#"{"action": "add", "rule": {"kind": "media-error", "op": "any", "area": {"sectors": {"first": 0, "count": 8}}, "count": {"times": 2}}}"#;
    let rule = media_error(OpFilter::Any, sectors(0, 8), Count::Times(2));
    assert_eq!(serde_json::from_str::<FaultAction>(text).unwrap(), FaultAction::Add { rule });
}

/// The rules' promise, said another way: sector sets instead of spans, one rule at a time instead of a table.
fn reference(
    rules: &[(u64, Rule)],
    hits: &mut [u64],
    now_ns: u64,
    op: IoOp,
    sector: u64,
    count: u64,
) -> Verdict {
    let mut verdict = Verdict::default();
    for ((added_at_ns, rule), hits) in rules.iter().zip(hits) {
        let inside = |at: u64| match rule.area() {
            Area::Device => true,
            Area::Zone(zone) => at / 2048 == u64::from(zone.0),
            Area::Sectors { first, count } => (first.0..first.0 + count).contains(&at),
        };
        let met = match rule.area() {
            Area::Device => Some(sector),
            _ if op == IoOp::Flush => None,
            _ => (sector..sector + count).find(|at| inside(*at)),
        };
        let Some(met) = met.filter(|_| rule.takes(op)) else { continue };
        if matches!(rule.count(), Count::Times(times) if *hits >= times) {
            continue;
        }
        match *rule {
            Rule::Stall { duration_ns } if now_ns >= added_at_ns + duration_ns => continue,
            Rule::Stall { duration_ns } => {
                verdict.not_before_ns = verdict.not_before_ns.max(added_at_ns + duration_ns);
            }
            Rule::MediaError { .. } => {
                verdict.media_error = [verdict.media_error, Some(Sector(met))].into_iter().flatten().min();
            }
            Rule::Latency { added_ns, .. } => verdict.added_ns += added_ns,
            Rule::TornWrite { landed_blocks, .. } => {
                let landed = landed_blocks.min((count / 8).max(1) - 1);
                verdict.torn_blocks = [verdict.torn_blocks, Some(landed)].into_iter().flatten().min();
            }
            Rule::DropFlush { .. } => verdict.drop_flush = true,
        }
        *hits += 1;
    }
    verdict
}

fn some_rule() -> impl Strategy<Value = Rule> {
    let area = prop_oneof![
        Just(Area::Device),
        (0u32..4).prop_map(|zone| Area::Zone(ZoneId(zone))),
        (0u64..8000, 1u64..192).prop_map(|(first, count)| sectors(first, count)),
    ];
    let count = prop_oneof![Just(Count::Always), (1u64..4).prop_map(Count::Times)];
    let op = prop_oneof![Just(OpFilter::Read), Just(OpFilter::Write), Just(OpFilter::Any)];
    (0..5, area, count, op, 1u64..300).prop_map(|(kind, area, count, op, n)| match kind {
        0 => media_error(op, area, count),
        1 => Rule::Latency { op, area, added_ns: n, count, probability: Probability::CERTAIN },
        2 => Rule::TornWrite { area, landed_blocks: n % 9, count },
        3 => Rule::DropFlush { count },
        _ => Rule::Stall { duration_ns: n },
    })
}

proptest! {
    /// The table does what the rules say, one by one, and counts it.
    #[test]
    fn the_table_agrees_with_the_reference(
        rules in prop::collection::vec((0u64..200, some_rule()), 0..8),
        commands in prop::collection::vec((0u64..5, 0u8..4, 0u64..1024, 0u64..33), 0..40),
    ) {
        let mut faults = faults();
        for (at_ns, rule) in &rules {
            faults.add(*at_ns, *rule).unwrap();
        }
        let mut hits = vec![0; rules.len()];
        let mut now_ns = 200;
        for (passed_ns, op, block, blocks) in commands {
            now_ns += passed_ns * 20;
            let op = [IoOp::Read, IoOp::Write, IoOp::Flush, IoOp::Manage][usize::from(op)];
            let expected = reference(&rules, &mut hits, now_ns, op, block * 8, blocks * 8);
            prop_assert_eq!(faults.check(now_ns, op, Sector(block * 8), blocks * 8), expected);
        }
        let listed: Vec<_> = faults.list(now_ns).iter().map(|listed| listed.hits).collect();
        prop_assert_eq!(listed, hits);
    }
}
