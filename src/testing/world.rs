//! State that all parts of one test bus share.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::consumer::Process;
use super::faults::{CallFault, CrashPoint, Plan};
use super::simulation::idle;
use super::trace::Trace;
use crate::bus::{EventBus, EventBusBuilder};
use crate::deadline::After;
use crate::dlq::{DeadLetterFilter, ProviderDlqHandler, StoredDeadLetter};
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::support::Clock;
use crate::provider::{ConsumerInfo, EventProvider, Subscription};

/// Maximum number of calls to the provider while the clock stands still. More of them are a loop without a pause.
const MAX_CALLS_AT_ONCE: u64 = 100_000;
/// Time for which a test may wait without advancing the clock.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// Maximum number of turns that a call gives to other tasks.
const MAX_TURNS: u8 = 3;
/// Maximum time that a real provider gets to settle.
const SETTLE_REAL: Duration = Duration::from_secs(10);

/// Changes the builder of a bus.
pub(super) type SetUp = Arc<dyn Fn(EventBusBuilder) -> EventBusBuilder + Send + Sync>;

/// State of one test bus.
pub(super) struct World {
    pub(super) seed: u64,
    /// The simulated clock; the system's clock on a real provider.
    pub(super) clock: Clock,
    is_simulated: bool,
    begin: Instant,
    pub(super) provider: Arc<dyn EventProvider>,
    /// The provider of the dead letters.
    pub(super) letters: Arc<dyn EventProvider>,
    random: Mutex<fastrand::Rng>,
    trace: Trace,
    plan: Mutex<Plan>,
    /// Notified when the provider becomes unavailable.
    pub(super) outage: Notify,
    set_up: Mutex<Vec<SetUp>>,
    /// The bus of the test itself, created at its first use. What is set on it, for instance a broker, may own this world.
    own: Mutex<Option<Arc<EventBus>>>,
    pub(super) processes: Mutex<BTreeMap<String, Arc<Process>>>,
    /// Subscriptions of crashed processes. Dropping one would release its events.
    graves: Mutex<Vec<Box<dyn Subscription>>>,
    /// What the last look found.
    seen: Mutex<Arc<Seen>>,
    /// The time until which the test may wait.
    patient_until: Mutex<Instant>,
    calls: Mutex<(Instant, u64)>,
    failure: Mutex<Option<String>>,
}

/// The bus as it was after the last [`settle`](super::TestBus::settle) or [`advance`](super::TestBus::advance).
#[derive(Default)]
pub(super) struct Seen {
    pub(super) consumers: Vec<ConsumerInfo>,
    pub(super) letters: Vec<StoredDeadLetter>,
    pub(super) error: Option<String>,
}

/// One life of a process: its calls end when it crashes.
pub(super) struct Life {
    pub(super) process: Arc<str>,
    is_over: AtomicBool,
    /// Stored names of the durable consumers that the process has opened, in any of its lives.
    consumers: Consumers,
    pub(super) ended: Notify,
}

pub(super) type Consumers = Arc<Mutex<Vec<String>>>;

impl Life {
    pub(super) fn new(process: &str, consumers: &Consumers) -> Arc<Self> {
        let (is_over, ended) = (AtomicBool::new(false), Notify::new());
        Arc::new(Self { process: process.into(), is_over, consumers: Arc::clone(consumers), ended })
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.ended.notify_one();
    }

    /// Remembers a durable consumer that the process has opened.
    pub(super) fn opened(&self, consumer: &str) {
        let mut consumers = self.consumers.lock().ignore_poison();
        if !consumers.iter().any(|known| known == consumer) {
            consumers.push(consumer.to_owned());
        }
    }
}

