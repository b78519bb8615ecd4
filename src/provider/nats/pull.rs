//! Pulls events. A request asks for no more than the caller takes at once, so that no event waits here while its lease
//! runs.
//!
//! The lease of a fetched event has begun, other members cannot get it, and a nak of it counts as an attempt. So a
//! member first fetches what one call takes. Once its calls have shown their pace, it fetches ahead what they take in
//! the next moment. The client library's own message stream fetches ahead regardless of the pace.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode, Subject};
use futures_util::StreamExt;
use tokio::time::Instant;

use super::client::Shared;
use super::error::{PROVIDER, connection_ended, no_connection};
use super::inbox::{Fetched, Inbox, give_back, now};
use super::life::Life;
use super::parked::Unreadable;
use super::position::Position;
use super::request::{self, State, Until};
use super::shelf::{Shelf, Shelved};
use super::strays::Stray;
use crate::deadline::After;
use crate::error::{BackendError, ErrorKind, Result};
use crate::provider::SubscriptionEnd;
use crate::provider::pace::Pace;
use crate::provider::support::Backoff;

/// Silence after which the request counts as lost: a little more than three heartbeats.
const LOST: Duration = Duration::from_millis(3_500);
/// Maximum time to wait for the end of a request that ends at once: a cancelled one, or one that does not wait for
/// events.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// Maximum time to look up a consumer that does not answer.
const LOOK_UP: Duration = Duration::from_millis(500);
/// Pauses after consecutive failures.
const RETRY: Backoff =
    Backoff::exponential(Duration::from_millis(20), Duration::from_millis(250)).jitter(0.0);
/// Number of markers: more than the one event and the status messages that can be in flight when a request is
/// cancelled.
const MARKERS: u64 = 4;

/// The result of a member's request for an event.
pub(super) enum Pulled {
    Message(Fetched),
    Unreadable(Unreadable),
    /// The consumer no longer exists.
    Gone(SubscriptionEnd),
    /// The provider was closed.
    Closed,
}

/// Requests the events of one consumer. At most one request is open. It may outlast the call: for a moment if calls
/// follow each other fast, or until the next call if the puller lingers.
pub(super) struct Puller {
    shared: Arc<Shared>,
    life: Arc<Life>,
    inbox: Option<Inbox>,
    state: State,
    /// Time at which the open request was sent or cancelled.
    heard: Instant,
    /// Events that were received and not yet taken.
    fetched: VecDeque<Fetched>,
    /// Start of the present series of failures, and their number.
    trouble: Option<(Instant, u64)>,
    /// If true, the connection ended while events were in flight, and one of them may be the reason.
    suspects: bool,
    /// Connection on which the consumer was last known to be the same.
    known_on: u64,
    /// Number of the last delivery. Numbers increase, unless the consumer was replaced or reset.
    last: u64,
    /// Number of resets that this member knows of.
    resets: u64,
    /// Connection and number of resets for which the fetched events were last checked.
    looked_on: (u64, u64),
    /// Time at which a delivery with a lower number arrived.
    fell_back: Option<Instant>,
    pace: Pace,
    /// Shelf for the events fetched ahead between two calls; `None` if no other member could get them.
    shelf: Option<Arc<Shelf>>,
    is_shelved: bool,
    /// If true, a request stays open for the next call when its caller is dropped. No other member could get the event,
    /// and it may be delivered more than once.
    lingers: bool,
    /// Number of events that the last request that lingers asked for.
    granted: usize,
}

impl Puller {
    /// Requests the deliveries after the one with the number `last`. `is_alone` means that the consumer has no other
    /// member.
    pub(super) fn new(shared: Arc<Shared>, life: Arc<Life>, last: u64, is_alone: bool) -> Self {
        Self {
            lingers: is_alone && life.config().max_deliver.is_none(),
            shelf: (!is_alone).then(|| Arc::new(Shelf::new())),
            is_shelved: false,
            known_on: shared.link.connection(),
            resets: life.resets(),
            shared,
            life,
            inbox: None,
            state: State::Idle,
            heard: Instant::now(),
            fetched: VecDeque::new(),
            trouble: None,
            suspects: false,
            last,
            looked_on: (0, 0),
            fell_back: None,
            pace: Pace::new(),
            granted: 0,
        }
    }

