//! Schemas: what the payload of an event type must look like, per version, and how versions may differ.
//!
//! [`MemorySchemaRegistry`] knows lists of required fields; `JsonSchemaRegistry`, with the feature `json-schema`, knows JSON
//! Schema. [Schemas and how they change](crate::docs::schema_evolution) is the guide.

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
    /// Both. For lists of required fields: the list stays exactly as it is, including its order.
    Full,
    /// Anything goes.
    None,
}

/// Keeps schemas and checks events against them. Called from many tasks at once; it performs no I/O while it validates.
pub trait SchemaRegistry: Send + Sync {
    /// Adds a schema, replacing an earlier one of the same type and version.
    ///
    /// Compatibility is checked here only where the registry was told so, as by
    /// [`SchemaRules::compatibility`]; otherwise call
    /// [`check_compatibility`](SchemaRegistry::check_compatibility) where it matters.
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
    /// Unless the registry was told to be strict, only what is registered can fail: an event without a type, of an unknown
    /// type, or of an unknown version of a known type passes.
    ///
    /// # Errors
    ///
    /// [`EventError::SchemaValidation`] that names the fields and the rule, never a value.
    fn validate(&self, event: &Event) -> Result<()>;

    /// Checks a registered version against the version just before it, `new_version - 1`.
    ///
    /// Where one of the two is not registered there is nothing to compare, and the check passes; so does version 1.
    ///
    /// # Errors
    ///
    /// [`EventError::SchemaValidation`] that names the fields which break `mode`.
    fn check_compatibility(&self, event_type: &str, new_version: u32, mode: Compatibility) -> Result<()>;

    /// Checks a registered version against every registered version before it: for streams that keep events of all of
    /// them.
    ///
    /// # Errors
    ///
    /// As [`check_compatibility`](SchemaRegistry::check_compatibility), with the first version that differs too much;
    /// [`EventError::Unsupported`] unless implemented.
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

/// What a registry refuses. Without rules it takes every change of a schema and every event without a schema.
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
    /// The mode that a new version must fulfil, and whether against all earlier versions.
    compatibility: Option<(Compatibility, bool)>,
}

impl SchemaRules {
    /// No rules.
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses events for whose type and version there is no schema, also those without a type.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Refuses to register a version that is not compatible with the ones just before and after it.
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
