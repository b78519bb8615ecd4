//! The guides.

/// What every provider promises, line by line.
pub mod delivery {
    #![doc = include_str!("delivery.md")]
}

/// How to add a backend.
pub mod writing_a_provider {
    #![doc = include_str!("writing_a_provider.md")]
}
