//! The journals, sorted by what they are about.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::super::finale::{Finale, Letter, Stored};
use super::super::journal::{Entry, Exit, Fact, Lines, Terms};
use super::super::nemesis::Nemesis;
use super::super::verdict::{Evidence, Kind, Verdict};

/// A line of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    journal: usize,
    line: usize,
    /// Time of the line.
    pub(super) at: u64,
}

/// A worker process.
#[derive(Default)]
pub(super) struct Life<'a> {
    pub(super) member: &'a str,
    pub(super) life: u32,
    pub(super) begun: Option<Spot>,
    pub(super) stop_begun: Option<Spot>,
    /// End of an orderly stop, and its error.
    pub(super) stopped: Option<(Spot, Option<&'a str>)>,
    pub(super) exit: Option<(Spot, Exit, &'a str)>,
    pub(super) rested: Option<Spot>,
    pub(super) consumer_ended: Option<(Spot, &'a str)>,
    /// Times in which the process noted nothing for so long that a lease may have expired.
    gaps: Vec<(u64, u64)>,
}

impl Life<'_> {
    /// Returns the time from which on every ack of this process is stored.
    pub(super) fn stopped_in_order(&self) -> Option<Spot> {
        self.stopped.and_then(|(spot, error)| error.is_none().then_some(spot))
    }

    /// Returns the time at which this process ended without an orderly stop.
    pub(super) fn crashed_at(&self) -> Option<u64> {
        let exit = self.exit.map(|(spot, ..)| spot.at);
        exit.filter(|_| self.stopped_in_order().is_none())
    }

    pub(super) fn name(&self) -> String {
        format!("process {} of {}", self.life, self.member)
    }
}

/// A fault, from its begin to its end.
struct Disturbance<'a> {
    nemesis: Nemesis,
    target: Option<&'a str>,
    from: u64,
    to: u64,
}

/// The publishes of an event, and their answers.
#[derive(Default)]
pub(super) struct Publication {
    pub(super) begun: Vec<Spot>,
    /// The answers, each with the sequence.
    pub(super) answers: Vec<(Spot, u64, bool)>,
}

/// The deliveries of an event to the handlers of a consumer, and their settlements.
#[derive(Default)]
pub(super) struct Handled {
    pub(super) deliveries: Vec<Received>,
    pub(super) acks: Vec<Ack>,
    pub(super) naks: Vec<(Spot, u64)>,
    pub(super) terms: Vec<Spot>,
    pub(super) letters: Vec<Spot>,
}

impl Handled {
    /// Returns the time at which the event was settled for the first time, from the point of view of its handler.
    pub(super) fn settled_at(&self) -> Option<u64> {
        let acks = self.acks.iter().map(|ack| ack.begun.at);
        acks.chain(self.letters.iter().map(|letter| letter.at)).min()
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    pub(super) spot: Spot,
    pub(super) life: usize,
    pub(super) attempt: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Ack {
    pub(super) life: usize,
    pub(super) attempt: u64,
    pub(super) begun: Spot,
    pub(super) confirmed: Option<Spot>,
    pub(super) failed: bool,
}

/// A durable consumer.
#[derive(Default)]
pub(super) struct Consumer<'a> {
    pub(super) opened: Vec<Spot>,
    pub(super) ordered: bool,
    /// By sequence.
    pub(super) events: BTreeMap<u64, Handled>,
    /// By sequence and id: what a server that was promoted without the newest events does not have.
    pub(super) lost: BTreeMap<(u64, &'a str), Handled>,
    /// Lost events that a journal received last under a sequence.
    received: HashMap<(usize, u64), &'a str>,
}

impl<'a> Consumer<'a> {
    /// Returns what a process settles under a sequence: the event that it received last under it.
    fn handled(&mut self, journal: usize, sequence: u64) -> &mut Handled {
        match self.received.get(&(journal, sequence)) {
            Some(id) => self.lost.entry((sequence, id)).or_default(),
            None => self.events.entry(sequence).or_default(),
        }
    }

    /// Notes which event a journal receives under a sequence.
    fn receives(&mut self, journal: usize, sequence: u64, lost: Option<&'a str>) -> &mut Handled {
        match lost {
            Some(id) => self.received.insert((journal, sequence), id),
            None => self.received.remove(&(journal, sequence)),
        };
        self.handled(journal, sequence)
    }
}

pub(super) struct Account<'a> {
    journals: &'a [Lines],
    pub(super) finale: &'a Finale,
    pub(super) terms: Terms,
    begin: u64,
    /// By journal; that of the driver is empty.
    pub(super) lives: Vec<Life<'a>>,
    disturbances: Vec<Disturbance<'a>>,
    /// The stored events by sequence.
    stored: HashMap<u64, &'a Stored>,
    /// By id.
    pub(super) publications: BTreeMap<&'a str, Publication>,
    pub(super) consumers: BTreeMap<&'a str, Consumer<'a>>,
    pub(super) quiet: Option<Spot>,
}

impl<'a> Account<'a> {
    pub(super) fn new(journals: &'a [Lines], finale: &'a Finale) -> Self {
        let entries = || journals.iter().flat_map(|journal| &journal.entries);
        let stated = entries().find_map(|entry| match &entry.fact {
            Fact::Terms(terms) => Some(terms.clone()),
            _ => None,
        });
        let mut account = Self {
            journals,
            finale,
            terms: stated.unwrap_or_default(),
            begin: entries().map(|entry| entry.at).min().unwrap_or_default(),
            lives: journals.iter().map(|_| Life::default()).collect(),
            disturbances: Vec::new(),
            stored: finale.stored.iter().map(|stored| (stored.sequence, stored)).collect(),
            publications: BTreeMap::new(),
            consumers: BTreeMap::new(),
            quiet: None,
        };
        for (index, journal) in journals.iter().enumerate() {
            account.read_journal(index, &journal.entries);
        }
        account.read_exits();
        account
    }

