//! `spiflash-mtd script`: a script on a fresh chip.

use crate::chips;
use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use spiflash_mtd::script::{Script, StepResult};
use spiflash_mtd::trace::{JsonLog, JsonLogOptions, TraceStatus, VcdOptions, VcdTrace};
use spiflash_mtd::{Chip, SimBus, SpiBus};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The chip of a script.
#[derive(Debug, Args)]
pub(crate) struct ChipArgs {
    /// The part, by its name or its file (.toml)
    #[arg(long, default_value = "W25Q128JV", value_name = "NAME|FILE")]
    part: String,
    #[command(flatten)]
    model: chips::Model,
}

impl ChipArgs {
    /// A chip as delivered, with power.
    pub(crate) fn chip(&self) -> anyhow::Result<Chip> {
        self.model.chip(&chips::part(&self.part)?, 0)
    }
}

pub(crate) fn read_script(file: &Path) -> anyhow::Result<Script> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    Ok(Script::parse(&text, &file.display().to_string())?)
}

/// Arguments of `script`.
#[derive(Debug, Args)]
pub(crate) struct ScriptArgs {
    /// The script
    file: PathBuf,
    #[command(flatten)]
    chip: ChipArgs,
    /// Write a waveform (VCD), for sigrok, PulseView or GTKWave
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write a log of the commands, one JSON object a line
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Print results as JSON, one object a line
    #[arg(long)]
    json: bool,
}

fn create(file: &Path) -> anyhow::Result<File> {
    File::create(file).with_context(|| format!("creating {}", file.display()))
}

impl ScriptArgs {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let script = read_script(&self.file)?;
        let chip = self.chip.chip()?;
        let clock_hz = chip.part().bus.max_read_clock_hz;
        let mut bus = SimBus::of(chip);
        let mut traces: Vec<(&Path, TraceStatus)> = Vec::new();
        if let Some(file) = &self.trace {
            let options = VcdOptions { clock_hz, ..VcdOptions::default() };
            let trace = VcdTrace::new(&mut bus, create(file)?, &file.display().to_string(), options);
            traces.push((file, trace.status()));
            bus.observe(Box::new(trace));
        }
        if let Some(file) = &self.log {
            let log = JsonLog::new(create(file)?, &file.display().to_string(), JsonLogOptions::default());
            traces.push((file, log.status()));
            bus.observe(Box::new(log));
        }
        let mut failures = 0;
        let ran = script.run(&mut bus, |result| {
            failures += usize::from(result.failure.is_some());
            self.print(&result);
        });
        let end_ns = bus.now_ns();
        // Traces are written to their end before what comes of them is judged.
        drop(bus);
        ran.with_context(|| self.file.display().to_string())?;
        let steps = script.steps.len();
        if self.json {
            println!("{}", json!({ "steps": steps, "failures": failures, "end_ns": end_ns }));
        } else {
            println!("{steps} steps, {failures} failed, {end_ns} ns");
        }
        if let Some((file, _)) = traces.iter().find(|(_, status)| status.has_failed()) {
            bail!("{}: not all of it could be written", file.display());
        }
        if failures > 0 {
            bail!("{}: {failures} of {steps} steps failed", self.file.display());
        }
        Ok(())
    }

    fn print(&self, result: &StepResult) {
        if self.json {
            println!("{}", json!(result));
            return;
        }
        let place = format!("{}:{}: {} ns", self.file.display(), result.line, result.t_ns);
        match &result.failure {
            Some(failure) => println!("{place}: FAILED: {failure} (read {})", shown(&result.received)),
            None if result.received.is_empty() => {}
            None => println!("{place}: read {}", shown(&result.received)),
        }
    }
}

/// The beginning of a long hex text.
fn shown(hex: &str) -> String {
    match hex.get(..64) {
        Some(begin) if hex.len() > 64 => format!("{begin}... ({} bytes)", hex.len() / 2),
        _ if hex.is_empty() => "nothing".into(),
        _ => hex.into(),
    }
}
