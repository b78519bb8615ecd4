//! Reads the reply of a script, element by element.

use redis::Value;

use super::Script;
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::provider::support::shorten;

/// The elements of a reply that were not read yet.
#[derive(Debug)]
pub(super) struct Reply {
    script: &'static Script,
    elements: std::vec::IntoIter<Value>,
}

impl Reply {
    pub(super) fn new(script: &'static Script, reply: Value) -> Result<Self> {
        match reply {
            Value::Array(elements) => Ok(Self { script, elements: elements.into_iter() }),
            other => Err(unexpected(script, "an array", &other)),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.elements.len() == 0
    }

    /// Returns the number of elements that were not read yet.
    pub(super) fn len(&self) -> usize {
        self.elements.len()
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>> {
        match self.next() {
            Value::BulkString(bytes) => Ok(bytes),
            Value::SimpleString(text) => Ok(text.into_bytes()),
            Value::Okay => Ok(b"OK".to_vec()),
            other => Err(unexpected(self.script, "a string", &other)),
        }
    }

    /// Returns a text. What another program wrote may not be UTF-8.
    pub(super) fn text(&mut self) -> Result<String> {
        let bytes = self.bytes()?;
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Returns a number, which is an integer or a text.
    pub(super) fn number<N: std::str::FromStr + TryFrom<i64>>(&mut self) -> Result<N> {
        let value = self.next();
        let number = match &value {
            Value::Int(number) => N::try_from(*number).ok(),
            Value::BulkString(text) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()),
            _ => None,
        };
        number.ok_or_else(|| unexpected(self.script, "a number", &value))
    }

    /// Returns a number, or nothing for an empty text.
    pub(super) fn optional<N: std::str::FromStr + TryFrom<i64>>(&mut self) -> Result<Option<N>> {
        match self.elements.as_slice().first() {
            Some(Value::BulkString(text)) if text.is_empty() => {
                self.next();
                Ok(None)
            }
            _ => self.number().map(Some),
        }
    }

    pub(super) fn flag(&mut self) -> Result<bool> {
        self.number::<u8>().map(|flag| flag != 0)
    }

    pub(super) fn list(&mut self) -> Result<Self> {
        let list = self.next();
        Self::new(self.script, list)
    }

    /// Returns the error of a word that the caller does not know.
    pub(super) fn unknown(&self, word: &str) -> EventError {
        unexpected(self.script, "a known word", &Value::BulkString(word.into()))
    }

    fn next(&mut self) -> Value {
        self.elements.next().unwrap_or(Value::Nil)
    }
}

/// Returns the error of a reply of another form. It means that a script and its reader do not belong together.
fn unexpected(script: &Script, wanted: &str, found: &Value) -> EventError {
    let found = match found {
        Value::BulkString(bytes) => shorten(&String::from_utf8_lossy(bytes)),
        other => shorten(&format!("{other:?}")),
    };
    let cause = format!("the script {} answered \"{found}\" instead of {wanted}", script.name);
    BackendError::new("redis", script.name, ErrorKind::Backend, cause).into()
}
