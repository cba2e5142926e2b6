//! Rules of reads, programs, erases and what protects from them.

use super::{Bench, MS, Rule, US};
use crate::command::Lines;

pub(super) const RULES: &[Rule] = &[
    ("a program needs write enable and takes its time", program_needs_wel),
    ("a program wraps within its page and the last bytes stay", program_wraps),
    ("a program only clears bits and an erase sets them", program_clears),
    ("a frame cut short or too long does nothing", frames_are_whole),
    ("an erase takes its whole sector and no more", erase_is_aligned),
    ("protected blocks are neither programmed nor erased", protection_holds),
    ("CMP turns the protected range over", complement),
    ("a busy chip answers status reads only", busy_hears_status),
    ("a read goes on at 0 after the last byte", read_wraps),
    ("reads with wrap stay in their burst", burst_wraps),
    ("a suspended erase lets other blocks be read and programmed and goes on", suspend),
    ("a suspend takes its time and comes too late for the idle", suspend_time),
    ("an erase that is suspended at once makes no progress", suspend_progress),
    ("power that goes in a program leaves part of it", power_in_program),
    ("power that goes in an erase leaves its half states", power_in_erase),
    ("a cut at a given nanosecond is at that nanosecond", cut_at),
    ("AAI programs word after word", aai),
    ("an MRAM is written in place, over the end of any page", mram),
    ("a NAND page goes through the buffer", nand),
    ("locked blocks are not changed", single_locks),
    ("a chip erase does nothing while any block is protected", chip_erase),
];

fn program_needs_wel(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.send(&[0x02, 0, 0, 0, 0x5A]);
    assert!(!rig.busy());
    rig.send(&[0x06]);
    assert_eq!(rig.status(), 0x02);
    rig.send(&[0x02, 0, 0, 0, 0x5A]);
    assert_eq!(rig.status(), 0x03);
    rig.wait(30 * US);
    assert_eq!(rig.status(), 0x00);
    assert_eq!(rig.read(&[0x03, 0, 0, 0], 2), [0x5A, 0xFF]);
    // A page takes tPP, whatever the bytes would add up to.
    rig.send(&[0x06]);
    rig.send(&[&[0x02, 0, 1, 0][..], &[0; 256]].concat());
    rig.wait(390 * US);
    assert!(rig.busy());
    rig.wait(15 * US);
    assert!(!rig.busy());
}

fn program_wraps(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    let data: Vec<u8> = (0u16..258).map(|n| n as u8).collect();
    rig.write(&[&[0x02, 0, 1, 0xFE][..], &data].concat());
    // 258 bytes from FEh on: the last two of them replace the first two.
    assert_eq!(rig.read(&[0x03, 0, 1, 0xFC], 4), [254, 255, 0, 1]);
    assert_eq!(rig.read(&[0x03, 0, 1, 0], 3), [2, 3, 4]);
    assert_eq!(rig.read(&[0x03, 0, 2, 0], 2), [0xFF, 0xFF]);
}

fn program_clears(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x02, 0, 0, 0, 0xF0]);
    rig.write(&[0x02, 0, 0, 0, 0x3C]);
    assert_eq!(rig.byte(0), 0x30);
    rig.write(&[0x20, 0, 0x0F, 0xFF]);
    assert_eq!(rig.byte(0), 0xFF);
}

fn frames_are_whole(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x02, 0, 0, 0, 0x00]);
    for frame in [&[0x20, 0, 0][..], &[0x20, 0, 0, 0, 0], &[0xC7, 0], &[0x02, 0, 0, 1]] {
        rig.send(&[0x06]);
        rig.send(frame);
        assert_eq!(rig.status(), 0x02, "{frame:02X?}");
    }
    assert_eq!(rig.byte(0), 0x00);
}

fn erase_is_aligned(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    let at = [0x0F_FF, 0x10_00, 0x1F_FF, 0x20_00, 0xFF_FF, 0x01_00_00];
    for address in at {
        let [_, a, b, c] = u32::to_be_bytes(address);
        rig.write(&[0x02, a, b, c, 0]);
    }
    rig.write(&[0x20, 0, 0x1A, 0xBC]);
    assert_eq!(at.map(|address| rig.byte(address)), [0, 0xFF, 0xFF, 0, 0, 0]);
    rig.write(&[0x52, 0, 0x12, 0x34]);
    assert_eq!(at.map(|address| rig.byte(address)), [0xFF, 0xFF, 0xFF, 0xFF, 0, 0]);
    rig.write(&[0xD8, 0, 0x12, 0x34]);
    assert_eq!(at.map(|address| rig.byte(address)), [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0]);
}

