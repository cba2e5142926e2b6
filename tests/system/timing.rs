//! Completions come at the time their handler named, are counted, and are never lost.

use serde_json::Value;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tests::{Device, nothing_is_loaded, sh, until};

const MS: u64 = 1_000_000;

fn at(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path} in {report}"))
}

/// Reads 4 KiB at each of `count` places at once, from one process so that they start together. Its exit status is how
/// many failed.
const READERS: &str = "
import mmap, os, sys, threading
fd, failed = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), []
def read(at):
    try:
        os.preadv(fd, [mmap.mmap(-1, 4096)], 4096 * at)
    except OSError:
        failed.append(at)
threads = [threading.Thread(target=read, args=(at,)) for at in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(len(failed))
";

fn readers(path: &str, count: u32) -> Child {
    Command::new("python3").args(["-c", READERS, path, &count.to_string()]).spawn().unwrap()
}

/// Waits until `count` requests are with the driver.
fn until_in_flight(device: &Device, count: u32) {
    let inflight = format!("awk '{{ print $1 + $2 }}' /sys/block/ublkb{}/inflight", device.id);
    until(20, "the requests are with the driver", || sh(10, &inflight).ok().parse::<u32>().unwrap() >= count);
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn requests_complete_no_earlier_than_their_time_and_lateness_is_told() {
    for extra in [&[][..], &["--spin-ns", "200000"][..], &["--user-copy"][..]] {
        let device =
            Device::add("ublk-target", &[&["--size", "64MiB", "--latency-ns", "2000000"], extra].concat());
        let before = device.stat();
        let start = Instant::now();
        sh(60, &format!("dd if={} of=/dev/null bs=4k count=100 iflag=direct status=none", device.path)).ok();
        assert!(start.elapsed() >= Duration::from_nanos(100 * 2 * MS), "{:?}", start.elapsed());
        let stat = device.stat();
        let latency = &stat["latency_ns"]["read"];
        assert!(at(latency, "/count") >= 100, "{stat}");
        // A histogram knows a value within 1 %.
        assert!(
            at(latency, "/p50") >= 1980 * MS / 1000 && at(latency, "/mean") >= 1980 * MS / 1000,
            "{stat}"
        );
        let late = at(&stat, "/lateness_ns/count") - at(&before, "/lateness_ns/count");
        assert!(late >= 100, "{stat}");
        println!("lateness with {extra:?}: {}", stat["lateness_ns"]);
        device.run(30, "del", &[]).ok();
    }
    nothing_is_loaded();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn requests_that_wait_together_take_the_time_of_one() {
    let device =
        Device::add("ublk-target", &["--size", "64MiB", "--latency-ns", "1000000000", "--depth", "64"]);
    let start = Instant::now();
    let status = readers(&device.path, 32).wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < Duration::from_secs(32), "one after the other: {:?}", start.elapsed());
    assert!(at(&device.stat(), "/ops/read/requests") >= 32);
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_device_that_is_deleted_completes_what_waits() {
    let device = Device::add("ublk-target", &["--size", "64MiB", "--latency-ns", "2000000000"]);
    let mut load = readers(&device.path, 8);
    until_in_flight(&device, 8);
    // Not forced: plain readers do not hold a device exclusively.
    device.run(60, "del", &[]).ok();
    until(20, "the readers end", || load.try_wait().unwrap().is_some());
    assert!(load.wait().unwrap().success(), "what was in flight is completed, not failed");
    nothing_is_loaded();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn requests_that_wait_when_the_daemon_dies_fail_or_are_sent_again() {
    for (recovery, failures) in [("--recovery", 8), ("--reissue", 0)] {
        let device = Device::add("ublk-target", &["--size", "64MiB", "--latency-ns", "3000000000", recovery]);
        let mut load = readers(&device.path, 8);
        until_in_flight(&device, 8);
        device.kill();
        assert_eq!(device.run(60, "recover", &[]).ok(), device.path);
        until(30, "the readers end", || load.try_wait().unwrap().is_some());
        assert_eq!(load.wait().unwrap().code(), Some(failures), "{recovery}");
        sh(30, &format!("dd if={} of=/dev/null bs=4k count=1 iflag=direct status=none", device.path)).ok();
        device.run(30, "del", &[]).ok();
    }
    nothing_is_loaded();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn watch_shows_a_block_per_interval_until_the_device_goes() {
    let device = Device::add("ublk-target", &["--size", "64MiB", "--latency-ns", "1000000"]);
    let id = device.id.to_string();
    let json = sh(
        60,
        &format!(
            "(dd if={} of=/dev/null bs=4k count=2000 iflag=direct status=none &) ; timeout 5 {} stat {id} --watch --json | head -n 2 || true",
            device.path,
            tests::binary("ublk-target").display()
        ),
    );
    let lines: Vec<Value> = json.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{json:?}");
    let read = &lines[0]["ops"]["read"];
    assert!(read["requests_per_s"].as_f64().unwrap() > 1.0, "{json:?}");
    assert!(at(read, "/p50_ns") >= 990_000, "{json:?}");
    device.run(30, "del", &[]).ok();
    nothing_is_loaded();
}
