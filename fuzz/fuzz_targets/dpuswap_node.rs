//! A node and one peer: raw bytes, or messages that are well framed (and sealed, where the node has a key) and say anything.
//!
//! Input: a byte of switches, then either the bytes themselves or messages: opcode, length (2 bytes), payload.
#![no_main]

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use ublk_dpuswap::node::{Store, Wire, serve_one};
use ublk_dpuswap::proto::{HEADER_BYTES, Header, Hello, Opcode};
use ublk_dpuswap::secure::{Initiator, Key, Seals, Security};
use ublk_dpuswap::units::BLOCK_BYTES;

const OPCODES: [Opcode; 9] = [
    Opcode::Hello,
    Opcode::Reserve,
    Opcode::Release,
    Opcode::Write,
    Opcode::Read,
    Opcode::Stat,
    Opcode::Bye,
    Opcode::Held,
    Opcode::Secure,
];

/// The peer: what it has still to say, and what it was told.
struct Peer<'a> {
    script: &'a [u8],
    raw: bool,
    pending: Vec<u8>,
    initiator: Option<Initiator>,
    seals: Option<Seals>,
    told: usize,
}

impl Peer<'_> {
    fn put(&mut self, opcode: Opcode, payload: &[u8]) {
        let mut payload = payload.to_vec();
        let header = Header::request(opcode, 1, payload.len());
        match &mut self.seals {
            None => {
                self.pending.extend(header.encode(&payload, &[]));
                self.pending.extend(payload);
            }
            Some(seals) => {
                let raw = header.encode_sealed();
                let (clear, data) = payload.split_at_mut(header.clear_bytes());
                let tag = seals.send.seal(&raw, clear, data).unwrap();
                self.pending.extend(raw);
                self.pending.extend(payload);
                self.pending.extend(tag);
            }
        }
    }

    fn hello(&mut self) {
        let hello = Hello { client_id: 1, incarnation: 1, block_bytes: BLOCK_BYTES as u32, grace_s: 0 };
        self.put(Opcode::Hello, &hello.encode());
    }

    /// The next message of the script.
    fn next(&mut self) {
        if self.raw {
            self.pending.extend(std::mem::take(&mut self.script));
        } else if let Some(([opcode, low, high], rest)) = self.script.split_first_chunk() {
            let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
            let (payload, rest) = rest.split_at(len);
            self.script = rest;
            self.put(OPCODES[usize::from(*opcode) % OPCODES.len()], payload);
        }
    }
}

impl Wire for Peer<'_> {
    fn send(&mut self, parts: [&[u8]; 4], _: Instant) -> io::Result<()> {
        self.told += parts.iter().map(|part| part.len()).sum::<usize>();
        if let Some(initiator) = self.initiator.take() {
            // The node's answer to a good handshake is one, in clear.
            assert_eq!(parts[0].len(), HEADER_BYTES);
            self.seals = Some(initiator.finish(parts[2]).unwrap());
            self.hello();
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8], _: Option<Instant>) -> io::Result<usize> {
        if self.pending.is_empty() {
            self.next();
        }
        if self.pending.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = buffer.len().min(self.pending.len());
        buffer[..len].copy_from_slice(&self.pending[..len]);
        self.pending.drain(..len);
        Ok(len)
    }
}

fn store() -> &'static Arc<Store> {
    static STORE: OnceLock<Arc<Store>> = OnceLock::new();
    STORE.get_or_init(|| Arc::new(Store::new(4 << 20, 1).unwrap()))
}

fuzz_target!(|input: &[u8]| {
    let Some((&switches, script)) = input.split_first() else { return };
    let (raw, keyed, greeted) = (switches & 1 != 0, switches & 2 != 0, switches & 4 != 0);
    let key = Key::new([5; 32]);
    let mut peer = Peer { script, raw, pending: Vec::new(), initiator: None, seals: None, told: 0 };
    match (keyed, greeted) {
        (true, true) => {
            let (initiator, message) = Initiator::start(&key).unwrap();
            peer.put(Opcode::Secure, &message);
            peer.initiator = Some(initiator);
        }
        (false, true) => peer.hello(),
        _ => {}
    }
    let security = if keyed { Security::Psk(key) } else { Security::Plaintext };
    let _ = serve_one(Arc::clone(store()), security, peer);
    // Whatever was said, what it borrowed comes back.
    store().expire(Instant::now() + Duration::from_secs(10));
    assert_eq!(store().lent(), (0, 0));
    assert_eq!(store().report(Instant::now()).free_blocks, 4);
});