fn protection_holds(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x02, 0, 0, 0, 0x00]);
    // TB = 1, BP = 1: the lowest 256 KiB.
    rig.write(&[0x01, 0x24]);
    for frame in [&[0x20, 0, 0, 0][..], &[0x52, 3, 0xFF, 0], &[0xD8, 3, 0, 0], &[0x02, 3, 0xFF, 0xFF, 0]] {
        rig.send(&[0x06]);
        rig.send(frame);
        assert!(!rig.busy(), "{frame:02X?}");
    }
    rig.send(&[0xD8, 4, 0, 0]);
    assert!(rig.busy());
}

fn chip_erase(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x01, 0x04]);
    rig.send(&[0x06]);
    rig.send(&[0xC7]);
    assert!(!rig.busy());
    rig.write(&[0x01, 0x00]);
    rig.write(&[0x02, 0x12, 0, 0, 0]);
    rig.send(&[0x06]);
    rig.send(&[0xC7]);
    rig.wait(39_000 * MS);
    assert!(rig.busy());
    rig.wait(1_001 * MS);
    assert!(!rig.busy());
    assert_eq!(rig.byte(0x12_0000), 0xFF);
}

fn complement(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    // BP = 1: the top 256 KiB; with CMP: all but it.
    rig.write(&[0x01, 0x04, 0x42]);
    assert_eq!(rig.chip.protected_range(), 0..0xFC_0000);
    rig.write(&[0x02, 0, 0, 0, 0x00]);
    assert_eq!(rig.byte(0), 0xFF);
    rig.write(&[0x02, 0xFC, 0, 0, 0x00]);
    assert_eq!(rig.byte(0xFC_0000), 0x00);
}

fn busy_hears_status(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x02, 0, 0x10, 0, 0x77]);
    rig.send(&[0x06]);
    rig.send(&[0x20, 0, 0, 0]);
    assert_eq!(rig.byte(0x1000), 0xFF);
    assert_eq!(rig.read(&[0x9F], 3), [0xFF; 3]);
    assert_eq!(rig.read(&[0x05], 2), [0x03, 0x03]);
    assert_eq!(rig.read(&[0x35], 1), [0x02]);
    rig.send(&[0x02, 0, 0x10, 0, 0x00]);
    rig.ready();
    assert_eq!(rig.byte(0x1000), 0x77);
}

fn read_wraps(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x02, 0, 0, 0, 0x11, 0x22]);
    rig.write(&[0x02, 0xFF, 0xFF, 0xFF, 0x33]);
    assert_eq!(rig.read(&[0x03, 0xFF, 0xFF, 0xFE], 4), [0xFF, 0x33, 0x11, 0x22]);
}

fn burst_wraps(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[&[0x02, 0, 0, 0][..], &(0..32).collect::<Vec<u8>>()].concat());
    // W6-5 = 00, W4 = 0: 8 bytes.
    rig.frame(&[(&[0x77], Lines::Single), (&[0, 0, 0, 0x00], Lines::Quad)], Lines::Single, 0);
    let quad = |rig: &mut super::Rig| {
        rig.frame(&[(&[0xEB], Lines::Single), (&[0, 0, 13, 0xFF, 0, 0], Lines::Quad)], Lines::Quad, 10)
    };
    assert_eq!(quad(&mut rig), [13, 14, 15, 8, 9, 10, 11, 12, 13, 14]);
    // Reads on one line do not wrap.
    assert_eq!(rig.read(&[0x03, 0, 0, 13], 5), [13, 14, 15, 16, 17]);
    rig.frame(&[(&[0x77], Lines::Single), (&[0, 0, 0, 0x10], Lines::Quad)], Lines::Single, 0);
    assert_eq!(quad(&mut rig)[..5], [13, 14, 15, 16, 17]);
}

