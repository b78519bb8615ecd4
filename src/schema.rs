//! Schemas: which fields the payload of an event type must have, per version, and how versions may differ.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;

use crate::error::{EventError, Result, shorten};
use crate::types::Event;

/// Most required fields that a schema may name.
const MAX_REQUIRED_FIELDS: usize = 1_000;

/// What the payload of one version of an event type must have.
#[derive(Debug, Clone)]
pub struct EventSchema {
    /// The event type that the schema is for; not empty.
    pub event_type: String,
    /// The version, at least 1.
    pub version: u32,
    /// Names of the top-level fields that must be present and not null. At most 1,000, each one once.
    pub required_fields: Vec<String>,
    /// What the event means, for people.
    pub description: String,
}

/// How a version of a schema may differ from the one before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compatibility {
    /// Readers of the new version can read old events: no field becomes required. The default.
    #[default]
    Backward,
    /// Readers of the old version can read new events: no field ceases to be required.
    Forward,
    /// The list of required fields stays exactly as it is, including its order.
    Full,
    /// Anything goes.
    None,
}

/// Keeps schemas and checks events against them. Called from many tasks at once; it performs no I/O while it validates.
pub trait SchemaRegistry: Send + Sync {
    /// Adds a schema, replacing an earlier one of the same type and version.
    ///
    /// Compatibility is not checked here: call [`check_compatibility`](SchemaRegistry::check_compatibility) afterwards
    /// where it matters.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for a definition that cannot be meant: an empty event type, version 0, an empty or
    /// repeated field name, more than 1,000 fields.
    fn register(&self, schema: EventSchema) -> Result<()>;

    /// The schema of one version, if it is registered.
    ///
    /// # Errors
    ///
    /// The error of what stands behind the registry.
    fn get(&self, event_type: &str, version: u32) -> Result<Option<EventSchema>>;

    /// The highest registered version of a type, if there is one.
    ///
    /// # Errors
    ///
    /// The error of what stands behind the registry.
    fn latest_version(&self, event_type: &str) -> Result<Option<u32>>;

    /// All registered event types, sorted.
    ///
    /// # Errors
    ///
    /// The error of what stands behind the registry.
    fn list_types(&self) -> Result<Vec<String>>;

    /// Checks an event whose payload is not encrypted.
    ///
    /// Only what is registered can fail: an event without a type, of an unknown type, or of an unknown version of a
    /// known type passes.
    ///
    /// # Errors
    ///
    /// [`EventError::SchemaValidation`] when the payload is not an object or lacks a required field, naming the fields.
    fn validate(&self, event: &Event) -> Result<()>;

    /// Checks a registered version against the version just before it, `new_version - 1`.
    ///
    /// Where one of the two is not registered there is nothing to compare, and the check passes; so does version 1.
    ///
    /// # Errors
    ///
    /// [`EventError::SchemaValidation`] that names the fields which break `mode`.
    fn check_compatibility(&self, event_type: &str, new_version: u32, mode: Compatibility) -> Result<()>;
}

/// A registry in memory.
///
/// ```
/// use a3s_event::{Compatibility, Event, EventSchema, MemorySchemaRegistry, SchemaRegistry};
/// use serde_json::json;
///
/// # fn main() -> a3s_event::Result<()> {
/// let registry = MemorySchemaRegistry::new();
/// registry.register(EventSchema {
///     event_type: "market.quote".into(),
///     version: 1,
///     required_fields: vec!["symbol".into(), "rate".into()],
///     description: "A quoted rate".into(),
/// })?;
///
/// let quote = |payload| Event::typed("events.market.fx", "market", "market.quote", 1, "", "doc", payload);
/// registry.validate(&quote(json!({"symbol": "USDCNY", "rate": 7.35})))?;
/// let error = registry.validate(&quote(json!({"symbol": "USDCNY"}))).unwrap_err();
/// assert!(error.to_string().contains("rate"));
/// registry.check_compatibility("market.quote", 1, Compatibility::Backward)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct MemorySchemaRegistry {
    types: RwLock<Versions>,
}

