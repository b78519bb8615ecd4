//! The kit is itself tested: every case must catch a provider that breaks its promise.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "the providers of this test are made to break"
)]

mod defect;
mod provider;
mod subscription;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};
use std::time::Duration;

use a3s_event::{Capabilities, Durability, Event, EventProvider, MemoryProvider, Support};
use a3s_event_testkit::{Clock, Fixture, Harness, Need, Outcome, Settings, async_trait, cases, run_case};

use defect::{CAUGHT_BY, Defect};
use provider::Faulty;
use subscription::UNDECODABLE;

/// Starts faulty providers.
struct FaultyHarness {
    defect: Option<Defect>,
    capabilities: Capabilities,
    settling_takes: Duration,
}

impl FaultyHarness {
    fn running(&self, storage: MemoryProvider) -> Box<dyn Fixture> {
        let Self { defect, capabilities, settling_takes } = *self;
        Box::new(Running(Faulty::new(storage.into(), defect, capabilities, settling_takes).into()))
    }
}

#[async_trait]
impl Harness for FaultyHarness {
    async fn start(&self) -> Box<dyn Fixture> {
        let dedup_window = match self.defect {
            Some(Defect::ShortDedupWindow) => 60,
            Some(Defect::LongDedupWindow) => 240,
            _ => 120,
        };
        let builder = MemoryProvider::builder().dedup_window(Duration::from_secs(dedup_window));
        self.running(builder.build().expect("legal settings"))
    }

    fn waiting_is_free(&self) -> bool {
        true
    }

    async fn start_with(&self, settings: &Settings) -> Option<Box<dyn Fixture>> {
        let mut builder = MemoryProvider::builder();
        if let Some(max) = settings.max_events.filter(|_| self.defect != Some(Defect::IgnoresRetention)) {
            builder = builder.max_events(max);
        }
        if let Some(max) = settings.max_bytes.filter(|_| self.defect != Some(Defect::IgnoresByteLimit)) {
            builder = builder.max_bytes(max);
        }
        if let Some(window) = settings.dedup_window {
            builder = builder.dedup_window(window);
        }
        Some(self.running(builder.build().ok()?))
    }
}

struct Running(Arc<Faulty>);

#[async_trait]
impl Fixture for Running {
    fn provider(&self) -> Arc<dyn EventProvider> {
        Arc::<Faulty>::clone(&self.0)
    }

    /// What the memory provider holds is the storage; the handle to it starts anew.
    async fn restart(&self) -> Option<Arc<dyn EventProvider>> {
        let storage = match self.0.defect {
            Some(Defect::RestartLosesEverything) => Arc::new(MemoryProvider::default()),
            _ => Arc::clone(&self.0.inner),
        };
        Some(Arc::new(self.0.reopened(storage)))
    }

    async fn store_undecodable(&self, subject: &str, raw: &[u8]) -> Option<u64> {
        let event = Event::new(subject, "", "", "", raw.into()).with_metadata(UNDECODABLE, "");
        self.0.inner.publish(&event).await.ok()
    }
}

fn everything() -> Capabilities {
    let mut capabilities = Capabilities::all(Durability::None);
    capabilities.max_event_bytes = Some(a3s_event::provider::validate::DEFAULT_MAX_EVENT_BYTES);
    capabilities
}

thread_local! {
    static FAILURE_IS_EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a case and returns how it ended, or the message of its failure, without printing it.
fn outcome(case: &str, defect: Option<Defect>, capabilities: Capabilities) -> Result<Outcome, String> {
    outcome_with(case, FaultyHarness { defect, capabilities, settling_takes: Duration::ZERO })
}

fn outcome_with(case: &str, harness: FaultyHarness) -> Result<Outcome, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !FAILURE_IS_EXPECTED.get() {
                loud(info);
            }
        }));
    });
    FAILURE_IS_EXPECTED.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| run_case(case, &harness, Clock::Paused)));
    FAILURE_IS_EXPECTED.set(false);
    result.map_err(|panic| match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(_) => "a panic without a message".to_owned(),
    })
}

#[test]
fn without_a_defect_every_promise_is_kept() {
    for case in cases() {
        let ended = outcome(case.name, None, everything());
        assert_eq!(ended, Ok(Outcome::Kept), "{}", case.name);
    }
}

#[test]
fn a_provider_that_takes_its_time_to_settle_passes() {
    for case in cases() {
        let settling_takes = Duration::from_millis(30);
        let harness = FaultyHarness { defect: None, capabilities: everything(), settling_takes };
        assert_eq!(outcome_with(case.name, harness), Ok(Outcome::Kept), "{}", case.name);
    }
}

