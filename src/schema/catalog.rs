//! The part that all registries share: definitions by type and version, rules, and a count of unknown events.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;

use super::{Compatibility, EventSchema, SchemaRules};
use crate::error::{EventError, Result};
use crate::text::shorten;
use crate::types::Event;

/// Maximum number of required fields of a schema.
const MAX_REQUIRED_FIELDS: usize = 1_000;

/// A registered schema in any schema language.
pub(super) trait Definition {
    /// Returns the event type, version and required fields.
    fn schema(&self) -> &EventSchema;

    /// Checks a payload. The error says what is wrong without showing values.
    fn check(&self, payload: &Value) -> std::result::Result<(), String>;

    /// Returns why this version is not compatible with an older one; `None` if it is.
    fn incompatibility(&self, old: &Self, mode: Compatibility) -> Option<String>;
}

/// Implements the methods of [`SchemaRegistry`](super::SchemaRegistry) that the catalog provides.
macro_rules! leave_to_catalog {
    () => {
        fn latest_version(&self, event_type: &str) -> Result<Option<u32>> {
            self.catalog.latest_version(event_type)
        }

        fn list_types(&self) -> Result<Vec<String>> {
            self.catalog.list_types()
        }

        fn validate(&self, event: &Event) -> Result<()> {
            self.catalog.validate(event)
        }

        fn check_compatibility(&self, event_type: &str, version: u32, mode: Compatibility) -> Result<()> {
            self.catalog.check_compatibility(event_type, version, mode, false)
        }

        fn check_compatibility_with_all(
            &self,
            event_type: &str,
            version: u32,
            mode: Compatibility,
        ) -> Result<()> {
            self.catalog.check_compatibility(event_type, version, mode, true)
        }
    };
}

pub(super) use leave_to_catalog;

/// Definitions by event type and version.
#[derive(Debug)]
pub(super) struct Catalog<D> {
    types: RwLock<Versions<D>>,
    rules: SchemaRules,
    unknown: AtomicU64,
}

/// Definitions of each event type, by version.
type Versions<D> = HashMap<String, BTreeMap<u32, Arc<D>>>;

impl<D> Default for Catalog<D> {
    fn default() -> Self {
        Self { types: RwLock::default(), rules: SchemaRules::default(), unknown: AtomicU64::new(0) }
    }
}

impl<D: Definition> Catalog<D> {
    pub(super) fn with_rules(rules: SchemaRules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Adds all definitions, or none if one of them breaks a rule.
    pub(super) fn register(&self, definitions: impl IntoIterator<Item = D>) -> Result<()> {
        let mut types = self.write()?;
        let mut changed: Versions<D> = HashMap::new();
        for definition in definitions {
            let event_type = &definition.schema().event_type;
            let versions = changed
                .entry(event_type.clone())
                .or_insert_with(|| types.get(event_type).cloned().unwrap_or_default());
            if let Some((mode, with_all)) = self.rules.compatibility {
                check_neighbours(versions, &definition, mode, with_all)?;
            }
            versions.insert(definition.schema().version, Arc::new(definition));
        }
        types.extend(changed);
        Ok(())
    }

    pub(super) fn get(&self, event_type: &str, version: u32) -> Result<Option<Arc<D>>> {
        let types = self.read()?;
        Ok(types.get(event_type).and_then(|versions| versions.get(&version)).cloned())
    }

    pub(super) fn latest_version(&self, event_type: &str) -> Result<Option<u32>> {
        let types = self.read()?;
        Ok(types.get(event_type).and_then(|versions| versions.keys().next_back()).copied())
    }

    pub(super) fn list_types(&self) -> Result<Vec<String>> {
        let mut types: Vec<String> = self.read()?.keys().cloned().collect();
        types.sort_unstable();
        Ok(types)
    }

    pub(super) fn validate(&self, event: &Event) -> Result<()> {
        // The definition is cloned, so that a long check does not hold the lock.
        match self.get(&event.event_type, event.version)? {
            Some(definition) => {
                definition.check(&event.payload).map_err(|reason| violation(definition.schema(), reason))
            }
            None => {
                self.unknown.fetch_add(1, Ordering::Relaxed);
                self.refuse_if_strict(event)
            }
        }
    }

    fn refuse_if_strict(&self, event: &Event) -> Result<()> {
        if !self.rules.strict {
            return Ok(());
        }
        Err(EventError::SchemaValidation {
            event_type: shorten(&event.event_type),
            version: event.version,
            reason: "no schema is registered for it, and the registry is strict".to_owned(),
        })
    }

    pub(super) fn unknown_count(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    pub(super) fn check_compatibility(
        &self,
        event_type: &str,
        new_version: u32,
        mode: Compatibility,
        with_all: bool,
    ) -> Result<()> {
        let types = self.read()?;
        let Some((versions, new)) =
            types.get(event_type).and_then(|versions| Some((versions, versions.get(&new_version)?)))
        else {
            return Ok(());
        };
        let first = if with_all { 0 } else { new_version.saturating_sub(1) };
        versions.range(first..new_version).try_for_each(|(_, old)| check_change(&**old, &**new, mode))
    }

    fn read(&self) -> Result<RwLockReadGuard<'_, Versions<D>>> {
        self.types.read().map_err(poisoned)
    }

    #[cfg(test)]
    pub(super) fn lock_for_writing(&self) -> impl Sized + '_ {
        self.types.write().unwrap()
    }

