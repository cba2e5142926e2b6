//! The built-in profiles, overrides, and what a wrong profile is told.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Write;
use ublk_zns::nand::{NandError, Profile};

fn builtin(name: &str) -> Profile {
    Profile::builtin(name).unwrap_or_else(|| panic!("no built-in {name}"))
}

fn set_error(assignment: &str) -> String {
    let mut profile = builtin("femu-tlc");
    let error = profile.set(assignment).unwrap_err().to_string();
    assert_eq!(profile, builtin("femu-tlc"), "{assignment} must leave the profile as it was");
    error
}

fn invalid(name: &str, assignments: &[&str]) -> String {
    let mut profile = builtin(name);
    for assignment in assignments {
        profile.set(assignment).unwrap();
    }
    profile.validate().unwrap_err().to_string()
}

#[test]
fn every_built_in_profile_is_valid_names_itself_and_its_source() {
    let names: Vec<_> = Profile::names().collect();
    assert_eq!(
        names,
        ["none", "femu-slc", "femu-tlc", "femu-qlc", "nvmevirt-zn540", "nvmevirt-prototype", "confzns"]
    );
    assert!(Profile::load("none").unwrap().is_none());
    assert!(Profile::builtin("none").is_none() && Profile::builtin("femu-mlc").is_none());
    for name in &names[1..] {
        let profile = Profile::load(name).unwrap().unwrap();
        profile.validate().unwrap();
        assert_eq!(profile.name, *name);
        assert!(profile.source.contains('/'), "{name}: {}", profile.source);
    }
}

