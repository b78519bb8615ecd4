//! `watch`: shows the bus live in the terminal. It only reads, and leaves no consumer.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use a3s_event::{ConsumerInfo, EventProvider, HistoryQuery, ProviderInfo};
use ratatui::crossterm::event::{self, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::text::Span;
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};
use ratatui::{DefaultTerminal, Frame};
use tokio::time::MissedTickBehavior;

use crate::bus::{App, asked_to_end, redacted};
use crate::consumer_name::shown;
use crate::failure::{Failure, Outcome};
use crate::filter::Filter;
use crate::keys::Keys;
use crate::moment;
use crate::output::{EventRow, Output, Row as _};
use crate::stored::{Stored, Unreadable, newest, newest_sequence};
use crate::text::{self, count};

pub(crate) const EXAMPLE: &str = "Example:
  a3s-event watch
  a3s-event --url nats://127.0.0.1:4222 watch --every 500ms 'events.orders.>'

Press q to quit.";

/// Number of remembered rates.
const RATES: usize = 240;
/// Number of newest events that are read.
const EVENTS: usize = 50;
/// Time without an answer after which the bus is shown as silent.
const PATIENCE: Duration = Duration::from_secs(1);
/// Minimum lines of a terminal for frames and a chart.
const SMALL: u16 = 20;
/// Minimum columns of a terminal for the day of an event.
const NARROW: u16 = 80;
/// Columns that a subject leaves for the content of an event.
const CONTENT: u16 = 15;
/// Maximum delay until a key is read.
const KEYS: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Time between two reads
    #[arg(long, default_value = "1s", value_parser = moment::span)]
    every: Duration,
}

/// The state that is shown: the last results.
struct View {
    title: String,
    info: Option<ProviderInfo>,
    /// The newest records.
    events: Vec<Stored>,
    newest: Option<u64>,
    rates: Vec<u64>,
    consumers: Vec<ConsumerInfo>,
    /// Time of the last answer, or of the first request.
    answered: Instant,
    /// If true, the answer to the current request is late.
    is_silent: bool,
    problem: Option<String>,
}

/// An answer of the bus.
struct Read {
    info: ProviderInfo,
    events: Vec<Stored>,
    newest: u64,
    /// The consumers. The bus may not allow listing them.
    consumers: Outcome<Vec<ConsumerInfo>>,
}

pub(crate) async fn run(app: &mut App, args: Args) -> Outcome {
    if !Output::is_terminal() {
        return Err(Failure::Usage("watch needs a terminal; see info, consumers and tail".to_owned()));
    }
    let provider = app.connect_to_look().await?;
    let mut view = View::new(redacted(&app.url()?.0));
    let mut terminal = ratatui::try_init().map_err(|error| Failure::Other(format!("terminal: {error}")))?;
    let ended = show(&mut terminal, &provider, &args, &mut app.keys, &mut view).await;
    ratatui::restore();
    ended
}

async fn show(
    terminal: &mut DefaultTerminal,
    provider: &Arc<dyn EventProvider>,
    args: &Args,
    keys: &mut Keys,
    view: &mut View,
) -> Outcome {
    let mut every = tokio::time::interval(args.every.max(KEYS));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let drawing = async {
        loop {
            terminal.draw(|frame| view.draw(frame))?;
            every.tick().await;
            let mut reading = pin!(read(&**provider, args.filter.get()));
            let read = loop {
                match tokio::time::timeout(PATIENCE, &mut reading).await {
                    Ok(read) => break read,
                    Err(_elapsed) => view.is_silent = true,
                }
                terminal.draw(|frame| view.draw(frame))?;
            };
            view.take(read.map(|mut read| {
                keys.decrypt_all(&mut read.events);
                read
            }));
        }
    };
    // Quitting works while the bus does not answer.
    tokio::select! {
        () = asked_to_end() => Ok(()),
        pressed = quit_pressed() => pressed,
        failed = drawing => failed,
    }
}

/// Waits for a key that ends the command.
async fn quit_pressed() -> Outcome {
    let mut keys = tokio::time::interval(KEYS);
    loop {
        keys.tick().await;
        if is_quit()? {
            return Ok(());
        }
    }
}

/// Returns `true` if a key was pressed that ends the command.
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

async fn read(provider: &dyn EventProvider, filter: Option<&str>) -> Outcome<Read> {
    let info = provider.info().await?;
    let mut query = HistoryQuery::new(EVENTS);
    query.filter = filter.map(str::to_owned);
    let (mut events, _) = newest(provider, query).await?;
    events.truncate(EVENTS);
    let newest = newest_sequence(provider, None).await?.unwrap_or_default();
    let consumers = match provider.capabilities().consumer_info.is_no() {
        true => Ok(Vec::new()),
        false => provider.consumers().await.map_err(Failure::from),
    };
    Ok(Read { info, events, newest, consumers })
}

impl View {
    fn new(title: String) -> Self {
        Self {
            title,
            info: None,
            events: Vec::new(),
            newest: None,
            rates: Vec::new(),
            consumers: Vec::new(),
            answered: Instant::now(),
            is_silent: false,
            problem: None,
        }
    }