    fn write(&self) -> Result<RwLockWriteGuard<'_, Versions<D>>> {
        self.types.write().map_err(poisoned)
    }
}

fn check_neighbours<D: Definition>(
    versions: &BTreeMap<u32, Arc<D>>,
    new: &D,
    mode: Compatibility,
    with_all: bool,
) -> Result<()> {
    let version = new.schema().version;
    for (other, definition) in versions {
        if !with_all && other.abs_diff(version) > 1 {
            continue;
        }
        match other.cmp(&version) {
            std::cmp::Ordering::Less => check_change(&**definition, new, mode)?,
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => check_change(new, &**definition, mode)?,
        }
    }
    Ok(())
}

fn check_change<D: Definition>(old: &D, new: &D, mode: Compatibility) -> Result<()> {
    match new.incompatibility(old, mode) {
        None => Ok(()),
        Some(difference) => {
            let old = old.schema().version;
            let reason = format!("not {mode:?}-compatible with v{old}: {difference}");
            Err(violation(new.schema(), reason))
        }
    }
}

fn poisoned<T>(_error: PoisonError<T>) -> EventError {
    EventError::Provider("the schema registry is unusable: a thread panicked while it changed it".to_owned())
}

/// Checks the event type, version and required fields of a definition.
pub(super) fn check_definition(schema: &EventSchema) -> Result<()> {
    if schema.event_type.is_empty() {
        return Err(refused(schema, "the event type must not be empty"));
    }
    if schema.version == 0 {
        return Err(refused(schema, "the version must be at least 1"));
    }
    let count = schema.required_fields.len();
    if count > MAX_REQUIRED_FIELDS {
        return Err(refused(
            schema,
            format!("{count} required fields, at most {MAX_REQUIRED_FIELDS} are allowed"),
        ));
    }
    let mut seen = HashSet::with_capacity(count);
    for field in &schema.required_fields {
        if field.is_empty() {
            return Err(refused(schema, "a required field must not have an empty name"));
        }
        if !seen.insert(field) {
            return Err(refused(schema, format!("required field '{}' is named twice", shorten(field))));
        }
    }
    Ok(())
}

/// Returns the error for a refused definition.
pub(super) fn refused(schema: &EventSchema, rule: impl std::fmt::Display) -> EventError {
    let (event_type, version) = (shorten(&schema.event_type), schema.version);
    EventError::Config(format!("schema of event type '{event_type}' v{version}: {rule}"))
}

