//! The guides.

/// What every provider promises, line by line.
pub mod delivery {
    #![doc = include_str!("delivery.md")]
}

/// Which provider for which program.
pub mod choosing_a_provider {
    #![doc = include_str!("choosing_a_provider.md")]
}

/// How to add a backend.
pub mod writing_a_provider {
    #![doc = include_str!("writing_a_provider.md")]
}

/// What is counted and traced, and where it goes.
pub mod observability {
    #![doc = include_str!("observability.md")]
}

/// Events by the clock, from measured values and from webhooks.
pub mod sources {
    #![doc = include_str!("sources.md")]
}

/// What to set and what to watch in operation.
pub mod deployment {
    #![doc = include_str!("deployment.md")]
}

/// Every setting: its name, unit, default and meaning.
pub mod configuration {
    #![doc = include_str!("configuration.md")]
}

/// From an earlier version to this one.
pub mod upgrading {
    // In place of the links of the file: the first definition of one counts.
    #![doc = ""]
    #![doc = "[consumer]: crate::docs::writing_a_consumer"]
    #![doc = "[provider]: crate::docs::writing_a_provider"]
    #![doc = ""]
    #![doc = include_str!("../../UPGRADE.md")]
}

/// Events as CloudEvents: what is mapped to what, and the bindings.
#[cfg(feature = "cloudevents")]
#[cfg_attr(docsrs, doc(cfg(feature = "cloudevents")))]
pub mod cloudevents {
    #![doc = include_str!("cloudevents.md")]
}

/// Encryption of payloads, and how to rotate keys.
pub mod encryption {
    #![doc = include_str!("encryption.md")]
}

/// Schemas of payloads, and how they may change.
pub mod schema_evolution {
    #![doc = include_str!("schema_evolution.md")]
}

/// A service with a main loop of ten lines.
pub mod writing_a_consumer {
    #![doc = include_str!("writing_a_consumer.md")]
}

/// What happens between a signal and the end of the process.
pub mod graceful_shutdown {
    #![doc = include_str!("graceful_shutdown.md")]
}

/// Events that could not be processed: where they go, and how they come back.
pub mod dead_letters {
    #![doc = include_str!("dead_letters.md")]
}

/// Triggers: which events go to which sinks, and what is promised.
#[cfg(feature = "routing")]
#[cfg_attr(docsrs, doc(cfg(feature = "routing")))]
pub mod routing {
    #![doc = include_str!("routing.md")]
}

/// Sinks: where events go, what leaves the process, and calling a URL safely.
pub mod sinks {
    #![doc = include_str!("sinks.md")]
}
