//! Each kind of change in both directions, and any schemas against any payloads.

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

/// Both directions of each change: what is lost from the first schema to the second, and back.
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
                    assert!(found.iter().any(|one| one.contains(text)), "{from} to {to}: {found:?}");
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
                    let mut object = json!({"type": "object", "properties": fields, "required": required});
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
