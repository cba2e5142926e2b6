//! The ZNS device can be trusted: it goes on after its daemon was killed, keeps what was flushed through a power cut and a
//! restart, and breaks exactly as it is told to.
//!
//! `STORLAB_KILLS` and `STORLAB_CUTS` say how often the two long tests kill and cut (a few times each without).

use serde_json::Value;
use std::process::{Child, Command, Stdio};
use tests::{Device, MountPoint, nothing_is_loaded, run, sh};

fn times(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn report(device: &Device) -> Vec<Value> {
    device.run(30, "report", &["--json"]).json().as_array().unwrap().clone()
}

/// A background process that is ended with its test.
struct Background(Child);

impl Background {
    fn start(script: &str) -> Background {
        let child = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
        Background(child)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn fio_with_verify_does_not_notice_that_the_daemon_is_killed_again_and_again() {
    let kills = times("STORLAB_KILLS", 6);
    let device = Device::add(
        "ublk-zns",
        &["--size", "256MiB", "--zone-size", "8MiB", "--zone-capacity", "6MiB", "--queues", "2"],
    );
    // fio writes and verifies in turn until it is told to stop; a failed request or a wrong block ends it with an error.
    let mut fio = Background::start(&format!(
        "cd /tmp; exec fio --name=kills --filename={} --direct=1 --zonemode=zbd --rw=randwrite --bsrange=4k-64k --blockalign=4k \
         --size=192M --max_open_zones=8 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --verify_backlog=64 \
         --time_based --runtime=100000 --output=/tmp/kills.log",
        device.path
    ));
    for kill in 0..kills {
        std::thread::sleep(std::time::Duration::from_millis(150 + u64::from(kill * 37 % 250)));
        device.kill();
        assert_eq!(device.run(60, "recover", &[]).ok(), device.path);
        assert!(fio.0.try_wait().unwrap().is_none(), "fio ended: {}", sh(5, "cat /tmp/kills.log").out);
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    // SIGINT ends fio after what it has begun.
    sh(5, &format!("kill -INT {}", fio.0.id())).ok();
    let log = || sh(5, "cat /tmp/kills.log").out;
    tests::until(60, "fio ends", || fio.0.try_wait().unwrap().is_some());
    assert!(log().contains("err= 0") && !log().contains("verify:"), "{}", log());
    assert!(device.stat()["ops"]["write"]["requests"].as_u64() > Some(0), "the last daemon wrote too");
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn appends_that_were_under_way_when_the_daemon_was_killed_are_done_once() {
    if sh(10, "grep -qw btrfs /proc/filesystems || modprobe btrfs").status != Some(0) {
        eprintln!("skipped: this kernel has no btrfs, the client that appends");
        return;
    }
    let kills = times("STORLAB_KILLS", 4).min(40);
    let device = Device::add("ublk-zns", &["--size", "2GiB", "--zone-size", "64MiB", "--queues", "2"]);
    let mount = MountPoint::new("zns-kills");
    let at = mount.text();
    sh(
        60,
        &format!(
            "mkfs.btrfs -q -f -O zoned -d single -m single {} && mount {} {at}",
            device.path, device.path
        ),
    )
    .ok();
    let writer = Background::start(&format!(
        "n=0; while [ $n -lt 100000 ]; do head -c 1500000 /dev/urandom > /tmp/zns-file; cp /tmp/zns-file {at}/f$((n % 40)) && \
         sync {at}/f$((n % 40)) && sha256sum < /tmp/zns-file > /tmp/zns-sum.$((n % 40)) || {{ touch /tmp/zns-failed; exit 1; }}; n=$((n + 1)); done"
    ));
    for kill in 0..kills {
        std::thread::sleep(std::time::Duration::from_millis(300 + u64::from(kill * 53 % 200)));
        device.kill();
        device.run(60, "recover", &[]).ok();
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
    drop(writer);
    assert!(!std::path::Path::new("/tmp/zns-failed").exists(), "a write failed");
    // The one under way has no sum that counts.
    sh(60, &format!("rm -f /tmp/zns-file; sync; umount {at}; mount {} {at}", device.path)).ok();
    let compared = sh(
        120,
        &format!(
            "cd {at}; good=0; bad=0; for f in f*; do [ -s /tmp/zns-sum.${{f#f}} ] || continue; \
             if [ \"$(sha256sum < $f)\" = \"$(cat /tmp/zns-sum.${{f#f}})\" ]; then good=$((good + 1)); else bad=$((bad + 1)); fi; done; \
             echo $good $bad; btrfs scrub start -B {at} 2>&1 | grep -i 'error summary'"
        ),
    );
    let text = compared.ok();
    let counts: Vec<u32> = text.lines().next().unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
    // At most the file that was being replaced when the writer was stopped.
    assert!(counts[0] >= 1 && counts[1] <= 1, "{text}");
    assert!(text.contains("no errors found"), "{text}");
    sh(30, &format!("umount {at}")).ok();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_device_in_a_directory_comes_back_after_del_and_after_a_restart_of_the_machine() {
    let dir = "/tmp/zns-dir";
    sh(10, &format!("rm -rf {dir}")).ok();
    let media = format!("file:{dir}");
    let device = Device::add(
        "ublk-zns",
        &[
            "--media",
            &media,
            "--size",
            "256MiB",
            "--zone-size",
            "16MiB",
            "--max-open",
            "3",
            "--max-active",
            "5",
        ],
    );
    let path = device.path.clone();
    sh(60, &format!("dd if=/dev/urandom of=/tmp/zns-data bs=1M count=20 status=none; dd if=/tmp/zns-data of={path} bs=256k oflag=direct conv=fsync status=none")).ok();
    run(20, "blkzone", &["open", "-o", "0x18000", "-c", "1", &path]).ok();
    run(20, "blkzone", &["close", "-o", "0x8000", "-c", "1", &path]).ok();
    run(20, "blkzone", &["finish", "-o", "0x20000", "-c", "1", &path]).ok();
    sh(20, &format!("dd if=/dev/zero of={path} bs=4k count=1 seek=8192 oflag=direct conv=fsync status=none"))
        .ok();
    let before = report(&device);
    device.run(30, "del", &[]).ok();
    drop(device);
    assert!(std::path::Path::new(dir).join("journal").exists());

    // The sizes are in the directory.
    let device = Device::add("ublk-zns", &["--media", &media]);
    assert_eq!(report(&device), before);
    sh(60, &format!("cmp -n 20971520 /tmp/zns-data {}", device.path)).ok();
    device.run(30, "del", &[]).ok();
    drop(device);

    // Another boot: what the memory said of the zones is gone, the journal is not.
    sh(10, &format!("dd if=/dev/zero of={dir}/zones bs=4096 seek=1 count=2 conv=notrunc status=none")).ok();
    let device = Device::add("ublk-zns", &["--media", &media, "--queues", "2"]);
    assert_eq!(report(&device), before);
    sh(60, &format!("cmp -n 20971520 /tmp/zns-data {}", device.path)).ok();
    // Only one at a time, and only as what it is.
    run(30, "ublk-zns", &["add", "--media", &media]).refused(1);
    device.run(30, "del", &[]).ok();
    drop(device);
    let refused = run(30, "ublk-zns", &["add", "--media", &media, "--zone-size", "32MiB"]);
    assert!(refused.refused(1).contains("sectors per zone"), "{refused:?}");
    sh(10, &format!("rm -rf {dir}")).ok();
    nothing_is_loaded();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_power_cut_takes_only_what_was_not_flushed() {
    let dir = "/tmp/zns-cut";
    let media = format!("file:{dir}");
    sh(10, &format!("rm -rf {dir}; dd if=/dev/urandom of=/tmp/zns-data bs=1M count=8 status=none")).ok();
    let mut flushed = 0u64;
    for cut in 0..u64::from(times("STORLAB_CUTS", 5)) {
        let seed = cut.to_string();
        let device = Device::add(
            "ublk-zns",
            &[
                "--media",
                &media,
                "--size",
                "64MiB",
                "--zone-size",
                "8MiB",
                "--write-cache",
                "volatile",
                "--seed",
                &seed,
            ],
        );
        let path = &device.path;
        let written = |device: &Device| {
            let zone = &report(device)[1];
            (zone["state"].as_str().unwrap().to_owned(), zone["write_pointer_sectors"].as_u64().unwrap_or(0))
        };
        // What the last cut left: all that was flushed, and the beginning of the data.
        let (state, pointer) = written(&device);
        let blocks = if state == "full" { 2048 } else { (pointer - 16384) / 8 };
        assert!(blocks >= flushed, "{blocks} blocks, {flushed} were flushed: {state}");
        assert!(blocks == 0 || ["closed", "full"].contains(&state.as_str()), "{state}");
        sh(20, &format!("cmp -n {} /tmp/zns-data {path} 0 8388608", blocks * 4096)).ok();
        if blocks > 1500 {
            run(20, "blkzone", &["reset", "-o", "0x4000", "-c", "1", path]).ok();
        }
        let from = if blocks > 1500 { 0 } else { blocks };
        // Some blocks with a flush behind them, some without.
        let (safe, unsafe_) = (1 + cut * 7 % 40, 1 + cut * 13 % 60);
        let write = |from: u64, count: u64, flush: &str| {
            sh(
                30,
                &format!(
                    "dd if=/tmp/zns-data of={path} bs=4k skip={from} seek={} count={count} iflag=fullblock oflag=direct {flush} status=none",
                    2048 + from
                ),
            )
        };
        write(from, safe, "conv=fsync").ok();
        flushed = from + safe;
        write(flushed, unsafe_, "").ok();
        device.run(20, "fault", &["power-cut"]).ok();
        assert_ne!(sh(20, &format!("dd if={path} of=/dev/null bs=4k count=1 iflag=direct")).status, Some(0));
        device.run(30, "del", &[]).ok();
    }
    sh(10, &format!("rm -rf {dir}")).ok();
    nothing_is_loaded();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn faults_strike_where_and_as_often_as_they_are_told_and_go_away() {
    let device = Device::add("ublk-zns", &["--size", "128MiB", "--zone-size", "8MiB"]);
    let path = device.path.clone();
    sh(20, &format!("dd if=/dev/zero of={path} bs=64k count=4 oflag=direct status=none")).ok();
    let read = |block: u64| {
        sh(30, &format!("dd if={path} of=/dev/null bs=4k skip={block} count=1 iflag=direct status=none"))
    };
    device.run(20, "fault", &["media-error", "--op", "read", "--range", "8+8", "--count", "once"]).ok();
    read(0).ok();
    let failed = read(1);
    assert!(failed.err.contains("No data available") || failed.err.contains("Input/output"), "{failed:#?}");
    read(1).ok();

    device.run(20, "fault", &["latency", "--op", "read", "--add", "300ms", "--count", "1"]).ok();
    let begun = std::time::Instant::now();
    read(0).ok();
    assert!(begun.elapsed().as_millis() >= 300);

    device.run(20, "fault", &["stall", "--for", "700ms"]).ok();
    let begun = std::time::Instant::now();
    read(2).ok();
    assert!(begun.elapsed().as_millis() >= 500);

    device.run(20, "fault", &["torn-write", "--landed-blocks", "3", "--count", "once"]).ok();
    let torn = sh(20, &format!("dd if=/dev/zero of={path} bs=32k count=1 seek=8 oflag=direct status=none"));
    assert_ne!(torn.status, Some(0));
    assert_eq!(report(&device)[0]["write_pointer_sectors"], 512 + 3 * 8);

    device.run(20, "fault", &["zone", "2", "read-only"]).ok();
    device.run(20, "fault", &["zone", "3", "offline"]).ok();
    let states: Vec<Value> = report(&device).iter().map(|zone| zone["state"].clone()).collect();
    assert_eq!((states[2].as_str(), states[3].as_str()), (Some("read_only"), Some("offline")));
    read(4096).ok();
    assert_ne!(read(6144).status, Some(0));

    let listed = device.run(20, "fault", &["list", "--json"]).json();
    assert!(listed.as_array().is_some_and(|rules| rules.len() >= 3), "{listed}");
    device.run(20, "fault", &["remove", "all"]).ok();
    assert_eq!(device.run(20, "fault", &["list", "--json"]).json(), serde_json::json!([]));
    device.run(20, "fault", &["zone", "99", "offline"]).refused(1);
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_device_with_a_timing_profile_completes_in_its_time_and_says_how_late_it_was() {
    // 20 times slower than the profile, so that this machine is not what is measured: 40 ms a page.
    let device = Device::add(
        "ublk-zns",
        &[
            "--size",
            "128MiB",
            "--zone-size",
            "8MiB",
            "--profile",
            "confzns",
            "--time-scale",
            "20",
            "--set",
            "timing.read_ns=2ms",
        ],
    );
    sh(60, &format!("dd if=/dev/zero of={} bs=64k count=8 oflag=direct status=none", device.path)).ok();
    sh(60, &format!("dd if={} of=/dev/null bs=4k count=10 iflag=direct status=none", device.path)).ok();
    let stat = device.stat();
    let reads = &stat["latency_ns"]["read"];
    assert!(reads["p50"].as_u64().is_some_and(|ns| ns >= 39_000_000), "{reads}");
    assert!(stat["lateness_ns"]["count"].as_u64() > Some(0), "{stat}");
    assert_eq!(stat["target"]["profile"], "confzns");
    assert!(stat["target"]["die_utilisation"].as_array().is_some_and(|dies| !dies.is_empty()));
    run(20, "ublk-zns", &["add", "--profile", "nothing-like-it"]).refused(2);
    run(20, "ublk-zns", &["add", "--profile", "confzns", "--set", "timing.no_such=1"]).refused(2);
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn worn_flash_fails_reads_and_ends_zones() {
    // Chips at the end of their rating: errors beyond the correction, and a zone that does not survive its next resets.
    let device = Device::add(
        "ublk-zns",
        &[
            "--size",
            "64MiB",
            "--zone-size",
            "8MiB",
            "--errors",
            "mlc-2d",
            "--set-error",
            "initial_pe_cycles=2990",
            "--set-error",
            "endurance_cycles=3000",
            "--set-error",
            "endurance_sigma=0.001",
        ],
    );
    let path = device.path.clone();
    let mut ended = false;
    for _ in 0..40 {
        let wrote = sh(20, &format!("dd if=/dev/zero of={path} bs=64k count=1 oflag=direct status=none"));
        ended = report(&device)[0]["state"] == "read_only";
        if ended {
            assert_ne!(wrote.status, Some(0));
            break;
        }
        run(20, "blkzone", &["reset", "-o", "0", "-c", "1", &path]);
    }
    assert!(ended, "{:?}", report(&device)[0]);
    assert!(device.stat()["target"]["errors"]["most_pe_cycles"].as_u64() > Some(2990));
}
