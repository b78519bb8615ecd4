//! `doctor`: diagnoses a connection or a config step by step, with a paragraph per check.

use std::time::Duration;

use a3s_event::provider::{Durability, ProviderRegistry, ProviderUrl, Scheme};
use a3s_event::{EventProvider, HistoryQuery, Support, duration};
use serde::Serialize;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::args::Global;
use crate::bus::{App, redacted};
use crate::config::{Origin, user_file};
use crate::failure::{Failure, Outcome};
use crate::limits::{Limits, own_stream};
use crate::output::{Format, Output};
use crate::stored::{Unreadable, newest};
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event doctor
  a3s-event --url nats://127.0.0.1:4222 doctor";

/// Part of the provider's message about a missing stream, on a server that has none.
const NO_STREAMS: &str = "the server has no streams";
/// The advice for a server that accepts connections and does not answer.
const FROZEN: &str = "the server accepts connections and does not answer: it is suspended or overloaded; check its process and its log";
/// The message about a file that can be read and not written.
const LOCKED: &str = "the file can be read and stores no event: another program may hold its lock";
/// Timeout for one step of the connection to a server.
const STEP: Duration = Duration::from_secs(5);

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// The check passed, with information for the user.
    Note,
    Fail,
}

impl Status {
    /// Returns the first word of a paragraph, padded to equal width.
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok  ",
            Self::Note => "note",
            Self::Fail => "FAIL",
        }
    }
}

/// One check.
#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    /// If false, the check failed.
    ok: bool,
    status: Status,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
}

impl Check {
    fn paragraph(&self) -> String {
        let found = text::line(&self.found);
        let advice = self.advice.map_or_else(String::new, |advice| format!("\nAdvice: {advice}"));
        format!("{}  {}: {found}{advice}", self.status.word(), self.check)
    }
}

pub(crate) async fn run(global: Global) -> Outcome {
    let format = global.output;
    let named = global.config.clone();
    let mut checks = Vec::new();
    let ended = match App::new(global) {
        Ok(mut app) => {
            let path = named.map_or_else(user_file, Ok)?;
            let found = if path.exists() { "read" } else { "does not exist; it is optional" };
            checks.push(passed("config file", format!("{}: {found}", path.display())));
            match examine(&mut app, &mut checks).await {
                Ok(()) => app.close().await,
                failed => failed,
            }
        }
        Err(failure) => {
            checks.push(failed(
                "config file",
                &failure,
                "correct or remove the file, or name another one with --config",
            ));
            Err(failure)
        }
    };
    // The app has closed its stdout.
    show(&mut Output::new(format), &checks)?;
    ended
}

fn show(out: &mut Output, checks: &[Check]) -> Outcome {
    match out.format {
        Format::Table => {
            for check in checks {
                out.paragraph(&check.paragraph(), "      ")?;
            }
            Ok(())
        }
        Format::Json | Format::Ndjson => out.values(checks),
    }
}

async fn examine(app: &mut App, checks: &mut Vec<Check>) -> Outcome {
    let (url, origin) = match app.url() {
        Ok((url, origin)) => {
            let said = match origin {
                Origin::Given => "given by --url or A3S_EVENT_URL",
                Origin::File => "from the config file",
                Origin::Default => "the default, a SQLite file",
            };
            checks.push(passed("bus", format!("{}: {said}", redacted(&url))));
            (url, origin)
        }
        Err(failure) => {
            checks.push(failed(
                "bus",
                &failure,
                "write a URL such as nats://127.0.0.1:4222 or sqlite:events.db",
            ));
            return Err(failure);
        }
    };
    let parsed = match ProviderUrl::parse(&url) {
        Ok(parsed) => parsed,
        Err(error) => {
            let failure = Failure::from(error);
            checks.push(failed(
                "URL",
                &failure,
                "scheme://[user:password@]host[:port][/stream][?setting=value]",
            ));
            return Err(failure);
        }
    };
    let provider = match app.connect_to_look().await {
        Ok(provider) => provider,
        Err(Failure::Missing(text)) if text.contains(NO_STREAMS) => {
            checks.push(passed("connection", "the server answers".to_owned()));
            checks.push(noted("stream", "no stream yet; the first `pub` or `sub` creates it"));
            return Ok(());
        }
        Err(Failure::Missing(_)) if origin == Origin::Default => {
            checks.push(noted("file", "no file yet; the first `pub` or `sub` creates it"));
            return Ok(());
        }
        Err(failure) => {
            let registry = ProviderRegistry::builtin();
            let mut accepts = false;
            if let Some(port) = registry.scheme(parsed.scheme()).and_then(Scheme::port) {
                for server in parsed.authority().split(',').filter(|server| !server.is_empty()) {
                    let reached = reach(server, port).await;
                    accepts |= reached.ok;
                    checks.push(reached);
                }
            }
            let advice = if accepts && is_silent(&failure) { FROZEN } else { advice(&failure) };
            checks.push(failed("connection", &failure, advice));
            return Err(failure);
        }
    };
    checks.push(passed("connection", provider.name().to_owned()));
    let read = state(&*provider, stores_in_file(&parsed)).await;
    match &read {
        Ok(found) => checks.push(passed("stream", found.clone())),
        Err(failure) => checks.push(failed("stream", failure, advice(failure))),
    }
    checks.push(passed("capabilities", capabilities(&*provider)));
    read.map(drop)
}

