//! `diff`: whether two buses hold the same events in the same order.

use serde::Serialize;

use super::copy::is_same;
use crate::bus::App;
use crate::failure::{Failure, Outcome};
use crate::forward::{Events, Forward};
use crate::output::Row;
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event diff sqlite:///var/lib/events.db nats://127.0.0.1:4222";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One bus: a URL, or a name of the config file
    from: String,
    /// The other one
    to: String,
    /// Only these subjects
    #[arg(long)]
    filter: Option<String>,
    /// End after this many differences
    #[arg(long, default_value_t = 10)]
    limit: usize,
}

/// Two events at the same place that differ, or one where the other side has ended.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Difference {
    /// Place in the order, beginning at 1.
    place: u64,
    from: Option<Side>,
    to: Option<Side>,
}

#[derive(Debug, Serialize)]
struct Side {
    sequence: u64,
    id: String,
}

impl Row for Difference {
    const COLUMNS: &'static [&'static str] = &["place", "from", "id", "to", "id"];

    fn cells(&self) -> Vec<String> {
        let side = |side: &Option<Side>| match side {
            Some(side) => [side.sequence.to_string(), text::line(&side.id)],
            None => ["-".to_owned(), "nothing".to_owned()],
        };
        let [[from, from_id], [to, to_id]] = [side(&self.from), side(&self.to)];
        vec![self.place.to_string(), from, from_id, to, to_id]
    }
}

#[derive(Debug, Serialize)]
struct Same {
    events: u64,
    differences: usize,
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let from = app.connect_to(&args.from).await?;
    let to = app.connect_to(&args.to).await?;
    let filter = args.filter.as_deref();
    let mut left = Events::from(Forward::new(&from, filter, 1).await?);
    let mut right = Events::from(Forward::new(&to, filter, 1).await?);
    let mut differences = Vec::new();
    let mut events = 0;
    while differences.len() < args.limit {
        let (a, b) = tokio::try_join!(left.next(), right.next())?;
        let same = match (&a, &b) {
            (None, None) => break,
            (Some(a), Some(b)) => is_same(&a.event, &b.event),
            _ => false,
        };
        events += 1;
        if !same {
            let [from, to] = [a, b].map(|stored| {
                stored.map(|stored| Side { sequence: stored.sequence, id: stored.event.id.clone() })
            });
            differences.push(Difference { place: events, from, to });
        }
    }
    from.close().await?;
    to.close().await?;
    if differences.is_empty() {
        return app.out.one(&Same { events, differences: 0 });
    }
    app.out.rows(&differences)?;
    Err(Failure::Found("the buses differ".to_owned()))
}
