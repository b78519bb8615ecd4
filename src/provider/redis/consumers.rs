//! The state of consumers.

use std::collections::BTreeSet;

use super::keys::Keys;
use super::lag;
use super::script::infos::{self, Log, State};
use super::script::{Run, consumers};
use crate::error::Result;
use crate::provider::ConsumerInfo;

/// Number of consumers in a call.
const CONSUMERS: usize = 100;

/// Returns the state of all consumers, in the order of their names.
pub(super) async fn infos(server: &impl Run, keys: &Keys, prefix: &str) -> Result<Vec<ConsumerInfo>> {
    const OPERATION: &str = "consumers";
    let names = names(server, keys, OPERATION).await?;
    let (mut found, mut log) = (Vec::new(), Log::default());
    for names in names.chunks(CONSUMERS) {
        let infos = infos::read(server.run(OPERATION, &infos::infos(keys, names)).await?)?;
        log = infos.log;
        // One that was deleted meanwhile is left out.
        found
            .extend(names.iter().zip(infos.states).filter_map(|(name, state)| Some((name.as_str(), state?))));
    }
    let consumers: Vec<_> = found.iter().map(|(name, state)| (*name, state)).collect();
    let lags = lag::lags(server, keys, OPERATION, prefix, log, &consumers).await?;
    let mut infos = Vec::with_capacity(found.len());
    for ((name, state), lag) in consumers.into_iter().zip(lags) {
        let mut info = ConsumerInfo::new(name, &state.filter, state.is_durable);
        info.lag = lag;
        info.pending = state.pending;
        info.redelivered = state.redelivered;
        info.last_progress = state.progress;
        info.given_up = Some(state.given_up);
        infos.push(info);
    }
    Ok(infos)
}

/// Returns the lag of one consumer; 0 if it does not exist.
pub(super) async fn lag(server: &impl Run, keys: &Keys, prefix: &str, name: &str) -> Result<u64> {
    const OPERATION: &str = "lag";
    let call = infos::infos(keys, &[name.to_owned()]);
    let infos = infos::read(server.run(OPERATION, &call).await?)?;
    let consumers: Vec<(&str, &State)> = infos.states.iter().flatten().map(|state| (name, state)).collect();
    let lags = lag::lags(server, keys, OPERATION, prefix, infos.log, &consumers).await?;
    Ok(lags.into_iter().sum())
}

/// Returns the names of all consumers, in order.
async fn names(server: &impl Run, keys: &Keys, operation: &'static str) -> Result<Vec<String>> {
    let mut names = BTreeSet::new();
    let mut position = 0;
    loop {
        let page = consumers::read(server.run(operation, &consumers::consumers(keys, position)).await?)?;
        names.extend(page.names);
        position = page.next;
        if position == 0 {
            return Ok(names.into_iter().collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::redis::script::server::Server;
    use crate::provider::redis::stored::{Consumer, Content, Local, Position};

    #[tokio::test]
    async fn very_many_consumers_are_listed_in_order() {
        for server in Server::all() {
            let local = Local::of(server);
            let keys = local.empty("many");
            Content::default().fill(&local, &keys);
            assert!(infos(&local, &keys, "events").await.unwrap().is_empty());
            let mut names: Vec<String> = (0..1_300).map(|number| format!("consumer-{number}")).collect();
            for name in &names {
                let consumer = Consumer {
                    name: name.clone(),
                    filter: "events.>".to_owned(),
                    position: Position::After(0),
                    backlog: Vec::new(),
                    pending: 0,
                    redelivered: 0,
                    exhausted: 0,
                    progress: None,
                    is_durable: true,
                };
                consumer.add(&local, &keys);
            }
            names.sort_unstable();
            let found = infos(&local, &keys, "events").await.unwrap();
            assert_eq!(
                found.iter().map(|info| &info.name).collect::<Vec<_>>(),
                names.iter().collect::<Vec<_>>()
            );
            assert!(found.iter().all(|info| info.lag == 0));
            assert_eq!(lag(&local, &keys, "events", "absent").await.unwrap(), 0);
        }
    }
}
