//! Calls to foreign code: timeouts and panics.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::task::Poll;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;

/// A background task that is aborted when its owner is dropped.
///
/// ```
/// use a3s_event::provider::support::OwnedTask;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let task = OwnedTask::spawn(async { 7 });
/// assert_eq!(task.ended().await, Some(7));
/// # }
/// ```
#[derive(Debug)]
pub struct OwnedTask<T>(Mutex<Option<JoinHandle<T>>>);

impl<T: Send + 'static> OwnedTask<T> {
    /// Starts the task.
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime.
    pub fn spawn(task: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Mutex::new(Some(tokio::spawn(task))))
    }

    /// Waits for the end of the task. Returns `None` if it panicked, or if its output was returned before.
    ///
    /// Cancel-safe: if this future is dropped, the task keeps its owner.
    pub async fn ended(&self) -> Option<T> {
        std::future::poll_fn(|cx| {
            let mut task = self.0.lock().ignore_poison();
            let Some(handle) = task.as_mut() else { return Poll::Ready(None) };
            let ended = std::task::ready!(Pin::new(handle).poll(cx));
            *task = None;
            Poll::Ready(ended.ok())
        })
        .await
    }
}

impl<T> Drop for OwnedTask<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.get_mut().ignore_poison().take() {
            task.abort();
        }
    }
}

/// Waits for a call, at most for `limit`. The timeout error names the call by `what`.
pub(crate) async fn within<T>(
    limit: Duration,
    what: impl FnOnce() -> String + Send,
    call: impl Future<Output = Result<T>> + Send,
) -> Result<T> {
    let late = || Err(EventError::Timeout(format!("{} did not complete within {limit:?}", what())));
    in_time(limit, call).await.unwrap_or_else(late)
}

/// Returns the output of a future, or `None` after `limit`. A future that is ready at once needs no timer.
pub(crate) async fn in_time<T>(limit: Duration, call: impl Future<Output = T> + Send) -> Option<T> {
    let mut call = pin!(call);
    match poll_once(&mut call).await {
        Some(output) => Some(output),
        None => tokio::time::timeout(limit, call).await.ok(),
    }
}

/// Polls a future once, then drops it. Returns its output if it is ready.
pub(crate) async fn poll_once<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        Poll::Ready(match Pin::new(&mut future).poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

/// Awaits a future and returns the message of its panic as an error. A future that panicked is not polled again.
pub(crate) async fn caught<F: Future>(future: F) -> std::result::Result<F::Output, String> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        // Unwind safe, because state that the future left incomplete is dropped with it.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(message_of(&*panic))),
        }
    })
    .await
}

/// Returns the message of a panic.
pub(crate) fn message_of(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => "a value other than text".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::panic, reason = "what is tested are panics")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_with_its_message() {
        assert_eq!(caught(async { 1 }).await, Ok(1));
        let name = "handler";
        assert_eq!(caught(async { panic!("no {name}") }).await, Err::<(), _>("no handler".to_owned()));
        assert_eq!(caught(async { panic!("no") }).await, Err::<(), _>("no".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_ends_with_an_error_that_names_it() {
        let limit = Duration::from_secs(3);
        let what = || "query on provider 'memory'".to_owned();
        assert_eq!(within(limit, what, async { Ok(1) }).await.unwrap(), 1);
        let error = within(limit, what, std::future::pending::<Result<()>>()).await.unwrap_err();
        assert!(
            matches!(&error, EventError::Timeout(text) if text == "query on provider 'memory' did not complete within 3s")
        );
    }
}
