//! Filters of the events that a trigger wants.

use std::borrow::Cow;

use serde_json::Value;

use crate::error::{EventError, Result};
use crate::subject::{subject_matches, validate_filter};
use crate::text::shorten;
use crate::timestamp;
use crate::types::Event;

/// CloudEvents `type` of an event without one.
const UNTYPED: &str = "a3s.event";
/// Metadata keys that keep the attributes of a CloudEvent; see [`docs::cloudevents`](crate::docs::cloudevents).
const CE_TIME: &str = "ce-time";
const CE_CONTENT_TYPE: &str = "ce-datacontenttype";
const CE_ABSENT: &str = "ce-absent-attributes";
/// Maximum depth of nested filters.
const MAX_DEPTH: usize = 16;
/// Maximum number of filters in one, over all levels.
const MAX_FILTERS: usize = 256;
/// Maximum length of a text in a filter, in bytes.
const MAX_TEXT_LEN: usize = 1024;

/// Filter of the events that a trigger wants. All criteria that are set must hold; without any, every event matches.
///
/// ```
/// use a3s_event::{Event, TriggerFilter};
///
/// let event = Event::typed("events.orders.eu.new", "orders", "order.created", 1, "", "shop", serde_json::json!({}))
///     .with_metadata("region", "eu");
/// assert!(TriggerFilter::by_type("order.created").with_attribute("region", "eu").matches(&event));
/// assert!(TriggerFilter::by_subject("events.orders.>").matches(&event));
/// assert!(!TriggerFilter::by_source("warehouse").matches(&event));
/// assert!(TriggerFilter::default().matches(&event));
/// ```
#[derive(Debug, Clone, Default)]
pub struct TriggerFilter {
    /// Exact event type.
    pub event_type: Option<String>,
    /// Exact source.
    pub source: Option<String>,
    /// Subject filter, with the wildcards of [`subject_matches`].
    pub subject_pattern: Option<String>,
    /// Metadata entries that the event must have, with exact values.
    pub attributes: Vec<(String, String)>,
}

impl TriggerFilter {
    /// Matches events of this type.
    pub fn by_type(event_type: impl Into<String>) -> Self {
        Self { event_type: Some(event_type.into()), ..Self::default() }
    }

    /// Matches events from this source.
    pub fn by_source(source: impl Into<String>) -> Self {
        Self { source: Some(source.into()), ..Self::default() }
    }

    /// Matches events whose subject matches this subject filter. An invalid one matches nothing.
    pub fn by_subject(pattern: impl Into<String>) -> Self {
        Self { subject_pattern: Some(pattern.into()), ..Self::default() }
    }

    /// Requires a metadata entry in addition.
    #[must_use]
    pub fn with_attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.push((key.into(), value.into()));
        self
    }

    /// Returns true if the event fulfils all criteria that are set.
    pub fn matches(&self, event: &Event) -> bool {
        let is =
            |wanted: &Option<String>, found: &String| wanted.as_ref().is_none_or(|wanted| wanted == found);
        is(&self.event_type, &event.event_type)
            && is(&self.source, &event.source)
            && self.attributes.iter().all(|(key, value)| event.metadata.get(key) == Some(value))
            && self.subject_pattern.as_ref().is_none_or(|pattern| subject_matches(&event.subject, pattern))
    }

    pub(super) fn check(&self) -> Result<()> {
        self.subject_pattern.as_deref().map_or(Ok(()), validate_filter)
    }
}

