//! Whether one JSON Schema allows all that another one allows, decided on their structure.
//!
//! The answer "no difference" can be relied on, with one deliberate exception: a field that a schema does not declare
//! counts as not written by those who follow it. Otherwise adding an optional field to a schema that allows further fields,
//! as nearly all do, would be a difference, because somebody may have written a field of that name with another type.
//!
//! The other answer may be wrong: what is not compared field by field, such as `not` or `if`, must be equal on both sides,
//! and is reported as not comparable otherwise.

use serde_json::{Map, Number, Value};

use super::json::compile;
use crate::error::shorten;

/// Comparisons of two places in the schemas after which the whole is given up. Alternatives are tried each against each.
const MAX_STEPS: usize = 20_000;
/// Levels that are compared within each other, references followed.
const MAX_DEPTH: usize = 128;
/// Values of a list that are tried one by one.
const MAX_LISTED: usize = 1_000;

/// What `from` allows and `to` does not, each as a sentence with the place in it. Each schema comes with its name.
pub(super) fn differences(from: (&Value, &str), to: (&Value, &str)) -> Vec<String> {
    if from.0 == to.0 {
        return Vec::new();
    }
    let definitions_are_same = DEFINITIONS.iter().all(|name| from.0.get(name) == to.0.get(name));
    let mut comparison = Comparison {
        from: from.0,
        to: to.0,
        names: (from.1, to.1),
        same_references: definitions_are_same && ![from.0, to.0].into_iter().any(has_reference_elsewhere),
        referenced: Vec::new(),
        steps: 0,
        depth: 0,
        found: Vec::new(),
    };
    comparison.compare(from.0, to.0, "");
    if comparison.steps > MAX_STEPS {
        return vec!["the schemas are too deep or have too many alternatives to be compared".to_owned()];
    }
    comparison.found
}

/// Where schemas keep what they refer to.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// Keywords that narrow a schema. All others are annotations.
const ASSERTIONS: [&str; 43] = [
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

/// Keywords that are not looked into: the same on both sides, or not comparable.
const OPAQUE: [&str; 18] = [
    "not",
    "if",
    "then",
    "else",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "propertyNames",
    "contains",
    "minContains",
    "maxContains",
    "additionalItems",
    "patternProperties",
    "contentEncoding",
    "contentMediaType",
    "pattern",
    "$dynamicRef",
    "$recursiveRef",
];

/// Formats that are a hint for a programming language and assert nothing.
const NUMBER_FORMATS: [&str; 14] = [
    "int8", "int16", "int32", "int64", "int128", "int", "uint8", "uint16", "uint32", "uint64", "uint128",
    "uint", "float", "double",
];

struct Comparison<'a> {
    from: &'a Value,
    to: &'a Value,
    names: (&'a str, &'a str),
    /// Whether the same reference means the same on both sides.
    same_references: bool,
    /// Pairs of references that are being compared: where schemas refer to themselves, a pair that is met again inside of
    /// itself adds nothing.
    referenced: Vec<(String, String)>,
    steps: usize,
    depth: usize,
    found: Vec<String>,
}