fn violation(schema: &EventSchema, reason: String) -> EventError {
    EventError::SchemaValidation { event_type: shorten(&schema.event_type), version: schema.version, reason }
}

/// Joins at most ten things into one text; `None` if there are none. It formats only the listed things and stops
/// counting the others at a limit, because a large payload can break a rule in every place.
pub(super) fn listed<T>(
    things: impl IntoIterator<Item = T>,
    write: impl Fn(T) -> String,
    separator: &str,
) -> Option<String> {
    const LISTED: usize = 10;
    const COUNTED: usize = 1_000;
    let mut things = things.into_iter();
    let mut texts: Vec<String> = things.by_ref().take(LISTED).map(write).collect();
    match things.take(COUNTED + 1).count() {
        0 => {}
        more if more > COUNTED => texts.push(format!("and more than {COUNTED} more")),
        more => texts.push(format!("and {more} more")),
    }
    (!texts.is_empty()).then(|| texts.join(separator))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compatible with an older version if its list is at least as long.
    struct Counted(EventSchema);

    impl Definition for Counted {
        fn schema(&self) -> &EventSchema {
            &self.0
        }
        fn check(&self, _payload: &Value) -> std::result::Result<(), String> {
            Ok(())
        }
        fn incompatibility(&self, old: &Self, _mode: Compatibility) -> Option<String> {
            let shrunk = self.0.required_fields.len() < old.0.required_fields.len();
            shrunk.then(|| "shrunk".to_owned())
        }
    }

    fn counted(version: u32, fields: usize) -> Counted {
        Counted(EventSchema {
            event_type: "t".into(),
            version,
            required_fields: (0..fields).map(|n| n.to_string()).collect(),
            description: String::new(),
        })
    }

    fn catalog(rules: SchemaRules, versions: &[(u32, usize)]) -> (Catalog<Counted>, Result<()>) {
        let catalog = Catalog::with_rules(rules);
        let registered = catalog.register(versions.iter().map(|&(version, fields)| counted(version, fields)));
        (catalog, registered)
    }

    #[test]
    fn a_rule_looks_at_neighbours_or_at_all_versions_on_both_sides() {
        let next = SchemaRules::new().compatibility(Compatibility::Backward);
        let all = SchemaRules::new().compatibility_with_all(Compatibility::Backward);
        for (rules, versions, accepted) in [
            (SchemaRules::new(), [(1, 2), (2, 1), (3, 0)], true),
            (next, [(1, 1), (2, 1), (3, 2)], true),
            (next, [(1, 2), (2, 1), (3, 2)], false),
            (next, [(1, 2), (3, 1), (5, 0)], true),
            (all, [(1, 2), (3, 1), (5, 3)], false),
            (all, [(1, 0), (3, 1), (5, 3)], true),
            // The earlier version is registered later.
            (next, [(2, 1), (1, 2), (3, 3)], false),
            (all, [(5, 1), (1, 2), (3, 3)], false),
        ] {
            let (catalog, registered) = catalog(rules, &versions);
            assert_eq!(registered.is_ok(), accepted, "{rules:?} {versions:?}");
            assert_eq!(catalog.list_types().unwrap().is_empty(), !accepted, "all or nothing");
        }
    }

    #[test]
    fn a_check_looks_at_the_version_before_or_at_all_before() {
        let (catalog, _) = catalog(SchemaRules::new(), &[(1, 3), (2, 1), (3, 2), (5, 0)]);
        let check = |version, with_all| {
            catalog.check_compatibility("t", version, Compatibility::Backward, with_all).is_ok()
        };
        assert_eq!([1, 2, 3, 4, 5].map(|version| check(version, false)), [true, false, true, true, true]);
        assert_eq!([1, 2, 3, 4, 5].map(|version| check(version, true)), [true, false, false, true, false]);
        assert!(check(0, true) && check(u32::MAX, true));
    }
}
