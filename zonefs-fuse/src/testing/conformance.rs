//! The rules every [`ZonedDevice`] keeps, as one program that runs over any of them.

use crate::device::{Zone, ZoneCond, ZoneId, ZoneType, ZonedDevice};

/// Runs the suite over a device and destroys what is on its sequential zones. Needs four of them, empty or not.
///
/// # Panics
/// On the first rule that is broken, with what was done.
#[allow(clippy::unwrap_used)]
pub fn conformance(device: &dyn ZonedDevice) {
    let zones = device.report().unwrap();
    assert_eq!(zones.len(), device.geometry().nr_zones as usize, "the report has every zone");
    let sequential: Vec<ZoneId> =
        zones.iter().filter(|z| z.kind == ZoneType::Sequential).map(|z| z.id).collect();
    assert!(sequential.len() >= 4, "the suite needs four sequential zones");
    for zone in &sequential {
        device.reset(*zone).unwrap();
        assert_eq!(of(device, *zone), (ZoneCond::Empty, 0), "a reset zone is empty");
    }
    writes_go_to_the_write_pointer_only(device, sequential[0]);
    bad_ranges_are_refused(device, sequential[1]);
    a_zone_fills_to_its_capacity(device, sequential[1]);
    finish_open_and_close(device, sequential[2]);
    the_limits_hold(device, &sequential);
    conventional_zones_have_no_write_pointer(device, &zones);
    for zone in &sequential {
        device.reset(*zone).unwrap();
    }
    device.flush().unwrap();
}

#[allow(clippy::unwrap_used)]
fn of(device: &dyn ZonedDevice, zone: ZoneId) -> (ZoneCond, u64) {
    let Zone { id, cond, written_bytes, .. } = device.report_zone(zone).unwrap();
    assert_eq!(id, zone);
    (cond, written_bytes)
}

fn blocks(device: &dyn ZonedDevice, count: usize, seed: u8) -> Vec<u8> {
    let block = device.geometry().block_size_bytes as usize;
    (0..count * block).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) ^ (i >> 8) as u8).collect()
}

#[allow(clippy::unwrap_used)]
fn writes_go_to_the_write_pointer_only(device: &dyn ZonedDevice, zone: ZoneId) {
    let geometry = device.geometry();
    let (start, block) = (geometry.zone_start(zone), u64::from(geometry.block_size_bytes));
    let first = blocks(device, 3, 1);
    device.write(start, &first).unwrap();
    assert_eq!(of(device, zone), (ZoneCond::ImplicitOpen, 3 * block));
    device.write(start, &first).expect_err("a write behind the write pointer");
    device.write(start + 4 * block, &first).expect_err("a write past the write pointer");
    assert_eq!(of(device, zone).1, 3 * block, "a refused write moves nothing");
    let second = blocks(device, 2, 9);
    assert_eq!(device.append(zone, &second).unwrap(), start + 3 * block, "append says where");
    device.flush().unwrap();
    let mut read = vec![0; first.len() + second.len()];
    device.read(start, &mut read).unwrap();
    assert_eq!(read, [first, second].concat(), "what was written is read");
    let mut middle = vec![0; geometry.block_size_bytes as usize];
    device.read(start + block, &mut middle).unwrap();
    assert_eq!(middle, read[block as usize..2 * block as usize], "a block of the middle");
}

#[allow(clippy::unwrap_used)]
fn bad_ranges_are_refused(device: &dyn ZonedDevice, zone: ZoneId) {
    let geometry = device.geometry();
    let block = geometry.block_size_bytes as usize;
    let start = geometry.zone_start(zone);
    device.write(start, &vec![1; block - 1]).expect_err("a part of a block");
    device.write(start, &[]).expect_err("nothing");
    device.write(start + 1, &vec![1; block]).expect_err("between blocks");
    device.append(zone, &vec![1; block + 1]).expect_err("an append of a part of a block");
    device.read(start + 1, &mut vec![0; block]).expect_err("a read between blocks");
    device.read(start, &mut vec![0; block / 2]).expect_err("a read of half a block");
    device.read(geometry.size_bytes(), &mut vec![0; block]).expect_err("a read past the end");
    device.read(u64::MAX - 511, &mut vec![0; block]).expect_err("a read that wraps around");
    device.write(geometry.size_bytes(), &vec![0; block]).expect_err("a write past the end");
    let over = start + geometry.zone_size_bytes - block as u64;
    device.read(over, &mut vec![0; 2 * block]).expect_err("a read over a zone's end");
    let none = ZoneId(geometry.nr_zones);
    device.reset(none).expect_err("a reset of no zone");
    device.append(none, &vec![0; block]).expect_err("an append to no zone");
    device.report_zone(none).expect_err("a report of no zone");
    assert_eq!(of(device, zone), (ZoneCond::Empty, 0), "nothing of this moved the write pointer");
}

