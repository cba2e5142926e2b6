//! A device whose calls panic: what a bug inside a request looks like to everything above.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::Result;
use crate::device::{Geometry, Zone, ZoneId, ZonedDevice};

/// The call that is to panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Call {
    /// [`ZonedDevice::read`].
    Read = 1,
    /// [`ZonedDevice::write`].
    Write = 2,
    /// [`ZonedDevice::flush`].
    Flush = 3,
}

/// A device that does what another one does, but panics when told to.
pub struct Panicking {
    device: Arc<dyn ZonedDevice>,
    armed: AtomicU8,
}

impl Panicking {
    /// Wraps a device; nothing panics yet.
    pub fn new(device: Arc<dyn ZonedDevice>) -> Panicking {
        Panicking { device, armed: AtomicU8::new(0) }
    }

    /// From now on such calls panic before they reach the device; none is for no call.
    pub fn panic_in(&self, call: Option<Call>) {
        self.armed.store(call.map_or(0, |call| call as u8), Ordering::SeqCst);
    }

    fn pass(&self, call: Call) -> &dyn ZonedDevice {
        let armed = self.armed.load(Ordering::SeqCst) == call as u8;
        assert!(!armed, "{call:?} was told to panic");
        &*self.device
    }
}

impl ZonedDevice for Panicking {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn report(&self) -> Result<Vec<Zone>> {
        self.device.report()
    }

    fn report_zone(&self, zone: ZoneId) -> Result<Zone> {
        self.device.report_zone(zone)
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        self.pass(Call::Read).read(offset_bytes, buf)
    }

    fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<()> {
        self.pass(Call::Write).write(offset_bytes, data)
    }

    fn append(&self, zone: ZoneId, data: &[u8]) -> Result<u64> {
        self.pass(Call::Write).append(zone, data)
    }

    fn reset(&self, zone: ZoneId) -> Result<()> {
        self.device.reset(zone)
    }

    fn finish(&self, zone: ZoneId) -> Result<()> {
        self.device.finish(zone)
    }

    fn open(&self, zone: ZoneId) -> Result<()> {
        self.device.open(zone)
    }

    fn close(&self, zone: ZoneId) -> Result<()> {
        self.device.close(zone)
    }

    fn flush(&self) -> Result<()> {
        self.pass(Call::Flush).flush()
    }
}
