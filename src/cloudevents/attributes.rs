//! Legal names and values of attributes: "Context Attributes" and "Type System" of CloudEvents 1.0.2.

use std::borrow::Cow;

use fluent_uri::{Uri, UriRef};

use crate::error::EventError;
use crate::text::shorten;

/// Maximum length of an extension name that is read or written, in characters. The specification advises at most 20.
pub const MAX_ATTRIBUTE_NAME_LEN: usize = 63;

/// Names of the attributes that the specification defines, and of the members of the JSON format.
const CORE_NAMES: [&str; 9] =
    ["specversion", "id", "source", "type", "datacontenttype", "dataschema", "subject", "time", "data"];

/// Returns true if an extension may have this name: lower-case ASCII letters and digits, and none of the defined names.
pub(super) fn is_extension_name(name: &str) -> bool {
    is_attribute_name(name) && !CORE_NAMES.contains(&name)
}

/// Returns true for 1 to 63 lower-case ASCII letters and digits.
pub(super) fn is_attribute_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_ATTRIBUTE_NAME_LEN
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Returns true if the text is a String of the type system: no control character, no noncharacter.
pub(super) fn is_string(text: &str) -> bool {
    // Without an early exit the compiler checks many bytes at a time.
    let (found, all) = text
        .bytes()
        .fold((false, 0), |(found, all), byte| (found | (byte < 0x20) | (byte == 0x7f), all | byte));
    !found && (all < 0x80 || !text.chars().any(is_disallowed))
}

/// Returns true for control characters and for code points that Unicode calls noncharacters.
pub(super) fn is_disallowed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe
}

/// Returns true if the text is a non-empty URI-reference of RFC 3986.
pub(super) fn is_uri_reference(text: &str) -> bool {
    !text.is_empty() && UriRef::parse(text).is_ok()
}

/// Returns true if the text is a URI of RFC 3986, which has a scheme.
pub(super) fn is_uri(text: &str) -> bool {
    Uri::parse(text).is_ok()
}

/// Returns true if the text has the form of a media type of RFC 2046: `type/subtype`, then parameters after a `;`.
pub(super) fn is_media_type(text: &str) -> bool {
    kind_of(text).is_some()
        && text.bytes().all(|byte| matches!(byte, 0x20..=0x7e))
        && text.trim() == text
        && parameters(text).is_some()
}

