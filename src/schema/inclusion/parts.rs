//! Parts of schemas: fields, references, types, listed values and bounds.

use serde_json::{Map, Number, Value};

/// Keywords under which schemas keep definitions to refer to.
pub(super) const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// Keywords that narrow a schema. All others are annotations.
pub(super) const ASSERTIONS: [&str; 43] = [
    "$dynamicRef",
    "$recursiveRef",
    "$ref",
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "contains",
    "contentEncoding",
    "contentMediaType",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "if",
    "items",
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minContains",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "not",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "required",
    "then",
    "type",
    "uniqueItems",
];

/// Returns the names of the required fields.
pub(super) fn names(schema: &Map<String, Value>) -> Vec<&str> {
    let names = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    names.filter_map(Value::as_str).collect()
}

pub(super) fn fields(schema: &Map<String, Value>) -> Option<&Map<String, Value>> {
    schema.get("properties").and_then(Value::as_object)
}

/// Returns true if objects need more fields than the schema declares. Then undeclared fields are written.
pub(super) fn writes_others(schema: &Map<String, Value>) -> bool {
    let declared = fields(schema).map_or(0, Map::len);
    let least = schema.get("minProperties").and_then(Value::as_f64).unwrap_or(0.0);
    #[allow(clippy::cast_precision_loss, reason = "no schema has so many fields")]
    let is_more = least > declared as f64;
    is_more
}

/// Returns a keyword beside `properties` that mentions this field. Such a field may be written.
pub(super) fn speaks_of(schema: &Map<String, Value>, name: &str) -> Option<&'static str> {
    const SPEAKERS: [&str; 8] = [
        "if",
        "then",
        "else",
        "not",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "propertyNames",
    ];
    // This keyword applies to all fields.
    if schema
        .get("unevaluatedProperties")
        .is_some_and(|others| !is_anything(others) && *others != Value::Bool(false))
    {
        return Some("unevaluatedProperties");
    }
    SPEAKERS.into_iter().find(|keyword| schema.get(*keyword).is_some_and(|part| names_field(part, name)))
}

fn names_field(part: &Value, name: &str) -> bool {
    match part {
        Value::String(text) => text == name,
        // The reference may lead to any schema.
        Value::Object(fields) if fields.contains_key("$ref") => true,
        Value::Object(fields) => fields.iter().any(|(key, value)| key == name || names_field(value, name)),
        Value::Array(items) => items.iter().any(|item| names_field(item, name)),
        _ => false,
    }
}

pub(super) fn is_anything(schema: &Value) -> bool {
    match schema {
        Value::Bool(anything) => *anything,
        Value::Object(schema) => !schema.keys().any(|keyword| is_assertion(keyword)),
        _ => false,
    }
}

fn is_assertion(keyword: &str) -> bool {
    ASSERTIONS.binary_search(&keyword).is_ok() || keyword.starts_with("unevaluated")
}

/// Follows references inside the schema. `None` if one leads elsewhere or in a circle, or has assertions beside it.
pub(super) fn resolve<'a>(root: &'a Value, mut schema: &'a Value) -> Option<(&'a Value, Option<&'a str>)> {
    const LONGEST_CHAIN: usize = 32;
    let mut last = None;
    for _ in 0..LONGEST_CHAIN {
        let Some(reference) = schema.get("$ref") else { return Some((schema, last)) };
        let stands_alone =
            schema.as_object()?.keys().all(|keyword| keyword == "$ref" || !is_assertion(keyword));
        let pointer = reference.as_str()?.strip_prefix('#')?;
        if !stands_alone || pointer.contains('%') || !(pointer.is_empty() || pointer.starts_with('/')) {
            return None;
        }
        last = reference.as_str();
        schema = root.pointer(pointer)?;
    }
    None
}

pub(super) fn has_reference(schema: &Value) -> bool {
    match schema {
        Value::Array(items) => items.iter().any(has_reference),
        Value::Object(fields) => {
            fields.iter().any(|(name, value)| name.ends_with("Ref") || name == "$ref" || has_reference(value))
        }
        _ => false,
    }
}

/// Returns the direct parts of a schema or of a part of one.
fn parts(schema: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match schema {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        _ => Box::new(std::iter::empty()),
    }
}

