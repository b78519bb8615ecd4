//! The guides.
//!
//! A guide defines its links at its end, for readers of the file: to other files. `links.txt` defines the same links as
//! paths in the documentation. It comes first, because Markdown uses the first definition of a link.

/// The delivery contract: the promises of every provider.
pub mod delivery {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("delivery.md")]
}

/// Choosing a provider, and checking its capabilities.
pub mod choosing_a_provider {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("choosing_a_provider.md")]
}

/// Writing a provider for another backend.
pub mod writing_a_provider {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("writing_a_provider.md")]
}

/// Metrics, traces and logs.
pub mod observability {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("observability.md")]
}

/// Event sources: schedules, thresholds and webhooks.
pub mod sources {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("sources.md")]
}

/// Deployment: settings and monitoring in production.
pub mod deployment {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("deployment.md")]
}

/// Reference of all settings: name, unit, default and meaning.
pub mod configuration {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("configuration.md")]
}

/// Upgrading from an earlier version.
pub mod upgrading {
    #![doc = ""]
    #![doc = "[consumer]: crate::docs::writing_a_consumer"]
    #![doc = "[provider]: crate::docs::writing_a_provider"]
    #![doc = "[support]: crate#versions-and-support"]
    #![doc = ""]
    #![doc = include_str!("../../UPGRADE.md")]
}

/// CloudEvents: the mapping of fields, and the bindings.
#[cfg(feature = "cloudevents")]
#[cfg_attr(docsrs, doc(cfg(feature = "cloudevents")))]
pub mod cloudevents {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("cloudevents.md")]
}

/// Encryption of payloads, and rotation of keys.
pub mod encryption {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("encryption.md")]
}

/// Schemas of payloads, and compatible changes.
pub mod schema_evolution {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("schema_evolution.md")]
}

/// Building a service: URL, schema, key, dead letters, metrics, HTTP and shutdown in one program.
pub mod building_a_service {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("building_a_service.md")]
}

/// Writing a consumer with the handler runtime.
pub mod writing_a_consumer {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("writing_a_consumer.md")]
}

/// Testing handlers with faults, on a simulated bus.
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing_handlers {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("testing_handlers.md")]
}

/// Shutting down a consumer.
pub mod graceful_shutdown {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("graceful_shutdown.md")]
}

/// Dead letters: storing and replaying events that could not be processed.
pub mod dead_letters {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("dead_letters.md")]
}

/// Triggers: routing events to sinks, and the delivery guarantees.
#[cfg(feature = "routing")]
#[cfg_attr(docsrs, doc(cfg(feature = "routing")))]
pub mod routing {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("routing.md")]
}

/// Sinks: destinations for events, and calling URLs safely.
pub mod sinks {
    #![doc = ""]
    #![doc = include_str!("links.txt")]
    #![doc = ""]
    #![doc = include_str!("sinks.md")]
}
