//! A state file of /run/storlab.
//!
//! Input: a byte of switches, then the file, or (by a switch) the options of an otherwise good one, or its numbers.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use ublk_target::state::{DeviceRecord, StateDir};

const ID: u32 = 7;

fn dir() -> &'static (tempfile::TempDir, StateDir, PathBuf) {
    static DIR: OnceLock<(tempfile::TempDir, StateDir, PathBuf)> = OnceLock::new();
    DIR.get_or_init(|| {
        let tmp = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = tmp.path().join("state");
        let state = StateDir::at(&path).unwrap();
        (tmp, state, path.join("7.json"))
    })
}

/// The file that an input stands for.
fn text(input: &[u8]) -> Vec<u8> {
    let Some((&switches, rest)) = input.split_first() else { return Vec::new() };
    let good: [&[u8]; 2] =
        [br#"{"version":1,"id":7,"target":"zns","pid":1,"pid_start_ticks":5,"options":"#, br#"{"size":5}"#];
    let numbers: &[u8] = br#","id":7,"version":1,"target":"\u00e9","options":{"a":[1.5,null]},"#;
    match switches % 4 {
        0 => rest.to_vec(),
        1 => [good[0], rest, b"}"].concat(),
        2 => [b"{\"pid_start_ticks\":", rest, numbers, b"\"pid\":1}"].concat(),
        _ => [good[0], good[1], b",", rest, b"}"].concat(),
    }
}

/// Whether two values are the same, up to the last digit of a number with a fraction: serde_json reads those to the
/// nearest but one unless its feature `float_roundtrip` is on.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap_or(f64::NAN), b.as_f64().unwrap_or(f64::NAN));
            a == b
                || (a - b).abs() <= f64::EPSILON * 8.0 * a.abs()
                || a.abs().max(b.abs()) < f64::MIN_POSITIVE * 8.0
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

fuzz_target!(|input: &[u8]| {
    let bytes = &text(input)[..];
    let (_tmp, state, file) = dir();
    std::fs::write(file, bytes).unwrap();
    match state.load(ID) {
        Ok(Some(record)) => {
            assert_eq!(record.id, ID);
            let _ = record.daemon_alive();
            state.save(&record).unwrap();
            let once = state.load(ID).unwrap().expect("what was saved is there");
            let kept = |r: &DeviceRecord| (r.id, r.target.clone(), r.pid, r.pid_start_ticks);
            assert_eq!(kept(&once), kept(&record));
            assert!(same(&once.options, &record.options), "{} became {}", record.options, once.options);
        }
        Ok(None) => panic!("the file is there"),
        Err(error) => {
            assert!(error.to_string().contains("7.json"), "{error}");
            assert!(std::fs::read(file).unwrap() == bytes, "a file that is refused stays as it is");
        }
    }
});
