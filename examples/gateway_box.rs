//! A gateway and a box agree on the number of instances. They talk over durable triggers, so no message is lost when
//! one of them is down.
//!
//! ```text
//! cargo run --example gateway_box
//! ```

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::Arc;
use std::time::Duration;

use a3s_event::broker::{BrokerHandle, DeliverySettings, TriggerSpec};
use a3s_event::scaling::{INSTANCE_READY, INSTANCE_STOPPED, SCALE_DOWN, SCALE_UP};
use a3s_event::{
    Broker, DeliverPolicy, Event, EventBus, EventError, InProcessSink, InstanceReadyPayload,
    InstanceStoppedPayload, Result, ScaleDownPayload, ScaleUpPayload, ScalingEvent, Trigger, TriggerFilter,
};
use tokio::sync::watch;

const SERVICE: &str = "api";

#[tokio::main]
async fn main() -> Result<()> {
    let bus = Arc::new(EventBus::connect("memory://").await?);
    let (instances, mut seen) = watch::channel(0);
    let mut gateway = gateway(Arc::clone(&bus), instances).await?;

    // The box has not started yet. Its trigger begins with the stored events, so it misses none.
    let request =
        ScaleUpPayload { service: SERVICE.into(), desired_replicas: 2, reason: "queue depth".into() };
    bus.publish_event(&request.to_event("two instances, please")).await?;
    println!("gateway: asked for 2 instances");

    let mut a_box = a_box(Arc::clone(&bus)).await?;
    instances_are(&mut seen, 2).await?;

    let request = ScaleDownPayload { service: SERVICE.into(), target_replicas: 1, drain_timeout_secs: 5 };
    bus.publish_event(&request.to_event("one is enough")).await?;
    println!("gateway: asked for 1 instance");
    instances_are(&mut seen, 1).await?;

    gateway.shutdown().await;
    a_box.shutdown().await;
    bus.close().await
}

/// Runs the gateway, which counts the instances that report.
async fn gateway(bus: Arc<EventBus>, instances: watch::Sender<i64>) -> Result<BrokerHandle> {
    let count = InProcessSink::new("count", move |event: Event| {
        let change = if event.event_type == INSTANCE_READY { 1 } else { -1 };
        instances.send_modify(|count| *count += change);
        println!("gateway: {}", event.summary);
        async { Ok(()) }
    });
    let count = Arc::new(count);
    let broker = Arc::new(Broker::new());
    broker.put_trigger(durable("gateway-ready", INSTANCE_READY, Arc::clone(&count))).await?;
    broker.put_trigger(durable("gateway-stopped", INSTANCE_STOPPED, count)).await?;
    broker.run(bus).await
}

/// Runs the box, which starts and stops instances and reports each.
async fn a_box(bus: Arc<EventBus>) -> Result<BrokerHandle> {
    let answers = Arc::clone(&bus);
    let start = InProcessSink::new("start", move |event: Event| {
        let bus = Arc::clone(&answers);
        async move {
            let asked: ScaleUpPayload = serde_json::from_value(event.payload)?;
            for number in 1..=asked.desired_replicas {
                let ready = InstanceReadyPayload {
                    service: asked.service.clone(),
                    instance_id: format!("i-{number}"),
                    endpoint: format!("http://10.0.0.{number}:8080"),
                };
                bus.publish_event(&ready.to_event(format!("i-{number} is ready"))).await?;
            }
            Ok(())
        }
    });
    let answers = Arc::clone(&bus);
    let stop = InProcessSink::new("stop", move |event: Event| {
        let bus = Arc::clone(&answers);
        async move {
            let asked: ScaleDownPayload = serde_json::from_value(event.payload)?;
            let stopped = InstanceStoppedPayload { service: asked.service, instance_id: "i-2".into() };
            bus.publish_event(&stopped.to_event("i-2 has stopped")).await?;
            Ok(())
        }
    });
    let broker = Arc::new(Broker::new());
    broker.put_trigger(durable("box-scale-up", SCALE_UP, Arc::new(start))).await?;
    broker.put_trigger(durable("box-scale-down", SCALE_DOWN, Arc::new(stop))).await?;
    broker.run(bus).await
}

/// Returns a durable trigger for one event type that begins with the first stored event.
fn durable(name: &str, event_type: &str, sink: Arc<InProcessSink>) -> TriggerSpec {
    let settings = DeliverySettings::durable().deliver_policy(DeliverPolicy::All);
    Trigger::new(name, TriggerFilter::by_type(event_type), sink).with_delivery(settings)
}

async fn instances_are(seen: &mut watch::Receiver<i64>, wanted: i64) -> Result<()> {
    let waiting = seen.wait_for(|count| *count == wanted);
    let waited = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    if !matches!(waited, Ok(Ok(_))) {
        return Err(EventError::Timeout(format!("waiting for {wanted} instances")));
    }
    println!("gateway: sees {wanted}");
    Ok(())
}
