//! What a workload should measure on a profile: a closed loop on a virtual clock.
//!
//! The host keeps `queue_depth` requests outstanding per job and sends the next one when one is back. As Linux does since 6.10 (zone
//! write plugging, block/blk-zoned.c), at most one regular write per zone is at the device; the others wait in the host, and
//! that wait is in their latency, as in fio's. The invariant: the same profile, geometry and workload give the same prediction
//! on every machine.

use super::{
    error::NandError,
    model::{Command, NandModel},
    profile::Profile,
};
use crate::{
    geometry::{Geometry, SECTOR_BYTES, ZoneId},
    rng::SplitMix64,
};
use serde::{Deserialize, Serialize};
use std::{cmp::Reverse, collections::BinaryHeap};

/// Requests measured at most: a longer run is cut short, which changes no rate.
const MAX_REQUESTS: usize = 2_000_000;

/// Requests that may be done at the same instant before the workload is taken to have no cost.
const MAX_INSTANT: u32 = 1 << 20;

/// What the requests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Sequential reads, one job per zone, of zones written before.
    Read,
    /// Reads at random over all `zones`, one job, of zones written before.
    RandRead,
    /// Sequential writes, one job per zone.
    Write,
    /// Zone appends, one job per zone.
    Append,
}

/// A workload, in fio's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// fio's `rw`.
    pub rw: Access,
    /// fio's `bs`, in bytes: a multiple of the logical block, at most the zone capacity.
    pub block_bytes: u64,
    /// fio's `iodepth`: requests outstanding per job, 1 to 65536.
    pub queue_depth: u32,
    /// Zones used: as many jobs (fio's `numjobs`), or for [`Access::RandRead`] the range of the only job. A writer that has filled
    /// its zone goes on `zones` further, round robin over the device, and resets what it finds full there; a reader starts
    /// again.
    pub zones: u32,
    /// fio's `runtime`, in ns.
    pub runtime_ns: u64,
    /// fio's `ramp_time`, in ns: before the measurement, so that buffers are as full as they will be.
    #[serde(default)]
    pub ramp_ns: u64,
    /// fio's `randseed`.
    #[serde(default)]
    pub seed: u64,
    /// What the host adds to each request's latency, in ns.
    #[serde(default)]
    pub host_overhead_ns: u64,
    /// Submission queues; job `j` uses queue `j % queues`.
    #[serde(default = "one")]
    pub queues: u16,
}

fn one() -> u16 {
    1
}

/// What a measurement should find.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Requests per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_s: f64,
    /// Mean latency in ns.
    pub mean_ns: f64,
    /// Shortest latency in ns.
    pub min_ns: u64,
    /// Median latency in ns.
    pub p50_ns: u64,
    /// 90th percentile in ns.
    pub p90_ns: u64,
    /// 99th percentile in ns.
    pub p99_ns: u64,
    /// 99.9th percentile in ns.
    pub p999_ns: u64,
    /// Longest latency in ns.
    pub max_ns: u64,
    /// Requests measured.
    pub requests: u64,
    /// Zones reset on the way.
    pub resets: u64,
    /// How long was measured, in ns: less than asked for if there were more than two million requests.
    pub measured_ns: u64,
    /// Mean utilisation of the dies that were used at all, from the beginning.
    pub die_utilisation: f64,
    /// Utilisation of the busiest channel, from the beginning.
    pub channel_utilisation: f64,
}

/// Runs `workload` against the model of `profile` on a device of `geometry`.
///
/// # Errors
/// [`NandError::Field`] of the profile, [`NandError::Workload`] naming what cannot be.
pub fn predict(profile: &Profile, geometry: &Geometry, workload: &Workload) -> Result<Prediction, NandError> {
    check(geometry, workload)?;
    let mut model = NandModel::new(profile, geometry, workload.queues)?;
    let mut run = Run::new(geometry, workload);
    if matches!(workload.rw, Access::Read | Access::RandRead) {
        for zone in 0..workload.zones {
            model.restore(run.zone(zone), run.capacity);
        }
    }
    run.until_the_end(&mut model);
    run.summary(&model)
}

