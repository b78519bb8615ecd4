//! Registry of JSON Schemas.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use jsonschema::{PatternOptions, Validator};
use serde_json::{Value, json};

use super::catalog::{Catalog, Definition, check_definition, leave_to_catalog, listed, refused};
use super::inclusion::differences;
use super::{Compatibility, EventSchema, SchemaRegistry, SchemaRules, references};
use crate::error::{EventError, Result};
use crate::json as strict;
use crate::private_file;
use crate::provider::validate::validate_payload;
use crate::text::{shorten, shorten_to};
use crate::types::Event;

/// Maximum size of a schema file in bytes.
const MAX_FILE_LEN: u64 = 1024 * 1024;
/// Maximum size of one compiled regular expression in bytes.
const MAX_PATTERN_SIZE: usize = 1024 * 1024;

/// An in-memory registry of JSON Schemas. It compiles each schema once, when the schema is registered.
///
/// The registry knows all drafts from 4 to 2020-12; a schema without `$schema` is 2020-12. References are JSON pointers
/// into the schema, such as `#/$defs/name`, and never lead to the network or to files. The registry refuses references
/// to an `$anchor`, and it refuses `$dynamicRef`, `$recursiveRef` and an inner `$id`. Regular expressions are matched
/// in linear time, so those with look-around or back-references are refused.
///
/// [`check_compatibility`](SchemaRegistry::check_compatibility) compares the structure of two schemas:
///
/// - fields that are added, removed or required;
/// - types, bounds and lists of values that grow or shrink;
/// - permission for further fields.
///
/// It finds each narrowing, and reports what it cannot compare. A field that a schema does not declare counts as not
/// written under it, so adding an optional field breaks nothing. [The guide](crate::docs::schema_evolution) has a
/// table.
///
/// ```
/// use a3s_event::schema::JsonSchemaRegistry;
/// use a3s_event::{Compatibility, Event, SchemaRegistry};
/// use serde_json::json;
///
/// # fn main() -> a3s_event::Result<()> {
/// let registry = JsonSchemaRegistry::new();
/// let schema = |rate| json!({
///     "type": "object",
///     "required": ["symbol"],
///     "properties": {"symbol": {"type": "string"}, "rate": {"type": rate}},
/// });
/// registry.register_json("market.quote", 1, schema("integer"))?;
/// registry.register_json("market.quote", 2, schema("number"))?;
/// registry.check_compatibility("market.quote", 2, Compatibility::Backward)?;
/// assert!(registry.check_compatibility("market.quote", 2, Compatibility::Forward).is_err());
///
/// let quote = |version, payload| Event::typed("events.market.fx", "market", "market.quote", version, "", "doc", payload);
/// registry.validate(&quote(2, json!({"symbol": "USDCNY", "rate": 7.35})))?;
/// let error = registry.validate(&quote(1, json!({"symbol": "USDCNY", "rate": 7.35}))).unwrap_err();
/// assert!(error.to_string().contains("/rate"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct JsonSchemaRegistry {
    catalog: Catalog<JsonDefinition>,
}

impl JsonSchemaRegistry {
    /// Creates an empty registry without rules.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty registry with these rules.
    pub fn with_rules(rules: SchemaRules) -> Self {
        Self { catalog: Catalog::with_rules(rules) }
    }

    /// Adds a JSON Schema and replaces an earlier one of the same type and version.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for:
    ///
    /// - an empty event type or version 0;
    /// - a document that is not a JSON Schema;
    /// - a reference that leads out of the schema;
    /// - a regular expression that is not supported;
    /// - more than 100 levels of nesting.
    ///
    /// [`EventError::SchemaValidation`] if the schema breaks the compatibility rule of the registry.
    pub fn register_json(&self, event_type: impl Into<String>, version: u32, schema: Value) -> Result<()> {
        self.catalog.register([JsonDefinition::new(event_type.into(), version, schema)?])
    }

