//! Types of attributes for bindings that carry only strings: `flag:boolean,retries:integer`, sorted by name.

use std::collections::BTreeMap;

use serde_json::Value;

pub(super) const INTEGER: &str = "integer";
pub(super) const BOOLEAN: &str = "boolean";

/// Names and their types, collected while the values become strings.
#[derive(Default)]
pub(super) struct Types(BTreeMap<String, &'static str>);

impl Types {
    pub(super) fn note(&mut self, name: impl Into<String>, kind: &'static str) {
        self.0.insert(name.into(), kind);
    }

    /// Returns the list, or `None` if every value is a string.
    pub(super) fn into_text(self) -> Option<String> {
        let entries: Vec<String> = self.0.iter().map(|(name, kind)| format!("{name}:{kind}")).collect();
        (!entries.is_empty()).then(|| entries.join(","))
    }
}

/// Returns the entries of a list, or `None` if [`Types::into_text`] would not write it like this.
pub(super) fn parse(text: &str) -> Option<Vec<(&str, &str)>> {
    let entries: Vec<(&str, &str)> =
        text.split(',').map(|entry| entry.split_once(':')).collect::<Option<_>>()?;
    entries.is_sorted_by(|a, b| a.0 < b.0).then_some(entries)
}

/// Returns the value of this type whose canonical string is the text.
pub(super) fn typed(kind: &str, text: &str) -> Option<Value> {
    match (kind, text) {
        (BOOLEAN, "true") => Some(Value::Bool(true)),
        (BOOLEAN, "false") => Some(Value::Bool(false)),
        (INTEGER, _) => {
            let integer: i32 = text.parse().ok()?;
            (integer.to_string() == text).then(|| Value::from(integer))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_sorted_and_read_back() {
        let mut types = Types::default();
        types.note("retries", INTEGER);
        types.note("flag", BOOLEAN);
        let text = types.into_text().unwrap();
        assert_eq!(text, "flag:boolean,retries:integer");
        assert_eq!(parse(&text).unwrap(), [("flag", BOOLEAN), ("retries", INTEGER)]);
        assert_eq!(Types::default().into_text(), None);
        for text in ["", "a", "b:integer,a:integer", "a:integer,a:integer", "a:integer,"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_canonical_strings_have_a_type() {
        assert_eq!(typed(INTEGER, "-2147483648"), Some(Value::from(i32::MIN)));
        assert_eq!(typed(BOOLEAN, "true"), Some(Value::Bool(true)));
        for (kind, text) in
            [(INTEGER, "2147483648"), (INTEGER, "+1"), (INTEGER, "01"), (BOOLEAN, "True"), ("float", "1")]
        {
            assert_eq!(typed(kind, text), None, "{kind} {text}");
        }
    }
}
