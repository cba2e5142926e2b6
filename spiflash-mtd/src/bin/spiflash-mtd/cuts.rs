//! `spiflash-mtd cuts`: power cuts at every place of a script.

use crate::script::{ChipArgs, read_script};
use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use spiflash_mtd::cuts::{CutOptions, CutReport, CutSearch};
use std::path::PathBuf;

/// Arguments of `cuts`.
#[derive(Debug, Args)]
pub(crate) struct CutsArgs {
    /// The script
    script: PathBuf,
    #[command(flatten)]
    chip: ChipArgs,
    /// Equal steps within each program, erase and register write, besides their ends and thresholds
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    points: u32,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl CutsArgs {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let script = read_script(&self.script)?;
        let options = CutOptions { points: self.points, between_bytes: true };
        // What a chip must be after any cut, whatever was under way: ready, and write-disabled.
        let mut search = CutSearch::new(self.chip.chip()?, options, |chip, _| match chip.state() {
            spiflash_mtd::states::State::Idle => Ok(()),
            state => Err(format!("after power-up the chip is not idle but {state:?}")),
        });
        let mut failures = 0;
        let ran = script.run(&mut search, |result| failures += usize::from(result.failure.is_some()));
        let (_, report) = search.finish();
        ran.with_context(|| self.script.display().to_string())?;
        if self.json {
            println!("{}", json!(report));
        } else {
            print(&report);
        }
        if failures > 0 {
            bail!("{}: {failures} steps of the script itself failed", self.script.display());
        }
        if report.failed > 0 {
            bail!("{} of {} cuts failed the check", report.failed, report.cuts);
        }
        Ok(())
    }
}

fn print(report: &CutReport) {
    println!("{} cuts: {} within frames, {} while busy", report.cuts, report.in_frames, report.while_busy);
    println!("{} different contents of the array", report.distinct_arrays);
    for (operation, left) in &report.left {
        let counts: Vec<String> =
            left.iter().map(|(half, count)| format!("{} {count}", name(half))).collect();
        println!("{operation}: {}", counts.join(", "));
    }
    for failure in &report.failures {
        println!("FAILED: {failure}");
    }
}

fn name(half: &spiflash_mtd::cuts::HalfState) -> &'static str {
    use spiflash_mtd::cuts::HalfState as H;
    match half {
        H::Untouched => "untouched",
        H::PartlyProgrammed => "partly programmed",
        H::PreProgrammed => "pre-programmed to 0",
        H::Mixed => "mixed",
        H::OverErased => "over-erased, noisy",
        H::Done => "done",
        H::Foreign => "neither old nor new",
    }
}