/// Filter in the dialects of the CloudEvents Subscriptions API: `exact`, `prefix`, `suffix`, `all`, `any` and `not`.
///
/// It compares the attributes of the event as a CloudEvent: `id`, `source`, `type`, `subject`, `time`,
/// `datacontenttype`, `specversion`, `a3scategory`, `a3sversion` and `a3ssummary`. Any other attribute is a metadata
/// entry, under `ce-{name}` or under its plain name. The `type` of an event without one is `a3s.event`.
///
/// A value that is not text is compared in its canonical form. For `time`, that is RFC 3339 in UTC with milliseconds,
/// `2026-02-03T10:11:12.345Z`, unless the event came with another spelling. A missing attribute matches nothing. Case
/// matters.
///
/// ```
/// use a3s_event::broker::EventFilter;
/// use a3s_event::Event;
///
/// let european = EventFilter::all([
///     EventFilter::prefix("type", "order."),
///     EventFilter::not(EventFilter::any([EventFilter::exact("region", "us"), EventFilter::exact("region", "cn")])),
/// ]);
/// let event = Event::typed("events.orders.new", "orders", "order.created", 1, "", "shop", serde_json::json!({}))
///     .with_metadata("region", "eu");
/// assert!(european.matches(&event));
///
/// // The same as a subscription manager sends it.
/// let read = EventFilter::from_json(&serde_json::json!([
///     {"prefix": {"type": "order."}},
///     {"not": {"any": [{"exact": {"region": "us"}}, {"exact": {"region": "cn"}}]}},
/// ]))?;
/// assert_eq!(read, european);
/// # Ok::<(), a3s_event::EventError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter(Dialect);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Dialect {
    Exact(String, String),
    Prefix(String, String),
    Suffix(String, String),
    All(Vec<EventFilter>),
    Any(Vec<EventFilter>),
    Not(Box<EventFilter>),
}

impl EventFilter {
    /// Matches if the attribute has exactly this value.
    pub fn exact(attribute: impl Into<String>, value: impl Into<String>) -> Self {
        Self(Dialect::Exact(attribute.into(), value.into()))
    }

    /// Matches if the attribute's value starts with this.
    pub fn prefix(attribute: impl Into<String>, value: impl Into<String>) -> Self {
        Self(Dialect::Prefix(attribute.into(), value.into()))
    }

    /// Matches if the attribute's value ends with this.
    pub fn suffix(attribute: impl Into<String>, value: impl Into<String>) -> Self {
        Self(Dialect::Suffix(attribute.into(), value.into()))
    }

    /// Matches if all of these match; at least one is required.
    pub fn all(filters: impl IntoIterator<Item = Self>) -> Self {
        Self(Dialect::All(filters.into_iter().collect()))
    }

    /// Matches if any of these matches; at least one is required.
    pub fn any(filters: impl IntoIterator<Item = Self>) -> Self {
        Self(Dialect::Any(filters.into_iter().collect()))
    }

    /// Matches if this filter does not.
    #[allow(clippy::should_implement_trait, reason = "the name of the dialect")]
    pub fn not(filter: Self) -> Self {
        Self(Dialect::Not(Box::new(filter)))
    }

    /// Parses the JSON of the Subscriptions API: one filter, or an array of filters that must all match.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] that names the part that is invalid:
    ///
    /// - an unknown dialect; CESQL is not supported
    /// - a value that is empty or not a string
    /// - an attribute with a name that CloudEvents do not allow
    /// - an empty list
    /// - more than 16 levels or 256 filters
    pub fn from_json(json: &Value) -> Result<Self> {
        let filter = match json {
            Value::Array(filters) => Self::all(read_list("filters", filters, 0)?),
            filter => read(filter, 0)?,
        };
        filter.check()?;
        Ok(filter)
    }

    /// Returns true if the event matches.
    pub fn matches(&self, event: &Event) -> bool {
        let has = |attribute: &str, test: &dyn Fn(&str) -> bool| {
            attribute_of(event, attribute).is_some_and(|value| test(&value))
        };
        match &self.0 {
            Dialect::Exact(attribute, wanted) => has(attribute, &|value| value == wanted),
            Dialect::Prefix(attribute, wanted) => has(attribute, &|value| value.starts_with(&**wanted)),
            Dialect::Suffix(attribute, wanted) => has(attribute, &|value| value.ends_with(&**wanted)),
            Dialect::All(filters) => filters.iter().all(|filter| filter.matches(event)),
            Dialect::Any(filters) => filters.iter().any(|filter| filter.matches(event)),
            Dialect::Not(filter) => !filter.matches(event),
        }
    }

