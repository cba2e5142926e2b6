//! What Infiniswap (NSDI 2017) does, as a block device over the same nodes, links and rings as the swap device.
//!
//! Kept of it, after its source (SymbioticLab/Infiniswap, infiniswap_bd):
//! - one page per request: its queue takes no more (`MAX_SGL_LEN` is 1, and `blk_queue_max_hw_sectors` a page), and sends each
//!   as an operation of its own;
//! - slabs of 1 GiB on one node each, placed by the power of two choices on free memory; smaller for a small device
//!   ([`slab_blocks`]);
//! - no compression, no packing, no cache;
//! - every page also goes to a backup file, asynchronously and through a bounded staging area; reads go there when the page's
//!   node is gone or its slab was taken back, as a bitmap per page says.
//!
//! Different from it: slabs are mapped when the device starts, as far as nodes have room, and not when they become hot; a
//! backup is an option, and without one a page on a node that is gone is an error until the node is back.
//!
//! The invariant: a page that was acknowledged is read back as it was, or its read fails; never anything else.
//!
//! Memory: 2 bytes and 3 bits per page, 4 KiB per request in flight and per staged page.

mod backup;
mod keeper;
mod queue;
mod slabs;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use ublk_target::{DeviceSpec, DiscardSpec, Target};

use crate::Error;
use crate::link::LinkModel;
use crate::remote::RemoteNode;
use crate::units::{MAX_NODES, PAGE_BYTES};
use keeper::{Keeper, Shared};
pub use queue::InfiniQueue;
pub use slabs::slab_blocks;

/// What the device is.
#[derive(Debug, Clone)]
pub struct Config {
    /// Pages of the device.
    pub pages: u32,
    /// Requests in flight.
    pub depth: u16,
    /// Blocks of a slab; `None` for [`slab_blocks`].
    pub slab_blocks: Option<u32>,
    /// The backup file or block device; a file is made as large as the swap device, a block device must be.
    pub backup: Option<PathBuf>,
    /// Pages that may wait for the backup at once.
    pub staged_pages: u16,
    /// Seed of the placement's choices.
    pub seed: u64,
    /// The link to the nodes.
    pub link: LinkModel,
    /// How long the queue polls for answers before it sleeps, in ns.
    pub spin_ns: u64,
}

impl Config {
    /// A device of `pages` pages with the usual numbers, on no modelled link, without a backup.
    pub fn new(pages: u32, link: LinkModel) -> Self {
        Self {
            pages,
            depth: 64,
            slab_blocks: None,
            backup: None,
            staged_pages: 1024,
            seed: 1,
            link,
            spin_ns: 50_000,
        }
    }
}

/// The device as a ublk target.
pub struct Infiniswap {
    config: Config,
    shared: Arc<Shared>,
    backup: Option<Arc<File>>,
    keeper: Keeper,
}

/// Opens the backup and takes the nodes; [`Target::bind`] connects them and maps the slabs.
///
/// # Errors
/// No node, or too many; a number that cannot be; the backup cannot be opened or is too small.
pub fn open(config: Config, nodes: Vec<Arc<dyn RemoteNode>>) -> Result<Infiniswap, Error> {
    let bad = |text: String| Err(Error::Option(text));
    if nodes.is_empty() || nodes.len() > MAX_NODES {
        return bad(format!("{} nodes: 1 to {MAX_NODES} are needed (--node)", nodes.len()));
    }
    if config.pages == 0 || config.depth == 0 || config.staged_pages == 0 {
        return bad("a device with pages, a depth and a staging area is needed".to_owned());
    }
    let blocks = config.slab_blocks.unwrap_or_else(|| slab_blocks(config.pages, nodes.len()));
    if blocks == 0 || blocks > 1 << 20 {
        return bad(format!("a slab of {blocks} MiB: 1 MiB to 1 TiB is needed"));
    }
    let backup = match &config.backup {
        Some(path) => Some(Arc::new(open_backup(path, u64::from(config.pages) * PAGE_BYTES as u64)?)),
        None => None,
    };
    let shared = Arc::new(Shared::new(nodes, config.pages, blocks, backup.is_some(), config.seed));
    Ok(Infiniswap { config, shared, backup, keeper: Keeper::default() })
}

/// For direct I/O where the file system has it.
fn open_backup(path: &PathBuf, bytes: u64) -> Result<File, Error> {
    let open = |flags: libc::c_int| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(flags | libc::O_CLOEXEC).open(path)
    };
    let name = path.display();
    let failed = |what: &str, source| Error::System { what: format!("--backup {name}: {what}"), source };
    let file = match open(libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            log::warn!("--backup {name}: no direct I/O there, it goes through the page cache");
            open(0)
        }
        other => other,
    }
    .map_err(|error| failed("open", error))?;
    let found = file.metadata().map_err(|error| failed("stat", error))?;
    if found.is_file() {
        file.set_len(bytes).map_err(|error| failed("make it as large as the device", error))?;
        return Ok(file);
    }
    let held =
        std::io::Seek::seek(&mut &file, std::io::SeekFrom::End(0)).map_err(|error| failed("seek", error))?;
    if held < bytes {
        return Err(Error::Option(format!("--backup {name}: it holds {held} bytes, and the device {bytes}")));
    }
    Ok(file)
}

impl Target for Infiniswap {
    type Queue = InfiniQueue;

    fn kind(&self) -> &'static str {
        "dpuswap"
    }

    fn spec(&self) -> DeviceSpec {
        let size_bytes = u64::from(self.config.pages) * PAGE_BYTES as u64;
        let most = size_bytes.min(1 << 30);
        let operations = u32::from(self.config.depth) * 2 + u32::from(self.config.staged_pages);
        DeviceSpec {
            queues: 1,
            depth: self.config.depth,
            max_io_bytes: PAGE_BYTES as u32,
            ring_entries: operations.min(4096) as u16,
            discard: Some(DiscardSpec {
                granularity_bytes: PAGE_BYTES as u32,
                max_bytes: most,
                max_write_zeroes_bytes: most,
            }),
            ..DeviceSpec::new(size_bytes)
        }
    }

    fn bind(&self, _: u32) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.keeper.start(&self.shared)?)
    }

    fn open_queue(&self, queue: u16) -> Result<InfiniQueue, Box<dyn std::error::Error + Send + Sync>> {
        if queue != 0 {
            return Err("this mode has one queue".into());
        }
        Ok(InfiniQueue::new(&self.config, Arc::clone(&self.shared), self.backup.clone()))
    }

    fn stats(&self) -> serde_json::Value {
        self.shared.report()
    }

    fn stopped(&self) {
        self.keeper.stop(&self.shared);
    }
}
