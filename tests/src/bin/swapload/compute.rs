//! Computations over more memory than there is: sorting and PageRank. Each checks its result.

use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::json;

use crate::random::{Random, mix};
use crate::report::{Meter, Outcome};

#[derive(clap::Args)]
pub(crate) struct Sort {
    /// Memory, in MiB: half for the records, half for merging
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Seed of the records
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A key, and text that belongs to it.
#[derive(Clone, Copy, Default)]
struct Record {
    key: u64,
    text: [u8; 24],
}

impl Record {
    fn new(key: u64) -> Self {
        let mut text = *b"record 0000000000000000 ";
        let digits = b"0123456789abcdef";
        // Half of the key: compresses as text does.
        for (n, byte) in text[15..23].iter_mut().enumerate() {
            *byte = digits[(key >> (4 * n) & 15) as usize];
        }
        Self { key, text }
    }
}

/// Records that are sorted or merged at a time: an operation.
const BATCH: usize = 16 << 10;

/// Merge sort from the bottom up.
pub(crate) fn sort(options: &Sort) -> Result<Outcome> {
    let count = ((options.mib << 19) as usize / size_of::<Record>()) / BATCH * BATCH;
    if count == 0 {
        bail!("--mib {}: at least 2 is needed", options.mib);
    }
    let mut random = Random::new(options.seed);
    let mut meter = Meter::start()?;
    let mut from: Vec<Record> = Vec::with_capacity(count);
    let mut sum = 0_u64;
    for _ in 0..count / BATCH {
        let begun = Instant::now();
        let keys = std::iter::repeat_with(|| random.next()).take(BATCH);
        from.extend(keys.map(Record::new));
        let batch = from.len() - BATCH;
        sum = from[batch..].iter().fold(sum, |sum, record| sum.wrapping_add(record.key));
        from[batch..].sort_unstable_by_key(|record| record.key);
        meter.count(begun.elapsed());
    }
    let mut to = vec![Record::default(); count];
    let mut width = BATCH;
    while width < count {
        for start in (0..count).step_by(2 * width) {
            let (middle, end) = ((start + width).min(count), (start + 2 * width).min(count));
            merge(&from, &mut to, [start, middle, end], &mut meter);
        }
        std::mem::swap(&mut from, &mut to);
        width *= 2;
    }
    let unordered = from.windows(2).filter(|pair| pair[0].key > pair[1].key).count() as u64;
    let spoiled = from.iter().filter(|record| record.text != Record::new(record.key).text).count() as u64;
    let lost = u64::from(from.iter().fold(0_u64, |sum, record| sum.wrapping_add(record.key)) != sum);
    let more = json!({ "mib": options.mib, "records": count, "records_per_operation": BATCH });
    Ok(meter.finish("sort", unordered + spoiled + lost, more))
}

fn merge(from: &[Record], to: &mut [Record], [start, middle, end]: [usize; 3], meter: &mut Meter) {
    let (mut left, mut right) = (start, middle);
    for batch in to[start..end].chunks_mut(BATCH) {
        let begun = Instant::now();
        for place in batch {
            let takes_left = right >= end || (left < middle && from[left].key <= from[right].key);
            let next = if takes_left { &mut left } else { &mut right };
            *place = from[*next];
            *next += 1;
        }
        meter.count(begun.elapsed());
    }
}

#[derive(clap::Args)]
pub(crate) struct Pagerank {
    /// Memory of the graph, in MiB
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Rounds
    #[arg(long, default_value_t = 4)]
    rounds: u32,
    /// Seed of the graph
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const DAMPING: f64 = 0.85;
/// Edges of a vertex in the mean.
const DEGREE: u64 = 16;
/// Vertices whose edges are followed at a time: an operation.
const VERTICES: usize = 256;

/// A vertex's edges lead to few vertices mostly: to the one at `n * u^4`, which makes the number of edges that arrive fall as a
/// power of the vertex's rank; ranks are spread over all numbers, so that neighbours have nothing in common.
fn target(random: &mut Random, vertices: u64) -> u32 {
    let u = random.unit();
    let rank = ((vertices as f64) * u.powi(4)) as u64;
    (mix(rank) % vertices) as u32
}

pub(crate) fn pagerank(options: &Pagerank) -> Result<Outcome> {
    // Per vertex its edges, the place of the first, and two ranks.
    let vertices = (options.mib << 20) / (DEGREE * 4 + 4 + 16);
    if vertices < VERTICES as u64 || vertices * DEGREE * 2 > u64::from(u32::MAX) {
        bail!("--mib {}: 1 to 10000 is needed", options.mib);
    }
    let mut random = Random::new(options.seed);
    let mut first: Vec<u32> = Vec::with_capacity(vertices as usize + 1);
    let mut edges: Vec<u32> = Vec::with_capacity((vertices * DEGREE) as usize);
    let building = Instant::now();
    first.push(0);
    for vertex in 0..vertices {
        // Never more in all than was reserved, and at least one each.
        let room = (vertices * DEGREE - edges.len() as u64).saturating_sub(vertices - vertex - 1);
        let degree = (1 + random.below(2 * DEGREE - 1)).min(room.max(1));
        edges.extend((0..degree).map(|_| target(&mut random, vertices)));
        first.push(edges.len() as u32);
    }
    let build_seconds = building.elapsed().as_secs_f64();
    let mut meter = Meter::start()?;
    let mut ranks = vec![1.0 / vertices as f64; vertices as usize];
    let mut next = vec![0.0; vertices as usize];
    for _ in 0..options.rounds {
        next.fill((1.0 - DAMPING) / vertices as f64);
        for begin in (0..vertices as usize).step_by(VERTICES) {
            let begun = Instant::now();
            for vertex in begin..(begin + VERTICES).min(vertices as usize) {
                let out = &edges[first[vertex] as usize..first[vertex + 1] as usize];
                let share = DAMPING * ranks[vertex] / out.len() as f64;
                out.iter().for_each(|to| next[*to as usize] += share);
            }
            meter.count(begun.elapsed());
        }
        std::mem::swap(&mut ranks, &mut next);
    }
    // Every vertex has an edge, so ranks are passed on and never lost.
    let total: f64 = ranks.iter().sum();
    let wrong = u64::from((total - 1.0).abs() > 1e-6);
    let rank_seconds = meter.since_start().as_secs_f64();
    let more = json!({
        "mib": options.mib, "vertices": vertices, "edges": edges.len(), "rounds": options.rounds, "total_rank": total,
        "build_seconds": build_seconds, "seconds": build_seconds + rank_seconds,
        "edges_per_s": edges.len() as f64 * f64::from(options.rounds) / rank_seconds,
    });
    Ok(meter.finish("pagerank", wrong, more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_sorted_and_all_there() {
        let found = sort(&Sort { mib: 5, seed: 3 }).map(|outcome| outcome.json());
        assert!(found.as_ref().is_ok_and(|f| f["wrong"] == 0 && f["records"] == 5 * BATCH), "{found:?}");
    }

    #[test]
    fn ranks_add_up_to_one_and_few_vertices_have_most_of_the_edges() {
        let found = pagerank(&Pagerank { mib: 2, rounds: 3, seed: 3 }).map(|outcome| outcome.json());
        assert!(found.as_ref().is_ok_and(|f| f["wrong"] == 0), "{found:?}");
        let (mut random, mut seen) = (Random::new(1), vec![0_u32; 1000]);
        (0..100_000).for_each(|_| seen[target(&mut random, 1000) as usize] += 1);
        seen.sort_unstable_by(|a, b| b.cmp(a));
        assert!(seen[..100].iter().sum::<u32>() > 50_000);
    }
}
