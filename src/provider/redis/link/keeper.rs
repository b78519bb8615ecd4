//! Keeps one session: makes it again, one attempt at a time, whenever it must be replaced.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::Listener;
use super::config::Node;
use super::dial::Dialer;
use super::seek::Seeker;
use super::session::{Reason, Session};
use crate::deadline::After;
use crate::provider::redis::error::Failure;
use crate::provider::support::{Backoff, OwnedTask};

/// Pauses between attempts to connect. The first one is made at once.
const RECONNECT: Backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_secs(1));
/// Time for which a session must have lasted, so that the next attempt is made at once.
const LASTED: Duration = Duration::from_secs(1);

/// A session that is kept. Ends with this.
pub(super) struct Lane {
    shared: Arc<Shared>,
    keeper: OwnedTask<()>,
}

struct Shared {
    seeker: Seeker,
    state: watch::Sender<State>,
}

enum State {
    Up(Arc<Session>),
    /// With the last failure to connect.
    Down(Option<Failure>),
    Closed,
}

impl Lane {
    /// Connects once, and keeps the session from then on.
    pub(super) async fn open(
        dialer: Arc<Dialer>,
        listener: Option<Arc<dyn Listener>>,
    ) -> Result<Self, Failure> {
        let seeker = Seeker::new(dialer, listener);
        let session = Arc::new(seeker.find(None, seeker.deadline()).await?);
        let shared = Arc::new(Shared { state: watch::Sender::new(State::Up(Arc::clone(&session))), seeker });
        shared.announce();
        let keeper = OwnedTask::spawn(Arc::clone(&shared).keep(session));
        Ok(Self { shared, keeper })
    }

    /// Returns the addresses of the settings, for errors.
    pub(super) fn seeds(&self) -> String {
        self.shared.seeker.seeds()
    }

    /// Returns what ends the connections of this lane.
    pub(super) fn closing(&self) -> watch::Receiver<bool> {
        self.shared.seeker.closing.subscribe()
    }

    /// Returns the session, if there is one.
    pub(super) fn current(&self) -> Option<Arc<Session>> {
        match &*self.shared.state.borrow() {
            State::Up(session) if session.is_usable() => Some(Arc::clone(session)),
            _ => None,
        }
    }

    /// Waits for a usable session, at most until a point in time.
    pub(super) async fn session(&self, until: Instant) -> Result<Arc<Session>, Failure> {
        if let Some(session) = self.current() {
            return Ok(session);
        }
        let mut states = self.shared.state.subscribe();
        let settled = states.wait_for(|state| match state {
            State::Up(session) => session.is_usable(),
            State::Down(last) => last.as_ref().is_some_and(Failure::is_fatal),
            State::Closed => true,
        });
        let last = match timeout_at(until, settled).await {
            Ok(Ok(state)) => match &*state {
                State::Up(session) => return Ok(Arc::clone(session)),
                State::Down(last) => last.clone(),
                State::Closed => return Err(Failure::closed()),
            },
            // This lane owns the sender.
            Ok(Err(_)) => return Err(Failure::closed()),
            Err(_) => match &*self.shared.state.borrow() {
                State::Down(last) => last.clone(),
                State::Up(_) | State::Closed => None,
            },
        };
        Err(Failure::not_connected(&self.seeds(), last))
    }

    /// Ends the session and the keeper. Requests in flight fail.
    pub(super) async fn close(&self) {
        self.shared.state.send_replace(State::Closed);
        self.shared.seeker.closing.send_replace(true);
        self.keeper.ended().await;
    }
}

impl Shared {
    async fn keep(self: Arc<Self>, session: Arc<Session>) {
        let mut closing = self.seeker.closing.subscribe();
        tokio::select! {
            biased;
            _ = closing.wait_for(|is_closing| *is_closing) => {}
            () = self.keep_connected(session) => {}
        }
    }

    /// Makes the session again whenever it is over, until the lane is closed.
    async fn keep_connected(&self, mut session: Arc<Session>) {
        let mut attempt = 0;
        loop {
            let since = Instant::now();
            let reason = session.over().await;
            if matches!(*self.state.borrow(), State::Closed) {
                return;
            }
            // From here on, no call begins to use it.
            session.leave(reason.clone());
            self.set(State::Down(None));
            tracing::warn!(server = %session.node(), ?reason, "reconnecting to the server");
            drop(session);
            if since.elapsed() >= LASTED {
                attempt = 0;
            }
            let hint = match reason {
                Reason::Moved(owner) => Some(owner),
                Reason::Lost | Reason::Silent | Reason::NotPrimary => None,
            };
            session = self.reconnect(&mut attempt, hint).await;
            tracing::info!(server = %session.node(), "reconnected to the server");
            self.set(State::Up(Arc::clone(&session)));
            self.announce();
        }
    }

    async fn reconnect(&self, attempt: &mut u64, mut hint: Option<Node>) -> Arc<Session> {
        let mut logged = None;
        loop {
            if *attempt > 0 {
                tokio::time::sleep(RECONNECT.delay(*attempt)).await;
            }
            *attempt += 1;
            self.seeker.dialer.renew_certificates().await;
            match self.seeker.find(hint.take(), self.seeker.deadline()).await {
                Ok(session) => return Arc::new(session),
                Err(failure) => {
                    // Once, and again when waiting has become useless.
                    let is_fatal = failure.is_fatal();
                    let reason = failure.summary();
                    match logged.replace(is_fatal) == Some(is_fatal) {
                        true => tracing::debug!(reason, "reconnecting failed"),
                        false => tracing::warn!(reason, "reconnecting failed"),
                    }
                    self.set(State::Down(Some(failure)));
                }
            }
        }
    }

    /// Changes the state, unless the lane was closed.
    fn set(&self, state: State) {
        self.state.send_if_modified(|now| {
            let is_open = !matches!(now, State::Closed);
            if is_open {
                *now = state;
            }
            is_open
        });
    }

    /// Tells the owner that messages may have been lost before this session.
    fn announce(&self) {
        if let Some(listener) = &self.seeker.listener {
            listener.on_connected();
        }
    }
}

impl Seeker {
    /// Returns the point in time until which a round of attempts to connect may last.
    fn deadline(&self) -> Instant {
        Instant::now().after(self.dialer.config.connect_timeout)
    }
}
