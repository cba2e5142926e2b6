//! Parts on the command line: which there are, what one is, and whether a file of one's own is right.

use crate::Usage;
use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use spiflash_mtd::command::{AddressPhase, CommandSpec, DataPhase};
use spiflash_mtd::part::{self, Keep, Kind, Part, RegisterSpec, Span};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// `parts`: all parts that come with the program.
#[derive(Args)]
pub(crate) struct Parts {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `part`: one part.
#[derive(Subcommand)]
pub(crate) enum PartCommand {
    /// Print what the model knows of a part, where its numbers are from, and what is not modelled
    #[command(
        after_help = "Examples:\n  spiflash-mtd part show W25Q128JV\n  spiflash-mtd part show W25Q128JV --toml > mine.toml"
    )]
    Show(Show),
    /// Read a part file of your own and say what is wrong in it
    #[command(after_help = "Example:\n  spiflash-mtd part check mine.toml")]
    Check(Check),
}

/// `part show`.
#[derive(Args)]
pub(crate) struct Show {
    /// The part, by name or file
    #[arg(value_name = "NAME|FILE")]
    part: String,
    /// Print JSON, times in nanoseconds
    #[arg(long, conflicts_with = "toml")]
    json: bool,
    /// Print the part's file, to change it
    #[arg(long)]
    toml: bool,
}

/// `part check`.
#[derive(Args)]
pub(crate) struct Check {
    /// The part file
    file: PathBuf,
}

impl Parts {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        if self.json {
            return print_json(&part::all().iter().map(summary).collect());
        }
        let mut text = format!(
            "{:12} {:11} {:5} {:>9} {:20} {}\n",
            "part", "maker", "kind", "size", "JEDEC ID", "see part show"
        );
        for part in part::all() {
            let id = hex(&part.id.jedec);
            let notes = part.notes.len();
            let kind = kind(part.kind);
            let size = size(part.geometry.size_bytes);
            writeln!(text, "{:12} {:11} {kind:5} {size:>9} {id:20} {notes} notes", part.name, part.maker)?;
        }
        print(&text)
    }
}

impl PartCommand {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        match self {
            PartCommand::Show(show) => show.run(),
            PartCommand::Check(check) => check.run(),
        }
    }
}

impl Show {
    fn run(&self) -> anyhow::Result<()> {
        if self.toml {
            return print(&self.text()?);
        }
        let part = crate::chips::part(&self.part)?;
        if self.json { print_json(&whole(&part)) } else { print(&page(&part)?) }
    }

    /// The text of the file; of a file of one's own too, once it is a right one.
    fn text(&self) -> anyhow::Result<String> {
        if let Some(text) = part::text(&self.part) {
            return Ok(text.to_owned());
        }
        crate::chips::part(&self.part)?;
        read(Path::new(&self.part))
    }
}

impl Check {
    fn run(&self) -> anyhow::Result<()> {
        let place = self.file.display().to_string();
        let part = Part::from_toml(&read(&self.file)?, &place)?;
        let commands = part.commands.iter().count();
        let (kind, size) = (kind(part.kind), size(part.geometry.size_bytes));
        let (name, registers) = (&part.name, part.registers.len());
        print(&format!(
            "{place}: {name}, {kind}, {size}, {commands} commands, {registers} registers: right\n"
        ))
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    let bytes =
        std::fs::read(file).with_context(|| format!("the part file {} cannot be read", file.display()))?;
    String::from_utf8(bytes).map_err(|_| Usage(format!("{}: the file is no text", file.display())).into())
}

/// To standard output; that nobody reads on is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

fn print_json(value: &Value) -> anyhow::Result<()> {
    print(&format!("{value:#}\n"))
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Nor => "nor",
        Kind::Nand => "nand",
        Kind::Mram => "mram",
        Kind::Fram => "fram",
    }
}

fn hex(bytes: &[u8]) -> String {
    match bytes {
        [] => "-".to_owned(),
        [same, ..] if bytes.len() > 6 => {
            let run = bytes.iter().take_while(|byte| *byte == same).count();
            format!("{same:02X}x{run} {}", spaced(&bytes[run..])).trim_end().to_owned()
        }
        _ => spaced(bytes),
    }
}

fn spaced(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(" ")
}

fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

