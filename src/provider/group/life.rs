//! Walks through the state machine to find the life cycle of a delivery, which the diagram in ARCHITECTURE.md shows.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{ConsumerConfig, Fetched, GroupState, Lease, Start, Time};
use crate::provider::AckKind;
use crate::types::SubscribeOptions;

const PAGE: &str = "ARCHITECTURE.md";
/// Environment variable: if set, the test writes the diagram instead of comparing it.
const WRITE: &str = "A3S_EVENT_WRITE_DOCS";
/// Transitions that the bus adds to the state machine if it has dead letters.
const DEAD_LETTERS: &str =
    "    given_up --> dead_lettered: by the bus\n    terminated --> dead_lettered: by the bus\n";
/// Number of steps per path. More steps show nothing new, because two attempts are allowed.
const STEPS: usize = 6;

/// One event and its consumer.
#[derive(Clone)]
struct World {
    group: GroupState,
    now: Time,
    /// Lease of the latest delivery.
    lease: Option<Lease>,
    is_retained: bool,
    is_terminated: bool,
}

/// A step in the life of the event.
#[derive(Clone)]
enum Step {
    /// A member asks, either at once or when the leased or nacked event is due.
    Fetch {
        later: bool,
    },
    Settle(AckKind),
    /// Retention drops the event, and a member asks at its due time.
    Retention,
}

fn steps() -> Vec<Step> {
    let delay = Some(Duration::from_secs(1));
    let kinds =
        [AckKind::Ack, AckKind::Nak(delay), AckKind::Term("never".into()), AckKind::Extend, AckKind::Release];
    let fetches = [Step::Fetch { later: false }, Step::Fetch { later: true }, Step::Retention];
    fetches.into_iter().chain(kinds.map(Step::Settle)).collect()
}

impl World {
    fn new() -> Self {
        let options = SubscribeOptions { max_deliver: Some(2), ..SubscribeOptions::default() };
        let config = ConsumerConfig::new("events.>", &options).unwrap();
        let group = GroupState::new(config, Start::after(0));
        Self { group, now: Time::ZERO, lease: None, is_retained: true, is_terminated: false }
    }

    fn state(&self) -> &'static str {
        match self.group.pending.get(1) {
            Some(pending) if pending.leased => "leased",
            Some(_) => "waiting",
            None if self.group.exhausted() > 0 => "given_up",
            None if self.group.cursor() == 0 && self.is_retained => "stored",
            None if self.is_terminated => "terminated",
            None if self.is_retained => "acked",
            None => "dropped",
        }
    }

    /// Takes a step. Returns the cause of the change, if there was one.
    fn take(&mut self, step: &Step) -> Option<&'static str> {
        let before = self.state();
        let done = match step {
            Step::Settle(kind) => {
                let (lease, now) = (self.lease?, self.now);
                self.group.settle(lease, kind, || now).ok()?;
                self.is_terminated |= matches!(kind, AckKind::Term(_));
                kind.verb()
            }
            Step::Fetch { later } => {
                if *later {
                    self.now = self.now.after(self.group.config().ack_wait);
                }
                match (self.fetch()?, before) {
                    ("stored", _) | (_, "stored") => "fetch",
                    (_, "leased") => "the ack wait ends",
                    _ => "it is due",
                }
            }
            Step::Retention => {
                self.is_retained = false;
                self.now = self.now.after(self.group.config().ack_wait);
                self.fetch()?;
                "retention"
            }
        };
        Some(done)
    }

    /// Asks for an event. Returns `None` if that changed nothing.
    fn fetch(&mut self) -> Option<&'static str> {
        let before = (self.state(), self.lease);
        let is_retained = self.is_retained;
        let first = if is_retained { 1 } else { 2 };
        if !is_retained && self.group.cursor() == 0 {
            self.group.skip_to(1, 1);
        }
        let next = |after: u64| (is_retained && after < 1).then_some(1);
        if let Fetched::Deliver(lease) = self.group.fetch(self.now, first, next) {
            self.lease = Some(lease);
        }
        (before != (self.state(), self.lease)).then(|| self.state())
    }
}

/// Collects every change on the paths of `left` steps.
fn walk(world: &World, left: usize, found: &mut BTreeSet<(&'static str, String, &'static str)>) {
    if left == 0 {
        return;
    }
    for step in steps() {
        let mut next = world.clone();
        if let Some(cause) = next.take(&step) {
            let (from, to) = (world.state(), next.state());
            // Final states: later changes of the record do not matter.
            if !matches!(from, "acked" | "terminated" | "given_up" | "dropped") {
                let is_last = if to == "given_up" { " at the last attempt" } else { "" };
                found.insert((from, format!("{cause}{is_last}"), to));
                walk(&next, left - 1, found);
            }
        }
    }
}

#[test]
fn the_diagram_shows_what_the_state_machine_does() {
    let mut found = BTreeSet::new();
    walk(&World::new(), STEPS, &mut found);
    let lines: String =
        found.iter().map(|(from, cause, to)| format!("    {from} --> {to}: {cause}\n")).collect();
    let expected = format!("stateDiagram-v2\n    [*] --> stored: publish\n{lines}{DEAD_LETTERS}");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("```mermaid\n").unwrap();
    let (drawn, behind) = rest.split_once("```\n").unwrap();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, format!("{before}```mermaid\n{expected}```\n{behind}")).unwrap();
        return;
    }
    assert_eq!(drawn, expected, "{PAGE}: run this test with {WRITE}=1 to write it anew");
}
