//! The model against closed forms, against an independent reference, and with bugs planted.

mod checks;
mod mutants;
mod properties;

use super::{
    model::{Command, NandModel},
    planted::Mutant,
    profile::{ArbitrationKind, Profile},
};
use crate::geometry::{Geometry, ZnsConfig, ZoneId};

/// Four dies on two channels, three-page programs of 48 KiB, four of them in a block; no transfers, link, firmware or buffer.
const BENCH: &str = r#"
name = "bench"
source = "round numbers"
[geometry]
channels = 2
dies_per_channel = 2
planes_per_die = 1
page_bytes = 16384
program_bytes = 49152
erase_block_bytes = 196608
[timing]
read_ns = 40000
read_4k_ns = 30000
program_ns = 600000
erase_ns = 3000000
channel_bytes_per_s = 0
[zones]
erase_on_reset = true
finish_fills = true
"#;

/// One program unit of [`BENCH`] in sectors.
const UNIT: u64 = 96;
/// A channel rate that moves a 16 KiB page in 10 us and a unit in 30 us.
const CHANNEL: &str = "timing.channel_bytes_per_s=1638400000";
const US: u64 = 1000;
const MS: u64 = 1_000_000;

fn bench(changes: &[&str]) -> Profile {
    let mut profile = Profile::parse("bench", BENCH).unwrap();
    for change in changes {
        profile.set(change).unwrap();
    }
    profile
}

/// 16 zones of 4 MiB: 85 units and a third of one each.
fn geometry() -> Geometry {
    Geometry::new(&ZnsConfig { size_bytes: 64 << 20, zone_size_bytes: 4 << 20, ..ZnsConfig::default() })
        .unwrap()
}

fn model(changes: &[&str], mutant: Option<Mutant>) -> NandModel {
    let profile = bench(changes);
    let mut model = NandModel::new(&profile, &geometry(), 4).unwrap();
    plant(&mut model, &profile, mutant);
    model
}

fn read(zone: u32, offset_sectors: u64, sectors: u64) -> Command {
    Command::Read { zone: ZoneId(zone), offset_sectors, sectors, retry_ns: 0 }
}

fn write(zone: u32, offset_sectors: u64, sectors: u64) -> Command {
    Command::Write { zone: ZoneId(zone), offset_sectors, sectors }
}

fn append(zone: u32, offset_sectors: u64, sectors: u64) -> Command {
    Command::Append { zone: ZoneId(zone), offset_sectors, sectors }
}

/// Plants a bug: some by a wrong parameter, the others by the branches that `planted!` marks.
fn plant(model: &mut NandModel, profile: &Profile, mutant: Option<Mutant>) {
    model.mutant = mutant;
    model.flash.mutant = mutant;
    for zone in &mut model.zones {
        zone.mutant = mutant;
    }
    let flash = &mut model.flash;
    match mutant {
        Some(Mutant::SharedChannel) => flash.channel_of.fill(0),
        Some(Mutant::DieFreeTooEarly) => flash.cache_read = true,
        Some(Mutant::CacheProgramIgnored) => flash.cache_program = false,
        Some(Mutant::PlaneReadsSerial) => flash.planes_sense_alone = false,
        Some(Mutant::SmallReadIgnored) => model.sense_4k_ns = model.sense_4k_ns.max(40 * US),
        Some(Mutant::ProgramPerPage) => {
            flash.program_ns *= profile.geometry.program_bytes / profile.geometry.page_bytes;
        }
        Some(Mutant::FinishNeverYields) => flash.fill_yields = false,
        Some(Mutant::EarlyAlways) => model.early_completion = true,
        Some(Mutant::FlushDoesNotDrain) => model.flush_drains = false,
        Some(Mutant::LinkForgotten) => model.link_ns_per_byte = 0.0,
        Some(Mutant::CoresIgnored) => model.firmware.cores.clear(),
        Some(Mutant::RoundRobinIsFifo) => model.firmware.kind = ArbitrationKind::Fifo,
        Some(Mutant::ScaleForgetsTransfers) => {
            flash.ns_per_byte /= profile.time_scale;
            model.link_ns_per_byte /= profile.time_scale;
        }
        _ => {}
    }
}
