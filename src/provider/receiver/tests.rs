use std::collections::HashSet;

use tokio::sync::Semaphore;

use super::*;
use crate::error::BackendError;
use crate::provider::AckFuture;
use crate::task::poll_once;

/// A backend that returns the items of a test and records the settlements.
struct Backend {
    items: Mutex<VecDeque<Item>>,
    asked: Mutex<Vec<(u64, AckKind)>>,
    given_back: Mutex<Option<Vec<u64>>>,
    /// Sequences whose lease is lost.
    lost: Mutex<HashSet<u64>>,
    /// Sequences whose settlement stays unconfirmed, once each.
    unconfirmed: Mutex<HashSet<u64>>,
    /// One permit for each settlement that gets an answer.
    answers: Semaphore,
}

impl Backend {
    fn new(items: impl IntoIterator<Item = u64>, answers: usize) -> Arc<Self> {
        let backend = Arc::new(Self {
            items: Mutex::default(),
            asked: Mutex::default(),
            given_back: Mutex::default(),
            lost: Mutex::default(),
            unconfirmed: Mutex::default(),
            answers: Semaphore::new(answers),
        });
        for sequence in items {
            let event = Event::new("events.a", "a", "", "", serde_json::json!(sequence));
            backend.add(|handler| Item::event(Lease::new(sequence, 1), Arc::new(event), handler));
        }
        backend
    }

    fn add(self: &Arc<Self>, item: impl FnOnce(Arc<dyn AckHandler>) -> Item) {
        self.items.lock().unwrap().push_back(item(Arc::new(Handler(Arc::clone(self)))));
    }

    fn receiver(self: &Arc<Self>) -> Receiver<Member> {
        Receiver::new(Member(Arc::clone(self)))
    }

    fn asked(&self) -> Vec<(u64, AckKind)> {
        self.asked.lock().unwrap().clone()
    }
}

struct Handler(Arc<Backend>);

impl AckHandler for Handler {
    fn settle(&self, Settlement { lease, kind, .. }: Settlement) -> AckFuture<'_> {
        self.0.asked.lock().unwrap().push((lease.sequence, kind.clone()));
        AckFuture::new(async move {
            self.0.answers.acquire().await.unwrap().forget();
            match kind {
                _ if self.0.lost.lock().unwrap().contains(&lease.sequence) => {
                    Err(EventError::Ack("the lease was lost".to_owned()))
                }
                _ if self.0.unconfirmed.lock().unwrap().remove(&lease.sequence) => {
                    let error = BackendError::new("test", "settle", ErrorKind::Ack, "no answer");
                    Err(error.retryable().into())
                }
                AckKind::Term(_) => {
                    Err(EventError::Unsupported { option: "term".into(), provider: "test".into() })
                }
                _ => Ok(()),
            }
        })
    }
}

struct Member(Arc<Backend>);

impl Fetch for Member {
    async fn fetch(&mut self, _ask: Ask, taken: &mut VecDeque<Item>) -> Result<Option<SubscriptionEnd>> {
        let found = std::mem::take(&mut *self.0.items.lock().unwrap());
        if found.is_empty() {
            return Ok(Some(SubscriptionEnd::Deleted));
        }
        taken.extend(found);
        Ok(None)
    }

    fn stream(&self) -> Arc<str> {
        "s".into()
    }

    fn leave(&mut self, unused: Vec<Lease>) {
        let unused = unused.iter().map(|lease| lease.sequence).collect();
        assert!(self.0.given_back.lock().unwrap().replace(unused).is_none(), "it leaves once");
    }

    async fn lag(&self) -> Result<u64> {
        Ok(0)
    }

    fn settings(&self) -> Option<ConsumerConfig> {
        None
    }
}

#[tokio::test]
async fn a_next_behind_a_dropped_one_does_not_ack_again() {
    let backend = Backend::new([1, 2], 0);
    let mut receiver = backend.receiver();
    for _ in 0..3 {
        assert!(poll_once(receiver.next()).await.is_none());
    }
    backend.answers.add_permits(1);
    assert_eq!(receiver.next().await.unwrap().unwrap().sequence, 1);
    assert_eq!(backend.asked(), [(1, AckKind::Ack)]);
}

#[tokio::test]
async fn what_was_not_handed_out_is_given_back_once() {
    let backend = Backend::new([1, 2, 3], 0);
    let mut receiver = backend.receiver();
    let held = receiver.next_delivery().await.unwrap().unwrap();
    assert_eq!((held.sequence(), held.stream()), (1, "s"));
    receiver.close().await.unwrap();
    assert!(receiver.next().await.unwrap().is_none());
    assert_eq!(receiver.end(), Some(SubscriptionEnd::Closed));
    drop(receiver);
    assert_eq!(backend.given_back.lock().unwrap().as_deref(), Some(&[2, 3][..]));
}

