//! `history`: stored events, newest first.

use a3s_event::HistoryQuery;

use crate::bus::App;
use crate::failure::Outcome;
use crate::moment;
use crate::output::{EventRow, Format};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event history 'events.market.>' --limit 20
  a3s-event history --since 1h --all --output ndjson > last-hour.ndjson";

/// How many are read at a time.
const PAGE: usize = 1_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which subjects; * stands for one token, > for the rest [default: all]
    filter: Option<String>,
    /// Most events
    #[arg(long, short, default_value_t = 50, conflicts_with = "all")]
    limit: usize,
    /// All events, read page by page; printed as they are read
    #[arg(long)]
    all: bool,
    /// Only events with this sequence or a higher one
    #[arg(long, value_name = "SEQUENCE")]
    from: Option<u64>,
    /// Only events with a lower sequence: the way to the next page
    #[arg(long, value_name = "SEQUENCE")]
    before: Option<u64>,
    /// Only events stored at this time or later: RFC 3339, Unix milliseconds, or how long ago
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    since: Option<u64>,
    /// Only events stored before this time
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    until: Option<u64>,
}

impl Args {
    fn query(&self, limit: usize) -> HistoryQuery {
        let mut query = HistoryQuery::new(limit);
        query.filter.clone_from(&self.filter);
        query.since_sequence = self.from;
        query.before_sequence = self.before;
        query.since_time = self.since;
        query.before_time = self.until;
        query
    }
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let provider = app.connect_to_look().await?;
    let mut query = args.query(if args.all { PAGE } else { args.limit });
    loop {
        let page = provider.query(&query).await?;
        let rows: Vec<_> = page
            .iter()
            .map(|stored| EventRow {
                sequence: stored.sequence,
                stored_at: Some(stored.stored_at),
                num_delivered: None,
                event: &stored.event,
            })
            .collect();
        if args.all {
            rows.iter().try_for_each(|row| app.out.row(row))?;
        } else {
            app.out.rows(&rows)?;
        }
        let Some(oldest) = page.last() else { break };
        if !args.all || page.len() < PAGE {
            if page.len() == query.limit && app.out.format == Format::Table {
                app.out.say(&format!("next page: --before {}", oldest.sequence))?;
            }
            break;
        }
        query = query.before_sequence(oldest.sequence);
    }
    Ok(())
}
