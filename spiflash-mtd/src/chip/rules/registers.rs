//! Rules of registers, security registers and identification.

use super::{Bench, MS, Rule};

pub(super) const RULES: &[Rule] = &[
    ("a register write takes its time and survives the power", register_write),
    ("a register write after 50h is volatile", volatile_write),
    ("a one-time bit stays", one_time),
    ("SRP0 and WP# low protect the registers", write_protect_pin),
    ("SRP1 locks the registers until power is lost", lock_down),
    ("security registers wrap, and are locked for good", security),
    ("IDs are what the part file says", ids),
];

fn register_write(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.send(&[0x06]);
    rig.send(&[0x01, 0x1C]);
    assert_eq!(rig.status(), 0x03);
    rig.wait(9 * MS);
    assert!(rig.busy());
    rig.wait(2 * MS);
    assert_eq!(rig.status(), 0x1C);
    rig.power_cycle();
    assert_eq!(rig.status(), 0x1C);
    // Two bytes write the second register too, one leaves it.
    rig.write(&[0x01, 0x00, 0x42]);
    assert_eq!((rig.status(), rig.read(&[0x35], 1)[0]), (0x00, 0x42));
    rig.write(&[0x01, 0x04]);
    assert_eq!((rig.status(), rig.read(&[0x35], 1)[0]), (0x04, 0x42));
}

fn volatile_write(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.send(&[0x50]);
    rig.send(&[0x01, 0x1C]);
    assert_eq!(rig.status(), 0x1C);
    rig.power_cycle();
    assert_eq!(rig.status(), 0x00);
}

fn one_time(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x31, 0x0A]);
    assert_eq!(rig.read(&[0x35], 1), [0x0A]);
    rig.write(&[0x31, 0x02]);
    assert_eq!(rig.read(&[0x35], 1), [0x0A]);
}

fn write_protect_pin(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x01, 0x80]);
    rig.write(&[0x01, 0x84]);
    assert_eq!(rig.status(), 0x84);
    // While QE is 1 the pin is IO2.
    rig.chip.set_write_protect(true);
    rig.write(&[0x01, 0x88]);
    assert_eq!(rig.status() & 0xFC, 0x88);
    rig.write(&[0x01, 0x84]);
    rig.write(&[0x31, 0x00]);
    rig.write(&[0x01, 0x80]);
    assert_eq!(rig.status() & 0xFC, 0x84);
    rig.chip.set_write_protect(false);
    rig.write(&[0x01, 0x00]);
    assert_eq!(rig.status() & 0xFC, 0x00);
}

fn lock_down(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x31, 0x03]);
    rig.write(&[0x01, 0x04]);
    assert_eq!(rig.status() & 0xFC, 0x00);
    // A reset does not help.
    rig.send(&[0x66]);
    rig.send(&[0x99]);
    rig.ready();
    rig.write(&[0x01, 0x04]);
    assert_eq!(rig.status() & 0xFC, 0x00);
    rig.power_cycle();
    assert_eq!(rig.read(&[0x35], 1), [0x02]);
    rig.write(&[0x01, 0x04]);
    assert_eq!(rig.status(), 0x04);
}

fn security(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x42, 0, 0x10, 0xFF, 0x11, 0x22]);
    assert_eq!(rig.read(&[0x48, 0, 0x10, 0xFF, 0], 2), [0x11, 0x22]);
    assert_eq!(rig.read(&[0x48, 0, 0x10, 0x00, 0], 1), [0x22]);
    assert_eq!(rig.read(&[0x48, 0, 0x20, 0x00, 0], 1), [0xFF]);
    rig.write(&[0x44, 0, 0x10, 0]);
    assert_eq!(rig.read(&[0x48, 0, 0x10, 0xFF, 0], 2), [0xFF, 0xFF]);
    rig.write(&[0x42, 0, 0x10, 0, 0x33]);
    rig.write(&[0x31, 0x0A]);
    rig.write(&[0x42, 0, 0x10, 0, 0x00]);
    rig.write(&[0x44, 0, 0x10, 0]);
    assert_eq!(rig.read(&[0x48, 0, 0x10, 0, 0], 1), [0x33]);
    rig.write(&[0x42, 0, 0x20, 0, 0x44]);
    assert_eq!(rig.read(&[0x48, 0, 0x20, 0, 0], 1), [0x44]);
}

fn ids(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    assert_eq!(rig.read(&[0x9F], 3), [0xEF, 0x40, 0x18]);
    assert_eq!(rig.read(&[0x90, 0, 0, 0], 4), [0xEF, 0x17, 0xEF, 0x17]);
    assert_eq!(rig.read(&[0x90, 0, 0, 1], 2), [0x17, 0xEF]);
    let unique = rig.read(&[0x4B, 0, 0, 0, 0], 8);
    assert_eq!(unique, rig.chip.unique_id());
    assert_ne!(unique, [0xFF; 8]);
    assert_eq!(rig.read(&[0x5A, 0, 0, 0, 0], 4), *b"SFDP");
}
