//! The command to the tasks of a consumer.

use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::poison::IgnorePoison;

/// Commands to the tasks of a consumer, from the weakest to the strongest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Command {
    Run,
    Pause,
    /// The handle was dropped, and the tasks will soon be dropped too.
    Gone,
    Drain,
    Abort,
}

/// The current command, and the tasks that wait for the next one. Tasks are woken in the order in which they began to
/// wait; tokio's watch channel wakes them in random order.
#[derive(Debug)]
pub(super) struct Commands {
    current: Mutex<Command>,
    changed: Notify,
}

impl Commands {
    pub(super) fn new(command: Command) -> Self {
        Self { current: Mutex::new(command), changed: Notify::new() }
    }

    pub(super) fn current(&self) -> Command {
        *self.lock()
    }

    /// Gives a command, unless one that is at least as strong was given.
    pub(super) fn raise(&self, to: Command) {
        self.replace(|command| command.max(to));
    }

    /// Replaces the current command by another one that depends on it.
    pub(super) fn replace(&self, next: impl FnOnce(Command) -> Command) {
        {
            let mut current = self.lock();
            let next = next(*current);
            if next == *current {
                return;
            }
            *current = next;
        }
        self.changed.notify_waiters();
    }

    /// Waits for a command that is at least this strong.
    pub(super) async fn reaches(&self, least: Command) {
        self.becomes(|command| command >= least).await;
    }

    /// Waits for another command than this one.
    pub(super) async fn differs_from(&self, command: Command) {
        self.becomes(|current| current != command).await;
    }

    async fn becomes(&self, wanted: impl Fn(Command) -> bool) {
        loop {
            // Before the look, so that no change is missed.
            let changed = self.changed.notified();
            if wanted(self.current()) {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Command> {
        self.current.lock().ignore_poison()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_command_only_grows_stronger_when_it_is_raised() {
        let commands = Commands::new(Command::Run);
        commands.raise(Command::Drain);
        commands.raise(Command::Pause);
        assert_eq!(commands.current(), Command::Drain);
        commands.reaches(Command::Gone).await;
        commands.differs_from(Command::Run).await;
    }

    #[tokio::test]
    async fn tasks_are_woken_in_the_order_in_which_they_wait() {
        let commands = Arc::new(Commands::new(Command::Run));
        let (sender, mut woken) = tokio::sync::mpsc::channel(20);
        for number in 0..20 {
            let (commands, sender) = (Arc::clone(&commands), sender.clone());
            tokio::spawn(async move {
                commands.reaches(Command::Abort).await;
                sender.send(number).await.unwrap();
            });
        }
        drop(sender);
        tokio::task::yield_now().await;
        commands.raise(Command::Drain);
        tokio::task::yield_now().await;
        commands.raise(Command::Abort);
        for number in 0..20 {
            assert_eq!(woken.recv().await, Some(number));
        }
    }
}
