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

/// Sequence and id of an event. A server that was promoted without the newest events gives their sequences to others.
pub(super) type Identity<'a> = (u64, &'a str);

/// A durable consumer.
#[derive(Default)]
pub(super) struct Consumer<'a> {
    pub(super) opened: Vec<Spot>,
    pub(super) ordered: bool,
    pub(super) events: BTreeMap<Identity<'a>, Handled>,
    /// Id of the event that a journal received last under a sequence.
    received: HashMap<(usize, u64), &'a str>,
}

impl<'a> Consumer<'a> {
    pub(super) fn event(&self, stored: &'a Stored) -> Option<&Handled> {
        self.events.get(&(stored.sequence, stored.id.as_str()))
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
            self.read(spot, &entry.fact);
        }
    }

    fn read(&mut self, spot: Spot, fact: &'a Fact) {
        let life = &mut self.lives[spot.journal];
        match fact {
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
                let consumer = self.consumers.entry(consumer).or_default();
                consumer.received.insert((spot.journal, *sequence), id);
                consumer.events.entry((*sequence, id)).or_default().deliveries.push(received);
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
            Fact::DeadLettered { consumer, sequence } => {
                self.handled(spot, consumer, *sequence).letters.push(spot);
            }
            _ => {}
        }
    }

    /// Returns what a process settles under a sequence: the event that it received last under it.
    fn handled(&mut self, spot: Spot, consumer: &'a str, sequence: u64) -> &mut Handled {
        let stored = self.stored.get(&sequence).map(|stored| stored.id.as_str());
        let consumer = self.consumers.entry(consumer).or_default();
        let received = consumer.received.get(&(spot.journal, sequence)).copied();
        consumer.events.entry((sequence, received.or(stored).unwrap_or_default())).or_default()
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

    /// Returns the time at which the publish of an event began; the beginning if no journal says so.
    pub(super) fn published_at(&self, id: &str) -> u64 {
        let begun = self.publications.get(id).and_then(|publication| publication.begun.first());
        begun.map_or(self.begin, |spot| spot.at)
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

    /// Returns true if a server was killed before it had to have written what was settled at this time.
    pub(super) fn forgotten(&self, at: u64) -> bool {
        let within = self.terms.forgets_settlements * 1_000;
        self.disturbances
            .iter()
            .any(|it| it.nemesis.kills_a_server() && it.to >= at && it.from <= at.saturating_add(within))
    }

    /// Returns true if a clock jumped in this time. Without a server, it decides how long an id is remembered.
    pub(super) fn clock_jumped(&self, from: u64, to: u64) -> bool {
        let mut jumps = self.disturbances.iter().filter(|it| it.nemesis.moves_a_clock());
        jumps.any(|it| it.from <= to && it.to >= from)
    }

    /// Returns the stored dead letters of a consumer about an event.
    pub(super) fn letters(&self, consumer: &str, event: Identity<'_>) -> impl Iterator<Item = &'a Letter> {
        let letters = self.finale.letters.iter();
        letters.filter(move |letter| letter.consumer == consumer && letter.event() == event)
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