    /// Returns the next event, for a caller that takes up to `max` of them.
    ///
    /// Cancel-safe: nothing is awaited after a message was taken. The request of a dropped call is cancelled, so that
    /// the event goes to another member. If calls follow each other fast, several of them share one request.
    pub(super) async fn next(&mut self, max: usize) -> Result<Pulled> {
        self.look(Instant::now());
        let call = Call { puller: self };
        call.puller.run(max).await
    }

    /// Takes what has arrived for an open request, at the beginning of a call.
    pub(super) fn look(&mut self, called: Instant) {
        self.pace.note_call(called);
        self.take_arrived();
    }

    /// Takes the events fetched ahead from the shelf, at the beginning of a call.
    pub(super) fn unshelve(&mut self) {
        if !std::mem::take(&mut self.is_shelved) {
            return;
        }
        let Some(shelf) = &self.shelf else { return };
        let shelved = shelf.take();
        (self.inbox, self.fetched) = (shelved.inbox, shelved.fetched);
        if self.inbox.is_none() {
            // They went to another member.
            self.state = State::Idle;
        }
    }

    /// Puts the events fetched ahead on the shelf, at the end of a call. If another member waits and the next call does
    /// not come, they go to that member.
    pub(super) fn shelve(&mut self, called: Instant) {
        let left = match self.state {
            State::Fetching(.., left) => Some(left),
            _ => None,
        };
        let Some(shelf) = &self.shelf else { return };
        if self.fetched.is_empty() {
            // An idle subscription holds no memory for its events.
            self.fetched = VecDeque::new();
            if left.is_none() {
                return;
            }
        }
        self.is_shelved = true;
        let shelved = Shelved { inbox: self.inbox.take(), fetched: std::mem::take(&mut self.fetched), left };
        if shelf.put(shelved, called)
            && let Some(shelves) = self.shared.shelves.get()
        {
            shelves.watch(shelf, &self.life);
        }
    }

    /// Notes that the caller gets an event now, and requests those that it takes in the next moment. Its calls then
    /// need not wait for round trips.
    pub(super) fn handed_out(&mut self, called: Instant) {
        self.pace.note(called);
        let ahead = self.ahead();
        if ahead == 1 {
            return;
        }
        self.take_ready(called);
        let connection = self.shared.link.connection();
        let is_current = self.inbox.as_ref().is_some_and(|inbox| inbox.connection == connection);
        if !is_current || !matches!(self.state, State::Idle) || self.fetched.len() > ahead / 2 {
            return;
        }
        // Does not wait: if this sends nothing, the next call does.
        let _ = now(self.ask_for(Until::Moment, ahead - self.fetched.len()));
    }

    /// Returns the maximum number of events to fetch before the caller asks for them.
    fn ahead(&self) -> usize {
        let config = self.life.config();
        // An event fetched ahead counts as delivered, and this may be the only delivery that is allowed.
        if config.max_deliver.is_some() { 1 } else { self.pace.ahead(config.max_ack_pending) }
    }

    async fn run(&mut self, max: usize) -> Result<Pulled> {
        let ahead = if max == 1 { self.ahead() } else { 1 };
        let mut may_fetch = max.max(ahead) > 1;
        loop {
            if *self.shared.closed.borrow() {
                return Ok(Pulled::Closed);
            }
            if let Some(end) = self.life.end() {
                self.forget_request();
                return Ok(Pulled::Gone(end));
            }
            if self.fell_back.is_some() || self.known_on != self.shared.link.connection() {
                match self.look_after_life().await {
                    Ok(()) => {}
                    Err(error) => self.setback(&error.to_string()).await?,
                }
                continue;
            }
            if self.suspects {
                match self.shared.park_unreadable(&self.life).await {
                    Ok(()) => self.suspects = false,
                    Err(error) if error.kind() == ErrorKind::Unauthorized => {
                        tracing::warn!(%error, "no permission to search for the record that ended the connection");
                        self.suspects = false;
                    }
                    Err(error) => self.setback(&error.to_string()).await?,
                }
                continue;
            }
            if let Some(unreadable) = self.life.parked.take_due(self.life.config().ack_wait) {
                return Ok(Pulled::Unreadable(unreadable));
            }
            self.give_back_outdated();
            if !self.fetched.is_empty() && !self.shared.link.is_connected() {
                // Without a connection they cannot be settled.
                self.setback("there is no connection").await?;
                continue;
            }
            if let Some(fetched) = self.fetched.pop_front() {
                return Ok(Pulled::Message(fetched));
            }
            match self.state {
                State::Idle if may_fetch => {
                    may_fetch = false;
                    match max {
                        1 => self.ask_for(Until::Moment, ahead).await?,
                        _ => self.ask_for(Until::NoMore, max).await?,
                    }
                }
                State::Idle => {
                    let batch = self.batch();
                    self.ask(request::waiting(batch)).await?;
                    self.granted = batch;
                    self.state = State::Waiting(Instant::now(), batch);
                }
                State::Waiting(heard, left) => self.wait(heard, left).await?,
                State::Fetching(_, since, _) | State::Cancelled(since) => self.take_one(since).await,
            }
        }
    }

