//! Pulling: asks the server for no more than the caller takes at once, so that nothing waits here while its lease runs.
//!
//! What is fetched and not handed out has begun its lease, is kept from other members and counts as delivered when it is
//! given back. So a member fetches what a call takes until its calls have shown how fast they come, and then ahead of them
//! what they take in the next moment. The client library's own message stream fetches ahead regardless of that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode, Subject};
use futures_util::StreamExt;
use tokio::time::Instant;

use super::client::Shared;
use super::error::{PROVIDER, connection_ended};
use super::inbox::{Fetched, Inbox, give_back, now};
use super::life::Life;
use super::pace::{AHEAD, Pace};
use super::parked::Unreadable;
use super::position::Position;
use super::shelf::{Shelf, Shelved};
use super::strays::Stray;
use crate::deadline::After;
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::provider::SubscriptionEnd;
use crate::provider::support::Backoff;

/// How long the server keeps one request. It differs from the ack wait by default: server 2.9.10 delivers an event whose lease
/// ends in the moment in which a request expires as if for the first time.
const EXPIRES: Duration = Duration::from_secs(27);
/// How often it says that it still does.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence after which the request counts as lost: three heartbeats and some.
const LOST: Duration = Duration::from_millis(3_500);
/// Longest wait for the end of a request that ends at once: a cancelled one, or one that does not wait for events.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// Longest look for a consumer that nobody answers for.
const LOOK_UP: Duration = Duration::from_millis(500);
/// Pauses behind failures in a row.
const RETRY: Backoff =
    Backoff::exponential(Duration::from_millis(20), Duration::from_millis(250)).jitter(0.0);
/// More than one event and the status messages that can be on their way when a request is cancelled.
const MARKERS: u64 = 4;

/// What a member of a consumer gets when it asks.
pub(super) enum Pulled {
    Message(Fetched),
    Unreadable(Unreadable),
    /// The consumer is no more.
    Gone(SubscriptionEnd),
    /// The provider was closed.
    Closed,
}

/// Asks for the events of one consumer. At most one request is open: while a call waits, a moment longer where the calls
/// follow each other fast, and for the next call where it lingers.
pub(super) struct Puller {
    shared: Arc<Shared>,
    life: Arc<Life>,
    inbox: Option<Inbox>,
    state: State,
    /// When the open request was sent, or brought something.
    heard: Instant,
    /// Received and not taken.
    fetched: VecDeque<Fetched>,
    /// When what keeps going wrong began, and how often it has.
    trouble: Option<(Instant, u64)>,
    /// Whether the connection has ended while events were on their way: one of them may be the reason.
    suspects: bool,
    /// The connection on which the consumer was last known to be the same.
    known_on: u64,
    /// Number of the last delivery. They count up, unless the consumer is another one or was reset.
    last: u64,
    /// How often the consumer was reset, as far as is known here.
    resets: u64,
    /// The connection, and the number of resets, for which what is fetched was looked through.
    looked_on: (u64, u64),
    /// When a delivery with a lower number came.
    fell_back: Option<Instant>,
    pace: Pace,
    /// Where what was fetched ahead lies while nobody calls; `None` where nobody else could get it.
    shelf: Option<Arc<Shelf>>,
    is_shelved: bool,
    /// Whether a request stays open when its caller has gone, for the next one: nobody else could get the event, and it may
    /// be delivered more than once.
    lingers: bool,
}

enum State {
    Idle,
    /// A request is open; the server was heard of at this time.
    Waiting(Instant),
    /// A request that the server ends by itself is open since this time, and may bring as many more.
    Fetching(Until, Instant, usize),
    /// The request was cancelled at this time, and what it may have fetched is not seen yet.
    Cancelled(Instant),
}

/// When the server ends a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// When it has sent what is there.
    NoMore,
    /// A moment later.
    Moment,
}

