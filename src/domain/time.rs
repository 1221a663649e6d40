//! Times as they are stored: RFC 3339 in UTC, as `chrono` writes them.
//!
//! A token has a dozen of them, and what `chrono` does for one takes longer than all else in its record.

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDate, Timelike, Utc};
use serde::de::{Error, Visitor};
use serde::{Deserializer, Serialize, Serializer};

pub fn serialize<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    match Text::of(time) {
        Some(text) => serializer.serialize_str(text.as_str()),
        None => time.serialize(serializer),
    }
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
    deserializer.deserialize_str(Time)
}

/// The text of one time: at most `2026-01-02T03:04:05.123456789Z`.
struct Text {
    bytes: [u8; 30],
    length: usize,
}

impl Text {
    /// None for a time that is seldom: before the year 0, after 9999, or in a leap second.
    fn of(time: &DateTime<Utc>) -> Option<Self> {
        let time = time.naive_utc();
        let year = u32::try_from(time.year()).ok().filter(|year| *year <= 9_999)?;
        let nanos = Some(time.nanosecond()).filter(|nanos| *nanos < 1_000_000_000)?;
        let mut text = Self { bytes: *b"0000-00-00T00:00:00.000000000Z", length: 0 };
        for (at, digits, value) in [
            (0, 4, year),
            (5, 2, time.month()),
            (8, 2, time.day()),
            (11, 2, time.hour()),
            (14, 2, time.minute()),
            (17, 2, time.second()),
        ] {
            text.put(at, digits, value);
        }
        // Three digits of a fraction, six, nine, or none.
        let (digits, fraction) = match nanos {
            0 => (0, 0),
            _ if nanos.is_multiple_of(1_000_000) => (3, nanos / 1_000_000),
            _ if nanos.is_multiple_of(1_000) => (6, nanos / 1_000),
            _ => (9, nanos),
        };
        text.put(20, digits, fraction);
        let end = if digits == 0 { 19 } else { 20 + digits };
        text.bytes[end] = b'Z';
        text.length = end + 1;
        Some(text)
    }

    fn put(&mut self, at: usize, digits: usize, mut value: u32) {
        for place in self.bytes[at..at + digits].iter_mut().rev() {
            *place = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }

    fn as_str(&self) -> &str {
        // All of it is digits and signs.
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

struct Time;

impl Visitor<'_> for Time {
    type Value = DateTime<Utc>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an RFC 3339 formatted date and time string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<DateTime<Utc>, E> {
        parse(text.as_bytes()).map_or_else(|| text.parse().map_err(E::custom), Ok)
    }
}

/// A time as it is written here; none for any other text, which may be one all the same.
fn parse(text: &[u8]) -> Option<DateTime<Utc>> {
    let (whole, fraction) = text.split_at_checked(19)?;
    let fraction = fraction.strip_suffix(b"Z")?;
    let number = |from: usize, to: usize| digits(whole.get(from..to)?);
    if [whole[4], whole[7], whole[10], whole[13], whole[16]] != *b"--T::" {
        return None;
    }
    let nanos = match fraction {
        [] => 0,
        [b'.', some @ ..] if some.len() <= 9 && !some.is_empty() => {
            digits(some)? * 10_u32.pow(9 - some.len() as u32)
        }
        _ => return None,
    };
    let date = NaiveDate::from_ymd_opt(number(0, 4)? as i32, number(5, 7)?, number(8, 10)?)?;
    let time = date.and_hms_nano_opt(number(11, 13)?, number(14, 16)?, number(17, 19)?, nanos)?;
    Some(time.and_utc())
}

fn digits(text: &[u8]) -> Option<u32> {
    text.iter().try_fold(0, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u32::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Record(#[serde(with = "super")] DateTime<Utc>);

    #[test]
    fn times_are_written_and_read_as_before() {
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..20_000 {
            let seconds = match round % 4 {
                0 => random.i64(-70_000_000_000..300_000_000_000),
                1 => random.i64(-5..5),
                _ => random.i64(0..4_000_000_000),
            };
            let unit = [1_000_000_000, 1_000_000, 1_000, 1][random.usize(..4)];
            let nanos = random.u32(..1_000_000_000) / unit * unit;
            // A leap second, as chrono has it.
            let nanos = if round % 97 == 0 && seconds.rem_euclid(60) == 59 {
                nanos + 1_000_000_000
            } else {
                nanos
            };
            let Some(time) = DateTime::from_timestamp(seconds, nanos) else { continue };
            let before = serde_json::to_value(time).unwrap();
            assert_eq!(serde_json::to_value(Record(time)).unwrap(), before, "{time:?}");
            let read: Record = serde_json::from_value(before.clone()).unwrap();
            assert_eq!(read.0, serde_json::from_value::<DateTime<Utc>>(before).unwrap());
        }
    }

    #[test]
    fn any_other_text_is_read_as_before() {
        for text in [
            "2026-01-02T03:04:05+02:00",
            "2026-01-02t03:04:05z",
            "2026-01-02 03:04:05Z",
            "2026-01-02T03:04:05.1Z",
            "2026-01-02T03:04:05.1234567891Z",
            "2026-01-02T03:04:60Z",
            "2026-01-02T03:04:05.Z",
            "2026-01-02T24:04:05Z",
            "2026-02-30T03:04:05Z",
            "2026-01-02T03:04Z",
            "+12026-01-02T03:04:05Z",
            "2026-01-02T03:04:05",
            "2026\u{2013}01-02T03:04:05Z",
            "",
        ] {
            let read = |value: Value| serde_json::from_value::<DateTime<Utc>>(value).ok();
            let ours: Option<Record> = serde_json::from_value(json!(text)).ok();
            assert_eq!(ours.map(|record| record.0), read(json!(text)), "{text}");
        }
    }
}
