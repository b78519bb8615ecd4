use std::path::PathBuf;

use super::*;
use crate::provider::ProviderRegistry;

/// A config with a field of each kind.
#[derive(Default)]
struct Config {
    flag: bool,
    count: u64,
    number: u32,
    few: Option<usize>,
    signed: i64,
    size: u64,
    span: Duration,
    seconds: u64,
    name: String,
    file: Option<PathBuf>,
    mode: Mode,
    token: Option<String>,
    key_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Mode {
    #[default]
    Fast,
    Safe,
}

impl Choice for Mode {
    const ALL: &'static [(&'static str, Self)] = &[("fast", Self::Fast), ("safe", Self::Safe)];
    const ABSENT: &'static [(&'static str, &'static str)] = &[("remote", "net")];
}

static SETTINGS: Settings<Config> = Settings::new(&[
    row!("flag" = flag, Setting::flag().formerly(&["flg"])),
    row!("count" = count, Setting::count("events").least(5).most(10).zero("unlimited")),
    row!("number" = number, Setting::number()),
    row!("few" = few, Setting::count("servers").only(&[1, 3, 5])),
    row!("signed" = signed, Setting::count("events")),
    row!("size" = size, Setting::size("bytes").least(1_024)),
    row!("span" = span, Setting::duration().shorter_than(Duration::from_secs(10)).formerly(&["length"])),
    row!("age" = seconds, Setting::seconds()),
    row!("(path)" = name, Setting::text().rule(|name| name != "bad", "not be bad")),
    row!("file" = file, Setting::file()),
    row!("mode" = mode, Setting::choice::<Mode>()),
    row!("token" = token, Setting::text().secret().rule(|token| token.len() > 3, "be longer than 3")),
    row!("key_file" = key_file, Setting::file().secret()),
]);

fn read(query: &str) -> Result<Config> {
    let mut config = Config::default();
    SETTINGS.read(&ProviderUrl::parse(&format!("test://?{query}"))?, &mut config).map(|()| config)
}

fn refused(query: &str) -> String {
    match read(query) {
        Err(EventError::Config(text)) => text,
        Err(other) => panic!("{query}: {other}"),
        Ok(_) => panic!("{query} was taken"),
    }
}

#[test]
fn a_url_sets_values_of_every_kind() {
    let config = read(
        "flag=true&count=7&number=4&few=3&signed=9&size=64KiB&span=250ms&age=2m&file=a/b.pem&mode=SAFE&token=s3cret&key_file=k",
    )
    .unwrap();
    assert!(config.flag);
    assert_eq!((config.count, config.number), (7, 4));
    assert_eq!((config.few, config.signed, config.size), (Some(3), 9, 65_536));
    assert_eq!((config.span, config.seconds), (Duration::from_millis(250), 120));
    assert_eq!((config.file, config.mode), (Some("a/b.pem".into()), Mode::Safe));
    assert_eq!((config.token.as_deref(), config.key_file), (Some("s3cret"), Some("k".into())));
    assert_eq!(read("size=2MiB").unwrap().size, 2 << 20);
    assert_eq!(read("count=0&span=0&age=0").unwrap().count, 0);
}

