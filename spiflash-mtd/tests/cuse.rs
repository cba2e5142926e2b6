//! CUSE: the kernel's messages byte by byte, and the spidev behind them, without a kernel.
#![allow(clippy::unwrap_used)]

mod toy;

use proptest::prelude::*;
use spiflash_mtd::{
    Lines,
    fronts::cuse::{
        CuseDevice, Errno, Handled, Ioctl, IoctlReply, Region, handle,
        message::{Plan, RawTransfer, ioctls, mode, set_up_mode},
        spidev::{DEFAULT_BUFFER_BYTES, MAX_BUFFER_BYTES, Options, Spidev},
        wire::{Fault, MAX_REGION_BYTES, MAX_REGIONS, Message, Reply, Request, answer_init, parse},
    },
};
use std::sync::{Arc, Mutex};
use toy::{MOST_HZ, Seen, ToyBus};

/// A message as the kernel writes it: `struct fuse_in_header` and what follows.
fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = (40 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(opcode.to_ne_bytes());
    bytes.extend(77u64.to_ne_bytes());
    bytes.extend([0; 24]);
    bytes.extend(body);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// `struct fuse_ioctl_in` and its data.
fn ioctl_message(cmd: u32, arg: u64, input: &[u8], output_bytes: u32) -> Vec<u8> {
    let body =
        [longs(&[5]), words(&[2, cmd]), longs(&[arg]), words(&[input.len() as u32, output_bytes])].concat();
    message(39, &[&body, input].concat())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The errno and the body of an answer, whose header must be right.
fn unpack(answer: &[u8]) -> (i32, &[u8]) {
    assert_eq!((word(answer, 0) as usize, long(answer, 8)), (answer.len(), 77));
    (word(answer, 4) as i32, &answer[16..])
}

#[test]
fn the_greeting_is_answered_with_the_name_of_the_device() {
    let mut answer = Vec::new();
    answer_init(&message(4096, &words(&[7, 45, 0, 1])), "spidev3.1", &mut answer).unwrap();
    let (error, body) = unpack(&answer);
    assert_eq!(error, 0);
    // Major, minor (ours at most), unused, unrestricted, most to read, most to write, device number by the kernel.
    assert_eq!(body[..32], words(&[7, 38, 0, 1, 128 << 10, 128 << 10, 0, 0]));
    assert_eq!(body[32..72], [0; 40]);
    assert_eq!(&body[72..], b"DEVNAME=spidev3.1\0");
    answer_init(&message(4096, &words(&[7, 31, 0, 1])), "x", &mut answer).unwrap();
    assert_eq!(word(&answer, 20), 31, "the kernel's minor version when it is the older");
}

#[test]
fn a_kernel_that_cannot_do_it_is_told_apart() {
    let greet = |body: &[u32]| answer_init(&message(4096, &words(body)), "x", &mut Vec::new());
    assert_eq!(greet(&[7, 15, 0, 1]), Err(Fault::Version { major: 7, minor: 15 }));
    assert_eq!(greet(&[8, 45, 0, 1]), Err(Fault::Version { major: 8, minor: 45 }));
    assert_eq!(greet(&[7, 45, 0, 0]), Err(Fault::Restricted));
    let other = answer_init(&message(14, &words(&[0, 0])), "x", &mut Vec::new());
    assert_eq!(other, Err(Fault::NotInit { opcode: 14 }));
}

#[test]
fn messages_are_read_as_the_kernel_lays_them_out() {
    let request =
        |opcode, body: &[u8]| parse(&message(opcode, body)).map(|message| format!("{:?}", message.request));
    let ok = |opcode, body: &[u8]| request(opcode, body).unwrap();
    assert_eq!(ok(14, &words(&[2, 0])), "Open { flags: 2 }");
    let read = [longs(&[9, 4096]), words(&[512, 0]), longs(&[0]), words(&[0, 0])].concat();
    assert_eq!(ok(15, &read), "Read { handle: 9, size_bytes: 512 }");
    let write = [longs(&[9, 0]), words(&[3, 0]), longs(&[0]), words(&[0, 0]), vec![1, 2, 3]].concat();
    assert_eq!(ok(16, &write), "Write { handle: 9, data: [1, 2, 3] }");
    assert_eq!(ok(18, &longs(&[9, 0, 0])), "Release { handle: 9 }");
    assert_eq!(ok(36, &longs(&[1])), "Interrupt");
    assert_eq!(ok(40, &longs(&[9, 0, 0])), "Poll");
    assert_eq!(ok(99, &[]), "Unknown { opcode: 99 }");
    let bytes = ioctl_message(0x4B01, 0x1000, &[7, 8], 6);
    let ioctl = Ioctl { handle: 5, cmd: 0x4B01, arg: 0x1000, input: &[7, 8], output_bytes: 6 };
    assert_eq!(parse(&bytes), Ok(Message { unique: 77, request: Request::Ioctl(ioctl) }));
}

#[test]
fn a_message_cut_anywhere_is_refused() {
    for whole in [
        ioctl_message(1, 2, &[1, 2, 3], 4),
        message(15, &longs(&[0; 5])),
        message(16, &[longs(&[9, 0]), words(&[3, 0]), longs(&[0]), words(&[0, 0]), vec![1, 2, 3]].concat()),
        message(4096, &words(&[7, 38, 0, 1])),
    ] {
        assert!(parse(&whole).is_ok());
        for cut in 0..whole.len() {
            assert!(parse(&whole[..cut]).is_err(), "its length is said");
            let mut said = whole[..cut].to_vec();
            if cut >= 4 {
                said[..4].copy_from_slice(&(cut as u32).to_ne_bytes());
            }
            // Only what no one reads may be missing: the padding at the end of a read's parameters.
            let needed = if word(&whole, 4) == 15 { 60 } else { whole.len() };
            assert_eq!(parse(&said).is_ok(), cut >= needed, "{cut} of {}", whole.len());
        }
    }
    let huge = [longs(&[0, 0]), words(&[u32::MAX, 0]), longs(&[0]), words(&[0, 0])].concat();
    assert!(parse(&message(16, &huge)).is_err());
}

/// A device that answers as it is told.
struct Told(Result<IoctlReply, Errno>);

impl CuseDevice for Told {
    fn open(&mut self, flags: u32) -> Result<u64, Errno> {
        if flags == 0 { Ok(0x1234) } else { Err(Errno::EACCES) }
    }
    fn release(&mut self, _: u64) {}
    fn read(&mut self, _: u64, _: u32, data: &mut Vec<u8>) -> Result<(), Errno> {
        data.extend([1, 2, 3, 4]);
        Ok(())
    }
    fn write(&mut self, _: u64, _: &[u8]) -> Result<u32, Errno> {
        Ok(1000)
    }
    fn ioctl(&mut self, _: Ioctl<'_>) -> Result<IoctlReply, Errno> {
        self.0.clone()
    }
}

fn tell(reply: Result<IoctlReply, Errno>, bytes: &[u8]) -> (i32, Vec<u8>) {
    let mut answer = vec![9; 3];
    assert_eq!(handle(&mut Told(reply), bytes, &mut answer), Ok(Handled::Answer));
    let (error, body) = unpack(&answer);
    (error, body.to_vec())
}

#[test]
fn answers_are_laid_out_as_the_kernel_reads_them() {
    let silent = || Err(Errno::ENOTTY);
    assert_eq!(tell(silent(), &message(14, &words(&[0, 0]))), (0, longs(&[0x1234, 0])));
    assert_eq!(tell(silent(), &message(14, &words(&[1, 0]))), (-13, vec![]));
    let read = [longs(&[0, 0]), words(&[3, 0])].concat();
    assert_eq!(tell(silent(), &message(15, &read)), (0, vec![1, 2, 3]), "no more than was asked for");
    let write = [longs(&[0, 0]), words(&[2, 0]), longs(&[0]), words(&[0, 0]), vec![5, 6]].concat();
    assert_eq!(tell(silent(), &message(16, &write)), (0, words(&[2, 0])), "no more than was given");
    assert_eq!(tell(silent(), &message(18, &longs(&[0, 0, 0]))), (0, vec![]));
    assert_eq!(tell(silent(), &message(40, &longs(&[0, 0, 0]))), (-38, vec![]));
    assert_eq!(tell(silent(), &ioctl_message(1, 2, &[], 0)), (-25, vec![]));
    let done = Ok(IoctlReply::Done { result: 6, output: vec![7, 8] });
    assert_eq!(tell(done, &ioctl_message(1, 2, &[], 2)), (0, [words(&[6, 0, 0, 0]), vec![7, 8]].concat()));
    let region = |base, len| Region { base, len };
    let retry = IoctlReply::Retry { input: vec![region(1, 2), region(3, 4)], output: vec![region(5, 6)] };
    let expected = [words(&[0, 4, 2, 1]), longs(&[1, 2, 3, 4, 5, 6])].concat();
    assert_eq!(tell(Ok(retry), &ioctl_message(1, 2, &[], 0)), (0, expected));
    let mut answer = Vec::new();
    let interrupt = message(36, &longs(&[1]));
    assert_eq!(handle(&mut Told(silent()), &interrupt, &mut answer), Ok(Handled::Silent));
}

#[test]
fn a_device_that_breaks_the_rules_of_ioctls_gives_an_error_and_not_a_broken_answer() {
    let bytes = ioctl_message(1, 2, &[], 2);
    assert_eq!(tell(Ok(IoctlReply::Done { result: 0, output: vec![0; 3] }), &bytes), (-5, vec![]));
    assert_eq!(tell(Ok(IoctlReply::Done { result: -1, output: vec![] }), &bytes), (-5, vec![]));
    let region = |len| Region { base: 4096, len };
    let many = IoctlReply::Retry { input: vec![region(1); 200], output: vec![region(1); 57] };
    assert_eq!(tell(Ok(many), &bytes), (-90, vec![]));
    for len in [MAX_REGION_BYTES + 1, u64::MAX] {
        let long = IoctlReply::Retry { input: vec![region(len), region(len)], output: vec![] };
        assert_eq!(tell(Ok(long), &bytes), (-90, vec![]));
    }
    let mut buffer = Vec::new();
    let reply = Reply::new(77, &mut buffer);
    reply.finish();
    assert_eq!(unpack(&buffer), (0, &[][..]));
}

/// The kernel's part: a caller with memory, and the rounds of an ioctl.
struct Caller {
    spidev: Spidev,
    bus: Arc<Mutex<ToyBus>>,
    memory: Vec<u8>,
    rounds: usize,
}

impl Caller {
    fn new(options: Options) -> Caller {
        let bus = ToyBus::logging(2).shared();
        let spidev = Spidev::new(bus.clone(), options).unwrap();
        Caller { spidev, bus, memory: vec![0; 64 << 10], rounds: 0 }
    }

    /// Through the wire, as from the kernel. Addresses are indexes of the memory; 0 is not there.
    fn ioctl(&mut self, cmd: u32, arg: u64) -> Result<i32, Errno> {
        let (mut input, mut output) = (Vec::new(), Vec::<Region>::new());
        self.rounds = 0;
        loop {
            self.rounds += 1;
            assert!(self.rounds < 4, "it ends");
            let mut answer = Vec::new();
            let room = output.iter().map(|region| region.len as u32).sum();
            let message = ioctl_message(cmd, arg, &input, room);
            assert_eq!(handle(&mut self.spidev, &message, &mut answer), Ok(Handled::Answer));
            let (error, body) = unpack(&answer);
            if error != 0 {
                return Err(Errno::from_raw(-error));
            }
            let (fields, data) = body.split_at(16);
            if word(fields, 4) == 0 {
                let mut data = data;
                for region in output {
                    let (first, rest) = data.split_at(region.len as usize);
                    self.memory.get_mut(region.base as usize..).ok_or(Errno::EFAULT)?[..first.len()]
                        .copy_from_slice(first);
                    data = rest;
                }
                return Ok(word(fields, 0) as i32);
            }
            let (inputs, outputs) = (word(fields, 8) as usize, word(fields, 12) as usize);
            assert!(inputs + outputs <= MAX_REGIONS && data.len() == (inputs + outputs) * 16);
            let region = |at| Region { base: long(data, at * 16), len: long(data, at * 16 + 8) };
            input.clear();
            for region in (0..inputs).map(region) {
                let (from, to) = (region.base as usize, region.base.saturating_add(region.len) as usize);
                if region.base == 0 || to > self.memory.len() {
                    return Err(Errno::EFAULT);
                }
                input.extend(&self.memory[from..to]);
            }
            output = (inputs..inputs + outputs).map(region).collect();
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn message(&mut self, transfers: &[RawTransfer]) -> Result<i32, Errno> {
        for (index, transfer) in transfers.iter().enumerate() {
            self.put(0x100 + index * 32, &transfer.encode());
        }
        self.ioctl(ioctls::message(transfers.len() as u32), 0x100)
    }

    fn set(&mut self, cmd: u32, value: &[u8]) -> Result<i32, Errno> {
        self.put(0x80, value);
        self.ioctl(cmd, 0x80)
    }

    fn get(&mut self, cmd: u32, bytes: usize) -> Vec<u8> {
        self.put(0x80, &[0xEE; 4]);
        assert_eq!(self.ioctl(cmd, 0x80), Ok(0));
        self.memory[0x80..0x80 + bytes].to_vec()
    }

    fn log(&self) -> Vec<Seen> {
        self.bus.lock().unwrap().take_log()
    }
}

fn send(at: u64, len: u32) -> RawTransfer {
    RawTransfer { tx_buf: at, len, ..RawTransfer::default() }
}

fn receive(at: u64, len: u32) -> RawTransfer {
    RawTransfer { rx_buf: at, len, ..RawTransfer::default() }
}

#[test]
fn the_numbers_are_those_of_the_kernels_header() {
    let numbers = [
        ioctls::WR_MODE,
        ioctls::WR_BITS_PER_WORD,
        ioctls::WR_MAX_SPEED_HZ,
        ioctls::WR_MODE32,
        ioctls::RD_MODE,
    ];
    assert_eq!(numbers, [0x40016B01, 0x40016B03, 0x40046B04, 0x40046B05, 0x80016B01]);
    assert_eq!(
        [ioctls::message(1), ioctls::message(2), ioctls::message(512)],
        [0x40206B00, 0x40406B00, 0x40006B00]
    );
    let transfer = RawTransfer {
        tx_buf: 0x0102_0304_0506_0708,
        rx_buf: 0x1112_1314_1516_1718,
        len: 0x2122_2324,
        speed_hz: 0x3132_3334,
        delay_usecs: 0x4142,
        bits_per_word: 0x51,
        cs_change: 0x52,
        tx_nbits: 0x53,
        rx_nbits: 0x54,
    };
    let bytes = transfer.encode();
    assert_eq!(RawTransfer::decode(&bytes), transfer);
    assert_eq!(long(&bytes, 8), 0x1112_1314_1516_1718);
    assert_eq!((word(&bytes, 16), word(&bytes, 20)), (0x2122_2324, 0x3132_3334));
    assert_eq!(bytes[26..], [0x51, 0x52, 0x53, 0x54, 0, 0]);
}

#[test]
fn a_message_is_one_frame_of_its_transfers() {
    let mut caller = Caller::new(Options::default());
    caller.put(0x1000, &[0x9F]);
    assert_eq!(caller.message(&[send(0x1000, 1), receive(0x2000, 3)]), Ok(4));
    assert_eq!(caller.memory[0x2000..0x2004], [0xEF, 0x40, 0x18, 0]);
    assert_eq!(caller.rounds, 3, "the array, the buffers, the message");
    let write = Seen::Write(Lines::Single, vec![0x9F]);
    let clock = Seen::Clock(50_000_000);
    let read = Seen::Read(Lines::Single, 3);
    assert_eq!(caller.log(), [Seen::Select(0), clock.clone(), write, clock, read, Seen::Deselect]);
}

#[test]
fn both_ways_at_a_time_is_full_duplex_and_no_way_is_zeros() {
    let mut caller = Caller::new(Options { chip_select: 1, ..Options::default() });
    caller.put(0x1000, &[0x9F, 0, 0]);
    let both = RawTransfer { rx_buf: 0x1000, ..send(0x1000, 3) };
    let none = RawTransfer { len: 2, ..RawTransfer::default() };
    assert_eq!(caller.message(&[both, none]), Ok(5));
    assert_eq!(caller.memory[0x1000..0x1003], [0xFF, 0xEF, 0x40]);
    let mut log = caller.log();
    log.retain(|seen| !matches!(seen, Seen::Clock(_)));
    let zeros = Seen::Write(Lines::Single, vec![0, 0]);
    assert_eq!(log, [Seen::Select(1), Seen::Both(vec![0x9F, 0, 0]), zeros, Seen::Deselect]);
}

#[test]
fn cs_change_ends_a_frame_but_the_last_one_ends_anyway() {
    let mut caller = Caller::new(Options::default());
    caller.put(0x1000, &[6, 4]);
    let change = |transfer| RawTransfer { cs_change: 1, delay_usecs: 7, speed_hz: 1000, ..transfer };
    assert_eq!(caller.message(&[change(send(0x1000, 1)), change(send(0x1001, 1))]), Ok(2));
    let frame = |byte| {
        let write = Seen::Write(Lines::Single, vec![byte]);
        [Seen::Select(0), Seen::Clock(1000), write, Seen::Delay(7000), Seen::Deselect]
    };
    assert_eq!(caller.log(), [frame(6), frame(4)].concat());
}

#[test]
fn lines_are_those_of_the_transfer_if_the_mode_allows_them() {
    let mut caller = Caller::new(Options::default());
    caller.put(0x1000, &[0x6B, 0, 0, 0, 0]);
    let quad = RawTransfer { rx_nbits: 4, ..receive(0x2000, 8) };
    let dual = RawTransfer { tx_nbits: 2, ..send(0x1000, 4) };
    assert_eq!(caller.message(&[send(0x1000, 5), quad]), Err(Errno::EINVAL));
    assert_eq!(caller.message(&[dual]), Err(Errno::EINVAL));
    assert!(caller.log().is_empty());
    let bits = mode::RX_QUAD | mode::TX_DUAL;
    assert_eq!(caller.set(ioctls::WR_MODE32, &bits.to_ne_bytes()), Ok(0));
    assert_eq!(caller.message(&[dual, quad]), Ok(12));
    let log = caller.log();
    assert!(
        log.contains(&Seen::Write(Lines::Dual, vec![0x6B, 0, 0, 0]))
            && log.contains(&Seen::Read(Lines::Quad, 8))
    );
    let two_of_four = RawTransfer { rx_nbits: 2, ..receive(0x2000, 8) };
    assert_eq!(caller.message(&[two_of_four]), Ok(8), "quad allows dual");
    for wrong in [
        RawTransfer { rx_nbits: 3, ..quad },
        RawTransfer { rx_nbits: 8, ..quad },
        RawTransfer { tx_buf: 0x1000, ..quad },
    ] {
        assert_eq!(caller.message(&[wrong]), Err(Errno::EINVAL), "{wrong:?}");
    }
    assert_eq!(caller.get(ioctls::RD_MODE32, 4), bits.to_ne_bytes());
    assert_eq!(caller.set(ioctls::WR_MODE, &[3]), Ok(0));
    assert_eq!(caller.get(ioctls::RD_MODE32, 4), [3, 0, 0, 0], "eight bits of a mode clear the others");
}

#[test]
fn modes_are_0_and_3_and_what_a_controller_without_the_rest_takes() {
    use mode::{CPHA, CPOL, LSB_FIRST, RX_DUAL, RX_OCTAL, RX_QUAD, TX_DUAL, TX_OCTAL, TX_QUAD};
    for good in [0, CPHA | CPOL, TX_DUAL | RX_QUAD, TX_QUAD | RX_DUAL | CPHA | CPOL] {
        assert_eq!(set_up_mode(good), Ok(good));
    }
    assert_eq!(set_up_mode(TX_OCTAL | RX_OCTAL | TX_QUAD), Ok(TX_QUAD), "the kernel drops what there is not");
    for bad in [
        CPHA,
        CPOL,
        LSB_FIRST,
        TX_DUAL | TX_QUAD,
        RX_DUAL | RX_QUAD,
        4,
        0x10,
        0x20,
        0x40,
        0x80,
        1 << 12,
        1 << 31,
    ] {
        assert_eq!(set_up_mode(bad), Err(Errno::EINVAL), "{bad:#x}");
    }
}

#[test]
fn settings_are_read_as_they_were_set() {
    let mut caller = Caller::new(Options::default());
    let speed = |hz: u32| hz.to_ne_bytes();
    assert_eq!(caller.get(ioctls::RD_MODE, 1), [0]);
    assert_eq!(caller.get(ioctls::RD_BITS_PER_WORD, 1), [8]);
    assert_eq!(caller.get(ioctls::RD_LSB_FIRST, 1), [0]);
    assert_eq!(caller.get(ioctls::RD_MAX_SPEED_HZ, 4), speed(50_000_000));
    assert_eq!(caller.set(ioctls::WR_MAX_SPEED_HZ, &speed(0)), Err(Errno::EINVAL));
    assert_eq!(caller.set(ioctls::WR_MAX_SPEED_HZ, &speed(u32::MAX)), Ok(0));
    assert_eq!(caller.get(ioctls::RD_MAX_SPEED_HZ, 4), speed(u32::MAX));
    assert_eq!(caller.message(&[receive(0x1000, 1)]), Ok(1));
    assert_eq!(caller.log()[1], Seen::Clock(MOST_HZ), "the bus's fastest");
    for (cmd, value, result) in [
        (ioctls::WR_BITS_PER_WORD, 8, Ok(0)),
        (ioctls::WR_BITS_PER_WORD, 0, Ok(0)),
        (ioctls::WR_BITS_PER_WORD, 16, Err(Errno::EINVAL)),
        (ioctls::WR_LSB_FIRST, 0, Ok(0)),
        (ioctls::WR_LSB_FIRST, 1, Err(Errno::EINVAL)),
        (ioctls::WR_MODE, 1, Err(Errno::EINVAL)),
        (ioctls::WR_MODE, 3, Ok(0)),
    ] {
        assert_eq!(caller.set(cmd, &[value]), result, "{cmd:#x} {value}");
    }
    assert_eq!(caller.get(ioctls::RD_MODE, 1), [3]);
    // The last close: the clock is the default one again, the mode stays.
    for _ in 0..2 {
        caller.spidev.open(2).unwrap();
    }
    caller.spidev.release(0);
    assert_eq!(caller.get(ioctls::RD_MAX_SPEED_HZ, 4), speed(u32::MAX));
    caller.spidev.release(0);
    assert_eq!(caller.get(ioctls::RD_MAX_SPEED_HZ, 4), speed(50_000_000));
    assert_eq!(caller.get(ioctls::RD_MODE, 1), [3]);
}

#[test]
fn wrong_ioctls_give_the_errno_of_the_kernels_driver() {
    let mut caller = Caller::new(Options::default());
    let cases = [
        (0x5401, Errno::ENOTTY),
        (0x40016B09, Errno::ENOTTY),
        // A message to read, and a setting of another size.
        (0x80206B00, Errno::ENOTTY),
        (0x40026B01, Errno::ENOTTY),
        (0x40216B00, Errno::EINVAL),
        (0x40016B00, Errno::EINVAL),
    ];
    for (cmd, errno) in cases {
        assert_eq!(caller.ioctl(cmd, 0x100), Err(errno), "{cmd:#x}");
    }
    assert_eq!(caller.ioctl(ioctls::message(0), 0), Ok(0), "no transfers are done at once");
    for cmd in [ioctls::message(1), ioctls::WR_MODE] {
        assert_eq!(caller.ioctl(cmd, 0), Err(Errno::EFAULT), "no memory: {cmd:#x}");
    }
    assert_eq!(caller.message(&[send(u64::MAX - 4, 8)]), Err(Errno::EFAULT));
    let words = RawTransfer { bits_per_word: 16, ..send(0x1000, 2) };
    assert_eq!(caller.message(&[words]), Err(Errno::EINVAL));
    assert!(caller.log().is_empty());
}

#[test]
fn more_than_the_buffer_is_too_much() {
    let mut caller = Caller::new(Options::default());
    let most = DEFAULT_BUFFER_BYTES;
    assert_eq!(caller.message(&[send(0x1000, most), receive(0x4000, most)]), Ok(8192), "each way by itself");
    for wrong in [
        vec![send(0x1000, most + 1)],
        vec![receive(0x1000, most + 1)],
        vec![send(0x1000, most), send(0x1000, 1)],
        // Each takes 8 bytes of the kernel's buffer.
        vec![send(0x1000, 1); 200].into_iter().chain([send(0x1000, most - 8 * 199)]).collect(),
        vec![RawTransfer { len: u32::MAX, ..RawTransfer::default() }; 3],
    ] {
        assert_eq!(caller.message(&wrong), Err(Errno::EMSGSIZE), "{} transfers", wrong.len());
    }
    let mut data = Vec::new();
    assert_eq!(caller.spidev.read(0, most + 1, &mut data), Err(Errno::EMSGSIZE));
    assert_eq!(caller.spidev.write(0, &vec![0; most as usize + 1]), Err(Errno::EMSGSIZE));
}

#[test]
fn many_transfers_are_fetched_if_their_buffers_lie_together() {
    let mut caller = Caller::new(Options::default());
    let together: Vec<RawTransfer> = (0..511).map(|at| send(0x8000 + at, 1)).collect();
    assert_eq!(caller.message(&together), Ok(511));
    let apart: Vec<RawTransfer> = (0..300).map(|at| send(0x8000 + at * 2, 1)).collect();
    assert_eq!(caller.message(&apart), Err(Errno::EMSGSIZE));
}

#[test]
fn reads_and_writes_are_frames_too() {
    let mut caller = Caller::new(Options::default());
    let mut data = Vec::new();
    assert_eq!(caller.spidev.write(0, &[6]), Ok(1));
    caller.spidev.read(0, 2, &mut data).unwrap();
    assert_eq!(data, [0xFF, 0xFF], "a frame without a command");
    let mut log = caller.log();
    log.retain(|seen| !matches!(seen, Seen::Clock(_)));
    let write = Seen::Write(Lines::Single, vec![6]);
    let read = Seen::Read(Lines::Single, 2);
    assert_eq!(log, [Seen::Select(0), write, Seen::Deselect, Seen::Select(0), read, Seen::Deselect]);
}

#[test]
fn an_array_that_changes_between_the_rounds_is_refused() {
    let mut caller = Caller::new(Options::default());
    let input = [&send(0x1000, 4).encode()[..], &[1, 2, 3]].concat();
    let ioctl = Ioctl { handle: 0, cmd: ioctls::message(1), arg: 0x100, input: &input, output_bytes: 0 };
    assert_eq!(caller.spidev.ioctl(ioctl), Err(Errno::EFAULT));
    let input = receive(0x1000, 4).encode();
    let ioctl = Ioctl { input: &input, output_bytes: 5, ..ioctl };
    assert_eq!(caller.spidev.ioctl(ioctl), Err(Errno::EFAULT));
    assert!(caller.log().is_empty());
}

#[test]
fn options_that_cannot_be_are_named() {
    let refused = |options| Spidev::new(ToyBus::logging(2).shared(), options).err().unwrap().to_string();
    let message = refused(Options { chip_select: 2, ..Options::default() });
    assert_eq!(message, "spidev chip select: \"2\": the bus has 2 chips, counted from 0");
    assert!(refused(Options { buffer_bytes: 0, ..Options::default() }).contains("spidev buffer"));
    assert!(refused(Options { buffer_bytes: MAX_BUFFER_BYTES + 1, ..Options::default() }).contains("65536"));
    assert!(refused(Options { max_speed_hz: 0, ..Options::default() }).contains("spidev clock"));
}

fn any_transfer() -> impl Strategy<Value = RawTransfer> {
    let buffers = (prop_oneof![Just(0), 0x1000u64..0x8000], prop_oneof![Just(0), 0x8000u64..0xF000]);
    let bits = (prop_oneof![4 => Just(0u8), 1 => any::<u8>()], any::<bool>(), 0u8..6, 0u8..6);
    (buffers, prop_oneof![9 => 0u32..2000, 1 => any::<u32>()], any::<u16>(), bits).prop_map(
        |((tx_buf, rx_buf), len, delay_usecs, (bits_per_word, cs_change, tx_nbits, rx_nbits))| RawTransfer {
            tx_buf,
            rx_buf,
            len,
            speed_hz: 0,
            delay_usecs,
            bits_per_word,
            cs_change: cs_change.into(),
            tx_nbits,
            rx_nbits,
        },
    )
}

proptest! {
    #[test]
    fn any_message_is_carried_out_whole_or_not_at_all(
        transfers in proptest::collection::vec(any_transfer(), 0..6), quad: bool,
    ) {
        let mut caller = Caller::new(Options::default());
        let bits = if quad { mode::TX_QUAD | mode::RX_QUAD } else { 0 };
        caller.set(ioctls::WR_MODE32, &bits.to_ne_bytes()).unwrap();
        let result = caller.message(&transfers);
        prop_assert_eq!(caller.bus.lock().unwrap().selected(), None);
        let log = caller.log();
        let clocked: usize = log.iter().map(|seen| match seen {
            Seen::Write(_, bytes) | Seen::Both(bytes) => bytes.len(),
            Seen::Read(_, len) => *len,
            _ => 0,
        }).sum();
        match result {
            Ok(total) => prop_assert_eq!(total as usize, clocked),
            Err(_) => prop_assert!(log.is_empty()),
        }
    }

    #[test]
    fn a_plan_never_takes_more_than_the_buffer(bytes in proptest::collection::vec(any::<u8>(), 0..200), room in 1u32..5000) {
        if let Ok(plan) = Plan::new(&bytes, u32::MAX, room) {
            prop_assert!(plan.input_bytes.max(plan.output_bytes) <= room as usize);
            prop_assert_eq!(plan.input_bytes as u64, plan.input.iter().map(|region| region.len).sum::<u64>());
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut answer = Vec::new();
        let _ = handle(&mut Told(Err(Errno::EIO)), &bytes, &mut answer);
        let _ = answer_init(&bytes, "x", &mut answer);
    }
}
