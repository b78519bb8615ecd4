//! Compares two JSON Schemas by structure: does one allow everything that the other allows?
//!
//! The answer "no difference" is reliable, with one deliberate exception: a field that a schema does not declare counts
//! as not written under this schema. Otherwise adding an optional field to a schema that allows further fields, as
//! nearly all do, would be a difference. A program could have written a field of that name with another type. A field
//! counts as written if it is required or if another part of the schema mentions it.
//!
//! Only schemas of the same dialect are compared, and only without keywords that this dialect does not know.
//!
//! A reported difference may be wrong. Keywords that are not compared in detail, such as `not` or `if`, must be equal
//! on both sides. Otherwise they are reported as not comparable.

mod dialect;
mod parts;

use serde_json::{Map, Value};

use self::parts::{
    Bound, DEFINITIONS, Types, exclude_each_other, fields, finite, has_reference, has_reference_elsewhere,
    is_anything, merge, names, resolve, speaks_of, writes_others,
};
use super::json::compile;
use crate::text::shorten;

/// Maximum number of comparisons of two places, after which the whole comparison is given up. Alternatives are compared
/// each with each.
const MAX_STEPS: usize = 20_000;
/// Maximum depth of nested comparisons, including followed references.
const MAX_DEPTH: usize = 128;
/// Maximum number of listed values that are checked one by one.
const MAX_LISTED: usize = 1_000;

/// Returns what `from` allows and `to` does not, as sentences with the place. Each schema comes with its name.
pub(super) fn differences(from: (&Value, &str), to: (&Value, &str)) -> Vec<String> {
    if from.0 == to.0 {
        return Vec::new();
    }
    if let Some(why) = dialect::conflict(from, to) {
        return vec![why];
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

/// Keywords that are compared as a whole: they must be equal on both sides.
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
    /// If true, the same reference means the same on both sides.
    same_references: bool,
    /// Pairs of references that are being compared. In recursive schemas, a pair that occurs again within itself adds
    /// nothing.
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

    /// Reports that `from` allows something here that `to` does not.
    fn lost(&mut self, path: &str, what: &str) {
        let (from, to) = self.names;
        self.report(path, &format!("{from} allows {what}, {to} does not"));
    }

    fn not_comparable(&mut self, path: &str, keyword: &str) {
        self.report(path, &format!("'{keyword}' cannot be compared"));
    }

    /// Returns true if `to` allows everything that `from` allows. Reports nothing.
    fn fits(&mut self, from: &Value, to: &Value) -> bool {
        let outer = std::mem::take(&mut self.found);
        self.compare(from, to, "");
        std::mem::replace(&mut self.found, outer).is_empty()
    }

    /// Returns true if two parts have the same text and the same meaning.
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
            // Its meaning depends on everything around it.
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

    /// Compares a `from` with alternatives or parts. Each alternative must fit together with the keywords beside it;
    /// the parts of `allOf` must fit all together.
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

    /// Compares with alternatives in `to`: what `from` allows must fit into one of them, as a whole or type by type.
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
            self.report(
                path,
                &format!("{from} allows values that no alternative of {to} allows ({missing})"),
            );
        }
    }

    /// Returns true if no value fits two of the alternatives, as far as their types, listed values and tags tell.
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

    /// Compares a `from` that allows just these values.
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
            self.lost(path, "numbers that are not multiples");
        }
    }

    /// Compares a minimum and a maximum length or count.
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
            // Tuples of earlier drafts.
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
                None => match from_others.filter(|others| !is_anything(others)) {
                    Some(others) => Some(others),
                    // The field is written, with any value.
                    None if from_required.contains(&name.as_str()) || writes_others(from) => {
                        Some(&Value::Bool(true))
                    }
                    None => {
                        if let Some(keyword) = speaks_of(from, name).filter(|_| !is_anything(to_field)) {
                            self.not_comparable(&format!("{path}/{name}"), keyword);
                        }
                        // Neither declared nor mentioned: counts as not written.
                        None
                    }
                },
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

#[cfg(test)]
mod tests;
