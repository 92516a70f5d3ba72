//! Dates. The time itself comes from the program; nothing here reads a clock.

use serde::{Deserialize, Serialize};
use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

/// A moment in UTC to the second, written as RFC 3339 has it: `2026-11-23T17:04:09Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Stamp {
    year: u32,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

impl Stamp {
    /// The stamp as part of a file name: `20261123T170409Z`.
    pub fn file_name(&self) -> String {
        self.to_string().replace(['-', ':'], "")
    }
}

impl From<SystemTime> for Stamp {
    /// Times before 1970 count as its beginning.
    fn from(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (days, rest) = (seconds / 86_400, (seconds % 86_400) as u32);
        let (year, month, day) = civil(days);
        Self { year, month, day, hour: rest / 3600, minute: rest % 3600 / 60, second: rest % 60 }
    }
}

/// Days since 1970-01-01 to a date (H. Hinnant, "chrono-compatible low-level date algorithms"):
/// years are counted from March, so that the leap day comes last.
fn civil(days: u64) -> (u32, u32, u32) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year as u32, month as u32, day as u32)
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second } = self;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl From<Stamp> for String {
    fn from(stamp: Stamp) -> Self {
        stamp.to_string()
    }
}

impl TryFrom<String> for Stamp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = |from: usize, to: usize, limit: u32| {
            let part =
                text.get(from..to).filter(|part| part.bytes().all(|b| b.is_ascii_digit()))?;
            part.parse().ok().filter(|value| *value <= limit)
        };
        let parse = || {
            Some(Self {
                year: number(0, 4, 9999)?,
                month: number(5, 7, 12)?,
                day: number(8, 10, 31)?,
                hour: number(11, 13, 23)?,
                minute: number(14, 16, 59)?,
                second: number(17, 19, 59)?,
            })
        };
        // Writing it back settles the punctuation and the length.
        parse()
            .filter(|stamp| stamp.month > 0 && stamp.day > 0 && stamp.to_string() == text)
            .ok_or_else(|| format!("{text:?} is not a date such as 2026-11-23T17:04:09Z"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_follow_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_795_453_449, "2026-11-23T17:04:09Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            let stamp = Stamp::from(UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(stamp.to_string(), text);
            assert_eq!(Stamp::try_from(text.to_owned()).unwrap(), stamp);
        }
        for bad in [
            "",
            "2024-13-01T00:00:00Z",
            "2024-01-01 00:00:00Z",
            "2024-01-01T00:00:00Zx",
            "２024-01-01T00:00:00Z",
        ] {
            assert!(Stamp::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
