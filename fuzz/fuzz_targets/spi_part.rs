//! Part files and SFDP tables. The first byte chooses: the text alone, a file of ours with lines of the text put in, or SFDP.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spiflash_mtd::part::{self, Part};
use spiflash_mtd::sfdp;

fuzz_target!(|data: &[u8]| {
    let Some((how, rest)) = data.split_first() else { return };
    if *how >= 0xC0 {
        return tables(rest, how & 1 == 1);
    }
    let Ok(text) = std::str::from_utf8(rest) else { return };
    if *how >= 0x80 {
        return check(text);
    }
    let parts = part::all();
    let name = &parts[usize::from(*how) % parts.len()].name;
    let mut lines: Vec<&str> = part::text(name).expect("a part of the crate has a file").lines().collect();
    // Each line of the input: where, and what comes there; without a text, a line goes.
    for change in text.lines() {
        let mut characters = change.chars();
        let at = characters.next().map_or(0, |c| c as usize) % lines.len().max(1);
        match characters.as_str() {
            "" if lines.is_empty() => {}
            "" => drop(lines.remove(at)),
            line => match lines.get_mut(at) {
                Some(slot) => *slot = line,
                None => lines.push(line),
            },
        }
    }
    check(&lines.join("\n"));
});

/// What a chip would ask of a part that is accepted.
fn check(text: &str) {
    let part = match Part::from_toml(text, "fuzz.toml") {
        Ok(part) => part,
        Err(error) => {
            assert!(error.to_string().starts_with("fuzz.toml: "));
            return;
        }
    };
    let size = part.geometry.size_bytes;
    if let Some(rules) = &part.ranges {
        for bits in rules.combinations() {
            let range = rules.range(size, bits);
            assert!(range.start <= range.end && range.end <= size);
        }
    }
    if let Some(locks) = &part.locks {
        let units = locks.units(size);
        assert_eq!(units.last().map(|unit| unit.end), Some(size));
        let register = locks.to_register(size, &vec![true; units.len()]);
        assert_eq!(register.len(), locks.register_bytes(size));
        assert_eq!(locks.from_register(size, &register).len(), locks.register_bits(size).len());
    }
    if let (Some(tables), Some(bytes)) = (sfdp::tables(&part), sfdp::build(&part)) {
        let ours = part.sfdp.as_ref().is_some_and(|sfdp| sfdp.dump.is_none());
        if ours {
            assert_eq!(sfdp::parse(&bytes).expect("our own tables"), tables);
        }
    }
}

fn tables(bytes: &[u8], fix: bool) {
    let mut bytes = bytes.to_vec();
    if fix && bytes.len() > 16 {
        bytes[..6].copy_from_slice(b"SFDP\x06\x01");
        (bytes[8], bytes[15]) = (0x00, 0xFF);
    }
    if let Ok(read) = sfdp::parse(&bytes) {
        assert_eq!(sfdp::parse(&read.encode()).expect("what was written"), read);
    }
}