impl Comparison<'_> {
    fn report(&mut self, path: &str, what: &str) {
        let path = if path.is_empty() { "/".to_owned() } else { shorten(path) };
        self.found.push(format!("{path}: {what}"));
    }

    /// `from` allows something here that `to` does not.
    fn lost(&mut self, path: &str, what: &str) {
        let (from, to) = self.names;
        self.report(path, &format!("{from} allows {what}, {to} does not"));
    }

    fn not_comparable(&mut self, path: &str, keyword: &str) {
        self.report(path, &format!("'{keyword}' cannot be compared"));
    }

    /// Whether all that `from` allows is allowed by `to`, without a report.
    fn fits(&mut self, from: &Value, to: &Value) -> bool {
        let outer = std::mem::take(&mut self.found);
        self.compare(from, to, "");
        std::mem::replace(&mut self.found, outer).is_empty()
    }

    /// Whether two parts are the same text and mean the same.
    fn is_same(&self, from: Option<&Value>, to: Option<&Value>) -> bool {
        from == to && (self.same_references || !from.is_some_and(has_reference))
    }

    fn compare(&mut self, from: &Value, to: &Value, path: &str) {
        self.steps += 1;
        if self.depth == MAX_DEPTH {
            self.steps = MAX_STEPS + 1;
        }
        if self.steps > MAX_STEPS || is_anything(to) || self.is_same(Some(from), Some(to)) {
            return;
        }
        let (from_root, to_root) = (self.from, self.to);
        let (Some((from, from_reference)), Some((to, to_reference))) =
            (resolve(from_root, from), resolve(to_root, to))
        else {
            return self.not_comparable(path, "$ref");
        };
        let pair = from_reference.zip(to_reference).map(|(from, to)| (from.to_owned(), to.to_owned()));
        if pair.as_ref().is_some_and(|pair| self.referenced.contains(pair)) {
            return;
        }
        let outer = self.referenced.len();
        self.referenced.extend(pair);
        self.depth += 1;
        self.compare_resolved(from, to, path);
        self.depth -= 1;
        self.referenced.truncate(outer);
    }

    fn compare_resolved(&mut self, from: &Value, to: &Value, path: &str) {
        let anything = Map::new();
        let from = match from {
            Value::Bool(false) => return,
            Value::Object(from) => from,
            _ => &anything,
        };
        let to = match to {
            Value::Object(to) => to,
            Value::Bool(false) => return self.lost(path, "a value"),
            _ => return,
        };
        if ["unevaluatedItems", "unevaluatedProperties"].iter().any(|keyword| to.contains_key(*keyword)) {
            // It depends on everything around it.
            return self.not_comparable(path, "unevaluated");
        }
        if let Some(values) = finite(from) {
            return self.compare_values(&values, to, path);
        }
        for keyword in ["anyOf", "oneOf", "allOf"] {
            if let Some(parts) = from.get(keyword).and_then(Value::as_array) {
                return self.compare_parts(from, keyword, parts, to, path);
            }
        }
        for keyword in ["anyOf", "oneOf"] {
            if let Some(branches) = to.get(keyword).and_then(Value::as_array) {
                self.compare_with_branches(from, keyword, branches, path);
            }
        }
        for part in to.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            self.compare(&Value::Object(from.clone()), part, path);
        }
        if to.contains_key("enum") || to.contains_key("const") {
            return self.lost(path, "values that are not listed");
        }
        self.compare_assertions(from, to, path);
    }

    /// `from` has alternatives or parts: each alternative with what stands beside it must fit; of parts, all together.
    fn compare_parts(
        &mut self,
        from: &Map<String, Value>,
        keyword: &str,
        parts: &[Value],
        to: &Map<String, Value>,
        path: &str,
    ) {
        let mut beside = from.clone();
        beside.remove(keyword);
        let to = Value::Object(to.clone());
        let merged: Option<Vec<Value>> = match keyword {
            "allOf" => parts
                .iter()
                .try_fold(beside, |all, part| merge(self.from, all, part))
                .map(|all| vec![Value::Object(all)]),
            _ => parts.iter().map(|part| merge(self.from, beside.clone(), part).map(Value::Object)).collect(),
        };
        match merged {
            Some(alternatives) => {
                for alternative in &alternatives {
                    self.compare(alternative, &to, path);
                }
            }
            None => self.not_comparable(path, keyword),
        }
    }

    /// `to` has alternatives: what `from` allows must fit into one of them, as a whole or type by type.
    fn compare_with_branches(
        &mut self,
        from: &Map<String, Value>,
        keyword: &str,
        branches: &[Value],
        path: &str,
    ) {
        if keyword == "oneOf" && !self.are_disjoint(branches) {
            return self.not_comparable(path, keyword);
        }
        let types = Types::of(from);
        let by_type = types.names().into_iter().map(|name| {
            let mut one = from.clone();
            one.insert("type".to_owned(), name.into());
            Value::Object(one)
        });
        let whole = Value::Object(from.clone());
        let fits_one = |this: &mut Self, from: &Value| branches.iter().any(|branch| this.fits(from, branch));
        if fits_one(self, &whole) {
            return;
        }
        let mut missing = Vec::new();
        for one in by_type {
            if !fits_one(self, &one) {
                missing.push(one.get("type").and_then(Value::as_str).unwrap_or_default().to_owned());
            }
        }
        if !missing.is_empty() {
            let (from, to) = self.names;
            let missing = missing.join(", ");
            self.report(path, &format!("{from} allows what no alternative of {to} allows ({missing})"));
        }
    }

    /// Whether no value can fit into two of the alternatives, as far as their types, listed values and tags tell.
    fn are_disjoint(&self, branches: &[Value]) -> bool {
        let resolved: Option<Vec<&Map<String, Value>>> =
            branches.iter().map(|branch| resolve(self.to, branch)?.0.as_object()).collect();
        let Some(resolved) = resolved else { return false };
        let mut rest = resolved.as_slice();
        while let Some((first, others)) = rest.split_first() {
            if !others.iter().all(|other| exclude_each_other(self.to, first, other)) {
                return false;
            }
            rest = others;
        }
        true
    }

    /// `from` allows just these values.
    fn compare_values(&mut self, values: &[&Value], to: &Map<String, Value>, path: &str) {
        let mut document = Map::new();
        for name in ["$schema", DEFINITIONS[0], DEFINITIONS[1]] {
            if let Some(value) = self.to.get(name) {
                document.insert(name.to_owned(), value.clone());
            }
        }
        document.insert("allOf".to_owned(), Value::Array(vec![Value::Object(to.clone())]));
        let document = Value::Object(document);
        let is_possible = values.len() <= MAX_LISTED && !has_reference_elsewhere(&document);
        let Some(validator) = is_possible.then(|| compile(&document).ok()).flatten() else {
            return self.not_comparable(path, "enum");
        };
        let lost: Vec<String> = values
            .iter()
            .filter(|value| !validator.is_valid(value))
            .map(|value| shorten(&value.to_string()))
            .collect();
        if !lost.is_empty() {
            self.lost(path, &lost.join(", "));
        }
    }

    fn compare_assertions(&mut self, from: &Map<String, Value>, to: &Map<String, Value>, path: &str) {
        let types = Types::of(from);
        for name in types.without(Types::of(to)).names() {
            self.lost(path, name);
        }
        for keyword in OPAQUE {
            if to.contains_key(keyword) && !self.is_same(from.get(keyword), to.get(keyword)) {
                self.not_comparable(path, keyword);
            }
        }
        if to.contains_key("contains") && from.get("minContains") != to.get("minContains") {
            self.not_comparable(path, "minContains");
        }
        if types.has(Types::NUMBER) {
            self.compare_numbers(from, to, types, path);
        }
        if types.has(Types::STRING) {
            self.compare_bounds(from, to, "minLength", "maxLength", path);
            let is_hint = |format: &Value| format.as_str().is_some_and(|name| NUMBER_FORMATS.contains(&name));
            if to.get("format").is_some_and(|format| !is_hint(format) && from.get("format") != Some(format)) {
                self.lost(path, "another format");
            }
        }
        if types.has(Types::ARRAY) {
            self.compare_arrays(from, to, path);
        }
        if types.has(Types::OBJECT) {
            self.compare_objects(from, to, path);
        }
    }

    fn compare_numbers(
        &mut self,
        from: &Map<String, Value>,
        to: &Map<String, Value>,
        types: Types,
        path: &str,
    ) {
        for (inclusive, exclusive, is_lower) in
            [("minimum", "exclusiveMinimum", true), ("maximum", "exclusiveMaximum", false)]
        {
            let bounds = [from, to].map(|schema| Bound::of(schema, inclusive, exclusive, is_lower));
            match bounds {
                [Ok(_), Ok(None)] => {}
                [Ok(Some(from)), Ok(Some(to))] if !to.is_tighter_than(from, is_lower) => {}
                [Err(()), _] | [_, Err(())] => self.not_comparable(path, inclusive),
                _ => self.lost(path, if is_lower { "smaller numbers" } else { "larger numbers" }),
            }
        }
        let Some(step) = to.get("multipleOf") else { return };
        let own = from.get("multipleOf");
        let is_multiple = own == Some(step)
            || (step.as_u64() == Some(1) && !types.has(Types::FRACTION))
            || own
                .and_then(Value::as_u64)
                .zip(step.as_u64())
                .is_some_and(|(own, step)| step != 0 && own % step == 0);
        if !is_multiple {
            self.lost(path, "numbers that are no multiples");
        }
    }

    /// Compares a least and a greatest length or count.
    fn compare_bounds(
        &mut self,
        from: &Map<String, Value>,
        to: &Map<String, Value>,
        least: &str,
        most: &str,
        path: &str,
    ) {
        let count = |schema: &Map<String, Value>, keyword: &str| schema.get(keyword).and_then(Value::as_f64);
        if count(to, least).is_some_and(|to| count(from, least).unwrap_or(0.0) < to) {
            self.lost(path, &format!("a smaller '{least}'"));
        }
        if count(to, most).is_some_and(|to| count(from, most).is_none_or(|from| from > to)) {
            self.lost(path, &format!("a larger '{most}'"));
        }
    }

    fn compare_arrays(&mut self, from: &Map<String, Value>, to: &Map<String, Value>, path: &str) {
        self.compare_bounds(from, to, "minItems", "maxItems", path);
        let is_unique = |schema: &Map<String, Value>| schema.get("uniqueItems") == Some(&Value::Bool(true));
        if is_unique(to) && !is_unique(from) {
            self.lost(path, "an item twice");
        }
        if [from, to].iter().any(|schema| schema.get("items").is_some_and(Value::is_array)) {
            // The tuples of earlier drafts.
            if !self.is_same(from.get("items"), to.get("items")) {
                self.not_comparable(path, "items");
            }
            return;
        }
        let first = |schema: &Map<String, Value>| {
            schema.get("prefixItems").and_then(Value::as_array).cloned().unwrap_or_default()
        };
        let (from_first, to_first) = (first(from), first(to));
        let rest = |schema: &Map<String, Value>| schema.get("items").cloned().unwrap_or(Value::Bool(true));
        let (from_rest, to_rest) = (rest(from), rest(to));
        let longest =
            from.get("maxItems").and_then(Value::as_u64).and_then(|most| usize::try_from(most).ok());
        let named = from_first.len().max(to_first.len());
        for position in 0..named.min(longest.unwrap_or(usize::MAX)) {
            let own = from_first.get(position).unwrap_or(&from_rest);
            self.compare(own, to_first.get(position).unwrap_or(&to_rest), &format!("{path}/{position}"));
        }
        if longest.is_none_or(|longest| longest > named) {
            self.compare(&from_rest, &to_rest, &format!("{path}/*"));
        }
    }

    fn compare_objects(&mut self, from: &Map<String, Value>, to: &Map<String, Value>, path: &str) {
        self.compare_bounds(from, to, "minProperties", "maxProperties", path);
        let from_required = names(from);
        for name in names(to).iter().filter(|name| !from_required.contains(*name)) {
            let (from, to) = self.names;
            self.report(path, &format!("{to} requires field '{}', {from} does not", shorten(name)));
        }
        let (from_fields, to_fields) = (fields(from), fields(to));
        let (from_others, to_others) = (from.get("additionalProperties"), to.get("additionalProperties"));
        let has_patterns = |schema: &Map<String, Value>| schema.contains_key("patternProperties");
        if has_patterns(from) && !has_patterns(to) && !to_others.is_none_or(is_anything) {
            self.not_comparable(path, "patternProperties");
        }
        for (name, to_field) in to_fields.into_iter().flatten() {
            let own = match from_fields.and_then(|fields| fields.get(name)) {
                Some(own) => Some(own),
                None if has_patterns(from) => {
                    self.not_comparable(path, "patternProperties");
                    None
                }
                // Not declared and not described: taken as not written.
                None => from_others.filter(|others| others.is_object() && !is_anything(others)),
            };
            if let Some(own) = own {
                self.compare(own, to_field, &format!("{path}/{name}"));
            }
        }
        let is_new = |name: &String| !to_fields.is_some_and(|fields| fields.contains_key(name));
        for (name, own) in from_fields
            .into_iter()
            .flatten()
            .filter(|(name, own)| is_new(name) && **own != Value::Bool(false))
        {
            match to_others {
                Some(Value::Bool(false)) => self.lost(path, &format!("field '{}'", shorten(name))),
                Some(others) => self.compare(own, others, &format!("{path}/{name}")),
                None => {}
            }
        }
        if let Some(to_others) = to_others.filter(|others| !is_anything(others)) {
            match from_others {
                None => self.lost(path, "further fields"),
                Some(others) if is_anything(others) => self.lost(path, "further fields"),
                Some(others) => self.compare(others, to_others, &format!("{path}/*")),
            }
        }
    }
}