/// Per event type, the schemas by version.
type Versions = HashMap<String, BTreeMap<u32, EventSchema>>;

impl MemorySchemaRegistry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self) -> Result<RwLockReadGuard<'_, Versions>> {
        self.types.read().map_err(poisoned)
    }

    fn write(&self) -> Result<RwLockWriteGuard<'_, Versions>> {
        self.types.write().map_err(poisoned)
    }
}

impl SchemaRegistry for MemorySchemaRegistry {
    fn register(&self, schema: EventSchema) -> Result<()> {
        check_definition(&schema)?;
        self.write()?.entry(schema.event_type.clone()).or_default().insert(schema.version, schema);
        Ok(())
    }

    fn get(&self, event_type: &str, version: u32) -> Result<Option<EventSchema>> {
        let types = self.read()?;
        Ok(types.get(event_type).and_then(|versions| versions.get(&version)).cloned())
    }

    fn latest_version(&self, event_type: &str) -> Result<Option<u32>> {
        let types = self.read()?;
        Ok(types.get(event_type).and_then(|versions| versions.keys().next_back()).copied())
    }

    fn list_types(&self) -> Result<Vec<String>> {
        let mut types: Vec<String> = self.read()?.keys().cloned().collect();
        types.sort_unstable();
        Ok(types)
    }

    fn validate(&self, event: &Event) -> Result<()> {
        if event.event_type.is_empty() {
            return Ok(());
        }
        let types = self.read()?;
        match types.get(&event.event_type).and_then(|versions| versions.get(&event.version)) {
            Some(schema) => check_payload(schema, &event.payload),
            None => Ok(()),
        }
    }

    fn check_compatibility(&self, event_type: &str, new_version: u32, mode: Compatibility) -> Result<()> {
        let types = self.read()?;
        let Some(versions) = types.get(event_type) else {
            return Ok(());
        };
        let old = new_version.checked_sub(1).and_then(|version| versions.get(&version));
        match (old, versions.get(&new_version)) {
            (Some(old), Some(new)) => check_change(old, new, mode),
            _ => Ok(()),
        }
    }
}

fn poisoned<T>(_error: PoisonError<T>) -> EventError {
    EventError::Provider("the schema registry is unusable: a thread panicked while it changed it".to_owned())
}

fn check_definition(schema: &EventSchema) -> Result<()> {
    let refuse = |rule: String| {
        let (event_type, version) = (shorten(&schema.event_type), schema.version);
        Err(EventError::Config(format!("schema of event type '{event_type}' v{version}: {rule}")))
    };
    if schema.event_type.is_empty() {
        return refuse("the event type must not be empty".to_owned());
    }
    if schema.version == 0 {
        return refuse("the version must be at least 1".to_owned());
    }
    let count = schema.required_fields.len();
    if count > MAX_REQUIRED_FIELDS {
        return refuse(format!("{count} required fields, at most {MAX_REQUIRED_FIELDS} are allowed"));
    }
    let mut seen = HashSet::with_capacity(count);
    for field in &schema.required_fields {
        if field.is_empty() {
            return refuse("a required field must not have an empty name".to_owned());
        }
        if !seen.insert(field) {
            return refuse(format!("required field '{}' is named twice", shorten(field)));
        }
    }
    Ok(())
}

fn check_payload(schema: &EventSchema, payload: &Value) -> Result<()> {
    let Value::Object(fields) = payload else {
        let reason = format!("the payload must be an object, it is {}", kind_of(payload));
        return Err(violation(schema, reason));
    };
    // Null says "no value", which is what requiring a field rules out.
    let missing =
        names(schema.required_fields.iter().filter(|field| fields.get(*field).is_none_or(Value::is_null)));
    match missing {
        None => Ok(()),
        Some(missing) => Err(violation(schema, format!("missing required fields: {missing}"))),
    }
}

