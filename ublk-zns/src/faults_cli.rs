//! The words of `ublk-zns fault`: on the command line, and in a script of one command per line.
//!
//! A script is text. Empty lines and what follows a `#` do not count. Every other line is
//!
//! ```text
//! [at TIME] COMMAND...      a command as on the command line, at TIME after the start (TIME never goes back)
//! sleep TIME                what follows comes so much later
//! ```
//!
//! [`parse_script`] is pure; [`FaultArgs::run`] asks the daemon.

#[cfg(test)]
mod tests;

use crate::{
    faults::{
        Area, Count, FaultAction, FaultError, FaultId, ForcedState, Listed, MAX_STALL_NS, OpFilter,
        Probability, Rule, Selection,
    },
    geometry::{Sector, ZoneId},
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use ublk_target::{Error, lifecycle, lifecycle::UsageError};

/// The latest time in a script: one day.
const MAX_SCRIPT_NS: u64 = 86_400_000_000_000;
/// The longest script in bytes.
const MAX_SCRIPT_BYTES: u64 = 16 << 20;

/// `fault N COMMAND` or `fault N --script FILE`.
#[derive(Debug, Clone, Args)]
pub struct FaultArgs {
    /// Number N of /dev/ublkbN
    pub id: u32,
    /// Do the commands of this file, one per line: `[at TIME] COMMAND`, `sleep TIME`
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<FaultCommand>,
}

/// What to do to a device.
#[derive(Debug, Clone, Subcommand)]
pub enum FaultCommand {
    /// Fail reads or writes of some sectors
    MediaError {
        /// Which commands
        #[arg(long, value_enum, default_value_t = DataOp::Any)]
        op: DataOp,
        /// Where
        #[command(flatten)]
        place: Place,
        /// How often
        #[command(flatten)]
        often: Often,
    },
    /// Make commands take longer
    Latency {
        /// Which commands
        #[arg(long, value_enum, default_value_t = AnyOp::Any)]
        op: AnyOp,
        /// Where
        #[command(flatten)]
        place: Place,
        /// How much longer, such as 5ms (up to 60s)
        #[arg(long = "add", value_name = "TIME", value_parser = parse_ns)]
        added_ns: u64,
        /// How many commands: once, always, or a number
        #[arg(long, default_value = "always", value_parser = parse_count)]
        count: Count,
        /// How likely each is to be hit: above 0, up to 1
        #[arg(long, default_value = "1", value_parser = parse_probability)]
        probability: Probability,
    },
    /// Fail writes after some of their blocks are on the media
    TornWrite {
        /// Where
        #[command(flatten)]
        place: Place,
        /// How many blocks, from the first, still get there
        #[arg(long, default_value_t = 0, value_name = "BLOCKS")]
        landed_blocks: u64,
        /// How many writes: once, always, or a number
        #[arg(long, default_value = "once", value_parser = parse_count)]
        count: Count,
    },
    /// Let flushes succeed without doing anything
    DropFlush {
        /// How many: once, always, or a number
        #[arg(long, default_value = "once", value_parser = parse_count)]
        count: Count,
    },
    /// Let nothing complete for a while
    Stall {
        /// How long, such as 2s (up to 60s)
        #[arg(long = "for", value_name = "TIME", value_parser = parse_ns)]
        duration_ns: u64,
    },
    /// Make a zone read-only or offline
    Zone {
        /// The zone's number
        zone: u32,
        /// What it becomes
        #[arg(value_enum)]
        state: ZoneWord,
    },
    /// Cut the device's power
    PowerCut,
    /// Give the device its power back
    PowerOn,
    /// List the faults, with how often they struck
    List,
    /// Remove a fault, or all of them
    Remove {
        /// The fault's number, or all
        #[arg(value_name = "ID|all", value_parser = parse_selection)]
        which: Selection,
    },
}

/// Commands that move data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DataOp {
    /// Reads
    Read,
    /// Writes and appends
    Write,
    /// Both
    Any,
}

/// Commands of all kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AnyOp {
    /// Reads
    Read,
    /// Writes and appends
    Write,
    /// Flushes
    Flush,
    /// Zone management and reports
    Manage,
    /// All of them
    Any,
}

