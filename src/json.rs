//! JSON from untrusted sources: repeated keys are refused at any depth.
//!
//! Of repeated keys, one parser takes the first, another the last, and a third both. The code that checks a text and
//! the code that uses it would then see different values. [`from_slice`] parses one text. Use [`StrictValue`] for texts
//! that are read piece by piece, and for the fields of other types.
//!
//! ```
//! use a3s_event::json;
//!
//! assert_eq!(json::from_slice(br#"{"role": "user"}"#)?["role"], "user");
//! let error = json::from_slice(br#"{"role": "user", "role": "admin"}"#).unwrap_err();
//! assert!(error.to_string().starts_with(r#"key "role" is given twice"#), "{error}");
//! # Ok::<(), serde_json::Error>(())
//! ```

use std::fmt;
use std::sync::LazyLock;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

use crate::text::shorten;

/// Parses one JSON text without repeated keys, nested at most as deep as `serde_json` allows.
///
/// # Errors
///
/// If the text is not JSON, or if it repeats a key. `is_data` is true for a repeated key only.
pub fn from_slice(text: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice::<StrictValue>(text).map(StrictValue::into_value)
}

/// A JSON value whose deserialization fails if it repeats a key.
///
/// ```
/// use a3s_event::json::StrictValue;
///
/// let mut lines = serde_json::Deserializer::from_str(r#"{"a": 1} {"a": 1, "a": 2}"#).into_iter::<StrictValue>();
/// assert_eq!(lines.next().unwrap()?.into_value()["a"], 1);
/// assert!(lines.next().unwrap().is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct StrictValue(Value);

impl StrictValue {
    /// Returns the value.
    pub fn into_value(self) -> Value {
        self.0
    }
}

impl<'de> Deserialize<'de> for StrictValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Strict).map(Self)
    }
}

/// Key under which `serde_json` passes a number as text if the program enables its feature `arbitrary_precision`.
const NUMBER: &str = "$serde_json::private::Number";

/// If true, the feature is enabled: only then does a number of any size parse.
static NUMBERS_ARE_TEXTS: LazyLock<bool> = LazyLock::new(|| serde_json::from_str::<Number>("1e400").is_ok());

struct Strict;

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(StrictValue(value)) = entries.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key == NUMBER && *NUMBERS_ARE_TEXTS {
                let digits: String = entries.next_value()?;
                return serde_json::from_str(&digits).map(Value::Number).map_err(A::Error::custom);
            }
            match values.entry(key) {
                Entry::Vacant(place) => {
                    let StrictValue(value) = entries.next_value()?;
                    place.insert(value);
                }
                Entry::Occupied(place) => {
                    return Err(A::Error::custom(format!("key \"{}\" is given twice", shorten(place.key()))));
                }
            }
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_serde_json_reads() {
        for text in [
            "null",
            "true",
            "-0",
            "0.5",
            "9007199254740993",
            "-3",
            "18446744073709551615",
            r#""a\u00e9\n""#,
            r#"[1,[2,{"a":{}}],"x"]"#,
            r#"{"b":1,"a":{"b":2,"c":[null]}}"#,
            " {} ",
        ] {
            assert_eq!(
                from_slice(text.as_bytes()).unwrap(),
                serde_json::from_str::<Value>(text).unwrap(),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_json_or_ambiguous_is_refused() {
        let deep = "[".repeat(100_000);
        for text in [
            "",
            " ",
            "{}x",
            "{} {}",
            r#"{"id":1,"id":2}"#,
            r#"{"a":{"b":1,"b":1}}"#,
            r#"[[{"a":null,"\u0061":null}]]"#,
            "1e400",
            "NaN",
            "Infinity",
            "// comment\n1",
            "\u{feff}{}",
            r#""\ud800""#,
            "[1,]",
            "'a'",
            deep.as_str(),
        ] {
            let error = from_slice(text.as_bytes()).expect_err(&text[..text.len().min(20)]);
            assert_eq!(error.is_data(), error.to_string().contains("is given twice"), "{error}");
        }
        assert!(from_slice(b"\"\xff\"").is_err());
    }
}