    /// Returns the only value of this attribute with which an event can match, if there is one. The index uses it.
    pub(super) fn required(&self, attribute: &str) -> Option<&str> {
        match &self.0 {
            Dialect::Exact(name, value) if name == attribute => Some(value),
            Dialect::All(filters) => filters.iter().find_map(|filter| filter.required(attribute)),
            _ => None,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        self.check_below(0, &mut 0)
    }

    fn check_below(&self, depth: usize, count: &mut usize) -> Result<()> {
        *count += 1;
        if *count > MAX_FILTERS {
            return Err(refused("filters", &format!("more than {MAX_FILTERS}"), "too many in one filter"));
        }
        check_depth(depth)?;
        match &self.0 {
            Dialect::Exact(attribute, value)
            | Dialect::Prefix(attribute, value)
            | Dialect::Suffix(attribute, value) => check_attribute(attribute, value),
            Dialect::All(filters) | Dialect::Any(filters) if filters.is_empty() => {
                Err(refused("filter list", "[]", "must have at least one filter"))
            }
            Dialect::All(filters) | Dialect::Any(filters) => {
                filters.iter().try_for_each(|filter| filter.check_below(depth + 1, count))
            }
            Dialect::Not(filter) => filter.check_below(depth + 1, count),
        }
    }
}

/// Returns the event type for a CloudEvents `type`, or `None` for the `type` of an event without one.
pub(super) fn indexable_type(value: &str) -> Option<&str> {
    (value != UNTYPED).then_some(value)
}

fn attribute_of<'a>(event: &'a Event, name: &str) -> Option<Cow<'a, str>> {
    let text = match name {
        "id" => &event.id,
        "source" => &event.source,
        "type" if event.event_type.is_empty() => UNTYPED,
        "type" => &event.event_type,
        "subject" => &event.subject,
        "specversion" => "1.0",
        "a3scategory" => &event.category,
        "a3ssummary" => &event.summary,
        "a3sversion" => return Some(event.version.to_string().into()),
        "time" => return time_of(event),
        "datacontenttype" if !event.metadata.contains_key(CE_CONTENT_TYPE) => {
            return (!is_absent(event, name)).then_some("application/json".into());
        }
        _ => event.metadata.get(&["ce-", name].concat()).or_else(|| event.metadata.get(name))?,
    };
    Some(text.into())
}

/// Returns the original spelling while it still is the event's time, or else the canonical form.
fn time_of(event: &Event) -> Option<Cow<'_, str>> {
    match event.metadata.get(CE_TIME) {
        Some(text) if timestamp::parse(text).is_some_and(|at| at.millis == event.timestamp) => {
            Some(text.into())
        }
        None if is_absent(event, "time") => None,
        _ => timestamp::format_rfc3339(event.timestamp).map(Cow::from),
    }
}

/// Returns true if the event came as a CloudEvent without an attribute that events always have.
fn is_absent(event: &Event, name: &str) -> bool {
    let absent = event.metadata.get(CE_ABSENT);
    absent.is_some_and(|names| names.split(',').any(|absent| absent == name))
}

fn check_attribute(attribute: &str, value: &str) -> Result<()> {
    let is_name = !attribute.is_empty()
        && attribute.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !is_name || attribute.len() > MAX_TEXT_LEN {
        return Err(refused("filter attribute", attribute, "must be of the characters a-z and 0-9"));
    }
    if attribute == "data" {
        return Err(refused("filter attribute", attribute, "is the payload, not an attribute"));
    }
    if value.is_empty() || value.len() > MAX_TEXT_LEN {
        let rule = format!("must have between 1 and {MAX_TEXT_LEN} bytes");
        return Err(refused("filter value", value, &rule));
    }
    Ok(())
}

fn check_depth(depth: usize) -> Result<()> {
    if depth >= MAX_DEPTH {
        return Err(refused("filters", &format!("{MAX_DEPTH} levels"), "nested too deeply"));
    }
    Ok(())
}

