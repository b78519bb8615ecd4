//! `bench`: rate of publishing and consuming, and the time from publish to delivery.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use a3s_event::{
    DeliverPolicy, Event, EventProvider, PublishRequest, SubscribeOptions, Subscription, duration,
};
use clap::ValueEnum;
use serde::Serialize;

use crate::bus::App;
use crate::failure::{Failure, Outcome};
use crate::output::{Format, Row};
use crate::plot::{self, Series};
use crate::progress::Progress;
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event --url memory:// bench
  a3s-event bench latency --count 2000 --per-second 500 --svg latency.svg";

/// Timeout for a published event.
const SOON: Duration = Duration::from_secs(30);
/// Maximum size of a payload in bytes, more than any bus accepts.
const MAX_SIZE: i64 = 64 << 20;
/// Maximum rate: the clock of a program has a resolution of a microsecond.
const MAX_PER_SECOND: i64 = 1_000_000;
/// Maximum number of lines of the histogram.
const BARS: usize = 12;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Measurement to run
    #[arg(value_enum, default_value_t)]
    what: What,
    /// Number of events
    #[arg(long, alias = "events", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    count: u32,
    /// Events per batch of publish and consume
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
    /// Size of the payload in bytes
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(..=MAX_SIZE))]
    size: u32,
    /// Events per second that `latency` publishes
    #[arg(long, value_name = "EVENTS", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=MAX_PER_SECOND))]
    per_second: u32,
    /// Draw the times as a chart into this SVG file
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    svg: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum What {
    /// All measurements, one after the other
    #[default]
    All,
    /// Publish in batches; the time of a batch
    Publish,
    /// Receive in batches and acknowledge each event; the time of a batch
    Consume,
    /// The time from the start of a publish to the delivery
    Latency,
}

/// One measurement. Times are in microseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Measured {
    what: &'static str,
    events: usize,
    per_second: u64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    #[serde(skip)]
    sorted: Vec<u64>,
}

impl Row for Measured {
    const COLUMNS: &'static [&'static str] = &["what", "events", "events/s", "p50", "p99", "p99.9", "max"];

    fn cells(&self) -> Vec<String> {
        let time = |us: u64| format!("{:?}", Duration::from_micros(us));
        vec![
            self.what.to_owned(),
            text::number(self.events as u64),
            text::number(self.per_second),
            time(self.p50_us),
            time(self.p99_us),
            time(self.p999_us),
            time(self.max_us),
        ]
    }
}

impl Measured {
    fn new(what: &'static str, events: usize, took: Duration, mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        let at = |per_mille: usize| {
            let place = (times.len() * per_mille).div_ceil(1_000).saturating_sub(1);
            times.get(place).copied().unwrap_or_default()
        };
        let per_second = events as u128 * 1_000_000 / took.as_micros().max(1);
        Self {
            what,
            events,
            per_second: u64::try_from(per_second).unwrap_or(u64::MAX),
            p50_us: at(500),
            p99_us: at(990),
            p999_us: at(999),
            max_us: at(1_000),
            sorted: times,
        }
    }

    /// Formats the distribution of the times, one bar per power of two.
    fn histogram(&self) -> String {
        let lowest = self.sorted.first().copied().unwrap_or_default().max(1);
        let bar_of = |us: u64| (us.max(lowest) / lowest).ilog2() as usize;
        let mut bars = [0_usize; BARS];
        for us in &self.sorted {
            if let Some(bar) = bars.get_mut(bar_of(*us).min(BARS - 1)) {
                *bar += 1;
            }
        }
        let largest = bars.iter().copied().max().unwrap_or_default().max(1);
        let mut lines = vec![format!("time of {}", self.what)];
        for (place, count) in bars.iter().enumerate().filter(|(_, count)| **count > 0) {
            let from = Duration::from_micros(lowest << place);
            let bar = "#".repeat((count * 50).div_ceil(largest));
            lines.push(format!("  from {from:>12?} {count:>9} {bar}", from = from));
        }
        lines.join("\n")
    }
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let provider = app.connect().await?;
    let run = Event::new("", "", "", "", serde_json::Value::Null).id;
    let bench = Bench { provider: &*provider, subject: provider.build_subject("bench", &run), args: &args };
    let is_wanted = |what| args.what == What::All || args.what == what;
    let mut measured = Vec::new();
    if is_wanted(What::Publish) || is_wanted(What::Consume) {
        let published = bench.publish().await?;
        if is_wanted(What::Publish) {
            measured.push(published);
        }
    }
    if is_wanted(What::Consume) {
        measured.push(bench.consume().await?);
    }
    if is_wanted(What::Latency) {
        measured.push(bench.latency().await?);
    }
    if let Some(file) = &args.svg {
        let series: Vec<_> = measured
            .iter()
            .map(|measured| Series { name: measured.what, sorted: &measured.sorted })
            .collect();
        plot::svg(file, &format!("{} events on {}", args.count, provider.name()), &series)?;
    }
    app.out.rows(&measured)?;
    if app.out.format == Format::Table {
        for measured in &measured {
            app.out.say(&measured.histogram())?;
        }
    }
    Ok(())
}

