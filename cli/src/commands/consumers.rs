//! `consumers`: who reads, and how far behind.

use a3s_event::ConsumerInfo;
use serde::Serialize;

use crate::bus::App;
use crate::failure::{Failure, Outcome};
use crate::output::Row;
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event consumers --output json";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The same as `rm`
    #[arg(long, hide = true, value_name = "NAME")]
    remove: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Forget a durable consumer and its position, and show what it was
    #[command(after_help = "Example:\n  a3s-event consumers rm billing")]
    Rm {
        /// Name of the consumer
        name: String,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct ConsumerRow {
    name: String,
    filter: String,
    durable: bool,
    lag: u64,
    pending: u64,
    redelivered: u64,
}

impl From<ConsumerInfo> for ConsumerRow {
    fn from(info: ConsumerInfo) -> Self {
        let ConsumerInfo { name, filter, durable, lag, pending, redelivered, .. } = info;
        Self { name, filter, durable, lag, pending, redelivered }
    }
}

impl Row for ConsumerRow {
    const COLUMNS: &'static [&'static str] = &["name", "filter", "durable", "lag", "pending", "redelivered"];

    fn cells(&self) -> Vec<String> {
        vec![
            text::line(&self.name),
            text::line(&self.filter),
            if self.durable { "yes" } else { "no" }.to_owned(),
            self.lag.to_string(),
            self.pending.to_string(),
            self.redelivered.to_string(),
        ]
    }
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let provider = app.connect_to_look().await?;
    let mut rows: Vec<ConsumerRow> = provider.consumers().await?.into_iter().map(Into::into).collect();
    let removes = args.command.map(|Command::Rm { name }| name).or(args.remove);
    if let Some(name) = &removes {
        let removed = rows.iter().find(|row| row.name == *name).ok_or_else(|| {
            Failure::Other(format!("there is no consumer '{name}'; consumers lists what is there"))
        })?;
        provider.unsubscribe(name).await?;
        return app.out.one(removed);
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    app.out.rows(&rows)
}