impl World {
    pub(super) fn new(
        seed: u64,
        clock: Clock,
        is_simulated: bool,
        provider: Arc<dyn EventProvider>,
        letters: Arc<dyn EventProvider>,
    ) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            seed,
            clock,
            is_simulated,
            begin: now,
            provider,
            letters,
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            trace: Trace::default(),
            plan: Mutex::default(),
            outage: Notify::new(),
            set_up: Mutex::default(),
            own: Mutex::default(),
            processes: Mutex::default(),
            graves: Mutex::default(),
            seen: Mutex::default(),
            patient_until: Mutex::new(now.after(PATIENCE)),
            calls: Mutex::new((now, 0)),
            failure: Mutex::default(),
        })
    }

    pub(super) fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().ignore_poison()
    }

    pub(super) fn random(&self) -> MutexGuard<'_, fastrand::Rng> {
        self.random.lock().ignore_poison()
    }

    /// Adds a line to the trace.
    pub(super) fn note(&self, who: &str, what: fmt::Arguments<'_>) {
        self.trace.add(self.begin.elapsed(), who, what);
    }

    pub(super) fn trace(&self) -> &Trace {
        &self.trace
    }

    pub(super) fn set_up(&self) -> Vec<SetUp> {
        self.set_up.lock().ignore_poison().clone()
    }

    /// Returns the bus of the test itself.
    pub(super) fn own_bus(&self, create: impl FnOnce() -> Result<EventBus>) -> Result<Arc<EventBus>> {
        let mut own = self.own.lock().ignore_poison();
        if let Some(bus) = &*own {
            return Ok(Arc::clone(bus));
        }
        let bus = Arc::new(create()?);
        *own = Some(Arc::clone(&bus));
        Ok(bus)
    }

    pub(super) fn add_set_up(&self, set_up: SetUp) {
        self.set_up.lock().ignore_poison().push(set_up);
    }

    pub(super) fn crash(&self, consumer: &str) {
        let process = self.processes.lock().ignore_poison().get(consumer).cloned();
        if let Some(life) = process.and_then(|process| process.life()) {
            self.end(&life, "crash");
        }
    }

    fn end(&self, life: &Life, how: &str) {
        self.note(&life.process, format_args!("{how}"));
        life.end();
    }

    pub(super) fn bury(&self, subscription: Box<dyn Subscription>) {
        self.graves.lock().ignore_poison().push(subscription);
    }

    /// Begins a call of a process: other tasks may run before it, and faults may fail or stop it.
    pub(super) async fn enter(&self, life: &Life, call: &'static str) -> Result<()> {
        if self.is_in_a_loop(call) {
            return std::future::pending().await;
        }
        self.take_turns().await;
        let frozen = self.plan().frozen_until(&life.process);
        if let Some(until) = frozen {
            tokio::time::sleep_until(until).await;
        }
        self.stop_if_over(life).await;
        if self.plan().is_unavailable() {
            return Err(unavailable(call));
        }
        Ok(())
    }

    /// Stops here for ever if the process has crashed.
    pub(super) async fn stop_if_over(&self, life: &Life) {
        if life.is_over() {
            std::future::pending::<()>().await;
        }
    }

    /// Lets other tasks run first, as the seed chooses.
    async fn take_turns(&self) {
        if self.is_simulated {
            let turns = self.random().u8(0..=MAX_TURNS);
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Counts a call. Returns `true` if there were too many while the clock stood still.
    fn is_in_a_loop(&self, call: &str) -> bool {
        let now = Instant::now();
        let mut calls = self.calls.lock().ignore_poison();
        if calls.0 != now {
            *calls = (now, 0);
        }
        calls.1 += 1;
        let is_loop = self.is_simulated && calls.1 > MAX_CALLS_AT_ONCE;
        if is_loop {
            self.fail(format!(
                "a loop without a pause: {MAX_CALLS_AT_ONCE} calls at one time, the last a {call}"
            ));
        }
        is_loop
    }

    /// Crashes a process here if that was planned, and then does not return.
    pub(super) async fn crash_here(&self, life: &Life, point: CrashPoint) {
        let crashes = self.plan().crashes(point, &life.process, &mut self.random());
        if crashes {
            self.end(
                life,
                match point {
                    CrashPoint::BeforeHandling => "crash before handling",
                    CrashPoint::BeforeAck => "crash before the ack",
                    CrashPoint::AfterAck => "crash after the ack",
                },
            );
        }
        self.stop_if_over(life).await;
    }

    /// Returns `true` if a call is to fail in this way.
    pub(super) fn fails(&self, fault: CallFault) -> bool {
        self.plan().fails(fault, &mut self.random())
    }

    /// Records the first failure of the run that is not the test's own.
    pub(super) fn fail(&self, why: String) {
        self.failure.lock().ignore_poison().get_or_insert(why);
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().ignore_poison().clone()
    }

    /// Runs until no task is ready and nothing is due.
    pub(super) async fn settle(&self) {
        if self.is_simulated {
            idle().await;
            self.look().await;
            return;
        }
        let until = Instant::now().after(SETTLE_REAL);
        loop {
            self.look().await;
            let seen = self.seen();
            let is_quiet = seen.error.is_none()
                && seen.consumers.iter().all(|consumer| consumer.lag == 0 && consumer.pending == 0);
            if is_quiet || Instant::now() >= until {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets this time pass.
    pub(super) async fn advance(&self, time: Duration) {
        self.note("test", format_args!("advance {time:?}"));
        let until = Instant::now().after(time);
        *self.patient_until.lock().ignore_poison() = until.after(PATIENCE);
        tokio::time::sleep_until(until).await;
        self.settle().await;
    }

    /// Waits until the test has waited for too long without advancing the clock.
    pub(super) async fn impatience(&self) {
        loop {
            let until = *self.patient_until.lock().ignore_poison();
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// Remembers the state of the bus for the checks.
    async fn look(&self) {
        let mut seen = Seen::default();
        match self.provider.consumers().await {
            Ok(consumers) => seen.consumers = consumers,
            Err(error) => seen.error = Some(error.to_string()),
        }
        let letters = async {
            let queue = ProviderDlqHandler::new(Arc::clone(&self.letters))?;
            queue.find(&DeadLetterFilter::default().status(None), usize::MAX).await
        };
        match letters.await {
            Ok(letters) => seen.letters = letters,
            Err(error) => seen.error = Some(error.to_string()),
        }
        *self.seen.lock().ignore_poison() = Arc::new(seen);
    }

    pub(super) fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.seen.lock().ignore_poison())
    }

    /// Ends all processes, which own this world.
    pub(super) fn close(&self) {
        let own = self.own.lock().ignore_poison().take();
        drop(own);
        self.processes.lock().ignore_poison().clear();
        self.graves.lock().ignore_poison().clear();
        self.set_up.lock().ignore_poison().clear();
    }
}

/// Returns the error of a provider that cannot be reached.
pub(super) fn unavailable(call: &'static str) -> EventError {
    BackendError::new("testing", call, ErrorKind::Connection, "the provider is unavailable")
        .retryable()
        .into()
}

/// Returns the error of a publish that failed before the event was stored.
pub(super) fn refused(call: &'static str) -> EventError {
    BackendError::new("testing", call, ErrorKind::Storage, "the storage failed once").retryable().into()
}

/// Returns the error of a publish whose answer was lost.
pub(super) fn answer_lost(call: &'static str) -> EventError {
    BackendError::new("testing", call, ErrorKind::Timeout, "the answer was lost")
        .retryable()
        .may_be_stored()
        .into()
}
