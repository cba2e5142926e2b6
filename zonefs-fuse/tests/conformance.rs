//! The conformance suite over every device there is.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use ublk_zns::{ZnsConfig, ZnsDevice};
use zonefs_fuse::Error;
use zonefs_fuse::device::{Access, KernelZoned, ModelZoned, ZoneId, ZonedDevice};
use zonefs_fuse::testing::{MemGeometry, MemZoned, conformance};

#[test]
fn the_memory_device_keeps_the_rules() {
    conformance(&MemZoned::new(MemGeometry { conventional: 2, ..MemGeometry::default() }));
    conformance(&MemZoned::new(MemGeometry { block_size_bytes: 4096, ..MemGeometry::default() }));
    conformance(&MemZoned::new(MemGeometry {
        max_open_zones: 0,
        max_active_zones: 0,
        ..MemGeometry::default()
    }));
}

#[test]
fn the_in_process_model_keeps_the_rules() {
    for (block_bytes, conventional_zones) in [(512, 0), (4096, 2)] {
        let config = ZnsConfig {
            size_bytes: 16 << 20,
            zone_size_bytes: 1 << 20,
            zone_capacity_bytes: Some(768 << 10),
            conventional_zones,
            max_open_zones: Some(3),
            max_active_zones: Some(5),
            block_bytes,
            ..ZnsConfig::default()
        };
        conformance(&ModelZoned::new(Arc::new(ZnsDevice::new(&config).unwrap()), "model"));
    }
}

/// Destroys what is on the device: only a device made for tests may be named.
#[test]
fn a_kernel_device_keeps_the_rules() {
    let Ok(path) = std::env::var("STORLAB_ZONED_DEVICE") else {
        println!("skipped: STORLAB_ZONED_DEVICE names no zoned block device");
        return;
    };
    let path = Path::new(&path);
    let held = KernelZoned::open(path, Access::Exclusive).unwrap();
    conformance(&held);
    let open = |access| KernelZoned::open(path, access).map(|_| ());
    for access in [Access::ExclusiveRead, Access::Exclusive] {
        assert!(matches!(open(access), Err(Error::Busy { .. })), "{access:?} while it is held");
    }
    open(Access::Read).unwrap();
    drop(held);
    let held = KernelZoned::open(path, Access::ExclusiveRead).unwrap();
    assert!(held.reset(ZoneId(held.geometry().nr_zones - 1)).is_err(), "it is open for reading only");
    assert!(matches!(open(Access::Exclusive), Err(Error::Busy { .. })));
}