    /// Returns the number of events of a request that waits for them. One that lingers serves several calls, which saves
    /// the server most requests. It begins small, because a caller may be slow from its second event on.
    fn batch(&self) -> usize {
        if !self.lingers {
            return 1;
        }
        let config = self.life.config();
        (2 * self.granted).clamp(1, self.pace.capacity(config.ack_wait, config.max_ack_pending))
    }

    /// Fetches up to `max` available events, which later calls of [`next`](Puller::next) return. The next call takes
    /// the events that a dropped call has requested.
    pub(super) async fn fetch(&mut self, max: usize) -> Result<()> {
        self.take_fetched(max).await;
        let wanted = max.saturating_sub(self.fetched.len());
        if wanted == 0 || !matches!(self.state, State::Idle) {
            return Ok(());
        }
        self.ask_for(Until::NoMore, wanted).await?;
        self.take_fetched(max).await;
        Ok(())
    }

    async fn ask_for(&mut self, until: Until, max: usize) -> Result<()> {
        self.ask(until.request(max)).await?;
        self.heard = Instant::now();
        self.state = State::Fetching(until, self.heard, max);
        Ok(())
    }

    /// Takes available events until there are `max`, and the events that have arrived for another request.
    async fn take_fetched(&mut self, max: usize) {
        self.take_ready(Instant::now());
        while self.fetched.len() < max
            && let State::Fetching(Until::NoMore, since, _) = self.state
        {
            self.take_one(since).await;
        }
    }

    /// Returns true if there are fetched events and nothing must be checked before them.
    pub(super) fn has_plain(&self) -> bool {
        let link = &self.shared.link;
        let is_known = (link.connection(), self.life.resets()) == self.looked_on
            && self.known_on == self.looked_on.0
            && !self.suspects
            && link.is_connected();
        is_known && !self.fetched.is_empty() && !*self.shared.closed.borrow() && !self.life.parked.has_any()
    }

    /// Returns the next fetched event, if there is one.
    pub(super) fn pop_fetched(&mut self) -> Option<Fetched> {
        self.fetched.pop_front()
    }

    /// Puts back an event that was popped.
    pub(super) fn unpop(&mut self, fetched: Fetched) {
        self.fetched.push_front(fetched);
    }

    /// Naks events that were fetched on an earlier connection. A server that has crashed does not know that it sent
    /// them, and would never confirm a settlement.
    fn give_back_outdated(&mut self) {
        let connection = self.shared.link.connection();
        let now = (connection, self.life.resets());
        if std::mem::replace(&mut self.looked_on, now) == now {
            return;
        }
        let (shared, life) = (&self.shared, &self.life);
        self.fetched.retain(|fetched| {
            // After a reset the delivery is forgotten and needs no nak.
            let is_in_force = life.is_in_force(fetched.received);
            let is_current = fetched.connection == connection;
            if is_in_force && !is_current {
                give_back(shared, Some(fetched.reply.clone()));
            }
            is_in_force && is_current
        });
    }

