//! `history`: lists stored events, newest first or oldest first.

use std::sync::Arc;

use a3s_event::{EventProvider, HistoryQuery};

use crate::bus::App;
use crate::failure::Outcome;
use crate::filter::Filter;
use crate::forward::Forward;
use crate::moment;
use crate::stored::{PAGE, Stored, Unreadable, newest, newest_first};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event history 'events.market.>' --limit 20
  a3s-event history --since yesterday --oldest-first --all
  a3s-event history --since 1h --all --output ndjson > last-hour.ndjson";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Maximum number of events
    #[arg(long, short = 'n', short_alias = 'l', default_value_t = 50, conflicts_with = "all")]
    limit: usize,
    /// All events, read page by page and printed as they are read
    #[arg(long)]
    all: bool,
    /// List the oldest event first; --limit then selects the oldest events
    #[arg(long)]
    oldest_first: bool,
    /// Only events with this sequence or a higher one
    #[arg(long, value_name = "SEQUENCE")]
    from: Option<u64>,
    /// Only events with a lower sequence: the next page
    #[arg(long, alias = "before", value_name = "SEQUENCE")]
    before_seq: Option<u64>,
    /// Only events stored at this time or later: 2018-02-07T01:26:13Z, 2018-02-07, yesterday, '2 hours ago', 15m or
    /// Unix milliseconds. The table then shows when events were stored, not the time in the event
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

    /// Returns `true` if events are selected by the time at which they were stored.
    fn is_by_storage(&self) -> bool {
        self.since.is_some() || self.until.is_some()
    }
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    let provider = app.connect_to_look().await?;
    match (args.oldest_first, args.all) {
        (false, false) => newest_page(app, &*provider, &args).await,
        (true, false) => oldest_page(app, &provider, &args).await,
        (false, true) => all_backward(app, &*provider, &args).await,
        (true, true) => all_forward(app, &provider, &args).await,
    }
}

async fn newest_page(app: &mut App, provider: &dyn EventProvider, args: &Args) -> Outcome {
    let (mut records, next) = newest(provider, args.query(args.limit)).await?;
    app.keys.decrypt_all(&mut records);
    print_page(app, args, &records)?;
    if let Some(next) = next.filter(|_| !records.is_empty()) {
        app.out.say(&format!("next page: --before-seq {next}"))?;
    }
    Unreadable::of(&records).ended()
}

/// Reads the oldest records, of which at most `limit` are events.
async fn oldest_page(app: &mut App, provider: &Arc<dyn EventProvider>, args: &Args) -> Outcome {
    let mut forward = Forward::of(provider, args.query(PAGE)).await?;
    let (mut records, mut events) = (Vec::new(), 0);
    let mut next = None;
    'pages: loop {
        let page = forward.page().await?;
        if page.is_empty() {
            break;
        }
        for stored in page {
            if events == args.limit {
                next = Some(stored.sequence());
                break 'pages;
            }
            events += usize::from(matches!(stored, Stored::Event(_)));
            records.push(stored);
        }
    }
    app.keys.decrypt_all(&mut records);
    print_page(app, args, &records)?;
    if let Some(next) = next {
        app.out.say(&format!("next page: --from {next}"))?;
    }
    Unreadable::of(&records).ended()
}

fn print_page(app: &mut App, args: &Args, records: &[Stored]) -> Outcome {
    match args.is_by_storage() {
        true => app.out.rows(&records.iter().map(Stored::row_by_storage).collect::<Vec<_>>()),
        false => app.out.rows(&records.iter().map(Stored::row).collect::<Vec<_>>()),
    }
}

async fn all_backward(app: &mut App, provider: &dyn EventProvider, args: &Args) -> Outcome {
    let mut unreadable = Unreadable::default();
    let mut query = args.query(PAGE);
    loop {
        let page = provider.query_page(&query).await?;
        let next = page.next;
        print_rows(app, args, newest_first(page), &mut unreadable)?;
        match next {
            Some(before) => query = query.before_sequence(before),
            None => return unreadable.ended(),
        }
    }
}

async fn all_forward(app: &mut App, provider: &Arc<dyn EventProvider>, args: &Args) -> Outcome {
    let mut unreadable = Unreadable::default();
    let mut forward = Forward::of(provider, args.query(PAGE)).await?;
    loop {
        let page = forward.page().await?;
        if page.is_empty() {
            return unreadable.ended();
        }
        print_rows(app, args, page, &mut unreadable)?;
    }
}

fn print_rows(app: &mut App, args: &Args, mut records: Vec<Stored>, unreadable: &mut Unreadable) -> Outcome {
    app.keys.decrypt_all(&mut records);
    for stored in records {
        unreadable.meet(&stored);
        match args.is_by_storage() {
            true => app.out.row(&stored.row_by_storage())?,
            false => app.out.row(&stored.row())?,
        }
    }
    Ok(())
}
