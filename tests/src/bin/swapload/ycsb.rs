//! The core workloads of YCSB (Cooper et al., SoCC 2010) against a Redis server. The invariant checked: a row that is read is
//! the row of its key.
//!
//! A row is a JSON text of about 1 KB in one value, which compresses as rows do; YCSB's own random bytes do not. A scan is one
//! MGET of consecutive keys.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::random::{Random, Zipf, mix};
use crate::report::{Meter, Outcome};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The server: HOST:PORT, or the path of its socket
    #[arg(long, default_value = "127.0.0.1:6379")]
    server: String,
    /// A, B, C, D, E or F
    #[arg(long, default_value = "A")]
    workload: String,
    /// Rows
    #[arg(long, default_value_t = 100_000)]
    records: u64,
    /// Operations; fewer when the seconds are over
    #[arg(long, default_value_t = 100_000)]
    operations: u64,
    /// Seconds of operations at most
    #[arg(long, default_value_t = 3600.0)]
    seconds: f64,
    /// The rows are there from an earlier run
    #[arg(long)]
    loaded: bool,
    /// Only load
    #[arg(long)]
    load_only: bool,
    /// Which key is chosen: zipf, latest or uniform; the workload's own without
    #[arg(long)]
    distribution: Option<Distribution>,
    /// Seed of the operations
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Distribution {
    /// Few keys most of the time, spread over all
    Zipf,
    /// Keys that were inserted last most of the time
    Latest,
    /// All alike
    Uniform,
}

/// Of 100 operations, and the distribution: YCSB's files workloada to workloadf.
struct Mix {
    read: u64,
    update: u64,
    insert: u64,
    scan: u64,
    distribution: Distribution,
}

fn mix_of(name: &str) -> Result<Mix> {
    use Distribution::{Latest, Zipf};
    // What is left of 100 reads, changes and writes a row back.
    let [read, update, insert, scan] = match name {
        "A" => [50, 50, 0, 0],
        "B" => [95, 5, 0, 0],
        "C" => [100, 0, 0, 0],
        "D" => [95, 0, 5, 0],
        "E" => [0, 0, 5, 95],
        "F" => [50, 0, 0, 0],
        _ => bail!("--workload {name}: there are A, B, C, D, E and F"),
    };
    Ok(Mix { read, update, insert, scan, distribution: if name == "D" { Latest } else { Zipf } })
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A connection that speaks RESP, as far as needed.
struct Redis {
    stream: BufReader<Box<dyn Stream>>,
    out: Vec<u8>,
}

impl Redis {
    fn connect(server: &str) -> Result<Self> {
        let limit = Some(Duration::from_secs(120));
        let stream: Box<dyn Stream> = if server.contains('/') {
            let stream = UnixStream::connect(server).with_context(|| format!("--server {server}"))?;
            stream.set_read_timeout(limit)?;
            Box::new(stream)
        } else {
            let stream = TcpStream::connect(server).with_context(|| format!("--server {server}"))?;
            stream.set_read_timeout(limit)?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        };
        Ok(Self { stream: BufReader::with_capacity(1 << 17, stream), out: Vec::with_capacity(1 << 16) })
    }

    fn put(&mut self, words: &[&[u8]]) {
        self.out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            self.out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            self.out.extend_from_slice(word);
            self.out.extend_from_slice(b"\r\n");
        }
    }

    fn send(&mut self) -> Result<()> {
        self.stream.get_mut().write_all(&self.out).context("sending to the server")?;
        self.out.clear();
        Ok(())
    }

    /// The next answer's kind and number or length; the data of a text stays to be read.
    fn head(&mut self) -> Result<(u8, i64)> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("the server's answer")? == 0 {
            bail!("the server closed the connection");
        }
        let line = line.trim_end();
        match line.as_bytes().first() {
            Some(b'+') => Ok((b'+', 0)),
            Some(kind @ (b'$' | b'*' | b':')) => {
                Ok((*kind, line[1..].parse().context("the server's answer")?))
            }
            Some(b'-') => bail!("the server says {}", &line[1..]),
            _ => bail!("the server's answer {line:?} is not understood"),
        }
    }

    /// A value, into `row`; `false` when there is none.
    fn value(&mut self, row: &mut Vec<u8>) -> Result<bool> {
        match self.head()? {
            (b'$', -1) => Ok(false),
            (b'$', len) => {
                row.resize(usize::try_from(len)? + 2, 0);
                self.stream.read_exact(row).context("the server's answer")?;
                row.truncate(row.len() - 2);
                Ok(true)
            }
            (kind, _) => bail!("the server answers a read with {:?}", char::from(kind)),
        }
    }

    fn done(&mut self) -> Result<()> {
        match self.head()? {
            (b'+', _) => Ok(()),
            (kind, _) => bail!("the server answers a write with {:?}", char::from(kind)),
        }
    }
}

fn key(record: u64) -> String {
    format!("user{:019}", mix(record) >> 1)
}

const WORDS: [&str; 16] = [
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll",
    "larch", "marsh", "north", "oxbow", "prairie",
];

/// A row: ten fields, words and numbers.
fn row(record: u64, version: u64, into: &mut Vec<u8>) {
    let mut random = Random::new(record << 20 ^ version);
    into.clear();
    into.extend_from_slice(format!("{{\"key\":\"{}\",\"version\":{version}", key(record)).as_bytes());
    for field in 0..10 {
        into.extend_from_slice(format!(",\"field{field}\":\"").as_bytes());
        for _ in 0..8 {
            let bits = random.next();
            let text = format!("{} {} ", WORDS[(bits & 15) as usize], bits >> 40 & 0xfff);
            into.extend_from_slice(text.as_bytes());
        }
        into.extend_from_slice(b"\"");
    }
    into.extend_from_slice(b"}");
}

