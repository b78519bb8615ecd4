//! `bus`: edits the buses of the config file, and keeps its comments and order.

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use a3s_event::provider::{ProviderRegistry, ProviderUrl};
use clap_complete::ArgValueCandidates;
use serde::Serialize;
use toml_edit::{DocumentMut, Item, Table, value};

use super::subscribe::eprint_note;
use crate::args::Global;
use crate::bus::{redacted, warn_of_credentials};
use crate::complete;
use crate::config::{Config, encode, user_file};
use crate::failure::{Failure, Outcome};
use crate::output::{Output, Row};
use crate::replace::replace;
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event bus add staging nats://127.0.0.1:4222
  a3s-event bus use staging
  a3s-event bus list";

const EXAMPLE_ADD: &str = "Example:
  a3s-event bus add local sqlite:///var/lib/events.db
  echo nats://127.0.0.1:4222 | a3s-event bus add other -";
const EXAMPLE_LIST: &str = "Example:\n  a3s-event bus list --output json";
const EXAMPLE_USE: &str = "Example:\n  a3s-event bus use local";
const EXAMPLE_RM: &str = "Example:\n  a3s-event bus rm other";

/// Maximum size of a URL from stdin in bytes.
const MAX_URL: u64 = 64 << 10;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Give a URL a name
    #[command(after_help = EXAMPLE_ADD)]
    Add {
        /// The name: letters, digits, `-` and `_`
        name: String,
        /// The URL, or - to read it from stdin, which keeps a password out of the command line. The path of a SQLite
        /// file is stored as an absolute one
        url: String,
    },
    /// List the buses, and mark the one that commands use
    #[command(after_help = EXAMPLE_LIST)]
    List,
    /// Choose the bus that commands use without --url
    #[command(after_help = EXAMPLE_USE)]
    Use {
        /// The name of a bus
        #[arg(add = ArgValueCandidates::new(complete::buses))]
        name: String,
    },
    /// Remove a name; the bus itself stays as it is
    #[command(after_help = EXAMPLE_RM)]
    Rm {
        /// The name of a bus
        #[arg(add = ArgValueCandidates::new(complete::buses))]
        name: String,
    },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BusRow {
    name: String,
    /// The URL without secrets.
    url: String,
    is_default: bool,
}

impl Row for BusRow {
    const COLUMNS: &'static [&'static str] = &["", "name", "url"];

    fn cells(&self) -> Vec<String> {
        let mark = if self.is_default { "*" } else { "" };
        vec![mark.to_owned(), text::line(&self.name), text::line(&self.url)]
    }
}

pub(crate) fn run(global: &Global, command: Command) -> Outcome {
    let path = global.config.clone().map_or_else(user_file, Ok)?;
    let mut out = Output::new(global.output);
    let mut file = ConfigFile::read(path)?;
    match command {
        Command::List => {}
        Command::Add { name, url } => {
            file.add(&name, &given(url)?)?;
            file.write()?;
        }
        Command::Use { name } => {
            file.choose(&name)?;
            file.write()?;
        }
        Command::Rm { name } => {
            for key in file.remove(&name)? {
                eprint_note(&format!("'{key}' named this bus and was also removed"));
            }
            file.write()?;
        }
    }
    out.rows(&file.rows())
}

/// Returns the URL of the command line or of stdin.
fn given(url: String) -> Outcome<String> {
    let url = match url.as_str() {
        "-" => {
            let mut text = String::new();
            let read = std::io::stdin().lock().take(MAX_URL).read_to_string(&mut text);
            read.map_err(|error| Failure::Input(format!("stdin: {error}")))?;
            text.trim().to_owned()
        }
        _ => {
            warn_of_credentials(&url, None);
            url
        }
    };
    let parsed = ProviderUrl::parse(&url)?;
    let registry = ProviderRegistry::builtin();
    let Some(scheme) = registry.scheme(parsed.scheme()) else {
        let known: Vec<_> = registry.schemes().collect();
        let scheme = text::shorten(parsed.scheme(), 20);
        return Err(Failure::Input(format!(
            "URL: the scheme '{scheme}' is unknown; known are {}",
            known.join(", ")
        )));
    };
    match scheme.file(&parsed) {
        Some(path) if path.is_relative() => absolute(&url, scheme.name(), &path),
        _ => Ok(url),
    }
}

/// Makes the path of a file absolute, so that its URL means the same file in every folder.
fn absolute(url: &str, scheme: &str, path: &Path) -> Outcome<String> {
    let wrong = |why: &str| Failure::Input(format!("path '{}': {why}", path.display()));
    let absolute = std::path::absolute(path).map_err(|error| wrong(&error.to_string()))?;
    let file =
        absolute.to_str().ok_or_else(|| wrong("the working folder is not UTF-8: give an absolute path"))?;
    let settings = url.find('?').and_then(|at| url.get(at..)).unwrap_or_default();
    Ok(format!("{scheme}://{}{settings}", encode(file)))
}

