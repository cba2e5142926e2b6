//! Words to rules and back, and scripts.

use super::*;
use proptest::prelude::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    fault: FaultArgs,
}

fn action(words: &str) -> Result<FaultAction, String> {
    let args = ["fault", "0"].into_iter().chain(words.split_whitespace());
    match Cli::try_parse_from(args) {
        Ok(cli) => Ok(cli.fault.command.unwrap().action()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn the_words_become_the_rules_they_name() {
    let cases = [
        (
            "media-error --op read --range 0x10+8 --count 3 --probability 0.25",
            FaultAction::Add {
                rule: Rule::MediaError {
                    op: OpFilter::Read,
                    area: Area::Sectors { first: Sector(16), count: 8 },
                    count: Count::Times(3),
                    probability: Probability::try_from(0.25).unwrap(),
                },
            },
        ),
        (
            "latency --op manage --zone 4 --add 1.5ms",
            FaultAction::Add {
                rule: Rule::Latency {
                    op: OpFilter::Manage,
                    area: Area::Zone(ZoneId(4)),
                    added_ns: 1_500_000,
                    count: Count::Always,
                    probability: Probability::CERTAIN,
                },
            },
        ),
        (
            "torn-write --landed-blocks 2",
            FaultAction::Add {
                rule: Rule::TornWrite { area: Area::Device, landed_blocks: 2, count: Count::Times(1) },
            },
        ),
        ("drop-flush --count always", FaultAction::Add { rule: Rule::DropFlush { count: Count::Always } }),
        ("stall --for 2s", FaultAction::Add { rule: Rule::Stall { duration_ns: 2_000_000_000 } }),
        ("zone 7 read-only", FaultAction::Zone { zone: ZoneId(7), state: ForcedState::ReadOnly }),
        ("power-cut", FaultAction::PowerCut),
        ("power-on", FaultAction::PowerOn),
        ("list", FaultAction::List),
        ("remove 12", FaultAction::Remove { which: Selection::Id(FaultId(12)) }),
        ("remove all", FaultAction::Remove { which: Selection::All }),
    ];
    for (words, expected) in cases {
        assert_eq!(action(words).unwrap(), expected, "{words}");
        let json = serde_json::to_string(&expected).unwrap();
        assert_eq!(serde_json::from_str::<FaultAction>(&json).unwrap(), expected, "{json}");
    }
}

#[test]
fn wrong_words_name_the_option_and_what_would_be_right() {
    for (words, named, right) in [
        ("media-error --range 5", "--range", "FIRST+COUNT"),
        ("media-error --range 5+0", "--range", "FIRST+COUNT"),
        ("media-error --range=-5+1", "--range", "FIRST+COUNT"),
        ("media-error --range 99999999999999999999+1", "--range", "FIRST+COUNT"),
        ("media-error --range 0+8 --zone 1", "--range", "cannot be used with"),
        ("media-error --op flush", "--op", "read, write, any"),
        ("media-error --probability nan", "--probability", "above 0"),
        ("media-error --probability 1.01", "--probability", "at most 1"),
        ("media-error --count 0", "--count", "once, always or a number"),
        ("latency", "--add", "required"),
        ("latency --add 5", "--add", "such as 5ms"),
        ("stall --for 99999999999s", "--for", "too long"),
        ("zone 1 broken", "STATE", "read-only, offline"),
        ("remove some", "ID|all", "or all"),
    ] {
        let error = action(words).unwrap_err();
        assert!(error.contains(named) && error.contains(right), "{words}: {error}");
    }
    for args in [&["fault", "0", "--script", "f", "list"][..], &["fault", "0"][..]] {
        let error = Cli::try_parse_from(args).unwrap().fault.run().unwrap_err();
        assert!(lifecycle::usage(&error) && error.to_string().contains("--script FILE"), "{error}");
    }
}

#[test]
fn a_script_has_a_time_for_each_command() {
    let steps = parse_script(
        "# a bad day\n\nstall --for 10ms\nat 2s media-error --range 0+8 # bad\n  sleep 500ms\nzone 1 offline\nat 2.5s power-cut\n",
    );
    let told: Vec<_> = steps.unwrap().iter().map(|step| (step.line, step.at_ns / 1_000_000)).collect();
    assert_eq!(told, [(3, 0), (4, 2000), (6, 2500), (7, 2500)]);
    assert_eq!(parse_script(""), Ok(Vec::new()));
}

#[test]
fn a_wrong_line_of_a_script_is_named() {
    for (script, line, why) in [
        ("list\nat 2s", 2, "a command is missing"),
        ("at", 1, "a time is missing"),
        ("at 5 list", 1, "such as 5ms"),
        ("at 2s list\nat 1s list", 2, "must not go back"),
        ("sleep 90000s", 1, "a day at most"),
        ("sleep 1s now", 1, "nothing may follow"),
        ("\nbreak", 2, "unrecognized subcommand"),
        ("stall --for 1", 1, "--for"),
        ("media-error --range x", 1, "FIRST+COUNT"),
        ("help", 1, "unrecognized subcommand"),
    ] {
        let error = parse_script(script).unwrap_err().to_string();
        assert!(error.contains(&format!("line {line} ")) && error.contains(why), "{script:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn times_are_exact() {
    for (text, ns) in [
        ("0ns", 0),
        ("1ns", 1),
        ("1.5us", 1_500),
        ("0.1s", 100_000_000),
        ("1.000000001s", 1_000_000_001),
        ("3.99ns", 3),
        ("18446744073s", 18_446_744_073_000_000_000),
    ] {
        assert_eq!(parse_ns(text), Ok(ns), "{text}");
    }
    for text in ["", "5", "ms", "-5ms", "+5ms", "5 ms", ".5s", "5.s", "1e3s", "5m", "18446744074s", "5µs"] {
        assert!(parse_ns(text).is_err(), "{text}");
    }
}

#[test]
fn the_table_says_each_rule_in_the_words_that_make_it() {
    let listed = |rule, remaining, active| Listed {
        id: FaultId(3),
        rule,
        hits: 9,
        remaining,
        remaining_ns: None,
        active,
    };
    let words = "media-error --op write --range 0x800+8 --count 12 --probability 0.5";
    let FaultAction::Add { rule } = action(words).unwrap() else { panic!() };
    let text = table(&json!([listed(rule, Some(3), true), listed(rule, Some(0), false)]));
    assert_eq!(
        text,
        format!(
            "   ID       HITS       LEFT  FAULT\n    3          9          3  {words}\n    3          9      spent  {words}\n"
        )
    );
    assert_eq!(table(&json!({"odd": 1})).lines().count(), 1);
}

fn rules() -> impl Strategy<Value = Rule> {
    let area = prop_oneof![
        Just(Area::Device),
        any::<u32>().prop_map(|zone| Area::Zone(ZoneId(zone))),
        (any::<u64>(), 1..=u64::MAX).prop_map(|(first, count)| Area::Sectors { first: Sector(first), count }),
    ];
    let count = prop_oneof![Just(Count::Always), (1..=u64::MAX).prop_map(Count::Times)];
    let probability =
        (1u32..=1 << 20).prop_map(|n| Probability::try_from(f64::from(n) / f64::from(1 << 20)).unwrap());
    let data = prop_oneof![Just(OpFilter::Read), Just(OpFilter::Write), Just(OpFilter::Any)];
    (0..5, area, count, probability, data, any::<u64>()).prop_map(
        |(kind, area, count, probability, op, n)| match kind {
            0 => Rule::MediaError { op, area, count, probability },
            1 => Rule::Latency { op, area, added_ns: n, count, probability },
            2 => Rule::TornWrite { area, landed_blocks: n, count },
            3 => Rule::DropFlush { count },
            _ => Rule::Stall { duration_ns: n.min(MAX_STALL_NS) },
        },
    )
}

proptest! {
    /// Words and JSON both say all of a rule.
    #[test]
    fn a_rule_survives_its_words_and_its_json(rule in rules()) {
        prop_assert_eq!(action(&describe(&rule)).unwrap(), FaultAction::Add { rule });
        let json = serde_json::to_value(FaultAction::Add { rule }).unwrap();
        prop_assert_eq!(serde_json::from_value::<FaultAction>(json).unwrap(), FaultAction::Add { rule });
    }

    /// No script makes the parser panic, and no error has two lines.
    #[test]
    fn any_text_is_a_script_or_an_error(text in "(at|sleep|stall|zone|list|remove|--for|[0-9.]{1,25}(s|ms)?|[ \n#\"'é-]){0,12}") {
        if let Err(error) = parse_script(&text) {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }
}
