//! Values of settings, and the Rust types that hold them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::duration;
use crate::text::shorten_to;

/// The value of a setting, independent of its type in the config.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// No value: the backend decides.
    Unset,
    /// A switch.
    Flag(bool),
    /// A count or a size.
    Number(i128),
    /// A duration.
    Duration(Duration),
    /// A text, a path or the name of a choice.
    Text(String),
}

/// Formats counts and durations as in a URL, and texts in quotes.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset => f.write_str("unset"),
            Self::Flag(flag) => flag.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Duration(span) => f.write_str(&duration::format(*span)),
            Self::Text(text) => write!(f, "\"{}\"", shorten_to(text, usize::MAX)),
        }
    }
}

/// A type that a field of a config may have.
pub trait SettingValue: Sized {
    /// Converts a value into this type.
    ///
    /// # Errors
    ///
    /// The rule that the value breaks.
    fn from_value(value: Value) -> Result<Self, String>;

    /// Converts this into a value.
    fn to_value(&self) -> Value;
}

/// An enum that a setting chooses from.
pub trait Choice: Copy + PartialEq + 'static {
    /// The choices with their names in a URL.
    const ALL: &'static [(&'static str, Self)];
    /// The names of choices that this build lacks, with the feature that enables each.
    const ABSENT: &'static [(&'static str, &'static str)] = &[];

    /// Returns the name of this choice in a URL.
    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, choice)| *choice == self).map_or("unknown", |(name, _)| name)
    }
}

/// Returns the names of all choices, including those that this build lacks.
pub(super) fn names<T: Choice>() -> Vec<&'static str> {
    T::ALL.iter().map(|(name, _)| *name).chain(T::ABSENT.iter().map(|(name, _)| *name)).collect()
}

impl<T: Choice> SettingValue for T {
    fn from_value(value: Value) -> Result<Self, String> {
        let text = String::from_value(value)?;
        if let Some((_, choice)) = T::ALL.iter().find(|(name, _)| name.eq_ignore_ascii_case(&text)) {
            return Ok(*choice);
        }
        match T::ABSENT.iter().find(|(name, _)| name.eq_ignore_ascii_case(&text)) {
            Some((_, feature)) => Err(format!("needs the feature {feature}")),
            None => Err(format!("must be {}", names::<T>().join(" or "))),
        }
    }

    fn to_value(&self) -> Value {
        Value::Text(self.name().to_owned())
    }
}

impl<T: SettingValue> SettingValue for Option<T> {
    fn from_value(value: Value) -> Result<Self, String> {
        if value == Value::Unset { Ok(None) } else { T::from_value(value).map(Some) }
    }

    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::Unset, T::to_value)
    }
}

impl SettingValue for bool {
    fn from_value(value: Value) -> Result<Self, String> {
        match value {
            Value::Flag(flag) => Ok(flag),
            _ => Err("must be true or false".to_owned()),
        }
    }

    fn to_value(&self) -> Value {
        Value::Flag(*self)
    }
}

impl SettingValue for String {
    fn from_value(value: Value) -> Result<Self, String> {
        match value {
            Value::Text(text) => Ok(text),
            _ => Err("must be text".to_owned()),
        }
    }

    fn to_value(&self) -> Value {
        Value::Text(self.clone())
    }
}

impl SettingValue for PathBuf {
    fn from_value(value: Value) -> Result<Self, String> {
        String::from_value(value).map(Self::from)
    }

    fn to_value(&self) -> Value {
        Value::Text(self.to_string_lossy().into_owned())
    }
}

impl SettingValue for Duration {
    fn from_value(value: Value) -> Result<Self, String> {
        match value {
            Value::Duration(span) => Ok(span),
            _ => Err(duration::RULE.to_owned()),
        }
    }

    fn to_value(&self) -> Value {
        Value::Duration(*self)
    }
}

/// Returns the number of a value. A duration becomes its number of seconds, because some configs store seconds.
fn number(value: Value) -> Result<i128, String> {
    match value {
        Value::Number(number) => Ok(number),
        Value::Duration(span) if span.subsec_nanos() == 0 => Ok(i128::from(span.as_secs())),
        Value::Duration(_) => Err("must be whole seconds".to_owned()),
        _ => Err("must be a whole number".to_owned()),
    }
}

macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl SettingValue for $number {
            fn from_value(value: Value) -> Result<Self, String> {
                Self::try_from(number(value)?).map_err(|_| format!("must be at most {}", Self::MAX))
            }

            fn to_value(&self) -> Value {
                Value::Number(i128::from(*self))
            }
        }
    )+};
}

numbers!(u16, u32, u64, i32, i64);

impl SettingValue for usize {
    fn from_value(value: Value) -> Result<Self, String> {
        Self::try_from(number(value)?).map_err(|_| format!("must be at most {}", Self::MAX))
    }

    fn to_value(&self) -> Value {
        Value::Number(i128::try_from(*self).unwrap_or(i128::MAX))
    }
}
