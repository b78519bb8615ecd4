//! The settings of a provider, declared in one table.
//!
//! A provider declares each setting once: its key in a URL, its field of the config, the allowed values, whether it is
//! secret, and its meaning. The table reads URLs, checks configs, writes their `Debug` output, and tells which values
//! of a URL may be shown. The tables of [the reference](crate::docs::configuration) are generated from it.
//!
//! ```
//! use std::fmt;
//! use std::time::Duration;
//! use a3s_event::provider::ProviderUrl;
//! use a3s_event::provider::settings::{Setting, Settings, row};
//!
//! struct MyConfig {
//!     max_events: u64,
//!     timeout: Duration,
//!     token: Option<String>,
//! }
//!
//! static SETTINGS: Settings<MyConfig> = Settings::new(&[
//!     row!("max_events" = max_events, Setting::count("events").zero("unlimited").doc("maximum number of stored events")),
//!     row!("timeout" = timeout, Setting::duration().longest(Duration::from_secs(60)).doc("timeout of a call")),
//!     row!("token" = token, Setting::text().secret().doc("token to authenticate with")),
//! ]);
//!
//! impl fmt::Debug for MyConfig {
//!     fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
//!         SETTINGS.debug("MyConfig", self, f)
//!     }
//! }
//!
//! # fn main() -> a3s_event::Result<()> {
//! let mut config = MyConfig { max_events: 0, timeout: Duration::from_secs(10), token: None };
//! SETTINGS.read(&ProviderUrl::parse("mine://?timeout=250ms&token=s3cret")?, &mut config)?;
//! assert_eq!(format!("{config:?}"), "MyConfig { max_events: 0, timeout: 250ms, token: *** }");
//!
//! let error = SETTINGS.read(&ProviderUrl::parse("mine://?timeout=250")?, &mut config).unwrap_err();
//! assert!(error.to_string().contains("timeout \"250\" in the provider URL: must be a duration"));
//! # Ok(())
//! # }
//! ```

pub mod common;
#[cfg(test)]
mod page;
#[cfg(test)]
mod tests;
mod value;

use std::fmt;
use std::time::Duration;

pub use value::{Choice, SettingValue, Value};

use super::ProviderUrl;
use crate::duration;
use crate::error::{EventError, Result};
use crate::text::shorten;

#[doc(inline)]
pub use crate::__setting_row as row;

/// Declares a row of a table: `row!("key" = field, setting)`. `config.field` is a field of the config that a builder
/// holds as its field `config`. A key in parentheses, such as `"(path)"`, names a part of the URL other than the query,
/// which the provider reads itself. A function after the setting returns the value that `Debug` shows.
#[doc(hidden)]
#[macro_export]
macro_rules! __setting_row {
    ($key:literal = config.$field:ident, $setting:expr) => {
        $crate::provider::settings::Row::new(
            $setting.named($key, stringify!($field), true),
            |c| $crate::provider::settings::SettingValue::to_value(&c.config.$field),
            |c, value| {
                c.config.$field = $crate::provider::settings::SettingValue::from_value(value)?;
                Ok(())
            },
        )
    };
    ($key:literal = config.$field:ident, $setting:expr, $shown:expr) => {
        $crate::provider::settings::Row::part($setting.named($key, stringify!($field), true), $shown)
    };
    ($key:literal = $field:ident, $setting:expr, $shown:expr) => {
        $crate::provider::settings::Row::part($setting.named($key, stringify!($field), false), $shown)
    };
    ($key:literal = $field:ident, $setting:expr) => {
        $crate::provider::settings::Row::new(
            $setting.named($key, stringify!($field), false),
            |c| $crate::provider::settings::SettingValue::to_value(&c.$field),
            |c, value| {
                c.$field = $crate::provider::settings::SettingValue::from_value(value)?;
                Ok(())
            },
        )
    };
}