    /// Adds the schema of a Rust type as serde deserializes it.
    ///
    /// ```
    /// use a3s_event::schema::JsonSchemaRegistry;
    ///
    /// #[derive(schemars::JsonSchema)]
    /// struct Quote {
    ///     symbol: String,
    ///     rate: Option<f64>,
    /// }
    ///
    /// # fn main() -> a3s_event::Result<()> {
    /// let registry = JsonSchemaRegistry::new();
    /// registry.register_type::<Quote>("market.quote", 1)?;
    /// assert_eq!(registry.json_schema("market.quote", 1)?.unwrap()["required"][0], "symbol");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`register_json`](JsonSchemaRegistry::register_json).
    #[cfg(feature = "schemars")]
    #[cfg_attr(docsrs, doc(cfg(feature = "schemars")))]
    pub fn register_type<T: schemars::JsonSchema>(
        &self,
        event_type: impl Into<String>,
        version: u32,
    ) -> Result<()> {
        self.register_json(event_type, version, schemars::schema_for!(T).to_value())
    }

    /// Adds all schemas of a folder and returns their number. Each file is named `{event type}.v{version}.json`, for
    /// instance `market.quote.v2.json`. Other files and subfolders are ignored. This method reads files, so call it at
    /// startup or on a thread for blocking work.
    ///
    /// # Errors
    ///
    /// As [`register_json`](JsonSchemaRegistry::register_json), and [`EventError::Config`] for:
    ///
    /// - a folder or file that cannot be read;
    /// - a name that ends in `.json` and does not have this form;
    /// - a file that is larger than 1 MiB or is not JSON.
    ///
    /// If one file fails, nothing is added. An [`EventError::Config`] names the file.
    pub fn load_folder(&self, folder: impl AsRef<Path>) -> Result<usize> {
        let folder = folder.as_ref();
        let unreadable = |error: std::io::Error| {
            EventError::Config(format!("schema folder {folder:?} cannot be read: {error}"))
        };
        let mut definitions = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_some_and(|extension| extension == "json") && !path.is_dir() {
                definitions.push(JsonDefinition::read(&path)?);
            }
        }
        definitions.sort_by(|a, b| a.key().cmp(&b.key()));
        let count = definitions.len();
        self.catalog.register(definitions)?;
        Ok(count)
    }

    /// Returns the JSON Schema of one version, if it is registered.
    ///
    /// # Errors
    ///
    /// [`EventError::Provider`] if a thread panicked while it changed the registry.
    pub fn json_schema(&self, event_type: &str, version: u32) -> Result<Option<Arc<Value>>> {
        let definition = self.catalog.get(event_type, version)?;
        Ok(definition.map(|definition| Arc::clone(&definition.document)))
    }

    /// Returns the number of validated events that had no schema.
    pub fn unknown_count(&self) -> u64 {
        self.catalog.unknown_count()
    }
}

impl SchemaRegistry for JsonSchemaRegistry {
    /// Adds a list of required fields as an equivalent JSON Schema: an object in which they are present and not null.
    fn register(&self, schema: EventSchema) -> Result<()> {
        self.catalog.register([JsonDefinition::of_fields(schema)?])
    }

    /// Returns the registered schema as a list of the fields that it requires at the top level.
    fn get(&self, event_type: &str, version: u32) -> Result<Option<EventSchema>> {
        Ok(self.catalog.get(event_type, version)?.map(|definition| definition.schema.clone()))
    }

    leave_to_catalog!();
}

/// A compiled JSON Schema.
struct JsonDefinition {
    schema: EventSchema,
    document: Arc<Value>,
    validator: Validator,
}

impl JsonDefinition {
    fn new(event_type: String, version: u32, document: Value) -> Result<Self> {
        let text = |name: &str| document.get(name).and_then(Value::as_str);
        let required = document.get("required").and_then(Value::as_array);
        let schema = EventSchema {
            event_type,
            version,
            required_fields: required
                .map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
                .unwrap_or_default(),
            description: text("description").or(text("title")).unwrap_or_default().to_owned(),
        };
        check_definition(&schema)?;
        Self::compile(schema, document)
    }

