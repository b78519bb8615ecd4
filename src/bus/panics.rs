//! A panic in somebody else's code is a failure of that code, not of the task that called it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

/// Awaits a future; the error is the message of its panic. A future that panicked is not polled again.
pub(crate) async fn caught<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        // Whatever the future left half-done is dropped with it.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(message_of(&*panic))),
        }
    })
    .await
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => "a value that is no text".to_owned(),
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
}
