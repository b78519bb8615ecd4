//! The retention limits of a stream, in words and as JSON.

use std::time::Duration;

use a3s_event::provider::{DiscardPolicy, LimitSource, StreamLimits, StreamSummary};
use a3s_event::{EventError, EventProvider, duration};
use serde::Serialize;

use crate::failure::Outcome;
use crate::text;

/// The limits of a stream as JSON. `null` is unlimited.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Limits {
    max_events: Option<u64>,
    max_bytes: Option<u64>,
    max_age_ms: Option<u64>,
    /// `old`: a full stream drops its oldest events; `new`: it refuses publishes.
    discard: &'static str,
    /// `stream`: the limits apply to every program; `url`: they are those of the URL, and other programs may use others.
    source: &'static str,
    /// Fraction of `maxEvents` or `maxBytes` in use, whichever is closer to its limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    fill: Option<f64>,
    #[serde(skip)]
    limits: StreamLimits,
}

impl Limits {
    pub(crate) fn of(stream: &StreamSummary) -> Option<Self> {
        let limits = stream.limits?;
        let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        Some(Self {
            max_events: limits.max_events,
            max_bytes: limits.max_bytes,
            max_age_ms: limits.max_age.map(ms),
            discard: if limits.discard == DiscardPolicy::New { "new" } else { "old" },
            source: if limits.source == LimitSource::Connection { "url" } else { "stream" },
            fill: fill(stream, &limits),
            limits,
        })
    }

    /// Formats the retention, the behaviour at the limit, the fill and the source on one line.
    pub(crate) fn sentence(&self) -> String {
        let mut said = format!("keeps {}", self.kept());
        if let Some(at_limit) = self.at_limit() {
            said.push_str(&format!("; full: {at_limit}"));
        }
        if let Some(fill) = self.fill() {
            said.push_str(&format!("; {fill} full"));
        }
        if self.limits.source == LimitSource::Connection {
            said.push_str("; limits of this URL, because the file stores none");
        }
        said
    }

    /// Formats the retention for a column, such as `100,000 events and 7 days`.
    pub(crate) fn kept_by(&self) -> String {
        let by = if self.limits.source == LimitSource::Connection { " (this URL)" } else { "" };
        self.kept() + by
    }

    fn kept(&self) -> String {
        let StreamLimits { max_events, max_bytes, max_age, .. } = self.limits;
        let events = max_events.map(|max| text::count(max, "event"));
        let bytes = max_bytes.map(text::bytes);
        let kept: Vec<_> = [events, bytes, max_age.map(age)].into_iter().flatten().collect();
        match kept.split_last() {
            None => "everything".to_owned(),
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} and {last}", others.join(", ")),
        }
    }

    /// Returns the effect of a publish to a full stream; `None` if the stream cannot be full.
    pub(crate) fn at_limit(&self) -> Option<&'static str> {
        (self.max_events.is_some() || self.max_bytes.is_some()).then_some(match self.limits.discard {
            DiscardPolicy::New => "publishes are refused",
            _ => "the oldest are dropped",
        })
    }

    /// Formats the fill of the stream, such as `0.4 %`.
    pub(crate) fn fill(&self) -> Option<String> {
        let percent = self.fill? * 100.0;
        Some(match percent {
            0.0 => "0 %".to_owned(),
            percent if percent < 0.1 => "under 0.1 %".to_owned(),
            percent if percent < 10.0 => format!("{percent:.1} %"),
            percent => format!("{percent:.0} %"),
        })
    }
}

/// Returns the provider's own stream; `None` for a provider that lists none.
pub(crate) async fn own_stream(provider: &dyn EventProvider) -> Outcome<Option<StreamSummary>> {
    match provider.streams().await {
        Ok(streams) => Ok(streams.into_iter().find(|stream| stream.is_own)),
        Err(EventError::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[allow(clippy::cast_precision_loss, reason = "a fraction for people needs no 64 bits")]
fn fill(stream: &StreamSummary, limits: &StreamLimits) -> Option<f64> {
    let part = |count: u64, max: Option<u64>| Some(count as f64 / max? as f64);
    let parts = [part(stream.events, limits.max_events), part(stream.bytes, limits.max_bytes)];
    parts.into_iter().flatten().reduce(f64::max)
}

/// Formats a duration, in words if it is a whole number of a unit.
fn age(age: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let whole = |(unit, _): &&(u64, &str)| age.subsec_nanos() == 0 && age.as_secs().is_multiple_of(*unit);
    match UNITS.iter().find(whole) {
        Some((unit, name)) => text::count(age.as_secs() / unit, name),
        None => duration::format(age),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(events: u64, bytes: u64, limits: StreamLimits) -> String {
        let mut stream = StreamSummary::new("S", Vec::new());
        (stream.events, stream.bytes, stream.limits) = (events, bytes, Some(limits));
        Limits::of(&stream).unwrap().sentence()
    }

    #[test]
    fn limits_are_said_in_words() {
        let week = Duration::from_secs(7 * 86_400);
        let usual = StreamLimits::new(100_000, 0, week);
        assert_eq!(
            said(400, 1, usual),
            "keeps 100,000 events and 7 days; full: the oldest are dropped; 0.4 % full"
        );
        assert_eq!(
            said(1, 1, usual),
            "keeps 100,000 events and 7 days; full: the oldest are dropped; under 0.1 % full"
        );
        assert_eq!(said(9, 9, StreamLimits::default()), "keeps everything");
        assert_eq!(said(9, 9, StreamLimits::new(0, 0, Duration::from_millis(1_500))), "keeps 1500ms");
        let mut of_file = StreamLimits::new(10, 0, week);
        of_file.source = LimitSource::Connection;
        assert_eq!(
            said(1, 1, of_file),
            "keeps 10 events and 7 days; full: the oldest are dropped; 10 % full; limits of this URL, because the file \
             stores none"
        );
        let mut refuses = StreamLimits::new(10, 4_500_000, Duration::from_secs(5_400));
        refuses.discard = DiscardPolicy::New;
        assert_eq!(
            said(1, 4_500_000, refuses),
            "keeps 10 events, 4.5 MB and 90 minutes; full: publishes are refused; 100 % full"
        );
    }
}