/// The required fields.
fn names(schema: &Map<String, Value>) -> Vec<&str> {
    let names = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    names.filter_map(Value::as_str).collect()
}

fn fields(schema: &Map<String, Value>) -> Option<&Map<String, Value>> {
    schema.get("properties").and_then(Value::as_object)
}

fn is_anything(schema: &Value) -> bool {
    match schema {
        Value::Bool(anything) => *anything,
        Value::Object(schema) => !schema.keys().any(|keyword| is_assertion(keyword)),
        _ => false,
    }
}

fn is_assertion(keyword: &str) -> bool {
    ASSERTIONS.binary_search(&keyword).is_ok() || keyword.starts_with("unevaluated")
}

/// Follows references inside of the schema. `None` where one leads elsewhere, in a circle, or has assertions beside it.
fn resolve<'a>(root: &'a Value, mut schema: &'a Value) -> Option<(&'a Value, Option<&'a str>)> {
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

fn has_reference(schema: &Value) -> bool {
    match schema {
        Value::Array(items) => items.iter().any(has_reference),
        Value::Object(fields) => {
            fields.iter().any(|(name, value)| name.ends_with("Ref") || name == "$ref" || has_reference(value))
        }
        _ => false,
    }
}

/// What a schema or a part of one consists of.
fn parts(schema: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match schema {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        _ => Box::new(std::iter::empty()),
    }
}

