//! Names of consumers. A program calls its consumer `billing`.
//!
//! The library stores it as `billing-events-orders---1b47…`: one name per subject. The tool shows the program's name
//! and accepts both.

use std::sync::Arc;

use a3s_event::{ConsumerInfo, EventBus, EventProvider};

use crate::failure::{Failure, Outcome};

/// Returns the program's name of the consumer if it is known, else the stored one.
pub(crate) fn shown(consumer: &ConsumerInfo) -> String {
    EventBus::subscriber_of(consumer).unwrap_or_else(|| consumer.name.clone())
}

/// Formats a consumer for a message: its name and filter.
pub(crate) fn described(consumer: &ConsumerInfo) -> String {
    format!("'{}' of '{}'", shown(consumer), consumer.filter)
}

/// Finds the consumers of a name: the one stored under it, else the durable ones of that program, one per subject.
///
/// A filter selects among them.
pub(crate) async fn find(
    provider: &Arc<dyn EventProvider>,
    name: &str,
    filter: Option<&str>,
) -> Outcome<Vec<ConsumerInfo>> {
    let bus = EventBus::from_provider(Arc::clone(provider));
    let exact = bus.consumers().await?.into_iter().find(|consumer| consumer.name == name);
    let mut found = match exact {
        Some(exact) => vec![exact],
        None => bus.consumers_of(name).await?,
    };
    if found.is_empty() {
        return Err(Failure::Other(format!("there is no consumer '{name}'; `consumers` lists them")));
    }
    if let Some(filter) = filter {
        let filters: Vec<_> = found.iter().map(|consumer| consumer.filter.clone()).collect();
        found.retain(|consumer| consumer.filter == filter);
        if found.is_empty() {
            let filters = filters.join(", ");
            return Err(Failure::Other(format!("consumer '{name}' does not read '{filter}', but {filters}")));
        }
    }
    Ok(found)
}