fn check(geometry: &Geometry, workload: &Workload) -> Result<(), NandError> {
    let bad =
        |field, value: u64, rule: String| Err(NandError::Workload { field, value: value.to_string(), rule });
    let (block, capacity) =
        (u64::from(geometry.block_bytes()), geometry.sequential_capacity_sectors() * SECTOR_BYTES);
    let bytes = workload.block_bytes;
    if bytes == 0 || !bytes.is_multiple_of(block) || bytes > capacity {
        let rule = format!("it must be a multiple of {block} up to the zone capacity {capacity}");
        return bad("block_bytes", bytes, rule);
    }
    let most = geometry.zones() - geometry.conventional_zones();
    if workload.zones == 0 || workload.zones > most {
        return bad("zones", workload.zones.into(), format!("the device has 1 to {most} sequential zones"));
    }
    if !(1..=65_536).contains(&workload.queue_depth) {
        return bad("queue_depth", workload.queue_depth.into(), "it must be 1 to 65536".into());
    }
    let jobs = if workload.rw == Access::RandRead { 1 } else { u64::from(workload.zones) };
    if jobs * u64::from(workload.queue_depth) > 1 << 20 {
        let rule = format!("with {jobs} jobs that is more than 2^20 requests outstanding");
        return bad("queue_depth", workload.queue_depth.into(), rule);
    }
    for (field, value) in [
        ("runtime_ns", workload.runtime_ns),
        ("ramp_ns", workload.ramp_ns),
        ("host_overhead_ns", workload.host_overhead_ns),
    ] {
        if value > 1 << 60 {
            return bad(field, value, format!("it must be at most {}", 1u64 << 60));
        }
    }
    if workload.runtime_ns == 0 {
        return bad("runtime_ns", 0, "it must be 1 or more".into());
    }
    Ok(())
}

/// What happens next, earliest first; `order` keeps ties in the order they arose.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at: u64,
    order: u64,
    job: usize,
    /// When the request that is back was issued; `None` for a start or the end of a reset.
    issued: Option<u64>,
}

struct Job {
    /// The zone's number among those the workload may use.
    zone: u32,
    offset_sectors: u64,
    /// When each request that waits in the host was issued, oldest first.
    waiting: std::collections::VecDeque<u64>,
    /// Requests at the device.
    at_device: u32,
    resetting: bool,
}

struct Run<'a> {
    workload: &'a Workload,
    first_zone: u32,
    all_zones: u32,
    capacity: u64,
    block: u64,
    jobs: Vec<Job>,
    full: Vec<bool>,
    events: BinaryHeap<Reverse<Event>>,
    order: u64,
    random: SplitMix64,
    latencies: Vec<u64>,
    resets: u64,
    last: u64,
    /// Events since time last moved.
    instant: u32,
}

