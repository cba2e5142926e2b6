//! The kernel's own zoned file systems work on the ZNS device.

use tests::{Device, MountPoint, sh};

fn write_check_and_remount(device: &Device, kind: &str, mkfs: &str, check: &str) {
    let mount = MountPoint::new(kind);
    let (at, path) = (mount.text(), &device.path);
    sh(60, &format!("{mkfs} {path}")).ok();
    sh(60, &format!("mount -t {kind} {path} {at}")).ok();
    sh(120, &format!("dd if=/dev/urandom of=/tmp/{kind}-data bs=1M count=48 status=none; cp /tmp/{kind}-data {at}/data; sync {at}/data")).ok();
    sh(120, &check.replace("MOUNT", &at)).ok();
    sh(60, &format!("umount {at}; mount -t {kind} {path} {at}; cmp /tmp/{kind}-data {at}/data; rm {at}/data; sync; umount {at}; rm /tmp/{kind}-data")).ok();
}

fn has(kind: &str) -> bool {
    let found = sh(30, &format!("modprobe {kind} 2>/dev/null || true; grep -qw {kind} /proc/filesystems"))
        .status
        == Some(0);
    if !found {
        println!("skipped: this kernel has no {kind}");
    }
    found
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn btrfs_writes_with_zone_appends_scrubs_clean_and_remounts() {
    if !has("btrfs") {
        return;
    }
    let device = Device::add(
        "ublk-zns",
        &[
            "--size",
            "2GiB",
            "--zone-size",
            "64MiB",
            "--zone-capacity",
            "48MiB",
            "--max-open",
            "12",
            "--max-active",
            "14",
        ],
    );
    let scrub = "btrfs scrub start -B MOUNT 2>/dev/null | grep 'no errors found'";
    write_check_and_remount(&device, "btrfs", "mkfs.btrfs -q -f -O zoned -d single -m single", scrub);
    let stat = device.stat();
    let appends = &stat["ops"]["zone_append"];
    assert!(appends["bytes"].as_u64().unwrap() >= 48 << 20, "{stat}");
    // One append per page would mean that the kernel was told limits it takes wrongly.
    assert!(appends["requests"].as_u64().unwrap() < 2000, "{stat}");
    assert_eq!(appends["errors"], 0);
}

#[test]
#[ignore = "needs a kernel with ublk (scripts/test)"]
fn f2fs_works_with_conventional_zones() {
    if !has("f2fs") {
        return;
    }
    let device = Device::add("ublk-zns", &["--size", "2GiB", "--zone-size", "64MiB", "--conv-zones", "4"]);
    write_check_and_remount(&device, "f2fs", "mkfs.f2fs -q -f -m", "true");
    assert_eq!(device.stat()["ops"]["write"]["errors"], 0);
}
