//! A seed as text: a plain number, or 32 hexadecimal digits once forked.

use super::{Error, Result, Seed};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.plain() {
            Some(number) => write!(f, "{number}"),
            None => write!(
                f,
                "{:08x}{:08x}{:08x}{:08x}",
                self.key[0], self.key[1], self.stream[0], self.stream[1]
            ),
        }
    }
}

impl Seed {
    /// The number this seed was made of, unless it is a fork. Numbers past 2⁶³ are not written in
    /// decimal: TOML has no integer for them, and JSON readers lose their digits.
    fn plain(self) -> Option<u64> {
        let number = u64::from(self.key[0]) | u64::from(self.key[1]) << 32;
        (self.stream == [0, 0] && number <= i64::MAX as u64).then_some(number)
    }
}

impl FromStr for Seed {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::argument(
                "seed",
                format!("{text:?} is not a seed"),
                "write a number from 0 to 2^64 − 1, or the 32 hexadecimal digits of a forked seed",
            )
        };
        if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            let word =
                |i: usize| u32::from_str_radix(&text[8 * i..8 * i + 8], 16).map_err(|_| wrong());
            return Ok(Self { key: [word(0)?, word(1)?], stream: [word(2)?, word(3)?] });
        }
        text.parse().map(Self::new).map_err(|_| wrong())
    }
}

impl Serialize for Seed {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self.plain() {
            Some(number) => serializer.serialize_u64(number),
            None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Seed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a non-negative integer or 32 hexadecimal digits")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> std::result::Result<Seed, E> {
                Ok(Seed::new(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> std::result::Result<Seed, E> {
                u64::try_from(value)
                    .map(Seed::new)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> std::result::Result<Seed, E> {
                value.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(value), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl schemars::JsonSchema for Seed {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Seed".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A random seed: a number, or the 32 hexadecimal digits of a forked seed.",
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9a-fA-F]{32}$" }
            ]
        })
    }
}
