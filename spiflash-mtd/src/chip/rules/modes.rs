//! Rules of reset, sleep, power, address modes and lines.

use super::{Bench, MS, Rule, US};
use crate::command::Lines;

pub(super) const RULES: &[Rule] = &[
    ("a reset needs its enable just before it", reset_needs_enable),
    ("a reset brings back the modes of power-up and takes its time", reset_modes),
    ("a loss of power brings back the modes of power-up", power_modes),
    ("a chip in deep power-down hears only its release", sleep),
    ("the extended address register is the upper address in the 3-byte mode", extended_address),
    ("the 4-byte mode has four address bytes", four_byte_mode),
    ("commands on four lines need QE", quad_enable),
    ("QPI has all phases on four lines", qpi),
    ("a register sets the dummy clocks", tuned_dummy),
    ("dummy clocks that are no whole bytes shift the data", skewed_dummy),
    ("a continuous read needs no opcode until its mode byte ends it", continuous),
];

fn reset_needs_enable(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.send(&[0x06]);
    rig.send(&[0x99]);
    assert_eq!(rig.status(), 0x02);
    rig.send(&[0x66]);
    rig.send(&[0x05]);
    rig.send(&[0x99]);
    assert_eq!(rig.status(), 0x02);
    rig.send(&[0x66]);
    rig.send(&[0x99]);
    assert_eq!(rig.status(), 0xFF);
    rig.wait(30 * US);
    assert_eq!(rig.status(), 0x00);
}

fn reset_modes(bench: Bench) {
    let mut rig = bench.chip("W25Q256JV");
    rig.send(&[0x06]);
    rig.send(&[0xB7]);
    rig.send(&[0x66]);
    rig.send(&[0x99]);
    rig.ready();
    assert_eq!(rig.status(), 0x00);
    assert_eq!(rig.read(&[0x15], 1)[0] & 1, 0);
    // In the middle of an erase: it stays half done.
    rig.write(&[0x02, 0, 0, 0, 0x00]);
    rig.send(&[0x06]);
    rig.send(&[0x20, 0, 0, 0]);
    rig.wait(10 * MS);
    rig.send(&[0x66]);
    rig.send(&[0x99]);
    rig.ready();
    assert_eq!(rig.chip.stats().interrupted, 1);
    assert!(!rig.busy());
}

fn power_modes(bench: Bench) {
    let mut rig = bench.chip("W25Q256JV");
    rig.send(&[0x06]);
    rig.send(&[0xB7]);
    rig.chip.set_power(false);
    rig.wait(MS);
    rig.chip.set_power(true);
    // Before tVSL nothing is heard.
    assert_eq!(rig.status(), 0xFF);
    rig.ready();
    assert_eq!(rig.status(), 0x00);
    assert_eq!(rig.read(&[0x15], 1)[0] & 1, 0);
}

fn sleep(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.send(&[0xB9]);
    assert_eq!(rig.read(&[0x9F], 3), [0xFF; 3]);
    assert_eq!(rig.status(), 0xFF);
    rig.send(&[0xAB]);
    assert_eq!(rig.read(&[0x9F], 3), [0xFF; 3]);
    rig.wait(3 * US);
    assert_eq!(rig.read(&[0x9F], 3), [0xEF, 0x40, 0x18]);
    assert_eq!(rig.read(&[0xAB, 0, 0, 0], 2), [0x17, 0x17]);
}

fn extended_address(bench: Bench) {
    let mut rig = bench.chip("W25Q256JV");
    rig.write(&[0x02, 0, 0, 5, 0x11]);
    rig.write(&[0xC5, 1]);
    assert_eq!(rig.read(&[0xC8], 1), [1]);
    assert_eq!(rig.byte(5), 0xFF);
    rig.write(&[0x02, 0, 0, 5, 0x22]);
    assert_eq!(rig.byte(5), 0x22);
    assert_eq!(rig.read(&[0x13, 1, 0, 0, 5], 1), [0x22]);
    assert_eq!(rig.read(&[0x13, 0, 0, 0, 5], 1), [0x11]);
}