fn read(json: &Value, depth: usize) -> Result<EventFilter> {
    check_depth(depth)?;
    let object = json.as_object().filter(|object| object.len() == 1);
    let Some((dialect, content)) = object.and_then(|object| object.iter().next()) else {
        return Err(refused("filter", &json.to_string(), "must be an object with one dialect as its key"));
    };
    match dialect.as_str() {
        "exact" => read_attributes(dialect, content, EventFilter::exact),
        "prefix" => read_attributes(dialect, content, EventFilter::prefix),
        "suffix" => read_attributes(dialect, content, EventFilter::suffix),
        "not" => Ok(EventFilter::not(read(content, depth + 1)?)),
        "all" | "any" => {
            let Some(filters) = content.as_array() else {
                return Err(refused(dialect, &content.to_string(), "must be an array of filters"));
            };
            let filters = read_list(dialect, filters, depth + 1)?;
            Ok(if dialect == "all" { EventFilter::all(filters) } else { EventFilter::any(filters) })
        }
        _ => Err(refused("filter dialect", dialect, "must be exact, prefix, suffix, all, any or not")),
    }
}

fn read_list(dialect: &str, filters: &[Value], depth: usize) -> Result<Vec<EventFilter>> {
    if filters.len() > MAX_FILTERS {
        return Err(refused(dialect, &format!("{} filters", filters.len()), "too many in one filter"));
    }
    filters.iter().map(|filter| read(filter, depth)).collect()
}

/// Parses one or more attributes with their values, all of which must match.
fn read_attributes(
    dialect: &str,
    content: &Value,
    of: impl Fn(String, String) -> EventFilter,
) -> Result<EventFilter> {
    let Some(object) = content.as_object().filter(|object| !object.is_empty()) else {
        return Err(refused(dialect, &content.to_string(), "must be an object of attributes and values"));
    };
    let mut filters = Vec::with_capacity(object.len());
    for (attribute, value) in object {
        let Some(value) = value.as_str() else {
            return Err(refused(dialect, &value.to_string(), "the value must be a string"));
        };
        filters.push(of(attribute.clone(), value.to_owned()));
    }
    match (filters.pop(), filters.is_empty()) {
        (Some(filter), true) => Ok(filter),
        (last, _) => Ok(EventFilter::all(filters.into_iter().chain(last))),
    }
}

