//! Selects the bus: by the option, the environment, the config file, else the default file in the user's data folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use serde::Deserialize;

use crate::failure::{Failure, Outcome};

/// Maximum size of a config file in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The config file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The default bus.
    pub(crate) url: Option<String>,
    /// The bus that keeps the dead letters.
    pub(crate) dlq_url: Option<String>,
    /// Names of URLs, valid in place of any URL.
    #[serde(default)]
    pub(crate) buses: BTreeMap<String, String>,
}

/// The origin of a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// `--url` or the environment.
    Given,
    /// The config file.
    File,
    /// The default: no URL was given.
    Default,
}

impl Config {
    /// Reads the named file, which must exist, or the user's config file, which may be absent.
    pub(crate) fn load(named: Option<&Path>) -> Outcome<Self> {
        let path = match named {
            Some(path) => path.to_path_buf(),
            None => user_file()?,
        };
        match File::open(&path) {
            Ok(file) => Self::read(file, &path),
            Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => Ok(Self::default()),
            Err(error) => Err(bad(&path, &error.to_string())),
        }
    }

    fn read(file: File, path: &Path) -> Outcome<Self> {
        let mut text = String::new();
        let read = file.take(MAX_BYTES + 1).read_to_string(&mut text);
        let read = read.map_err(|error| bad(path, &error.to_string()))?;
        if read as u64 > MAX_BYTES {
            return Err(bad(path, "is larger than 1 MiB"));
        }
        // The full message shows the line, which may hold a password. Its short text and the position do not.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        toml::from_str(text).map_err(|error| {
            let line =
                error.span().and_then(|span| text.get(..span.start)).map(|head| head.split('\n').count());
            let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            bad(path, &format!("{place}{}", error.message()))
        })
    }

    /// Returns the URL of the bus and its origin.
    pub(crate) fn url(&self, given: Option<&str>) -> Outcome<(String, Origin)> {
        if let Some(given) = given {
            return Ok((self.named(given)?, Origin::Given));
        }
        match &self.url {
            Some(url) => Ok((self.named(url)?, Origin::File)),
            None => Ok((default_url()?, Origin::Default)),
        }
    }

    /// Resolves a name to its URL; a URL resolves to itself.
    pub(crate) fn named(&self, text: &str) -> Outcome<String> {
        if text.contains(':') {
            return Ok(text.to_owned());
        }
        let unknown = || {
            let known: Vec<_> = self.buses.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none are".to_owned() } else { known.join(", ") };
            Failure::Input(format!(
                "'{text}' is neither a URL, such as nats://127.0.0.1:4222, nor a bus of the config file (named there: {known})"
            ))
        };
        self.buses.get(text).cloned().ok_or_else(unknown)
    }
}

fn bad(path: &Path, why: &str) -> Failure {
    Failure::Input(format!("config file {}: {why}", path.display()))
}

/// Returns the path of the user's config file.
pub(crate) fn user_file() -> Outcome<PathBuf> {
    Ok(folders()?.config_dir().join("a3s-event").join("config.toml"))
}

/// Returns the URL of the embedded bus: a SQLite file in the user's data folder.
fn default_url() -> Outcome<String> {
    let file = default_folder()?.join("events.db");
    let file =
        file.to_str().ok_or_else(|| Failure::Input("the data folder is not UTF-8: use --url".to_owned()))?;
    Ok(format!("sqlite://{}", encode(file)))
}

/// Returns the folder of the embedded bus.
pub(crate) fn default_folder() -> Outcome<PathBuf> {
    Ok(folders()?.data_dir().join("a3s-event"))
}

/// Creates the folder of the embedded bus.
pub(crate) fn create_default_folder() -> Outcome {
    let folder = default_folder()?;
    std::fs::create_dir_all(&folder)
        .map_err(|error| Failure::Input(format!("data folder {}: {error}", folder.display())))
}

fn folders() -> Outcome<impl BaseStrategy> {
    etcetera::choose_base_strategy().map_err(|error| {
        Failure::Input(format!("the user's folders are unknown ({error}): use --url and --config"))
    })
}

/// Encodes a path for a URL.
pub(crate) fn encode(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for c in path.chars() {
        match c {
            '%' => encoded.push_str("%25"),
            '?' => encoded.push_str("%3F"),
            '@' => encoded.push_str("%40"),
            c => encoded.push(c),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn load(text: &[u8]) -> Outcome<Config> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        Config::load(Some(file.path()))
    }

    #[test]
    fn a_file_is_read_and_names_buses() {
        let config = load(b"\xef\xbb\xbfurl = \"prod\"\r\n[buses]\r\nprod = \"nats://h\"\r\n").unwrap();
        assert_eq!(config.url(None).unwrap(), ("nats://h".to_owned(), Origin::File));
        assert_eq!(config.url(Some("memory://")).unwrap(), ("memory://".to_owned(), Origin::Given));
        assert!(config.url(Some("staging")).unwrap_err().message().contains("prod"));
    }

    #[test]
    fn what_is_wrong_is_named_without_its_value() {
        let wrong: [(&[u8], &str); 5] = [
            (b"\nurll = \"nats://u:s3cret@h\"", "line 2: unknown field `urll`, expected one of `url`"),
            (b"url = 5", "expected a string"),
            (b"url = \"nats://u:s3cret@h\"\nurl = \"x\"", "duplicate key"),
            (b"url = \"\xff\"", "UTF-8"),
            (&[b' '; 1 + (1 << 20)], "1 MiB"),
        ];
        for (text, why) in wrong {
            let failure = load(text).unwrap_err();
            assert!(failure.message().contains(why), "{}", failure.message());
            assert!(!failure.message().contains("s3cret"));
            assert_eq!(failure.code(), 3);
        }
        assert_eq!(Config::load(Some(Path::new("/nowhere/at/all"))).unwrap_err().code(), 3);
        assert_eq!(Config::load(Some(Path::new("/"))).unwrap_err().code(), 3);
    }
}
