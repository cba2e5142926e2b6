//! The bus as firmware sees it: transactions, delays, pins, and the storage traits.
#![allow(clippy::unwrap_used)]

use embedded_hal::delay::DelayNs;
use embedded_hal::digital::OutputPin;
use embedded_hal::spi::{Operation, SpiDevice};
use embedded_storage::nor_flash::{NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash};
use spiflash_mtd::driver::{DriverError, NorDriver};
use spiflash_mtd::fronts::SharedBus;
use spiflash_mtd::hal::{HalDelay, HalDevice, HalError, HalFlash, HalPin, HostPower};
use spiflash_mtd::{Chip, Setup, SimBus, SpiBus, part};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use w25q32jv::W25q32jv;

fn sim(name: &str) -> Arc<Mutex<SimBus>> {
    let part = Arc::new(part::find(name).unwrap().clone());
    Arc::new(Mutex::new(SimBus::of(Chip::new(part, &Setup::default()).unwrap())))
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the model never waits"),
    }
}

fn shared(sim: &Arc<Mutex<SimBus>>) -> SharedBus {
    sim.clone()
}

#[test]
fn every_kind_of_operation_reads_the_same_id() {
    let sim = sim("W25Q128JV");
    let mut device = HalDevice::new(shared(&sim), 0);
    let id = [0xEF, 0x40, 0x18];
    let mut read = [0; 3];
    device.transaction(&mut [Operation::Write(&[0x9F]), Operation::Read(&mut read)]).unwrap();
    assert_eq!(read, id);
    let mut longer = [0; 5];
    device.transfer(&mut longer, &[0x9F]).unwrap();
    assert_eq!(longer[1..4], id);
    let mut shorter = [0; 2];
    device.transfer(&mut shorter, &[0x9F, 0, 0, 0]).unwrap();
    assert_eq!(shorter[1], id[0]);
    let mut both = [0x9F, 0, 0, 0];
    device.transfer_in_place(&mut both).unwrap();
    assert_eq!(both[1..], id);
    now(embedded_hal_async::spi::SpiDevice::transfer(&mut device, &mut longer, &[0x9F])).unwrap();
    assert_eq!(longer[1..4], id);
}

#[test]
fn delays_are_model_time_and_a_busy_chip_gets_ready_by_them() {
    let sim = sim("W25Q128JV");
    let (mut device, mut delay) = (HalDevice::new(shared(&sim), 0), HalDelay::new(shared(&sim)));
    let status = |device: &mut HalDevice| {
        let mut status = [0];
        device.transaction(&mut [Operation::Write(&[0x05]), Operation::Read(&mut status)]).unwrap();
        status[0]
    };
    device.write(&[0x06]).unwrap();
    device.write(&[0x20, 0, 0, 0]).unwrap();
    assert_eq!(status(&mut device) & 1, 1);
    let before = sim.lock().unwrap().now_ns();
    delay.delay_ms(400);
    let passed = sim.lock().unwrap().now_ns() - before;
    assert_eq!(passed, 400_000_000);
    assert_eq!(status(&mut device) & 1, 0);
    let before = sim.lock().unwrap().now_ns();
    device.transaction(&mut [Operation::Write(&[0x05]), Operation::DelayNs(5000)]).unwrap();
    assert!(sim.lock().unwrap().now_ns() - before >= 5000);
}

#[test]
fn the_write_protect_pin_is_the_chips() {
    let sim = sim("W25Q128JV");
    let mut pin = HalPin::WriteProtect { bus: shared(&sim), select: 0 };
    pin.set_low().unwrap();
    assert!(sim.lock().unwrap().chip(0).unwrap().is_write_protect_low());
    pin.set_high().unwrap();
    assert!(!sim.lock().unwrap().chip(0).unwrap().is_write_protect_low());
    HalPin::Unconnected.set_low().unwrap();
    let nowhere = HalPin::WriteProtect { bus: shared(&sim), select: 7 }.set_low();
    assert!(matches!(nowhere, Err(HalError::Bus(_))));
    assert!(HalDevice::new(shared(&sim), 7).write(&[0x9F]).is_err());
}

