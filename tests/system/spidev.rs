//! A SPI flash chip as /dev/spidevB.C: the kernel's own spidev clients run unchanged on a chip in software.

use spiflash_mtd::{
    Chip, Setup, SimBus, SpiBus, TimeMode, Transfer,
    fronts::{
        SharedBus,
        cuse::{
            message::{RawTransfer, ioctls},
            spidev::{Options, SpidevServer},
        },
    },
    part,
};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::AsRawFd,
    path::Path,
    sync::{Arc, Mutex},
};
use tests::{sh, until};

fn bus(chips: usize) -> Arc<Mutex<SimBus>> {
    let chip = || Chip::new(Arc::new(part::find("W25Q128JV").unwrap().clone()), &Setup::default()).unwrap();
    let chips = (0..chips).map(|_| chip()).collect();
    Arc::new(Mutex::new(SimBus::new(chips, TimeMode::PollSkip { polls: 1 }, || 0)))
}

fn spidev(bus: &Arc<Mutex<SimBus>>, chip_select: u8) -> SpidevServer {
    let _ = sh(20, "[ -e /dev/cuse ] || modprobe cuse || true");
    let bus: SharedBus = bus.clone();
    SpidevServer::start(bus, Options { bus_number: 7, chip_select, ..Options::default() }).unwrap()
}

fn open(server: &SpidevServer) -> File {
    OpenOptions::new().read(true).write(true).open(server.node()).unwrap()
}

/// An ioctl with an address; its errno.
fn ioctl(file: &File, cmd: u32, argument: usize) -> Result<i32, i32> {
    // SAFETY: the kernel checks every address; what the argument leads to lives over the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), cmd.into(), argument) };
    if result < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(result) }
}

fn message(file: &File, transfers: &[RawTransfer]) -> Result<i32, i32> {
    let array: Vec<u8> = transfers.iter().flat_map(RawTransfer::encode).collect();
    ioctl(file, ioctls::message(transfers.len() as u32), array.as_ptr() as usize)
}

