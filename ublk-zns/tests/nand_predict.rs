//! The predictor against what the built-in profiles' numbers give by hand.

#![allow(clippy::unwrap_used, missing_docs)]

use ublk_zns::{
    Geometry, ZnsConfig,
    nand::{Access, Prediction, Profile, Workload, predict},
};

fn geometry() -> Geometry {
    let config = ZnsConfig { size_bytes: 2 << 30, zone_size_bytes: 64 << 20, ..ZnsConfig::default() };
    Geometry::new(&config).unwrap()
}

fn workload(rw: Access, block_bytes: u64, queue_depth: u32, zones: u32) -> Workload {
    Workload {
        rw,
        block_bytes,
        queue_depth,
        zones,
        runtime_ns: 120_000_000,
        ramp_ns: 30_000_000,
        seed: 1,
        host_overhead_ns: 0,
        queues: 1,
    }
}

fn run(profile: &str, sets: &[&str], workload: &Workload) -> Prediction {
    let mut profile = Profile::builtin(profile).unwrap();
    for set in sets {
        profile.set(set).unwrap();
    }
    predict(&profile, &geometry(), workload).unwrap()
}

fn near(got: f64, want: f64) {
    assert!((got / want - 1.0).abs() < 0.01, "{got}, not {want}");
}

#[test]
fn a_read_at_depth_one_takes_the_sum_of_its_parts() {
    let prediction = run("nvmevirt-zn540", &[], &workload(Access::RandRead, 4096, 1, 8));
    // Firmware 20 us, sense 50 us, 4096 B at 450 MiB/s and at 3050 MiB/s.
    let want = 20_000.0 + 50_000.0 + 4096e9 / 471_859_200.0 + 4096e9 / 3_198_156_800.0;
    near(prediction.mean_ns, want);
    assert!(prediction.max_ns - prediction.min_ns <= 1);
    near(prediction.iops, 1e9 / want);
}

#[test]
fn host_overhead_adds_to_the_latency_and_nothing_else() {
    let plain = run("confzns", &[], &workload(Access::RandRead, 4096, 1, 4));
    let mut slower = workload(Access::RandRead, 4096, 1, 4);
    slower.host_overhead_ns = 20_000;
    assert_eq!(run("confzns", &[], &slower).p50_ns, plain.p50_ns + 20_000);
}

#[test]
fn sequential_writes_reach_the_link_or_the_dies() {
    // 32 dies of 96 KiB per 769 us are 4.09 GB/s and 8 channels 3.77: the link's 3.2 GB/s and the firmware are less.
    let wide = run("nvmevirt-zn540", &[], &workload(Access::Write, 128 << 10, 4, 8));
    near(wide.bytes_per_s, 3_198_156_800.0);
    // FEMU's dies: 8 × 96 KiB per 937.5 us, whatever the number of zones.
    for zones in [1, 4] {
        let femu = run("femu-tlc", &[], &workload(Access::Write, 96 << 10, 1, zones));
        near(femu.bytes_per_s, 8.0 * 98_304.0 / 937.5e-6);
    }
}

#[test]
fn one_write_per_zone_is_at_the_device_but_any_number_of_appends() {
    // No buffer: a write takes a program of its own, 16 KiB per 25 us + 450 us (+ 3.9 us on the link).
    let each = 25_000.0 + 450_000.0 + 16_384e9 / 4_229_955_584.0;
    let one = run("confzns", &[], &workload(Access::Write, 16 << 10, 1, 1));
    near(one.iops, 1e9 / each);
    let deep = run("confzns", &[], &workload(Access::Write, 16 << 10, 16, 1));
    near(deep.iops, one.iops);
    near(deep.mean_ns, 16.0 * one.mean_ns);
    // Sixteen appends keep the eight dies of the zone programming.
    let appends = run("confzns", &[], &workload(Access::Append, 16 << 10, 16, 1));
    near(appends.iops, 8.0 / 450e-6);
}

#[test]
fn random_reads_saturate_the_dies() {
    // Two channels without transfers, 16 planes that sense on their own, 32 us each.
    let prediction = run("femu-tlc", &[], &workload(Access::RandRead, 4096, 1024, 16));
    near(prediction.iops, 16.0 / 32e-6);
    assert!(prediction.die_utilisation > 1.9, "{prediction:?}");
}

#[test]
fn writers_that_have_filled_the_device_reset_on_the_way() {
    let mut asked = workload(Access::Write, 512 << 10, 1, 4);
    asked.runtime_ns = 1_000_000_000;
    let prediction = run("femu-slc", &[], &asked);
    assert!(prediction.resets > 5, "{prediction:?}");
    assert_eq!(prediction, run("femu-slc", &[], &asked));
}

#[test]
fn a_workload_that_cannot_be_is_told_why() {
    let profile = Profile::builtin("confzns").unwrap();
    for (change, want) in [
        ((|w: &mut Workload| w.block_bytes = 1000) as fn(&mut Workload), "block_bytes is 1000"),
        (|w| w.block_bytes = 1 << 30, "zone capacity 67108864"),
        (|w| w.zones = 0, "1 to 32 sequential zones"),
        (|w| w.zones = 33, "zones is 33"),
        (|w| w.queue_depth = 0, "queue_depth is 0"),
        (|w| w.runtime_ns = 0, "runtime_ns is 0"),
        (|w| w.runtime_ns = u64::MAX, "runtime_ns is 18446744073709551615"),
        (|w| w.runtime_ns = 10, "no request is back"),
    ] {
        let mut asked = workload(Access::Read, 4096, 1, 1);
        asked.ramp_ns = 0;
        change(&mut asked);
        let error = predict(&profile, &geometry(), &asked).unwrap_err().to_string();
        assert!(error.starts_with("workload: ") && error.contains(want), "{error}");
    }
    let mut free = profile;
    free.set("timing.read_ns=0").unwrap();
    free.set("timing.channel_bytes_per_s=0").unwrap();
    free.set("link.bytes_per_s=0").unwrap();
    let error = predict(&free, &geometry(), &workload(Access::Read, 4096, 1, 1)).unwrap_err().to_string();
    assert!(error.contains("no cost"), "{error}");
}

#[test]
fn workloads_and_predictions_survive_json() {
    let asked = workload(Access::RandRead, 4096, 4, 2);
    let text = serde_json::to_string(&asked).unwrap();
    assert!(text.contains(r#""rw":"randread""#), "{text}");
    assert_eq!(serde_json::from_str::<Workload>(&text).unwrap(), asked);
    let prediction = run("confzns", &[], &asked);
    let text = serde_json::to_string(&prediction).unwrap();
    let read: Prediction = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (read.requests, read.p50_ns, read.max_ns),
        (prediction.requests, prediction.p50_ns, prediction.max_ns)
    );
    near(read.iops, prediction.iops);
}