#[test]
fn every_number_of_a_built_in_profile_says_where_it_is_from() {
    for name in Profile::names().filter(|name| *name != Profile::NONE) {
        let path = format!("{}/profiles/{name}.toml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let numbers = text.lines().filter(|line| line.contains(" = ") && !line.starts_with('#'));
        for line in numbers.filter(|line| !line.starts_with("name") && !line.starts_with("source")) {
            assert!(line.contains(" # "), "{name}: {line}");
        }
    }
}

#[test]
fn the_numbers_are_those_of_the_sources() {
    let tlc = builtin("femu-tlc");
    assert_eq!(
        (tlc.timing.read_ns, tlc.timing.program_ns, tlc.timing.erase_ns),
        (32_000, 937_500, 3_000_000)
    );
    assert_eq!((tlc.dies(), tlc.dies_per_zone(), tlc.unit_bytes()), (8, 8, 96 << 10));
    let qlc = builtin("femu-qlc");
    assert_eq!(
        (qlc.timing.read_ns, qlc.timing.program_ns, qlc.unit_bytes()),
        (85_000, 12_196_000, 128 << 10)
    );
    let slc = builtin("femu-slc");
    assert_eq!((slc.timing.read_ns, slc.timing.program_ns, slc.timing.erase_ns), (4_000, 75_000, 2_000_000));
    let zn540 = builtin("nvmevirt-zn540");
    assert_eq!(
        (zn540.timing.read_4k_ns, zn540.timing.read_ns, zn540.timing.program_ns),
        (50_000, 58_000, 561_000)
    );
    assert_eq!((zn540.dies(), zn540.dies_per_zone(), zn540.zones.buffer_bytes), (32, 32, 10 * (96 << 10)));
    let prototype = builtin("nvmevirt-prototype");
    assert_eq!(
        (prototype.dies(), prototype.dies_per_zone(), prototype.timing.program_ns),
        (128, 1, 1_913_640)
    );
    let confzns = builtin("confzns");
    assert_eq!(
        (confzns.timing.read_ns, confzns.timing.program_ns, confzns.dies_per_zone()),
        (65_000, 450_000, 8)
    );
}

#[test]
fn every_number_can_be_overridden_with_or_without_a_unit() {
    let mut profile = builtin("nvmevirt-zn540");
    for assignment in [
        "timing.read_ns=40us",
        "timing.read_4k_ns = 1.5ms",
        "timing.program_ns=561_000",
        "timing.erase_ns=2s",
        "geometry.page_bytes=16KiB",
        "zones.buffer_bytes=1.5MiB",
        "timing.channel_bytes_per_s=800MB/s",
        "link.bytes_per_s=3GiB",
        "zones.dies_per_zone=8",
        "zones.placement=die-first",
        "zones.early_completion=false",
        "arbitration.kind=round-robin",
        "firmware.cores=2",
        "time_scale=10",
        "name=mine",
    ] {
        profile.set(assignment).unwrap_or_else(|error| panic!("{error}"));
    }
    profile.validate().unwrap();
    let timing = &profile.timing;
    assert_eq!((timing.read_ns, timing.read_4k_ns, timing.erase_ns), (40_000, 1_500_000, 2_000_000_000));
    assert_eq!((profile.geometry.page_bytes, profile.zones.buffer_bytes), (16 << 10, 3 << 19));
    assert_eq!((timing.channel_bytes_per_s, profile.link.bytes_per_s), (800_000_000, 3 << 30));
    assert_eq!((profile.time_scale, profile.name.as_str()), (10.0, "mine"));
}

#[test]
fn a_wrong_override_names_the_field_and_what_there_is() {
    for (assignment, wants) in [
        ("timing.read_ns", &["it must be section.field=value"][..]),
        ("tming.read_ns=1", &["no section tming", "geometry", "timing", "zones"]),
        ("timing.tr=1", &["section timing has no field 'tr'", "read_ns", "program_ns"]),
        ("read_ns=1", &["a profile has no field 'read_ns'", "time_scale", "the sections", "timing"]),
        ("timing=1", &["timing is a section", "read_ns"]),
        ("timing.read_ns=fast", &["timing.read_ns must be a time such as 40us"]),
        ("timing.read_ns=-1", &["must be a time"]),
        ("timing.read_ns=4KiB", &["must be a time"]),
        ("timing.read_ns=99999999999999999999s", &["must be a time"]),
        ("geometry.page_bytes=4us", &["must be a size such as 16KiB"]),
        ("geometry.channels=4KiB", &["must be a number such as 8"]),
        ("geometry.channels=99999999999", &["99999999999"]),
        ("zones.early_completion=yes", &["true or false"]),
        ("zones.placement=random", &["channel-first", "die-first"]),
        ("time_scale=slow", &["must be a number"]),
        ("", &["section.field=value"]),
    ] {
        let error = set_error(assignment);
        assert!(!error.contains('\n'), "{error}");
        for want in wants {
            assert!(error.contains(want), "{assignment}: '{error}' does not say '{want}'");
        }
    }
}

#[test]
fn a_profile_that_cannot_be_is_told_which_number_and_why() {
    for (assignments, want) in [
        (&["geometry.channels=0"][..], "geometry.channels is 0: it must be 1 to 256"),
        (&["geometry.channels=256", "geometry.dies_per_channel=17"], "more than 4096 dies"),
        (
            &["geometry.page_bytes=1000"],
            "geometry.page_bytes is 1000: it must be a multiple of a sector, 512 bytes",
        ),
        (&["geometry.program_bytes=20480"], "a multiple of geometry.page_bytes, 16384 bytes"),
        (&["geometry.erase_block_bytes=1MiB"], "a multiple of geometry.program_bytes, 49152 bytes"),
        (&["zones.dies_per_zone=3"], "zones.dies_per_zone is 3: it must divide the 8 dies"),
        (&["zones.buffer_bytes=4KiB"], "1 to 1024 program units of 98304 bytes"),
        (&["zones.buffer_bytes=0"], "zones.early_completion is true: it needs zones.buffer_bytes"),
        (&["arbitration.kind=round-robin"], "it needs firmware.cores of 1 or more"),
        (&["timing.read_ns=1001s"], "timing.read_ns is 1001000000000: it must be 0 to 10000000000"),
        (&["link.bytes_per_s=10"], "link.bytes_per_s is 10: it must be 0 (no limit)"),
        (&["time_scale=0"], "time_scale is 0: it must be 0.001 to 100000"),
    ] {
        let error = invalid("femu-tlc", assignments);
        assert!(error.starts_with("profile femu-tlc: ") && error.contains(want), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn a_file_is_read_and_a_wrong_one_told_its_line() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let text = include_str!("../profiles/confzns.toml");
    file.write_all(text.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    assert_eq!(Profile::load(path).unwrap(), Profile::builtin("confzns"));

    let error = Profile::parse("x.toml", &text.replace("read_ns = 65000", "raed_ns = 65000")).unwrap_err();
    assert!(matches!(&error, NandError::Parse { line, .. } if *line > 10), "{error:?}");
    assert!(error.to_string().contains("unknown field `raed_ns`"), "{error}");
    let error = Profile::parse("x.toml", "name = ").unwrap_err().to_string();
    assert!(error.starts_with("profile x.toml, line 1: ") && !error.contains('\n'), "{error}");
    let error = Profile::load("no-such-profile").unwrap_err().to_string();
    assert!(error.contains("no-such-profile") && error.contains("femu-tlc, femu-qlc"), "{error}");
}
