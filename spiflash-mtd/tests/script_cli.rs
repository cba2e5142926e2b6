//! `spiflash-mtd script` and `spiflash-mtd cuts` as a user runs them.
#![allow(clippy::unwrap_used, missing_docs)]

use serde_json::Value;
use std::process::{Command, Output};

fn run(arguments: &[&str], script: &str) -> (Output, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("s.txt"), script).unwrap();
    let output = Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_spiflash-mtd")])
        .args(arguments)
        .current_dir(directory.path())
        .output()
        .unwrap();
    (output, directory)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const CHIP: [&str; 2] = ["--part", "w25q128jv"];

#[test]
fn a_script_prints_what_it_read_and_writes_trace_and_log() {
    let arguments = [&["script", "s.txt", "--trace", "t.vcd", "--log", "l.jsonl"][..], &CHIP].concat();
    let (output, directory) = run(&arguments, "frame 9f >3 = ef 40 18\nframe 06\n");
    assert_eq!(text(&output.stdout), "s.txt:1: 640 ns: read ef4018\n2 steps, 0 failed, 800 ns\n");
    assert!(output.status.success());
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    assert!(read("t.vcd").starts_with("$version") && read("t.vcd").ends_with("#801\n"));
    assert_eq!(read("l.jsonl").lines().count(), 2);
}

#[test]
fn a_failed_expectation_is_exit_code_1() {
    let arguments = [&["script", "s.txt", "--json"][..], &CHIP].concat();
    let (output, _directory) = run(&arguments, "frame 9f >3 = ef 41 18\nframe 06\n");
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["failure"], "byte 1 of what was read is 40, not 41");
    assert_eq!(lines[2]["failures"], 1);
    assert!(text(&output.stderr).contains("s.txt: 1 of 2 steps failed"), "{output:?}");
}

#[test]
fn what_cannot_be_is_said_with_its_place() {
    for (arguments, script, message) in [
        (
            &["script", "s.txt", "--part", "W25Q128"][..],
            "",
            "--part W25Q128: no such part and no file; there are ",
        ),
        (&["script", "s.txt", "--part", "W25Q128JV"], "\nframe 9\n", "s.txt:2: \"9\" are no bytes"),
        (&["script", "t.txt", "--part", "W25Q128JV"], "", "reading t.txt"),
        (&["cuts", "s.txt", "--part", "W25Q128JV", "--errors", "nore"], "", "nor-65nm"),
        (&["cuts", "s.txt", "--part", "W25Q128JV"], "chip 1\n", "chip select 1: there is none"),
    ] {
        let (output, _directory) = run(arguments, script);
        assert!(!output.status.success(), "{output:?}");
        assert!(text(&output.stderr).contains(message), "{message}: {output:?}");
    }
}

#[test]
fn cuts_of_a_script_are_counted_and_what_they_leave_is_named() {
    let script = "frame 06\nframe 02 001000 5a*16\nready\nframe 06\nframe 20 001000\nready\n";
    let arguments = [&["cuts", "s.txt", "--points", "20"][..], &CHIP].concat();
    let (output, _directory) = run(&arguments, script);
    assert!(output.status.success(), "{output:?}");
    let shown = text(&output.stdout);
    assert!(shown.starts_with("86 cuts: 30 within frames, 56 while busy\n"), "{shown}");
    assert!(shown.contains("\nerase: untouched 2, partly programmed "), "{shown}");
    for half in [", pre-programmed to 0 ", ", mixed ", ", over-erased, noisy ", ", done "] {
        assert!(shown.contains(half), "{half}: {shown}");
    }
    let (output, _directory) = run(&[&arguments[..], &["--json"]].concat(), script);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["cuts"], 86);
    assert!(report["left"]["erase"]["pre-programmed"].as_u64() > Some(0));
}
