//! The chip's rules by name, each through frames on the bus as a host sends them.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use rig::Rig;

const MS: u64 = 1_000_000;
const US: u64 = 1_000;

#[test]
fn a_program_needs_write_enable_and_takes_its_time() {
    let mut rig = Rig::new("W25Q128JV");
    rig.send(&[0x02, 0, 0, 0, 0x5A]);
    assert!(!rig.busy());
    rig.send(&[0x06]);
    assert_eq!(rig.read(&[0x05], 1), [0x02]);
    rig.send(&[0x02, 0, 0, 0, 0x5A]);
    assert_eq!(rig.read(&[0x05], 1), [0x03]);
    // Nothing else is heard.
    assert_eq!(rig.read(&[0x03, 0, 0, 0], 2), [0xFF, 0xFF]);
    rig.wait_ns(50 * US);
    assert_eq!(rig.read(&[0x05], 1), [0x00]);
    assert_eq!(rig.read(&[0x03, 0, 0, 0], 2), [0x5A, 0xFF]);
}

#[test]
fn a_program_wraps_within_its_page_and_the_last_bytes_stay() {
    let mut rig = Rig::new("W25Q128JV");
    let mut frame = vec![0x02, 0, 1, 0xFE];
    frame.extend((0u16..258).map(|n| n as u8));
    rig.write(&frame);
    // 258 bytes from FEh: the last two of them replace the first two.
    assert_eq!(rig.read(&[0x03, 0, 1, 0xFC], 4), [254, 255, 0, 1]);
    assert_eq!(rig.read(&[0x03, 0, 1, 0], 3), [2, 3, 4]);
    assert_eq!(rig.read(&[0x03, 0, 2, 0], 2), [0xFF, 0xFF]);
}

#[test]
fn a_program_only_clears_bits_and_an_erase_sets_them_again() {
    let mut rig = Rig::new("W25Q128JV");
    rig.write(&[0x02, 0, 0, 0, 0xF0]);
    rig.write(&[0x02, 0, 0, 0, 0x3C]);
    assert_eq!(rig.read(&[0x03, 0, 0, 0], 1), [0x30]);
    rig.write(&[0x20, 0, 0x0F, 0xFF]);
    assert_eq!(rig.read(&[0x03, 0, 0, 0], 1), [0xFF]);
}

#[test]
fn a_frame_cut_short_or_too_long_does_nothing() {
    let mut rig = Rig::new("W25Q128JV");
    rig.write(&[0x02, 0, 0, 0, 0x00]);
    for frame in [&[0x20, 0, 0][..], &[0x20, 0, 0, 0, 0], &[0xC7, 0], &[0x02, 0, 0, 1]] {
        rig.send(&[0x06]);
        rig.send(frame);
        assert_eq!(rig.read(&[0x05], 1), [0x02], "{frame:02X?}");
    }
    assert_eq!(rig.read(&[0x03, 0, 0, 0], 1), [0x00]);
}

#[test]
fn an_erase_of_a_protected_block_does_nothing() {
    let mut rig = Rig::new("W25Q128JV");
    rig.write(&[0x02, 0, 0, 0, 0x00]);
    // TB = 1, BP = 1: the lowest 256 KiB.
    rig.write(&[0x01, 0x24]);
    for frame in [&[0x20, 0, 0, 0][..], &[0xD8, 3, 0, 0], &[0xC7], &[0x02, 0, 0, 0, 0]] {
        rig.send(&[0x06]);
        rig.send(frame);
        assert!(!rig.busy(), "{frame:02X?}");
    }
    rig.send(&[0xD8, 4, 0, 0]);
    assert!(rig.busy());
}

#[test]
fn a_suspended_erase_lets_other_blocks_be_read_and_goes_on() {
    let mut rig = Rig::new("W25Q128JV");
    rig.write(&[0x02, 1, 0, 0, 0x11]);
    rig.write(&[0x02, 0, 0, 0, 0x22]);
    rig.send(&[0x06]);
    rig.send(&[0x20, 0, 0, 0]);
    rig.wait_ns(10 * MS);
    rig.send(&[0x75]);
    assert!(rig.busy());
    rig.wait_ns(20 * US);
    assert_eq!(rig.read(&[0x35], 1)[0] & 0x80, 0x80);
    assert!(!rig.busy());
    assert_eq!(rig.read(&[0x03, 1, 0, 0], 1), [0x11]);
    // A program elsewhere is taken, an erase and one in the same sector are not.
    rig.send(&[0x06]);
    rig.send(&[0x20, 2, 0, 0]);
    rig.send(&[0x02, 0, 1, 0, 0]);
    assert!(!rig.busy());
    rig.send(&[0x02, 1, 0, 1, 0x33]);
    assert!(rig.busy());
    rig.wait_ns(MS);
    rig.send(&[0x7A]);
    rig.wait_ns(34 * MS);
    assert!(rig.busy());
    rig.wait_ns(2 * MS);
    assert!(!rig.busy());
    assert_eq!(rig.read(&[0x03, 0, 0, 0], 1), [0xFF]);
    assert_eq!(rig.read(&[0x03, 1, 0, 0], 2), [0x11, 0x33]);
}

#[test]
fn a_reset_needs_its_enable_just_before_it() {
    let mut rig = Rig::new("W25Q128JV");
    rig.send(&[0x06]);
    rig.send(&[0x66]);
    rig.send(&[0x05]);
    rig.send(&[0x99]);
    assert_eq!(rig.read(&[0x05], 1), [0x02]);
    rig.send(&[0x66]);
    rig.send(&[0x99]);
    assert_eq!(rig.read(&[0x05], 1), [0xFF]);
    rig.wait_ns(30 * US);
    assert_eq!(rig.read(&[0x05], 1), [0x00]);
}

#[test]
fn a_chip_in_deep_power_down_hears_only_its_release() {
    let mut rig = Rig::new("W25Q128JV");
    rig.send(&[0xB9]);
    assert_eq!(rig.read(&[0x9F], 3), [0xFF; 3]);
    rig.send(&[0xAB]);
    rig.wait_ns(3 * US);
    assert_eq!(rig.read(&[0x9F], 3), [0xEF, 0x40, 0x18]);
}