/// Resolves the name of a server, then connects to its port.
async fn reach(server: &str, port: u16) -> Check {
    let has_port = server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let server = if has_port { server.to_owned() } else { format!("{server}:{port}") };
    let broken = |found, advice| Check {
        check: "server",
        ok: false,
        status: Status::Fail,
        found,
        advice: Some(advice),
    };
    let addresses: Vec<_> = match timeout(STEP, lookup_host(server.as_str())).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            return broken(
                format!("{server}: the name cannot be resolved: {error}"),
                "check the spelling of the host",
            );
        }
        Err(_) => {
            return broken(
                format!("{server}: resolving the name timed out after {}", duration::format(STEP)),
                "check the DNS server",
            );
        }
    };
    match timeout(STEP, TcpStream::connect(addresses.as_slice())).await {
        Ok(Ok(_)) => passed("server", format!("{server} accepts connections")),
        Ok(Err(error)) => broken(
            format!("{server}: {error}"),
            "no program listens there: start the server, or correct the port",
        ),
        Err(_) => broken(
            format!("{server}: connecting timed out after {}", duration::format(STEP)),
            "check for a firewall that drops packets, and that the machine is up",
        ),
    }
}

/// Returns `true` if the bus is a file.
fn stores_in_file(url: &ProviderUrl) -> bool {
    ProviderRegistry::builtin().scheme(url.scheme()).is_some_and(|scheme| scheme.file(url).is_some())
}

async fn state(provider: &dyn EventProvider, is_file: bool) -> Outcome<String> {
    let info = provider.info().await?;
    let (records, _) = newest(provider, HistoryQuery::new(1)).await?;
    if !provider.health().await? {
        return Err(Failure::Other(if is_file {
            LOCKED.to_owned()
        } else {
            format!("{} answers, but stores no event", provider.name())
        }));
    }
    let limits = own_stream(provider).await?.as_ref().and_then(Limits::of);
    let limits = limits.map_or_else(String::new, |limits| format!("; {}", limits.sentence()));
    let unreadable = Unreadable::of(&records).told();
    Ok(format!(
        "{}, {}, {}{limits}{}",
        text::count(info.messages, "event"),
        text::bytes(info.bytes),
        text::count(info.consumers as u64, "consumer"),
        unreadable.map_or_else(String::new, |told| format!("; of the newest, {told}"))
    ))
}

/// Formats the durability of an acknowledged publish, and the refused capabilities.
fn capabilities(provider: &dyn EventProvider) -> String {
    let capabilities = provider.capabilities();
    let refused: Vec<_> = super::conformance::NEEDS
        .iter()
        .filter(|(need, _)| need.support(&capabilities) == Support::No)
        .map(|(_, name)| *name)
        .collect();
    let refused = if refused.is_empty() { "nothing".to_owned() } else { refused.join(", ") };
    let durability = match capabilities.durability {
        Durability::None => "no failure",
        Durability::Deferred => "failures after the next sync",
        Durability::ProcessCrash => "a crash of the process that stores it",
        Durability::PowerLoss => "a loss of power",
        Durability::NodeLoss => "the loss of a minority of the nodes",
        _ => "nothing that the provider declares",
    };
    format!("a published event survives {durability}; refused: {refused}")
}

fn passed(check: &'static str, found: String) -> Check {
    Check { check, ok: true, status: Status::Ok, found, advice: None }
}

fn noted(check: &'static str, found: &str) -> Check {
    Check { status: Status::Note, ..passed(check, found.to_owned()) }
}

fn failed(check: &'static str, failure: &Failure, advice: &'static str) -> Check {
    Check { check, ok: false, status: Status::Fail, found: failure.message(), advice: Some(advice) }
}

/// Returns `true` for a server that did not answer in time.
fn is_silent(failure: &Failure) -> bool {
    let silent = |text: &str| {
        ["timed out", "did not answer", "no answer", "no connection within"]
            .iter()
            .any(|word| text.contains(word))
    };
    matches!(failure, Failure::Unreachable(text) if silent(text))
}

fn advice(failure: &Failure) -> &'static str {
    match failure {
        Failure::Missing(text) | Failure::Input(text) if text.contains("the folder '") => {
            "create the folder, or correct the path"
        }
        Failure::Other(text) | Failure::Unreachable(text) if text == LOCKED || text.contains("is locked") => {
            "end the program that writes to the file, such as an open transaction of sqlite3 (`fuser FILE` names its process); \
             if there is none, check that the disk has room"
        }
        Failure::Other(text) | Failure::Input(text) if text.contains("JetStream") => {
            "start the server with JetStream: `nats-server -js`, or a jetstream block in its configuration"
        }
        Failure::Unreachable(text) if text.contains("authoriz") || text.contains("permission") => {
            "the server refuses the credentials: check user, token or credentials_path of the URL"
        }
        Failure::Unreachable(text) if text.contains("InvalidContentType") => {
            "the server does not speak TLS there: use the scheme without TLS, or correct the port"
        }
        Failure::Unreachable(_) => {
            "start the server, or correct host and port; a firewall drops packets silently"
        }
        Failure::Other(text) if text.contains("taken by stream") => {
            "name that stream in the URL, or choose another subject_prefix"
        }
        Failure::Missing(_) => "correct the name; if it is right, the first `pub` or `sub` creates it",
        Failure::Input(_) => "check the settings of the URL in the provider's documentation",
        _ => "the message comes from the backend",
    }
}
