//! The zone file system on a kernel zoned device: files survive unmounting and crashes, wrong devices are refused.

use tests::{Device, MountPoint, run, sh, until};

fn device() -> Device {
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
            "6",
            "--max-active",
            "8",
        ],
    )
}

fn mount(device: &Device, at: &str) {
    run(60, "zonefs-fuse", &[&device.path, at]).ok();
    sh(10, &format!("mountpoint -q {at}")).ok();
}

fn unmount(at: &str) {
    run(60, "umount", &[at]).ok();
    // The daemon writes back after umount has returned; a device in use cannot be deleted.
    until(30, "the daemon is gone", || run(10, "pidof", &["zonefs-fuse"]).status != Some(0));
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn files_survive_unmounting_with_stock_tools() {
    let (device, at) = (device(), MountPoint::new("zonefs"));
    let (text, tree) = (at.text(), "/tmp/zonefs-tree");
    run(60, "mkfs.zonefs-fuse", &[&device.path]).ok();
    mount(&device, &text);
    sh(60, &format!("rm -rf {tree}; mkdir -p {tree}/a/b; for i in 1 2 3 4 5 6; do head -c $((i * 700001)) /dev/urandom > {tree}/a/f$i; done; ln {tree}/a/f1 {tree}/a/b/linked; cp {tree}/a/f2 {tree}/a/b/")).ok();
    sh(120, &format!("tar -C {tree} -cf - . | tar -C {text} -xf -; mv {text}/a/f3 {text}/a/b/moved; rm {text}/a/f4; cat {tree}/a/f5 >> {text}/a/f5; find {text} -type f -exec sync {{}} +")).ok();
    sh(60, &format!("mv {tree}/a/f3 {tree}/a/b/moved; rm {tree}/a/f4; cp {tree}/a/f5 /tmp/f5; cat /tmp/f5 >> {tree}/a/f5")).ok();
    sh(60, &format!("diff -r {tree} {text}")).ok();
    unmount(&text);
    mount(&device, &text);
    sh(60, &format!("diff -r {tree} {text}; rm -r {text}/a; test -z \"$(ls {text})\"")).ok();
    unmount(&text);
    sh(20, &format!("rm -r {tree} /tmp/f5")).ok();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn synced_files_survive_a_kill_of_the_file_system_under_load() {
    let (device, at) = (device(), MountPoint::new("zonefs-kill"));
    let text = at.text();
    run(60, "mkfs.zonefs-fuse", &[&device.path]).ok();
    for round in 0..5u32 {
        mount(&device, &text);
        // Every earlier round's synced files are there, whole.
        sh(60, &format!("cd /tmp; for f in {text}/synced*; do [ -e \"$f\" ] || continue; cmp $f /tmp/zonefs-copy-${{f##*/}}; done")).ok();
        sh(60, &format!("head -c $((300000 + {round} * 77777)) /dev/urandom > /tmp/zonefs-copy-synced{round}; cp /tmp/zonefs-copy-synced{round} {text}/synced{round}; sync {text}/synced{round}")).ok();
        let mut load = std::process::Command::new("bash")
            .args(["-c", &format!("i=0; while cp /tmp/zonefs-copy-synced{round} {text}/load$((i % 20)) 2>/dev/null; do i=$((i+1)); done")])
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300 + u64::from(round) * 150));
        sh(10, "kill -9 $(pidof zonefs-fuse)").ok();
        until(30, "the load ends", || load.try_wait().unwrap().is_some());
        run(30, "umount", &["-l", &text]).ok();
        until(30, "the daemon is gone", || run(10, "pidof", &["zonefs-fuse"]).status != Some(0));
    }
    mount(&device, &text);
    for round in 0..5 {
        sh(20, &format!("cmp /tmp/zonefs-copy-synced{round} {text}/synced{round}")).ok();
    }
    unmount(&text);
    sh(20, "rm /tmp/zonefs-copy-*").ok();
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn files_outlive_the_death_and_recovery_of_the_device_below() {
    let (device, at) = (device(), MountPoint::new("zonefs-recover"));
    let text = at.text();
    run(60, "mkfs.zonefs-fuse", &[&device.path]).ok();
    mount(&device, &text);
    sh(60, &format!("head -c 3000000 /dev/urandom > /tmp/zonefs-below; cp /tmp/zonefs-below {text}/before; sync {text}/before")).ok();
    device.kill();
    device.run(60, "recover", &[]).ok();
    sh(60, &format!("echo 1 > /proc/sys/vm/drop_caches; cmp /tmp/zonefs-below {text}/before; cp /tmp/zonefs-below {text}/after; sync {text}/after")).ok();
    unmount(&text);
    mount(&device, &text);
    sh(
        60,
        &format!(
            "cmp /tmp/zonefs-below {text}/before; cmp /tmp/zonefs-below {text}/after; rm /tmp/zonefs-below"
        ),
    )
    .ok();
    unmount(&text);
}
