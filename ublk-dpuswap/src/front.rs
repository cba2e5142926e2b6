//! The ublk front: what the device is to the kernel, and how an engine is made for it. It holds no policy.
//!
//! Everything that a swapped-on device must not lose with its daemon is in a file on a `noswap` tmpfs of the device's own
//! ([`crate::durable`]): a killed daemon's successor maps the same file and goes on.

use std::sync::{Arc, OnceLock};

use ublk_target::{DeviceSpec, DiscardSpec, Recovery, Target};

use crate::durable::Durable;
use crate::engine::{Config, Engine, QueueWorker, memory_bytes};
use crate::error::Error;
use crate::membership::{announced, follow};
use crate::memory::Memory;
use crate::remote::NodeOptions;
use crate::units::PAGE_BYTES;

/// The longest discard taken in one request; the kernel splits longer ones.
const MAX_DISCARD_BYTES: u64 = 1 << 30;
/// Room in each queue's ring beside the device's own commands: a receive and a send per node, and some.
const RING_ENTRIES: u16 = 256;

/// What a device is made of.
#[derive(Clone)]
pub struct Plan {
    /// The engine's settings.
    pub config: Config,
    /// Requests in flight per queue.
    pub depth: u16,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// Where more of them are announced.
    pub discover: Option<String>,
    /// How nodes are reached.
    pub options: NodeOptions,
    /// Take over what a killed daemon left.
    pub recover: bool,
    /// Keep the state in plain memory: the device does not survive its daemon.
    pub volatile: bool,
}

/// The swap device as a ublk target.
pub struct SwapDevice {
    plan: Plan,
    engine: OnceLock<Arc<Engine>>,
    durable: OnceLock<Durable>,
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

impl SwapDevice {
    /// A device as planned. It is made when its number is known: [`Target::bind`].
    pub fn new(plan: Plan) -> Self {
        Self { plan, engine: OnceLock::new(), durable: OnceLock::new() }
    }

    fn make(&self, id: u32) -> Result<Engine, Error> {
        let plan = &self.plan;
        let bytes = memory_bytes(&plan.config);
        let memory = match (plan.volatile, plan.recover) {
            (true, _) => Memory::anonymous(bytes)
                .map_err(|source| Error::System { what: format!("{bytes} bytes of memory"), source })?,
            (false, false) => self.keep(Durable::create(id, bytes)?).memory(bytes)?,
            (false, true) => self.keep(Durable::reopen(id)?).memory(bytes)?,
        };
        if plan.recover {
            let remake = |name: &str, client_id| plan.options.open(name, client_id);
            let (engine, found) = Engine::recover(plan.config.clone(), memory, remake)?;
            log::warn!(
                "device {id}: goes on with {} pages ({} of them only here) in {} blocks, {} repaired",
                found.pages,
                found.dirty,
                found.blocks,
                found.repaired
            );
            return Ok(engine);
        }
        let (client_id, page_key) = (random_number()?, random_bytes()?);
        let mut names = plan.nodes.clone();
        if let Some(discover) = &plan.discover {
            names.extend(announced(discover)?.into_iter().filter(|address| !plan.nodes.contains(address)));
        }
        let nodes = names.iter().map(|name| plan.options.open(name, client_id)).collect::<Result<_, _>>()?;
        Engine::open(plan.config.clone(), memory, client_id, page_key, nodes)
    }

    fn keep(&self, durable: Durable) -> &Durable {
        self.durable.get_or_init(|| durable)
    }

    fn engine(&self) -> Result<&Arc<Engine>, Boxed> {
        self.engine.get().ok_or_else(|| "the device is not bound to its number yet".into())
    }
}

/// A number that nobody else has.
///
/// # Errors
/// The system has no random numbers.
pub fn random_number() -> Result<u64, Error> {
    Ok(u64::from_le_bytes(random_bytes()?))
}

fn random_bytes<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    // SAFETY: the array is valid for writes of its length.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    if got == N as isize {
        return Ok(bytes);
    }
    Err(Error::System { what: "random numbers".to_owned(), source: std::io::Error::last_os_error() })
}

impl Target for SwapDevice {
    type Queue = QueueWorker;

    fn kind(&self) -> &'static str {
        "dpuswap"
    }

    fn spec(&self) -> DeviceSpec {
        let size_bytes = u64::from(self.plan.config.pages) * PAGE_BYTES as u64;
        let most = size_bytes.min(MAX_DISCARD_BYTES);
        let granularity_bytes = PAGE_BYTES as u32;
        DeviceSpec {
            queues: self.plan.config.queues,
            depth: self.plan.depth,
            discard: Some(DiscardSpec { granularity_bytes, max_bytes: most, max_write_zeroes_bytes: most }),
            // A swap-out is a whole page: sending it again changes nothing.
            recovery: if self.plan.volatile { Recovery::None } else { Recovery::Reissue },
            ring_entries: RING_ENTRIES,
            ..DeviceSpec::new(size_bytes)
        }
    }

    fn bind(&self, id: u32) -> Result<(), Boxed> {
        let made = self.make(id).inspect_err(|_| {
            if let Some(durable) = self.durable.get().filter(|_| !self.plan.recover) {
                durable.remove();
            }
        });
        let engine = Arc::new(made?);
        engine.start()?;
        if let Some(discover) = &self.plan.discover {
            let (options, client_id) = (self.plan.options.clone(), engine.client_id());
            follow(discover, &engine, move |name| options.open(name, client_id))?;
        }
        self.engine.set(engine).map_err(|_| "bound twice".into())
    }

    fn open_queue(&self, queue: u16) -> Result<QueueWorker, Boxed> {
        Ok(self.engine()?.queue(queue, self.plan.depth))
    }

    fn stats(&self) -> serde_json::Value {
        let report = self.engine.get().map(|engine| engine.report());
        serde_json::to_value(report).unwrap_or_default()
    }

    fn stopped(&self) {
        if let Some(engine) = self.engine.get() {
            engine.stop();
        }
        if let Some(durable) = self.durable.get() {
            durable.remove();
        }
    }
}
