//! What is asked wrongly gets one line that names it, the right exit status, and leaves nothing loaded.

use std::io::Write;
use tests::{Device, MountPoint, Outcome, nothing_is_loaded, run, sh};

#[track_caller]
fn refused(outcome: &Outcome, status: i32, parts: &[&str]) {
    let line = outcome.refused(status);
    for part in parts {
        assert!(line.contains(part), "{part:?} is missing in: {line}");
    }
    nothing_is_loaded();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn wrong_zone_geometries_are_named_with_what_would_be_right() {
    let add = |args: &[&str]| run(30, "ublk-zns", &[&["add"], args].concat());
    refused(
        &add(&["--zone-size", "48MiB"]),
        2,
        &["--zone-size is 48.0 MiB", "powers of two", "32.0 MiB or 64.0 MiB"],
    );
    refused(&add(&["--zone-size", "1000"]), 2, &["--zone-size is 1000 B"]);
    refused(&add(&["--size", "100MiB"]), 2, &["--size is 100.0 MiB", "whole number of zones of 64.0 MiB"]);
    refused(
        &add(&["--zone-capacity", "65MiB"]),
        2,
        &["--zone-capacity is 65.0 MiB", "at most the zone size 64.0 MiB"],
    );
    refused(&add(&["--max-open", "15", "--max-active", "14"]), 2, &["--max-open is 15", "--max-active 14"]);
    refused(&add(&["--max-active", "100"]), 2, &["--max-active is 100", "only 64 zones"]);
    refused(&add(&["--conv-zones", "64"]), 2, &["--conv-zones is 64"]);
    refused(&add(&["--queues", "0"]), 2, &["--queues is 0"]);
    refused(&add(&["--depth", "5000"]), 2, &["--depth is 5000"]);
    let clap = add(&["--size", "many"]);
    assert_eq!(clap.status, Some(2), "{clap:#?}");
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_node_that_is_not_there_or_is_something_else_is_named() {
    let add = |node: &str| {
        run(60, "ublk-dpuswap", &["add", "--size", "64MiB", "--insecure-plaintext", "--node", node])
    };
    refused(&add("127.0.0.1:7999"), 1, &["127.0.0.1:7999"]);
    // Longer than a part of a name can be: nothing on the network is asked.
    let nowhere = format!("{}.invalid:7999", "x".repeat(64));
    refused(&add(&nowhere), 1, &[&nowhere, "its name cannot be resolved"]);
    // Something that speaks, but not this.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    refused(&add(&address), 1, &[&address]);
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn devices_without_zones_or_without_a_file_system_are_not_mounted() {
    let at = MountPoint::new("bad");
    let plain = Device::add("ublk-target", &["--size", "64MiB"]);
    let line = run(30, "mkfs.zonefs-fuse", &[&plain.path]).refused(1).to_owned();
    assert!(line.contains(&plain.path) && line.contains("zone"), "{line}");
    drop(plain);
    let zoned = Device::add("ublk-zns", &["--size", "256MiB", "--zone-size", "16MiB"]);
    let line = run(60, "zonefs-fuse", &[&zoned.path, &at.text()]).refused(1).to_owned();
    assert!(line.contains(&zoned.path), "{line}");
    sh(10, &format!("! mountpoint -q {}", at.text())).ok();
    let missing = run(30, "mkfs.zonefs-fuse", &["/dev/no-such-device"]);
    assert!(missing.refused(1).contains("/dev/no-such-device"));
    drop(zoned);
    nothing_is_loaded();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn numbers_of_no_device_or_of_another_kind_are_named() {
    refused(&run(30, "ublk-zns", &["del", "77"]), 1, &["there is no ublk device 77"]);
    refused(&run(30, "ublk-zns", &["report", "77"]), 1, &["there is no ublk device 77"]);
    refused(&run(30, "ublk-zns", &["recover", "77"]), 1, &["there is no ublk device 77"]);
    let null = Device::add("ublk-target", &["--size", "64MiB"]);
    let id = null.id.to_string();
    assert!(run(30, "ublk-zns", &["report", &id]).refused(1).contains("null device, not a zns device"));
    assert!(run(30, "ublk-zns", &["del", &id]).refused(1).contains("null device, not a zns device"));
    assert!(run(30, "ublk-zns", &["recover", &id]).refused(1).contains("it is a null device"));
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_device_that_cannot_get_its_media_leaves_none() {
    let refused = run(60, "ublk-zns", &["add", "--size", "1024PiB", "--zone-size", "1TiB"]);
    assert_ne!(refused.status, Some(0), "{refused:#?}");
    nothing_is_loaded();
}
