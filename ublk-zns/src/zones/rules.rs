//! The rules that need no more than one zone's state: where a range lies, what a read finds, what a report shows, which writes
//! change nothing but a write pointer, and what a power cut leaves.

use super::{NO_WRITE_POINTER, Readable, ZoneDescriptor, ZoneError, ZoneState, ZoneType};
use crate::geometry::{Geometry, Sector, ZoneId};

/// Checks that `sectors` at `sector` are whole blocks inside one zone, and says where.
///
/// # Errors
/// [`ZoneError::Misaligned`], [`ZoneError::OutOfRange`], [`ZoneError::Boundary`].
pub fn locate(geometry: &Geometry, sector: Sector, sectors: u64) -> Result<(ZoneId, u64), ZoneError> {
    let block_sectors = geometry.block_sectors();
    if sectors == 0 || !sectors.is_multiple_of(block_sectors) || !sector.0.is_multiple_of(block_sectors) {
        return Err(ZoneError::Misaligned { sector: sector.0, sectors, block_sectors });
    }
    let out = ZoneError::OutOfRange { sector: sector.0, sectors, device_sectors: geometry.sectors() };
    let (zone, offset) = geometry.locate(sector).ok_or(out.clone())?;
    if sectors > geometry.sectors() - sector.0 {
        return Err(out);
    }
    if offset + sectors > geometry.zone_sectors() {
        let boundary = geometry.zone_sectors();
        return Err(ZoneError::Boundary { zone: zone.0, offset, sectors, boundary });
    }
    Ok((zone, offset))
}

/// The written sectors of a zone after a write that changes nothing else: into an open zone, at its write pointer, and not
/// to its capacity. `None` for any other write, which the whole state machine has to look at. `offset` is `None` for an
/// append, which goes where the write pointer is. The caller has checked the range with [`locate`].
pub fn write_in_open_zone(
    geometry: &Geometry,
    zone: ZoneId,
    (state, written): (ZoneState, u64),
    offset: Option<u64>,
    sectors: u64,
) -> Option<u64> {
    if geometry.is_conventional(zone) {
        let end = offset?.checked_add(sectors)?;
        return (state == ZoneState::Empty).then(|| written.max(end));
    }
    let end = written.checked_add(sectors)?;
    let fits = state.is_open() && end < geometry.capacity_sectors(zone);
    (fits && offset.is_none_or(|offset| offset == written)).then_some(end)
}

/// What is left of a zone by a power cut that its state survived and its data only up to `kept` sectors. Power comes back to
/// closed zones (ZNS section 2.1.1.3); a zone that was full stays so, as if the controller had finished it.
pub fn after_power_cut(state: ZoneState, conventional: bool, kept: u64) -> (ZoneState, u64) {
    let state = match state {
        _ if conventional => state,
        open if open.is_active() && kept == 0 => ZoneState::Empty,
        open if open.is_active() => ZoneState::Closed,
        other => other,
    };
    (state, kept)
}

/// Makes states that were noted at different times keep the limits together: zones too many are closed, then finished, in
/// their order, as a controller may do on its own.
pub fn keep_limits(geometry: &Geometry, states: &mut [(ZoneState, u64)]) {
    let count = |states: &[(ZoneState, u64)], test: fn(ZoneState) -> bool| {
        states.iter().filter(|(state, _)| test(*state)).count() as u32
    };
    let (max_open, max_active) = (geometry.max_open(), geometry.max_active());
    let mut open = count(states, ZoneState::is_open);
    for (state, written) in states.iter_mut() {
        if max_open != 0 && open > max_open && state.is_open() {
            *state = if *written == 0 { ZoneState::Empty } else { ZoneState::Closed };
            open -= 1;
        }
    }
    let mut active = count(states, ZoneState::is_active);
    for (state, written) in states.iter_mut() {
        if max_active != 0 && active > max_active && *state == ZoneState::Closed {
            *state = if *written == 0 { ZoneState::Empty } else { ZoneState::Full };
            active -= 1;
        }
    }
}

/// What a read of `sectors` at `offset` finds in a zone in `state` whose first `written` sectors hold data.
///
/// # Errors
/// [`ZoneError::Offline`].
pub fn readable(
    zone: ZoneId,
    offset: u64,
    sectors: u64,
    state: ZoneState,
    written: u64,
) -> Result<Readable, ZoneError> {
    if state == ZoneState::Offline {
        return Err(ZoneError::Offline(zone.0));
    }
    Ok(Readable { zone, offset, written: written.saturating_sub(offset).min(sectors) })
}

/// A zone in `state` with `written` sectors of data, as a report shows it.
pub fn describe(geometry: &Geometry, zone: ZoneId, state: ZoneState, written: u64) -> ZoneDescriptor {
    let start = geometry.start(zone);
    let conventional = geometry.is_conventional(zone);
    let write_pointer = match state {
        _ if conventional => NO_WRITE_POINTER,
        ZoneState::ReadOnly | ZoneState::Offline => NO_WRITE_POINTER,
        // ZNS leaves it open; Linux, null_blk and fio take the zone's end.
        ZoneState::Full => Sector(start.0 + geometry.zone_sectors()),
        _ => Sector(start.0 + written),
    };
    ZoneDescriptor {
        zone,
        kind: if conventional { ZoneType::Conventional } else { ZoneType::SequentialWriteRequired },
        state,
        start,
        sectors: geometry.zone_sectors(),
        capacity_sectors: geometry.capacity_sectors(zone),
        write_pointer,
    }
}
