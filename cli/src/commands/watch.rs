//! `watch`: the bus, live in the terminal. It only reads, and leaves no consumer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use a3s_event::{ConsumerInfo, EventProvider, HistoryQuery, ProviderInfo, StoredEvent};
use ratatui::crossterm::event::{self, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};
use ratatui::{DefaultTerminal, Frame};

use crate::bus::{App, asked_to_end, redacted};
use crate::failure::{Failure, Outcome};
use crate::moment;
use crate::output::{EventRow, Output, Row as _};
use crate::text;

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event watch
  a3s-event --url nats://127.0.0.1:4222 watch --every 500ms 'events.orders.>'

q ends it.";

/// Rates that are remembered.
const RATES: usize = 240;
/// Newest events that are read.
const EVENTS: usize = 50;
/// Longest time until a key is seen.
const KEYS: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Whose events are shown [default: all]
    filter: Option<String>,
    /// How often it is read
    #[arg(long, default_value = "1s", value_parser = moment::span)]
    every: Duration,
}

/// What was read last.
#[derive(Default)]
struct View {
    title: String,
    info: Option<ProviderInfo>,
    newest: Option<(u64, Instant)>,
    rates: Vec<u64>,
    consumers: Vec<ConsumerInfo>,
    events: Vec<StoredEvent>,
    problem: Option<String>,
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    if !Output::is_terminal() {
        return Err(Failure::Usage("watch needs a terminal; see info, consumers and tail".to_owned()));
    }
    let provider = app.connect().await?;
    let mut view = View { title: redacted(&app.url()?.0), ..View::default() };
    let mut terminal = ratatui::try_init().map_err(|error| Failure::Other(format!("terminal: {error}")))?;
    let ended = show(&mut terminal, &provider, &args, &mut view).await;
    ratatui::restore();
    ended
}

async fn show(
    terminal: &mut DefaultTerminal,
    provider: &Arc<dyn EventProvider>,
    args: &Args,
    view: &mut View,
) -> Outcome {
    let mut every = tokio::time::interval(args.every.max(KEYS));
    let drawing = async {
        loop {
            terminal.draw(|frame| view.draw(frame))?;
            every.tick().await;
            view.read(&**provider, args.filter.as_deref()).await;
        }
    };
    // A bus that does not answer keeps nobody from leaving.
    tokio::select! {
        () = asked_to_end() => Ok(()),
        pressed = quit_pressed() => pressed,
        failed = drawing => failed,
    }
}

/// Waits for a key that ends it.
async fn quit_pressed() -> Outcome {
    let mut keys = tokio::time::interval(KEYS);
    loop {
        keys.tick().await;
        if is_quit()? {
            return Ok(());
        }
    }
}

/// Whether a key was pressed that ends it.
fn is_quit() -> Outcome<bool> {
    while event::poll(Duration::ZERO)? {
        if let event::Event::Key(key) = event::read()? {
            let is_interrupt =
                key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

impl View {
    /// Reads the bus; what cannot be read is shown as a problem, and the rest stays as it was.
    async fn read(&mut self, provider: &dyn EventProvider, filter: Option<&str>) {
        self.problem = self.try_read(provider, filter).await.err().map(|failure| failure.message());
    }

    async fn try_read(&mut self, provider: &dyn EventProvider, filter: Option<&str>) -> Outcome {
        self.info = Some(provider.info().await?);
        let mut query = HistoryQuery::new(EVENTS);
        query.filter = filter.map(str::to_owned);
        self.events = provider.query(&query).await?;
        let newest = provider.query(&HistoryQuery::new(1)).await?;
        self.count(newest.first().map_or(0, |stored| stored.sequence));
        if !provider.capabilities().consumer_info.is_no() {
            self.consumers = provider.consumers().await?;
            self.consumers.sort_by(|a, b| b.lag.cmp(&a.lag).then_with(|| a.name.cmp(&b.name)));
        }
        Ok(())
    }

    /// The rate is what the sequence has grown by since it was read before.
    fn count(&mut self, newest: u64) {
        let now = Instant::now();
        if let Some((before, at)) = self.newest {
            let ms = u64::try_from(now.duration_since(at).as_millis()).unwrap_or(u64::MAX).max(1);
            self.rates.insert(0, newest.saturating_sub(before).saturating_mul(1_000) / ms);
            self.rates.truncate(RATES);
        }
        self.newest = Some((newest, now));
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let consumers = u16::try_from(self.consumers.len()).unwrap_or(u16::MAX).clamp(1, 10) + 3;
        let [head, rate, middle, bottom] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(6),
            Constraint::Length(consumers),
            Constraint::Min(3),
        ])
        .areas(frame.area());
        frame.render_widget(
            Paragraph::new(self.summary()).block(Block::bordered().title(self.title.as_str())),
            head,
        );
        let now = self.rates.first().copied().unwrap_or_default();
        let title = format!("published: {now}/s");
        frame.render_widget(
            Sparkline::default().data(&self.rates).block(Block::bordered().title(title)),
            rate,
        );
        frame.render_widget(self.consumer_table(), middle);
        frame.render_widget(self.event_table(), bottom);
    }

    fn summary(&self) -> String {
        match (&self.problem, &self.info) {
            (Some(problem), _) => format!("cannot be read: {}", text::line(problem)),
            (None, Some(info)) => {
                format!(
                    "{} events   {} bytes   {} consumers   q ends",
                    info.messages, info.bytes, info.consumers
                )
            }
            (None, None) => "reading".to_owned(),
        }
    }

    fn consumer_table(&self) -> Table<'_> {
        let rows = self.consumers.iter().map(|consumer| {
            Row::new([
                Cell::from(text::line(&consumer.name)),
                Cell::from(text::line(&consumer.filter)),
                Cell::from(consumer.lag.to_string()),
                Cell::from(consumer.pending.to_string()),
                Cell::from(consumer.redelivered.to_string()),
            ])
        });
        let widths = [
            Constraint::Fill(2),
            Constraint::Fill(2),
            Constraint::Length(10),
            Constraint::Length(10),
            Constraint::Length(11),
        ];
        Table::new(rows, widths)
            .header(Row::new(["consumer", "filter", "lag", "pending", "redelivered"]))
            .block(Block::bordered().title("consumers"))
    }

    fn event_table(&self) -> Table<'_> {
        let rows = self.events.iter().map(|stored| {
            let row = EventRow {
                sequence: stored.sequence,
                stored_at: None,
                num_delivered: None,
                event: &stored.event,
            };
            Row::new(row.cells())
        });
        let widths =
            [Constraint::Length(10), Constraint::Length(24), Constraint::Fill(1), Constraint::Fill(2)];
        Table::new(rows, widths)
            .header(Row::new(EventRow::COLUMNS.iter().copied()))
            .block(Block::bordered().title("last events"))
    }
}