impl Puller {
    /// Asks for the deliveries behind the one with the number `last`. The only member of a consumer says so.
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
        }
    }

    /// The next event, for a caller who takes up to `max` of them. Cancel-safe: nothing is awaited after a message was taken,
    /// and a request whose caller has gone is cancelled, so that the event goes to another member. A caller whose calls
    /// follow each other fast shares one request among several of them.
    pub(super) async fn next(&mut self, max: usize) -> Result<Pulled> {
        self.take_arrived();
        let call = Call { puller: self };
        call.puller.run(max).await
    }

    /// A call begins: what was fetched ahead is taken up again.
    pub(super) fn unshelve(&mut self) {
        if !std::mem::take(&mut self.is_shelved) {
            return;
        }
        let Some(shelf) = &self.shelf else { return };
        let shelved = shelf.take();
        (self.inbox, self.fetched) = (shelved.inbox, shelved.fetched);
        if self.inbox.is_none() {
            // It went to somebody who waited.
            self.state = State::Idle;
        }
    }

    /// A call has ended: what was fetched ahead goes to somebody else if that one waits and the next call does not come.
    pub(super) fn shelve(&mut self, called: Instant) {
        let left = match self.state {
            State::Fetching(.., left) => Some(left),
            _ => None,
        };
        let Some(shelf) = &self.shelf else { return };
        if left.is_none() && self.fetched.is_empty() {
            return;
        }
        self.is_shelved = true;
        let shelved = Shelved { inbox: self.inbox.take(), fetched: std::mem::take(&mut self.fetched), left };
        if shelf.put(shelved, called)
            && let Some(shelves) = self.shared.shelves.get()
        {
            shelves.watch(shelf, &self.life);
        }
    }

    /// Notes that the caller gets an event now, and asks for those that it takes in the next moment, so that its calls do not
    /// wait for round trips.
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
        // Without waiting: the next call asks if this does not.
        let _ = now(self.ask_for(Until::Moment, ahead - self.fetched.len()));
    }

    /// How many events may be here before the caller asks for them.
    fn ahead(&self) -> usize {
        let config = self.life.config();
        // What is fetched ahead counts as delivered, which may be the only delivery that is allowed.
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
                        tracing::warn!(%error, "what ended the connection cannot be looked for");
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
                // Nobody could settle them now.
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
                    let (expires, heartbeat) = (EXPIRES.as_nanos(), HEARTBEAT.as_nanos());
                    let body = format!(r#"{{"batch":1,"expires":{expires},"idle_heartbeat":{heartbeat}}}"#);
                    self.ask(body).await?;
                    self.state = State::Waiting(Instant::now());
                }
                State::Waiting(heard) => self.wait(heard).await?,
                State::Fetching(_, since, _) | State::Cancelled(since) => self.take_one(since).await,
            }
        }
    }

    /// Takes up to `max` events that are there already, to be returned by the calls of [`next`](Puller::next). What a
    /// dropped call has asked for is taken by the next one.
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
        let end = match until {
            Until::NoMore => r#""no_wait":true"#.to_owned(),
            Until::Moment => format!(r#""expires":{}"#, AHEAD.as_nanos()),
        };
        self.ask(format!(r#"{{"batch":{max},{end}}}"#)).await?;
        self.heard = Instant::now();
        self.state = State::Fetching(until, self.heard, max);
        Ok(())
    }

    /// Takes what a request for what is there brings, until there are `max`, and what has arrived of another one.
    async fn take_fetched(&mut self, max: usize) {
        self.take_ready(Instant::now());
        while self.fetched.len() < max
            && let State::Fetching(Until::NoMore, since, _) = self.state
        {
            self.take_one(since).await;
        }
    }

    /// Whether there are fetched events and nothing else is to be looked at before them.
    pub(super) fn has_plain(&self) -> bool {
        let link = &self.shared.link;
        let is_known = (link.connection(), self.life.resets()) == self.looked_on
            && self.known_on == self.looked_on.0
            && !self.suspects
            && link.is_connected();
        is_known && !self.fetched.is_empty() && !*self.shared.closed.borrow() && !self.life.parked.has_any()
    }

    /// The next fetched event, if it is there.
    pub(super) fn pop_fetched(&mut self) -> Option<Fetched> {
        self.fetched.pop_front()
    }

    /// Puts an event back that was popped.
    pub(super) fn unpop(&mut self, fetched: Fetched) {
        self.fetched.push_front(fetched);
    }

    /// Gives back what was fetched on an earlier connection: a server that has crashed does not know that it sent it, and
    /// would never confirm a settlement.
    fn give_back_outdated(&mut self) {
        let connection = self.shared.link.connection();
        let now = (connection, self.life.resets());
        if std::mem::replace(&mut self.looked_on, now) == now {
            return;
        }
        let (shared, life) = (&self.shared, &self.life);
        self.fetched.retain(|fetched| {
            // After a reset it is forgotten, and nobody waits for it to come back.
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
        let connection = self.shared.link.connection();
        let deadline = self.deadline();
        let inbox = match &mut self.inbox {
            Some(inbox) if inbox.connection == connection => inbox,
            stale => {
                let subject = Subject::from(client.new_inbox());
                let subscribing = client.subscribe(subject.clone());
                // The queue of the client is full while there is no connection.
                let messages =
                    tokio::time::timeout(deadline, subscribing).await.map_err(|_| no_connection())?;
                let messages = messages.map_err(|_| connection_ended())?;
                stale.insert(Inbox { subject, messages, taken: 0, connection })
            }
        };
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.shared.stream_name(), self.life.name);
        let sending = client.publish_with_reply(subject, inbox.subject.clone(), body.into());
        let sent = tokio::time::timeout(deadline, sending).await.map_err(|_| no_connection())?;
        sent.map_err(|_| connection_ended())
    }

    /// Waits for the answer to the open request, or for anything else that is to be looked at.
    async fn wait(&mut self, heard: Instant) -> Result<()> {
        let Some(inbox) = &mut self.inbox else {
            self.state = State::Idle;
            return Ok(());
        };
        let mut closed = self.shared.closed.subscribe();
        let connection = inbox.connection;
        let lost = heard.after(LOST);
        // A delivery that is parked here may come first.
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
                // An older server answers nothing for a consumer that was deleted.
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
            self.state = State::Idle;
            self.trouble = None;
            let received = Instant::now();
            self.take_message(message, received, received, connection);
            return Ok(());
        };
        if status == StatusCode::IDLE_HEARTBEAT {
            self.trouble = None;
            self.state = State::Waiting(Instant::now());
            return Ok(());
        }
        // Every other status ends the request.
        self.state = State::Idle;
        if status == StatusCode::TIMEOUT || status == StatusCode::NOT_FOUND {
            self.trouble = None;
            return Ok(());
        }
        let reason = message.description.unwrap_or_default();
        // Nobody answers for a consumer that is deleted, and for one whose server is starting.
        let is_told = reason.contains("Deleted");
        if (is_told || status == StatusCode::NO_RESPONDERS) && self.is_gone(is_told).await {
            return Ok(());
        }
        self.setback(if reason.is_empty() { "no consumer answers" } else { &reason }).await
    }

    /// Takes a delivery that has arrived.
    fn take_message(&mut self, message: Message, since: Instant, received: Instant, connection: u64) {
        let Some((position, reply)) = Position::of(&message) else {
            tracing::warn!(consumer = self.life.name, "a message that is no delivery came to an inbox");
            return;
        };
        let resets = self.life.resets();
        if resets != self.resets {
            let counts_on = position.delivery > self.last && self.last > 0;
            if counts_on && !self.life.is_in_force(since) {
                // The request is from before the reset, and so is this: what comes behind it counts from one.
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

    /// Finds out whether the consumer is still the one that was opened, when a new connection or a delivery with a lower
    /// number than before leaves it open.
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
            // A server that has crashed may have forgotten deliveries, on a new connection. On this one it was reset.
            self.life.reset(fell_back, None);
        }
        self.resets = self.life.resets();
        self.fell_back = None;
        self.known_on = connection;
        Ok(())
    }

    /// Whether there certainly is no such consumer any more. One that has lost its leader does not answer.
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
            // The rest of the answer went to the connection before.
            _ = self.shared.link.connection_after(inbox.connection) => {
                self.suspects |= matches!(self.state, State::Fetching(..));
                None
            }
            // Whatever calls are dropped meanwhile.
            () = tokio::time::sleep_until(self.heard.after(END_DEADLINE)) => None,
        };
        let Some(message) = message else {
            // A cancelled request ends like this, its inbox having got all that it was to get.
            self.forget_request();
            return;
        };
        self.take_answer(message, since, Instant::now());
    }

    /// Takes what has arrived of a request that ends by itself.
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
            // The last one that was asked for, or the word that there are no more.
            State::Fetching(..) => self.state = State::Idle,
            _ => {}
        }
        let connection = inbox.connection;
        if is_event {
            self.take_message(message, since, received, connection);
        }
    }

    /// Takes what the open request has brought since its caller has gone. It came after the server was heard of last.
    fn take_arrived(&mut self) {
        while let State::Waiting(heard) = self.state
            && let Some(inbox) = &mut self.inbox
            && let Some(Some(message)) = now(inbox.messages.next())
        {
            inbox.taken += 1;
            match message.status {
                Some(StatusCode::IDLE_HEARTBEAT) => self.state = State::Waiting(Instant::now()),
                Some(status) if status != StatusCode::OK => self.state = State::Idle,
                _ => {
                    let connection = inbox.connection;
                    self.state = State::Idle;
                    self.take_message(message, heard, Instant::now(), connection);
                }
            }
        }
    }

    /// Cancels the open request, without waiting: the server drops a request when nobody listens to its inbox.
    ///
    /// What it sends until it gets to know is not lost. The unsubscription counts messages, on the server as here, and the
    /// markers behind it use the count up: an event that comes before is one of those counted, and one that comes later finds
    /// nobody listening, so that the server takes it back at once and uncounted.
    pub(super) fn cancel(&mut self) {
        if !matches!(self.state, State::Waiting(_)) {
            return;
        }
        let Some(inbox) = &mut self.inbox else { return };
        while let Some(Some(message)) = now(inbox.messages.next()) {
            inbox.taken += 1;
            if message.status.is_none() {
                // It came in time, and with it the end of the request.
                let connection = inbox.connection;
                self.state = State::Idle;
                let received = Instant::now();
                self.take_message(message, received, received, connection);
                return;
            }
        }
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
            // The client's queue is full or the connection another one: dropping the inbox is all that can be done.
            self.forget_request();
        }
    }

    /// Gives back what is here and nobody has taken, without waiting, and leaves what is on its way to the provider. What
    /// cannot be sent comes again when its lease ends.
    pub(super) fn abandon(&mut self) {
        self.cancel();
        // With lower numbers than before it came from a successor of the consumer, where it is to go back to.
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

    /// Whether it is to be found out first where the last deliveries came from.
    pub(super) fn doubts(&self) -> bool {
        self.fell_back.is_some()
    }

    /// What was fetched and nobody has taken.
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

    /// Waits before the next try, longer each time; an error when it has gone on for longer than a call may take.
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
            return Err(no_connection());
        }
        let reason = format!("consumer '{}' gets nothing: {reason}", self.life.name);
        Err(BackendError::new(PROVIDER, "receive", ErrorKind::Backend, reason).retryable().into())
    }

    fn deadline(&self) -> Duration {
        self.shared.settings.config.request_timeout()
    }
}

fn no_connection() -> EventError {
    EventError::Connection("there is no connection to nats-server".to_owned())
}

/// A call that waits. When it is dropped before its end, its request is cancelled, unless it lingers for the next call: a
/// server that has sent an event and finds nobody listening any more delivers it again behind later ones.
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