/// Whether a value is a row of this key, whole and unspoilt.
fn is_row(record: u64, value: &[u8]) -> bool {
    let Ok(found) = serde_json::from_slice::<serde_json::Value>(value) else { return false };
    let Some(version) = found["version"].as_u64() else { return false };
    let mut expected = Vec::with_capacity(2048);
    row(record, version, &mut expected);
    expected == value
}

/// Rows that are sent before their answers are read.
const PIPELINE: u64 = 64;

fn load(redis: &mut Redis, records: u64) -> Result<f64> {
    let begun = Instant::now();
    let mut value = Vec::with_capacity(2048);
    for first in (0..records).step_by(PIPELINE as usize) {
        let last = records.min(first + PIPELINE);
        for record in first..last {
            row(record, 0, &mut value);
            redis.put(&[b"SET", key(record).as_bytes(), &value]);
        }
        redis.send()?;
        (first..last).try_for_each(|_| redis.done())?;
    }
    Ok(begun.elapsed().as_secs_f64())
}

struct Client {
    redis: Redis,
    records: u64,
    zipf: Zipf,
    distribution: Distribution,
    random: Random,
    value: Vec<u8>,
    version: u64,
    wrong: u64,
}

impl Client {
    fn choose(&mut self) -> u64 {
        match self.distribution {
            Distribution::Uniform => self.random.below(self.records),
            Distribution::Zipf => mix(self.zipf.next(&mut self.random)) % self.records,
            Distribution::Latest => self.records - 1 - self.zipf.next(&mut self.random).min(self.records - 1),
        }
    }

    fn read(&mut self, record: u64) -> Result<()> {
        self.redis.put(&[b"GET", key(record).as_bytes()]);
        self.redis.send()?;
        let there = self.redis.value(&mut self.value)?;
        self.wrong += u64::from(!there || !is_row(record, &self.value));
        Ok(())
    }

    fn write(&mut self, record: u64) -> Result<()> {
        self.version += 1;
        row(record, self.version, &mut self.value);
        self.redis.put(&[b"SET", key(record).as_bytes(), &self.value]);
        self.redis.send()?;
        self.redis.done()
    }

    fn scan(&mut self, first: u64) -> Result<()> {
        let count = (1 + self.random.below(100)).min(self.records - first);
        let keys: Vec<String> = (first..first + count).map(key).collect();
        let mut words: Vec<&[u8]> = vec![b"MGET"];
        words.extend(keys.iter().map(|key| key.as_bytes()));
        self.redis.put(&words);
        self.redis.send()?;
        let (kind, found) = self.redis.head()?;
        if kind != b'*' || u64::try_from(found) != Ok(count) {
            bail!("the server answers a scan of {count} keys with {} {found}", char::from(kind));
        }
        for record in first..first + count {
            let there = self.redis.value(&mut self.value)?;
            self.wrong += u64::from(!there || !is_row(record, &self.value));
        }
        Ok(())
    }

    fn step(&mut self, mix: &Mix) -> Result<()> {
        let kind = self.random.below(100);
        if kind < mix.insert {
            self.write(self.records)?;
            self.records += 1;
            return Ok(());
        }
        let record = self.choose();
        if kind < mix.insert + mix.read {
            self.read(record)
        } else if kind < mix.insert + mix.read + mix.update {
            self.write(record)
        } else if kind < mix.insert + mix.read + mix.update + mix.scan {
            self.scan(record)
        } else {
            self.read(record)?;
            self.write(record)
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<Outcome> {
    let mix = mix_of(&options.workload)?;
    if options.records < 2 || options.records > 1 << 40 {
        bail!("--records {}: at least 2 are needed", options.records);
    }
    let mut redis = Redis::connect(&options.server)?;
    let load_seconds = if options.loaded { 0.0 } else { load(&mut redis, options.records)? };
    let mut client = Client {
        redis,
        records: options.records,
        zipf: Zipf::new(options.records),
        distribution: options.distribution.unwrap_or(mix.distribution),
        random: Random::new(options.seed),
        value: Vec::with_capacity(2048),
        version: 0,
        wrong: 0,
    };
    let mut meter = Meter::start()?;
    let end = Duration::from_secs_f64(options.seconds);
    let operations = if options.load_only { 0 } else { options.operations };
    for _ in 0..operations {
        let begun = Instant::now();
        client.step(&mix)?;
        meter.count(begun.elapsed());
        if meter.since_start() >= end {
            break;
        }
    }
    let distribution = format!("{:?}", client.distribution).to_lowercase();
    let more = json!({
        "ycsb": options.workload, "records": client.records, "distribution": distribution, "load_seconds": load_seconds,
    });
    Ok(meter.finish("ycsb", client.wrong, more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_belongs_to_its_key_and_a_spoilt_one_to_none() {
        let mut value = Vec::new();
        row(17, 3, &mut value);
        assert!((900..1300).contains(&value.len()), "{}", value.len());
        assert!(is_row(17, &value) && !is_row(18, &value));
        let last = value.len() - 10;
        value[last] ^= 1;
        assert!(!is_row(17, &value) && !is_row(17, b"") && !is_row(17, b"{}"));
    }

    #[test]
    fn shares_of_every_workload_add_up_to_a_hundred_at_most() {
        for name in ["A", "B", "C", "D", "E", "F"] {
            let shares = mix_of(name).map(|mix| mix.read + mix.update + mix.insert + mix.scan);
            assert!(shares.is_ok_and(|sum| sum == 100 || (name == "F" && sum == 50)), "{name}");
        }
        assert!(mix_of("G").is_err());
    }
}
