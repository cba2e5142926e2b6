//! The ioctls of a spidev: their numbers, and the array of transfers of SPI_IOC_MESSAGE. Pure.
//!
//! The invariant: what passes [`Plan::new`] can be carried out: its lengths are within the buffer, and its lines are lines.
//!
//! Source: include/uapi/linux/spi/spidev.h and spi.h; drivers/spi/spidev.c (`spidev_ioctl`, `spidev_message`) and
//! drivers/spi/spi.c (`spi_setup`, `__spi_validate`) for which errno answers what.

use super::{Errno, Region, wire::MAX_REGIONS};
use crate::command::Lines;

/// What is asked for, from the number of an ioctl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// SPI_IOC_RD_MODE: the low 8 bits of the mode.
    ReadMode,
    /// SPI_IOC_WR_MODE: the mode, of which all but the low 8 bits are cleared.
    WriteMode,
    /// SPI_IOC_RD_LSB_FIRST.
    ReadLsbFirst,
    /// SPI_IOC_WR_LSB_FIRST.
    WriteLsbFirst,
    /// SPI_IOC_RD_BITS_PER_WORD.
    ReadBitsPerWord,
    /// SPI_IOC_WR_BITS_PER_WORD.
    WriteBitsPerWord,
    /// SPI_IOC_RD_MAX_SPEED_HZ.
    ReadMaxSpeed,
    /// SPI_IOC_WR_MAX_SPEED_HZ.
    WriteMaxSpeed,
    /// SPI_IOC_RD_MODE32.
    ReadMode32,
    /// SPI_IOC_WR_MODE32.
    WriteMode32,
    /// SPI_IOC_MESSAGE.
    Message {
        /// The length of the array, in bytes: a multiple of [`TRANSFER_BYTES`].
        array_bytes: u32,
    },
}

/// The number of an ioctl of type 'k': direction (1 write, 2 read), number, size.
const fn number(direction: u32, nr: u32, size: u32) -> u32 {
    direction << 30 | size << 16 | (b'k' as u32) << 8 | nr
}

/// SPI_IOC_WR_MODE and its kin, for clients and tests.
pub mod ioctls {
    #![allow(missing_docs)]
    use super::number;
    pub const RD_MODE: u32 = number(2, 1, 1);
    pub const WR_MODE: u32 = number(1, 1, 1);
    pub const RD_LSB_FIRST: u32 = number(2, 2, 1);
    pub const WR_LSB_FIRST: u32 = number(1, 2, 1);
    pub const RD_BITS_PER_WORD: u32 = number(2, 3, 1);
    pub const WR_BITS_PER_WORD: u32 = number(1, 3, 1);
    pub const RD_MAX_SPEED_HZ: u32 = number(2, 4, 4);
    pub const WR_MAX_SPEED_HZ: u32 = number(1, 4, 4);
    pub const RD_MODE32: u32 = number(2, 5, 4);
    pub const WR_MODE32: u32 = number(1, 5, 4);

    /// SPI_IOC_MESSAGE(n); as in C, 0 transfers when `n` is too many for a number: 512 and more.
    pub const fn message(n: u32) -> u32 {
        let size = if n < 512 { n * 32 } else { 0 };
        number(1, 0, size)
    }
}

impl Command {
    /// What an ioctl's number asks for.
    ///
    /// # Errors
    /// ENOTTY: it is none of a spidev; EINVAL: a message whose size is no multiple of a transfer's.
    pub fn of(cmd: u32) -> Result<Command, Errno> {
        let command = match cmd {
            ioctls::RD_MODE => Command::ReadMode,
            ioctls::WR_MODE => Command::WriteMode,
            ioctls::RD_LSB_FIRST => Command::ReadLsbFirst,
            ioctls::WR_LSB_FIRST => Command::WriteLsbFirst,
            ioctls::RD_BITS_PER_WORD => Command::ReadBitsPerWord,
            ioctls::WR_BITS_PER_WORD => Command::WriteBitsPerWord,
            ioctls::RD_MAX_SPEED_HZ => Command::ReadMaxSpeed,
            ioctls::WR_MAX_SPEED_HZ => Command::WriteMaxSpeed,
            ioctls::RD_MODE32 => Command::ReadMode32,
            ioctls::WR_MODE32 => Command::WriteMode32,
            _ => {
                let array_bytes = cmd >> 16 & 0x3FFF;
                if cmd != number(1, 0, array_bytes) {
                    return Err(Errno::ENOTTY);
                }
                if !array_bytes.is_multiple_of(TRANSFER_BYTES) {
                    return Err(Errno::EINVAL);
                }
                Command::Message { array_bytes }
            }
        };
        Ok(command)
    }
}

