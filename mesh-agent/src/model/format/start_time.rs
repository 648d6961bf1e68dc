//! How a point in time is written: what `strftime` and Envoy understand, as far as it is
//! used in logs and headers.

use std::{fmt, io::Write as _, str::FromStr, time::SystemTime};

use time::OffsetDateTime;

/// The argument of `%START_TIME%`. Always in UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeFormat {
    text: Box<str>,
    parts: Box<[Part]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Char(char),
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
    /// Seconds since 1970.
    Epoch,
    /// As many digits of the second's fraction.
    Fraction(u32),
    MonthName,
    WeekdayName,
    Offset,
    ZoneName,
}

/// Envoy's, where none is given: `2026-11-27T13:08:50.264Z`.
const DEFAULT: &str = "%Y-%m-%dT%H:%M:%S.%3fZ";

impl FromStr for TimeFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = Vec::new();
        let mut chars = if text.is_empty() { DEFAULT.chars() } else { text.chars() };
        while let Some(c) = chars.next() {
            if c != '%' {
                parts.push(Part::Char(c));
                continue;
            }
            let c = chars.next().ok_or(())?;
            let all: &[Part] = match c {
                '%' => &[Part::Char('%')],
                'Y' => &[Part::Year],
                'm' => &[Part::Month],
                'd' => &[Part::Day],
                'H' => &[Part::Hour],
                'M' => &[Part::Minute],
                'S' => &[Part::Second],
                's' => &[Part::Epoch],
                'b' => &[Part::MonthName],
                'a' => &[Part::WeekdayName],
                'z' => &[Part::Offset],
                'Z' => &[Part::ZoneName],
                'f' => &[Part::Fraction(9)],
                'F' => &[Part::Year, Part::Char('-'), Part::Month, Part::Char('-'), Part::Day],
                'T' => &[Part::Hour, Part::Char(':'), Part::Minute, Part::Char(':'), Part::Second],
                '1'..='9' if chars.next() == Some('f') => {
                    parts.push(Part::Fraction(c.to_digit(10).ok_or(())?));
                    continue;
                }
                _ => return Err(()),
            };
            parts.extend_from_slice(all);
        }
        Ok(Self { text: text.into(), parts: parts.into() })
    }
}

impl TimeFormat {
    /// Appends a point in time.
    pub fn append(&self, at: SystemTime, out: &mut Vec<u8>) {
        let at = OffsetDateTime::from(at);
        for part in &self.parts {
            // Writing to a Vec does not fail.
            let _ = match part {
                Part::Char(c) => write!(out, "{c}"),
                Part::Year => write!(out, "{:04}", at.year()),
                Part::Month => write!(out, "{:02}", u8::from(at.month())),
                Part::Day => write!(out, "{:02}", at.day()),
                Part::Hour => write!(out, "{:02}", at.hour()),
                Part::Minute => write!(out, "{:02}", at.minute()),
                Part::Second => write!(out, "{:02}", at.second()),
                Part::Epoch => write!(out, "{}", at.unix_timestamp()),
                Part::Fraction(digits) => {
                    let width = *digits as usize;
                    let fraction = at.nanosecond() / 10u32.pow(9 - digits.min(&9));
                    write!(out, "{fraction:0width$}")
                }
                Part::MonthName => write!(out, "{:.3}", at.month().to_string()),
                Part::WeekdayName => write!(out, "{:.3}", at.weekday().to_string()),
                Part::Offset => write!(out, "+0000"),
                Part::ZoneName => write!(out, "UTC"),
            };
        }
    }
}

impl fmt::Display for TimeFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() { Ok(()) } else { write!(f, "({})", self.text) }
    }
}
