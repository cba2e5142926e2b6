//! `spiflash-mtd fit`: from measurements of a chip to the model's parameters.

use anyhow::Context;
use clap::Args;
use spiflash_mtd::reliability::{Measurement, ReliabilityParams, fit, read_csv};
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

/// Find the reliability parameters of a measured chip; prints a parameter file.
#[derive(Args)]
pub(crate) struct FitArgs {
    /// Measurements: CSV with the columns of `spiflash-mtd rber`
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The chip's shape, the references, and the values of what cannot be told: built-in parameters, or a TOML file
    #[arg(long, default_value = "nor-65nm", value_name = "NAME|FILE")]
    start: String,
    /// Changes a parameter of --start; may be given more than once
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// State rates at references more than ten times what was measured
    #[arg(long)]
    allow_extrapolation: bool,
}

impl FitArgs {
    /// Fits and prints.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let start = ReliabilityParams::load(&self.start)
            .and_then(|params| params.with(&self.set))
            .map_err(crate::rber::asked)?;
        let mut measured = Vec::new();
        for (source, path) in (0..).zip(&self.files) {
            let name = path.display().to_string();
            let file = File::open(path).with_context(|| format!("opening {name}"))?;
            let table = read_csv(BufReader::new(file), &name)?;
            measured.extend(table.into_iter().map(|row| Measurement { source, ..row }));
        }
        let options = fit::FitOptions { allow_extrapolation: self.allow_extrapolation };
        let found = fit::fit(&measured, &start, options)?;
        print!("{}", found.to_toml());
        Ok(())
    }
}
