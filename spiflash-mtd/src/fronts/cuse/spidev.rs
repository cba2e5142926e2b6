//! /dev/spidevB.C over CUSE: the kernel's user-space interface to a SPI device, so that flashrom's `linux_spi`,
//! spi-tools and every program written for a real spidev run unchanged.
//!
//! The invariant: one message, read or write is one hold of the bus; CS# is high before and after it. So a `cs_change` at
//! the last transfer, which asks to keep the chip selected, is not honoured: the kernel calls it a hint, and where other
//! devices are on the bus it does not honour it either.
//!
//! Source: drivers/spi/spidev.c. As there, mode and clock belong to the device, not to the open file.

use super::{
    CuseDevice, CuseServer, Errno, Ioctl, IoctlReply, Region,
    message::{Command, Plan, Step, Way, mode, set_up_mode},
    wire::MAX_REGION_BYTES,
};
use crate::{
    bus::{BusError, SpiBus, Transfer},
    command::Lines,
    fronts::{FrontError, SharedBus, lock, serprog::protocol::set_clock_at_most},
};
use std::path::Path;

/// The kernel's default of the driver's parameter `bufsiz`. flashrom takes a page when it cannot read the parameter.
pub const DEFAULT_BUFFER_BYTES: u32 = 4096;
/// The most that can be: the kernel fetches 128 KiB for an ioctl, and the array of transfers is part of it.
pub const MAX_BUFFER_BYTES: u32 = (MAX_REGION_BYTES / 2) as u32;

/// What a spidev is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// B in /dev/spidevB.C.
    pub bus_number: u16,
    /// C in /dev/spidevB.C, and the chip on the bus.
    pub chip_select: u8,
    /// The most that a message, read or write may carry each way, in bytes.
    pub buffer_bytes: u32,
    /// The clock until a client sets another.
    pub max_speed_hz: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            bus_number: 0,
            chip_select: 0,
            buffer_bytes: DEFAULT_BUFFER_BYTES,
            max_speed_hz: 50_000_000,
        }
    }
}

/// A spidev of one chip. It ends when it is dropped.
#[derive(Debug)]
pub struct SpidevServer {
    server: CuseServer,
}

impl SpidevServer {
    /// Makes /dev/spidevB.C; it is there, and served, when this returns.
    ///
    /// # Errors
    /// An option that cannot be; as [`CuseServer::start`].
    pub fn start(bus: SharedBus, options: Options) -> Result<SpidevServer, FrontError> {
        let name = format!("spidev{}.{}", options.bus_number, options.chip_select);
        let device = Spidev::new(bus, options)?;
        Ok(SpidevServer { server: CuseServer::start(&name, Box::new(device))? })
    }

    /// /dev/spidevB.C.
    pub fn node(&self) -> &Path {
        self.server.node()
    }

    /// Whether it is served.
    pub fn is_running(&self) -> bool {
        self.server.is_running()
    }

    /// Ends it and waits until the device is gone.
    ///
    /// # Errors
    /// It had ended by itself, by this.
    pub fn stop(self) -> Result<(), FrontError> {
        self.server.stop()
    }
}

/// The device, without a kernel: what answers its calls.
pub struct Spidev {
    bus: SharedBus,
    options: Options,
    mode: u32,
    speed_hz: u32,
    open_files: u64,
}

impl Spidev {
    /// A spidev of a chip on a bus.
    ///
    /// # Errors
    /// There is no such chip; a buffer or a clock that cannot be.
    pub fn new(bus: SharedBus, options: Options) -> Result<Spidev, FrontError> {
        let chips = lock(&bus).chips();
        let wrong = |what, value: u64, rule| Err(FrontError::Option { what, value: value.to_string(), rule });
        if options.chip_select >= chips {
            let rule = format!("the bus has {chips} chips, counted from 0");
            return wrong("spidev chip select", options.chip_select.into(), rule);
        }
        if !(1..=MAX_BUFFER_BYTES).contains(&options.buffer_bytes) {
            let rule = format!("it must be from 1 to {MAX_BUFFER_BYTES} bytes");
            return wrong("spidev buffer", options.buffer_bytes.into(), rule);
        }
        if options.max_speed_hz == 0 {
            return wrong("spidev clock", 0, "it must be at least 1 Hz".to_owned());
        }
        let speed_hz = options.max_speed_hz;
        Ok(Spidev { bus, options, mode: 0, speed_hz, open_files: 0 })
    }