    fn read_journal(&mut self, journal: usize, entries: &'a [Entry]) {
        let longest = self.terms.lease * 1_000 / 2;
        for pair in entries.windows(2).filter(|pair| pair[1].at.saturating_sub(pair[0].at) >= longest) {
            self.lives[journal].gaps.push((pair[0].at, pair[1].at));
        }
        for (index, entry) in entries.iter().enumerate() {
            let spot = Spot { journal, line: index + 1, at: entry.at };
            self.read(spot, entry);
        }
    }

    fn read(&mut self, spot: Spot, entry: &'a Entry) {
        let life = &mut self.lives[spot.journal];
        match &entry.fact {
            Fact::NemesisBegun { nemesis, target } => self.disturbances.push(Disturbance {
                nemesis: *nemesis,
                target: target.as_deref(),
                from: spot.at,
                to: u64::MAX,
            }),
            Fact::NemesisEnded { nemesis, target } => {
                let is_it = |open: &&mut Disturbance<'_>| {
                    open.nemesis == *nemesis && open.target == target.as_deref() && open.to == u64::MAX
                };
                if let Some(open) = self.disturbances.iter_mut().find(is_it) {
                    open.to = spot.at;
                }
            }
            Fact::Quiet => self.quiet = Some(spot),
            Fact::Began { member, life: number, .. } => {
                (life.member, life.life, life.begun) = (member, *number, Some(spot));
            }
            Fact::Rested => life.rested = Some(spot),
            Fact::StopBegun => life.stop_begun = Some(spot),
            Fact::Stopped { error } => life.stopped = Some((spot, error.as_deref())),
            Fact::ConsumerEnded { error, .. } => life.consumer_ended = Some((spot, error)),
            Fact::Opened { consumer, ordered } => {
                let opened = self.consumers.entry(consumer).or_default();
                opened.opened.push(spot);
                opened.ordered = *ordered;
            }
            Fact::PublishBegun { id, .. } => self.publications.entry(id).or_default().begun.push(spot),
            Fact::Published { id, sequence, duplicate } => {
                self.publications.entry(id).or_default().answers.push((spot, *sequence, *duplicate));
            }
            Fact::Delivered { consumer, sequence, attempt, id, .. } => {
                let received = Received { spot, life: spot.journal, attempt: *attempt };
                let lost = self.is_lost(*sequence, id, entry.wall).then_some(id.as_str());
                let consumer = self.consumers.entry(consumer).or_default();
                consumer.receives(spot.journal, *sequence, lost).deliveries.push(received);
            }
            Fact::AckBegun { consumer, sequence } => {
                let life = spot.journal;
                let handled = self.handled(spot, consumer, *sequence);
                // Of two handlers of one process that have the event, the later delivery is in force.
                let attempts = handled.deliveries.iter().filter(|received| received.life == life);
                let attempt = attempts.map(|received| received.attempt).max().unwrap_or_default();
                handled.acks.push(Ack { life, attempt, begun: spot, confirmed: None, failed: false });
            }
            Fact::AckConfirmed { consumer, sequence } => {
                if let Some(ack) = self.open_ack(spot, consumer, *sequence) {
                    ack.confirmed = Some(spot);
                }
            }
            Fact::AckFailed { consumer, sequence, .. } => {
                if let Some(ack) = self.open_ack(spot, consumer, *sequence) {
                    ack.failed = true;
                }
            }
            Fact::Nak { consumer, sequence, attempt } => {
                self.handled(spot, consumer, *sequence).naks.push((spot, *attempt));
            }
            Fact::Term { consumer, sequence } => self.handled(spot, consumer, *sequence).terms.push(spot),
            Fact::DeadLettered { consumer, sequence, id } => {
                let is_it = self.stored.get(sequence).is_some_and(|stored| stored.id == *id);
                let consumer = self.consumers.entry(consumer).or_default();
                let handled = if is_it || !self.terms.reuses_sequences {
                    consumer.handled(spot.journal, *sequence)
                } else {
                    consumer.lost.entry((*sequence, id)).or_default()
                };
                handled.letters.push(spot);
            }
            _ => {}
        }
    }

