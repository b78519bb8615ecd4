//! Templates for the fields of an event: `{path}` inserts a value of the record, `{path|default}` that or a default.

use a3s_event::subject::validate_category;
use serde_json::Value;

use crate::moment;
use crate::text::shorten;

/// Text with placeholders, for example `events.quake.{properties.net}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Place),
}

/// A placeholder for a value of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// The keys that lead to the value.
    path: Vec<String>,
    /// The default for a record without the value, or with null in its place.
    default: Option<Value>,
}

impl std::str::FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (path, after) = after.split_once('}').ok_or("has a '{' without its '}'")?;
            let (path, default) = match path.split_once('|') {
                Some((path, default)) => (path, Some(Value::from(default))),
                None => (path, None),
            };
            if path.is_empty() {
                return Err(
                    "has a '{}' without a path: name the value, for instance {properties.mag}".to_owned()
                );
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let path = path.split('.').map(str::to_owned).collect();
            parts.push(Part::Value(Place { path, default }));
            rest = after;
        }
        if !rest.is_empty() || parts.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }
}

impl Template {
    /// Returns the text, if it is the same for every record.
    fn fixed(&self) -> Option<String> {
        let text = |part: &Part| match part {
            Part::Text(text) => Some(text.clone()),
            Part::Value(_) => None,
        };
        self.0.iter().map(text).collect()
    }

    /// Fills the template for people: any value has a text.
    pub(crate) fn text(&self, record: &Value) -> Result<String, String> {
        self.fill(record, |_, value| match value {
            Value::String(text) => Ok(text.clone()),
            other => Ok(other.to_string()),
        })
    }

    /// Fills the template as a name, such as an id. It accepts only text, or a whole number that was read exactly.
    pub(crate) fn name(&self, record: &Value) -> Result<String, String> {
        self.fill(record, name)
    }

    /// Fills the template as a subject. Replaces characters that are invalid in a token by `_`.
    pub(crate) fn subject(&self, record: &Value) -> Result<String, String> {
        self.fill(record, |path, value| Ok(token(&name(path, value)?)))
    }

    /// Returns the value itself if the template is a single placeholder, else the text.
    pub(crate) fn value(&self, record: &Value) -> Result<Value, String> {
        match self.0.as_slice() {
            [Part::Value(place)] => place.value(record).cloned(),
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
                Part::Value(place) => filled.push_str(&write(&place.path, place.value(record)?)?),
            }
        }
        Ok(filled)
    }
}

impl Place {
    fn value<'a>(&'a self, record: &'a Value) -> Result<&'a Value, String> {
        let found = lookup(record, &self.path);
        match (&self.default, found) {
            (Some(default), None | Some(Value::Null)) => Ok(default),
            (_, Some(value)) => Ok(value),
            (None, None) => {
                let path = self.path.join(".");
                Err(format!("the record has no {{{path}}}; a default is written {{{path}|default}}"))
            }
        }
    }
}

/// The template of a time. A text without placeholders is checked when the command line is parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TimeTemplate(Template);

impl std::str::FromStr for TimeTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let template: Template = text.parse()?;
        if let Some(text) = template.fixed() {
            moment::parse(&text)?;
        }
        Ok(Self(template))
    }
}

impl TimeTemplate {
    /// Returns the time for a record, in Unix milliseconds.
    pub(crate) fn time(&self, record: &Value) -> Result<u64, String> {
        let text = self.0.name(record)?;
        moment::parse(&text).map_err(|why| format!("time '{}' {why}", shorten(&text, MAX_SHOWN)))
    }
}

/// Maximum length of a record's text in a message.
const MAX_SHOWN: usize = 60;

/// Formats a value as a name.
///
/// A number with a fraction, an exponent or more than 64 bits is refused. It is rounded when read, so that two numbers
/// could become one name.
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

/// Formats a value as a token of a subject, by the rules of the library.
fn token(value: &str) -> String {
    if validate_category(value).is_ok() {
        return value.to_owned();
    }
    let is_legal = |c: char| validate_category(c.encode_utf8(&mut [0; 4])).is_ok();
    let token: String = value.chars().map(|c| if is_legal(c) { c } else { '_' }).collect();
    if token.is_empty() { "_".to_owned() } else { token }
}

fn lookup<'a>(record: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(record, |value, key| match value {
        Value::Array(items) => key.parse::<usize>().ok().and_then(|index| items.get(index)),
        other => other.get(key),
    })
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
        // Only characters that the library refuses in a subject are replaced.
        let odd = json!({"a": "net\u{200b}\u{ad}\u{a0}\u{7f}", "b": "_INBOX", "c": "größe 東京", "d": 7});
        assert_eq!(template("x.{a}.{b}.{c}.{d}").subject(&odd).unwrap(), "x.net____._INBOX.größe_東京.7");
        assert_eq!(template("{at.1.0}").value(&record).unwrap(), json!(7));
        assert_eq!(template("").text(&record).unwrap(), "");
        assert!(template("{properties.nothing}").text(&record).unwrap_err().contains("{properties.nothing}"));
        assert!("{id".parse::<Template>().is_err() && "a{}".parse::<Template>().is_err());
    }

    #[test]
    fn a_place_has_a_default_for_what_is_missing_or_null() {
        let record = json!({"net": "us", "none": null, "empty": ""});
        let filled = |text: &str| text.parse::<Template>().unwrap().subject(&record);
        assert_eq!(filled("x.{net|other}.{missing.deep|other}.{none|a b}").unwrap(), "x.us.other.a_b");
        assert_eq!(filled("x.{empty|other}").unwrap(), "x._", "an empty text is a value");
        assert!(filled("x.{missing}").unwrap_err().contains("{missing|default}"));
        let value = |text: &str| text.parse::<Template>().unwrap().value(&record).unwrap();
        assert_eq!((value("{missing|}"), value("{net|x}")), (json!(""), json!("us")));
        assert!("{|default}".parse::<Template>().is_err());
    }

    #[test]
    fn a_time_is_checked_before_any_record_unless_the_record_says_it() {
        let time = |text: &str| text.parse::<TimeTemplate>();
        assert!(time("someday").unwrap_err().contains("not a time"));
        assert!(time("1517966773").unwrap_err().contains("1517966773000"));
        let of_record = time("{at|2018-02-07}").unwrap();
        assert_eq!(of_record.time(&json!({"at": 1_517_966_773_840_u64})), Ok(1_517_966_773_840));
        assert_eq!(of_record.time(&json!({})), Ok(1_517_961_600_000));
        let why = of_record.time(&json!({"at": 1_517_966_773})).unwrap_err();
        assert!(why.contains("'1517966773'") && why.contains("1517966773000"), "{why}");
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
