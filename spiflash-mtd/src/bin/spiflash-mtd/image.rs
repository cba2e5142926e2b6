//! Image files on the command line.

use crate::chips;
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use spiflash_mtd::image::{Store, load};
use spiflash_mtd::map::ArrayMap;
use spiflash_mtd::{Chip, Setup};
use std::path::PathBuf;

#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Make an image file of a part, from a raw image or as delivered
    #[command(
        after_help = "Example:\n  spiflash-mtd image create bios.flash --part W25Q128JV --from bios.bin"
    )]
    Create(Create),
    /// Write the raw bytes of an image file
    #[command(after_help = "Example:\n  spiflash-mtd image export bios.flash --part W25Q128JV --to bios.bin")]
    Export(Export),
    /// Draw what an image file holds, sector by sector: erased, programmed, worn, protected
    #[command(after_help = "Example:\n  spiflash-mtd image map bios.flash --part W25Q128JV")]
    Map(Check),
    /// Say what an image file holds, and whether it is right
    #[command(after_help = "Example:\n  spiflash-mtd image check bios.flash --part W25Q128JV --json")]
    Check(Check),
}

#[derive(Args)]
struct Which {
    /// The image file
    file: PathBuf,
    /// The part, by name or file
    #[arg(long, default_value = "W25Q128JV", value_name = "NAME|FILE")]
    part: String,
    /// The seed it was made with
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Which {
    fn chip(&self) -> anyhow::Result<Chip> {
        let part = chips::part(&self.part)?;
        Ok(Chip::new(part, &Setup { seed: self.seed, ..Setup::default() })?)
    }
}

#[derive(Args)]
pub(crate) struct Create {
    #[command(flatten)]
    which: Which,
    /// Raw bytes for the array, from address 0; the rest is FFh
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Export {
    #[command(flatten)]
    which: Which,
    /// The raw file to write
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

#[derive(Args)]
pub(crate) struct Check {
    #[command(flatten)]
    which: Which,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ImageCommand {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        match self {
            ImageCommand::Create(args) => args.run(),
            ImageCommand::Export(args) => args.run(),
            ImageCommand::Map(args) => args.map(),
            ImageCommand::Check(args) => args.run(),
        }
    }
}

impl Create {
    fn run(&self) -> anyhow::Result<()> {
        if self.which.file.exists() {
            bail!("{}: it is there already; remove it first", self.which.file.display());
        }
        let mut chip = self.which.chip()?;
        if let Some(from) = &self.from {
            let raw = std::fs::read(from).with_context(|| format!("{} cannot be read", from.display()))?;
            let most = chip.array().len();
            if raw.len() as u64 > most {
                bail!("{}: {} bytes, and {} has {most}", from.display(), raw.len(), self.which.part);
            }
            chip.array_mut().write(0, &raw, 0);
        }
        let mut store = Store::open(&mut chip, 0, &self.which.file)?;
        store.close(&mut chip)?;
        Ok(())
    }
}

impl Export {
    fn run(&self) -> anyhow::Result<()> {
        let mut chip = self.which.chip()?;
        load(&mut chip, &self.which.file)?;
        let mut raw = vec![0; chip.array().len() as usize];
        chip.array().read(0, &mut raw);
        std::fs::write(&self.to, raw).with_context(|| format!("{} cannot be written", self.to.display()))
    }
}

impl Check {
    fn map(&self) -> anyhow::Result<()> {
        let mut chip = self.which.chip()?;
        load(&mut chip, &self.which.file)?;
        let map = ArrayMap::of(&chip);
        if self.json {
            println!("{}", serde_json::to_string_pretty(&map)?);
        } else {
            print!("{map}");
        }
        Ok(())
    }

    fn run(&self) -> anyhow::Result<()> {
        let mut chip = self.which.chip()?;
        let torn_bytes = load(&mut chip, &self.which.file)?;
        let array = chip.array();
        let units = (0..array.unit_count()).filter_map(|unit| array.unit(unit));
        let cycles: Vec<u64> = units.clone().map(|unit| u64::from(unit.cycles)).collect();
        let programmed = units.filter(|unit| !unit.is_blank()).count();
        let report = serde_json::json!({
            "file": self.which.file, "part": chip.part().name, "sectors": array.unit_count(),
            "sectors_with_data": programmed, "erases": cycles.iter().sum::<u64>(),
            "most_erases_of_a_sector": cycles.iter().max(), "chip_time_ns": chip.now_ns(),
            "protected": chip.protected_range(), "torn_bytes": torn_bytes, "statistics": chip.stats(),
        });
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            println!(
                "{}: {}, {programmed} of {} sectors hold data, {} erases, at most {} of a sector; {torn_bytes} bytes of a torn tail",
                self.which.file.display(),
                chip.part().name,
                array.unit_count(),
                cycles.iter().sum::<u64>(),
                cycles.iter().max().unwrap_or(&0),
            );
        }
        Ok(())
    }
}
