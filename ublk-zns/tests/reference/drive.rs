//! What every test against the reference shares: shapes of devices, random commands, and the comparison.

use super::{Cmd, Kind, No, Reference};
use proptest::prelude::*;
use ublk_zns::{Sector, ZnsConfig, ZoneDescriptor, ZoneError, ZoneId, ZoneState, zones::NO_WRITE_POINTER};

pub(crate) const ZONE: u64 = 64;
pub(crate) const BLOCK: u64 = 8;

#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) zones: u32,
    pub(crate) conv: u32,
    pub(crate) capacity: u64,
    pub(crate) open: u32,
    pub(crate) active: u32,
}

pub(crate) fn config(shape: &Shape) -> ZnsConfig {
    ZnsConfig {
        size_bytes: u64::from(shape.zones) * ZONE * 512,
        zone_size_bytes: ZONE * 512,
        zone_capacity_bytes: Some(shape.capacity * 512),
        conventional_zones: shape.conv,
        max_open_zones: Some(shape.open),
        max_active_zones: Some(shape.active),
        block_bytes: (BLOCK * 512) as u32,
        max_append_bytes: 24 * 512,
    }
}

pub(crate) fn reference(shape: &Shape) -> Reference {
    Reference::new(
        (shape.zones as usize, shape.conv as usize),
        (ZONE, shape.capacity, BLOCK, 24.min(shape.capacity)),
        (shape.open as usize, shape.active as usize),
    )
}

pub(crate) fn start(zone: u32) -> Sector {
    Sector(u64::from(zone) * ZONE)
}

/// Why the device refused, as the reference would say it.
pub(crate) fn no(error: &ZoneError) -> No {
    match error {
        ZoneError::Misaligned { .. }
        | ZoneError::OutOfRange { .. }
        | ZoneError::Boundary { .. }
        | ZoneError::InvalidAppend { .. } => No::Bounds,
        ZoneError::InvalidWrite { .. } => No::Pointer,
        ZoneError::Full(_) => No::Full,
        ZoneError::ReadOnly(_) => No::ReadOnly,
        ZoneError::Offline(_) => No::Offline,
        ZoneError::InvalidTransition { .. } | ZoneError::Conventional { .. } | ZoneError::NoZone { .. } => {
            No::Transition
        }
        ZoneError::TooManyOpen { .. } => No::Open,
        ZoneError::TooManyActive { .. } => No::Active,
    }
}

/// What a client can see of a device.
pub(crate) trait Seen {
    fn resources(&self) -> (u32, u32);
    fn describe(&self, zone: ZoneId) -> ZoneDescriptor;
    fn state(&self, zone: ZoneId) -> (ZoneState, u64);
    /// Sectors of a whole zone that hold data; `None` if it cannot be read.
    fn read(&self, start: Sector) -> Option<u64>;
}

/// Everything a client can see must agree.
pub(crate) fn compare(device: &impl Seen, reference: &Reference) -> Result<(), TestCaseError> {
    let (open, active) = device.resources();
    prop_assert_eq!(open as usize, reference.open());
    prop_assert_eq!(active as usize, reference.active());
    for (n, expected) in reference.zones.iter().enumerate() {
        let id = ZoneId(n as u32);
        let shown = device.describe(id);
        let (state, written) = device.state(id);
        let agree = match expected.kind {
            Kind::Conv => shown.capacity_sectors == ZONE,
            Kind::Empty => state == ZoneState::Empty,
            Kind::Implicit(_) => state == ZoneState::ImplicitlyOpen,
            Kind::Explicit => state == ZoneState::ExplicitlyOpen,
            Kind::Closed => state == ZoneState::Closed,
            Kind::Full => state == ZoneState::Full,
            Kind::ReadOnly => state == ZoneState::ReadOnly,
            Kind::Offline => state == ZoneState::Offline,
        };
        prop_assert!(agree, "zone {}: {:?} against {:?}", n, state, expected);
        let first = start(n as u32).0;
        let pointer = match expected.kind {
            Kind::Conv | Kind::ReadOnly | Kind::Offline => NO_WRITE_POINTER,
            Kind::Full => Sector(first + ZONE),
            _ => Sector(first + expected.data),
        };
        let conventional = shown.kind == ublk_zns::ZoneType::Conventional;
        let pointer = if conventional { NO_WRITE_POINTER } else { pointer };
        prop_assert_eq!(shown.write_pointer, pointer);
        if !conventional {
            prop_assert_eq!(written, expected.data);
            let read = device.read(Sector(first));
            let expected_read = match expected.kind {
                Kind::Offline => None,
                _ => Some(expected.data),
            };
            prop_assert_eq!(read, expected_read);
        }
    }
    Ok(())
}

pub(crate) fn shapes() -> impl Strategy<Value = Shape> {
    (2u32..10, 1u64..=8).prop_flat_map(|(zones, capacity_blocks)| {
        (0..zones, 0..=zones, 0..=zones).prop_map(move |(conv, open, active)| {
            let open = match (open, active) {
                (_, 0) => open,
                (0, _) => 1,
                _ => open.min(active),
            };
            Shape { zones, conv, capacity: capacity_blocks * BLOCK, open, active }
        })
    })
}

/// Mostly commands that can succeed, so that deep states are reached; `usize` choices are taken modulo what exists.
pub(crate) fn commands() -> impl Strategy<Value = Vec<(u8, usize, u64, u64)>> {
    prop::collection::vec((0u8..100, any::<usize>(), 0u64..10, 0u64..6), 1..200)
}

pub(crate) fn command(reference: &Reference, (dice, pick, at, len): (u8, usize, u64, u64)) -> Cmd {
    let zone = pick % reference.zones.len();
    let len = len * BLOCK / if dice == 1 { 2 } else { 1 };
    match dice {
        0..=44 => Cmd::Write { zone, at: reference.zones[zone].data.min(ZONE - BLOCK), len },
        45..=49 => Cmd::Write { zone, at: at * BLOCK % ZONE, len },
        50..=64 => Cmd::Append { zone, len },
        65..=72 => Cmd::Open(zone),
        73..=80 => Cmd::Close(zone),
        81..=86 => Cmd::Finish(zone),
        87..=94 => Cmd::Reset(zone),
        95 => Cmd::ResetAll,
        96..=97 => Cmd::WearOut(zone),
        _ => Cmd::Fail(zone),
    }
}