/// A time as data sheets write it.
fn time(ns: u64) -> String {
    let (unit, scale) = match ns {
        0..1_000 => ("ns", 1),
        1_000..1_000_000 => ("us", 1_000),
        1_000_000..1_000_000_000 => ("ms", 1_000_000),
        _ => ("s", 1_000_000_000),
    };
    format!("{} {unit}", ns as f64 / scale as f64)
}

fn span(span: Span) -> String {
    format!("{}, at most {}", time(span.typical_ns), time(span.max_ns))
}

fn keep(keep: Keep) -> &'static str {
    match keep {
        Keep::Nonvolatile => "nonvolatile",
        Keep::Volatile => "volatile",
        Keep::Otp => "one-time",
        Keep::ReadOnly => "read-only",
    }
}

fn key<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn summary(part: &Part) -> Value {
    json!({
        "name": part.name,
        "maker": part.maker,
        "kind": kind(part.kind),
        "size_bytes": part.geometry.size_bytes,
        "jedec": part.id.jedec,
        "notes": part.notes,
    })
}

fn span_json(span: Span) -> Value {
    json!({ "typical_ns": span.typical_ns, "max_ns": span.max_ns })
}

fn timing_json(part: &Part) -> Value {
    let timing = &part.timing;
    let erase: serde_json::Map<String, Value> =
        timing.erase.iter().map(|(unit, span)| (key(unit), span_json(*span))).collect();
    json!({
        "page_program": span_json(timing.page_program),
        "first_byte": span_json(timing.first_byte),
        "next_byte": span_json(timing.next_byte),
        "erase": erase,
        "chip_erase": span_json(timing.chip_erase),
        "write_status": span_json(timing.write_status),
        "suspend_ns": timing.suspend_ns,
        "resume_to_suspend_ns": timing.resume_to_suspend_ns,
        "power_down_ns": timing.power_down_ns,
        "release_ns": timing.release_ns,
        "reset_ns": timing.reset_ns,
        "reset_erasing_ns": timing.reset_erasing_ns,
        "power_up_ns": timing.power_up_ns,
        "page_read": span_json(timing.page_read),
        "page_read_no_ecc": span_json(timing.page_read_no_ecc),
    })
}

fn register_json(spec: &RegisterSpec) -> Value {
    let bits: Vec<Value> =
        spec.bits.iter().map(|bit| json!({ "name": bit.name, "keeps": keep(bit.keep) })).collect();
    json!({ "factory": spec.factory, "bits": bits })
}

fn command_json(command: &CommandSpec) -> Value {
    let address = match command.address {
        AddressPhase::None => json!(0),
        AddressPhase::ByMode(_) => json!("3 or 4"),
        AddressPhase::One(_) => json!(1),
        AddressPhase::Two(_) => json!(2),
        AddressPhase::Three(_) => json!(3),
        AddressPhase::Four(_) => json!(4),
    };
    let (way, lines) = match command.data {
        DataPhase::None => ("none", 0),
        DataPhase::In { lines, .. } => ("in", lines.count()),
        DataPhase::Out { lines } => ("out", lines.count()),
    };
    json!({
        "opcode": command.opcode,
        "name": command.name,
        "does": format!("{:?}", command.op),
        "address_bytes": address,
        "address_lines": command.address.lines().count(),
        "mode_byte": command.mode_byte,
        "dummy_clocks": command.dummy_clocks,
        "data": way,
        "data_lines": lines,
    })
}

/// Everything, with the keys of part files where there is one.
fn whole(part: &Part) -> Value {
    let registers: serde_json::Map<String, Value> =
        part.registers.iter().map(|(register, spec)| (key(register), register_json(spec))).collect();
    let commands: Vec<Value> = part.commands.iter().map(command_json).collect();
    json!({
        "name": part.name,
        "maker": part.maker,
        "kind": kind(part.kind),
        "sources": part.sources,
        "notes": part.notes,
        "geometry": part.geometry,
        "id": part.id,
        "bus": part.bus,
        "timing": timing_json(part),
        "endurance": part.endurance,
        "registers": registers,
        "protection": part.ranges,
        "locks": part.locks,
        "security": part.security,
        "sfdp": part.sfdp,
        "nand": part.nand,
        "commands": commands,
    })
}

