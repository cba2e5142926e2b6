//! The flash behind the zones, on the command line: `--profile`, `--errors`, and the commands that need no device.

use crate::device::{Shape, target_error};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::{fs::File, io::BufReader, path::PathBuf};
use ublk_target::{Error, lifecycle::UsageError};
use ublk_zns::{
    Geometry, ZnsConfig, ZnsError,
    nand::{Access, NandError, Profile, Workload, predict},
    reliability::{
        ErrorParams, ReliabilityError, fit, read_csv,
        tables::{self, RberOptions},
    },
    ssd::Models,
};

/// Which flash a device has.
#[derive(Args)]
pub(crate) struct ModelArgs {
    /// Timing of the flash: a built-in profile (`ublk-zns profiles`) or a TOML file
    #[arg(long, default_value = "none", value_name = "NAME|FILE")]
    profile: String,
    /// Changes a number of the profile; may be given more than once
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// Multiplies every time of the profile: 10 is slow motion
    #[arg(long, value_name = "FACTOR")]
    time_scale: Option<f64>,
    /// Bit errors and wear of the flash: built-in parameters (`ublk-zns profiles`) or a TOML file
    #[arg(long, default_value = "none", value_name = "NAME|FILE")]
    errors: String,
    /// Changes an error parameter; may be given more than once
    #[arg(long, value_name = "FIELD=VALUE")]
    set_error: Vec<String>,
    /// Where everything random starts; printed with every result
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl ModelArgs {
    fn profile(&self) -> Result<Option<Profile>, ZnsError> {
        let Some(mut profile) = Profile::load(&self.profile)? else {
            // A number of nothing: somebody forgot --profile.
            let forgotten =
                self.set.first().cloned().or(self.time_scale.map(|scale| format!("time_scale={scale}")));
            return match forgotten {
                None => Ok(None),
                Some(assignment) => Err(ZnsError::Config {
                    option: "--profile",
                    value: Profile::NONE.into(),
                    rule: format!("{assignment} needs one to change"),
                }),
            };
        };
        for assignment in &self.set {
            profile.set(assignment)?;
        }
        if let Some(scale) = self.time_scale {
            profile.time_scale = scale;
        }
        profile.validate()?;
        Ok(Some(profile))
    }

    pub(crate) fn models(&self, queues: u16) -> Result<Models, ZnsError> {
        let errors = ErrorParams::load(&self.errors)?.with(&self.set_error)?;
        Ok(Models {
            profile: self.profile()?,
            errors: (!errors.is_none()).then_some(errors),
            seed: self.seed,
            queues,
        })
    }
}

/// `profiles`.
#[derive(Args)]
pub(crate) struct Profiles {
    /// Print this one's file, to change it and give it to --profile or --errors
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Profiles {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let Some(name) = &self.name else {
            if self.json {
                let report = json!({
                    "profiles": Profile::names().collect::<Vec<_>>(),
                    "errors": ErrorParams::names().collect::<Vec<_>>(),
                });
                println!("{report}");
                return Ok(());
            }
            println!("{:<20} --profile", "NAME");
            for name in Profile::names() {
                let source = Profile::builtin(name).map_or("no timing".to_owned(), |profile| profile.source);
                println!("{name:<20} {source}");
            }
            println!("\n{:<20} --errors", "NAME");
            for name in ErrorParams::names() {
                println!("{name:<20}");
            }
            return Ok(());
        };
        match Profile::builtin_text(name).or_else(|| ErrorParams::built_in_text(name)) {
            Some(text) => print!("{text}"),
            None => {
                let known = Profile::names().chain(ErrorParams::names()).collect::<Vec<_>>().join(", ");
                return Err(usage(format!("there is no profile {name}: there are {known}")));
            }
        }
        Ok(())
    }
}

fn usage(message: String) -> Error {
    Error::Target(Box::new(UsageError(message)))
}

/// `predict`, with fio's names.
#[derive(Args)]
pub(crate) struct Predict {
    #[command(flatten)]
    models: ModelArgs,
    #[command(flatten)]
    shape: Shape,
    /// What the job does
    #[arg(long, value_enum, default_value = "randread")]
    rw: Rw,
    /// Bytes of a request
    #[arg(long, default_value = "4KiB")]
    bs: ByteSize,
    /// Requests in flight per job
    #[arg(long, default_value_t = 1)]
    iodepth: u32,
    /// Zones used at once, one job each (of a random read: the zones it goes over)
    #[arg(long, default_value_t = 1)]
    zones: u32,
    /// How long, in seconds of the model's time
    #[arg(long, default_value_t = 5)]
    runtime: u64,
    /// Time before the measurement, in seconds of the model's time
    #[arg(long, default_value_t = 1)]
    ramp_time: u64,
    /// What the host adds to each request, in nanoseconds
    #[arg(long, default_value_t = 0)]
    host_overhead_ns: u64,
    /// Hardware queues
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Rw {
    Read,
    Randread,
    Write,
    Append,
}

impl Predict {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let fail = |error: NandError| target_error(error.into());
        let Some(profile) = self.models.profile().map_err(target_error)? else {
            return Err(usage("--profile is none: there is nothing to predict without timing".into()));
        };
        let geometry = Geometry::new(&self.shape.config(&ZnsConfig::default())).map_err(target_error)?;
        let workload = Workload {
            rw: match self.rw {
                Rw::Read => Access::Read,
                Rw::Randread => Access::RandRead,
                Rw::Write => Access::Write,
                Rw::Append => Access::Append,
            },
            block_bytes: self.bs.as_u64(),
            queue_depth: self.iodepth,
            zones: self.zones,
            runtime_ns: self.runtime.saturating_mul(1_000_000_000),
            ramp_ns: self.ramp_time.saturating_mul(1_000_000_000),
            seed: self.models.seed(),
            host_overhead_ns: self.host_overhead_ns,
            queues: self.queues,
        };
        let prediction = predict(&profile, &geometry, &workload).map_err(fail)?;
        if self.json {
            println!("{}", json!(prediction));
            return Ok(());
        }
        let us = |ns: u64| format!("{:.1} us", ns as f64 / 1e3);
        println!("{:<12} {:.0}", "requests/s", prediction.iops);
        println!("{:<12} {:.1} MiB/s", "bandwidth", prediction.bytes_per_s / f64::from(1 << 20));
        println!("{:<12} {:.1} us", "mean", prediction.mean_ns / 1e3);
        for (name, value) in [
            ("min", prediction.min_ns),
            ("p50", prediction.p50_ns),
            ("p99", prediction.p99_ns),
            ("p99.9", prediction.p999_ns),
            ("max", prediction.max_ns),
        ] {
            println!("{name:<12} {}", us(value));
        }
        println!("{:<12} {:.0} % of the dies in use", "dies", prediction.die_utilisation * 100.0);
        Ok(())
    }
}

impl ModelArgs {
    fn seed(&self) -> u64 {
        self.seed
    }
}

/// `rber`.
#[derive(Args)]
pub(crate) struct Rber {
    /// Which table
    #[arg(value_enum, default_value = "pages")]
    table: Table,
    /// Built-in parameters or a TOML file
    #[arg(long, default_value = "tlc-3d", value_name = "NAME|FILE")]
    errors: String,
    /// Changes a parameter; may be given more than once
    #[arg(long, value_name = "FIELD=VALUE")]
    set_error: Vec<String>,
    /// Where everything random starts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Blocks to measure
    #[arg(long, default_value_t = 4)]
    blocks: u32,
    /// Measure one page in so many
    #[arg(long, default_value_t = 1)]
    page_stride: u32,
    /// How often each page is programmed and read
    #[arg(long, default_value_t = 1)]
    repeats: u32,
    /// Program/erase cycles, several with commas [default: the parameters' reference]
    #[arg(long, value_delimiter = ',')]
    pe: Vec<f64>,
    /// Hours between programming and reading, several with commas [default: the parameters' reference]
    #[arg(long, value_delimiter = ',')]
    retention_hours: Vec<f64>,
    /// Page reads of the block before, several with commas [default: 0]
    #[arg(long, value_delimiter = ',')]
    reads: Vec<f64>,
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

impl Rber {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let fail = |error: ReliabilityError| target_error(error.into());
        let params =
            ErrorParams::load(&self.errors).and_then(|params| params.with(&self.set_error)).map_err(fail)?;
        let defaults = RberOptions::new(&params);
        let or = |given: &[f64], default: Vec<f64>| if given.is_empty() { default } else { given.to_vec() };
        let options = RberOptions {
            seed: self.seed,
            blocks: self.blocks,
            page_stride: self.page_stride,
            repeats: self.repeats,
            pe_cycles: or(&self.pe, defaults.pe_cycles),
            retention_hours: or(&self.retention_hours, defaults.retention_hours),
            reads: or(&self.reads, defaults.reads),
        };
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        match self.table {
            Table::Pages => tables::page_table(&params, &options, &mut out),
            Table::Patterns => tables::pattern_table(&params, &options, &mut out),
            Table::Conditions => tables::condition_table(&params, &options, &mut out),
        }
        .map_err(fail)
    }
}

/// `fit`.
#[derive(Args)]
pub(crate) struct FitArgs {
    /// Measurements: CSV with the columns of `ublk-zns rber`
    file: PathBuf,
    /// The chip's shape, and the values of what cannot be told: built-in parameters or a TOML file
    #[arg(long, default_value = "tlc-3d", value_name = "NAME|FILE")]
    start: String,
    /// Changes a parameter of --start; may be given more than once
    #[arg(long, value_name = "FIELD=VALUE")]
    set_error: Vec<String>,
}

impl FitArgs {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let fail = |error: ReliabilityError| target_error(error.into());
        let start =
            ErrorParams::load(&self.start).and_then(|params| params.with(&self.set_error)).map_err(fail)?;
        let name = self.file.display().to_string();
        let file = File::open(&self.file)
            .map_err(|source| Error::System { what: "opening the measurements", source })?;
        let measured = read_csv(BufReader::new(file), &name).map_err(fail)?;
        print!("{}", fit::fit(&measured, &start).map_err(fail)?.to_toml());
        Ok(())
    }
}