/// Type of a value, and its form in a URL.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// A number. The text is its unit, such as `events`, and empty for a number that counts nothing.
    Count(&'static str),
    /// A number of bytes, such as `65536` or `64KiB`. The text is its unit, such as `bytes of JSON`.
    Size(&'static str),
    /// A [duration], such as `250ms`.
    Duration,
    /// A duration that the config stores in whole seconds.
    Seconds,
    /// Any text.
    Text,
    /// Path of a file.
    File,
    /// One of these names.
    Choice(fn() -> Vec<&'static str>),
}

/// A rule for a text: the check, and the text after "must" in its error.
type TextRule = (fn(&str) -> bool, &'static str);

/// A setting, independent of a config.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    key: &'static str,
    field: &'static str,
    is_of_config: bool,
    kind: Kind,
    min: Option<i128>,
    max: Option<i128>,
    /// Exclusive maximum of a duration, which messages show in place of `max`.
    below: Option<Duration>,
    only: &'static [i128],
    zero: Option<&'static str>,
    rule: Option<TextRule>,
    is_secret: bool,
    former: &'static [&'static str],
    unset: &'static str,
    doc: &'static str,
}

/// Declares a setting. Each method returns it with one more property.
impl Setting {
    const fn of(kind: Kind) -> Self {
        Self {
            key: "",
            field: "",
            is_of_config: false,
            kind,
            min: None,
            max: None,
            below: None,
            only: &[],
            zero: None,
            rule: None,
            is_secret: false,
            former: &[],
            unset: "",
            doc: "",
        }
    }

    /// Creates a switch.
    pub const fn flag() -> Self {
        Self::of(Kind::Flag)
    }

    /// Creates a number of `unit`, such as `events`.
    pub const fn count(unit: &'static str) -> Self {
        Self::of(Kind::Count(unit)).least(0)
    }

    /// Creates a number that counts nothing, such as that of a database.
    pub const fn number() -> Self {
        Self::count("")
    }

    /// Creates a number of bytes; `unit` describes them, such as `bytes of JSON`.
    pub const fn size(unit: &'static str) -> Self {
        Self::of(Kind::Size(unit)).least(0)
    }

    /// Creates a duration.
    pub const fn duration() -> Self {
        Self::of(Kind::Duration)
    }

    /// Creates a duration that the config stores as a number of seconds.
    pub const fn seconds() -> Self {
        Self::of(Kind::Seconds)
    }

    /// Creates a text.
    pub const fn text() -> Self {
        Self::of(Kind::Text)
    }

    /// Creates the path of a file. Mark it as secret if the file holds secrets.
    pub const fn file() -> Self {
        Self::of(Kind::File)
    }

    /// Creates a choice from the names of an enum.
    pub const fn choice<T: Choice>() -> Self {
        Self::of(Kind::Choice(value::names::<T>))
    }

    /// Sets the minimum number.
    pub const fn least(mut self, min: i128) -> Self {
        self.min = Some(min);
        self
    }

    /// Sets the maximum number.
    pub const fn most(mut self, max: i128) -> Self {
        self.max = Some(max);
        self
    }

    /// Sets the only allowed numbers.
    pub const fn only(mut self, numbers: &'static [i128]) -> Self {
        self.only = numbers;
        self
    }

    /// Sets the minimum duration.
    pub const fn shortest(self, min: Duration) -> Self {
        self.least(min.as_nanos().cast_signed())
    }

    /// Sets the maximum duration.
    pub const fn longest(self, max: Duration) -> Self {
        self.most(max.as_nanos().cast_signed())
    }

    /// Sets the exclusive maximum of a duration.
    pub const fn shorter_than(mut self, below: Duration) -> Self {
        self.below = Some(below);
        self.most(below.as_nanos().cast_signed() - 1)
    }

    /// Allows zero below the minimum. `meaning` describes zero, such as `unlimited`.
    pub const fn zero(mut self, meaning: &'static str) -> Self {
        self.zero = Some(meaning);
        self
    }

    /// Sets a rule for texts: the check, and the text after "must" in its error, such as `not be empty`.
    pub const fn rule(mut self, check: fn(&str) -> bool, rule: &'static str) -> Self {
        self.rule = Some((check, rule));
        self
    }

    /// Marks the value as a secret, or as leading to one: it is never shown.
    pub const fn secret(mut self) -> Self {
        self.is_secret = true;
        self
    }

    /// Sets former keys. A URL with one of them is refused with an error that names the present key. The former keys of
    /// a duration with the suffix `_secs`, `_ms` or `_us` are known without this.
    pub const fn formerly(mut self, keys: &'static [&'static str]) -> Self {
        self.former = keys;
        self
    }

    /// Describes the value in force if none is set, such as `the server's`.
    pub const fn unset(mut self, meaning: &'static str) -> Self {
        self.unset = meaning;
        self
    }

    /// Describes the meaning of the setting in Markdown, as a phrase without a full stop.
    pub const fn doc(mut self, doc: &'static str) -> Self {
        self.doc = doc;
        self
    }

    /// Sets the key and the field. Called by [`row`].
    #[doc(hidden)]
    pub const fn named(mut self, key: &'static str, field: &'static str, is_of_config: bool) -> Self {
        (self.key, self.field, self.is_of_config) = (key, field, is_of_config);
        self
    }
}