fn four_byte_mode(bench: Bench) {
    let mut rig = bench.chip("W25Q256JV");
    rig.send(&[0xB7]);
    rig.write(&[0x02, 1, 0, 0, 5, 0x22]);
    assert_eq!(rig.read(&[0x03, 1, 0, 0, 5], 1), [0x22]);
    rig.send(&[0xE9]);
    rig.write(&[0xC5, 1]);
    assert_eq!(rig.byte(5), 0x22);
}

fn quad_enable(bench: Bench) {
    let mut rig = bench.chip("GD25Q128");
    rig.write(&[0x02, 0, 0, 0, 0xA5, 0x5A]);
    let quad = |rig: &mut super::Rig| rig.frame(&[(&[0x6B, 0, 0, 0, 0], Lines::Single)], Lines::Quad, 2);
    assert_eq!(quad(&mut rig), [0xFF, 0xFF]);
    rig.send(&[0x06]);
    rig.frame(&[(&[0x32, 0, 1, 0], Lines::Single), (&[0], Lines::Quad)], Lines::Single, 0);
    assert!(!rig.busy());
    rig.write(&[0x31, 0x02]);
    assert_eq!(quad(&mut rig), [0xA5, 0x5A]);
}

fn qpi(bench: Bench) {
    let mut rig = bench.chip("MX25L25645G");
    rig.write(&[0x02, 0, 0, 0, 0xA5, 0x5A]);
    rig.send(&[0x35]);
    assert_eq!(rig.status(), 0xFF, "one line is not heard in QPI");
    let status = rig.frame(&[(&[0x05], Lines::Quad)], Lines::Quad, 1);
    assert_eq!(status[0] & 1, 0);
    rig.frame(&[(&[0xF5], Lines::Quad)], Lines::Quad, 0);
    assert_eq!(rig.status() & 1, 0);
}

fn tuned_dummy(bench: Bench) {
    let mut rig = bench.chip("MT25QL256");
    rig.write(&[0x02, 0, 0, 0, 0xA5, 0x5A]);
    assert_eq!(rig.read(&[0x0B, 0, 0, 0, 0], 2), [0xA5, 0x5A]);
    // The volatile configuration register's high nibble: 16 clocks would be none; take 8 more bits by hand: 2 bytes less 1.
    rig.write(&[0x81, 0xAB]);
    // 10 clocks: a byte and two bits.
    let data = rig.read(&[0x0B, 0, 0, 0, 0], 3);
    assert_eq!(data[0] & 0x3F, 0xA5 >> 2);
    assert_eq!(data[1], 0xA5 << 6 | 0x5A >> 2);
}

fn skewed_dummy(bench: Bench) {
    let mut rig = bench.chip("MT25QL256");
    rig.write(&[0x02, 0, 0, 0, 0x81, 0x42, 0x24]);
    rig.write(&[0x81, 0x1B]);
    // One clock of the byte is dummy: the data is one bit late, on and on.
    let data = rig.read(&[0x0B, 0, 0, 0], 3);
    assert_eq!((data[0] & 0x7F, data[1], data[2]), (0x40, 0xA1, 0x12));
    // Cut into pieces it is the same.
    rig.chip.select();
    rig.chip.transfer(crate::Transfer::write(&[0x0B, 0, 0, 0]));
    let pieces = [0; 3].map(|_| {
        let mut byte = [0];
        rig.chip.transfer(crate::Transfer::read(&mut byte));
        byte[0]
    });
    rig.chip.deselect(0);
    assert_eq!(pieces.to_vec(), data);
}

fn continuous(bench: Bench) {
    let mut rig = bench.chip("S25FL256S");
    rig.write(&[0x02, 0, 0, 0, 0xA5, 0x5A]);
    // QE, in the configuration register.
    rig.write(&[0x01, 0x00, 0x02]);
    let first = rig.frame(&[(&[0xEB], Lines::Single), (&[0, 0, 0, 0xA0, 0, 0], Lines::Quad)], Lines::Quad, 1);
    let second = rig.frame(&[(&[0, 0, 1, 0x00, 0, 0], Lines::Quad)], Lines::Quad, 1);
    assert_eq!((first[0], second[0]), (0xA5, 0x5A));
    // The second mode byte ended it.
    assert_eq!(rig.read(&[0x9F], 2), [0x01, 0x02]);
}