struct Bench<'a> {
    provider: &'a dyn EventProvider,
    subject: String,
    args: &'a Args,
}

impl Bench<'_> {
    fn progress(&self) -> Progress {
        Progress::of_events(Some(u64::from(self.args.count)))
    }

    fn event(&self, number: u64) -> Event {
        let payload = serde_json::json!({ "n": number, "fill": "x".repeat(self.args.size as usize) });
        Event::new(self.subject.as_str(), "bench", "", "a3s-event bench", payload)
    }

    async fn publish(&self) -> Outcome<Measured> {
        let events = self.args.count as usize;
        let (mut times, mut stored) = (Vec::new(), 0);
        let mut took = Duration::ZERO;
        let progress = self.progress();
        while stored < events {
            let size = usize::from(self.args.batch).min(events - stored);
            let batch: Vec<_> = (0..size).map(|number| self.event(number as u64)).collect();
            let requests: Vec<_> = batch.iter().map(PublishRequest::from).collect();
            let started = Instant::now();
            let results = self.provider.publish_batch(&requests).await;
            took += started.elapsed();
            times.push(micros(started.elapsed()));
            results.into_iter().collect::<Result<Vec<_>, _>>()?;
            stored += size;
            progress.set(stored as u64);
        }
        Ok(Measured::new("publish (time of a batch)", events, took, times))
    }

    async fn consume(&self) -> Outcome<Measured> {
        let mut subscription = self.subscribe(DeliverPolicy::All).await?;
        let events = self.args.count as usize;
        let (mut times, mut received) = (Vec::new(), 0);
        let progress = self.progress();
        let begun = Instant::now();
        while received < events {
            let started = Instant::now();
            let batch = subscription.next_batch(usize::from(self.args.batch), SOON).await.unwrap_or_default();
            if batch.is_empty() {
                return Err(Failure::Other(format!(
                    "{received} of {events} events were delivered within {}; the bus is too slow for this run",
                    duration::format(SOON)
                )));
            }
            received += batch.len();
            for delivery in batch {
                delivery?.ack().await?;
            }
            times.push(micros(started.elapsed()));
            progress.set(received as u64);
        }
        let took = begun.elapsed();
        subscription.close().await?;
        Ok(Measured::new("consume (time of a batch)", events, took, times))
    }

    async fn latency(&self) -> Outcome<Measured> {
        let mut subscription = self.subscribe(DeliverPolicy::New).await?;
        let events = u64::from(self.args.count);
        let mut pace = tokio::time::interval(Duration::from_secs(1) / self.args.per_second.max(1));
        let begun = Instant::now();
        let publish = async {
            for _ in 0..events {
                pace.tick().await;
                self.provider.publish(&self.event(micros(begun.elapsed()))).await?;
            }
            Ok::<_, Failure>(())
        };
        let progress = self.progress();
        let receive = async {
            let mut times = Vec::new();
            for _ in 0..events {
                let next = tokio::time::timeout(SOON, subscription.next_delivery()).await;
                let next = next.map_err(|_| {
                    Failure::Other(format!(
                        "no event was delivered within {}; publish fewer events per second",
                        duration::format(SOON)
                    ))
                })?;
                let Some(delivery) = next? else {
                    return Err(Failure::Other("the subscription has ended".to_owned()));
                };
                let sent = delivery.event().payload.get("n").and_then(serde_json::Value::as_u64);
                times.push(micros(begun.elapsed()).saturating_sub(sent.unwrap_or_default()));
                delivery.ack().await?;
                progress.set(times.len() as u64);
            }
            Ok(times)
        };
        let ((), times) = tokio::try_join!(publish, receive)?;
        let took = begun.elapsed();
        subscription.close().await?;
        Ok(Measured::new("latency (publish to delivery)", times.len(), took, times))
    }

    async fn subscribe(&self, deliver_policy: DeliverPolicy) -> Outcome<Box<dyn Subscription>> {
        let options = SubscribeOptions { deliver_policy, ..SubscribeOptions::default() };
        Ok(self.provider.subscribe_with_options(&self.subject, &options).await?)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let measured = Measured::new("x", 1_000, Duration::from_secs(2), (1..=1_000).rev().collect());
        assert_eq!(
            (measured.p50_us, measured.p99_us, measured.p999_us, measured.max_us),
            (500, 990, 999, 1_000)
        );
        assert_eq!(measured.per_second, 500);
        let counted: usize = measured.histogram().lines().skip(1).count();
        assert_eq!(counted, 10);
        assert_eq!(Measured::new("x", 0, Duration::ZERO, Vec::new()).max_us, 0);
    }
}
