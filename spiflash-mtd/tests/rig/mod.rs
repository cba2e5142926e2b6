//! A chip on a bus, for tests that talk to it in frames.
#![allow(dead_code)]

use spiflash_mtd::bus::{SpiBus, Transfer};
use spiflash_mtd::{Chip, Setup, SimBus, part};
use std::sync::Arc;

pub(crate) struct Rig {
    pub(crate) bus: SimBus,
}

impl Rig {
    pub(crate) fn new(name: &str) -> Rig {
        Rig::with(name, &Setup::default())
    }

    pub(crate) fn with(name: &str, setup: &Setup) -> Rig {
        let part = part::find(name).unwrap_or_else(|| panic!("no part {name}"));
        Rig { bus: SimBus::of(Chip::new(Arc::new(part.clone()), setup).unwrap()) }
    }

    /// A frame of bytes to the chip.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.bus.frame(0, &mut [Transfer::write(bytes)]).unwrap();
    }

    /// A frame that reads after what it sends.
    pub(crate) fn read(&mut self, bytes: &[u8], count: usize) -> Vec<u8> {
        let mut out = vec![0; count];
        self.bus.frame(0, &mut [Transfer::write(bytes), Transfer::read(&mut out)]).unwrap();
        out
    }

    pub(crate) fn busy(&mut self) -> bool {
        self.read(&[0x05], 1)[0] & 1 == 1
    }

    pub(crate) fn wait_ns(&mut self, ns: u64) {
        self.bus.delay_ns(ns);
    }

    /// Write enable, the frame, and its end.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.send(&[0x06]);
        self.send(bytes);
        self.finish();
    }

    /// Until the chip is ready.
    pub(crate) fn finish(&mut self) {
        let until = self.bus.chip(0).unwrap().busy_until_ns();
        let now = self.bus.now_ns();
        if let Some(until) = until {
            self.bus.delay_ns(until.saturating_sub(now));
        }
        assert!(self.bus.chip(0).unwrap().busy_until_ns().is_none(), "it is still busy");
    }

    pub(crate) fn chip(&mut self) -> &Chip {
        self.bus.chip(0).unwrap()
    }
}
