//! A state file of /run/storlab.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use ublk_target::state::StateDir;

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

fuzz_target!(|bytes: &[u8]| {
    let (_tmp, state, file) = dir();
    std::fs::write(file, bytes).unwrap();
    match state.load(ID) {
        Ok(Some(record)) => {
            assert_eq!(record.id, ID);
            let _ = record.daemon_alive();
            state.save(&record).unwrap();
            let once = state.load(ID).unwrap().expect("what was saved is there");
            assert_eq!(once, record, "what was read is written with the same meaning");
        }
        Ok(None) => panic!("the file is there"),
        Err(error) => {
            assert!(error.to_string().contains("7.json"), "{error}");
            assert!(std::fs::read(file).unwrap() == bytes, "a file that is refused stays as it is");
        }
    }
});