#[tokio::test]
async fn what_may_be_acked_is_not_given_back() {
    let backend = Backend::new([1, 2], 0);
    let mut receiver = backend.receiver();
    assert!(poll_once(receiver.next()).await.is_none());
    drop(receiver);
    assert_eq!(backend.given_back.lock().unwrap().as_deref(), Some(&[2][..]));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_has_waited_starts_anew_or_is_lost() {
    let backend = Backend::new([1, 2, 3], 9);
    backend.lost.lock().unwrap().insert(2);
    let mut receiver = backend.receiver();
    assert_eq!(receiver.next_delivery().await.unwrap().unwrap().sequence(), 1);
    assert!(backend.asked().is_empty(), "it was leased a moment ago");
    tokio::time::advance(FRESH * 2).await;
    assert_eq!(receiver.next_delivery().await.unwrap().unwrap().sequence(), 3);
    assert_eq!(backend.asked(), [(2, AckKind::Extend), (3, AckKind::Extend)]);
}

#[tokio::test(start_paused = true)]
async fn an_ack_that_nobody_confirmed_is_asked_for_again_behind_a_pause() {
    let backend = Backend::new([1], 9);
    backend.unconfirmed.lock().unwrap().insert(1);
    let mut receiver = backend.receiver();
    assert!(receiver.next().await.unwrap_err().is_retryable());
    let failed = Instant::now();
    assert_eq!(receiver.next().await.unwrap().unwrap().sequence, 1);
    assert!(!failed.elapsed().is_zero(), "whoever calls again at once does not spin");
    assert_eq!(backend.asked(), [(1, AckKind::Ack), (1, AckKind::Ack)]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_began_before_it_was_taken_starts_anew() {
    let backend = Backend::new([], 9);
    let began = Instant::now();
    tokio::time::advance(FRESH * 2).await;
    let event = Arc::new(Event::new("events.a", "a", "", "", serde_json::json!(1)));
    backend.add(|handler| Item::event(Lease::new(1, 1), event, handler).leased_since(began));
    let mut receiver = backend.receiver();
    assert_eq!(receiver.next_delivery().await.unwrap().unwrap().sequence(), 1);
    assert_eq!(backend.asked(), [(1, AckKind::Extend)]);
}

#[tokio::test]
async fn a_record_that_is_no_event_is_ended_before_its_reader_is_told() {
    let backend = Backend::new([], 9);
    let record = UndecodableRecord::new(b"x".to_vec(), "no JSON");
    for sequence in [1, 2] {
        let record = record.clone();
        backend.add(|handler| Item::undecodable(Lease::new(sequence, 1), "events.a", record, handler));
    }
    let mut receiver = backend.receiver();
    let told = receiver.next_delivery().await.unwrap_err();
    assert!(matches!(told, EventError::Undecodable { sequence: 1, .. }), "{told}");
    assert_eq!(backend.asked(), [(1, AckKind::Term("no JSON".into())), (1, AckKind::Ack)]);

    assert!(receiver.keep_undecodable());
    let kept = receiver.next_delivery().await.unwrap().unwrap();
    assert_eq!((kept.sequence(), kept.undecodable_record()), (2, Some(&record)));
    assert_eq!(backend.asked().len(), 2);
}

#[tokio::test]
async fn a_batch_ends_with_an_error_and_goes_on_behind_it() {
    let backend = Backend::new([1, 2], 0);
    backend.add(|_| Item::Error(EventError::Lagged { consumer: "c".into(), missed: 7 }));
    let event = Arc::new(Event::new("events.a", "a", "", "", serde_json::json!(3)));
    backend.add(|handler| Item::event(Lease::new(3, 1), event, handler));
    let mut receiver = backend.receiver();
    let batch = receiver.next_batch(9, Duration::ZERO).await.unwrap();
    let found: Vec<_> = batch.iter().map(|item| item.as_ref().map(Delivery::sequence).ok()).collect();
    assert_eq!(found, [Some(1), Some(2), None]);
    assert_eq!(receiver.next_batch(9, Duration::ZERO).await.unwrap().len(), 1);
    assert!(receiver.next_batch(9, Duration::ZERO).await.is_none());
    assert_eq!(receiver.end(), Some(SubscriptionEnd::Deleted));
}