    /// The value of a setting, in as many bytes as its ioctl has.
    fn setting(&self, command: Command) -> Option<Vec<u8>> {
        let low = |number: u32| vec![(number & 0xFF) as u8];
        match command {
            Command::ReadMode => Some(low(self.mode)),
            Command::ReadMode32 => Some(self.mode.to_ne_bytes().to_vec()),
            // It cannot be set, and words are bytes.
            Command::ReadLsbFirst => Some(vec![0]),
            Command::ReadBitsPerWord => Some(vec![8]),
            Command::ReadMaxSpeed => Some(self.speed_hz.to_ne_bytes().to_vec()),
            _ => None,
        }
    }

    fn set(&mut self, command: Command, value: u32) -> Result<(), Errno> {
        match command {
            Command::WriteMode | Command::WriteMode32 => self.mode = set_up_mode(value)?,
            Command::WriteLsbFirst if value != 0 => {
                set_up_mode(self.mode | mode::LSB_FIRST)?;
            }
            // 0 is 8.
            Command::WriteBitsPerWord if !matches!(value, 0 | 8) => return Err(Errno::EINVAL),
            Command::WriteMaxSpeed if value == 0 => return Err(Errno::EINVAL),
            Command::WriteMaxSpeed => self.speed_hz = value,
            _ => {}
        }
        Ok(())
    }

    fn message(&mut self, ioctl: &Ioctl<'_>, array_bytes: u32) -> Result<IoctlReply, Errno> {
        if array_bytes == 0 {
            return Ok(IoctlReply::Done { result: 0, output: Vec::new() });
        }
        let array_region = Region { base: ioctl.arg, len: array_bytes.into() };
        let Some((array, sent)) = ioctl.input.split_at_checked(array_bytes as usize) else {
            return Ok(IoctlReply::Retry { input: vec![array_region], output: Vec::new() });
        };
        let mut plan = Plan::new(array, self.mode, self.options.buffer_bytes)?;
        if sent.len() != plan.input_bytes || ioctl.output_bytes as usize != plan.output_bytes {
            if !sent.is_empty() || ioctl.output_bytes != 0 {
                // The caller changed the array meanwhile.
                return Err(Errno::EFAULT);
            }
            let mut input = vec![array_region];
            input.append(&mut plan.input);
            return Ok(IoctlReply::Retry { input, output: plan.output });
        }
        let mut output = vec![0; plan.output_bytes];
        self.carry_out(&plan.steps, sent, &mut output).map_err(errno)?;
        let result = i32::try_from(plan.total_bytes).map_err(|_| Errno::EMSGSIZE)?;
        Ok(IoctlReply::Done { result, output })
    }

    /// One message: `sent` and `received` are as long as the steps say together.
    fn carry_out(&self, steps: &[Step], mut sent: &[u8], mut received: &mut [u8]) -> Result<(), BusError> {
        let mut guard = lock(&self.bus);
        let bus: &mut dyn SpiBus = &mut *guard;
        bus.select(self.options.chip_select)?;
        let mut selected = true;
        let mut result = Ok(());
        for (index, step) in steps.iter().enumerate() {
            let ends_frame = step.cs_change && index + 1 < steps.len();
            result = self.step(bus, step, &mut sent, &mut received);
            if result.is_ok() && ends_frame {
                selected = false;
                result = bus.deselect();
                if result.is_ok() {
                    result = bus.select(self.options.chip_select);
                    selected = result.is_ok();
                }
            }
            if result.is_err() {
                break;
            }
        }
        if selected {
            bus.deselect()?;
        }
        result
    }