/// Whether something refers to another place than the definitions.
fn has_reference_elsewhere(schema: &Value) -> bool {
    let is_elsewhere = |reference: &str| {
        !DEFINITIONS.iter().any(|definitions| reference.starts_with(&format!("#/{definitions}/")))
    };
    schema.get("$ref").and_then(Value::as_str).is_some_and(is_elsewhere)
        || schema.get("$dynamicRef").is_some()
        || schema.get("$recursiveRef").is_some()
        || parts(schema).any(has_reference_elsewhere)
}

/// One schema that asserts what both do; `None` where they assert the same keyword or cannot be put together.
fn merge(root: &Value, mut all: Map<String, Value>, part: &Value) -> Option<Map<String, Value>> {
    match resolve(root, part)?.0 {
        Value::Bool(true) => {}
        Value::Object(part) => {
            for (keyword, value) in part.iter().filter(|(keyword, _)| is_assertion(keyword)) {
                if all.get(keyword).is_some_and(|existing| existing != value) {
                    return None;
                }
                all.insert(keyword.clone(), value.clone());
            }
            // What one side says about fields or items must not be read together with the other's.
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

/// The values that a schema allows where they are listed, or can be.
fn finite(schema: &Map<String, Value>) -> Option<Vec<&Value>> {
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

/// Whether no value fits both: other types, other listed values, or a field that both require and that tells them apart.
fn exclude_each_other(root: &Value, a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let alternatives = |schema: &Map<String, Value>| {
        ["$ref", "anyOf", "oneOf"].iter().any(|keyword| schema.contains_key(*keyword))
    };
    match (finite(a), finite(b)) {
        (Some(a), Some(b)) => return !a.iter().any(|value| b.contains(value)),
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
            && field(a).zip(field(b)).is_some_and(|(a, b)| {
                finite(a).zip(finite(b)).is_some_and(|(a, b)| !a.iter().any(|value| b.contains(value)))
            })
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

/// A set of types, with the numbers that are not integers apart from the integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Types(u8);

impl Types {
    const NULL: u8 = 1;
    const BOOLEAN: u8 = 2;
    const OBJECT: u8 = 4;
    const ARRAY: u8 = 8;
    const STRING: u8 = 16;
    const INTEGER: u8 = 32;
    const FRACTION: u8 = 64;
    const NUMBER: u8 = Self::INTEGER | Self::FRACTION;
    const ALL: u8 = 127;

    fn of(schema: &Map<String, Value>) -> Self {
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

    fn has(self, kind: u8) -> bool {
        self.0 & kind != 0
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The names of the types; a number that is no integer is a `number`.
    fn names(self) -> Vec<&'static str> {
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
struct Bound<'a> {
    value: &'a Number,
    is_exclusive: bool,
}

impl<'a> Bound<'a> {
    /// The tighter one of both keywords; an error for the form of draft 4, where the exclusive one is a boolean.
    fn of(
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

    fn is_tighter_than(self, other: Self, is_lower: bool) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[track_caller]
    fn lost(from: &Value, to: &Value) -> Vec<String> {
        compile(from).unwrap();
        compile(to).unwrap();
        differences((from, "v1"), (to, "v2"))
    }

    #[test]
    fn the_keywords_are_sorted() {
        assert!(ASSERTIONS.is_sorted());
    }

    /// Both directions of each change: what is lost from the first schema to the second, and back.
    #[test]
    fn each_kind_of_change_is_found_in_the_direction_in_which_it_loses_something() {
        let object = |fields: Value| json!({"type": "object", "properties": fields});
        let closed = |fields: Value| json!({"properties": fields, "additionalProperties": false});
        let no: Option<&str> = None;
        for (from, to, forth, back) in [
            // Fields.
            (object(json!({})), object(json!({"a": {"type": "string"}})), no, no),
            (
                object(json!({})),
                json!({"type": "object", "required": ["a"]}),
                Some("v2 requires field 'a'"),
                no,
            ),
            (closed(json!({})), closed(json!({"a": true})), no, Some("v2 does not")),
            (closed(json!({"a": {"type": "string"}})), closed(json!({})), Some("field 'a'"), no),
            (
                object(json!({})),
                json!({"type": "object", "additionalProperties": false}),
                Some("further fields"),
                no,
            ),
            (
                json!({"additionalProperties": {"type": "integer"}}),
                json!({"additionalProperties": {"type": "number"}}),
                no,
                Some("/*: v1 allows number"),
            ),
            (
                json!({"additionalProperties": {"type": "integer"}}),
                json!({"properties": {"a": {"type": "string"}}, "additionalProperties": true}),
                Some("/a: v1 allows integer"),
                Some("further fields"),
            ),
            (json!({"minProperties": 1}), json!({"minProperties": 2}), Some("'minProperties'"), no),
            // Types.
            (json!({"type": "integer"}), json!({"type": "number"}), no, Some("v1 allows number")),
            (json!({"type": "string"}), json!({"type": ["string", "null"]}), no, Some("null")),
            (json!({}), json!({"type": "object"}), Some("allows string"), no),
            (json!({"type": "boolean"}), json!({"type": ["boolean", "string"]}), no, Some("string")),
            (json!(false), json!({"type": "object"}), no, Some("a value")),
            (json!(true), json!({"title": "anything"}), no, no),
            // Listed values.
            (json!({"enum": ["a", "b"]}), json!({"enum": ["a", "b", "c"]}), no, Some("\"c\"")),
            (json!({"enum": ["a"]}), json!({"type": "string"}), no, Some("not listed")),
            (json!({"const": 5}), json!({"maximum": 5}), no, Some("not listed")),
            (json!({"const": 5}), json!({"maximum": 4}), Some("v1 allows 5"), Some("not listed")),
            // Bounds.
            (json!({"minimum": 1}), json!({"minimum": 0}), no, Some("smaller numbers")),
            (json!({"minimum": 1}), json!({"exclusiveMinimum": 1}), Some("smaller numbers"), no),
            (json!({"maximum": 1.5}), json!({"maximum": 2}), no, Some("larger numbers")),
            (
                json!({"minimum": 9_007_199_254_740_993_u64}),
                json!({"minimum": 9_007_199_254_740_992_u64}),
                no,
                Some("smaller"),
            ),
            (json!({"minimum": 1, "exclusiveMinimum": 3}), json!({"minimum": 3}), no, Some("smaller")),
            (json!({"multipleOf": 6}), json!({"multipleOf": 3}), no, Some("multiples")),
            (json!({"type": "integer"}), json!({"type": "integer", "multipleOf": 1}), no, no),
            (json!({"maxLength": 5}), json!({"maxLength": 6}), no, Some("'maxLength'")),
            (json!({"minLength": 1}), json!({}), no, Some("'minLength'")),
            (json!({"type": "string", "format": "date"}), json!({"type": "string"}), no, Some("format")),
            (
                json!({"type": "integer", "format": "uint32"}),
                json!({"type": "integer", "format": "uint64"}),
                no,
                no,
            ),
            (
                json!({"pattern": "a"}),
                json!({"pattern": "b"}),
                Some("'pattern' cannot"),
                Some("'pattern' cannot"),
            ),
            // Arrays.
            (
                json!({"items": {"type": "integer"}}),
                json!({"items": {"type": "number"}}),
                no,
                Some("/*: v1 allows number"),
            ),
            (json!({"uniqueItems": true}), json!({}), no, Some("item twice")),
            (json!({"maxItems": 3}), json!({"maxItems": 4}), no, Some("'maxItems'")),
            (
                json!({"prefixItems": [{"type": "integer"}], "maxItems": 1}),
                json!({"prefixItems": [{"type": "number"}], "items": {"type": "string"}}),
                no,
                Some("/0"),
            ),
            // Alternatives.
            (
                json!({"type": ["string", "null"]}),
                json!({"anyOf": [{"type": "string"}, {"type": "null"}]}),
                no,
                no,
            ),
            (
                json!({"oneOf": [{"type": "string"}, {"type": "null"}]}),
                json!({"oneOf": [{"type": "string"}, {"type": "null"}, {"type": "integer"}]}),
                no,
                Some("no alternative of v2"),
            ),
            (
                json!({"oneOf": [{"const": "a"}, {"const": "b"}]}),
                json!({"enum": ["a", "b", "c"]}),
                no,
                Some("v2 does not"),
            ),
            (
                json!({"type": "string"}),
                json!({"oneOf": [{"minLength": 1}, {"maxLength": 3}]}),
                Some("oneOf"),
                Some(""),
            ),
            // Tagged alternatives, as serde has them.
            (
                json!({"oneOf": [tagged("a"), tagged("b")]}),
                json!({"oneOf": [tagged("a"), tagged("b"), tagged("c")]}),
                no,
                Some("no alternative of v2"),
            ),
            // Parts.
            (
                json!({"allOf": [{"type": "integer"}, {"minimum": 1}]}),
                json!({"type": "number", "minimum": 0}),
                no,
                Some("number"),
            ),
            (json!({"type": "integer"}), json!({"allOf": [{"type": "number"}]}), no, Some("number")),
            // Not looked into.
            (json!({"not": {"type": "null"}}), json!({"not": {"type": "null"}, "title": "t"}), no, no),
            (
                json!({"not": {"type": "null"}}),
                json!({"not": {"type": "string"}}),
                Some("'not' cannot"),
                Some("'not' cannot"),
            ),
            (json!({}), json!({"unevaluatedProperties": false}), Some("'unevaluated' cannot"), no),
            (json!({"$id": "urn:a", "type": "string"}), json!({"$id": "urn:b", "type": "string"}), no, no),
        ] {
            for (from, to, expected) in [(&from, &to, forth), (&to, &from, back)] {
                let found = lost(from, to);
                match expected {
                    None => assert!(found.is_empty(), "{from} to {to}: {found:?}"),
                    Some(text) => {
                        assert!(found.iter().any(|one| one.contains(text)), "{from} to {to}: {found:?}")
                    }
                }
            }
        }
    }

    fn tagged(tag: &str) -> Value {
        json!({"type": "object", "required": ["kind"], "properties": {"kind": {"const": tag}}})
    }

    #[test]
    fn references_are_followed_within_the_schema() {
        let person = |name: Value, title: &str| {
            json!({
                "type": "object",
                "properties": {"owner": {"$ref": "#/$defs/Person", "description": title}},
                "$defs": {"Person": {
                    "type": "object",
                    "properties": {"name": name, "friends": {"items": {"$ref": "#/$defs/Person"}}},
                }},
            })
        };
        let [short, long] = [json!({"type": "string", "maxLength": 5}), json!({"type": "string"})];
        assert!(lost(&person(short.clone(), "a"), &person(long.clone(), "b")).is_empty());
        let found = lost(&person(long.clone(), "a"), &person(short, "a"));
        assert!(found[0].starts_with("/owner/name"), "{found:?}");
        // Inlined.
        let inlined = json!({"type": "object", "properties": {"owner": {"properties": {"name": long}}}});
        assert!(lost(&person(json!({"type": "string"}), ""), &inlined).is_empty());
        // The same text that means another thing.
        let root =
            |kind: &str| json!({"properties": {"next": {"items": {"$ref": "#"}}, "v": {"type": kind}}});
        assert!(lost(&root("integer"), &root("number")).is_empty());
        assert!(!lost(&root("number"), &root("integer")).is_empty());
    }

    #[test]
    fn large_and_entangled_schemas_are_given_up_in_time() {
        let alternatives = |depth: usize, leaf: Value| {
            (0..depth).fold(leaf, |inner, _| {
                let with = |name: &str| json!({"properties": { name: inner.clone() }, "additionalProperties": false});
                json!({"anyOf": [with("a"), with("b")]})
            })
        };
        let found = differences(
            (&alternatives(9, json!({"minLength": 1})), "v1"),
            (&alternatives(9, json!({"minLength": 2})), "v2"),
        );
        assert!(found[0].contains("too many alternatives"), "{found:?}");
        // Two circles whose lengths have no common factor.
        let circle = |length: usize| {
            let name = |n: usize| format!("d{}", n % length);
            let one = |n: usize| {
                (
                    name(n),
                    json!({"minProperties": n, "properties": {"x": {"$ref": format!("#/$defs/{}", name(n + 1))}}}),
                )
            };
            json!({"$ref": "#/$defs/d0", "$defs": (0..length).map(one).collect::<Map<_, _>>()})
        };
        let found = differences((&circle(101), "v1"), (&circle(103), "v2"));
        assert!(found[0].contains("too deep"), "{found:?}");
    }

    /// A schema without annotations; objects inside of alternatives allow no further fields.
    fn any_schema() -> impl Strategy<Value = Value> {
        let number = prop_oneof![Just("integer"), Just("number")];
        let bound = || -3_i64..4;
        let leaf = prop_oneof![
            Just(json!({})),
            (number, bound(), bound())
                .prop_map(|(kind, a, b)| json!({"type": kind, "minimum": a.min(b), "maximum": a.max(b)})),
            (0_usize..3, 0_usize..3)
                .prop_map(|(a, b)| json!({"type": "string", "minLength": a.min(b), "maxLength": a.max(b)})),
            prop::sample::subsequence(vec![json!("a"), json!("b"), json!(1), json!(null)], 1..4)
                .prop_map(|values| json!({"enum": values})),
            prop::sample::subsequence(vec!["null", "boolean", "integer", "string", "object"], 1..4)
                .prop_map(|types| json!({"type": types})),
        ];
        leaf.prop_recursive(3, 16, 3, |inner| {
            let fields = prop::collection::btree_map("[abc]", inner.clone(), 0..3);
            prop_oneof![
                (fields, prop::sample::subsequence(vec!["a", "b"], 0..3), any::<bool>()).prop_map(
                    |(fields, required, closed)| {
                        let mut object =
                            json!({"type": "object", "properties": fields, "required": required});
                        if closed {
                            object["additionalProperties"] = json!(false);
                        }
                        object
                    }
                ),
                (inner.clone(), 0_u64..3)
                    .prop_map(|(items, most)| json!({"type": "array", "items": items, "maxItems": most})),
                (prop::collection::vec(inner, 1..3), prop_oneof![Just("anyOf"), Just("oneOf")]).prop_map(
                    |(branches, keyword)| {
                        let closed: Vec<Value> = branches.into_iter().map(close).collect();
                        json!({ keyword: closed })
                    }
                ),
            ]
        })
    }

    /// Lets no object of a schema have fields that it does not declare.
    fn close(mut schema: Value) -> Value {
        if let Some(fields) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            for field in fields.values_mut() {
                *field = close(field.take());
            }
        }
        if let Some(items) = schema.get_mut("items") {
            *items = close(items.take());
        }
        for keyword in ["anyOf", "oneOf"] {
            if let Some(branches) = schema.get_mut(keyword).and_then(Value::as_array_mut) {
                for branch in branches {
                    *branch = close(branch.take());
                }
            }
        }
        let object = schema.as_object_mut().unwrap();
        if Types::of(object).has(Types::OBJECT)
            && !object.contains_key("enum")
            && !object.contains_key("anyOf")
            && !object.contains_key("oneOf")
        {
            object.insert("additionalProperties".to_owned(), json!(false));
        }
        schema
    }

    fn any_payload() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(Value::from),
            (-4_i64..5).prop_map(Value::from),
            Just(json!(0.5)),
            "[ab]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[abc]", inner, 0..3)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Where no difference is found, everything that follows the first schema follows the second, provided that it has
        /// only fields that the first one declares.
        #[test]
        fn without_a_difference_nothing_is_lost(
            from in any_schema(), to in any_schema(), payloads in prop::collection::vec(any_payload(), 20),
        ) {
            for (from, to) in [(&from, &to), (&to, &from), (&from, &from)] {
                if !lost(from, to).is_empty() {
                    continue;
                }
                let [strict, of_to] = [compile(&close(from.clone())).unwrap(), compile(to).unwrap()];
                for payload in payloads.iter().filter(|payload| strict.is_valid(payload)) {
                    prop_assert!(of_to.is_valid(payload), "{payload} follows {from} and not {to}");
                }
            }
        }

        /// A wider copy of a schema loses nothing, and what is narrower in the copy is found on the way back.
        #[test]
        fn a_new_optional_field_and_a_dropped_requirement_are_found_in_one_direction(
            schema in any_schema(), field in any_schema(),
        ) {
            let from = json!({"type": "object", "properties": {"inner": schema.clone()}, "required": ["inner"]});
            let to = json!({"type": "object", "properties": {"inner": schema, "new": field}});
            prop_assert_eq!(lost(&from, &to), Vec::<String>::new());
            let back = lost(&to, &from);
            prop_assert_eq!(back, ["/: v2 requires field 'inner', v1 does not"]);
        }
    }
}
