//! Streams of a server, with their size and limits.

use std::collections::BTreeSet;
use std::time::Duration;

use super::keys::Keys;
use super::script::{Run, stream, streams};
use crate::error::Result;
use crate::provider::{StreamLimits, StreamSummary};

/// Returns the size and the limits of a stream, or `None` if it does not exist.
pub(super) async fn stream(
    server: &impl Run,
    keys: &Keys,
    operation: &'static str,
) -> Result<Option<stream::Stream>> {
    stream::read(server.run(operation, &stream::stream(keys)).await?)
}

/// Returns the streams below a key prefix. In a cluster these are the streams of one node.
pub(super) async fn summaries(server: &impl Run, key_prefix: &str, own: &str) -> Result<Vec<StreamSummary>> {
    const OPERATION: &str = "streams";
    let mut names = BTreeSet::new();
    let mut position = 0;
    loop {
        let reply = server.run(OPERATION, &streams::streams(key_prefix, position)).await?;
        let part = streams::read(key_prefix, reply)?;
        names.extend(part.names);
        position = part.next;
        if position == 0 {
            break;
        }
    }
    let mut summaries = Vec::new();
    for name in names {
        // One that was deleted meanwhile is left out.
        if let Some(found) = stream(server, &Keys::new(key_prefix, &name), OPERATION).await? {
            summaries.push(summary(&name, &found, name == own));
        }
    }
    Ok(summaries)
}

fn summary(name: &str, found: &stream::Stream, is_own: bool) -> StreamSummary {
    let mut summary = StreamSummary::new(name, vec![format!("{}.>", found.prefix)]);
    summary.events = found.events;
    summary.bytes = found.bytes;
    summary.consumers = usize::try_from(found.consumers).unwrap_or(usize::MAX);
    summary.is_own = is_own;
    let max_age = Duration::from_millis(found.max_age_ms);
    summary.limits = Some(StreamLimits::new(found.max_events, found.max_bytes, max_age));
    summary
}

#[cfg(test)]
mod tests {
    use redis::pipe;

    use super::*;
    use crate::provider::redis::script::server::Server;
    use crate::provider::redis::stored::Local;

    #[tokio::test]
    async fn every_stream_below_the_prefix_is_listed() {
        for server in Server::all() {
            let local = Local::of(server);
            let prefix = "list[s]*";
            let keys = |name| Keys::new(prefix, name);
            let mut fill = pipe();
            let limits = [("max_events", 7), ("max_bytes", 0), ("max_age", 1_500), ("bytes", 20)];
            fill.hset(keys("a").meta(), "prefix", "events").hset_multiple(keys("a").meta(), &limits);
            fill.cmd("XADD").arg(keys("a").log()).arg("1-1").arg(&[("s", "events.x"), ("e", "{}")]);
            fill.hset_multiple(keys("a").consumers(), &[("one", "1 "), ("two", "2 ")]);
            fill.hset(keys("b").meta(), "prefix", "other");
            // Neither of these is a stream below the prefix.
            fill.hset(keys("gone").meta(), "last", 1).set(keys("text").meta(), 1);
            fill.hset(Keys::new("lists", "c").meta(), "prefix", "events");
            for number in 0..3_000 {
                fill.set(format!("{}{number}", keys("a").base()), number);
            }
            local.send(&fill);
            let found = summaries(&local, prefix, "b").await.unwrap();
            let named: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.is_own)).collect();
            assert_eq!(named, [("a", false), ("b", true)]);
            assert_eq!(found[0].subjects, ["events.>"]);
            assert_eq!((found[0].events, found[0].bytes, found[0].consumers), (1, 20, 2));
            let limits = found[0].limits.unwrap();
            assert_eq!((limits.max_events, limits.max_bytes), (Some(7), None));
            assert_eq!(limits.max_age, Some(Duration::from_millis(1_500)));
            assert!(found[1].limits.unwrap().is_unlimited());
            assert_eq!(stream(&local, &keys("absent"), "info").await.unwrap(), None);
        }
    }
}
