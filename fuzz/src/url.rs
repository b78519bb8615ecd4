//! URLs of providers: parsing returns the parts as written, and no secret is shown.
//!
//! Input: a URL.

use a3s_event::provider::ProviderUrl;
use a3s_event::{Event, EventError, ProviderRegistry};

use super::check_error;

/// Keys and values in the order of the text.
type Settings = Vec<(String, String)>;

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let url = match ProviderUrl::parse(text) {
        Ok(url) => url,
        Err(error) => return check_error(&error),
    };
    let settings = settings(text);
    let found: Settings = url.settings().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    assert_eq!(found, settings, "{text:?}");

    let credentials = url.username().map(|name| (name, url.password()));
    let again = written(&url, credentials, &settings);
    assert_eq!(ProviderUrl::parse(&again).expect("what was written is read"), url, "{again:?} for {text:?}");

    // The text does not depend on secrets.
    let shown = url.to_string();
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    let other_settings: Settings =
        settings.iter().map(|(key, _)| (key.clone(), "other".to_owned())).collect();
    let others = credentials.map(|_| ("other", Some("other")));
    let other = ProviderUrl::parse(&written(&url, others, &other_settings)).expect("only values differ");
    assert_eq!(other.to_string().len(), shown.len(), "{shown:?} shows a secret");
    assert_eq!(format!("{url:?}"), format!("ProviderUrl({shown})"));

    // Only settings that the provider declares not secret are shown.
    let registry = ProviderRegistry::builtin();
    let scheme = registry.scheme(url.scheme());
    let is_open = |key: &str| {
        scheme.is_some_and(|scheme| {
            scheme.settings().any(|setting| setting.key() == key && !setting.is_secret())
        })
    };
    let hidden = |(key, value): (String, String)| {
        let value = if is_open(&key) { value } else { "other".to_owned() };
        (key, value)
    };
    let other_secrets: Settings = settings.into_iter().map(hidden).collect();
    let other = ProviderUrl::parse(&written(&url, others, &other_secrets)).expect("only values differ");
    assert_eq!(registry.redacted(&other), registry.redacted(&url), "a secret is shown");

    if url.scheme() == "memory" {
        check_memory(text);
    }
}

/// Checks that a provider that connects can be used, with any settings.
fn check_memory(text: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let publishing = async {
        let provider = match ProviderRegistry::builtin().connect(text).await {
            Ok(provider) => provider,
            Err(error) => return check_error(&error),
        };
        assert_eq!(provider.name(), "memory");
        let event = Event::new(provider.build_subject("a", "b"), "a", "", "", serde_json::Value::Null);
        match provider.publish(&event).await {
            Ok(sequence) => assert_eq!(sequence, 1),
            // The settings limit the length of a subject and of an event.
            Err(error @ (EventError::TooLarge { .. } | EventError::InvalidSubject { .. })) => {
                check_error(&error);
            }
            Err(error) => panic!("{error}"),
        }
    };
    runtime.block_on(publishing);
}

/// Returns the settings of an accepted text, in which all escapes are complete.
fn settings(text: &str) -> Settings {
    let (_, query) = text.split_once('?').unwrap_or_default();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(key, value)| (decoded(key), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, behind) = part.split_at(2);
        bytes.push(u8::from_str_radix(digits, 16).expect("two hexadecimal digits"));
        bytes.extend_from_slice(behind.as_bytes());
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// Returns a URL with these parts, escaped wherever possible.
fn written(url: &ProviderUrl, credentials: Option<(&str, Option<&str>)>, settings: &Settings) -> String {
    let mut text = format!("{}:", url.scheme());
    let path = encoded(url.path()).replace("%2F", "/");
    if credentials.is_some() || !url.authority().is_empty() || path.is_empty() || path.starts_with('/') {
        text += "//";
    }
    if let Some((name, password)) = credentials {
        text += &encoded(name);
        if let Some(password) = password {
            text = text + ":" + &encoded(password);
        }
        text += "@";
    }
    text = text + &encoded(url.authority()) + &path;
    for (number, (key, value)) in settings.iter().enumerate() {
        text = text + if number == 0 { "?" } else { "&" } + &encoded(key) + "=" + &encoded(value);
    }
    text
}

fn encoded(text: &str) -> String {
    let escape = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}
