//! Locks that stay usable when a thread panicked while it held one.

use std::sync::{LockResult, PoisonError};

/// Takes a lock even if it is poisoned. Every lock of this crate guards changes that a panic cannot leave incomplete,
/// so poison says nothing about its data. The exceptions are the schema registries, which promise an error.
pub(crate) trait IgnorePoison {
    /// Guard of the lock.
    type Guard;

    /// Returns the guard, even of a poisoned lock.
    fn ignore_poison(self) -> Self::Guard;
}

impl<Guard> IgnorePoison for LockResult<Guard> {
    type Guard = Guard;

    fn ignore_poison(self) -> Guard {
        self.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    #[allow(clippy::panic, reason = "that is what poisons a lock")]
    fn a_lock_that_a_panic_poisoned_still_opens() {
        let lock = Mutex::new(1);
        let panicked = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let _held = lock.lock().unwrap();
                    panic!("while it is held");
                })
                .join()
        });
        assert!(panicked.is_err() && lock.is_poisoned());
        assert_eq!(*lock.lock().ignore_poison(), 1);
    }
}
