//! The zone rules: random commands against an independent reference, and each rule that other devices get wrong by name.
#![allow(clippy::unwrap_used, missing_docs)]

mod reference;

use proptest::prelude::*;
use reference::{
    Cmd, No,
    drive::{BLOCK, Seen, Shape, ZONE, command, commands, compare, config, no, reference, shapes, start},
};
use ublk_zns::{
    Geometry, Sector, ZoneDescriptor, ZoneError, ZoneId, ZoneState,
    zones::{Effect, NO_WRITE_POINTER, Zones},
};

fn device(shape: &Shape) -> Zones {
    Zones::new(Geometry::new(&config(shape)).unwrap())
}

impl Seen for Zones {
    fn resources(&self) -> (u32, u32) {
        (self.open_zones(), self.active_zones())
    }
    fn describe(&self, zone: ZoneId) -> ZoneDescriptor {
        Zones::describe(self, zone).unwrap()
    }
    fn state(&self, zone: ZoneId) -> (ZoneState, u64) {
        Zones::state(self, zone).unwrap()
    }
    fn read(&self, start: Sector) -> Option<u64> {
        match Zones::read(self, start, ZONE) {
            Ok(found) => Some(found.written),
            Err(ZoneError::Offline(_)) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

fn small(open: u32, active: u32) -> Zones {
    device(&Shape { zones: 8, conv: 1, capacity: 48, open, active })
}

fn run(zones: &mut Zones, cmd: Cmd) -> Result<u64, No> {
    let id = |n: usize| ZoneId(n as u32);
    let nothing = |effect: Effect| {
        let _ = effect;
        0
    };
    let done = match cmd {
        Cmd::Write { zone, at, len } => {
            zones.write(Sector(zone as u64 * ZONE + at), len).map(|effect| effect.sector.0 % ZONE)
        }
        Cmd::Append { zone, len } => {
            zones.append(Sector(zone as u64 * ZONE), len).map(|effect| effect.sector.0 % ZONE)
        }
        Cmd::Open(n) => zones.open(id(n)).map(nothing),
        Cmd::Close(n) => zones.close(id(n)).map(nothing),
        Cmd::Finish(n) => zones.finish(id(n)).map(nothing),
        Cmd::Reset(n) => zones.reset(id(n)).map(nothing),
        Cmd::ResetAll => {
            for id in (0..zones.geometry().zones()).map(ZoneId) {
                if zones.is_reset_by_all(id) {
                    zones.reset(id).unwrap();
                }
            }
            Ok(0)
        }
        Cmd::WearOut(n) => zones.wear_out(id(n)).map(nothing),
        Cmd::Fail(n) => zones.fail(id(n)).map(nothing),
    };
    done.map_err(|error| no(&error))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_commands_does_what_the_reference_does(shape in shapes(), dice in commands()) {
        let (mut zones, mut reference) = (device(&shape), reference(&shape));
        for dice in dice {
            let cmd = command(&reference, dice);
            let expected = reference.run(cmd);
            prop_assert_eq!(run(&mut zones, cmd), expected, "{:?}", cmd);
            compare(&zones, &reference)?;
            let (open, active) = (zones.open_zones(), zones.active_zones());
            prop_assert!(shape.open == 0 || open <= shape.open);
            prop_assert!(shape.active == 0 || active <= shape.active);
        }
    }

    #[test]
    fn states_that_a_device_reached_can_be_restored(shape in shapes(), dice in commands()) {
        let (mut zones, mut reference) = (device(&shape), reference(&shape));
        for dice in dice {
            let cmd = command(&reference, dice);
            let _ = reference.run(cmd);
            let _ = run(&mut zones, cmd);
        }
        let states = (0..shape.zones).map(|n| zones.state(ZoneId(n)).unwrap()).map(|(state, written)| (state, written, 0));
        let restored = Zones::restore(zones.geometry().clone(), states).unwrap();
        for n in 0..shape.zones {
            prop_assert_eq!(restored.describe(ZoneId(n)), zones.describe(ZoneId(n)));
        }
        prop_assert_eq!(restored.open_zones(), zones.open_zones());
        prop_assert_eq!(restored.active_zones(), zones.active_zones());
    }

    #[test]
    fn arbitrary_states_are_restored_or_refused_but_never_break_the_limits(
        states in prop::collection::vec((0usize..7, 0u64..80), 8),
    ) {
        let all = [
            ZoneState::Empty, ZoneState::ImplicitlyOpen, ZoneState::ExplicitlyOpen, ZoneState::Closed,
            ZoneState::Full, ZoneState::ReadOnly, ZoneState::Offline,
        ];
        let states = states.into_iter().map(|(state, written)| (all[state], written, 0));
        if let Ok(zones) = Zones::restore(small(2, 3).geometry().clone(), states) {
            prop_assert!(zones.open_zones() <= 2 && zones.active_zones() <= 3);
        }
    }
}

fn states(zones: &Zones) -> Vec<ZoneState> {
    (0..zones.geometry().zones()).map(|n| zones.state(ZoneId(n)).unwrap().0).collect()
}

#[test]
fn a_closed_zone_is_written_at_the_active_limit_by_closing_another() {
    // null_blk and rublk refuse this: they ask for an active resource that the zone already has.
    let mut zones = small(2, 3);
    for n in 1..=3 {
        zones.write(start(n), BLOCK).unwrap();
    }
    assert_eq!(
        states(&zones)[1..4],
        [ZoneState::Closed, ZoneState::ImplicitlyOpen, ZoneState::ImplicitlyOpen]
    );
    let effect = zones.write(Sector(start(1).0 + BLOCK), BLOCK).unwrap();
    assert_eq!(effect.closed, Some(ZoneId(2)));
    assert_eq!((zones.open_zones(), zones.active_zones()), (2, 3));
}

#[test]
fn a_command_that_fails_at_the_active_limit_closes_no_other_zone() {
    // QEMU closes one first and fails afterwards.
    let mut zones = small(2, 2);
    zones.write(start(1), BLOCK).unwrap();
    zones.write(start(2), BLOCK).unwrap();
    let before = states(&zones);
    assert_eq!(zones.write(start(3), BLOCK), Err(ZoneError::TooManyActive { zone: 3, limit: 2 }));
    assert_eq!(zones.open(ZoneId(3)), Err(ZoneError::TooManyActive { zone: 3, limit: 2 }));
    assert_eq!(states(&zones), before);
}

#[test]
fn explicitly_open_zones_are_never_closed_to_make_room() {
    let mut zones = small(2, 3);
    zones.open(ZoneId(1)).unwrap();
    zones.open(ZoneId(2)).unwrap();
    assert_eq!(zones.write(start(3), BLOCK), Err(ZoneError::TooManyOpen { zone: 3, limit: 2 }));
    assert_eq!(states(&zones)[3], ZoneState::Empty);
}

#[test]
fn an_explicit_open_closes_the_oldest_implicitly_open_zone() {
    // FEMU and zloop fail here.
    let mut zones = small(2, 4);
    zones.write(start(1), BLOCK).unwrap();
    zones.write(start(2), BLOCK).unwrap();
    assert_eq!(zones.open(ZoneId(3)).unwrap().closed, Some(ZoneId(1)));
}

#[test]
fn closing_a_zone_that_was_opened_and_not_written_keeps_it_active() {
    let mut zones = small(2, 3);
    zones.open(ZoneId(1)).unwrap();
    zones.close(ZoneId(1)).unwrap();
    assert_eq!((states(&zones)[1], zones.active_zones()), (ZoneState::Closed, 1));
}

#[test]
fn closing_an_empty_or_full_zone_is_refused() {
    // rublk never answers the first of these.
    let mut zones = small(2, 3);
    let refused = |zones: &mut Zones, state| {
        let expected = ZoneError::InvalidTransition { zone: 1, state, action: "be closed" };
        assert_eq!(zones.close(ZoneId(1)), Err(expected));
    };
    refused(&mut zones, ZoneState::Empty);
    zones.finish(ZoneId(1)).unwrap();
    refused(&mut zones, ZoneState::Full);
}

#[test]
fn a_write_that_fills_an_empty_zone_needs_resources_and_keeps_none() {
    let mut zones = device(&Shape { zones: 4, conv: 0, capacity: BLOCK, open: 1, active: 1 });
    zones.write(start(0), BLOCK).unwrap();
    assert_eq!((states(&zones)[0], zones.active_zones()), (ZoneState::Full, 0));
    zones.open(ZoneId(1)).unwrap();
    assert_eq!(zones.write(start(2), BLOCK), Err(ZoneError::TooManyActive { zone: 2, limit: 1 }));
}

#[test]
fn an_empty_zone_is_finished_at_the_active_limit() {
    // null_blk and rublk ask for resources here.
    let mut zones = small(1, 1);
    zones.open(ZoneId(1)).unwrap();
    zones.finish(ZoneId(2)).unwrap();
    assert_eq!(zones.describe(ZoneId(2)).unwrap().write_pointer, start(3));
    assert_eq!(zones.active_zones(), 1);
    assert_eq!(zones.read(start(2), ZONE).unwrap().written, 0);
}

#[test]
fn a_write_across_the_capacity_is_refused_whole_and_moves_nothing() {
    let mut zones = small(2, 3);
    zones.write(start(1), 40).unwrap();
    let expected = ZoneError::Boundary { zone: 1, offset: 40, sectors: 16, boundary: 48 };
    assert_eq!(zones.write(Sector(start(1).0 + 40), 16), Err(expected));
    assert_eq!(zones.state(ZoneId(1)).unwrap(), (ZoneState::ImplicitlyOpen, 40));
    assert_eq!(zones.write(Sector(start(1).0 + 48), 8).map_err(|_| ()), Err(()));
}

#[test]
fn an_append_names_the_zones_start_stays_below_the_limit_and_answers_its_place() {
    let mut zones = small(2, 3);
    zones.write(start(1), 16).unwrap();
    assert_eq!(zones.append(start(1), 24).unwrap().sector, Sector(start(1).0 + 16));
    assert!(matches!(zones.append(start(1), 16), Err(ZoneError::Boundary { .. })));
    let invalid = Err(ZoneError::InvalidAppend { zone: 1, max_sectors: 24 });
    assert_eq!(zones.append(Sector(start(1).0 + 8), 8), invalid);
    assert_eq!(zones.append(start(1), 32), invalid);
    assert!(matches!(zones.append(start(0), 8), Err(ZoneError::Conventional { .. })));
}

#[test]
fn worn_and_failed_zones_give_their_resources_back_and_take_no_commands() {
    let mut zones = small(2, 3);
    zones.write(start(1), BLOCK).unwrap();
    zones.open(ZoneId(2)).unwrap();
    zones.wear_out(ZoneId(1)).unwrap();
    zones.fail(ZoneId(2)).unwrap();
    assert_eq!((zones.open_zones(), zones.active_zones()), (0, 0));
    assert_eq!(zones.write(Sector(start(1).0 + BLOCK), BLOCK), Err(ZoneError::ReadOnly(1)));
    assert_eq!(zones.write(start(2), BLOCK), Err(ZoneError::Offline(2)));
    assert_eq!(zones.read(start(1), 16).unwrap().written, BLOCK);
    assert_eq!(zones.read(start(2), 16), Err(ZoneError::Offline(2)));
    for zone in [ZoneId(1), ZoneId(2)] {
        assert!(zones.reset(zone).is_err() && zones.finish(zone).is_err());
        assert!(zones.open(zone).is_err() && zones.close(zone).is_err());
        assert!(!zones.is_reset_by_all(zone));
        assert_eq!(zones.describe(zone).unwrap().write_pointer, NO_WRITE_POINTER);
    }
    assert!(zones.wear_out(ZoneId(2)).is_err());
}

#[test]
fn conventional_zones_are_written_anywhere_and_take_no_zone_commands() {
    let mut zones = small(2, 3);
    zones.write(Sector(40), 24).unwrap();
    zones.write(Sector(0), 8).unwrap();
    assert_eq!(zones.open_zones(), 0);
    let conventional = |action| Err(ZoneError::Conventional { zone: 0, action });
    assert_eq!(zones.reset(ZoneId(0)), conventional("be reset"));
    assert_eq!(zones.open(ZoneId(0)), conventional("be opened"));
    assert_eq!(zones.close(ZoneId(0)), conventional("be closed"));
    assert_eq!(zones.finish(ZoneId(0)), conventional("be finished"));
    assert!(matches!(zones.write(Sector(56), 16), Err(ZoneError::Boundary { .. })));
}

#[test]
fn addresses_outside_the_device_are_refused_without_overflow() {
    let mut zones = small(2, 3);
    let last = u64::MAX / BLOCK * BLOCK;
    assert!(matches!(zones.write(Sector(last), BLOCK), Err(ZoneError::OutOfRange { .. })));
    assert!(matches!(zones.read(Sector(0), last), Err(ZoneError::OutOfRange { .. })));
    assert!(matches!(zones.write(Sector(1), BLOCK), Err(ZoneError::Misaligned { .. })));
    assert_eq!(zones.reset(ZoneId(99)), Err(ZoneError::NoZone { zone: 99, zones: 8 }));
    assert_eq!(zones.describe(ZoneId(u32::MAX)), Err(ZoneError::NoZone { zone: u32::MAX, zones: 8 }));
}