/// The bits of the mode. Those of one clock's edges, SPI_CPHA and SPI_CPOL, make modes 0 to 3.
pub mod mode {
    #![allow(missing_docs)]
    pub const CPHA: u32 = 1 << 0;
    pub const CPOL: u32 = 1 << 1;
    pub const LSB_FIRST: u32 = 1 << 3;
    pub const TX_DUAL: u32 = 1 << 8;
    pub const TX_QUAD: u32 = 1 << 9;
    pub const RX_DUAL: u32 = 1 << 10;
    pub const RX_QUAD: u32 = 1 << 11;
    pub const TX_OCTAL: u32 = 1 << 13;
    pub const RX_OCTAL: u32 = 1 << 14;
}

/// The mode that a controller sets when it is asked for `asked`.
///
/// Modes 0 and 3, and dual and quad lines, are what the bus has. Octal lines are dropped, as the kernel does for a
/// controller without them.
///
/// # Errors
/// EINVAL: anything else; dual and quad at a time.
pub fn set_up_mode(asked: u32) -> Result<u32, Errno> {
    use mode::{CPHA, CPOL, RX_DUAL, RX_OCTAL, RX_QUAD, TX_DUAL, TX_OCTAL, TX_QUAD};
    let clock = asked & (CPHA | CPOL);
    let all = |bits| asked & bits == bits;
    let known = CPHA | CPOL | TX_DUAL | TX_QUAD | RX_DUAL | RX_QUAD | TX_OCTAL | RX_OCTAL;
    if asked & !known != 0 || clock == CPHA || clock == CPOL {
        return Err(Errno::EINVAL);
    }
    if all(TX_DUAL | TX_QUAD) || all(RX_DUAL | RX_QUAD) {
        return Err(Errno::EINVAL);
    }
    Ok(asked & !(TX_OCTAL | RX_OCTAL))
}

/// The size of a `struct spi_ioc_transfer`.
pub const TRANSFER_BYTES: u32 = 32;

/// One transfer, as the caller gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawTransfer {
    /// Where the bytes to send are, or 0: zeros are sent.
    pub tx_buf: u64,
    /// Where the received bytes go, or 0: nowhere.
    pub rx_buf: u64,
    /// How many bytes, each way.
    pub len: u32,
    /// The clock, or 0: as set.
    pub speed_hz: u32,
    /// A delay after the transfer.
    pub delay_usecs: u16,
    /// The length of words, or 0: as set.
    pub bits_per_word: u8,
    /// Not 0: CS# rises, and falls again for the next transfer.
    pub cs_change: u8,
    /// How many lines send, or 0: one.
    pub tx_nbits: u8,
    /// How many lines receive, or 0: one.
    pub rx_nbits: u8,
}

impl RawTransfer {
    /// Reads it. The delay between words, and padding, are not looked at: as with a controller without that delay.
    pub fn decode(bytes: &[u8; TRANSFER_BYTES as usize]) -> RawTransfer {
        let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7, rest @ ..] = *bytes;
        let [l0, l1, l2, l3, s0, s1, s2, s3, d0, d1, bits_per_word, cs_change, tx_nbits, rx_nbits, _, _] =
            rest;
        RawTransfer {
            tx_buf: u64::from_ne_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            rx_buf: u64::from_ne_bytes([b0, b1, b2, b3, b4, b5, b6, b7]),
            len: u32::from_ne_bytes([l0, l1, l2, l3]),
            speed_hz: u32::from_ne_bytes([s0, s1, s2, s3]),
            delay_usecs: u16::from_ne_bytes([d0, d1]),
            bits_per_word,
            cs_change,
            tx_nbits,
            rx_nbits,
        }
    }

    /// Writes it.
    pub fn encode(&self) -> [u8; TRANSFER_BYTES as usize] {
        let mut bytes = [0; TRANSFER_BYTES as usize];
        let fields = [
            self.tx_buf.to_ne_bytes().as_slice(),
            &self.rx_buf.to_ne_bytes(),
            &self.len.to_ne_bytes(),
            &self.speed_hz.to_ne_bytes(),
            &self.delay_usecs.to_ne_bytes(),
            &[self.bits_per_word, self.cs_change, self.tx_nbits, self.rx_nbits],
        ]
        .concat();
        bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        bytes
    }
}

/// Which way a transfer goes, and on which lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the chip, from the caller.
    Out(Lines),
    /// To the chip: zeros, on one line.
    Zeros,
    /// From the chip.
    In(Lines),
    /// Both at a time, on one line each.
    Both,
}