fn refused(field: &str, value: &str, rule: &str) -> EventError {
    EventError::Config(format!("{field} '{}': {rule}", shorten(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event() -> Event {
        Event::typed("events.orders.eu.new", "orders", "order.created", 3, "", "shop", json!({}))
            .with_metadata("region", "eu")
            .with_metadata("ce-tenant", "acme")
    }

    #[test]
    fn all_criteria_that_are_set_must_hold() {
        let full = TriggerFilter {
            event_type: Some("order.created".into()),
            source: Some("shop".into()),
            subject_pattern: Some("events.*.eu.>".into()),
            attributes: vec![("region".into(), "eu".into())],
        };
        assert!(full.matches(&event()));
        assert!(TriggerFilter::default().matches(&event()));
        for filter in [
            TriggerFilter::by_type("order"),
            TriggerFilter::by_type(""),
            TriggerFilter::by_source("warehouse"),
            TriggerFilter::by_subject("events.orders.us.>"),
            TriggerFilter::by_subject("events.>.new"),
            TriggerFilter::default().with_attribute("region", "us"),
            TriggerFilter::default().with_attribute("zone", ""),
            full.with_attribute("region", "us"),
        ] {
            assert!(!filter.matches(&event()), "{filter:?}");
        }
    }

    #[test]
    fn each_dialect_compares_the_attributes_of_a_cloud_event() {
        for (filter, expected) in [
            (json!({"exact": {"type": "order.created"}}), true),
            (json!({"exact": {"type": "Order.created"}}), false),
            (json!({"exact": {"type": "order.created", "source": "shop"}}), true),
            (json!({"exact": {"type": "order.created", "source": "x"}}), false),
            (json!({"prefix": {"subject": "events.orders"}}), true),
            (json!({"prefix": {"subject": "orders"}}), false),
            (json!({"suffix": {"subject": ".new"}}), true),
            (json!({"suffix": {"subject": ".old"}}), false),
            (json!({"exact": {"region": "eu"}}), true),
            (json!({"exact": {"tenant": "acme"}}), true),
            (json!({"exact": {"a3sversion": "3"}}), true),
            (json!({"exact": {"a3scategory": "orders"}}), true),
            (json!({"prefix": {"absent": "x"}}), false),
            (json!({"not": {"prefix": {"absent": "x"}}}), true),
            (json!({"any": [{"exact": {"region": "us"}}, {"exact": {"region": "eu"}}]}), true),
            (json!({"any": [{"exact": {"region": "us"}}, {"exact": {"region": "cn"}}]}), false),
            (json!({"all": [{"exact": {"region": "us"}}, {"exact": {"region": "eu"}}]}), false),
            (json!([{"exact": {"region": "eu"}}, {"not": {"exact": {"tenant": "other"}}}]), true),
        ] {
            assert_eq!(EventFilter::from_json(&filter).unwrap().matches(&event()), expected, "{filter}");
        }
        let untyped = Event::new("events.a", "a", "", "x", json!(1));
        assert!(EventFilter::exact("type", UNTYPED).matches(&untyped));
    }

    #[test]
    fn a_time_is_compared_in_its_canonical_form_or_as_it_came() {
        let mut event = event();
        event.timestamp = 1_770_113_472_345;
        let exact = |event: &Event, name: &str, value: &str| EventFilter::exact(name, value).matches(event);
        assert!(exact(&event, "time", "2026-02-03T10:11:12.345Z"));
        assert!(EventFilter::prefix("time", "2026-02-").matches(&event));
        assert!(!exact(&event, "time", "2026-02-03T11:11:12.345+01:00"));
        assert!(exact(&event, "datacontenttype", "application/json"));

        let foreign = event.clone().with_metadata(CE_TIME, "2026-02-03T11:11:12.345+01:00");
        assert!(exact(&foreign, "time", "2026-02-03T11:11:12.345+01:00"));
        let changed = Event { timestamp: 0, ..foreign };
        assert!(exact(&changed, "time", "1970-01-01T00:00:00.000Z"), "it is another time by now");

        let absent = event.clone().with_metadata(CE_ABSENT, "datacontenttype,time");
        assert!(EventFilter::not(EventFilter::prefix("time", "2")).matches(&absent));
        assert!(!exact(&absent, "datacontenttype", "application/json"));
        let text = event.with_metadata(CE_CONTENT_TYPE, "text/plain");
        assert!(exact(&text, "datacontenttype", "text/plain"));
        let beyond = Event { timestamp: u64::MAX, ..text };
        assert!(!EventFilter::prefix("time", "1").matches(&beyond));
    }

    #[test]
    fn what_breaks_the_rules_is_refused_and_named() {
        let deep = (0..20).fold(json!({"exact": {"type": "x"}}), |inner, _| json!({"not": inner}));
        let many = json!({"any": vec![json!({"exact": {"type": "x"}}); 300]});
        for (filter, named) in [
            (json!({}), "one dialect"),
            (json!("x"), "one dialect"),
            (json!({"exact": {"a": "b"}, "prefix": {"a": "b"}}), "one dialect"),
            (json!({"sql": "type = 'x'"}), "'sql'"),
            (json!({"exact": {}}), "attributes and values"),
            (json!({"exact": {"type": 1}}), "must be a string"),
            (json!({"exact": {"type": ""}}), "between 1 and"),
            (json!({"exact": {"": "x"}}), "a-z and 0-9"),
            (json!({"suffix": {"My_Ext": "x"}}), "'My_Ext'"),
            (json!({"exact": {"data": "x"}}), "'data'"),
            (json!({"all": []}), "at least one"),
            (json!([]), "at least one"),
            (json!({"any": {"exact": {"type": "x"}}}), "array"),
            (json!({"not": []}), "one dialect"),
            (deep, "levels"),
            (many, "too many"),
        ] {
            let text = EventFilter::from_json(&filter).unwrap_err().to_string();
            assert!(text.contains(named), "{filter}: {text}");
        }
    }
}
