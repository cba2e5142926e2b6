//! Random steps for both chips: plausible sequences mostly, frames that are cut short, too long or on wrong lines at times.

use std::collections::VecDeque;
use std::fmt::Write as _;

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `n`.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// A part of a frame.
#[derive(Clone)]
pub(crate) enum Piece {
    Send(u8, Vec<u8>),
    Receive(u8, usize),
    Both(Vec<u8>),
    Wait(u64),
}

#[derive(Clone)]
pub(crate) enum Step {
    /// Pieces, and clocks after the last whole byte.
    Frame(Vec<Piece>, u8),
    Wait(u64),
    /// Until so many nanoseconds around the end of what is under way.
    WaitForEnd(i64),
    Power(bool),
    WriteProtect(bool),
}

/// A step, for the history.
pub(crate) fn show(step: &Step) -> String {
    let hex = |bytes: &[u8]| {
        let mut text: String = bytes.iter().take(12).map(|byte| format!("{byte:02x} ")).collect();
        if bytes.len() > 12 {
            let _ = write!(text, "... {} bytes", bytes.len());
        }
        text
    };
    match step {
        Step::Wait(ns) => format!("wait {ns} ns"),
        Step::WaitForEnd(around) => format!("wait until {around} ns after the end"),
        Step::Power(on) => format!("power {}", if *on { "on" } else { "off" }),
        Step::WriteProtect(low) => format!("WP# {}", if *low { "low" } else { "high" }),
        Step::Frame(pieces, stray) => {
            let mut text = String::from("frame");
            for piece in pieces {
                let _ = match piece {
                    Piece::Send(lines, bytes) => write!(text, " | send/{lines} {}", hex(bytes)),
                    Piece::Receive(lines, count) => write!(text, " | receive/{lines} {count} bytes"),
                    Piece::Both(bytes) => write!(text, " | both {}", hex(bytes)),
                    Piece::Wait(ns) => write!(text, " | wait {ns} ns"),
                };
            }
            if *stray > 0 {
                let _ = write!(text, " | {stray} clocks");
            }
            text
        }
    }
}

/// What comes next.
pub(crate) struct Generator {
    random: Random,
    next: VecDeque<Step>,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Generator {
        Generator { random: Random(seed), next: VecDeque::new() }
    }

    fn address(&mut self) -> [u8; 3] {
        let base = self.random.pick(&[
            0, 0x1000, 0x8000, 0x1_0000, 0x1_F000, 0x7F_8000, 0x7F_F000, 0x80_0000, 0xFB_F000, 0xFC_0000,
            0xFF_0000, 0xFF_8000, 0xFF_C000, 0xFF_E000, 0xFF_F000,
        ]);
        let within = match self.random.below(4) {
            0 => 0,
            1 => self.random.below(0x20),
            2 => 0xFF0 + self.random.below(0x10),
            _ => self.random.below(0x1000),
        };
        let [_, bytes @ ..] = (base as u32 + within as u32).to_be_bytes();
        bytes
    }

    fn security_address(&mut self) -> [u8; 3] {
        if self.random.one_in(20) {
            return [0, self.random.pick(&[0x00, 0x40, 0x11]), self.random.byte()];
        }
        let within = self.random.byte();
        [0, self.random.pick(&[0x10, 0x20, 0x30]), self.random.pick(&[0, 0xF8, within])]
    }

    fn bytes(&mut self) -> Vec<u8> {
        let count = match self.random.below(8) {
            0 => 256,
            1 => 257 + self.random.below(60),
            2 => self.random.below(256),
            _ => 1 + self.random.below(12),
        };
        (0..count).map(|_| self.random.byte() | self.random.byte()).collect()
    }

    fn short(&mut self) -> usize {
        1 + self.random.below(12) as usize
    }

