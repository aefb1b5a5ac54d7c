//! Values with units, as a person writes them: `10s`, `10MiB`, a secret.
//!
//! A bare number is refused for a duration or a size: a file in which `timeout: 10` could be seconds or
//! milliseconds is a file that pages somebody.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error};
use serde::{Serialize, Serializer};
use zeroize::Zeroize;

/// A length of time: `250ms`, `10s`, `5m`, `24h`, `7d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub std::time::Duration);

/// A number of bytes: `512B`, `64KiB`, `10MiB`, `1GiB`, or decimal `10MB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// A text that is never printed: `Debug` shows `***`, and the memory is cleared on drop.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

// === impl Duration ===

impl Duration {
    pub const fn millis(ms: u64) -> Self {
        Self(std::time::Duration::from_millis(ms))
    }

    pub const fn secs(secs: u64) -> Self {
        Self(std::time::Duration::from_secs(secs))
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "`{text}` is not a duration: write a whole number and a unit, as in 250ms, 10s, 5m, 24h, 7d"
            )
        };
        let (number, unit) = split_unit(text).ok_or_else(bad)?;
        let ms_per_unit = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        number
            .checked_mul(ms_per_unit)
            .map(Self::millis)
            .ok_or_else(bad)
    }
}

impl fmt::Debug for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

// === impl Bytes ===

impl Bytes {
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "`{text}` is not a size: write a whole number and a unit, as in 512B, 64KiB, 10MiB, 1GiB, 10MB"
            )
        };
        let (number, unit) = split_unit(text).ok_or_else(bad)?;
        let bytes_per_unit = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return Err(bad()),
        };
        number.checked_mul(bytes_per_unit).map(Self).ok_or_else(bad)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}B", self.0)
    }
}

// === impl Secret ===

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself. Call it where the secret is used, and keep no copy.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

// === serde ===

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer).map(Self)
    }
}

/// As a number: `60s` and `1m` are the same.
impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.as_millis() as u64)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// What tells it from another, to this process alone.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(super::tree::mark(self.0.as_bytes()))
    }
}

/// A YAML scalar as the text that was written: `10` arrives here as a number, and must be named in the fault.
fn scalar<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match serde_yaml::Value::deserialize(deserializer)? {
        serde_yaml::Value::String(text) => Ok(text),
        serde_yaml::Value::Number(number) => Ok(number.to_string()),
        _ => Err(D::Error::custom("a text is expected here")),
    }
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!("250ms".parse(), Ok(Duration::millis(250)));
        assert_eq!("5m".parse(), Ok(Duration::secs(300)));
        assert_eq!("7d".parse(), Ok(Duration::secs(7 * 86_400)));
        for bad in [
            "10",
            "",
            "s",
            "-1s",
            "1.5s",
            "10 parsecs",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(bad.parse::<Duration>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_know_binary_and_decimal_units() {
        assert_eq!("10MiB".parse(), Ok(Bytes(10_485_760)));
        assert_eq!("10MB".parse(), Ok(Bytes(10_000_000)));
        for bad in ["10", "10mb", "MiB", "18446744073709551615GiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "***");
    }
}
