//! Shell completion. The shell calls the program at each tab.
//!
//! The program completes commands, options, and the names of buses, consumers and streams.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use a3s_event::EventProvider;
use a3s_event::provider::ProviderRegistry;
use clap::CommandFactory as _;
use clap_complete::{CompleteEnv, CompletionCandidate};

use crate::args::Cli;
use crate::bus::existing;
use crate::config::Config;
use crate::consumer_name::shown;

/// The variable that tells the program for which shell it completes.
pub(crate) const VARIABLE: &str = "A3S_EVENT_COMPLETE";
/// Timeout for the answer of a bus to a tab.
const TIMEOUT: Duration = Duration::from_millis(1_500);

/// Answers the shell and exits, if the shell called the program for a completion.
pub(crate) fn for_shell() {
    CompleteEnv::with_factory(Cli::command).var(VARIABLE).complete();
}

/// Lists the buses of the config file.
pub(crate) fn buses() -> Vec<CompletionCandidate> {
    let config = config().unwrap_or_default();
    config.buses.keys().map(|name| CompletionCandidate::new(name.as_str())).collect()
}

/// Lists the durable consumers by the names that their programs use.
pub(crate) fn consumers() -> Vec<CompletionCandidate> {
    from_bus(async |bus| {
        let mut consumers = bus.consumers().await.ok()?;
        consumers.retain(|consumer| consumer.durable);
        Some(consumers.iter().map(shown).collect())
    })
}

/// Lists the streams.
pub(crate) fn streams() -> Vec<CompletionCandidate> {
    from_bus(async |bus| Some(bus.streams().await.ok()?.into_iter().map(|stream| stream.name).collect()))
}

/// Returns the distinct names that a bus answers in time. Errors yield none: a message would enter the command line.
fn from_bus(ask: impl AsyncFnOnce(&dyn EventProvider) -> Option<Vec<String>>) -> Vec<CompletionCandidate> {
    let answer = || {
        let (url, _) = config()?.url(option("--url", "A3S_EVENT_URL").as_deref()).ok()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        let answer = runtime.block_on(async {
            let asking = async {
                let bus = ProviderRegistry::builtin().connect_to(existing(&url).ok()?).await.ok()?;
                ask(&*bus).await
            };
            tokio::time::timeout(TIMEOUT, asking).await.ok()?
        });
        runtime.shutdown_background();
        answer
    };
    let mut names: Vec<String> = answer().unwrap_or_default();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(CompletionCandidate::new).collect()
}

fn config() -> Option<Config> {
    Config::load(option("--config", "A3S_EVENT_CONFIG").as_deref().map(Path::new)).ok()
}

/// Returns the value of an option on the completed line, else of its variable.
fn option(name: &str, variable: &str) -> Option<String> {
    value_in(std::env::args_os().skip_while(|word| word != "--").skip(1), name)
        .or_else(|| std::env::var(variable).ok().filter(|value| !value.is_empty()))
}

fn value_in(words: impl Iterator<Item = OsString>, name: &str) -> Option<String> {
    let mut words = words.filter_map(|word| word.into_string().ok());
    let found = words.find_map(|word| {
        Some(word.strip_prefix(name)?.to_owned()).filter(|rest| matches!(rest.as_bytes(), [] | [b'=', ..]))
    })?;
    match found.strip_prefix('=') {
        Some(value) if !value.is_empty() => Some(value.to_owned()),
        // bash splits --url=prod into three words.
        _ => words.find(|word| word != "=").filter(|value| !value.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_line_are_found() {
        let value = |line: &str| value_in(line.split(' ').map(OsString::from), "--url");
        for line in ["x --url prod sub", "x --url=prod sub", "x sub --url = prod"] {
            assert_eq!(value(line).as_deref(), Some("prod"), "{line}");
        }
        for line in ["x sub", "x --url", "x --urls prod", "x --url="] {
            assert_eq!(value(line), None, "{line}");
        }
    }
}