    /// Stores an answer. A failed read is shown as a problem, and the rest stays unchanged.
    fn take(&mut self, read: Outcome<Read>) {
        self.is_silent = false;
        let read = read.and_then(|Read { info, events, newest, consumers }| {
            (self.info, self.events) = (Some(info), events);
            self.count(newest);
            self.consumers = consumers?;
            self.consumers.sort_by(|a, b| b.lag.cmp(&a.lag).then_with(|| a.name.cmp(&b.name)));
            Ok(())
        });
        self.problem = read.err().map(|failure| failure.message());
    }

    /// Adds a rate: the growth of the sequence since the last read.
    fn count(&mut self, newest: u64) {
        let now = Instant::now();
        if let Some(before) = self.newest.replace(newest) {
            let ms = u64::try_from(now.duration_since(self.answered).as_millis()).unwrap_or(u64::MAX);
            self.rates.insert(0, newest.saturating_sub(before).saturating_mul(1_000) / ms.max(1));
            self.rates.truncate(RATES);
        }
        self.answered = now;
    }

    /// Draws the view. Rows take precedence: a small terminal shows no frames and no chart.
    fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let is_small = area.height < SMALL;
        let frames = if is_small { 0 } else { 2 };
        let summary = wrap_end(&self.summary(is_small), usize::from(area.width.saturating_sub(frames)));
        let head = u16::try_from(summary.len()).unwrap_or(u16::MAX) + frames;
        let rate = if is_small { 0 } else { 6 };
        // Each table has a header.
        let rows = area.height.saturating_sub(head + rate + 2 * (frames + 1));
        let consumers = self.consumers.len().clamp(1, usize::from((rows / 2).clamp(1, 10)));
        let consumers = u16::try_from(consumers).unwrap_or(u16::MAX) + frames + 1;
        let [head, rate, middle, bottom] = Layout::vertical([
            Constraint::Length(head),
            Constraint::Length(rate),
            Constraint::Length(consumers),
            Constraint::Min(0),
        ])
        .areas(area);
        let framed = |title: &str| match is_small {
            true => Block::new(),
            false => Block::bordered().title(title.to_owned()),
        };
        frame.render_widget(Paragraph::new(summary.join("\n")).block(framed(&self.title)), head);
        let title = format!("published: {}/s", self.rate());
        frame.render_widget(Sparkline::default().data(&self.rates).block(framed(&title)), rate);
        let width = area.width.saturating_sub(frames);
        frame.render_widget(self.consumer_table(width).block(framed("consumers")), middle);
        frame
            .render_widget(self.event_table(width, area.width < NARROW).block(framed("last events")), bottom);
    }

    fn rate(&self) -> u64 {
        self.rates.first().copied().unwrap_or_default()
    }

    fn summary(&self, with_rate: bool) -> String {
        let seconds = self.answered.elapsed().as_secs();
        match (&self.problem, &self.info) {
            (Some(problem), _) if seconds == 0 => format!("cannot be read: {}", text::line(problem)),
            (Some(problem), _) => format!("cannot be read for {seconds} s: {}", text::line(problem)),
            (None, _) if self.is_silent => format!("no answer for {seconds} s"),
            (None, Some(info)) => {
                let rate = if with_rate { format!("   {}/s", self.rate()) } else { String::new() };
                let unreadable = Unreadable::of(&self.events).count;
                let unreadable = match unreadable {
                    0 => String::new(),
                    unreadable => format!("   {unreadable} of the last cannot be read"),
                };
                format!(
                    "{}   {}   {}{rate}{unreadable}   q ends",
                    count(info.messages, "event"),
                    text::bytes(info.bytes),
                    count(info.consumers as u64, "consumer"),
                )
            }
            (None, None) => "reading".to_owned(),
        }
    }

    fn consumer_table(&self, width: u16) -> Table<'_> {
        let names: Vec<_> = self.consumers.iter().map(|consumer| text::line(&shown(consumer))).collect();
        let filters: Vec<_> = self.consumers.iter().map(|consumer| text::line(&consumer.filter)).collect();
        let room = width.saturating_sub(10 + 10 + 11 + 4);
        let (name, filter) = (widest("consumer", &names), widest("filter", &filters));
        let half = room / 2;
        // A column gives way to the other one only if both do not fit.
        let [name, filter] = match (name.saturating_add(filter) <= room, name <= half, filter <= half) {
            (true, ..) | (_, true, _) => [Constraint::Length(name), Constraint::Fill(1)],
            (_, _, true) => [Constraint::Fill(1), Constraint::Length(filter)],
            _ => [Constraint::Fill(1), Constraint::Fill(1)],
        };
        let rows = self.consumers.iter().zip(names).zip(filters).map(|((consumer, name), filter)| {
            Row::new([
                Cell::from(name),
                Cell::from(filter),
                Cell::from(consumer.lag.to_string()),
                Cell::from(consumer.pending.to_string()),
                Cell::from(consumer.redelivered.to_string()),
            ])
        });
        let widths = [name, filter, Constraint::Length(10), Constraint::Length(10), Constraint::Length(11)];
        Table::new(rows, widths).header(Row::new(["consumer", "filter", "lag", "pending", "redelivered"]))
    }

    /// Creates the table of events. A narrow one omits the day. Only a subject that leaves no room for the content is cut.
    fn event_table(&self, width: u16, without_day: bool) -> Table<'_> {
        let rows: Vec<_> = self.events.iter().map(|stored| stored.row().cells()).collect();
        let time = if without_day { 13 } else { 24 };
        let room = width.saturating_sub(10 + time + 3);
        let column =
            |column: usize| rows.iter().filter_map(|cells| cells.get(column).cloned()).collect::<Vec<_>>();
        let content = widest("content", &column(3)).min(CONTENT);
        let subject = widest("subject", &column(2)).min(room.saturating_sub(content).max(room / 3));
        let rows = rows.into_iter().map(move |mut cells| {
            if without_day && let Some(time) = cells.get_mut(1) {
                *time = time.rsplit('T').next().unwrap_or_default().to_owned();
            }
            Row::new(cells)
        });
        let widths = [
            Constraint::Length(10),
            Constraint::Length(time),
            Constraint::Length(subject),
            Constraint::Fill(1),
        ];
        Table::new(rows, widths).header(Row::new(EventRow::COLUMNS.iter().copied()))
    }
}

