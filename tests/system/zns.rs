//! The ZNS device keeps the zone rules towards real clients, answers every wrong request, and survives its daemon.

use serde_json::Value;
use tests::{Device, nothing_is_loaded, run, sh};

fn small() -> Device {
    Device::add(
        "ublk-zns",
        &[
            "--size",
            "512MiB",
            "--zone-size",
            "16MiB",
            "--zone-capacity",
            "12MiB",
            "--max-open",
            "3",
            "--max-active",
            "5",
        ],
    )
}

fn states(device: &Device) -> Vec<String> {
    let zones = device.run(20, "report", &["--json"]).json();
    let state = |zone: &Value| zone["state"].as_str().unwrap().to_owned();
    zones.as_array().unwrap().iter().map(state).collect()
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn the_kernel_sees_the_zones_and_limits_that_were_asked_for() {
    let device = small();
    let queue = |name: &str| {
        let path = format!("/sys/block/ublkb{}/queue/{name}", device.id);
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    };
    assert_eq!(queue("zoned"), "host-managed");
    assert_eq!((queue("max_open_zones"), queue("max_active_zones")), ("3".into(), "5".into()));
    assert_eq!((queue("nr_zones"), queue("chunk_sectors")), ("32".into(), "32768".into()));
    let report = run(20, "blkzone", &["report", &device.path]);
    let lines: Vec<&str> = report.ok().lines().collect();
    assert_eq!(lines.len(), 32);
    assert!(lines[1].contains("start: 0x000008000") && lines[1].contains("cap 0x006000"), "{}", lines[1]);
    assert!(lines.iter().all(|line| line.contains("1(em)")), "{report:#?}");
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn requests_that_break_the_rules_end_with_an_error_and_never_hang() {
    // The three that rublk's zoned target never answers, and their relatives.
    let device = small();
    let path = &device.path;
    run(20, "blkzone", &["close", "-o", "0", "-c", "1", path]).refused(1);
    let stray = sh(20, &format!("dd if=/dev/zero of={path} bs=4k count=1 seek=100 oflag=direct"));
    assert!(stray.status == Some(1) && stray.err.contains("Input/output error"), "{stray:#?}");
    run(20, "blkzone", &["finish", "-o", "0", "-c", "1", path]).ok();
    run(20, "blkzone", &["open", "-o", "0", "-c", "1", path]).refused(1);
    let full = sh(20, &format!("dd if=/dev/zero of={path} bs=4k count=1 oflag=direct"));
    assert_eq!(full.status, Some(1), "{full:#?}");
    run(20, "blkzone", &["reset", path]).ok();
    sh(20, &format!("dd if=/dev/zero of={path} bs=4k count=1 oflag=direct")).ok();
    assert_eq!(states(&device)[0], "implicitly_open");
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn the_open_and_active_limits_reach_the_client() {
    let device = small();
    let path = &device.path;
    let open = |zone: u32| run(20, "blkzone", &["open", "-o", &(zone * 0x8000).to_string(), "-c", "1", path]);
    for zone in 0..3 {
        open(zone).ok();
    }
    assert_ne!(open(3).status, Some(0));
    for zone in 0..3 {
        run(20, "blkzone", &["close", "-o", &(zone * 0x8000).to_string(), "-c", "1", path]).ok();
    }
    open(3).ok();
    open(4).ok();
    assert_ne!(open(5).status, Some(0), "five zones are active");
    let stat = device.stat();
    assert_eq!((stat["target"]["open"].as_u64(), stat["target"]["active"].as_u64()), (Some(2), Some(5)));
    // Writes to closed zones push implicitly open ones aside; the explicitly open ones stay.
    for zone in 0..3 {
        sh(20, &format!("dd if=/dev/zero of={path} bs=4k count=1 seek={} oflag=direct", zone * 4096)).ok();
    }
    let states = states(&device);
    assert_eq!(
        states[..6],
        ["closed", "closed", "implicitly_open", "explicitly_open", "explicitly_open", "empty"]
    );
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn data_is_read_back_as_written_by_fio() {
    let device = Device::add(
        "ublk-zns",
        &["--size", "512MiB", "--zone-size", "16MiB", "--zone-capacity", "12MiB", "--queues", "2"],
    );
    let fio = sh(
        120,
        &format!(
            "cd /tmp; fio --name=verify --filename={} --direct=1 --zonemode=zbd --rw=randwrite --bsrange=4k-128k --bs_unaligned=0 \
             --size=192M --io_size=96M --max_open_zones=8 --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 \
             --blockalign=4k --output-format=json",
            device.path
        ),
    );
    fio.ok();
    assert_eq!(device.stat()["ops"]["write"]["errors"], 0);
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_killed_daemon_loses_no_completed_write_and_no_zone_state() {
    let device = small();
    let path = &device.path;
    sh(60, &format!("dd if=/dev/urandom of=/tmp/zns-data bs=1M count=12 status=none; dd if=/tmp/zns-data of={path} bs=256k oflag=direct status=none")).ok();
    run(20, "blkzone", &["open", "-o", "0x8000", "-c", "1", path]).ok();
    sh(20, &format!("dd if=/dev/zero of={path} bs=4k count=3 seek=8192 oflag=direct status=none")).ok();
    let before = device.run(20, "report", &["--json"]).json();
    for _ in 0..3 {
        device.kill();
        assert_eq!(device.run(60, "recover", &[]).ok(), path);
        assert_eq!(device.run(20, "report", &["--json"]).json(), before);
        sh(60, &format!("echo 1 > /proc/sys/vm/drop_caches; cmp -n 12582912 /tmp/zns-data {path}")).ok();
    }
    sh(20, &format!("dd if=/dev/zero of={path} bs=4k count=1 seek=8195 oflag=direct status=none")).ok();
    device.run(30, "del", &[]).ok();
    nothing_is_loaded();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_dead_device_is_deleted_with_its_media() {
    let device = small();
    device.kill();
    device.run(60, "del", &[]).ok();
    nothing_is_loaded();
}
