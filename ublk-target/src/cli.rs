//! The command line that every ublk driver shares: options of `add`, and the commands `del`, `list`, `stat`, `features`
//! ([`Shared`]).

use crate::{
    adapter::{Control, FEATURES},
    error::Error,
    lifecycle::{self, RunOptions},
    watch,
};
use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

/// The commands that are the same for every driver. A driver takes them over with `#[command(flatten)]` and
/// [`Shared::run`].
#[derive(Debug, Clone, Subcommand)]
pub enum Shared {
    /// Delete a device, or all of them
    #[command(after_help = example("del 0"))]
    Del(DelArgs),
    /// List the devices
    #[command(after_help = example("list --json"))]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what a device has done: requests, errors, latency, and what its target counts
    #[command(after_help = example("stat 0 --watch 2"))]
    Stat(StatArgs),
    /// Print what the kernel's ublk driver can do
    #[command(after_help = example("features"))]
    Features {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Shared {
    /// Does the command for the devices of `kind`, or with `None` of any.
    ///
    /// # Errors
    /// Each command's.
    pub fn run(&self, kind: Option<&str>) -> Result<(), Error> {
        end_with_the_pipe();
        match self {
            Shared::Del(args) => del(args, kind),
            Shared::List { json } => list(kind, *json),
            Shared::Stat(args) => stat(kind, args),
            Shared::Features { json } => features(*json),
        }
    }
}

/// An example for a command's help, with the name that this program was called by.
fn example(rest: &str) -> String {
    let called = std::env::args_os().next();
    let name = called.as_deref().map(Path::new).and_then(Path::file_name);
    format!(
        "Example:\n  {} {rest}",
        name.map_or("ublk-target".into(), |name| name.to_string_lossy().into_owned())
    )
}

/// `stat N`.
#[derive(Debug, Clone, Args)]
pub struct StatArgs {
    /// Number N of /dev/ublkbN
    pub id: u32,
    /// Print JSON: with --watch, a line per interval
    #[arg(long)]
    pub json: bool,
    /// Show what happens, every so many seconds, until Ctrl-C
    #[arg(long, num_args = 0..=1, default_missing_value = "1", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub watch: Option<u64>,
}

/// Options of `add` that are about the device's life and not about the target.
#[derive(Debug, Clone, Args)]
pub struct AddArgs {
    /// Number N of /dev/ublkbN; the kernel chooses one without
    #[arg(long)]
    pub id: Option<u32>,
    /// Hardware queues, each with its own thread (the kernel uses no more than there are CPUs)
    #[arg(long, default_value_t = 1)]
    pub queues: u16,
    /// Requests in flight per queue
    #[arg(long, default_value_t = 128)]
    pub depth: u16,
    /// Stay in the foreground, with the log on standard error
    #[arg(long)]
    pub foreground: bool,
    /// Give up when the device is not live after this many seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub patience: u64,
}

impl AddArgs {
    /// How to bring the device up; `options` is what `recover` will need.
    pub fn run_options(&self, options: Value) -> RunOptions {
        RunOptions {
            id: self.id,
            recover: false,
            foreground: self.foreground,
            patience: Duration::from_secs(self.patience),
            options,
        }
    }
}

/// `recover N`.
#[derive(Debug, Clone, Args)]
pub struct RecoverArgs {
    /// Number N of /dev/ublkbN
    pub id: u32,
    /// Stay in the foreground, with the log on standard error
    #[arg(long)]
    pub foreground: bool,
}

impl RecoverArgs {
    /// How to take the device over again.
    pub fn run_options(&self, options: Value) -> RunOptions {
        RunOptions {
            id: Some(self.id),
            recover: true,
            foreground: self.foreground,
            patience: Duration::from_secs(60),
            options,
        }
    }
}

/// `del N` or `del --all`.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = true)]
pub struct DelArgs {
    /// Number N of /dev/ublkbN
    #[arg(conflicts_with = "all")]
    pub id: Option<u32>,
    /// Delete every device of this kind
    #[arg(long)]
    pub all: bool,
    /// Delete it even if it is mounted or swapped on
    #[arg(long)]
    pub force: bool,
}

/// Deletes as asked: devices of `kind`, or with `None` of any.
///
/// # Errors
/// The first failure; the others are still tried.
pub fn del(args: &DelArgs, kind: Option<&str>) -> Result<(), Error> {
    let ids = match args.id {
        Some(id) => {
            lifecycle::check_kind(kind, id)?;
            vec![id]
        }
        None => lifecycle::list(kind)?.iter().map(|listed| listed.id).collect(),
    };
    let results: Vec<_> = ids.into_iter().map(|id| lifecycle::del(id, args.force)).collect();
    results.into_iter().collect()
}

/// Prints the devices of `kind` as a table or as JSON.
///
/// # Errors
/// As [`lifecycle::list`].
pub fn list(kind: Option<&str>, as_json: bool) -> Result<(), Error> {
    let listed = lifecycle::list(kind)?;
    if as_json {
        println!("{}", json!(listed));
        return Ok(());
    }
    println!(
        "{:<14} {:<9} {:<9} {:>8} {:>10} {:>6} {:>5}",
        "DEVICE", "TARGET", "STATE", "PID", "SIZE", "QUEUES", "DEPTH"
    );
    for one in listed {
        println!(
            "{:<14} {:<9} {:<9} {:>8} {:>10} {:>6} {:>5}",
            one.device,
            one.target.as_deref().unwrap_or("?"),
            format!("{:?}", one.state).to_lowercase(),
            one.pid.map_or("-".into(), |pid| pid.to_string()),
            ByteSize::b(one.size_bytes).display().iec().to_string(),
            one.queues,
            one.depth,
        );
    }
    Ok(())
}

/// Prints the driver's features.
///
/// # Errors
/// [`Error::NoDriver`] and the like.
pub fn features(as_json: bool) -> Result<(), Error> {
    let mask = Control::open(Duration::from_secs(30))?.features()?;
    let has = |bit: u64| mask & bit != 0;
    if as_json {
        let map: serde_json::Map<String, Value> =
            FEATURES.iter().map(|(name, bit)| ((*name).to_owned(), json!(has(*bit)))).collect();
        println!("{}", json!({ "mask": mask, "features": map }));
        return Ok(());
    }
    println!("ublk driver features {mask:#x}");
    for (name, bit) in FEATURES {
        println!("  {name:<24} {}", if has(bit) { "yes" } else { "-" });
    }
    Ok(())
}

/// Prints what a device's daemon counted, once or again and again.
///
/// # Errors
/// As [`lifecycle::ask`]; with `--watch` also when the device goes away.
pub fn stat(kind: Option<&str>, args: &StatArgs) -> Result<(), Error> {
    if let Some(seconds) = args.watch {
        return watch_device(kind, args, Duration::from_secs(seconds));
    }
    let report = lifecycle::ask(kind, args.id, &json!({ "op": "stat" }))?;
    if args.json {
        println!("{report}");
    } else {
        print_tree(&report, 0);
    }
    Ok(())
}

/// A table that is drawn again in place on a terminal; elsewhere a block, or a line of JSON, per interval. Ends with the
/// device, with Ctrl-C, or when nobody reads it any more.
fn watch_device(kind: Option<&str>, args: &StatArgs, every: Duration) -> Result<(), Error> {
    let device = format!("/dev/ublkb{}", args.id);
    let redraw = !args.json && io::stdout().is_terminal();
    let ask = || Ok::<_, Error>((lifecycle::ask(kind, args.id, &watch::request())?, Instant::now()));
    let (mut before, mut asked) = ask()?;
    loop {
        std::thread::sleep((asked + every).saturating_duration_since(Instant::now()));
        let (after, now) = ask()?;
        let interval = watch::interval(&before, &after, (now - asked).as_secs_f64());
        let text = match (args.json, redraw) {
            (true, _) => format!("{interval}\n"),
            (false, true) => format!("\x1b[H\x1b[2J{}", watch::table(&device, &interval)),
            (false, false) => format!("{}\n", watch::table(&device, &interval)),
        };
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(source) => return Err(Error::System { what: "writing to standard output", source }),
            Ok(()) => {}
        }
        (before, asked) = (after, now);
    }
}

/// Prints a JSON report as indented lines.
pub fn print_tree(value: &Value, indent: usize) {
    let pad = "  ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::Object(inner) if inner.is_empty() => {}
                    Value::Object(_) | Value::Array(_) => {
                        println!("{pad}{key}:");
                        print_tree(value, indent + 1);
                    }
                    Value::String(text) => println!("{pad}{key}: {text}"),
                    _ => println!("{pad}{key}: {value}"),
                }
            }
        }
        Value::Array(list) => {
            for item in list {
                print_tree(item, indent);
                if matches!(item, Value::Object(_)) {
                    println!();
                }
            }
        }
        other => println!("{pad}{other}"),
    }
}

/// A report whose reader went away (`report 0 | head -1`) ends quietly, as other programs do. Not for a process that serves:
/// there a client that goes away must not end anything.
pub fn end_with_the_pipe() {
    // SAFETY: the default action for a signal, set before there are other threads.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Starts the log on standard error: `RUST_LOG`, or warnings.
pub fn init_log() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
}

/// The end of a command: status 0, or one line `program: what` on standard error and 1 (failed) or 2 (asked wrongly).
pub fn finish(program: &str, result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::from(if lifecycle::usage(&error) { 2 } else { 1 })
        }
    }
}