    /// The opcode, what follows on the address's lines, and the data.
    fn pieces(&mut self, opcode: u8) -> Vec<Piece> {
        let address = self.address();
        let count = self.short();
        let mut pieces = vec![Piece::Send(1, vec![opcode])];
        match opcode {
            0x05 | 0x35 | 0x15 | 0x9F => pieces.push(Piece::Receive(1, count)),
            0x01 => {
                let two = self.random.one_in(3);
                let mut values = vec![self.status_value(0)];
                if two {
                    values.push(self.status_value(1));
                }
                pieces.push(Piece::Send(1, values));
            }
            0x31 => pieces.push(Piece::Send(1, vec![self.status_value(1)])),
            0x11 => pieces.push(Piece::Send(1, vec![self.status_value(2)])),
            0x20 | 0x52 | 0xD8 | 0x36 | 0x39 => pieces.push(Piece::Send(1, address.to_vec())),
            0x44 => pieces.push(Piece::Send(1, self.security_address().to_vec())),
            0x02 | 0x32 | 0x42 => {
                let address = if opcode == 0x42 { self.security_address() } else { address };
                pieces.push(Piece::Send(1, address.to_vec()));
                pieces.push(Piece::Send(if opcode == 0x32 { 4 } else { 1 }, self.bytes()));
            }
            0x03 => pieces.extend([Piece::Send(1, address.to_vec()), Piece::Receive(1, count * 4)]),
            0x0B | 0x3B | 0x6B | 0x48 | 0x5A => {
                let mut head = match opcode {
                    0x48 => self.security_address(),
                    0x5A => [0, 0, self.random.byte()],
                    _ => address,
                }
                .to_vec();
                head.push(self.random.byte());
                let lines = match opcode {
                    0x3B => 2,
                    0x6B => 4,
                    _ => 1,
                };
                pieces.extend([Piece::Send(1, head), Piece::Receive(lines, count * 3)]);
            }
            0xBB => {
                let head = [&address[..], &[self.random.byte()]].concat();
                pieces.extend([Piece::Send(2, head), Piece::Receive(2, count * 2)]);
            }
            0xEB => {
                let head = [&address[..], &[self.random.byte(), 0, 0]].concat();
                pieces.extend([Piece::Send(4, head), Piece::Receive(4, count * 8)]);
            }
            0x77 => pieces.push(Piece::Send(4, vec![0, 0, 0, self.random.byte()])),
            0x90 => {
                let low = self.random.byte() & 1;
                pieces.extend([Piece::Send(1, vec![0, 0, low]), Piece::Receive(1, count)]);
            }
            0x3D => pieces.extend([Piece::Send(1, address.to_vec()), Piece::Receive(1, 1)]),
            0x4B => pieces.extend([Piece::Send(1, vec![0; 4]), Piece::Receive(1, 8)]),
            0xAB if self.random.one_in(2) => {
                pieces.extend([Piece::Send(1, vec![0; 3]), Piece::Receive(1, count)]);
            }
            _ => (),
        }
        pieces
    }

    fn status_value(&mut self, register: usize) -> u8 {
        let random = self.random.byte();
        match register {
            0 if self.random.one_in(3) => random & 0x7F,
            0 if self.random.one_in(4) => random,
            0 => 0,
            1 => {
                let mut value = 0x02 | random & 0x40;
                if self.random.one_in(6) {
                    value &= !0x02;
                }
                if self.random.one_in(12) {
                    value |= random & 0x38;
                }
                if self.random.one_in(20) {
                    value |= random & 0x85;
                }
                value
            }
            _ => random & self.random.pick(&[0xFF, 0x60]),
        }
    }

    /// A frame as it should be, or now and then not.
    fn frame(&mut self, opcode: u8) -> Step {
        let mut pieces = self.pieces(opcode);
        let mut stray = 0;
        if self.random.one_in(10) {
            match self.random.below(6) {
                0 => self.cut(&mut pieces),
                1 => pieces.push(Piece::Send(1, vec![self.random.byte(); 1])),
                2 => pieces.push(Piece::Receive(1, 1)),
                3 => stray = 1 + self.random.below(7) as u8,
                4 => {
                    let at = self.random.below(pieces.len() as u64) as usize;
                    let other = self.random.pick(&[1, 2, 4]);
                    // Dummy bytes on other lines are other numbers of clocks, and the data would begin within a byte.
                    if !matches!(opcode, 0xAB | 0x4B) {
                        match &mut pieces[at] {
                            Piece::Send(lines, _) | Piece::Receive(lines, _) => *lines = other,
                            _ => (),
                        }
                    }
                }
                _ => {
                    let at = 1 + self.random.below(pieces.len() as u64) as usize;
                    let wait = self.short_wait();
                    pieces.insert(at, Piece::Wait(wait));
                }
            }
        } else if self.random.one_in(30) {
            // The same in both directions at a time.
            let one_line =
                pieces.iter().all(|piece| matches!(piece, Piece::Send(1, _) | Piece::Receive(1, _)));
            if one_line {
                let mut bytes = Vec::new();
                for piece in &pieces {
                    match piece {
                        Piece::Send(_, sent) => bytes.extend_from_slice(sent),
                        Piece::Receive(_, count) => bytes.extend((0..*count).map(|_| self.random.byte())),
                        _ => (),
                    }
                }
                pieces = vec![Piece::Both(bytes)];
            }
        }
        Step::Frame(pieces, stray)
    }

