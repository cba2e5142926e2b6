//! Messages of /dev/cuse, as bytes and as ioctls of a spidev.
//!
//! Input: a byte of switches, then messages: each a length byte and that many bytes. A switch makes ioctls of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spiflash_mtd::fronts::cuse::{
    CuseDevice, Errno, Ioctl, IoctlReply, handle,
    message::{TRANSFER_BYTES, ioctls},
    spidev::{Options, Spidev},
    wire::{MAX_REGION_BYTES, MAX_REGIONS, answer_init, parse},
};
use spiflash_mtd::{Chip, Setup, SimBus, part};
use std::sync::{Arc, Mutex};

fuzz_target!(|input: &[u8]| {
    let Some((&switches, mut rest)) = input.split_first() else { return };
    let Some(part) = part::find("W25Q128JV") else { return };
    let Ok(chip) = Chip::new(Arc::new(part.clone()), &Setup::default()) else { return };
    let bus = Arc::new(Mutex::new(SimBus::of(chip)));
    let Ok(mut spidev) = Spidev::new(bus, Options::default()) else { return };
    let mut answer = Vec::new();
    while let Some((&len, after)) = rest.split_first() {
        let (piece, after) = after.split_at(usize::from(len).min(after.len()));
        rest = after;
        if switches & 1 != 0 {
            messages(&mut spidev, piece, switches);
            continue;
        }
        let mut message = piece.to_vec();
        if switches & 2 != 0 && message.len() >= 4 {
            let len = message.len() as u32;
            message[..4].copy_from_slice(&len.to_ne_bytes());
        }
        let _ = parse(&message);
        let _ = answer_init(&message, "spidev0.0", &mut answer);
        if handle(&mut spidev, &message, &mut answer).is_ok() {
            assert!(answer.len() >= 16);
        }
    }
});

/// One SPI_IOC_MESSAGE through all its rounds, with an array of these bytes and data of zeros.
fn messages(spidev: &mut Spidev, array: &[u8], switches: u8) {
    let transfers = array.len() as u32 / TRANSFER_BYTES;
    let mode = u32::from(switches & 0xFC) << 6;
    let _ = spidev.ioctl(Ioctl {
        handle: 0,
        cmd: ioctls::WR_MODE32,
        arg: 1,
        input: &mode.to_ne_bytes(),
        output_bytes: 0,
    });
    let array = &array[..(transfers * TRANSFER_BYTES) as usize];
    let (mut input, mut output_bytes) = (array.to_vec(), 0);
    for round in 0.. {
        assert!(round < 3, "an ioctl ends");
        let cmd = ioctls::message(transfers);
        let result = spidev.ioctl(Ioctl { handle: 0, cmd, arg: 0x1000, input: &input, output_bytes });
        match result {
            Ok(IoctlReply::Retry { input: from, output }) => {
                let sum = |regions: &[_]| regions.iter().map(|region: &spiflash_mtd::fronts::cuse::Region| region.len).sum::<u64>();
                assert!(from.len() + output.len() <= MAX_REGIONS);
                assert!(sum(&from) <= MAX_REGION_BYTES && sum(&output) <= MAX_REGION_BYTES);
                input.resize(sum(&from) as usize, 0);
                output_bytes = sum(&output) as u32;
            }
            Ok(IoctlReply::Done { output, result }) => {
                assert!(result >= 0 && output.len() == output_bytes as usize);
                return;
            }
            Err(errno) => {
                assert!(matches!(errno, Errno::EINVAL | Errno::EMSGSIZE), "{errno}");
                return;
            }
        }
    }
}
