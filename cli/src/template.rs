//! Fields of an event from a record: text with `{path}` where a value of the record stands.

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
    /// The text for a record.
    pub(crate) fn text(&self, record: &Value) -> Result<String, String> {
        self.fill(record, str::to_owned)
    }

    /// The text for a record as a subject: what a value may not have there becomes `_`.
    pub(crate) fn subject(&self, record: &Value) -> Result<String, String> {
        self.fill(record, |value| {
            let illegal = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>');
            if value.is_empty() { "_".to_owned() } else { value.replace(illegal, "_") }
        })
    }

    /// The value itself where the template is nothing but its place, else the text.
    pub(crate) fn value(&self, record: &Value) -> Result<Value, String> {
        match self.0.as_slice() {
            [Part::Value(path)] => lookup(record, path).cloned(),
            _ => self.text(record).map(Value::String),
        }
    }

    fn fill(&self, record: &Value, write: impl Fn(&str) -> String) -> Result<String, String> {
        let mut filled = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Value(path) => match lookup(record, path)? {
                    Value::String(text) => filled.push_str(&write(text)),
                    other => filled.push_str(&write(&other.to_string())),
                },
            }
        }
        Ok(filled)
    }
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
        assert_eq!(template("{at.1.0}").value(&record).unwrap(), json!(7));
        assert_eq!(template("").text(&record).unwrap(), "");
        assert!(template("{properties.nothing}").text(&record).unwrap_err().contains("{properties.nothing}"));
        assert!("{id".parse::<Template>().is_err() && "a{}".parse::<Template>().is_err());
    }
}