    /// Sends a request.
    async fn ask(&mut self, body: String) -> Result<()> {
        let client = self.shared.link.working().await?.clone();
        let deadline = self.deadline();
        // Otherwise the client keeps the request for the next connection. The server then answers it into an inbox that is
        // dropped once that connection is counted, and the event is redelivered only when its lease ends.
        let mut closed = self.shared.closed.subscribe();
        let is_connected = tokio::select! {
            biased;
            // The caller looks at this before anything else.
            _ = closed.wait_for(|closed| *closed) => return Ok(()),
            is_connected = self.shared.link.counted(deadline) => is_connected,
        };
        if !is_connected {
            return Err(no_connection(self.shared.link.server()));
        }
        let connection = self.shared.link.connection();
        let inbox = match &mut self.inbox {
            Some(inbox) if inbox.connection == connection => inbox,
            stale => {
                let subject = Subject::from(client.new_inbox());
                let subscribing = client.subscribe(subject.clone());
                // The client's queue is full while there is no connection.
                let messages = tokio::time::timeout(deadline, subscribing)
                    .await
                    .map_err(|_| no_connection(self.shared.link.server()))?;
                let messages = messages.map_err(|_| connection_ended(self.shared.link.server()))?;
                stale.insert(Inbox { subject, messages, taken: 0, connection })
            }
        };
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.shared.stream_name(), self.life.name);
        let sending = client.publish_with_reply(subject, inbox.subject.clone(), body.into());
        let sent = tokio::time::timeout(deadline, sending)
            .await
            .map_err(|_| no_connection(self.shared.link.server()))?;
        sent.map_err(|_| connection_ended(self.shared.link.server()))
    }

    /// Waits for the answer to the open request, or for anything that must be checked first.
    async fn wait(&mut self, heard: Instant, left: usize) -> Result<()> {
        let Some(inbox) = &mut self.inbox else {
            self.state = State::Idle;
            return Ok(());
        };
        let mut closed = self.shared.closed.subscribe();
        let connection = inbox.connection;
        let lost = heard.after(LOST);
        // A parked delivery may be due first.
        let wake = self.life.parked.next_due().map_or(lost, |due| due.min(lost));
        let message = tokio::select! {
            biased;
            message = inbox.messages.next() => message,
            _ = async { closed.wait_for(|closed| *closed).await.is_ok() } => {
                self.abandon();
                return Ok(());
            }
            _ = self.shared.link.connection_after(connection) => {
                // The server may have forgotten the request together with the connection.
                self.suspects = true;
                self.forget_request();
                return Ok(());
            }
            () = tokio::time::sleep_until(wake) => {
                if wake < lost {
                    return Ok(());
                }
                self.cancel();
                // An older server does not answer for a deleted consumer.
                if !self.is_gone(false).await {
                    self.setback("the server stopped answering").await?;
                }
                return Ok(());
            }
        };
        let Some(message) = message else {
            self.suspects = true;
            self.forget_request();
            return Ok(());
        };
        inbox.taken += 1;
        let Some(status) = message.status.filter(|status| *status != StatusCode::OK) else {
            self.trouble = None;
            let received = Instant::now();
            self.state = State::after_event(received, left);
            self.take_message(message, received, received, connection);
            return Ok(());
        };
        if status == StatusCode::IDLE_HEARTBEAT {
            self.trouble = None;
            self.state = State::Waiting(Instant::now(), left);
            return Ok(());
        }
        // Every other status ends the request.
        self.state = State::Idle;
        if status == StatusCode::TIMEOUT || status == StatusCode::NOT_FOUND {
            self.trouble = None;
            return Ok(());
        }
        let reason = message.description.unwrap_or_default();
        // A deleted consumer has no responder. Neither has one whose server is starting.
        let is_told = reason.contains("Deleted");
        if (is_told || status == StatusCode::NO_RESPONDERS) && self.is_gone(is_told).await {
            return Ok(());
        }
        self.setback(if reason.is_empty() { "the consumer does not answer" } else { &reason }).await
    }

    /// Stores a delivery that has arrived.
    fn take_message(&mut self, message: Message, since: Instant, received: Instant, connection: u64) {
        let Some((position, reply)) = Position::of(&message) else {
            tracing::warn!(consumer = self.life.name, "an inbox received a message that is not a delivery");
            return;
        };
        let resets = self.life.resets();
        if resets != self.resets {
            let counts_on = position.delivery > self.last && self.last > 0;
            if counts_on && !self.life.is_in_force(since) {
                // The request and this delivery are older than the reset. Deliveries after it count from one.
                self.last = position.delivery;
                return give_back(&self.shared, Some(reply));
            }
            self.resets = resets;
        } else if position.delivery <= self.last {
            self.fell_back = Some(received);
        }
        self.last = position.delivery;
        self.pace.note_size(message.length);
        if connection != self.looked_on.0 {
            self.looked_on = (u64::MAX, 0);
        }
        self.fetched.push_back(Fetched { message, position, reply, since, received, connection });
    }

    /// Checks that the consumer is still the one that was opened, after a new connection or a lower delivery number.
    async fn look_after_life(&mut self) -> Result<()> {
        let connection = self.shared.link.connection();
        let end = self.shared.look_after(&self.life, false).await?;
        if end.is_some() {
            self.abandon();
        }
        let is_noticed = self.resets != self.life.resets();
        if let (Some(fell_back), None, true) = (self.fell_back, end, connection == self.known_on)
            && !is_noticed
        {
            // On a new connection, a crashed server may have forgotten deliveries. On the same one, the consumer was
            // reset.
            self.life.reset(fell_back, None);
        }
        self.resets = self.life.resets();
        self.fell_back = None;
        self.known_on = connection;
        Ok(())
    }

    /// Returns true if the consumer certainly no longer exists. A consumer that has lost its leader does not answer.
    async fn is_gone(&self, told: bool) -> bool {
        let looking = tokio::time::timeout(LOOK_UP, self.shared.look_after(&self.life, told));
        matches!(looking.await, Ok(Ok(Some(_))))
    }

    /// Takes one message of a request that ends by itself.
    async fn take_one(&mut self, since: Instant) {
        let Some(inbox) = &mut self.inbox else {
            self.state = State::Idle;
            return;
        };
        let message = tokio::select! {
            biased;
            message = inbox.messages.next() => {
                self.suspects |= message.is_none() && matches!(self.state, State::Fetching(..));
                message
            }
            // The rest of the answer went to the previous connection.
            _ = self.shared.link.connection_after(inbox.connection) => {
                self.suspects |= matches!(self.state, State::Fetching(..));
                None
            }
            // Counted from the request, across dropped calls.
            () = tokio::time::sleep_until(self.heard.after(END_DEADLINE)) => None,
        };
        let Some(message) = message else {
            // A cancelled request ends like this, after its inbox has received everything.
            self.forget_request();
            return;
        };
        self.take_answer(message, since, Instant::now());
    }

    /// Takes the messages that have arrived for a request that ends by itself.
    fn take_ready(&mut self, received: Instant) {
        while let State::Fetching(_, since, _) = self.state
            && let Some(inbox) = &mut self.inbox
            && let Some(Some(message)) = now(inbox.messages.next())
        {
            self.take_answer(message, since, received);
        }
    }

    fn take_answer(&mut self, message: Message, since: Instant, received: Instant) {
        let Some(inbox) = &mut self.inbox else { return };
        inbox.taken += 1;
        let is_event = message.status.is_none() && message.subject != inbox.subject;
        match &mut self.state {
            State::Fetching(.., left) if is_event && *left > 1 => *left -= 1,
            // The last requested event, or the status that there are no more.
            State::Fetching(..) => self.state = State::Idle,
            _ => {}
        }
        let connection = inbox.connection;
        if is_event {
            self.take_message(message, since, received, connection);
        }
    }

    /// Takes the messages that have arrived for the open request since its caller was dropped. They were sent after the
    /// server last reported.
    fn take_arrived(&mut self) {
        let State::Waiting(heard, _) = self.state else { return };
        while let State::Waiting(_, left) = self.state
            && let Some(inbox) = &mut self.inbox
            && let Some(Some(message)) = now(inbox.messages.next())
        {
            inbox.taken += 1;
            match message.status {
                Some(StatusCode::IDLE_HEARTBEAT) => self.state = State::Waiting(Instant::now(), left),
                Some(status) if status != StatusCode::OK => self.state = State::Idle,
                _ => {
                    let (connection, received) = (inbox.connection, Instant::now());
                    self.state = State::after_event(received, left);
                    self.take_message(message, heard, received, connection);
                }
            }
        }
    }

    /// Cancels the open request without waiting. The server drops a request whose inbox has no subscriber.
    ///
    /// Events that it sends before it learns of this are not lost. The unsubscription counts messages, on the server
    /// and here, and the markers behind it use up the count. An event that arrives before them is one of the counted
    /// messages. A later event has no subscriber, so the server takes it back at once and uncounted.
    pub(super) fn cancel(&mut self) {
        self.take_arrived();
        let State::Waiting(_, left) = self.state else { return };
        if left > 1 {
            // It lingers for the only member, so that no other one waits for what is in flight.
            return self.forget_request();
        }
        let Some(inbox) = &mut self.inbox else { return };
        let connection = self.shared.link.connection();
        let sent = inbox.connection == connection && {
            let mark =
                || now(self.shared.link.client().publish(inbox.subject.clone(), Vec::new().into())).is_some();
            now(inbox.messages.unsubscribe_after(inbox.taken + MARKERS)).is_some()
                && (0..MARKERS).all(|_| mark())
        };
        if sent {
            self.heard = Instant::now();
            self.state = State::Cancelled(self.heard);
        } else {
            // The client's queue is full or the connection is new, so the inbox can only be dropped.
            self.forget_request();
        }
    }

    /// Naks the fetched events that were not taken, without waiting, and leaves those in flight to the provider. An
    /// event whose nak cannot be sent is redelivered when its lease ends.
    pub(super) fn abandon(&mut self) {
        self.cancel();
        // Since then, deliveries with lower numbers came from a successor of the consumer, and go back to it.
        let successor_since = self.fell_back;
        let is_over = self.life.end().is_some();
        for fetched in self.fetched.drain(..) {
            let is_of_successor = successor_since.is_some_and(|since| fetched.received >= since);
            if is_of_successor || (!is_over && self.life.is_in_force(fetched.received)) {
                give_back(&self.shared, Some(fetched.reply));
            }
        }
        let left = match self.state {
            State::Fetching(.., left) => Some(left),
            _ => None,
        };
        if (left.is_some() || matches!(self.state, State::Cancelled(_)))
            && let Some(Inbox { subject, messages, .. }) = self.inbox.take()
            && let Some(strays) = self.shared.strays.get()
        {
            let life = (!is_over || successor_since.is_none()).then(|| Arc::clone(&self.life));
            strays.collect(Stray { inbox: subject, messages, left, life });
        }
        self.forget_request();
    }

    /// Returns the number of first deliveries that were sent here and not taken, given the number of the consumer's last
    /// delivery.
    pub(super) fn untaken(&self, last: u64) -> u64 {
        let firsts = |fetched: &VecDeque<Fetched>| {
            fetched.iter().filter(|fetched| fetched.position.num_delivered == 1).count()
        };
        let held = match &self.shelf {
            Some(shelf) if self.is_shelved => shelf.look(|shelved| firsts(&shelved.fetched)),
            _ => firsts(&self.fetched),
        };
        // A lone member gets all deliveries: later ones are on their way.
        let on_their_way = if self.lingers { last.saturating_sub(self.last) } else { 0 };
        held as u64 + on_their_way
    }

    /// Returns true if the origin of the last deliveries must be checked first.
    pub(super) fn doubts(&self) -> bool {
        self.fell_back.is_some()
    }

    /// Cancels the open request, waits for its end, and returns the next fetched event that was not taken.
    pub(super) async fn take_left_over(&mut self) -> Option<Fetched> {
        self.cancel();
        while let State::Cancelled(since) | State::Fetching(_, since, _) = self.state {
            self.take_one(since).await;
        }
        self.fetched.pop_front()
    }

    fn forget_request(&mut self) {
        self.inbox = None;
        self.state = State::Idle;
    }

    /// Waits before the next try, longer each time. Fails if the failures have lasted longer than a call may take.
    async fn setback(&mut self, reason: &str) -> Result<()> {
        let (since, count) = self.trouble.unwrap_or((Instant::now(), 0));
        let count = count + 1;
        self.trouble = Some((since, count));
        if since.elapsed() < self.deadline() {
            tokio::time::sleep(RETRY.delay(count)).await;
            return Ok(());
        }
        self.trouble = None;
        if !self.shared.link.is_connected() {
            return Err(no_connection(self.shared.link.server()));
        }
        let reason = format!("consumer '{}' receives nothing: {reason}", self.life.name);
        Err(BackendError::new(PROVIDER, "receive", ErrorKind::Backend, reason).retryable().into())
    }

    fn deadline(&self) -> Duration {
        self.shared.settings.config.request_timeout()
    }
}

/// A call that waits. When it is dropped, its request is cancelled, unless it lingers for the next call. Otherwise the
/// server would send an event without a subscriber, and redeliver it after later ones.
struct Call<'a> {
    puller: &'a mut Puller,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.puller.lingers {
            self.puller.cancel();
        }
    }
}
