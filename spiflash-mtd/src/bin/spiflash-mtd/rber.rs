//! `spiflash-mtd rber`: tables of bit errors of a simulated chip, as a test board measures them.

use anyhow::Context;
use clap::{Args, ValueEnum};
use spiflash_mtd::reliability::{ReliabilityError, ReliabilityParams, tables};
use std::io::{BufWriter, Write};

/// Print a table (CSV) of bit errors of a simulated chip; `scripts/figures` draws it.
#[derive(Args)]
pub(crate) struct RberArgs {
    /// Which table
    #[arg(value_enum, default_value = "pages")]
    table: Table,
    /// Built-in parameters, or a TOML file
    #[arg(long, default_value = "nor-65nm", value_name = "NAME|FILE")]
    errors: String,
    /// Changes a parameter; may be given more than once
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// Print the parameters' file instead of a table
    #[arg(long)]
    show: bool,
    /// Print the built-in parameters' names instead of a table
    #[arg(long)]
    list: bool,
    /// Where everything random starts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Blocks to measure
    #[arg(long, default_value_t = 4)]
    blocks: u32,
    /// How often each page is programmed and read
    #[arg(long, default_value_t = 1000)]
    repeats: u32,
    /// Erases of the blocks before, several with commas [default: the parameters' reference]
    #[arg(long, value_delimiter = ',', value_name = "CYCLES")]
    pe: Vec<u32>,
    /// Hours between programming and reading, several with commas [default: the parameters' reference]
    #[arg(long, value_delimiter = ',', value_name = "HOURS")]
    retention_hours: Vec<f64>,
    /// Reads of the block before, several with commas [default: 0]
    #[arg(long, value_delimiter = ',')]
    reads: Vec<u64>,
    /// The temperature in those hours [default: the parameters']
    #[arg(long, value_name = "CELSIUS", allow_negative_numbers = true)]
    temperature_c: Option<f64>,
    /// Print CSV, the only format there is
    #[arg(long)]
    csv: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Table {
    /// A row per block and page
    Pages,
    /// A row per written value
    Patterns,
    /// A row per combination of cycles, retention and reads
    Conditions,
}

/// What is wrong with a name or number that was given is a fault in what was asked.
pub(crate) fn asked(error: ReliabilityError) -> anyhow::Error {
    match error {
        ReliabilityError::Value { .. } | ReliabilityError::Unknown { .. } => {
            crate::Usage(error.to_string()).into()
        }
        _ => error.into(),
    }
}

impl RberArgs {
    /// Prints the table.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let mut out = BufWriter::new(std::io::stdout().lock());
        if self.list {
            for name in ReliabilityParams::names() {
                let about = ReliabilityParams::built_in_text(name).and_then(|text| text.lines().next());
                let about = about.unwrap_or_default().trim_start_matches("# ");
                writeln!(out, "{name:<12} {about}").context("writing to standard output")?;
            }
            return out.flush().context("writing to standard output");
        }
        let mut params =
            ReliabilityParams::load(&self.errors).and_then(|params| params.with(&self.set)).map_err(asked)?;
        if let Some(temperature_c) = self.temperature_c {
            params.temperature_c = temperature_c;
            params.check("--temperature-c").map_err(asked)?;
        }
        if self.show {
            let text = match ReliabilityParams::built_in_text(&self.errors) {
                // With its sources, if it is as it was.
                Some(text) if self.set.is_empty() && self.temperature_c.is_none() => text.to_owned(),
                _ => params.to_toml(),
            };
            out.write_all(text.as_bytes())
                .and_then(|()| out.flush())
                .context("writing to standard output")?;
            return Ok(());
        }
        let mut options = tables::TableOptions::new(&params);
        options.seed = self.seed;
        options.blocks = self.blocks;
        options.repeats = self.repeats;
        if !self.pe.is_empty() {
            options.cycles = self.pe.clone();
        }
        if !self.retention_hours.is_empty() {
            options.retention_hours = self.retention_hours.clone();
        }
        if !self.reads.is_empty() {
            options.reads = self.reads.clone();
        }
        let table = match self.table {
            Table::Pages => tables::Table::Pages,
            Table::Patterns => tables::Table::Patterns,
            Table::Conditions => tables::Table::Conditions,
        };
        tables::write_table(table, &params, &options, &mut out).map_err(asked)?;
        out.flush().context("writing to standard output")
    }
}