/// Returns the width of a column.
fn widest(header: &str, cells: &[String]) -> u16 {
    let widths = cells.iter().map(String::as_str).chain([header]).map(|cell| Span::raw(cell).width());
    u16::try_from(widths.max().unwrap_or_default()).unwrap_or(u16::MAX)
}

/// Wraps text for a heading. Longer text is cut at the start, because the cause is at the end.
fn wrap_end(text: &str, width: usize) -> Vec<String> {
    const LINES: usize = 3;
    let mut chars: Vec<char> = text.chars().collect();
    let room = LINES * width.max(1);
    if chars.len() > room {
        chars.drain(..=chars.len() - room);
        chars.insert(0, '…');
    }
    chars.chunks(width.max(1)).map(|line| line.iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use a3s_event::{Event, MemoryProvider};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    async fn view() -> View {
        let bus = MemoryProvider::default();
        for n in 0..20 {
            bus.publish(&Event::new("events.a", "a", "", "test", json!({"n": n}))).await.unwrap();
        }
        for name in ["billing", "audit", "mail", "search", "stock"] {
            drop(bus.subscribe_durable(name, "events.>").await.unwrap());
        }
        let mut view = View::new("memory://".to_owned());
        view.take(read(&bus, None).await);
        view
    }

    fn screen(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[tokio::test]
    async fn a_small_terminal_shows_rows() {
        let view = view().await;
        for (width, height, rows) in [(60, 12, 5), (80, 24, 4), (60, 8, 3), (120, 40, 14)] {
            let screen = screen(&view, width, height);
            let events = screen.lines().filter(|line| line.contains("{\"n\":")).count();
            assert!(events >= rows && screen.contains("audit"), "{width}x{height}: {events}\n{screen}");
        }
        // A screen without room must not panic.
        for (width, height) in [(1, 1), (3, 2), (60, 3)] {
            screen(&view, width, height);
        }
    }

    #[tokio::test]
    async fn what_fits_is_not_cut() {
        let bus = MemoryProvider::default();
        let subject = "events.orders.placed.by_a_customer";
        bus.publish(&Event::new(subject, "orders", "", "test", json!({"n": 1}))).await.unwrap();
        let consumer = "a_consumer_of_30_characters_or";
        drop(bus.subscribe_durable(consumer, "events.>").await.unwrap());
        let mut view = View::new("memory://".to_owned());
        view.take(read(&bus, None).await);
        for width in [80, 120] {
            let screen = screen(&view, width, 24);
            for whole in [subject, consumer, "events.>", "{\"n\":1}"] {
                assert!(screen.contains(whole), "{whole} at {width}:\n{screen}");
            }
        }
    }

    #[tokio::test]
    async fn without_consumers_events_are_shown() {
        let bus = MemoryProvider::default();
        bus.publish(&Event::new("events.a", "a", "", "test", json!({"n": 1}))).await.unwrap();
        let mut said = read(&bus, None).await.unwrap();
        said.consumers = Err(Failure::Unreachable("not allowed".to_owned()));
        let mut view = View::new("memory://".to_owned());
        view.take(Ok(said));
        let screen = screen(&view, 80, 24);
        assert!(screen.contains("{\"n\":1}") && screen.contains("cannot be read: not allowed"), "{screen}");
    }

    #[tokio::test]
    async fn the_cause_of_a_problem_is_seen() {
        let mut view = view().await;
        view.take(Err(Failure::Unreachable(format!("{}the cause", "a reason of it: ".repeat(30)))));
        for width in [40, 80, 120] {
            let screen = screen(&view, width, 24);
            let shown: String = screen.lines().map(|line| line.trim_matches(['"', '│'])).collect();
            assert!(shown.contains("the cause"), "{screen}");
        }
    }
}
