//! Schemas: the required structure of payloads, by event type and version, and the rules for new versions.
//!
//! [`MemorySchemaRegistry`] supports lists of required fields. `JsonSchemaRegistry`, with the feature `json-schema`,
//! supports JSON Schema. See also the [guide](crate::docs::schema_evolution).

mod catalog;
#[cfg(feature = "json-schema")]
mod inclusion;
#[cfg(feature = "json-schema")]
mod json;
mod memory;
#[cfg(feature = "json-schema")]
mod references;

#[cfg(feature = "json-schema")]
#[cfg_attr(docsrs, doc(cfg(feature = "json-schema")))]
pub use json::JsonSchemaRegistry;
pub use memory::MemorySchemaRegistry;

use crate::error::{EventError, Result};
use crate::types::Event;

/// The required payload fields of one version of an event type.
#[derive(Debug, Clone)]
pub struct EventSchema {
    /// Event type of the schema; not empty.
    pub event_type: String,
    /// Version of the schema, at least 1.
    pub version: u32,
    /// Names of the top-level fields that must be present and not null. At most 1,000, without duplicates.
    pub required_fields: Vec<String>,
    /// Description of the event for human readers.
    pub description: String,
}

/// Compatibility of a new version of a schema with the version before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compatibility {
    /// Readers of the new version can read old events: no field becomes required. The default.
    #[default]
    Backward,
    /// Readers of the old version can read new events: every required field stays required.
    Forward,
    /// Backward and forward. A list of required fields stays exactly as it is, including its order.
    Full,
    /// No requirement.
    None,
}

/// Stores schemas and validates events against them. Its methods are called from many tasks at once. Validation
/// performs no I/O.
pub trait SchemaRegistry: Send + Sync {
    /// Adds a schema and replaces an earlier one of the same type and version.
    ///
    /// The registry checks compatibility here only if it has a rule for it, such as [`SchemaRules::compatibility`].
    /// Otherwise call [`check_compatibility`](SchemaRegistry::check_compatibility) yourself.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for an invalid definition:
    ///
    /// - an empty event type or version 0;
    /// - an empty or repeated field name;
    /// - more than 1,000 fields.
    fn register(&self, schema: EventSchema) -> Result<()>;

    /// Returns the schema of one version, if it is registered.
    ///
    /// # Errors
    ///
    /// The error of the registry's backend.
    fn get(&self, event_type: &str, version: u32) -> Result<Option<EventSchema>>;

    /// Returns the highest registered version of a type, if there is one.
    ///
    /// # Errors
    ///
    /// The error of the registry's backend.
    fn latest_version(&self, event_type: &str) -> Result<Option<u32>>;

    /// Returns all registered event types, sorted.
    ///
    /// # Errors
    ///
    /// The error of the registry's backend.
    fn list_types(&self) -> Result<Vec<String>>;

    /// Validates an event whose payload is not encrypted.
    ///
    /// Unless the registry is strict, an event without a schema passes. That is an event without a type, of an unknown
    /// type, or of an unknown version of a known type.
    ///
    /// # Errors
    ///
    /// [`EventError::SchemaValidation`] that names the fields and the rule, never a value.
    fn validate(&self, event: &Event) -> Result<()>;

    /// Checks a registered version against the version just before it, `new_version - 1`.
    ///
    /// The check passes if one of the two versions is not registered. Version 1 always passes.
    ///
    /// # Errors
    ///
    /// [`EventError::SchemaValidation`] that names the fields that break `mode`.
    fn check_compatibility(&self, event_type: &str, new_version: u32, mode: Compatibility) -> Result<()>;

    /// Checks a registered version against every registered version before it. Use this for streams that keep events of
    /// all of them.
    ///
    /// # Errors
    ///
    /// As [`check_compatibility`](SchemaRegistry::check_compatibility), for the first version that is not compatible.
    /// [`EventError::Unsupported`] if the registry does not implement this check.
    fn check_compatibility_with_all(
        &self,
        event_type: &str,
        new_version: u32,
        mode: Compatibility,
    ) -> Result<()> {
        let _ = (event_type, new_version, mode);
        Err(EventError::Unsupported {
            option: "check_compatibility_with_all".to_owned(),
            provider: "schema registry".to_owned(),
        })
    }
}

/// Rules of a registry. Without rules, a registry accepts every change of a schema and every event without a schema.
///
/// ```
/// use a3s_event::schema::SchemaRules;
/// use a3s_event::{Compatibility, Event, EventSchema, MemorySchemaRegistry, SchemaRegistry};
///
/// # fn main() -> a3s_event::Result<()> {
/// let rules = SchemaRules::new().strict().compatibility(Compatibility::Backward);
/// let registry = MemorySchemaRegistry::with_rules(rules);
/// let schema = |version, fields: &[&str]| EventSchema {
///     event_type: "market.quote".to_owned(),
///     version,
///     required_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
///     description: String::new(),
/// };
/// registry.register(schema(1, &["symbol"]))?;
/// assert!(registry.register(schema(2, &["symbol", "rate"])).is_err(), "old events have no rate");
///
/// let unknown = Event::typed("events.a.b", "a", "market.trade", 1, "", "", serde_json::json!({}));
/// assert!(registry.validate(&unknown).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[must_use]
pub struct SchemaRules {
    strict: bool,
    /// Mode that a new version must satisfy. If the flag is true, it applies against all versions, otherwise against
    /// its neighbours.
    compatibility: Option<(Compatibility, bool)>,
}

impl SchemaRules {
    /// Creates an empty set of rules.
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses events whose type and version have no schema, including events without a type.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Refuses to register a version that is not compatible with the version just before or just after it.
    pub fn compatibility(mut self, mode: Compatibility) -> Self {
        self.compatibility = Some((mode, false));
        self
    }

    /// Refuses to register a version that is not compatible with every other one.
    pub fn compatibility_with_all(mut self, mode: Compatibility) -> Self {
        self.compatibility = Some((mode, true));
        self
    }
}