/// What a zone is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ZoneWord {
    /// Readable only
    ReadOnly,
    /// Not even that
    Offline,
}

/// Where a fault is: the whole device without either.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// Only in these sectors of 512 bytes, such as 0x8000+8
    #[arg(long, value_name = "FIRST+COUNT", value_parser = parse_range, conflicts_with = "zone")]
    range: Option<Area>,
    /// Only in this zone
    #[arg(long)]
    zone: Option<u32>,
}

impl Place {
    fn area(&self) -> Area {
        match (self.range, self.zone) {
            (Some(range), _) => range,
            (None, Some(zone)) => Area::Zone(ZoneId(zone)),
            (None, None) => Area::Device,
        }
    }
}

/// How often a fault strikes.
#[derive(Debug, Clone, Args)]
pub struct Often {
    /// How many commands: once, always, or a number
    #[arg(long, default_value = "once", value_parser = parse_count)]
    count: Count,
    /// How likely each is to be hit: above 0, up to 1
    #[arg(long, default_value = "1", value_parser = parse_probability)]
    probability: Probability,
}

impl FaultCommand {
    /// What a daemon is asked for.
    pub fn action(&self) -> FaultAction {
        let add = |rule| FaultAction::Add { rule };
        match self {
            FaultCommand::MediaError { op, place, often } => add(Rule::MediaError {
                op: match op {
                    DataOp::Read => OpFilter::Read,
                    DataOp::Write => OpFilter::Write,
                    DataOp::Any => OpFilter::Any,
                },
                area: place.area(),
                count: often.count,
                probability: often.probability,
            }),
            FaultCommand::Latency { op, place, added_ns, count, probability } => add(Rule::Latency {
                op: match op {
                    AnyOp::Read => OpFilter::Read,
                    AnyOp::Write => OpFilter::Write,
                    AnyOp::Flush => OpFilter::Flush,
                    AnyOp::Manage => OpFilter::Manage,
                    AnyOp::Any => OpFilter::Any,
                },
                area: place.area(),
                added_ns: *added_ns,
                count: *count,
                probability: *probability,
            }),
            FaultCommand::TornWrite { place, landed_blocks, count } => {
                add(Rule::TornWrite { area: place.area(), landed_blocks: *landed_blocks, count: *count })
            }
            FaultCommand::DropFlush { count } => add(Rule::DropFlush { count: *count }),
            FaultCommand::Stall { duration_ns } => add(Rule::Stall { duration_ns: *duration_ns }),
            FaultCommand::Zone { zone, state } => FaultAction::Zone {
                zone: ZoneId(*zone),
                state: match state {
                    ZoneWord::ReadOnly => ForcedState::ReadOnly,
                    ZoneWord::Offline => ForcedState::Offline,
                },
            },
            FaultCommand::PowerCut => FaultAction::PowerCut,
            FaultCommand::PowerOn => FaultAction::PowerOn,
            FaultCommand::List => FaultAction::List,
            FaultCommand::Remove { which } => FaultAction::Remove { which: *which },
        }
    }
}

/// A number, decimal or after `0x` hexadecimal.
fn parse_number(text: &str) -> Option<u64> {
    let plain = |digits: &str| !digits.starts_with(['+', '-']);
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok().filter(|_| plain(digits)),
        None => text.parse().ok().filter(|_| plain(text)),
    }
}

/// A time such as `5ms`, `1.5s` or `200us`, in ns.
///
/// # Errors
/// What would be right.
pub fn parse_ns(text: &str) -> Result<u64, String> {
    let wrong = || "it must be a number with a unit, ns, us, ms or s, such as 5ms".to_owned();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (digits, unit) = text.split_at_checked(split).ok_or_else(wrong)?;
    let unit_ns: u64 = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) {
        return Err(wrong());
    }
    // Exact, where floating point would not be: the fraction's digits down to a nanosecond.
    let mut ns = 0u64;
    let mut step = unit_ns;
    for digit in fraction.bytes() {
        step /= 10;
        ns += u64::from(digit - b'0') * step;
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    whole
        .checked_mul(unit_ns)
        .and_then(|whole_ns| whole_ns.checked_add(ns))
        .ok_or_else(|| "it is too long".into())
}

