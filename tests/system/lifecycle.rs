//! A device lives and dies cleanly, whatever its handler does.

use tests::{Device, nothing_is_loaded, run, sh, until};

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_device_is_live_when_add_returns_and_gone_when_del_returns() {
    for data_path in [&[][..], &["--user-copy"][..]] {
        let device = Device::add("ublk-target", &[&["--size", "64MiB"], data_path].concat());
        sh(30, &format!("dd if={0} of=/dev/null bs=64k iflag=direct; dd if=/dev/zero of={0} bs=64k count=16 oflag=direct", device.path)).ok();
        let stat = device.stat();
        assert_eq!(stat["ops"]["write"]["bytes"], 16 * 65536);
        assert_eq!(stat["refused_completions"], 0);
        device.run(30, "del", &[]).ok();
        nothing_is_loaded();
        assert!(device.run(30, "del", &[]).refused(1).contains("there is no ublk device"));
    }
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn sigterm_deletes_the_device() {
    let device = Device::add("ublk-target", &["--size", "64MiB"]);
    nix::sys::signal::kill(device.daemon(), nix::sys::signal::Signal::SIGTERM).unwrap();
    until(20, "the device is gone", || !std::path::Path::new(&device.path).exists());
    until(20, "its state is gone", || {
        run(20, "ublk-target", &["list", "--json"]).json() == serde_json::json!([])
    });
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_handler_that_panics_or_fails_completes_every_request() {
    for fault in ["--panic-every", "--fail-every"] {
        for data_path in [&[][..], &["--user-copy"][..]] {
            let args = [&["--size", "64MiB", fault, "3"], data_path].concat();
            let device = Device::add("ublk-target", &args);
            // Each read is one request; a third of them fail, none hangs.
            let script = format!(
                "n=0; for i in $(seq 30); do dd if={} of=/dev/null bs=4k count=1 skip=$i iflag=direct status=none 2>/dev/null || n=$((n+1)); done; echo $n",
                device.path
            );
            let failed: u32 = sh(60, &script).ok().parse().unwrap();
            assert!((5..=15).contains(&failed), "{failed} of 30 failed");
            device.run(30, "del", &[]).ok();
        }
    }
    nothing_is_loaded();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_target_that_cannot_start_leaves_nothing_loaded() {
    let refused = run(60, "ublk-target", &["add", "--fail-start"]);
    assert_eq!(refused.refused(1), "ublk-target: --fail-start was given");
    nothing_is_loaded();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_taken_number_is_refused_and_its_owner_keeps_working() {
    let device = Device::add("ublk-target", &["--size", "64MiB", "--id", "7"]);
    assert_eq!(device.path, "/dev/ublkb7");
    let refused = run(60, "ublk-target", &["add", "--id", "7"]);
    assert!(refused.refused(1).contains("ublk device 7 exists already"));
    sh(20, "dd if=/dev/ublkb7 of=/dev/null bs=4k count=4 iflag=direct").ok();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_device_in_use_is_deleted_only_by_force() {
    let device = Device::add("ublk-target", &["--size", "64MiB"]);
    let hold = format!(
        "exec 9<>{}; python3 -c 'import os,time; os.open(\"{0}\", os.O_RDONLY|os.O_EXCL); print(1, flush=True); time.sleep(60)'",
        device.path
    );
    let mut holder = std::process::Command::new("bash")
        .args(["-c", &hold])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 2];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut line).unwrap();
    assert!(device.run(30, "del", &[]).refused(1).contains("is in use"));
    device.run(30, "del", &["--force"]).ok();
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_device_whose_daemon_was_killed_is_recovered_under_load() {
    let device = Device::add("ublk-target", &["--size", "64MiB", "--recovery"]);
    assert!(device.run(30, "recover", &[]).refused(1).contains("still runs"));
    for _ in 0..3 {
        // The readers may see EIO for what the daemon held; they must come to an end.
        let mut load = std::process::Command::new("bash")
            .args(["-c", &format!("for i in $(seq 200); do dd if={} of=/dev/null bs=4k count=8 iflag=direct status=none 2>/dev/null || true; done", device.path)])
            .spawn()
            .unwrap();
        device.kill();
        let list = run(20, "ublk-target", &["list", "--json"]).json();
        assert_eq!(list[0]["state"], "quiesced", "{list}");
        assert_eq!(device.run(60, "recover", &[]).ok(), device.path);
        until(60, "the load ends", || load.try_wait().unwrap().is_some());
    }
    sh(20, &format!("dd if={} of=/dev/null bs=4k count=8 iflag=direct", device.path)).ok();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_device_whose_daemon_died_is_deleted() {
    let device = Device::add("ublk-target", &["--size", "64MiB", "--recovery"]);
    device.kill();
    device.run(60, "del", &[]).ok();
    nothing_is_loaded();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_start_that_hangs_or_fails_in_one_queue_ends_in_time_and_leaves_nothing() {
    if sh(10, "nproc").ok() == "1" {
        println!("skipped: one CPU, so that the kernel gives a device one queue only");
        return;
    }
    for foreground in [&[][..], &["--foreground"][..]] {
        let hung = [&["add", "--queues", "2", "--hang-start", "--patience", "2"], foreground].concat();
        assert!(run(30, "ublk-target", &hung).refused(1).contains(" time") || foreground.is_empty());
        nothing_is_loaded();
        let failed = [&["add", "--queues", "2", "--fail-start"], foreground].concat();
        assert_eq!(run(30, "ublk-target", &failed).refused(1), "ublk-target: --fail-start was given");
        nothing_is_loaded();
    }
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn a_number_is_free_again_when_del_returns() {
    for _ in 0..10 {
        let device = Device::add("ublk-target", &["--size", "64MiB", "--id", "3"]);
        device.run(30, "del", &[]).ok();
    }
    nothing_is_loaded();
}