#[test]
fn a_wrong_value_is_refused_with_its_rule() {
    for (query, error) in [
        ("flag=yes", "flag \"yes\" in the provider URL: must be true or false"),
        ("count=many", "must be a whole number of events"),
        ("count=4", "must be at least 5, at most 10, or 0 (unlimited)"),
        ("count=11", "at most 10"),
        ("count=-6", "must be a whole number"),
        ("number=one", "must be a whole number"),
        ("number=4294967296", "must be at most 4294967295"),
        ("few=2", "must be 1, 3 or 5"),
        ("few=", "must be a whole number"),
        ("signed=9223372036854775808", "must be at most 9223372036854775807"),
        ("signed=999999999999999999999999999999999999999999", "must be a whole number"),
        ("size=1MB", "must be a number of bytes, such as"),
        ("size=999999999999999999999999999999999999GiB", "must be a number of bytes"),
        ("size=1000", "must be at least 1KiB"),
        ("span=5", "must be a duration with its unit"),
        ("span=10s", "must be below 10s"),
        ("age=1500ms", "must be whole seconds"),
        ("mode=slow", "must be fast or safe or remote"),
        ("mode=remote", "needs the feature net"),
    ] {
        let text = refused(query);
        assert!(text.contains(error) && text.contains(" in the provider URL: "), "{query}: {text}");
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_known_ones() {
    let known = "valid are flag, count, number, few, signed, size, span, age, file, mode, token, key_file";
    for key in ["cuont", "(path)", "path", "count_secs", ""] {
        let text = refused(&format!("{key}=1"));
        assert!(text.starts_with("unknown setting '") && text.ends_with(known), "{text}");
    }
}

#[test]
fn a_former_key_is_refused_with_the_present_one() {
    for (key, error) in [
        ("flg", "setting 'flg' in a test URL: its name is now 'flag'"),
        ("span_ms", "its name is now 'span', and its value has a unit"),
        ("age_secs", "its name is now 'age', and its value has a unit"),
        ("length", "its name is now 'span'"),
        ("length_us", "its name is now 'span'"),
    ] {
        let text = refused(&format!("{key}=1"));
        assert!(text.contains(error), "{text}");
    }
}

#[tokio::test]
async fn the_former_keys_of_the_providers_name_the_present_ones() {
    let registry = ProviderRegistry::builtin();
    for (scheme, former, present) in [
        ("memory", "max_age_secs", "max_age"),
        ("memory", "max_payload", "max_event_bytes"),
        ("memory", "dedup_window_secs", "dedup_window"),
        ("sqlite", "create", "create_if_missing"),
        ("sqlite", "busy_timeout_ms", "busy_timeout"),
        ("sqlite", "group_events", "commit_max_events"),
        ("sqlite", "group_bytes", "commit_max_bytes"),
        ("sqlite", "group_delay_us", "commit_delay"),
        ("nats", "create", "create_if_missing"),
        ("nats", "connect_timeout_secs", "connect_timeout"),
        ("nats", "publish_deadline_secs", "publish_timeout"),
        ("nats", "max_message_size", "max_event_bytes"),
        ("tls", "wire", "format"),
    ] {
        if registry.scheme(scheme).is_some() {
            let error = registry.connect(&format!("{scheme}:?{former}=1")).await.err().unwrap().to_string();
            assert!(error.contains(&format!("its name is now '{present}'")), "{former}: {error}");
        }
    }
}

#[test]
fn every_field_of_a_config_is_checked() {
    type Change = fn(&mut Config);
    let changes: [(Change, &str); 6] = [
        (|config| config.count = 4, "count 4: must be at least 5"),
        (|config| config.few = Some(2), "few 2: must be 1, 3 or 5"),
        (|config| config.signed = -1, "signed -1: must be at least 0"),
        (|config| config.span = Duration::MAX, "span 18446744073709551615.999999999s: must be below 10s"),
        (|config| config.name = "bad".to_owned(), "name \"bad\": must not be bad"),
        (|config| config.token = Some("abc".to_owned()), "token ***: must be longer than 3"),
    ];
    let fresh = || Config { size: 1_024, ..Config::default() };
    SETTINGS.check(&fresh()).unwrap();
    for (change, error) in changes {
        let mut config = fresh();
        change(&mut config);
        let text = SETTINGS.check(&config).unwrap_err().to_string();
        assert!(text.contains(error), "{text}");
    }
}

struct Debugged<'a, C: 'static>(&'a Settings<C>, &'a C);

impl<C> fmt::Debug for Debugged<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug("Config", self.1, f)
    }
}

#[test]
fn debug_shows_every_value_but_the_secrets() {
    let config = read("count=7&span=250ms&age=2m&token=canary&key_file=canary").unwrap();
    assert_eq!(
        format!("{:?}", Debugged(&SETTINGS, &config)),
        "Config { flag: false, count: 7, number: 0, few: None, signed: 0, size: 0, span: 250ms, seconds: 2m, name: \"\", \
         file: None, mode: \"fast\", token: ***, key_file: *** }"
    );
}