fn parse_count(text: &str) -> Result<Count, String> {
    match (text, parse_number(text)) {
        ("once", _) => Ok(Count::Times(1)),
        ("always", _) => Ok(Count::Always),
        (_, Some(times @ 1..)) => Ok(Count::Times(times)),
        _ => Err("it must be once, always or a number above 0".into()),
    }
}

fn parse_probability(text: &str) -> Result<Probability, String> {
    let wrong = "it must be above 0 and at most 1";
    let number: f64 = text.parse().map_err(|_| wrong)?;
    Probability::try_from(number).map_err(|_| wrong.into())
}

fn parse_range(text: &str) -> Result<Area, String> {
    let wrong = "it must be FIRST+COUNT in sectors of 512 bytes, such as 0x8000+8";
    let (first, count) = text.split_once('+').ok_or(wrong)?;
    match (parse_number(first), parse_number(count)) {
        (Some(first), Some(count @ 1..)) => Ok(Area::Sectors { first: Sector(first), count }),
        _ => Err(wrong.into()),
    }
}

fn parse_selection(text: &str) -> Result<Selection, String> {
    match (text, parse_number(text)) {
        ("all", _) => Ok(Selection::All),
        (_, Some(id)) => Ok(Selection::Id(FaultId(id))),
        _ => Err("it must be a fault's number (`list` shows them) or all".into()),
    }
}

/// One command of a script.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The line, from 1.
    pub line: usize,
    /// When, in ns after the start.
    pub at_ns: u64,
    /// What.
    pub action: FaultAction,
}

/// A line of a script as a command line of its own.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_help_subcommand = true)]
struct Line {
    #[command(subcommand)]
    command: FaultCommand,
}

/// The commands of a script, in order.
///
/// # Errors
/// [`FaultError`] with the line, what it says, and what would be right.
pub fn parse_script(text: &str) -> Result<Vec<Step>, FaultError> {
    let mut steps = Vec::new();
    let mut at_ns = 0u64;
    for (line, text) in (1..).zip(text.lines()) {
        let said = text.split('#').next().unwrap_or_default().trim();
        let wrong =
            |why: &str| FaultError::new("the script", format!("wrong in line {line} ({said:?})"), why);
        let time = |word: Option<&&str>| {
            let ns = parse_ns(word.ok_or_else(|| wrong("a time is missing, such as 5ms"))?);
            ns.map_err(|why| wrong(&format!("the time: {why}")))
        };
        let bounded = |ns: Option<u64>| {
            ns.filter(|ns| *ns <= MAX_SCRIPT_NS).ok_or_else(|| wrong("a script may take a day at most"))
        };
        let mut words: Vec<&str> = said.split_whitespace().collect();
        match words.first() {
            None => continue,
            Some(&"sleep") => {
                if words.len() > 2 {
                    return Err(wrong("nothing may follow the time of a sleep"));
                }
                at_ns = bounded(at_ns.checked_add(time(words.get(1))?))?;
                continue;
            }
            Some(&"at") => {
                let then_ns = bounded(Some(time(words.get(1))?))?;
                if then_ns < at_ns {
                    return Err(wrong("it is earlier than the line before: times must not go back"));
                }
                at_ns = then_ns;
                words.drain(..2);
                if words.is_empty() {
                    return Err(wrong("a command is missing after the time"));
                }
            }
            Some(_) => {}
        }
        let parsed = Line::try_parse_from(&words).map_err(|error| wrong(&first_line(&error)))?;
        steps.push(Step { line, at_ns, action: parsed.command.action() });
    }
    Ok(steps)
}

/// What clap says, in one line.
fn first_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said: Vec<&str> = text.split("\n\n").next().unwrap_or_default().split_whitespace().collect();
    said.join(" ").trim_start_matches("error: ").to_owned()
}

impl FaultArgs {
    /// Asks the daemon, and prints what it answers.
    ///
    /// # Errors
    /// The script's, and as [`lifecycle::ask`].
    pub fn run(&self) -> Result<(), Error> {
        match (&self.script, &self.command) {
            (Some(path), None) => self.run_script(path),
            (None, Some(command)) => self.ask(&command.action()),
            _ => Err(usage(
                "fault needs a command or --script FILE: `ublk-zns fault --help` shows them".into(),
            )),
        }
    }

