//! Times as people write them.

const FORM: &str = "a time is a decimal number and one of ns, us, ms, s, h or d, like 0.4ms";
/// Ten years: within what 64 bits of nanoseconds hold by far.
const MOST_NS: u64 = 3653 * 86_400 * 1_000_000_000;

/// A time in nanoseconds: a decimal number and one of ns, us, ms, s, h, d.
///
/// # Errors
/// The rule that the text breaks.
pub fn parse_ns(text: &str) -> Result<u64, &'static str> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(FORM)?;
    let (number, unit) = text.split_at(split);
    let unit_ns: u128 = match unit.trim() {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        _ => return Err(FORM),
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return Err(FORM),
        Some((whole, fraction)) => (whole, fraction.trim_end_matches('0')),
        None => (number, ""),
    };
    if whole.is_empty() || fraction.contains('.') || whole.len() + fraction.len() > 19 {
        return Err(FORM);
    }
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| FORM)?;
    let scale = 10u128.pow(fraction.len() as u32);
    let scaled = digits * unit_ns;
    if !scaled.is_multiple_of(scale) {
        return Err("a time is whole nanoseconds");
    }
    u64::try_from(scaled / scale).ok().filter(|ns| *ns <= MOST_NS).ok_or("a time is at most 3653 days")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_nanosecond() {
        let right = [
            ("0.4 ms", 400_000),
            ("2.5us", 2_500),
            (" 40 s ", 40_000_000_000),
            ("1.000000001s", 1_000_000_001),
            ("1.5h", 5_400_000_000_000),
            ("3653d", MOST_NS),
        ];
        for (text, ns) in right {
            assert_eq!(parse_ns(text), Ok(ns), "{text}");
        }
        let wrong =
            ["", "ms", "4", "-1 ms", "1..2 ms", "1. ms", ".5 ms", "1 min", "0.5ns", "3654d", "1e3 ms"];
        for text in wrong {
            assert!(parse_ns(text).is_err(), "{text}");
        }
    }
}