    fn cut(&mut self, pieces: &mut Vec<Piece>) {
        let keep = self.random.below(pieces.len() as u64) as usize;
        pieces.truncate(keep + 1);
        if let Some(Piece::Send(_, bytes)) = pieces.last_mut() {
            bytes.truncate(self.random.below(bytes.len() as u64 + 1) as usize);
        }
    }

    fn short_wait(&mut self) -> u64 {
        match self.random.below(5) {
            0 => 1,
            1 => self.random.below(25_000),
            2 => 20_000,
            3 => self.random.below(1_000_000),
            _ => self.random.below(60_000_000),
        }
    }

    fn pause(&mut self) -> Step {
        match self.random.below(12) {
            0..=3 => Step::Wait(self.short_wait()),
            4 => Step::WaitForEnd(-1),
            5..=9 => Step::WaitForEnd(0),
            10 => Step::WaitForEnd(-(self.random.below(30_000) as i64)),
            _ => Step::WaitForEnd(self.random.below(100_000) as i64),
        }
    }

    fn reader(&mut self) -> u8 {
        self.random.pick(&[
            0x05, 0x05, 0x05, 0x35, 0x35, 0x15, 0x03, 0x03, 0x0B, 0x3B, 0x6B, 0xBB, 0xEB, 0xEB, 0x9F, 0x90,
            0x4B, 0x5A, 0x48, 0x3D, 0xAB,
        ])
    }

    fn writer(&mut self) -> u8 {
        if self.random.one_in(150) {
            return self.random.pick(&[0x60, 0xC7]);
        }
        self.random.pick(&[
            0x02, 0x02, 0x02, 0x02, 0x02, 0x32, 0x32, 0x20, 0x20, 0x20, 0x52, 0xD8, 0x01, 0x01, 0x31, 0x11,
            0x42, 0x42, 0x44, 0x36, 0x39, 0x7E, 0x98, 0x98,
        ])
    }

    /// Steps that belong together.
    fn plan(&mut self) {
        let mut opcodes = Vec::new();
        match self.random.below(100) {
            0..=43 => {
                opcodes.push(0x06);
                if self.random.one_in(20) {
                    opcodes.push(self.reader());
                }
                opcodes.push(self.writer());
                opcodes.push(0x05);
                if self.random.one_in(4) {
                    opcodes.extend([0x75, self.random.pick(&[0x05, 0x35])]);
                }
            }
            44..=47 => opcodes.extend([0x50, self.random.pick(&[0x01, 0x31, 0x11]), 0x05, 0x35]),
            48..=50 => {
                opcodes.push(0x66);
                if self.random.one_in(5) {
                    opcodes.push(self.reader());
                }
                opcodes.extend([0x99, 0x05, 0x35]);
            }
            51 => opcodes.extend([0xB9, self.reader(), 0xAB]),
            52 | 53 => opcodes.extend([0x77, 0xEB]),
            54..=57 => opcodes.extend([0x75, 0x35, 0x05]),
            58..=62 => opcodes.extend([0x7A, 0x35, 0x05]),
            63 => opcodes.push(self.writer()),
            64 => opcodes.push(self.random.pick(&[0x04, 0x06, 0x50, 0xB9, 0x66, 0x99])),
            65 => opcodes.push(self.random.byte()),
            66 => {
                self.next.push_back(Step::WriteProtect(self.random.one_in(2)));
            }
            67 if self.random.one_in(3) => {
                let (off, on) = (self.random.below(50_000), self.random.below(50_000));
                self.next.extend([Step::Power(false), Step::Wait(off)]);
                if self.random.one_in(4) {
                    opcodes.push(self.reader());
                    let status = self.pieces(0x05);
                    self.next.push_back(Step::Frame(status, 0));
                }
                self.next.extend([Step::Power(true), Step::Wait(on)]);
            }
            67..=69 => opcodes.extend([0x98, 0x3D]),
            70 => self.next.push_back(Step::Frame(Vec::new(), 0)),
            71 => self.next.push_back(Step::Wait(1_000_000_000)),
            72..=84 => {
                let pause = self.pause();
                self.next.push_back(pause);
            }
            _ => opcodes.push(self.reader()),
        }
        for opcode in opcodes {
            let frame = self.frame(opcode);
            self.next.push_back(frame);
            if self.random.one_in(6) {
                let pause = self.pause();
                self.next.push_back(pause);
            }
        }
        if self.random.one_in(3) {
            self.next.push_back(Step::WaitForEnd(0));
        }
    }

    pub(crate) fn step(&mut self) -> Step {
        loop {
            if let Some(step) = self.next.pop_front() {
                return step;
            }
            self.plan();
        }
    }
}