/// One transfer that can be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Which way.
    pub way: Way,
    /// How many bytes.
    pub len: usize,
    /// The clock, or 0: as set.
    pub speed_hz: u32,
    /// The time after it.
    pub delay_ns: u64,
    /// Whether CS# rises after it, when others follow.
    pub cs_change: bool,
}

/// A message that can be carried out, and the memory of the caller that it takes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The transfers.
    pub steps: Vec<Step>,
    /// Where the bytes to send are, in order.
    pub input: Vec<Region>,
    /// Where the received bytes go, in order.
    pub output: Vec<Region>,
    /// The sum of the input's lengths.
    pub input_bytes: usize,
    /// The sum of the output's lengths.
    pub output_bytes: usize,
    /// The sum of the transfers' lengths.
    pub total_bytes: usize,
}

impl Plan {
    /// Checks an array of transfers, as its bytes.
    ///
    /// `mode` is the device's; `buffer_bytes` is the driver's parameter `bufsiz`, the most that one message may carry each
    /// way. A transfer without a buffer counts too, other than in the kernel.
    ///
    /// # Errors
    /// EMSGSIZE: more than the buffer takes, or more buffers than the kernel fetches; EINVAL: words that are not 8 bits,
    /// lines that the mode does not allow, several lines both ways at a time.
    pub fn new(array: &[u8], mode: u32, buffer_bytes: u32) -> Result<Plan, Errno> {
        let (transfers, _) = array.as_chunks::<{ TRANSFER_BYTES as usize }>();
        let mut plan = Plan::default();
        let (mut sent, mut received, mut clocked) = (0, 0, 0);
        for bytes in transfers {
            let transfer = RawTransfer::decode(bytes);
            // The kernel keeps each transfer's part of the buffer aligned (ARCH_DMA_MINALIGN, 8 on x86-64).
            let aligned = u64::from(transfer.len).next_multiple_of(8);
            sent += if transfer.tx_buf != 0 { aligned } else { 0 };
            received += if transfer.rx_buf != 0 { aligned } else { 0 };
            clocked += if transfer.tx_buf | transfer.rx_buf == 0 { aligned } else { 0 };
            if sent.max(received).max(clocked) > u64::from(buffer_bytes) {
                return Err(Errno::EMSGSIZE);
            }
            plan.add(&transfer, mode)?;
        }
        // One region more: the array itself.
        if plan.input.len() + plan.output.len() + 1 > MAX_REGIONS {
            return Err(Errno::EMSGSIZE);
        }
        Ok(plan)
    }

    fn add(&mut self, transfer: &RawTransfer, mode: u32) -> Result<(), Errno> {
        if !matches!(transfer.bits_per_word, 0 | 8) {
            return Err(Errno::EINVAL);
        }
        let len = transfer.len as usize;
        let mut way = Way::Zeros;
        if transfer.tx_buf != 0 {
            way = Way::Out(lines(transfer.tx_nbits, mode, mode::TX_DUAL, mode::TX_QUAD)?);
            push(&mut self.input, transfer.tx_buf, transfer.len);
            self.input_bytes += len;
        }
        if transfer.rx_buf != 0 {
            let on = lines(transfer.rx_nbits, mode, mode::RX_DUAL, mode::RX_QUAD)?;
            way = match way {
                Way::Zeros => Way::In(on),
                Way::Out(Lines::Single) if on == Lines::Single => Way::Both,
                _ => return Err(Errno::EINVAL),
            };
            push(&mut self.output, transfer.rx_buf, transfer.len);
            self.output_bytes += len;
        }
        self.total_bytes += len;
        self.steps.push(Step {
            way,
            len,
            speed_hz: transfer.speed_hz,
            delay_ns: u64::from(transfer.delay_usecs) * 1000,
            cs_change: transfer.cs_change != 0,
        });
        Ok(())
    }
}

/// `__spi_validate`: quad allows dual.
fn lines(nbits: u8, mode: u32, dual: u32, quad: u32) -> Result<Lines, Errno> {
    match nbits {
        0 | 1 => Ok(Lines::Single),
        2 if mode & (dual | quad) != 0 => Ok(Lines::Dual),
        4 if mode & quad != 0 => Ok(Lines::Quad),
        _ => Err(Errno::EINVAL),
    }
}

/// Adds a region, or lets the last one grow where this follows it: the kernel fetches a limited number.
fn push(regions: &mut Vec<Region>, base: u64, len: u32) {
    if len == 0 {
        return;
    }
    match regions.last_mut() {
        Some(last) if last.base.checked_add(last.len) == Some(base) => last.len += u64::from(len),
        _ => regions.push(Region { base, len: u64::from(len) }),
    }
}
