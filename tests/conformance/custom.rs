//! The provider of the example: what it promises holds, and what it does not promise it refuses.

use std::sync::Arc;

use a3s_event_testkit::{Fixture, Harness, async_trait};

#[allow(dead_code, unreachable_pub, reason = "an example is a program of its own")]
#[path = "../../examples/custom_provider.rs"]
mod example;

struct Custom;

#[async_trait]
impl Harness for Custom {
    async fn start(&self) -> Box<dyn Fixture> {
        Box::new(Arc::new(example::VecProvider::default()))
    }
}

mod contract {
    a3s_event_testkit::conformance_tests!(super::Custom, clock = Paused);
}
