//! Broker on a bus, which routes what it has published.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;

use super::Broker;
use crate::bus::{EventBus, EventBusBuilder, Router};
use crate::types::Event;

impl EventBus {
    /// Sets the broker that routes every published event.
    pub fn set_broker(&mut self, broker: Arc<Broker>) {
        self.set_router(broker);
    }

    /// Returns the broker, if one is set.
    pub fn broker(&self) -> Option<&Broker> {
        let router: &dyn Any = self.router()?;
        router.downcast_ref()
    }
}

impl EventBusBuilder {
    /// Sets the broker, as [`EventBus::set_broker`] does.
    pub fn broker(self, broker: Arc<Broker>) -> Self {
        self.router(broker)
    }
}

#[async_trait]
impl Router for Broker {
    async fn route_published(&self, published: &[(&Event, &Event)]) {
        self.route_all(published).await;
    }
}
