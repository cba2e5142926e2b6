//! `run`: chips on a bus, and the fronts that bring clients to it.

use crate::{Usage, background, chips};
use anyhow::Context;
use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use spiflash_mtd::fronts::cuse::CuseServer;
use spiflash_mtd::fronts::cuse::mtd::CuseMtd;
use spiflash_mtd::fronts::cuse::spidev::{self, SpidevServer};
use spiflash_mtd::fronts::mtd::{self, MountOptions, Mounted, MtdDevice, MtdEntry};
use spiflash_mtd::fronts::serprog::{self, PtyServer, TcpServer};
use spiflash_mtd::fronts::{FrontError, SharedBus};
use spiflash_mtd::image::{Store, load_snapshot, save_snapshot};
use spiflash_mtd::part::Part;
use spiflash_mtd::trace::{JsonLog, JsonLogOptions, VcdOptions, VcdTrace};
use spiflash_mtd::{Chip, SimBus, SpiBus, TimeMode};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

#[derive(Args, Clone, Debug)]
pub(crate) struct Run {
    /// A part by name (see `parts`) or file; again for a second chip on the next chip select
    #[arg(long, default_value = "W25Q128JV", value_name = "NAME|FILE")]
    part: Vec<String>,
    /// Keep the chip in this file: made if it is not there; again for the next chip
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Go on from a snapshot, in the middle of whatever the chip was doing
    #[arg(long, value_name = "FILE", conflicts_with = "image")]
    restore: Option<PathBuf>,
    /// Write a snapshot of chip 0 when the server ends
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,
    #[command(flatten)]
    model: chips::Model,
    /// How time passes: real; bits (with each bit clocked); delays (with explicit delays only); poll-skip[:N] (as bits, and
    /// N status reads that say busy, 1 if not said, end the wait)
    #[arg(long, default_value = "poll-skip", value_name = "MODE", value_parser = chips::time_mode)]
    time: TimeMode,
    /// Cut the power of all chips at this time of the model, like 1.5ms
    #[arg(long, value_name = "TIME", value_parser = chips::time_ns)]
    cut_at: Option<u64>,
    /// Serve serprog over TCP [default, when no other front is asked for: 127.0.0.1:4000]
    #[arg(long, value_name = "ADDRESS:PORT")]
    serprog: Option<String>,
    /// Serve serprog on a pseudo terminal, with a link to it at this path
    #[arg(long, value_name = "PATH")]
    pty: Option<PathBuf>,
    /// Make /dev/spidevB.C of each chip (root and CUSE)
    #[arg(long, value_name = "B", num_args = 0..=1, default_missing_value = "0")]
    spidev: Option<u16>,
    /// Mount a directory here with mtd0, mtd1... and control and statistics files beside them
    #[arg(long, value_name = "DIR")]
    mtd: Option<PathBuf>,
    /// Make /dev/mtdN of each chip, from this N on (root and CUSE); programs that seek need --mtd
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "0")]
    cuse_mtd: Option<u16>,
    /// Trace the wires into this file (VCD, for sigrok and GTKWave)
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Log each command with its meaning into this file (JSON lines)
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Stay in the foreground, with the log on standard error
    #[arg(long)]
    foreground: bool,
    /// Write the process number here while it runs
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// The background process's log [default: in /run/storlab, or the user's runtime directory]
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

/// The fronts that were started; dropping one ends it.
#[derive(Default)]
struct Fronts {
    tcp: Option<TcpServer>,
    pty: Option<PtyServer>,
    spidev: Vec<SpidevServer>,
    cuse_mtd: Vec<CuseServer>,
    mtd: Option<Mounted>,
}

