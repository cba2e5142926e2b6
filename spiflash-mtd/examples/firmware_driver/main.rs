//! A firmware's flash driver, developed against the chip's model: see README.md beside this file.
//!
//! `cargo run -p spiflash-mtd --example firmware_driver` runs each version of the driver through the same checks and says
//! what the chip did; it fails when the last version does.
#![allow(clippy::print_stdout)]

mod checks;
mod driver;

use checks::{CHECKS, Verdict};
use driver::Version;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut last_is_good = false;
    for version in Version::ALL {
        println!("{version:?}: {}", version.story());
        last_is_good = true;
        for (name, check) in CHECKS {
            match check(version) {
                Verdict::Pass => println!("  pass  {name}"),
                Verdict::Fail(why) => {
                    println!("  FAIL  {name}\n        {why}");
                    last_is_good = false;
                }
            }
        }
    }
    if last_is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