/// The config file, open for changes.
struct ConfigFile {
    path: PathBuf,
    config: Config,
    document: DocumentMut,
}

impl ConfigFile {
    /// Reads the file. A missing file is empty.
    fn read(path: PathBuf) -> Outcome<Self> {
        let unreadable = |why: String| Failure::Input(format!("config file {}: {why}", path.display()));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Self { path, config: Config::default(), document: DocumentMut::new() });
            }
            Err(error) => return Err(unreadable(error.to_string())),
        };
        // It reports errors without showing values.
        let config = Config::load(Some(&path))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let document = text.parse().map_err(|_| unreadable("it is not TOML".to_owned()))?;
        Ok(Self { path, config, document })
    }

    fn add(&mut self, name: &str, url: &str) -> Outcome {
        let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_legal) {
            let shown = text::shorten(name, 64);
            return Err(Failure::Input(format!(
                "name '{shown}': must be 1 to 64 letters, digits, '-' or '_', so that it differs from a URL"
            )));
        }
        if self.config.buses.contains_key(name) {
            return Err(Failure::Input(format!(
                "bus '{name}' exists: choose another name, or remove it first with `bus rm {name}`"
            )));
        }
        let buses = self.document.entry("buses").or_insert_with(|| Item::Table(Table::new()));
        let Some(buses) = buses.as_table_like_mut() else {
            return Err(Failure::Input("config file: 'buses' is not a table".to_owned()));
        };
        buses.insert(name, value(url));
        self.config.buses.insert(name.to_owned(), url.to_owned());
        Ok(())
    }

    fn choose(&mut self, name: &str) -> Outcome {
        self.check_known(name)?;
        match self.document.get_mut("url").and_then(Item::as_value_mut) {
            // Keeps a comment behind the value.
            Some(url) => {
                let decor = url.decor().clone();
                *url = name.into();
                *url.decor_mut() = decor;
            }
            None => {
                self.document.insert("url", value(name));
            }
        }
        self.config.url = Some(name.to_owned());
        Ok(())
    }

    /// Removes a bus and the keys that name it, and returns these keys.
    fn remove(&mut self, name: &str) -> Outcome<Vec<&'static str>> {
        self.check_known(name)?;
        if let Some(buses) = self.document.get_mut("buses").and_then(Item::as_table_like_mut) {
            buses.remove(name);
        }
        self.config.buses.remove(name);
        let mut removed = Vec::new();
        for (key, named) in [("url", &mut self.config.url), ("dlq_url", &mut self.config.dlq_url)] {
            if named.as_deref() == Some(name) {
                *named = None;
                self.document.remove(key);
                removed.push(key);
            }
        }
        Ok(removed)
    }

    fn check_known(&self, name: &str) -> Outcome {
        if self.config.buses.contains_key(name) {
            Ok(())
        } else {
            self.config.named(name).map(drop).and(Err(unnamed(name)))
        }
    }

    fn rows(&self) -> Vec<BusRow> {
        let row = |(name, url): (&String, &String)| BusRow {
            name: name.clone(),
            url: redacted(url),
            is_default: self.config.url.as_ref() == Some(name),
        };
        self.config.buses.iter().map(row).collect()
    }

    /// Writes the file. Only the user can read a new one, because a URL may hold a password.
    fn write(&self) -> Outcome {
        let unwritable = |error: std::io::Error| {
            Failure::Input(format!("config file {}: cannot be written: {error}", self.path.display()))
        };
        if let Some(folder) = self.path.parent()
            && user_file().is_ok_and(|file| file == self.path)
        {
            fs::create_dir_all(folder).map_err(unwritable)?;
        }
        replace(&self.path, self.document.to_string().as_bytes()).map_err(unwritable)
    }
}

fn unnamed(name: &str) -> Failure {
    Failure::Input(format!(
        "'{}' is a URL: give the name of a bus, as `bus list` shows it",
        text::shorten(&redacted(name), 80)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_keeps_its_comments_and_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let text = "# mine\nurl = \"a\" # the default\n\n[buses] # all of them\nb = \"memory://\"   # second\na = \"memory://\"\n";
        fs::write(&path, text).unwrap();
        let mut file = ConfigFile::read(path.clone()).unwrap();
        file.add("c", "sqlite:c.db").unwrap();
        file.choose("b").unwrap();
        file.write().unwrap();
        let expected = text.replace("url = \"a\"", "url = \"b\"") + "c = \"sqlite:c.db\"\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);

        let mut file = ConfigFile::read(path.clone()).unwrap();
        assert_eq!(file.remove("b").unwrap(), ["url"]);
        file.write().unwrap();
        let config = Config::load(Some(&path)).unwrap();
        assert_eq!((config.url, config.buses.len()), (None, 2));
    }
}
