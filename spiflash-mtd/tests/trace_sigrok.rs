//! sigrok, a foreign reader of waveforms and of SPI flash commands, reads our traces as our own log reads the bus.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

use serde_json::Value;
use spiflash_mtd::script::Script;
use spiflash_mtd::trace::{JsonLog, JsonLogOptions, VcdOptions, VcdTrace};
use spiflash_mtd::{Chip, Setup, SimBus, SpiBus, part};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// What sigrok-cli prints; `None` where there is none.
fn sigrok(vcd: &Path, annotations: &str) -> Option<Vec<String>> {
    // Coreutils' timeout: a reader that hangs is a failure.
    let output = Command::new("timeout")
        .args(["60", "sigrok-cli", "-I", "vcd", "-P", "spi:clk=sck:mosi=io0:miso=io1:cs=cs#,spiflash"])
        .args(["-A", annotations, "-i"])
        .arg(vcd)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    if output.status.code() == Some(127) {
        return None;
    }
    assert!(output.status.success(), "{output:?}");
    Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

/// The line of sigrok's spiflash decoder for a line of our log; for a status read, one for each byte.
fn in_their_words(line: &Value) -> Vec<String> {
    let text = |key: &str| line[key].as_str().unwrap_or("");
    let address = line["address"].as_u64().unwrap_or(0);
    let count = line["data_bytes"].as_u64().unwrap_or(0);
    let pairs: Vec<String> =
        text("data").as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).into()).collect();
    let data = pairs.join(" ");
    let one = match text("opcode") {
        "06" => "Command: Write enable (WREN)".into(),
        "04" => "Command: Write disable (WRDI)".into(),
        "9f" => "Read identification (RDID): Device = Adesto Unknown".into(),
        "05" => return vec!["Command: Read status register (RDSR)".into(); count as usize],
        "02" => format!("Page program (addr {address:#08x}, {count} bytes): {data}"),
        "03" => format!("Read data (addr {address:#08x}, {count} bytes): {data}"),
        "0b" => format!("Fast read data (addr {address:#08x}, {count} bytes): {data}"),
        "20" => format!("Erase sector {address} ({address:#08x})"),
        "c7" => "Command: Chip erase (CE2)".into(),
        other => panic!("sigrok's decoder has no {other}"),
    };
    vec![one]
}

fn session(clock_hz: u32, text: &str) {
    let directory = tempfile::tempdir().unwrap();
    let (vcd, log) = (directory.path().join("trace.vcd"), directory.path().join("log.jsonl"));
    let chip = Chip::new(Arc::new(part::find("W25Q128JV").unwrap().clone()), &Setup::default()).unwrap();
    let mut bus = SimBus::of(chip);
    bus.set_clock_hz(clock_hz).unwrap();
    let options = VcdOptions { clock_hz, timescale: None };
    let trace = VcdTrace::new(&mut bus, File::create(&vcd).unwrap(), "trace.vcd", options);
    bus.observe(Box::new(trace));
    let log_options = JsonLogOptions { data_bytes: 1 << 20 };
    bus.observe(Box::new(JsonLog::new(File::create(&log).unwrap(), "log.jsonl", log_options)));
    Script::parse(text, "test").unwrap().run(&mut bus, |result| assert_eq!(result.failure, None)).unwrap();
    drop(bus);
    let Some(theirs) = sigrok(&vcd, "spiflash=commands") else {
        eprintln!("skipped: sigrok-cli is not installed");
        return;
    };
    let log: Vec<Value> = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let frames: Vec<&Value> = log.iter().filter(|line| line.get("opcode").is_some()).collect();
    assert!(frames.len() > 3);
    let ours: Vec<String> = frames.iter().flat_map(|line| in_their_words(line)).collect();
    let theirs: Vec<String> =
        theirs.iter().map(|line| line.strip_prefix("spiflash-1: ").unwrap_or(line).to_owned()).collect();
    assert_eq!(theirs, ours);
    // And the bytes, frame by frame: each begins with its opcode.
    let sent = sigrok(&vcd, "spi=mosi-transfer").unwrap();
    let opcodes: Vec<String> =
        sent.iter().map(|line| line.replace("spi-1: ", "")[..2].to_lowercase()).collect();
    let expected: Vec<&str> = frames.iter().map(|line| line["opcode"].as_str().unwrap()).collect();
    assert_eq!(opcodes, expected);
}

#[test]
fn sigrok_reads_the_commands_of_our_log_from_our_trace() {
    session(
        50_000_000,
        "frame 9f >3 = ef 40 18\nframe 06\nframe 05 >1 = 02\nframe 02 001000 00112233445566778899aabbccddeeff\n\
         frame 05 >2 = 03 03\nready 3ms\nframe 03 001000 >20\nframe 0b 001002 00 >3 = 223344\nframe 06\nframe 04\n\
         frame 06\nframe 20 001000\nwait 100us\npower off\npower on\nready\nframe 06\nframe c7\nframe 05 >1 = 03\n",
    );
}

#[test]
fn sigrok_reads_a_trace_in_picoseconds() {
    session(
        133_000_000,
        "frame 9f >3 = ef 40 18\nframe 06\nframe 05 >1 = 02\nframe 03 ffffff >2\nframe 04\n",
    );
}