#[allow(clippy::unwrap_used)]
fn a_zone_fills_to_its_capacity(device: &dyn ZonedDevice, zone: ZoneId) {
    let geometry = device.geometry();
    let (start, block) = (geometry.zone_start(zone), u64::from(geometry.block_size_bytes));
    let capacity = geometry.zone_capacity_bytes;
    let piece = vec![7; (1 << 20_u64).min(capacity - block) as usize / block as usize * block as usize];
    let mut at = 0;
    while capacity - at > block {
        let n = piece.len().min((capacity - at - block) as usize);
        device.write(start + at, &piece[..n]).unwrap();
        at += n as u64;
    }
    device.write(start + at, &blocks(device, 2, 0)).expect_err("a write over the capacity");
    assert_eq!(of(device, zone), (ZoneCond::ImplicitOpen, capacity - block), "it wrote no part of it");
    device.write(start + at, &blocks(device, 1, 0)).unwrap();
    assert_eq!(of(device, zone), (ZoneCond::Full, capacity));
    device.append(zone, &blocks(device, 1, 0)).expect_err("an append to a full zone");
    device.open(zone).expect_err("opening a full zone");
    device.finish(zone).expect("finishing a full zone does nothing");
    device.reset(zone).unwrap();
    assert_eq!(of(device, zone), (ZoneCond::Empty, 0));
    device.write(start, &blocks(device, 1, 5)).unwrap();
    device.reset(zone).unwrap();
}

#[allow(clippy::unwrap_used)]
fn finish_open_and_close(device: &dyn ZonedDevice, zone: ZoneId) {
    let geometry = device.geometry();
    let block = u64::from(geometry.block_size_bytes);
    device.open(zone).unwrap();
    assert_eq!(of(device, zone), (ZoneCond::ExplicitOpen, 0));
    device.append(zone, &blocks(device, 1, 2)).unwrap();
    device.close(zone).unwrap();
    assert_eq!(of(device, zone), (ZoneCond::Closed, block));
    device.append(zone, &blocks(device, 1, 3)).unwrap();
    assert_eq!(of(device, zone), (ZoneCond::ImplicitOpen, 2 * block));
    device.finish(zone).unwrap();
    assert_eq!(of(device, zone), (ZoneCond::Full, geometry.zone_capacity_bytes));
    device.append(zone, &blocks(device, 1, 3)).expect_err("an append to a finished zone");
    let mut read = vec![0; 2 * block as usize];
    device.read(geometry.zone_start(zone), &mut read).unwrap();
    assert_eq!(read, [blocks(device, 1, 2), blocks(device, 1, 3)].concat(), "finish keeps the data");
    device.reset(zone).unwrap();
}

/// Writes zones until the limit of active ones, and one more.
#[allow(clippy::unwrap_used)]
fn the_limits_hold(device: &dyn ZonedDevice, sequential: &[ZoneId]) {
    for zone in sequential {
        device.reset(*zone).unwrap();
    }
    let limit = device.geometry().max_active_zones as usize;
    if limit == 0 || limit >= sequential.len() {
        return;
    }
    let block = blocks(device, 1, 4);
    for zone in &sequential[..limit] {
        device.append(*zone, &block).unwrap();
    }
    device.append(sequential[limit], &block).expect_err("one active zone too many");
    assert_eq!(of(device, sequential[limit]), (ZoneCond::Empty, 0));
    device.finish(sequential[0]).unwrap();
    device.append(sequential[limit], &block).expect("a finished zone gives its resources back");
}

#[allow(clippy::unwrap_used)]
fn conventional_zones_have_no_write_pointer(device: &dyn ZonedDevice, zones: &[Zone]) {
    let Some(zone) = zones.iter().find(|z| z.kind == ZoneType::Conventional) else { return };
    let start = device.geometry().zone_start(zone.id);
    let data = blocks(device, 1, 6);
    for at in [3, 1] {
        device.write(start + at * data.len() as u64, &data).unwrap();
    }
    device.write(start + data.len() as u64, &data).expect("a conventional zone is overwritten");
    device.reset(zone.id).expect_err("a reset of a conventional zone");
    assert_eq!(of(device, zone.id), (ZoneCond::NotWp, 0));
}