fn check_change(old: &EventSchema, new: &EventSchema, mode: Compatibility) -> Result<()> {
    let added = || names_only_in(&new.required_fields, &old.required_fields);
    let dropped = || names_only_in(&old.required_fields, &new.required_fields);
    let broken = match mode {
        Compatibility::None => None,
        Compatibility::Backward => added().map(|fields| format!("newly required: {fields}")),
        Compatibility::Forward => dropped().map(|fields| format!("no longer required: {fields}")),
        Compatibility::Full if old.required_fields == new.required_fields => None,
        Compatibility::Full => Some(match (added(), dropped()) {
            (None, None) => "the required fields are in another order".to_owned(),
            (added, dropped) => format!(
                "newly required: {}; no longer required: {}",
                added.as_deref().unwrap_or("none"),
                dropped.as_deref().unwrap_or("none")
            ),
        }),
    };
    match broken {
        None => Ok(()),
        Some(difference) => {
            let reason = format!("not {mode:?}-compatible with v{}: {difference}", old.version);
            Err(violation(new, reason))
        }
    }
}

fn names_only_in(fields: &[String], other: &[String]) -> Option<String> {
    let other: HashSet<&String> = other.iter().collect();
    names(fields.iter().filter(|field| !other.contains(field)))
}

/// The names as one text fit for an error; `None` when there are none.
fn names<'a>(fields: impl Iterator<Item = &'a String>) -> Option<String> {
    const LISTED: usize = 10;
    let mut names: Vec<String> = fields.map(|field| shorten(field)).collect();
    if names.len() > LISTED {
        let others = names.len() - LISTED;
        names.truncate(LISTED);
        names.push(format!("and {others} more"));
    }
    (!names.is_empty()).then(|| names.join(", "))
}