/// Reads the properties of a setting.
impl Setting {
    /// Returns the key in the query of a URL, or the part of the URL in parentheses.
    pub const fn key(&self) -> &'static str {
        self.key
    }

    /// Returns the kind of its value.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns `true` if the value must not be shown.
    pub const fn is_secret(&self) -> bool {
        self.is_secret
    }

    /// Returns the description of the setting.
    pub const fn description(&self) -> &'static str {
        self.doc
    }

    /// Returns `true` if the setting is a key of the query, not another part of the URL.
    pub fn is_in_query(&self) -> bool {
        !self.key.starts_with('(')
    }

    /// Parses the value in a URL.
    fn parse(&self, text: &str) -> std::result::Result<Value, String> {
        let parsed = match self.kind {
            Kind::Flag => text.parse().map(Value::Flag).map_err(|_| "must be true or false".to_owned()),
            Kind::Count(unit) => whole_number(text).map(Value::Number).ok_or_else(|| match unit {
                "" => "must be a whole number".to_owned(),
                unit => format!("must be a whole number of {unit}"),
            }),
            Kind::Size(_) => size(text)
                .map(Value::Number)
                .ok_or_else(|| "must be a number of bytes, such as 65536, 64KiB or 1MiB".to_owned()),
            Kind::Duration | Kind::Seconds => {
                duration::parse(text).map(Value::Duration).ok_or_else(|| duration::RULE.to_owned())
            }
            Kind::Text | Kind::File | Kind::Choice(_) => Ok(Value::Text(text.to_owned())),
        }?;
        self.allow(&parsed)?;
        Ok(parsed)
    }

    /// Returns the value of a config in the unit of the setting.
    fn normal(&self, value: Value) -> Value {
        match (self.kind, value) {
            (Kind::Seconds, Value::Number(seconds)) => {
                Value::Duration(Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX)))
            }
            (_, value) => value,
        }
    }

    /// Refuses a value that is out of range or breaks the rule.
    fn allow(&self, value: &Value) -> std::result::Result<(), String> {
        let number = match value {
            Value::Number(number) => *number,
            Value::Duration(span) => i128::try_from(span.as_nanos()).unwrap_or(i128::MAX),
            Value::Text(text) => {
                return match self.rule {
                    Some((check, rule)) if !check(text) => Err(format!("must {rule}")),
                    _ => Ok(()),
                };
            }
            Value::Flag(_) | Value::Unset => return Ok(()),
        };
        let is_zero = number == 0 && self.zero.is_some();
        let is_in_range = self.min.is_none_or(|min| number >= min)
            && self.max.is_none_or(|max| number <= max)
            && (self.only.is_empty() || self.only.contains(&number));
        if is_zero || is_in_range {
            return Ok(());
        }
        let range = Some(self.range()).filter(|range| !range.is_empty());
        Err(format!("must be {}", range.as_deref().unwrap_or("at least 0")))
    }

    /// Returns the allowed numbers or durations in words. Empty if any is allowed.
    fn range(&self) -> String {
        let shown = |number: &i128| match self.kind {
            Kind::Duration | Kind::Seconds => duration::format(nanos(*number)),
            Kind::Size(_) => shown_size(*number),
            _ => number.to_string(),
        };
        let only = self.only.split_last().map(|(last, others)| {
            let others: Vec<_> = others.iter().map(shown).collect();
            format!("{} or {}", others.join(", "), shown(last))
        });
        let least = self.min.as_ref().filter(|min| **min > 0).map(|min| format!("at least {}", shown(min)));
        let most = match (self.below, &self.max) {
            (Some(below), _) => Some(format!("below {}", duration::format(below))),
            (None, max) => max.as_ref().map(|max| format!("at most {}", shown(max))),
        };
        let mut bounds: Vec<_> = [only, least, most].into_iter().flatten().collect();
        if let Some(meaning) = self.zero.filter(|_| !bounds.is_empty()) {
            bounds.push(format!("or 0 ({meaning})"));
        }
        bounds.join(", ")
    }

    /// Returns the value as it may be shown.
    fn shown(&self, value: &Value) -> String {
        match value {
            Value::Unset => "None".to_owned(),
            _ if self.is_secret => "***".to_owned(),
            value => value.to_string(),
        }
    }
}

fn whole_number(text: &str) -> Option<i128> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