#[test]
fn the_driver_w25q32jv_erases_writes_and_reads_with_busy_polls_alone() {
    // By bits: its polls without a delay must be enough to let the time pass.
    let sim = sim("W25Q128JV");
    sim.lock().unwrap().set_clock_hz(1_000_000).unwrap();
    let bus = shared(&sim);
    let device = HalDevice::new(bus.clone(), 0);
    let mut flash =
        W25q32jv::new(device, HalPin::Unconnected, HalPin::WriteProtect { bus, select: 0 }).unwrap();
    let data: Vec<u8> = (0..700).map(|n| (n * 31) as u8).collect();
    flash.erase_sector(3).unwrap();
    NorFlash::write(&mut flash, 3 * 4096 + 100, &data).unwrap();
    let mut back = vec![0; 700];
    flash.read(3 * 4096 + 100, &mut back).unwrap();
    assert_eq!(back, data);
    let id = flash.device_id().unwrap();
    assert_eq!(id[..], sim.lock().unwrap().chip(0).unwrap().unique_id()[..]);
    now(flash.erase_sector_async(3)).unwrap();
    now(flash.read_async(3 * 4096 + 100, &mut back)).unwrap();
    assert_eq!(back, [0xFF; 700]);
}

#[test]
fn our_driver_is_storage_too() {
    let sim = sim("MX25L25645G");
    let driver = NorDriver::new(Arc::new(part::find("MX25L25645G").unwrap().clone()), 0).unwrap();
    let mut flash = HalFlash::<4096>::new(shared(&sim), driver.clone(), HostPower::on()).unwrap();
    assert_eq!(ReadNorFlash::capacity(&flash), 32 << 20);
    let at = 0x0100_0000;
    NorFlash::erase(&mut flash, at, at + 8192).unwrap();
    NorFlash::write(&mut flash, at + 250, &[1; 20]).unwrap();
    NorFlash::write(&mut flash, at + 250, &[2; 10]).unwrap();
    let mut back = [0; 21];
    ReadNorFlash::read(&mut flash, at + 250, &mut back).unwrap();
    assert_eq!(back[..10], [0; 10], "1 & 2");
    assert_eq!(back[10..], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0xFF]);
    let kind = |result: Result<(), HalError>| result.unwrap_err().kind();
    assert_eq!(kind(NorFlash::erase(&mut flash, 1, 4096)), NorFlashErrorKind::NotAligned);
    assert_eq!(kind(NorFlash::erase(&mut flash, 8192, 4096)), NorFlashErrorKind::OutOfBounds);
    assert_eq!(kind(NorFlash::write(&mut flash, 32 << 20, &[0])), NorFlashErrorKind::OutOfBounds);
    assert_eq!(kind(ReadNorFlash::read(&mut flash, u32::MAX, &mut [0])), NorFlashErrorKind::OutOfBounds);
    let wrong = HalFlash::<1000>::new(shared(&sim), driver, HostPower::on());
    assert!(matches!(wrong.err(), Some(HalError::Driver(DriverError::Unaligned { .. }))));
}

#[test]
fn firmware_is_gone_with_its_power() {
    let sim = sim("W25Q128JV");
    let power = HostPower::on();
    let mut device = HalDevice::new(shared(&sim), 0).with_power(power.clone());
    device.write(&[0x06]).unwrap();
    let now_ns = sim.lock().unwrap().now_ns();
    power.cut_at_ns(Some(now_ns + 1_000));
    sim.lock().unwrap().delay_ns(2_000);
    assert_eq!(device.write(&[0x06]), Err(HalError::PowerLost));
    power.cut_at_ns(None);
    device.write(&[0x06]).unwrap();
}