/// Sets every secret and returns the number of secrets.
fn hides_its_secrets<C>(settings: &'static Settings<C>, mut config: C) -> usize {
    let is_set = |row: &&Row<C>| row.setting.is_secret && row.setting.is_in_query();
    for row in settings.rows.iter().filter(is_set) {
        (row.set)(&mut config, Value::Text("canary".to_owned())).unwrap();
        assert_eq!((row.get)(&config), Value::Text("canary".to_owned()), "{}", row.setting.key);
    }
    let shown = format!("{:?} {:?}", Debugged(settings, &config), settings.check(&config));
    assert!(!shown.contains("canary"), "{shown}");
    settings.rows.iter().filter(is_set).count()
}

#[test]
fn no_config_of_any_provider_shows_its_secrets() {
    assert_eq!(hides_its_secrets(&SETTINGS, Config::default()), 2);
    hides_its_secrets(&crate::provider::memory::SETTINGS, crate::MemoryProvider::builder());
    #[cfg(feature = "sqlite")]
    hides_its_secrets(&crate::provider::sqlite::SETTINGS, crate::SqliteConfig::in_memory());
    #[cfg(feature = "nats")]
    assert_eq!(
        hides_its_secrets(
            &crate::provider::nats::SETTINGS,
            crate::NatsProvider::builder(crate::NatsConfig::default())
        ),
        4
    );
    #[cfg(feature = "redis")]
    assert_eq!(hides_its_secrets(&crate::provider::redis::SETTINGS, crate::RedisConfig::default()), 3);
}

/// Returns an accepted value of a setting, so that only the tested part of a URL is wrong.
fn taken(setting: &Setting) -> String {
    match setting.kind {
        Kind::Flag => "true".to_owned(),
        Kind::Count(_) | Kind::Size(_) => setting.only.first().or(setting.min.as_ref()).unwrap().to_string(),
        Kind::Duration | Kind::Seconds => "1s".to_owned(),
        Kind::Text | Kind::File => "canary".to_owned(),
        Kind::Choice(names) => names()[0].to_owned(),
    }
}

#[tokio::test]
async fn no_secret_of_any_provider_is_shown_anywhere() {
    let registry = ProviderRegistry::builtin();
    let mut secrets = 0;
    for name in registry.schemes() {
        let settings: Vec<_> = registry.scheme(name).unwrap().settings().collect();
        let in_query = settings.iter().filter(|setting| setting.is_in_query());
        for secret in in_query.filter(|setting| setting.is_secret()) {
            secrets += 1;
            // Alone, with each other setting, with a wrong value of that setting, and given twice.
            let others = settings.iter().filter(|other| other.is_in_query() && other.key() != secret.key());
            let mut queries =
                vec![String::new(), "&no_such_setting=1".to_owned(), format!("&{}=canary", secret.key())];
            for other in others {
                queries.push(format!("&{}={}", other.key(), taken(other)));
                queries.push(format!("&{}=%00canary", other.key()));
            }
            for query in queries {
                let text = format!("{name}://alice:canary@127.0.0.1:1?{}=canary-secret{query}", secret.key());
                let mut shown = String::new();
                if let Ok(url) = ProviderUrl::parse(&text) {
                    shown = format!("{url} {url:?}");
                    let redacted = registry.redacted(&url);
                    assert!(!redacted.contains("canary-secret") && !redacted.contains("alice"), "{redacted}");
                }
                let error = registry.connect(&text).await.err().unwrap();
                shown += &format!(" {error} {error:?}");
                assert!(!shown.contains("canary-secret") && !shown.contains("alice"), "{text}: {shown}");
            }
        }
    }
    assert!(secrets >= if cfg!(feature = "nats") { 8 } else { 0 }, "{secrets}");
}