impl Run {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        if !self.foreground {
            let log = self.log_file.clone().unwrap_or_else(background::usual_log);
            println!("{}", background::start(&log)?);
            return Ok(());
        }
        // Blocked in all threads: one of them waits for them.
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        signals.thread_block().context("signals cannot be blocked")?;
        let bus = Arc::new(Mutex::new(self.bus()?));
        let mut fronts = self.start(&bus)?;
        if let Some(path) = &self.pid_file {
            std::fs::write(path, format!("{}\n", std::process::id()))
                .with_context(|| format!("the pid file {} cannot be written", path.display()))?;
        }
        println!("{}", self.news(&fronts));
        std::io::Write::flush(&mut std::io::stdout()).context("standard output")?;
        let signal = signals.wait().context("signals cannot be waited for")?;
        log::info!("{signal}: the chips are put away");
        if let Some(mounted) = fronts.mtd.take() {
            mounted.unmounter().unmount().context("the MTD directory cannot be unmounted")?;
            mounted.wait().context("the MTD directory")?;
        }
        drop(fronts);
        self.put_away(&bus)
    }

    fn bus(&self) -> anyhow::Result<SimBus> {
        if self.image.len() > self.part.len() {
            let (images, parts) = (self.image.len(), self.part.len());
            return Err(Usage(format!(
                "--image is given {images} times for {parts} chips: at most one for each"
            ))
            .into());
        }
        let mut made = Vec::new();
        let mut stores = Vec::new();
        for (number, name) in self.part.iter().enumerate() {
            let part = chips::part(name)?;
            let mut chip = self.model.chip(&part, number as u64)?;
            if let Some(path) = self.restore.as_ref().filter(|_| number == 0) {
                load_snapshot(&mut chip, path)?;
            }
            if let Some(path) = self.image.get(number) {
                let select = u8::try_from(number).map_err(|_| Usage("--part: at most 255 chips".into()))?;
                stores.push(Store::open(&mut chip, select, path)?);
            }
            chip.set_cut_at_ns(self.cut_at.map(|at| at.max(chip.now_ns())));
            made.push(chip);
        }
        let begun = Instant::now();
        let first_ns = made.iter().map(Chip::now_ns).max().unwrap_or(0);
        let real_ns = move || first_ns.saturating_add(begun.elapsed().as_nanos() as u64);
        let mut bus = SimBus::new(made, self.time, real_ns);
        for store in stores {
            bus.observe(Box::new(store));
        }
        self.watch(&mut bus)?;
        Ok(bus)
    }

    /// Traces and logs.
    fn watch(&self, bus: &mut SimBus) -> anyhow::Result<()> {
        let create = |path: &Path| {
            std::fs::File::create(path).with_context(|| format!("{} cannot be created", path.display()))
        };
        if let Some(path) = &self.trace {
            let (file, name) = (create(path)?, path.display().to_string());
            let trace = VcdTrace::new(bus, file, &name, VcdOptions::default());
            bus.observe(Box::new(trace));
        }
        if let Some(path) = &self.log {
            let (file, name) = (create(path)?, path.display().to_string());
            bus.observe(Box::new(JsonLog::new(file, &name, JsonLogOptions::default())));
        }
        Ok(())
    }

    fn start(&self, bus: &Arc<Mutex<SimBus>>) -> anyhow::Result<Fronts> {
        let shared: SharedBus = bus.clone();
        let mut fronts = Fronts::default();
        let others = [self.pty.is_some(), self.spidev.is_some(), self.mtd.is_some(), self.cuse_mtd.is_some()];
        let none = self.serprog.is_none() && others == [false; 4];
        let mut options = serprog::Options::default();
        if others != [false; 4] {
            // flashrom switches the pins off when it ends: the chip is not its own.
            options.pin_state = serprog::PinState::Ignored;
        }
        if let Some(address) = self.serprog.as_deref().or(none.then_some("127.0.0.1:4000")) {
            let address = serprog::parse_address(address).map_err(usage)?;
            fronts.tcp = Some(TcpServer::bind(address, shared.clone(), options.clone())?);
        }
        if let Some(path) = &self.pty {
            fronts.pty = Some(PtyServer::open(path, shared.clone(), options)?);
        }
        if let Some(bus_number) = self.spidev {
            for chip_select in 0..lock(bus).chips() {
                let options = spidev::Options { bus_number, chip_select, ..spidev::Options::default() };
                fronts.spidev.push(SpidevServer::start(shared.clone(), options)?);
            }
        }
        let devices = || -> anyhow::Result<Vec<Arc<MtdDevice>>> {
            let parts: Vec<_> = {
                let mut bus = lock(bus);
                (0..bus.chips())
                    .filter_map(|select| bus.chip(select).map(|chip| Arc::clone(chip.part())))
                    .collect()
            };
            let device = |(select, part): (u8, Arc<Part>)| {
                let device = MtdDevice::new(&format!("mtd{select}"), shared.clone(), part, select)?;
                Ok(Arc::new(device))
            };
            (0u8..).zip(parts).map(device).collect()
        };
        if let Some(first) = self.cuse_mtd {
            for (number, device) in (first..).zip(devices()?) {
                let front = Box::new(CuseMtd::new(device));
                fronts.cuse_mtd.push(CuseServer::start(&format!("mtd{number}"), front)?);
            }
        }
        if let Some(dir) = &self.mtd {
            let mut entries = Vec::new();
            for (device, name) in devices()?.into_iter().zip(&self.part) {
                entries.push(MtdEntry { device, control: bus.clone(), part_text: chips::part_text(name)? });
            }
            let mounted = mtd::mount(entries, dir, &MountOptions::default());
            fronts.mtd =
                Some(mounted.with_context(|| format!("--mtd {}: it cannot be mounted", dir.display()))?);
        }
        Ok(fronts)
    }

    /// What is said when everything is served: one line.
    fn news(&self, fronts: &Fronts) -> String {
        let mut places = Vec::new();
        places.extend(fronts.tcp.as_ref().map(|tcp| format!("serprog on {}", tcp.address())));
        places.extend(self.pty.as_ref().map(|path| format!("serprog on {}", path.display())));
        places.extend(self.mtd.as_ref().map(|dir| format!("MTD in {}", dir.display())));
        places.extend(fronts.cuse_mtd.iter().map(|server| server.node().display().to_string()));
        places.extend(fronts.spidev.iter().map(|spidev| spidev.node().display().to_string()));
        format!("{} served: {} (process {})", self.part.join(", "), places.join(", "), std::process::id())
    }

    /// The orderly end: images whole and durable.
    fn put_away(&self, bus: &Arc<Mutex<SimBus>>) -> anyhow::Result<()> {
        let mut bus = lock(bus);
        if let (Some(path), Some(chip)) = (&self.snapshot, bus.chip(0)) {
            save_snapshot(chip, path)?;
        }
        bus.end_observers();
        if let Some(path) = &self.pid_file {
            remove(path);
        }
        Ok(())
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        log::warn!("{}: {error}", path.display());
    }
}

fn lock(bus: &Arc<Mutex<SimBus>>) -> std::sync::MutexGuard<'_, SimBus> {
    bus.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An option of a front that cannot be is a fault in what was asked.
fn usage(error: FrontError) -> anyhow::Error {
    match error {
        FrontError::Option { .. } => Usage(error.to_string()).into(),
        other => other.into(),
    }
}