#[test]
fn every_defect_is_caught_by_the_cases_named_for_it() {
    let mut missed = Vec::new();
    for (defect, names) in CAUGHT_BY {
        for name in *names {
            match outcome(name, Some(*defect), everything()) {
                Err(message) => {
                    assert!(message.starts_with("promise broken: "), "{defect:?}, {name}: {message}");
                }
                Ok(_) => missed.push((defect, name)),
            }
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:#?}");
}

#[test]
fn every_case_catches_a_defect() {
    let idle: Vec<_> = cases()
        .iter()
        .map(|case| case.name)
        .filter(|name| !CAUGHT_BY.iter().any(|(_, caught_by)| caught_by.contains(name)))
        .collect();
    assert!(idle.is_empty(), "no defect is known to fail: {idle:#?}");
}

fn without(need: Need) -> Capabilities {
    let mut capabilities = everything();
    let field = match need {
        Need::Durable => &mut capabilities.durable,
        Need::SharedConsumers => &mut capabilities.shared_consumers,
        Need::Redelivery => &mut capabilities.redelivery,
        Need::NakWithDelay => &mut capabilities.nak_with_delay,
        Need::Term => &mut capabilities.term,
        Need::Extend => &mut capabilities.extend,
        Need::Dedup => &mut capabilities.dedup,
        Need::ExpectedSequence => &mut capabilities.expected_sequence,
        Need::StartPolicies => &mut capabilities.start_policies,
        Need::MaxAckPending => &mut capabilities.max_ack_pending,
        Need::HistoryQuery => &mut capabilities.history_query,
        Need::ConsumerInfo => &mut capabilities.consumer_info,
        Need::FencedSettlement => &mut capabilities.fenced_settlement,
        Need::ReleaseKeepsAttempt => &mut capabilities.release_keeps_attempt,
        Need::ReportsGaps => &mut capabilities.reports_gaps,
        Need::ResetConsumer => &mut capabilities.reset_consumer,
        Need::TotalOrder => &mut capabilities.total_order,
        Need::EventSharing => &mut capabilities.event_sharing,
        other => panic!("{other:?} is not in this list"),
    };
    *field = Support::No;
    capabilities
}

#[test]
fn what_is_declared_absent_must_be_refused() {
    for case in cases() {
        for need in case.needs {
            let ended = outcome(case.name, None, without(*need));
            assert_eq!(ended, Ok(Outcome::Refused(*need)), "{} without {need:?}", case.name);
            if matches!(
                need,
                Need::FencedSettlement
                    | Need::ReleaseKeepsAttempt
                    | Need::ReportsGaps
                    | Need::TotalOrder
                    | Need::EventSharing
            ) {
                // They tell what a call does that exists all the same, so that nothing can be refused.
                continue;
            }
            let ignored = outcome(case.name, Some(Defect::IgnoresDeclarations), without(*need));
            assert!(ignored.is_err(), "{} without {need:?} does not see that it is ignored", case.name);
        }
    }
}

#[test]
fn what_is_declared_absent_must_be_refused_in_every_call() {
    let in_some_calls = [
        (Defect::IgnoresDeclarationsInBatches, &[Need::Dedup, Need::ExpectedSequence][..]),
        (
            Defect::IgnoresDeclarationsOfDurables,
            &[Need::Redelivery, Need::NakWithDelay, Need::StartPolicies, Need::MaxAckPending],
        ),
        (Defect::IgnoresDeclarationsInNak, &[Need::Redelivery]),
    ];
    for (defect, needs) in in_some_calls {
        for need in needs {
            for case in cases().iter().filter(|case| case.needs.contains(need)) {
                let ignored = outcome(case.name, Some(defect), without(*need));
                assert!(ignored.is_err(), "{} without {need:?} does not see {defect:?}", case.name);
            }
        }
    }
}

#[test]
fn what_is_not_declared_counts_as_promised() {
    for case in cases().iter().filter(|case| !case.needs.is_empty()) {
        let ended = outcome(case.name, None, Capabilities::unknown());
        assert_eq!(ended, Ok(Outcome::Kept), "{}", case.name);
    }
}

#[test]
fn a_provider_without_any_optional_capability_passes() {
    for case in cases() {
        let ended = outcome(case.name, None, Capabilities::none(Durability::None));
        assert!(ended.is_ok(), "{}: {ended:?}", case.name);
    }
}

#[test]
fn names_are_unique_and_the_contract_has_them_all() {
    let contract = include_str!("../../../src/docs/delivery.md");
    let mut seen = std::collections::HashSet::new();
    for case in cases() {
        assert!(seen.insert(case.name), "{} twice", case.name);
        assert!(contract.contains(&format!("`{}`", case.name)), "{} is not in delivery.md", case.name);
    }
}
