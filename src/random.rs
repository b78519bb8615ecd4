//! Random ids and numbers.

use std::hash::{BuildHasher, RandomState};

use uuid::Uuid;

/// Returns a new id, in the order of time: a UUID of version 7.
pub(crate) fn id() -> Uuid {
    #[cfg(feature = "testing")]
    if let Some(random) = ambient::random() {
        let mut bytes = [0; 10];
        bytes.iter_mut().zip(random.to_be_bytes()).for_each(|(byte, random)| *byte = random);
        return uuid::Builder::from_unix_timestamp_millis(crate::clock::unix_millis(), &bytes).into_uuid();
    }
    Uuid::now_v7()
}

/// Returns a random number between 0 and 1. The standard library seeds every hasher anew, which is random enough to
/// spread retries.
pub(crate) fn fraction() -> f64 {
    #[cfg(feature = "testing")]
    if let Some(random) = ambient::random() {
        return of_bits(u64::try_from(random >> 64).unwrap_or_default());
    }
    of_bits(RandomState::new().hash_one(0_u8))
}

/// Returns the number between 0 and 1 that the upper half of the bits stands for.
fn of_bits(bits: u64) -> f64 {
    f64::from(u32::try_from(bits >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

/// The random numbers of a thread that simulates.
#[cfg(feature = "testing")]
pub(crate) mod ambient {
    use std::cell::RefCell;

    thread_local! {
        static AMBIENT: RefCell<Option<fastrand::Rng>> = const { RefCell::new(None) };
    }

    pub(super) fn random() -> Option<u128> {
        AMBIENT.with_borrow_mut(|random| random.as_mut().map(|random| random.u128(..)))
    }

    /// Sets the seed of the random numbers of this thread; `None` makes them unpredictable again.
    pub(crate) fn set(seed: Option<u64>) {
        AMBIENT.set(seed.map(fastrand::Rng::with_seed));
    }
}
