//! Registry of schemas that are lists of required fields.

use std::collections::HashSet;

use serde_json::Value;

use super::catalog::{Catalog, Definition, check_definition, leave_to_catalog, listed};
use super::{Compatibility, EventSchema, SchemaRegistry, SchemaRules};
use crate::error::Result;
use crate::text::shorten;
use crate::types::Event;

/// An in-memory registry of schemas that are lists of required fields.
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
    catalog: Catalog<EventSchema>,
}

impl MemorySchemaRegistry {
    /// Creates an empty registry without rules.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty registry with these rules.
    pub fn with_rules(rules: SchemaRules) -> Self {
        Self { catalog: Catalog::with_rules(rules) }
    }

    /// Returns the number of validated events that had no schema.
    pub fn unknown_count(&self) -> u64 {
        self.catalog.unknown_count()
    }
}

impl SchemaRegistry for MemorySchemaRegistry {
    fn register(&self, schema: EventSchema) -> Result<()> {
        check_definition(&schema)?;
        self.catalog.register([schema])
    }

    fn get(&self, event_type: &str, version: u32) -> Result<Option<EventSchema>> {
        Ok(self.catalog.get(event_type, version)?.map(|schema| EventSchema::clone(&schema)))
    }

    leave_to_catalog!();
}

impl Definition for EventSchema {
    fn schema(&self) -> &EventSchema {
        self
    }

    fn check(&self, payload: &Value) -> std::result::Result<(), String> {
        let Value::Object(fields) = payload else {
            return Err(format!("the payload must be an object, but is {}", kind_of(payload)));
        };
        // Null means "no value", and a required field must have one.
        let missing =
            self.required_fields.iter().filter(|field| fields.get(*field).is_none_or(Value::is_null));
        match names(missing) {
            None => Ok(()),
            Some(missing) => Err(format!("missing required fields: {missing}")),
        }
    }

    fn incompatibility(&self, old: &Self, mode: Compatibility) -> Option<String> {
        let added = || names_only_in(&self.required_fields, &old.required_fields);
        let dropped = || names_only_in(&old.required_fields, &self.required_fields);
        match mode {
            Compatibility::None => None,
            Compatibility::Backward => added().map(|fields| format!("newly required: {fields}")),
            Compatibility::Forward => dropped().map(|fields| format!("no longer required: {fields}")),
            Compatibility::Full if old.required_fields == self.required_fields => None,
            Compatibility::Full => Some(match (added(), dropped()) {
                (None, None) => "the required fields are in another order".to_owned(),
                (added, dropped) => format!(
                    "newly required: {}; no longer required: {}",
                    added.as_deref().unwrap_or("none"),
                    dropped.as_deref().unwrap_or("none")
                ),
            }),
        }
    }
}

fn names_only_in(fields: &[String], other: &[String]) -> Option<String> {
    let other: HashSet<&String> = other.iter().collect();
    names(fields.iter().filter(|field| !other.contains(field)))
}

fn names<'a>(fields: impl Iterator<Item = &'a String>) -> Option<String> {
    listed(fields, |field| shorten(field), ", ")
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
    use crate::error::EventError;
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
            assert_eq!(reason(validate(payload)), format!("the payload must be an object, but is {kind}"));
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
    fn compatibility_with_all_compares_with_every_earlier_version() {
        let registry = registry([schema(1, &["a"]), schema(3, &["a", "b"]), schema(4, &["a", "b"])]);
        let check =
            |version| registry.check_compatibility_with_all("order", version, Compatibility::Backward);
        for version in [0, 1, 2, 5, u32::MAX] {
            check(version).unwrap();
        }
        assert!(reason(check(3)).contains("compatible with v1: newly required: b"));
        assert!(reason(check(4)).contains("compatible with v1: newly required: b"));
    }

    #[test]
    fn a_strict_registry_refuses_what_it_does_not_know_and_every_registry_counts_it() {
        let lenient = registry([schema(1, &[])]);
        let strict = MemorySchemaRegistry::with_rules(SchemaRules::new().strict());
        strict.register(schema(1, &[])).unwrap();
        for (event_type, version) in [("", 1), ("other", 1), ("order", 2)] {
            let event = event(event_type, version, json!({}));
            lenient.validate(&event).unwrap();
            assert!(reason(strict.validate(&event)).contains("no schema"));
        }
        strict.validate(&event("order", 1, json!({}))).unwrap();
        assert_eq!((lenient.unknown_count(), strict.unknown_count()), (3, 3));
    }

    #[test]
    fn a_rule_refuses_an_incompatible_version_when_it_is_registered() {
        let rules = SchemaRules::new().compatibility(Compatibility::Full);
        let registry = MemorySchemaRegistry::with_rules(rules);
        registry.register(schema(1, &["a"])).unwrap();
        assert!(reason(registry.register(schema(2, &["a", "b"]))).contains("v1: newly required: b"));
        assert_eq!(registry.latest_version("order").unwrap(), Some(1));
        registry.register(schema(2, &["a"])).unwrap();
    }

    #[test]
    fn a_poisoned_lock_is_an_error() {
        let registry = registry([schema(1, &[])]);
        std::thread::scope(|scope| {
            let panicking = scope.spawn(|| {
                let _guard = registry.catalog.lock_for_writing();
                panic!("on purpose");
            });
            assert!(panicking.join().is_err());
        });
        assert!(matches!(registry.list_types(), Err(EventError::Provider(_))));
        assert!(matches!(registry.register(schema(2, &[])), Err(EventError::Provider(_))));
    }
}
