//! Durations as people write them: `500ms`, `5s`, `1h30m`, `24h`.

use std::time::Duration;

const UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Parses one or more `<number><unit>`.
///
/// # Errors
/// The value and what it should look like.
pub(super) fn parse(s: &str) -> Result<Duration, String> {
    let wrong = || format!("`{s}` is not a duration such as 500ms, 5s, 1h30m or 24h");
    let mut rest = s;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let (_, ms) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        total = number.checked_mul(*ms).and_then(|ms| total.checked_add(ms)).ok_or_else(wrong)?;
        rest = after;
    }
    if s.is_empty() { Err(wrong()) } else { Ok(Duration::from_millis(total)) }
}

/// The shortest way to write a duration of whole milliseconds.
pub(super) fn show(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fits = |(_, unit): &&(&str, u64)| ms > 0 && ms.is_multiple_of(*unit);
    let (name, unit) = UNITS.iter().rev().find(fits).unwrap_or(&UNITS[1]);
    format!("{}{name}", ms / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_written() {
        for (s, expected) in [
            ("0s", 0),
            ("500ms", 500),
            ("5s", 5_000),
            ("1h30m", 5_400_000),
            ("24h", 86_400_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(parse(s), Ok(Duration::from_millis(expected)), "{s}");
        }
        for s in ["", "5", "s", "5 s", "-5s", "1.5s", "5sec", "99999999999999999999s", "5s3"] {
            assert!(parse(s).is_err(), "{s:?} was accepted");
        }
        assert!(parse("18446744073709551615d").is_err(), "an overflow was accepted");
    }

    #[test]
    fn durations_are_shown_short() {
        for (seconds, expected) in [(0, "0s"), (90, "90s"), (3600, "1h"), (86_400 * 90, "90d")] {
            assert_eq!(show(Duration::from_secs(seconds)), expected);
        }
    }
}