    fn of_fields(schema: EventSchema) -> Result<Self> {
        check_definition(&schema)?;
        let not_null = |field: &String| (field.clone(), json!({"not": {"type": "null"}}));
        let document = json!({
            "description": schema.description,
            "type": "object",
            "required": schema.required_fields,
            "properties": schema.required_fields.iter().map(not_null).collect::<serde_json::Map<_, _>>(),
        });
        Self::compile(schema, document)
    }

    fn compile(schema: EventSchema, document: Value) -> Result<Self> {
        // All code that walks a schema is recursive.
        if validate_payload(&document).is_err() {
            return Err(refused(&schema, "the JSON Schema is nested deeper than 100 levels"));
        }
        let compiled = references::check(&document).and_then(|()| compile(&document));
        let validator = compiled.map_err(|error| refused(&schema, format!("not a JSON Schema: {error}")))?;
        Ok(Self { schema, document: Arc::new(document), validator })
    }

    /// Reads a schema from a file that is named after its event type and version.
    fn read(path: &Path) -> Result<Self> {
        let refuse = |rule: &dyn fmt::Display| EventError::Config(format!("schema file {path:?}: {rule}"));
        let named = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| {
            let (event_type, version) = stem.rsplit_once(".v")?;
            // Two spellings of one version would replace each other.
            let is_plain = (version == "0" || !version.starts_with('0'))
                && version.bytes().all(|byte| byte.is_ascii_digit());
            Some((event_type.to_owned(), version.parse().ok().filter(|_| is_plain)?))
        });
        let (event_type, version) =
            named.ok_or_else(|| refuse(&"the name must be {event type}.v{version}.json"))?;
        let (content, ..) = private_file::read(path, MAX_FILE_LEN).map_err(|error| refuse(&error))?;
        let document = strict::from_slice(&content).map_err(|error| refuse(&error))?;
        Self::new(event_type, version, document).map_err(|error| match error {
            EventError::Config(text) => refuse(&text),
            other => other,
        })
    }

    fn key(&self) -> (&str, u32) {
        (&self.schema.event_type, self.schema.version)
    }
}

/// Compiles a schema whose references stay inside it.
pub(super) fn compile(document: &Value) -> std::result::Result<Validator, String> {
    jsonschema::options()
        .offline()
        .with_pattern_options(PatternOptions::regex().size_limit(MAX_PATTERN_SIZE))
        .build(document)
        .map_err(|error| described(&error))
}

impl Definition for JsonDefinition {
    fn schema(&self) -> &EventSchema {
        &self.schema
    }

    fn check(&self, payload: &Value) -> std::result::Result<(), String> {
        // A recursive schema is followed as deep as the payload goes.
        if validate_payload(payload).is_err() {
            return Err("the payload is nested deeper than 100 levels".to_owned());
        }
        if self.validator.is_valid(payload) {
            return Ok(());
        }
        let found = self.validator.iter_errors(payload);
        Err(listed(found, |error| described(&error), "; ")
            .unwrap_or_else(|| "the payload does not match the schema".to_owned()))
    }

    fn incompatibility(&self, old: &Self, mode: Compatibility) -> Option<String> {
        let (old_label, new_label) = (old.label(), self.label());
        let old = (&*old.document, old_label.as_str());
        let new = (&*self.document, new_label.as_str());
        let mut found = Vec::new();
        if matches!(mode, Compatibility::Backward | Compatibility::Full) {
            found.extend(differences(old, new));
        }
        if matches!(mode, Compatibility::Forward | Compatibility::Full) {
            found.extend(differences(new, old));
        }
        listed(found, |difference| difference, "; ")
    }
}

impl JsonDefinition {
    fn label(&self) -> String {
        format!("v{}", self.schema.version)
    }
}

/// Describes the place and the rule without values. They may be secret, and errors are logged.
fn described(error: &jsonschema::ValidationError<'_>) -> String {
    let path = error.instance_path().to_string();
    let path = if path.is_empty() { "/" } else { path.as_str() };
    let what = error.masked().to_string();
    format!("{}: {}", shorten(path), shorten_to(&what, 200))
}