/// Returns true if a reference leads to a place other than the definitions.
pub(super) fn has_reference_elsewhere(schema: &Value) -> bool {
    let is_elsewhere = |reference: &str| {
        !DEFINITIONS.iter().any(|definitions| reference.starts_with(&format!("#/{definitions}/")))
    };
    schema.get("$ref").and_then(Value::as_str).is_some_and(is_elsewhere)
        || schema.get("$dynamicRef").is_some()
        || schema.get("$recursiveRef").is_some()
        || parts(schema).any(has_reference_elsewhere)
}

/// Merges two schemas into one that asserts both. Returns `None` if they differ in a keyword or cannot be merged.
pub(super) fn merge(root: &Value, mut all: Map<String, Value>, part: &Value) -> Option<Map<String, Value>> {
    match resolve(root, part)?.0 {
        Value::Bool(true) => {}
        Value::Object(part) => {
            for (keyword, value) in part.iter().filter(|(keyword, _)| is_assertion(keyword)) {
                if all.get(keyword).is_some_and(|existing| existing != value) {
                    return None;
                }
                all.insert(keyword.clone(), value.clone());
            }
            // Keywords about fields or items that one side uses must not be combined with those of the other side.
            let splits = |keywords: &[&str]| {
                let own = keywords.iter().filter(|keyword| part.contains_key(**keyword)).count();
                let total = keywords.iter().filter(|keyword| all.contains_key(**keyword)).count();
                own != 0 && own != total
            };
            if splits(&["properties", "patternProperties", "additionalProperties"])
                || splits(&["items", "prefixItems", "additionalItems"])
                || splits(&["if", "then", "else"])
                || splits(&["contains", "minContains", "maxContains"])
            {
                return None;
            }
        }
        _ => return None,
    }
    Some(all)
}

/// Returns the values that a schema allows, if it lists them or they can be listed.
pub(super) fn finite(schema: &Map<String, Value>) -> Option<Vec<&Value>> {
    const NULL: &Value = &Value::Null;
    const NO: &Value = &Value::Bool(false);
    const YES: &Value = &Value::Bool(true);
    if let Some(value) = schema.get("const") {
        return Some(vec![value]);
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return Some(values.iter().collect());
    }
    let types = Types::of(schema);
    let values = [(Types::NULL, NULL), (Types::BOOLEAN, NO), (Types::BOOLEAN, YES)];
    let is_small =
        schema.contains_key("type") && types.without(Types(Types::NULL | Types::BOOLEAN)).names().is_empty();
    is_small
        .then(|| values.into_iter().filter(|(kind, _)| types.has(*kind)).map(|(_, value)| value).collect())
}

fn have_common(a: &[&Value], b: &[&Value]) -> bool {
    a.iter().any(|a| b.iter().any(|b| is_equal(a, b)))
}

/// Returns true if two values are equal in JSON Schema, where 1 and 1.0 are the same number.
fn is_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (integer(a), integer(b)) {
            (Some(a), Some(b)) => a == b,
            // Numbers this close may count as the same.
            _ => a.as_f64().zip(b.as_f64()).is_none_or(|(a, b)| (a - b).abs() <= f64::EPSILON * a.abs()),
        },
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| is_equal(a, b)))
        }
        _ => a == b,
    }
}

/// Returns true if no value fits both schemas:
/// - they have no type or no listed value in common;
/// - they both require a field whose listed values differ;
/// - one requires a field that the other forbids.
pub(super) fn exclude_each_other(root: &Value, a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let alternatives = |schema: &Map<String, Value>| {
        ["$ref", "anyOf", "oneOf"].iter().any(|keyword| schema.contains_key(*keyword))
    };
    match (finite(a), finite(b)) {
        (Some(a), Some(b)) => return !have_common(&a, &b),
        (Some(values), None) | (None, Some(values)) => {
            let other = if finite(a).is_some() { b } else { a };
            let types = Types::of(other);
            return other.contains_key("type")
                && !values.iter().any(|value| types.has(Types::kind_of(value)));
        }
        (None, None) => {}
    }
    let (a_types, b_types) = (Types::of(a), Types::of(b));
    if a_types.0 & b_types.0 == 0 {
        return true;
    }
    if a_types.0 & b_types.0 != Types::OBJECT || alternatives(a) || alternatives(b) {
        return false;
    }
    let (a_required, b_required) = (names(a), names(b));
    let is_told_apart = |name: &&str| {
        let field = |schema| -> Option<&Map<String, Value>> {
            resolve(root, fields(schema)?.get(*name)?)?.0.as_object()
        };
        b_required.contains(name)
            && field(a)
                .zip(field(b))
                .is_some_and(|(a, b)| finite(a).zip(finite(b)).is_some_and(|(a, b)| !have_common(&a, &b)))
    };
    let forbids = |schema: &Map<String, Value>, name: &str| {
        schema.get("additionalProperties") == Some(&Value::Bool(false))
            && !schema.contains_key("patternProperties")
            && !fields(schema).is_some_and(|fields| fields.contains_key(name))
    };
    a_required.iter().any(is_told_apart)
        || a_required.iter().any(|name| forbids(b, name))
        || b_required.iter().any(|name| forbids(a, name))
}

