//! The chip's rules by name, each through frames as a host sends them, and the planted bugs that each must catch.
//!
//! A rule is a function of a rig, so that the same rule runs on the chip as it is and on every mutant of it.

mod array;
mod modes;
mod registers;

use super::planted::Mutant;
use super::{Chip, Setup};
use crate::bus::Transfer;
use crate::command::Lines;
use std::collections::BTreeSet;
use std::sync::Arc;

pub(crate) const US: u64 = 1_000;
pub(crate) const MS: u64 = 1_000_000;

/// Makes chips, all with the same planted bug or with none.
#[derive(Clone, Copy)]
pub(crate) struct Bench(Option<Mutant>);

impl Bench {
    pub(crate) fn chip(self, name: &str) -> Rig {
        let part = crate::part::find(name).unwrap_or_else(|| panic!("no part {name}"));
        let mut chip = Chip::new(Arc::new(part.clone()), &Setup::default()).unwrap();
        chip.set_clock_hz(50_000_000);
        chip.mutant = self.0;
        Rig { chip }
    }
}

pub(crate) struct Rig {
    pub(crate) chip: Chip,
}

impl Rig {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.frame(&[(bytes, Lines::Single)], Lines::Single, 0);
    }

    pub(crate) fn read(&mut self, bytes: &[u8], count: usize) -> Vec<u8> {
        self.frame(&[(bytes, Lines::Single)], Lines::Single, count)
    }

    /// A frame of segments, and then data from the chip.
    pub(crate) fn frame(&mut self, segments: &[(&[u8], Lines)], lines: Lines, count: usize) -> Vec<u8> {
        let mut out = vec![0; count];
        self.chip.select();
        for (bytes, lines) in segments {
            self.chip.transfer(Transfer::Write { lines: *lines, bytes });
        }
        self.chip.transfer(Transfer::Read { lines, bytes: &mut out });
        self.chip.deselect(0);
        out
    }

    pub(crate) fn status(&mut self) -> u8 {
        self.read(&[0x05], 1)[0]
    }

    pub(crate) fn busy(&mut self) -> bool {
        self.status() & 1 == 1
    }

    pub(crate) fn wait(&mut self, ns: u64) {
        self.chip.advance_to(self.chip.now_ns() + ns);
    }

    pub(crate) fn ready(&mut self) {
        while let Some(until) = self.chip.busy_until_ns() {
            self.chip.advance_to(until);
        }
    }

    /// Write enable, the frame, and its end.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.send(&[0x06]);
        self.send(bytes);
        self.ready();
    }

    pub(crate) fn byte(&mut self, address: u32) -> u8 {
        let [_, a, b, c] = address.to_be_bytes();
        self.read(&[0x03, a, b, c], 1)[0]
    }

    pub(crate) fn power_cycle(&mut self) {
        self.chip.set_power(false);
        self.wait(MS);
        self.chip.set_power(true);
        self.ready();
    }
}

type Rule = (&'static str, fn(Bench));

fn all() -> Vec<Rule> {
    [array::RULES, modes::RULES, registers::RULES].concat()
}

/// The rules that a chip with this bug breaks.
fn broken(mutant: Option<Mutant>) -> Vec<&'static str> {
    let breaks = |(name, rule): &Rule| {
        let rule = *rule;
        std::panic::catch_unwind(move || rule(Bench(mutant))).is_err().then_some(*name)
    };
    all().iter().filter_map(breaks).collect()
}

#[test]
fn every_rule_holds() {
    for (name, rule) in all() {
        println!("{name}");
        rule(Bench(None));
    }
}

#[test]
fn every_planted_bug_breaks_a_rule_and_the_documented_table_says_which() {
    let page = include_str!("../../../../docs/spi-states.md");
    let mut survivors = BTreeSet::new();
    let mut table = String::from("| bug | what it does | rules that catch it |\n|---|---|---|\n");
    for (mutant, what) in Mutant::ALL {
        let rules = broken(Some(*mutant));
        if rules.is_empty() {
            survivors.insert(format!("{mutant:?}: {what}"));
        }
        table.push_str(&format!(
            "| {mutant:?} | {what} | {}: {} |\n",
            rules.len(),
            rules.first().unwrap_or(&"-")
        ));
    }
    assert!(survivors.is_empty(), "no rule catches {survivors:#?}");
    assert!(page.contains(&table), "docs/spi-states.md lacks this table:\n{table}");
}
