//! The keys of an encryptor, their states and their counts of encrypted payloads.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use aes_gcm::aead::KeyInit;
use aes_gcm::{Aes256Gcm, Key as CipherKey};
use zeroize::Zeroizing;

use crate::error::EncryptionFailure;
use crate::poison::IgnorePoison;
use crate::text::shorten;

/// Maximum number of payloads that one key encrypts. With random nonces of 96 bits, more would make a repeated nonce
/// too likely, which ends all secrecy (NIST SP 800-38D, 8.3).
const MAX_SEALED: u64 = (1 << 32) - 1;
/// Number of payloads at which the log warns to rotate.
const WARN_AT: u64 = 1 << 31;

/// State of a key in an encryptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyState {
    /// The key decrypts, and encrypts nothing.
    DecryptOnly,
    /// The key encrypts new payloads, and decrypts.
    Primary,
    /// The key does neither. Payloads that it encrypted cannot be decrypted until it is enabled.
    Disabled,
}

/// Keys in the order in which they were added. A key is never moved or removed while the ring exists. So its id can be
/// borrowed while another thread adds or promotes keys.
pub(super) struct KeyRing {
    first: Key,
    /// Position of the key that encrypts.
    primary: AtomicUsize,
    /// Held while keys are added or change their state.
    changes: Mutex<()>,
}

impl KeyRing {
    pub(super) fn new(id: String, bytes: &[u8; 32]) -> Self {
        Self { first: Key::new(id, bytes), primary: AtomicUsize::new(0), changes: Mutex::new(()) }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Key> {
        std::iter::successors(Some(&self.first), |key| key.next.get().map(|next| &**next))
    }

    pub(super) fn primary(&self) -> &Key {
        // The position is always that of a key; the fallback only avoids a panic.
        self.iter().nth(self.primary.load(Ordering::Acquire)).unwrap_or(&self.first)
    }

    pub(super) fn get(&self, id: &str) -> Option<&Key> {
        self.iter().find(|key| key.id == id)
    }

    pub(super) fn state(&self, id: &str) -> Option<KeyState> {
        let key = self.get(id)?;
        Some(match (key.is_disabled(), std::ptr::eq(key, self.primary())) {
            (true, _) => KeyState::Disabled,
            (false, true) => KeyState::Primary,
            (false, false) => KeyState::DecryptOnly,
        })
    }

    /// Adds a key for decryption. Returns `false` if a different key has this id.
    pub(super) fn add(&self, id: String, bytes: &[u8; 32]) -> bool {
        let _one_at_a_time = self.lock();
        let added = Key::new(id, bytes);
        if let Some(existing) = self.get(&added.id) {
            return existing.has_the_bytes_of(&added);
        }
        let mut last = &self.first;
        while let Some(next) = last.next.get() {
            last = next;
        }
        // The lock excludes other writers, so the place is free.
        last.next.set(Box::new(added)).is_ok()
    }

    pub(super) fn promote(&self, id: &str) -> Result<(), &'static str> {
        let _one_at_a_time = self.lock();
        let position = self.iter().position(|key| key.id == id).ok_or("no key has this id")?;
        if self.get(id).is_some_and(Key::is_disabled) {
            return Err("is disabled; enable it first");
        }
        self.primary.store(position, Ordering::Release);
        Ok(())
    }

    pub(super) fn set_disabled(&self, id: &str, disabled: bool) -> Result<(), &'static str> {
        let _one_at_a_time = self.lock();
        let key = self.get(id).ok_or("no key has this id")?;
        if disabled && std::ptr::eq(key, self.primary()) {
            return Err("is the primary key; promote another one first");
        }
        key.disabled.store(disabled, Ordering::Release);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // Each change is one store, so a poisoned lock is harmless.
        self.changes.lock().ignore_poison()
    }
}

/// One key, ready for use. `cipher` and `bytes` wipe themselves on drop.
pub(super) struct Key {
    pub(super) id: String,
    pub(super) cipher: Aes256Gcm,
    /// The bytes are on the heap, so that moving the struct leaves no copy behind.
    bytes: Zeroizing<Vec<u8>>,
    disabled: AtomicBool,
    sealed: AtomicU64,
    next: OnceLock<Box<Key>>,
}

impl Key {
    fn new(id: String, bytes: &[u8; 32]) -> Self {
        Self {
            id,
            cipher: Aes256Gcm::new(<&CipherKey<Aes256Gcm>>::from(bytes)),
            bytes: Zeroizing::new(bytes.to_vec()),
            disabled: AtomicBool::new(false),
            sealed: AtomicU64::new(0),
            next: OnceLock::new(),
        }
    }

    /// Compares the bytes in constant time.
    fn has_the_bytes_of(&self, other: &Self) -> bool {
        let differing_bits = self.bytes.iter().zip(other.bytes.iter()).fold(0, |bits, (a, b)| bits | (a ^ b));
        differing_bits == 0
    }

    pub(super) fn is_disabled(&self) -> bool {
        self.disabled.load(Ordering::Acquire)
    }

    pub(super) fn sealed(&self) -> u64 {
        self.sealed.load(Ordering::Relaxed)
    }

    /// Counts one more encrypted payload, or refuses it.
    pub(super) fn count_sealed(&self) -> Result<(), EncryptionFailure> {
        let one_more = |sealed: u64| (sealed < MAX_SEALED).then_some(sealed + 1);
        let before = self
            .sealed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .map_err(|_| EncryptionFailure::KeyExhausted)?;
        if before + 1 == WARN_AT {
            self.warn();
        }
        Ok(())
    }

    /// Raises the count to one that was stored elsewhere. A lower one changes nothing.
    pub(super) fn raise_sealed(&self, count: u64) {
        if self.sealed.fetch_max(count.min(MAX_SEALED), Ordering::Relaxed) < WARN_AT && count >= WARN_AT {
            self.warn();
        }
    }

    fn warn(&self) {
        tracing::warn!(
            key_id = shorten(&self.id),
            sealed = self.sealed(),
            limit = MAX_SEALED,
            "the encryption key has encrypted half of its limit of payloads; rotate to another key"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_warns_at_half_of_its_limit_and_ends_at_it() {
        let key = Key::new("k".into(), &[0; 32]);
        key.raise_sealed(WARN_AT - 1);
        key.count_sealed().unwrap();
        assert_eq!(key.sealed(), 1 << 31);
        key.raise_sealed(5);
        assert_eq!(key.sealed(), 1 << 31, "a count never goes back");
        key.raise_sealed((1 << 32) - 2);
        key.count_sealed().unwrap();
        for _ in 0..2 {
            assert_eq!(key.count_sealed(), Err(EncryptionFailure::KeyExhausted), "the 2^32-th");
        }
        key.raise_sealed(u64::MAX);
        assert_eq!(key.sealed(), (1 << 32) - 1);
    }

    #[test]
    fn ids_can_be_lent_out_while_keys_are_added() {
        let ring = KeyRing::new("k0".into(), &[0; 32]);
        let first = ring.primary().id.as_str();
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let ring = &ring;
                scope.spawn(move || {
                    for number in 0..50 {
                        let id = format!("k{thread}-{number}");
                        assert!(ring.add(id.clone(), &[thread; 32]));
                        ring.promote(&id).unwrap();
                        assert!(ring.get(&ring.primary().id).is_some());
                    }
                });
            }
        });
        assert_eq!(first, "k0");
        assert_eq!(ring.iter().count(), 201);
    }
}