impl<'a> Run<'a> {
    fn new(geometry: &Geometry, workload: &'a Workload) -> Run<'a> {
        let jobs = if workload.rw == Access::RandRead { 1 } else { workload.zones };
        let all_zones = geometry.zones() - geometry.conventional_zones();
        let job = |zone| Job {
            zone,
            offset_sectors: 0,
            waiting: Default::default(),
            at_device: 0,
            resetting: false,
        };
        let mut run = Run {
            workload,
            first_zone: geometry.conventional_zones(),
            all_zones,
            capacity: geometry.sequential_capacity_sectors(),
            block: workload.block_bytes / SECTOR_BYTES,
            jobs: (0..jobs).map(job).collect(),
            full: vec![false; all_zones as usize],
            events: BinaryHeap::new(),
            order: 0,
            random: SplitMix64::new(workload.seed),
            latencies: Vec::new(),
            resets: 0,
            last: 0,
            instant: 0,
        };
        for _ in 0..workload.queue_depth {
            for job in 0..jobs as usize {
                run.push(0, job, None);
            }
        }
        run
    }

    fn zone(&self, number: u32) -> ZoneId {
        ZoneId(self.first_zone + number)
    }

    fn push(&mut self, at: u64, job: usize, issued: Option<u64>) {
        self.order += 1;
        self.events.push(Reverse(Event { at, order: self.order, job, issued }));
    }

    fn end(&self) -> u64 {
        self.workload.ramp_ns.saturating_add(self.workload.runtime_ns)
    }

    fn until_the_end(&mut self, model: &mut NandModel) {
        while let Some(Reverse(event)) = self.events.pop() {
            if event.at > self.end() || self.latencies.len() >= MAX_REQUESTS || self.instant > MAX_INSTANT {
                break;
            }
            self.instant = if event.at > self.last { 0 } else { self.instant + 1 };
            self.last = event.at;
            if let Some(issued) = event.issued {
                if event.at > self.workload.ramp_ns {
                    self.latencies.push(event.at - issued);
                }
                self.jobs[event.job].at_device -= 1;
            }
            if std::mem::take(&mut self.jobs[event.job].resetting) {
                self.send(model, event.at, event.job);
            } else {
                self.jobs[event.job].waiting.push_back(event.at);
                self.send(model, event.at, event.job);
            }
        }
    }

    /// Sends what may be sent.
    fn send(&mut self, model: &mut NandModel, now: u64, job: usize) {
        let one_at_a_time = self.workload.rw == Access::Write;
        let queue = (job % usize::from(self.workload.queues.max(1))) as u16;
        while let Some(state) = self.jobs.get(job)
            && !state.resetting
            && !state.waiting.is_empty()
            && !(one_at_a_time && state.at_device > 0)
        {
            let Some(command) = self.next_command(job) else {
                // Every request of the zone must be back before it may be reset.
                if self.jobs[job].at_device == 0 {
                    let zone = self.zone(self.jobs[job].zone);
                    let due = model.submit(now, queue, &Command::Reset(zone));
                    self.full[self.jobs[job].zone as usize] = false;
                    self.jobs[job].resetting = true;
                    self.resets += 1;
                    self.push(due.saturating_add(self.workload.host_overhead_ns), job, None);
                }
                return;
            };
            let due = model.submit(now, queue, &command);
            let issued = self.jobs[job].waiting.pop_front();
            self.jobs[job].at_device += 1;
            self.push(due.saturating_add(self.workload.host_overhead_ns), job, issued);
        }
    }

    /// The job's next request; `None` if its zone must be reset first.
    fn next_command(&mut self, at: usize) -> Option<Command> {
        let (sectors, capacity) = (self.block, self.capacity);
        if self.workload.rw == Access::RandRead {
            let number = (self.random.next_u64() % u64::from(self.workload.zones)) as u32;
            let zone = self.zone(number);
            let offset_sectors = self.random.next_u64() % (capacity / sectors) * sectors;
            return Some(Command::Read { zone, offset_sectors, sectors, retry_ns: 0 });
        }
        let jobs = self.jobs.len() as u32;
        let reads = self.workload.rw == Access::Read;
        let job = &mut self.jobs[at];
        if job.offset_sectors + sectors > capacity {
            job.offset_sectors = 0;
            if !reads {
                self.full[job.zone as usize] = true;
                // The next zone in the job's own sequence: zones at, at + jobs, at + 2 × jobs...
                let next = job.zone + jobs;
                job.zone = if next < self.all_zones { next } else { at as u32 };
            }
        }
        if !reads && self.full[job.zone as usize] {
            return None;
        }
        let (zone, offset_sectors) = (ZoneId(self.first_zone + job.zone), job.offset_sectors);
        job.offset_sectors += sectors;
        Some(match self.workload.rw {
            Access::Write => Command::Write { zone, offset_sectors, sectors },
            Access::Append => Command::Append { zone, offset_sectors, sectors },
            Access::Read | Access::RandRead => Command::Read { zone, offset_sectors, sectors, retry_ns: 0 },
        })
    }

    fn summary(mut self, model: &NandModel) -> Result<Prediction, NandError> {
        let stuck = self.instant > MAX_INSTANT;
        let cut = self.latencies.len() >= MAX_REQUESTS || stuck;
        let measured = if cut { self.last } else { self.end() }.saturating_sub(self.workload.ramp_ns);
        let requests = self.latencies.len();
        if requests == 0 || measured == 0 {
            let rule = match stuck {
                false => "no request is back in that time".to_owned(),
                true => "the profile has no cost for this workload, so that no time passes".to_owned(),
            };
            let value = self.workload.runtime_ns.to_string();
            return Err(NandError::Workload { field: "runtime_ns", value, rule });
        }
        self.latencies.sort_unstable();
        // The nearest rank, as fio has it.
        let rank = |share: f64| {
            let at = (share * requests as f64).ceil() as usize;
            self.latencies.get(at.clamp(1, requests) - 1).copied().unwrap_or_default()
        };
        let iops = requests as f64 * 1e9 / measured as f64;
        let stats = model.stats();
        let used: Vec<f64> = stats.die_utilisation().into_iter().filter(|share| *share > 0.0).collect();
        let sum: u128 = self.latencies.iter().map(|latency| u128::from(*latency)).sum();
        Ok(Prediction {
            iops,
            bytes_per_s: iops * self.workload.block_bytes as f64,
            mean_ns: sum as f64 / requests as f64,
            min_ns: rank(0.0),
            p50_ns: rank(0.5),
            p90_ns: rank(0.9),
            p99_ns: rank(0.99),
            p999_ns: rank(0.999),
            max_ns: rank(1.0),
            requests: requests as u64,
            resets: self.resets,
            measured_ns: measured,
            die_utilisation: used.iter().sum::<f64>() / used.len().max(1) as f64,
            channel_utilisation: stats.channel_utilisation().into_iter().fold(0.0, f64::max),
        })
    }
}
