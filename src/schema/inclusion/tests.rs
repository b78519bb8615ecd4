//! Each kind of change in both directions, and random schemas against random payloads.

use super::parts::ASSERTIONS;
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

/// Compares each change in both directions: what is lost from the first schema to the second, and back.
#[test]
fn each_kind_of_change_is_found_in_the_direction_in_which_it_loses_something() {
    let object = |fields: Value| json!({"type": "object", "properties": fields});
    let closed = |fields: Value| json!({"properties": fields, "additionalProperties": false});
    let no: Option<&str> = None;
    for (from, to, forth, back) in [
        // Fields.
        (object(json!({})), object(json!({"a": {"type": "string"}})), no, no),
        (object(json!({})), json!({"type": "object", "required": ["a"]}), Some("v2 requires field 'a'"), no),
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
        // Written without being declared: with any value.
        (
            json!({"required": ["x"]}),
            json!({"required": ["x"], "properties": {"x": {"type": "string"}}}),
            Some("/x: v1 allows"),
            no,
        ),
        (
            json!({"required": ["x"], "additionalProperties": true}),
            json!({"properties": {"x": {"minimum": 0}}}),
            Some("/x: v1 allows smaller numbers"),
            Some("requires field 'x'"),
        ),
        (
            json!({"type": "object", "minProperties": 1}),
            json!({"type": "object", "properties": {"x": {"type": "string"}}}),
            Some("/x: v1 allows"),
            Some("'minProperties'"),
        ),
        (
            json!({"anyOf": [{"required": ["x"]}, {"required": ["y"]}], "type": "object"}),
            json!({"type": "object", "properties": {"y": {"type": "string"}}}),
            Some("/y: v1 allows"),
            Some("no alternative"),
        ),
        (
            json!({"if": {"required": ["a"]}, "then": {"properties": {"x": {"type": "integer"}}}}),
            json!({"properties": {"x": {"type": "string"}}}),
            Some("/x: 'then' cannot be compared"),
            Some("'if' cannot"),
        ),
        (
            json!({"dependentRequired": {"a": ["x"]}}),
            json!({"properties": {"x": {"type": "string"}}}),
            Some("/x: 'dependentRequired' cannot be compared"),
            Some("'dependentRequired' cannot"),
        ),
        (
            json!({"dependentSchemas": {"a": {"properties": {"x": {"type": "integer"}}}}}),
            json!({"properties": {"x": {"type": "string"}}}),
            Some("/x: 'dependentSchemas' cannot be compared"),
            Some("'dependentSchemas' cannot"),
        ),
        (
            json!({"propertyNames": {"enum": ["x"]}}),
            json!({"properties": {"x": {"type": "string"}}}),
            Some("/x: 'propertyNames' cannot be compared"),
            Some("'propertyNames' cannot"),
        ),
        (
            json!({"unevaluatedProperties": {"type": "integer"}}),
            json!({"properties": {"x": {"type": "string"}}}),
            Some("/x: 'unevaluatedProperties' cannot be compared"),
            Some("'unevaluated' cannot"),
        ),
        (
            json!({"patternProperties": {"^x": {"type": "integer"}}}),
            json!({"properties": {"x": {"type": "string"}}}),
            Some("'patternProperties' cannot be compared"),
            Some("'patternProperties' cannot"),
        ),
        // Two numbers that the validator treats as the same.
        (
            json!({"properties": {"k": {"const": 1}}, "required": ["k"], "type": "object"}),
            json!({"type": "object", "oneOf": [
                {"type": "object", "required": ["k"], "properties": {"k": {"const": 1}}},
                {"type": "object", "required": ["k"], "properties": {"k": {"const": 1.0}}},
            ]}),
            Some("'oneOf' cannot"),
            no,
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
        // Compared as a whole.
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
                    assert!(found.iter().any(|one| one.contains(text)), "{from} to {to}: {found:?}");
                }
            }
        }
    }
}

