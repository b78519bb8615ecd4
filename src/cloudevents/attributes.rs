//! What an attribute may be called and may hold: "Context Attributes" and "Type System" of CloudEvents 1.0.2.

use fluent_uri::{Uri, UriRef};

use crate::error::{EventError, shorten};

/// Longest name of an extension that is read or written. The specification advises at most 20 characters.
pub const MAX_ATTRIBUTE_NAME_LEN: usize = 63;

/// The attributes that the specification defines, and the member names of the JSON format.
const CORE_NAMES: [&str; 9] =
    ["specversion", "id", "source", "type", "datacontenttype", "dataschema", "subject", "time", "data"];

/// Whether an extension may have this name: lower-case ASCII letters and digits, and none of the defined names.
pub(super) fn is_extension_name(name: &str) -> bool {
    is_attribute_name(name) && !CORE_NAMES.contains(&name)
}

/// Lower-case ASCII letters and digits.
pub(super) fn is_attribute_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_ATTRIBUTE_NAME_LEN
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Whether the text is a String of the type system: no control character, no noncharacter.
pub(super) fn is_string(text: &str) -> bool {
    // Without an early exit the compiler looks at many bytes at a time.
    let (found, all) = text
        .bytes()
        .fold((false, 0), |(found, all), byte| (found | (byte < 0x20) | (byte == 0x7f), all | byte));
    !found && (all < 0x80 || !text.chars().any(is_disallowed))
}

/// Control characters and the code points that Unicode calls noncharacters.
pub(super) fn is_disallowed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe
}

/// Whether the text is a non-empty URI-reference of RFC 3986.
pub(super) fn is_uri_reference(text: &str) -> bool {
    !text.is_empty() && UriRef::parse(text).is_ok()
}

/// Whether the text is a URI of RFC 3986, which has a scheme.
pub(super) fn is_uri(text: &str) -> bool {
    Uri::parse(text).is_ok()
}

/// Whether the text has the form of a media type of RFC 2046: `type/subtype`, and parameters behind a `;`.
pub(super) fn is_media_type(text: &str) -> bool {
    let is_token = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`{|}~".contains(&b))
    };
    essence(text).split_once('/').is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype))
        && text.bytes().all(|byte| matches!(byte, 0x20..=0x7e))
        && text.trim() == text
}

/// Whether data of this type is a JSON value; data without a type is.
pub(super) fn is_json(content_type: Option<&str>) -> bool {
    let Some(content_type) = content_type else { return true };
    let Some((_, subtype)) = essence(content_type).split_once('/') else { return false };
    ends_with_ignoring_case(subtype, "+json") || subtype.eq_ignore_ascii_case("json")
}

/// Whether data of this type is read as text where nothing else says what it is.
pub(super) fn is_textual(content_type: &str) -> bool {
    let Some((kind, subtype)) = essence(content_type).split_once('/') else { return false };
    kind.eq_ignore_ascii_case("text")
        || subtype.eq_ignore_ascii_case("xml")
        || ends_with_ignoring_case(subtype, "+xml")
}

/// The media type without its parameters.
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

pub(super) const STRING_RULE: &str = "must have no control character and no noncharacter";
pub(super) const NAME_RULE: &str =
    "an extension's name has 1 to 63 lower-case ASCII letters and digits, and is no defined attribute";

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
        assert!(is_json(None));
        assert!(is_json(Some("application/JSON; charset=utf-8")));
        assert!(is_json(Some("application/problem+json")));
        assert!(!is_json(Some("application/jsonp")));
        assert!(!is_json(Some("json")));
        assert!(is_textual("text/plain") && is_textual("application/atom+xml") && !is_textual("image/png"));
    }
}
