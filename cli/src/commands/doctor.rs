//! `doctor`: what is wrong with a connection or a config, step by step.

use std::time::Duration;

use a3s_event::provider::{ProviderRegistry, ProviderUrl, Scheme};
use a3s_event::{EventProvider, HistoryQuery, Support};
use serde::Serialize;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::args::Global;
use crate::bus::{App, redacted};
use crate::config::{Origin, user_file};
use crate::failure::{Failure, Outcome};
use crate::output::{Output, Row};
use crate::stored::{Unreadable, newest};
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event doctor
  a3s-event --url nats://127.0.0.1:4222 doctor";

/// Longest time for one step on the way to a server.
const STEP: Duration = Duration::from_secs(5);

/// One step.
#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    ok: bool,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
}

impl Row for Check {
    const COLUMNS: &'static [&'static str] = &["check", "", "found", "advice"];

    fn cells(&self) -> Vec<String> {
        let mark = if self.ok { "ok" } else { "FAIL" }.to_owned();
        vec![self.check.to_owned(), mark, text::line(&self.found), self.advice.unwrap_or_default().to_owned()]
    }
}

pub(crate) async fn run(global: Global) -> Outcome {
    let format = global.output;
    let named = global.config.clone();
    let mut checks = Vec::new();
    let ended = match App::new(global) {
        Ok(mut app) => {
            let path = named.map_or_else(user_file, Ok)?;
            let found = if path.exists() { "read" } else { "not there, which is fine" };
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
                "mend or remove the file, or name another with --config",
            ));
            Err(failure)
        }
    };
    // The app with its stdout is gone.
    Output::new(format).rows(&checks)?;
    ended
}

async fn examine(app: &mut App, checks: &mut Vec<Check>) -> Outcome {
    let url = match app.url() {
        Ok((url, origin)) => {
            let origin = match origin {
                Origin::Given => "given by --url or A3S_EVENT_URL",
                Origin::File => "of the config file",
                Origin::Default => "the default, an embedded file",
            };
            checks.push(passed("bus", format!("{}: {origin}", redacted(&url))));
            url
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
        Err(failure) => {
            let registry = ProviderRegistry::builtin();
            if let Some(port) = registry.scheme(parsed.scheme()).and_then(Scheme::port) {
                for server in parsed.authority().split(',').filter(|server| !server.is_empty()) {
                    checks.push(reach(server, port).await);
                }
            }
            checks.push(failed("connection", &failure, advice(&failure)));
            return Err(failure);
        }
    };
    checks.push(passed("connection", provider.name().to_owned()));
    let read = state(&*provider).await;
    match &read {
        Ok(found) => checks.push(passed("stream", found.clone())),
        Err(failure) => checks.push(failed("stream", failure, advice(failure))),
    }
    checks.push(passed("capabilities", capabilities(&*provider)));
    read.map(drop)
}

/// How far the way to a server goes: its name, then its port.
async fn reach(server: &str, port: u16) -> Check {
    let has_port = server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let server = if has_port { server.to_owned() } else { format!("{server}:{port}") };
    let broken = |found, advice| Check { check: "server", ok: false, found, advice: Some(advice) };
    let addresses: Vec<_> = match timeout(STEP, lookup_host(server.as_str())).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            return broken(format!("{server}: the name is not known: {error}"), "is the host spelled right?");
        }
        Err(_) => return broken(format!("{server}: no answer to its name within {STEP:?}"), "ask your DNS"),
    };
    match timeout(STEP, TcpStream::connect(addresses.as_slice())).await {
        Ok(Ok(_)) => passed("server", format!("{server} takes connections")),
        Ok(Err(error)) => broken(
            format!("{server}: {error}"),
            "nothing listens there: is the server running, and is the port right?",
        ),
        Err(_) => broken(
            format!("{server}: no answer within {STEP:?}"),
            "packets are dropped: a firewall, or a machine that is down",
        ),
    }
}

async fn state(provider: &dyn EventProvider) -> Outcome<String> {
    let info = provider.info().await?;
    let (records, _) = newest(provider, HistoryQuery::new(1)).await?;
    if !provider.health().await? {
        return Err(Failure::Other("the backend answers but makes no progress".to_owned()));
    }
    let unreadable = Unreadable::of(&records).told();
    Ok(format!(
        "{}, {}, {}{}",
        text::count(info.messages, "event"),
        text::count(info.bytes, "byte"),
        text::count(info.consumers as u64, "consumer"),
        unreadable.map_or_else(String::new, |told| format!("; of the newest, {told}"))
    ))
}

/// What an acknowledged publish survives, and what is refused.
fn capabilities(provider: &dyn EventProvider) -> String {
    let capabilities = provider.capabilities();
    let refused: Vec<_> = super::conformance::NEEDS
        .iter()
        .filter(|(need, _)| need.support(&capabilities) == Support::No)
        .map(|(_, name)| *name)
        .collect();
    let refused = if refused.is_empty() { "nothing".to_owned() } else { refused.join(", ") };
    format!("durability {:?}; refused: {refused}", capabilities.durability)
}

fn passed(check: &'static str, found: String) -> Check {
    Check { check, ok: true, found, advice: None }
}

fn failed(check: &'static str, failure: &Failure, advice: &'static str) -> Check {
    Check { check, ok: false, found: failure.message(), advice: Some(advice) }
}

fn advice(failure: &Failure) -> &'static str {
    match failure {
        Failure::Unreachable(text) if text.contains("authoriz") || text.contains("permission") => {
            "the server does not accept the credentials: see user, token or credentials_path of the URL"
        }
        Failure::Unreachable(text) if text.contains("InvalidContentType") => {
            "the server speaks no TLS there: take the scheme without TLS if that is meant"
        }
        Failure::Unreachable(_) => {
            "is the server running, and are host and port right? A firewall drops silently"
        }
        Failure::Other(text) if text.contains("taken by stream") => {
            "name that stream in the URL, or choose another subject_prefix"
        }
        Failure::Input(text) if text.contains("does not exist, and create") => {
            "the first event that is published makes it, if that is its name"
        }
        Failure::Input(_) => "see the settings of the provider in its documentation",
        _ => "the message is the backend's own",
    }
}