fn violation(schema: &EventSchema, reason: String) -> EventError {
    EventError::SchemaValidation { event_type: shorten(&schema.event_type), version: schema.version, reason }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(version: u32, fields: &[&str]) -> EventSchema {
        EventSchema {
            event_type: "order".into(),
            version,
            required_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            description: String::new(),
        }
    }

    fn registry(schemas: impl IntoIterator<Item = EventSchema>) -> MemorySchemaRegistry {
        let registry = MemorySchemaRegistry::new();
        for schema in schemas {
            registry.register(schema).unwrap();
        }
        registry
    }

    fn event(event_type: &str, version: u32, payload: Value) -> Event {
        Event::typed("events.orders.new", "orders", event_type, version, "", "test", payload)
    }

    fn reason(result: Result<()>) -> String {
        match result.unwrap_err() {
            EventError::SchemaValidation { reason, .. } => reason,
            other => panic!("unexpected error {other}"),
        }
    }

    #[test]
    fn required_fields_are_present_and_not_null() {
        let registry = registry([schema(1, &["id", "total", "customer"])]);
        let validate = |payload| registry.validate(&event("order", 1, payload));
        validate(json!({"id": 1, "total": 0, "customer": "", "more": true})).unwrap();
        assert_eq!(
            reason(validate(json!({"total": null, "customer": {}}))),
            "missing required fields: id, total"
        );
        for (payload, kind) in [
            (json!(null), "null"),
            (json!([]), "an array"),
            (json!("x"), "a string"),
            (json!(1), "a number"),
            (json!(true), "a boolean"),
        ] {
            assert_eq!(reason(validate(payload)), format!("the payload must be an object, it is {kind}"));
        }
    }

    #[test]
    fn an_error_lists_ten_names_and_counts_the_others() {
        let fields: Vec<String> = (0..1_000).map(|n| format!("f{n}")).collect();
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let registry = registry([schema(1, &fields)]);
        let reason = reason(registry.validate(&event("order", 1, json!({}))));
        assert!(reason.ends_with("f8, f9, and 990 more"), "{reason}");
    }

    #[test]
    fn what_is_not_registered_passes() {
        let registry = registry([schema(1, &["id"])]);
        for (event_type, version) in [("", 1), ("other", 1), ("order", 2)] {
            registry.validate(&event(event_type, version, json!(null))).unwrap();
        }
        assert!(registry.validate(&event("order", 1, json!(null))).is_err());
    }

    #[test]
    fn a_schema_can_be_looked_up_and_replaced() {
        let registry = registry([schema(3, &["c"]), schema(1, &["a"]), schema(1, &["b"])]);
        assert_eq!(registry.get("order", 1).unwrap().unwrap().required_fields, ["b"]);
        assert!(registry.get("order", 2).unwrap().is_none());
        assert!(registry.get("other", 1).unwrap().is_none());
        assert_eq!(registry.latest_version("order").unwrap(), Some(3));
        assert_eq!(registry.latest_version("other").unwrap(), None);

        let mut other = schema(1, &[]);
        other.event_type = "invoice".into();
        registry.register(other).unwrap();
        assert_eq!(registry.list_types().unwrap(), ["invoice", "order"]);
    }

    #[test]
    fn bad_definitions_are_refused_with_the_rule() {
        let mut untyped = schema(1, &[]);
        untyped.event_type.clear();
        let mut huge = schema(1, &[]);
        huge.required_fields = (0..1_001).map(|n| format!("f{n}")).collect();
        for (definition, rule) in [
            (untyped, "must not be empty"),
            (schema(0, &[]), "at least 1"),
            (schema(1, &["a", ""]), "empty name"),
            (schema(1, &["a", "b", "a"]), "'a' is named twice"),
            (huge.clone(), "1001 required fields, at most 1000"),
        ] {
            let registry = MemorySchemaRegistry::new();
            match registry.register(definition).unwrap_err() {
                EventError::Config(text) => assert!(text.contains(rule), "{text}"),
                other => panic!("unexpected error {other}"),
            }
            assert!(registry.list_types().unwrap().is_empty());
        }
        huge.required_fields.pop();
        registry([huge]);
    }

    #[test]
    fn compatibility_follows_its_mode() {
        use Compatibility::{Backward, Forward, Full, None};
        let same: &[&str] = &["a", "b"];
        for (new, mode, expected) in [
            (same, Backward, Ok(())),
            (&["a"], Backward, Ok(())),
            (&["a", "b", "c"], Backward, Err("newly required: c")),
            (same, Forward, Ok(())),
            (&["a", "b", "c"], Forward, Ok(())),
            (&["a"], Forward, Err("no longer required: b")),
            (same, Full, Ok(())),
            (&["b", "a"], Full, Err("another order")),
            (&["a", "c"], Full, Err("newly required: c; no longer required: b")),
            (&["x"], None, Ok(())),
        ] {
            let registry = registry([schema(1, same), schema(2, new)]);
            let result = registry.check_compatibility("order", 2, mode);
            match expected {
                Ok(()) => result.unwrap(),
                Err(difference) => {
                    let found = reason(result);
                    assert!(found.contains(difference), "{new:?} {mode:?}: {found}");
                }
            }
        }
        assert_eq!(Compatibility::default(), Backward);
    }

    #[test]
    fn compatibility_compares_with_the_version_just_before_only() {
        let registry = registry([schema(1, &[]), schema(3, &["a"]), schema(4, &["a"])]);
        let check = |event_type, version| {
            registry.check_compatibility(event_type, version, Compatibility::Full).unwrap();
        };
        for version in [0, 1, 2, 3, 4, 5, u32::MAX] {
            check("order", version);
        }
        check("other", 2);
    }

    #[test]
    fn a_poisoned_lock_is_an_error() {
        let registry = registry([schema(1, &[])]);
        std::thread::scope(|scope| {
            let panicking = scope.spawn(|| {
                let _guard = registry.types.write().unwrap();
                panic!("on purpose");
            });
            assert!(panicking.join().is_err());
        });
        assert!(matches!(registry.list_types(), Err(EventError::Provider(_))));
        assert!(matches!(registry.register(schema(2, &[])), Err(EventError::Provider(_))));
    }
}