const SIZES: [(&str, i128); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

fn size(text: &str) -> Option<i128> {
    let (number, unit) =
        SIZES.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap_or((text, 1));
    whole_number(number)?.checked_mul(unit)
}

fn shown_size(bytes: i128) -> String {
    let unit = SIZES.iter().find(|(_, unit)| bytes != 0 && bytes % unit == 0);
    unit.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

fn nanos(number: i128) -> Duration {
    const PER_SECOND: i128 = 1_000_000_000;
    let (seconds, rest) = (u64::try_from(number / PER_SECOND), u32::try_from(number % PER_SECOND));
    Duration::new(seconds.unwrap_or(u64::MAX), rest.unwrap_or_default())
}

/// A setting, and the access to its value in the config `C`.
#[derive(Debug)]
pub struct Row<C> {
    setting: Setting,
    get: fn(&C) -> Value,
    set: fn(&mut C, Value) -> std::result::Result<(), String>,
}

impl<C> Row<C> {
    /// Creates a row from a setting and the functions that read and set its value. [`row`] writes the two functions.
    pub const fn new(
        setting: Setting,
        get: fn(&C) -> Value,
        set: fn(&mut C, Value) -> std::result::Result<(), String>,
    ) -> Self {
        Self { setting, get, set }
    }

    /// Creates a row for a part of the URL other than the query, which the provider reads itself.
    pub const fn part(setting: Setting, get: fn(&C) -> Value) -> Self {
        Self { setting, get, set: |_, _| Err("is not a key of the query".to_owned()) }
    }

    fn value(&self, config: &C) -> Value {
        self.setting.normal((self.get)(config))
    }
}

/// The settings of a provider whose config is `C`.
#[derive(Debug)]
pub struct Settings<C: 'static> {
    rows: &'static [Row<C>],
}

impl<C> Settings<C> {
    /// Creates a table of these rows.
    pub const fn new(rows: &'static [Row<C>]) -> Self {
        Self { rows }
    }

    /// Returns the settings, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = &'static Setting> + use<C> {
        self.rows.iter().map(|row| &row.setting)
    }

    /// Applies the settings in the query of a URL to a config.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for:
    ///
    /// - an unknown key; the error lists the valid ones
    /// - a former key; the error names the present one
    /// - a wrong value; the error names the key and the rule
    ///
    /// No error contains a secret.
    pub fn read(&self, url: &ProviderUrl, config: &mut C) -> Result<()> {
        for (key, text) in url.settings() {
            let is_meant = |row: &&Row<C>| row.setting.is_in_query() && row.setting.key == key;
            let Some(Row { setting, set, .. }) = self.rows.iter().find(is_meant) else {
                return Err(self.unknown(url, key));
            };
            setting.parse(text).and_then(|value| set(config, value)).map_err(|rule| {
                let shown = if setting.is_secret { "***".to_owned() } else { shorten(text) };
                EventError::Config(format!("{key} \"{shown}\" in the provider URL: {rule}"))
            })?;
        }
        Ok(())
    }

    fn unknown(&self, url: &ProviderUrl, key: &str) -> EventError {
        let scheme = url.scheme();
        let stem = ["_secs", "_ms", "_us"].iter().find_map(|unit| key.strip_suffix(unit));
        let is_former = |setting: &&Setting| {
            let is_timed = matches!(setting.kind, Kind::Duration | Kind::Seconds);
            setting.former.contains(&key)
                || stem
                    .is_some_and(|stem| is_timed && (setting.key == stem || setting.former.contains(&stem)))
        };
        if let Some(Setting { key: present, kind, .. }) = self.iter().find(is_former) {
            let unit = match kind {
                Kind::Duration | Kind::Seconds => ", and its value has a unit, such as 5s or 250ms",
                _ => "",
            };
            return EventError::Config(format!(
                "setting '{key}' in a {scheme} URL: its name is now '{present}'{unit}"
            ));
        }
        let valid: Vec<_> = self.iter().filter(|setting| setting.is_in_query()).map(Setting::key).collect();
        EventError::Config(format!(
            "unknown setting '{}' in a {scheme} URL: valid are {}",
            super::registry::shown_key(key),
            valid.join(", ")
        ))
    }

    /// Checks every value of a config.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`], which names the field, the rule, and the value unless it is a secret.
    pub fn check(&self, config: &C) -> Result<()> {
        for row in self.rows {
            let value = row.value(config);
            row.setting.allow(&value).map_err(|rule| {
                let shown = shorten(&row.setting.shown(&value));
                EventError::Config(format!("{} {shown}: {rule}", row.setting.field))
            })?;
        }
        Ok(())
    }

    /// Writes a config for `Debug`, with `***` in place of secrets.
    ///
    /// # Errors
    ///
    /// Those of the formatter.
    pub fn debug(&self, name: &str, config: &C, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.debug_rows(name, config, f, |_| true)
    }

    /// Writes a config for `Debug`, with only those settings that the builder's config [holds](Setting::named).
    ///
    /// # Errors
    ///
    /// Those of the formatter.
    pub fn debug_config(&self, name: &str, config: &C, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.debug_rows(name, config, f, |setting| setting.is_of_config)
    }

    fn debug_rows(
        &self,
        name: &str,
        config: &C,
        f: &mut fmt::Formatter<'_>,
        is_shown: fn(&Setting) -> bool,
    ) -> fmt::Result {
        let mut shown = f.debug_struct(name);
        for row in self.rows.iter().filter(|row| is_shown(&row.setting)) {
            let value = row.setting.shown(&row.value(config));
            shown.field(row.setting.field, &format_args!("{value}"));
        }
        shown.finish()
    }
}