/// A set of types, where integers and other numbers are separate members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Types(u8);

impl Types {
    const NULL: u8 = 1;
    const BOOLEAN: u8 = 2;
    pub(super) const OBJECT: u8 = 4;
    pub(super) const ARRAY: u8 = 8;
    pub(super) const STRING: u8 = 16;
    const INTEGER: u8 = 32;
    pub(super) const FRACTION: u8 = 64;
    pub(super) const NUMBER: u8 = Self::INTEGER | Self::FRACTION;
    const ALL: u8 = 127;

    pub(super) fn of(schema: &Map<String, Value>) -> Self {
        Self(match schema.get("type") {
            Some(Value::String(name)) => Self::named(name),
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).map(Self::named).fold(0, |all, one| all | one)
            }
            _ => Self::ALL,
        })
    }

    fn named(name: &str) -> u8 {
        match name {
            "null" => Self::NULL,
            "boolean" => Self::BOOLEAN,
            "object" => Self::OBJECT,
            "array" => Self::ARRAY,
            "string" => Self::STRING,
            "integer" => Self::INTEGER,
            "number" => Self::NUMBER,
            _ => 0,
        }
    }

    fn kind_of(value: &Value) -> u8 {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Object(_) => Self::OBJECT,
            Value::Array(_) => Self::ARRAY,
            Value::String(_) => Self::STRING,
            // 1.0 is an integer too.
            Value::Number(_) => Self::NUMBER,
        }
    }

    pub(super) fn has(self, kind: u8) -> bool {
        self.0 & kind != 0
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Returns the names of the types. A number that is not an integer is a `number`.
    pub(super) fn names(self) -> Vec<&'static str> {
        let all = [
            (Self::NULL, "null"),
            (Self::BOOLEAN, "boolean"),
            (Self::OBJECT, "object"),
            (Self::ARRAY, "array"),
            (Self::STRING, "string"),
            (Self::FRACTION, "number"),
            (Self::INTEGER, "integer"),
        ];
        let is_named = |kind: u8| self.has(kind) && !(kind == Self::INTEGER && self.has(Self::FRACTION));
        all.into_iter().filter(|(kind, _)| is_named(*kind)).map(|(_, name)| name).collect()
    }
}

/// A limit on numbers.
#[derive(Clone, Copy)]
pub(super) struct Bound<'a> {
    value: &'a Number,
    is_exclusive: bool,
}

impl<'a> Bound<'a> {
    /// Returns the tighter of the two keywords. Returns an error for the form of draft 4, where the exclusive keyword
    /// is a boolean.
    pub(super) fn of(
        schema: &'a Map<String, Value>,
        inclusive: &str,
        exclusive: &str,
        is_lower: bool,
    ) -> Result<Option<Self>, ()> {
        let number = |keyword: &str| match schema.get(keyword) {
            None => Ok(None),
            Some(Value::Number(value)) => Ok(Some(value)),
            Some(_) => Err(()),
        };
        let inclusive = number(inclusive)?.map(|value| Self { value, is_exclusive: false });
        let exclusive = number(exclusive)?.map(|value| Self { value, is_exclusive: true });
        Ok(match (inclusive, exclusive) {
            (Some(a), Some(b)) => Some(if a.is_tighter_than(b, is_lower) { a } else { b }),
            (a, b) => a.or(b),
        })
    }

    pub(super) fn is_tighter_than(self, other: Self, is_lower: bool) -> bool {
        let (less, equal) = match (integer(self.value), integer(other.value)) {
            (Some(a), Some(b)) => (a < b, a == b),
            _ => {
                let (a, b) =
                    (self.value.as_f64().unwrap_or(f64::NAN), other.value.as_f64().unwrap_or(f64::NAN));
                (a < b, (a - b).abs() == 0.0)
            }
        };
        if equal { self.is_exclusive && !other.is_exclusive } else { less != is_lower }
    }
}

fn integer(number: &Number) -> Option<i128> {
    number.as_i64().map(i128::from).or(number.as_u64().map(i128::from))
}