#[test]
#[ignore = "needs a kernel with CUSE (scripts/test)"]
fn flashrom_probes_writes_and_verifies_over_spidev() {
    if sh(10, "PATH=$PATH:/usr/sbin command -v flashrom").status != Some(0) {
        eprintln!("skipped: flashrom is not installed");
        return;
    }
    let bus = bus(2);
    let servers = [spidev(&bus, 0), spidev(&bus, 1)];
    let flashrom = |chip: usize, rest: &str| {
        let node = servers[chip].node().display();
        sh(110, &format!("PATH=$PATH:/usr/sbin; flashrom -p linux_spi:dev={node},spispeed=50000 {rest}"))
    };
    let probe = flashrom(0, "");
    assert!(probe.ok().contains("\"W25Q128.V\" (16384 kB, SPI)"), "{probe:#?}");
    // A region only: each message is three rounds through the kernel, which takes minutes for 16 MiB on a slow one.
    let region = 0x10_0000..0x10_8000;
    let byte = |at: usize| if region.contains(&at) { ((at * 31) >> 3) as u8 } else { 0xFF };
    let image: Vec<u8> = (0..16 << 20).map(byte).collect();
    std::fs::write("/tmp/spidev-image", &image).unwrap();
    std::fs::write("/tmp/spidev-layout", "00100000:00107fff part\n").unwrap();
    let part = "-c W25Q128.V -l /tmp/spidev-layout -i part";
    let began = std::time::Instant::now();
    let write = flashrom(1, &format!("{part} -w /tmp/spidev-image"));
    println!("32 KiB written and verified in {:.1} s", began.elapsed().as_secs_f64());
    assert!(write.ok().contains("VERIFIED."), "{write:#?}");
    flashrom(1, &format!("{part} -v /tmp/spidev-image")).ok();
    let other = flashrom(0, &format!("{part} -v /tmp/spidev-image"));
    assert!(other.status != Some(0) && other.err.contains("FAILED"), "the other chip is empty: {other:#?}");
    let mut bus = bus.lock().unwrap();
    let mut back = vec![0; region.len()];
    let mut frame = [Transfer::write(&[0x03, 0x10, 0, 0]), Transfer::read(&mut back)];
    bus.frame(1, &mut frame).unwrap();
    assert!(back == image[region], "what is in the chip");
    drop(bus);
    for file in ["/tmp/spidev-image", "/tmp/spidev-layout"] {
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
#[ignore = "needs a kernel with CUSE (scripts/test)"]
fn spi_tools_set_up_and_talk_to_the_chip() {
    if sh(10, "command -v spi-config && command -v spi-pipe").status != Some(0) {
        eprintln!("skipped: spi-tools is not installed");
        return;
    }
    let bus = bus(1);
    let server = spidev(&bus, 0);
    let node = server.node().display();
    let query = sh(20, &format!("spi-config -d {node} -q"));
    assert_eq!(query.ok(), format!("{node}: mode=0, lsb=0, bits=8, speed=50000000, spiready=0"));
    sh(20, &format!("spi-config -d {node} -m 3 -s 1000000 -w & sleep 1; spi-config -d {node} -q | grep -q 'mode=3, lsb=0, bits=8, speed=1000000'; kill $!")).ok();
    // Full duplex: the ID comes while the bytes behind the command go out.
    let id = sh(20, &format!(r"printf '\x9f\0\0\0' | spi-pipe -d {node} -b 4 -n 1 | od -An -tx1"));
    assert_eq!(id.ok().trim(), "ff ef 40 18");
}

#[test]
#[ignore = "needs a kernel with CUSE (scripts/test)"]
fn wrong_ioctls_fail_as_with_the_kernels_spidev_and_the_device_lives_on() {
    let bus = bus(1);
    let server = spidev(&bus, 0);
    let file = open(&server);
    let transfer = |tx: &[u8], len| RawTransfer { tx_buf: tx.as_ptr() as u64, len, ..RawTransfer::default() };
    let long = vec![0u8; 8192];
    assert_eq!(ioctl(&file, 0x5401, 0), Err(libc::ENOTTY));
    assert_eq!(ioctl(&file, ioctls::message(1), 0), Err(libc::EFAULT));
    assert_eq!(ioctl(&file, ioctls::WR_MODE, 0), Err(libc::EFAULT));
    assert_eq!(ioctl(&file, ioctls::RD_MAX_SPEED_HZ, 0), Err(libc::EFAULT));
    assert_eq!(ioctl(&file, 0x4021_6B00, long.as_ptr() as usize), Err(libc::EINVAL));
    assert_eq!(message(&file, &[]), Ok(0));
    assert_eq!(message(&file, &[transfer(&long, 4097)]), Err(libc::EMSGSIZE));
    assert_eq!(
        message(&file, &[RawTransfer { tx_buf: 16, len: 4, ..RawTransfer::default() }]),
        Err(libc::EFAULT)
    );
    assert_eq!(
        message(&file, &[RawTransfer { rx_buf: 16, len: 4, ..RawTransfer::default() }]),
        Err(libc::EFAULT)
    );
    assert_eq!(message(&file, &[RawTransfer { bits_per_word: 9, ..transfer(&long, 1) }]), Err(libc::EINVAL));
    assert_eq!(message(&file, &[RawTransfer { tx_nbits: 4, ..transfer(&long, 1) }]), Err(libc::EINVAL));
    let write = (&file).write(&long);
    assert_eq!(write.unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    assert_eq!((&file).read(&mut vec![0; 8192]).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    // 200 transfers with 400 buffers apart are more than the kernel fetches; beside each other they are few.
    let apart: Vec<RawTransfer> = (0..300).map(|at| transfer(&long[at * 4..], 1)).collect();
    assert_eq!(message(&file, &apart), Err(libc::EMSGSIZE));
    let together: Vec<RawTransfer> = (0..300).map(|at| transfer(&long[at..], 1)).collect();
    assert_eq!(message(&file, &together), Ok(300));
    // A whole one, on four lines.
    let mode = (1u32 << 11).to_ne_bytes();
    assert_eq!(ioctl(&file, ioctls::WR_MODE32, mode.as_ptr() as usize), Ok(0));
    let (command, mut id) = ([0x9F], [0u8; 3]);
    let receive = RawTransfer { rx_buf: id.as_mut_ptr() as u64, len: 3, ..RawTransfer::default() };
    assert_eq!(message(&file, &[transfer(&command, 1), receive]), Ok(4));
    assert_eq!(std::hint::black_box(id), [0xEF, 0x40, 0x18]);
    assert_eq!((&file).write(&[6]).unwrap(), 1);
    assert_eq!((&file).read(&mut [0; 2]).unwrap(), 2);
}

#[test]
#[ignore = "needs a kernel with CUSE (scripts/test)"]
fn a_device_is_there_while_its_server_is() {
    let bus = bus(1);
    let server = spidev(&bus, 0);
    let node = server.node().to_owned();
    let file = open(&server);
    let again =
        SpidevServer::start(bus.clone(), Options { bus_number: 7, ..Options::default() }).unwrap_err();
    assert!(again.to_string().contains("/dev/spidev7.0 is there already"), "{again}");
    server.stop().unwrap();
    assert!(!node.exists());
    let buffer = [0u8; 1];
    assert!(ioctl(&file, ioctls::RD_MODE, buffer.as_ptr() as usize).is_err());
    // Ended from outside, the server notices.
    let server = spidev(&bus, 0);
    let abort = Path::new("/sys/class/cuse/spidev7.0/abort");
    std::fs::write(abort, "1").unwrap();
    until(20, "the server has ended", || !server.is_running());
    server.stop().unwrap();
    assert!(!node.exists());
    drop(spidev(&bus, 0));
    assert!(!node.exists());
}