impl fmt::Debug for JsonDefinition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JsonDefinition").field(&self.document).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(version: u32, payload: Value) -> Event {
        Event::typed("events.orders.new", "orders", "order", version, "", "test", payload)
    }

    fn registry(schemas: impl IntoIterator<Item = Value>) -> JsonSchemaRegistry {
        let registry = JsonSchemaRegistry::new();
        for (version, schema) in (1..).zip(schemas) {
            registry.register_json("order", version, schema).unwrap();
        }
        registry
    }

    fn violation(result: Result<()>) -> String {
        match result.unwrap_err() {
            EventError::SchemaValidation { event_type, reason, .. } if event_type == "order" => reason,
            other => panic!("unexpected error {other}"),
        }
    }

    fn config_error<T>(result: Result<T>) -> String {
        match result {
            Err(EventError::Config(text)) => text,
            Err(other) => panic!("unexpected error {other}"),
            Ok(_) => panic!("no error"),
        }
    }

    #[test]
    fn a_violation_names_place_and_rule_and_no_value() {
        let registry = registry([json!({
            "type": "object",
            "required": ["id", "lines"],
            "properties": {
                "id": {"type": "integer"},
                "currency": {"enum": ["EUR", "USD"]},
                "lines": {"items": {"required": ["sku"], "properties": {"sku": {"pattern": "^[A-Z]-[0-9]+$"}}}},
            },
        })]);
        let validate = |payload| registry.validate(&event(1, payload));
        validate(json!({"id": 1, "lines": [{"sku": "A-1"}], "more": true})).unwrap();
        for (payload, expected) in [
            (json!([]), "/: "),
            (json!({"lines": []}), "\"id\" is a required property"),
            (json!({"id": "canary", "lines": []}), "/id: "),
            (json!({"id": 1, "currency": "canary", "lines": []}), "/currency: "),
            (json!({"id": 1, "lines": [{"sku": "A-1"}, {"sku": "canary"}]}), "/lines/1/sku: "),
        ] {
            let reason = violation(validate(payload));
            assert!(reason.contains(expected), "{reason}");
            assert!(!reason.contains("canary"), "{reason}");
        }
        let many = json!({"id": 1, "lines": (0..50).map(|_| json!({})).collect::<Vec<_>>()});
        assert!(violation(validate(many)).ends_with("and 40 more"));
        let very_many = json!({"id": 1, "lines": vec![json!({}); 100_000]});
        let reason = violation(validate(very_many));
        assert!(reason.ends_with("and more than 1000 more") && reason.len() < 2_000, "{reason}");
    }

    #[test]
    fn bad_definitions_are_refused_with_the_rule() {
        let deep = (0..150).fold(json!(true), |inner, _| json!({ "not": inner }));
        let many: Vec<String> = (0..1_001).map(|n| n.to_string()).collect();
        for (schema, rule) in [
            (json!({"type": "objekt"}), "not a JSON Schema: /type"),
            (json!({"required": ["a", "a"]}), "'a' is named twice"),
            (json!({"required": [""]}), "empty name"),
            (json!({ "required": many }), "1001 required fields"),
            (json!({"required": "a"}), "not a JSON Schema"),
            (json!("text"), "not a JSON Schema"),
            (json!(null), "not a JSON Schema"),
            (json!({"$ref": "https://example.com/schema.json"}), "not a JSON Schema"),
            (json!({"$ref": "file:///etc/passwd"}), "not a JSON Schema"),
            (json!({"$ref": "other.json"}), "not a JSON Schema"),
            (json!({"$ref": "#/$defs/absent"}), "not a JSON Schema"),
            (json!({"pattern": "(?<=a)b"}), "not a JSON Schema"),
            (json!({"pattern": "("}), "not a JSON Schema"),
            (json!({"pattern": "(a{1000}){1000}"}), "not a JSON Schema"),
            (deep, "deeper than 100"),
        ] {
            let registry = JsonSchemaRegistry::new();
            let text = config_error(registry.register_json("order", 1, schema));
            assert!(text.contains("'order' v1") && text.contains(rule), "{text}");
            assert!(registry.list_types().unwrap().is_empty());
        }
        let registry = JsonSchemaRegistry::new();
        config_error(registry.register_json("", 1, json!(true)));
        config_error(registry.register_json("order", 0, json!(true)));
    }

    /// Covers input that would make a careless validator loop forever or overflow its stack.
    #[test]
    fn hostile_schemas_and_payloads_end() {
        let circle =
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}});
        for schema in [json!({"$ref": "#"}), circle, json!({"allOf": [{"$ref": "#"}]})] {
            let registry = JsonSchemaRegistry::new();
            let text = config_error(registry.register_json("order", 1, schema));
            assert!(text.contains("back to itself"), "{text}");
        }
        let registry = registry([json!({"items": {"$ref": "#"}, "pattern": "^(a+)+$"})]);
        let deep = (0..1_000).fold(json!("x"), |inner, _| Value::Array(vec![inner]));
        assert!(violation(registry.validate(&event(1, deep))).contains("deeper than 100"));
        violation(registry.validate(&event(1, json!(["a".repeat(50_000) + "b"]))));
    }

    #[test]
    fn lists_of_required_fields_mean_the_same_as_in_the_memory_registry() {
        let schema = |version, fields: &[&str]| EventSchema {
            event_type: "order".into(),
            version,
            required_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            description: "an order".into(),
        };
        let json = JsonSchemaRegistry::new();
        let memory = super::super::MemorySchemaRegistry::new();
        for registry in [&json as &dyn SchemaRegistry, &memory] {
            registry.register(schema(1, &["a"])).unwrap();
            registry.register(schema(2, &["a", "b"])).unwrap();
            registry.register(schema(4, &["a"])).unwrap();
            for (payload, valid) in [
                (json!({"a": 1}), true),
                (json!({"a": null}), false),
                (json!({"b": 1}), false),
                (json!([]), false),
            ] {
                assert_eq!(registry.validate(&event(1, payload)).is_ok(), valid);
            }
            for (version, mode, compatible) in [
                (2, Compatibility::Backward, false),
                (2, Compatibility::Forward, true),
                (2, Compatibility::Full, false),
                (2, Compatibility::None, true),
                (4, Compatibility::Full, true),
                (9, Compatibility::Full, true),
            ] {
                let checked = registry.check_compatibility("order", version, mode);
                assert_eq!(checked.is_ok(), compatible, "v{version} {mode:?}: {checked:?}");
            }
            assert!(registry.check_compatibility_with_all("order", 4, Compatibility::Forward).is_err());
            assert_eq!(registry.get("order", 2).unwrap().unwrap().required_fields, ["a", "b"]);
            assert_eq!(registry.latest_version("order").unwrap(), Some(4));
            assert!(registry.register(schema(5, &["a", "a"])).is_err());
        }
    }

    #[test]
    fn modes_look_in_their_direction_and_name_what_breaks() {
        let schema = |rate: &str| json!({"type": "object", "properties": {"rate": {"type": rate}}});
        let registry = registry([schema("integer"), schema("number"), schema("number")]);
        let check = |version, mode| registry.check_compatibility("order", version, mode);
        check(2, Compatibility::Backward).unwrap();
        check(2, Compatibility::None).unwrap();
        check(3, Compatibility::Full).unwrap();
        for mode in [Compatibility::Forward, Compatibility::Full] {
            let reason = violation(check(2, mode));
            assert_eq!(
                reason,
                format!("not {mode:?}-compatible with v1: /rate: v2 allows number, v1 does not")
            );
        }
        assert!(registry.check_compatibility_with_all("order", 3, Compatibility::Full).is_err());
        let strict = JsonSchemaRegistry::with_rules(SchemaRules::new().compatibility(Compatibility::Forward));
        strict.register_json("order", 1, schema("integer")).unwrap();
        assert!(violation(strict.register_json("order", 2, schema("number"))).contains("/rate"));
    }

    #[test]
    fn a_folder_is_loaded_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| std::fs::write(folder.path().join(name), content).unwrap();
        write("market.quote.v1.json", r#"{"type": "object", "title": "a quote"}"#);
        write("market.quote.v2.json", r#"{"type": "object", "required": ["rate"]}"#);
        write("README.md", "not a schema");
        std::fs::create_dir(folder.path().join("old.json")).unwrap();
        let registry = JsonSchemaRegistry::new();
        assert_eq!(registry.load_folder(folder.path()).unwrap(), 2);
        assert_eq!(registry.latest_version("market.quote").unwrap(), Some(2));
        assert_eq!(registry.get("market.quote", 1).unwrap().unwrap().description, "a quote");

        for (name, content, rule) in [
            ("order.json", "{}", "{event type}.v{version}.json"),
            ("order.vx.json", "{}", "{event type}.v{version}.json"),
            ("order.v99999999999.json", "{}", "{event type}.v{version}.json"),
            (".v1.json", "{}", "must not be empty"),
            ("order.v0.json", "{}", "at least 1"),
            ("order.v1.json", "", "EOF"),
            ("order.v01.json", "{}", "{event type}.v{version}.json"),
            ("order.v+1.json", "{}", "{event type}.v{version}.json"),
            ("order.v1.json", r#"{"type": "object", "type": "string"}"#, "key \"type\" is given twice"),
            ("order.v1.json", "{} x", "trailing"),
            ("order.v1.json", "{\"minimum\": 1e400}", "out of range"),
            ("order.v1.json", "\u{feff}{}", "expected value"),
            ("order.v1.json", &"[".repeat(200), "recursion limit"),
            ("order.v1.json", "{\"type\": 5}", "not a JSON Schema"),
        ] {
            write(name, content);
            let registry = JsonSchemaRegistry::new();
            let text = config_error(registry.load_folder(folder.path()));
            assert!(text.contains(name) && text.contains(rule), "{text}");
            assert!(registry.list_types().unwrap().is_empty());
            std::fs::remove_file(folder.path().join(name)).unwrap();
        }
        let rules = SchemaRules::new().compatibility(Compatibility::Backward);
        let strict = JsonSchemaRegistry::with_rules(rules);
        assert!(matches!(
            strict.load_folder(folder.path()),
            Err(EventError::SchemaValidation { version: 2, .. })
        ));
        assert!(strict.list_types().unwrap().is_empty());
        config_error(registry.load_folder(folder.path().join("absent")));
    }

    #[cfg(feature = "schemars")]
    #[test]
    fn types_of_rust_evolve() {
        #[derive(schemars::JsonSchema)]
        #[expect(dead_code, reason = "only its schema is used")]
        struct Quote<Side> {
            symbol: String,
            rate: f64,
            side: Side,
            note: Option<String>,
            legs: Vec<Leg>,
        }
        #[derive(schemars::JsonSchema)]
        #[expect(dead_code, reason = "only its schema is used")]
        struct Leg {
            size: u32,
        }
        #[derive(schemars::JsonSchema)]
        #[expect(dead_code, reason = "only its schema is used")]
        enum TwoSides {
            Bid,
            Ask,
        }
        #[derive(schemars::JsonSchema)]
        #[expect(dead_code, reason = "only its schema is used")]
        enum ThreeSides {
            /// With a description each value stands by itself.
            Bid,
            Ask,
            Mid,
        }
        let registry = JsonSchemaRegistry::new();
        registry.register_type::<Quote<TwoSides>>("order", 1).unwrap();
        registry.register_type::<Quote<ThreeSides>>("order", 2).unwrap();
        registry.register_type::<Quote<Option<ThreeSides>>>("order", 3).unwrap();
        for version in [2, 3] {
            let check = |mode| registry.check_compatibility_with_all("order", version, mode);
            check(Compatibility::Backward).unwrap();
            let reason = violation(check(Compatibility::Forward));
            assert!(reason.contains("/side"), "{reason}");
        }
        let quote = |side: &str| json!({"symbol": "A", "rate": 1.0, "side": side, "legs": [{"size": 1}]});
        registry.validate(&event(2, quote("Mid"))).unwrap();
        assert!(violation(registry.validate(&event(1, quote("Mid")))).contains("/side"));
    }
}
