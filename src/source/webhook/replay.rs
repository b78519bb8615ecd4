//! Ids of requests that were taken before.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::poison::IgnorePoison;

/// The ids of recent requests. If there are too many, the oldest ones are dropped first.
pub(super) struct SeenIds {
    max: usize,
    keep: Duration,
    ids: Mutex<Ids>,
}

#[derive(Default)]
struct Ids {
    is_done: HashMap<String, bool>,
    by_age: VecDeque<(Instant, String)>,
}

/// The state of a request with this id.
pub(super) enum Started<'a> {
    /// The request is new, and is now in progress.
    New(Taking<'a>),
    /// The request is in progress.
    InWork,
    /// The request was taken.
    Done,
}

/// A request in progress. If it is dropped without [`done`](Taking::done), it was not taken and may be repeated.
pub(super) struct Taking<'a> {
    taken: &'a SeenIds,
    id: &'a str,
}

impl Taking<'_> {
    pub(super) fn done(self) {
        if let Some(is_done) = self.taken.lock().is_done.get_mut(self.id) {
            *is_done = true;
        }
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        let mut ids = self.taken.lock();
        if ids.is_done.get(self.id) == Some(&false) {
            ids.is_done.remove(self.id);
            // Removes its entry by age, too; otherwise a repeated request would have two.
            if let Some(place) = ids.by_age.iter().rposition(|(_, id)| id == self.id) {
                ids.by_age.remove(place);
            }
        }
    }
}

impl SeenIds {
    pub(super) fn new(max: usize, keep: Duration) -> Self {
        Self { max: max.max(1), keep, ids: Mutex::default() }
    }

    /// Starts a request.
    pub(super) fn begin<'a>(&'a self, id: &'a str) -> Started<'a> {
        let mut ids = self.lock();
        let now = Instant::now();
        while ids.by_age.front().is_some_and(|(since, _)| now.duration_since(*since) >= self.keep) {
            ids.forget_oldest();
        }
        match ids.is_done.get(id) {
            Some(true) => return Started::Done,
            Some(false) => return Started::InWork,
            None => {}
        }
        if ids.by_age.len() >= self.max {
            ids.forget_oldest();
        }
        ids.is_done.insert(id.to_owned(), false);
        ids.by_age.push_back((now, id.to_owned()));
        Started::New(Taking { taken: self, id })
    }

    fn lock(&self) -> MutexGuard<'_, Ids> {
        self.ids.lock().ignore_poison()
    }
}

impl Ids {
    fn forget_oldest(&mut self) {
        if let Some((_, oldest)) = self.by_age.pop_front() {
            self.is_done.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(taken: &SeenIds, id: &str) -> &'static str {
        match taken.begin(id) {
            Started::New(taking) => {
                taking.done();
                "new"
            }
            Started::InWork => "in work",
            Started::Done => "done",
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_id_is_taken_once_until_it_is_forgotten() {
        let taken = SeenIds::new(3, Duration::from_secs(600));
        let Started::New(first) = taken.begin("a") else { panic!("it is known") };
        assert_eq!(take(&taken, "a"), "in work");
        first.done();
        assert_eq!(take(&taken, "a"), "done");
        drop(taken.begin("b"));
        assert_eq!(take(&taken, "b"), "new", "it failed, and may come again");
        tokio::time::advance(Duration::from_secs(600)).await;
        assert_eq!(take(&taken, "a"), "new");
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_go_when_there_are_too_many() {
        let taken = SeenIds::new(3, Duration::from_secs(600));
        for id in ["a", "b", "c", "d"] {
            assert_eq!(take(&taken, id), "new");
        }
        for (id, expected) in [("b", "done"), ("d", "done"), ("a", "new"), ("b", "new")] {
            assert_eq!(take(&taken, id), expected);
        }
        assert_eq!(taken.lock().by_age.len(), 3);
    }
}