#[test]
fn texts_of_two_meanings_are_not_compared() {
    let draft = |name: &str, mut schema: Value| {
        schema["$schema"] = json!(format!("http://json-schema.org/{name}/schema#"));
        schema
    };
    let mail = json!({"type": "string", "format": "email"});
    for (from, to, expected) in [
        // In only one of the drafts does a format assert something.
        (
            mail.clone(),
            draft("draft-07", mail.clone()),
            Some("draft/2020-12 and v2 in draft-07: they cannot be compared"),
        ),
        (
            draft("draft-04", json!({"type": "integer"})),
            draft("draft-06", json!({"type": "integer"})),
            Some("cannot be compared"),
        ),
        // Keywords that the draft does not know.
        (
            draft("draft-07", json!({"prefixItems": [{"type": "integer"}], "maxItems": 1})),
            draft("draft-07", json!({"items": {"type": "integer"}})),
            Some("v1 has 'prefixItems', which draft-07 does not define"),
        ),
        (
            draft("draft-04", json!({"properties": {"a": {"const": 1}}})),
            draft("draft-04", json!({"properties": {"a": {"type": "integer"}}})),
            Some("v1 has 'const'"),
        ),
        (
            json!({"items": {"additionalItems": false}}),
            json!({"items": {"maxItems": 0}}),
            Some("v1 has 'additionalItems'"),
        ),
        // The same draft.
        (draft("draft-07", mail.clone()), draft("draft-07", json!({"type": "string"})), None),
        (
            json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "integer"}),
            json!({"type": "number"}),
            None,
        ),
        (
            draft("draft-04", json!({"properties": {"const": {"type": "integer"}}})),
            draft("draft-04", json!({})),
            None,
        ),
    ] {
        let found = lost(&from, &to);
        match expected {
            None => assert!(found.is_empty(), "{found:?}"),
            Some(text) => assert!(found.iter().any(|one| one.contains(text)), "{from} to {to}: {found:?}"),
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
    // The same text with another meaning.
    let root = |kind: &str| json!({"properties": {"next": {"items": {"$ref": "#"}}, "v": {"type": kind}}});
    assert!(lost(&root("integer"), &root("number")).is_empty());
    assert!(!lost(&root("number"), &root("integer")).is_empty());
}

#[test]
fn large_and_entangled_schemas_are_given_up_in_time() {
    let alternatives = |depth: usize, leaf: Value| {
        (0..depth).fold(leaf, |inner, _| {
            let with =
                |name: &str| json!({"properties": { name: inner.clone() }, "additionalProperties": false});
            json!({"anyOf": [with("a"), with("b")]})
        })
    };
    let found = differences(
        (&alternatives(9, json!({"minLength": 1})), "v1"),
        (&alternatives(9, json!({"minLength": 2})), "v2"),
    );
    assert!(found[0].contains("too many alternatives"), "{found:?}");
    // Two cycles whose lengths have no common factor.
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

/// Generates a schema without annotations, from all keywords: those that are compared and those that are not.
fn any_schema() -> impl Strategy<Value = Value> {
    let number = prop_oneof![Just("integer"), Just("number")];
    let bound = || -3_i64..4;
    let some_of = |values: Value| prop::sample::subsequence(values.as_array().unwrap().clone(), 1..4);
    let leaf = prop_oneof![
        2 => Just(json!({})),
        3 => (number, bound(), bound())
            .prop_map(|(kind, a, b)| json!({"type": kind, "minimum": a.min(b), "maximum": a.max(b)})),
        1 => (1_u64..4).prop_map(|step| json!({"multipleOf": step})),
        3 => (0_usize..3, 0_usize..3)
            .prop_map(|(a, b)| json!({"type": "string", "minLength": a.min(b), "maxLength": a.max(b)})),
        2 => some_of(json!(["a", "b", 1, 1.0, null])).prop_map(|values| json!({"enum": values})),
        1 => some_of(json!(["a", 0, 1.0, false])).prop_map(|mut values| json!({"const": values.remove(0)})),
        3 => some_of(json!(["null", "boolean", "integer", "string", "object"]))
            .prop_map(|types| json!({"type": types})),
        1 => Just(json!({"$ref": "#/$defs/d"})),
        1 => some_of(json!(["a", "b", "c"])).prop_map(|names| json!({"type": "object", "required": names})),
        1 => Just(json!({"type": "object", "minProperties": 1})),
        1 => Just(json!({"dependentRequired": {"a": ["b"]}})),
    ];
    leaf.prop_recursive(3, 16, 3, |inner| {
        let fields = prop::collection::btree_map("[abc]", inner.clone(), 0..3);
        prop_oneof![
            4 => (fields, prop::sample::subsequence(vec!["a", "b", "c"], 0..3), 0..3, inner.clone()).prop_map(
                |(fields, required, others, schema)| {
                    let mut object = json!({"type": "object", "properties": fields, "required": required});
                    match others {
                        0 => object["additionalProperties"] = json!(false),
                        1 => object["additionalProperties"] = schema,
                        _ => {}
                    }
                    object
                }
            ),
            2 => (inner.clone(), 0_u64..3)
                .prop_map(|(items, most)| json!({"type": "array", "items": items, "maxItems": most})),
            1 => (inner.clone(), inner.clone())
                .prop_map(|(first, rest)| json!({"type": "array", "prefixItems": [first], "items": rest})),
            2 => (prop::collection::vec(inner.clone(), 1..3), "anyOf|oneOf|allOf")
                .prop_map(|(branches, keyword)| json!({ keyword: branches })),
            1 => (inner.clone(), "not|propertyNames|contains|unevaluatedProperties")
                .prop_map(|(part, keyword)| json!({ keyword: part })),
            1 => ("[abc]", inner.clone(), "dependentSchemas|patternProperties")
                .prop_map(|(name, part, keyword)| json!({ keyword: { name: part } })),
            1 => (inner.clone(), inner.clone(), inner)
                .prop_map(|(a, b, c)| json!({"if": a, "then": b, "else": c})),
        ]
    })
}

/// Generates a schema and a copy of it that differs in one place.
fn any_change() -> impl Strategy<Value = (Value, Value)> {
    let change = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4, any_schema());
    (any_schema(), change, any_schema(), any_schema(), any::<bool>()).prop_map(
        |(from, (place, key, kind, other), d, other_d, is_same_d)| {
            let mut to = from.clone();
            let mut places = Vec::new();
            find_schemas(&to, String::new(), &mut places);
            let at = to.pointer_mut(place.get(&places).as_str()).and_then(Value::as_object_mut).unwrap();
            match kind {
                0 if !at.is_empty() => {
                    let key = key.get(&at.keys().cloned().collect::<Vec<_>>()).clone();
                    at.remove(&key);
                }
                // A field is declared that was not, as in most new versions.
                1 => {
                    let fields = at.entry("properties").or_insert(json!({})).as_object_mut().unwrap();
                    fields.entry(*key.get(&["a", "b", "c"])).or_insert(other);
                }
                2 => {
                    for (keyword, value) in other.as_object().unwrap() {
                        at.entry(keyword.clone()).or_insert(value.clone());
                    }
                }
                _ => *at = other.as_object().unwrap().clone(),
            }
            let other_d = if is_same_d { d.clone() } else { other_d };
            let with = |schema: Value, d: Value| {
                json!({"$defs": {"d": without_reference(d)}, "properties": {"root": schema}, "required": ["root"]})
            };
            (with(from, d), with(to, other_d))
        },
    )
}

/// Finds the places of a schema and of the schemas in it that are objects.
fn find_schemas(schema: &Value, at: String, places: &mut Vec<String>) {
    if let Value::Array(items) = schema {
        for (index, item) in items.iter().enumerate() {
            find_schemas(item, format!("{at}/{index}"), places);
        }
    }
    let Value::Object(keywords) = schema else { return };
    for (keyword, value) in keywords {
        match (keyword.as_str(), value) {
            ("properties" | "patternProperties" | "dependentSchemas", Value::Object(named)) => {
                for (name, schema) in named {
                    find_schemas(schema, format!("{at}/{keyword}/{name}"), places);
                }
            }
            ("enum" | "const" | "dependentRequired", _) => {}
            _ => find_schemas(value, format!("{at}/{keyword}"), places),
        }
    }
    places.push(at);
}

fn without_reference(schema: Value) -> Value {
    serde_json::from_str(&schema.to_string().replace("\"$ref\":\"#/$defs/d\"", "\"title\":\"\"")).unwrap()
}

/// Closes the objects of a schema to fields that nothing in it mentions.
fn close(mut schema: Value) -> Value {
    let Value::Object(keywords) = &mut schema else { return schema };
    for (keyword, value) in keywords.iter_mut() {
        match (keyword.as_str(), value) {
            ("properties" | "patternProperties" | "$defs", Value::Object(named)) => {
                for field in named.values_mut() {
                    *field = close(field.take());
                }
            }
            ("anyOf" | "oneOf" | "allOf" | "prefixItems", Value::Array(parts)) => {
                for part in parts {
                    *part = close(part.take());
                }
            }
            ("items", value) => *value = close(value.take()),
            ("additionalProperties", value) if !is_anything(value) => *value = close(value.take()),
            _ => {}
        }
    }
    let elsewhere = ["patternProperties", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"];
    // To allow further fields with any value is the same as to omit the keyword.
    let says_something_of_others = ["unevaluatedProperties", "additionalProperties"]
        .into_iter()
        .any(|keyword| keywords.get(keyword).is_some_and(|others| !is_anything(others)));
    let is_closed_elsewhere =
        says_something_of_others || elsewhere.into_iter().any(|keyword| keywords.contains_key(keyword));
    if Types::of(keywords).has(Types::OBJECT) && !is_closed_elsewhere && !writes_others(keywords) {
        let spoken_of: Vec<&str> = ["a", "b", "c"]
            .into_iter()
            .filter(|name| names(keywords).contains(name) || speaks_of(keywords, name).is_some())
            .collect();
        let mut fields = keywords.get("properties").cloned().unwrap_or(json!({}));
        for name in spoken_of {
            fields.as_object_mut().unwrap().entry(name).or_insert(json!(true));
        }
        keywords.insert("properties".to_owned(), fields);
        keywords.insert("additionalProperties".to_owned(), json!(false));
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
    /// If no difference is found, everything that follows the first schema follows the second, provided that it has
    /// only fields that the first one declares.
    #[test]
    fn without_a_difference_nothing_is_lost(
        (from, to) in any_change(), payloads in prop::collection::vec(any_payload(), 20),
    ) {
        for (from, to) in [(&from, &to), (&to, &from), (&from, &from)] {
            if !lost(from, to).is_empty() {
                continue;
            }
            let [strict, of_from, of_to] =
                [&close(from.clone()), from, to].map(|schema| compile(schema).unwrap());
            for payload in payloads.iter().map(|payload| json!({"root": payload})) {
                if strict.is_valid(&payload) && of_from.is_valid(&payload) {
                    prop_assert!(of_to.is_valid(&payload), "{} follows {} and not {}", payload, from, to);
                }
            }
        }
    }

    /// Widening a schema loses nothing, and the comparison finds what is narrower on the way back.
    #[test]
    fn a_new_optional_field_and_a_dropped_requirement_are_found_in_one_direction(
        schema in any_schema().prop_map(without_reference), field in any_schema().prop_map(without_reference),
    ) {
        let from = json!({"type": "object", "properties": {"inner": schema.clone()}, "required": ["inner"]});
        let to = json!({"type": "object", "properties": {"inner": schema, "new": field}});
        prop_assert_eq!(lost(&from, &to), Vec::<String>::new());
        let back = lost(&to, &from);
        prop_assert_eq!(back, ["/: v2 requires field 'inner', v1 does not"]);
    }
}
