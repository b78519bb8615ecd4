//! `history`: stored events, newest first.

use a3s_event::HistoryQuery;

use crate::bus::App;
use crate::failure::Outcome;
use crate::filter::Filter;
use crate::moment;
use crate::stored::{PAGE, Stored, Unreadable, newest, newest_first};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event history 'events.market.>' --limit 20
  a3s-event history --since 1h --all --output ndjson > last-hour.ndjson";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Maximum number of events
    #[arg(long, short = 'n', short_alias = 'l', default_value_t = 50, conflicts_with = "all")]
    limit: usize,
    /// All events, read page by page; printed as they are read
    #[arg(long)]
    all: bool,
    /// Only events with this sequence or a higher one
    #[arg(long, value_name = "SEQUENCE")]
    from: Option<u64>,
    /// Only events with a lower sequence: the way to the next page
    #[arg(long, alias = "before", value_name = "SEQUENCE")]
    before_seq: Option<u64>,
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
        query.filter = self.filter.get().map(str::to_owned);
        query.since_sequence = self.from;
        query.before_sequence = self.before_seq;
        query.since_time = self.since;
        query.before_time = self.until;
        query
    }
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let provider = app.connect_to_look().await?;
    let mut unreadable = Unreadable::default();
    if !args.all {
        let (records, next) = newest(&*provider, args.query(args.limit)).await?;
        app.out.rows(&records.iter().map(Stored::row).collect::<Vec<_>>())?;
        if let Some(next) = next.filter(|_| !records.is_empty()) {
            app.out.say(&format!("next page: --before-seq {next}"))?;
        }
        return Unreadable::of(&records).ended();
    }
    let mut query = args.query(PAGE);
    loop {
        let page = provider.query_page(&query).await?;
        let next = page.next;
        for stored in newest_first(page) {
            unreadable.meet(&stored);
            app.out.row(&stored.row())?;
        }
        match next {
            Some(before) => query = query.before_sequence(before),
            None => return unreadable.ended(),
        }
    }
}