    fn ask(&self, action: &FaultAction) -> Result<(), Error> {
        let answer = lifecycle::ask("zns", self.id, &json!({ "op": "fault", "fault": action }))?;
        if self.json {
            println!("{answer}");
            return Ok(());
        }
        match action {
            FaultAction::Add { .. } => println!("fault {}", answer["id"]),
            FaultAction::Remove { .. } => println!("removed {}", answer["removed"]),
            FaultAction::List => print!("{}", table(&answer)),
            FaultAction::Zone { .. } | FaultAction::PowerCut | FaultAction::PowerOn => {}
        }
        Ok(())
    }

    fn run_script(&self, path: &PathBuf) -> Result<(), Error> {
        let bad = |why: String| usage(format!("{}: {why}", path.display()));
        let size = std::fs::metadata(path).map_err(|error| bad(error.to_string()))?.len();
        if size > MAX_SCRIPT_BYTES {
            return Err(bad(format!("{size} bytes: a script has {MAX_SCRIPT_BYTES} at most")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        // All of it is checked before any of it is done.
        let steps = parse_script(&text).map_err(|error| bad(error.to_string()))?;
        let start = Instant::now();
        for step in steps {
            let at = start + Duration::from_nanos(step.at_ns);
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            self.ask(&step.action).inspect_err(|_| eprintln!("{}: line {}:", path.display(), step.line))?;
        }
        Ok(())
    }
}

fn usage(message: String) -> Error {
    Error::Target(Box::new(UsageError(message)))
}

/// The rules as a table; what is no rule is left out.
fn table(answer: &Value) -> String {
    let listed: Vec<Listed> = serde_json::from_value(answer.clone()).unwrap_or_default();
    let mut text = format!("{:>5} {:>10} {:>10}  FAULT\n", "ID", "HITS", "LEFT");
    for one in listed {
        let left = match (one.active, one.remaining, one.remaining_ns) {
            (false, ..) => "spent".into(),
            (_, Some(times), _) => times.to_string(),
            (_, None, Some(ns)) => format!("{} ms", ns / 1_000_000),
            (_, None, None) => "always".into(),
        };
        text += &format!("{:>5} {:>10} {:>10}  {}\n", one.id.0, one.hits, left, describe(&one.rule));
    }
    text
}

/// A rule in the words that make it.
fn describe(rule: &Rule) -> String {
    let place = |area: Area| match area {
        Area::Device => String::new(),
        Area::Zone(zone) => format!(" --zone {}", zone.0),
        Area::Sectors { first, count } => format!(" --range {:#x}+{count}", first.0),
    };
    let filter = |op: OpFilter| match op {
        OpFilter::Read => "read",
        OpFilter::Write => "write",
        OpFilter::Flush => "flush",
        OpFilter::Manage => "manage",
        OpFilter::Any => "any",
    };
    let often = |count: Count| match count {
        Count::Times(1) => "once".to_owned(),
        Count::Times(times) => times.to_string(),
        Count::Always => "always".to_owned(),
    };
    let likely = |probability: Probability| match f64::from(probability) {
        1.0 => String::new(),
        probability => format!(" --probability {probability}"),
    };
    match *rule {
        Rule::MediaError { op, area, count, probability } => {
            format!(
                "media-error --op {}{} --count {}{}",
                filter(op),
                place(area),
                often(count),
                likely(probability)
            )
        }
        Rule::Latency { op, area, added_ns, count, probability } => format!(
            "latency --op {}{} --add {added_ns}ns --count {}{}",
            filter(op),
            place(area),
            often(count),
            likely(probability)
        ),
        Rule::TornWrite { area, landed_blocks, count } => {
            format!("torn-write{} --landed-blocks {landed_blocks} --count {}", place(area), often(count))
        }
        Rule::DropFlush { count } => format!("drop-flush --count {}", often(count)),
        Rule::Stall { duration_ns } => format!("stall --for {}ns", duration_ns.min(MAX_STALL_NS)),
    }
}
