//! Fields of an event from a record: text with `{path}` where a value of the record stands.

use a3s_event::subject::validate_category;
use serde_json::Value;

/// Text with places, for instance `events.quake.{properties.net}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The keys that lead to the value.
    Value(Vec<String>),
}

impl std::str::FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (path, after) = after.split_once('}').ok_or("has a '{' without its '}'")?;
            if path.is_empty() {
                return Err("has an empty '{}': name the value, for instance {properties.mag}".to_owned());
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Value(path.split('.').map(str::to_owned).collect()));
            rest = after;
        }
        if !rest.is_empty() || parts.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }
}

impl Template {
    /// The text for a record, for people: any value has a text.
    pub(crate) fn text(&self, record: &Value) -> Result<String, String> {
        self.fill(record, |_, value| match value {
            Value::String(text) => Ok(text.clone()),
            other => Ok(other.to_string()),
        })
    }

    /// The text for a record as a name, such as an id: only what is text or a whole number, and was read exactly.
    pub(crate) fn name(&self, record: &Value) -> Result<String, String> {
        self.fill(record, name)
    }

    /// The text for a record as a subject: what a token may not have becomes `_`.
    pub(crate) fn subject(&self, record: &Value) -> Result<String, String> {
        self.fill(record, |path, value| Ok(token(&name(path, value)?)))
    }

    /// The value itself where the template is nothing but its place, else the text.
    pub(crate) fn value(&self, record: &Value) -> Result<Value, String> {
        match self.0.as_slice() {
            [Part::Value(path)] => lookup(record, path).cloned(),
            _ => self.text(record).map(Value::String),
        }
    }

    fn fill(
        &self,
        record: &Value,
        write: impl Fn(&[String], &Value) -> Result<String, String>,
    ) -> Result<String, String> {
        let mut filled = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Value(path) => filled.push_str(&write(path, lookup(record, path)?)?),
            }
        }
        Ok(filled)
    }
}

/// A value as a name. A number with a fraction or an exponent, or of more than 64 bits, is read as the nearest of those
/// that a computer has, so that two different ones could become one name.
fn name(path: &[String], value: &Value) -> Result<String, String> {
    let what = match value {
        Value::String(text) => return Ok(text.clone()),
        Value::Number(number) if !number.is_f64() => return Ok(number.to_string()),
        Value::Number(number) => {
            let number = number.to_string();
            return Err(format!(
                "{{{}}} is {number}, a number that is not read exactly: write it as a string",
                path.join(".")
            ));
        }
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    Err(format!("{{{}}} is {what}, not a string or a whole number", path.join(".")))
}

/// A value as a token of a subject, by the rules of the library.
fn token(value: &str) -> String {
    if validate_category(value).is_ok() {
        return value.to_owned();
    }
    let is_legal = |c: char| validate_category(c.encode_utf8(&mut [0; 4])).is_ok();
    let token: String = value.chars().map(|c| if is_legal(c) { c } else { '_' }).collect();
    if token.is_empty() { "_".to_owned() } else { token }
}

fn lookup<'a>(record: &'a Value, path: &[String]) -> Result<&'a Value, String> {
    path.iter()
        .try_fold(record, |value, key| match value {
            Value::Array(items) => key.parse::<usize>().ok().and_then(|index| items.get(index)),
            other => other.get(key),
        })
        .ok_or_else(|| format!("the record has no {{{}}}", path.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn places_are_filled() {
        let record =
            json!({"id": "x", "properties": {"net": "u s.*", "mag": 2.5, "empty": ""}, "at": [1, [7]]});
        let template = |text: &str| text.parse::<Template>().unwrap();
        assert_eq!(template("M {properties.mag} {id}").text(&record).unwrap(), "M 2.5 x");
        assert_eq!(
            template("events.{properties.net}.{properties.empty}").subject(&record).unwrap(),
            "events.u_s__._"
        );
        // What the library refuses in a subject, and nothing else, is replaced.
        let odd = json!({"a": "net\u{200b}\u{ad}\u{a0}\u{7f}", "b": "_INBOX", "c": "größe 東京", "d": 7});
        assert_eq!(template("x.{a}.{b}.{c}.{d}").subject(&odd).unwrap(), "x.net____._INBOX.größe_東京.7");
        assert_eq!(template("{at.1.0}").value(&record).unwrap(), json!(7));
        assert_eq!(template("").text(&record).unwrap(), "");
        assert!(template("{properties.nothing}").text(&record).unwrap_err().contains("{properties.nothing}"));
        assert!("{id".parse::<Template>().is_err() && "a{}".parse::<Template>().is_err());
    }

    #[test]
    fn a_name_is_text_or_a_whole_number_that_was_read_exactly() {
        let text = r#"{"none": null, "yes": true, "list": [1], "map": {}, "half": 0.5, "one": 1.0, "e": 1e3, "text": "",
            "large": 18446744073709551615, "larger": 18446744073709551616, "least": -9223372036854775808}"#;
        let record: Value = serde_json::from_str(text).unwrap();
        let template = |path: &str| format!("x-{{{path}}}").parse::<Template>().unwrap();
        for path in ["none", "yes", "list", "map", "half", "one", "e", "larger", "missing"] {
            for filled in [template(path).name(&record), template(path).subject(&record)] {
                let why = filled.unwrap_err();
                assert!(why.contains(&format!("{{{path}}}")), "{why}");
            }
        }
        for (path, name) in
            [("large", "x-18446744073709551615"), ("least", "x--9223372036854775808"), ("text", "x-")]
        {
            assert_eq!(template(path).name(&record).unwrap(), name);
        }
        assert_eq!(template("none").text(&record).unwrap(), "x-null", "people can read that");
    }
}