/// For people.
fn page(part: &Part) -> anyhow::Result<String> {
    let mut out = String::new();
    let (geometry, bus, timing) = (&part.geometry, &part.bus, &part.timing);
    writeln!(out, "{} ({}), {}, {}", part.name, part.maker, kind(part.kind), size(geometry.size_bytes))?;
    if !part.kind.is_ram() {
        let (page, sector) = (size(geometry.page_bytes.into()), size(geometry.sector_bytes.into()));
        writeln!(out, "  page {page}, smallest erase {sector}")?;
    }
    let clock = |hz: u32| f64::from(hz) / 1e6;
    let (max, read) = (clock(bus.max_clock_hz), clock(bus.max_read_clock_hz));
    writeln!(
        out,
        "  JEDEC ID {}; clock {max} MHz, 03h {read} MHz; {} to {} mV",
        hex(&part.id.jedec),
        bus.supply_mv[0],
        bus.supply_mv[1]
    )?;
    writeln!(out, "\ntimes: typical, longest")?;
    let named = [
        ("page program", timing.page_program),
        ("first byte", timing.first_byte),
        ("next byte", timing.next_byte),
        ("chip erase", timing.chip_erase),
        ("write status", timing.write_status),
        ("page read", timing.page_read),
        ("page read, no ECC", timing.page_read_no_ecc),
    ];
    let erases = timing.erase.iter().map(|(unit, span)| (format!("erase {}", key(unit)), *span));
    let all = named.iter().map(|(name, span)| ((*name).to_owned(), *span)).chain(erases);
    for (name, one) in all.filter(|(_, one)| one.max_ns > 0) {
        writeln!(out, "  {name:18} {}", span(one))?;
    }
    let single = [
        ("suspend", timing.suspend_ns),
        ("resume to suspend", timing.resume_to_suspend_ns),
        ("power-down", timing.power_down_ns),
        ("release", timing.release_ns),
        ("reset", timing.reset_ns),
        ("reset in an erase", timing.reset_erasing_ns),
        ("power-up", timing.power_up_ns),
    ];
    for (name, ns) in single.iter().filter(|(_, ns)| *ns > 0) {
        writeln!(out, "  {name:18} {}", time(*ns))?;
    }
    writeln!(out, "\nregisters: factory value, bits 7 to 0")?;
    for (register, spec) in &part.registers {
        let bits: Vec<&str> = spec.bits.iter().rev().map(|bit| bit.name.as_str()).collect();
        writeln!(out, "  {:18} {:02X}h  {}", key(register), spec.factory, bits.join(" "))?;
    }
    writeln!(out, "\ncommands")?;
    for command in part.commands.iter() {
        writeln!(out, "  {:02X}h  {}", command.opcode, command.name)?;
    }
    list(&mut out, "sources", &part.sources)?;
    list(&mut out, "notes", &part.notes)?;
    Ok(out)
}

fn list(out: &mut String, title: &str, items: &[String]) -> anyhow::Result<()> {
    writeln!(out, "\n{title}")?;
    for (number, item) in items.iter().enumerate() {
        writeln!(out, "  {}. {item}", number + 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_written_as_in_data_sheets() {
        assert_eq!(time(400_000), "400 us");
        assert_eq!(time(2_500), "2.5 us");
        assert_eq!(time(1_600_000_000), "1.6 s");
        assert_eq!(time(20), "20 ns");
        assert_eq!(
            (size(64 << 20), size(512 << 10), size(1)),
            ("64 MiB".into(), "512 KiB".into(), "1 B".into())
        );
        assert_eq!(hex(&[0xEF, 0x40, 0x18]), "EF 40 18");
        assert_eq!(hex(&[0x7F, 0x7F, 0x7F, 0x7F, 0x7F, 0x7F, 0xC2, 0x25, 0x08]), "7Fx6 C2 25 08");
        assert_eq!(hex(&[0xFF; 8]), "FFx8");
        assert_eq!(hex(&[]), "-");
    }

    #[test]
    fn every_part_has_a_page_and_json_that_names_all_commands() {
        for part in part::all() {
            let page = page(part).unwrap();
            assert!(part.commands.iter().all(|command| page.contains(command.name)), "{}", part.name);
            let json = whole(part);
            assert_eq!(json["commands"].as_array().unwrap().len(), part.commands.iter().count());
            assert_eq!(json["geometry"]["size_bytes"], part.geometry.size_bytes);
        }
    }
}
