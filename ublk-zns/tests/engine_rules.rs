//! The device as a library does what the reference does: the short way of writes into open zones included.
#![allow(clippy::unwrap_used, missing_docs)]

mod reference;

use proptest::prelude::*;
use reference::{
    Cmd, No,
    drive::{Seen, Shape, ZONE, command, commands, compare, config, no, reference, shapes},
};
use ublk_zns::{Sector, ZnsDevice, ZnsError, ZoneDescriptor, ZoneId, ZoneState};

struct Device(ZnsDevice);

impl Seen for Device {
    fn resources(&self) -> (u32, u32) {
        self.0.resources()
    }
    fn describe(&self, zone: ZoneId) -> ZoneDescriptor {
        self.0.describe(zone).unwrap()
    }
    fn state(&self, zone: ZoneId) -> (ZoneState, u64) {
        self.0.media().load(zone).unwrap()
    }
    fn read(&self, start: Sector) -> Option<u64> {
        self.0.check_read(start, ZONE).ok().map(|found| found.written)
    }
}

fn run(device: &ZnsDevice, cmd: Cmd) -> Result<u64, No> {
    let id = |n: usize| ZoneId(n as u32);
    let data = |sectors: u64| vec![1; (sectors * 512) as usize];
    let done = match cmd {
        Cmd::Write { zone, at, len } => {
            device.write(Sector(zone as u64 * ZONE + at), &data(len)).map(|()| at)
        }
        Cmd::Append { zone, len } => device.append(id(zone), &data(len)).map(|at| at.0 % ZONE),
        Cmd::Open(n) => device.open_zone(id(n)).map(|()| 0),
        Cmd::Close(n) => device.close_zone(id(n)).map(|()| 0),
        Cmd::Finish(n) => device.finish_zone(id(n)).map(|()| 0),
        Cmd::Reset(n) => device.reset_zone(id(n)).map(|()| 0),
        Cmd::ResetAll => device.reset_all().map(|()| 0),
        Cmd::WearOut(n) => device.wear_out(id(n)).map(|()| 0),
        Cmd::Fail(n) => device.fail(id(n)).map(|()| 0),
    };
    done.map_err(|error| match error {
        ZnsError::Zone(error) => no(&error),
        other => panic!("{other}"),
    })
}

fn device(shape: &Shape) -> Device {
    Device(ZnsDevice::new(&config(shape)).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_commands_does_what_the_reference_does(shape in shapes(), dice in commands()) {
        let (device, mut reference) = (device(&shape), reference(&shape));
        for dice in dice {
            let cmd = command(&reference, dice);
            let expected = reference.run(cmd);
            prop_assert_eq!(run(&device.0, cmd), expected, "{:?}", cmd);
            compare(&device, &reference)?;
        }
    }
}
