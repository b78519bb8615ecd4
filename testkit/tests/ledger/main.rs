//! The ledger catches a provider that really commits a fault.

#![cfg(unix)]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests panic, and show what they found"
)]

mod provider;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::{EventProvider, MemoryProvider};
use a3s_event_testkit::ledger::{Fact, Finale, Journal, Kind, Lines, Load, Phase, Terms, Worker, check};
use provider::{Fault, Slipping};
use tokio::sync::watch;
use tokio::time::Instant;

const DEADLINE: Duration = Duration::from_secs(30);
/// Time that the consumers get at the end, if a fault keeps them from settling everything.
const CATCH_UP: Duration = Duration::from_secs(3);
const ENOUGH: u64 = 200;

/// Two lives of a member on the memory provider, whose events and dead letters have a fault.
struct Bus {
    events: Arc<MemoryProvider>,
    letters: Arc<MemoryProvider>,
    faults: [Option<Fault>; 2],
}

impl Bus {
    fn new(events: Option<Fault>, letters: Option<Fault>) -> Self {
        Self { events: Arc::default(), letters: Arc::default(), faults: [events, letters] }
    }

    /// Works until this many events are stored, and stops in order.
    async fn live(&self, life: u32, journals: &Path, until: u64, rests: bool) {
        let journal = Arc::new(Journal::open(journals, &format!("a-{life}")).unwrap());
        let [events, letters] = [(&self.events, self.faults[0]), (&self.letters, self.faults[1])]
            .map(|(inner, fault)| Arc::new(Slipping::new(Arc::clone(inner), fault)));
        let mut load = Load::default();
        (load.pause, load.lease) = (Duration::from_millis(2), Duration::from_secs(1));
        let worker = Worker::new("a", life, events, letters, journal).load(load);
        let (phase, phases) = watch::channel(Phase::Work);
        let (resting, mut rested) = watch::channel(false);
        let work = tokio::spawn(worker.run(phases, resting));
        self.until("enough is stored", async || self.events.info().await.unwrap().messages >= until).await;
        if rests {
            phase.send_replace(Phase::Rest);
            tokio::time::timeout(DEADLINE, rested.wait_for(|rested| *rested)).await.unwrap().unwrap();
            let begin = Instant::now();
            while begin.elapsed() < CATCH_UP && !self.is_settled().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        phase.send_replace(Phase::Stop);
        tokio::time::timeout(DEADLINE, work).await.expect("the worker stops").unwrap().unwrap();
    }

    async fn is_settled(&self) -> bool {
        let consumers = self.events.consumers().await.unwrap();
        consumers.iter().all(|consumer| consumer.lag == 0 && consumer.pending == 0)
    }

    async fn until(&self, what: &str, is_true: impl AsyncFn() -> bool) {
        let begin = Instant::now();
        while !is_true().await {
            assert!(begin.elapsed() < DEADLINE, "timed out: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs two lives and returns the verdicts.
    async fn verdicts(&self) -> Vec<Kind> {
        let folder = tempfile::tempdir().unwrap();
        let driver = Journal::open(folder.path(), "driver").unwrap();
        let mut terms = Terms::default();
        (terms.lease, terms.recovery, terms.health) = (1_000, 5_000, 300);
        driver.note(Fact::Terms(terms));
        self.live(1, folder.path(), ENOUGH, false).await;
        driver.note(Fact::Quiet);
        self.live(2, folder.path(), 2 * ENOUGH, true).await;
        let letters = Arc::clone(&self.letters);
        let finale = Finale::read(&*self.events, letters).await.unwrap();
        let verdicts = check(&Lines::read_all(folder.path()).unwrap(), &finale);
        for verdict in &verdicts {
            println!("{verdict}");
        }
        verdicts.into_iter().map(|verdict| verdict.kind).collect()
    }
}

#[track_caller]
fn assert_found(found: &[Kind], wanted: Kind) {
    assert!(found.contains(&wanted), "{wanted} is not among {found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_provider_has_no_verdict() {
    assert_eq!(Bus::new(None, None).verdicts().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_event_that_is_not_stored_is_found() {
    assert_found(&Bus::new(Some(Fault::LosesAcknowledged), None).verdicts().await, Kind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_stored_twice_is_found() {
    assert_found(&Bus::new(Some(Fault::StoresTwice), None).verdicts().await, Kind::StoredTwice);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_ack_is_found() {
    assert_found(
        &Bus::new(Some(Fault::ForgetsConfirmedAcks), None).verdicts().await,
        Kind::RedeliveredAfterAck,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_that_an_orderly_stop_forgets_is_found() {
    assert_found(&Bus::new(Some(Fault::ForgetsLastAcks), None).verdicts().await, Kind::RedeliveredAfterStop);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_behind_later_ones_of_its_key_is_found() {
    assert_found(&Bus::new(Some(Fault::HoldsOneBack), None).verdicts().await, Kind::OutOfOrder);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_skipped_is_found() {
    assert_found(&Bus::new(Some(Fault::SkipsDeliveries), None).verdicts().await, Kind::Undelivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_not_counted_is_found() {
    assert_found(&Bus::new(Some(Fault::CountsNoAttempts), None).verdicts().await, Kind::AttemptWentBack);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_during_an_outage_is_found() {
    assert_found(&Bus::new(Some(Fault::RefusesForAWhile), None).verdicts().await, Kind::UnnoticedOutage);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_dead_letter_is_found() {
    assert_found(&Bus::new(None, Some(Fault::LosesAcknowledged)).verdicts().await, Kind::LetterMissing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_stored_twice_is_found() {
    assert_found(&Bus::new(None, Some(Fault::StoresTwice)).verdicts().await, Kind::LetterTwice);
}