fn suspend(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x02, 1, 0, 0, 0x11]);
    rig.write(&[0x02, 0, 0, 0, 0x22]);
    rig.send(&[0x06]);
    rig.send(&[0x20, 0, 0, 0]);
    rig.wait(10 * MS);
    rig.send(&[0x75]);
    assert!(rig.busy());
    rig.wait(20 * US);
    assert_eq!(rig.read(&[0x35], 1)[0] & 0x80, 0x80);
    assert!(!rig.busy());
    assert_eq!(rig.byte(0x01_0000), 0x11);
    rig.send(&[0x06]);
    rig.send(&[0x20, 2, 0, 0]);
    rig.send(&[0x02, 0, 0, 1, 0]);
    assert!(!rig.busy());
    rig.send(&[0x02, 1, 0, 1, 0x33]);
    assert!(rig.busy());
    rig.wait(MS);
    rig.send(&[0x7A]);
    rig.wait(34 * MS);
    assert!(rig.busy());
    rig.wait(2 * MS);
    assert!(!rig.busy());
    assert_eq!(rig.read(&[0x03, 0, 0, 0], 2), [0xFF, 0xFF]);
    assert_eq!(rig.read(&[0x03, 1, 0, 0], 2), [0x11, 0x33]);
    assert_eq!(rig.read(&[0x35], 1)[0] & 0x80, 0);
}

fn suspend_time(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.send(&[0x75]);
    assert_eq!(rig.read(&[0x35], 1)[0] & 0x80, 0);
    // A register write cannot be suspended.
    rig.send(&[0x06]);
    rig.send(&[0x01, 0x00]);
    rig.wait(MS);
    rig.send(&[0x75]);
    rig.wait(MS);
    assert!(rig.busy());
    rig.ready();
    // A program can.
    rig.send(&[0x06]);
    rig.send(&[&[0x02, 0, 0, 0][..], &[0; 256]].concat());
    rig.wait(100 * US);
    rig.send(&[0x75]);
    rig.wait(10 * US);
    assert!(rig.busy());
    rig.wait(11 * US);
    assert!(!rig.busy());
    rig.send(&[0x7A]);
    assert!(rig.busy());
    rig.ready();
    assert_eq!(rig.byte(255), 0);
}

fn suspend_progress(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x02, 0, 0, 0, 0x22]);
    rig.send(&[0x06]);
    rig.send(&[0x20, 0, 0, 0]);
    // Resumed for less than the interval, again and again, an erase never ends.
    for _ in 0..20_000 {
        rig.wait(15 * US);
        rig.send(&[0x75]);
        rig.wait(20 * US);
        rig.send(&[0x7A]);
    }
    assert!(rig.busy());
    rig.wait(46 * MS);
    assert!(!rig.busy());
}

fn power_in_program(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.send(&[0x06]);
    rig.send(&[&[0x02, 0, 0, 0][..], &[0; 256]].concat());
    rig.wait(200 * US);
    rig.power_cycle();
    let page = rig.read(&[0x03, 0, 0, 0], 256);
    let zeros: u32 = page.iter().map(|byte| byte.count_zeros()).sum();
    assert!((100..1948).contains(&zeros), "{zeros} of 2048 bits are programmed");
}

fn power_in_erase(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x02, 0, 0, 0, 0x0F]);
    rig.send(&[0x06]);
    rig.send(&[0x20, 0, 0, 0]);
    rig.wait(15 * MS);
    rig.power_cycle();
    let sector = rig.read(&[0x03, 0, 0, 0], 4096);
    let zeros: u32 = sector.iter().map(|byte| byte.count_zeros()).sum();
    assert!((100..32_700).contains(&zeros), "{zeros} of 32768 bits read 0");
}

fn cut_at(bench: Bench) {
    let at_end = |cut_ns: u64| {
        let mut rig = bench.chip("W25Q128JV");
        rig.send(&[0x06]);
        rig.send(&[0x02, 0, 0, 0, 0x00]);
        let end_ns = rig.chip.busy_until_ns().unwrap_or(0);
        rig.chip.set_cut_at_ns(Some(end_ns + cut_ns - 10));
        rig.wait(MS);
        assert_eq!(rig.chip.state(), crate::states::State::Off);
        assert_eq!(rig.read(&[0x05], 1), [0xFF]);
        rig.power_cycle();
        (rig.byte(0), rig.chip.stats().interrupted)
    };
    assert_eq!(at_end(9).1, 1);
    assert_eq!(at_end(11), (0x00, 0));
}