    fn handled(&mut self, spot: Spot, consumer: &'a str, sequence: u64) -> &mut Handled {
        self.consumers.entry(consumer).or_default().handled(spot.journal, sequence)
    }

    /// Returns true if what was received at this time is not what is stored under the sequence: it was lost, and
    /// another event, or another copy of this one, was stored later.
    fn is_lost(&self, sequence: u64, id: &str, at: u64) -> bool {
        let is_it = |stored: &&Stored| stored.id == id && stored.stored_at <= at;
        self.terms.reuses_sequences && !self.stored.get(&sequence).is_some_and(is_it)
    }

    /// Returns the ack that a process has begun and that has no answer yet.
    fn open_ack(&mut self, spot: Spot, consumer: &'a str, sequence: u64) -> Option<&mut Ack> {
        let acks = &mut self.handled(spot, consumer, sequence).acks;
        acks.iter_mut().rev().find(|ack| ack.life == spot.journal && ack.confirmed.is_none() && !ack.failed)
    }

    /// The driver notes the ends of processes. Their times are those of the driver: a moment later.
    fn read_exits(&mut self) {
        for (journal, lines) in self.journals.iter().enumerate() {
            for (index, entry) in lines.entries.iter().enumerate() {
                let Fact::Exited { member, life, cause, status } = &entry.fact else { continue };
                let spot = Spot { journal, line: index + 1, at: entry.at };
                if let Some(ended) = self.lives.iter_mut().find(|it| it.member == member && it.life == *life)
                {
                    ended.exit = Some((spot, *cause, status));
                }
            }
        }
    }

    /// Returns the lines of one process, with their places.
    pub(super) fn lines_of(&self, life: usize) -> impl Iterator<Item = (Spot, &'a Fact)> {
        let entries = self.journals[life].entries.iter().enumerate();
        entries
            .map(move |(index, entry)| (Spot { journal: life, line: index + 1, at: entry.at }, &entry.fact))
    }

    /// Returns the time at which the publish of a stored event began; the beginning if no journal says so.
    pub(super) fn published_at(&self, stored: &Stored) -> u64 {
        let begun =
            self.publications.get(stored.id.as_str()).and_then(|publication| publication.begun.first());
        begun.map_or(self.begin, |spot| spot.at)
    }

    /// Returns the time at which the publish of this sequence began; the beginning if it is not stored.
    pub(super) fn sequence_published_at(&self, sequence: u64) -> u64 {
        self.stored.get(&sequence).map_or(self.begin, |stored| self.published_at(stored))
    }

    /// Returns true if a lease of this process may have been lost in this time.
    pub(super) fn disturbed(&self, life: usize, from: u64, to: u64) -> bool {
        let Life { member, gaps, .. } = &self.lives[life];
        gaps.iter().any(|gap| gap.0 <= to && gap.1 >= from)
            || self.disturbances.iter().any(|it| {
                let is_own =
                    it.target == Some(member) && !matches!(it.nemesis, Nemesis::Kill | Nemesis::Term);
                (it.nemesis.disturbs_everyone() || is_own) && it.from <= to && self.end_of(it) >= from
            })
    }