/// Returns type and subtype of a media type.
fn kind_of(content_type: &str) -> Option<(&str, &str)> {
    let is_token = |part: &str| !part.is_empty() && part.bytes().all(is_token_byte);
    essence(content_type).split_once('/').filter(|(kind, subtype)| is_token(kind) && is_token(subtype))
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`{|}~".contains(&byte)
}

/// Returns the parameters of a media type, with names as they are and values without quotes. Returns `None` if they do
/// not follow RFC 9110. As an exception, unquoted values that are not tokens are accepted, such as `type=text/xml`.
fn parameters(content_type: &str) -> Option<Vec<(&str, Cow<'_, str>)>> {
    let mut found = Vec::new();
    let mut rest = content_type.split_once(';').map_or("", |(_, rest)| rest);
    loop {
        rest = rest.trim_matches([' ', '\t']);
        if rest.is_empty() {
            return Some(found);
        }
        if let Some(behind) = rest.strip_prefix(';') {
            rest = behind;
            continue;
        }
        let (name, behind) = rest.split_once('=')?;
        let name = name.trim_end_matches([' ', '\t']);
        let behind = behind.trim_start_matches([' ', '\t']);
        let (value, behind) = match behind.strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let end = behind.find(';').unwrap_or(behind.len());
                let (value, behind) = behind.split_at_checked(end)?;
                let value = value.trim_end_matches([' ', '\t']);
                // A comma would join two values of the header.
                let is_plain = |byte: u8| byte.is_ascii_graphic() && !b",\"\\".contains(&byte);
                (!value.is_empty() && value.bytes().all(is_plain)).then_some(())?;
                (Cow::Borrowed(value), behind)
            }
        };
        let behind = behind.trim_start_matches([' ', '\t']);
        let is_whole = behind.is_empty() || behind.starts_with(';');
        (is_whole && !name.is_empty() && name.bytes().all(is_token_byte)).then_some(())?;
        found.push((name, value));
        rest = behind;
    }
}

/// Returns the text up to the closing quote, and the rest after it.
fn unquoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((Cow::Owned(value), text.get(at + 1..)?)),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// Returns true if data of this type is a JSON value. Data without a type is JSON.
pub(crate) fn is_json(content_type: Option<&str>) -> bool {
    let Some(content_type) = content_type else { return true };
    let Some((_, subtype)) = kind_of(content_type) else { return false };
    ends_with_ignoring_case(subtype, "+json") || subtype.eq_ignore_ascii_case("json")
}

/// Returns true if text of this type is UTF-8 or ASCII. Without a `charset` it is UTF-8.
#[cfg(feature = "webhook")]
pub(crate) fn is_utf8(content_type: &str) -> bool {
    let is_known = |charset: &str| {
        ["utf-8", "utf8", "us-ascii", "ascii"].iter().any(|known| charset.eq_ignore_ascii_case(known))
    };
    parameters(content_type).is_some_and(|parameters| {
        parameters.iter().all(|(name, value)| !name.eq_ignore_ascii_case("charset") || is_known(value))
    })
}

/// Returns true if data of this type is read as text by default.
pub(super) fn is_textual(content_type: &str) -> bool {
    let Some((kind, subtype)) = essence(content_type).split_once('/') else { return false };
    kind.eq_ignore_ascii_case("text")
        || subtype.eq_ignore_ascii_case("xml")
        || ends_with_ignoring_case(subtype, "+xml")
}

/// Returns the media type without its parameters.
pub(super) fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

fn ends_with_ignoring_case(text: &str, end: &str) -> bool {
    let start = text.len().saturating_sub(end.len());
    text.get(start..).is_some_and(|tail| tail.eq_ignore_ascii_case(end))
}

pub(super) fn invalid(field: &'static str, value: &str, rule: impl Into<String>) -> EventError {
    EventError::InvalidEvent { field, value: shorten(value), rule: rule.into() }
}

pub(super) const STRING_RULE: &str = "must have no control characters or noncharacters";
pub(super) const NAME_RULE: &str =
    "must have 1 to 63 lower-case ASCII letters and digits, and must not name a defined attribute";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_letters_and_digits() {
        for name in ["a", "tenant", "traceparent", "0", &"a".repeat(63)] {
            assert!(is_extension_name(name), "{name}");
        }
        for name in ["", "My_Ext", "myExt", "a-b", "é", "data", "id", "time", &"a".repeat(64)] {
            assert!(!is_extension_name(name), "{name}");
        }
    }

    #[test]
    fn strings_have_no_control_character_and_no_noncharacter() {
        for text in ["", "plain", "zwölf €", "\u{1F600}", "\u{fffd}", "\u{a0}"] {
            assert!(is_string(text), "{text:?}");
        }
        for text in
            ["a\nb", "\0", "\u{7f}", "\u{80}", "\u{9f}", "é\u{1f}", "\u{fdd0}", "\u{ffff}", "\u{10fffe}"]
        {
            assert!(!is_string(text), "{text:?}");
        }
    }

    #[test]
    fn uri_references_follow_rfc_3986() {
        for text in [
            "https://github.com/cloudevents",
            "mailto:cncf-wg-serverless@lists.cncf.io",
            "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
            "/sensors/tn-1234567/alerts",
            "1-555-123-4567",
            "reuters",
            "#fragment",
            "http://[::1]:80/?q=%20",
        ] {
            assert!(is_uri_reference(text), "{text}");
        }
        for text in
            ["", "price desk", "100%", "a:b c", "1a:b", "é", "a\\b", "<x>", "http://[::1", "a#b#c", "%zz"]
        {
            assert!(!is_uri_reference(text), "{text}");
        }
        assert!(is_uri("https://schemas.example/order.json#/definitions/a"));
        assert!(!is_uri("/relative"));
    }

    #[test]
    fn media_types_decide_what_data_is() {
        for text in ["application/json", "text/xml; charset=utf-8", "application/vnd.a+json", "image/png"] {
            assert!(is_media_type(text), "{text}");
        }
        for text in
            ["", "json", "/json", "text/", "text/a b", "text/plain; x=\n", "text/plain; x=é", " text/plain"]
        {
            assert!(!is_media_type(text), "{text}");
        }
        for text in ["a/b;", "a/b;;x=1", r#"a/b; x="a;b,\"c""#, "a/b; x = 1", "a/b; type=text/xml"] {
            assert!(is_media_type(text), "{text}");
        }
        for text in
            ["a/b; x", "a/b; =1", "a/b; x=", r#"a/b; x="1"#, r#"a/b; x="1"2"#, "a/b; x=1, c/d", "a/b, c/d"]
        {
            assert!(!is_media_type(text), "{text}");
        }
        assert!(is_json(None));
        assert!(is_json(Some("text/json")) && is_json(Some("model/gltf+json")));
        assert!(!is_json(Some("text/plain, application/json")));
        assert!(is_json(Some("application/JSON; charset=utf-8")));
        assert!(is_json(Some("application/problem+json")));
        assert!(!is_json(Some("application/jsonp")));
        assert!(!is_json(Some("json")));
        assert!(is_textual("text/plain") && is_textual("application/atom+xml") && !is_textual("image/png"));
    }
}
