//! Scripts: what is refused and how it is said, and what a run finds.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use spiflash_mtd::script::{Action, Expected, Piece, Script, StepResult};
use spiflash_mtd::states::State;
use spiflash_mtd::{Chip, Lines, Setup, SimBus, part};
use std::sync::Arc;

fn bus() -> SimBus {
    SimBus::of(Chip::new(Arc::new(part::find("W25Q128JV").unwrap().clone()), &Setup::default()).unwrap())
}

fn run(text: &str) -> Vec<StepResult> {
    let mut results = Vec::new();
    Script::parse(text, "test").unwrap().run(&mut bus(), |result| results.push(result)).unwrap();
    results
}

fn failures(text: &str) -> Vec<(usize, String)> {
    run(text).into_iter().filter_map(|result| Some((result.line, result.failure?))).collect()
}

#[test]
fn a_script_programs_reads_erases_and_finds_what_it_expects() {
    let found = failures(
        "frame 9f >3 = ef 40 18   # who are you\n\
         frame 06\n\
         frame 05 >1 = 02\n\
         frame 02 001000 55*256\n\
         expect program\n\
         expect busy\n\
         ready 3ms\n\
         frame 03 000fff >258 = ff 55*256 ff\n\
         frame x1 6b 001000 00 x4 >2 = 5555\n\
         frame eb x4 001000 ff 0000 >2 = 55 ..\n\
         frame bb x2 001000 ff >2 = ..*2\n\
         frame 06\n\
         frame 20 001000\n\
         ready\n\
         frame 03 001000 >1 = ff\n",
    );
    assert_eq!(found, []);
}

#[test]
fn what_is_not_as_expected_is_a_failure_of_its_step_and_the_script_goes_on() {
    let found = failures(
        "frame 9f >3 = ef 41 19\n\
         ready 1us\n\
         frame 06\n\
         frame 20 000000\n\
         ready 1us\n\
         expect erase\n\
         power off\n\
         ready\n\
         frame 9f >1 = ff\n",
    );
    let expected = [
        (1, "byte 1 of what was read is 40, not 41, and 1 bytes more differ"),
        (5, "the chip was ready after 45000000 ns, not within 1000 ns"),
        (6, "the chip's state is idle"),
        (8, "the chip has no power, and will not get ready"),
    ];
    assert_eq!(found, expected.map(|(line, what)| (line, what.to_string())));
}

#[test]
fn power_is_cut_when_the_script_says_and_wp_guards_the_registers() {
    let found = failures(
        "frame 06\n\
         frame 31 00\n\
         ready\n\
         frame 06\n\
         frame 01 80\n\
         ready\n\
         wp low\n\
         frame 06\n\
         frame 01 00\n\
         expect ready\n\
         frame 05 >1 = 82\n\
         wp high\n\
         frame 01 00\n\
         expect write-status\n\
         ready\n\
         frame 06\n\
         cut-after 300us\n\
         frame 20 000000\n\
         wait 299us\n\
         expect erase\n\
         wait 1us\n\
         expect off\n\
         power on\n\
         expect power-up\n\
         ready\n\
         expect idle\n",
    );
    assert_eq!(found, []);
}

#[test]
fn a_line_that_is_no_step_is_refused_with_its_place_and_what_would_be_right() {
    let cases = [
        ("raedy", "test:2: \"raedy\" is no step; did you mean \"ready\"?"),
        ("9f", "test:2: \"9f\" is no step; a frame begins with the word \"frame\""),
        ("frame 9", "test:2: \"9\" are no bytes; bytes are pairs of hex digits, as in 9f or 001000"),
        ("frame 9é", "test:2: \"9é\" are no bytes; bytes are pairs of hex digits, as in 9f or 001000"),
        ("frame 9f >", "test:2: \">\"; it must be > and how many bytes are read, as in >3"),
        ("frame x3 00", "test:2: \"x3\"; lines are x1, x2 or x4"),
        (
            "frame 05 >1 = 00 00",
            "test:2: 2 bytes are expected and 1 are read; both must be the same; .. stands for any byte",
        ),
        (
            "frame 00*99999999999",
            "test:2: \"00*99999999999\" makes the frame too long; it may have 33554432 bytes",
        ),
        ("frame >99999999999", "test:2: a frame of 99999999999 bytes; it may have 33554432"),
        (
            "wait 10",
            "test:2: \"10\"; a time is a decimal number and one of ns, us, ms, s, h or d, like 0.4ms",
        ),
        (
            "wait 1e9s",
            "test:2: \"1e9s\"; a time is a decimal number and one of ns, us, ms, s, h or d, like 0.4ms",
        ),
        ("wait 9999999999s", "test:2: \"9999999999s\"; a time is at most 3653 days"),
        ("power of", "test:2: \"of\" here; it must be on or off"),
        ("expect idel", "test:2: \"idel\" is no state; did you mean \"idle\"?"),
        ("chip 256", "test:2: \"256\" is no chip select; it must be 0 to 255"),
        (
            "clock 0MHz",
            "test:2: \"0MHz\"; a clock is a number with Hz, kHz or MHz, from 1Hz to 4294MHz, as in 50MHz",
        ),
    ];
    for (line, message) in cases {
        let error = Script::parse(&format!("# first\n{line} # then this\n"), "test").unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn a_chip_that_the_bus_has_not_ends_the_run() {
    let script = Script::parse("frame 9f\nchip 3\n", "test").unwrap();
    let error = script.run(&mut bus(), |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "line 2: chip select 3: there is none; this bus has 1, counted from 0");
}

#[test]
fn a_frame_is_the_bytes_and_lines_that_it_says() {
    let script = Script::parse("frame 9f 00aa x2 01 02 >2 >1 x4 >1\nexpect erase-suspended", "test").unwrap();
    let parts = vec![
        Piece::Write(Lines::Single, vec![0x9F, 0, 0xAA]),
        Piece::Write(Lines::Dual, vec![1, 2]),
        Piece::Read(Lines::Dual, 3),
        Piece::Read(Lines::Quad, 1),
    ];
    let actions: Vec<Action> = script.steps.into_iter().map(|step| step.action).collect();
    let state = Action::Expect(Expected::State(State::EraseSuspended));
    assert_eq!(actions, [Action::Frame { parts, expected: vec![] }, state]);
}

proptest! {
    #[test]
    fn any_text_is_a_script_or_refused(text in "(frame|wait|ready|expect|chip|clock|cut-at|wp)?[ -~é]{0,24}(\n[ -~]{0,12}){0,3}") {
        if let Ok(script) = Script::parse(&text, "test") {
            for step in &script.steps {
                let reads_much = matches!(&step.action, Action::Frame { parts, .. }
                    if parts.iter().any(|part| matches!(part, Piece::Read(_, count) if *count > 1 << 16)));
                prop_assume!(!reads_much);
            }
            // A run may be refused, and never more than that.
            let _ = script.run(&mut bus(), |_| {});
        }
    }
}
