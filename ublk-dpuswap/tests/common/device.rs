//! A swap device without a kernel: an engine and one of its queues in the test's thread.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use ublk_dpuswap::engine::{Config, Engine, MAX_REQUEST_PAGES, QueueWorker, memory_bytes};
use ublk_dpuswap::memory::Memory;
use ublk_dpuswap::remote::NodeOptions;
use ublk_dpuswap::secure::Security;
use ublk_dpuswap::units::PAGE_BYTES;
use ublk_target::local::LocalQueue;
use ublk_target::{Errno, Op};

pub struct Device {
    pub engine: Arc<Engine>,
    pub queue: LocalQueue<QueueWorker>,
}

pub fn engine(config: &Config, nodes: &[&str], security: &Security) -> Result<Engine, ublk_dpuswap::Error> {
    let options = NodeOptions { timeout: config.node_timeout, security: security.clone() };
    let nodes = nodes.iter().map(|name| options.open(name, 1)).collect::<Result<_, _>>()?;
    let memory = Memory::anonymous(memory_bytes(config)).unwrap();
    Engine::open(config.clone(), memory, 1, [7; 32], nodes)
}

impl Device {
    /// A device whose threads run.
    pub fn start(config: &Config, nodes: &[&str], security: &Security) -> Device {
        let engine = Arc::new(engine(config, nodes, security).unwrap());
        engine.start().unwrap();
        Device::of(engine)
    }

    pub fn of(engine: Arc<Engine>) -> Device {
        let queue = LocalQueue::new(engine.queue(0, 8), 8, MAX_REQUEST_PAGES * PAGE_BYTES).unwrap();
        Device { engine, queue }
    }

    pub fn request(&mut self, op: Op, first: u32, pages: u32, data: Option<&[u8]>) -> Result<u16, Errno> {
        let tag = self.queue.submit(op, u64::from(first) * 8, pages * 8, data).unwrap();
        let start = Instant::now();
        loop {
            self.queue.turn(Duration::from_millis(100)).unwrap();
            if let Some((done, result)) = self.queue.take_done() {
                assert_eq!(done, tag);
                return result.map(|_| tag);
            }
            assert!(start.elapsed() < Duration::from_secs(60), "a request hangs");
        }
    }

    pub fn write(&mut self, first: u32, data: &[u8]) -> Result<(), Errno> {
        self.request(Op::Write, first, (data.len() / PAGE_BYTES) as u32, Some(data)).map(drop)
    }

    pub fn read(&mut self, first: u32, pages: u32) -> Result<&[u8], Errno> {
        let tag = self.request(Op::Read, first, pages, None)?;
        Ok(self.queue.data(tag))
    }

    pub fn discard(&mut self, first: u32, pages: u32) {
        self.request(Op::Discard, first, pages, None).unwrap();
    }
}
