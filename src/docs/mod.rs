//! The guides.

/// The delivery contract: the promises of every provider.
pub mod delivery {
    #![doc = include_str!("delivery.md")]
}

/// Choosing a provider, and checking its capabilities.
pub mod choosing_a_provider {
    #![doc = include_str!("choosing_a_provider.md")]
}

/// Writing a provider for another backend.
pub mod writing_a_provider {
    #![doc = include_str!("writing_a_provider.md")]
}

/// Metrics, traces and logs.
pub mod observability {
    #![doc = include_str!("observability.md")]
}

/// Event sources: schedules, thresholds and webhooks.
pub mod sources {
    #![doc = include_str!("sources.md")]
}

/// Deployment: settings and monitoring in production.
pub mod deployment {
    #![doc = include_str!("deployment.md")]
}

/// Reference of all settings: name, unit, default and meaning.
pub mod configuration {
    #![doc = include_str!("configuration.md")]
}

/// Upgrading from an earlier version.
pub mod upgrading {
    // These replace the link targets of the file, because Markdown uses the first definition of a link.
    #![doc = ""]
    #![doc = "[consumer]: crate::docs::writing_a_consumer"]
    #![doc = "[provider]: crate::docs::writing_a_provider"]
    #![doc = ""]
    #![doc = include_str!("../../UPGRADE.md")]
}

/// CloudEvents: the mapping of fields, and the bindings.
#[cfg(feature = "cloudevents")]
#[cfg_attr(docsrs, doc(cfg(feature = "cloudevents")))]
pub mod cloudevents {
    #![doc = include_str!("cloudevents.md")]
}

/// Encryption of payloads, and rotation of keys.
pub mod encryption {
    #![doc = include_str!("encryption.md")]
}

/// Schemas of payloads, and compatible changes.
pub mod schema_evolution {
    #![doc = include_str!("schema_evolution.md")]
}

/// Building a service: URL, schema, key, dead letters, metrics, HTTP and shutdown in one program.
pub mod building_a_service {
    #![doc = include_str!("building_a_service.md")]
}

/// Writing a consumer with the handler runtime.
pub mod writing_a_consumer {
    #![doc = include_str!("writing_a_consumer.md")]
}

/// Testing handlers with faults, on a simulated bus.
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing_handlers {
    #![doc = include_str!("testing_handlers.md")]
}

/// Shutting down a consumer.
pub mod graceful_shutdown {
    #![doc = include_str!("graceful_shutdown.md")]
}

/// Dead letters: storing and replaying events that could not be processed.
pub mod dead_letters {
    #![doc = include_str!("dead_letters.md")]
}

/// Triggers: routing events to sinks, and the delivery guarantees.
#[cfg(feature = "routing")]
#[cfg_attr(docsrs, doc(cfg(feature = "routing")))]
pub mod routing {
    #![doc = include_str!("routing.md")]
}

/// Sinks: destinations for events, and calling URLs safely.
pub mod sinks {
    #![doc = include_str!("sinks.md")]
}
