//! Durations in the form of Go's: `15m0s`, `1h30m`, `500ms`, `0`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

/// A duration that reads and prints as Go's do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

impl GoDuration {
    /// So many seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is no duration; give one such as 30s, 15m or 1h30m");
        if text == "0" {
            return Ok(Self::default());
        }
        let mut rest = text;
        let mut seconds = 0.0_f64;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refused)?;
            let (number, tail) = rest.split_at(digits);
            let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let unit = match unit {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(refused()),
            };
            let number: f64 = number.parse().map_err(|_not_a_number| refused())?;
            seconds += number * unit;
            rest = tail;
        }
        if text.is_empty() {
            return Err(refused());
        }
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|_too_long| refused())
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        if whole == 0 && nanos > 0 {
            return write!(f, "{}ms", self.0.as_secs_f64() * 1000.0);
        }
        let (hours, minutes) = (whole / 3600, whole / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        let seconds = self.0.as_secs_f64() - f64::from(u32::try_from(whole - whole % 60).unwrap_or(u32::MAX));
        write!(f, "{}s", if nanos == 0 { (whole % 60) as f64 } else { seconds })
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(u64, &str)>) {
        let parsed = text.parse::<GoDuration>();
        let shown =
            parsed.as_ref().ok().map(|parsed| (u64::try_from(parsed.0.as_millis()).unwrap(), parsed.to_string()));
        assert_eq!(shown, expected.map(|(ms, text)| (ms, text.to_owned())), "{text}: {parsed:?}");
    }

    #[test]
    fn durations_read_and_print_as_in_go() {
        check("0", Some((0, "0s")));
        check("0s", Some((0, "0s")));
        check("30s", Some((30_000, "30s")));
        check("15m0s", Some((900_000, "15m0s")));
        check("1h30m", Some((5_400_000, "1h30m0s")));
        check("24h0m0s", Some((86_400_000, "24h0m0s")));
        check("500ms", Some((500, "500ms")));
        check("1.5s", Some((1_500, "1.5s")));
        check("", None);
        check("30", None);
        check("s", None);
        check("-1s", None);
        check("1 minute", None);
    }
}