    /// Returns true if an ack of this process may have been lost in a fault. Its orderly stop tells that, however long ago
    /// it was.
    pub(super) fn lost_an_ack(&self, life: usize) -> bool {
        let handled = self.consumers.values().flat_map(|consumer| consumer.events.values());
        let mut acks = handled.flat_map(|handled| &handled.acks).filter(|ack| ack.life == life);
        acks.any(|ack| {
            let (from, to) = (ack.begun.at, ack.begun.at.saturating_add(self.terms.lease * 1_000));
            ack.confirmed.is_none() && !ack.failed && self.disturbed(life, from, to)
        })
    }

    /// Returns the times in which connections to a server were lost, and what was on its way with them.
    pub(super) fn cuts(&self) -> impl Iterator<Item = (u64, u64)> {
        let cuts = self.disturbances.iter().filter(|it| it.nemesis.cuts_connections());
        cuts.map(|it| (it.from, self.end_of(it)))
    }

    /// Returns the time of an orderly stop during a fault. A release that cannot be stored is logged and not repeated,
    /// so the event keeps its lease.
    pub(super) fn unreleased_at(&self, life: usize) -> Option<u64> {
        let Life { member, stop_begun, .. } = &self.lives[life];
        let (begun, stopped) = (stop_begun.as_ref()?, self.lives[life].stopped_in_order()?);
        let prevents = |it: &&Disturbance<'_>| {
            (it.target.is_none() || it.target == Some(member)) && it.nemesis.prevents_writes()
        };
        let mut faults = self.disturbances.iter().filter(prevents);
        faults.any(|it| it.from <= stopped.at && self.end_of(it) >= begun.at).then_some(stopped.at)
    }

    /// Clients reconnect a moment after the end of a fault, and take up what had waited.
    fn end_of(&self, disturbance: &Disturbance<'_>) -> u64 {
        disturbance.to.saturating_add(self.terms.lease * 1_000)
    }

    /// Returns true if a server was killed before it had to have written what it settled at some moment of this time. A
    /// process that was suspended learns of it late.
    pub(super) fn forgotten(&self, from: u64, to: u64) -> bool {
        let within = self.terms.forgets_settlements * 1_000;
        self.disturbances
            .iter()
            .any(|it| it.nemesis.kills_a_server() && it.to >= from && it.from <= to.saturating_add(within))
    }

    /// Returns true if a clock jumped in this time. Without a server, it decides how long an id is remembered.
    pub(super) fn clock_jumped(&self, from: u64, to: u64) -> bool {
        let mut jumps = self.disturbances.iter().filter(|it| it.nemesis.moves_a_clock());
        jumps.any(|it| it.from <= to && it.to >= from)
    }

    /// Returns the stored dead letters of a consumer about an event.
    pub(super) fn letters(&self, consumer: &str, sequence: u64) -> impl Iterator<Item = &'a Letter> {
        let id = self.stored.get(&sequence).map(|stored| stored.id.as_str());
        let letters = self.finale.letters.iter();
        let about = letters.filter(move |letter| letter.consumer == consumer && letter.sequence == sequence);
        about.filter(move |letter| id.is_none_or(|id| letter.id == id))
    }

    /// Returns what a consumer did with the event of a letter, and with its lost copies.
    pub(super) fn subject_of<'b>(&'b self, letter: &'b Letter) -> impl Iterator<Item = &'b Handled> {
        let Letter { consumer, sequence, id, .. } = letter;
        let is_stored = self.stored.get(sequence).is_none_or(|stored| stored.id == *id);
        let consumer = self.consumers.get(consumer.as_str());
        let kept = consumer.and_then(|consumer| consumer.events.get(sequence)).filter(|_| is_stored);
        let lost = consumer.and_then(|consumer| consumer.lost.get(&(*sequence, id.as_str())));
        kept.into_iter().chain(lost)
    }

    pub(super) fn verdict(&self, kind: Kind, what: String, spots: &[Spot]) -> Verdict {
        let mut spots = spots.to_vec();
        spots.sort_by_key(|spot| spot.at);
        let evidence = spots.iter().map(|spot| Evidence {
            journal: self.journals[spot.journal].name.clone(),
            line: spot.line,
            at: Duration::from_micros(spot.at - self.begin),
        });
        Verdict { kind, what, evidence: evidence.collect() }
    }
}
