//! The signals that end a service.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, watch};

use crate::error::{EventError, Result};

/// Handles the signals that end a service, from this call on: SIGTERM, and SIGINT, which Ctrl-C at a terminal sends. On
/// Windows these are Ctrl-C, Ctrl-Break, and the ends of the console and of the system.
///
/// Call it first in `main`. Until then, such a signal ends the process without a shutdown. A signal between this call and
/// [`recv`](Terminated::recv) is not lost. The process keeps the handlers until it ends, also after the returned value is
/// dropped.
///
/// ```no_run
/// use a3s_event::{Delivery, EventBus, shutdown};
///
/// #[tokio::main]
/// async fn main() -> a3s_event::Result<()> {
///     let terminated = shutdown::terminated()?;
///     let bus = EventBus::connect("nats://127.0.0.1:4222").await?;
///     let consumer = bus.consumer("billing").subject("events.orders.>");
///     let consumer = consumer.handle(|_: Delivery| async { Ok(()) }).await?;
///     // The first signal drains the consumer, a second one interrupts its handlers.
///     consumer.run_until(|| terminated.recv()).await?;
///     bus.close().await
/// }
/// ```
///
/// # Errors
///
/// [`EventError::Config`] if the operating system refuses a handler.
///
/// # Panics
///
/// Outside of a tokio runtime, and in one that was built without `enable_io` or `enable_all`. `#[tokio::main]` enables
/// both.
pub fn terminated() -> Result<Terminated> {
    let signals = Signals::handled()
        .map_err(|error| EventError::Config(format!("signals: no handler can be registered: {error}")))?;
    let shared = Shared { signals: Mutex::new(signals), count: watch::Sender::new(0) };
    Ok(Terminated { shared: Arc::new(shared), seen: AtomicU64::new(0) })
}

/// The signals since [`terminated`] was called. Every clone receives each signal that its original had not received.
#[must_use = "wait for a signal with `recv`"]
pub struct Terminated {
    shared: Arc<Shared>,
    /// Number of signals that this value has received.
    seen: AtomicU64,
}

struct Shared {
    /// Locked by the one call that listens for all.
    signals: Mutex<Signals>,
    /// Number of signals so far.
    count: watch::Sender<u64>,
}

impl Terminated {
    /// Waits for the next signal. Signals that arrive faster than they are received count as one.
    ///
    /// Cancel-safe: a call that is dropped loses no signal. If several calls wait, each of them returns at the signal.
    pub async fn recv(&self) {
        let seen = self.seen.load(Ordering::Relaxed);
        let mut count = self.shared.count.subscribe();
        let listening = async {
            let mut signals = self.shared.signals.lock().await;
            signals.recv().await;
            // In the same poll, so that a cancelled call takes no signal away from the others.
            self.shared.count.send_modify(|count| *count += 1);
        };
        tokio::select! {
            biased;
            _ = count.wait_for(|count| *count > seen) => {}
            () = listening => {}
        }
        self.seen.fetch_max(seen + 1, Ordering::Relaxed);
    }
}

impl Clone for Terminated {
    fn clone(&self) -> Self {
        let seen = AtomicU64::new(self.seen.load(Ordering::Relaxed));
        Self { shared: Arc::clone(&self.shared), seen }
    }
}

impl fmt::Debug for Terminated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminated")
            .field("signals", &*self.shared.count.borrow())
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn handled() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(windows)]
struct Signals {
    c: tokio::signal::windows::CtrlC,
    r#break: tokio::signal::windows::CtrlBreak,
    close: tokio::signal::windows::CtrlClose,
    shutdown: tokio::signal::windows::CtrlShutdown,
}

#[cfg(windows)]
impl Signals {
    fn handled() -> std::io::Result<Self> {
        use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};
        Ok(Self { c: ctrl_c()?, r#break: ctrl_break()?, close: ctrl_close()?, shutdown: ctrl_shutdown()? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.c.recv() => {}
            _ = self.r#break.recv() => {}
            _ = self.close.recv() => {}
            _ = self.shutdown.recv() => {}
        }
    }
}

#[cfg(test)]
#[cfg(unix)]
#[allow(clippy::disallowed_methods, reason = "kill ends at once")]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    fn send(signal: &str) {
        let pid = std::process::id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    async fn arrives(receiving: impl Future<Output = ()>) {
        tokio::time::timeout(Duration::from_secs(30), receiving).await.expect("a signal");
    }

    async fn is_silent(terminated: &Terminated) {
        let wait = tokio::time::timeout(Duration::from_millis(50), terminated.recv()).await;
        assert!(wait.is_err(), "no signal was sent");
    }

    /// One test, because every handler of the process sees its signals.
    #[tokio::test]
    async fn a_signal_is_received_by_all_and_none_is_lost() {
        let terminated = terminated().unwrap();
        // Before anybody waits: a handler that is registered at the first poll would be too late.
        send("-TERM");
        let clone = terminated.clone();
        arrives(terminated.recv()).await;
        arrives(clone.recv()).await;
        is_silent(&terminated).await;
        is_silent(&clone).await;

        // Waits that were dropped have taken nothing, and all that wait are woken.
        for _ in 0..3 {
            is_silent(&terminated).await;
        }
        let waiting = tokio::spawn({
            let clone = clone.clone();
            async move { clone.recv().await }
        });
        let both = async { tokio::join!(terminated.recv(), clone.recv()) };
        let sending = async {
            tokio::task::yield_now().await;
            send("-INT");
        };
        tokio::join!(
            arrives(async move {
                both.await;
            }),
            sending
        );
        arrives(async { waiting.await.unwrap() }).await;
        let late = terminated.clone();
        is_silent(&late).await;
    }
}
