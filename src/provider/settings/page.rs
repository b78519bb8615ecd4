//! Generates the tables of the configuration page from the tables of the providers.

use super::*;

const PAGE: &str = "src/docs/configuration.md";
/// Environment variable: if set, the test writes the page instead of comparing it.
const WRITE: &str = "A3S_EVENT_WRITE_DOCS";

impl Setting {
    /// Returns the allowed values in words.
    fn values(&self) -> String {
        let of = match self.kind {
            Kind::Flag => "`true`, `false`".to_owned(),
            Kind::Count("") => "number".to_owned(),
            Kind::Count(unit) | Kind::Size(unit) => unit.to_owned(),
            Kind::Duration => "duration".to_owned(),
            Kind::Seconds => "duration in whole seconds".to_owned(),
            Kind::Text => "text".to_owned(),
            Kind::File => "file".to_owned(),
            Kind::Choice(names) => format!("`{}`", names().join("`, `")),
        };
        let (range, rule) = (self.range(), self.rule.map(|(_, rule)| format!("must {rule}")));
        let zero = self.zero.filter(|_| range.is_empty()).map(|meaning| format!("0 means {meaning}"));
        let secret = self.is_secret.then(|| "secret".to_owned());
        let parts = [Some(of), secret, Some(range).filter(|range| !range.is_empty()), zero, rule];
        parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }

    /// Returns a value as written in a URL.
    fn written(&self, value: &Value) -> String {
        match (self.kind, value) {
            (_, Value::Unset) => self.unset.to_owned(),
            (_, Value::Text(text)) if text.is_empty() => self.unset.to_owned(),
            (_, Value::Text(text)) => format!("`{text}`"),
            (Kind::Size(_), Value::Number(bytes)) => format!("`{}`", shown_size(*bytes)),
            (_, value) => format!("`{value}`"),
        }
    }
}

/// Returns the table of a provider, with the values of its default config.
fn table<C>(settings: &Settings<C>, default: &C) -> String {
    let mut lines = vec![
        "| in a URL | in code | values | default | meaning |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    for row in settings.rows {
        let setting = &row.setting;
        let key = if setting.is_in_query() { format!("`{}`", setting.key) } else { setting.key.to_owned() };
        let field = format!("`{}`{}", setting.field, if setting.is_of_config { " *" } else { "" });
        let default = setting.written(&row.value(default));
        assert!(!setting.doc.is_empty(), "{key} is not described");
        let cells = [key, field, setting.values(), default, setting.doc.to_owned()]
            .map(|cell| cell.replace('|', "\\|"));
        lines.push(format!("| {} |", cells.join(" | ")).replace("|  |", "| |"));
    }
    lines.join("\n") + "\n"
}

/// Returns the page with this table between the markers of this name.
fn with_table(page: &str, name: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- settings of {name} -->\n"), "<!-- end of settings -->");
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("{PAGE} has no {begin}"));
    let (_, after) = rest.split_once(end).unwrap_or_else(|| panic!("{PAGE}: {begin} has no end"));
    format!("{before}{begin}\n{table}\n{end}{after}")
}

#[test]
fn the_page_about_configuration_has_every_setting() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(&path).unwrap();
    let mut expected = with_table(
        &page,
        "memory",
        &table(&crate::provider::memory::SETTINGS, &crate::MemoryProvider::builder()),
    );
    #[cfg(feature = "sqlite")]
    {
        use crate::provider::sqlite::{SETTINGS, SqliteConfig};
        expected = with_table(&expected, "sqlite", &table(&SETTINGS, &SqliteConfig::file("")));
    }
    #[cfg(feature = "nats")]
    {
        use crate::provider::nats::{NatsProvider, SETTINGS};
        let builder = NatsProvider::builder(crate::NatsConfig::default());
        expected = with_table(&expected, "nats", &table(&SETTINGS, &builder));
    }
    #[cfg(feature = "redis")]
    {
        use crate::provider::redis::{RedisConfig, SETTINGS};
        expected = with_table(&expected, "redis", &table(&SETTINGS, &RedisConfig::default()));
    }
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, expected).unwrap();
        return;
    }
    for (line, (found, expected)) in page.lines().zip(expected.lines()).enumerate() {
        assert_eq!(
            found,
            expected,
            "{PAGE}:{}: run this test with {WRITE}=1 to write the page anew",
            line + 1
        );
    }
    assert_eq!(page.len(), expected.len(), "{PAGE}: run this test with {WRITE}=1 to write the page anew");
}