fn aai(bench: Bench) {
    let mut rig = bench.chip("SST25VF016B");
    rig.send(&[0x50]);
    rig.send(&[0x01, 0x00]);
    rig.send(&[0x06]);
    rig.send(&[0xAD, 0, 0, 0x10, 1, 2]);
    assert_eq!(rig.status() & 0x43, 0x43);
    rig.ready();
    // Nothing else may come in between.
    assert_eq!(rig.byte(0x10), 0xFF);
    for pair in [[3, 4], [5, 6]] {
        rig.send(&[0xAD, pair[0], pair[1]]);
        rig.ready();
    }
    rig.send(&[0x04]);
    assert_eq!(rig.status() & 0x43, 0);
    assert_eq!(rig.read(&[0x03, 0, 0, 0x0F], 8), [0xFF, 1, 2, 3, 4, 5, 6, 0xFF]);
}

fn mram(bench: Bench) {
    let mut rig = bench.chip("MR25H40");
    rig.send(&[0x02, 0, 0, 0, 0x00]);
    assert_eq!(rig.byte(0), 0xFF);
    rig.send(&[0x06]);
    rig.send(&[&[0x02, 0, 0, 0xF0][..], &[0x00; 400]].concat());
    rig.send(&[0x06]);
    rig.send(&[0x02, 0, 0, 0xF1, 0xA5]);
    assert_eq!(rig.read(&[0x03, 0, 0, 0xEF], 4), [0xFF, 0, 0xA5, 0]);
    assert_eq!(rig.read(&[0x03, 0, 2, 0x7F], 2), [0x00, 0xFF]);
    rig.power_cycle();
    assert_eq!(rig.byte(0xF1), 0xA5);
}

fn nand(bench: Bench) {
    let mut rig = bench.chip("W25N01GV");
    let feature = |rig: &mut super::Rig, address: u8| rig.read(&[0x0F, address], 1)[0];
    assert_eq!(rig.read(&[0x9F, 0], 3), [0xEF, 0xAA, 0x21]);
    rig.send(&[0x1F, 0xA0, 0x00]);
    rig.send(&[0x06]);
    rig.send(&[0x02, 0, 4, 0xDE, 0xAD]);
    rig.send(&[0x84, 8, 0, 0x55]);
    rig.send(&[0x10, 0, 0, 0x40]);
    assert_eq!(feature(&mut rig, 0xC0) & 1, 1);
    rig.ready();
    assert_eq!(feature(&mut rig, 0xC0) & 0x0B, 0);
    rig.send(&[0x13, 0, 0, 0x41]);
    rig.ready();
    assert_eq!(rig.read(&[0x03, 0, 4, 0], 2), [0xFF, 0xFF]);
    rig.send(&[0x13, 0, 0, 0x40]);
    assert_eq!(rig.read(&[0x03, 0, 4, 0], 2), [0xFF, 0xFF]);
    rig.ready();
    assert_eq!(rig.read(&[0x03, 0, 4, 0], 3), [0xDE, 0xAD, 0xFF]);
    assert_eq!(rig.read(&[0x03, 8, 0, 0], 1), [0x55]);
    rig.send(&[0x06]);
    rig.send(&[0xD8, 0, 0, 0x40]);
    rig.ready();
    rig.send(&[0x13, 0, 0, 0x40]);
    rig.ready();
    assert_eq!(rig.read(&[0x03, 0, 4, 0], 2), [0xFF, 0xFF]);
}

fn single_locks(bench: Bench) {
    let mut rig = bench.chip("W25Q128JV");
    rig.write(&[0x11, 0x64]);
    rig.write(&[0x02, 0, 0, 0, 0x00]);
    assert_eq!(rig.byte(0), 0xFF);
    assert_eq!(rig.read(&[0x3D, 0, 0, 0], 1), [0x01]);
    rig.write(&[0x39, 0, 0, 0]);
    assert_eq!(rig.read(&[0x3D, 0, 0, 0], 1), [0x00]);
    rig.write(&[0x02, 0, 0, 0, 0x00]);
    assert_eq!(rig.byte(0), 0x00);
    rig.write(&[0x02, 0, 0x10, 0, 0x00]);
    assert_eq!(rig.byte(0x1000), 0xFF);
    rig.write(&[0x98]);
    rig.write(&[0x02, 0, 0x10, 0, 0x00]);
    assert_eq!(rig.byte(0x1000), 0x00);
}