    fn step(
        &self,
        bus: &mut dyn SpiBus,
        step: &Step,
        sent: &mut &[u8],
        received: &mut &mut [u8],
    ) -> Result<(), BusError> {
        let asked_hz = if step.speed_hz == 0 { self.speed_hz } else { step.speed_hz };
        set_clock_at_most(bus, asked_hz)?;
        match step.way {
            _ if step.len == 0 => {}
            Way::Zeros => bus.transfer(Transfer::write(&vec![0; step.len]))?,
            Way::Out(lines) => bus.transfer(Transfer::Write { lines, bytes: take(sent, step.len) })?,
            Way::In(lines) => {
                bus.transfer(Transfer::Read { lines, bytes: take_mut(received, step.len) })?;
            }
            Way::Both => {
                let bytes = take_mut(received, step.len);
                bytes.iter_mut().zip(take(sent, step.len)).for_each(|(to, from)| *to = *from);
                bus.transfer(Transfer::Both { bytes })?;
            }
        }
        if step.delay_ns > 0 {
            bus.delay_ns(step.delay_ns);
        }
        Ok(())
    }
}

fn take<'a>(from: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (first, rest) = from.split_at(len.min(from.len()));
    *from = rest;
    first
}

fn take_mut<'a>(from: &mut &'a mut [u8], len: usize) -> &'a mut [u8] {
    let all = std::mem::take(from);
    let (first, rest) = all.split_at_mut(len.min(all.len()));
    *from = rest;
    first
}

/// The one place where what the bus says becomes an errno. The options were checked: all of these are faults of the bus.
fn errno(error: BusError) -> Errno {
    log::warn!("spidev: {error}");
    match error {
        BusError::NoChip { .. } => Errno::ESHUTDOWN,
        BusError::Clock { .. } => Errno::EINVAL,
        BusError::NotSelected | BusError::StillSelected { .. } => Errno::EIO,
    }
}

impl CuseDevice for Spidev {
    fn open(&mut self, _flags: u32) -> Result<u64, Errno> {
        self.open_files += 1;
        Ok(0)
    }

    fn release(&mut self, _handle: u64) {
        self.open_files = self.open_files.saturating_sub(1);
        if self.open_files == 0 {
            // spidev_release: the mode stays.
            self.speed_hz = self.options.max_speed_hz;
        }
    }

    fn read(&mut self, _handle: u64, size_bytes: u32, data: &mut Vec<u8>) -> Result<(), Errno> {
        if size_bytes > self.options.buffer_bytes {
            return Err(Errno::EMSGSIZE);
        }
        let len = size_bytes as usize;
        let mut received = vec![0; len];
        self.carry_out(&[whole(Way::In(Lines::Single), len)], &[], &mut received).map_err(errno)?;
        data.append(&mut received);
        Ok(())
    }

    fn write(&mut self, _handle: u64, data: &[u8]) -> Result<u32, Errno> {
        let len = u32::try_from(data.len()).map_err(|_| Errno::EMSGSIZE)?;
        if len > self.options.buffer_bytes {
            return Err(Errno::EMSGSIZE);
        }
        self.carry_out(&[whole(Way::Out(Lines::Single), data.len())], data, &mut []).map_err(errno)?;
        Ok(len)
    }

    fn ioctl(&mut self, ioctl: Ioctl<'_>) -> Result<IoctlReply, Errno> {
        let command = Command::of(ioctl.cmd)?;
        if let Command::Message { array_bytes } = command {
            return self.message(&ioctl, array_bytes);
        }
        // The size is in the number.
        let len = ioctl.cmd >> 16 & 0x3FFF;
        let region = vec![Region { base: ioctl.arg, len: len.into() }];
        if let Some(output) = self.setting(command) {
            if ioctl.output_bytes != len {
                return Ok(IoctlReply::Retry { input: Vec::new(), output: region });
            }
            return Ok(IoctlReply::Done { result: 0, output });
        }
        let value = match *ioctl.input {
            [byte] if len == 1 => u32::from(byte),
            [a, b, c, d] if len == 4 => u32::from_ne_bytes([a, b, c, d]),
            [] => return Ok(IoctlReply::Retry { input: region, output: Vec::new() }),
            _ => return Err(Errno::EFAULT),
        };
        self.set(command, value)?;
        Ok(IoctlReply::Done { result: 0, output: Vec::new() })
    }
}

/// A frame of one transfer.
fn whole(way: Way, len: usize) -> Step {
    Step { way, len, speed_hz: 0, delay_ns: 0, cs_change: false }
}
