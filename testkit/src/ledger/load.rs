//! The load of a round: the events, and how handlers treat them.

use std::time::Duration;

use a3s_event::{Event, EventProvider};
use serde_json::json;

/// Category of the events.
const CATEGORY: &str = "ledger";
const KEY: &str = "key";
const FATE: &str = "fate";

/// The load that one worker process puts on the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// Number of tasks that publish.
    pub publishers: u32,
    /// Pause of a publisher between two events.
    pub pause: Duration,
    /// True if the worker consumes.
    pub consumers: bool,
    /// Number of different keys.
    pub keys: u32,
    /// Ack wait of the consumers.
    pub lease: Duration,
    /// Number of attempts of an event.
    pub attempts: u64,
    /// Seed of the pauses and of the events that fail.
    pub seed: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            publishers: 2,
            pause: Duration::from_millis(10),
            consumers: true,
            keys: 8,
            lease: Duration::from_secs(3),
            attempts: 6,
            seed: 1,
        }
    }
}

/// How the handlers of every consumer treat an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Fine,
    /// The first attempt fails.
    FailsOnce,
    /// Every attempt fails.
    Fails,
    /// The first attempt fails for good.
    Fatal,
}

impl Fate {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Fine, "fine"),
        (Self::FailsOnce, "fails once"),
        (Self::Fails, "fails"),
        (Self::Fatal, "fatal"),
    ];

    fn draw(rng: &mut fastrand::Rng) -> Self {
        match rng.u32(0..200) {
            0 => Self::Fatal,
            1 => Self::Fails,
            2..12 => Self::FailsOnce,
            _ => Self::Fine,
        }
    }

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(fate, _)| *fate == self).map_or("", |(_, name)| name)
    }
}

impl Load {
    /// Returns the key of an event.
    pub fn key(event: &Event) -> String {
        event.payload[KEY].as_str().unwrap_or_default().to_owned()
    }

    /// Returns the fate that the payload of an event names, which is the same in every process.
    pub(super) fn fate(event: &Event) -> Fate {
        let named = event.payload[FATE].as_str();
        Fate::ALL.iter().find(|(_, name)| Some(*name) == named).map_or(Fate::Fine, |(fate, _)| *fate)
    }

    /// Returns the filter of all events.
    pub(super) fn filter(provider: &dyn EventProvider) -> String {
        provider.category_subject(CATEGORY)
    }

    /// Creates an event with an id of its own.
    pub(super) fn event(&self, provider: &dyn EventProvider, id: String, rng: &mut fastrand::Rng) -> Event {
        let key = format!("k{}", rng.u32(0..self.keys.max(1)));
        let payload = json!({ KEY: key, FATE: Fate::draw(rng).name() });
        let subject = provider.build_subject(CATEGORY, &key);
        let mut event = Event::new(subject, CATEGORY, "", "a3s-event-ledger", payload);
        event.id = id;
        event
    }
}

#[cfg(test)]
mod tests {
    use a3s_event::MemoryProvider;

    use super::*;

    #[test]
    fn an_event_names_its_key_and_its_fate() {
        let (load, provider) = (Load::default(), MemoryProvider::default());
        let mut rng = fastrand::Rng::with_seed(1);
        let events: Vec<_> = (0..2_000).map(|n| load.event(&provider, n.to_string(), &mut rng)).collect();
        for (fate, _) in Fate::ALL {
            assert!(events.iter().any(|event| Load::fate(event) == fate), "{fate:?}");
        }
        for event in &events {
            assert_eq!(event.subject, format!("events.ledger.{}", Load::key(event)));
        }
    }
}
